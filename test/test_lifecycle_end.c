/*
 * How a live cluster ends: the scenarios 08 to 17 of what was recorded from the real
 * egg-cluster (lifecycle.md), one test each.
 *
 * A test's name begins with its scenario. Where the expected value is not egg's, a comment
 * names the divergence, Dn of docs/divergences.md.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "manners.h"

TestSuite(lifecycle, .timeout = 120);

/* ---- processes that obey ----------------------------------------------------------------- */

/* The process never finishes loading. */
static int
load_for_ever(struct messenger *messenger, void *arg)
{
	(void)arg;
	report(messenger, "loads");
	while (pause() == -1)
		;
	return 0;
}

/* The process never finishes leaving; a signal can end it. */
static int
close_never(struct messenger *messenger, void *arg)
{
	(void)arg;
	report(messenger, "hangs");
	while (pause() == -1)
		;
	return 0;
}

/* The process never finishes leaving; only SIGKILL ends it, its own alarm does not. */
static int
close_never_ever(struct messenger *messenger, void *arg)
{
	signal(SIGALRM, SIG_IGN);
	return close_never(messenger, arg);
}

static int
close_badly(struct messenger *messenger, void *arg)
{
	(void)messenger, (void)arg;
	return 1;
}

/* ---- their cluster ----------------------------------------------------------------------- */

/* The agent waits when it is told to leave, so that the test sees the apps end. */
static struct cluster *
start_patient(struct options options)
{
	manners.agent.close = close_when_told;
	options.agent_close_timeout = LONG;
	return start(options);
}

/* The parent, the first agent and the first apps have seen no message. */
static void
expect_silence(struct cluster *c, size_t mark, int workers)
{
	char who[16];
	int i;

	cr_assert_str_eq(cluster_saw(c, mark, "PARENT"), "");
	cr_assert_str_eq(cluster_saw(c, mark, "AGENT#1"), "");
	for (i = 1; i <= workers; i++) {
		snprintf(who, sizeof who, "APP#%d", i);
		cr_assert_str_eq(cluster_saw(c, mark, who), "", "%s", who);
	}
}

/* The master prints its last line; no process has seen a message, and none is left. */
static void
expect_quiet_end(struct cluster *c, size_t mark, int workers)
{
	cluster_wait(c, mark, "[master] exit with code:0");
	expect_silence(c, mark, workers);
	cluster_ended(c, 0);
}

/* A limit for what must be fast: less than the limit that would hold otherwise, which is 5 s in
 * most cases, and far more than it takes, since the machine may have other things to do. */
static void
expect_within(int64_t start, int64_t least, int64_t most)
{
	int64_t took = clutch_now() - start;

	cr_assert(took >= least, "it took %lld ms; expected %lld at least", (long long)took,
	          (long long)least);
	cr_assert(took <= most * time_scale(), "it took %lld ms; expected %lld at most",
	          (long long)took, (long long)most * time_scale());
}

/* ---- the status -------------------------------------------------------------------------- */

/* Check how an app has ended while the cluster closes. */
static void
expect_end(struct cluster *c, const char *who, const char *end)
{
	cluster_ask_status(c);
	expect_state(c, who, "dead");
	cr_assert_str_eq(cluster_status(c, who, "last_death"), end, "%s", who);
}

/* ---- 08: orders to the master ------------------------------------------------------------ */

/* First the apps, then the agent, then the master. */
static void
expect_orderly_end(int number, const char *name)
{
	struct cluster *c = start_patient((struct options){.workers = 3});
	int64_t begin = clutch_now();
	size_t mark = signal_master(c, number), at;
	char who[16];
	int i;

	cluster_wait(c, mark, "[master] master is killed by signal %s, closing", name);
	at = cluster_wait(c, mark, ":AGENT#1 waits");
	for (i = 1; i <= 3; i++) {
		snprintf(who, sizeof who, "APP#%d", i);
		cr_assert_eq(cluster_count(c, mark, "exit of %s: 0", who), 1);
		expect_end(c, who, "code: 0, signal: null");
	}
	cr_assert_eq(cluster_count(c, at, "exit of"), 0);
	go(c, ROLE_AGENT);
	cluster_wait(c, at, "exit of AGENT#1: 0");
	expect_quiet_end(c, mark, 3);
	expect_within(begin, 0, 4500);
}

Test(lifecycle, s08a_sigterm_to_the_master)
{
	expect_orderly_end(SIGTERM, "SIGTERM");
}

Test(lifecycle, s08b_sigint_to_the_master)
{
	expect_orderly_end(SIGINT, "SIGINT");
}

Test(lifecycle, s08c_sigquit_to_the_master)
{
	expect_orderly_end(SIGQUIT, "SIGQUIT");
}

