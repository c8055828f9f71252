/*
 * Listeners: which of them hear a message, in which order, and what they are handed.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "child.h"

/* ---- listeners --------------------------------------------------------------------------- */

TestSuite(listeners, .init = open_app, .fini = close_both);

Test(listeners, are_called_in_order_of_adding)
{
	hear("x", a);
	hear("y", d);
	hear("x", b);
	hear("x", c);
	tell("x");
	expect_calls("abc");
	tell("y");
	expect_calls("d");
}

Test(listeners, the_same_one_twice_is_called_twice)
{
	hear("x", a);
	hear("x", a);
	tell("x");
	expect_calls("aa");
	cr_assert_eq(messenger_remove_listener(child, "x", on_note, a), 0);
	tell("x");
	expect_calls("a");
}

Test(listeners, once_is_called_once)
{
	hear("x", a);
	hear_once("x", b);
	hear("x", c);
	tell("x");
	tell("x");
	expect_calls("abcac");
}

Test(listeners, once_is_called_once_for_many_messages_of_one_turn)
{
	hear_once("x", a);
	hear("x", b);
	say("x");
	say("x");
	say("x");
	turn();
	expect_calls("abbb");
}

static int
on_send_again(struct messenger *messenger, const struct message *message, void *arg)
{
	note(arg);
	return messenger_send_to_app(messenger, message->action, "again");
}

Test(listeners, once_is_called_once_though_it_sends_the_action_again)
{
	struct message got;

	cr_assert_eq(messenger_once(child, "x", on_send_again, a), 0);
	hear("x", b);
	tell("x");
	expect_calls("ab");
	take(&got);
	cr_assert_str_eq(got.data, "again");
	got = compose(ROLE_APP, "x", "again");
	say_message(&got);
	turn();
	expect_calls("b");
	expect_silence();
}

static int
on_once_more(struct messenger *messenger, const struct message *message, void *arg)
{
	note(arg);
	return messenger_once(messenger, message->action, on_once_more, arg);
}

Test(listeners, once_may_add_itself_again)
{
	int i;

	cr_assert_eq(messenger_once(child, "x", on_once_more, a), 0);
	for (i = 0; i < 3; i++)
		say("x");
	turn();
	expect_calls("aaa");
}

Test(listeners, removal_takes_the_most_recently_added_match)
{
	hear("x", a);
	hear("x", b);
	hear("x", a);
	hear("x", c);
	tell("x");
	expect_calls("abac");
	cr_assert_eq(messenger_remove_listener(child, "x", on_note, a), 0);
	tell("x");
	expect_calls("abc");
	cr_assert_eq(messenger_remove_listener(child, "x", on_note, a), 0);
	tell("x");
	expect_calls("bc");
	expect_error(ENOENT, messenger_remove_listener(child, "x", on_note, a));
}

Test(listeners, removed_before_the_first_message_is_not_called)
{
	hear("x", a);
	hear("x", b);
	cr_assert_eq(messenger_remove_listener(child, "x", on_note, a), 0);
	expect_error(ENOENT, messenger_remove_listener(child, "x", on_note, a));
	tell("x");
	expect_calls("b");
}

Test(listeners, once_can_be_removed_and_on_and_once_are_alike_then)
{
	hear("x", a);
	hear_once("x", a);
	tell("y");
	cr_assert_eq(messenger_remove_listener(child, "x", on_note, a), 0);
	tell("x");
	tell("x");
	expect_calls("aa");
}

/* A listener changes the list of listeners in this way while it is called. */
struct change {
	char *name;
	const char *action; /* of the listener that is added or removed */
	const char *remove; /* the argument of the listener to remove, or NULL */
	int add;            /* the number of listeners to add */
	char *what;         /* the argument of the added listeners */
};

