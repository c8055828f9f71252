/*
 * The first half of golden/lifecycle.md against live clusters: start, death of
 * workers and agent, the graceful exit, failed starts. A test's name begins with
 * its scenario's id.
 *
 * Each test expects the behaviour of the real egg-cluster, or a comment names the
 * divergence, Dn of docs/divergences.md. Three divergences occur in most tests:
 * an app hears egg-pids first of all (D7), a death is told to the agent twice, at
 * disconnect and at exit (D9), and only a replacement hears its own egg-ready (D10).
 *
 * A process that loads does so until the test tells it to be ready, and a
 * connection lasts until its client ends it: no test depends on which process is faster.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "harness.h"
#include "sanitized.h"

#include <criterion/criterion.h>

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

TestSuite(lifecycle, .timeout = 120);

#define EXIT_0 "code: 0, signal: null"
#define EXIT_1 "code: 1, signal: null"
#define KILLED "code: null, signal: SIGKILL"

/* What a newcomer hears. egg: only egg-ready; the pids are D7. */
#define NEWCOMER "egg-pids [AGENT#1] -> egg-ready <options>"

/* An answer that a test wants to be slow takes this long. */
#define SLOW 300

/* ---- processes that obey -------------------------------------------------- */

static char fifo[2][64];   /* a process that opens a fifo blocks until the test opens it */
static char first_run[64]; /* a file: the first agent makes it, and later agents find it */

static int answer(struct messenger *app, void *arg);

static int
return_seven(struct messenger *messenger, void *arg)
{
	(void)messenger, (void)arg;
	return 7;
}

static int
watch_and_return_seven(struct messenger *messenger, int descriptor, short revents, void *arg)
{
	(void)revents, (void)arg;
	messenger_unwatch(messenger, descriptor);
	return 7;
}

static void
watch_what_is_ready(struct messenger *messenger)
{
	static int ends[2];

	if (pipe(ends) == -1 || write(ends[1], "", 1) != 1)
		abort();
	messenger_watch(messenger, ends[0], POLLIN, watch_and_return_seven, NULL);
}

/* Fork a child that keeps the app's end of the channel open; `stays`: in the app's process
 * group. SIGTERM is blocked until the child has set its action for the signal. */
static void
fork_holder(struct messenger *app, bool stays)
{
	sigset_t set;
	pid_t pid;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigprocmask(SIG_BLOCK, &set, NULL);
	pid = fork();
	if (pid == 0) {
		signal(SIGTERM, SIG_DFL);
		sigprocmask(SIG_UNBLOCK, &set, NULL);
		while (pause() == -1)
			;
	}
	sigprocmask(SIG_UNBLOCK, &set, NULL);
	if (!stays)
		setpgid(pid, pid);
	report(app, "holder %ld", (long)pid);
}

enum { FLOOD = 500, FLOOD_SIZE = 4096 };

/* Send more than a socket holds, and less than the queue holds. */
static void
flood(struct messenger *app)
{
	char data[FLOOD_SIZE + 1];
	int i;

	memset(data, ' ', FLOOD_SIZE);
	data[FLOOD_SIZE] = '\0';
	for (i = 0; i < FLOOD; i++) {
		data[snprintf(data, sizeof data, "%d", i)] = ' ';
		if (messenger_send_to_agent(app, "test-flood", data) == -1)
			report(app, "cannot send");
	}
}

static int
on_flood(struct messenger *agent, const struct message *message, void *arg)
{
	static int expected;

	(void)arg;
	if (atoi(message->data) != expected++)
		report(agent, "flood out of order");
	if (expected == FLOOD)
		report(agent, "flood complete");
	return 0;
}

static int blocked; /* how often this app has blocked */

static void
block(struct messenger *app)
{
	report(app, "blocks");
	close(open(fifo[blocked++], O_RDONLY));
}

static int
order_timer(struct messenger *messenger, const char *line)
{
	(void)line;
	return messenger_set_timeout(messenger, 1, return_seven, NULL) == -1 ? -1 : 0;
}

static int
order_watcher(struct messenger *messenger, const char *line)
{
	(void)line;
	watch_what_is_ready(messenger);
	return 0;
}

static int
order_answer(struct messenger *app, const char *line)
{
	(void)line;
	answer(app, NULL);
	return 0;
}

static int
order_fork(struct messenger *app, const char *line)
{
	fork_holder(app, atoi(order_rest(line)) == 1);
	return 0;
}

/* The next two orders carry the error that the listener returns. */
static int
order_flood(struct messenger *app, const char *line)
{
	flood(app);
	return atoi(order_rest(line));
}

static int
order_block(struct messenger *app, const char *line)
{
	block(app);
	return atoi(order_rest(line));
}

static const struct order orders[] = {{"timer", order_timer},
                                      {"watcher", order_watcher},
                                      {"answer", order_answer},
                                      {"fork", order_fork},
                                      {"flood", order_flood},
                                      {"block", order_block},
                                      {NULL, NULL}};

/* The agent sends the marker back: then the parent, too, has heard all that came before. */
static int
on_marker(struct messenger *agent, const struct message *message, void *arg)
{
	(void)arg;
	return messenger_send(agent, "test-marker", message->data, ROLE_PARENT);
}

/* The master logs no exit status of a process that it has given up, so the process reports it. */
static void
report_exit(int status, void *arg)
{
	report(arg, "exits %d", status);
}

static struct messenger *exiting;

/* clutch ends its processes with _exit, so no handler of on_exit runs. */
void __real__exit(int code);
void __wrap__exit(int code);

void
__wrap__exit(int code)
{
	if (exiting != NULL)
		report_exit(code, exiting);
	__real__exit(code);
}

static int
obey(struct messenger *messenger, void *arg)
{
	(void)arg;
	if (messenger_role(messenger) == ROLE_AGENT) {
		messenger_on(messenger, "test-marker", on_marker, NULL);
		messenger_on(messenger, "test-flood", on_flood, NULL);
	}
	exiting = messenger;
	return on_exit(report_exit, messenger) != 0 || observe(messenger) != 0 ||
	       obey_orders(messenger, orders) != 0;
}

/* The process loads until the test orders it to be ready. */
static int
load(struct messenger *messenger, void *arg)
{
	messenger_ready_later(messenger);
	return obey(messenger, arg);
}

/*
 * Wait until each of `everyone` ("AGENT#1 APP#1 ...") and the parent has heard all
 * that the master has told them so far: channels are first in, first out, and a
 * marker comes behind it.
 */
static void
settle(struct cluster *c, const char *everyone)
{
	static int number;
	char names[128], text[16], *name, *next = names;

	snprintf(text, sizeof text, "%d", ++number);
	cr_assert_eq(messenger_broadcast(c->parent, "test-marker", text), 0);
	snprintf(names, sizeof names, "%s PARENT", everyone);
	while ((name = strsep(&next, " ")) != NULL)
		cluster_wait(c, 0, ":%s saw test-marker %d ", name, number);
}

/* Start a cluster, and wait until all processes know that it is ready. APP#n has slot n - 1. */
static struct cluster *
start(struct options options, const char *everyone)
{
	struct cluster *c;

	options.agent = options.agent != NULL ? options.agent : obey;
	options.app = options.app != NULL ? options.app : obey;
	c = cluster_start(&options);
	cluster_ready(c);
	settle(c, everyone);
	return c;
}

/* ---- who is alive ----------------------------------------------------------- */

