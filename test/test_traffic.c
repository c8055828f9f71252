/*
 * Traffic: one process that is slow, stuck, hostile or gone costs the others nothing.
 *
 * The processes, the wrapped calls and the small limits are those of troubles.h.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#define CLUTCH_PRIVATE
#include "troubles.h"

TestSuite(traffic, .init = open_world, .timeout = 60);

/* ---- a shortage concerns the channel that meets it --------------------------------------- */

/* The shortage lasts: the message loses its handle, and other channels do not wait. */
Test(traffic, a_shortage_for_a_handle_in_the_master_is_that_channels_alone)
{
	static const int shortages[] = {ETOOMANYREFS, ENOMEM, ENOBUFS};
	struct cluster *c = start(5);
	char who[16];
	int64_t used;
	size_t mark;
	int i;

	world->short_of = c->master;
	for (i = 0; i < 3; i++) {
		mark = cluster_mark(c);
		snprintf(who, sizeof who, "APP#%d", i + 2);
		world->shortage = shortages[i];
		tell(c, "APP#1", "pass %ld", (long)cluster_pid(c, who));
		exchange(c, "AGENT#1", "APP#5", 3000);
		cluster_wait(c, mark, ":%s got it bare", who);
		cluster_wait(c, mark,
		             "app_worker#%d:%s: no descriptor or memory for a handle: its "
		             "message goes without it, as do more of this kind (app %d)",
		             i + 2, who, i + 1);
		cr_assert_eq(cluster_count(c, mark, "handle"), 1,
		             "there is not exactly one line about lost handles");
		exchange(c, "APP#1", who, 3000);
		world->shortage = 0;
		tell(c, "APP#1", "pass %ld", (long)cluster_pid(c, who));
		cluster_wait(c, mark, ":%s got it whole", who);
	}
	cr_assert_eq(cluster_count(c, 0, " died "), 0);
	used = process_processor_time(c->master);
	cr_assert_lt(used, 200 * time_scale(), "%lldms: the master tries without a pause",
	             (long long)used);
	stop(c);
}

Test(traffic, a_shortage_that_is_over_soon_costs_no_handle)
{
	struct cluster *c = start(2);

	world->short_of = c->master;
	world->met_last = 3;
	world->shortage = ETOOMANYREFS;
	tell(c, "APP#1", "pass %ld", (long)cluster_pid(c, "APP#2"));
	cluster_wait(c, 0, ":APP#2 got it");
	cr_assert_eq(cluster_count(c, 0, ":APP#2 got it whole"), 1);
	cr_assert_eq(world->met, 3);
	stop(c);
}

static bool
has_met_a_shortage(struct cluster *c, void *arg)
{
	(void)c;
	return world->met > *(int *)arg;
}

/* The sender of a handle meets the shortage, and goes on reading. */
static void
expect_shortage_in_sender(const char *who)
{
	static const int shortages[] = {ETOOMANYREFS, ENOMEM, ENOBUFS};
	struct cluster *c = start(2);
	size_t mark;
	int i, met;

	for (i = 0; i < 3; i++) {
		mark = cluster_mark(c);
		met = world->met;
		world->short_of = cluster_pid(c, who);
		world->shortage = shortages[i];
		tell(c, who, "pass %ld", (long)cluster_pid(c, "APP#2"));
		cluster_until(c, has_met_a_shortage, &met, "the sender to meet a shortage");
		tell(c, who, "answer %d", i);
		cluster_wait(c, mark, ":%s answers %d", who, i);
		cluster_wait(c, mark, ":APP#2 got it bare");
		world->shortage = 0;
		tell(c, who, "pass %ld", (long)cluster_pid(c, "APP#2"));
		cluster_wait(c, mark, ":APP#2 got it whole");
	}
	exchange(c, who, "APP#2", 3000);
	stop(c);
}

Test(traffic, an_app_that_meets_a_shortage_for_a_handle_reads_on)
{
	expect_shortage_in_sender("APP#1");
}

Test(traffic, an_agent_that_meets_a_shortage_for_a_handle_reads_on)
{
	expect_shortage_in_sender("AGENT#1");
}

/* The kernel causes the shortage: more descriptors of the user are in flight than the
 * master may have. */
