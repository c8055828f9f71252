/*
 * Leader and followers in live clusters. The real client is the tests' own: it
 * reports what it is asked ("upstream subscribe k"), and does what it is ordered.
 *
 * The test orders a process to use its client, and waits for what it reports:
 *
 *	cluster_order(c, "APP#1", "sub k a");           subscribe to k with a listener named a
 *	cluster_order(c, "AGENT#1", "emit k v1");
 *	cluster_wait(c, 0, ":APP#1 value a k v1");
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#define CLUTCH_CHANNEL
#include "harness.h"
#include "sanitized.h"

#include "cluster-client/cluster_client.h"

#include <criterion/criterion.h>

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

TestSuite(cluster_client, .timeout = 120);

enum { MEBIBYTE = 1024 * 1024, GROWTH = 1024 /* KiB */ };

/* ---- what a test sets, before it starts the cluster ------------------------------ */

static struct cluster_client_options options; /* of every client */
static int failures;                          /* of the real client's start, before it succeeds */
static bool start_by_order;                   /* it is ready when the test says so */
static bool leader_by_order;                  /* there is no leader until then */
static bool second_client;                    /* named "other", in each process */
static bool agent_is_hostile;
static bool turns_in_close; /* the real client turns the loop when it is closed */

/* ---- in the cluster's processes ---------------------------------------------------- */

enum { CALLS = CLUSTER_CLIENT_CALLS_MAX + 8, TAGS = 32, RAWS = 80 };

static struct messenger *own;
static struct cluster_client *client, *other;
static struct cluster_call *held[CALLS];
static int held_count, starts, registrations;
static struct channel raw[RAWS]; /* a hostile app's ends, by number */

/* Names of listeners and calls: they live as long as the process. */
static char *
tag(const char *name)
{
	static char names[TAGS][64];
	static int count;
	int i;

	for (i = 0; i < count; i++)
		if (strcmp(names[i], name) == 0)
			return names[i];
	if (count == TAGS)
		abort();
	snprintf(names[count], sizeof names[count], "%s", name);
	return names[count++];
}

/* -- the real client -- */

static const struct cluster_error not_there = {"EREGISTRY", "no \"registry\"\nthere"};

static void
real_ready(struct cluster_client *leader, void *arg)
{
	report(own, "upstream start %d %s", ++starts, (const char *)arg);
	if (!start_by_order)
		cluster_client_started(leader, starts <= failures ? &not_there : NULL);
}

static void
real_subscribe(struct cluster_client *leader, const char *key, void *arg)
{
	if (strncmp(key, "greedy", 6) == 0 || strncmp(key, "kkkk", 4) == 0)
		return;
	report(own, "upstream subscribe %s %s", key, (const char *)arg);
	if (strcmp(key, "at-once") == 0) /* it has a value in hand */
		cluster_client_emit(leader, key, "now", 3);
}

static void
real_unsubscribe(struct cluster_client *leader, const char *key, void *arg)
{
	if (strncmp(key, "greedy", 6) == 0)
		return;
	report(own, "upstream unsubscribe %s %s", key, (const char *)arg);
	if (strncmp(key, "fatal", 5) == 0)
		cluster_client_close(leader);
}

static void
real_publish(struct cluster_client *leader, const char *key, const char *data, size_t length,
             void *arg)
{
	if (strncmp(key, "kkkk", 4) != 0)
		report(own, "upstream publish %s %zu %s %s", key, length, data, (const char *)arg);
	cluster_client_emit(leader, key, data, length);
}

static void
real_close(struct cluster_client *leader, void *arg)
{
	int turns;

	(void)leader;
	for (turns = turns_in_close ? 3 : 0; turns > 0; turns--)
		messenger_step(own, 0);
	report(own, "upstream close %s", (const char *)arg);
}

static void
echo(struct cluster_client *leader, struct cluster_call *call, const char *data, size_t length,
     void *arg)
{
	(void)leader;
	if (call == NULL)
		report(own, "upstream one-way %s %s", data, (const char *)arg);
	cluster_client_reply(call, data, length);
}

static void
fail_it(struct cluster_client *leader, struct cluster_call *call, const char *data, size_t length,
        void *arg)
{
	(void)leader, (void)length, (void)arg;
	cluster_client_fail(call, "ENOTFOUND", data);
}

/* Answered by the orders "release" and "release-late". */
static void
hold(struct cluster_client *leader, struct cluster_call *call, const char *data, size_t length,
     void *arg)
{
	(void)leader, (void)length, (void)arg;
	report(own, "upstream holds %s", data);
	if (held_count < CALLS)
		held[held_count++] = call;
}

static int on_result(struct cluster_client *from, const struct cluster_error *error,
                     const char *data, size_t length, void *arg);

/* It calls the client that it belongs to. */
static void
nest(struct cluster_client *leader, struct cluster_call *call, const char *data, size_t length,
     void *arg)
{
	(void)arg;
	report(own, "upstream nests %s", data);
	cluster_client_invoke(leader, "echo", "inner", 5, on_result, tag("inner"));
	cluster_client_reply(call, data, length);
}

static const struct real_method methods[] = {
	{"echo", echo}, {"fail", fail_it}, {"hold", hold}, {"nest", nest}, {NULL, NULL}};

static char arg_test[] = "test", arg_other[] = "other";

static const struct real_client real = {real_ready, real_subscribe, real_unsubscribe, real_publish,
                                        methods,    real_close,     arg_test};
static const struct real_client real_other = {
	NULL, real_subscribe, real_unsubscribe, real_publish, methods, real_close, arg_other};

/* -- the user -- */

static int
on_value(struct cluster_client *from, const char *key, const char *data, size_t length, void *arg)
{
	char what[64];

	(void)from;
	snprintf(what, sizeof what, "%.40s", data);
	if (length != strlen(data))
		snprintf(what, sizeof what, "with another length");
	if (length > 40)
		snprintf(what, sizeof what, "of %zu bytes", length);
	report(own, "value %s %s %s", (const char *)arg, key, what);
	if (strncmp(arg, "once", 4) == 0 && cluster_client_unsubscribe(from, key, on_value, arg))
		report(own, "cannot unsubscribe");
	if (strcmp(arg, "throws") == 0)
		return 7;
	if (strcmp(arg, "closes") == 0)
		cluster_client_close(from);
	if (strcmp(arg, "adds") == 0)
		return cluster_client_subscribe(from, key, on_value, tag("added"));
	if (strcmp(arg, "grows") == 0)
		return cluster_client_subscribe(from, key, on_value, arg);
	if (strcmp(arg, "emits") == 0)
		return cluster_client_emit(from, key, data, length);
	return 0;
}

static int
on_result(struct cluster_client *from, const struct cluster_error *error, const char *data,
          size_t length, void *arg)
{
	(void)from;
	if (error != NULL)
		report(own, "error %s %s %s", (const char *)arg, error->code, error->message);
	else if (length > 40)
		report(own, "result %s of %zu bytes", (const char *)arg, length);
	else
		report(own, "result %s %zu %s", (const char *)arg, length, data);
	if (error == NULL && strcmp(arg, "forever") == 0)
		return cluster_client_invoke(from, "echo", data, length, on_result, arg);
	return 0;
}

static int
on_client_ready(struct cluster_client *from, const struct cluster_error *error, void *arg)
{
	report(own, "ready %s %s", (const char *)arg, error != NULL ? error->code : "yes");
	if (error != NULL && strcmp(arg, "again") == 0)
		cluster_client_ready(from, on_client_ready, arg);
	if (strcmp(arg, "closes") == 0)
		cluster_client_close(from);
	return 0;
}

static void
make_client(void)
{
	bool leads = messenger_role(own) == ROLE_AGENT;

	client = leads ? cluster_client_leader(own, "test", &real, &options)
	               : cluster_client_follower(own, "test", &real, &options);
	if (client == NULL)
		report(own, "no client: %s", strerror(errno));
	else if (failures > 0)
		cluster_client_ready(client, on_client_ready, tag("again"));
	if (second_client)
		other = leads ? cluster_client_leader(own, "other", &real_other, &options)
		              : cluster_client_follower(own, "other", &real_other, &options);
}

static void
release(bool last_first, bool fails)
{
	int i;
	char text[16];

	for (i = 0; i < held_count; i++) {
		snprintf(text, sizeof text, "r%d", i + 1);
		if (fails)
			cluster_client_fail(held[i], "ELATE", text);
		else
			cluster_client_reply(held[last_first ? held_count - 1 - i : i], text,
			                     strlen(text));
	}
	held_count = 0;
}

static int
on_long(struct cluster_client *from, const char *key, const char *data, size_t length, void *arg)
{
	(void)from, (void)arg;
	if (strlen(key) == CLUSTER_CLIENT_KEY_MAX && strspn(key, "k") == strlen(key) &&
	    strlen(data) == length)
		report(own, "long value of %zu bytes", length);
	return 0;
}

/* The longest key: listen to it, or publish so many bytes. */
static int
use_long(const char *word, const char *data, size_t size)
{
	char key[CLUSTER_CLIENT_KEY_MAX + 1] = "";

	memset(key, 'k', sizeof key - 1);
	if (strcmp(word, "long-sub") == 0)
		return cluster_client_subscribe(client, key, on_long, NULL);
	return cluster_client_publish(client, key, data, size);
}

/* A value or an argument of so many bytes. The agent reports it if it cannot go on at once. */
static void
use_big(const char *word, const char *key, const char *name, size_t size)
{
	int64_t before = clutch_now();
	char *data = malloc(size + 1);

	if (data == NULL)
		abort();
	memset(data, 'x', size);
	data[size] = '\0';
	if (strcmp(word, "long-pub") == 0)
		use_long(word, data, size);
	else if (strcmp(word, "emit-big") == 0)
		cluster_client_emit(client, key, data, size);
	else if (cluster_client_invoke(client, key, data, size, on_result, tag(name)) == -1)
		report(own, "refused %s %s", name, strerror(errno));
	if (clutch_now() - before > 700)
		report(own, "%s took %ld ms", word, (long)(clutch_now() - before));
	free(data);
}

