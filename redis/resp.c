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

/* ---- bytes to replies ------------------------------------------------------ */

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

/* The line at resp->at, from its first byte to its \r. */
static enum resp
take_line(struct resp_parser *resp, const char *bytes, size_t length, const char **end)
{
	const char *begin = bytes + resp->at;
	size_t here = length - resp->at;
	const char *found = memchr(begin, '\n', here);

	if (here > 0 && memchr("+-:$*", *begin, 5) == NULL)
		return broken(resp, "a reply that is not RESP2");
	if ((found != NULL ? (size_t)(found - begin) : here) > REDIS_LINE_MAX)
		return broken(resp, "a line longer than REDIS_LINE_MAX");
	if (found == NULL)
		return RESP_TORN;
	*end = found - 1;
	if (**end != '\r' || memchr(begin, '\r', (size_t)(found - begin)) != *end)
		return broken(resp, "a line that does not end with CR LF");
	resp->at += (size_t)(found - begin) + 1;
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

/* Reserve the elements of an array. */
static enum resp
take_array(struct resp_parser *resp, struct redis_reply *reply, int depth)
{
	int64_t count = reply->integer;

	if (count < 0 || count > REDIS_ELEMENTS_MAX)
		return broken(resp,
		              "an array longer than REDIS_ELEMENTS_MAX, or of negative length");
	if (count > 0 && depth == REDIS_DEPTH_MAX)
		return broken(resp, "arrays nested deeper than REDIS_DEPTH_MAX");
	if (resp->used + (size_t)count > REDIS_ELEMENTS_MAX)
		return broken(resp, "more elements than REDIS_ELEMENTS_MAX");
	*reply = (struct redis_reply){.type = REDIS_ARRAY,
	                              .text = "",
	                              .element = resp->elements + resp->used,
	                              .count = (size_t)count};
	resp->used += (size_t)count;
	return resp->used > resp->size ? RESP_TORN : RESP_WHOLE;
}

/* One reply. The depth of the recursion is bounded. */
static enum resp
take_reply(struct resp_parser *resp, char *bytes, size_t length, struct redis_reply *reply,
           int depth)
{
	const char *line = bytes + resp->at, *end;
	enum resp result = take_line(resp, bytes, length, &end);
	struct redis_reply *element;

	if (result != RESP_WHOLE)
		return result;
	*reply = (struct redis_reply){.type = *line == '-' ? REDIS_ERROR : REDIS_STATUS,
	                              .text = line + 1,
	                              .length = (size_t)(end - line) - 1};
	if (*line == '+' || *line == '-')
		return RESP_WHOLE;
	*reply = (struct redis_reply){.type = REDIS_INTEGER, .text = ""};
	if (!read_integer(line + 1, end, &reply->integer))
		return broken(resp, "a number that is none");
	if (*line == ':')
		return RESP_WHOLE;
	if (reply->integer == -1) {
		*reply = (struct redis_reply){.type = REDIS_NIL, .text = ""};
		return RESP_WHOLE;
	}
	if (*line == '$')
		return take_string(resp, bytes, length, reply);
	result = take_array(resp, reply, depth);
	element = resp->elements + resp->used - reply->count;
	for (; result == RESP_WHOLE && element < reply->element + reply->count; element++)
		result = take_reply(resp, bytes, length, element, depth + 1);
	return result;
}

enum resp
resp_parse(struct resp_parser *resp, char *bytes, size_t length)
{
	enum resp result;
	size_t i;

	resp->at = 0;
	resp->used = 1;
	result = resp->size == 0 ? RESP_TORN : take_reply(resp, bytes, length, resp->elements, 0);
	if (result == RESP_TORN ? length > REDIS_REPLY_MAX : resp->at > REDIS_REPLY_MAX)
		return broken(resp, "a reply longer than REDIS_REPLY_MAX");
	for (i = 0; result == RESP_WHOLE && i < resp->used; i++)
		if (resp->elements[i].text[0] != '\0' || resp->elements[i].length > 0)
			bytes[resp->elements[i].text - bytes +
			      (ptrdiff_t)resp->elements[i].length] = '\0';
	return result;
}

/* ---- words to bytes -------------------------------------------------------- */

/* "*3" or "$5", and the end of the line: its length; the bytes too, unless they are NULL. */
static size_t
put_head(char *bytes, char kind, size_t number)
{
	char line[24], *first = line + sizeof line;
	size_t length;

	*--first = '\n';
	*--first = '\r';
	do
		*--first = (char)('0' + number % 10);
	while ((number /= 10) > 0);
	*--first = kind;
	length = (size_t)(line + sizeof line - first);
	if (bytes != NULL)
		memcpy(bytes, first, length);
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
