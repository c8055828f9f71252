/*
 * Crash loops and reloads of a live cluster: scenarios 10, 11, 13 and 17 of lifecycle.md.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "manners.h"

TestSuite(reload, .timeout = 120);

/* ---- 10, 11: crash loops ----------------------------------------------------------------- */

enum { REFORKS = 59, WINDOW = 60000 }; /* cfork's limit, and its duration */

/* The apps crash as long as this file exists. */
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

/* The app dies as soon as the cluster is ready, and so does its replacement. */
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

/* Four apps, of which `sick` crash until the limit forbids to re-fork them. */
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
	cluster_pid(c, "APP#63"); /* 4 apps and 59 re-forks */
	for (i = 0; i < sick; i++)
		at = cluster_wait(c, at, "worker died too fast: app_worker of slot ");
	return c;
}

/* The master gives up at its third health check without a live app. */
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

Test(reload, s10a_all_four_apps_crash_in_a_loop)
{
	int64_t begin = clutch_now();
	struct cluster *c = start_crashing(crash, 4);
	int i;

	cluster_wait(c, 0, "app_worker#63:APP#63 died (code: 1, signal: null)");
	for (i = 1; i <= 4; i++)
		cluster_wait(c, 0, "worker died too fast: app_worker of slot %d waits", i - 1);
	cluster_until(c, knows_all_deaths, NULL, "the parent to be told of 63 deaths");
	cr_assert_eq(cluster_count(c, 0, "app_worker#64"), 0);
	cr_assert_eq(cluster_count(c, 0, ":PARENT saw app-worker-died"), 63);
	expect_given_up(c, begin);
}

/* D13: egg loses the three slots for ever; in clutch they wait until the window is over. */
Test(reload, s10b_three_of_four_apps_crash_in_a_loop, .timeout = 180)
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
	cr_assert_eq(cluster_count(c, 0, "app_worker#64"), 0, "re-forked too early");
	cr_assert(process_processor_time(c->master) - used < 1000 * time_scale(),
	          "the master uses the processor while slots wait");
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

/* The app dies while it loads. */
static int
load_unless_sick(struct messenger *app, void *arg)
{
	(void)app, (void)arg;
	if (access(sickness, F_OK) == 0)
		exit(1);
	return 0;
}

/* D11: each replacement is replaced, too, but none is alive at a health check. */
Test(reload, s11_all_apps_are_dead)
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

/* D11: while a replacement dies, the end of its predecessor changes nothing. */
Test(reload, s11_a_dying_replacement_is_replaced_once)
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
	death = clutch_now(); /* the master may see both deaths in one turn */
	cluster_signal(c, "APP#1", SIGKILL);
	cluster_wait_end(c, "APP#1");
	recover();
	cluster_signal(c, "APP#2", SIGKILL);
	at = cluster_wait(c, 0, "app_worker#2:APP#2 died (");
	cluster_wait(c, at, ":APP#3 saw egg-ready");
	cr_assert_eq(cluster_count(c, 0, "app_worker#3"), cluster_count(c, at, "app_worker#3"),
	             "APP#3 was forked before APP#2 was dead");
	cr_assert(clutch_now() - death >= 1000, "APP#3 came earlier than after a second");
	cr_assert_eq(cluster_count(c, 0, "app_worker#4"), 0);
	cluster_stop(c);
}

/* ---- 13: reload -------------------------------------------------------------------------- */

/* Since the mark, has the agent seen an egg-pids with fewer than `least` apps? */
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

/* Three new apps, the first of them APP#`first`, replace the three old apps, one by one: a new
 * app is ready before its predecessor exits. */
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

/* D12: egg stops all old apps at once, and in prod forks two new apps for each of them. */
static void
expect_reload_in(const char *env)
{
	struct cluster *c = start((struct options){.workers = 3, .env = env});
	size_t mark = cluster_mark(c);

	order_reload_by_parent(c);
	expect_reload(c, mark, 4);
	cluster_stop(c);
}

Test(reload, s13a_reload_in_production)
{
	expect_reload_in("prod");
}

Test(reload, s13b_reload_in_env_local)
{
	expect_reload_in("local");
}

Test(reload, s13_reload_ordered_by_the_agent_and_again)
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
Test(reload, s13_reload_ordered_by_an_app_is_refused)
{
	struct cluster *c = start((struct options){.workers = 2});

	cluster_did(c, "APP#2", "reload by pid");
	cluster_did(c, "APP#2", "reload 0");
	cluster_wait(c, 0, "app_worker#2:APP#2 may not send reload-worker: refused");
	cluster_ask_status(c); /* the master has read the orders */
	cr_assert_eq(cluster_count(c, 0, "refused"), 1);
	cr_assert_eq(cluster_count(c, 0, "reload workers..."), 0);
	cr_assert_eq(cluster_count(c, 0, "app_worker#3"), 0);
	cluster_stop(c);
}