Test(traffic, descriptors_in_flight_hold_up_no_other_channel)
{
	struct rlimit limit;
	struct cluster *c;

	become_nobody();
	getrlimit(RLIMIT_NOFILE, &limit);
	if (limit.rlim_max != RLIM_INFINITY && limit.rlim_max < 2000)
		cr_skip_test("an app cannot have enough descriptors in flight");
	set_limit(0, RLIMIT_NOFILE, 256);
	c = start(4);
	tell(c, "APP#1", "park");
	cluster_wait(c, 0, ":APP#1 has parked");
	tell(c, "APP#1", "pass %ld", (long)cluster_pid(c, "APP#2"));
	exchange(c, "APP#3", "APP#4", 3000);
	cluster_wait(c, 0, ":APP#2 got it");
	cr_assert_eq(cluster_count(c, 0, ":APP#2 got it bare"), 1);
	cluster_wait(c, 0, "handle");
	cr_assert_eq(cluster_count(c, 0, "handle"), 1,
	             "there is not exactly one line about lost handles");
	exchange(c, "APP#1", "APP#2", 3000);
	stop(c);
}

/* ---- a log that blocks ------------------------------------------------------------------- */

static bool
are_diverted(struct cluster *c, void *arg)
{
	cluster_turn(c);
	return world->diverted >= *(int *)arg;
}

/* The descriptor becomes the log (stdout or stderr) of the process `pid`, or of all (0). */
static void
divert_log(struct cluster *c, int log, int descriptor, pid_t pid, int processes)
{
	world->log_of = pid;
	world->log[log] = descriptor;
	exchange(c, "AGENT#1", "APP#1", 3000); /* so that each of them turns its loop */
	exchange(c, "APP#2", "APP#3", 3000);
	exchange(c, "AGENT#1", "APP#1", 3000);
	exchange(c, "APP#2", "APP#3", 3000);
	cluster_until(c, are_diverted, &processes, "the processes to write to the other log");
}

/* The pipe has room when the master asks, and none when it writes: other processes
 * write into it, and no process reads it any more. */
static void
expect_life_with_a_full_pipe(int log)
{
	static const char zeros[4096];
	struct cluster *c;
	int64_t since;
	int ends[2];

	cr_assert_eq(pipe(ends), 0);
	fcntl(ends[1], F_SETFL, O_NONBLOCK);
	while (write(ends[1], zeros, sizeof zeros) > 0)
		;
	fcntl(ends[1], F_SETFL, 0);
	c = start(3);
	divert_log(c, log, ends[1], c->master, 1);
	world->crowded = log;
	since = clutch_now();
	cluster_signal(c, "MASTER", SIGUSR1); /* many lines on stdout */
	cluster_signal(c, "APP#1", SIGKILL);  /* lines on both */
	exchange(c, "APP#2", "APP#3", 3000);
	cluster_signal(c, "MASTER", SIGUSR1);
	cluster_signal(c, "AGENT#1", SIGKILL);
	exchange(c, "APP#2", "APP#3", 3000);
	stop(c);
	cr_assert_lt(clutch_now() - since, 8000 * time_scale());
}

Test(traffic, a_full_pipe_that_others_share_does_not_block_stdout)
{
	expect_life_with_a_full_pipe(STDOUT_FILENO);
}

Test(traffic, a_full_pipe_that_others_share_does_not_block_stderr)
{
	expect_life_with_a_full_pipe(STDERR_FILENO);
}

/* The master may wait 10 ms for a line; with seven hundred lines it must give up sooner. */
Test(traffic, a_full_pipe_does_not_slow_the_master_down_for_long)
{
	static const char zeros[4096];
	struct cluster *c;
	int64_t since;
	int ends[2], i;

	cr_assert_eq(pipe(ends), 0);
	fcntl(ends[1], F_SETFL, O_NONBLOCK);
	while (write(ends[1], zeros, sizeof zeros) > 0)
		;
	fcntl(ends[1], F_SETFL, 0);
	c = start(3);
	divert_log(c, STDOUT_FILENO, ends[1], c->master, 1);
	since = clutch_now();
	for (i = 0; i < 100; i++) {
		cluster_signal(c, "MASTER", SIGUSR1);
		exchange(c, "APP#2", "APP#3", 3000);
	}
	cr_assert_lt(clutch_now() - since, 7000 * time_scale(), "the exchanges took %lld ms",
	             (long long)(clutch_now() - since));
	stop(c);
}

