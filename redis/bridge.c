/*
 * A bridge between clusters: see bridge.h.
 *
 * A message is one text, which no process between its sender and its receivers changes:
 *
 *	{"id":"8c5f...-7","from":"A","to":"","action":"refresh","data":...}
 *
 * A batch is several messages, each behind its length: [68,{...},71,{...}]. In Redis:
 *
 *	PUBLISH  clutch:CHANNEL            batch     to all clusters
 *	PUBLISH  clutch:CHANNEL"CLUSTER"   batch     to one (no name has a quote in it)
 *	XADD     clutch:CHANNEL:stream     batch     to all and to some
 *
 * The messages between app and agent; each action ends with ":CHANNEL":
 *
 *	app                                     agent
 *	 | -- bridge-hello   pid --------------> |  at each egg-pids: I am here
 *	 | <- bridge-ready   epoch ------------- |  Redis takes messages: send what waits
 *	 | -- bridge-publish message ----------> |  PUBLISH, with the others of this turn
 *	 | -- bridge-send    [number,pid,batch] > |  XADD
 *	 | <- bridge-done    number ------------ |  Redis has the batch: send the next one
 *	 | <- bridge-message [mark,0,batch] ---- |  an agent has sent it; with a mark:
 *	 | -- bridge-heard   [mark,pid,[]] ----> |  XACK
 *
 * A reliable message stays with its sender until it is done, and a batch is sent when the
 * one before it is done, so that the order is kept. When Redis does not take a message, the
 * agent takes no other until Redis is back. Then it announces a new epoch, and every sender
 * begins again with the first message that is not done.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "bridge.h"
#include "redis.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* How long to wait before the next try, in ms: after a queue was full, and after Redis
 * has refused. */
#define SOON 100
#define LATER 1000

/* The most bytes of a message without its data; and of what stands before a batch. */
#define ENVELOPE_MAX (4 * BRIDGE_NAME_MAX + 64)
#define HEAD_MAX 48

#if BRIDGE_DATA_MAX + 4 * BRIDGE_NAME_MAX + 64 + 2 * 48 > MESSAGE_DATA_MAX
#error "BRIDGE_DATA_MAX is too large: the bridge's own text does not fit in a message"
#endif

/* The most apps that listen at once: in a reload, an old and a new one for each worker. */
#define OWING_MAX ((size_t)2 * CLUTCH_WORKERS_MAX)

/* An entry's id in a stream: two numbers of 64 bits, a dash, and the '\0'. */
#define STREAM_ID_MAX 48

/* The messages between app and agent; and egg-pids, which tells both of the apps. */
enum action { HELLO, READY, PUBLISH, SEND, DONE, MESSAGE, HEARD, PIDS, ACTIONS };

/* A reliable message that may not have reached Redis. */
struct outgoing {
	struct outgoing *next;
	size_t size;
	char text[];
};

/* The batch begins at text[HEAD_MAX], and is always whole. */
struct batch {
	size_t length, count;
	char text[MESSAGE_DATA_MAX];
};

/* What is to be read: a batch or one message, and what stood before it. */
struct reading {
	const char *at, *end;
	uint64_t number;
	pid_t pid;
};

/* A message between app and agent, and its listener. */
struct hearing {
	struct bridge *bridge;
	int (*hear)(struct bridge *bridge, struct reading *reading);
	char action[BRIDGE_NAME_MAX + 32];
};

struct listener {
	struct listener *next;
	bridge_listener call;
	void *arg;
	size_t number; /* the n-th that was added, from 1 */
	char action[]; /* "": every action */
};

/* A batch on its way to Redis. */
struct flight {
	struct bridge *bridge;
	size_t count;    /* published: its messages */
	pid_t sender;    /* reliable: the process (0: published), */
	uint64_t number; /* and its number for the batch */
};

struct bridge {
	struct messenger *messenger;
	char channel[BRIDGE_NAME_MAX + 1], cluster[BRIDGE_NAME_MAX + 1];
	struct hearing hearing[ACTIONS];
	int timeout; /* for Redis to answer */
	int timer;   /* for `retry`; 0: none */
	int64_t timer_due;

	/* both: what this process sends */
	uint64_t count;
	struct outgoing *first, **last;
	size_t waiting, waiting_bytes;
	uint64_t number; /* of the last batch, and how many of its messages are not done */
	size_t sent;
	uint64_t epoch; /* 0: nothing may be sent */
	char token[17]; /* its ids begin with it */

	/* app: what it hears */
	bool silent; /* the agent has not been told of this app */
	struct listener *listeners;
	size_t listener_count;

	/* agent: to Redis */
	struct redis *commands, *ear, *reader;
	const char *channels[3]; /* of the ear: key, own_key */
	char key[BRIDGE_NAME_MAX + 16], own_key[2 * BRIDGE_NAME_MAX + 24];
	char stream[BRIDGE_NAME_MAX + 24];
	struct batch published;       /* in this turn, */
	char to[BRIDGE_NAME_MAX + 1]; /* for this cluster */
	bool flushing;                /* at the end of this turn */
	uint64_t last_epoch;
	size_t lost; /* published messages, since the last line about them */
	char last_line[400], last_of_redis[400];

	/* agent: from the stream to the apps */
	bool joined, reading;
	bool has_joined; /* ever */
	bool again;      /* read first what was not acknowledged */
	bool refused;    /* do not read before `retry` */
	size_t ask;      /* how many entries are read at once: not many if they are large */
	char ids[BRIDGE_BATCH][STREAM_ID_MAX]; /* sent to the apps, not acknowledged */
	size_t id_count;
	uint64_t mark;
	bool heard; /* an app has answered the mark */
	int64_t marked_at;
	pid_t owing[OWING_MAX]; /* the apps that have not answered it */
	size_t owing_count;
};

/* ---- odds and ends ----------------------------------------------------------------- */