static int
on_change(struct messenger *messenger, const struct message *message UNUSED, void *arg)
{
	struct change *change = arg;
	char *removed = change->remove != NULL ? change->remove[0] == 'b' ? b : c : NULL;

	note(change->name);
	if (removed != NULL)
		cr_assert_eq(messenger_remove_listener(messenger, change->action, on_note, removed),
		             0);
	change->remove = NULL; /* only once */
	while (change->add > 0 && change->add--)
		cr_assert_eq(messenger_on(messenger, change->action, on_note, change->what), 0);
	return 0;
}

static void
hear_change(const char *action, struct change *change)
{
	cr_assert_eq(messenger_on(child, action, on_change, change), 0);
}

Test(listeners, added_by_a_listener_counts_from_the_next_message)
{
	struct change change = {.name = a, .action = "x", .add = 1, .what = c};

	hear_change("x", &change);
	hear("x", b);
	say("x");
	say("x");
	turn();
	expect_calls("ababc");
}

/* Adding makes the list larger, and moves it in memory, while the messenger walks over it. */
Test(listeners, a_hundred_added_by_a_listener)
{
	struct change change = {.name = a, .action = "x", .add = 100, .what = c};

	hear_change("x", &change);
	hear("x", b);
	tell("x");
	expect_calls("ab");
	tell("x");
	cr_assert_eq(strlen(calls), 102);
	cr_assert_eq(strspn(calls + 2, "c"), 100);
}

Test(listeners, added_for_this_action_by_one_that_hears_everything)
{
	struct change change = {.name = a, .action = "x", .add = 1, .what = b};

	hear_change(NULL, &change);
	tell("x");
	expect_calls("a");
	tell("x");
	expect_calls("ab");
}

Test(listeners, one_that_hears_everything_added_while_a_message_is_delivered)
{
	struct change change = {.name = a, .action = NULL, .add = 1, .what = b};

	hear_change("x", &change);
	say("x");
	say("y");
	turn();
	expect_calls("ab");
}

Test(listeners, removed_by_an_earlier_listener_is_still_called_for_this_message)
{
	struct change change = {.name = a, .action = "x", .remove = "b"};

	hear_change("x", &change);
	hear("x", b);
	hear("x", c);
	say("x");
	say("x");
	turn();
	expect_calls("abcac");
}

Test(listeners, removed_by_one_that_hears_everything_is_still_called_for_this_message)
{
	struct change change = {.name = a, .action = "x", .remove = "b"};

	hear("x", b);
	hear_change(NULL, &change);
	tell("x");
	tell("x");
	expect_calls("aba");
}

Test(listeners, removed_by_a_later_listener)
{
	struct change change = {.name = a, .action = "x", .remove = "b"};

	hear("x", b);
	hear_change("x", &change);
	hear("x", c);
	tell("x");
	tell("x");
	expect_calls("bacac");
}

Test(listeners, once_removed_by_an_earlier_listener_is_still_called)
{
	struct change change = {.name = a, .action = "x", .remove = "b"};

	hear_change("x", &change);
	hear_once("x", b);
	tell("x");
	tell("x");
	expect_calls("aba");
}

Test(listeners, added_and_removed_by_the_same_listener_is_never_called)
{
	struct change add = {.name = a, .action = "x", .add = 1, .what = c};
	struct change drop = {.name = b, .action = "x", .remove = "c"};

	hear_change("x", &add);
	hear_change("x", &drop);
	tell("x");
	tell("x");
	expect_calls("abab");
}

static int
on_remove_self(struct messenger *messenger, const struct message *message, void *arg)
{
	note(arg);
	cr_assert_eq(messenger_remove_listener(messenger, message->action, on_remove_self, arg), 0);
	expect_error(ENOENT,
	             messenger_remove_listener(messenger, message->action, on_remove_self, arg));
	return 0;
}

Test(listeners, removed_by_itself)
{
	hear("x", a);
	cr_assert_eq(messenger_on(child, "x", on_remove_self, b), 0);
	hear("x", c);
	say("x");
	say("x");
	turn();
	expect_calls("abcac");
}

