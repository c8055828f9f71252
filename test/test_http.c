/*
 * The HTTP of the examples: the server against good and bad clients, curl and wrk; the
 * client against good and bad servers.
 *
 * The source of the examples is included here, with time limits that a test can shorten.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "harness.h"

static int idle_timeout = 60000, request_timeout = 60000, write_timeout = 60000;

#define HTTP_SWEEP 50
#define HTTP_IDLE_TIMEOUT idle_timeout
#define HTTP_REQUEST_TIMEOUT request_timeout
#define HTTP_WRITE_TIMEOUT write_timeout
#include "../examples/http.c"        /* NOLINT(bugprone-suspicious-include) */
#include "../examples/http_client.c" /* NOLINT(bugprone-suspicious-include) */
#include "../examples/http_head.c"   /* NOLINT(bugprone-suspicious-include) */

#include <criterion/criterion.h>

#include <signal.h>
#include <sys/wait.h>

TestSuite(http, .timeout = 120);

#define LARGE (4 * 1024 * 1024)

/* ---- the server: an app of one worker --------------------------------------- */

static const char topic, other_topic;
static struct http_request *kept;

static int
reply_to_kept(struct messenger *app, void *arg)
{
	(void)app, (void)arg;
	return http_reply(kept, 200, NULL, "late\n");
}

static int
reply_large(struct http_request *request)
{
	char *body = malloc(LARGE + 1);
	int result;

	if (body == NULL)
		return -1;
	memset(body, 'x', LARGE);
	body[LARGE] = '\0';
	result = http_reply(request, 200, NULL, body);
	free(body);
	return result;
}

/* Answer with the method, the length of the body, and the body. */
static int
reply_body(struct http_request *request)
{
	char body[HTTP_BODY_MAX + 64];

	if (!http_allow(request, "PUT, POST"))
		return 0;
	if (strcmp(request->query, "same") == 0) /* the body in the request's own memory */
		return http_reply(request, 200, NULL, request->body);
	snprintf(body, sizeof body, "%s %zu %d <%s>", request->method, request->body_length,
	         request->body[request->body_length], request->body);
	return http_reply(request, 200, NULL, body);
}

static int
respond(struct http_request *request, void *arg)
{
	char body[1200];

	(void)arg;
	if (strcmp(request->path, "/body") == 0)
		return reply_body(request);
	if (!http_allow(request, "GET, HEAD"))
		return 0;
	if (strcmp(request->path, "/echo") == 0) {
		snprintf(body, sizeof body, "<%s>", request->query);
		return http_reply(request, 200, NULL, body);
	}
	if (strcmp(request->path, "/last") == 0) {
		snprintf(body, sizeof body, "<%.100s> <%.100s>", request->host, request->origin);
		http_last(request);
		return http_reply(request, 200, NULL, body);
	}
	if (strcmp(request->path, "/large") == 0)
		return reply_large(request);
	if (strcmp(request->path, "/push") == 0)
		return http_subscribe(request, "text/x-lines", &topic, "first\n");
	if (strcmp(request->path, "/push-other") == 0)
		return http_subscribe(request, NULL, &other_topic, "other\n");
	if (strcmp(request->path, "/publish") == 0) {
		snprintf(body, sizeof body, "%s\n", request->query);
		report(request->app, "has %d streams", http_publish(&topic, body));
		return http_reply(request, 200, NULL, "published\n");
	}
	if (strcmp(request->path, "/later") == 0) {
		kept = request;
		report(request->app, "keeps a request");
		return 0;
	}
	if (strcmp(request->path, "/uncaught") == 0)
		return 7;
	if (strcmp(request->path, "/") == 0)
		return http_reply(request, 200, NULL, "hello\n");
	return http_reply(request, 404, NULL, "not found\n");
}

static int
serve(struct messenger *app, int descriptor, void *arg)
{
	return http_serve(app, descriptor, respond, arg);
}

static int
on_reply(struct messenger *app, const struct message *message, void *arg)
{
	(void)message;
	return reply_to_kept(app, arg);
}

static int
on_heard(struct messenger *app, int status, const char *text, void *arg)
{
	(void)arg;
	report(app, "heard %d %zu <%.60s>", status, strlen(text), text);
	return 0;
}

/* Fill the stream, the older of two connections, until one more line is too much. Then wait for a
 * request on the other connection, which the loop must not see, and leave. */
static int
on_leave(struct messenger *app, const struct message *message, void *arg)
{
	struct pollfd wait = {connections->descriptor, POLLIN, 0};
	const struct connection *stream = connections->next;
	char line[1002];

	(void)message, (void)arg;
	memset(line, 'x', 1000);
	strcpy(line + 1000, "\n");
	while (pending(stream) + strlen(line) <= HTTP_OUTPUT_MAX)
		http_publish(&topic, line);
	report(app, "has a full stream");
	if (poll(&wait, 1, time_limit()) != 1)
		return -1;
	return raise(SIGTERM);
}

/* "TIMEOUT URL" */
static int
on_get(struct messenger *app, const struct message *message, void *arg)
{
	int (*get)(struct messenger *, const char *, int, http_listener, void *) =
		arg != NULL ? http_listen : http_get;
	const char *url = strchr(message->data, ' ') + 1;

	if (get(app, url, atoi(message->data), on_heard, NULL) == -1)
		report(app, "cannot: %s", strerror(errno));
	return 0;
}

static int
app(struct messenger *app, void *arg)
{
	static int listens;

	(void)arg;
	messenger_on(app, "test-reply", on_reply, NULL);
	messenger_on(app, "test-get", on_get, NULL);
	messenger_on(app, "test-leave", on_leave, NULL);
	return messenger_on(app, "test-listen", on_get, &listens);
}

static struct cluster *
start(void)
{
	struct cluster *c = cluster_start(&(struct options){.app = app, .connection = serve});

	cluster_ready(c);
	return c;
}

