/*
 * The command line: options, the foreground, stop, status and reload.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "commands.h"

#include <criterion/criterion.h>

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

TestSuite(scripts, .timeout = 120);

/* ---- the command line --------------------------------------------------------- */

Test(scripts, a_bad_command_line_is_one_line_and_64)
{
	static const char *const lines[][2] = {
		{"--workers=0", "egg: --workers=0: give a number from 1 to 1024 "},
		{"--workers=1025", "egg: --workers=1025: give a number from 1 to 1024 "},
		{"--workers=", "egg: --workers=: give a number from 1 to 1024 "},
		{"--workers=2x", "egg: --workers=2x: give "},
		{"--workers=99999999999999999999", "egg: --workers=99999999999999999999: give "},
		{"--workers", "egg: --workers wants a value "},
		{"--workers --daemon", "egg: --workers=--daemon: give "},
		{"start --port=65536", "egg: --port=65536: give a number from 0 to 65535 "},
		{"start --port=-1", "egg: --port=-1: give "},
		{"start --port=+0", "egg: --port=+0: give "},
		{"start --port=\t0", "egg: --port=?0: give "},
		{"--\x1b[2Jx\r", "egg: unknown option --?[2Jx? "},
		{"start --host=localhorst", "egg: --host=localhorst: give a numeric address, "},
		{"start --host=", "egg: --host wants a value "},
		{"start --env=", "egg: --env wants a value "},
		{"start --pid-file=", "egg: --pid-file wants a value "},
		{"start --pid-file", "egg: --pid-file wants a value "},
		{"start --stdout=", "egg: --stdout wants a value "},
		{"start --stderr=", "egg: --stderr wants a value "},
		{"start --timeout=0", "egg: --timeout=0: give a number from 1 to 86400 "},
		{"stop --timeout=soon", "egg: --timeout=soon: give "},
		{"start --daemon=yes", "egg: --daemon takes no value "},
		{"start --daemon --end-with-parent", "egg: --daemon has no parent for "},
		{"start --stdout=x", "egg: --stdout and --stderr are a daemon's: add --daemon "},
		{"--stderr x", "egg: --stdout and --stderr are a daemon's: add --daemon "},
		{"start --wrokers=2", "egg: unknown option --wrokers=2 "},
		{"start --work=2", "egg: unknown option --work=2 "},
		{"start --=2", "egg: unknown option --=2 "},
		{"start -- -x", "egg: one command is enough, -x is too much "},
		{"-- --help", "egg: unknown command --help "},
		{"-- -- start", "egg: unknown command -- "},
		{"start help", "egg: one command is enough, help is too much "},
		{"start -d", "egg: unknown option -d "},
		{"strat", "egg: unknown command strat "},
		{"start stop", "egg: one command is enough, stop is too much "},
		{"stop --workers=2", "egg: stop takes no --workers "},
		{"--daemon status", "egg: status takes no --daemon "},
		{"reload --stdout=x", "egg: reload takes no --stdout "},
		{"stop --json", "egg: stop takes no --json "},
		{"--json", "egg: start takes no --json "},
		{"status --json=yes", "egg: --json takes no value "},
	};
	const char *text;
	size_t i;

	for (i = 0; i < sizeof lines / sizeof lines[0]; i++) {
		text = command(lines[i][0], 64, lines[i][1]);
		cr_assert_eq(count_text(text, "\n"), 1, "%s: %s", lines[i][0], text);
		cr_assert(strstr(text, "(see egg --help)\n") != NULL, "%s", text);
	}
	cr_assert_eq(access(path_of("run"), F_OK), -1);
	nobody_is_left();
}

Test(scripts, help_and_version)
{
	static const char *const words[] = {
		"--workers=N", "--port=P",  "--host=H",   "--env=E",           "--pid-file=",
		"--timeout=S", "--daemon",  "--stdout=",  "--stderr=",         "  start ",
		"  stop ",     "  status ", "  reload ",  "--end-with-parent", "\nstart:\n",
		"\nall:\n",    "--json ",   "\nstatus:\n"};
	const char *text = command("stop --help", 0, "usage: egg [start | stop | status | reload]");
	size_t i;

	for (i = 0; i < sizeof words / sizeof words[0]; i++)
		cr_assert_eq(count_text(text, words[i]), 1, "%s in:\n%s", words[i], text);
	command("-h", 0, "usage: egg [start | stop | status | reload]");
	command("help", 0, "usage: egg [start | stop | status | reload]");
	command("start --workers=2 -h", 0, "usage: egg [start | stop | status | reload]");
	cr_assert_str_eq(command("--version", 0, ""), "egg (clutch " CLUTCH_VERSION ")\n");
	program.version = "2.1";
	cr_assert_str_eq(command("start --version", 0, ""),
	                 "egg 2.1 (clutch " CLUTCH_VERSION ")\n");
}

