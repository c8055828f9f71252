/*
 * The master's side of the messenger: several messages, handles, full queues, many receivers.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "no_memory.h"
#include "world.h"

/* ---- the world: a master's view, and the far ends ---------------------------------------- */

TestSuite(backpressure, .init = open_full_world, .fini = close_world);

/* ---- several messages -------------------------------------------------------------------- */

/* An app sends five messages at once, each to another process. Each message keeps its own
 * stamps, although all of them stand in one buffer. */
Test(backpressure, stamps_do_not_mix)
{
	static const struct {
		enum role to;
		pid_t pid;
	} said[] = {
		{ROLE_NONE, 0}, {ROLE_APP, 0}, {ROLE_NONE, 302}, {ROLE_PARENT, 0}, {ROLE_APP, 0}};
	unsigned char bytes[512];
	struct message message;
	struct inbox inbox;
	size_t i, length = 0, frame, at[] = {1, 1, 2, 3};
	const enum role to[] = {ROLE_PARENT, ROLE_AGENT, ROLE_APP, ROLE_APP};
	int who;

	for (i = 0; i < sizeof said / sizeof said[0]; i++) {
		message = compose(ROLE_NONE, said[i].to, said[i].pid);
		length += make_frame(bytes + length, &message);
	}
	put_on_wire(APP1, bytes, length, -1);
	cr_assert_eq(channel_read(&processes[APP1].channel), PEER_ALIVE);
	while (channel_next(&processes[APP1].channel, &message) == 1)
		master_messenger_receive(&messenger, &processes[APP1], &message);
	frame = length / i;
	for (who = PARENT; who <= APP2; who++) {
		take((enum who)who, &inbox);
		cr_assert_eq(count_frames(&inbox), at[who], "%s received %zu messages",
		             cast[who].name, count_frames(&inbox));
		for (i = 0; i < at[who]; i++) {
			cr_assert_eq(inbox.bytes[i * frame + FRAME_FROM], ROLE_APP);
			cr_assert_eq(inbox.bytes[i * frame + FRAME_TO], to[who]);
		}
	}
}

/* ---- handles ----------------------------------------------------------------------------- */

/* Is it the same open file? */
static bool
is_same_file(int one, int two)
{
	struct stat a, b;

	return fstat(one, &a) == 0 && fstat(two, &b) == 0 && a.st_dev == b.st_dev &&
	       a.st_ino == b.st_ino;
}

/* The process received one frame. Either the frame announces a handle and the handle came, or
 * neither is true. */
static void
check_handle(enum who who, bool has_handle, int original)
{
	struct inbox inbox;
	bool announced;

	take(who, &inbox);
	cr_assert_eq(count_frames(&inbox), 1, "%s received %zu", cast[who].name,
	             count_frames(&inbox));
	announced = (inbox.bytes[FRAME_FLAGS] & FRAME_HAS_HANDLE) != 0;
	cr_assert_eq(inbox.handles, has_handle, "%s received %zu handles", cast[who].name,
	             inbox.handles);
	cr_assert_eq(announced, has_handle, "%s: the frame %s a handle", cast[who].name,
	             announced ? "announces" : "hides");
	if (!has_handle)
		return;
	cr_assert(is_same_file(inbox.handle, original),
	          "the handle that %s received is of another file", cast[who].name);
	close(inbox.handle);
}

Test(backpressure, a_handle_travels_to_one)
{
	struct message data = compose(ROLE_NONE, ROLE_NONE, cast[APP2].pid);
	struct inbox inbox;
	int pair[2];

	cr_assert_eq(pipe(pair), 0);
	data.handle = pair[1];
	relay(APP1, &data);
	cr_assert_neq(fcntl(data.handle, F_GETFD), -1, "the caller's handle was closed");
	close(data.handle);
	check_handle(APP2, true, pair[1]);
	take(APP1, &inbox);
	cr_assert_eq(inbox.length, 0);
	close(pair[0]);
	close(pair[1]);
}

