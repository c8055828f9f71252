/*
 * One message, one channel: sendmessage.c over real socketpairs.
 *
 * What is expected on the wire is made here by an encoder of our own (put_frame)
 * from the drawing in messenger.h, so that a mistake that sendmessage.c makes
 * both when it writes and when it reads does not cancel out.
 *
 * A socket does not write or read short at a given byte on request. So this file
 * defines send, sendmsg and recvmsg, which the linker takes before libc's: they count
 * calls, and shorten or fail them, on a descriptor that a test has asked for.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "messenger.h"
#include "sanitized.h"

#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

/* Nothing here takes long: a test that waits longer than this has lost something. */
#define PATIENCE 20000

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

/* Valgrind keeps freed memory, is slow, and does not pass a lower limit on to the kernel. */
static bool
under_valgrind(void)
{
	const char *preload = getenv("LD_PRELOAD");

	return preload != NULL && strstr(preload, "vgpreload") != NULL;
}

/* ---- send, sendmsg and recvmsg, under control ---------------------------- */

enum { SHAPED = 1024 };

/* What a test wants of the calls on one descriptor; if all is zero, nothing. */
struct shape {
	size_t most;  /* bytes in one call */
	int error;    /* the errno of the next `errors` calls */
	int errors;   /* -1: of all */
	int full;     /* EAGAIN after this many calls; 0: never */
	int calls;    /* the calls that moved bytes */
	int last;     /* errno of the last call that failed */
	bool strips;  /* the handle that comes is lost, without MSG_CTRUNC */
	bool watched; /* not one of Criterion's own descriptors */
};

static struct shape writes[SHAPED], reads[SHAPED];

typedef ssize_t (*send_function)(int, const struct msghdr *, int);
typedef ssize_t (*receive_function)(int, struct msghdr *, int);

/* Cut these parts to this many bytes at most, and return how many parts are left. */
static size_t
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
static bool
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

static ssize_t
shaped_result(struct shape *shape, ssize_t result)
{
	if (result > 0)
		shape->calls++;
	else if (result == -1)
		shape->last = errno;
	return result;
}

ssize_t
sendmsg(int descriptor, const struct msghdr *header, int flags)
{
	void *symbol = dlsym(RTLD_NEXT, "sendmsg");
	struct shape *shape = &writes[descriptor & (SHAPED - 1)];
	struct msghdr copy = *header;
	struct iovec part[8];
	send_function real;

	memcpy(&real, &symbol, sizeof real);
	if (!shape->watched)
		return real(descriptor, header, flags);
	if (shaped_failure(shape))
		return -1;
	if (shape->most > 0) {
		copy.msg_iov = part;
		copy.msg_iovlen = shorten(part, header, shape->most);
	}
	return shaped_result(shape, real(descriptor, &copy, flags));
}

ssize_t
send(int descriptor, const void *bytes, size_t size, int flags)
{
	void *symbol = dlsym(RTLD_NEXT, "send");
	struct shape *shape = &writes[descriptor & (SHAPED - 1)];
	ssize_t (*real)(int, const void *, size_t, int);

	memcpy(&real, &symbol, sizeof real);
	if (!shape->watched)
		return real(descriptor, bytes, size, flags);
	if (shaped_failure(shape))
		return -1;
	if (shape->most > 0 && size > shape->most)
		size = shape->most;
	return shaped_result(shape, real(descriptor, bytes, size, flags));
}

ssize_t
recvmsg(int descriptor, struct msghdr *header, int flags)
{
	void *symbol = dlsym(RTLD_NEXT, "recvmsg");
	struct shape *shape = &reads[descriptor & (SHAPED - 1)];
	struct msghdr copy = *header;
	struct iovec part[8];
	receive_function real;
	ssize_t result;

	memcpy(&real, &symbol, sizeof real);
	if (!shape->watched)
		return real(descriptor, header, flags);
	if (shaped_failure(shape))
		return -1;
	if (shape->most > 0) {
		copy.msg_iov = part;
		copy.msg_iovlen = shorten(part, header, shape->most);
	}
	if (shape->strips)
		copy.msg_controllen = 0;
	result = real(descriptor, &copy, flags);
	header->msg_controllen = copy.msg_controllen;
	header->msg_flags = shape->strips ? 0 : copy.msg_flags;
	return shaped_result(shape, result);
}

static struct shape *
shape_writes(const struct channel *channel)
{
	struct shape *shape = &writes[channel->descriptor];

	*shape = (struct shape){.watched = true};
	return shape;
}

static struct shape *
shape_reads(const struct channel *channel)
{
	struct shape *shape = &reads[channel->descriptor];

	*shape = (struct shape){.watched = true};
	return shape;
}

/* ---- bytes --------------------------------------------------------------- */

struct bytes {
	unsigned char *at;
	size_t length, size;
};

static unsigned char *
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

static void
put(struct bytes *bytes, const void *from, size_t length)
{
	if (length > 0)
		memcpy(put_room(bytes, length), from, length);
}

static void
drop(struct bytes *bytes)
{
	free(bytes->at);
	*bytes = (struct bytes){.at = NULL};
}

/* A frame as messenger.h draws it. */
static void
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

static void
assert_bytes(const struct bytes *got, const struct bytes *want)
{
	size_t i = 0;

	while (i < got->length && i < want->length && got->at[i] == want->at[i])
		i++;
	cr_assert(i == got->length && i == want->length,
	          "byte %zu differs: %zu bytes came, %zu expected", i, got->length, want->length);
}

/* ---- messages ------------------------------------------------------------ */

static struct message
text(const char *action, const char *data)
{
	return (struct message){.action = action,
	                        .data = data,
	                        .data_length = data != NULL ? strlen(data) : 0,
	                        .handle = -1};
}

/* A message with this many bytes of data, which differ from seed to seed. The caller frees
 * the data; it has exactly this length, and no NUL. */
static struct message
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

static void
sized_free(const struct message *message)
{
	free((char *)(uintptr_t)message->data);
}

/* The message that came is the one that was sent, the handle aside, and is ready to use. */
static void
assert_message(const struct message *got, const struct message *want)
{
	cr_assert_str_eq(got->action, want->action != NULL ? want->action : "");
	cr_assert(got->from == want->from && got->to == want->to);
	cr_assert(got->receiver_pid == want->receiver_pid);
	cr_assert((got->data == NULL) == (want->data == NULL), "undefined is not a string");
	cr_assert(got->data_length == want->data_length, "%zu bytes of data, not %zu",
	          got->data_length, want->data_length);
	if (got->data != NULL) {
		cr_assert(want->data_length == 0 ||
		          memcmp(got->data, want->data, want->data_length) == 0);
		cr_assert(got->data[got->data_length] == '\0');
	}
	cr_assert(got->frame != NULL);
}

/* ---- channels ------------------------------------------------------------ */

static void
await(int descriptor, short events)
{
	struct pollfd set = {.fd = descriptor, .events = events};

	cr_assert(poll(&set, 1, PATIENCE) == 1, "nothing came in %d ms", PATIENCE);
}

static void
attach(struct channel *channel, int descriptor, size_t limit)
{
	channel_init(channel, limit);
	cr_assert(channel_attach(channel, descriptor) == 0);
}

/* A channel; returns the bare, non-blocking socket at its other end. */
static int
open_channel(struct channel *channel, size_t limit)
{
	int ends[2];

	cr_assert(channel_pair(ends) == 0);
	cr_assert(fcntl(ends[1], F_SETFL, O_NONBLOCK) == 0);
	attach(channel, ends[0], limit);
	return ends[1];
}

static void
open_channels(struct channel *near, struct channel *far)
{
	int ends[2];

	cr_assert(channel_pair(ends) == 0);
	attach(near, ends[0], 0);
	attach(far, ends[1], 0);
}

/* A socket that is soon full. */
static void
narrow(int descriptor)
{
	int size = 4096;

	cr_assert(setsockopt(descriptor, SOL_SOCKET, SO_SNDBUF, &size, sizeof size) == 0);
}

static void
raw_write(int descriptor, const void *from, size_t length)
{
	cr_assert(send(descriptor, from, length, MSG_NOSIGNAL) == (ssize_t)length);
}

/* Take everything that is there; false at the end of file. */
static bool
raw_collect(int descriptor, struct bytes *bytes)
{
	static unsigned char room[65536];
	ssize_t count;

	while ((count = recv(descriptor, room, sizeof room, MSG_DONTWAIT)) > 0)
		put(bytes, room, (size_t)count);
	return count == -1 && errno == EAGAIN;
}

/* Flush a channel, and read its other end, until this many bytes have come. */
static void
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

/* Take the messages that were read: want[*taken] and those behind it. Handles are closed. */
static void
take(struct channel *channel, const struct message *want, size_t count, size_t *taken)
{
	struct message message;
	int found;

	while ((found = channel_next(channel, &message)) == 1) {
		cr_assert(*taken < count, "more than the %zu messages sent", count);
		assert_message(&message, &want[(*taken)++]);
		if (message.handle >= 0)
			close(message.handle);
	}
	cr_assert(found == 0, "a good frame was refused after %zu", *taken);
}

static void
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
static int
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

/* Fill a channel until its socket refuses more; what was sent is in `want`. */
static void
jam(struct channel *channel, struct bytes *want)
{
	struct message message = sized("jam", 4000, 1);

	while (channel_pending(channel) == 0) {
		cr_assert(sendmessage(channel, &message) == 0);
		put_frame(want, &message);
		cr_assert(channel_flush(channel) == PEER_ALIVE);
	}
	sized_free(&message);
}

/* ---- descriptors --------------------------------------------------------- */

static int
open_descriptors(void)
{
	int i, count = 0;

	for (i = 0; i < SHAPED; i++)
		count += fcntl(i, F_GETFD) != -1;
	return count;
}

static bool
same_file(int one, int other)
{
	struct stat a, b;

	return fstat(one, &a) == 0 && fstat(other, &b) == 0 && a.st_dev == b.st_dev &&
	       a.st_ino == b.st_ino;
}

/* Bytes with handles, as a process sends them that does not use sendmessage.c. */
static void
raw_write_handles(int descriptor, const void *from, size_t length, const int *handles, size_t count)
{
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(8 * sizeof(int))];
	} control;
	struct iovec part = {.iov_base = (void *)(uintptr_t)from, .iov_len = length};
	struct msghdr header = {.msg_iov = &part,
	                        .msg_iovlen = 1,
	                        .msg_control = &control,
	                        .msg_controllen = CMSG_SPACE(count * sizeof(int))};

	memset(&control, 0, sizeof control);
	control.align.cmsg_level = SOL_SOCKET;
	control.align.cmsg_type = SCM_RIGHTS;
	control.align.cmsg_len = CMSG_LEN(count * sizeof(int));
	memcpy(CMSG_DATA(&control.align), handles, count * sizeof(int));
	cr_assert(sendmsg(descriptor, &header, MSG_NOSIGNAL) == (ssize_t)length);
}

/* ---- the frame ----------------------------------------------------------- */

TestSuite(frame, .timeout = 60);

#define GOLDEN(wire) wire, sizeof(wire) - 1

static const struct {
	const char *what;
	struct message message;
	const char *wire;
	size_t length;
} golden[] = {
	{"all fields",
         {"hi", ROLE_APP, ROLE_AGENT, 0x01020304, "{}", 2, -1, NULL},
         GOLDEN("\0\0\0\x0e\4\3\1\2\1\2\3\4hi\0{}\0")},
	{"undefined data",
         {"a", ROLE_NONE, ROLE_NONE, 0, NULL, 0, -1, NULL},
         GOLDEN("\0\0\0\x0b\0\0\0\1\0\0\0\0a\0\0")},
	{"empty data",
         {"a", ROLE_NONE, ROLE_NONE, 0, "", 0, -1, NULL},
         GOLDEN("\0\0\0\x0b\0\0\1\1\0\0\0\0a\0\0")},
	{"no action",
         {NULL, ROLE_MASTER, ROLE_PARENT, 0, "1", 1, -1, NULL},
         GOLDEN("\0\0\0\x0b\1\2\1\0\0\0\0\0\0\x31\0")},
	{"empty action",
         {"", ROLE_PARENT, ROLE_MASTER, 0, NULL, 0, -1, NULL},
         GOLDEN("\0\0\0\x0a\2\1\0\0\0\0\0\0\0\0")},
	{"the largest pid, NULs in data",
         {"z", ROLE_AGENT, ROLE_APP, 0x7fffffff, "\0x\0", 3, -1, NULL},
         GOLDEN("\0\0\0\x0e\3\4\1\1\x7f\xff\xff\xffz\0\0x\0\0")},
};

Test(frame, is_laid_out_byte_by_byte_as_drawn)
{
	struct channel channel;
	int far = open_channel(&channel, 0);
	size_t i;

	for (i = 0; i < COUNT(golden); i++) {
		struct bytes got = {.at = NULL};

		cr_assert(message_size(&golden[i].message) == golden[i].length, "%s",
		          golden[i].what);
		cr_assert(sendmessage(&channel, &golden[i].message) == 0);
		cr_assert(channel_pending(&channel) == golden[i].length);
		pump(&channel, far, &got, golden[i].length);
		cr_assert(got.length == golden[i].length &&
		                  memcmp(got.at, golden[i].wire, got.length) == 0,
		          "%s", golden[i].what);
		drop(&got);
	}
	channel_close(&channel);
	close(far);
}

Test(frame, golden_bytes_are_read_back)
{
	struct channel channel;
	int far = open_channel(&channel, 0);
	size_t i, taken;

	for (i = 0; i < COUNT(golden); i++) {
		taken = 0;
		raw_write(far, golden[i].wire, golden[i].length);
		cr_assert(channel_read(&channel) == PEER_ALIVE);
		take(&channel, &golden[i].message, 1, &taken);
		cr_assert(taken == 1, "%s", golden[i].what);
	}
	channel_close(&channel);
	close(far);
}

Test(frame, of_a_message_with_a_handle_has_the_flag)
{
	const char wire[] = "\0\0\0\x0c\0\0\3\1\0\0\0\0h\0" /* data */ "1\0";
	struct bytes got = {.at = NULL};
	struct channel channel;
	int far = open_channel(&channel, 0);
	struct message message = text("h", "1");

	message.handle = far;
	cr_assert(sendmessage(&channel, &message) == 0);
	pump(&channel, far, &got, sizeof wire - 1);
	cr_assert(got.length == sizeof wire - 1 && memcmp(got.at, wire, got.length) == 0);
	drop(&got);
	channel_close(&channel);
	close(far);
}

