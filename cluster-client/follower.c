/*
 * A client as its user sees it, in the agent and in an app: subscriptions, publications and
 * calls, and the way to the leader. The agent's own client is a follower, too: only how the
 * other end of the pair comes to the leader is different.
 *
 * egg: cluster-client/lib/wrapper/base.js, lib/wrapper/cluster.js, lib/follower.js
 *
 * What is said waits until the client is ready; when the leader has been lost and is there
 * again, subscriptions and publications are repeated.
 *
 * A follower makes a pair of sockets and sends one of them to the agent. Nobody has to know
 * whether there is an agent: while there is none, the message waits in its slot, and an agent
 * without a leader of this name closes the socket. So each reason to try again is the same
 * one, an end of file:
 *
 *	socketpair ---> the agent has it ---> registered ---> the agent dies
 *	    ^                 |                    |                |
 *	    |            no leader yet        start failed,         |
 *	    |                 |               ask again             |
 *	    +----- wait ------+---------- end of file --------------+
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#define CLUSTER_CLIENT_PRIVATE
#define CLUTCH_CHANNEL
#include "cluster_client.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The clients of this process that are not closed. */
static struct cluster_client *clients;

static const struct cluster_error closed_error = {"ClusterClientCloseError",
                                                  "This client was closed."};

/* The id of a packet about the last value of a key that was subscribed before. */
enum { LATE = 1 };

/* ---- small things ------------------------------------------------------------ */

void
cluster_base_log(const struct cluster_client *client, const char *who, const char *what,
                 const char *then)
{
	clutch_log(CLUTCH_WARN, "[cluster-client] %s: %s %s: %s", client->name, who, what, then);
}

int
cluster_base_refuse(int number)
{
	errno = number;
	return -1;
}

const struct real_method *
cluster_base_find_method(const struct real_client *real, const char *name)
{
	const struct real_method *method;

	for (method = name != NULL ? real->methods : NULL; method != NULL && method->name != NULL;
	     method++)
		if (strcmp(method->name, name) == 0)
			return method;
	return NULL;
}

int
cluster_base_result(struct cluster_client *client)
{
	int result = client->result;

	client->result = 0;
	return result;
}

void
cluster_base_clear_timer(struct cluster_client *client, int *timer)
{
	if (*timer != 0)
		messenger_clear_timeout(client->messenger, *timer);
	*timer = 0;
}

/* The loop is told of the first uncaught exception of a turn. */
static void
check(struct cluster_client *client, int result)
{
	if (client->result == 0)
		client->result = result;
}

/* ---- topics ------------------------------------------------------------------- */

/* FNV-1a */
static uint32_t
hash_key(const char *key)
{
	uint32_t hash = 2166136261U;

	while (*key != '\0')
		hash = (hash ^ (unsigned char)*key++) * 16777619U;
	return hash;
}

struct topic *
cluster_topic_find(struct topics *topics, const char *key)
{
	uint32_t hash = hash_key(key);
	struct topic *topic = topics->buckets[hash % TOPIC_BUCKETS];

	while (topic != NULL && (topic->hash != hash || strcmp(topic->key, key) != 0))
		topic = topic->next;
	return topic;
}

struct topic *
cluster_topic_make(struct topics *topics, const char *key)
{
	struct topic *topic = cluster_topic_find(topics, key);
	size_t length = strlen(key);

	if (topic != NULL)
		return topic;
	if (topics->count >= topics->most) {
		errno = ENOBUFS;
		return NULL;
	}
	topic = calloc(1, sizeof *topic + length + 1);
	if (topic == NULL)
		return NULL;
	memcpy(topic->key, key, length);
	topic->hash = hash_key(key);
	topic->next = topics->buckets[topic->hash % TOPIC_BUCKETS];
	topics->buckets[topic->hash % TOPIC_BUCKETS] = topic;
	topics->count++;
	return topic;
}

struct listener *
cluster_topic_add(struct topic *topic, cluster_listener call, void *arg, bool first)
{
	struct listener **link = &topic->listeners;
	struct listener *listener = malloc(sizeof *listener);

	if (listener == NULL)
		return NULL;
	while (!first && *link != NULL)
		link = &(*link)->next;
	*listener = (struct listener){*link, call, arg, false, false};
	*link = listener;
	topic->count++;
	return listener;
}

