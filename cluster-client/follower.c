/*
 * The way to the leader. It is the same for the user of an app's client and for the user of
 * the agent's: only how the other end of the pair comes to the leader is different.
 *
 * egg: cluster-client/lib/follower.js, lib/wrapper/cluster.js
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
#include "cluster_client.h"

#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

/* In the agent the leader is at hand; what it answers comes over the pair. */
int
cluster_follower_say(struct cluster_client *client, const struct packet *packet)
{
	if (client->leader != NULL)
		return cluster_leader_hear(client, packet);
	return cluster_link_send(&client->link, packet, NULL);
}

/* ---- what the leader says ------------------------------------------------------ */

/* The agent's own calls have no timeout: it asks no leader. */
static int
register_again(struct messenger *messenger, void *arg)
{
	struct cluster_client *client = arg;
	int timeout = client->leader != NULL ? 0 : client->options.response_timeout;
	struct packet packet = {.type = PACKET_REGISTER_CHANNEL};
	char text[48];

	client->retry.timer = 0;
	packet.length = (size_t)snprintf(text, sizeof text, "%ld %d",
	                                 (long)messenger_pid(messenger), timeout);
	packet.data = text;
	client->registering = true;
	if (cluster_follower_say(client, &packet) == -1)
		cluster_base_retry(client, &client->retry, register_again);
	return cluster_base_result(client);
}

static int
beat(struct messenger *messenger, void *arg)
{
	struct cluster_client *client = arg;

	(void)messenger;
	cluster_follower_say(client, &(struct packet){.type = PACKET_HEARTBEAT});
	return 0;
}

static const char *
on_registered(struct cluster_client *client, const struct packet *packet)
{
	struct cluster_error error;

	if (!client->registering)
		return "gave an answer that nobody asked for";
	client->registering = false;
	if (!packet->failed) {
		cluster_base_ready(client);
		return NULL;
	}
	error = cluster_error_decode(packet->data, packet->length);
	cluster_base_not_ready(client, &error);
	cluster_base_retry(client, &client->retry, register_again); /* D36: without an end */
	return NULL;
}

static const char *
heard(struct cluster_link *link, const struct packet *packet)
{
	struct cluster_client *client = link->client;

	if (packet->type == PACKET_SUBSCRIBE_RESULT)
		cluster_base_on_value(client, packet);
	else if (packet->type == PACKET_INVOKE_RESULT)
		cluster_base_on_answer(client, packet);
	else
		return packet->type == PACKET_REGISTER_CHANNEL_RES
		               ? on_registered(client, packet)
		               : "sent a request that only a leader hears";
	return NULL;
}

/* ---- connecting ---------------------------------------------------------------- */

static void
ended(struct cluster_link *link, const char *why)
{
	struct cluster_client *client = link->client;

	if (why != NULL)
		cluster_base_log(client, "the leader", why, "connecting again");
	client->registering = false;
	cluster_base_lost(client);
	cluster_base_retry(client, &client->retry, cluster_follower_connect);
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
	int i, pair[2], size = CHANNEL_SOCKET_BUFFER;

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == -1)
		return -1;
	for (i = 0; i < 2 && size > 0; i++) /* a smaller buffer is slower, not wrong */
		setsockopt(pair[i], SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
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
int
cluster_follower_connect(struct messenger *messenger, void *arg)
{
	struct cluster_client *client = arg;

	client->retry.timer = 0;
	client->link.heard = heard;
	client->link.ended = ended;
	if (make_pair(client) == 0)
		return register_again(messenger, arg);
	cluster_base_retry(client, &client->retry, cluster_follower_connect);
	return 0;
}

struct cluster_client *
cluster_client_follower(struct messenger *app, const char *name, const struct real_client *real,
                        const struct cluster_client_options *options)
{
	struct cluster_client *client = cluster_base_new(app, name, real, options, beat);

	if (client != NULL)
		cluster_follower_connect(app, client);
	return client;
}
