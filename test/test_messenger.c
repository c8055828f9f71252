/*
 * The child's side of the messenger: send calls, listeners, opids, the loop.
 *
 * Each test has a messenger over one end of a real socketpair, and plays the
 * master at the other end with a bare channel. Both live in this process, which
 * has one read buffer: so the master's frames are taken out before the child
 * turns its loop again, and the master never reads inside a callback.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "messenger.h"

#include <criterion/criterion.h>

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#define UNUSED __attribute__((unused))

/* Nothing here takes this long (ms), unless it would take forever. */
#define DEADLINE 5000

/* Only where a sanitizer is linked in. */
int __lsan_do_recoverable_leak_check(void) __attribute__((weak));
size_t __sanitizer_get_current_allocated_bytes(void) __attribute__((weak));

static struct messenger *child; /* what is tested */
static struct channel master;   /* the other end */

/* The notes of the callbacks, one after the other. */
static char calls[8192];

/* The notes: the tests hand these to on_note and similar callbacks. */
static char a[] = "a", b[] = "b", c[] = "c", d[] = "d", e[] = "e";

/* ---- both ends ----------------------------------------------------------- */

static void
open_as(enum role role)
{
	int ends[2];

	cr_assert_eq(channel_pair(ends), 0);
	channel_init(&master, 0);
	cr_assert_eq(channel_attach(&master, ends[0]), 0);
	child = messenger_open(ends[1], role);
	cr_assert_not_null(child);
}

/* A loop that sleeps for ever is killed: here, and not by Criterion's timeout. */
static void
open_app(void)
{
	alarm(30);
	open_as(ROLE_APP);
}

/* The master is closed first: then the child does not wait for it. */
static void
close_both(void)
{
	channel_close(&master);
	messenger_close(child);
	child = NULL;
}

static void
reopen_as(enum role role)
{
	close_both();
	open_as(role);
}

/* One turn of the child's loop, which does not wait. */
static void
turn(void)
{
	cr_assert_eq(messenger_step(child, 0), 1);
}

static struct message
compose(enum role from, const char *action, const char *data)
{
	struct message message = {.action = action, .from = from, .to = ROLE_APP, .handle = -1};

	message.data = data;
	message.data_length = data != NULL ? strlen(data) : 0;
	return message;
}

/* The master sends; the socket has it when this returns. */
static void
say_message(const struct message *message)
{
	cr_assert_eq(sendmessage(&master, message), 0);
	cr_assert_eq(channel_flush(&master), PEER_ALIVE);
	cr_assert_eq(channel_pending(&master), 0, "the test says too much at once");
}

static void
say(const char *action)
{
	struct message message = compose(ROLE_MASTER, action, NULL);

	say_message(&message);
}

/* The master sends, and the child has heard it when this returns. */
static void
tell_from(enum role from, const char *action, const char *data)
{
	struct message message = compose(from, action, data);

	say_message(&message);
	turn();
}

static void
tell(const char *action)
{
	tell_from(ROLE_MASTER, action, NULL);
}

static void
tell_pids(const char *pids)
{
	tell_from(ROLE_MASTER, "egg-pids", pids);
}

/* The next message that the child put on the wire. The child turns its loop
 * only when the socket is empty: it may have more than a socket takes. */
static void
take(struct message *message)
{
	struct pollfd wait = {.fd = master.descriptor, .events = POLLIN};
	int found;

	while ((found = channel_next(&master, message)) == 0) {
		if (poll(&wait, 1, 0) == 0)
			messenger_step(child, 0);
		cr_assert_eq(poll(&wait, 1, DEADLINE), 1, "the child wrote nothing");
		cr_assert_eq(channel_read(&master), PEER_ALIVE);
	}
	cr_assert_eq(found, 1, "the child broke the protocol");
}

/* Take a message, which must be this one. */
static void
expect_at(int line, const char *action, enum role to, pid_t receiver_pid, const char *data)
{
	struct message got;

	take(&got);
	cr_assert_str_eq(got.action, action, "line %d: action %s", line, got.action);
	cr_assert_eq(got.from, ROLE_NONE, "line %d: a child claims no role", line);
	cr_assert_eq(got.to, to, "line %d: to %s", line, clutch_role_name(got.to));
	cr_assert_eq(got.receiver_pid, receiver_pid, "line %d: pid %d", line, got.receiver_pid);
	cr_assert_eq(got.handle, -1, "line %d: a handle", line);
	cr_assert_eq(got.data == NULL, data == NULL, "line %d: data", line);
	if (data != NULL)
		cr_assert_str_eq(got.data, data, "line %d: data %s", line, got.data);
}

#define expect(...) expect_at(__LINE__, __VA_ARGS__)

/* Nothing is on the wire, in the socket or taken from it. */
static void
expect_silence(void)
{
	struct pollfd wait = {.fd = master.descriptor, .events = POLLIN};
	struct message message;

	cr_assert_eq(channel_next(&master, &message), 0, "one more message: %s", message.action);
	cr_assert_eq(poll(&wait, 1, 0), 0, "the child wrote more");
}

