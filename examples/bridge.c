/*
 * Several clusters that hear each other through Redis, each on its own machine or in its own
 * terminal. What you type in one of them is heard in all of them, and twice: published to
 * the clusters that are there now, and sent reliably.
 *
 *	build/examples/bridge paris redis://10.0.0.1
 *	build/examples/bridge tokyo redis://10.0.0.1
 *
 *	terminal    parent    master    app     agent     Redis     agent    master   app
 *	   | hello    |         |        |        |         |         |        |       |
 *	   +--------> +-------> +------> +------> +-------> + ------> +------> +-----> | prints it
 *
 * The end of the input (Ctrl-D) ends the cluster, and so does Ctrl-C.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "../redis/bridge.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static struct bridge_options options; /* the name of this cluster, and where Redis is */
static struct bridge *bridge;

/* ---- agent.js ---------------------------------------------------------------------- */

static int
agent(struct messenger *agent, void *arg)
{
	(void)arg;
	return bridge_start(agent, &options) == NULL;
}

/* ---- app.js ------------------------------------------------------------------------ */

static int
on_say(struct messenger *app, const struct message *message, void *arg)
{
	(void)app, (void)arg;
	if (bridge_publish(bridge, NULL, "published", message->data) == -1)
		clutch_print_line(STDOUT_FILENO, "%s cannot publish %s: %s", options.cluster,
		                  message->data, strerror(errno));
	if (bridge_send(bridge, NULL, "sent", message->data) == -1)
		clutch_print_line(STDOUT_FILENO, "%s cannot send %s: %s", options.cluster,
		                  message->data, strerror(errno));
	return 0;
}

static int
print_it(struct bridge *from, const struct bridge_message *message, void *arg)
{
	(void)from, (void)arg;
	clutch_print_line(STDOUT_FILENO, "%s hears %s from %s, %s", options.cluster, message->data,
	                  message->from, message->action);
	return 0;
}

static int
app(struct messenger *app, void *arg)
{
	bridge = bridge_start(app, &options);
	return bridge == NULL || bridge_on(bridge, NULL, print_it, arg) == -1 ||
	       messenger_on(app, "say", on_say, arg) == -1;
}

/* ---- the parent: from the terminal to the app ---------------------------------------- */

static pid_t master;

/* A line becomes a string of JSON. */
static int
say(struct messenger *parent, const char *line, size_t length)
{
	char text[512];
	size_t i;

	for (i = 0; i < length; i++)
		if ((unsigned char)line[i] < ' ' || line[i] == '"' || line[i] == '\\')
			return 0; /* it would have to be escaped */
	snprintf(text, sizeof text, "\"%.*s\"", (int)length, line);
	return length == 0 ? 0 : messenger_send_to_app(parent, "say", text);
}

/* A read returns a part of a line, or several lines. */
static int
on_input(struct messenger *parent, int descriptor, short revents, void *arg)
{
	static char input[500];
	static size_t used;
	ssize_t count = read(descriptor, input + used, sizeof input - used);
	char *line = input, *end;

	(void)revents, (void)arg;
	if (count <= 0) {
		messenger_unwatch(parent, descriptor);
		return kill(master, SIGTERM);
	}
	used += (size_t)count;
	while ((end = memchr(line, '\n', used - (size_t)(line - input))) != NULL) {
		if (say(parent, line, (size_t)(end - line)) == -1)
			return -1;
		line = end + 1;
	}
	used -= (size_t)(line - input);
	memmove(input, line, used);
	if (used == sizeof input)
		used = 0; /* a line that is too long */
	return 0;
}

int
main(int argc, char **argv)
{
	struct options cluster = {
		.agent = agent, .app = app, .workers = 1, .end_with_parent = true};
	struct messenger *parent;
	int status = 0;

	if (argc < 2 || argc > 3) {
		fprintf(stderr, "usage: bridge CLUSTER [URL of Redis]\n");
		return 64;
	}
	options.cluster = argv[1];
	options.url = argv[2];
	parent = fork_cluster(&cluster, &master);
	if (parent == NULL || messenger_watch(parent, STDIN_FILENO, POLLIN, on_input, NULL) == -1) {
		perror("bridge");
		return 1;
	}
	while (waitpid(master, &status, WNOHANG) == 0)
		messenger_step(parent, 50);
	messenger_close(parent);
	return status != 0;
}