static bool
are_alive(struct cluster *c, void *arg)
{
	char names[128], *name, *next = names;
	pid_t pids[32];
	size_t i, count = cluster_processes(c, pids, 32), expected = 0;

	snprintf(names, sizeof names, "%s", (const char *)arg);
	while ((name = strsep(&next, " ")) != NULL) {
		expected++;
		for (i = 0; i < count && pids[i] != cluster_pid(c, name); i++)
			;
		if (i == count)
			return false;
	}
	return count == expected;
}

/* Check that the processes of `alive`, and no others, are alive; then stop the cluster. */
static void
stop_all(struct cluster *c, const char *alive)
{
	char names[128];

	snprintf(names, sizeof names, "%s", alive);
	cluster_until(c, are_alive, names, alive);
	cluster_stop(c);
}

/* ---- 01, 02: cold start ------------------------------------------------------ */

static int
accept_and_close(struct messenger *app, int descriptor, void *arg)
{
	(void)app, (void)arg;
	return close(descriptor);
}

Test(lifecycle, s01_cold_start_with_one_worker)
{
	struct cluster *c =
		start((struct options){.connection = accept_and_close}, "AGENT#1 APP#1");

	cluster_wait(c, 0,
	             "\"port\":PORT,\"address\":\"http://127.0.0.1:PORT\",\"protocol\":\"http\"} "
	             "from master to parent");
	cluster_wait_saw(c, "PARENT", "egg-ready <options>");
	cluster_wait_saw(c, "AGENT#1", "egg-pids [APP#1] -> egg-ready <options>");
	cluster_wait_saw(c, "APP#1", NEWCOMER);
	close(cluster_connect(c)); /* a process listens on the port */
	stop_all(c, "MASTER AGENT#1 APP#1");
}

/* They become ready in the order of egg's record: the third, the first, the second. */
Test(lifecycle, s02_cold_start_with_three_workers)
{
	static const char *const order_of_start[] = {"APP#3", "APP#1", "APP#2"};
	struct cluster *c =
		cluster_start(&(struct options){.agent = obey, .app = load, .workers = 3});
	size_t at = 0;
	int i;

	for (i = 0; i < 3; i++) {
		settle(c, "AGENT#1");
		cr_assert_eq(cluster_count(c, 0, "egg-ready"), 0,
		             "egg-ready was sent before all are ready");
		cluster_order(c, order_of_start[i], "ready 0");
		at = cluster_wait(c, at, ":%s started, remain %d (", order_of_start[i], 2 - i);
	}
	cluster_wait(c, at, "[master] egg started (");
	cluster_ready(c);
	settle(c, "AGENT#1 APP#1 APP#2 APP#3");
	cluster_wait_saw(c, "PARENT", "egg-ready <options>");
	cluster_wait_saw(c, "AGENT#1",
	                 "egg-pids [APP#3] -> egg-pids [APP#1,APP#3] -> "
	                 "egg-pids [APP#1,APP#2,APP#3] -> egg-ready <options>");
	for (i = 0; i < 3; i++)
		cluster_wait_saw(c, order_of_start[i], NEWCOMER);
	stop_all(c, "MASTER AGENT#1 APP#1 APP#2 APP#3");
}

static bool
is_stopped(struct cluster *c, void *arg)
{
	char path[64], line[256] = "";
	const char *name;
	FILE *file;

	(void)arg;
	snprintf(path, sizeof path, "/proc/%ld/stat", (long)c->master);
	file = fopen(path, "r");
	cr_assert(file != NULL && fgets(line, sizeof line, file) != NULL);
	fclose(file);
	name = strrchr(line, ')');
	return name != NULL && name[2] == 'T';
}

static int
stop_the_master(struct messenger *app, void *arg)
{
	if (messenger_slot(app) == 0)
		kill(getppid(), SIGSTOP);
	return obey(app, arg);
}

/* As in egg, where the event `fork` comes in the next tick: no app is announced before
 * the last app is forked. The first app stops the master as soon as the app runs. */
Test(lifecycle, s02_all_apps_are_forked_before_one_is_announced)
{
	enum { WORKERS = 16 };
	struct cluster *c = cluster_start(
		&(struct options){.agent = obey, .app = stop_the_master, .workers = WORKERS});
	pid_t pids[WORKERS + 4];
	size_t started;

	cluster_until(c, is_stopped, NULL, "the master to be stopped");
	started = cluster_count(c, 0, "[master] app_worker#");
	cr_assert(started == 0 || cluster_processes(c, pids, WORKERS + 4) == WORKERS + 2,
	          "%zu app workers were announced before all were forked", started);
	kill(c->master, SIGCONT);
	cluster_ready(c);
	cluster_stop(c);
}

/* ---- 03: the death of a worker ------------------------------------------------- */

/* The dead process and its end; the pids left in egg-pids; the replacement; all processes. */
struct death {
	const char *who, *end, *left, *newcomer, *all;
};

/*
 * The agent hears the pids that are left at disconnect and at exit (D9), and the newcomer's
 * pid when the newcomer is ready, which may be before or after the exit. The parent hears of
 * the death once; the other apps hear nothing (D10).
 */
static void
expect_replaced(struct cluster *c, size_t mark, const struct death *d, const char *everyone)
{
	char saw[256];
	size_t at;

	cr_assert_str_eq(cluster_wait_end(c, d->who), d->end);
	cluster_wait_saw(c, d->newcomer, NEWCOMER);
	settle(c, everyone);
	snprintf(saw, sizeof saw, "%s -> %s -> %s || %s -> %s -> %s", d->left, d->left, d->all,
	         d->left, d->all, d->all);
	cluster_wait_saw_from(c, mark, "AGENT#1", saw);
	cluster_wait_saw_from(c, mark, "PARENT", "app-worker-died");
	cluster_wait_saw_from(c, mark, "APP#1", "");
	cluster_wait_saw_from(c, mark, d->who, "");
	at = cluster_wait(c, mark, ":%s disconnect", d->who);
	cluster_wait(c, at, ":%s died (", d->who);
	cr_assert_eq(cluster_count(c, mark, "start fail"), 0);
}

static const struct death of_two = {"APP#2", EXIT_1, "egg-pids [APP#1]", "APP#3",
                                    "egg-pids [APP#1,APP#3]"};

/* The second of two workers dies, and is replaced. */
static void
expect_the_second_replaced(struct cluster *c, size_t mark, const char *end)
{
	struct death d = of_two;

	d.end = end;
	expect_replaced(c, mark, &d, "AGENT#1 APP#1 APP#3");
	cr_assert_eq(cluster_count(c, 0, "app_worker#4"), 0);
	stop_all(c, "MASTER AGENT#1 APP#1 APP#3");
}

static int
obey_and_tell_slot(struct messenger *app, void *arg)
{
	report(app, "slot %d index %s", messenger_slot(app), getenv("CFORK_WORKER_INDEX"));
	return obey(app, arg);
}

Test(lifecycle, s03a_kill_9_of_a_worker)
{
	struct cluster *c = start((struct options){.app = obey_and_tell_slot, .workers = 3},
	                          "AGENT#1 APP#1 APP#2 APP#3");
	size_t at, mark = cluster_mark(c);
	int64_t now = clutch_now();

	cluster_signal(c, "APP#2", SIGKILL);
	at = cluster_wait(c, mark, "[master] app_worker#4:APP#4 start");
	cr_assert(clutch_now() - now < 1000 * time_scale(),
	          "the replacement was not forked within a second");
	expect_replaced(c, mark,
	                &(struct death){"APP#2", KILLED, "egg-pids [APP#1,APP#3]", "APP#4",
	                                "egg-pids [APP#1,APP#3,APP#4]"},
	                "AGENT#1 APP#1 APP#3 APP#4");
	cluster_wait_saw_from(c, mark, "APP#3", ""); /* D10 */
	cluster_wait(c, 0, ":APP#1 slot 0 index 0");
	cluster_wait(c, 0, ":APP#3 slot 2 index 2");
	cluster_wait(c, 0, ":APP#4 slot 1 index 1");
	cluster_wait(c, at, "app_worker#4:APP#4 started, remain 0");
	stop_all(c, "MASTER AGENT#1 APP#1 APP#3 APP#4");
}

