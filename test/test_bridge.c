/*
 * The bridge: two and three clusters that meet in one Redis. Some messages are sent while a
 * cluster, an agent or Redis is not there.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "redis_server.h"

#include "../redis/bridge.h"
#include "../redis/resp.h"

#include <sched.h>

TestSuite(bridge, .timeout = 90);

/* ---- in the processes ---------------------------------------------------------------- */

static struct bridge *bridge;

/* "heard ACTION DATA from CLUSTER id ID" */
static int
on_bridge(struct bridge *from, const struct bridge_message *message, void *arg)
{
	(void)from;
	report(arg, "heard %s %.64s from %s id %s", message->action,
	       message->data != NULL ? message->data : "nothing", message->from, message->id);
	return 0;
}

/* Add a listener for the same messages, which is called from the next message on. */
static int
on_adds(struct bridge *from, const struct bridge_message *message, void *arg)
{
	report(arg, "adds at %s", message->data);
	return bridge_on(from, "adds", on_adds, arg);
}

enum { LARGE = 60 * 1024 };

/* "send CLUSTER ACTION DATA", or "publish ..."; CLUSTER is "*" for all clusters. */
static int
order_say(struct messenger *messenger, const char *line)
{
	char word[16], to[64], action[64], data[64] = "";
	int result;

	cr_assert(sscanf(line, "%15s %63s %63s %63s", word, to, action, data) >= 3);
	result = (strcmp(word, "send") == 0 ? bridge_send : bridge_publish)(
		bridge, strcmp(to, "*") == 0 ? NULL : to, action, data[0] != '\0' ? data : NULL);
	report(messenger, "said %s: %s", action, result == 0 ? "yes" : strerror(errno));
	return result;
}

/* "many N": send N messages with the data 1 to N. */
static int
order_many(struct messenger *messenger, const char *line)
{
	int i, many = atoi(order_rest(line));
	char data[16];

	for (i = 1; i <= many; i++) {
		snprintf(data, sizeof data, "%d", i);
		if (bridge_send(bridge, NULL, "many", data) == -1)
			break;
	}
	report(messenger, "took %d, %s", i - 1, i > many ? "all" : strerror(errno));
	return 0;
}

/* "large N": the same, with LARGE bytes in each message. */
static int
order_large(struct messenger *messenger, const char *line)
{
	char *large = malloc(LARGE + 1), data[16];
	int i, many = atoi(order_rest(line));

	(void)messenger;
	memset(large, 'x', LARGE);
	large[0] = large[LARGE - 1] = '"';
	large[LARGE] = '\0';
	for (i = 1; i <= many; i++) {
		snprintf(data, sizeof data, "%04d", i);
		memcpy(large + 1, data, 4);
		cr_assert_eq(bridge_send(bridge, NULL, "large", large), 0);
	}
	free(large);
	return 0;
}

static int
order_burst(struct messenger *messenger, const char *line)
{
	int i, many = atoi(order_rest(line));
	char data[16];

	(void)messenger;
	for (i = 1; i <= many; i++) {
		snprintf(data, sizeof data, "%d", i);
		bridge_publish(bridge, NULL, "burst", data);
	}
	return 0;
}

/* Send the agent a batch without the bridge, in the name of the given cluster. */
static int
order_forge(struct messenger *messenger, const char *line)
{
	char text[128], data[256];

	snprintf(text, sizeof text,
	         "{\"id\":\"x\",\"from\":\"%s\",\"to\":\"\",\"action\":\"forged\"}",
	         order_rest(line));
	snprintf(data, sizeof data, "[1,%ld,[%zu,%s]]", (long)messenger_pid(messenger),
	         strlen(text), text);
	return messenger_send_to_agent(messenger, "bridge-send:bridge", data);
}

static const struct order orders[] = {{"send", order_say},
                                      {"publish", order_say},
                                      {"many", order_many},
                                      {"large", order_large},
                                      {"burst", order_burst},
                                      {"forge", order_forge},
                                      {NULL, NULL}};

static int
start_end(struct messenger *messenger, void *arg)
{
	bridge = bridge_start(messenger, arg);
	if (bridge == NULL)
		return -1;
	observe(messenger);
	return obey_orders(messenger, orders);
}

static int
start_app(struct messenger *app, void *arg)
{
	return start_end(app, arg) == -1 || bridge_on(bridge, NULL, on_bridge, app) == -1 ||
	       bridge_on(bridge, "adds", on_adds, app) == -1;
}

/* ---- in the test ------------------------------------------------------------------------- */

static struct server server;

static struct cluster *
start_options(const char *name, int workers, const struct bridge_options *options)
{
	static struct bridge_options copies[8]; /* one for each cluster */
	static size_t used;
	struct bridge_options *copy = &copies[used++];

	*copy = *options;
	copy->cluster = name;
	if (copy->timeout == 0)
		copy->timeout = 5000 * time_scale();
	return cluster_start(&(struct options){.agent = start_end,
	                                       .app = start_app,
	                                       .workers = workers,
	                                       .arg = copy,
	                                       .name = name});
}

static struct cluster *
start_impatient(const char *name, int workers, int timeout)
{
	struct cluster *c = start_options(
		name, workers, &(struct bridge_options){.url = server.url, .timeout = timeout});

	cluster_ready(c);
	cluster_wait(c, 0, "@agent:-1:AGENT#1 saw egg-ready "); /* so it knows all apps */
	return c;
}

static struct cluster *
start(const char *name, int workers)
{
	return start_impatient(name, workers, 0);
}

/* Store the answer of Redis to an administrator: an integer, or -1. */
static int
on_integer(struct redis *redis, const struct redis_reply *reply, void *arg)
{
	(void)redis;
	*(int64_t *)arg = reply->type == REDIS_INTEGER ? reply->integer : -1;
	return 0;
}

static int64_t
administrate_argv(size_t argc, const char *const argv[])
{
	struct redis *redis = redis_open(NULL, server.url, NULL);
	int64_t answer = -2, deadline = clutch_now() + time_limit();

	cr_assert_not_null(redis);
	cr_assert(redis_command_argv(redis, on_integer, &answer, argc, argv, NULL) == 0);
	while (redis_pending(redis) > 0 && clutch_now() < deadline)
		redis_step(redis, 10);
	redis_close(redis);
	return answer;
}

static int64_t
administrate(const char *script)
{
	return administrate_argv(3, (const char *const[]){"EVAL", script, "0"});
}

/* Does the script return true in Redis? */
static bool
redis_says(struct cluster *c, void *arg)
{
	(void)c;
	return administrate(arg) == 1;
}