Test(frame, undefined_empty_and_text_data_stay_apart)
{
	const struct message sent[] = {text("a", NULL), text("a", ""), text("a", "{\"b\":1}"),
	                               text("a", NULL)};
	struct channel near, far;
	size_t i;

	open_channels(&near, &far);
	for (i = 0; i < COUNT(sent); i++)
		cr_assert(sendmessage(&near, &sent[i]) == 0);
	cr_assert(channel_flush(&near) == PEER_ALIVE);
	receive(&far, sent, COUNT(sent));
	channel_close(&near);
	channel_close(&far);
}

Test(frame, takes_actions_of_up_to_255_bytes)
{
	static const size_t lengths[] = {0, 1, 2, 127, 128, 254, 255};
	char action[258];
	struct channel near, far;
	struct message message;
	size_t i;

	open_channels(&near, &far);
	for (i = 0; i < COUNT(lengths); i++) {
		memset(action, 'x', sizeof action);
		action[lengths[i]] = '\0';
		message = text(action, "data");
		cr_assert(sendmessage(&near, &message) == 0);
		cr_assert(channel_flush(&near) == PEER_ALIVE);
		receive(&far, &message, 1);
	}
	channel_close(&near);
	channel_close(&far);
}

/* A message that is refused leaves nothing behind, whatever the limit is. */
static void
assert_refused(const struct message *message, int error, const char *what)
{
	static const size_t limits[] = {0, CHANNEL_QUEUE_MAX};
	struct message small = text("small", "1");
	struct channel channel;
	size_t i, before;

	for (i = 0; i < COUNT(limits); i++) {
		channel_init(&channel, limits[i]);
		cr_assert(sendmessage(&channel, &small) == 0);
		before = channel_pending(&channel);
		errno = 0;
		cr_assert(message_size(message) == 0 && errno == error, "%s", what);
		errno = 0;
		cr_assert(sendmessage(&channel, message) == -1 && errno == error, "%s", what);
		cr_assert(channel_pending(&channel) == before, "%s", what);
		cr_assert(channel.waiting_count == 0 && channel.messages_out == 1, "%s", what);
		channel_close(&channel);
	}
}

Test(frame, refuses_an_action_of_256_bytes)
{
	char action[257] = "";
	struct message message = text(action, NULL);

	memset(action, 'x', 256);
	action[256] = '\0';
	assert_refused(&message, EMSGSIZE, "256 bytes of action");
}

Test(frame, refuses_data_one_byte_too_long)
{
	struct message message = sized("a", (size_t)MESSAGE_DATA_MAX + 1, 1);

	assert_refused(&message, EMSGSIZE, "one byte of data too many");
	message.data_length = SIZE_MAX; /* must not wrap around */
	assert_refused(&message, EMSGSIZE, "SIZE_MAX bytes of data");
	sized_free(&message);
}

Test(frame, refuses_what_does_not_exist)
{
	static const struct {
		const char *what;
		struct message message;
	} table[] = {
		{"from 5", {"a", (enum role)5, ROLE_NONE, 0, NULL, 0, -1, NULL}},
		{"from -1", {"a", (enum role) - 1, ROLE_NONE, 0, NULL, 0, -1, NULL}},
		{"to 5", {"a", ROLE_NONE, (enum role)5, 0, NULL, 0, -1, NULL}},
		{"to 256", {"a", ROLE_NONE, (enum role)256, 0, NULL, 0, -1, NULL}},
		{"to -1", {"a", ROLE_NONE, (enum role) - 1, 0, NULL, 0, -1, NULL}},
		{"pid -1", {"a", ROLE_NONE, ROLE_NONE, -1, NULL, 0, -1, NULL}},
		{"no data, but a length", {"a", ROLE_NONE, ROLE_NONE, 0, NULL, 1, -1, NULL}},
		{"to 5, with a handle", {"a", ROLE_NONE, (enum role)5, 0, NULL, 0, 0, NULL}},
	};
	size_t i;

	for (i = 0; i < COUNT(table); i++)
		assert_refused(&table[i].message, EINVAL, table[i].what);
}

/* ---- reading ------------------------------------------------------------- */

TestSuite(reading, .timeout = 60);

static const struct message few[] = {
	{"first", ROLE_APP, ROLE_AGENT, 7, "{\"a\":1}", 7, -1, NULL},
	{"", ROLE_NONE, ROLE_NONE, 0, NULL, 0, -1, NULL},
	{"third", ROLE_MASTER, ROLE_APP, 0x7fffffff, "", 0, -1, NULL},
	{"4", ROLE_PARENT, ROLE_MASTER, 0, "\"four\"", 6, -1, NULL},
};

static void
put_few(struct bytes *stream)
{
	size_t i;

	for (i = 0; i < COUNT(few); i++)
		put_frame(stream, &few[i]);
}

/* How many frames of `few` are complete in this many bytes. */
static size_t
few_complete(size_t length)
{
	size_t i;

	for (i = 0; i < COUNT(few) && length >= message_size(&few[i]); i++)
		length -= message_size(&few[i]);
	return i;
}

/* Each message must come as soon as its last byte is there, and not before. */
static void
read_piece(struct channel *channel, const struct bytes *stream, int far, size_t from, size_t until)
{
	size_t taken = few_complete(from);

	if (until == from)
		return;
	raw_write(far, stream->at + from, until - from);
	cr_assert(channel_read(channel) == PEER_ALIVE);
	take(channel, few, COUNT(few), &taken);
	cr_assert(taken == few_complete(until), "cut at %zu: %zu messages", until, taken);
}

Test(reading, a_stream_cut_anywhere)
{
	struct bytes stream = {.at = NULL};
	struct channel channel;
	int far = open_channel(&channel, 0);
	size_t cut;

	put_few(&stream);
	for (cut = 0; cut <= stream.length; cut++) {
		read_piece(&channel, &stream, far, 0, cut);
		read_piece(&channel, &stream, far, cut, stream.length);
		cr_assert(channel.kept == NULL && channel.kept_length == 0);
	}
	drop(&stream);
	channel_close(&channel);
	close(far);
}

/* Two cuts: the same header, or the same torn frame, is completed in two steps. */
Test(reading, a_stream_cut_anywhere_twice)
{
	struct bytes stream = {.at = NULL};
	struct channel channel;
	int far = open_channel(&channel, 0);
	size_t one, other;

	put_few(&stream);
	for (one = 0; one <= stream.length; one++)
		for (other = one; other <= stream.length; other++) {
			read_piece(&channel, &stream, far, 0, one);
			read_piece(&channel, &stream, far, one, other);
			read_piece(&channel, &stream, far, other, stream.length);
		}
	drop(&stream);
	channel_close(&channel);
	close(far);
}

Test(reading, one_byte_at_a_time)
{
	struct bytes stream = {.at = NULL};
	struct channel channel;
	int far = open_channel(&channel, 0);
	size_t i;

	put_few(&stream);
	for (i = 0; i < stream.length; i++)
		read_piece(&channel, &stream, far, i, i + 1);
	cr_assert(channel.messages_in == COUNT(few) && channel.bytes_in == stream.length);
	drop(&stream);
	channel_close(&channel);
	close(far);
}

/* All bytes are there at once, but the kernel hands them out in pieces of each size. */
Test(reading, in_pieces_of_every_size)
{
	struct bytes stream = {.at = NULL};
	struct channel channel;
	int far = open_channel(&channel, 0);
	struct shape *shape = shape_reads(&channel);

	put_few(&stream);
	for (shape->most = 1; shape->most <= stream.length; shape->most++) {
		raw_write(far, stream.at, stream.length);
		receive(&channel, few, COUNT(few));
	}
	drop(&stream);
	channel_close(&channel);
	close(far);
}

/* Several channels have torn frames at the same time; there is one buffer. */
Test(reading, torn_frames_of_several_channels_do_not_mix)
{
	enum { CHANNELS = 5 };
	struct bytes stream[CHANNELS];
	struct message sent[CHANNELS];
	struct channel channel[CHANNELS];
	int far[CHANNELS];
	size_t i, at, taken[CHANNELS] = {0};

	for (i = 0; i < CHANNELS; i++) {
		far[i] = open_channel(&channel[i], 0);
		sent[i] = sized("mixed", 40, (unsigned)i);
		stream[i] = (struct bytes){.at = NULL};
		put_frame(&stream[i], &sent[i]);
	}
	for (at = 0; at < stream[0].length; at++)
		for (i = 0; i < CHANNELS; i++) {
			raw_write(far[i], stream[i].at + at, 1);
			cr_assert(channel_read(&channel[i]) == PEER_ALIVE);
			take(&channel[i], &sent[i], 1, &taken[i]);
		}
	for (i = 0; i < CHANNELS; i++) {
		cr_assert(taken[i] == 1);
		drop(&stream[i]);
		sized_free(&sent[i]);
		channel_close(&channel[i]);
		close(far[i]);
	}
}

/* Write and read in turns, as much as the socket and the read buffer take.
 * Returns how many reads ended within a frame. */
static int
stream_through(struct channel *channel, int far, const struct bytes *stream,
               const struct message *want, size_t count)
{
	size_t written = 0, taken = 0, whole, i;
	uint64_t before = channel->bytes_in;
	int torn = 0;
	ssize_t sent;

	while (taken < count) {
		sent = send(far, stream->at + written, stream->length - written, MSG_NOSIGNAL);
		written += sent > 0 ? (size_t)sent : 0;
		await(channel->descriptor, POLLIN);
		cr_assert(channel_read(channel) == PEER_ALIVE);
		take(channel, want, count, &taken);
		for (whole = 0, i = 0; i < taken; i++)
			whole += message_size(&want[i]);
		torn += channel->bytes_in - before > whole;
	}
	cr_assert(written == stream->length);
	return torn;
}

Test(reading, more_frames_than_the_buffer_holds)
{
	enum { MANY = 5 * CHANNEL_READ_SIZE / 256 };
	struct message *sent = malloc(MANY * sizeof *sent);
	struct bytes stream = {.at = NULL};
	struct channel channel;
	int far = open_channel(&channel, 0);
	struct shape *shape = shape_reads(&channel);
	size_t i;

	cr_assert(sent != NULL);
	for (i = 0; i < MANY; i++) {
		sent[i] = sized("many", i % 509, (unsigned)i);
		put_frame(&stream, &sent[i]);
	}
	cr_assert(stream.length > (size_t)4 * CHANNEL_READ_SIZE);
	cr_assert(stream_through(&channel, far, &stream, sent, MANY) > 0, "no frame was torn");
	cr_assert(shape->calls < MANY / 100, "%d reads", shape->calls);
	cr_assert(channel.messages_in == MANY);
	for (i = 0; i < MANY; i++)
		sized_free(&sent[i]);
	free(sent);
	drop(&stream);
	channel_close(&channel);
	close(far);
}

/* A part of a header is here, and then comes more than the buffer holds. */
Test(reading, a_part_of_a_header_and_then_a_full_buffer)
{
	enum { MANY = CHANNEL_READ_SIZE / 1000 + 100 };
	struct message sent[MANY];
	struct bytes stream = {.at = NULL}, rest;
	struct channel channel;
	size_t head, i;

	for (i = 0; i < MANY; i++) {
		sent[i] = sized("full", 999, (unsigned)i);
		put_frame(&stream, &sent[i]);
	}
	cr_assert(stream.length > CHANNEL_READ_SIZE);
	for (head = 1; head <= FRAME_HEADER + 1; head++) {
		int far = open_channel(&channel, 0);

		raw_write(far, stream.at, head);
		cr_assert(read_until_refused(&channel) == 0);
		rest = (struct bytes){.at = stream.at + head, .length = stream.length - head};
		stream_through(&channel, far, &rest, sent, MANY);
		cr_assert(channel.bytes_in == stream.length);
		channel_close(&channel);
		close(far);
	}
	for (i = 0; i < MANY; i++)
		sized_free(&sent[i]);
	drop(&stream);
}

/* Around the size of the read buffer, and the largest; each between small ones. */
Test(reading, messages_larger_than_the_buffer)
{
	static const size_t sizes[] = {
		CHANNEL_READ_SIZE - 20, CHANNEL_READ_SIZE - 19, /* the frame fills the buffer */
		CHANNEL_READ_SIZE - 18, CHANNEL_READ_SIZE,      CHANNEL_READ_SIZE / 2 * 3 + 1,
		MESSAGE_DATA_MAX - 1,   MESSAGE_DATA_MAX};
	struct message sent[3];
	struct channel channel;
	size_t i, j;

	for (i = 0; i < COUNT(sizes); i++) {
		struct bytes stream = {.at = NULL};
		int far = open_channel(&channel, 0);

		sent[0] = sized("small", 10, 1);
		sent[1] = sized("large", sizes[i], 2);
		sent[2] = sized("small", 10, 3);
		for (j = 0; j < 3; j++)
			put_frame(&stream, &sent[j]);
		cr_assert(stream_through(&channel, far, &stream, sent, 3) >= 0);
		for (j = 0; j < 3; j++)
			sized_free(&sent[j]);
		drop(&stream);
		channel_close(&channel);
		close(far);
	}
}

Test(reading, the_largest_message_through_two_channels)
{
	char action[256] = "";
	struct message sent = sized(action, MESSAGE_DATA_MAX, 4);
	struct channel near, far;
	size_t taken = 0;

	memset(action, 'A', 255);
	action[255] = '\0';
	cr_assert(message_size(&sent) == FRAME_MAX);
	open_channels(&near, &far);
	cr_assert(sendmessage(&near, &sent) == 0);
	while (taken == 0) {
		cr_assert(channel_flush(&near) == PEER_ALIVE);
		await(far.descriptor, POLLIN);
		cr_assert(channel_read(&far) == PEER_ALIVE);
		take(&far, &sent, 1, &taken);
	}
	cr_assert(far.kept == NULL, "a channel keeps nothing of a complete frame");
	sized_free(&sent);
	channel_close(&near);
	channel_close(&far);
}

