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
#include <string.h>
#include <unistd.h>

#if CLUSTER_CLIENT_DATA_MAX > MESSAGE_DATA_MAX || CLUSTER_CLIENT_KEY_MAX >= MESSAGE_DATA_MAX
#error "a key, or a value, does not fit into a message"
#endif

/* ---- sending ----------------------------------------------------------------- */

struct message
cluster_link_compose(const struct packet *packet)
{
	static char buffer[MESSAGE_DATA_MAX];
	struct message message = {.action = packet->action,
	                          .to = packet->failed ? PACKET_FAILED : ROLE_NONE,
	                          .receiver_pid = packet->id,
	                          .data = packet->data,
	                          .data_length = packet->length,
	                          .handle = -1};
	size_t name = packet->name != NULL ? strlen(packet->name) + 1 : 0;

	if (name + packet->length > MESSAGE_DATA_MAX) {
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
cluster_link_send(struct cluster_link *link, const char *name, const struct message *message)
{
	int result = 0;

	if (link->messenger == NULL)
		return 0; /* as if it ended a little later */
	if (message->to == PACKET_NAMED_BEFORE)
		result = messenger_send_message(link->messenger,
		                                &(struct message){.action = "name",
		                                                  .data = name,
		                                                  .data_length = strlen(name),
		                                                  .handle = -1});
	if (result == 0)
		result = messenger_send_message(link->messenger, message);
	return result == -1 && errno == EPIPE ? 0 : result; /* the end is read soon */
}

int
cluster_link_say(struct cluster_link *link, const struct packet *packet)
{
	struct message message = cluster_link_compose(packet);

	return cluster_link_send(link, packet->name, &message);
}

/* ---- hearing ----------------------------------------------------------------- */

const struct packet_type *
cluster_link_find(const struct packet_type *types, const char *action)
{
	while (types->action != NULL && strcmp(types->action, action) != 0)
		types++;
	return types->action != NULL ? types : NULL;
}

/* What is wrong with the message, or NULL. Of names only an error's code may be empty. */
static const char *
read_packet(struct packet *packet, const struct packet_type *type, const struct message *message,
            const char *before)
{
	size_t length = message->data_length, most = CLUSTER_CLIENT_KEY_MAX + 1;
	bool failed = message->to == PACKET_FAILED;
	const char *end = NULL;

	*packet = (struct packet){.action = message->action,
	                          .id = message->receiver_pid,
	                          .data = message->data != NULL ? message->data : "",
	                          .length = length,
	                          .failed = failed};
	if (message->to == PACKET_NAMED_BEFORE) {
		packet->name = before;
	} else if (type->has_name || failed) {
		end = memchr(packet->data, '\0', length < most ? length : most);
		packet->name = end != NULL ? packet->data : "";
	}
	if (end != NULL) {
		packet->data = end + 1;
		packet->length -= (size_t)(packet->data - packet->name);
	}
	if (failed ? end == NULL : type->has_name && packet->name[0] == '\0')
		return "sent a name that is missing or too long";
	return packet->length > CLUSTER_CLIENT_DATA_MAX ? "sent data that is too long"
	                                                : NULL; /* D34 */
}

/* A name that comes before its packet. */
static const char *
keep_name(struct cluster_link *link, const struct message *message)
{
	if (message->data_length == 0 || message->data_length >= sizeof link->name)
		return "sent a name that is missing or too long";
	memcpy(link->name, message->data, message->data_length + 1);
	return NULL;
}

static const char *
hear(struct cluster_link *link, const struct message *message)
{
	const struct packet_type *type = cluster_link_find(link->types, message->action);
	struct packet packet;
	const char *why;

	if (type == NULL)
		return strcmp(message->action, "name") == 0 ? keep_name(link, message)
		                                            : "sent a packet of an unknown type";
	why = read_packet(&packet, type, message, link->name);
	if (why == NULL && !link->registered && !type->early)
		return "spoke before it was registered";
	if (why == NULL && type->heard != NULL)
		why = type->heard(link, &packet);
	link->name[0] = '\0';
	/* cppcheck-suppress returnDanglingLifetime ; it is a string literal */
	return why;
}

/* A callback may close the link, and the client: the client is freed in a later turn. */
static int
on_message(struct messenger *messenger, const struct message *message, void *arg)
{
	struct cluster_link *link = arg;
	struct cluster_client *client = link->client;
	const char *why;

	(void)messenger;
	if (client->options.heartbeat_interval > 0)
		link->heard_at = clutch_now();
	why = hear(link, message);
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
	link->name[0] = '\0';
	link->registered = false;
	return 0;
}

void
cluster_link_close(struct cluster_link *link)
{
	messenger_close(link->messenger);
	link->messenger = NULL;
}