struct listener *
cluster_topic_find_listener(const struct topic *topic, cluster_listener call, const void *arg)
{
	struct listener *listener, *found = NULL;

	for (listener = topic->listeners; listener != NULL; listener = listener->next)
		if (!listener->removed && listener->call == call && listener->arg == arg)
			found = listener;
	return found;
}

void
cluster_topic_remove(struct topic *topic, struct listener *listener)
{
	topic->count -= !listener->removed;
	listener->removed = true;
}

static void
sweep_listeners(struct topic *topic)
{
	struct listener **link = &topic->listeners, *listener;

	while ((listener = *link) != NULL) {
		if (listener->removed) {
			*link = listener->next;
			free(listener);
		} else {
			link = &listener->next;
		}
	}
}

static void
free_topic(struct topics *topics, struct topic *topic)
{
	struct topic **link = &topics->buckets[topic->hash % TOPIC_BUCKETS];
	struct listener *listener;

	while (*link != topic)
		link = &(*link)->next;
	*link = topic->next;
	topics->count--;
	while ((listener = topic->listeners) != NULL) {
		topic->listeners = listener->next;
		free(listener);
	}
	free(topic->published);
	free(topic->last);
	free(topic);
}

/* A subscribed key stays, even if it has no listener: it is still to be unsubscribed. */
void
cluster_topic_leave(struct topics *topics, struct topic *topic)
{
	if (--topic->users > 0)
		return;
	sweep_listeners(topic);
	if (topic->count == 0 && topic->published == NULL && !topic->subscribed)
		free_topic(topics, topic);
}

int
cluster_topic_each(struct topics *topics, cluster_topic_function function, void *arg)
{
	struct topic *topic, *next;
	int result = 0;
	size_t i;

	for (i = 0; i < TOPIC_BUCKETS && result == 0; i++)
		for (topic = topics->buckets[i]; topic != NULL && result == 0; topic = next) {
			topic->users++;
			result = function(topic, arg);
			next = topic->next;
			cluster_topic_leave(topics, topic);
		}
	return result;
}

void
cluster_topic_clear(struct topics *topics)
{
	size_t i;

	for (i = 0; i < TOPIC_BUCKETS; i++)
		while (topics->buckets[i] != NULL)
			free_topic(topics, topics->buckets[i]);
}

/* ---- callbacks that are called once ------------------------------------------------- */

static void
append(struct pending_list *list, struct pending *pending)
{
	pending->list = list;
	pending->next = NULL;
	*list->end = pending;
	list->end = &pending->next;
}

static void
detach(struct pending *pending)
{
	struct pending **link = &pending->list->first;

	while (*link != pending)
		link = &(*link)->next;
	*link = pending->next;
	if (*link == NULL)
		pending->list->end = link;
}

/* The number of a call as its message has it: 1 to INT_MAX, again and again. */
static int
id_of(uint64_t number)
{
	return (int)(number % INT_MAX) + 1;
}

static struct pending *
find_sent(const struct cluster_client *client, int id)
{
	struct pending *pending = client->sent.first;

	while (pending != NULL && id_of(pending->number) != id)
		pending = pending->next;
	return pending;
}

static struct pending *
add_pending(struct cluster_client *client, struct pending_list *list, const struct pending *what)
{
	const struct pending *oldest = client->sent.first;
	struct pending *pending = malloc(sizeof *pending);

	if (pending == NULL)
		return NULL;
	*pending = *what;
	pending->client = client;
	client->call_count += pending->method != NULL;
	do /* an id that begins anew must not meet one that waits for its answer */
		pending->number = ++client->number;
	while (oldest != NULL && pending->number - oldest->number > INT_MAX / 2 &&
	       find_sent(client, id_of(pending->number)) != NULL);
	append(list, pending);
	return pending;
}

static void
drop_data(struct pending *pending)
{
	if (pending->data != NULL)
		pending->client->waiting_bytes -= pending->data->length;
	free(pending->data);
	pending->data = NULL;
}

