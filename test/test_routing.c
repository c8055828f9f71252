/*
 * The master's side of the messenger: which process receives which message.
 *
 * The expected receivers are those of the real egg-cluster 2.5.0: golden/routing.tsv has
 * all 980 combinations of a parent, an agent, from, to and receiverPid, and
 * golden/routing_extra.tsv the odd inputs. Each row gets a fresh master.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "world.h"

/* A role that does not exist: volatile, so that the compiler does not know the value. */
static volatile int bogus_number = ROLE_APP + 5;
#define BOGUS ((enum role)bogus_number)

/* ---- the world: a master's view, and the far ends ---------------------------------------- */

TestSuite(routing, .init = open_full_world, .fini = close_world);

/* Make a slot that has never had a process, as new_worker does (D23). */
static void
unfork(enum who who)
{
	struct process *next = processes[who].next;

	channel_close(&processes[who].channel);
	memset(&processes[who], 0, sizeof processes[who]);
	channel_init(&processes[who].channel, CHANNEL_QUEUE_MAX);
	processes[who].role = ROLE_APP;
	processes[who].slot = (int)who - APP1;
	processes[who].next = next;
}

/* Give a slot a channel, as fork_process does: the messages that wait stay. */
static void
fork_into(enum who who)
{
	int pair[2];

	cr_assert_eq(channel_pair(pair), 0);
	cr_assert_eq(channel_attach(&processes[who].channel, pair[0]), 0);
	close(ends[who]);
	ends[who] = pair[1];
	processes[who].channel.limit = 0;
	processes[who].worker_id = cast[who].pid;
	processes[who].state = STATE_ONLINE;
}

/* ---- which process got it? --------------------------------------------------------------- */

struct expectation {
	enum role from, to;
	bool gets[PROCESSES];
	bool emits;
	uint64_t undeliverable;
};

/* The deliveries of a row: "APP1 APP2", "MASTER:emit(x)", "nobody". */
static void
parse_deliveries(const char *deliveries, struct expectation *expected)
{
	char words[256], *word, *rest = words;
	int who;

	snprintf(words, sizeof words, "%s", deliveries);
	memset(expected->gets, 0, sizeof expected->gets);
	expected->emits = false;
	while ((word = strsep(&rest, " ")) != NULL) {
		for (who = 0; who < PROCESSES; who++)
			if (strcmp(word, cast[who].name) == 0)
				expected->gets[who] = true;
		if (strncmp(word, "MASTER:emit(", 12) == 0)
			expected->emits = true;
	}
}

static bool
is_nobody(const struct expectation *expected)
{
	int who, receivers = expected->emits;

	for (who = 0; who < PROCESSES; who++)
		receivers += expected->gets[who];
	return receivers == 0;
}

/* Expect the bytes of the message, with from and to stamped. */
static void
check_frame(const struct inbox *inbox, const struct message *sent,
            const struct expectation *expected, const char *name)
{
	struct message stamped = *sent;
	unsigned char frame[512];

	stamped.from = expected->from;
	stamped.to = expected->to;
	cr_assert_eq(inbox->length, make_frame(frame, &stamped), "%s: %s got %zu bytes", context,
	             name, inbox->length);
	cr_assert_eq(inbox->bytes[FRAME_FROM], frame[FRAME_FROM], "%s: %s reads from %d", context,
	             name, inbox->bytes[FRAME_FROM]);
	cr_assert_eq(inbox->bytes[FRAME_TO], frame[FRAME_TO], "%s: %s reads to %d", context, name,
	             inbox->bytes[FRAME_TO]);
	cr_assert_eq(memcmp(inbox->bytes, frame, inbox->length), 0, "%s: %s got other bytes",
	             context, name);
}

static void
check_emitted(const struct message *sent, const struct expectation *expected)
{
	const struct message *message = &emitted.message;

	cr_assert_eq(emitted.count, expected->emits, "%s: emitted %zu times", context,
	             emitted.count);
	if (!expected->emits)
		return;
	cr_assert_eq(message->from, expected->from, "%s: emit reads from %d", context,
	             (int)message->from);
	cr_assert_eq(message->to, expected->to, "%s: emit reads to %d", context, (int)message->to);
	cr_assert_eq(message->receiver_pid, sent->receiver_pid, "%s", context);
	cr_assert_str_eq(message->action != NULL ? message->action : "",
	                 sent->action != NULL ? sent->action : "", "%s", context);
	cr_assert_eq(message->data_length, sent->data_length, "%s", context);
	cr_assert_eq(message->data == NULL, sent->data == NULL, "%s", context);
	if (sent->data != NULL)
		cr_assert_str_eq(message->data, sent->data, "%s", context);
}

