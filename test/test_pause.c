/*
 * Pause and resume: a process stops reading its channel, so that its senders
 * wait, and goes on later.
 *
 * The core is linked here with small limits (TRAFFIC_LIMITS in the Makefile): a queue is
 * full after 128 KiB, and a process is stuck after 1.5 s.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "traffic.h"

#include <fcntl.h>

extern int messenger_pause(struct messenger *messenger);
extern int messenger_resume(struct messenger *messenger);

enum { PIECE = 1024 };

TestSuite(pause, .timeout = 60);

/* ---- in the processes ------------------------------------------------------------- */

static int
on_tick_while_paused(struct messenger *messenger, void *arg)
{
	static int ticks;
	int *ends = arg;

	if (++ticks > 5)
		return 0;
	report(messenger, "ticks #%d", ticks);
	messenger_send(messenger, "test-tick", NULL, ROLE_PARENT);
	if (write(ends[1], "x", 1) != 1)
		report(messenger, "BAD write: %s", strerror(errno));
	return 0;
}

static int
on_byte(struct messenger *messenger, int descriptor, short revents, void *arg)
{
	char byte;

	(void)revents, (void)arg;
	if (read(descriptor, &byte, 1) == 1)
		report(messenger, "sees a byte");
	return 0;
}

/* Only the reading of the channel pauses: a timer, a descriptor and writing go on. */
static int
order_pause(struct messenger *messenger, const char *line)
{
	static int ends[2];

	(void)line;
	if (pipe(ends) == -1 || messenger_watch(messenger, ends[0], POLLIN, on_byte, NULL) == -1 ||
	    messenger_set_interval(messenger, 20, on_tick_while_paused, ends) == -1)
		return -1;
	report(messenger, "pauses: %d", messenger_pause(messenger));
	report(messenger, "pauses again: %d", messenger_pause(messenger));
	return 0;
}

/* The process goes on at SIGUSR2, because messages do not reach it. */
static int
on_look(struct messenger *messenger, void *arg)
{
	(void)arg;
	if (!released)
		return 0;
	released = 0;
	report(messenger, "resumes: %d", messenger_resume(messenger));
	report(messenger, "resumes again: %d", messenger_resume(messenger));
	return 0;
}

static int
say_goodbye(struct messenger *messenger, void *arg)
{
	(void)arg;
	report(messenger, "says goodbye");
	return 0;
}

static int
talk_and_pause(struct messenger *messenger, void *arg)
{
	static const struct order orders[] = {{"pause", order_pause}, {NULL, NULL}};

	signal(SIGUSR2, release);
	if (obey_orders(messenger, orders) == -1 ||
	    messenger_set_interval(messenger, 10, on_look, NULL) == -1 ||
	    messenger_before_close(messenger, say_goodbye, NULL) == -1)
		return -1;
	return talk(messenger, arg);
}

/* ---- an agent that forwards ---------------------------------------------------------- */

/* The messages that could not be sent yet, in order: at most those of one read. */
struct kept {
	struct kept *next;
	char *action, *data;
};

static struct kept *kept;
static size_t kept_bytes;
static pid_t target;

static int
order_target(struct messenger *agent, const char *line)
{
	(void)agent;
	target = (pid_t)atol(order_rest(line));
	return 0;
}

static int
try_again(struct messenger *agent, void *arg)
{
	struct kept *first;

	(void)arg;
	while ((first = kept) != NULL) {
		if (messenger_send_to(agent, target, first->action, first->data) == -1)
			return messenger_set_timeout(agent, 2, try_again, NULL) == -1;
		kept = first->next;
		kept_bytes -= strlen(first->data);
		free(first->action);
		free(first->data);
		free(first);
	}
	return messenger_resume(agent);
}

static int
keep(struct messenger *agent, const struct message *message)
{
	struct kept **last = &kept, *added = calloc(1, sizeof *added);

	if (kept == NULL) {
		report(agent, "holds");
		if (messenger_pause(agent) == -1 ||
		    messenger_set_timeout(agent, 2, try_again, NULL) == -1)
			report(agent, "BAD pause: %s", strerror(errno));
	}
	while (*last != NULL)
		last = &(*last)->next;
	added->action = strdup(message->action);
	added->data = strdup(message->data);
	*last = added;
	kept_bytes += message->data_length;
	if (kept_bytes > CHANNEL_READ_SIZE)
		report(agent, "BAD pause: %zu bytes came in it", kept_bytes);
	return 0;
}

static int
on_forward(struct messenger *agent, const struct message *message, void *arg)
{
	(void)arg;
	if (kept == NULL && messenger_send_to(agent, target, message->action, message->data) == 0)
		return 0;
	return keep(agent, message);
}

static int
forward(struct messenger *agent, void *arg)
{
	static const struct order orders[] = {{"target", order_target}, {NULL, NULL}};

	(void)arg;
	if (obey_orders(agent, orders) == -1 ||
	    messenger_on(agent, "test-number", on_forward, NULL) == -1)
		return -1;
	return messenger_on(agent, "test-end", on_forward, NULL);
}

