/*
 * A cluster whose processes obey. The parent orders one of them to do something, and then to
 * send a marker to everybody. Channels are first in, first out, so a process that has seen the
 * marker has also seen every earlier message for it.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#ifndef ORDERS_H
#define ORDERS_H

#include "harness.h"

#include <criterion/criterion.h>

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

/* A send call: "METHOD PID TO FROM ACTION DATA". A number is a pid, or a role of
 * enum role; "-" is an absent action, "undefined" is absent data. */
struct call {
	char method[16];
	int pid, to, from;
	char action[32];
	char data[64];
};

static inline int
parse_call(const char *text, struct call *call)
{
	return sscanf(text, "%15s %d %d %d %31s %63[^\n]", call->method, &call->pid, &call->to,
	              &call->from, call->action, call->data) == 6;
}

/* Make the call; returns 0 or errno. "message" is egg's process.send, which takes any message. */
static inline int
perform(struct messenger *messenger, const struct call *call)
{
	const char *action = strcmp(call->action, "-") != 0 ? call->action : NULL;
	const char *data = strcmp(call->data, "undefined") != 0 ? call->data : NULL;
	struct message message = {.action = action,
	                          .from = (enum role)call->from,
	                          .to = (enum role)call->to,
	                          .receiver_pid = call->pid,
	                          .data = data,
	                          .data_length = data != NULL ? strlen(data) : 0,
	                          .handle = -1};
	int result = -1;

	errno = ENOSYS;
	if (strcmp(call->method, "broadcast") == 0)
		result = messenger_broadcast(messenger, action, data);
	else if (strcmp(call->method, "sendToApp") == 0)
		result = messenger_send_to_app(messenger, action, data);
	else if (strcmp(call->method, "sendToAgent") == 0)
		result = messenger_send_to_agent(messenger, action, data);
	else if (strcmp(call->method, "sendRandom") == 0)
		result = messenger_send_random(messenger, action, data);
	else if (strcmp(call->method, "sendTo") == 0)
		result = messenger_send_to(messenger, call->pid, action, data);
	else if (strcmp(call->method, "send") == 0)
		result = messenger_send(messenger, action, data, (enum role)call->to);
	else if (strcmp(call->method, "message") == 0)
		result = messenger_send_message(messenger, &message);
	return result == 0 ? 0 : errno;
}

static inline void
send_markers(struct messenger *messenger, int number)
{
	char data[16];

	snprintf(data, sizeof data, "%d", number);
	messenger_send(messenger, "test-marker", data, ROLE_APP);
	messenger_send(messenger, "test-marker", data, ROLE_AGENT);
	messenger_send(messenger, "test-marker", data, ROLE_PARENT);
}

static inline void
report_opids(struct messenger *messenger)
{
	size_t i, count;
	const pid_t *opids = messenger_opids(messenger, &count);
	char list[512] = "";
	int used = 0;

	for (i = 0; i < count; i++)
		used += snprintf(list + used, sizeof list - (size_t)used, "%s%ld", i > 0 ? "," : "",
		                 (long)opids[i]);
	report(messenger, "opids [%s] slot %d role %s pid %ld", list, messenger_slot(messenger),
	       clutch_role_name(messenger_role(messenger)), (long)messenger_pid(messenger));
}

static inline void
send_garbage(struct messenger *messenger)
{
	unsigned char garbage[64];

	memset(garbage, 0xff, sizeof garbage);
	write_to_channel(messenger, garbage, sizeof garbage);
}

static inline int
order_call(struct messenger *messenger, const char *line)
{
	struct call call;

	errno = parse_call(line, &call) ? perform(messenger, &call) : EINVAL;
	return errno == 0 ? 0 : -1;
}

static inline int
order_opids(struct messenger *messenger, const char *line)
{
	(void)line;
	report_opids(messenger);
	return 0;
}

static inline int
order_garbage(struct messenger *messenger, const char *line)
{
	(void)line;
	send_garbage(messenger);
	return 0;
}

static inline int
order_markers(struct messenger *messenger, const char *line)
{
	send_markers(messenger, atoi(order_rest(line)));
	return 0;
}

static const struct order orders[] = {{"broadcast", order_call},
                                      {"sendToApp", order_call},
                                      {"sendToAgent", order_call},
                                      {"sendRandom", order_call},
                                      {"sendTo", order_call},
                                      {"send", order_call},
                                      {"message", order_call},
                                      {"opids", order_opids},
                                      {"garbage", order_garbage},
                                      {"markers", order_markers},
                                      {NULL, NULL}};

static inline int
obey(struct messenger *messenger, void *arg)
{
	(void)arg;
	return observe(messenger) == -1 ? -1 : obey_orders(messenger, orders);
}

/* Wait until the parent and each of `everyone` ("AGENT#1 APP#1 ...") have seen the marker. */
static inline size_t
wait_for_marker(struct cluster *c, const char *everyone, size_t mark, int number)
{
	char names[128], *name, *next = names;
	size_t end;

	end = cluster_wait(c, mark, ":PARENT saw test-marker %d ", number);
	snprintf(names, sizeof names, "%s", everyone);
	while ((name = strsep(&next, " ")) != NULL)
		cluster_wait(c, mark, ":%s saw test-marker %d ", name, number);
	return end;
}

/* Order the process to make a call (the parent makes it at once), and wait until everybody has
 * seen what came of it. Returns the place in the record where this begins. */
static inline size_t
round_of(struct cluster *c, const char *everyone, const char *who, const char *text)
{
	static int number;
	size_t mark = cluster_mark(c);
	struct call call;
	char markers[32];

	number++;
	if (strcmp(who, "PARENT") == 0) {
		cr_assert(parse_call(text, &call));
		cr_assert_eq(perform(c->parent, &call), 0, "%s", text);
		send_markers(c->parent, number);
	} else {
		cluster_order(c, who, text);
		snprintf(markers, sizeof markers, "markers %d", number);
		cluster_order(c, who, markers);
	}
	wait_for_marker(c, everyone, mark, number);
	return mark;
}

/* Start an agent and apps that obey, and wait until they are ready. */
static inline struct cluster *
start_obeying(int workers)
{
	struct cluster *c =
		cluster_start(&(struct options){.agent = obey, .app = obey, .workers = workers});

	cluster_ready(c);
	return c;
}

#endif
