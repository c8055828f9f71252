/*
 * The connections of an app: it accepts them, also after a shortage, and waits for the last
 * of them when it leaves.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "harness.h"

#include <criterion/criterion.h>

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

TestSuite(connections, .timeout = 60);

static int accepts_to_fail;

int __real_accept(int descriptor, struct sockaddr *address, socklen_t *length);
int __wrap_accept(int descriptor, struct sockaddr *address, socklen_t *length);

int
__wrap_accept(int descriptor, struct sockaddr *address, socklen_t *length)
{
	if (accepts_to_fail > 0) {
		accepts_to_fail--;
		errno = ENOMEM;
		return -1;
	}
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
	cr_assert_lt(process_processor_time(pid) - before, 200, "it is busy with nothing");
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
