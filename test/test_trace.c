/*
 * CLUTCH_TRACE: each event has a line, no text can imitate a line, the trace counts the lines
 * that are lost, and tracing does not change what a cluster does. docs/trace.md has the fields
 * of a line; here they are counted from 1.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "harness.h"

#include <criterion/criterion.h>

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

TestSuite(trace, .timeout = 60);

enum { FIELDS = 14, MOST = 4000 };

struct line {
	char *text;
	const char *field[FIELDS + 1]; /* the first field is field[1] */
};

static struct line lines[MOST];
static size_t line_count;

/* ---- reading a trace --------------------------------------------------------- */

static void
split(struct line *line, char *text)
{
	int i;

	line->text = strdup(text);
	for (i = 1; i <= FIELDS; i++) {
		line->field[i] = strsep(&text, "\t");
		cr_assert_not_null(line->field[i], "the line has only %d fields: %s", i - 1,
		                   line->text);
	}
	cr_assert_null(text, "the line has more than %d fields: %s", FIELDS, line->text);
	cr_assert_str_eq(line->field[1], "trace");
}

static void
read_trace(const char *path)
{
	FILE *file = fopen(path, "r");
	char text[8192];

	cr_assert_not_null(file, "%s", path);
	while (fgets(text, sizeof text, file) != NULL) {
		cr_assert_lt(line_count, MOST);
		text[strcspn(text, "\n")] = '\0';
		split(&lines[line_count++], strdup(text));
	}
	fclose(file);
}

/* Find the next line from `from` on whose fields begin so (NULL: any); line_count if none. */
static size_t
find(size_t from, const char *process, const char *event, const char *peer, const char *action)
{
	const char *wanted[] = {process, event, peer, action};
	static const int field[] = {3, 5, 6, 13};
	bool same = false;
	int i;

	for (; from < line_count; from++) {
		for (same = true, i = 0; i < 4; i++)
			same = same &&
			       (wanted[i] == NULL || strncmp(lines[from].field[field[i]], wanted[i],
			                                     strlen(wanted[i])) == 0);
		if (same)
			return from;
	}
	return from;
}

static const char *
trace_path(void)
{
	static char path[512];

	snprintf(path, sizeof path, "%s/trace", test_folder());
	return path;
}

/* ---- the processes ------------------------------------------------------------- */

static int
on_wanted(struct messenger *messenger, const struct message *message, void *arg)
{
	(void)arg;
	return strcmp(message->action, "fail") == 0
	               ? 7
	               : messenger_send_to_app(messenger, "greeting", message->data);
}

static int
on_greeting(struct messenger *messenger, const struct message *message, void *arg)
{
	(void)arg;
	report(messenger, "greeted with %s", message->data);
	return 0;
}

static int
run_agent(struct messenger *agent, void *arg)
{
	return messenger_on(agent, "greet", on_wanted, arg);
}

static int
run_app(struct messenger *app, void *arg)
{
	messenger_on(app, "fail", on_wanted, arg);
	messenger_on(app, "greeting", on_greeting, arg);
	return messenger_on(app, "greeting", on_greeting, arg);
}

static struct cluster *
start(const char *trace, int workers)
{
	struct cluster *c;

	clear_environment();
	setenv("CLUTCH_TRACE", trace, 1);
	c = cluster_start(
		&(struct options){.agent = run_agent, .app = run_app, .workers = workers});
	cluster_ready(c);
	return c;
}

static void
greet(struct cluster *c, const char *data)
{
	cr_assert_eq(messenger_send_to_agent(c->parent, "greet", data), 0);
	cluster_turn(c);
}

/* ---- the events ------------------------------------------------------------------- */

