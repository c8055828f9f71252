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
#define CLUTCH_CHANNEL
#include "cluster_client.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The most calls of this process that real clients have not answered: followers may be gone,
 * and their calls are not. */
#define LEADER_CALLS_MAX (64 * CLUSTER_CLIENT_CALLS_MAX)
static size_t call_count;

/* The most followers that have not said yet to which process they belong. */
#define STRANGERS_MAX 64

/* The most lines in a minute about followers. */
#define LINES_MAX 32

/* The longest text of an error: a longer one is cut. With its code it fits into a message. */
enum {
	ERROR_ROOM = MESSAGE_DATA_MAX - CLUSTER_CLIENT_KEY_MAX,
	ERROR_MAX = ERROR_ROOM < 1024 ? ERROR_ROOM : 1024
};

struct follower {
	struct cluster_link link; /* first: a pointer to one is a pointer to the other */
	struct follower *next;
	bool own;     /* the agent's */
	bool waiting; /* for the real client to be ready */
	bool gone;    /* it is kept for its calls */
	long pid;     /* as the follower says; 0: a stranger */
	int timeout;  /* of its calls; 0: none */
	size_t keys, calls;
};

struct cluster_call {
	struct follower *follower;
	int id;
	int64_t since;
};

struct leader {
	enum start { STARTING, READY, FAILED } start; /* of the real client */
	enum start outcome;                           /* it has just told how its start went */
	char code[CLUSTER_CLIENT_KEY_MAX], message[ERROR_MAX + 1];
	struct topics topics;
	struct follower *followers, *own; /* own: the agent's, or NULL */
	size_t follower_count;
	struct channel encoder; /* it has no other end: its queue keeps the frame of a value */
	unsigned random;        /* rand_r(3)'s */
	int lines;              /* about followers, since */
	int64_t lines_since;    /* this minute began */
};

/* Bad followers may come again and again: in a minute they get LINES_MAX lines at most. */
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

/* A follower that has not taken a packet gets no further one. */
static void
drop(struct follower *follower)
{
	give_up(follower, errno == ENOBUFS ? "does not read what it is sent"
	                                   : "was to be sent more than there is memory for");
}

static void
tell(struct follower *follower, const struct packet *packet)
{
	if (cluster_link_say(&follower->link, packet) == -1)
		drop(follower);
}

/* The packet is valid until the next call. */
static struct packet
error_packet(const char *action, const char *code, const char *message)
{
	static char name[CLUSTER_CLIENT_KEY_MAX];

	snprintf(name, sizeof name, "%s", code != NULL ? code : "");
	return (struct packet){.action = action,
	                       .name = name,
	                       .data = message,
	                       .length = message != NULL ? strnlen(message, ERROR_MAX) : 0,
	                       .failed = true};
}

/* ---- subscriptions --------------------------------------------------------------- */

static const char no_memory[] = "subscribed to more than there is memory for";

static const char *
on_subscribe(struct cluster_link *link, const struct packet *packet)
{
	struct follower *follower = (struct follower *)(void *)link;
	struct cluster_client *client = link->client;
	struct topics *topics = &client->leader->topics;
	struct topic *topic;
	const char *why = NULL;
	struct message last;
	bool known;

	if (client->real->subscribe == NULL)
		return "subscribed, which is not offered";
	topic = cluster_topic_make(topics, packet->name);
	if (topic == NULL)
		return no_memory;
	topic->users++;
	known = cluster_topic_find_listener(topic, NULL, follower) != NULL;
	if (!known && follower->keys >= CLUSTER_CLIENT_KEYS_MAX)
		why = "subscribed to too many keys";
	else if (!known && cluster_topic_add(topic, NULL, follower, follower->own) == NULL)
		why = no_memory;
	if (why != NULL) {
		cluster_topic_leave(topics, topic);
		return why;
	}
	follower->keys += !known;
	last = topic->packet;
	last.receiver_pid = packet->id;
	if (topic->last != NULL && cluster_link_send(link, topic->key, &last) == -1)
		drop(follower);
	if (!topic->subscribed) { /* egg: _doSubscribe; a value may come inside of it */
		topic->subscribed = true;
		client->real->subscribe(client, topic->key, client->real->arg);
	}
	cluster_topic_leave(topics, topic);
	return NULL;
}

