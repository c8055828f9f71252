/*
 * The HTTP/1.1 server of the examples.
 *
 * A connection answers one request at a time, and does not look at the next one
 * before: so answers leave in order, and a request needs no memory of its own.
 *
 *	            head complete             body skipped
 *	READ_HEAD ----------------> SKIP_BODY ------------> ANSWERING
 *	    ^  |                                                |
 *	    |  | end of file                                    | http_reply, or
 *	    |  v                                                | refused: an error
 *	    |  CLOSING <----------------------------------------+
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
#include <time.h>
#include <unistd.h>

/* Bytes. */
#define HEAD_MAX 8192                /* request line and headers */
#define BODY_MAX 65536               /* read and thrown away */
#define INPUT_SIZE (HEAD_MAX + 4096) /* a head stays until its request is answered */
#define OUTPUT_MAX 65536             /* with more unwritten, no further request is begun */
#define OUTPUT_KEEP 4096             /* a larger buffer is given back when it is empty */

#define PLAIN_TEXT "text/plain; charset=utf-8"

/* Milliseconds. */
#define IDLE_TIMEOUT 5000     /* between two requests */
#define REQUEST_TIMEOUT 10000 /* from a request's first byte to its last */
#define WRITE_TIMEOUT 10000   /* for a client that reads nothing */
#define LINGER_TIMEOUT 1000

enum state { READ_HEAD, SKIP_BODY, ANSWERING, CLOSING, LINGERING };

/* What a connection waits for, and its time limit (an answer may take its time). */
enum wait { WAIT_NONE, WAIT_IDLE, WAIT_REQUEST, WAIT_ANSWER, WAIT_WRITE, WAIT_LINGER };

static const int wait_limit[] = {
	[WAIT_IDLE] = IDLE_TIMEOUT,
	[WAIT_REQUEST] = REQUEST_TIMEOUT,
	[WAIT_WRITE] = WRITE_TIMEOUT,
	[WAIT_LINGER] = LINGER_TIMEOUT,
};

/* What the head of a request said. */
struct head {
	size_t length; /* of the head itself */
	size_t body;   /* of what follows, and is not skipped yet */
	bool has_host, has_body, is_old, says_close, says_keep_alive;
};

struct connection {
	struct http_request request; /* first, so that one can be made of the other */
	http_handler handler;
	void *arg;
	struct connection *next, *previous;

	int descriptor; /* -1: the client is gone, its answer is still to come */
	short events;   /* watched for */
	enum state state;
	bool running;     /* connection_run is at work */
	bool end_of_file; /* the client sends no more; it may still read */
	bool keep_alive;  /* after the answer to this request */
	struct head head;

	enum wait wait;
	int64_t deadline; /* of the wait, by clock_ms */
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

static int64_t
clock_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

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

/* An unanswered request outlives its connection: somebody holds it, to reply. */
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
		connection->wait = WAIT_NONE; /* progress: the wait begins anew */
	}
	if (connection->output_size > OUTPUT_KEEP) {
		free(connection->output);
		connection->output = NULL;
		connection->output_size = 0;
	}
	connection->output_start = connection->output_end = 0;
	return true;
}

/* Append the answer, its head first. */
static bool
output_answer(struct connection *connection, int status, const char *type, const char *body)
{
	static const char *const format = "HTTP/1.1 %d %s\r\nContent-Type: %s\r\n"
					  "Content-Length: %zu\r\n%sConnection: %s\r\n\r\n";
	const char *allow = status == 405 ? "Allow: GET, HEAD\r\n" : "";
	const char *after = connection->keep_alive ? "keep-alive" : "close";
	size_t length = strlen(body);
	size_t room = strlen(type) + length + 256;
	int written;

	if (!output_reserve(connection, room))
		return false;
	written = snprintf(connection->output + connection->output_end, room, format, status,
	                   reason(status), type, length, allow, after);
	assert(written > 0 && (size_t)written + length <= room);
	connection->output_end += (size_t)written;
	if (strcmp(connection->request.method, "HEAD") == 0)
		return true;
	memcpy(connection->output + connection->output_end, body, length);
	connection->output_end += length;
	return true;
}

/* The request is over: forget its head (what follows it are the next ones). */
static void
answer(struct connection *connection, int status, const char *type, const char *body)
{
	size_t length = connection->head.length;

	if (messenger_closing(connection->request.app))
		connection->keep_alive = false;
	if (!output_answer(connection, status, type, body))
		connection->keep_alive = false; /* and so does it learn that one is missing */
	connection->state = connection->keep_alive ? READ_HEAD : CLOSING;
	connection->wait = WAIT_NONE;
	connection->input_length -= length;
	memmove(connection->input, connection->input + length, connection->input_length);
	connection->head.length = 0;
	connection->request.method = ""; /* its bytes are gone */
}

static void
answer_status(struct connection *connection, int status)
{
	char body[64];

	snprintf(body, sizeof body, "%d %s\n", status, reason(status));
	answer(connection, status, PLAIN_TEXT, body);
}

/* Nothing that this client sends makes sense, or is welcome, any longer. */
static void
refuse(struct connection *connection, int status)
{
	connection->keep_alive = false;
	answer_status(connection, status);
}

/* ---- the head of a request: 0, or the status to refuse it with ----------- */

/* Cut off the next line; it is there. */
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

/* "/path?query", or the same after "http://host", as it is sent to proxies. */
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
		return 0; /* whatever its target is: see handle */
	return parse_target(&connection->request, target);
}