Test(listeners, a_thousand_actions)
{
	static int heard[1000];
	char action[32];
	int i, j;

	for (i = 0; i < 1000; i++) {
		snprintf(action, sizeof action, "action-%d", i); /* the messenger keeps a copy */
		cr_assert_eq(messenger_on(child, action, on_count, &heard[i]), 0);
	}
	for (i = 999; i >= 0; i--) {
		snprintf(action, sizeof action, "action-%d", i);
		tell(action);
		for (j = 0; j < 1000; j++)
			cr_assert_eq(heard[j], j >= i,
			             "%s was sent, and listener %d was called too early, too late "
			             "or twice",
			             action, j);
	}
}

/* Two names with the same 32 bits of FNV-1a: a listener hears its own name only. */
Test(listeners, actions_whose_hashes_collide)
{
	hear("declinate", a);
	hear("costarring", c);
	tell("macallums");
	tell("liquid");
	expect_calls("");
	hear("macallums", b);
	hear("liquid", d);
	tell("declinate");
	tell("macallums");
	tell("declinate");
	tell("costarring");
	tell("liquid");
	expect_calls("abacd");
}

Test(listeners, an_action_that_is_the_start_of_another)
{
	hear("egg-p", a);
	hear("egg", b);
	hear("egg-ping", c);
	tell("egg-p");
	tell("egg");
	tell("egg-ping");
	tell("egg-pi");
	tell("eg");
	tell("egg-p");
	expect_calls("abca");
}

Test(listeners, of_everything_are_called_before_the_others)
{
	hear("x", c);
	hear(NULL, a);
	hear("x", d);
	hear(NULL, b);
	tell("x");
	expect_calls("abcd");
	tell("unknown");
	expect_calls("ab");
}

Test(listeners, of_everything_hear_an_empty_action_and_no_other_does)
{
	hear(NULL, a);
	hear("x", b);
	tell("");
	tell_from(ROLE_APP, NULL, "{}");
	expect_calls("aa");
}

Test(listeners, of_everything_can_be_once_and_can_be_removed)
{
	expect_error(ENOENT, messenger_remove_listener(child, NULL, on_note, a));
	hear(NULL, a);
	hear_once(NULL, b);
	tell("x");
	tell("y");
	expect_calls("aba");
	cr_assert_eq(messenger_remove_listener(child, NULL, on_note, a), 0);
	tell("x");
	expect_calls("");
}

Test(listeners, an_action_without_a_listener_is_ignored)
{
	tell("x");
	hear("x", a);
	tell("y");
	tell("x");
	expect_calls("a");
}

/* D6: an emitter throws for an 'error' without a listener; a messenger does not. */
Test(listeners, no_action_has_a_special_meaning)
{
	static const char *const actions[] = {"error", "egg-ready", "newListener", "message"};
	size_t i;

	for (i = 0; i < sizeof actions / sizeof actions[0]; i++) {
		tell_from(ROLE_APP, actions[i], "{}");
		hear(actions[i], a);
		tell_from(ROLE_APP, actions[i], "{}");
		expect_calls("a");
	}
	cr_assert_eq(messenger_send_to_app(child, "error", NULL), 0);
	expect("error", ROLE_APP, 0, NULL);
}

/* ---- listeners: what they are handed ----------------------------------------------------- */

Test(listeners, are_handed_from_to_and_receiver_pid)
{
	enum role from, to;

	cr_assert_eq(messenger_on(child, "x", on_compare, a), 0);
	for (from = ROLE_NONE; from <= ROLE_APP; from++)
		for (to = ROLE_NONE; to <= ROLE_APP; to++) {
			wanted_message = compose(from, "x", "{}");
			wanted_message.to = to;
			wanted_message.receiver_pid = (pid_t)from * 100000 + (pid_t)to;
			say_message(&wanted_message);
			turn();
		}
	cr_assert_eq(strlen(calls), 25);
}

static void
say_data(const char *data, size_t length)
{
	wanted_message = compose(ROLE_AGENT, "x", data);
	wanted_message.data_length = length;
	say_message(&wanted_message);
	turn();
}