Test(backpressure, a_handle_travels_to_several)
{
	struct message data = compose(ROLE_NONE, ROLE_NONE, 0);
	int pair[2];

	cr_assert_eq(pipe(pair), 0);
	data.handle = pair[1];
	relay(AGENT, &data);
	cr_assert_neq(fcntl(data.handle, F_GETFD), -1, "the caller's handle was closed");
	close(data.handle);
	check_handle(APP1, true, pair[1]);
	check_handle(APP2, true, pair[1]);
	close(pair[0]);
	close(pair[1]);
}

Test(backpressure, a_handle_travels_to_the_master_and_to_nobody)
{
	struct message data = compose(ROLE_NONE, ROLE_MASTER, 0);

	data.handle = STDERR_FILENO;
	relay(APP1, &data);
	cr_assert_eq(emitted.count, 1);
	cr_assert(emitted.handle_is_open);
	cr_assert_neq(fcntl(data.handle, F_GETFD), -1, "the caller's handle was closed");
	close(data.handle);
	data = compose(ROLE_NONE, ROLE_NONE, UNKNOWN_PID);
	data.handle = STDERR_FILENO;
	relay(APP1, &data);
	cr_assert_eq(messenger.undeliverable, 1);
	cr_assert_neq(fcntl(data.handle, F_GETFD), -1, "the caller's handle was closed");
	close(data.handle);
}

/* A receiver whose queue finds no memory for a second is given up: a gap would be worse. */
Test(backpressure, without_memory_a_receiver_is_given_up_after_a_second)
{
	struct message data = compose(ROLE_NONE, ROLE_NONE, cast[APP2].pid);
	struct process *receiver = &processes[APP2];
	int64_t since = clutch_now();

	is_memory_short = true;
	relay(APP1, &data);
	is_memory_short = false;
	cr_assert_geq(clutch_now() - since, 990);
	cr_assert_not_null(receiver->killed_for);
	cr_assert(receiver->channel.write_closed, "a message behind the gap would be sent");
	cr_assert_null(processes[AGENT].killed_for);
}

/* The master has no descriptor left for a copy of the handle. The message is more important than
 * the handle, so the message arrives without the handle, and does not announce one. */
static void
lose_handle(int descriptors)
{
	struct message data = compose(ROLE_NONE, ROLE_APP, 0);
	unsigned char frame[512];
	int handle;

	data.handle = STDERR_FILENO;
	put_on_wire(AGENT, frame, make_frame(frame, &data), STDERR_FILENO);
	cr_assert_eq(hear(AGENT, &data), 1);
	handle = data.handle;
	limit_descriptors(free_descriptor() + descriptors);
	master_messenger_receive(&messenger, &processes[AGENT], &data);
	limit_descriptors(256);
	cr_assert_neq(fcntl(handle, F_GETFD), -1, "the caller's handle was closed");
	close(handle);
}

Test(backpressure, without_descriptors_a_message_loses_its_handle)
{
	lose_handle(0);
	check_handle(APP1, false, -1);
	check_handle(APP2, false, -1);
	cr_assert_eq(messenger.undeliverable, 0);
}

Test(backpressure, with_one_descriptor_the_first_receiver_gets_the_handle)
{
	lose_handle(1);
	check_handle(APP1, true, STDERR_FILENO);
	check_handle(APP2, false, -1);
	cr_assert_eq(processes[APP1].channel.handles_lost, 0);
	cr_assert_eq(processes[APP2].channel.handles_lost, 1);
}

/* ---- backpressure (D21) ------------------------------------------------------------------ */

/* Put this many more bytes into a receiver's queue. */
static void
fill(struct process *process, size_t bytes)
{
	static char text[MESSAGE_DATA_MAX];
	struct message message = {.from = ROLE_MASTER, .data = text, .handle = -1};
	size_t least = FRAME_HEADER + 2;

	memset(text, '1', sizeof text);
	process->channel.flush_at = SIZE_MAX; /* nothing is written early */
	while (bytes > 0) {
		message.data_length = bytes - least < sizeof text ? bytes - least : sizeof text / 2;
		cr_assert_eq(sendmessage(&process->channel, &message), 0);
		bytes -= message.data_length + least;
	}
}

/* Let the process read until its queue has at most this length. */
static void
drain(struct process *process, int end, size_t bytes)
{
	static char text[65536];

	do {
		while (recv(end, text, sizeof text, MSG_DONTWAIT) > 0)
			;
		channel_flush(&process->channel);
	} while (channel_pending(&process->channel) > bytes);
}

