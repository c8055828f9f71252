/*
 * A messenger in a test, over one end of a real socketpair. The test plays the master at the
 * other end with a bare channel. Both live in this process, and a process has only one read
 * buffer. So the frames that the master has read are taken out before the child turns its loop
 * again, and the master never reads inside a callback.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#ifndef CHILD_H
#define CHILD_H

#include "harness.h"
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

static struct messenger *child; /* the messenger under test */
static struct channel master;   /* the other end */

/* The notes of the callbacks, one after the other. */
static char calls[8192];

/* Notes that the tests hand to on_note and similar callbacks. */
static char a[] = "a", b[] = "b", c[] = "c", d[] UNUSED = "d", e[] UNUSED = "e";

/* ---- both ends --------------------------------------------------------------------------- */

static inline void
open_as(enum role role)
{
	int ends[2];

	cr_assert_eq(channel_pair(ends), 0);
	channel_init(&master, 0);
	cr_assert_eq(channel_attach(&master, ends[0]), 0);
	child = messenger_open(ends[1], role);
	cr_assert_not_null(child);
}

/* Kill a loop that sleeps for ever. SIGALRM does so before Criterion's timeout. */
static inline void
open_app(void)
{
	alarm(30);
	open_as(ROLE_APP);
}

/* Close the master first, so that the child does not wait for it. */
static inline void
close_both(void)
{
	channel_close(&master);
	messenger_close(child);
	child = NULL;
}

static inline void
reopen_as(enum role role)
{
	close_both();
	open_as(role);
}

/* One turn of the child's loop, without a wait. */
static inline void
turn(void)
{
	cr_assert_eq(messenger_step(child, 0), 1);
}

static inline struct message
compose(enum role from, const char *action, const char *data)
{
	struct message message = {.action = action, .from = from, .to = ROLE_APP, .handle = -1};

	message.data = data;
	message.data_length = data != NULL ? strlen(data) : 0;
	return message;
}

/* The master sends. The message is in the socket when this returns. */
static inline void
say_message(const struct message *message)
{
	cr_assert_eq(sendmessage(&master, message), 0);
	cr_assert_eq(channel_flush(&master), PEER_ALIVE);
	cr_assert_eq(channel_pending(&master), 0, "the test sends more than the socket takes");
}

static inline void
say(const char *action)
{
	struct message message = compose(ROLE_MASTER, action, NULL);

	say_message(&message);
}

/* The master sends. The child has heard the message when this returns. */
static inline void
tell_from(enum role from, const char *action, const char *data)
{
	struct message message = compose(from, action, data);

	say_message(&message);
	turn();
}

static inline void
tell(const char *action)
{
	tell_from(ROLE_MASTER, action, NULL);
}

/* The next message that the child put on the wire. While the socket is empty the child turns
 * its loop, because its queue may have more than a socket takes. */
static inline void
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

/* Take a message, which must be the expected one. */
static inline void
expect_at(int line, const char *action, enum role to, pid_t receiver_pid, const char *data)
{
	struct message got;

	take(&got);
	cr_assert_str_eq(got.action, action, "line %d: the action is %s", line, got.action);
	cr_assert_eq(got.from, ROLE_NONE, "line %d: the message claims a sender's role", line);
	cr_assert_eq(got.to, to, "line %d: the message is to %s", line, clutch_role_name(got.to));
	cr_assert_eq(got.receiver_pid, receiver_pid, "line %d: the message is to the pid %d", line,
	             got.receiver_pid);
	cr_assert_eq(got.handle, -1, "line %d: the message has a handle", line);
	cr_assert_eq(got.data == NULL, data == NULL, "line %d: the message has %s data", line,
	             got.data == NULL ? "no" : "some");
	if (data != NULL)
		cr_assert_str_eq(got.data, data, "line %d: the data is %s", line, got.data);
}

#define expect(...) expect_at(__LINE__, __VA_ARGS__)

/* Nothing is on the wire, in the socket or taken from it. */
static inline void
expect_silence(void)
{
	struct pollfd wait = {.fd = master.descriptor, .events = POLLIN};
	struct message message;

	cr_assert_eq(channel_next(&master, &message), 0, "the child sent one more message: %s",
	             message.action);
	cr_assert_eq(poll(&wait, 1, 0), 0, "the child wrote more");
}

