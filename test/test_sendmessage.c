/*
 * One channel: reading, writing, and its end.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "channel.h"

/* ---- channels ---------------------------------------------------------------------------- */

/* Send messages until the socket takes no more; all their bytes are in `want`. */
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

/* ---- reading ----------------------------------------------------------------------------- */

TestSuite(reading, .timeout = 60);

/* How many frames of `few` are complete in the first `length` bytes of their stream. */
static size_t
few_complete(size_t length)
{
	size_t i;

	for (i = 0; i < COUNT(few) && length >= message_size(&few[i]); i++)
		length -= message_size(&few[i]);
	return i;
}

/* Each message must come as soon as its last byte has arrived, and not before. */
static void
read_piece(struct channel *channel, const struct bytes *stream, int far, size_t from, size_t until)
{
	size_t taken = few_complete(from);

	if (until == from)
		return;
	raw_write(far, stream->at + from, until - from);
	cr_assert(channel_read(channel) == PEER_ALIVE);
	take(channel, few, COUNT(few), &taken);
	cr_assert(taken == few_complete(until),
	          "after the first %zu bytes, %zu messages were taken", until, taken);
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

/* With two cuts the same header, or the same torn frame, is completed in two steps. */
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

/* All bytes have arrived, but each read returns only a piece, of every possible size. */
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

/* Several channels have torn frames at the same time, but they share one read buffer. */
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
 * Returns the number of reads that ended within a frame. */
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

/* A part of a header is followed by more bytes than the buffer holds. */
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

/* Messages of about the read buffer's size, and the largest, each between two small messages. */
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
	cr_assert(far.kept == NULL, "the channel keeps bytes of a complete frame");
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
	raw_write(far, stream.at, 3); /* only the first frame is torn */
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
	raw_write(far, "\0\0", 2); /* the same after half a header */
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
			cr_assert(!channel_take_starved(&channel), "a shortage is told twice");
		}
		receive(&channel, few, COUNT(few));
		cr_assert(shape->errors == 0);
	}
	drop(&stream);
	channel_close(&channel);
	close(far);
}

/* ---- writing ----------------------------------------------------------------------------- */

TestSuite(writing, .timeout = 60);

/* Every write takes at most shape->most bytes, for every possible limit. */
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

/* The first write stops at some byte; then more messages are queued behind the rest. */
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
		*shape = (struct shape){.most = cut, .full = 1};
		cr_assert(channel_flush(&channel) == PEER_ALIVE);
		cr_assert(channel_pending(&channel) == want.length / 2 - cut);
		cr_assert(shape->last == 0, "a second write after a short write");
		for (i = 0; i < COUNT(few); i++)
			cr_assert(sendmessage(&channel, &few[i]) == 0);
		*shape = (struct shape){0};
		pump(&channel, far, &got, want.length);
		assert_bytes(&got, &want);
		drop(&got);
	}
	drop(&want);
	channel_close(&channel);
	close(far);
}

/* Send `count` messages of about 1000 bytes, each with other data. */
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

/* When a part of the queue is written and the queue needs room, its bytes are moved within its
 * memory or to a larger block. Parts of many sizes are tried. */
Test(writing, moves_its_queue_without_a_change)
{
	enum { QUEUED = 31, SIZE = FRAME_HEADER + 8 + 1 + 1000 + 1 };
	struct channel channel;
	size_t written, round;

	for (written = 1; written < (size_t)QUEUED * SIZE; written += 333) {
		struct bytes want = {.at = NULL}, got = {.at = NULL};
		int far = open_channel(&channel, 0); /* a new channel has a small queue */
		struct shape *shape = shape_writes(&channel);

		for (round = 0; round < 3; round++) {
			send_kilobytes(&channel, &want, QUEUED);
			*shape = (struct shape){.most = written, .full = 1};
			cr_assert(channel_flush(&channel) == PEER_ALIVE);
			cr_assert(raw_collect(far, &got));
		}
		send_kilobytes(&channel, &want, QUEUED);
		*shape = (struct shape){0};
		pump(&channel, far, &got, want.length);
		assert_bytes(&got, &want);
		drop(&want);
		drop(&got);
		channel_close(&channel);
		close(far);
	}
}

