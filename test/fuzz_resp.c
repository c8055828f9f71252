/*
 * A server sends any bytes, in any pieces. The parser and the client find the same replies as
 * the model, and each command has one answer. A command that the client composes can be parsed.
 *
 * An input is in pieces, as in fuzz.h. Its first piece also serves as the words of a command.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "fuzz.h"
#include "redis/resp.h"

#include <errno.h>
#include <sys/socket.h>
#include <sys/un.h>

enum { COMMANDS = 6 };

/* ---- replies as text ----------------------------------------------------------- */

static void
show(struct text *text, char kind, int64_t number, const char *bytes, size_t length)
{
	char head[64];

	text_add(text, head,
	         (size_t)snprintf(head, sizeof head, "%c%lld:", kind, (long long)number));
	text_add(text, bytes, length);
	text_add(text, ";", 1);
}

static void
show_reply(struct text *text, const struct redis_reply *reply)
{
	static const char kinds[] = {
		[REDIS_STATUS] = '+',  [REDIS_ERROR] = '-', [REDIS_INTEGER] = ':',
		[REDIS_STRING] = '$',  [REDIS_NIL] = '_',   [REDIS_ARRAY] = '*',
		[REDIS_NO_REPLY] = '!'};
	bool is_array = reply->type == REDIS_ARRAY, is_lost = reply->type == REDIS_NO_REPLY;
	int64_t number = is_array ? (int64_t)reply->count : reply->integer;
	size_t i;

	CHECK(reply->text[reply->length] == '\0');
	show(text, kinds[reply->type], number, reply->text, is_lost ? 0 : reply->length);
	for (i = 0; i < reply->count; i++)
		show_reply(text, &reply->element[i]);
}

/* ---- the model ------------------------------------------------------------------ */

struct model {
	const char *bytes;
	size_t length, at, elements;
};

/* Parse digits, perhaps with a sign, that fit into an int64_t. */
static bool
model_number(const char *at, const char *end, int64_t *number)
{
	bool minus = *at == '-';
	uint64_t value = 0, most = (uint64_t)INT64_MAX + minus, digit;

	at += *at == '-' || *at == '+';
	if (at == end)
		return false;
	for (; at < end; at++) {
		digit = (uint64_t)(*at - '0');
		if (*at < '0' || *at > '9' || value > (most - digit) / 10)
			return false;
		value = 10 * value + digit;
	}
	*number = (int64_t)(minus ? 0 - value : value);
	return true;
}

/* Store the length of the next line. Otherwise it is not whole yet, or too long. */
static enum resp
model_line(const struct model *model, size_t *size)
{
	const char *line = model->bytes + model->at;
	size_t left = model->length - model->at, i = 0;

	while (i < left && line[i] != '\n')
		i++;
	if ((i > 0 && strchr("+-:$*", line[0]) == NULL) || (i > 0 && line[0] == '\0') ||
	    i > REDIS_LINE_MAX)
		return RESP_BROKEN;
	if (i == left)
		return RESP_TORN;
	*size = i - 1;
	return i > 0 && memchr(line, '\r', i) == line + i - 1 ? RESP_WHOLE : RESP_BROKEN;
}

static enum resp
model_string(struct model *model, int64_t length, struct text *text)
{
	const char *bytes = model->bytes + model->at;

	if (length < 0 || length > REDIS_REPLY_MAX)
		return RESP_BROKEN;
	if ((int64_t)(model->length - model->at) < length + 2)
		return RESP_TORN;
	model->at += (size_t)length + 2;
	show(text, '$', 0, bytes, (size_t)length);
	return memcmp(bytes + length, "\r\n", 2) == 0 ? RESP_WHOLE : RESP_BROKEN;
}

