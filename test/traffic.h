/*
 * Numbered messages in a live cluster, to check that each receiver hears all messages that
 * are sent to it, in order and undamaged.
 *
 * The role function `talk` makes a process a sender and a receiver. The test
 * orders streams, and waits for the reports of the receivers:
 *
 *	say(c, "AGENT#1", 7, cluster_pid(c, "APP#1"), 4000, 65536);
 *	cluster_wait(c, 0, "heard #4000 of #7.");
 *
 * A stream without an end (count 0) goes on until the test orders `finish`.
 * A sender whose queue is full tries again in a later turn of its loop.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#ifndef TRAFFIC_H
#define TRAFFIC_H

#include "harness.h"
#include "sanitized.h"

#include <criterion/criterion.h>

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Receivers that have no pid to name. */
enum { TO_AGENT = 0, TO_PARENT = -1, TO_APPS = -2 };

enum { STREAMS = 16, TICK = 2 };

/* ---- the sender ------------------------------------------------------------- */

struct stream {
	int id;    /* 0: free */
	pid_t to;  /* a pid, or TO_ something */
	int count; /* 0: no end yet */
	int sent;
	size_t size; /* of the data, in bytes */
	bool paced;  /* only a few messages in each turn, even if more would fit */
};

static struct stream streams[STREAMS];

static int
send_to_any(struct messenger *messenger, pid_t to, const char *action, const char *data)
{
	switch (to) {
	case TO_AGENT:
		return messenger_send_to_agent(messenger, action, data);
	case TO_PARENT:
		return messenger_send(messenger, action, data, ROLE_PARENT);
	case TO_APPS:
		return messenger_send_to_app(messenger, action, data);
	default:
		return messenger_send_to(messenger, to, action, data);
	}
}

/* The data is "PID ID NUMBER xxxx", where x is the number's letter. */
static int
send_number(struct messenger *messenger, const struct stream *stream)
{
	static char data[MESSAGE_DATA_MAX + 1];
	int used = sprintf(data, "%ld %d %d ", (long)getpid(), stream->id, stream->sent + 1);
	size_t length = stream->size > (size_t)used ? stream->size : (size_t)used;

	memset(data + used, 'a' + (stream->sent + 1) % 26, length - (size_t)used);
	data[length] = '\0';
	return send_to_any(messenger, stream->to, "test-number", data);
}

static void
end_stream(struct messenger *messenger, struct stream *stream)
{
	char data[64];

	snprintf(data, sizeof data, "%ld %d %d", (long)getpid(), stream->id, stream->count);
	if (send_to_any(messenger, stream->to, "test-end", data) == -1)
		return; /* try again in a later turn */
	report(messenger, "sent #%d of #%d", stream->count, stream->id);
	stream->id = 0;
}

static void
pump(struct messenger *messenger, struct stream *stream)
{
	int most = stream->paced ? 5 : 1000000;

	while (stream->count == 0 || stream->sent < stream->count) {
		if (most-- == 0 || send_number(messenger, stream) == -1)
			return;
		stream->sent++;
	}
	end_stream(messenger, stream);
}

static int
on_tick(struct messenger *messenger, void *arg)
{
	bool busy = false;
	int i;

	(void)arg;
	for (i = 0; i < STREAMS; i++) {
		if (streams[i].id != 0)
			pump(messenger, &streams[i]);
		busy = busy || streams[i].id != 0;
	}
	return busy && messenger_set_timeout(messenger, TICK, on_tick, NULL) == -1;
}

/* "say ID TO COUNT SIZE" */
static int
order_say(struct messenger *messenger, const char *line)
{
	struct stream stream = {.sent = 0};
	bool busy = false;
	int i, to, found = -1;

	if (sscanf(order_rest(line), "%d %d %d %zu", &stream.id, &to, &stream.count,
	           &stream.size) != 4)
		return -1;
	stream.to = to;
	stream.paced = stream.size < 4096;
	for (i = 0; i < STREAMS; i++) {
		busy = busy || streams[i].id != 0;
		if (streams[i].id == 0)
			found = i;
	}
	if (found == -1)
		return -1;
	streams[found] = stream;
	return busy ? 0 : on_tick(messenger, NULL);
}

static int
order_finish(struct messenger *messenger, const char *line)
{
	int i;

	(void)messenger, (void)line;
	for (i = 0; i < STREAMS; i++)
		if (streams[i].id != 0 && streams[i].count == 0)
			streams[i].count = streams[i].sent + 100;
	return 0;
}

/* ---- the receiver ----------------------------------------------------------- */

struct heard {
	long from;
	int id, count;
	bool bad;
};

static struct heard heard[STREAMS];
static int nap; /* a slow reader: milliseconds for each message */

/* SIGUSR2 sets this: the process is no longer busy or slow. */
static volatile sig_atomic_t released;

static void
release(int number)
{
	(void)number;
	released = 1;
}

