/*
 * The leader: the client in the agent, with the real client and all connections.
 *
 * egg: cluster-client/lib/leader.js, lib/server.js
 *
 * A key with many subscribers has one subscription at the real client. A follower that
 * breaks the protocol loses its connection; the others notice nothing.
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

/* The most calls that the real client has not answered, and whose followers are gone. */
#define ORPHANS_MAX (16 * CLUSTER_CLIENT_CALLS_MAX)

struct follower {
	struct connection connection; /* first: a pointer to one is a pointer to the other */
	struct follower *next;
	long pid;              /* as the follower says; only for the log */
	bool registered;       /* it may send requests */
	bool waiting;          /* for the real client to be ready */
	uint64_t registration; /* the id of its request */
	size_t keys, calls;
	int64_t heard_at;
};

struct cluster_call {
	struct cluster_call *next, **link;
	struct cluster_client *client; /* NULL: closed */
	struct follower *follower;     /* NULL: the leader's own, or gone */
	bool own;
	uint64_t id;
	uint32_t timeout;
	int64_t since;
};

static struct follower *
follower_of(struct connection *connection)
{
	return (struct follower *)(void *)connection;
}

static void
complain(const struct follower *follower, const char *what, const char *then)
{
	char who[32] = "a follower";

	if (follower->pid > 0)
		snprintf(who, sizeof who, "follower %ld", follower->pid);
	cluster_base_log(follower->connection.client, who, what, then);
}

/* A follower that does not take the packet gets no further one: its connection ends. */
static void
tell(struct follower *follower, struct packet packet, bool at_once)
{
	if (cluster_connection_send(&follower->connection, &packet, at_once) == -1)
		cluster_connection_doom(&follower->connection,
		                        errno == ENOBUFS
		                                ? "does not read what it is sent"
		                                : "was to be sent more than there is memory for");
}

/* ---- subscriptions --------------------------------------------------------------- */

/* For the first subscriber. egg: _doSubscribe. A real client may emit inside of it. */
static void
subscribe_upstream(struct cluster_client *client, struct topic *topic)
{
	topic->subscribed = true;
	client->real->subscribe(client, topic->key, client->real->arg);
}

/* D35: when the last subscriber is gone, no value is kept, and none is asked for. The real
 * client may close its leader here; after that it is not called for the other keys. */
