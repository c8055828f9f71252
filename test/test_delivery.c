/*
 * Delivery in a live cluster: golden/delivery.tsv, which was recorded from the real
 * egg-cluster, and cases that are not in this table.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "orders.h"

TestSuite(delivery, .timeout = 120);

/* ---- delivery.tsv ------------------------------------------------------------------------ */

enum { STATE, SENDER, CALL, WIRE, RECEIVED, RAW, HEARD, EFFECTS, COLUMNS };

struct row {
	char *text, *column[COLUMNS];
	bool done;
};

/*
 * The rows in which clutch differs from egg. wire, received, raw and heard replace
 * egg's columns; NULL keeps egg's column. If C cannot make the same call, the row has
 * the nearest call in C.
 */
struct divergence {
	const char *sender, *call, *why;
	const char *wire, *received, *raw, *heard;
	int error;      /* errno of the call */
	bool effects;   /* egg had side effects, clutch has none */
	bool elsewhere; /* another test checks the row */
	bool any_app;   /* any app may be the receiver */
	bool used;
};

#define D2 "D2: what is no message is a bad frame; see the tests of the protocol"
#define STRING "egg makes action and data of a string; C has only the message"
#define EXTRA "a message has no other fields"
static struct divergence divergences[] = {
	{.sender = "AGENT#1", .call = "sendRandom", .why = "a random one", .any_app = true},
	{.sender = "AGENT#2", .call = "sendRandom", .why = "a random one", .any_app = true},
	{.sender = "APP#1",
         .call = "sendRandom",
         .why = "D7: an app's sendRandom reaches the agent from the start",
         .wire = "{\"action\":\"t15\",\"data\":{\"v\":1},\"receiverPid\":\"AGENT#1\"}",
         .received = "AGENT#1 x1",
         .raw = "{\"action\":\"t15\",\"data\":{\"v\":1},\"receiverPid\":\"AGENT#1\","
                "\"from\":\"app\",\"to\":\"agent\"}",
         .heard = "AGENT#1:{\"v\":1}"},
	{.sender = "AGENT#1",
         .call = "send(action,data,\"both\")",
         .why = "there is no such role, and the call says so",
         .error = EINVAL},
	{.sender = "PARENT",
         .call = "process.send to=bogus",
         .why = "there is no such role, and the call says so",
         .error = EINVAL},
	{.sender = "PARENT",
         .call = "process.send receiverPid=APP#1 as a NUMBER",
         .why = "a pid is a number in C: it finds its owner",
         .wire = "{\"action\":\"t34\",\"data\":{\"v\":1},\"receiverPid\":\"APP#1\"}",
         .received = "APP#1 x1",
         .raw = "{\"action\":\"t34\",\"data\":{\"v\":1},\"receiverPid\":\"APP#1\","
                "\"from\":\"parent\",\"to\":\"app\"}",
         .heard = "APP#1:{\"v\":1}"},
	{.sender = "AGENT#1",
         .call = "process.send(\"string\")",
         .why = STRING,
         .wire = "{\"action\":\"t40\",\"data\":\"t40\"}"},
	{.sender = "APP#1",
         .call = "process.send(\"string\")",
         .why = STRING,
         .wire = "{\"action\":\"t50\",\"data\":\"t50\"}"},
	{.sender = "PARENT", .call = "process.send(\"a string\")", .why = D2, .elsewhere = true},
	{.sender = "AGENT#1", .call = "process.send(7)", .why = D2, .elsewhere = true},
	{.sender = "APP#1", .call = "process.send(7)", .why = D2, .elsewhere = true},
	{.sender = "AGENT#1", .call = "process.send([1])", .why = D2, .elsewhere = true},
	{.sender = "APP#1", .call = "process.send([1])", .why = D2, .elsewhere = true},
	{.sender = "AGENT#1",
         .call = "sendRandom x3000",
         .why = "send_random_is_uniform",
         .elsewhere = true},
	{.sender = "AGENT#1",
         .call = "process.send {action:\"error\",to:master}",
         .why = "D6: it means nothing, so nothing is thrown",
         .effects = true},
	{.sender = "APP#1",
         .call = "process.send {action:\"error\",to:master}",
         .why = "D6: it means nothing, so nothing is thrown",
         .effects = true},
	{.sender = "AGENT#1",
         .call = "process.send {to:agent} with extra fields",
         .why = EXTRA,
         .raw = "{\"action\":\"t45\",\"data\":{\"v\":1},\"to\":\"agent\",\"from\":\"agent\"}"},
	{.sender = "APP#1",
         .call = "process.send {to:agent} with extra fields",
         .why = EXTRA,
         .raw = "{\"action\":\"t55\",\"data\":{\"v\":1},\"to\":\"agent\",\"from\":\"app\"}"},
};

