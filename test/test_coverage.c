/*
 * Lines that the tests of behaviour do not reach, and that need no failing system
 * call: what stands behind a full table, an odd peer or an early fork.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "harness.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- the channel ----------------------------------------------------------- */

/* A channel, and the far end of its socket. */
static int
open_channel(struct channel *channel, size_t limit)
{
	int pair[2];

	cr_assert_eq(channel_pair(pair), 0);
	channel_init(channel, limit);
	cr_assert_eq(channel_attach(channel, pair[0]), 0);
	return pair[1];
}

static struct messenger *
open_messenger(int *far)
{
	struct messenger *messenger;
	int pair[2];

	cr_assert_eq(channel_pair(pair), 0);
	messenger = messenger_open(pair[0], ROLE_APP);
	cr_assert_not_null(messenger);
	*far = pair[1];
	return messenger;
}

/* Write one message into the far end of a channel. */
static void
write_message(int far, const char *action, const char *data)
{
	struct message message = {action, ROLE_NONE, ROLE_NONE, 0, data, strlen(data), -1, NULL};
	struct channel writer;

	channel_init(&writer, 0);
	cr_assert_eq(channel_attach(&writer, dup(far)), 0);
	cr_assert_eq(sendmessage(&writer, &message), 0);
	cr_assert_eq(channel_drain(&writer, 1000), PEER_ALIVE);
	channel_close(&writer);
}

static void
allow_descriptors(rlim_t count)
{
	struct rlimit limit;

	cr_assert_eq(getrlimit(RLIMIT_NOFILE, &limit), 0);
	limit.rlim_cur = count;
	cr_assert_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
}

/* Credentials do not fit where a handle would: the kernel says that it cut
 * something off, and that is taken for a handle that is lost. */
Test(coverage, what_comes_along_and_is_no_handle_is_overlooked)
{
	struct channel channel;
	struct message message;
	int i, on = 1, far = open_channel(&channel, 0);

	cr_assert_eq(setsockopt(channel.descriptor, SOL_SOCKET, SO_PASSCRED, &on, sizeof on), 0);
	for (i = 0; i < 3; i++) {
		write_message(far, "a", "1");
		cr_assert_eq(channel_read(&channel), PEER_ALIVE);
		cr_assert_eq(channel_next(&channel, &message), 1);
		cr_assert_eq(message.handle, -1);
	}
	channel_close(&channel);
}

Test(coverage, nobody_waits_for_a_process_that_is_not_forked_yet)
{
	struct message message = {"a", ROLE_NONE, ROLE_NONE, 0, NULL, 0, -1, NULL};
	struct channel channel;
	int64_t start = clutch_now();

	channel_init(&channel, 0);
	cr_assert_eq(sendmessage(&channel, &message), 0);
	cr_assert_eq(channel_drain(&channel, 60000), PEER_ALIVE);
	cr_assert_gt(channel_pending(&channel), 0);
	cr_assert_lt(clutch_now() - start, 30000);
	channel_close(&channel);
}

Test(coverage, without_descriptors_there_is_no_pair_and_no_wake)
{
	int pair[2];

	allow_descriptors(3);
	cr_assert_eq(channel_pair(pair), -1);
	cr_assert_eq(errno, EMFILE);
	cr_assert_eq(clutch_wake_open(), -1);
	cr_assert_eq(errno, EMFILE);
	allow_descriptors(256);
}

/* ---- the trace ------------------------------------------------------------- */

/* What print prints, on one line. */
static const char *
printed(void (*print)(int descriptor))
{
	static char line[4096];
	ssize_t count;
	int pair[2];

	cr_assert_eq(pipe(pair), 0);
	print(pair[1]);
	count = read(pair[0], line, sizeof line - 1);
	cr_assert_gt(count, 0);
	line[count] = '\0';
	cr_assert_eq(line[count - 1], '\n');
	close(pair[0]);
	close(pair[1]);
	return line;
}

static void
print_long(int descriptor)
{
	clutch_print_line(descriptor, "%2000d", 1);
}

Test(coverage, a_long_line_is_cut)
{
	cr_assert_eq(strlen(printed(print_long)), 1024);
}

/* ---- listeners ------------------------------------------------------------- */

static int
hear_nothing(struct messenger *messenger, const struct message *message, void *arg)
{
	(void)messenger, (void)message, (void)arg;
	return 0;
}

