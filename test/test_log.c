/*
 * The format of the log, and the master's answer to clutch-status.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "commands.h"
#include "compile.h"

#include <criterion/criterion.h>

#include <ctype.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

TestSuite(log, .timeout = 180);

/* ---- a head, taken apart -------------------------------------------------------- */

struct head {
	char time[24], level[8], role[8];
	long pid;
	int slot; /* -1: none */
};

/* Does the text begin with this pattern, in which 0 stands for any digit? */
static bool
has_shape(const char *text, const char *shape)
{
	for (; *shape != '\0'; text++, shape++)
		if (*shape == '0' ? !isdigit((unsigned char)*text) : *text != *shape)
			return false;
	return true;
}

static void
parse_head(const char *line, struct head *head)
{
	int end = 0;

	cr_assert(has_shape(line, "0000-00-00 00:00:00.000 "), "no time: %s", line);
	snprintf(head->time, sizeof head->time, "%.23s", line);
	cr_assert_eq(sscanf(line + 24, "%7[A-Z] %ld %7[a-z]%n", head->level, &head->pid, head->role,
	                    &end),
	             3, "no level, pid and process: %s", line);
	cr_assert(strcmp(head->level, "ERROR") == 0 || strcmp(head->level, "WARN") == 0 ||
	                  strcmp(head->level, "INFO") == 0,
	          "%s", line);
	line += 24 + end;
	head->slot = -1;
	end = 0;
	if (strcmp(head->role, "app") == 0)
		cr_assert_eq(sscanf(line, " %d%n", &head->slot, &end), 1, "no slot: %s", line);
	cr_assert(strncmp(line + end, ": ", 2) == 0, "the head has no end: %s", line);
}

/* The local time now, in the format of a line's head. */
static void
note_time(char *text, size_t size)
{
	struct timespec now;
	struct tm local;
	size_t used;

	clock_gettime(CLOCK_REALTIME, &now);
	used = strftime(text, size, "%Y-%m-%d %H:%M:%S", localtime_r(&now.tv_sec, &local));
	snprintf(text + used, size - used, ".%03ld", now.tv_nsec / 1000000);
}

/* ---- every line ------------------------------------------------------------------- */

static int
fail_listener(struct messenger *messenger, const struct message *message, void *arg)
{
	(void)messenger, (void)message, (void)arg;
	return 9;
}

static int
fail_on_order(struct messenger *messenger, void *arg)
{
	(void)arg;
	return messenger_on(messenger, "test-fail", fail_listener, NULL);
}

/* The first line of a process has the name of the process already. */
static void
log_birth(enum role role, void *arg)
{
	(void)role, (void)arg;
	clutch_log(CLUTCH_INFO, "closes what it must not keep");
}

/* The head names the process that has printed the line. */
static void
check_process(struct cluster *c, const struct head *head, const char *line)
{
	const char *name = cluster_name(c, (pid_t)head->pid);
	char wanted[16], born[64];

	snprintf(wanted, sizeof wanted, "%s",
	         strcmp(head->role, "app") == 0     ? "APP#"
	         : strcmp(head->role, "agent") == 0 ? "AGENT#"
	                                            : "MASTER");
	cr_assert_eq(strncmp(name, wanted, strlen(wanted)), 0, "%s is not %s: %s", head->role, name,
	             line);
	snprintf(born, sizeof born, ":%s start (app %d)", name, head->slot);
	cr_assert(head->slot == -1 || cluster_count(c, 0, "%s", born) == 1, "not of slot %d: %s",
	          head->slot, line);
}

/* Returns the number of lines. The times of one process never go back. */
static size_t
check_lines(struct cluster *c, const char *begin, const char *end)
{
	static struct head last[16];
	struct head head;
	size_t at = 0, count = 0, i;
	const char *line;

	while ((line = cluster_next_line(c, &at, "")) != NULL) {
		if (line[0] == '@')
			continue;
		parse_head(line, &head);
		check_process(c, &head, line);
		cr_assert(strcmp(begin, head.time) <= 0 && strcmp(head.time, end) <= 0,
		          "not from %s to %s: %s", begin, end, line);
		for (i = 0; last[i].pid != 0 && last[i].pid != head.pid; i++)
			;
		cr_assert_leq(strcmp(last[i].time, head.time), 0, "%s and then %s", last[i].time,
		              line);
		last[i] = head;
		count++;
	}
	return count;
}

