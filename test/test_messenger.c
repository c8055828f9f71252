/*
 * The child's side of the messenger: its identity, send calls, opids, and its end.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "child.h"

/* ---- both ends --------------------------------------------------------------------------- */

static void
tell_pids(const char *pids)
{
	tell_from(ROLE_MASTER, "egg-pids", pids);
}

/* ---- identity ---------------------------------------------------------------------------- */

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

/* ---- send calls: what is on the wire ----------------------------------------------------- */

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

static int
on_news(struct messenger *messenger, const struct message *message, void *arg)
{
	struct message copy = *message;

	(void)arg;
	copy.action = "olds";
	copy.from = copy.to = ROLE_NONE;
	copy.receiver_pid = 4711;
	copy.data = "[1,2]";
	copy.data_length = 5;
	return messenger_send_message(messenger, &copy);
}

Test(send, a_received_message_can_be_sent_on_changed)
{
	cr_assert_eq(messenger_on(child, "news", on_news, NULL), 0);
	tell_from(ROLE_PARENT, "news", "{}");
	expect("olds", ROLE_NONE, 4711, "[1,2]");
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

/* ---- send_random ------------------------------------------------------------------------- */

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

/* Chi-square of 3000 choices among 3, two degrees of freedom: a uniform choice exceeds 30
 * once in three million runs; a 40:30:30 choice has 60. */
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
	cr_assert_lt(chi_square, 30, "the choice is not random: %d, %d and %d times", count[0],
	             count[1], count[2]);
	expect_silence();
}

/* The choices must not go round in turn: each of the nine pairs of successive choices is
 * about equally frequent (eight degrees of freedom). */
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

/* ---- send calls that fail ---------------------------------------------------------------- */

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
	cr_assert_eq(messenger_send_to_agent(child, "both", "{}"), 0,
	             "a message is refused although there is room for it");
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

/* A write fails before a read has seen the end of file: no SIGPIPE, and EPIPE from then on. */
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

/* ---- one turn, one write ----------------------------------------------------------------- */

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

/* ---- opids ------------------------------------------------------------------------------- */

TestSuite(opids, .init = open_app, .fini = close_both);

static void
expect_opids_at(int line, size_t count, const pid_t *pids)
{
	size_t found = 99;
	const pid_t *opids = messenger_opids(child, &found);

	cr_assert_eq(found, count, "line %d: the messenger has %zu pids", line, found);
	if (count > 0)
		cr_assert_eq(memcmp(opids, pids, count * sizeof *pids), 0,
		             "line %d: the messenger has other pids", line);
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

/* Whatever data comes, each pid in the list can be sent to, or the list is empty. */
static void
expect_sane_opids(const char *data)
{
	size_t count, i;
	const pid_t *opids = messenger_opids(child, &count);

	for (i = 0; i < count; i++)
		cr_assert_gt(opids[i], 0, "%.60s was taken for a list with the pid %d", data,
		             opids[i]);
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

/* ---- closing ----------------------------------------------------------------------------- */

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
	cr_assert_geq(clutch_now() - start, 500,
	              "messenger_close did not wait for the queue to be written");
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

/* Give the messenger some of each thing that it can hold. */
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

/* The test counts descriptors, and also memory if a sanitizer can count it. */
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
		cr_assert_eq(open_descriptors(), before + 100,
		             "messenger_close has closed descriptors that were watched");
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
		if (i == 300) /* malloc has its caches by now */
			before = bytes_allocated();
		open_as(ROLE_PARENT);
		use_everything();
		close_both();
		close_pipes(50);
		calls[0] = '\0';
	}
	cr_assert_leq(bytes_allocated(), before + 1000);
}

/* ---- what the roles add ------------------------------------------------------------------ */

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

/* ---- an exit, and a broadcast ----------------------------------------------------------- */

/* The queue is full, but the socket is not any longer. */
Test(send, a_broadcast_makes_room_before_it_fails)
{
	static char data[64 * 1024], bytes[256 * 1024];

	memset(data, '1', sizeof data - 1);
	while (messenger_send_to_app(child, "a", data) == 0)
		;
	while (messenger_send_to_app(child, "a", "1") == 0)
		;
	expect_error(ENOBUFS, messenger_broadcast(child, "a", "1"));
	while (recv(master.descriptor, bytes, sizeof bytes, MSG_DONTWAIT) > 0)
		;
	cr_assert_eq(messenger_broadcast(child, "a", "1"), 0);
}