/* D35: when the last subscriber is gone, no value is kept, and none is asked for. The real
 * client may close its leader here; after that it is not called for the other keys. The result
 * says whether this was the follower's last key. */
static int
remove_follower(struct topic *topic, void *arg)
{
	struct follower *follower = arg;
	struct cluster_client *client = follower->link.client;
	struct listener *listener = cluster_topic_find_listener(topic, NULL, follower);

	if (listener == NULL)
		return 0;
	cluster_topic_remove(topic, listener);
	follower->keys--;
	if (topic->count == 0) {
		topic->subscribed = false;
		free(topic->last);
		topic->last = NULL;
		if (client->real->unsubscribe != NULL && !client->closed)
			client->real->unsubscribe(client, topic->key, client->real->arg);
	}
	return follower->keys == 0;
}

static const char *
on_unsubscribe(struct cluster_link *link, const struct packet *packet)
{
	struct topics *topics = &link->client->leader->topics;
	struct topic *topic = cluster_topic_find(topics, packet->name);

	if (topic != NULL) {
		topic->users++;
		remove_follower(topic, link);
		cluster_topic_leave(topics, topic);
	}
	return NULL;
}

static const char *
on_publish(struct cluster_link *link, const struct packet *packet)
{
	const struct real_client *real = link->client->real;

	if (real->publish == NULL)
		return "published, which is not offered";
	real->publish(link->client, packet->name, packet->data, packet->length, real->arg);
	return NULL;
}

/* Tell all followers, or one of them. The agent's own is the first: if it has no room, no
 * follower has got the value, and the real client hears of that. */
static int
emit(const struct cluster_client *client, const struct topic *topic, const struct message *message)
{
	bool one = client->options.no_broadcast;
	size_t skip = one ? (size_t)rand_r(&client->leader->random) % topic->count : 0;
	struct listener *listener;
	struct follower *follower;
	int result;

	for (listener = topic->listeners; listener != NULL; listener = listener->next) {
		if (listener->removed || (skip > 0 && skip-- > 0))
			continue;
		follower = listener->arg;
		result = cluster_link_send(&follower->link, topic->key, message);
		if (result == -1 && follower->own)
			return -1;
		if (result == -1)
			drop(follower);
		if (one)
			break;
	}
	return 0;
}

/* The packet is encoded once, and kept for those that subscribe later, where they are to have
 * it. */
int
cluster_client_emit(struct cluster_client *client, const char *key, const void *data, size_t length)
{
	struct packet packet = {"subscribe_result", 0, key, data, length, false};
	struct topic *topic = NULL;
	struct message message;
	struct channel *encoder;
	char *last, *old;
	int result;

	if (client->leader != NULL && !client->closed)
		topic = cluster_topic_find(&client->leader->topics, key);
	if (topic == NULL || !topic->subscribed)
		return cluster_base_refuse(ENOENT);
	if (length > CLUSTER_CLIENT_DATA_MAX)
		return cluster_base_refuse(EMSGSIZE);
	encoder = &client->leader->encoder;
	message = cluster_link_compose(&packet);
	if (client->options.no_broadcast)
		return emit(client, topic, &message);
	if (topic->last != NULL && topic->packet.data_length == message.data_length)
		last = topic->last;
	else
		last = malloc(message.data_length + 1);
	result = last != NULL ? sendmessage(encoder, &message) : -1;
	message.frame = encoder->queue;
	if (result == 0)
		result = emit(client, topic, &message);
	encoder->queue_end = 0; /* the next value takes the memory of this one */
	if (result == 0) {
		old = topic->last;
		topic->last =
			memcpy(last, message.data != NULL ? message.data : "", message.data_length);
		topic->packet = message;
		topic->packet.data = last;
		topic->packet.frame = NULL;
		last = old;
	}
	if (last != topic->last)
		free(last);
	return result;
}

/* ---- calls ------------------------------------------------------------------------- */

static struct cluster_call *
new_call(struct follower *follower, int id)
{
	struct cluster_call *call;

	if (follower->calls >= CLUSTER_CLIENT_CALLS_MAX || call_count >= LEADER_CALLS_MAX)
		return NULL;
	call = malloc(sizeof *call);
	if (call == NULL)
		return NULL;
	*call = (struct cluster_call){follower, id, clutch_now()};
	call_count++;
	follower->calls++;
	return call;
}

