/*
 * HTTP for the examples: a server and a client.
 *
 * A connection of the server answers one request, and reads the next one after that. So
 * the answers leave in order, and a request needs no memory of its own.
 *
 *	            head complete             body skipped             http_subscribe
 *	READ_HEAD ----------------> SKIP_BODY ------------> ANSWERING ----------> STREAMING
 *	    ^  |                                                |                     |
 *	    |  | end of file                                    | http_reply, or      | we leave
 *	    |  v                                                | refused: an error   |
 *	    |  CLOSING <----------------------------------------+---------------------+
 *	    |     |     "Connection: close"                     |
 *	    |     |                                             |
 *	    +-----|---------------------------------------------+
 *	          |     keep-alive
 *	          v
 *	      LINGERING: all is written; wait for the client's end of file
 *
 * We linger because a socket closed with unread input sends a reset, which can
 * overtake the answer and destroy it at the client.
 */
#include "http.h"

#include "../messenger.h"

#include <arpa/inet.h>
#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
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

enum state { READ_HEAD, SKIP_BODY, ANSWERING, STREAMING, CLOSING, LINGERING };

/* The event that a connection waits for. Only WAIT_ANSWER has no time limit. */
enum wait { WAIT_NONE, WAIT_IDLE, WAIT_REQUEST, WAIT_ANSWER, WAIT_WRITE, WAIT_LINGER };

/* The contents of the head of a request or an answer. */
struct head {
	size_t length; /* of the head itself */
	size_t body;   /* the bytes behind it that are not skipped yet */
	bool has_host, has_body, is_old, says_close, says_keep_alive;
};

struct connection {
	struct http_request request; /* first: a pointer to one is a pointer to the other */
	http_handler handler;
	void *arg;
	struct connection *next, *previous;

	int descriptor; /* -1: the client is gone, but its request is unanswered */
	short events;   /* that are watched */
	enum state state;
	bool running;     /* connection_run is at work */
	bool end_of_file; /* the client sends nothing more; it may still read */
	bool keep_alive;  /* after the answer to this request */
	struct head head;
	const void *topic; /* of its stream */

	enum wait wait;
	int64_t deadline; /* of the wait, as clutch_now() counts */
	int timer;        /* 0: none; set to fire at `due`, which is not after the deadline */
	int64_t due;

	char *output;
	size_t output_start, output_end, output_size;
	size_t input_length;
	char input[INPUT_SIZE];
};

/* The process's open connections. */
static struct connection *connections;
static bool before_close_is_set;

/* The connection that on_leaving looks at next. A handler that it calls can end any
 * connection, this one too: then connection_drop moves the mark on. */
static struct connection *upcoming;

static const char *
reason(int status)
{
	static const struct {
		int status;
		const char *reason;
	} reasons[] = {
		{200, "OK"},
		{201, "Created"},
		{202, "Accepted"},
		{400, "Bad Request"},
		{403, "Forbidden"},
		{404, "Not Found"},
		{405, "Method Not Allowed"},
		{408, "Request Timeout"},
		{413, "Content Too Large"},
		{431, "Request Header Fields Too Large"},
		{500, "Internal Server Error"},
		{501, "Not Implemented"},
		{503, "Service Unavailable"},
		{505, "HTTP Version Not Supported"},
	};
	size_t i;

	for (i = 0; i < sizeof reasons / sizeof reasons[0]; i++)
		if (reasons[i].status == status)
			return reasons[i].reason;
	return "";
}

/* ---- the end of a connection --------------------------------------------- */

/* An unanswered request outlives its connection: the application holds it, to reply. */
static void
connection_free(struct connection *connection)
{
	free(connection->output);
	free(connection);
}

static void
connection_drop(struct connection *connection)
{
	if (connection->timer != 0)
		messenger_clear_timeout(connection->request.app, connection->timer);
	if (connection->previous != NULL)
		connection->previous->next = connection->next;
	else
		connections = connection->next;
	if (connection->next != NULL)
		connection->next->previous = connection->previous;
	if (upcoming == connection)
		upcoming = connection->next;
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
	return connection->output_end - connection->output_start;
}