/* A process that inherits a messenger does not write out what its parent has queued. */
Test(closing, an_exit_writes_out_only_what_is_its_own)
{
	int i, status;
	char byte;
	pid_t pid;

	cr_assert_eq(messenger_own(child), 0);
	cr_assert_eq(messenger_send_to_app(child, "a", "1"), 0);
	for (i = 0; i < 2; i++) {
		pid = fork();
		cr_assert_neq(pid, -1);
		if (pid == 0 && i == 1)
			messenger_disown();
		if (pid == 0)
			exit(0);
		cr_assert_eq(waitpid(pid, &status, 0), pid);
		cr_assert_eq(status, 0);
		cr_assert_eq(recv(master.descriptor, &byte, 1, MSG_DONTWAIT), -1);
	}
	messenger_disown();
}

Test(roles, a_messenger_without_a_role_function_is_ready_already)
{
	expect_error(EALREADY, messenger_ready(child, 0));
}

/* ---- no memory --------------------------------------------------------------------------- */

static int reallocs_that_succeed = -1; /* the next one fails; -1: none does */

void *__real_realloc(void *old, size_t size);
void *__wrap_realloc(void *old, size_t size);

void *
__wrap_realloc(void *old, size_t size)
{
	if (reallocs_that_succeed >= 0 && reallocs_that_succeed-- == 0) {
		errno = ENOMEM;
		return NULL;
	}
	return __real_realloc(old, size);
}

static int watched;

static int
count_watched(struct messenger *messenger, int descriptor, short revents, void *arg)
{
	char byte;

	(void)messenger, (void)revents, (void)arg;
	cr_assert_eq(read(descriptor, &byte, 1), 1);
	watched++;
	return 0;
}

static int
count_closed(struct messenger *messenger, void *arg)
{
	(void)messenger;
	++*(int *)arg;
	return 0;
}

TestSuite(memory, .init = open_app, .fini = close_both);

Test(memory, pids_are_noted_once_there_is_some)
{
	struct message pids = compose(ROLE_MASTER, "egg-pids", "[11,12]");

	say_message(&pids);
	reallocs_that_succeed = 0;
	turn();
	cr_assert_eq(reallocs_that_succeed, -1);
	expect_opids(2, 11, 12);
}

Test(memory, a_listener_that_finds_none_is_not_added)
{
	reallocs_that_succeed = 0;
	expect_error(ENOMEM, messenger_on(child, "a", on_note, a));
	cr_assert_eq(reallocs_that_succeed, -1);
	tell("a");
	expect_calls("");
}

/* A messenger has two arrays for its watches, and each array may fail to grow. */
Test(memory, a_watch_that_finds_none_is_not_made)
{
	int ends[2], i;

	cr_assert_eq(pipe(ends), 0);
	cr_assert_eq(write(ends[1], "12", 2), 2);
	for (i = 0; i < 2; i++) {
		reallocs_that_succeed = i;
		expect_error(ENOMEM, messenger_watch(child, ends[0], POLLIN, count_watched, NULL));
		reallocs_that_succeed = -1;
		turn();
		cr_assert_eq(watched, 0);
	}
	cr_assert_eq(messenger_watch(child, ends[0], POLLIN, count_watched, NULL), 0);
	turn();
	cr_assert_eq(watched, 1);
	close_pipe(ends);
}

Test(memory, a_join_that_finds_none_is_not_made)
{
	struct messenger *other;
	int ends[2];

	cr_assert_eq(channel_pair(ends), 0);
	other = messenger_open(ends[0], ROLE_PARENT);
	cr_assert_not_null(other);
	reallocs_that_succeed = 0;
	expect_error(ENOMEM, messenger_join(other, child, NULL, NULL));
	reallocs_that_succeed = -1;
	cr_assert_eq(messenger_step(other, 0), 1,
	             "a messenger that could not be joined has no loop of its own any more");
	cr_assert_eq(messenger_join(other, child, NULL, NULL), 0);
	messenger_close(other);
	close(ends[1]);
}

Test(memory, a_callback_that_finds_none_is_not_called)
{
	int refused = 0, called = 0;

	reallocs_that_succeed = 0;
	expect_error(ENOMEM, messenger_before_close(child, count_closed, &refused));
	reallocs_that_succeed = -1;
	cr_assert_eq(messenger_before_close(child, count_closed, &called), 0);
	cr_assert_eq(messenger_run_closers(child), 0);
	cr_assert(refused == 0 && called == 1);
}

/* ---- a pause without a channel ----------------------------------------------------------- */

Test(closing, a_pause_after_the_end_says_EPIPE)
{
	channel_close(&master);
	while (messenger_step(child, 0) == 1)
		;
	expect_error(EPIPE, messenger_pause(child));
}
