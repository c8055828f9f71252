/*
 * Slow and stuck processes, and the backpressure that they cause.
 *
 * When CHANNEL_HIGH_WATER bytes wait in the master for a process that does not read, the
 * master stops reading from its senders; all other processes go on. No message is lost,
 * and the master's memory is bounded. See traffic.h for the numbered messages.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "traffic.h"

#include <fcntl.h>

TestSuite(slow, .timeout = 120);

/* The master may grow by the queue's high mark, what one read puts on top of it,
 * and the copy of both while the queue grows. KiB. */
enum { GROWTH = 8 * 1024 };

/* egg's case: MANY messages of LARGE bytes. */
enum { MANY = 4000, LARGE = 64 * 1024 };

static struct cluster *
start(int workers)
{
	struct cluster *c = cluster_start(&(struct options){.agent = talk,
	                                                    .app = talk,
	                                                    .workers = workers,
	                                                    .app_close_timeout = 500,
	                                                    .agent_close_timeout = 500});

	cluster_ready(c);
	return c;
}

static void
stop(struct cluster *c)
{
	assert_nothing_bad(c);
	cluster_stop(c);
}

/* ---- what the master says that is queued -------------------------------------- */

struct question {
	const char *who; /* the name that cluster_status uses */
	size_t queued;
};

static bool
is_above(struct cluster *c, void *arg)
{
	struct question *question = arg;

	cluster_ask_status(c);
	question->queued = (size_t)cluster_figure(c, question->who, "queued");
	return question->queued > CHANNEL_HIGH_WATER;
}

/* Wait until a process's queue is above the high mark: then its senders wait. */
static void
wait_until_above(struct cluster *c, const char *who, size_t most)
{
	struct question question = {who, 0};
	char what[64];

	snprintf(what, sizeof what, "the queue of %s to fill", who);
	cluster_until(c, is_above, &question, what);
	cr_assert(question.queued <= most, "%zu bytes are queued for %s", question.queued, who);
}

static void
wait_until_full(struct cluster *c, const char *who)
{
	wait_until_above(c, who, 2 * CHANNEL_HIGH_WATER + FRAME_MAX);
}

static unsigned long
undeliverable(struct cluster *c)
{
	cluster_ask_status(c);
	return (unsigned long)cluster_figure(c, NULL, "undeliverable");
}

/* The rest of an answer does not answer a SIGUSR1 that comes during it: a new answer does. */
Test(slow, a_sigusr1_during_a_status_brings_another)
{
	struct cluster *c = start(8);
	size_t mark;
	int i;

	for (i = 0; i < 50; i++) {
		mark = cluster_mark(c);
		cluster_signal(c, "MASTER", SIGUSR1);
		mark = cluster_wait(c, mark, "\"last_death\":");
		cluster_signal(c, "MASTER", SIGUSR1);
		mark = cluster_wait(c, mark, "\"last_death\":");
		cluster_wait(c, mark, "[master] status ],");
	}
	stop(c);
}

/* ---- those who have nothing to do with it ---------------------------------------- */

/* Two processes exchange 500 messages each way, and all of them arrive. */
static void
exchange(struct cluster *c, const char *one, const char *other, int id)
{
	size_t mark = cluster_mark(c);

	say(c, one, id, cluster_pid(c, other), 500, 100);
	say(c, other, id + 1, cluster_pid(c, one), 500, 100);
	cluster_wait(c, mark, "heard #500 of #%d.", id);
	cluster_wait(c, mark, "heard #500 of #%d.", id + 1);
}

/* ---- an app that does not read ----------------------------------------------------- */

/* The agent sends 4,000 x 64 KiB to APP#1, which does not read. The other apps exchange
 * messages meanwhile. Then APP#1 reads, and every message arrives. */
static void
flood_and_resume(struct cluster *c, const char *what, void (*resume)(struct cluster *c))
{
	long before = process_memory(c->master);
	unsigned long lost = undeliverable(c);

	say(c, "AGENT#1", 1, cluster_pid(c, "APP#1"), MANY, LARGE);
	wait_until_full(c, "APP#1");
	exchange(c, "APP#2", "APP#3", 10);
	say(c, "AGENT#1", 2, cluster_pid(c, "APP#2"), 10, 100); /* behind the agent's others */
	exchange(c, "APP#2", "APP#3", 20);
	cr_assert_eq(cluster_count(c, 0, "sent #%d of #1", MANY), 0, "the sender did not wait");
	resume(c);
	cluster_wait(c, 0, ":APP#1 heard #%d of #1.", MANY);
	cluster_wait(c, 0, ":APP#2 heard #10 of #2.");
	exchange(c, "APP#1", "APP#2", 30);
	cr_assert_eq(undeliverable(c), lost);
	assert_memory(c, what, before, GROWTH);
}

