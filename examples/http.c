/*
 * HTTP for the examples: the server.
 *
 * A connection answers one request, and reads the next one after that. So the answers
 * leave in order, and a request needs no memory but the connection's, and its body's.
 *
 *	            head complete             body complete            http_subscribe
 *	READ_HEAD ----------------> READ_BODY -------------> ANSWERING ----------> STREAMING
 *	    ^  |                                                 |                     |
 *	    |  | end of file                                     | http_reply, or      | we leave
 *	    |  v                                                 | refused: an error   |
 *	    |  CLOSING <-----------------------------------------+---------------------+
 *	    |     |     "Connection: close"                      |
 *	    |     |                                              |
 *	    +-----|----------------------------------------------+
 *	          |     keep-alive
 *	          v
 *	      LINGERING: all is written; wait for the client's end of file
 *
 * We linger because a socket closed with unread input sends a reset, which can
 * overtake the answer and destroy it at the client.
 *
 * Only connection_run calls a handler, and only the loop calls connection_run (on_event).
 * An answer that comes later, a text for a stream, a time limit and the end of the process
 * change the state of a connection, and leave the rest to the loop: run_later. So no list is
 * walked while a handler runs, because a handler may change the list.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "http.h"
#include "http_head.h"

#include "../messenger.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

/* Bytes. */
#define INPUT_SIZE (HTTP_HEAD_MAX + 4096) /* a head stays until its request is answered */
#define OUTPUT_KEEP 4096                  /* a larger buffer is given back when it is empty */

#define PLAIN_TEXT "text/plain; charset=utf-8"

#define LINGER_TIMEOUT 1000 /* ms */

enum state { READ_HEAD, READ_BODY, ANSWERING, STREAMING, CLOSING, LINGERING };

struct connection {
	struct http_request request; /* first: a pointer to one is a pointer to the other */
	http_handler handler;
	void *arg;
	struct connection *next, *previous;

	int descriptor; /* -1: the client is gone, but its request is unanswered */
	short events;   /* that are watched */
	enum state state;
	bool running;      /* connection_run is at work */
	bool end_of_file;  /* the client sends nothing more; it may still read */
	bool is_old;       /* the request is one of HTTP/1.0 */
	bool keep_alive;   /* after the answer to this request */
	int64_t since;     /* when the present wait began: see wait_limit */
	const char *allow; /* the methods for an answer with 405, or NULL */
	const void *topic; /* of its stream */

	struct http_head head;
	char *body; /* of the request; NULL: it has none */

	char *output;
	size_t output_length, output_size;
	size_t input_length;
	char input[INPUT_SIZE];
};

/* The process's open connections, and the interval that looks after them, or 0. */
static struct connection *connections;
static int sweeper;

static const char *
reason(int status)
{
	static const char *const reasons[] = {
		[200] = "OK",
		[201] = "Created",
		[202] = "Accepted",
		[400] = "Bad Request",
		[403] = "Forbidden",
		[404] = "Not Found",
		[405] = "Method Not Allowed",
		[408] = "Request Timeout",
		[413] = "Content Too Large",
		[431] = "Request Header Fields Too Large",
		[500] = "Internal Server Error",
		[501] = "Not Implemented",
		[503] = "Service Unavailable",
		[505] = "HTTP Version Not Supported",
	};
	bool is_listed = status >= 0 && status < (int)(sizeof reasons / sizeof reasons[0]);

	return is_listed && reasons[status] != NULL ? reasons[status] : "";
}

/* ---- the end of a connection --------------------------------------------- */

static void
connection_free(struct connection *connection)
{
	free(connection->body);
	free(connection->output);
	free(connection);
}

/* An unanswered request outlives its connection: the application holds it, to reply. */
static void
connection_drop(struct connection *connection)
{
	if (connection->previous != NULL)
		connection->previous->next = connection->next;
	else
		connections = connection->next;
	if (connection->next != NULL)
		connection->next->previous = connection->previous;
	messenger_unwatch(connection->request.app, connection->descriptor);
	close(connection->descriptor);
	connection->descriptor = -1;
	if (connection->state != ANSWERING)
		connection_free(connection);
}

/* ---- output -------------------------------------------------------------- */

static size_t
pending(const struct connection *connection)
{
	return connection->output_length;
}

/* Room for `size` more bytes at the output's end. */
static bool
output_reserve(struct connection *connection, size_t size)
{
	size_t used = pending(connection);
	size_t larger = (used + size + OUTPUT_KEEP - 1) / OUTPUT_KEEP * OUTPUT_KEEP;
	char *grown;

	if (connection->output_size - used >= size)
		return true;
	grown = realloc(connection->output, larger);
	if (grown == NULL)
		return false;
	connection->output = grown;
	connection->output_size = larger;
	return true;
}