/* Call back, and forget it. */
static void
settle(struct pending *pending, const struct cluster_error *error, const char *data, size_t length)
{
	struct cluster_client *client = pending->client;

	detach(pending);
	cluster_base_clear_timer(client, &pending->timer);
	client->call_count -= pending->method != NULL;
	if (pending->on_ready != NULL)
		check(client, pending->on_ready(client, error, pending->arg));
	if (pending->callback != NULL)
		check(client, pending->callback(client, error, data, length, pending->arg));
	drop_data(pending);
	free(pending);
}

/* What a callback adds is settled the next time. A callback that closes the client has settled
 * all the rest. */
static void
settle_all(struct cluster_client *client, struct pending_list *list,
           const struct cluster_error *error)
{
	uint64_t last = client->number;

	/* NOLINTNEXTLINE(clang-analyzer-unix.Malloc): settle has detached what it frees */
	while (list->first != NULL && list->first->number <= last)
		settle(list->first, error, NULL, 0);
}

static int
on_tick(struct messenger *messenger, void *arg)
{
	struct cluster_client *client = arg;

	(void)messenger;
	client->tick = 0;
	if (client->closed) { /* perhaps it is being closed, and a callback turns the loop */
		if (client->ended)
			cluster_base_free(client);
		return 0;
	}
	if (client->leader != NULL)
		cluster_leader_tick(client);
	if (client->ready)
		settle_all(client, &client->waiters, NULL);
	return cluster_base_result(client);
}

void
cluster_base_tick(struct cluster_client *client)
{
	int id;

	if (client->tick != 0)
		return;
	id = messenger_set_timeout(client->messenger, 0, on_tick, client);
	client->tick = id > 0 ? id : 0; /* no memory: the next event sets it */
}

/* ---- what the leader is told ------------------------------------------------------- */

/* In the agent the leader is at hand; what it answers comes over the pair. */
static int
say(struct cluster_client *client, const struct packet *packet)
{
	if (client->leader != NULL)
		return cluster_leader_hear(client, packet);
	return cluster_link_say(&client->link, packet);
}

static int on_retry(struct messenger *messenger, void *arg);

/* Try again after a delay that grows, unless a retry is set already. */
static void
retry(struct cluster_client *client)
{
	int id;

	if (client->retry != 0 || client->closed)
		return;
	id = messenger_set_timeout(client->messenger, client->delay, on_retry, client);
	client->retry = id > 0 ? id : 0;
	client->delay = client->delay < CLUSTER_CLIENT_RETRY_MAX / 2 ? 2 * client->delay
	                                                             : CLUSTER_CLIENT_RETRY_MAX;
}

/* In the agent the real client is called inside of it, and may publish the key anew. */
static int
say_published(struct cluster_client *client, struct topic *topic)
{
	struct value *value = topic->published;
	struct packet packet = {.action = "publish",
	                        .name = topic->key,
	                        .data = value->data,
	                        .length = value->length};

	topic->published = NULL;
	topic->said = say(client, &packet) == 0;
	if (topic->published == NULL)
		topic->published = value;
	else
		free(value);
	return topic->said ? 0 : -1;
}

/* Tell the leader what it does not know yet about a key. */
static int
say_topic(struct topic *topic, void *arg)
{
	struct cluster_client *client = arg;
	bool listens = topic->count > 0;
	struct packet packet = {.action = listens ? "subscribe" : "unSubscribe",
	                        .name = topic->key};

	if (listens != topic->subscribed && !client->closed) {
		topic->subscribed = listens;
		if (say(client, &packet) == -1) {
			topic->subscribed = !listens;
			return -1;
		}
	}
	if (topic->published == NULL || topic->said || client->closed)
		return 0;
	return say_published(client, topic);
}

/* Send the calls that wait for ready. In the agent the real client is called inside of it, and
 * may make a call itself. */
static int
say_calls(struct cluster_client *client)
{
	struct packet packet = {.action = "invoke"};
	struct pending *pending;

	while ((pending = client->waiting.first) != NULL) {
		packet.id = pending->callback != NULL ? id_of(pending->number) : 0;
		packet.name = pending->method->name;
		packet.data = pending->data->data;
		packet.length = pending->data->length;
		detach(pending);
		if (say(client, &packet) == -1) {
			pending->next = client->waiting.first;
			client->waiting.first = pending;
			if (pending->next == NULL)
				client->waiting.end = &pending->next;
			return -1;
		}
		drop_data(pending);
		append(&client->sent, pending);
		if (packet.id == 0 || client->closed) /* there will be no answer */
			settle(pending, &closed_error, NULL, 0);
	}
	return 0;
}

