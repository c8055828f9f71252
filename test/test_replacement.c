/*
 * A process is replaced or ends while something else happens: a worker that a reload
 * replaces, a child that fails meanwhile, and the processes that an application leaves
 * behind.
 *
 * The test and all processes of its cluster share the memory `shared`; a process that waits
 * here waits for a value in it. A worker that is told to leave says "leaves" in its callback
 * of messenger_before_close. The program is linked with --wrap for fork and poll.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "egg-schedule/egg_schedule.h"
#include "egg-scripts/egg_scripts.h"
#include "harness.h"

#include <criterion/criterion.h>

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

TestSuite(replacement, .timeout = 120);

#define LONG 60000 /* a close timeout that never expires in a test */

enum { SLOTS = 2, NUMBERS = 1 << 17 };

struct shared {
	volatile bool go;   /* a worker that leaves, or a job, may end */
	volatile bool load; /* a worker that loads may be ready */
	volatile bool stop; /* the agent sends no more */
	volatile int sent;  /* the last number; the first one is 1 */
	volatile int heard; /* last words */
	volatile int gaps;  /* a worker missed a broadcast between two that it heard */
	volatile pid_t job; /* a process that an application has forked */
	volatile bool job_told, job_finished;
	volatile int forks_to_fail;
	volatile pid_t hold; /* the next poll of this process waits for a death; 0: no process */
	volatile bool held;  /* the process waits there */
	unsigned char is_sent[NUMBERS], is_heard[NUMBERS]; /* of send_random */
	unsigned char all_heard[SLOTS][NUMBERS];           /* of broadcasts */
};

static struct shared *shared;

static void
share(void)
{
	shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
	              0);
	cr_assert(shared != MAP_FAILED);
}

/* ---- fork, which may fail, or begin a session -------------------------------------- */

static pid_t test_pid;    /* in this process fork does not fail */
static bool fork_fails;   /* in the cluster's processes; the first time also sends SIGTERM */
static bool fork_session; /* a child is the leader of a session of its own */

pid_t __real_fork(void);
pid_t __wrap_fork(void);

/* Return when the child's session exists: a setpgid(2) of the parent before would prevent it. */
static pid_t
fork_leader(void)
{
	int ends[2];
	char byte;
	pid_t pid;

	if (pipe(ends) == -1)
		return -1;
	pid = __real_fork();
	if (pid == 0) {
		fork_session = false;
		setsid();
	}
	close(ends[1]);
	while (pid > 0 && read(ends[0], &byte, 1) == -1 && errno == EINTR)
		;
	close(ends[0]);
	return pid;
}

pid_t
__wrap_fork(void)
{
	static bool raised;

	if (shared != NULL && shared->forks_to_fail > 0) {
		shared->forks_to_fail--;
		errno = EAGAIN;
		return -1;
	}
	if (!fork_fails || getpid() == test_pid)
		return fork_session ? fork_leader() : __real_fork();
	if (!raised)
		raise(SIGTERM);
	raised = true;
	errno = EAGAIN;
	return -1;
}

int __real_poll(struct pollfd *set, nfds_t count, int timeout);
int __wrap_poll(struct pollfd *set, nfds_t count, int timeout);

/* A child ends while the master sleeps: poll reports the signal, and not what the child has
 * said before. */
int
__wrap_poll(struct pollfd *set, nfds_t count, int timeout)
{
	siginfo_t info;

	if (shared == NULL || shared->hold != getpid() || count == 1) /* the log */
		return __real_poll(set, count, timeout);
	shared->hold = 0;
	shared->held = true;
	while (waitid(P_ALL, 0, &info, WEXITED | WNOWAIT) == -1 && errno == EINTR)
		;
	errno = EINTR;
	return -1;
}

/* ---- processes ------------------------------------------------------------------------ */

static int
plain(struct messenger *messenger, void *arg)
{
	(void)arg;
	return observe(messenger);
}

static int
say_leaves(struct messenger *app, void *arg)
{
	(void)arg;
	report(app, "leaves");
	return 0;
}

/* A worker that says when it is told to leave. */
static int
polite(struct messenger *app, void *arg)
{
	(void)arg;
	return messenger_before_close(app, say_leaves, NULL) == 0 ? observe(app) : -1;
}

/* The worker leaves when the test lets it. */
static int
linger(struct messenger *app, void *arg)
{
	(void)arg;
	report(app, "leaves");
	while (!shared->go)
		messenger_step(app, 5);
	return 0;
}

static int
lingers(struct messenger *app, void *arg)
{
	(void)arg;
	return messenger_before_close(app, linger, NULL) == 0 ? observe(app) : -1;
}

static int
on_exit_order(struct messenger *app, const struct message *message, void *arg)
{
	(void)app, (void)message, (void)arg;
	exit(3);
}

/* ---- the test's side -------------------------------------------------------------------- */

static void
send_to(struct cluster *c, pid_t pid, const char *action, const char *data)
{
	cr_assert_eq(messenger_send_to(c->parent, pid, action, data), 0);
	cluster_turn(c);
}

/* Wait until the process has handled every earlier signal and message. The fence asks twice,
 * because a process may handle a signal and a message of the same turn in either order. */
static void
fence(struct cluster *c, const char *who)
{
	static int number;
	char data[16];
	int i;

	for (i = 0; i < 2; i++) {
		snprintf(data, sizeof data, "%d", ++number);
		send_to(c, cluster_pid(c, who), "test-fence", data);
		cluster_wait(c, 0, "%s saw test-fence %d ", who, number);
	}
}

/* By the time the answer comes, the master has finished all earlier turns. */
static long long
undeliverable(struct cluster *c)
{
	cluster_ask_status(c);
	return cluster_figure(c, NULL, "undeliverable");
}

