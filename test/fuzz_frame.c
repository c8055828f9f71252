/*
 * Any bytes come, in any pieces. Valid frames arrive whole, once and in order; a wrong
 * frame ends the channel, and has no other effect.
 *
 * An input is a scenario and a stream:
 *
 *	+-------+-------+----------------+------------------------------------+
 *	| mode  | count | count+1 pieces | the stream, as often as mode says  |
 *	+-------+-------+----------------+------------------------------------+
 *
 * The stream is written to a socket piece by piece, and the other end reads each piece
 * at once. In the first act the reader is a master, which forwards every message to one or
 * both of two receivers. In the second act the reader is a child, whose listeners send every
 * message back. A model reads the same stream, in the plainest way.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "fuzz.h"
#include "messenger.h"

#include <errno.h>
#include <sys/socket.h>
#include <sys/stat.h>

enum {
	MODE_TWO_SOURCES = 1, /* the master hears the stream over two channels, in turn */
	MODE_NARROW = 2,      /* the receivers' sockets have small buffers */
	MODE_REPEAT = 4,      /* a shift: the stream is repeated 1 to 64 times */

	PIECE_HANDLE = 0x80, /* a handle comes with the piece */
	PIECE_LAZY = 0x40,   /* the receivers do not read now */
	PIECE_SIZE = 0x3f,   /* the piece's size is 1 + the square of this */

	STREAM_MAX = 128 * 1024,
	HANDLES_MAX = 1024
};

/* ---- the input ------------------------------------------------------------- */

struct scenario {
	bool two_sources, narrow;
	const uint8_t *pieces;
	size_t piece_count;
	unsigned char *stream;
	size_t length;
};

static bool
scenario_read(struct scenario *scenario, const uint8_t *input, size_t size)
{
	size_t head, once, repeat, i;

	if (size < 3)
		return false;
	scenario->two_sources = (input[0] & MODE_TWO_SOURCES) != 0;
	scenario->narrow = (input[0] & MODE_NARROW) != 0;
	scenario->pieces = input + 2;
	scenario->piece_count = 1 + (size_t)(input[1] % 32);
	head = 2 + scenario->piece_count;
	if (size <= head)
		return false;
	once = size - head;
	repeat = 1 + (size_t)(input[0] / MODE_REPEAT);
	if (once * repeat > STREAM_MAX)
		repeat = 1 + STREAM_MAX / (once + 1);
	scenario->stream = malloc(once * repeat);
	CHECK(scenario->stream != NULL);
	for (i = 0; i < repeat; i++)
		memcpy(scenario->stream + i * once, input + head, once);
	scenario->length = once * repeat;
	return true;
}

/* The two handles that travel. The device number tells which one has come. */
static int things[2] = {-1, -1};
static dev_t numbers[2];

static void
things_open(void)
{
	static const char *const paths[2] = {"/dev/null", "/dev/zero"};
	struct stat status;
	int i;

	for (i = 0; i < 2 && things[i] == -1; i++) {
		things[i] = open(paths[i], O_RDWR | O_CLOEXEC);
		CHECK(things[i] != -1 && fstat(things[i], &status) == 0);
		numbers[i] = status.st_rdev;
	}
}

static bool
is_thing(int descriptor, int thing)
{
	struct stat status;

	return fstat(descriptor, &status) == 0 && status.st_rdev == numbers[thing];
}

/* Write a piece whole. The socket has room, because its reader has taken all earlier pieces. */
static void
piece_write(int descriptor, const unsigned char *bytes, size_t length, int thing)
{
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec part = {(void *)(uintptr_t)bytes, length};
	struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1};

	if (thing != -1) {
		memset(&control, 0, sizeof control);
		header.msg_control = &control;
		header.msg_controllen = sizeof control;
		control.align.cmsg_level = SOL_SOCKET;
		control.align.cmsg_type = SCM_RIGHTS;
		control.align.cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(&control.align), &things[thing], sizeof(int));
	}
	CHECK(sendmsg(descriptor, &header, MSG_NOSIGNAL) == (ssize_t)length);
}

/* ---- the model --------------------------------------------------------------- */