/* ---- a log that has reached its limit ---------------------------------------------------- */

enum { LOG_LIMIT = 8 * 1024 };

static struct cluster *
start_with_log_at_its_limit(int log)
{
	char path[128], who[16];
	struct cluster *c;
	int file, i;

	snprintf(path, sizeof path, "%s/log", test_folder());
	file = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
	cr_assert(file != -1 && ftruncate(file, LOG_LIMIT) == 0);
	c = start(3);
	divert_log(c, log, file, 0, 5);
	set_limit(c->master, RLIMIT_FSIZE, LOG_LIMIT);
	set_limit(cluster_pid(c, "AGENT#1"), RLIMIT_FSIZE, LOG_LIMIT);
	for (i = 1; i <= 3; i++) {
		snprintf(who, sizeof who, "APP#%d", i);
		set_limit(cluster_pid(c, who), RLIMIT_FSIZE, LOG_LIMIT);
	}
	return c;
}

Test(traffic, an_app_survives_a_stdout_at_its_limit)
{
	struct cluster *c = start_with_log_at_its_limit(STDOUT_FILENO);

	cluster_signal(c, "APP#3", SIGTERM); /* the app logs its end */
	cr_assert_str_eq(cluster_wait_end(c, "APP#3"), "code: 0, signal: null");
	exchange(c, "APP#1", "APP#2", 3000);
	stop(c);
}

Test(traffic, an_app_survives_a_stderr_at_its_limit)
{
	struct cluster *c = start_with_log_at_its_limit(STDERR_FILENO);
	size_t mark = cluster_mark(c);

	tell(c, "APP#3", "uncaught 1"); /* it says so */
	cluster_wait(c, mark, "app_worker#4:APP#4 started");
	cluster_wait_death(c, "APP#3");
	exchange(c, "APP#1", "APP#2", 3000);
	mark = cluster_mark(c);
	cluster_signal(c, "MASTER", SIGUSR1);
	cluster_wait(c, mark, "code: 1, signal: null");
	stop(c);
}

Test(traffic, the_master_survives_a_stdout_at_its_limit)
{
	struct cluster *c = start_with_log_at_its_limit(STDOUT_FILENO);

	cluster_signal(c, "MASTER", SIGUSR1);
	exchange(c, "APP#1", "APP#2", 3000);
	exchange(c, "APP#1", "APP#2", 3000);
	stop(c);
}

Test(traffic, the_master_survives_a_stderr_at_its_limit)
{
	struct cluster *c = start_with_log_at_its_limit(STDERR_FILENO);
	size_t mark = cluster_mark(c);

	cluster_signal(c, "APP#3", SIGKILL);
	cluster_wait(c, mark, "app_worker#4:APP#4 started");
	cluster_signal(c, "AGENT#1", SIGKILL);
	cluster_wait(c, mark, "agent_worker#2:AGENT#2 started");
	exchange(c, "APP#1", "APP#2", 3000);
	stop(c);
}

/* ---- too slow ---------------------------------------------------------------------------- */

/* The app reads a little all the time, but its queue is never short. */
Test(traffic, an_app_that_is_always_too_slow_is_replaced)
{
	struct cluster *c = start(3);
	size_t mark = cluster_mark(c);

	tell(c, "APP#1", "sip");
	cluster_wait(c, 0, ":APP#1 sips");
	say(c, "AGENT#1", 1, TO_APPS, 0, PIECE);
	say(c, "APP#2", 2, cluster_pid(c, "APP#3"), 0, 100); /* the master does not sleep */
	cluster_wait(c, mark, ":APP#1 died (code: null, signal: SIGKILL");
	cluster_wait(c, mark, "app_worker#4:APP#4 started");
	cr_assert_eq(cluster_count(c, 0, " died "), 1);
	cluster_order(c, "AGENT#1", "finish");
	cluster_order(c, "APP#2", "finish");
	cluster_wait(c, mark, ":APP#2 heard #");
	cluster_wait(c, mark, ":APP#3 heard #");
	exchange(c, "APP#2", "APP#3", 3000);
	cluster_stop(c); /* APP#4 has not heard the stream's beginning */
}

