/*
 * The loop: steps, descriptors, timers, errors of callbacks; and a foreign loop that turns it.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "child.h"

/* ---- what callbacks do ------------------------------------------------------------------- */

static int
watch_fail(struct messenger *messenger UNUSED, int descriptor UNUSED, short revents UNUSED,
           void *arg)
{
	note(arg);
	return 8;
}

static int
watch_drain(struct messenger *messenger UNUSED, int descriptor, short revents UNUSED, void *arg)
{
	char byte;

	note(arg);
	return read(descriptor, &byte, 1) == 1 ? 0 : -1;
}

static int
timer_fail(struct messenger *messenger UNUSED, void *arg)
{
	note(arg);
	return 9;
}

/* ---- the loop: steps --------------------------------------------------------------------- */

TestSuite(loop, .init = open_app, .fini = close_both);

Test(loop, a_step_that_may_not_wait_does_not)
{
	int64_t start = clutch_now();

	after(DEADLINE, a);
	turn();
	cr_assert_lt(clutch_now() - start, DEADLINE / 2);
	expect_calls("");
}

Test(loop, a_step_waits_as_long_as_it_may)
{
	int64_t start = clutch_now();

	cr_assert_eq(messenger_step(child, 50), 1);
	cr_assert_geq(clutch_now() - start, 49);
	cr_assert_lt(clutch_now() - start, DEADLINE);
}

Test(loop, a_step_without_a_limit_wakes_for_a_timer)
{
	after(20, a);
	cr_assert_eq(messenger_step(child, -1), 1);
	expect_calls("a");
}

Test(loop, a_step_with_a_limit_wakes_for_a_timer)
{
	int64_t start = clutch_now();

	after(20, a);
	cr_assert_eq(messenger_step(child, 2 * DEADLINE), 1);
	cr_assert_lt(clutch_now() - start, DEADLINE);
	expect_calls("a");
}

Test(loop, a_step_wakes_for_its_limit_before_a_timer)
{
	int64_t start = clutch_now();

	after(2 * DEADLINE, a);
	cr_assert_eq(messenger_step(child, 10), 1);
	cr_assert_lt(clutch_now() - start, DEADLINE);
	expect_calls("");
}

Test(loop, a_step_without_a_limit_wakes_for_a_message_and_for_a_descriptor)
{
	int ends[2];

	hear("x", a);
	say("x");
	cr_assert_eq(messenger_step(child, -1), 1);
	expect_calls("a");
	full_pipe(ends);
	cr_assert_eq(messenger_watch(child, ends[0], POLLIN, watch_note, b), 0);
	cr_assert_eq(messenger_step(child, -1), 1);
	expect_calls("b");
	close_pipe(ends);
}

static void
on_alarm(int number UNUSED)
{
}

/* A step does not report again a descriptor that was ready in the turn before. */
Test(loop, a_signal_ends_a_step_and_is_no_error)
{
	struct itimerval every = {{0, 20000}, {0, 20000}}, never = {{0, 0}, {0, 0}};
	struct sigaction action = {.sa_handler = on_alarm};
	int64_t start = clutch_now();
	int ends[2];

	full_pipe(ends);
	cr_assert_eq(messenger_watch(child, ends[0], POLLIN, watch_drain, a), 0);
	turn();
	expect_calls("a");
	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &every, NULL);
	cr_assert_eq(messenger_step(child, 2 * DEADLINE), 1);
	setitimer(ITIMER_REAL, &never, NULL);
	cr_assert_lt(clutch_now() - start, DEADLINE);
	expect_calls("");
	close_pipe(ends);
}

/* ---- the loop: descriptors --------------------------------------------------------------- */

static struct {
	int descriptor;
	short revents;
} seen;

static int
watch_see(struct messenger *messenger, int descriptor, short revents, void *arg)
{
	cr_assert_eq(messenger, child);
	seen.descriptor = descriptor;
	seen.revents = revents;
	note(arg);
	return 0;
}

Test(loop, watch_calls_when_there_is_something_to_read)
{
	int ends[2];
	char byte;

	cr_assert_eq(pipe(ends), 0);
	watch(ends[0], POLLIN, watch_see, a);
	turn();
	expect_calls("");
	cr_assert_eq(write(ends[1], "x", 1), 1);
	turn();
	turn();
	expect_calls("aa"); /* in each turn in which the byte is there */
	cr_assert_eq(seen.descriptor, ends[0]);
	cr_assert_eq(seen.revents, POLLIN);
	cr_assert_eq(read(ends[0], &byte, 1), 1);
	turn();
	expect_calls("");
	close_pipe(ends);
}

Test(loop, watch_calls_when_there_is_room_to_write)
{
	int ends[2];

	cr_assert_eq(pipe(ends), 0);
	watch(ends[1], POLLOUT, watch_see, a);
	turn();
	expect_calls("a");
	cr_assert_eq(seen.descriptor, ends[1]);
	cr_assert_eq(seen.revents, POLLOUT);
	close_pipe(ends);
}

Test(loop, watch_calls_for_a_hangup_unasked)
{
	int ends[2];

	cr_assert_eq(pipe(ends), 0);
	watch(ends[0], 0, watch_see, a);
	turn();
	expect_calls("");
	close(ends[1]);
	turn();
	expect_calls("a");
	cr_assert_eq(seen.revents, POLLHUP);
	close(ends[0]);
	turn();
	expect_calls("a");
	cr_assert_eq(seen.revents, POLLNVAL);
}

Test(loop, watching_again_replaces_events_watcher_and_argument)
{
	int ends[2];

	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
	watch(ends[0], POLLIN, watch_fail, a);
	watch(ends[0], POLLOUT, watch_see, b);
	turn();
	expect_calls("b");
	cr_assert_eq(seen.revents, POLLOUT);
	watch(ends[0], POLLIN, watch_see, c);
	turn();
	expect_calls("");
	cr_assert_eq(messenger_unwatch(child, ends[0]), 0);
	expect_error(ENOENT, messenger_unwatch(child, ends[0]));
	close_pipe(ends);
}

