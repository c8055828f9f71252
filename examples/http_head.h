/*
 * The head of an HTTP message, which is parsed line by line as it arrives: the part that
 * the server and the client share. Programs include http.h or http_client.h.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#ifndef EXAMPLES_HTTP_HEAD_H
#define EXAMPLES_HTTP_HEAD_H

#include <stdbool.h>
#include <stddef.h>

struct http_head {
	size_t length; /* of the lines that have been read, in bytes */
	size_t body_length;
	const char *host, *origin; /* in the text, or NULL */
	bool has_body, expects_continue, says_close, says_keep_alive;
};

/*
 * Cut the next line out of the `length` bytes of a text that begins with the head; the
 * line's end becomes 0. Returns 1; 0 if the line is not complete; -1 if it has a
 * control character. A line may end without '\r', as people type it.
 */
int http_head_line(struct http_head *head, char *text, size_t length, char **line);

/* Parse a line behind the first one. Returns 0, or the status that refuses a request with
 * that line. */
int http_head_field(struct http_head *head, char *line);

/* Is the text a name in the sense of HTTP: a method, or the name of a field? */
bool http_is_token(const char *text);

#endif
