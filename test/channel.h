/*
 * Bare channels in a test: sendmessage.c over real socketpairs.
 *
 * put_frame encodes the expected bytes from the drawing in messenger.h, without code of
 * sendmessage.c: a mistake that sendmessage.c makes both when it writes and when it reads
 * would otherwise not be found.
 *
 * A socket does not write or read short at a given byte on request. So this file
 * defines send, sendmsg and recvmsg, which the linker takes before libc's: they count
 * calls, and shorten or fail them, on a descriptor that a test has asked for.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#ifndef CHANNEL_H
#define CHANNEL_H

#include "harness.h"
#include "messenger.h"
#include "sanitized.h"

#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

/* How long a wait may take, in ms. Nothing here takes long: at a timeout something is lost. */
#define PATIENCE 20000

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

/* Valgrind keeps freed memory, is slow, and does not pass a lower limit on to the kernel. */
static inline bool
under_valgrind(void)
{
	const char *preload = getenv("LD_PRELOAD");

	return preload != NULL && strstr(preload, "vgpreload") != NULL;
}

/* ---- send, sendmsg and recvmsg, under control -------------------------------------------- */

enum { SHAPED = 1024 };

/* How a test changes the calls on one descriptor. If all is zero, they work as usual. */
struct shape {
	size_t most; /* the most bytes in one call */
	int error;   /* the errno of the next `errors` calls */
	int errors;  /* -1: of all */
	int full;    /* EAGAIN after this many calls; 0: never */
	int calls;   /* the calls that moved bytes */
	int last;    /* errno of the last call that failed */
	bool strips; /* the next handle is lost, without MSG_CTRUNC */
};

static struct shape writes[SHAPED], reads[SHAPED];

ssize_t __real_send(int descriptor, const void *bytes, size_t size, int flags);
ssize_t __wrap_send(int descriptor, const void *bytes, size_t size, int flags);
ssize_t __real_sendmsg(int descriptor, const struct msghdr *header, int flags);
ssize_t __wrap_sendmsg(int descriptor, const struct msghdr *header, int flags);
ssize_t __real_recvmsg(int descriptor, struct msghdr *header, int flags);
ssize_t __wrap_recvmsg(int descriptor, struct msghdr *header, int flags);

/* Cut these parts to this many bytes at most, and return how many parts are left. */
static inline size_t
shorten(struct iovec *part, const struct msghdr *header, size_t most)
{
	size_t count = 0;

	while (count < header->msg_iovlen && (count == 0 || most > 0)) {
		part[count] = header->msg_iov[count];
		if (part[count].iov_len > most)
			part[count].iov_len = most;
		most -= part[count++].iov_len;
	}
	return count;
}

/* True if the call is to fail, with errno set. */
static inline bool
shaped_failure(struct shape *shape)
{
	bool full = shape->full > 0 && shape->calls >= shape->full;

	if (!full && shape->errors == 0)
		return false;
	if (!full && shape->errors > 0)
		shape->errors--;
	shape->last = errno = full ? EAGAIN : shape->error;
	return true;
}

static inline ssize_t
shaped_result(struct shape *shape, ssize_t result)
{
	if (result > 0)
		shape->calls++;
	else if (result == -1)
		shape->last = errno;
	return result;
}

ssize_t
__wrap_sendmsg(int descriptor, const struct msghdr *header, int flags)
{
	struct shape *shape = &writes[descriptor & (SHAPED - 1)];
	struct msghdr copy = *header;
	struct iovec part[8];

	if (shaped_failure(shape))
		return -1;
	if (shape->most > 0) {
		copy.msg_iov = part;
		copy.msg_iovlen = shorten(part, header, shape->most);
	}
	return shaped_result(shape, __real_sendmsg(descriptor, &copy, flags));
}

ssize_t
__wrap_send(int descriptor, const void *bytes, size_t size, int flags)
{
	struct shape *shape = &writes[descriptor & (SHAPED - 1)];

	if (shaped_failure(shape))
		return -1;
	if (shape->most > 0 && size > shape->most)
		size = shape->most;
	return shaped_result(shape, __real_send(descriptor, bytes, size, flags));
}

ssize_t
__wrap_recvmsg(int descriptor, struct msghdr *header, int flags)
{
	struct shape *shape = &reads[descriptor & (SHAPED - 1)];
	struct msghdr copy = *header;
	struct iovec part[8];
	ssize_t result;

	if (shaped_failure(shape))
		return -1;
	if (shape->most > 0) {
		copy.msg_iov = part;
		copy.msg_iovlen = shorten(part, header, shape->most);
	}
	if (shape->strips)
		copy.msg_controllen = 0;
	result = __real_recvmsg(descriptor, &copy, flags);
	header->msg_controllen = copy.msg_controllen;
	header->msg_flags = shape->strips ? 0 : copy.msg_flags;
	return shaped_result(shape, result);
}