Test(loop, watch_and_unwatch_errors)
{
	int ends[2];

	full_pipe(ends);
	expect_error(EINVAL, messenger_watch(child, -1, POLLIN, watch_note, a));
	expect_error(EINVAL, messenger_watch(child, ends[0], POLLIN, NULL, a));
	expect_error(ENOENT, messenger_unwatch(child, ends[0]));
	expect_error(ENOENT, messenger_unwatch(child, -1));
	watch(ends[0], POLLIN, watch_note, b);
	expect_error(ENOENT, messenger_unwatch(child, ends[1]));
	expect_error(ENOENT, messenger_unwatch(child, -1));
	turn();
	expect_calls("b");
	close_pipe(ends);
}

static int
unwatch_self(struct messenger *messenger, int descriptor, short revents UNUSED, void *arg)
{
	note(arg);
	cr_assert_eq(messenger_unwatch(messenger, descriptor), 0);
	expect_error(ENOENT, messenger_unwatch(messenger, descriptor));
	return 0;
}

Test(loop, a_watcher_can_unwatch_itself)
{
	watch_pipes(4, unwatch_self);
	watch(pipes[2][0], POLLIN, watch_note, e); /* this descriptor is not ready */
	turn();
	expect_calls("abed");
	cr_assert_eq(child->watch_count, 1,
	             "the places of watchers that were removed stay in the list");
	turn();
	expect_calls("e");
	close_pipes(4);
}

/* Unwatch all other descriptors: those whose watcher was called already, and the rest. */
static int
unwatch_others(struct messenger *messenger, int descriptor, short revents UNUSED, void *arg)
{
	int i;

	note(arg);
	for (i = 0; i < 4; i++)
		if (pipes[i][0] != descriptor)
			cr_assert_eq(messenger_unwatch(messenger, pipes[i][0]), 0);
	return 0;
}

Test(loop, a_watcher_can_unwatch_others_which_are_not_called_any_more)
{
	watch_pipes(4, watch_note);
	watch(pipes[1][0], POLLIN, unwatch_others, e);
	turn();
	expect_calls("ae");
	watch(pipes[1][0], POLLIN, watch_note, b);
	turn();
	expect_calls("b");
	close_pipes(4);
}

static int
on_unwatch(struct messenger *messenger, const struct message *message UNUSED, void *arg)
{
	return messenger_unwatch(messenger, *(int *)arg);
}

Test(loop, a_listener_can_unwatch_what_is_ready_in_this_turn)
{
	watch_pipes(3, watch_note);
	cr_assert_eq(messenger_on(child, "x", on_unwatch, &pipes[1][0]), 0);
	tell("x");
	expect_calls("ac");
	close_pipes(3);
}

static int
watch_more(struct messenger *messenger, int descriptor, short revents UNUSED, void *arg)
{
	note(arg);
	cr_assert_eq(messenger_unwatch(messenger, descriptor), 0);
	watch_pipes(99, watch_note); /* so many that the array is moved */
	return 0;
}

Test(loop, what_a_watcher_watches_counts_from_the_next_turn)
{
	int first[2], last[2];

	full_pipe(first);
	full_pipe(last);
	watch(first[0], POLLIN, watch_more, a);
	watch(last[0], POLLIN, watch_note, b);
	turn();
	expect_calls("ab");
	turn();
	cr_assert_eq(strlen(calls), 100);
	cr_assert_eq(strncmp(calls, "babcdef", 7), 0);
	close_pipes(99);
	close_pipe(first);
	close_pipe(last);
}

/* Close another descriptor that is ready, and watch a new one with the same number. */
static int
watch_reuse(struct messenger *messenger, int descriptor UNUSED, short revents UNUSED, void *arg)
{
	int empty[2];

	note(arg);
	cr_assert_eq(messenger_unwatch(messenger, pipes[1][0]), 0);
	cr_assert_eq(pipe(empty), 0);
	cr_assert_eq(dup2(empty[0], pipes[1][0]), pipes[1][0]);
	watch(pipes[1][0], POLLIN, watch_note, e);
	cr_assert_eq(messenger_unwatch(messenger, pipes[0][0]), 0);
	close(empty[0]); /* the writing end stays open: no hangup */
	return 0;
}

Test(loop, a_descriptor_that_took_the_number_of_another_does_not_inherit_its_events)
{
	watch_pipes(3, watch_note);
	watch(pipes[0][0], POLLIN, watch_reuse, d);
	turn();
	expect_calls("dc");
	turn();
	expect_calls("c");
	close_pipes(3);
}

Test(loop, a_hundred_watches_are_called_in_one_turn)
{
	int i;

	watch_pipes(100, watch_note);
	turn();
	cr_assert_eq(strlen(calls), 100);
	for (i = 0; i < 100; i++)
		cr_assert_eq(calls[i], 'a' + i % 26);
	calls[0] = '\0';
	for (i = 0; i < 100; i += 2)
		cr_assert_eq(messenger_unwatch(child, pipes[i][0]), 0);
	turn();
	cr_assert_eq(strlen(calls), 50);
	for (i = 0; i < 50; i++)
		cr_assert_eq(calls[i], 'a' + (2 * i + 1) % 26);
	close_pipes(100);
}

/* ---- the loop: timers -------------------------------------------------------------------- */

/* Let the clock go on while nothing turns the loop, so that timers are late. */
static void
let_pass(int milliseconds)
{
	int64_t until = clutch_now() + milliseconds;

	while (clutch_now() < until)
		poll(NULL, 0, (int)(until - clutch_now()));
}

static void
let_timers_end(void)
{
	while (messenger_timeout(child) != -1)
		turn();
	calls[0] = '\0';
}

/* The timers are set within 5 ms, or another order would be right. */
Test(loop, timers_are_called_in_order_of_being_due)
{
	int64_t start;

	do {
		let_timers_end();
		start = clutch_now();
		after(30, e);
		after(10, c);
		after(20, d);
		after(0, a);
		after(5, b);
	} while (clutch_now() - start >= 5);
	let_pass(31);
	turn();
	expect_calls("abcde");
	turn();
	expect_calls("");
}