static void
continue_app(struct cluster *c)
{
	cluster_signal(c, "APP#1", SIGCONT);
}

Test(slow, to_a_stopped_app_the_agent_waits_and_the_others_talk)
{
	struct cluster *c = start(3);

	cluster_signal(c, "APP#1", SIGSTOP);
	be_patient(3);
	flood_and_resume(c, "4,000 x 64 KiB to a stopped app", continue_app);
	cr_assert_eq(cluster_count(c, 0, "died"), 0);
	stop(c);
}

static void
release_app(struct cluster *c)
{
	cluster_signal(c, "APP#1", SIGUSR2);
}

Test(slow, to_a_busy_app_the_agent_waits_and_the_others_talk)
{
	struct cluster *c = start(3);

	cluster_order(c, "APP#1", "busy");
	cluster_wait(c, 0, ":APP#1 is busy");
	be_patient(3);
	flood_and_resume(c, "4,000 x 64 KiB to a busy app", release_app);
	stop(c);
}

/* The app reads all the time, but more slowly than the agent sends. */
Test(slow, a_slow_reader_gets_everything)
{
	struct cluster *c = start(3);
	long before = process_memory(c->master);

	cluster_order(c, "APP#1", "nap 2");
	say(c, "AGENT#1", 1, cluster_pid(c, "APP#1"), 1000, LARGE);
	wait_until_full(c, "APP#1");
	exchange(c, "APP#2", "APP#3", 10);
	be_patient(3);
	cluster_wait(c, 0, ":APP#1 heard #1000 of #1.");
	assert_memory(c, "1,000 x 64 KiB to a slow reader", before, GROWTH);
	stop(c);
}

/* The agent waits for the stopped app; its messages for the others wait meanwhile. */
Test(slow, a_broadcast_waits_for_the_stopped_one_and_reaches_all)
{
	struct cluster *c = start(3);
	long before = process_memory(c->master);
	int app;

	cluster_signal(c, "APP#2", SIGSTOP);
	say(c, "AGENT#1", 1, TO_APPS, 1000, LARGE);
	wait_until_full(c, "APP#2");
	exchange(c, "APP#1", "APP#3", 10);
	cr_assert_eq(cluster_count(c, 0, "sent #1000 of #1"), 0, "the sender did not wait");
	cluster_signal(c, "APP#2", SIGCONT);
	be_patient(3);
	for (app = 1; app <= 3; app++)
		cluster_wait(c, 0, ":APP#%d heard #1000 of #1.", app);
	assert_memory(c, "1,000 x 64 KiB to all apps, one stopped", before, 2 * GROWTH);
	stop(c);
}

/* ---- an agent, a parent that does not read -------------------------------------------- */

Test(slow, to_a_stopped_agent_several_apps_wait_and_the_others_talk)
{
	struct cluster *c = start(5);
	long before = process_memory(c->master);
	char app[16];
	int i;

	cluster_signal(c, "AGENT#1", SIGSTOP);
	for (i = 1; i <= 3; i++) {
		snprintf(app, sizeof app, "APP#%d", i);
		say(c, app, i, TO_AGENT, 400, LARGE);
	}
	wait_until_full(c, "AGENT#1");
	exchange(c, "APP#4", "APP#5", 10);
	cr_assert_eq(cluster_count(c, 0, "sent #400 of #"), 0, "a sender did not wait");
	cluster_signal(c, "AGENT#1", SIGCONT);
	be_patient(3);
	for (i = 1; i <= 3; i++)
		cluster_wait(c, 0, ":AGENT#1 heard #400 of #%d.", i);
	assert_memory(c, "3 x 400 x 64 KiB to a stopped agent", before, GROWTH);
	stop(c);
}

/* The parent does not read: its loop polls another descriptor meanwhile. */
static int
stop_parent(struct cluster *c)
{
	int idle[2], stopped = c->parent->channel.descriptor;

	cr_assert_eq(channel_pair(idle), 0);
	fcntl(idle[0], F_SETFL, O_NONBLOCK);
	c->parent->channel.descriptor = idle[0]; /* the other end stays open, and silent */
	return stopped;
}