/* How many app workers live? */
static size_t
count_apps(struct cluster *c)
{
	size_t i, count, apps = 0;
	pid_t pids[128];

	count = cluster_processes(c, pids, 128);
	for (i = 0; i < count; i++)
		apps += strncmp(cluster_name(c, pids[i]), "APP#", 4) == 0;
	return apps;
}

/* ---- jobs: processes that an application starts, in its own process group ------------------- */

#define JOB_TIME 3000 /* a close timeout within which the test is done with a job */

static void
do_job(const struct messenger *boss, const sigset_t *set, bool obeys)
{
	int number;

	close(boss->channel.descriptor);
	sigwait(set, &number);
	shared->job_told = true;
	while (!obeys || !shared->go)
		poll(NULL, 0, 1);
	shared->job_finished = true;
	_exit(0);
}

static int
start_job(struct messenger *boss, bool obeys)
{
	sigset_t set;
	pid_t pid;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigprocmask(SIG_BLOCK, &set, NULL);
	pid = fork();
	if (pid == 0)
		do_job(boss, &set, obeys);
	sigprocmask(SIG_UNBLOCK, &set, NULL);
	shared->job = pid;
	report(boss, "has a job");
	return pid != -1 ? 0 : -1;
}

/* The first worker and the first agent fork a job. */
static int
has_a_job(struct messenger *boss, void *arg)
{
	return messenger_on(boss, "test-exit", on_exit_order, NULL) == 0 && observe(boss) == 0 &&
	                       (shared->job != 0 || start_job(boss, arg == NULL) == 0)
	               ? 0
	               : -1;
}

/* Reap orphans, as an init process does. */
static bool
job_is_told(struct cluster *c, void *arg)
{
	(void)c, (void)arg;
	return shared->job_told || waitpid(shared->job, NULL, WNOHANG) == shared->job ||
	       !process_is_alive(shared->job);
}

static bool
job_has_ended(struct cluster *c, void *arg)
{
	(void)c, (void)arg;
	waitpid(shared->job, NULL, WNOHANG);
	return !process_is_alive(shared->job);
}

static void
wait_job_told(struct cluster *c)
{
	cluster_until(c, job_is_told, NULL, "the job to be told or killed");
	cr_assert(shared->job_told, "the job was killed; nobody had told it to end");
}

static void
wait_job_finished(struct cluster *c)
{
	shared->go = true;
	cluster_until(c, job_has_ended, NULL, "the job's end");
	cr_assert(shared->job_finished, "the job was killed before its time was over");
}

Test(replacement, a_job_of_an_app_that_has_died_is_told_before_it_is_killed)
{
	struct cluster *c;

	share();
	c = cluster_start(&(struct options){
		.agent = plain, .app = has_a_job, .app_close_timeout = JOB_TIME * time_scale()});
	cluster_ready(c);
	cluster_wait(c, 0, "APP#1 has a job");
	send_to(c, cluster_pid(c, "APP#1"), "test-exit", NULL);
	wait_job_told(c);
	cluster_pid(c, "APP#2"); /* the replacement does not wait for the job */
	wait_job_finished(c);
	cluster_stop(c);
}

Test(replacement, a_job_of_an_app_that_is_replaced_has_until_the_deadline)
{
	struct cluster *c;

	share();
	c = cluster_start(&(struct options){
		.agent = plain, .app = has_a_job, .app_close_timeout = JOB_TIME * time_scale()});
	cluster_ready(c);
	cluster_wait(c, 0, "APP#1 has a job");
	cluster_signal(c, "MASTER", SIGUSR2);
	cluster_wait_death(c, "APP#1");
	wait_job_told(c);
	cluster_ask_status(c); /* the master has counted its dead */
	wait_job_finished(c);
	cluster_stop(c);
}

/* A signal to a group must not reach a stranger: the group's number is taken as long as
 * its leader, though dead, has not been reaped. */
Test(replacement, a_dead_app_keeps_its_number_while_its_job_lives)
{
	struct cluster *c;
	pid_t app;

	share();
	c = cluster_start(&(struct options){
		.agent = plain, .app = has_a_job, .app_close_timeout = JOB_TIME * time_scale()});
	cluster_ready(c);
	cluster_wait(c, 0, "APP#1 has a job");
	app = cluster_pid(c, "APP#1");
	send_to(c, app, "test-exit", NULL);
	wait_job_told(c);
	cluster_wait_death(c, "APP#1");
	cluster_ask_status(c);
	cr_assert_eq(kill(app, 0), 0, "the dead worker's pid was given back: %s", strerror(errno));
	wait_job_finished(c);
	cluster_stop(c);
}

Test(replacement, a_job_that_does_not_obey_is_killed_at_the_deadline)
{
	struct cluster *c;

	share();
	c = cluster_start(&(struct options){
		.agent = plain, .app = has_a_job, .arg = shared, .app_close_timeout = 1500});
	cluster_ready(c);
	cluster_wait(c, 0, "APP#1 has a job");
	send_to(c, cluster_pid(c, "APP#1"), "test-exit", NULL);
	wait_job_told(c);
	cluster_until(c, job_has_ended, NULL, "SIGKILL to the job");
	cluster_stop(c);
}

Test(replacement, a_close_waits_for_a_job_that_an_app_has_left)
{
	struct cluster *c;

	share();
	c = cluster_start(&(struct options){
		.agent = plain, .app = has_a_job, .arg = shared, .app_close_timeout = 1000});
	cluster_ready(c);
	cluster_wait(c, 0, "APP#1 has a job");
	send_to(c, cluster_pid(c, "APP#1"), "test-exit", NULL);
	wait_job_told(c);
	cluster_stop(c); /* this checks that no process is left */
}