/* Clearing a timer moves another timer into its place: the order of calls must not change. */
Test(loop, timers_due_at_the_same_time_are_called_in_order_of_setting)
{
	int i, id;
	int64_t start;

	do {
		let_timers_end();
		start = clutch_now();
		id = after(2, e);
		after(2, a);
		after(2, b);
		after(2, c);
		after(2, d);
	} while (clutch_now() != start);
	cr_assert_eq(messenger_clear_timeout(child, id), 0);
	let_pass(3);
	turn();
	expect_calls("abcd");
	for (i = 0; i < 4; i++)
		turn();
	expect_calls("");
}

/* The time at which the timer is due, as exactly as the test can know it. */
struct many {
	int64_t earliest, latest;
	bool called;
};

static int
timer_many(struct messenger *messenger UNUSED, void *arg)
{
	static int64_t last; /* the earlier timers were due then, or later */
	struct many *timer = arg;

	cr_assert_not(timer->called, "a timeout was called twice");
	cr_assert_geq(timer->latest, last,
	              "this timer is called %d ms after a timer that was due later",
	              (int)(last - timer->latest));
	timer->called = true;
	if (timer->earliest > last)
		last = timer->earliest;
	note(a);
	return 0;
}

Test(loop, a_thousand_timers)
{
	static struct many timers[1000];
	int i, wait;

	for (i = 0; i < 1000; i++) {
		wait = i * 37 % 50;
		timers[i].earliest = clutch_now() + wait;
		cr_assert_gt(messenger_set_timeout(child, wait, timer_many, &timers[i]), 0);
		timers[i].latest = clutch_now() + wait;
	}
	turn_until(messenger_timeout(child) == -1);
	cr_assert_eq(strlen(calls), 1000);
}

static int
timer_again(struct messenger *messenger, void *arg)
{
	note(arg);
	return messenger_set_timeout(messenger, 0, timer_again, arg) > 0 ? 0 : -1;
}

Test(loop, a_timeout_of_0_set_by_a_timer_comes_in_a_later_step)
{
	int i;

	cr_assert_gt(messenger_set_timeout(child, 0, timer_again, a), 0);
	for (i = 0; i < 1000; i++) {
		turn();
		expect_calls("a");
	}
}

/* When exactly the next timer is due: the clock did not tick while we asked. */
static int64_t
next_due(void)
{
	int64_t before;
	int left;

	do {
		before = clutch_now();
		left = messenger_timeout(child);
	} while (clutch_now() != before);
	cr_assert_geq(left, 0);
	return left > 0 ? before + left : -1; /* -1: overdue, it is not known since when */
}

Test(loop, an_interval_does_not_drift_though_each_call_is_late)
{
	enum { PERIOD = 40 };
	int64_t first, due;
	int i;

	cr_assert_gt(messenger_set_interval(child, PERIOD, timer_note, a), 0);
	first = next_due();
	for (i = 0; i < 6; i++) {
		let_pass(messenger_timeout(child) + 7);
		turn();
		due = next_due();
		if (due != -1)
			cr_assert_eq((due - first) % PERIOD, 0, "the interval has drifted by %d ms",
			             (int)((due - first) % PERIOD));
	}
	cr_assert_geq(strlen(calls), 6);
}

Test(loop, an_interval_that_is_late_by_several_periods_is_called_once)
{
	enum { PERIOD = 40 };
	int64_t first, due;

	cr_assert_gt(messenger_set_interval(child, PERIOD, timer_note, a), 0);
	first = next_due();
	let_pass(4 * PERIOD + 7);
	turn();
	expect_calls("a");
	due = next_due();
	if (due != -1) {
		cr_assert_eq((due - first) % PERIOD, 0);
		cr_assert_geq(due - first, 4 * PERIOD);
	}
}

Test(loop, an_interval_goes_on_and_a_timeout_does_not)
{
	cr_assert_gt(messenger_set_interval(child, 2, timer_note, a), 0);
	after(0, b);
	turn();
	calls[0] = '\0'; /* b has been called by now */
	turn_until(strlen(calls) >= 5);
	cr_assert_eq(strspn(calls, "a"), strlen(calls));
}

struct clearing {
	char *name;
	int id;
	int error; /* of clear_timeout, or 0 */
};

static int
timer_clear(struct messenger *messenger, void *arg)
{
	const struct clearing *clearing = arg;

	note(clearing->name);
	if (clearing->error != 0)
		expect_error(clearing->error, messenger_clear_timeout(messenger, clearing->id));
	else
		cr_assert_eq(messenger_clear_timeout(messenger, clearing->id), 0);
	return 0;
}

Test(loop, an_interval_can_clear_itself)
{
	struct clearing self = {.name = a};

	self.id = messenger_set_interval(child, 1, timer_clear, &self);
	turn_until(calls[0] != '\0');
	cr_assert_eq(messenger_timeout(child), -1);
	let_pass(3);
	turn();
	expect_calls("a");
	expect_error(ENOENT, messenger_clear_timeout(child, self.id));
}

Test(loop, a_timeout_that_is_called_is_not_pending_any_more)
{
	struct clearing self = {.name = a, .error = ENOENT};

	self.id = messenger_set_timeout(child, 0, timer_clear, &self);
	after(0, b);
	let_pass(2);
	turn();
	expect_calls("ab");
}

Test(loop, a_timer_can_clear_another_that_is_due_as_well)
{
	struct clearing other = {.name = a}, interval = {.name = b};

	cr_assert_gt(messenger_set_timeout(child, 0, timer_clear, &other), 0);
	cr_assert_gt(messenger_set_timeout(child, 0, timer_clear, &interval), 0);
	after(0, c);
	other.id = after(0, d);
	interval.id = messenger_set_interval(child, 1, timer_note, e);
	let_pass(2);
	turn();
	expect_calls("abc");
	cr_assert_eq(messenger_timeout(child), -1);
}

Test(loop, timer_errors)
{
	int id = after(0, a);

	expect_error(EINVAL, messenger_set_timeout(child, -1, timer_note, a));
	expect_error(EINVAL, messenger_set_timeout(child, 0, NULL, a));
	expect_error(EINVAL, messenger_set_interval(child, -1, timer_note, a));
	expect_error(EINVAL, messenger_set_interval(child, 0, timer_note, a));
	expect_error(EINVAL, messenger_set_interval(child, 1, NULL, a));
	expect_error(ENOENT, messenger_clear_timeout(child, id + 1));
	expect_error(ENOENT, messenger_clear_timeout(child, 0));
	expect_error(ENOENT, messenger_clear_timeout(child, -1));
	cr_assert_eq(messenger_clear_timeout(child, id), 0);
	expect_error(ENOENT, messenger_clear_timeout(child, id));
	turn();
	expect_calls("");
}