static void
continue_parent(struct cluster *c, int stopped)
{
	close(c->parent->channel.descriptor);
	c->parent->channel.descriptor = stopped;
}

/* The parent gives its orders before it stops reading. APP#2 and APP#3 exchange messages
 * without end, APP#1 sends to the parent. Returns the parent's descriptor. */
static int
flood_stopped_parent(struct cluster *c)
{
	int stopped;

	say(c, "APP#2", 10, cluster_pid(c, "APP#3"), 0, 100);
	say(c, "APP#3", 11, cluster_pid(c, "APP#2"), 0, 100);
	say(c, "APP#1", 1, TO_PARENT, 300, LARGE);
	stopped = stop_parent(c);
	wait_until_full(c, "PARENT");
	return stopped;
}

Test(slow, to_a_stopped_parent_the_sender_waits_and_the_others_talk)
{
	struct cluster *c = start(3);
	long before = process_memory(c->master);
	int stopped = flood_stopped_parent(c);

	cluster_wait(c, 0, ":APP#3 hears #10");
	cluster_wait(c, 0, ":APP#2 hears #11");
	cr_assert_eq(cluster_count(c, 0, "sent #300 of #1"), 0, "the sender did not wait");
	continue_parent(c, stopped);
	cluster_wait(c, 0, ":PARENT saw test-end");
	cr_assert_eq(cluster_count(c, 0, ":PARENT saw test-number (%d bytes)", LARGE), 300);
	cluster_order(c, "APP#2", "finish");
	cluster_order(c, "APP#3", "finish");
	cluster_wait(c, 0, ":APP#3 heard #");
	cluster_wait(c, 0, ":APP#2 heard #");
	assert_memory(c, "300 x 64 KiB to a stopped parent", before, GROWTH);
	stop(c);
}

/* ---- stuck for good --------------------------------------------------------------------- */

/* The parent reads nothing for 30 s. */
Test(slow, a_stuck_parent_loses_its_channel_and_the_cluster_lives_on, .timeout = 180)
{
	struct cluster *c = start(3);
	size_t mark = cluster_mark(c);
	int stopped = flood_stopped_parent(c);

	be_patient(5);
	cluster_wait(c, mark, "parent is stuck, its queue is full: its channel is closed");
	cluster_wait(c, mark, ":APP#1 sent #300 of #1");
	cr_assert_eq(cluster_count(c, 0, "is stuck"), 1);
	cr_assert_eq(cluster_count(c, 0, " died "), 0);
	continue_parent(c, stopped);
	stop(c);
}

Test(slow, a_stuck_app_is_killed_and_replaced_and_its_senders_speak_again, .timeout = 180)
{
	struct cluster *c = start(3);
	long before = process_memory(c->master);
	size_t mark;

	cluster_signal(c, "APP#1", SIGSTOP);
	say(c, "AGENT#1", 1, cluster_pid(c, "APP#1"), MANY, LARGE);
	say(c, "APP#2", 2, cluster_pid(c, "APP#1"), 200, LARGE);
	wait_until_full(c, "APP#1");
	exchange(c, "APP#3", "APP#3", 10);
	mark = cluster_mark(c);
	be_patient(5);
	mark = cluster_wait(c, mark,
	                    "app_worker#1:APP#1 is stuck, its queue is full: killed (app 0)");
	cr_assert_eq(cluster_count(c, 0, "sent #"), 2,
	             "a sender did not wait"); /* the exchange's */
	cluster_wait(c, mark, "app_worker#4:APP#4 started");
	cluster_wait(c, 0,
	             "app_worker#1:APP#1 died (code: null, signal: SIGKILL, is stuck, its "
	             "queue is full)");
	cluster_wait(c, mark, ":AGENT#1 sent #%d of #1", MANY); /* no process hears this */
	cluster_wait(c, mark, ":APP#2 sent #200 of #2");
	exchange(c, "AGENT#1", "APP#4", 20);
	exchange(c, "APP#2", "APP#4", 30);
	cr_assert_eq(cluster_count(c, 0, "is stuck"), 2,
	             "there are not two lines: one when the app is killed, one about its death");
	assert_memory(c, "an app stuck for 30 s", before, GROWTH);
	stop(c);
}