Test(log, each_line_of_the_log_has_a_head)
{
	char begin[32], end[32];
	struct cluster *c;
	size_t at;

	note_time(begin, sizeof begin);
	c = cluster_start(&(struct options){
		.agent = fail_on_order, .app = fail_on_order, .in_child = log_birth, .workers = 2});
	cluster_ready(c);
	cluster_signal(c, "APP#2", SIGKILL);
	at = cluster_wait(c, 0, "app_worker#3:APP#3 started, remain 0");
	cluster_signal(c, "AGENT#1", SIGKILL);
	at = cluster_wait(c, at, "agent_worker#2:AGENT#2 started");
	cr_assert_eq(messenger_send_to_agent(c->parent, "test-fail", NULL), 0);
	cr_assert_eq(messenger_send_to(c->parent, cluster_pid(c, "APP#1"), "test-fail", NULL), 0);
	cluster_wait(c, at, "[agent_worker] uncaught error 9 in a listener of \"test-fail\"");
	cluster_wait(c, at, "[app_worker] uncaught error 9 in a listener of \"test-fail\"");
	cluster_wait(c, at, "[master] app_worker#1:APP#1 died (code: 1, signal: null) (app 0)");
	at = cluster_wait(c, at, "app_worker#4:APP#4 started");
	cluster_signal(c, "MASTER", SIGUSR2);
	at = cluster_wait(c, at, "[master] reload done");
	cluster_ask_status(c);
	cluster_signal(c, "MASTER", SIGTERM);
	cluster_wait(c, at, "[master] exit with code:0");
	cluster_wait_death(c, "MASTER");
	note_time(end, sizeof end);
	cr_assert_gt(check_lines(c, begin, end), 30);
	cluster_ended(c, 0);
}

/* ---- the two streams --------------------------------------------------------------- */

/* A field of the status of the default cluster, as a number. */
static long
status_number(const char *row, const char *name)
{
	char wanted[64];
	const char *at = strstr(command("status --json", 0, row), row);

	snprintf(wanted, sizeof wanted, "\"%s\":", name);
	at = strstr(at, wanted);
	cr_assert_not_null(at);
	return atol(at + strlen(wanted));
}

/* Each line of a stream has one of these levels; returns the time of the line with the text. */
static void
check_stream(const char *name, const char *levels, const char *wanted, char time[24])
{
	static char text[64 * 1024];
	struct head head;
	char *line;

	time[0] = '\0';
	snprintf(text, sizeof text, "%s", content_of(path_of(name)));
	for (line = strtok(text, "\n"); line != NULL; line = strtok(NULL, "\n")) {
		parse_head(line, &head);
		cr_assert(strstr(levels, head.level) != NULL, "in %s: %s", name, line);
		if (strstr(line, wanted) != NULL)
			memcpy(time, head.time, sizeof head.time);
	}
	cr_assert(time[0] != '\0', "%s is not in %s", wanted, name);
}

Test(log, the_two_streams_can_be_merged_by_time)
{
	char ready[24], died[24], again[24], gone[24];

	home();
	command("start --daemon", 0, "egg: started, pid ");
	kill((pid_t)status_number("\"slot\":1,", "pid"), SIGKILL);
	wait_file("logs/egg-stdout.log", "app_worker#3", 2);
	command("stop", 0, "egg: stopped (");
	check_stream("logs/egg-stdout.log", "INFO", "[master] egg started", ready);
	check_stream("logs/egg-stderr.log", "WARN ERROR", " died (", died);
	check_stream("logs/egg-stdout.log", "INFO", "[master] app_worker#3:", again);
	check_stream("logs/egg-stdout.log", "INFO", "[master] exit with code:0", gone);
	cr_assert_leq(strcmp(ready, died), 0, "ready at %s, the death at %s", ready, died);
	cr_assert_leq(strcmp(died, again), 0, "the death at %s, the replacement at %s", died,
	              again);
	cr_assert_leq(strcmp(again, gone), 0, "the replacement at %s, the end at %s", again, gone);
	nobody_is_left();
}

/* ---- a terminal ---------------------------------------------------------------------- */

Test(log, on_a_terminal_it_has_a_short_form)
{
	static struct run run;
	char *line;

	start_in_terminal(&run, "start --workers=1");
	wait_text(&run, "[master] to stop it: Ctrl-C");
	kill((pid_t)status_number("\"slot\":0,", "pid"), SIGKILL);
	wait_text(&run, "app_worker#2");
	wait_text(&run, " (app 0)\r\n");
	cr_assert_eq(write(run.output, "\003", 1), 1);
	cr_assert_eq(end(&run), 0, "%s", run.text);
	cr_assert_not_null(strstr(run.text, " ERROR master: [master] app_worker#1:"), "%s",
	                   run.text);
	cr_assert_null(strstr(run.text, "INFO"), "%s", run.text);
	for (line = strtok(run.text, "\r\n"); line != NULL; line = strtok(NULL, "\r\n")) {
		if (strncmp(line, "^C", 2) == 0) /* the terminal's echo */
			line += 2;
		cr_assert(has_shape(line, "00:00:00.000 master: [master] ") ||
		                  has_shape(line, "00:00:00.000 ERROR master: [master] ") ||
		                  has_shape(line, "00:00:00.000 agent: [agent_worker] ") ||
		                  has_shape(line, "00:00:00.000 app 0: [app_worker] "),
		          "%s", line);
	}
	nobody_is_left();
}