Test(trace, shows_a_message_on_its_way)
{
	struct cluster *c = start("1", 2);
	size_t at = cluster_mark(c);

	greet(c, "{\"a\":1}");
	cluster_wait(c, at, "app:1:APP#2\t0\tdelivers\tmaster:0:0\t");
	at = cluster_wait(c, at, "master:0:MASTER\t0\treceives\tparent:0:0\t");
	at = cluster_wait(c, at, "agent:0:AGENT#1\t0\thears\tmaster:0:0\t");
	at = cluster_wait(c, at, "agent:0:AGENT#1\t0\tdelivers\tmaster:0:0\t");
	at = cluster_wait(c, at, "agent:0:AGENT#1\t0\tsends\tmaster:0:0\t");
	at = cluster_wait(c, at, "master:0:MASTER\t0\treads\tagent:0:AGENT#1\t");
	at = cluster_wait(c, at, "master:0:MASTER\t0\treceives\tagent:0:AGENT#1\t");
	at = cluster_wait(c, at, "agent>app:0\tby its to 0\t-\t7\tgreeting\t{\"a\":1}");
	cluster_wait(c, at, "master:0:MASTER\t0\tsends\tapp:0:APP#1\t");
	cluster_wait(c, at, "master:0:MASTER\t0\tsends\tapp:1:APP#2\t");
	at = cluster_wait(c, at, "app:0:APP#1\t0\thears\tmaster:0:0\t");
	at = cluster_wait(c, at, "agent>app:0\tlistener 1\t-\t7\tgreeting\t{\"a\":1}");
	cluster_wait(c, at, "agent>app:0\tlistener 2\t-\t7\tgreeting\t{\"a\":1}");
	cluster_stop(c);
}

/* The agent sends itself a message over a socket pair, whose two ends it has both joined. */
static int
join_itself(struct messenger *agent, void *arg)
{
	struct messenger *end[2];
	int i, pair[2];

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == -1)
		return -1;
	for (i = 0; i < 2; i++) {
		end[i] = messenger_open(pair[i], ROLE_AGENT);
		if (end[i] == NULL || messenger_join(end[i], agent, NULL, NULL) == -1)
			return -1;
	}
	(void)arg;
	return messenger_send(end[0], "aside", NULL, ROLE_AGENT);
}

Test(trace, names_a_process_that_has_joined_a_channel_as_before)
{
	struct cluster *c;

	clear_environment();
	setenv("CLUTCH_TRACE", "1", 1);
	c = cluster_start(&(struct options){.agent = join_itself, .app = run_app, .workers = 1});
	cluster_wait(c, 0, "agent:0:AGENT#1\t0\tsends\tagent:0:AGENT#1\t");
	cluster_wait(c, 0, "agent:0:AGENT#1\t0\thears\tagent:0:AGENT#1\t");
	cluster_ready(c);
	cluster_stop(c);
}

/* The number of a message is the same at both ends of its channel. */
static void
check_numbers(void)
{
	char wanted[64];
	size_t i, at;

	for (i = 0; i < line_count; i++) {
		if (strcmp(lines[i].field[5], "hears") != 0)
			continue;
		snprintf(wanted, sizeof wanted, "%s", lines[i].field[3]);
		for (at = 0; (at = find(at, "master", "sends", wanted, NULL)) < line_count; at++)
			if (strcmp(lines[at].field[7], lines[i].field[7]) == 0)
				break;
		cr_assert_lt(at, line_count, "the master did not send what was heard: %s",
		             lines[i].text);
		cr_assert_str_eq(lines[at].field[13], lines[i].field[13], "%s", lines[i].text);
		cr_assert_str_eq(lines[at].field[14], lines[i].field[14], "%s", lines[i].text);
		cr_assert_leq(atoll(lines[at].field[2]), atoll(lines[i].field[2]));
	}
}

/* The process is ready once, after the master has received its message. */
static void
check_ready(const char *process)
{
	const char *action = strncmp(process, "app", 3) == 0 ? "listening" : "agent-start";
	size_t heard = find(0, "master", "receives", process, action);
	size_t ready = find(0, "master", "is ready", process, NULL);

	cr_assert_lt(heard, ready, "%s is ready before it has said so", process);
	cr_assert_lt(ready, line_count, "%s is not ready", process);
	cr_assert_lt(ready, find(0, "master", "ends", process, NULL));
	cr_assert_eq(find(ready + 1, "master", "is ready", process, NULL), line_count);
}