Test(slow, a_stuck_agent_is_killed_and_replaced, .timeout = 180)
{
	struct cluster *c = start(3);
	size_t mark;

	cluster_signal(c, "AGENT#1", SIGSTOP);
	say(c, "APP#1", 1, TO_AGENT, 300, LARGE);
	wait_until_full(c, "AGENT#1");
	mark = cluster_mark(c);
	be_patient(5);
	cluster_wait(c, mark, "agent_worker#1:AGENT#1 is stuck, its queue is full: killed");
	cluster_wait(c, mark, "agent_worker#2:AGENT#2 started");
	cluster_wait(c, mark, ":APP#1 sent #300 of #1");
	exchange(c, "APP#2", "APP#3", 10);
	say(c, "APP#2", 20, TO_AGENT, 100, 100);
	cluster_wait(c, mark, ":AGENT#2 heard #100 of #20.");
	cluster_stop(c); /* the dead agent's share of stream 1 is lost, so it is no whole one */
}

/* A process whose queue falls below the low mark within the timeout is slow, not stuck,
 * although four senders fill it again each time. */
static bool
is_later(struct cluster *c, void *arg)
{
	(void)c;
	return clutch_now() > *(const int64_t *)arg;
}

Test(slow, a_slow_app_that_lets_its_senders_go_on_is_not_stuck, .timeout = 180)
{
	struct cluster *c = start(5);
	int64_t until = clutch_now() + CLUTCH_STUCK_TIMEOUT + 3000;
	char app[16];
	int i;

	be_patient(5);
	cluster_order(c, "APP#1", "nap 300");
	for (i = 2; i <= 5; i++) {
		snprintf(app, sizeof app, "APP#%d", i);
		say(c, app, i, cluster_pid(c, "APP#1"), 100, LARGE);
	}
	wait_until_full(c, "APP#1");
	cluster_until(c, is_later, &until, "the stuck timeout to pass");
	cr_assert_eq(cluster_count(c, 0, "is stuck"), 0);
	cr_assert_eq(cluster_count(c, 0, "heard #100"), 0,
	             "the app read too fast for this test: it heard all messages of a sender");
	cluster_signal(c, "APP#1", SIGUSR2);
	for (i = 2; i <= 5; i++)
		cluster_wait(c, 0, ":APP#1 heard #100 of #%d.", i);
	stop(c);
}

/* ---- nobody waits too long ------------------------------------------------------------------ */

/* One write empties a queue that was above the low mark: its senders must go on although
 * nothing else wakes the master, for "local" has no health check. */
Test(slow, a_queue_that_empties_at_once_wakes_its_senders)
{
	struct cluster *c = cluster_start(
		&(struct options){.agent = talk, .app = talk, .workers = 5, .env = "local"});
	char app[16];
	int i, round;

	cluster_ready(c);
	for (round = 0; round < 5; round++) {
		cluster_signal(c, "APP#5", SIGSTOP);
		for (i = 1; i <= 4; i++) {
			snprintf(app, sizeof app, "APP#%d", i);
			say(c, app, 10 * round + i, cluster_pid(c, "APP#5"), 70, LARGE);
		}
		wait_until_full(c, "APP#5");
		cluster_signal(c, "APP#5", SIGCONT);
		for (i = 1; i <= 4; i++)
			cluster_wait(c, 0, ":APP#5 heard #70 of #%d.", 10 * round + i);
	}
	stop(c);
}

/* ---- both directions, and nobody there yet ------------------------------------------------ */

Test(slow, two_apps_that_flood_each_other_do_not_block)
{
	struct cluster *c = start(3);
	long before = process_memory(c->master);

	say(c, "APP#1", 1, cluster_pid(c, "APP#2"), 1000, LARGE);
	say(c, "APP#2", 2, cluster_pid(c, "APP#1"), 1000, LARGE);
	exchange(c, "APP#3", "AGENT#1", 10);
	be_patient(3);
	cluster_wait(c, 0, ":APP#2 heard #1000 of #1.");
	cluster_wait(c, 0, ":APP#1 heard #1000 of #2.");
	assert_memory(c, "two apps, 1,000 x 64 KiB each way", before, 2 * GROWTH);
	stop(c);
}

Test(slow, both_directions_full_and_then_both_go_on)
{
	struct cluster *c = start(3);

	cluster_signal(c, "APP#1", SIGSTOP);
	say(c, "APP#2", 1, cluster_pid(c, "APP#1"), 500, LARGE);
	wait_until_full(c, "APP#1");
	cluster_signal(c, "APP#2", SIGSTOP);
	say(c, "APP#3", 3, cluster_pid(c, "APP#2"), 500, LARGE);
	wait_until_full(c, "APP#2");
	say(c, "APP#1", 2, cluster_pid(c, "APP#2"), 500, LARGE); /* it begins when it goes on */
	cluster_signal(c, "APP#1", SIGCONT);
	cluster_signal(c, "APP#2", SIGCONT);
	be_patient(3);
	cluster_wait(c, 0, ":APP#1 heard #500 of #1.");
	cluster_wait(c, 0, ":APP#2 heard #500 of #2.");
	cluster_wait(c, 0, ":APP#2 heard #500 of #3.");
	stop(c);
}

