/*
 * The core path of a live cluster: start, re-fork, shutdown, the shared port.
 *
 * The tests expect what the real egg-cluster did (golden/lifecycle.md has the sequences), except
 * where there is a divergence: Dn is a number in docs/divergences.md.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "orders.h"

TestSuite(cluster, .timeout = 120);

/* ---- processes that obey ----------------------------------------------------------------- */

static int
obey_and_be_ready_later(struct messenger *messenger, void *arg)
{
	messenger_ready_later(messenger);
	return obey(messenger, arg);
}

/* ---- start ------------------------------------------------------------------------------- */

/* lifecycle 01. D7: apps are told the agent's pid. */
Test(cluster, cold_start_with_one_worker)
{
	struct cluster *c = start_obeying(1);
	size_t at;

	cluster_wait_saw(c, "PARENT", "egg-ready <options>");
	cluster_wait_saw(c, "AGENT#1", "egg-pids [APP#1] -> egg-ready <options>");
	cluster_wait_saw(c, "APP#1", "egg-pids [AGENT#1] -> egg-ready <options>");
	round_of(c, "AGENT#1 APP#1", "AGENT#1", "opids"); /* nothing more comes */
	cluster_wait_saw(c, "PARENT", "egg-ready <options>");
	cluster_wait_saw(c, "AGENT#1", "egg-pids [APP#1] -> egg-ready <options>");
	cluster_wait_saw(c, "APP#1", "egg-pids [AGENT#1] -> egg-ready <options>");

	at = cluster_wait(c, 0, "[master] agent_worker#1:AGENT#1 start");
	at = cluster_wait(c, at, "[master] agent_worker#1:AGENT#1 started (");
	at = cluster_wait(c, at, "[master] app_worker#1:APP#1 start");
	at = cluster_wait(c, at, "[master] app_worker#1:APP#1 started, remain 0 (");
	at = cluster_wait(c, at, "[master] egg started (");
	cluster_wait(c, at, "[master] to stop it: Ctrl-C, or kill MASTER");
	cr_assert_eq(cluster_count(c, 0, "[master]"), 6);
	cluster_stop(c);
}

/* lifecycle 02. The apps may become ready in any order. */
Test(cluster, cold_start_with_three_workers)
{
	struct cluster *c = start_obeying(3);
	size_t at;
	int i;

	cluster_wait_saw(c, "PARENT", "egg-ready <options>");
	cluster_wait_saw(c, "APP#1", "egg-pids [AGENT#1] -> egg-ready <options>");
	cluster_wait_saw(c, "APP#2", "egg-pids [AGENT#1] -> egg-ready <options>");
	cluster_wait_saw(c, "APP#3", "egg-pids [AGENT#1] -> egg-ready <options>");
#define END " -> egg-pids [APP#1,APP#2,APP#3] -> egg-ready <options>"
	cluster_wait_saw(c, "AGENT#1",
	                 "egg-pids [APP#1] -> egg-pids [APP#1,APP#2]" END
	                 " || egg-pids [APP#1] -> egg-pids [APP#1,APP#3]" END
	                 " || egg-pids [APP#2] -> egg-pids [APP#1,APP#2]" END
	                 " || egg-pids [APP#2] -> egg-pids [APP#2,APP#3]" END
	                 " || egg-pids [APP#3] -> egg-pids [APP#1,APP#3]" END
	                 " || egg-pids [APP#3] -> egg-pids [APP#2,APP#3]" END);
#undef END
	round_of(c, "AGENT#1 APP#1 APP#2 APP#3", "AGENT#1", "opids");
	cluster_wait_saw(c, "APP#3", "egg-pids [AGENT#1] -> egg-ready <options>");

	at = cluster_wait(c, 0, "[master] agent_worker#1:AGENT#1 started (");
	for (i = 1; i <= 3; i++)
		cluster_wait(c, at, "[master] app_worker#%d:APP#%d start", i, i);
	for (i = 2; i >= 0; i--)
		at = cluster_wait(c, at, " started, remain %d (", i);
	cluster_wait(c, at, "[master] egg started (");
	cr_assert_eq(cluster_count(c, 0, "[master]"), 10);
	cluster_stop(c);
}

/* No app is forked before the agent is ready; egg-ready waits for every app. */
Test(cluster, the_agent_is_ready_before_apps_are_forked)
{
	struct cluster *c = cluster_start(&(struct options){
		.agent = obey_and_be_ready_later, .app = obey_and_be_ready_later, .workers = 2});
	size_t at;

	round_of(c, "AGENT#1", "AGENT#1", "opids");
	round_of(c, "AGENT#1", "AGENT#1", "opids");
	cr_assert_eq(cluster_count(c, 0, "app_worker"), 0);
	cr_assert_eq(cluster_count(c, 0, "started"), 0);

	cluster_order(c, "AGENT#1", "ready 0");
	at = cluster_wait(c, 0, "agent_worker#1:AGENT#1 started");
	at = cluster_wait(c, at, "app_worker#1:APP#1 start");
	cluster_order(c, "APP#2", "ready 0");
	at = cluster_wait(c, at, "app_worker#2:APP#2 started, remain 1");
	round_of(c, "AGENT#1 APP#1 APP#2", "APP#1", "opids");
	cr_assert_eq(cluster_count(c, 0, "egg-ready"), 0);

	cluster_order(c, "APP#1", "ready 0");
	at = cluster_wait(c, at, "app_worker#1:APP#1 started, remain 0");
	cluster_wait(c, at, "egg started");
	cluster_wait_saw(c, "AGENT#1",
	                 "egg-pids [APP#2] -> egg-pids [APP#1,APP#2] -> egg-ready <options>");
	cluster_order(c, "APP#1", "ready 0"); /* EALREADY */
	cluster_wait(c, at, ":APP#1 did ready 0: Operation already in progress");
	cluster_stop(c);
}

/* D23: messages that are sent to the apps before they are forked arrive first. */
static int
greet_the_apps(struct messenger *agent, void *arg)
{
	messenger_send_to_app(agent, "hello", "[1]");
	messenger_send_to_app(agent, "hello", "[2]");
	return obey_and_be_ready_later(agent, arg);
}

Test(cluster, what_agent_and_parent_say_to_apps_before_they_are_forked_arrives_first)
{
	struct cluster *c = cluster_start(
		&(struct options){.agent = greet_the_apps, .app = obey, .workers = 2});

	cluster_pid(c, "AGENT#1");
	round_of(c, "AGENT#1", "AGENT#1", "opids"); /* so the greetings are at the master */
	round_of(c, "AGENT#1", "PARENT", "sendToApp 0 0 0 hello [3]");
	cluster_order(c, "AGENT#1", "ready 0");
#define GREETINGS "hello [1] -> hello [2] -> hello [3] -> "
	cluster_wait_saw(c, "APP#1", GREETINGS "egg-pids [AGENT#1] -> egg-ready <options>");
	cluster_wait_saw(c, "APP#2", GREETINGS "egg-pids [AGENT#1] -> egg-ready <options>");
#undef GREETINGS
	cluster_stop(c);
}

/* ---- failed starts ----------------------------------------------------------------------- */