/* D15: a second SIGTERM kills egg's master. */
Test(lifecycle, s08d_a_second_sigterm_changes_nothing)
{
	struct cluster *c;
	size_t mark;
	int i;

	manners.app.close = close_when_told;
	c = start_patient((struct options){.workers = 2, .app_close_timeout = LONG});
	mark = signal_master(c, SIGTERM);
	cluster_wait(c, mark, ":APP#1 waits");
	cluster_wait(c, mark, ":APP#2 waits");
	for (i = 0; i < 50; i++) {
		cluster_signal(c, "MASTER", SIGTERM);
		cluster_signal(c, "MASTER", SIGINT);
		cluster_signal(c, "MASTER", SIGQUIT);
		if (i % 10 == 0)
			cluster_ask_status(c); /* the master has finished a turn */
	}
	cr_assert_eq(cluster_count(c, mark, "exit of"), 0);
	cr_assert_eq(cluster_count(c, mark, ":AGENT#1 waits"), 0);
	go(c, ROLE_APP);
	cluster_wait(c, mark, ":AGENT#1 waits");
	expect_end(c, "APP#1", "code: 0, signal: null");
	cluster_signal(c, "MASTER", SIGTERM);
	cluster_ask_status(c);
	go(c, ROLE_AGENT);
	cluster_wait(c, mark, "exit of AGENT#1: 0");
	cr_assert_eq(cluster_count(c, mark, "is killed by signal"), 1);
	expect_quiet_end(c, mark, 2);
}

/* As in egg, SIGTERM kills a process whose role's function has not returned; a process
 * whose function has returned leaves in order, even if it is ready later. */
static void
expect_end_of_loading(messenger_callback load, const char *end)
{
	struct cluster *c;
	size_t mark;

	manners.app.load = load;
	manners.agent.close = close_when_told;
	c = launch((struct options){.workers = 2, .agent_close_timeout = LONG});
	cluster_wait(c, 0, ":APP#1 loads");
	cluster_wait(c, 0, ":APP#2 loads");
	cluster_pid(c, "APP#2");
	if (load == load_long) { /* a process that obeys has returned from its function */
		cluster_did(c, "APP#1", "talk 0");
		cluster_did(c, "APP#2", "talk 0");
	}
	mark = signal_master(c, SIGTERM);
	cluster_wait(c, mark, ":AGENT#1 waits");
	expect_end(c, "APP#1", end);
	expect_end(c, "APP#2", end);
	go(c, ROLE_AGENT);
	cluster_wait(c, mark, "exit of AGENT#1: 0");
	expect_quiet_end(c, mark, 0);
}

Test(lifecycle, s08f_sigterm_while_the_apps_are_loading)
{
	expect_end_of_loading(load_for_ever, "code: null, signal: SIGTERM");
}

Test(lifecycle, s08f_sigterm_while_the_apps_are_not_ready_yet)
{
	expect_end_of_loading(load_long, "code: 0, signal: null");
}

static void
expect_end_of_loading_agent(messenger_callback load, size_t exits)
{
	struct cluster *c;
	size_t mark;

	manners.agent.load = load;
	c = launch((struct options){.workers = 2});
	cluster_wait(c, 0, ":AGENT#1 loads");
	cluster_pid(c, "AGENT#1");
	if (load == load_long)
		cluster_did(c, "AGENT#1", "talk 0");
	mark = signal_master(c, SIGTERM);
	cluster_wait(c, mark, "[master] exit with code:0");
	cr_assert_eq(cluster_count(c, 0, "exit of AGENT#1: 0"), exits);
	cr_assert_eq(cluster_count(c, 0, "app_worker#1"), 0);
	expect_quiet_end(c, mark, 0);
}

Test(lifecycle, s08g_sigterm_while_the_agent_is_loading)
{
	expect_end_of_loading_agent(load_for_ever, 0);
}

Test(lifecycle, s08g_sigterm_while_the_agent_is_not_ready_yet)
{
	expect_end_of_loading_agent(load_long, 1);
}

/* D14: egg forks a new agent meanwhile. */
Test(lifecycle, s08h_sigterm_while_the_agent_is_dead)
{
	struct cluster *c;
	size_t mark;

	manners.app.close = close_when_told;
	c = start((struct options){.workers = 1, .app_close_timeout = LONG});
	cluster_signal(c, "AGENT#1", SIGKILL);
	cluster_wait(c, 0, "try to start a new agent_worker");
	cluster_wait(c, 0, ":PARENT saw agent-worker-died");
	cluster_wait_saw(c, "APP#1", "egg-pids [AGENT#1] -> egg-ready <options> -> egg-pids []");
	mark = signal_master(c, SIGTERM);
	cluster_wait(c, mark, ":APP#1 waits");
	pass(c, 1300); /* longer than the second after which an agent is replaced */
	go(c, ROLE_APP);
	cluster_wait(c, mark, "exit of APP#1: 0");
	cluster_wait(c, mark, "[master] exit with code:0");
	cr_assert_eq(cluster_count(c, 0, "agent_worker#2"), 0);
	expect_quiet_end(c, mark, 1);
}

/* D14: an agent that is ready while the master closes is too late: no app is forked. */
Test(lifecycle, s08_sigterm_while_the_agent_starts)
{
	struct cluster *c;

	manners.agent.load = load_into_the_end;
	c = launch((struct options){.workers = 2, .agent_close_timeout = 1000});
	cluster_wait(c, 0, "agent_worker#1:AGENT#1 started");
	cluster_wait(c, 0, "[master] exit with code:0");
	cr_assert_eq(cluster_count(c, 0, "app_worker#"), 0);
	cr_assert_eq(cluster_count(c, 0, "egg-ready"), 0);
	cluster_ended(c, 0);
}

Test(lifecycle, s08i_sighup_to_the_master)
{
	struct cluster *c = start((struct options){.workers = 1});
	size_t mark = signal_master(c, SIGHUP);

	cr_assert_str_eq(cluster_wait_end(c, "AGENT#1"), "code: 110, signal: null");
	cr_assert_str_eq(cluster_wait_end(c, "APP#1"), "code: 0, signal: null");
	expect_silence(c, mark, 1);
	cluster_killed(c, SIGHUP);
}

