/*
 * Several messengers turned by one loop: messenger_join.
 *
 * The loop is a parent's messenger, whose other end is not used. Each joined messenger is a link
 * over a pair of its own; at the other end the test speaks with a bare channel. Both live in
 * this process, which has one read buffer, so the test never reads inside a callback.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "harness.h"
#include "no_memory.h"
#include "sanitized.h"

#include <criterion/criterion.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MANY = 200 };

static struct messenger *loop;
static int loop_end; /* the other end of the loop's channel */

struct link {
	struct messenger *messenger;
	struct channel other;
	const char *name;
	int failure;         /* the result of the link's callbacks */
	struct link *closes; /* the link that the callbacks close */
};

/* The notes of the callbacks, each "NAME:WHAT ". */
static char notes[16384];

static void
setup(void)
{
	int ends[2];

	alarm(30); /* kill a loop that sleeps for ever */
	notes[0] = '\0';
	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
	loop = messenger_open(ends[0], ROLE_PARENT);
	loop_end = ends[1];
	cr_assert_not_null(loop);
}

static void
teardown(void)
{
	messenger_close(loop);
	close(loop_end);
}

TestSuite(join, .init = setup, .fini = teardown);

/* ---- both ends -------------------------------------------------------------------- */

static int
note(struct link *link, const char *what)
{
	size_t used = strlen(notes);

	snprintf(notes + used, sizeof notes - used, "%s:%s ", link->name, what);
	if (link->closes != NULL) {
		messenger_close(link->closes->messenger);
		link->closes->messenger = NULL;
		link->closes = NULL;
	}
	return link->failure;
}

static int
on_message(struct messenger *messenger, const struct message *message, void *arg)
{
	(void)messenger;
	return note(arg, message->action);
}

static int
on_readable(struct messenger *messenger, int descriptor, short revents, void *arg)
{
	char byte;

	(void)messenger, (void)revents;
	cr_assert_eq(read(descriptor, &byte, 1), 1);
	return note(arg, "readable");
}

static int
on_end(struct messenger *messenger, int error, void *arg)
{
	struct link *link = arg;

	cr_expect_eq(messenger, link->messenger);
	return note(link, error == 0 ? "gone" : error == EPROTO ? "broken" : "?");
}

static void
open_link(struct link *link, const char *name)
{
	int ends[2];

	memset(link, 0, sizeof *link);
	link->name = name;
	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
	channel_init(&link->other, 0);
	cr_assert_eq(channel_attach(&link->other, ends[1]), 0);
	link->messenger = messenger_open(ends[0], ROLE_PARENT);
	cr_assert_not_null(link->messenger);
	cr_assert_eq(messenger_on(link->messenger, NULL, on_message, link), 0);
}

static void
join(struct link *link, const char *name)
{
	open_link(link, name);
	cr_assert_eq(messenger_join(link->messenger, loop, on_end, link), 0);
}

static void
close_link(struct link *link)
{
	messenger_close(link->messenger);
	channel_close(&link->other);
}

static void
say(struct link *link, const char *action)
{
	struct message message = {.action = action, .handle = -1};

	cr_assert_eq(sendmessage(&link->other, &message), 0);
	cr_assert_eq(channel_flush(&link->other), PEER_ALIVE);
}

static void
turn(void)
{
	cr_assert_eq(messenger_step(loop, 0), 1);
}

/* Turn once. The notes of this turn must be the expected ones, with the links in any order. */
static void
expect_turn(const char *expected)
{
	notes[0] = '\0';
	turn();
	cr_expect_str_eq(notes, expected);
}

/* The next action that the other end of a link hears, or "". */
static const char *
heard(struct link *link)
{
	static char action[MESSAGE_ACTION_MAX + 1];
	struct message message;

	cr_assert_eq(channel_read(&link->other), PEER_ALIVE);
	action[0] = '\0';
	if (channel_next(&link->other, &message) == 1)
		snprintf(action, sizeof action, "%s", message.action);
	return action;
}

/* Fill the link until the other end, which does not read, takes no more. */
static void
fill(struct link *link)
{
	static char data[64 * 1024 + 1];

	memset(data, '1', sizeof data - 1);
	while (messenger_send(link->messenger, "much", data, ROLE_NONE) == 0)
		;
	cr_assert_eq(errno, ENOBUFS);
}

/* ---- turning ------------------------------------------------------------------------ */