/* The line of a fork comes before the first line of the child; the line of a death has a reason. */
static void
check_life(const char *name, const char *pid, const char *reason)
{
	char process[64], unborn[64];
	size_t forked, born, dead;

	snprintf(process, sizeof process, "%s:%s", name, pid);
	snprintf(unborn, sizeof unborn, "%s:0", name);
	forked = find(0, "master", "forks", unborn, NULL);
	born = find(0, process, NULL, NULL, NULL);
	cr_assert_lt(forked, born);
	cr_assert_str_eq(lines[born].field[5], "starts");
	dead = find(0, "master", "dies", process, NULL);
	cr_assert_lt(dead, line_count, "%s does not die", process);
	cr_assert_str_eq(lines[dead].field[10], reason);
	cr_assert_lt(find(0, "master", "ends", process, NULL), dead);
	check_ready(process);
	while ((dead = find(dead + 1, "master", "reaps", NULL, NULL)) < line_count)
		if (strcmp(lines[dead].field[10] + 4, pid) == 0)
			return;
	cr_assert_fail("%s is not reaped", process);
}

Test(trace, tells_of_births_deaths_and_numbers)
{
	struct cluster *c = start(trace_path(), 2);
	char pid[4][16];

	snprintf(pid[0], 16, "%d", (int)cluster_pid(c, "AGENT#1"));
	snprintf(pid[1], 16, "%d", (int)cluster_pid(c, "APP#1"));
	snprintf(pid[2], 16, "%d", (int)cluster_pid(c, "APP#2"));
	greet(c, "1");
	cluster_wait(c, 0, "greeted");
	cluster_signal(c, "APP#2", SIGKILL);
	cluster_wait(c, 0, "app_worker#3:APP#3 started");
	snprintf(pid[3], 16, "%d", (int)cluster_pid(c, "APP#3"));
	cr_assert_eq(messenger_send_to(c->parent, cluster_pid(c, "APP#3"), "fail", NULL), 0);
	cluster_wait(c, 0, "app_worker#4:APP#4 started");
	cluster_stop(c);
	read_trace(trace_path());
	check_numbers();
	check_life("agent:0", pid[0], "code: 0, signal: null 0");
	check_life("app:0", pid[1], "code: 0, signal: null 0");
	check_life("app:1", pid[2], "code: null, signal: SIGKILL 0");
	check_life("app:1", pid[3], "code: 1, signal: null 0");
	cr_assert_lt(find(0, "app:1", "fails", NULL, NULL), line_count);
	cr_assert_lt(find(0, "app:1", "ends", "master", NULL), line_count);
	cr_assert_lt(find(0, "master", "signals", "app:0", NULL), line_count);
	cr_assert_lt(find(0, "master", "is signaled", NULL, NULL), line_count);
	cr_assert_lt(find(0, "app:0", "ignores", NULL, "egg-pids"), line_count);
}

static int
reach_nobody(struct messenger *app, void *arg)
{
	(void)arg;
	return messenger_send_to(app, 1, "lost", NULL);
}

Test(trace, says_which_message_reaches_nobody)
{
	struct cluster *c;

	clear_environment();
	setenv("CLUTCH_TRACE", "1", 1);
	c = cluster_start(&(struct options){.app = reach_nobody, .workers = 1});
	cluster_wait(c, 0, "\treaches nobody\tmaster:0:MASTER\t0\t0\tapp>app:1\t 0\t-\t-1\tlost\t");
	cluster_stop(c);
}

static int
flood(struct messenger *agent, const struct message *message, void *arg)
{
	static char data[256 * 1024];
	int i;

	(void)message, (void)arg;
	memset(data, '1', sizeof data - 1);
	for (i = 0; i < 12; i++)
		messenger_send_to_app(agent, "flood", data);
	return 0;
}