/* ---- 09: the master is killed ------------------------------------------------------------ */

Test(lifecycle, s09a_sigkill_to_the_master)
{
	struct cluster *c = start((struct options){.workers = 3});
	int64_t begin = clutch_now();
	size_t mark = signal_master(c, SIGKILL);

	cr_assert_str_eq(cluster_wait_end(c, "APP#1"), "code: 0, signal: null");
	cr_assert_str_eq(cluster_wait_end(c, "APP#2"), "code: 0, signal: null");
	cr_assert_str_eq(cluster_wait_end(c, "APP#3"), "code: 0, signal: null");
	cr_assert_str_eq(cluster_wait_end(c, "AGENT#1"), "code: 110, signal: null");
	expect_silence(c, mark, 3);
	cluster_killed(c, SIGKILL);
	expect_within(begin, 0, 4500);
}

/* D3: egg's agent hangs for ever. clutch leaves no process soon after the agent's timeout. */
Test(lifecycle, s09b_sigkill_to_the_master_while_all_hang_when_they_close)
{
	struct cluster *c;
	size_t mark;

	manners.agent.close = manners.app.close = close_never;
	c = start((struct options){
		.workers = 2, .app_close_timeout = 1000, .agent_close_timeout = 1000});
	mark = signal_master(c, SIGKILL);
	cluster_wait(c, mark, ":AGENT#1 hangs");
	cr_assert_str_eq(cluster_wait_end(c, "APP#1"), "code: 0, signal: null");
	cr_assert_str_eq(cluster_wait_end(c, "APP#2"), "code: 0, signal: null");
	cr_assert_str_eq(cluster_wait_end(c, "AGENT#1"), "code: 110, signal: null");
	expect_silence(c, mark, 2);
	cluster_killed(c, SIGKILL);
}

Test(lifecycle, s09c_sigkill_to_the_master_while_the_apps_are_loading)
{
	struct cluster *c;
	size_t mark;

	manners.app.load = load_long;
	c = launch((struct options){.workers = 2});
	cluster_wait(c, 0, ":APP#1 loads");
	cluster_wait(c, 0, ":APP#2 loads");
	mark = signal_master(c, SIGKILL);
	cr_assert_str_eq(cluster_wait_end(c, "AGENT#1"), "code: 110, signal: null");
	cr_assert_str_eq(cluster_wait_end(c, "APP#1"), "code: 1, signal: null");
	cr_assert_str_eq(cluster_wait_end(c, "APP#2"), "code: 1, signal: null");
	expect_silence(c, mark, 0);
	cluster_killed(c, SIGKILL);
}

/* The app loads without turning its loop, until its master is dead. */
static int
load_until_the_master_dies(struct messenger *app, void *arg)
{
	pid_t master = getppid();

	(void)arg;
	report(app, "loads");
	while (getppid() == master)
		poll(NULL, 0, 5);
	return 0;
}

Test(lifecycle, s09c_sigkill_to_the_master_while_an_app_is_busy_loading)
{
	struct cluster *c;

	manners.app.load = load_until_the_master_dies;
	c = launch((struct options){.workers = 1});
	cluster_wait(c, 0, ":APP#1 loads");
	signal_master(c, SIGKILL);
	cr_assert_str_eq(cluster_wait_end(c, "AGENT#1"), "code: 110, signal: null");
	cr_assert_str_eq(cluster_wait_end(c, "APP#1"), "code: 1, signal: null");
	cluster_killed(c, SIGKILL);
}

/* ---- 12: those who do not leave ---------------------------------------------------------- */

#define KILLED "code: null, signal: SIGKILL, did not leave in time"

/* With the default limit of 5 s. */
Test(lifecycle, s12a_an_app_ignores_sigterm)
{
	struct cluster *c = start_patient((struct options){.workers = 2});
	int64_t begin;
	size_t mark;

	cluster_did(c, "APP#1", "ignore");
	cluster_did(c, "APP#2", "ignore");
	begin = clutch_now();
	mark = signal_master(c, SIGTERM);
	cluster_wait(c, mark, ":AGENT#1 waits");
	expect_within(begin, 5000, 9500);
	expect_end(c, "APP#1", KILLED);
	expect_end(c, "APP#2", KILLED);
	go(c, ROLE_AGENT);
	cluster_wait(c, mark, "exit of AGENT#1: 0");
	expect_quiet_end(c, mark, 2);
}

Test(lifecycle, s12b_an_app_hangs_when_it_closes)
{
	struct cluster *c;
	int64_t begin;
	size_t mark;

	manners.app.close = close_never;
	/* An app's own alarm comes each second, and ends the app after nine tenths of this
	 * timeout: the second alarm does. */
	c = start_patient((struct options){.workers = 2, .app_close_timeout = 1200});
	begin = clutch_now();
	mark = signal_master(c, SIGTERM);
	cluster_wait(c, mark, ":APP#1 hangs");
	cluster_wait(c, mark, ":APP#2 hangs");
	cluster_wait(c, mark, ":AGENT#1 waits");
	expect_within(begin, 1200, 4500);
	expect_end(c, "APP#1", KILLED);
	expect_end(c, "APP#2", KILLED);
	go(c, ROLE_AGENT);
	expect_quiet_end(c, mark, 2);
}