/* Write what the socket takes; false: the client is gone. */
static bool
output_flush(struct connection *connection)
{
	ssize_t n;

	while (pending(connection) > 0) {
		n = send(connection->descriptor, connection->output, pending(connection),
		         MSG_NOSIGNAL);
		if (n == -1 && errno == EINTR)
			continue;
		if (n == -1)
			return errno == EAGAIN || errno == EWOULDBLOCK;
		connection->output_length -= (size_t)n;
		memmove(connection->output, connection->output + n, pending(connection));
		connection->since = clutch_now();
	}
	if (connection->output_size > OUTPUT_KEEP) {
		free(connection->output);
		connection->output = NULL;
		connection->output_size = 0;
	}
	return true;
}

static bool
output_text(struct connection *connection, const char *text)
{
	size_t length = strlen(text);

	if (!output_reserve(connection, length))
		return false;
	memcpy(connection->output + connection->output_length, text, length);
	connection->output_length += length;
	return true;
}

/* Append the head of an answer. `length` is its Content-Length line, or "" for a stream,
 * which ends with its connection. */
static bool
output_head(struct connection *connection, int status, const char *type, const char *length)
{
	static const char *const format = "HTTP/1.1 %d %s\r\nContent-Type: %s\r\n%s%s%s%s"
					  "Connection: %s\r\n\r\n";
	const char *allow = connection->allow != NULL ? connection->allow : "";
	size_t room = strlen(type) + strlen(allow) + 256;
	int written;

	if (!output_reserve(connection, room))
		return false;
	written = snprintf(connection->output + connection->output_length, room, format, status,
	                   reason(status), type, length, *allow != '\0' ? "Allow: " : "", allow,
	                   *allow != '\0' ? "\r\n" : "",
	                   connection->keep_alive ? "keep-alive" : "close");
	assert(written > 0 && (size_t)written < room);
	connection->output_length += (size_t)written;
	return true;
}

/* ---- answers ------------------------------------------------------------- */

/* Take `size` bytes out of the input, at `at`. */
static void
input_remove(struct connection *connection, size_t at, size_t size)
{
	connection->input_length -= size;
	memmove(connection->input + at, connection->input + at + size,
	        connection->input_length - at);
}

/* The request is over: forget it. The bytes behind its head are the next requests. */
static void
forget_request(struct connection *connection)
{
	input_remove(connection, 0, connection->head.length);
	free(connection->body);
	connection->body = NULL;
	connection->allow = NULL;
	connection->request =
		(struct http_request){.app = connection->request.app, .method = "", .body = ""};
	connection->head = (struct http_head){0};
	connection->since = clutch_now();
}

static void
answer(struct connection *connection, int status, const char *type, const char *body)
{
	bool is_head = strcmp(connection->request.method, "HEAD") == 0;
	char length[48];

	if (messenger_closing(connection->request.app))
		connection->keep_alive = false;
	snprintf(length, sizeof length, "Content-Length: %zu\r\n", strlen(body));
	if (!output_head(connection, status, type, length) ||
	    (!is_head && !output_text(connection, body)))
		connection->keep_alive =
			false; /* its end tells the client that an answer is missing */
	connection->state = connection->keep_alive ? READ_HEAD : CLOSING;
	forget_request(connection);
}

/* An error, and the end: nothing that this client sends after it is read. */
static void
refuse(struct connection *connection, int status)
{
	char body[64];

	snprintf(body, sizeof body, "%d %s\n", status, reason(status));
	connection->keep_alive = false;
	answer(connection, status, PLAIN_TEXT, body);
}

/* ---- the head of a request: 0, or the status to refuse it with ----------- */

/* "/path?query", or "http://host/path?query", which clients send to proxies. */
static int
parse_target(struct http_request *request, char *target)
{
	char *mark;

	if (strncasecmp(target, "http://", 7) == 0)
		target += 7 + strcspn(target + 7, "/?");
	else if (*target != '/')
		return 400;
	request->path = *target == '/' ? target : "/";
	mark = strchr(target, '?');
	request->query = mark != NULL ? mark + 1 : "";
	if (mark != NULL)
		*mark = '\0';
	return 0;
}

