/*
 * Hostile children: a process that an attacker controls writes any bytes to its
 * channel, or nothing, or closes the channel. All messages of other processes still
 * arrive, in order; the master's memory and descriptors stay bounded; only the guilty
 * process is killed, and one log line says why.
 *
 * In every test the innocent processes exchange numbered messages (traffic.h) before,
 * during and after the attack. The hostile process is APP#1, and then the agent.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "traffic.h"

#include <fcntl.h>

/* A million frames are a million turns, and on a busy machine each of them waits. */
static void
be_very_patient(void)
{
	be_patient(8);
}

TestSuite(hostile, .init = be_very_patient, .timeout = 240);

/* In KiB: the master may keep one frame of a hostile child, and a queue up to its high
 * mark and one read more. (The largest frame for all apps has a copy in each app's queue,
 * which is twice as much.) */
enum { GROWTH = 6 * 1024 };

enum { MILLION = 1000000 };

/* ---- what a hostile child can do --------------------------------------------- */

/* Write all bytes, even if that takes long, unless the other end is gone. */
static void
put(const struct messenger *messenger, const void *bytes, size_t length)
{
	struct pollfd wait = {.fd = messenger->channel.descriptor, .events = POLLOUT};
	const char *next = bytes;
	ssize_t count;

	while (length > 0) {
		count = write(wait.fd, next, length);
		if (count > 0) {
			next += count;
			length -= (size_t)count;
		} else if (errno != EAGAIN || poll(&wait, 1, -1) == -1) {
			return;
		}
	}
}

/* Write all bytes; with the first byte go `count` handles, copies of stdout. */
static void
put_handles(const struct messenger *messenger, const void *bytes, size_t length, size_t count)
{
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(250 * sizeof(int))];
	} control;
	struct iovec part = {(void *)(uintptr_t)bytes, length};
	struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control};
	int handles[250];
	size_t i;

	for (i = 0; i < 250; i++)
		handles[i] = 1;
	memset(&control, 0, sizeof control);
	header.msg_controllen = CMSG_SPACE(count * sizeof(int));
	control.align.cmsg_level = SOL_SOCKET;
	control.align.cmsg_type = SCM_RIGHTS;
	control.align.cmsg_len = CMSG_LEN(count * sizeof(int));
	memcpy(CMSG_DATA(&control.align), handles, count * sizeof(int));
	sendmsg(messenger->channel.descriptor, &header, MSG_NOSIGNAL);
}

/* Make a frame, also from wrong arguments; returns its size. */
static size_t
make_frame(unsigned char *frame, int from, int to, pid_t pid, const char *action, const char *data)
{
	uint32_t action_length = (uint32_t)strlen(action), data_length = (uint32_t)strlen(data);
	uint32_t length = FRAME_HEADER - 4 + action_length + 1 + data_length + 1;
	uint32_t fields[2] = {length, (uint32_t)pid};
	int i, field;

	for (field = 0; field < 2; field++)
		for (i = 0; i < 4; i++)
			frame[(field == 0 ? FRAME_LENGTH : FRAME_RECEIVER_PID) + i] =
				(unsigned char)(fields[field] >> (24 - 8 * i));
	frame[FRAME_FROM] = (unsigned char)from;
	frame[FRAME_TO] = (unsigned char)to;
	frame[FRAME_FLAGS] = FRAME_HAS_DATA;
	frame[FRAME_ACTION_LENGTH] = (unsigned char)action_length;
	memcpy(frame + FRAME_HEADER, action, action_length + 1);
	memcpy(frame + FRAME_HEADER + action_length + 1, data, data_length + 1);
	return length + 4;
}

/* ---- lies: a process that tells one loses its channel and is killed ------------- */

#define GOOD_LENGTH "\0\0\0\14"
#define GOOD_PID "\x7f\xff\xff\xff"
#define GOOD_BODY                                                                                  \
	"x\0"                                                                                      \
	"1\0"
#define LIE(text) (text), sizeof(text) - 1