/* Six deaths by SIGKILL, then six by exit(1): disconnect always comes before exit. */
Test(lifecycle, s03b_disconnect_comes_before_exit)
{
	struct cluster *c = start((struct options){.workers = 2}, "AGENT#1 APP#1 APP#2");
	char who[16], newcomer[16], all[64], everyone[64];
	size_t mark;
	int n;

	for (n = 2; n < 14; n++) {
		mark = cluster_mark(c);
		snprintf(who, sizeof who, "APP#%d", n);
		snprintf(newcomer, sizeof newcomer, "APP#%d", n + 1);
		snprintf(all, sizeof all, "egg-pids [APP#1,%s]", newcomer);
		snprintf(everyone, sizeof everyone, "AGENT#1 APP#1 %s", newcomer);
		if (n < 8)
			cluster_signal(c, who, SIGKILL);
		else
			cluster_order(c, who, "exit 1");
		expect_replaced(c, mark,
		                &(struct death){who, n < 8 ? KILLED : EXIT_1, "egg-pids [APP#1]",
		                                newcomer, all},
		                everyone);
	}
	cr_assert_eq(cluster_count(c, 0, ":PARENT saw app-worker-died"), 12);
	cr_assert_eq(cluster_count(c, 0, "died too fast"), 0);
	stop_all(c, "MASTER AGENT#1 APP#1 APP#14");
}

/* As in egg, where cfork forks in its listener of `disconnect`: the dead are counted
 * later, however long they have been dead. */
Test(lifecycle, s03b_a_replacement_comes_with_the_disconnect)
{
	struct cluster *c = start((struct options){.workers = 2}, "AGENT#1 APP#1 APP#2");
	size_t at, mark = cluster_mark(c);

	kill(c->master, SIGSTOP);
	cluster_until(c, is_stopped, NULL, "the master to be stopped");
	cluster_signal(c, "APP#2", SIGKILL);
	cluster_wait_death(c, "APP#2");
	kill(c->master, SIGCONT);
	at = cluster_wait(c, mark, "[master] app_worker#2:APP#2 disconnect");
	at = cluster_wait(c, at, "[master] app_worker#3:APP#3 start");
	cluster_wait(c, at, "[master] app_worker#2:APP#2 died (" KILLED ")");
	expect_the_second_replaced(c, mark, KILLED);
}

static bool
is_master_large(struct cluster *c, void *arg)
{
	const long *least = arg;

	return process_memory(c->master) > *least;
}

/* 1 MiB waits in the master for the agent; a forked replacement must not send that queue, too. */
Test(lifecycle, s03b_a_replacement_has_nothing_of_what_waits_in_the_master)
{
	struct cluster *c = start((struct options){.workers = 2}, "AGENT#1 APP#1 APP#2");
	static char data[256 * 1024];
	long before = process_memory(cluster_pid(c, "APP#2"));
	long large = process_memory(c->master) + 1024;
	size_t mark = cluster_mark(c);
	int i;

	memset(data, ' ', sizeof data - 1);
	cluster_signal(c, "AGENT#1", SIGSTOP);
	for (i = 0; i < 8; i++)
		cr_assert_eq(messenger_send_to_agent(c->parent, "test-nothing", data), 0);
	cluster_until(c, is_master_large, &large, "1 MiB to wait in the master");
	cluster_signal(c, "APP#2", SIGKILL);
	cluster_wait(c, mark, "app_worker#3:APP#3 started");
	cr_expect(!MEMORY_COUNTS || process_memory(cluster_pid(c, "APP#3")) < before + 1024,
	          "the replacement has %ld KiB of memory, and the master had %ld KiB before",
	          process_memory(cluster_pid(c, "APP#3")), before);
	cluster_signal(c, "AGENT#1", SIGCONT);
	settle(c, "AGENT#1 APP#1 APP#3");
	stop_all(c, "MASTER AGENT#1 APP#1 APP#3");
}

static void
on_alarm(int number)
{
	(void)number;
	clutch_print_line(STDOUT_FILENO, "alarmed");
}

static int
obey_and_set_alarm(struct messenger *app, void *arg)
{
	signal(SIGALRM, on_alarm);
	return obey(app, arg);
}

/* clutch uses the alarm only while a process leaves. */
Test(lifecycle, a_worker_s_alarm_is_its_own)
{
	struct cluster *c = start((struct options){.app = obey_and_set_alarm}, "AGENT#1 APP#1");

	cluster_signal(c, "APP#1", SIGALRM);
	cluster_wait(c, 0, "alarmed");
	settle(c, "AGENT#1 APP#1");
	stop_all(c, "MASTER AGENT#1 APP#1");
}

Test(lifecycle, s03c_sigterm_to_a_worker_from_outside)
{
	struct cluster *c = start((struct options){.workers = 2}, "AGENT#1 APP#1 APP#2");
	size_t mark = cluster_mark(c);

	cluster_signal(c, "APP#2", SIGTERM);
	expect_the_second_replaced(c, mark, EXIT_0);
}

Test(lifecycle, s03d_exit_1_in_a_worker_after_start)
{
	struct cluster *c = start((struct options){.workers = 2}, "AGENT#1 APP#1 APP#2");
	size_t mark = cluster_mark(c);

	cluster_order(c, "APP#2", "exit 1");
	expect_the_second_replaced(c, mark, EXIT_1);
}

Test(lifecycle, s03e_kill_9_of_a_worker_in_env_local)
{
	struct cluster *c =
		start((struct options){.workers = 2, .env = "local"}, "AGENT#1 APP#1 APP#2");
	size_t mark = cluster_mark(c);

	cluster_signal(c, "APP#2", SIGKILL);
	cr_assert_str_eq(cluster_wait_end(c, "APP#2"), KILLED);
	settle(c, "AGENT#1 APP#1");
	settle(c, "AGENT#1 APP#1"); /* another turn of the master's loop */
	cluster_wait_saw_from(c, mark, "PARENT", "app-worker-died");
	cluster_wait_saw_from(c, mark, "AGENT#1", "egg-pids [APP#1] -> egg-pids [APP#1]");
	cluster_wait_saw_from(c, mark, "APP#1", "");
	cr_assert_eq(cluster_count(c, 0, "app_worker#3"), 0);
	stop_all(c, "MASTER AGENT#1 APP#1");
}

/* Worker n - 1 is told to exit while it loads. The master forks worker n `wait` ms after that
 * death: not before, and the status tells no later time. */
static void
expect_backoff(struct cluster *c, const char *slot, int n, int wait)
{
	char who[16], before[16];
	int64_t now;

	snprintf(before, sizeof before, "APP#%d", n - 1);
	snprintf(who, sizeof who, "APP#%d", n);
	cluster_pid(c, before);
	now = clutch_now();
	cluster_order(c, before, "exit 1");
	cr_assert_str_eq(cluster_wait_end(c, before), EXIT_1);
	cluster_ask_status(c);
	cr_assert_leq(cluster_figure(c, slot, "refork_in"), wait);
	cluster_pid(c, who);
	cr_assert(clutch_now() - now >= wait, "%s came after %lld ms, not %d", who,
	          (long long)(clutch_now() - now), wait);
	cr_assert(clutch_now() - now < wait + 5000 * time_scale(), "%s came after %lld ms, not %d",
	          who, (long long)(clutch_now() - now), wait);
}