/* ---- CLUTCH_LOG ---------------------------------------------------------------------- */

/* Start, kill the app, let its replacement start, and stop. */
static const char *
run_with_level(const char *level)
{
	static struct run run;

	home();
	setenv("CLUTCH_LOG", level, 1);
	manners.app_prints = "an app loads";
	start(&run, "start --workers=1");
	wait_text(&run, "an app loads\n");
	while (strstr(command("status --json", 0, "\"name\":\"egg\""), "\"running\"") == NULL)
		;
	kill((pid_t)status_number("\"slot\":0,", "pid"), SIGKILL);
	while (count_text(run.text, "an app loads\n") < 2)
		read_output(&run, clutch_now() + time_limit());
	command("stop", 0, "egg: stopped (");
	cr_assert_eq(end(&run), 0, "%s", run.text);
	return run.text;
}

Test(log, the_level_warn_hides_info)
{
	const char *text = run_with_level("Warn");

	cr_assert_eq(count_text(text, " INFO "), 0, "%s", text);
	cr_assert_eq(count_text(text, " ERROR "), 1, "%s", text);
	cr_assert_eq(count_text(text, " died (code: null, signal: SIGKILL) (app 0)\n"), 1, "%s",
	             text);
}

Test(log, the_level_info_hides_nothing)
{
	cr_assert_gt(count_text(run_with_level("info"), " INFO "), 8);
}

Test(log, a_bad_level_is_one_clear_line_and_exit_1)
{
	struct cluster *c;

	clear_environment();
	setenv("CLUTCH_LOG", "loud", 1);
	c = cluster_start(&(struct options){.workers = 1});
	cluster_wait(c, 0, "[master] CLUTCH_LOG=loud is no good: give error, warn or info");
	cluster_wait_death(c, "MASTER");
	cr_assert_eq(cluster_count(c, 0, "[master]"), 1);
	cluster_ended(c, 1);
}

/* ---- a full log ------------------------------------------------------------------------ */

static bool
is_answered(const void *arg)
{
	(void)arg;
	return access(path_of("run/egg.pid.status"), F_OK) == 0;
}

/* The master logs its status, four lines for one worker, and then writes it into the file. */
static void
ask(struct run *run, size_t *lines)
{
	unlink(path_of("run/egg.pid.status"));
	kill(run->pid, SIGUSR1);
	wait_until(is_answered, NULL, "the status file");
	*lines += 5;
}

static size_t
count_lost(const char *text)
{
	size_t count = 0, lost;

	while ((text = strstr(text, " WARN ")) != NULL) {
		text += 6;
		if (sscanf(text, "%*d master: the log was full: %zu lines are lost\n", &lost) == 1)
			count += lost;
	}
	return count;
}

Test(log, a_full_log_says_how_many_lines_it_has_cost)
{
	static struct run run;
	size_t lines = 0, i;

	start(&run, "start --workers=1");
	wait_text(&run, "[master] to stop it");
	for (i = 0; i < 60; i++) /* more than a pipe holds, and the test does not read */
		ask(&run, &lines);
	cr_assert_eq(count_lost(run.text), 0);
	while (count_lost(run.text) == 0) {
		while (poll(&(struct pollfd){run.output, POLLIN, 0}, 1, 100) == 1)
			read_output(&run, clutch_now() + time_limit());
		ask(&run, &lines);
		cr_assert_lt(lines, 5000, "%s", run.text);
	}
	kill(run.pid, SIGTERM);
	cr_assert_eq(end(&run), 0);
	cr_assert_gt(count_lost(run.text), 20);
	cr_assert_eq(count_text(run.text, "[master] status ") + count_lost(run.text), lines,
	             "%zu were written, %zu lost, of %zu", count_text(run.text, "[master] status "),
	             count_lost(run.text), lines);
	nobody_is_left();
}

