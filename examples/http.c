/*
 * HTTP for the examples: the server.
 *
 * A connection answers one request, and reads the next one after that. So the answers
 * leave in order, and a request needs no memory but the connection's.
 *
 *	      first byte         complete             http_subscribe
 *	IDLE ------------> READING --------> ANSWERING ------------> STREAMING
 *	|  ^                 |               |   |                     |
 *	|  | http_reply      |               |   |                     |
 *	|  +-----------------|---------------+   |                     |
 *	|                    |                   | the last            | the client is gone or
 *	| end of file        | an error          | http_reply          | slow, the process leaves
 *	+--------------------+--> CLOSING <------+---------------------+
 *
 * CLOSING: write what is left, and then wait for the client's end of file. A socket that is
 * closed with unread input sends a reset, which can overtake the answer and destroy it at the
 * client.
 *
 * The loop calls on_event, which reads, writes and calls the handlers. What comes from elsewhere
 * (an answer that comes later, a text for a stream, a time limit, the end of the process)
 * changes the state of a connection, and lets the loop go on with it: run_later. So no
 * connection ends while its handler runs.
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
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#define INPUT_MAX (HTTP_HEAD_MAX + HTTP_BODY_MAX)

#define LINGER_TIMEOUT 1000 /* ms, for the client's end of file */

/* A connection reads a request in the first two. */
enum state { IDLE, READING, ANSWERING, STREAMING, CLOSING };

struct connection {
	struct http_request request; /* first: a pointer to one is a pointer to the other */
	http_handler handler;
	void *arg;
	struct connection *next;

	int descriptor; /* -1: the client is gone, but its request is unanswered */
	enum state state;
	bool end_of_file;  /* the client sends nothing more; it may still read */
	bool is_old;       /* the request is one of HTTP/1.0 */
	bool keep_alive;   /* after the answer to this request */
	int64_t since;     /* when the present wait began: see wait_limit */
	const char *allow; /* the methods for an answer with 405, or NULL */
	const void *topic; /* of a stream, or NULL */

	char *output; /* what the socket has not taken, or NULL */
	size_t output_length;

	/* A request stays in the input until it is answered. There is room for the largest one,
	 * but the system gives memory only to the pages that are used. */
	struct http_head head;
	size_t input_length;
	char input[]; /* INPUT_MAX bytes */
};

/* The process's connections, and the interval that looks after them, or 0. */
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

/* An unanswered request outlives its client, because the application holds it: its answer is
 * the end of both. */
static void
connection_drop(struct connection *connection)
{
	struct connection **at = &connections;

	if (connection->descriptor != -1) {
		messenger_unwatch(connection->request.app, connection->descriptor);
		close(connection->descriptor);
		connection->descriptor = -1;
	}
	if (connection->state == ANSWERING)
		return;
	while (*at != connection)
		at = &(*at)->next;
	*at = connection->next;
	free(connection->output);
	free(connection);
}

/* ---- output -------------------------------------------------------------- */

static size_t
pending(const struct connection *connection)
{
	return connection->output_length;
}

/* Append to what the client is to get: all of it; or nothing, if there is no memory. */
static bool CLUTCH_PRINTF(2, 3) output(struct connection *connection, const char *format, ...)
{
	char text[1024], *grown = NULL; /* most answers are shorter, and are formatted once */
	size_t used = pending(connection);
	va_list values;
	int length;

	va_start(values, format);
	length = vsnprintf(text, sizeof text, format, values);
	va_end(values);
	if (length >= 0)
		grown = realloc(connection->output, used + (size_t)length + 1);
	if (grown == NULL)
		return false;
	va_start(values, format);
	if ((size_t)length < sizeof text)
		memcpy(grown + used, text, (size_t)length);
	else
		vsnprintf(grown + used, (size_t)length + 1, format, values);
	va_end(values);
	connection->output = grown;
	connection->output_length += (size_t)length;
	if (used == 0)
		connection->since = clutch_now(); /* from now on it waits to be written */
	return true;
}

/* Write what the socket takes; false: the client is gone. */
static bool
output_flush(struct connection *connection)
{
	ssize_t n;

	if (pending(connection) == 0)
		return true;
	n = send(connection->descriptor, connection->output, pending(connection), MSG_NOSIGNAL);
	if (n == -1)
		return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
	connection->since = clutch_now();
	connection->output_length -= (size_t)n;
	memmove(connection->output, connection->output + n, pending(connection));
	if (pending(connection) == 0) {
		free(connection->output);
		connection->output = NULL;
	}
	return true;
}