Test(replacement, a_job_of_an_agent_that_dies_while_closing_is_told_before_it_is_killed)
{
	struct cluster *c;

	share();
	c = cluster_start(&(struct options){.agent = has_a_job,
	                                    .app = polite,
	                                    .app_close_timeout = JOB_TIME * time_scale(),
	                                    .agent_close_timeout = JOB_TIME * time_scale()});
	cluster_ready(c);
	cluster_wait(c, 0, "AGENT#1 has a job");
	cluster_signal(c, "APP#1", SIGSTOP); /* the cluster goes on closing */
	cluster_signal(c, "MASTER", SIGTERM);
	cluster_wait(c, 0, "[master] send kill SIGTERM to app workers");
	send_to(c, cluster_pid(c, "AGENT#1"), "test-exit", NULL);
	wait_job_told(c);
	wait_job_finished(c);
	cluster_signal(c, "APP#1", SIGCONT);
	cluster_ended(c, 0);
}

/* ---- leaving ----------------------------------------------------------------------------- */

/* Send one message to a random worker, and one to all workers, each millisecond. */
static int
send_numbers(struct messenger *agent, void *arg)
{
	int number = shared->sent + 1;
	char data[16];

	(void)arg;
	if (shared->stop || number == NUMBERS) {
		messenger_send_to_app(agent, "test-last", NULL);
		return 0;
	}
	snprintf(data, sizeof data, "%d", number);
	shared->is_sent[number] = messenger_send_random(agent, "test-one", data) == 0;
	if (messenger_send_to_app(agent, "test-all", data) == 0)
		shared->sent = number;
	return 0;
}

static int
start_numbers(struct messenger *agent, const struct message *message, void *arg)
{
	(void)message, (void)arg;
	return messenger_set_interval(agent, 1, send_numbers, NULL) > 0 ? 0 : -1;
}

static int
sends_numbers(struct messenger *agent, void *arg)
{
	(void)arg;
	return messenger_once(agent, "egg-ready", start_numbers, NULL);
}

static int
hear_one(struct messenger *app, const struct message *message, void *arg)
{
	(void)app, (void)arg;
	shared->is_heard[atoi(message->data)]++;
	return 0;
}

static int
hear_all(struct messenger *app, const struct message *message, void *arg)
{
	int *last = arg, number = atoi(message->data);

	if (*last != 0 && number != *last + 1)
		shared->gaps++;
	*last = number;
	shared->all_heard[messenger_slot(app)][number] = 1;
	return 0;
}

static int
hear_last(struct messenger *app, const struct message *message, void *arg)
{
	(void)message, (void)arg;
	report(app, "heard the last");
	return 0;
}

static int
hears_numbers(struct messenger *app, void *arg)
{
	static int last;

	(void)arg;
	return messenger_on(app, "test-one", hear_one, NULL) == 0 &&
	                       messenger_on(app, "test-all", hear_all, &last) == 0 &&
	                       messenger_once(app, "test-last", hear_last, NULL) == 0
	               ? 0
	               : -1;
}

/* Reload `times` times, and wait for the end of the replaced workers. */
static void
reload_times(struct cluster *c, int times)
{
	char who[16];
	size_t mark;
	int i, slot;

	for (i = 0; i < times; i++) {
		mark = cluster_mark(c);
		cluster_signal(c, "MASTER", SIGUSR2);
		cluster_wait(c, mark, "[master] reload done");
		for (slot = 1; slot <= SLOTS; slot++) {
			snprintf(who, sizeof who, "APP#%d", SLOTS * i + slot);
			cluster_wait_death(c, who);
		}
	}
}

Test(replacement, nothing_that_was_sent_is_lost_while_workers_are_replaced)
{
	enum { RELOADS = 100 };
	int number, one = 0, missed = 0, twice = 0, all = 0;
	struct cluster *c;

	share();
	c = cluster_start(
		&(struct options){.agent = sends_numbers, .app = hears_numbers, .workers = SLOTS});
	cluster_ready(c);
	reload_times(c, RELOADS);
	shared->stop = true;
	cluster_wait(c, 0, "APP#%d heard the last", SLOTS * RELOADS + 1);
	cluster_wait(c, 0, "APP#%d heard the last", SLOTS * RELOADS + 2);
	for (number = 1; number <= shared->sent; number++) {
		one += shared->is_sent[number];
		missed += shared->is_sent[number] && shared->is_heard[number] == 0;
		twice += shared->is_heard[number] > 1;
		all += !shared->all_heard[0][number] || !shared->all_heard[1][number];
	}
	cr_assert_eq(missed, 0, "%d of %d messages are lost", missed, one);
	cr_assert_eq(twice, 0, "%d messages came twice", twice);
	cr_assert_eq(all, 0, "in a slot nobody has heard %d of %d broadcasts", all, shared->sent);
	cr_assert_eq(shared->gaps, 0, "broadcasts are missing in between");
	cluster_stop(c);
}

Test(replacement, the_agent_is_told_without_a_worker_before_that_one_is_told_to_leave)
{
	struct cluster *c;

	share();
	c = cluster_start(
		&(struct options){.agent = plain, .app = lingers, .app_close_timeout = LONG});
	cluster_ready(c);
	cluster_signal(c, "MASTER", SIGUSR2);
	cluster_wait(c, 0, "APP#1 leaves");
	fence(c, "AGENT#1");
	cr_assert_neq(cluster_count(c, 0, "AGENT#1 saw egg-pids [APP#2] "), 0,
	              "APP#1 is leaving, and the agent still takes it for one that listens");
	shared->go = true;
	cluster_wait_death(c, "APP#1");
	cluster_stop(c);
}