/* Tests hand it over as options.arg. */
struct plan {
	enum { FAIL, EXIT, NOT_READY, NEVER_READY, LATER_EXIT, UNCAUGHT } what;
	int value; /* an exit code */
};

static int
ready_with_failure(struct messenger *messenger, void *arg)
{
	(void)arg;
	return messenger_ready(messenger, 1);
}

static int
exit_now(struct messenger *messenger, void *arg)
{
	(void)messenger;
	exit(((const struct plan *)arg)->value);
}

static int
fail_now(struct messenger *messenger, void *arg)
{
	(void)messenger, (void)arg;
	return 1;
}

static int
start_badly(struct messenger *messenger, void *arg)
{
	const struct plan *plan = arg;

	switch (plan->what) {
	case FAIL:
		return 1;
	case EXIT:
		exit(plan->value);
	case NEVER_READY:
		messenger_ready_later(messenger);
		return 0;
	case NOT_READY:
	case LATER_EXIT:
	case UNCAUGHT:
		messenger_ready_later(messenger);
		return messenger_set_timeout(messenger, 1,
		                             plan->what == NOT_READY    ? ready_with_failure
		                             : plan->what == LATER_EXIT ? exit_now
		                                                        : fail_now,
		                             arg) == -1;
	}
	return 0;
}

/* The last of three apps starts badly; lifecycle 06a to 06f. */
static int
start_badly_in_slot_2(struct messenger *app, void *arg)
{
	return messenger_slot(app) == 2 ? start_badly(app, arg) : obey(app, arg);
}

static void
expect_failed_start(struct plan plan, bool is_agent, const char *end)
{
	const char *who = is_agent ? "AGENT#1" : "APP#3";
	const char *what = is_agent ? "agent_worker#1" : "app_worker#3";
	struct cluster *c = cluster_start(
		&(struct options){.agent = is_agent ? start_badly : obey,
	                          .app = start_badly_in_slot_2,
	                          .workers = 3,
	                          .worker_start_timeout = plan.what == NEVER_READY ? 1500 : 0,
	                          .arg = &plan});
	size_t at;

	cr_assert_str_eq(cluster_wait_end(c, who), end);
	at = cluster_wait(c, 0, "%s:%s died (%s)", what, who, end);
	at = cluster_wait(c, at, "%s:%s start fail, exiting with code:1", what, who);
	at = cluster_wait(c, at, "[master] exit with code:1");
	if (is_agent)
		cr_assert_eq(cluster_count(c, 0, "app_worker#1"), 0);
	else
		cluster_wait(c, 0,
		             "[agent_worker] receive disconnect event, exiting with code:110");
	cr_assert_eq(cluster_count(c, 0, "saw egg-ready"), 0);
	cluster_ended(c, 1);
}

Test(cluster, an_app_that_fails_to_start_ends_the_cluster)
{
	expect_failed_start((struct plan){FAIL, 0}, false, "code: 1, signal: null");
	expect_failed_start((struct plan){EXIT, 1}, false, "code: 1, signal: null");
	expect_failed_start((struct plan){EXIT, 0}, false, "code: 0, signal: null");
	expect_failed_start((struct plan){LATER_EXIT, 3}, false, "code: 3, signal: null");
	expect_failed_start((struct plan){NOT_READY, 0}, false, "code: 1, signal: null");
	expect_failed_start((struct plan){UNCAUGHT, 0}, false, "code: 1, signal: null");
}

Test(cluster, an_agent_that_fails_to_start_ends_the_cluster)
{
	expect_failed_start((struct plan){FAIL, 0}, true, "code: 1, signal: null");
	expect_failed_start((struct plan){EXIT, 1}, true, "code: 1, signal: null");
	expect_failed_start((struct plan){EXIT, 0}, true, "code: 0, signal: null");
	expect_failed_start((struct plan){LATER_EXIT, 3}, true, "code: 3, signal: null");
	expect_failed_start((struct plan){NOT_READY, 0}, true, "code: 1, signal: null");
}

/* lifecycle 07e */
Test(cluster, an_agent_that_dies_before_the_apps_are_ready_ends_the_cluster)
{
	struct cluster *c = cluster_start(
		&(struct options){.agent = obey, .app = obey_and_be_ready_later, .workers = 2});

	cluster_pid(c, "APP#2");
	cluster_signal(c, "AGENT#1", SIGKILL);
	cluster_wait(c, 0, "agent_worker#1:AGENT#1 start fail, exiting with code:1");
	cluster_ended(c, 1);
}

/* lifecycle 06f: SIGTERM is caught from the end of the role's function on. */
#define TIMEOUT "code: 0, signal: null, start timeout"

Test(cluster, an_app_that_is_never_ready_ends_the_cluster)
{
	int64_t start = clutch_now();

	expect_failed_start((struct plan){NEVER_READY, 0}, false, TIMEOUT);
	cr_assert(clutch_now() - start >= 1500);
}

Test(cluster, an_agent_that_is_never_ready_ends_the_cluster) /* D25 */
{
	int64_t start = clutch_now();

	expect_failed_start((struct plan){NEVER_READY, 0}, true, TIMEOUT);
	cr_assert(clutch_now() - start >= 1500);
}

/* ---- death and replacement --------------------------------------------------------------- */

static int
obey_and_report_slot(struct messenger *app, void *arg)
{
	const char *index = getenv("CFORK_WORKER_INDEX"), *count = getenv("CFORK_WORKER_COUNT");

	report(app, "loads in slot %d, index %s of %s", messenger_slot(app),
	       index != NULL ? index : "-", count != NULL ? count : "-");
	return obey(app, arg);
}

/* lifecycle 03a. D7: the new app knows the agent. D9: egg-pids is sent at disconnect and
 * at exit; a slow exit may come after the replacement is ready. D10: only the new app hears
 * egg-ready. */
static void
expect_replacement(struct cluster *c, size_t mark, const char *end)
{
	cr_assert_str_eq(cluster_wait_end(c, "APP#2"), end);
	cluster_wait_saw(c, "PARENT", "egg-ready <options> -> app-worker-died");
	cluster_wait_saw(c, "APP#4", "egg-pids [AGENT#1] -> egg-ready <options>");
	round_of(c, "AGENT#1 APP#1 APP#3 APP#4", "APP#4", "opids");
	cluster_wait_saw_from(c, mark, "AGENT#1",
	                      "egg-pids [APP#1,APP#3] -> egg-pids [APP#1,APP#3]"
	                      " -> egg-pids [APP#1,APP#3,APP#4]"
	                      " || egg-pids [APP#1,APP#3] -> egg-pids [APP#1,APP#3,APP#4]"
	                      " -> egg-pids [APP#1,APP#3,APP#4]");
	cluster_wait_saw_from(c, mark, "APP#1", "");
	cluster_wait_saw_from(c, mark, "APP#3", "");
	cluster_wait(c, mark, "app_worker#2:APP#2 disconnect");
	cluster_wait(c, mark, "@app:1:APP#4 loads in slot 1, index 1 of 3");
	cr_assert_eq(cluster_count(c, 0, "app_worker#5"), 0);
	cluster_stop(c);
}