Test(join, one_step_turns_all)
{
	struct link one, two;

	join(&one, "one");
	join(&two, "two");
	say(&one, "a");
	say(&two, "b");
	expect_turn("one:a two:b ");
	cr_assert_eq(messenger_send(one.messenger, "from-one", NULL, ROLE_NONE), 0);
	cr_assert_eq(messenger_send(two.messenger, "from-two", NULL, ROLE_NONE), 0);
	turn();
	cr_expect_str_eq(heard(&one), "from-one");
	cr_expect_str_eq(heard(&two), "from-two");
	close_link(&one);
	say(&two, "c");
	expect_turn("two:c ");
	close_link(&two);
}

static int
say_something(struct messenger *messenger, void *arg)
{
	(void)messenger;
	say(arg, "something");
	return 0;
}

Test(join, a_step_waits_for_a_joined_one)
{
	struct link one;

	join(&one, "one");
	cr_assert_geq(messenger_set_timeout(loop, 20, say_something, &one), 0);
	while (notes[0] == '\0')
		cr_assert_eq(messenger_step(loop, -1), 1); /* otherwise the alarm comes */
	cr_expect_str_eq(notes, "one:something ");
	close_link(&one);
}

Test(join, a_foreign_loop_is_told_of_all)
{
	struct pollfd set[8];
	struct link one, two;

	join(&one, "one");
	join(&two, "two");
	cr_expect_eq(messenger_timeout(loop), -1);
	cr_expect_eq(messenger_descriptors(loop, set, 2), 3);
	cr_expect_eq(messenger_descriptors(loop, set, 8), 3);
	say(&one, "a");
	cr_expect_eq(poll(set, 3, 1000), 1);
	close_link(&two);
	cr_expect_eq(messenger_descriptors(loop, set, 8), 2);
	close_link(&one);
}

Test(join, many_are_turned_and_memory_is_given_back)
{
	static struct link links[MANY];
	static char expected[4096];
	int i;

	for (i = 0; i < MANY; i++) {
		join(&links[i], "l");
		say(&links[i], "a");
		strcat(expected, "l:a ");
	}
	expect_turn(expected);
	for (i = 0; i < MANY; i++)
		close_link(&links[i]);
	expect_turn("");
}

Test(join, a_pause_holds_up_one_alone)
{
	struct link one, two;

	join(&one, "one");
	join(&two, "two");
	cr_assert_eq(messenger_pause(one.messenger), 0);
	say(&one, "a");
	say(&one, "b");
	say(&two, "c");
	expect_turn("two:c ");
	cr_expect_eq(messenger_timeout(loop), -1);
	cr_assert_eq(messenger_resume(one.messenger), 0);
	expect_turn("one:a one:b ");
	close_link(&one);
	close_link(&two);
}

/* The master's two actions mean nothing from an end that is no master: answers to its
 * clutch-barrier messages would take memory without a limit. */
Test(join, no_other_end_passes_for_the_master)
{
	struct message message = {.action = "clutch-barrier", .from = ROLE_MASTER, .handle = -1};
	struct link one;
	size_t count;

	join(&one, "one");
	cr_assert_eq(sendmessage(&one.other, &message), 0);
	message.action = "egg-pids";
	message.data = "[4711]";
	message.data_length = 6;
	cr_assert_eq(sendmessage(&one.other, &message), 0);
	channel_flush(&one.other);
	expect_turn("one:clutch-barrier one:egg-pids ");
	turn();
	cr_expect_str_eq(heard(&one), "");
	messenger_opids(one.messenger, &count);
	cr_expect_eq(count, 0);
	close_link(&one);
}

/* ---- the end -------------------------------------------------------------------------- */

Test(join, the_end_is_told_once_after_the_last_words)
{
	struct link one, two;

	join(&one, "one");
	join(&two, "two");
	say(&one, "last");
	channel_close(&one.other);
	turn();
	turn();
	cr_expect_str_eq(notes, "one:last one:gone ");
	cr_expect(messenger_send(one.messenger, "a", NULL, ROLE_NONE) == -1 && errno == EPIPE);
	say(&two, "a");
	expect_turn("two:a ");
	close_link(&one);
	close_link(&two);
}

Test(join, who_breaks_the_protocol_ends_alone)
{
	static const char bad[16] = {0};
	struct link one, two;

	join(&one, "one");
	join(&two, "two");
	cr_assert_eq(write(one.other.descriptor, bad, sizeof bad), sizeof bad);
	say(&two, "a");
	expect_turn("one:broken two:a ");
	say(&two, "b");
	expect_turn("two:b ");
	close_link(&one);
	close_link(&two);
}

