/*
 * One connection to a registry for the whole cluster: cluster-client at work.
 *
 *	parent              the registry, a remote service in real life; it also
 *	  |                 decides what happens next
 *	agent               RegistryClient: the only one that talks to it (Leader)
 *	 / | \              sockets of their own, past the master
 *	app app app         each publishes its own address, and sees all (Followers)
 *
 * One app is killed and comes back; then the agent is killed, and the list
 * survives. It prints what happens, and ends by itself.
 */
#include "../cluster-client/cluster_client.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#define DEADLINE 30000 /* milliseconds, for all of it */

enum { APPS = 3, CALLS = 16 };

static const char service[] = "demo.DemoService";

/* ---- RegistryClient, in the agent ------------------------------------------- */

static struct messenger *agent_messenger; /* its connection to the registry */
static struct cluster_call *calls[CALLS]; /* getConfig: answered in this order */
static int call_count;

static void
connect_registry(struct cluster_client *client, void *arg)
{
	char pid[16];

	(void)arg;
	snprintf(pid, sizeof pid, "%ld", (long)messenger_pid(agent_messenger));
	if (messenger_send(agent_messenger, "registry-connect", pid, ROLE_PARENT) == -1)
		cluster_client_started(client, &(struct cluster_error){"EREGISTRY", "no registry"});
}

static int
on_connected(struct messenger *agent, const struct message *message, void *arg)
{
	(void)agent, (void)message;
	cluster_client_started(arg, NULL);
	return 0;
}

static void
subscribe(struct cluster_client *client, const char *key, void *arg)
{
	(void)client, (void)key, (void)arg; /* there is only one key */
	messenger_send(agent_messenger, "registry-subscribe", NULL, ROLE_PARENT);
}

static void
publish(struct cluster_client *client, const char *key, const char *data, size_t length, void *arg)
{
	(void)client, (void)key, (void)length, (void)arg;
	messenger_send(agent_messenger, "registry-publish", data, ROLE_PARENT);
}

static int
on_list(struct messenger *agent, const struct message *message, void *arg)
{
	(void)agent;
	cluster_client_emit(arg, service, message->data, message->data_length);
	return 0;
}

static void
get_config(struct cluster_client *client, struct cluster_call *call, const char *data,
           size_t length, void *arg)
{
	(void)client, (void)length, (void)arg;
	if (call_count == CALLS)
		cluster_client_fail(call, "EBUSY", "the registry has enough to do");
	else if (messenger_send(agent_messenger, "registry-get", data, ROLE_PARENT) == -1)
		cluster_client_fail(call, "EREGISTRY", "no registry");
	else
		calls[call_count++] = call; /* NULL: one-way, but the registry answers it */
}

static int
on_config(struct messenger *agent, const struct message *message, void *arg)
{
	int i;

	(void)agent, (void)arg;
	if (call_count == 0)
		return 0;
	cluster_client_reply(calls[0], message->data, message->data_length);
	for (i = 1; i < call_count; i++)
		calls[i - 1] = calls[i];
	call_count--;
	return 0;
}

static const struct real_method methods[] = {{"getConfig", get_config}, {NULL, NULL}};

static const struct real_client registry_client = {
	.ready = connect_registry, .subscribe = subscribe, .publish = publish, .methods = methods};

static int
agent(struct messenger *agent, void *arg) /* agent.js */
{
	struct cluster_client *leader;

	(void)arg;
	agent_messenger = agent;
	leader = cluster_client_leader(agent, "registry", &registry_client, NULL);
	if (leader == NULL ||
	    messenger_on(agent, "registry-connected", on_connected, leader) != 0 ||
	    messenger_on(agent, "registry-list", on_list, leader) != 0)
		return -1;
	return messenger_on(agent, "registry-config", on_config, NULL);
}

/* ---- in each app ---------------------------------------------------------------- */

static int
on_answer(struct cluster_client *client, const struct cluster_error *error, const char *data,
          size_t length, void *arg)
{
	struct messenger *app = arg;

	(void)client, (void)length;
	printf("app %d: getConfig says %s\n", messenger_slot(app),
	       error != NULL ? error->message : data);
	return 0;
}

/* The list has changed, or was heard again. */
static int
on_value(struct cluster_client *client, const char *key, const char *data, size_t length, void *arg)
{
	static bool asked;
	struct messenger *app = arg;
	char seen[192];

	(void)length;
	printf("app %d: %s is %s\n", messenger_slot(app), key, data);
	if (!asked)
		cluster_client_invoke(client, "getConfig", "\"weight\"", 8, on_answer, app);
	asked = true;
	snprintf(seen, sizeof seen, "[%d,%ld,%s]", messenger_slot(app), (long)messenger_pid(app),
	         data);
	return messenger_send(app, "app-sees", seen, ROLE_PARENT);
}

