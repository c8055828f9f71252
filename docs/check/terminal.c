/*
 * A terminal for one script: what the documents show is what a reader sees in a terminal.
 *
 *	terminal SCRIPT [COMMAND:LINES ...]
 *
 * sh runs the script on a pseudo terminal, and what the terminal shows goes to stdout. A
 * line that begins with "$ " begins a command. COMMAND:LINES presses Ctrl-C when this command
 * (the first one is 1) has shown this many lines; with 0 lines, when it has been silent for a
 * second. Exits 1 if the script takes too long, or if there is no pseudo terminal.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#define _XOPEN_SOURCE 700

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

/* How long a script may take; how long to wait for lines that do not come; and how long a
 * silence is. All in ms. */
enum { SCRIPT_MAX = 60000, LINES_MAX = 15000, SILENCE = 1000 };

static int screen;              /* the terminal's side of the pseudo terminal */
static long command, lines;     /* the command that runs, and how many lines it has shown */
static bool pressed;            /* Ctrl-C, for this command */
static long long started, last; /* when the command began, and when it has shown a byte */

static long long
now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (long long)time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

/* In the child: the pseudo terminal becomes the controlling terminal of a new session. */
static void
run_script(const char *script)
{
	struct termios mode;
	int terminal;

	setsid();
	terminal = open(ptsname(screen), O_RDWR);
	close(screen);
	if (terminal == -1 || tcgetattr(terminal, &mode) == -1)
		_exit(126);
	mode.c_oflag &= ~(tcflag_t)OPOST; /* no \r */
	mode.c_lflag &= ~(tcflag_t)ECHO;  /* the ^C is shown below, on a line of its own */
	tcsetattr(terminal, TCSANOW, &mode);
	dup2(terminal, STDIN_FILENO);
	dup2(terminal, STDOUT_FILENO);
	dup2(terminal, STDERR_FILENO);
	signal(SIGINT, SIG_DFL);
	execlp("sh", "sh", script, (char *)NULL);
	_exit(127);
}

static void
press_if_due(char **presses)
{
	long which, wanted;
	char *end;

	for (; *presses != NULL && !pressed; presses++) {
		which = strtol(*presses, &end, 10);
		wanted = *end == ':' ? strtol(end + 1, NULL, 10) : 0;
		if (which != command ||
		    (wanted > 0 && lines < wanted && now() - started < LINES_MAX) ||
		    (wanted == 0 && now() - last < SILENCE))
			continue;
		pressed = true;
		puts("^C");
		if (write(screen, "\003", 1) == -1)
			perror("terminal");
	}
}

/* Show what has come, and count. */
static void
show(const char *bytes, size_t length)
{
	static char line[3]; /* its first bytes */
	static size_t at;
	size_t i;

	for (i = 0; i < length; i++) {
		putchar(bytes[i]);
		if (at < sizeof line - 1)
			line[at++] = bytes[i];
		if (bytes[i] != '\n')
			continue;
		lines++;
		if (strcmp(line, "$ ") == 0) {
			command++;
			lines = 0;
			pressed = false;
			started = now();
		}
		memset(line, 0, sizeof line);
		at = 0;
	}
	last = now();
}

/* Until no process has the terminal open. False: the script takes too long. */
static bool
watch(char **presses)
{
	struct pollfd set = {screen, POLLIN, 0};
	long long deadline = now() + SCRIPT_MAX;
	char bytes[4096];
	ssize_t count;

	started = last = now();
	while (now() < deadline) {
		if (poll(&set, 1, 50) == 1) {
			count = read(screen, bytes, sizeof bytes);
			if (count == 0 || (count == -1 && errno != EINTR))
				return true;
			if (count > 0)
				show(bytes, (size_t)count);
		}
		press_if_due(presses);
	}
	return false;
}

int
main(int argc, char **argv)
{
	bool in_time;
	pid_t pid;

	if (argc < 2) {
		fputs("usage: terminal SCRIPT [COMMAND:LINES ...]\n", stderr);
		return 2;
	}
	screen = posix_openpt(O_RDWR | O_NOCTTY);
	if (screen == -1 || grantpt(screen) == -1 || unlockpt(screen) == -1 ||
	    (pid = fork()) == -1) {
		fprintf(stderr, "terminal: there is no pseudo terminal: %s\n", strerror(errno));
		return 1;
	}
	if (pid == 0)
		run_script(argv[1]);
	in_time = watch(argv + 2);
	if (!in_time) {
		fprintf(stderr, "terminal: it has taken longer than %d s\n", SCRIPT_MAX / 1000);
		kill(-pid, SIGKILL);
	}
	close(screen); /* a process that still has the terminal hears SIGHUP */
	waitpid(pid, NULL, 0);
	return in_time ? 0 : 1;
}