/* At a thousand timers a second it takes 25 days until the ids begin anew. */
Test(loop, timers_go_on_when_their_ids_begin_anew)
{
	int ids[5], i;

	child->timer_id = INT_MAX - 2;
	ids[0] = after(0, a);
	ids[1] = after(0, b);
	ids[2] = after(0, c);
	ids[3] = after(0, d);
	for (i = 1; i < 4; i++)
		cr_assert_neq(ids[i], ids[0]);
	let_pass(2);
	turn_until(messenger_timeout(child) == -1);
	cr_assert_eq(strlen(calls), 4);
}

Test(loop, an_id_that_is_pending_is_not_given_away_again)
{
	int id = after(DEADLINE, a);

	child->timer_id = id > 1 ? id - 1 : INT_MAX; /* all other ids were given */
	cr_assert_neq(after(DEADLINE, b), id);
}

/* ---- the loop: callbacks that fail ------------------------------------------------------- */

static void
expect_canceled(void)
{
	errno = 0;
	cr_assert_eq(messenger_step(child, 0), -1);
	cr_assert_eq(errno, ECANCELED);
}

/* One turn with everything: two messages, two descriptors, two timers. */
static void
prepare_a_turn(messenger_listener listener, messenger_watcher watcher, messenger_timer timer)
{
	int i;

	reopen_as(ROLE_PARENT);
	watch_pipes(2, watch_note);
	watch(pipes[0][0], POLLIN, watcher, c);
	watch(pipes[1][0], POLLIN, watch_note, d);
	cr_assert_eq(messenger_on(child, "x", listener, a), 0);
	hear("x", b);
	say("x");
	say("x");
	i = messenger_set_timeout(child, 0, timer, e);
	cr_assert_gt(i, 0);
	after(0, a);
	let_pass(2);
}

static void
expect_canceled_after_a_whole_turn(void)
{
	expect_canceled();
	expect_calls("ababcdea");
	turn();
	close_pipes(2);
	calls[0] = '\0';
}

Test(loop, a_failing_listener_cancels_the_step_but_not_the_turn)
{
	prepare_a_turn(on_fail, watch_note, timer_note);
	expect_canceled_after_a_whole_turn();
}

Test(loop, a_failing_watcher_cancels_the_step_but_not_the_turn)
{
	prepare_a_turn(on_note, watch_fail, timer_note);
	expect_canceled();
	cr_assert_eq(messenger_unwatch(child, pipes[0][0]), 0);
	expect_calls("ababcdea");
	turn();
	expect_calls("d");
	close_pipes(2);
}

Test(loop, a_failing_timer_cancels_the_step_but_not_the_turn)
{
	prepare_a_turn(on_note, watch_note, timer_fail);
	expect_canceled_after_a_whole_turn();
}

Test(loop, everything_that_fails_in_one_turn_cancels_one_step)
{
	prepare_a_turn(on_fail, watch_note, timer_fail);
	expect_canceled_after_a_whole_turn();
}

static void
uncaught(struct messenger *messenger UNUSED, int result, const char *where)
{
	char line[64];

	snprintf(line, sizeof line, "<%s %d>", where, result);
	note(line);
}

Test(loop, a_role_catches_what_its_callbacks_let_fall)
{
	prepare_a_turn(on_fail, watch_fail, timer_fail);
	child->on_uncaught = uncaught;
	turn();
	expect_calls("a<listener of \"x\" 7>ba<listener of \"x\" 7>bc<watcher 8>de<timer 9>a");
	close_pipes(2);
}

static char told[MESSAGE_ACTION_MAX + 64];

static void
keep_where(struct messenger *messenger UNUSED, int result UNUSED, const char *where)
{
	snprintf(told, sizeof told, "%s", where);
}

Test(loop, the_longest_action_of_a_failing_listener_is_told_whole)
{
	char action[MESSAGE_ACTION_MAX + 1], expected[sizeof told];

	memset(action, 'x', sizeof action - 1);
	action[sizeof action - 1] = '\0';
	cr_assert_eq(messenger_on(child, action, on_fail, a), 0);
	child->on_uncaught = keep_where;
	tell(action);
	snprintf(expected, sizeof expected, "listener of \"%s\"", action);
	cr_assert_str_eq(told, expected);
}

/* ---- the loop: a socket that is full ----------------------------------------------------- */

Test(loop, a_step_without_a_limit_wakes_when_the_socket_takes_more)
{
	struct message message = compose(ROLE_NONE, "filler", NULL);
	pid_t reader = fork_slow_reader(40 * (message_size(&message) + 65536));
	int i;

	for (i = 0; i < 40; i++)
		cr_assert_eq(send_filler(i, 65536), 0);
	hear("enough", a);
	while (calls[0] == '\0')
		cr_assert_eq(messenger_step(child, -1), 1);
	expect_satisfied(reader);
}

/* ---- the loop: a child that sends in each turn ------------------------------------------- */

Test(loop, who_speaks_and_then_looks_hears_at_once)
{
	hear("x", a);
	say("x");
	cr_assert_eq(messenger_send_to_agent(child, "y", NULL), 0);
	turn();
	expect_calls("a");
}

Test(loop, who_speaks_and_may_wait_hears_at_once)
{
	hear("x", a);
	say("x");
	cr_assert_eq(messenger_send_to_agent(child, "y", NULL), 0);
	cr_assert_eq(messenger_step(child, 1), 1);
	expect_calls("a");
}

Test(loop, timers_are_called_in_turns_that_do_not_listen)
{
	after(0, a);
	cr_assert_eq(messenger_send_to_agent(child, "y", NULL), 0);
	turn();
	expect_calls("a");
}

/* ---- the loop: draining ------------------------------------------------------------------ */