Test(replacement, a_leaving_worker_hears_what_is_sent_to_its_pid_and_no_broadcast)
{
	struct cluster *c;
	long before;
	pid_t app;

	share();
	c = cluster_start(
		&(struct options){.agent = plain, .app = lingers, .app_close_timeout = LONG});
	cluster_ready(c);
	app = cluster_pid(c, "APP#1");
	cluster_signal(c, "MASTER", SIGUSR2);
	cluster_wait(c, 0, "APP#1 leaves");
	before = undeliverable(c);
	cr_assert_eq(messenger_send_to_app(c->parent, "test-all", NULL), 0);
	fence(c, "APP#1");
	fence(c, "APP#2");
	cr_assert_eq(cluster_count(c, 0, "APP#2 saw test-all "), 1);
	cr_assert_eq(cluster_count(c, 0, "APP#1 saw test-all "), 0);
	cr_assert_eq(undeliverable(c), before, "what has reached a leaving worker is counted");
	shared->go = true;
	cluster_wait_death(c, "APP#1");
	cluster_ask_status(c); /* the master has counted its dead */
	send_to(c, app, "test-late", NULL);
	fence(c, "APP#2");
	cr_assert_eq(undeliverable(c), before + 1);
	cluster_stop(c);
}

/* A worker hears all that came before its end, though the worker has nothing else to wait for. */
static int
tell_number(struct messenger *app, const struct message *message, void *arg)
{
	(void)app, (void)arg;
	shared->is_heard[atoi(message->data)]++;
	return 0;
}

static int
tells_numbers(struct messenger *app, void *arg)
{
	(void)arg;
	return messenger_on(app, "test-one", tell_number, NULL);
}

Test(replacement, a_worker_that_leaves_reads_its_channel_to_the_end)
{
	enum { COUNT = 1000 };
	struct cluster *c;
	char data[16];
	int i, heard = 0;
	pid_t app;

	share();
	c = cluster_start(&(struct options){.agent = plain, .app = tells_numbers});
	cluster_ready(c);
	app = cluster_pid(c, "APP#1");
	kill(app, SIGSTOP); /* all messages are there before the worker goes on */
	for (i = 1; i <= COUNT; i++) {
		snprintf(data, sizeof data, "%d", i);
		cr_assert_eq(messenger_send_to(c->parent, app, "test-one", data), 0);
	}
	cluster_turn(c);
	cluster_signal(c, "MASTER", SIGUSR2);
	cluster_wait(c, 0, "app_worker#2:APP#2 started");
	cluster_ask_status(c); /* the order to leave has been given */
	cr_assert_eq(kill(app, SIGCONT), 0);
	cluster_wait_death(c, "APP#1");
	for (i = 1; i <= COUNT; i++)
		heard += shared->is_heard[i];
	cr_assert_eq(heard, COUNT);
	cluster_stop(c);
}

static int
task(struct messenger *app, struct schedule_run *run, void *arg)
{
	(void)app, (void)run, (void)arg;
	shared->sent++;
	return 0;
}

static const struct schedule jobs[] = {
	{.name = "tick", .type = "worker", .interval = "1ms", .task = task}};

static int
schedule_agent(struct messenger *agent, void *arg)
{
	(void)arg;
	return egg_schedule_agent(agent, jobs, 1);
}

static int
schedule_app(struct messenger *app, void *arg)
{
	(void)arg;
	return egg_schedule_app(app, jobs, 1);
}

Test(replacement, no_tick_of_a_schedule_fails_while_workers_are_replaced)
{
	struct cluster *c;

	share();
	egg_schedule_log(-1);
	c = cluster_start(
		&(struct options){.agent = schedule_agent, .app = schedule_app, .workers = SLOTS});
	cluster_ready(c);
	reload_times(c, 50);
	cr_assert_gt(shared->sent, 0);
	cr_assert_eq(cluster_count(c, 0, "execute failed"), 0);
	cluster_stop(c);
}

Test(replacement, the_status_shows_the_process_that_leaves)
{
	struct cluster *c;

	share();
	c = cluster_start(
		&(struct options){.agent = plain, .app = lingers, .app_close_timeout = LONG});
	cluster_ready(c);
	cluster_signal(c, "MASTER", SIGUSR2);
	cluster_wait(c, 0, "APP#1 leaves");
	cluster_ask_status(c);
	cr_assert_str_eq(cluster_status(c, "APP#2", "state"), "listening");
	cr_assert_str_eq(cluster_status(c, "APP#1", "state"), "leaving");
	cr_assert_eq(cluster_figure(c, "APP#1", "slot"), cluster_figure(c, "APP#2", "slot"));
	shared->go = true;
	cluster_wait_death(c, "APP#1");
	cluster_stop(c);
}

/* Has a reload ended, or has the time for it passed? */
struct patience {
	size_t mark;
	int64_t until;
};

static bool
is_patience_over(struct cluster *c, void *arg)
{
	const struct patience *patience = arg;

	return clutch_now() >= patience->until ||
	       cluster_count(c, patience->mark, "[master] reload done") > 0;
}

/* The master may delay or refuse further orders, or kill an old worker early: in each case
 * there are at most four processes for each slot. */
Test(replacement, workers_that_leave_slowly_do_not_pile_up)
{
	struct patience patience;
	struct cluster *c;
	int i;

	share();
	c = cluster_start(&(struct options){
		.agent = plain, .app = lingers, .workers = SLOTS, .app_close_timeout = LONG});
	cluster_ready(c);
	for (i = 0; i < 12; i++) {
		patience = (struct patience){cluster_mark(c), clutch_now() + 200L * time_scale()};
		cluster_signal(c, "MASTER", SIGUSR2);
		cluster_until(c, is_patience_over, &patience,
		              "the end of the reload, or of the time for it");
	}
	cr_assert_leq(count_apps(c), 4 * SLOTS);
	shared->go = true;
	cluster_stop(c);
}