/* Subscribe, and unsubscribe, so many keys; the leader has heard it all, when the
 * call behind it is answered. */
static void
churn(int count)
{
	char key[32];
	int i;

	for (i = 0; i < count; i++) {
		snprintf(key, sizeof key, "churn-%d", i);
		if (cluster_client_subscribe(client, key, on_value, tag("churn")) == -1 ||
		    cluster_client_unsubscribe(client, key, NULL, NULL) == -1)
			report(own, "churn: %s", strerror(errno));
	}
	cluster_client_invoke(client, "echo", "", 0, on_result, tag("churned"));
}

static int
renew(struct cluster_client *from, const struct cluster_error *error, const char *data,
      size_t length, void *arg)
{
	static int left;

	(void)from, (void)error, (void)data, (void)length;
	if (arg != NULL)
		left = *(int *)arg;
	if (left-- == 0) {
		report(own, "renewed");
		return 0;
	}
	cluster_client_close(client);
	make_client();
	cluster_client_subscribe(client, "k", on_value, tag("renewed"));
	return cluster_client_invoke(client, "echo", "", 0, renew, NULL);
}

/* -- what is hostile -- */

/* A key that is too long by one byte. */
static char long_key[CLUSTER_CLIENT_KEY_MAX + 3];

/* One message, and what the leader says about it. Without an action: bytes. */
static const struct lie {
	const char *why;
	const char *action;
	const char *data;
	size_t length;
	pid_t id;
	enum role to;
} lies[] = {
	/* lengths that are announced: 2 GiB, 4 GiB, 2 MiB of an action of 9 bytes, nothing */
	{"broke the protocol", NULL, "\x80\0\0\0\0\0\0\x09\0\0\0\0", 12, 0, 0},
	{"broke the protocol", NULL, "\xff\xff\xff\xff\0\0\1\x09\0\0\0\0", 12, 0, 0},
	{"broke the protocol", NULL, "\0\x20\0\0\0\0\1\x09\0\0\0\0", 12, 0, 0},
	{"broke the protocol", NULL, "\0\0\0\0\0\0\0\0\0\0\0\0", 12, 0, 0},
	{"sent a packet of an unknown type", "close", NULL, 0, 0, 0},
	{"sent a packet of an unknown type", "", NULL, 0, 0, 0},
	{"sent a packet of an unknown type", "subscribe_", "k", 2, 0, 0},
	{"sent a name that is missing or too long", "subscribe", NULL, 0, 0, 0},
	{"sent a name that is missing or too long", "subscribe", "k", 1, 0, 0},
	{"sent a name that is missing or too long", "invoke", "", 1, 1, 0},
	{"sent a name that is missing or too long", "subscribe", long_key, sizeof long_key, 0, 0},
	{"sent a name that is missing or too long", "name", long_key, sizeof long_key, 0, 0},
	{"sent a name that is missing or too long", "name", NULL, 0, 0, 0},
	{"sent a name that is missing or too long", "publish", "v", 1, 0, ROLE_MASTER},
	/* so far about packets, from here on about what they say */
	{"registered twice", "register_channel", "4242 3000", 9, 0, 0},
	{"gave an answer that nobody asked for", "invoke_result", NULL, 0, 1, 0},
	{"gave an answer that nobody asked for", "subscribe_result", "k", 2, 0, 0},
	{"called a method that is not listed", "invoke", "close", 6, 1, 0},
	{"called a method that is not listed", "invoke", "constructor", 12, 0, 0},
};

enum { LIES = sizeof lies / sizeof lies[0], FORMAT_LIES = LIES - 5 };

/* A hostile end writes frames of its own; what it hears is only counted. */
static void
raw_packet(int number, const struct lie *lie)
{
	struct message message = {.action = lie->action,
	                          .to = lie->to,
	                          .receiver_pid = lie->id,
	                          .data = lie->data,
	                          .data_length = lie->length,
	                          .handle = -1};

	memset(long_key, 'k', sizeof long_key - 1);
	if (lie->action == NULL && send(raw[number].descriptor, lie->data, lie->length,
	                                MSG_NOSIGNAL) != (ssize_t)lie->length)
		report(own, "raw %d cannot write", number);
	if (lie->action != NULL && (sendmessage(&raw[number], &message) == -1 ||
	                            channel_drain(&raw[number], 10000) != PEER_ALIVE))
		report(own, "raw %d cannot write", number);
}

static int
on_raw(struct messenger *app, int descriptor, short revents, void *arg)
{
	char bytes[4096];
	ssize_t count = read(descriptor, bytes, sizeof bytes);

	(void)revents;
	if (count > 0) {
		report(app, "raw %d hears %zd", (int)((struct channel *)arg - raw), count);
		return 0;
	}
	report(app, "raw %d is closed", (int)((struct channel *)arg - raw));
	messenger_unwatch(app, descriptor);
	channel_close(arg);
	return 0;
}

static int
send_handle(int handle)
{
	return messenger_send_message(own, &(struct message){.action = "cluster-client:test",
	                                                     .to = ROLE_AGENT,
	                                                     .handle = handle});
}

static int
raw_open(int number)
{
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == -1 || send_handle(pair[1]) == -1)
		return -1;
	close(pair[1]);
	channel_init(&raw[number], 0);
	if (channel_attach(&raw[number], pair[0]) == -1)
		return -1;
	return messenger_watch(own, pair[0], POLLIN, on_raw, &raw[number]);
}

/* As many keys as it may have, and so many more. */
static void
raw_greedy(int number, int more)
{
	struct lie packet = {"", "subscribe", NULL, 0, 0, 0};
	char key[64];
	int i;

	for (i = 0; i < CLUSTER_CLIENT_KEYS_MAX + more; i++) {
		packet.length = (size_t)snprintf(key, sizeof key, "greedy%d", i) + 1;
		packet.data = key;
		raw_packet(number, &packet);
	}
}

/* So many connections, each of which tells a lie. */
static int
raw_crowd(int count)
{
	int i;

	for (i = 0; i < count; i++) {
		if (raw_open(0) == -1)
			return -1;
		messenger_unwatch(own, raw[0].descriptor);
		raw_packet(0, &lies[4]);
		channel_close(&raw[0]);
	}
	return 0;
}

static int
hostile_order(const char *word, const char *rest, int number)
{
	static const struct lie good[] = {{"", "register_channel", "4242 3000", 9, 0, 0},
	                                  {"", "subscribe", "k", 2, 0, 0}};
	int pipes[2];

	(void)rest;
	if (strcmp(word, "raw-open") == 0)
		return raw_open(number);
	if (strcmp(word, "raw-register") == 0)
		raw_packet(number, &good[0]);
	else if (strcmp(word, "raw-subscribe") == 0)
		raw_packet(number, &good[1]);
	else if (strcmp(word, "raw-lie") == 0)
		raw_packet(number, &lies[number]);
	else if (strcmp(word, "raw-greedy") == 0)
		raw_greedy(number, 1);
	else if (strcmp(word, "raw-full") == 0)
		raw_greedy(number, 0);
	else if (strcmp(word, "raw-again") == 0)
		raw_packet(number, &(struct lie){"", "subscribe", "greedy7", 8, 1, 0});
	else if (strcmp(word, "raw-deaf") == 0)
		return messenger_unwatch(own, raw[number].descriptor);
	else if (strcmp(word, "raw-crowd") == 0)
		return raw_crowd(number);
	else if (strcmp(word, "raw-none") == 0)
		return send_handle(-1);
	else if (strcmp(word, "raw-pipe") == 0 && pipe(pipes) == 0)
		return send_handle(pipes[0]) + close(pipes[0]) + close(pipes[1]);
	return 0;
}

/* In a timer: so the client has something left to do in the next turn. */
static int
emit_and_leave(struct messenger *agent, void *key)
{
	(void)agent;
	return cluster_client_emit(client, key, "last", 4) == -1 || raise(SIGTERM) != 0;
}

/* "WORD A B REST" */
static int
obey(struct messenger *messenger, const char *line)
{
	char word[32] = "", a[64] = "", b[64] = "";
	int number, result = 0;

	sscanf(line, "%31s %63s %63[^\n]", word, a, b);
	number = atoi(a);
	errno = 0;
	if (strcmp(word, "sub") == 0)
		result = cluster_client_subscribe(client, a, on_value, tag(b));
	else if (strcmp(word, "unsub") == 0)
		result = cluster_client_unsubscribe(client, a, on_value, tag(b));
	else if (strcmp(word, "unsub-all") == 0)
		result = cluster_client_unsubscribe(client, a, NULL, NULL);
	else if (strcmp(word, "pub") == 0)
		result = cluster_client_publish(client, a, b, strlen(b));
	else if (strcmp(word, "call") == 0)
		result = cluster_client_invoke(client, a, b, strlen(b), on_result, tag(b));
	else if (strcmp(word, "oneway") == 0)
		result = cluster_client_invoke_oneway(client, a, b, strlen(b));
	else if (strcmp(word, "long-sub") == 0)
		result = use_long(word, NULL, 0);
	else if (strcmp(word, "call-big") == 0 || strcmp(word, "emit-big") == 0 ||
	         strcmp(word, "long-pub") == 0)
		use_big(word, a, "big", (size_t)atol(b));
	else if (strcmp(word, "other-sub") == 0)
		result = cluster_client_subscribe(other, a, on_value, tag(b));
	else if (strcmp(word, "other-call") == 0)
		result = cluster_client_invoke(other, a, b, strlen(b), on_result, tag(b));
	else if (strcmp(word, "ready") == 0)
		result = cluster_client_ready(client, on_client_ready, tag(a));
	else if (strcmp(word, "emit") == 0)
		result = cluster_client_emit(client, a, b, strlen(b));
	else if (strcmp(word, "emit-two") == 0)
		result = cluster_client_emit(client, a, "v1", 2) +
		         cluster_client_emit(client, a, "v2", 2);
	else if (strcmp(word, "emit-and-leave") == 0)
		messenger_set_timeout(messenger, 0, emit_and_leave, tag(a));
	else if (strcmp(word, "three-ready") == 0)
		result = cluster_client_ready(client, on_client_ready, tag("first")) +
		         cluster_client_ready(client, on_client_ready, tag("closes")) +
		         cluster_client_ready(client, on_client_ready, tag("last"));
	else if (strcmp(word, "started") == 0)
		cluster_client_started(client, NULL);
	else if (strcmp(word, "started-not") == 0)
		cluster_client_started(client, &not_there);
	else if (strcmp(word, "release") == 0)
		release(strcmp(a, "last-first") == 0, strcmp(a, "failing") == 0);
	else if (strcmp(word, "close") == 0)
		cluster_client_close(client);
	else if (strcmp(word, "make") == 0)
		make_client();
	else if (strcmp(word, "churn") == 0)
		churn(number);
	else if (strcmp(word, "renew") == 0)
		renew(client, NULL, NULL, 0, &number);
	else
		result = hostile_order(word, b, number);
	return result == 0 ? 0 : -1;
}