/* ---- a client that writes any text -------------------------------------------- */

static void
put(int client, const char *text)
{
	size_t length = strlen(text);

	cr_assert_eq(send(client, text, length, MSG_NOSIGNAL), (ssize_t)length);
}

/* Read until the text ends with `end`; NULL: until the end of file. The text lives until
 * the next call. */
static const char *
get(int client, const char *end)
{
	static char text[64 * 1024];
	size_t length = 0;
	ssize_t n;

	text[0] = '\0';
	while (length < sizeof text - 1) {
		if (end != NULL && length >= strlen(end) &&
		    strcmp(text + length - strlen(end), end) == 0)
			return text;
		n = recv(client, text + length, sizeof text - 1 - length, 0);
		if (n == -1 && errno == ECONNRESET && end == NULL)
			n = 0;
		cr_assert(n >= 0 && (n > 0 || end == NULL), "got \"%s\", then %s; expected \"%s\"",
		          text, n == 0 ? "the end" : strerror(errno), end != NULL ? end : "");
		if (n == 0)
			return text;
		length += (size_t)n;
		text[length] = '\0';
	}
	cr_assert(false, "the answer does not end");
	return text;
}

/* Send a text over one connection, and return the answers until the server closes it. */
static const char *
converse(struct cluster *c, const char *text)
{
	int client = cluster_connect(c);
	const char *answers;

	put(client, text);
	answers = get(client, NULL);
	close(client);
	return answers;
}

static void
expect_start(const char *answers, const char *expected)
{
	cr_assert(strncmp(answers, expected, strlen(expected)) == 0, "expected %s, got %s",
	          expected, answers);
}

/* The server still answers. */
static void
expect_service(struct cluster *c)
{
	expect_start(converse(c, "GET / HTTP/1.0\r\n\r\n"), "HTTP/1.1 200 OK\r\n");
}

#define HEAD_OF(length, after)                                                                     \
	"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: " length    \
	"\r\nConnection: " after "\r\n\r\n"

/* ---- valid requests ------------------------------------------------------------ */