Test(scripts, without_home_a_pid_file_must_be_given)
{
	home();
	unsetenv("HOME");
	command("status", 1, "egg: HOME is not set: give --pid-file");
	setenv("HOME", "", 1);
	command("start --daemon", 1, "egg: HOME is not set: give --pid-file");
	command("status --pid-file=nowhere", 3, "egg: not running (pid file nowhere)\n");
}

/* The command line overrides the program, and the program overrides the environment. */
Test(scripts, the_command_line_is_stronger_than_program_and_environment)
{
	static struct run run;

	home();
	setenv("EGG_WORKERS", "7", 1);
	setenv("EGG_SERVER_ENV", "prod", 1);
	start(&run, "--workers 3 --env=local");
	wait_text(&run, "[master] to stop it");
	cr_assert(strstr(run.text, "app_worker#3") && !strstr(run.text, "app_worker#4"), "%s",
	          run.text);
	kill(run.pid, SIGUSR1); /* the launcher forwards it */
	wait_text(&run, "[master] status ],");
	kill(run.pid, SIGTERM);
	cr_assert_eq(end(&run), 0, "%s", run.text);
	nobody_is_left();
}

/* Start in the foreground with the command line, wait for the text, and stop. */
static void
expect_line(const char *line, const char *text)
{
	static struct run run;

	start(&run, line);
	wait_text(&run, text);
	wait_text(&run, "[master] to stop it");
	kill(run.pid, SIGTERM);
	cr_assert_eq(end(&run), 0, "%s", run.text);
	nobody_is_left();
}

Test(scripts, an_option_and_its_variable_take_the_same_values)
{
	home();
	expect_line("start -- ", "[master] egg started");
	expect_line("start --env=staging", "[master] egg started");
	setenv("EGG_SERVER_ENV", "staging", 1);
	expect_line("start", "[master] egg started");
	expect_line(hello("start --port=0"), "hello started on http://127.0.0.1:");
	setenv("PORT", "0", 1);
	expect_line(hello("start"), "hello started on http://127.0.0.1:");
	expect_line(hello(""), "hello started on http://127.0.0.1:");
}

/* A program that links the library may have functions of any other name. */
Test(scripts, every_public_symbol_has_the_packages_name)
{
	static const char *const prefixes[] = {"egg_s", "scripts_", "schedule_", "cron_", "_"};
	const char *build = getenv("BUILD") != NULL ? getenv("BUILD") : "build";
	char line[512], name[256], kind;
	int count = 0;
	size_t i;
	FILE *symbols;

	snprintf(line, sizeof line, "nm -P -g %s/egg-scripts/*.o %s/egg-schedule/*.o", build,
	         build);
	symbols = popen(line, "r");
	cr_assert_not_null(symbols);
	while (fgets(line, sizeof line, symbols) != NULL) {
		if (sscanf(line, "%255s %c", name, &kind) != 2 || strchr("TDBC", kind) == NULL)
			continue;
		for (i = 0; i < 5 && strncmp(name, prefixes[i], strlen(prefixes[i])) != 0; i++)
			;
		cr_expect_lt(i, 5, "%s", name);
		count++;
	}
	cr_assert(pclose(symbols) == 0 && count > 20, "%d symbols", count);
}

/* ---- in the foreground -------------------------------------------------------- */

static void
expect_order_to_end_it(const char *line, int number, const char *name)
{
	static struct run run;

	start(&run, line);
	wait_text(&run, "[master] to stop it");
	kill(run.pid, number);
	cr_assert_eq(end(&run), 0, "%s", run.text);
	cr_assert(strstr(run.text, name) != NULL, "%s", run.text);
	cr_assert_eq(count_text(run.text, "exiting with code:0"), 3, "%s", run.text);
	cr_assert_eq(count_text(run.text, "[master] exit with code:0"), 1);
	nobody_is_left();
}