/* A call fails with this errno, and neither queues nor writes anything. */
#define expect_error(error, call)                                                                  \
	do {                                                                                       \
		size_t pending_ = channel_pending(&child->channel);                                \
		errno = 0;                                                                         \
		cr_assert_eq((call), -1, "%s succeeds", #call);                                    \
		cr_assert_eq(errno, (error), "%s: %s", #call, strerror(errno));                    \
		cr_assert_eq(channel_pending(&child->channel), pending_);                          \
	} while (0)

/* ---- what callbacks do --------------------------------------------------- */

static void
note(const char *what)
{
	size_t used = strlen(calls);

	cr_assert_lt(used + strlen(what), sizeof calls);
	snprintf(calls + used, sizeof calls - used, "%s", what);
}

/* Exactly these were called since the last time. */
#define expect_calls(these)                                                                        \
	do {                                                                                       \
		cr_assert_str_eq(calls, these);                                                    \
		calls[0] = '\0';                                                                   \
	} while (0)

static int
on_note(struct messenger *messenger UNUSED, const struct message *message UNUSED, void *arg)
{
	note(arg);
	return 0;
}

static int
on_count(struct messenger *messenger UNUSED, const struct message *message UNUSED, void *arg)
{
	++*(int *)arg;
	return 0;
}

static int
on_fail(struct messenger *messenger UNUSED, const struct message *message UNUSED, void *arg)
{
	note(arg);
	return 7;
}

static int
watch_note(struct messenger *messenger UNUSED, int descriptor UNUSED, short revents UNUSED,
           void *arg)
{
	note(arg);
	return 0;
}

static int
watch_fail(struct messenger *messenger UNUSED, int descriptor UNUSED, short revents UNUSED,
           void *arg)
{
	note(arg);
	return 8;
}

static int
watch_drain(struct messenger *messenger UNUSED, int descriptor, short revents UNUSED, void *arg)
{
	char byte;

	note(arg);
	return read(descriptor, &byte, 1) == 1 ? 0 : -1;
}

static int
timer_note(struct messenger *messenger UNUSED, void *arg)
{
	note(arg);
	return 0;
}

static int
timer_fail(struct messenger *messenger UNUSED, void *arg)
{
	note(arg);
	return 9;
}

static void
hear(const char *action, char *what)
{
	cr_assert_eq(messenger_on(child, action, on_note, what), 0);
}

static void
hear_once(const char *action, char *what)
{
	cr_assert_eq(messenger_once(child, action, on_note, what), 0);
}

static int
after(int milliseconds, char *what)
{
	int id = messenger_set_timeout(child, milliseconds, timer_note, what);

	cr_assert_gt(id, 0);
	return id;
}

/* Turn the loop until the condition is true, or fail. */
#define turn_until(condition)                                                                      \
	do {                                                                                       \
		int64_t deadline_ = clutch_now() + DEADLINE;                                       \
		while (!(condition)) {                                                             \
			cr_assert_lt(clutch_now(), deadline_, "never: %s", #condition);            \
			channel_flush(&master);                                                    \
			cr_assert_neq(messenger_step(child, 10), -1);                              \
		}                                                                                  \
	} while (0)

/* How many descriptors this process has open. */
static int
open_descriptors(void)
{
	int descriptor, count = 0;

	for (descriptor = 0; descriptor < 1024; descriptor++)
		count += fcntl(descriptor, F_GETFD) != -1;
	return count;
}

static size_t
bytes_allocated(void)
{
	if (__sanitizer_get_current_allocated_bytes != NULL)
		return __sanitizer_get_current_allocated_bytes();
	return mallinfo2().uordblks;
}

/* A pipe with something to read in it. */
static void
full_pipe(int ends[2])
{
	cr_assert_eq(pipe(ends), 0);
	cr_assert_eq(write(ends[1], "x", 1), 1);
}

static void
close_pipe(const int ends[2])
{
	close(ends[0]);
	close(ends[1]);
}

/* ---- identity ------------------------------------------------------------ */

TestSuite(identity, .init = open_app, .fini = close_both);

Test(identity, role_pid_and_slot_in_every_role)
{
	static const enum role roles[] = {ROLE_PARENT, ROLE_AGENT, ROLE_APP};
	size_t i;

	for (i = 0; i < sizeof roles / sizeof roles[0]; i++) {
		reopen_as(roles[i]);
		cr_assert_eq(messenger_role(child), roles[i]);
		cr_assert_eq(messenger_pid(child), getpid());
		cr_assert_eq(messenger_slot(child), -1);
	}
	child->slot = 3; /* as the app role sets it */
	cr_assert_eq(messenger_slot(child), 3);
}

Test(identity, an_open_messenger_owns_a_descriptor_that_neither_blocks_nor_survives_exec)
{
	int descriptor = child->channel.descriptor;

	cr_assert((fcntl(descriptor, F_GETFL) & O_NONBLOCK) != 0);
	cr_assert((fcntl(descriptor, F_GETFD) & FD_CLOEXEC) != 0);
}

Test(identity, open_refuses_what_is_no_descriptor)
{
	int ends[2], before = open_descriptors();

	cr_assert_eq(pipe(ends), 0);
	close_pipe(ends);
	errno = 0;
	cr_assert_null(messenger_open(ends[0], ROLE_PARENT));
	cr_assert_eq(errno, EBADF);
	errno = 0;
	cr_assert_null(messenger_open(-1, ROLE_PARENT));
	cr_assert_eq(errno, EBADF);
	cr_assert_eq(open_descriptors(), before);
}

/* ---- send calls: what is on the wire ------------------------------------- */

TestSuite(send, .init = open_app, .fini = close_both);

Test(send, broadcast_is_one_to_app_and_then_one_to_agent)
{
	cr_assert_eq(messenger_broadcast(child, "news", "{\"n\":1}"), 0);
	expect("news", ROLE_APP, 0, "{\"n\":1}");
	expect("news", ROLE_AGENT, 0, "{\"n\":1}");
	expect_silence();
}

Test(send, send_to_names_the_pid_and_no_role)
{
	cr_assert_eq(messenger_send_to(child, 4711, "hello", "[1]"), 0);
	cr_assert_eq(messenger_send_to(child, INT_MAX, "hello", NULL), 0);
	expect("hello", ROLE_NONE, 4711, "[1]");
	expect("hello", ROLE_NONE, INT_MAX, NULL);
	expect_silence();
}

Test(send, send_to_app_and_send_to_agent_name_the_role)
{
	cr_assert_eq(messenger_send_to_app(child, "x", "1"), 0);
	cr_assert_eq(messenger_send_to_agent(child, "y", "2"), 0);
	expect("x", ROLE_APP, 0, "1");
	expect("y", ROLE_AGENT, 0, "2");
	expect_silence();
}

Test(send, send_goes_to_any_role_or_to_none)
{
	enum role to;

	for (to = ROLE_NONE; to <= ROLE_APP; to++)
		cr_assert_eq(messenger_send(child, clutch_role_name(to), "true", to), 0);
	for (to = ROLE_NONE; to <= ROLE_APP; to++)
		expect(clutch_role_name(to), to, 0, "true");
	expect_silence();
}

Test(send, undefined_and_empty_data_stay_apart)
{
	cr_assert_eq(messenger_send(child, "x", NULL, ROLE_AGENT), 0);
	cr_assert_eq(messenger_send(child, "x", "", ROLE_AGENT), 0);
	expect("x", ROLE_AGENT, 0, NULL);
	expect("x", ROLE_AGENT, 0, "");
}

Test(send, an_absent_and_an_empty_action_travel)
{
	cr_assert_eq(messenger_send(child, NULL, "1", ROLE_APP), 0);
	cr_assert_eq(messenger_send(child, "", "2", ROLE_APP), 0);
	expect("", ROLE_APP, 0, "1");
	expect("", ROLE_APP, 0, "2");
}

Test(send, send_message_takes_any_receiver_and_data_with_its_length)
{
	struct message message = {.action = "raw", .data = "a\0b", .data_length = 3, .handle = -1};
	struct message got;

	for (message.to = ROLE_NONE; message.to <= ROLE_APP; message.to++)
		for (message.receiver_pid = 0; message.receiver_pid < 3; message.receiver_pid++) {
			cr_assert_eq(messenger_send_message(child, &message), 0);
			take(&got);
			cr_assert_str_eq(got.action, "raw");
			cr_assert_eq(got.to, message.to);
			cr_assert_eq(got.receiver_pid, message.receiver_pid);
			cr_assert_eq(got.data_length, 3);
			cr_assert_eq(memcmp(got.data, "a\0b", 4), 0);
		}
	expect_silence();
}

static bool
same_file(int one, int other)
{
	struct stat first, second;

	cr_assert_eq(fstat(one, &first), 0);
	cr_assert_eq(fstat(other, &second), 0);
	return first.st_dev == second.st_dev && first.st_ino == second.st_ino;
}

Test(send, a_handle_travels_and_stays_the_callers)
{
	struct message message = compose(ROLE_NONE, "take", "this"), got;
	int ends[2], before = open_descriptors();

	full_pipe(ends);
	message.handle = ends[0];
	cr_assert_eq(messenger_send_message(child, &message), 0);
	take(&got);
	cr_assert_str_eq(got.data, "this");
	cr_assert_geq(got.handle, 0);
	cr_assert_neq(got.handle, ends[0]);
	cr_assert(same_file(got.handle, ends[0]));
	close(got.handle);
	close_pipe(ends);
	cr_assert_eq(open_descriptors(), before, "the queue keeps a copy");
}

static int
on_forward(struct messenger *messenger, const struct message *message, void *arg)
{
	struct message copy = *message;

	copy.to = ROLE_AGENT;
	return messenger_send_message(arg != NULL ? arg : messenger, &copy);
}

Test(send, a_received_message_can_be_sent_on)
{
	struct message got;

	cr_assert_eq(messenger_on(child, "news", on_forward, NULL), 0);
	tell_from(ROLE_PARENT, "news", "{}");
	take(&got);
	cr_assert_str_eq(got.action, "news");
	cr_assert_str_eq(got.data, "{}");
	cr_assert_eq(got.to, ROLE_AGENT);
	expect_silence();
}

Test(send, the_largest_message_fits)
{
	char *data = malloc(MESSAGE_DATA_MAX + 1);
	char action[MESSAGE_ACTION_MAX + 1];
	struct message got;

	cr_assert_not_null(data);
	memset(data, 'd', MESSAGE_DATA_MAX);
	data[MESSAGE_DATA_MAX] = '\0';
	memset(action, 'a', MESSAGE_ACTION_MAX);
	action[MESSAGE_ACTION_MAX] = '\0';
	cr_assert_eq(messenger_send_to_app(child, action, data), 0);
	take(&got);
	cr_assert_str_eq(got.action, action);
	cr_assert_eq(got.data_length, MESSAGE_DATA_MAX);
	cr_assert_str_eq(got.data, data);
	free(data);
}

/* ---- send_random --------------------------------------------------------- */

Test(send, send_random_without_anybody_fails)
{
	expect_error(ESRCH, messenger_send_random(child, "x", NULL));
	tell_pids("[7]");
	tell_pids("[]");
	expect_error(ESRCH, messenger_send_random(child, "x", NULL));
	turn();
	expect_silence();
}

Test(send, send_random_to_the_only_one)
{
	int i;

	tell_pids("[4711]");
	for (i = 0; i < 20; i++)
		cr_assert_eq(messenger_send_random(child, "x", "[]"), 0);
	for (i = 0; i < 20; i++)
		expect("x", ROLE_NONE, 4711, "[]");
	expect_silence();
}

/* Chi-square of 3000 choices among 3, two degrees of freedom: beyond 30 by
 * chance once in three million runs; a 40:30:30 choice has 60. */
Test(send, send_random_chooses_among_opids_uniformly)
{
	static const double wanted = 1000;
	int i, who, count[3] = {0};
	struct message got;
	double chi_square = 0;

	tell_pids("[101,202,303]");
	for (i = 0; i < 3000; i++)
		cr_assert_eq(messenger_send_random(child, "x", NULL), 0);
	for (i = 0; i < 3000; i++) {
		take(&got);
		who = got.receiver_pid / 101 - 1;
		cr_assert(who >= 0 && who < 3 && got.receiver_pid == 101 * (who + 1));
		cr_assert_eq(got.to, ROLE_NONE);
		count[who]++;
	}
	for (i = 0; i < 3; i++)
		chi_square += (count[i] - wanted) * (count[i] - wanted) / wanted;
	cr_assert_lt(chi_square, 30, "%d, %d, %d", count[0], count[1], count[2]);
	expect_silence();
}

/* Neighbours in time must not follow each other in turn: of the nine pairs of
 * successive choices each comes about as often (eight degrees of freedom). */
Test(send, send_random_does_not_go_round)
{
	static const double wanted = 2999.0 / 9;
	int i, last = 0, who, count[9] = {0};
	struct message got;
	double chi_square = 0;

	tell_pids("[1,2,3]");
	for (i = 0; i < 3000; i++)
		cr_assert_eq(messenger_send_random(child, "x", NULL), 0);
	for (i = 0; i < 3000; i++) {
		take(&got);
		who = got.receiver_pid - 1;
		if (i > 0)
			count[3 * last + who]++;
		last = who;
	}
	for (i = 0; i < 9; i++)
		chi_square += (count[i] - wanted) * (count[i] - wanted) / wanted;
	cr_assert_lt(chi_square, 50);
}

/* ---- send calls that fail ------------------------------------------------ */

Test(send, einval_for_what_does_not_exist)
{
	struct message message = compose(ROLE_NONE, "x", NULL);

	expect_error(EINVAL, messenger_send_to(child, 0, "x", NULL));
	expect_error(EINVAL, messenger_send_to(child, -5, "x", NULL));
	expect_error(EINVAL, messenger_send(child, "x", NULL, (enum role)5));
	expect_error(EINVAL, messenger_send(child, "x", NULL, (enum role) - 1));
	message.from = (enum role)99;
	expect_error(EINVAL, messenger_send_message(child, &message));
	message.from = ROLE_NONE;
	message.receiver_pid = -1;
	expect_error(EINVAL, messenger_send_message(child, &message));
	message.receiver_pid = 0;
	message.data_length = 1; /* although there is no data */
	expect_error(EINVAL, messenger_send_message(child, &message));
	turn();
	expect_silence();
}

Test(send, emsgsize_for_what_is_too_long)
{
	char action[MESSAGE_ACTION_MAX + 2];
	char *data = malloc(MESSAGE_DATA_MAX + 2);

	cr_assert_not_null(data);
	memset(action, 'a', sizeof action - 1);
	action[sizeof action - 1] = '\0';
	memset(data, 'd', MESSAGE_DATA_MAX + 1);
	data[MESSAGE_DATA_MAX + 1] = '\0';
	tell_pids("[1]");
	expect_error(EMSGSIZE, messenger_broadcast(child, action, NULL));
	expect_error(EMSGSIZE, messenger_send_to(child, 1, action, NULL));
	expect_error(EMSGSIZE, messenger_send_random(child, action, NULL));
	expect_error(EMSGSIZE, messenger_send_to_app(child, action, NULL));
	expect_error(EMSGSIZE, messenger_send_to_agent(child, action, NULL));
	expect_error(EMSGSIZE, messenger_send(child, action, NULL, ROLE_PARENT));
	expect_error(EMSGSIZE, messenger_broadcast(child, "x", data));
	expect_error(EMSGSIZE, messenger_send(child, "x", data, ROLE_PARENT));
	turn();
	expect_silence();
	free(data);
}

Test(send, a_handle_that_is_none_queues_nothing)
{
	struct message message = compose(ROLE_NONE, "x", NULL);
	int ends[2];

	cr_assert_eq(pipe(ends), 0);
	close_pipe(ends);
	message.handle = ends[0];
	expect_error(EBADF, messenger_send_message(child, &message));
	turn();
	expect_silence();
}

Test(send, no_more_handles_wait_than_the_limit_says)
{
	struct message message = compose(ROLE_NONE, "x", NULL), got;
	int i;

	message.handle = STDERR_FILENO;
	for (i = 0; i < CHANNEL_HANDLES_MAX; i++)
		cr_assert_eq(messenger_send_message(child, &message), 0);
	expect_error(ENOBUFS, messenger_send_message(child, &message));
	for (i = 0; i < CHANNEL_HANDLES_MAX; i++) {
		take(&got);
		cr_assert_geq(got.handle, 0);
		close(got.handle);
	}
	cr_assert_eq(messenger_send_message(child, &message), 0);
}

/* What fills the queue: messages of up to CHANNEL_FLUSH_SIZE, numbered. */
static int
send_filler(int number, size_t length)
{
	static char data[CHANNEL_FLUSH_SIZE];
	struct message message = compose(ROLE_NONE, "filler", NULL);

	memset(data, '.', sizeof data);
	snprintf(data, sizeof data, "%08d", number);
	message.data = data;
	message.data_length = length;
	return messenger_send_message(child, &message);
}

/* Send until socket and queue are full. Returns how many were taken. */
static int
fill(void)
{
	size_t pending;
	int count = 0;

	do {
		while (send_filler(count, 65536) == 0)
			count++;
		cr_assert_eq(errno, ENOBUFS);
		pending = channel_pending(&child->channel);
		turn(); /* a socket may take some more at the second attempt */
	} while (channel_pending(&child->channel) < pending);
	return count;
}

/* Fill the queue until exactly this many bytes of it are free. */
static int
fill_but(size_t room)
{
	struct message empty = compose(ROLE_NONE, "filler", NULL);
	int count = fill();
	size_t left = CHANNEL_QUEUE_MAX - channel_pending(&child->channel);

	cr_assert_geq(left, room + message_size(&empty));
	cr_assert_eq(send_filler(count, left - room - message_size(&empty)), 0);
	cr_assert_eq(channel_pending(&child->channel), CHANNEL_QUEUE_MAX - room);
	return count + 1;
}

static void
take_fillers(int count)
{
	struct message got;
	int i;

	for (i = 0; i < count; i++) {
		take(&got);
		cr_assert_str_eq(got.action, "filler");
		cr_assert_eq(strtol(got.data, NULL, 10), i, "%.8s came instead of %d", got.data, i);
	}
}

Test(send, enobufs_when_the_queue_is_full_and_again_later_when_it_is_not)
{
	int count = fill();

	cr_assert_gt(count, CHANNEL_QUEUE_MAX / 65536 - 2);
	expect_error(ENOBUFS, send_filler(count, 65536));
	cr_assert_leq(channel_pending(&child->channel), CHANNEL_QUEUE_MAX);
	take_fillers(count);
	cr_assert_eq(send_filler(0, 65536), 0);
	take_fillers(1);
	expect_silence();
}

Test(send, broadcast_with_room_for_one_only_queues_neither)
{
	struct message message = compose(ROLE_NONE, "both", "{}");
	int count = fill_but(2 * message_size(&message) - 1);

	expect_error(ENOBUFS, messenger_broadcast(child, "both", "{}"));
	cr_assert_eq(messenger_send_to_agent(child, "both", "{}"), 0, "there was room for one");
	take_fillers(count);
	expect("both", ROLE_AGENT, 0, "{}");
	expect_silence();
}

Test(send, broadcast_with_room_for_two_queues_both)
{
	struct message message = compose(ROLE_NONE, "both", "{}");
	int count = fill_but(2 * message_size(&message));

	cr_assert_eq(messenger_broadcast(child, "both", "{}"), 0);
	cr_assert_eq(channel_pending(&child->channel), CHANNEL_QUEUE_MAX);
	take_fillers(count);
	expect("both", ROLE_APP, 0, "{}");
	expect("both", ROLE_AGENT, 0, "{}");
	expect_silence();
}

/* Each send call fails with this errno. */
static void
expect_epipe(void)
{
	expect_error(EPIPE, messenger_broadcast(child, "x", NULL));
	expect_error(EPIPE, messenger_send_to(child, 1, "x", NULL));
	expect_error(EPIPE, messenger_send_random(child, "x", NULL));
	expect_error(EPIPE, messenger_send_to_app(child, "x", NULL));
	expect_error(EPIPE, messenger_send_to_agent(child, "x", NULL));
	expect_error(EPIPE, messenger_send(child, "x", NULL, ROLE_NONE));
}

Test(send, epipe_after_the_channel_is_closed)
{
	tell_pids("[1,2]");
	channel_close(&master);
	cr_assert_eq(messenger_step(child, 0), 0);
	expect_epipe();
	cr_assert_eq(messenger_step(child, 0), 0);
}

/* A write fails before a read has seen the end: no SIGPIPE, and EPIPE from then on. */
Test(send, epipe_after_a_write_found_nobody)
{
	int i;

	tell_pids("[1,2]");
	channel_close(&master);
	for (i = 0; i < CHANNEL_FLUSH_SIZE / 65536; i++) /* this much is written at once */
		cr_assert_eq(send_filler(i, 65536), 0);
	expect_epipe();
	cr_assert_eq(messenger_step(child, 0), 0);
}

/* ---- one turn, one write ------------------------------------------------- */

Test(send, a_thousand_messages_of_one_turn_arrive_with_one_recv)
{
	struct message message = compose(ROLE_AGENT, "tick", "{\"n\":1}");
	size_t size = 1000 * message_size(&message);
	char *bytes = malloc(size + 1);
	int i;

	cr_assert_not_null(bytes);
	for (i = 0; i < 1000; i++)
		cr_assert_eq(messenger_send_to_agent(child, "tick", "{\"n\":1}"), 0);
	expect_silence();
	turn();
	cr_assert_eq(recv(master.descriptor, bytes, size + 1, MSG_DONTWAIT), (ssize_t)size);
	free(bytes);
}

/* The same over a socket that keeps writes apart. */
Test(send, a_thousand_messages_of_one_turn_are_one_write)
{
	struct message message = compose(ROLE_AGENT, "tick", NULL);
	size_t size = 1000 * message_size(&message);
	char *bytes = malloc(size + 1);
	int i, ends[2];

	cr_assert_not_null(bytes);
	if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends) == -1)
		cr_skip_test("no such sockets here");
	close_both();
	channel_init(&master, 0);
	cr_assert_eq(channel_attach(&master, ends[0]), 0);
	child = messenger_open(ends[1], ROLE_APP);
	for (i = 0; i < 1000; i++)
		cr_assert_eq(messenger_send_to_agent(child, "tick", NULL), 0);
	turn();
	cr_assert_eq(recv(master.descriptor, bytes, size + 1, MSG_DONTWAIT), (ssize_t)size);
	free(bytes);
}

Test(send, what_a_callback_sends_leaves_in_the_next_turn)
{
	cr_assert_eq(messenger_on(child, "news", on_forward, NULL), 0);
	tell("news");
	expect_silence();
	turn();
	cr_assert_eq(channel_pending(&child->channel), 0);
}

Test(send, much_is_written_before_the_turn_ends)
{
	int i;

	for (i = 0; i < 3; i++)
		cr_assert_eq(send_filler(i, CHANNEL_FLUSH_SIZE), 0);
	cr_assert_lt(channel_pending(&child->channel), CHANNEL_FLUSH_SIZE);
	take_fillers(3);
}

/* ---- listeners ----------------------------------------------------------- */

TestSuite(listeners, .init = open_app, .fini = close_both);

Test(listeners, are_called_in_order_of_adding)
{
	hear("x", a);
	hear("y", d);
	hear("x", b);
	hear("x", c);
	tell("x");
	expect_calls("abc");
	tell("y");
	expect_calls("d");
}

Test(listeners, the_same_one_twice_is_called_twice)
{
	hear("x", a);
	hear("x", a);
	tell("x");
	expect_calls("aa");
	cr_assert_eq(messenger_remove_listener(child, "x", on_note, a), 0);
	tell("x");
	expect_calls("a");
}

Test(listeners, once_is_called_once)
{
	hear("x", a);
	hear_once("x", b);
	hear("x", c);
	tell("x");
	tell("x");
	expect_calls("abcac");
}

Test(listeners, once_is_called_once_for_many_messages_of_one_turn)
{
	hear_once("x", a);
	hear("x", b);
	say("x");
	say("x");
	say("x");
	turn();
	expect_calls("abbb");
}

static int
on_send_again(struct messenger *messenger, const struct message *message, void *arg)
{
	note(arg);
	return messenger_send_to_app(messenger, message->action, "again");
}

Test(listeners, once_is_called_once_though_it_sends_the_action_again)
{
	struct message got;

	cr_assert_eq(messenger_once(child, "x", on_send_again, a), 0);
	hear("x", b);
	tell("x");
	expect_calls("ab");
	take(&got);
	cr_assert_str_eq(got.data, "again");
	got = compose(ROLE_APP, "x", "again");
	say_message(&got);
	turn();
	expect_calls("b");
	expect_silence();
}

static int
on_once_more(struct messenger *messenger, const struct message *message, void *arg)
{
	note(arg);
	return messenger_once(messenger, message->action, on_once_more, arg);
}

Test(listeners, once_may_add_itself_again)
{
	int i;

	cr_assert_eq(messenger_once(child, "x", on_once_more, a), 0);
	for (i = 0; i < 3; i++)
		say("x");
	turn();
	expect_calls("aaa");
}

Test(listeners, removal_takes_the_most_recently_added_match)
{
	hear("x", a);
	hear("x", b);
	hear("x", a);
	hear("x", c);
	tell("x");
	expect_calls("abac");
	cr_assert_eq(messenger_remove_listener(child, "x", on_note, a), 0);
	tell("x");
	expect_calls("abc");
	cr_assert_eq(messenger_remove_listener(child, "x", on_note, a), 0);
	tell("x");
	expect_calls("bc");
	expect_error(ENOENT, messenger_remove_listener(child, "x", on_note, a));
}

Test(listeners, removed_before_the_first_message_is_not_called)
{
	hear("x", a);
	hear("x", b);
	cr_assert_eq(messenger_remove_listener(child, "x", on_note, a), 0);
	expect_error(ENOENT, messenger_remove_listener(child, "x", on_note, a));
	tell("x");
	expect_calls("b");
}

Test(listeners, once_can_be_removed_and_on_and_once_are_alike_then)
{
	hear("x", a);
	hear_once("x", a);
	tell("y");
	cr_assert_eq(messenger_remove_listener(child, "x", on_note, a), 0);
	tell("x");
	tell("x");
	expect_calls("aa");
}

/* What a listener does to the list while it is called. */
struct change {
	char *name;
	const char *action; /* of the listener that is added or removed */
	const char *remove; /* the argument of the one to remove, or NULL */
	int add;            /* how many are added */
	char *what;         /* the argument of the added ones */
};

static int
on_change(struct messenger *messenger, const struct message *message UNUSED, void *arg)
{
	struct change *change = arg;
	char *removed = change->remove != NULL ? change->remove[0] == 'b' ? b : c : NULL;

	note(change->name);
	if (removed != NULL)
		cr_assert_eq(messenger_remove_listener(messenger, change->action, on_note, removed),
		             0);
	change->remove = NULL; /* only once */
	while (change->add > 0 && change->add--)
		cr_assert_eq(messenger_on(messenger, change->action, on_note, change->what), 0);
	return 0;
}

static void
hear_change(const char *action, struct change *change)
{
	cr_assert_eq(messenger_on(child, action, on_change, change), 0);
}

Test(listeners, added_by_a_listener_counts_from_the_next_message)
{
	struct change change = {.name = a, .action = "x", .add = 1, .what = c};

	hear_change("x", &change);
	hear("x", b);
	say("x");
	say("x");
	turn();
	expect_calls("ababc");
}

/* The list is moved while it is walked over. */
Test(listeners, a_hundred_added_by_a_listener)
{
	struct change change = {.name = a, .action = "x", .add = 100, .what = c};

	hear_change("x", &change);
	hear("x", b);
	tell("x");
	expect_calls("ab");
	tell("x");
	cr_assert_eq(strlen(calls), 102);
	cr_assert_eq(strspn(calls + 2, "c"), 100);
}

Test(listeners, added_for_this_action_by_one_that_hears_everything)
{
	struct change change = {.name = a, .action = "x", .add = 1, .what = b};

	hear_change(NULL, &change);
	tell("x");
	expect_calls("a");
	tell("x");
	expect_calls("ab");
}

Test(listeners, one_that_hears_everything_added_while_a_message_is_delivered)
{
	struct change change = {.name = a, .action = NULL, .add = 1, .what = b};

	hear_change("x", &change);
	say("x");
	say("y");
	turn();
	expect_calls("ab");
}

Test(listeners, removed_by_an_earlier_listener_is_still_called_for_this_message)
{
	struct change change = {.name = a, .action = "x", .remove = "b"};

	hear_change("x", &change);
	hear("x", b);
	hear("x", c);
	say("x");
	say("x");
	turn();
	expect_calls("abcac");
}

Test(listeners, removed_by_one_that_hears_everything_is_still_called_for_this_message)
{
	struct change change = {.name = a, .action = "x", .remove = "b"};

	hear("x", b);
	hear_change(NULL, &change);
	tell("x");
	tell("x");
	expect_calls("aba");
}

Test(listeners, removed_by_a_later_listener)
{
	struct change change = {.name = a, .action = "x", .remove = "b"};

	hear("x", b);
	hear_change("x", &change);
	hear("x", c);
	tell("x");
	tell("x");
	expect_calls("bacac");
}

Test(listeners, once_removed_by_an_earlier_listener_is_still_called)
{
	struct change change = {.name = a, .action = "x", .remove = "b"};

	hear_change("x", &change);
	hear_once("x", b);
	tell("x");
	tell("x");
	expect_calls("aba");
}

Test(listeners, added_and_removed_by_the_same_listener_is_never_called)
{
	struct change add = {.name = a, .action = "x", .add = 1, .what = c};
	struct change drop = {.name = b, .action = "x", .remove = "c"};

	hear_change("x", &add);
	hear_change("x", &drop);
	tell("x");
	tell("x");
	expect_calls("abab");
}

static int
on_remove_self(struct messenger *messenger, const struct message *message, void *arg)
{
	note(arg);
	cr_assert_eq(messenger_remove_listener(messenger, message->action, on_remove_self, arg), 0);
	expect_error(ENOENT,
	             messenger_remove_listener(messenger, message->action, on_remove_self, arg));
	return 0;
}

Test(listeners, removed_by_itself)
{
	hear("x", a);
	cr_assert_eq(messenger_on(child, "x", on_remove_self, b), 0);
	hear("x", c);
	say("x");
	say("x");
	turn();
	expect_calls("abcac");
}

Test(listeners, a_thousand_actions)
{
	static int heard[1000];
	char action[32];
	int i, j;

	for (i = 0; i < 1000; i++) {
		snprintf(action, sizeof action, "action-%d", i); /* the messenger keeps a copy */
		cr_assert_eq(messenger_on(child, action, on_count, &heard[i]), 0);
	}
	for (i = 999; i >= 0; i--) {
		snprintf(action, sizeof action, "action-%d", i);
		tell(action);
		for (j = 0; j < 1000; j++)
			cr_assert_eq(heard[j], j >= i, "%s called listener %d", action, j);
	}
}

/* The same 32 bits of FNV-1a: what is heard must be the name, not the hash. */
Test(listeners, actions_whose_hashes_collide)
{
	hear("declinate", a);
	hear("costarring", c);
	tell("macallums");
	tell("liquid");
	expect_calls("");
	hear("macallums", b);
	hear("liquid", d);
	tell("declinate");
	tell("macallums");
	tell("declinate");
	tell("costarring");
	tell("liquid");
	expect_calls("abacd");
}

Test(listeners, an_action_that_is_the_start_of_another)
{
	hear("egg-p", a);
	hear("egg", b);
	hear("egg-ping", c);
	tell("egg-p");
	tell("egg");
	tell("egg-ping");
	tell("egg-pi");
	tell("eg");
	tell("egg-p");
	expect_calls("abca");
}

Test(listeners, of_everything_are_called_before_the_others)
{
	hear("x", c);
	hear(NULL, a);
	hear("x", d);
	hear(NULL, b);
	tell("x");
	expect_calls("abcd");
	tell("unknown");
	expect_calls("ab");
}

Test(listeners, of_everything_hear_an_empty_action_and_no_other_does)
{
	hear(NULL, a);
	hear("x", b);
	tell("");
	tell_from(ROLE_APP, NULL, "{}");
	expect_calls("aa");
}

Test(listeners, of_everything_can_be_once_and_can_be_removed)
{
	expect_error(ENOENT, messenger_remove_listener(child, NULL, on_note, a));
	hear(NULL, a);
	hear_once(NULL, b);
	tell("x");
	tell("y");
	expect_calls("aba");
	cr_assert_eq(messenger_remove_listener(child, NULL, on_note, a), 0);
	tell("x");
	expect_calls("");
}

Test(listeners, an_action_without_a_listener_is_ignored)
{
	tell("x");
	hear("x", a);
	tell("y");
	tell("x");
	expect_calls("a");
}

/* D6: an emitter throws for an 'error' without a listener; a messenger does not. */
Test(listeners, no_action_has_a_special_meaning)
{
	static const char *const actions[] = {"error", "egg-ready", "newListener", "message"};
	size_t i;

	for (i = 0; i < sizeof actions / sizeof actions[0]; i++) {
		tell_from(ROLE_APP, actions[i], "{}");
		hear(actions[i], a);
		tell_from(ROLE_APP, actions[i], "{}");
		expect_calls("a");
	}
	cr_assert_eq(messenger_send_to_app(child, "error", NULL), 0);
	expect("error", ROLE_APP, 0, NULL);
}

/* ---- listeners: what they are handed ------------------------------------- */

static struct message wanted_message;

static int
on_compare(struct messenger *messenger, const struct message *message, void *arg)
{
	cr_assert_eq(messenger, child);
	cr_assert_str_eq(message->action, wanted_message.action);
	cr_assert_eq(message->from, wanted_message.from);
	cr_assert_eq(message->to, wanted_message.to);
	cr_assert_eq(message->receiver_pid, wanted_message.receiver_pid);
	cr_assert_eq(message->handle, -1);
	cr_assert_eq(message->data == NULL, wanted_message.data == NULL);
	cr_assert_eq(message->data_length, wanted_message.data_length);
	if (message->data != NULL) {
		cr_assert_eq(memcmp(message->data, wanted_message.data, message->data_length), 0);
		cr_assert_eq(message->data[message->data_length], '\0');
	}
	return on_note(messenger, message, arg);
}

Test(listeners, are_handed_from_to_and_receiver_pid)
{
	enum role from, to;

	cr_assert_eq(messenger_on(child, "x", on_compare, a), 0);
	for (from = ROLE_NONE; from <= ROLE_APP; from++)
		for (to = ROLE_NONE; to <= ROLE_APP; to++) {
			wanted_message = compose(from, "x", "{}");
			wanted_message.to = to;
			wanted_message.receiver_pid = (pid_t)from * 100000 + (pid_t)to;
			say_message(&wanted_message);
			turn();
		}
	cr_assert_eq(strlen(calls), 25);
}

static void
say_data(const char *data, size_t length)
{
	wanted_message = compose(ROLE_AGENT, "x", data);
	wanted_message.data_length = length;
	say_message(&wanted_message);
	turn();
}

Test(listeners, are_handed_data_undefined_empty_and_with_any_byte)
{
	cr_assert_eq(messenger_on(child, "x", on_compare, a), 0);
	say_data(NULL, 0);
	say_data("", 0);
	say_data("{\"a\":1}", 7);
	say_data("{\0\xff\n}", 5);
	expect_calls("aaaa");
}

/* Byte number n of the data of a message of that length. */
static char
byte_of(size_t length, size_t n)
{
	return (char)('a' + (length + n / 7) % 26);
}

static int
on_compare_bytes(struct messenger *messenger UNUSED, const struct message *message, void *arg)
{
	const size_t *wanted = *(size_t **)arg;
	size_t i;

	cr_assert_eq(message->data_length, *wanted, "%zu bytes came", message->data_length);
	for (i = 0; i < *wanted; i++)
		if (message->data[i] != byte_of(*wanted, i))
			cr_assert_fail("byte %zu of %zu", i, *wanted);
	cr_assert_eq(message->data[i], '\0');
	++*(size_t **)arg;
	return 0;
}

/* In order and whole, though far more than one read takes. */
Test(listeners, hear_messages_of_every_size_in_order)
{
	static size_t sizes[] = {0,      1,     MESSAGE_DATA_MAX,      3,     65536,
	                         262144, 5,     CHANNEL_READ_SIZE - 1, 7,     CHANNEL_READ_SIZE + 1,
	                         100000, 99999, MESSAGE_DATA_MAX,      16384, 0};
	static const size_t count = sizeof sizes / sizeof sizes[0];
	size_t *heard = sizes, i, n;
	char *data = malloc(MESSAGE_DATA_MAX);
	struct message message;

	cr_assert_not_null(data);
	cr_assert_eq(messenger_on(child, "x", on_compare_bytes, &heard), 0);
	for (i = 0; i < count; i++) {
		for (n = 0; n < sizes[i]; n++)
			data[n] = byte_of(sizes[i], n);
		message = compose(ROLE_AGENT, "x", "");
		message.data = data;
		message.data_length = sizes[i];
		cr_assert_eq(sendmessage(&master, &message), 0);
	}
	turn_until(heard == sizes + count);
	free(data);
}

/* A message whose bytes come one by one is heard when it is complete. */
Test(listeners, hear_a_message_that_comes_byte_by_byte)
{
	static const unsigned char frame[] = {0, 0, 0, 13,  ROLE_AGENT, ROLE_APP, 1,   1, 0,
	                                      0, 0, 0, 'x', 0,          '{',      '}', 0};
	size_t i;

	wanted_message = compose(ROLE_AGENT, "x", "{}");
	cr_assert_eq(messenger_on(child, "x", on_compare, a), 0);
	for (i = 0; i < sizeof frame; i++) {
		expect_calls("");
		cr_assert_eq(send(master.descriptor, frame + i, 1, 0), 1);
		turn();
	}
	expect_calls("a");
}

/* ---- listeners: handles -------------------------------------------------- */

static int kept = -1; /* a handle that was duplicated */

static int
on_keep(struct messenger *messenger UNUSED, const struct message *message, void *arg)
{
	note(arg);
	cr_assert_geq(message->handle, 0);
	cr_assert((fcntl(message->handle, F_GETFD) & FD_CLOEXEC) != 0);
	kept = dup(message->handle);
	return 0;
}

/* The master sends a pipe's end, which is then closed here. Returns the other. */
static int
say_handle(const char *action)
{
	struct message message = compose(ROLE_AGENT, action, NULL);
	int ends[2];

	cr_assert_eq(pipe(ends), 0);
	message.handle = ends[0];
	say_message(&message);
	close(ends[0]);
	return ends[1];
}

Test(listeners, a_handle_is_closed_after_delivery)
{
	int before = open_descriptors();
	static int heard;

	cr_assert_eq(messenger_on(child, "x", on_count, &heard), 0);
	close(say_handle("x"));
	turn();
	cr_assert_eq(heard, 1);
	cr_assert_eq(open_descriptors(), before);
}

Test(listeners, a_handle_that_nobody_hears_is_closed)
{
	int before = open_descriptors();

	close(say_handle("x"));
	close(say_handle(""));
	turn();
	turn();
	cr_assert_eq(open_descriptors(), before);
}

Test(listeners, a_handle_can_be_kept_with_dup)
{
	int before = open_descriptors(), other;
	char byte;

	cr_assert_eq(messenger_on(child, "x", on_keep, a), 0);
	hear("x", b);
	other = say_handle("x");
	turn();
	expect_calls("ab");
	cr_assert_eq(open_descriptors(), before + 2);
	cr_assert_eq(write(other, "!", 1), 1);
	cr_assert_eq(read(kept, &byte, 1), 1);
	cr_assert_eq(byte, '!');
	close(other);
	close(kept);
}

/* ---- listeners: errors --------------------------------------------------- */

Test(listeners, einval_for_no_listener_and_for_actions_nobody_can_send)
{
	char action[MESSAGE_ACTION_MAX + 2];

	memset(action, 'a', sizeof action - 1);
	action[sizeof action - 1] = '\0';
	expect_error(EINVAL, messenger_on(child, "x", NULL, NULL));
	expect_error(EINVAL, messenger_on(child, NULL, NULL, NULL));
	expect_error(EINVAL, messenger_once(child, "x", NULL, NULL));
	expect_error(EINVAL, messenger_on(child, "", on_note, a));
	expect_error(EINVAL, messenger_once(child, "", on_note, a));
	expect_error(EINVAL, messenger_on(child, action, on_note, a));
	expect_error(EINVAL, messenger_once(child, action, on_note, a));
	action[MESSAGE_ACTION_MAX] = '\0';
	hear(action, b);
	tell(action);
	expect_calls("b");
}

Test(listeners, enoent_for_what_was_not_added)
{
	hear("x", a);
	tell("y");
	expect_error(ENOENT, messenger_remove_listener(child, "x", on_note, b));
	expect_error(ENOENT, messenger_remove_listener(child, "x", on_fail, a));
	expect_error(ENOENT, messenger_remove_listener(child, "y", on_note, a));
	expect_error(ENOENT, messenger_remove_listener(child, NULL, on_note, a));
	tell("x");
	expect_calls("a");
}

/* The pattern of a request and its reply: the names must not pile up. */
Test(listeners, a_once_for_each_of_many_actions_leaves_nothing_behind)
{
	char action[64];
	size_t before = 0;
	int i;

	for (i = 0; i < 20000; i++) {
		if (i == 100)
			before = bytes_allocated();
		snprintf(action, sizeof action, "reply-to-request-number-%d", i);
		hear_once(action, a);
		tell(action);
		expect_calls("a");
	}
	cr_assert_lt(bytes_allocated(), before + 100000);
}

/* ---- opids --------------------------------------------------------------- */

TestSuite(opids, .init = open_app, .fini = close_both);

static void
expect_opids_at(int line, size_t count, const pid_t *pids)
{
	size_t found = 99;
	const pid_t *opids = messenger_opids(child, &found);

	cr_assert_eq(found, count, "line %d: %zu pids", line, found);
	if (count > 0)
		cr_assert_eq(memcmp(opids, pids, count * sizeof *pids), 0, "line %d", line);
}

#define expect_opids(count, ...) expect_opids_at(__LINE__, count, (pid_t[]){__VA_ARGS__})

Test(opids, are_none_at_first)
{
	expect_opids(0, 0);
}

Test(opids, are_what_the_master_told_last)
{
	tell_pids("[101]");
	expect_opids(1, 101);
	tell_pids("[1,22,2147483647]");
	expect_opids(3, 1, 22, INT_MAX);
	tell_pids("[5,4]");
	expect_opids(2, 5, 4);
	tell_pids("[]");
	expect_opids(0, 0);
	tell_pids("[7,8,9]");
	expect_opids(3, 7, 8, 9);
}

static int
on_pids(struct messenger *messenger UNUSED, const struct message *message UNUSED, void *arg)
{
	note(arg);
	expect_opids(2, 31, 32);
	return 0;
}

Test(opids, are_updated_before_any_listener_runs)
{
	cr_assert_eq(messenger_on(child, NULL, on_pids, a), 0);
	cr_assert_eq(messenger_on(child, "egg-pids", on_pids, b), 0);
	tell_pids("[31,32]");
	expect_calls("ab");
}

Test(opids, from_anybody_but_the_master_are_a_message_like_any_other)
{
	static const enum role others[] = {ROLE_NONE, ROLE_PARENT, ROLE_AGENT, ROLE_APP};
	size_t i;

	hear("egg-pids", a);
	tell_pids("[1,2]");
	for (i = 0; i < sizeof others / sizeof others[0]; i++)
		tell_from(others[i], "egg-pids", "[666]");
	expect_calls("aaaaa");
	expect_opids(2, 1, 2);
}

Test(opids, other_actions_of_the_master_do_not_change_them)
{
	tell_pids("[1,2]");
	tell_from(ROLE_MASTER, "egg-pid", "[3]");
	tell_from(ROLE_MASTER, "egg-pids2", "[3]");
	tell_from(ROLE_MASTER, "", "[3]");
	expect_opids(2, 1, 2);
}

/* Whatever data comes, the pids can be sent to, or there are none. */
static void
expect_sane_opids(const char *data)
{
	size_t count, i;
	const pid_t *opids = messenger_opids(child, &count);

	for (i = 0; i < count; i++)
		cr_assert_gt(opids[i], 0, "%.60s: pid %d", data, opids[i]);
	cr_assert_eq(messenger_send_random(child, "x", NULL), count > 0 ? 0 : -1);
}

Test(opids, malformed_lists_do_no_harm)
{
	static const char *const lists[] = {NULL,    "",     "x",      "null",    "{}",     "[",
	                                    "]",     "[,",   "[1,",    "[1",      "[1,,2]", ",",
	                                    ",1,2",  "[[1]", "[\"1\"", "[1,x,2]", "[ 1 ",   "1,2",
	                                    "[1.5]", "[1e3", "[true]", "[,,,",    "[+",     "[ ]"};
	size_t i;

	for (i = 0; i < sizeof lists / sizeof lists[0]; i++) {
		tell_pids("[11,12,13]");
		tell_pids(lists[i]);
		expect_sane_opids(lists[i] != NULL ? lists[i] : "undefined");
	}
	tell_pids("[1,");
	expect_opids(1, 1);
	tell_pids("x");
	expect_opids(0, 0);
}

Test(opids, numbers_that_are_no_pids_are_none)
{
	static const char *const lists[] = {"[0]", "[-5]", "[4294967297]", "[99999999999999999999]",
	                                    "[-99999999999999999999]"};
	size_t i;

	for (i = 0; i < sizeof lists / sizeof lists[0]; i++) {
		tell_pids(lists[i]);
		expect_sane_opids(lists[i]);
		expect_opids(0, 0);
	}
}

Test(opids, a_huge_list)
{
	enum { COUNT = 50000 };
	char *list = malloc(COUNT * 12), *end = list;
	const pid_t *opids;
	size_t count, i;

	cr_assert_not_null(list);
	for (i = 1; i <= COUNT; i++)
		end += sprintf(end, "%c%zu", i == 1 ? '[' : ',', i);
	snprintf(end, 2, "]");
	tell_pids("[1,2,3]");
	tell_pids(list);
	free(list);
	turn_until((opids = messenger_opids(child, &count), count) == COUNT);
	for (i = 0; i < COUNT; i++)
		cr_assert_eq(opids[i], (pid_t)i + 1);
	tell_pids("[9]");
	expect_opids(1, 9);
}

/* ---- the loop: steps ----------------------------------------------------- */

TestSuite(loop, .init = open_app, .fini = close_both);

Test(loop, a_step_that_may_not_wait_does_not)
{
	int64_t start = clutch_now();

	after(DEADLINE, a);
	turn();
	cr_assert_lt(clutch_now() - start, DEADLINE / 2);
	expect_calls("");
}

Test(loop, a_step_waits_as_long_as_it_may)
{
	int64_t start = clutch_now();

	cr_assert_eq(messenger_step(child, 50), 1);
	cr_assert_geq(clutch_now() - start, 49);
	cr_assert_lt(clutch_now() - start, DEADLINE);
}

Test(loop, a_step_without_a_limit_wakes_for_a_timer)
{
	after(20, a);
	cr_assert_eq(messenger_step(child, -1), 1);
	expect_calls("a");
}

Test(loop, a_step_with_a_limit_wakes_for_a_timer)
{
	int64_t start = clutch_now();

	after(20, a);
	cr_assert_eq(messenger_step(child, 2 * DEADLINE), 1);
	cr_assert_lt(clutch_now() - start, DEADLINE);
	expect_calls("a");
}

Test(loop, a_step_wakes_for_its_limit_before_a_timer)
{
	int64_t start = clutch_now();

	after(2 * DEADLINE, a);
	cr_assert_eq(messenger_step(child, 10), 1);
	cr_assert_lt(clutch_now() - start, DEADLINE);
	expect_calls("");
}

Test(loop, a_step_without_a_limit_wakes_for_a_message_and_for_a_descriptor)
{
	int ends[2];

	hear("x", a);
	say("x");
	cr_assert_eq(messenger_step(child, -1), 1);
	expect_calls("a");
	full_pipe(ends);
	cr_assert_eq(messenger_watch(child, ends[0], POLLIN, watch_note, b), 0);
	cr_assert_eq(messenger_step(child, -1), 1);
	expect_calls("b");
	close_pipe(ends);
}

static void
on_alarm(int number UNUSED)
{
}

/* Nor does the step report a descriptor that was ready in the turn before. */
Test(loop, a_signal_ends_a_step_and_is_no_error)
{
	struct itimerval every = {{0, 20000}, {0, 20000}}, never = {{0, 0}, {0, 0}};
	struct sigaction action = {.sa_handler = on_alarm};
	int64_t start = clutch_now();
	int ends[2];

	full_pipe(ends);
	cr_assert_eq(messenger_watch(child, ends[0], POLLIN, watch_drain, a), 0);
	turn();
	expect_calls("a");
	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &every, NULL);
	cr_assert_eq(messenger_step(child, 2 * DEADLINE), 1);
	setitimer(ITIMER_REAL, &never, NULL);
	cr_assert_lt(clutch_now() - start, DEADLINE);
	expect_calls("");
	close_pipe(ends);
}