enum { EARLY = 96 };

/* The agent sends 96 x 64 KiB (6 MiB) before it is ready, so before the apps are forked. */
static int
speak_early(struct messenger *agent, void *arg)
{
	struct stream stream = {.id = 1, .to = TO_APPS, .count = EARLY, .size = LARGE};

	if (talk(agent, arg) == -1)
		return -1;
	while (stream.sent < stream.count) {
		if (send_number(agent, &stream) == 0)
			stream.sent++;
		else if (errno != ENOBUFS || messenger_step(agent, 10) != 1)
			return -1;
	}
	return 0;
}

static int
count_numbers(struct messenger *app, const struct message *message, void *arg)
{
	static int count;
	int *shown = arg;

	(void)message;
	*shown = ++count;
	return messenger_role(app) != ROLE_APP;
}

static int
tell_count(struct messenger *app, const struct message *message, void *arg)
{
	(void)message;
	report(app, "has heard #%d early", *(int *)arg);
	return 0;
}

static int
talk_and_count(struct messenger *app, void *arg)
{
	static int count;

	if (talk(app, arg) == -1 || messenger_on(app, "test-number", count_numbers, &count) == -1)
		return -1;
	return messenger_on(app, "egg-ready", tell_count, &count);
}

Test(slow, what_is_said_before_the_apps_exist_is_bounded_and_stops_nobody) /* D23 */
{
	struct cluster *c = cluster_start(
		&(struct options){.agent = speak_early, .app = talk_and_count, .workers = 1});
	int early = 0;

	cluster_ready(c);
	cluster_wait(c, 0, ":APP#1 has heard #");
	sscanf(strstr(cluster_line(c, ":APP#1 has heard #"), "heard #"), "heard #%d", &early);
	cr_assert(early > 0 && early < EARLY && (size_t)early * LARGE <= CHANNEL_QUEUE_MAX &&
	                  (size_t)(early + 1) * (LARGE + 64) > CHANNEL_QUEUE_MAX,
	          "%d of %d early messages arrived", early, EARLY);
	cr_assert_eq(undeliverable(c), (unsigned long)(EARLY - early));
	exchange(c, "AGENT#1", "APP#1", 10);
	stop(c);
}

static bool
is_above_or_late(struct cluster *c, void *arg)
{
	return is_above(c, arg) || cluster_count(c, 0, "AGENT#2") > 0;
}

/* False: on a busy machine the next agent was there before all messages were sent. */
static bool
speak_to_a_dead_agent(void)
{
	struct cluster *c = start(5);
	struct question question = {"agent", 0};
	long before = process_memory(c->master);
	unsigned long lost = undeliverable(c);
	bool in_time;

	cluster_signal(c, "AGENT#1", SIGKILL);
	cluster_wait(c, 0, "agent_worker#1:AGENT#1 died");
	say(c, "APP#1", 1, TO_AGENT, 25, LARGE);
	say(c, "APP#2", 2, TO_AGENT, 25, LARGE);
	say(c, "APP#3", 3, TO_AGENT, 100, 100);
	cluster_until(c, is_above_or_late, &question, "the queue of the agent to fill");
	cr_assert_leq(question.queued, CHANNEL_QUEUE_MAX);
	exchange(c, "APP#4", "APP#5", 10);
	in_time = cluster_count(c, 0, "AGENT#2") == 0;
	cluster_wait(c, 0, ":AGENT#2 heard #25 of #1.");
	cluster_wait(c, 0, ":AGENT#2 heard #25 of #2.");
	cluster_wait(c, 0, ":AGENT#2 heard #100 of #3.");
	cr_assert_eq(undeliverable(c), lost);
	assert_memory(c, "50 x 64 KiB to a dead agent", before, GROWTH);
	stop(c);
	return in_time;
}

Test(slow, what_is_said_to_a_dead_agent_waits_beyond_the_high_mark) /* D24 */
{
	int tries = 5;

	while (!speak_to_a_dead_agent())
		cr_assert_gt(--tries, 0,
		             "five times the agent was back before the test could send enough");
}