static struct cluster *
start_three(size_t *mark)
{
	struct cluster *c = cluster_start(
		&(struct options){.agent = obey, .app = obey_and_report_slot, .workers = 3});

	cluster_ready(c);
	round_of(c, "AGENT#1 APP#1 APP#2 APP#3", "APP#1", "opids");
	cluster_wait(c, 0, "@app:0:APP#1 loads in slot 0, index 0 of 3");
	cluster_wait(c, 0, "@app:1:APP#2 loads in slot 1, index 1 of 3");
	cluster_wait(c, 0, "@app:2:APP#3 loads in slot 2, index 2 of 3");
	*mark = cluster_mark(c);
	return c;
}

Test(cluster, an_app_killed_is_replaced_at_once_in_its_slot)
{
	size_t mark;
	struct cluster *c = start_three(&mark);
	int64_t start = clutch_now();

	cluster_signal(c, "APP#2", SIGKILL);
	cluster_pid(c, "APP#4");
	cr_assert(clutch_now() - start < 1000 * time_scale(),
	          "the replacement was not forked within a second");
	expect_replacement(c, mark, "code: null, signal: SIGKILL");
}

Test(cluster, an_app_that_exits_is_replaced) /* 03d */
{
	size_t mark;
	struct cluster *c = start_three(&mark);

	cluster_order(c, "APP#2", "exit 1");
	expect_replacement(c, mark, "code: 1, signal: null");
}

Test(cluster, an_app_stopped_from_outside_is_replaced) /* 03c */
{
	size_t mark;
	struct cluster *c = start_three(&mark);

	cluster_signal(c, "APP#2", SIGTERM);
	expect_replacement(c, mark, "code: 0, signal: null");
}

Test(cluster, an_app_with_an_uncaught_error_leaves_at_once_and_is_replaced) /* 04a, D20 */
{
	size_t mark;
	struct cluster *c = start_three(&mark);

	cluster_order(c, "APP#2", "uncaught 7");
	cluster_wait(c, mark, "[app_worker] uncaught error 7 in a listener");
	expect_replacement(c, mark, "code: 1, signal: null");
}

Test(cluster, env_local_does_not_replace_apps) /* 03e */
{
	struct cluster *c = cluster_start(
		&(struct options){.agent = obey, .app = obey, .workers = 2, .env = "local"});
	size_t mark;

	cluster_ready(c);
	round_of(c, "AGENT#1 APP#1 APP#2", "APP#1", "opids");
	mark = cluster_mark(c);
	cluster_signal(c, "APP#2", SIGKILL);
	cluster_wait(c, mark, ":PARENT saw app-worker-died");
	round_of(c, "AGENT#1 APP#1", "PARENT", "sendToApp 0 0 0 a 1");
	round_of(c, "AGENT#1 APP#1", "PARENT", "sendToApp 0 0 0 b 2");
	cr_assert_eq(cluster_count(c, 0, "app_worker#3"), 0);
	cluster_wait_saw_from(c, mark, "AGENT#1", "egg-pids [APP#1] -> egg-pids [APP#1]");
	cluster_stop(c);
}

/* lifecycle 05a. D8: the new agent hears egg-pids first. */
static void
expect_new_agent(struct cluster *c, size_t mark, int64_t killed_at, const char *end)
{
	cr_assert_str_eq(cluster_wait_end(c, "AGENT#1"), end);
	cluster_wait(c, mark, "try to start a new agent_worker after 1s");
	cluster_pid(c, "AGENT#2");
	cr_assert(clutch_now() - killed_at >= 900,
	          "the new agent was forked before a second was over");
	cluster_wait_saw(c, "AGENT#2", "egg-pids [APP#1,APP#2] -> egg-ready <options>");
	cluster_wait_saw_from(c, mark, "APP#1", "egg-pids [] -> egg-pids [AGENT#2] -> agent-start");
	cluster_wait_saw_from(c, mark, "APP#2", "egg-pids [] -> egg-pids [AGENT#2] -> agent-start");
	cluster_wait_saw(c, "PARENT", "egg-ready <options> -> agent-worker-died");
	round_of(c, "AGENT#2 APP#1 APP#2", "APP#1", "opids");
	cluster_wait(c, mark, ":APP#1 opids [AGENT#2] slot 0");
	cluster_wait_saw(c, "AGENT#2", "egg-pids [APP#1,APP#2] -> egg-ready <options>");
	cr_assert_eq(cluster_count(c, 0, "agent_worker#3"), 0);
	cr_assert_eq(cluster_count(c, 0, "app_worker#3"), 0);
	cluster_stop(c);
}

Test(cluster, an_agent_killed_is_replaced_after_a_second)
{
	struct cluster *c = start_obeying(2);
	size_t mark;
	int64_t now;

	round_of(c, "AGENT#1 APP#1 APP#2", "APP#1", "opids");
	mark = cluster_mark(c);
	now = clutch_now();
	cluster_signal(c, "AGENT#1", SIGKILL);
	expect_new_agent(c, mark, now, "code: null, signal: SIGKILL");
}

Test(cluster, an_agent_stopped_from_outside_is_replaced) /* 05b */
{
	struct cluster *c = start_obeying(2);
	size_t mark;
	int64_t now;

	round_of(c, "AGENT#1 APP#1 APP#2", "APP#1", "opids");
	mark = cluster_mark(c);
	now = clutch_now();
	cluster_signal(c, "AGENT#1", SIGTERM);
	expect_new_agent(c, mark, now, "code: 0, signal: null");
}

Test(cluster, an_agent_with_an_uncaught_error_lives_on) /* 04d */
{
	struct cluster *c = start_obeying(1);

	round_of(c, "AGENT#1 APP#1", "AGENT#1", "uncaught 7");
	cluster_wait(c, 0, "[agent_worker] uncaught error 7 in a listener");
	round_of(c, "AGENT#1 APP#1", "AGENT#1", "opids");
	cr_assert_eq(cluster_count(c, 0, "died"), 0);
	cluster_stop(c);
}

Test(cluster, when_the_master_is_killed_everybody_leaves) /* 09a */
{
	struct cluster *c = start_obeying(2);

	round_of(c, "AGENT#1 APP#1 APP#2", "APP#1", "opids");
	cluster_signal(c, "MASTER", SIGKILL);
	cr_assert_str_eq(cluster_wait_end(c, "AGENT#1"), "code: 110, signal: null");
	cr_assert_str_eq(cluster_wait_end(c, "APP#1"), "code: 0, signal: null");
	cr_assert_str_eq(cluster_wait_end(c, "APP#2"), "code: 0, signal: null");
	cluster_killed(c, SIGKILL);
}

/* ---- shutdown ---------------------------------------------------------------------------- */

/* The agent is told to leave when no app is left. */
static int
look_for_apps(struct messenger *agent, void *arg)
{
	size_t i, count, left = 0;
	const pid_t *apps = messenger_opids(agent, &count);

	(void)arg;
	for (i = 0; i < count; i++)
		left += kill(apps[i], 0) == 0 || errno != ESRCH;
	report(agent, "leaves, %zu of %zu apps are left", left, count);
	return 0;
}

static int
report_leaving(struct messenger *app, void *arg)
{
	(void)arg;
	report(app, "leaves, closing %d", messenger_closing(app));
	return 0;
}

