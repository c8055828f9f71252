/*
 * The side of a client that its user sees, in the agent and in an app: subscriptions,
 * publications and calls. They wait until the client is ready; when it has been lost and
 * is ready again, subscriptions and publications are repeated.
 *
 * egg: cluster-client/lib/wrapper/base.js
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#define CLUSTER_CLIENT_PRIVATE
#include "cluster_client.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The clients of this process that are not closed. */
static struct cluster_client *clients;

/* A value of client->tick: there is no timer, and none may be set. The tick after the close
 * frees the client, and a callback inside of the close may turn the loop: the tick must not
 * come then. */
enum { TICK_HELD = -1 };

/* The id of a packet about the last value of a key that was subscribed before. */
enum { LATE = 1 };

/* ---- small things ------------------------------------------------------------ */

void
cluster_base_log(const struct cluster_client *client, const char *who, const char *what,
                 const char *then)
{
	clutch_log(CLUTCH_WARN, "[cluster-client] %s: %s %s: %s", client->name, who, what, then);
}

struct value *
cluster_value_new(const void *data, size_t length)
{
	struct value *value = malloc(sizeof *value + length + 1);

	if (value == NULL)
		return NULL;
	value->holders = 1;
	value->length = length;
	if (length > 0)
		memcpy(value->data, data, length);
	value->data[length] = '\0';
	return value;
}

