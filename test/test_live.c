/*
 * The examples that show a cluster, as they are: metrics, and live with its page, which a
 * real Chromium opens (Debian's package chromium; without it, that test is skipped).
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "commands.h"

#include <ctype.h>

TestSuite(live, .timeout = 180);

/* ---- the programs --------------------------------------------------------------- */

static const char *
example(const char *name)
{
	static char line[512];
	const char *build = getenv("BUILD");

	home();
	snprintf(line, sizeof line, "%s/examples/%s --port=0 --workers=2",
	         build != NULL ? build : "build", name);
	return line;
}

/* The number behind the last occurrence of the text. */
static long
number_behind(const char *text, const char *before)
{
	const char *at = NULL, *next = text;

	while ((next = strstr(next, before)) != NULL)
		at = next += strlen(before);
	cr_assert_not_null(at, "no \"%s\" in:\n%s", before, text);
	return atol(at);
}

static void
stop(struct run *run)
{
	kill(run->pid, SIGTERM);
	cr_assert_eq(end(run), 0, "%s", run->text);
	nobody_is_left();
}

/* ---- HTTP ----------------------------------------------------------------------- */

static int
send_request(int port, const char *text)
{
	struct cluster server = {.port = port};
	int client = cluster_connect(&server);

	cr_assert_eq(send(client, text, strlen(text), MSG_NOSIGNAL), (ssize_t)strlen(text));
	return client;
}

/* Read until `wanted` has come, or the stream ends; the text lives until the next call. */
static const char *
receive(int client, const char *wanted)
{
	static char text[256 * 1024];
	size_t length = 0;
	ssize_t n = 1;

	text[0] = '\0';
	while (n > 0 && (wanted == NULL || strstr(text, wanted) == NULL)) {
		n = recv(client, text + length, sizeof text - 1 - length, 0);
		length += n > 0 ? (size_t)n : 0;
		text[length] = '\0';
	}
	close(client);
	return text;
}

static const char *
fetch(int port, const char *path)
{
	char request[256];

	snprintf(request, sizeof request,
	         "GET %s HTTP/1.1\r\nHost: 127.0.0.1:1\r\nConnection: close\r\n\r\n", path);
	return receive(send_request(port, request), NULL);
}

/* ---- metrics ---------------------------------------------------------------------- */

/* A name of characters that Prometheus allows. Returns the end of the name. */
static const char *
expect_name(const char *at, const char *line)
{
	const char *start = at;

	while (isalnum((unsigned char)*at) || *at == '_' || *at == ':')
		at++;
	cr_assert(at > start && !isdigit((unsigned char)*start), "no name in %s", line);
	return at;
}

/* The labels {role="app",slot="1"}. Returns their end. */
static const char *
expect_labels(const char *at, const char *line)
{
	if (*at != '{')
		return at;
	do {
		at = expect_name(at + 1, line);
		cr_assert(at[0] == '=' && at[1] == '"', "no label in %s", line);
		at += 2 + strcspn(at + 2, "\"\\");
		cr_assert_eq(*at++, '"', "no label in %s", line);
	} while (*at == ',');
	cr_assert_eq(*at, '}', "no end of the labels in %s", line);
	return at + 1;
}

/* Each metric was announced with its type, has a value, and no series stands there twice. */
static void
expect_sample(const char *line, const char *family, const char *type, const char *all)
{
	const char *name_end = expect_name(line, line), *end = expect_labels(name_end, line);
	size_t length = (size_t)(name_end - line);
	char series[256], *value_end;

	cr_assert(strlen(family) == length && strncmp(line, family, length) == 0,
	          "%s stands below %s", line, family);
	cr_assert(strcmp(type, "counter") != 0 ||
	                  strncmp(name_end - strlen("_total"), "_total", 6) == 0,
	          "the name of a counter does not end with _total: %s", line);
	cr_assert_eq(*end, ' ', "%s", line);
	strtod(end + 1, &value_end);
	cr_assert(value_end > end + 1 && *value_end == '\0', "no value: %s", line);
	snprintf(series, sizeof series, "\n%.*s ", (int)(end - line), line);
	cr_assert_eq(count_text(all, series), 1, "this series occurs more than once: %s\n%s", line,
	             all);
}

