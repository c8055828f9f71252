/*
 * The Redis client, tested against a real server and against a false server, whose
 * replies are wrong, come in pieces or do not come at all.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "redis_server.h"

#include "../redis/resp.h"

#include <arpa/inet.h>
#include <netinet/in.h>

TestSuite(redis, .timeout = 60);

/* ---- the replies of a client ------------------------------------------------------- */

/* All replies that the client got, as text; and the lines of its log. */
static char heard[16 * 1024], lines[16 * 1024];
static int changes; /* how often the client became ready */

static void
forget(void)
{
	heard[0] = lines[0] = '\0';
	changes = 0;
}

static void
append(char *to, size_t size, const char *format, ...)
{
	size_t used = strlen(to);
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(to + used, size - used, format, arguments);
	va_end(arguments);
}

static void
describe(const struct redis_reply *reply)
{
	size_t i;

	switch (reply->type) {
	case REDIS_STATUS:
		append(heard, sizeof heard, "+%s", reply->text);
		break;
	case REDIS_ERROR:
		append(heard, sizeof heard, "-%s", reply->text);
		break;
	case REDIS_INTEGER:
		append(heard, sizeof heard, "%lld", (long long)reply->integer);
		break;
	case REDIS_STRING:
		append(heard, sizeof heard, "\"%s\"", reply->text);
		cr_assert_eq(reply->text[reply->length], '\0');
		break;
	case REDIS_NIL:
		append(heard, sizeof heard, "nil");
		break;
	case REDIS_ARRAY:
		append(heard, sizeof heard, "[");
		for (i = 0; i < reply->count; i++) {
			append(heard, sizeof heard, i > 0 ? " " : "");
			describe(&reply->element[i]);
		}
		append(heard, sizeof heard, "]");
		break;
	case REDIS_NO_REPLY:
		append(heard, sizeof heard, "no reply (%s)", reply->text);
		break;
	}
}

/* The name of a command, as the arg of on_reply. */
static void *
tag(const char *name)
{
	return (void *)(uintptr_t)name;
}

static int
on_reply(struct redis *redis, const struct redis_reply *reply, void *arg)
{
	(void)redis;
	if (arg != NULL)
		append(heard, sizeof heard, "%s=", (const char *)arg);
	describe(reply);
	append(heard, sizeof heard, "; ");
	return 0;
}

static int
on_change(struct redis *redis, bool ready, void *arg)
{
	(void)arg;
	cr_assert_eq(redis_ready(redis), ready);
	changes += ready;
	return 0;
}

static void
on_line(const char *line, void *arg)
{
	(void)arg;
	append(lines, sizeof lines, "%s\n", line);
}

static size_t
count(const char *text, const char *wanted)
{
	size_t found = 0;

	for (; (text = strstr(text, wanted)) != NULL; text += strlen(wanted))
		found++;
	return found;
}

static struct redis *
open_client(const char *url, int timeout)
{
	struct redis *redis = redis_open(NULL, url,
	                                 &(struct redis_options){.timeout = timeout,
	                                                         .retry_max = 100,
	                                                         .on_change = on_change,
	                                                         .log = on_line});

	cr_assert_not_null(redis, "redis_open(%s): %s", url, strerror(errno));
	return redis;
}

/* A connection that subscribes to the channels "a" and "b". */
static struct redis *
open_subscriber(const char *url, int timeout)
{
	static const char *const channels[] = {"a", "b", NULL};
	struct redis *redis = redis_open(NULL, url,
	                                 &(struct redis_options){.timeout = timeout,
	                                                         .retry_max = 100,
	                                                         .on_change = on_change,
	                                                         .channels = channels,
	                                                         .on_message = on_reply,
	                                                         .log = on_line,
	                                                         .arg = tag("S")});

	cr_assert_not_null(redis, "redis_open(%s): %s", url, strerror(errno));
	return redis;
}

/* Step until the client has become ready `wanted` times. */
static void
until_ready(struct redis *redis, int wanted)
{
	int64_t deadline = clutch_now() + time_limit();

	while (changes < wanted) {
		cr_assert(clutch_now() < deadline, "not connected:\n%s", lines);
		cr_assert(redis_step(redis, 10) >= 0);
	}
}

/* Step until no command waits for its reply. */
static void
until_answered(struct redis *redis)
{
	int64_t deadline = clutch_now() + time_limit();

	while (redis_pending(redis) > 0) {
		cr_assert(clutch_now() < deadline, "no answer; heard: %s\n%s", heard, lines);
		cr_assert(redis_step(redis, 10) >= 0);
	}
}

static void
until_heard(struct redis *redis, const char *wanted)
{
	int64_t deadline = clutch_now() + time_limit();

	while (strstr(heard, wanted) == NULL) {
		cr_assert(clutch_now() < deadline, "%s is not in: %s\n%s", wanted, heard, lines);
		cr_assert(redis_step(redis, 10) >= 0);
	}
}

/* Send one command, words with blanks between them, and return its reply as text. */
static const char *
ask(struct redis *redis, const char *words)
{
	const char *argv[16];
	size_t argc = 0;
	char copy[256], *word;

	snprintf(copy, sizeof copy, "%s", words);
	for (word = strtok(copy, " "); word != NULL; word = strtok(NULL, " "))
		argv[argc++] = word;
	heard[0] = '\0';
	cr_assert(redis_command_argv(redis, on_reply, NULL, argc, argv, NULL) == 0);
	until_answered(redis);
	heard[strlen(heard) - 2] = '\0';
	return heard;
}