/* APP#1 cannot read before it has written, and the master does not read APP#1 because the
 * receivers do not read. Each of the receivers is slow for a second. */
Test(traffic, an_app_that_the_master_does_not_read_is_not_stuck)
{
	struct cluster *c = start(3);

	cluster_signal(c, "APP#2", SIGSTOP);
	cluster_signal(c, "APP#3", SIGSTOP);
	tell(c, "APP#1", "gush %ld %ld", (long)cluster_pid(c, "APP#2"),
	     (long)cluster_pid(c, "APP#3"));
	wait_until_full(c, "APP#2");
	say(c, "AGENT#1", 1, cluster_pid(c, "APP#1"), 100, PIECE);
	wait_until_full(c, "APP#1");
	let_pass(c, 800);
	cluster_signal(c, "APP#2", SIGCONT);
	cluster_wait(c, 0, ":APP#1 has gushed to APP#2");
	wait_until_full(c, "APP#3");
	let_pass(c, 800);
	cluster_signal(c, "APP#3", SIGCONT);
	cluster_wait(c, 0, ":APP#1 has gushed to APP#3");
	cluster_wait(c, 0, ":APP#1 heard #100 of #1.");
	cr_assert_eq(cluster_count(c, 0, "is stuck"), 0);
	stop(c);
}

/* APP#2 writes to itself, and reads nothing meanwhile. APP#1 reads nothing either, but its
 * queue is not so long that another process waits for it. */
Test(traffic, an_app_that_waits_for_itself_is_stuck_whatever_others_do)
{
	struct cluster *c = start(3);
	size_t mark = cluster_mark(c);
	long self = (long)cluster_pid(c, "APP#2");

	cluster_signal(c, "APP#1", SIGSTOP);
	say(c, "AGENT#1", 1, cluster_pid(c, "APP#1"), 16, PIECE);
	cluster_wait(c, mark, ":AGENT#1 sent #16 of #1");
	tell(c, "APP#2", "gush %ld %ld", self, self);
	cluster_wait(c, mark, "app_worker#2:APP#2 is stuck, its queue is full: killed");
	cluster_signal(c, "APP#1", SIGCONT);
	cluster_wait(c, mark, ":APP#1 heard #16 of #1.");
	cr_assert_eq(cluster_count(c, 0, "is stuck, its queue is full: killed"), 1);
	stop(c);
}

/* The app's queue is above the high mark within one turn of the master only, but the sender
 * waits for it. */
Test(traffic, an_app_whose_queue_was_full_for_a_moment_is_stuck_when_it_hangs)
{
	struct cluster *c = start(2);
	size_t mark = cluster_mark(c);

	cluster_signal(c, "APP#1", SIGSTOP);
	world->writes = WRITES_ONCE;
	say(c, "AGENT#1", 1, cluster_pid(c, "APP#1"), 40, PIECE);
	cluster_wait(c, mark, "app_worker#1:APP#1 is stuck, its queue is full: killed");
	cr_assert_eq(world->writes, WRITES_NOTHING, "the queue was never full");
	world->writes = WRITES;
	cluster_wait(c, mark, ":AGENT#1 sent #40 of #1");
	cluster_wait(c, mark, "app_worker#3:APP#3 started");
	exchange(c, "AGENT#1", "APP#3", 1000);
	stop(c);
}

/* The parent's channel is closed, so that the master drops its queue. The parent gets another
 * channel, whose other end stays open and silent. */
Test(traffic, a_stuck_parent_makes_the_master_not_busy)
{
	struct cluster *c = start(2);
	int silent[2], stopped = c->parent->channel.descriptor;

	say(c, "APP#1", 1, TO_PARENT, 100, PIECE);
	cr_assert_eq(channel_pair(silent), 0);
	c->parent->channel.descriptor = silent[0];
	cluster_wait(c, 0, "parent is stuck, its queue is full: its channel is closed");
	cluster_wait(c, 0, ":APP#1 sent #100 of #1");
	assert_not_busy(c);
	c->parent->channel.descriptor = stopped;
	close(silent[0]);
	close(silent[1]);
	stop(c);
}

/* ---- a pause of all ---------------------------------------------------------------------- */

static void
signal_all(struct cluster *c, int number)
{
	pid_t pids[16];
	size_t i, count = cluster_processes(c, pids, 16);

	for (i = 0; i < count; i++)
		kill(pids[i], number);
}