/* All bytes in a pipe whose writing end this process has closed. */
static const char *
rest_of(int descriptor)
{
	static char text[512 * 1024];
	ssize_t length;
	size_t used = 0;

	while ((length = read(descriptor, text + used, sizeof text - 1 - used)) > 0)
		used += (size_t)length;
	text[used] = '\0';
	return text;
}

static bool is_machine_busy;

int __real_poll(struct pollfd *set, nfds_t count, int timeout);
int __wrap_poll(struct pollfd *set, nfds_t count, int timeout);

int
__wrap_poll(struct pollfd *set, nfds_t count, int timeout)
{
	if (is_machine_busy)
		__real_poll(NULL, 0, 600);
	return __real_poll(set, count, timeout);
}

/* The machine has held the line up, and not the log: the log takes the next line. */
Test(log, a_line_that_takes_long_on_a_busy_machine_costs_no_other)
{
	char text[1024] = "";
	int out[2];

	cr_assert(pipe(out) == 0 && dup2(out[1], STDOUT_FILENO) == STDOUT_FILENO);
	is_machine_busy = true;
	clutch_log(CLUTCH_INFO, "the first line");
	is_machine_busy = false;
	clutch_log(CLUTCH_INFO, "the second line");
	cr_assert_gt(read(out[0], text, sizeof text - 1), 0);
	cr_assert_not_null(strstr(text, ": the first line\n"));
	cr_assert_not_null(strstr(text, ": the second line\n"), "%s", text);
}

/* One line is lost while the pipe is full. Each line that follows is written; or it is lost, too,
 * if this process was held up for so long that it spares the log for a while. */
Test(log, one_lost_line_is_told)
{
	static char text[128 * 1024] = "";
	const char *told = NULL;
	int64_t deadline = clutch_now() + 2 * time_limit();
	size_t lost = 1;
	int out[2];

	cr_assert(pipe(out) == 0 && dup2(out[1], STDOUT_FILENO) == STDOUT_FILENO);
	fcntl(out[0], F_SETFL, O_NONBLOCK);
	fcntl(out[1], F_SETFL, O_NONBLOCK);
	while (write(out[1], text, 4096) > 0)
		;
	clutch_log(CLUTCH_INFO, "a line that is lost");
	while (read(out[0], text, sizeof text) > 0)
		;
	while (told == NULL && clutch_now() < deadline) {
		memset(text, 0, sizeof text);
		clutch_log(CLUTCH_INFO, "a line");
		lost += read(out[0], text, sizeof text - 1) == -1;
		told = strstr(text, "the log was full: ");
	}
	cr_assert_not_null(told, "nothing is said about the lost line");
	cr_assert_eq(strtoul(told + strlen("the log was full: "), NULL, 10), lost);
	cr_assert_not_null(strstr(told, ": a line\n"));
}

/* A full stdout does not touch stderr: no line of stderr is lost or late, and none speaks of lost
 * lines. */
Test(log, a_full_stream_is_no_matter_of_the_other_one)
{
	int i, out[2], error[2], status;
	const char *text;
	pid_t pid;

	cr_assert(pipe(out) == 0 && pipe(error) == 0);
	pid = fork();
	if (pid == 0) {
		dup2(out[1], STDOUT_FILENO);
		dup2(error[1], STDERR_FILENO);
		for (i = 0; i < 200; i++)
			clutch_log(CLUTCH_INFO, "%01000d", i);
		clutch_log(CLUTCH_ERROR, "an error");
		_exit(0);
	}
	close(out[1]);
	close(error[1]);
	cr_assert_eq(waitpid(pid, &status, 0), pid);
	text = rest_of(error[0]);
	cr_assert_not_null(strstr(text, ": an error\n"), "%s", text);
	cr_assert_null(strstr(text, "the log was full"), "%s", text);
	text = rest_of(out[0]);
	cr_assert(count_text(text, " INFO ") > 10 && count_text(text, " INFO ") < 200);
}

/* ---- a stranger's text ------------------------------------------------------------------ */

static int
fail_on_anything(struct messenger *messenger, void *arg)
{
	(void)arg;
	return messenger_on(messenger, NULL, fail_listener, NULL);
}

Test(log, control_characters_of_a_strangers_action_do_not_break_a_line)
{
	struct cluster *c = cluster_start(
		&(struct options){.agent = fail_on_anything, .workers = 1, .env = "local"});
	size_t mark;

	cluster_ready(c);
	mark = cluster_mark(c);
	cr_assert_eq(messenger_send_to_agent(c->parent, "a\n[master] forged\r\033[2J\177", NULL),
	             0);
	cluster_wait(c, mark,
	             "[agent_worker] uncaught error 9 in a listener of "
	             "\"a?[master] forged??[2J?\"");
	cr_assert_eq(cluster_count(c, mark, "forged"), 1);
	cluster_stop(c);
}