/* One line, unless it is the same as the line before it. */
static void say(struct bridge *bridge, const char *format, ...) CLUTCH_PRINTF(2, 3);

static void
say(struct bridge *bridge, const char *format, ...)
{
	char line[sizeof bridge->last_line];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(line, sizeof line, format, arguments);
	va_end(arguments);
	if (strcmp(line, bridge->last_line) == 0)
		return;
	memcpy(bridge->last_line, line, sizeof line);
	clutch_log(CLUTCH_WARN, "[bridge] %s: %s", bridge->channel, line);
}

/* The log of three connections to one Redis: a line that repeats the last one is left out. */
static void
on_line(const char *line, void *arg)
{
	struct bridge *bridge = arg;

	if (strncmp(line, bridge->last_of_redis, sizeof bridge->last_of_redis - 1) == 0)
		return;
	snprintf(bridge->last_of_redis, sizeof bridge->last_of_redis, "%s", line);
	say(bridge, "%s", line);
}

/* Why a reply is not the one that was expected. */
static const char *
reason(const struct redis_reply *reply)
{
	bool says = reply->type == REDIS_ERROR || reply->type == REDIS_NO_REPLY;

	return says ? reply->text : "the reply is of an unexpected kind";
}

static bool
is_name(const char *text)
{
	size_t length = strlen(text), i;

	for (i = 0; i < length; i++)
		if ((unsigned char)text[i] < ' ' || text[i] == '"' || text[i] == '\\')
			return false;
	return length > 0 && length <= BRIDGE_NAME_MAX;
}

static int
fail(int error)
{
	errno = error;
	return -1;
}

static int retry(struct messenger *messenger, void *arg);

/* Call `retry` after this time, which does all that cannot be done now. */
static void
look_again(struct bridge *bridge, int milliseconds)
{
	int64_t due = clutch_now() + milliseconds;
	int id;

	if (bridge->timer != 0 && bridge->timer_due <= due)
		return;
	id = messenger_set_timeout(bridge->messenger, milliseconds, retry, bridge);
	if (id == -1)
		return; /* no memory: the next event tries again */
	if (bridge->timer != 0)
		messenger_clear_timeout(bridge->messenger, bridge->timer);
	bridge->timer = id;
	bridge->timer_due = due;
}

/* ---- messages as text ---------------------------------------------------------------- */

struct envelope {
	const char *text; /* the whole message */
	size_t length;
	char id[BRIDGE_NAME_MAX + 1], from[BRIDGE_NAME_MAX + 1], to[BRIDGE_NAME_MAX + 1];
	char action[BRIDGE_NAME_MAX + 1];
	struct bridge_message heard; /* the same for a listener; its data has no '\0' yet */
};

static char *
put(char *at, const char *text)
{
	size_t length = strlen(text);

	memcpy(at, text, length + 1);
	return at + length;
}

static char *
put_number(char *at, uint64_t number)
{
	char digits[24], *first = digits + sizeof digits - 1;

	*first = '\0';
	do
		*--first = (char)('0' + number % 10);
	while ((number /= 10) > 0);
	return put(at, first);
}

/* Write a message, and return its length. */
static size_t
put_message(struct bridge *bridge, char *text, const char *to, const char *action, const char *data)
{
	char *at = put(put(text, "{\"id\":\""), bridge->token);

	at = put(put_number(put(at, "-"), ++bridge->count), "\",\"from\":\"");
	at = put(put(put(at, bridge->cluster), "\",\"to\":\""), to != NULL ? to : "");
	at = put(put(put(at, "\",\"action\":\""), action), "\"");
	if (data != NULL)
		at = put(put(at, ",\"data\":"), data);
	return (size_t)(put(at, "}") - text);
}

/* Take `key`, then a name up to the next quote. */
static bool
take_name(const char **at, const char *end, const char *key, char *name)
{
	size_t length = strlen(key);
	const char *quote;

	if ((size_t)(end - *at) <= length || memcmp(*at, key, length) != 0)
		return false;
	*at += length;
	quote = memchr(*at, '"', (size_t)(end - *at));
	if (quote == NULL || quote - *at > BRIDGE_NAME_MAX)
		return false;
	length = (size_t)(quote - *at);
	memcpy(name, *at, length);
	name[length] = '\0';
	*at = quote + 1;
	return memchr(name, '\\', length) == NULL;
}

/* Parse a message exactly as put_message writes it. */
static bool
read_envelope(struct envelope *envelope, const char *text, size_t length)
{
	static const char data[] = ",\"data\":";
	const char *end = text + length, *at = text;

	envelope->text = text;
	envelope->length = length;
	envelope->heard = (struct bridge_message){
		.id = envelope->id, .from = envelope->from, .action = envelope->action};
	if (length > BRIDGE_DATA_MAX + ENVELOPE_MAX ||
	    !take_name(&at, end, "{\"id\":\"", envelope->id) ||
	    !take_name(&at, end, ",\"from\":\"", envelope->from) ||
	    !take_name(&at, end, ",\"to\":\"", envelope->to) ||
	    !take_name(&at, end, ",\"action\":\"", envelope->action) || at == end || *--end != '}')
		return false;
	if (at == end)
		return true;
	if ((size_t)(end - at) < sizeof data || memcmp(at, data, sizeof data - 1) != 0)
		return false;
	envelope->heard.data = at + sizeof data - 1;
	envelope->heard.data_length = (size_t)(end - envelope->heard.data);
	return true;
}

static bool
is_for_us(const struct bridge *bridge, const struct envelope *envelope)
{
	return envelope->to[0] == '\0' || strcmp(envelope->to, bridge->cluster) == 0;
}

static void
clear_batch(struct batch *batch)
{
	batch->count = 0;
	batch->length = strlen("[]");
	put(batch->text + HEAD_MAX, "[]");
}

