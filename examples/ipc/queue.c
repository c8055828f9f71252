/*
 * The fourth of the four ways: a queue in a server, here Redis. A sender and a receiver
 * need not live at the same time, nor on one machine.
 *
 *	producer 1 --.                       .--> worker 1    takes a message, does
 *	              >-- Redis: rsmq:jobs --+--> worker 2    the job, and deletes the
 *	producer 2 --'                       `--> worker 3    message after that
 *
 * A worker that dies before it has deleted its message loses nothing: after the visibility
 * timeout, one second here, another worker gets the message. The second part of the story,
 * in queue_lists.c, is a simpler queue, which does lose a message. The end of the story is
 * publish and subscribe, where a message goes to the processes that listen at that moment.
 *
 *	build/examples/ipc/queue         with a Redis of its own, gone at the end
 *	build/examples/ipc/queue URL     redis://[user][:password@]host[:port][/database]
 *	                                 or unix:///path
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "queue.h"
#include "rsmq.h"
#include "standard.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
	PRODUCERS = 2,
	JOBS = 3, /* of each producer */
	WORKERS = 3
};

static const char *url;
static char name[32], channel[32];
static int work_lifeline = -1; /* the end that main holds */

void
queue_fail(const char *what, const char *why)
{
	fprintf(stderr, "queue: %s: %s\n", what, why);
	exit(1);
}

void
queue_fail_by_errno(const char *what)
{
	queue_fail(what, strerror(errno));
}

/* A call of RSMQ has failed. */
static void
fail(const char *what)
{
	queue_fail(what, rsmq_reason());
}

static void
no_log(const char *line, void *arg)
{
	(void)line, (void)arg;
}

struct redis *
queue_open_redis(const char *where, const struct redis_options *options)
{
	struct redis_options quiet = {0};
	struct redis *redis;

	if (options != NULL)
		quiet = *options;
	quiet.log = no_log;
	redis = redis_open(NULL, where, &quiet);
	if (redis != NULL)
		return redis;
	fprintf(stderr, "queue: %s: %s\n", where, strerror(errno));
	exit(errno == EINVAL ? 64 : 1);
}

/* ---- processes: each ends with the process that it works for -------------- */

void
queue_open_lifeline(int ends[2])
{
	if (pipe(ends) == -1)
		queue_fail_by_errno("pipe");
}

static bool
is_over(int lifeline, int milliseconds)
{
	struct pollfd wait = {.fd = lifeline, .events = POLLIN};

	return poll(&wait, 1, milliseconds) > 0;
}

pid_t
queue_fork(void)
{
	pid_t pid;

	fflush(stdout); /* or the child would print it again */
	pid = fork();
	if (pid == -1)
		queue_fail_by_errno("fork");
	return pid;
}

/* ---- producers and workers ----------------------------------------------- */

static void
produce(int number)
{
	struct redis *redis = queue_open_redis(url, NULL);
	char text[64];
	int i;

	for (i = 1; i <= JOBS; i++) {
		snprintf(text, sizeof text, "{\"producer\":%d,\"job\":%d}", number, i);
		if (rsmq_send_message(redis, name, text, RSMQ_DEFAULT, NULL) == -1)
			fail("send");
		printf("producer %d sends      %s\n", number, text);
	}
	redis_close(redis);
}

/* Take, do, delete: in another order, a job would be lost when its worker dies. */
static void
handle(struct redis *redis, int number, const struct rsmq_message *message)
{
	if (message->rc == 1)
		printf("worker %d takes        %s, %" PRId64 " ms after it was sent\n", number,
		       message->message, message->fr - message->sent);
	else
		printf("worker %d takes        %s, for the %" PRId64 ". time\n", number,
		       message->message, message->rc);
	if (strcmp(message->message, "{\"job\":\"deadly\"}") == 0 && message->rc == 1)
		raise(SIGKILL);
	switch (rsmq_delete_message(redis, name, message->id)) {
	case 1:
		printf("worker %d deletes      %s\n", number, message->message);
		break;
	case 0: /* the job took longer than the visibility timeout */
		printf("worker %d is too late  %s\n", number, message->message);
		break;
	default:
		fail("delete");
	}
}

/* RSMQ has no call that waits for a message, so a worker asks again and again. */
static void
work(int number, int lifeline)
{
	struct redis *redis = queue_open_redis(url, NULL);
	struct rsmq_message message;
	int received;

	while (!is_over(lifeline, 0)) {
		received = rsmq_receive_message(redis, name, RSMQ_DEFAULT, &message);
		if (received == -1)
			fail("receive");
		if (received == 1) {
			handle(redis, number, &message);
			free(message.message);
		} else if (is_over(lifeline, QUEUE_PAUSE)) {
			break;
		}
	}
	redis_close(redis);
}

/* ---- RSMQ's story --------------------------------------------------- */

enum { CHILDREN = PRODUCERS + WORKERS };

static pid_t children[CHILDREN];

/* One process with its own connection to Redis. It closes all that belongs to main. */
static void
start(int child, struct redis *redis, int lifeline)
{
	children[child] = queue_fork();
	if (children[child] != 0)
		return;
	redis_close(redis);
	close(work_lifeline);
	queue_leave_redis();
	if (child < PRODUCERS)
		produce(child + 1);
	else
		work(child + 1 - PRODUCERS, lifeline);
	exit(0);
}