static int
run_flooding_agent(struct messenger *agent, void *arg)
{
	return messenger_on(agent, "greet", flood, arg);
}

Test(trace, says_for_whom_a_process_waits_and_when_it_goes_on)
{
	struct cluster *c;
	size_t at;

	clear_environment();
	setenv("CLUTCH_TRACE", "1", 1);
	c = cluster_start(&(struct options){.agent = run_flooding_agent, .workers = 1});
	cluster_ready(c);
	cluster_signal(c, "APP#1", SIGSTOP);
	greet(c, NULL);
	at = cluster_wait(c, 0, "\twaits\tagent:0:AGENT#1\t");
	cr_assert_eq(cluster_count(c, 0, "\tapp 0\t"), 1);
	cr_assert_eq(cluster_count(c, 0, "\tgoes on\t"), 0);
	cluster_signal(c, "APP#1", SIGCONT);
	cluster_wait(c, at, "\tgoes on\tagent:0:AGENT#1\t");
	cluster_stop(c);
}

/* ---- the text ------------------------------------------------------------------------ */

static void
trace_one(const char *action, const char *data, size_t length)
{
	struct message message = {action, ROLE_NONE, ROLE_APP, 0, data, length, -1, NULL};

	clutch_trace("routes", NULL, &message, "", 0);
}

Test(trace, cannot_be_imitated_by_what_is_sent)
{
	static const char evil[] = "1\t2\ntrace\t0\tmaster:0:1\t\\\x1b[31m\x7f";
	char long_data[2001] = "";

	setenv("CLUTCH_TRACE", trace_path(), 1);
	clutch_trace_init(ROLE_APP, 3);
	trace_one("a\tb\n", evil, sizeof evil - 1);
	memset(long_data, '\t', 2000);
	trace_one(long_data + 1745, long_data, 2000);
	trace_one(NULL, NULL, 0);
	trace_one("", "\xe4\xbd\xa0", 3);
	read_trace(trace_path());
	cr_assert_eq(line_count, 4);
	cr_assert_str_eq(lines[0].field[13], "a\\x09b\\x0a");
	cr_assert_str_eq(lines[0].field[14],
	                 "1\\x092\\x0atrace\\x090\\x09master:0:1\\x09\\x5c\\x1b[31m\\x7f");
	cr_assert_eq(atoi(lines[0].field[12]), (int)sizeof evil - 1);
	cr_assert_eq(strlen(lines[1].field[14]), 256 * 4);
	cr_assert_str_eq(lines[1].field[12], "2000");
	cr_assert_str_eq(lines[2].field[12], "-1");
	cr_assert_str_eq(lines[2].field[13], "");
	cr_assert_str_eq(lines[3].field[14], "\xe4\xbd\xa0");
}

static void
trace_a_greeting(const char *action)
{
	struct cluster *c;

	clear_environment();
	setenv("CLUTCH_TRACE_ACTION", action, 1);
	c = start(trace_path(), 1);
	unsetenv("CLUTCH_TRACE_ACTION");
	greet(c, "1");
	cluster_wait(c, 0, "greeted");
	cluster_stop(c);
	read_trace(trace_path());
}

Test(trace, is_not_limited_by_an_empty_action)
{
	size_t i, greetings = 0;

	trace_a_greeting("");
	for (i = 0; i < line_count; i++)
		greetings += strcmp(lines[i].field[13], "greeting") == 0;
	cr_assert_eq(greetings, 7);
}

Test(trace, can_be_limited_to_one_action)
{
	size_t i;

	trace_a_greeting("greeting");
	cr_assert_eq(line_count, 7); /* sends receives routes sends hears delivers delivers */
	for (i = 0; i < line_count; i++)
		cr_assert_str_eq(lines[i].field[13], "greeting");
}