struct model {
	const unsigned char *stream;
	size_t fed, taken;
	int arrived[3]; /* indices of `things` */
	int arrived_count;
	bool broken;
};

/* The expected message. */
struct expected {
	const unsigned char *frame;
	size_t size;
	int thing; /* the handle that comes with the message, or -1 */
};

/* A channel is broken if more than two handles wait: an honest sender never has so many. */
static void
model_feed(struct model *model, size_t size, int thing)
{
	model->fed += size;
	if (thing == -1)
		return;
	model->arrived[model->arrived_count++] = thing;
	model->broken = model->broken || model->arrived_count > 2;
}

static uint32_t
number_at(const unsigned char *bytes)
{
	return bytes[0] * 16777216U + bytes[1] * 65536U + bytes[2] * 256U + bytes[3];
}

static bool
header_is_valid(const unsigned char *frame)
{
	int64_t data = (int64_t)number_at(frame) - 8 - frame[7] - 2;

	if (data < 0 || data > MESSAGE_DATA_MAX || (data > 0 && frame[6] % 2 == 0))
		return false;
	return frame[4] < 5 && frame[5] < 5 && frame[6] < 4 && frame[8] < 128;
}

static bool
body_is_valid(const unsigned char *frame, size_t size)
{
	size_t i;

	for (i = 0; i < frame[7]; i++)
		if (frame[12 + i] == 0)
			return false;
	return frame[12 + i] == 0 && frame[size - 1] == 0;
}

/* Returns 1, 0 or -1, as channel_next does. */
static int
model_next(struct model *model, struct expected *expected)
{
	const unsigned char *frame = model->stream + model->taken;
	size_t left = model->fed - model->taken;

	if (model->broken)
		return -1;
	if (left < 12)
		return 0;
	*expected = (struct expected){frame, (size_t)number_at(frame) + 4, -1};
	if (header_is_valid(frame) && left < expected->size)
		return 0;
	model->broken = !header_is_valid(frame) || !body_is_valid(frame, expected->size) ||
	                (frame[6] >= 2 && model->arrived_count == 0);
	if (model->broken)
		return -1;
	model->taken += expected->size;
	if (frame[6] >= 2) {
		expected->thing = model->arrived[0];
		model->arrived[0] = model->arrived[1];
		model->arrived_count--;
	}
	return 1;
}

/* The message that came is the one that the model expects. */
static void
check_message(const struct message *message, const struct expected *expected)
{
	const unsigned char *frame = expected->frame;
	size_t action = frame[7];

	CHECK(strlen(message->action) == action);
	CHECK(memcmp(message->action, frame + 12, action) == 0);
	CHECK((unsigned)message->from == frame[4] && (unsigned)message->to == frame[5]);
	CHECK(message->receiver_pid == (pid_t)number_at(frame + 8));
	CHECK((message->data != NULL) == (frame[6] % 2 == 1));
	CHECK(message->data_length == expected->size - 12 - action - 2);
	CHECK(message->data == NULL || message->data[message->data_length] == 0);
	CHECK(message->data == NULL ||
	      memcmp(message->data, frame + 12 + action + 1, message->data_length) == 0);
	CHECK((message->handle != -1) == (expected->thing != -1));
	CHECK(expected->thing == -1 || is_thing(message->handle, expected->thing));
}

/* ---- the bytes that a receiver must get -------------------------------------- */

struct receipt {
	int descriptor;
	unsigned char *bytes; /* all bytes that must come */
	size_t length, size;
	size_t checked; /* the number of bytes that have come */
	struct {
		size_t position;
		int thing;
	} handles[HANDLES_MAX];
	size_t handle_count, handles_checked;
};

static void
receipt_add(struct receipt *receipt, const struct expected *expected, enum role from, enum role to)
{
	while (receipt->length + expected->size > receipt->size) {
		receipt->size = 2 * receipt->size + 4096;
		receipt->bytes = realloc(receipt->bytes, receipt->size);
		CHECK(receipt->bytes != NULL);
	}
	if (expected->thing != -1) {
		CHECK(receipt->handle_count < HANDLES_MAX);
		receipt->handles[receipt->handle_count].position = receipt->length;
		receipt->handles[receipt->handle_count++].thing = expected->thing;
	}
	memcpy(receipt->bytes + receipt->length, expected->frame, expected->size);
	receipt->bytes[receipt->length + FRAME_FROM] = (unsigned char)from;
	receipt->bytes[receipt->length + FRAME_TO] = (unsigned char)to;
	receipt->length += expected->size;
}