/* How long the next message in a batch may be. Its own length, before it, may go a few bytes
 * past this: the room behind the batch is for that, too. */
static size_t
room_in(const struct batch *batch)
{
	size_t most = sizeof batch->text - 2 * HEAD_MAX;

	return batch->length < most ? most - batch->length : 0;
}

/* Add a message to a batch; false: the batch is full. */
static bool
add_to_batch(struct batch *batch, const char *text, size_t length)
{
	char *at = batch->text + HEAD_MAX + batch->length - 1;

	if (room_in(batch) < length)
		return false;
	at = put(put_number(put(at, batch->count++ > 0 ? "," : ""), length), ",");
	memcpy(at, text, length);
	batch->length = (size_t)(put(at + length, "]") - batch->text) - HEAD_MAX;
	return true;
}

/* [number,pid,batch] as a C string. */
static const char *
with_head(struct batch *batch, uint64_t number, pid_t pid)
{
	char head[HEAD_MAX], *begin = batch->text + HEAD_MAX;
	int length =
		snprintf(head, sizeof head, "[%llu,%ld,", (unsigned long long)number, (long)pid);

	put(begin + batch->length, "]");
	return memcpy(begin - length, head, (size_t)length);
}

/* What is in a message: [number,pid,batch], a number, or the text of a message. */
static struct reading
read_head(const struct message *message)
{
	const char *text = message->data != NULL ? message->data : "";
	struct reading reading = {.at = text, .end = text + message->data_length};
	char *at;

	reading.number = strtoull(text + (text[0] == '['), &at, 10);
	if (text[0] != '[' || at[0] != ',')
		return reading;
	reading.pid = (pid_t)strtol(at + 1, &at, 10);
	if (at[0] == ',' && at[1] == '[') {
		reading.at = at + 1;
		reading.end--;
	}
	return reading;
}

/* Read the next message of a batch, or what an older bridge sends: one message. 1; 0: that
 * was the last; -1: this is no batch. */
static int
next_in_batch(struct reading *reading, struct envelope *envelope)
{
	const char *at = reading->at, *end = reading->end, *digit = at + 1;
	size_t length = 0;

	if (at == end || (end - at == (*at == '[' ? 2 : 1) && end[-1] == ']'))
		return 0;
	if (*at == '{' && read_envelope(envelope, at, (size_t)(end - at))) {
		reading->at = end;
		return 1;
	}
	for (; *digit >= '0' && *digit <= '9' && digit - at < 9; digit++)
		length = 10 * length + (size_t)(*digit - '0');
	if ((*at != '[' && *at != ',') || *digit++ != ',' || digit >= end ||
	    length >= (size_t)(end - digit) || !read_envelope(envelope, digit, length))
		return -1;
	reading->at = digit + length;
	return 1;
}

/* ---- the sender -------------------------------------------------------------------------- */

static struct batch scratch;

static int agent_publish(struct bridge *bridge, struct reading *sent);
static int agent_send(struct bridge *bridge, struct reading *sent);

/* Send the agent (which may be this process) the messages that wait, as many as fit in a
 * batch, unless a batch is not done. */
static void
send_batch(struct bridge *bridge)
{
	const struct outgoing *outgoing = bridge->first;
	struct reading reading = {.at = scratch.text + HEAD_MAX,
	                          .number = bridge->number + 1,
	                          .pid = messenger_pid(bridge->messenger)};

	if (bridge->epoch == 0 || bridge->sent > 0 || outgoing == NULL)
		return;
	clear_batch(&scratch);
	do
		add_to_batch(&scratch, outgoing->text, outgoing->size);
	while ((outgoing = outgoing->next) != NULL &&
	       scratch.length + outgoing->size < BRIDGE_ENTRY_MAX);
	bridge->number++;
	bridge->sent = scratch.count;
	reading.end = reading.at + scratch.length;
	if (messenger_role(bridge->messenger) == ROLE_AGENT) {
		agent_send(bridge, &reading);
	} else if (messenger_send_to_agent(bridge->messenger, bridge->hearing[SEND].action,
	                                   with_head(&scratch, reading.number, reading.pid)) ==
	           -1) {
		bridge->sent = 0;
		look_again(bridge, SOON);
	}
}

/* Redis has the batch. */
static int
finish(struct bridge *bridge, struct reading *batch)
{
	struct outgoing *done;

	if (batch->number != bridge->number)
		return 0; /* it has been sent again since */
	for (; bridge->sent > 0 && (done = bridge->first) != NULL; bridge->sent--) {
		bridge->first = done->next;
		bridge->waiting--;
		bridge->waiting_bytes -= done->size;
		free(done);
	}
	if (bridge->first == NULL)
		bridge->last = &bridge->first;
	send_batch(bridge);
	return 0;
}

/* Check the arguments of bridge_publish and bridge_send. */
static int
check(const char *cluster, const char *action, const char *data)
{
	if ((cluster != NULL && !is_name(cluster)) || action == NULL || !is_name(action))
		return fail(EINVAL);
	return data != NULL && strlen(data) > BRIDGE_DATA_MAX ? fail(EMSGSIZE) : 0;
}

int
bridge_publish(struct bridge *bridge, const char *cluster, const char *action, const char *data)
{
	static char text[BRIDGE_DATA_MAX + ENVELOPE_MAX];
	struct reading reading = {.at = text};

	if (check(cluster, action, data) == -1)
		return -1;
	reading.end = text + put_message(bridge, text, cluster, action, data);
	if (messenger_role(bridge->messenger) == ROLE_AGENT)
		return agent_publish(bridge, &reading);
	return messenger_send_to_agent(bridge->messenger, bridge->hearing[PUBLISH].action, text);
}