/* ---- JSON ---------------------------------------------------------------------------------- */

static const char *skip_value(const char *at);

static const char *
skip_blanks(const char *at)
{
	return at + strspn(at, " \t\r\n");
}

static const char *
skip_string(const char *at)
{
	if (*at++ != '"')
		return NULL;
	for (; *at != '"'; at++) {
		if ((unsigned char)*at < ' ')
			return NULL;
		if (*at == '\\' && strchr("\"\\/bfnrt", *++at) == NULL)
			return NULL;
	}
	return at + 1;
}

static const char *
skip_number(const char *at)
{
	at += *at == '-';
	if (!isdigit((unsigned char)*at) || (at[0] == '0' && isdigit((unsigned char)at[1])))
		return NULL;
	return at + strspn(at, "0123456789");
}

/* A list, or an object. */
static const char *
skip_members(const char *at)
{
	const char end = *at == '{' ? '}' : ']';

	at = skip_blanks(at + 1);
	if (*at == end)
		return at + 1;
	for (;; at++) {
		if (end == '}') {
			at = skip_string(skip_blanks(at));
			at = at != NULL ? skip_blanks(at) : "";
			if (*at++ != ':')
				return NULL;
		}
		at = skip_value(at);
		if (at == NULL)
			return NULL;
		at = skip_blanks(at);
		if (*at == end)
			return at + 1;
		if (*at != ',')
			return NULL;
	}
}

/* Returns the place behind the value, or NULL if there is no value. (No fraction, no exponent, no
 * true, no null.) */
static const char *
skip_value(const char *at)
{
	at = skip_blanks(at);
	if (*at == '{' || *at == '[')
		return skip_members(at);
	return *at == '"' ? skip_string(at) : skip_number(at);
}

static bool
is_json(const char *text)
{
	const char *end = skip_value(text);

	return *skip_blanks(text) == '{' && end != NULL && *skip_blanks(end) == '\0';
}

Test(log, the_checker_of_json_can_fail)
{
	static const char *const bad[] = {"",           "{",           "{\"a\"}",
	                                  "{\"a\":}",   "{\"a\":1,}",  "{\"a\":01}",
	                                  "{a:1}",      "[1]",         "{\"a\":[1}",
	                                  "{\"a\":1}x", "{\"a\n\":1}", "{\"a\":1 \"b\":2}",
	                                  "{\"a\":",    "{\"a\":\"}"};
	size_t i;

	for (i = 0; i < sizeof bad / sizeof bad[0]; i++)
		cr_expect_not(is_json(bad[i]), "%s", bad[i]);
	cr_assert(is_json("{\"a\":[{\"b\":-1},{}],\n\"c\":\"\"}"));
}

/* ---- clutch-status ----------------------------------------------------------------------- */

static int
tell_status(struct messenger *messenger, const struct message *message, void *arg)
{
	(void)arg;
	report(messenger, "got %zu bytes from %s, %s", message->data_length,
	       message->from == ROLE_MASTER ? "the master" : "a stranger",
	       is_json(message->data) && strlen(message->data) == message->data_length ? "JSON"
	                                                                               : "no JSON");
	return 0;
}

static int
ask_master(struct messenger *messenger, const struct message *message, void *arg)
{
	(void)message, (void)arg;
	return messenger_send(messenger, "clutch-status", NULL, ROLE_MASTER);
}

/* The agent answers as if it were the master. */
static int
forge(struct messenger *messenger, const struct message *message, void *arg)
{
	(void)message, (void)arg;
	return messenger_send_to_agent(messenger, "clutch-status", "{}") == 0 &&
	                       messenger_send_to_app(messenger, "clutch-status", "{}") == 0
	               ? 0
	               : -1;
}

static int
be_curious(struct messenger *messenger, void *arg)
{
	(void)arg;
	return messenger_on(messenger, "clutch-status", tell_status, NULL) == 0 &&
	                       messenger_on(messenger, "test-ask", ask_master, NULL) == 0 &&
	                       messenger_on(messenger, "test-forge", forge, NULL) == 0
	               ? 0
	               : -1;
}

static char answer[4096]; /* the last answer to the parent */

static int
keep_answer(struct messenger *parent, const struct message *message, void *arg)
{
	(void)parent, (void)arg;
	snprintf(answer, sizeof answer, "%s", message->data);
	return 0;
}

static bool
has_answer(struct cluster *c, void *arg)
{
	(void)c, (void)arg;
	return answer[0] != '\0';
}

