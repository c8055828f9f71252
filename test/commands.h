/*
 * The command line in a test. Each command runs in a process of its own, as in a shell.
 *
 *	command("start --daemon", 0, "egg: started, pid ");
 *	command(hello("status"), 3, "hello: not running");
 *
 * A line has the words for egg_scripts, which then runs with the roles of this file and the
 * title egg; or it is a program (hello, the example server). HOME is the test's folder, so
 * the default pid file and the default logs are there.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#ifndef COMMANDS_H
#define COMMANDS_H

#include "egg-scripts/egg_scripts.h"
#include "harness.h"

#include <criterion/criterion.h>

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

/* ---- roles that obey ---------------------------------------------------------- */

/* How the cluster's processes behave. The test sets this before it starts the cluster. */
static struct {
	bool app_fails, app_is_never_ready, app_forks;
	bool fork_is_stubborn;  /* the app's child ignores SIGTERM, and says so */
	bool hang;              /* both roles hang for ever, soon after they are ready */
	int app_takes;          /* the time until an app is ready, in ms */
	const char *fails_if;   /* a file: while it exists, an app does not start */
	const char *app_prints; /* what an app prints on stderr */
	bool app_prints_notify_socket;
	int closed;            /* bits: which of 0, 1 and 2 are closed in the command */
	const char *first_pid; /* the master's pid, in a PID namespace of its own */
} manners;

static inline int
hang(struct messenger *messenger, void *arg)
{
	(void)messenger, (void)arg;
	fprintf(stderr, "hangs\n");
	while (pause() == -1)
		; /* SIGTERM only sets a flag, and the channel is not read */
	return 0;
}

static inline int
agent(struct messenger *messenger, void *arg)
{
	(void)arg;
	return manners.hang ? messenger_set_timeout(messenger, 0, hang, NULL) == -1 : 0;
}

static inline int
get_ready(struct messenger *messenger, void *arg)
{
	(void)arg;
	messenger_ready(messenger, 0);
	return 0;
}

static inline void
be_forked(void)
{
	if (manners.fork_is_stubborn) {
		signal(SIGTERM, SIG_IGN);
		fprintf(stderr, "stubborn\n");
	}
	for (;;)
		pause();
}

static inline int
app(struct messenger *messenger, void *arg)
{
	const char *socket_name = getenv("NOTIFY_SOCKET");

	(void)arg;
	if (manners.app_prints != NULL)
		fprintf(stderr, "%s\n", manners.app_prints);
	if (manners.app_prints_notify_socket)
		fprintf(stderr, "app's NOTIFY_SOCKET: %s\n", socket_name ? socket_name : "none");
	if (manners.app_fails ||
	    (manners.fails_if != NULL && access(manners.fails_if, F_OK) == 0)) {
		fprintf(stderr, "app: no database\n");
		return 1;
	}
	if (manners.app_forks && fork() == 0)
		be_forked();
	if (manners.app_is_never_ready || manners.app_takes > 0)
		messenger_ready_later(messenger);
	if (manners.app_takes > 0)
		messenger_set_timeout(messenger, manners.app_takes, get_ready, NULL);
	return manners.hang ? messenger_set_timeout(messenger, 0, hang, NULL) == -1 : 0;
}

static struct options program = {.agent = agent, .app = app, .name = "egg", .workers = 2};

/* ---- commands ----------------------------------------------------------------- */

/* A command that runs or has run. */
struct run {
	pid_t pid;
	int output; /* the reading end of its stdout and stderr, or a terminal's master */
	char text[64 * 1024];
	size_t length;
	bool ended; /* no process writes any more */
	int64_t begin;
};

static int leash = -1;

/* The folder of a test, which is HOME for its commands. */
static inline const char *
home(void)
{
	if (leash == -1) {
		clear_environment();
		unsetenv("NOTIFY_SOCKET");
		leash = test_leash();
		setenv("HOME", test_folder(), 1);
		prctl(PR_SET_CHILD_SUBREAPER, 1); /* so that the test can reap its daemons */
	}
	return test_folder();
}

static inline const char *
path_of(const char *name)
{
	static char paths[8][256];
	static int next;
	char *path = paths[next++ % 8];

	snprintf(path, sizeof paths[0], "%s/%s", home(), name);
	return path;
}

