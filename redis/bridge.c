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
 *	 | <- bridge-ready   epoch ------------- |  Redis takes messages: send what waits
 *	 | -- bridge-publish message ----------> |  PUBLISH, with the others of this turn
 *	 | -- bridge-send    [number,pid,batch] > |  XADD
 *	 | <- bridge-done    number ------------ |  Redis has the batch: send the next one
 *	 | <- bridge-message batch ------------- |  as it was published, or read from the stream
 *	 | <- bridge-message mark -------------- |  behind what was read at once: is it heard?
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
#include "resp.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* In ms: how long to wait before the next try, if a queue was full or Redis has refused; and for
 * how long a line of the log that comes again counts as a repeat. */
#define RETRY 500
#define REPEAT 10000

/* The most bytes around a message's data; and around a message in a batch, or a batch. */
#define ENVELOPE_MAX (4 * BRIDGE_NAME_MAX + 64)
#define HEAD_MAX 48

#if BRIDGE_DATA_MAX + 4 * BRIDGE_NAME_MAX + 64 + 2 * 48 > MESSAGE_DATA_MAX
#error "BRIDGE_DATA_MAX is too large: the bridge's own text does not fit in a message"
#endif

/* The most apps that listen at once: in a reload, an old and a new one for each worker. */
#define OWING_MAX ((size_t)2 * CLUTCH_WORKERS_MAX)

/* An entry's id in a stream: two numbers of 64 bits, a dash, and the '\0'. */
#define STREAM_ID_MAX 48

/* The messages between app and agent; and egg-pids, which tells the agent of its apps. */
enum action { READY, PUBLISH, SEND, DONE, MESSAGE, HEARD, PIDS, ACTIONS };

/* A reliable message that may not have reached Redis. */
struct outgoing {
	struct outgoing *next;
	size_t size;
	char text[];
};

/* The text is always whole, from the [ to the ]. */
struct batch {
	size_t length, count;
	char text[MESSAGE_DATA_MAX];
};

/* A text that is being read: a batch or one message, and the number and pid before it. */
struct reading {
	const char *at, *end;
	uint64_t number;
	pid_t pid;
};

struct listener {
	struct listener *next;
	bridge_listener call;
	void *arg;
	char action[]; /* "": every action */
};

/* A batch on its way to Redis. */
struct flight {
	struct bridge *bridge;
	pid_t sender;    /* reliable: the process, and its number for the batch */
	uint64_t number; /* published (sender is 0): the messages in it */
};

struct bridge {
	struct messenger *messenger;
	char channel[BRIDGE_NAME_MAX + 1], cluster[BRIDGE_NAME_MAX + 1];
	char action[ACTIONS][BRIDGE_NAME_MAX + 32];
	int timeout;         /* for Redis to answer */
	int timer;           /* for `retry`; 0 or -1: none */
	char last_line[400]; /* of the log, and when it last came */
	int64_t last_line_at;

	/* both: what this process sends */
	uint64_t count;
	struct outgoing *first, **last;
	size_t waiting, waiting_bytes;
	uint64_t number; /* of the last batch, and how many of its messages are not done */
	size_t sent;
	uint64_t epoch; /* 0: nothing may be sent */
	char token[17]; /* its ids begin with it */

	/* app: what it hears */
	struct listener *listeners, **last_listener;

	/* agent: to Redis */
	struct redis *commands, *ear, *reader;
	const char *channels[3]; /* of the ear: key, own_key */
	char key[BRIDGE_NAME_MAX + 16], own_key[2 * BRIDGE_NAME_MAX + 24];
	char stream[BRIDGE_NAME_MAX + 24];
	struct batch published;       /* what is published in this turn */
	char to[BRIDGE_NAME_MAX + 1]; /* the cluster that it is for; "": all */
	int flushing;                 /* the timer for the end of this turn */
	uint64_t lost;                /* published messages, since the last line about them */
	char last_of_redis[400];
	uint64_t serial; /* of epochs and marks; those of an earlier agent are smaller */

	/* agent: from the stream to the apps */
	enum { AWAY, JOINED, READING } state;
	/* What to read: ">", new entries; "0" or an id: those after it that are not acknowledged.
	 * "": this cluster has not joined yet. */
	char from[STREAM_ID_MAX];
	char ids[BRIDGE_BATCH][STREAM_ID_MAX]; /* sent to the apps, not acknowledged */
	size_t id_count;
	uint64_t mark; /* behind them */
	bool heard;    /* an app has answered the mark */
	int64_t marked_at;
	pid_t owing[OWING_MAX]; /* the apps that have not answered it */
	size_t owing_count;
};