static const struct lie {
	const char *name, *bytes;
	size_t length;
} lies[] = {
	{"length 0", LIE("\0\0\0\0"
                         "\0\4\1\1" GOOD_PID GOOD_BODY)},
	{"length 1", LIE("\0\0\0\1"
                         "\0\4\1\1" GOOD_PID GOOD_BODY)},
	{"length less than its action", LIE("\0\0\0\12"
                                            "\0\4\1\1" GOOD_PID GOOD_BODY)},
	{"length of 4 GiB", LIE("\xff\xff\xff\xff"
                                "\0\4\1\1" GOOD_PID GOOD_BODY)},
	{"length of 2 GiB", LIE("\x7f\xff\xff\xff"
                                "\0\4\1\1" GOOD_PID GOOD_BODY)},
	{"one byte more than the limit", LIE("\0\x10\0\14"
                                             "\0\4\1\1" GOOD_PID GOOD_BODY)},
	{"from 5", LIE(GOOD_LENGTH "\5\4\1\1" GOOD_PID GOOD_BODY)},
	{"from 255", LIE(GOOD_LENGTH "\xff\4\1\1" GOOD_PID GOOD_BODY)},
	{"to 5", LIE(GOOD_LENGTH "\0\5\1\1" GOOD_PID GOOD_BODY)},
	{"to 255", LIE(GOOD_LENGTH "\0\xff\1\1" GOOD_PID GOOD_BODY)},
	{"an unknown flag", LIE(GOOD_LENGTH "\0\4\5\1" GOOD_PID GOOD_BODY)},
	{"every flag", LIE(GOOD_LENGTH "\0\4\xff\1" GOOD_PID GOOD_BODY)},
	{"data that is undefined", LIE(GOOD_LENGTH "\0\4\0\1" GOOD_PID GOOD_BODY)},
	{"an action longer than the frame", LIE(GOOD_LENGTH "\0\4\1\xff" GOOD_PID GOOD_BODY)},
	{"a negative pid", LIE(GOOD_LENGTH "\0\4\1\1"
                                           "\x80\0\0\0" GOOD_BODY)},
	{"pid -1", LIE(GOOD_LENGTH "\0\4\1\1"
                                   "\xff\xff\xff\xff" GOOD_BODY)},
	{"no end of the action", LIE(GOOD_LENGTH "\0\4\1\1" GOOD_PID "xx"
                                                 "1\0")},
	{"no end of the data", LIE(GOOD_LENGTH "\0\4\1\1" GOOD_PID "x\0"
                                               "11")},
	{"an action that ends early", LIE(GOOD_LENGTH "\0\4\1\2" GOOD_PID "\0x\0\0")},
	{"a handle that was not sent", LIE(GOOD_LENGTH "\0\4\3\1" GOOD_PID GOOD_BODY)},
};

enum { LIES = sizeof lies / sizeof lies[0] };

static void
tell_lie(struct messenger *messenger, int round)
{
	put(messenger, lies[round].bytes, lies[round].length);
}

static void
random_bytes(struct messenger *messenger, int round)
{
	unsigned char bytes[64 * 1024];
	uint32_t x = 2463534242U + (uint32_t)round;
	size_t i;

	for (i = 0; i < sizeof bytes; i++) {
		x ^= x << 13;
		x ^= x >> 17;
		x ^= x << 5;
		bytes[i] = (unsigned char)x;
	}
	put(messenger, bytes, sizeof bytes);
}

/* Handles, by round: 1: two for one frame; 2: a thousand; 3: with bytes that are no whole
 * frame; 4: with frames that announce none. */
static void
handles(struct messenger *messenger, int round)
{
	unsigned char frame[64];
	size_t size = make_frame(frame, 0, ROLE_APP, 0x7fffffff, "x", "1");
	int i;

	switch (round) {
	case 0:
		frame[FRAME_FLAGS] |= FRAME_HAS_HANDLE;
		put_handles(messenger, frame, size, 2);
		return;
	case 1:
		for (i = 0; i < 4; i++)
			put_handles(messenger, frame, size, 250);
		return;
	case 2:
		for (i = 0; i < 3; i++)
			put_handles(messenger, frame + i, 1, 1);
		return;
	default:
		for (i = 0; i < 1000; i++)
			put_handles(messenger, frame, size, 1);
	}
}

/* ---- messages that are allowed, but must not be believed ---------------------------- */

static const char *const reserved[] = {
	"agent-exit", "agent-start",       "app-exit",        "app-start", "egg-pids",
	"egg-ready",  "agent-worker-died", "app-worker-died", "listening", "realport"};

enum { RESERVED = sizeof reserved / sizeof reserved[0] };

/* Send each action to everybody, by role and by pid, a thousand times. `listening` and
 * `realport` are orders only for the master; for other receivers they are ordinary names. */