/* In the child: set up what the command is to find. */
static inline void
bring_along(void)
{
	int descriptor;

	if (manners.first_pid != NULL) {
		descriptor = open("/proc/sys/kernel/ns_last_pid", O_WRONLY);
		if (write(descriptor, manners.first_pid, strlen(manners.first_pid)) <= 0)
			_exit(126);
		close(descriptor);
	}
	for (descriptor = 0; descriptor < 3; descriptor++)
		if (manners.closed & 1 << descriptor)
			close(descriptor);
}

/* In the child: become the command. A line that begins with a slash or with "build" is a
 * program; any other line is words for egg_scripts. */
static inline void
become(char *line)
{
	char name[] = "egg", *words[16] = {name};
	int count = 1;

	for (line = strtok(line, " "); line != NULL && count < 15; line = strtok(NULL, " "))
		words[count++] = line;
	if (count > 1 && strchr(words[1], '/') != NULL && words[1][0] != '-') {
		execv(words[1], words + 1);
		_exit(127);
	}
	fcntl(leash, F_SETFD, FD_CLOEXEC); /* otherwise a daemon would close it */
	bring_along();
	setvbuf(stdout, NULL, _IOLBF, 0);
	exit(egg_scripts(count, words, &program));
}

/* `end` becomes the command's stdout and stderr, and its stdin if it is a terminal. */
static inline void
fork_command(struct run *run, const char *line, int end, bool terminal)
{
	char copy[1024];

	snprintf(copy, sizeof copy, "%s", line);
	fflush(NULL);
	run->pid = fork();
	cr_assert(run->pid != -1);
	if (run->pid != 0) {
		close(end);
		return;
	}
	if (terminal) {
		setsid();
		ioctl(end, TIOCSCTTY, 0);
		dup2(end, 0);
	}
	dup2(end, 1);
	dup2(end, 2);
	close(end);
	close(run->output);
	become(copy);
}

static inline void
start(struct run *run, const char *line)
{
	int ends[2];

	home();
	memset(run, 0, sizeof *run);
	run->begin = clutch_now();
	cr_assert_eq(pipe2(ends, O_CLOEXEC), 0);
	run->output = ends[0];
	fork_command(run, line, ends[1], false);
}

/* Start the command in the foreground of a terminal of its own. */
static inline void
start_in_terminal(struct run *run, const char *line)
{
	struct termios settings;
	int end;

	home();
	memset(run, 0, sizeof *run);
	run->output = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
	cr_assert(run->output != -1 && grantpt(run->output) == 0 && unlockpt(run->output) == 0);
	end = open(ptsname(run->output), O_RDWR | O_NOCTTY | O_CLOEXEC);
	cr_assert(end != -1 && tcgetattr(end, &settings) == 0);
	settings.c_lflag |=
		NOFLSH; /* otherwise Ctrl-C would drop the output that is not read yet */
	cr_assert_eq(tcsetattr(end, TCSANOW, &settings), 0);
	fork_command(run, line, end, true);
}

/* Read more of the output. At end of file no process has the pipe any more. */
static inline void
read_output(struct run *run, int64_t deadline)
{
	struct pollfd set = {run->output, POLLIN, 0};
	int64_t left = deadline - clutch_now();
	ssize_t count;

	cr_assert(left > 0 && poll(&set, 1, (int)left) == 1, "waited in vain:\n%s", run->text);
	count = read(run->output, run->text + run->length, sizeof run->text - 1 - run->length);
	run->ended = count <= 0;
	run->length += count > 0 ? (size_t)count : 0;
	run->text[run->length] = '\0';
}

static inline void
wait_text(struct run *run, const char *text)
{
	int64_t deadline = clutch_now() + time_limit();

	while (strstr(run->text, text) == NULL) {
		cr_assert(!run->ended, "no \"%s\" in:\n%s", text, run->text);
		read_output(run, deadline);
	}
}

/* Wait until the command and everything that it has started in the foreground have ended.
 * Returns its exit status, or the negative number of the signal that killed it. */