static void
until_redis(struct cluster *c, const char *script)
{
	char copy[256];

	snprintf(copy, sizeof copy, "%s", script);
	cluster_until(c, redis_says, copy, copy);
}

/* Wait until all clusters have subscribed and have a group, so that they miss no message. */
static void
until_joined(struct cluster *c, int clusters)
{
	char script[256];

	snprintf(script, sizeof script,
	         "if redis.call('pubsub','numsub','clutch:bridge')[2] == %d and "
	         "redis.call('exists','clutch:bridge:stream') == 1 and "
	         "#redis.call('xinfo','groups','clutch:bridge:stream') == %d then return 1 end "
	         "return 0",
	         clusters, clusters);
	until_redis(c, script);
}

/* Wait until each cluster has acknowledged all messages, so that none is still on its way. */
static void
until_settled(struct cluster *c)
{
	until_redis(c, "for _, g in ipairs(redis.call('xinfo','groups','clutch:bridge:stream')) do "
	               "if g[8] ~= redis.call('xinfo','stream','clutch:bridge:stream')[8] or "
	               "g[6] ~= 0 then return 0 end end return 1");
}

/* Start a Redis and the clusters A and (unless NULL) B, and wait until both have joined. */
static void
meet(struct cluster **a, int workers_a, struct cluster **b, int workers_b)
{
	skip_without_redis();
	server_start(&server, NULL);
	*a = start("A", workers_a);
	if (b != NULL)
		*b = start("B", workers_b);
	until_joined(*a, b != NULL ? 2 : 1);
}

static void
part(struct cluster *a, struct cluster *b)
{
	cluster_stop(a);
	if (b != NULL)
		cluster_stop(b);
	server_end(&server, SIGTERM);
}

static void
wait_heard(struct cluster *c, const char *who, const char *what)
{
	cluster_wait(c, 0, ":%s heard %s ", who, what);
}

static size_t
heard(struct cluster *c, const char *who, const char *what)
{
	return cluster_count(c, 0, ":%s heard %s ", who, what);
}

/* ---- both kinds, to all and to one ------------------------------------------------------- */

/* Each app of two clusters hears each message once, whichever process sent it. */
Test(bridge, what_one_cluster_sends_each_app_of_all_hears_once)
{
	static const char *const apps[] = {"APP#1", "APP#2"};
	static const char *const said[] = {"p1 1 from A", "s1 2 from A", "p2 3 from B",
	                                   "s2 nothing from A", "last 5 from B"};
	struct cluster *a, *b;
	size_t i, j;

	meet(&a, 2, &b, 2);
	cluster_order(a, "APP#1", "publish * p1 1");
	cluster_order(a, "APP#2", "send * s1 2");
	cluster_order(b, "AGENT#1", "publish * p2 3");
	cluster_order(a, "AGENT#1", "send * s2");
	for (i = 0; i < 2; i++)
		for (j = 0; j < 4; j++) {
			wait_heard(a, apps[i], said[j]);
			wait_heard(b, apps[i], said[j]);
		}
	cluster_order(b, "APP#1", "send * last 5");
	cluster_order(b, "APP#1", "publish * over 6");
	for (i = 0; i < 2; i++) {
		wait_heard(a, apps[i], said[4]);
		wait_heard(b, apps[i], said[4]);
		wait_heard(a, apps[i], "over 6 from B");
		wait_heard(b, apps[i], "over 6 from B");
	}
	until_settled(a);
	for (i = 0; i < 2; i++)
		for (j = 0; j < 5; j++) {
			cr_assert_eq(heard(a, apps[i], said[j]), 1,
			             "%s of A has not heard \"%s\" once", apps[i], said[j]);
			cr_assert_eq(heard(b, apps[i], said[j]), 1,
			             "%s of B has not heard \"%s\" once", apps[i], said[j]);
		}
	cr_assert_eq(cluster_count(a, 0, "[bridge]"), 0);
	part(a, b);
}

/* Of three clusters, only the cluster that a message names hears it. */
Test(bridge, a_message_for_one_cluster_is_for_no_other)
{
	struct cluster *a, *b, *c;

	skip_without_redis();
	server_start(&server, NULL);
	a = start("A", 1);
	b = start("B", 1);
	c = start("C", 1);
	until_joined(a, 3);
	cluster_order(a, "APP#1", "publish B one 1");
	cluster_order(a, "APP#1", "send C two 2");
	cluster_order(a, "APP#1", "publish A three 3");
	cluster_order(a, "APP#1", "send A four 4");
	cluster_order(a, "APP#1", "publish * last 5");
	cluster_order(a, "APP#1", "send * end 6");
	wait_heard(a, "APP#1", "last 5 from A");
	wait_heard(b, "APP#1", "last 5 from A");
	wait_heard(c, "APP#1", "last 5 from A");
	wait_heard(a, "APP#1", "end 6 from A");
	wait_heard(b, "APP#1", "end 6 from A");
	wait_heard(c, "APP#1", "end 6 from A");
	cr_assert_eq(cluster_count(a, 0, "APP#1 heard"), 4);
	cr_assert_eq(heard(a, "APP#1", "three 3 from A"), 1);
	cr_assert_eq(heard(a, "APP#1", "four 4 from A"), 1);
	cr_assert_eq(cluster_count(b, 0, "APP#1 heard"), 3);
	cr_assert_eq(heard(b, "APP#1", "one 1 from A"), 1);
	cr_assert_eq(cluster_count(c, 0, "APP#1 heard"), 3);
	cr_assert_eq(heard(c, "APP#1", "two 2 from A"), 1);
	cluster_stop(a);
	cluster_stop(b);
	cluster_stop(c);
	server_end(&server, SIGTERM);
}

/* A cluster on another channel hears nothing. */
Test(bridge, channels_do_not_hear_each_other)
{
	struct cluster *a, *b;

	skip_without_redis();
	server_start(&server, NULL);
	a = start("A", 1);
	b = start_options("B", 1, &(struct bridge_options){.url = server.url, .channel = "other"});
	until_joined(a, 1);
	cluster_wait(b, 0, ":APP#1 saw bridge-ready:other ");
	cluster_order(a, "APP#1", "publish * one 1");
	cluster_order(a, "APP#1", "send * two 2");
	wait_heard(a, "APP#1", "two 2 from A");
	cluster_order(b, "APP#1", "send * three 3");
	wait_heard(b, "APP#1", "three 3 from B");
	cr_assert_eq(cluster_count(a, 0, "APP#1 heard"), 2);
	cr_assert_eq(cluster_count(b, 0, "APP#1 heard"), 1);
	part(a, b);
}