/* A container is paused: a queue is full, and time passes in which no process runs. */
Test(traffic, a_pause_of_all_makes_nobody_stuck)
{
	struct cluster *c = start(3);

	cluster_signal(c, "APP#1", SIGSTOP);
	say(c, "AGENT#1", 1, cluster_pid(c, "APP#1"), 100, PIECE);
	wait_until_full(c, "APP#1");
	signal_all(c, SIGSTOP);
	let_pass(c, PAUSE);
	cluster_signal(c, "MASTER", SIGCONT); /* the master is the first to run again */
	let_pass(c, 150);
	signal_all(c, SIGCONT);
	cluster_wait(c, 0, ":APP#1 heard #100 of #1.");
	cr_assert_eq(cluster_count(c, 0, "is stuck"), 0);
	cr_assert_eq(cluster_count(c, 0, " died "), 0);
	stop(c);
}

/* Stop the master while it waits in poll, and return when it has run again. */
static void
stop_for_a_while(struct cluster *c)
{
	let_pass(c, 100);
	cluster_signal(c, "MASTER", SIGSTOP);
	let_pass(c, PAUSE);
	cluster_signal(c, "MASTER", SIGCONT);
	let_pass(c, 150);
}

/* Leaving takes a moment, which a pause of the master must not shorten. */
static int
leave_slowly(struct messenger *app, void *arg)
{
	(void)arg;
	alarm(0); /* the process's own time limit is not the subject */
	signal(SIGUSR2, release);
	report(app, "is about to leave");
	while (!released)
		__real_poll(NULL, 0, 10);
	report(app, "has left in good order");
	return 0;
}

static int
act_and_leave_slowly(struct messenger *app, void *arg)
{
	if (messenger_before_close(app, leave_slowly, NULL) == -1)
		return -1;
	return act(app, arg);
}

static void
expect_pause_while_closing(const char *who, struct options options)
{
	struct cluster *c;

	options.app_close_timeout = options.agent_close_timeout = 2500; /* less than PAUSE */
	c = launch(options);
	cluster_ready(c);
	cluster_signal(c, "MASTER", SIGTERM);
	cluster_wait(c, 0, ":%s is about to leave", who);
	stop_for_a_while(c);
	cluster_signal(c, who, SIGUSR2);
	cluster_wait(c, 0, ":%s has left in good order", who);
	cluster_ended(c, 0);
}

Test(traffic, a_pause_takes_no_time_from_an_app_that_leaves)
{
	expect_pause_while_closing("APP#1", (struct options){.app = act_and_leave_slowly});
}

Test(traffic, a_pause_takes_no_time_from_an_agent_that_leaves)
{
	expect_pause_while_closing("AGENT#1", (struct options){.agent = act_and_leave_slowly});
}

/* The app reads nothing while it leaves, for longer than the stuck timeout. */
Test(traffic, a_full_queue_of_an_app_that_leaves_makes_the_master_not_busy)
{
	struct cluster *c =
		launch((struct options){.app = act_and_leave_slowly, .app_close_timeout = 60000});

	cluster_ready(c);
	cluster_signal(c, "MASTER", SIGUSR2);
	cluster_wait(c, 0, ":APP#1 is about to leave");
	say(c, "AGENT#1", 1, cluster_pid(c, "APP#1"), 1000, PIECE);
	let_pass(c, CLUTCH_STUCK_TIMEOUT + 500);
	assert_not_busy(c);
	cluster_signal(c, "APP#1", SIGUSR2);
	cluster_wait(c, 0, ":APP#1 has left in good order");
	cluster_signal(c, "MASTER", SIGTERM);
	cluster_wait(c, 0, ":APP#2 is about to leave");
	cluster_signal(c, "APP#2", SIGUSR2);
	cluster_ended(c, 0);
}

/* The app is ready as soon as the test releases it. */
static int
load_until_released(struct messenger *app, void *arg)
{
	signal(SIGUSR2, release);
	report(app, "is loading");
	while (!released)
		__real_poll(NULL, 0, 10);
	return act(app, arg);
}

