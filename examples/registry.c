/*
 * One RegistryClient for the whole cluster: cluster-client at work.
 *
 *	parent              decides what happens next
 *	  |
 *	agent               RegistryClient: what was published, by dataId (Leader)
 *	 / | \              sockets of their own, past the master
 *	app app app         each publishes its own address, and sees all (Followers)
 *
 * Agent and apps wait for ready() before they are ready themselves. Then each app
 * subscribes to a service, publishes its own address, and asks with getConfig for what was
 * published. One app is killed and comes back; then the agent is killed, and with it the
 * RegistryClient: the followers find the new one and tell it all again, so the list
 * survives. It prints what happens, and ends by itself.
 *
 * egg: the RegistryClient of its documentation's chapter on cluster-client
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

enum { APPS = 3, IDS = 4, URLS = 8, URL_SIZE = 96, LIST_SIZE = URLS * 512 };

static const char service[] = "demo.DemoService";

/* ---- RegistryClient ----------------------------------------------------------- */

/* this._registered: of each dataId what was published, in order */
static struct registration {
	char data_id[32];
	char urls[URLS][URL_SIZE];
	int count;
} registered[IDS];

/* The place of a dataId: its own, or a free one; NULL: there is none. */
static struct registration *
find(const char *data_id)
{
	int i = 0;

	while (i < IDS && registered[i].count > 0 && strcmp(registered[i].data_id, data_id) != 0)
		i++;
	return i < IDS ? &registered[i] : NULL;
}

/* URL.parse(url, true), as JSON: a=1&b=2 becomes {"a":"1","b":"2"}. */
static size_t
parse_url(char *to, size_t size, const char *url)
{
	char protocol[16] = "", name[64] = "", port[8] = "", path[64] = "", search[64] = "";
	char *field, *value;
	size_t used;

	sscanf(url, "%15[^:]://%63[^:/]:%7[0-9]%63[^?]%63s", protocol, name, port, path, search);
	used = (size_t)snprintf(to, size,
	                        "{\"protocol\":\"%s:\",\"host\":\"%s:%s\",\"hostname\":\"%s\","
	                        "\"port\":\"%s\",\"pathname\":\"%s\",\"search\":\"%s\",\"query\":{",
	                        protocol, name, port, name, port, path, search);
	for (field = strtok(search, "?&"); field != NULL; field = strtok(NULL, "?&")) {
		value = strchr(field, '=');
		if (value != NULL)
			*value++ = '\0';
		used += (size_t)snprintf(to + used, size - used, "%s\"%s\":\"%s\"",
		                         to[used - 1] == '{' ? "" : ",", field,
		                         value != NULL ? value : "");
	}
	return used + (size_t)snprintf(to + used, size - used, "},\"href\":\"%s\"}", url);
}

/* this._registered.get(key), as it was published or mapped by URL.parse */
static size_t
list(char *to, const struct registration *entry, bool mapped)
{
	size_t used = (size_t)snprintf(to, LIST_SIZE, "[");
	int i;

	for (i = 0; i < entry->count; i++) {
		if (i > 0)
			to[used++] = ',';
		if (mapped)
			used += parse_url(to + used, LIST_SIZE - used, entry->urls[i]);
		else
			used += (size_t)snprintf(to + used, LIST_SIZE - used, "\"%s\"",
			                         entry->urls[i]);
	}
	return used + (size_t)snprintf(to + used, LIST_SIZE - used, "]");
}

static void
tell(struct cluster_client *client, const struct registration *entry)
{
	char text[LIST_SIZE];
	size_t length = list(text, entry, true);

	cluster_client_emit(client, entry->data_id, text, length);
}

/* async init() */
static void
init(struct cluster_client *client, void *arg)
{
	(void)arg;
	cluster_client_started(client, NULL); /* this.ready(true) */
}

