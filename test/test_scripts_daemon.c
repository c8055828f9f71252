/*
 * The command line: the daemon, its files, and systemd.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "commands.h"

#include <criterion/criterion.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

TestSuite(scripts, .timeout = 120);

/* ---- the daemon --------------------------------------------------------------- */

static const char *
field_of(pid_t pid, const char *name, char *target, size_t size)
{
	char path[64];
	ssize_t length;

	snprintf(path, sizeof path, "/proc/%ld/%s", (long)pid, name);
	length = readlink(path, target, size - 1);
	target[length > 0 ? length : 0] = '\0';
	return target;
}

Test(scripts, a_daemons_life)
{
	char line[256], target[256];
	pid_t master;
	FILE *file;

	home();
	command("status", 3, "egg: not running (pid file ");
	command("start --daemon", 0, "egg: started, pid ");
	master = master_pid();
	cr_assert_eq(getsid(master), master);
	cr_assert_str_eq(field_of(master, "fd/0", target, sizeof target), "/dev/null");
	cr_assert_str_eq(field_of(master, "fd/1", target, sizeof target),
	                 path_of("logs/egg-stdout.log"));
	cr_assert_str_eq(field_of(master, "fd/2", target, sizeof target),
	                 path_of("logs/egg-stderr.log"));
	cr_assert_eq(mode_of(path_of("logs/egg-stdout.log")), 0600);
	cr_assert_eq(mode_of(path_of("logs/egg-stderr.log")), 0600);
	snprintf(line, sizeof line, "egg, pid %ld, ", (long)master);
	command("status", 0, line);
	cr_assert_eq(mode_of(path_of("run/egg.pid.status")), 0600);

	/* A second start is refused, and leaves the files of the first alone. */
	snprintf(line, sizeof line, "egg: is already running, pid %ld (pid file ", (long)master);
	command("start --daemon", 1, line);
	cr_assert_eq(count_files(path_of("logs"), "egg"), 2);

	command("stop", 0, "egg: stopped (");
	cr_assert_not(process_is_alive(master));
	nobody_is_left();
	cr_assert_eq(count_files(path_of("run"), "egg"), 0);
	command("stop", 0, "egg: warning: not running (pid file ");

	/* The next daemon renames the logs of the last one, even within the same second. */
	file = fopen(path_of("logs/egg-stdout.log"), "a");
	fprintf(file, "the first run\n");
	fclose(file);
	command("start --daemon", 0, "egg: started, pid ");
	cr_assert_eq(count_text(content_of(path_of("logs/egg-stdout.log")), "the first run"), 0);
	command("stop", 0, "egg: stopped (");
	command("start --daemon", 0, "egg: started, pid ");
	command("stop", 0, "egg: stopped (");
	cr_assert_eq(count_files(path_of("logs"), "egg-stdout.log"), 3);
	cr_assert_eq(count_files(path_of("logs"), "egg-stderr.log."), 2);
	nobody_is_left();
}

/* Of many starts at the same time only one succeeds, and the others do not rename its logs. */
Test(scripts, daemons_that_start_at_once_leave_the_firsts_files_alone)
{
	enum { STARTS = 6 };
	static struct run runs[STARTS];
	char target[256];
	int i, started = 0;

	for (i = 0; i < STARTS; i++)
		start(&runs[i], "start --daemon");
	for (i = 0; i < STARTS; i++)
		started += end(&runs[i]) == 0;
	cr_assert_eq(started, 1);
	for (i = 0; i < STARTS; i++)
		cr_assert(strstr(runs[i].text, "egg: started, pid ") != NULL ||
		                  strstr(runs[i].text, "egg: is already running, pid ") != NULL ||
		                  strstr(runs[i].text, "egg: is being started already") != NULL,
		          "%s", runs[i].text);
	cr_assert_str_eq(field_of(master_pid(), "fd/1", target, sizeof target),
	                 path_of("logs/egg-stdout.log"));
	cr_assert_eq(count_files(path_of("logs"), "egg"), 2);
	cr_assert_eq(count_files(path_of("run"), "egg.pid.start"), 0);
	command("stop", 0, "egg: stopped (");
	nobody_is_left();
}