/* If a handle came with these bytes, its frame must begin among them. */
static void
receipt_check_handle(struct receipt *receipt, struct msghdr *header, size_t count)
{
	struct cmsghdr *control = CMSG_FIRSTHDR(header);
	size_t next = receipt->handles_checked;
	int descriptor;

	CHECK((header->msg_flags & MSG_CTRUNC) == 0);
	if (control == NULL) {
		CHECK(next == receipt->handle_count ||
		      receipt->handles[next].position >= receipt->checked + count);
		return;
	}
	CHECK(control->cmsg_len == CMSG_LEN(sizeof(int)) && next < receipt->handle_count);
	memcpy(&descriptor, CMSG_DATA(control), sizeof descriptor);
	CHECK(is_thing(descriptor, receipt->handles[next].thing));
	CHECK(receipt->handles[next].position >= receipt->checked);
	CHECK(receipt->handles[next].position < receipt->checked + count);
	receipt->handles_checked++;
	close(descriptor);
}

/* Read what is there, and compare. */
static void
receipt_check(struct receipt *receipt)
{
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(4 * sizeof(int))];
	} control;
	static unsigned char bytes[64 * 1024];
	struct iovec part = {bytes, sizeof bytes};
	struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control};
	ssize_t count;

	for (;;) {
		header.msg_controllen = sizeof control;
		count = recvmsg(receipt->descriptor, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
		if (count <= 0)
			return;
		CHECK((size_t)count <= receipt->length - receipt->checked);
		CHECK(memcmp(receipt->bytes + receipt->checked, bytes, (size_t)count) == 0);
		receipt_check_handle(receipt, &header, (size_t)count);
		receipt->checked += (size_t)count;
	}
}

static bool
receipt_is_complete(const struct receipt *receipt)
{
	return receipt->checked == receipt->length &&
	       receipt->handles_checked == receipt->handle_count;
}

static void
receipt_free(struct receipt *receipt)
{
	close(receipt->descriptor);
	free(receipt->bytes);
}

/* ---- first act: the master --------------------------------------------------- */

struct relay {
	struct channel source[2], target[2];
	int write[2]; /* the far ends of the sources */
	struct model model[2];
	struct receipt receipt[2];
	bool over[2]; /* the source has ended */
	size_t messages;
};

static void
relay_open(struct relay *relay, const struct scenario *scenario)
{
	int pair[2], i, narrow = 1; /* the kernel makes this its smallest buffer */

	memset(relay, 0, sizeof *relay);
	for (i = 0; i < 2; i++) {
		CHECK(channel_pair(pair) == 0);
		channel_init(&relay->source[i], 0);
		CHECK(channel_attach(&relay->source[i], pair[0]) == 0);
		relay->write[i] = pair[1];
		relay->model[i].stream = scenario->stream;
		CHECK(channel_pair(pair) == 0);
		channel_init(&relay->target[i], 0);
		CHECK(channel_attach(&relay->target[i], pair[0]) == 0);
		if (scenario->narrow)
			setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &narrow, sizeof narrow);
		relay->receipt[i].descriptor = pair[1];
	}
}

/* The last bits of receiverPid choose the receivers. Each message gets other stamps. */
static void
forward(struct relay *relay, struct message *message, const struct expected *expected)
{
	unsigned receivers = 3 - (unsigned)message->receiver_pid % 4;
	size_t i;

	message->from = (enum role)(relay->messages % 5);
	message->to = (enum role)(relay->messages / 5 % 5);
	relay->messages++;
	for (i = 0; i < 2; i++) {
		if ((receivers >> i) % 2 == 0)
			continue;
		CHECK(sendmessage(&relay->target[i], message) == 0);
		receipt_add(&relay->receipt[i], expected, message->from, message->to);
	}
	if (message->handle != -1)
		close(message->handle);
}