/* Run the command reload in a process of its own. The output ends when the process does. */
static pid_t
run_reload(const char *pid_file, int *output)
{
	char option[320];
	char *argv[] = {(char[]){"hello"}, (char[]){"reload"}, option, NULL};
	int ends[2];
	pid_t pid;

	snprintf(option, sizeof option, "--pid-file=%s", pid_file);
	cr_assert_eq(pipe(ends), 0);
	pid = fork();
	if (pid == 0) {
		dup2(ends[1], 1);
		dup2(ends[1], 2);
		close(ends[0]);
		close(ends[1]);
		_exit(egg_scripts(3, argv, &(struct options){.name = "hello"}));
	}
	close(ends[1]);
	cr_assert_neq(pid, -1);
	*output = ends[0];
	return pid;
}

/* Either the command waits for the old workers, or it says that they are leaving. */
Test(replacement, the_command_reload_says_what_is_true_of_the_old_workers)
{
	char path[300], text[1024] = "";
	struct pollfd entry = {.events = POLLIN};
	struct cluster *c;
	size_t used = 0;
	int status;
	pid_t pid;
	ssize_t n;

	share();
	snprintf(path, sizeof path, "%s/pid", test_folder());
	c = cluster_start(&(struct options){.agent = plain,
	                                    .app = lingers,
	                                    .workers = SLOTS,
	                                    .app_close_timeout = LONG,
	                                    .pid_file = path});
	cluster_ready(c);
	pid = run_reload(path, &entry.fd);
	cluster_wait(c, 0, "APP#1 leaves");
	if (poll(&entry, 1, 1000 * time_scale()) == 0)
		shared->go = true; /* the command waits */
	while (used < sizeof text - 1 &&
	       (n = read(entry.fd, text + used, sizeof text - 1 - used)) > 0)
		used += (size_t)n;
	close(entry.fd);
	cr_assert_eq(waitpid(pid, &status, 0), pid);
	cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0, "%s", text);
	cr_assert(shared->go || strstr(text, "leav") != NULL || strstr(text, "old ") != NULL,
	          "the command ends while %d old workers are still there, and says only: %s", SLOTS,
	          text);
	shared->go = true;
	cluster_stop(c);
}

/* ---- the master is gone ------------------------------------------------------------------ */

static int
send_hello(struct messenger *messenger, void *arg)
{
	(void)arg;
	return messenger_role(messenger) == ROLE_AGENT
	               ? messenger_send_to_app(messenger, "test-hello", NULL)
	               : messenger_send_to_agent(messenger, "test-hello", NULL);
}

static int
take_a_while(struct messenger *messenger, void *arg)
{
	int64_t until = clutch_now() + 100;

	(void)arg;
	while (clutch_now() < until)
		messenger_step(messenger, 1);
	return 0;
}

static int
talks(struct messenger *messenger, void *arg)
{
	(void)arg;
	return messenger_before_close(messenger, take_a_while, NULL) == 0 &&
	                       messenger_set_interval(messenger, 1, send_hello, NULL) > 0
	               ? 0
	               : -1;
}

Test(replacement, a_child_says_once_that_its_master_is_gone)
{
	struct cluster *c =
		cluster_start(&(struct options){.agent = talks, .app = talks, .workers = 1});
	size_t mark;

	cluster_ready(c);
	mark = cluster_mark(c);
	cluster_signal(c, "MASTER", SIGKILL);
	cluster_wait_death(c, "APP#1");
	cluster_wait_death(c, "AGENT#1");
	cr_assert_eq(cluster_count(c, mark, "uncaught error"), 0);
	cr_assert_eq(cluster_count(c, mark, "[app_worker] ") -
	                     cluster_count(c, mark, "[app_worker] beforeExit success"),
	             1);
	cr_assert_eq(cluster_count(c, mark, "[agent_worker] ") -
	                     cluster_count(c, mark, "[agent_worker] beforeExit success"),
	             1);
	cluster_killed(c, SIGKILL);
}

/* ---- the start --------------------------------------------------------------------------- */

/* The worker loads until the test lets it go on, and does not read its channel meanwhile. */
static int
loads(struct messenger *app, void *arg)
{
	(void)arg;
	report(app, "loads");
	while (!shared->load)
		poll(NULL, 0, 1);
	return polite(app, NULL);
}

static bool
has_its_session(struct cluster *c, void *arg)
{
	(void)arg;
	return getsid(c->master) == c->master && getpgid(c->master) == c->master;
}

/* A signal to process number 0 goes to the sender's own group: so the master must have a group
 * without the test in it. */
Test(replacement, an_agent_that_dies_while_an_app_loads_costs_the_master_no_signal)
{
	struct cluster *c;

	share();
	fork_session = true;
	c = cluster_start(&(struct options){.agent = plain,
	                                    .app = loads,
	                                    .app_close_timeout = 600,
	                                    .agent_close_timeout = 200});
	fork_session = false;
	cluster_until(c, has_its_session, NULL, "the master to be in a session of its own");
	cluster_wait(c, 0, "APP#1 loads");
	cluster_signal(c, "AGENT#1", SIGKILL);
	cluster_ended(c, 1);
}

Test(replacement, a_close_while_the_agent_cannot_be_forked_comes_to_its_end)
{
	struct cluster *c;

	test_pid = getpid();
	fork_fails = true;
	c = cluster_start(&(struct options){.agent = plain, .app = plain});
	cluster_wait(c, 0, "[master] master is killed by signal SIGTERM");
	cluster_ended(c, 0);
}

static int
on_leave_order(struct messenger *app, const struct message *message, void *arg)
{
	(void)message, (void)arg;
	messenger_graceful_exit(app);
	return 0;
}