int
bridge_send(struct bridge *bridge, const char *cluster, const char *action, const char *data)
{
	size_t size = ENVELOPE_MAX + (data != NULL ? strlen(data) : 0);
	struct outgoing *outgoing;

	if (check(cluster, action, data) == -1)
		return -1;
	if (bridge->waiting == BRIDGE_WAITING_MAX ||
	    bridge->waiting_bytes + size > BRIDGE_WAITING_BYTES)
		return fail(ENOBUFS);
	outgoing = malloc(sizeof *outgoing + size);
	if (outgoing == NULL)
		return -1;
	outgoing->next = NULL;
	outgoing->size = put_message(bridge, outgoing->text, cluster, action, data);
	*bridge->last = outgoing;
	bridge->last = &outgoing->next;
	bridge->waiting++;
	bridge->waiting_bytes += outgoing->size;
	send_batch(bridge);
	return 0;
}

size_t
bridge_waiting(const struct bridge *bridge)
{
	return bridge->waiting;
}

/* A new epoch: all messages that are not done are sent again. */
static int
begin_epoch(struct bridge *bridge, struct reading *epoch)
{
	if (epoch->number == 0 || epoch->number == bridge->epoch)
		return 0;
	bridge->epoch = epoch->number;
	bridge->sent = 0;
	send_batch(bridge);
	return 0;
}

/* ---- app -------------------- */

/* Tell the agent, which may be a new one, of this app. */
static void
say_hello(struct bridge *bridge)
{
	char pid[24];
	size_t count;

	messenger_opids(bridge->messenger, &count);
	put_number(pid, (uint64_t)messenger_pid(bridge->messenger));
	bridge->silent =
		count > 0 && messenger_send_to_agent(bridge->messenger,
	                                             bridge->hearing[HELLO].action, pid) == -1;
	if (bridge->silent)
		look_again(bridge, SOON);
}

/* Call the listeners, and return the first result that is not 0. */
static int
call_listeners(struct bridge *bridge, const struct bridge_message *message)
{
	size_t known = bridge->listener_count;
	const struct listener *listener;
	int result = 0, one;

	for (listener = bridge->listeners; listener != NULL; listener = listener->next) {
		if (listener->number > known) /* it was added by a listener, for later messages */
			continue;
		if (listener->action[0] != '\0' && strcmp(listener->action, message->action) != 0)
			continue;
		one = listener->call(bridge, message, listener->arg);
		result = result != 0 ? result : one;
	}
	return result;
}

/* Only the agent sends this, and it has checked the batch. After an uncaught exception the
 * app leaves, and hears nothing more. */
static int
deliver(struct bridge *bridge, struct reading *reading)
{
	static char data[BRIDGE_DATA_MAX + ENVELOPE_MAX]; /* of the message that is delivered */
	struct envelope envelope;
	struct bridge_message *heard = &envelope.heard;
	int result = 0;

	while (result == 0 && next_in_batch(reading, &envelope) == 1) {
		if (!is_for_us(bridge, &envelope))
			continue;
		if (heard->data != NULL) {
			heard->data = memcpy(data, heard->data, heard->data_length);
			data[heard->data_length] = '\0';
		}
		result = call_listeners(bridge, heard);
	}
	if (reading->number == 0 || result != 0)
		return result;
	clear_batch(&scratch);
	messenger_send_to_agent(
		bridge->messenger, bridge->hearing[HEARD].action,
		with_head(&scratch, reading->number, messenger_pid(bridge->messenger)));
	return 0; /* if this fails, the agent goes on without the answer */
}

int
bridge_on(struct bridge *bridge, const char *action, bridge_listener call, void *arg)
{
	struct listener **last = &bridge->listeners, *listener;
	const char *name = action != NULL ? action : "";

	if (call == NULL || (action != NULL && !is_name(action)) ||
	    messenger_role(bridge->messenger) != ROLE_APP)
		return fail(EINVAL);
	listener = malloc(sizeof *listener + strlen(name) + 1);
	if (listener == NULL)
		return -1;
	*listener = (struct listener){NULL, call, arg, ++bridge->listener_count};
	put(listener->action, name);
	while (*last != NULL && (action != NULL || (*last)->action[0] == '\0'))
		last = &(*last)->next;
	listener->next = *last;
	*last = listener;
	return 0;
}

/* ---- agent: published messages -------------------- */

/* Published messages are lost. There is a line for the first one, and a line with their
 * number when Redis is back. */
static void
lose(struct bridge *bridge, size_t count, const char *why)
{
	if (bridge->lost == 0)
		say(bridge, "messages are being lost: %s", why);
	bridge->lost += count;
	look_again(bridge, LATER);
}

/* Take no reliable message until the next epoch. */
static void
refuse(struct bridge *bridge, int milliseconds)
{
	bridge->epoch = 0;
	look_again(bridge, milliseconds);
}

/* Redis has answered a batch. */
static int
on_landed(struct redis *redis, const struct redis_reply *reply, void *arg)
{
	struct flight flight = *(struct flight *)arg;
	struct bridge *bridge = flight.bridge;
	char number[24];

	(void)redis;
	free(arg);
	put_number(number, flight.number);
	if (flight.sender == 0) {
		if (reply->type != REDIS_INTEGER)
			lose(bridge, flight.count, reason(reply));
	} else if (reply->type != REDIS_STRING) {
		if (reply->type != REDIS_NO_REPLY)
			say(bridge, "Redis does not take messages: %s", reason(reply));
		refuse(bridge, LATER);
	} else if (flight.sender == messenger_pid(bridge->messenger)) {
		finish(bridge, &(struct reading){.number = flight.number});
	} else if (messenger_send_to(bridge->messenger, flight.sender, bridge->hearing[DONE].action,
	                             number) == -1) {
		refuse(bridge, SOON); /* the app will send it again */
	}
	return 0;
}

