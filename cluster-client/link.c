/*
 * One packet, and one end of a connection between a leader and a follower.
 *
 * egg: cluster-client/lib/protocol/packet.js, lib/connection.js
 *
 * The end is a messenger that is joined to the process's loop: framing, queues, partial reads
 * and the end of file are the core's. Whatever comes is checked before it is used: the other
 * end may be anybody.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#define CLUSTER_CLIENT_PRIVATE
#include "cluster_client.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#if CLUSTER_CLIENT_DATA_MAX > MESSAGE_DATA_MAX || CLUSTER_CLIENT_KEY_MAX >= MESSAGE_DATA_MAX
#error "a key, or a value, does not fit into a message"
#endif

static const struct {
	const char *action;
	bool has_name;
} packet_types[PACKET_TYPES] = {
	[PACKET_SUBSCRIBE_RESULT] = {"subscribe_result", true},
	[PACKET_INVOKE] = {"invoke", true},
	[PACKET_INVOKE_RESULT] = {"invoke_result", false},
	[PACKET_PUBLISH] = {"publish", true},
	[PACKET_SUBSCRIBE] = {"subscribe", true},
	[PACKET_UNSUBSCRIBE] = {"unSubscribe", true},
	[PACKET_REGISTER_CHANNEL] = {"register_channel", false},
	[PACKET_REGISTER_CHANNEL_RES] = {"register_channel_res", false},
	[PACKET_HEARTBEAT] = {"heartbeat", false},
	[PACKET_NAME] = {"name", false},
};

/* ---- errors ------------------------------------------------------------------ */

size_t
cluster_error_encode(char *data, const char *code, const char *message)
{
	size_t half = CLUSTER_ERROR_MAX / 2;

	snprintf(data, half, "%s", code != NULL ? code : "");
	half = strlen(data) + 1;
	snprintf(data + half, CLUSTER_ERROR_MAX - half, "%s", message != NULL ? message : "");
	return half + strlen(data + half);
}

struct cluster_error
cluster_error_decode(const char *data, size_t length)
{
	const char *end = length > 0 ? memchr(data, '\0', length) : NULL;

	if (end == NULL)
		return (struct cluster_error){"ClusterErrorUnknown",
		                              "an error that cannot be read"};
	return (struct cluster_error){data, end + 1};
}

/* ---- sending ----------------------------------------------------------------- */

struct message
cluster_link_compose(const struct packet *packet)
{
	static char buffer[MESSAGE_DATA_MAX];
	struct message message = {.action = packet_types[packet->type].action,
	                          .to = packet->failed ? PACKET_FAILED : ROLE_NONE,
	                          .receiver_pid = packet->id,
	                          .data = packet->data,
	                          .data_length = packet->length,
	                          .handle = -1};
	size_t name = packet->name != NULL ? strlen(packet->name) + 1 : 0;

	if (name + packet->length > sizeof buffer) {
		message.to = PACKET_NAMED_BEFORE;
	} else if (name > 0) {
		memcpy(buffer, packet->name, name);
		if (packet->length > 0)
			memcpy(buffer + name, packet->data, packet->length);
		message.data = buffer;
		message.data_length += name;
	}
	return message;
}

int
cluster_link_send(struct cluster_link *link, const struct packet *packet,
                  const struct message *composed)
{
	struct message name = {.action = "name", .data = packet->name, .handle = -1}, message;
	int result = 0;

	if (link->messenger == NULL)
		return 0; /* as if it ended a little later */
	if (composed == NULL) {
		message = cluster_link_compose(packet);
		composed = &message;
	}
	if (composed->to == PACKET_NAMED_BEFORE) {
		name.data_length = strlen(packet->name);
		result = messenger_send_message(link->messenger, &name);
	}
	if (result == 0)
		result = messenger_send_message(link->messenger, composed);
	return result == -1 && errno == EPIPE ? 0 : result; /* the end is read soon */
}

/* ---- hearing ----------------------------------------------------------------- */

/* What is wrong with the message, or NULL. `before` is the name that came before it. */
static const char *
read_packet(struct packet *packet, const struct message *message, const char *before)
{
	size_t length = message->data_length, most = CLUSTER_CLIENT_KEY_MAX + 1;
	const char *end;
	int type = 0;

	while (type < PACKET_TYPES && strcmp(packet_types[type].action, message->action) != 0)
		type++;
	if (type == PACKET_TYPES)
		return "sent a packet of an unknown type";
	*packet = (struct packet){.type = (enum packet_type)type,
	                          .id = message->receiver_pid,
	                          .data = message->data != NULL ? message->data : "",
	                          .length = length,
	                          .failed = message->to == PACKET_FAILED};
	if (packet_types[type].has_name && message->to == PACKET_NAMED_BEFORE) {
		packet->name = before;
	} else if (packet_types[type].has_name) {
		end = memchr(packet->data, '\0', length < most ? length : most);
		if (end != NULL) {
			packet->name = packet->data;
			packet->data = end + 1;
			packet->length -= (size_t)(packet->data - packet->name);
		}
	}
	if (packet_types[type].has_name && (packet->name == NULL || packet->name[0] == '\0'))
		return "sent a name that is missing or too long";
	return packet->length > CLUSTER_CLIENT_DATA_MAX ? "sent data that is too long"
	                                                : NULL; /* D34 */
}

/* A name that comes before its packet. */
static const char *
keep_name(struct cluster_link *link, const struct packet *packet)
{
	if (packet->length == 0 || packet->length > CLUSTER_CLIENT_KEY_MAX)
		return "sent a name that is missing or too long";
	link->name = strdup(packet->data);
	return link->name == NULL ? "sent a packet that there is no memory for" : NULL;
}

/* A callback may close the link, and the client: the client is freed in a later turn. */
static int
on_message(struct messenger *messenger, const struct message *message, void *arg)
{
	struct cluster_link *link = arg;
	struct cluster_client *client = link->client;
	char *before = link->name;
	struct packet packet;
	const char *why = read_packet(&packet, message, before);

	(void)messenger;
	link->name = NULL;
	if (why == NULL && packet.type == PACKET_NAME)
		why = keep_name(link, &packet);
	else if (why == NULL)
		why = link->heard(link, &packet);
	free(before);
	if (why != NULL && link->messenger != NULL) {
		cluster_link_close(link);
		link->ended(link, why);
	}
	return cluster_base_result(client);
}

static int
on_end(struct messenger *messenger, int error, void *arg)
{
	struct cluster_link *link = arg;
	struct cluster_client *client = link->client;

	(void)messenger;
	cluster_link_close(link);
	link->ended(link, error != 0 ? "broke the protocol" : NULL);
	return cluster_base_result(client);
}

/* ---- one end ------------------------------------------------------------------- */

int
cluster_link_open(struct cluster_link *link, int descriptor)
{
	struct messenger *process = link->client->messenger;
	struct messenger *messenger = messenger_open(descriptor, messenger_role(process));

	if (messenger == NULL) {
		close(descriptor);
		return -1;
	}
	if (messenger_join(messenger, process, on_end, link) == -1 ||
	    messenger_on(messenger, NULL, on_message, link) == -1) {
		messenger_close(messenger);
		return -1;
	}
	link->messenger = messenger;
	return 0;
}

void
cluster_link_close(struct cluster_link *link)
{
	messenger_close(link->messenger);
	link->messenger = NULL;
	free(link->name);
	link->name = NULL;
}