Test(reload, s13_reload_ordered_during_a_reload_begins_anew)
{
	struct cluster *c = start((struct options){.workers = 3});
	size_t mark = cluster_mark(c);
	int i;

	for (i = 0; i < 3; i++) /* in one write: the master reads all three at once */
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

/* The old apps heard nothing of the reload that failed, and the next reload succeeds. */
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

/* D12: the same would leave egg without an app. */
Test(reload, s13_a_reload_with_an_app_that_dies_keeps_the_old_ones)
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

Test(reload, s13_a_reload_with_an_app_that_is_never_ready_keeps_the_old_ones)
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

/* D14: after a SIGTERM the reload goes no further, even if a new app becomes ready. */
Test(reload, s13_sigterm_during_a_reload)
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

/* An old app dies while its successor loads, and the successor dies, too: its slot lives on. */
Test(reload, s13_an_old_app_dies_during_its_reload)
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

/* Old apps that leave slowly do not keep the new apps from starting. */
Test(reload, s13_many_old_apps_that_leave_slowly_stop_no_reload)
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
	go(c, ROLE_APP); /* the new apps need not wait when they close */
	for (i = 13; i <= 24; i++)
		cluster_wait(c, mark, ":APP#%d saw test-go", i);
	cluster_stop(c);
}

/* ---- 13: reload under load --------------------------------------------------------------- */

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

/* Make eight short connections at a time: none is refused, each is answered. */
static bool
is_reloaded_under_load(struct cluster *c, void *arg)
{
	struct load *load = arg;
	int clients[8], i;
	char reply[8];

	for (i = 0; i < 8; i++)
		clients[i] = cluster_connect(c); /* fails the test if refused */
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

Test(reload, s13_no_connection_is_refused_or_dropped_during_reloads)
{
	struct cluster *c = start((struct options){.workers = 3, .connection = answer});
	struct load load = {0, 0};
	int i;

	for (i = 0; i < 5; i++) {
		load.mark = cluster_mark(c);
		order_reload_by_parent(c);
		cluster_until(c, is_reloaded_under_load, &load, "the end of the reload under load");
		cluster_wait(c, load.mark, "[master] reload done");
	}
	cr_assert_geq(load.connections, 40);
	cr_assert_eq(cluster_count(c, 0, "cannot answer"), 0);
	cluster_stop(c);
}

/* ---- 17: broadcasts before all is ready -------------------------------------------------- */

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

/* D23: an app that is forked later first gets the messages that the agent sent before; in egg
 * they are lost. The messages of other apps reach it, too. */
static void
expect_early(struct cluster *c, const char *who, bool is_app)
{
	size_t at = cluster_wait(c, 0, ":%s saw early-load-agent AGENT#1 ", who);
	size_t ready = cluster_wait(c, 0, ":%s saw egg-ready", who), pids;
	int i;

	at = cluster_wait(c, at, ":%s saw early-ready-agent AGENT#1 ", who);
	if (is_app) { /* then the list of pids */
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

Test(reload, s17_broadcasts_while_loading_and_when_ready)
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

/* ---- a slot that waits for its re-fork --------------------------------------------------- */

/* master.c, reload_next: without the step to the next slot the master would never leave the
 * loop. */
Test(reload, a_reload_passes_over_a_slot_that_waits_for_its_refork)
{
	struct cluster *c;
	size_t mark;

	snprintf(sickness, sizeof sickness, "%s/sickness", test_folder());
	manners.app.load = load_unless_sick;
	c = launch((struct options){.workers = 2});
	cluster_ready(c);
	mark = cluster_mark(c);
	fall_ill();
	cluster_signal(c, "APP#2", SIGKILL);
	cluster_wait_end(c, "APP#3");
	recover();
	cr_assert_eq(messenger_send(c->parent, "reload-worker", NULL, ROLE_MASTER), 0);
	cluster_turn(c);
	cluster_wait(c, mark, "[master] reload done");
	cluster_wait_saw(c, "APP#5", "egg-pids [AGENT#1] -> egg-ready <options>");
	cluster_stop(c);
}

/* Nothing needs to be replaced yet: the workers that are starting have the newest code. */
Test(reload, an_order_to_reload_before_the_start_is_over_is_ignored)
{
	struct cluster *c;

	manners.app.load = load_long;
	c = launch((struct options){.workers = 1});
	cluster_wait(c, 0, ":APP#1 loads");
	cr_assert_eq(messenger_send(c->parent, "reload-worker", NULL, ROLE_MASTER), 0);
	cluster_order(c, "APP#1", "ready");
	cluster_ready(c);
	cr_assert_eq(cluster_count(c, 0, "[master] reload workers"), 0);
	cr_assert_eq(cluster_count(c, 0, "app_worker#2"), 0);
	cluster_stop(c);
}
