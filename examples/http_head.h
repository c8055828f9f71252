/*
 * The head of an HTTP message, which is parsed as it arrives: the part that the server and
 * the client share. Programs include http.h or http_client.h.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#ifndef EXAMPLES_HTTP_HEAD_H
#define EXAMPLES_HTTP_HEAD_H

#include <stdbool.h>
#include <stddef.h>

struct http_head {
	char *start;   /* the first line, for its reader to parse; NULL: it has not come */
	bool is_whole; /* the empty line at the end has been read, too */
	size_t length; /* of the lines that have been read, in bytes */
	size_t body_length;
	const char *host, *origin; /* in the text, or NULL */
	bool has_body, expects_continue, says_close, says_keep_alive;
};

/*
 * Parse what has come of a head: `length` bytes of a text that begins with it, and in which
 * the end of each line becomes 0. Returns 0, or the status that refuses a request with such
 * a line. A line may end without '\r', as people type it.
 */
int http_head_parse(struct http_head *head, char *text, size_t length);

/* Is the text a name in the sense of HTTP: a method, or the name of a field? */
bool http_is_token(const char *text);

#endif