/* Two clusters of one program can have their own logs, which are named after the pid files. */
Test(scripts, clusters_with_two_pid_files_have_logs_of_their_own)
{
	char line[300], target[256];
	pid_t master;

	home();
	command("start --daemon", 0, "egg: started, pid ");
	master = master_pid();
	snprintf(line, sizeof line, "start --daemon --pid-file=%s", path_of("two.pid"));
	command(line, 0, "egg: started, pid ");
	cr_assert_str_eq(field_of(master, "fd/1", target, sizeof target),
	                 path_of("logs/egg-stdout.log"));
	cr_assert_eq(count_files(path_of("logs"), "egg"), 2);
	wait_file("logs/two-stdout.log", "[master] egg started", 1);
	snprintf(line, sizeof line, "stop --pid-file=%s", path_of("two.pid"));
	command(line, 0, "egg: stopped (");
	command("stop", 0, "egg: stopped (");
	nobody_is_left();
}

/* A process may give the launcher a pipe and wait for its end of file: it must not have to wait
 * for the daemon's end. */
Test(scripts, a_daemon_closes_what_it_has_inherited)
{
	int ends[2];
	struct pollfd set = {.events = POLLIN};
	char byte;

	home();
	cr_assert_eq(pipe(ends), 0);
	fcntl(ends[0], F_SETFD, FD_CLOEXEC);
	command(hello("start --daemon --port=0 --workers=1"), 0, "started on ");
	close(ends[1]);
	set.fd = ends[0];
	cr_assert_eq(poll(&set, 1, time_limit()), 1, "the daemon holds the pipe");
	cr_assert_eq(read(ends[0], &byte, 1), 0);
	close(ends[0]);
	command(hello("status"), 0, "\nrunning, ");
	command(hello("stop"), 0, "hello: stopped (");
	nobody_is_left();
}

/* As in "start --daemon | true". */
Test(scripts, nobody_reads_that_a_daemon_has_started)
{
	static struct run run;
	int status;

	home();
	signal(SIGPIPE, SIG_DFL);
	start(&run, "start --daemon");
	close(run.output);
	cr_assert_eq(waitpid(run.pid, &status, 0), run.pid);
	cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %d", status);
	command("stop", 0, "egg: stopped (");
	nobody_is_left();
}

Test(scripts, a_daemons_files_can_be_chosen)
{
	char line[1024];

	home();
	snprintf(line, sizeof line, "start --daemon --pid-file=%s --stdout %s --stderr=%s",
	         path_of("x/pid"), path_of("out/both"), path_of("out/both"));
	command(line, 0, "egg: started, pid ");
	cr_assert(strstr(content_of(path_of("out/both")), "[master] egg started") != NULL);
	cr_assert_eq(count_files(path_of("out"), ""), 3); /* ".", ".." and "both" */
	command("stop", 0, "not running");                /* with the default pid file */
	snprintf(line, sizeof line, "stop --pid-file %s", path_of("x/pid"));
	command(line, 0, "egg: stopped (");
	nobody_is_left();
	snprintf(line, sizeof line, "start --daemon --stdout=/dev/null --stderr=%s",
	         path_of("out/both/x"));
	command(line, 1, "egg: cannot make the folder ");
	command("start --daemon --stdout=/dev/null --stderr=/dev/null", 0, "egg: started, pid ");
	command("stop", 0, "egg: stopped (");
	cr_assert_eq(access("/dev/null", F_OK), 0);
	nobody_is_left();
}

Test(scripts, a_daemon_survives_the_end_of_its_terminal)
{
	static struct run run;
	char path[64], name[32] = "";
	int port, terminal = -1, status;
	pid_t master;

	start_in_terminal(&run, hello("start --daemon --port=0 --workers=2"));
	wait_text(&run, "hello: started on http://127.0.0.1:");
	port = port_in(run.text);
	cr_assert_eq(waitpid(run.pid, &status, 0), run.pid);
	cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0, "%s", run.text);
	close(run.output); /* the terminal is gone */
	master = (pid_t)atol(content_of(path_of("run/hello.pid")));
	snprintf(path, sizeof path, "/proc/%ld/stat", (long)master);
	cr_assert_eq(sscanf(content_of(path), "%*d %31s %*c %*d %*d %*d %d", name, &terminal), 2);
	cr_assert_eq(terminal, 0, "the daemon has a terminal");
	cr_assert_neq(get(port), 0);
	command(hello("status"), 0, "\nrunning, ");
	command(hello("stop"), 0, "hello: stopped (");
	nobody_is_left();
}