static int
leave_loudly(struct messenger *messenger, void *arg)
{
	messenger_before_close(
		messenger, messenger_role(messenger) == ROLE_APP ? report_leaving : look_for_apps,
		NULL);
	return obey(messenger, arg);
}

/* lifecycle 08a, 08b, 08c */
static void
expect_shutdown(int number, const char *name)
{
	struct cluster *c = cluster_start(
		&(struct options){.agent = leave_loudly, .app = leave_loudly, .workers = 3});
	size_t mark, at, apps = 0;
	int i;

	cluster_ready(c);
	round_of(c, "AGENT#1 APP#1 APP#2 APP#3", "APP#1", "opids");
	mark = cluster_mark(c);
	cluster_signal(c, "MASTER", number);
	at = cluster_wait(c, mark, "[master] master is killed by signal %s, closing", name);
	at = cluster_wait(c, at,
	                  "[master] send kill SIGTERM to app workers, "
	                  "will exit with code:0 after 5000ms");
	for (i = 1; i <= 3; i++) {
		size_t end = cluster_wait(c, at, ":APP#%d leaves, closing 1", i);

		apps = end > apps ? end : apps;
	}
	at = cluster_wait(c, apps,
	                  "[master] send kill SIGTERM to agent worker, "
	                  "will exit with code:0 after 5000ms");
	cr_assert_eq(
		cluster_count(c, mark, "[app_worker] receive signal SIGTERM, exiting with code:0"),
		3);
	cr_assert_eq(cluster_count(c, mark, "[app_worker] beforeExit success"), 3);
	at = cluster_wait(c, at, "[master] kill agent worker with signal SIGTERM");
	at = cluster_wait(c, at, "[agent_worker] receive signal SIGTERM, exiting with code:0");
	at = cluster_wait(c, at, ":AGENT#1 leaves, 0 of 3 apps are left");
	at = cluster_wait(c, at, "[agent_worker] beforeExit success");
	cluster_wait(c, at, "[master] exit with code:0");
	cr_assert_str_eq(cluster_saw(c, mark, "PARENT"), "");
	cr_assert_str_eq(cluster_saw(c, mark, "AGENT#1"), "");
	cr_assert_eq(cluster_count(c, mark, "disconnect"), 0);
	cluster_ended(c, 0);
}

Test(cluster, sigterm_stops_apps_then_agent_then_master)
{
	expect_shutdown(SIGTERM, "SIGTERM");
}

Test(cluster, sigint_stops_apps_then_agent_then_master)
{
	expect_shutdown(SIGINT, "SIGINT");
}

Test(cluster, sigquit_stops_apps_then_agent_then_master)
{
	expect_shutdown(SIGQUIT, "SIGQUIT");
}

/* D4, 08e: Ctrl-C in a terminal is for its foreground process group. */
Test(cluster, ctrl_c_reaches_the_master_alone)
{
	struct cluster *c = cluster_start(
		&(struct options){.agent = leave_loudly, .app = leave_loudly, .workers = 2});

	cluster_ready(c);
	cr_assert_eq(kill(-c->master, SIGINT), 0);
	cluster_wait(c, 0, ":APP#1 leaves");
	cluster_wait(c, 0, ":APP#2 leaves");
	cluster_wait(c, 0, ":AGENT#1 leaves, 0 of 2");
	cluster_ended(c, 0);
}

Test(cluster, sigterm_while_the_apps_are_loading) /* 08f */
{
	struct cluster *c = cluster_start(
		&(struct options){.agent = obey, .app = obey_and_be_ready_later, .workers = 2});

	cluster_pid(c, "APP#2");
	cluster_stop(c);
}

Test(cluster, sigterm_while_the_agent_is_loading) /* 08g */
{
	struct cluster *c = cluster_start(
		&(struct options){.agent = obey_and_be_ready_later, .app = obey, .workers = 2});

	cluster_pid(c, "AGENT#1");
	cluster_signal(c, "MASTER", SIGTERM);
	cluster_wait(c, 0, "[master] exit with code:0");
	cr_assert_eq(cluster_count(c, 0, "app_worker#1"), 0);
	cluster_ended(c, 0);
}

/* A process that leaves only when the test orders it to go. */
static int
on_go(struct messenger *messenger, const struct message *message, void *arg)
{
	(void)messenger, (void)message;
	*(bool *)arg = true;
	return 0;
}

static int
wait_for_go(struct messenger *messenger, void *arg)
{
	bool *go = arg;

	report(messenger, "waits");
	while (!*go && messenger_step(messenger, -1) == 1)
		;
	return 0;
}

/* lifecycle 08h, D14: the agent's restart would be due while an app is still leaving. */
static int
be_told(struct messenger *messenger, void *arg)
{
	(void)messenger;
	*(bool *)arg = true;
	return 0;
}

static int
leave_after_a_second(struct messenger *app, void *arg)
{
	static bool go;

	(void)arg;
	messenger_set_timeout(app, 1200, be_told, &go);
	return wait_for_go(app, &go);
}

static int
leave_slowly(struct messenger *app, void *arg)
{
	messenger_before_close(app, leave_after_a_second, NULL);
	return obey(app, arg);
}

Test(cluster, sigterm_while_the_agent_is_dead)
{
	struct cluster *c =
		cluster_start(&(struct options){.agent = obey, .app = leave_slowly, .workers = 1});

	cluster_ready(c);
	cluster_signal(c, "AGENT#1", SIGKILL);
	cluster_wait(c, 0, "try to start a new agent_worker");
	cluster_signal(c, "MASTER", SIGTERM);
	cluster_wait(c, 0, ":APP#1 waits");
	cluster_wait(c, 0, "[master] exit with code:0");
	cr_assert_eq(cluster_count(c, 0, "agent_worker#2"), 0);
	cluster_ended(c, 0);
}

static int
leave_when_told(struct messenger *messenger, void *arg)
{
	static bool go;

	messenger_on(messenger, "test-go", on_go, &go);
	messenger_before_close(messenger, wait_for_go, &go);
	return obey(messenger, arg);
}

Test(cluster, a_second_sigterm_changes_nothing) /* 08d, D15 */
{
	struct cluster *c = cluster_start(&(struct options){
		.agent = obey, .app = leave_when_told, .workers = 2, .app_close_timeout = 60000});
	size_t mark;

	cluster_ready(c);
	cluster_signal(c, "MASTER", SIGTERM);
	cluster_wait(c, 0, ":APP#1 waits");
	cluster_wait(c, 0, ":APP#2 waits");
	cluster_signal(c, "MASTER", SIGTERM);
	cluster_signal(c, "MASTER", SIGINT);
	cluster_signal(c, "MASTER", SIGQUIT);
	mark = round_of(c, "AGENT#1 APP#1 APP#2", "PARENT", "sendToAgent 0 0 0 a 1");
	cluster_signal(c, "MASTER", SIGTERM);
	cluster_wait(c, mark, ":AGENT#1 saw a 1");
	cr_assert_eq(messenger_send_to_app(c->parent, "test-go", NULL), 0);
	cluster_wait(c, 0, "[master] exit with code:0");
	cr_assert_eq(cluster_count(c, 0, "master is killed by signal"), 1);
	cluster_ended(c, 0);
}