/* The master has killed the agent before it leaves. (The master logs no SIGKILL, but the
 * agent is dead, and has not reported an exit.) */
static void
expect_killed_agent(struct cluster *c, size_t mark, int64_t begin)
{
	cluster_wait(c, mark, "exit of APP#1: 0");
	cluster_wait(c, mark, "exit of APP#2: 0");
	cluster_wait(c, mark, "kill agent worker with signal SIGTERM");
	cr_assert(process_is_alive(cluster_pid(c, "AGENT#1")));
	cluster_wait(c, mark, "[master] exit with code:0");
	expect_within(begin, 1000, 4500);
	cr_assert_not(process_is_alive(cluster_pid(c, "AGENT#1")));
	cr_assert_eq(cluster_count(c, mark, "exit of AGENT#1"), 0);
	expect_quiet_end(c, mark, 2);
}

/* D3, D27: egg's master exits before its agent. */
Test(lifecycle, s12c_the_agent_ignores_sigterm)
{
	struct cluster *c = start((struct options){.workers = 2, .agent_close_timeout = 1000});
	int64_t begin;

	cluster_did(c, "AGENT#1", "ignore");
	begin = clutch_now();
	expect_killed_agent(c, signal_master(c, SIGTERM), begin);
}

/* D3, D27: egg's agent lives on. */
Test(lifecycle, s12d_the_agent_hangs_when_it_closes)
{
	struct cluster *c;
	int64_t begin;

	manners.agent.close = close_never_ever;
	c = start((struct options){.workers = 2, .agent_close_timeout = 1000});
	begin = clutch_now();
	expect_killed_agent(c, signal_master(c, SIGTERM), begin);
}

Test(lifecycle, s12e_close_timeouts_from_the_environment)
{
	struct cluster *c;
	int64_t begin;
	size_t mark;

	clear_environment();
	setenv("EGG_APP_CLOSE_TIMEOUT", "1500", 1);
	setenv("EGG_AGENT_CLOSE_TIMEOUT", "1000", 1);
	c = start((struct options){.workers = 2});
	cluster_did(c, "APP#1", "ignore");
	cluster_did(c, "APP#2", "ignore");
	cluster_did(c, "AGENT#1", "ignore");
	begin = clutch_now();
	mark = signal_master(c, SIGTERM);
	cluster_wait(c, mark, "kill agent worker with signal SIGTERM");
	expect_within(begin, 1500, 4500);
	expect_end(c, "APP#1", KILLED);
	expect_end(c, "APP#2", KILLED);
	cluster_wait(c, mark, "[master] exit with code:0");
	expect_within(begin, 2500, 6000);
	cr_assert_eq(cluster_count(c, mark, "exit of"), 0);
	expect_quiet_end(c, mark, 2);
}

Test(lifecycle, s12f_closing_fails_in_app_and_agent)
{
	struct cluster *c;
	size_t mark;

	manners.agent.close = manners.app.close = close_badly;
	c = start((struct options){.workers = 2});
	mark = signal_master(c, SIGTERM);
	cluster_wait(c, mark, "exit of APP#1: 0");
	cluster_wait(c, mark, "exit of APP#2: 0");
	cluster_wait(c, mark, "exit of AGENT#1: 0");
	cr_assert_eq(cluster_count(c, mark, "[app_worker] beforeExit fail"), 2);
	cr_assert_eq(cluster_count(c, mark, "[agent_worker] beforeExit fail"), 1);
	expect_quiet_end(c, mark, 2);
}

/* An app may take its whole close timeout; the agent's timeout begins when the apps are gone. */
Test(lifecycle, s12g_closing_takes_its_time_in_app_and_agent)
{
	struct cluster *c;
	size_t mark;

	manners.app.close = close_when_told;
	c = start_patient((struct options){.workers = 2, .app_close_timeout = LONG});
	mark = signal_master(c, SIGTERM);
	cluster_wait(c, mark, ":APP#1 waits");
	cluster_wait(c, mark, ":APP#2 waits");
	pass(c, 300);
	cr_assert_eq(cluster_count(c, mark, "exit of"), 0);
	cr_assert_eq(cluster_count(c, mark, "agent worker"), 0);
	go(c, ROLE_APP);
	cluster_wait(c, mark, "exit of APP#1: 0");
	cluster_wait(c, mark, "exit of APP#2: 0");
	cluster_wait(c, mark, ":AGENT#1 waits");
	expect_end(c, "APP#1", "code: 0, signal: null");
	expect_end(c, "APP#2", "code: 0, signal: null");
	pass(c, 300);
	cr_assert_eq(cluster_count(c, mark, "exit of AGENT#1"), 0);
	go(c, ROLE_AGENT);
	cluster_wait(c, mark, "exit of AGENT#1: 0");
	expect_quiet_end(c, mark, 2);
}

/* Fork a child that only SIGKILL ends; the child keeps the channel and the ports open. */
static int
load_and_fork(struct messenger *messenger, void *arg)
{
	char byte;
	int ends[2];
	pid_t pid;

	(void)arg;
	if (pipe(ends) == -1)
		return 1;
	pid = fork();
	if (pid == 0) {
		signal(SIGTERM, SIG_IGN);
		report(messenger, "grandchild");
		close(ends[0]);
		close(ends[1]);
		for (;;)
			pause();
	}
	close(ends[1]);
	while (read(ends[0], &byte, 1) == -1) /* until the child has reported */
		;
	close(ends[0]);
	return pid == -1;
}