/* The client is ready when all is said. Where the queue is full, what is left follows later. */
static void
say_all(struct cluster_client *client)
{
	client->ready = true;
	if (cluster_topic_each(&client->topics, say_topic, client) == 0 && say_calls(client) == 0) {
		cluster_base_tick(client); /* the callbacks that wait for ready */
		return;
	}
	client->ready = false;
	retry(client);
}

/* The agent's own calls have no timeout: it asks no leader. */
static void
register_again(struct cluster_client *client)
{
	int timeout = client->leader != NULL ? 0 : client->options.response_timeout;
	struct packet packet = {.action = "register_channel"};
	char text[48];

	packet.length = (size_t)snprintf(text, sizeof text, "%ld %d",
	                                 (long)messenger_pid(client->messenger), timeout);
	packet.data = text;
	if (say(client, &packet) == -1)
		retry(client);
}

static int
on_heartbeat(struct messenger *messenger, void *arg)
{
	struct cluster_client *client = arg;

	(void)messenger;
	if (client->leader != NULL)
		cluster_leader_check_heartbeats(client);
	else
		say(client, &(struct packet){.action = "heartbeat"});
	return cluster_base_result(client);
}

/* ---- what the leader says ---------------------------------------------------------- */

static const char *
on_registered(struct cluster_link *link, const struct packet *packet)
{
	struct cluster_client *client = link->client;
	struct cluster_error error = {packet->name, packet->data};

	if (link->registered || client->retry != 0)
		return "gave an answer that nobody asked for";
	link->registered = !packet->failed;
	if (link->registered) {
		client->delay = CLUSTER_CLIENT_RETRY_MIN;
		say_all(client);
		return NULL;
	}
	settle_all(client, &client->waiters, &error);
	settle_all(client, &client->waiting, &error);
	retry(client); /* D36: without an end */
	return NULL;
}

/* When a listener is added to others, the leader tells the last value once more (LATE): only
 * the listeners that have heard no value since they were added get it. When nobody listens any
 * more, the value has crossed our unsubscribe. */
static const char *
on_value(struct cluster_link *link, const struct packet *packet)
{
	struct cluster_client *client = link->client;
	struct topic *topic = cluster_topic_find(&client->topics, packet->name);
	struct listener *listener, *next, *last;

	if (topic == NULL || !topic->subscribed)
		return NULL;
	for (last = next = topic->listeners; last != NULL && last->next != NULL;)
		last = last->next;
	topic->users++; /* a listener cannot free the topic, or a listener of it */
	while ((listener = next) != NULL) {
		next = listener != last ? listener->next : NULL; /* added ones stand behind */
		if (client->closed || listener->removed || (packet->id == LATE && !listener->late))
			continue;
		listener->late = false;
		check(client, listener->call(client, topic->key, packet->data, packet->length,
		                             listener->arg));
	}
	cluster_topic_leave(&client->topics, topic);
	return NULL;
}

/* Nothing is left of a call that has timed out. */
static const char *
on_answer(struct cluster_link *link, const struct packet *packet)
{
	struct pending *pending = find_sent(link->client, packet->id);
	struct cluster_error error = {packet->name, packet->data};

	if (pending != NULL && packet->failed)
		settle(pending, &error, NULL, 0);
	else if (pending != NULL)
		settle(pending, NULL, packet->data, packet->length);
	return NULL;
}

static const struct packet_type types[] = {{"subscribe_result", true, true, on_value},
                                           {"invoke_result", false, true, on_answer},
                                           {"register_channel_res", false, true, on_registered},
                                           {NULL, false, false, NULL}};

/* ---- connecting -------------------------------------------------------------------- */

static int
unsay_topic(struct topic *topic, void *arg)
{
	(void)arg;
	topic->subscribed = topic->said = false;
	return 0;
}