/* A role that only SIGKILL ends. */
static int
hang(struct messenger *messenger, void *arg)
{
	(void)arg;
	signal(SIGALRM, SIG_IGN);
	report(messenger, "hangs");
	while (pause() == -1)
		;
	return 0;
}

static int
hang_when_leaving(struct messenger *messenger, void *arg)
{
	messenger_before_close(messenger, hang, NULL);
	return obey(messenger, arg);
}

/* D3: the master does not leave before its children, even if they ignore SIGTERM. */
static int
hang_or_start_badly(struct messenger *app, void *arg)
{
	return messenger_slot(app) == 1 ? start_badly(app, arg) : hang_when_leaving(app, arg);
}

Test(cluster, a_failed_start_leaves_nobody_behind)
{
	struct plan plan = {NEVER_READY, 0};
	struct cluster *c = cluster_start(&(struct options){.agent = hang_when_leaving,
	                                                    .app = hang_or_start_badly,
	                                                    .workers = 2,
	                                                    .worker_start_timeout = 1500,
	                                                    .app_close_timeout = 1000,
	                                                    .agent_close_timeout = 1000,
	                                                    .arg = &plan});

	cluster_wait(c, 0, ":APP#1 hangs");
	cluster_wait(c, 0, ":AGENT#1 hangs");
	cluster_ended(c, 1);
}

/* Apps and agent hang. Each is killed when its close timeout is over (D3, D27). */
static void
expect_close_timeouts(struct options options, int app_timeout, int agent_timeout)
{
	struct cluster *c;
	int64_t start;
	size_t at;

	options.agent = options.app = hang_when_leaving;
	options.workers = 2;
	c = cluster_start(&options);
	cluster_ready(c);
	start = clutch_now();
	cluster_signal(c, "MASTER", SIGTERM);
	at = cluster_wait(c, 0, "to app workers, will exit with code:0 after %dms", app_timeout);
	cluster_wait(c, 0, ":APP#1 hangs");
	cluster_wait(c, 0, ":APP#2 hangs");
	at = cluster_wait(c, at, "to agent worker, will exit with code:0 after %dms",
	                  agent_timeout);
	cr_assert(clutch_now() - start >= app_timeout);
	cluster_wait(c, at, ":AGENT#1 hangs");
	cluster_ended(c, 0);
	cr_assert(clutch_now() - start >= app_timeout + agent_timeout);
}

Test(cluster, close_timeouts_from_the_options)
{
	clear_environment();
	setenv("EGG_APP_CLOSE_TIMEOUT", "9000", 1); /* options are stronger than the environment */
	setenv("EGG_AGENT_CLOSE_TIMEOUT", "9000", 1);
	expect_close_timeouts(
		(struct options){.app_close_timeout = 1000, .agent_close_timeout = 800}, 1000, 800);
}

Test(cluster, close_timeouts_from_the_environment)
{
	clear_environment();
	setenv("EGG_APP_CLOSE_TIMEOUT", "800", 1);
	setenv("EGG_AGENT_CLOSE_TIMEOUT", "1000", 1);
	setenv("EGG_MASTER_CLOSE_TIMEOUT", "9000",
	       1); /* only for a role without a variable of its own */
	expect_close_timeouts((struct options){.workers = 0}, 800, 1000);
}

Test(cluster, close_timeouts_from_the_old_variable)
{
	clear_environment();
	setenv("EGG_MASTER_CLOSE_TIMEOUT", "900", 1);
	expect_close_timeouts((struct options){.workers = 0}, 900, 900);
}

/* ---- the shared port --------------------------------------------------------------------- */

static int
answer(struct messenger *app, int descriptor, void *arg)
{
	char text[16];
	int length = snprintf(text, sizeof text, "%ld", (long)messenger_pid(app));

	(void)arg;
	if (write(descriptor, text, (size_t)length) == -1)
		report(app, "cannot answer");
	close(descriptor);
	return 0;
}

/* Connect, and return the name of the app that answers. */
static const char *
who_answers(struct cluster *c)
{
	char text[16];
	ssize_t length, count = 0;
	int descriptor = cluster_connect(c);

	while ((length = read(descriptor, text + count, sizeof text - 1 - (size_t)count)) > 0)
		count += length;
	close(descriptor);
	cr_assert(count > 0, "the connection ended without an answer");
	text[count] = '\0';
	return cluster_name(c, (pid_t)atol(text));
}

struct answers {
	const char *who[3];
	int count[3];
};

/* Make one more connection. Have all apps answered now? */
static bool
have_all_answered(struct cluster *c, void *arg)
{
	struct answers *answers = arg;
	const char *who = who_answers(c);
	int i, all = 0;

	for (i = 0; i < 3; i++) {
		answers->count[i] += strcmp(answers->who[i], who) == 0;
		all += answers->count[i] > 0;
	}
	return all == 3;
}

Test(cluster, every_app_answers_on_the_shared_port)
{
	struct cluster *c = cluster_start(
		&(struct options){.agent = obey, .app = obey, .connection = answer, .workers = 3});

	cluster_ready(c);
	cr_assert(c->port > 0);
	cluster_until(c, have_all_answered, &(struct answers){{"APP#1", "APP#2", "APP#3"}, {0}},
	              "every app to answer");
	cluster_signal(c, "APP#2", SIGKILL);
	cluster_wait(c, 0, ":APP#4 saw egg-ready");
	cluster_until(c, have_all_answered, &(struct answers){{"APP#1", "APP#4", "APP#3"}, {0}},
	              "the replacement to answer");
	cluster_stop(c);
}

Test(cluster, the_address_is_in_every_egg_ready)
{
	static const char *const everyone[] = {"PARENT", "AGENT#1", "APP#1", "APP#2"};
	struct cluster *c = cluster_start(
		&(struct options){.agent = obey, .app = obey, .connection = answer, .workers = 2});
	size_t i;

	cluster_ready(c);
	for (i = 0; i < 4; i++)
		cluster_wait(
			c, 0,
			":%s saw egg-ready {\"workers\":2,\"port\":PORT,"
			"\"address\":\"http://127.0.0.1:PORT\",\"protocol\":\"http\"} from master",
			everyone[i]);
	cluster_wait(c, 0, "app_worker#1:APP#1 started at http://127.0.0.1:PORT, remain ");
	cluster_wait(c, 0, "[master] egg started on http://127.0.0.1:PORT (");
	cluster_stop(c);
}

/* Listen on a free port of 127.0.0.1. */
static int
occupy_port(int *port)
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	socklen_t length = sizeof address;
	int descriptor = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	cr_assert(descriptor != -1 &&
	          bind(descriptor, (struct sockaddr *)&address, sizeof address) == 0 &&
	          listen(descriptor, 1) == 0 &&
	          getsockname(descriptor, (struct sockaddr *)&address, &length) == 0);
	*port = ntohs(address.sin_port);
	return descriptor;
}

/* The start fails with one line, and no process has been forked. (All lines are in the record
 * before the end of the cluster.) */