Test(http, get_head_and_keep_alive)
{
	struct cluster *c = start();
	int client = cluster_connect(c);

	put(client, "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
	cr_assert_str_eq(get(client, "hello\n"), HEAD_OF("6", "keep-alive") "hello\n");
	put(client, "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
	cr_assert_str_eq(get(client, "\r\n\r\n"), HEAD_OF("6", "keep-alive"));
	put(client, "GET /echo?a%41=1&b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
	cr_assert_str_eq(get(client, NULL), HEAD_OF("10", "close") "<a%41=1&b>");
	close(client);
	cluster_stop(c);
}

/* The connection stays open after an answer with 404. */
Test(http, an_unknown_path)
{
	struct cluster *c = start();

	cr_assert_str_eq(converse(c, "GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n"
	                             "GET / HTTP/1.0\r\n\r\n"),
	                 "HTTP/1.1 404 Not Found\r\nContent-Type: text/plain; charset=utf-8\r\n"
	                 "Content-Length: 10\r\nConnection: keep-alive\r\n\r\nnot found\n" HEAD_OF(
				 "6", "close") "hello\n");
	cluster_stop(c);
}

Test(http, what_keeps_a_connection_and_what_does_not)
{
	static const struct {
		const char *headers, *after;
	} table[] = {
		{"HTTP/1.0\r\n", "close"},
		{"HTTP/1.0\r\nConnection: keep-alive\r\n", "keep-alive"},
		{"HTTP/1.1\r\nHost: a\r\n", "keep-alive"},
		{"HTTP/1.1\r\nHost: a\r\nConnection: TE, Close\r\n", "close"},
		{"HTTP/1.1\r\nHost: a\r\nconnection:close\r\n", "close"},
	};
	struct cluster *c = start();
	char text[256], expected[256];
	size_t i;
	int client;

	for (i = 0; i < sizeof table / sizeof table[0]; i++) {
		client = cluster_connect(c);
		snprintf(text, sizeof text, "GET / %s\r\n", table[i].headers);
		snprintf(expected, sizeof expected, "Connection: %s\r\n\r\nhello\n",
		         table[i].after);
		put(client, text);
		cr_assert(strstr(get(client, "hello\n"), expected) != NULL, "%s", text);
		put(client, strcmp(table[i].after, "close") == 0 ? "" : "GET / HTTP/1.0\r\n\r\n");
		expect_start(get(client, NULL),
		             strcmp(table[i].after, "close") == 0 ? "" : "HTTP/1.1 200");
		close(client);
	}
	cluster_stop(c);
}

/* The next request on the same connection must not see the headers of the first. */
Test(http, a_handler_sees_host_and_origin_and_ends_the_connection)
{
	struct cluster *c = start();

	cr_assert_str_eq(strstr(converse(c, "GET / HTTP/1.1\r\nHost: a\r\nOrigin: b\r\n\r\n"
	                                    "GET /last HTTP/1.1\r\nhost:  c:1 \r\n\r\n"
	                                    "GET / HTTP/1.1\r\nHost: d\r\n\r\n"),
	                        "hello\n"),
	                 "hello\n" HEAD_OF("8", "close") "<c:1> <>");
	cr_assert_str_eq(converse(c, "GET /last HTTP/1.1\r\nOrigin: http://c\r\nHost: c\r\n\r\n"),
	                 HEAD_OF("14", "close") "<c> <http://c>");
	cr_assert_str_eq(converse(c, "GET /last HTTP/1.0\r\n\r\n"), HEAD_OF("5", "close") "<> <>");
	cluster_stop(c);
}

enum { MANY = 500 };

/* Answers leave in the order of their requests, however the requests come. */
Test(http, pipelining)
{
	static char text[MANY * 64];
	struct cluster *c = start();
	size_t used = 0;
	const char *at;
	char expected[64];
	int i;

	for (i = 0; i < MANY; i++)
		used += (size_t)sprintf(text + used, "GET /echo?%d HTTP/1.1\r\nHost: a\r\n%s\r\n",
		                        i, i == MANY - 1 ? "Connection: close\r\n" : "");
	at = converse(c, text);
	for (i = 0; i < MANY; i++) {
		snprintf(expected, sizeof expected, "<%d>", i);
		at = strstr(at, expected);
		cr_assert(at != NULL, "%s is missing", expected);
	}
	cluster_stop(c);
}

/* Requests come byte by byte, with bare line feeds, and with an empty line in front. */
Test(http, torn_requests)
{
	static const char text[] =
		"\r\nGET /echo?1 HTTP/1.1\nHost: a\n\n"
		"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nGET /\r\n"
		"GET /echo?2 HTTP/1.0\r\n\r\n";
	struct cluster *c = start();
	int client = cluster_connect(c), yes = 1;
	const char *at;
	size_t i;

	setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
	for (i = 0; i < sizeof text - 1; i++)
		put(client, (char[]){text[i], '\0'});
	at = strstr(get(client, NULL), "<1>");
	cr_assert(at != NULL);
	at = strstr(at, "HTTP/1.1 405 Method Not Allowed\r\n");
	cr_assert(at != NULL && strstr(at, "Allow: GET, HEAD\r\n") != NULL);
	cr_assert(strstr(at, "<2>") != NULL);
	close(client);
	cluster_stop(c);
}

/* ---- wrong requests -------------------------------------------------------------- */

#define GOOD "GET / HTTP/1.1\r\nHost: a\r\n"

/* Each request is refused with its status, and the connection ends. */
Test(http, bad_requests)
{
	static const struct {
		const char *text, *status;
	} table[] = {
		{"\x16\x03\x01\x02\r\n\r\n", "400"}, /* TLS */
		{"nonsense\r\n", "400"},
		{"GET / HTTP/1.1 \r\nHost: a\r\n\r\n", "400"},
		{"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", "400"},
		{"GET / \r\n\r\n", "400"},
		{"GET /\r\n\r\n", "400"},
		{"G@T / HTTP/1.1\r\nHost: a\r\n\r\n", "400"},
		{"GET x HTTP/1.1\r\nHost: a\r\n\r\n", "400"},
		{"GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n", "400"},
		{"GET / http/1.1\r\nHost: a\r\n\r\n", "400"},
		{"GET / HTTP/2.0\r\nHost: a\r\n\r\n", "505"},
		{"GET / HTTP/1.1\r\n\r\n", "400"}, /* no host */
		{GOOD "Host: b\r\n\r\n", "400"},
		{GOOD "no colon\r\n\r\n", "400"},
		{GOOD "Space : before\r\n\r\n", "400"},
		{GOOD " continued: line\r\n\r\n", "400"},
		{GOOD "X: \x7f\r\n\r\n", "400"},
		{GOOD "Content-Length: 1x\r\n\r\n", "400"},
		{GOOD "Content-Length: -1\r\n\r\n", "400"},
		{GOOD "Content-Length:\r\n\r\n", "400"},
		{GOOD "Content-Length: 1\r\nContent-Length: 2\r\n\r\n", "400"},
		{GOOD "Content-Length: 65537\r\n\r\n", "413"},
		{GOOD "Content-Length: 99999999999999999999999\r\n\r\n", "413"},
		{GOOD "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "501"},
	};
	struct cluster *c = start();
	char expected[32];
	size_t i;

	for (i = 0; i < sizeof table / sizeof table[0]; i++) {
		snprintf(expected, sizeof expected, "HTTP/1.1 %s ", table[i].status);
		expect_start(converse(c, table[i].text), expected);
	}
	expect_service(c);
	cluster_stop(c);
}

/* A good request behind a bad one is ignored. */
Test(http, nothing_is_answered_after_a_refusal)
{
	struct cluster *c = start();
	const char *answers = converse(c, GOOD "Transfer-Encoding: chunked\r\n\r\n" GOOD "\r\n");

	expect_start(answers, "HTTP/1.1 501 ");
	cr_assert(strstr(answers, "200 OK") == NULL);
	cluster_stop(c);
}

/* A head may have at most 8192 bytes, in one header or in many, complete or not. */
Test(http, oversized_heads)
{
	enum { REST = sizeof GOOD - 1 + sizeof "X: \r\n\r\n" - 1 };
	static char text[3 * HTTP_HEAD_MAX], fill[3 * HTTP_HEAD_MAX];
	struct cluster *c = start();
	size_t used;

	memset(fill, 'x', sizeof fill - 1);
	snprintf(text, sizeof text, GOOD "X: %.*s\r\n\r\nGET / HTTP/1.0\r\n\r\n",
	         HTTP_HEAD_MAX - REST, fill);
	expect_start(converse(c, text), "HTTP/1.1 200 ");
	snprintf(text, sizeof text, GOOD "X: %.*s\r\n\r\nGET / HTTP/1.0\r\n\r\n",
	         HTTP_HEAD_MAX - REST + 1, fill);
	expect_start(converse(c, text), "HTTP/1.1 431 ");
	snprintf(text, sizeof text, GOOD "X: %.*s", 2 * HTTP_HEAD_MAX, fill);
	expect_start(converse(c, text), "HTTP/1.1 431 ");
	snprintf(text, sizeof text, "GET /%.*s", HTTP_HEAD_MAX, fill);
	expect_start(converse(c, text), "HTTP/1.1 431 ");
	for (used = (size_t)sprintf(text, GOOD); used <= HTTP_HEAD_MAX;)
		used += (size_t)sprintf(text + used, "X: y\r\n");
	expect_start(converse(c, text), "HTTP/1.1 431 ");
	expect_service(c);
	cluster_stop(c);
}

Test(http, a_body_up_to_its_limit)
{
	static char text[HTTP_BODY_MAX + 256];
	struct cluster *c = start();
	size_t used = (size_t)sprintf(text, GOOD "Content-Length: %d\r\n\r\n", HTTP_BODY_MAX);
	const char *answers;

	memset(text + used, 'x', HTTP_BODY_MAX);
	strcpy(text + used + HTTP_BODY_MAX, "GET /echo?after HTTP/1.0\r\n\r\n");
	answers = converse(c, text);
	expect_start(answers, "HTTP/1.1 200 ");
	cr_assert(strstr(answers, "<after>") != NULL);
	cluster_stop(c);
}

/* The handler gets the method and the whole body, in whatever pieces they arrive. The bytes behind
 * the body are the next request. */
Test(http, a_handler_gets_the_body)
{
	static const char two[] =
		"POST /body HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nx\0y\r\n"
		"PUT /body HTTP/1.0\r\n\r\n";
	static const char torn[] =
		"POST /body HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n12345";
	static char text[HTTP_BODY_MAX + 256];
	struct cluster *c = start();
	int client = cluster_connect(c), yes = 1;
	size_t used, i;

	cr_assert_eq(send(client, two, sizeof two - 1, MSG_NOSIGNAL), (ssize_t)sizeof two - 1);
	cr_assert_str_eq(get(client, NULL), HEAD_OF("12", "keep-alive") "POST 5 0 <x>" HEAD_OF(
						    "10", "close") "PUT 0 0 <>");
	close(client);
	client = cluster_connect(c);
	setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
	for (i = 0; i < sizeof torn - 1; i++)
		put(client, (char[]){torn[i], '\0'});
	get(client, "POST 5 0 <12345>");
	used = (size_t)sprintf(text, "PUT /body?same HTTP/1.0\r\nContent-Length: %d\r\n\r\n",
	                       HTTP_BODY_MAX - 256);
	memset(text + used, 'x', HTTP_BODY_MAX - 256);
	text[used + HTTP_BODY_MAX - 257] = '!';
	put(client, text);
	get(client, "x!");
	close(client);
	cluster_stop(c);
}

Test(http, a_method_that_is_not_allowed)
{
	struct cluster *c = start();

	cr_assert_str_eq(strstr(converse(c, "DELETE /body HTTP/1.0\r\n\r\n"), "\r\nAllow"),
	                 "\r\nAllow: PUT, POST\r\nConnection: close\r\n\r\n"
	                 "405 Method Not Allowed\n");
	expect_start(converse(c, "PU /body HTTP/1.0\r\n\r\n"), "HTTP/1.1 405 ");
	expect_start(converse(c, "PUT, /body HTTP/1.0\r\n\r\n"), "HTTP/1.1 400 ");
	cluster_stop(c);
}

/* A client that asks before it sends its body gets "100 Continue". */
Test(http, expect_100_continue)
{
	static const char head[] = "POST /body HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n"
				   "Expect: 100-continue\r\n\r\n";
	struct cluster *c = start();
	int client = cluster_connect(c);

	put(client, head);
	cr_assert_str_eq(get(client, "\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
	put(client, "ab");
	cr_assert_str_eq(get(client, "<ab>"), HEAD_OF("13", "keep-alive") "POST 2 0 <ab>");
	close(client);
	cluster_stop(c);
}

/* A client that stops writing in the middle of a request gets an error, if it still reads. */
Test(http, half_a_request)
{
	struct cluster *c = start();
	int client = cluster_connect(c);

	put(client, "GET / HT");
	shutdown(client, SHUT_WR);
	expect_start(get(client, NULL), "HTTP/1.1 400 ");
	close(client);
	client = cluster_connect(c);
	put(client, GOOD "\r\n");
	shutdown(client, SHUT_WR);
	expect_start(get(client, NULL), "HTTP/1.1 200 ");
	close(client);
	cluster_stop(c);
}

/* ---- slow clients ------------------------------------------------------------------- */

/* A byte from time to time does not extend the limit, which is for the whole request. */
Test(http, slow_headers)
{
	struct cluster *c;
	int client;
	int64_t began;
	struct pollfd set;

	request_timeout = 1000;
	c = start();
	client = cluster_connect(c);
	began = clutch_now();
	put(client, GOOD "X-Slow: ");
	set = (struct pollfd){client, POLLIN, 0};
	while (poll(&set, 1, 20) == 0) {
		cr_assert(clutch_now() - began < time_limit(),
		          "the server waits for the client for ever");
		send(client, "x", 1, MSG_NOSIGNAL);
	}
	cr_assert(clutch_now() - began >= 900, "the server gave up after only %lld ms",
	          (long long)(clutch_now() - began));
	expect_start(get(client, NULL), "HTTP/1.1 408 Request Timeout\r\n");
	close(client);
	expect_service(c);
	cluster_stop(c);
}

Test(http, a_slow_body)
{
	struct cluster *c;

	request_timeout = 1000;
	c = start();
	expect_start(converse(c, GOOD "Content-Length: 5\r\n\r\n1234"), "HTTP/1.1 408 ");
	expect_service(c);
	cluster_stop(c);
}

Test(http, idle_connections_end_without_a_word)
{
	struct cluster *c;
	int client;

	idle_timeout = 1000;
	c = start();
	cr_assert_str_eq(converse(c, ""), "");
	client = cluster_connect(c);
	put(client, GOOD "\r\n");
	get(client, "hello\n");
	cr_assert_str_eq(get(client, NULL), "");
	close(client);
	cluster_stop(c);
}

/* Empty lines are no request, so they do not keep a connection open. */
Test(http, empty_lines_buy_no_time)
{
	struct cluster *c;
	int client;
	int64_t began = clutch_now();
	struct pollfd set;

	idle_timeout = 1000;
	c = start();
	client = cluster_connect(c);
	set = (struct pollfd){client, POLLIN, 0};
	while (poll(&set, 1, 20) == 0) {
		cr_assert(clutch_now() - began < time_limit(),
		          "the server waits for the client for ever");
		send(client, "\r\n", 2, MSG_NOSIGNAL);
	}
	close(client);
	cluster_stop(c);
}

struct wanted {
	const char *who;
	int descriptors;
};

static bool
has_descriptors(struct cluster *c, void *arg)
{
	const struct wanted *wanted = arg;

	return process_descriptors(cluster_pid(c, wanted->who)) == wanted->descriptors;
}

static void
expect_descriptors(struct cluster *c, int count)
{
	cluster_until(c, has_descriptors, &(struct wanted){"APP#1", count},
	              "the app to have the right number of connections");
}

/* A client that reads nothing is dropped, with its waiting answers. The client asks for 64 MiB,
 * because one answer of 4 MiB may fit into the sockets' buffers, and then nothing waits. */
Test(http, a_client_that_reads_nothing)
{
	static char text[64 * 1024];
	struct cluster *c;
	int client, count, i;
	ssize_t n, length = 0;

	write_timeout = 400;
	c = start();
	count = process_descriptors(cluster_pid(c, "APP#1"));
	client = cluster_connect(c);
	for (i = 0; i < 16; i++)
		put(client, "GET /large HTTP/1.1\r\nHost: a\r\n\r\n");
	expect_service(c); /* so both have been accepted */
	expect_descriptors(c, count);
	while ((n = recv(client, text, sizeof text, 0)) > 0)
		length += n;
	cr_assert(length > 0 && length < 16 * LARGE, "got %zd bytes", length);
	close(client);
	cluster_stop(c);
}

/* While a client with many requests reads no answer, one request is served, and others wait. */
Test(http, requests_wait_while_answers_do)
{
	static const char request[] = "GET /large HTTP/1.1\r\nHost: a\r\n\r\n";
	struct cluster *c = start();
	int client = cluster_connect(c);
	char text[50 * sizeof request] = "";
	long before, after;
	size_t used = 0;

	while (used + sizeof request <= sizeof text)
		used += (size_t)sprintf(text + used, "%s", request);
	before = process_memory(cluster_pid(c, "APP#1"));
	put(client, text);
	expect_service(c);
	after = process_memory(cluster_pid(c, "APP#1"));
	cr_assert(after < before + 5 * LARGE / 1024,
	          "the app has %ld KiB of memory, and it had %ld KiB before", after, before);
	close(client);
	expect_service(c);
	cluster_stop(c);
}

/* ---- the end of a request's process, or of its client --------------------------------- */

static void
reply_now(struct cluster *c)
{
	cr_assert_eq(messenger_send_to_app(c->parent, "test-reply", NULL), 0);
	cluster_turn(c);
}

Test(http, an_answer_whose_client_has_gone)
{
	struct cluster *c = start();
	int count = process_descriptors(cluster_pid(c, "APP#1")), client = cluster_connect(c);

	put(client, "GET /later HTTP/1.1\r\nHost: a\r\n\r\n");
	cluster_wait(c, 0, "keeps a request");
	expect_descriptors(c, count + 1);
	setsockopt(client, SOL_SOCKET, SO_LINGER, &(struct linger){1, 0}, sizeof(struct linger));
	close(client); /* a reset */
	expect_descriptors(c, count);
	reply_now(c);
	expect_service(c);
	cluster_stop(c);
}

/* SIGTERM: a request that has begun is answered; idle connections and streams end at once. */
Test(http, leaving)
{
	struct cluster *c = start();
	int begun = cluster_connect(c), idle = cluster_connect(c), stream = cluster_connect(c);
	size_t mark;

	put(idle, GOOD "\r\n");
	get(idle, "hello\n");
	put(stream, "GET /push HTTP/1.1\r\nHost: a\r\n\r\n");
	get(stream, "first\n");
	put(begun, "GET /later HTTP/1.1\r\nHost: a\r\n\r\n");
	mark = cluster_wait(c, 0, "keeps a request");
	cluster_signal(c, "APP#1", SIGTERM);
	cr_assert_str_eq(get(idle, NULL), "");
	cr_assert_str_eq(get(stream, NULL), "");
	cr_assert_eq(cluster_count(c, mark, "died ("), 0);
	reply_now(c);
	cr_assert_str_eq(get(begun, NULL), HEAD_OF("5", "close") "late\n");
	close(idle), close(stream), close(begun);
	cr_assert_str_eq(cluster_wait_end(c, "APP#1"), "code: 0, signal: null");
	cluster_stop(c);
}

Test(http, an_uncaught_error_is_a_500)
{
	struct cluster *c = start();

	expect_start(converse(c, "GET /uncaught HTTP/1.1\r\nHost: a\r\n\r\n"),
	             "HTTP/1.1 500 Internal Server Error\r\n");
	cr_assert_str_eq(cluster_wait_end(c, "APP#1"), "code: 1, signal: null");
	cluster_wait(c, 0, "app_worker#2:APP#2 started");
	expect_service(c);
	cluster_stop(c);
}

/* ---- streams ----------------------------------------------------------------------------- */

static int
subscriber(struct cluster *c, const char *path, const char *first)
{
	int client = cluster_connect(c);
	char text[128];

	snprintf(text, sizeof text, "GET %s HTTP/1.1\r\nHost: a\r\n\r\n", path);
	put(client, text);
	expect_start(get(client, first), "HTTP/1.1 200 OK\r\nContent-Type: text/");
	return client;
}

Test(http, streams_hear_what_is_published)
{
	struct cluster *c = start();
	int one = subscriber(c, "/push", "first\n"), two = subscriber(c, "/push", "first\n");
	int other = subscriber(c, "/push-other", "other\n");
	int count = process_descriptors(cluster_pid(c, "APP#1"));

	expect_start(converse(c, "GET /publish?news HTTP/1.0\r\n\r\n"), "HTTP/1.1 200 ");
	cr_assert_str_eq(get(one, "news\n"), "news\n");
	cr_assert_str_eq(get(two, "news\n"), "news\n");
	cluster_wait(c, 0, "has 2 streams");
	close(one); /* the server notices this before anything is published */
	expect_descriptors(c, count - 1);
	expect_start(converse(c, "GET /publish?more HTTP/1.0\r\n\r\n"), "HTTP/1.1 200 ");
	cr_assert_str_eq(get(two, "more\n"), "more\n");
	cr_assert_str_eq(strchr(converse(c, "HEAD /push HTTP/1.1\r\nHost: a\r\n\r\n"), '\r'),
	                 "\r\nContent-Type: text/x-lines\r\nConnection: close\r\n\r\n");
	cr_assert_eq(recv(other, &(char){0}, 1, MSG_DONTWAIT), -1);
	close(two), close(other);
	expect_descriptors(c, count - 3);
	cluster_stop(c);
}

/* A client that does not read loses its stream; the other client gets all lines. */
Test(http, a_stream_that_nobody_reads)
{
	struct cluster *c = start();
	int deaf = subscriber(c, "/push", "first\n"), keen = subscriber(c, "/push", "first\n");
	int size = 4096, count = process_descriptors(cluster_pid(c, "APP#1")), i = 0;
	int publisher = cluster_connect(c);
	char request[1200], line[1100];

	setsockopt(deaf, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
	memset(line, 'x', sizeof line);
	snprintf(line + 1000, sizeof line - 1000, "\n");
	snprintf(request, sizeof request, "GET /publish?%.1000s HTTP/1.1\r\nHost: a\r\n\r\n", line);
	do {
		cr_assert(i++ < 20000, "the client that reads nothing still has its stream");
		put(publisher, request);
		get(publisher, "published\n");
		cr_assert_str_eq(get(keen, "x\n"), line);
	} while (process_descriptors(cluster_pid(c, "APP#1")) > count);
	cr_assert(i > HTTP_OUTPUT_MAX / 1001, "the client lost its stream after only %d lines", i);
	close(deaf), close(keen), close(publisher);
	cluster_stop(c);
}

/* A process leaves while a stream has no room for another line. A request that has arrived is
 * still answered; its handler publishes another line, which ends the stream. The stream has all
 * earlier lines. */
Test(http, a_handler_that_publishes_while_its_process_leaves)
{
	struct cluster *c = start();
	int full = subscriber(c, "/push", "first\n"), publisher = cluster_connect(c);
	char line[1001], request[1200];

	memset(line, 'x', sizeof line - 1);
	line[sizeof line - 1] = '\0';
	snprintf(request, sizeof request, "GET /publish?%s HTTP/1.1\r\nHost: a\r\n\r\n", line);
	put(publisher, GOOD "\r\n");
	get(publisher, "hello\n"); /* so this last connection has been accepted */
	cr_assert_eq(messenger_send_to_app(c->parent, "test-leave", NULL), 0);
	cluster_turn(c);
	cluster_wait(c, 0, "has a full stream");
	put(publisher, request);
	cr_assert_str_eq(get(publisher, NULL), HEAD_OF("10", "close") "published\n");
	cr_assert_eq(strlen(get(full, NULL)), HTTP_OUTPUT_MAX / 1001 * 1001);
	cr_assert_str_eq(cluster_wait_end(c, "APP#1"), "code: 0, signal: null");
	close(full), close(publisher);
	cluster_stop(c);
}

/* ---- the client -------------------------------------------------------------------------- */

/* A socket for a server in the test itself, which answers a request with any text. */
static int
listen_somewhere(int *port)
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	socklen_t size = sizeof address;
	struct timeval limit = {.tv_sec = time_limit() / 1000};
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	cr_assert(bind(listener, (struct sockaddr *)&address, sizeof address) == 0);
	cr_assert(listen(listener, 16) == 0);
	cr_assert(getsockname(listener, (struct sockaddr *)&address, &size) == 0);
	setsockopt(listener, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	*port = ntohs(address.sin_port);
	return listener;
}

static int
take(int listener, const char *request)
{
	struct timeval limit = {.tv_sec = time_limit() / 1000};
	int client = accept(listener, NULL, NULL);

	cr_assert(client != -1, "no client connects: %s", strerror(errno));
	setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	cr_assert_str_eq(get(client, "\r\n\r\n"), request);
	return client;
}

static void
order(struct cluster *c, const char *action, int timeout, const char *url)
{
	char data[2048];

	snprintf(data, sizeof data, "%d %s", timeout, url);
	cr_assert_eq(messenger_send_to_app(c->parent, action, data), 0);
	cluster_turn(c);
}

#define OK "HTTP/1.1 200 OK\r\n"

static const struct {
	const char *answer, *heard;
} answers[] = {
	{OK "Content-Length: 3\r\n\r\nabc", "heard 200 3 <abc>"},
	{OK "Content-Length: 3\r\n\r\nabcdef", "heard 200 3 <abc>"},
	{OK "Content-Length: 0\r\n\r\n", "heard 200 0 <>"},
	{OK "\r\nuntil the end", "heard 200 13 <until the end>"},
	{OK "\r\n", "heard 200 0 <>"},
	{"HTTP/1.0 404 Not Found\r\nContent-Length: 2\r\n\r\nno", "heard 404 2 <no>"},
	{"HTTP/1.1 503 \r\n\r\n", "heard 503 0 <>"},
	{OK "Content-Length: 4\r\n\r\nabc", "heard 0 14 <it has hung up>"},
	{OK "Content-Le", "heard 0 14 <it has hung up>"},
	{"", "heard 0 14 <it has hung up>"},
	{"nonsense\r\n\r\n", "heard 0 35 <it answers something else than HTTP>"},
	{"HTTP/1.1 20\r\n\r\n", "heard 0 35 <it answers something else than HTTP>"},
	{"HTTP/1.1 -20\r\n\r\n", "heard 0 35 <it answers something else than HTTP>"},
	{"HTTP/2 200\r\n\r\n", "heard 0 35 <it answers something else than HTTP>"},
	{OK "no colon\r\n\r\n", "heard 0 35 <it answers something else than HTTP>"},
	{OK "Content-Length: x\r\n\r\n", "heard 0 35 <it answers something else than HTTP>"},
	{OK "Content-Length: 65537\r\n\r\n", "heard 0 35 <it answers something else than HTTP>"},
	{OK "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
         "heard 0 35 <it answers something else than HTTP>"},
};

/* Each answer is written at once, and then byte by byte. */
Test(http, the_client_hears_an_answer_or_why_there_is_none)
{
	struct cluster *c = start();
	int port, listener = listen_somewhere(&port), server;
	char url[64], request[128];
	size_t i, j, mark;

	snprintf(url, sizeof url, "http://127.0.0.1:%d/a?b", port);
	snprintf(request, sizeof request, "GET /a?b HTTP/1.0\r\nHost: 127.0.0.1:%d\r\n\r\n", port);
	for (i = 0; i < 2 * sizeof answers / sizeof answers[0]; i++) {
		const char *answer = answers[i / 2].answer;

		mark = cluster_mark(c);
		order(c, "test-get", 60000, url);
		server = take(listener, request);
		if (i % 2 == 0)
			put(server, answer);
		for (j = 0; i % 2 != 0 && answer[j] != '\0'; j++)
			if (send(server, answer + j, 1, MSG_NOSIGNAL) == -1)
				break; /* the client has heard enough */
		close(server);
		cluster_wait(c, mark, "%s", answers[i / 2].heard);
		cr_assert_eq(cluster_count(c, mark, "heard"), 1);
	}
	close(listener);
	cluster_stop(c);
}

Test(http, the_client_takes_no_answer_without_limits)
{
	static char text[2 * (HTTP_HEAD_MAX + HTTP_BODY_MAX)];
	struct cluster *c = start();
	int port, listener = listen_somewhere(&port), server, i;
	static const char *const begin[] = {OK "X: ", OK "\r\n"};
	static const char *const why[] = {"the head of its answer is too long",
	                                  "its answer is too long"};
	char url[64];

	snprintf(url, sizeof url, "http://127.0.0.1:%d", port);
	for (i = 0; i < 2; i++) {
		memset(text, 'x', sizeof text - 1);
		memcpy(text, begin[i], strlen(begin[i]));
		order(c, "test-get", 60000, url);
		server = accept(listener, NULL, NULL);
		cr_assert(server != -1);
		send(server, text, sizeof text - 1, MSG_NOSIGNAL);
		cluster_wait(c, 0, "heard 0 %zu <%s>", strlen(why[i]), why[i]);
		close(server);
	}
	close(listener);
	cluster_stop(c);
}

/* A server that does not answer, and a port without a server. */
Test(http, the_client_does_not_wait_for_ever)
{
	struct cluster *c = start();
	int port, listener = listen_somewhere(&port), client;
	int64_t began = clutch_now();
	char url[64], request[128];
	size_t mark;

	snprintf(url, sizeof url, "http://localhost:%d/", port);
	order(c, "test-get", 300, url);
	client = accept(listener, NULL, NULL); /* no answer follows */
	mark = cluster_wait(c, 0, "heard 0 17 <it takes too long>");
	cr_assert(clutch_now() - began >= 290, "the client gave up after only %lld ms",
	          (long long)(clutch_now() - began));
	snprintf(request, sizeof request, "GET / HTTP/1.0\r\nHost: localhost:%d\r\n\r\n", port);
	cr_assert_str_eq(get(client, NULL), request);
	close(client);
	close(listener);
	order(c, "test-get", 60000, url);
	cluster_wait(c, mark, "heard 0 18 <Connection refused>");
	cluster_stop(c);
}

Test(http, urls)
{
	static const char *const good[] = {"http://127.0.0.1", "http://127.0.0.1:1/",
	                                   "http://localhost:65535/a?b#c", "http://localhost"};
	static const char *const bad[] = {
		"",
		"http://",
		"http:///x",
		"https://127.0.0.1/",
		"ftp://127.0.0.1/",
		"127.0.0.1:7002",
		"http://example.com/",
		"http://127.0.0.1:0/",
		"http://127.0.0.1:65536/",
		"http://127.0.0.1:x/",
		"http://127.0.0.1:1x/",
		"http://127.0.0.1:/",
		"http://[::1]/",
		"http://127.0.0.1/a b",
		"http://127.0.0.1/\r\nX: y",
		"http://127.0.0.1:70000000000000000000000000000000000000000000000/"};
	char longest[HTTP_URL_MAX + 2];
	size_t i;

	for (i = 0; i < sizeof good / sizeof good[0]; i++)
		cr_assert(http_is_url(good[i]), "%s", good[i]);
	for (i = 0; i < sizeof bad / sizeof bad[0]; i++)
		cr_assert_not(http_is_url(bad[i]), "%s", bad[i]);
	memset(longest, 'x', sizeof longest);
	memcpy(longest, "http://127.0.0.1/", 17);
	longest[HTTP_URL_MAX + 1] = '\0';
	cr_assert_not(http_is_url(longest));
	longest[HTTP_URL_MAX] = '\0';
	cr_assert(http_is_url(longest));
	cr_assert_eq(http_get(NULL, "nonsense", 1, on_heard, NULL), -1);
	cr_assert_eq(errno, EINVAL);
}

Test(http, the_client_listens_line_by_line)
{
	static char text[HTTP_HEAD_MAX + HTTP_BODY_MAX + 1];
	struct cluster *c = start();
	int port, listener = listen_somewhere(&port), server;
	char url[64], request[128];
	size_t at;

	snprintf(url, sizeof url, "http://127.0.0.1:%d/push", port);
	snprintf(request, sizeof request, "GET /push HTTP/1.0\r\nHost: 127.0.0.1:%d\r\n\r\n", port);
	order(c, "test-listen", 60000, url);
	server = take(listener, request);
	put(server, OK "\r\none\r\n\ntw");
	at = cluster_wait(c, 0, "heard 200 3 <one>");
	at = cluster_wait(c, at, "heard 200 0 <>");
	put(server, "o\nthree");
	at = cluster_wait(c, at, "heard 200 3 <two>");
	close(server);
	cluster_wait(c, at, "heard 0 14 <it has hung up>");
	cr_assert_eq(cluster_count(c, at, "heard"), 1);

	order(c, "test-listen", 60000, url);
	server = take(listener, request);
	put(server, "HTTP/1.1 404 No\r\n\r\nan explanation\n");
	at = cluster_wait(c, at, "heard 0 10 <it refuses>");
	close(server);

	order(c, "test-listen", 60000, url);
	server = take(listener, request);
	put(server, OK "\r\n");
	memset(text, 'x', sizeof text - 1);
	send(server, text, sizeof text - 1, MSG_NOSIGNAL);
	cluster_wait(c, at, "heard 0 22 <its answer is too long>");
	close(server);
	close(listener);
	cluster_stop(c);
}

/* Each line on a stream gives it more time, so the stream ends some time after the last line. */
Test(http, the_client_leaves_a_silent_stream)
{
	struct cluster *c = start();
	int port, listener = listen_somewhere(&port), server;
	char url[64];
	size_t at = 0;
	int64_t last = 0, began = clutch_now();
	struct pollfd quiet;

	snprintf(url, sizeof url, "http://127.0.0.1:%d/push", port);
	order(c, "test-listen", 1000 * time_scale(), url);
	server = accept(listener, NULL, NULL);
	get(server, "\r\n\r\n");
	put(server, OK "\r\n");
	quiet = (struct pollfd){server, POLLIN, 0};
	while (clutch_now() - began < 1500 * time_scale()) {
		last = clutch_now();
		put(server, "\n");
		at = cluster_wait(c, at, "heard 200 0 <>");
		cr_assert_eq(poll(&quiet, 1, 10), 0,
		             "the client has closed a connection that is in use");
	}
	cluster_wait(c, at, "heard 0 17 <it takes too long>");
	cr_assert(clutch_now() - last >= 900 * time_scale());
	close(server);
	close(listener);
	cluster_stop(c);
}

/* ---- curl and wrk ------------------------------------------------------------------------ */

static bool
is_there(const char *program)
{
	char command[64];

	snprintf(command, sizeof command, "command -v %s >/dev/null", program);
	if (system(command) == 0)
		return true;
	fprintf(stderr, "%s is not installed: this test is skipped\n", program);
	return false;
}

/* The output of a command, in which $url is the server's. */
static const char *
print_of(struct cluster *c, const char *format)
{
	static char text[64 * 1024];
	char url[64], command[512];
	size_t length;
	FILE *pipe;

	snprintf(url, sizeof url, "http://127.0.0.1:%d", c->port);
	snprintf(command, sizeof command, "url=%s; %s", url, format);
	pipe = popen(command, "r");
	cr_assert(pipe != NULL);
	length = fread(text, 1, sizeof text - 1, pipe);
	text[length] = '\0';
	pclose(pipe);
	return text;
}

Test(http, curl)
{
	static const struct {
		const char *command, *prints;
	} table[] = {
		{"curl -s $url/", "hello\n"},
		{"curl -sI $url/", HEAD_OF("6", "keep-alive")},
		{"curl -s $url/echo?[1-3] -w '%{num_connects} '", "<1>1 <2>0 <3>0 "},
		{"curl -s0 -o /dev/null -w '%{http_code} %{http_version}' $url/", "200 1.1"},
		{"curl -s -o /dev/null -w '%{http_code} %{size_download}' $url/large",
	         "200 4194304"},
		{"curl -s -o /dev/null -w '%{http_code}' $url/nowhere", "404"},
		{"curl -s -o /dev/null -w '%{http_code}' -d x=y $url/", "405"},
		{"curl -s -o /dev/null -w '%{http_code}' -X BREW $url/", "405"},
		{"head -c 9000 /dev/zero | tr '\\0' x | sed 's/^/X: /' >head.txt; "
	         "curl -s -o /dev/null -w '%{http_code}' -H @head.txt $url/",
	         "431"},
		{"curl -s --proxy $url http://elsewhere/echo?proxy", "<proxy>"},
		{"curl -s -d x=y $url/body", "POST 3 0 <x=y>"},
		{"curl -sI $url/push",
	         "HTTP/1.1 200 OK\r\nContent-Type: text/x-lines\r\nConnection: close\r\n\r\n"},
	};
	struct cluster *c;
	size_t i;

	if (!is_there("curl"))
		return;
	c = start();
	cr_assert(chdir(test_folder()) == 0);
	for (i = 0; i < sizeof table / sizeof table[0]; i++)
		cr_assert_str_eq(print_of(c, table[i].command), table[i].prints, "%s printed %s",
		                 table[i].command, print_of(c, table[i].command));
	cluster_stop(c);
}

Test(http, wrk)
{
	struct cluster *c;
	const char *text;

	if (!is_there("wrk"))
		return;
	c = cluster_start(&(struct options){.app = app, .connection = serve, .workers = 2});
	cluster_ready(c);
	text = print_of(c, "wrk -t1 -c64 -d1s $url/ 2>&1");
	cr_assert(strstr(text, "Requests/sec") != NULL, "%s", text);
	cr_assert(strstr(text, "Socket errors") == NULL && strstr(text, "Non-2xx") == NULL, "%s",
	          text);
	cr_assert_eq(cluster_count(c, 0, "died ("), 0);
	expect_service(c);
	cluster_stop(c);
}