static const struct order orders[] = {{NULL, obey}};

/* In the agent: who asks for a connection? And, if it is hostile, takes it. */
static int
on_registration(struct messenger *agent, const struct message *message, void *arg)
{
	(void)arg;
	report(agent, "connection %d", ++registrations);
	if (agent_is_hostile && registrations <= 3) {
		int end = dup(message->handle);

		if (registrations == 1 && write(end, "\0\0\0\2garbage garbage garbage", 27) != 27)
			report(agent, "cannot write");
		close(end);
	} else if (agent_is_hostile && client == NULL) {
		make_client(); /* it hears the next one */
	}
	return 0;
}

static int
role(struct messenger *messenger, void *arg)
{
	own = messenger;
	(void)arg;
	if (messenger_role(messenger) == ROLE_AGENT &&
	    messenger_on(messenger, "cluster-client:test", on_registration, NULL) == -1)
		return -1;
	if (messenger_role(messenger) == ROLE_APP || (!leader_by_order && !agent_is_hostile))
		make_client();
	return obey_orders(messenger, orders);
}

/* ---- in the test ---------------------------------------------------------------------- */

static struct cluster *
start_with_defaults(int workers)
{
	struct cluster *c =
		cluster_start(&(struct options){.agent = role, .app = role, .workers = workers});

	cluster_ready(c);
	return c;
}

/* A call may take as long as a wait: on a busy machine, that is longer than three seconds. */
static struct cluster *
start(int workers)
{
	if (options.response_timeout == 0)
		options.response_timeout = time_limit();
	return start_with_defaults(workers);
}

/* All that the process has said until now has been heard by the leader. */
static size_t
settled(struct cluster *c, const char *who)
{
	size_t mark = cluster_mark(c);

	cluster_order(c, who, "call echo settled");
	return cluster_wait(c, mark, ":%s result settled 7 settled", who);
}

/* The same where calls time out soon. */
static void
ready(struct cluster *c, const char *who)
{
	size_t mark = cluster_mark(c);

	cluster_did(c, who, "ready now");
	cluster_wait(c, mark, ":%s ready now yes", who);
}

static void
subscribed(struct cluster *c, const char *who, const char *text)
{
	cluster_did(c, who, text);
	settled(c, who);
}

/* ---- subscribe, publish ------------------------------------------------------------------ */

Test(cluster_client, many_subscriptions_of_a_key_are_one_upstream)
{
	struct cluster *c = start(3);
	const char *who[] = {"AGENT#1", "APP#1", "APP#2", "APP#3"};
	int i;

	for (i = 0; i < 4; i++) {
		subscribed(c, who[i], "sub k a");
		subscribed(c, who[i], "sub k b");
	}
	cluster_did(c, "AGENT#1", "emit k v1");
	for (i = 0; i < 4; i++) {
		cluster_wait(c, 0, ":%s value a k v1", who[i]);
		cluster_wait(c, 0, ":%s value b k v1", who[i]);
	}
	cr_expect_eq(cluster_count(c, 0, "upstream subscribe k test"), 1);
	cr_expect_eq(cluster_count(c, 0, " value "), 8);
	cluster_stop(c);
}

Test(cluster_client, a_late_subscriber_gets_the_last_value_later)
{
	struct cluster *c = start(2);
	const char *late[] = {"AGENT#1", "APP#1", "APP#2"};
	size_t before, mark;
	int i;

	subscribed(c, "APP#1", "sub k first");
	cluster_did(c, "AGENT#1", "emit k v1");
	cluster_did(c, "AGENT#1", "emit k v2");
	cluster_wait(c, 0, ":APP#1 value first k v2");
	for (i = 0; i < 3; i++) {
		before = cluster_mark(c);
		mark = cluster_did(c, late[i], "sub k late");
		cluster_wait(c, mark, ":%s value late k v2", late[i]);
		cr_expect_eq(cluster_count(c, before, " value "), 1, "%s", late[i]);
	}
	cluster_did(c, "AGENT#1", "emit k v3");
	for (i = 0; i < 3; i++)
		cluster_wait(c, 0, ":%s value late k v3", late[i]);
	cr_expect_eq(cluster_count(c, 0, " value late k v1"), 0);
	cluster_stop(c);
}

Test(cluster_client, a_value_that_is_at_hand_comes_after_subscribe_returned)
{
	struct cluster *c = start(1);
	size_t mark;

	mark = cluster_did(c, "AGENT#1", "sub at-once a");
	cluster_wait(c, mark, ":AGENT#1 value a at-once now");
	cluster_did(c, "AGENT#1", "unsub at-once a");
	mark = cluster_did(c, "APP#1", "sub at-once a");
	cluster_wait(c, mark, ":APP#1 value a at-once now");
	cr_expect_eq(cluster_count(c, 0, " value "), 2);
	cluster_stop(c);
}

Test(cluster_client, unsubscribing_one_listener_or_all)
{
	struct cluster *c = start(1);
	size_t mark;

	subscribed(c, "APP#1", "sub k a");
	subscribed(c, "APP#1", "sub k b");
	subscribed(c, "APP#1", "sub k once");
	cluster_did(c, "AGENT#1", "sub k a");
	cluster_did(c, "AGENT#1", "sub k once");
	cluster_did(c, "AGENT#1", "emit k v1");
	cluster_wait(c, 0, ":APP#1 value once k v1");
	cluster_wait(c, 0, ":AGENT#1 value once k v1");
	cluster_did(c, "APP#1", "unsub k a");
	cluster_did(c, "AGENT#1", "emit k v2");
	cluster_wait(c, 0, ":APP#1 value b k v2");
	cluster_wait(c, 0, ":AGENT#1 value a k v2");
	settled(c, "APP#1");
	cr_expect_eq(cluster_count(c, 0, ":APP#1 value a k v2"), 0);
	cr_expect_eq(cluster_count(c, 0, "value once k v2"), 0);
	cluster_did(c, "APP#1", "sub k a");
	cluster_did(c, "APP#1", "unsub-all k");
	cluster_did(c, "AGENT#1", "unsub-all k");
	settled(c, "APP#1");
	mark = cluster_mark(c);
	cluster_order(c, "AGENT#1", "emit k v3");
	cluster_wait(c, mark, ":AGENT#1 did emit k v3: No such file");
	settled(c, "APP#1");
	cr_expect_eq(cluster_count(c, mark, " value "), 0);
	cluster_order(c, "APP#1", "unsub k a");
	cluster_wait(c, 0, "did unsub k a: No such file");
	cluster_stop(c);
}

/* D35: egg neither unsubscribes upstream nor forgets the value. */
Test(cluster_client, the_last_one_unsubscribes_upstream_and_drops_the_value)
{
	struct cluster *c = start(2);
	const char *who[] = {"APP#1", "APP#2", "AGENT#1"};
	size_t mark;
	int i;

	for (i = 0; i < 3; i++)
		subscribed(c, who[i], "sub k a");
	cluster_did(c, "AGENT#1", "emit k old");
	for (i = 0; i < 3; i++)
		cluster_wait(c, 0, ":%s value a k old", who[i]);
	for (i = 0; i < 3; i++) {
		cr_expect_eq(cluster_count(c, 0, "upstream unsubscribe"), 0);
		cluster_did(c, who[i], "unsub k a");
		settled(c, who[i]);
	}
	cluster_wait(c, 0, "upstream unsubscribe k test");
	mark = cluster_mark(c);
	for (i = 0; i < 3; i++)
		subscribed(c, who[i], "sub k a");
	cluster_wait(c, mark, "upstream subscribe k test");
	cluster_did(c, "AGENT#1", "emit k new");
	for (i = 0; i < 3; i++)
		cluster_wait(c, mark, ":%s value a k new", who[i]);
	cr_expect_eq(cluster_count(c, mark, "value a k old"), 0);
	cr_expect_eq(cluster_count(c, 0, "upstream subscribe"), 2);
	cluster_stop(c);
}

Test(cluster_client, without_broadcast_exactly_one_hears_a_value)
{
	struct cluster *c;
	const char *who[] = {"APP#1", "APP#2", "AGENT#1"};
	enum { VALUES = 60 };
	char text[32];
	size_t mark;
	int i;

	options.no_broadcast = true;
	c = start(2);
	for (i = 0; i < 3; i++)
		subscribed(c, who[i], "sub k a");
	for (i = 0; i < VALUES; i++) {
		snprintf(text, sizeof text, "emit k v%d.", i);
		cluster_did(c, "AGENT#1", text);
	}
	for (i = 0; i < VALUES; i++)
		cluster_wait(c, 0, "value a k v%d.", i);
	for (i = 0; i < 3; i++) {
		settled(c, who[i]);
		cr_expect_gt(cluster_count(c, 0, ":%s value a", who[i]), 0, "%s", who[i]);
	}
	cr_expect_eq(cluster_count(c, 0, " value "), VALUES);
	mark = cluster_mark(c);
	subscribed(c, "AGENT#1", "sub k late"); /* nobody is told what another heard */
	settled(c, "AGENT#1");
	cr_expect_eq(cluster_count(c, mark, " value late"), 0);
	cluster_stop(c);
}

