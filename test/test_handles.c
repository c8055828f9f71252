/*
 * Descriptors that travel with a message, from an honest peer and from a hostile one.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "channel.h"

/* ---- descriptors ------------------------------------------------------------------------- */

/* Send bytes with handles, without sendmessage.c. */
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

/* ---- handles ----------------------------------------------------------------------------- */

TestSuite(handles, .timeout = 60);

Test(handles, work_at_the_receiver_after_the_sender_closed_its_own)
{
	struct channel near, far;
	int ends[2], before = open_descriptors();
	struct message message;
	char got[4] = "";

	open_channels(&near, &far);
	cr_assert(pipe(ends) == 0);
	send_handle(&near, "pipe", ends[1]);
	cr_assert(close(ends[1]) == 0, "sendmessage has closed the sender's descriptor");
	cr_assert(channel_flush(&near) == PEER_ALIVE);
	message = next_message(&far);
	cr_assert(message.handle >= 0);
	cr_assert((fcntl(message.handle, F_GETFD) & FD_CLOEXEC) != 0,
	          "the handle that came is not close-on-exec");
	cr_assert(write(message.handle, "out", 3) == 3);
	close(message.handle);
	cr_assert(read(ends[0], got, sizeof got) == 3 && strcmp(got, "out") == 0);
	cr_assert(read(ends[0], got, sizeof got) == 0, "the other end of the pipe is still open");
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

/* Read `length` bytes. Returns how many handles came with them; these are closed. */
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

/* A handle comes with the first byte of its frame, as messenger.h promises (FRAME_HAS_HANDLE). */
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

/* The next message, while the sender still writes: a socket holds only a few of the pieces if
 * they are small. */
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

/* The frames are 19 or 20 bytes long, and are torn at each byte. */
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

/* Handles wait in order while the socket is full and the reader slow. */
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
			cr_assert((message.handle >= 0) == has_handle(seen),
			          "message %zu lacks its handle, or has one too many", seen);
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
	cr_assert(open_descriptors() == before + 1,
	          "handles are still open although the peer is gone");
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
	cr_assert(channel_pending(&channel) == pending, "a refused message was queued");
	cr_assert(open_descriptors() == before + 2 + CHANNEL_HANDLES_MAX);
	cr_assert(sendmessage(&channel, &plain) == 0, "a message without a handle is refused, too");
	cr_assert(channel_flush(&channel) == PEER_ALIVE && channel_pending(&channel) == 0);
	cr_assert(sendmessage(&channel, &message) == 0, "a handle is refused after the flush");
	channel_close(&channel);
	close(far);
	cr_assert(open_descriptors() == before);
}

Test(handles, without_a_descriptor_left_to_wait_in)
{
	struct message message = text("h", "1");
	struct channel channel;
	int far = open_channel(&channel, 0), result, error;

	message.handle = far;
	limit_descriptors(free_descriptor());
	errno = 0;
	result = sendmessage(&channel, &message);
	error = errno;
	limit_descriptors(256);
	cr_assert(result == -1 && error == EMFILE,
	          "sendmessage returned %d with errno %d, and not -1 with EMFILE", result, error);
	cr_assert(channel_pending(&channel) == 0 && channel.waiting_count == 0);
	cr_assert(sendmessage(&channel, &message) == 0,
	          "a handle is refused although there are descriptors again");
	channel_close(&channel);
	close(far);
}

/* A receiver without free descriptors gets the message without the handle, and the next handles
 * come with the right messages. If the message is forwarded, it does not announce a handle. */
Test(handles, that_find_no_room_at_the_receiver_are_lost_alone)
{
	struct channel near, far, next;
	struct message message;
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
	limit_descriptors(free_descriptor());
	message = next_message(&far);
	limit_descriptors(256);
	cr_assert_str_eq(message.action, "lost");
	cr_assert(message.handle == -1);
	cr_assert(sendmessage(&next, &message) == 0 && channel_flush(&next) == PEER_ALIVE);
	cr_assert(recv(ear, wire, sizeof wire, 0) > FRAME_HEADER);
	cr_assert(wire[FRAME_FLAGS] == FRAME_HAS_DATA,
	          "the frame announces a handle that it does not have");
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

/* The message goes on without the handle, and the next handle has the whole time again. */
Test(handles, that_the_kernel_does_not_take_are_given_up_in_time)
{
	struct channel channel;
	struct shape *shape;
	int far = open_channel(&channel, 0);
	int64_t since = clutch_now();

	shape = shape_writes(&channel);
	shape->error = ENOMEM;
	shape->errors = -1; /* each write fails */
	send_handle(&channel, "first", STDIN_FILENO);
	while (channel.handles_lost == 0) {
		cr_assert(channel_flush(&channel) == PEER_ALIVE);
		cr_assert_lt(clutch_now() - since, time_limit());
		poll(NULL, 0, 10);
	}
	cr_assert_geq(clutch_now() - since, 990);
	cr_assert_eq(channel.handles_lost, 1);
	cr_assert_eq(channel.starved_since, 0);
	channel_close(&channel);
	close(far);
}

/* The same on a BSD, where the first read fails, and the second returns only the bytes. */
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

/* ---- handles of a hostile peer ----------------------------------------------------------- */

/* Read until the channel finds the peer's fault; false if it does not. */
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

/* The header of a message that stays incomplete, and a complete message. */
static const char piece[] = "\0\0\1\0\4\3\1\6";
static const char plain[] = "\0\0\0\x0b\0\0\0\1\0\0\0\0a\0\0";
static const char flagged[] = "\0\0\0\x0b\0\0\2\1\0\0\0\0a\0\0";

#define HOSTILE(wire) wire, sizeof(wire) - 1

/* Each write has the bytes `wire` and this many handles. */
static const struct {
	const char *what;
	const char *wire;
	size_t length;
	size_t handles;
	int times;
	bool crime;
} hostile[] = {
	{"two handles that no frame announced did not end the channel", piece, 1, 1, 2, false},
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
		cr_assert(open_descriptors() == before, "%s: a descriptor was not closed",
		          hostile[row].what);
	}
	for (i = 0; i < 8; i++)
		close(ends[i]);
}

/* If the maker of a pair has asked for credentials at both ends, these come before the handle. */
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
	cr_assert(found_out(&channel),
	          "two handles that no frame announced did not end the channel");
	channel_close(&channel);
	close(far);
	cr_assert(open_descriptors() == before, "a descriptor was not closed");
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

/* Credentials do not fit into the room for a handle. The kernel sets MSG_CTRUNC, which
 * counts as a lost handle. */
Test(handles, credentials_are_overlooked)
{
	struct channel near, far;
	struct message got, message = text("a", "1");
	int i, on = 1;

	open_channels(&near, &far);
	cr_assert(setsockopt(far.descriptor, SOL_SOCKET, SO_PASSCRED, &on, sizeof on) == 0);
	for (i = 0; i < 3; i++) {
		cr_assert(sendmessage(&near, &message) == 0);
		cr_assert(channel_flush(&near) == PEER_ALIVE);
		got = next_message(&far);
		cr_assert(got.handle == -1);
		cr_assert_str_eq(got.data, "1");
	}
	channel_close(&near);
	channel_close(&far);
}