#define DIVERGENCES (sizeof divergences / sizeof divergences[0])

/* The value of a field in an object (`bare`: without quotes); false if there is none. */
static bool
json_field(const char *object, const char *field, bool bare, char *value, size_t size)
{
	char name[32];
	const char *start, *end;
	int depth = 0;

	snprintf(name, sizeof name, "\"%s\":", field);
	start = strstr(object, name);
	if (start == NULL)
		return false;
	start += strlen(name);
	for (end = start; depth > 0 || (*end != ',' && *end != '}'); end++)
		depth += (*end == '{') - (*end == '}');
	if (bare && *start == '"')
		start++, end--;
	snprintf(value, size, "%.*s", (int)(end - start), start);
	return true;
}

static int
role_number(const char *name)
{
	int role;

	for (role = ROLE_NONE; role <= ROLE_APP; role++)
		if (strcmp(name, clutch_role_name((enum role)role)) == 0)
			return role;
	return 9; /* bogus */
}

static int
pid_of(struct cluster *c, const char *name)
{
	return strcmp(name, "UNKNOWN") == 0 ? 0x7ffffffe : cluster_pid(c, name);
}

/* The row's send call, from its name and from the message that egg had on the wire. */
static void
compose_call(struct cluster *c, const struct row *row, char *text, size_t size)
{
	const char *name = row->column[CALL], *wire = row->column[WIRE];
	char action[32] = "-", data[64] = "undefined", to[16] = "-", from[16] = "-", pid[16] = "";
	const char *method = "message";

	json_field(wire, "action", true, action, sizeof action);
	json_field(wire, "data", false, data, sizeof data);
	json_field(wire, "to", true, to, sizeof to);
	json_field(wire, "from", true, from, sizeof from);
	json_field(wire, "receiverPid", true, pid, sizeof pid);
	if (strncmp(name, "sendTo(", 7) == 0)
		method = "sendTo";
	else if (strncmp(name, "send(", 5) == 0)
		method = "send";
	else if (strncmp(name, "process.", 8) != 0)
		method = name;
	snprintf(text, size, "%s %d %d %d %s %s", method, pid[0] != '\0' ? pid_of(c, pid) : 0,
	         role_number(to), role_number(from), action, data);
}

/* The report of the receiver's observer: "saw t1 {"v":1} from agent to app". */
static void
compose_saw(struct row *row, const char *receiver, char *text, size_t size)
{
	char action[32] = "-", data[64] = "", to[16] = "", from[16] = "", pid[16] = "";
	const char *raw = row->column[RAW], *second = strstr(raw, " | ");

	if (second != NULL && strncmp(receiver, "AGENT", 5) == 0)
		raw = second; /* broadcast: the first message is for the apps */
	json_field(raw, "action", true, action, sizeof action);
	json_field(raw, "data", false, data, sizeof data);
	json_field(raw, "to", true, to, sizeof to);
	json_field(raw, "from", true, from, sizeof from);
	snprintf(text, size, "saw %s %s from %s to %s", action, data, from, to);
	if (json_field(raw, "receiverPid", true, pid, sizeof pid))
		snprintf(text + strlen(text), size - strlen(text), " receiverPid %s", pid);
}

/* How many messages of an action were routed to the master itself? */
static int
count_to_master(struct cluster *c, size_t mark, const char *action)
{
	char field[64];
	const char *line;
	int count = 0;

	snprintf(field, sizeof field, "\t%s\t", action);
	while ((line = cluster_next_line(c, &mark, "\troutes\t")) != NULL)
		count += strstr(line, ">master:") != NULL && strstr(line, field) != NULL;
	return count;
}