Test(log, any_process_can_ask_for_the_status)
{
	char wanted[128];
	struct cluster *c = cluster_start(
		&(struct options){.agent = be_curious, .app = be_curious, .workers = 2});

	cluster_ready(c);
	cr_assert_eq(messenger_on(c->parent, "clutch-status", keep_answer, NULL), 0);
	cr_assert_eq(messenger_send(c->parent, "clutch-status", NULL, ROLE_MASTER), 0);
	cr_assert_eq(messenger_send_to_agent(c->parent, "test-ask", NULL), 0);
	cr_assert_eq(messenger_send_to_app(c->parent, "test-ask", NULL), 0);
	cluster_until(c, has_answer, NULL, "the parent's answer");
	cluster_wait(c, 0, ":AGENT#1 got ");
	cluster_wait(c, 0, ":APP#1 got ");
	cluster_wait(c, 0, ":APP#2 got ");
	cr_assert_eq(cluster_count(c, 0, " bytes from the master, JSON"), 3);
	cr_assert(is_json(answer), "%s", answer);
	cr_assert_eq(count_text(answer, "{\"role\":"), 4, "%s", answer);
	cr_assert_not_null(strstr(answer, "\"app_close\":5000,\"agent_close\":5000,"), "%s",
	                   answer);
	snprintf(wanted, sizeof wanted, "{\"role\":\"app\",\"slot\":1,\"pid\":%ld,",
	         (long)cluster_pid(c, "APP#2"));
	cr_assert_not_null(strstr(answer, wanted), "%s", answer);
	cr_assert_not_null(strstr(answer, "\n],\"left_out\":0}"), "%s", answer);
	cluster_stop(c);
}

static int
become_ready(struct messenger *app, const struct message *message, void *arg)
{
	(void)message, (void)arg;
	return messenger_ready(app, 0);
}

static int
ask_before_it_is_ready(struct messenger *app, void *arg)
{
	messenger_ready_later(app);
	return be_curious(app, arg) == 0 &&
	                       messenger_on(app, "test-ready", become_ready, NULL) == 0 &&
	                       messenger_send(app, "clutch-status", NULL, ROLE_MASTER) == 0
	               ? 0
	               : -1;
}

/* What an app says to the master before it listens does not make it one that listens. */
Test(log, an_app_that_asks_before_it_is_ready_has_not_started)
{
	struct cluster *c =
		cluster_start(&(struct options){.app = ask_before_it_is_ready, .workers = 1});

	cluster_wait(c, 0, ":APP#1 got ");
	cluster_turn(c);
	cr_assert_eq(cluster_count(c, 0, "app_worker#1:APP#1 started"), 0);
	cr_assert_eq(messenger_send_to_app(c->parent, "test-ready", NULL), 0);
	cluster_ready(c);
	cluster_wait(c, 0, "app_worker#1:APP#1 started");
	cluster_stop(c);
}

/* The agent sends more than a queue holds before it is ready and the apps are forked. */
static int
flood_apps(struct messenger *agent, void *arg)
{
	static char data[64 * 1024];
	static size_t sent;

	memset(data, '1', sizeof data - 1);
	while (sent < 3 * CHANNEL_QUEUE_MAX && messenger_send_to_app(agent, "test", data) == 0)
		sent += sizeof data;
	if (sent < 3 * CHANNEL_QUEUE_MAX)
		return messenger_set_timeout(agent, 1, flood_apps, arg) == -1;
	messenger_ready(agent, 0);
	return 0;
}

static int
flood_and_be_ready(struct messenger *agent, void *arg)
{
	messenger_ready_later(agent);
	return messenger_set_timeout(agent, 0, flood_apps, arg) == -1;
}

Test(log, an_app_whose_queue_is_full_before_it_is_forked_is_named_by_its_slot)
{
	struct cluster *c =
		cluster_start(&(struct options){.agent = flood_and_be_ready, .workers = 2});

	cluster_wait(c, 0,
	             "[master] app_worker#0:0 is not there and its queue is full: messages for "
	             "it are dropped (app 0)");
	cluster_wait(c, 0, "messages for it are dropped (app 1)");
	cluster_ready(c);
	cluster_stop(c);
}

