/*
 * A queue that is a list of Redis: LPUSH puts a message in at the left, and BRPOP takes one
 * out at the right, or waits until there is one.
 *
 *	         LPUSH  .-----------------.  BRPOP urgent low
 *	main ---------->| urgent:    fire |----------------.
 *	     `--------->| low: mow, sweep |----------------+--> worker: does the job,
 *	                `-----------------'                         |
 *	     <----------- done: fire ------------------ LPUSH ------'
 *
 * There is no pause between two questions, as RSMQ's workers need one, and priorities cost
 * nothing: BRPOP looks into its lists in their order. But a message has no state. Redis
 * removes it when a worker takes it, and there is no acknowledgement (ACK). So the message
 * of a worker that dies at its job is lost, and no process can find out that there was one.
 *
 * Messages that belong together are sent in one transaction: after MULTI, Redis keeps the
 * commands, and EXEC executes them all at once.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "queue.h"

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define WAIT "30" /* seconds that BRPOP waits; less than QUEUE_DEADLINE */
#define DEADLY "{\"job\":\"deadly\"}"
#define NO_LIFELINE (-1)

static const char *url;
static char urgent[32], low[32], done[32];

/* ---- a command and its reply --------------------------------------------- */

struct answer {
	bool is_there;
	enum redis_type type;
	int64_t integer;
	size_t count;   /* of an array's elements */
	char list[32];  /* from which a message comes */
	char text[128]; /* the message, or another text */
};

static int
on_reply(struct redis *redis, const struct redis_reply *reply, void *arg)
{
	struct answer *answer = arg;
	const struct redis_reply *text = reply;

	(void)redis;
	answer->is_there = true;
	answer->type = reply->type;
	answer->integer = reply->integer;
	answer->count = reply->count;
	if (reply->type == REDIS_ARRAY && reply->count == 2 &&
	    reply->element[0].type == REDIS_STRING) {
		snprintf(answer->list, sizeof answer->list, "%s", reply->element[0].text);
		text = &reply->element[1];
	}
	if (text->text != NULL)
		snprintf(answer->text, sizeof answer->text, "%s", text->text);
	return 0;
}

/* Send a command and wait for its reply, or for the end of the process that we work for. */
static struct answer
ask(struct redis *redis, int lifeline, const char *const words[])
{
	struct pollfd set[2] = {{.fd = lifeline, .events = POLLIN}};
	struct answer answer = {.is_there = false};
	size_t count = 0;

	while (words[count] != NULL)
		count++;
	if (redis_command_argv(redis, on_reply, &answer, count, words, NULL) == -1)
		queue_fail_by_errno(words[0]);
	while (!answer.is_there && set[0].revents == 0) {
		redis_step(redis, 0); /* it writes, and decides what to wait for */
		set[1].fd = redis_descriptor(redis, &set[1].events);
		if (!answer.is_there)
			poll(set, 2, redis_timeout(redis));
	}
	if (!answer.is_there)
		exit(0);
	if (answer.type == REDIS_ERROR || answer.type == REDIS_NO_REPLY)
		queue_fail(words[0], answer.text);
	return answer;
}

#define ASK(redis, ...) ask(redis, NO_LIFELINE, (const char *const[]){__VA_ARGS__, NULL})

static struct redis *
open_redis(int (*on_change)(struct redis *redis, bool ready, void *arg))
{
	const struct redis_options options = {.timeout = QUEUE_DEADLINE, .on_change = on_change};

	return queue_open_redis(url, &options);
}

static const char *
name_of(const char *list)
{
	return strcmp(list, urgent) == 0 ? "urgent" : "low";
}

/* ---- the worker ---------------------------------------------------------- */

static void
work(int number, int lifeline)
{
	const char *const question[] = {"BRPOP", urgent, low, WAIT, NULL};
	struct redis *redis = open_redis(NULL);
	struct answer job;

	for (;;) {
		job = ask(redis, lifeline, question);
		if (job.type != REDIS_ARRAY)
			queue_fail("BRPOP", "there is no job for " WAIT " s");
		printf("list worker %d takes   %s from %s\n", number, job.text, name_of(job.list));
		if (strcmp(job.text, DEADLY) == 0)
			raise(SIGKILL);
		ASK(redis, "LPUSH", done, job.text);
	}
}

static pid_t
start_worker(int number, struct redis *redis, const int lifeline[2])
{
	pid_t pid = queue_fork();

	if (pid != 0)
		return pid;
	redis_close(redis);
	queue_leave_redis();
	close(lifeline[1]);
	work(number, lifeline[0]);
	exit(0);
}