/* The processes that should have the message have it once; no other process has anything. */
static void
check_deliveries(const struct message *sent, const struct expectation *expected)
{
	struct inbox inbox;
	size_t count;
	int who;

	for (who = 0; who < PROCESSES; who++) {
		take((enum who)who, &inbox);
		count = count_frames(&inbox);
		cr_assert_eq(count, expected->gets[who], "%s: %s received %zu", context,
		             cast[who].name, count);
		if (count == 1)
			check_frame(&inbox, sent, expected, cast[who].name);
	}
	check_emitted(sent, expected);
	cr_assert_eq(messenger.undeliverable, expected->undeliverable, "%s: undeliverable: %d",
	             context, (int)messenger.undeliverable);
}

/* The same for a test that names the receivers in words. */
static void
expect(const struct message *sent, enum role from, enum role to, const char *deliveries)
{
	struct expectation expected = {.from = from, .to = to};

	parse_deliveries(deliveries, &expected);
	expected.undeliverable = is_nobody(&expected) && from != ROLE_MASTER;
	check_deliveries(sent, &expected);
}

/* ---- golden/routing.tsv ------------------------------------------------------------------ */

struct row {
	int line;
	bool has_parent, has_agent;
	char *from, *to, *receiver_pid, *final_from, *final_to, *deliveries;
};

static struct row rows[ROWS + 1];
static size_t row_count;

/* Tests run in the root of the project, or a variable says where the root is. */
static FILE *
open_golden(const char *name)
{
	const char *root = getenv("TEST_ROOT");
	char path[1024];
	FILE *file;

	snprintf(path, sizeof path, "test/golden/%s", name);
	file = fopen(path, "r");
	if (file == NULL && root != NULL) {
		snprintf(path, sizeof path, "%s/test/golden/%s", root, name);
		file = fopen(path, "r");
	}
	cr_assert_not_null(file, "%s: %s (TEST_ROOT?)", path, strerror(errno));
	return file;
}

/* The next line without its newline; NULL at the end of the file. exit(3) frees the line. */
static char *
next_line(FILE *file)
{
	char *line = NULL;
	size_t size = 0;
	ssize_t length = getline(&line, &size, file);

	if (length == -1) {
		free(line);
		return NULL;
	}
	line[strcspn(line, "\r\n")] = '\0';
	return line;
}

static void
parse_row(char *text, struct row *row)
{
	char *columns[8], *rest = text;
	size_t i;

	for (i = 0; i < 8; i++) {
		columns[i] = strsep(&rest, "\t");
		cr_assert_not_null(columns[i], "routing.tsv:%d has %zu columns", row->line, i);
	}
	cr_assert_null(rest, "routing.tsv:%d has more columns", row->line);
	row->has_parent = strcmp(columns[0], "true") == 0;
	row->has_agent = strcmp(columns[1], "true") == 0;
	row->from = columns[2];
	row->to = columns[3];
	row->receiver_pid = columns[4];
	row->final_from = columns[5];
	row->final_to = columns[6];
	row->deliveries = columns[7];
}

static void
read_rows(void)
{
	FILE *file = open_golden("routing.tsv");
	char *line = next_line(file);

	cr_assert_str_eq(line, "hasParent\tagentPresent\tfrom\tto\treceiverPid\tfinal_from\t"
	                       "final_to\tdeliveries");
	free(line);
	row_count = 0;
	while ((line = next_line(file)) != NULL) {
		cr_assert_lt(row_count, ROWS, "routing.tsv has more rows");
		rows[row_count].line = (int)row_count + 2;
		parse_row(line, &rows[row_count++]);
	}
	fclose(file);
	cr_assert_eq(row_count, ROWS);
}

static void
free_rows(void)
{
	static const char *const lengths[] = {"false", "true"};
	struct row *row;

	/* `from` is the third column of the line that was allocated */
	for (row = rows; row < rows + row_count; row++)
		free(row->from - strlen(lengths[row->has_parent]) - 1 -
		     strlen(lengths[row->has_agent]) - 1);
	row_count = 0;
}

/* In C an absent action and an empty one, JavaScript's other false value, are the same. */
static enum role
parse_role(const char *text)
{
	static const char *const names[] = {"absent", "master", "parent", "agent", "app"};
	int role;

	if (strcmp(text, "\"\"") == 0)
		return ROLE_NONE;
	if (strcmp(text, "bogus") == 0)
		return BOGUS;
	for (role = ROLE_NONE; role <= ROLE_APP; role++)
		if (strcmp(text, names[role]) == 0)
			return (enum role)role;
	cr_assert_fail("no role: %s", text);
	return ROLE_NONE;
}