static struct heard *
find_heard(long from, int id)
{
	struct heard *vacant = NULL;
	int i;

	for (i = 0; i < STREAMS; i++) {
		if (heard[i].id == id && heard[i].from == from)
			return &heard[i];
		if (heard[i].id == 0)
			vacant = &heard[i];
	}
	if (vacant == NULL)
		abort(); /* the test has too many streams at a time */
	*vacant = (struct heard){from, id, 0, false};
	return vacant;
}

/* Are these bytes, from `data` on, all the number's letter? */
static bool
is_whole(const char *data, size_t length, int number)
{
	return length == 0 ||
	       (data[0] == 'a' + number % 26 && memcmp(data, data + 1, length - 1) == 0);
}

static int
on_number(struct messenger *messenger, const struct message *message, void *arg)
{
	struct heard *stream;
	int id, number, used;
	long from;

	(void)arg;
	if (sscanf(message->data, "%ld %d %d%n", &from, &id, &number, &used) != 3)
		return -1;
	stream = find_heard(from, id);
	used++; /* the blank */
	if ((number != stream->count + 1 ||
	     !is_whole(message->data + used, message->data_length - (size_t)used, number)) &&
	    !stream->bad) {
		stream->bad = true;
		report(messenger, "BAD #%d after #%d of #%d from %ld", number, stream->count, id,
		       from);
	}
	stream->count++;
	if (stream->count == 100)
		report(messenger, "hears #%d from %ld", id, from);
	if (nap > 0 && !released)
		poll(NULL, 0, nap);
	return 0;
}

static int
on_end(struct messenger *messenger, const struct message *message, void *arg)
{
	struct heard *stream;
	int id, count;
	long from;

	(void)arg;
	if (sscanf(message->data, "%ld %d %d", &from, &id, &count) != 3)
		return -1;
	stream = find_heard(from, id);
	if (stream->count != count || stream->bad)
		report(messenger, "BAD heard #%d of #%d of #%d", stream->count, count, id);
	else
		report(messenger, "heard #%d of #%d.", count, id);
	stream->id = 0;
	return 0;
}

static int
order_nap(struct messenger *messenger, const char *line)
{
	(void)messenger;
	released = 0;
	signal(SIGUSR2, release);
	nap = atoi(order_rest(line));
	return 0;
}

static int
order_busy(struct messenger *messenger, const char *line)
{
	(void)line;
	released = 0;
	signal(SIGUSR2, release);
	report(messenger, "is busy");
	while (!released)
		;
	return 0;
}

static int
talk(struct messenger *messenger, void *arg)
{
	static const struct order orders[] = {{"say", order_say},
	                                      {"finish", order_finish},
	                                      {"nap", order_nap},
	                                      {"busy", order_busy},
	                                      {NULL, NULL}};

	if (messenger_on(messenger, "test-number", on_number, arg) == -1 ||
	    messenger_on(messenger, "test-end", on_end, arg) == -1)
		return -1;
	return obey_orders(messenger, orders);
}

/* ---- in the test ------------------------------------------------------------- */

static void
say(struct cluster *c, const char *who, int id, pid_t to, int count, size_t size)
{
	char data[64];

	snprintf(data, sizeof data, "say %d %ld %d %zu", id, (long)to, count, size);
	cluster_order(c, who, data);
}

/* Assert that all messages came in order, and whole. */
static void
assert_nothing_bad(struct cluster *c)
{
	if (cluster_count(c, 0, " BAD ") == 0)
		return;
	cluster_dump(c);
	cr_assert(false, "messages are missing, damaged or out of order");
}

/* Let each wait in this test take `times` times as long. */
static void
be_patient(int times)
{
	char scale[16];

	snprintf(scale, sizeof scale, "%d", times * time_scale());
	setenv("TEST_TIME_SCALE", scale, 1);
}

/* The most memory that a process has ever used, in KiB. The kernel measures it, so that no peak
 * between two looks is missed. */
static long
memory_peak(pid_t pid)
{
	char path[64], line[256];
	long kib = -1;
	FILE *file;

	snprintf(path, sizeof path, "/proc/%ld/status", (long)pid);
	file = fopen(path, "r");
	cr_assert(file != NULL, "%s: %s", path, strerror(errno));
	while (fgets(line, sizeof line, file) != NULL)
		if (sscanf(line, "VmHWM: %ld", &kib) == 1)
			break;
	fclose(file);
	return kib > 0 ? kib : process_memory(pid);
}

/* Print the master's memory before and at its peak, and check that the growth is allowed. */
static void
assert_memory(const struct cluster *c, const char *what, long before, long most)
{
	long peak = memory_peak(c->master);

	fprintf(stderr, "memory of the master, %s: %ld KiB before, %ld KiB at the peak (+%ld)\n",
	        what, before, peak, peak - before);
	if (MEMORY_COUNTS)
		cr_assert(peak - before <= most, "%s: the master grew by %ld KiB", what,
		          peak - before);
}

#endif