/* The worker of slot 1 loads for long; the worker of slot 0 leaves when it is told to. */
static int
one_leaves_one_loads(struct messenger *app, void *arg)
{
	if (messenger_slot(app) == 1)
		return loads(app, arg);
	return messenger_on(app, "test-leave", on_leave_order, NULL) == 0 ? lingers(app, arg) : -1;
}

Test(replacement, a_slot_counts_once_before_all_have_started)
{
	struct cluster *c;

	share();
	c = cluster_start(
		&(struct options){.agent = plain, .app = one_leaves_one_loads, .workers = 2});
	cluster_wait(c, 0, "app_worker#1:APP#1 started");
	cluster_wait(c, 0, "APP#2 loads");
	send_to(c, cluster_pid(c, "APP#1"), "test-leave", NULL);
	cluster_wait(c, 0, "app_worker#3:APP#3 started");
	cluster_ask_status(c);
	cluster_turn(c);
	cr_assert_eq(cluster_count(c, 0, " egg started"), 0, "slot 1 has never been ready");
	cr_assert_eq(cluster_count(c, 0, " saw egg-ready "), 0);
	shared->load = true;
	cluster_ready(c);
	shared->go = true;
	cr_assert_neq(cluster_count(c, 0, "app_worker#2:APP#2 started"), 0);
	cluster_stop(c);
}

/* ---- reloads --------------------------------------------------------------------------- */

static int
ready_at_last(struct messenger *app, void *arg)
{
	(void)arg;
	report(app, "is ready at last");
	return messenger_ready(app, 0);
}

/* The second worker becomes ready only after it is told to end. */
static int
second_is_late(struct messenger *app, void *arg)
{
	(void)arg;
	if (shared->sent++ > 0) {
		messenger_ready_later(app);
		if (messenger_before_close(app, ready_at_last, NULL) != 0)
			return -1;
	}
	return polite(app, NULL);
}

Test(replacement, a_worker_that_is_being_ended_replaces_nobody)
{
	struct cluster *c;

	share();
	c = cluster_start(&(struct options){.agent = plain,
	                                    .app = second_is_late,
	                                    .worker_start_timeout = 1500 * time_scale(),
	                                    .app_close_timeout = LONG});
	cluster_ready(c);
	cluster_signal(c, "MASTER", SIGUSR2);
	cluster_wait(c, 0, "APP#2 is ready at last");
	cluster_wait_death(c, "APP#2");
	cluster_ask_status(c); /* the master has counted its dead */
	cr_assert_eq(cluster_count(c, 0, "APP#1 leaves"), 0,
	             "the old worker was told to leave, and no other worker listens");
	fence(c, "APP#1");
	cr_assert_eq(cluster_count(c, 0, "APP#1 leaves"), 0,
	             "the old worker was told to leave, and no other worker listens");
	cr_assert_eq(cluster_count(c, 0, "app_worker#3:"), 0,
	             "a worker was forked although no slot is free");
	cluster_stop(c);
}

/* The second worker says that it is ready, and is dead before the master reads the message. */
static int
second_is_short_lived(struct messenger *app, void *arg)
{
	if (shared->sent++ != 1)
		return polite(app, arg);
	messenger_ready_later(app);
	shared->hold = getppid();
	messenger_send_to_agent(app, "test-turn", NULL);
	while (!shared->held)
		messenger_step(app, 5);
	messenger_ready(app, 0);
	_exit(0);
}

Test(replacement, a_worker_that_is_dead_replaces_nobody)
{
	struct cluster *c;

	share();
	c = cluster_start(&(struct options){.agent = plain, .app = second_is_short_lived});
	cluster_ready(c);
	cluster_signal(c, "MASTER", SIGUSR2);
	cluster_wait(c, 0, "app_worker#2:APP#2 died (code: 0, signal: null");
	cluster_wait(c, 0, "reload given up");
	fence(c, "APP#1");
	cr_assert_eq(cluster_count(c, 0, "APP#1 leaves"), 0,
	             "the old worker was told to leave, and no other worker listens");
	cr_assert_eq(cluster_count(c, 0, "app_worker#3:"), 0,
	             "a worker was forked although no slot is free");
	cluster_stop(c);
}

/* The third worker is ready at once, and then a fork fails. The fourth is never ready. */
static int
fourth_loads(struct messenger *app, void *arg)
{
	int number = ++shared->sent;

	if (number == 3)
		shared->forks_to_fail = 1;
	if (number == 4)
		messenger_ready_later(app);
	return polite(app, arg);
}

/* The fork that has failed was for the reload of the second slot. */
Test(replacement, a_refork_of_a_reload_that_begins_anew_is_no_second_worker)
{
	struct cluster *c;
	size_t mark;

	share();
	c = cluster_start(&(struct options){.agent = plain,
	                                    .app = fourth_loads,
	                                    .workers = 2,
	                                    .worker_start_timeout = 3000 * time_scale()});
	cluster_ready(c);
	cluster_signal(c, "MASTER", SIGUSR2);
	mark = cluster_wait(c, 0, "cannot fork app_worker");
	cluster_signal(c, "MASTER", SIGUSR2);
	mark = cluster_wait(c, mark, "reload workers... anew");
	cluster_wait(c, mark, "app_worker#4:APP#4 start timeout"); /* longer than FORK_RETRY */
	cluster_wait(c, mark, "reload given up");
	cr_assert_eq(cluster_count(c, 0, "app_worker#5:"), 0, "two workers have the same slot");
	cluster_stop(c);
}

/* Each worker but the first loads until the test lets it go on, and reports that it has sent
 * the message that it is ready. */
static int
say_waits(struct messenger *app, void *arg)
{
	(void)arg;
	report(app, "waits");
	return 0;
}

static int
others_load(struct messenger *app, void *arg)
{
	if (shared->sent++ > 0 && loads(app, arg) != 0)
		return -1;
	return messenger_set_timeout(app, 0, say_waits, NULL) > 0 ? polite(app, arg) : -1;
}