Test(coverage, two_hundred_actions_leave_one_by_one)
{
	enum { ACTIONS = 200 };
	struct messenger *messenger;
	char action[16];
	int far, i;

	messenger = open_messenger(&far);
	for (i = 0; i < ACTIONS; i++) {
		snprintf(action, sizeof action, "%d", i);
		cr_assert_eq(messenger_on(messenger, action, hear_nothing, NULL), 0);
	}
	for (i = 0; i < ACTIONS; i++) {
		snprintf(action, sizeof action, "%d", i);
		cr_assert_eq(messenger_remove_listener(messenger, action, hear_nothing, NULL), 0);
		cr_assert_eq(messenger_remove_listener(messenger, action, hear_nothing, NULL), -1);
		cr_assert_eq(errno, ENOENT);
	}
	messenger_close(messenger);
}

static int
remove_both(struct messenger *messenger, const struct message *message, void *arg)
{
	int *calls = arg;

	(void)message;
	++*calls;
	cr_assert_eq(messenger_remove_listener(messenger, "a", hear_nothing, NULL), 0);
	cr_assert_eq(messenger_remove_listener(messenger, "a", remove_both, arg), 0);
	return 0;
}

Test(coverage, a_listener_removes_another_and_itself)
{
	struct messenger *messenger;
	int far, calls = 0;

	messenger = open_messenger(&far);
	cr_assert_eq(messenger_on(messenger, "a", remove_both, &calls), 0);
	cr_assert_eq(messenger_on(messenger, "a", hear_nothing, NULL), 0);
	write_message(far, "a", "1");
	write_message(far, "a", "2");
	cr_assert_eq(messenger_step(messenger, 1000), 1);
	cr_assert_eq(calls, 1);
	messenger_close(messenger);
}

/* ---- sending --------------------------------------------------------------- */

static void
read_all(int far)
{
	static char bytes[256 * 1024];

	while (recv(far, bytes, sizeof bytes, MSG_DONTWAIT) > 0)
		;
}

/* The queue is full, but the socket is not any longer. */
Test(coverage, a_broadcast_makes_room_before_it_fails)
{
	static char data[64 * 1024];
	struct messenger *messenger;
	int far;

	messenger = open_messenger(&far);
	memset(data, '1', sizeof data - 1);
	while (messenger_send_to_app(messenger, "a", data) == 0)
		;
	while (messenger_send_to_app(messenger, "a", "1") == 0)
		;
	cr_assert_eq(messenger_broadcast(messenger, "a", "1"), -1);
	cr_assert_eq(errno, ENOBUFS);
	read_all(far);
	cr_assert_eq(messenger_broadcast(messenger, "a", "1"), 0);
	close(far);
	messenger_close(messenger);
}

/* Whoever inherits a messenger does not write out what its parent has queued. */
Test(coverage, an_exit_writes_out_what_is_one_s_own)
{
	struct messenger *messenger;
	int i, far, status;
	char byte;
	pid_t pid;

	messenger = open_messenger(&far);
	cr_assert_eq(messenger_own(messenger), 0);
	cr_assert_eq(messenger_send_to_app(messenger, "a", "1"), 0);
	for (i = 0; i < 2; i++) {
		pid = fork();
		cr_assert_neq(pid, -1);
		if (pid == 0 && i == 1)
			messenger_disown();
		if (pid == 0)
			exit(0);
		cr_assert_eq(waitpid(pid, &status, 0), pid);
		cr_assert_eq(status, 0);
		cr_assert_eq(recv(far, &byte, 1, MSG_DONTWAIT), -1);
	}
	messenger_disown();
}

/* ---- the loop -------------------------------------------------------------- */

Test(coverage, a_signal_handler_may_wake_a_loop_that_is_awake)
{
	int i, descriptor = clutch_wake_open();
	struct pollfd woken = {.fd = descriptor, .events = POLLIN};

	cr_assert_neq(descriptor, -1);
	errno = EXDEV;
	for (i = 0; i < 100000; i++)
		clutch_wake_up();
	cr_assert_eq(errno, EXDEV);
	cr_assert_eq(poll(&woken, 1, 0), 1);
	clutch_wake_drain(descriptor);
	cr_assert_eq(poll(&woken, 1, 0), 0);
	clutch_wake_close();
}

