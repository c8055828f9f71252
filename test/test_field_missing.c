/*
 * What the code did right and no test asked for: each of these passes, and each fails
 * when one line of the core, named in the comment above the test, is taken out or
 * turned round.
 *
 * The program is linked with --wrap for the calls that have a __wrap_ function here.
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
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

TestSuite(missing, .timeout = 60);

/* ---- system calls that the tests intercept ------------------------------------ */

static volatile sig_atomic_t raise_before_poll, raise_when_idle;
static int accepts_to_fail;
static int sleeps_in_poll; /* as a process that is stopped there for a minute */
static int clock_ahead;    /* in seconds */
static int flags_to_fail, flags_to_fail_after_accept;

int __real_poll(struct pollfd *set, nfds_t count, int timeout);
int __wrap_poll(struct pollfd *set, nfds_t count, int timeout);
int __real_accept(int descriptor, struct sockaddr *address, socklen_t *length);
int __wrap_accept(int descriptor, struct sockaddr *address, socklen_t *length);

/* The signal comes between the last look at the flags and the sleep. */
int
__wrap_poll(struct pollfd *set, nfds_t count, int timeout)
{
	int number = raise_before_poll;

	if (sleeps_in_poll && timeout > 500) { /* in the loop, not for a line of the log */
		sleeps_in_poll = 0;
		clock_ahead = 60;
		return 0;
	}
	if (number != 0 && timeout != 0) {
		raise_before_poll = 0;
		raise(number);
	}
	number = raise_when_idle;
	if (number != 0 && timeout == -1) {
		raise_when_idle = 0;
		raise(number);
	}
	return __real_poll(set, count, timeout);
}

int
__wrap_accept(int descriptor, struct sockaddr *address, socklen_t *length)
{
	if (accepts_to_fail > 0) {
		accepts_to_fail--;
		errno = ENOMEM;
		return -1;
	}
	flags_to_fail = flags_to_fail_after_accept;
	flags_to_fail_after_accept = 0;
	return __real_accept(descriptor, address, length);
}

/* ---- processes ----------------------------------------------------------------- */

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

static int
plain(struct messenger *messenger, void *arg)
{
	(void)arg;
	return observe(messenger);
}

static int
nothing(struct messenger *messenger, void *arg)
{
	(void)messenger, (void)arg;
	return 0;
}

static int
report_waited(struct messenger *app, void *arg)
{
	(void)arg;
	report(app, "has waited");
	return 0;
}

static int
hold(struct messenger *app, int descriptor, short revents, void *arg)
{
	char byte;

	(void)revents, (void)arg;
	if (read(descriptor, &byte, 1) == 0) {
		messenger_unwatch(app, descriptor);
		close(descriptor);
	}
	return 0;
}

static int
accept_and_hold(struct messenger *app, int descriptor, void *arg)
{
	(void)arg;
	report(app, "accepted");
	return messenger_watch(app, descriptor, POLLIN, hold, NULL);
}

/* ---- the master ------------------------------------------------------------------ */

static int
dies_if_marked(struct messenger *app, void *arg)
{
	(void)arg;
	return observe(app) == 0 && access(marker, F_OK) == -1 ? 0 : -1;
}

/* master.c, reload_next: the step to the next slot. Without it the master never
 * comes out of its loop. */
Test(missing, a_reload_passes_over_a_slot_that_waits_for_its_refork)
{
	struct cluster *c;
	size_t mark;

	name_marker();
	c = cluster_start(&(struct options){.agent = plain, .app = dies_if_marked, .workers = 2});
	cluster_ready(c);
	mark = cluster_mark(c);
	set_marker();
	cluster_signal(c, "APP#2", SIGKILL);
	cluster_wait_end(c, "APP#3");
	unlink(marker);
	cr_assert_eq(messenger_send(c->parent, "reload-worker", NULL, ROLE_MASTER), 0);
	cluster_turn(c);
	cluster_wait(c, mark, "[master] reload done");
	cluster_wait_saw(c, "APP#5", "egg-pids [AGENT#1] -> egg-ready <options>");
	cluster_stop(c);
}