Test(traffic, a_pause_takes_no_time_from_an_app_that_starts)
{
	struct cluster *c =
		launch((struct options){.app = load_until_released, .worker_start_timeout = 2500});

	cluster_wait(c, 0, ":APP#1 is loading");
	stop_for_a_while(c);
	cluster_signal(c, "APP#1", SIGUSR2);
	cluster_ready(c);
	stop(c);
}

/* ---- no agent ---------------------------------------------------------------------------- */

/* The first agent starts; its successors fail at their start. */
static int
act_once(struct messenger *agent, void *arg)
{
	return world->agents++ == 0 ? act(agent, arg) : -1;
}

static unsigned long
undeliverable(struct cluster *c)
{
	cluster_ask_status(c);
	return (unsigned long)cluster_figure(c, NULL, "undeliverable");
}

/* A process that sends to an agent that is not there is still heard by the others. */
Test(traffic, an_agent_that_cannot_start_holds_nobody_up)
{
	struct cluster *c = launch((struct options){.agent = act_once, .workers = 3});
	unsigned long lost;
	long before;
	size_t mark;

	cluster_ready(c);
	before = process_memory(c->master);
	lost = undeliverable(c);
	tell(c, "APP#1", "beat %ld", (long)cluster_pid(c, "APP#2"));
	let_pass(c, 100);
	mark = cluster_mark(c);
	cluster_signal(c, "AGENT#1", SIGKILL);
	cluster_wait(c, mark, "agent_worker#1:AGENT#1 died");
	cluster_wait(c, mark, "agent_worker#3:AGENT#3 died");
	let_pass(c, 600);
	cr_assert_lt(world->worst_gap, 400 * time_scale(), "APP#2 heard nothing for %lldms",
	             (long long)world->worst_gap);
	cr_assert_leq(cluster_count(c, mark, "[master]"), 3 * 5,
	              "the master logged more lines than one for each outage");
	cr_assert_gt(undeliverable(c), lost, "messages that were dropped were not counted");
	assert_memory(c, "an agent that cannot start", before, 8 * 1024);
	stop(c);
}

/* A check is good before the agent dies. The master gives up only after three bad checks in a
 * row, which take more than 20 s. */
Test(traffic, a_good_health_check_makes_the_count_begin_anew)
{
	struct cluster *c;
	int64_t since;

	faster = 10;
	be_patient(10);
	c = launch((struct options){
		.agent = act_once, .app_close_timeout = 60000, .agent_close_timeout = 60000});
	cluster_ready(c);
	let_pass(c, 15000);
	since = clutch_now();
	cluster_signal(c, "AGENT#1", SIGKILL);
	cluster_wait(c, 0, "0 agent and 1 worker(s) alive, exit to avoid unknown state");
	since = clutch_now() - since;
	cr_assert_gt(since, 20000, "the master gave the cluster up after only %lld ms",
	             (long long)since);
	cluster_ended(c, 1);
}

/* The master counts and logs the lost messages of each outage anew. */
Test(traffic, each_outage_of_the_agent_is_told_once)
{
	struct cluster *c;
	size_t mark;
	int agent;

	slower = 4; /* the queue is full before the next agent comes, on a busy machine, too */
	c = launch((struct options){.workers = 2});
	cluster_ready(c);
	tell(c, "APP#1", "beat %ld", (long)cluster_pid(c, "APP#2"));
	for (agent = 1; agent <= 2; agent++) {
		mark = cluster_mark(c);
		kill(cluster_pid(c, agent == 1 ? "AGENT#1" : "AGENT#2"), SIGKILL);
		cluster_wait(c, mark, "is not there and its queue is full");
		cluster_wait(c, mark, "agent_worker#%d:AGENT#%d started", agent + 1, agent + 1);
		cr_assert_eq(cluster_count(c, mark, "is not there and its queue is full"), 1);
	}
	cluster_ask_status(c);
	cr_assert_eq(cluster_figure(c, "AGENT#3", "dropped"), 0);
	stop(c);
}

/* APP#1 waits for two receivers. One is the agent, which dies while APP#3 sends it more
 * than a queue may hold. Then the other receiver goes on reading. */
