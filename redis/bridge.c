/*
 * A bridge between clusters: see bridge.h.
 *
 * A message is one text, which no process between its sender and its receivers changes:
 *
 *	{"id":"8c5f...-7","from":"A","to":"","action":"refresh","data":...}
 *
 * The messages between app and agent; each action ends with ":CHANNEL":
 *
 *	app                                 agent
 *	 | -- bridge-hello   pid ----------> |  at each egg-pids: I am here
 *	 | <- bridge-ready   epoch --------- |  Redis takes messages: send what waits
 *	 | -- bridge-publish message ------> |  PUBLISH
 *	 | -- bridge-send    epoch, pid, --> |  XADD
 *	 |                   message         |
 *	 | <- bridge-done    id ------------ |  Redis has it
 *	 | <- bridge-message message ------- |  somebody has sent it
 *	 | <- bridge-mark    number -------- |  so far; did you hear?
 *	 | -- bridge-heard   number, pid --> |  XACK
 *
 * A reliable message stays with its sender until it is done. When the agent cannot write
 * one, it takes no other until Redis is back. Then it announces a new epoch, and every
 * sender begins again with the first message that is not done. Messages of the old epoch
 * that are still on their way are dropped, so that the order is kept.
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

/* The length of "[epoch,pid,", which a bridge-send begins with. It is fixed, so that a new
 * epoch can be written over the old one. */
#define SEND_HEAD 43

/* The most bytes of a message without its data. */
#define ENVELOPE_MAX (4 * BRIDGE_NAME_MAX + 64)

#define ID_MAX 40

/* An entry's id in a stream: two numbers of 64 bits, a dash, and the '\0'. */
#define STREAM_ID_MAX 48

/* A reliable message that may not have reached Redis. */
struct outgoing {
	struct outgoing *next;
	char id[ID_MAX];
	size_t size;
	char text[]; /* "[epoch,pid,message]" */
};

struct listener {
	struct listener *next;
	bridge_listener call;
	void *arg;
	size_t number; /* the n-th that was added, from 1 */
	char action[]; /* "": every action */
};

/* An app with a bridge, as its agent knows it. */
struct member {
	pid_t pid;
	bool listening; /* it is in the agent's opids */
	bool owes;      /* it has not answered the last mark */
};

struct bridge {
	struct messenger *messenger;
	char channel[BRIDGE_NAME_MAX + 1], cluster[BRIDGE_NAME_MAX + 1];
	char key[BRIDGE_NAME_MAX + 16], stream[BRIDGE_NAME_MAX + 24];
	int timer; /* 0: none */
	int64_t timer_due;

	/* both: what this process sends */
	char token[17]; /* its ids begin with it */
	uint64_t count;
	struct outgoing *first, **last, *unsent;
	size_t waiting, waiting_bytes;
	int64_t epoch; /* 0: nothing may be sent */

	/* app: what it hears */
	bool silent; /* the agent has not been told of this app */
	struct listener *listeners;
	size_t listener_count;
	char *data; /* of the message that is being delivered */

	/* agent: to Redis */
	struct redis *commands, *ear, *reader;
	int64_t last_epoch;
	size_t lost; /* published messages, since the last line about them */
	char last_line[400], last_of_redis[400];

	/* agent: from the stream to the apps */
	bool joined, reading;
	bool has_joined; /* ever */
	bool again;      /* read first what was not acknowledged */
	int timeout;
	char ids[BRIDGE_BATCH][STREAM_ID_MAX]; /* sent to the apps, not acknowledged */
	size_t batch;
	uint64_t mark;
	bool marked, heard; /* the apps were asked; one has answered */
	int64_t marked_at;
	struct member members[CLUTCH_WORKERS_MAX];
	size_t member_count;
};

/* ---- odds and ends ----------------------------------------------------------------- */

/* One line, unless it is the same as the line before it. */
static void say(struct bridge *bridge, const char *format, ...) CLUTCH_PRINTF(2, 3);