/* The expected processes received the message, as often as expected, and no other process did. */
static void
check_received(struct cluster *c, struct row *row, size_t mark, const char *action)
{
	char list[128], saw[256], name[32], *one, *next = list;
	size_t expected = 0;
	int times;

	snprintf(list, sizeof list, "%s", row->column[RECEIVED]);
	while ((one = strsep(&next, ",")) != NULL) {
		if (sscanf(one, " %31s x%d", name, &times) != 2)
			break; /* no process receives the message */
		if (strcmp(name, "MASTER(emit)") == 0) {
			cr_assert_eq(count_to_master(c, mark, action), 1, "%s: %s",
			             row->column[SENDER], row->column[CALL]);
			continue;
		}
		expected += (size_t)times;
		compose_saw(row, name, saw, sizeof saw);
		cr_assert_eq(cluster_count(c, mark, ":%s %s", name, saw), (size_t)times,
		             "%s: %s: %s expected %d times: %s", row->column[SENDER],
		             row->column[CALL], name, times, saw);
		if (strstr(saw, "receiverPid") == NULL)
			cr_assert_eq(cluster_count(c, mark, ":%s %s receiverPid", name, saw), 0);
	}
	cr_assert_eq(cluster_count(c, mark, " saw %s ", action), expected,
	             "%s: %s: received by others, too", row->column[SENDER], row->column[CALL]);
}

/* The listeners of the action were called with the expected data. */
static void
check_heard(struct cluster *c, struct row *row, size_t mark, const char *action)
{
	char list[256], *one, *data, *next = list;
	size_t expected = 0;

	snprintf(list, sizeof list, "%s", row->column[HEARD]);
	while (strcmp(list, "-") != 0 && (one = strsep(&next, ";")) != NULL) {
		one += *one == ' ';
		data = strchr(one, ':');
		*data++ = '\0';
		cr_assert_eq(cluster_count(c, mark, ":%s heard %s %s", one, action, data), 1,
		             "%s: %s: %s heard", row->column[SENDER], row->column[CALL], one);
		expected++;
	}
	cr_assert_eq(cluster_count(c, mark, " heard "), expected, "%s: %s: heard by others, too",
	             row->column[SENDER], row->column[CALL]);
}

/* Check the opids of each process in {"AGENT#1":"[APP#1,APP#2,APP#3]","APP#1":"[]"}. D7: an app
 * knows the agent from the start. */
static void
check_opids(struct cluster *c, struct row *row, const char *everyone)
{
	char names[128], value[128], key[16], *name, *next = names;
	const char *at;
	size_t mark;

	snprintf(names, sizeof names, "%s", everyone);
	while ((name = strsep(&next, " ")) != NULL) {
		snprintf(key, sizeof key, "\"%s\":\"", name);
		at = strstr(row->column[HEARD], key);
		cr_assert(at != NULL && sscanf(at + strlen(key), "%127[^\"]", value) == 1);
		if (strncmp(name, "APP", 3) == 0 && strcmp(value, "[]") == 0)
			snprintf(value, sizeof value, "[%.7s]", everyone);
		mark = round_of(c, everyone, name, "opids");
		cluster_wait(c, mark, ":%s opids %s slot", name, value);
	}
}

static void
replace_all(char **text, const char *old, const char *new)
{
	char *out = calloc(1, 4 * strlen(*text) + 1), *from = *text, *at;

	while ((at = strstr(from, old)) != NULL) {
		strncat(out, from, (size_t)(at - from));
		strcat(out, new);
		from = at + strlen(old);
	}
	strcat(out, from);
	*text = out; /* never freed, because the test is short */
}

/* Egg's sendRandom chose APP#2. Put the app that ours has chosen into the row. */
static void
substitute_receiver(struct cluster *c, struct row *row, const char *action)
{
	const char *line = cluster_line(c, " saw %s ", action);
	const char *name;
	char old[8];
	long pid;
	int i;

	cr_assert(line != NULL && sscanf(line, "@app:%*d:%ld", &pid) == 1);
	name = cluster_name(c, (pid_t)pid);
	cr_assert(sscanf(row->column[RECEIVED], "%7s", old) == 1);
	for (i = WIRE; i <= HEARD; i++)
		replace_all(&row->column[i], old, name);
}

