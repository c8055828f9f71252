/*
 * One packet, and one end of a connection between a leader and a follower.
 *
 * egg: cluster-client/lib/protocol/packet.js, lib/connection.js
 *
 * Both ends are watched by the loop of their process. Whatever comes is checked
 * before it is used: the other end may be anybody.
 */
#define CLUSTER_CLIENT_PRIVATE
#include "cluster_client.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#ifndef MSG_NOSIGNAL /* not every system has it */
#define MSG_NOSIGNAL 0
#endif

/* Read up to this many bytes at once. */
#define READ_SIZE (64 * 1024)

/* With this many bytes to be written, no more are collected. */
#define FLUSH_SIZE (64 * 1024)

/* Whoever holds a copy of our end can clear its O_NONBLOCK; this is per call. It
 * came to POSIX after 2008. */
#ifndef MSG_DONTWAIT
#define MSG_DONTWAIT 0
#endif

enum { VERSION = 1, REQUEST = 0, RESPONSE = 1 };

static const struct {
	const char *type;
	const char *name; /* the field that names what it is about, or NULL */
	int kind;
} packet_types[PACKET_TYPES] = {
	[PACKET_REGISTER_CHANNEL] = {"register_channel", "channelName", REQUEST},
	[PACKET_REGISTER_CHANNEL_RES] = {"register_channel_res", NULL, RESPONSE},
	[PACKET_SUBSCRIBE] = {"subscribe", "key", REQUEST},
	[PACKET_UNSUBSCRIBE] = {"unSubscribe", "key", REQUEST},
	[PACKET_SUBSCRIBE_RESULT] = {"subscribe_result", "key", REQUEST},
	[PACKET_PUBLISH] = {"publish", "key", REQUEST},
	[PACKET_INVOKE] = {"invoke", "method", REQUEST},
	[PACKET_INVOKE_RESULT] = {"invoke_result", NULL, RESPONSE},
	[PACKET_HEARTBEAT] = {"heartbeat", NULL, REQUEST},
	[PACKET_HEARTBEAT_RES] = {"heartbeat_res", NULL, RESPONSE},
};

/* ---- flat JSON: what a connection object and an error are ------------------ */

enum { FIELDS_MAX = 8 };

struct fields {
	size_t count;
	struct {
		const char *name, *value; /* a string is decoded; true, false, 12 as they stand */
	} list[FIELDS_MAX];
};

/* `end` leaves room for one more character; a text that is too long is cut. */
static char *
put_string(char *to, const char *end, const char *text)
{
	static const char digits[] = "0123456789abcdef";
	unsigned char c;

	*to++ = '"';
	for (; *text != '\0' && end - to > 6; text++) {
		c = (unsigned char)*text;
		if (c < 0x20) {
			memcpy(to, "\\u00", 4);
			to[4] = digits[c >> 4];
			to[5] = digits[c & 15];
			to += 6;
			continue;
		}
		if (c == '"' || c == '\\')
			*to++ = '\\';
		*to++ = (char)c;
	}
	*to++ = '"';
	return to;
}

static char *
put_text(char *to, const char *text)
{
	size_t length = strlen(text);

	memcpy(to, text, length);
	return to + length;
}