/* Many messages that are sent at once come in order, each once, in many batches. */
Test(bridge, a_thousand_reliable_messages_come_in_order)
{
	struct cluster *a, *b;
	char what[32];
	size_t at = 0, i;

	meet(&a, 1, &b, 2);
	cluster_order(a, "APP#1", "many 1000");
	cluster_wait(a, 0, "APP#1 took 1000, all");
	for (i = 1; i <= 1000; i++) {
		snprintf(what, sizeof what, ":APP#2 heard many %zu ", i);
		at = cluster_wait(b, i == 1 ? 0 : at, "%s", what);
	}
	wait_heard(a, "APP#1", "many 1000 from A");
	until_settled(a);
	cr_assert_eq(cluster_count(b, 0, ":APP#2 heard many"), 1000);
	cr_assert_eq(cluster_count(b, 0, ":APP#1 heard many"), 1000);
	cr_assert_eq(cluster_count(a, 0, ":APP#1 heard many"), 1000);
	part(a, b);
}

/* The agent reads more at once than it can send to its apps at once. */
Test(bridge, large_messages_that_wait_all_come)
{
	struct cluster *a, *b;
	char what[32];
	size_t at = 0;
	int i;

	meet(&a, 1, &b, 1);
	cluster_stop(b);
	for (i = 0; i < 3; i++) {
		cluster_order(a, "APP#1", "large 60");
		at = cluster_wait(a, at, ":APP#1 heard large \"0060");
	}
	b = start("B", 1);
	for (i = 0, at = 0; i < 180; i++) {
		snprintf(what, sizeof what, ":APP#1 heard large \"%04d", i % 60 + 1);
		at = cluster_wait(b, at, "%s", what);
	}
	until_settled(a);
	cr_assert_eq(cluster_count(b, 0, ":APP#1 heard large"), 180);
	part(a, b);
}

/* ---- a process that was not there -------------------------------------------------------- */

/* A restarted cluster hears the messages that were sent meanwhile, but not those that were
 * published. */
Test(bridge, a_cluster_that_was_away_hears_what_was_sent_reliably)
{
	struct cluster *a, *b;

	meet(&a, 1, &b, 1);
	cluster_stop(b);
	cluster_order(a, "APP#1", "publish * gone 1");
	cluster_order(a, "APP#1", "send * kept 2");
	cluster_order(a, "APP#1", "send B mine 3");
	wait_heard(a, "APP#1", "kept 2 from A");
	b = start("B", 1);
	wait_heard(b, "APP#1", "kept 2 from A");
	wait_heard(b, "APP#1", "mine 3 from A");
	cr_assert_eq(cluster_count(b, 0, "heard gone"), 0);
	until_settled(a);
	cr_assert_eq(cluster_count(b, 0, ":APP#1 heard"), 2);
	part(a, b);
}

/* If an app has not heard a message before its agent dies, the next agent passes the message to
 * all apps again, with the same id. */
Test(bridge, an_agent_killed_while_messages_are_pending)
{
	struct cluster *a, *b;
	const char *line;
	char id[64];
	int i;

	meet(&a, 1, &b, 2);
	cluster_signal(b, "APP#1", SIGSTOP);
	cluster_order(a, "APP#1", "send * taken 1");
	wait_heard(b, "APP#2", "taken 1 from A");
	cluster_signal(b, "AGENT#1", SIGKILL);
	cluster_wait_end(b, "AGENT#1");
	cluster_order(a, "APP#1", "send * meanwhile 2");
	cluster_signal(b, "APP#1", SIGCONT);
	wait_heard(b, "APP#1", "meanwhile 2 from A");
	wait_heard(b, "APP#2", "meanwhile 2 from A");
	until_settled(a);
	line = cluster_line(b, ":APP#1 heard taken 1 from A id ");
	cr_assert_not_null(line);
	snprintf(id, sizeof id, "%s", strstr(line, " id ") + 4);
	for (i = 1; i <= 2; i++) {
		cr_assert_eq(cluster_count(b, 0, ":APP#%d heard taken 1 from A id %s", i, id), 2);
		cr_assert_eq(cluster_count(b, 0, ":APP#%d heard taken", i), 2);
		cr_assert_eq(cluster_count(b, 0, ":APP#%d heard meanwhile", i), 1);
	}
	part(a, b);
}

/* If an agent dies before it has sent an app's message to Redis, the app sends it again. */
Test(bridge, an_agent_killed_before_it_has_sent)
{
	struct cluster *a;

	meet(&a, 2, NULL, 0);
	cluster_signal(a, "AGENT#1", SIGSTOP);
	cluster_order(a, "APP#1", "send * first 1");
	cluster_order(a, "APP#2", "many 100");
	cluster_wait(a, 0, "APP#2 took 100, all");
	cluster_signal(a, "AGENT#1", SIGKILL);
	cluster_wait_end(a, "AGENT#1");
	wait_heard(a, "APP#2", "first 1 from A");
	wait_heard(a, "APP#1", "many 100 from A");
	until_settled(a);
	cr_assert_eq(cluster_count(a, 0, ":APP#1 heard many"), 100);
	part(a, NULL);
}

/* An app that is forked later also hears and sends. */
Test(bridge, an_app_that_replaces_another_hears_and_sends)
{
	struct cluster *a, *b;

	meet(&a, 1, &b, 1);
	cluster_signal(b, "APP#1", SIGKILL);
	cluster_wait(b, 0, "app_worker#2:APP#2 started");
	cluster_order(a, "APP#1", "send * one 1");
	wait_heard(b, "APP#2", "one 1 from A");
	cluster_order(b, "APP#2", "send * two 2");
	wait_heard(a, "APP#1", "two 2 from B");
	part(a, b);
}

/* An app that is stopped holds up the reliable messages of its own cluster, but not of others.
 * When the app continues, it has missed nothing. */
Test(bridge, an_app_that_is_stopped_misses_nothing)
{
	struct cluster *a, *b;

	meet(&a, 1, &b, 2);
	cluster_signal(b, "APP#1", SIGSTOP);
	cluster_order(a, "APP#1", "send * first 1");
	wait_heard(b, "APP#2", "first 1 from A"); /* the stopped app owes an answer now */
	cluster_order(a, "APP#1", "many 200");
	wait_heard(a, "APP#1", "many 200 from A");
	cr_assert_eq(heard(b, "APP#2", "many 1 from A"), 0);
	cluster_signal(b, "APP#1", SIGCONT);
	wait_heard(b, "APP#1", "many 200 from A");
	wait_heard(b, "APP#2", "many 200 from A");
	until_settled(a);
	cr_assert_eq(cluster_count(b, 0, ":APP#1 heard many"), 200);
	cr_assert_eq(cluster_count(b, 0, ":APP#2 heard many"), 200);
	part(a, b);
}