/* ---- RESP2 -------------------------------------------------------------------------- */

static struct redis_reply elements[16];

/* Parse bytes that arrive in pieces of `step` bytes. */
static enum resp
scan(char *bytes, size_t length, size_t step, struct resp_parser *resp)
{
	enum resp found = RESP_TORN;
	size_t here;

	*resp = (struct resp_parser){.elements = elements, .size = 16};
	for (here = 0; found == RESP_TORN && here < length;) {
		here = here + step < length ? here + step : length;
		char *exact = malloc(here); /* a sanitizer sees a read behind the end */

		memcpy(exact, bytes, here);
		found = resp_parse(resp, exact, here);
		free(exact);
	}
	return found == RESP_WHOLE ? resp_parse(resp, bytes, length) : found;
}

Test(redis, a_reply_is_the_same_in_whatever_pieces_it_comes)
{
	static const struct {
		const char *bytes, *means;
	} row[] = {
		{"+OK\r\n", "+OK"},
		{"+\r\n", "+"},
		{"-ERR no\r\n", "-ERR no"},
		{":0\r\n", "0"},
		{":-42\r\n", "-42"},
		{":9223372036854775807\r\n", "9223372036854775807"},
		{":-9223372036854775808\r\n", "-9223372036854775808"},
		{"$5\r\nhello\r\n", "\"hello\""},
		{"$0\r\n\r\n", "\"\""},
		{"$4\r\n\r\n\r\n\r\n", "\"\r\n\r\n\""},
		{"$-1\r\n", "nil"},
		{"*-1\r\n", "nil"},
		{"*0\r\n", "[]"},
		{"*2\r\n*0\r\n*0\r\n", "[[] []]"},
		{"*3\r\n:1\r\n*2\r\n$1\r\na\r\n*1\r\n+b\r\n$-1\r\n", "[1 [\"a\" [+b]] nil]"},
		{"*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n:8\r\n", "[[[[[[[[8]]]]]]]]"},
	};
	struct resp_parser result;
	char bytes[128];
	size_t i, step, length;

	for (i = 0; i < sizeof row / sizeof row[0]; i++)
		for (step = 1; step <= strlen(row[i].bytes); step++) {
			length = strlen(row[i].bytes);
			memcpy(bytes, row[i].bytes, length);
			cr_assert_eq(scan(bytes, length, step, &result), RESP_WHOLE,
			             "%s in steps of %zu", row[i].means, step);
			cr_assert_eq(result.at, length);
			forget();
			describe(elements);
			cr_assert_str_eq(heard, row[i].means);
		}
}

Test(redis, a_text_may_hold_any_byte)
{
	char bytes[] = "*2\r\n$3\r\n\0\xff\0\r\n+a\0b\r\n";
	struct resp_parser result;

	cr_assert_eq(scan(bytes, sizeof bytes - 1, 1, &result), RESP_WHOLE);
	cr_assert_eq(result.used, 3);
	cr_assert_eq(elements[1].length, 3);
	cr_assert(memcmp(elements[1].text, "\0\xff\0", 4) == 0);
	cr_assert_eq(elements[2].length, 3);
	cr_assert(memcmp(elements[2].text, "a\0b", 4) == 0);
	cr_assert(!redis_is(&elements[2], "a"));
}

static const struct {
	const char *bytes, *why;
} bad[] = {
	{"HTTP/1.1 400 Bad Request\r\n", "a reply that is not RESP2"},
	{"%1\r\n", "a reply that is not RESP2"},
	{"\r\n", "a reply that is not RESP2"},
	{"+OK\n", "a line that does not end with CR LF"},
	{"+O\rK\r\n", "a line that does not end with CR LF"},
	{":\r\n", "a number that is none"},
	{":-\r\n", "a number that is none"},
	{":1x\r\n", "a number that is none"},
	{":9223372036854775808\r\n", "a number that is none"},
	{":-9223372036854775809\r\n", "a number that is none"},
	{"$\r\n", "a number that is none"},
	{"$-2\r\n", "a string longer than REDIS_REPLY_MAX, or of negative length"},
	{"$16777217\r\n", "a string longer than REDIS_REPLY_MAX, or of negative length"},
	{"$3\r\nabcd\r\n", "a string that does not end with CR LF"},
	{"*-2\r\n", "an array longer than REDIS_ELEMENTS_MAX, or of negative length"},
	{"*262145\r\n", "an array longer than REDIS_ELEMENTS_MAX, or of negative length"},
	{"*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n",
         "arrays nested deeper than REDIS_DEPTH_MAX"},
	{"*2\r\n:1\r\n?\r\n", "a reply that is not RESP2"},
};

Test(redis, what_is_no_reply_is_refused)
{
	struct resp_parser result;
	size_t i, step;

	for (i = 0; i < sizeof bad / sizeof bad[0]; i++)
		for (step = 1; step <= strlen(bad[i].bytes); step++) {
			char bytes[64];

			snprintf(bytes, sizeof bytes, "%s", bad[i].bytes);
			cr_assert_eq(scan(bytes, strlen(bytes), step, &result), RESP_BROKEN, "%s",
			             bad[i].bytes);
			cr_assert_str_eq(result.why, bad[i].why);
		}
}

