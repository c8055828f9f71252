/*
 * A relay: what is read from one channel goes out over others; and what memory that takes.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "channel.h"

#include <sys/resource.h>

/* ---- forwarding -------------------------------------------------------------------------- */

TestSuite(forwarding, .timeout = 60);

enum { EARS = 3 };

/* A master without its routing: one speaker, and receivers that the speaker does not know. */
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

/* The speaker will send this message, with a wrong from and to, which are overwritten. */
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
		cr_assert(clutch_now() < deadline,
		          "bytes are missing that the relay should have forwarded");
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

/* Small messages wait in the two queues, and leave together. */
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

/* Small messages between those that make a queue pass CHANNEL_FLUSH_SIZE, to two receivers. */
Test(forwarding, messages_around_the_flush_size_keep_their_order)
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

/* Every read and every write moves a part of a frame only. */
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

/* A message of the master's own waits, forwarded ones follow, and the socket takes a part. */
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
		*shape = (struct shape){.most = cut, .full = 1};
		relay_speak(&relay);
		relay_forward(&relay);
		relay_flush(&relay);
		cr_assert(channel_pending(&relay.sink[0]) == whole - cut);
		cr_assert(shape->calls == 1);
		*shape = (struct shape){0};
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

/* A message that was read once is copied twice into the same queue. */
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

/* One receiver reads nothing. Its messages wait in its queue, while the messages for the other
 * receivers are read into the same buffer again and again. */
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
	cr_assert(channel_pending(&relay.sink[1]) > CHANNEL_READ_SIZE,
	          "the receiver is not stalled");
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

/* A read brings a part of a large frame: its rest follows, and small messages behind it. */
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

/* Messages for a process that is not forked yet wait in its queue. */
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
	cr_assert(channel_flush(&relay.sink[1]) == PEER_ALIVE,
	          "a channel that no process has yet is taken for a dead peer");
	cr_assert(channel_pending(&relay.sink[1]) == relay.want[1].length);
	cr_assert(channel_pair(ends) == 0);
	cr_assert(channel_attach(&relay.sink[1], ends[0]) == 0);
	cr_assert(channel_pending(&relay.sink[1]) == relay.want[1].length,
	          "channel_attach has not kept the queue");
	relay.ear[1] = ends[1];
	relay.stalled[1] = false;
	relay_say_sized(&relay, 10, 0, 1); /* later messages stand behind those that waited */
	relay_run(&relay);
	relay_assert(&relay);
	relay_close(&relay);
}

/* A channel with a limit refuses a message for which its queue has no room. */
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
	cr_assert(kept == 1000 / 38, "%d messages of 38 bytes were queued within 1000 bytes", kept);
	relay.want[0].length = (size_t)kept * 38;
	pump(&relay.sink[0], relay.ear[0], &relay.got[0], relay.want[0].length);
	assert_bytes(&relay.got[0], &relay.want[0]);
	relay_close(&relay);
}

/* A message may wait in the queue behind others whose handles are not written yet. */
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

/* Long messages stand behind a handle that waits, and must not overtake the handle. */
Test(forwarding, long_messages_do_not_overtake_a_handle)
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
	relay.ear[0] = -1; /* the channel has closed it */
	channel_close(&ear);
	relay_close(&relay);
	close(ends[0]);
	close(ends[1]);
}

/* ---- forwarding, when a process leaves --------------------------------------------------- */

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
			cr_assert(errno == EPIPE); /* known since a write of its queue */
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
	relay.stalled[0] = true; /* the new receiver has heard less than expected */
	relay_run(&relay);
	relay_assert(&relay);
	relay_close(&relay);
}

/* The first message is long enough to be written at once: that write shows the death. */
Test(forwarding, a_later_message_to_the_dead_fails_with_epipe)
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
	cr_assert(sendmessage(&relay.sink[0], &message[0]) == 0,
	          "a send fails before the peer's death is known");
	errno = 0;
	cr_assert(sendmessage(&relay.sink[0], &message[2]) == -1 && errno == EPIPE);
	cr_assert(channel_pending(&relay.sink[0]) == 0);
	cr_assert(channel_flush(&relay.sink[0]) == PEER_GONE);
	relay.ear[0] = -1;
	relay_close(&relay);
}

/* A channel is closed between two reads of the source. */
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
			relay.stalled[gone] =
				true; /* the new receiver has heard less than expected */
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

/* ---- memory ------------------------------------------------------------------------------ */

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
	cr_assert(channel.queue_size >= 1000000,
	          "the queue gave its memory back at once, and the next burst would find no room");
	cr_assert(channel_trim(&channel),
	          "channel_trim does not count the queue as used a moment ago");
	cr_assert(channel.queue_size >= 1000000);
	cr_assert_not(channel_trim(&channel));
	cr_assert(channel.queue == NULL && channel.queue_size == 0);
	drop(&got);
	sized_free(&message);
	channel_close(&channel);
	close(far);
}

/* A receiver that keeps up costs the master no memory, and neither does a sender. */
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

/* A torn frame gets memory of its own, which is freed when the whole frame was taken. */
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
	cr_assert(after.ru_maxrss - before.ru_maxrss < 20 * LARGE / 1024,
	          "the memory in use has grown by %ld KiB", after.ru_maxrss - before.ru_maxrss);
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
	cr_assert(after.ru_maxrss - before.ru_maxrss < 20 * PART / 1024,
	          "the memory in use has grown by %ld KiB", after.ru_maxrss - before.ru_maxrss);
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
		*shape = (struct shape){.most = size, .full = 1};
		cr_assert(channel_flush(&channel) == PEER_ALIVE);
		cr_assert(channel_pending(&channel) == QUEUED * size);
		cr_assert(raw_collect(far, &got));
		largest = channel.queue_size > largest ? channel.queue_size : largest;
	}
	cr_assert(largest <= 4 * (QUEUED + 1) * size, "the queue took %zu bytes of memory for %zu",
	          largest, (QUEUED + 1) * size);
	*shape = (struct shape){0};
	pump(&channel, far, &got, want.length);
	assert_bytes(&got, &want);
	drop(&got);
	drop(&want);
	channel_close(&channel);
	close(far);
}