/* An app that stays stopped does not hold the others up for ever, and can catch up later. */
Test(bridge, an_app_that_stays_stopped_holds_nobody_up)
{
	struct cluster *a;
	size_t i;

	skip_without_redis();
	server_start(&server, NULL);
	a = start_impatient("A", 2, 1000);
	until_joined(a, 1);
	cluster_signal(a, "APP#1", SIGSTOP);
	cluster_order(a, "APP#2", "many 40");
	wait_heard(a, "APP#2", "many 1 from A");
	cluster_wait(a, 0, "[bridge] bridge: app APP#1 is slow to hear; the others go on");
	wait_heard(a, "APP#2", "many 40 from A");
	cluster_signal(a, "APP#1", SIGCONT);
	wait_heard(a, "APP#1", "many 40 from A");
	until_settled(a);
	for (i = 1; i <= 2; i++)
		cr_assert_eq(cluster_count(a, 0, ":APP#%zu heard many", i), 40);
	part(a, NULL);
}

/* ---- Redis is not there ------------------------------------------------------------------ */

/* Redis is killed and started again with its file: no reliable message is lost. */
Test(bridge, redis_killed_and_restarted)
{
	struct cluster *a, *b;
	size_t mark;

	skip_without_redis();
	server_start(&server, "--appendonly", "yes", "--appendfsync", "always", NULL);
	a = start("A", 1);
	b = start("B", 1);
	until_joined(a, 2);
	cluster_order(a, "APP#1", "send * before 1");
	wait_heard(b, "APP#1", "before 1 from A");
	server_end(&server, SIGKILL);
	cluster_wait(a, 0, "[bridge] bridge: [redis] unix://");
	cluster_order(a, "APP#1", "publish * lost 2");
	cluster_order(a, "APP#1", "publish * lost 3");
	cluster_order(a, "APP#1", "many 50");
	cluster_wait(a, 0, "[bridge] bridge: messages are being lost: ");
	/* The first lost message may be on its way when the connection ends. */
	cr_assert_eq(
		cluster_count(a, 0, "messages are being lost: there is no connection to Redis") +
			cluster_count(a, 0, "messages are being lost: connection lost: "),
		1);
	wait_heard(a, "APP#1", "lost 2 from A"); /* apps of the same cluster need no Redis */
	wait_heard(a, "APP#1", "lost 3 from A");
	cluster_order(a, "APP#1", "burst 10");
	wait_heard(a, "APP#1", "burst 10 from A");
	cr_assert_eq(cluster_count(a, 0, "heard many"), 0);
	mark = cluster_mark(a);
	server_start(&server, "--appendonly", "yes", "--appendfsync", "always", NULL);
	wait_heard(b, "APP#1", "many 50 from A");
	wait_heard(a, "APP#1", "many 50 from A");
	cluster_wait(a, mark, "[bridge] bridge: 12 messages were lost");
	until_settled(a);
	cr_assert_eq(cluster_count(b, 0, ":APP#1 heard many"), 50);
	cr_assert_eq(cluster_count(b, 0, "heard lost"), 0);
	cr_assert_eq(cluster_count(b, 0, "heard burst"), 0);
	part(a, b);
}

/* Redis has forgotten the groups and the stream. The clusters join again, and hear all messages
 * that are sent from then on, even before both have joined. */
Test(bridge, redis_restarted_without_its_memory)
{
	struct cluster *a, *b;

	meet(&a, 1, &b, 1);
	server_end(&server, SIGKILL);
	cluster_order(a, "APP#1", "many 20");
	cluster_wait(a, 0, "APP#1 took 20, all");
	server_start(&server, NULL);
	wait_heard(b, "APP#1", "many 20 from A");
	wait_heard(a, "APP#1", "many 20 from A");
	cr_assert_eq(cluster_count(b, 0, ":APP#1 heard many"), 20);
	cr_assert_eq(administrate("return redis.call('del','clutch:bridge:stream')"), 1);
	cluster_order(a, "APP#1", "send * after 1");
	wait_heard(b, "APP#1", "after 1 from A");
	wait_heard(a, "APP#1", "after 1 from A");
	part(a, b);
}

/* Without Redis, apps of the same cluster still hear published messages. */
Test(bridge, a_listener_that_adds_a_listener_at_each_message)
{
	struct cluster *c =
		start_options("A", 1, &(struct bridge_options){.url = "unix:///nowhere"});
	int i;

	cluster_ready(c);
	cluster_order(c, "APP#1", "publish * adds 1");
	cluster_order(c, "APP#1", "publish * adds 2");
	cluster_order(c, "APP#1", "publish * adds 3");
	cluster_order(c, "APP#1", "publish * last 4");
	wait_heard(c, "APP#1", "last 4 from A");
	for (i = 1; i <= 3; i++)
		cr_assert_eq(cluster_count(c, 0, "APP#1 adds at %d", i), (size_t)1 << (i - 1));
	cluster_stop(c);
}

Test(bridge, without_redis_a_full_outbox_refuses)
{
	struct cluster *a;

	skip_without_redis();
	snprintf(server.url, sizeof server.url, "unix://%s/redis", test_folder());
	a = start("A", 1);
	cluster_order(a, "APP#1", "many 2000");
	cluster_wait(a, 0, "APP#1 took 1024, %s", strerror(ENOBUFS));
	server_start(&server, NULL);
	wait_heard(a, "APP#1", "many 1024 from A");
	cluster_order(a, "APP#1", "many 1");
	cluster_wait(a, 0, "APP#1 took 1, all");
	cr_assert_eq(cluster_count(a, 0, "[redis]"), 2,
	             "there are not two lines: cannot connect; connected again");
	part(a, NULL);
}

/* A process that leaves while Redis is away logs how many messages may be lost. */
Test(bridge, who_leaves_says_what_waits)
{
	struct cluster *a;

	skip_without_redis();
	snprintf(server.url, sizeof server.url, "unix://%s/redis", test_folder());
	a = start("A", 1);
	cluster_order(a, "APP#1", "many 3");
	cluster_wait(a, 0, "APP#1 took 3, all");
	cluster_signal(a, "MASTER", SIGTERM);
	cluster_wait(a, 0, "[bridge] bridge: 3 messages may not have reached Redis");
	cluster_ended(a, 0);
}

