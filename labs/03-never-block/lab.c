/*
 * The agent sends to the first app as fast as it can. The two apps have nothing to do
 * with that: the second one says hello to itself twenty times a second, by way of the
 * master, and prints each twentieth hello that comes back.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "../../messenger.h"

#include <string.h>
#include <unistd.h>

static char much[1001];

static int
pour(struct messenger *agent, void *arg)
{
	size_t count;
	const pid_t *apps = messenger_opids(agent, &count);
	int i;

	(void)arg;
	for (i = 0; i < 200 && count > 0; i++)
		if (messenger_send_to(agent, apps[0], "much", much) == -1)
			break; /* the queue is full: again at the next tick */
	return 0;
}

static int
on_ready(struct messenger *agent, const struct message *message, void *arg)
{
	(void)message;
	return messenger_set_interval(agent, 1, pour, arg) == -1;
}

static int
agent(struct messenger *agent, void *arg)
{
	return messenger_once(agent, "egg-ready", on_ready, arg);
}

static int
say_hello(struct messenger *app, void *arg)
{
	(void)arg;
	messenger_send_to(app, messenger_pid(app), "hello", NULL);
	return 0;
}

static int
on_hello(struct messenger *app, const struct message *message, void *arg)
{
	static unsigned heard;

	(void)app, (void)message, (void)arg;
	if (++heard % 20 == 0)
		clutch_print_line(STDOUT_FILENO, "the second app has heard %u hellos", heard);
	return 0;
}

static int
app(struct messenger *app, void *arg)
{
	if (messenger_slot(app) == 1 && (messenger_on(app, "hello", on_hello, arg) == -1 ||
	                                 messenger_set_interval(app, 50, say_hello, arg) == -1))
		return -1;
	return 0;
}

int
main(void)
{
	memset(much, 'x', sizeof much - 1);
	much[0] = much[sizeof much - 2] = '"'; /* a string in JSON */
	return start_cluster(&(struct options){.agent = agent, .app = app, .workers = 2});
}
