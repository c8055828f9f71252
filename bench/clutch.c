/*
 * The contestant: a cluster, written against the public part of messenger.h as
 * any application would be.
 *
 * Bench (the parent), master, agent and apps. In each workload one process is
 * the speaker: the agent, or the app of slot 0. It waits for the parent's "go",
 * sends its messages for some time, and then sends each receiver an "end" with the
 * number of messages that the receiver must have heard. Receivers check every message,
 * and tell the parent when they have seen the end.
 *
 * The data of a message is a JSON string: which stream it belongs to, its
 * number in that stream, and padding:  "d0000000000042xxxxx". Neighbours stand in
 * different buffers: a processor that reads as a vector what it has just written as a
 * byte waits for its own store, and that takes as long as a message.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "bench.h"

#include "../messenger.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
	APPS_MAX = 16, /* that are told each other's pids */
	DATA_MAX = 16384,
	DIGITS_END = 15, /* of data: where the number ends */
	HEAD = 16,       /* every message has this much */
	TEXTS = 10,
	LARGE = 4096,
	FULL_CHECK = 64 /* each 64th message is checked to its last byte */
};

/* Messages are numbered per stream: to all apps, or to a single process. */
enum stream { STREAM_ALL, STREAM_DIRECT, STREAMS };

struct stream_data {
	/* Of the next messages, by the last digit of their numbers. They are a line of the
	 * cache apart, or all of them would want the same place in it. For large messages
	 * there is only one text, so that it stays in the cache. */
	char texts[TEXTS][DATA_MAX + 64];
	bool one;
	char *text;   /* of the next message, */
	size_t bytes; /* and its length */
	uint64_t count;
};

struct work {
	const struct trial *trial;
	enum role speaker;
	void (*speak)(struct messenger *messenger);
	bool crowd; /* 63 other actions have a listener, added before that of "m" */
};

/* ---- in the cluster's processes ------------------------------------------ */

static const struct work *work; /* a forked process keeps what the parent set */
static struct stream_data heard[STREAMS];
static pid_t apps[APPS_MAX];
static int app_count;
static bool go, answered;

static void
stream_init(struct stream_data *stream, enum stream kind)
{
	size_t bytes = work->trial->bytes;
	char *text;
	int i;

	stream->bytes = bytes;
	stream->one = bytes >= LARGE;
	for (i = 0; i < TEXTS; i++) {
		text = stream->texts[i];
		memset(text, 'x', bytes);
		text[0] = text[bytes - 1] = '"';
		text[1] = kind == STREAM_ALL ? 'a' : 'd';
		memset(text + 2, '0', DIGITS_END - 2);
		text[DIGITS_END - 1] = (char)('0' + i);
		text[bytes] = '\0';
	}
	stream->text = stream->texts[0];
	stream->count = 0;
}

/* The last message was sent or heard: go on to the next one. */
static void
stream_advance(struct stream_data *stream)
{
	char *digit = stream->text + DIGITS_END - (stream->one ? 1 : 2);

	while (*digit == '9')
		*digit-- = '0';
	++*digit;
	stream->count++;
	if (!stream->one && (stream->text += sizeof *stream->texts) > stream->texts[TEXTS - 1])
		stream->text = stream->texts[0];
}

/* A message of a stream was sent. No more of them wait than leave at once. */
static void
sent(struct messenger *messenger, int result)
{
	if (result == -1)
		fail("a send failed: %s", strerror(errno));
	if (messenger_drain(messenger, CHANNEL_FLUSH_SIZE) != 1)
		fail("the cluster ended while it was spoken to");
}

static int
report(struct messenger *messenger, const char *action, double a, double b)
{
	char data[64];

	snprintf(data, sizeof data, "[%.3f,%.3f]", a, b);
	if (messenger_send(messenger, action, data, ROLE_PARENT) == -1)
		fail("cannot report: %s", strerror(errno));
	return 0;
}

