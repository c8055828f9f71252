/*
 * The follower: a client in an app. It asks the leader for everything.
 *
 * egg: cluster-client/lib/follower.js, lib/wrapper/cluster.js
 *
 * It makes a pair of sockets and sends one of them to the agent. Nobody has to know
 * whether there is an agent: while there is none, the message waits in its slot,
 * and who finds no leader of this name closes the socket. So each reason to try
 * again is the same one, an end of file:
 *
 *	socketpair ---> the agent has it ---> registered ---> the agent dies
 *	    ^                 |                    |                |
 *	    |            no leader yet        start failed,         |
 *	    |                 |               ask again             |
 *	    +----- wait ------+---------- end of file --------------+
 */
#define CLUSTER_CLIENT_PRIVATE
#include "cluster_client.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static int connect_again(struct messenger *messenger, void *arg);

static int
send_packet(struct cluster_client *client, struct packet packet)
{
	packet.timeout = (uint32_t)client->options.response_timeout;
	if (packet.id == 0)
		packet.id = ++client->last_id;
	return cluster_connection_send(&client->connection, &packet, true);
}

/* ---- what the leader says ------------------------------------------------------ */

static int
register_again(struct messenger *messenger, void *arg)
{
	struct cluster_client *client = arg;

	(void)messenger;
	client->retry = 0;
	client->registration = ++client->last_id;
	if (client->connection.descriptor == -1 ||
	    send_packet(client, (struct packet){.type = PACKET_REGISTER_CHANNEL,
	                                        .id = client->registration,
	                                        .name = client->name,
	                                        .pid = (long)getpid()}) == -1)
		cluster_base_retry(client, register_again);
	return cluster_base_result(client);
}

static int
beat(struct messenger *messenger, void *arg)
{
	struct cluster_client *client = arg;

	(void)messenger;
	if (client->state == CLIENT_READY)
		send_packet(client, (struct packet){.type = PACKET_HEARTBEAT});
	return 0;
}

static const char *
on_registered(struct cluster_client *client, const struct packet *packet)
{
	if (packet->id != client->registration)
		return "gave an answer that nobody asked for";
	client->registration = 0;
	if (packet->success) {
		cluster_base_ready(client);
		return NULL;
	}
	cluster_base_not_ready(client, packet->data, packet->length);
	cluster_base_retry(client, register_again); /* D36: without an end */
	return NULL;
}

/* Nobody listens to it any more: then it crossed our unsubscribe. */
static const char *
on_value(struct cluster_client *client, const struct packet *packet)
{
	struct topic *topic = cluster_topic_find(client, packet->name);
	struct value *value;

	if (topic == NULL || !topic->subscribed)
		return NULL;
	value = cluster_value_new(packet->data, packet->length);
	if (value == NULL)
		return "sent a value that there is no memory for";
	cluster_value_drop(topic->value);
	topic->value = cluster_value_hold(value);
	cluster_base_deliver(client, topic, value, NULL);
	cluster_value_drop(value);
	return NULL;
}

static const char *
heard(struct connection *connection, const struct packet *packet)
{
	struct cluster_client *client = connection->client;
	struct pending *pending;

	switch (packet->type) {
	case PACKET_REGISTER_CHANNEL_RES:
		return on_registered(client, packet);
	case PACKET_SUBSCRIBE_RESULT:
		return on_value(client, packet);
	case PACKET_INVOKE_RESULT:
		pending = cluster_base_find_pending(client, packet->id);
		if (pending != NULL && pending->data == NULL) /* else it has timed out */
			cluster_base_settle(client, pending, packet->success, packet->data,
			                    packet->length);
		return NULL;
	case PACKET_HEARTBEAT_RES:
		return NULL;
	case PACKET_REGISTER_CHANNEL:
	case PACKET_SUBSCRIBE:
	case PACKET_UNSUBSCRIBE:
	case PACKET_PUBLISH:
	case PACKET_INVOKE:
	case PACKET_HEARTBEAT:
	case PACKET_TYPES:
		break;
	}
	return "sent a request that only a leader hears";
}