static inline struct shape *
shape_writes(const struct channel *channel)
{
	struct shape *shape = &writes[channel->descriptor];

	*shape = (struct shape){0};
	return shape;
}

static inline struct shape *
shape_reads(const struct channel *channel)
{
	struct shape *shape = &reads[channel->descriptor];

	*shape = (struct shape){0};
	return shape;
}

/* ---- bytes ------------------------------------------------------------------------------- */

struct bytes {
	unsigned char *at;
	size_t length, size;
};

static inline unsigned char *
put_room(struct bytes *bytes, size_t length)
{
	if (bytes->size - bytes->length < length) {
		bytes->size = 2 * (bytes->length + length);
		bytes->at = realloc(bytes->at, bytes->size);
		cr_assert(bytes->at != NULL);
	}
	bytes->length += length;
	return bytes->at + bytes->length - length;
}

static inline void
put(struct bytes *bytes, const void *from, size_t length)
{
	if (length > 0)
		memcpy(put_room(bytes, length), from, length);
}

static inline void
drop(struct bytes *bytes)
{
	free(bytes->at);
	*bytes = (struct bytes){.at = NULL};
}

/* A frame as messenger.h draws it. */
static inline void
put_frame(struct bytes *bytes, const struct message *message)
{
	size_t action = message->action != NULL ? strlen(message->action) : 0;
	uint32_t length = htonl((uint32_t)(8 + action + 1 + message->data_length + 1));
	uint32_t pid = htonl((uint32_t)message->receiver_pid);
	unsigned char flags =
		(unsigned char)((message->data != NULL ? 1 : 0) + (message->handle >= 0 ? 2 : 0));
	unsigned char small[4] = {(unsigned char)message->from, (unsigned char)message->to, flags,
	                          (unsigned char)action};

	put(bytes, &length, 4);
	put(bytes, small, 4);
	put(bytes, &pid, 4);
	put(bytes, message->action, action);
	put(bytes, "", 1);
	put(bytes, message->data, message->data_length);
	put(bytes, "", 1);
}

static inline void
assert_bytes(const struct bytes *got, const struct bytes *want)
{
	size_t i = 0;

	while (i < got->length && i < want->length && got->at[i] == want->at[i])
		i++;
	cr_assert(i == got->length && i == want->length,
	          "byte %zu differs: %zu bytes came, %zu expected", i, got->length, want->length);
}

/* ---- messages ---------------------------------------------------------------------------- */

static inline struct message
text(const char *action, const char *data)
{
	return (struct message){.action = action,
	                        .data = data,
	                        .data_length = data != NULL ? strlen(data) : 0,
	                        .handle = -1};
}

/* A message with this many bytes of data, which differ from seed to seed. The caller frees
 * the data; it has exactly this length, and no NUL. */
static inline struct message
sized(const char *action, size_t length, unsigned seed)
{
	char *data = malloc(length + (length == 0));
	uint32_t state = seed * 2654435761u + 1;
	size_t i;

	cr_assert(data != NULL);
	for (i = 0; i < length; i++) {
		state = state * 1664525u + 1013904223u;
		data[i] = (char)(state >> 24);
	}
	return (struct message){
		.action = action, .data = data, .data_length = length, .handle = -1};
}

static inline void
sized_free(const struct message *message)
{
	free((char *)(uintptr_t)message->data);
}

/* The message that came is the message that was sent (except its handle), and ready to use. */
static inline void
assert_message(const struct message *got, const struct message *want)
{
	cr_assert_str_eq(got->action, want->action != NULL ? want->action : "");
	cr_assert(got->from == want->from && got->to == want->to);
	cr_assert(got->receiver_pid == want->receiver_pid);
	cr_assert((got->data == NULL) == (want->data == NULL),
	          "one of the messages has data, and the other one has none");
	cr_assert(got->data_length == want->data_length, "%zu bytes of data, not %zu",
	          got->data_length, want->data_length);
	if (got->data != NULL) {
		cr_assert(want->data_length == 0 ||
		          memcmp(got->data, want->data, want->data_length) == 0);
		cr_assert(got->data[got->data_length] == '\0');
	}
	cr_assert(got->frame != NULL);
}

/* ---- channels ---------------------------------------------------------------------------- */

static inline void
await(int descriptor, short events)
{
	struct pollfd set = {.fd = descriptor, .events = events};

	cr_assert(poll(&set, 1, PATIENCE) == 1, "nothing came in %d ms", PATIENCE);
}

static inline void
attach(struct channel *channel, int descriptor, size_t limit)
{
	channel_init(channel, limit);
	cr_assert(channel_attach(channel, descriptor) == 0);
}

/* A channel; returns the bare, non-blocking socket at its other end. */
static inline int
open_channel(struct channel *channel, size_t limit)
{
	int ends[2];

	cr_assert(channel_pair(ends) == 0);
	cr_assert(fcntl(ends[1], F_SETFL, O_NONBLOCK) == 0);
	attach(channel, ends[0], limit);
	return ends[1];
}