/* master.c, processors. */
Test(missing, as_many_workers_as_processors_by_default)
{
	long count = sysconf(_SC_NPROCESSORS_ONLN);
	struct cluster *c;

	clear_environment();
	setenv("EGG_WORKERS", "", 1);
	c = cluster_start(&(struct options){.agent = plain, .app = plain});
	cluster_ready(c);
	cr_assert_eq(cluster_count(c, 0, "[master] app_worker#%ld:APP#%ld start", count, count) > 0,
	             1);
	cr_assert_eq(cluster_count(c, 0, "[master] app_worker#%ld:", count + 1), 0);
	cluster_stop(c);
}

/* master.c, save_status: the mode of the file. */
Test(missing, the_status_file_is_its_owners_to_read_and_write)
{
	char path[300], status[320];
	struct cluster *c;
	struct stat found;

	snprintf(path, sizeof path, "%s/pid", test_folder());
	snprintf(status, sizeof status, "%s.status", path);
	c = cluster_start(
		&(struct options){.agent = plain, .app = plain, .workers = 1, .pid_file = path});
	cluster_ready(c);
	cluster_signal(c, "MASTER", SIGUSR1);
	while (stat(status, &found) == -1)
		poll(NULL, 0, 1); /* Criterion's time limit ends this */
	cr_assert_eq(found.st_mode & 0777, 0600);
	cluster_stop(c);
}

/* master.c, fork_cluster: the second master gives up the messengers of the process that
 * has forked it. If it keeps the first one's channel, that master never sees its end. */
Test(missing, a_second_cluster_does_not_hold_the_first_ones_parent_up)
{
	struct options options = {
		.agent = plain, .app = plain, .workers = 1, .end_with_parent = true};
	struct cluster *first = cluster_start(&options), *second;

	cluster_ready(first);
	second = cluster_start(&options);
	cluster_ready(second);
	channel_close(&first->parent->channel);
	cluster_wait(first, 0, "[master] the parent is gone, closing");
	cluster_ended(first, 0);
	cluster_stop(second);
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

/* master.c, on_exit: SIGTERM to the group when the start has failed. Without it the
 * grandchild is left alone until SIGKILL. */
Test(missing, a_grandchild_is_told_when_the_start_fails)
{
	struct cluster *c;

	name_marker();
	c = cluster_start(
		&(struct options){.agent = plain, .app = one_has_a_child_one_fails, .workers = 2});
	cluster_wait(c, 0, "grandchild was told");
	cluster_ended(c, 1);
}

/* ---- the children ----------------------------------------------------------------- */

static int
speaks_late(struct messenger *app, void *arg)
{
	int result = messenger_send_to_agent(app, "test-late", NULL);

	(void)arg;
	report(app, "sent %d %s", result, result == -1 ? strerror(errno) : "");
	return 0;
}

static int
leaves(struct messenger *app, const struct message *message, void *arg)
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
	                       messenger_on(app, "test-leave", leaves, NULL) == 0
	               ? observe(app)
	               : -1;
}

/* worker.c, disconnect: the channel is marked as closed for writing. If it is not, the
 * call returns 0 and the message is lost. */
Test(missing, after_a_graceful_exit_a_send_call_says_EPIPE)
{
	struct cluster *c = cluster_start(
		&(struct options){.agent = plain, .app = app_that_leaves, .workers = 1});

	cluster_ready(c);
	cr_assert_eq(messenger_send_to_app(c->parent, "test-leave", NULL), 0);
	cluster_turn(c);
	cluster_wait(c, 0, "sent ");
	cr_assert_neq(cluster_count(c, 0, "sent -1 Broken pipe"), 0);
	cluster_stop(c);
}

static int
will_raise(struct messenger *messenger, const struct message *message, void *arg)
{
	(void)messenger, (void)message, (void)arg;
	raise_before_poll = SIGTERM;
	return 0;
}

static int
raises(struct messenger *messenger, void *arg)
{
	(void)arg;
	return messenger_on(messenger, "test-raise", will_raise, NULL) == 0 ? observe(messenger)
	                                                                    : -1;
}

/* agent.c, on_sigterm: the handler wakes the loop. If it does not, the process sleeps
 * until somebody speaks to it. */