static pid_t
parse_pid(const char *text)
{
	static const struct {
		const char *name;
		pid_t pid;
	} names[] = {
		{"absent", 0}, {"\"\"", 0},   {"MASTER", MASTER_PID},     {"AGENT", 200},
		{"APP1", 301}, {"APP2", 302}, {"APP3_DISCONNECTED", 303}, {"UNKNOWN", UNKNOWN_PID}};
	size_t i;

	for (i = 0; i < sizeof names / sizeof names[0]; i++)
		if (strcmp(text, names[i].name) == 0)
			return names[i].pid;
	cr_assert_fail("no pid: %s", text);
	return 0;
}

static bool
throws(const struct row *row)
{
	return strncmp(row->deliveries, "THROWS ", 7) == 0;
}

/*
 * D1: egg's result if egg skipped an absent agent. Other rows show this result: those in which
 * the agent is there and the message is for another process. The pid of the dead agent is
 * then like any other pid that no process has.
 */
static const struct row *
twin_of(const struct row *row)
{
	const char *pid = strcmp(row->receiver_pid, "AGENT") == 0 ? "UNKNOWN" : row->receiver_pid;
	const struct row *twin;

	for (twin = rows; twin < rows + row_count; twin++)
		if (twin->has_parent == row->has_parent && twin->has_agent &&
		    strcmp(twin->from, row->from) == 0 && strcmp(twin->to, row->to) == 0 &&
		    strcmp(twin->receiver_pid, pid) == 0)
			return twin;
	cr_assert_fail("routing.tsv:%d has no twin with an agent", row->line);
	return row;
}

static void
expectation_of(const struct row *row, struct expectation *expected)
{
	const struct row *recorded = throws(row) ? twin_of(row) : row;

	cr_assert_not(throws(recorded),
	              "egg throws in routing.tsv:%d, which should be a row without a throw",
	              recorded->line);
	expected->from = parse_role(recorded->final_from);
	expected->to = parse_role(recorded->final_to);
	parse_deliveries(recorded->deliveries, expected);
	/* D26: a message without a receiver is counted, unless the master has sent it */
	expected->undeliverable = is_nobody(expected) && expected->from != ROLE_MASTER;
}

/* A fresh world for a row, and its message. */
static struct message
begin_row(const struct row *row)
{
	close_world();
	open_world(row->has_parent, row->has_agent);
	snprintf(context, sizeof context,
	         "routing.tsv:%d: parent %d, agent %d, %s -> %s, receiverPid %s: %s", row->line,
	         row->has_parent, row->has_agent, row->from, row->to, row->receiver_pid,
	         row->deliveries);
	return compose(parse_role(row->from), parse_role(row->to), parse_pid(row->receiver_pid));
}

static void
check_struct(const struct message *data, const struct expectation *expected)
{
	cr_assert_eq(data->from, expected->from, "%s: from became %d", context, (int)data->from);
	cr_assert_eq(data->to, expected->to, "%s: to became %d", context, (int)data->to);
}

static void
check_row_sent(const struct row *row)
{
	struct message sent = begin_row(row), data = sent;
	struct expectation expected;

	expectation_of(row, &expected);
	master_messenger_send(&messenger, &data);
	check_struct(&data, &expected);
	check_deliveries(&sent, &expected);
}

Test(routing, every_row)
{
	size_t thrown = 0, ran;

	read_rows();
	for (ran = 0; ran < row_count; ran++) {
		check_row_sent(&rows[ran]);
		thrown += throws(&rows[ran]);
	}
	cr_assert_eq(ran, ROWS);
	cr_assert_eq(thrown, ROWS_THROWN);
	free_rows();
}

/* D1 once more, written by hand, because the test above takes it from egg's rows. */
Test(routing, while_the_agent_is_dead_the_pid_decides)
{
	static const struct {
		pid_t pid;
		const char *deliveries;
	} cases[] = {{200, "nobody"},
	             {301, "APP1"},
	             {302, "APP2"},
	             {303, "nobody"},
	             {UNKNOWN_PID, "nobody"}};
	struct message sent, data;
	size_t i;

	for (i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		close_world();
		open_world(true, false);
		data = sent = compose(ROLE_APP, ROLE_AGENT, cases[i].pid);
		master_messenger_send(&messenger, &data);
		expect(&sent, ROLE_APP, ROLE_APP, cases[i].deliveries);
	}
}

/* The process that sends the message of a row. */
static enum who
speaker_of(const struct row *row)
{
	enum role role = parse_role(row->from);

	return role == ROLE_PARENT ? PARENT : role == ROLE_AGENT ? AGENT : APP1;
}

/* The message comes over a channel, and claims to be from the master. */
static void
check_row_heard(const struct row *row)
{
	struct message sent = begin_row(row), data;
	struct expectation expected;

	expectation_of(row, &expected);
	sent.from = ROLE_MASTER;
	data = sent;
	relay(speaker_of(row), &data);
	check_struct(&data, &expected);
	check_deliveries(&sent, &expected);
}