Test(lifecycle, s12h_a_grandchild_ignores_sigterm)
{
	struct cluster *c;
	int64_t begin;
	pid_t all[8];
	size_t mark;

	manners.app.load = load_and_fork;
	c = start((struct options){.workers = 1, .app_close_timeout = 1000});
	cluster_wait(c, 0, "grandchild");
	cr_assert_eq(cluster_processes(c, all, 8), 4);
	begin = clutch_now();
	mark = signal_master(c, SIGTERM);
	cluster_wait(c, mark, "exit of APP#1: 0");
	cluster_wait(c, mark, "exit of AGENT#1: 0");
	expect_within(begin, 1000, 4500);
	expect_quiet_end(c, mark, 1); /* no process is left, and no grandchild */
}

Test(lifecycle, s12h_a_grandchild_of_the_agent_ignores_sigterm)
{
	struct cluster *c;
	size_t mark;

	manners.agent.load = load_and_fork;
	c = start((struct options){.workers = 1, .agent_close_timeout = 1000});
	cluster_wait(c, 0, "grandchild");
	mark = signal_master(c, SIGTERM);
	cluster_wait(c, mark, "exit of AGENT#1: 0");
	expect_quiet_end(c, mark, 1);
}

Test(lifecycle, s12h_a_grandchild_does_not_survive_a_failed_start)
{
	struct cluster *c;

	manners.agent.load = load_and_fork;
	manners.app.load = load_badly;
	c = launch((struct options){.workers = 1, .agent_close_timeout = 1000});
	cluster_wait(c, 0, "grandchild");
	cluster_wait(c, 0, "exit of AGENT#1: 110");
	cluster_ended(c, 1);
}

/* In a running cluster a grandchild dies with its parent: the next worker needs the ports. */
Test(lifecycle, s12h_a_grandchild_goes_with_its_killed_parent)
{
	struct cluster *c;
	pid_t all[8];

	manners.app.load = load_and_fork;
	c = start((struct options){.workers = 1, .app_close_timeout = 1000});
	cluster_wait(c, 0, "grandchild");
	cluster_signal(c, "APP#1", SIGKILL);
	cluster_wait(c, 0, ":APP#2 saw egg-ready");
	while (cluster_processes(c, all, 8) != 4) /* the deadline is the test's */
		cluster_turn(c);
	cluster_stop(c);
}

/* ---- 12i, 12j: a worker that drains ------------------------------------------------------ */

static int
on_client(struct messenger *app, int descriptor, short revents, void *arg)
{
	char byte;

	(void)revents, (void)arg;
	if (read(descriptor, &byte, 1) > 0)
		return 0;
	messenger_unwatch(app, descriptor);
	return close(descriptor);
}

static int
keep_connection(struct messenger *app, int descriptor, void *arg)
{
	(void)arg;
	report(app, "accepted");
	return messenger_watch(app, descriptor, POLLIN, on_client, NULL);
}

/* APP#1 has an open connection and an uncaught error; APP#2 replaces it. */
static struct cluster *
start_draining(int app_close_timeout, int *client)
{
	struct cluster *c = start_patient((struct options){.workers = 1,
	                                                   .connection = keep_connection,
	                                                   .app_close_timeout = app_close_timeout});

	*client = cluster_connect(c);
	cluster_wait(c, 0, ":APP#1 accepted");
	cluster_order(c, "APP#1", "uncaught 7");
	cluster_wait(c, 0, "app_worker#1:APP#1 disconnect");
	cluster_wait(c, 0, ":APP#2 saw egg-ready");
	cluster_wait(c, 0, ":AGENT#1 saw egg-pids [APP#2]");
	cluster_ask_status(c);
	expect_state(c, "APP#1", "disconnected");
	return c;
}

Test(lifecycle, s12i_sigterm_to_the_master_while_an_app_drains)
{
	int client;
	struct cluster *c = start_draining(LONG, &client);
	size_t mark = signal_master(c, SIGTERM);

	cluster_wait(c, mark, "exit of APP#2: 0");
	cr_assert_eq(cluster_count(c, mark, ":AGENT#1 waits"), 0);
	close(client);
	cluster_wait(c, mark, "exit of APP#1: 0");
	cluster_wait(c, mark, ":AGENT#1 waits");
	expect_end(c, "APP#1", "code: 0, signal: null");
	go(c, ROLE_AGENT);
	expect_quiet_end(c, mark, 2);
}

/* The client stays; the app leaves by itself, just before the master would kill it. */
Test(lifecycle, s12i_sigterm_to_the_master_while_an_app_drains_for_ever)
{
	int client;
	struct cluster *c = start_draining(2000, &client);
	int64_t begin = clutch_now();
	size_t mark = signal_master(c, SIGTERM);

	cluster_wait(c, mark, ":AGENT#1 waits");
	expect_within(begin, 1700, 4500);
	expect_end(c, "APP#1", "code: 0, signal: null");
	go(c, ROLE_AGENT);
	expect_quiet_end(c, mark, 2);
	close(client);
}