static int
parse_content_length(struct head *head, const char *value)
{
	size_t digits = strspn(value, "0123456789");
	unsigned long length = strtoul(value, NULL, 10); /* too long a number: ULONG_MAX */

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

/* A line that continues the one before begins with a space: its name is no token. */
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
	if (head->body > BODY_MAX)
		return 413;
	connection->keep_alive = !head->says_close && (head->says_keep_alive || !head->is_old);
	return 0;
}

/* ---- one request, step by step: each says whether it has got further ----- */

/* The length of the head with the empty line that ends it; 0: it is not all
 * here. A line may end without its '\r', as people type it. */
static size_t
find_head(const struct connection *connection)
{
	const char *end = connection->input + connection->input_length;
	const char *p = connection->input;

	while ((p = memchr(p, '\n', (size_t)(end - p))) != NULL) {
		p++;
		if (end - p >= 1 && p[0] == '\n')
			return (size_t)(p + 1 - connection->input);
		if (end - p >= 2 && p[0] == '\r' && p[1] == '\n')
			return (size_t)(p + 2 - connection->input);
	}
	return 0;
}

/* What cannot become a request is refused before its end: a line of anything,
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

/* Some clients send an empty line after a body: it is not a request. */
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

/* No more will come: a request that is not complete never will be. */
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
	if (connection->input_length > HEAD_MAX)
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
	length = find_head(connection);
	if (length == 0)
		return wait_for_head(connection);
	memset(&connection->head, 0, sizeof connection->head);
	connection->head.length = length;
	status = length > HEAD_MAX ? 431 : parse_head(connection);
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

/* The request is complete. Returns what the handler does. */
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
	case CLOSING:
	case LINGERING:
		break;
	}
	return false;
}

/* As far as possible: until the input, or the room for output, is used up. */
static bool
advance(struct connection *connection, int *uncaught)
{
	bool any = false;

	while (pending(connection) <= OUTPUT_MAX && step(connection, uncaught))
		any = true;
	return any;
}

/* ---- the connection ------------------------------------------------------ */

static int on_timer(struct messenger *app, void *arg);
static int on_event(struct messenger *app, int descriptor, short revents, void *arg);

/* Between two requests, as far as we have heard. */
static bool
is_idle(const struct connection *connection)
{
	return connection->state == READ_HEAD && !connection->running &&
	       connection->input_length == 0 && pending(connection) == 0;
}

/* A process that leaves drops those who have had an answer. Who has just been
 * accepted has not asked yet, and had no chance to: its request is on the way. */
static bool
is_spare(const struct connection *connection)
{
	return is_idle(connection) && connection->keep_alive;
}

static enum wait
what_is_awaited(const struct connection *connection)
{
	if (connection->state == LINGERING)
		return WAIT_LINGER;
	if (pending(connection) > 0)
		return WAIT_WRITE;
	if (connection->state == ANSWERING)
		return WAIT_ANSWER;
	if (!is_idle(connection))
		return WAIT_REQUEST;
	return messenger_closing(connection->request.app) ? WAIT_LINGER : WAIT_IDLE;
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

/* A timer that fires too early costs less than one that is moved with every
 * request: on_timer sets it anew. */
static bool
set_deadline(struct connection *connection)
{
	enum wait wait = what_is_awaited(connection);
	int64_t now;

	if (connection->wait == wait)
		return true;
	connection->wait = wait;
	if (wait_limit[wait] == 0)
		return true;
	now = clock_ms();
	connection->deadline = now + wait_limit[wait];
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

/* No events: only that the client has gone is of interest. */
static bool
set_events(struct connection *connection)
{
	bool reads = connection->state == LINGERING ||
	             (connection->state != ANSWERING && connection->state != CLOSING &&
	              pending(connection) <= OUTPUT_MAX);
	short events = 0;

	if (reads && !connection->end_of_file)
		events |= POLLIN;
	if (pending(connection) > 0)
		events |= POLLOUT;
	return connection->events == events || watch(connection, events);
}

/* Is there still something to do here? */
static bool
is_needed(struct connection *connection)
{
	if (connection->state == CLOSING && pending(connection) == 0) {
		if (connection->end_of_file || shutdown(connection->descriptor, SHUT_WR) == -1)
			return false;
		connection->state = LINGERING;
	}
	if (connection->state == LINGERING) {
		connection->input_length = 0;
		return !connection->end_of_file;
	}
	return !is_spare(connection) || !messenger_closing(connection->request.app);
}

/* Do what can be done now. Returns what the handler does, if it is called. */
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
	if (reads && (gone || (revents & POLLIN) != 0)) /* its last words come before its end */
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
	int64_t now = clock_ms();

	(void)app;
	connection->timer = 0;
	if (wait_limit[connection->wait] == 0)
		return 0; /* the next wait sets it again */
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

/* The process leaves: the idle go, the new ones after a second. A request may have come that we have not been
 * told of, so look once more. What is begun, the app worker waits for: every
 * connection that is watched. */
static int
on_leaving(struct messenger *app, void *arg)
{
	struct connection *connection, *next;

	(void)arg;
	for (connection = connections; connection != NULL; connection = next) {
		next = connection->next;
		if (is_idle(connection))
			on_event(app, connection->descriptor, POLLIN, connection);
	}
	return 0;
}

static void
connection_start(struct connection *connection)
{
	int yes = 1;

	/* We write whole answers: to hold them back for more gains nothing. */
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
	/* Not from the handler: the loop takes over as soon as it can write, so
	 * that no handler is ever called from inside of http_reply. */
	if (!connection->running && !watch(connection, POLLOUT))
		connection_drop(connection);
	return 0;
}
