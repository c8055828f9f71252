/*
 * The leader: the real client, and which follower has asked for which key. The agent's own
 * client is one of the followers.
 *
 * egg: cluster-client/lib/leader.js, lib/server.js
 *
 * A key with many subscribers has one subscription at the real client. A follower that
 * breaks the protocol, or does not read what it is sent, loses its connection; the others
 * notice nothing.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#define CLUSTER_CLIENT_PRIVATE
#include "cluster_client.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* The most calls that the real client has not answered: followers may be gone, and their
 * calls are not. */
#define LEADER_CALLS_MAX (64 * CLUSTER_CLIENT_CALLS_MAX)

/* The most followers that have not said yet to which process they belong. */
#define STRANGERS_MAX 64

/* The most lines in a minute about followers. */
#define LINES_MAX 32

struct follower {
	struct cluster_link link; /* first: a pointer to one is a pointer to the other */
	struct follower *next;
	bool own;        /* the agent's */
	long pid;        /* as the follower says; 0: a stranger */
	int timeout;     /* of its calls; 0: none */
	bool waiting;    /* for the real client to be ready */
	bool registered; /* it may send requests */
	size_t keys, calls;
	int64_t heard_at;
};

struct cluster_call {
	struct cluster_call *next, **link;
	struct cluster_client *client; /* NULL: closed */
	struct follower *follower;     /* NULL: gone */
	int id;
	int64_t since;
};

struct leader {
	enum client_state state; /* of the real client */
	struct retry retry;
	bool told; /* how its start went; with no error: it is ready */
	char start_error[CLUSTER_ERROR_MAX];
	size_t start_error_length;
	struct topics topics;
	struct follower *followers, *own; /* own: the agent's, or NULL */
	size_t follower_count;
	struct cluster_call *calls;
	size_t call_count;
	unsigned random;     /* rand_r(3)'s */
	int lines;           /* about followers, since */
	int64_t lines_since; /* this minute began */
};

/* Bad followers may come again and again: in a minute they get so many lines and no more. */
static void
complain(const struct follower *follower, const char *what, const char *then)
{
	struct leader *leader = follower->link.client->leader;
	int64_t now = clutch_now();
	char who[32] = "a follower";

	if (now - leader->lines_since >= 60000) {
		leader->lines_since = now;
		leader->lines = 0;
	}
	if (follower->pid > 0)
		snprintf(who, sizeof who, "follower %ld", follower->pid);
	if (++leader->lines <= LINES_MAX)
		cluster_base_log(follower->link.client, who, what,
		                 leader->lines < LINES_MAX ? then : "no more lines for a minute");
}

/* The follower itself is removed in a later turn: the caller may stand in its topics. */
static void
give_up(struct follower *follower, const char *why)
{
	if (why != NULL)
		complain(follower, why, "its connection is closed");
	cluster_link_close(&follower->link);
	cluster_base_tick(follower->link.client);
}

/* A follower that does not take the packet gets no further one. */
static void
tell(struct follower *follower, const struct packet *packet, const struct message *composed)
{
	if (cluster_link_send(&follower->link, packet, composed) == -1)
		give_up(follower, errno == ENOBUFS
		                          ? "does not read what it is sent"
		                          : "was to be sent more than there is memory for");
}

/* ---- subscriptions --------------------------------------------------------------- */

/* D35: when the last subscriber is gone, no value is kept, and none is asked for. The real
 * client may close its leader here; after that it is not called for the other keys. */
static void
unsubscribe_upstream(struct cluster_client *client, struct topic *topic)
{
	if (!topic->subscribed || topic->follower_count > 0)
		return;
	topic->subscribed = false;
	cluster_value_drop(topic->value);
	topic->value = NULL;
	if (client->real->unsubscribe != NULL && !client->closed)
		client->real->unsubscribe(client, topic->key, client->real->arg);
}

static size_t
find_follower(const struct topic *topic, const struct follower *follower)
{
	size_t i = 0;

	while (i < topic->follower_count && topic->followers[i] != follower)
		i++;
	return i;
}

static bool
add_follower(struct topic *topic, struct follower *follower)
{
	size_t count = topic->follower_count;
	struct follower **grown = topic->followers;

	if ((count & (count - 1)) == 0) /* the room is the next power of two */
		grown = realloc(grown, (count > 0 ? 2 * count : 1) * sizeof(struct follower *));
	if (grown == NULL)
		return false;
	topic->followers = grown;
	topic->followers[topic->follower_count++] = follower;
	if (follower->own) {
		topic->followers[count] = topic->followers[0];
		topic->followers[0] = follower;
	}
	follower->keys++;
	return true;
}