static void
utter_reserved(struct messenger *messenger, int round)
{
	unsigned char frame[128];
	int i, to, times;

	(void)round;
	for (times = 0; times < 1000; times++)
		for (i = 0; i < RESERVED; i++) {
			for (to = ROLE_MASTER; to <= (i < 8 ? ROLE_APP : ROLE_MASTER); to++)
				put(messenger, frame,
				    make_frame(frame, 0, to, 0, reserved[i], "[1]"));
			put(messenger, frame,
			    make_frame(frame, ROLE_MASTER, ROLE_APP, getppid(), reserved[i],
			               "[1]"));
		}
	report(messenger, "has attacked");
}

static void
million_reserved(struct messenger *messenger, int round)
{
	static unsigned char frames[64 * 1000];
	size_t size = 0;
	int i;

	(void)round;
	for (i = 0; i < 1000; i++)
		size += make_frame(frames + size, ROLE_MASTER, ROLE_APP, 0, "egg-ready", "{}");
	for (i = 0; i < MILLION / 1000; i++)
		put(messenger, frames, size);
	report(messenger, "has attacked");
}

static void
forge_from(struct messenger *messenger, int round)
{
	unsigned char frame[64];
	int from, to;

	(void)round;
	for (from = ROLE_NONE; from <= ROLE_APP; from++)
		for (to = ROLE_PARENT; to <= ROLE_APP; to++)
			put(messenger, frame, make_frame(frame, from, to, 0, "test-forged", "1"));
	report(messenger, "has attacked");
}

/* ---- floods, and frames that never end -------------------------------------------- */

static void
flood(struct messenger *messenger, int to, pid_t pid)
{
	static unsigned char frames[64 * 1000];
	size_t size = 0;
	int i;

	for (i = 0; i < 1000; i++)
		size += make_frame(frames + size, 0, to, pid, "x", "");
	for (i = 0; i < MILLION / 1000; i++)
		put(messenger, frames, size);
	report(messenger, "has attacked");
}

static void
flood_nobody(struct messenger *messenger, int round)
{
	(void)round;
	flood(messenger, ROLE_NONE, 0x7fffffff);
}

/* Flood the others, and read nothing meanwhile. */
static void
flood_others(struct messenger *messenger, int round)
{
	(void)round;
	flood(messenger, messenger_role(messenger) == ROLE_APP ? ROLE_AGENT : ROLE_APP, 0);
}

static void
flood_itself(struct messenger *messenger, int round)
{
	(void)round;
	flood(messenger, ROLE_NONE, getpid());
}

/* Stay alive and silent, and ignore SIGTERM. */
static void
stay(const struct messenger *messenger)
{
	signal(SIGTERM, SIG_IGN);
	report(messenger, "has attacked");
	for (;;)
		pause();
}

static void
never_end(struct messenger *messenger, int round)
{
	static unsigned char part[1000] = {0, 0x10, 0, 11, 0, ROLE_APP, FRAME_HAS_DATA, 1};

	(void)round;
	put(messenger, part, sizeof part);
	stay(messenger);
}

/* Write the largest valid frame, byte by byte. */
static void
drip(struct messenger *messenger, int round)
{
	static unsigned char frame[FRAME_MAX];
	static char data[MESSAGE_DATA_MAX + 1];
	size_t i, size;

	(void)round;
	memset(data, 'x', MESSAGE_DATA_MAX);
	size = make_frame(frame, 0, ROLE_APP, 0, "test-drip", data);
	for (i = 0; i < size; i++)
		put(messenger, frame + i, 1);
	report(messenger, "has attacked");
}

/* Send frames in which each field is as large as it may be. */
static void
extremes(struct messenger *messenger, int round)
{
	static unsigned char frame[FRAME_MAX];
	static char data[MESSAGE_DATA_MAX + 1], action[MESSAGE_ACTION_MAX + 1];

	(void)round;
	memset(data, 'x', MESSAGE_DATA_MAX);
	memset(action, 'y', MESSAGE_ACTION_MAX);
	put(messenger, frame, make_frame(frame, 4, 4, 0x7fffffff, action, data));
	put(messenger, frame, make_frame(frame, 4, 4, 0, action, data));
	put(messenger, frame, make_frame(frame, 0, 0, 0, "", ""));
	put(messenger, frame, make_frame(frame, 0, 1, 1, "", data));
	report(messenger, "has attacked");
}

