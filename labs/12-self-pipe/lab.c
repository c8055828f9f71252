/*
 * Two signals for the master, the second while it is busy with the first. The master's
 * log is a pipe that no process reads and that the agent has filled, so that SIGUSR1
 * takes a while: each line of the table waits 10 ms, and is lost then. Meanwhile the
 * agent sends SIGTERM.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "../../messenger.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#define WORKERS 40

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
send_two_signals(struct messenger *agent, void *arg)
{
	int flags = fcntl(STDOUT_FILENO, F_GETFL);
	static const char line[64];

	fcntl(STDOUT_FILENO, F_SETFL, flags | O_NONBLOCK);
	while (write(STDOUT_FILENO, line, sizeof line) > 0)
		;
	fcntl(STDOUT_FILENO, F_SETFL, flags);
	kill(getppid(), SIGUSR1);
	poll(NULL, 0, 200); /* the master prints its table, 46 lines */
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
	/* "local": no health check wakes the master */
	return start_cluster(&(struct options){.agent = agent, .workers = WORKERS, .env = "local"});
}