static inline void
open_channels(struct channel *near, struct channel *far)
{
	int ends[2];

	cr_assert(channel_pair(ends) == 0);
	attach(near, ends[0], 0);
	attach(far, ends[1], 0);
}

/* Make the socket's buffer as small as possible, so that it is soon full. */
static inline void
narrow(int descriptor)
{
	int size = 4096;

	cr_assert(setsockopt(descriptor, SOL_SOCKET, SO_SNDBUF, &size, sizeof size) == 0);
}

static inline void
raw_write(int descriptor, const void *from, size_t length)
{
	cr_assert(send(descriptor, from, length, MSG_NOSIGNAL) == (ssize_t)length);
}

/* Read everything that is there; false at end of file. */
static inline bool
raw_collect(int descriptor, struct bytes *bytes)
{
	static unsigned char room[65536];
	ssize_t count;

	while ((count = recv(descriptor, room, sizeof room, MSG_DONTWAIT)) > 0)
		put(bytes, room, (size_t)count);
	return count == -1 && errno == EAGAIN;
}

/* Flush a channel, and read its other end, until this many bytes have come. */
static inline void
pump(struct channel *channel, int far, struct bytes *bytes, size_t wanted)
{
	int64_t deadline = clutch_now() + PATIENCE;

	while (bytes->length < wanted) {
		cr_assert(channel_flush(channel) == PEER_ALIVE);
		cr_assert(raw_collect(far, bytes));
		cr_assert(clutch_now() < deadline, "%zu bytes of %zu came", bytes->length, wanted);
	}
	cr_assert(channel_pending(channel) == 0);
}

/* Take the messages that were read: want[*taken] and the next ones. Handles are closed. */
static inline void
take(struct channel *channel, const struct message *want, size_t count, size_t *taken)
{
	struct message message;
	int found;

	while ((found = channel_next(channel, &message)) == 1) {
		cr_assert(*taken < count, "more messages came than the %zu that were sent", count);
		assert_message(&message, &want[(*taken)++]);
		if (message.handle >= 0)
			close(message.handle);
	}
	cr_assert(found == 0, "a good frame was refused after %zu", *taken);
}

static inline void
receive(struct channel *channel, const struct message *want, size_t count)
{
	size_t taken = 0;

	while (taken < count) {
		await(channel->descriptor, POLLIN);
		cr_assert(channel_read(channel) == PEER_ALIVE);
		take(channel, want, count, &taken);
	}
}

/* Read everything that is there: -1 if a frame of it is refused, otherwise 0. */
static inline int
read_until_refused(struct channel *channel)
{
	struct message message;
	int found = 0;

	while (found == 0) {
		struct pollfd set = {.fd = channel->descriptor, .events = POLLIN};

		if (poll(&set, 1, 0) == 0)
			return 0;
		cr_assert(channel_read(channel) == PEER_ALIVE);
		while ((found = channel_next(channel, &message)) == 1)
			;
	}
	return found;
}

/* ---- descriptors ------------------------------------------------------------------------- */

static inline int
open_descriptors(void)
{
	int i, count = 0;

	for (i = 0; i < SHAPED; i++)
		count += fcntl(i, F_GETFD) != -1;
	return count;
}

static inline bool
same_file(int one, int other)
{
	struct stat a, b;

	return fstat(one, &a) == 0 && fstat(other, &b) == 0 && a.st_dev == b.st_dev &&
	       a.st_ino == b.st_ino;
}

/* ---- reading ----------------------------------------------------------------------------- */

static const struct message few[] = {
	{"first", ROLE_APP, ROLE_AGENT, 7, "{\"a\":1}", 7, -1, NULL},
	{"", ROLE_NONE, ROLE_NONE, 0, NULL, 0, -1, NULL},
	{"third", ROLE_MASTER, ROLE_APP, 0x7fffffff, "", 0, -1, NULL},
	{"4", ROLE_PARENT, ROLE_MASTER, 0, "\"four\"", 6, -1, NULL},
};

static inline void
put_few(struct bytes *stream)
{
	size_t i;

	for (i = 0; i < COUNT(few); i++)
		put_frame(stream, &few[i]);
}

/* ---- handles ----------------------------------------------------------------------------- */

/* Send a message with a handle, or without one if `handle` is -1. */
static inline void
send_handle(struct channel *channel, const char *action, int handle)
{
	struct message message = text(action, "\"h\"");

	message.handle = handle;
	cr_assert(sendmessage(channel, &message) == 0);
}

/* The next message, with a deadline. The caller owns its handle. */
static inline struct message
next_message(struct channel *channel)
{
	struct message message;
	int found;

	while ((found = channel_next(channel, &message)) == 0) {
		await(channel->descriptor, POLLIN);
		cr_assert(channel_read(channel) == PEER_ALIVE);
	}
	cr_assert(found == 1);
	return message;
}

#endif
