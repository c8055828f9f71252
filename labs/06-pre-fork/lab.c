/*
 * Eight apps on one port. The agent connects to the port a hundred times, and then greets
 * all apps five times a second. Each app says which greetings it hears.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "../../messenger.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { APPS = 8, CONNECTIONS = 100 };

static int port;

static int
greet(struct messenger *agent, void *arg)
{
	(void)arg;
	return messenger_send_to_app(agent, "greet", NULL);
}

/* Each connection is accepted, and closed, before the next one is made. */
static int
connect_once(struct messenger *agent, void *arg)
{
	static int made, timer;
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((in_port_t)port)};
	int descriptor = socket(AF_INET, SOCK_STREAM, 0);
	char end;

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (connect(descriptor, (const struct sockaddr *)&address, sizeof address) == 0)
		made += read(descriptor, &end, 1) == 0;
	close(descriptor);
	if (made < CONNECTIONS)
		return messenger_set_timeout(agent, 5, connect_once, arg) == -1;
	if (timer == 0)
		timer = messenger_set_interval(agent, 200, greet, arg);
	clutch_print_line(STDOUT_FILENO, "%d connections were accepted", made);
	return timer == -1;
}

static int
on_ready(struct messenger *agent, const struct message *message, void *arg)
{
	const char *found = strstr(message->data, "\"port\":");

	port = found != NULL ? atoi(found + strlen("\"port\":")) : 0;
	return messenger_set_timeout(agent, 5, connect_once, arg) == -1;
}

static int
agent(struct messenger *agent, void *arg)
{
	return messenger_once(agent, "egg-ready", on_ready, arg);
}

static int
on_greet(struct messenger *app, const struct message *message, void *arg)
{
	(void)message, (void)arg;
	clutch_print_line(STDOUT_FILENO, "app %d is greeted", messenger_slot(app));
	return 0;
}

static int
app(struct messenger *app, void *arg)
{
	return messenger_on(app, "greet", on_greet, arg);
}

static int
on_connection(struct messenger *app, int descriptor, void *arg)
{
	(void)app, (void)arg;
	return close(descriptor);
}

int
main(void)
{
	return start_cluster(&(struct options){.agent = agent,
	                                       .app = app,
	                                       .connection = on_connection,
	                                       .workers = APPS,
	                                       .port = -1});
}
