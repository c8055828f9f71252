/*
 * The agent leads, and the app follows: it subscribes to one key, once, and calls a method ten
 * times a second.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "../../cluster-client/cluster_client.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- the agent: the real client ------------------------------------------------ */

/* The pid of this agent, which is both the value of the key and the result of the call. */
static char pid[16];

static void
on_subscribed(struct cluster_client *client, const char *key, void *arg)
{
	(void)arg;
	cluster_client_emit(client, key, pid, strlen(pid));
}

static void
tell_pid(struct cluster_client *client, struct cluster_call *call, const char *data, size_t length,
         void *arg)
{
	(void)client, (void)data, (void)length, (void)arg;
	cluster_client_reply(call, pid, strlen(pid));
}

static const struct real_method methods[] = {{"getPid", tell_pid}, {NULL, NULL}};
static const struct real_client real = {.subscribe = on_subscribed, .methods = methods};

static int
agent(struct messenger *agent, void *arg)
{
	(void)arg;
	snprintf(pid, sizeof pid, "%ld", (long)getpid());
	return cluster_client_leader(agent, "lab", &real, NULL) == NULL;
}

/* ---- the app --------------------------------------------------------------------- */

static struct cluster_client *follower;

static int
on_value(struct cluster_client *client, const char *key, const char *data, size_t length, void *arg)
{
	(void)client, (void)key, (void)length, (void)arg;
	clutch_print_line(STDOUT_FILENO, "the app hears a value of agent %s", data);
	return 0;
}

/* Only the first answer of each agent is printed. */
static int
on_answer(struct cluster_client *client, const struct cluster_error *error, const char *data,
          size_t length, void *arg)
{
	static long last;

	(void)client, (void)length, (void)arg;
	if (error == NULL && strtol(data, NULL, 10) != last) {
		last = strtol(data, NULL, 10);
		clutch_print_line(STDOUT_FILENO, "the app calls, and agent %s answers", data);
	}
	return 0;
}

static int
call(struct messenger *app, void *arg)
{
	(void)app;
	cluster_client_invoke(follower, "getPid", NULL, 0, on_answer, arg);
	return 0;
}

static int
app(struct messenger *app, void *arg)
{
	follower = cluster_client_follower(app, "lab", &real, NULL);
	return follower == NULL || cluster_client_subscribe(follower, "key", on_value, arg) == -1 ||
	       messenger_set_interval(app, 100, call, arg) == -1;
}

int
main(void)
{
	return start_cluster(&(struct options){.agent = agent, .app = app, .workers = 1});
}