/* ---- what the loop is to do ------------------------------------------------ */

static int on_event(struct messenger *app, int descriptor, short revents, void *arg);

/* Watch for what the connection waits for, and for `more`. Without any event, the loop reports
 * only that the client is gone. */
static int
watch(struct connection *connection, short more)
{
	bool reads = connection->state != ANSWERING && !connection->end_of_file &&
	             pending(connection) <= HTTP_OUTPUT_MAX;
	int events = (reads ? POLLIN : 0) | (pending(connection) > 0 ? POLLOUT : 0) | more;

	return messenger_watch(connection->request.app, connection->descriptor, (short)events,
	                       on_event, connection);
}

/* Let the loop go on with the connection, as soon as the socket can be written. This cannot
 * fail: it needs no memory to watch what is watched already. */
static void
run_later(struct connection *connection)
{
	watch(connection, POLLOUT);
}

/* ---- answers ------------------------------------------------------------- */

/* The request is over. If the connection is kept, the input behind it is the next one. */
static void
forget_request(struct connection *connection)
{
	size_t used = connection->keep_alive
	                      ? connection->head.length + connection->head.body_length
	                      : connection->input_length;

	connection->input_length -= used;
	memmove(connection->input, connection->input + used, connection->input_length);
	connection->allow = NULL;
	connection->head = (struct http_head){0};
	connection->request = (struct http_request){.app = connection->request.app, .method = ""};
}

static void
answer(struct connection *connection, int status, const char *type, const char *body)
{
	bool is_leaving = messenger_closing(connection->request.app);
	bool is_head = strcmp(connection->request.method, "HEAD") == 0;
	const char *allow = connection->allow;
	char length[48] = ""; /* a stream has none: it ends with its connection */
	bool is_whole;

	if (connection->topic == NULL)
		snprintf(length, sizeof length, "Content-Length: %zu\r\n", strlen(body));
	if (connection->topic != NULL || is_leaving)
		connection->keep_alive = false;
	is_whole = output(connection,
	                  "HTTP/1.1 %d %s\r\nContent-Type: %s\r\n%s%s%s%sConnection: %s\r\n\r\n%s",
	                  status, reason(status), type != NULL ? type : "text/plain; charset=utf-8",
	                  length, allow != NULL ? "Allow: " : "", allow != NULL ? allow : "",
	                  allow != NULL ? "\r\n" : "",
	                  connection->keep_alive ? "keep-alive" : "close", is_head ? "" : body);
	connection->keep_alive &= is_whole; /* the end tells that an answer is missing */
	connection->state = connection->keep_alive ? IDLE : CLOSING;
	if (connection->topic != NULL && is_whole && !is_head && !is_leaving)
		connection->state = STREAMING;
	forget_request(connection);
}

/* An error, and the end: nothing that this client sends after it is read. */
static void
refuse(struct connection *connection, int status)
{
	char body[64];

	snprintf(body, sizeof body, "%d %s\n", status, reason(status));
	connection->keep_alive = false;
	answer(connection, status, NULL, body);
}

/* ---- one request --------------------------------------------------------- */

/* End the text at this character, and return what stands behind it, or "". */
static char *
cut(char *text, char at)
{
	char *end = strchr(text, at);

	if (end == NULL)
		return text + strlen(text);
	*end = '\0';
	return end + 1;
}

/* "GET /path?query HTTP/1.1", or "GET http://host/path?query HTTP/1.1", as clients send it to
 * proxies. Returns 0, or the status to refuse it with. */
static int
parse_request_line(struct connection *connection, char *method)
{
	char *target = cut(method, ' '), *version = cut(target, ' ');

	if (!http_is_token(method) || strchr(target, '\t') != NULL ||
	    strncmp(version, "HTTP/", 5) != 0 || !isdigit((unsigned char)version[5]) ||
	    version[6] != '.' || !isdigit((unsigned char)version[7]) || version[8] != '\0')
		return 400;
	if (version[5] != '1')
		return 505;
	if (strncasecmp(target, "http://", 7) == 0)
		target += 7 + strcspn(target + 7, "/?");
	else if (*target != '/')
		return 400;
	connection->is_old = version[7] == '0';
	connection->request.method = method;
	connection->request.query = cut(target, '?');
	connection->request.path = *target != '\0' ? target : "/";
	return 0;
}