Test(cluster_client, what_is_published_reaches_the_real_client_and_all_subscribers)
{
	struct cluster *c = start(2);

	subscribed(c, "APP#1", "sub k a");
	cluster_did(c, "APP#2", "pub k hello");
	cluster_wait(c, 0, "upstream publish k 5 hello test");
	cluster_wait(c, 0, ":APP#1 value a k hello");
	cluster_did(c, "AGENT#1", "pub k ahoy");
	cluster_wait(c, 0, "upstream publish k 4 ahoy test");
	cluster_wait(c, 0, ":APP#1 value a k ahoy");
	cluster_stop(c);
}

/* ---- invoke -------------------------------------------------------------------------------- */

Test(cluster_client, a_call_has_a_result_or_an_error)
{
	struct cluster *c = start(1);
	const char *who[] = {"APP#1", "AGENT#1"};
	size_t mark, before;
	int i;

	for (i = 0; i < 2; i++) {
		before = cluster_mark(c);
		mark = cluster_did(c, who[i], "call echo {\"a\":1}");
		cluster_wait(c, mark, ":%s result {\"a\":1} 7 {\"a\":1}", who[i]);
		cluster_did(c, who[i], "call fail quote\"back\\slash\ttab");
		cluster_wait(c, mark,
		             ":%s error quote\"back\\slash\ttab ENOTFOUND quote\"back\\slash\ttab",
		             who[i]);
		cluster_did(c, who[i], "call echo");
		cluster_wait(c, mark, ":%s result  0 ", who[i]);
		cluster_did(c, who[i], "call-big echo 1048576");
		cluster_wait(c, mark, ":%s result big of 1048576 bytes", who[i]);
		cluster_order(c, who[i], "call-big echo 1048577");
		cluster_wait(c, mark, ":%s refused big Message too long", who[i]);
		cluster_order(c, who[i], "call unlisted x");
		cluster_wait(c, mark, ":%s did call unlisted x: Function not implemented", who[i]);
		cluster_did(c, who[i], "call fail x");
		cluster_wait(c, mark, ":%s error x ENOTFOUND x", who[i]);
		cr_expect_eq(cluster_count(c, before, ":%s result", who[i]), 3);
	}
	cluster_stop(c);
}

Test(cluster_client, a_call_without_an_answer_times_out)
{
	struct cluster *c;

	options.response_timeout = 100;
	c = start(1);
	ready(c, "APP#1");
	cluster_did(c, "APP#1", "call hold h1");
	cluster_wait(c, 0, "upstream holds h1");
	cluster_did(c, "AGENT#1", "call hold h2");
	cluster_wait(c, 0,
	             ":APP#1 error h1 ResponseTimeoutError The leader did not answer "
	             "within 100 ms.");
	cluster_did(c, "APP#1", "call hold h3");
	cluster_wait(c, 0, ":APP#1 error h3 ");
	cluster_did(c, "APP#1", "call hold h4");
	cluster_wait(c, 0, ":APP#1 error h4 "); /* h1 is too old in the leader's eyes, too */
	cluster_did(c, "AGENT#1", "release");
	cluster_wait(c, 0, ":AGENT#1 result h2 2 r2"); /* it asked no leader */
	cluster_wait(c, 0, "waited longer than its timeout: its call is not answered");
	ready(c, "APP#1");
	cr_expect_eq(cluster_count(c, 0, ":APP#1 result h1"), 0);
	cr_expect_eq(cluster_count(c, 0, ":APP#1 error h1"), 1);
	cluster_stop(c);
}

Test(cluster_client, by_default_a_call_waits_for_three_seconds)
{
	struct cluster *c = start_with_defaults(1);

	cluster_did(c, "APP#1", "call hold h1");
	cluster_wait(c, 0,
	             ":APP#1 error h1 ResponseTimeoutError The leader did not answer "
	             "within 3000 ms.");
	cluster_stop(c);
}

Test(cluster_client, calls_are_answered_out_of_order)
{
	struct cluster *c = start(2);
	const char *who[] = {"APP#1", "APP#2", "AGENT#1", "APP#1"};
	char text[32];
	size_t end;
	int i;

	for (i = 0; i < 4; i++) {
		snprintf(text, sizeof text, "call hold h%d", i + 1);
		cluster_did(c, who[i], text);
		cluster_wait(c, 0, "upstream holds h%d", i + 1);
	}
	settled(c, "APP#1"); /* one behind them is answered first */
	cluster_did(c, "AGENT#1", "release last-first");
	end = cluster_wait(c, 0, ":APP#1 result h4 2 r1");
	cluster_wait(c, end, ":APP#1 result h1 2 r4");
	cluster_wait(c, 0, ":AGENT#1 result h3 2 r2");
	cluster_wait(c, 0, ":APP#2 result h2 2 r3");
	cluster_stop(c);
}

Test(cluster_client, a_real_client_may_call_its_own_client)
{
	struct cluster *c = start(1);

	settled(c, "APP#1");
	cluster_did(c, "AGENT#1", "call nest outer");
	cluster_wait(c, 0, ":AGENT#1 result inner 5 inner");
	cluster_wait(c, 0, ":AGENT#1 result outer 5 outer");
	cluster_did(c, "APP#1", "call nest outer");
	cluster_wait(c, 0, ":APP#1 result outer 5 outer");
	settled(c, "AGENT#1");
	cr_expect_eq(cluster_count(c, 0, "upstream nests"), 2);
	cr_expect_eq(cluster_count(c, 0, ":AGENT#1 result inner"), 2);
	cluster_stop(c);
}

Test(cluster_client, a_one_way_call_has_no_answer)
{
	struct cluster *c = start(1);

	cluster_did(c, "APP#1", "oneway echo w1");
	cluster_wait(c, 0, "upstream one-way w1 test");
	cluster_did(c, "APP#1", "oneway fail w2");
	cluster_did(c, "AGENT#1", "oneway echo w3");
	cluster_wait(c, 0, "upstream one-way w3 test");
	settled(c, "APP#1");
	cr_expect_eq(cluster_count(c, 0, " result w"), 0);
	cr_expect_eq(cluster_count(c, 0, " error w"), 0);
	cluster_stop(c);
}

Test(cluster_client, more_calls_than_can_wait_are_refused)
{
	struct cluster *c;
	size_t mark, end;
	int i;

	options.response_timeout = 60000;
	c = start(1);
	for (i = 0; i < CLUSTER_CLIENT_CALLS_MAX; i++)
		cluster_order(c, "APP#1", "call hold h1");
	cluster_order(c, "APP#1", "call echo more");
	mark = cluster_wait(c, 0, ":APP#1 did call echo more: No buffer space");
	cr_expect_eq(cluster_count(c, 0, "did call hold h1: yes"), CLUSTER_CLIENT_CALLS_MAX);
	for (i = 0, end = 0; i < CLUSTER_CLIENT_CALLS_MAX; i++)
		end = cluster_wait(c, end, "upstream holds h1");
	cluster_did(c, "AGENT#1", "release");
	for (i = 0; i < CLUSTER_CLIENT_CALLS_MAX; i++)
		mark = cluster_wait(c, mark, ":APP#1 result h1 ");
	settled(c, "APP#1");
	cluster_stop(c);
}

/* ---- ready ------------------------------------------------------------------------------------ */

Test(cluster_client, what_is_said_before_ready_waits)
{
	struct cluster *c;
	const char *who[] = {"APP#1", "AGENT#1"};
	int i;

	start_by_order = true;
	c = start(1);
	for (i = 0; i < 2; i++) {
		cluster_did(c, who[i], "ready yes");
		cluster_did(c, who[i], "sub k a");
		cluster_did(c, who[i], "pub k p");
		cluster_did(c, who[i], "call echo waits");
		cluster_did(c, who[i], "oneway echo alone");
	}
	cr_expect_eq(cluster_count(c, 0, "upstream subscribe"), 0);
	cr_expect_eq(cluster_count(c, 0, "upstream publish"), 0);
	cr_expect_eq(cluster_count(c, 0, "result waits"), 0);
	cluster_did(c, "AGENT#1", "started");
	for (i = 0; i < 2; i++) {
		cluster_wait(c, 0, ":%s ready yes yes", who[i]);
		cluster_wait(c, 0, ":%s result waits 5 waits", who[i]);
		cluster_wait(c, 0, ":%s value a k p", who[i]);
		settled(c, who[i]);
	}
	cr_expect_eq(cluster_count(c, 0, "upstream one-way alone"), 2);
	cr_expect_eq(cluster_count(c, 0, "upstream publish k 1 p"), 2);
	cr_expect_eq(cluster_count(c, 0, "upstream subscribe k"), 1);
	cluster_stop(c);
}

/* D36: egg's follower is dead for good, after its first failure or 30 s without a leader. */
Test(cluster_client, a_start_that_fails_is_an_error_and_is_tried_again)
{
	struct cluster *c;
	size_t end;

	failures = 3;
	options.response_timeout = 60000;
	c = start(1);
	cluster_wait(c, 0, ":APP#1 ready again EREGISTRY");
	cluster_wait(c, 0, ":AGENT#1 ready again EREGISTRY");
	end = cluster_wait(c, 0, "upstream start 4 test");
	cluster_wait(c, end, ":AGENT#1 ready again yes");
	cluster_wait(c, end, ":APP#1 ready again yes");
	settled(c, "APP#1");
	cr_expect_eq(cluster_count(c, 0, "test: the real client did not start"), 3);
	cr_expect_eq(cluster_count(c, 0, "upstream start"), 4);
	cluster_stop(c);
}