/* D28: egg's launcher waits until its timeout, even if the master is dead. */
Test(scripts, an_early_death_shows_at_once)
{
	const char *text;
	int64_t begin;

	home();
	manners.app_fails = true;
	begin = clutch_now();
	text = command("start --daemon", 1, "app: no database\n");
	cr_assert_lt(clutch_now() - begin, time_limit());
	cr_assert(strstr(text, "start fail, exiting with code:1") != NULL, "%s", text);
	cr_assert(strstr(text, "\negg: start failed, see ") != NULL, "%s", text);
	cr_assert(strstr(text, "logs/egg-stderr.log\n") != NULL, "%s", text);
	nobody_is_left();
}

/* Of a long log the launcher prints only the end, from the beginning of a line. */
Test(scripts, of_a_long_stderr_the_end_is_shown)
{
	static char long_text[9000];
	const char *text;
	int i;

	home();
	for (i = 0; i < 899; i++)
		memcpy(long_text + i * 10, "aaaaaaaaa\n", 10);
	manners.app_prints = long_text;
	manners.app_fails = true;
	text = command("start --daemon --workers=1", 1, "\negg: start failed");
	cr_assert_lt(strlen(text), 4096 + 256);
	cr_assert_eq(strncmp(text, "aaaaaaaaa\n", 10), 0, "%.40s", text);
	nobody_is_left();
}

/* D29: in egg output on stderr makes the start fail. */
Test(scripts, what_stands_on_stderr_is_no_failure)
{
	home();
	manners.app_prints = "DeprecationWarning: this is no error";
	command("start --daemon", 0, "egg: started, pid ");
	wait_file("logs/egg-stderr.log", "DeprecationWarning", 2);
	command("stop", 0, "egg: stopped (");
	nobody_is_left();
}

Test(scripts, a_start_that_takes_too_long_is_stopped)
{
	home();
	manners.app_is_never_ready = true;
	command("start --daemon --timeout=1", 1, "egg: not ready within 1 s, stopping it\n");
	nobody_is_left();
	cr_assert_eq(access(path_of("run/egg.pid"), F_OK), -1);
}

Test(scripts, a_start_that_is_interrupted_is_stopped)
{
	static struct run run;

	home();
	manners.app_is_never_ready = true;
	start(&run, "start --daemon");
	wait_file("logs/egg-stdout.log", "app_worker#2", 1);
	kill(run.pid, SIGINT);
	cr_assert_eq(end(&run), 1, "%s", run.text);
	cr_assert(strstr(run.text, "egg: interrupted, stopping it\n") != NULL, "%s", run.text);
	nobody_is_left();
}

/* ---- logs --------------------------------------------------------------------- */

static void
write_file(const char *path, const char *text)
{
	FILE *file = fopen(path, "w");

	cr_assert(file != NULL && fputs(text, file) != EOF && fclose(file) == 0, "%s", path);
}

static bool
is_link(const char *path)
{
	struct stat status;

	return lstat(path, &status) == 0 && S_ISLNK(status.st_mode);
}

/* D45: egg renames any kind of file. */
Test(scripts, a_link_to_a_log_is_not_rotated)
{
	static struct run run;
	char line[600];
	const char *log;

	home();
	cr_assert(mkdir(path_of("disk"), 0700) == 0 && mkdir(path_of("out"), 0700) == 0);
	write_file(path_of("disk/log"), "the first run\n");
	cr_assert_eq(symlink(path_of("disk/log"), path_of("out/log")), 0);
	cr_assert_eq(symlink(path_of("disk/new"), path_of("out/error")), 0); /* to no file */
	snprintf(line, sizeof line, "start --daemon --stdout=%s --stderr=%s", path_of("out/log"),
	         path_of("out/error"));
	command(line, 0, "egg: started, pid ");
	command("stop", 0, "egg: stopped (");
	cr_assert(is_link(path_of("out/log")) && is_link(path_of("out/error")));
	cr_assert_eq(count_files(path_of("out"), ""), 4); /* with . and .. */
	cr_assert_eq(count_files(path_of("disk"), ""), 4);
	log = content_of(path_of("disk/log"));
	cr_assert_eq(strncmp(log, "the first run\n", 14), 0, "%s", log);
	cr_assert_eq(strncmp(behind_head(log + 14), "[master] ", 9), 0, "%s", log);

	unlink(path_of("out/log"));
	cr_assert_eq(symlink("/proc/self/fd/1", path_of("out/log")), 0); /* as /dev/stdout */
	start(&run, line);
	wait_text(&run, "[master] egg started");
	cr_assert(is_link(path_of("out/log")));
	command("stop", 0, "egg: stopped (");
	cr_assert_eq(end(&run), 0);
	nobody_is_left();
}