/* ---- on and off ------------------------------------------------------------------------ */

Test(trace, is_off_unless_it_is_wanted)
{
	struct cluster *c;

	setenv("CLUTCH_TRACE", "0", 1);
	clutch_trace_init(ROLE_APP, 0);
	cr_assert_null(clutch_tracer);
	setenv("CLUTCH_TRACE", "", 1);
	clutch_trace_init(ROLE_APP, 0);
	cr_assert_null(clutch_tracer);
	setenv("CLUTCH_TRACE", "1", 1);
	clutch_trace_init(ROLE_APP, 0);
	cr_assert_not_null(clutch_tracer);
	c = cluster_start(&(struct options){.agent = run_agent, .app = run_app, .workers = 1});
	cluster_ready(c);
	greet(c, "1");
	cluster_wait(c, 0, "greeted");
	cr_assert_eq(cluster_count(c, 0, "trace\t"), 0);
	cluster_stop(c);
}

static void
count_descriptors(const char *trace, int descriptors[3])
{
	struct cluster *c = start(trace, 1);

	greet(c, "1");
	cluster_wait(c, 0, "greeted");
	descriptors[0] = process_descriptors(c->master);
	descriptors[1] = process_descriptors(cluster_pid(c, "AGENT#1"));
	descriptors[2] = process_descriptors(cluster_pid(c, "APP#1"));
	cluster_stop(c);
}

Test(trace, costs_no_process_a_descriptor)
{
	int without[3], with[3];

	count_descriptors("0", without);
	count_descriptors(trace_path(), with);
	cr_assert_arr_eq(with, without, sizeof with);
}

/* ---- lost lines -------------------------------------------------------------------------- */

/* Fill a pipe to its last byte. */
static size_t
fill(int pipe)
{
	size_t filled = 0;
	ssize_t count;

	fcntl(pipe, F_SETFL, O_NONBLOCK);
	while ((count = write(pipe, "................................", 32)) > 0 ||
	       (count = write(pipe, ".", 1)) > 0)
		filled += (size_t)count;
	fcntl(pipe, F_SETFL, 0);
	return filled;
}

Test(trace, says_how_many_lines_a_full_pipe_has_cost)
{
	char buffer[1024 * 1024], *text;
	int saved = dup(STDERR_FILENO), pair[2];
	size_t filled;
	ssize_t count;

	cr_assert_eq(pipe(pair), 0);
	filled = fill(pair[1]);
	dup2(pair[1], STDERR_FILENO);
	setenv("CLUTCH_TRACE", "1", 1);
	clutch_trace_init(ROLE_APP, 0);
	trace_one("first", NULL, 0);
	trace_one("second", NULL, 0);
	trace_one("third", NULL, 0);
	count = read(pair[0], buffer, sizeof buffer);
	trace_one("fourth", NULL, 0);
	trace_one("fifth", NULL, 0);
	dup2(saved, STDERR_FILENO);
	cr_assert_eq((size_t)count, filled);
	count = read(pair[0], buffer, sizeof buffer - 1);
	cr_assert_gt(count, 0);
	buffer[count] = '\0';
	text = buffer;
	split(&lines[0], strsep(&text, "\n"));
	split(&lines[1], strsep(&text, "\n"));
	cr_assert_str_eq(text, "");
	cr_assert_str_eq(lines[0].field[4], "3");
	cr_assert_str_eq(lines[0].field[13], "fourth");
	cr_assert_str_eq(lines[1].field[4], "0");
	cr_assert_str_eq(lines[1].field[13], "fifth");
}

Test(trace, says_once_that_its_file_cannot_be_written)
{
	struct cluster *c = start("/dev/null/trace", 1);

	greet(c, "1");
	cluster_wait(c, 0, "greeted");
	cr_assert_eq(cluster_count(c, 0, "cannot write /dev/null/trace: Not a directory"), 3,
	             "master, agent and app did not log one line each");
	cluster_stop(c);
}