/* D11: egg never replaces a replacement that dies before it is ready. */
Test(lifecycle, s03f_a_replacement_that_exits_while_loading_is_replaced)
{
	struct cluster *c =
		cluster_start(&(struct options){.agent = obey, .app = load, .workers = 2});
	size_t mark;

	cluster_order(c, "APP#1", "ready 0");
	cluster_order(c, "APP#2", "ready 0");
	cluster_ready(c);
	settle(c, "AGENT#1 APP#1 APP#2");
	mark = cluster_mark(c);
	cluster_signal(c, "APP#2", SIGKILL);
	expect_backoff(c, "app 1", 4, 1000);
	expect_backoff(c, "app 1", 5, 2000);
	cluster_order(c, "APP#5", "ready 0");
	cluster_wait_saw(c, "APP#5", NEWCOMER);
	settle(c, "AGENT#1 APP#1 APP#5");

	cluster_wait_saw_from(c, mark, "PARENT",
	                      "app-worker-died -> app-worker-died -> app-worker-died");
#define TWICE "egg-pids [APP#1] -> egg-pids [APP#1] -> "
	cluster_wait_saw_from(c, mark, "AGENT#1", TWICE TWICE TWICE "egg-pids [APP#1,APP#5]");
#undef TWICE
	cluster_wait_saw_from(c, mark, "APP#1", "");
	cluster_wait_saw(c, "APP#3", "egg-pids [AGENT#1]"); /* D7 */
	cluster_wait_saw(c, "APP#4", "egg-pids [AGENT#1]");
	stop_all(c, "MASTER AGENT#1 APP#1 APP#5");
}

/* A replacement that became ready ends the back-off: after its death no fork is delayed. */
Test(lifecycle, s03f_a_replacement_that_was_ready_ends_the_backoff)
{
	struct cluster *c =
		cluster_start(&(struct options){.agent = obey, .app = load, .workers = 1});
	int64_t now;

	cluster_order(c, "APP#1", "ready 0");
	cluster_ready(c);
	cluster_order(c, "APP#1", "exit 1");
	cluster_order(c, "APP#2", "exit 1");
	cluster_order(c, "APP#3", "ready 0");
	cluster_wait(c, 0, "app_worker#3:APP#3 started");
	now = clutch_now();
	cluster_order(c, "APP#3", "exit 1");
	cluster_pid(c, "APP#4");
	cr_assert(clutch_now() - now < 900,
	          "the worker that had been ready was not replaced at once");
	expect_backoff(c, "app 0", 5, 1000);
	cluster_stop(c);
}

static pid_t
start_holder(struct cluster *c, const char *text)
{
	const char *line;
	long pid;

	cluster_order(c, "APP#2", text);
	cluster_wait(c, 0, ":APP#2 holder ");
	line = cluster_line(c, ":APP#2 holder ");
	cr_assert(sscanf(line, "%*s holder %ld", &pid) == 1);
	return (pid_t)pid;
}

static bool
is_dead(struct cluster *c, void *arg)
{
	(void)c;
	return !process_is_alive(*(pid_t *)arg);
}

/* The channel outlives the worker, because another process holds the worker's end. */
Test(lifecycle, s03g_exit_comes_before_disconnect)
{
	struct cluster *c = start((struct options){.workers = 2}, "AGENT#1 APP#1 APP#2");
	pid_t holder = start_holder(c, "fork 0");
	size_t mark = cluster_mark(c);
	struct death d = of_two;

	d.end = KILLED;
	cluster_signal(c, "APP#2", SIGKILL);
	expect_replaced(c, mark, &d, "AGENT#1 APP#1 APP#3");
	cr_assert(process_is_alive(holder),
	          "the master killed a process that has left the worker's process group");
	cr_assert_eq(kill(holder, SIGKILL), 0);
	cluster_until(c, is_dead, &holder, "the holder's death");
	settle(c, "AGENT#1 APP#1 APP#3"); /* the end of the channel is no second death */
	cluster_wait_saw_from(c, mark, "PARENT", "app-worker-died");
	cr_assert_eq(cluster_count(c, 0, "app_worker#4"), 0);
	stop_all(c, "MASTER AGENT#1 APP#1 APP#3");
}

/* D51: a worker leads a process group, and the group does not outlive the worker. */
Test(lifecycle, s03g_the_children_of_a_dead_worker_die_with_it)
{
	struct cluster *c = start((struct options){.workers = 2}, "AGENT#1 APP#1 APP#2");
	pid_t holder = start_holder(c, "fork 1");
	size_t mark = cluster_mark(c);

	cluster_signal(c, "APP#2", SIGKILL);
	cluster_until(c, is_dead, &holder, "the holder's death");
	expect_the_second_replaced(c, mark, KILLED);
}

/* ---- a server whose connections last as long as their clients want --------------- */

static int idle = -1, held = -1;

static void
end_connection(struct messenger *app, int *descriptor)
{
	if (*descriptor == -1)
		return;
	messenger_unwatch(app, *descriptor);
	close(*descriptor);
	*descriptor = -1;
}

static int
answer(struct messenger *app, void *arg)
{
	(void)arg;
	if (write(held, "answer", 6) != 6)
		report(app, "cannot answer");
	end_connection(app, &held);
	return 0;
}

/*
 * A byte is a request. i: report it, and keep the connection idle; h: hold the request;
 * g: answer the held request after a while.
 */
static int
on_request(struct messenger *app, int descriptor, short revents, void *arg)
{
	char request = '-';

	(void)revents, (void)arg;
	if (read(descriptor, &request, 1) != 1) {
		end_connection(app, &descriptor);
		return 0;
	}
	if (request == 'i')
		idle = descriptor;
	if (request == 'h')
		held = descriptor;
	if (request == 'g')
		messenger_set_timeout(app, SLOW, answer, NULL);
	report(app, "request %c", request);
	return 0;
}

static int
serve(struct messenger *app, int descriptor, void *arg)
{
	report(app, "accepts");
	return messenger_watch(app, descriptor, POLLIN, on_request, arg);
}

/* Idle connections end when the process begins to leave. */
static int
end_idle(struct messenger *app, void *arg)
{
	(void)arg;
	report(app, "leaves, closing %d", messenger_closing(app));
	end_connection(app, &idle);
	return 0;
}

static int
obey_and_serve(struct messenger *app, void *arg)
{
	messenger_before_close(app, end_idle, NULL);
	return obey(app, arg);
}

/* Open a connection that this worker accepts, with a request that the worker has read. */
static int
request_of(struct cluster *c, const char *who, const char *request)
{
	size_t mark, at;
	int i, client;

	for (i = 0; i < 200; i++) {
		mark = cluster_mark(c);
		client = cluster_connect(c);
		at = cluster_wait(c, mark, " accepts");
		if (cluster_count(c, mark, ":%s accepts", who) == 1) {
			cr_assert_eq(write(client, request, 1), 1);
			cluster_wait(c, at, ":%s request %s", who, request);
			return client;
		}
		close(client);
	}
	cr_assert(false, "%s accepts no connection", who);
	return -1;
}

/* What the client gets until the end of its connection. */
static void
expect_answer(int client, const char *expected)
{
	char text[32];
	size_t used = 0;
	ssize_t count;

	while ((count = read(client, text + used, sizeof text - 1 - used)) > 0)
		used += (size_t)count;
	cr_assert_eq(count, 0, "the connection did not end");
	text[used] = '\0';
	cr_assert_str_eq(text, expected);
	close(client);
}