/* ---- main ---------------------------------------------------------------- */

static void
push(struct redis *redis, const char *list, const char *message)
{
	printf("main pushes           %s into %s\n", message, name_of(list));
	ASK(redis, "LPUSH", list, message);
}

static void
wait_until_done(struct redis *redis, const char *message)
{
	struct answer answer = ASK(redis, "BRPOP", done, WAIT);

	if (answer.type != REDIS_ARRAY || strcmp(answer.text, message) != 0)
		queue_fail(message, "the worker does not do it");
}

static void
wait_for_death(const char *process, pid_t pid)
{
	int status = 0;

	waitpid(pid, &status, 0);
	if (!WIFSIGNALED(status))
		queue_fail(process, "it should have died");
	printf("%s is dead, killed by signal %d\n", process, WTERMSIG(status));
}

static void
show_priorities(struct redis *redis)
{
	wait_until_done(redis, "{\"job\":\"fire\"}"); /* although it was pushed last */
	wait_until_done(redis, "{\"job\":\"sweep\"}");
	wait_until_done(redis, "{\"job\":\"mow\"}");
}

static void
show_loss(struct redis *redis, pid_t *worker, const int lifeline[2])
{
	push(redis, low, DEADLY);
	wait_for_death("list worker 1", *worker);
	*worker = start_worker(2, redis, lifeline);
	push(redis, low, "{\"job\":\"next\"}");
	wait_until_done(redis, "{\"job\":\"next\"}");
	printf("main finds            %d jobs in the lists: " DEADLY " is lost\n",
	       (int)(ASK(redis, "LLEN", urgent).integer + ASK(redis, "LLEN", low).integer));
}

/* A transaction belongs to its connection. The client makes a new one when it has lost one,
 * and there the rest of the commands would be executed without the others. */
static int
on_group_change(struct redis *redis, bool ready, void *arg)
{
	(void)redis, (void)arg;
	if (!ready)
		queue_fail("MULTI", "the connection of the transaction is lost");
	return 0;
}

static void
add(struct redis *group, const char *process, const char *message)
{
	ASK(group, "LPUSH", low, message); /* the reply is QUEUED */
	printf("%-21s %s to its group\n", process, message);
}

/* The producer is killed before it has said EXEC. */
static void
start_group_and_die(struct redis *redis)
{
	struct redis *group;

	redis_close(redis);
	queue_leave_redis();
	group = open_redis(on_group_change);
	ASK(group, "MULTI");
	add(group, "producer 3 adds", "{\"order\":1,\"part\":1}");
	raise(SIGKILL);
}

static void
show_group(struct redis *redis)
{
	struct redis *group;
	pid_t pid = queue_fork();

	if (pid == 0)
		start_group_and_die(redis);
	wait_for_death("producer 3", pid);
	group = open_redis(on_group_change);
	ASK(group, "MULTI");
	add(group, "main adds", "{\"order\":2,\"part\":1}");
	push(redis, low, "{\"job\":\"other\"}"); /* by another connection: it does not wait */
	wait_until_done(redis, "{\"job\":\"other\"}");
	add(group, "main adds", "{\"order\":2,\"part\":2}");
	printf("main executes         the commands of its group\n");
	if (ASK(group, "EXEC").count != 2)
		queue_fail("EXEC", "Redis has not executed two commands");
	wait_until_done(redis, "{\"order\":2,\"part\":1}");
	wait_until_done(redis, "{\"order\":2,\"part\":2}");
	redis_close(group);
}

void
queue_show_lists(const char *where)
{
	struct redis *redis;
	int lifeline[2];
	pid_t worker;

	url = where;
	snprintf(urgent, sizeof urgent, "urgent-%ld", (long)getpid());
	snprintf(low, sizeof low, "low-%ld", (long)getpid());
	snprintf(done, sizeof done, "done-%ld", (long)getpid());
	redis = open_redis(NULL);
	push(redis, low, "{\"job\":\"sweep\"}"); /* no worker lives yet: the list keeps it */
	push(redis, low, "{\"job\":\"mow\"}");
	push(redis, urgent, "{\"job\":\"fire\"}");
	queue_open_lifeline(lifeline);
	worker = start_worker(1, redis, lifeline);
	show_priorities(redis);
	show_loss(redis, &worker, lifeline);
	show_group(redis);
	close(lifeline[0]), close(lifeline[1]);
	waitpid(worker, NULL, 0);
	redis_close(redis);
}