/* What was sent fails, all the rest is to be said again. */
static void
ended(struct cluster_link *link, const char *why)
{
	static const struct cluster_error error = {
		"SocketCloseError", "The leader is gone. The call may have been made, or not."};
	struct cluster_client *client = link->client;

	if (why != NULL)
		cluster_base_log(client, "the leader", why, "connecting again");
	client->ready = false;
	cluster_base_clear_timer(client, &client->retry);
	cluster_topic_each(&client->topics, unsay_topic, NULL);
	settle_all(client, &client->sent, &error);
	retry(client);
}

/* Give the leader its end: as the handle of a message to the agent (D33: nobody else can
 * have it), or, in the agent, at once. */
static int
hand_over(struct cluster_client *client, int end)
{
	struct message message = {.action = client->action, .to = ROLE_AGENT, .handle = end};
	int result;

	if (client->leader != NULL) {
		cluster_leader_adopt(client, end, true);
		return 0;
	}
	result = messenger_send_message(client->messenger, &message);
	close(end);
	return result;
}

static int
make_pair(struct cluster_client *client)
{
	int pair[2];

	if (channel_pair(pair) == -1)
		return -1;
	if (cluster_link_open(&client->link, pair[0]) == -1) {
		close(pair[1]);
		return -1;
	}
	if (hand_over(client, pair[1]) == 0)
		return 0;
	cluster_link_close(&client->link);
	return -1;
}

/* egg: _connect, _registerChannel. What we say now waits in the socket. */
void
cluster_base_connect(struct cluster_client *client)
{
	if (make_pair(client) == 0)
		register_again(client);
	else
		retry(client);
}

/* Go on with what has failed. */
static int
on_retry(struct messenger *messenger, void *arg)
{
	struct cluster_client *client = arg;

	(void)messenger;
	client->retry = 0;
	if (client->link.messenger == NULL)
		cluster_base_connect(client);
	else if (!client->link.registered)
		register_again(client);
	else
		say_all(client);
	return cluster_base_result(client);
}

/* ---- what the user says ------------------------------------------------------------ */

int
cluster_client_ready(struct cluster_client *client, cluster_ready_callback callback, void *arg)
{
	struct pending what = {.on_ready = callback, .arg = arg};

	if (client->closed)
		return cluster_base_refuse(EPIPE);
	if (add_pending(client, &client->waiters, &what) == NULL)
		return -1;
	if (client->ready)
		cluster_base_tick(client);
	return 0;
}

static int
check_key(const struct cluster_client *client, const char *key)
{
	if (client->closed)
		return cluster_base_refuse(EPIPE);
	if (key == NULL || key[0] == '\0' || strlen(key) > CLUSTER_CLIENT_KEY_MAX)
		return cluster_base_refuse(EINVAL);
	return 0;
}

/* For the first listener of a key, subscribe at the leader; for a further one, ask for the
 * last value. */
static int
begin_listening(struct cluster_client *client, struct topic *topic, struct listener *listener)
{
	struct packet packet = {.action = "subscribe", .id = LATE, .name = topic->key};

	if (!topic->subscribed)
		return client->ready ? say_topic(topic, client) : 0;
	listener->late = true;
	return say(client, &packet);
}

int
cluster_client_subscribe(struct cluster_client *client, const char *key, cluster_listener call,
                         void *arg)
{
	struct listener *listener;
	struct topic *topic;
	int result = -1;

	if (check_key(client, key) == -1)
		return -1;
	if (call == NULL)
		return cluster_base_refuse(EINVAL);
	if (client->real->subscribe == NULL)
		return cluster_base_refuse(ENOSYS);
	topic = cluster_topic_make(&client->topics, key);
	if (topic == NULL)
		return -1;
	topic->users++;
	listener = cluster_topic_add(topic, call, arg, false);
	if (listener != NULL)
		result = begin_listening(client, topic, listener);
	if (result == -1 && listener != NULL)
		cluster_topic_remove(topic, listener);
	cluster_topic_leave(&client->topics, topic);
	return result;
}

int
cluster_client_unsubscribe(struct cluster_client *client, const char *key, cluster_listener call,
                           void *arg)
{
	struct listener *listener;
	struct topic *topic;

	if (check_key(client, key) == -1)
		return -1;
	topic = cluster_topic_find(&client->topics, key);
	if (topic == NULL || topic->count == 0)
		return cluster_base_refuse(ENOENT);
	listener = call != NULL ? cluster_topic_find_listener(topic, call, arg) : topic->listeners;
	if (listener == NULL)
		return cluster_base_refuse(ENOENT);
	do
		cluster_topic_remove(topic, listener);
	while (call == NULL && (listener = listener->next) != NULL);
	topic->users++;
	if (client->ready && say_topic(topic, client) == -1)
		say_all(client);
	cluster_topic_leave(&client->topics, topic);
	return 0;
}