static int
hex_digit(char c)
{
	return isdigit((unsigned char)c) ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* One character of a string, at *at; -1: it is none that put_string writes. */
static int
read_character(char **at, const char *end)
{
	char *from = *at;
	int high, low;

	if ((unsigned char)*from < 0x20)
		return -1;
	if (*from != '\\') {
		*at = from + 1;
		return (unsigned char)*from;
	}
	if (end - from > 1 && (from[1] == '"' || from[1] == '\\')) {
		*at = from + 2;
		return from[1];
	}
	if (end - from < 6 || memcmp(from, "\\u00", 4) != 0)
		return -1;
	high = hex_digit(from[4]);
	low = hex_digit(from[5]);
	*at = from + 6;
	return high < 0 || high > 1 || low < 0 || high + low == 0 ? -1 : 16 * high + low;
}

/* A string, decoded in place; NULL: it is none. */
static char *
read_string(char **at, const char *end)
{
	char *from, *start, *to;
	int c;

	if (*at == end || **at != '"')
		return NULL;
	start = to = from = *at + 1;
	while (from < end && *from != '"') {
		c = read_character(&from, end);
		if (c == -1)
			return NULL;
		*to++ = (char)c;
	}
	if (from == end)
		return NULL;
	*to = '\0';
	*at = from + 1;
	return start;
}

/* true, false or digits: it ends where the next character is no part of it. */
static char *
read_bare(char **at, const char *end)
{
	char *start = *at;

	while (*at < end && isalnum((unsigned char)**at))
		++*at;
	return *at > start ? start : NULL;
}

/* {"name":"text","name":true,"name":12}, without a blank, as it is written below. */
static bool
read_fields(struct fields *fields, char *at, const char *end)
{
	const char *name, *value;
	char next;

	fields->count = 0;
	if (at == end || *at++ != '{')
		return false;
	do {
		name = read_string(&at, end);
		if (name == NULL || at == end || *at++ != ':' || fields->count == FIELDS_MAX)
			return false;
		value = at < end && *at == '"' ? read_string(&at, end) : read_bare(&at, end);
		if (value == NULL || at == end)
			return false;
		next = *at;
		*at++ = '\0';
		fields->list[fields->count].name = name;
		fields->list[fields->count++].value = value;
	} while (next == ',');
	return next == '}' && at == end;
}

static const char *
field(const struct fields *fields, const char *name)
{
	size_t i;

	for (i = 0; i < fields->count; i++)
		if (strcmp(fields->list[i].name, name) == 0)
			return fields->list[i].value;
	return NULL;
}

static bool
is_true(const struct fields *fields, const char *name)
{
	const char *value = field(fields, name);

	return value != NULL && strcmp(value, "true") == 0;
}

size_t
cluster_error_encode(char *data, const char *code, const char *message)
{
	const char *end = data + (ERROR_DATA_MAX - 2);
	char *to = put_text(data, "{\"code\":");

	to = put_string(to, data + ERROR_DATA_MAX / 2, code != NULL ? code : "");
	to = put_text(to, ",\"message\":");
	to = put_string(to, end, message != NULL ? message : "");
	*to++ = '}';
	return (size_t)(to - data);
}

struct cluster_error
cluster_error_decode(char *copy, const char *data, size_t length)
{
	struct cluster_error error = {"ClusterErrorUnknown", "an error that cannot be read"};
	struct fields fields;

	if (length > ERROR_DATA_MAX)
		return error;
	memcpy(copy, data, length);
	if (!read_fields(&fields, copy, copy + length))
		return error;
	if (field(&fields, "code") != NULL && field(&fields, "message") != NULL) {
		error.code = field(&fields, "code");
		error.message = field(&fields, "message");
	}
	return error;
}

/* ---- packets ---------------------------------------------------------------- */

static void
put_number(char *to, uint64_t number, int bytes)
{
	while (bytes-- > 0) {
		to[bytes] = (char)(number & 255);
		number >>= 8;
	}
}

static uint64_t
get_number(const char *from, int bytes)
{
	uint64_t number = 0;

	while (bytes-- > 0)
		number = number << 8 | (unsigned char)*from++;
	return number;
}

/* egg: new Packet().encode(). The size; there is room for the largest. */
static size_t
packet_encode(char *to, const struct packet *packet)
{
	char *at = to + PACKET_HEADER;
	const char *end = at + PACKET_OBJECT_MAX;
	int i;
	char digits[24];
	long pid = packet->pid;

	at = put_text(at, "{\"type\":\"");
	at = put_text(at, packet_types[packet->type].type);
	*at++ = '"';
	if (packet_types[packet->type].name != NULL) {
		at = put_text(at, ",\"");
		at = put_text(at, packet_types[packet->type].name);
		at = put_text(at, "\":");
		at = put_string(at, end, packet->name);
	}
	if (packet->oneway)
		at = put_text(at, ",\"oneway\":true");
	if (packet_types[packet->type].kind == RESPONSE)
		at = put_text(at, packet->success ? ",\"success\":true" : ",\"success\":false");
	if (pid > 0) {
		at = put_text(at, ",\"pid\":");
		for (i = 0; pid > 0; pid /= 10)
			digits[i++] = (char)('0' + pid % 10);
		while (i > 0)
			*at++ = digits[--i];
	}
	*at++ = '}';
	to[PACKET_VERSION] = VERSION;
	to[PACKET_KIND] = (char)packet_types[packet->type].kind;
	put_number(to + PACKET_RESERVED, 0, 2);
	put_number(to + PACKET_ID, packet->id, 8);
	put_number(to + PACKET_TIMEOUT, packet->timeout, 4);
	put_number(to + PACKET_OBJECT_LENGTH, (uint64_t)(at - to - PACKET_HEADER), 4);
	put_number(to + PACKET_DATA_LENGTH, packet->length, 4);
	if (packet->length > 0)
		memcpy(at, packet->data, packet->length);
	return (size_t)(at - to) + packet->length;
}

/* What is wrong with a header, or NULL. D34: it says how much memory is wanted. */
static const char *
check_header(const char *from)
{
	if (from[PACKET_VERSION] != VERSION)
		return "sent a packet of another version";
	if (from[PACKET_KIND] != REQUEST && from[PACKET_KIND] != RESPONSE)
		return "sent what is neither a request nor a response";
	if (get_number(from + PACKET_RESERVED, 2) != 0)
		return "sent reserved bytes that are not 0";
	if (get_number(from + PACKET_OBJECT_LENGTH, 4) > PACKET_OBJECT_MAX)
		return "announced a connection object that is too long";
	if (get_number(from + PACKET_DATA_LENGTH, 4) > CLUSTER_CLIENT_DATA_MAX)
		return "announced data that is too long";
	return NULL;
}

/* The size of the packet that so begins: of its header, while that is not here. */
static size_t
packet_size(const char *from, size_t length)
{
	if (length < PACKET_HEADER)
		return PACKET_HEADER;
	return (size_t)PACKET_HEADER + get_number(from + PACKET_OBJECT_LENGTH, 4) +
	       get_number(from + PACKET_DATA_LENGTH, 4);
}

/* Decode a whole packet in place. What is wrong with it, or NULL. */
static const char *
packet_decode(struct packet *packet, char *from)
{
	char *object = from + PACKET_HEADER;
	const char *type, *pid;
	struct fields fields;
	int i;

	memset(packet, 0, sizeof *packet);
	packet->id = get_number(from + PACKET_ID, 8);
	packet->timeout = (uint32_t)get_number(from + PACKET_TIMEOUT, 4);
	packet->data = object + get_number(from + PACKET_OBJECT_LENGTH, 4);
	packet->length = get_number(from + PACKET_DATA_LENGTH, 4);
	if (!read_fields(&fields, object, packet->data))
		return "sent a connection object that cannot be read";
	type = field(&fields, "type");
	for (i = 0; type != NULL && i < PACKET_TYPES; i++)
		if (strcmp(type, packet_types[i].type) == 0)
			break;
	if (type == NULL || i == PACKET_TYPES || packet_types[i].kind != from[PACKET_KIND])
		return "sent a packet of an unknown type";
	packet->type = (enum packet_type)i;
	if (packet_types[i].name != NULL) {
		packet->name = field(&fields, packet_types[i].name);
		if (packet->name == NULL || packet->name[0] == '\0' ||
		    strlen(packet->name) > CLUSTER_CLIENT_KEY_MAX)
			return "sent a name that is missing or too long";
	}
	packet->oneway = is_true(&fields, "oneway");
	packet->success = is_true(&fields, "success");
	pid = field(&fields, "pid");
	packet->pid = pid != NULL ? strtol(pid, NULL, 10) : 0;
	return NULL;
}

/* ---- writing ---------------------------------------------------------------- */

size_t
cluster_connection_pending(const struct connection *connection)
{
	return connection->out_end - connection->out_start;
}

/* Watch for what there is to do; the descriptor is watched, so this cannot fail. */
static int on_event(struct messenger *messenger, int descriptor, short revents, void *arg);

static void
watch(struct connection *connection)
{
	short events = cluster_connection_pending(connection) > 0 ? POLLIN | POLLOUT : POLLIN;

	if (events != connection->events)
		messenger_watch(connection->messenger, connection->descriptor, events, on_event,
		                connection);
	connection->events = events;
}

static void
forget_written(struct connection *connection)
{
	connection->out_start = connection->out_end = 0;
	if (connection->out_size <= FLUSH_SIZE)
		return;
	free(connection->out);
	connection->out = NULL;
	connection->out_size = 0;
}

void
cluster_connection_flush(struct connection *connection)
{
	ssize_t count;

	if (connection->descriptor == -1)
		return;
	while (cluster_connection_pending(connection) > 0) {
		count = send(connection->descriptor, connection->out + connection->out_start,
		             cluster_connection_pending(connection), MSG_NOSIGNAL | MSG_DONTWAIT);
		if (count == -1 && errno == EINTR)
			continue;
		if (count == -1 && (errno == EAGAIN || errno == EWOULDBLOCK))
			break;
		if (count == -1) /* dead: that shows when it is read */
			connection->out_start = connection->out_end;
		else
			connection->out_start += (size_t)count;
	}
	if (cluster_connection_pending(connection) == 0)
		forget_written(connection);
	watch(connection);
}

/* Room for so many bytes behind those that wait. */
static char *
reserve(struct connection *connection, size_t size)
{
	size_t pending = cluster_connection_pending(connection), wanted = connection->out_size;
	char *grown;

	if (connection->out_size - connection->out_end >= size)
		return connection->out + connection->out_end;
	if (pending > 0)
		memmove(connection->out, connection->out + connection->out_start, pending);
	connection->out_start = 0;
	connection->out_end = pending;
	while (wanted < pending + size)
		wanted = wanted > 0 ? 2 * wanted : 8192;
	if (wanted > connection->out_size) {
		grown = realloc(connection->out, wanted);
		if (grown == NULL)
			return NULL;
		connection->out = grown;
		connection->out_size = wanted;
	}
	return connection->out + pending;
}

int
cluster_connection_send(struct connection *connection, const struct packet *packet, bool at_once)
{
	size_t most = PACKET_HEADER + PACKET_OBJECT_MAX + packet->length;
	size_t pending = cluster_connection_pending(connection);
	char *room;

	if (connection->descriptor == -1 || connection->doom != NULL)
		return 0; /* as if it died a little later */
	if (pending > 0 && pending + most > CLUSTER_CLIENT_QUEUE_MAX) {
		cluster_connection_flush(connection);
		if (cluster_connection_pending(connection) + most > CLUSTER_CLIENT_QUEUE_MAX) {
			errno = ENOBUFS;
			return -1;
		}
	}
	room = reserve(connection, most);
	if (room == NULL)
		return -1;
	connection->out_end += packet_encode(room, packet);
	/* not at every packet while the socket is full: each would be in vain */
	if ((connection->events & POLLOUT) == 0 &&
	    ((at_once && !connection->reading) ||
	     cluster_connection_pending(connection) >= FLUSH_SIZE))
		cluster_connection_flush(connection);
	return 0;
}

/* ---- reading ---------------------------------------------------------------- */

/* Take the packets out of what came; how many bytes that was. *why: what is
 * wrong with the next one. bytes[length] is ours, too. */
static size_t
take_packets(struct connection *connection, char *bytes, size_t length, const char **why)
{
	struct packet packet;
	size_t at = 0, size;
	char next;

	while (*why == NULL && length - at >= PACKET_HEADER) {
		*why = check_header(bytes + at);
		size = packet_size(bytes + at, length - at);
		if (*why != NULL || length - at < size)
			break;
		*why = packet_decode(&packet, bytes + at);
		at += size;
		next = bytes[at]; /* the data ends with a 0, where the next packet begins */
		bytes[at] = '\0';
		if (*why == NULL)
			*why = connection->heard(connection, &packet);
		bytes[at] = next;
		if (connection->descriptor == -1)
			return length; /* somebody was called back, and closed the client */
	}
	return at;
}

/* Keep the beginning of a packet, with room for all of it. */
static bool
keep_torn(struct connection *connection, const char *bytes, size_t length)
{
	size_t size = packet_size(bytes, length);
	char *grown = realloc(connection->in, size + 1);

	if (grown == NULL)
		return false;
	if (connection->in == NULL)
		memcpy(grown, bytes, length);
	connection->in = grown;
	connection->in_length = length;
	connection->in_size = size;
	return true;
}

/* Read once; false: it has ended, and *why says what was wrong, if anything was. */
static bool
read_once(struct connection *connection, const char **why)
{
	static char shared[READ_SIZE + 1]; /* nobody reads while it is being taken out */
	bool torn = connection->in != NULL;
	char *bytes = torn ? connection->in : shared;
	size_t length = torn ? connection->in_length : 0;
	size_t room = torn ? connection->in_size - length : READ_SIZE, taken;
	ssize_t count = recv(connection->descriptor, bytes + length, room, MSG_DONTWAIT);

	if (count == -1)
		return errno == EINTR || errno == EAGAIN || errno == EWOULDBLOCK;
	if (count == 0)
		return false;
	length += (size_t)count;
	taken = take_packets(connection, bytes, length, why);
	if (*why != NULL || connection->descriptor == -1)
		return *why == NULL;
	if (taken < length && !keep_torn(connection, bytes + taken, length - taken)) {
		*why = "sent a packet that there is no memory for";
		return false;
	}
	if (torn && taken == length) {
		free(connection->in);
		connection->in = NULL;
	}
	return true;
}

static int
on_event(struct messenger *messenger, int descriptor, short revents, void *arg)
{
	struct connection *connection = arg;
	struct cluster_client *client = connection->client;
	const char *why = connection->doom;
	bool alive = why == NULL;

	(void)messenger, (void)descriptor;
	if (alive && (revents & ~POLLOUT) != 0) {
		connection->reading = true;
		alive = read_once(connection, &why);
		connection->reading = false;
	}
	if (connection->descriptor == -1)
		return cluster_base_result(client);
	if (alive) {
		cluster_connection_flush(connection);
	} else {
		cluster_connection_close(connection);
		connection->gone(connection, why);
	}
	return cluster_base_result(client);
}

/* ---- one end ------------------------------------------------------------------ */

int
cluster_connection_open(struct connection *connection, struct messenger *messenger, int descriptor)
{
	if (fcntl(descriptor, F_SETFL, O_NONBLOCK) == -1 ||
	    fcntl(descriptor, F_SETFD, FD_CLOEXEC) == -1 ||
	    messenger_watch(messenger, descriptor, POLLIN, on_event, connection) == -1)
		return -1;
	connection->messenger = messenger;
	connection->descriptor = descriptor;
	connection->events = POLLIN;
	return 0;
}

void
cluster_connection_close(struct connection *connection)
{
	if (connection->descriptor != -1) {
		messenger_unwatch(connection->messenger, connection->descriptor);
		close(connection->descriptor);
	}
	connection->descriptor = -1;
	connection->doom = NULL;
	/* a packet that is just being heard may stand in `in` */
	if (!connection->reading) {
		free(connection->in);
		connection->in = NULL;
	}
	free(connection->out);
	connection->out = NULL;
	connection->out_start = connection->out_end = connection->out_size = 0;
}

void
cluster_connection_doom(struct connection *connection, const char *why)
{
	if (connection->descriptor == -1 || connection->doom != NULL)
		return;
	connection->doom = why;
	shutdown(connection->descriptor, SHUT_RDWR); /* the loop finds it readable */
}