/* ---- in the test ----------------------------------------------------------------------- */

static struct cluster *
start(messenger_callback agent, int workers)
{
	struct cluster *c = cluster_start(&(struct options){.agent = agent,
	                                                    .app = talk_and_pause,
	                                                    .workers = workers,
	                                                    .app_close_timeout = 1000,
	                                                    .agent_close_timeout = 1000});

	cluster_ready(c);
	return c;
}

static void
stop(struct cluster *c)
{
	assert_nothing_bad(c);
	cluster_stop(c);
}

static void
pause_process(struct cluster *c, const char *who)
{
	cluster_order(c, who, "pause");
	cluster_wait(c, 0, "%s pauses: 0", who);
	cluster_wait(c, 0, "%s pauses again: 0", who);
}

static void
resume_process(struct cluster *c, const char *who)
{
	cluster_signal(c, who, SIGUSR2);
	cluster_wait(c, 0, "%s resumes: 0", who);
	cluster_wait(c, 0, "%s resumes again: 0", who);
}

static bool
is_later(struct cluster *c, void *arg)
{
	(void)c;
	return clutch_now() > *(const int64_t *)arg;
}

static void
let_pass(struct cluster *c, int milliseconds)
{
	int64_t until = clutch_now() + milliseconds;

	cluster_until(c, is_later, &until, "time to pass");
}

static void
expect_pause(const char *who, const char *other)
{
	struct cluster *c = start(talk_and_pause, 2);

	pause_process(c, who);
	say(c, other, 1, cluster_pid(c, who), 200, 100);
	cluster_wait(c, 0, ":%s ticks #5", who);
	cluster_wait(c, 0, ":%s sees a byte", who);
	cluster_wait(c, 0, "PARENT saw test-tick");
	cluster_wait(c, 0, ":%s sent #200 of #1", other);
	cr_assert_eq(cluster_count(c, 0, ":%s hear", who), 0, "a paused process hears");
	resume_process(c, who);
	cluster_wait(c, 0, ":%s heard #200 of #1.", who);
	say(c, other, 2, cluster_pid(c, who), 200, 100);
	cluster_wait(c, 0, ":%s heard #200 of #2.", who);
	stop(c);
}

Test(pause, a_paused_app_does_everything_but_read)
{
	expect_pause("APP#1", "APP#2");
}

Test(pause, a_paused_agent_does_everything_but_read)
{
	expect_pause("AGENT#1", "APP#2");
}

/* Three clients send faster than the receiver reads. All messages arrive, and meanwhile they
 * wait in the clients' queues. */
Test(pause, an_agent_that_forwards_loses_nothing)
{
	enum { EACH = 2000 };
	struct cluster *c = start(forward, 4);
	long before = process_memory(c->master);
	char who[16], text[32];
	int i;

	snprintf(text, sizeof text, "target %ld", (long)cluster_pid(c, "APP#4"));
	cluster_order(c, "AGENT#1", text);
	cluster_signal(c, "APP#4", SIGSTOP);
	for (i = 1; i <= 3; i++) {
		snprintf(who, sizeof who, "APP#%d", i);
		say(c, who, i, TO_AGENT, EACH, PIECE);
	}
	cluster_wait(c, 0, ":AGENT#1 holds");
	be_patient(2);
	let_pass(c, 300);
	cr_assert_eq(cluster_count(c, 0, " sent #"), 0, "a client did not wait");
	cluster_signal(c, "APP#4", SIGCONT);
	for (i = 1; i <= 3; i++)
		cluster_wait(c, 0, ":APP#4 heard #%d of #%d.", EACH, i);
	cr_assert_eq(cluster_count(c, 0, " died "), 0);
	assert_memory(c, "an agent that forwards", before, 8 * 1024);
	stop(c);
}

/* ---- a pause is no fault ------------------------------------------------------------------- */

/* The queue is full for longer than the stuck timeout, and no process spins meanwhile. Once the
 * process reads again, a full queue counts again. */
static void
expect_patience(const char *who, const char *other)
{
	struct cluster *c = start(talk_and_pause, 3);
	int64_t used;

	pause_process(c, who);
	cluster_wait(c, 0, ":%s ticks #5", who);
	say(c, other, 1, cluster_pid(c, who), 1000, PIECE);
	let_pass(c, 500);
	used = process_processor_time(cluster_pid(c, who)) + process_processor_time(c->master);
	let_pass(c, CLUTCH_STUCK_TIMEOUT + 500);
	used = process_processor_time(cluster_pid(c, who)) + process_processor_time(c->master) -
	       used;
	cr_assert_lt(used, 400 * time_scale(),
	             "%lld ms of processor time were used while nothing was to be done",
	             (long long)used);
	cr_assert_eq(cluster_count(c, 0, "is stuck"), 0);
	cr_assert_eq(cluster_count(c, 0, " sent #"), 0, "the sender did not wait");
	resume_process(c, who);
	cluster_wait(c, 0, ":%s heard #1000 of #1.", who);
	cr_assert_eq(cluster_count(c, 0, " died "), 0);
	/* The pause is over: now the same is a fault. */
	cluster_signal(c, who, SIGSTOP);
	say(c, other, 2, cluster_pid(c, who), 1000, PIECE);
	cluster_wait(c, 0, ":%s is stuck, its queue is full: killed", who);
	stop(c);
}