Test(cluster_client, a_call_that_waits_for_a_failing_start_fails)
{
	struct cluster *c;

	start_by_order = true;
	c = start(1);
	cluster_did(c, "APP#1", "call echo early");
	cluster_did(c, "AGENT#1", "call echo early");
	cluster_did(c, "AGENT#1", "started-not");
	cluster_wait(c, 0, ":APP#1 error early EREGISTRY no \"registry\" there");
	cluster_wait(c, 0, ":AGENT#1 error early EREGISTRY no \"registry\" there");
	cluster_wait(c, 0, "upstream start 2");
	cluster_did(c, "AGENT#1", "started");
	settled(c, "APP#1");
	cluster_stop(c);
}

/* D36, too: it has tried four times before there is a leader. */
Test(cluster_client, a_follower_waits_for_its_leader_as_long_as_it_takes)
{
	struct cluster *c;

	leader_by_order = true;
	options.response_timeout = 60000;
	c = start(1);
	cluster_did(c, "APP#1", "sub k a");
	cluster_did(c, "APP#1", "call echo patient");
	cluster_wait(c, 0, ":AGENT#1 connection 4");
	cluster_did(c, "AGENT#1", "make");
	cluster_wait(c, 0, ":APP#1 result patient 7 patient");
	cluster_did(c, "AGENT#1", "emit k v1");
	cluster_wait(c, 0, ":APP#1 value a k v1");
	cluster_stop(c);
}

Test(cluster_client, clients_of_two_names_have_two_channels)
{
	struct cluster *c;

	second_client = true;
	c = start(1);
	subscribed(c, "APP#1", "sub k a");
	cluster_did(c, "APP#1", "other-sub k b");
	cluster_did(c, "APP#1", "other-call echo x");
	cluster_wait(c, 0, ":APP#1 result x 1 x");
	cluster_wait(c, 0, "upstream subscribe k test");
	cluster_wait(c, 0, "upstream subscribe k other");
	cluster_did(c, "AGENT#1", "emit k v1");
	cluster_wait(c, 0, ":APP#1 value a k v1");
	settled(c, "APP#1");
	cr_expect_eq(cluster_count(c, 0, "value b"), 0);
	cluster_stop(c);
}

/* ---- deaths ------------------------------------------------------------------------------------- */

Test(cluster_client, when_the_leader_dies_followers_find_the_next)
{
	struct cluster *c;
	size_t mark;

	options.response_timeout = 60000;
	c = start(2);
	subscribed(c, "APP#1", "sub k a");
	subscribed(c, "APP#2", "sub k a");
	cluster_did(c, "APP#1", "pub p mine");
	cluster_did(c, "APP#2", "pub p yours");
	cluster_did(c, "APP#1", "call hold inflight");
	cluster_wait(c, 0, "upstream holds inflight");
	mark = cluster_mark(c);
	cluster_signal(c, "AGENT#1", SIGKILL);
	cluster_wait(c, mark,
	             ":APP#1 error inflight SocketCloseError The leader is gone. "
	             "The call may have been made, or not.");
	cluster_did(c, "APP#1", "call echo meanwhile");
	cluster_did(c, "APP#2", "sub new b");
	cluster_wait(c, mark, ":APP#1 result meanwhile 9 meanwhile");
	settled(c, "APP#2");
	cluster_wait(c, mark, ":AGENT#2 upstream subscribe k test");
	cluster_wait(c, mark, ":AGENT#2 upstream subscribe new test");
	cluster_wait(c, mark, ":AGENT#2 upstream publish p 4 mine test");
	cluster_wait(c, mark, ":AGENT#2 upstream publish p 5 yours test");
	cr_expect_eq(cluster_count(c, mark, "upstream subscribe k"), 1);
	cluster_did(c, "AGENT#2", "emit k v2");
	cluster_wait(c, mark, ":APP#1 value a k v2");
	cluster_wait(c, mark, ":APP#2 value a k v2");
	cr_expect_eq(cluster_count(c, mark, "error"), 1);
	cluster_stop(c);
}

Test(cluster_client, calls_made_without_a_leader_wait_until_their_timeout)
{
	struct cluster *c;
	size_t mark;

	options.response_timeout = 100;
	c = start(1);
	ready(c, "APP#1");
	mark = cluster_mark(c);
	cluster_signal(c, "AGENT#1", SIGSTOP); /* as good as dead, and the socket is there */
	cluster_did(c, "APP#1", "call echo stopped");
	cluster_wait(c, mark, ":APP#1 error stopped ResponseTimeoutError");
	cluster_signal(c, "AGENT#1", SIGKILL);
	cluster_did(c, "APP#1", "call echo dead");
	cluster_wait(c, mark, ":APP#1 error dead ");
	cluster_wait(c, mark, ":AGENT#2 upstream start");
	cluster_wait(c, mark, ":AGENT#2 connection");
	ready(c, "APP#1");
	cluster_stop(c);
}

Test(cluster_client, of_a_dead_follower_nothing_stays)
{
	struct cluster *c = start(2);
	pid_t agent = cluster_pid(c, "AGENT#1");
	size_t mark;
	int before;

	subscribed(c, "APP#1", "sub mine a");
	subscribed(c, "APP#1", "sub ours a");
	subscribed(c, "APP#2", "sub ours a");
	cluster_did(c, "APP#1", "call hold orphan");
	cluster_wait(c, 0, "upstream holds orphan");
	before = process_descriptors(agent);
	mark = cluster_mark(c);
	cluster_signal(c, "APP#1", SIGKILL);
	cluster_wait(c, mark, "upstream unsubscribe mine test");
	settled(c, "APP#3");
	cr_expect_eq(process_descriptors(agent), before);
	cluster_did(c, "AGENT#1", "release"); /* nobody waits for it any more */
	cluster_did(c, "AGENT#1", "emit ours v1");
	cluster_wait(c, mark, ":APP#2 value a ours v1");
	cr_expect_eq(cluster_count(c, 0, "upstream unsubscribe ours"), 0);
	subscribed(c, "APP#3", "sub ours a");
	cluster_wait(c, mark, ":APP#3 value a ours v1");
	cluster_stop(c);
}

/* D37: egg's leader cuts a follower that sent nothing for a minute. This one sends
 * nothing for as long as a call of another one takes to expire. */
Test(cluster_client, a_busy_follower_is_not_cut)
{
	struct cluster *c;
	size_t mark;

	options.response_timeout = 500;
	c = start(2);
	ready(c, "APP#1");
	ready(c, "APP#2");
	cluster_did(c, "APP#1", "sub k a");
	cluster_wait(c, 0, "upstream subscribe k");
	cluster_signal(c, "APP#1", SIGSTOP);
	cluster_did(c, "APP#2", "call hold h1");
	cluster_wait(c, 0, ":APP#2 error h1 ResponseTimeoutError");
	cluster_did(c, "AGENT#1", "emit k v1");
	mark = cluster_mark(c);
	cluster_signal(c, "APP#1", SIGCONT);
	cluster_wait(c, mark, ":APP#1 value a k v1");
	ready(c, "APP#1");
	cr_expect_eq(cluster_count(c, 0, ":AGENT#1 connection "), 2);
	cr_expect_eq(cluster_count(c, 0, "[cluster-client]"), 0);
	cluster_stop(c);
}

/* D37: and nobody looks at a clock, where nobody has asked for anything. */
Test(cluster_client, by_default_there_are_no_heartbeats)
{
	struct cluster_client *leader, *follower;
	struct messenger *messenger;
	int i, pair[2];

	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
	messenger = messenger_open(pair[0], ROLE_AGENT);
	own = messenger;
	leader = cluster_client_leader(messenger, "leader", &real_other, NULL);
	follower = cluster_client_follower(messenger, "follower", &real_other, NULL);
	cr_assert(leader != NULL && follower != NULL);
	for (i = 0; i < 5; i++)
		cr_assert_eq(messenger_step(messenger, 0), 1);
	cr_expect_eq(messenger_timeout(messenger), -1, "a timer in %d ms",
	             messenger_timeout(messenger));
	cluster_client_close(leader);
	cluster_client_close(follower);
	messenger_step(messenger, 0);
	messenger_close(messenger);
	close(pair[1]);
}

Test(cluster_client, with_heartbeats_only_the_silent_one_is_cut)
{
	struct cluster *c;
	size_t mark;

	options.heartbeat_interval = 200 * time_scale();
	c = start(2);
	cluster_did(c, "AGENT#1", "sub k a"); /* it goes on, whoever is cut */
	subscribed(c, "APP#1", "sub k a");
	subscribed(c, "APP#2", "sub k a");
	mark = cluster_mark(c);
	cluster_signal(c, "APP#1", SIGSTOP);
	cluster_wait(c, mark, "was silent for three heartbeats: its connection is closed");
	cluster_signal(c, "APP#1", SIGCONT);
	cluster_did(c, "AGENT#1", "emit k v1");
	cluster_wait(c, mark, ":APP#1 value a k v1"); /* it has come back by itself */
	cluster_wait(c, mark, ":APP#2 value a k v1");
	cluster_stop(c);
}

/* Its start takes longer than three heartbeats, and fails, and the followers wait. */
Test(cluster_client, with_heartbeats_those_that_wait_for_a_start_are_not_cut)
{
	struct cluster *c;
	size_t mark;

	options.heartbeat_interval = 500 * time_scale();
	options.response_timeout = 2500 * time_scale(); /* which is longer than four of them */
	start_by_order = true;
	c = start(1);
	cluster_did(c, "APP#1", "call echo one");
	cluster_wait(c, 0, ":APP#1 error one ResponseTimeoutError");
	cr_expect_eq(cluster_count(c, 0, "was silent"), 0);
	cluster_did(c, "AGENT#1", "started-not");
	mark = cluster_mark(c);
	cluster_did(c, "APP#1", "call echo two");
	cluster_wait(c, mark, ":APP#1 error two ");
	cluster_wait(c, mark, "upstream start 2");
	cluster_did(c, "AGENT#1", "started");
	ready(c, "APP#1");
	cr_expect_eq(cluster_count(c, 0, "was silent"), 0);
	cr_expect_eq(cluster_count(c, 0, ":AGENT#1 connection "), 1);
	cluster_stop(c);
}