static struct value *
new_value(const void *data, size_t length)
{
	struct value *value = malloc(sizeof *value + length + 1);

	if (value == NULL)
		return NULL;
	value->length = length;
	if (length > 0)
		memcpy(value->data, data, length);
	value->data[length] = '\0';
	return value;
}

int
cluster_client_publish(struct cluster_client *client, const char *key, const void *data,
                       size_t length)
{
	struct value *value, *old;
	struct topic *topic;
	int result = 0;

	if (check_key(client, key) == -1)
		return -1;
	if (client->real->publish == NULL)
		return cluster_base_refuse(ENOSYS);
	if (length > CLUSTER_CLIENT_DATA_MAX)
		return cluster_base_refuse(EMSGSIZE);
	value = new_value(data, length);
	topic = value != NULL ? cluster_topic_make(&client->topics, key) : NULL;
	if (topic == NULL) {
		free(value);
		return -1;
	}
	old = topic->published;
	topic->published = value;
	topic->said = false;
	topic->users++;
	if (client->ready)
		result = say_published(client, topic);
	if (result == -1 && topic->published == value) {
		topic->published = old;
		topic->said = true;
		old = value;
	}
	free(old);
	cluster_topic_leave(&client->topics, topic);
	return result;
}

static int
on_expiry(struct messenger *messenger, void *arg)
{
	struct pending *pending = arg;
	struct cluster_client *client = pending->client;
	char message[64];
	struct cluster_error error = {"ResponseTimeoutError", message};

	(void)messenger;
	snprintf(message, sizeof message, "The leader did not answer within %d ms.",
	         client->options.response_timeout);
	pending->timer = 0;
	settle(pending, &error, NULL, 0);
	return cluster_base_result(client);
}

static int
prepare_call(struct pending *pending, const void *data, size_t length)
{
	struct cluster_client *client = pending->client;

	pending->data = new_value(data, length);
	if (pending->data == NULL)
		return -1;
	client->waiting_bytes += length;
	if (client->leader != NULL)
		return 0;
	pending->timer = messenger_set_timeout(client->messenger, client->options.response_timeout,
	                                       on_expiry, pending);
	return pending->timer > 0 ? 0 : -1;
}

/* Every call waits for ready: it is sent at once if the client is. */
static int
call(struct cluster_client *client, const struct pending *what, const void *data, size_t length)
{
	struct pending *pending;
	int error;

	if (client->closed)
		return cluster_base_refuse(EPIPE);
	if (what->method == NULL)
		return cluster_base_refuse(ENOSYS);
	if (length > CLUSTER_CLIENT_DATA_MAX)
		return cluster_base_refuse(EMSGSIZE);
	if (client->call_count >= CLUSTER_CLIENT_CALLS_MAX ||
	    client->waiting_bytes + length > CHANNEL_QUEUE_MAX)
		return cluster_base_refuse(ENOBUFS);
	pending = add_pending(client, &client->waiting, what);
	if (pending == NULL)
		return -1;
	if (prepare_call(pending, data, length) == 0 && (!client->ready || say_calls(client) == 0))
		return 0;
	error = errno;
	pending->callback = NULL;
	settle(pending, NULL, NULL, 0);
	return cluster_base_refuse(error);
}

int
cluster_client_invoke(struct cluster_client *client, const char *method, const void *data,
                      size_t length, cluster_callback callback, void *arg)
{
	struct pending what = {.method = cluster_base_find_method(client->real, method),
	                       .callback = callback,
	                       .arg = arg};

	return callback == NULL ? cluster_base_refuse(EINVAL) : call(client, &what, data, length);
}

int
cluster_client_invoke_oneway(struct cluster_client *client, const char *method, const void *data,
                             size_t length)
{
	struct pending what = {.method = cluster_base_find_method(client->real, method)};

	return call(client, &what, data, length);
}