/* D20: an app leaves with its last connection; in egg it stays for the rest of the 30 s. */
Test(lifecycle, s12j_sigkill_to_the_master_while_an_app_drains)
{
	int client;
	struct cluster *c = start_draining(LONG, &client);
	size_t mark = signal_master(c, SIGKILL);

	cr_assert_str_eq(cluster_wait_end(c, "APP#2"), "code: 0, signal: null");
	cr_assert_str_eq(cluster_wait_end(c, "AGENT#1"), "code: 110, signal: null");
	cr_assert(process_is_alive(cluster_pid(c, "APP#1")));
	close(client);
	cr_assert_str_eq(cluster_wait_end(c, "APP#1"), "code: 1, signal: null");
	expect_silence(c, mark, 2);
	cluster_killed(c, SIGKILL);
}

/* ---- 15: the parent leaves --------------------------------------------------------------- */

/* D7, D9: egg tells a newcomer no pids, and tells the agent one list fewer. */
Test(lifecycle, s15_the_parent_closes_its_channel)
{
	struct cluster *c = start((struct options){.workers = 1});
	size_t mark = cluster_mark(c);

	shutdown(c->parent->channel.descriptor, SHUT_RDWR);
	cluster_signal(c, "APP#1", SIGKILL);
	cluster_wait_saw(c, "APP#2", "egg-pids [AGENT#1] -> egg-ready <options>");
	cluster_wait_saw_from(c, mark, "AGENT#1",
	                      "egg-pids [] -> egg-pids [] -> egg-pids [APP#2]"
	                      " || egg-pids [] -> egg-pids [APP#2] -> egg-pids [APP#2]");
	cluster_ask_status(c);
	cr_assert_null(cluster_status(c, "PARENT", "state"));
	expect_state(c, "APP#2", "listening");
	cr_assert_str_eq(cluster_saw(c, mark, "PARENT"), "");
	cr_assert_not(c->dead);
	cluster_stop(c);
}

/* ---- a cluster without a parent, or with a terminal -------------------------------------- */

/* Open a pipe or a terminal; return the end that the cluster writes to. */
static int
open_output(struct bare *bare, bool terminal)
{
	struct termios settings;
	int ends[2];

	if (!terminal) {
		cr_assert_eq(pipe(ends), 0);
		bare->output = ends[0];
		return ends[1];
	}
	bare->output = posix_openpt(O_RDWR | O_NOCTTY);
	cr_assert(bare->output != -1 && grantpt(bare->output) == 0 && unlockpt(bare->output) == 0);
	ends[1] = open(ptsname(bare->output), O_RDWR | O_NOCTTY);
	cr_assert(ends[1] != -1 && tcgetattr(ends[1], &settings) == 0);
	settings.c_lflag |= NOFLSH; /* else Ctrl-C drops unread output */
	cr_assert_eq(tcsetattr(ends[1], TCSANOW, &settings), 0);
	return ends[1];
}

static void
bare_start(struct bare *bare, struct options options, bool terminal)
{
	int end;

	clear_environment();
	options.agent = options.app = obey;
	options.port = -1;
	bare->length = 0;
	end = open_output(bare, terminal);
	fflush(NULL);
	bare->master = fork();
	cr_assert(bare->master != -1);
	if (bare->master == 0)
		run_bare(&options, bare, end);
	close(end);
}

static void
bare_wait(struct bare *bare, const char *text)
{
	int64_t deadline = clutch_now() + time_limit();

	bare->text[bare->length] = '\0';
	while (strstr(bare->text, text) == NULL)
		cr_assert(bare_read(bare, deadline), "no \"%s\" in:\n%s", text, bare->text);
}

/* The master has exited with 0, and no process is left. */
static void
bare_end(struct bare *bare)
{
	int64_t deadline = clutch_now() + time_limit();
	int status;

	while (bare_read(bare, deadline))
		;
	close(bare->output);
	cr_assert_eq(waitpid(bare->master, &status, 0), bare->master);
	cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %x:\n%s", (unsigned)status,
	          bare->text);
}

/* Two apps, the agent and the master have exited with 0. */
static void
expect_bare_end(struct bare *bare)
{
	bare_end(bare);
	cr_assert_eq(bare_count(bare, "receive signal SIGTERM, exiting with code:0"), 3, "%s",
	             bare->text);
	cr_assert_eq(bare_count(bare, "beforeExit success"), 3, "%s", bare->text);
	cr_assert_eq(bare_count(bare, ": 0\n") + bare_count(bare, ": 0\r\n"), 3, "%s", bare->text);
	cr_assert_eq(bare_count(bare, "is killed by signal"), 1, "%s", bare->text);
	cr_assert_eq(bare_count(bare, "[master] exit with code:0"), 1, "%s", bare->text);
}

/* D4: in egg the signal reaches all processes; the master then waits 10 s for dead ones. */
static void
expect_key_to_end_it(const char *keys, const char *signal_name)
{
	static struct bare bare;
	int64_t begin;

	bare_start(&bare, (struct options){.workers = 2}, true);
	bare_wait(&bare, "[master] to stop it: Ctrl-C");
	begin = clutch_now();
	cr_assert_eq(write(bare.output, keys, strlen(keys)), (ssize_t)strlen(keys));
	expect_bare_end(&bare);
	cr_assert(strstr(bare.text, signal_name) != NULL, "%s", bare.text);
	expect_within(begin, 0, 4500);
}

Test(lifecycle, s08e_ctrl_c_in_a_terminal)
{
	expect_key_to_end_it("\003", "signal SIGINT, closing");
}