/* A call fails with this errno, and neither queues nor writes anything. */
#define expect_error(error, call)                                                                  \
	do {                                                                                       \
		size_t pending_ = channel_pending(&child->channel);                                \
		errno = 0;                                                                         \
		cr_assert_eq((call), -1, "%s succeeds, and should fail", #call);                   \
		cr_assert_eq(errno, (error), "%s: %s", #call, strerror(errno));                    \
		cr_assert_eq(channel_pending(&child->channel), pending_);                          \
	} while (0)

/* ---- what callbacks do ------------------------------------------------------------------- */

static inline void
note(const char *what)
{
	size_t used = strlen(calls);

	cr_assert_lt(used + strlen(what), sizeof calls);
	snprintf(calls + used, sizeof calls - used, "%s", what);
}

/* Exactly these callbacks were called since the last expect_calls. */
#define expect_calls(these)                                                                        \
	do {                                                                                       \
		cr_assert_str_eq(calls, these);                                                    \
		calls[0] = '\0';                                                                   \
	} while (0)

static inline int
on_note(struct messenger *messenger UNUSED, const struct message *message UNUSED, void *arg)
{
	note(arg);
	return 0;
}

static inline int
on_count(struct messenger *messenger UNUSED, const struct message *message UNUSED, void *arg)
{
	++*(int *)arg;
	return 0;
}

static inline int
on_fail(struct messenger *messenger UNUSED, const struct message *message UNUSED, void *arg)
{
	note(arg);
	return 7;
}

static inline int
watch_note(struct messenger *messenger UNUSED, int descriptor UNUSED, short revents UNUSED,
           void *arg)
{
	note(arg);
	return 0;
}

static inline int
timer_note(struct messenger *messenger UNUSED, void *arg)
{
	note(arg);
	return 0;
}

static inline void
hear(const char *action, char *what)
{
	cr_assert_eq(messenger_on(child, action, on_note, what), 0);
}

static inline void
hear_once(const char *action, char *what)
{
	cr_assert_eq(messenger_once(child, action, on_note, what), 0);
}

static inline int
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
			cr_assert_lt(clutch_now(), deadline_, "waited in vain for this: %s",       \
			             #condition);                                                  \
			channel_flush(&master);                                                    \
			cr_assert_neq(messenger_step(child, 10), -1);                              \
		}                                                                                  \
	} while (0)

/* How many descriptors this process has open. */
static inline int
open_descriptors(void)
{
	int descriptor, count = 0;

	for (descriptor = 0; descriptor < 1024; descriptor++)
		count += fcntl(descriptor, F_GETFD) != -1;
	return count;
}

static inline size_t
bytes_allocated(void)
{
	if (__sanitizer_get_current_allocated_bytes != NULL)
		return __sanitizer_get_current_allocated_bytes();
	return mallinfo2().uordblks;
}

/* A pipe with something to read in it. */
static inline void
full_pipe(int ends[2])
{
	cr_assert_eq(pipe(ends), 0);
	cr_assert_eq(write(ends[1], "x", 1), 1);
}

static inline void
close_pipe(const int ends[2])
{
	close(ends[0]);
	close(ends[1]);
}

/* ---- send calls: what is on the wire ----------------------------------------------------- */

static inline int
on_forward(struct messenger *messenger, const struct message *message, void *arg)
{
	struct message copy = *message;

	copy.to = ROLE_AGENT;
	return messenger_send_message(arg != NULL ? arg : messenger, &copy);
}

/* ---- send calls that fail ---------------------------------------------------------------- */

/* The messages that fill the queue are numbered, and at most CHANNEL_FLUSH_SIZE long. */
static inline int
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
static inline int
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

static inline void
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

/* ---- listeners: what they are handed ----------------------------------------------------- */

static struct message wanted_message;

static inline int
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

/* ---- the loop: descriptors --------------------------------------------------------------- */

static inline void
watch(int descriptor, short events, messenger_watcher watcher, void *arg)
{
	cr_assert_eq(messenger_watch(child, descriptor, events, watcher, arg), 0);
}

/* Pipes with something to read in them, all watched. */
static int pipes[100][2];

static inline void
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

static inline void
close_pipes(int count)
{
	while (count-- > 0)
		close_pipe(pipes[count]);
}

/* ---- the loop: a socket that is full ----------------------------------------------------- */

/* Read slowly, until the end of the stream. When all the wanted bytes have come, send "enough",
 * if anybody still listens. */
static inline void
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

/* From now on the master is another process, which expects this many bytes. */
static inline pid_t
fork_slow_reader(size_t wanted)
{
	pid_t reader = fork();

	cr_assert_geq(reader, 0);
	if (reader == 0)
		read_slowly(wanted);
	channel_close(&master);
	return reader;
}

/* The messenger is closed. Did the reader get everything? */
static inline void
expect_satisfied(pid_t reader)
{
	int status;

	messenger_close(child);
	child = NULL;
	cr_assert_eq(waitpid(reader, &status, 0), reader);
	cr_assert_eq(status, 0, "the reader missed something");
}

#endif