/* The text format 0.0.4. */
static void
expect_metrics(const char *text)
{
	static char copy[64 * 1024];
	char *line, *rest, family[128] = "", type[16] = "";
	int samples = 0;

	cr_assert_eq(text[strlen(text) - 1], '\n');
	snprintf(copy, sizeof copy, "%s", text);
	for (line = strtok_r(copy, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
		if (sscanf(line, "# TYPE %127s %15s", family, type) == 2)
			cr_assert(strcmp(type, "counter") == 0 || strcmp(type, "gauge") == 0);
		if (line[0] == '#')
			continue;
		expect_sample(line, family, type, text);
		samples++;
	}
	cr_assert_gt(samples, 20, "%s", text);
}

static const char *
fetch_metrics(int port)
{
	const char *text = fetch(port, "/metrics");
	const char *body = strstr(text, "\r\n\r\n");

	cr_assert(strncmp(text, "HTTP/1.1 200 OK\r\n", 17) == 0 && body != NULL, "%s", text);
	cr_assert_not_null(
		strstr(text, "\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"));
	return body + 3; /* with a new line before the first line */
}

static void
expect_promtool_agrees(const char *text)
{
	char command_line[256];
	FILE *file = fopen(path_of("metrics"), "w");

	cr_assert(file != NULL && fputs(text, file) >= 0 && fclose(file) == 0);
	if (system("command -v promtool >/dev/null") != 0) {
		fprintf(stderr, "there is no promtool: skipped\n");
		return;
	}
	snprintf(command_line, sizeof command_line, "promtool check metrics <%s",
	         path_of("metrics"));
	cr_assert_eq(system(command_line), 0, "%s", text);
}

Test(live, metrics_are_what_prometheus_reads)
{
	static const char *const expected[] = {
		"\n# TYPE clutch_process_up gauge\n",
		"\nclutch_process_up{role=\"agent\",slot=\"-1\"} 1\n",
		"\nclutch_process_up{role=\"app\",slot=\"0\"} 1\n",
		"\nclutch_process_up{role=\"app\",slot=\"1\"} 1\n",
		"\nclutch_process_heard_messages_total{role=\"agent\",slot=\"-1\"} 1\n",
		"\nclutch_process_queue_bytes{role=\"app\",slot=\"1\"} 0\n",
		"\nclutch_cluster_workers 2\n",
		"\nclutch_cluster_reloads_total{result=\"done\"} 0\n",
	};
	struct run run;
	const char *text;
	size_t i;
	int port;

	start(&run, example("metrics"));
	wait_text(&run, "to stop it: ");
	port = port_in(run.text);
	cr_assert_not_null(strstr(fetch(port, "/"), " 404 "));
	text = fetch_metrics(port);
	expect_metrics(text);
	for (i = 0; i < sizeof expected / sizeof expected[0]; i++)
		cr_expect_not_null(strstr(text, expected[i]), "no %s in %s", expected[i], text);
	expect_promtool_agrees(text + 1);
	stop(&run);
}

/* A request that never ends keeps its app for a while, beside the app's replacement. */
Test(live, metrics_during_a_reload)
{
	struct run run;
	int port, client;

	start(&run, example("metrics"));
	wait_text(&run, "to stop it: ");
	port = port_in(run.text);
	client = send_request(port, "GET ");
	fetch_metrics(port);
	kill((pid_t)number_behind(run.text, "or kill "), SIGUSR2);
	while (count_text(run.text, " started at ") < 4)
		read_output(&run, clutch_now() + time_limit());
	cr_assert_null(strstr(run.text, "reload done"), "the reload is over too soon");
	expect_metrics(fetch_metrics(port));
	close(client);
	wait_text(&run, "reload done");
	cr_assert_not_null(
		strstr(fetch_metrics(port), "\nclutch_cluster_reloads_total{result=\"done\"} 1\n"));
	stop(&run);
}

/* ---- live: events and orders --------------------------------------------------------- */

struct page {
	struct run run;
	int port;
	char token[64], url[128];
};

static void
open_live(struct page *page, const char *options)
{
	char line[640];

	snprintf(line, sizeof line, "%s%s", example("live"), options);
	start(&page->run, line);
	wait_text(&page->run, "to stop it: ");
	wait_text(&page->run, " (Ctrl-C ends it)\n");
	cr_assert_eq(sscanf(strstr(page->run.text, "live: open "), "live: open %127s", page->url),
	             1);
	cr_assert_eq(
		sscanf(page->url, "http://127.0.0.1:%d/#%63[0-9a-f]", &page->port, page->token), 2,
		"%s", page->url);
	cr_assert_eq(strlen(page->token), 32);
}

/* The answer's status. */
static int
post(const struct page *page, const char *host, const char *origin, const char *body)
{
	char request[512];
	const char *answer;

	snprintf(request, sizeof request,
	         "POST /order HTTP/1.1\r\nHost: %s\r\n%s%s%sContent-Length: %zu\r\n\r\n%s", host,
	         origin != NULL ? "Origin: " : "", origin != NULL ? origin : "",
	         origin != NULL ? "\r\n" : "", strlen(body), body);
	answer = receive(send_request(page->port, request), NULL);
	cr_assert(strncmp(answer, "HTTP/1.1 ", 9) == 0, "%s", answer);
	return atoi(answer + 9);
}

static void
order(const struct page *page, const char *what, long pid)
{
	char body[128];
	int status;

	snprintf(body, sizeof body, "%s %s %ld", page->token, what, pid);
	do
		status = post(page, "127.0.0.1:1", "http://127.0.0.1:1", body);
	while (status == 503); /* a flooded app: try the next one, as the page does */
	cr_assert_eq(status, 202);
}

/* Listen until an event has the text. The app that sends the events may die, or be stopped: then
 * ask another app, as the page does. */
static const char *
wait_event(const struct page *page, const char *wanted)
{
	int64_t deadline = clutch_now() + 2 * time_limit();
	struct timeval limit = {.tv_sec = 1};
	const char *text;
	int client;

	for (;;) {
		client =
			send_request(page->port, "GET /events HTTP/1.0\r\nHost: localhost\r\n\r\n");
		setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
		text = receive(client, wanted);
		if (strstr(text, wanted) != NULL)
			return text;
		cr_assert(clutch_now() < deadline, "no event with %s; the last:\n%s\n%s", wanted,
		          text, page->run.text);
	}
}

/* The pid of a process that is ready, as an event tells it. */
static long
pid_of(const struct page *page, const char *row)
{
	char before[64];
	const char *at;

	snprintf(before, sizeof before, "{%s,\"pid\":", row);
	do
		at = strstr(wait_event(page, before), before);
	while (strncmp(at + strlen(before) + strspn(at + strlen(before), "0123456789"),
	               ",\"state\":\"listening\"", 20) != 0);
	return atol(at + strlen(before));
}

#define AGENT "\"role\":\"agent\",\"slot\":-1"
#define APP_1 "\"role\":\"app\",\"slot\":1"

Test(live, orders_need_the_token_and_a_page_of_this_address)
{
	struct page page;
	char good[96], bad[96];

	open_live(&page, "");
	snprintf(good, sizeof good, "%s reload", page.token);
	strcpy(bad, good);
	bad[0] = bad[0] == '0' ? '1' : '0';
	cr_expect_eq(post(&page, "127.0.0.1:1", NULL, bad), 403);
	cr_expect_eq(post(&page, "127.0.0.1:1", NULL, ""), 403);
	cr_expect_eq(post(&page, "127.0.0.1:1", NULL, "reload"), 403);
	cr_expect_eq(post(&page, "127.0.0.1:1", "http://127.0.0.1:2", good), 403);
	cr_expect_eq(post(&page, "127.0.0.1:1", "null", good), 403);
	cr_expect_eq(post(&page, "evil.example:1", "http://evil.example:1", good), 403);
	cr_expect_eq(post(&page, "localhosts", NULL, good), 403);
	cr_expect_not_null(strstr(receive(send_request(page.port, "GET / HTTP/1.1\r\nHost: "
	                                                          "evil.example\r\n\r\n"),
	                                  NULL),
	                          " 403 "));
	cr_expect_not_null(strstr(fetch(page.port, "/order"), " 405 "));
	snprintf(bad, sizeof bad, "%s dance 4711", page.token);
	cr_expect_eq(post(&page, "127.0.0.1:1", NULL, bad), 400);
	snprintf(bad, sizeof bad, "%s kill -1", page.token);
	cr_expect_eq(post(&page, "127.0.0.1:1", NULL, bad), 400);
	cr_expect_null(strstr(page.run.text, "live: reload"));
	cr_expect_eq(post(&page, "localhost:1", "http://localhost:1", good), 202);
	wait_text(&page.run, "reload done");
	cr_expect_eq(count_text(page.run.text, "live: reload\n"), 1, "%s", page.run.text);
	stop(&page.run);
}

/* No signal reaches a process that the status does not name, nor the parent or the master. */
Test(live, only_agent_and_apps_can_be_signalled)
{
	struct page page;
	const long pids[] = {getpid(), 0, 0};
	long pid;
	char text[96];
	size_t i;

	open_live(&page, "");
	for (i = 0; i < sizeof pids / sizeof pids[0]; i++) {
		pid = i == 1   ? page.run.pid
		      : i == 2 ? number_behind(page.run.text, "or kill ")
		               : pids[i];
		order(&page, "kill", pid);
		snprintf(text, sizeof text, "live: pid %ld is no agent or app", pid);
		wait_text(&page.run, text);
	}
	stop(&page.run);
}

Test(live, a_kill_is_a_death_and_a_birth)
{
	struct page page;
	char text[128];
	long pid;

	open_live(&page, "");
	pid = pid_of(&page, APP_1);
	order(&page, "kill", pid);
	wait_event(&page, "live: kill app 1, pid ");
	while (pid_of(&page, APP_1) == pid) /* an event from before the death */
		;
	wait_event(&page, "\"reforks\":1,");
	wait_event(&page, "\"last_death\":\"code: null, signal: SIGKILL\"");
	pid = pid_of(&page, AGENT);
	order(&page, "kill", pid);
	wait_event(&page, "{" AGENT ",\"pid\":0,\"state\":\"dead\"");
	while (pid_of(&page, AGENT) == pid)
		;
	snprintf(text, sizeof text, "agent_worker#1:%ld died (code: null, signal: SIGKILL)", pid);
	wait_event(&page, text); /* the log, on the page */
	stop(&page.run);
}

/* There is one app only. post fails where it gets no answer. */
Test(live, an_app_answers_before_it_is_killed)
{
	struct page page;
	long pid, last = 0;
	int i;

	open_live(&page, " --workers=1");
	for (i = 0; i < 12; i++, last = pid) {
		while ((pid = pid_of(&page, "\"role\":\"app\",\"slot\":0")) == last)
			; /* the last order has not been carried out yet */
		order(&page, "kill", pid);
	}
	stop(&page.run);
}

/* Is the process stopped by a signal? */
static bool
is_stopped(const void *pid)
{
	char path[64];

	snprintf(path, sizeof path, "/proc/%ld/stat", *(const long *)pid);
	return strstr(content_of(path), ") T ") != NULL;
}

static bool
goes_on(const void *pid)
{
	return !is_stopped(pid);
}

/* The queue of a stopped app grows, and the agent is held up; the parent is not. The flood comes
 * last: a queue that is full for the stuck timeout costs the app its life. */
Test(live, an_app_is_stopped_flooded_and_continued)
{
	struct page page;
	char text[64];
	long pid;

	open_live(&page, "");
	pid = pid_of(&page, APP_1);
	order(&page, "stop", pid);
	snprintf(text, sizeof text, "\"stopped\":[%ld]", pid);
	wait_event(&page, text);
	wait_until(is_stopped, &pid, "the app to stop");
	order(&page, "flood", pid);
	wait_event(&page, "\"waits_for\":[\"app:1\"]");
	order(&page, "continue", pid);
	wait_until(goes_on, &pid, "the stopped app to go on");
	wait_event(&page, "\"stopped\":[]");
	cr_assert_eq(pid_of(&page, APP_1), pid);
	stop(&page.run);
}

/* While the agent is stopped and its queue full, the app that floods it can pass nothing on. It
 * refuses an order, and does not keep it: as many orders arrive as were accepted. */
Test(live, an_app_that_is_held_up_refuses_orders)
{
	struct page page;
	char body[96], line[96];
	size_t accepted = 0, refused = 0;
	int status;
	long pid;

	open_live(&page, "");
	pid = pid_of(&page, AGENT);
	order(&page, "stop", pid);
	wait_until(is_stopped, &pid, "the agent to stop");
	order(&page, "flood", pid);
	wait_event(&page, "\"waits_for\":[\"agent:-1\"]");
	snprintf(body, sizeof body, "%s kill %ld", page.token, (long)getpid());
	snprintf(line, sizeof line, "live: pid %ld is no agent or app", (long)getpid());
	while (accepted == 0 || refused == 0) {
		status = post(&page, "127.0.0.1:1", NULL, body);
		cr_assert(status == 202 || status == 503, "%d", status);
		accepted += status == 202;
		refused += status == 503;
		while (count_text(page.run.text, line) < accepted)
			read_output(&page.run, clutch_now() + time_limit());
	}
	order(&page, "continue", pid);
	wait_until(goes_on, &pid, "the agent to go on");
	stop(&page.run);
	cr_assert_eq(count_text(page.run.text, line), accepted, "%s", page.run.text);
}

Test(live, wrong_options)
{
	static const char *const options[] = {"--port=65536",  "--port=",     "--workers=0",
	                                      "--workers=101", "--workers=x", "help"};
	char line[640];
	size_t i;

	for (i = 0; i < sizeof options / sizeof options[0]; i++) {
		snprintf(line, sizeof line, "%s %s", example("live"), options[i]);
		command(line, 1, "live takes --port=7001 (0: any free one) and --workers=3");
	}
}

/* ---- the page in Chromium, over its DevTools protocol ------------------------------------ */

struct browser {
	pid_t pid;
	int in, out; /* its descriptors 3 and 4: messages of JSON that end with a 0 */
	int id;
	char session[64];
	char said[64 * 1024]; /* errors that the page has met */
	size_t length;
	char text[256 * 1024];
};

static void
start_browser(struct browser *browser)
{
	char profile[256];
	int in[2], out[2];

	memset(browser, 0, sizeof *browser);
	snprintf(profile, sizeof profile, "--user-data-dir=%s", path_of("profile"));
	cr_assert(pipe2(in, O_CLOEXEC) == 0 && pipe2(out, O_CLOEXEC) == 0);
	fflush(NULL);
	browser->pid = fork();
	cr_assert(browser->pid != -1);
	if (browser->pid == 0) {
		/* High numbers first: one of the four may be 3 or 4. */
		in[0] = fcntl(in[0], F_DUPFD, 64), out[1] = fcntl(out[1], F_DUPFD, 64);
		dup2(in[0], 3), dup2(out[1], 4);
		dup2(open("/dev/null", O_RDWR), 1), dup2(1, 2);
		execlp("chromium", "chromium", "--headless", "--disable-gpu", "--no-first-run",
		       "--remote-debugging-pipe", "--lang=en-US", profile,
		       geteuid() == 0 ? "--no-sandbox" : NULL, (char *)NULL);
		_exit(127);
	}
	close(in[0]), close(out[1]);
	browser->in = in[1];
	browser->out = out[0];
}

/* The next message; it lives until the next call. */
static const char *
next_message(struct browser *browser)
{
	struct pollfd wait = {browser->out, POLLIN, 0};
	size_t first = strnlen(browser->text, browser->length) + 1;
	ssize_t n;

	if (browser->length > 0) {
		browser->length -= first;
		memmove(browser->text, browser->text + first, browser->length);
	}
	while (memchr(browser->text, '\0', browser->length) == NULL) {
		cr_assert_eq(poll(&wait, 1, 6 * time_limit()), 1, "Chromium does not answer");
		n = read(browser->out, browser->text + browser->length,
		         sizeof browser->text - browser->length);
		cr_assert_gt(n, 0, "Chromium has ended");
		browser->length += (size_t)n;
	}
	return browser->text;
}

/* A page whose order meets an app that is held up tries again: that is no error of the page. */
static void
keep_error(struct browser *browser, const char *message)
{
	bool is_error = strstr(message, "\"method\":\"Runtime.exceptionThrown\"") != NULL ||
	                (strstr(message, "\"method\":\"Runtime.consoleAPICalled\"") != NULL &&
	                 strstr(message, "\"type\":\"error\"") != NULL) ||
	                (strstr(message, "\"method\":\"Log.entryAdded\"") != NULL &&
	                 strstr(message, "\"level\":\"error\"") != NULL);
	size_t length = strlen(browser->said);

	if (is_error && strstr(message, "status of 503") == NULL)
		snprintf(browser->said + length, sizeof browser->said - length, "%s\n", message);
}

/* Returns the answer to a command. */
static const char *
devtools(struct browser *browser, const char *method, const char *params)
{
	char text[2048], answer_start[32];
	const char *message;
	size_t length;

	length = (size_t)snprintf(text, sizeof text, "{\"id\":%d,\"method\":\"%s\",\"params\":{%s}",
	                          ++browser->id, method, params);
	length += (size_t)snprintf(text + length, sizeof text - length,
	                           browser->session[0] != '\0' ? ",\"sessionId\":\"%s\"}" : "%s}",
	                           browser->session);
	cr_assert_lt(length, sizeof text);
	cr_assert_eq(write(browser->in, text, length + 1), (ssize_t)length + 1);
	snprintf(answer_start, sizeof answer_start, "{\"id\":%d,", browser->id);
	while (strncmp(message = next_message(browser), answer_start, strlen(answer_start)) != 0)
		keep_error(browser, message);
	cr_assert_null(strstr(message, "\"error\":{"), "%s: %s", text, message);
	return message;
}

/* Copy a string from the answer to a command. */
static void
take(const char *answer, const char *before, char *value, size_t size)
{
	const char *at = strstr(answer, before);

	cr_assert_not_null(at, "%s", answer);
	at += strlen(before);
	snprintf(value, size, "%.*s", (int)strcspn(at, "\""), at);
}

static void
open_page(struct browser *browser, const char *url)
{
	char target[64], params[256];

	browser->session[0] = '\0';
	take(devtools(browser, "Target.createTarget", "\"url\":\"about:blank\""), "\"targetId\":\"",
	     target, sizeof target);
	snprintf(params, sizeof params, "\"targetId\":\"%s\",\"flatten\":true", target);
	take(devtools(browser, "Target.attachToTarget", params), "\"sessionId\":\"",
	     browser->session, sizeof browser->session);
	devtools(browser, "Runtime.enable", "");
	devtools(browser, "Log.enable", "");
	snprintf(params, sizeof params, "\"url\":\"%s\"", url);
	devtools(browser, "Page.navigate", params);
}

static bool
is_true(struct browser *browser, const char *expression)
{
	char params[1024];

	snprintf(params, sizeof params, "\"expression\":\"%s\"", expression);
	return strstr(devtools(browser, "Runtime.evaluate", params), "\"value\":true") != NULL;
}

/* Wait until an expression of the page, without double quotes, is true. */
static void
expect_page(struct browser *browser, const char *expression)
{
	int64_t deadline = clutch_now() + 2 * time_limit();
	static char text[8192];

	while (!is_true(browser, expression)) {
		if (clutch_now() > deadline)
			snprintf(text, sizeof text, "%s",
			         devtools(browser, "Runtime.evaluate",
			                  "\"expression\":\"document.body.innerText\""));
		cr_assert(clutch_now() <= deadline, "never true: %s\n%s\n%s", expression, text,
		          browser->said);
		poll(NULL, 0, 20);
	}
}

static void
press(struct browser *browser, const char *label)
{
	char expression[256];

	snprintf(expression, sizeof expression,
	         "document.querySelector(`button[aria-label='%s']`).click(), true", label);
	cr_assert(is_true(browser, expression), "no button %s", label);
}

static void
end_browser(struct browser *browser)
{
	int status;

	browser->session[0] = '\0';
	devtools(browser, "Browser.close", "");
	close(browser->in), close(browser->out);
	cr_assert_eq(waitpid(browser->pid, &status, 0), browser->pid);
}

#define NAMES "[...document.querySelectorAll('.box h2')].map(e => e.firstChild.data).join()"
#define EVENTS "document.getElementById('events').innerText"

Test(live, the_page_in_chromium)
{
	static struct browser browser;
	struct page page;
	char url[128];

	if (system("command -v chromium >/dev/null") != 0) {
		fprintf(stderr, "there is no chromium: skipped\n");
		cr_skip_test("no chromium");
	}
	open_live(&page, "");
	start_browser(&browser);
	open_page(&browser, page.url);
	expect_page(&browser, NAMES " === 'parent,master,agent,app 0,app 1'");
	expect_page(&browser, "document.querySelectorAll('.listening').length === 4");
	expect_page(&browser, "document.querySelectorAll('#dots circle').length > 1");
	expect_page(&browser, "document.getElementById('log').innerText.includes('to stop it')");

	/* One of these apps feeds the page. */
	press(&browser, "kill -9 app 0");
	expect_page(&browser, "/app 0 has died, pid \\\\d+: SIGKILL/.test(" EVENTS ")");
	expect_page(&browser, "/app 0 is born, pid \\\\d+/.test(" EVENTS ")");
	press(&browser, "kill -9 app 1");
	expect_page(&browser, "/app 1 has died, pid \\\\d+: SIGKILL/.test(" EVENTS ")");
	expect_page(&browser, "/app 1 is born, pid \\\\d+/.test(" EVENTS ")");
	press(&browser, "Stop agent");
	expect_page(&browser, "document.querySelectorAll('.stopped').length === 1");
	press(&browser, "Continue agent");
	expect_page(&browser, "document.querySelectorAll('.stopped').length === 0");
	is_true(&browser, "document.getElementById('reload').click()");
	expect_page(&browser, "document.getElementById('log').innerText.includes('reload done')");

	is_true(&browser, "document.getElementById('language').click()");
	expect_page(&browser, "document.documentElement.lang === 'zh-CN' &&"
	                      "document.body.innerText.includes('\\u6682\\u505c')");
	devtools(&browser, "Emulation.setDeviceMetricsOverride",
	         "\"width\":360,\"height\":740,\"deviceScaleFactor\":1,\"mobile\":true");
	expect_page(&browser, "innerWidth === 360 && document.documentElement.scrollWidth <= 360");

	/* Without the token the page shows the cluster, and its buttons do nothing. */
	snprintf(url, sizeof url, "http://127.0.0.1:%d/", page.port);
	open_page(&browser, url);
	expect_page(&browser, NAMES " === 'parent,master,agent,app 0,app 1'");
	expect_page(&browser, "document.querySelectorAll('button:enabled').length === 1");
	cr_assert_str_eq(browser.said, "");
	end_browser(&browser);
	stop(&page.run);
}