static void
expect_open(int client)
{
	char byte;

	cr_assert(recv(client, &byte, 1, MSG_DONTWAIT) == -1, "the connection has ended");
}

/* ---- 04: the graceful exit ------------------------------------------------------- */

/* The order `text` makes a worker leave gracefully: at once, for it has no connection (D20). */
static void
expect_graceful(const char *text, const char *line)
{
	struct cluster *c = start((struct options){.workers = 2}, "AGENT#1 APP#1 APP#2");
	size_t at, mark = cluster_mark(c);
	int64_t now = clutch_now();

	cluster_order(c, "APP#2", text);
	at = cluster_wait(c, mark, "%s", line);
	cluster_wait(c, at, "[app_worker] will exit after %dms at most", CLUTCH_GRACEFUL_TIMEOUT);
	cr_assert_str_eq(cluster_wait_end(c, "APP#2"), EXIT_1);
	cr_assert(clutch_now() - now < 2000 * time_scale(),
	          "the worker did not leave at once, and it had no connection");
	cr_assert_eq(cluster_count(c, 0, "graceful:disconnect"), 0,
	             "D20: the notice of egg's graceful was sent");
	expect_the_second_replaced(c, mark, EXIT_1);
}

Test(lifecycle, s04a_an_uncaught_error_in_a_listener)
{
	expect_graceful("uncaught 7", "[app_worker] uncaught error 7 in a listener");
}

Test(lifecycle, s04a_an_uncaught_error_in_a_timer)
{
	expect_graceful("timer", "[app_worker] uncaught error 7 in a timer");
}

Test(lifecycle, s04a_an_uncaught_error_in_a_watcher)
{
	expect_graceful("watcher", "[app_worker] uncaught error 7 in a watcher");
}

Test(lifecycle, s04a_a_graceful_exit_by_request)
{
	expect_graceful("graceful", ":APP#2 saw test-order graceful");
}

/* A request in flight, and a keep-alive client. The replacement is ready before the old
 * worker answers. D20: the old worker exits with its last connection, not after 30 s. */
Test(lifecycle, s04b_a_request_in_flight_is_answered)
{
	struct cluster *c = start((struct options){.app = obey_and_serve, .connection = serve},
	                          "AGENT#1 APP#1");
	int alive = request_of(c, "APP#1", "i"), client = request_of(c, "APP#1", "h");
	size_t mark = cluster_mark(c);
	int64_t now;

	cluster_order(c, "APP#1", "uncaught 7");
	expect_answer(alive, "");
	cluster_wait(c, mark, ":APP#1 leaves, closing 1");
	cluster_wait_saw(c, "APP#2", NEWCOMER);
	settle(c, "AGENT#1 APP#2");
	expect_open(client);
	cr_assert_eq(cluster_count(c, mark, "died"), 0);
	cluster_wait_saw_from(c, mark, "AGENT#1", "egg-pids [] -> egg-pids [APP#2]");
	close(request_of(c, "APP#2", "i")); /* the new worker has the port */

	now = clutch_now();
	cr_assert_eq(write(client, "g", 1), 1);
	expect_answer(client, "answer");
	cr_assert(clutch_now() - now >= SLOW);
	cr_assert_str_eq(cluster_wait_end(c, "APP#1"), EXIT_1);
	cr_assert(clutch_now() - now < SLOW + 2000 * time_scale(),
	          "the worker stays although its last connection has ended");
	settle(c, "AGENT#1 APP#2");
	cluster_wait_saw_from(c, mark, "PARENT", "app-worker-died");
	cluster_wait_saw_from(c, mark, "AGENT#1",
	                      "egg-pids [] -> egg-pids [APP#2] -> egg-pids [APP#2]");
	cluster_wait_saw_from(c, mark, "APP#1", "");
	stop_all(c, "MASTER AGENT#1 APP#2");
}

static int
fail_again(struct messenger *app, void *arg)
{
	(void)arg;
	return messenger_set_timeout(app, 100, return_seven, NULL) == -1;
}

static int
obey_and_fail_again(struct messenger *app, void *arg)
{
	messenger_before_close(app, fail_again, NULL);
	return obey(app, arg);
}

/* From here on a wait may take `factor` times as long. */
static void
allow_more_time(int factor)
{
	char scale[16];

	snprintf(scale, sizeof scale, "%d", factor * time_scale());
	setenv("TEST_TIME_SCALE", scale, 1);
}

/* Two errors, 100 ms apart, and a connection that never ends. */
Test(lifecycle, s04c_two_uncaught_errors_and_a_connection_that_never_ends, .timeout = 60)
{
	struct cluster *c = start(
		(struct options){.app = obey_and_fail_again, .connection = serve, .workers = 2},
		"AGENT#1 APP#1 APP#2");
	int client = request_of(c, "APP#2", "h");
	size_t at, mark = cluster_mark(c);
	int64_t now = clutch_now();

	cluster_order(c, "APP#2", "uncaught 7");
	at = cluster_wait(c, mark, "[app_worker] uncaught error 7 in a listener");
	cluster_wait(c, at, "[app_worker] uncaught error 7 in a timer");
	cluster_wait_saw(c, "APP#3", NEWCOMER);
	allow_more_time(4);
	cr_assert_str_eq(cluster_wait_end(c, "APP#2"), EXIT_1);
	cr_assert(clutch_now() - now >= CLUTCH_GRACEFUL_TIMEOUT - 100,
	          "the worker left after only %lld ms", (long long)(clutch_now() - now));
	cr_assert(clutch_now() - now < CLUTCH_GRACEFUL_TIMEOUT + 4000,
	          "the worker left only after %lld ms", (long long)(clutch_now() - now));
	expect_answer(client, "");
	settle(c, "AGENT#1 APP#1 APP#3");
	cr_assert_eq(cluster_count(c, 0, "will exit after"), 1);
	cluster_wait_saw_from(c, mark, "PARENT", "app-worker-died");
	cluster_wait_saw_from(
		c, mark, "AGENT#1",
		"egg-pids [APP#1] -> egg-pids [APP#1,APP#3] -> egg-pids [APP#1,APP#3]");
	cluster_wait_saw_from(c, mark, "APP#1", "");
	stop_all(c, "MASTER AGENT#1 APP#1 APP#3");
}

/* An unhandled rejection has no counterpart in C. */
Test(lifecycle, s04d_uncaught_errors_in_the_agent_are_logged)
{
	struct cluster *c = start((struct options){.workers = 1}, "AGENT#1 APP#1");
	size_t mark = cluster_mark(c);

	cluster_order(c, "AGENT#1", "uncaught 7");
	cluster_wait(c, mark, "[agent_worker] uncaught error 7 in a listener");
	cluster_order(c, "AGENT#1", "timer");
	cluster_wait(c, mark, "[agent_worker] uncaught error 7 in a timer");
	cluster_order(c, "AGENT#1", "watcher");
	cluster_wait(c, mark, "[agent_worker] uncaught error 7 in a watcher");
	cluster_order(c, "AGENT#1", "graceful"); /* in other roles: nothing */
	settle(c, "AGENT#1 APP#1");
	settle(c, "AGENT#1 APP#1");
	cluster_wait_saw_from(c, mark, "PARENT", "");
	cluster_wait_saw_from(c, mark, "AGENT#1", "");
	cluster_wait_saw_from(c, mark, "APP#1", "");
	cr_assert_eq(cluster_count(c, mark, "uncaught error"), 3);
	cr_assert_eq(cluster_count(c, mark, "disconnect"), 0);
	stop_all(c, "MASTER AGENT#1 APP#1");
}

