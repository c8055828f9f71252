/*
 * cluster-client beside the master: the same exchanges over the sockets of a leader
 * and its followers, and past them.
 *
 * invoke: the app of slot 0 calls a method of the agent, and waits for the result.
 * fanout: the agent tells all apps a value, and waits until each has confirmed it.
 * fanout-stream: it does not wait for each value. At most CHUNKS chunks of values are on
 * their way, which is as much as may wait below the master's high mark: so no app falls
 * behind. (A broadcast through the master needs no such limit: the master makes senders
 * wait.)
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "bench.h"

#include "../cluster-client/cluster_client.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
	CHUNK = 256 * 1024, /* bytes of values, which each app confirms together */
	CHUNKS = CHANNEL_HIGH_WATER / CHUNK,
	APPS_MAX = 64,
	DATA_MAX = 16384
};

/* ---- in the cluster's processes ------------------------------------------------ */

static const struct trial *trial; /* a forked process keeps what the parent set */
static struct messenger *own;
static char data[DATA_MAX + 1];
static double latencies[LATENCIES_MAX];
static size_t latency_count;
static int64_t started, sent;
static uint64_t heard, chunk, on_the_way;                /* values in a chunk; chunks */
static uint64_t told, confirmed, confirmed_by[APPS_MAX]; /* chunks; by all, by each slot */

static int
tell_parent(const char *action, double a, double b)
{
	char text[64];

	snprintf(text, sizeof text, "[%.3f,%.3f]", a, b);
	if (messenger_send(own, action, text, ROLE_PARENT) == -1)
		fail("cannot report: %s", strerror(errno));
	return 0;
}

/* -- invoke -- */

static int on_answer(struct cluster_client *client, const struct cluster_error *error,
                     const char *result, size_t length, void *arg);

static void
call_again(struct cluster_client *client)
{
	sent = now_ns();
	if (cluster_client_invoke(client, "echo", data, trial->bytes, on_answer, NULL) == -1)
		fail("invoke: %s", strerror(errno));
}

static int
on_answer(struct cluster_client *client, const struct cluster_error *error, const char *result,
          size_t length, void *arg)
{
	int64_t now = now_ns();

	(void)arg;
	if (error != NULL)
		fail("invoke: %s", error->message);
	if (length != trial->bytes || memcmp(result, data, length) != 0)
		fail("invoke: another result");
	latencies[latency_count++] = (double)(now - sent) / 1e3;
	if (latency_count < LATENCIES_MAX && now - started < trial->duration)
		call_again(client);
	else
		tell_parent("result", percentile(latencies, latency_count, 0.50),
		            percentile(latencies, latency_count, 0.99));
	return 0;
}

static int
on_go(struct messenger *app, const struct message *message, void *arg)
{
	(void)app, (void)message;
	started = now_ns();
	call_again(arg);
	return 0;
}

static void
echo(struct cluster_client *client, struct cluster_call *call, const char *text, size_t length,
     void *arg)
{
	(void)client, (void)arg;
	if (cluster_client_reply(call, text, length) == -1)
		fail("reply: %s", strerror(errno));
}

/* -- fanout -- */

static bool by_master;

static int
tell_all(struct cluster_client *leader)
{
	return by_master ? messenger_send_to_app(own, "value", data)
	                 : cluster_client_emit(leader, "key", data, trial->bytes);
}

static void
tell_chunk(struct cluster_client *leader)
{
	uint64_t i;

	sent = now_ns();
	for (i = 0; i < chunk; i++)
		if (tell_all(leader) == -1)
			fail("fanout: %s", strerror(errno));
	told++;
}

/* An app has heard a whole chunk. */
static void
hear_confirmation(struct cluster_client *leader, const char *slot)
{
	int64_t now = now_ns();
	double values;
	int i;

	confirmed_by[atoi(slot)]++;
	for (i = 0; i < trial->apps; i++)
		if (confirmed_by[i] <= confirmed)
			return;
	confirmed++;
	if (on_the_way == 1)
		latencies[latency_count++] = (double)(now - sent) / 1e3;
	if (latency_count < LATENCIES_MAX && now - started < trial->duration)
		tell_chunk(leader);
	if (confirmed < told)
		return;
	values = (double)(told * chunk) * trial->apps;
	if (on_the_way > 1)
		tell_parent("result", values * 1e9 / (double)(now - started), 0);
	else
		tell_parent("result", percentile(latencies, latency_count, 0.50),
		            percentile(latencies, latency_count, 0.99));
}

static void
on_confirmed(struct cluster_client *leader, struct cluster_call *call, const char *text,
             size_t length, void *arg)
{
	(void)call, (void)length, (void)arg;
	hear_confirmation(leader, text);
}

static int
on_confirm_message(struct messenger *agent, const struct message *message, void *arg)
{
	(void)agent;
	hear_confirmation(arg, message->data);
	return 0;
}

static int
on_go_emit(struct messenger *agent, const struct message *message, void *arg)
{
	(void)agent, (void)message;
	started = now_ns();
	while (told < on_the_way)
		tell_chunk(arg);
	return 0;
}

static int
hear(struct cluster_client *follower, const char *text, size_t length)
{
	char slot[16];
	int result;

	if (length != trial->bytes || (heard % 64 == 0 && memcmp(text, data, length) != 0))
		fail("another value came");
	if (++heard % chunk != 0)
		return 0;
	snprintf(slot, sizeof slot, "%d", messenger_slot(own));
	result = by_master ? messenger_send_to_agent(own, "confirm", slot)
	                   : cluster_client_invoke_oneway(follower, "confirm", slot, strlen(slot));
	if (result == -1)
		fail("confirm: %s", strerror(errno));
	return 0;
}