static int
on_message(struct messenger *messenger, const struct message *message, void *arg)
{
	const char *data = message->data;
	struct stream_data *stream = data[1] == 'a' ? &heard[STREAM_ALL] : &heard[STREAM_DIRECT];
	size_t bytes = stream->bytes;

	(void)messenger, (void)arg;
	if (message->data_length != bytes)
		fail("a message of %zu bytes came with %zu", bytes, message->data_length);
	if (memcmp(data, stream->text, HEAD) != 0 || data[bytes - 1] != '"' ||
	    (stream->count % FULL_CHECK == 0 && memcmp(data, stream->text, bytes) != 0))
		fail("instead of message %.*s came %.*s", DIGITS_END, stream->text, DIGITS_END,
		     data);
	stream_advance(stream);
	return 0;
}

static int
on_end(struct messenger *messenger, const struct message *message, void *arg)
{
	double all, direct;

	(void)arg;
	if (sscanf(message->data, "[%lf,%lf]", &all, &direct) != 2 ||
	    (uint64_t)all != heard[STREAM_ALL].count ||
	    (uint64_t)direct != heard[STREAM_DIRECT].count)
		fail("%s were sent, but %" PRIu64 " and %" PRIu64 " came", message->data,
		     heard[STREAM_ALL].count, heard[STREAM_DIRECT].count);
	return report(messenger, "end", all + direct, (double)now_ns());
}

static int
on_ping(struct messenger *messenger, const struct message *message, void *arg)
{
	size_t count;
	const pid_t *pids = messenger_opids(messenger, &count);

	(void)arg;
	if (count == 0 || messenger_send_to(messenger, pids[0], "q", message->data) == -1)
		fail("the agent cannot answer");
	return 0;
}

static int
on_answer(struct messenger *messenger, const struct message *message, void *arg)
{
	answered = true;
	return on_message(messenger, message, arg);
}

/* The parent says which apps are there: [pid,pid...] */
static int
on_go(struct messenger *messenger, const struct message *message, void *arg)
{
	const char *text = message->data;
	char *end;

	(void)messenger, (void)arg;
	for (app_count = 0; app_count < APPS_MAX && *text != ']'; text = end)
		apps[app_count++] = (pid_t)strtol(text + 1, &end, 10);
	go = true;
	return 0;
}

/* It is as long as "m", and begins as no other action here does. */
static int
add_crowd(struct messenger *messenger)
{
	char action[2] = "\200";
	int i;

	for (i = 0; i < 63; i++, action[0]++)
		if (messenger_on(messenger, action, on_ping, NULL) == -1)
			return -1;
	return 0;
}

static int
role(struct messenger *messenger, void *arg)
{
	bool speaks = messenger_role(messenger) == work->speaker &&
	              messenger_slot(messenger) <= 0; /* the agent's is -1 */

	(void)arg;
	stream_init(&heard[STREAM_ALL], STREAM_ALL);
	stream_init(&heard[STREAM_DIRECT], STREAM_DIRECT);
	if ((work->crowd && add_crowd(messenger) == -1) ||
	    messenger_on(messenger, "m", on_message, NULL) == -1 ||
	    messenger_on(messenger, "end", on_end, NULL) == -1 ||
	    messenger_on(messenger, "p", on_ping, NULL) == -1 ||
	    messenger_on(messenger, "q", on_answer, NULL) == -1 ||
	    messenger_on(messenger, "go", on_go, NULL) == -1)
		return -1;
	if (messenger_role(messenger) == ROLE_APP)
		report(messenger, "slot", messenger_slot(messenger),
		       (double)messenger_pid(messenger));
	if (!speaks)
		return 0;
	if (messenger_ready(messenger, 0) == -1)
		return -1;
	while (!go)
		if (messenger_step(messenger, -1) != 1)
			return -1;
	work->speak(messenger);
	return 0;
}

/* ---- what is said -------------------------------------------------------- */

static struct stream_data said[1 + APPS_MAX]; /* to all, to the agent, to each app */

static void
end_with(struct messenger *messenger, enum role to, pid_t pid, uint64_t all, uint64_t direct)
{
	struct message message = {.action = "end", .to = to, .receiver_pid = pid, .handle = -1};
	char data[64];

	snprintf(data, sizeof data, "[%" PRIu64 ",%" PRIu64 "]", all, direct);
	message.data = data;
	message.data_length = strlen(data);
	sent(messenger, messenger_send_message(messenger, &message));
}