/* Send a batch to Redis: it is the last word of the command, and of this length. */
static int
launch(struct flight what, const char *const words[], size_t count, size_t length)
{
	size_t lengths[8], i;
	struct flight *flight = malloc(sizeof *flight);
	int saved;

	if (flight == NULL)
		return -1;
	*flight = what;
	for (i = 0; i < count - 1; i++)
		lengths[i] = strlen(words[i]);
	lengths[i] = length;
	if (redis_command_argv(what.bridge->commands, on_landed, flight, count, words, lengths) ==
	    0)
		return 0;
	saved = errno;
	free(flight);
	return fail(saved);
}

/* The apps of this cluster hear its messages at once, without Redis. */
static void
flush_published(struct bridge *bridge)
{
	struct batch *batch = &bridge->published;
	bool to_all = bridge->to[0] == '\0', ours = strcmp(bridge->to, bridge->cluster) == 0;
	char key[sizeof bridge->own_key];
	const char *const words[] = {"PUBLISH", key, batch->text + HEAD_MAX};

	if (batch->count == 0)
		return;
	snprintf(key, sizeof key, to_all ? "%s" : "%s\"%s\"", bridge->key, bridge->to);
	if (!ours && !redis_ready(bridge->commands))
		lose(bridge, batch->count, "there is no connection to Redis");
	else if (!ours && launch((struct flight){.bridge = bridge, .count = batch->count}, words, 3,
	                         batch->length) == -1)
		lose(bridge, batch->count, strerror(errno));
	if ((ours || to_all) &&
	    messenger_send_to_app(bridge->messenger, bridge->hearing[MESSAGE].action,
	                          with_head(batch, 0, 0)) == -1)
		lose(bridge, batch->count, strerror(errno));
	clear_batch(batch);
}

static int
on_turn_end(struct messenger *agent, void *arg)
{
	struct bridge *bridge = arg;

	(void)agent;
	bridge->flushing = false;
	flush_published(bridge);
	return 0;
}

/* A batch is for one destination, so that the messages of a sender keep their order. */
static int
agent_publish(struct bridge *bridge, struct reading *sent)
{
	size_t length = (size_t)(sent->end - sent->at);
	struct envelope envelope;

	if (!read_envelope(&envelope, sent->at, length) ||
	    strcmp(envelope.from, bridge->cluster) != 0) {
		say(bridge, "an app has sent what is no message; it is not published");
		return 0;
	}
	if (strcmp(envelope.to, bridge->to) != 0 || room_in(&bridge->published) < length)
		flush_published(bridge);
	put(bridge->to, envelope.to);
	add_to_batch(&bridge->published, sent->at, length);
	/* Timers come last in a turn of the loop. Without memory for one, nothing waits. */
	if (!bridge->flushing)
		bridge->flushing =
			messenger_set_timeout(bridge->messenger, 0, on_turn_end, bridge) != -1;
	if (!bridge->flushing)
		flush_published(bridge);
	return 0;
}

/* Add the messages for this cluster in a text of Redis to the batch for the apps. -1: it is
 * no batch. */
static int
hear(struct bridge *bridge, const struct redis_reply *text)
{
	struct reading reading = {.at = text->text, .end = text->text + text->length};
	struct envelope envelope;
	int found = -1;

	if (text->type != REDIS_STRING || text->length == 0 ||
	    memchr(text->text, '\0', text->length) != NULL)
		return -1;
	while ((found = next_in_batch(&reading, &envelope)) == 1)
		if (is_for_us(bridge, &envelope) &&
		    !add_to_batch(&scratch, envelope.text, envelope.length))
			return -1;
	if (found == 0 && text->text[0] == '{')
		say(bridge, "a cluster with an older bridge is here; it does not hear this one");
	return found;
}

/* What this cluster has published itself comes back from Redis, too: of that, one message is
 * read. */
static int
on_heard_published(struct redis *redis, const struct redis_reply *reply, void *arg)
{
	const struct redis_reply *text = &reply->element[2];
	struct reading reading = {.at = text->text, .end = text->text + text->length};
	struct bridge *bridge = arg;
	struct envelope envelope;

	(void)redis;
	clear_batch(&scratch);
	if (next_in_batch(&reading, &envelope) == 1 && strcmp(envelope.from, bridge->cluster) == 0)
		return 0;
	if (hear(bridge, text) == -1)
		lose(bridge, 1, "what somebody has published is no message");
	else if (scratch.count > 0 &&
	         messenger_send_to_app(bridge->messenger, bridge->hearing[MESSAGE].action,
	                               with_head(&scratch, 0, 0)) == -1)
		lose(bridge, scratch.count, strerror(errno));
	return 0;
}

/* ---- agent: reliable messages to the stream -------------------- */

/* If Redis is there, count what was lost. If this cluster has joined, too (so that it will
 * hear its own messages), begin a new epoch, unless one goes on: all senders then begin with
 * their first message that is not done. */
static void
announce(struct bridge *bridge)
{
	uint64_t now = (uint64_t)clutch_now();
	char data[24];

	if (!redis_ready(bridge->commands))
		return;
	if (bridge->lost > 1)
		say(bridge, "%zu messages were lost", bridge->lost);
	bridge->lost = 0;
	if (bridge->epoch != 0 || !bridge->joined)
		return;
	bridge->last_epoch = now > bridge->last_epoch ? now : bridge->last_epoch + 1;
	put_number(data, bridge->last_epoch);
	if (messenger_send_to_app(bridge->messenger, bridge->hearing[READY].action, data) == -1)
		look_again(bridge, SOON);
	else
		begin_epoch(bridge, &(struct reading){.number = bridge->last_epoch});
}