/* Room for `size` more bytes at the output's end. */
static bool
output_reserve(struct connection *connection, size_t size)
{
	size_t used = pending(connection);
	size_t larger = (used + size + OUTPUT_KEEP - 1) / OUTPUT_KEEP * OUTPUT_KEEP;
	char *grown;

	if (connection->output_start > 0)
		memmove(connection->output, connection->output + connection->output_start, used);
	connection->output_start = 0;
	connection->output_end = used;
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
		n = send(connection->descriptor, connection->output + connection->output_start,
		         pending(connection), MSG_NOSIGNAL);
		if (n == -1 && errno == EINTR)
			continue;
		if (n == -1)
			return errno == EAGAIN || errno == EWOULDBLOCK;
		connection->output_start += (size_t)n;
		connection->wait = WAIT_NONE; /* progress: the wait begins again */
	}
	if (connection->output_size > OUTPUT_KEEP) {
		free(connection->output);
		connection->output = NULL;
		connection->output_size = 0;
	}
	connection->output_start = connection->output_end = 0;
	return true;
}

/* Append the head of an answer. `length` is its Content-Length line, or "" for a stream,
 * which ends with its connection. */
static bool
output_head(struct connection *connection, int status, const char *type, const char *length)
{
	static const char *const format = "HTTP/1.1 %d %s\r\nContent-Type: %s\r\n%s%s%s"
					  "Connection: %s\r\n\r\n";
	const char *allow = status == 405 ? "Allow: GET, HEAD\r\n" : "";
	const char *after = connection->keep_alive ? "keep-alive" : "close";
	size_t room = strlen(type) + 256;
	int written;

	if (!output_reserve(connection, room))
		return false;
	written =
		snprintf(connection->output + connection->output_end, room, format, status,
	                 reason(status), type, length, length[0] != 0 ? "\r\n" : "", allow, after);
	assert(written > 0 && (size_t)written < room);
	connection->output_end += (size_t)written;
	return true;
}

static bool
output_text(struct connection *connection, const char *text)
{
	size_t length = strlen(text);

	if (!output_reserve(connection, length))
		return false;
	memcpy(connection->output + connection->output_end, text, length);
	connection->output_end += length;
	return true;
}

/* The request is over: forget its head. The bytes behind it are the next requests. */
static void
forget_request(struct connection *connection)
{
	size_t length = connection->head.length;

	connection->wait = WAIT_NONE;
	connection->input_length -= length;
	memmove(connection->input, connection->input + length, connection->input_length);
	connection->head.length = 0;
	connection->request.method = ""; /* its bytes are gone */
}

static void
answer(struct connection *connection, int status, const char *type, const char *body)
{
	bool is_head = strcmp(connection->request.method, "HEAD") == 0;
	char length[48];

	if (messenger_closing(connection->request.app))
		connection->keep_alive = false;
	snprintf(length, sizeof length, "Content-Length: %zu", strlen(body));
	if (!output_head(connection, status, type, length) ||
	    (!is_head && !output_text(connection, body)))
		connection->keep_alive =
			false; /* its end tells the client that an answer is missing */
	connection->state = connection->keep_alive ? READ_HEAD : CLOSING;
	forget_request(connection);
}

static void
answer_status(struct connection *connection, int status)
{
	char body[64];

	snprintf(body, sizeof body, "%d %s\n", status, reason(status));
	answer(connection, status, PLAIN_TEXT, body);
}

/* An error, and the end: nothing that this client sends after it is read. */
static void
refuse(struct connection *connection, int status)
{
	connection->keep_alive = false;
	answer_status(connection, status);
}

/* ---- the head of a request: 0, or the status to refuse it with ----------- */

/* Cut off the next line. The caller knows that there is one. */
static char *
next_line(char **rest)
{
	char *line = *rest;
	char *end = strchr(line, '\n');

	*rest = end + 1;
	if (end > line && end[-1] == '\r')
		end--;
	*end = 0;
	return line;
}

static bool
is_clean(const char *line, bool may_have_tabs)
{
	for (; *line != 0; line++)
		if (iscntrl((unsigned char)*line) && !(may_have_tabs && *line == '\t'))
			return false;
	return true;
}

static bool
is_token(const char *text)
{
	static const char *const allowed = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz"
					   "ABCDEFGHIJKLMNOPQRSTUVWXYZ";

	return *text != 0 && text[strspn(text, allowed)] == 0;
}

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
		*mark = 0;
	return 0;
}