Test(missing, a_SIGTERM_just_before_the_poll_is_not_slept_over)
{
	struct cluster *c =
		cluster_start(&(struct options){.agent = raises, .app = raises, .workers = 1});

	cluster_ready(c);
	cr_assert_eq(messenger_send_to_app(c->parent, "test-raise", NULL), 0);
	cluster_turn(c);
	cr_assert_str_eq(cluster_wait_end(c, "APP#1"), "code: 0, signal: null");
	cr_assert_eq(messenger_send_to_agent(c->parent, "test-raise", NULL), 0);
	cluster_turn(c);
	cr_assert_str_eq(cluster_wait_end(c, "AGENT#1"), "code: 0, signal: null");
	cluster_stop(c);
}

/* In the master alone: its children forget this again. */
static void
raises_when_idle(enum role role, void *arg)
{
	(void)arg;
	raise_when_idle = role == ROLE_MASTER ? SIGTERM : 0;
}

/* master.c, on_caught: the handler wakes the loop, the self-pipe trick. In env "local" an
 * idle master has no deadline that would wake it. */
Test(missing, a_SIGTERM_just_before_an_idle_master_polls_is_not_slept_over)
{
	struct cluster *c = cluster_start(
		&(struct options){.in_child = raises_when_idle, .workers = 1, .env = "local"});

	cluster_wait(c, 0, "[master] master is killed by signal SIGTERM, closing");
	cluster_ended(c, 0);
}

static int
waits_when_it_leaves(struct messenger *app, void *arg)
{
	(void)arg;
	return messenger_set_timeout(app, 600, report_waited, NULL) > 0 ? 0 : -1;
}

static int
app_that_waits(struct messenger *app, void *arg)
{
	(void)arg;
	return messenger_before_close(app, waits_when_it_leaves, NULL);
}

/* agent.c, on_wake: the byte that woke the loop is read. If it stays, the loop spins for
 * as long as the process waits for its last connection. */
Test(missing, an_app_that_waits_for_its_last_connection_does_not_use_the_processor)
{
	struct cluster *c = cluster_start(&(struct options){
		.agent = plain, .app = app_that_waits, .connection = accept_and_hold});
	int64_t before;
	int client;
	pid_t pid;

	cluster_ready(c);
	pid = cluster_pid(c, "APP#1");
	client = cluster_connect(c);
	cluster_wait(c, 0, "accepted");
	before = process_processor_time(pid);
	kill(pid, SIGTERM);
	cluster_wait(c, 0, "has waited");
	cr_assert_lt(process_processor_time(pid) - before, 200, "it is busy with nothing");
	close(client);
	cluster_stop(c);
}

/* messenger.c, run_timers: its last loop ends at the last timer. One step more is seen
 * under AddressSanitizer only, and where all places are taken. */
Test(missing, as_many_timers_as_there_is_room_for)
{
	struct messenger *child;
	int pair[2], i;

	cr_assert_eq(channel_pair(pair), 0);
	child = messenger_open(pair[0], ROLE_APP);
	for (i = 0; i < 4; i++)
		cr_assert_gt(messenger_set_timeout(child, 60000, nothing, NULL), 0);
	cr_assert_eq(messenger_step(child, 0), 1);
	cr_assert_gt(messenger_set_timeout(child, 0, nothing, NULL), 0);
	cr_assert_eq(messenger_step(child, 0), 1);
	cr_assert_eq(messenger_clear_timeout(child, 1), 0);
	for (i = 0; i < 4; i++)
		cr_assert_gt(messenger_set_timeout(child, 60000, nothing, NULL), 0);
	cr_assert_eq(messenger_step(child, 0), 1);
	messenger_close(child);
	close(pair[1]);
}

static int
starves(struct messenger *app, void *arg)
{
	(void)arg;
	accepts_to_fail = 3;
	return observe(app);
}

/* worker.c, on_connection: ENOMEM is a shortage, too. If it is not, the loop spins and
 * nobody says so. */