/* A frame cannot name a role that does not exist. */
static void
check_row_refused(const struct row *row)
{
	struct message data = begin_row(row);
	enum who speaker = speaker_of(row);
	unsigned char frame[512];

	put_on_wire(speaker, frame, make_frame(frame, &data), -1);
	cr_assert_eq(hear(speaker, &data), -1, "%s: the frame was taken", context);
}

Test(routing, every_row_over_a_channel)
{
	size_t i, heard = 0, refused = 0;

	read_rows();
	for (i = 0; i < row_count; i++) {
		if (parse_role(rows[i].from) <= ROLE_MASTER)
			continue;
		if (parse_role(rows[i].to) == BOGUS) {
			check_row_refused(&rows[i]);
			refused++;
		} else {
			check_row_heard(&rows[i]);
			heard++;
		}
	}
	cr_assert_eq(refused, ROWS_HEARD / 7);
	cr_assert_eq(heard + refused, ROWS_HEARD);
	free_rows();
}

/* The same rows where the agent's slot is there, and no process is in it, as in a real
 * master. One thing differs: messages of others to the agent wait (D24). */
static bool
check_row_with_empty_slot(const struct row *row)
{
	struct message sent = begin_row(row), data = sent;
	struct expectation expected;
	struct inbox inbox;
	bool waits;

	kill_agent();
	expectation_of(row, &expected);
	waits = expected.to == ROLE_AGENT && expected.from != ROLE_MASTER;
	expected.undeliverable = waits ? 0 : expected.undeliverable;
	master_messenger_send(&messenger, &data);
	check_struct(&data, &expected);
	check_deliveries(&sent, &expected);
	fork_into(AGENT);
	take(AGENT, &inbox);
	cr_assert_eq(count_frames(&inbox), waits, "%s: the next agent received %zu", context,
	             count_frames(&inbox));
	if (waits)
		check_frame(&inbox, &sent, &expected, "the next agent");
	return waits;
}

Test(routing, every_row_with_an_empty_slot_for_the_agent)
{
	size_t i, ran = 0, waited = 0;

	read_rows();
	for (i = 0; i < row_count; i++) {
		if (rows[i].has_agent)
			continue;
		waited += check_row_with_empty_slot(&rows[i]);
		ran++;
	}
	cr_assert_eq(ran, ROWS_WITHOUT_AGENT);
	/* for each state of the parent: three senders to `agent`, and an app to the
	 * two empty values of `to`; each with the two values for no pid */
	cr_assert_eq(waited, 2 * (3 + 2) * 2);
	free_rows();
}

/* ---- golden/routing_extra.tsv ------------------------------------------------------------ */

/* One odd input. `why_not` says why C cannot have this input; otherwise a message (from
 * `speaker` over a channel, if there is a speaker) or a function tests it. */
struct extra {
	const char *name;
	const char *why_not;
	void (*test)(const char *recorded);
	void (*before)(void);
	bool heard;
	enum who speaker;
	enum role from, to, final_from, final_to;
	pid_t receiver_pid;
	const char *action, *data;
	const char *expected; /* NULL: what egg did */
};

static void
app2_is_online(void)
{
	processes[APP2].state = STATE_ONLINE;
}

static void
apps_are_dead(void)
{
	processes[APP1].state = processes[APP2].state = STATE_DEAD;
}

static void
no_parent(void)
{
	manager.parent = NULL;
}

static void
no_workers(void)
{
	manager.workers = NULL;
}

/* "both", "APP", and every other word that is no role. */
static void
test_unknown_roles(const char *recorded)
{
	static const int numbers[] = {-1, ROLE_APP + 1, 64, 255, 256 + ROLE_APP};
	struct message sent, data;
	size_t i;

	for (i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
		bogus_number = numbers[i];
		messenger.undeliverable = 0;
		data = sent = compose(ROLE_APP, BOGUS, 0);
		master_messenger_send(&messenger, &data);
		cr_assert_eq((int)data.to, numbers[i]);
		expect(&sent, ROLE_APP, BOGUS, recorded);
	}
}

static void
test_unknown_sender(const char *recorded)
{
	struct message sent = compose(BOGUS, ROLE_NONE, 0), data = sent;

	master_messenger_send(&messenger, &data);
	expect(&sent, BOGUS, ROLE_NONE, recorded);
}

/* send([]): an object without any property. */
static void
test_zeros(const char *recorded)
{
	struct message sent = {.handle = -1}, data = sent;

	master_messenger_send(&messenger, &data);
	expect(&sent, ROLE_MASTER, ROLE_NONE, recorded);
}

