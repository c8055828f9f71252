/*
 * A cluster hears its own messages from Redis. The first app dies of the message "two" before it
 * has done anything with it, as a program dies that meets data it did not expect. The app that
 * replaces it sends "three".
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "../../redis/bridge.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static struct bridge_options options = {.cluster = "lab"};
static struct bridge *bridge;

/* Both ends of a pipe with one byte in it: the app that has read the byte is the first one. */
static int ends[2];
static bool first;

static int
agent(struct messenger *agent, void *arg)
{
	(void)arg;
	return bridge_start(agent, &options) == NULL;
}

static int
on_message(struct bridge *from, const struct bridge_message *message, void *arg)
{
	(void)arg;
	if (first && strcmp(message->action, "two") == 0)
		return raise(SIGKILL);
	clutch_print_line(STDOUT_FILENO, "the %s app has done \"%s\"", first ? "first" : "second",
	                  message->action);
	if (first && strcmp(message->action, "one") == 0)
		return bridge_send(from, NULL, "two", NULL);
	return 0;
}

static int
app(struct messenger *app, void *arg)
{
	char byte;

	first = read(ends[0], &byte, 1) == 1;
	bridge = bridge_start(app, &options);
	return bridge == NULL || bridge_on(bridge, NULL, on_message, arg) == -1 ||
	       bridge_send(bridge, NULL, first ? "one" : "three", NULL) == -1;
}

int
main(int argc, char **argv)
{
	if (argc != 2) {
		fprintf(stderr, "usage: lab URL, where Redis is\n");
		return 64;
	}
	options.url = argv[1];
	if (pipe(ends) == -1 || write(ends[1], "", 1) != 1 ||
	    fcntl(ends[0], F_SETFL, O_NONBLOCK) == -1) {
		perror("lab");
		return 1;
	}
	return start_cluster(&(struct options){.agent = agent, .app = app, .workers = 1});
}