/* ---- odds and ends ----------------------------------------------------------------- */

/* One line, unless it is a repeat: the same as the last one, and not long after it. */
CLUTCH_PRINTF(2, 3)
static void
say(struct bridge *bridge, const char *format, ...)
{
	int64_t last = bridge->last_line_at;
	char line[sizeof bridge->last_line];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(line, sizeof line, format, arguments);
	va_end(arguments);
	bridge->last_line_at = clutch_now();
	if (bridge->last_line_at - last < REPEAT && strcmp(line, bridge->last_line) == 0)
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
	size_t length = 0;

	for (; text[length] != '\0'; length++)
		if ((unsigned char)text[length] < ' ' || strchr("\"\\", text[length]) != NULL)
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

/* Call `retry` soon; without memory for a timer the next event does so. */
static void
look_again(struct bridge *bridge)
{
	if (bridge->timer <= 0)
		bridge->timer = messenger_set_timeout(bridge->messenger, RETRY, retry, bridge);
}

/* ---- messages as text ---------------------------------------------------------------- */

/* The names in a message, each behind its key. */
enum name { ID, FROM, TO, ACTION, NAMES };

static const char *const keys[NAMES] = {"{\"id\":\"", "\",\"from\":\"", "\",\"to\":\"",
                                        "\",\"action\":\""};
static const char data_key[] = "\",\"data\":";

struct envelope {
	char name[NAMES][BRIDGE_NAME_MAX + 1];
	const char *data; /* without a '\0'; NULL: none */
	size_t data_length;
};

static char *
put(char *at, const char *text)
{
	size_t length = strlen(text);

	memcpy(at, text, length + 1);
	return at + length;
}

/* Write a message, and return its length. */
static size_t
put_message(struct bridge *bridge, char *text, const char *to, const char *action, const char *data)
{
	char id[sizeof bridge->token + 24], *at = text;
	const char *const names[NAMES] = {id, bridge->cluster, to != NULL ? to : "", action};
	size_t i;

	resp_number(put(put(id, bridge->token), "-"), ++bridge->count);
	for (i = 0; i < NAMES; i++)
		at = put(put(at, keys[i]), names[i]);
	at = data != NULL ? put(put(at, data_key), data) : put(at, "\"");
	return (size_t)(put(at, "}") - text);
}

/* Parse a message exactly as put_message writes it. */
static bool
read_envelope(struct envelope *envelope, const char *at, size_t length)
{
	const char *end = at + length, *quote;
	size_t i, size;

	if (length > BRIDGE_DATA_MAX + ENVELOPE_MAX)
		return false;
	for (i = 0; i < NAMES; i++, at = quote) {
		size = strlen(keys[i]);
		if ((size_t)(end - at) <= size || memcmp(at, keys[i], size) != 0)
			return false;
		at += size;
		quote = memchr(at, '"', (size_t)(end - at));
		size = quote != NULL ? (size_t)(quote - at) : BRIDGE_NAME_MAX + 1;
		if (size > BRIDGE_NAME_MAX || memchr(at, '\\', size) != NULL)
			return false;
		memcpy(envelope->name[i], at, size);
		envelope->name[i][size] = '\0';
	}
	envelope->data = NULL;
	envelope->data_length = 0;
	if (envelope->name[ACTION][0] == '\0' || *--end != '}')
		return false;
	if (at + 1 == end)
		return true;
	if ((size_t)(end - at) < sizeof data_key || memcmp(at, data_key, sizeof data_key - 1) != 0)
		return false;
	envelope->data = at + sizeof data_key - 1;
	envelope->data_length = (size_t)(end - envelope->data);
	return true;
}

static bool
is_for_us(const struct bridge *bridge, const struct envelope *envelope)
{
	return envelope->name[TO][0] == '\0' || strcmp(envelope->name[TO], bridge->cluster) == 0;
}

static void
clear_batch(struct batch *batch)
{
	batch->count = 0;
	batch->length = (size_t)(put(batch->text, "[]") - batch->text);
}

/* Add a message to a batch; false: the batch is full. */
static bool
add_to_batch(struct batch *batch, const char *text, size_t length)
{
	char *at = batch->text + batch->length - 1;

	if (batch->length + length + 2 * HEAD_MAX > sizeof batch->text)
		return false;
	at = put(resp_number(put(at, batch->count++ > 0 ? "," : ""), length), ",");
	memcpy(at, text, length);
	batch->length = (size_t)(put(at + length, "]") - batch->text);
	return true;
}

/* What is in a message: a number, [number,pid,batch], or a batch or a message alone. */
static struct reading
read_head(const struct message *message)
{
	const char *text = message->data != NULL ? message->data : "";
	const char *end = text + message->data_length;
	uint64_t number;
	pid_t pid = 0;
	char *at;

	number = strtoull(text + (text[0] == '['), &at, 10);
	if (text[0] == '[' && at[0] == ',')
		pid = (pid_t)strtol(at + 1, &at, 10);
	if (text[0] == '[' && at[0] == ',' && at[1] == '[')
		return (struct reading){at + 1, end - 1, number, pid};
	return (struct reading){text, end, text[0] == '[' ? 0 : number, 0};
}

/* Read the next message of a batch, or the only message of an older bridge. Returns 1; 0: there
 * is no further message; -1: this is no batch. */
static int
next_in_batch(struct reading *reading, struct envelope *envelope)
{
	const char *at = reading->at, *end = reading->end;
	size_t length;
	char *text;

	if (at == end || (end - at == (*at == '[' ? 2 : 1) && end[-1] == ']'))
		return 0;
	if (*at == '{' && read_envelope(envelope, at, (size_t)(end - at))) {
		reading->at = end;
		return 1;
	}
	length = strtoul(at + 1, &text, 10);
	if ((*at != '[' && *at != ',') || *text++ != ',' || text >= end ||
	    length >= (size_t)(end - text) || !read_envelope(envelope, text, length))
		return -1;
	reading->at = text + length;
	return 1;
}

/* ---- the sender -------------------------------------------------------------------------- */

static int agent_publish(struct bridge *bridge, struct reading *sent);
static int agent_send(struct bridge *bridge, struct reading *sent);

/* Send the agent (which may be this process) a batch of what waits, unless one is not done. */
static void
send_batch(struct bridge *bridge)
{
	static struct batch batch;
	static char text[sizeof batch.text + 64];
	const struct outgoing *next = bridge->first;
	struct reading reading = {batch.text, NULL, bridge->number + 1,
	                          messenger_pid(bridge->messenger)};

	if (bridge->epoch == 0 || bridge->sent > 0 || next == NULL)
		return;
	clear_batch(&batch);
	while (next != NULL && (batch.count == 0 || batch.length + next->size < BRIDGE_ENTRY_MAX) &&
	       add_to_batch(&batch, next->text, next->size))
		next = next->next;
	bridge->number++;
	bridge->sent = batch.count;
	reading.end = batch.text + batch.length;
	if (messenger_role(bridge->messenger) == ROLE_AGENT) {
		agent_send(bridge, &reading);
		return;
	}
	snprintf(text, sizeof text, "[%llu,%ld,%s]", (unsigned long long)reading.number,
	         (long)reading.pid, batch.text);
	if (messenger_send_to_agent(bridge->messenger, bridge->action[SEND], text) == -1) {
		bridge->sent = 0;
		look_again(bridge);
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
	return messenger_send_to_agent(bridge->messenger, bridge->action[PUBLISH], text);
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

/* Call the listeners of every action, then those of this one, and return the first result that
 * is not 0. A listener that one of them adds is for later messages. */
static int
call_listeners(struct bridge *bridge, const struct bridge_message *message)
{
	struct listener **end = bridge->last_listener, **at;
	int result = 0, one, pass;

	for (pass = 0; pass < 2; pass++)
		for (at = &bridge->listeners; at != end; at = &(*at)->next) {
			if (strcmp((*at)->action, pass == 0 ? "" : message->action) != 0)
				continue;
			one = (*at)->call(bridge, message, (*at)->arg);
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
	char answer[64];
	struct envelope envelope;
	struct bridge_message heard;
	int result = 0;

	while (result == 0 && next_in_batch(reading, &envelope) == 1) {
		if (!is_for_us(bridge, &envelope))
			continue;
		heard = (struct bridge_message){envelope.name[ID], envelope.name[FROM],
		                                envelope.name[ACTION], NULL, envelope.data_length};
		if (envelope.data != NULL)
			heard.data = memcpy(data, envelope.data, heard.data_length);
		data[heard.data_length] = '\0';
		result = call_listeners(bridge, &heard);
	}
	if (reading->number == 0)
		return result;
	snprintf(answer, sizeof answer, "[%llu,%ld,[]]", (unsigned long long)reading->number,
	         (long)messenger_pid(bridge->messenger));
	messenger_send_to_agent(bridge->messenger, bridge->action[HEARD], answer);
	return 0; /* if this fails, the agent goes on without the answer */
}

int
bridge_on(struct bridge *bridge, const char *action, bridge_listener call, void *arg)
{
	const char *name = action != NULL ? action : "";
	struct listener *listener;

	if (call == NULL || (action != NULL && !is_name(action)) ||
	    messenger_role(bridge->messenger) != ROLE_APP)
		return fail(EINVAL);
	listener = malloc(sizeof *listener + strlen(name) + 1);
	if (listener == NULL)
		return -1;
	*listener = (struct listener){.call = call, .arg = arg};
	put(listener->action, name);
	*bridge->last_listener = listener;
	bridge->last_listener = &listener->next;
	return 0;
}

/* ---- agent: to Redis -------------------- */

/* Published messages are lost. There is a line for the first one, also if it is the same as that
 * of an earlier loss, and a line with their number when Redis is back. */
static void
lose(struct bridge *bridge, uint64_t count, const char *why)
{
	if (bridge->lost == 0) {
		bridge->last_line[0] = '\0';
		say(bridge, "messages are being lost: %s", why);
	}
	bridge->lost += count;
	look_again(bridge);
}

/* Take no reliable message until the next epoch. */
static void
refuse(struct bridge *bridge)
{
	bridge->epoch = 0;
	look_again(bridge);
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
	resp_number(number, flight.number);
	if (flight.sender == 0) {
		if (reply->type != REDIS_INTEGER)
			lose(bridge, flight.number, reason(reply));
	} else if (reply->type != REDIS_STRING) {
		if (reply->type != REDIS_NO_REPLY)
			say(bridge, "Redis does not take messages: %s", reason(reply));
		refuse(bridge);
	} else if (flight.sender == messenger_pid(bridge->messenger)) {
		finish(bridge, &(struct reading){.number = flight.number});
	} else if (messenger_send_to(bridge->messenger, flight.sender, bridge->action[DONE],
	                             number) == -1) {
		refuse(bridge); /* the app will send it again */
	}
	return 0;
}

/* Send a batch of this length, the last word, to Redis. NULL, or why it cannot be sent. */
static const char *
launch(struct flight what, const char *const words[], size_t count, size_t length)
{
	struct flight *flight;
	size_t lengths[8], i;
	const char *why;

	if (!redis_ready(what.bridge->commands))
		return "there is no connection to Redis";
	for (i = 0; i < count - 1; i++)
		lengths[i] = strlen(words[i]);
	lengths[i] = length;
	flight = malloc(sizeof *flight);
	if (flight != NULL)
		*flight = what;
	if (flight != NULL && redis_command_argv(what.bridge->commands, on_landed, flight, count,
	                                         words, lengths) == 0)
		return NULL;
	why = strerror(errno);
	free(flight);
	return why;
}

static int
tell_apps(struct bridge *bridge, enum action action, const char *text)
{
	return messenger_send_to_app(bridge->messenger, bridge->action[action], text);
}

/* The apps of this cluster hear its messages at once, without Redis. */
static void
flush_published(struct bridge *bridge)
{
	struct batch *batch = &bridge->published;
	bool to_all = bridge->to[0] == '\0', ours = strcmp(bridge->to, bridge->cluster) == 0;
	char key[sizeof bridge->own_key];
	const char *const words[] = {"PUBLISH", key, batch->text};
	const char *why = NULL;

	if (batch->count == 0)
		return;
	snprintf(key, sizeof key, to_all ? "%s" : "%s\"%s\"", bridge->key, bridge->to);
	if (!ours)
		why = launch((struct flight){bridge, 0, batch->count}, words, 3, batch->length);
	if ((ours || to_all) && tell_apps(bridge, MESSAGE, batch->text) == -1)
		why = strerror(errno);
	if (why != NULL)
		lose(bridge, batch->count, why);
	clear_batch(batch);
}

static int
on_turn_end(struct messenger *agent, void *arg)
{
	struct bridge *bridge = arg;

	(void)agent;
	bridge->flushing = 0;
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
	    strcmp(envelope.name[FROM], bridge->cluster) != 0) {
		say(bridge, "an app has sent what is no message; it is not published");
		return 0;
	}
	if (strcmp(envelope.name[TO], bridge->to) != 0)
		flush_published(bridge);
	put(bridge->to, envelope.name[TO]);
	if (!add_to_batch(&bridge->published, sent->at, length)) {
		flush_published(bridge);
		add_to_batch(&bridge->published, sent->at, length);
	}
	/* Timers come last in a turn of the loop. Without memory for one, nothing waits. */
	if (bridge->flushing <= 0)
		bridge->flushing = messenger_set_timeout(bridge->messenger, 0, on_turn_end, bridge);
	if (bridge->flushing == -1)
		flush_published(bridge);
	return 0;
}

/* If the batch cannot be sent now, its sender will send it again. */
static int
agent_send(struct bridge *bridge, struct reading *sent)
{
	const size_t length = (size_t)(sent->end - sent->at);
	struct envelope envelope;
	char most[24];
	const char *const words[] = {"XADD", bridge->stream, "MAXLEN", "~", most, "*",
	                             "m",    sent->at};
	int found;

	resp_number(most, BRIDGE_STREAM_MAX);
	while ((found = next_in_batch(sent, &envelope)) == 1 &&
	       strcmp(envelope.name[FROM], bridge->cluster) == 0)
		;
	if (found != 0 || sent->pid <= 0)
		say(bridge, "an app has sent what is no message; it is not sent");
	else if (bridge->epoch != 0 &&
	         launch((struct flight){bridge, sent->pid, sent->number}, words, 8, length) != NULL)
		refuse(bridge);
	return 0;
}

/* If Redis is there, log how many messages were lost. If this cluster has joined, too, so that it
 * will hear its own messages, tell the apps the epoch. If there is none, begin a new one: then all
 * senders begin with their first message that is not done. */
static void
announce(struct bridge *bridge)
{
	char data[24];

	if (!redis_ready(bridge->commands))
		return;
	if (bridge->lost > 1)
		say(bridge, "%llu messages were lost", (unsigned long long)bridge->lost);
	bridge->lost = 0;
	if (bridge->epoch == 0 && bridge->state != AWAY)
		begin_epoch(bridge, &(struct reading){.number = ++bridge->serial});
	resp_number(data, bridge->epoch);
	if (bridge->epoch != 0 && tell_apps(bridge, READY, data) == -1)
		refuse(bridge);
}

/* ---- agent: from Redis -------------------- */

/* Is a text of Redis a batch? *ours: how many of its messages are news for the apps. A batch is of
 * one cluster, and the apps have heard what their own has published. */
static bool
check_batch(struct bridge *bridge, const struct redis_reply *text, bool published, size_t *ours)
{
	struct reading reading = {.at = text->text, .end = text->text + text->length};
	struct envelope envelope;
	int found = -1;

	*ours = 0;
	if (text->type == REDIS_STRING && text->length > 0 &&
	    memchr(text->text, '\0', text->length) == NULL)
		found = next_in_batch(&reading, &envelope);
	if (found == 1 && published && strcmp(envelope.name[FROM], bridge->cluster) == 0)
		return true;
	for (; found == 1; found = next_in_batch(&reading, &envelope))
		*ours += is_for_us(bridge, &envelope);
	if (found == 0 && text->text[0] == '{')
		say(bridge, "a cluster with an older bridge is here; it does not hear this one");
	return found == 0;
}

/* Pass a batch on to the apps. */
static int
on_heard_published(struct redis *redis, const struct redis_reply *reply, void *arg)
{
	const struct redis_reply *text = &reply->element[2];
	struct bridge *bridge = arg;
	size_t ours;

	(void)redis;
	if (!check_batch(bridge, text, true, &ours))
		lose(bridge, 1, "what somebody has published is no message");
	else if (ours > 0 && tell_apps(bridge, MESSAGE, text->text) == -1)
		lose(bridge, ours, strerror(errno));
	return 0;
}

static void read_stream(struct bridge *bridge);

static int
on_acknowledged(struct redis *redis, const struct redis_reply *reply, void *arg)
{
	(void)redis;
	if (reply->type != REDIS_INTEGER && reply->type != REDIS_NO_REPLY)
		say(arg, "Redis does not hear what was delivered: %s", reason(reply));
	return 0;
}

/* Acknowledge the entries if they were heard, and ask for the next ones in the same write. */
static void
end_entries(struct bridge *bridge, bool heard)
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
	put(bridge->from, "0");
	look_again(bridge);
}

/* An app has answered the mark; or, if `answered` is 0, some apps are gone. The entries end when
 * no app owes an answer any more. */
static void
end_mark(struct bridge *bridge, pid_t answered)
{
	size_t i = bridge->owing_count, at, count;
	const pid_t *apps = messenger_opids(bridge->messenger, &count);

	while (i-- > 0) {
		for (at = 0; answered == 0 && at < count && apps[at] != bridge->owing[i]; at++)
			;
		bridge->heard |= bridge->owing[i] == answered;
		if (bridge->owing[i] == answered || (answered == 0 && at == count))
			bridge->owing[i] = bridge->owing[--bridge->owing_count];
	}
	if (bridge->id_count > 0 && bridge->owing_count == 0)
		end_entries(bridge, bridge->heard);
}

/* Ask the apps to answer a mark behind the entries that they were sent. */
static void
ask_apps(struct bridge *bridge)
{
	size_t count;
	const pid_t *apps = messenger_opids(bridge->messenger, &count);
	char mark[24];

	bridge->mark = ++bridge->serial;
	resp_number(mark, bridge->mark);
	if (tell_apps(bridge, MESSAGE, mark) == -1) {
		end_entries(bridge, false);
		return;
	}
	bridge->owing_count = count < OWING_MAX ? count : OWING_MAX;
	if (bridge->owing_count > 0)
		memcpy(bridge->owing, apps, bridge->owing_count * sizeof *apps);
	bridge->heard = false;
	bridge->marked_at = clutch_now();
	look_again(bridge);
	end_mark(bridge, 0);
}

/* An entry is [id, [field, batch]], or [id, nil] if the stream has only its id left. Those that
 * can be sent go to the apps, and the rest is read again. An entry that is no batch is only
 * acknowledged. False: these are no entries. */
static bool
take_entries(struct bridge *bridge, const struct redis_reply *entries)
{
	const struct redis_reply *id, *fields;
	size_t i, ours, sent = 0;
	bool whole;

	for (i = 0; i < entries->count && i < BRIDGE_BATCH; i++) {
		id = entries->element[i].element;
		if (entries->element[i].count != 2 || id->type != REDIS_STRING ||
		    id->length >= STREAM_ID_MAX)
			return false;
		fields = &id[1];
		whole = fields->count == 2 &&
		        check_batch(bridge, &fields->element[1], false, &ours);
		if (whole && ours > 0 &&
		    tell_apps(bridge, MESSAGE, fields->element[1].text) == -1) {
			if (errno != EMSGSIZE)
				break;
			whole = false;
		}
		sent += whole && ours > 0;
		if (!whole)
			say(bridge, "%s is %s", id->text,
			    fields->type != REDIS_NIL
			            ? "no message of a bridge; it is left out"
			            : "lost: the stream is too short for how long this "
			              "cluster was away");
		put(bridge->ids[i], id->text);
	}
	bridge->id_count = i;
	if (i > 0 && (i < entries->count || bridge->from[0] != '>'))
		put(bridge->from, bridge->ids[i - 1]);
	else if (i == 0)
		put(bridge->from, entries->count == 0 ? ">" : "0");
	if (sent > 0)
		ask_apps(bridge);
	else if (i > 0)
		end_entries(bridge, true);
	else if (entries->count > 0)
		look_again(bridge);
	else
		read_stream(bridge);
	return true;
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
		look_again(bridge);
		return 0;
	}
	bridge->state = JOINED;
	put(bridge->from, "0");
	announce(bridge);
	read_stream(bridge);
	return 0;
}

/* A cluster that joins hears what is sent from now on. But if this agent had joined before,
 * Redis has lost its memory, and everything that Redis has now is new. */
static void
join(struct bridge *bridge)
{
	const char *from = bridge->from[0] != '\0' ? "0" : "$";

	if (redis_command(bridge->reader, on_joined, bridge, "XGROUP", "CREATE", bridge->stream,
	                  bridge->cluster, from, "MKSTREAM", (char *)NULL) == -1)
		look_again(bridge);
}

/* [[stream, [entry, ...]]], or nil if there was no new message. */
static int
on_read(struct redis *redis, const struct redis_reply *reply, void *arg)
{
	struct bridge *bridge = arg;
	const struct redis_reply *stream = reply->element;

	(void)redis;
	if (reply->type == REDIS_NO_REPLY)
		return 0; /* the next connection begins again */
	bridge->state = JOINED;
	if (reply->type == REDIS_NIL) {
		read_stream(bridge);
	} else if (reply->type == REDIS_ERROR &&
	           strncmp(reply->text, "NOGROUP", strlen("NOGROUP")) == 0) {
		say(bridge, "Redis has forgotten this cluster; it joins again");
		bridge->state = AWAY;
		join(bridge);
	} else if (reply->count != 1 || stream->count != 2 ||
	           stream->element[1].type != REDIS_ARRAY ||
	           !take_entries(bridge, &stream->element[1])) {
		say(bridge, "Redis does not give messages: %s", reason(reply));
		put(bridge->from, "0");
		look_again(bridge);
	}
	return 0;
}

/* Read the next entries, if an app listens and the last ones have ended. */
static void
read_stream(struct bridge *bridge)
{
	char count[24], block[24];
	size_t apps;

	messenger_opids(bridge->messenger, &apps);
	if (bridge->state != JOINED || bridge->id_count > 0 || !redis_ready(bridge->reader) ||
	    apps == 0)
		return;
	resp_number(count, BRIDGE_BATCH);
	resp_number(block, (uint64_t)bridge->timeout);
	if (redis_command(bridge->reader, on_read, bridge, "XREADGROUP", "GROUP", bridge->cluster,
	                  "agent", "COUNT", count, "BLOCK", block, "STREAMS", bridge->stream,
	                  bridge->from, (char *)NULL) == 0)
		bridge->state = READING;
	else
		look_again(bridge);
}

/* A connection is made, or lost. If it is the reader's, messages that were sent to the apps and
 * not acknowledged are read again. */
static int
on_change(struct redis *redis, bool ready, void *arg)
{
	struct bridge *bridge = arg;

	if (redis == bridge->commands) {
		bridge->epoch = 0;
		announce(bridge);
	} else if (redis == bridge->reader) {
		bridge->state = AWAY;
		bridge->id_count = 0;
		if (ready)
			join(bridge);
	}
	return 0;
}

/* The list of apps has changed. A new one has not heard the epoch. */
static int
look_at_apps(struct bridge *bridge, struct reading *reading)
{
	(void)reading;
	announce(bridge);
	end_mark(bridge, 0);
	read_stream(bridge);
	return 0;
}

/* An app has heard all up to a mark: [mark,pid,[]]. */
static int
take_answer(struct bridge *bridge, struct reading *answer)
{
	if (answer->number == bridge->mark && answer->pid > 0)
		end_mark(bridge, answer->pid);
	return 0;
}

/* ---- both -------------------- */

/* Try all again that could not be done before. An app that takes too long to answer a mark holds
 * up the others: go on without its answer. The messages wait in its channel, in their order. */
static int
retry(struct messenger *messenger, void *arg)
{
	struct bridge *bridge = arg;
	bool late = bridge->id_count > 0 &&
	            clutch_now() - bridge->marked_at >= 2 * (int64_t)bridge->timeout;

	bridge->timer = 0;
	send_batch(bridge);
	if (messenger_role(messenger) == ROLE_APP)
		return 0;
	announce(bridge);
	if (redis_ready(bridge->reader) && bridge->state == AWAY &&
	    redis_pending(bridge->reader) == 0)
		join(bridge);
	while (late && bridge->owing_count > 0)
		say(bridge, "app %ld is slow to hear; the others go on",
		    (long)bridge->owing[--bridge->owing_count]);
	bridge->heard |= late;
	end_mark(bridge, 0);
	read_stream(bridge);
	if (bridge->id_count > 0)
		look_again(bridge);
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
	       (left = deadline - clutch_now()) > 0 && messenger_step(messenger, (int)left) == 1)
		;
	if (bridge->waiting > 0)
		say(bridge, "%zu messages may not have reached Redis", bridge->waiting);
	return 0;
}

