/*
 * A hostile app sends any packets to the leader, or a hostile leader to a follower. A valid packet
 * has its effect once, a wrong one ends the connection, and other clients notice nothing.
 *
 * An input is a byte (even: the leader hears the packets; odd: a follower), and packets:
 *
 *	+------+----+----+--------+----------+
 *	| type | to | id | length | the data |
 *	+------+----+----+--------+----------+
 *
 * The model reads the same packets, and writes the expected calls into a text.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#define CLUSTER_CLIENT_PRIVATE
#include "cluster-client/cluster_client.h"
#include "fuzz.h"

#include <sys/socket.h>

static struct text happened, expected;

static void
note(struct text *text, char what, const char *key, const char *data, size_t length)
{
	text_add(text, &what, 1);
	text_add(text, key, strlen(key) + 1);
	text_add(text, data, length);
	text_add(text, ";", 1);
}

/* ---- the real client, and the honest user ---------------------------------------- */

static void
on_subscribe(struct cluster_client *client, const char *key, void *arg)
{
	(void)arg;
	note(&happened, 'S', key, NULL, 0);
	CHECK(cluster_client_emit(client, key, key, strlen(key)) == 0);
}

static void
on_unsubscribe(struct cluster_client *client, const char *key, void *arg)
{
	(void)client, (void)arg;
	note(&happened, 'U', key, NULL, 0);
}

static void
on_publish(struct cluster_client *client, const char *key, const char *data, size_t length,
           void *arg)
{
	(void)client, (void)arg;
	CHECK(data[length] == '\0');
	note(&happened, 'P', key, data, length);
}

static void
on_echo(struct cluster_client *client, struct cluster_call *call, const char *data, size_t length,
        void *arg)
{
	(void)client, (void)arg;
	note(&happened, 'I', "", data, length);
	CHECK(cluster_client_reply(call, data, length) == 0);
}

static const struct real_method methods[] = {{"echo", on_echo}, {NULL, NULL}};
static const struct real_client real = {.subscribe = on_subscribe,
                                        .unsubscribe = on_unsubscribe,
                                        .publish = on_publish,
                                        .methods = methods};

static int
on_value(struct cluster_client *client, const char *key, const char *data, size_t length, void *arg)
{
	(void)client, (void)arg;
	note(&happened, 'V', key, data, length);
	return 0;
}

static int
on_result(struct cluster_client *client, const struct cluster_error *error, const char *data,
          size_t length, void *arg)
{
	(void)client, (void)arg;
	CHECK((error == NULL) == (data != NULL));
	if (error != NULL)
		note(&happened, 'E', error->code, error->message, strlen(error->message));
	else
		note(&happened, 'R', "", data, length);
	return 0;
}

/* ---- packets ------------------------------------------------------------------------ */

static const char *const actions[] = {"subscribe_result",
                                      "invoke",
                                      "invoke_result",
                                      "publish",
                                      "subscribe",
                                      "unSubscribe",
                                      "register_channel",
                                      "register_channel_res",
                                      "heartbeat",
                                      "name",
                                      "close"};

struct stream {
	const uint8_t *at, *end;
};

static bool
next_packet(struct stream *stream, struct message *message)
{
	size_t left = (size_t)(stream->end - stream->at);

	if (left < 4)
		return false;
	*message = (struct message){.action = actions[stream->at[0] % 11],
	                            .to = (enum role)(stream->at[1] % 5),
	                            .receiver_pid = stream->at[2],
	                            .data = (const char *)stream->at + 4,
	                            .data_length = stream->at[3],
	                            .handle = -1};
	if (message->data_length > left - 4)
		message->data_length = left - 4;
	stream->at += 4 + message->data_length;
	return true;
}

/* ---- the model: a packet ------------------------------------------------------------- */

/* A packet has its effect, or closes the connection. LEFT_OPEN: the contract does not say
 * which; such a packet is not sent, and the stream ends before it. */
enum verdict { GOOD, CLOSES, LEFT_OPEN };

struct model {
	bool registered, answered;
	char before[256]; /* the name of the packet before, or "" */
	size_t count;
	char keys[1024][256]; /* an input has no room for more */
};