Test(lifecycle, s08e_ctrl_c_pressed_again_and_again) /* D15 */
{
	expect_key_to_end_it("\003\003\003\003", "signal SIGINT, closing");
}

Test(lifecycle, s08e_ctrl_backslash_in_a_terminal)
{
	expect_key_to_end_it("\034", "signal SIGQUIT, closing");
}

Test(lifecycle, s16_without_a_parent)
{
	static struct bare bare;

	bare_start(&bare, (struct options){.workers = 2}, false);
	bare_wait(&bare, "[master] to stop it: Ctrl-C");
	kill(bare.master, SIGUSR1);
	bare_wait(&bare, "[master] status ],");
	cr_assert_eq(bare_count(&bare, "{\"role\":\"parent\""), 0);
	cr_assert_eq(bare_count(&bare, "\"state\":\"listening\""), 3);
	kill(bare.master, SIGTERM);
	expect_bare_end(&bare);
}

/* The children have inherited the buffer, and exit(3) writes it out. */
Test(lifecycle, s16_what_is_buffered_is_printed_once)
{
	static struct bare bare = {.buffers = true};

	bare_start(&bare, (struct options){.workers = 2}, false);
	bare_wait(&bare, "[master] to stop it: Ctrl-C");
	cr_assert_eq(strncmp(bare.text, BUFFERED, strlen(BUFFERED)), 0, "%s", bare.text);
	kill(bare.master, SIGTERM);
	expect_bare_end(&bare);
	cr_assert_eq(bare_count(&bare, BUFFERED), 1, "%s", bare.text);
}

/* ---- signals at any time ----------------------------------------------------------------- */

/* The master answers signals during the start, and the cluster still becomes ready. */
Test(lifecycle, signals_during_the_start)
{
	static const char *const events[] = {"agent_worker#1:AGENT#1 start", "AGENT#1 loads",
	                                     "app_worker#1:APP#1 start", "APP#2 loads"};
	struct cluster *c;
	size_t i, at;

	manners.agent.load = manners.app.load = load_long;
	c = launch((struct options){.workers = 2});
	for (i = 0; i < 4; i++) {
		cluster_wait(c, 0, "%s", events[i]);
		cluster_signal(c, "MASTER", SIGCHLD); /* no process has died */
		at = cluster_ask_status(c);
		cluster_wait(c, at, "\"state\":\"starting\"");
		if (i == 1)
			cluster_order(c, "AGENT#1", "ready 0");
	}
	cluster_order(c, "APP#1", "ready 0");
	cluster_order(c, "APP#2", "ready 0");
	cluster_ready(c);
	cr_assert_eq(cluster_count(c, 0, " died "), 0);
	cluster_stop(c);
}

/* Send SIGTERM after this line of the start. */
static void
expect_end_after(const char *line)
{
	struct cluster *c = launch((struct options){.workers = 2});

	cluster_wait(c, 0, "%s", line);
	cluster_signal(c, "MASTER", SIGTERM);
	cluster_wait(c, 0, "[master] exit with code:0");
	cr_assert_eq(cluster_count(c, 0, " died "), 0);
	cluster_ended(c, 0);
}

Test(lifecycle, sigterm_during_the_start)
{
	expect_end_after("agent_worker#1:AGENT#1 start");
	expect_end_after("agent_worker#1:AGENT#1 started");
	expect_end_after("app_worker#1:APP#1 start");
	expect_end_after("app_worker#2:APP#2 start");
	expect_end_after("started, remain 1");
	expect_end_after("started, remain 0");
	expect_end_after("[master] egg started");
}

Test(lifecycle, signals_while_the_agent_is_dead)
{
	struct cluster *c = start((struct options){.workers = 1});
	int64_t begin;
	int i;

	begin = clutch_now();
	cluster_signal(c, "AGENT#1", SIGKILL);
	cluster_wait(c, 0, "try to start a new agent_worker");
	for (i = 0; i < 20; i++) {
		cluster_signal(c, "MASTER", SIGCHLD);
		cluster_ask_status(c);
		if (cluster_count(c, 0, "agent_worker#2:") > 0)
			break; /* the machine is busy: the second before the next agent is over */
		expect_state(c, "agent", "dead");
		cr_assert_eq(cluster_figure(c, "agent", "pid"), 0);
	}
	cluster_wait(c, 0, ":AGENT#2 saw egg-ready");
	expect_within(begin, 1000, 4500);
	cr_assert_eq(cluster_count(c, 0, "agent_worker#3"), 0);
	cluster_stop(c);
}

static struct cluster *
start_flood(size_t *mark)
{
	struct cluster *c;

	unobserved = true;
	c = launch((struct options){.workers = 1});
	cluster_ready(c);
	*mark = cluster_mark(c);
	cluster_order(c, "APP#1", "flood 3");
	return c;
}

/* Signals interrupt system calls; no message is lost by that. */
static bool
interrupt(struct cluster *c, void *arg)
{
	cluster_signal(c, "MASTER", SIGCHLD);
	cluster_signal(c, "MASTER", SIGUSR1);
	return cluster_count(c, *(size_t *)arg, "AGENT#1 got the last") > 0;
}