Test(reading, strings_stand_in_the_frame_and_stay_until_the_next_read)
{
	struct bytes stream = {.at = NULL};
	struct message message[COUNT(few)];
	struct channel channel;
	int far = open_channel(&channel, 0);
	size_t i;

	put_few(&stream);
	raw_write(far, stream.at, 3); /* the first is torn, the others are not */
	cr_assert(channel_read(&channel) == PEER_ALIVE);
	cr_assert(channel_next(&channel, &message[0]) == 0);
	raw_write(far, stream.at + 3, stream.length - 3);
	cr_assert(channel_read(&channel) == PEER_ALIVE);
	for (i = 0; i < COUNT(few); i++)
		cr_assert(channel_next(&channel, &message[i]) == 1);
	for (i = 0; i < COUNT(few); i++) {
		assert_message(&message[i], &few[i]);
		cr_assert((const unsigned char *)message[i].action ==
		          message[i].frame + FRAME_HEADER);
		cr_assert(message[i].data == NULL ||
		          message[i].data == message[i].action + strlen(message[i].action) + 1);
		cr_assert(message[i].handle == -1);
	}
	drop(&stream);
	channel_close(&channel);
	close(far);
}

Test(reading, nothing_is_no_end_of_file)
{
	struct message message;
	struct channel channel;
	int far = open_channel(&channel, 0);

	cr_assert(channel_read(&channel) == PEER_ALIVE);
	cr_assert(channel_next(&channel, &message) == 0);
	raw_write(far, "\0\0", 2); /* nor is nothing after half a header */
	cr_assert(channel_read(&channel) == PEER_ALIVE);
	cr_assert(channel_next(&channel, &message) == 0);
	cr_assert(channel_read(&channel) == PEER_ALIVE);
	cr_assert(channel_next(&channel, &message) == 0);
	channel_close(&channel);
	close(far);
}

Test(reading, interrupted_or_short_of_memory_loses_nothing)
{
	static const struct {
		int error, errors;
		bool starved;
	} table[] = {{EINTR, 3, false},
	             {EAGAIN, 1, false},
	             {EWOULDBLOCK, 1, false},
	             {ENOMEM, 1, true},
	             {ENOBUFS, 1, true}};
	struct bytes stream = {.at = NULL};
	struct channel channel;
	int far = open_channel(&channel, 0);
	struct shape *shape = shape_reads(&channel);
	size_t i;

	put_few(&stream);
	for (i = 0; i < COUNT(table); i++) {
		read_piece(&channel, &stream, far, 0, 5);
		raw_write(far, stream.at + 5, stream.length - 5);
		shape->error = table[i].error;
		shape->errors = table[i].errors;
		if (table[i].error != EINTR) {
			cr_assert(channel_read(&channel) == PEER_ALIVE);
			cr_assert(channel_take_starved(&channel) == table[i].starved);
			cr_assert(!channel_take_starved(&channel), "it is told once");
		}
		receive(&channel, few, COUNT(few));
		cr_assert(shape->errors == 0);
	}
	drop(&stream);
	channel_close(&channel);
	close(far);
}

/* ---- writing ------------------------------------------------------------- */

TestSuite(writing, .timeout = 60);

/* Every write takes at most this many bytes, for every such number. */
Test(writing, short_at_every_byte)
{
	struct channel channel;
	int far = open_channel(&channel, 0);
	struct shape *shape = shape_writes(&channel);
	struct bytes want = {.at = NULL};
	size_t i;

	put_few(&want);
	for (shape->most = 1; shape->most <= want.length; shape->most++) {
		struct bytes got = {.at = NULL};

		for (i = 0; i < COUNT(few); i++)
			cr_assert(sendmessage(&channel, &few[i]) == 0);
		shape->calls = 0;
		pump(&channel, far, &got, want.length);
		cr_assert(shape->calls == (int)((want.length + shape->most - 1) / shape->most));
		assert_bytes(&got, &want);
		drop(&got);
	}
	cr_assert(channel.written == want.length * want.length);
	cr_assert(channel.messages_out == want.length * COUNT(few));
	drop(&want);
	channel_close(&channel);
	close(far);
}

/* The first write stops at a byte, then more is queued behind the rest. */
Test(writing, continues_behind_a_short_write)
{
	struct channel channel;
	int far = open_channel(&channel, 0);
	struct shape *shape = shape_writes(&channel);
	struct bytes want = {.at = NULL};
	size_t cut, i;

	put_few(&want);
	put_few(&want);
	for (cut = 1; cut <= want.length / 2; cut++) {
		struct bytes got = {.at = NULL};

		for (i = 0; i < COUNT(few); i++)
			cr_assert(sendmessage(&channel, &few[i]) == 0);
		*shape = (struct shape){.watched = true, .most = cut, .full = 1};
		cr_assert(channel_flush(&channel) == PEER_ALIVE);
		cr_assert(channel_pending(&channel) == want.length / 2 - cut);
		cr_assert(shape->last == 0, "a short write says it: no second call");
		for (i = 0; i < COUNT(few); i++)
			cr_assert(sendmessage(&channel, &few[i]) == 0);
		*shape = (struct shape){.watched = true};
		pump(&channel, far, &got, want.length);
		assert_bytes(&got, &want);
		drop(&got);
	}
	drop(&want);
	channel_close(&channel);
	close(far);
}

/* This many messages of about 1000 bytes, each with other data. */
static void
send_kilobytes(struct channel *channel, struct bytes *want, unsigned count)
{
	for (; count > 0; count--) {
		struct message message = sized("kilobyte", 1000, count);

		message.receiver_pid = (pid_t)want->length;
		cr_assert(sendmessage(channel, &message) == 0);
		put_frame(want, &message);
		sized_free(&message);
	}
}

/* A part of the queue is written, and then the queue needs room: its bytes are moved, within
 * its memory or to a larger one, whatever the sizes of the parts are. */
Test(writing, moves_its_queue_without_a_change)
{
	enum { QUEUED = 31, SIZE = FRAME_HEADER + 8 + 1 + 1000 + 1 };
	struct channel channel;
	size_t written, round;

	for (written = 1; written < (size_t)QUEUED * SIZE; written += 333) {
		struct bytes want = {.at = NULL}, got = {.at = NULL};
		int far = open_channel(&channel, 0); /* a new channel: its memory is small */
		struct shape *shape = shape_writes(&channel);

		for (round = 0; round < 3; round++) {
			send_kilobytes(&channel, &want, QUEUED);
			*shape = (struct shape){.watched = true, .most = written, .full = 1};
			cr_assert(channel_flush(&channel) == PEER_ALIVE);
			cr_assert(raw_collect(far, &got));
		}
		send_kilobytes(&channel, &want, QUEUED);
		*shape = (struct shape){.watched = true};
		pump(&channel, far, &got, want.length);
		assert_bytes(&got, &want);
		drop(&want);
		drop(&got);
		channel_close(&channel);
		close(far);
	}
}

/* A narrow socket and a reader that takes 100 bytes now and then. */
Test(writing, to_a_slow_reader_through_a_narrow_socket)
{
	struct channel channel;
	int far = open_channel(&channel, 0);
	struct bytes want = {.at = NULL}, got = {.at = NULL};
	unsigned char piece[100];
	bool waited = false;
	unsigned i;
	ssize_t count;

	narrow(channel.descriptor);
	for (i = 0; i < 300; i++) {
		struct message message = sized("slow", i * 7, i);

		cr_assert(sendmessage(&channel, &message) == 0);
		put_frame(&want, &message);
		sized_free(&message);
	}
	while (got.length < want.length) {
		cr_assert(channel_flush(&channel) == PEER_ALIVE);
		waited |= channel_pending(&channel) > 0;
		await(far, POLLIN);
		count = recv(far, piece, sizeof piece, 0);
		cr_assert(count > 0);
		put(&got, piece, (size_t)count);
	}
	cr_assert(waited && channel_pending(&channel) == 0);
	assert_bytes(&got, &want);
	drop(&want);
	drop(&got);
	channel_close(&channel);
	close(far);
}

Test(writing, to_a_full_socket_waits_in_order)
{
	struct channel channel;
	int far = open_channel(&channel, 0);
	struct bytes want = {.at = NULL}, got = {.at = NULL};
	size_t before, i;

	narrow(channel.descriptor);
	jam(&channel, &want);
	before = channel_pending(&channel);
	for (i = 0; i < 100; i++) {
		struct message message = sized("later", i, (unsigned)i);

		cr_assert(sendmessage(&channel, &message) == 0);
		put_frame(&want, &message);
		before += message_size(&message);
		cr_assert(channel_flush(&channel) == PEER_ALIVE, "it must not block either");
		cr_assert(channel_pending(&channel) == before);
		sized_free(&message);
	}
	pump(&channel, far, &got, want.length);
	assert_bytes(&got, &want);
	drop(&want);
	drop(&got);
	channel_close(&channel);
	close(far);
}

Test(writing, past_the_limit_queues_nothing)
{
	enum { LIMIT = 100000 };
	struct message message = sized("limit", 1000, 1), small = text("", NULL);
	struct channel channel;
	int far = open_channel(&channel, LIMIT);
	struct bytes want = {.at = NULL}, got = {.at = NULL};
	size_t size = message_size(&message), pending;

	narrow(channel.descriptor);
	jam(&channel, &want);
	while ((pending = channel_pending(&channel)) + size <= LIMIT) {
		cr_assert(sendmessage(&channel, &message) == 0);
		put_frame(&want, &message);
	}
	errno = 0;
	cr_assert(sendmessage(&channel, &message) == -1 && errno == ENOBUFS);
	cr_assert(channel_pending(&channel) == pending, "nothing may be queued");
	while (channel_pending(&channel) + message_size(&small) <= LIMIT) { /* to the last byte */
		cr_assert(sendmessage(&channel, &small) == 0, "a smaller one still fits");
		put_frame(&want, &small);
	}
	pump(&channel, far, &got, want.length);
	cr_assert(sendmessage(&channel, &message) == 0, "it works again");
	put_frame(&want, &message);
	pump(&channel, far, &got, want.length);
	assert_bytes(&got, &want);
	sized_free(&message);
	drop(&want);
	drop(&got);
	channel_close(&channel);
	close(far);
}

/* The limit is reached exactly, or missed by one byte. */
Test(writing, the_limit_is_exact)
{
	struct message message = sized("limit", 1000, 1);
	struct channel channel;
	int more;

	for (more = -1; more <= 1; more++) {
		channel_init(&channel, 2 * message_size(&message) + (size_t)(more + 1) - 1);
		cr_assert(sendmessage(&channel, &message) == 0);
		cr_assert(sendmessage(&channel, &message) == (more < 0 ? -1 : 0));
		channel_close(&channel);
	}
	sized_free(&message);
}

Test(writing, without_a_limit_takes_everything)
{
	struct message message = sized("no limit", 500000, 1);
	struct channel channel;
	int i;

	channel_init(&channel, 0);
	for (i = 0; i < 2 * CHANNEL_QUEUE_MAX / 500000; i++)
		cr_assert(sendmessage(&channel, &message) == 0);
	cr_assert(channel_pending(&channel) > CHANNEL_QUEUE_MAX);
	sized_free(&message);
	channel_close(&channel);
}

Test(writing, interrupted_or_short_of_memory_loses_nothing)
{
	static const struct {
		int error, errors;
		bool starved;
	} table[] = {
		{EINTR, 3, false},       {EAGAIN, 2, false}, {EWOULDBLOCK, 2, false},
		{ENOMEM, 1, true},       {ENOBUFS, 1, true},
#ifdef ETOOMANYREFS
		{ETOOMANYREFS, 1, true},
#endif
	};
	struct bytes want = {.at = NULL};
	struct channel channel;
	int far = open_channel(&channel, 0);
	struct shape *shape = shape_writes(&channel);
	size_t i, j;

	put_few(&want);
	for (i = 0; i < COUNT(table); i++) {
		struct bytes got = {.at = NULL};

		for (j = 0; j < COUNT(few); j++)
			cr_assert(sendmessage(&channel, &few[j]) == 0);
		shape->error = table[i].error;
		shape->errors = table[i].errors;
		cr_assert(channel_flush(&channel) == PEER_ALIVE);
		cr_assert(channel_pending(&channel) == (table[i].error == EINTR ? 0 : want.length));
		cr_assert(channel_take_starved(&channel) == table[i].starved);
		pump(&channel, far, &got, want.length);
		assert_bytes(&got, &want);
		cr_assert(shape->errors == 0);
		drop(&got);
	}
	drop(&want);
	channel_close(&channel);
	close(far);
}

/* A turn of the loop is one write and one read, however many messages were sent. */
Test(writing, frames_of_one_turn_leave_in_one_write)
{
	enum { MANY = 1000 };
	static unsigned char room[MANY * 64];
	struct channel channel;
	int far = open_channel(&channel, CHANNEL_QUEUE_MAX), waiting = 0, i;
	struct shape *shape = shape_writes(&channel);
	struct bytes want = {.at = NULL}, got = {.at = NULL};
	struct message message = text("tick", "{\"n\":1}");

	for (i = 0; i < MANY; i++) {
		message.receiver_pid = i;
		cr_assert(sendmessage(&channel, &message) == 0);
		put_frame(&want, &message);
	}
	cr_assert(shape->calls == 0, "sendmessage itself writes nothing");
	cr_assert(channel_flush(&channel) == PEER_ALIVE && channel_pending(&channel) == 0);
	cr_assert(shape->calls == 1, "%d writes", shape->calls);
	cr_assert(ioctl(far, FIONREAD, &waiting) == 0 && (size_t)waiting == want.length);
	got = (struct bytes){.at = room, .length = (size_t)recv(far, room, sizeof room, 0)};
	assert_bytes(&got, &want);
	drop(&want);
	channel_close(&channel);
	close(far);
}

/* ---- what must be refused ------------------------------------------------ */

TestSuite(refusing, .timeout = 60);

/* A frame to break: action "action" from 12 to 17, its NUL at 18, data "{}" at
 * 19 and 20, its NUL at 21. */
static const char sound[] = "\0\0\0\x12\4\3\1\6\0\0\0\1action\0{}\0";