/* The reload has either forked a worker of its own, or passed over the slot. */
static bool
is_order_done(struct cluster *c, void *arg)
{
	size_t mark = *(size_t *)arg;

	return cluster_count(c, mark, "app_worker#3:") > 0 ||
	       cluster_count(c, mark, "[master] reload done") > 0;
}

/* Returns how many workers there are besides the first: 1 or 2. */
static int
reload_while_a_refork_loads(struct cluster *c)
{
	size_t mark;

	cluster_ready(c);
	cluster_signal(c, "APP#1", SIGKILL);
	cluster_wait(c, 0, "APP#2 loads");
	mark = cluster_mark(c);
	cluster_signal(c, "MASTER", SIGUSR2);
	cluster_until(c, is_order_done, &mark, "the order to be done");
	if (cluster_count(c, mark, "app_worker#3:") == 0)
		return 1;
	cluster_wait(c, 0, "APP#3 loads");
	return 2;
}

Test(replacement, a_reload_is_not_given_up_because_a_worker_of_another_died)
{
	struct cluster *c;
	size_t mark;

	share();
	c = cluster_start(&(struct options){.agent = plain, .app = others_load});
	mark = cluster_mark(c);
	reload_while_a_refork_loads(c);
	cluster_signal(c, "APP#2", SIGKILL);
	cluster_wait_death(c, "APP#2");
	cluster_ask_status(c); /* the master has counted its dead */
	cr_assert_eq(cluster_count(c, mark, "reload given up"), 0,
	             "the reload was given up because of a death that is not its worker's");
	shared->load = true;
	cluster_wait(c, mark, "[master] reload done");
	cluster_wait(c, 0, "app_worker#3:APP#3 started");
	fence(c, "APP#3");
	cr_assert_eq(cluster_count(c, 0, "APP#3 leaves"), 0);
	cr_assert_eq(count_apps(c), 1);
	cluster_stop(c);
}

Test(replacement, two_newcomers_that_are_ready_at_once_do_not_end_each_other)
{
	struct cluster *c;
	size_t newcomers;

	share();
	c = cluster_start(&(struct options){.agent = plain, .app = others_load});
	newcomers = (size_t)reload_while_a_refork_loads(c);
	cluster_signal(c, "MASTER", SIGSTOP);
	shared->load = true;
	cluster_wait(c, 0, "APP#2 waits");
	if (newcomers > 1)
		cluster_wait(c, 0, "APP#3 waits");
	cluster_signal(c, "MASTER", SIGCONT);
	cluster_wait(c, 0, "app_worker#2:APP#2 started");
	cr_assert_eq(messenger_send_to_agent(c->parent, "test-turn", NULL), 0);
	cluster_turn(c);
	cluster_wait(c, 0, "AGENT#1 saw test-turn");
	if (newcomers > 1)
		cluster_wait(c, 0, " leaves");
	cluster_ask_status(c);
	cr_assert_eq(cluster_count(c, 0, "APP#2 leaves") + cluster_count(c, 0, "APP#3 leaves"),
	             newcomers - 1);
	cr_assert_eq(messenger_send_to_app(c->parent, "test-who", NULL), 0);
	cluster_turn(c);
	cluster_wait(c, 0, " saw test-who ");
	cr_assert_eq(cluster_count(c, 0, "app_worker#%zu:", newcomers + 2), 0);
	cluster_stop(c);
}

/* The master must not wait for the next agent's answer to a question that was never asked. */
Test(replacement, a_reload_without_an_agent_does_not_slow_down_the_next_one)
{
	struct cluster *c;

	share();
	c = cluster_start(
		&(struct options){.agent = plain, .app = polite, .app_close_timeout = LONG});
	cluster_ready(c);
	cluster_signal(c, "AGENT#1", SIGKILL);
	cluster_wait_end(c, "AGENT#1");
	cluster_signal(c, "MASTER", SIGUSR2);
	cluster_wait(c, 0, "APP#1 leaves");
	cluster_wait(c, 0, "agent_worker#2:AGENT#2 started");
	cluster_signal(c, "MASTER", SIGUSR2);
	cluster_wait(c, 0, "app_worker#3:APP#3 started");
	cluster_wait(c, 0, "APP#2 leaves");
	cluster_stop(c);
}

/* ---- deadlines -------------------------------------------------------------------------- */

/* The worker closes its channel after a while, and then hangs; its own alarm does not end it. */
static int
hang(struct messenger *app, void *arg)
{
	const int *delay = arg;
	sigset_t all;

	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, NULL);
	report(app, "leaves");
	poll(NULL, 0, *delay);
	shutdown(app->channel.descriptor, SHUT_RDWR);
	report(app, "hangs");
	while (pause() == -1)
		;
	return 0;
}

static int
first_hangs(struct messenger *app, void *arg)
{
	static int at_once;

	(void)arg;
	if (shared->sent++ > 0)
		return polite(app, NULL);
	return messenger_before_close(app, hang, &at_once);
}

Test(replacement, a_worker_that_was_told_to_leave_has_no_more_time_when_its_channel_ends)
{
	struct cluster *c;
	int64_t begin;

	share();
	c = cluster_start(
		&(struct options){.agent = plain, .app = first_hangs, .app_close_timeout = 500});
	cluster_ready(c);
	begin = clutch_now();
	cluster_signal(c, "MASTER", SIGUSR2);
	cluster_wait_death(c, "APP#1");
	cr_assert_neq(cluster_count(c, 0, "APP#1 hangs"), 0);
	cr_assert_lt(clutch_now() - begin, 5000L * time_scale());
	cluster_stop(c);
}