/* Two arrays, each within the limit, have together more elements than one array may have. */
Test(redis, a_reply_of_too_many_elements_or_bytes_is_refused)
{
	size_t half = REDIS_ELEMENTS_MAX / 2 + 1, i, used;
	char *bytes = malloc(8 * half + 64);
	struct resp_parser result = {.size = REDIS_ELEMENTS_MAX};

	result.elements = calloc(REDIS_ELEMENTS_MAX, sizeof *result.elements);
	used = (size_t)sprintf(bytes, "*2\r\n*%zu\r\n", half);
	for (i = 0; i < half; i++)
		used += (size_t)sprintf(bytes + used, ":1\r\n");
	used += (size_t)sprintf(bytes + used, "*%zu\r\n", half);
	for (i = 0; i < half; i++)
		used += (size_t)sprintf(bytes + used, ":1\r\n");
	cr_assert_eq(resp_parse(&result, bytes, used), RESP_BROKEN);
	cr_assert_str_eq(result.why, "more elements than REDIS_ELEMENTS_MAX");
	free(bytes);

	bytes = malloc(REDIS_LINE_MAX + 2);
	memset(bytes, '+', REDIS_LINE_MAX + 2);
	cr_assert_eq(resp_parse(&result, bytes, REDIS_LINE_MAX + 2), RESP_BROKEN);
	cr_assert_str_eq(result.why, "a line longer than REDIS_LINE_MAX");
	free(bytes);

	bytes = calloc(1, REDIS_REPLY_MAX + 64);
	used = (size_t)sprintf(bytes, "*2\r\n$%d\r\n", REDIS_REPLY_MAX - 32);
	memcpy(bytes + used + REDIS_REPLY_MAX - 32, "\r\n$99\r\n", 7);
	cr_assert_eq(resp_parse(&result, bytes, REDIS_REPLY_MAX + 64), RESP_BROKEN);
	cr_assert_str_eq(result.why, "a reply longer than REDIS_REPLY_MAX");
	free(bytes);
	free(result.elements);
}

Test(redis, a_command_is_an_array_of_strings)
{
	static const char wanted[] = "*3\r\n$3\r\nSET\r\n$0\r\n\r\n$3\r\na\0b\r\n";
	const char *const argv[] = {"SET", "", "a\0b"};
	const size_t lengths[] = {3, 0, 3};
	char bytes[64];

	cr_assert_eq(resp_command(NULL, 3, argv, lengths), sizeof wanted - 1);
	cr_assert_eq(resp_command(bytes, 3, argv, lengths), sizeof wanted - 1);
	cr_assert(memcmp(bytes, wanted, sizeof wanted - 1) == 0);
}

/* ---- the URL -------------------------------------------------------------------------- */

Test(redis, a_url_says_where_it_is)
{
	static const struct {
		const char *url, *name; /* NULL: refused */
	} row[] = {
		{"redis://127.0.0.1", "redis://127.0.0.1:6379"},
		{"redis://127.0.0.1/", "redis://127.0.0.1:6379"},
		{"redis://host:1", "redis://host:1"},
		{"redis://host:65535/15", "redis://host:65535"},
		{"redis://[::1]:7000/1", "redis://[::1]:7000"},
		{"redis://:pass@host", "redis://host:6379"},
		{"redis://user:p%40ss@host", "redis://host:6379"},
		{"unix:///tmp/redis.sock", "unix:///tmp/redis.sock"},
		{"redis+unix:///a?db=3", "unix:///a"},
		{"unix://:pass@/a%20@b", "unix:///a @b"},
		{"", NULL},
		{"redis", NULL},
		{"http://host", NULL},
		{"rediss://host", NULL},
		{"redis://", NULL},
		{"redis://:6379", NULL},
		{"redis://host:x", NULL},
		{"redis://host:65536", NULL},
		{"redis://host/x", NULL},
		{"redis://host/1/2", NULL},
		{"redis://user@host", NULL},
		{"redis://user:@host", NULL},
		{"redis://:p%4@host", NULL},
		{"redis://:p%00@host", NULL},
		{"redis://:p%zz@host", NULL},
		{"redis://[::1", NULL},
		{"redis://[::1]x", NULL},
		{"unix://", NULL},
		{"unix://tmp", NULL},
		{"unix:///a?x=1", NULL},
		{"unix:///a?db=x", NULL},
		{"unix:///"
	         "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	         "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
	         NULL},
	};
	struct redis *redis;
	size_t i;

	for (i = 0; i < sizeof row / sizeof row[0]; i++) {
		errno = 0;
		redis = redis_open(NULL, row[i].url, NULL);
		if (row[i].name == NULL) {
			cr_assert_null(redis, "the bad URL %s is accepted", row[i].url);
			cr_assert_eq(errno, EINVAL);
			continue;
		}
		cr_assert_not_null(redis, "%s is refused", row[i].url);
		cr_assert_str_eq(redis_name(redis), row[i].name);
		redis_close(redis);
	}
}

/* ---- a real server ------------------------------------------------------------------- */

Test(redis, replies_of_every_type)
{
	struct server server;
	struct redis *redis;

	skip_without_redis();
	server_start(&server, NULL);
	redis = open_client(server.url, 0);
	cr_assert_str_eq(ask(redis, "SET a hello"), "+OK");
	cr_assert_str_eq(ask(redis, "GET a"), "\"hello\"");
	cr_assert_str_eq(ask(redis, "GET b"), "nil");
	cr_assert_str_eq(ask(redis, "INCR n"), "1");
	cr_assert_str_eq(ask(redis, "INCR a"), "-ERR value is not an integer or out of range");
	cr_assert_str_eq(ask(redis, "RPUSH l 1 2 3"), "3");
	cr_assert_str_eq(ask(redis, "LRANGE l 0 -1"), "[\"1\" \"2\" \"3\"]");
	cr_assert_str_eq(ask(redis, "LRANGE none 0 -1"), "[]");
	cr_assert_str_eq(ask(redis, "EVAL return{1,{2,'x',false},{}} 0"), "[1 [2 \"x\" nil] []]");
	cr_assert_str_eq(lines, "");
	redis_close(redis);
	server_end(&server, SIGTERM);
}