/* The messages between app and agent, and the role that listens to each. */
static const struct {
	const char *name;
	enum role role;
	int (*hear)(struct bridge *bridge, struct reading *reading);
} actions[ACTIONS] = {
	[READY] = {"bridge-ready:", ROLE_APP, begin_epoch},
	[PUBLISH] = {"bridge-publish:", ROLE_AGENT, agent_publish},
	[SEND] = {"bridge-send:", ROLE_AGENT, agent_send},
	[DONE] = {"bridge-done:", ROLE_APP, finish},
	[MESSAGE] = {"bridge-message:", ROLE_APP, deliver},
	[HEARD] = {"bridge-heard:", ROLE_AGENT, take_answer},
	[PIDS] = {"egg-pids", ROLE_AGENT, look_at_apps},
};

static int
on_action(struct messenger *messenger, const struct message *message, void *arg)
{
	struct reading reading = read_head(message);
	struct bridge *bridge = arg;
	size_t i = 0;

	(void)messenger;
	while (strcmp(bridge->action[i], message->action) != 0)
		i++;
	return actions[i].hear(bridge, &reading);
}

static int
listen_to_all(struct bridge *bridge)
{
	size_t i;

	for (i = 0; i < ACTIONS; i++) {
		snprintf(bridge->action[i], sizeof bridge->action[i], "%s%s", actions[i].name,
		         i == PIDS ? "" : bridge->channel);
		if (actions[i].role == messenger_role(bridge->messenger) &&
		    messenger_on(bridge->messenger, bridge->action[i], on_action, bridge) == -1)
			return -1;
	}
	return 0;
}