static const struct {
	const char *what;
	size_t at, length; /* these bytes of the frame are replaced */
	const char *with;
	bool header; /* the header alone shows that it is broken */
} corruptions[] = {
	{"length 0", 0, 4, "\0\0\0\0", true},
	{"length 1", 0, 4, "\0\0\0\1", true},
	{"length 7, not even a header", 0, 4, "\0\0\0\7", true},
	{"length 8, a header alone", 0, 4, "\0\0\0\x8", true},
	{"length 4 GiB - 1", 0, 4, "\xff\xff\xff\xff", true},
	{"length 4 GiB - 4", 0, 4, "\xff\xff\xff\xfc", true},
	{"length 2 GiB", 0, 4, "\x80\0\0\0", true},
	{"length in the wrong byte order", 0, 4, "\x12\0\0\0", true},
	{"length one too short for the action", 0, 4, "\0\0\0\xf", true},
	{"action longer than the frame", 7, 1, "\xff", true},
	{"action one longer than the frame", 7, 1, "\x9", true},
	{"from 5", 4, 1, "\5", true},
	{"from 6", 4, 1, "\6", true},
	{"from 128", 4, 1, "\x80", true},
	{"from 255", 4, 1, "\xff", true},
	{"to 5", 5, 1, "\5", true},
	{"to 128", 5, 1, "\x80", true},
	{"to 255", 5, 1, "\xff", true},
	{"flag 4", 6, 1, "\4", true},
	{"flag 4 with data", 6, 1, "\5", true},
	{"flag 8", 6, 1, "\x9", true},
	{"flag 128", 6, 1, "\x81", true},
	{"all flags", 6, 1, "\xff", true},
	{"receiverPid -1", 8, 4, "\xff\xff\xff\xff", true},
	{"receiverPid INT_MIN", 8, 4, "\x80\0\0\0", true},
	{"data without its flag", 6, 1, "\0", true},
	{"a handle that did not come", 6, 1, "\3", false},
	{"no NUL after action", 18, 1, "x", false},
	{"no NUL after data", 21, 1, "x", false},
	{"NUL at the start of action", 12, 1, "\0", false},
	{"NUL inside action", 15, 1, "\0", false},
	{"NUL at the end of action", 17, 1, "\0", false},
	{"action one shorter", 7, 1, "\5", false},
	{"action one longer", 7, 1, "\7", false},
	{"length one shorter", 0, 4, "\0\0\0\x11", false},
};

/* A good frame, a bad one, and more good ones that must not be delivered. */
static void
put_corrupt(struct bytes *stream, size_t i)
{
	put_few(stream);
	put(stream, sound, sizeof sound - 1);
	memcpy(stream->at + stream->length - (sizeof sound - 1) + corruptions[i].at,
	       corruptions[i].with, corruptions[i].length);
	put_few(stream);
	put(stream, "xxxx", 4);
}

Test(refusing, the_frame_that_is_broken_below_is_sound_itself)
{
	const struct message want = {"action", ROLE_APP, ROLE_AGENT, 1, "{}", 2, -1, NULL};
	struct channel channel;
	int far = open_channel(&channel, 0);

	raw_write(far, sound, sizeof sound - 1);
	receive(&channel, &want, 1);
	channel_close(&channel);
	close(far);
}

/* All in one read: the good frames before it are delivered, then -1. */
Test(refusing, every_corruption_in_one_read)
{
	struct message message;
	struct channel channel;
	size_t i, j;

	for (i = 0; i < COUNT(corruptions); i++) {
		struct bytes stream = {.at = NULL};
		int far = open_channel(&channel, 0);

		put_corrupt(&stream, i);
		raw_write(far, stream.at, stream.length);
		cr_assert(channel_read(&channel) == PEER_ALIVE);
		for (j = 0; j < COUNT(few); j++) {
			cr_assert(channel_next(&channel, &message) == 1, "%s", corruptions[i].what);
			assert_message(&message, &few[j]);
		}
		cr_assert(channel_next(&channel, &message) == -1, "%s", corruptions[i].what);
		channel_close(&channel);
		close(far);
		drop(&stream);
	}
}

/* Torn at every place: byte by byte, and in pieces of other sizes. */
Test(refusing, every_corruption_torn)
{
	struct channel channel;
	size_t i, piece;

	for (i = 0; i < COUNT(corruptions); i++)
		for (piece = 1; piece < sizeof sound; piece++) {
			struct bytes stream = {.at = NULL};
			int far = open_channel(&channel, 0);

			shape_reads(&channel)->most = piece;
			put_corrupt(&stream, i);
			raw_write(far, stream.at, stream.length);
			cr_assert(read_until_refused(&channel) == -1, "%s, in pieces of %zu",
			          corruptions[i].what, piece);
			cr_assert(channel.messages_in == COUNT(few));
			channel_close(&channel);
			close(far);
			drop(&stream);
		}
}

/* A lie in the header is seen with the header: no memory for it, no wait. */
Test(refusing, a_bad_header_before_its_frame_is_complete)
{
	struct channel channel;
	size_t i, cut;
	char wire[sizeof sound];

	for (i = 0; i < COUNT(corruptions); i++)
		for (cut = 0; corruptions[i].header && cut < FRAME_HEADER; cut += 4) {
			int far = open_channel(&channel, 0);

			memcpy(wire, sound, sizeof sound);
			memcpy(wire + corruptions[i].at, corruptions[i].with,
			       corruptions[i].length);
			if (cut > 0) {
				raw_write(far, wire, cut);
				cr_assert(read_until_refused(&channel) == 0);
			}
			raw_write(far, wire + cut, FRAME_HEADER - cut);
			cr_assert(read_until_refused(&channel) == -1, "%s", corruptions[i].what);
			channel_close(&channel);
			close(far);
		}
}

/* The size limit is exact, for the shortest and for the longest action. */
Test(refusing, data_one_byte_beyond_the_limit)
{
	static const unsigned actions[] = {0, 1, 255};
	struct channel channel;
	unsigned char header[FRAME_HEADER] = {0};
	uint32_t length;
	size_t i;
	int more;

	for (i = 0; i < COUNT(actions); i++)
		for (more = 0; more <= 1; more++) {
			int far = open_channel(&channel, 0);

			length = htonl(8 + actions[i] + 1 + MESSAGE_DATA_MAX + 1 + (unsigned)more);
			memcpy(header, &length, 4);
			header[FRAME_FLAGS] = FRAME_HAS_DATA;
			header[FRAME_ACTION_LENGTH] = (unsigned char)actions[i];
			raw_write(far, header, sizeof header);
			cr_assert(read_until_refused(&channel) == -more);
			channel_close(&channel);
			close(far);
		}
}

/* Values that are just in range are allowed. */
Test(refusing, nothing_that_is_in_range)
{
	struct message want = {"action", ROLE_NONE, ROLE_NONE, 0, "{}", 2, -1, NULL};
	struct channel channel;
	int far = open_channel(&channel, 0), from, to;

	for (from = ROLE_NONE; from <= ROLE_APP; from++)
		for (to = ROLE_NONE; to <= ROLE_APP; to++) {
			struct bytes stream = {.at = NULL};

			want.from = (enum role)from;
			want.to = (enum role)to;
			want.receiver_pid = from == to ? 0x7fffffff : 0x00ffffff;
			put_frame(&stream, &want);
			raw_write(far, stream.at, stream.length);
			receive(&channel, &want, 1);
			drop(&stream);
		}
	channel_close(&channel);
	close(far);
}

/* ---- the end ------------------------------------------------------------- */

TestSuite(ending, .timeout = 60);

/* Expect `few`, and after them that the peer is gone, for good. */
static void
assert_last_words(struct channel *channel)
{
	struct message message;
	size_t taken = 0;

	receive(channel, few, COUNT(few));
	cr_assert(channel_read(channel) == PEER_GONE);
	take(channel, few, 0, &taken);
	cr_assert(channel_read(channel) == PEER_GONE, "gone is gone");
	cr_assert(channel_next(channel, &message) == 0);
}

Test(ending, last_words_are_heard)
{
	struct bytes stream = {.at = NULL};
	struct channel channel;
	int far = open_channel(&channel, 0);

	put_few(&stream);
	raw_write(far, stream.at, stream.length);
	close(far);
	await(channel.descriptor, POLLHUP);
	assert_last_words(&channel);
	drop(&stream);
	channel_close(&channel);
}

Test(ending, within_a_frame_drops_it)
{
	struct bytes stream = {.at = NULL}, torn = {.at = NULL};
	struct message late = sized("torn", 50, 1);
	struct channel channel;
	size_t cut;

	put_few(&stream);
	put_frame(&torn, &late);
	for (cut = 1; cut < torn.length; cut++) {
		int far = open_channel(&channel, 0);

		raw_write(far, stream.at, stream.length);
		raw_write(far, torn.at, cut);
		close(far);
		assert_last_words(&channel);
		channel_close(&channel);
		cr_assert(channel.kept == NULL);
	}
	sized_free(&late);
	drop(&stream);
	drop(&torn);
}

/* A peer that dies with unread bytes: read fails with ECONNRESET instead of returning 0. */
Test(ending, by_a_reset_is_a_death_after_last_words)
{
	struct bytes stream = {.at = NULL};
	struct channel channel;
	int far = open_channel(&channel, 0);
	struct shape *shape = shape_reads(&channel);
	size_t taken = 0;

	cr_assert(sendmessage(&channel, &few[0]) == 0);
	cr_assert(channel_flush(&channel) == PEER_ALIVE);
	put_few(&stream);
	raw_write(far, stream.at, stream.length);
	close(far);
	receive(&channel, few, COUNT(few));
	cr_assert(channel_read(&channel) == PEER_GONE);
	cr_assert(shape->last == ECONNRESET, "errno was %d: not what is to be tested", shape->last);
	take(&channel, few, 0, &taken);
	drop(&stream);
	channel_close(&channel);
}

/* After a write has failed, the last messages of the dead peer are still read. */
Test(ending, seen_by_a_write_leaves_last_words_readable)
{
	struct bytes stream = {.at = NULL};
	struct channel channel;
	int far = open_channel(&channel, 0), handle[2], before;

	put_few(&stream);
	raw_write(far, stream.at, stream.length);
	close(far);
	cr_assert(pipe(handle) == 0);
	before = open_descriptors();
	cr_assert(sendmessage(&channel, &few[0]) == 0, "nobody knows yet");
	cr_assert(sendmessage(&channel, &(struct message){.action = "h", .handle = handle[0]}) ==
	          0);
	cr_assert(channel_flush(&channel) == PEER_GONE, "and SIGPIPE did not come");
	cr_assert(channel_pending(&channel) == 0 && channel.queue == NULL, "it is of no use now");
	cr_assert(open_descriptors() == before, "nor is the handle");
	errno = 0;
	cr_assert(sendmessage(&channel, &few[0]) == -1 && errno == EPIPE);
	cr_assert(channel_pending(&channel) == 0);
	cr_assert(channel_flush(&channel) == PEER_GONE);
	cr_assert(channel_drain(&channel, PATIENCE) == PEER_GONE);
	assert_last_words(&channel);
	drop(&stream);
	close(handle[0]);
	close(handle[1]);
	channel_close(&channel);
}

/* The other end has only stopped reading (shutdown): it may still send. */
Test(ending, of_one_direction_only)
{
	struct bytes stream = {.at = NULL};
	struct channel channel;
	int far = open_channel(&channel, 0);

	cr_assert(shutdown(far, SHUT_RD) == 0);
	cr_assert(sendmessage(&channel, &few[0]) == 0);
	cr_assert(channel_flush(&channel) == PEER_GONE);
	put_few(&stream);
	raw_write(far, stream.at, stream.length);
	receive(&channel, few, COUNT(few));
	cr_assert(channel_read(&channel) == PEER_ALIVE);
	drop(&stream);
	channel_close(&channel);
	close(far);
}

Test(ending, close_frees_all_and_once_more_is_nothing)
{
	struct channel channel;
	int before = open_descriptors(), far = open_channel(&channel, 0);
	struct message message = text("late", "1");

	message.handle = far;
	cr_assert(sendmessage(&channel, &message) == 0);
	channel_close(&channel);
	cr_assert(channel.descriptor == -1 && channel_pending(&channel) == 0);
	cr_assert(channel.queue == NULL && channel.kept == NULL && channel.waiting == NULL);
	channel_close(&channel);
	cr_assert(open_descriptors() == before + 1);
	close(far);
}

Test(ending, attach_makes_it_non_blocking_and_close_on_exec)
{
	struct channel channel;
	int far = open_channel(&channel, 0), closed;

	cr_assert((fcntl(channel.descriptor, F_GETFL) & O_NONBLOCK) != 0);
	cr_assert((fcntl(channel.descriptor, F_GETFD) & FD_CLOEXEC) != 0);
	closed = channel.descriptor;
	channel_close(&channel);
	close(far);
	channel_init(&channel, 0);
	cr_assert(sendmessage(&channel, &few[0]) == 0);
	errno = 0;
	cr_assert(channel_attach(&channel, closed) == -1 && errno == EBADF);
	cr_assert(channel.descriptor == -1 && channel_pending(&channel) > 0);
	channel_close(&channel);
}

/* ---- handles ------------------------------------------------------------- */

TestSuite(handles, .timeout = 60);

/* Send a message with a handle, or without: -1. */
static void
send_handle(struct channel *channel, const char *action, int handle)
{
	struct message message = text(action, "\"h\"");

	message.handle = handle;
	cr_assert(sendmessage(channel, &message) == 0);
}

/* The next message, with a deadline. Its handle is the caller's. */
static struct message
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

Test(handles, work_at_the_receiver_after_the_sender_closed_its_own)
{
	struct channel near, far;
	int ends[2], before = open_descriptors();
	struct message message;
	char got[4] = "";

	open_channels(&near, &far);
	cr_assert(pipe(ends) == 0);
	send_handle(&near, "pipe", ends[1]);
	cr_assert(close(ends[1]) == 0, "what was sent stays the sender's to close");
	cr_assert(channel_flush(&near) == PEER_ALIVE);
	message = next_message(&far);
	cr_assert(message.handle >= 0);
	cr_assert((fcntl(message.handle, F_GETFD) & FD_CLOEXEC) != 0, "close on exec");
	cr_assert(write(message.handle, "out", 3) == 3);
	close(message.handle);
	cr_assert(read(ends[0], got, sizeof got) == 3 && strcmp(got, "out") == 0);
	cr_assert(read(ends[0], got, sizeof got) == 0, "somebody still holds the other end");
	close(ends[0]);
	channel_close(&near);
	channel_close(&far);
	cr_assert(open_descriptors() == before);
}