/* If it cannot be sent now, its sender will send it again. */
static int
agent_send(struct bridge *bridge, struct reading *sent)
{
	const size_t length = (size_t)(sent->end - sent->at);
	struct envelope envelope;
	char most[24];
	const char *const words[] = {"XADD", bridge->stream, "MAXLEN", "~", most, "*",
	                             "m",    sent->at};
	int found;

	put_number(most, BRIDGE_STREAM_MAX);
	while ((found = next_in_batch(sent, &envelope)) == 1 &&
	       strcmp(envelope.from, bridge->cluster) == 0)
		;
	if (found != 0 || sent->pid <= 0)
		say(bridge, "an app has sent what is no message; it is not sent");
	else if (bridge->epoch != 0 && (!redis_ready(bridge->commands) ||
	                                launch((struct flight){bridge, 0, sent->pid, sent->number},
	                                       words, 8, length) == -1))
		refuse(bridge, SOON);
	return 0;
}

/* ---- agent: from the stream -------------------- */

static void read_stream(struct bridge *bridge);

/* Redis has not said what it should: read again, and what was not acknowledged first, but
 * not at once. */
static void
read_later(struct bridge *bridge, const char *what, const struct redis_reply *reply)
{
	say(bridge, "Redis %s: %s", what, reason(reply));
	bridge->again = bridge->refused = true;
	look_again(bridge, LATER);
}

static int
on_acknowledged(struct redis *redis, const struct redis_reply *reply, void *arg)
{
	(void)redis;
	if (reply->type != REDIS_INTEGER && reply->type != REDIS_NO_REPLY)
		read_later(arg, "does not hear what was delivered", reply);
	return 0;
}

/* End the batch: acknowledge it if it was heard, and ask for the next one in the same write;
 * otherwise read it again. */
static void
end_batch(struct bridge *bridge, bool heard)
{
	const char *argv[3 + BRIDGE_BATCH] = {"XACK", bridge->stream, bridge->cluster};
	size_t i, argc = 3 + bridge->id_count;

	for (i = 3; i < argc; i++)
		argv[i] = bridge->ids[i - 3];
	bridge->id_count = 0;
	if (heard &&
	    redis_command_argv(bridge->reader, on_acknowledged, bridge, argc, argv, NULL) == 0) {
		read_stream(bridge);
		return;
	}
	bridge->again = true;
	look_again(bridge, SOON);
}

/* End the batch when every app that was asked has answered or is gone. */
static void
end_mark(struct bridge *bridge)
{
	if (bridge->id_count > 0 && bridge->owing_count == 0)
		end_batch(bridge, bridge->heard);
}

/* Send the batch to the apps, and ask them to answer its mark. */
static void
ask_apps(struct bridge *bridge)
{
	size_t count;
	const pid_t *apps = messenger_opids(bridge->messenger, &count);

	if (messenger_send_to_app(bridge->messenger, bridge->hearing[MESSAGE].action,
	                          with_head(&scratch, bridge->mark + 1, 0)) == -1) {
		end_batch(bridge, false);
		return;
	}
	bridge->owing_count = count < OWING_MAX ? count : OWING_MAX;
	if (bridge->owing_count > 0)
		memcpy(bridge->owing, apps, bridge->owing_count * sizeof *apps);
	bridge->mark++;
	bridge->heard = false;
	bridge->marked_at = clutch_now();
	look_again(bridge, LATER);
	end_mark(bridge);
}

/* An entry is [id, [field, batch]], or [id, nil] if the stream has only its id left. Those that
 * fit in one batch go to the apps, and the rest is read again. An entry that is no batch is
 * only acknowledged. */
static void
take_entries(struct bridge *bridge, const struct redis_reply *entries)
{
	const struct redis_reply *entry, *id, *fields;
	size_t i;

	clear_batch(&scratch);
	for (i = 0; i < entries->count && bridge->id_count < BRIDGE_BATCH; i++) {
		entry = &entries->element[i];
		id = entry->element;
		if (entry->type != REDIS_ARRAY || entry->count != 2 || id->type != REDIS_STRING ||
		    id->length >= STREAM_ID_MAX) {
			say(bridge, "Redis gives an entry without an id; it is left out");
			continue;
		}
		fields = &id[1];
		if (fields->type == REDIS_NIL)
			say(bridge,
			    "%s is lost: the stream is too short for how long this cluster was "
			    "away",
			    id->text);
		else if (fields->count == 2 && scratch.count > 0 &&
		         fields->element[1].length > room_in(&scratch))
			break;
		else if (fields->count != 2 || hear(bridge, &fields->element[1]) == -1)
			say(bridge, "%s is no message of a bridge; it is left out", id->text);
		put(bridge->ids[bridge->id_count++], id->text);
	}
	bridge->ask = i == entries->count ? BRIDGE_BATCH : i;
	if (i < entries->count)
		bridge->again = true;
	else if (bridge->id_count == 0)
		bridge->again = false; /* no entry can be acknowledged */
	if (scratch.count > 0)
		ask_apps(bridge);
	else if (bridge->id_count > 0)
		end_batch(bridge, true);
	else if (entries->count == 0)
		read_stream(bridge);
	else
		look_again(bridge, SOON);
}

static void join(struct bridge *bridge);

/* [[stream, [entry, ...]]], or nil if there was no new message. */
static int
on_read(struct redis *redis, const struct redis_reply *reply, void *arg)
{
	struct bridge *bridge = arg;
	const struct redis_reply *stream = reply->element;

	(void)redis;
	bridge->reading = false;
	if (reply->type == REDIS_NO_REPLY)
		return 0; /* the next connection begins again */
	if (reply->type == REDIS_NIL) {
		read_stream(bridge);
	} else if (reply->type == REDIS_ARRAY && reply->count == 1 && stream->count == 2 &&
	           stream->element[1].type == REDIS_ARRAY) {
		take_entries(bridge, &stream->element[1]);
	} else if (reply->type == REDIS_ERROR &&
	           strncmp(reply->text, "NOGROUP", strlen("NOGROUP")) == 0) {
		say(bridge, "Redis has forgotten this cluster; it joins again");
		bridge->joined = false;
		join(bridge);
	} else {
		read_later(bridge, "does not give messages", reply);
	}
	return 0;
}