Test(scripts, the_launcher_hands_orders_on)
{
	expect_order_to_end_it("start", SIGTERM, "signal SIGTERM, closing");
	expect_order_to_end_it("start", SIGINT, "signal SIGINT, closing");
	expect_order_to_end_it("", SIGQUIT, "signal SIGQUIT, closing");
}

/* Any number of clusters can be started without a command: they have no pid file. */
Test(scripts, without_a_command_there_is_no_pid_file)
{
	static struct run first, second, third;

	start(&first, "");
	start(&second, "");
	wait_text(&first, "[master] to stop it");
	wait_text(&second, "[master] to stop it");
	cr_assert_eq(access(path_of("run"), F_OK), -1);
	start(&third, "start");
	wait_text(&third, "[master] to stop it");
	command("start", 1, "egg: is already running, pid ");
	command("stop", 0, "egg: stopped (");
	cr_assert_eq(end(&third), 0);
	kill(first.pid, SIGTERM);
	kill(second.pid, SIGTERM);
	cr_assert_eq(end(&first), 0);
	cr_assert_eq(end(&second), 0);
	nobody_is_left();
}

/* D47: in egg only the start of a daemon has a timeout. The timeout is for the start alone: a
 * cluster that is ready in time may run for longer. */
Test(scripts, in_the_foreground_a_start_may_have_a_timeout)
{
	static struct run run;
	const char *text;

	home();
	manners.app_is_never_ready = true;
	text = command("--timeout=1 --workers=1", 1, "egg: not ready within 1 s, stopping it\n");
	cr_assert(strstr(text, "signal SIGTERM, closing") != NULL, "%s", text);
	nobody_is_left();

	manners.app_is_never_ready = false;
	start(&run, "start --timeout=3"); /* some machines need more than 1 s */
	wait_text(&run, "[master] to stop it");
	while (clutch_now() < run.begin + 3300)
		command("status", 0, "\nrunning, ");
	kill(run.pid, SIGTERM);
	cr_assert_eq(end(&run), 0, "%s", run.text);
	cr_assert(strstr(run.text, "not ready") == NULL, "%s", run.text);
	nobody_is_left();
}

/* In sh -c 'hello start & cat' the shell lets hello ignore SIGINT: Ctrl-C is meant for cat. */
Test(scripts, an_ignored_sigint_is_not_handed_on)
{
	static struct run run;

	home();
	signal(SIGINT, SIG_IGN);
	signal(SIGQUIT, SIG_IGN);
	start(&run, "start");
	wait_text(&run, "[master] to stop it");
	kill(run.pid, SIGINT);
	kill(run.pid, SIGQUIT);
	kill(run.pid, SIGUSR1);
	wait_text(&run, "[master] status ],");
	kill(run.pid, SIGTERM);
	wait_text(&run, "signal SIGTERM, closing");
	cr_assert_eq(end(&run), 0, "%s", run.text);
	cr_assert(strstr(run.text, "signal SIGINT") == NULL, "%s", run.text);
	nobody_is_left();
}

/* Ctrl-C signals launcher and master, and the launcher also forwards the signal: it counts once. */
Test(scripts, ctrl_c_in_a_terminal)
{
	static struct run run;

	start_in_terminal(&run, "start");
	wait_text(&run, "[master] to stop it");
	cr_assert_eq(write(run.output, "\003", 1), 1);
	cr_assert_eq(end(&run), 0, "%s", run.text);
	cr_assert_eq(count_text(run.text, "signal SIGINT, closing"), 1, "%s", run.text);
	cr_assert_eq(count_text(run.text, "exiting with code:0"), 3, "%s", run.text);
	nobody_is_left();
}

/* The launcher exits with the master's status, or with 128 + the signal that killed the master. */
Test(scripts, the_launcher_exits_with_the_masters_status)
{
	static struct run run;

	start(&run, "start");
	wait_text(&run, "[master] to stop it");
	kill(master_pid(), SIGKILL);
	cr_assert_eq(end(&run), 128 + SIGKILL, "%s", run.text);
	nobody_is_left();
	manners.app_fails = true;
	command("start", 1, "start fail, exiting with code:1");
	nobody_is_left();
}

/* A SIGTERM at any moment of the start leaves no process. */
Test(scripts, an_order_in_the_middle_of_a_start_is_not_lost)
{
	static struct run run;
	int i;

	for (i = 0; i < 24; i++) {
		start(&run, "start");
		if (i % 3 == 1)
			wait_text(&run, "agent_worker#1");
		else if (i % 3 == 2)
			wait_text(&run, "app_worker#1");
		else
			poll(NULL, 0, i / 6);
		kill(run.pid, SIGTERM);
		end(&run);
		nobody_is_left();
	}
}