/* Reap the children that have ended. */
static void
reap(int options)
{
	int i, status;

	for (i = 0; i < CHILDREN; i++) {
		if (children[i] == 0 || waitpid(children[i], &status, options) != children[i])
			continue;
		children[i] = 0;
		if (i >= PRODUCERS && WIFSIGNALED(status))
			printf("worker %d is dead, killed by signal %d\n", i + 1 - PRODUCERS,
			       WTERMSIG(status));
		else if (WIFSIGNALED(status))
			fprintf(stderr, "queue: producer %d was killed by signal %d\n", i + 1,
			        WTERMSIG(status));
		if (status != 0 && (i < PRODUCERS || WIFEXITED(status)))
			exit(1); /* there has been a line about it */
	}
}

/* Wait until this many messages were sent, and all of them are deleted. */
static void
wait_until_done(struct redis *redis, int64_t sent)
{
	struct rsmq_attributes now;
	int i;

	for (i = 0; i < QUEUE_DEADLINE / QUEUE_PAUSE; i++) {
		if (rsmq_get_queue_attributes(redis, name, &now) == -1)
			fail(name);
		reap(WNOHANG);
		if (now.totalsent == sent && now.msgs == 0)
			return;
		poll(NULL, 0, QUEUE_PAUSE);
	}
	errno = ETIMEDOUT;
	queue_fail_by_errno("the workers do not come to an end");
}

static void
send_and_wait(struct redis *redis, const char *text, int delay, int64_t sent)
{
	if (rsmq_send_message(redis, name, text, delay, NULL) == -1)
		fail("send");
	printf("main sends            %s, to be seen in %d s\n", text, delay);
	wait_until_done(redis, sent);
}

static void
show_rsmq(void)
{
	struct redis *redis = queue_open_redis(url, NULL);
	struct rsmq_attributes end;
	int i, lifeline[2];

	if (rsmq_create_queue(redis, name, 1, 0, RSMQ_DEFAULT) == -1)
		fail(name);
	queue_open_lifeline(lifeline);
	work_lifeline = lifeline[1];
	for (i = 0; i < CHILDREN; i++)
		start(i, redis, lifeline[0]);
	close(lifeline[0]);
	wait_until_done(redis, PRODUCERS * JOBS);
	send_and_wait(redis, "{\"job\":\"deadly\"}", 0, PRODUCERS * JOBS + 1);
	send_and_wait(redis, "{\"job\":\"later\"}", 1, PRODUCERS * JOBS + 2);
	close(work_lifeline);
	reap(0);
	if (rsmq_get_queue_attributes(redis, name, &end) == -1 ||
	    rsmq_delete_queue(redis, name) == -1)
		fail(name);
	printf("the queue             %" PRId64 " sent, %" PRId64 " taken, %" PRId64 " left\n",
	       end.totalsent, end.totalrecv, end.msgs);
	redis_close(redis);
}

/* ---- publish and subscribe: for the processes that listen now ------------- */

static bool listening, heard;

static int
on_change(struct redis *redis, bool ready, void *arg)
{
	(void)redis, (void)arg;
	listening = ready;
	return 0;
}

static int
on_message(struct redis *redis, const struct redis_reply *message, void *arg)
{
	(void)redis, (void)arg;
	heard = true;
	printf("subscriber hears      %s\n", message->element[2].text);
	return 0;
}

static int
on_published(struct redis *redis, const struct redis_reply *reply, void *arg)
{
	(void)redis;
	*(int64_t *)arg = reply->type == REDIS_INTEGER ? reply->integer : -2;
	return 0;
}

static void
publish(struct redis *redis, const char *text)
{
	int64_t listeners = -1;

	if (redis_command(redis, on_published, &listeners, "PUBLISH", channel, text,
	                  (char *)NULL) == -1)
		queue_fail_by_errno("publish");
	while (listeners == -1)
		redis_step(redis, -1);
	errno = EIO;
	if (listeners < 0)
		queue_fail_by_errno("publish");
	printf("main publishes        %s, and %s\n", text,
	       listeners > 0 ? "somebody hears it" : "nobody listens: it is lost");
}

/* Turn the subscriber's loop until the condition is true. */
static void
wait_for(struct redis *subscriber, const bool *is_so)
{
	int i;

	for (i = 0; i < QUEUE_DEADLINE / QUEUE_PAUSE && !*is_so; i++)
		redis_step(subscriber, QUEUE_PAUSE);
	errno = ETIMEDOUT;
	if (!*is_so)
		queue_fail_by_errno("the subscriber");
}

static void
show_publish(void)
{
	const char *const channels[] = {channel, NULL};
	const struct redis_options options = {
		.on_change = on_change, .channels = channels, .on_message = on_message};
	struct redis *redis = queue_open_redis(url, NULL), *subscriber;

	publish(redis, "\"good morning\"");
	subscriber = queue_open_redis(url, &options);
	wait_for(subscriber, &listening);
	printf("subscriber            listens from now on\n");
	publish(redis, "\"good evening\"");
	wait_for(subscriber, &heard);
	redis_close(subscriber);
	redis_close(redis);
}

int
main(int argc, char **argv)
{
	if (argc > 2 || (argc == 2 && strstr(argv[1], "://") == NULL)) {
		fprintf(stderr, "usage: queue [redis://[user][:password@]host[:port][/database] "
		                "or unix:///path]\n");
		return 64;
	}
	if (!fill_standard_descriptors())
		queue_fail_by_errno("/dev/null");
	url = argv[1];
	snprintf(name, sizeof name, "jobs-%ld", (long)getpid()); /* no other program's queue */
	snprintf(channel, sizeof channel, "news-%ld", (long)getpid());
	signal(SIGPIPE, SIG_IGN);
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (url == NULL) {
		url = queue_start_redis();
		if (!queue_wait_for_redis(url))
			return 1;
	}
	show_rsmq();
	queue_show_lists(url);
	show_publish();
	return 0;
}