/* The master keeps one frame that is not whole yet, and the bytes that no receiver has taken. */
static void
check_memory(const struct relay *relay)
{
	size_t i, pending;

	for (i = 0; i < 2; i++) {
		CHECK(relay->source[i].kept_length <= FRAME_MAX);
		CHECK(relay->source[i].kept_length <= relay->model[i].fed - relay->model[i].taken);
		pending = channel_pending(&relay->target[i]);
		CHECK(pending <= relay->receipt[i].length - relay->receipt[i].checked);
		CHECK(relay->target[i].queue_size <= 4 * (size_t)STREAM_MAX + 4 * FRAME_MAX);
	}
}

static void
relay_hear(struct relay *relay, size_t i)
{
	struct channel *source = &relay->source[i];
	struct expected expected;
	struct message message;
	enum peer peer;
	int found;

	do {
		peer = channel_read(source);
		CHECK(peer != PEER_GONE);
		while ((found = channel_next(source, &message)) == 1) {
			CHECK(model_next(&relay->model[i], &expected) == 1);
			check_message(&message, &expected);
			CHECK(memcmp(message.frame, expected.frame, expected.size) == 0);
			forward(relay, &message, &expected);
		}
		if (found == -1 || peer == PEER_BROKEN) {
			CHECK(model_next(&relay->model[i], &expected) == -1);
			CHECK(channel_next(source, &message) == 0);
			channel_close(source);
			relay->over[i] = true;
			return;
		}
	} while (source->bytes_in < relay->model[i].fed);
	CHECK(model_next(&relay->model[i], &expected) == 0);
}

static void
relay_end(struct relay *relay)
{
	int i;

	for (i = 0; i < 2; i++) {
		while (channel_pending(&relay->target[i]) > 0) {
			CHECK(channel_flush(&relay->target[i]) == PEER_ALIVE);
			receipt_check(&relay->receipt[i]);
		}
		receipt_check(&relay->receipt[i]);
		CHECK(receipt_is_complete(&relay->receipt[i]));
		CHECK(relay->target[i].waiting_count == 0);
		receipt_free(&relay->receipt[i]);
	}
	for (i = 0; i < 2; i++) {
		channel_close(&relay->target[i]);
		channel_close(&relay->source[i]);
		close(relay->write[i]);
	}
}

static void
act_master(const struct scenario *scenario)
{
	struct relay *relay = malloc(sizeof *relay);
	size_t at, size, i, n = 0;
	int thing;

	CHECK(relay != NULL);
	relay_open(relay, scenario);
	for (at = 0; at < scenario->length; at += size, n++) {
		uint8_t piece = scenario->pieces[n % scenario->piece_count];

		size = 1 + (size_t)(piece & PIECE_SIZE) * (piece & PIECE_SIZE);
		size = size < scenario->length - at ? size : scenario->length - at;
		thing = (piece & PIECE_HANDLE) != 0 ? (int)(n % 2) : -1;
		for (i = 0; i < 1U + scenario->two_sources; i++) {
			if (relay->over[i])
				continue;
			piece_write(relay->write[i], scenario->stream + at, size, thing);
			model_feed(&relay->model[i], size, thing);
			relay_hear(relay, i);
			check_memory(relay);
		}
		for (i = 0; i < 2 && (piece & PIECE_LAZY) == 0; i++) {
			channel_flush(&relay->target[i]);
			receipt_check(&relay->receipt[i]);
		}
	}
	relay_end(relay);
	free(relay);
}

/* ---- second act: the child --------------------------------------------------- */

struct child {
	struct messenger *messenger;
	struct model model;
	struct receipt receipt;
	struct expected last;
	size_t heard, heard_named;
};

static int
on_every(struct messenger *messenger, const struct message *message, void *arg)
{
	struct child *child = arg;

	CHECK(model_next(&child->model, &child->last) == 1);
	check_message(message, &child->last);
	CHECK(message->frame == NULL); /* so that a changed message may be sent on */
	child->heard++;
	if (messenger_send_message(messenger, message) == 0)
		receipt_add(&child->receipt, &child->last, message->from, message->to);
	else
		CHECK(errno == ENOBUFS);
	return 0;
}