static void
remove_follower(struct cluster_client *client, struct topic *topic, struct follower *follower)
{
	size_t i = find_follower(topic, follower);

	if (i == topic->follower_count)
		return;
	topic->followers[i] = topic->followers[--topic->follower_count];
	follower->keys--;
	topic->busy++;
	unsubscribe_upstream(client, topic);
	topic->busy--;
}

static const char *
on_subscribe(struct cluster_client *client, struct follower *follower, const struct packet *packet)
{
	static const char no_memory[] = "subscribed to more than there is memory for";
	struct topics *topics = &client->leader->topics;
	struct packet last = {.type = PACKET_SUBSCRIBE_RESULT, .id = packet->id};
	const char *why = NULL;
	struct topic *topic;
	bool is_new;

	if (client->real->subscribe == NULL)
		return "subscribed, which is not offered";
	topic = cluster_topic_make(topics, packet->name);
	if (topic == NULL)
		return no_memory;
	topic->busy++;
	is_new = find_follower(topic, follower) == topic->follower_count;
	if (is_new && follower->keys >= CLUSTER_CLIENT_KEYS_MAX)
		why = "subscribed to too many keys";
	else if (is_new && !add_follower(topic, follower))
		why = no_memory;
	else if (!topic->subscribed) { /* egg: _doSubscribe; a value may come inside of it */
		topic->subscribed = true;
		client->real->subscribe(client, topic->key, client->real->arg);
	} else if (topic->value != NULL) {
		last.name = topic->key;
		last.data = topic->value->data;
		last.length = topic->value->length;
		tell(follower, &last, NULL);
	}
	topic->busy--;
	cluster_topic_sweep(topics, topic);
	return why;
}

static const char *
on_unsubscribe(struct cluster_client *client, struct follower *follower, const char *key)
{
	struct topic *topic = cluster_topic_find(&client->leader->topics, key);

	if (topic != NULL) {
		remove_follower(client, topic, follower);
		cluster_topic_sweep(&client->leader->topics, topic);
	}
	return NULL;
}

/* Tell `count` followers from the n-th on. The message is composed once. The agent's own
 * client is the first of all: if it has no room, nobody has got the value, and the real client
 * hears of it. */
static int
emit(const struct topic *topic, size_t n, size_t count, const struct packet *packet)
{
	struct message message = cluster_link_compose(packet);
	struct follower *follower;

	for (; count-- > 0; n++) {
		follower = topic->followers[n];
		if (!follower->own)
			tell(follower, packet, &message);
		else if (cluster_link_send(&follower->link, packet, &message) == -1)
			return -1;
	}
	return 0;
}

int
cluster_client_emit(struct cluster_client *client, const char *key, const void *data, size_t length)
{
	struct packet packet = {PACKET_SUBSCRIBE_RESULT, 0, key, data, length, false};
	struct topic *topic = NULL;
	struct value *value;

	if (client->leader != NULL && !client->closed)
		topic = cluster_topic_find(&client->leader->topics, key);
	if (topic == NULL || !topic->subscribed)
		return cluster_base_refuse(ENOENT);
	if (length > CLUSTER_CLIENT_DATA_MAX)
		return cluster_base_refuse(EMSGSIZE);
	if (client->options.no_broadcast) /* no value is kept for those that come later */
		return emit(topic, (size_t)rand_r(&client->leader->random) % topic->follower_count,
		            1, &packet);
	value = cluster_value_new(data, length);
	if (value == NULL || emit(topic, 0, topic->follower_count, &packet) == -1) {
		cluster_value_drop(value);
		return -1;
	}
	cluster_value_drop(topic->value);
	topic->value = value;
	return 0;
}

/* ---- calls ------------------------------------------------------------------------- */

static struct cluster_call *
new_call(struct cluster_client *client, struct follower *follower, int id)
{
	struct leader *leader = client->leader;
	struct cluster_call *call;

	if (follower->calls >= CLUSTER_CLIENT_CALLS_MAX || leader->call_count >= LEADER_CALLS_MAX)
		return NULL;
	call = malloc(sizeof *call);
	if (call == NULL)
		return NULL;
	*call = (struct cluster_call){leader->calls, &leader->calls, client, follower, id,
	                              clutch_now()};
	if (call->next != NULL)
		call->next->link = &call->next;
	leader->calls = call;
	leader->call_count++;
	follower->calls++;
	return call;
}