/* ---- the loop: descriptors ----------------------------------------------- */

static struct {
	int descriptor;
	short revents;
} seen;

static int
watch_see(struct messenger *messenger, int descriptor, short revents, void *arg)
{
	cr_assert_eq(messenger, child);
	seen.descriptor = descriptor;
	seen.revents = revents;
	note(arg);
	return 0;
}

static void
watch(int descriptor, short events, messenger_watcher watcher, void *arg)
{
	cr_assert_eq(messenger_watch(child, descriptor, events, watcher, arg), 0);
}

Test(loop, watch_calls_when_there_is_something_to_read)
{
	int ends[2];
	char byte;

	cr_assert_eq(pipe(ends), 0);
	watch(ends[0], POLLIN, watch_see, a);
	turn();
	expect_calls("");
	cr_assert_eq(write(ends[1], "x", 1), 1);
	turn();
	turn();
	expect_calls("aa"); /* as long as it is there */
	cr_assert_eq(seen.descriptor, ends[0]);
	cr_assert_eq(seen.revents, POLLIN);
	cr_assert_eq(read(ends[0], &byte, 1), 1);
	turn();
	expect_calls("");
	close_pipe(ends);
}

Test(loop, watch_calls_when_there_is_room_to_write)
{
	int ends[2];

	cr_assert_eq(pipe(ends), 0);
	watch(ends[1], POLLOUT, watch_see, a);
	turn();
	expect_calls("a");
	cr_assert_eq(seen.descriptor, ends[1]);
	cr_assert_eq(seen.revents, POLLOUT);
	close_pipe(ends);
}