static void
model_reset(struct model *model)
{
	model->registered = model->answered = false;
	model->before[0] = '\0';
	model->count = 0;
}

static bool
is(const struct message *message, const char *action)
{
	return strcmp(message->action, action) == 0;
}

/* Cut the packet's name off its data. false: there is no name, or it is too long. */
static bool
cut_name(const struct model *model, struct message *message, char *name)
{
	const char *end = memchr(message->data, '\0', message->data_length);
	size_t length = end != NULL ? (size_t)(end - message->data) : SIZE_MAX;

	if (message->to == PACKET_NAMED_BEFORE) {
		strcpy(name, model->before);
		return name[0] != '\0';
	}
	if (length == 0 || length > CLUSTER_CLIENT_KEY_MAX)
		return false;
	strcpy(name, message->data);
	message->data += length + 1;
	message->data_length -= length + 1;
	return true;
}

static enum verdict
keep_name(struct model *model, const struct message *message)
{
	if (message->data_length == 0 || message->data_length > CLUSTER_CLIENT_KEY_MAX)
		return CLOSES;
	snprintf(model->before, sizeof model->before, "%.*s", (int)message->data_length,
	         message->data);
	return GOOD;
}

static size_t
find_key(const struct model *model, const char *key)
{
	size_t i = 0;

	while (i < model->count && strcmp(model->keys[i], key) != 0)
		i++;
	return i;
}

/* ---- the leader, and a hostile app ------------------------------------------------------ */

/* The honest user has the key "k" already. */
static enum verdict
subscribe(struct model *model, const char *key)
{
	if (find_key(model, key) < model->count)
		return GOOD;
	if (model->count >= CLUSTER_CLIENT_KEYS_MAX)
		return CLOSES;
	strcpy(model->keys[model->count++], key);
	if (strcmp(key, "k") != 0)
		note(&expected, 'S', key, NULL, 0);
	return GOOD;
}

static void
unsubscribe(struct model *model, const char *key)
{
	size_t i = find_key(model, key);

	if (i == model->count)
		return;
	if (strcmp(key, "k") != 0)
		note(&expected, 'U', key, NULL, 0);
	model->count--;
	memmove(model->keys[i], model->keys[i + 1], (model->count - i) * sizeof model->keys[0]);
}

static enum verdict
do_register(struct model *model, const struct message *message)
{
	char text[256];
	int timeout;
	long pid;

	snprintf(text, sizeof text, "%.*s", (int)message->data_length, message->data);
	if (model->registered || sscanf(text, "%ld %d", &pid, &timeout) != 2 || pid <= 0)
		return CLOSES;
	model->registered = true;
	return GOOD;
}

static enum verdict
model_leader(struct model *model, struct message *message)
{
	bool is_request = is(message, "subscribe") || is(message, "unSubscribe") ||
	                  is(message, "publish") || is(message, "invoke");
	char name[256];

	if (is(message, "name"))
		return keep_name(model, message);
	if (is_request && (!cut_name(model, message, name) || !model->registered))
		return CLOSES;
	model->before[0] = '\0';
	if (is(message, "heartbeat"))
		return GOOD;
	if (is(message, "register_channel"))
		return do_register(model, message);
	if (is(message, "subscribe"))
		return subscribe(model, name);
	if (is(message, "publish"))
		note(&expected, 'P', name, message->data, message->data_length);
	else if (is(message, "unSubscribe"))
		unsubscribe(model, name);
	else if (is(message, "invoke") && strcmp(name, "echo") == 0)
		note(&expected, 'I', "", message->data, message->data_length);
	else
		return CLOSES;
	return GOOD;
}

static struct messenger *processes[2]; /* an agent and an app */
static struct channel masters[2];      /* the other ends of their channels */

static void
turn(int which)
{
	struct message message;
	int i;

	for (i = 0; i < 6; i++) {
		CHECK(channel_flush(&masters[which]) == PEER_ALIVE);
		CHECK(messenger_step(processes[which], 0) == 1);
	}
	for (i = 0; which == 0 && channel_read(&masters[0]) == PEER_ALIVE && i < 2; i++)
		CHECK(channel_next(&masters[0], &message) == 0); /* the agent sends nothing */
}