Test(join, without_a_callback_an_end_is_silent)
{
	struct link one;

	open_link(&one, "one");
	cr_assert_eq(messenger_join(one.messenger, loop, NULL, NULL), 0);
	channel_close(&one.other);
	expect_turn("");
	expect_turn("");
	close_link(&one);
}

Test(join, the_end_of_the_loops_own_channel_ends_nobody_else)
{
	struct link one;

	join(&one, "one");
	close(loop_end);
	loop_end = -1;
	cr_assert_eq(messenger_step(loop, 0), 0);
	say(&one, "a");
	cr_assert_eq(messenger_step(loop, 0), 0);
	cr_expect_str_eq(notes, "one:a ");
	close_link(&one);
}

/* ---- uncaught errors ------------------------------------------------------------------- */

Test(join, an_uncaught_error_is_one_of_the_loop)
{
	struct link one;

	join(&one, "one");
	one.failure = 7;
	say(&one, "a");
	cr_expect(messenger_step(loop, 0) == -1 && errno == ECANCELED);
	channel_close(&one.other);
	cr_expect(messenger_step(loop, 0) == -1 && errno == ECANCELED);
	cr_expect_str_eq(notes, "one:a one:gone ");
	turn();
	close_link(&one);
}

/* ---- closing ----------------------------------------------------------------------------- */

static int
on_second(struct messenger *messenger, const struct message *message, void *arg)
{
	(void)messenger, (void)message;
	return note(arg, "second");
}

Test(join, a_listener_may_close_its_own)
{
	struct link one;

	join(&one, "one");
	cr_assert_eq(messenger_on(one.messenger, "a", on_second, &one), 0);
	say(&one, "a");
	say(&one, "b");
	one.closes = &one;
	expect_turn("one:a ");
	expect_turn("");
	cr_expect_eq(channel_read(&one.other), PEER_GONE);
	channel_close(&one.other);
}

/* 10,000 closed messengers would take dozens of megabytes if each left something behind. */
Test(join, what_a_listener_has_closed_costs_no_memory)
{
	struct link one;
	long before;
	int i;

	if (!MEMORY_COUNTS)
		cr_skip_test("the sanitizer keeps what is freed");
	before = process_memory(getpid());
	for (i = 0; i < 10000; i++) {
		join(&one, "one");
		one.closes = &one;
		say(&one, "a");
		expect_turn("one:a ");
		channel_close(&one.other);
	}
	cr_assert_lt(process_memory(getpid()) - before, 2048);
}

/* Both links are ready in the same turn. The closed link is before or behind the other. */
Test(join, a_listener_may_close_another)
{
	struct link first, second, third;

	join(&first, "first");
	join(&second, "second");
	join(&third, "third");
	second.closes = &third;
	say(&second, "a");
	say(&third, "b");
	expect_turn("second:a ");
	channel_close(&third.other);
	second.closes = &first;
	say(&first, "a");
	say(&second, "b");
	expect_turn("first:a second:b ");
	channel_close(&first.other);
	expect_turn("");
	close_link(&second);
}

Test(join, the_end_may_close_its_own)
{
	struct link one;

	join(&one, "one");
	one.closes = &one;
	channel_close(&one.other);
	expect_turn("one:gone ");
	expect_turn("");
}

static int
join_in_callback(struct messenger *messenger, void *arg)
{
	struct link *link = arg;

	(void)messenger;
	join(link, link->name);
	return note(link, "joined");
}

Test(join, a_callback_may_join_another)
{
	struct link one = {.name = "one"};

	cr_assert_geq(messenger_set_timeout(loop, 0, join_in_callback, &one), 0);
	expect_turn("one:joined ");
	say(&one, "a");
	expect_turn("one:a ");
	close_link(&one);
}

/* A joined messenger is closed at once; one with its own loop would wait for a second. */
Test(join, an_end_that_does_not_read_is_closed_at_once)
{
	struct link one;
	int64_t before;

	join(&one, "one");
	fill(&one);
	before = clutch_now();
	messenger_close(one.messenger);
	cr_expect_lt(clutch_now() - before, 900);
	channel_close(&one.other);
}

/* Messages for which the socket has room are written, even with no turn between send and close. */
Test(join, what_was_sent_before_a_close_is_written)
{
	struct link one;

	join(&one, "one");
	cr_assert_eq(messenger_send(one.messenger, "last", NULL, ROLE_NONE), 0);
	messenger_close(one.messenger);
	cr_expect_str_eq(heard(&one), "last");
	channel_close(&one.other);
}

