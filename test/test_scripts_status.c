/*
 * The status as a table, and the lines that start and stop print while they wait.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "commands.h"
#include "egg-scripts/scripts.h"

#include <criterion/criterion.h>

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

TestSuite(scripts_status, .timeout = 120);

/* ---- the table ------------------------------------------------------------------ */

/* Print a status and return the text. */
static const char *
printed(void (*print)(const char *status), const char *status)
{
	int saved = dup(1), file;
	char path[300];

	snprintf(path, sizeof path, "%s", path_of("table"));
	file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	cr_assert(saved != -1 && file != -1);
	fflush(stdout);
	dup2(file, 1);
	print(status);
	fflush(stdout);
	dup2(saved, 1);
	close(saved);
	close(file);
	return content_of(path);
}

static const char *
table_of(const char *status)
{
	return printed(scripts_print_table, status);
}

#define HEAD                                                                                       \
	"role   slot     pid state             age reforks     heard      told    bytes in   "     \
	"bytes out   queued  waits for     last death\n"

Test(scripts_status, a_table_has_each_field_of_the_status)
{
	cr_assert_str_eq(
		table_of("{\"name\":\"hello\",\"pid\":4709,\"address\":\"http://127.0.0.1:7001\","
	                 "\"state\":\"running\",\"age\":61999,\"workers\":3,\"reload\":{\"done\":2,"
	                 "\"given_up\":1,\"slot\":0},\"undeliverable\":12,\"limits\":{\"start\":1,"
	                 "\"app_close\":5000,\"agent_close\":6000,\"stuck\":30000},"
	                 "\"processes\":[\n"
	                 "{\"role\":\"parent\",\"slot\":-1,\"pid\":0,\"state\":\"listening\","
	                 "\"age\":0,"
	                 "\"reforks\":0,\"refork_in\":0,\"heard\":0,\"told\":3,\"bytes_in\":0,"
	                 "\"bytes_out\":96,\"queued\":0,\"dropped\":0,\"waits_for\":[],\"waits\":0,"
	                 "\"last_death\":\"\"},\n"
	                 "{\"role\":\"agent\",\"slot\":-1,\"pid\":4710,\"state\":\"listening\","
	                 "\"age\":61000,\"reforks\":0,\"refork_in\":0,\"heard\":123456,"
	                 "\"told\":654321,\"bytes_in\":1111111,\"bytes_out\":2222222,\"queued\":0,"
	                 "\"dropped\":0,\"waits_for\":[\"parent:-1\",\"app:2\"],\"waits\":3999,"
	                 "\"last_death\":\"\"},\n"
	                 "{\"role\":\"app\",\"slot\":0,\"pid\":4711,\"state\":\"leaving\",\"age\":"
	                 "9000,"
	                 "\"reforks\":1,\"refork_in\":0,\"heard\":1,\"told\":2,\"bytes_in\":3,"
	                 "\"bytes_out\":4,\"queued\":5,\"dropped\":0,\"waits_for\":[],\"waits\":0,"
	                 "\"last_death\":\"code: null, signal: SIGKILL\"},\n"
	                 "{\"role\":\"app\",\"slot\":2,\"pid\":0,\"state\":\"waiting\",\"age\":0,"
	                 "\"reforks\":7,\"refork_in\":3001,\"heard\":0,\"told\":0,\"bytes_in\":0,"
	                 "\"bytes_out\":0,\"queued\":0,\"dropped\":0,\"waits_for\":[],\"waits\":0,"
	                 "\"last_death\":\"code: 1, signal: null\"}\n"
	                 "],\"left_out\":1}\n"),
		"hello on http://127.0.0.1:7001, pid 4709, 61s, 3 workers\n"
		"running, stops within 11000ms, reloads: 2 done, 1 given up, one under way\n" HEAD
		"parent    -       0 listening          0s       0         0         3           0"
		"          96        0  -             -\n"
		"agent     -    4710 listening         61s       0    123456    654321     1111111"
		"     2222222        0  parent, app 2 for 3s  -\n"
		"app       0    4711 leaving            9s       1         1         2           3"
		"           4        5  -             code: null, signal: SIGKILL\n"
		"app       2       0 waiting            0s       7         0         0           0"
		"           0        0  -             code: 1, signal: null, starts again in 4s\n"
		"12 undeliverable\n"
		"1 rows found no room\n");
}

