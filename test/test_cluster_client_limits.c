/*
 * Leader and followers: hostile processes, limits, and the errors of a caller.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "clients.h"

TestSuite(cluster_client, .timeout = 120);

enum { MEBIBYTE = 1024 * 1024, GROWTH = 1024 /* KiB */ };

/* ---- hostile ----------------------------------------------------------------------------- */

/* Tell all lies, also D33 (a method that is not listed) and D34 (an announced length). */
static void
tell_lies(struct cluster *c, bool registered)
{
	char text[32];
	size_t mark;
	int i;

	for (i = 0; i < LIES; i++) {
		if (!registered && strcmp(lies[i].why, "registered twice") == 0)
			continue; /* this is the first registration, so it is no lie */
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
	settled(c, "APP#1"); /* the app's honest connection still works */
	cr_expect_eq(cluster_count(c, 0, ":AGENT#1 connection "), 2 + LIES);
	cr_expect_eq(process_descriptors(cluster_pid(c, "AGENT#1")), before);
	cluster_stop(c);
}

/* D33: egg serves any process that finds the port. */
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
	cr_expect(!MEMORY_COUNTS || after - before < GROWTH,
	          "the agent's memory has grown by %ld KiB", after - before);
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

/* Of too many connections that never register, the oldest one is closed. */
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
	cr_expect_eq(cluster_count(c, 0, "is closed"), 4); /* two ends, and two lines */
	cluster_stop(c);
}

/* A key and its value travel in one message, or in two if they are too long for one. */
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
	cluster_did(c, "APP#1", "raw-again 1"); /* another listener for the same key */
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

/* ---- nothing leaks ----------------------------------------------------------------------- */

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
	cr_expect(!MEMORY_COUNTS || app_grown < GROWTH, "the app's memory has grown by %ld KiB",
	          app_grown);
	cr_expect(!MEMORY_COUNTS || agent_grown < GROWTH, "the agent's memory has grown by %ld KiB",
	          agent_grown);
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

/* ---- the caller's errors, without a cluster ---------------------------------------------- */

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
