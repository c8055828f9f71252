/*
 * agent -> all apps: at egg-ready the agent sends action1, and each of three app
 * workers prints the message. Ctrl-C stops the cluster.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "../messenger.h"

#include <stdio.h>

static int
on_ready(struct messenger *agent, const struct message *message, void *arg)
{
	(void)message, (void)arg;
	return messenger_send_to_app(agent, "action1", "{\"a\":1}");
}

static int
agent(struct messenger *agent, void *arg) /* agent.js */
{
	return messenger_once(agent, "egg-ready", on_ready, arg);
}

static int
print_it(struct messenger *app, const struct message *message, void *arg)
{
	(void)arg;
	printf("app %ld got %s %s\n", (long)messenger_pid(app), message->action, message->data);
	return 0;
}

static int
app(struct messenger *app, void *arg) /* app.js */
{
	return messenger_on(app, "action1", print_it, arg);
}

int
main(void)
{
	setvbuf(stdout, NULL, _IOLBF, 0); /* one write for each line, so that lines do not mix */
	return start_cluster(&(struct options){.agent = agent, .app = app, .workers = 3});
}