Test(pause, a_paused_app_is_not_stuck)
{
	expect_patience("APP#1", "AGENT#1");
}

Test(pause, a_paused_agent_is_not_stuck)
{
	expect_patience("AGENT#1", "APP#2");
}

/* The parent has a loop of its own here, which polls the descriptors of
 * messenger_descriptors. */
Test(pause, a_paused_parent_is_not_stuck)
{
	struct cluster *c = start(talk_and_pause, 2);

	say(c, "APP#1", 1, TO_PARENT, 200, 8 * PIECE);
	cr_assert_eq(messenger_pause(c->parent), 0);
	let_pass(c, CLUTCH_STUCK_TIMEOUT + 1000);
	cr_assert_eq(cluster_count(c, 0, "is stuck"), 0);
	cr_assert_eq(cluster_count(c, 0, " sent #"), 0, "the sender did not wait");
	cr_assert_eq(messenger_resume(c->parent), 0);
	cluster_wait(c, 0, ":PARENT saw test-end");
	cr_assert_eq(cluster_count(c, 0, ":PARENT saw test-number"), 200);
	stop(c);
}

/* ---- a paused process is still one of the cluster's ------------------------------------------ */

Test(pause, paused_processes_leave_when_they_are_told)
{
	struct cluster *c = start(talk_and_pause, 2);
	size_t mark;

	pause_process(c, "APP#1");
	pause_process(c, "AGENT#1");
	say(c, "APP#2", 1, cluster_pid(c, "APP#1"), 400, PIECE);
	mark = cluster_mark(c);
	cluster_signal(c, "MASTER", SIGTERM);
	cluster_wait(c, mark, ":APP#1 says goodbye");
	cluster_wait(c, mark, ":APP#2 says goodbye");
	cluster_wait(c, mark, ":AGENT#1 says goodbye");
	cluster_ended(c, 0);
}

Test(pause, paused_processes_notice_the_end_of_the_master)
{
	struct cluster *c = start(talk_and_pause, 2);

	pause_process(c, "APP#1");
	pause_process(c, "AGENT#1");
	cluster_signal(c, "MASTER", SIGKILL);
	cluster_killed(c, SIGKILL);
}

/* ---- a listener that takes one message at a time ----------------------------------------- */

enum { ONE_BY_ONE = 20, WITH_HANDLE = 5 }; /* the socket holds all */

struct count {
	int messages, handles;
};

static int
on_next_turn(struct messenger *messenger, void *arg)
{
	(void)arg;
	return messenger_resume(messenger);
}

static int
take_one(struct messenger *messenger, const struct message *message, void *arg)
{
	struct count *count = arg;

	count->messages++;
	count->handles += message->handle != -1;
	messenger_pause(messenger); /* EPIPE: the channel has ended */
	return messenger_set_timeout(messenger, 0, on_next_turn, NULL) == -1;
}

static void
send_all(struct messenger *sender, bool with_handles)
{
	struct message message = {.action = "one"};
	int i;

	for (i = 1; i <= ONE_BY_ONE; i++) {
		message.handle = with_handles && i % WITH_HANDLE == 0 ? STDERR_FILENO : -1;
		cr_assert_eq(messenger_send_message(sender, &message), 0, "%s", strerror(errno));
		cr_assert_eq(messenger_drain(sender, 0), 1);
	}
}

/* All messages are in the socket before the receiver takes the first one. */
static void
take_one_by_one(bool with_handles, bool hangs_up)
{
	struct messenger *sender, *receiver;
	struct count count = {0};
	int pair[2], result = 1;

	cr_assert_eq(channel_pair(pair), 0);
	sender = messenger_open(pair[0], ROLE_AGENT);
	receiver = messenger_open(pair[1], ROLE_PARENT);
	cr_assert(sender != NULL && receiver != NULL);
	cr_assert_eq(messenger_on(receiver, "one", take_one, &count), 0);
	send_all(sender, with_handles);
	if (hangs_up)
		messenger_close(sender);
	while (result == 1 && count.messages < ONE_BY_ONE)
		result = messenger_step(receiver, 1000 * time_limit());
	cr_assert_neq(result, -1, "after %d messages: %s", count.messages, strerror(errno));
	cr_assert_eq(count.messages, ONE_BY_ONE, "the end came after %d messages", count.messages);
	cr_assert_eq(count.handles, with_handles ? ONE_BY_ONE / WITH_HANDLE : 0);
	messenger_close(receiver);
	if (!hangs_up)
		messenger_close(sender);
}

Test(pause, handles_come_to_a_listener_that_takes_one_message_at_a_time)
{
	take_one_by_one(true, false);
}

Test(pause, all_that_was_sent_comes_before_the_end_to_a_listener_that_pauses)
{
	take_one_by_one(false, true);
}
