/* The agent sends the app the writing end of a pipe, fifty times, and closes both ends
 * each time. The first and the last time it counts its open descriptors.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "../../messenger.h"

#include <fcntl.h>
#include <unistd.h>

static int
count_descriptors(void)
{
	int descriptor, count = 0;

	for (descriptor = 0; descriptor < 256; descriptor++)
		count += fcntl(descriptor, F_GETFD) != -1;
	return count;
}

static int
give(struct messenger *agent, void *arg)
{
	static int given;
	struct message message = {.action = "take", .to = ROLE_APP};
	int pair[2], result;

	(void)arg;
	if (given == 0 || given == 50)
		clutch_print_line(STDOUT_FILENO, "after %d handles the agent has %d descriptors",
		                  given, count_descriptors());
	if (given++ >= 50)
		return 0;
	if (pipe(pair) == -1)
		return -1;
	message.handle = pair[1];
	result = messenger_send_message(agent, &message);
	close(pair[0]);
	close(pair[1]);
	return result;
}

static int
on_ready(struct messenger *agent, const struct message *message, void *arg)
{
	(void)message;
	return messenger_set_interval(agent, 10, give, arg) == -1;
}

static int
agent(struct messenger *agent, void *arg)
{
	return messenger_once(agent, "egg-ready", on_ready, arg);
}

int
main(void)
{
	return start_cluster(&(struct options){.agent = agent, .workers = 1});
}