/* Bytes of a parent that are no frame: D2. */
static void
test_not_a_frame(const char *recorded)
{
	static const char *const junk[] = {"a string, for instance", "\0\0\0\0null\0\0\0\0\0\0\0",
	                                   "\7\7\7\7\7\7\7\7\7\7\7\7"};
	struct message data;
	size_t i;

	cr_assert_eq(strncmp(recorded, "THROWS ", 7), 0);
	for (i = 0; i < sizeof junk / sizeof junk[0]; i++) {
		close_world();
		open_full_world();
		put_on_wire(PARENT, junk[i], FRAME_HEADER, -1);
		cr_assert_eq(hear(PARENT, &data), -1, "junk %zu was taken for a frame", i);
		data = compose(ROLE_NONE, ROLE_NONE, 0);
		expect(&data, ROLE_MASTER, ROLE_NONE, "nobody");
	}
}

/* D23: a place has no process yet. A message of another process waits there. */
static void
test_state_none(const char *recorded)
{
	struct message sent = compose(ROLE_AGENT, ROLE_APP, 0), data = sent;

	unfork(APP1);
	unfork(APP2);
	master_messenger_send(&messenger, &data);
	cr_assert_gt(channel_pending(&processes[APP1].channel), 0);
	cr_assert_gt(channel_pending(&processes[APP2].channel), 0);
	fork_into(APP1);
	fork_into(APP2);
	expect(&sent, ROLE_AGENT, ROLE_APP, recorded);
}

/* The order of deliveries: each receiver gets a duplicate of the handle. The system gives
 * the lowest number that is free, so the numbers rise. */
static void
test_order(const char *recorded)
{
	struct message data = compose(ROLE_AGENT, ROLE_APP, 0);
	const struct channel *first = &processes[APP2].channel, *second = &processes[APP1].channel;

	cr_assert_str_eq(recorded, "APP2 APP1");
	data.handle = STDERR_FILENO;
	remove_worker(&processes[APP1]);
	add_worker(&processes[APP1]);
	master_messenger_send(&messenger, &data);
	cr_assert_eq(first->waiting_count, 1);
	cr_assert_eq(second->waiting_count, 1);
	cr_assert_lt(first->waiting[0].descriptor, second->waiting[0].descriptor);
}

/* sendmessage throws nothing: the message fails for this one receiver. */
static void
test_broken_receiver(const char *recorded)
{
	struct message sent = compose(ROLE_AGENT, ROLE_APP, 0), data = sent;

	cr_assert_eq(strncmp(recorded, "THROWS ", 7), 0);
	close(ends[APP1]);
	ends[APP1] = -1;
	cr_assert_eq(sendmessage(&processes[APP1].channel, &data), 0);
	cr_assert_eq(channel_flush(&processes[APP1].channel), PEER_GONE);
	master_messenger_send(&messenger, &data);
	expect(&sent, ROLE_AGENT, ROLE_APP, "APP2");
}

/* The same bytes reach every receiver; the next message does not spoil them. */
static void
test_same_bytes(const char *recorded)
{
	struct message data = compose(ROLE_NONE, ROLE_APP, 0);
	struct inbox one, two;

	cr_assert_str_eq(recorded, "APP1 APP2 same=true");
	relay(AGENT, &data);
	take(APP1, &one);
	take(APP2, &two);
	cr_assert_eq(count_frames(&one), 1);
	cr_assert_eq(one.length, two.length);
	cr_assert_eq(memcmp(one.bytes, two.bytes, one.length), 0);
}

/* messenger_broadcast in an app, and the master relays the two messages. */
static void
test_broadcast(const char *recorded)
{
	struct messenger *app = messenger_open(dup(ends[APP1]), ROLE_APP);
	struct message message;
	struct inbox inbox;
	enum role to[] = {ROLE_APP, ROLE_AGENT};
	size_t i = 0;
	int who;

	cr_assert_str_eq(recorded, "APP1 APP2 AGENT");
	cr_assert_eq(messenger_broadcast(app, "x", NULL), 0);
	cr_assert_eq(channel_flush(&app->channel), PEER_ALIVE);
	cr_assert_eq(channel_read(&processes[APP1].channel), PEER_ALIVE);
	while (channel_next(&processes[APP1].channel, &message) == 1) {
		cr_assert_lt(i, 2);
		cr_assert_eq(message.to, to[i++]);
		master_messenger_receive(&messenger, &processes[APP1], &message);
	}
	cr_assert_eq(i, 2);
	for (who = 0; who < PROCESSES; who++) {
		take((enum who)who, &inbox);
		cr_assert_eq(count_frames(&inbox), who == AGENT || who == APP1 || who == APP2);
	}
	messenger_close(app);
}

static const char no_strings[] = "receiver_pid is a number: there is no other way to write it";
static const char typed[] = "the compiler takes nothing but a struct message";