/* D32: without its launcher the cluster goes on, as in egg, unless an option says otherwise. */
Test(scripts, the_cluster_outlives_its_launcher_unless_told_otherwise)
{
	static struct run run;
	pid_t master;

	start(&run, "start");
	wait_text(&run, "[master] to stop it");
	kill(run.pid, SIGKILL);
	cr_assert_eq(waitpid(run.pid, NULL, 0), run.pid);
	command("status", 0, "\nrunning, ");
	master = master_pid();
	command("stop", 0, "egg: stopped (");
	cr_assert_not(process_is_alive(master));
	nobody_is_left();

	start(&run, "start --end-with-parent");
	wait_text(&run, "[master] to stop it");
	kill(run.pid, SIGKILL);
	cr_assert_eq(waitpid(run.pid, NULL, 0), run.pid);
	wait_text(&run, "[master] the parent is gone, closing");
	wait_text(&run, "[master] exit with code:0");
	nobody_is_left();
}

/* ---- stop --------------------------------------------------------------------- */

static void
start_hanging(int close_timeout)
{
	home();
	manners.hang = true;
	manners.app_forks = true;
	program.app_close_timeout = close_timeout;
	program.agent_close_timeout = close_timeout;
	command("start --daemon", 0, "egg: started, pid ");
	wait_file("logs/egg-stderr.log", "hangs", 3);
}

/* D31: egg waits 5 s, however long the master needs. The first master here needs 6 s: stop
 * learns the time from the master's status, and kills no process earlier. The second master
 * says that it needs 1.4 s, and then hangs: stop does not wait 30 s for it. */
Test(scripts, stop_waits_as_long_as_the_master_may_take)
{
	static struct run slow, stuck;
	char line[300];
	int64_t begin;

	start_hanging(3000);
	program.app_close_timeout = program.agent_close_timeout = 700;
	snprintf(line, sizeof line, "start --daemon --pid-file=%s", path_of("run/stuck.pid"));
	command(line, 0, "egg: started, pid ");
	wait_file("logs/stuck-stderr.log", "hangs", 3);
	begin = clutch_now();
	start(&slow, "stop");
	snprintf(line, sizeof line, "stop --pid-file=%s", path_of("run/stuck.pid"));
	start(&stuck, line);
	wait_file("logs/stuck-stdout.log", "signal SIGTERM, closing", 1);
	kill((pid_t)atol(content_of(path_of("run/stuck.pid"))), SIGSTOP);
	cr_assert_eq(end(&stuck), 0, "%s", stuck.text);
	cr_assert(strstr(stuck.text, "egg: not stopped within 3 s: SIGKILL to all") != NULL, "%s",
	          stuck.text);
	cr_assert_lt(clutch_now() - begin, 30000);
	cr_assert_eq(end(&slow), 0, "%s", slow.text);
	cr_assert_not_null(strstr(slow.text, "\negg: stopped ("), "%s", slow.text);
	cr_assert_geq(count_text(slow.text, "egg: waits for agent (pid "), 4, "%s", slow.text);
	cr_assert_geq(count_text(slow.text, "), app 0 (pid "), 1, "%s", slow.text);
	cr_assert_geq(count_text(slow.text, "), app 1 (pid "), 1, "%s", slow.text);
	cr_assert_eq(count_text(slow.text, "the master"), 0, "%s", slow.text);
	cr_assert_geq(clutch_now() - begin, 6000);
	cr_assert(is_nobody_left(NULL));
	wait_file("logs/egg-stdout.log", "[master] exit with code:0", 1);
	cr_assert_eq(access(path_of("run/egg.pid"), F_OK), -1);
	nobody_is_left();
}

/* The apps obey SIGTERM and are dead, but their own children ignore SIGTERM. The children hold
 * no lock, and the master waits for them. */
Test(scripts, past_its_timeout_stop_kills_the_children_of_the_dead)
{
	home();
	manners.app_forks = manners.fork_is_stubborn = true;
	program.app_close_timeout = 60000;
	command("start --daemon", 0, "egg: started, pid ");
	wait_file("logs/egg-stderr.log", "stubborn", 2);
	command("stop --timeout=1", 0, "egg: not stopped within 1 s: SIGKILL to all that are left");
	nobody_is_left();
}

