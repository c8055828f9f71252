/*
 * One message, one frame: what is on the wire, what is refused, and messages at random.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "channel.h"

/* ---- the frame --------------------------------------------------------------------------- */

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

/* ---- what must be refused ---------------------------------------------------------------- */

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

/* A wrong header ends the channel as soon as it is complete: no memory is kept for its frame. */
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

/* ---- at random --------------------------------------------------------------------------- */

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

	fprintf(stderr, "test_frame: CLUTCH_TEST_SEED=%u\n", seed);
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
