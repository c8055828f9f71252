/*
 * live's agent and apps: the traffic, the page, and what feeds the page (see live.c).
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "../messenger.h"
#include "http.h"
#include "live.h"

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
	LOADING = 500,   /* ms until an app is ready, as if it had to load something */
	ORDERS = 16,     /* that wait in one app */
	PATIENCE = 1000, /* ms that they wait */
	FEED = 250,      /* ms between two looks at the cluster */
	TICK = 250,      /* ms between two messages of the agent to all apps */
	POUR = 20,       /* ms between two portions of a flood */
	PORTION = 4,     /* messages in a portion */
	FLOOD = 400,     /* messages in a flood */
	WEIGHT = 32768,  /* bytes of data in each of them */
	WORK = 10        /* ms that each costs its receiver */
};

char live_token[33];

bool
live_make_token(void)
{
	unsigned char bytes[(sizeof live_token - 1) / 2];
	int source = open("/dev/urandom", O_RDONLY);
	size_t i;

	if (source == -1 || read(source, bytes, sizeof bytes) != (ssize_t)sizeof bytes)
		return false;
	for (i = 0; i < sizeof bytes; i++)
		sprintf(live_token + 2 * i, "%02x", bytes[i]);
	return close(source) == 0;
}

/* ---- agent and apps: some traffic, and a flood --------------------------------- */

/* A process that is held up may have a full queue (ENOBUFS): these messages are no loss. */
static int
on_time(struct messenger *agent, void *arg)
{
	static int count;
	char slot[16];

	(void)arg;
	snprintf(slot, sizeof slot, "%d", count++ % live_workers);
	messenger_send_to_app(agent, "tick", slot);
	return 0;
}

/* One app answers, and not all of them: where the agent is stopped and its queue full, an
 * answer holds up the app that sends it, and the page needs an app that is free. */
static int
on_tick(struct messenger *app, const struct message *message, void *arg)
{
	(void)arg;
	if (atoi(message->data) == messenger_slot(app))
		messenger_send_to_agent(app, "tock", message->data);
	return 0;
}

static struct {
	pid_t receiver;
	int left, timer;
} flood;

static int
pour(struct messenger *messenger, void *arg)
{
	static char data[WEIGHT + 1];
	int portion = PORTION;

	(void)arg;
	memset(data, 'x', WEIGHT);
	data[0] = data[WEIGHT - 1] = '"';
	while (flood.left > 0 && portion-- > 0 &&
	       messenger_send_to(messenger, flood.receiver, "live-heavy", data) == 0)
		flood.left--;
	if (flood.left == 0) {
		messenger_clear_timeout(messenger, flood.timer);
		flood.timer = 0;
	}
	return 0;
}

static int
on_flood(struct messenger *messenger, const struct message *message, void *arg)
{
	(void)arg;
	flood.receiver = (pid_t)atol(message->data);
	flood.left = FLOOD;
	if (flood.timer <= 0)
		flood.timer = messenger_set_interval(messenger, POUR, pour, NULL);
	return 0;
}

/* What a listener must not do: the whole process waits. */
static int
on_heavy(struct messenger *messenger, const struct message *message, void *arg)
{
	(void)messenger, (void)message, (void)arg;
	poll(NULL, 0, WORK);
	return 0;
}

int
live_agent(struct messenger *agent, void *arg)
{
	return messenger_on(agent, "live-flood", on_flood, arg) ||
	       messenger_on(agent, "live-heavy", on_heavy, arg) ||
	       messenger_set_interval(agent, TICK, on_time, arg) == -1;
}

/* ---- app: the page, and what it is fed with ------------------------------------ */

static int feeder; /* the interval, while there is a page; or 0 */

static int
feed(struct messenger *app, void *arg)
{
	char pid[24];

	(void)arg;
	snprintf(pid, sizeof pid, "%ld", (long)messenger_pid(app));
	messenger_send(app, "clutch-status", NULL, ROLE_MASTER);
	messenger_send(app, "live-ask", pid, ROLE_PARENT);
	return 0;
}

/* To all pages that this app feeds. An event's data is one line. When the last page has
 * gone, the feeding ends. */
static int
publish(struct messenger *app, const struct message *message, void *event)
{
	char *text = malloc(message->data_length + 64), *at;
	int length, pages;

	if (text == NULL)
		return 0;
	length = sprintf(text, "event: %s\ndata: ", (const char *)event);
	memcpy(text + length, message->data, message->data_length + 1);
	for (at = text + length; (at = strchr(at, '\n')) != NULL;)
		*at = ' ';
	memcpy(text + length + message->data_length, "\n\n", sizeof "\n\n");
	pages = http_publish(&feeder, text);
	free(text);
	if (pages == 0 && feeder > 0) {
		messenger_clear_timeout(app, feeder);
		feeder = 0;
	}
	return 0;
}

static int
answer_events(struct http_request *request)
{
	struct messenger *app = request->app;

	if (feeder <= 0)
		feeder = messenger_set_interval(app, FEED, feed, NULL);
	http_subscribe(request, "text/event-stream", &feeder, "retry: 500\n\n");
	return feed(app, NULL);
}

/* ---- app: orders ------------------------------------------------------------------ */

/* An app that is held up would keep an order for up to half a minute, and pass it on when the
 * page wants something else. So the app first asks the master a question. The answer shows that
 * the master reads the app's messages, and the order follows. Without an answer the page is told
 * to try the next app. */