static int
parse_request_line(struct connection *connection, char *method)
{
	char *target = strchr(method, ' ');
	char *version = target != NULL ? strchr(target + 1, ' ') : NULL;

	if (version == NULL || strchr(method, '\t') != NULL)
		return 400;
	*target++ = '\0';
	*version++ = '\0';
	if (!http_is_token(method) || strncmp(version, "HTTP/", 5) != 0 ||
	    !isdigit((unsigned char)version[5]) || version[6] != '.' ||
	    !isdigit((unsigned char)version[7]) || version[8] != '\0')
		return 400;
	if (version[5] != '1')
		return 505;
	connection->is_old = version[7] == '0';
	connection->request.method = method;
	return parse_target(&connection->request, target);
}

/* The empty line: the head is complete. */
static int
end_head(struct connection *connection)
{
	const struct http_head *head = &connection->head;

	if (head->length > HTTP_HEAD_MAX)
		return 431;
	if (head->host == NULL && !connection->is_old)
		return 400;
	if (head->body_length > HTTP_BODY_MAX)
		return 413;
	if (head->body_length > 0) {
		connection->body = malloc(head->body_length + 1);
		if (connection->body == NULL)
			return 503;
		connection->request.body = connection->body;
	}
	if (head->expects_continue && !connection->is_old &&
	    connection->input_length == head->length &&
	    !output_text(connection, "HTTP/1.1 100 Continue\r\n\r\n"))
		return 503;
	connection->request.host = head->host != NULL ? head->host : "";
	connection->request.origin = head->origin != NULL ? head->origin : "";
	connection->keep_alive =
		!head->says_close && (head->says_keep_alive || !connection->is_old);
	connection->state = READ_BODY;
	return 0;
}

static int
parse_line(struct connection *connection, char *line)
{
	bool is_first = connection->request.method[0] == '\0';

	if (*line != '\0')
		return is_first ? parse_request_line(connection, line)
		                : http_head_field(&connection->head, line);
	if (!is_first)
		return end_head(connection);
	/* Some clients send an empty line after a body. It is not a request. */
	input_remove(connection, 0, connection->head.length);
	connection->head.length = 0;
	return 0;
}

/* ---- one request, step by step ------------------------------------------- */

/* A wrong line is refused before the head is complete: some text, a TLS handshake. */
static void
read_head(struct connection *connection)
{
	int found = 1, status = 0;
	char *line;

	while (found == 1 && status == 0 && connection->state == READ_HEAD) {
		found = http_head_line(&connection->head, connection->input,
		                       connection->input_length, &line);
		if (found == 1)
			status = parse_line(connection, line);
	}
	if (found == -1)
		status = 400;
	if (found == 0 && connection->input_length > HTTP_HEAD_MAX)
		status = 431;
	else if (found == 0 && connection->end_of_file && connection->input_length > 0)
		status = 400; /* the rest of the request will not come */
	else if (found == 0 && connection->end_of_file)
		connection->state = CLOSING;
	if (status != 0)
		refuse(connection, status);
}

/* The request is complete. Returns the handler's result. */
static int
handle(struct connection *connection)
{
	int uncaught;

	connection->state = ANSWERING;
	uncaught = connection->handler(&connection->request, connection->arg);
	if (uncaught != 0 && connection->state == ANSWERING)
		refuse(connection, 500);
	if (uncaught != 0)
		connection->state = CLOSING;
	return uncaught;
}

/* Returns the handler's result, if the body is complete. */
static int
read_body(struct connection *connection)
{
	struct http_request *request = &connection->request;
	size_t behind = connection->head.length;
	size_t here = connection->input_length - behind;
	size_t missing = connection->head.body_length - request->body_length;
	size_t size = here < missing ? here : missing;

	if (size > 0) {
		memcpy(connection->body + request->body_length, connection->input + behind, size);
		input_remove(connection, behind, size);
		request->body_length += size;
	}
	if (size < missing) {
		if (connection->end_of_file)
			refuse(connection, 400);
		return 0;
	}
	if (connection->body != NULL)
		connection->body[request->body_length] = '\0';
	return handle(connection);
}

/* Take a step, if there is input for it and room for an answer. Was there one? */
static bool
step(struct connection *connection, int *uncaught)
{
	enum state before = connection->state;

	if (pending(connection) > HTTP_OUTPUT_MAX)
		return false;
	if (before == READ_HEAD)
		read_head(connection);
	else if (before == READ_BODY)
		*uncaught = read_body(connection);
	return connection->state != before;
}

/* ---- the connection ------------------------------------------------------ */

static int on_event(struct messenger *app, int descriptor, short revents, void *arg);

static bool
watch(struct connection *connection, short events)
{
	if (connection->events == events)
		return true;
	connection->events = events;
	return messenger_watch(connection->request.app, connection->descriptor, events, on_event,
	                       connection) == 0;
}

