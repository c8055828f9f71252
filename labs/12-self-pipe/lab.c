/*
 * Two signals for the master, the second while it is busy with the first. The master's
 * log is a pipe that no process reads. The agent has filled it and left room for one line,
 * so that SIGUSR1 takes a while: the first line of the status is written, the second one
 * waits 10 ms before it is lost. As soon as the pipe is full again, the agent sends SIGTERM.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "../../messenger.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#define PIPE_PIECE 4096 /* when so much is read from a full pipe, poll(2) finds it writable */

static int reading_end;

static int
say_again(struct messenger *agent, void *arg)
{
	(void)arg;
	if (messenger_closing(agent))
		return 0;
	clutch_print_line(STDERR_FILENO, "3 s after SIGTERM there is no answer; now any event: "
	                                 "a message to the master");
	return messenger_send(agent, "anything", NULL, ROLE_MASTER);
}

static int
fill_log(void)
{
	int flags = fcntl(STDOUT_FILENO, F_GETFL);
	static char piece[PIPE_PIECE];

	fcntl(STDOUT_FILENO, F_SETFL, flags | O_NONBLOCK);
	while (write(STDOUT_FILENO, piece, 64) > 0)
		;
	fcntl(STDOUT_FILENO, F_SETFL, flags);
	return read(reading_end, piece, sizeof piece) == PIPE_PIECE ? 0 : -1;
}

static int
send_two_signals(struct messenger *agent, void *arg)
{
	struct pollfd log = {.fd = STDOUT_FILENO, .events = POLLOUT};
	int64_t deadline = clutch_now() + 2000;

	if (fill_log() == -1)
		return -1;
	kill(getppid(), SIGUSR1);
	while (poll(&log, 1, 0) == 1 && clutch_now() < deadline)
		; /* until the master has written its first line */
	kill(getppid(), SIGTERM);
	clutch_print_line(STDERR_FILENO, "the agent has sent SIGUSR1 and SIGTERM");
	return messenger_set_timeout(agent, 3000, say_again, arg) == -1;
}

static int
on_close(struct messenger *agent, void *arg)
{
	(void)agent, (void)arg;
	clutch_print_line(STDERR_FILENO, "the master has heard SIGTERM");
	return 0;
}

/* Later than the last thing that the master does by itself after a start. */
static int
on_ready(struct messenger *agent, const struct message *message, void *arg)
{
	(void)message;
	return messenger_set_timeout(agent, 2500, send_two_signals, arg) == -1;
}

static int
agent(struct messenger *agent, void *arg)
{
	if (messenger_once(agent, "egg-ready", on_ready, arg) == -1)
		return -1;
	return messenger_before_close(agent, on_close, arg);
}

int
main(void)
{
	int ends[2];

	if (pipe(ends) == -1 || dup2(ends[1], STDOUT_FILENO) == -1)
		return 1;
	reading_end = ends[0];
	/* "local": no health check wakes the master */
	return start_cluster(&(struct options){.agent = agent, .workers = 1, .env = "local"});
}
