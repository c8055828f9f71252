/*
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
/* Two apps: each sends the agent a message of 1 MiB, which no single read brings whole. */
#include "../../messenger.h"

#include <string.h>
#include <unistd.h>

static char large[MESSAGE_DATA_MAX + 1];

static int
on_large(struct messenger *agent, const struct message *message, void *arg)
{
	(void)agent, (void)arg;
	clutch_print_line(STDOUT_FILENO, "the agent hears %zu bytes", message->data_length);
	return 0;
}

static int
agent(struct messenger *agent, void *arg)
{
	return messenger_on(agent, "large", on_large, arg);
}

static int
on_ready(struct messenger *app, const struct message *message, void *arg)
{
	(void)message, (void)arg;
	return messenger_send_to_agent(app, "large", large);
}

static int
app(struct messenger *app, void *arg)
{
	return messenger_once(app, "egg-ready", on_ready, arg);
}

int
main(void)
{
	memset(large, 'x', sizeof large - 1);
	large[0] = large[sizeof large - 2] = '"'; /* a string in JSON */
	return start_cluster(&(struct options){.agent = agent, .app = app, .workers = 2});
}