/* An honest user of the agent still gets its value and its answer. */
static void
check_honest(struct cluster_client *leader)
{
	happened.length = expected.length = 0;
	CHECK(cluster_client_emit(leader, "k", "v", 1) == 0);
	CHECK(cluster_client_invoke(leader, "echo", "x", 1, on_result, NULL) == 0);
	turn(0);
	note(&expected, 'I', "", "x", 1);
	note(&expected, 'V', "k", "v", 1);
	note(&expected, 'R', "", "x", 1);
	CHECK(text_is(&happened, &expected));
}

/* After the end of the app's connection, each of its keys is unsubscribed, and nothing else has
 * happened. */
static void
check_keys_left(const struct model *model)
{
	static struct text one;
	size_t i, before = expected.length, length = 0;

	for (i = 0; i < model->count; i++) {
		if (strcmp(model->keys[i], "k") == 0)
			continue;
		one.length = 0;
		note(&one, 'U', model->keys[i], NULL, 0);
		length += one.length;
		CHECK(memmem(happened.bytes + before, happened.length - before, one.bytes,
		             one.length) != NULL);
	}
	CHECK(happened.length == before + length);
}

/* Send the packets, up to the first one that is not GOOD. Then everything that the model expects
 * must have happened, in that order, before anything else. */
static enum verdict
send_packets(struct channel *hostile, int which, struct stream *stream, struct model *model,
             enum verdict (*read)(struct model *model, struct message *message))
{
	enum verdict verdict = GOOD;
	struct message message, copy;

	while (verdict == GOOD && next_packet(stream, &message)) {
		if (which == 0 && message.to == PACKET_FAILED)
			message.to = ROLE_NONE; /* only answers can have failed */
		copy = message;
		verdict = read(model, &copy);
		if (verdict != LEFT_OPEN)
			CHECK(sendmessage(hostile, &message) == 0);
	}
	CHECK(channel_flush(hostile) == PEER_ALIVE);
	turn(which);
	CHECK(happened.length >= expected.length);
	CHECK(memcmp(happened.bytes, expected.bytes, expected.length) == 0);
	return verdict;
}

/* Has the other end closed the channel? Its last packets are read first. */
static bool
is_closed(struct channel *channel)
{
	struct message message;
	enum peer peer;
	uint64_t before;

	do {
		before = channel->bytes_in;
		peer = channel_read(channel);
		while (channel_next(channel, &message) == 1)
			;
	} while (peer == PEER_ALIVE && channel->bytes_in > before);
	return peer != PEER_ALIVE;
}

static void
act_leader(struct stream stream)
{
	struct cluster_client *leader = cluster_client_leader(processes[0], "c", &real, NULL);
	struct message hand = {.action = "cluster-client:c", .from = ROLE_APP};
	struct channel hostile;
	enum verdict verdict;
	struct model model;
	int pair[2];

	CHECK(leader != NULL && cluster_client_subscribe(leader, "k", on_value, NULL) == 0);
	CHECK(channel_pair(pair) == 0);
	hand.handle = pair[1];
	CHECK(sendmessage(&masters[0], &hand) == 0);
	close(pair[1]);
	channel_init(&hostile, 0);
	CHECK(channel_attach(&hostile, pair[0]) == 0);
	turn(0);
	happened.length = expected.length = 0;
	model_reset(&model);
	verdict = send_packets(&hostile, 0, &stream, &model, model_leader);
	CHECK(is_closed(&hostile) == (verdict == CLOSES));
	channel_close(&hostile);
	turn(0);
	check_keys_left(&model);
	check_honest(leader);
	cluster_client_close(leader);
	turn(0);
}

/* ---- a follower, and a hostile leader ---------------------------------------------------- */

/* An error consists of a code, a 0, and a text. */
static bool
is_error(const struct message *message)
{
	const char *code = message->data, *end = memchr(code, '\0', message->data_length);

	return end != NULL && end != code && end - code <= CLUSTER_CLIENT_KEY_MAX;
}

static enum verdict
note_answer(struct model *model, const struct message *message)
{
	const char *code = message->data, *end = memchr(code, '\0', message->data_length);

	if (message->to != PACKET_FAILED) {
		note(&expected, 'R', "", code, message->data_length);
	} else {
		note(&expected, 'E', code, end + 1,
		     strnlen(end + 1, message->data_length - (size_t)(end - code) - 1));
	}
	model->answered = true;
	return GOOD;
}