Test(join, an_end_that_does_not_read_holds_up_nobody)
{
	struct link deaf, other;

	join(&deaf, "deaf");
	join(&other, "other");
	fill(&deaf);
	say(&other, "a");
	expect_turn("other:a ");
	cr_assert_eq(messenger_send(other.messenger, "b", NULL, ROLE_NONE), 0);
	turn();
	cr_expect_str_eq(heard(&other), "b");
	close_link(&deaf);
	close_link(&other);
}

Test(join, when_the_loop_is_closed_each_has_its_own_again)
{
	struct link one;

	join(&one, "one");
	messenger_close(loop);
	loop = NULL;
	say(&one, "a");
	cr_expect_eq(messenger_step(one.messenger, 0), 1);
	channel_close(&one.other);
	cr_expect_eq(messenger_step(one.messenger, 0), 0);
	cr_expect_str_eq(notes, "one:a ");
	close_link(&one);
}

/* ---- the caller's errors ----------------------------------------------------------------- */

static int
join_itself(struct messenger *messenger, void *arg)
{
	cr_expect(messenger_join(messenger, arg, on_end, NULL) == -1 && errno == EBUSY);
	return 0;
}

Test(join, wrong_arguments_change_nothing)
{
	struct link one, two;
	int timer;

	open_link(&one, "one");
	open_link(&two, "two");
#define refuses(call, number)                                                                      \
	do {                                                                                       \
		errno = 0;                                                                         \
		cr_expect((call) == -1, #call);                                                    \
		cr_expect_eq(errno, number, #call ": %s", strerror(errno));                        \
	} while (0)
	refuses(messenger_join(loop, loop, on_end, NULL), EINVAL);
	cr_assert_geq(messenger_set_timeout(two.messenger, 0, join_itself, loop), 0);
	cr_assert_eq(messenger_step(two.messenger, 0), 1);
	cr_assert_eq(messenger_join(one.messenger, loop, on_end, &one), 0);
	refuses(messenger_join(one.messenger, loop, on_end, &one), EINVAL);
	refuses(messenger_join(two.messenger, one.messenger, on_end, &two), EINVAL);
	refuses(messenger_join(loop, two.messenger, on_end, NULL), EINVAL);
	refuses(messenger_step(one.messenger, 0), EBUSY);
	refuses(messenger_watch(one.messenger, loop_end, POLLIN, on_readable, &one), EINVAL);
	refuses(messenger_set_timeout(one.messenger, 0, join_itself, loop), EINVAL);
	cr_assert_eq(messenger_watch(two.messenger, loop_end, POLLIN, on_readable, &two), 0);
	refuses(messenger_join(two.messenger, loop, on_end, &two), EINVAL);
	cr_assert_eq(messenger_unwatch(two.messenger, loop_end), 0);
	timer = messenger_set_timeout(two.messenger, 1000, join_itself, loop);
	cr_assert_gt(timer, 0);
	refuses(messenger_join(two.messenger, loop, on_end, &two), EINVAL);
	cr_assert_eq(messenger_clear_timeout(two.messenger, timer), 0);
	channel_close(&two.other);
	cr_assert_eq(messenger_step(two.messenger, 0), 0);
	refuses(messenger_join(two.messenger, loop, on_end, &two), EPIPE);
	say(&one, "a");
	expect_turn("one:a ");
	close_link(&one);
	close_link(&two);
}

Test(join, without_memory_it_is_not_joined)
{
	struct link link;

	open_link(&link, "link");
	is_memory_short = true;
	refuses(messenger_join(link.messenger, loop, on_end, &link), ENOMEM);
	is_memory_short = false;
	cr_assert_eq(messenger_join(link.messenger, loop, on_end, &link), 0);
	say(&link, "a");
	expect_turn("link:a ");
	close_link(&link);
}

/* ---- many ------------------------------------------------------------------------------- */

/* Microseconds of processor time. */
static int64_t
processor_time(void)
{
	struct timespec now;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
	return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

/* A turn costs as much as poll(2) with as many descriptors, without a search for each of them. All
 * descriptors are duplicates of one socket, to which no process writes. */
Test(join, a_turn_of_thousands_costs_little_more_than_their_poll)
{
	enum { THOUSANDS = 2000, TURNS = 50 };
	struct rlimit limit;
	struct messenger *joined;
	struct pollfd set[THOUSANDS + 1];
	int64_t begin, polls, turns;
	int i, ends[2];

	getrlimit(RLIMIT_NOFILE, &limit);
	limit.rlim_cur = THOUSANDS + 100;
	if (setrlimit(RLIMIT_NOFILE, &limit) == -1)
		cr_skip("the limit of descriptors is too low");
	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
	for (i = 0; i < THOUSANDS; i++) {
		joined = messenger_open(dup(ends[0]), ROLE_PARENT);
		cr_assert_not_null(joined);
		cr_assert_eq(messenger_join(joined, loop, NULL, NULL), 0);
	}
	cr_assert_eq(messenger_descriptors(loop, set, THOUSANDS + 1), THOUSANDS + 1);
	begin = processor_time();
	for (i = 0; i < TURNS; i++)
		cr_assert_eq(poll(set, THOUSANDS + 1, 0), 0);
	polls = processor_time() - begin;
	begin = processor_time();
	for (i = 0; i < TURNS; i++)
		turn();
	turns = processor_time() - begin;
	cr_expect_lt(turns, 6 * polls, "the turns took %lld us, and the polls alone %lld us",
	             (long long)turns, (long long)polls);
	close(ends[0]);
	close(ends[1]);
}

/* ---- callbacks that use another messenger ---------------------------------------------- */

static int
on_nothing(struct messenger *messenger, const struct message *message, void *arg)
{
	(void)messenger, (void)message, (void)arg;
	return 0;
}

/* Listen for an answer of the other messenger, and stop listening at once. */
static int
on_request(struct messenger *messenger, const struct message *message, void *arg)
{
	struct link *other = arg;

	(void)messenger, (void)message;
	cr_assert_eq(messenger_on(other->messenger, "answer", on_nothing, NULL), 0);
	cr_assert_eq(messenger_remove_listener(other->messenger, "answer", on_nothing, NULL), 0);
	return 0;
}

Test(join, listeners_that_another_ones_listener_removes_are_gone)
{
	struct link one, two;
	size_t before;
	int i;

	join(&one, "one");
	join(&two, "two");
	before = two.messenger->listener_count;
	cr_assert_eq(messenger_on(one.messenger, "request", on_request, &two), 0);
	for (i = 0; i < 100; i++)
		say(&one, "request");
	turn();
	cr_expect_eq(two.messenger->listener_count, before);
	close_link(&one);
	close_link(&two);
}

/* Pauses also keep to the limit, and the last pause is sent when there is room. */
Test(join, pauses_at_an_end_that_does_not_read_have_a_limit)
{
	char last[MESSAGE_ACTION_MAX + 1] = "";
	const char *action;
	struct link link;
	int i;

	join(&link, "link");
	fill(&link);
	for (i = 0; i < 10000; i++) {
		cr_assert_eq(messenger_resume(link.messenger), 0);
		cr_assert_eq(messenger_pause(link.messenger), 0);
	}
	cr_expect_leq(channel_pending(&link.messenger->channel), CHANNEL_QUEUE_MAX + 64);
	do {
		turn();
		while (*(action = heard(&link)) != '\0')
			snprintf(last, sizeof last, "%s", action);
	} while (channel_pending(&link.messenger->channel) > 0);
	cr_expect_str_eq(last, "clutch-pause");
	close_link(&link);
}

/* ---- two ends of one pair ---------------------------------------------------------------- */

/* A pause is told only to a master, and to no other process. */
Test(join, a_pause_of_the_other_end_is_no_message)
{
	struct messenger *other;
	struct link link;

	join(&link, "link");
	other = messenger_open(dup(link.other.descriptor), ROLE_APP);
	cr_assert_not_null(other);
	cr_assert_eq(messenger_pause(other), 0);
	cr_assert_eq(messenger_resume(other), 0);
	cr_assert_eq(messenger_send(other, "after", NULL, ROLE_NONE), 0);
	cr_assert_eq(messenger_step(other, 0), 1);
	expect_turn("link:after ");
	messenger_close(other);
	close_link(&link);
}

/* The maker of the pair may still hold this end, too, and its flags are shared. */
Test(join, an_end_that_somebody_made_blocking_blocks_nobody)
{
	struct link link;
	int copy;

	open_link(&link, "link");
	copy = dup(link.messenger->channel.descriptor);
	cr_assert_eq(messenger_join(link.messenger, loop, on_end, &link), 0);
	cr_assert_eq(fcntl(copy, F_SETFL, 0), 0);
	fill(&link);
	turn();
	close(copy);
	close_link(&link);
}