/* on_every has just heard the same message. Every second time the listener is added anew. */
static int
on_named(struct messenger *messenger, const struct message *message, void *arg)
{
	struct child *child = arg;

	check_message(message, &child->last);
	child->heard_named++;
	if (child->heard_named % 2 == 0) {
		CHECK(messenger_remove_listener(messenger, "a", on_named, child) == 0);
		CHECK(messenger_on(messenger, "a", on_named, child) == 0);
	}
	return 0;
}

static void
child_open(struct child *child, const struct scenario *scenario)
{
	int pair[2];

	memset(child, 0, sizeof *child);
	child->model.stream = scenario->stream;
	CHECK(channel_pair(pair) == 0);
	child->receipt.descriptor = pair[1];
	child->messenger = messenger_open(pair[0], ROLE_APP);
	CHECK(child->messenger != NULL);
	CHECK(messenger_on(child->messenger, NULL, on_every, child) == 0);
	CHECK(messenger_on(child->messenger, "a", on_named, child) == 0);
	CHECK(messenger_once(child->messenger, "egg-pids", on_named, child) == 0);
}

static void
check_opids(const struct messenger *messenger)
{
	size_t i, count;
	const pid_t *pids = messenger_opids(messenger, &count);

	for (i = 0; i < count; i++)
		CHECK(pids[i] > 0);
}

/* A turn of the loop. false: the channel has ended, and so has the model. */
static bool
child_step(struct child *child)
{
	struct expected expected;
	int result;

	do
		result = messenger_step(child->messenger, 0);
	while (result == 1 && child->messenger->channel.bytes_in < child->model.fed);
	check_opids(child->messenger);
	CHECK(child->messenger->channel.kept_length <= FRAME_MAX);
	if (result == 1) {
		CHECK(model_next(&child->model, &expected) == 0);
		return true;
	}
	CHECK(result == -1 && errno == EPROTO);
	CHECK(model_next(&child->model, &expected) == -1);
	CHECK(messenger_step(child->messenger, 0) == 0);
	CHECK(messenger_send(child->messenger, "a", NULL, ROLE_APP) == -1 && errno == EPIPE);
	return false;
}

static void
child_end(struct child *child, bool alive)
{
	struct channel *channel = &child->messenger->channel;

	receipt_check(&child->receipt);
	while (alive && channel_pending(channel) > 0) {
		CHECK(messenger_step(child->messenger, 0) == 1);
		receipt_check(&child->receipt);
	}
	CHECK(!alive || receipt_is_complete(&child->receipt));
	messenger_close(child->messenger);
	receipt_free(&child->receipt);
}

static void
act_child(const struct scenario *scenario)
{
	struct child *child = malloc(sizeof *child);
	bool alive = true;
	size_t at, size, n = 0;
	int thing;

	CHECK(child != NULL);
	child_open(child, scenario);
	for (at = 0; at < scenario->length && alive; at += size, n++) {
		uint8_t piece = scenario->pieces[n % scenario->piece_count];

		size = 1 + (size_t)(piece & PIECE_SIZE) * (piece & PIECE_SIZE);
		size = size < scenario->length - at ? size : scenario->length - at;
		thing = (piece & PIECE_HANDLE) != 0 ? (int)(n % 2) : -1;
		piece_write(child->receipt.descriptor, scenario->stream + at, size, thing);
		model_feed(&child->model, size, thing);
		alive = child_step(child);
		if ((piece & PIECE_LAZY) == 0)
			receipt_check(&child->receipt);
	}
	child_end(child, alive);
	free(child);
}

/* ---- both -------------------------------------------------------------------- */

static int
open_descriptors(void)
{
	struct pollfd set[128];
	int i, count = 0;

	for (i = 0; i < 128; i++)
		set[i] = (struct pollfd){.fd = i};
	CHECK(poll(set, 128, 0) >= 0);
	for (i = 0; i < 128; i++)
		count += (set[i].revents & POLLNVAL) == 0;
	return count;
}

int
LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
	struct scenario scenario;
	int before;

	if (!scenario_read(&scenario, input, size))
		return 0;
	things_open();
	before = open_descriptors();
	act_master(&scenario);
	act_child(&scenario);
	CHECK(open_descriptors() == before);
	free(scenario.stream);
	return 0;
}