static void
subscribe(struct cluster_client *client, const char *key, void *arg)
{
	const struct registration *entry = find(key);

	(void)arg;
	if (entry != NULL && entry->count > 0)
		tell(client, entry);
}

static void
publish(struct cluster_client *client, const char *key, const char *data, size_t length, void *arg)
{
	struct registration *entry = find(key);
	int i = 0;

	(void)arg;
	if (entry == NULL || length >= URL_SIZE || strlen(key) >= sizeof entry->data_id)
		return;
	while (i < entry->count && strcmp(entry->urls[i], data) != 0)
		i++;
	printf("RegistryClient: %s is published%s\n", data, i < entry->count ? " again" : "");
	if (i < entry->count || i == URLS)
		return;
	snprintf(entry->data_id, sizeof entry->data_id, "%s", key);
	snprintf(entry->urls[entry->count++], URL_SIZE, "%s", data);
	tell(client, entry);
}

/* async getConfig(dataId) */
static void
get_config(struct cluster_client *client, struct cluster_call *call, const char *data_id,
           size_t length, void *arg)
{
	const struct registration *entry = find(data_id);
	char text[LIST_SIZE];

	(void)client, (void)length, (void)arg;
	if (entry == NULL || entry->count == 0)
		cluster_client_reply(call, NULL, 0); /* undefined */
	else
		cluster_client_reply(call, text, list(text, entry, false));
}

static const struct real_method methods[] = {{"getConfig", get_config}, {NULL, NULL}};

static const struct real_client registry_client = {
	.ready = init, .subscribe = subscribe, .publish = publish, .methods = methods};

/* ---- agent.js ------------------------------------------------------------------- */

static int
on_agent_ready(struct cluster_client *client, const struct cluster_error *error, void *arg)
{
	struct messenger *agent = arg;
	char pid[16];

	if (error != NULL) /* the start is tried again */
		return cluster_client_ready(client, on_agent_ready, agent);
	printf("agent: registry client is ready\n");
	snprintf(pid, sizeof pid, "%ld", (long)messenger_pid(agent));
	return messenger_send(agent, "registry-connected", pid, ROLE_PARENT) == -1 ||
	       messenger_ready(agent, 0) == -1;
}

static int
agent(struct messenger *agent, void *arg)
{
	struct cluster_client *leader =
		cluster_client_leader(agent, "registry", &registry_client, NULL);

	(void)arg;
	messenger_ready_later(agent);
	return leader == NULL || cluster_client_ready(leader, on_agent_ready, agent) == -1;
}

/* ---- app.js ---------------------------------------------------------------------- */

static int
on_config(struct cluster_client *client, const struct cluster_error *error, const char *data,
          size_t length, void *arg)
{
	(void)client, (void)length;
	printf("app %d: getConfig says %s\n", messenger_slot(arg),
	       error != NULL ? error->message : data);
	return 0;
}

/* The list has changed, or was heard again: print the host of each. */
static int
on_value(struct cluster_client *client, const char *key, const char *data, size_t length, void *arg)
{
	static const char field[] = "\"host\":";
	const char *at = data;
	char hosts[256], seen[64];
	size_t used = 0;
	int count = 0;

	(void)client, (void)length;
	for (; (at = strstr(at, field)) != NULL && used < sizeof hosts; count++) {
		at += strlen(field);
		used += (size_t)snprintf(hosts + used, sizeof hosts - used, "%s%.*s",
		                         count > 0 ? "," : "", (int)strcspn(at, ","), at);
	}
	printf("app %d: %s is [%s]\n", messenger_slot(arg), key, hosts);
	snprintf(seen, sizeof seen, "[%d,%ld,%d]", messenger_slot(arg), (long)messenger_pid(arg),
	         count);
	return messenger_send(arg, "app-sees", seen, ROLE_PARENT);
}