/* A broken status does not crash the command. */
Test(scripts_status, a_status_that_is_cut_off_is_printed_as_far_as_it_goes)
{
	static const char whole[] =
		"{\"name\":\"egg\",\"pid\":1,\"address\":\"\",\"processes\":[\n"
		"{\"role\":\"app\",\"slot\":0,\"state\":\"waiting\",\"waits_for\":[\"app:1\"]}\n"
		"],\"left_out\":0}\n";
	char cut[sizeof whole];
	size_t i;

	for (i = 0; i < sizeof whole; i++) {
		snprintf(cut, i + 1, "%s", whole);
		cr_assert_not_null(strstr(table_of(cut), "role   slot     pid "), "%s", cut);
	}
}

/* Another user may have written the status. Bytes that control a terminal are printed as ?. */
Test(scripts_status, a_status_cannot_tell_the_terminal_what_to_do)
{
	cr_assert_str_eq(
		table_of("{\"name\":\"\x1b[2J\",\"address\":\"\x07\",\"state\":\"\r\x7f\"}\n"
	                 "{\"role\":\"app\",\"state\":\"\x1b]0;x\",\"last_death\":\"\t\x0e\"}\n"),
		"?[2J on ?, pid 0, 0s, 0 workers\n"
		"??, stops within 0ms, reloads: 0 done, 0 given up, one under way\n" HEAD
		"app       0       0 ?]0;x              0s       0         0         0           0"
		"           0        0  -             ??\n"
		"0 undeliverable\n");
}

Test(scripts_status, nor_can_it_as_json)
{
	cr_assert_str_eq(printed(scripts_print_json, "{\"name\":\"\x1b[2J\xc3\xa4\"\n\x7f}\n"),
	                 "{\"name\":\"?[2J\xc3\xa4\"\n?}\n");
}

/* No number overflows: each is at most a quarter of the largest, so that sums have room. */
Test(scripts_status, the_numbers_of_a_status_have_an_end)
{
	static const char status[] =
		"{\"app_close\":9223372036854775807,\"agent_close\":9223372036854775807}\n"
		"{\"role\":\"app\",\"pid\":-99999999999999999999,"
		"\"refork_in\":9223372036854775807}\n";
	struct command command = {.timeout = 0};
	char text[128];

	cr_expect_eq(scripts_number(status, "app_close"), 2305843009213693951);
	cr_expect_eq(scripts_number(strchr(status, '\n') + 1, "pid"), -2305843009213693951);
	cr_expect_eq(scripts_patience(&command, status), 4611686018427389902);
	cr_expect(strstr(table_of(status), "stops within 4611686018427387902ms") != NULL);
	scripts_list_unready(status, text, sizeof text);
	cr_expect_str_eq(text, "app 0 (died, starts again in 2305843009213694s)");
}

/* The status ends where a text would begin, and the bytes behind the end are not read. */
Test(scripts_status, nothing_behind_the_end_of_a_status_is_read)
{
	char status[64] = "{}\n{\"role\":\"app\",\"state\":";

	strcpy(status + strlen(status) + 1, "secret");
	cr_assert(strstr(table_of(status), "secret") == NULL);
}

/* A number that is too large for a pid must not be cut to the number of an existing group. */
Test(scripts_status, a_number_that_is_no_pid_is_no_group)
{
	struct cluster_found cluster = {.user = geteuid(), .master = getpid()};
	char status[128], text[128];

	snprintf(status, sizeof status, "{}\n{\"role\":\"app\",\"slot\":0,\"pid\":%lld}\n",
	         4294967296 + (long long)getpgrp());
	cluster.descriptor = open(path_of("pid"), O_RDWR | O_CREAT, 0600);
	cr_assert(cluster.descriptor != -1);
	dprintf(cluster.descriptor, "%ld", (long)getpid());
	scripts_list_left(&cluster, status, text, sizeof text);
	cr_expect(strncmp(text, "the master (pid ", 16) == 0, "%s", text);
	close(cluster.descriptor);
}

/* ---- start ----------------------------------------------------------------------- */