Test(listeners, are_handed_data_undefined_empty_and_with_any_byte)
{
	cr_assert_eq(messenger_on(child, "x", on_compare, a), 0);
	say_data(NULL, 0);
	say_data("", 0);
	say_data("{\"a\":1}", 7);
	say_data("{\0\xff\n}", 5);
	expect_calls("aaaa");
}

/* Byte number n of a message's data of this length. */
static char
byte_of(size_t length, size_t n)
{
	return (char)('a' + (length + n / 7) % 26);
}

static int
on_compare_bytes(struct messenger *messenger UNUSED, const struct message *message, void *arg)
{
	const size_t *wanted = *(size_t **)arg;
	size_t i;

	cr_assert_eq(message->data_length, *wanted, "%zu bytes came", message->data_length);
	for (i = 0; i < *wanted; i++)
		if (message->data[i] != byte_of(*wanted, i))
			cr_assert_fail("byte %zu of %zu is wrong", i, *wanted);
	cr_assert_eq(message->data[i], '\0');
	++*(size_t **)arg;
	return 0;
}

/* The messages are far more than one read takes, and come in order and whole. */
Test(listeners, hear_messages_of_every_size_in_order)
{
	static size_t sizes[] = {0,      1,     MESSAGE_DATA_MAX,      3,     65536,
	                         262144, 5,     CHANNEL_READ_SIZE - 1, 7,     CHANNEL_READ_SIZE + 1,
	                         100000, 99999, MESSAGE_DATA_MAX,      16384, 0};
	static const size_t count = sizeof sizes / sizeof sizes[0];
	size_t *heard = sizes, i, n;
	char *data = malloc(MESSAGE_DATA_MAX);
	struct message message;

	cr_assert_not_null(data);
	cr_assert_eq(messenger_on(child, "x", on_compare_bytes, &heard), 0);
	for (i = 0; i < count; i++) {
		for (n = 0; n < sizes[i]; n++)
			data[n] = byte_of(sizes[i], n);
		message = compose(ROLE_AGENT, "x", "");
		message.data = data;
		message.data_length = sizes[i];
		cr_assert_eq(sendmessage(&master, &message), 0);
	}
	turn_until(heard == sizes + count);
	free(data);
}

/* A message whose bytes come one by one is heard when it is complete. */
Test(listeners, hear_a_message_that_comes_byte_by_byte)
{
	static const unsigned char frame[] = {0, 0, 0, 13,  ROLE_AGENT, ROLE_APP, 1,   1, 0,
	                                      0, 0, 0, 'x', 0,          '{',      '}', 0};
	size_t i;

	wanted_message = compose(ROLE_AGENT, "x", "{}");
	cr_assert_eq(messenger_on(child, "x", on_compare, a), 0);
	for (i = 0; i < sizeof frame; i++) {
		expect_calls("");
		cr_assert_eq(send(master.descriptor, frame + i, 1, 0), 1);
		turn();
	}
	expect_calls("a");
}

/* ---- listeners: handles ------------------------------------------------------------------ */

static int kept = -1; /* a handle that was duplicated */

static int
on_keep(struct messenger *messenger UNUSED, const struct message *message, void *arg)
{
	note(arg);
	cr_assert_geq(message->handle, 0);
	cr_assert((fcntl(message->handle, F_GETFD) & FD_CLOEXEC) != 0);
	kept = dup(message->handle);
	return 0;
}

/* The master sends one end of a pipe and closes it here. Returns the other end. */
static int
say_handle(const char *action)
{
	struct message message = compose(ROLE_AGENT, action, NULL);
	int ends[2];

	cr_assert_eq(pipe(ends), 0);
	message.handle = ends[0];
	say_message(&message);
	close(ends[0]);
	return ends[1];
}

Test(listeners, a_handle_is_closed_after_delivery)
{
	int before = open_descriptors();
	static int heard;

	cr_assert_eq(messenger_on(child, "x", on_count, &heard), 0);
	close(say_handle("x"));
	turn();
	cr_assert_eq(heard, 1);
	cr_assert_eq(open_descriptors(), before);
}

