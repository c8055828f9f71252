/*
 * The four ways of examples/ipc beside each other: what a message costs.
 *
 *	bench/ipc [--rounds N]          builds, starts a Redis if there is one, runs
 *	build/bench/ipc [--rounds N] [URL of a Redis]
 *
 * Two processes and 128 bytes of text. First one process asks and the other one answers,
 * again and again: that gives the median time of a round trip. Then one process only sends,
 * as fast as it can: that gives the messages per second, counted until the other process
 * has heard the last one.
 *
 * Each way does what is usual for it: stdio's buffers are written when they are
 * full, a channel's when its loop turns, and a socket has one write for each message.
 * In RSMQ each message is sent, received and deleted, in a list it is pushed and popped,
 * and publish sends it to a process that listens; each command waits for its reply.
 * In each round every way runs once; the table has the rounds' medians.
 * For the trips both processes are on one processor: otherwise the figure is that
 * of waking up another one.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#ifdef __linux__
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <sched.h>
#endif
#include "../examples/ipc/rsmq.h"
#define CLUTCH_CHANNEL
#include "messenger.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
	BYTES = 128, /* of a message */
	ROUNDS = 5,
	ROUNDS_MAX = 99,
	DURATION = 250, /* milliseconds, for each of the two figures of a round */
	TRIPS_MAX = 1 << 18,
	LETTERS_MAX = 1 << 16, /* messages that were published, but not received yet */
	PATIENCE = 10000       /* milliseconds */
};

/* The first letter of a message says what is to be done with it. */
enum { ECHO = 'e', COUNT = 'c', QUIT = 'q' };

/*
 * One way. open runs before the fork, begin in both processes after it. send may
 * keep what it is given until flush; receive waits for a message and stores its
 * first letter.
 */
struct way {
	const char *name;
	void (*open)(void);
	void (*begin)(bool child);
	void (*send)(const char *text);
	void (*flush)(void);
	char (*receive)(void);
	void (*end)(void);
};

static const char *url;

static void
fail(const char *what)
{
	fprintf(stderr, "bench/ipc: %s: %s\n", what, strerror(errno));
	exit(1); /* the other process sees the end */
}

static int64_t
now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* ---- stdio: two pipes, a line each --------------------------------------- */

static int pipes[2][2]; /* to the child, to the parent */
static FILE *in, *out;

static void
stdio_open(void)
{
	if (pipe(pipes[0]) == -1 || pipe(pipes[1]) == -1)
		fail("pipe");
}

static void
stdio_begin(bool child)
{
	close(pipes[child ? 0 : 1][1]), close(pipes[child ? 1 : 0][0]);
	in = fdopen(pipes[child ? 0 : 1][0], "r");
	out = fdopen(pipes[child ? 1 : 0][1], "w");
	if (in == NULL || out == NULL)
		fail("fdopen");
}

static void
stdio_send(const char *text)
{
	if (fputs(text, out) == EOF || putc('\n', out) == EOF)
		fail("fputs");
}

static void
stdio_flush(void)
{
	if (fflush(out) == EOF)
		fail("fflush");
}

static char
stdio_receive(void)
{
	char line[2 * BYTES];

	if (fgets(line, sizeof line, in) == NULL)
		fail("fgets");
	return line[0];
}

static void
stdio_end(void)
{
	fclose(in);
	fclose(out);
}

/* ---- native: a channel --------------------------------------------------- */

static int pair[2];
static struct channel channel;

static void
native_open(void)
{
	if (channel_pair(pair) == -1)
		fail("socketpair");
}

static void
native_begin(bool child)
{
	close(pair[child ? 0 : 1]);
	channel_init(&channel, CHANNEL_QUEUE_MAX);
	if (channel_attach(&channel, pair[child ? 1 : 0]) == -1)
		fail("channel");
}

static void
native_flush(void)
{
	if (channel_drain(&channel, PATIENCE) != PEER_ALIVE)
		fail("channel");
}

/* As a messenger does: what was queued in a turn leaves together, or earlier if it is much. */
static void
native_send(const char *text)
{
	const struct message message = {
		.action = "m", .data = text, .data_length = strlen(text), .handle = -1};

	if (sendmessage(&channel, &message) == -1)
		fail("sendmessage");
	if (channel_pending(&channel) >= CHANNEL_FLUSH_SIZE)
		native_flush();
}