Test(missing, an_accept_without_memory_is_one_line_and_a_pause)
{
	struct cluster *c = cluster_start(&(struct options){
		.agent = plain, .app = starves, .connection = accept_and_hold, .workers = 1});
	int client;

	cluster_ready(c);
	client = cluster_connect(c);
	cluster_wait(c, 0, "accepted");
	cr_assert_eq(cluster_count(c, 0, "cannot accept: no descriptor or memory left"), 1);
	close(client);
	cluster_stop(c);
}

/* ---- a process that was stopped ------------------------------------------------------------ */

int __real_clock_gettime(clockid_t clock, struct timespec *now);
int __wrap_clock_gettime(clockid_t clock, struct timespec *now);

int
__wrap_clock_gettime(clockid_t clock, struct timespec *now)
{
	int result = __real_clock_gettime(clock, now);

	now->tv_sec += clock_ahead;
	return result;
}

static int
stops_when_it_leaves(struct messenger *app, void *arg)
{
	(void)arg;
	sleeps_in_poll = 1;
	report(app, "leaves");
	return 0;
}

static int
says_the_time(struct messenger *app, const struct message *message, void *arg)
{
	(void)message, (void)arg;
	report(app, "is here %d seconds later", clock_ahead);
	return 0;
}

static int
app_that_is_stopped(struct messenger *app, void *arg)
{
	(void)arg;
	return messenger_before_close(app, stops_when_it_leaves, NULL) == 0 &&
	                       messenger_on(app, "test-time", says_the_time, NULL) == 0
	               ? observe(app)
	               : -1;
}

/* worker.c, worker_run: the deadline moves on by the time in which the process was stopped. If
 * it does not, the process leaves its last connection as soon as it runs again. */
Test(missing, an_app_that_was_stopped_while_it_leaves_still_waits_for_its_last_connection)
{
	struct cluster *c = cluster_start(&(struct options){.agent = plain,
	                                                    .app = app_that_is_stopped,
	                                                    .connection = accept_and_hold,
	                                                    .workers = 1});
	int client;

	cluster_ready(c);
	client = cluster_connect(c);
	cluster_wait(c, 0, "accepted");
	kill(cluster_pid(c, "APP#1"), SIGTERM);
	cluster_wait(c, 0, ":APP#1 leaves");
	cr_assert_eq(messenger_send_to_app(c->parent, "test-time", NULL), 0);
	cluster_turn(c);
	cluster_wait(c, 0, ":APP#1 is here 60 seconds later");
	close(client);
	cr_assert_str_eq(cluster_wait_end(c, "APP#1"), "code: 0, signal: null");
	cluster_stop(c);
}

/* ---- a descriptor that cannot be made non-blocking ------------------------------------------- */

int __real_fcntl(int descriptor, int command, ...);
int __wrap_fcntl(int descriptor, int command, ...);

int
__wrap_fcntl(int descriptor, int command, ...)
{
	va_list arguments;
	void *argument;

	va_start(arguments, command);
	argument = va_arg(arguments, void *);
	va_end(arguments);
	if (flags_to_fail > 0) {
		flags_to_fail--;
		errno = ENOMEM;
		return -1;
	}
	return __real_fcntl(descriptor, command, argument);
}

static int
fails_at_first(struct messenger *app, void *arg)
{
	(void)arg;
	flags_to_fail_after_accept = 1;
	return observe(app);
}

/* worker.c, on_connection: the connection that cannot be used is closed, and the next one is
 * accepted. */
Test(missing, a_connection_that_would_block_is_closed)
{
	struct cluster *c = cluster_start(&(struct options){.agent = plain,
	                                                    .app = fails_at_first,
	                                                    .connection = accept_and_hold,
	                                                    .workers = 1});
	struct pollfd set = {.events = POLLIN};
	int other;
	char byte;

	cluster_ready(c);
	set.fd = cluster_connect(c);
	cr_assert_eq(poll(&set, 1, time_limit()), 1, "it stays open");
	cr_assert_leq(read(set.fd, &byte, 1), 0);
	cr_assert_eq(cluster_count(c, 0, "accepted"), 0);
	other = cluster_connect(c);
	cluster_wait(c, 0, "accepted");
	close(set.fd);
	close(other);
	cluster_stop(c);
}