static const struct extra extras[] = {
	{"receiverPid = APP2 (online, not yet listening)", .before = app2_is_online,
         .from = ROLE_AGENT, .receiver_pid = 302, .final_from = ROLE_AGENT, .final_to = ROLE_APP},
	{"receiverPid = number (APP1 as 301), not string", .why_not = no_strings},
	{"receiverPid = number (master pid)", .why_not = no_strings},
	{"receiverPid = number (agent pid)", .why_not = no_strings},
	{"receiverPid = number 0", .from = ROLE_APP, .final_from = ROLE_APP,
         .final_to = ROLE_AGENT},
	{"receiverPid = \" 301\" (space)", .why_not = no_strings},
	{"receiverPid = \"0301\"", .why_not = no_strings},
	{"to = \"APP\" (upper case)", .test = test_unknown_roles},
	{"to = \"both\"", .test = test_unknown_roles},
	{"to = null", .from = ROLE_AGENT, .final_from = ROLE_AGENT, .final_to = ROLE_APP},
	{"to = 0", .from = ROLE_APP, .final_from = ROLE_APP, .final_to = ROLE_AGENT},
	{"from = \"bogus\", to absent", .test = test_unknown_sender},
	{"from = \"\" (falsy), to absent", .final_from = ROLE_MASTER},
	{"to = master, action absent", .from = ROLE_APP, .to = ROLE_MASTER, .action = NULL,
         .final_from = ROLE_APP, .final_to = ROLE_MASTER},
	{"to = master, action = \"error\", data = object", .from = ROLE_APP, .to = ROLE_MASTER,
         .action = "error", .data = "{\"a\":1}", .final_from = ROLE_APP, .final_to = ROLE_MASTER,
         .expected = "MASTER:emit(error)"}, /* D6 */
	{"to = master, action = \"error\", data absent", .from = ROLE_APP, .to = ROLE_MASTER,
         .action = "error", .final_from = ROLE_APP, .final_to = ROLE_MASTER,
         .expected = "MASTER:emit(error)"}, /* D6 */
	{"to = app, action absent", .from = ROLE_AGENT, .to = ROLE_APP, .final_from = ROLE_AGENT,
         .final_to = ROLE_APP},
	{"send(null)", .why_not = "a null pointer is the caller's own fault, as the contract says"},
	{"send(\"string\")", .why_not = typed},
	{"send([]) (array)", .test = test_zeros},
	{"parent channel: process.emit(\"message\", \"a string\")", .test = test_not_a_frame},
	{"parent channel: process.emit(\"message\", null)", .test = test_not_a_frame},
	{"parent channel: process.emit(\"message\", 7)", .test = test_not_a_frame},
	{"parent channel: {action} (no to)", .heard = true, .speaker = PARENT, .action = "x",
         .final_from = ROLE_PARENT, .final_to = ROLE_MASTER},
	{"parent channel: spoofed {from:\"agent\", action} (no to)", .heard = true,
         .speaker = PARENT, .from = ROLE_AGENT, .action = "x", .final_from = ROLE_PARENT,
         .final_to = ROLE_MASTER},
	{"parent channel: {to:\"parent\"} (echo)", .heard = true, .speaker = PARENT,
         .to = ROLE_PARENT, .action = "x", .final_from = ROLE_PARENT, .final_to = ROLE_PARENT},
	{"parent channel closed (process \"disconnect\") then to=parent", .before = no_parent,
         .from = ROLE_APP, .to = ROLE_PARENT, .final_from = ROLE_APP, .final_to = ROLE_PARENT},
	{"no workers registered, to=app", .before = no_workers, .from = ROLE_AGENT, .to = ROLE_APP,
         .final_from = ROLE_AGENT, .final_to = ROLE_APP},
	{"worker state \"dead\" but still registered, to=app", .before = apps_are_dead,
         .from = ROLE_AGENT, .to = ROLE_APP, .final_from = ROLE_AGENT, .final_to = ROLE_APP},
	{"worker state \"none\", to=app", .test = test_state_none},
	{"order of app deliveries = order of registration (re-register APP1 last)",
         .test = test_order},
	{"app.send() throws for APP1: do later apps still get it?", .test = test_broken_receiver},
	{"the same object is handed to every receiver (no copy)", .test = test_same_bytes},
	{"broadcast = two messages {to:app} then {to:agent} from app", .test = test_broadcast},
};

enum { EXTRAS = sizeof extras / sizeof extras[0] };

