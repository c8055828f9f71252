/*
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
/* The agent lies: its message says that it comes from the master. */
#include "../../messenger.h"

#include <unistd.h>

static int
on_ready(struct messenger *agent, const struct message *message, void *arg)
{
	struct message lie = {.action = "order", .from = ROLE_MASTER, .to = ROLE_APP, .handle = -1};

	(void)message, (void)arg;
	return messenger_send_message(agent, &lie);
}

static int
agent(struct messenger *agent, void *arg)
{
	return messenger_once(agent, "egg-ready", on_ready, arg);
}

static int
on_order(struct messenger *app, const struct message *message, void *arg)
{
	(void)app, (void)arg;
	clutch_print_line(STDOUT_FILENO, "the app hears an order from the %s",
	                  message->from == ROLE_MASTER ? "master" : "agent");
	return 0;
}

static int
app(struct messenger *app, void *arg)
{
	return messenger_on(app, "order", on_order, arg);
}

int
main(void)
{
	return start_cluster(&(struct options){.agent = agent, .app = app, .workers = 1});
}