/* ---- a channel that is no longer one ------------------------------------------------- */

static void
close_channel(struct messenger *messenger, int round)
{
	(void)round;
	close(messenger->channel.descriptor);
	stay(messenger);
}

static void
close_writing(struct messenger *messenger, int round)
{
	(void)round;
	shutdown(messenger->channel.descriptor, SHUT_WR);
	stay(messenger);
}

static void
close_reading(struct messenger *messenger, int round)
{
	(void)round;
	shutdown(messenger->channel.descriptor, SHUT_RD);
	stay(messenger);
}

/* ---- the processes -------------------------------------------------------------------- */

static const struct attack {
	const char *name;
	void (*run)(struct messenger *messenger, int round);
} attacks[] = {
	{"lie", tell_lie},
	{"random", random_bytes},
	{"handles", handles},
	{"reserved", utter_reserved},
	{"million-reserved", million_reserved},
	{"forge", forge_from},
	{"flood-nobody", flood_nobody},
	{"flood-others", flood_others},
	{"flood-itself", flood_itself},
	{"never-end", never_end},
	{"drip", drip},
	{"extremes", extremes},
	{"close", close_channel},
	{"shut-write", close_writing},
	{"shut-read", close_reading},
};

/* "NAME ROUND" */
static int
order_attack(struct messenger *messenger, const char *line)
{
	size_t i, length = strcspn(line, " ");

	for (i = 0; i < sizeof attacks / sizeof attacks[0]; i++)
		if (strlen(attacks[i].name) == length &&
		    memcmp(attacks[i].name, line, length) == 0) {
			attacks[i].run(messenger, atoi(order_rest(line)));
			return 0;
		}
	return -1;
}

static const struct order orders[] = {{NULL, order_attack}};

static int
on_told(struct messenger *messenger, const struct message *message, void *arg)
{
	(void)arg;
	report(messenger, "was told %s from %s", message->action, clutch_role_name(message->from));
	return 0;
}

static int
talk_or_attack(struct messenger *messenger, void *arg)
{
	int i;

	if (obey_orders(messenger, orders) == -1 || talk(messenger, arg) == -1 ||
	    messenger_on(messenger, "test-forged", on_told, NULL) == -1 ||
	    messenger_on(messenger, "test-drip", on_told, NULL) == -1)
		return -1;
	for (i = 0; i < RESERVED; i++)
		if (messenger_on(messenger, reserved[i], on_told, NULL) == -1)
			return -1;
	return 0;
}

/* ---- the stage --------------------------------------------------------------------------- */

struct stage {
	struct cluster *c;
	const char *role; /* of the hostile process: "app" or "agent" */
	int id;           /* the hostile process is the n-th one of its role */
	char who[24];
	long memory;
	int descriptors;
};

/* Senders and receivers while APP#1, or the agent, is hostile. */
static const struct pair {
	const char *from, *to;
} pairs[2][4] = {
	{{"APP#2", "APP#3"}, {"APP#3", "APP#2"}, {"APP#2", "AGENT#1"}, {"AGENT#1", "APP#3"}},
	{{"APP#2", "APP#3"}, {"APP#3", "APP#2"}, {"APP#1", "APP#2"}, {"APP#2", "APP#1"}},
};

static void
name_hostile(struct stage *stage, int id)
{
	stage->id = id;
	snprintf(stage->who, sizeof stage->who, "%s#%d",
	         strcmp(stage->role, "app") == 0 ? "APP" : "AGENT", id);
}

/* A cluster in which the innocent processes talk. With "local" there is no health check, which
 * would too often find the agent missing; but then apps are not replaced. */
static struct stage
open_stage(const char *role)
{
	bool is_agent = strcmp(role, "agent") == 0;
	struct stage stage = {.role = role};
	int i;

	stage.c = cluster_start(&(struct options){.agent = talk_or_attack,
	                                          .app = talk_or_attack,
	                                          .workers = 3,
	                                          .env = is_agent ? "local" : "prod",
	                                          .app_close_timeout = 500,
	                                          .agent_close_timeout = 500});
	name_hostile(&stage, 1);
	cluster_ready(stage.c);
	stage.memory = process_memory(stage.c->master);
	stage.descriptors = process_descriptors(stage.c->master);
	for (i = 0; i < 4; i++)
		say(stage.c, pairs[is_agent][i].from, 101 + i,
		    cluster_pid(stage.c, pairs[is_agent][i].to), 0, 100);
	for (i = 0; i < 4; i++)
		cluster_wait(stage.c, 0, " hears #%d from", 101 + i);
	return stage;
}