Test(bridge, a_wrong_password_is_one_line)
{
	struct cluster *a;
	char url[128];

	skip_without_redis();
	server_start(&server, "--requirepass", "right", NULL);
	snprintf(url, sizeof url, "unix://:wrong@%s", server.path);
	a = start_options("A", 1, &(struct bridge_options){.url = url});
	cluster_ready(a);
	cluster_wait(a, 0, "refused (is its URL right?): WRONGPASS");
	cluster_order(a, "APP#1", "publish * here 1");
	cluster_order(a, "APP#1", "send * waits 2");
	wait_heard(a, "APP#1", "here 1 from A");
	cluster_wait(a, 0, "messages are being lost");
	cr_assert_eq(cluster_count(a, 0, "refused"), 1);
	cr_assert_eq(cluster_count(a, 0, "heard waits"), 0);
	cluster_signal(a, "MASTER", SIGTERM);
	cluster_ended(a, 0);
	server_end(&server, SIGTERM);
}

/* Clusters notice a Redis that accepts connections but does not answer, and go on when it does. */
Test(bridge, a_redis_that_stops_answering)
{
	struct cluster *a, *b;

	skip_without_redis();
	server_start(&server, NULL);
	a = start_impatient("A", 1, 1000);
	b = start("B", 1);
	until_joined(a, 2);
	kill(server.pid, SIGSTOP); /* for less time than B waits */
	cluster_order(a, "APP#1", "send * stuck 1");
	cluster_wait(a, 0, "lost: no reply within ");
	kill(server.pid, SIGCONT);
	wait_heard(a, "APP#1", "stuck 1 from A");
	wait_heard(b, "APP#1", "stuck 1 from A");
	cluster_wait(a, 0, "connected again");
	part(a, b);
}

/* While Redis has no memory left, senders wait, and no message is lost. */
Test(bridge, a_redis_that_is_full)
{
	struct cluster *a;

	meet(&a, 1, NULL, 0);
	administrate_argv(4, (const char *const[]){"CONFIG", "SET", "maxmemory", "1"});
	cluster_order(a, "APP#1", "send * full 1");
	cluster_wait(a, 0, "[bridge] bridge: Redis does not take messages: OOM ");
	administrate_argv(4, (const char *const[]){"CONFIG", "SET", "maxmemory", "0"});
	wait_heard(a, "APP#1", "full 1 from A");
	cr_assert_eq(heard(a, "APP#1", "full 1 from A"), 1);
	part(a, NULL);
}

/* ---- hosts in a network ------------------------------------------------------------------ */

__attribute__((format(printf, 1, 2))) static bool
run(const char *format, ...)
{
	char command[256];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(command, sizeof command, format, arguments);
	va_end(arguments);
	return system(command) == 0;
}

/* Enter the network namespace of the process. */
static void
enter(pid_t pid)
{
	char path[64];
	int file;

	snprintf(path, sizeof path, "/proc/%ld/ns/net", (long)pid);
	file = open(path, O_RDONLY | O_CLOEXEC);
	cr_assert(file != -1 && setns(file, CLONE_NEWNET) == 0, "%s: %s", path, strerror(errno));
	close(file);
}

/* A host is a process in a network namespace of its own, which ends with the process. A cable
 * joins 10.77.N.2 there and 10.77.N.1 here. 0: this machine cannot do that. */
static pid_t
plug_in(int number, int home)
{
	pid_t pid;

	if (unshare(CLONE_NEWNET) == -1)
		return 0;
	pid = fork(); /* the child stays in the new network namespace */
	cr_assert(pid != -1);
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			pause();
	}
	cr_assert(setns(home, CLONE_NEWNET) == 0);
	if (!run("ip link add cable%d type veth peer name eth0 netns %ld", number, (long)pid) ||
	    !run("ip address add 10.77.%d.1/24 dev cable%d", number, number) ||
	    !run("ip link set cable%d up", number))
		return 0;
	enter(pid);
	cr_assert(run("ip link set lo up && ip address add 10.77.%d.2/24 dev eth0 && "
	              "ip link set eth0 up",
	              number));
	cr_assert(setns(home, CLONE_NEWNET) == 0);
	return pid;
}

static struct cluster *
start_on_host(const char *name, int number, pid_t host, int home)
{
	char *url = calloc(1, 64);
	struct cluster *c;

	snprintf(url, 64, "redis://10.77.%d.1", number);
	enter(host);
	c = start_options(name, 1, &(struct bridge_options){.url = url, .timeout = 1000});
	cr_assert(setns(home, CLONE_NEWNET) == 0);
	cluster_ready(c);
	free(url); /* the agent has its own copy */
	return c;
}

/* Redis, A and B are three hosts. A's cable is pulled and plugged in again. B does not notice,
 * and in the end both have heard all messages. */
Test(bridge, hosts_in_a_network_and_a_cable_that_is_pulled)
{
	struct cluster *a, *b;
	pid_t host[2] = {0, 0};
	char scale[16];
	int home;

	skip_without_redis();
	if (unshare(CLONE_NEWNET) == 0) {
		home = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
		host[0] = plug_in(1, home);
		host[1] = host[0] != 0 ? plug_in(2, home) : 0;
	}
	if (host[1] == 0) {
		fprintf(stderr, "no network namespaces here: the bridge is not tested over them\n");
		cr_skip_test("no network namespaces");
	}
	snprintf(scale, sizeof scale, "%d", 2 * time_scale()); /* time to send lost packets again */
	setenv("TEST_TIME_SCALE", scale, 1);
	server_start(&server, "--port", "6379", "--protected-mode", "no", NULL);
	a = start_on_host("A", 1, host[0], home);
	b = start_on_host("B", 2, host[1], home);
	until_joined(a, 2);
	cluster_order(a, "APP#1", "publish * one 1");
	wait_heard(b, "APP#1", "one 1 from A");
	cr_assert(run("ip link set cable1 down"));
	cluster_order(a, "APP#1", "send * two 2");
	cluster_order(b, "APP#1", "send * three 3");
	wait_heard(b, "APP#1", "three 3 from B");
	cluster_wait(a, 0, "lost: no reply within ");
	cr_assert(run("ip link set cable1 up"));
	wait_heard(a, "APP#1", "three 3 from B");
	wait_heard(a, "APP#1", "two 2 from A");
	wait_heard(b, "APP#1", "two 2 from A");
	cr_assert_eq(cluster_count(b, 0, "[redis]"), 0);
	part(a, b);
	kill(host[0], SIGKILL);
	kill(host[1], SIGKILL);
	waitpid(host[0], NULL, 0);
	waitpid(host[1], NULL, 0);
}

/* ---- a Redis that says strange things ---------------------------------------------------- */

static const char entry[] =
	"*1\r\n*2\r\n$20\r\nclutch:bridge:stream\r\n*1\r\n*2\r\n$3\r\n1-1\r\n*2\r\n$1\r\nm\r\n"
	"$55\r\n[50,{\"id\":\"x-1\",\"from\":\"B\",\"to\":\"\",\"action\":\"strange\"}]\r\n";