Test(scripts, one_log_under_two_names_is_one_file)
{
	char line[600];
	int i;

	home();
	snprintf(line, sizeof line, "start --daemon --stdout=%s --stderr=%s", path_of("one/log"),
	         path_of("one/./log"));
	for (i = 0; i < 2; i++) {
		manners.app_prints = "on stderr";
		command(line, 0, "egg: started, pid ");
		command("stop", 0, "egg: stopped (");
		cr_assert(strstr(content_of(path_of("one/log")), "on stderr\n") != NULL);
		cr_assert(strstr(content_of(path_of("one/log")), "[master] egg started") != NULL);
		cr_assert_eq(count_files(path_of("one"), ""), 3 + i);
	}
	unlink(path_of("one/log"));
	cr_assert_eq(symlink("log", path_of("one/link")), 0);
	snprintf(line, sizeof line, "start --daemon --stdout=%s --stderr=%s", path_of("one/log"),
	         path_of("one/link"));
	command(line, 0, "egg: started, pid ");
	command("stop", 0, "egg: stopped (");
	cr_assert_eq(count_files(path_of("one"), ""), 5);
	nobody_is_left();
}

/* D45: of the old logs the newest ten stay. Files with other names stay, too. */
Test(scripts, old_logs_are_bounded_in_number)
{
	static const char *const old[] = {
		"20200101.000000", "20200101.000000.1", "20200101.000000.2", "20200101.000000.10",
		"20200102.000000", "20200103.000000",   "20200104.000000",   "20200105.000000",
		"20200106.000000", "20200107.000000",   "20200108.000000",   "20200109.000000"};
	static const char *const others[] = {
		"1",     "20190101.000000.gz", "20190101", "20190101.00000x", "20190101.000000.",
		"notes", "20190101.0000000"};
	char name[64];
	size_t i;

	home();
	cr_assert_eq(mkdir(path_of("logs"), 0700), 0);
	write_file(path_of("logs/egg-stdout.log"), "the last run\n");
	write_file(path_of("logs/my-egg-stdout.log.20190101.000000"), "another program's\n");
	for (i = 0; i < sizeof old / sizeof old[0]; i++) {
		snprintf(name, sizeof name, "logs/egg-stdout.log.%s", old[i]);
		write_file(path_of(name), "");
	}
	for (i = 0; i < sizeof others / sizeof others[0]; i++) {
		snprintf(name, sizeof name, "logs/egg-stdout.log.%s", others[i]);
		write_file(path_of(name), "");
	}
	command("start --daemon", 0, "egg: started, pid ");
	command("stop", 0, "egg: stopped (");
	for (i = 0; i < sizeof old / sizeof old[0]; i++) {
		snprintf(name, sizeof name, "logs/egg-stdout.log.%s", old[i]);
		cr_assert_eq(access(path_of(name), F_OK), i < 3 ? -1 : 0, "%s", name);
	}
	cr_assert_eq(count_files(path_of("logs"), "egg-stdout.log."), 10 + 7);
	cr_assert_eq(access(path_of("logs/my-egg-stdout.log.20190101.000000"), F_OK), 0);
	nobody_is_left();
}

/* After logrotate's copytruncate the next line is at the beginning of the file. */
Test(scripts, a_log_that_is_emptied_goes_on_without_a_hole)
{
	const char *log;

	home();
	manners.app_prints = "a line on stderr";
	command("start --daemon", 0, "egg: started, pid ");
	cr_assert_eq(truncate(path_of("logs/egg-stdout.log"), 0), 0);
	command("status", 0, "\nrunning, ");
	wait_file("logs/egg-stdout.log", "[master] status ],\"left_out\":0}\n", 1);
	log = content_of(path_of("logs/egg-stdout.log"));
	cr_assert(behind_head(log) > log && strncmp(behind_head(log), "[master] ", 9) == 0, "%s",
	          log);
	cr_assert_eq(truncate(path_of("logs/egg-stderr.log"), 0), 0);
	kill(master_pid(), SIGUSR2);
	wait_file("logs/egg-stderr.log", "a line on stderr\n", 2);
	cr_assert_eq(strncmp(content_of(path_of("logs/egg-stderr.log")), "a line", 6), 0);
	command("stop", 0, "egg: stopped (");
	nobody_is_left();
}

