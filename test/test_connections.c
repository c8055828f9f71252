/*
 * The connections of an app: it accepts them, also after a shortage, and waits for the last
 * of them when it leaves.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "harness.h"
#include "no_memory.h"

#include <criterion/criterion.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

TestSuite(connections, .timeout = 60);

static int accepts_to_fail;
static int sleeps_in_poll; /* as a process that is stopped there for a minute */
static int clock_ahead;    /* in seconds */
static int flags_to_fail, flags_to_fail_after_accept;

int __real_poll(struct pollfd *set, nfds_t count, int timeout);
int __wrap_poll(struct pollfd *set, nfds_t count, int timeout);

int __real_accept(int descriptor, struct sockaddr *address, socklen_t *length);
int __wrap_accept(int descriptor, struct sockaddr *address, socklen_t *length);

int
__wrap_poll(struct pollfd *set, nfds_t count, int timeout)
{
	if (sleeps_in_poll && timeout > 500) { /* in the loop, not for a line of the log */
		sleeps_in_poll = 0;
		clock_ahead = 60;
		return 0;
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

static int
plain(struct messenger *messenger, void *arg)
{
	(void)arg;
	return observe(messenger);
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
Test(connections, an_app_that_waits_for_its_last_connection_does_not_use_the_processor)
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
	cr_assert_lt(process_processor_time(pid) - before, 200,
	             "the worker is busy although it has nothing to do");
	close(client);
	cluster_stop(c);
}

static int
starves(struct messenger *app, void *arg)
{
	(void)arg;
	accepts_to_fail = 3;
	return observe(app);
}

/* worker.c, on_connection: ENOMEM is a shortage, too. Without this case the loop spins and
 * logs nothing. */
Test(connections, an_accept_without_memory_is_one_line_and_a_pause)
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
Test(connections, an_app_that_was_stopped_while_it_leaves_still_waits_for_its_last_connection)
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

/* ---- a connection that is watched twice ------------------------------------------------------- */

static int
accept_and_watch_twice(struct messenger *app, int descriptor, void *arg)
{
	return messenger_watch(app, descriptor, POLLIN, hold, NULL) == -1 ||
	       accept_and_hold(app, descriptor, arg);
}

/* The connection counts once: when it ends, the app does not wait until the deadline. */
Test(connections, one_that_is_watched_twice_is_one_connection)
{
	struct cluster *c = cluster_start(&(struct options){
		.connection = accept_and_watch_twice, .workers = 1, .app_close_timeout = 600000});
	int client;

	cluster_ready(c);
	client = cluster_connect(c);
	cluster_wait(c, 0, "accepted");
	cluster_signal(c, "APP#1", SIGTERM);
	cluster_wait(c, 0, "receive signal SIGTERM");
	close(client);
	cr_assert_str_eq(cluster_wait_end(c, "APP#1"), "code: 0, signal: null");
	cluster_stop(c);
}

/* ---- no memory for the listener -------------------------------------------------------------- */

static int
use_all_memory(struct messenger *app, void *arg)
{
	(void)app, (void)arg;
	is_memory_short = true;
	return 0;
}

/* worker.c, on_ready: an app that cannot accept is not one that has started. */
Test(connections, without_memory_for_the_listener_the_start_fails)
{
	struct cluster *c = cluster_start(
		&(struct options){.app = use_all_memory, .connection = accept_and_hold});

	cluster_wait(c, 0, "[app_worker] start error, exiting with code:1");
	cluster_ended(c, 1);
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
Test(connections, a_connection_that_would_block_is_closed)
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
	cr_assert_eq(poll(&set, 1, time_limit()), 1, "the connection stays open");
	cr_assert_leq(read(set.fd, &byte, 1), 0);
	cr_assert_eq(cluster_count(c, 0, "accepted"), 0);
	other = cluster_connect(c);
	cluster_wait(c, 0, "accepted");
	close(set.fd);
	close(other);
	cluster_stop(c);
}