/* Let the loop go on with the connection, as soon as the socket can be written. Inside its
 * handler, connection_run goes on with it. */
static void
run_later(struct connection *connection)
{
	short events = (short)(connection->events | POLLOUT);

	if (!connection->running && !watch(connection, events))
		connection_drop(connection);
}

/* No request has begun to arrive, and no answer waits to be written. */
static bool
is_idle(const struct connection *connection)
{
	return connection->state == READ_HEAD && connection->input_length == 0 &&
	       pending(connection) == 0;
}

/* No events: the loop then reports only that the client is gone. */
static short
wanted_events(const struct connection *connection)
{
	bool reads = connection->state != ANSWERING && connection->state != CLOSING &&
	             pending(connection) <= HTTP_OUTPUT_MAX;
	short events = 0;

	if (reads && !connection->end_of_file)
		events |= POLLIN;
	if (pending(connection) > 0)
		events |= POLLOUT;
	return events;
}

/* Has the connection something left to do? */
static bool
is_needed(struct connection *connection)
{
	if (connection->state == CLOSING && pending(connection) == 0) {
		if (connection->end_of_file || shutdown(connection->descriptor, SHUT_WR) == -1)
			return false;
		connection->state = LINGERING;
		connection->since = clutch_now();
	}
	if (connection->state == LINGERING || connection->state == STREAMING) {
		connection->input_length = 0; /* nothing reads it */
		return !connection->end_of_file;
	}
	/* A connection that was just accepted has had no chance to ask: its request is on the
	 * way. One that has had an answer is no longer needed when the process leaves. */
	return !is_idle(connection) || !connection->keep_alive ||
	       !messenger_closing(connection->request.app);
}

/* Do all that can be done now. Returns the handler's result, if it was called. */
static int
connection_run(struct connection *connection)
{
	int uncaught = 0;
	bool alive, is_full;

	connection->running = true;
	do {
		while (step(connection, &uncaught))
			;
		is_full = pending(connection) > HTTP_OUTPUT_MAX;
		alive = output_flush(connection);
	} while (alive && is_full && pending(connection) <= HTTP_OUTPUT_MAX);
	connection->running = false;
	if (!alive || !is_needed(connection) || !watch(connection, wanted_events(connection)))
		connection_drop(connection);
	return uncaught;
}

/* Returns false if the client is gone. */
static bool
connection_read(struct connection *connection)
{
	ssize_t n;

	assert(connection->input_length < INPUT_SIZE);
	n = recv(connection->descriptor, connection->input + connection->input_length,
	         INPUT_SIZE - connection->input_length, 0);
	if (n == -1)
		return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
	if (is_idle(connection) && n > 0 && connection->input[0] > ' ')
		connection->since = clutch_now(); /* a request begins; an empty line is none */
	connection->end_of_file = n == 0;
	connection->input_length += (size_t)n;
	return true;
}

static int
on_event(struct messenger *app, int descriptor, short revents, void *arg)
{
	struct connection *connection = arg;
	bool reads = (connection->events & POLLIN) != 0;
	bool gone = (revents & (POLLHUP | POLLERR | POLLNVAL)) != 0;

	(void)app, (void)descriptor;
	/* Read its last bytes before you believe its end. */
	if (reads && (gone || (revents & POLLIN) != 0))
		gone = !connection_read(connection);
	if (!gone)
		return connection_run(connection);
	connection_drop(connection);
	return 0;
}

/* ---- all connections ------------------------------------------------------ */

/* The limit of the present wait, in ms; 0: none. */
static int
wait_limit(const struct connection *connection)
{
	if (connection->state == LINGERING)
		return LINGER_TIMEOUT;
	if (pending(connection) > 0)
		return HTTP_WRITE_TIMEOUT;
	if (connection->state == ANSWERING || connection->state == STREAMING)
		return 0;
	if (!is_idle(connection))
		return HTTP_REQUEST_TIMEOUT;
	return messenger_closing(connection->request.app) ? LINGER_TIMEOUT : HTTP_IDLE_TIMEOUT;
}

static void
end_wait(struct connection *connection)
{
	bool is_request = connection->state == READ_HEAD || connection->state == READ_BODY;

	if (!is_request || is_idle(connection) || pending(connection) > 0) {
		connection_drop(connection);
		return;
	}
	refuse(connection, 408);
	run_later(connection);
}

/* One interval for all connections: a timer for each would be set and cleared with each
 * request. */