/* Read the next batch, if an app listens and the last batch has ended. */
static void
read_stream(struct bridge *bridge)
{
	char count[24], block[24];
	size_t apps;

	messenger_opids(bridge->messenger, &apps);
	if (!bridge->joined || bridge->reading || bridge->refused || bridge->id_count > 0 ||
	    !redis_ready(bridge->reader) || apps == 0)
		return;
	put_number(count, bridge->ask);
	put_number(block, (uint64_t)bridge->timeout);
	bridge->reading =
		redis_command(bridge->reader, on_read, bridge, "XREADGROUP", "GROUP",
	                      bridge->cluster, "agent", "COUNT", count, "BLOCK", block, "STREAMS",
	                      bridge->stream, bridge->again ? "0" : ">", (char *)NULL) == 0;
	if (!bridge->reading)
		look_again(bridge, SOON);
}

static int
on_joined(struct redis *redis, const struct redis_reply *reply, void *arg)
{
	static const char busy[] = "BUSYGROUP"; /* it has joined before */
	struct bridge *bridge = arg;

	(void)redis;
	if (reply->type == REDIS_NO_REPLY)
		return 0;
	if (reply->type != REDIS_STATUS && strncmp(reason(reply), busy, sizeof busy - 1) != 0) {
		say(bridge, "this cluster cannot join: %s", reason(reply));
		look_again(bridge, LATER);
		return 0;
	}
	bridge->joined = bridge->has_joined = bridge->again = true;
	announce(bridge);
	read_stream(bridge);
	return 0;
}

/* A cluster that joins hears what is sent from now on. But if this agent had joined before,
 * Redis has lost its memory, and everything that Redis has now is new. */
static void
join(struct bridge *bridge)
{
	const char *from = bridge->has_joined ? "0" : "$";

	if (redis_command(bridge->reader, on_joined, bridge, "XGROUP", "CREATE", bridge->stream,
	                  bridge->cluster, from, "MKSTREAM", (char *)NULL) == -1)
		look_again(bridge, SOON);
}

/* A connection is made, or lost. With the reader's, messages that were sent to the apps and
 * not acknowledged are read again. */
static int
on_change(struct redis *redis, bool ready, void *arg)
{
	struct bridge *bridge = arg;

	if (redis == bridge->commands) {
		bridge->epoch = 0;
		announce(bridge);
	} else if (redis == bridge->reader) {
		bridge->joined = bridge->reading = bridge->refused = false;
		bridge->again = true;
		bridge->id_count = 0;
		if (ready)
			join(bridge);
	}
	return 0;
}

/* ---- agent: its apps -------------------- */

/* The list of apps has changed, and an app's agent may be a new one. */
static int
look_at_apps(struct bridge *bridge, struct reading *reading)
{
	size_t i = bridge->owing_count, at, count;
	const pid_t *pids = messenger_opids(bridge->messenger, &count);

	(void)reading;
	if (messenger_role(bridge->messenger) == ROLE_APP) {
		say_hello(bridge);
		return 0;
	}
	while (i-- > 0) {
		for (at = 0; at < count && pids[at] != bridge->owing[i]; at++)
			;
		if (at == count)
			bridge->owing[i] = bridge->owing[--bridge->owing_count];
	}
	end_mark(bridge);
	read_stream(bridge);
	return 0;
}

/* An app is there, or has found that this agent is new: tell it the epoch. */
static int
welcome(struct bridge *bridge, struct reading *app)
{
	pid_t pid = (pid_t)app->number;
	char data[24];

	put_number(data, bridge->epoch);
	if (pid > 0 && bridge->epoch != 0 &&
	    messenger_send_to(bridge->messenger, pid, bridge->hearing[READY].action, data) == -1)
		refuse(bridge, SOON);
	return 0;
}

/* An app has heard all up to a mark: [mark,pid,[]]. */
static int
take_answer(struct bridge *bridge, struct reading *answer)
{
	size_t i = bridge->owing_count;

	while (answer->number == bridge->mark && i-- > 0)
		if (bridge->owing[i] == answer->pid) {
			bridge->owing[i] = bridge->owing[--bridge->owing_count];
			bridge->heard = true;
			end_mark(bridge);
			break;
		}
	return 0;
}

/* An app that takes too long to answer holds up the others: go on without its answer. The
 * messages wait in its channel, in their order, as long as it lives. */
static void
watch_mark(struct bridge *bridge)
{
	if (bridge->id_count == 0)
		return;
	if (clutch_now() - bridge->marked_at < 2 * (int64_t)bridge->timeout) {
		look_again(bridge, LATER);
		return;
	}
	while (bridge->owing_count > 0)
		say(bridge, "app %ld is slow to hear; the others go on",
		    (long)bridge->owing[--bridge->owing_count]);
	end_batch(bridge, true);
}

/* ---- both -------------------- */

/* Try all again that could not be done before. */
static int
retry(struct messenger *messenger, void *arg)
{
	struct bridge *bridge = arg;

	bridge->timer = 0;
	if (messenger_role(messenger) == ROLE_APP) {
		if (bridge->silent)
			say_hello(bridge);
		send_batch(bridge);
		return 0;
	}
	bridge->refused = false;
	announce(bridge);
	if (redis_ready(bridge->reader) && !bridge->joined && redis_pending(bridge->reader) == 0)
		join(bridge);
	watch_mark(bridge);
	read_stream(bridge);
	return 0;
}

/* Give Redis some time to take the messages that wait. */
static int
on_leave(struct messenger *messenger, void *arg)
{
	int64_t left, deadline = clutch_now() + BRIDGE_LEAVE_TIMEOUT;
	struct bridge *bridge = arg;

	if (bridge->commands != NULL)
		flush_published(bridge);
	while ((bridge->waiting > 0 ||
	        (bridge->commands != NULL && redis_pending(bridge->commands) > 0)) &&
	       (left = deadline - clutch_now()) > 0)
		if (messenger_step(messenger, (int)left) != 1)
			break;
	if (bridge->waiting > 0)
		say(bridge, "%zu messages may not have reached Redis", bridge->waiting);
	return 0;
}