Test(log, nobody_may_answer_in_the_masters_place)
{
	struct cluster *c = cluster_start(
		&(struct options){.agent = be_curious, .app = be_curious, .workers = 2});

	cluster_ready(c);
	cr_assert_eq(messenger_send_to(c->parent, cluster_pid(c, "APP#1"), "test-forge", NULL), 0);
	cluster_wait(c, 0,
	             "app_worker#1:APP#1 may not send clutch-status: refused, as are more of "
	             "this kind (app 0)");
	cr_assert_eq(messenger_send_to_app(c->parent, "test-ask", NULL), 0);
	cr_assert_eq(messenger_send_to_agent(c->parent, "test-ask", NULL), 0);
	cluster_wait(c, 0, ":AGENT#1 got ");
	cluster_wait(c, 0, ":APP#2 got ");
	cr_assert_eq(cluster_count(c, 0, "from a stranger"), 0);
	cr_assert_eq(cluster_count(c, 0, ":AGENT#1 got "), 1);
	cluster_stop(c);
}

/* The app asks many times, and reads no answer. */
static int
ask_often(struct messenger *app, const struct message *message, void *arg)
{
	int i;

	(void)message, (void)arg;
	for (i = 0; i < 12000; i++)
		messenger_send(app, "clutch-status", NULL, ROLE_MASTER);
	return raise(SIGSTOP);
}

static int
ask_often_on_order(struct messenger *app, void *arg)
{
	(void)arg;
	return messenger_on(app, "test-often", ask_often, NULL);
}

static bool
has_asked(struct cluster *c, void *arg)
{
	(void)arg;
	cluster_ask_status(c);
	return cluster_figure(c, "APP#1", "heard") > 5000;
}

/* An answer is larger than its question: answers that wait do not fill the master's memory. */
Test(log, who_reads_no_answer_gets_no_more)
{
	struct cluster *c =
		cluster_start(&(struct options){.app = ask_often_on_order, .workers = 1});

	cluster_ready(c);
	cr_assert_eq(messenger_send_to_app(c->parent, "test-often", NULL), 0);
	cluster_until(c, has_asked, NULL, "the app to have asked 5,000 times");
	cr_assert_gt(cluster_figure(c, "APP#1", "queued"), CHANNEL_HIGH_WATER / 2);
	cr_assert_lt(cluster_figure(c, "APP#1", "queued"), 2 * CHANNEL_HIGH_WATER);
	cluster_signal(c, "APP#1", SIGCONT);
	cluster_stop(c);
}

/* ---- what the rows say --------------------------------------------------------------------- */

static char no_start[300];

static int
fail_while_file_exists(struct messenger *app, void *arg)
{
	(void)app, (void)arg;
	return access(no_start, F_OK) == 0 ? -1 : 0;
}

/* The last dead worker of the slot is reaped, and the next one is not forked yet. */
static bool
is_in_back_off(struct cluster *c, void *arg)
{
	(void)arg;
	cluster_ask_status(c);
	return cluster_figure(c, "app 1", "pid") == 0 &&
	       cluster_figure(c, "app 1", "refork_in") > 0;
}

Test(log, a_slot_in_back_off_has_a_row)
{
	struct cluster *c;
	FILE *file;

	snprintf(no_start, sizeof no_start, "%s/no-start", test_folder());
	c = cluster_start(&(struct options){.app = fail_while_file_exists, .workers = 2});
	cluster_ready(c);
	file = fopen(no_start, "w");
	cr_assert(file != NULL && fclose(file) == 0);
	cluster_signal(c, "APP#2", SIGKILL);
	cluster_until(c, is_in_back_off, NULL, "slot 1 to be in back-off");
	cr_assert_str_eq(cluster_status(c, "app 1", "state"), "waiting");
	cr_assert_leq(cluster_figure(c, "app 1", "refork_in"), 32000);
	cr_assert_gt(cluster_figure(c, "app 1", "reforks"), 0);
	cr_assert_str_eq(cluster_status(c, "app 1", "last_death"), "code: 1, signal: null");
	cr_assert_eq(cluster_figure(c, "app 0", "refork_in"), 0);
	cr_assert_eq(unlink(no_start), 0);
	cluster_stop(c);
}

static int
flood(struct messenger *agent, void *arg)
{
	static char data[64 * 1024];
	int sent = 0;

	memset(data, 'x', sizeof data - 1);
	while (sent < 16 && messenger_send_to_app(agent, "test-flood", data) == 0)
		sent++;
	return messenger_set_timeout(agent, 1, flood, arg) == -1;
}

static int
flood_when_ready(struct messenger *agent, const struct message *message, void *arg)
{
	(void)message;
	return flood(agent, arg);
}

static int
be_loud(struct messenger *agent, void *arg)
{
	return messenger_on(agent, "test-begin", flood_when_ready, arg);
}

/* On a busy machine the sender also waits for the other app, until that app has caught up. */
static bool
waits_for_app_1(struct cluster *c, void *arg)
{
	(void)arg;
	cluster_ask_status(c);
	return cluster_figure(c, "agent", "waits") > 50 &&
	       strcmp(cluster_status(c, "agent", "waits_for"), "[\"app:1\"]") == 0;
}