static int
app(struct messenger *app, void *arg) /* app.js */
{
	struct cluster_client *follower =
		cluster_client_follower(app, "registry", &registry_client, NULL);
	char address[32];
	int length =
		snprintf(address, sizeof address, "\"10.0.0.%d:20880\"", messenger_slot(app) + 1);

	(void)arg;
	if (follower == NULL || cluster_client_subscribe(follower, service, on_value, app) != 0)
		return -1;
	return cluster_client_publish(follower, service, address, (size_t)length);
}

/* ---- the registry, and what happens next: in the parent --------------------------- */

static struct {
	char address[APPS][32];
	int count;
	int clients, published; /* ever, and by the last client */
	pid_t client;
} registry;

static enum { ALL_SEE, APP_COMES_BACK, AGENT_COMES_BACK, DONE } step;
static pid_t master, killed, apps[APPS]; /* 0: has not seen all addresses in this step */

static void
list(char *text, size_t size)
{
	size_t used = (size_t)snprintf(text, size, "[");
	int i;

	for (i = 0; i < registry.count; i++)
		used += (size_t)snprintf(text + used, size - used, "%s%s", i > 0 ? "," : "",
		                         registry.address[i]);
	snprintf(text + used, size - used, "]");
}

static int
tell_list(struct messenger *parent)
{
	char text[128];

	list(text, sizeof text);
	return messenger_send_to_agent(parent, "registry-list", text);
}

static int
on_registry_connect(struct messenger *parent, const struct message *message, void *arg)
{
	(void)arg;
	registry.clients++;
	registry.published = 0;
	registry.client = (pid_t)strtol(message->data, NULL, 10);
	printf("registry: RegistryClient %d has connected\n", registry.clients);
	return messenger_send_to_agent(parent, "registry-connected", NULL);
}

static int
on_registry_subscribe(struct messenger *parent, const struct message *message, void *arg)
{
	(void)message, (void)arg;
	printf("registry: RegistryClient %d subscribes\n", registry.clients);
	return tell_list(parent);
}

static int advance(void);

static int
on_registry_publish(struct messenger *parent, const struct message *message, void *arg)
{
	int i = 0;

	(void)arg;
	while (i < registry.count && strcmp(registry.address[i], message->data) != 0)
		i++;
	printf("registry: RegistryClient %d publishes %s%s\n", registry.clients, message->data,
	       i < registry.count ? " again" : "");
	registry.published++;
	if (i < registry.count || i == APPS)
		return advance();
	snprintf(registry.address[i], sizeof registry.address[i], "%s", message->data);
	registry.count++;
	return tell_list(parent);
}

static int
on_registry_get(struct messenger *parent, const struct message *message, void *arg)
{
	(void)message, (void)arg;
	return messenger_send_to_agent(parent, "registry-config", "{\"weight\":100}");
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

/* Has this step come to its end? Then the next thing happens. */
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
		return kill(registry.client, SIGKILL);
	}
	if (step == AGENT_COMES_BACK && all_see() && registry.published == APPS) {
		printf("-- there is a new agent, and all apps see all: the end\n");
		step = DONE;
		return kill(master, SIGTERM);
	}
	return 0;
}

/* An app sees a list: [slot,pid,[...]] */
static int
on_seen(struct messenger *parent, const struct message *message, void *arg)
{
	char complete[128];
	int slot, start;
	long pid;

	(void)parent, (void)arg;
	list(complete, sizeof complete);
	if (registry.count == APPS &&
	    sscanf(message->data, "[%d,%ld,%n", &slot, &pid, &start) == 2 &&
	    strncmp(message->data + start, complete, strlen(complete)) == 0)
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

static bool
listen_to_all(struct messenger *parent)
{
	return messenger_on(parent, "registry-connect", on_registry_connect, NULL) == 0 &&
	       messenger_on(parent, "registry-subscribe", on_registry_subscribe, NULL) == 0 &&
	       messenger_on(parent, "registry-publish", on_registry_publish, NULL) == 0 &&
	       messenger_on(parent, "registry-get", on_registry_get, NULL) == 0 &&
	       messenger_on(parent, "app-sees", on_seen, NULL) == 0 &&
	       messenger_set_timeout(parent, DEADLINE, on_deadline, NULL) != -1;
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
	if (parent == NULL || !listen_to_all(parent)) {
		perror("registry");
		return 1;
	}
	while (waitpid(master, &status, WNOHANG) == 0)
		messenger_step(parent, 50);
	messenger_close(parent);
	return step == DONE && status == 0 ? 0 : 1;
}