static void
expect_refusal(const struct options *options, const char *line)
{
	struct cluster *c = cluster_start(options);

	cluster_wait(c, 0, "%s", line);
	cluster_wait_death(c, "MASTER");
	cr_assert_eq(cluster_count(c, 0, "[master]") - cluster_count(c, 0, "waiting up to"), 1,
	             "the master logged not one line but more, or none");
	cr_assert_eq(cluster_count(c, 0, "_worker#"), 0);
	cluster_ended(c, 1);
}

Test(cluster, a_port_in_use_is_one_clear_line) /* 06g, D19 */
{
	char line[128];
	int port, descriptor = occupy_port(&port);

	snprintf(line, sizeof line,
	         "[master] 127.0.0.1 port %d is in use: stop what listens there, or choose "
	         "another port",
	         port);
	expect_refusal(&(struct options){.app = obey, .connection = answer, .port = port}, line);
	close(descriptor);
}

/* ---- the environment --------------------------------------------------------------------- */

static void
expect_bad_variable(const char *name, const char *value, const char *line)
{
	clear_environment();
	setenv(name, value, 1);
	expect_refusal(&(struct options){.app = obey, .connection = answer}, line);
	unsetenv(name);
}

Test(cluster, a_bad_value_in_the_environment_is_one_clear_line)
{
#define FROM(least, most) " is no good: give a number from " #least " to " #most
	expect_bad_variable("PORT", "http", "[master] PORT=http" FROM(1, 65535));
	expect_bad_variable("PORT", "80a", "[master] PORT=80a" FROM(1, 65535));
	expect_bad_variable("PORT", "0", "[master] PORT=0" FROM(1, 65535));
	expect_bad_variable("PORT", "65536", "[master] PORT=65536" FROM(1, 65535));
	expect_bad_variable("PORT", "99999999999999999999",
	                    "[master] PORT=99999999999999999999" FROM(1, 65535));
	expect_bad_variable("EGG_WORKERS", "0", "[master] EGG_WORKERS=0" FROM(1, 1024));
	expect_bad_variable("EGG_WORKERS", "-1", "[master] EGG_WORKERS=-1" FROM(1, 1024));
	expect_bad_variable("EGG_WORKERS", "many", "[master] EGG_WORKERS=many" FROM(1, 1024));
	expect_bad_variable("EGG_WORKERS", "1025", "[master] EGG_WORKERS=1025" FROM(1, 1024));
	expect_bad_variable("EGG_WORKERS", " ", "[master] EGG_WORKERS= " FROM(1, 1024));
	expect_bad_variable("EGG_WORKERS", "2 ", "[master] EGG_WORKERS=2 " FROM(1, 1024));
	expect_bad_variable("EGG_WORKERS", "+", "[master] EGG_WORKERS=+" FROM(1, 1024));
	expect_bad_variable("EGG_WORKERS", "+ 2", "[master] EGG_WORKERS=+ 2" FROM(1, 1024));
	expect_bad_variable("EGG_WORKERS", "++2", "[master] EGG_WORKERS=++2" FROM(1, 1024));
	expect_bad_variable("EGG_WORKERS", "+-2", "[master] EGG_WORKERS=+-2" FROM(1, 1024));
	expect_bad_variable("EGG_WORKERS", "-0", "[master] EGG_WORKERS=-0" FROM(1, 1024));
	expect_bad_variable("EGG_WORKERS", "0x2", "[master] EGG_WORKERS=0x2" FROM(1, 1024));
	expect_bad_variable("EGG_APP_CLOSE_TIMEOUT", "soon",
	                    "[master] EGG_APP_CLOSE_TIMEOUT=soon" FROM(1, 2147483647));
	expect_bad_variable("EGG_AGENT_CLOSE_TIMEOUT", "0",
	                    "[master] EGG_AGENT_CLOSE_TIMEOUT=0" FROM(1, 2147483647));
	expect_bad_variable("EGG_MASTER_CLOSE_TIMEOUT", "1e3",
	                    "[master] EGG_MASTER_CLOSE_TIMEOUT=1e3" FROM(1, 2147483647));
	expect_bad_variable("HOST", "egg.example",
	                    "[master] HOST=egg.example is no good: give a numeric address, "
	                    "localhost, or the path of a socket");
#undef FROM
}

/* Numbers in the environment are read as strtol(3) reads them. */
Test(cluster, blanks_and_a_sign_before_a_number_in_the_environment_are_overlooked)
{
	struct cluster *c;

	clear_environment();
	setenv("EGG_WORKERS", " \t\v\f\r+02", 1);
	c = cluster_start(&(struct options){.app = obey});
	cluster_ready(c);
	cluster_wait(c, 0, ":PARENT saw egg-ready {\"workers\":2}");
	cluster_stop(c);
}

Test(cluster, options_out_of_range_are_one_clear_line)
{
	expect_refusal(&(struct options){.app = obey, .workers = 1025},
	               "[master] EGG_WORKERS=1025 is no good: give a number from 1 to 1024");
	expect_refusal(&(struct options){.app = obey, .workers = -1},
	               "[master] EGG_WORKERS=-1 is no good");
	expect_refusal(&(struct options){.app = obey, .port = 65536},
	               "[master] PORT=65536 is no good");
	expect_refusal(&(struct options){.app = obey, .app_close_timeout = -1},
	               "[master] EGG_APP_CLOSE_TIMEOUT=-1 is no good");
}

/* The port was free a moment ago. If another program has taken it since, try another port. */
Test(cluster, port_host_and_workers_from_the_environment)
{
	struct cluster *c;
	char text[16];
	int port, i;

	clear_environment();
	setenv("HOST", "localhost", 1);
	setenv("EGG_WORKERS", "2", 1);
	for (i = 0; i < 5; i++) {
		close(occupy_port(&port));
		snprintf(text, sizeof text, "%d", port);
		setenv("PORT", text, 1);
		c = cluster_start(&(struct options){.app = obey, .connection = answer});
		cluster_wait(c, 0, "[master]");
		if (cluster_count(c, 0, "in use") == 0)
			break;
		cluster_ended(c, 1);
	}
	cr_assert(i < 5);
	cluster_ready(c);
	cr_assert_eq(c->port, port);
	cluster_wait(c, 0,
	             ":PARENT saw egg-ready {\"workers\":2,\"port\":PORT,"
	             "\"address\":\"http://127.0.0.1:PORT\"");
	cr_assert_eq(cluster_count(c, 0, " start"), 7); /* 3 start, 3 started, and egg */
	who_answers(c);
	cluster_stop(c);
}

Test(cluster, options_come_before_the_environment)
{
	struct cluster *c;

	clear_environment();
	setenv("PORT", "1", 1);
	setenv("EGG_WORKERS", "7", 1);
	setenv("HOST", "192.0.2.1", 1);
	setenv("EGG_SERVER_ENV", "local", 1);
	c = cluster_start(&(struct options){.app = obey,
	                                    .connection = answer,
	                                    .port = -1,
	                                    .workers = 1,
	                                    .host = "127.0.0.1",
	                                    .env = "prod"});
	cluster_ready(c);
	cluster_signal(c, "APP#1", SIGKILL);
	cluster_wait(c, 0, ":APP#2 saw egg-ready {\"workers\":1,\"port\":PORT"); /* prod */
	cluster_stop(c);
}