static void
check_extra(const struct extra *extra, const char *recorded)
{
	struct message sent = compose(extra->from, extra->to, extra->receiver_pid), data;

	sent.action = extra->action;
	sent.data = extra->data;
	sent.data_length = sent.data != NULL ? strlen(sent.data) : 0;
	data = sent;
	if (extra->before != NULL)
		extra->before();
	if (extra->heard)
		relay(extra->speaker, &data);
	else
		master_messenger_send(&messenger, &data);
	cr_assert_eq(data.from, extra->final_from, "%s: `from` became %d", context, (int)data.from);
	cr_assert_eq(data.to, extra->final_to, "%s: `to` became %d", context, (int)data.to);
	expect(&sent, extra->final_from, extra->final_to,
	       extra->expected != NULL ? extra->expected : recorded);
}

/* Each row has its place in the table, and each place has its row. */
static void
check_extra_row(char *line, bool *seen)
{
	char *recorded = strchr(line, '\t');
	size_t i;

	cr_assert_not_null(recorded, "no tab: %s", line);
	*recorded++ = '\0';
	for (i = 0; i < EXTRAS && strcmp(extras[i].name, line) != 0; i++)
		;
	cr_assert_lt(i, EXTRAS, "neither tested nor excused: %s", line);
	cr_assert_not(seen[i], "twice: %s", line);
	seen[i] = true;
	if (extras[i].why_not != NULL)
		return;
	close_world();
	open_full_world();
	bogus_number = ROLE_APP + 5;
	snprintf(context, sizeof context, "routing_extra.tsv: %s", line);
	if (extras[i].test != NULL)
		extras[i].test(recorded);
	else
		check_extra(&extras[i], recorded);
}

Test(routing, every_odd_input)
{
	bool seen[EXTRAS] = {false};
	FILE *file = open_golden("routing_extra.tsv");
	char *line = next_line(file);
	size_t ran = 0, excused = 0, i;

	cr_assert_str_eq(line, "case\tdeliveries");
	free(line);
	while ((line = next_line(file)) != NULL) {
		check_extra_row(line, seen);
		free(line);
		ran++;
	}
	fclose(file);
	for (i = 0; i < EXTRAS; i++) {
		cr_assert(seen[i], "not in the file: %s", extras[i].name);
		excused += extras[i].why_not != NULL;
	}
	cr_assert_eq(ran, EXTRA_ROWS);
	cr_assert_eq(excused, 7);
}

/* ---- places and states ------------------------------------------------------------------- */

/* D23: messages wait in the order in which they came, and arrive before those that are sent
 * when the process is there. The master's messages are for the processes that are there. */
Test(routing, before_the_fork_others_wait_and_the_master_does_not)
{
	struct message data = compose(ROLE_MASTER, ROLE_APP, 0);
	struct inbox inbox;
	size_t size;

	unfork(APP2);
	master_messenger_send(&messenger, &data);
	cr_assert_eq(channel_pending(&processes[APP2].channel), 0);
	data = compose(ROLE_NONE, ROLE_APP, 0);
	relay(AGENT, &data);
	data = compose(ROLE_NONE, ROLE_APP, 0);
	relay(PARENT, &data);
	fork_into(APP2);
	data = compose(ROLE_MASTER, ROLE_APP, 0);
	master_messenger_send(&messenger, &data);
	take(APP2, &inbox);
	cr_assert_eq(count_frames(&inbox), 3);
	size = 4 + get_number(inbox.bytes);
	cr_assert_eq(inbox.bytes[FRAME_FROM], ROLE_AGENT);
	cr_assert_eq(inbox.bytes[size + FRAME_FROM], ROLE_PARENT);
	cr_assert_eq(inbox.bytes[2 * size + FRAME_FROM], ROLE_MASTER);
	take(APP1, &inbox);
	cr_assert_eq(count_frames(&inbox), 4);
	cr_assert_eq(messenger.undeliverable, 0);
}

/* A place has no pid: a message for a pid does not wait there, and a message for "no pid" does
 * not find the place. */
Test(routing, before_the_fork_no_pid_fits)
{
	struct message data = compose(ROLE_AGENT, ROLE_NONE, cast[APP2].pid);

	unfork(APP2);
	master_messenger_send(&messenger, &data);
	cr_assert_eq(channel_pending(&processes[APP2].channel), 0);
	cr_assert_eq(messenger.undeliverable, 1);
}

/* D23: bounded. A message that finds no room is counted, and no sender waits for a place. */
Test(routing, before_the_fork_the_place_is_bounded)
{
	static char text[MESSAGE_DATA_MAX];
	struct message data;
	int i, most = CHANNEL_QUEUE_MAX / MESSAGE_DATA_MAX;

	memset(text, '1', sizeof text);
	no_workers();
	unfork(APP1);
	add_worker(&processes[APP1]);
	messenger.sender = &processes[AGENT];
	for (i = 0; i < most; i++) {
		data = compose(ROLE_AGENT, ROLE_APP, 0);
		data.data = text;
		data.data_length = sizeof text;
		master_messenger_send(&messenger, &data);
	}
	cr_assert_leq(channel_pending(&processes[APP1].channel), CHANNEL_QUEUE_MAX);
	cr_assert_eq(messenger.undeliverable, 1); /* the last message: no room for its header */
	cr_assert(process_stop_waiting(&processes[AGENT], &manager));
}

