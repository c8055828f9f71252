/*
 * An API client with a cache over a data client: what egg's guide recommends where an
 * application asks for the same data again and again.
 *
 *	every process                    the agent
 *	APIClient: get(key)
 *	   | a cache, kept fresh by a subscription
 *	   +-- cluster client ---------> DataClient: get, subscribe (one connection)
 *
 * The DataClient's data changes while the apps read it. An app asks once for a key; after
 * that each get is answered from its memory, and each change comes by itself. It prints
 * what happens, and ends by itself.
 *
 * egg: APIClientBase of npm cluster-client
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "../cluster-client/cluster_client.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#define DEADLINE 30000 /* milliseconds, for all of it */
#define CHANGE 100     /* milliseconds between two changes of the data */
#define READ 10        /* milliseconds between two reads of an app */

enum { APPS = 2, KEYS = 4, KEY_SIZE = 32, VALUE_SIZE = 64, LAST = 5 };

/* ---- DataClient: in the agent ---------------------------------------------------- */

static int version = 1, asked;

static size_t
current(char *text, const char *key)
{
	return (size_t)snprintf(text, VALUE_SIZE, "{\"%.20s\":%d}", key, version);
}

static void
data_get(struct cluster_client *client, struct cluster_call *call, const char *key, size_t length,
         void *arg)
{
	char text[VALUE_SIZE];

	(void)client, (void)length, (void)arg;
	printf("DataClient: get %s is its question %d\n", key, ++asked);
	cluster_client_reply(call, text, current(text, key));
}

static void
data_subscribe(struct cluster_client *client, const char *key, void *arg)
{
	(void)client, (void)arg;
	printf("DataClient: somebody wants every change of %s\n", key);
}

/* The remote service has a new value. */
static int
on_change(struct messenger *agent, void *client)
{
	char text[VALUE_SIZE];

	(void)agent;
	if (version < LAST) {
		version++;
		cluster_client_emit(client, "limits", text, current(text, "limits"));
	}
	return 0;
}

static const struct real_method data_methods[] = {{"get", data_get}, {NULL, NULL}};
static const struct real_client data_client = {.subscribe = data_subscribe,
                                               .methods = data_methods};

/* ---- APIClient: the same in every process ------------------------------------------ */

typedef void (*api_callback)(const char *value, bool from_cache, void *arg);

struct api_client {
	struct cluster_client *client;
	struct entry {
		char key[KEY_SIZE], value[VALUE_SIZE];
		api_callback callback; /* it waits for the first value */
		void *arg;
	} cache[KEYS];
};

static void
keep(struct entry *entry, const char *value)
{
	api_callback callback = entry->callback;

	snprintf(entry->value, sizeof entry->value, "%s", value);
	entry->callback = NULL;
	if (callback != NULL)
		callback(entry->value, false, entry->arg);
}

static int
on_value(struct cluster_client *client, const char *key, const char *data, size_t length, void *arg)
{
	(void)client, (void)key, (void)length;
	keep(arg, data);
	return 0;
}

/* A value that came by the subscription meanwhile is the newer one. */
static int
on_result(struct cluster_client *client, const struct cluster_error *error, const char *data,
          size_t length, void *arg)
{
	struct entry *entry = arg;

	(void)client, (void)length;
	if (error != NULL)
		memset(entry, 0, sizeof *entry); /* the next get asks again */
	else if (entry->callback != NULL)
		keep(entry, data);
	return 0;
}

/* get(key): from the cache, at once; a key that is new is subscribed to, and asked for. One
 * call at a time waits for a new key. -1: too many keys, or too many wait. */
static int
api_client_get(struct api_client *api, const char *key, api_callback callback, void *arg)
{
	struct entry *entry = api->cache;

	while (entry < api->cache + KEYS && entry->key[0] != '\0' && strcmp(entry->key, key) != 0)
		entry++;
	if (entry == api->cache + KEYS || entry->callback != NULL)
		return -1;
	if (entry->value[0] != '\0') {
		callback(entry->value, true, arg);
		return 0;
	}
	snprintf(entry->key, sizeof entry->key, "%s", key);
	entry->callback = callback;
	entry->arg = arg;
	if (cluster_client_subscribe(api->client, key, on_value, entry) == -1)
		return -1;
	return cluster_client_invoke(api->client, "get", key, strlen(key), on_result, entry);
}

/* ---- agent.js, app.js ------------------------------------------------------------------ */

static int
agent(struct messenger *agent, void *arg)
{
	struct cluster_client *leader = cluster_client_leader(agent, "data", &data_client, NULL);

	(void)arg;
	return leader == NULL || messenger_set_interval(agent, CHANGE, on_change, leader) == -1;
}

static int reads, hits;

static void
on_limits(const char *value, bool from_cache, void *arg)
{
	static char last[VALUE_SIZE];
	char text[64];

	reads++;
	hits += from_cache;
	if (strcmp(value, last) != 0)
		printf("app %d: limits is %s, %s\n", messenger_slot(arg), value,
		       from_cache ? "from its cache" : "from the data client");
	snprintf(last, sizeof last, "%s", value);
	if (strtol(strchr(value, ':') + 1, NULL, 10) != LAST)
		return;
	snprintf(text, sizeof text, "[%d,%d,%d]", messenger_slot(arg), reads, hits);
	messenger_send(arg, "app-done", text, ROLE_PARENT);
}

static struct api_client api;

static int
on_read(struct messenger *app, void *arg)
{
	(void)arg;
	/* A key that is waited for is not asked for a second time. */
	api_client_get(&api, "limits", on_limits, app);
	return 0;
}

static int
app(struct messenger *app, void *arg)
{
	(void)arg;
	api.client = cluster_client_follower(app, "data", &data_client, NULL);
	return api.client == NULL || messenger_set_interval(app, READ, on_read, NULL) == -1;
}

/* ---- in the parent ---------------------------------------------------------------------- */

static pid_t master;
static bool done[APPS];

static int
on_done(struct messenger *parent, const struct message *message, void *arg)
{
	int slot, count, from_cache;

	(void)parent, (void)arg;
	if (sscanf(message->data, "[%d,%d,%d]", &slot, &count, &from_cache) != 3 || done[slot])
		return 0;
	printf("-- app %d has read %d times, %d times from its cache\n", slot, count, from_cache);
	done[slot] = true;
	return done[0] && done[1] ? kill(master, SIGTERM) : 0;
}

static int
on_deadline(struct messenger *parent, void *arg)
{
	(void)parent, (void)arg;
	fprintf(stderr, "api_client: not done after %d ms, killing the master\n", DEADLINE);
	return kill(master, SIGKILL);
}

int
main(int argc, char **argv)
{
	struct options options = {
		.agent = agent, .app = app, .workers = APPS, .end_with_parent = true};
	struct messenger *parent;
	int status = 0;

	(void)argv;
	if (argc > 1) {
		fprintf(stderr, "usage: api_client (it has no arguments)\n");
		return 64;
	}
	setvbuf(stdout, NULL, _IOLBF, 0); /* before the fork: nothing is printed twice */
	parent = fork_cluster(&options, &master);
	if (parent == NULL || messenger_on(parent, "app-done", on_done, NULL) != 0 ||
	    messenger_set_timeout(parent, DEADLINE, on_deadline, NULL) == -1) {
		perror("api_client");
		return 1;
	}
	while (waitpid(master, &status, WNOHANG) == 0)
		messenger_step(parent, 50);
	messenger_close(parent);
	return done[0] && done[1] && status == 0 ? 0 : 1;
}