Test(loop, drain_of_little_is_nothing)
{
	size_t pending;

	cr_assert_eq(send_filler(0, 1000), 0);
	pending = channel_pending(&child->channel);
	cr_assert_eq(messenger_drain(child, pending), 1);
	cr_assert_eq(channel_pending(&child->channel), pending);
	expect_silence();
}

/* The call returns as soon as the queue is short enough. */
Test(loop, drain_of_what_the_socket_takes_writes_it)
{
	cr_assert_eq(send_filler(0, 1000), 0);
	cr_assert_eq(messenger_drain(child, channel_pending(&child->channel) - 1), 1);
	cr_assert_eq(channel_pending(&child->channel), 0);
	take_fillers(1);
}

Test(loop, drain_waits_for_a_slow_reader)
{
	enum { FILLERS = 3 * CHANNEL_QUEUE_MAX / 65536 };
	struct message message = compose(ROLE_NONE, "filler", NULL);
	pid_t reader = fork_slow_reader(FILLERS * (message_size(&message) + 65536));
	int i;

	for (i = 0; i < FILLERS; i++) {
		cr_assert_eq(send_filler(i, 65536), 0);
		cr_assert_eq(messenger_drain(child, 100000), 1);
		cr_assert_leq(channel_pending(&child->channel), 100000);
	}
	hear("enough", a);
	cr_assert_eq(messenger_drain(child, 0), 1);
	while (calls[0] == '\0')
		cr_assert_eq(messenger_step(child, -1), 1);
	expect_satisfied(reader);
}

static int
timer_read(struct messenger *messenger UNUSED, void *arg)
{
	static char bytes[65536];

	note(arg);
	return recv(master.descriptor, bytes, sizeof bytes, MSG_DONTWAIT) == -1;
}

Test(loop, drain_turns_the_loop)
{
	fill();
	cr_assert_gt(messenger_set_interval(child, 1, timer_read, a), 0);
	cr_assert_eq(messenger_drain(child, CHANNEL_QUEUE_MAX / 2), 1);
	cr_assert_leq(channel_pending(&child->channel), CHANNEL_QUEUE_MAX / 2);
	cr_assert_neq(calls[0], '\0');
}

Test(loop, drain_ends_with_the_channel)
{
	fill();
	channel_close(&master);
	cr_assert_geq(messenger_drain(child, 0), 0);
	cr_assert_eq(messenger_step(child, -1), 0);
	cr_assert_eq(messenger_drain(child, 0), 1,
	             "messenger_drain does not say that nothing is pending");
}

static int
timer_drain(struct messenger *messenger, void *arg)
{
	cr_assert_eq(messenger_drain(messenger, CHANNEL_QUEUE_MAX), 1);
	expect_error(EBUSY, messenger_drain(messenger, 0));
	note(arg);
	return 0;
}

Test(loop, drain_inside_a_callback_is_refused)
{
	fill();
	after(0, a);
	cr_assert_gt(messenger_set_timeout(child, 0, timer_drain, b), 0);
	turn();
	expect_calls("ab");
}

/* ---- the loop: inside a callback --------------------------------------------------------- */

static void
expect_busy(struct messenger *messenger, const char *what)
{
	expect_error(EBUSY, messenger_step(messenger, 0));
	expect_error(EBUSY, messenger_step(messenger, -1));
	note(what);
}

static int
on_step(struct messenger *messenger, const struct message *message UNUSED, void *arg)
{
	expect_busy(messenger, arg);
	return 0;
}

static int
watch_step(struct messenger *messenger, int descriptor UNUSED, short revents UNUSED, void *arg)
{
	expect_busy(messenger, arg);
	return 0;
}

static int
timer_step(struct messenger *messenger, void *arg)
{
	expect_busy(messenger, arg);
	return 0;
}

Test(loop, a_step_inside_a_callback_of_the_same_loop_is_refused)
{
	prepare_a_turn(on_step, watch_step, timer_step);
	turn();
	expect_calls("ababcdea");
	close_pipes(2);
}

/* A process has one read buffer, and the message of a listener stands in that buffer. */
static int
on_step_other(struct messenger *messenger, const struct message *message, void *arg)
{
	expect_busy(arg, "");
	return on_compare(messenger, message, a);
}

static int
timer_step_other(struct messenger *messenger UNUSED, void *arg)
{
	cr_assert_eq(messenger_step(arg, 0), 1);
	note(b);
	return 0;
}

/* A parent of two clusters hears the master of the other one. */
static struct messenger *
open_other(int *end)
{
	struct messenger *other;
	int ends[2];

	cr_assert_eq(channel_pair(ends), 0);
	other = messenger_open(ends[0], ROLE_PARENT);
	cr_assert_not_null(other);
	cr_assert_eq(messenger_on(other, "b", on_note, c), 0);
	*end = ends[1];
	return other;
}

Test(loop, a_step_of_another_loop_inside_a_listener_is_refused)
{
	int end, i;
	struct messenger *other = open_other(&end);

	cr_assert_eq(messenger_on(child, "x", on_step_other, other), 0);
	wanted_message = compose(ROLE_AGENT, "x", "{\"hello\":\"world\"}");
	for (i = 0; i < 5; i++)
		say_message(&wanted_message);
	turn();
	expect_calls("aaaaa");
	cr_assert_eq(messenger_step(other, 0), 1,
	             "the other messenger cannot be stepped outside of the listener");
	close(end);
	messenger_close(other);
}

Test(loop, a_step_of_another_loop_inside_a_timer_is_a_step)
{
	int end;
	struct messenger *other = open_other(&end);

	hear("x", a);
	say("x");
	cr_assert_gt(messenger_set_timeout(child, 0, timer_step_other, other), 0);
	cr_assert_eq(send(end, "\0\0\0\13\3\4\0\1\0\0\0\0b\0\0", 15, 0), 15);
	turn();
	expect_calls("acb");
	close(end);
	messenger_close(other);
}

/* As in fork_cluster, the forked process has nothing of its parent's, not even the messages that
 * the parent has read and not heard. */