static struct order {
	struct http_request *request; /* that waits for its answer, or NULL */
	char text[48];
	int timer; /* of on_held_up, accept_order, send_order; 0: there is no order here */
	bool is_accepted;
} orders[ORDERS];

static int
on_held_up(struct messenger *app, void *arg)
{
	struct order *order = arg;
	struct http_request *request = order->request;

	(void)app;
	*order = (struct order){.timer = 0};
	return http_reply(request, 503, NULL, "this app is held up\n");
}

static int
send_order(struct messenger *app, void *arg)
{
	struct order *order = arg;

	messenger_send(app, "live-order", order->text, ROLE_PARENT);
	*order = (struct order){.timer = 0};
	return 0;
}

/* An order may be to kill this app, so the answer leaves first: the loop's next turn writes it,
 * and then calls the timer that is set here, since a timer that a timer sets waits for a turn. */
static int
accept_order(struct messenger *app, void *arg)
{
	struct order *order = arg;
	struct http_request *request = order->request;

	order->request = NULL;
	order->timer = messenger_set_timeout(app, 0, send_order, order);
	return http_reply(request, 202, NULL, "the parent gets the order\n");
}

static void
pass_on(struct messenger *app)
{
	struct order *order;

	for (order = orders; order < orders + ORDERS; order++) {
		if (order->request == NULL || order->is_accepted)
			continue;
		order->is_accepted = messenger_clear_timeout(app, order->timer) == 0;
		order->timer = messenger_set_timeout(app, 0, accept_order, order);
	}
}

static int
on_status(struct messenger *app, const struct message *message, void *arg)
{
	pass_on(app);
	return publish(app, message, arg);
}

static int
keep_order(struct http_request *request, const char *what, long pid)
{
	struct order *order = orders;

	while (order < orders + ORDERS && order->timer > 0)
		order++;
	if (order == orders + ORDERS ||
	    messenger_send(request->app, "clutch-status", NULL, ROLE_MASTER) == -1)
		return http_reply(request, 503, NULL, "this app is held up\n");
	order->request = request;
	order->is_accepted = false;
	snprintf(order->text, sizeof order->text, "\"%s %ld\"", what, pid);
	order->timer = messenger_set_timeout(request->app, PATIENCE, on_held_up, order);
	return 0;
}

/* The body is "TOKEN kill 4711", or stop, continue, flood; or "TOKEN reload". */
static int
answer_order(struct http_request *request)
{
	static const char *const known = " kill stop continue flood reload ";
	char given[64] = "", what[16] = "", word[18];
	long pid = 0;

	if (!http_allow(request, "POST"))
		return 0;
	sscanf(request->body, "%63s %15[a-z] %ld", given, what, &pid);
	if (strcmp(given, live_token) != 0)
		return http_reply(request, 403, NULL, "the token is not that of this start\n");
	snprintf(word, sizeof word, " %s ", what);
	if (strstr(known, word) == NULL || (pid <= 1) != (strcmp(what, "reload") == 0))
		return http_reply(request, 400, NULL, "this is no order\n");
	return keep_order(request, what, pid);
}

/* ---- app: requests ----------------------------------------------------------------- */

/* A page from elsewhere whose name leads to this machine (DNS rebinding) has another host;
 * a form on another page has another origin. */
static bool
is_from_here(const struct http_request *request)
{
	size_t length = strcspn(request->host, ":");

	if (length != strlen("127.0.0.1") || (strncmp(request->host, "127.0.0.1", length) != 0 &&
	                                      strncmp(request->host, "localhost", length) != 0))
		return false;
	return request->origin[0] == '\0' || (strncmp(request->origin, "http://", 7) == 0 &&
	                                      strcmp(request->origin + 7, request->host) == 0);
}

/* A browser must not keep its connection: the app at its other end may be stopped by then. */
static int
answer(struct http_request *request, void *arg)
{
	(void)arg;
	http_last(request);
	if (!is_from_here(request))
		return http_reply(request, 403, NULL, "only for pages of this address\n");
	if (strcmp(request->path, "/order") == 0)
		return answer_order(request);
	if (!http_allow(request, "GET, HEAD"))
		return 0;
	if (strcmp(request->path, "/events") == 0)
		return answer_events(request);
	if (strcmp(request->path, "/") == 0)
		return http_reply(request, 200, "text/html; charset=utf-8", live_html);
	return http_reply(request, 404, NULL, "not found\n");
}

int
live_connection(struct messenger *app, int descriptor, void *arg)
{
	return http_serve(app, descriptor, answer, arg);
}

static int
on_loaded(struct messenger *app, void *arg)
{
	(void)arg;
	return messenger_ready(app, 0);
}

int
live_app(struct messenger *app, void *arg)
{
	static char status[] = "status", log[] = "log";

	messenger_ready_later(app);
	return messenger_set_timeout(app, LOADING, on_loaded, NULL) == -1 ||
	       messenger_on(app, "tick", on_tick, arg) ||
	       messenger_on(app, "live-flood", on_flood, arg) ||
	       messenger_on(app, "live-heavy", on_heavy, arg) ||
	       messenger_on(app, "clutch-status", on_status, status) ||
	       messenger_on(app, "live-log", publish, log);
}