static void
free_call(struct cluster_call *call)
{
	if (call->follower != NULL)
		call->follower->calls--;
	if (call->client != NULL) {
		call->client->leader->call_count--;
		*call->link = call->next;
		if (call->next != NULL)
			call->next->link = call->link;
	}
	free(call);
}

static int
answer(struct cluster_call *call, bool failed, const void *data, size_t length)
{
	struct packet packet = {PACKET_INVOKE_RESULT, 0, NULL, data, length, failed};
	struct follower *follower = call != NULL ? call->follower : NULL;

	if (call == NULL) /* one-way */
		return 0;
	if (length > CLUSTER_CLIENT_DATA_MAX)
		return cluster_base_refuse(EMSGSIZE);
	packet.id = call->id;
	/* egg: "no response if processing timeout, just record error" */
	if (follower != NULL && follower->timeout > 0 &&
	    clutch_now() - call->since > follower->timeout) {
		complain(follower, "waited longer than its timeout", "its call is not answered");
	} else if (follower != NULL && !follower->own) {
		tell(follower, &packet, NULL);
	} else if (follower != NULL && cluster_link_send(&follower->link, &packet, NULL) == -1) {
		return -1;
	}
	free_call(call);
	return 0;
}

int
cluster_client_reply(struct cluster_call *call, const void *data, size_t length)
{
	return answer(call, false, data, length);
}

int
cluster_client_fail(struct cluster_call *call, const char *code, const char *message)
{
	char data[CLUSTER_ERROR_MAX];

	return answer(call, true, data, cluster_error_encode(data, code, message));
}

static const char *
on_invoke(struct cluster_client *client, struct follower *follower, const struct packet *packet)
{
	const struct real_method *method = cluster_base_find_method(client->real, packet->name);
	struct packet refusal = {.type = PACKET_INVOKE_RESULT, .id = packet->id, .failed = true};
	struct cluster_call *call = NULL;
	char data[CLUSTER_ERROR_MAX];

	if (method == NULL) /* D33 */
		return "called a method that is not listed";
	if (packet->id != 0 && (call = new_call(client, follower, packet->id)) == NULL) {
		refusal.data = data;
		refusal.length = cluster_error_encode(data, "ClusterCallLimitError",
		                                      "Too many calls wait for the real client.");
		tell(follower, &refusal, NULL);
		return NULL;
	}
	method->invoke(client, call, packet->data, packet->length, client->real->arg);
	return NULL;
}

/* ---- registration ------------------------------------------------------------------- */

/* When the real client is ready, or has failed to start. */
static void
answer_registration(struct follower *follower)
{
	const struct leader *leader = follower->link.client->leader;
	struct packet packet = {.type = PACKET_REGISTER_CHANNEL_RES,
	                        .failed = leader->state == CLIENT_FAILED,
	                        .data = leader->start_error,
	                        .length = leader->start_error_length};

	follower->waiting = leader->state == CLIENT_STARTING;
	follower->registered = leader->state == CLIENT_READY;
	if (!follower->waiting)
		tell(follower, &packet, NULL);
}

/* How many followers have this pid? It is their word, which tells a process that is faulty
 * from the others, and not one that lies. */
static int
count_of(const struct leader *leader, long pid)
{
	const struct follower *follower;
	int count = 0;

	for (follower = leader->followers; follower != NULL; follower = follower->next)
		count += follower->pid == pid;
	return count;
}

static const char *
on_register(struct cluster_client *client, struct follower *follower, const struct packet *packet)
{
	struct leader *leader = client->leader;
	long pid;

	if (follower->registered || follower->waiting)
		return "registered twice";
	if (sscanf(packet->data, "%ld %d", &pid, &follower->timeout) != 2 || pid <= 0)
		return "registered without a pid and a timeout";
	follower->pid = pid;
	if (count_of(leader, pid) > CLUSTER_CLIENT_PROCESS_MAX)
		return "is one too many of its process";
	answer_registration(follower);
	return NULL;
}