/* The master is stopped (SIGSTOP), its children hang, and they have children of their own. */
Test(scripts, past_its_timeout_stop_kills_them_all)
{
	pid_t master;

	start_hanging(60000);
	master = master_pid();
	cr_assert_eq(kill(master, SIGSTOP), 0);
	command("stop --timeout=1", 0, "egg: not stopped within 1 s: SIGKILL to all that are left");
	cr_assert_not(process_is_alive(master));
	nobody_is_left();
	command("status", 3, "egg: not running");
	manners.hang = manners.app_forks = false;
	command("start --daemon", 0, "egg: started, pid "); /* an old pid file is no obstacle */
	command("stop", 0, "egg: stopped (");
	nobody_is_left();
}

/* The master is killed and its children hang. They still belong to the cluster. */
Test(scripts, stop_finds_children_whose_master_is_dead)
{
	pid_t master;

	start_hanging(60000);
	master = master_pid();
	kill(master, SIGKILL);
	waitpid(master, NULL, 0);
	command("status", 3, "egg: not running");
	command("stop --timeout=1", 0, "egg: not stopped within 1 s: SIGKILL to all that are left");
	nobody_is_left();
}

/* D30: a pid file without the master's lock does not prove that the process is a master. */
Test(scripts, a_stranger_whose_pid_is_in_the_file_is_left_alone)
{
	pid_t stranger;
	FILE *file;

	home();
	stranger = fork();
	if (stranger == 0)
		for (;;)
			pause();
	mkdir(path_of("run"), 0777);
	file = fopen(path_of("run/egg.pid"), "w");
	fprintf(file, "%ld", (long)stranger);
	fclose(file);
	command("stop --timeout=1", 0, "egg: warning: not running (pid file ");
	command("status", 3, "egg: not running (pid file ");
	command("reload", 3, "egg: not running (pid file ");
	cr_assert_eq(waitpid(stranger, NULL, WNOHANG), 0);
	command("start --daemon", 0, "egg: started, pid ");
	cr_assert_neq(master_pid(), stranger);
	command("stop", 0, "egg: stopped (");
	cr_assert_eq(waitpid(stranger, NULL, WNOHANG), 0);
	kill(stranger, SIGKILL);
	nobody_is_left();
}

/* D30: in egg `stop` ends every cluster of the host. */
Test(scripts, stop_ends_one_cluster_not_all)
{
	char line[300];
	pid_t master;

	home();
	command("start --daemon", 0, "egg: started, pid ");
	master = master_pid();
	snprintf(line, sizeof line, "start --daemon --pid-file=%s --stdout=/dev/null --stderr=%s",
	         path_of("other.pid"), path_of("other.log"));
	command(line, 0, "egg: started, pid ");
	snprintf(line, sizeof line, "stop --pid-file=%s", path_of("other.pid"));
	command(line, 0, "egg: stopped (");
	cr_assert(process_is_alive(master));
	command("status", 0, "\nrunning, ");
	command("stop", 0, "egg: stopped (");
	nobody_is_left();
}

/* ---- false pid files and statuses ---------------------------------------------- */

static void
expect_no_pid_file(const char *path, const char *reason)
{
	static const char *const commands[] = {"start --daemon", "start", "stop", "status",
	                                       "reload"};
	char line[300], text[300];
	size_t i;

	snprintf(text, sizeof text, "pid file %s: %s", path, reason);
	for (i = 0; i < sizeof commands / sizeof commands[0]; i++) {
		snprintf(line, sizeof line, "%s --pid-file=%s", commands[i], path);
		command(line, 1, text);
	}
}

/* No command waits for the other end of a FIFO, and none writes through a link. */
Test(scripts, what_is_no_pid_file_is_refused_by_every_command)
{
	struct stat status;
	FILE *file;

	home();
	cr_assert_eq(mkfifo(path_of("fifo"), 0600), 0);
	expect_no_pid_file(path_of("fifo"), "it is not a plain file\n");
	file = fopen(path_of("target"), "w");
	cr_assert(file != NULL && fputs("4711", file) > 0 && fclose(file) == 0);
	cr_assert_eq(symlink(path_of("target"), path_of("link")), 0);
	expect_no_pid_file(path_of("link"), "it is a symbolic link\n");
	cr_assert_str_eq(content_of(path_of("target")), "4711");
	cr_assert(lstat(path_of("link"), &status) == 0 && S_ISLNK(status.st_mode));
	nobody_is_left();
}