static int
on_app_ready(struct cluster_client *client, const struct cluster_error *error, void *arg)
{
	struct messenger *app = arg;
	char url[URL_SIZE];
	int length;

	if (error != NULL)
		return cluster_client_ready(client, on_app_ready, app);
	printf("app %d: registry client is ready\n", messenger_slot(app));
	length = snprintf(url, sizeof url, "dubbo://10.0.0.%d:20880/%s?weight=100",
	                  messenger_slot(app) + 1, service);
	return cluster_client_subscribe(client, service, on_value, app) == -1 ||
	       cluster_client_publish(client, service, url, (size_t)length) == -1 ||
	       cluster_client_invoke(client, "getConfig", service, strlen(service), on_config,
	                             app) == -1 ||
	       messenger_ready(app, 0) == -1;
}

static int
app(struct messenger *app, void *arg)
{
	struct cluster_client *follower =
		cluster_client_follower(app, "registry", &registry_client, NULL);

	(void)arg;
	messenger_ready_later(app);
	return follower == NULL || cluster_client_ready(follower, on_app_ready, app) == -1;
}

/* ---- what happens next: in the parent ------------------------------------------------ */

static enum { ALL_SEE, APP_COMES_BACK, AGENT_COMES_BACK, DONE } step;
static pid_t master, agent_pid, killed, apps[APPS]; /* 0: has not seen all in this step */
static int clients;

/* A new agent: what the apps saw before does not count. */
static int
on_connected(struct messenger *parent, const struct message *message, void *arg)
{
	(void)parent, (void)arg;
	agent_pid = (pid_t)strtol(message->data, NULL, 10);
	printf("RegistryClient %d has connected\n", ++clients);
	return 0;
}

static bool
all_see(void)
{
	int i;

	for (i = 0; i < APPS; i++)
		if (apps[i] == 0)
			return false;
	return true;
}

/* If this step has come to its end, do the next one. */
static int
advance(void)
{
	if (step == ALL_SEE && all_see()) {
		printf("-- all apps see all: app 0 is killed\n");
		step = APP_COMES_BACK;
		killed = apps[0];
		return kill(killed, SIGKILL);
	}
	if (step == APP_COMES_BACK && apps[0] != killed) {
		printf("-- it is back, and sees all: the agent is killed\n");
		step = AGENT_COMES_BACK;
		memset(apps, 0, sizeof apps);
		return kill(agent_pid, SIGKILL);
	}
	if (step == AGENT_COMES_BACK && clients == 2 && all_see()) {
		printf("-- there is a new agent, and all apps see all: the end\n");
		step = DONE;
		return kill(master, SIGTERM);
	}
	return 0;
}

/* How many addresses an app sees: [slot,pid,count] */
static int
on_seen(struct messenger *parent, const struct message *message, void *arg)
{
	int slot, count;
	long pid;

	(void)parent, (void)arg;
	if (sscanf(message->data, "[%d,%ld,%d]", &slot, &pid, &count) == 3 && count == APPS)
		apps[slot] = (pid_t)pid;
	return advance();
}

static int
on_deadline(struct messenger *parent, void *arg)
{
	(void)parent, (void)arg;
	fprintf(stderr, "registry: not done after %d ms, killing the master\n", DEADLINE);
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
		fprintf(stderr, "usage: registry (it has no arguments)\n");
		return 64;
	}
	setvbuf(stdout, NULL, _IOLBF, 0); /* before the fork: nothing is printed twice */
	parent = fork_cluster(&options, &master);
	if (parent == NULL || messenger_on(parent, "registry-connected", on_connected, NULL) != 0 ||
	    messenger_on(parent, "app-sees", on_seen, NULL) != 0 ||
	    messenger_set_timeout(parent, DEADLINE, on_deadline, NULL) == -1) {
		perror("registry");
		return 1;
	}
	while (waitpid(master, &status, WNOHANG) == 0)
		messenger_step(parent, 50);
	messenger_close(parent);
	return step == DONE && status == 0 ? 0 : 1;
}