Test(scripts_status, start_says_each_second_for_which_processes_it_waits)
{
	const char *text;
	char logs[600];
	size_t count;

	home();
	manners.app_is_never_ready = true;
	text = command("start --daemon --timeout=4", 1, "egg: not ready within 4 s, stopping it\n");
	count = count_text(text, "egg: waits for app 0 (pid ");
	cr_assert(count >= 2 && count <= 4, "%s", text);
	cr_assert_eq(count_text(text, "), app 1 (pid "), count, "%s", text);
	snprintf(logs, sizeof logs, "; logs: %s, %s\n", path_of("logs/egg-stdout.log"),
	         path_of("logs/egg-stderr.log"));
	cr_assert_eq(count_text(text, logs), count, "%s", text);
	text = command("start --timeout=4 --workers=1", 1, "egg: not ready within 4 s, ");
	cr_assert_geq(count_text(text, "egg: waits for app 0 (pid "), 1, "%s", text);
	cr_assert_eq(count_text(text, "; logs"), 0, "%s", text);
	nobody_is_left();
}

Test(scripts_status, a_start_without_a_wait_says_where_the_logs_are)
{
	const char *text;
	char logs[600];

	home();
	text = command("start --daemon", 0, "egg: started, pid ");
	snprintf(logs, sizeof logs, "; logs: %s, %s\n", path_of("logs/egg-stdout.log"),
	         path_of("logs/egg-stderr.log"));
	cr_assert_not_null(strstr(text, logs), "%s", text);
	command("stop", 0, "egg: stopped (");
	nobody_is_left();
}

/* ---- reload ---------------------------------------------------------------------- */

/* A monitor asks for the status in the middle of a reload. The reload goes on, and the command
 * "reload" waits until the reload has ended. */
Test(scripts_status, a_status_meanwhile_does_not_begin_a_reload_anew)
{
	static struct run run;
	const char *log;

	home();
	manners.app_takes = 500;
	command("start --daemon", 0, "egg: started, pid ");
	start(&run, "reload");
	wait_file("logs/egg-stdout.log", "[master] app_worker#3:", 1);
	command("status", 0, "under way\n");
	cr_assert_eq(end(&run), 0, "%s", run.text);
	cr_assert_not_null(strstr(run.text, "egg: reloaded 2 app workers ("), "%s", run.text);
	log = content_of(path_of("logs/egg-stdout.log"));
	cr_assert_eq(count_text(log, "[master] reload workers..."), 1, "%s", log);
	command("status", 0, " reloads: 1 done, 0 given up\n");
	command("stop", 0, "egg: stopped (");
	nobody_is_left();
}

/* ---- stop ------------------------------------------------------------------------ */

/* The app is dead, but a process that the app has started is alive. */
Test(scripts_status, stop_names_the_app_whose_processes_are_left)
{
	const char *text;

	home();
	manners.app_forks = manners.fork_is_stubborn = true;
	program.app_close_timeout = 3000;
	command("start --daemon --workers=1", 0, "egg: started, pid ");
	wait_file("logs/egg-stderr.log", "stubborn\n", 1);
	text = command("stop", 0, "egg: stopped (");
	cr_assert_geq(count_text(text, "), processes of app 0 (group "), 1, "%s", text);
	nobody_is_left();
}

/* A master that hangs writes no status, so the command does not know the processes' names. */
Test(scripts_status, stop_names_the_master_when_no_other_process_is_left)
{
	static char line[64];
	pid_t master, pids[64];
	size_t i, count;
	const char *text;

	home();
	command("start --daemon", 0, "egg: started, pid ");
	master = master_pid();
	count = test_leashed(pids, 64);
	cr_assert_eq(count, 4);
	kill(master, SIGSTOP);
	text = command("stop --timeout=2", 0, "egg: not stopped within 2 s: SIGKILL to all ");
	cr_assert_eq(count_text(text, "egg: waits for pid "), 1, "%s", text);

	command("start --daemon", 0, "egg: started, pid ");
	master = master_pid();
	count = test_leashed(pids, 64);
	kill(master, SIGSTOP);
	for (i = 0; i < count; i++)
		if (pids[i] != master)
			kill(pids[i], SIGKILL);
	snprintf(line, sizeof line, "egg: waits for the master (pid %ld)\n", (long)master);
	command("stop --timeout=2", 0, line);
	nobody_is_left();
}