static const char no_entries[] = "*1\r\n*2\r\n$20\r\nclutch:bridge:stream\r\n*0\r\n";

/* The strange replies to a command, one after the other. */
static struct strange {
	const char *command;
	const char *replies[8]; /* the last one is repeated; NULL: no more replies */
	size_t next;
} stranges[] = {
	{"PING", {"+PONG\r\n"}, 0},
	{"SUBSCRIBE", {"*3\r\n$9\r\nsubscribe\r\n$1\r\nx\r\n:1\r\n"}, 0},
	{"XGROUP", {":7\r\n", "+OK\r\n"}, 0},
	{"XREADGROUP",
         {"+OK\r\n", ":1\r\n", "*2\r\n:1\r\n:2\r\n", "*1\r\n*2\r\n:1\r\n:2\r\n", entry, no_entries,
          NULL},
         0},
	{"XACK", {"+OK\r\n", ":1\r\n"}, 0},
	{"XADD", {"*0\r\n", "$3\r\n1-2\r\n"}, 0},
	{"PUBLISH", {"+OK\r\n", ":1\r\n"}, 0},
};

static void
answer_strangely(int connection, const char *command)
{
	struct strange *strange = stranges;
	const char *reply;

	while (strcmp(strange->command, command) != 0)
		strange++;
	reply = strange->replies[strange->next];
	if (reply != NULL && strange->next < 7 &&
	    (strange->replies[strange->next + 1] != NULL || strcmp(command, "XREADGROUP") == 0))
		strange->next++;
	if (reply != NULL)
		send(connection, reply, strlen(reply), MSG_NOSIGNAL);
}

/* Hear whole commands. A command looks like a reply that is an array of strings. */
static void
serve_strangely(int connection)
{
	static struct redis_reply elements[256];
	struct resp_parser parser = {.elements = elements, .size = 256};
	static char bytes[65536];
	ssize_t length = recv(connection, bytes, sizeof bytes, 0);
	char *at = bytes;

	for (; length > 0 && resp_parse(&parser, at, (size_t)length) == RESP_WHOLE;
	     at += parser.at, length -= (ssize_t)parser.at)
		answer_strangely(connection, elements[1].text);
}

/* Fork a process that serves all connections like this, and ends with the test. */
static pid_t
start_strange(void)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct pollfd set[16] = {{.events = POLLIN}};
	nfds_t count = 1, i;
	pid_t pid;

	snprintf(address.sun_path, sizeof address.sun_path, "%s/redis", test_folder());
	snprintf(server.url, sizeof server.url, "unix://%s", address.sun_path);
	set[0].fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	cr_assert(bind(set[0].fd, (struct sockaddr *)&address, sizeof address) == 0);
	cr_assert(listen(set[0].fd, 8) == 0);
	pid = fork();
	cr_assert(pid != -1);
	if (pid != 0) {
		close(set[0].fd);
		return pid;
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;) {
		poll(set, count, -1);
		for (i = 1; i < count; i++)
			if (set[i].revents != 0)
				serve_strangely(set[i].fd);
		if (set[0].revents != 0 && count < 16)
			set[count++] = (struct pollfd){accept(set[0].fd, NULL, NULL), POLLIN, 0};
	}
}

/* Each reply of an unexpected kind is one line in the log, and the command is sent again. */
Test(bridge, replies_of_an_unexpected_kind_are_asked_for_again)
{
	static const char unexpected[] = "the reply is of an unexpected kind";
	pid_t strange = start_strange();
	struct cluster *a = start("A", 1);

	cluster_wait(a, 0, "this cluster cannot join: %s", unexpected);
	cluster_order(a, "APP#1", "send * one 1");
	cluster_wait(a, 0, "Redis does not give messages: %s", unexpected);
	wait_heard(a, "APP#1", "strange nothing from B");
	cluster_wait(a, 0, "Redis does not hear what was delivered: %s", unexpected);
	cluster_wait(a, 0, "Redis does not take messages: %s", unexpected);
	cluster_wait(a, 0, "AGENT#1 saw bridge-send:bridge");
	cluster_wait(a, 0, ":APP#1 saw bridge-done:bridge");
	cluster_order(a, "APP#1", "publish * two 2");
	cluster_wait(a, 0, "messages are being lost: %s", unexpected);
	cluster_stop(a);
	kill(strange, SIGKILL);
	waitpid(strange, NULL, 0);
}

/* ---- bridges of two versions ------------------------------------------------------------- */

/* An older bridge publishes messages without a batch around them, and adds them to the stream in
 * the same way. They are heard, and a line says that the older bridge hears none of ours. */
Test(bridge, an_older_bridge_is_heard_and_the_log_says_so)
{
	struct cluster *a;
	int i;

	meet(&a, 1, NULL, 0);
	for (i = 0; i < 2; i++)
		administrate("return "
		             "redis.call('publish','clutch:bridge','{\"id\":\"x-1\",\"from\":\"B\","
		             "\"to\":\"\",\"action\":\"old\",\"data\":1}')");
	administrate("redis.call('xadd','clutch:bridge:stream','*','m','{\"id\":\"x-2\","
	             "\"from\":\"B\",\"to\":\"A\",\"action\":\"old\",\"data\":2}') return 1");
	wait_heard(a, "APP#1", "old 2 from B");
	wait_heard(a, "APP#1", "old 1 from B");
	cr_assert_eq(cluster_count(a, 0, ":APP#1 heard old 1"), 2);
	cr_assert_eq(cluster_count(a, 0,
	                           "[bridge] bridge: a cluster with an older bridge is here; "
	                           "it does not hear this one"),
	             1);
	part(a, NULL);
}

/* ---- what Redis sees --------------------------------------------------------------------- */

/* Messages of one turn leave in one PUBLISH, in their order; a message for one cluster by its
 * name goes to that cluster alone. */
Test(bridge, messages_of_one_turn_are_one_command)
{
	static const char calls[] =
		"local s = redis.call('info','commandstats') "
		"return tonumber(string.match(s, 'cmdstat_publish:calls=(%d+)') or 0)";
	struct cluster *a, *b;
	int64_t before;

	meet(&a, 1, &b, 1);
	before = administrate(calls);
	cluster_order(a, "APP#1", "burst 100");
	wait_heard(b, "APP#1", "burst 100 from A");
	wait_heard(a, "APP#1", "burst 100 from A");
	cr_assert_eq(cluster_count(b, 0, ":APP#1 heard burst"), 100);
	cr_assert_eq(cluster_count(a, 0, ":APP#1 heard burst"), 100);
	cr_assert_leq(administrate(calls) - before, 10);
	cr_assert_eq(administrate("return redis.call('pubsub','numsub','clutch:bridge\"B\"')[2]"),
	             1);
	part(a, b);
}