/* Read what has come of a request. Returns 0 if it is complete, or the status to refuse it
 * with; -1: wait. A wrong line, as of a TLS handshake, is refused before the head is whole. */
static int
read_request(struct connection *connection)
{
	struct http_head *head = &connection->head;
	int status = http_head_parse(head, connection->input, connection->input_length);
	bool has_begun = head->start != NULL || connection->input_length > head->length;
	/* A connection that was just accepted has had no chance to ask: its request is on the
	 * way. One that has had an answer is no longer needed when the process leaves. */
	bool is_over = connection->end_of_file ||
	               (connection->keep_alive && messenger_closing(connection->request.app));

	if (status == 0 && head->start != NULL && connection->request.path == NULL)
		status = parse_request_line(connection, head->start);
	if (status != 0)
		return status;
	if (head->body_length > HTTP_BODY_MAX)
		return 413;
	if (!head->is_whole && connection->input_length >= HTTP_HEAD_MAX)
		return 431;
	if (head->is_whole && head->host == NULL && !connection->is_old)
		return 400;
	if (head->is_whole && connection->input_length >= head->length + head->body_length)
		return 0;
	if (connection->end_of_file && has_begun)
		return 400; /* the rest of the request will not come */
	if (!has_begun && is_over)
		connection->state = CLOSING;
	if (has_begun && connection->state == IDLE) {
		connection->state = READING;
		connection->since = clutch_now();
	}
	if (head->is_whole && head->expects_continue && !connection->is_old) {
		head->expects_continue = false;
		output(connection, "HTTP/1.1 100 Continue\r\n\r\n");
	}
	return -1;
}

/* The request is complete. Returns the handler's result. */
static int
handle(struct connection *connection)
{
	struct http_request *request = &connection->request;
	const struct http_head *head = &connection->head;
	char *body = connection->input + head->length - 1; /* the end of the empty line */
	int uncaught;

	/* One byte to the left, so that there is room for the 0 at the body's end. */
	memmove(body, body + 1, head->body_length);
	body[head->body_length] = '\0';
	request->body = body;
	request->body_length = head->body_length;
	request->host = head->host != NULL ? head->host : "";
	request->origin = head->origin != NULL ? head->origin : "";
	connection->keep_alive =
		!head->says_close && (head->says_keep_alive || !connection->is_old);
	connection->state = ANSWERING;
	uncaught = connection->handler(request, connection->arg);
	if (uncaught != 0 && connection->state == ANSWERING)
		refuse(connection, 500);
	if (uncaught != 0)
		connection->state = CLOSING;
	return uncaught;
}

/* Take a step, if there is input for it and room for an answer. Was there one? */
static bool
step(struct connection *connection, int *uncaught)
{
	int status;

	if (connection->state > READING || pending(connection) > HTTP_OUTPUT_MAX)
		return false;
	status = read_request(connection);
	if (status == 0)
		*uncaught = handle(connection);
	else if (status > 0)
		refuse(connection, status);
	return status != -1;
}

/* ---- the connection ------------------------------------------------------ */

/* Behind the last request nothing is read but the end. Returns false if the client is gone. */
static bool
connection_read(struct connection *connection)
{
	const struct http_head *head = &connection->head;
	size_t used = connection->input_length;
	size_t most = HTTP_HEAD_MAX + (head->is_whole ? head->body_length : 0);
	ssize_t n;

	assert(used < most);
	n = recv(connection->descriptor, connection->input + used, most - used, 0);
	if (n == -1)
		return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
	connection->end_of_file = n == 0;
	if (connection->state <= READING)
		connection->input_length = used + (size_t)n;
	if (connection->state == STREAMING && connection->end_of_file)
		connection->state = CLOSING;
	return true;
}