/* egg: _handleRequest */
static const char *
heard(struct cluster_link *link, const struct packet *packet)
{
	struct follower *follower = (struct follower *)(void *)link;
	struct cluster_client *client = link->client;

	if (client->options.heartbeat_interval > 0)
		follower->heard_at = clutch_now();
	if (packet->type == PACKET_REGISTER_CHANNEL)
		return on_register(client, follower, packet);
	if (packet->type == PACKET_HEARTBEAT) /* also of one that waits for a start */
		return NULL;
	if (!follower->registered)
		return "spoke before it was registered";
	if (packet->type == PACKET_SUBSCRIBE)
		return on_subscribe(client, follower, packet);
	if (packet->type == PACKET_UNSUBSCRIBE)
		return on_unsubscribe(client, follower, packet->name);
	if (packet->type == PACKET_INVOKE)
		return on_invoke(client, follower, packet);
	if (packet->type == PACKET_PUBLISH && client->real->publish == NULL)
		return "published, which is not offered";
	if (packet->type == PACKET_PUBLISH)
		client->real->publish(client, packet->name, packet->data, packet->length,
		                      client->real->arg);
	else
		return "gave an answer that nobody asked for";
	return NULL;
}

int
cluster_leader_hear(struct cluster_client *client, const struct packet *packet)
{
	struct follower *own = client->leader->own;

	if (own == NULL || heard(&own->link, packet) == NULL)
		return 0;
	return cluster_base_refuse(ENOMEM); /* it has broken no other rule */
}

static void
ended(struct cluster_link *link, const char *why)
{
	give_up((struct follower *)(void *)link, why);
}

static void
orphan_calls(struct leader *leader, const struct follower *follower)
{
	struct cluster_call *call;

	for (call = leader->calls; call != NULL && follower->calls > 0; call = call->next)
		if (call->follower == follower)
			call->follower = NULL;
}

/* Remove all that belongs to a follower. */
static void
forget(struct cluster_client *client, struct follower *follower)
{
	struct leader *leader = client->leader;
	struct topic *topic, *next;
	size_t i;

	orphan_calls(leader, follower);
	for (i = 0; i < TOPIC_BUCKETS && follower->keys > 0; i++)
		for (topic = leader->topics.buckets[i]; topic != NULL; topic = next) {
			topic->busy++;
			remove_follower(client, topic, follower);
			next = topic->next;
			topic->busy--;
			cluster_topic_sweep(&leader->topics, topic);
		}
	leader->follower_count--;
	if (leader->own == follower)
		leader->own = NULL;
	free(follower);
}

/* A follower that has not said to which process it belongs says so at once, if it is honest:
 * of too many strangers the oldest one goes. */
static void
make_room(struct leader *leader)
{
	struct follower *follower, *oldest = NULL;

	if (count_of(leader, 0) < STRANGERS_MAX)
		return;
	for (follower = leader->followers; follower != NULL; follower = follower->next)
		if (follower->pid == 0 && follower->link.messenger != NULL)
			oldest = follower; /* new ones stand in front */
	if (oldest != NULL)
		give_up(oldest, "has not registered, and there are too many such");
}

void
cluster_leader_adopt(struct cluster_client *client, int descriptor, bool own)
{
	struct leader *leader = client->leader;
	struct follower *follower = calloc(1, sizeof *follower);

	if (follower == NULL) {
		close(descriptor);
		return;
	}
	follower->link.client = client;
	follower->link.heard = heard;
	follower->link.ended = ended;
	follower->own = own;
	follower->heard_at = clutch_now();
	make_room(leader);
	if (leader->follower_count >= CLUSTER_CLIENT_FOLLOWERS_MAX) {
		complain(follower, "is one too many", "its connection is closed");
		close(descriptor);
		descriptor = -1;
	}
	if (descriptor == -1 || cluster_link_open(&follower->link, descriptor) == -1) {
		free(follower);
		return;
	}
	follower->next = leader->followers;
	leader->followers = follower;
	leader->follower_count++;
	if (own)
		leader->own = follower;
}

/* egg: _handleConnection. The message's handle is closed after this function: if we keep no
 * copy, the follower sees an end of file, and tries again later. */