static int
on_value(struct cluster_client *client, const char *key, const char *text, size_t length, void *arg)
{
	(void)key, (void)arg;
	return hear(client, text, length);
}

static int
on_value_message(struct messenger *app, const struct message *message, void *arg)
{
	(void)app;
	return hear(arg, message->data, message->data_length);
}

/* -- both -- */

static int subscribers;

static void
subscribe(struct cluster_client *client, const char *key, void *arg)
{
	(void)client, (void)key, (void)arg;
}

/* This follows its subscription on the same socket. */
static void
present(struct cluster_client *client, struct cluster_call *call, const char *text, size_t length,
        void *arg)
{
	(void)client, (void)text, (void)length, (void)arg;
	cluster_client_reply(call, NULL, 0);
	if (++subscribers == trial->apps)
		tell_parent("present", 0, 0);
}

static int
ignore(struct cluster_client *client, const struct cluster_error *error, const char *result,
       size_t length, void *arg)
{
	(void)client, (void)error, (void)result, (void)length, (void)arg;
	return 0;
}

static const struct real_method methods[] = {
	{"echo", echo}, {"confirm", on_confirmed}, {"present", present}, {NULL, NULL}};
static const struct real_client real = {.subscribe = subscribe, .methods = methods};

static int
agent(struct messenger *messenger, void *arg)
{
	struct cluster_client *leader = cluster_client_leader(messenger, "bench", &real, NULL);

	(void)arg;
	own = messenger;
	if (leader == NULL || messenger_on(messenger, "confirm", on_confirm_message, leader) == -1)
		return -1;
	return messenger_on(messenger, "go-emit", on_go_emit, leader);
}

static int
app(struct messenger *messenger, void *arg)
{
	struct cluster_client *follower = cluster_client_follower(messenger, "bench", &real, NULL);

	(void)arg;
	own = messenger;
	if (follower == NULL ||
	    messenger_on(messenger, "value", on_value_message, follower) == -1 ||
	    cluster_client_subscribe(follower, "key", on_value, NULL) == -1 ||
	    cluster_client_invoke(follower, "present", NULL, 0, ignore, NULL) == -1)
		return -1;
	return messenger_slot(messenger) == 0 ? messenger_on(messenger, "go", on_go, follower) : 0;
}

/* ---- in the parent ----------------------------------------------------------------- */

struct parent {
	struct messenger *messenger;
	pid_t master;
	bool ready, present, done;
	double a, b;
};

static int
on_report(struct messenger *messenger, const struct message *message, void *arg)
{
	struct parent *parent = arg;

	(void)messenger;
	if (strcmp(message->action, "egg-ready") == 0)
		parent->ready = true;
	if (strcmp(message->action, "present") == 0)
		parent->present = true;
	if (strcmp(message->action, "result") == 0)
		parent->done = sscanf(message->data, "[%lf,%lf]", &parent->a, &parent->b) == 2;
	return 0;
}

static void
turn(struct parent *parent)
{
	look_around();
	if (messenger_step(parent->messenger, STEP) != 1)
		fail("the cluster ended too soon");
}

static void
run(const struct trial *what, const char *go, enum role to, struct parent *parent)
{
	struct options options = {
		.agent = agent, .app = app, .workers = what->apps, .name = "bench", .env = "prod"};
	int kept = silence();

	trial = what;
	memset(data, 'x', what->bytes);
	data[what->bytes] = '\0';
	*parent = (struct parent){.ready = false};
	parent->messenger = fork_cluster(&options, &parent->master);
	dup2(kept, STDOUT_FILENO);
	close(kept);
	if (parent->messenger == NULL || messenger_on(parent->messenger, NULL, on_report, parent))
		fail("fork_cluster: %s", strerror(errno));
	while (!parent->ready || !parent->present)
		turn(parent);
	if (messenger_send(parent->messenger, go, NULL, to) == -1)
		fail("the parent cannot send: %s", strerror(errno));
	while (!parent->done)
		turn(parent);
	kill(parent->master, SIGTERM);
	reap();
	messenger_close(parent->messenger);
}

void
client_invoke(const struct trial *what, double *figures)
{
	struct parent parent;

	pin(true);
	run(what, "go", ROLE_APP, &parent);
	figures[0] = parent.a;
	figures[1] = parent.b;
	pin(false);
}

static void
run_fanout(const struct trial *what, bool through_master, double *figures)
{
	struct parent parent;

	by_master = through_master;
	chunk = on_the_way = 1;
	pin(true);
	run(what, "go-emit", ROLE_AGENT, &parent);
	figures[0] = parent.a;
	figures[1] = parent.b;
	pin(false);
}

void
master_fanout(const struct trial *what, double *figures)
{
	run_fanout(what, true, figures);
}

void
client_fanout(const struct trial *what, double *figures)
{
	run_fanout(what, false, figures);
}

void
client_stream(const struct trial *what, double *figures)
{
	struct parent parent;

	by_master = false;
	chunk = CHUNK / (what->bytes + 64); /* with the headers */
	on_the_way = CHUNKS;
	run(what, "go-emit", ROLE_AGENT, &parent);
	figures[0] = parent.a;
}