Test(replacement, a_close_does_not_wait_longer_for_a_worker_whose_channel_has_ended)
{
	struct cluster *c;

	share();
	c = cluster_start(&(struct options){.agent = plain,
	                                    .app = first_hangs,
	                                    .app_close_timeout = 500,
	                                    .agent_close_timeout = 500});
	cluster_ready(c);
	cluster_signal(c, "MASTER", SIGUSR2);
	cluster_wait(c, 0, "APP#1 hangs");
	cluster_ask_status(c); /* the master has heard that the channel has ended */
	cluster_stop(c);
}

/* The second worker exceeds its start timeout, and closes its channel when its time to leave
 * is nearly over. */
static int
second_hangs(struct messenger *app, void *arg)
{
	static int most_of_it = 2200;

	(void)arg;
	if (shared->sent++ == 0)
		return polite(app, NULL);
	messenger_ready_later(app);
	return messenger_before_close(app, hang, &most_of_it);
}

Test(replacement, a_worker_past_its_start_timeout_has_no_more_time_when_its_channel_ends)
{
	struct cluster *c;
	int64_t begin;

	share();
	c = cluster_start(&(struct options){.agent = plain,
	                                    .app = second_hangs,
	                                    .worker_start_timeout = 1500 * time_scale(),
	                                    .app_close_timeout = 3000});
	cluster_ready(c);
	cluster_signal(c, "MASTER", SIGUSR2);
	cluster_wait(c, 0, "APP#2 leaves");
	begin = clutch_now();
	cluster_wait_death(c, "APP#2");
	cr_assert_neq(cluster_count(c, 0, "APP#2 hangs"), 0);
	cr_assert_lt(clutch_now() - begin, 4500); /* and not 2200 + 3000 */
	cluster_stop(c);
}

/* A worker that leaves gracefully, with the longest close timeout that clutch accepts. */
static int
on_graceful_order(struct messenger *app, const struct message *message, void *arg)
{
	(void)message, (void)arg;
	messenger_graceful_exit(app);
	return 0;
}

static int
leaves_gracefully(struct messenger *app, void *arg)
{
	return messenger_on(app, "test-leave", on_graceful_order, NULL) == 0 ? lingers(app, arg)
	                                                                     : -1;
}

Test(replacement, the_longest_close_timeout_is_no_short_one)
{
	struct cluster *c;

	share();
	c = cluster_start(&(struct options){.agent = plain,
	                                    .app = leaves_gracefully,
	                                    .app_close_timeout = INT_MAX,
	                                    .agent_close_timeout = INT_MAX});
	cluster_ready(c);
	send_to(c, cluster_pid(c, "APP#1"), "test-leave", NULL);
	cluster_wait(c, 0, "APP#1 leaves");
	cluster_wait(c, 0, "app_worker#2:APP#2 started");
	cluster_ask_status(c);
	cluster_ask_status(c); /* the master has checked its deadlines in between */
	shared->go = true;
	cr_assert_str_eq(cluster_wait_end(c, "APP#1"), "code: 1, signal: null");
	cluster_stop(c);
}

/* ---- last words ---------------------------------------------------------------------- */

/* Fill the channel until the socket is full and the master does not read, then die. A socket
 * that is not full accepts a whole piece, and Linux makes pieces of this size at most: so the
 * socket holds more than twice CHANNEL_SOCKET_BUFFER. */
static int
say_last_words(struct messenger *app, const struct message *order, void *arg)
{
	enum { LENGTH = 36480 };
	static char data[LENGTH + 1];
	struct message message = {.action = "test-last",
	                          .to = ROLE_AGENT,
	                          .data = data,
	                          .data_length = LENGTH,
	                          .handle = -1};
	int tries, unread, descriptor = app->channel.descriptor;
	struct channel frame;
	ssize_t size;

	(void)order, (void)arg;
	memset(data, '1', LENGTH);
	channel_init(&frame, 0);
	if (sendmessage(&frame, &message) == -1)
		abort();
	size = (ssize_t)channel_pending(&frame);
	do { /* until the master has stopped reading */
		shared->sent += write(descriptor, frame.queue, (size_t)size) == size;
		for (tries = 0;
		     tries < 100 && ioctl(descriptor, TIOCOUTQ, &unread) == 0 && unread > 0;
		     tries++)
			poll(NULL, 0, 5);
	} while (unread == 0);
	while (write(descriptor, frame.queue, (size_t)size) == size)
		shared->sent++;
	_exit(0);
}

static int
on_last_words(struct messenger *agent, const struct message *message, void *arg)
{
	(void)message, (void)arg;
	if (++shared->heard == shared->sent)
		report(agent, "has heard all");
	return 0;
}

static int
hears_last_words(struct messenger *agent, void *arg)
{
	return messenger_on(agent, "test-last", on_last_words, NULL) == 0 ? plain(agent, arg) : -1;
}

static int
says_last_words(struct messenger *app, void *arg)
{
	return messenger_on(app, "test-fill", say_last_words, NULL) == 0 ? plain(app, arg) : -1;
}

/* The master does not read from an app whose messages go into a full queue. */
Test(replacement, the_last_words_of_a_process_that_was_held_up_are_heard)
{
	struct cluster *c;

	share();
	c = cluster_start(
		&(struct options){.agent = hears_last_words, .app = says_last_words, .workers = 2});
	cluster_ready(c);
	cluster_signal(c, "AGENT#1", SIGSTOP);
	send_to(c, cluster_pid(c, "APP#1"), "test-fill", NULL);
	cluster_wait_death(c, "APP#1");
	cr_assert_gt(shared->sent, 40, "nothing held the app up");
	cluster_signal(c, "AGENT#1", SIGCONT);
	cluster_wait(c, 0, "AGENT#1 has heard all");
	cluster_stop(c);
}
