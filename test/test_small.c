/*
 * examples/small works, and each way to break it does what its comment says. Otherwise the
 * program would teach something that is not true.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "harness.h"

#include <criterion/criterion.h>

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* A master that has printed nothing for this long hangs: one that works prints sooner; in ms. */
#define SILENCE 300

static int output; /* what all processes of the program print */
static char text[64 * 1024];
static pid_t master, agent, apps[2];

/* Read once. False: no output came within `timeout` ms. */
static bool
read_output(int timeout)
{
	struct pollfd wait = {output, POLLIN, 0};
	size_t length = strlen(text);
	ssize_t count;

	if (poll(&wait, 1, timeout) <= 0)
		return false;
	count = read(output, text + length, sizeof text - 1 - length);
	cr_assert(count > 0, "no process is left, or it prints too much:\n%s", text);
	text[length + (size_t)count] = '\0';
	return true;
}

static int
count_lines(const char *wanted)
{
	const char *at = text;
	int count = 0;

	while ((at = strstr(at, wanted)) != NULL) {
		at += strlen(wanted);
		count++;
	}
	return count;
}

static void
wait_for(const char *wanted, int times)
{
	while (count_lines(wanted) < times)
		cr_assert(read_output(time_limit()), "waited in vain for \"%s\" in:\n%s", wanted,
		          text);
}

static void
wait_for_state(pid_t pid, char wanted)
{
	int64_t deadline = clutch_now() + time_limit();
	char path[64], state = '\0';
	FILE *file;

	snprintf(path, sizeof path, "/proc/%ld/stat", (long)pid);
	while (state != wanted) {
		cr_assert(clutch_now() < deadline, "process %ld is in state %c, not %c", (long)pid,
		          state, wanted);
		file = fopen(path, "r");
		cr_assert(file != NULL, "process %ld is gone", (long)pid);
		cr_assert_eq(fscanf(file, "%*d (%*[^)]) %c", &state), 1);
		fclose(file);
		poll(NULL, 0, 1);
	}
}

static void
start(const char *mistake)
{
	const char *build = getenv("BUILD"), *at;
	char path[256];
	int ends[2];
	long pid;

	snprintf(path, sizeof path, "%s/examples/small", build != NULL ? build : "build");
	cr_assert(pipe(ends) == 0);
	test_leash();
	master = fork();
	cr_assert(master != -1);
	if (master == 0) {
		dup2(ends[1], STDOUT_FILENO);
		close(ends[0]);
		close(ends[1]);
		execl(path, path, mistake, (char *)NULL);
		_exit(127);
	}
	close(ends[1]);
	output = ends[0];
	wait_for(": agent is ", 1);
	at = strstr(text, ": app is ");
	cr_assert(at != NULL && sscanf(at, ": app is %ld", &pid) == 1);
	apps[0] = (pid_t)pid;
	at = strstr(at + 1, ": app is ");
	cr_assert(at != NULL && sscanf(at, ": app is %ld", &pid) == 1);
	apps[1] = (pid_t)pid;
	at = strstr(text, ": agent is ");
	cr_assert(sscanf(at, ": agent is %ld", &pid) == 1);
	agent = (pid_t)pid;
}

Test(small, it_works)
{
	start(NULL);
	wait_for(" hears 5 bytes from the agent: hello\n", 2);
	cr_assert(kill(apps[0], SIGKILL) == 0);
	wait_for(": the channel of app ", 1);
	cr_assert(kill(agent, SIGKILL) == 0);
	wait_for(": the channel of agent ", 1);
}

/* The master blocks in a partial read of the agent's frame: so the master sees the agent's end
 * first, although the app has died before. */
Test(small, half_a_frame_makes_the_master_hang_in_read)
{
	start("half");
	wait_for_state(agent, 'S'); /* it has written the header */
	wait_for_state(master, 'S');
	cr_assert(kill(apps[0], SIGKILL) == 0);
	wait_for_state(apps[0], 'Z');
	cr_assert(!read_output(SILENCE), "the master should hang, and it prints:\n%s", text);
	cr_assert(kill(agent, SIGKILL) == 0);
	wait_for(": the channel of app ", 1);
	cr_assert_lt(strstr(text, ": the channel of agent "), strstr(text, ": the channel of app "),
	             "%s", text);
}

Test(small, a_stopped_app_makes_the_master_hang_in_write)
{
	int64_t deadline;

	start("stopped");
	wait_for_state(apps[0], 'T');
	wait_for(" hears 65536 bytes from the agent", 1);
	deadline = clutch_now() + time_limit();
	while (read_output(SILENCE)) /* drain what the other app prints */
		cr_assert(clutch_now() < deadline, "the master should hang, and it does not");
	cr_assert(process_is_alive(master) && process_is_alive(apps[1]));
	cr_assert(kill(apps[0], SIGCONT) == 0);
	wait_for(" hears 65536 bytes from the agent", count_lines(" hears 65536 ") + 1);
}

Test(small, a_lie_is_believed)
{
	start("lie");
	wait_for(" hears 5 bytes from the master: hello\n", 2);
}

Test(small, the_dead_stay_zombies)
{
	start("zombie");
	wait_for(": the channel of agent ", 1);
	wait_for_state(agent, 'Z');
	cr_assert(kill(apps[0], SIGKILL) == 0);
	wait_for(": the channel of app ", 1); /* the master has had time since then */
	wait_for_state(agent, 'Z');
}

Test(small, a_killed_master_leaves_orphans)
{
	int status;

	start("orphan");
	cr_assert(waitpid(master, &status, 0) == master && WIFSIGNALED(status));
	wait_for(" hears 5 bytes from the agent", 2);
	cr_assert(!read_output(SILENCE), "a child has noticed the end:\n%s", text);
	cr_assert(process_is_alive(agent) && process_is_alive(apps[0]) &&
	          process_is_alive(apps[1]));
}

Test(small, a_way_that_does_not_exist_is_one_clear_line)
{
	char command[512];
	const char *build = getenv("BUILD");
	int status;

	snprintf(command, sizeof command,
	         "%s/examples/small hal 2>&1 | grep -qx 'usage: small "
	         "\\[half|stopped|lie|zombie|orphan\\]'",
	         build != NULL ? build : "build");
	status = system(command);
	cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0, "%s", command);
}

/* The book's chapter and the program's comment promise this size. */
Test(small, it_has_fewer_than_200_lines)
{
	FILE *file = fopen("examples/small.c", "r");
	int lines = 0, byte;

	cr_assert(file != NULL);
	while ((byte = getc(file)) != EOF)
		lines += byte == '\n';
	fclose(file);
	cr_assert_lt(lines, 200);
}