/* A follower that is gone is kept for its calls: the last answer frees it. */
static void
release(struct follower *follower)
{
	follower->gone = true;
	if (follower->calls == 0)
		free(follower);
}

static int
answer(struct cluster_call *call, struct packet *packet)
{
	struct follower *follower;

	if (call == NULL) /* one-way */
		return 0;
	if (packet->length > CLUSTER_CLIENT_DATA_MAX)
		return cluster_base_refuse(EMSGSIZE);
	follower = call->follower;
	packet->id = call->id;
	/* egg: "no response if processing timeout, just record error" */
	if (follower->link.messenger != NULL && follower->timeout > 0 &&
	    clutch_now() - call->since > follower->timeout) {
		complain(follower, "waited longer than its timeout", "its call is not answered");
	} else if (cluster_link_say(&follower->link, packet) == -1) {
		if (follower->own)
			return -1;
		drop(follower);
	}
	free(call);
	call_count--;
	follower->calls--;
	if (follower->gone)
		release(follower);
	return 0;
}

int
cluster_client_reply(struct cluster_call *call, const void *data, size_t length)
{
	struct packet packet = {.action = "invoke_result", .data = data, .length = length};

	return answer(call, &packet);
}

int
cluster_client_fail(struct cluster_call *call, const char *code, const char *message)
{
	struct packet packet = error_packet("invoke_result", code, message);

	return answer(call, &packet);
}

static const char *
on_invoke(struct cluster_link *link, const struct packet *packet)
{
	struct follower *follower = (struct follower *)(void *)link;
	const struct real_client *real = link->client->real;
	const struct real_method *method = cluster_base_find_method(real, packet->name);
	struct cluster_call *call = NULL;
	struct packet refusal;

	if (method == NULL) /* D33 */
		return "called a method that is not listed";
	if (packet->id != 0 && (call = new_call(follower, packet->id)) == NULL) {
		refusal = error_packet("invoke_result", "ClusterCallLimitError",
		                       "Too many calls wait for the real client.");
		refusal.id = packet->id;
		tell(follower, &refusal);
		return NULL;
	}
	method->invoke(link->client, call, packet->data, packet->length, real->arg);
	return NULL;
}

/* ---- registration ------------------------------------------------------------------- */

/* egg: createRealClient, and its ready() */
static void
start(struct cluster_client *client)
{
	client->leader->start = STARTING;
	if (client->real->ready != NULL)
		client->real->ready(client, client->real->arg);
	else
		cluster_client_started(client, NULL);
}

/* When the real client is ready, or has failed to start. */
static void
answer_registration(struct follower *follower)
{
	struct leader *leader = follower->link.client->leader;
	struct packet packet = {.action = "register_channel_res"};

	follower->waiting = leader->start == STARTING;
	follower->link.registered = leader->start == READY;
	if (leader->start == FAILED)
		packet = error_packet(packet.action, leader->code, leader->message);
	if (!follower->waiting)
		tell(follower, &packet);
}

/* How many followers say that this is their pid? That shows a faulty process, which opens too
 * many, but not a process that lies. */
static int
count_of(const struct leader *leader, long pid)
{
	const struct follower *follower;
	int count = 0;

	for (follower = leader->followers; follower != NULL; follower = follower->next)
		count += follower->pid == pid;
	return count;
}

/* A start that fails is tried again when the agent's own client, which waits longer each time,
 * asks again. */
static const char *
on_register(struct cluster_link *link, const struct packet *packet)
{
	struct follower *follower = (struct follower *)(void *)link;
	struct leader *leader = link->client->leader;
	long pid;

	if (link->registered || follower->waiting)
		return "registered twice";
	if (sscanf(packet->data, "%ld %d", &pid, &follower->timeout) != 2 || pid <= 0)
		return "registered without a pid and a timeout";
	follower->pid = pid;
	if (count_of(leader, pid) > CLUSTER_CLIENT_PROCESS_MAX)
		return "is one too many of its process";
	if (follower->own && leader->start == FAILED)
		start(link->client);
	answer_registration(follower);
	return NULL;
}

static const char *
on_answer(struct cluster_link *link, const struct packet *packet)
{
	(void)link, (void)packet;
	return "gave an answer that nobody asked for";
}