void
cluster_value_drop(struct value *value)
{
	if (value != NULL && --value->holders == 0)
		free(value);
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
free_topic(struct topic *topic)
{
	struct listener *listener;

	for (listener = topic->listeners; listener != NULL; listener = listener->next)
		listener->removed = true;
	sweep_listeners(topic);
	cluster_value_drop(topic->value);
	cluster_value_drop(topic->published);
	free(topic->followers);
	free(topic);
}

/* A subscribed key stays, even if it has no listener: it is still to be unsubscribed. */
void
cluster_topic_sweep(struct topics *topics, struct topic *topic)
{
	struct topic **link = &topics->buckets[topic->hash % TOPIC_BUCKETS];

	if (topic->busy > 0)
		return;
	sweep_listeners(topic);
	if (topic->listeners != NULL || topic->published != NULL || topic->subscribed ||
	    topic->follower_count > 0)
		return;
	while (*link != topic)
		link = &(*link)->next;
	*link = topic->next;
	topics->count--;
	free_topic(topic);
}

void
cluster_topic_clear(struct topics *topics)
{
	struct topic *topic;
	size_t i;

	for (i = 0; i < TOPIC_BUCKETS; i++)
		while ((topic = topics->buckets[i]) != NULL) {
			topics->buckets[i] = topic->next;
			free_topic(topic);
		}
}

static bool
has_listeners(const struct topic *topic)
{
	const struct listener *listener = topic->listeners;

	while (listener != NULL && listener->removed)
		listener = listener->next;
	return listener != NULL;
}

/* ---- calling back --------------------------------------------------------------- */

/* To a listener that was added to others the leader has told the last value once more: that is
 * for those alone that have heard none since they were added. When nobody listens any more, the
 * value has crossed our unsubscribe. */
void
cluster_base_on_value(struct cluster_client *client, const struct packet *packet)
{
	struct topic *topic = cluster_topic_find(&client->topics, packet->name);
	struct listener *listener, *next, *last;

	if (topic == NULL || !topic->subscribed)
		return;
	for (last = next = topic->listeners; last != NULL && last->next != NULL;)
		last = last->next;
	topic->busy++; /* a listener cannot free the topic, or a listener of it */
	while ((listener = next) != NULL) {
		next = listener != last ? listener->next : NULL; /* added ones stand behind */
		if (client->closed || listener->removed || (packet->id == LATE && !listener->late))
			continue;
		listener->late = false;
		check(client, listener->call(client, topic->key, packet->data, packet->length,
		                             listener->arg));
	}
	topic->busy--;
	cluster_topic_sweep(&client->topics, topic);
}

static void
call_waiters(struct cluster_client *client, const struct cluster_error *error)
{
	struct waiter *waiter, *last = client->waiters;
	bool more = last != NULL;

	while (more && last->next != NULL)
		last = last->next;
	/* Waiters that are added now stand behind the last one, and are called the next time.
	 * If a callback closes the client, the close calls the other waiters, and none is
	 * left. */
	while (more && (waiter = client->waiters) != NULL) {
		more = waiter != last;
		client->waiters = waiter->next;
		check(client, waiter->callback(client, error, waiter->arg));
		free(waiter);
	}
}

/* The number of a call as its message has it: 1 to INT_MAX, again and again. */
static int
id_of(uint64_t number)
{
	return (int)(number % INT_MAX) + 1;
}

static struct pending *
find_pending(struct cluster_client *client, int id)
{
	struct pending *pending = client->pending;

	while (pending != NULL && id_of(pending->number) != id)
		pending = pending->next;
	return pending;
}

static void
unlink_pending(struct cluster_client *client, struct pending *pending)
{
	struct pending **link = &client->pending;

	while (*link != pending)
		link = &(*link)->next;
	*link = pending->next;
	if (*link == NULL)
		client->last_pending = link;
	client->pending_count--;
	if (pending->data != NULL)
		client->waiting_bytes -= pending->data->length;
}

/* A call is answered: call back, and forget it. */
static void
settle(struct cluster_client *client, struct pending *pending, const struct cluster_error *error,
       const char *data, size_t length)
{
	unlink_pending(client, pending);
	if (pending->callback != NULL)
		check(client, pending->callback(client, error, data, length, pending->arg));
	cluster_value_drop(pending->data);
	free(pending);
}

/* Of a call that has timed out nothing is left. */
void
cluster_base_on_answer(struct cluster_client *client, const struct packet *packet)
{
	struct pending *pending = find_pending(client, packet->id);
	struct cluster_error error;

	if (pending == NULL || pending->data != NULL)
		return;
	if (!packet->failed) {
		settle(client, pending, NULL, packet->data, packet->length);
		return;
	}
	error = cluster_error_decode(packet->data, packet->length);
	settle(client, pending, &error, NULL, 0);
}

static int
on_tick(struct messenger *messenger, void *arg)
{
	struct cluster_client *client = arg;

	(void)messenger;
	client->tick = 0;
	if (client->closed) {
		cluster_base_free(client);
		return 0;
	}
	if (client->leader != NULL)
		cluster_leader_tick(client);
	if (!client->closed && client->state == CLIENT_READY)
		call_waiters(client, NULL);
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

/* ---- ready, and ready again --------------------------------------------------------- */

void
cluster_base_retry(struct cluster_client *client, struct retry *retry, messenger_timer again)
{
	int id;

	if (retry->timer != 0 || client->closed)
		return;
	id = messenger_set_timeout(client->messenger, retry->delay, again, client);
	retry->timer = id > 0 ? id : 0;
	retry->delay = retry->delay < CLUSTER_CLIENT_RETRY_MAX / 2 ? 2 * retry->delay
	                                                           : CLUSTER_CLIENT_RETRY_MAX;
}

/* In the agent the real client is called inside of it, and may do anything. */
static int
say_published(struct cluster_client *client, const char *key, struct value *value)
{
	struct packet packet = {
		.type = PACKET_PUBLISH, .name = key, .data = value->data, .length = value->length};
	int result;

	value->holders++;
	result = cluster_follower_say(client, &packet);
	cluster_value_drop(value);
	return result;
}

/* Tell the leader what it does not know yet about a key. */
static int
say_topic(struct cluster_client *client, struct topic *topic)
{
	bool listens = has_listeners(topic);
	struct packet packet = {.type = listens ? PACKET_SUBSCRIBE : PACKET_UNSUBSCRIBE,
	                        .name = topic->key};

	if (listens != topic->subscribed) {
		topic->subscribed = listens;
		if (cluster_follower_say(client, &packet) == -1) {
			topic->subscribed = !listens;
			return -1;
		}
	}
	if (topic->published == NULL || topic->said || client->closed)
		return 0;
	topic->said = say_published(client, topic->key, topic->published) == 0;
	return topic->said ? 0 : -1;
}

static int
say_topics(struct cluster_client *client)
{
	struct topic *topic, *next;
	int result = 0;
	size_t i;

	for (i = 0; i < TOPIC_BUCKETS && result == 0; i++)
		for (topic = client->topics.buckets[i]; topic != NULL && result == 0;
		     topic = next) {
			topic->busy++;
			result = client->closed ? 0 : say_topic(client, topic);
			next = topic->next;
			topic->busy--;
			cluster_topic_sweep(&client->topics, topic);
		}
	return result;
}

static struct pending *
first_call(struct cluster_client *client, bool waiting)
{
	struct pending *pending = client->pending;

	while (pending != NULL && (pending->data != NULL) != waiting)
		pending = pending->next;
	return pending;
}

/* Send the calls that wait for ready. In the agent the real client is called inside of it: it
 * may make a call itself, or close this client, which ends all calls. */
static int
say_calls(struct cluster_client *client)
{
	struct packet packet = {.type = PACKET_INVOKE};
	struct pending *pending;
	struct value *data;

	while ((pending = first_call(client, true)) != NULL) {
		data = pending->data;
		packet.id = pending->callback != NULL ? id_of(pending->number) : 0;
		packet.name = pending->method->name;
		packet.data = data->data;
		packet.length = data->length;
		pending->data = NULL; /* it is sent */
		client->waiting_bytes -= data->length;
		if (cluster_follower_say(client, &packet) == -1) {
			pending->data = data;
			client->waiting_bytes += data->length;
			return -1;
		}
		cluster_value_drop(data);
		if (!client->closed && packet.id == 0) /* there will be no answer */
			settle(client, pending, NULL, NULL, 0);
	}
	return 0;
}

static int say_again(struct messenger *messenger, void *arg);

/* Where the queue is full, what is left follows later. */
static void
say_all(struct cluster_client *client)
{
	client->catching_up = say_topics(client) == -1 || say_calls(client) == -1;
	if (client->catching_up)
		cluster_base_retry(client, &client->retry, say_again);
}

static int
say_again(struct messenger *messenger, void *arg)
{
	struct cluster_client *client = arg;

	(void)messenger;
	client->retry.timer = 0;
	say_all(client);
	return cluster_base_result(client);
}

void
cluster_base_ready(struct cluster_client *client)
{
	client->state = CLIENT_READY;
	client->retry.delay = CLUSTER_CLIENT_RETRY_MIN;
	say_all(client);
	cluster_base_tick(client); /* it calls those who wait for ready */
}

/* Fail the calls that wait for ready, or those that are sent; not what a callback calls. */
static void
fail_calls(struct cluster_client *client, bool waiting, const struct cluster_error *error)
{
	uint64_t last = client->calls;
	struct pending *pending;

	while (!client->closed && (pending = first_call(client, waiting)) != NULL &&
	       pending->number <= last)
		settle(client, pending, error, NULL, 0);
}

void
cluster_base_not_ready(struct cluster_client *client, const struct cluster_error *error)
{
	client->state = CLIENT_FAILED;
	call_waiters(client, error);
	fail_calls(client, true, error);
}

void
cluster_base_clear_timer(struct cluster_client *client, int *timer)
{
	if (*timer != 0)
		messenger_clear_timeout(client->messenger, *timer);
	*timer = 0;
}

void
cluster_base_lost(struct cluster_client *client)
{
	static const struct cluster_error error = {
		"SocketCloseError", "The leader is gone. The call may have been made, or not."};
	struct topic *topic, *next;
	size_t i;

	client->state = CLIENT_STARTING;
	client->catching_up = false;
	cluster_base_clear_timer(client, &client->retry.timer);
	for (i = 0; i < TOPIC_BUCKETS; i++)
		for (topic = client->topics.buckets[i]; topic != NULL; topic = next) {
			topic->subscribed = topic->said = false;
			next = topic->next;
			cluster_topic_sweep(&client->topics, topic);
		}
	fail_calls(client, false, &error);
}

static bool
can_speak(const struct cluster_client *client)
{
	return client->state == CLIENT_READY && !client->catching_up;
}

/* ---- subscribe, publish -------------------------------------------------------------- */

static int
check_key(const struct cluster_client *client, const char *key)
{
	if (client->closed)
		return cluster_base_refuse(EPIPE);
	if (key == NULL || key[0] == '\0' || strlen(key) > CLUSTER_CLIENT_KEY_MAX)
		return cluster_base_refuse(EINVAL);
	return 0;
}

int
cluster_client_ready(struct cluster_client *client, cluster_ready_callback callback, void *arg)
{
	struct waiter **last = &client->waiters;
	struct waiter *waiter;

	if (client->closed)
		return cluster_base_refuse(EPIPE);
	waiter = malloc(sizeof *waiter);
	if (waiter == NULL)
		return -1;
	*waiter = (struct waiter){NULL, callback, arg};
	while (*last != NULL)
		last = &(*last)->next;
	*last = waiter;
	if (client->state == CLIENT_READY)
		cluster_base_tick(client);
	return 0;
}

static struct listener *
add_listener(struct topic *topic, cluster_listener call, void *arg)
{
	struct listener **last = &topic->listeners;
	struct listener *listener = malloc(sizeof *listener);

	if (listener == NULL)
		return NULL;
	*listener = (struct listener){NULL, call, arg, false, false};
	while (*last != NULL)
		last = &(*last)->next;
	*last = listener;
	return listener;
}

/* For the first listener of a key, subscribe at the leader; for a further one, ask for the
 * last value. */
static int
begin_listening(struct cluster_client *client, struct topic *topic, struct listener *listener)
{
	struct packet packet = {.type = PACKET_SUBSCRIBE, .id = LATE, .name = topic->key};

	if (!topic->subscribed)
		return can_speak(client) ? say_topic(client, topic) : 0;
	listener->late = true;
	return cluster_follower_say(client, &packet);
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
	topic->busy++;
	listener = add_listener(topic, call, arg);
	if (listener != NULL)
		result = begin_listening(client, topic, listener);
	if (result == -1 && listener != NULL)
		listener->removed = true;
	topic->busy--;
	cluster_topic_sweep(&client->topics, topic);
	return result;
}

/* The match that was added last; without a call, the listener that was added last. */
static struct listener *
find_listener(const struct topic *topic, cluster_listener call, const void *arg)
{
	struct listener *listener, *found = NULL;

	for (listener = topic->listeners; listener != NULL; listener = listener->next)
		if (!listener->removed &&
		    (call == NULL || (listener->call == call && listener->arg == arg)))
			found = listener;
	return found;
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
	listener = topic != NULL ? find_listener(topic, call, arg) : NULL;
	if (listener == NULL)
		return cluster_base_refuse(ENOENT);
	listener->removed = true;
	for (listener = topic->listeners; call == NULL && listener != NULL;
	     listener = listener->next)
		listener->removed = true;
	topic->busy++;
	if (can_speak(client) && say_topic(client, topic) == -1)
		say_all(client);
	topic->busy--;
	cluster_topic_sweep(&client->topics, topic);
	return 0;
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
	value = cluster_value_new(data, length);
	topic = value != NULL ? cluster_topic_make(&client->topics, key) : NULL;
	if (topic == NULL) {
		cluster_value_drop(value);
		return -1;
	}
	old = topic->published;
	topic->published = value;
	topic->busy++;
	if (can_speak(client))
		result = say_published(client, key, value);
	topic->said = can_speak(client);
	if (result == -1)
		topic->published = old;
	/* NOLINTNEXTLINE(clang-analyzer-unix.Malloc): say_published has held the value */
	cluster_value_drop(result == -1 ? value : old);
	topic->busy--;
	cluster_topic_sweep(&client->topics, topic);
	return result;
}

/* ---- calls --------------------------------------------------------------------------- */

static int on_expiry(struct messenger *messenger, void *arg);

/* All calls have the same response timeout, so the oldest call is the first to expire. The
 * timer is not moved at every call: on expiry it fails the calls that are due, and is set
 * for the next one. */
static void
watch_expiry(struct cluster_client *client)
{
	int64_t left;
	int id;

	if (client->pending == NULL || client->expiry != 0 || client->leader != NULL)
		return;
	left = client->pending->deadline - clutch_now();
	id = messenger_set_timeout(client->messenger, left > 0 ? (int)left : 0, on_expiry, client);
	client->expiry = id > 0 ? id : 0;
}

static int
on_expiry(struct messenger *messenger, void *arg)
{
	struct cluster_client *client = arg;
	int64_t now = clutch_now();
	char message[64];
	struct cluster_error error = {"ResponseTimeoutError", message};

	(void)messenger;
	client->expiry = 0;
	snprintf(message, sizeof message, "The leader did not answer within %d ms.",
	         client->options.response_timeout);
	while (client->pending != NULL && client->pending->deadline <= now)
		settle(client, client->pending, &error, NULL, 0);
	if (!client->closed)
		watch_expiry(client);
	return cluster_base_result(client);
}

static int
add_call(struct cluster_client *client, struct pending *pending, const void *data, size_t length)
{
	if (client->waiting_bytes + length > CHANNEL_QUEUE_MAX)
		return cluster_base_refuse(ENOBUFS);
	pending->data = cluster_value_new(data, length);
	if (pending->data == NULL)
		return -1;
	do /* numbers that begin anew must not meet one that waits */
		pending->number = ++client->calls;
	while (client->pending != NULL && client->calls - client->pending->number >= INT_MAX &&
	       find_pending(client, id_of(client->calls)) != NULL);
	pending->deadline = clutch_now() + client->options.response_timeout;
	*client->last_pending = pending;
	client->last_pending = &pending->next;
	client->pending_count++;
	client->waiting_bytes += length;
	return 0;
}

/* Every call waits for ready: it is sent at once if the client is. */
static int
call(struct cluster_client *client, const struct pending *what, const void *data, size_t length)
{
	struct pending *pending;

	if (client->closed)
		return cluster_base_refuse(EPIPE);
	if (what->method == NULL)
		return cluster_base_refuse(ENOSYS);
	if (length > CLUSTER_CLIENT_DATA_MAX)
		return cluster_base_refuse(EMSGSIZE);
	if (client->pending_count >= CLUSTER_CLIENT_CALLS_MAX)
		return cluster_base_refuse(ENOBUFS);
	pending = malloc(sizeof *pending);
	if (pending == NULL)
		return -1;
	*pending = *what;
	if (add_call(client, pending, data, length) == -1)
		goto fail;
	if (can_speak(client) && say_calls(client) == -1) {
		unlink_pending(client, pending);
		goto fail;
	}
	if (!client->closed) /* by the real client */
		watch_expiry(client);
	return 0;
fail:
	cluster_value_drop(pending->data);
	free(pending);
	return -1;
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
set_options(struct cluster_client *client, const struct cluster_client_options *options,
            messenger_timer beat)
{
	if (options != NULL)
		client->options = *options;
	if (client->options.response_timeout <= 0)
		client->options.response_timeout = 3000;
	if (client->options.heartbeat_interval > 0)
		client->heartbeat = messenger_set_interval(
			client->messenger, client->options.heartbeat_interval, beat, client);
	return client->heartbeat == -1 ? -1 : 0;
}

struct cluster_client *
cluster_base_new(struct messenger *messenger, const char *name, const struct real_client *real,
                 const struct cluster_client_options *options, messenger_timer beat)
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
	client->retry.delay = CLUSTER_CLIENT_RETRY_MIN;
	client->last_pending = &client->pending;
	client->link.client = client;
	if (close_with(messenger) == -1 || set_options(client, options, beat) == -1) {
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
	static const struct cluster_error error = {"ClusterClientCloseError",
	                                           "This client was closed."};

	if (client == NULL || client->closed)
		return;
	client->closed = true;
	unlist(client);
	cluster_base_clear_timer(client, &client->tick);
	client->tick = TICK_HELD;
	cluster_base_clear_timer(client, &client->retry.timer);
	cluster_base_clear_timer(client, &client->expiry);
	cluster_base_clear_timer(client, &client->heartbeat);
	while (client->pending != NULL)
		settle(client, client->pending, &error, NULL, 0);
	call_waiters(client, &error);
	cluster_link_close(&client->link);
	if (client->leader != NULL)
		cluster_leader_close(client);
	client->tick = 0;
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