/* Any user who may read the pid file can lock a byte of it for reading. */
Test(scripts, a_lock_for_reading_is_not_the_masters)
{
	struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET};
	int descriptor;
	FILE *file;

	home();
	mkdir(path_of("run"), 0777);
	file = fopen(path_of("run/egg.pid"), "w");
	cr_assert(file != NULL && fputs("4711", file) > 0 && fclose(file) == 0);
	descriptor = open(path_of("run/egg.pid"), O_RDONLY | O_CLOEXEC);
	cr_assert(descriptor != -1 && fcntl(descriptor, F_SETLK, &lock) == 0);
	command("status", 3, "egg: not running (pid file ");
	command("stop", 0, "egg: warning: not running (pid file ");
	cr_assert_eq(close(descriptor), 0);
}

/* Put a file of another user, or a link to one, in the place of the status, as any user can who
 * may write to the folder. The file gets its owner before it gets the status's name. */
static void
forge_status(uid_t user, bool link)
{
	char path[256], forged[256];
	FILE *file;

	snprintf(path, sizeof path, "%s", path_of("run/egg.pid.status"));
	snprintf(forged, sizeof forged, "%s", path_of("forged"));
	file = fopen(forged, "w");
	if (file == NULL)
		_exit(1);
	fprintf(file, "{\"name\":\"egg\",\"state\":\"running\",\"app_close\":1,"
	              "\"processes\":[\n],\"left_out\":0}\n");
	fclose(file);
	if (chown(forged, user, (gid_t)-1) == -1)
		_exit(1);
	if (link ? symlink(forged, path) == -1 : rename(forged, path) == -1)
		_exit(1);
}

/* The status command removes the old status: put a forged one in its place, again and again. */
static void
forge_on(uid_t user, bool link)
{
	for (;;) {
		if (access(path_of("run/egg.pid.status"), F_OK) == -1)
			forge_status(user, link);
		poll(NULL, 0, 1);
	}
}

static pid_t
start_forger(uid_t user, bool link)
{
	pid_t pid = fork();

	if (pid == 0)
		forge_on(user, link);
	return pid;
}

static void
end_forger(pid_t pid)
{
	kill(pid, SIGKILL);
	cr_assert_eq(waitpid(pid, NULL, 0), pid);
	unlink(path_of("run/egg.pid.status"));
}

Test(scripts, a_forged_status_is_not_believed)
{
	pid_t master, forger;

	home();
	if (geteuid() != 0)
		cr_skip_test("only root can give a file away");
	command("start --daemon", 0, "egg: started, pid ");
	master = master_pid();
	kill(master, SIGSTOP);
	forger = start_forger(4711, false);
	command("status --timeout=5", 1, "egg.pid.status: Permission denied\n");
	end_forger(forger);
	forger = start_forger(0, true);
	command("status --timeout=5", 1, "egg.pid.status: Too many levels of symbolic links\n");
	end_forger(forger);
	kill(master, SIGCONT);
	command("status", 0, "\nrunning, ");
	cr_assert_eq(mkdir(path_of("out"), 0700), 0);
	cr_assert_eq(rename(path_of("run/egg.pid.status"), path_of("out/x")), 0);
	cr_assert_eq(mkdir(path_of("run/egg.pid.status"), 0700), 0);
	command("status", 1, "egg.pid.status: Is a directory\n"); /* unlink fails */
	cr_assert_eq(rmdir(path_of("run/egg.pid.status")), 0);
	command("stop", 0, "egg: stopped (");
	nobody_is_left();
}

/* ---- PID namespaces ----------------------------------------------------------- */

/* The first process forked between enter and leave is process 1 of a new PID namespace. */
static int
enter_namespace(void)
{
	int own = open("/proc/self/ns/pid", O_RDONLY | O_CLOEXEC);

	if (own == -1 || unshare(CLONE_NEWPID) == -1)
		cr_skip_test("there are no PID namespaces for the test");
	return own;
}

static void
leave_namespace(int own)
{
	cr_assert_eq(setns(own, CLONE_NEWPID), 0);
	close(own);
}

/* A container may share the pid file's folder, but in its PID namespace the master has no
 * number. The master is alive, so the commands neither stop it nor start a second one. */