/* The socket's buffer is small, and the reader takes 100 bytes now and then. */
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
		cr_assert(channel_flush(&channel) == PEER_ALIVE, "a full socket is an error");
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
	cr_assert(channel_pending(&channel) == pending, "a refused message was queued");
	while (channel_pending(&channel) + message_size(&small) <= LIMIT) { /* to the last byte */
		cr_assert(sendmessage(&channel, &small) == 0, "a smaller message is refused");
		put_frame(&want, &small);
	}
	pump(&channel, far, &got, want.length);
	cr_assert(sendmessage(&channel, &message) == 0, "refused after the flush");
	put_frame(&want, &message);
	pump(&channel, far, &got, want.length);
	assert_bytes(&got, &want);
	sized_free(&message);
	drop(&want);
	drop(&got);
	channel_close(&channel);
	close(far);
}

/* Messages that fill the queue exactly to its limit are taken; one byte more is not. */
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

/* What must not be lost is tried again for a second. */
Test(writing, a_shortage_is_borne_for_a_second)
{
	int64_t deadline = 0, since = clutch_now();

	while (clutch_retry(&deadline))
		cr_assert_lt(clutch_now() - since, 10000);
	cr_assert_geq(clutch_now() - since, 990);
}

/* In a turn of the loop one write sends all messages, and one read gets them. */
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
	cr_assert(shape->calls == 0, "sendmessage has written");
	cr_assert(channel_flush(&channel) == PEER_ALIVE && channel_pending(&channel) == 0);
	cr_assert(shape->calls == 1, "%d writes", shape->calls);
	cr_assert(ioctl(far, FIONREAD, &waiting) == 0 && (size_t)waiting == want.length);
	got = (struct bytes){.at = room, .length = (size_t)recv(far, room, sizeof room, 0)};
	assert_bytes(&got, &want);
	drop(&want);
	channel_close(&channel);
	close(far);
}

/* ---- the end ----------------------------------------------------------------------------- */

TestSuite(ending, .timeout = 60);

/* Expect the messages of `few`, and then, each time, that the peer is gone. */
static void
assert_last_words(struct channel *channel)
{
	struct message message;
	size_t taken = 0;

	receive(channel, few, COUNT(few));
	cr_assert(channel_read(channel) == PEER_GONE);
	take(channel, few, 0, &taken);
	cr_assert(channel_read(channel) == PEER_GONE, "a gone peer is back");
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

/* If a peer dies and leaves bytes unread, our read fails with ECONNRESET instead of returning 0. */
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
	cr_assert(shape->last == ECONNRESET, "errno is %d: there was no reset", shape->last);
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
	cr_assert(sendmessage(&channel, &few[0]) == 0, "the death is known early");
	cr_assert(sendmessage(&channel, &(struct message){.action = "h", .handle = handle[0]}) ==
	          0);
	cr_assert(channel_flush(&channel) == PEER_GONE, "a write to a dead peer succeeded");
	cr_assert(channel_pending(&channel) == 0 && channel.queue == NULL, "the queue is kept");
	cr_assert(open_descriptors() == before, "the handle is kept");
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

/* ---- draining ---------------------------------------------------------------------------- */

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
	cr_assert(clutch_now() - start >= TIMEOUT, "channel_drain gave up too early");
	cr_assert(clutch_now() - start < PATIENCE, "channel_drain hung");
	cr_assert(channel_pending(&channel) == pending, "channel_drain lost bytes");
	start = clutch_now();
	cr_assert(channel_drain(&channel, 0) == PEER_ALIVE);
	cr_assert(clutch_now() - start < PATIENCE);
	drop(&want);
	channel_close(&channel);
	close(far);
}

/* The body of a child process: read until the end, and exit with 0 if all bytes came. */
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

Test(draining, does_not_wait_for_a_process_that_is_not_forked_yet)
{
	struct message message = text("a", NULL);
	struct channel channel;
	int64_t start = clutch_now();

	channel_init(&channel, 0);
	cr_assert(sendmessage(&channel, &message) == 0);
	cr_assert(channel_drain(&channel, 3 * PATIENCE) == PEER_ALIVE);
	cr_assert(channel_pending(&channel) > 0);
	cr_assert(clutch_now() - start < PATIENCE);
	channel_close(&channel);
}

/* ---- no descriptor -------------------------------------------------------------------------- */

Test(ending, without_descriptors_there_is_no_pair)
{
	int pair[2];

	if (under_valgrind())
		cr_skip_test("valgrind tells no kernel of a lower limit");
	limit_descriptors(3);
	cr_assert(channel_pair(pair) == -1 && errno == EMFILE);
	limit_descriptors(256);
}