static int
on_connection(struct messenger *agent, const struct message *message, void *arg)
{
	struct cluster_client *client = arg;
	int descriptor = -1;

	(void)agent;
	if (!client->closed && message->handle != -1)
		descriptor = fcntl(message->handle, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
	if (descriptor != -1)
		cluster_leader_adopt(client, descriptor, false);
	return 0;
}

/* Only with the option: D37. */
static int
check_heartbeats(struct messenger *agent, void *arg)
{
	struct cluster_client *client = arg;
	int64_t oldest = clutch_now() - 3 * (int64_t)client->options.heartbeat_interval;
	struct follower *follower;

	(void)agent;
	for (follower = client->leader->followers; follower != NULL; follower = follower->next)
		if (!follower->own && follower->heard_at < oldest)
			give_up(follower, "was silent for three heartbeats");
	return 0;
}

/* ---- the real client ------------------------------------------------------------------- */

/* egg: createRealClient, and its ready(). A start that fails is tried again. */
static int
start(struct messenger *agent, void *arg)
{
	struct cluster_client *client = arg;

	(void)agent;
	client->leader->retry.timer = 0;
	client->leader->state = CLIENT_STARTING;
	if (client->real->ready != NULL)
		client->real->ready(client, client->real->arg);
	else
		cluster_client_started(client, NULL);
	return cluster_base_result(client);
}

/* The real client has said how its start went. This is a later turn, and no function of the
 * real client is active, so calls that waited may call it now. */
static void
tell_started(struct cluster_client *client)
{
	struct leader *leader = client->leader;
	struct follower *follower;

	leader->told = false;
	leader->state = leader->start_error_length == 0 ? CLIENT_READY : CLIENT_FAILED;
	for (follower = leader->followers; follower != NULL; follower = follower->next)
		if (follower->waiting)
			answer_registration(follower);
	if (leader->state == CLIENT_FAILED)
		cluster_base_retry(client, &leader->retry, start);
}

void
cluster_leader_tick(struct cluster_client *client)
{
	struct follower **link = &client->leader->followers, *follower;

	if (client->leader->told)
		tell_started(client);
	while ((follower = *link) != NULL) {
		if (follower->link.messenger == NULL) {
			*link = follower->next;
			forget(client, follower);
		} else {
			link = &follower->next;
		}
	}
}

void
cluster_client_started(struct cluster_client *client, const struct cluster_error *error)
{
	struct leader *leader = client->leader;

	if (client->closed || leader == NULL || leader->state != CLIENT_STARTING || leader->told)
		return;
	leader->told = true;
	leader->start_error_length = 0;
	if (error != NULL) {
		cluster_base_log(client, "the real client", "did not start", error->message);
		leader->start_error_length =
			cluster_error_encode(leader->start_error, error->code, error->message);
	}
	cluster_base_tick(client);
}

/* ---- beginning and end --------------------------------------------------------------------- */

void
cluster_leader_close(struct cluster_client *client)
{
	struct leader *leader = client->leader;
	struct cluster_call *call;
	struct follower *follower;

	cluster_base_clear_timer(client, &leader->retry.timer);
	messenger_remove_listener(client->messenger, client->action, on_connection, client);
	for (follower = leader->followers; follower != NULL; follower = follower->next)
		cluster_link_close(&follower->link);
	for (call = leader->calls; call != NULL; call = call->next) {
		call->client = NULL; /* an answer will have no receiver */
		call->follower = NULL;
	}
	leader->calls = NULL;
	if (client->real->close != NULL)
		client->real->close(client, client->real->arg);
}

void
cluster_leader_free(struct cluster_client *client)
{
	struct leader *leader = client->leader;
	struct follower *follower;

	while ((follower = leader->followers) != NULL) {
		leader->followers = follower->next;
		free(follower);
	}
	cluster_topic_clear(&leader->topics);
	free(leader);
}

struct cluster_client *
cluster_client_leader(struct messenger *agent, const char *name, const struct real_client *real,
                      const struct cluster_client_options *options)
{
	struct cluster_client *client =
		cluster_base_new(agent, name, real, options, check_heartbeats);
	struct leader *leader;

	if (client == NULL)
		return NULL;
	leader = client->leader = calloc(1, sizeof *leader);
	if (leader == NULL || messenger_on(agent, client->action, on_connection, client) == -1) {
		cluster_base_clear_timer(client, &client->heartbeat);
		cluster_base_free(client);
		return NULL;
	}
	leader->topics.most = SIZE_MAX;
	leader->retry.delay = CLUSTER_CLIENT_RETRY_MIN;
	leader->lines_since = clutch_now();
	leader->random = (unsigned)getpid() * 2654435761U ^ (unsigned)clutch_now();
	cluster_follower_connect(agent, client);
	start(agent, client);
	return client;
}