enum { MANY = 10000 };

static int
on_count(struct redis *redis, const struct redis_reply *reply, void *arg)
{
	int64_t *last = arg;

	(void)redis;
	cr_assert_eq(reply->type, REDIS_INTEGER);
	cr_assert_eq(reply->integer, *last + 1);
	++*last;
	return 0;
}

/* All commands are sent before the first reply is read. */
Test(redis, many_commands_at_once_are_answered_in_order)
{
	struct server server;
	struct redis *redis;
	int64_t last = 0;
	int i;

	skip_without_redis();
	server_start(&server, NULL);
	redis = open_client(server.url, time_limit());
	for (i = 0; i < MANY; i++)
		cr_assert(redis_command(redis, on_count, &last, "INCR", "n", (char *)NULL) == 0);
	cr_assert_eq(redis_pending(redis), MANY);
	until_answered(redis);
	cr_assert_eq(last, MANY);
	redis_close(redis);
	server_end(&server, SIGTERM);
}

/* A value of 8 MiB, and the reply that follows it in the same stream. */
Test(redis, a_large_value_comes_whole)
{
	struct server server;
	struct redis *redis;

	skip_without_redis();
	server_start(&server, NULL);
	redis = open_client(server.url, time_limit());
	cr_assert_str_eq(ask(redis, "SETRANGE a 8388607 x"), "8388608");
	cr_assert(redis_command(redis, NULL, NULL, "GET", "a", (char *)NULL) == 0);
	cr_assert_str_eq(ask(redis, "STRLEN a"), "8388608");
	cr_assert_str_eq(lines, "");
	redis_close(redis);
	server_end(&server, SIGTERM);
}

Test(redis, user_password_and_database_are_the_url_s)
{
	struct server server;
	struct redis *redis;
	char url[160];

	skip_without_redis();
	server_start(&server, "--requirepass", "p@ss", "--user", "ann", "on", ">word", "~*",
	             "+@all", NULL);
	snprintf(url, sizeof url, "unix://:p%%40ss@%s?db=3", server.path);
	redis = open_client(url, 0);
	cr_assert_str_eq(ask(redis, "ACL WHOAMI"), "\"default\"");
	cr_assert_str_eq(ask(redis, "SET where three"), "+OK");
	redis_close(redis);
	snprintf(url, sizeof url, "unix://ann:word@%s", server.path);
	redis = open_client(url, 0);
	cr_assert_str_eq(ask(redis, "ACL WHOAMI"), "\"ann\"");
	cr_assert_str_eq(ask(redis, "GET where"), "nil");
	redis_close(redis);
	cr_assert_str_eq(lines, "");
	server_end(&server, SIGTERM);
}

Test(redis, a_wrong_password_is_one_line_and_an_error_for_each_command)
{
	struct server server;
	struct redis *redis, *other;
	char url[160];
	int64_t begin;

	skip_without_redis();
	server_start(&server, "--requirepass", "right", NULL);
	snprintf(url, sizeof url, "unix://:wrong@%s", server.path);
	redis = open_client(url, 0);
	begin = clutch_now();
	cr_assert_str_eq(ask(redis, "GET a"),
	                 "-WRONGPASS invalid username-password pair or user is disabled.");
	while (clutch_now() < begin + 1000)
		cr_assert(redis_step(redis, 10) == 0);
	cr_assert_eq(count(lines, "\n"), 1, "%s", lines);
	cr_assert_neq(count(lines, "refused (is its URL right?): WRONGPASS"), 0, "%s", lines);
	cr_assert_eq(count(lines, "wrong"), 0, "the password is in the log");

	/* The client tried again after pauses of 50 to 100 ms, not all the time. */
	snprintf(url, sizeof url, "unix://:right@%s", server.path);
	other = open_client(url, 0);
	ask(other, "INFO stats");
	cr_assert_not_null(strstr(heard, "total_connections_received:"));
	cr_assert(atoi(strstr(heard, "received:") + 9) <= 30, "%s", strstr(heard, "received:"));
	cr_assert_str_eq(ask(other, "CONFIG SET requirepass wrong"), "+OK");
	changes = 0;
	until_ready(redis, 1);
	cr_assert_str_eq(ask(redis, "SET a b"), "+OK");
	cr_assert_eq(count(lines, "connected again"), 1);
	redis_close(other);
	redis_close(redis);
	server_end(&server, SIGTERM);
}