/* Do all that can be done now. Returns the handler's result, if it was called. */
static int
on_event(struct messenger *app, int descriptor, short revents, void *arg)
{
	struct connection *connection = arg;
	bool alive = (revents & (POLLHUP | POLLERR | POLLNVAL)) == 0;
	int uncaught = 0;

	(void)app, (void)descriptor;
	if ((revents & POLLIN) != 0)
		alive = connection_read(connection); /* its last bytes come before its end */
	do
		alive = alive && output_flush(connection);
	while (alive && step(connection, &uncaught));
	/* All is written: say so, as often as the client sends something. */
	if (connection->state == CLOSING && pending(connection) == 0)
		alive = alive && !connection->end_of_file &&
		        shutdown(connection->descriptor, SHUT_WR) == 0;
	if (alive)
		watch(connection, 0);
	else
		connection_drop(connection);
	return uncaught;
}

/* ---- all connections ------------------------------------------------------ */

/* The limit of the present wait, in ms; 0: none. */
static int
wait_limit(const struct connection *connection)
{
	if (pending(connection) > 0)
		return HTTP_WRITE_TIMEOUT;
	if (connection->state == IDLE)
		return messenger_closing(connection->request.app) ? LINGER_TIMEOUT
		                                                  : HTTP_IDLE_TIMEOUT;
	if (connection->state == READING)
		return HTTP_REQUEST_TIMEOUT;
	return connection->state == CLOSING ? LINGER_TIMEOUT : 0;
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
		if (limit == 0 || now - connection->since < limit)
			continue;
		if (connection->state == READING) {
			refuse(connection, 408);
			run_later(connection);
		} else {
			connection_drop(connection);
		}
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
	struct connection *connection;

	(void)app, (void)arg;
	for (connection = connections; connection != NULL; connection = connection->next) {
		if (connection->state == STREAMING)
			connection->state = CLOSING;
		connection->since = clutch_now();
		run_later(connection);
	}
	return 0;
}

int
http_serve(struct messenger *app, int descriptor, http_handler handler, void *arg)
{
	static bool hears_leaving;
	struct connection *connection = malloc(sizeof *connection + INPUT_MAX);
	int yes = 1;

	hears_leaving = hears_leaving || messenger_before_close(app, on_leaving, NULL) == 0;
	if (sweeper <= 0)
		sweeper = messenger_set_interval(app, HTTP_SWEEP, sweep, NULL);
	if (connection == NULL || !hears_leaving || sweeper <= 0) {
		free(connection);
		close(descriptor);
		return 0;
	}
	/* Nagle's algorithm would hold an answer back until more follows. */
	setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
	*connection = (struct connection){.request = {.app = app, .method = ""},
	                                  .handler = handler,
	                                  .arg = arg,
	                                  .next = connections,
	                                  .descriptor = descriptor,
	                                  .since = clutch_now()};
	connections = connection;
	if (watch(connection, 0) == -1)
		connection_drop(connection);
	return 0;
}

/* ---- for handlers ---------------------------------------------------------- */

int
http_reply(struct http_request *request, int status, const char *type, const char *body)
{
	struct connection *connection = (struct connection *)request;

	assert(connection->state == ANSWERING);
	answer(connection, status, type, body);
	if (connection->descriptor != -1)
		run_later(connection);
	else
		connection_drop(connection); /* the client had gone before its answer */
	return 0;
}

bool
http_allow(struct http_request *request, const char *methods)
{
	size_t length = strlen(request->method);
	const char *at = methods;

	while (*at != '\0') {
		if (strncmp(at, request->method, length) == 0 && strchr(", ", at[length]) != NULL)
			return true;
		at += strcspn(at, ", ");
		at += strspn(at, ", ");
	}
	((struct connection *)request)->allow = methods;
	http_reply(request, 405, NULL, "405 Method Not Allowed\n");
	return false;
}

void
http_last(struct http_request *request)
{
	((struct connection *)request)->keep_alive = false;
}

int
http_subscribe(struct http_request *request, const char *type, const void *topic, const char *first)
{
	((struct connection *)request)->topic = topic;
	return http_reply(request, 200, type, first);
}

/* Only queue the text: the loop writes it. */
int
http_publish(const void *topic, const char *text)
{
	struct connection *connection;
	int count = 0;

	for (connection = connections; connection != NULL; connection = connection->next) {
		if (connection->state != STREAMING || connection->topic != topic)
			continue;
		count++;
		if (pending(connection) + strlen(text) > HTTP_OUTPUT_MAX ||
		    !output(connection, "%s", text)) {
			connection->state = CLOSING;
			connection->since -= HTTP_WRITE_TIMEOUT; /* the client has had its time */
		}
		run_later(connection);
	}
	return count;
}
