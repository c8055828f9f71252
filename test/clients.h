/*
 * Leader and followers in live clusters. The real client is a part of the tests: it
 * reports each call ("upstream subscribe k"), and obeys orders.
 *
 * The test orders a process to use its client, and waits for the process's reports:
 *
 * 	order(c, "APP#1", "sub k a");           subscribe to k with a listener named a
 * 	order(c, "AGENT#1", "emit k v1");
 * 	cluster_wait(c, 0, ":APP#1 value a k v1");
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#ifndef CLIENTS_H
#define CLIENTS_H

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

/* ---- what a test sets, before it starts the cluster -------------------------------------- */

static struct cluster_client_options options; /* of every client */
static int failures;                          /* of the real client's start, before it succeeds */
static bool start_by_order;                   /* the real client is ready when the test says so */
static bool leader_by_order;                  /* there is no leader until then */
static bool second_client;                    /* named "other", in each process */
static bool agent_is_hostile;
static bool turns_in_close; /* the real client turns the loop when it is closed */

/* ---- in the cluster's processes ---------------------------------------------------------- */

enum { CALLS = CLUSTER_CLIENT_CALLS_MAX + 8, TAGS = 32, RAWS = 80 };

static struct messenger *own;
static struct cluster_client *client, *other;
static struct cluster_call *held[CALLS];
static int held_count, starts, registrations;
static struct channel raw[RAWS]; /* a hostile app's ends, by number */

/* A name of a listener or a call, which lives as long as the process. */
static inline char *
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

static inline void
real_ready(struct cluster_client *leader, void *arg)
{
	report(own, "upstream start %d %s", ++starts, (const char *)arg);
	if (!start_by_order)
		cluster_client_started(leader, starts <= failures ? &not_there : NULL);
}

static inline void
real_subscribe(struct cluster_client *leader, const char *key, void *arg)
{
	if (strncmp(key, "greedy", 6) == 0 || strncmp(key, "kkkk", 4) == 0)
		return;
	report(own, "upstream subscribe %s %s", key, (const char *)arg);
	if (strcmp(key, "at-once") == 0) /* this key has a value at once */
		cluster_client_emit(leader, key, "now", 3);
}

static inline void
real_unsubscribe(struct cluster_client *leader, const char *key, void *arg)
{
	if (strncmp(key, "greedy", 6) == 0)
		return;
	report(own, "upstream unsubscribe %s %s", key, (const char *)arg);
	if (strncmp(key, "fatal", 5) == 0)
		cluster_client_close(leader);
}

static inline void
real_publish(struct cluster_client *leader, const char *key, const char *data, size_t length,
             void *arg)
{
	if (strncmp(key, "kkkk", 4) != 0)
		report(own, "upstream publish %s %zu %s %s", key, length, data, (const char *)arg);
	cluster_client_emit(leader, key, data, length);
}

static inline void
real_close(struct cluster_client *leader, void *arg)
{
	int turns;

	(void)leader;
	for (turns = turns_in_close ? 3 : 0; turns > 0; turns--)
		messenger_step(own, 0);
	report(own, "upstream close %s", (const char *)arg);
}

static inline void
echo(struct cluster_client *leader, struct cluster_call *call, const char *data, size_t length,
     void *arg)
{
	(void)leader;
	if (call == NULL)
		report(own, "upstream one-way %s %s", data, (const char *)arg);
	cluster_client_reply(call, data, length);
}

static inline void
fail_it(struct cluster_client *leader, struct cluster_call *call, const char *data, size_t length,
        void *arg)
{
	(void)leader, (void)length, (void)arg;
	cluster_client_fail(call, "ENOTFOUND", data);
}

/* The orders "release" and "release-late" answer the call. */
static inline void
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

/* A method of the real client that calls the client it belongs to. */
static inline void
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

static inline int
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

static inline int
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

static inline int
on_client_ready(struct cluster_client *from, const struct cluster_error *error, void *arg)
{
	report(own, "ready %s %s", (const char *)arg, error != NULL ? error->code : "yes");
	if (error != NULL && strcmp(arg, "again") == 0)
		cluster_client_ready(from, on_client_ready, arg);
	if (strcmp(arg, "closes") == 0)
		cluster_client_close(from);
	return 0;
}