Test(redis, a_server_that_is_killed_and_started_again)
{
	struct server server;
	struct redis *redis;

	skip_without_redis();
	server_start(&server, "--appendonly", "yes", "--appendfsync", "always", NULL);
	redis = open_client(server.url, time_limit());
	cr_assert_str_eq(ask(redis, "INCR n"), "1");
	heard[0] = '\0';
	kill(server.pid, SIGSTOP);
	cr_assert(redis_command(redis, on_reply, tag("written"), "INCR", "m", (char *)NULL) == 0);
	cr_assert(redis_step(redis, 0) == 1);
	server_end(&server, SIGKILL);
	cr_assert(redis_command(redis, on_reply, tag("queued"), "INCR", "n", (char *)NULL) == 0);
	until_heard(redis, "written=no reply (connection lost: ");
	cr_assert_eq(redis_pending(redis), 1);
	server_start(&server, "--appendonly", "yes", NULL);
	until_answered(redis);
	cr_assert_not_null(strstr(heard, "queued=2; "), "%s", heard);
	cr_assert_eq(count(heard, ";"), 2);
	cr_assert_eq(count(lines, ": lost: "), 1, "%s", lines);
	cr_assert_eq(count(lines, ": connected again"), 1, "%s", lines);
	cr_assert_eq(count(lines, "\n"), 2, "%s", lines);
	redis_close(redis);
	server_end(&server, SIGTERM);
}

/* The server lives but is stopped: a command waits no longer than its timeout. */
Test(redis, a_server_that_stops_answering)
{
	struct server server;
	struct redis *redis;

	skip_without_redis();
	server_start(&server, NULL);
	redis = open_client(server.url, 1000);
	until_ready(redis, 1);
	kill(server.pid, SIGSTOP);
	cr_assert_str_eq(ask(redis, "INCR n"),
	                 "no reply (connection lost: no reply within 1000 ms)");
	cr_assert_str_eq(ask(redis, "INCR n"), "no reply (no connection within 1000 ms)");
	kill(server.pid, SIGCONT);
	until_ready(redis, 2);
	ask(redis, "GET n"); /* Redis may have run the first INCR; the second was not written */
	cr_assert(strcmp(heard, "\"1\"") == 0 || strcmp(heard, "nil") == 0, "%s", heard);
	redis_close(redis);
	server_end(&server, SIGTERM);
}

Test(redis, subscriptions_are_made_again)
{
	struct server server;
	struct redis *redis, *other;

	skip_without_redis();
	server_start(&server, NULL);
	redis = open_subscriber(server.url, 0);
	until_ready(redis, 1);
	other = open_client(server.url, 0);
	cr_assert(redis_command(other, NULL, NULL, "PUBLISH", "a", "1", (char *)NULL) == 0);
	cr_assert(redis_command(other, NULL, NULL, "PUBLISH", "b", "2", (char *)NULL) == 0);
	until_answered(other);
	until_heard(redis, "\"2\"]");
	cr_assert_str_eq(heard, "S=[\"message\" \"a\" \"1\"]; S=[\"message\" \"b\" \"2\"]; ");
	cr_assert(redis_command(redis, NULL, NULL, "GET", "a", (char *)NULL) == -1);
	cr_assert_eq(errno, EINVAL);
	cr_assert_null(redis_open(NULL, server.url,
	                          &(struct redis_options){.channels = (const char *[]){NULL}}));
	cr_assert_eq(errno, EINVAL);
	server_end(&server, SIGKILL);
	forget();
	server_start(&server, NULL);
	until_ready(redis, 1);
	cr_assert(redis_command(other, NULL, NULL, "PUBLISH", "a", "3", (char *)NULL) == 0);
	until_answered(other);
	until_heard(redis, "S=[\"message\" \"a\" \"3\"]; ");
	redis_close(other);
	redis_close(redis);
	server_end(&server, SIGTERM);
}

/* A PING asks whether a silent server is alive: first the server answers, then it is stopped. */
Test(redis, a_subscriber_notices_that_its_server_is_gone)
{
	struct server server;
	struct redis *redis;
	int64_t begin;

	skip_without_redis();
	server_start(&server, NULL);
	redis = open_subscriber(server.url, 1000);
	until_ready(redis, 1);
	for (begin = clutch_now(); clutch_now() < begin + 4000;)
		cr_assert(redis_step(redis, 10) >= 0);
	cr_assert_str_eq(lines, "");
	kill(server.pid, SIGSTOP);
	while (lines[0] == '\0') {
		cr_assert(clutch_now() < begin + 4000 + time_limit());
		cr_assert(redis_step(redis, 10) >= 0);
	}
	cr_assert_not_null(strstr(lines, "lost: no reply within 1000 ms"), "%s", lines);
	redis_close(redis);
	kill(server.pid, SIGCONT);
	server_end(&server, SIGTERM);
}

/* The first address of "localhost" may be ::1, which has no server: the client tries the next. */
Test(redis, over_tcp_by_number_and_by_name)
{
	struct server server;
	struct redis *redis;
	char port[16], url[64];
	size_t i;

	skip_without_redis();
	snprintf(port, sizeof port, "%d", test_free_port());
	server_start(&server, "--port", port, "--bind", "127.0.0.1", NULL);
	for (i = 0; i < 2; i++) {
		snprintf(url, sizeof url, "redis://%s:%s/0", i == 0 ? "127.0.0.1" : "localhost",
		         port);
		redis = open_client(url, 0);
		cr_assert_str_eq(ask(redis, "PING"), "+PONG");
		redis_close(redis);
	}
	server_end(&server, SIGTERM);
}

/* ---- a false server --------------------------------------------------------------------- */

/* The server takes one connection at a time. It answers the first bytes with `hello`, all
 * others with `answer`, in pieces; if `hangs_up`, it closes after the first `answer`. */
static struct {
	int listener, connection, accepted, times;
	const char *hello, *answer;
	size_t piece;
	bool hangs_up;
} fake;