static bool
has_descriptors(struct cluster *c, void *arg)
{
	return process_descriptors(c->master) == *(const int *)arg;
}

/* The innocent processes go on for a while. In the end all messages must have come. */
static void
finish_traffic(struct stage *stage)
{
	bool is_agent = strcmp(stage->role, "agent") == 0;
	size_t mark = cluster_mark(stage->c);
	const char *finishes[4] = {"APP#2", "APP#3", is_agent ? "APP#1" : "AGENT#1", NULL};
	int i;

	for (i = 0; finishes[i] != NULL; i++)
		cluster_order(stage->c, finishes[i], "finish");
	for (i = 0; i < 4; i++)
		cluster_wait(stage->c, mark, " of #%d.", 101 + i);
	assert_nothing_bad(stage->c);
}

static void
close_stage(struct stage *stage, const char *what)
{
	char title[64];

	finish_traffic(stage);
	cluster_until(stage->c, has_descriptors, &stage->descriptors,
	              "the master to have as many descriptors as at first");
	snprintf(title, sizeof title, "%s by a hostile %s", what, stage->role);
	assert_memory(stage->c, title, stage->memory,
	              strcmp(what, "extremes") == 0 ? 2 * GROWTH : GROWTH);
	cluster_stop(stage->c);
}

static size_t
attack(struct stage *stage, const char *name, int round)
{
	size_t mark = cluster_mark(stage->c);
	char data[64];

	snprintf(data, sizeof data, "%s %d", name, round);
	cluster_order(stage->c, stage->who, data);
	return mark;
}

/* All processes but the hostile one still live. */
static void
assert_others_live(struct stage *stage, size_t mark)
{
	size_t died = cluster_count(stage->c, mark, " died (");

	died -= cluster_count(stage->c, mark, ":%s died (", stage->who);
	cr_assert_eq(died, 0, "an innocent process has died");
}

/* ---- violations: killed and replaced ----------------------------------------------------- */

static void
attack_and_be_killed(struct stage *stage, const char *name, int round)
{
	struct cluster *c = stage->c;
	size_t mark = attack(stage, name, round);

	cluster_wait(c, mark, "%s_worker#%d:%s broke the protocol: killed", stage->role, stage->id,
	             stage->who);
	cluster_wait(c, mark, ":%s died (code: null, signal: SIGKILL, broke the protocol)",
	             stage->who);
	assert_others_live(stage, mark);
	name_hostile(stage, strcmp(stage->role, "app") == 0 && stage->id == 1 ? 4 : stage->id + 1);
	cluster_wait(c, mark, ":%s started", stage->who);
	cr_assert_eq(cluster_count(c, mark, "broke the protocol: killed"), 1);
}

static void
break_the_protocol(const char *role)
{
	struct stage stage = open_stage(role);
	int round;

	for (round = 0; round < LIES; round++)
		attack_and_be_killed(&stage, "lie", round);
	for (round = 0; round < 3; round++)
		attack_and_be_killed(&stage, "random", round);
	for (round = 0; round < 4; round++)
		attack_and_be_killed(&stage, "handles", round);
	close_stage(&stage, "27 violations");
}

Test(hostile, an_app_that_breaks_the_protocol_alone_pays_for_it)
{
	break_the_protocol("app");
}

Test(hostile, an_agent_that_breaks_the_protocol_alone_pays_for_it)
{
	break_the_protocol("agent");
}

/* ---- lies that no process believes ----------------------------------------------------- */

/* The process attacks and lives on; a message to the process and one from it arrive. */
static size_t
attack_and_live(struct stage *stage, const char *name)
{
	size_t mark = attack(stage, name, 0);

	cluster_wait(stage->c, mark, ":%s has attacked", stage->who);
	say(stage->c, "APP#2", 201, cluster_pid(stage->c, stage->who), 100, 100);
	say(stage->c, stage->who, 202, cluster_pid(stage->c, "APP#2"), 100, 100);
	cluster_wait(stage->c, mark, ":%s heard #100 of #201.", stage->who);
	cluster_wait(stage->c, mark, ":APP#2 heard #100 of #202.");
	cr_assert_eq(cluster_count(stage->c, mark, " died ("), 0);
	cr_assert_eq(cluster_count(stage->c, mark, " disconnect"), 0);
	return mark;
}