static void
say(struct bridge *bridge, const char *format, ...)
{
	char line[sizeof bridge->last_line], *at;
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(line, sizeof line, format, arguments);
	va_end(arguments);
	for (at = line; *at != '\0'; at++)
		if ((unsigned char)*at < ' ' || *at == 127)
			*at = '?'; /* it may hold text of Redis */
	if (strcmp(line, bridge->last_line) == 0)
		return;
	memcpy(bridge->last_line, line, sizeof line);
	clutch_print_line(STDERR_FILENO, "[bridge] %s: %s", bridge->channel, line);
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

static bool
is_name(const char *text)
{
	size_t length = strlen(text), i;

	for (i = 0; i < length; i++)
		if ((unsigned char)text[i] < ' ' || strchr("\"\\", text[i]) != NULL)
			return false;
	return length > 0 && length <= BRIDGE_NAME_MAX;
}

/* "bridge-WHAT:CHANNEL"; it lives until the next call. */
static const char *
action_of(const struct bridge *bridge, const char *what)
{
	static char action[BRIDGE_NAME_MAX + 32];

	snprintf(action, sizeof action, "bridge-%s:%s", what, bridge->channel);
	return action;
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

/* ---- a message as text ---------------------------------------------------------------- */

struct envelope {
	char id[BRIDGE_NAME_MAX + 1], from[BRIDGE_NAME_MAX + 1], to[BRIDGE_NAME_MAX + 1];
	char action[BRIDGE_NAME_MAX + 1];
	const char *data; /* NULL: none */
	size_t data_length;
};

/* Write the message up to its data, and return its length. */
static int
write_head(char *text, size_t size, const char *id, const char *from, const char *to,
           const char *action, const char *data)
{
	return snprintf(text, size,
	                "{\"id\":\"%s\",\"from\":\"%s\",\"to\":\"%s\",\"action\":\"%s\"%s", id,
	                from, to, action, data != NULL ? ",\"data\":" : "");
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
	memcpy(name, *at, (size_t)(quote - *at));
	name[quote - *at] = '\0';
	*at = quote + 1;
	return memchr(name, '\\', strlen(name)) == NULL;
}

/* Parse a message exactly as write_head and its callers write it. */
static bool
read_envelope(struct envelope *envelope, const char *text, size_t length)
{
	static const char data[] = ",\"data\":";
	const char *end = text + length, *at = text;

	if (length > BRIDGE_DATA_MAX + ENVELOPE_MAX ||
	    !take_name(&at, end, "{\"id\":\"", envelope->id) ||
	    !take_name(&at, end, ",\"from\":\"", envelope->from) ||
	    !take_name(&at, end, ",\"to\":\"", envelope->to) ||
	    !take_name(&at, end, ",\"action\":\"", envelope->action) || at == end || *--end != '}')
		return false;
	envelope->data = NULL;
	envelope->data_length = 0;
	if (at == end)
		return true;
	if ((size_t)(end - at) < sizeof data || memcmp(at, data, sizeof data - 1) != 0)
		return false;
	envelope->data = at + sizeof data - 1;
	envelope->data_length = (size_t)(end - envelope->data);
	return true;
}

static bool
is_for_us(const struct bridge *bridge, const struct envelope *envelope)
{
	return envelope->to[0] == '\0' || strcmp(envelope->to, bridge->cluster) == 0;
}

/* ---- the sender -------------------------------------------------------------------------- */

static void agent_publish(struct bridge *bridge, const char *text, size_t length);
static void agent_send(struct bridge *bridge, const char *text, size_t length);

/* Send the agent (which may be this process) all messages that wait, or as many as fit. */
static void
pump(struct bridge *bridge)
{
	struct outgoing *outgoing;
	char head[SEND_HEAD + 1];

	while (bridge->epoch != 0 && (outgoing = bridge->unsent) != NULL) {
		snprintf(head, sizeof head, "[%20lld,%20ld,", (long long)bridge->epoch,
		         (long)messenger_pid(bridge->messenger));
		memcpy(outgoing->text, head, SEND_HEAD);
		bridge->unsent = outgoing->next; /* agent_send may begin again */
		if (messenger_role(bridge->messenger) == ROLE_AGENT) {
			agent_send(bridge, outgoing->text, outgoing->size);
		} else if (messenger_send_to_agent(bridge->messenger, action_of(bridge, "send"),
		                                   outgoing->text) == -1) {
			bridge->unsent = outgoing;
			look_again(bridge, SOON);
			return;
		}
	}
}

/* A new epoch: all messages that are not done are sent again, in their order. */
static void
begin_epoch(struct bridge *bridge, int64_t epoch)
{
	bridge->epoch = epoch;
	bridge->unsent = bridge->first;
	pump(bridge);
}

static void
finish(struct bridge *bridge, const char *id)
{
	struct outgoing **link = &bridge->first, *done;

	while (*link != NULL && strcmp((*link)->id, id) != 0)
		link = &(*link)->next;
	done = *link;
	if (done == NULL)
		return; /* a repeat of a message that is done */
	*link = done->next;
	if (done->next == NULL)
		bridge->last = link;
	if (bridge->unsent == done)
		bridge->unsent = done->next;
	bridge->waiting--;
	bridge->waiting_bytes -= done->size;
	free(done);
	pump(bridge);
}

/* Check the arguments of bridge_publish and bridge_send. */
static int
check(const char *cluster, const char *action, const char *data)
{
	if ((cluster != NULL && !is_name(cluster)) || action == NULL || !is_name(action)) {
		errno = EINVAL;
		return -1;
	}
	if (data != NULL && strlen(data) > BRIDGE_DATA_MAX) {
		errno = EMSGSIZE;
		return -1;
	}
	return 0;
}

int
bridge_publish(struct bridge *bridge, const char *cluster, const char *action, const char *data)
{
	static char text[BRIDGE_DATA_MAX + ENVELOPE_MAX];
	char id[ID_MAX];
	int length;

	if (check(cluster, action, data) == -1)
		return -1;
	snprintf(id, sizeof id, "%s-%llu", bridge->token, (unsigned long long)++bridge->count);
	length = write_head(text, sizeof text, id, bridge->cluster, cluster != NULL ? cluster : "",
	                    action, data);
	length += snprintf(text + length, sizeof text - (size_t)length, "%s}",
	                   data != NULL ? data : "");
	if (messenger_role(bridge->messenger) == ROLE_APP)
		return messenger_send_to_agent(bridge->messenger, action_of(bridge, "publish"),
		                               text);
	agent_publish(bridge, text, (size_t)length);
	return 0;
}

int
bridge_send(struct bridge *bridge, const char *cluster, const char *action, const char *data)
{
	size_t size = SEND_HEAD + ENVELOPE_MAX + (data != NULL ? strlen(data) : 0);
	struct outgoing *outgoing;
	size_t at = SEND_HEAD;

	if (check(cluster, action, data) == -1)
		return -1;
	if (bridge->waiting == BRIDGE_WAITING_MAX ||
	    bridge->waiting_bytes + size > BRIDGE_WAITING_BYTES) {
		errno = ENOBUFS;
		return -1;
	}
	outgoing = malloc(sizeof *outgoing + size);
	if (outgoing == NULL)
		return -1;
	snprintf(outgoing->id, sizeof outgoing->id, "%s-%llu", bridge->token,
	         (unsigned long long)++bridge->count);
	at += (size_t)write_head(outgoing->text + at, size - at, outgoing->id, bridge->cluster,
	                         cluster != NULL ? cluster : "", action, data);
	at += (size_t)snprintf(outgoing->text + at, size - at, "%s}]", data != NULL ? data : "");
	outgoing->size = at;
	outgoing->next = NULL;
	*bridge->last = outgoing;
	bridge->last = &outgoing->next;
	bridge->waiting++;
	bridge->waiting_bytes += at;
	if (bridge->unsent == NULL)
		bridge->unsent = outgoing;
	pump(bridge);
	return 0;
}

size_t
bridge_waiting(const struct bridge *bridge)
{
	return bridge->waiting;
}

/* ---- app -------------------- */

/* Tell the agent, which may be a new one, of this app. */
static void
say_hello(struct bridge *bridge)
{
	char pid[24];
	size_t count;

	messenger_opids(bridge->messenger, &count);
	snprintf(pid, sizeof pid, "%ld", (long)messenger_pid(bridge->messenger));
	bridge->silent =
		count > 0 &&
		messenger_send_to_agent(bridge->messenger, action_of(bridge, "hello"), pid) == -1;
	if (bridge->silent)
		look_again(bridge, SOON);
}

static int
on_egg_pids_in_app(struct messenger *app, const struct message *message, void *arg)
{
	(void)app, (void)message;
	say_hello(arg);
	return 0;
}

static int
on_ready(struct messenger *app, const struct message *message, void *arg)
{
	struct bridge *bridge = arg;
	int64_t epoch = message->data != NULL ? strtoll(message->data, NULL, 10) : 0;

	(void)app;
	if (epoch > 0 && epoch != bridge->epoch)
		begin_epoch(bridge, epoch);
	return 0;
}

static int
on_done(struct messenger *app, const struct message *message, void *arg)
{
	char id[ID_MAX];

	(void)app;
	if (message->data != NULL && sscanf(message->data, "\"%39[^\"]\"", id) == 1)
		finish(arg, id);
	return 0;
}

static int
on_message(struct messenger *app, const struct message *message, void *arg)
{
	struct bridge *bridge = arg;
	struct listener *listener;
	struct envelope envelope;
	struct bridge_message heard;
	size_t known = bridge->listener_count;
	int result = 0, one;

	(void)app;
	if (message->data == NULL || !read_envelope(&envelope, message->data, message->data_length))
		return 0; /* only the agent sends this, and it has checked the message */
	if (envelope.data != NULL) {
		memcpy(bridge->data, envelope.data, envelope.data_length);
		bridge->data[envelope.data_length] = '\0';
	}
	heard = (struct bridge_message){envelope.id, envelope.from, envelope.action,
	                                envelope.data != NULL ? bridge->data : NULL,
	                                envelope.data_length};
	for (listener = bridge->listeners; listener != NULL; listener = listener->next) {
		if (listener->number > known) /* it was added by a listener, for later messages */
			continue;
		if (listener->action[0] != '\0' && strcmp(listener->action, heard.action) != 0)
			continue;
		one = listener->call(bridge, &heard, listener->arg);
		result = result != 0 ? result : one;
	}
	return result;
}

/* Messages keep their order, so all that the agent sent before this mark has been heard. */
static int
on_mark(struct messenger *app, const struct message *message, void *arg)
{
	char data[64];

	snprintf(data, sizeof data, "[%.20s,%ld]", message->data != NULL ? message->data : "0",
	         (long)messenger_pid(app));
	if (messenger_send_to_agent(app, action_of(arg, "heard"), data) == -1)
		return 0; /* the agent asks again, or reads the messages again */
	return 0;
}

int
bridge_on(struct bridge *bridge, const char *action, bridge_listener call, void *arg)
{
	struct listener **last = &bridge->listeners, *listener;
	size_t size = action != NULL ? strlen(action) + 1 : 1;

	if (call == NULL || (action != NULL && !is_name(action)) ||
	    messenger_role(bridge->messenger) != ROLE_APP) {
		errno = EINVAL;
		return -1;
	}
	listener = malloc(sizeof *listener + size);
	if (listener == NULL)
		return -1;
	*listener = (struct listener){NULL, call, arg, ++bridge->listener_count};
	memcpy(listener->action, action != NULL ? action : "", size);
	while (*last != NULL && (action != NULL || (*last)->action[0] == '\0'))
		last = &(*last)->next;
	listener->next = *last;
	*last = listener;
	return 0;
}

/* ---- agent: to Redis -------------------- */

/* A published message is lost. There is a line for the first one, and a line with their
 * number when Redis is back. */
static void
lose(struct bridge *bridge, const char *why)
{
	if (bridge->lost++ == 0)
		say(bridge, "messages are being lost: %s", why);
	look_again(bridge, LATER);
}

static void
count_losses(struct bridge *bridge)
{
	if (bridge->lost > 1 && redis_ready(bridge->commands))
		say(bridge, "%zu messages were lost", bridge->lost);
	if (redis_ready(bridge->commands))
		bridge->lost = 0;
}

static void
tell_apps(struct bridge *bridge, const char *text)
{
	if (messenger_send_to_app(bridge->messenger, action_of(bridge, "message"), text) == -1)
		lose(bridge, strerror(errno));
}

static int
on_published(struct redis *redis, const struct redis_reply *reply, void *arg)
{
	(void)redis;
	if (reply->type != REDIS_INTEGER)
		lose(arg, reply->text);
	return 0;
}

/* The apps of this cluster hear it at once, without Redis. `text` is a C string. */
static void
agent_publish(struct bridge *bridge, const char *text, size_t length)
{
	struct envelope envelope;

	if (!read_envelope(&envelope, text, length) ||
	    strcmp(envelope.from, bridge->cluster) != 0) {
		say(bridge, "an app has sent what is no message; it is not published");
		return;
	}
	if (is_for_us(bridge, &envelope))
		tell_apps(bridge, text);
	if (strcmp(envelope.to, bridge->cluster) == 0)
		return;
	if (!redis_ready(bridge->commands))
		lose(bridge, "there is no connection to Redis");
	else if (redis_command(bridge->commands, on_published, bridge, "PUBLISH", bridge->key, text,
	                       (char *)NULL) == -1)
		lose(bridge, strerror(errno));
}

static int
on_publish(struct messenger *agent, const struct message *message, void *arg)
{
	(void)agent;
	if (message->data != NULL)
		agent_publish(arg, message->data, message->data_length);
	return 0;
}

/* Take no reliable message until the next epoch. */
static void
refuse(struct bridge *bridge, int milliseconds)
{
	bridge->epoch = 0;
	look_again(bridge, milliseconds);
}

/* Begin a new epoch, if Redis is there and this cluster has joined (so that it will hear its
 * own messages). All senders then begin with their first message that is not done. */
static void
announce(struct bridge *bridge)
{
	int64_t now = clutch_now();
	char data[24];

	if (bridge->epoch != 0 || !bridge->joined || !redis_ready(bridge->commands))
		return;
	bridge->last_epoch = now > bridge->last_epoch ? now : bridge->last_epoch + 1;
	snprintf(data, sizeof data, "%lld", (long long)bridge->last_epoch);
	if (messenger_send_to_app(bridge->messenger, action_of(bridge, "ready"), data) == -1)
		look_again(bridge, SOON);
	else
		begin_epoch(bridge, bridge->last_epoch);
}

/* A reliable message that is on its way to Redis. */
struct addition {
	struct bridge *bridge;
	pid_t sender;
	char id[ID_MAX];
};

static int
on_added(struct redis *redis, const struct redis_reply *reply, void *arg)
{
	struct addition addition = *(struct addition *)arg;
	struct bridge *bridge = addition.bridge;
	char data[ID_MAX + 2];

	(void)redis;
	free(arg);
	if (reply->type != REDIS_STRING) {
		if (reply->type == REDIS_ERROR)
			say(bridge, "Redis does not take messages: %s", reply->text);
		refuse(bridge, LATER);
		return 0;
	}
	if (addition.sender == messenger_pid(bridge->messenger)) {
		finish(bridge, addition.id);
		return 0;
	}
	snprintf(data, sizeof data, "\"%s\"", addition.id);
	if (messenger_send_to(bridge->messenger, addition.sender, action_of(bridge, "done"),
	                      data) == -1)
		refuse(bridge, SOON); /* the app will send it again */
	return 0;
}

static int
add(struct bridge *bridge, pid_t sender, const char *id, const char *text, size_t length)
{
	char most[24];
	size_t digits = (size_t)snprintf(most, sizeof most, "%d", BRIDGE_STREAM_MAX);
	const char *const argv[] = {"XADD", bridge->stream, "MAXLEN", "~", most, "*", "m", text};
	const size_t lengths[] = {4, strlen(bridge->stream), 6, 1, digits, 1, 1, length};
	struct addition *addition = malloc(sizeof *addition);

	if (addition == NULL)
		return -1;
	*addition = (struct addition){.bridge = bridge, .sender = sender};
	memcpy(addition->id, id, strlen(id) + 1); /* agent_send has checked its length */
	if (redis_command_argv(bridge->commands, on_added, addition, 8, argv, lengths) == 0)
		return 0;
	free(addition);
	return -1;
}

/* "[epoch,pid,message]" */
static void
agent_send(struct bridge *bridge, const char *text, size_t length)
{
	struct envelope envelope;
	long long epoch;
	long pid;

	if (length <= SEND_HEAD || sscanf(text, "[%20lld,%20ld,", &epoch, &pid) != 2 || pid <= 0 ||
	    text[length - 1] != ']' ||
	    !read_envelope(&envelope, text + SEND_HEAD, length - SEND_HEAD - 1) ||
	    strcmp(envelope.from, bridge->cluster) != 0 || strlen(envelope.id) >= ID_MAX) {
		say(bridge, "an app has sent what is no message; it is not sent");
		return;
	}
	if (epoch != bridge->epoch)
		return; /* the sender will send it again */
	if (!redis_ready(bridge->commands) ||
	    add(bridge, (pid_t)pid, envelope.id, text + SEND_HEAD, length - SEND_HEAD - 1) == -1)
		refuse(bridge, SOON);
}

static int
on_send(struct messenger *agent, const struct message *message, void *arg)
{
	(void)agent;
	if (message->data != NULL)
		agent_send(arg, message->data, message->data_length);
	return 0;
}

static int
on_commands_change(struct redis *redis, bool ready, void *arg)
{
	struct bridge *bridge = arg;

	(void)redis, (void)ready; /* announce checks it */
	bridge->epoch = 0;
	count_losses(bridge);
	announce(bridge);
	return 0;
}

/* ---- agent: from Redis, published messages -------------------- */

static int
on_heard_published(struct redis *redis, const struct redis_reply *reply, void *arg)
{
	const struct redis_reply *text = &reply->element[2];
	struct bridge *bridge = arg;
	struct envelope envelope;

	(void)redis;
	if (!redis_is(&reply->element[0], "message"))
		return 0;
	if (text->type != REDIS_STRING || memchr(text->text, '\0', text->length) != NULL ||
	    !read_envelope(&envelope, text->text, text->length))
		lose(bridge, "what somebody has published is no message");
	else if (strcmp(envelope.from, bridge->cluster) != 0 && is_for_us(bridge, &envelope))
		tell_apps(bridge, text->text);
	return 0;
}

/* ---- agent: from the stream -------------------- */

static void read_stream(struct bridge *bridge);

static struct member *
find_member(struct bridge *bridge, pid_t pid)
{
	size_t i;

	for (i = 0; i < bridge->member_count; i++)
		if (bridge->members[i].pid == pid)
			return &bridge->members[i];
	return NULL;
}

static bool
anybody(const struct bridge *bridge, bool owing)
{
	size_t i;

	for (i = 0; i < bridge->member_count; i++)
		if (owing ? bridge->members[i].owes : bridge->members[i].listening)
			return true;
	return false;
}

static int
on_acknowledged(struct redis *redis, const struct redis_reply *reply, void *arg)
{
	struct bridge *bridge = arg;

	(void)redis;
	bridge->reading = false;
	if (reply->type == REDIS_INTEGER) {
		read_stream(bridge);
	} else if (reply->type == REDIS_ERROR) {
		say(bridge, "Redis does not hear what was delivered: %s", reply->text);
		bridge->again = true;
		look_again(bridge, LATER);
	}
	return 0;
}

/* End the batch: acknowledge it if it was heard, otherwise read it again. */
static void
end_batch(struct bridge *bridge, bool heard)
{
	const char *argv[3 + BRIDGE_BATCH] = {"XACK", bridge->stream, bridge->cluster};
	size_t i;

	for (i = 0; i < bridge->batch; i++)
		argv[3 + i] = bridge->ids[i];
	bridge->reading = heard && redis_command_argv(bridge->reader, on_acknowledged, bridge,
	                                              3 + bridge->batch, argv, NULL) == 0;
	bridge->batch = 0;
	bridge->marked = false;
	if (!bridge->reading) {
		bridge->again = true;
		look_again(bridge, SOON);
	}
}

/* End the batch when every app that was asked has answered or is gone. */
static void
end_mark(struct bridge *bridge)
{
	if (bridge->marked && !anybody(bridge, true))
		end_batch(bridge, bridge->heard);
}

/* Ask the apps whether they have heard the batch. */
static void
ask_apps(struct bridge *bridge)
{
	char data[24];
	size_t i;

	snprintf(data, sizeof data, "%llu", (unsigned long long)bridge->mark + 1);
	if (messenger_send_to_app(bridge->messenger, action_of(bridge, "mark"), data) == -1) {
		look_again(bridge, SOON);
		return;
	}
	bridge->mark++;
	bridge->marked = true;
	bridge->heard = false;
	bridge->marked_at = clutch_now();
	for (i = 0; i < bridge->member_count; i++)
		bridge->members[i].owes = bridge->members[i].listening;
	look_again(bridge, LATER);
	end_mark(bridge);
}

/* An entry is [id, [field, message]], or [id, nil] if the stream has only its id left. */
static bool
is_message(const struct redis_reply *entry, struct envelope *envelope)
{
	const struct redis_reply *fields = &entry->element[1], *text;

	if (fields->type != REDIS_ARRAY || fields->count != 2)
		return false;
	text = &fields->element[1];
	return text->type == REDIS_STRING && memchr(text->text, '\0', text->length) == NULL &&
	       read_envelope(envelope, text->text, text->length);
}

/* Send one entry to the apps, and add it to the batch, so that it is acknowledged. An entry
 * that is no message is only acknowledged. -1: it does not fit now. */
static int
take_entry(struct bridge *bridge, const struct redis_reply *entry, bool *sent)
{
	struct envelope envelope;
	const char *id;

	if (entry->type != REDIS_ARRAY || entry->count != 2 ||
	    entry->element[0].type != REDIS_STRING || entry->element[0].length >= STREAM_ID_MAX) {
		say(bridge, "Redis gives an entry without an id; it is left out");
		return 0;
	}
	id = entry->element[0].text;
	if (entry->element[1].type == REDIS_NIL)
		say(bridge,
		    "%s is lost: the stream is too short for how long this cluster was away", id);
	else if (!is_message(entry, &envelope))
		say(bridge, "%s is no message of a bridge; it is left out", id);
	else if (is_for_us(bridge, &envelope)) {
		if (messenger_send_to_app(bridge->messenger, action_of(bridge, "message"),
		                          entry->element[1].element[1].text) == -1)
			return -1;
		*sent = true;
	}
	snprintf(bridge->ids[bridge->batch++], STREAM_ID_MAX, "%s", id);
	return 0;
}

/* [[stream, [entry, ...]]]. The entries that fit go to the apps, the rest is read again. */
static void
take_entries(struct bridge *bridge, const struct redis_reply *entries)
{
	bool sent = false, fits = true;
	size_t i;

	for (i = 0; fits && i < entries->count && bridge->batch < BRIDGE_BATCH; i++)
		fits = take_entry(bridge, &entries->element[i], &sent) == 0;
	if (!fits)
		bridge->again = true;
	else if (bridge->batch == 0)
		bridge->again = false; /* no entry can be acknowledged */
	if (sent)
		ask_apps(bridge);
	else if (bridge->batch > 0)
		end_batch(bridge, true);
	else if (entries->count == 0)
		read_stream(bridge);
	else
		look_again(bridge, SOON);
}

static void join(struct bridge *bridge);

static int
on_read(struct redis *redis, const struct redis_reply *reply, void *arg)
{
	struct bridge *bridge = arg;

	(void)redis;
	bridge->reading = false;
	switch (reply->type) {
	case REDIS_NIL: /* there was no new message */
		read_stream(bridge);
		break;
	case REDIS_ARRAY:
		if (reply->count == 1 && reply->element[0].count == 2)
			take_entries(bridge, &reply->element[0].element[1]);
		break;
	case REDIS_ERROR:
		if (strncmp(reply->text, "NOGROUP", strlen("NOGROUP")) == 0) {
			say(bridge, "Redis has forgotten this cluster; it joins again");
			bridge->joined = false;
			join(bridge);
			break;
		}
		say(bridge, "Redis does not give messages: %s", reply->text);
		look_again(bridge, LATER);
		break;
	case REDIS_STATUS:
	case REDIS_INTEGER:
	case REDIS_STRING:
	case REDIS_NO_REPLY: /* the next connection begins again */
		break;
	}
	return 0;
}

/* Read the next batch, if an app listens and the last batch has ended. */
static void
read_stream(struct bridge *bridge)
{
	char count[16], block[16];

	if (!bridge->joined || bridge->reading || bridge->batch > 0 ||
	    !redis_ready(bridge->reader) || !anybody(bridge, false))
		return;
	snprintf(count, sizeof count, "%d", BRIDGE_BATCH);
	snprintf(block, sizeof block, "%d", bridge->timeout);
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
	if (reply->type == REDIS_ERROR && strncmp(reply->text, busy, sizeof busy - 1) != 0) {
		say(bridge, "this cluster cannot join: %s", reply->text);
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

/* Messages that were sent to the apps and not acknowledged are read again. */
static int
on_reader_change(struct redis *redis, bool ready, void *arg)
{
	struct bridge *bridge = arg;

	(void)redis;
	bridge->joined = bridge->reading = bridge->marked = false;
	bridge->again = true;
	bridge->batch = 0;
	if (ready)
		join(bridge);
	return 0;
}

/* ---- agent: its apps -------------------- */

static bool
is_listening(const struct bridge *bridge, pid_t pid)
{
	size_t i, count;
	const pid_t *pids = messenger_opids(bridge->messenger, &count);

	for (i = 0; i < count; i++)
		if (pids[i] == pid)
			return true;
	return false;
}

/* An app that has been listening, and is not any more, is gone. An app that has not been
 * listening is still loading. */
static int
on_egg_pids_in_agent(struct messenger *agent, const struct message *message, void *arg)
{
	struct bridge *bridge = arg;
	struct member *member;
	size_t i = 0;
	bool listening;

	(void)agent, (void)message;
	while (i < bridge->member_count) {
		member = &bridge->members[i];
		listening = is_listening(bridge, member->pid);
		if (member->listening && !listening) {
			*member = bridge->members[--bridge->member_count];
			continue;
		}
		member->listening = listening;
		i++;
	}
	end_mark(bridge);
	read_stream(bridge);
	return 0;
}

/* Room for one more app. If there is none, an app that has never been listening, and may be
 * dead, loses its place. */
static struct member *
add_member(struct bridge *bridge)
{
	size_t i = bridge->member_count;

	if (i < CLUTCH_WORKERS_MAX)
		return &bridge->members[bridge->member_count++];
	for (i = 0; i < CLUTCH_WORKERS_MAX && bridge->members[i].listening; i++)
		;
	return i < CLUTCH_WORKERS_MAX ? &bridge->members[i] : NULL;
}

/* An app is there, or has found that this agent is new: tell it the epoch. */
static int
on_hello(struct messenger *agent, const struct message *message, void *arg)
{
	pid_t pid = message->data != NULL ? (pid_t)strtol(message->data, NULL, 10) : 0;
	struct bridge *bridge = arg;
	struct member *member;
	char data[24];

	if (pid <= 0)
		return 0;
	member = find_member(bridge, pid) == NULL ? add_member(bridge) : NULL;
	if (member != NULL)
		*member = (struct member){.pid = pid, .listening = is_listening(bridge, pid)};
	snprintf(data, sizeof data, "%lld", (long long)bridge->epoch);
	if (bridge->epoch != 0 &&
	    messenger_send_to(agent, pid, action_of(bridge, "ready"), data) == -1)
		refuse(bridge, SOON);
	read_stream(bridge);
	return 0;
}

/* An app has heard all up to a mark: "[mark,pid]". */
static int
on_heard(struct messenger *agent, const struct message *message, void *arg)
{
	struct bridge *bridge = arg;
	struct member *member;
	unsigned long long mark;
	long pid;

	(void)agent;
	if (message->data == NULL || sscanf(message->data, "[%20llu,%10ld]", &mark, &pid) != 2 ||
	    !bridge->marked || mark != bridge->mark)
		return 0;
	member = find_member(bridge, (pid_t)pid);
	if (member == NULL || !member->owes)
		return 0;
	member->owes = false;
	bridge->heard = true;
	end_mark(bridge);
	return 0;
}

/* An app that takes too long to answer holds up the others: go on without its answer. The
 * messages wait in its channel, in their order, as long as it lives. */
static void
watch_mark(struct bridge *bridge)
{
	size_t i;

	if (!bridge->marked)
		return;
	if (clutch_now() - bridge->marked_at < 2 * (int64_t)bridge->timeout) {
		look_again(bridge, LATER);
		return;
	}
	for (i = 0; i < bridge->member_count; i++) {
		if (bridge->members[i].owes)
			say(bridge, "app %ld is slow to hear; the others go on",
			    (long)bridge->members[i].pid);
		bridge->members[i].owes = false;
	}
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
		pump(bridge);
		return 0;
	}
	count_losses(bridge);
	announce(bridge);
	if (redis_ready(bridge->reader) && !bridge->joined && redis_pending(bridge->reader) == 0)
		join(bridge);
	if (bridge->batch > 0 && !bridge->marked)
		ask_apps(bridge);
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

	while ((bridge->waiting > 0 ||
	        (bridge->commands != NULL && redis_pending(bridge->commands) > 0)) &&
	       (left = deadline - clutch_now()) > 0)
		if (messenger_step(messenger, (int)left) != 1)
			break;
	if (bridge->waiting > 0)
		say(bridge, "%zu messages may not have reached Redis", bridge->waiting);
	return 0;
}

/* The messages that each role listens to, besides egg-pids. */
static const struct hearing {
	enum role role;
	const char *what;
	messenger_listener listener;
} hearings[] = {
	{ROLE_APP, "ready", on_ready},     {ROLE_APP, "done", on_done},
	{ROLE_APP, "message", on_message}, {ROLE_APP, "mark", on_mark},
	{ROLE_AGENT, "hello", on_hello},   {ROLE_AGENT, "publish", on_publish},
	{ROLE_AGENT, "send", on_send},     {ROLE_AGENT, "heard", on_heard},
};

static int
listen_to_all(struct bridge *bridge)
{
	enum role role = messenger_role(bridge->messenger);
	size_t i;

	for (i = 0; i < sizeof hearings / sizeof hearings[0]; i++)
		if (hearings[i].role == role &&
		    messenger_on(bridge->messenger, action_of(bridge, hearings[i].what),
		                 hearings[i].listener, bridge) == -1)
			return -1;
	return messenger_on(bridge->messenger, "egg-pids",
	                    role == ROLE_APP ? on_egg_pids_in_app : on_egg_pids_in_agent, bridge);
}

static int
open_connections(struct bridge *bridge, const char *url)
{
	struct redis_options options = {
		.timeout = bridge->timeout, .drops = true, .log = on_line, .arg = bridge};

	bridge->ear = redis_open(bridge->messenger, url, &options);
	options.on_change = on_commands_change;
	bridge->commands = redis_open(bridge->messenger, url, &options);
	options.on_change = on_reader_change;
	options.timeout = 2 * bridge->timeout; /* Redis waits for a message during half of it */
	bridge->reader = redis_open(bridge->messenger, url, &options);
	if (bridge->ear == NULL || bridge->commands == NULL || bridge->reader == NULL)
		return -1;
	return redis_subscribe(bridge->ear, bridge->key, on_heard_published, bridge);
}

/* Undo a start that has failed. */
static void
give_up(struct bridge *bridge)
{
	size_t i;
	int saved = errno;

	for (i = 0; i < sizeof hearings / sizeof hearings[0]; i++)
		messenger_remove_listener(bridge->messenger, action_of(bridge, hearings[i].what),
		                          hearings[i].listener, bridge);
	messenger_remove_listener(bridge->messenger, "egg-pids", on_egg_pids_in_app, bridge);
	messenger_remove_listener(bridge->messenger, "egg-pids", on_egg_pids_in_agent, bridge);
	redis_close(bridge->ear);
	redis_close(bridge->commands);
	redis_close(bridge->reader);
	free(bridge->data);
	free(bridge);
	errno = saved;
}

/* The beginning of this process's message ids, which no other process has. */
static void
make_token(char token[17])
{
	unsigned char bytes[8];
	int file = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
	struct timespec time;
	size_t i;

	if (file == -1 || read(file, bytes, sizeof bytes) != (ssize_t)sizeof bytes) {
		clock_gettime(CLOCK_REALTIME, &time);
		time.tv_sec ^= (time_t)getpid() << 16;
		memcpy(bytes, &time.tv_nsec, 4);
		memcpy(bytes + 4, &time.tv_sec, 4);
	}
	if (file != -1)
		close(file);
	for (i = 0; i < sizeof bytes; i++)
		snprintf(token + 2 * i, 3, "%02x", bytes[i]);
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
	snprintf(bridge->channel, sizeof bridge->channel, "%s", channel);
	snprintf(bridge->cluster, sizeof bridge->cluster, "%s", cluster);
	snprintf(bridge->key, sizeof bridge->key, "clutch:%s", channel);
	snprintf(bridge->stream, sizeof bridge->stream, "clutch:%s:stream", channel);
	make_token(bridge->token);
	bridge->mark = (uint64_t)clutch_now() << 16; /* no mark of the agent before is larger */
	bridge->data = malloc(BRIDGE_DATA_MAX + ENVELOPE_MAX);
	if (bridge->data == NULL || (role == ROLE_AGENT && open_connections(bridge, url) == -1) ||
	    listen_to_all(bridge) == -1 ||
	    messenger_before_close(messenger, on_leave, bridge) == -1) {
		give_up(bridge);
		return NULL;
	}
	if (role == ROLE_APP)
		say_hello(bridge);
	return bridge;
}