Test(loop, watch_calls_for_a_hangup_unasked)
{
	int ends[2];

	cr_assert_eq(pipe(ends), 0);
	watch(ends[0], 0, watch_see, a);
	turn();
	expect_calls("");
	close(ends[1]);
	turn();
	expect_calls("a");
	cr_assert_eq(seen.revents, POLLHUP);
	close(ends[0]);
	turn();
	expect_calls("a");
	cr_assert_eq(seen.revents, POLLNVAL);
}

Test(loop, watching_again_replaces_events_watcher_and_argument)
{
	int ends[2];

	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
	watch(ends[0], POLLIN, watch_fail, a);
	watch(ends[0], POLLOUT, watch_see, b);
	turn();
	expect_calls("b");
	cr_assert_eq(seen.revents, POLLOUT);
	watch(ends[0], POLLIN, watch_see, c);
	turn();
	expect_calls("");
	cr_assert_eq(messenger_unwatch(child, ends[0]), 0);
	expect_error(ENOENT, messenger_unwatch(child, ends[0]));
	close_pipe(ends);
}

Test(loop, watch_and_unwatch_errors)
{
	int ends[2];

	full_pipe(ends);
	expect_error(EINVAL, messenger_watch(child, -1, POLLIN, watch_note, a));
	expect_error(EINVAL, messenger_watch(child, ends[0], POLLIN, NULL, a));
	expect_error(ENOENT, messenger_unwatch(child, ends[0]));
	expect_error(ENOENT, messenger_unwatch(child, -1));
	watch(ends[0], POLLIN, watch_note, b);
	expect_error(ENOENT, messenger_unwatch(child, ends[1]));
	expect_error(ENOENT, messenger_unwatch(child, -1));
	turn();
	expect_calls("b");
	close_pipe(ends);
}