static int
on_fork(struct messenger *messenger UNUSED, const struct message *message UNUSED, void *arg)
{
	struct messenger *forked;
	int status, end;
	pid_t pid = fork();

	cr_assert_geq(pid, 0);
	if (pid == 0) {
		messenger_disown();
		forked = open_other(&end);
		_exit(messenger_step(forked, 0) == 1 ? 0 : 1);
	}
	cr_assert_eq(waitpid(pid, &status, 0), pid);
	cr_assert_eq(status, 0, "the forked process ended with %#x", (unsigned)status);
	note(arg);
	return 0;
}

Test(loop, a_process_that_a_listener_forks_has_a_loop_of_its_own)
{
	cr_assert_eq(messenger_once(child, "x", on_fork, a), 0);
	hear("x", b);
	say("x");
	say("x");
	say("x");
	turn();
	expect_calls("abbb");
}

Test(loop, a_listener_may_send_over_another_messenger)
{
	struct messenger *other;
	int ends[2], i;

	cr_assert_eq(channel_pair(ends), 0);
	other = messenger_open(ends[0], ROLE_PARENT);
	cr_assert_not_null(other);
	cr_assert_eq(messenger_on(child, "x", on_forward, other), 0);
	cr_assert_eq(messenger_on(child, "x", on_compare, a), 0);
	wanted_message = compose(ROLE_AGENT, "x", "{\"hello\":\"world\"}");
	for (i = 0; i < 5; i++)
		say_message(&wanted_message);
	turn();
	expect_calls("aaaaa");
	channel_close(&master);
	channel_init(&master, 0);
	cr_assert_eq(channel_attach(&master, ends[1]), 0);
	cr_assert_eq(messenger_step(other, 0), 1);
	for (i = 0; i < 5; i++) {
		struct message got;

		take(&got);
		cr_assert_str_eq(got.data, wanted_message.data);
	}
	messenger_close(other);
}

/* ---- the loop: the other end goes, or breaks the protocol -------------------------------- */

/* Descriptors and timers go on, and a step says 0, again and again. */
static void
expect_a_loop_without_channel(void)
{
	int ends[2];

	full_pipe(ends);
	calls[0] = '\0';
	watch(ends[0], POLLIN, watch_note, a);
	cr_assert_eq(messenger_step(child, 0), 0);
	cr_assert_eq(messenger_unwatch(child, ends[0]), 0);
	after(1, b);
	cr_assert_eq(messenger_step(child, -1), 0);
	cr_assert_eq(messenger_step(child, 0), 0);
	expect_calls("ab");
	close_pipe(ends);
}

Test(loop, all_that_was_sent_before_a_hangup_is_delivered)
{
	struct message message = compose(ROLE_AGENT, "x", NULL);
	static int heard;
	int i, result, turns = 0;

	cr_assert_eq(messenger_on(child, "x", on_count, &heard), 0);
	for (i = 0; i < 5000; i++)
		cr_assert_eq(sendmessage(&master, &message), 0);
	say_message(&message);
	channel_close(&master);
	while ((result = messenger_step(child, DEADLINE)) == 1)
		cr_assert_lt(turns++, 100);
	cr_assert_eq(result, 0);
	cr_assert_eq(heard, 5001);
	expect_a_loop_without_channel();
}

/* The messages are more than one read takes, and the rest is read after the hangup. */
Test(loop, last_words_that_take_many_reads_are_delivered)
{
	struct message message = compose(ROLE_AGENT, "x", "");
	int result, sent = 0;
	static int heard;
	static char data[30000];

	message.data = data;
	message.data_length = sizeof data;
	cr_assert_eq(messenger_on(child, "x", on_count, &heard), 0);
	while (channel_pending(&master) == 0) {
		cr_assert_eq(sendmessage(&master, &message), 0);
		channel_flush(&master);
		sent++;
	}
	cr_assert_gt(sent, 2);
	channel_close(&master); /* in the middle of the last message */
	while ((result = messenger_step(child, DEADLINE)) == 1)
		;
	cr_assert_eq(result, 0);
	cr_assert_eq(heard, sent - 1);
}

/* read(2) fails with ECONNRESET if the peer never read this process's bytes. */
Test(loop, last_words_of_a_master_that_did_not_read_are_delivered)
{
	hear("x", a);
	cr_assert_eq(messenger_send_to_agent(child, "y", NULL), 0);
	turn();
	say("x");
	say("x");
	channel_close(&master);
	while (messenger_step(child, DEADLINE) == 1)
		;
	expect_calls("aa");
	expect_a_loop_without_channel();
}

/* A write fails first, and the peer's last words can still be read. */
Test(loop, last_words_are_delivered_though_a_write_failed)
{
	hear("x", a);
	say("x");
	channel_close(&master);
	cr_assert_eq(messenger_send_to_agent(child, "y", NULL), 0);
	while (messenger_step(child, DEADLINE) == 1)
		;
	expect_calls("a");
	expect_a_loop_without_channel();
}

Test(loop, a_hangup_in_the_middle_of_a_frame_is_a_hangup)
{
	hear("x", a);
	say("x");
	cr_assert_eq(send(master.descriptor, "\0\0\0\20half", 8, 0), 8);
	turn();
	channel_close(&master);
	cr_assert_eq(messenger_step(child, DEADLINE), 0);
	expect_calls("a");
}

/* A good frame, action "b" and no data, with one byte changed. */
static void
break_frame(size_t at, unsigned char value)
{
	unsigned char frame[] = {0, 0, 0, 11, ROLE_AGENT, ROLE_APP, 0, 1, 0, 0, 0, 0, 'b', 0, 0};

	frame[at] = value;
	cr_assert_eq(send(master.descriptor, frame, sizeof frame, 0), (ssize_t)sizeof frame);
}

Test(loop, a_broken_frame_is_eproto_and_then_the_channel_is_closed)
{
	static const struct {
		size_t at;
		unsigned char value;
	} broken[] = {{3, 10}, {3, 12},   {0, 0xff}, {FRAME_FROM, 5}, {FRAME_TO, 5}, {6, 4},
	              {6, 2},  {8, 0x80}, {12, 0},   {13, 'x'},       {14, 'x'},     {7, 2}};
	size_t i;
	int before;

	for (i = 0; i < sizeof broken / sizeof broken[0]; i++) {
		reopen_as(ROLE_APP);
		hear("a", a);
		hear("b", b);
		break_frame(FRAME_FROM, ROLE_PARENT); /* which is a good value */
		say("a");
		break_frame(broken[i].at, broken[i].value);
		say("a");
		before = open_descriptors();
		expect_error(EPROTO, messenger_step(child, DEADLINE));
		expect_calls("ba");
		cr_assert_eq(open_descriptors(), before - 1, "the broken channel was not closed");
		cr_assert_eq(messenger_step(child, 0), 0);
		expect_error(EPIPE, messenger_send_to_app(child, "x", NULL));
		expect_a_loop_without_channel();
	}
}