/* D46: SIGHUP kills egg's master, and egg's log does not say why. */
Test(scripts, sighup_reloads_a_daemon)
{
	pid_t master;
	int i;

	home();
	signal(SIGHUP, SIG_IGN); /* as nohup(1) does */
	command("start --daemon", 0, "egg: started, pid ");
	master = master_pid();
	for (i = 1; i <= 2; i++) {
		kill(master, SIGHUP);
		wait_file("logs/egg-stdout.log", "] reload done", (size_t)i);
	}
	command("status", 0, " reloads: 2 done, 0 given up\n");
	cr_assert_eq(master_pid(), master);
	command("stop", 0, "egg: stopped (");
	nobody_is_left();
}

static long
first_app(void)
{
	const char *row = strstr(command("status", 0, "\nrunning, "), "\napp ");
	long pid = 0;

	cr_assert(row != NULL && sscanf(row, " app %*d %ld", &pid) == 1);
	return pid;
}

/* Only the master takes SIGHUP as an order; a child dies of it, as always. */
Test(scripts, sighup_to_a_child_of_a_daemon_reloads_nothing)
{
	home();
	command("start --daemon", 0, "egg: started, pid ");
	kill((pid_t)first_app(), SIGHUP);
	wait_file("logs/egg-stderr.log", "signal: ", 1);
	cr_assert(strstr(content_of(path_of("logs/egg-stderr.log")), "signal: 1)") != NULL ||
	                  strstr(content_of(path_of("logs/egg-stderr.log")), "SIGHUP") != NULL,
	          "%s", content_of(path_of("logs/egg-stderr.log")));
	command("status", 0, " reloads: 0 done, 0 given up\n");
	command("stop", 0, "egg: stopped (");
	nobody_is_left();
}

/* ---- files that cannot be made ------------------------------------------------ */

/* The error names the folder that cannot be made, and the reason. */
Test(scripts, a_home_that_cannot_be_written_is_the_true_reason)
{
	char expected[128];

	home();
	if (mkdir("/sys/run", 0700) == 0 || errno == ENOENT)
		cr_skip_test("/sys is an ordinary folder here");
	snprintf(expected, sizeof expected, "egg: cannot make the folder /sys/run: %s\n",
	         strerror(errno));
	setenv("HOME", "/sys", 1);
	cr_assert_str_eq(command("start --daemon", 1, ""), expected);
	snprintf(expected, sizeof expected, "egg: cannot make the folder /sys/logs: ");
	setenv("HOME", "/sys", 1);
	command("start --daemon --pid-file=/tmp/clutch-no-start.pid", 1, expected);
	cr_assert_eq(access("/tmp/clutch-no-start.pid.start", F_OK), -1);
}

/* If the disk is full, the log cannot have the reason, so the launcher prints it. */
Test(scripts, a_log_that_cannot_be_written_is_the_true_reason)
{
	home();
	manners.app_fails = true;
	command("start --daemon --stdout=/dev/null --stderr=/dev/full", 1,
	        "egg: start failed, and /dev/full cannot be written: No space left on device\n");
	command("start --daemon", 1, "egg: start failed, see ");
	wait_file("logs/egg-stderr.log", "\negg: start failed\n", 1);
	nobody_is_left();
}

/* If another file has the lock's name, the launcher neither locks nor removes it. */
Test(scripts, the_lock_of_the_start_is_an_empty_file_of_ours)
{
	static const char text[] = "egg.pid.start): another file is in the way\n";

	home();
	cr_assert_eq(mkdir(path_of("run"), 0700), 0);
	write_file(path_of("run/egg.pid.start"), "notes");
	command("start --daemon", 1, text);
	cr_assert_str_eq(content_of(path_of("run/egg.pid.start")), "notes");
	unlink(path_of("run/egg.pid.start"));
	cr_assert_eq(symlink(path_of("target"), path_of("run/egg.pid.start")), 0);
	command("start --daemon", 1, text);
	cr_assert(is_link(path_of("run/egg.pid.start")));
	cr_assert_eq(access(path_of("target"), F_OK), -1);
	unlink(path_of("run/egg.pid.start"));
	cr_assert_eq(mkfifo(path_of("run/egg.pid.start"), 0600), 0);
	command("start --daemon", 1, text);
	unlink(path_of("run/egg.pid.start"));
	write_file(path_of("run/egg.pid.start"), ""); /* as a crash leaves it */
	command("start --daemon", 0, "egg: started, pid ");
	command("stop", 0, "egg: stopped (");
	nobody_is_left();
}