/* Pipes with something in them, all watched. */
static int pipes[100][2];

static void
watch_pipes(int count, messenger_watcher watcher)
{
	static char names[100][2];
	int i;

	for (i = 0; i < count; i++) {
		full_pipe(pipes[i]);
		names[i][0] = (char)('a' + i % 26);
		watch(pipes[i][0], POLLIN, watcher, names[i]);
	}
}

static void
close_pipes(int count)
{
	while (count-- > 0)
		close_pipe(pipes[count]);
}

static int
unwatch_self(struct messenger *messenger, int descriptor, short revents UNUSED, void *arg)
{
	note(arg);
	cr_assert_eq(messenger_unwatch(messenger, descriptor), 0);
	expect_error(ENOENT, messenger_unwatch(messenger, descriptor));
	return 0;
}

Test(loop, a_watcher_can_unwatch_itself)
{
	watch_pipes(4, unwatch_self);
	watch(pipes[2][0], POLLIN, watch_note, e); /* this one does not */
	turn();
	expect_calls("abed");
	cr_assert_eq(child->watch_count, 2, "gaps stay");
	turn();
	expect_calls("e");
	close_pipes(4);
}

/* Unwatch all others, those that were called already and those to come. */
static int
unwatch_others(struct messenger *messenger, int descriptor, short revents UNUSED, void *arg)
{
	int i;

	note(arg);
	for (i = 0; i < 4; i++)
		if (pipes[i][0] != descriptor)
			cr_assert_eq(messenger_unwatch(messenger, pipes[i][0]), 0);
	return 0;
}

Test(loop, a_watcher_can_unwatch_others_which_are_not_called_any_more)
{
	watch_pipes(4, watch_note);
	watch(pipes[1][0], POLLIN, unwatch_others, e);
	turn();
	expect_calls("ae");
	watch(pipes[1][0], POLLIN, watch_note, b);
	turn();
	expect_calls("b");
	close_pipes(4);
}

static int
on_unwatch(struct messenger *messenger, const struct message *message UNUSED, void *arg)
{
	return messenger_unwatch(messenger, *(int *)arg);
}

Test(loop, a_listener_can_unwatch_what_is_ready_in_this_turn)
{
	watch_pipes(3, watch_note);
	cr_assert_eq(messenger_on(child, "x", on_unwatch, &pipes[1][0]), 0);
	tell("x");
	expect_calls("ac");
	close_pipes(3);
}

static int
watch_more(struct messenger *messenger, int descriptor, short revents UNUSED, void *arg)
{
	note(arg);
	cr_assert_eq(messenger_unwatch(messenger, descriptor), 0);
	watch_pipes(99, watch_note); /* so many that the array is moved */
	return 0;
}

Test(loop, what_a_watcher_watches_counts_from_the_next_turn)
{
	int first[2], last[2];

	full_pipe(first);
	full_pipe(last);
	watch(first[0], POLLIN, watch_more, a);
	watch(last[0], POLLIN, watch_note, b);
	turn();
	expect_calls("ab");
	turn();
	cr_assert_eq(strlen(calls), 100);
	cr_assert_eq(strncmp(calls, "babcdef", 7), 0);
	close_pipes(99);
	close_pipe(first);
	close_pipe(last);
}

/* Close a descriptor that is ready, too, and watch another of that number. */
static int
watch_reuse(struct messenger *messenger, int descriptor UNUSED, short revents UNUSED, void *arg)
{
	int empty[2];

	note(arg);
	cr_assert_eq(messenger_unwatch(messenger, pipes[1][0]), 0);
	cr_assert_eq(pipe(empty), 0);
	cr_assert_eq(dup2(empty[0], pipes[1][0]), pipes[1][0]);
	watch(pipes[1][0], POLLIN, watch_note, e);
	cr_assert_eq(messenger_unwatch(messenger, pipes[0][0]), 0);
	close(empty[0]); /* the writing end stays open: no hangup */
	return 0;
}

Test(loop, a_descriptor_that_took_the_number_of_another_does_not_inherit_its_events)
{
	watch_pipes(3, watch_note);
	watch(pipes[0][0], POLLIN, watch_reuse, d);
	turn();
	expect_calls("dc");
	turn();
	expect_calls("c");
	close_pipes(3);
}

Test(loop, a_hundred_watches_are_called_in_one_turn)
{
	int i;

	watch_pipes(100, watch_note);
	turn();
	cr_assert_eq(strlen(calls), 100);
	for (i = 0; i < 100; i++)
		cr_assert_eq(calls[i], 'a' + i % 26);
	calls[0] = '\0';
	for (i = 0; i < 100; i += 2)
		cr_assert_eq(messenger_unwatch(child, pipes[i][0]), 0);
	turn();
	cr_assert_eq(strlen(calls), 50);
	for (i = 0; i < 50; i++)
		cr_assert_eq(calls[i], 'a' + (2 * i + 1) % 26);
	close_pipes(100);
}

/* ---- the loop: timers ---------------------------------------------------- */

/* Let the clock go on while nothing turns the loop, so that timers are late. */
static void
let_pass(int milliseconds)
{
	int64_t until = clutch_now() + milliseconds;

	while (clutch_now() < until)
		poll(NULL, 0, (int)(until - clutch_now()));
}

static void
let_timers_end(void)
{
	while (messenger_timeout(child) != -1)
		turn();
	calls[0] = '\0';
}

/* They are set within 5 ms, or another order would be right. */
Test(loop, timers_are_called_in_order_of_being_due)
{
	int64_t start;

	do {
		let_timers_end();
		start = clutch_now();
		after(30, e);
		after(10, c);
		after(20, d);
		after(0, a);
		after(5, b);
	} while (clutch_now() - start >= 5);
	let_pass(31);
	turn();
	expect_calls("abcde");
	turn();
	expect_calls("");
}

