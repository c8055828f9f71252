/*
 * How a live cluster ends, is reloaded, and is looked at: the scenarios 08a to 17
 * of what was recorded from the real egg-cluster (lifecycle.md), one test each.
 *
 * A test's name begins with its scenario. Where the expected value is not egg's,
 * Dn says why: its number in docs/divergences.md.
 *
 * While a cluster closes, the master logs no deaths. So each process that chooses
 * its exit says with which code ("exit of APP#1: 0"), and how the apps have ended
 * the master's status (SIGUSR1) shows while a patient agent waits for its order to
 * go.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "harness.h"

#include <criterion/criterion.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

TestSuite(lifecycle, .timeout = 120);

#define LONG 60000 /* a close timeout that is not the point */

/* ---- processes that obey ------------------------------------------------------ */

/* How agent and apps load and leave. A cluster inherits it from its test. */
static struct manners {
	struct {
		messenger_callback load, close;
	} agent, app;
} manners;

static bool says_its_exit;

static void
say_exit(int code, void *arg)
{
	(void)arg;
	clutch_print_line(STDOUT_FILENO, "exit of %ld: %d", (long)getpid(), code);
}

/* clutch ends its processes past the handlers of on_exit. */
void __real__exit(int code);
void __wrap__exit(int code);

void
__wrap__exit(int code)
{
	if (says_its_exit)
		say_exit(code, NULL);
	__real__exit(code);
}

/* D22's 10,000 messages: together more than the socket takes. */
enum { FLOOD = 10000, FLOOD_SIZE = 200 };

static int
order_flood(struct messenger *app, const char *line)
{
	char data[FLOOD_SIZE + 1];
	int i;

	for (i = 0; i < FLOOD; i++) {
		snprintf(data, sizeof data, "%0*d", FLOOD_SIZE, i);
		if (messenger_send_to_agent(app, "test-flood", data) == -1)
			report(app, "cannot send %d: %s", i, strerror(errno));
	}
	exit(atoi(order_rest(line)));
}

static int
on_flood(struct messenger *agent, const struct message *message, void *arg)
{
	int *expected = arg, number = atoi(message->data);

	if (number != *expected)
		report(agent, "got %d instead of %d", number, *expected);
	*expected = number + 1;
	if (number == FLOOD - 1)
		report(agent, "got the last");
	return 0;
}

/* Its channel ends, and it lives. */
static int
order_hang_up(struct messenger *messenger, const char *line)
{
	(void)line;
	shutdown(messenger->channel.descriptor, SHUT_RDWR);
	while (pause() == -1)
		;
	return 0;
}

static int
order_reload(struct messenger *messenger, const char *line)
{
	if (strcmp(order_rest(line), "by pid") == 0)
		return messenger_send_to(messenger, getppid(), "reload-worker", NULL);
	return messenger_send(messenger, "reload-worker", NULL, ROLE_MASTER);
}

static int
order_listening(struct messenger *messenger, const char *line)
{
	(void)line;
	return messenger_send(messenger, "listening", NULL, ROLE_MASTER);
}

static int
order_talk(struct messenger *messenger, const char *line)
{
	int count = atoi(order_rest(line));

	while (count-- > 0)
		if (messenger_send_to_agent(messenger, "test-talk", "\"twenty bytes or so\"") == -1)
			return 1;
	return 0;
}

static int
order_talk_to_nobody(struct messenger *messenger, const char *line)
{
	int count = atoi(order_rest(line));

	while (count-- > 0)
		messenger_send_to(messenger, 0x7ffffffe, "test-talk", NULL);
	return 0;
}

static const struct order orders[] = {
	{"flood", order_flood},
	{"hang-up", order_hang_up},
	{"listening", order_listening},
	{"reload", order_reload},
	{"talk", order_talk},
	{"talk-to-nobody", order_talk_to_nobody},
	{NULL, NULL},
};

static bool told_to_go;
static bool unobserved; /* a flood in the record would drown the log (D17) */

static int
on_go(struct messenger *messenger, const struct message *message, void *arg)
{
	(void)messenger, (void)message, (void)arg;
	told_to_go = true;
	return 0;
}

/* The role function of all, agent and apps. */
static int
obey(struct messenger *messenger, void *arg)
{
	static int expected;
	bool is_app = messenger_role(messenger) == ROLE_APP;
	messenger_callback load = is_app ? manners.app.load : manners.agent.load;
	messenger_callback close = is_app ? manners.app.close : manners.agent.close;

	on_exit(say_exit, NULL);
	says_its_exit = true;
	if ((!unobserved && observe(messenger) == -1) || obey_orders(messenger, orders) == -1 ||
	    messenger_on(messenger, "test-go", on_go, NULL) == -1 ||
	    messenger_on(messenger, "test-flood", on_flood, &expected) == -1 ||
	    (close != NULL && messenger_before_close(messenger, close, NULL) == -1))
		return 1;
	return load != NULL ? load(messenger, arg) : 0;
}

/* Loading: it never returns from it. */
static int
load_for_ever(struct messenger *messenger, void *arg)
{
	(void)arg;
	report(messenger, "loads");
	while (pause() == -1)
		;
	return 0;
}

/* Loading: until it is ordered to be ready. */
static int
load_long(struct messenger *messenger, void *arg)
{
	(void)arg;
	messenger_ready_later(messenger);
	report(messenger, "loads");
	return 0;
}

/* Leaving: when it is told to go. */
static int
close_when_told(struct messenger *messenger, void *arg)
{
	(void)arg;
	report(messenger, "waits");
	while (!told_to_go && messenger_step(messenger, 20) == 1) /* 20: it may be closed already */
		;
	return 0;
}

/* Leaving: never, unless a signal ends it. */
static int
close_never(struct messenger *messenger, void *arg)
{
	(void)arg;
	report(messenger, "hangs");
	while (pause() == -1)
		;
	return 0;
}

/* Leaving: only SIGKILL ends it, its own alarm does not. */
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

/* ---- their cluster --------------------------------------------------------------- */

static struct cluster *
launch(struct options options)
{
	options.agent = options.app = obey;
	return cluster_start(&options);
}

/* Ready, and everybody has heard it. */
static struct cluster *
start(struct options options)
{
	struct cluster *c = launch(options);
	int i;

	cluster_ready(c);
	cluster_wait(c, 0, ":AGENT#1 saw egg-ready");
	for (i = 1; i <= options.workers; i++)
		cluster_wait(c, 0, ":APP#%d saw egg-ready", i);
	return c;
}

/* Its agent, when told to leave, waits: so the ends of the apps can be seen. */
static struct cluster *
start_patient(struct options options)
{
	manners.agent.close = close_when_told;
	options.agent_close_timeout = LONG;
	return start(options);
}

static bool
has_passed(struct cluster *c, void *arg)
{
	(void)c;
	return clutch_now() >= *(int64_t *)arg;
}

/* Let a time pass that is itself what is tested. */
static void
pass(struct cluster *c, int64_t milliseconds)
{
	int64_t end = clutch_now() + milliseconds, next;

	while (clutch_now() < end) { /* one wait has its limit */
		next = clutch_now() + time_limit() / 2;
		next = next < end ? next : end;
		cluster_until(c, has_passed, &next, "time to pass");
	}
}

static size_t
signal_master(struct cluster *c, int number)
{
	size_t mark = cluster_mark(c);

	cluster_signal(c, "MASTER", number);
	return mark;
}

