/*
 * Leader and followers: subscriptions, calls, deaths and the close.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "clients.h"

TestSuite(cluster_client, .timeout = 120);

/* ---- in the test ------------------------------------------------------------------------- */

/* Wait until the process's client is ready. No call is made, so calls may time out soon. */
static void
ready(struct cluster *c, const char *who)
{
	size_t mark = cluster_mark(c);

	cluster_did(c, who, "ready now");
	cluster_wait(c, mark, ":%s ready now yes", who);
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
	subscribed(c, "AGENT#1", "sub k late"); /* no old value is repeated */
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

/* ---- invoke ------------------------------------------------------------------------------ */

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
	cluster_wait(c, 0, ":APP#1 error h4 "); /* now h1 is too old for the leader, too */
	cluster_did(c, "AGENT#1", "release");
	cluster_wait(c, 0, ":AGENT#1 result h2 2 r2"); /* calls in the leader do not time out */
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
	settled(c, "APP#1"); /* a later call is answered first */
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

/* ---- ready ------------------------------------------------------------------------------- */

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

/* D36: egg's follower never works again after its first failure or 30 s without a leader. */
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
	cluster_did(c, "APP#1", "ready again"); /* the app may hear of the first start once more */
	cluster_did(c, "AGENT#1", "started");
	cluster_wait(c, 0, ":APP#1 ready again yes");
	settled(c, "APP#1");
	cluster_stop(c);
}

/* D36, too: the follower has tried four times before there is a leader. */
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

/* ---- deaths ------------------------------------------------------------------------------ */

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
	cluster_signal(c, "AGENT#1", SIGSTOP); /* the socket stays open, but no answer comes */
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
	cluster_did(c, "AGENT#1", "release"); /* no process waits for this answer */
	cluster_did(c, "AGENT#1", "emit ours v1");
	cluster_wait(c, mark, ":APP#2 value a ours v1");
	cr_expect_eq(cluster_count(c, 0, "upstream unsubscribe ours"), 0);
	subscribed(c, "APP#3", "sub ours a");
	cluster_wait(c, mark, ":APP#3 value a ours v1");
	cluster_stop(c);
}

/* D37: egg's leader cuts a follower that sent nothing for a minute. The stopped follower here
 * sends nothing until a call of another follower has expired. */
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

/* D37: without a call and without heartbeats there is no timer. */
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
	cr_expect_eq(messenger_timeout(messenger), -1, "a timer is set, which is due in %d ms",
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
	cluster_did(c, "AGENT#1", "sub k a"); /* the leader has a listener of its own */
	subscribed(c, "APP#1", "sub k a");
	subscribed(c, "APP#2", "sub k a");
	mark = cluster_mark(c);
	cluster_signal(c, "APP#1", SIGSTOP);
	cluster_wait(c, mark, "was silent for three heartbeats: its connection is closed");
	cluster_signal(c, "APP#1", SIGCONT);
	cluster_did(c, "AGENT#1", "emit k v1");
	cluster_wait(c, mark, ":APP#1 value a k v1"); /* the follower has come back by itself */
	cluster_wait(c, mark, ":APP#2 value a k v1");
	cluster_stop(c);
}

/* The start of the leader takes longer than three heartbeats and fails, while followers wait. */
Test(cluster_client, with_heartbeats_those_that_wait_for_a_start_are_not_cut)
{
	struct cluster *c;
	size_t mark;

	options.heartbeat_interval = 500 * time_scale();
	options.response_timeout = 2500 * time_scale(); /* longer than four heartbeats */
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

/* ---- close ------------------------------------------------------------------------------- */

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
	cluster_wait(c, 0, ":APP#1 error h2 SocketCloseError"); /* the app has noticed the close */
	cluster_did(c, "AGENT#1", "release"); /* release a call that outlived its client */
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

/* If one callback that waits for ready closes the client, the next callback hears of the close. */
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

/* A follower with two keys is gone. When the first key is unsubscribed, the real client closes
 * its leader, so the second key may not be unsubscribed any more. */
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

/* The timer that frees a closed client must not expire while the client is being closed. */
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

/* ---- callbacks that change the list in progress ------------------------------------------ */

/* A listener that is added while v1 is being delivered hears only v2, the last value. */
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

/* Callbacks that go on without end let the rest of the loop have its turn. */
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
	cluster_wait(c, mark, ":AGENT#1 connection"); /* the app has found the second client */
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

/* ---- the example ------------------------------------------------------------------------- */

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
	cr_expect_geq(lists, 7); /* 3 apps see all, 1 comes back, 3 see all again */
}

/* Everything that an example prints until it ends. */
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

/* An app is ready when its client is ready; getConfig answers the published list. */
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
	cr_expect_geq(answers, 4, "%s", text); /* three apps, and the app that came back */
	cr_expect_null(strstr(text, "getConfig says [\"10."));
}

/* Each app asks once, and then hears of each change. */
Test(cluster_client, the_api_client_example_asks_once_for_each_app)
{
	const char *text = output_of("api_client");

	cr_expect_not_null(strstr(text, "is its question 2\n"), "%s", text);
	cr_expect_null(strstr(text, "is its question 3"), "%s", text);
	cr_expect_not_null(strstr(text, "app 0: limits is {\"limits\":5}, from its cache\n"));
	cr_expect_not_null(strstr(text, "app 1: limits is {\"limits\":5}, from its cache\n"));
}

/* The example has a process group of its own, which an alarm kills if a test fails. */
static pid_t registry;
static volatile sig_atomic_t late;

static void
on_alarm(int number)
{
	(void)number;
	late = 1;
	kill(-registry, SIGKILL);
}

/* Returns a pipe from which the output of the example and its cluster can be read. */
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

/* At the end of the pipe no process of the cluster is left. */
Test(cluster_client, the_registry_example_ends_with_its_parent)
{
	FILE *output = start_registry(NULL);
	char line[512];
	int status;

	while (fgets(line, sizeof line, output) != NULL)
		if (strstr(line, "has connected") != NULL)
			kill(registry, SIGKILL);
	cr_expect(!late, "the cluster of the killed program runs on");
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