/* Clearing a timer moves another one into its place, so the order is not that of storage. */
Test(loop, timers_due_at_the_same_time_are_called_in_order_of_setting)
{
	int i, id;
	int64_t start;

	do {
		let_timers_end();
		start = clutch_now();
		id = after(2, e);
		after(2, a);
		after(2, b);
		after(2, c);
		after(2, d);
	} while (clutch_now() != start);
	cr_assert_eq(messenger_clear_timeout(child, id), 0);
	let_pass(3);
	turn();
	expect_calls("abcd");
	for (i = 0; i < 4; i++)
		turn();
	expect_calls("");
}

/* When it is due, as far as the test can tell: it may be interrupted, too. */
struct many {
	int64_t earliest, latest;
	bool called;
};

static int
timer_many(struct messenger *messenger UNUSED, void *arg)
{
	static int64_t last; /* the timers before were due then, or later */
	struct many *timer = arg;

	cr_assert_not(timer->called, "a timeout was called twice");
	cr_assert_geq(timer->latest, last, "late by %d ms", (int)(last - timer->latest));
	timer->called = true;
	if (timer->earliest > last)
		last = timer->earliest;
	note(a);
	return 0;
}

Test(loop, a_thousand_timers)
{
	static struct many timers[1000];
	int i, wait;

	for (i = 0; i < 1000; i++) {
		wait = i * 37 % 50;
		timers[i].earliest = clutch_now() + wait;
		cr_assert_gt(messenger_set_timeout(child, wait, timer_many, &timers[i]), 0);
		timers[i].latest = clutch_now() + wait;
	}
	turn_until(messenger_timeout(child) == -1);
	cr_assert_eq(strlen(calls), 1000);
}

static int
timer_again(struct messenger *messenger, void *arg)
{
	note(arg);
	return messenger_set_timeout(messenger, 0, timer_again, arg) > 0 ? 0 : -1;
}

Test(loop, a_timeout_of_0_set_by_a_timer_comes_in_a_later_step)
{
	int i;

	cr_assert_gt(messenger_set_timeout(child, 0, timer_again, a), 0);
	for (i = 0; i < 1000; i++) {
		turn();
		expect_calls("a");
	}
}

/* When exactly the next timer is due: the clock did not tick while we asked. */
static int64_t
next_due(void)
{
	int64_t before;
	int left;

	do {
		before = clutch_now();
		left = messenger_timeout(child);
	} while (clutch_now() != before);
	cr_assert_geq(left, 0);
	return left > 0 ? before + left : -1; /* -1: overdue, it is not known since when */
}

Test(loop, an_interval_does_not_drift_though_each_call_is_late)
{
	enum { PERIOD = 40 };
	int64_t first, due;
	int i;

	cr_assert_gt(messenger_set_interval(child, PERIOD, timer_note, a), 0);
	first = next_due();
	for (i = 0; i < 6; i++) {
		let_pass(messenger_timeout(child) + 7);
		turn();
		due = next_due();
		if (due != -1)
			cr_assert_eq((due - first) % PERIOD, 0, "%d ms off",
			             (int)((due - first) % PERIOD));
	}
	cr_assert_geq(strlen(calls), 6);
}

Test(loop, an_interval_that_is_late_by_several_periods_is_called_once)
{
	enum { PERIOD = 40 };
	int64_t first, due;

	cr_assert_gt(messenger_set_interval(child, PERIOD, timer_note, a), 0);
	first = next_due();
	let_pass(4 * PERIOD + 7);
	turn();
	expect_calls("a");
	due = next_due();
	if (due != -1) {
		cr_assert_eq((due - first) % PERIOD, 0);
		cr_assert_geq(due - first, 4 * PERIOD);
	}
}

Test(loop, an_interval_goes_on_and_a_timeout_does_not)
{
	cr_assert_gt(messenger_set_interval(child, 2, timer_note, a), 0);
	after(0, b);
	turn();
	calls[0] = '\0'; /* now b was called */
	turn_until(strlen(calls) >= 5);
	cr_assert_eq(strspn(calls, "a"), strlen(calls));
}

struct clearing {
	char *name;
	int id;
	int error; /* of clear_timeout, or 0 */
};

static int
timer_clear(struct messenger *messenger, void *arg)
{
	const struct clearing *clearing = arg;

	note(clearing->name);
	if (clearing->error != 0)
		expect_error(clearing->error, messenger_clear_timeout(messenger, clearing->id));
	else
		cr_assert_eq(messenger_clear_timeout(messenger, clearing->id), 0);
	return 0;
}

Test(loop, an_interval_can_clear_itself)
{
	struct clearing self = {.name = a};

	self.id = messenger_set_interval(child, 1, timer_clear, &self);
	turn_until(calls[0] != '\0');
	cr_assert_eq(messenger_timeout(child), -1);
	let_pass(3);
	turn();
	expect_calls("a");
	expect_error(ENOENT, messenger_clear_timeout(child, self.id));
}

Test(loop, a_timeout_that_is_called_is_not_pending_any_more)
{
	struct clearing self = {.name = a, .error = ENOENT};

	self.id = messenger_set_timeout(child, 0, timer_clear, &self);
	after(0, b);
	let_pass(2);
	turn();
	expect_calls("ab");
}

Test(loop, a_timer_can_clear_another_that_is_due_as_well)
{
	struct clearing other = {.name = a}, interval = {.name = b};

	cr_assert_gt(messenger_set_timeout(child, 0, timer_clear, &other), 0);
	cr_assert_gt(messenger_set_timeout(child, 0, timer_clear, &interval), 0);
	after(0, c);
	other.id = after(0, d);
	interval.id = messenger_set_interval(child, 1, timer_note, e);
	let_pass(2);
	turn();
	expect_calls("abc");
	cr_assert_eq(messenger_timeout(child), -1);
}

Test(loop, timer_errors)
{
	int id = after(0, a);

	expect_error(EINVAL, messenger_set_timeout(child, -1, timer_note, a));
	expect_error(EINVAL, messenger_set_timeout(child, 0, NULL, a));
	expect_error(EINVAL, messenger_set_interval(child, -1, timer_note, a));
	expect_error(EINVAL, messenger_set_interval(child, 0, timer_note, a));
	expect_error(EINVAL, messenger_set_interval(child, 1, NULL, a));
	expect_error(ENOENT, messenger_clear_timeout(child, id + 1));
	expect_error(ENOENT, messenger_clear_timeout(child, 0));
	expect_error(ENOENT, messenger_clear_timeout(child, -1));
	cr_assert_eq(messenger_clear_timeout(child, id), 0);
	expect_error(ENOENT, messenger_clear_timeout(child, id));
	turn();
	expect_calls("");
}

/* At a thousand timers a second it takes 25 days until the ids begin anew. */
Test(loop, timers_go_on_when_their_ids_begin_anew)
{
	int ids[5], i;

	child->timer_id = INT_MAX - 2;
	ids[0] = after(0, a);
	ids[1] = after(0, b);
	ids[2] = after(0, c);
	ids[3] = after(0, d);
	for (i = 1; i < 4; i++)
		cr_assert_neq(ids[i], ids[0]);
	let_pass(2);
	turn_until(messenger_timeout(child) == -1);
	cr_assert_eq(strlen(calls), 4);
}

Test(loop, an_id_that_is_pending_is_not_given_away_again)
{
	int id = after(DEADLINE, a);

	child->timer_id = id > 1 ? id - 1 : INT_MAX; /* all the others were given */
	cr_assert_neq(after(DEADLINE, b), id);
}

/* ---- the loop: callbacks that fail --------------------------------------- */

static void
expect_canceled(void)
{
	errno = 0;
	cr_assert_eq(messenger_step(child, 0), -1);
	cr_assert_eq(errno, ECANCELED);
}

/* All that one turn can have: two messages, two descriptors, two timers. */
static void
prepare_a_turn(messenger_listener listener, messenger_watcher watcher, messenger_timer timer)
{
	int i;

	reopen_as(ROLE_PARENT);
	watch_pipes(2, watch_note);
	watch(pipes[0][0], POLLIN, watcher, c);
	watch(pipes[1][0], POLLIN, watch_note, d);
	cr_assert_eq(messenger_on(child, "x", listener, a), 0);
	hear("x", b);
	say("x");
	say("x");
	i = messenger_set_timeout(child, 0, timer, e);
	cr_assert_gt(i, 0);
	after(0, a);
	let_pass(2);
}

static void
expect_canceled_after_a_whole_turn(void)
{
	expect_canceled();
	expect_calls("ababcdea");
	turn();
	close_pipes(2);
	calls[0] = '\0';
}

Test(loop, a_failing_listener_cancels_the_step_but_not_the_turn)
{
	prepare_a_turn(on_fail, watch_note, timer_note);
	expect_canceled_after_a_whole_turn();
}

Test(loop, a_failing_watcher_cancels_the_step_but_not_the_turn)
{
	prepare_a_turn(on_note, watch_fail, timer_note);
	expect_canceled();
	cr_assert_eq(messenger_unwatch(child, pipes[0][0]), 0);
	expect_calls("ababcdea");
	turn();
	expect_calls("d");
	close_pipes(2);
}

Test(loop, a_failing_timer_cancels_the_step_but_not_the_turn)
{
	prepare_a_turn(on_note, watch_note, timer_fail);
	expect_canceled_after_a_whole_turn();
}

Test(loop, everything_that_fails_in_one_turn_cancels_one_step)
{
	prepare_a_turn(on_fail, watch_note, timer_fail);
	expect_canceled_after_a_whole_turn();
}

static void
uncaught(struct messenger *messenger UNUSED, int result, const char *where)
{
	char line[64];

	snprintf(line, sizeof line, "<%s %d>", where, result);
	note(line);
}

Test(loop, a_role_catches_what_its_callbacks_let_fall)
{
	prepare_a_turn(on_fail, watch_fail, timer_fail);
	child->on_uncaught = uncaught;
	turn();
	expect_calls("a<listener of \"x\" 7>ba<listener of \"x\" 7>bc<watcher 8>de<timer 9>a");
	close_pipes(2);
}

static char told[MESSAGE_ACTION_MAX + 64];

static void
keep_where(struct messenger *messenger UNUSED, int result UNUSED, const char *where)
{
	snprintf(told, sizeof told, "%s", where);
}

Test(loop, the_longest_action_of_a_failing_listener_is_told_whole)
{
	char action[MESSAGE_ACTION_MAX + 1], expected[sizeof told];

	memset(action, 'x', sizeof action - 1);
	action[sizeof action - 1] = '\0';
	cr_assert_eq(messenger_on(child, action, on_fail, a), 0);
	child->on_uncaught = keep_where;
	tell(action);
	snprintf(expected, sizeof expected, "listener of \"%s\"", action);
	cr_assert_str_eq(told, expected);
}

/* ---- the loop: a socket that is full ------------------------------------- */

/* A reader that takes its time, until the end of the stream. When it has what it
 * wanted it says "enough", if anybody listens. */
static void
read_slowly(size_t wanted)
{
	struct message enough = compose(ROLE_AGENT, "enough", NULL);
	static char bytes[65536];
	struct pollfd wait = {.fd = master.descriptor, .events = POLLIN};
	size_t total = 0;
	ssize_t count;

	close(child->channel.descriptor);
	while (poll(&wait, 1, DEADLINE) == 1) {
		count = recv(master.descriptor, bytes, sizeof bytes, 0);
		if (count <= 0)
			_exit(count == 0 && total == wanted ? 0 : 1);
		total += (size_t)count;
		if (total == wanted && sendmessage(&master, &enough) == 0)
			channel_flush(&master);
		poll(NULL, 0, 2);
	}
	_exit(2);
}

/* The master is another process now, which expects this many bytes. */
static pid_t
fork_slow_reader(size_t wanted)
{
	pid_t reader = fork();

	cr_assert_geq(reader, 0);
	if (reader == 0)
		read_slowly(wanted);
	channel_close(&master);
	return reader;
}

/* The messenger is closed; did the reader get everything? */
static void
expect_satisfied(pid_t reader)
{
	int status;

	messenger_close(child);
	child = NULL;
	cr_assert_eq(waitpid(reader, &status, 0), reader);
	cr_assert_eq(status, 0, "the reader missed something");
}

Test(loop, a_step_without_a_limit_wakes_when_the_socket_takes_more)
{
	struct message message = compose(ROLE_NONE, "filler", NULL);
	pid_t reader = fork_slow_reader(40 * (message_size(&message) + 65536));
	int i;

	for (i = 0; i < 40; i++)
		cr_assert_eq(send_filler(i, 65536), 0);
	hear("enough", a);
	while (calls[0] == '\0')
		cr_assert_eq(messenger_step(child, -1), 1);
	expect_satisfied(reader);
}

/* ---- the loop: a child that sends in each turn --------------------------- */