Test(lifecycle, signals_under_load_lose_nothing)
{
	size_t mark;
	struct cluster *c = start_flood(&mark);

	cluster_until(c, interrupt, &mark, "the last message of the flood");
	cr_assert_eq(cluster_count(c, mark, " instead of "), 0);
	cluster_stop(c);
}

/* ---- D18, D22 ---------------------------------------------------------------------------- */

/* D18: egg counts events, so an app that says twice that it listens counts as two apps. */
Test(lifecycle, an_app_counts_once)
{
	struct cluster *c;

	manners.app.load = load_long;
	c = launch((struct options){.workers = 2});
	cluster_wait(c, 0, ":APP#1 loads");
	cluster_wait(c, 0, ":APP#2 loads");
	cluster_did(c, "APP#1", "ready 0");
	cluster_did(c, "APP#1", "listening 0");
	cluster_did(c, "APP#1", "listening 0");
	cluster_wait(c, 0, "app_worker#1:APP#1 may not send listening: refused");
	cluster_ask_status(c);
	cr_assert_eq(cluster_count(c, 0, "saw egg-ready"), 0);
	cr_assert_eq(cluster_count(c, 0, "remain 0"), 0);
	cluster_order(c, "APP#2", "ready 0");
	cluster_ready(c);
	cr_assert_eq(cluster_count(c, 0, "remain 0"), 1);
	cluster_stop(c);
}

/* D22: egg lost 9,432 of these messages. */
Test(lifecycle, what_was_sent_before_an_exit_arrives)
{
	size_t mark;
	struct cluster *c = start_flood(&mark);

	cluster_wait(c, mark, ":AGENT#1 got the last");
	cr_assert_str_eq(cluster_wait_end(c, "APP#1"), "code: 3, signal: null");
	cr_assert_eq(cluster_count(c, mark, " instead of "), 0);
	cr_assert_eq(cluster_count(c, mark, "cannot send"), 0);
	cluster_wait(c, mark, "app_worker#2:APP#2 started");
	cluster_stop(c);
}

/* ---- the ends of clusters, grandchildren and channels -------------------------------- */

/* master.c, fork_cluster: the second master gives up the messengers of the process that
 * has forked it. If it keeps the first one's channel, that master never sees its end. */
Test(lifecycle, a_second_cluster_does_not_hold_the_first_ones_parent_up)
{
	struct options options = {
		.agent = obey, .app = obey, .workers = 1, .end_with_parent = true};
	struct cluster *first = cluster_start(&options), *second;

	cluster_ready(first);
	second = cluster_start(&options);
	cluster_ready(second);
	channel_close(&first->parent->channel);
	cluster_wait(first, 0, "[master] the parent is gone, closing");
	cluster_ended(first, 0);
	cluster_stop(second);
}

static char marker[256];

static void
name_marker(void)
{
	snprintf(marker, sizeof marker, "%s/marker", test_folder());
}

static void
set_marker(void)
{
	close(open(marker, O_CREAT | O_WRONLY, 0600));
}

/* The app of slot 1 fails when the other one has a child. */
static int
one_has_a_child_one_fails(struct messenger *app, void *arg)
{
	sigset_t set;
	int number;

	(void)arg;
	if (messenger_slot(app) == 1) {
		while (access(marker, F_OK) == -1)
			poll(NULL, 0, 1);
		return -1;
	}
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigprocmask(SIG_BLOCK, &set, NULL);
	if (fork() == 0) {
		set_marker();
		sigwait(&set, &number);
		report(app, "grandchild was told");
		_exit(0);
	}
	sigprocmask(SIG_UNBLOCK, &set, NULL);
	return 0;
}

/* master.c, on_exit sends SIGTERM to the group when the start has failed. Without that signal
 * the grandchild gets no signal before SIGKILL. */
Test(lifecycle, a_grandchild_is_told_when_the_start_fails)
{
	struct cluster *c;

	name_marker();
	c = cluster_start(
		&(struct options){.agent = obey, .app = one_has_a_child_one_fails, .workers = 2});
	cluster_wait(c, 0, "grandchild was told");
	cluster_ended(c, 1);
}

static int
speaks_late(struct messenger *app, void *arg)
{
	int result = messenger_send_to_agent(app, "test-late", NULL);

	(void)arg;
	report(app, "sent %d %s", result, result == -1 ? strerror(errno) : "");
	return 0;
}

static int
leave_gracefully(struct messenger *app, const struct message *message, void *arg)
{
	(void)message, (void)arg;
	messenger_graceful_exit(app);
	return 0;
}

static int
app_that_leaves(struct messenger *app, void *arg)
{
	(void)arg;
	return messenger_before_close(app, speaks_late, NULL) == 0 &&
	                       messenger_on(app, "test-leave", leave_gracefully, NULL) == 0
	               ? observe(app)
	               : -1;
}

/* worker.c, disconnect: the channel is marked as closed for writing. If it is not, the
 * call returns 0 and the message is lost. */
Test(lifecycle, after_a_graceful_exit_a_send_call_says_EPIPE)
{
	struct cluster *c = cluster_start(
		&(struct options){.agent = obey, .app = app_that_leaves, .workers = 1});

	cluster_ready(c);
	cr_assert_eq(messenger_send_to_app(c->parent, "test-leave", NULL), 0);
	cluster_turn(c);
	cluster_wait(c, 0, "sent ");
	cr_assert_neq(cluster_count(c, 0, "sent -1 Broken pipe"), 0);
	cluster_stop(c);
}