static int
parse_request_line(struct connection *connection, char *method)
{
	char *target = strchr(method, ' ');
	char *version = target != NULL ? strchr(target + 1, ' ') : NULL;

	if (version == NULL || !is_clean(method, false))
		return 400;
	*target++ = 0;
	*version++ = 0;
	if (!is_token(method) || *target == 0 || strncmp(version, "HTTP/", 5) != 0 ||
	    !isdigit((unsigned char)version[5]) || version[6] != '.' ||
	    !isdigit((unsigned char)version[7]) || version[8] != 0)
		return 400;
	if (version[5] != '1')
		return 505;
	connection->head.is_old = version[7] == '0';
	connection->request.method = method;
	if (strcmp(method, "GET") != 0 && strcmp(method, "HEAD") != 0)
		return 0; /* its target does not matter: handle refuses the method */
	return parse_target(&connection->request, target);
}

static int
parse_content_length(struct head *head, const char *value)
{
	size_t digits = strspn(value, "0123456789");
	unsigned long length = strtoul(value, NULL, 10); /* a number that is too long: ULONG_MAX */

	if (digits == 0 || value[digits] != 0 || (head->has_body && head->body != length))
		return 400;
	head->has_body = true;
	head->body = length;
	return 0;
}

static void
parse_connection(struct head *head, char *value)
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

static char *
trim(char *text)
{
	size_t length;

	text += strspn(text, " \t");
	length = strlen(text);
	while (length > 0 && (text[length - 1] == ' ' || text[length - 1] == '\t'))
		text[--length] = 0;
	return text;
}

/* A line that continues the line before it begins with a space, so its name is no token. */
static int
parse_header(struct head *head, char *name)
{
	char *value = strchr(name, ':');

	if (value == NULL || !is_clean(name, true))
		return 400;
	*value = 0;
	value = trim(value + 1);
	if (!is_token(name))
		return 400;
	if (strcasecmp(name, "Transfer-Encoding") == 0)
		return 501;
	if (strcasecmp(name, "Content-Length") == 0)
		return parse_content_length(head, value);
	if (strcasecmp(name, "Connection") == 0)
		parse_connection(head, value);
	if (strcasecmp(name, "Host") == 0) {
		if (head->has_host)
			return 400;
		head->has_host = true;
	}
	return 0;
}

static int
parse_head(struct connection *connection)
{
	struct head *head = &connection->head;
	char *rest = connection->input;
	char *line;
	int status;

	if (memchr(connection->input, 0, head->length) != NULL)
		return 400;
	status = parse_request_line(connection, next_line(&rest));
	while (status == 0 && *(line = next_line(&rest)) != 0)
		status = parse_header(head, line);
	if (status != 0)
		return status;
	if (!head->has_host && !head->is_old)
		return 400;
	if (head->body > HTTP_BODY_MAX)
		return 413;
	connection->keep_alive = !head->says_close && (head->says_keep_alive || !head->is_old);
	return 0;
}

/* ---- one request, step by step: true if there was a step ------------------ */

/* The length of the head with the empty line that ends it; 0: it is not complete. A line
 * may end without '\r', as people type it. */
static size_t
find_head(const char *input, size_t length)
{
	const char *end = input + length;
	const char *p = input;

	while ((p = memchr(p, '\n', (size_t)(end - p))) != NULL) {
		p++;
		if (end - p >= 1 && p[0] == '\n')
			return (size_t)(p + 1 - input);
		if (end - p >= 2 && p[0] == '\r' && p[1] == '\n')
			return (size_t)(p + 2 - input);
	}
	return 0;
}

/* Bytes that cannot become a request are refused before there is an empty line: some text,
 * a TLS handshake. */
static bool
is_garbage(const struct connection *connection)
{
	const char *end = memchr(connection->input, '\n', connection->input_length);

	if (memchr(connection->input, 0, connection->input_length) != NULL)
		return true;
	if (end == NULL)
		return false;
	if (end > connection->input && end[-1] == '\r')
		end--;
	return end - connection->input < (ptrdiff_t)strlen("M / HTTP/1.1") ||
	       strncmp(end - strlen("HTTP/1.1"), "HTTP/", 5) != 0;
}

/* Some clients send an empty line after a body. It is not a request. */
static void
skip_empty_lines(struct connection *connection)
{
	size_t start = 0;

	while (start < connection->input_length) {
		const char *p = connection->input + start;
		bool two = connection->input_length - start >= 2 && p[0] == '\r' && p[1] == '\n';

		if (!two && p[0] != '\n')
			break;
		start += two ? 2 : 1;
	}
	connection->input_length -= start;
	memmove(connection->input, connection->input + start, connection->input_length);
}