/* ---- a foreign loop ---------------------------------------------------------------------- */

TestSuite(foreign, .init = open_app, .fini = close_both);

Test(foreign, descriptors_are_the_channel_and_what_is_watched)
{
	struct pollfd set[5];
	int ends[2];

	cr_assert_eq(messenger_descriptors(child, NULL, 0), 1);
	full_pipe(ends);
	watch(ends[0], POLLIN, watch_note, a);
	watch(ends[1], POLLOUT, watch_note, b);
	memset(set, 0x55, sizeof set);
	cr_assert_eq(messenger_descriptors(child, set, 5), 3);
	cr_assert_eq(set[0].fd, child->channel.descriptor);
	cr_assert_eq(set[0].events, POLLIN);
	cr_assert_eq(set[1].fd, ends[0]);
	cr_assert_eq(set[1].events, POLLIN);
	cr_assert_eq(set[2].fd, ends[1]);
	cr_assert_eq(set[2].events, POLLOUT);
	cr_assert_eq(set[3].fd, 0x55555555);
	cr_assert_eq(messenger_unwatch(child, ends[0]), 0);
	cr_assert_eq(messenger_descriptors(child, set, 5), 2);
	cr_assert_eq(set[1].fd, ends[1]);
	close_pipe(ends);
}

Test(foreign, more_descriptors_than_there_is_room_for_are_counted)
{
	struct pollfd set[101];

	watch_pipes(100, watch_note);
	memset(set, 0x55, sizeof set);
	cr_assert_eq(messenger_descriptors(child, set, 3), 101);
	cr_assert_eq(set[2].fd, pipes[1][0]);
	cr_assert_eq(set[3].fd, 0x55555555);
	cr_assert_eq(messenger_descriptors(child, set, 101), 101);
	cr_assert_eq(set[100].fd, pipes[99][0]);
	close_pipes(100);
}

Test(foreign, the_channel_wants_to_write_only_when_something_waits)
{
	struct pollfd set[1];

	messenger_descriptors(child, set, 1);
	cr_assert_eq(set[0].events, POLLIN);
	cr_assert_eq(messenger_send_to_app(child, "x", NULL), 0);
	messenger_descriptors(child, set, 1);
	cr_assert_eq(set[0].events, POLLIN | POLLOUT);
	turn();
	messenger_descriptors(child, set, 1);
	cr_assert_eq(set[0].events, POLLIN);
	fill();
	messenger_descriptors(child, set, 1);
	cr_assert_eq(set[0].events, POLLIN | POLLOUT);
}

Test(foreign, a_closed_channel_is_not_polled)
{
	struct pollfd set[2];
	int ends[2];

	full_pipe(ends);
	watch(ends[0], POLLIN, watch_note, a);
	channel_close(&master);
	cr_assert_eq(messenger_step(child, 0), 0);
	cr_assert_eq(messenger_descriptors(child, set, 2), 1);
	cr_assert_eq(set[0].fd, ends[0]);
	close_pipe(ends);
}

/* poll(2) would return at once while the system has no memory: a loop would spin. */
Test(foreign, during_a_shortage_a_channel_is_left_alone)
{
	struct pollfd set[1];

	fill();
	child->channel.starved = true;
	cr_assert_eq(messenger_descriptors(child, set, 1), 0);
	cr_assert(messenger_timeout(child) > 0 && messenger_timeout(child) <= 10);
	after(1, a);
	cr_assert_leq(messenger_timeout(child), 1);
	cr_assert_eq(messenger_step(child, 0), 1);
	messenger_descriptors(child, set, 1);
	cr_assert_eq(set[0].events, POLLIN | POLLOUT, "the next turn does not try to write again");
}

/* poll(2) reports a hangup even where no event is asked for, again and again. */
Test(foreign, a_hangup_during_a_shortage_waits_for_its_end)
{
	channel_close(&master);
	child->channel.starved = true;
	cr_assert_eq(messenger_step(child, -1), 1);
	cr_assert_eq(messenger_step(child, -1), 0);
}

Test(foreign, the_longest_timer_is_no_endless_one)
{
	after(INT_MAX, a);
	cr_assert_gt(messenger_timeout(child), INT_MAX - DEADLINE);
}

Test(foreign, timeout_is_the_time_until_the_next_timer)
{
	int id;

	cr_assert_eq(messenger_timeout(child), -1);
	after(DEADLINE, b);
	cr_assert_leq(messenger_timeout(child), DEADLINE);
	cr_assert_gt(messenger_timeout(child), 0);
	id = after(0, a);
	cr_assert_eq(messenger_timeout(child), 0);
	let_pass(2); /* overdue is not negative */
	cr_assert_eq(messenger_timeout(child), 0);
	cr_assert_eq(messenger_clear_timeout(child, id), 0);
	cr_assert_gt(messenger_timeout(child), 0);
}

static int
on_pong(struct messenger *messenger, const struct message *message UNUSED, void *arg)
{
	if (++*(int *)arg < 10)
		return messenger_send_to_agent(messenger, "ping", NULL);
	return 0;
}

/* The master's part of the foreign loop: a pong for each ping. */
static void
answer(void)
{
	struct message got, pong = compose(ROLE_AGENT, "pong", NULL);

	cr_assert_eq(channel_read(&master), PEER_ALIVE);
	while (channel_next(&master, &got) == 1) {
		cr_assert_str_eq(got.action, "ping");
		cr_assert_eq(sendmessage(&master, &pong), 0);
	}
	cr_assert_eq(channel_flush(&master), PEER_ALIVE);
}