Test(coverage, a_poll_that_fails_is_the_step_s_failure)
{
	struct messenger *messenger;
	int far;

	messenger = open_messenger(&far);
	allow_descriptors(0);
	cr_assert_eq(messenger_step(messenger, 0), -1);
	cr_assert_eq(errno, EINVAL);
	allow_descriptors(256);
	cr_assert_eq(messenger_step(messenger, 0), 1);
	messenger_close(messenger);
}

Test(coverage, who_has_no_role_function_is_ready_already)
{
	struct messenger *messenger;
	int far;

	messenger = open_messenger(&far);
	cr_assert_eq(messenger_ready(messenger, 0), -1);
	cr_assert_eq(errno, EALREADY);
	messenger_close(messenger);
}

/* ---- clusters -------------------------------------------------------------- */

static int
accept_and_close(struct messenger *app, int descriptor, void *arg)
{
	(void)arg;
	report(app, "accepted");
	close(descriptor);
	return 0;
}

/* No descriptor more than there are now. */
static int
lower(struct messenger *app, const struct message *message, void *arg)
{
	int next = dup(0);

	(void)message, (void)arg;
	close(next);
	allow_descriptors((rlim_t)next);
	report(app, "lowered");
	return 0;
}

static int
restore(struct messenger *app, const struct message *message, void *arg)
{
	(void)app, (void)message, (void)arg;
	allow_descriptors(256);
	return 0;
}

static int
obey(struct messenger *app, void *arg)
{
	return messenger_on(app, "test-lower", lower, arg) ||
	       messenger_on(app, "test-restore", restore, arg);
}

static void
tell_apps(struct cluster *cluster, const char *action)
{
	cr_assert_eq(messenger_send_to_app(cluster->parent, action, NULL), 0);
	cluster_turn(cluster);
}

Test(coverage, a_worker_without_descriptors_accepts_when_it_has_some)
{
	struct cluster *c =
		cluster_start(&(struct options){.app = obey, .connection = accept_and_close});
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

Test(coverage, every_address_is_told_as_this_host)
{
	struct cluster *c =
		cluster_start(&(struct options){.connection = accept_and_close, .host = "0.0.0.0"});

	cluster_ready(c);
	close(cluster_connect(c));
	cluster_wait(c, 0, "http://127.0.0.1:PORT");
	cluster_stop(c);
}

/* Not every system has IPv6. */
Test(coverage, a_host_of_six_is_told_in_brackets)
{
	struct cluster *c;
	int probe = socket(AF_INET6, SOCK_STREAM, 0);
	struct sockaddr_in6 here = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};

	if (probe == -1 || bind(probe, (struct sockaddr *)&here, sizeof here) == -1)
		cr_skip_test("no IPv6 here");
	close(probe);
	c = cluster_start(&(struct options){.connection = accept_and_close, .host = "::1"});
	cluster_wait(c, 0, "http://[::1]:");
	cluster_stop(c);
}

Test(coverage, an_address_of_another_host_is_a_failed_start)
{
	struct cluster *c = cluster_start(
		&(struct options){.connection = accept_and_close, .host = "192.0.2.1"});

	cluster_wait(c, 0, "cannot listen on 192.0.2.1 port");
	cluster_ended(c, 1);
}

Test(coverage, a_pid_file_that_cannot_be_is_a_failed_start)
{
	static char long_path[PATH_MAX + 2];
	const char *const paths[] = {"/dev/null/master.pid", "/dev/null/pid/master.pid", long_path};
	struct cluster *c;
	size_t i;

	memset(long_path, 'x', sizeof long_path - 1);
	for (i = 0; i < sizeof paths / sizeof paths[0]; i++) {
		c = cluster_start(&(struct options){.pid_file = paths[i]});
		cluster_wait(c, 0, "[master] pid file %.40s", paths[i]);
		cluster_ended(c, 1);
	}
}

/* SIGKILL and SIGTERM have their names in the log. */
Test(coverage, a_death_of_another_signal_is_told_by_its_number)
{
	struct cluster *c = cluster_start(&(struct options){0});
	char expected[64];

	snprintf(expected, sizeof expected, "code: null, signal: %d", SIGXCPU);
	cluster_ready(c);
	cluster_signal(c, "APP#1", SIGXCPU);
	cr_assert_str_eq(cluster_wait_end(c, "APP#1"), expected);
	cluster_stop(c);
}