static enum resp
model_reply(struct model *model, struct text *text, int depth)
{
	const char *line = model->bytes + model->at;
	int64_t number = 0;
	size_t size;
	enum resp result = model_line(model, &size);

	if (result != RESP_WHOLE)
		return result;
	model->at += size + 2;
	if (*line == '+' || *line == '-') {
		show(text, *line, 0, line + 1, size - 1);
		return RESP_WHOLE;
	}
	if (!model_number(line + 1, line + size, &number))
		return RESP_BROKEN;
	if (*line == ':' || number == -1) {
		show(text, *line == ':' ? ':' : '_', *line == ':' ? number : 0, NULL, 0);
		return RESP_WHOLE;
	}
	if (*line == '$')
		return model_string(model, number, text);
	show(text, '*', number, NULL, 0);
	if (number < 0 || number > REDIS_ELEMENTS_MAX || (number > 0 && depth == REDIS_DEPTH_MAX))
		return RESP_BROKEN;
	model->elements += (size_t)number;
	if (model->elements > REDIS_ELEMENTS_MAX)
		return RESP_BROKEN;
	while (result == RESP_WHOLE && number-- > 0)
		result = model_reply(model, text, depth + 1);
	return result;
}

/* Parse the reply at the beginning of the bytes; *size is its length. */
static enum resp
model_parse(const char *bytes, size_t length, struct text *text, size_t *size)
{
	struct model model = {bytes, length, 0, 1};
	size_t before = text->length;
	enum resp result = model_reply(&model, text, 0);

	if ((result == RESP_TORN ? length : model.at) > REDIS_REPLY_MAX)
		result = RESP_BROKEN;
	if (result != RESP_WHOLE)
		text->length = before;
	*size = model.at;
	return result;
}

/* ---- first act: the parser -------------------------------------------------------- */

/* The reply at the beginning of the bytes must be the model's. Returns its size; 0: none. */
static size_t
check_parse(struct resp_parser *resp, const char *bytes, size_t length)
{
	static struct text said, expected;
	char *copy = malloc(length + 1);
	enum resp result;
	size_t size;

	CHECK(copy != NULL);
	memcpy(copy, bytes, length);
	said.length = expected.length = 0;
	result = resp_parse(resp, copy, length);
	CHECK(result == model_parse(bytes, length, &expected, &size));
	if (result == RESP_WHOLE)
		show_reply(&said, resp->elements);
	CHECK(result != RESP_WHOLE || (resp->at == size && text_is(&said, &expected)));
	CHECK(result != RESP_BROKEN || (resp->why != NULL && resp->why[0] != '\0'));
	free(copy);
	return result == RESP_WHOLE ? size : 0;
}

static void
act_parser(struct pieces pieces)
{
	const char *bytes = (const char *)pieces.bytes;
	struct resp_parser resp = {0};
	size_t start = 0, size;

	while (pieces_next(&pieces) > 0)
		while (start < pieces.at &&
		       (size = check_parse(&resp, bytes + start, pieces.at - start)) > 0)
			start += size;
	free(resp.elements);
}

/* ---- second act: the client --------------------------------------------------------- */

static int server = -1;
static char folder[] = "/tmp/clutch-fuzz-XXXXXX", path[sizeof folder + 8], url[sizeof path + 8];

static void
remove_server(void)
{
	unlink(path);
	rmdir(folder);
}

static void
open_server(void)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};

	if (server != -1)
		return;
	server = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	CHECK(server != -1 && mkdtemp(folder) != NULL && atexit(remove_server) == 0);
	snprintf(path, sizeof path, "%s/redis", folder);
	snprintf(url, sizeof url, "unix://%s", path);
	memcpy(address.sun_path, path, sizeof path);
	CHECK(bind(server, (struct sockaddr *)&address, sizeof address) == 0);
	CHECK(listen(server, 1) == 0);
}

static void
quiet(const char *line, void *arg)
{
	(void)arg;
	CHECK(strpbrk(line, "\r\n") == NULL);
}

struct answers {
	struct text text;
	int count;
};