/* D24: messages of others wait for the next agent, those of the master are gone. */
Test(routing, a_dead_agents_slot_keeps_what_others_say)
{
	struct message data;
	struct inbox inbox;

	kill_agent();
	data = compose(ROLE_NONE, ROLE_NONE, 0);
	relay(APP1, &data);
	data = compose(ROLE_NONE, ROLE_AGENT, 0);
	relay(PARENT, &data);
	data = compose(ROLE_MASTER, ROLE_AGENT, 0);
	master_messenger_send(&messenger, &data);
	cr_assert_eq(messenger.undeliverable, 0);
	fork_into(AGENT);
	take(AGENT, &inbox);
	cr_assert_eq(count_frames(&inbox), 2);
	cr_assert_eq(inbox.bytes[FRAME_FROM], ROLE_APP);
	cr_assert_eq(inbox.bytes[4 + get_number(inbox.bytes) + FRAME_FROM], ROLE_PARENT);
}

/* egg skips only disconnected workers, and writes to a dead worker that is still registered. */
Test(routing, a_dead_worker_is_no_receiver_once_its_channel_is_closed)
{
	struct message data = compose(ROLE_AGENT, ROLE_NONE, cast[APP1].pid);
	struct inbox inbox;

	processes[APP1].state = STATE_DEAD;
	master_messenger_send(&messenger, &data);
	take(APP1, &inbox);
	cr_assert_eq(count_frames(&inbox), 1);
	channel_close(&processes[APP1].channel);
	data = compose(ROLE_AGENT, ROLE_NONE, cast[APP1].pid);
	master_messenger_send(&messenger, &data);
	cr_assert_eq(messenger.undeliverable, 1);
}

Test(routing, each_state_but_disconnected_receives)
{
	static const enum process_state states[] = {STATE_ONLINE, STATE_LISTENING,
	                                            STATE_DISCONNECTED, STATE_DEAD};
	struct message data;
	struct inbox inbox;
	size_t i;

	for (i = 0; i < sizeof states / sizeof states[0]; i++) {
		processes[APP2].state = states[i];
		data = compose(ROLE_MASTER, ROLE_APP, 0);
		master_messenger_send(&messenger, &data);
		take(APP2, &inbox);
		cr_assert_eq(count_frames(&inbox), states[i] != STATE_DISCONNECTED,
		             "a worker in the state %d was sent a message, or was not",
		             (int)states[i]);
	}
}

/* D26, each case alone. */
Test(routing, what_nobody_receives_is_counted)
{
	static const struct {
		enum role from, to;
		pid_t pid;
		uint64_t counts;
	} cases[] = {
		{ROLE_AGENT, ROLE_APP, UNKNOWN_PID, 1}, {ROLE_MASTER, ROLE_APP, UNKNOWN_PID, 0},
		{ROLE_NONE, ROLE_NONE, 0, 0},           {ROLE_APP, ROLE_PARENT, 0, 1},
		{ROLE_MASTER, ROLE_PARENT, 0, 0},       {ROLE_APP, ROLE_AGENT, 0, 1},
		{ROLE_MASTER, ROLE_AGENT, 0, 0},        {ROLE_APP, ROLE_MASTER, 0, 0},
		{ROLE_AGENT, ROLE_APP, 0, 0},
	};
	struct message data;
	size_t i;

	manager.parent = NULL;
	manager.agent = NULL;
	for (i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		messenger.undeliverable = 0;
		data = compose(cases[i].from, cases[i].to, cases[i].pid);
		master_messenger_send(&messenger, &data);
		cr_assert_eq(messenger.undeliverable, cases[i].counts,
		             "case %zu was counted, or was not", i);
	}
}

/* A process whose channel takes no more messages is no receiver either. */
Test(routing, what_a_deaf_receiver_does_not_take_is_counted)
{
	struct message data;
	int who;

	for (who = 0; who <= APP1; who++)
		channel_close(&processes[who].channel);
	data = compose(ROLE_APP, ROLE_PARENT, 0);
	master_messenger_send(&messenger, &data);
	data = compose(ROLE_APP, ROLE_AGENT, 0);
	master_messenger_send(&messenger, &data);
	data = compose(ROLE_AGENT, ROLE_APP, cast[APP1].pid);
	master_messenger_send(&messenger, &data);
	cr_assert_eq(messenger.undeliverable, 3);
	data = compose(ROLE_AGENT, ROLE_APP, 0); /* APP2 has the message */
	master_messenger_send(&messenger, &data);
	cr_assert_eq(messenger.undeliverable, 3);
}