/* ---- connecting ---------------------------------------------------------------- */

static void
gone(struct connection *connection, const char *why)
{
	struct cluster_client *client = connection->client;

	if (why != NULL)
		cluster_base_log(client, "the leader", why, "connecting again");
	cluster_base_lost(client);
	cluster_base_retry(client, connect_again);
}

/* One end for us, one as the handle of a message to the agent. D33: nobody else
 * can have it. */
static int
make_pair(struct cluster_client *client)
{
	struct message message = {.action = client->action, .to = ROLE_AGENT};
	int pair[2], result, saved;

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == -1)
		return -1;
	if (cluster_connection_open(&client->connection, client->messenger, pair[0]) == -1) {
		saved = errno;
		close(pair[0]);
		close(pair[1]);
		errno = saved;
		return -1;
	}
	message.handle = pair[1];
	result = messenger_send_message(client->messenger, &message);
	close(pair[1]);
	if (result == -1)
		cluster_connection_close(&client->connection);
	return result;
}

/* egg: _connect, _registerChannel. What we say now waits in the socket. */
static int
connect_again(struct messenger *messenger, void *arg)
{
	struct cluster_client *client = arg;

	client->retry = 0;
	if (make_pair(client) == -1) {
		cluster_base_retry(client, connect_again);
		return 0;
	}
	return register_again(messenger, arg);
}

/* ---- the follower's side of the client ------------------------------------------- */

static int
subscribe(struct cluster_client *client, struct topic *topic)
{
	if (send_packet(client, (struct packet){.type = PACKET_SUBSCRIBE, .name = topic->key}) ==
	    -1)
		return -1;
	topic->subscribed = true;
	return 0;
}

static void
unsubscribe(struct cluster_client *client, struct topic *topic)
{
	topic->subscribed = false;
	cluster_value_drop(topic->value);
	topic->value = NULL;
	if (send_packet(client, (struct packet){.type = PACKET_UNSUBSCRIBE, .name = topic->key}) ==
	    -1)
		cluster_connection_doom(&client->connection, "does not read what it is sent");
}

static int
publish(struct cluster_client *client, struct topic *topic)
{
	return send_packet(client, (struct packet){.type = PACKET_PUBLISH,
	                                           .name = topic->key,
	                                           .data = topic->published->data,
	                                           .length = topic->published->length});
}

static int
invoke(struct cluster_client *client, struct pending *pending, const void *data, size_t length)
{
	return send_packet(client, (struct packet){.type = PACKET_INVOKE,
	                                           .id = pending->id,
	                                           .name = pending->method->name,
	                                           .oneway = pending->callback == NULL,
	                                           .data = data,
	                                           .length = length});
}

static void
flush(struct cluster_client *client)
{
	cluster_connection_flush(&client->connection);
}

static void
close_follower(struct cluster_client *client)
{
	cluster_connection_flush(&client->connection); /* a one-way call may just have been made */
	cluster_connection_close(&client->connection);
}

/* What a follower has heard last is true, even if not everybody hears everything. */
static bool
tells_late(const struct cluster_client *client)
{
	(void)client;
	return true;
}

static const struct client_side follower_side = {.subscribe = subscribe,
                                                 .unsubscribe = unsubscribe,
                                                 .publish = publish,
                                                 .invoke = invoke,
                                                 .flush = flush,
                                                 .close = close_follower,
                                                 .free = close_follower,
                                                 .tells_late = tells_late,
                                                 .calls_expire = true,
                                                 .keys_max = CLUSTER_CLIENT_KEYS_MAX};

struct cluster_client *
cluster_client_follower(struct messenger *app, const char *name, const struct real_client *real,
                        const struct cluster_client_options *options)
{
	struct cluster_client *client = cluster_base_new(app, name, real, options, &follower_side);

	if (client == NULL)
		return NULL;
	client->connection.heard = heard;
	client->connection.gone = gone;
	if (cluster_base_beat(client, beat) == -1) {
		cluster_base_free(client);
		return NULL;
	}
	connect_again(app, client);
	return client;
}