Test(traffic, a_full_queue_of_an_agent_that_is_not_there_holds_nobody_up)
{
	struct cluster *c;

	slower = 4; /* the next agent comes later than all this, on a busy machine, too */
	c = launch((struct options){.agent = act_once, .workers = 4});
	cluster_ready(c);
	cluster_signal(c, "AGENT#1", SIGSTOP);
	cluster_signal(c, "APP#2", SIGSTOP);
	cluster_signal(c, "APP#1", SIGSTOP);
	say(c, "APP#1", 1, TO_AGENT, 1, 100);
	say(c, "APP#1", 2, cluster_pid(c, "APP#2"), 1, 100);
	say(c, "APP#3", 3, TO_AGENT, 1000, PIECE);
	say(c, "APP#4", 4, cluster_pid(c, "APP#2"), 1000, PIECE);
	wait_until_full(c, "AGENT#1");
	wait_until_full(c, "APP#2");
	cluster_signal(c, "APP#1", SIGCONT); /* the app does both in one turn */
	cluster_wait(c, 0, ":APP#1 sent #1 of #2");
	cluster_signal(c, "AGENT#1", SIGKILL);
	cluster_wait(c, 0, "agent_worker#1:AGENT#1 died");
	cluster_wait(c, 0, ":APP#3 sent #1000 of #3");
	cluster_signal(c, "APP#2", SIGCONT);
	say(c, "APP#1", 5, cluster_pid(c, "APP#2"), 10, 100);
	cluster_wait(c, 0, ":APP#2 heard #10 of #5.");
	cr_assert_eq(cluster_count(c, 0, "AGENT#2"), 0,
	             "APP#1 was held up until the next agent was there");
	stop(c);
}

/* ---- a port that no process can listen to any more --------------------------------------- */

static int
on_connected(struct messenger *app, int descriptor, void *arg)
{
	(void)app, (void)arg;
	close(descriptor);
	return 0;
}

static int64_t
time_used(struct cluster *c)
{
	pid_t pids[16];
	size_t i, count = cluster_processes(c, pids, 16);
	int64_t used = 0;

	for (i = 0; i < count; i++)
		used += process_processor_time(pids[i]);
	return used;
}

Test(traffic, a_port_that_was_shut_down_makes_nobody_busy)
{
	struct cluster *c = launch((struct options){.connection = on_connected, .workers = 3});
	size_t mark;
	int64_t used;
	size_t lines;

	cluster_ready(c);
	mark = cluster_mark(c);
	tell(c, "APP#1", "shut-the-port");
	cluster_wait(c, mark, ":APP#1 has shut the port");
	let_pass(c, 200);
	used = time_used(c);
	let_pass(c, 1000);
	used = time_used(c) - used;
	lines = cluster_count(c, mark, "[app_worker] ") + cluster_count(c, mark, "[master] ");
	cr_assert_lt(used, 300 * time_scale(),
	             "%lld ms of processor time in a second were used while nothing was to be done",
	             (long long)used);
	cr_assert(lines >= 1 && lines <= 3 + 1, "%zu lines say that the port is shut", lines);
	stop(c);
}

/* ---- many full queues -------------------------------------------------------------------- */

/* Each receiver that drains lets the sender write once more, unless another queue is full. */
Test(traffic, receivers_that_drain_one_after_the_other_make_no_queue_too_long)
{
	enum { APPS = 8, MOST = 2 * CHANNEL_HIGH_WATER + 2 * CHANNEL_READ_SIZE };
	struct cluster *c;
	char who[16];
	size_t bytes;
	int i;

	slower = 2; /* no process counts as stuck meanwhile */
	c = start(APPS);
	for (i = 1; i <= APPS; i++) {
		snprintf(who, sizeof who, "APP#%d", i);
		cluster_signal(c, who, SIGSTOP);
	}
	say(c, "AGENT#1", 1, TO_APPS, 400, PIECE);
	wait_until_full(c, "APP#8");
	for (i = 1; i < APPS; i++) {
		snprintf(who, sizeof who, "APP#%d", i);
		cluster_signal(c, who, SIGCONT);
		cluster_until(c, is_drained, who, "a queue to drain");
		bytes = queued(c, "APP#8");
		cr_assert_leq(bytes, MOST, "%zu bytes are queued, %d apps have drained", bytes, i);
	}
	cluster_signal(c, "APP#8", SIGCONT);
	for (i = 1; i <= APPS; i++)
		cluster_wait(c, 0, ":APP#%d heard #400 of #1.", i);
	stop(c);
}