static int
serve_and_fail(struct messenger *app, int descriptor, void *arg)
{
	serve(app, descriptor, arg);
	return 5;
}

static int
fail_to_serve(struct messenger *app, int descriptor, void *arg)
{
	(void)app, (void)descriptor, (void)arg;
	return 5;
}

/* A connection that the process accepted but does not watch does not delay the exit. */
Test(lifecycle, a_connection_callback_that_fails)
{
	struct cluster *c = start((struct options){.connection = fail_to_serve}, "AGENT#1 APP#1");
	size_t mark = cluster_mark(c);

	expect_answer(cluster_connect(c), "");
	cluster_wait(c, mark, "[app_worker] uncaught error 5 in a watcher");
	cr_assert_str_eq(cluster_wait_end(c, "APP#1"), EXIT_1);
	cluster_wait_saw(c, "APP#2", NEWCOMER);
	stop_all(c, "MASTER AGENT#1 APP#2");
}

/* The process waits for a connection that the callback watched before it failed. */
Test(lifecycle, a_connection_callback_that_fails_after_it_watches)
{
	struct cluster *c =
		start((struct options){.app = obey_and_serve, .connection = serve_and_fail},
	              "AGENT#1 APP#1");
	int client = cluster_connect(c);

	cr_assert_eq(write(client, "h", 1), 1);
	cluster_wait(c, 0, ":APP#1 request h");
	cluster_wait_saw(c, "APP#2", NEWCOMER);
	expect_open(client);
	cr_assert_eq(write(client, "g", 1), 1);
	expect_answer(client, "answer");
	cr_assert_str_eq(cluster_wait_end(c, "APP#1"), EXIT_1);
	stop_all(c, "MASTER AGENT#1 APP#2");
}

/* A connection also ends when its client leaves. */
Test(lifecycle, a_graceful_exit_ends_when_its_client_leaves)
{
	struct cluster *c = start((struct options){.app = obey_and_serve, .connection = serve},
	                          "AGENT#1 APP#1");
	int client = request_of(c, "APP#1", "h");

	cluster_order(c, "APP#1", "graceful");
	cluster_wait_saw(c, "APP#2", NEWCOMER);
	settle(c, "AGENT#1 APP#2");
	cr_assert_eq(cluster_count(c, 0, "died"), 0);
	close(client);
	cr_assert_str_eq(cluster_wait_end(c, "APP#1"), EXIT_1);
	stop_all(c, "MASTER AGENT#1 APP#2");
}

/* Two MB that the worker has sent are on their way when the worker fails. */
Test(lifecycle, what_a_graceful_worker_has_sent_arrives)
{
	struct cluster *c = start((struct options){.workers = 1}, "AGENT#1 APP#1");

	cluster_order(c, "APP#1", "flood 7");
	cluster_wait(c, 0, "[app_worker] uncaught error 7 in a listener");
	cluster_wait(c, 0, ":AGENT#1 flood complete");
	cr_assert_str_eq(cluster_wait_end(c, "APP#1"), EXIT_1);
	cr_assert_eq(cluster_count(c, 0, "cannot send"), 0);
	cr_assert_eq(cluster_count(c, 0, "out of order"), 0);
	cluster_wait_saw(c, "APP#2", NEWCOMER);
	stop_all(c, "MASTER AGENT#1 APP#2");
}

static int
block_again(struct messenger *app, void *arg)
{
	(void)arg;
	if (blocked > 0)
		block(app);
	return 0;
}

static int
obey_and_block_again(struct messenger *app, void *arg)
{
	messenger_before_close(app, block_again, NULL);
	return obey(app, arg);
}

/* Let the app that blocks go on. */
static void
unblock(int time)
{
	close(open(fifo[time], O_WRONLY));
}

/* A worker blocks, is sent `count` messages of 4 KiB, and then fails. It reads
 * nothing before the master knows that it leaves. */
static void
expect_delivered(size_t count)
{
	struct cluster *c;
	char data[FLOOD_SIZE + 1];
	size_t i, at;

	for (i = 0; i < 2; i++) {
		snprintf(fifo[i], sizeof fifo[i], "%s/fifo%zu", test_folder(), i);
		cr_assert_eq(mkfifo(fifo[i], 0600), 0);
	}
	memset(data, ' ', FLOOD_SIZE);
	data[FLOOD_SIZE] = '\0';
	c = start((struct options){.app = obey_and_block_again, .workers = 2},
	          "AGENT#1 APP#1 APP#2");
	cluster_order(c, "APP#2", "block 7");
	at = cluster_wait(c, 0, ":APP#2 blocks");
	for (i = 0; i < count; i++)
		cr_assert_eq(
			messenger_send_to(c->parent, cluster_pid(c, "APP#2"), "test-news", data),
			0);
	settle(c, "AGENT#1 APP#1"); /* so the master has all messages */
	unblock(0);
	cluster_wait(c, at, ":APP#2 blocks");
	cluster_wait_saw(c, "APP#3", NEWCOMER);
	unblock(1);
	cr_assert_str_eq(cluster_wait_end(c, "APP#2"), EXIT_1);
	i = cluster_count(c, 0, ":APP#2 saw test-news");
	cr_assert_eq(i, count, "%zu of %zu messages arrived", i, count);
	stop_all(c, "MASTER AGENT#1 APP#1 APP#3");
}

Test(lifecycle, what_a_graceful_worker_was_sent_arrives)
{
	expect_delivered(3);
}

/* More messages than the worker reads at once. */
Test(lifecycle, much_that_a_graceful_worker_was_sent_arrives)
{
	expect_delivered(200);
}

/* More messages than the worker's socket holds: the rest waits in the master's queue. */
Test(lifecycle, what_waits_in_the_master_for_a_graceful_worker_arrives)
{
	expect_delivered(380);
}

/* ---- SIGTERM to a worker ------------------------------------------------------------ */

/* The worker's channel stays open until the worker ends: the test can still order an
 * answer, and the master forks no replacement before the end. */
Test(lifecycle, s03c_sigterm_lets_connections_finish)
{
	struct cluster *c = start((struct options){.app = obey_and_serve, .connection = serve},
	                          "AGENT#1 APP#1");
	int alive = request_of(c, "APP#1", "i"), client = request_of(c, "APP#1", "h");
	size_t mark = cluster_mark(c);

	cluster_signal(c, "APP#1", SIGTERM);
	expect_answer(alive, "");
	cluster_wait(c, mark, ":APP#1 leaves, closing 1");
	settle(c, "AGENT#1 APP#1");
	expect_open(client);
	cr_assert_eq(cluster_count(c, 0, "app_worker#2"), 0);
	cluster_order(c, "APP#1", "answer");
	expect_answer(client, "answer");
	cr_assert_str_eq(cluster_wait_end(c, "APP#1"), EXIT_0);
	cluster_wait_saw(c, "APP#2", NEWCOMER);
	settle(c, "AGENT#1 APP#2");
	cluster_wait_saw_from(c, mark, "PARENT", "app-worker-died");
	stop_all(c, "MASTER AGENT#1 APP#2");
}