/* ---- beginning and end ------------------------------------------------------------------ */

/* The client of that name, or, without one, any client of the messenger; or NULL. */
static struct cluster_client *
find_client(const struct messenger *messenger, const char *name)
{
	struct cluster_client *client = clients;

	while (client != NULL && (client->messenger != messenger ||
	                          (name != NULL && strcmp(client->name, name) != 0)))
		client = client->next;
	return client;
}

/* egg: beforeClose(() => cluster.close(client)) */
static int
on_closing(struct messenger *messenger, void *arg)
{
	struct cluster_client *client;

	(void)arg;
	while ((client = find_client(messenger, NULL)) != NULL)
		cluster_client_close(client);
	return 0;
}

/* Once for each messenger; a process has one. */
static int
close_with(struct messenger *messenger)
{
	static struct messenger *known;

	if (known == messenger)
		return 0;
	if (messenger_before_close(messenger, on_closing, NULL) == -1)
		return -1;
	known = messenger;
	return 0;
}

/* D37: without the option no heartbeat is sent, and none is expected. */
static int
set_options(struct cluster_client *client, const struct cluster_client_options *options)
{
	if (options != NULL)
		client->options = *options;
	if (client->options.response_timeout <= 0)
		client->options.response_timeout = 3000;
	if (client->options.heartbeat_interval > 0)
		client->heartbeat = messenger_set_interval(client->messenger,
		                                           client->options.heartbeat_interval,
		                                           on_heartbeat, client);
	return client->heartbeat == -1 ? -1 : 0;
}

struct cluster_client *
cluster_base_new(struct messenger *messenger, const char *name, const struct real_client *real,
                 const struct cluster_client_options *options)
{
	struct cluster_client *client;

	errno = EINVAL;
	if (name == NULL || name[0] == '\0' || strlen(name) > CLUSTER_CLIENT_NAME_MAX ||
	    real == NULL)
		return NULL;
	errno = EEXIST;
	if (find_client(messenger, name) != NULL)
		return NULL;
	client = calloc(1, sizeof *client);
	if (client == NULL)
		return NULL;
	snprintf(client->name, sizeof client->name, "%s", name);
	snprintf(client->action, sizeof client->action, "cluster-client:%s", name);
	client->messenger = messenger;
	client->real = real;
	client->topics.most = CLUSTER_CLIENT_KEYS_MAX;
	client->delay = CLUSTER_CLIENT_RETRY_MIN;
	client->waiters.end = &client->waiters.first;
	client->waiting.end = &client->waiting.first;
	client->sent.end = &client->sent.first;
	client->link.client = client;
	client->link.types = types;
	client->link.ended = ended;
	if (close_with(messenger) == -1 || set_options(client, options) == -1) {
		free(client);
		return NULL;
	}
	client->next = clients;
	clients = client;
	return client;
}

static void
unlist(struct cluster_client *client)
{
	struct cluster_client **link = &clients;

	while (*link != NULL && *link != client)
		link = &(*link)->next;
	if (*link != NULL)
		*link = client->next;
}

void
cluster_client_close(struct cluster_client *client)
{
	if (client == NULL || client->closed)
		return;
	client->closed = true;
	unlist(client);
	cluster_base_clear_timer(client, &client->retry);
	cluster_base_clear_timer(client, &client->heartbeat);
	settle_all(client, &client->sent, &closed_error);
	settle_all(client, &client->waiting, &closed_error);
	settle_all(client, &client->waiters, &closed_error);
	cluster_link_close(&client->link);
	if (client->leader != NULL)
		cluster_leader_close(client);
	client->ended = true;
	cluster_base_tick(client); /* by then every function that uses the client has returned */
}

void
cluster_base_free(struct cluster_client *client)
{
	int saved = errno;

	unlist(client);
	cluster_link_close(&client->link);
	cluster_topic_clear(&client->topics);
	if (client->leader != NULL)
		cluster_leader_free(client);
	free(client);
	errno = saved;
}

struct cluster_client *
cluster_client_follower(struct messenger *app, const char *name, const struct real_client *real,
                        const struct cluster_client_options *options)
{
	struct cluster_client *client = cluster_base_new(app, name, real, options);

	if (client != NULL)
		cluster_base_connect(client);
	return client;
}