static int
on_action(struct messenger *messenger, const struct message *message, void *arg)
{
	const struct hearing *hearing = arg;
	struct reading reading = read_head(message);

	(void)messenger;
	return hearing->hear(hearing->bridge, &reading);
}

/* The messages between app and agent, and the role that listens to each; ROLE_NONE: both. */
static int
listen_to_all(struct bridge *bridge)
{
	static const struct {
		const char *name;
		enum role role;
		int (*hear)(struct bridge *bridge, struct reading *reading);
	} all[ACTIONS] = {
		[HELLO] = {"bridge-hello:", ROLE_AGENT, welcome},
		[READY] = {"bridge-ready:", ROLE_APP, begin_epoch},
		[PUBLISH] = {"bridge-publish:", ROLE_AGENT, agent_publish},
		[SEND] = {"bridge-send:", ROLE_AGENT, agent_send},
		[DONE] = {"bridge-done:", ROLE_APP, finish},
		[MESSAGE] = {"bridge-message:", ROLE_APP, deliver},
		[HEARD] = {"bridge-heard:", ROLE_AGENT, take_answer},
		[PIDS] = {"egg-pids", ROLE_NONE, look_at_apps},
	};
	enum role role = messenger_role(bridge->messenger);
	struct hearing *hearing = bridge->hearing;
	size_t i;

	for (i = 0; i < ACTIONS; i++, hearing++) {
		hearing->bridge = bridge;
		hearing->hear = all[i].hear;
		snprintf(hearing->action, sizeof hearing->action, "%s%s", all[i].name,
		         i == PIDS ? "" : bridge->channel);
		if ((all[i].role == role || all[i].role == ROLE_NONE) &&
		    messenger_on(bridge->messenger, hearing->action, on_action, hearing) == -1)
			return -1;
	}
	return 0;
}

static int
open_connections(struct bridge *bridge, const char *url)
{
	struct redis_options options = {.timeout = bridge->timeout,
	                                .drops = true,
	                                .on_change = on_change,
	                                .on_message = on_heard_published,
	                                .log = on_line,
	                                .arg = bridge};

	snprintf(bridge->key, sizeof bridge->key, "clutch:%s", bridge->channel);
	snprintf(bridge->own_key, sizeof bridge->own_key, "%s\"%s\"", bridge->key, bridge->cluster);
	snprintf(bridge->stream, sizeof bridge->stream, "%s:stream", bridge->key);
	bridge->channels[0] = bridge->key;
	bridge->channels[1] = bridge->own_key;
	bridge->commands = redis_open(bridge->messenger, url, &options);
	options.channels = bridge->channels;
	bridge->ear = redis_open(bridge->messenger, url, &options);
	options.channels = NULL;
	options.timeout = 2 * bridge->timeout; /* Redis waits for a message during half of it */
	bridge->reader = redis_open(bridge->messenger, url, &options);
	return bridge->commands != NULL && bridge->reader != NULL && bridge->ear != NULL ? 0 : -1;
}

/* Undo a start that has failed. */
static void
give_up(struct bridge *bridge)
{
	int saved = errno;
	size_t i;

	for (i = 0; i < ACTIONS; i++)
		messenger_remove_listener(bridge->messenger, bridge->hearing[i].action, on_action,
		                          &bridge->hearing[i]);
	redis_close(bridge->ear);
	redis_close(bridge->commands);
	redis_close(bridge->reader);
	free(bridge);
	errno = saved;
}

/* The beginning of this process's message ids, which no other process has. */
static void
make_token(char token[17])
{
	int file = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
	struct timespec time;
	uint64_t number;

	if (file == -1 || read(file, &number, sizeof number) != (ssize_t)sizeof number) {
		clock_gettime(CLOCK_REALTIME, &time);
		number = (uint64_t)time.tv_sec << 32 ^ (uint64_t)getpid() << 30 ^
		         (uint64_t)time.tv_nsec;
	}
	if (file != -1)
		close(file);
	snprintf(token, 17, "%016llx", (unsigned long long)number);
}

struct bridge *
bridge_start(struct messenger *messenger, const struct bridge_options *options)
{
	const char *channel = options->channel != NULL ? options->channel : "bridge";
	const char *url = options->url != NULL ? options->url : "redis://127.0.0.1";
	enum role role = messenger_role(messenger);
	char host[BRIDGE_NAME_MAX + 1] = "";
	const char *cluster = options->cluster != NULL ? options->cluster : host;
	struct bridge *bridge;

	gethostname(host, sizeof host - 1);
	if (!is_name(channel) || !is_name(cluster) || (role != ROLE_AGENT && role != ROLE_APP)) {
		errno = EINVAL;
		return NULL;
	}
	bridge = calloc(1, sizeof *bridge);
	if (bridge == NULL)
		return NULL;
	bridge->messenger = messenger;
	bridge->last = &bridge->first;
	bridge->timeout = options->timeout > 0 ? options->timeout : REDIS_TIMEOUT;
	bridge->ask = BRIDGE_BATCH;
	bridge->mark = (uint64_t)clutch_now() << 16; /* no mark of the agent before is larger */
	put(bridge->channel, channel);
	put(bridge->cluster, cluster);
	make_token(bridge->token);
	clear_batch(&bridge->published);
	if (listen_to_all(bridge) == -1 ||
	    (role == ROLE_AGENT && open_connections(bridge, url) == -1) ||
	    messenger_before_close(messenger, on_leave, bridge) == -1) {
		give_up(bridge);
		return NULL;
	}
	if (role == ROLE_APP)
		say_hello(bridge);
	return bridge;
}