static void
send_reserved(const char *role, const char *name)
{
	struct stage stage = open_stage(role);
	size_t mark = attack_and_live(&stage, name);

	cr_assert_eq(cluster_count(stage.c, mark, "%s_worker#1:%s may not send ", role, stage.who),
	             1);
	cr_assert_eq(cluster_count(stage.c, mark, " may not send "), 1);
	cr_assert_eq(cluster_count(stage.c, mark, " was told "), 0);
	cr_assert_eq(cluster_count(stage.c, mark, ":PARENT saw e"), 0);
	cr_assert_eq(cluster_count(stage.c, mark, ":PARENT saw a"), 0);
	cr_assert_eq(cluster_count(stage.c, mark, "_worker#"), 1,
	             "a line about a worker other than the refusal was logged");
	close_stage(&stage, name);
}

Test(hostile, an_app_that_sends_reserved_actions_is_refused_with_one_line)
{
	send_reserved("app", "reserved");
}

Test(hostile, an_agent_that_sends_reserved_actions_is_refused_with_one_line)
{
	send_reserved("agent", "reserved");
}

Test(hostile, a_million_reserved_actions_are_one_line)
{
	send_reserved("app", "million-reserved");
	send_reserved("agent", "million-reserved");
}

/* A process that claims another role has no success: each receiver is told the true role. */
static void
forge(const char *role)
{
	struct stage stage = open_stage(role);
	size_t mark = attack_and_live(&stage, "forge");

	cr_assert_eq(cluster_count(stage.c, mark, " was told test-forged from %s", role), 5 * 4);
	cr_assert_eq(cluster_count(stage.c, mark, " was told test-forged"), 5 * 4);
	cr_assert_eq(cluster_count(stage.c, mark, ":PARENT saw test-forged 1 from %s", role), 5);
	cr_assert_eq(cluster_count(stage.c, mark, ":PARENT saw test-forged"), 5);
	close_stage(&stage, "a forged from");
}

Test(hostile, a_forged_from_is_not_believed)
{
	forge("app");
	forge("agent");
}

/* ---- floods and crumbs ------------------------------------------------------------------- */

static void
flood_and_live(const char *role, const char *name)
{
	struct stage stage = open_stage(role);

	attack_and_live(&stage, name);
	close_stage(&stage, name);
}

Test(hostile, a_million_tiny_frames_to_nobody)
{
	flood_and_live("app", "flood-nobody");
	flood_and_live("agent", "flood-nobody");
}

Test(hostile, a_million_tiny_frames_to_others_without_reading)
{
	flood_and_live("app", "flood-others");
	flood_and_live("agent", "flood-others");
}

Test(hostile, the_extremes_of_every_field)
{
	flood_and_live("app", "extremes");
	flood_and_live("agent", "extremes");
}

/* The master keeps one incomplete frame, which is freed with its sender. */
static void
leave_a_frame_open(const char *role)
{
	struct stage stage = open_stage(role);
	size_t mark = attack(&stage, "never-end", 0);

	cluster_wait(stage.c, mark, ":%s has attacked", stage.who);
	finish_traffic(&stage);
	cr_assert_eq(cluster_count(stage.c, mark, " died ("), 0);
	assert_memory(stage.c, "a frame that never ends", stage.memory, GROWTH);
	cluster_signal(stage.c, stage.who, SIGKILL);
	cluster_wait(stage.c, mark, ":%s died (code: null, signal: SIGKILL)", stage.who);
	cluster_stop(stage.c);
}

Test(hostile, a_frame_that_never_ends)
{
	leave_a_frame_open("app");
	leave_a_frame_open("agent");
}

/* A byte costs the master at most a turn of its loop, about 2 us. If the master copied the earlier
 * bytes for each byte, this test would take minutes. */
static void
crumble(const char *role)
{
	struct stage stage = open_stage(role);
	int64_t before = process_processor_time(stage.c->master), used;
	size_t mark = attack(&stage, "drip", 0);

	cluster_wait(stage.c, mark, ":APP#2 was told test-drip from %s", role);
	used = process_processor_time(stage.c->master) - before;
	fprintf(stderr, "the master's processor time for 1 MiB byte by byte from an %s: %lld ms\n",
	        role, (long long)used);
	cr_assert(used < 10000LL * time_scale(), "1 MiB byte by byte cost the master %lld ms",
	          (long long)used);
	cr_assert_eq(cluster_count(stage.c, mark, " died ("), 0);
	close_stage(&stage, "1 MiB byte by byte");
}