/* An error while the worker leaves does not change its exit status 0. */
Test(lifecycle, s03c_an_uncaught_error_after_sigterm_changes_nothing)
{
	struct cluster *c = start((struct options){.app = obey_and_serve, .connection = serve},
	                          "AGENT#1 APP#1");
	int client = request_of(c, "APP#1", "h");
	size_t mark = cluster_mark(c);

	cluster_signal(c, "APP#1", SIGTERM);
	cluster_wait(c, mark, ":APP#1 leaves, closing 1");
	cluster_order(c, "APP#1", "uncaught 7");
	cluster_wait(c, mark, "[app_worker] uncaught error 7 in a listener");
	settle(c, "AGENT#1 APP#1");
	cluster_order(c, "APP#1", "answer");
	expect_answer(client, "answer");
	cr_assert_str_eq(cluster_wait_end(c, "APP#1"), EXIT_0);
	cr_assert_eq(cluster_count(c, 0, "leaves"), 1);
	cluster_stop(c);
}

/* A connection that never ends delays the exit by the close timeout, and no longer. */
Test(lifecycle, s03c_sigterm_waits_no_longer_than_the_close_timeout)
{
	struct cluster *c = start((struct options){.app = obey_and_serve,
	                                           .connection = serve,
	                                           .app_close_timeout = 1000},
	                          "AGENT#1 APP#1");
	int client = request_of(c, "APP#1", "h");
	int64_t now = clutch_now();

	cluster_signal(c, "APP#1", SIGTERM);
	expect_answer(client, "");
	cr_assert_str_eq(cluster_wait_end(c, "APP#1"), EXIT_0);
	cr_assert(clutch_now() - now >= 900, "the worker left after only %lld ms",
	          (long long)(clutch_now() - now));
	cluster_wait_saw(c, "APP#2", NEWCOMER);
	cluster_stop(c);
}

/* ---- 05: the death of the agent ------------------------------------------------------- */

/* D8: the new agent hears the pids of the apps before it hears that all is ready. */
static void
expect_new_agent(int number, const char *end, int workers, const char *pids, const char *alive)
{
	const char *apps = workers == 2 ? " APP#1 APP#2" : " APP#1";
	struct cluster *c;
	char everyone[64], saw[64], who[16];
	int64_t now;
	size_t mark;
	int i;

	snprintf(everyone, sizeof everyone, "AGENT#1%s", apps);
	c = start((struct options){.workers = workers}, everyone);
	mark = cluster_mark(c);
	now = clutch_now();
	cluster_signal(c, "AGENT#1", number);
	cr_assert_str_eq(cluster_wait_end(c, "AGENT#1"), end);
	cluster_wait(c, mark, "[master] agent_worker#2:AGENT#2 start");
	cr_assert(clutch_now() - now >= 950, "the new agent was forked before a second was over");
	cluster_wait(c, mark, "agent_worker#2:AGENT#2 started");
	snprintf(everyone, sizeof everyone, "AGENT#2%s", apps);
	settle(c, everyone);
	cluster_wait_saw_from(c, mark, "PARENT", "agent-worker-died");
	snprintf(saw, sizeof saw, "egg-pids %s -> egg-ready <options>", pids);
	cluster_wait_saw(c, "AGENT#2", saw);
	cluster_wait_saw_from(c, mark, "AGENT#1", "");
	for (i = 1; i <= workers; i++) {
		snprintf(who, sizeof who, "APP#%d", i);
		cluster_wait_saw_from(c, mark, who,
		                      "egg-pids [] -> egg-pids [AGENT#2] -> agent-start");
	}
	stop_all(c, alive);
}

Test(lifecycle, s05a_kill_9_of_the_agent)
{
	expect_new_agent(SIGKILL, KILLED, 2, "[APP#1,APP#2]", "MASTER APP#1 APP#2 AGENT#2");
}

Test(lifecycle, s05b_sigterm_to_the_agent_from_outside)
{
	expect_new_agent(SIGTERM, EXIT_0, 1, "[APP#1]", "MASTER APP#1 AGENT#2");
}

/* Only the first agent starts. */
static int
start_once(struct messenger *agent, void *arg)
{
	int file = open(first_run, O_CREAT | O_EXCL | O_WRONLY, 0600);

	if (file == -1)
		exit(1);
	close(file);
	return obey(agent, arg);
}

/* The parent and the app hear of each death of an agent, and of nothing else. */
static void
expect_deaths(struct cluster *c, size_t mark, size_t deaths)
{
	char parent[2048] = "", app[2048] = "";
	size_t i, used[2] = {0, 0};

	for (i = 0; i < deaths; i++) {
		used[0] += (size_t)snprintf(parent + used[0], sizeof parent - used[0],
		                            "%sagent-worker-died", i > 0 ? " -> " : "");
		used[1] += (size_t)snprintf(app + used[1], sizeof app - used[1], "%segg-pids []",
		                            i > 0 ? " -> " : "");
	}
	cluster_wait_saw_from(c, mark, "PARENT", parent);
	cluster_wait_saw_from(c, mark, "APP#1", app);
}

/* A new agent each second, until the third health check has failed. */
Test(lifecycle, s05c_an_agent_that_cannot_be_restarted, .timeout = 90)
{
	struct cluster *c;
	int64_t now;
	size_t mark, deaths;

	snprintf(first_run, sizeof first_run, "%s/agent", test_folder());
	c = start((struct options){.agent = start_once}, "AGENT#1 APP#1");
	now = clutch_now();
	mark = cluster_mark(c);
	cluster_signal(c, "AGENT#1", SIGKILL);
	allow_more_time(4);
	cluster_wait(c, mark,
	             "[master] 0 agent and 1 worker(s) alive, exit to avoid unknown state");
	cr_assert(clutch_now() - now >= 28000 && clutch_now() - now < 34000,
	          "the master gave up after %lld ms, not after 30 s",
	          (long long)(clutch_now() - now));
	cluster_wait(c, mark, "[master] exit with code:1");
	cluster_wait(c, mark, ":APP#1 exits 0");
	deaths = cluster_count(c, mark, "died (");
	cr_assert(deaths >= 15 && deaths <= 30, "the agent died %zu times in half a minute",
	          deaths);
	cr_assert_eq(cluster_count(c, mark, "died (" EXIT_1 ")"), deaths - 1);
	expect_deaths(c, mark, deaths);
	cluster_ended(c, 1);
}

/* ---- 06, 07: failed starts --------------------------------------------------------------- */

enum way { EXIT, THROW, REJECT, TIMER };

/* options.arg */
struct plan {
	enum way way;
	int code; /* of EXIT */
};

static int
reject(struct messenger *messenger, void *arg)
{
	(void)arg;
	return messenger_ready(messenger, 1);
}

/* Fail to start, in the way that the plan says. */
static int
start_badly(struct messenger *messenger, void *arg)
{
	const struct plan *plan = arg;

	if (obey(messenger, arg) != 0)
		return -1;
	switch (plan->way) {
	case EXIT:
		exit(plan->code);
	case THROW:
		return 1;
	case REJECT:
		messenger_ready_later(messenger);
		return messenger_set_timeout(messenger, 1, reject, NULL) == -1;
	case TIMER:
		messenger_ready_later(messenger);
		return messenger_set_timeout(messenger, 1, return_seven, NULL) == -1;
	}
	return 0;
}

/* The agent hears of up to three ends of channels (D9), and of one exit. */
#define NO_PIDS "egg-pids [] -> egg-pids []"
#define NO_PIDS_OR_MORE                                                                            \
	NO_PIDS " || " NO_PIDS " -> egg-pids [] || " NO_PIDS " -> egg-pids [] -> egg-pids []"