/* The client sends nothing more: a request that is not complete never will be. */
static bool
end_input(struct connection *connection)
{
	if (connection->input_length > 0)
		refuse(connection, 400);
	else
		connection->state = CLOSING;
	return true;
}

static bool
wait_for_head(struct connection *connection)
{
	if (connection->input_length > HTTP_HEAD_MAX)
		refuse(connection, 431);
	else if (is_garbage(connection))
		refuse(connection, 400);
	else
		return connection->end_of_file && end_input(connection);
	return true;
}

static bool
read_head(struct connection *connection)
{
	size_t length;
	int status;

	skip_empty_lines(connection);
	length = find_head(connection->input, connection->input_length);
	if (length == 0)
		return wait_for_head(connection);
	memset(&connection->head, 0, sizeof connection->head);
	connection->head.length = length;
	status = length > HTTP_HEAD_MAX ? 431 : parse_head(connection);
	if (status != 0)
		refuse(connection, status);
	else
		connection->state = SKIP_BODY;
	return true;
}

static bool
skip_body(struct connection *connection)
{
	struct head *head = &connection->head;
	size_t here = connection->input_length - head->length;
	size_t skipped = here < head->body ? here : head->body;

	head->body -= skipped;
	connection->input_length -= skipped;
	memmove(connection->input + head->length, connection->input + head->length + skipped,
	        connection->input_length - head->length);
	if (head->body > 0)
		return connection->end_of_file && end_input(connection);
	connection->state = ANSWERING;
	return true;
}

/* The request is complete. Returns the handler's result. */
static int
handle(struct connection *connection)
{
	const char *method = connection->request.method;
	int uncaught;

	if (strcmp(method, "GET") != 0 && strcmp(method, "HEAD") != 0) {
		answer_status(connection, 405);
		return 0;
	}
	uncaught = connection->handler(&connection->request, connection->arg);
	if (uncaught != 0 && connection->state == ANSWERING)
		refuse(connection, 500);
	if (uncaught != 0)
		connection->state = CLOSING;
	return uncaught;
}

static bool
step(struct connection *connection, int *uncaught)
{
	switch (connection->state) {
	case READ_HEAD:
		return read_head(connection);
	case SKIP_BODY:
		if (!skip_body(connection))
			return false;
		if (connection->state == ANSWERING)
			*uncaught = handle(connection);
		return true;
	case ANSWERING:
	case STREAMING:
	case CLOSING:
	case LINGERING:
		break;
	}
	return false;
}

/* Take steps until the input, or the room for output, is used up. */
static bool
advance(struct connection *connection, int *uncaught)
{
	bool any = false;

	while (pending(connection) <= HTTP_OUTPUT_MAX && step(connection, uncaught))
		any = true;
	return any;
}

/* ---- the connection ------------------------------------------------------ */

static int on_timer(struct messenger *app, void *arg);
static int on_event(struct messenger *app, int descriptor, short revents, void *arg);

/* No request has begun to arrive, and no answer waits to be written. */
static bool
is_idle(const struct connection *connection)
{
	return connection->state == READ_HEAD && !connection->running &&
	       connection->input_length == 0 && pending(connection) == 0;
}

/* A process that leaves drops an idle connection that has had an answer. A connection that
 * was just accepted has had no chance to ask: its request is on the way. */
static bool
is_spare(const struct connection *connection)
{
	return is_idle(connection) && connection->keep_alive;
}

static enum wait
awaited_event(const struct connection *connection)
{
	if (connection->state == LINGERING)
		return WAIT_LINGER;
	if (pending(connection) > 0)
		return WAIT_WRITE;
	if (connection->state == ANSWERING || connection->state == STREAMING)
		return WAIT_ANSWER;
	if (!is_idle(connection))
		return WAIT_REQUEST;
	return messenger_closing(connection->request.app) ? WAIT_LINGER : WAIT_IDLE;
}