static void
go(struct cluster *c, enum role role)
{
	cr_assert_eq(messenger_send(c->parent, "test-go", NULL, role), 0);
	cluster_turn(c);
}

/* "Seen: nothing", by the parent, the first agent and the first apps. */
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

/* The master says goodbye, nobody has seen anything, nobody is left. */
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

/* ---- the status -------------------------------------------------------------------- */

static void
expect_state(struct cluster *c, const char *who, const char *state)
{
	const char *is = cluster_status(c, who, "state");

	cr_assert_str_eq(is != NULL ? is : "none", state, "%s", who);
}

/* How an app has ended, in a cluster that closes. */
static void
expect_end(struct cluster *c, const char *who, const char *end)
{
	cluster_ask_status(c);
	expect_state(c, who, "dead");
	cr_assert_str_eq(cluster_status(c, who, "last_death"), end, "%s", who);
}

/* ---- 08: orders to the master ------------------------------------------------------- */

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

/* D15: egg's master dies of the second. */
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
			cluster_ask_status(c); /* the master has come by */
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

/* As in egg, SIGTERM kills until the role's function has returned, and who is
 * ready later leaves in order. */
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
	if (load == load_long) { /* who obeys has returned from its function */
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
	pass(c, 1300); /* the agent's second */
	go(c, ROLE_APP);
	cluster_wait(c, mark, "exit of APP#1: 0");
	cluster_wait(c, mark, "[master] exit with code:0");
	cr_assert_eq(cluster_count(c, 0, "agent_worker#2"), 0);
	expect_quiet_end(c, mark, 1);
}