Test(cluster, server_env_from_the_environment)
{
	struct cluster *c;

	clear_environment();
	setenv("EGG_SERVER_ENV", "unittest", 1);
	c = start_obeying(2);
	cluster_signal(c, "APP#2", SIGKILL);
	cluster_wait(c, 0, ":PARENT saw app-worker-died");
	round_of(c, "AGENT#1 APP#1", "PARENT", "sendToApp 0 0 0 a 1");
	cr_assert_eq(cluster_count(c, 0, "app_worker#3"), 0);
	cluster_stop(c);
}

/* ---- the pid file ------------------------------------------------------------------------ */

static long
pid_in(const char *path)
{
	FILE *file = fopen(path, "r");
	long pid = -1;

	if (file != NULL && fscanf(file, "%ld", &pid) != 1)
		pid = 0;
	if (file != NULL)
		fclose(file);
	return pid;
}

Test(cluster, the_pid_file_lives_as_long_as_the_master) /* 14a, 14c */
{
	struct plan plan = {EXIT, 1};
	struct cluster *c;
	char path[64];

	snprintf(path, sizeof path, "%s/run/egg.pid", test_folder());
	c = cluster_start(&(struct options){.app = obey, .pid_file = path});
	cluster_ready(c);
	cr_assert_eq(pid_in(path), c->master);
	cluster_stop(c);
	cr_assert_eq(pid_in(path), -1);

	c = cluster_start(&(struct options){.app = start_badly, .pid_file = path, .arg = &plan});
	cluster_ended(c, 1);
	cr_assert_eq(pid_in(path), -1);
}

Test(cluster, a_second_master_with_the_same_pid_file_is_refused) /* D16 */
{
	char path[64], line[256];
	struct cluster *c;

	snprintf(path, sizeof path, "%s/egg.pid", test_folder());
	snprintf(line, sizeof line,
	         "[master] pid file %s: another master holds it; stop that one, or choose another "
	         "file",
	         path);
	c = cluster_start(&(struct options){.app = obey, .pid_file = path});
	cluster_ready(c);
	expect_refusal(&(struct options){.app = obey, .pid_file = path}, line);
	cr_assert_eq(pid_in(path), c->master);
	cluster_stop(c);
	cr_assert_eq(pid_in(path), -1);
}

Test(cluster, the_pid_file_of_a_killed_master_is_no_obstacle) /* 14b */
{
	struct cluster *c;
	char path[64];
	pid_t first;

	snprintf(path, sizeof path, "%s/egg.pid", test_folder());
	c = cluster_start(&(struct options){.app = obey, .pid_file = path});
	cluster_ready(c);
	first = c->master;
	cluster_signal(c, "MASTER", SIGKILL);
	cluster_killed(c, SIGKILL);
	cr_assert_eq(pid_in(path), first);
	c = cluster_start(&(struct options){.app = obey, .pid_file = path});
	cluster_ready(c);
	cr_assert_eq(pid_in(path), c->master);
	cluster_stop(c);
}

/* ---- who am I, handles, trace ------------------------------------------------------------ */

Test(cluster, opids_slot_role_and_pid_in_every_role)
{
	struct cluster *c = start_obeying(2);
	const char *all = "AGENT#1 APP#1 APP#2";
	size_t count, mark = round_of(c, all, "AGENT#1", "opids");

	cluster_wait(c, mark, ":AGENT#1 opids [APP#1,APP#2] slot -1 role agent pid AGENT#1");
	mark = round_of(c, all, "APP#1", "opids");
	cluster_wait(c, mark, ":APP#1 opids [AGENT#1] slot 0 role app pid APP#1");
	mark = round_of(c, all, "APP#2", "opids");
	cluster_wait(c, mark, ":APP#2 opids [AGENT#1] slot 1 role app pid APP#2");
	messenger_opids(c->parent, &count);
	cr_assert_eq(count, 0);
	cr_assert_eq(messenger_slot(c->parent), -1);
	cr_assert_eq(messenger_role(c->parent), ROLE_PARENT);
	cr_assert_eq(messenger_pid(c->parent), getpid());
	cluster_stop(c);
}

Test(cluster, a_parent_can_broadcast)
{
	struct cluster *c = start_obeying(2);
	size_t mark = round_of(c, "AGENT#1 APP#1 APP#2", "PARENT", "broadcast 0 0 0 news 1");

	cr_assert_eq(cluster_count(c, mark, ":APP#1 saw news 1 from parent to app"), 1);
	cr_assert_eq(cluster_count(c, mark, ":APP#2 saw news 1 from parent to app"), 1);
	cr_assert_eq(cluster_count(c, mark, ":AGENT#1 saw news 1 from parent to agent"), 1);
	cr_assert_eq(cluster_count(c, mark, " saw news"), 3);
	cluster_stop(c);
}

/* A receiver of the handle writes its name into the handle. */
static int
on_handle(struct messenger *messenger, const struct message *message, void *arg)
{
	char text[32];
	int length = snprintf(text, sizeof text, "%ld\n", (long)messenger_pid(messenger));

	(void)arg;
	if (message->handle == -1 || write(message->handle, text, (size_t)length) != length)
		report(messenger, "has no handle");
	return 0;
}

static int
on_read(struct messenger *app, int descriptor, short revents, void *arg)
{
	char text[256];
	ssize_t count = read(descriptor, text, sizeof text - 1);

	(void)revents, (void)arg;
	if (count <= 0) {
		report(app, "read the end");
		messenger_unwatch(app, descriptor);
		close(descriptor);
	} else {
		text[count] = '\0';
		report(app, "read %s", text);
	}
	return 0;
}

/* "test-pipe PID ROLE": send the writing end of a pipe to PID or ROLE, and read the other end. */
static int
on_pipe_wanted(struct messenger *app, const struct message *message, void *arg)
{
	struct message handle = {.action = "pipe", .data = NULL};
	int ends[2], pid, to;

	(void)arg;
	if (sscanf(message->data, "%d %d", &pid, &to) != 2 || pipe(ends) == -1)
		return 1;
	handle.receiver_pid = pid;
	handle.to = (enum role)to;
	handle.handle = ends[1];
	if (messenger_send_message(app, &handle) == -1 ||
	    messenger_watch(app, ends[0], POLLIN, on_read, NULL) == -1)
		return 1;
	return close(ends[1]); /* the channel has its own copy */
}

static int
exchange_handles(struct messenger *messenger, void *arg)
{
	messenger_on(messenger, "pipe", on_handle, NULL);
	messenger_on(messenger, "test-pipe", on_pipe_wanted, NULL);
	return obey(messenger, arg);
}

static size_t
send_handle(struct cluster *c, int pid, enum role to)
{
	size_t mark = cluster_mark(c);
	char data[32];

	snprintf(data, sizeof data, "%d %d", pid, (int)to);
	cr_assert_eq(messenger_send_to(c->parent, cluster_pid(c, "APP#1"), "test-pipe", data), 0);
	cluster_wait(c, mark, ":APP#1 read the end"); /* so no process has kept a copy */
	return mark;
}