Test(scripts, a_master_in_another_pid_namespace_is_left_alone)
{
	static const char *const commands[] = {"status", "stop", "reload", "start",
	                                       "start --daemon"};
	pid_t master;
	size_t i;
	int own;

	home();
	command("start --daemon", 0, "egg: started, pid ");
	master = master_pid();
	for (i = 0; i < sizeof commands / sizeof commands[0]; i++) {
		own = enter_namespace();
		command(commands[i], 1, "its master runs where no signal from here reaches it");
		leave_namespace(own);
	}
	cr_assert(process_is_alive(master));
	cr_assert_eq(count_files(path_of("logs"), "egg"), 2);
	cr_assert_eq(count_files(path_of("run"), "egg.pid"), 1);
	command("stop", 0, "egg: stopped (");
	nobody_is_left();
}

/* Outside the container the kernel translates the pid of a lock, but the master's status has
 * the container's pids. Here one of these pids belongs to a stranger. */
Test(scripts, the_numbers_of_a_container_are_not_killed_outside)
{
	static struct run run;
	char first[32];
	pid_t stranger;
	int own;

	home();
	if (access("/proc/sys/kernel/ns_last_pid", W_OK) == -1)
		cr_skip_test("the next pid cannot be chosen");
	stranger = fork();
	if (stranger == 0)
		for (;;)
			pause();
	setpgid(stranger, stranger);
	snprintf(first, sizeof first, "%ld", (long)stranger - 2);
	manners.first_pid = first; /* then the agent has the stranger's pid */
	manners.hang = true;
	program.app_close_timeout = 60000;
	own = enter_namespace();
	start(&run, "start --workers=1");
	leave_namespace(own);
	wait_text(&run, "[master] to stop it");
	while (count_text(run.text, "hangs\n") < 2)
		read_output(&run, clutch_now() + time_limit());
	snprintf(first, sizeof first, " %ld listening", (long)stranger);
	command("status", 0, first);
	command("stop --timeout=1", 0, "egg: not stopped within 1 s: SIGKILL to all that are left");
	cr_assert_eq(waitpid(stranger, NULL, WNOHANG), 0, "the stranger was killed");
	kill(stranger, SIGKILL);
	end(&run);
	nobody_is_left();
}

/* ---- status and reload -------------------------------------------------------- */

Test(scripts, status_shows_what_the_master_knows)
{
	const char *text;
	char line[128];
	pid_t master;

	home();
	command("start --daemon --env=local", 0, "egg: started, pid ");
	master = master_pid();
	text = command("status", 0, "\nrunning, stops within 10000ms, reloads: 0 done, 0 given up");
	cr_assert_eq(count_text(text, " listening "), 3, "%s", text);
	cr_assert_eq(count_text(text, "[master]"), 0, "%s", text);
	cr_assert_eq(count_text(text, "\n0 undeliverable\n"), 1, "%s", text);
	cr_assert_eq(count_text(text, "\napp       0 "), 1, "%s", text);
	cr_assert_eq(count_text(text, "\napp       1 "), 1, "%s", text);
	text = command("status --json", 0, "{\"name\":\"egg\",\"pid\":");
	cr_assert_str_eq(text, content_of(path_of("run/egg.pid.status")));
	wait_file("logs/egg-stdout.log", "[master] status ],\"left_out\":0}", 1);
	kill(master, SIGSTOP);
	snprintf(line, sizeof line, "egg: pid %ld has not answered within 1 s", (long)master);
	command("status --timeout=1", 1, line);
	kill(master, SIGCONT);
	command("status", 0, "\nrunning, ");
	command("stop", 0, "egg: stopped (");
	nobody_is_left();
}

/* If the status file cannot be written, the master logs one line and lives on. */
Test(scripts, a_status_that_cannot_be_written_harms_nobody)
{
	home();
	command("start --daemon", 0, "egg: started, pid ");
	cr_assert_eq(mkdir(path_of("run/egg.pid.status.new"), 0700), 0);
	command("status --timeout=1", 1, "has not answered within 1 s");
	wait_file("logs/egg-stderr.log", "egg.pid.status.new: ", 1);
	rmdir(path_of("run/egg.pid.status.new"));
	cr_assert_eq(count_text(content_of(path_of("logs/egg-stderr.log")), "\n"), 1);
	command("status", 0, "\nrunning, ");
	command("stop", 0, "egg: stopped (");
	nobody_is_left();
}

/* The clients count in shared memory. */
enum { CLIENTS = 3 };

struct load {
	volatile int served[CLIENTS], failed[CLIENTS];
	volatile bool over;
};