static void
apply(struct row *row, const struct divergence *divergence)
{
	const char *columns[] = {divergence->wire, divergence->received, divergence->raw,
	                         divergence->heard};
	int i;

	for (i = 0; i < 4; i++)
		if (columns[i] != NULL) {
			row->column[WIRE + i] = strdup(columns[i]);
			cr_assert(row->column[WIRE + i] != NULL);
		}
}

static struct divergence *
find_divergence(const struct row *row)
{
	size_t i;

	for (i = 0; i < DIVERGENCES; i++)
		if (!divergences[i].used &&
		    strcmp(divergences[i].sender, row->column[SENDER]) == 0 &&
		    strcmp(divergences[i].call, row->column[CALL]) == 0 &&
		    /* after a restart, egg's apps have the agent's pid, too */
		    (strcmp(divergences[i].call, "sendRandom") != 0 || divergences[i].any_app ||
		     row->column[STATE][1] == '1')) {
			divergences[i].used = true;
			return &divergences[i];
		}
	return NULL;
}

/* Returns 1 if the master counts the row's message as undeliverable. */
static int
check_row(struct cluster *c, struct row *row, const char *everyone)
{
	static const struct divergence none;
	const struct divergence *divergence = find_divergence(row);
	char text[256], action[32] = "-";
	struct call call;
	size_t mark;

	divergence = divergence != NULL ? divergence : &none;
	row->done = true;
	if (divergence->elsewhere)
		return 0;
	if (strcmp(row->column[CALL], "messenger.opids") == 0) {
		check_opids(c, row, everyone);
		return 0;
	}
	cr_assert(divergence->effects || strcmp(row->column[EFFECTS], "-") == 0);
	apply(row, divergence);
	compose_call(c, row, text, sizeof text);
	json_field(row->column[WIRE], "action", true, action, sizeof action);
	if (strcmp(row->column[SENDER], "PARENT") == 0 && divergence->error != 0) {
		cr_assert(parse_call(text, &call) &&
		          perform(c->parent, &call) == divergence->error);
		return 0;
	}
	mark = round_of(c, everyone, row->column[SENDER], text);
	if (strcmp(row->column[SENDER], "PARENT") != 0)
		cr_assert_eq(
			cluster_count(c, mark, ":%s did %s: %s", row->column[SENDER], text,
		                      divergence->error == 0 ? "yes" : strerror(divergence->error)),
			1, "%s: %s: %s", row->column[SENDER], row->column[CALL], text);
	if (divergence->any_app)
		substitute_receiver(c, row, action);
	check_received(c, row, mark, action);
	check_heard(c, row, mark, action);
	return strcmp(row->column[RECEIVED], "nobody") == 0 && divergence->error == 0;
}

static size_t
read_rows(struct row *rows, size_t size)
{
	FILE *file = fopen("test/golden/delivery.tsv", "r");
	char line[2048], *next;
	size_t count = 0;
	int i;

	cr_assert(file != NULL, "run the test in the Makefile's folder");
	cr_assert(fgets(line, sizeof line, file) != NULL); /* the header */
	while (fgets(line, sizeof line, file) != NULL) {
		cr_assert(count < size);
		line[strcspn(line, "\n")] = '\0';
		rows[count].text = line;
		replace_all(&rows[count].text, "AGENT#10", "AGENT#2"); /* after one death */
		next = rows[count].text;
		for (i = 0; i < COLUMNS; i++)
			rows[count].column[i] = strsep(&next, "\t");
		cr_assert(rows[count].column[EFFECTS] != NULL && next == NULL);
		count++;
	}
	fclose(file);
	return count;
}

static int
on_action(struct messenger *messenger, const struct message *message, void *arg)
{
	(void)arg;
	report(messenger, "heard %s %s", message->action,
	       message->data != NULL ? message->data : "undefined");
	return 0;
}