Test(cluster, a_handle_travels_to_agent_and_apps)
{
	struct cluster *c = cluster_start(&(struct options){
		.agent = exchange_handles, .app = exchange_handles, .workers = 3});
	int before;
	size_t mark;

	cluster_ready(c);
	round_of(c, "AGENT#1 APP#1 APP#2 APP#3", "APP#1", "opids");
	before = process_descriptors(c->master);
	mark = send_handle(c, 0, ROLE_AGENT);
	cluster_wait(c, mark, ":AGENT#1 saw pipe from app to agent handle");
	cluster_wait(c, mark, ":APP#1 read AGENT#1");

	mark = send_handle(c, (int)cluster_pid(c, "APP#2"), ROLE_NONE);
	cluster_wait(c, mark, ":APP#2 saw pipe from app to app receiverPid APP#2 handle");
	cluster_wait(c, mark, ":APP#1 read APP#2");

	mark = send_handle(c, 0, ROLE_APP); /* each app gets a copy, also the sender */
	cr_assert_eq(cluster_count(c, mark, " saw pipe from app to app handle"), 3);
	cr_assert_eq(cluster_count(c, mark, "has no handle"), 0);
	round_of(c, "AGENT#1 APP#1 APP#2 APP#3", "APP#1", "opids"); /* the master has closed it */
	cr_assert_eq(process_descriptors(c->master), before);
	cluster_stop(c);
}

/* ---- a flood ----------------------------------------------------------------------------- */

enum { FLOOD = 16000 };

/* The agent fills the app's queue again and again, and waits only if its own queue is full. */
static int
flood(struct messenger *agent, void *arg)
{
	static char kilobyte[1025];
	static int sent;

	memset(kilobyte, 'x', sizeof kilobyte - 1);
	while (sent < FLOOD && messenger_send_to_app(agent, "flood", kilobyte) == 0)
		sent++;
	if (sent == FLOOD)
		return 0;
	report(agent, "is full");
	return messenger_set_timeout(agent, 1, flood, arg) == -1;
}

static int
on_flood_wanted(struct messenger *agent, const struct message *message, void *arg)
{
	(void)message;
	return flood(agent, arg);
}

static int
flooding_agent(struct messenger *agent, void *arg)
{
	return messenger_on(agent, "test-flood", on_flood_wanted, arg);
}

static int
on_flood(struct messenger *app, const struct message *message, void *arg)
{
	static int count;

	(void)message, (void)arg;
	if (++count == FLOOD)
		report(app, "is flooded");
	return 0;
}

static int
flooded_app(struct messenger *app, void *arg)
{
	return messenger_on(app, "flood", on_flood, arg);
}

/* A sender that waited for a queue is heard again as soon as the queue has drained. It need not
 * wait until something else, such as the health check after 10 s, wakes the master. */
Test(cluster, a_flood_does_not_stall)
{
	struct options options = {.agent = flooding_agent, .app = flooded_app, .workers = 1};
	int64_t began = clutch_now();
	int round;

	for (round = 0; round < 4; round++) {
		struct cluster *c = cluster_start(&options);

		cluster_ready(c);
		cluster_signal(c, "APP#1", SIGSTOP);
		messenger_send_to_agent(c->parent, "test-flood", NULL);
		cluster_wait(c, 0, "AGENT#1 is full");
		cluster_signal(c, "APP#1", SIGCONT);
		cluster_wait(c, 0, "APP#1 is flooded");
		cluster_stop(c);
	}
	cr_assert_lt(clutch_now() - began, 8000 * time_scale());
}

/* ---- the shared port: descriptors and addresses ------------------------------------------ */

/* Let the app open no more descriptors. */
static int
lower(struct messenger *app, const struct message *message, void *arg)
{
	(void)message, (void)arg;
	limit_descriptors(free_descriptor());
	report(app, "lowered");
	return 0;
}

static int
restore(struct messenger *app, const struct message *message, void *arg)
{
	(void)app, (void)message, (void)arg;
	limit_descriptors(256);
	return 0;
}

static int
limit_itself(struct messenger *app, void *arg)
{
	return messenger_on(app, "test-lower", lower, arg) ||
	       messenger_on(app, "test-restore", restore, arg);
}

static int
accept_and_close(struct messenger *app, int descriptor, void *arg)
{
	(void)arg;
	report(app, "accepted");
	return close(descriptor);
}

static void
tell_apps(struct cluster *cluster, const char *action)
{
	cr_assert_eq(messenger_send_to_app(cluster->parent, action, NULL), 0);
	cluster_turn(cluster);
}

Test(cluster, a_worker_without_descriptors_accepts_when_it_has_some)
{
	struct cluster *c = cluster_start(
		&(struct options){.app = limit_itself, .connection = accept_and_close});
	int client;

	cluster_ready(c);
	tell_apps(c, "test-lower");
	cluster_wait(c, 0, "APP#1 lowered");
	client = cluster_connect(c);
	cluster_wait(c, 0, "[app_worker] cannot accept: no descriptor or memory left");
	cr_assert_eq(cluster_count(c, 0, "APP#1 accepted"), 0);
	tell_apps(c, "test-restore");
	cluster_wait(c, 0, "APP#1 accepted");
	close(client);
	cluster_stop(c);
}

Test(cluster, every_address_is_told_as_this_host)
{
	struct cluster *c =
		cluster_start(&(struct options){.connection = accept_and_close, .host = "0.0.0.0"});

	cluster_ready(c);
	close(cluster_connect(c));
	cluster_wait(c, 0, "http://127.0.0.1:PORT");
	cluster_stop(c);
}

/* Not every system has IPv6. A listener of all addresses is told as the one of this machine. */
Test(cluster, a_host_of_six_is_told_in_brackets)
{
	static const char *const hosts[][2] = {{"::1", "http://[::1]:"},
	                                       {"::", "http://127.0.0.1:"}};
	struct cluster *c;
	size_t i;
	int probe = socket(AF_INET6, SOCK_STREAM, 0);
	struct sockaddr_in6 here = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};

	if (probe == -1 || bind(probe, (struct sockaddr *)&here, sizeof here) == -1)
		cr_skip_test("no IPv6 here");
	close(probe);
	for (i = 0; i < 2; i++) {
		c = cluster_start(
			&(struct options){.connection = accept_and_close, .host = hosts[i][0]});
		cluster_wait(c, 0, "%s", hosts[i][1]);
		cluster_stop(c);
	}
}

Test(cluster, an_address_of_another_host_is_a_failed_start)
{
	struct cluster *c = cluster_start(
		&(struct options){.connection = accept_and_close, .host = "192.0.2.1"});

	cluster_wait(c, 0, "cannot listen on 192.0.2.1 port");
	cluster_ended(c, 1);
}

/* Only SIGKILL and SIGTERM have names in the log. */
Test(cluster, a_death_of_another_signal_is_told_by_its_number)
{
	struct cluster *c = cluster_start(&(struct options){0});
	char expected[64];

	snprintf(expected, sizeof expected, "code: null, signal: %d", SIGXCPU);
	cluster_ready(c);
	cluster_signal(c, "APP#1", SIGXCPU);
	cr_assert_str_eq(cluster_wait_end(c, "APP#1"), expected);
	cluster_stop(c);
}