/* The size of the frame that `say` sends. */
static size_t
size_said(void)
{
	struct message message = compose(ROLE_NONE, ROLE_NONE, 0);

	return message_size(&message);
}

static void
say(struct process *sender, enum role to, pid_t receiver_pid)
{
	struct message data = compose(ROLE_NONE, to, receiver_pid);

	master_messenger_receive(&messenger, sender, &data);
}

/* Exactly these processes wait, so the master does not read from them. */
static void
expect_waiting(const char *names)
{
	char words[64];
	char name[16];
	int who;

	snprintf(words, sizeof words, " %s ", names);
	for (who = 0; who < PROCESSES; who++) {
		snprintf(name, sizeof name, " %s ", cast[who].name);
		cr_assert_eq(process_stop_waiting(&processes[who], &manager),
		             strstr(words, name) == NULL,
		             "%s waits or does not wait, and these should wait: %s", cast[who].name,
		             names);
	}
}

Test(backpressure, who_feeds_a_long_queue_waits)
{
	fill(&processes[APP2], CHANNEL_HIGH_WATER - size_said());
	expect_waiting("");
	say(&processes[APP1], ROLE_NONE, cast[APP2].pid); /* now the queue is at the mark */
	expect_waiting("");
	say(&processes[AGENT], ROLE_NONE, cast[APP2].pid);
	expect_waiting("AGENT");
	say(&processes[PARENT], ROLE_APP, 0);
	expect_waiting("AGENT PARENT");
	say(&processes[APP1], ROLE_AGENT, 0); /* another receiver */
	expect_waiting("AGENT PARENT");
	drain(&processes[APP2], ends[APP2], CHANNEL_LOW_WATER - 1);
	expect_waiting("");
	cr_assert_eq(messenger.undeliverable, 0);
}

/* While a queue is between the marks, waiting senders go on waiting, and others are read. */
Test(backpressure, between_the_marks_nothing_changes)
{
	fill(&processes[APP2], CHANNEL_HIGH_WATER);
	say(&processes[AGENT], ROLE_NONE, cast[APP2].pid);
	expect_waiting("AGENT");
	channel_close(&processes[APP2].channel);
	channel_init(&processes[APP2].channel, 0); /* a queue of exactly this length */
	fill(&processes[APP2], CHANNEL_LOW_WATER + 1);
	expect_waiting("AGENT");
	say(&processes[APP1], ROLE_NONE, cast[APP2].pid);
	expect_waiting("AGENT");
	channel_close(&processes[APP2].channel);
	channel_init(&processes[APP2].channel, 0);
	fill(&processes[APP2], CHANNEL_LOW_WATER - 1);
	expect_waiting("");
}

/* Senders also wait for the agent and for the parent. */
Test(backpressure, agent_and_parent_are_waited_for_as_well)
{
	fill(&processes[AGENT], CHANNEL_HIGH_WATER + 1);
	fill(&processes[PARENT], CHANNEL_HIGH_WATER + 1);
	say(&processes[APP1], ROLE_AGENT, 0);
	say(&processes[APP2], ROLE_PARENT, 0);
	expect_waiting("APP1 APP2");
	drain(&processes[AGENT], ends[AGENT], 0);
	expect_waiting("APP2");
	drain(&processes[PARENT], ends[PARENT], 0);
	expect_waiting("");
}

/* The master does not fork its parent, so the parent's state is STATE_NONE for ever. */
Test(backpressure, a_parent_as_the_master_has_it_is_waited_for)
{
	processes[PARENT].state = STATE_NONE;
	fill(&processes[PARENT], CHANNEL_HIGH_WATER + 1);
	say(&processes[APP1], ROLE_PARENT, 0);
	expect_waiting("APP1");
}

/* A missing agent holds no sender up (D24): when the queue of its slot is full, messages for the
 * agent are dropped and counted. */