/* ---- closed descriptors ------------------------------------------------------- */

/* Is the cluster ready? Ask the master for a new status if not. */
static bool
is_running(const void *arg)
{
	long pid = atol(content_of(path_of("run/egg.pid")));

	(void)arg;
	if (strstr(content_of(path_of("run/egg.pid.status")), "\"state\":\"running\"") != NULL)
		return true;
	if (pid > 1)
		kill((pid_t)pid, SIGUSR1);
	return false;
}

/* In each process each of the descriptors 0 to 2 is /dev/null, a log, or a file of the test. */
static void
expect_standard_files(bool daemon)
{
	char name[16], target[256];
	pid_t pids[64];
	size_t i, count = test_leashed(pids, 64);
	int descriptor;

	cr_assert_geq(count, 4);
	for (i = 0; i < count; i++)
		for (descriptor = 0; descriptor < 3; descriptor++) {
			snprintf(name, sizeof name, "fd/%d", descriptor);
			field_of(pids[i], name, target, sizeof target);
			if (daemon && descriptor > 0)
				cr_assert(strstr(target, "/logs/egg-std") != NULL, "%s", target);
			else if (daemon || manners.closed & 1 << descriptor)
				cr_assert_str_eq(target, "/dev/null");
		}
}

/* As in "start <&- >&- 2>&-": every combination of closed descriptors. */
Test(scripts, closed_descriptors_are_filled_before_anything_is_opened)
{
	static struct run run;
	int i;

	home();
	for (i = 0; i < 16; i++) {
		manners.closed = i % 8;
		start(&run, i < 8 ? "start" : "start --daemon");
		if (i >= 8)
			cr_assert_eq(end(&run), 0, "%s", run.text);
		wait_until(is_running, NULL, "the cluster to run");
		expect_standard_files(i >= 8);
		manners.closed = 0;
		command("stop", 0, "egg: stopped (");
		if (i < 8)
			cr_assert_eq(end(&run), 0, "%s", run.text);
		nobody_is_left();
	}
}

/* ---- systemd ------------------------------------------------------------------ */

/* Open systemd's end, a datagram socket. A name that begins with @ is an abstract address. */
static int
open_notify_socket(const char *name)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct timeval limit = {.tv_sec = time_limit() / 1000};
	int descriptor = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0), on = 1;
	size_t length = strlen(name);

	memcpy(address.sun_path, name, length);
	if (name[0] == '@')
		address.sun_path[0] = '\0';
	length += offsetof(struct sockaddr_un, sun_path);
	cr_assert_eq(bind(descriptor, (struct sockaddr *)&address, (socklen_t)length), 0, "%s: %s",
	             name, strerror(errno));
	setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	setsockopt(descriptor, SOL_SOCKET, SO_PASSCRED, &on, sizeof on);
	setenv("NOTIFY_SOCKET", name, 1);
	return descriptor;
}

/* Receive the next state, which must come from the sender (0: from any process). */
static const char *
receive(int descriptor, pid_t sender)
{
	static char text[256];
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(struct ucred))];
	} control;
	struct iovec part = {text, sizeof text - 1};
	struct msghdr message = {.msg_iov = &part,
	                         .msg_iovlen = 1,
	                         .msg_control = &control,
	                         .msg_controllen = sizeof control};
	ssize_t count = recvmsg(descriptor, &message, 0);
	struct ucred from = {0};

	text[count > 0 ? count : 0] = '\0';
	if (count > 0 && message.msg_controllen > 0)
		memcpy(&from, CMSG_DATA(&control.header), sizeof from);
	cr_assert(sender == 0 || from.pid == sender, "%ld says %s", (long)from.pid, text);
	return text;
}

static void
expect_silence(int descriptor)
{
	char byte;

	cr_assert_eq(recv(descriptor, &byte, 1, MSG_DONTWAIT), -1);
}