Test(handles, that_wait_are_closed_on_exec)
{
	struct channel channel;
	int ends[2], i;

	cr_assert(pipe(ends) == 0);
	channel_init(&channel, 0);
	send_handle(&channel, "waits", ends[0]);
	for (i = 0; i < SHAPED; i++)
		if (i != ends[0] && same_file(i, ends[0]) && i != ends[1])
			break;
	cr_assert(i < SHAPED && (fcntl(i, F_GETFD) & FD_CLOEXEC) != 0);
	channel_close(&channel);
	close(ends[0]);
	close(ends[1]);
}

/* How many handles come with the next bytes, of this number; they are closed. */
static size_t
raw_read_handles(int descriptor, size_t length)
{
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(8 * sizeof(int))];
	} control;
	unsigned char room[256];
	struct iovec part = {.iov_base = room, .iov_len = length};
	struct msghdr header = {.msg_iov = &part,
	                        .msg_iovlen = 1,
	                        .msg_control = &control,
	                        .msg_controllen = sizeof control};
	struct cmsghdr *first;
	size_t i, count;
	int handle;

	cr_assert(recvmsg(descriptor, &header, 0) == (ssize_t)length);
	first = CMSG_FIRSTHDR(&header);
	if (first == NULL)
		return 0;
	count = (first->cmsg_len - CMSG_LEN(0)) / sizeof handle;
	for (i = 0; i < count; i++) {
		memcpy(&handle, CMSG_DATA(first) + i * sizeof handle, sizeof handle);
		close(handle);
	}
	return count;
}

/* As messenger.h says of FRAME_HAS_HANDLE: not a byte earlier or later. */
Test(handles, come_with_the_first_byte_of_their_frame)
{
	struct message other = text("other", "1"), message = text("handle", "1");
	struct channel channel;
	int far = open_channel(&channel, 0), round;

	message.handle = far;
	for (round = 0; round < 3; round++) {
		cr_assert(sendmessage(&channel, &other) == 0);
		cr_assert(sendmessage(&channel, &message) == 0);
		cr_assert(sendmessage(&channel, &other) == 0);
	}
	cr_assert(channel_flush(&channel) == PEER_ALIVE);
	for (round = 0; round < 3; round++) {
		cr_assert(raw_read_handles(far, message_size(&other)) == 0);
		cr_assert(raw_read_handles(far, 1) == 1);
		cr_assert(raw_read_handles(far, message_size(&message) - 1) == 0);
		cr_assert(raw_read_handles(far, message_size(&other)) == 0);
	}
	channel_close(&channel);
	close(far);
}

/* Which of the messages has a handle; the pattern has runs and gaps. */
static bool
has_handle(size_t i)
{
	return i % 7 == 0 || i % 7 == 1 || i % 7 == 4;
}

/* The same, while the sender still writes: the pieces may be small, and a socket holds few of
 * them. */
static struct message
pumped_message(struct channel *near, struct channel *far)
{
	int64_t deadline = clutch_now() + PATIENCE;
	struct message message;
	int found;

	while ((found = channel_next(far, &message)) == 0) {
		cr_assert(clutch_now() < deadline, "nothing came in %d ms", PATIENCE);
		cr_assert(channel_flush(near) == PEER_ALIVE);
		cr_assert(channel_read(far) == PEER_ALIVE);
	}
	cr_assert(found == 1);
	return message;
}

enum { INTERLEAVED = 40 };

/* Messages with and without handles; each handle must come with its own. */
static void
interleave(size_t write_most, size_t read_most)
{
	int ends[INTERLEAVED][2], before = open_descriptors();
	struct channel near, far;
	struct message message;
	char action[8];
	size_t i;

	open_channels(&near, &far);
	shape_writes(&near)->most = write_most;
	shape_reads(&far)->most = read_most;
	for (i = 0; i < INTERLEAVED; i++) {
		cr_assert(pipe(ends[i]) == 0);
		snprintf(action, sizeof action, "h%zu", i);
		send_handle(&near, action, has_handle(i) ? ends[i][0] : -1);
	}
	for (i = 0; i < INTERLEAVED; i++) {
		message = pumped_message(&near, &far);
		snprintf(action, sizeof action, "h%zu", i);
		cr_assert_str_eq(message.action, action);
		cr_assert((message.handle >= 0) == has_handle(i), "%s", action);
		cr_assert(message.handle == -1 || same_file(message.handle, ends[i][0]), "%s",
		          action);
		if (message.handle >= 0)
			close(message.handle);
		close(ends[i][0]);
		close(ends[i][1]);
	}
	channel_close(&near);
	channel_close(&far);
	cr_assert(open_descriptors() == before);
}

Test(handles, come_with_their_own_message_among_others)
{
	interleave(0, 0);
}

/* A frame of theirs is 19 or 20 bytes long: torn in all ways. */
Test(handles, come_with_their_own_message_when_frames_are_torn)
{
	size_t most;

	for (most = 1; most <= 45; most++) {
		interleave(most, 0);
		interleave(0, most);
		interleave(most, 1);
		interleave(1, most);
	}
}

/* The socket is full and the reader slow: handles wait, in order. */
Test(handles, wait_for_a_full_socket)
{
	struct message filler = sized("filler", 3000, 1), message;
	int ends[INTERLEAVED][2];
	struct channel near, far;
	size_t i, seen;

	open_channels(&near, &far);
	narrow(near.descriptor);
	for (i = 0; i < INTERLEAVED; i++) {
		cr_assert(pipe(ends[i]) == 0);
		filler.handle = has_handle(i) ? ends[i][1] : -1;
		cr_assert(sendmessage(&near, &filler) == 0);
		cr_assert(channel_flush(&near) == PEER_ALIVE);
	}
	cr_assert(near.waiting_count > 1, "the socket is not full");
	for (seen = 0; seen < INTERLEAVED;) {
		cr_assert(channel_flush(&near) == PEER_ALIVE);
		await(far.descriptor, POLLIN);
		cr_assert(channel_read(&far) == PEER_ALIVE);
		for (; channel_next(&far, &message) == 1; seen++) {
			assert_message(&message, &filler);
			cr_assert((message.handle >= 0) == has_handle(seen), "%zu", seen);
			cr_assert(message.handle == -1 || same_file(message.handle, ends[seen][1]));
			if (message.handle >= 0)
				close(message.handle);
		}
	}
	sized_free(&filler);
	for (i = 0; i < INTERLEAVED; i++) {
		close(ends[i][0]);
		close(ends[i][1]);
	}
	channel_close(&near);
	channel_close(&far);
}

Test(handles, do_not_leak_when_the_receiver_is_gone)
{
	struct channel near, far;
	int ends[2], before, i;

	cr_assert(pipe(ends) == 0);
	before = open_descriptors();
	open_channels(&near, &far);
	for (i = 0; i < 5; i++)
		send_handle(&near, "gone", ends[0]);
	channel_close(&far);
	cr_assert(channel_flush(&near) == PEER_GONE);
	cr_assert(open_descriptors() == before + 1, "they wait for nobody");
	errno = 0;
	cr_assert(sendmessage(&near, &(struct message){.action = "h", .handle = ends[0]}) == -1 &&
	          errno == EPIPE);
	channel_close(&near);
	cr_assert(open_descriptors() == before);
	close(ends[0]);
	close(ends[1]);
}

/* When the channel is closed, the handles have arrived, but their frame has not. */
Test(handles, do_not_leak_when_their_frame_stays_torn)
{
	const char torn[] = "\0\0\0\x12\4\3\3\6";
	struct message message;
	struct channel channel;
	int ends[2], before, far;

	cr_assert(pipe(ends) == 0);
	before = open_descriptors();
	far = open_channel(&channel, 0);
	raw_write_handles(far, torn, sizeof torn - 1, &ends[0], 1);
	cr_assert(channel_read(&channel) == PEER_ALIVE);
	cr_assert(channel_next(&channel, &message) == 0);
	cr_assert(open_descriptors() == before + 3);
	close(far);
	cr_assert(channel_read(&channel) == PEER_GONE);
	channel_close(&channel);
	cr_assert(open_descriptors() == before);
	close(ends[0]);
	close(ends[1]);
}

Test(handles, that_wait_are_limited_where_the_queue_is)
{
	struct message message = text("h", NULL), plain = text("p", NULL);
	struct channel channel;
	int before = open_descriptors(), far = open_channel(&channel, CHANNEL_QUEUE_MAX), i;
	size_t pending;

	message.handle = far;
	for (i = 0; i < CHANNEL_HANDLES_MAX; i++)
		cr_assert(sendmessage(&channel, &message) == 0);
	pending = channel_pending(&channel);
	errno = 0;
	cr_assert(sendmessage(&channel, &message) == -1 && errno == ENOBUFS);
	cr_assert(channel_pending(&channel) == pending, "nothing may be queued");
	cr_assert(open_descriptors() == before + 2 + CHANNEL_HANDLES_MAX);
	cr_assert(sendmessage(&channel, &plain) == 0, "others may still speak");
	cr_assert(channel_flush(&channel) == PEER_ALIVE && channel_pending(&channel) == 0);
	cr_assert(sendmessage(&channel, &message) == 0, "it works again");
	channel_close(&channel);
	close(far);
	cr_assert(open_descriptors() == before);
}

Test(handles, without_a_descriptor_left_to_wait_in)
{
	struct message message = text("h", "1");
	struct channel channel;
	struct rlimit limit, low;
	int far = open_channel(&channel, 0), result, error;

	message.handle = far;
	cr_assert(getrlimit(RLIMIT_NOFILE, &limit) == 0);
	low = limit;
	low.rlim_cur = 0;
	while (fcntl((int)low.rlim_cur, F_GETFD) != -1)
		low.rlim_cur++;
	cr_assert(setrlimit(RLIMIT_NOFILE, &low) == 0);
	errno = 0;
	result = sendmessage(&channel, &message);
	error = errno;
	cr_assert(setrlimit(RLIMIT_NOFILE, &limit) == 0);
	cr_assert(result == -1 && error == EMFILE, "%d, errno %d", result, error);
	cr_assert(channel_pending(&channel) == 0 && channel.waiting_count == 0);
	cr_assert(sendmessage(&channel, &message) == 0, "it works again");
	channel_close(&channel);
	close(far);
}

/* The receiver has no descriptor left: the message comes, the handle does not, and the next
 * handles come with the right messages. A forwarded message does not announce a handle. */
Test(handles, that_find_no_room_at_the_receiver_are_lost_alone)
{
	struct channel near, far, next;
	struct message message;
	struct rlimit limit, low;
	int ends[2], ear;
	unsigned char wire[64];

	if (under_valgrind())
		cr_skip_test("not under valgrind");
	ear = open_channel(&next, 0);
	open_channels(&near, &far);
	cr_assert(pipe(ends) == 0);
	send_handle(&near, "lost", ends[0]);
	send_handle(&near, "kept", ends[1]);
	cr_assert(channel_flush(&near) == PEER_ALIVE);
	cr_assert(getrlimit(RLIMIT_NOFILE, &limit) == 0);
	low = limit;
	low.rlim_cur = 0;
	while (fcntl((int)low.rlim_cur, F_GETFD) != -1)
		low.rlim_cur++;
	cr_assert(setrlimit(RLIMIT_NOFILE, &low) == 0);
	message = next_message(&far);
	cr_assert(setrlimit(RLIMIT_NOFILE, &limit) == 0);
	cr_assert_str_eq(message.action, "lost");
	cr_assert(message.handle == -1);
	cr_assert(sendmessage(&next, &message) == 0 && channel_flush(&next) == PEER_ALIVE);
	cr_assert(recv(ear, wire, sizeof wire, 0) > FRAME_HEADER);
	cr_assert(wire[FRAME_FLAGS] == FRAME_HAS_DATA, "a flag without a handle is a crime");
	message = next_message(&far);
	cr_assert_str_eq(message.action, "kept");
	cr_assert(same_file(message.handle, ends[1]));
	close(message.handle);
	channel_close(&near);
	channel_close(&far);
	channel_close(&next);
	close(ear);
	close(ends[0]);
	close(ends[1]);
}

/* The same on a BSD, where the first read fails, and the second brings the bytes alone. */
Test(handles, that_find_no_room_on_a_bsd_are_lost_alone)
{
	static const int errors[] = {EMSGSIZE, EMFILE};
	struct channel near, far;
	struct message message;
	struct shape *shape;
	size_t i;

	for (i = 0; i < sizeof errors / sizeof errors[0]; i++) {
		open_channels(&near, &far);
		send_handle(&near, "lost", STDIN_FILENO);
		cr_assert(channel_flush(&near) == PEER_ALIVE);
		shape = shape_reads(&far);
		shape->error = errors[i];
		shape->errors = 1;
		shape->strips = true;
		cr_assert(channel_read(&far) == PEER_ALIVE && channel_next(&far, &message) == 0);
		message = next_message(&far);
		cr_assert_str_eq(message.action, "lost");
		cr_assert(message.handle == -1 && far.handles_lost == 1);
		shape->strips = false;
		send_handle(&near, "kept", STDIN_FILENO);
		cr_assert(channel_flush(&near) == PEER_ALIVE);
		message = next_message(&far);
		cr_assert_str_eq(message.action, "kept");
		cr_assert(same_file(message.handle, STDIN_FILENO));
		close(message.handle);
		channel_close(&near);
		channel_close(&far);
	}
}

/* ---- handles of a hostile peer ------------------------------------------- */

/* Read until the peer is found out; false if it is not. */
static bool
found_out(struct channel *channel)
{
	struct pollfd set = {.fd = channel->descriptor, .events = POLLIN};
	struct message message;
	int found;

	while (poll(&set, 1, 0) == 1) {
		if (channel_read(channel) == PEER_BROKEN)
			return true;
		while ((found = channel_next(channel, &message)) == 1)
			if (message.handle >= 0)
				close(message.handle);
		if (found == -1)
			return true;
	}
	return false;
}

/* The header of a message that is not to be completed, and a complete one. */
static const char piece[] = "\0\0\1\0\4\3\1\6";
static const char plain[] = "\0\0\0\x0b\0\0\0\1\0\0\0\0a\0\0";
static const char flagged[] = "\0\0\0\x0b\0\0\2\1\0\0\0\0a\0\0";

#define HOSTILE(wire) wire, sizeof(wire) - 1