static inline int
end(struct run *run)
{
	int64_t deadline = clutch_now() + 2 * time_limit();
	int status;

	while (!run->ended)
		read_output(run, deadline);
	close(run->output);
	cr_assert_eq(waitpid(run->pid, &status, 0), run->pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

/* Run a command to its end. Its exit status must be `code`, and `text` in what it prints. */
static inline const char *
command(const char *line, int code, const char *text)
{
	static struct run run;
	int got;

	start(&run, line);
	got = end(&run);
	cr_assert(got == code && strstr(run.text, text) != NULL,
	          "%s: exit %d, expected %d and \"%s\"; it printed:\n%s", line, got, code, text,
	          run.text);
	return run.text;
}

static inline const char *
hello(const char *words)
{
	static char line[1024];
	const char *build = getenv("BUILD");

	home();
	snprintf(line, sizeof line, "%s/examples/hello %s", build != NULL ? build : "build", words);
	if (strstr(words, "--daemon") != NULL) /* with the leash as its stderr */
		snprintf(line + strlen(line), sizeof line - strlen(line), " --stderr=/dev/fd/%d",
		         leash);
	return line;
}

static inline size_t
count_text(const char *text, const char *wanted)
{
	size_t count = 0;

	while ((text = strstr(text, wanted)) != NULL) {
		text += strlen(wanted);
		count++;
	}
	return count;
}

/* ---- files and processes ------------------------------------------------------ */

static inline const char *
content_of(const char *path)
{
	static char text[64 * 1024];
	FILE *file = fopen(path, "r");

	if (file == NULL)
		return "none";
	text[fread(text, 1, sizeof text - 1, file)] = '\0';
	fclose(file);
	return text;
}

static inline pid_t
master_pid(void)
{
	pid_t pid = (pid_t)atol(content_of(path_of("run/egg.pid")));

	cr_assert_gt(pid, 1, "the pid file says %s", content_of(path_of("run/egg.pid")));
	return pid;
}

static inline void
wait_until(bool (*is_so)(const void *arg), const void *arg, const char *what)
{
	int64_t deadline = clutch_now() + time_limit();

	while (!is_so(arg)) {
		cr_assert(clutch_now() < deadline, "waited in vain for %s", what);
		poll(NULL, 0, 5);
	}
}

/* Has every process that the test has started ended, except the given one? */
static inline bool
is_nobody_left(const void *arg)
{
	pid_t pids[64];
	const pid_t *except = arg;
	size_t i, count = test_leashed(pids, 64), left = 0;

	for (i = 0; i < count; i++)
		left += (except == NULL || pids[i] != *except) && process_is_alive(pids[i]);
	return left == 0;
}

static inline void
nobody_is_left(void)
{
	wait_until(is_nobody_left, NULL, "the end of all processes");
	while (waitpid(-1, NULL, WNOHANG) > 0)
		;
}

struct needle {
	const char *path, *text;
	size_t count;
};

static inline bool
has_text(const void *arg)
{
	const struct needle *needle = arg;

	return count_text(content_of(needle->path), needle->text) >= needle->count;
}

static inline void
wait_file(const char *name, const char *text, size_t count)
{
	char path[256];

	snprintf(path, sizeof path, "%s", path_of(name));
	wait_until(has_text, &(struct needle){path, text, count}, text);
}

static inline int
mode_of(const char *path)
{
	struct stat status;

	cr_assert_eq(stat(path, &status), 0, "%s: %s", path, strerror(errno));
	return (int)(status.st_mode & 07777);
}

/* How many files of a folder have names that begin like this? */
static inline int
count_files(const char *folder, const char *start_of_name)
{
	const struct dirent *entry;
	DIR *files = opendir(folder);
	int count = 0;

	cr_assert_not_null(files);
	while ((entry = readdir(files)) != NULL)
		count += strncmp(entry->d_name, start_of_name, strlen(start_of_name)) == 0;
	closedir(files);
	return count;
}

/* ---- connections to the example server ---------------------------------------- */

static inline int
port_in(const char *text)
{
	const char *at = strstr(text, "started on http://127.0.0.1:");

	cr_assert_not_null(at, "%s", text);
	return atoi(at + strlen("started on http://127.0.0.1:"));
}

/* GET / over a connection of its own. Returns the pid that answered, or 0. */
static inline pid_t
get(int port)
{
	static const char request[] = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
	struct timeval limit = {.tv_sec = time_limit() / 1000};
	int descriptor = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	char answer[512];
	const char *at = NULL;
	ssize_t count;
	size_t length = 0;

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	if (connect(descriptor, (struct sockaddr *)&address, sizeof address) == 0 &&
	    write(descriptor, request, sizeof request - 1) == sizeof request - 1) {
		while (length < sizeof answer - 1 &&
		       (count = read(descriptor, answer + length, sizeof answer - 1 - length)) > 0)
			length += (size_t)count;
		answer[length] = '\0';
		at = strstr(answer, "hello world from pid ");
	}
	close(descriptor);
	return at != NULL ? (pid_t)atol(at + strlen("hello world from pid ")) : 0;
}

#endif