Test(backpressure, nobody_waits_for_an_agent_that_is_not_there)
{
	uint64_t dropped;

	kill_agent();
	fill(&processes[AGENT], CHANNEL_HIGH_WATER + 1);
	say(&processes[APP1], ROLE_AGENT, 0);
	expect_waiting("");
	cr_assert_eq(messenger.undeliverable, 0);
	fill(&processes[AGENT],
	     CHANNEL_QUEUE_MAX - channel_pending(&processes[AGENT].channel) - 40);
	say(&processes[APP1], ROLE_AGENT, 0);
	say(&processes[APP1], ROLE_AGENT, 0);
	expect_waiting("");
	dropped = processes[AGENT].dropped;
	cr_assert_gt(dropped, 0);
	cr_assert_eq(messenger.undeliverable, dropped);
	cr_assert_leq(channel_pending(&processes[AGENT].channel), CHANNEL_QUEUE_MAX);
}

/* No sender waits for a queue that the master's own messages have filled. A sender also does not
 * wait if its message is not delivered to the full queue. */
Test(backpressure, the_master_waits_for_nobody)
{
	struct message data = compose(ROLE_MASTER, ROLE_APP, 0);

	fill(&processes[APP1], CHANNEL_HIGH_WATER + 1);
	fill(&processes[APP3], CHANNEL_HIGH_WATER + 1); /* disconnected */
	master_messenger_send(&messenger, &data);
	expect_waiting("");
	say(&processes[AGENT], ROLE_NONE, cast[APP2].pid);
	say(&processes[PARENT], ROLE_NONE, cast[APP3].pid);
	say(&processes[APP2], ROLE_MASTER, 0);
	expect_waiting("");
}

/* A sender may wait for itself. */
Test(backpressure, who_feeds_itself_waits_for_itself)
{
	fill(&processes[APP1], CHANNEL_HIGH_WATER);
	say(&processes[APP1], ROLE_APP, 0);
	expect_waiting("APP1");
	drain(&processes[APP1], ends[APP1], 0);
	expect_waiting("");
}

/* A handle that waits in a queue is an open descriptor of the master, which has few of them. */
Test(backpressure, who_feeds_waiting_handles_waits)
{
	struct message data;
	int i;

	for (i = 1; i <= CHANNEL_HANDLES_MAX / 2 + 1; i++) {
		expect_waiting("");
		data = compose(ROLE_NONE, ROLE_NONE, cast[APP2].pid);
		data.handle = STDERR_FILENO;
		master_messenger_receive(&messenger, &processes[AGENT], &data);
	}
	expect_waiting("AGENT");
	drain(&processes[APP2], ends[APP2], 0);
	expect_waiting("");
}

/* ---- many receivers ---------------------------------------------------------------------- */

static struct process many[MANY];
static int many_ends[MANY];

static void
open_many(void)
{
	int i;

	open_full_world();
	manager.workers = NULL;
	for (i = 0; i < MANY; i++) {
		many_ends[i] = open_process(&many[i], ROLE_APP, STATE_LISTENING, 401 + i);
		many[i].slot = i;
		add_worker(&many[i]);
	}
}

static void
close_many(void)
{
	int i;

	for (i = 0; i < MANY; i++) {
		channel_close(&many[i].channel);
		close(many_ends[i]);
	}
	close_world();
}

TestSuite(backpressure_many, .init = open_many, .fini = close_many);

Test(backpressure_many, each_receives_once)
{
	struct message data = compose(ROLE_NONE, ROLE_NONE, 0);
	struct inbox inbox;
	int i;

	relay(AGENT, &data);
	for (i = 0; i < MANY; i++) {
		take_from(&many[i], many_ends[i], &inbox);
		cr_assert_eq(count_frames(&inbox), 1, "worker %d received %zu messages", i,
		             count_frames(&inbox));
		cr_assert_eq(inbox.bytes[FRAME_FROM], ROLE_AGENT);
		cr_assert_eq(inbox.bytes[FRAME_TO], ROLE_APP);
	}
	data = compose(ROLE_NONE, ROLE_NONE, 401 + MANY - 1);
	relay(AGENT, &data);
	for (i = 0; i < MANY; i++) {
		take_from(&many[i], many_ends[i], &inbox);
		cr_assert_eq(count_frames(&inbox), i == MANY - 1, "worker %d received %zu messages",
		             i, count_frames(&inbox));
	}
}