static void
unsubscribe_upstream(struct cluster_client *client, struct topic *topic)
{
	if (!topic->subscribed || topic->follower_count > 0 || cluster_topic_has_listeners(topic))
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
	size_t size = topic->follower_size > 0 ? 2 * topic->follower_size : 4;
	struct follower **grown;

	if (topic->follower_count == topic->follower_size) {
		grown = realloc(topic->followers, size * sizeof(struct follower *));
		if (grown == NULL)
			return false;
		topic->followers = grown;
		topic->follower_size = size;
	}
	topic->followers[topic->follower_count++] = follower;
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

static void
tell_value(struct follower *follower, const struct topic *topic)
{
	tell(follower,
	     (struct packet){.type = PACKET_SUBSCRIBE_RESULT,
	                     .id = ++follower->connection.client->last_id,
	                     .name = topic->key,
	                     .data = topic->value->data,
	                     .length = topic->value->length},
	     false);
}

static const char *
on_subscribe(struct cluster_client *client, struct follower *follower, const char *key)
{
	struct topic *topic;

	if (client->real->subscribe == NULL)
		return "subscribed, which is not offered";
	if (follower->keys >= CLUSTER_CLIENT_KEYS_MAX)
		return "subscribed to too many keys";
	topic = cluster_topic_make(client, key);
	if (topic == NULL)
		return "subscribed to more than there is memory for";
	topic->busy++;
	if (find_follower(topic, follower) == topic->follower_count &&
	    !add_follower(topic, follower)) {
		topic->busy--;
		cluster_topic_sweep(client, topic);
		return "subscribed to more than there is memory for";
	}
	if (!topic->subscribed)
		subscribe_upstream(client, topic);
	else if (topic->value != NULL && !client->options.no_broadcast)
		tell_value(follower, topic);
	topic->busy--;
	cluster_topic_sweep(client, topic);
	cluster_base_tick(client);
	return NULL;
}

static void
on_unsubscribe(struct cluster_client *client, struct follower *follower, const char *key)
{
	struct topic *topic = cluster_topic_find(client, key);

	if (topic == NULL)
		return;
	remove_follower(client, topic, follower);
	cluster_topic_sweep(client, topic);
}

/* xorshift64*: uniform enough for a choice among a few. */
static size_t
random_below(struct cluster_client *client, size_t count)
{
	uint64_t x = client->random;

	x ^= x >> 12;
	x ^= x << 25;
	x ^= x >> 27;
	client->random = x;
	return (size_t)((x * 2685821657736338717U) >> 32) % count;
}

/* Without broadcast: one of the followers, or of the leader's own listeners. */
static int
emit_to_one(struct cluster_client *client, struct topic *topic)
{
	struct listener *listener;
	size_t count = topic->follower_count, chosen;

	for (listener = topic->listeners; listener != NULL; listener = listener->next)
		count += !listener->removed;
	if (count == 0)
		return 0;
	chosen = random_below(client, count);
	if (chosen < topic->follower_count) {
		tell_value(topic->followers[chosen], topic);
		return 0;
	}
	chosen -= topic->follower_count;
	for (listener = topic->listeners; listener != NULL; listener = listener->next)
		if (!listener->removed && chosen-- == 0)
			break;
	return cluster_base_queue_delivery(client, topic, topic->value, listener, false);
}

static int
emit_to_all(struct cluster_client *client, struct topic *topic)
{
	size_t i;

	if (cluster_topic_has_listeners(topic) &&
	    cluster_base_queue_delivery(client, topic, topic->value, NULL, false) == -1)
		return -1;
	for (i = 0; i < topic->follower_count; i++)
		tell_value(topic->followers[i], topic);
	return 0;
}

int
cluster_client_emit(struct cluster_client *client, const char *key, const void *data, size_t length)
{
	struct topic *topic = client->closed ? NULL : cluster_topic_find(client, key);
	struct value *value, *old;
	int result;

	if (topic == NULL || !topic->subscribed) {
		errno = ENOENT;
		return -1;
	}
	if (length > CLUSTER_CLIENT_DATA_MAX) {
		errno = EMSGSIZE;
		return -1;
	}
	if (client->delivery_bytes + length > CLUSTER_CLIENT_QUEUE_MAX) {
		errno = ENOBUFS;
		return -1;
	}
	value = cluster_value_new(data, length);
	if (value == NULL)
		return -1;
	old = topic->value;
	topic->value = value;
	result = client->options.no_broadcast ? emit_to_one(client, topic)
	                                      : emit_to_all(client, topic);
	if (result == -1)
		topic->value = old;
	cluster_value_drop(result == -1 ? value : old);
	cluster_base_tick(client);
	return result;
}

/* ---- calls ------------------------------------------------------------------------- */

static struct cluster_call *
new_call(struct cluster_client *client, struct follower *follower, uint64_t id, uint32_t timeout)
{
	struct cluster_call *call = calloc(1, sizeof *call);

	if (call == NULL)
		return NULL;
	call->client = client;
	call->follower = follower;
	call->own = follower == NULL;
	call->id = id;
	call->timeout = timeout;
	call->since = clutch_now();
	call->link = &client->calls;
	call->next = client->calls;
	if (call->next != NULL)
		call->next->link = &call->next;
	client->calls = call;
	client->orphans += call->own;
	if (follower != NULL)
		follower->calls++;
	return call;
}

static void
free_call(struct cluster_call *call)
{
	if (call->follower != NULL)
		call->follower->calls--;
	else if (call->client != NULL)
		call->client->orphans--;
	if (call->client != NULL) {
		*call->link = call->next;
		if (call->next != NULL)
			call->next->link = call->link;
	}
	free(call);
}

static void
tell_answer(struct follower *follower, uint64_t id, bool success, const void *data, size_t length)
{
	tell(follower,
	     (struct packet){.type = PACKET_INVOKE_RESULT,
	                     .id = id,
	                     .success = success,
	                     .data = data,
	                     .length = length},
	     true);
}

/* egg: "no response if processing timeout, just record error" */
static bool
is_too_late(const struct cluster_call *call)
{
	return call->timeout > 0 && clutch_now() - call->since > (int64_t)call->timeout;
}

static int
answer(struct cluster_call *call, bool success, const void *data, size_t length)
{
	struct pending *pending;

	if (call == NULL) /* one-way */
		return 0;
	if (length > CLUSTER_CLIENT_DATA_MAX) {
		errno = EMSGSIZE;
		return -1;
	}
	if (call->own && call->client != NULL) {
		pending = cluster_base_find_pending(call->client, call->id);
		if (pending != NULL) { /* its callback is called in a later turn */
			pending->answer = cluster_value_new(data, length);
			if (pending->answer == NULL)
				return -1;
			pending->success = success;
			cluster_base_tick(call->client);
		}
	} else if (call->follower != NULL && is_too_late(call)) {
		complain(call->follower, "waited longer than its timeout",
		         "its call is not answered");
	} else if (call->follower != NULL) {
		tell_answer(call->follower, call->id, success, data, length);
	}
	free_call(call);
	return 0;
}

int
cluster_client_reply(struct cluster_call *call, const void *data, size_t length)
{
	return answer(call, true, data, length);
}

int
cluster_client_fail(struct cluster_call *call, const char *code, const char *message)
{
	char data[ERROR_DATA_MAX];

	return answer(call, false, data, cluster_error_encode(data, code, message));
}

static const char *
on_invoke(struct cluster_client *client, struct follower *follower, const struct packet *packet)
{
	const struct real_method *method = cluster_base_find_method(client->real, packet->name);
	struct cluster_call *call = NULL;
	char data[ERROR_DATA_MAX];

	if (method == NULL) /* D33 */
		return "called a method that is not listed";
	if (!packet->oneway) {
		if (follower->calls < CLUSTER_CLIENT_CALLS_MAX && client->orphans < ORPHANS_MAX)
			call = new_call(client, follower, packet->id, packet->timeout);
		if (call == NULL) {
			tell_answer(
				follower, packet->id, false, data,
				cluster_error_encode(data, "ClusterCallLimitError",
			                             "Too many calls wait for the real client."));
			return NULL;
		}
	}
	method->invoke(client, call, packet->data, packet->length, client->real->arg);
	return NULL;
}

/* ---- registration ------------------------------------------------------------------- */

static void
answer_registration(struct follower *follower, const struct value *error)
{
	follower->waiting = false;
	follower->registered = error == NULL;
	tell(follower,
	     (struct packet){.type = PACKET_REGISTER_CHANNEL_RES,
	                     .id = follower->registration,
	                     .success = error == NULL,
	                     .data = error != NULL ? error->data : NULL,
	                     .length = error != NULL ? error->length : 0},
	     true);
}

static const char *
on_register(struct cluster_client *client, struct follower *follower, const struct packet *packet)
{
	if (follower->registered || follower->waiting)
		return "registered twice";
	if (strcmp(packet->name, client->name) != 0)
		return "registered at another client's channel";
	follower->pid = packet->pid;
	follower->registration = packet->id;
	follower->waiting = true;
	if (client->state == CLIENT_READY)
		answer_registration(follower, NULL);
	else if (client->state == CLIENT_FAILED)
		answer_registration(follower, client->start_error);
	return NULL;
}

/* egg: _handleRequest */
static const char *
heard(struct connection *connection, const struct packet *packet)
{
	struct follower *follower = follower_of(connection);
	struct cluster_client *client = connection->client;

	follower->heard_at = clutch_now();
	if (packet->type == PACKET_REGISTER_CHANNEL)
		return on_register(client, follower, packet);
	if (!follower->registered)
		return "spoke before it was registered";
	switch (packet->type) {
	case PACKET_SUBSCRIBE:
		return on_subscribe(client, follower, packet->name);
	case PACKET_UNSUBSCRIBE:
		on_unsubscribe(client, follower, packet->name);
		return NULL;
	case PACKET_PUBLISH:
		if (client->real->publish == NULL)
			return "published, which is not offered";
		client->real->publish(client, packet->name, packet->data, packet->length,
		                      client->real->arg);
		return NULL;
	case PACKET_INVOKE:
		return on_invoke(client, follower, packet);
	case PACKET_HEARTBEAT:
		tell(follower,
		     (struct packet){
			     .type = PACKET_HEARTBEAT_RES, .id = packet->id, .success = true},
		     true);
		return NULL;
	case PACKET_REGISTER_CHANNEL:
	case PACKET_REGISTER_CHANNEL_RES:
	case PACKET_SUBSCRIBE_RESULT:
	case PACKET_INVOKE_RESULT:
	case PACKET_HEARTBEAT_RES:
	case PACKET_TYPES:
		break;
	}
	return "gave an answer that nobody asked for";
}

static void
orphan_calls(struct cluster_client *client, const struct follower *follower)
{
	struct cluster_call *call;

	for (call = client->calls; call != NULL; call = call->next)
		if (call->follower == follower) {
			call->follower = NULL;
			client->orphans++;
		}
}

/* A follower's end: remove all that belongs to it. */
static void
gone(struct connection *connection, const char *why)
{
	struct follower *follower = follower_of(connection), **link;
	struct cluster_client *client = connection->client;
	struct topic *topic, *next;
	size_t i;

	if (why != NULL)
		complain(follower, why, "its connection is closed");
	for (link = &client->followers; *link != follower;)
		link = &(*link)->next;
	*link = follower->next;
	client->follower_count--;
	orphan_calls(client, follower);
	for (i = 0; i < CLIENT_BUCKETS && follower->keys > 0; i++)
		for (topic = client->topics[i]; topic != NULL; topic = next) {
			topic->busy++;
			remove_follower(client, topic, follower);
			next = topic->next;
			topic->busy--;
			cluster_topic_sweep(client, topic);
		}
	free(follower);
}

/* A copy of the handle, if it is a stream socket as a follower sends it; otherwise -1. */
static int
take_socket(int handle)
{
	socklen_t size = sizeof(int);
	int type;

	if (getsockopt(handle, SOL_SOCKET, SO_TYPE, &type, &size) == -1 || type != SOCK_STREAM)
		return -1;
	return fcntl(handle, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
}

/* egg: _handleConnection. The message's handle is closed after this function: if we keep no
 * copy, the follower sees an end of file, and tries again later. */
static int
on_connection(struct messenger *agent, const struct message *message, void *arg)
{
	struct cluster_client *client = arg;
	struct follower *follower;
	int descriptor;

	if (client->closed || message->handle == -1)
		return 0;
	if (client->follower_count >= CLUSTER_CLIENT_FOLLOWERS_MAX) {
		cluster_base_log(client, "a follower", "is one too many",
		                 "its connection is closed");
		return 0;
	}
	follower = calloc(1, sizeof *follower);
	descriptor = follower != NULL ? take_socket(message->handle) : -1;
	if (descriptor == -1) {
		free(follower);
		return 0;
	}
	follower->connection.heard = heard;
	follower->connection.gone = gone;
	follower->connection.client = client;
	follower->heard_at = clutch_now();
	if (cluster_connection_open(&follower->connection, agent, descriptor) == -1) {
		close(descriptor);
		free(follower);
		return 0;
	}
	follower->next = client->followers;
	client->followers = follower;
	client->follower_count++;
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
	for (follower = client->followers; follower != NULL; follower = follower->next)
		if (follower->heard_at < oldest)
			cluster_connection_doom(&follower->connection,
			                        "was silent for three heartbeats");
	return 0;
}

/* ---- the real client ------------------------------------------------------------------- */

/* egg: createRealClient, and its ready(). A start that fails is tried again. */
static int
start(struct messenger *agent, void *arg)
{
	struct cluster_client *client = arg;

	(void)agent;
	client->retry = 0;
	client->state = CLIENT_STARTING;
	if (client->real->ready != NULL)
		client->real->ready(client, client->real->arg);
	else
		cluster_client_started(client, NULL);
	return cluster_base_result(client);
}

static void
answer_registrations(struct cluster_client *client)
{
	struct follower *follower;

	for (follower = client->followers; follower != NULL; follower = follower->next)
		if (follower->waiting)
			answer_registration(follower, client->start_error);
}

/* The real client has said how its start went. This is a later turn, and no function of the
 * real client is active, so calls that waited may call it now. */
static int
tell_started(struct messenger *agent, void *arg)
{
	struct cluster_client *client = arg;

	(void)agent;
	client->retry = 0;
	answer_registrations(client);
	if (client->start_error == NULL) {
		cluster_base_ready(client);
	} else {
		cluster_base_not_ready(client, client->start_error->data,
		                       client->start_error->length);
		cluster_base_retry(client, start);
	}
	return cluster_base_result(client);
}

void
cluster_client_started(struct cluster_client *client, const struct cluster_error *error)
{
	char data[ERROR_DATA_MAX];
	int id;

	if (client->closed || client->state != CLIENT_STARTING || client->retry != 0)
		return;
	cluster_value_drop(client->start_error);
	client->start_error = NULL;
	if (error != NULL) {
		cluster_base_log(client, "the real client", "did not start", error->message);
		client->start_error = cluster_value_new(
			data, cluster_error_encode(data, error->code, error->message));
		if (client->start_error == NULL) {
			cluster_base_retry(client, start);
			return;
		}
	}
	id = messenger_set_timeout(client->messenger, 0, tell_started, client);
	if (id == -1)
		cluster_base_retry(client, start);
	else
		client->retry = id;
}

/* ---- the leader's side of the client ------------------------------------------------------ */

static int
subscribe(struct cluster_client *client, struct topic *topic)
{
	subscribe_upstream(client, topic);
	return 0;
}

static int
publish(struct cluster_client *client, struct topic *topic)
{
	struct value *value = cluster_value_hold(topic->published);

	client->real->publish(client, topic->key, value->data, value->length, client->real->arg);
	cluster_value_drop(value);
	return 0;
}

static int
invoke(struct cluster_client *client, struct pending *pending, const void *data, size_t length)
{
	const struct real_method *method = pending->method;
	struct value *copy = cluster_value_new(data, length);
	struct cluster_call *call = NULL;

	if (copy != NULL && pending->callback != NULL)
		call = new_call(client, NULL, pending->id, 0);
	if (copy == NULL || (call == NULL && pending->callback != NULL)) {
		cluster_value_drop(copy);
		return -1;
	}
	method->invoke(client, call, copy->data, copy->length, client->real->arg);
	cluster_value_drop(copy);
	return 0;
}

/* Write at the end of the turn what this turn has queued for the followers. */
static void
flush(struct cluster_client *client)
{
	struct follower *follower;

	for (follower = client->followers; follower != NULL; follower = follower->next)
		if (cluster_connection_pending(&follower->connection) > 0)
			cluster_connection_flush(&follower->connection);
}

static void
close_leader(struct cluster_client *client)
{
	struct cluster_call *call;
	struct follower *follower;

	messenger_remove_listener(client->messenger, client->action, on_connection, client);
	flush(client);
	for (follower = client->followers; follower != NULL; follower = follower->next)
		cluster_connection_close(&follower->connection);
	for (call = client->calls; call != NULL; call = call->next) {
		call->client = NULL; /* an answer will have no receiver */
		call->follower = NULL;
	}
	client->calls = NULL;
	if (client->real->close != NULL)
		client->real->close(client, client->real->arg);
}

static void
free_leader(struct cluster_client *client)
{
	struct follower *follower;

	while ((follower = client->followers) != NULL) {
		client->followers = follower->next;
		cluster_connection_close(&follower->connection);
		free(follower);
	}
}

/* egg: "else if (this._subData.has(key) && isBroadcast)" */
static bool
tells_late(const struct cluster_client *client)
{
	return !client->options.no_broadcast;
}

static const struct client_side leader_side = {.subscribe = subscribe,
                                               .unsubscribe = unsubscribe_upstream,
                                               .publish = publish,
                                               .invoke = invoke,
                                               .flush = flush,
                                               .close = close_leader,
                                               .free = free_leader,
                                               .tells_late = tells_late,
                                               .calls_expire = false,
                                               .keys_max = SIZE_MAX};

struct cluster_client *
cluster_client_leader(struct messenger *agent, const char *name, const struct real_client *real,
                      const struct cluster_client_options *options)
{
	struct cluster_client *client = cluster_base_new(agent, name, real, options, &leader_side);

	if (client == NULL)
		return NULL;
	client->random = (uint64_t)getpid() * 2654435761U ^ (uint64_t)clutch_now();
	client->random |= 1;
	if (messenger_on(agent, client->action, on_connection, client) == -1) {
		cluster_base_free(client);
		return NULL;
	}
	if (cluster_base_beat(client, check_heartbeats) == -1) {
		messenger_remove_listener(agent, client->action, on_connection, client);
		cluster_base_free(client);
		return NULL;
	}
	start(agent, client);
	return client;
}