Test(log, the_status_says_for_which_process_another_one_waits)
{
	struct cluster *c = cluster_start(&(struct options){.agent = be_loud, .workers = 2});
	long long waited;

	cluster_ready(c);
	cluster_signal(c, "APP#2", SIGSTOP);
	cr_assert_eq(messenger_send_to_agent(c->parent, "test-begin", NULL), 0);
	cluster_until(c, waits_for_app_1, NULL, "the agent to wait for app 1");
	cr_assert_gt(cluster_figure(c, "app 1", "queued"), CHANNEL_LOW_WATER);
	cr_assert_str_eq(cluster_status(c, "app 1", "waits_for"), "[]");
	waited = cluster_figure(c, "agent", "waits");
	cluster_ask_status(c);
	cr_assert_gt(cluster_figure(c, "agent", "waits"), waited - 1);
	cluster_signal(c, "AGENT#1", SIGKILL);
	cluster_signal(c, "APP#2", SIGCONT);
	cluster_wait(c, 0, "agent_worker#2:AGENT#2 started");
	cluster_stop(c);
}

/* ---- a tiny message ------------------------------------------------------------------------- */

static const char tiny[] =
	"#include \"messenger.h\"\n"
	"#include <signal.h>\n"
	"#include <stdio.h>\n"
	"#include <unistd.h>\n"
	"static int\n"
	"on_status(struct messenger *agent, const struct message *m, void *arg)\n"
	"{\n"
	"	(void)agent, (void)arg;\n"
	"	printf(\"%zu %s\\n\", m->data_length, m->data);\n"
	"	fflush(stdout);\n"
	"	return kill(getppid(), SIGTERM);\n"
	"}\n"
	"static int\n"
	"on_ready(struct messenger *agent, const struct message *m, void *arg)\n"
	"{\n"
	"	(void)m, (void)arg;\n"
	"	return messenger_send(agent, \"clutch-status\", NULL, ROLE_MASTER);\n"
	"}\n"
	"static int\n"
	"agent(struct messenger *agent, void *arg)\n"
	"{\n"
	"	return messenger_on(agent, \"clutch-status\", on_status, arg) == 0\n"
	"	       ? messenger_once(agent, \"egg-ready\", on_ready, arg) : -1;\n"
	"}\n"
	"int\n"
	"main(void)\n"
	"{\n"
	"	return start_cluster(&(struct options){.agent = agent, .workers = 3});\n"
	"}\n";

/* Returns the status of a cluster of three apps whose messages are this small. */
static const char *
tiny_status(int data_max)
{
	const char *folder = test_folder(), *source = write_source("tiny.c", "%s", tiny), *text;
	char path[300];
	size_t length;

	cr_assert(run("%s -std=c99 -D_POSIX_C_SOURCE=200809L -DMESSAGE_DATA_MAX=%d -I. -o "
	              "%s/tiny %s sendmessage.c messenger.c agent.c worker.c master.c",
	              environment("CC", "cc"), data_max, folder, source));
	cr_assert(run("CLUTCH_LOG=error %s/tiny >%s/status", folder, folder));
	snprintf(path, sizeof path, "%s/status", folder);
	text = content_of(path);
	cr_assert_eq(sscanf(text, "%zu ", &length), 1, "%s", text);
	cr_assert_leq(length, (size_t)data_max);
	text = strchr(text, ' ') + 1;
	cr_assert(is_json(text), "%s", text);
	return text;
}

Test(log, rows_that_find_no_room_are_counted)
{
	const char *text = tiny_status(600);

	cr_assert_eq(strncmp(text, "{\"name\":\"", 9), 0, "%s", text);
	cr_assert_eq(count_text(text, "{\"role\":"), 1, "%s", text);
	cr_assert_not_null(strstr(text, "\n],\"left_out\":3}"), "%s", text);
}

Test(log, even_without_room_for_a_row_the_status_is_json)
{
	cr_assert_str_eq(tiny_status(100), "{\"processes\":[\n],\"left_out\":5}\n");
}

/* ---- a long line ------------------------------------------------------------------------- */

Test(log, a_long_line_is_cut)
{
	char line[4096];
	int ends[2];

	cr_assert_eq(pipe(ends), 0);
	clutch_print_line(ends[1], "%2000d", 1);
	cr_assert_eq(read(ends[0], line, sizeof line), 1024);
	cr_assert_eq(line[1023], '\n');
	close(ends[0]);
	close(ends[1]);
}