static inline void
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

static inline void
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

static inline int
on_long(struct cluster_client *from, const char *key, const char *data, size_t length, void *arg)
{
	(void)from, (void)arg;
	if (strlen(key) == CLUSTER_CLIENT_KEY_MAX && strspn(key, "k") == strlen(key) &&
	    strlen(data) == length)
		report(own, "long value of %zu bytes", length);
	return 0;
}

/* Listen to the longest key, or publish `size` bytes under it. */
static inline int
use_long(const char *word, const char *data, size_t size)
{
	char key[CLUSTER_CLIENT_KEY_MAX + 1] = "";

	memset(key, 'k', sizeof key - 1);
	if (strcmp(word, "long-sub") == 0)
		return cluster_client_subscribe(client, key, on_long, NULL);
	return cluster_client_publish(client, key, data, size);
}

/* Use a value or an argument of `size` bytes. The agent reports a call that takes its time. */
static inline void
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

/* Subscribe `count` keys, and unsubscribe them again. Channels are first in, first out, so the
 * leader has heard all of this when it answers the call that follows. */
static inline void
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

static inline int
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

/* A message, and the leader's complaint about it. Without an action, data is raw bytes. */
static const struct lie {
	const char *why;
	const char *action;
	const char *data;
	size_t length;
	pid_t id;
	enum role to;
} lies[] = {
	/* the announced lengths: 2 GiB, 4 GiB, 2 MiB with an action of 9 bytes, nothing */
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
	/* the packets above have a wrong form, and those below a wrong content */
	{"registered twice", "register_channel", "4242 3000", 9, 0, 0},
	{"gave an answer that nobody asked for", "invoke_result", NULL, 0, 1, 0},
	{"gave an answer that nobody asked for", "subscribe_result", "k", 2, 0, 0},
	{"called a method that is not listed", "invoke", "close", 6, 1, 0},
	{"called a method that is not listed", "invoke", "constructor", 12, 0, 0},
};

enum { LIES = sizeof lies / sizeof lies[0], FORMAT_LIES = LIES - 5 };

/* A hostile end writes its frames itself, and only counts the frames that it hears. */
static inline void
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

static inline int
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

static inline int
send_handle(int handle)
{
	return messenger_send_message(own, &(struct message){.action = "cluster-client:test",
	                                                     .to = ROLE_AGENT,
	                                                     .handle = handle});
}

static inline int
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

/* Subscribe as many keys as a connection may have, and `more` keys. */
static inline void
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

/* Make `count` connections, each of which tells a lie. */
static inline int
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

static inline int
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

/* This runs in a timer, so that the client has something left to do in the next turn. */
static inline int
emit_and_leave(struct messenger *agent, void *key)
{
	(void)agent;
	return cluster_client_emit(client, key, "last", 4) == -1 || raise(SIGTERM) != 0;
}

/* "WORD A B REST" */
static inline int
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

/* In the agent: report that an app asks for a connection. A hostile agent takes it. */
static inline int
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

static inline int
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

/* ---- in the test ------------------------------------------------------------------------- */

static inline struct cluster *
start_with_defaults(int workers)
{
	struct cluster *c =
		cluster_start(&(struct options){.agent = role, .app = role, .workers = workers});

	cluster_ready(c);
	return c;
}

/* A call may take as long as a wait, because three seconds are too short on a busy machine. */
static inline struct cluster *
start(int workers)
{
	if (options.response_timeout == 0)
		options.response_timeout = time_limit();
	return start_with_defaults(workers);
}

/* Wait until the leader has heard all that the process has said until now. */
static inline size_t
settled(struct cluster *c, const char *who)
{
	size_t mark = cluster_mark(c);

	cluster_order(c, who, "call echo settled");
	return cluster_wait(c, mark, ":%s result settled 7 settled", who);
}

static inline void
subscribed(struct cluster *c, const char *who, const char *text)
{
	cluster_did(c, who, text);
	settled(c, who);
}

#endif