Test(backpressure_many, deliveries_are_in_order_of_registration)
{
	struct message data = compose(ROLE_AGENT, ROLE_APP, 0);
	int i;

	data.handle = STDERR_FILENO;
	master_messenger_send(&messenger, &data);
	for (i = 0; i < MANY; i++)
		cr_assert_eq(many[i].channel.waiting_count, 1,
		             "no handle, or more than one, waits for worker %d", i);
	for (i = 1; i < MANY; i++)
		cr_assert_lt(many[i - 1].channel.waiting[0].descriptor,
		             many[i].channel.waiting[0].descriptor,
		             "worker %d has no duplicate of its own", i);
}

/* A sender waits until the longest queue has drained, wherever its worker stands in the list. */
static void
check_longest(int longest)
{
	int i;

	for (i = 0; i < MANY; i++)
		fill(&many[i], CHANNEL_HIGH_WATER + (i == longest ? 1000 : 100));
	say(&processes[AGENT], ROLE_APP, 0);
	for (i = 0; i < MANY; i++) {
		cr_assert_not(process_stop_waiting(&processes[AGENT], &manager),
		              "%d queues are drained, and the agent does not wait for the longest "
		              "one, %d",
		              i, longest);
		if (i != longest)
			drain(&many[i], many_ends[i], 0);
	}
	cr_assert_not(process_stop_waiting(&processes[AGENT], &manager),
	              "the agent does not wait for the longest queue, %d", longest);
	drain(&many[longest], many_ends[longest], 0);
	cr_assert(process_stop_waiting(&processes[AGENT], &manager),
	          "all queues are drained, the longest one, %d, too: the agent still waits",
	          longest);
}

Test(backpressure_many, a_sender_waits_for_the_longest_queue)
{
	check_longest(0);
	check_longest(MANY / 2);
	check_longest(MANY - 1);
}

/* Two receivers drain one after the other. The sender is heard when both have drained. */
Test(backpressure_many, a_sender_waits_for_every_queue_that_it_has_filled)
{
	fill(&many[3], CHANNEL_HIGH_WATER + 1000);
	fill(&many[MANY - 1], CHANNEL_HIGH_WATER + 2000);
	say(&processes[PARENT], ROLE_APP, 0);
	drain(&many[MANY - 1], many_ends[MANY - 1], 0);
	cr_assert_not(process_stop_waiting(&processes[PARENT], &manager));
	drain(&many[3], many_ends[3], 0);
	cr_assert(process_stop_waiting(&processes[PARENT], &manager));
}

/* ---- a receiver is gone ------------------------------------------------------------------ */

/* No process waits any more for a receiver that is gone, whatever the process's role is. A process
 * that waits for another receiver goes on waiting. */
Test(backpressure_many, nobody_waits_for_a_receiver_that_is_gone)
{
	fill(&many[0], CHANNEL_HIGH_WATER + 1);
	fill(&many[1], CHANNEL_HIGH_WATER + 1);
	say(&processes[AGENT], ROLE_NONE, many[0].worker_id);
	say(&processes[PARENT], ROLE_NONE, many[0].worker_id);
	say(&many[2], ROLE_NONE, many[0].worker_id);
	say(&many[MANY - 1], ROLE_NONE, many[0].worker_id);
	say(&many[3], ROLE_NONE, many[1].worker_id);
	cr_assert_not(process_stop_waiting(&processes[AGENT], &manager));
	cr_assert_not(process_stop_waiting(&processes[PARENT], &manager));
	remove_worker(&many[0]);
	cr_assert(process_stop_waiting(&processes[AGENT], &manager));
	cr_assert(process_stop_waiting(&processes[PARENT], &manager));
	cr_assert(process_stop_waiting(&many[2], &manager));
	cr_assert(process_stop_waiting(&many[MANY - 1], &manager));
	cr_assert_not(process_stop_waiting(&many[3], &manager));
}

Test(backpressure_many, forgetting_asks_neither_for_an_agent_nor_for_a_parent)
{
	fill(&processes[PARENT], CHANNEL_HIGH_WATER + 1);
	say(&many[1], ROLE_PARENT, 0);
	cr_assert_not(process_stop_waiting(&many[1], &manager));
	manager.agent = manager.parent = NULL;
	cr_assert(process_stop_waiting(&many[1], &manager));
}
