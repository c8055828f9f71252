/*
 * The head of an HTTP message: its lines, and the few fields that matter here.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "http_head.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

bool
http_is_token(const char *text)
{
	static const char *const allowed = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz"
					   "ABCDEFGHIJKLMNOPQRSTUVWXYZ";

	return *text != '\0' && text[strspn(text, allowed)] == '\0';
}

static int
parse_content_length(struct http_head *head, const char *value)
{
	size_t digits = strspn(value, "0123456789");
	unsigned long length = strtoul(value, NULL, 10); /* a number that is too long: ULONG_MAX */

	if (digits == 0 || value[digits] != '\0' || (head->has_body && head->body_length != length))
		return 400;
	head->has_body = true;
	head->body_length = length;
	return 0;
}

static void
parse_connection(struct http_head *head, char *value)
{
	char *rest;
	char *option = strtok_r(value, ", \t", &rest);

	for (; option != NULL; option = strtok_r(NULL, ", \t", &rest)) {
		if (strcasecmp(option, "close") == 0)
			head->says_close = true;
		if (strcasecmp(option, "keep-alive") == 0)
			head->says_keep_alive = true;
	}
}

/* A line that continues the line before it begins with a space, so its name is no token. */
static int
parse_field(struct http_head *head, char *line)
{
	char *value = strchr(line, ':');
	char *end = line + strlen(line);

	if (value == NULL)
		return 400;
	*value++ = '\0';
	value += strspn(value, " \t");
	while (end > value && (end[-1] == ' ' || end[-1] == '\t'))
		*--end = '\0';
	if (!http_is_token(line))
		return 400;
	if (strcasecmp(line, "Transfer-Encoding") == 0)
		return 501;
	if (strcasecmp(line, "Content-Length") == 0)
		return parse_content_length(head, value);
	if (strcasecmp(line, "Connection") == 0)
		parse_connection(head, value);
	if (strcasecmp(line, "Expect") == 0)
		head->expects_continue = strcasecmp(value, "100-continue") == 0;
	if (strcasecmp(line, "Host") == 0) {
		if (head->host != NULL)
			return 400;
		head->host = value;
	}
	if (strcasecmp(line, "Origin") == 0)
		head->origin = value;
	return 0;
}

static bool
has_control(const char *text, const char *end)
{
	for (; text < end; text++)
		if (iscntrl((unsigned char)*text) && *text != '\t')
			return true;
	return false;
}

/* A line with a control character is refused before its end. Some clients send an empty line
 * behind a body: before the first line it means nothing. */
int
http_head_parse(struct http_head *head, char *text, size_t length)
{
	char *line, *feed, *end;
	int status = 0;

	while (status == 0 && !head->is_whole) {
		line = text + head->length;
		feed = memchr(line, '\n', length - head->length);
		end = feed != NULL ? feed : text + length;
		end -= end > line && end[-1] == '\r';
		if (has_control(line, end))
			return 400;
		if (feed == NULL)
			return 0;
		*end = '\0';
		head->length = (size_t)(feed + 1 - text);
		if (*line == '\0')
			head->is_whole = head->start != NULL;
		else if (head->start == NULL)
			head->start = line;
		else
			status = parse_field(head, line);
	}
	return status;
}
