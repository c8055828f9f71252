/*
 * The side of a client that its user sees, in a leader and in a follower: subscriptions,
 * publications and calls. They wait until the client is ready; when it has been lost and
 * is ready again, subscriptions and publications are repeated.
 *
 * egg: cluster-client/lib/wrapper/base.js
 */
#define CLUSTER_CLIENT_PRIVATE
#include "cluster_client.h"

#include <errno.h>
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

/* ---- small things ------------------------------------------------------------ */

void
cluster_base_log(const struct cluster_client *client, const char *who, const char *what,
                 const char *then)
{
	clutch_print_line(STDERR_FILENO, "[cluster-client] %s: %s %s: %s", client->name, who, what,
	                  then);
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

struct value *
cluster_value_hold(struct value *value)
{
	value->holders++;
	return value;
}

void
cluster_value_drop(struct value *value)
{
	if (value != NULL && --value->holders == 0)
		free(value);
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
cluster_topic_find(struct cluster_client *client, const char *key)
{
	uint32_t hash = hash_key(key);
	struct topic *topic = client->topics[hash % CLIENT_BUCKETS];

	while (topic != NULL && (topic->hash != hash || strcmp(topic->key, key) != 0))
		topic = topic->next;
	return topic;
}

struct topic *
cluster_topic_make(struct cluster_client *client, const char *key)
{
	struct topic *topic = cluster_topic_find(client, key);
	size_t length = strlen(key);

	if (topic != NULL)
		return topic;
	if (client->topic_count >= client->side->keys_max) {
		errno = ENOBUFS;
		return NULL;
	}
	topic = calloc(1, sizeof *topic + length + 1);
	if (topic == NULL)
		return NULL;
	memcpy(topic->key, key, length);
	topic->hash = hash_key(key);
	topic->next = client->topics[topic->hash % CLIENT_BUCKETS];
	client->topics[topic->hash % CLIENT_BUCKETS] = topic;
	client->topic_count++;
	return topic;
}

static void
free_topic(struct topic *topic)
{
	struct listener *listener;

	while ((listener = topic->listeners) != NULL) {
		topic->listeners = listener->next;
		free(listener);
	}
	cluster_value_drop(topic->value);
	cluster_value_drop(topic->published);
	free(topic->followers);
	free(topic);
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

void
cluster_topic_sweep(struct cluster_client *client, struct topic *topic)
{
	struct topic **link = &client->topics[topic->hash % CLIENT_BUCKETS];

	if (topic->busy > 0)
		return;
	sweep_listeners(topic);
	if (topic->listeners != NULL || topic->published != NULL || topic->follower_count > 0)
		return;
	while (*link != topic)
		link = &(*link)->next;
	*link = topic->next;
	client->topic_count--;
	free_topic(topic);
}

bool
cluster_topic_has_listeners(const struct topic *topic)
{
	const struct listener *listener = topic->listeners;

	while (listener != NULL && listener->removed)
		listener = listener->next;
	return listener != NULL;
}

/* ---- calling back --------------------------------------------------------------- */

void
cluster_base_deliver(struct cluster_client *client, struct topic *topic, struct value *value,
                     struct listener *only)
{
	struct listener *listener, *next = topic->listeners, *last = next;

	while (last != NULL && last->next != NULL)
		last = last->next;
	topic->busy++; /* a listener cannot free the topic, or a listener of it */
	while ((listener = next) != NULL) {
		next = listener != last ? listener->next : NULL; /* added ones stand behind */
		if (client->closed || listener->removed || (only != NULL && only != listener))
			continue;
		listener->late = false;
		check(client, listener->call(client, topic->key, value->data, value->length,
		                             listener->arg));
	}
	topic->busy--;
	cluster_topic_sweep(client, topic);
}

int
cluster_base_queue_delivery(struct cluster_client *client, struct topic *topic, struct value *value,
                            struct listener *only, bool owed)
{
	struct delivery *delivery = malloc(sizeof *delivery);

	if (delivery == NULL)
		return -1;
	*delivery = (struct delivery){NULL, topic, cluster_value_hold(value), only, owed};
	topic->busy++;
	*client->last_delivery = delivery;
	client->last_delivery = &delivery->next;
	client->delivery_bytes += sizeof *delivery + value->length;
	cluster_base_tick(client);
	return 0;
}

static struct delivery *
take_delivery(struct cluster_client *client)
{
	struct delivery *delivery = client->deliveries;

	if (delivery == NULL)
		return NULL;
	client->deliveries = delivery->next;
	if (delivery->next == NULL)
		client->last_delivery = &client->deliveries;
	client->delivery_bytes -= sizeof *delivery + delivery->value->length;
	delivery->topic->busy--;
	return delivery;
}

/* Only the deliveries that wait now. A listener may add one; that has its turn later, or a
 * listener that always adds one would stop the whole process. */
static void
run_deliveries(struct cluster_client *client)
{
	struct delivery *delivery, *last = client->deliveries;
	struct value *value;
	bool more = last != NULL;

	while (more && last->next != NULL)
		last = last->next;
	while (more && (delivery = take_delivery(client)) != NULL) {
		more = delivery != last;
		value = delivery->value;
		/* a late listener may have heard a newer value meanwhile */
		if (!delivery->owed || delivery->only->late)
			cluster_base_deliver(client, delivery->topic, value, delivery->only);
		else
			cluster_topic_sweep(client, delivery->topic);
		cluster_value_drop(value);
		free(delivery);
	}
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

struct pending *
cluster_base_find_pending(struct cluster_client *client, uint64_t id)
{
	struct pending *pending = client->pending;

	while (pending != NULL && pending->id != id)
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

void
cluster_base_settle(struct cluster_client *client, struct pending *pending, bool success,
                    const char *data, size_t length)
{
	char copy[ERROR_DATA_MAX];
	struct cluster_error error = {NULL, NULL};

	unlink_pending(client, pending);
	if (!success)
		error = cluster_error_decode(copy, data, length);
	if (pending->callback != NULL)
		check(client,
		      pending->callback(client, success ? NULL : &error, success ? data : NULL,
		                        success ? length : 0, pending->arg));
	cluster_value_drop(pending->data);
	cluster_value_drop(pending->answer);
	free(pending);
}

static void
settle_with(struct cluster_client *client, struct pending *pending, const char *code,
            const char *message)
{
	char data[ERROR_DATA_MAX];
	size_t length = cluster_error_encode(data, code, message);

	cluster_base_settle(client, pending, false, data, length);
}

static void
fail_sent(struct cluster_client *client, const char *code, const char *message)
{
	struct pending *pending = client->pending;

	while (pending != NULL) {
		if (pending->data != NULL) {
			pending = pending->next;
			continue;
		}
		settle_with(client, pending, code, message);
		pending = client->pending; /* the callback may have changed the list */
	}
}

/* Only the calls that were made before: a callback may make the next call, whose answer may
 * come at once. */
static void
settle_answered(struct cluster_client *client)
{
	struct pending *pending = client->pending;
	uint64_t last = client->last_id;

	while (pending != NULL) {
		if (pending->answer == NULL || pending->id > last) {
			pending = pending->next;
			continue;
		}
		cluster_base_settle(client, pending, pending->success, pending->answer->data,
		                    pending->answer->length);
		pending = client->pending;
	}
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
	run_deliveries(client);
	if (!client->closed)
		settle_answered(client);
	if (!client->closed && client->state == CLIENT_READY)
		call_waiters(client, NULL);
	if (!client->closed)
		client->side->flush(client);
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
cluster_base_retry(struct cluster_client *client, messenger_timer again)
{
	int id;

	if (client->retry != 0 || client->closed)
		return;
	id = messenger_set_timeout(client->messenger, client->delay, again, client);
	client->retry = id > 0 ? id : 0;
	client->delay = client->delay < CLUSTER_CLIENT_RETRY_MAX / 2 ? 2 * client->delay
	                                                             : CLUSTER_CLIENT_RETRY_MAX;
}

static int
say_topic(struct cluster_client *client, struct topic *topic)
{
	if (!topic->subscribed && cluster_topic_has_listeners(topic) &&
	    client->side->subscribe(client, topic) == -1)
		return -1;
	if (topic->published == NULL || topic->said)
		return 0;
	if (client->side->publish(client, topic) == -1)
		return -1;
	topic->said = true;
	return 0;
}

static int
say_topics(struct cluster_client *client)
{
	struct topic *topic, *next;
	int result = 0;
	size_t i;

	for (i = 0; i < CLIENT_BUCKETS && result == 0; i++)
		for (topic = client->topics[i]; topic != NULL && result == 0; topic = next) {
			topic->busy++; /* a real client may do anything */
			result = client->closed ? 0 : say_topic(client, topic);
			next = topic->next;
			topic->busy--;
			cluster_topic_sweep(client, topic);
		}
	return result;
}

static struct pending *
first_waiting(struct cluster_client *client)
{
	struct pending *pending = client->pending;

	while (pending != NULL && pending->data == NULL)
		pending = pending->next;
	return pending;
}

static int
say_calls(struct cluster_client *client)
{
	struct pending *pending;
	struct value *data;
	int result = 0;

	while (result == 0 && (pending = first_waiting(client)) != NULL) {
		data = cluster_value_hold(pending->data);
		result = client->side->invoke(client, pending, data->data, data->length);
		if (result == 0 && !client->closed) {
			client->waiting_bytes -= data->length;
			cluster_value_drop(pending->data);
			pending->data = NULL;
			if (pending->callback == NULL) /* one-way: there will be no answer */
				cluster_base_settle(client, pending, true, NULL, 0);
		}
		cluster_value_drop(data);
	}
	return result;
}

static int
say_again(struct messenger *messenger, void *arg)
{
	struct cluster_client *client = arg;

	(void)messenger;
	client->retry = 0;
	if (client->state == CLIENT_READY)
		cluster_base_ready(client);
	return cluster_base_result(client);
}

void
cluster_base_ready(struct cluster_client *client)
{
	client->state = CLIENT_READY;
	client->delay = CLUSTER_CLIENT_RETRY_MIN;
	client->catching_up = say_topics(client) == -1 || say_calls(client) == -1;
	if (client->catching_up) /* the queue is full: the rest follows later */
		cluster_base_retry(client, say_again);
	cluster_base_tick(client); /* it calls those who wait for ready */
}

void
cluster_base_not_ready(struct cluster_client *client, const char *data, size_t length)
{
	char copy[ERROR_DATA_MAX];
	struct cluster_error error = cluster_error_decode(copy, data, length);
	uint64_t last = client->last_id;
	struct pending *pending;

	client->state = CLIENT_FAILED;
	call_waiters(client, &error);
	while (!client->closed && (pending = first_waiting(client)) != NULL && pending->id <= last)
		cluster_base_settle(client, pending, false, data, length);
}

static void
clear_timer(struct cluster_client *client, int *timer)
{
	if (*timer != 0)
		messenger_clear_timeout(client->messenger, *timer);
	*timer = 0;
}

void
cluster_base_lost(struct cluster_client *client)
{
	struct topic *topic;
	size_t i;

	client->state = CLIENT_STARTING;
	client->catching_up = false;
	clear_timer(client, &client->retry);
	for (i = 0; i < CLIENT_BUCKETS; i++)
		for (topic = client->topics[i]; topic != NULL; topic = topic->next)
			topic->subscribed = topic->said = false;
	fail_sent(client, "SocketCloseError",
	          "The leader is gone. The call may have been made, or not.");
}

static bool
can_speak(const struct cluster_client *client)
{
	return client->state == CLIENT_READY && !client->catching_up;
}

/* ---- subscribe, publish -------------------------------------------------------------- */

static int
refuse(int number)
{
	errno = number;
	return -1;
}

static int
check_key(const struct cluster_client *client, const char *key)
{
	if (client->closed)
		return refuse(EPIPE);
	if (key == NULL || key[0] == '\0' || strlen(key) > CLUSTER_CLIENT_KEY_MAX)
		return refuse(EINVAL);
	return 0;
}

int
cluster_client_ready(struct cluster_client *client, cluster_ready_callback callback, void *arg)
{
	struct waiter **last = &client->waiters;
	struct waiter *waiter;

	if (client->closed)
		return refuse(EPIPE);
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

/* For the first listener of a key, subscribe at the leader or the real client. A further
 * listener is late if there is a value already: it is owed that value. */
static int
begin_listening(struct cluster_client *client, struct topic *topic, struct listener *listener)
{
	if (!topic->subscribed)
		return can_speak(client) ? client->side->subscribe(client, topic) : 0;
	if (topic->value == NULL || !client->side->tells_late(client))
		return 0;
	listener->late = true;
	return cluster_base_queue_delivery(client, topic, topic->value, listener, true);
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
		return refuse(EINVAL);
	if (client->real->subscribe == NULL)
		return refuse(ENOSYS);
	topic = cluster_topic_make(client, key);
	if (topic == NULL)
		return -1;
	topic->busy++;
	listener = add_listener(topic, call, arg);
	if (listener != NULL)
		result = begin_listening(client, topic, listener);
	if (result == -1 && listener != NULL)
		listener->removed = true;
	topic->busy--;
	cluster_topic_sweep(client, topic);
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
	topic = cluster_topic_find(client, key);
	listener = topic != NULL ? find_listener(topic, call, arg) : NULL;
	if (listener == NULL)
		return refuse(ENOENT);
	listener->removed = true;
	for (listener = topic->listeners; call == NULL && listener != NULL;
	     listener = listener->next)
		listener->removed = true;
	topic->busy++;
	if (topic->subscribed && !cluster_topic_has_listeners(topic))
		client->side->unsubscribe(client, topic);
	topic->busy--;
	cluster_topic_sweep(client, topic);
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
		return refuse(ENOSYS);
	if (length > CLUSTER_CLIENT_DATA_MAX)
		return refuse(EMSGSIZE);
	value = cluster_value_new(data, length);
	topic = value != NULL ? cluster_topic_make(client, key) : NULL;
	if (topic == NULL) {
		cluster_value_drop(value);
		return -1;
	}
	old = topic->published;
	topic->published = value;
	topic->busy++;
	if (can_speak(client))
		result = client->side->publish(client, topic);
	topic->said = can_speak(client);
	if (result == -1)
		topic->published = old;
	cluster_value_drop(result == -1 ? value : old);
	topic->busy--;
	cluster_topic_sweep(client, topic);
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

	if (client->pending == NULL || client->expiry != 0 || !client->side->calls_expire)
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

	(void)messenger;
	client->expiry = 0;
	snprintf(message, sizeof message, "The leader did not answer within %d ms.",
	         client->options.response_timeout);
	while (client->pending != NULL && client->pending->deadline <= now)
		settle_with(client, client->pending, "ResponseTimeoutError", message);
	if (!client->closed)
		watch_expiry(client);
	return cluster_base_result(client);
}

/* Send the call now, or keep it until the client is ready. */
static int
say_or_keep(struct cluster_client *client, struct pending *pending, const void *data, size_t length)
{
	if (can_speak(client))
		return client->side->invoke(client, pending, data, length);
	if (client->waiting_bytes + length > CLUSTER_CLIENT_QUEUE_MAX)
		return refuse(ENOBUFS);
	pending->data = cluster_value_new(data, length);
	if (pending->data == NULL)
		return -1;
	client->waiting_bytes += length;
	return 0;
}

static int
call(struct cluster_client *client, const struct pending *what, const void *data, size_t length)
{
	struct pending *pending;

	if (client->closed)
		return refuse(EPIPE);
	if (what->method == NULL)
		return refuse(ENOSYS);
	if (length > CLUSTER_CLIENT_DATA_MAX)
		return refuse(EMSGSIZE);
	if (client->pending_count >= CLUSTER_CLIENT_CALLS_MAX)
		return refuse(ENOBUFS);
	pending = malloc(sizeof *pending);
	if (pending == NULL)
		return -1;
	*pending = *what;
	pending->id = ++client->last_id;
	pending->deadline = clutch_now() + client->options.response_timeout;
	*client->last_pending = pending;
	client->last_pending = &pending->next;
	client->pending_count++;
	if (say_or_keep(client, pending, data, length) == -1) {
		unlink_pending(client, pending);
		free(pending);
		return -1;
	}
	if (client->closed) /* by the real client: the close has settled the call */
		return 0;
	if (pending->callback == NULL && pending->data == NULL)
		cluster_base_settle(client, pending, true, NULL, 0);
	watch_expiry(client);
	return 0;
}

int
cluster_client_invoke(struct cluster_client *client, const char *method, const void *data,
                      size_t length, cluster_callback callback, void *arg)
{
	struct pending what = {.method = cluster_base_find_method(client->real, method),
	                       .callback = callback,
	                       .arg = arg};

	return callback == NULL ? refuse(EINVAL) : call(client, &what, data, length);
}

int
cluster_client_invoke_oneway(struct cluster_client *client, const char *method, const void *data,
                             size_t length)
{
	struct pending what = {.method = cluster_base_find_method(client->real, method)};

	return call(client, &what, data, length);
}

/* ---- beginning and end ------------------------------------------------------------------ */

/* egg: beforeClose(() => cluster.close(client)) */
static int
on_closing(struct messenger *messenger, void *arg)
{
	struct cluster_client *client = clients;

	(void)arg;
	while (client != NULL) {
		if (client->messenger != messenger) {
			client = client->next;
			continue;
		}
		cluster_client_close(client);
		client = clients;
	}
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

static void
set_options(struct cluster_client *client, const struct cluster_client_options *options)
{
	if (options != NULL)
		client->options = *options;
	if (client->options.response_timeout <= 0)
		client->options.response_timeout = 3000;
}

struct cluster_client *
cluster_base_new(struct messenger *messenger, const char *name, const struct real_client *real,
                 const struct cluster_client_options *options, const struct client_side *side)
{
	struct cluster_client *client;

	if (name == NULL || name[0] == '\0' || strlen(name) > CLUSTER_CLIENT_NAME_MAX ||
	    real == NULL) {
		errno = EINVAL;
		return NULL;
	}
	for (client = clients; client != NULL; client = client->next)
		if (client->messenger == messenger && strcmp(client->name, name) == 0) {
			errno = EEXIST;
			return NULL;
		}
	if (close_with(messenger) == -1)
		return NULL;
	client = calloc(1, sizeof *client);
	if (client == NULL)
		return NULL;
	snprintf(client->name, sizeof client->name, "%s", name);
	snprintf(client->action, sizeof client->action, "cluster-client:%s", name);
	client->messenger = messenger;
	client->real = real;
	client->side = side;
	client->delay = CLUSTER_CLIENT_RETRY_MIN;
	client->last_pending = &client->pending;
	client->last_delivery = &client->deliveries;
	client->connection.descriptor = -1;
	client->connection.client = client;
	set_options(client, options);
	client->next = clients;
	clients = client;
	return client;
}

/* D37: without the option no heartbeat is sent, and none is expected. */
int
cluster_base_beat(struct cluster_client *client, messenger_timer beat)
{
	int interval = client->options.heartbeat_interval;

	if (interval > 0)
		client->heartbeat =
			messenger_set_interval(client->messenger, interval, beat, client);
	return client->heartbeat == -1 ? -1 : 0;
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
	clear_timer(client, &client->tick);
	client->tick = TICK_HELD;
	clear_timer(client, &client->retry);
	clear_timer(client, &client->expiry);
	clear_timer(client, &client->heartbeat);
	while (client->pending != NULL)
		settle_with(client, client->pending, error.code, error.message);
	call_waiters(client, &error);
	client->side->close(client);
	client->tick = 0;
	cluster_base_tick(client); /* by then every function that uses the client has returned */
}

void
cluster_base_free(struct cluster_client *client)
{
	struct delivery *delivery;
	struct topic *topic;
	int saved = errno;
	size_t i;

	unlist(client);
	while ((delivery = take_delivery(client)) != NULL) {
		cluster_value_drop(delivery->value);
		free(delivery);
	}
	for (i = 0; i < CLIENT_BUCKETS; i++)
		while ((topic = client->topics[i]) != NULL) {
			client->topics[i] = topic->next;
			free_topic(topic);
		}
	client->side->free(client);
	cluster_value_drop(client->start_error);
	free(client);
	errno = saved;
}