/* ---- hostile -------------------------------------------------------------------------------------- */

/* D33: a method that is not listed; D34: an announced length. And all else. */
static void
tell_lies(struct cluster *c, bool registered)
{
	char text[32];
	size_t mark;
	int i;

	for (i = 0; i < LIES; i++) {
		if (!registered && strcmp(lies[i].why, "registered twice") == 0)
			continue; /* there it is none */
		snprintf(text, sizeof text, "raw-open %d", i);
		cluster_did(c, "APP#1", text);
		mark = cluster_mark(c);
		snprintf(text, sizeof text, "raw-register %d", i);
		if (registered) {
			cluster_did(c, "APP#1", text);
			mark = cluster_wait(c, mark, "raw %d hears", i);
		}
		snprintf(text, sizeof text, "raw-lie %d", i);
		cluster_did(c, "APP#1", text);
		cluster_wait(c, mark, ":APP#1 raw %d is closed", i);
		cluster_wait(c, mark, "test: %s %s: its connection is closed",
		             registered ? "follower 4242" : "a follower",
		             registered || i < FORMAT_LIES ? lies[i].why
		                                           : "spoke before it was registered");
	}
	cr_expect_eq(cluster_count(c, 0, "its connection is closed"), registered ? LIES : LIES - 1);
}

Test(cluster_client, a_lie_costs_its_teller_the_connection)
{
	struct cluster *c = start(2);
	int before;

	settled(c, "APP#1");
	subscribed(c, "APP#2", "sub k a");
	before = process_descriptors(cluster_pid(c, "AGENT#1"));
	tell_lies(c, true);
	cluster_did(c, "AGENT#1", "emit k v1");
	cluster_wait(c, 0, ":APP#2 value a k v1");
	settled(c, "APP#1"); /* its other connection is as it was */
	cr_expect_eq(cluster_count(c, 0, ":AGENT#1 connection "), 2 + LIES);
	cr_expect_eq(process_descriptors(cluster_pid(c, "AGENT#1")), before);
	cluster_stop(c);
}

/* D33: in egg whoever finds the port is served. */
Test(cluster_client, only_listed_methods_can_be_called_by_whoever_is_registered)
{
	struct cluster *c = start(1);
	size_t mark;
	int i;

	settled(c, "APP#1");
	for (i = 0; i < LIES && strstr(lies[i].why, "not listed") == NULL;)
		i++;
	cluster_did(c, "APP#1", "raw-open 1");
	cluster_did(c, "APP#1", "raw-subscribe 1");
	cluster_wait(c, 0, "a follower spoke before it was registered: its connection is closed");
	cluster_wait(c, 0, ":APP#1 raw 1 is closed");
	cr_expect_eq(cluster_count(c, 0, "upstream subscribe"), 0);
	mark = cluster_mark(c);
	cluster_did(c, "APP#1", "raw-pipe");
	cluster_did(c, "APP#1", "raw-none");
	settled(c, "APP#1");
	cr_expect_eq(cluster_count(c, mark, "uncaught"), 0);
	cluster_stop(c);
}

/* D34: egg's leader throws at a length of 2 GiB. */
Test(cluster_client, an_announced_length_is_limited)
{
	struct cluster *c = start(1);
	long before, after;

	settled(c, "APP#1");
	before = process_memory(cluster_pid(c, "AGENT#1"));
	tell_lies(c, false);
	settled(c, "APP#1");
	after = process_memory(cluster_pid(c, "AGENT#1"));
	cr_expect(!MEMORY_COUNTS || after - before < GROWTH, "%ld KiB more", after - before);
	cluster_stop(c);
}

Test(cluster_client, a_follower_that_never_reads_costs_only_its_own_connection)
{
	struct cluster *c = start(2);
	size_t mark;
	int i;

	subscribed(c, "APP#2", "sub k a");
	cluster_did(c, "APP#1", "raw-open 1");
	cluster_did(c, "APP#1", "raw-register 1");
	cluster_wait(c, 0, "raw 1 hears");
	cluster_did(c, "APP#1", "raw-subscribe 1");
	cluster_did(c, "APP#1", "raw-deaf 1");
	settled(c, "APP#1");
	for (i = 0; i < 10; i++) {
		mark = cluster_mark(c);
		cluster_did(c, "AGENT#1", "emit-big k 1000000");
		cluster_wait(c, mark, ":APP#2 value a k of 1000000 bytes");
	}
	cluster_wait(c, 0,
	             "test: follower 4242 does not read what it is sent: its connection is "
	             "closed");
	settled(c, "APP#1");
	settled(c, "APP#2");
	cr_expect_eq(cluster_count(c, 0, "its connection is closed"), 1);
	cr_expect_eq(cluster_count(c, 0, "emit-big took"), 0);
	cr_expect(!MEMORY_COUNTS || process_memory(cluster_pid(c, "AGENT#1")) < 16 * 1024);
	cluster_stop(c);
}

/* A program that opens bad connections without an end fills neither the log nor the leader. */
Test(cluster_client, bad_followers_get_a_limited_number_of_lines)
{
	struct cluster *c = start(2);
	int i;

	for (i = 0; i < 12; i++) {
		cluster_did(c, "APP#1", "raw-crowd 8");
		settled(c, "APP#2");
	}
	cluster_wait(c, 0, ":AGENT#1 connection %d", 2 + 12 * 8);
	settled(c, "APP#2");
	cluster_wait(
		c, 0,
		"test: a follower sent a packet of an unknown type: no more lines for a minute");
	cr_expect_eq(cluster_count(c, 0, "[cluster-client]"), 32);
	cluster_stop(c);
}

Test(cluster_client, one_process_leaves_room_for_the_others)
{
	struct cluster *c = start(2);
	char text[32];
	size_t mark;
	int i;

	for (i = 0; i <= CLUSTER_CLIENT_PROCESS_MAX; i++) {
		snprintf(text, sizeof text, "raw-open %d", i);
		cluster_did(c, "APP#1", text);
		mark = cluster_mark(c);
		snprintf(text, sizeof text, "raw-register %d", i);
		cluster_order(c, "APP#1", text);
		cluster_wait(c, mark, ":APP#1 raw %d %s", i,
		             i < CLUSTER_CLIENT_PROCESS_MAX ? "hears" : "is closed");
	}
	cluster_wait(
		c, 0,
		"test: follower 4242 is one too many of its process: its connection is closed");
	settled(c, "APP#1");
	settled(c, "APP#2");
	cr_expect_eq(cluster_count(c, 0, "[cluster-client]"), 1);
	cluster_stop(c);
}

/* Connections that never say to which process they belong: the oldest one goes. */
Test(cluster_client, who_does_not_register_makes_room)
{
	struct cluster *c = start(2);
	char text[32];
	int i;

	settled(c, "APP#1");
	settled(c, "APP#2");
	for (i = 0; i < 66; i++) {
		snprintf(text, sizeof text, "raw-open %d", i);
		cluster_did(c, "APP#1", text);
		cluster_wait(c, 0, ":AGENT#1 connection %d", 2 + i + 1);
	}
	cluster_wait(c, 0, ":APP#1 raw 1 is closed");
	cr_expect_eq(cluster_count(c, 0, ":APP#1 raw 0 is closed"), 1);
	settled(c, "APP#1");
	settled(c, "APP#2");
	cr_expect_eq(cluster_count(c, 0, "is closed"), 4); /* two, and a line for each */
	cluster_stop(c);
}

/* A key and its value are one message, or, where they are too long for one, two. */
Test(cluster_client, the_longest_key_may_have_the_longest_value)
{
	const long sizes[] = {0, 1, CLUSTER_CLIENT_DATA_MAX - CLUSTER_CLIENT_KEY_MAX - 1,
	                      CLUSTER_CLIENT_DATA_MAX - CLUSTER_CLIENT_KEY_MAX,
	                      CLUSTER_CLIENT_DATA_MAX};
	struct cluster *c = start(2);
	const char *who[] = {"APP#1", "APP#2", "AGENT#1"};
	char text[32];
	size_t mark;
	int i, j;

	for (i = 0; i < 3; i++)
		cluster_did(c, who[i], "long-sub");
	settled(c, "APP#1");
	settled(c, "APP#2");
	for (i = 0; i < 5; i++) {
		mark = cluster_mark(c);
		snprintf(text, sizeof text, "long-pub x %ld", sizes[i]);
		cluster_did(c, i % 2 == 0 ? "APP#2" : "AGENT#1", text);
		for (j = 0; j < 3; j++)
			cluster_wait(c, mark, ":%s long value of %ld bytes", who[j], sizes[i]);
	}
	cr_expect_eq(cluster_count(c, 0, "[cluster-client]"), 0);
	cluster_stop(c);
}

Test(cluster_client, a_follower_that_subscribes_to_too_much_costs_only_its_own_connection)
{
	struct cluster *c = start(2);
	size_t mark;

	subscribed(c, "APP#2", "sub k a");
	cluster_did(c, "APP#1", "raw-open 1");
	cluster_did(c, "APP#1", "raw-register 1");
	mark = cluster_wait(c, 0, "raw 1 hears");
	cluster_order(c, "APP#1", "raw-full 1");
	cluster_did(c, "APP#1", "raw-again 1"); /* a further listener of a key that it has */
	subscribed(c, "APP#2", "sub more a");
	cr_expect_eq(cluster_count(c, mark, "raw 1 is closed"), 0);
	cluster_order(c, "APP#1", "raw-greedy 1");
	cluster_wait(c, mark,
	             "follower 4242 subscribed to too many keys: its connection is closed");
	cluster_wait(c, mark, ":APP#1 raw 1 is closed");
	subscribed(c, "APP#2", "sub other a");
	cluster_did(c, "AGENT#1", "emit k v1");
	cluster_wait(c, mark, ":APP#2 value a k v1");
	cluster_stop(c);
}