/* One turn of a foreign loop. */
static void
foreign_turn(void)
{
	struct pollfd set[8];
	size_t count = messenger_descriptors(child, set, 7);
	int timeout = messenger_timeout(child);

	cr_assert_lt(count, 7);
	set[count].fd = master.descriptor;
	set[count].events = POLLIN;
	if (timeout == -1 || timeout > DEADLINE)
		timeout = DEADLINE;
	cr_assert_geq(poll(set, (nfds_t)count + 1, timeout), 0);
	if ((set[count].revents & POLLIN) != 0)
		answer();
	turn();
}

Test(foreign, drives_messages_descriptors_and_timers)
{
	int64_t deadline = clutch_now() + DEADLINE;
	int ends[2];
	static int pongs;

	full_pipe(ends);
	cr_assert_eq(messenger_on(child, "pong", on_pong, &pongs), 0);
	watch(ends[0], POLLIN, watch_drain, a);
	after(20, b);
	cr_assert_eq(messenger_send_to_agent(child, "ping", NULL), 0);
	while (pongs < 10 || strlen(calls) < 2) {
		cr_assert_lt(clutch_now(), deadline, "%d pongs, calls %s", pongs, calls);
		foreign_turn();
	}
	cr_assert_eq(pongs, 10);
	expect_calls("ab");
	close_pipe(ends);
}

/* ---- a poll that a signal interrupts ----------------------------------------------------- */

static bool is_poll_interrupted;

int __real_poll(struct pollfd *set, nfds_t count, int timeout);
int __wrap_poll(struct pollfd *set, nfds_t count, int timeout);

int
__wrap_poll(struct pollfd *set, nfds_t count, int timeout)
{
	if (!is_poll_interrupted)
		return __real_poll(set, count, timeout);
	is_poll_interrupted = false;
	errno = EINTR;
	return -1;
}

static int
count_byte(struct messenger *messenger, int descriptor, short revents, void *arg)
{
	char byte;

	(void)messenger, (void)revents;
	++*(int *)arg;
	cr_assert_eq(read(descriptor, &byte, 1), 1);
	return 0;
}

/* An interrupted poll tells nothing, and what an earlier poll has told does not count again. */
Test(loop, an_interrupted_poll_calls_nobody)
{
	int ends[2], calls_made = 0;

	cr_assert_eq(pipe(ends), 0);
	cr_assert_eq(fcntl(ends[0], F_SETFL, O_NONBLOCK), 0);
	cr_assert_eq(messenger_watch(child, ends[0], POLLIN, count_byte, &calls_made), 0);
	cr_assert_eq(write(ends[1], "x", 1), 1);
	turn();
	is_poll_interrupted = true;
	turn();
	cr_assert(!is_poll_interrupted);
	cr_assert_eq(calls_made, 1);
	close_pipe(ends);
}

/* ---- a quiet loop ------------------------------------------------------------------------ */

static int
do_nothing(struct messenger *messenger, void *arg)
{
	(void)messenger, (void)arg;
	return 0;
}

/* Nothing happens until the timer, for longer than the second after which a queue is freed. */
Test(loop, a_quiet_one_gives_the_memory_of_its_queue_back)
{
	static char data[100000];
	struct message message;

	memset(data, 'x', sizeof data - 1);
	cr_assert_eq(messenger_send_to_agent(child, "much", data), 0);
	take(&message);
	cr_assert_eq(channel_pending(&child->channel), 0);
	cr_assert_geq(child->channel.queue_size, sizeof data);
	cr_assert_geq(messenger_set_timeout(child, 1500, do_nothing, NULL), 0);
	cr_assert_eq(messenger_step(child, -1), 1);
	cr_assert_eq(child->channel.queue_size, 0);
}

/* ---- waking, and a poll that fails ------------------------------------------------------- */

Test(loop, a_signal_handler_may_wake_a_loop_that_is_awake)
{
	int i, descriptor = clutch_wake_open();
	struct pollfd woken = {.fd = descriptor, .events = POLLIN};

	cr_assert_neq(descriptor, -1);
	errno = EXDEV;
	for (i = 0; i < 100000; i++)
		clutch_wake_up();
	cr_assert_eq(errno, EXDEV);
	cr_assert_eq(poll(&woken, 1, 0), 1);
	clutch_wake_drain(descriptor);
	cr_assert_eq(poll(&woken, 1, 0), 0);
	clutch_wake_close();
}

/* A cluster that a process runs after another one makes the pair anew. */
Test(loop, what_wakes_it_is_there_once)
{
	int descriptor = clutch_wake_open(), free = free_descriptor();

	cr_assert_neq(descriptor, -1);
	cr_assert_eq(clutch_wake_open(), descriptor);
	cr_assert_eq(free_descriptor(), free, "the first pair is closed");
	clutch_wake_close();
}

Test(loop, without_descriptors_nothing_wakes_it)
{
	limit_descriptors(3);
	cr_assert_eq(clutch_wake_open(), -1);
	cr_assert_eq(errno, EMFILE);
	limit_descriptors(256);
}

Test(loop, a_poll_that_fails_fails_the_step)
{
	limit_descriptors(0);
	cr_assert_eq(messenger_step(child, 0), -1);
	cr_assert_eq(errno, EINVAL);
	limit_descriptors(256);
	turn();
}

/* messenger.c, run_timers: its last loop ends at the last timer. One step more is seen
 * under AddressSanitizer only, and where all places are taken. */
Test(loop, as_many_timers_as_there_is_room_for)
{
	struct messenger *other;
	int pair[2], i;

	cr_assert_eq(channel_pair(pair), 0);
	other = messenger_open(pair[0], ROLE_APP);
	for (i = 0; i < 4; i++)
		cr_assert_gt(messenger_set_timeout(other, 60000, do_nothing, NULL), 0);
	cr_assert_eq(messenger_step(other, 0), 1);
	cr_assert_gt(messenger_set_timeout(other, 0, do_nothing, NULL), 0);
	cr_assert_eq(messenger_step(other, 0), 1);
	cr_assert_eq(messenger_clear_timeout(other, 1), 0);
	for (i = 0; i < 4; i++)
		cr_assert_gt(messenger_set_timeout(other, 60000, do_nothing, NULL), 0);
	cr_assert_eq(messenger_step(other, 0), 1);
	messenger_close(other);
	close(pair[1]);
}