/* Only the main process may send notices, as for NotifyAccess=main. */
static void
expect_notices(const char *name)
{
	static struct run run;
	int descriptor = open_notify_socket(name);

	manners.app_prints_notify_socket = true;
	start(&run, "start");
	cr_assert_str_eq(receive(descriptor, run.pid), "READY=1");
	wait_text(&run, "[master] to stop it");
	cr_assert_eq(count_text(run.text, "app's NOTIFY_SOCKET: none"), 2, "%s", run.text);
	kill(run.pid, SIGUSR2); /* no notice */
	wait_text(&run, "] reload done");
	kill(run.pid, SIGTERM);
	cr_assert_str_eq(receive(descriptor, run.pid), "STOPPING=1");
	kill(run.pid, SIGTERM); /* no second notice */
	cr_assert_eq(end(&run), 0);
	expect_silence(descriptor);
	close(descriptor);
	nobody_is_left();
}

Test(scripts, systemd_is_told)
{
	char abstract[64];

	home();
	snprintf(abstract, sizeof abstract, "@clutch%s", test_folder()); /* a unique name */
	expect_notices(path_of("notify"));
	expect_notices(abstract);
}

/* STOPPING=1 is sent whatever ends the cluster, even if it was never ready. */
Test(scripts, systemd_is_told_of_every_end)
{
	static struct run run;
	int descriptor;

	home();
	descriptor = open_notify_socket(path_of("notify"));
	start(&run, "start");
	cr_assert_str_eq(receive(descriptor, run.pid), "READY=1");
	command("stop", 0, "egg: stopped (");
	cr_assert_str_eq(receive(descriptor, run.pid), "STOPPING=1");
	cr_assert_eq(end(&run), 0);
	manners.app_fails = true;
	start(&run, "start");
	cr_assert_str_eq(receive(descriptor, run.pid), "STOPPING=1");
	cr_assert_eq(end(&run), 1);
	expect_silence(descriptor);
	close(descriptor);
	nobody_is_left();
}

/* A service may start a daemon, ask for a status or stop another cluster. These commands and
 * the daemon's processes send no notices, because they are not the service. */
Test(scripts, the_other_commands_do_not_speak_for_the_service)
{
	char path[64];
	int descriptor;

	home();
	descriptor = open_notify_socket(path_of("notify"));
	manners.app_prints_notify_socket = true;
	command("start --daemon", 0, "egg: started, pid ");
	snprintf(path, sizeof path, "logs/egg-stderr.log");
	wait_file(path, "app's NOTIFY_SOCKET: none", 2);
	command("status", 0, "\nrunning, ");
	command("reload", 0, "egg: reloaded 2 app workers (");
	command("stop", 0, "egg: stopped (");
	expect_silence(descriptor);
	close(descriptor);
	nobody_is_left();
}

/* READY=1 is not lost if systemd is busy and its socket is full. */
Test(scripts, a_full_notify_socket_is_waited_for)
{
	static struct run run;
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int descriptor, sender = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0), others = 0;

	home();
	descriptor = open_notify_socket(path_of("notify"));
	snprintf(address.sun_path, sizeof address.sun_path, "%s", path_of("notify"));
	while (sendto(sender, "other", 5, MSG_DONTWAIT, (struct sockaddr *)&address,
	              sizeof address) == 5)
		others++;
	start(&run, "start");
	wait_text(&run, "[master] to stop it");
	for (; others > 0; others--)
		cr_assert_str_eq(receive(descriptor, 0), "other");
	cr_assert_str_eq(receive(descriptor, run.pid), "READY=1");
	kill(run.pid, SIGTERM);
	cr_assert_eq(end(&run), 0);
	close(sender);
	close(descriptor);
	nobody_is_left();
}

/* If NOTIFY_SOCKET names no socket, the log has one line, and the cluster works as always. */
Test(scripts, a_notify_socket_that_is_not_there_harms_nobody)
{
	static const char *const sockets[][2] = {
		{"/nowhere/notify", "/nowhere/notify: No such file or directory\n"},
		{"notify", "notify: Address family not supported by protocol\n"},
		{"@", "@: Address family not supported by protocol\n"}};
	static struct run run;
	char line[160];
	size_t i;

	home();
	for (i = 0; i < 3; i++) {
		setenv("NOTIFY_SOCKET", sockets[i][0], 1);
		snprintf(line, sizeof line, "egg: cannot tell NOTIFY_SOCKET=%s", sockets[i][1]);
		start(&run, "start");
		wait_text(&run, "[master] to stop it");
		wait_text(&run, line);
		kill(run.pid, SIGTERM);
		cr_assert_eq(end(&run), 0);
		nobody_is_left();
	}
}