Test(listeners, a_handle_that_nobody_hears_is_closed)
{
	int before = open_descriptors();

	close(say_handle("x"));
	close(say_handle(""));
	turn();
	turn();
	cr_assert_eq(open_descriptors(), before);
}

Test(listeners, a_handle_can_be_kept_with_dup)
{
	int before = open_descriptors(), other;
	char byte;

	cr_assert_eq(messenger_on(child, "x", on_keep, a), 0);
	hear("x", b);
	other = say_handle("x");
	turn();
	expect_calls("ab");
	cr_assert_eq(open_descriptors(), before + 2);
	cr_assert_eq(write(other, "!", 1), 1);
	cr_assert_eq(read(kept, &byte, 1), 1);
	cr_assert_eq(byte, '!');
	close(other);
	close(kept);
}

/* ---- listeners: errors ------------------------------------------------------------------- */

Test(listeners, einval_for_no_listener_and_for_actions_nobody_can_send)
{
	char action[MESSAGE_ACTION_MAX + 2];

	memset(action, 'a', sizeof action - 1);
	action[sizeof action - 1] = '\0';
	expect_error(EINVAL, messenger_on(child, "x", NULL, NULL));
	expect_error(EINVAL, messenger_on(child, NULL, NULL, NULL));
	expect_error(EINVAL, messenger_once(child, "x", NULL, NULL));
	expect_error(EINVAL, messenger_on(child, "", on_note, a));
	expect_error(EINVAL, messenger_once(child, "", on_note, a));
	expect_error(EINVAL, messenger_on(child, action, on_note, a));
	expect_error(EINVAL, messenger_once(child, action, on_note, a));
	action[MESSAGE_ACTION_MAX] = '\0';
	hear(action, b);
	tell(action);
	expect_calls("b");
}

Test(listeners, enoent_for_what_was_not_added)
{
	hear("x", a);
	tell("y");
	expect_error(ENOENT, messenger_remove_listener(child, "x", on_note, b));
	expect_error(ENOENT, messenger_remove_listener(child, "x", on_fail, a));
	expect_error(ENOENT, messenger_remove_listener(child, "y", on_note, a));
	expect_error(ENOENT, messenger_remove_listener(child, NULL, on_note, a));
	tell("x");
	expect_calls("a");
}

/* The pattern of a request and its reply: the names must not pile up. */
Test(listeners, a_once_for_each_of_many_actions_leaves_nothing_behind)
{
	char action[64];
	size_t before = 0;
	int i;

	for (i = 0; i < 20000; i++) {
		if (i == 100)
			before = bytes_allocated();
		snprintf(action, sizeof action, "reply-to-request-number-%d", i);
		hear_once(action, a);
		tell(action);
		expect_calls("a");
	}
	cr_assert_lt(bytes_allocated(), before + 100000);
}

Test(listeners, two_hundred_actions_leave_one_by_one)
{
	char action[16];
	int i;

	for (i = 0; i < 200; i++) {
		snprintf(action, sizeof action, "%d", i);
		hear(action, a);
	}
	for (i = 0; i < 200; i++) {
		snprintf(action, sizeof action, "%d", i);
		cr_assert_eq(messenger_remove_listener(child, action, on_note, a), 0);
		expect_error(ENOENT, messenger_remove_listener(child, action, on_note, a));
	}
}

static int
on_remove_both(struct messenger *messenger, const struct message *message UNUSED, void *arg)
{
	note(arg);
	cr_assert_eq(messenger_remove_listener(messenger, "x", on_note, b), 0);
	return messenger_remove_listener(messenger, "x", on_remove_both, arg);
}

/* The other listener is still called for this message. */
Test(listeners, one_removes_another_and_itself)
{
	cr_assert_eq(messenger_on(child, "x", on_remove_both, a), 0);
	hear("x", b);
	tell("x");
	expect_calls("ab");
	tell("x");
	expect_calls("");
}