/* No process has heard of a start, and none is left. The caller has checked the cause. */
static void
expect_failure(struct cluster *c)
{
	cluster_wait_death(c, "MASTER");
	cr_assert_eq(cluster_count(c, 0, "egg-ready"), 0);
	cr_assert_eq(cluster_count(c, 0, "[master] egg started"), 0);
	cr_assert_eq(cluster_count(c, 0, "app_worker#4"), 0);
	cr_assert_eq(cluster_count(c, 0, "agent_worker#2"), 0);
	cluster_wait_saw(c, "PARENT", "");
	cluster_ended(c, 1);
}

/* Each of three workers fails to start. The first death ends the cluster. The other workers
 * exit with their own code, whether or not they hear of that death. */
static void
expect_workers_fail(struct plan plan, int code)
{
	struct cluster *c = cluster_start(
		&(struct options){.agent = obey, .app = start_badly, .workers = 3, .arg = &plan});
	size_t at;
	int i;

	at = cluster_wait(c, 0, " died (code: %d, signal: null)", code);
	at = cluster_wait(c, at, " start fail, exiting with code:1");
	cluster_wait(c, at, ":AGENT#1 exits 110");
	cluster_wait(c, at, "[agent_worker] receive disconnect event, exiting with code:110");
	cluster_wait(c, at, "[master] exit with code:1");
	for (i = 1; i <= 3; i++)
		cluster_wait(c, 0, ":APP#%d exits %d", i, code);
	cr_assert_eq(cluster_count(c, 0, " died ("), 1);
	cr_assert_eq(cluster_count(c, 0, "will exit after"), 0,
	             "a worker left gracefully, and not at once");
	cluster_wait_saw(c, "AGENT#1", NO_PIDS_OR_MORE);
	expect_failure(c);
}

Test(lifecycle, s06a_workers_exit_1_while_loading)
{
	expect_workers_fail((struct plan){EXIT, 1}, 1);
}

Test(lifecycle, s06b_workers_exit_0_while_loading)
{
	expect_workers_fail((struct plan){EXIT, 0}, 0);
}

Test(lifecycle, s06c_workers_fail_while_loading)
{
	expect_workers_fail((struct plan){THROW, 0}, 1);
}

/* D19: egg's worker exits 0 here. */
Test(lifecycle, s06d_workers_whose_start_is_rejected)
{
	expect_workers_fail((struct plan){REJECT, 0}, 1);
}

Test(lifecycle, s06e_workers_with_an_uncaught_error_before_they_are_ready)
{
	expect_workers_fail((struct plan){TIMER, 0}, 1);
}

Test(lifecycle, s06f_a_worker_that_is_never_ready)
{
	int64_t now = clutch_now();
	struct cluster *c = cluster_start(
		&(struct options){.agent = obey, .app = load, .worker_start_timeout = 1500});
	size_t at;

	cr_assert_str_eq(cluster_wait_end(c, "APP#1"), EXIT_0 ", start timeout");
	cr_assert(clutch_now() - now >= 1500);
	at = cluster_wait(c, 0, "[master] app_worker#1:APP#1 start timeout (app 0)");
	at = cluster_wait(c, at, ":APP#1 exits 0");
	cluster_wait(c, at, "app_worker#1:APP#1 start fail, exiting with code:1");
	cluster_wait(c, at, ":AGENT#1 exits 110");
	cluster_wait_saw(c, "AGENT#1", NO_PIDS);
	cluster_wait_saw(c, "APP#1", "egg-pids [AGENT#1]"); /* D7 */
	expect_failure(c);
}

/* D19: the master binds the port before the first fork. */
Test(lifecycle, s06g_the_port_is_in_use)
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	socklen_t length = sizeof address;
	int descriptor = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct cluster *c;

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	cr_assert(bind(descriptor, (struct sockaddr *)&address, sizeof address) == 0);
	cr_assert(listen(descriptor, 1) == 0);
	cr_assert(getsockname(descriptor, (struct sockaddr *)&address, &length) == 0);
	c = cluster_start(&(struct options){.agent = obey,
	                                    .app = obey,
	                                    .connection = accept_and_close,
	                                    .workers = 2,
	                                    .port = ntohs(address.sin_port)});
	cluster_wait(c, 0, "[master] 127.0.0.1 port %d is in use", ntohs(address.sin_port));
	cr_assert_eq(cluster_count(c, 0, "worker#"), 0);
	expect_failure(c);
	close(descriptor);
}

static void
expect_agent_fails(struct plan plan, const char *end)
{
	struct cluster *c = cluster_start(
		&(struct options){.agent = start_badly, .app = obey, .workers = 2, .arg = &plan});

	cr_assert_str_eq(cluster_wait_end(c, "AGENT#1"), end);
	cluster_wait(c, 0, "agent_worker#1:AGENT#1 start fail, exiting with code:1");
	cluster_wait(c, 0, "[master] exit with code:1");
	cr_assert_eq(cluster_count(c, 0, "app_worker"), 0);
	cluster_wait_saw(c, "AGENT#1", "");
	expect_failure(c);
}

Test(lifecycle, s07a_the_agent_exits_1_while_loading)
{
	expect_agent_fails((struct plan){EXIT, 1}, EXIT_1);
}

Test(lifecycle, s07b_the_agent_exits_0_while_loading)
{
	expect_agent_fails((struct plan){EXIT, 0}, EXIT_0);
}

Test(lifecycle, s07c_the_agent_fails_while_loading)
{
	expect_agent_fails((struct plan){THROW, 0}, EXIT_1);
}

/* D19: egg's agent exits 0 here. */
Test(lifecycle, s07d_the_agent_whose_start_is_rejected)
{
	expect_agent_fails((struct plan){REJECT, 0}, EXIT_1);
}

/* Egg's apps hear nothing while they load; clutch's apps do. */
Test(lifecycle, s07e_the_agent_is_killed_before_the_apps_are_ready)
{
	struct cluster *c =
		cluster_start(&(struct options){.agent = obey, .app = load, .workers = 2});

	cluster_wait_saw(c, "APP#1", "egg-pids [AGENT#1]"); /* D7 */
	cluster_wait_saw(c, "APP#2", "egg-pids [AGENT#1]");
	cluster_signal(c, "AGENT#1", SIGKILL);
	cr_assert_str_eq(cluster_wait_end(c, "AGENT#1"), KILLED);
	cluster_wait(c, 0, "agent_worker#1:AGENT#1 start fail, exiting with code:1");
	cluster_wait(c, 0, ":APP#1 exits 1");
	cluster_wait(c, 0, ":APP#2 exits 1");
	cluster_wait_saw(c, "AGENT#1", "");
	cluster_wait_saw(c, "APP#1", "egg-pids [AGENT#1] -> egg-pids []");
	cluster_wait_saw(c, "APP#2", "egg-pids [AGENT#1] -> egg-pids []");
	expect_failure(c);
}

/* D25: egg's master waits for its agent without limit. */
Test(lifecycle, s07f_an_agent_that_is_never_ready)
{
	int64_t now = clutch_now();
	struct cluster *c = cluster_start(&(struct options){
		.agent = load, .app = obey, .workers = 2, .worker_start_timeout = 1500});

	cr_assert_str_eq(cluster_wait_end(c, "AGENT#1"), EXIT_0 ", start timeout");
	cr_assert(clutch_now() - now >= 1500);
	cluster_wait(c, 0, "[master] agent_worker#1:AGENT#1 start timeout");
	cluster_wait(c, 0, ":AGENT#1 exits 0");
	cluster_wait(c, 0, "agent_worker#1:AGENT#1 start fail, exiting with code:1");
	cr_assert_eq(cluster_count(c, 0, "app_worker"), 0);
	cluster_wait_saw(c, "AGENT#1", "");
	expect_failure(c);
}