Test(loop, who_speaks_and_then_looks_hears_at_once)
{
	hear("x", a);
	say("x");
	cr_assert_eq(messenger_send_to_agent(child, "y", NULL), 0);
	turn();
	expect_calls("a");
}

Test(loop, who_speaks_and_may_wait_hears_at_once)
{
	hear("x", a);
	say("x");
	cr_assert_eq(messenger_send_to_agent(child, "y", NULL), 0);
	cr_assert_eq(messenger_step(child, 1), 1);
	expect_calls("a");
}

Test(loop, timers_are_called_in_turns_that_do_not_listen)
{
	after(0, a);
	cr_assert_eq(messenger_send_to_agent(child, "y", NULL), 0);
	turn();
	expect_calls("a");
}

/* ---- the loop: draining -------------------------------------------------- */

Test(loop, drain_of_little_is_nothing)
{
	size_t pending;

	cr_assert_eq(send_filler(0, 1000), 0);
	pending = channel_pending(&child->channel);
	cr_assert_eq(messenger_drain(child, pending), 1);
	cr_assert_eq(channel_pending(&child->channel), pending);
	expect_silence();
}

/* When the queue is short, the call returns, and sleeps no more. */
Test(loop, drain_of_what_the_socket_takes_writes_it)
{
	cr_assert_eq(send_filler(0, 1000), 0);
	cr_assert_eq(messenger_drain(child, channel_pending(&child->channel) - 1), 1);
	cr_assert_eq(channel_pending(&child->channel), 0);
	take_fillers(1);
}

Test(loop, drain_waits_for_a_slow_reader)
{
	enum { FILLERS = 3 * CHANNEL_QUEUE_MAX / 65536 };
	struct message message = compose(ROLE_NONE, "filler", NULL);
	pid_t reader = fork_slow_reader(FILLERS * (message_size(&message) + 65536));
	int i;

	for (i = 0; i < FILLERS; i++) {
		cr_assert_eq(send_filler(i, 65536), 0);
		cr_assert_eq(messenger_drain(child, 100000), 1);
		cr_assert_leq(channel_pending(&child->channel), 100000);
	}
	hear("enough", a);
	cr_assert_eq(messenger_drain(child, 0), 1);
	while (calls[0] == '\0')
		cr_assert_eq(messenger_step(child, -1), 1);
	expect_satisfied(reader);
}

static int
timer_read(struct messenger *messenger UNUSED, void *arg)
{
	static char bytes[65536];

	note(arg);
	return recv(master.descriptor, bytes, sizeof bytes, MSG_DONTWAIT) == -1;
}

Test(loop, drain_turns_the_loop)
{
	fill();
	cr_assert_gt(messenger_set_interval(child, 1, timer_read, a), 0);
	cr_assert_eq(messenger_drain(child, CHANNEL_QUEUE_MAX / 2), 1);
	cr_assert_leq(channel_pending(&child->channel), CHANNEL_QUEUE_MAX / 2);
	cr_assert_neq(calls[0], '\0');
}

Test(loop, drain_ends_with_the_channel)
{
	fill();
	channel_close(&master);
	cr_assert_geq(messenger_drain(child, 0), 0);
	cr_assert_eq(messenger_step(child, -1), 0);
	cr_assert_eq(messenger_drain(child, 0), 1, "nothing is pending");
}

static int
timer_drain(struct messenger *messenger, void *arg)
{
	cr_assert_eq(messenger_drain(messenger, CHANNEL_QUEUE_MAX), 1);
	expect_error(EBUSY, messenger_drain(messenger, 0));
	note(arg);
	return 0;
}

Test(loop, drain_inside_a_callback_is_refused)
{
	fill();
	after(0, a);
	cr_assert_gt(messenger_set_timeout(child, 0, timer_drain, b), 0);
	turn();
	expect_calls("ab");
}

/* ---- the loop: inside a callback ----------------------------------------- */

static void
expect_busy(struct messenger *messenger, const char *what)
{
	expect_error(EBUSY, messenger_step(messenger, 0));
	expect_error(EBUSY, messenger_step(messenger, -1));
	note(what);
}

static int
on_step(struct messenger *messenger, const struct message *message UNUSED, void *arg)
{
	expect_busy(messenger, arg);
	return 0;
}

static int
watch_step(struct messenger *messenger, int descriptor UNUSED, short revents UNUSED, void *arg)
{
	expect_busy(messenger, arg);
	return 0;
}

static int
timer_step(struct messenger *messenger, void *arg)
{
	expect_busy(messenger, arg);
	return 0;
}

Test(loop, a_step_inside_a_callback_of_the_same_loop_is_refused)
{
	prepare_a_turn(on_step, watch_step, timer_step);
	turn();
	expect_calls("ababcdea");
	close_pipes(2);
}

/* A process has one read buffer, and what a listener is handed stands in it. */
static int
on_step_other(struct messenger *messenger, const struct message *message, void *arg)
{
	expect_busy(arg, "");
	return on_compare(messenger, message, a);
}

static int
timer_step_other(struct messenger *messenger UNUSED, void *arg)
{
	cr_assert_eq(messenger_step(arg, 0), 1);
	note(b);
	return 0;
}

/* A parent of two clusters hears the master of the other one. */
static struct messenger *
open_other(int *end)
{
	struct messenger *other;
	int ends[2];

	cr_assert_eq(channel_pair(ends), 0);
	other = messenger_open(ends[0], ROLE_PARENT);
	cr_assert_not_null(other);
	cr_assert_eq(messenger_on(other, "b", on_note, c), 0);
	*end = ends[1];
	return other;
}

Test(loop, a_step_of_another_loop_inside_a_listener_is_refused)
{
	int end, i;
	struct messenger *other = open_other(&end);

	cr_assert_eq(messenger_on(child, "x", on_step_other, other), 0);
	wanted_message = compose(ROLE_AGENT, "x", "{\"hello\":\"world\"}");
	for (i = 0; i < 5; i++)
		say_message(&wanted_message);
	turn();
	expect_calls("aaaaa");
	cr_assert_eq(messenger_step(other, 0), 1, "but afterwards it is not");
	close(end);
	messenger_close(other);
}

Test(loop, a_step_of_another_loop_inside_a_timer_is_a_step)
{
	int end;
	struct messenger *other = open_other(&end);

	hear("x", a);
	say("x");
	cr_assert_gt(messenger_set_timeout(child, 0, timer_step_other, other), 0);
	cr_assert_eq(send(end, "\0\0\0\13\3\4\0\1\0\0\0\0b\0\0", 15, 0), 15);
	turn();
	expect_calls("acb");
	close(end);
	messenger_close(other);
}

/* As fork_cluster does it: the forked process has nothing of its parent's, not
 * even what its parent has read and not heard. */
static int
on_fork(struct messenger *messenger UNUSED, const struct message *message UNUSED, void *arg)
{
	struct messenger *forked;
	int status, end;
	pid_t pid = fork();

	cr_assert_geq(pid, 0);
	if (pid == 0) {
		messenger_disown();
		forked = open_other(&end);
		_exit(messenger_step(forked, 0) == 1 ? 0 : 1);
	}
	cr_assert_eq(waitpid(pid, &status, 0), pid);
	cr_assert_eq(status, 0, "the forked process ended with %#x", (unsigned)status);
	note(arg);
	return 0;
}

Test(loop, a_process_that_a_listener_forks_has_a_loop_of_its_own)
{
	cr_assert_eq(messenger_once(child, "x", on_fork, a), 0);
	hear("x", b);
	say("x");
	say("x");
	say("x");
	turn();
	expect_calls("abbb");
}

Test(loop, a_listener_may_send_over_another_messenger)
{
	struct messenger *other;
	int ends[2], i;

	cr_assert_eq(channel_pair(ends), 0);
	other = messenger_open(ends[0], ROLE_PARENT);
	cr_assert_not_null(other);
	cr_assert_eq(messenger_on(child, "x", on_forward, other), 0);
	cr_assert_eq(messenger_on(child, "x", on_compare, a), 0);
	wanted_message = compose(ROLE_AGENT, "x", "{\"hello\":\"world\"}");
	for (i = 0; i < 5; i++)
		say_message(&wanted_message);
	turn();
	expect_calls("aaaaa");
	channel_close(&master);
	channel_init(&master, 0);
	cr_assert_eq(channel_attach(&master, ends[1]), 0);
	cr_assert_eq(messenger_step(other, 0), 1);
	for (i = 0; i < 5; i++) {
		struct message got;

		take(&got);
		cr_assert_str_eq(got.data, wanted_message.data);
	}
	messenger_close(other);
}

/* ---- the loop: the other end goes, or breaks the protocol ---------------- */

/* Descriptors and timers go on, and a step says 0, again and again. */
static void
expect_a_loop_without_channel(void)
{
	int ends[2];

	full_pipe(ends);
	calls[0] = '\0';
	watch(ends[0], POLLIN, watch_note, a);
	cr_assert_eq(messenger_step(child, 0), 0);
	cr_assert_eq(messenger_unwatch(child, ends[0]), 0);
	after(1, b);
	cr_assert_eq(messenger_step(child, -1), 0);
	cr_assert_eq(messenger_step(child, 0), 0);
	expect_calls("ab");
	close_pipe(ends);
}

Test(loop, all_that_was_sent_before_a_hangup_is_delivered)
{
	struct message message = compose(ROLE_AGENT, "x", NULL);
	static int heard;
	int i, result, turns = 0;

	cr_assert_eq(messenger_on(child, "x", on_count, &heard), 0);
	for (i = 0; i < 5000; i++)
		cr_assert_eq(sendmessage(&master, &message), 0);
	say_message(&message);
	channel_close(&master);
	while ((result = messenger_step(child, DEADLINE)) == 1)
		cr_assert_lt(turns++, 100);
	cr_assert_eq(result, 0);
	cr_assert_eq(heard, 5001);
	expect_a_loop_without_channel();
}

/* More than one read takes, and the rest only after the hangup. */
Test(loop, last_words_that_take_many_reads_are_delivered)
{
	struct message message = compose(ROLE_AGENT, "x", "");
	int result, sent = 0;
	static int heard;
	static char data[30000];

	message.data = data;
	message.data_length = sizeof data;
	cr_assert_eq(messenger_on(child, "x", on_count, &heard), 0);
	while (channel_pending(&master) == 0) {
		cr_assert_eq(sendmessage(&master, &message), 0);
		channel_flush(&master);
		sent++;
	}
	cr_assert_gt(sent, 2);
	channel_close(&master); /* in the middle of the last one */
	while ((result = messenger_step(child, DEADLINE)) == 1)
		;
	cr_assert_eq(result, 0);
	cr_assert_eq(heard, sent - 1);
}

/* read fails with ECONNRESET if our bytes were never read. */
Test(loop, last_words_of_a_master_that_did_not_read_are_delivered)
{
	hear("x", a);
	cr_assert_eq(messenger_send_to_agent(child, "y", NULL), 0);
	turn();
	say("x");
	say("x");
	channel_close(&master);
	while (messenger_step(child, DEADLINE) == 1)
		;
	expect_calls("aa");
	expect_a_loop_without_channel();
}

/* A write fails first, and the last words are behind it. */
Test(loop, last_words_are_delivered_though_a_write_failed)
{
	hear("x", a);
	say("x");
	channel_close(&master);
	cr_assert_eq(messenger_send_to_agent(child, "y", NULL), 0);
	while (messenger_step(child, DEADLINE) == 1)
		;
	expect_calls("a");
	expect_a_loop_without_channel();
}

Test(loop, a_hangup_in_the_middle_of_a_frame_is_a_hangup)
{
	hear("x", a);
	say("x");
	cr_assert_eq(send(master.descriptor, "\0\0\0\20half", 8, 0), 8);
	turn();
	channel_close(&master);
	cr_assert_eq(messenger_step(child, DEADLINE), 0);
	expect_calls("a");
}

/* A good frame, action "b" and no data, with one byte changed. */
static void
break_frame(size_t at, unsigned char value)
{
	unsigned char frame[] = {0, 0, 0, 11, ROLE_AGENT, ROLE_APP, 0, 1, 0, 0, 0, 0, 'b', 0, 0};

	frame[at] = value;
	cr_assert_eq(send(master.descriptor, frame, sizeof frame, 0), (ssize_t)sizeof frame);
}

Test(loop, a_broken_frame_is_eproto_and_then_the_channel_is_closed)
{
	static const struct {
		size_t at;
		unsigned char value;
	} broken[] = {{3, 10}, {3, 12},   {0, 0xff}, {FRAME_FROM, 5}, {FRAME_TO, 5}, {6, 4},
	              {6, 2},  {8, 0x80}, {12, 0},   {13, 'x'},       {14, 'x'},     {7, 2}};
	size_t i;
	int before;

	for (i = 0; i < sizeof broken / sizeof broken[0]; i++) {
		reopen_as(ROLE_APP);
		hear("a", a);
		hear("b", b);
		break_frame(FRAME_FROM, ROLE_PARENT); /* which is a good one */
		say("a");
		break_frame(broken[i].at, broken[i].value);
		say("a");
		before = open_descriptors();
		expect_error(EPROTO, messenger_step(child, DEADLINE));
		expect_calls("ba");
		cr_assert_eq(open_descriptors(), before - 1, "closed");
		cr_assert_eq(messenger_step(child, 0), 0);
		expect_error(EPIPE, messenger_send_to_app(child, "x", NULL));
		expect_a_loop_without_channel();
	}
}

