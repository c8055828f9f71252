/*
 * A client sends any bytes, in any pieces. The handler gets each request with the body that
 * stands behind its head; each request has one whole answer; and a wrong request ends the
 * connection with an error.
 *
 * An input is in pieces, as in fuzz.h.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "examples/http.h"
#include "fuzz.h"
#include "messenger.h"

#include <strings.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#define CONTINUE "HTTP/1.1 100 Continue\r\n\r\n"

/* One connection. */
struct session {
	struct text output, requests;
	size_t request_count;
	bool is_head[2048];   /* the n-th request is a HEAD request */
	const char *at, *end; /* the input: at is behind the last request */
};

static struct messenger *app;

/* ---- requests ------------------------------------------------------------------- */

/* The end of the head that begins at `at`, behind the empty line. */
static const char *
end_of_head(const char *at, const char *end)
{
	for (; at < end; at++)
		if (*at == '\n' && end - at > 1 && at[1] == '\n')
			return at + 2;
		else if (*at == '\n' && end - at > 2 && at[1] == '\r' && at[2] == '\n')
			return at + 3;
	return NULL;
}

/* The Content-Length that stands in the head, 0 if there is none. */
static size_t
announced(const char *head, const char *end)
{
	static const char name[] = "Content-Length:";
	size_t length = strlen(name);

	for (; head + length < end; head++)
		if (*head == '\n' && strncasecmp(head + 1, name, length) == 0)
			return strtoul(head + 1 + length, NULL, 10);
	return 0;
}

/* The request must be the next one of the input. */
static void
check_request(struct session *session, const struct http_request *request)
{
	size_t length = strlen(request->method);
	const char *body;

	while (session->at < session->end && (*session->at == '\r' || *session->at == '\n'))
		session->at++;
	body = end_of_head(session->at, session->end);
	CHECK(body != NULL && request->path[0] == '/');
	CHECK(memcmp(session->at, request->method, length) == 0 && session->at[length] == ' ');
	CHECK(request->body_length == announced(session->at, body));
	CHECK((size_t)(session->end - body) >= request->body_length);
	CHECK(memcmp(body, request->body, request->body_length) == 0);
	CHECK(request->body[request->body_length] == '\0' && request->body_length <= HTTP_BODY_MAX);
	session->at = body + request->body_length;
}

static int
on_request(struct http_request *request, void *arg)
{
	struct session *session = arg;
	const char *texts[] = {request->method, request->path, request->query, request->host,
	                       request->origin};
	size_t i;

	check_request(session, request);
	for (i = 0; i < 5; i++)
		text_add(&session->requests, texts[i], strlen(texts[i]) + 1);
	text_add(&session->requests, request->body, request->body_length);
	CHECK(session->request_count < sizeof session->is_head);
	session->is_head[session->request_count++] = strcmp(request->method, "HEAD") == 0;
	return http_reply(request, 200, NULL, "ok\n");
}

/* ---- answers ---------------------------------------------------------------------- */

/* Move behind the answer at the beginning of the output; returns its status. An answer to HEAD
 * has a Content-Length, but no body. */
static int
take_answer(char **output, bool is_head)
{
	char *end = strstr(*output, "\r\n\r\n"), *field = strstr(*output, "\r\nContent-Length: ");
	int status;

	CHECK(end != NULL && sscanf(*output, "HTTP/1.1 %3d ", &status) == 1);
	CHECK(field != NULL && field < end);
	*output = end + 4;
	is_head |= status != 200 && **output == '\0'; /* a refused HEAD request */
	CHECK(is_head || strlen(*output) >= strtoul(field + 18, NULL, 10));
	*output += is_head ? 0 : strtoul(field + 18, NULL, 10);
	return status;
}

/* Each request has an answer. One error may follow, and nothing more. */
static void
check_answers(struct session *session)
{
	char *output = session->output.bytes;
	size_t i;

	CHECK(strlen(output) == session->output.length);
	for (i = 0; i < session->request_count; i++)
		CHECK(take_answer(&output, session->is_head[i]) == 200);
	if (*output != '\0')
		CHECK(take_answer(&output, false) >= 400);
	CHECK(*output == '\0');
}

/* ---- a connection ------------------------------------------------------------------ */

/* Read what there is, without each "100 Continue": whether a client gets one depends on how fast
 * its body comes. Returns false at the end. */
static bool
read_output(struct session *session, int descriptor)
{
	static char bytes[64 * 1024];
	ssize_t count = recv(descriptor, bytes, sizeof bytes, MSG_DONTWAIT);
	size_t length = strlen(CONTINUE);
	char *found;

	if (count <= 0)
		return count < 0;
	text_add(&session->output, bytes, (size_t)count);
	while ((found = strstr(session->output.bytes, CONTINUE)) != NULL) {
		session->output.length -= length;
		memmove(found, found + length, strlen(found + length) + 1);
	}
	return true;
}

/* Let the server do all it can. */
static bool
turn(struct session *session, int descriptor)
{
	bool alive = true;
	int i, unread, before = -1;

	for (i = 0; i < 64 && alive; i++) {
		CHECK(messenger_step(app, 0) == 1);
		alive = read_output(session, descriptor);
		if (ioctl(descriptor, TIOCOUTQ, &unread) == -1 || (unread == before && i > 3))
			break;
		before = unread;
	}
	return alive;
}

static void
run(struct session *session, struct pieces pieces)
{
	const char *bytes = (const char *)pieces.bytes;
	size_t size;
	int pair[2], i;

	session->output.length = session->requests.length = session->request_count = 0;
	session->output.bytes[0] = '\0';
	session->at = bytes;
	session->end = bytes + pieces.length;
	CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) == 0);
	CHECK(http_serve(app, pair[0], on_request, session) == 0);
	while ((size = pieces_next(&pieces)) > 0 &&
	       send(pair[1], bytes + pieces.at - size, size, MSG_NOSIGNAL) == (ssize_t)size)
		turn(session, pair[1]);
	shutdown(pair[1], SHUT_WR);
	turn(session, pair[1]);
	CHECK(recv(pair[1], &i, 1, MSG_DONTWAIT) <= 0);
	close(pair[1]);
	for (i = 0; i < 4; i++)
		CHECK(messenger_step(app, 0) == 1);
}

static void
open_app(void)
{
	int pair[2];

	if (app != NULL)
		return;
	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
	app = messenger_open(pair[0], ROLE_APP);
	CHECK(app != NULL);
}

int
LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
	static struct session in_pieces, at_once;
	struct pieces pieces;

	if (!pieces_read(&pieces, input, size))
		return 0;
	open_app();
	run(&in_pieces, pieces);
	check_answers(&in_pieces);
	pieces.count = 0;
	run(&at_once, pieces);
	check_answers(&at_once);
	CHECK(in_pieces.request_count == at_once.request_count);
	CHECK(text_is(&in_pieces.requests, &at_once.requests));
	return 0;
}