/* The time limit of a wait, in ms; 0: none. */
static int
wait_limit(enum wait wait)
{
	const int limits[] = {
		[WAIT_NONE] = 0,
		[WAIT_IDLE] = HTTP_IDLE_TIMEOUT,
		[WAIT_REQUEST] = HTTP_REQUEST_TIMEOUT,
		[WAIT_ANSWER] = 0,
		[WAIT_WRITE] = HTTP_WRITE_TIMEOUT,
		[WAIT_LINGER] = LINGER_TIMEOUT,
	};

	return limits[wait];
}

static bool
set_timer(struct connection *connection, int64_t now)
{
	int id = messenger_set_timeout(connection->request.app, (int)(connection->deadline - now),
	                               on_timer, connection);

	connection->timer = id > 0 ? id : 0;
	connection->due = connection->deadline;
	return id > 0;
}

/* The timer is not moved with every request: a timer that fires too early costs less, and
 * on_timer sets it again. */
static bool
set_deadline(struct connection *connection)
{
	enum wait wait = awaited_event(connection);
	int64_t now;

	if (connection->wait == wait)
		return true;
	connection->wait = wait;
	if (wait_limit(wait) == 0)
		return true;
	now = clutch_now();
	connection->deadline = now + wait_limit(wait);
	if (connection->timer != 0 && connection->due <= connection->deadline)
		return true;
	if (connection->timer != 0)
		messenger_clear_timeout(connection->request.app, connection->timer);
	return set_timer(connection, now);
}

static bool
watch(struct connection *connection, short events)
{
	connection->events = events;
	return messenger_watch(connection->request.app, connection->descriptor, events, on_event,
	                       connection) == 0;
}

/* No events: the loop then reports only that the client is gone. */
static bool
set_events(struct connection *connection)
{
	bool reads = connection->state == LINGERING || connection->state == STREAMING ||
	             (connection->state != ANSWERING && connection->state != CLOSING &&
	              pending(connection) <= HTTP_OUTPUT_MAX);
	short events = 0;

	if (reads && !connection->end_of_file)
		events |= POLLIN;
	if (pending(connection) > 0)
		events |= POLLOUT;
	return connection->events == events || watch(connection, events);
}

/* Has the connection something left to do? */
static bool
is_needed(struct connection *connection)
{
	if (connection->state == CLOSING && pending(connection) == 0) {
		if (connection->end_of_file || shutdown(connection->descriptor, SHUT_WR) == -1)
			return false;
		connection->state = LINGERING;
	}
	if (connection->state == LINGERING || connection->state == STREAMING) {
		connection->input_length = 0; /* nothing reads it */
		return !connection->end_of_file;
	}
	return !is_spare(connection) || !messenger_closing(connection->request.app);
}

/* Do all that can be done now. Returns the handler's result, if it was called. */
static int
connection_run(struct connection *connection)
{
	int uncaught = 0;
	bool alive;

	connection->running = true;
	do
		alive = output_flush(connection);
	while (alive && advance(connection, &uncaught));
	connection->running = false;
	if (alive)
		alive = is_needed(connection) && set_events(connection) && set_deadline(connection);
	if (!alive)
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

	(void)app;
	(void)descriptor;
	if (reads &&
	    (gone || (revents & POLLIN) != 0)) /* read its last bytes before you believe its end */
		gone = !connection_read(connection);
	if (!gone)
		return connection_run(connection);
	connection_drop(connection);
	return 0;
}

static int
on_timer(struct messenger *app, void *arg)
{
	struct connection *connection = arg;
	int64_t now = clutch_now();

	(void)app;
	connection->timer = 0;
	if (wait_limit(connection->wait) == 0)
		return 0; /* this wait has no limit; the next one sets the timer again */
	if (connection->deadline > now) {
		if (!set_timer(connection, now))
			connection_drop(connection);
		return 0;
	}
	if (connection->wait == WAIT_REQUEST) {
		refuse(connection, 408);
		return connection_run(connection);
	}
	connection_drop(connection);
	return 0;
}

/* The process leaves. Idle connections end at once, new ones after a second, and streams
 * end. A request may have arrived that the loop has not reported, so look once more. The
 * app worker waits for the other connections, because they are watched. */
static int
on_leaving(struct messenger *app, void *arg)
{
	struct connection *connection;

	(void)arg;
	for (connection = connections; connection != NULL; connection = upcoming) {
		upcoming = connection->next;
		if (connection->state == STREAMING) {
			connection->state = CLOSING;
			connection_run(connection);
		} else if (is_idle(connection))
			on_event(app, connection->descriptor, POLLIN, connection);
	}
	return 0;
}