Test(cluster_client, a_leader_that_breaks_the_protocol_is_left_for_the_next)
{
	struct cluster *c;

	agent_is_hostile = true;
	options.response_timeout = 60000;
	c = start(1);
	cluster_did(c, "APP#1", "call echo patient");
	cluster_wait(c, 0, ":APP#1 result patient 7 patient");
	cr_expect_geq(cluster_count(c, 0,
	                            "test: the leader broke the protocol: "
	                            "connecting again"),
	              1);
	cluster_stop(c);
}

/* ---- nothing leaks ------------------------------------------------------------------------------ */

Test(cluster_client, thousands_of_subscriptions_leave_nothing)
{
	struct cluster *c = start(1);
	pid_t app = cluster_pid(c, "APP#1"), agent = cluster_pid(c, "AGENT#1");
	long app_before = 0, agent_before = 0, app_grown, agent_grown;
	size_t mark;
	int i;

	settled(c, "APP#1");
	for (i = 0; i < 4; i++) {
		if (i == 1) {
			app_before = process_memory(app);
			agent_before = process_memory(agent);
		}
		mark = cluster_mark(c);
		cluster_order(c, "APP#1", "churn 2000");
		cluster_wait(c, mark, ":APP#1 result churned");
		cluster_did(c, "AGENT#1", "churn 2000");
	}
	app_grown = process_memory(app) - app_before;
	agent_grown = process_memory(agent) - agent_before;
	cr_expect(!MEMORY_COUNTS || app_grown < GROWTH, "app: %ld KiB", app_grown);
	cr_expect(!MEMORY_COUNTS || agent_grown < GROWTH, "agent: %ld KiB", agent_grown);
	cr_expect_eq(cluster_count(c, 0, "upstream subscribe churn-1999 "), 8);
	cr_expect_eq(cluster_count(c, 0, "upstream unsubscribe churn-1999 "), 8);
	cluster_stop(c);
}

Test(cluster_client, hundreds_of_clients_leave_nothing)
{
	struct cluster *c = start(1);
	pid_t app = cluster_pid(c, "APP#1"), agent = cluster_pid(c, "AGENT#1");
	int app_before, agent_before;
	size_t mark;

	subscribed(c, "APP#1", "sub k a");
	app_before = process_descriptors(app);
	agent_before = process_descriptors(agent);
	mark = cluster_mark(c);
	cluster_order(c, "APP#1", "renew 300");
	cluster_wait(c, mark, ":APP#1 renewed");
	settled(c, "APP#1");
	cr_expect_eq(cluster_count(c, 0, ":AGENT#1 connection"), 301);
	cr_expect_eq(process_descriptors(app), app_before);
	cr_expect_leq(process_descriptors(agent), agent_before + 1); /* one may be on its way */
	cluster_stop(c);
}

/* ---- close ------------------------------------------------------------------------------------------ */

Test(cluster_client, closing_a_follower_calls_back_who_waits_and_nobody_later)
{
	struct cluster *c = start(1);
	size_t mark;

	subscribed(c, "APP#1", "sub k a");
	cluster_did(c, "APP#1", "call hold h1");
	cluster_wait(c, 0, "upstream holds h1");
	mark = cluster_did(c, "APP#1", "close");
	cluster_wait(c, 0, ":APP#1 error h1 ClusterClientCloseError This client was closed.");
	cluster_wait(c, 0, "upstream unsubscribe k test");
	cluster_did(c, "AGENT#1", "release");
	cluster_did(c, "APP#1", "make");
	settled(c, "APP#1");
	cr_expect_eq(cluster_count(c, mark, " value "), 0);
	cr_expect_eq(cluster_count(c, mark, "h1"), 0);
	cluster_stop(c);
}

Test(cluster_client, closing_the_leader_makes_followers_wait_for_the_next)
{
	struct cluster *c;

	options.response_timeout = 60000;
	c = start(1);
	subscribed(c, "APP#1", "sub k a");
	cluster_did(c, "APP#1", "call hold h2");
	cluster_wait(c, 0, "upstream holds h2");
	cluster_did(c, "AGENT#1", "call hold h1");
	cluster_did(c, "AGENT#1", "ready never");
	cluster_did(c, "AGENT#1", "close");
	cluster_wait(c, 0, ":AGENT#1 error h1 ClusterClientCloseError");
	cluster_wait(c, 0, "upstream close test");
	cluster_wait(c, 0, ":APP#1 error h2 SocketCloseError"); /* it has noticed */
	cluster_did(c, "AGENT#1", "release"); /* a call that outlived its client */
	cluster_did(c, "APP#1", "call echo x");
	cluster_did(c, "AGENT#1", "make");
	cluster_wait(c, 0, ":APP#1 result x 1 x");
	cluster_did(c, "AGENT#1", "emit k v1");
	cluster_wait(c, 0, ":APP#1 value a k v1");
	cluster_stop(c);
}

Test(cluster_client, a_listener_may_close_its_client)
{
	struct cluster *c = start(1);

	subscribed(c, "APP#1", "sub k closes");
	subscribed(c, "APP#1", "sub k never");
	cluster_did(c, "AGENT#1", "sub k closes");
	cluster_did(c, "AGENT#1", "sub k never");
	cluster_did(c, "AGENT#1", "emit k v1");
	cluster_wait(c, 0, ":APP#1 value closes k v1");
	cluster_wait(c, 0, ":AGENT#1 value closes k v1");
	cluster_did(c, "APP#1", "make");
	cluster_did(c, "AGENT#1", "make");
	settled(c, "APP#1");
	cr_expect_eq(cluster_count(c, 0, "value never"), 0);
	cluster_stop(c);
}

/* Of those who wait for ready, one closes the client: the next hears of the close. */
Test(cluster_client, a_ready_callback_may_close_its_client)
{
	const char *who[] = {"APP#1", "AGENT#1"};
	struct cluster *c = start(1);
	int i;

	settled(c, "APP#1");
	for (i = 0; i < 2; i++) {
		cluster_order(c, who[i], "three-ready");
		cluster_wait(c, 0, ":%s ready first yes", who[i]);
		cluster_wait(c, 0, ":%s ready closes yes", who[i]);
		cluster_wait(c, 0, ":%s ready last ClusterClientCloseError", who[i]);
	}
	cluster_stop(c);
}

/* A follower with two keys is gone; at the first of them the real client closes its leader. It
 * has been told that close is the last call. */
Test(cluster_client, a_real_client_may_close_its_leader_when_it_unsubscribes)
{
	struct cluster *c = start(1);
	size_t mark;

	subscribed(c, "APP#1", "sub fatal-1 a");
	subscribed(c, "APP#1", "sub fatal-2 a");
	cluster_did(c, "APP#1", "close");
	mark = cluster_wait(c, 0, ":AGENT#1 upstream close test");
	cluster_did(c, "AGENT#1", "make");
	cr_expect_eq(cluster_count(c, 0, "upstream unsubscribe fatal"), 1);
	cr_expect_eq(cluster_count(c, mark, "upstream unsubscribe"), 0);
	cluster_stop(c);
}

/* The tick that frees a closed client must not come while it is being closed. */
Test(cluster_client, a_real_client_may_turn_the_loop_when_it_is_closed)
{
	struct cluster *c;

	turns_in_close = true;
	c = start(1);
	cluster_did(c, "AGENT#1", "sub k a");
	cluster_order(c, "AGENT#1", "emit-and-leave k");
	cluster_wait(c, 0, ":AGENT#1 upstream close test");
	cr_assert_str_eq(cluster_wait_end(c, "AGENT#1"), "code: 0, signal: null");
	cluster_wait(c, 0, ":AGENT#2 connection 1");
	settled(c, "APP#1");
	cluster_stop(c);
}

/* ---- callbacks that add what is being gone through ------------------------------------------------- */

/* When it is added, the last value is v2: v1, which is being delivered, is not for it. */
Test(cluster_client, a_listener_that_is_added_by_another_hears_the_last_value_alone)
{
	struct cluster *c = start(1);

	cluster_did(c, "AGENT#1", "sub k adds");
	cluster_did(c, "AGENT#1", "emit-two k");
	cluster_wait(c, 0, ":AGENT#1 value added k v2");
	cluster_did(c, "AGENT#1", "unsub-all k");
	cr_expect_eq(cluster_count(c, 0, "value added k v1"), 0);
	cluster_stop(c);
}

/* What has no end takes turns with all the rest. */
static void
expect_turns(const char *first, const char *second, const char *sign)
{
	struct cluster *c = start(1);
	size_t mark;

	settled(c, "APP#1");
	cluster_did(c, "AGENT#1", first);
	cluster_order(c, "AGENT#1", second);
	cluster_wait(c, cluster_wait(c, 0, "%s", sign), "%s", sign);
	mark = cluster_mark(c);
	cluster_did(c, "AGENT#1", "close");
	cluster_did(c, "AGENT#1", "make");
	cluster_wait(c, mark, ":AGENT#1 connection"); /* the app has seen the end of the first */
	settled(c, "APP#1");
	cluster_stop(c);
}

Test(cluster_client, a_listener_that_adds_itself_at_each_value_stops_nobody)
{
	expect_turns("sub k grows", "emit k v1", "value grows k v1");
}

Test(cluster_client, a_listener_that_emits_at_each_value_stops_nobody)
{
	expect_turns("sub k emits", "emit k v1", "value emits k v1");
}

Test(cluster_client, a_callback_that_calls_at_each_result_stops_nobody)
{
	expect_turns("ready now", "call echo forever", "result forever");
}

Test(cluster_client, who_leaves_closes_its_clients)
{
	struct cluster *c = start(1);

	settled(c, "APP#1");
	cluster_order(c, "AGENT#1", "call hold h1");
	cluster_wait(c, 0, "upstream holds h1");
	cluster_signal(c, "AGENT#1", SIGTERM);
	cluster_wait(c, 0, ":AGENT#1 upstream close test");
	cluster_wait(c, 0, ":AGENT#1 error h1 ClusterClientCloseError");
	cluster_wait(c, 0, ":AGENT#2 connection 1");
	settled(c, "APP#1");
	cluster_stop(c);
}