/* Each write is the wire with this many handles. */
static const struct {
	const char *what;
	const char *wire;
	size_t length;
	size_t handles;
	int times;
	bool crime;
} hostile[] = {
	{"two handles that no frame asked for", piece, 1, 1, 2, false},
	{"three handles that no frame asked for", piece, 1, 1, 3, true},
	{"seven handles that no frame asked for", piece, 1, 1, 7, true},
	{"two at once", HOSTILE(piece), 2, 1, true},
	{"three at once", HOSTILE(piece), 3, 1, true},
	{"eight at once", HOSTILE(piece), 8, 1, true},
	{"three at once with a frame", HOSTILE(flagged), 3, 1, true},
	{"two handles with plain frames", HOSTILE(plain), 1, 2, false},
	{"three handles with plain frames", HOSTILE(plain), 1, 3, true},
	{"many handles with their frames", HOSTILE(flagged), 1, 100, false},
};

Test(handles, of_a_hostile_peer_are_refused_and_do_not_leak)
{
	int ends[8], before, i;
	struct channel channel;
	size_t row;

	for (i = 0; i < 8; i += 2)
		cr_assert(pipe(&ends[i]) == 0);
	before = open_descriptors();
	for (row = 0; row < COUNT(hostile); row++) {
		int far = open_channel(&channel, 0);

		for (i = 0; i < hostile[row].times; i++)
			raw_write_handles(far, hostile[row].wire, hostile[row].length, ends,
			                  hostile[row].handles);
		cr_assert(found_out(&channel) == hostile[row].crime, "%s", hostile[row].what);
		channel_close(&channel);
		close(far);
		cr_assert(open_descriptors() == before, "%s: a leak", hostile[row].what);
	}
	for (i = 0; i < 8; i++)
		close(ends[i]);
}

/* The maker of a pair may have asked for credentials at both ends: then those come first. */
Test(handles, come_behind_credentials)
{
	int far, ends[2], before, yes = 1;
	struct channel channel;
	struct message message;

	cr_assert(pipe(ends) == 0);
	before = open_descriptors();
	far = open_channel(&channel, 0);
	cr_assert(setsockopt(channel.descriptor, SOL_SOCKET, SO_PASSCRED, &yes, sizeof yes) == 0);
	raw_write_handles(far, flagged, sizeof flagged - 1, ends, 1);
	message = next_message(&channel);
	cr_assert(same_file(message.handle, ends[0]));
	close(message.handle);
	raw_write_handles(far, piece, 1, ends, 2);
	cr_assert(found_out(&channel), "two handles that no frame asked for");
	channel_close(&channel);
	close(far);
	cr_assert(open_descriptors() == before, "a leak");
}

Test(handles, flagged_but_not_sent_are_refused)
{
	struct message message;
	struct channel channel;
	int far = open_channel(&channel, 0);

	raw_write(far, plain, sizeof plain - 1);
	raw_write(far, flagged, sizeof flagged - 1);
	cr_assert(channel_read(&channel) == PEER_ALIVE);
	cr_assert(channel_next(&channel, &message) == 1);
	cr_assert(channel_next(&channel, &message) == -1);
	channel_close(&channel);
	close(far);
}

/* ---- forwarding ---------------------------------------------------------- */

TestSuite(forwarding, .timeout = 60);

enum { EARS = 3 };

/* A master without its routing: a speaker, and receivers of which the speaker does not know. */
struct relay {
	struct channel source;
	int mouth;         /* the bare socket of the speaker */
	struct bytes said; /* its messages, */
	size_t sent;       /* how many bytes of them are sent */
	size_t heard;      /* messages that were forwarded, */
	bool alternate;    /* message i goes to sink i % sinks; otherwise to each sink */
	size_t sinks;
	struct channel sink[EARS];
	int ear[EARS]; /* the bare socket of the receiver */
	bool stalled[EARS];
	struct bytes want[EARS], got[EARS];
	size_t spoken;
};

static void
relay_open(struct relay *relay, size_t sinks, bool alternate)
{
	size_t i;

	memset(relay, 0, sizeof *relay);
	relay->mouth = open_channel(&relay->source, 0);
	relay->sinks = sinks;
	relay->alternate = alternate;
	for (i = 0; i < sinks; i++)
		relay->ear[i] = open_channel(&relay->sink[i], 0);
}

static void
relay_close(struct relay *relay)
{
	size_t i;

	channel_close(&relay->source);
	close(relay->mouth);
	drop(&relay->said);
	for (i = 0; i < relay->sinks; i++) {
		channel_close(&relay->sink[i]);
		if (relay->ear[i] != -1)
			close(relay->ear[i]);
		drop(&relay->want[i]);
		drop(&relay->got[i]);
	}
}

static bool
relay_sends(const struct relay *relay, size_t number, size_t sink)
{
	return !relay->alternate || number % relay->sinks == sink;
}

/* The speaker will send this. It lies about from and to, which are overwritten. */
static void
relay_say(struct relay *relay, const struct message *message)
{
	struct message stamped = *message;
	size_t i;

	stamped.from = ROLE_PARENT;
	stamped.to = ROLE_NONE;
	put_frame(&relay->said, &stamped);
	stamped.from = ROLE_AGENT;
	stamped.to = ROLE_APP;
	for (i = 0; i < relay->sinks; i++)
		if (relay_sends(relay, relay->spoken, i))
			put_frame(&relay->want[i], &stamped);
	relay->spoken++;
}

static void
relay_say_sized(struct relay *relay, size_t count, size_t least, size_t step)
{
	size_t i;

	for (i = 0; i < count; i++) {
		struct message message = sized("said", least + step * i, (unsigned)i);

		message.receiver_pid = (pid_t)i;
		relay_say(relay, &message);
		sized_free(&message);
	}
}

/* Write as much of the speaker's messages as the socket takes. */
static void
relay_speak(struct relay *relay)
{
	ssize_t count = send(relay->mouth, relay->said.at + relay->sent,
	                     relay->said.length - relay->sent, MSG_NOSIGNAL);

	relay->sent += count > 0 ? (size_t)count : 0;
}

/* Read once, and forward as egg's master does: message by message. */
static void
relay_forward(struct relay *relay)
{
	struct message message;
	size_t i;
	int found;

	cr_assert(channel_read(&relay->source) == PEER_ALIVE);
	while ((found = channel_next(&relay->source, &message)) == 1) {
		message.from = ROLE_AGENT;
		message.to = ROLE_APP;
		for (i = 0; i < relay->sinks; i++)
			if (relay_sends(relay, relay->heard, i))
				cr_assert(sendmessage(&relay->sink[i], &message) == 0);
		relay->heard++;
	}
	cr_assert(found == 0);
}

static void
relay_flush(struct relay *relay)
{
	size_t i;

	for (i = 0; i < relay->sinks; i++)
		if (relay->sink[i].descriptor != -1)
			cr_assert(channel_flush(&relay->sink[i]) == PEER_ALIVE);
}

/* True when every receiver that is not stalled has heard all its messages. */
static bool
relay_listen(struct relay *relay)
{
	bool all = relay->heard == relay->spoken;
	size_t i;

	for (i = 0; i < relay->sinks; i++) {
		if (relay->stalled[i])
			continue;
		cr_assert(raw_collect(relay->ear[i], &relay->got[i]));
		all &= relay->got[i].length >= relay->want[i].length;
	}
	return all;
}

static void
relay_run(struct relay *relay)
{
	int64_t deadline = clutch_now() + PATIENCE;

	do {
		cr_assert(clutch_now() < deadline, "the relay lost something");
		relay_speak(relay);
		relay_forward(relay);
		relay_flush(relay);
	} while (!relay_listen(relay));
}

static void
relay_assert(const struct relay *relay)
{
	size_t i;

	for (i = 0; i < relay->sinks; i++) {
		if (relay->stalled[i])
			continue;
		assert_bytes(&relay->got[i], &relay->want[i]);
		cr_assert(channel_pending(&relay->sink[i]) == 0);
	}
}

Test(forwarding, stamps_from_and_to_and_changes_nothing_else)
{
	struct relay relay;
	size_t i;

	relay_open(&relay, 1, false);
	for (i = 0; i < COUNT(few); i++)
		relay_say(&relay, &few[i]);
	relay_run(&relay);
	relay_assert(&relay);
	relay_close(&relay);
}

/* Counters of how a relay writes: the calls for each sink since now. */
static void
relay_watch(const struct relay *relay, struct shape *shape[])
{
	size_t i;

	for (i = 0; i < relay->sinks; i++)
		shape[i] = shape_writes(&relay->sink[i]);
}

Test(forwarding, a_thousand_messages_to_one_in_one_write)
{
	struct shape *shape[EARS];
	struct relay relay;

	relay_open(&relay, 1, false);
	relay_watch(&relay, shape);
	relay_say_sized(&relay, 1000, 10, 0);
	relay_run(&relay);
	relay_assert(&relay);
	cr_assert(shape[0]->calls == 1, "%d writes", shape[0]->calls);
	relay_close(&relay);
}

Test(forwarding, a_broadcast_costs_one_write_for_each_receiver)
{
	struct shape *shape[EARS];
	struct relay relay;
	size_t i;

	relay_open(&relay, 3, false);
	relay_watch(&relay, shape);
	relay_say_sized(&relay, 1000, 10, 0);
	relay_run(&relay);
	relay_assert(&relay);
	for (i = 0; i < 3; i++)
		cr_assert(shape[i]->calls == 1, "%d writes", shape[i]->calls);
	relay_close(&relay);
}

/* Short runs are copied: no system call for each. */
Test(forwarding, to_two_receivers_in_turn_is_not_a_write_each)
{
	struct shape *shape[EARS];
	struct relay relay;

	relay_open(&relay, 2, true);
	relay_watch(&relay, shape);
	relay_say_sized(&relay, 2000, 10, 0);
	relay_run(&relay);
	relay_assert(&relay);
	cr_assert(shape[0]->calls <= 2 && shape[1]->calls <= 2, "%d and %d writes", shape[0]->calls,
	          shape[1]->calls);
	relay_close(&relay);
}

/* Message sizes around the border between short and long runs, to two. */
Test(forwarding, runs_of_every_kind_keep_their_order)
{
	struct relay relay;
	size_t round, i;

	relay_open(&relay, 2, true);
	for (round = 0; round < 40; round++)
		for (i = 0; i < 6; i++)
			relay_say_sized(&relay, 1 + (round + i) % 3,
			                i % 2 == 0 ? 5 : CHANNEL_FLUSH_SIZE - 44 + round, 1);
	relay_run(&relay);
	relay_assert(&relay);
	relay_close(&relay);
}

Test(forwarding, much_to_one)
{
	struct relay relay;

	relay_open(&relay, 1, false);
	relay_say_sized(&relay, 3000, 0, 1);
	cr_assert(relay.said.length > (size_t)8 * CHANNEL_READ_SIZE);
	relay_run(&relay);
	relay_assert(&relay);
	relay_close(&relay);
}

Test(forwarding, much_to_everybody)
{
	struct relay relay;

	relay_open(&relay, 3, false);
	relay_say_sized(&relay, 3000, 0, 1);
	relay_run(&relay);
	relay_assert(&relay);
	relay_close(&relay);
}

Test(forwarding, much_to_three_in_turn)
{
	struct relay relay;

	relay_open(&relay, 3, true);
	relay_say_sized(&relay, 3000, 0, 1);
	relay_run(&relay);
	relay_assert(&relay);
	relay_close(&relay);
}

/* The speaker's frames are torn anywhere on their way in. */
Test(forwarding, torn_frames)
{
	struct relay relay;
	size_t most;

	for (most = 1; most <= 120; most++) {
		relay_open(&relay, 2, most % 2 == 0);
		shape_reads(&relay.source)->most = most;
		relay_say_sized(&relay, 8, 0, 5);
		relay_run(&relay);
		relay_assert(&relay);
		relay_close(&relay);
	}
}

/* Here every write is short, too. The first run is a torn frame, which is not in the buffer;
 * then the queue and the run leave in one write. */
Test(forwarding, written_short_at_every_byte)
{
	struct relay relay;
	size_t most;

	for (most = 1; most <= 120; most++) {
		relay_open(&relay, 2, most % 2 == 0);
		shape_reads(&relay.source)->most = 100;
		shape_writes(&relay.sink[0])->most = most;
		shape_writes(&relay.sink[1])->most = 121 - most;
		relay_say_sized(&relay, 8, 0, 5);
		relay_run(&relay);
		relay_assert(&relay);
		relay_close(&relay);
	}
}

/* Our own message waits, forwarded ones follow, and the socket takes a part. */
Test(forwarding, behind_a_message_of_our_own_cut_anywhere)
{
	struct message own = text("egg-ready", "{\"own\":1}");
	struct relay relay;
	struct shape *shape;
	size_t cut, whole = 1;

	for (cut = 1; cut <= whole; cut++) {
		relay_open(&relay, 1, false);
		cr_assert(sendmessage(&relay.sink[0], &own) == 0);
		put_frame(&relay.want[0], &own);
		relay_say_sized(&relay, 4, 3, 1);
		whole = relay.want[0].length;
		shape = shape_writes(&relay.sink[0]);
		*shape = (struct shape){.watched = true, .most = cut, .full = 1};
		relay_speak(&relay);
		relay_forward(&relay);
		relay_flush(&relay);
		cr_assert(channel_pending(&relay.sink[0]) == whole - cut);
		cr_assert(shape->calls == 1);
		*shape = (struct shape){.watched = true};
		relay_run(&relay);
		relay_assert(&relay);
		relay_close(&relay);
	}
}

Test(forwarding, mixed_with_messages_of_our_own)
{
	struct message own = text("own", "{}"), message;
	struct relay relay;
	int i;

	relay_open(&relay, 1, false);
	for (i = 0; i < 50; i++) {
		relay_say_sized(&relay, 1, 10, 0);
		put_frame(&relay.want[0], &own);
	}
	relay_speak(&relay);
	cr_assert(channel_read(&relay.source) == PEER_ALIVE);
	for (i = 0; channel_next(&relay.source, &message) == 1; i++) {
		message.from = ROLE_AGENT;
		message.to = ROLE_APP;
		cr_assert(sendmessage(&relay.sink[0], &message) == 0);
		cr_assert(sendmessage(&relay.sink[0], &own) == 0);
	}
	cr_assert(i == 50);
	pump(&relay.sink[0], relay.ear[0], &relay.got[0], relay.want[0].length);
	relay_assert(&relay);
	relay_close(&relay);
}