static int
obey_and_hear(struct messenger *messenger, void *arg)
{
	char action[16];
	int i;

	for (i = 1; i < 100; i++) {
		snprintf(action, sizeof action, "t%d", i);
		messenger_on(messenger, action, on_action, NULL);
	}
	messenger_on(messenger, "error", on_action, NULL);
	return obey(messenger, arg);
}

static int
check_rows(struct cluster *c, struct row *rows, size_t count, const char *state,
           const char *everyone)
{
	int undeliverable = 0;
	size_t i;

	for (i = 0; i < count; i++)
		if (strncmp(rows[i].column[STATE], state, 2) == 0)
			undeliverable += check_row(c, &rows[i], everyone);
	return undeliverable;
}

Test(delivery, delivery)
{
	static struct row rows[80];
	size_t i, count = read_rows(rows, 80), done = 0, mark;
	int undeliverable;
	struct cluster *c;

	cr_assert_eq(count, 66);
	clear_environment();
	setenv("CLUTCH_TRACE", "1", 1); /* the trace shows messages to the master */
	c = cluster_start(
		&(struct options){.agent = obey_and_hear, .app = obey_and_hear, .workers = 3});
	cluster_ready(c);
	undeliverable = check_rows(c, rows, count, "S1", "AGENT#1 APP#1 APP#2 APP#3");

	cluster_signal(c, "APP#3", SIGKILL);
	cluster_wait(c, 0, ":APP#4 saw egg-ready");
	undeliverable += check_rows(c, rows, count, "S2", "AGENT#1 APP#1 APP#2 APP#4");

	mark = cluster_mark(c);
	cluster_signal(c, "AGENT#1", SIGKILL);
	cluster_wait(c, 0, ":AGENT#2 saw egg-ready");
	cluster_wait(c, mark, ":APP#1 saw agent-start");
	undeliverable += check_rows(c, rows, count, "S5", "AGENT#2 APP#1 APP#2 APP#4");

	for (i = 0; i < count; i++)
		done += rows[i].done;
	cr_assert_eq(done, 66);
	for (i = 0; i < DIVERGENCES; i++)
		cr_assert(divergences[i].used, "no row for %s", divergences[i].call);
	cr_assert_eq(undeliverable, 7); /* t8 t9 t20 t21 t32 t84 t97 */
	cluster_ask_status(c);          /* D26 */
	cr_assert_eq(cluster_figure(c, NULL, "undeliverable"), undeliverable);
	cr_assert_eq(cluster_count(c, 0, "uncaught"), 0);
	cluster_stop(c);
}

/* ---- delivery, cases that are not in the table ------------------------------------------- */

static int
on_counted(struct messenger *messenger, const struct message *message, void *arg)
{
	(void)messenger, (void)message;
	++*(int *)arg;
	return 0;
}

static int
on_count_wanted(struct messenger *messenger, const struct message *message, void *arg)
{
	(void)message;
	report(messenger, "counted %d", *(int *)arg);
	return 0;
}

static int
count_them(struct messenger *app, void *arg)
{
	static int counted;

	(void)arg;
	messenger_on(app, "count", on_counted, &counted);
	return messenger_on(app, "test-count", on_count_wanted, &counted);
}

static int
on_send_random_wanted(struct messenger *agent, const struct message *message, void *arg)
{
	int i;

	(void)message, (void)arg;
	for (i = 0; i < 3000; i++)
		messenger_send_random(agent, "count", NULL);
	return messenger_send_to_app(agent, "test-count", NULL);
}

static int
send_random_when_ready(struct messenger *agent, void *arg)
{
	(void)arg;
	return messenger_once(agent, "egg-ready", on_send_random_wanted, NULL);
}

/* egg: 1002, 1011, 987 of 3000. The standard deviation is 26; six of them are allowed. */
Test(delivery, send_random_is_uniform)
{
	struct cluster *c = cluster_start(&(struct options){
		.agent = send_random_when_ready, .app = count_them, .workers = 3});
	int i, count, total = 0;
	const char *line;

	for (i = 1; i <= 3; i++) {
		cluster_wait(c, 0, ":APP#%d counted ", i);
		line = cluster_line(c, ":APP#%d counted ", i);
		cr_assert_eq(sscanf(line, "@app:%*d:%*d counted %d", &count), 1);
		cr_assert(count > 844 && count < 1156, "APP#%d got %d messages of 3,000", i, count);
		total += count;
	}
	cr_assert_eq(total, 3000);
	cluster_stop(c);
}