Test(cluster_client, a_listener_that_fails_is_an_uncaught_error)
{
	struct cluster *c = start(1);
	size_t mark;

	cluster_did(c, "AGENT#1", "sub k throws");
	subscribed(c, "APP#1", "sub k throws");
	mark = cluster_mark(c);
	cluster_did(c, "AGENT#1", "emit k v1");
	cluster_wait(c, mark, "[agent_worker] uncaught error 7");
	cluster_wait(c, mark, "[app_worker] uncaught error 7");
	settled(c, "APP#2");
	cluster_stop(c);
}

/* ---- the caller's errors, without a cluster ------------------------------------------------------------ */

Test(cluster_client, wrong_arguments_change_nothing)
{
	static const struct real_client nothing = {.methods = NULL};
	static const char big[CLUSTER_CLIENT_DATA_MAX + 1];
	char name[CLUSTER_CLIENT_KEY_MAX + 2];
	struct cluster_client *one, *two;
	struct messenger *messenger;
	int i, pair[2];

	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
	messenger = messenger_open(pair[0], ROLE_APP);
	own = messenger;
	memset(name, 'n', sizeof name);
	name[sizeof name - 1] = '\0';
#define refuses(call, number)                                                                      \
	do {                                                                                       \
		errno = 0;                                                                         \
		cr_expect((call), #call);                                                          \
		cr_expect_eq(errno, number, #call ": %s", strerror(errno));                        \
	} while (0)
	refuses(cluster_client_follower(messenger, NULL, &real, NULL) == NULL, EINVAL);
	refuses(cluster_client_follower(messenger, "", &real, NULL) == NULL, EINVAL);
	refuses(cluster_client_follower(messenger, name, &real, NULL) == NULL, EINVAL);
	one = cluster_client_follower(messenger, "one", &real, NULL);
	two = cluster_client_follower(messenger, "two", &nothing, NULL);
	cr_assert(one != NULL && two != NULL);
	refuses(cluster_client_follower(messenger, "one", &real, NULL) == NULL, EEXIST);
	refuses(cluster_client_subscribe(one, NULL, on_value, NULL) == -1, EINVAL);
	refuses(cluster_client_subscribe(one, "", on_value, NULL) == -1, EINVAL);
	refuses(cluster_client_subscribe(one, name, on_value, NULL) == -1, EINVAL);
	refuses(cluster_client_subscribe(one, "k", NULL, NULL) == -1, EINVAL);
	refuses(cluster_client_subscribe(two, "k", on_value, NULL) == -1, ENOSYS);
	refuses(cluster_client_unsubscribe(one, "k", NULL, NULL) == -1, ENOENT);
	refuses(cluster_client_publish(one, "", "", 0) == -1, EINVAL);
	refuses(cluster_client_publish(one, "k", big, sizeof big) == -1, EMSGSIZE);
	refuses(cluster_client_publish(two, "k", "", 0) == -1, ENOSYS);
	refuses(cluster_client_invoke(one, "echo", "", 0, NULL, NULL) == -1, EINVAL);
	refuses(cluster_client_invoke(one, "none", "", 0, on_result, NULL) == -1, ENOSYS);
	refuses(cluster_client_invoke(two, "echo", "", 0, on_result, NULL) == -1, ENOSYS);
	refuses(cluster_client_invoke(one, "echo", big, sizeof big, on_result, NULL) == -1,
	        EMSGSIZE);
	refuses(cluster_client_invoke_oneway(one, "none", "", 0) == -1, ENOSYS);
	refuses(cluster_client_emit(one, "k", "", 0) == -1, ENOENT);
	for (i = 0; i < CLUSTER_CLIENT_KEYS_MAX; i++) {
		snprintf(name, sizeof name, "greedy%d", i);
		cr_assert_eq(cluster_client_subscribe(one, name, on_value, NULL), 0);
	}
	refuses(cluster_client_subscribe(one, "k", on_value, NULL) == -1, ENOBUFS);
	refuses(cluster_client_publish(one, "k", "", 0) == -1, ENOBUFS);
	cr_expect_eq(cluster_client_publish(one, name, "", 0), 0);
	cr_expect_eq(cluster_client_reply(NULL, "", 0), 0);
	cr_expect_eq(cluster_client_fail(NULL, NULL, NULL), 0);
	cluster_client_close(NULL);
	cluster_client_close(one);
	refuses(cluster_client_ready(one, on_client_ready, NULL) == -1, EPIPE);
	refuses(cluster_client_subscribe(one, "k", on_value, NULL) == -1, EPIPE);
	refuses(cluster_client_publish(one, "k", "", 0) == -1, EPIPE);
	refuses(cluster_client_invoke(one, "echo", "", 0, on_result, NULL) == -1, EPIPE);
	cluster_client_close(two);
	cr_expect_eq(messenger_step(messenger, 0), 1); /* both are freed */
	messenger_close(messenger);
	close(pair[1]);
}

/* ---- the example ------------------------------------------------------------------------------------------- */

Test(cluster_client, the_registry_example_ends_by_itself)
{
	const char *build = getenv("BUILD");
	char command[512], line[512];
	int lists = 0, steps = 0;
	FILE *output;

	snprintf(command, sizeof command, "%s/examples/registry 2>&1",
	         build != NULL ? build : "build");
	clear_environment();
	output = popen(command, "r");
	cr_assert_not_null(output);
	while (fgets(line, sizeof line, output) != NULL) {
		lists += strstr(line, "is [\"10.0.0.") != NULL;
		steps += strncmp(line, "-- ", 3) == 0;
	}
	cr_expect_eq(pclose(output), 0);
	cr_expect_eq(steps, 3);
	cr_expect_geq(lists, 7); /* three see all, one comes back, three see all again */
}

/* All that an example prints until it ends. */
static const char *
output_of(const char *name)
{
	static char text[64 * 1024];
	const char *build = getenv("BUILD");
	char command[512];
	FILE *output;

	snprintf(command, sizeof command, "%s/examples/%s 2>&1", build != NULL ? build : "build",
	         name);
	clear_environment();
	output = popen(command, "r");
	cr_assert_not_null(output);
	text[fread(text, 1, sizeof text - 1, output)] = '\0';
	cr_expect_eq(pclose(output), 0, "%s", text);
	return text;
}

/* An app is ready when its client is; getConfig answers what was published. */
Test(cluster_client, the_registry_example_answers_what_was_published)
{
	static const char answer[] = "getConfig says [\"dubbo://10.0.0.";
	const char *text = output_of("registry"), *at = text, *ready, *started;
	int answers = 0;

	ready = strstr(text, "app 0: registry client is ready");
	started = strstr(text, "app_worker#1:");
	while (started != NULL && strncmp(started + strcspn(started, " \n"), " started", 8) != 0)
		started = strstr(started + 1, "app_worker#1:");
	cr_assert(ready != NULL && started != NULL, "%s", text);
	cr_expect_lt(ready, started);
	for (; (at = strstr(at, answer)) != NULL; at++)
		answers++;
	cr_expect_geq(answers, 4, "%s", text); /* three apps, and the one that came back */
	cr_expect_null(strstr(text, "getConfig says [\"10."));
}

/* Each app asks once, and then hears each change. */
Test(cluster_client, the_api_client_example_asks_once_for_each_app)
{
	const char *text = output_of("api_client");

	cr_expect_not_null(strstr(text, "is its question 2\n"), "%s", text);
	cr_expect_null(strstr(text, "is its question 3"), "%s", text);
	cr_expect_not_null(strstr(text, "app 0: limits is {\"limits\":5}, from its cache\n"));
	cr_expect_not_null(strstr(text, "app 1: limits is {\"limits\":5}, from its cache\n"));
}

/* In a process group of its own, which an alarm kills: nothing outlives a failed test. */
static pid_t registry;
static volatile sig_atomic_t late;

static void
on_alarm(int number)
{
	(void)number;
	late = 1;
	kill(-registry, SIGKILL);
}

/* What it and its cluster print can be read from there. */
static FILE *
start_registry(const char *argument)
{
	const char *build = getenv("BUILD");
	char path[512];
	int ends[2];

	snprintf(path, sizeof path, "%s/examples/registry", build != NULL ? build : "build");
	clear_environment();
	cr_assert(pipe(ends) == 0);
	registry = fork();
	cr_assert(registry != -1);
	if (registry == 0) {
		setpgid(0, 0);
		dup2(ends[1], STDOUT_FILENO);
		dup2(ends[1], STDERR_FILENO);
		close(ends[0]), close(ends[1]);
		execl(path, path, argument, (char *)NULL);
		_exit(127);
	}
	setpgid(registry, registry);
	close(ends[1]);
	signal(SIGALRM, on_alarm);
	alarm((unsigned)time_limit() / 1000 + 1);
	return fdopen(ends[0], "r");
}

/* The end of the pipe is the end of all who hold it. */
Test(cluster_client, the_registry_example_ends_with_its_parent)
{
	FILE *output = start_registry(NULL);
	char line[512];
	int status;

	while (fgets(line, sizeof line, output) != NULL)
		if (strstr(line, "has connected") != NULL)
			kill(registry, SIGKILL);
	cr_expect(!late, "its cluster runs on");
	cr_expect_eq(waitpid(registry, &status, 0), registry);
	cr_expect(WIFSIGNALED(status));
	fclose(output);
}

Test(cluster_client, the_registry_example_has_no_arguments)
{
	FILE *output = start_registry("x");
	char line[512] = "";
	int status;

	cr_expect_not_null(fgets(line, sizeof line, output));
	cr_expect_eq(strncmp(line, "usage: registry", 15), 0, "%s", line);
	cr_expect_null(fgets(line, sizeof line, output));
	cr_expect_eq(waitpid(registry, &status, 0), registry);
	cr_expect(WIFEXITED(status) && WEXITSTATUS(status) == 64);
	fclose(output);
}