static void
speak_to_agent(struct messenger *app, bool turn)
{
	struct stream_data *stream = &said[0];
	int64_t start = now_ns();

	stream_init(stream, STREAM_DIRECT);
	while (stream->count % 64 != 0 || now_ns() - start < work->trial->duration) {
		sent(app, messenger_send_to_agent(app, "m", stream->text));
		stream_advance(stream);
		if (turn && messenger_step(app, 0) != 1)
			fail("the cluster ended while it was spoken to");
	}
	end_with(app, ROLE_AGENT, 0, 0, stream->count);
	report(app, "start", (double)start, 0);
}

static void
unicast(struct messenger *app)
{
	speak_to_agent(app, false);
}

static void
unicast_turn(struct messenger *app)
{
	speak_to_agent(app, true);
}

static void
broadcast(struct messenger *agent)
{
	struct stream_data *stream = &said[0];
	int64_t start = now_ns();

	stream_init(stream, STREAM_ALL);
	while (stream->count % 16 != 0 || now_ns() - start < work->trial->duration) {
		sent(agent, messenger_send_to_app(agent, "m", stream->text));
		stream_advance(stream);
	}
	end_with(agent, ROLE_APP, 0, stream->count, 0);
	report(agent, "start", (double)start, 0);
}

static int
send_mixed(struct messenger *app, int receiver)
{
	const char *text = said[receiver].text;

	if (receiver == 0)
		return messenger_send_to_app(app, "m", text);
	if (receiver == 1)
		return messenger_send_to_agent(app, "m", text);
	return messenger_send_to(app, apps[receiver - 2], "m", text);
}

static void
mixed(struct messenger *app)
{
	uint64_t count, random = 88172645463325252u;
	int64_t start;
	int i, receiver, receivers = 2 + app_count;

	for (i = 0; i < receivers; i++)
		stream_init(&said[i], i == 0 ? STREAM_ALL : STREAM_DIRECT);
	start = now_ns();
	for (count = 0; count % 64 != 0 || now_ns() - start < work->trial->duration; count++) {
		random ^= random << 13;
		random ^= random >> 7;
		random ^= random << 17;
		receiver = (int)((random >> 33) % (unsigned)receivers);
		sent(app, send_mixed(app, receiver));
		stream_advance(&said[receiver]);
	}
	end_with(app, ROLE_AGENT, 0, 0, said[1].count);
	for (i = 0; i < app_count; i++)
		end_with(app, ROLE_NONE, apps[i], said[0].count, said[2 + i].count);
	report(app, "start", (double)start, 0);
}

static void
ping(struct messenger *app)
{
	static double latencies[LATENCIES_MAX];
	struct stream_data *stream = &said[0];
	int64_t start = now_ns(), sent = start, now;
	size_t count = 0;

	stream_init(stream, STREAM_DIRECT);
	do {
		answered = false;
		if (messenger_send_to_agent(app, "p", stream->text) == -1)
			fail("ping: %s", strerror(errno));
		stream_advance(stream);
		while (!answered)
			if (messenger_step(app, -1) != 1)
				fail("the cluster ended while it was spoken to");
		now = now_ns();
		latencies[count++] = (double)(now - sent) / 1e3;
		sent = now;
	} while (count < LATENCIES_MAX && now - start < work->trial->duration);
	report(app, "latency", percentile(latencies, count, 0.50),
	       percentile(latencies, count, 0.99));
}

static void
ping_then_unicast(struct messenger *app)
{
	ping(app);
	unicast(app);
}

/* ---- in the parent ------------------------------------------------------- */

struct parent {
	struct messenger *messenger;
	pid_t master;
	pid_t apps[APPS_MAX];
	int app_count, end_count;
	bool ready, started;
	double start, end, deliveries, p50, p99;
};

static int
on_report(struct messenger *messenger, const struct message *message, void *arg)
{
	struct parent *parent = arg;
	double a = 0, b = 0;

	(void)messenger;
	if (strcmp(message->action, "egg-ready") == 0) {
		parent->ready = true;
		return 0;
	}
	if (message->data == NULL || sscanf(message->data, "[%lf,%lf]", &a, &b) != 2)
		return 0;
	if (strcmp(message->action, "slot") == 0) {
		if (a < APPS_MAX)
			parent->apps[(int)a] = (pid_t)b;
		parent->app_count++;
	} else if (strcmp(message->action, "start") == 0) {
		parent->start = a;
		parent->started = true;
	} else if (strcmp(message->action, "latency") == 0) {
		parent->p50 = a;
		parent->p99 = b;
	} else if (strcmp(message->action, "end") == 0) {
		parent->deliveries += a;
		parent->end = b > parent->end ? b : parent->end;
		parent->end_count++;
	}
	return 0;
}