static int
open_connections(struct bridge *bridge, const char *url)
{
	struct redis_options options = {.timeout = 2 * bridge->timeout,
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
	/* Redis waits for a message during half of the reader's time. */
	bridge->reader = redis_open(bridge->messenger, url, &options);
	options.timeout = bridge->timeout;
	bridge->commands = redis_open(bridge->messenger, url, &options);
	options.channels = bridge->channels;
	bridge->ear = redis_open(bridge->messenger, url, &options);
	return bridge->commands != NULL && bridge->reader != NULL && bridge->ear != NULL ? 0 : -1;
}

/* The beginning of this process's message ids, which no other process has: an FNV hash of the time,
 * the pid and the cluster's name. */
static void
make_token(struct bridge *bridge)
{
	struct timespec time;
	const char *at;
	uint64_t hash;

	clock_gettime(CLOCK_REALTIME, &time);
	hash = (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
	hash ^= (uint64_t)getpid() << 44;
	for (at = bridge->cluster; *at != '\0'; at++)
		hash = (hash ^ (unsigned char)*at) * 0x100000001b3;
	snprintf(bridge->token, sizeof bridge->token, "%016llx", (unsigned long long)hash);
}

struct bridge *
bridge_start(struct messenger *messenger, const struct bridge_options *options)
{
	const char *channel = options->channel != NULL ? options->channel : "bridge";
	const char *url = options->url != NULL ? options->url : "redis://127.0.0.1";
	enum role role = messenger_role(messenger);
	char host[BRIDGE_NAME_MAX + 1] = "";
	const char *cluster = options->cluster != NULL ? options->cluster : host;
	struct bridge *bridge = NULL;
	size_t i;
	int error;

	gethostname(host, sizeof host - 1);
	errno = EINVAL;
	if (is_name(channel) && is_name(cluster) && (role == ROLE_AGENT || role == ROLE_APP))
		bridge = calloc(1, sizeof *bridge);
	if (bridge == NULL)
		return NULL;
	bridge->messenger = messenger;
	bridge->last = &bridge->first;
	bridge->last_listener = &bridge->listeners;
	bridge->timeout = options->timeout > 0 ? options->timeout : REDIS_TIMEOUT;
	bridge->serial = (uint64_t)clutch_now() << 16;
	put(bridge->channel, channel);
	put(bridge->cluster, cluster);
	make_token(bridge);
	clear_batch(&bridge->published);
	if (listen_to_all(bridge) == 0 &&
	    (role == ROLE_APP || open_connections(bridge, url) == 0) &&
	    messenger_before_close(messenger, on_leave, bridge) == 0)
		return bridge;
	error = errno;
	for (i = 0; i < ACTIONS; i++)
		messenger_remove_listener(messenger, bridge->action[i], on_action, bridge);
	redis_close(bridge->ear);
	redis_close(bridge->commands);
	redis_close(bridge->reader);
	free(bridge);
	errno = error;
	return NULL;
}