static void
run_client(struct load *load, int number, int port)
{
	while (!load->over) {
		if (get(port) > 0)
			load->served[number]++;
		else
			load->failed[number]++;
	}
	_exit(0);
}

static bool
have_been_served(const void *arg)
{
	const struct load *load = arg;
	int i;

	for (i = 0; i < CLIENTS && (load->served[i] >= 20 || load->failed[i] > 0); i++)
		;
	return i == CLIENTS;
}

static void
serve_on(struct load *load)
{
	int i;

	for (i = 0; i < CLIENTS; i++)
		load->served[i] = 0;
	wait_until(have_been_served, load, "20 answers for each client");
}

/* Two reloads while three clients send requests: no connection is refused or reset. */
Test(scripts, a_reload_under_load_costs_nobody_a_connection)
{
	struct load *load =
		mmap(NULL, sizeof *load, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid_t clients[CLIENTS];
	int i, port;

	cr_assert(load != MAP_FAILED);
	home();
	port = port_in(command(hello("start --daemon --port=0 --workers=3"), 0, "started on "));
	for (i = 0; i < CLIENTS; i++)
		if ((clients[i] = fork()) == 0)
			run_client(load, i, port);
	serve_on(load);
	for (i = 0; i < 2; i++) {
		command(hello("reload"), 0, "hello: reloaded 3 app workers (");
		serve_on(load);
	}
	load->over = true;
	for (i = 0; i < CLIENTS; i++) {
		cr_assert_eq(waitpid(clients[i], NULL, 0), clients[i]);
		cr_expect_eq(load->failed[i], 0, "%d requests of a client failed", load->failed[i]);
	}
	command(hello("stop"), 0, "hello: stopped (");
	cr_assert_eq(count_text(content_of(path_of("logs/hello-stdout.log")), "] reload done"), 2);
	nobody_is_left();
}

static bool
is_dead(const void *pid)
{
	return !process_is_alive((pid_t) * (const long *)pid);
}

/* After a reload every worker is a new process, and the agent is the same. */
Test(scripts, a_reload_replaces_every_app_worker)
{
	static char before[64 * 1024];
	const char *after, *row;
	char wanted[64];
	long pid;

	home();
	command("start --daemon --workers=3", 0, "egg: started, pid ");
	snprintf(before, sizeof before, "%s", command("status", 0, "\nrunning, "));
	command("reload", 0, "egg: reloaded 3 app workers (");
	after = command("status", 0, " reloads: 1 done, 0 given up\n");
	for (row = strstr(before, "\na"); row != NULL; row = strstr(row + 1, "\na")) {
		cr_assert_eq(sscanf(row, "%*s %*s %ld listening", &pid), 1, "%s", row);
		snprintf(wanted, sizeof wanted, " %ld listening ", pid);
		if (strncmp(row, "\nagent", 6) == 0)
			cr_assert(strstr(after, wanted) != NULL, "%s%s", before, after);
		else
			wait_until(is_dead, &pid, "the end of an old worker");
	}
	command("stop", 0, "egg: stopped (");
	nobody_is_left();
}

/* D12: the old workers stay, and the next reload succeeds. */
Test(scripts, a_reload_whose_workers_do_not_start_fails)
{
	static char before[64 * 1024];
	static char no_start[256];
	FILE *file;

	snprintf(no_start, sizeof no_start, "%s", path_of("no-start"));
	manners.fails_if = no_start;
	command("start --daemon", 0, "egg: started, pid ");
	snprintf(before, sizeof before, "%s", command("status", 0, "\nrunning, "));
	file = fopen(no_start, "w");
	cr_assert_not_null(file);
	fclose(file);
	command("reload", 1,
	        "egg: reload given up: a new app worker did not start; 0 of 2 are new");
	command("status", 0, " reloads: 0 done, 1 given up\n");
	cr_assert_eq(unlink(no_start), 0);
	command("reload", 0, "egg: reloaded 2 app workers (");
	command("stop", 0, "egg: stopped (");
	nobody_is_left();
}

Test(scripts, what_is_not_ready_cannot_be_reloaded)
{
	static struct run run;

	home();
	manners.app_is_never_ready = true;
	start(&run, "start");
	wait_text(&run, "app_worker#2");
	command("reload", 1, "egg: cannot reload: not yet ready, or already stopping\n");
	command("status", 0, "\nstarting, ");
	command("stop", 0, "egg: stopped (");
	cr_assert_eq(end(&run), 0);
	nobody_is_left();
}