/* D2: a process that sends a malformed frame is killed; no other process notices. */
Test(delivery, an_app_that_breaks_the_protocol_is_replaced)
{
	struct cluster *c = start_obeying(3);

	cluster_order(c, "APP#2", "garbage");
	cr_assert_str_eq(cluster_wait_end(c, "APP#2"),
	                 "code: null, signal: SIGKILL, broke the protocol");
	cluster_wait(c, 0, "app_worker#2:APP#2 broke the protocol: killed (app 1)");
	cluster_wait(c, 0, ":APP#4 saw egg-ready");
	round_of(c, "AGENT#1 APP#1 APP#3 APP#4", "APP#1", "opids");
	cr_assert_eq(cluster_count(c, 0, "app_worker#5"), 0);
	cr_assert_eq(cluster_count(c, 0, "broke the protocol"), 2); /* the two lines above */
	cluster_stop(c);
}

Test(delivery, an_agent_that_breaks_the_protocol_is_replaced)
{
	struct cluster *c = start_obeying(2);

	cluster_order(c, "AGENT#1", "garbage");
	cr_assert_str_eq(cluster_wait_end(c, "AGENT#1"),
	                 "code: null, signal: SIGKILL, broke the protocol");
	cluster_wait(c, 0, ":AGENT#2 saw egg-ready");
	round_of(c, "AGENT#2 APP#1 APP#2", "APP#1", "opids");
	cr_assert_eq(cluster_count(c, 0, "app_worker#3"), 0);
	cluster_stop(c);
}

/* If the master's parent sends a malformed frame, the master stops reading from the parent. */
Test(delivery, a_parent_that_breaks_the_protocol_is_not_heard_again)
{
	struct cluster *c = start_obeying(2);

	send_garbage(c->parent);
	cluster_wait(c, 0, "parent broke the protocol: its channel is closed");
	cluster_signal(c, "APP#1", SIGKILL); /* the cluster lives on */
	cluster_wait(c, 0, ":APP#3 saw egg-ready");
	cr_assert_eq(cluster_count(c, 0, "app-worker-died"), 0);
	cluster_stop(c);
}

/* False: on a busy machine the next agent was there before the messages. */
static bool
find_receivers(void)
{
	struct cluster *c = start_obeying(2);
	bool in_time;
	char text[64];
	size_t mark;

	cluster_signal(c, "AGENT#1", SIGKILL);
	cluster_wait(c, 0, ":PARENT saw agent-worker-died");
	mark = cluster_mark(c);
	snprintf(text, sizeof text, "sendTo %d 0 0 by-pid 1", (int)cluster_pid(c, "APP#2"));
	cluster_order(c, "APP#1", text);
	cluster_order(c, "APP#1", "sendToAgent 0 0 0 late 2");
	cluster_order(c, "APP#1", "message 0 0 0 by-default 3");
	cluster_wait(c, mark, ":APP#2 saw by-pid 1 from app to app receiverPid APP#2");
	round_of(c, "APP#1 APP#2", "APP#1", "sendToApp 0 0 0 behind 4");
	in_time = cluster_count(c, 0, "agent_worker#2") == 0;
	if (in_time)
		cluster_wait_saw(c, "AGENT#2",
		                 "late 2 -> by-default 3 -> egg-pids [APP#1,APP#2] -> "
		                 "egg-ready <options>");
	cluster_stop(c);
	return in_time;
}

/* D1, D24: while the agent is dead, apps hear each other by pid, and messages for the agent wait
 * for the next agent. */
Test(delivery, while_the_agent_is_dead_messages_find_their_receivers)
{
	int tries = 5;

	while (!find_receivers())
		cr_assert_gt(--tries, 0,
		             "five times the agent was back before the messages were sent");
}