/* Loading: it ends the cluster, and is ready when its own SIGTERM has come of it. */
static int
load_into_the_end(struct messenger *messenger, void *arg)
{
	sigset_t set;
	int number;

	(void)messenger, (void)arg;
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigprocmask(SIG_BLOCK, &set, NULL);
	kill(getppid(), SIGTERM);
	return sigwait(&set, &number);
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

/* ---- 09: the master is killed -------------------------------------------------------- */

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

/* D3: egg's agent hangs for good. Here nobody is left soon after its timeout. */
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

/* It loads without turning its loop, until its master is dead. */
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

/* ---- 12: those who do not leave -------------------------------------------------------- */

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
	/* Its own alarm comes each second, and the first after nine tenths of this ends it: the
	 * second one. */
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

/* The agent is killed, before the master leaves. (Where is its SIGKILL? It is dead,
 * and it has not said that it exits.) */
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

/* Within its time, closing may take what it takes; the agent's begins after it. */
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

/* A process of its own, that only SIGKILL ends; it keeps what it was forked with. */
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
	while (read(ends[0], &byte, 1) == -1) /* until it has said so */
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
	expect_quiet_end(c, mark, 1); /* nobody: neither is the grandchild */
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

/* The same when the cluster is given up. */
static int
load_badly(struct messenger *app, void *arg)
{
	(void)app, (void)arg;
	return 1;
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

/* In a running cluster it goes with its parent: the next one needs its ports. */
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

/* Its client stays: it leaves by itself, just before it would be killed. */
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

/* D20: it goes with its last connection; in egg it stays for the rest of the 30 s. */
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

/* ---- 10, 11: crash loops ------------------------------------------------------------------- */

enum { REFORKS = 59, WINDOW = 60000 }; /* cfork's limit, and its duration */

/* While there is this file, apps are sick. */
static char sickness[64];

static void
fall_ill(void)
{
	int descriptor;

	snprintf(sickness, sizeof sickness, "%s/sickness", test_folder());
	descriptor = open(sickness, O_WRONLY | O_CREAT, 0600);
	cr_assert(descriptor != -1);
	close(descriptor);
}

static void
recover(void)
{
	cr_assert_eq(unlink(sickness), 0);
}

static int
on_egg_ready(struct messenger *app, const struct message *message, void *arg)
{
	(void)app, (void)message, (void)arg;
	if (access(sickness, F_OK) == 0)
		exit(1);
	return 0;
}

/* It dies as soon as all is ready, and so does its replacement. */
static int
crash(struct messenger *app, void *arg)
{
	(void)arg;
	return messenger_on(app, "egg-ready", on_egg_ready, NULL);
}

static int
crash_but_in_slot_0(struct messenger *app, void *arg)
{
	return messenger_slot(app) > 0 ? crash(app, arg) : 0;
}

/* Four apps of which `sick` crash until the limit lets none of them be re-forked. */
static struct cluster *
start_crashing(messenger_callback load, int sick)
{
	struct cluster *c;
	size_t at = 0;
	int i;

	fall_ill();
	manners.app.load = load;
	c = launch((struct options){.workers = 4});
	cluster_ready(c);
	cluster_pid(c, "APP#63"); /* 4, and 59 */
	for (i = 0; i < sick; i++)
		at = cluster_wait(c, at, "worker died too fast: app_worker of slot ");
	return c;
}

/* The master gives up at the third check. */
static void
expect_given_up(struct cluster *c, int64_t begin)
{
	pass(c, begin + 28000 - clutch_now());
	cr_assert_not(c->dead);
	cluster_wait(c, 0, "[master] 1 agent and 0 worker(s) alive, exit to avoid unknown state");
	cluster_wait(c, 0, "exit of AGENT#1: 110");
	cluster_wait(c, 0, "[master] exit with code:1");
	cr_assert(clutch_now() - begin >= 29000);
	cluster_ended(c, 1);
}

static bool
knows_all_deaths(struct cluster *c, void *arg)
{
	(void)arg;
	return cluster_count(c, 0, ":PARENT saw app-worker-died") >= 63;
}

Test(lifecycle, s10a_all_four_apps_crash_in_a_loop)
{
	int64_t begin = clutch_now();
	struct cluster *c = start_crashing(crash, 4);
	int i;

	cluster_wait(c, 0, "app_worker#63:APP#63 died (code: 1, signal: null)");
	for (i = 1; i <= 4; i++)
		cluster_wait(c, 0, "worker died too fast: app_worker of slot %d waits", i - 1);
	cluster_until(c, knows_all_deaths, NULL, "what the parent is told of 63 deaths");
	cr_assert_eq(cluster_count(c, 0, "app_worker#64"), 0);
	cr_assert_eq(cluster_count(c, 0, ":PARENT saw app-worker-died"), 63);
	expect_given_up(c, begin);
}

/* D13: in egg three slots are gone for good. Here they wait for the window. */
Test(lifecycle, s10b_three_of_four_apps_crash_in_a_loop, .timeout = 180)
{
	int64_t begin = clutch_now(), used;
	struct cluster *c = start_crashing(crash_but_in_slot_0, 3);
	size_t mark;
	int i;

	cluster_wait(c, 0, "app_worker#63:APP#63 died (code: 1, signal: null)");
	for (i = 2; i <= 4; i++)
		cluster_wait(c, 0, "worker died too fast: app_worker of slot %d waits", i - 1);
	cluster_wait(c, 0, ":AGENT#1 saw egg-ready");
	mark = cluster_mark(c);
	used = process_processor_time(c->master);
	recover();
	pass(c, WINDOW - 2000 - (clutch_now() - begin));
	cr_assert_eq(cluster_count(c, 0, "app_worker#64"), 0, "before the window allowed it");
	cr_assert(process_processor_time(c->master) - used < 1000 * time_scale(),
	          "who waits needs no processor");
	for (i = 64; i <= 66; i++)
		cluster_wait(c, mark, ":APP#%d saw egg-ready", i);
	cr_assert(clutch_now() - begin >= WINDOW);
	cluster_wait(c, mark, ":AGENT#1 saw egg-pids [APP#1,APP#64,APP#65,APP#66]");
	cluster_wait_saw(c, "APP#1", "egg-pids [AGENT#1] -> egg-ready <options>");
	cluster_ask_status(c);
	expect_state(c, "APP#1", "listening");
	cr_assert_eq(cluster_count(c, 0, ":PARENT saw app-worker-died"), 62);
	cr_assert_eq(cluster_count(c, 0, "app_worker#67"), 0);
	cluster_stop(c);
}

/* It dies while it loads. */
static int
load_unless_sick(struct messenger *app, void *arg)
{
	(void)app, (void)arg;
	if (access(sickness, F_OK) == 0)
		exit(1);
	return 0;
}

/* D11: the replacements are replaced; but none of them lives when it is looked. */
Test(lifecycle, s11_all_apps_are_dead)
{
	struct cluster *c;
	int64_t begin = clutch_now();
	size_t mark;

	snprintf(sickness, sizeof sickness, "%s/sickness", test_folder());
	manners.app.load = load_unless_sick;
	c = start((struct options){.workers = 1});
	mark = cluster_mark(c);
	fall_ill();
	cluster_signal(c, "APP#1", SIGKILL);
	cluster_wait(c, mark, "app_worker#2:APP#2 died (code: 1, signal: null)");
	cluster_wait(c, mark, "app_worker#3:APP#3 died (code: 1, signal: null)"); /* +1 s */
	cluster_wait(c, mark, "app_worker#4:APP#4 died (code: 1, signal: null)"); /* +2 s */
	cr_assert(clutch_now() - begin >= 2900);
	cr_assert_eq(strncmp(cluster_saw(c, mark, "AGENT#1"), "egg-pids [] -> egg-pids []", 26), 0);
	cluster_wait_saw_from(
		c, mark, "PARENT",
		"app-worker-died -> app-worker-died -> app-worker-died -> app-worker-died");
	expect_given_up(c, begin);
}

static int
load_and_hang_up_if_sick(struct messenger *app, void *arg)
{
	(void)arg;
	return access(sickness, F_OK) == 0 ? order_hang_up(app, 0) : 0;
}

/* D11: while a replacement dies, the end of the one before it changes nothing. */
Test(lifecycle, s11_a_dying_replacement_is_replaced_once)
{
	struct cluster *c;
	int64_t death;
	size_t at;

	snprintf(sickness, sizeof sickness, "%s/sickness", test_folder());
	manners.app.load = load_and_hang_up_if_sick;
	c = start((struct options){.workers = 1});
	fall_ill();
	cluster_order(c, "APP#1", "hang-up 0");
	cluster_wait(c, 0, "app_worker#2:APP#2 disconnect");
	death = clutch_now(); /* the master may count both in one turn, at one time */
	cluster_signal(c, "APP#1", SIGKILL);
	cluster_wait_end(c, "APP#1");
	recover();
	cluster_signal(c, "APP#2", SIGKILL);
	at = cluster_wait(c, 0, "app_worker#2:APP#2 died (");
	cluster_wait(c, at, ":APP#3 saw egg-ready");
	cr_assert_eq(cluster_count(c, 0, "app_worker#3"), cluster_count(c, at, "app_worker#3"),
	             "nobody has waited for APP#2");
	cr_assert(clutch_now() - death >= 1000, "after a second at the earliest");
	cr_assert_eq(cluster_count(c, 0, "app_worker#4"), 0);
	cluster_stop(c);
}

/* ---- 13: reload -------------------------------------------------------------------------------- */

/* Does the agent ever see fewer than so many apps? */
static bool
agent_sees_fewer_than(struct cluster *c, size_t mark, int least)
{
	const char *list = cluster_saw(c, mark, "AGENT#1"), *end;
	int count;

	while ((list = strstr(list, "egg-pids [")) != NULL) {
		list += strlen("egg-pids [");
		end = strchr(list, ']');
		for (count = *list != ']'; list < end; list++)
			count += *list == ',';
		if (count < least)
			return true;
	}
	return false;
}

static void
order_reload_by_parent(struct cluster *c)
{
	cr_assert_eq(messenger_send(c->parent, "reload-worker", NULL, ROLE_MASTER), 0);
	cluster_turn(c);
}

/* The apps from `first` on have replaced those before them, one by one: the new one
 * was ready, then the old one went. */
static void
expect_reload(struct cluster *c, size_t mark, int first)
{
	size_t at = mark, ready;
	char who[16];
	int i;

	for (i = 0; i < 3; i++) {
		at = cluster_wait(c, at, "app_worker#%d:APP#%d start", first + i, first + i);
		ready = cluster_wait(c, at, "app_worker#%d:APP#%d started", first + i, first + i);
		cr_assert_eq(cluster_count(c, mark, "exit of APP#%d: ", first + i), 0);
		cluster_wait(c, ready, "exit of APP#%d: 0", first + i - 3);
		snprintf(who, sizeof who, "APP#%d", first + i);
		cluster_wait_saw(c, who, "egg-pids [AGENT#1] -> egg-ready <options>");
	}
	cluster_wait(c, at, "[master] reload done");
	cluster_wait(c, mark, ":AGENT#1 saw egg-pids [APP#%d,APP#%d,APP#%d]", first, first + 1,
	             first + 2);
	cluster_wait_saw_from(c, mark, "PARENT",
	                      "app-worker-died -> app-worker-died -> app-worker-died");
	cr_assert_not(agent_sees_fewer_than(c, mark, 3));
	for (i = 0; i < 3; i++) {
		snprintf(who, sizeof who, "APP#%d", first + i);
		cluster_ask_status(c);
		cr_assert_eq(cluster_figure(c, who, "slot"), i);
		snprintf(who, sizeof who, "APP#%d", first + i - 3);
		cr_assert_str_eq(cluster_saw(c, mark, who), "");
	}
	cr_assert_eq(cluster_count(c, mark, "app_worker#%d", first + 3), 0);
}

/* D12: egg stops the old ones at once, and forks twice as many in prod. */
static void
expect_reload_in(const char *env)
{
	struct cluster *c = start((struct options){.workers = 3, .env = env});
	size_t mark = cluster_mark(c);

	order_reload_by_parent(c);
	expect_reload(c, mark, 4);
	cluster_stop(c);
}

Test(lifecycle, s13a_reload_in_production)
{
	expect_reload_in("prod");
}

Test(lifecycle, s13b_reload_in_env_local)
{
	expect_reload_in("local");
}

Test(lifecycle, s13_reload_ordered_by_the_agent_and_again)
{
	struct cluster *c = start((struct options){.workers = 3});
	size_t mark = cluster_mark(c);

	cluster_order(c, "AGENT#1", "reload 0");
	expect_reload(c, mark, 4);
	mark = cluster_mark(c);
	cluster_order(c, "AGENT#1", "reload 0");
	expect_reload(c, mark, 7);
	cluster_stop(c);
}

/* D5 */
Test(lifecycle, s13_reload_ordered_by_an_app_is_refused)
{
	struct cluster *c = start((struct options){.workers = 2});

	cluster_did(c, "APP#2", "reload by pid");
	cluster_did(c, "APP#2", "reload 0");
	cluster_wait(c, 0, "app_worker#2:APP#2 may not send reload-worker: refused");
	cluster_ask_status(c); /* the master has come by */
	cr_assert_eq(cluster_count(c, 0, "refused"), 1);
	cr_assert_eq(cluster_count(c, 0, "reload workers..."), 0);
	cr_assert_eq(cluster_count(c, 0, "app_worker#3"), 0);
	cluster_stop(c);
}

Test(lifecycle, s13_reload_ordered_during_a_reload_begins_anew)
{
	struct cluster *c = start((struct options){.workers = 3});
	size_t mark = cluster_mark(c);
	int i;

	for (i = 0; i < 3; i++) /* in one write: they come before the first has done anything */
		cr_assert_eq(messenger_send(c->parent, "reload-worker", NULL, ROLE_MASTER), 0);
	cluster_turn(c);
	cluster_wait(c, mark, "[master] reload done");
	cr_assert_eq(cluster_count(c, mark, "reload workers..."), 3);
	cr_assert_eq(cluster_count(c, mark, "reload workers... anew"), 2);
	cr_assert_eq(cluster_count(c, mark, "[master] reload done"), 1);
	for (i = 1; i <= 3; i++)
		cluster_wait(c, mark, "exit of APP#%d: 0", i);
	cluster_stop(c);
}

/* The old ones have noticed nothing, and the next reload is a good one. */
static void
expect_bad_reload(struct cluster *c, size_t mark, const char *end)
{
	cr_assert_str_eq(cluster_wait_end(c, "APP#4"), end);
	cluster_wait(c, mark, "reload given up: the new app_worker died before it was ready");
	cluster_wait_saw_from(c, mark, "PARENT", "app-worker-died");
	cluster_ask_status(c);
	expect_state(c, "APP#1", "listening");
	expect_state(c, "APP#2", "listening");
	expect_state(c, "APP#3", "listening");
	cr_assert_not(agent_sees_fewer_than(c, mark, 3));
	cr_assert_str_eq(cluster_saw(c, mark, "APP#1"), "");
	recover();
	mark = cluster_mark(c);
	order_reload_by_parent(c);
	cluster_wait(c, mark, "exit of APP#1: 0");
	cluster_wait(c, mark, "exit of APP#2: 0");
	cluster_wait(c, mark, "exit of APP#3: 0");
	cluster_wait(c, mark, ":AGENT#1 saw egg-pids [APP#5,APP#6,APP#7]");
	cr_assert_not(agent_sees_fewer_than(c, mark, 3));
	cluster_stop(c);
}

static struct cluster *
start_and_reload_badly(messenger_callback load, size_t *mark)
{
	struct cluster *c;

	snprintf(sickness, sizeof sickness, "%s/sickness", test_folder());
	manners.app.load = load;
	c = start((struct options){.workers = 3, .worker_start_timeout = 1500 * time_scale()});
	fall_ill();
	*mark = cluster_mark(c);
	order_reload_by_parent(c);
	return c;
}

/* D12: egg would be left without an app. */
Test(lifecycle, s13_a_reload_with_an_app_that_dies_keeps_the_old_ones)
{
	size_t mark;
	struct cluster *c = start_and_reload_badly(load_unless_sick, &mark);

	expect_bad_reload(c, mark, "code: 1, signal: null");
}

static int
load_long_if_sick(struct messenger *app, void *arg)
{
	return access(sickness, F_OK) == 0 ? load_long(app, arg) : 0;
}

Test(lifecycle, s13_a_reload_with_an_app_that_is_never_ready_keeps_the_old_ones)
{
	size_t mark;
	struct cluster *c = start_and_reload_badly(load_long_if_sick, &mark);

	cluster_wait(c, mark, "app_worker#4:APP#4 start timeout");
	expect_bad_reload(c, mark, "code: 0, signal: null, start timeout");
}

static int
load_into_the_end_if_sick(struct messenger *app, void *arg)
{
	return access(sickness, F_OK) == 0 ? load_into_the_end(app, arg) : 0;
}

/* D14: whoever is ready in the middle of it, a reload goes no further. */
Test(lifecycle, s13_sigterm_during_a_reload)
{
	struct cluster *c;
	size_t mark;

	snprintf(sickness, sizeof sickness, "%s/sickness", test_folder());
	manners.app.load = load_into_the_end_if_sick;
	c = start((struct options){.workers = 3, .app_close_timeout = 1000});
	fall_ill();
	mark = cluster_mark(c);
	order_reload_by_parent(c);
	cluster_wait(c, mark, "is killed by signal SIGTERM, closing");
	cluster_wait(c, mark, "[master] exit with code:0");
	cr_assert_eq(cluster_count(c, mark, "app_worker#4:APP#4 started"), 0);
	cr_assert_eq(cluster_count(c, mark, "app_worker#5"), 0);
	cr_assert_eq(cluster_count(c, mark, "reload done"), 0);
	cluster_ended(c, 0);
}

/* An old one dies while its successor loads, which dies, too: the slot is not lost. */
Test(lifecycle, s13_an_old_app_dies_during_its_reload)
{
	struct cluster *c;
	size_t mark;

	snprintf(sickness, sizeof sickness, "%s/sickness", test_folder());
	manners.app.load = load_long_if_sick;
	c = start((struct options){.workers = 2});
	fall_ill();
	mark = cluster_mark(c);
	order_reload_by_parent(c);
	cluster_wait(c, mark, ":APP#3 loads");
	cluster_signal(c, "APP#1", SIGKILL);
	cluster_wait(c, mark, "app_worker#1:APP#1 died (code: null, signal: SIGKILL)");
	recover();
	cluster_signal(c, "APP#3", SIGKILL);
	cluster_wait(c, mark, "reload given up");
	cluster_wait(c, mark, ":APP#4 saw egg-ready");
	cluster_wait(c, mark, ":AGENT#1 saw egg-pids [APP#2,APP#4]");
	cluster_ask_status(c);
	cr_assert_eq(cluster_figure(c, "APP#4", "slot"), 0);
	cluster_stop(c);
}

/* The old ones take their time: the new ones are heard all the same. */
Test(lifecycle, s13_many_old_apps_that_leave_slowly_stop_no_reload)
{
	struct cluster *c;
	size_t mark;
	char who[16];
	int i;

	manners.app.close = close_when_told;
	c = start((struct options){.workers = 12, .app_close_timeout = LONG});
	mark = cluster_mark(c);
	order_reload_by_parent(c);
	for (i = 13; i <= 24; i++)
		cluster_wait(c, mark, ":APP#%d saw egg-ready", i);
	cr_assert_eq(cluster_count(c, mark, "[master] reload done"), 0);
	for (i = 1; i <= 12; i++) {
		snprintf(who, sizeof who, "APP#%d", i);
		messenger_send_to(c->parent, cluster_pid(c, who), "test-go", NULL);
	}
	cluster_turn(c);
	for (i = 1; i <= 12; i++)
		cluster_wait(c, mark, "exit of APP#%d: 0", i);
	cluster_wait(c, mark, "[master] reload done");
	go(c, ROLE_APP); /* the others need not wait when they close */
	for (i = 13; i <= 24; i++)
		cluster_wait(c, mark, ":APP#%d saw test-go", i);
	cluster_stop(c);
}

/* ---- 13: reload under load --------------------------------------------------------------------- */

static int
on_request(struct messenger *app, int descriptor, short revents, void *arg)
{
	char request[8];
	ssize_t length = read(descriptor, request, sizeof request);

	(void)revents, (void)arg;
	if (length > 0 && write(descriptor, request, (size_t)length) != length)
		report(app, "cannot answer");
	messenger_unwatch(app, descriptor);
	return close(descriptor);
}

static int
answer(struct messenger *app, int descriptor, void *arg)
{
	(void)arg;
	return messenger_watch(app, descriptor, POLLIN, on_request, NULL);
}

struct load {
	size_t mark;
	int connections;
};

/* Some short connections at a time: none is refused, each is answered. */
static bool
is_reloaded_under_load(struct cluster *c, void *arg)
{
	struct load *load = arg;
	int clients[8], i;
	char reply[8];

	for (i = 0; i < 8; i++)
		clients[i] = cluster_connect(c); /* it asserts */
	for (i = 0; i < 8; i++)
		cr_assert_eq(write(clients[i], "hello", 5), 5, "connection %d was dropped",
		             load->connections + i);
	for (i = 0; i < 8; i++) {
		cr_assert_eq(read(clients[i], reply, sizeof reply), 5,
		             "connection %d got no answer: %s", load->connections + i,
		             strerror(errno));
		close(clients[i]);
	}
	load->connections += 8;
	return cluster_count(c, load->mark, ":PARENT saw app-worker-died") == 3;
}

Test(lifecycle, s13_no_connection_is_refused_or_dropped_during_reloads)
{
	struct cluster *c = start((struct options){.workers = 3, .connection = answer});
	struct load load = {0, 0};
	int i;

	for (i = 0; i < 5; i++) {
		load.mark = cluster_mark(c);
		order_reload_by_parent(c);
		cluster_until(c, is_reloaded_under_load, &load, "the reload under load");
		cluster_wait(c, load.mark, "[master] reload done");
	}
	cr_assert_geq(load.connections, 40);
	cr_assert_eq(cluster_count(c, 0, "cannot answer"), 0);
	cluster_stop(c);
}

/* ---- 14: the pid file ------------------------------------------------------------------------------ */

static char pid_file[64];

static const char *
name_pid_file(const char *name)
{
	snprintf(pid_file, sizeof pid_file, "%s/%s", test_folder(), name);
	return pid_file;
}

static void
write_file(const char *path, const char *text)
{
	FILE *file = fopen(path, "w");

	cr_assert(file != NULL && fputs(text, file) != EOF && fclose(file) == 0);
}

/* What is in it; "none" if it is not there. */
static const char *
content_of(const char *path)
{
	static char text[4096];
	FILE *file = fopen(path, "r");
	size_t length;

	if (file == NULL)
		return "none";
	length = fread(text, 1, sizeof text - 1, file);
	fclose(file);
	text[length] = '\0';
	return text;
}

/* The pid, and nothing else: no new line either. */
static void
expect_pid(pid_t pid)
{
	char text[16];

	snprintf(text, sizeof text, "%ld", (long)pid);
	cr_assert_str_eq(content_of(pid_file), text);
}

static int
load_and_look_for_pid_file(struct messenger *agent, void *arg)
{
	(void)arg;
	report(agent, "finds %s", content_of(pid_file));
	return 0;
}

/* Before anybody is forked it is there, and its directories are. */
Test(lifecycle, s14a_the_pid_file_is_written_and_removed)
{
	struct stat status;
	struct cluster *c;

	umask(022);
	manners.agent.load = load_and_look_for_pid_file;
	c = start((struct options){.workers = 1, .pid_file = name_pid_file("a/b/egg.pid")});
	expect_pid(c->master);
	cluster_wait(c, 0, ":AGENT#1 finds MASTER");
	cr_assert_eq(stat(pid_file, &status), 0);
	cr_assert_eq(status.st_mode & 0777, 0644);
	cluster_stop(c);
	cr_assert_str_eq(content_of(pid_file), "none");
	*strrchr(pid_file, '/') = '\0';
	cr_assert_eq(stat(pid_file, &status), 0, "its directory stays");
}

Test(lifecycle, s14b_an_old_pid_file_is_overwritten_and_stays_after_sigkill)
{
	struct cluster *c;
	pid_t first;

	write_file(name_pid_file("egg.pid"), "4711471147114711\n"); /* longer than a pid */
	c = start((struct options){.workers = 1, .pid_file = pid_file});
	first = c->master;
	expect_pid(first);
	cluster_signal(c, "MASTER", SIGKILL);
	cluster_killed(c, SIGKILL);
	expect_pid(first);
	c = start((struct options){.workers = 1, .pid_file = pid_file});
	expect_pid(c->master);
	cluster_stop(c);
	cr_assert_str_eq(content_of(pid_file), "none");
}

Test(lifecycle, s14c_a_failed_start_removes_the_pid_file)
{
	struct cluster *c;

	manners.agent.load = load_and_look_for_pid_file;
	manners.app.load = load_badly;
	c = launch((struct options){.workers = 1, .pid_file = name_pid_file("egg.pid")});
	cluster_wait(c, 0, ":AGENT#1 finds MASTER");
	cluster_wait(c, 0, "exit of APP#1: 1");
	cluster_wait(c, 0, "exit of AGENT#1: 110");
	cluster_ended(c, 1);
	cr_assert_str_eq(content_of(pid_file), "none");
}

Test(lifecycle, s14d_a_pid_file_with_another_pid_is_removed)
{
	struct cluster *c =
		start((struct options){.workers = 1, .pid_file = name_pid_file("egg.pid")});

	write_file(pid_file, "4711");
	cluster_stop(c);
	cr_assert_str_eq(content_of(pid_file), "none");
}

/* D16: another file under this name is somebody else's. */
Test(lifecycle, s14d_a_foreign_pid_file_is_not_removed)
{
	struct cluster *c =
		start((struct options){.workers = 1, .pid_file = name_pid_file("egg.pid")});

	cr_assert_eq(unlink(pid_file), 0);
	write_file(pid_file, "4711");
	cluster_stop(c);
	cr_assert_str_eq(content_of(pid_file), "4711");
}

/* D15: egg's file stays. */
Test(lifecycle, s14e_a_second_sigterm_and_the_pid_file)
{
	struct cluster *c;
	size_t mark;

	manners.app.close = close_when_told;
	c = start((struct options){
		.workers = 1, .pid_file = name_pid_file("egg.pid"), .app_close_timeout = LONG});
	mark = signal_master(c, SIGTERM);
	cluster_wait(c, mark, ":APP#1 waits");
	cluster_signal(c, "MASTER", SIGTERM);
	cluster_ask_status(c);
	expect_pid(c->master);
	go(c, ROLE_APP);
	cluster_ended(c, 0);
	cr_assert_str_eq(content_of(pid_file), "none");
}

/* One line, exit 1, and the file is as it was. */
static void
expect_second_master_to_be_refused(const struct cluster *first)
{
	struct cluster *c = launch((struct options){.workers = 1, .pid_file = pid_file});

	cluster_wait(c, 0, "[master] pid file %s: another master holds it", pid_file);
	cluster_wait_death(c, "MASTER");
	cr_assert_eq(cluster_count(c, 0, "[master]"), 1, "more than one line");
	cr_assert_eq(cluster_count(c, 0, "_worker#"), 0);
	cluster_ended(c, 1);
	expect_pid(first->master);
}

/* D16. A lock is easily lost: any close(2) of the file in its owner is enough. */
Test(lifecycle, s14_a_second_master_is_refused_as_long_as_the_first_lives)
{
	struct cluster *c =
		start((struct options){.workers = 1, .pid_file = name_pid_file("egg.pid")});

	expect_second_master_to_be_refused(c);
	expect_second_master_to_be_refused(c);
	cluster_signal(c, "APP#1", SIGKILL);
	cluster_wait(c, 0, ":APP#2 saw egg-ready");
	cluster_signal(c, "AGENT#1", SIGKILL);
	cluster_wait(c, 0, ":AGENT#2 saw egg-ready");
	expect_second_master_to_be_refused(c);
	cluster_stop(c);
	cr_assert_str_eq(content_of(pid_file), "none");
}

/* ---- 15: the parent leaves ---------------------------------------------------------------------------- */

/* D7, D9: egg's newcomer is told no pids, and its agent one list less. */
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

/* ---- a cluster without a parent, or with a terminal ------------------------------------------------------- */

/* Started by start_cluster in a process that the test forks. */
struct bare {
	pid_t master;
	bool buffers; /* it has text in a buffer of stdio when it starts the cluster */
	int output;   /* the reading end of its stdout and stderr */
	char text[32 * 1024];
	size_t length;
};

/* A pipe, or a terminal. Returns the end of the cluster. */
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
	settings.c_lflag |= NOFLSH; /* or a Ctrl-C takes with it what is not read yet */
	cr_assert_eq(tcsetattr(ends[1], TCSANOW, &settings), 0);
	return ends[1];
}

#define BUFFERED "it stood in a buffer\n"
/* In the child: the master, in the foreground of the terminal if it is one. */
static void
run_bare(const struct options *options, const struct bare *bare, int end)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	setsid();
	if (isatty(end))
		ioctl(end, TIOCSCTTY, 0);
	dup2(end, 0);
	dup2(end, 1);
	dup2(end, 2);
	close(end);
	close(bare->output);
	if (bare->buffers)
		cr_assert(fputs(BUFFERED, stdout) != EOF);
	exit(start_cluster(options));
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

/* Read on; false at the end (of a terminal: EIO), when nobody is left. */
static bool
bare_read(struct bare *bare, int64_t deadline)
{
	struct pollfd set = {bare->output, POLLIN, 0};
	size_t room = sizeof bare->text - 1 - bare->length;
	ssize_t count;

	cr_assert(clutch_now() < deadline && poll(&set, 1, time_limit()) == 1,
	          "waited in vain:\n%s", bare->text);
	count = read(bare->output, bare->text + bare->length, room);
	if (count <= 0)
		return false;
	bare->length += (size_t)count;
	bare->text[bare->length] = '\0';
	return true;
}

static void
bare_wait(struct bare *bare, const char *text)
{
	int64_t deadline = clutch_now() + time_limit();

	bare->text[bare->length] = '\0';
	while (strstr(bare->text, text) == NULL)
		cr_assert(bare_read(bare, deadline), "no \"%s\" in:\n%s", text, bare->text);
}

static size_t
bare_count(const struct bare *bare, const char *text)
{
	const char *at = bare->text;
	size_t count = 0;

	while ((at = strstr(at, text)) != NULL) {
		at += strlen(text);
		count++;
	}
	return count;
}

/* Nobody is left, and the master has exited 0. */
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

/* All have left with 0: two apps, the agent, the master. */
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

/* D4: in egg it reaches everybody; the master then waits 10 s for corpses. */
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

/* ---- D17: nobody reads the log ------------------------------------------------------------------------------ */

/* Who is there, as the parent hears. */
struct roll {
	pid_t apps[8];
	int count, deaths;
};

static int
on_present(struct messenger *parent, const struct message *message, void *arg)
{
	struct roll *roll = arg;

	(void)parent;
	if (roll->count < 8)
		roll->apps[roll->count++] = (pid_t)atol(message->data);
	return 0;
}

static int
on_death(struct messenger *parent, const struct message *message, void *arg)
{
	(void)parent, (void)message;
	((struct roll *)arg)->deaths++;
	return 0;
}

static int
on_all_ready(struct messenger *app, const struct message *message, void *arg)
{
	char pid[16];

	(void)message, (void)arg;
	snprintf(pid, sizeof pid, "%ld", (long)messenger_pid(app));
	return messenger_send(app, "present", pid, ROLE_PARENT);
}

static int
be_present(struct messenger *app, void *arg)
{
	(void)arg;
	return messenger_on(app, "egg-ready", on_all_ready, NULL);
}

static pid_t unrecorded; /* a master that the harness does not know */

static void
kill_unrecorded(void)
{
	if (unrecorded > 0)
		kill(unrecorded, SIGKILL); /* the others see the end of their channels */
}

/* What nobody reads is lost; a pipe is full, or has no reader. */
static const char *buffered = ""; /* what stdout holds when the cluster is started */

static struct messenger *
start_into(int log, pid_t *master, struct roll *roll)
{
	struct options options = {.app = be_present, .workers = 2, .port = -1};
	int saved[2] = {dup(1), dup(2)};
	struct messenger *parent;

	clear_environment();
	fflush(stdout);
	dup2(log, 1);
	dup2(log, 2);
	fputs(buffered, stdout);
	parent = fork_cluster(&options, master);
	dup2(saved[0], 1);
	dup2(saved[1], 2);
	close(saved[0]);
	close(saved[1]);
	cr_assert(parent != NULL);
	unrecorded = *master;
	atexit(kill_unrecorded);
	messenger_on(parent, "present", on_present, roll);
	messenger_on(parent, "app-worker-died", on_death, roll);
	return parent;
}

static void
wait_for_roll(struct messenger *parent, const struct roll *roll, int count, int deaths)
{
	int64_t deadline = clutch_now() + time_limit();

	while (roll->count < count || roll->deaths < deaths) {
		cr_assert(clutch_now() < deadline, "%d of %d apps, %d of %d deaths", roll->count,
		          count, roll->deaths, deaths);
		cr_assert_geq(messenger_step(parent, 100), 0);
	}
}

static void
end_unrecorded(struct messenger *parent, pid_t master)
{
	int64_t deadline = clutch_now() + time_limit();
	int status;

	kill(master, SIGTERM);
	while (waitpid(master, &status, WNOHANG) == 0) {
		cr_assert(clutch_now() < deadline, "it does not end");
		messenger_step(parent, 20);
	}
	unrecorded = 0;
	cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %x", (unsigned)status);
	messenger_close(parent);
}

/* It starts, replaces, answers SIGUSR1, idles without a loop, and ends. */
static void
expect_life_without_log(int log)
{
	struct roll roll = {.count = 0};
	int64_t used, end;
	struct messenger *parent;
	pid_t master;
	int i;

	parent = start_into(log, &master, &roll);
	wait_for_roll(parent, &roll, 2, 0);
	for (i = 0; i < 3; i++) {
		kill(master, SIGUSR1);
		kill(roll.apps[i], SIGKILL);
		wait_for_roll(parent, &roll, 3 + i, i + 1);
	}
	used = process_processor_time(master);
	for (end = clutch_now() + 500; clutch_now() < end;)
		messenger_step(parent, 20);
	cr_assert_lt(process_processor_time(master) - used, 100, "it is busy with nothing");
	end_unrecorded(parent, master);
}

Test(lifecycle, a_log_without_a_reader_is_lost)
{
	int ends[2];

	cr_assert_eq(pipe(ends), 0);
	close(ends[0]);
	expect_life_without_log(ends[1]);
}

Test(lifecycle, a_log_that_nobody_reads_is_lost)
{
	static const char zeros[4096];
	int ends[2];

	cr_assert_eq(pipe(ends), 0);
	fcntl(ends[1], F_SETPIPE_SZ, sizeof zeros);
	fcntl(ends[1], F_SETFL, O_NONBLOCK);
	while (write(ends[1], zeros, sizeof zeros) > 0)
		;
	fcntl(ends[1], F_SETFL, 0);
	expect_life_without_log(ends[1]);
}

/* The same as s16_what_is_buffered_is_printed_once, where a parent forks the master. */
Test(lifecycle, s01_what_the_parent_has_buffered_is_printed_once)
{
	static struct bare all;
	int64_t deadline = clutch_now() + time_limit();
	struct roll roll = {.count = 0};
	struct messenger *parent;
	pid_t master;
	int ends[2];

	cr_assert_eq(pipe(ends), 0);
	all.output = ends[0];
	buffered = BUFFERED;
	parent = start_into(ends[1], &master, &roll);
	buffered = "";
	wait_for_roll(parent, &roll, 2, 0);
	end_unrecorded(parent, master);
	close(ends[1]);
	while (bare_read(&all, deadline))
		;
	cr_assert_eq(bare_count(&all, BUFFERED), 1, "%s", all.text);
}

/* ---- 17: broadcasts before all is ready ------------------------------------------------------------------ */

static int
broadcast(struct messenger *messenger, const char *when)
{
	char action[64], pid[16];

	snprintf(action, sizeof action, "early-%s-%s", when,
	         clutch_role_name(messenger_role(messenger)));
	snprintf(pid, sizeof pid, "%ld", (long)messenger_pid(messenger));
	return messenger_broadcast(messenger, action, pid);
}

static int
be_ready(struct messenger *messenger, void *arg)
{
	(void)arg;
	return broadcast(messenger, "ready") == -1 || messenger_ready(messenger, 0) == -1;
}

static int
load_and_broadcast(struct messenger *messenger, void *arg)
{
	messenger_ready_later(messenger);
	return broadcast(messenger, "load") == -1 ||
	       messenger_set_timeout(messenger, 1, be_ready, arg) == -1;
}

/* D23: what the agent says to apps that are not forked yet arrives first; in egg
 * it is lost. What the apps say while one of them is not forked reaches it, too. */
static void
expect_early(struct cluster *c, const char *who, bool is_app)
{
	size_t at = cluster_wait(c, 0, ":%s saw early-load-agent AGENT#1 ", who);
	size_t ready = cluster_wait(c, 0, ":%s saw egg-ready", who), pids;
	int i;

	at = cluster_wait(c, at, ":%s saw early-ready-agent AGENT#1 ", who);
	if (is_app) { /* then, who is there */
		pids = cluster_wait(c, at, ":%s saw egg-pids [AGENT#1]", who);
		cr_assert_eq(strncmp(cluster_saw(c, 0, who),
		                     "early-load-agent AGENT#1 -> early-ready-agent AGENT#1 -> ",
		                     56),
		             0);
		cr_assert_lt(pids, ready);
	}
	for (i = 1; i <= 2; i++) {
		at = cluster_wait(c, 0, ":%s saw early-load-app APP#%d ", who, i);
		at = cluster_wait(c, at, ":%s saw early-ready-app APP#%d ", who, i);
		cr_assert_lt(at, ready);
	}
	cr_assert_eq(cluster_count(c, 0, ":%s saw early-", who), 6);
	cr_assert_eq(cluster_count(c, ready, ":%s saw ", who), 0);
}

Test(lifecycle, s17_broadcasts_while_loading_and_when_ready)
{
	struct cluster *c;

	manners.agent.load = manners.app.load = load_and_broadcast;
	c = start((struct options){.workers = 2});
	expect_early(c, "AGENT#1", false);
	expect_early(c, "APP#1", true);
	expect_early(c, "APP#2", true);
	cluster_wait_saw(c, "PARENT", "egg-ready <options>");
	cr_assert_eq(cluster_count(c, 0, " exit"), 0);
	cluster_stop(c);
}

/* ---- SIGUSR1: the status ----------------------------------------------------------------------------------- */

Test(lifecycle, sigusr1_logs_a_line_for_each_process)
{
	struct cluster *c = start((struct options){.workers = 2});
	size_t at = cluster_ask_status(c), begin = at;

	at = cluster_wait(c, at, "[master] status {\"name\":\"egg\",\"pid\":MASTER,");
	cr_assert_eq(at, begin + 1, "the cluster comes first");
	at = cluster_wait(c, at, "status {\"role\":\"parent\",\"slot\":-1,\"pid\":0,");
	at = cluster_wait(c, at, "status {\"role\":\"agent\",\"slot\":-1,\"pid\":AGENT#1,");
	at = cluster_wait(c, at, "status {\"role\":\"app\",\"slot\":0,\"pid\":APP#1,");
	at = cluster_wait(c, at, "status {\"role\":\"app\",\"slot\":1,\"pid\":APP#2,");
	at = cluster_wait(c, at, "status ],\"left_out\":0}");
	cr_assert_eq(at - begin, 6, "nothing else");
	expect_state(c, NULL, "running");
	cr_assert_eq(cluster_figure(c, NULL, "undeliverable"), 0);
	cr_assert_eq(cluster_figure(c, NULL, "workers"), 2);
	expect_state(c, "AGENT#1", "listening");
	expect_state(c, "APP#2", "listening");
	cr_assert_eq(cluster_figure(c, "APP#2", "reforks"), 0);
	cr_assert_eq(cluster_figure(c, "APP#2", "refork_in"), 0);
	cr_assert_eq(cluster_figure(c, "APP#2", "queued"), 0);
	cr_assert_eq(cluster_figure(c, "APP#2", "waits"), 0);
	cr_assert_str_eq(cluster_status(c, "APP#2", "waits_for"), "[]");
	cr_assert_str_eq(cluster_status(c, "APP#2", "last_death"), "");
	cluster_stop(c);
}

/* What was sent before the message to nobody has been counted by then, too. */
static bool
has_one_undeliverable(struct cluster *c, void *arg)
{
	(void)arg;
	cluster_ask_status(c);
	return cluster_figure(c, NULL, "undeliverable") == 1; /* D26 */
}

struct figures {
	long long heard, told, bytes_in, bytes_out;
};

static struct figures
figures_of(struct cluster *c, const char *who)
{
	return (struct figures){cluster_figure(c, who, "heard"), cluster_figure(c, who, "told"),
	                        cluster_figure(c, who, "bytes_in"),
	                        cluster_figure(c, who, "bytes_out")};
}

/* Seven messages from one to another, one to nobody, and the orders to do so. */
Test(lifecycle, sigusr1_counts_messages_and_bytes)
{
	struct cluster *c = start((struct options){.workers = 2});
	long long size = FRAME_HEADER + sizeof "test-talk" + sizeof "\"twenty bytes or so\"";
	long long order = FRAME_HEADER + sizeof "test-order";
	struct figures agent, app, other, now;

	cluster_ask_status(c);
	agent = figures_of(c, "AGENT#1");
	app = figures_of(c, "APP#1");
	other = figures_of(c, "APP#2");
	cluster_did(c, "APP#1", "talk 7");
	cluster_did(c, "APP#1", "talk-to-nobody 1");
	cluster_wait(c, 0, ":AGENT#1 saw test-talk");
	cluster_wait(c, 0, "did talk-to-nobody");
	cluster_until(c, has_one_undeliverable, NULL, "the message to nobody");
	now = figures_of(c, "AGENT#1");
	cr_assert_eq(now.told - agent.told, 7);
	cr_assert_eq(now.heard - agent.heard, 0);
	cr_assert_eq(now.bytes_out - agent.bytes_out, 7 * size);
	cr_assert_eq(now.bytes_in - agent.bytes_in, 0);
	now = figures_of(c, "APP#1");
	cr_assert_eq(now.heard - app.heard, 8);
	cr_assert_eq(now.told - app.told, 2);
	cr_assert_eq(now.bytes_in - app.bytes_in,
	             7 * size + FRAME_HEADER + (long long)sizeof "test-talk" + 1);
	cr_assert_eq(now.bytes_out - app.bytes_out,
	             2 * order + (long long)(sizeof "talk 7" + sizeof "talk-to-nobody 1"));
	now = figures_of(c, "APP#2");
	cr_assert_eq(now.told + now.heard, other.told + other.heard);
	cluster_stop(c);
}

Test(lifecycle, sigusr1_tells_of_deaths_and_ages)
{
	struct cluster *c = start((struct options){.workers = 2});
	long long age;

	pass(c, 1100);
	cluster_signal(c, "APP#2", SIGKILL);
	cluster_wait(c, 0, ":APP#3 saw egg-ready");
	cluster_wait(c, 0, ":PARENT saw app-worker-died");
	cluster_signal(c, "AGENT#1", SIGKILL);
	cluster_wait(c, 0, "try to start a new agent_worker");
	cluster_ask_status(c);
	cr_assert_null(cluster_status(c, "AGENT#1", "state"));
	expect_state(c, "agent", "dead");
	cluster_wait(c, 0, ":AGENT#2 saw egg-ready");
	cluster_ask_status(c);
	cr_assert_eq(cluster_figure(c, "APP#3", "slot"), 1);
	cr_assert_eq(cluster_figure(c, "APP#3", "reforks"), 1);
	cr_assert_str_eq(cluster_status(c, "APP#3", "last_death"), "code: null, signal: SIGKILL");
	cr_assert_eq(cluster_figure(c, "APP#1", "reforks"), 0);
	cr_assert_str_eq(cluster_status(c, "APP#1", "last_death"), "");
	age = cluster_figure(c, "APP#1", "age");
	cr_assert(age >= 1100 && age < 10000 * time_scale(), "%lld ms", age);
	cr_assert_eq(cluster_figure(c, "AGENT#2", "reforks"), 1);
	cr_assert_str_eq(cluster_status(c, "AGENT#2", "last_death"), "code: null, signal: SIGKILL");
	cr_assert_null(cluster_status(c, "APP#2", "state"));
	cluster_stop(c);
}

/* ---- SIGUSR1: the same as a file ----------------------------------------------------------------------------- */

static const char *
status_file(const char *end)
{
	static char path[sizeof pid_file + 16];

	snprintf(path, sizeof path, "%s.status%s", pid_file, end);
	return path;
}

/* There is another one than that. */
static bool
is_status_new(struct cluster *c, void *arg)
{
	const ino_t *old = arg;
	struct stat status;

	(void)c;
	return stat(status_file(""), &status) == 0 && status.st_ino != *old;
}

/* Ask for it; its inode. */
static ino_t
ask_for_status(struct cluster *c, ino_t old)
{
	struct stat status;

	cluster_ask_status(c);
	cluster_until(c, is_status_new, &old, "the status file");
	cr_assert_eq(stat(status_file(""), &status), 0);
	return status.st_ino;
}

/* All of it: the same lines as in the log. */
static void
expect_whole_status(struct cluster *c)
{
	const char *text = content_of(status_file(""));
	char start[64];
	size_t i, count = 0;

	snprintf(start, sizeof start, "{\"name\":\"egg\",\"pid\":%ld,", (long)c->master);
	cr_assert_eq(strncmp(text, start, strlen(start)), 0, "%s", text);
	cr_assert(strstr(text, "\"processes\":[\n{\"role\":\"parent\",") != NULL, "%s", text);
	cr_assert(strstr(text, "},\n{\"role\":\"agent\",") != NULL, "%s", text);
	cr_assert(strstr(text, "},\n{\"role\":\"app\",\"slot\":1,") != NULL, "%s", text);
	for (i = 0; text[i] != '\0'; i++)
		count += text[i] == '\n';
	cr_assert_eq(count, 6, "%s", text);
	cr_assert_str_eq(text + i - strlen("}\n],\"left_out\":0}\n"), "}\n],\"left_out\":0}\n");
}

static bool
is_unfinished_status_gone(struct cluster *c, void *arg)
{
	(void)c, (void)arg;
	return access(status_file(".new"), F_OK) == -1;
}

/* The file system is full, as far as the master can tell: all but the beginning
 * does not fit. What was there before stays there, whole; and there is no part of another. */
Test(lifecycle, sigusr1_writes_a_whole_file_or_none)
{
	struct rlimit full, before;
	char old[4096], line[256];
	struct cluster *c;
	ino_t first;

	signal(SIGXFSZ, SIG_IGN);
	c = start((struct options){.workers = 2, .pid_file = name_pid_file("egg.pid")});
	first = ask_for_status(c, 0);
	expect_whole_status(c);
	snprintf(old, sizeof old, "%s", content_of(status_file("")));

	cr_assert_eq(prlimit(c->master, RLIMIT_FSIZE, NULL, &before), 0);
	full = (struct rlimit){150, before.rlim_max};
	cr_assert_eq(prlimit(c->master, RLIMIT_FSIZE, &full, NULL), 0);
	snprintf(line, sizeof line, "[master] cannot write %s: File too large",
	         status_file(".new"));
	cluster_wait(c, signal_master(c, SIGUSR1), "%s", line);
	cluster_until(c, is_unfinished_status_gone, NULL, "the end of the unfinished file");
	cr_assert_str_eq(content_of(status_file("")), old);

	cr_assert_eq(prlimit(c->master, RLIMIT_FSIZE, &before, NULL), 0);
	ask_for_status(c, first);
	expect_whole_status(c);
	cluster_stop(c);
	cr_assert_str_eq(content_of(status_file("")), "none");
}

/* ---- signals at any time -------------------------------------------------------------------------------- */

/* What is asked during the start is answered, and starts all the same. */
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
		cluster_signal(c, "MASTER", SIGCHLD); /* nobody has died */
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

/* SIGTERM after each of the lines of a start. */
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
			break; /* a busy machine: the second is over */
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

/* A signal interrupts every system call there is; no message is lost by it. */
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

	cluster_until(c, interrupt, &mark, "the last message");
	cr_assert_eq(cluster_count(c, mark, " instead of "), 0);
	cluster_stop(c);
}

/* ---- D18, D22 -------------------------------------------------------------------------------------------- */

/* D18: egg counts events: an app that says twice that it listens is two. */
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

/* D22: in egg 9,432 of them were lost. */
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
