/*
 * RESP2: see resp.h.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "resp.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* The decimal number of a line, from `at` to its \r at `end`, and nothing else. */
static bool
read_integer(const char *at, const char *end, int64_t *integer)
{
	const char *digits = at + (*at == '-' || *at == '+');
	char *stop;

	if (*digits < '0' || *digits > '9') /* strtoll skips the end of a line */
		return false;
	errno = 0;
	*integer = strtoll(at, &stop, 10);
	return stop == end && errno == 0;
}

static enum resp
broken(struct resp_parser *resp, const char *why)
{
	resp->why = why;
	return RESP_BROKEN;
}

/* The line at resp->at. Of a string and of an array it has only the length: reply->integer. */
static enum resp
take_line(struct resp_parser *resp, const char *bytes, size_t length, struct redis_reply *reply)
{
	const char *line = bytes + resp->at, *end = memchr(line, '\n', length - resp->at);
	size_t size = end != NULL ? (size_t)(end - line) : length - resp->at;

	if (size > 0 && memchr("+-:$*", *line, 5) == NULL)
		return broken(resp, "a reply that is not RESP2");
	if (size > REDIS_LINE_MAX)
		return broken(resp, "a line longer than REDIS_LINE_MAX");
	if (end == NULL)
		return RESP_TORN;
	end = memchr(line, '\r', size);
	if (size == 0 || end != line + size - 1)
		return broken(resp, "a line that does not end with CR LF");
	resp->at += size + 1;
	*reply = (struct redis_reply){.type = *line == '-' ? REDIS_ERROR : REDIS_STATUS,
	                              .text = line + 1,
	                              .length = size - 2};
	if (*line == '+' || *line == '-')
		return RESP_WHOLE;
	*reply = (struct redis_reply){.type = REDIS_INTEGER, .text = ""};
	if (!read_integer(line + 1, end, &reply->integer))
		return broken(resp, "a number that is none");
	if (*line != ':' && reply->integer == -1)
		*reply = (struct redis_reply){.type = REDIS_NIL, .text = ""};
	else if (*line != ':')
		reply->type = *line == '$' ? REDIS_STRING : REDIS_ARRAY;
	return RESP_WHOLE;
}

static enum resp
take_string(struct resp_parser *resp, const char *bytes, size_t length, struct redis_reply *reply)
{
	size_t end = resp->at + (size_t)reply->integer;

	if (reply->integer < 0 || reply->integer > REDIS_REPLY_MAX)
		return broken(resp, "a string longer than REDIS_REPLY_MAX, or of negative length");
	if (length < end + 2)
		return RESP_TORN;
	if (bytes[end] != '\r' || bytes[end + 1] != '\n')
		return broken(resp, "a string that does not end with CR LF");
	*reply = (struct redis_reply){
		.type = REDIS_STRING, .text = bytes + resp->at, .length = (size_t)reply->integer};
	resp->at = end + 2;
	return RESP_WHOLE;
}

/* One reply. The depth of the recursion is bounded. */
static enum resp
take_reply(struct resp_parser *resp, char *bytes, size_t length, struct redis_reply *reply,
           int depth)
{
	enum resp result = take_line(resp, bytes, length, reply);
	struct redis_reply *element = resp->elements + resp->used;
	int64_t count = reply->integer;
	size_t i;

	if (result == RESP_WHOLE && reply->type == REDIS_STRING)
		return take_string(resp, bytes, length, reply);
	if (result != RESP_WHOLE || reply->type != REDIS_ARRAY)
		return result;
	if (count < 0 || count > REDIS_ELEMENTS_MAX)
		return broken(resp,
		              "an array longer than REDIS_ELEMENTS_MAX, or of negative length");
	if (count > 0 && depth == REDIS_DEPTH_MAX)
		return broken(resp, "arrays nested deeper than REDIS_DEPTH_MAX");
	if (resp->used + (size_t)count > REDIS_ELEMENTS_MAX)
		return broken(resp, "more elements than REDIS_ELEMENTS_MAX");
	*reply = (struct redis_reply){
		.type = REDIS_ARRAY, .text = "", .element = element, .count = (size_t)count};
	resp->used += reply->count;
	if (resp->used > resp->size)
		return RESP_TORN;
	for (i = 0; result == RESP_WHOLE && i < reply->count; i++)
		result = take_reply(resp, bytes, length, &element[i], depth + 1);
	return result;
}

enum resp
resp_parse(struct resp_parser *resp, char *bytes, size_t length)
{
	struct redis_reply *grown;
	enum resp result;
	size_t i;

	do {
		if (resp->used >= resp->size) {
			grown = realloc(resp->elements, 2 * (resp->used + 1) * sizeof *grown);
			if (grown == NULL)
				return broken(resp, strerror(ENOMEM));
			resp->elements = grown;
			resp->size = 2 * (resp->used + 1);
		}
		resp->at = 0;
		resp->used = 1;
		result = take_reply(resp, bytes, length, resp->elements, 0);
	} while (resp->used > resp->size);
	if (result == RESP_TORN ? length > REDIS_REPLY_MAX : resp->at > REDIS_REPLY_MAX)
		return broken(resp, "a reply longer than REDIS_REPLY_MAX");
	for (i = 0; result == RESP_WHOLE && i < resp->used; i++)
		if (resp->elements[i].text[0] != '\0' || resp->elements[i].length > 0)
			bytes[resp->elements[i].text - bytes +
			      (ptrdiff_t)resp->elements[i].length] = '\0';
	return result;
}

char *
resp_number(char *at, uint64_t number)
{
	char digits[24], *first = digits + sizeof digits - 1;
	size_t length;

	*first = '\0';
	do
		*--first = (char)('0' + number % 10);
	while ((number /= 10) > 0);
	length = (size_t)(digits + sizeof digits - 1 - first);
	memcpy(at, first, length + 1);
	return at + length;
}

/* "*3" or "$5", and the end of the line: its length; the bytes too, unless they are NULL. */
static size_t
put_head(char *bytes, char kind, size_t number)
{
	char line[32] = {kind}, *end = resp_number(line + 1, number);
	size_t length = (size_t)(end - line) + 2;

	memcpy(end, "\r\n", 2);
	if (bytes != NULL)
		memcpy(bytes, line, length);
	return length;
}

size_t
resp_command(char *bytes, size_t argc, const char *const argv[], const size_t lengths[])
{
	size_t i, length, size = put_head(bytes, '*', argc);

	for (i = 0; i < argc; i++) {
		length = lengths != NULL ? lengths[i] : strlen(argv[i]);
		size += put_head(bytes != NULL ? bytes + size : NULL, '$', length);
		if (bytes != NULL) {
			memcpy(bytes + size, argv[i], length);
			memcpy(bytes + size + length, "\r\n", 2);
		}
		size += length + 2;
	}
	return size;
}