static void
connection_start(struct connection *connection)
{
	int yes = 1;

	/* Nagle's algorithm would hold an answer back until more follows. */
	setsockopt(connection->descriptor, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
	connection->next = connections;
	if (connections != NULL)
		connections->previous = connection;
	connections = connection;
	if (!set_events(connection) || !set_deadline(connection))
		connection_drop(connection);
}

int
http_serve(struct messenger *app, int descriptor, http_handler handler, void *arg)
{
	struct connection *connection;

	if (!before_close_is_set)
		before_close_is_set = messenger_before_close(app, on_leaving, NULL) == 0;
	connection = calloc(1, sizeof *connection);
	if (connection == NULL) {
		close(descriptor);
		return 0;
	}
	connection->request.app = app;
	connection->request.method = "";
	connection->handler = handler;
	connection->arg = arg;
	connection->descriptor = descriptor;
	connection_start(connection);
	return 0;
}

/* The loop goes on with the connection when the socket can be written, so that http_reply
 * never calls a handler. Inside the handler, connection_run goes on with it. */
static void
run_later(struct connection *connection)
{
	if (!connection->running && !watch(connection, POLLOUT))
		connection_drop(connection);
}

int
http_reply(struct http_request *request, int status, const char *type, const char *body)
{
	struct connection *connection = (struct connection *)request;

	assert(connection->state == ANSWERING);
	if (connection->descriptor == -1) {
		connection_free(connection);
		return 0;
	}
	answer(connection, status, type != NULL ? type : PLAIN_TEXT, body);
	run_later(connection);
	return 0;
}

/* ---- streams -------------------------------------------------------------- */

int
http_subscribe(struct http_request *request, const char *type, const void *topic, const char *first)
{
	struct connection *connection = (struct connection *)request;
	bool is_head = strcmp(request->method, "HEAD") == 0;

	assert(connection->state == ANSWERING);
	if (connection->descriptor == -1) {
		connection_free(connection);
		return 0;
	}
	connection->keep_alive = false;
	connection->topic = topic;
	type = type != NULL ? type : PLAIN_TEXT;
	if (output_head(connection, 200, type, "") && !is_head && output_text(connection, first) &&
	    !messenger_closing(request->app))
		connection->state = STREAMING;
	else
		connection->state = CLOSING;
	forget_request(connection);
	run_later(connection);
	return 0;
}

/* Only queue the text. The loop writes it when the socket can be written. */
static bool
stream_write(struct connection *connection, const char *text)
{
	if (pending(connection) + strlen(text) > HTTP_OUTPUT_MAX || !output_text(connection, text))
		return false;
	return connection->running || (set_events(connection) && set_deadline(connection));
}

void
http_publish(const void *topic, const char *text)
{
	struct connection *connection, *next;

	for (connection = connections; connection != NULL; connection = next) {
		next = connection->next;
		if (connection->state != STREAMING || connection->topic != topic ||
		    stream_write(connection, text))
			continue;
		if (connection->running)
			connection->state = CLOSING; /* its own handler has called us */
		else
			connection_drop(connection);
	}
}

/* ---- the client ------------------------------------------------------------ */

/*
 * The client asks in HTTP/1.0, so that the answer is never chunked: the answer has a
 * length, or ends with the connection. A stream is an answer that does not end.
 */
struct client {
	struct messenger *messenger;
	http_listener listener;
	void *arg;
	bool is_stream;
	int descriptor, timeout, timer;
	bool is_sent; /* the request, which stands in `text` until then */
	int status;
	struct head head; /* of the answer; length 0: it is not complete */
	size_t length;
	char text[HTTP_HEAD_MAX + HTTP_BODY_MAX + 1];
};

static void
client_free(struct client *client)
{
	if (client->timer > 0)
		messenger_clear_timeout(client->messenger, client->timer);
	messenger_unwatch(client->messenger, client->descriptor);
	close(client->descriptor);
	free(client);
}

/* The listener may open the next client. This one is freed after that. */
static int
client_end(struct client *client, int status, const char *text)
{
	int result = client->listener(client->messenger, status, text, client->arg);

	client_free(client);
	return result;
}

static int
on_client_timeout(struct messenger *messenger, void *arg)
{
	struct client *client = arg;

	(void)messenger;
	client->timer = 0;
	return client_end(client, 0, "it takes too long");
}

static bool
client_set_timer(struct client *client)
{
	if (client->timer > 0)
		messenger_clear_timeout(client->messenger, client->timer);
	client->timer = messenger_set_timeout(client->messenger, client->timeout, on_client_timeout,
	                                      client);
	return client->timer > 0;
}

/* "HTTP/1.1 200 OK", and headers like those of a request. */
static bool
parse_answer(struct client *client)
{
	struct head *head = &client->head;
	char *rest = client->text;
	char *line;

	if (memchr(client->text, 0, head->length) != NULL)
		return false;
	line = next_line(&rest);
	if (strncmp(line, "HTTP/1.", 7) != 0 || !isdigit((unsigned char)line[7]) ||
	    sscanf(line + 8, " %3d", &client->status) != 1 || client->status < 100)
		return false;
	while (*(line = next_line(&rest)) != 0)
		if (parse_header(head, line) != 0)
			return false;
	return head->body <= HTTP_BODY_MAX;
}

/* Cut off the answer's head if it is complete. Returns NULL, or what is wrong with it. */
static const char *
client_read_head(struct client *client)
{
	struct head *head = &client->head;

	head->length = find_head(client->text, client->length);
	if (head->length == 0)
		return client->length > HTTP_HEAD_MAX ? "the head of its answer is too long" : NULL;
	if (!parse_answer(client))
		return "it answers something else than HTTP";
	if (client->is_stream && client->status != 200)
		return "it refuses";
	client->length -= head->length;
	memmove(client->text, client->text + head->length, client->length);
	return NULL;
}

/* Call the listener for each whole line, and keep the beginning of the next one. */
static int
client_read_lines(struct client *client)
{
	char *line = client->text, *end;
	int result, uncaught = 0;
	size_t left = client->length;

	while ((end = memchr(line, '\n', left)) != NULL) {
		*end = 0;
		if (end > line && end[-1] == '\r')
			end[-1] = 0;
		result = client->listener(client->messenger, client->status, line, client->arg);
		uncaught = uncaught != 0 ? uncaught : result;
		left -= (size_t)(end + 1 - line);
		line = end + 1;
	}
	memmove(client->text, line, left);
	client->length = left;
	return uncaught;
}

/* Look at all that `text` has. Returns the listener's result. */
static int
client_run(struct client *client, bool end_of_file)
{
	struct head *head = &client->head;
	const char *why = head->length == 0 ? client_read_head(client) : NULL;
	bool whole = head->has_body ? client->length >= head->body : end_of_file;
	int uncaught = 0;

	if (why == NULL && head->length > 0 && client->is_stream)
		uncaught = client_read_lines(client);
	else if (why == NULL && head->length > 0 && whole) {
		client->text[head->has_body ? head->body : client->length] = 0;
		return client_end(client, client->status, client->text);
	}
	if (why == NULL && end_of_file)
		why = "it has hung up";
	if (why == NULL && client->length == sizeof client->text - 1)
		why = "its answer is too long";
	if (why == NULL || uncaught != 0)
		return uncaught;
	return client_end(client, 0, why);
}

static int
client_read(struct client *client)
{
	ssize_t n = recv(client->descriptor, client->text + client->length,
	                 sizeof client->text - 1 - client->length, 0);

	if (n == -1 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
		return 0;
	if (n == -1)
		return client_end(client, 0, strerror(errno));
	client->length += (size_t)n;
	if (client->is_stream && !client_set_timer(client))
		return client_end(client, 0, strerror(ENOMEM));
	return client_run(client, n == 0);
}

static int on_server(struct messenger *messenger, int descriptor, short revents, void *arg);

static bool
client_watch(struct client *client, short events)
{
	return messenger_watch(client->messenger, client->descriptor, events, on_server, client) ==
	       0;
}

/* The attempt to connect has ended: send the request, or tell why it failed. */
static int
client_write(struct client *client)
{
	int error = 0;
	socklen_t size = sizeof error;
	ssize_t n = -1;

	if (getsockopt(client->descriptor, SOL_SOCKET, SO_ERROR, &error, &size) == -1)
		error = errno;
	if (error == 0)
		n = send(client->descriptor, client->text, client->length, MSG_NOSIGNAL);
	if (n == -1 && error == 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (n == -1)
		return client_end(client, 0, strerror(error != 0 ? error : errno));
	client->length -= (size_t)n;
	memmove(client->text, client->text + n, client->length);
	client->is_sent = client->length == 0;
	if (client->is_sent && !client_watch(client, POLLIN))
		return client_end(client, 0, strerror(ENOMEM));
	return 0;
}

static int
on_server(struct messenger *messenger, int descriptor, short revents, void *arg)
{
	struct client *client = arg;

	(void)messenger, (void)descriptor, (void)revents;
	return client->is_sent ? client_read(client) : client_write(client);
}

/* "127.0.0.1:7002", or "localhost". Any other name would need a lookup, which blocks. */
static bool
parse_authority(char *host, struct sockaddr_in *address)
{
	char *port = strchr(host, ':');
	size_t digits = port != NULL ? strspn(port + 1, "0123456789") : 0;
	long number = port == NULL ? 80 : digits <= 5 ? strtol(port + 1, NULL, 10) : 0;

	if (number < 1 || number > 65535 || (port != NULL && port[1 + digits] != 0))
		return false;
	if (port != NULL)
		*port = 0;
	*address = (struct sockaddr_in){.sin_family = AF_INET};
	address->sin_port = htons((uint16_t)number);
	address->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	return strcmp(host, "localhost") == 0 || inet_pton(AF_INET, host, &address->sin_addr) == 1;
}

/* The address in "http://127.0.0.1:7002/data". */
static bool
parse_url(const char *url, struct sockaddr_in *address)
{
	char host[64];
	size_t length;

	if (strncmp(url, "http://", 7) != 0 || strlen(url) > HTTP_URL_MAX ||
	    strchr(url, ' ') != NULL || !is_clean(url, false))
		return false;
	length = strcspn(url + 7, "/");
	if (length >= sizeof host)
		return false;
	memcpy(host, url + 7, length);
	host[length] = 0;
	return parse_authority(host, address);
}

bool
http_is_url(const char *url)
{
	struct sockaddr_in address;

	return parse_url(url, &address);
}

/* A socket that has begun to connect; -1 with errno. */
static int
connect_to(const struct sockaddr_in *address)
{
	int descriptor = socket(AF_INET, SOCK_STREAM, 0);
	int error;

	if (descriptor == -1)
		return -1;
	if (fcntl(descriptor, F_SETFL, O_NONBLOCK) == -1 ||
	    fcntl(descriptor, F_SETFD, FD_CLOEXEC) == -1 ||
	    (connect(descriptor, (const struct sockaddr *)address, sizeof *address) == -1 &&
	     errno != EINPROGRESS && errno != EINTR)) {
		error = errno;
		close(descriptor);
		errno = error;
		return -1;
	}
	return descriptor;
}

static int
client_start(struct client *client, const char *url)
{
	struct sockaddr_in address;
	const char *path;

	if (!parse_url(url, &address)) {
		errno = EINVAL;
		return -1;
	}
	path = url + 7 + strcspn(url + 7, "/");
	client->length = (size_t)snprintf(client->text, sizeof client->text,
	                                  "GET %s HTTP/1.0\r\nHost: %.*s\r\n\r\n",
	                                  *path != 0 ? path : "/", (int)(path - url - 7), url + 7);
	client->descriptor = connect_to(&address);
	if (client->descriptor == -1)
		return -1;
	if (client_set_timer(client) && client_watch(client, POLLOUT))
		return 0;
	messenger_clear_timeout(client->messenger, client->timer);
	close(client->descriptor);
	errno = ENOMEM;
	return -1;
}

static int
client_open(struct messenger *messenger, const char *url, int timeout, bool is_stream,
            http_listener listener, void *arg)
{
	struct client *client = calloc(1, sizeof *client);
	int error;

	if (client == NULL)
		return -1;
	client->messenger = messenger;
	client->timeout = timeout;
	client->is_stream = is_stream;
	client->listener = listener;
	client->arg = arg;
	if (client_start(client, url) == 0)
		return 0;
	error = errno;
	free(client);
	errno = error;
	return -1;
}

int
http_get(struct messenger *messenger, const char *url, int timeout, http_listener listener,
         void *arg)
{
	return client_open(messenger, url, timeout, false, listener, arg);
}

int
http_listen(struct messenger *messenger, const char *url, int silence, http_listener listener,
            void *arg)
{
	return client_open(messenger, url, silence, true, listener, arg);
}