/* ---- strangers who write into Redis ------------------------------------------------------ */

/* Text that is no message causes a line in the log, and nothing else. */
Test(bridge, what_a_stranger_writes_is_left_out)
{
	struct cluster *a;

	meet(&a, 1, NULL, 0);
	administrate("return redis.call('publish','clutch:bridge','hello')");
	cluster_wait(a, 0, "what somebody has published is no message");
	administrate("redis.call('xadd','clutch:bridge:stream','*','a','b','c','d') "
	             "redis.call('xadd','clutch:bridge:stream','*','m','{\"id\":\"x\"') return 1");
	cluster_wait(a, 0, "is no message of a bridge; it is left out");
	/* No id is longer than this one, and later entries have ids that are as long. */
	administrate("return redis.call('xadd','clutch:bridge:stream',"
	             "'18446744073709551000-10000000000000000000','a','b')");
	cluster_wait(a, 0, "18446744073709551000-10000000000000000000 is no message of a bridge");
	cluster_order(a, "APP#1", "send * good 1");
	wait_heard(a, "APP#1", "good 1 from A");
	until_settled(a);
	cr_assert_eq(cluster_count(a, 0, "APP#1 heard"), 1);
	cr_assert_eq(cluster_count(a, 0, "is no message of a bridge"), 3);
	cr_assert_eq(cluster_count(a, 0, "is too short"), 0);
	part(a, NULL);
}

/* If a sent or published batch is wrong at its end, none of its messages is heard. */
Test(bridge, a_batch_that_is_wrong_at_its_end_is_left_out_whole)
{
	static const char message[] =
		"{\"id\":\"x-1\",\"from\":\"B\",\"to\":\"\",\"action\":\"half\"}";
	struct cluster *a;
	char script[256];

	meet(&a, 1, NULL, 0);
	snprintf(script, sizeof script,
	         "redis.call('xadd','clutch:bridge:stream','*','m','[%zu,%s,9,{\"id\":\"x\"]') "
	         "return 1",
	         sizeof message - 1, message);
	administrate(script);
	cluster_wait(a, 0, "is no message of a bridge; it is left out");
	snprintf(script, sizeof script,
	         "return redis.call('publish','clutch:bridge','[%zu,%s,9,{\"id\":\"x\"]')",
	         sizeof message - 1, message);
	administrate(script);
	cluster_wait(a, 0, "what somebody has published is no message");
	cluster_order(a, "APP#1", "send * good 1");
	wait_heard(a, "APP#1", "good 1 from A");
	until_settled(a);
	cr_assert_eq(cluster_count(a, 0, "APP#1 heard"), 1);
	part(a, NULL);
}

/* Publish text that is no message from time to time. Are there two lines? */
static bool
is_said_twice(struct cluster *c, void *arg)
{
	int64_t *published = arg;

	if (clutch_now() - *published > 1500) { /* the last loss has ended */
		administrate("return redis.call('publish','clutch:bridge','hello')");
		*published = clutch_now();
	}
	return cluster_count(c, 0, "what somebody has published is no message") == 2;
}

/* A loss begins, ends, and begins again: each time there is a line. */
Test(bridge, the_same_loss_again_is_another_line)
{
	int64_t published = 0;
	struct cluster *a;

	meet(&a, 1, NULL, 0);
	cluster_until(a, is_said_twice, &published, "a second line that a text is no message");
	part(a, NULL);
}

/* An app cannot send a message in the name of another cluster. */
Test(bridge, what_an_app_sends_in_another_name_is_let_go)
{
	struct cluster *a;

	meet(&a, 1, NULL, 0);
	cluster_order(a, "APP#1", "forge B");
	cluster_wait(a, 0, "[bridge] bridge: an app has sent what is no message; it is not sent");
	cluster_order(a, "APP#1", "forge A");
	wait_heard(a, "APP#1", "forged nothing from A");
	cluster_order(a, "APP#1", "send * two 2");
	wait_heard(a, "APP#1", "two 2 from A");
	cr_assert_eq(cluster_count(a, 0, "APP#1 heard"), 2);
	part(a, NULL);
}

/* If a message is trimmed from the stream before it is heard, a line says that it is lost. */
Test(bridge, what_the_stream_has_no_more_is_one_line)
{
	struct cluster *a, *b;

	meet(&a, 1, &b, 1);
	cluster_signal(b, "APP#1", SIGSTOP);
	cluster_order(a, "APP#1", "send * cut 1");
	until_redis(a, "return redis.call('xpending','clutch:bridge:stream','B')[1]");
	cluster_signal(b, "AGENT#1", SIGKILL);
	cluster_wait_end(b, "AGENT#1");
	cr_assert_eq(administrate("return redis.call('xtrim','clutch:bridge:stream','MAXLEN',0)"),
	             1);
	cluster_signal(b, "APP#1", SIGCONT);
	cluster_wait(b, 0, "is lost: the stream is too short for how long this cluster was away");
	until_redis(a, "return 1 - redis.call('xpending','clutch:bridge:stream','B')[1]");
	part(a, b);
}