/* ---- a foreign loop ------------------------------------------------------ */

TestSuite(foreign, .init = open_app, .fini = close_both);

Test(foreign, descriptors_are_the_channel_and_what_is_watched)
{
	struct pollfd set[5];
	int ends[2];

	cr_assert_eq(messenger_descriptors(child, NULL, 0), 1);
	full_pipe(ends);
	watch(ends[0], POLLIN, watch_note, a);
	watch(ends[1], POLLOUT, watch_note, b);
	memset(set, 0x55, sizeof set);
	cr_assert_eq(messenger_descriptors(child, set, 5), 3);
	cr_assert_eq(set[0].fd, child->channel.descriptor);
	cr_assert_eq(set[0].events, POLLIN);
	cr_assert_eq(set[1].fd, ends[0]);
	cr_assert_eq(set[1].events, POLLIN);
	cr_assert_eq(set[2].fd, ends[1]);
	cr_assert_eq(set[2].events, POLLOUT);
	cr_assert_eq(set[3].fd, 0x55555555);
	cr_assert_eq(messenger_unwatch(child, ends[0]), 0);
	cr_assert_eq(messenger_descriptors(child, set, 5), 2);
	cr_assert_eq(set[1].fd, ends[1]);
	close_pipe(ends);
}

Test(foreign, more_descriptors_than_there_is_room_for_are_counted)
{
	struct pollfd set[101];

	watch_pipes(100, watch_note);
	memset(set, 0x55, sizeof set);
	cr_assert_eq(messenger_descriptors(child, set, 3), 101);
	cr_assert_eq(set[2].fd, pipes[1][0]);
	cr_assert_eq(set[3].fd, 0x55555555);
	cr_assert_eq(messenger_descriptors(child, set, 101), 101);
	cr_assert_eq(set[100].fd, pipes[99][0]);
	close_pipes(100);
}

Test(foreign, the_channel_wants_to_write_only_when_something_waits)
{
	struct pollfd set[1];

	messenger_descriptors(child, set, 1);
	cr_assert_eq(set[0].events, POLLIN);
	cr_assert_eq(messenger_send_to_app(child, "x", NULL), 0);
	messenger_descriptors(child, set, 1);
	cr_assert_eq(set[0].events, POLLIN | POLLOUT);
	turn();
	messenger_descriptors(child, set, 1);
	cr_assert_eq(set[0].events, POLLIN);
	fill();
	messenger_descriptors(child, set, 1);
	cr_assert_eq(set[0].events, POLLIN | POLLOUT);
}

Test(foreign, a_closed_channel_is_not_polled)
{
	struct pollfd set[2];
	int ends[2];

	full_pipe(ends);
	watch(ends[0], POLLIN, watch_note, a);
	channel_close(&master);
	cr_assert_eq(messenger_step(child, 0), 0);
	cr_assert_eq(messenger_descriptors(child, set, 2), 1);
	cr_assert_eq(set[0].fd, ends[0]);
	close_pipe(ends);
}

/* poll(2) would return at once while the system has no memory: a loop would spin. */
Test(foreign, during_a_shortage_a_channel_is_left_alone)
{
	struct pollfd set[1];

	fill();
	child->channel.starved = true;
	cr_assert_eq(messenger_descriptors(child, set, 1), 1);
	cr_assert_eq(set[0].events, 0);
	cr_assert(messenger_timeout(child) > 0 && messenger_timeout(child) <= 10);
	after(1, a);
	cr_assert_leq(messenger_timeout(child), 1);
	cr_assert_eq(messenger_step(child, 0), 1);
	messenger_descriptors(child, set, 1);
	cr_assert_eq(set[0].events, POLLIN | POLLOUT, "the next turn tries again");
}

Test(foreign, timeout_is_the_time_until_the_next_timer)
{
	int id;

	cr_assert_eq(messenger_timeout(child), -1);
	after(DEADLINE, b);
	cr_assert_leq(messenger_timeout(child), DEADLINE);
	cr_assert_gt(messenger_timeout(child), 0);
	id = after(0, a);
	cr_assert_eq(messenger_timeout(child), 0);
	let_pass(2); /* overdue is not negative */
	cr_assert_eq(messenger_timeout(child), 0);
	cr_assert_eq(messenger_clear_timeout(child, id), 0);
	cr_assert_gt(messenger_timeout(child), 0);
}

static int
on_pong(struct messenger *messenger, const struct message *message UNUSED, void *arg)
{
	if (++*(int *)arg < 10)
		return messenger_send_to_agent(messenger, "ping", NULL);
	return 0;
}

/* The master's part of the foreign loop: a pong for each ping. */
static void
answer(void)
{
	struct message got, pong = compose(ROLE_AGENT, "pong", NULL);

	cr_assert_eq(channel_read(&master), PEER_ALIVE);
	while (channel_next(&master, &got) == 1) {
		cr_assert_str_eq(got.action, "ping");
		cr_assert_eq(sendmessage(&master, &pong), 0);
	}
	cr_assert_eq(channel_flush(&master), PEER_ALIVE);
}

/* One turn of a loop that is not the messenger's. */
static void
foreign_turn(void)
{
	struct pollfd set[8];
	size_t count = messenger_descriptors(child, set, 7);
	int timeout = messenger_timeout(child);

	cr_assert_lt(count, 7);
	set[count].fd = master.descriptor;
	set[count].events = POLLIN;
	if (timeout == -1 || timeout > DEADLINE)
		timeout = DEADLINE;
	cr_assert_geq(poll(set, (nfds_t)count + 1, timeout), 0);
	if ((set[count].revents & POLLIN) != 0)
		answer();
	turn();
}

Test(foreign, drives_messages_descriptors_and_timers)
{
	int64_t deadline = clutch_now() + DEADLINE;
	int ends[2];
	static int pongs;

	full_pipe(ends);
	cr_assert_eq(messenger_on(child, "pong", on_pong, &pongs), 0);
	watch(ends[0], POLLIN, watch_drain, a);
	after(20, b);
	cr_assert_eq(messenger_send_to_agent(child, "ping", NULL), 0);
	while (pongs < 10 || strlen(calls) < 2) {
		cr_assert_lt(clutch_now(), deadline, "%d pongs, calls %s", pongs, calls);
		foreign_turn();
	}
	cr_assert_eq(pongs, 10);
	expect_calls("ab");
	close_pipe(ends);
}

/* ---- closing ------------------------------------------------------------- */

TestSuite(closing, .init = open_app, .fini = close_both);

Test(closing, null_is_ignored)
{
	messenger_close(NULL);
}

Test(closing, what_was_sent_is_written_to_a_slow_reader)
{
	struct message message = compose(ROLE_NONE, "filler", NULL);
	pid_t reader = fork_slow_reader(32 * (message_size(&message) + 65536));
	int i;

	for (i = 0; i < 32; i++)
		cr_assert_eq(send_filler(i, 65536), 0);
	expect_satisfied(reader);
}

Test(closing, a_few_messages_are_written_without_a_step)
{
	struct message got;

	cr_assert_eq(messenger_send_to_app(child, "last", "words"), 0);
	messenger_close(child);
	child = NULL;
	take(&got);
	cr_assert_str_eq(got.data, "words");
	cr_assert_eq(channel_read(&master), PEER_GONE);
}

Test(closing, gives_up_when_nobody_reads)
{
	int before = open_descriptors();
	int64_t start;

	fill();
	start = clutch_now();
	messenger_close(child);
	child = NULL;
	cr_assert_lt(clutch_now() - start, 5000);
	cr_assert_geq(clutch_now() - start, 500, "it did not even try");
	cr_assert_eq(open_descriptors(), before - 1);
}

Test(closing, does_not_wait_for_the_dead)
{
	int64_t start = clutch_now();

	fill();
	channel_close(&master);
	messenger_close(child);
	child = NULL;
	cr_assert_lt(clutch_now() - start, 900);
}

static int
close_note(struct messenger *messenger, void *arg)
{
	cr_assert(messenger_closing(messenger));
	note(arg);
	return arg == b;
}

/* Some of everything that a messenger can hold. */
static void
use_everything(void)
{
	struct message message = compose(ROLE_NONE, "take", NULL);
	char action[32];
	int i;

	for (i = 0; i < 100; i++) {
		snprintf(action, sizeof action, "%d", i);
		hear(action, a);
		after(DEADLINE, a);
	}
	hear(NULL, b);
	hear_once("once", b);
	watch_pipes(50, watch_note);
	tell_pids("[1,2,3]");
	tell("once");
	cr_assert_eq(messenger_before_close(child, close_note, a), 0);
	cr_assert_eq(send(master.descriptor, "\0\0\0\177torn", 8, 0), 8);
	turn();
	message.handle = pipes[0][0];
	cr_assert_eq(messenger_send_message(child, &message), 0);
	cr_assert_eq(messenger_send_message(child, &message), 0);
}

/* Descriptors are counted; memory is, where a sanitizer does it. */
Test(closing, leaks_nothing)
{
	int before, i;

	close_both();
	before = open_descriptors();
	for (i = 0; i < 3; i++) {
		open_as(ROLE_PARENT);
		use_everything();
		close_both();
		calls[0] = '\0';
		cr_assert_eq(open_descriptors(), before + 100, "what is watched stays open");
		close_pipes(50);
	}
	cr_assert_eq(open_descriptors(), before);
	if (__lsan_do_recoverable_leak_check != NULL)
		cr_assert_eq(__lsan_do_recoverable_leak_check(), 0);
}

Test(closing, nothing_is_left_in_the_heap)
{
	size_t before = 0;
	int i;

	close_both();
	for (i = 0; i < 330; i++) {
		if (i == 300) /* by now malloc has set aside all that it keeps */
			before = bytes_allocated();
		open_as(ROLE_PARENT);
		use_everything();
		close_both();
		close_pipes(50);
		calls[0] = '\0';
	}
	cr_assert_leq(bytes_allocated(), before + 1000);
}

/* ---- what the roles add -------------------------------------------------- */

TestSuite(roles, .init = open_app, .fini = close_both);

Test(roles, closers_run_in_order_of_adding_once_and_their_failures_are_counted)
{
	cr_assert_eq(messenger_before_close(child, close_note, a), 0);
	cr_assert_eq(messenger_before_close(child, close_note, b), 0);
	cr_assert_eq(messenger_before_close(child, close_note, c), 0);
	cr_assert_not(messenger_closing(child));
	cr_assert_eq(messenger_run_closers(child), 1);
	expect_calls("abc");
	cr_assert(messenger_closing(child));
	cr_assert_eq(messenger_run_closers(child), 0);
	expect_calls("");
}

static void
ready_note(struct messenger *messenger UNUSED, int status)
{
	note(status == 0 ? a : b);
}

Test(roles, ready_is_said_once)
{
	child->on_ready = ready_note;
	messenger_ready_later(child);
	cr_assert(child->ready_later);
	expect_calls("");
	cr_assert_eq(messenger_ready(child, 0), 0);
	expect_calls("a");
	expect_error(EALREADY, messenger_ready(child, 1));
	expect_calls("");
}

Test(roles, a_graceful_exit_is_an_app_workers)
{
	messenger_graceful_exit(child);
	cr_assert(child->graceful);
	messenger_graceful_exit(child);
	cr_assert(child->graceful);
	reopen_as(ROLE_AGENT);
	messenger_graceful_exit(child);
	cr_assert_not(child->graceful);
}

/* A connection counts while it is watched, watched again, and not unwatched. */
Test(roles, accepted_connections_count_while_they_are_watched)
{
	watch_pipes(2, watch_note);
	cr_assert_eq(child->connections, 0);
	cr_assert_eq(messenger_unwatch(child, pipes[0][0]), 0);
	child->accepted = pipes[0][0];
	watch(pipes[0][0], POLLIN, watch_note, a);
	child->accepted = -1;
	cr_assert_eq(child->connections, 1);
	watch(pipes[0][0], POLLOUT, watch_note, b);
	cr_assert_eq(child->connections, 1);
	cr_assert_eq(messenger_unwatch(child, pipes[1][0]), 0);
	cr_assert_eq(child->connections, 1);
	cr_assert_eq(messenger_unwatch(child, pipes[0][0]), 0);
	cr_assert_eq(child->connections, 0);
	close_pipes(2);
}