Test(hostile, a_large_frame_byte_by_byte)
{
	crumble("app");
	crumble("agent");
}

/* A process floods itself and does not read. Its queue is full, so the master does not read
 * from it either, and kills the process when its queue has been stuck for too long. */
static void
flood_self(const char *role, const char *next)
{
	struct stage stage = open_stage(role);
	size_t mark = attack(&stage, "flood-itself", 0);

	cluster_wait(stage.c, mark, "%s_worker#1:%s is stuck, its queue is full: killed", role,
	             stage.who);
	cluster_wait(stage.c, mark, ":%s died (code: null, signal: SIGKILL, is stuck", stage.who);
	assert_others_live(&stage, mark);
	if (next != NULL)
		cluster_wait(stage.c, mark, ":%s started", next);
	cr_assert_eq(cluster_count(stage.c, mark, "is stuck, its queue is full: killed"), 1);
	close_stage(&stage, "a million tiny frames to itself");
}

Test(hostile, an_app_that_floods_itself)
{
	flood_self("app", "APP#4");
}

Test(hostile, an_agent_that_floods_itself)
{
	flood_self("agent", "AGENT#2");
}

/* ---- a channel that is closed, by a process that lives ----------------------------------- */

/* An app that closes its channel may have connections to finish. So it has
 * CLUTCH_GRACEFUL_TIMEOUT and its close timeout, and its replacement starts at once. */
static void
app_closes(const char *name)
{
	struct stage stage = open_stage("app");
	size_t mark = attack(&stage, name, 0);
	int64_t since = clutch_now();

	cluster_wait(stage.c, mark, "app_worker#1:APP#1 disconnect");
	cluster_wait(stage.c, mark, "app_worker#4:APP#4 started");
	cluster_wait(stage.c, mark,
	             ":APP#1 died (code: null, signal: SIGKILL, did not leave in "
	             "time)");
	cr_assert(clutch_now() - since >= CLUTCH_GRACEFUL_TIMEOUT,
	          "the app was killed before its time to leave was over");
	assert_others_live(&stage, mark);
	cr_assert_eq(cluster_count(stage.c, mark, "disconnect"), 1);
	close_stage(&stage, name);
}

Test(hostile, an_app_that_closes_its_channel_and_stays)
{
	app_closes("close");
}

Test(hostile, an_app_that_shuts_its_writing_half_and_stays)
{
	app_closes("shut-write");
}

static void
agent_closes(const char *name)
{
	struct stage stage = open_stage("agent");
	size_t mark = attack(&stage, name, 0);

	cluster_wait(stage.c, mark,
	             ":AGENT#1 died (code: null, signal: SIGKILL, did not leave in "
	             "time)");
	cluster_wait(stage.c, mark, ":AGENT#2 started");
	assert_others_live(&stage, mark);
	close_stage(&stage, name);
}

Test(hostile, an_agent_that_closes_its_channel_and_stays)
{
	agent_closes("close");
}

Test(hostile, an_agent_that_shuts_its_writing_half_and_stays)
{
	agent_closes("shut-write");
}

/* The process shuts down reading. The master notices when it next writes, and replaces the
 * process, which would otherwise stay in the cluster without getting a message. */
static void
shut_reading(const char *role, const char *next)
{
	struct stage stage = open_stage(role);
	size_t mark = attack(&stage, "shut-read", 0);

	cluster_wait(stage.c, mark, ":%s has attacked", stage.who);
	say(stage.c, "APP#2", 201, cluster_pid(stage.c, stage.who), 100, 100);
	cluster_wait(stage.c, mark, ":%s died (code: null, signal: SIGKILL, ", stage.who);
	cluster_wait(stage.c, mark, ":%s started", next);
	assert_others_live(&stage, mark);
	close_stage(&stage, "shut-read");
}

Test(hostile, an_app_that_shuts_its_reading_half_is_replaced)
{
	shut_reading("app", "APP#4");
}

Test(hostile, an_agent_that_shuts_its_reading_half_is_replaced)
{
	shut_reading("agent", "AGENT#2");
}