static const char *
fake_start(const char *hello, const char *answer)
{
	static char url[sizeof(struct sockaddr_un) + 8];
	struct sockaddr_un address = {.sun_family = AF_UNIX};

	snprintf(address.sun_path, sizeof address.sun_path, "%s/fake", test_folder());
	snprintf(url, sizeof url, "unix://%s", address.sun_path);
	fake.listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	cr_assert(bind(fake.listener, (struct sockaddr *)&address, sizeof address) == 0);
	cr_assert(listen(fake.listener, 8) == 0);
	fake.connection = -1;
	fake.hello = hello;
	fake.answer = answer;
	fake.piece = 4096;
	return url;
}

static void
fake_hang_up(void)
{
	close(fake.connection);
	fake.connection = -1;
}

static void
fake_say(struct redis *redis, const char *text)
{
	size_t length = strlen(text), piece;

	for (; length > 0; length -= piece, text += piece) {
		piece = length < fake.piece ? length : fake.piece;
		if (send(fake.connection, text, piece, MSG_NOSIGNAL) == -1)
			return;
		if (length > piece)
			cr_assert(redis_step(redis, 0) >= 0);
	}
}

static void
fake_turn(struct redis *redis)
{
	char bytes[4096];
	ssize_t length;

	cr_assert(redis_step(redis, 5) >= 0);
	if (fake.connection == -1) {
		fake.connection = accept4(fake.listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
		fake.accepted += fake.connection != -1;
		fake.times = 0;
		return;
	}
	length = recv(fake.connection, bytes, sizeof bytes, 0);
	if (length > 0) {
		fake_say(redis, fake.times++ == 0 ? fake.hello : fake.answer);
		if (fake.hangs_up && fake.times == 2)
			fake_hang_up();
	} else if (length == 0) {
		fake_hang_up();
	}
}

static void
fake_until(struct redis *redis, const char *text, const char *wanted, size_t times)
{
	int64_t deadline = clutch_now() + time_limit();

	while (count(text, wanted) < times) {
		cr_assert(clutch_now() < deadline, "%s is not in: %s\n%s", wanted, heard, lines);
		fake_turn(redis);
	}
}

Test(redis, replies_that_come_byte_by_byte)
{
	struct redis *redis = open_client(
		fake_start("+PONG\r\n", "*3\r\n:1\r\n$5\r\nhello\r\n*1\r\n$-1\r\n+OK\r\n"), 0);

	fake.piece = 1;
	cr_assert(redis_command(redis, on_reply, tag("one"), "ONE", (char *)NULL) == 0);
	cr_assert(redis_command(redis, on_reply, tag("two"), "TWO", (char *)NULL) == 0);
	fake_until(redis, heard, ";", 2);
	cr_assert_str_eq(heard, "one=[1 \"hello\" [nil]]; two=+OK; ");
	cr_assert_str_eq(lines, "");
	redis_close(redis);
}

Test(redis, a_reply_that_is_none_costs_the_connection_and_one_line)
{
	struct redis *redis = open_client(fake_start("+PONG\r\n", ""), time_limit());
	char wanted[128];
	size_t i;

	for (i = 0; i < sizeof bad / sizeof bad[0]; i++) {
		forget();
		fake.answer = bad[i].bytes;
		cr_assert(redis_command(redis, on_reply, NULL, "PING", (char *)NULL) == 0);
		fake_until(redis, heard, ";", 1);
		snprintf(wanted, sizeof wanted, "no reply (connection lost: %s); ", bad[i].why);
		cr_assert_str_eq(heard, wanted);
		fake_until(redis, lines, "connected again", 1);
		cr_assert_eq(count(lines, bad[i].why), 1);
		cr_assert_eq(count(lines, "\n"), 2, "%s", lines);
	}
	redis_close(redis);
}

Test(redis, a_reply_that_nobody_asked_for_costs_the_connection)
{
	struct redis *redis = open_client(fake_start("+PONG\r\n", "+OK\r\n+OK\r\n"), 0);

	cr_assert(redis_command(redis, on_reply, NULL, "PING", (char *)NULL) == 0);
	fake_until(redis, lines, "lost: a reply to no command", 1);
	cr_assert_str_eq(heard, "+OK; ");
	redis_close(redis);
}

static int
ask_again(struct redis *redis, const struct redis_reply *reply, void *arg)
{
	cr_assert(redis_command(redis, on_reply, tag("late"), "B", (char *)NULL) == 0);
	return on_reply(redis, reply, arg);
}

/* Bytes that came before a command was written cannot be its reply. */
Test(redis, a_reply_that_comes_too_early_costs_the_connection)
{
	struct redis *redis = open_client(fake_start("+PONG\r\n", "+OK\r\n+EARLY\r\n"), 0);

	cr_assert(redis_command(redis, ask_again, tag("first"), "A", (char *)NULL) == 0);
	fake_until(redis, lines, "lost: a reply to no command", 1);
	fake.answer = "+OK\r\n";
	fake_until(redis, heard, ";", 2);
	cr_assert_str_eq(heard, "first=+OK; late=+OK; ");
	redis_close(redis);
}

/* Only the right replies to SUBSCRIBE make a subscriber ready. */
Test(redis, a_subscription_that_is_answered_with_something_else_is_made_again)
{
	struct redis *redis = open_subscriber(fake_start("+PONG\r\n+OK\r\n", ""), 0);

	fake_until(redis, lines, "cannot connect: a reply that no subscriber expects", 1);
	fake.hello = "+PONG\r\n*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n+OK\r\n";
	while (fake.accepted < 3)
		fake_turn(redis);
	cr_assert_eq(changes, 0);
	fake.hello = "+PONG\r\n*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n"
		     "*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nx\r\n"
		     "*3\r\n$9\r\nsubscribe\r\n$1\r\nb\r\n:2\r\n";
	fake_until(redis, lines, "connected again", 1);
	cr_assert_eq(changes, 1);
	cr_assert_str_eq(heard, "S=[\"message\" \"a\" \"x\"]; ");
	redis_close(redis);
}

/* With `drops` a lost connection also fails the commands that were not written yet. */
Test(redis, a_lost_connection_drops_what_was_not_written)
{
	struct redis *redis;
	const char *url = fake_start("+PONG\r\n", "");

	redis = redis_open(
		NULL, url,
		&(struct redis_options){.drops = true, .on_change = on_change, .log = on_line});
	while (changes == 0)
		fake_turn(redis);
	cr_assert(redis_command(redis, on_reply, tag("1"), "A", (char *)NULL) == 0);
	cr_assert(redis_step(redis, 0) == 1);
	cr_assert(redis_command(redis, on_reply, tag("2"), "B", (char *)NULL) == 0);
	fake_hang_up();
	until_answered(redis);
	cr_assert_eq(count(heard, "no reply (connection lost: "), 2, "%s", heard);
	redis_close(redis);
}

Test(redis, a_greeting_that_is_none)
{
	struct redis *redis = open_client(fake_start("*0\r\n", ""), 0);

	cr_assert(redis_command(redis, on_reply, NULL, "GET", "a", (char *)NULL) == 0);
	fake_until(redis, heard, ";", 1);
	cr_assert_str_eq(heard, "-no PONG; ");
	redis_close(redis);
}

/* A server that is loading has not refused the client: a command goes on waiting. */
Test(redis, a_server_that_is_loading)
{
	struct redis *redis = open_client(
		fake_start("-LOADING Redis is loading the dataset in memory\r\n", "+OK\r\n"), 0);

	cr_assert(redis_command(redis, on_reply, NULL, "GET", "a", (char *)NULL) == 0);
	fake_until(redis, lines, "cannot connect: LOADING", 1);
	while (fake.accepted < 3)
		fake_turn(redis);
	cr_assert_str_eq(heard, "");
	fake.hello = "+PONG\r\n";
	fake_until(redis, heard, "+OK; ", 1);
	cr_assert_eq(count(lines, "\n"), 2, "%s", lines);
	redis_close(redis);
}

Test(redis, a_server_that_accepts_and_says_nothing)
{
	struct redis *redis = open_client(fake_start("", ""), 200);
	int64_t begin = clutch_now();

	cr_assert(redis_command(redis, on_reply, NULL, "GET", "a", (char *)NULL) == 0);
	fake_until(redis, heard, ";", 1);
	cr_assert_str_eq(heard, "no reply (no connection within 200 ms); ");
	cr_assert(clutch_now() - begin >= 200);
	while (fake.accepted < 3)
		fake_turn(redis);
	cr_assert(clutch_now() - begin >= 2 * 200, "three tries in %lld ms",
	          (long long)(clutch_now() - begin));
	cr_assert_eq(count(lines, "cannot connect: no reply within 200 ms"), 1, "%s", lines);
	cr_assert_eq(count(lines, "\n"), 1, "%s", lines);
	redis_close(redis);
}

/* The time that a command has waited for a connection does not count on the new connection. */
Test(redis, a_command_s_time_begins_with_the_connection)
{
	const int timeout = 3 * time_limit(), waited = 1000; /* no test machine is so slow */
	struct redis *redis = open_client(fake_start("", "+OK\r\n"), timeout);

	cr_assert(redis_command(redis, on_reply, NULL, "GET", "a", (char *)NULL) == 0);
	while (fake.times == 0 || redis_timeout(redis) > timeout - waited)
		fake_turn(redis);
	fake_say(redis, "+PONG\r\n");
	while (!redis_ready(redis))
		cr_assert(redis_step(redis, time_limit()) >= 0);
	cr_assert_gt(redis_timeout(redis), timeout - waited);
	fake_until(redis, heard, "+OK; ", 1);
	redis_close(redis);
}

/* Only commands that were not written yet are written to the next connection. */
Test(redis, a_command_is_written_once)
{
	struct redis *redis = open_client(fake_start("+PONG\r\n", "+OK\r\n"), 0);

	fake.hangs_up = true;
	cr_assert(redis_command(redis, on_reply, tag("1"), "A", (char *)NULL) == 0);
	cr_assert(redis_command(redis, on_reply, tag("2"), "B", (char *)NULL) == 0);
	fake_until(redis, heard, ";", 2);
	cr_assert_str_eq(heard, "1=+OK; 2=no reply (connection lost: closed by Redis); ");
	fake.hangs_up = false;
	cr_assert(redis_command(redis, on_reply, tag("3"), "C", (char *)NULL) == 0);
	fake_until(redis, heard, ";", 3);
	cr_assert_not_null(strstr(heard, "3=+OK; "));
	redis_close(redis);
}

/* ---- limits and errors of the caller ----------------------------------------------------- */

Test(redis, a_queue_that_is_full_refuses)
{
	struct redis *redis = open_client("unix:///no/such/socket", 0);
	size_t length = 64 * 1024, i;
	char *text = calloc(1, length), *huge = malloc(REDIS_QUEUE_MAX + 1);

	memset(text, 'x', length - 1);
	memset(huge, 'x', REDIS_QUEUE_MAX);
	huge[REDIS_QUEUE_MAX] = '\0';
	cr_assert(redis_command(redis, on_reply, NULL, huge, (char *)NULL) == -1);
	cr_assert_eq(errno, EMSGSIZE);
	for (i = 0; redis_command(redis, on_reply, NULL, text, (char *)NULL) == 0; i++)
		cr_assert(i < 64);
	cr_assert_eq(errno, ENOBUFS);
	cr_assert_eq(i, 63);
	cr_assert_eq(redis_pending(redis), 63);
	cr_assert(redis_command(redis, on_reply, NULL, "PING", (char *)NULL) == 0);
	redis_close(redis);
	cr_assert_eq(count(heard, "no reply (closed); "), 64);

	forget();
	redis = open_client("unix:///no/such/socket", 0);
	for (i = 0; i < REDIS_PENDING_MAX; i++)
		cr_assert(redis_command(redis, NULL, NULL, "PING", (char *)NULL) == 0);
	cr_assert(redis_command(redis, NULL, NULL, "PING", (char *)NULL) == -1);
	cr_assert_eq(errno, ENOBUFS);
	cr_assert(redis_command(redis, NULL, NULL, NULL, (char *)NULL) == -1);
	cr_assert_eq(errno, EINVAL);
	redis_close(redis);
	redis_close(NULL);
	free(text);
	free(huge);
}

static int
step_inside(struct redis *redis, const struct redis_reply *reply, void *arg)
{
	(void)reply, (void)arg;
	cr_assert(redis_step(redis, 0) == -1);
	cr_assert_eq(errno, EBUSY);
	cr_assert(redis_command(redis, on_reply, tag("inner"), "B", (char *)NULL) == 0);
	return 7;
}

Test(redis, a_callback_that_fails_ends_the_step)
{
	struct redis *redis = open_client(fake_start("+PONG\r\n", "+OK\r\n"), 0);
	int64_t deadline = clutch_now() + time_limit();
	int result;

	until_ready(redis, 0);
	while (changes == 0)
		fake_turn(redis);
	cr_assert(redis_command(redis, step_inside, NULL, "A", (char *)NULL) == 0);
	cr_assert(redis_step(redis, 0) == 1);
	fake_say(redis, "+OK\r\n");
	while ((result = redis_step(redis, 5)) == 1)
		cr_assert(clutch_now() < deadline);
	cr_assert_eq(result, -1);
	cr_assert_eq(errno, ECANCELED);
	fake_until(redis, heard, "inner=+OK; ", 1);
	redis_close(redis);
}

/* This callback sends a command again. If that were allowed, redis_close would never end. */
static int
ask_again_in_close(struct redis *redis, const struct redis_reply *reply, void *arg)
{
	describe(reply);
	errno = 0;
	append(heard, sizeof heard, " %s; ",
	       redis_command(redis, ask_again_in_close, arg, "B", (char *)NULL) == 0
	               ? "asked again"
	               : strerror(errno));
	return 0;
}

Test(redis, a_command_of_a_callback_of_the_close_is_refused)
{
	struct redis *redis = open_client("unix:///nowhere", 0);

	cr_assert(redis_command(redis, ask_again_in_close, NULL, "A", (char *)NULL) == 0);
	cr_assert(redis_command(redis, ask_again_in_close, NULL, "A", (char *)NULL) == 0);
	redis_close(redis);
	cr_assert_str_eq(heard, "no reply (closed) Broken pipe; no reply (closed) Broken pipe; ");
}

/* ---- in a messenger's loop ---------------------------------------------------------------- */

static void
turn_until(struct messenger *messenger, const char *text, const char *wanted)
{
	int64_t deadline = clutch_now() + time_limit();

	while (strstr(text, wanted) == NULL) {
		cr_assert(clutch_now() < deadline, "%s is not in: %s\n%s", wanted, heard, lines);
		cr_assert(messenger_step(messenger, 100) == 1);
	}
}

/* The client has no loop of its own: the messenger's loop does all its work. */
Test(redis, a_messenger_turns_it)
{
	struct server server;
	struct messenger *messenger;
	struct redis *redis;
	int ends[2], before;

	skip_without_redis();
	server_start(&server, NULL);
	cr_assert(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
	messenger = messenger_open(ends[0], ROLE_PARENT);
	before = process_descriptors(getpid());
	redis = redis_open(
		messenger, server.url,
		&(struct redis_options){.timeout = 1000, .retry_max = 100, .log = on_line});
	cr_assert(redis_command(redis, on_reply, tag("a"), "INCR", "n", (char *)NULL) == 0);
	turn_until(messenger, heard, "a=1; ");
	cr_assert(redis_command(redis, on_reply, tag("b"), "INCR", "n", (char *)NULL) == 0);
	turn_until(messenger, heard, "b=2; ");
	kill(server.pid, SIGSTOP);
	cr_assert(redis_command(redis, on_reply, tag("c"), "INCR", "n", (char *)NULL) == 0);
	turn_until(messenger, heard, "c=no reply (connection lost: no reply within 1000 ms); ");
	server_end(&server, SIGKILL);
	server_start(&server, NULL);
	turn_until(messenger, lines, "connected again");
	cr_assert(redis_command(redis, on_reply, tag("d"), "INCR", "n", (char *)NULL) == 0);
	turn_until(messenger, heard, "d=1; ");
	redis_close(redis);
	cr_assert_eq(process_descriptors(getpid()), before);
	cr_assert_eq(messenger_timeout(messenger), -1, "a timer is left");
	messenger_close(messenger);
	close(ends[1]);
	server_end(&server, SIGTERM);
}