/* The same message twice to the same receiver: the run must not grow over it. */
Test(forwarding, twice_to_the_same_receiver)
{
	struct message message;
	struct relay relay;
	int i;

	relay_open(&relay, 1, false);
	relay_say_sized(&relay, 1, 10, 0);
	relay.spoken = 0;
	relay_say_sized(&relay, 1, 10, 0);
	relay.said.length /= 2; /* it is sent once, and expected twice */
	relay_speak(&relay);
	cr_assert(channel_read(&relay.source) == PEER_ALIVE);
	cr_assert(channel_next(&relay.source, &message) == 1);
	message.from = ROLE_AGENT;
	message.to = ROLE_APP;
	for (i = 0; i < 2; i++)
		cr_assert(sendmessage(&relay.sink[0], &message) == 0);
	pump(&relay.sink[0], relay.ear[0], &relay.got[0], relay.want[0].length);
	relay_assert(&relay);
	relay_close(&relay);
}

/* One receiver reads nothing. Its bytes stood in the read buffer, into which the messages for
 * the others are read again and again. */
static void
stall_one(bool alternate)
{
	struct relay relay;

	relay_open(&relay, 3, alternate);
	narrow(relay.sink[1].descriptor);
	relay.stalled[1] = true;
	relay_say_sized(&relay, 3000, 0, 1);
	relay_run(&relay);
	relay_assert(&relay);
	cr_assert(channel_pending(&relay.sink[1]) > CHANNEL_READ_SIZE, "it is not stalled");
	relay.stalled[1] = false;
	relay_run(&relay);
	relay_assert(&relay);
	relay_close(&relay);
}

Test(forwarding, to_a_full_socket_keeps_what_it_did_not_take)
{
	stall_one(false);
}

Test(forwarding, in_turn_to_a_full_socket_keeps_what_it_did_not_take)
{
	stall_one(true);
}

/* The read buffer goes to another channel, which may have nothing to send. By then the forwarded
 * messages stand in the queues, and a channel keeps its torn frame. */
Test(forwarding, is_safe_when_another_channel_is_read_next)
{
	struct message noise = sized("noise", 200000, 99);
	struct bytes loud = {.at = NULL};
	struct channel other;
	struct relay relay;
	int mouth = open_channel(&other, 0), full;
	size_t taken;

	put_frame(&loud, &noise);
	for (full = 0; full <= 1; full++) {
		relay_open(&relay, 3, false);
		relay_say_sized(&relay, 500, 0, 1);
		if (full) {
			shape_writes(&relay.sink[0])->full = 1; /* takes a part */
			writes[relay.sink[0].descriptor].most = 777;
			shape_writes(&relay.sink[2])->error = EAGAIN; /* takes nothing */
			writes[relay.sink[2].descriptor].errors = -1;
		}
		relay_speak(&relay);
		relay_forward(&relay);
		cr_assert(channel_pending(&relay.sink[0]) > 0);
		raw_write(mouth, loud.at, loud.length);
		taken = 0;
		while (taken == 0) {
			cr_assert(channel_read(&other) == PEER_ALIVE);
			take(&other, &noise, 1, &taken);
		}
		memset(&writes[relay.sink[0].descriptor], 0, sizeof writes[0]);
		memset(&writes[relay.sink[2].descriptor], 0, sizeof writes[0]);
		relay_run(&relay);
		relay_assert(&relay);
		relay_close(&relay);
	}
	sized_free(&noise);
	drop(&loud);
	channel_close(&other);
	close(mouth);
}

Test(forwarding, the_largest_messages)
{
	struct relay relay;

	relay_open(&relay, 3, false);
	narrow(relay.sink[2].descriptor);
	relay_say_sized(&relay, 3, MESSAGE_DATA_MAX - 2, 1);
	relay_run(&relay);
	relay_assert(&relay);
	relay_close(&relay);
}

/* A large frame stands outside the buffer, and is freed once it was forwarded. */
Test(forwarding, large_messages_in_turn_between_small_ones)
{
	struct relay relay;
	size_t i;

	relay_open(&relay, 2, true);
	for (i = 0; i < 30; i++) {
		relay_say_sized(&relay, 1 + i % 2, 300000 + i, 0);
		relay_say_sized(&relay, 3, i, 1);
	}
	relay_run(&relay);
	relay_assert(&relay);
	relay_close(&relay);
}

/* A process that is not forked yet: what is sent waits. */
Test(forwarding, to_nobody_yet_waits_until_attach)
{
	struct relay relay;
	int ends[2];

	relay_open(&relay, 2, false);
	channel_close(&relay.sink[1]);
	close(relay.ear[1]);
	channel_init(&relay.sink[1], 0);
	relay.stalled[1] = true;
	relay_say_sized(&relay, 1000, 0, 1);
	relay_run(&relay);
	cr_assert(channel_flush(&relay.sink[1]) == PEER_ALIVE, "nobody is not gone");
	cr_assert(channel_pending(&relay.sink[1]) == relay.want[1].length);
	cr_assert(channel_pair(ends) == 0);
	cr_assert(channel_attach(&relay.sink[1], ends[0]) == 0);
	cr_assert(channel_pending(&relay.sink[1]) == relay.want[1].length, "attach keeps it");
	relay.ear[1] = ends[1];
	relay.stalled[1] = false;
	relay_say_sized(&relay, 10, 0, 1); /* a later message stands behind it */
	relay_run(&relay);
	relay_assert(&relay);
	relay_close(&relay);
}

/* A channel with a limit copies, and refuses a message that finds no room. */
Test(forwarding, to_a_limited_channel)
{
	struct message message;
	struct relay relay;
	int found, kept = 0, refused = 0;

	relay_open(&relay, 1, false);
	relay.sink[0].limit = 1000;
	relay_say_sized(&relay, 100, 20, 0);
	relay_speak(&relay);
	cr_assert(channel_read(&relay.source) == PEER_ALIVE);
	while ((found = channel_next(&relay.source, &message)) == 1) {
		message.from = ROLE_AGENT;
		message.to = ROLE_APP;
		if (sendmessage(&relay.sink[0], &message) == 0) {
			kept++;
			continue;
		}
		cr_assert(errno == ENOBUFS);
		refused++;
	}
	cr_assert(found == 0 && kept + refused == 100);
	cr_assert(kept == 1000 / 38, "%d messages of 38 bytes in 1000", kept);
	relay.want[0].length = (size_t)kept * 38;
	pump(&relay.sink[0], relay.ear[0], &relay.got[0], relay.want[0].length);
	assert_bytes(&relay.got[0], &relay.want[0]);
	relay_close(&relay);
}

/* Behind messages that wait in the queue for the turn of a handle. */
Test(forwarding, a_message_with_a_handle_to_two_receivers)
{
	struct channel speaker, source, sink[2], ear[2];
	const char *const actions[] = {"before", "with", "after", "with", "with", "end"};
	int ends[2], before = open_descriptors();
	struct message message;
	size_t i, j;

	open_channels(&speaker, &source);
	cr_assert(pipe(ends) == 0);
	for (i = 0; i < 2; i++)
		open_channels(&sink[i], &ear[i]);
	for (i = 0; i < COUNT(actions); i++)
		send_handle(&speaker, actions[i], actions[i][0] == 'w' ? ends[0] : -1);
	cr_assert(channel_flush(&speaker) == PEER_ALIVE);
	for (i = 0; i < COUNT(actions); i++) {
		message = next_message(&source);
		for (j = 0; j < 2; j++)
			cr_assert(sendmessage(&sink[j], &message) == 0);
		if (message.handle >= 0)
			close(message.handle);
	}
	for (j = 0; j < 2; j++) {
		cr_assert(channel_flush(&sink[j]) == PEER_ALIVE && channel_pending(&sink[j]) == 0);
		for (i = 0; i < COUNT(actions); i++) {
			message = next_message(&ear[j]);
			cr_assert_str_eq(message.action, actions[i]);
			cr_assert((message.handle >= 0) == (actions[i][0] == 'w'));
			cr_assert(message.handle == -1 || same_file(message.handle, ends[0]));
			if (message.handle >= 0)
				close(message.handle);
		}
		channel_close(&sink[j]);
		channel_close(&ear[j]);
	}
	channel_close(&speaker);
	channel_close(&source);
	close(ends[0]);
	close(ends[1]);
	cr_assert(open_descriptors() == before);
}

/* Long messages stand behind a handle that waits, and must not overtake it. */
Test(forwarding, a_long_run_does_not_overtake_a_handle)
{
	struct message message = text("handle", NULL), other = text("plain", NULL), got;
	struct relay relay;
	struct channel ear;
	int ends[2], i;

	relay_open(&relay, 1, false);
	attach(&ear, relay.ear[0], 0);
	cr_assert(pipe(ends) == 0);
	for (i = 0; i < 2; i++) {
		message.handle = ends[i];
		cr_assert(sendmessage(&relay.sink[0], &other) == 0);
		cr_assert(sendmessage(&relay.sink[0], &message) == 0);
	}
	relay_say_sized(&relay, 2, 20000, 1);
	relay_speak(&relay);
	relay_forward(&relay);
	cr_assert(channel_flush(&relay.sink[0]) == PEER_ALIVE);
	for (i = 0; i < 2; i++) {
		cr_assert_str_eq(next_message(&ear).action, "plain");
		got = next_message(&ear);
		cr_assert_str_eq(got.action, "handle");
		cr_assert(same_file(got.handle, ends[i]));
		close(got.handle);
	}
	cr_assert(next_message(&ear).data_length == 20000);
	cr_assert(next_message(&ear).data_length == 20001);
	relay.ear[0] = -1; /* it was the channel's */
	channel_close(&ear);
	relay_close(&relay);
	close(ends[0]);
	close(ends[1]);
}

/* ---- forwarding, when somebody leaves ------------------------------------ */

Test(forwarding, goes_on_when_a_receiver_is_gone)
{
	struct message message;
	struct relay relay;
	int found;

	relay_open(&relay, 2, false);
	close(relay.ear[0]);
	relay_say_sized(&relay, 20, 20000, 0);
	relay_speak(&relay);
	cr_assert(channel_read(&relay.source) == PEER_ALIVE);
	while ((found = channel_next(&relay.source, &message)) == 1) {
		message.from = ROLE_AGENT;
		message.to = ROLE_APP;
		if (sendmessage(&relay.sink[0], &message) == -1)
			cr_assert(errno == EPIPE); /* since its queue was written */
		cr_assert(sendmessage(&relay.sink[1], &message) == 0);
		relay.heard++;
	}
	cr_assert(found == 0 && relay.heard > 1);
	cr_assert(channel_flush(&relay.sink[0]) == PEER_GONE);
	cr_assert(channel_pending(&relay.sink[0]) == 0);
	errno = 0;
	cr_assert(sendmessage(&relay.sink[0], &few[0]) == -1 && errno == EPIPE);
	channel_close(&relay.sink[0]);
	relay.ear[0] = open_channel(&relay.sink[0], 0);
	relay.stalled[0] = true; /* the new one has heard less than expected */
	relay_run(&relay);
	relay_assert(&relay);
	relay_close(&relay);
}

/* A long run is written before the next begins: there the death is seen. */
Test(forwarding, a_second_run_to_the_dead_fails_with_epipe)
{
	struct message message[3];
	struct relay relay;
	int i;

	relay_open(&relay, 1, false);
	relay_say_sized(&relay, 1, CHANNEL_FLUSH_SIZE, 0);
	relay_say_sized(&relay, 2, 10, 0);
	close(relay.ear[0]);
	relay_speak(&relay);
	cr_assert(channel_read(&relay.source) == PEER_ALIVE);
	for (i = 0; i < 3; i++)
		cr_assert(channel_next(&relay.source, &message[i]) == 1);
	cr_assert(sendmessage(&relay.sink[0], &message[0]) == 0, "nobody knows yet");
	errno = 0;
	cr_assert(sendmessage(&relay.sink[0], &message[2]) == -1 && errno == EPIPE);
	cr_assert(channel_pending(&relay.sink[0]) == 0);
	cr_assert(channel_flush(&relay.sink[0]) == PEER_GONE);
	relay.ear[0] = -1;
	relay_close(&relay);
}

/* Channels that are closed between two reads. */
Test(forwarding, survives_the_close_of_any_channel)
{
	struct relay relay;
	size_t gone;

	for (gone = 0; gone <= EARS; gone++) {
		relay_open(&relay, 3, false);
		shape_reads(&relay.source)->most = 5000; /* so that a frame is torn */
		relay_say_sized(&relay, 200, 10, 3);
		relay_speak(&relay);
		relay_forward(&relay);
		relay_forward(&relay);
		if (gone < EARS) {
			channel_close(&relay.sink[gone]);
			close(relay.ear[gone]);
			relay.ear[gone] = open_channel(&relay.sink[gone], 0);
			relay.stalled[gone] = true; /* has heard less than expected */
			relay_run(&relay);
			relay_assert(&relay);
		} else {
			size_t length;

			channel_close(&relay.source);
			length = channel_pending(&relay.sink[1]);
			pump(&relay.sink[1], relay.ear[1], &relay.got[1], length);
			cr_assert(length > 0 &&
			          memcmp(relay.got[1].at, relay.want[1].at, length) == 0);
		}
		relay_close(&relay);
	}
}

/* ---- memory -------------------------------------------------------------- */

TestSuite(memory, .timeout = 60);

Test(memory, of_a_burst_is_given_back)
{
	struct message message = sized("burst", 10000, 1);
	struct channel channel;
	int far = open_channel(&channel, 0), i;
	struct bytes got = {.at = NULL};

	for (i = 0; i < 300; i++)
		cr_assert(sendmessage(&channel, &message) == 0);
	cr_assert(channel.queue_size >= 1000000);
	pump(&channel, far, &got, 300 * message_size(&message));
	cr_assert(channel.queue_size >= 1000000, "the next burst finds room");
	cr_assert(channel_trim(&channel), "it was in use a moment ago");
	cr_assert(channel.queue_size >= 1000000);
	cr_assert_not(channel_trim(&channel));
	cr_assert(channel.queue == NULL && channel.queue_size == 0);
	drop(&got);
	sized_free(&message);
	channel_close(&channel);
	close(far);
}