Test(bridge, names_and_data_are_checked)
{
	struct messenger *parent, *app;
	struct bridge *end;
	char long_name[BRIDGE_NAME_MAX + 2], *large = malloc(BRIDGE_DATA_MAX + 2);
	int ends[2];

	memset(long_name, 'x', sizeof long_name - 1);
	long_name[sizeof long_name - 1] = '\0';
	memset(large, '1', BRIDGE_DATA_MAX + 1);
	large[BRIDGE_DATA_MAX + 1] = '\0';
	cr_assert(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
	parent = messenger_open(ends[0], ROLE_PARENT);
	app = messenger_open(ends[1], ROLE_APP);
	cr_assert_null(bridge_start(parent, &(struct bridge_options){0}));
	cr_assert_eq(errno, EINVAL);
	cr_assert_null(bridge_start(app, &(struct bridge_options){.channel = ""}));
	cr_assert_null(bridge_start(app, &(struct bridge_options){.channel = long_name}));
	cr_assert_null(bridge_start(app, &(struct bridge_options){.cluster = "a\"b"}));
	end = bridge_start(app, &(struct bridge_options){.cluster = "A"});
	cr_assert_not_null(end);
	cr_assert(bridge_on(end, "a", NULL, NULL) == -1 && errno == EINVAL);
	cr_assert(bridge_send(end, NULL, "", NULL) == -1 && errno == EINVAL);
	cr_assert(bridge_send(end, "", "a", NULL) == -1 && errno == EINVAL);
	cr_assert(bridge_publish(end, "a\\", "a", NULL) == -1 && errno == EINVAL);
	cr_assert(bridge_publish(end, NULL, "a\n", NULL) == -1 && errno == EINVAL);
	cr_assert(bridge_publish(end, NULL, long_name, NULL) == -1 && errno == EINVAL);
	cr_assert(bridge_publish(end, NULL, "a", large) == -1 && errno == EMSGSIZE);
	cr_assert(bridge_send(end, NULL, "a", large) == -1 && errno == EMSGSIZE);
	large[BRIDGE_DATA_MAX] = '\0';
	long_name[BRIDGE_NAME_MAX] = '\0';
	cr_assert(bridge_publish(end, long_name, long_name, large) == 0);
	cr_assert(bridge_send(end, long_name, long_name, large) == 0);
	cr_assert_eq(bridge_waiting(end), 1);
	free(large);
}

/* Publish a message of `size` bytes; returns its size in the batch, with the agent's own text. */
static size_t
publish_one(struct bridge *end, char *data, size_t size)
{
	static int number;
	int text;

	memset(data, '1', size);
	data[size] = '\0';
	cr_assert_eq(bridge_publish(end, NULL, "full", data), 0);
	text = snprintf(NULL, 0, "\"%016d-%d\"%s%s%s%s", 0, ++number, "{\"id\":,\"from\":\"A\"",
	                ",\"to\":\"\"", ",\"action\":\"full\"", ",\"data\":}");
	return (size_t)(text + snprintf(NULL, 0, ",%zu,", (size_t)text + size)) + size;
}

/* Count the messages that were sent to the apps. */
static size_t
count_published(struct messenger *agent, struct channel *apps)
{
	struct message message;
	uint64_t before;
	size_t count = 0;
	const char *at;

	cr_assert_neq(messenger_step(agent, 0), -1); /* a batch is sent at the end of its turn */
	do {
		before = apps->bytes_in;
		cr_assert_neq(messenger_step(agent, 0), -1);
		cr_assert_eq(channel_read(apps), PEER_ALIVE);
		while (channel_next(apps, &message) == 1)
			for (at = message.data; (at = strstr(at, "{\"id\":")) != NULL; at++)
				count++;
	} while (channel_pending(&agent->channel) > 0 || apps->bytes_in > before);
	return count;
}

/* The last message of a batch may leave a few bytes, or none, for the next one. */
Test(bridge, a_batch_is_filled_to_its_last_byte)
{
	char *data = malloc(BRIDGE_DATA_MAX + 1);
	size_t used, sent, spare;
	struct messenger *agent;
	struct channel apps;
	struct bridge *end;
	int ends[2];

	cr_assert(channel_pair(ends) == 0);
	agent = messenger_open(ends[0], ROLE_AGENT);
	channel_init(&apps, 0);
	cr_assert_eq(channel_attach(&apps, ends[1]), 0);
	end = bridge_start(agent,
	                   &(struct bridge_options){.cluster = "A", .url = "redis://127.0.0.1:1"});
	cr_assert_not_null(end);
	for (spare = 0; spare < 160; spare++) {
		for (used = sent = 0; used + spare + BRIDGE_DATA_MAX < MESSAGE_DATA_MAX; sent++)
			used += publish_one(end, data, BRIDGE_DATA_MAX - 5000);
		used += publish_one(end, data, MESSAGE_DATA_MAX - used - spare - 90);
		publish_one(end, data, 1);
		publish_one(end, data, BRIDGE_DATA_MAX);
		cr_assert_eq(count_published(agent, &apps), sent + 3,
		             "messages are missing when a packet ends %zu bytes below the limit",
		             spare);
	}
	free(data);
}

/* Each cluster has a batch of its own, and one timer ends all batches of a turn. */
Test(bridge, messages_for_many_clusters_are_one_timer)
{
	struct messenger *agent;
	struct bridge *end;
	size_t before;
	int i, ends[2];

	cr_assert(channel_pair(ends) == 0);
	agent = messenger_open(ends[0], ROLE_AGENT);
	end = bridge_start(agent,
	                   &(struct bridge_options){.cluster = "A", .url = "redis://127.0.0.1:1"});
	cr_assert_not_null(end);
	cr_assert_eq(bridge_publish(end, "B", "one", NULL), 0);
	before = agent->timer_count;
	for (i = 0; i < 100; i++)
		cr_assert_eq(bridge_publish(end, i % 2 == 0 ? "C" : "B", "one", NULL), 0);
	cr_expect_leq(agent->timer_count, before + 1,
	              "each message has a timer of its own: %zu timers", agent->timer_count);
}

Test(bridge, a_bad_url_is_a_failed_start)
{
	struct cluster *c =
		start_options("A", 1, &(struct bridge_options){.url = "http://127.0.0.1"});

	cluster_wait(c, 0, "[agent_worker] start error, exiting with code:1");
	cluster_ended(c, 1);
}

/* The lines of examples/bridge, in which Redis is killed, and then an agent. */
Test(bridge, the_example_loses_what_is_published_and_repeats_what_is_sent)
{
	static const char story[] =
		"-- paris says \"one\"\n"
		"paris hears \"one\" from paris, published\n"
		"paris hears \"one\" from paris, sent\n"
		"tokyo hears \"one\" from paris, published\n"
		"tokyo hears \"one\" from paris, sent\n"
		"-- Redis is killed, and paris says \"two\"\n"
		"paris hears \"two\" from paris, published\n"
		"-- Redis comes back, with what it has written to the disk\n"
		"paris hears \"two\" from paris, sent\n"
		"tokyo hears \"two\" from paris, sent\n"
		"-- the app of tokyo is stopped, paris says \"three\", and the agent of tokyo is "
		"killed\n"
		"paris hears \"three\" from paris, published\n"
		"paris hears \"three\" from paris, sent\n"
		"tokyo hears \"three\" from paris, published\n"
		"tokyo hears \"three\" from paris, sent\n"
		"tokyo hears \"three\" from paris, sent\n"
		"-- both clusters end\n";
	char printed[4096];
	FILE *output;

	if (system("(command -v redis-server && command -v redis-cli) >/dev/null") != 0)
		cr_skip_test("there is no redis-server, or no redis-cli");
	clear_environment();
	output = popen("TRIES=400 sh examples/bridge_run 2>&1", "r");
	cr_assert_not_null(output);
	printed[fread(printed, 1, sizeof printed - 1, output)] = '\0';
	cr_expect_eq(pclose(output), 0);
	cr_expect_str_eq(printed, story);
}
