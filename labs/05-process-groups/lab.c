/*
 * An agent and two apps that have something to save before they end. With an argument the
 * program puts itself into a process group of its own, and hears SIGINT again, as a program
 * that a terminal's shell has started.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "../../messenger.h"

#include <signal.h>
#include <unistd.h>

static int
save(struct messenger *messenger, void *arg)
{
	bool is_agent = messenger_role(messenger) == ROLE_AGENT;

	(void)arg;
	clutch_print_line(STDOUT_FILENO, "%s %ld has saved its work", is_agent ? "agent" : "app",
	                  (long)messenger_pid(messenger));
	return 0;
}

static int
start(struct messenger *messenger, void *arg)
{
	return messenger_before_close(messenger, save, arg);
}

int
main(int argc, char **argv)
{
	(void)argv;
	if (argc > 1) {
		setpgid(0, 0);
		signal(SIGINT, SIG_DFL);
	}
	return start_cluster(&(struct options){.agent = start, .app = start, .workers = 2});
}