static int
sweep(struct messenger *app, void *arg)
{
	struct connection *connection, *next;
	int64_t now = clutch_now();
	int limit;

	(void)arg;
	for (connection = connections; connection != NULL; connection = next) {
		next = connection->next;
		limit = wait_limit(connection);
		if (limit > 0 && now - connection->since >= limit)
			end_wait(connection);
	}
	if (connections == NULL) {
		messenger_clear_timeout(app, sweeper);
		sweeper = 0;
	}
	return 0;
}

/* The process leaves. Streams end, and so do idle connections, new ones after a second; the
 * loop first reads the request that may just have arrived. The app worker waits for all of
 * them, because they are watched. */
static int
on_leaving(struct messenger *app, void *arg)
{
	struct connection *connection, *next;

	(void)app, (void)arg;
	for (connection = connections; connection != NULL; connection = next) {
		next = connection->next;
		if (connection->state == STREAMING)
			connection->state = CLOSING;
		run_later(connection);
	}
	return 0;
}

/* Set up what all connections of the process share. */
static bool
prepare(struct messenger *app)
{
	static bool hears_leaving;

	if (!hears_leaving)
		hears_leaving = messenger_before_close(app, on_leaving, NULL) == 0;
	if (sweeper <= 0)
		sweeper = messenger_set_interval(app, HTTP_SWEEP, sweep, NULL);
	return hears_leaving && sweeper > 0;
}

int
http_serve(struct messenger *app, int descriptor, http_handler handler, void *arg)
{
	struct connection *connection = prepare(app) ? calloc(1, sizeof *connection) : NULL;
	int yes = 1;

	if (connection == NULL) {
		close(descriptor);
		return 0;
	}
	/* Nagle's algorithm would hold an answer back until more follows. */
	setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
	connection->request.app = app;
	connection->handler = handler;
	connection->arg = arg;
	connection->descriptor = descriptor;
	forget_request(connection);
	connection->next = connections;
	if (connections != NULL)
		connections->previous = connection;
	connections = connection;
	if (!watch(connection, POLLIN))
		connection_drop(connection);
	return 0;
}

/* ---- for handlers ---------------------------------------------------------- */

bool
http_allow(struct http_request *request, const char *methods)
{
	struct connection *connection = (struct connection *)request;
	size_t length = strlen(request->method);
	const char *at = methods;

	while (*at != '\0') {
		if (strncmp(at, request->method, length) == 0 && strchr(", ", at[length]) != NULL)
			return true;
		at += strcspn(at, ", ");
		at += strspn(at, ", ");
	}
	connection->allow = methods;
	http_reply(request, 405, NULL, "405 Method Not Allowed\n");
	return false;
}

/* The connection of a request that is being answered. NULL: the client is gone, and now the
 * request is, too. */
static struct connection *
connection_of(struct http_request *request)
{
	struct connection *connection = (struct connection *)request;

	assert(connection->state == ANSWERING);
	if (connection->descriptor != -1)
		return connection;
	connection_free(connection);
	return NULL;
}

int
http_reply(struct http_request *request, int status, const char *type, const char *body)
{
	struct connection *connection = connection_of(request);

	if (connection == NULL)
		return 0;
	answer(connection, status, type != NULL ? type : PLAIN_TEXT, body);
	run_later(connection);
	return 0;
}

void
http_last(struct http_request *request)
{
	((struct connection *)request)->keep_alive = false;
}

int
http_subscribe(struct http_request *request, const char *type, const void *topic, const char *first)
{
	bool is_head = strcmp(request->method, "HEAD") == 0;
	struct connection *connection = connection_of(request);

	if (connection == NULL)
		return 0;
	connection->keep_alive = false;
	connection->topic = topic;
	connection->state = CLOSING;
	if (output_head(connection, 200, type != NULL ? type : PLAIN_TEXT, "") && !is_head &&
	    output_text(connection, first) && !messenger_closing(request->app))
		connection->state = STREAMING;
	forget_request(connection);
	run_later(connection);
	return 0;
}

/* Only queue the text: the loop writes it. A stream that is not read fast enough ends. */
int
http_publish(const void *topic, const char *text)
{
	struct connection *connection, *next;
	int count = 0;

	for (connection = connections; connection != NULL; connection = next) {
		next = connection->next;
		if (connection->state != STREAMING || connection->topic != topic)
			continue;
		count++;
		if (pending(connection) == 0)
			connection->since = clutch_now(); /* from now on it waits */
		if (pending(connection) + strlen(text) <= HTTP_OUTPUT_MAX &&
		    output_text(connection, text))
			run_later(connection);
		else if (connection->running)
			connection->state = CLOSING; /* connection_run is our caller's caller */
		else
			connection_drop(connection);
	}
	return count;
}