/* The receivers of a master that keep up cost nothing, nor does a sender. */
Test(memory, of_idle_channels_is_none)
{
	struct relay relay;
	size_t i;

	relay_open(&relay, 3, false);
	for (i = 0; i < 50; i++)
		relay_say_sized(&relay, 10, i, 1);
	relay_run(&relay);
	relay_assert(&relay);
	cr_assert(relay.source.kept == NULL && relay.source.queue == NULL);
	for (i = 0; i < 3; i++)
		cr_assert(channel_trim(&relay.sink[i]) && !channel_trim(&relay.sink[i]));
	for (i = 0; i < 3; i++)
		cr_assert(relay.sink[i].queue == NULL && relay.sink[i].waiting == NULL);
	relay_close(&relay);
}

/* Torn frames get memory of their own, which is freed when they were taken. */
#ifndef SANITIZED
Test(memory, of_large_frames_is_freed)
{
	enum { ROUNDS = 400, LARGE = 300000 };
	struct message message = sized("large", LARGE, 1);
	struct rusage before, after;
	struct channel near, far;
	int i;

	if (under_valgrind())
		cr_skip_test("not under valgrind");
	open_channels(&near, &far);
	for (i = 0; i < ROUNDS; i++) {
		size_t taken = 0;

		if (i == ROUNDS / 10)
			cr_assert(getrusage(RUSAGE_SELF, &before) == 0);
		cr_assert(sendmessage(&near, &message) == 0);
		while (taken == 0) {
			cr_assert(channel_flush(&near) == PEER_ALIVE);
			cr_assert(channel_read(&far) == PEER_ALIVE);
			take(&far, &message, 1, &taken);
		}
	}
	cr_assert(getrusage(RUSAGE_SELF, &after) == 0);
	cr_assert(after.ru_maxrss - before.ru_maxrss < 20 * LARGE / 1024, "%ld KiB more",
	          after.ru_maxrss - before.ru_maxrss);
	sized_free(&message);
	channel_close(&near);
	channel_close(&far);
}
#endif

/* The memory of a frame that stays torn is freed with its channel. */
#ifndef SANITIZED
Test(memory, of_torn_frames_is_freed)
{
	enum { ROUNDS = 400, LARGE = 300000, PART = 100000 };
	struct message message = sized("large", LARGE, 1), none;
	struct bytes stream = {.at = NULL};
	struct rusage before, after;
	struct channel channel, other;
	int i, other_end = open_channel(&other, 0);

	if (under_valgrind())
		cr_skip_test("not under valgrind");
	put_frame(&stream, &message);
	for (i = 0; i < ROUNDS; i++) {
		int far = open_channel(&channel, 0);

		if (i == ROUNDS / 10)
			cr_assert(getrusage(RUSAGE_SELF, &before) == 0);
		raw_write(far, stream.at, PART);
		cr_assert(channel_read(&channel) == PEER_ALIVE);
		cr_assert(channel_next(&channel, &none) == 0);
		cr_assert(channel_read(&other) == PEER_ALIVE);
		cr_assert(channel.kept_length == PART, "the test is about a torn frame");
		close(far);
		if (i % 2 == 0)
			cr_assert(channel_read(&channel) == PEER_GONE);
		channel_close(&channel);
	}
	channel_close(&other);
	close(other_end);
	cr_assert(getrusage(RUSAGE_SELF, &after) == 0);
	cr_assert(after.ru_maxrss - before.ru_maxrss < 20 * PART / 1024, "%ld KiB more",
	          after.ru_maxrss - before.ru_maxrss);
	sized_free(&message);
	drop(&stream);
}
#endif

/* The memory of a queue that never drains completely does not grow. */
Test(memory, of_a_queue_that_is_never_empty_stays_bounded)
{
	enum { QUEUED = 20, ROUNDS = 5000, LENGTH = 1000 };
	struct channel channel;
	int far = open_channel(&channel, 0);
	struct shape *shape = shape_writes(&channel);
	struct bytes got = {.at = NULL}, want = {.at = NULL};
	size_t size = 0, largest = 0;
	unsigned i;

	for (i = 0; i < ROUNDS; i++) {
		struct message message = sized("steady", LENGTH, i);

		size = message_size(&message);
		cr_assert(sendmessage(&channel, &message) == 0);
		put_frame(&want, &message);
		sized_free(&message);
		if (i < QUEUED)
			continue;
		*shape = (struct shape){.watched = true, .most = size, .full = 1};
		cr_assert(channel_flush(&channel) == PEER_ALIVE);
		cr_assert(channel_pending(&channel) == QUEUED * size);
		cr_assert(raw_collect(far, &got));
		largest = channel.queue_size > largest ? channel.queue_size : largest;
	}
	cr_assert(largest <= 4 * (QUEUED + 1) * size, "%zu bytes for %zu", largest,
	          (QUEUED + 1) * size);
	*shape = (struct shape){.watched = true};
	pump(&channel, far, &got, want.length);
	assert_bytes(&got, &want);
	drop(&got);
	drop(&want);
	channel_close(&channel);
	close(far);
}

/* ---- draining ------------------------------------------------------------ */

TestSuite(draining, .timeout = 60);

Test(draining, gives_up_on_a_blocked_peer_in_time)
{
	enum { TIMEOUT = 100 };
	struct bytes want = {.at = NULL};
	struct channel channel;
	int far = open_channel(&channel, 0);
	int64_t start;
	size_t pending;

	narrow(channel.descriptor);
	jam(&channel, &want);
	pending = channel_pending(&channel);
	start = clutch_now();
	cr_assert(channel_drain(&channel, TIMEOUT) == PEER_ALIVE);
	cr_assert(clutch_now() - start >= TIMEOUT, "it gave up too early");
	cr_assert(clutch_now() - start < PATIENCE, "it hung");
	cr_assert(channel_pending(&channel) == pending, "what was not taken still waits");
	start = clutch_now();
	cr_assert(channel_drain(&channel, 0) == PEER_ALIVE);
	cr_assert(clutch_now() - start < PATIENCE);
	drop(&want);
	channel_close(&channel);
	close(far);
}

/* In a process of its own: read until the end, and exit with 0 if all came. */
static void
read_and_exit(int descriptor, const struct bytes *want)
{
	static unsigned char room[4096];
	size_t at = 0;
	ssize_t count;

	fcntl(descriptor, F_SETFL, 0);
	while ((count = recv(descriptor, room, sizeof room, 0)) > 0) {
		if (at + (size_t)count > want->length ||
		    memcmp(room, want->at + at, (size_t)count) != 0)
			_exit(1);
		at += (size_t)count;
	}
	close(descriptor);
	_exit(at == want->length ? 0 : 2);
}

Test(draining, finishes_with_a_peer_that_reads)
{
	struct message message = sized("drain", 50000, 1);
	struct bytes want = {.at = NULL};
	struct channel channel;
	int far = open_channel(&channel, 0), status, i;
	pid_t child;

	narrow(channel.descriptor);
	for (i = 0; i < 60; i++) {
		cr_assert(sendmessage(&channel, &message) == 0);
		put_frame(&want, &message);
	}
	child = fork();
	cr_assert(child != -1);
	if (child == 0) {
		close(channel.descriptor);
		read_and_exit(far, &want);
	}
	close(far);
	cr_assert(channel_drain(&channel, PATIENCE) == PEER_ALIVE);
	cr_assert(channel_pending(&channel) == 0);
	channel_close(&channel);
	cr_assert(waitpid(child, &status, 0) == child);
	cr_assert(status == 0, "the reader's status is %#x", (unsigned)status);
	sized_free(&message);
	drop(&want);
}

Test(draining, sees_at_once_that_the_peer_is_gone)
{
	struct bytes want = {.at = NULL};
	struct channel channel;
	int far = open_channel(&channel, 0);
	int64_t start = clutch_now();

	narrow(channel.descriptor);
	jam(&channel, &want);
	close(far);
	cr_assert(channel_drain(&channel, 2 * PATIENCE) == PEER_GONE);
	cr_assert(clutch_now() - start < PATIENCE);
	drop(&want);
	channel_close(&channel);
}

Test(draining, of_nothing_takes_no_time)
{
	struct channel channel;
	int far = open_channel(&channel, 0);
	int64_t start = clutch_now();

	cr_assert(channel_drain(&channel, 2 * PATIENCE) == PEER_ALIVE);
	cr_assert(clutch_now() - start < PATIENCE);
	channel_close(&channel);
	close(far);
}

/* ---- at random ----------------------------------------------------------- */

TestSuite(random, .timeout = 300);

enum { MESSAGES = 2000, MESSAGES_UNDER_VALGRIND = 200 };

struct random {
	unsigned seed;
	uint64_t state;
	struct channel mouth, in, out, ear; /* mouth -> in, relay, out -> ear */
	int files[4][2];
	unsigned messages, sent, forwarded, heard;
};

/* splitmix64 */
static uint64_t
draw(uint64_t *state)
{
	uint64_t z = (*state += 0x9e3779b97f4a7c15u);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

/* The n-th message, always the same for the same n. Most are small. */
static struct message
random_message(const struct random *test, unsigned n, char action[256])
{
	static const size_t most[] = {16, 16, 200, 200, 5000, 40000, 40000, 300 * 1024};
	uint64_t state = (uint64_t)test->seed << 32 | n;
	size_t size = draw(&state) % (most[draw(&state) % COUNT(most)] + 1);
	size_t length = draw(&state) % 8 == 0 ? draw(&state) % 256 : draw(&state) % 12;
	struct message message = sized(action, size, (unsigned)draw(&state));
	bool alike = n / 8 % 2 == 0; /* to its neighbours, as most messages are */

	memset(action, 'a' + (int)(n % 26), length);
	action[length] = '\0';
	if (alike)
		strcpy(action, "alike");
	message.from = alike ? ROLE_APP : (enum role)(draw(&state) % 5);
	message.to = alike ? ROLE_NONE : (enum role)(draw(&state) % 5);
	message.receiver_pid = alike ? 0 : (pid_t)(draw(&state) & 0x7fffffff);
	if (size == 0 && draw(&state) % 2 == 0) {
		sized_free(&message);
		message.data = NULL;
	}
	if (draw(&state) % 16 == 0)
		message.handle = test->files[draw(&state) % 4][0];
	return message;
}

/* Where the next call on this channel is cut: mostly nowhere, otherwise anywhere. */
static size_t
random_most(struct random *test)
{
	static const size_t most[] = {0, 0, 30, 3000, 100000};
	size_t limit = most[draw(&test->state) % COUNT(most)];

	return limit > 0 ? 1 + draw(&test->state) % limit : 0;
}

static void
random_speak(struct random *test)
{
	unsigned count = (unsigned)(draw(&test->state) % 20);
	struct message message;
	char action[256];

	for (; count > 0 && test->sent < test->messages; count--) {
		if (channel_pending(&test->mouth) > CHANNEL_HIGH_WATER)
			break;
		message = random_message(test, test->sent++, action);
		cr_assert(sendmessage(&test->mouth, &message) == 0);
		sized_free(&message);
	}
	shape_writes(&test->mouth)->most = random_most(test);
	cr_assert(channel_flush(&test->mouth) == PEER_ALIVE);
}

static void
random_relay(struct random *test)
{
	struct message message;
	int found;

	if (channel_pending(&test->out) > CHANNEL_HIGH_WATER)
		return;
	shape_reads(&test->in)->most = random_most(test);
	shape_writes(&test->out)->most = random_most(test);
	cr_assert(channel_read(&test->in) == PEER_ALIVE);
	while ((found = channel_next(&test->in, &message)) == 1) {
		test->forwarded++;
		cr_assert(sendmessage(&test->out, &message) == 0);
		if (message.handle >= 0)
			close(message.handle);
	}
	cr_assert(found == 0, "seed %u: message %u", test->seed, test->forwarded);
}

static void
random_listen(struct random *test)
{
	struct message message, want;
	char action[256];
	int found;

	shape_reads(&test->ear)->most = random_most(test);
	cr_assert(channel_read(&test->ear) == PEER_ALIVE);
	while ((found = channel_next(&test->ear, &message)) == 1) {
		want = random_message(test, test->heard, action);
		assert_message(&message, &want);
		cr_assert((message.handle >= 0) == (want.handle >= 0));
		if (message.handle >= 0) {
			cr_assert(same_file(message.handle, want.handle));
			close(message.handle);
		}
		sized_free(&want);
		test->heard++;
	}
	cr_assert(found == 0, "seed %u: message %u", test->seed, test->heard);
}

/* CLUTCH_TEST_SEED repeats a run. */
static unsigned
random_seed(void)
{
	const char *given = getenv("CLUTCH_TEST_SEED");
	unsigned seed = given != NULL ? (unsigned)strtoul(given, NULL, 10)
	                              : (unsigned)clutch_now() ^ (unsigned)getpid() << 16;

	fprintf(stderr, "test_sendmessage: CLUTCH_TEST_SEED=%u\n", seed);
	return seed;
}

Test(random, messages_in_random_pieces_through_a_relay)
{
	int64_t deadline = clutch_now() + 10 * PATIENCE;
	struct random test = {.seed = random_seed()};
	int before, i;

	test.state = test.seed;
	test.messages = under_valgrind() ? MESSAGES_UNDER_VALGRIND : MESSAGES;
	for (i = 0; i < 4; i++)
		cr_assert(pipe(test.files[i]) == 0);
	before = open_descriptors();
	open_channels(&test.mouth, &test.in);
	open_channels(&test.out, &test.ear);
	while (test.heard < test.messages) {
		cr_assert(clutch_now() < deadline,
		          "seed %u: %u messages sent, %u forwarded, %u heard", test.seed, test.sent,
		          test.forwarded, test.heard);
		switch (draw(&test.state) % 4) {
		case 0:
			random_speak(&test);
			break;
		case 1:
			random_relay(&test);
			break;
		case 2:
			cr_assert(channel_flush(&test.out) == PEER_ALIVE);
			break;
		default:
			random_listen(&test);
		}
	}
	cr_assert(test.sent == test.messages && test.forwarded == test.messages);
	channel_close(&test.mouth);
	channel_close(&test.in);
	channel_close(&test.out);
	channel_close(&test.ear);
	cr_assert(open_descriptors() == before, "seed %u: a handle leaked", test.seed);
	for (i = 0; i < 4; i++) {
		close(test.files[i][0]);
		close(test.files[i][1]);
	}
}