/* egg: _handleRequest */
static const struct packet_type types[] = {{"invoke", true, false, on_invoke},
                                           {"publish", true, false, on_publish},
                                           {"subscribe", true, false, on_subscribe},
                                           {"unSubscribe", true, false, on_unsubscribe},
                                           {"register_channel", false, true, on_register},
                                           {"heartbeat", false, true, NULL},
                                           {"invoke_result", false, false, on_answer},
                                           {"subscribe_result", true, false, on_answer},
                                           {NULL, false, false, NULL}};

int
cluster_leader_hear(struct cluster_client *client, const struct packet *packet)
{
	struct follower *own = client->leader->own;

	if (own == NULL ||
	    cluster_link_find(types, packet->action)->heard(&own->link, packet) == NULL)
		return 0;
	return cluster_base_refuse(ENOMEM); /* it has broken no other rule */
}

static void
ended(struct cluster_link *link, const char *why)
{
	give_up((struct follower *)(void *)link, why);
}

/* Remove all that belongs to a follower. Its calls may still be answered. */
static void
forget(struct cluster_client *client, struct follower *follower)
{
	struct leader *leader = client->leader;

	cluster_topic_each(&leader->topics, remove_follower, follower);
	leader->follower_count--;
	if (leader->own == follower)
		leader->own = NULL;
	release(follower);
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
	follower->link.types = types;
	follower->link.ended = ended;
	follower->own = own;
	follower->link.heard_at = clutch_now();
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
void
cluster_leader_check_heartbeats(struct cluster_client *client)
{
	int64_t oldest = clutch_now() - 3 * (int64_t)client->options.heartbeat_interval;
	struct follower *follower;

	for (follower = client->leader->followers; follower != NULL; follower = follower->next)
		if (!follower->own && follower->link.heard_at < oldest)
			give_up(follower, "was silent for three heartbeats");
}

/* ---- the real client ------------------------------------------------------------------- */

/* The real client has said how its start went. This is a later turn, and no function of the
 * real client is active, so calls that waited may call it now. */
static void
tell_started(struct cluster_client *client)
{
	struct leader *leader = client->leader;
	struct follower *follower;

	leader->start = leader->outcome;
	leader->outcome = STARTING;
	for (follower = leader->followers; follower != NULL; follower = follower->next)
		if (follower->waiting)
			answer_registration(follower);
}

void
cluster_leader_tick(struct cluster_client *client)
{
	struct follower **link = &client->leader->followers, *follower;

	if (client->leader->outcome != STARTING)
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

	if (client->closed || leader == NULL || leader->start != STARTING ||
	    leader->outcome != STARTING)
		return;
	leader->outcome = error == NULL ? READY : FAILED;
	if (error != NULL) {
		snprintf(leader->code, sizeof leader->code, "%s",
		         error->code != NULL ? error->code : "");
		snprintf(leader->message, sizeof leader->message, "%s",
		         error->message != NULL ? error->message : "");
		cluster_base_log(client, "the real client", "did not start", leader->message);
	}
	cluster_base_tick(client);
}

/* ---- beginning and end --------------------------------------------------------------------- */

void
cluster_leader_close(struct cluster_client *client)
{
	struct leader *leader = client->leader;
	struct follower *follower;

	messenger_remove_listener(client->messenger, client->action, on_connection, client);
	for (follower = leader->followers; follower != NULL; follower = follower->next)
		cluster_link_close(&follower->link);
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
		release(follower);
	}
	cluster_topic_clear(&leader->topics);
	channel_close(&leader->encoder);
	free(leader);
}

struct cluster_client *
cluster_client_leader(struct messenger *agent, const char *name, const struct real_client *real,
                      const struct cluster_client_options *options)
{
	struct cluster_client *client = cluster_base_new(agent, name, real, options);
	struct leader *leader;

	if (client == NULL)
		return NULL;
	leader = client->leader = calloc(1, sizeof *leader);
	if (leader != NULL)
		channel_init(&leader->encoder, 0);
	if (leader == NULL || messenger_on(agent, client->action, on_connection, client) == -1) {
		cluster_base_clear_timer(client, &client->heartbeat);
		cluster_base_free(client);
		return NULL;
	}
	leader->topics.most = SIZE_MAX;
	leader->lines_since = clutch_now();
	leader->random = (unsigned)getpid() * 2654435761U ^ (unsigned)clutch_now();
	cluster_base_connect(client);
	start(client);
	return client;
}