static char
native_receive(void)
{
	struct pollfd wait = {.fd = channel.descriptor, .events = POLLIN};
	struct message message;

	while (channel_next(&channel, &message) != 1)
		if (poll(&wait, 1, PATIENCE) != 1 || channel_read(&channel) != PEER_ALIVE)
			fail("channel");
	return message.data[0];
}

static void
native_end(void)
{
	channel_close(&channel);
}

/* ---- socket: a Unix path's, and TCP's ------------------------------------ */

static void
unix_open(void)
{
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == -1)
		fail("socketpair");
}

static void
tcp_open(void)
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	socklen_t size = sizeof address;
	int listener = socket(AF_INET, SOCK_STREAM, 0);
	const int on = 1;

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	pair[0] = socket(AF_INET, SOCK_STREAM, 0);
	if (listener == -1 || pair[0] == -1 ||
	    bind(listener, (struct sockaddr *)&address, sizeof address) == -1 ||
	    listen(listener, 1) == -1 ||
	    getsockname(listener, (struct sockaddr *)&address, &size) == -1 ||
	    connect(pair[0], (struct sockaddr *)&address, size) == -1)
		fail("127.0.0.1");
	pair[1] = accept(listener, NULL, NULL);
	if (pair[1] == -1)
		fail("accept");
	close(listener);
	setsockopt(pair[0], IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
	setsockopt(pair[1], IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

static void
socket_begin(bool child)
{
	close(pair[child ? 0 : 1]);
	in = fdopen(pair[child ? 1 : 0], "r");
	if (in == NULL)
		fail("fdopen");
}

static void
socket_send(const char *text)
{
	char line[2 * BYTES];
	int length = snprintf(line, sizeof line, "%s\n", text);

	if (write(fileno(in), line, (size_t)length) != length)
		fail("write");
}

static void
socket_flush(void)
{
}

static void
socket_end(void)
{
	fclose(in);
}

/* ---- queue: RSMQ in Redis ------------------------------------------------ */

static char queues[2][32]; /* to the child, to the parent */
static int self;           /* which of them leads to this process */
static struct redis *redis;

static void
queue_fail(void)
{
	fprintf(stderr, "bench/ipc: %s: %s\n", url, rsmq_reason());
	exit(1);
}

static void
queue_open(void)
{
	snprintf(queues[0], sizeof queues[0], "bench-%ld-to-child", (long)getpid());
	snprintf(queues[1], sizeof queues[1], "bench-%ld-to-parent", (long)getpid());
}

/* Both processes create them, and one of the two is the first. */
static void
queue_begin(bool child)
{
	int i;

	self = child ? 0 : 1;
	redis = redis_open(NULL, url, NULL);
	if (redis == NULL)
		fail(url);
	for (i = 0; i < 2; i++)
		if (rsmq_create_queue(redis, queues[i], RSMQ_DEFAULT, RSMQ_DEFAULT, RSMQ_DEFAULT) ==
		            -1 &&
		    errno != EEXIST)
			queue_fail();
}

static void
queue_send(const char *text)
{
	if (rsmq_send_message(redis, queues[!self], text, RSMQ_DEFAULT, NULL) == -1)
		queue_fail();
}

static char
queue_receive(void)
{
	struct rsmq_message message;
	int received;
	char letter;

	while ((received = rsmq_receive_message(redis, queues[self], RSMQ_DEFAULT, &message)) == 0)
		;
	if (received == -1 || rsmq_delete_message(redis, queues[self], message.id) != 1)
		queue_fail();
	letter = message.message[0];
	free(message.message);
	return letter;
}

/* The child leaves first, and the parent removes the queue. */
static void
queue_end(void)
{
	if (self == 1 && (rsmq_delete_queue(redis, queues[0]) == -1 ||
	                  rsmq_delete_queue(redis, queues[1]) == -1))
		queue_fail();
	redis_close(redis);
}

/* ---- list: LPUSH and BRPOP ----------------------------------------------- */

/* The last reply of Redis. */
static struct {
	bool is_there;
	int64_t integer;
	char letter; /* of the message that was popped */
} reply;

static int
on_reply(struct redis *from, const struct redis_reply *answer, void *arg)
{
	(void)from, (void)arg;
	if (answer->type == REDIS_ERROR || answer->type == REDIS_NO_REPLY) {
		fprintf(stderr, "bench/ipc: %s: %s\n", url, answer->text);
		exit(1);
	}
	reply.is_there = true;
	reply.integer = answer->integer;
	reply.letter = '\0';
	if (answer->type == REDIS_ARRAY)
		reply.letter = answer->element[1].text[0];
	return 0;
}

static void
wait_for_reply(int queued)
{
	if (queued == -1)
		fail(url);
	reply.is_there = false;
	while (!reply.is_there)
		redis_step(redis, -1);
}

static struct redis *
open_redis(void)
{
	struct redis *opened = redis_open(NULL, url, &(struct redis_options){.timeout = PATIENCE});

	if (opened == NULL)
		fail(url);
	return opened;
}

static void
list_begin(bool child)
{
	self = child ? 0 : 1;
	redis = open_redis();
}

static void
list_send(const char *text)
{
	wait_for_reply(
		redis_command(redis, on_reply, NULL, "LPUSH", queues[!self], text, (char *)NULL));
}

static char
list_receive(void)
{
	do
		wait_for_reply(redis_command(redis, on_reply, NULL, "BRPOP", queues[self], "1",
		                             (char *)NULL));
	while (reply.letter == '\0');
	return reply.letter;
}

static void
list_end(void)
{
	redis_close(redis);
}

/* ---- publish and subscribe ----------------------------------------------- */

static struct redis *subscriber;
static char letters[LETTERS_MAX]; /* of the messages, a ring */
static size_t published, received;

static int
on_message(struct redis *from, const struct redis_reply *message, void *arg)
{
	(void)from, (void)arg;
	errno = ENOBUFS;
	if (published - received == LETTERS_MAX)
		fail("subscribe");
	letters[published++ % LETTERS_MAX] = message->element[2].text[0];
	return 0;
}

static void
publish_begin(bool child)
{
	static const char *channels[2];

	list_begin(child);
	channels[0] = queues[self];
	subscriber = redis_open(NULL, url,
	                        &(struct redis_options){.timeout = PATIENCE,
	                                                .channels = channels,
	                                                .on_message = on_message});
	if (subscriber == NULL)
		fail(url);
	while (redis_step(subscriber, -1) == 0)
		;
}

/* Again, if the other process does not listen yet. */
static void
publish_send(const char *text)
{
	do
		wait_for_reply(redis_command(redis, on_reply, NULL, "PUBLISH", queues[!self], text,
		                             (char *)NULL));
	while (reply.integer == 0);
}

static char
publish_receive(void)
{
	while (published == received)
		redis_step(subscriber, -1);
	return letters[received++ % LETTERS_MAX];
}

static void
publish_end(void)
{
	redis_close(subscriber);
	redis_close(redis);
}

/* ---- a round ------------------------------------------------------------- */

static const struct way ways[] = {
	{"stdio", stdio_open, stdio_begin, stdio_send, stdio_flush, stdio_receive, stdio_end},
	{"native", native_open, native_begin, native_send, native_flush, native_receive,
         native_end},
	{"socket, Unix", unix_open, socket_begin, socket_send, socket_flush, stdio_receive,
         socket_end},
	{"socket, TCP", tcp_open, socket_begin, socket_send, socket_flush, stdio_receive,
         socket_end},
	{"queue, RSMQ", queue_open, queue_begin, queue_send, socket_flush, queue_receive,
         queue_end},
	{"queue, list", queue_open, list_begin, list_send, socket_flush, list_receive, list_end},
	{"publish", queue_open, publish_begin, publish_send, socket_flush, publish_receive,
         publish_end},
};
enum { WAYS = sizeof ways / sizeof ways[0], WAYS_WITHOUT_REDIS = WAYS - 3 };

struct figures {
	double trip; /* microseconds */
	double rate; /* messages in a second */
};

static char text[BYTES + 1];

static const char *
message(char letter)
{
	text[0] = letter;
	return text;
}

static void
answer(const struct way *way)
{
	char letter;

	while ((letter = way->receive()) != QUIT) {
		if (letter != ECHO)
			continue;
		way->send(message(ECHO));
		way->flush();
	}
}

static void
ask(const struct way *way)
{
	way->send(message(ECHO));
	way->flush();
	way->receive();
}

static int
compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double
median(double *values, size_t count)
{
	qsort(values, count, sizeof *values, compare);
	return values[count / 2];
}

/* Both on one processor, or on all again. On other systems than Linux they stay on all. */
static void
pin(pid_t child, bool one)
{
#ifdef __linux__
	static cpu_set_t all;
	cpu_set_t first;
	size_t cpu = 0;

	if (CPU_COUNT(&all) == 0)
		sched_getaffinity(0, sizeof all, &all);
	while (!CPU_ISSET(cpu, &all))
		cpu++;
	CPU_ZERO(&first);
	CPU_SET(cpu, &first);
	sched_setaffinity(0, sizeof first, one ? &first : &all);
	sched_setaffinity(child, sizeof first, one ? &first : &all);
#else
	(void)child, (void)one;
#endif
}

static struct figures
measure(const struct way *way, pid_t child)
{
	static double trips[TRIPS_MAX];
	struct figures figures;
	int64_t start, end, sent;
	size_t count = 0;

	ask(way); /* both run, and are connected */
	pin(child, true);
	end = now_ns() + DURATION * INT64_C(1000000);
	do {
		start = now_ns();
		ask(way);
		trips[count++] = (double)(now_ns() - start) / 1000;
	} while (now_ns() < end && count < TRIPS_MAX);
	figures.trip = median(trips, count);
	pin(child, false);

	start = now_ns();
	for (sent = 0; sent % 64 != 0 || now_ns() < start + DURATION * INT64_C(1000000); sent++)
		way->send(message(COUNT));
	ask(way); /* the other process has heard everything that was sent before */
	figures.rate = (double)sent * 1e9 / (double)(now_ns() - start);
	return figures;
}

static struct figures
run(const struct way *way)
{
	struct figures figures;
	int status = 0;
	pid_t pid;

	way->open();
	fflush(stdout);
	pid = fork();
	if (pid == -1)
		fail("fork");
	way->begin(pid == 0);
	if (pid == 0) {
		answer(way);
		way->end();
		exit(0);
	}
	figures = measure(way, pid);
	way->send(message(QUIT));
	way->flush();
	while (waitpid(pid, &status, 0) == -1 && errno == EINTR)
		;
	way->end();
	if (status != 0)
		fail(way->name);
	return figures;
}

/* ---- the table ----------------------------------------------------------- */

static void
print_row(const char *name, double *trips, double *rates, size_t rounds)
{
	double trip = median(trips, rounds), rate = median(rates, rounds);

	printf("| %-12s | %10.1f | %8.1f to %8.1f | %10.0f | %8.0f to %8.0f |\n", name, trip,
	       trips[0], trips[rounds - 1], rate, rates[0], rates[rounds - 1]);
}

int
main(int argc, char **argv)
{
	static double trips[WAYS][ROUNDS_MAX], rates[WAYS][ROUNDS_MAX];
	struct figures figures;
	int i, count, round, rounds = ROUNDS;

	if (argc > 2 && strcmp(argv[1], "--rounds") == 0) {
		rounds = atoi(argv[2]);
		argc -= 2, argv += 2;
	}
	if (argc > 2 || (argc == 2 && argv[1][0] == '-') || rounds < 1 || rounds > ROUNDS_MAX) {
		fprintf(stderr, "usage: ipc [--rounds N] [URL of a Redis]\n");
		return 64;
	}
	url = argv[1];
	count = url != NULL ? WAYS : WAYS_WITHOUT_REDIS;
	signal(SIGPIPE, SIG_IGN);
	memset(text, 'x', BYTES);
	for (round = 0; round < rounds; round++) {
		for (i = 0; i < count; i++) {
			figures = run(&ways[i]);
			trips[i][round] = figures.trip;
			rates[i][round] = figures.rate;
		}
	}
	printf("| way          | trip, us   | of the rounds        | messages/s | of the rounds    "
	       "    |\n"
	       "|--------------|-----------:|---------------------:|-----------:|------------------"
	       "---:|\n");
	for (i = 0; i < count; i++)
		print_row(ways[i].name, trips[i], rates[i], (size_t)rounds);
	return 0;
}