/* The follower has subscribed with number 1, and called a method with number 2. A value for
 * number 1 is for other subscribers. */
static enum verdict
model_follower(struct model *model, struct message *message)
{
	char name[256];

	if (is(message, "name"))
		return keep_name(model, message);
	if (is(message, "register_channel_res")) {
		if (message->to == PACKET_FAILED)
			return LEFT_OPEN;
		model->before[0] = '\0';
		if (model->registered)
			return CLOSES;
		model->registered = true;
		return GOOD;
	}
	if (!is(message, "subscribe_result") && !is(message, "invoke_result"))
		return is(message, "close") ? CLOSES : LEFT_OPEN;
	if (!model->registered)
		return LEFT_OPEN;
	if (is(message, "invoke_result")) {
		if (message->to == PACKET_FAILED && !is_error(message))
			return LEFT_OPEN;
		model->before[0] = '\0';
		return message->receiver_pid != 2 || model->answered ? GOOD
		                                                     : note_answer(model, message);
	}
	if (message->to == PACKET_FAILED)
		return LEFT_OPEN;
	if (!cut_name(model, message, name))
		return CLOSES;
	model->before[0] = '\0';
	if (strcmp(name, "k") == 0 && message->receiver_pid != 1)
		note(&expected, 'V', "k", message->data, message->data_length);
	return GOOD;
}

/* The end of a channel that the follower has sent to the agent, over its master. */
static int
take_end(void)
{
	struct message message;

	turn(1);
	CHECK(channel_read(&masters[1]) == PEER_ALIVE);
	CHECK(channel_next(&masters[1], &message) == 1 && message.handle != -1);
	CHECK(is(&message, "cluster-client:c"));
	return message.handle;
}

static void
act_follower(struct stream stream)
{
	struct cluster_client *follower = cluster_client_follower(processes[1], "c", &real, NULL);
	struct channel hostile;
	struct message message;
	struct model model;
	enum verdict verdict;
	size_t i, ends = 0;

	happened.length = expected.length = 0;
	CHECK(follower != NULL && cluster_client_subscribe(follower, "k", on_value, NULL) == 0);
	CHECK(cluster_client_invoke(follower, "echo", "x", 1, on_result, NULL) == 0);
	channel_init(&hostile, 0);
	CHECK(channel_attach(&hostile, take_end()) == 0);
	model_reset(&model);
	verdict = send_packets(&hostile, 1, &stream, &model, model_follower);
	CHECK(is_closed(&hostile) == (verdict == CLOSES));
	cluster_client_close(follower);
	turn(1);
	channel_close(&hostile);
	/* A follower that was held up for longer than CLUSTER_CLIENT_RETRY_MIN has connected again. */
	CHECK(channel_read(&masters[1]) == PEER_ALIVE);
	while (channel_next(&masters[1], &message) == 1)
		close(message.handle);
	/* A call without an answer has heard of the end, and no other callback was called. */
	for (i = expected.length; i < happened.length; i++)
		ends += happened.bytes[i] == ';';
	CHECK(ends == !model.answered);
}

/* ---- both -------------------------------------------------------------------------------- */

static void
open_processes(void)
{
	int i, pair[2], nothing;

	if (processes[0] != NULL)
		return;
	nothing = open("/dev/null", O_WRONLY | O_CLOEXEC);
	CHECK(nothing != -1);
	clutch_logging.descriptor = nothing;
	for (i = 0; i < 2; i++) {
		CHECK(channel_pair(pair) == 0);
		processes[i] = messenger_open(pair[0], i == 0 ? ROLE_AGENT : ROLE_APP);
		channel_init(&masters[i], 0);
		CHECK(processes[i] != NULL && channel_attach(&masters[i], pair[1]) == 0);
	}
}

int
LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
	struct stream stream = {input + 1, input + size};

	if (size < 1 || size > 4096)
		return 0;
	open_processes();
	if (input[0] % 2 == 0)
		act_leader(stream);
	else
		act_follower(stream);
	return 0;
}