static int
on_reply(struct redis *redis, const struct redis_reply *reply, void *arg)
{
	struct answers *answers = arg;

	(void)redis;
	show_reply(&answers->text, reply);
	answers->count++;
	return 0;
}

/* The client must have written this command `count` times. */
static void
check_command(int descriptor, const char *word, size_t length, int count)
{
	static char bytes[COMMANDS * 1024];
	static struct text said, expected;
	struct resp_parser resp = {0};
	ssize_t got = recv(descriptor, bytes, sizeof bytes, MSG_DONTWAIT);
	size_t start = 0;

	CHECK(got > 0 && (size_t)got < sizeof bytes);
	for (; count > 0; count--, start += resp.at) {
		said.length = expected.length = 0;
		show(&expected, '*', 2, NULL, 0);
		show(&expected, '$', 0, "SET", 3);
		show(&expected, '$', 0, word, length);
		CHECK(resp_parse(&resp, bytes + start, (size_t)got - start) == RESP_WHOLE);
		show_reply(&said, resp.elements);
		CHECK(text_is(&said, &expected));
	}
	CHECK(start == (size_t)got);
	free(resp.elements);
}

/* Connect, greet, and send the commands. Returns the server's end. */
static int
begin(struct redis *redis, struct answers *answers, const char *word, size_t length)
{
	const char *words[] = {"SET", word};
	const size_t lengths[] = {3, length};
	char greeting[64];
	int i, descriptor;

	CHECK(redis_step(redis, 0) == 0);
	descriptor = accept(server, NULL, NULL);
	CHECK(descriptor != -1 && redis_step(redis, 0) == 0);
	CHECK(recv(descriptor, greeting, sizeof greeting, 0) == 14);
	CHECK(memcmp(greeting, "*1\r\n$4\r\nPING\r\n", 14) == 0);
	CHECK(send(descriptor, "+PONG\r\n", 7, 0) == 7 && redis_step(redis, 0) == 1);
	for (i = 0; i < COMMANDS; i++)
		CHECK(redis_command_argv(redis, on_reply, answers, 2, words, lengths) == 0);
	CHECK(redis_step(redis, 0) == 1);
	check_command(descriptor, word, length, COMMANDS);
	return descriptor;
}

/* The expected calls of the callbacks: COMMANDS replies, or the news that none comes. */
static void
model_answers(const struct pieces *pieces, struct answers *expected)
{
	const char *bytes = (const char *)pieces->bytes;
	size_t start = 0, size;

	while (expected->count < COMMANDS && start < pieces->length &&
	       model_parse(bytes + start, pieces->length - start, &expected->text, &size) ==
	               RESP_WHOLE) {
		start += size;
		expected->count++;
	}
	for (; expected->count < COMMANDS; expected->count++)
		show(&expected->text, '!', 0, NULL, 0);
}

static void
act_client(struct pieces pieces)
{
	static struct answers answers, expected;
	const char *bytes = (const char *)pieces.bytes;
	size_t size, first = pieces.length < 256 ? pieces.length : 256;
	struct redis *redis = redis_open(NULL, url, &(struct redis_options){.log = quiet});
	int descriptor;

	CHECK(redis != NULL);
	answers.count = expected.count = 0;
	answers.text.length = expected.text.length = 0;
	descriptor = begin(redis, &answers, bytes, first);
	while (redis_ready(redis) && (size = pieces_next(&pieces)) > 0) {
		CHECK(send(descriptor, bytes + pieces.at - size, size, MSG_NOSIGNAL) ==
		      (ssize_t)size);
		redis_step(redis, 0);
	}
	close(descriptor);
	redis_close(redis);
	model_answers(&pieces, &expected);
	CHECK(answers.count == COMMANDS && text_is(&answers.text, &expected.text));
}

int
LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
	struct pieces pieces;

	if (!pieces_read(&pieces, input, size))
		return 0;
	open_server();
	act_parser(pieces);
	act_client(pieces);
	return 0;
}