static void
turn(struct parent *parent)
{
	look_around();
	if (messenger_step(parent->messenger, STEP) != 1)
		fail("the cluster ended too soon");
}

/* Nobody needs the log of a cluster that is measured, but its errors are shown. */
static void
start_quietly(struct parent *parent, const struct work *what)
{
	struct options options = {.agent = role,
	                          .app = role,
	                          .workers = what->trial->apps,
	                          .name = "bench",
	                          .env = "prod"};
	int kept;

	work = what;
	memset(parent, 0, sizeof *parent);
	kept = silence();
	parent->messenger = fork_cluster(&options, &parent->master);
	dup2(kept, STDOUT_FILENO);
	close(kept);
	if (parent->messenger == NULL || messenger_on(parent->messenger, NULL, on_report, parent))
		fail("fork_cluster: %s", strerror(errno));
	while (!parent->ready || parent->app_count < what->trial->apps)
		turn(parent);
}

static void
say_go(struct parent *parent, enum role to)
{
	char data[16 * APPS_MAX] = "[";
	size_t used = 0;
	int i;

	for (i = 0; i < parent->app_count && i < APPS_MAX; i++)
		used += (size_t)snprintf(data + used, sizeof data - used, "%c%ld",
		                         i == 0 ? '[' : ',', (long)parent->apps[i]);
	snprintf(data + used, sizeof data - used, "]");
	if (messenger_send(parent->messenger, "go", data, to) == -1)
		fail("the parent cannot send: %s", strerror(errno));
}

static void
stop(struct parent *parent)
{
	kill(parent->master, SIGTERM);
	reap();
	messenger_close(parent->messenger);
}

/* The whole round of a workload with this many ends. Returns deliveries per second. */
static double
measure(struct parent *parent, const struct work *what, int ends)
{
	say_go(parent, what->speaker);
	while (parent->end_count < ends || (ends > 0 && !parent->started) ||
	       (ends == 0 && parent->p50 <= 0))
		turn(parent);
	return parent->deliveries * 1e9 / (parent->end - parent->start);
}

static void
run_stream(const struct work *what, int ends, double *figures)
{
	struct parent parent;

	start_quietly(&parent, what);
	figures[0] = measure(&parent, what, ends);
	figures[1] = figures[0] * (double)what->trial->bytes / 1e6;
	stop(&parent);
}

void
clutch_unicast(const struct trial *trial, double *figures)
{
	run_stream(&(struct work){trial, ROLE_APP, unicast, false}, 1, figures);
}

void
clutch_crowd(const struct trial *trial, double *figures)
{
	run_stream(&(struct work){trial, ROLE_APP, unicast, true}, 1, figures);
}

void
clutch_unicast_turn(const struct trial *trial, double *figures)
{
	run_stream(&(struct work){trial, ROLE_APP, unicast_turn, false}, 1, figures);
}

void
clutch_mixed(const struct trial *trial, double *figures)
{
	run_stream(&(struct work){trial, ROLE_APP, mixed, false}, 1 + trial->apps, figures);
}

void
clutch_broadcast(const struct trial *trial, double *figures)
{
	run_stream(&(struct work){trial, ROLE_AGENT, broadcast, false}, trial->apps, figures);
}

void
clutch_latency(const struct trial *trial, double *figures)
{
	struct work what = {trial, ROLE_APP, ping, false};
	struct parent parent;

	pin(true);
	start_quietly(&parent, &what);
	measure(&parent, &what, 0);
	figures[0] = parent.p50;
	figures[1] = parent.p99;
	stop(&parent);
	pin(false);
}

/* On one processor, so that a message's cost is all the time that it takes. */
void
clutch_scale(const struct trial *trial, double *figures)
{
	struct work what = {trial, ROLE_APP, ping_then_unicast, false};
	struct parent parent;

	figures[0] = idle_master_rss(trial->apps);
	pin(true);
	start_quietly(&parent, &what);
	figures[1] = 1e6 / measure(&parent, &what, 1);
	figures[2] = parent.p50;
	stop(&parent);
	pin(false);
}
