/*
 * The cache-refresh service and its data source, tested as two programs: started from the
 * command line, asked by HTTP, and killed.
 *
 * All processes of a program print into one pipe. Each of them holds the pipe open, so an
 * end of file says that no process is left.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "harness.h"
#include "redis_server.h"

#include <criterion/criterion.h>

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

TestSuite(refresh, .timeout = 120);

enum { WORKERS = 2 };

/* ---- programs --------------------------------------------------------------- */

struct program {
	struct program *next; /* the list of programs that have not ended */
	pid_t pid;
	int output; /* the pipe that the program prints into; -1: the program has ended */
	int port;
	size_t length;
	char text[128 * 1024];
};

/* "$BUILD/examples/NAME" */
static const char *
path_of(const char *name)
{
	static char path[512];
	const char *build = getenv("BUILD");

	snprintf(path, sizeof path, "%s/examples/%s", build != NULL ? build : "build", name);
	return path;
}

static struct program *programs;

/* A test that fails leaves programs: kill them. A master has printed its pid, and its
 * children exit when the master is dead. */
static void
kill_programs(void)
{
	struct program *program;
	const char *at;

	for (program = programs; program != NULL; program = program->next) {
		kill(program->pid, SIGKILL);
		for (at = program->text; (at = strstr(at, "or kill ")) != NULL;) {
			at += strlen("or kill ");
			kill(atoi(at), SIGKILL);
		}
	}
}

/* Start a program that prints into a pipe or has a pty as its terminal. It ends with the test. */
static struct program *
run(const char *const arguments[], bool in_terminal)
{
	struct program *program = calloc(1, sizeof *program);
	char *copy[12] = {NULL};
	pid_t test = getpid();
	int ends[2], i;

	cr_assert(program != NULL);
	clear_environment();
	if (in_terminal) {
		ends[0] = posix_openpt(O_RDWR | O_NOCTTY);
		cr_assert(ends[0] != -1 && grantpt(ends[0]) == 0 && unlockpt(ends[0]) == 0);
		ends[1] = open(ptsname(ends[0]), O_RDWR | O_NOCTTY);
		cr_assert(ends[1] != -1);
	} else
		cr_assert(pipe(ends) == 0);
	for (i = 0; arguments[i] != NULL; i++)
		cr_assert((copy[i] = strdup(arguments[i])) != NULL);
	fcntl(ends[0], F_SETFL, O_NONBLOCK);
	fcntl(ends[0], F_SETFD, FD_CLOEXEC);
	fflush(NULL);
	program->pid = fork();
	if (program->pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGTERM);
		setsid();
		if (in_terminal)
			ioctl(ends[1], TIOCSCTTY, 0);
		dup2(ends[1], 1);
		dup2(ends[1], 2);
		close(ends[1]);
		if (getppid() == test)
			execvp(copy[0], copy);
		_exit(127);
	}
	while (i > 0)
		free(copy[--i]);
	close(ends[1]);
	program->output = ends[0];
	if (programs == NULL)
		cr_assert(atexit(kill_programs) == 0);
	program->next = programs;
	programs = program;
	return program;
}

/* Read the program's output; wait a moment if there is none. */
static void
read_more(struct program *program)
{
	struct pollfd set = {program->output, POLLIN, 0};
	ssize_t n;

	poll(&set, 1, 5);
	n = read(program->output, program->text + program->length,
	         sizeof program->text - 1 - program->length);
	if (n > 0)
		program->length += (size_t)n;
	else if (n == 0 || (n == -1 && errno == EIO)) { /* EIO: the end of file of a pty */
		close(program->output);
		program->output = -1;
	}
}

/* Wait for a text behind `from`; returns the offset of its end. */
static size_t
expect_text(struct program *program, size_t from, const char *format, ...)
{
	int64_t deadline = clutch_now() + time_limit();
	char text[256], *found;
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(text, sizeof text, format, arguments);
	va_end(arguments);
	while ((found = strstr(program->text + from, text)) == NULL) {
		cr_assert(clutch_now() < deadline && program->output != -1,
		          "waited in vain for \"%s\" from %zu on in:\n%s", text, from,
		          program->text);
		read_more(program);
	}
	return (size_t)(found - program->text) + strlen(text);
}

static int
count_text(struct program *program, const char *text)
{
	const char *at = program->text;
	int count = 0;

	read_more(program);
	while ((at = strstr(at, text)) != NULL) {
		at++;
		count++;
	}
	return count;
}

/* Wait until no process of the program is left; returns its status, as waitpid(2) stores it. */
static int
wait_for_end(struct program *program)
{
	int64_t deadline = clutch_now() + time_limit();
	struct program **link = &programs;
	int status;

	while (program->output != -1) {
		cr_assert(clutch_now() < deadline, "the program does not end:\n%s", program->text);
		read_more(program);
	}
	cr_assert_eq(waitpid(program->pid, &status, 0), program->pid);
	while (*link != program)
		link = &(*link)->next;
	*link = program->next;
	cr_assert(strstr(program->text, "Sanitizer") == NULL, "%s", program->text);
	return status;
}

static void
expect_end(struct program *program, int code)
{
	int status = wait_for_end(program);

	cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == code, "status %#x:\n%s", status,
	          program->text);
	free(program);
}

static void
stop(struct program *program)
{
	kill(program->pid, SIGTERM);
	expect_end(program, 0);
}

/* The number behind the last place of a text in the output. */
static int
number_behind(const struct program *program, const char *text)
{
	const char *at, *last = NULL;

	for (at = program->text; (at = strstr(at, text)) != NULL; at++)
		last = at;
	cr_assert(last != NULL, "no \"%s\" in:\n%s", text, program->text);
	return atoi(last + strlen(text));
}

static struct program *
start_source(int port)
{
	char option[32], path[512];
	struct program *source;

	snprintf(path, sizeof path, "%s", path_of("source"));
	snprintf(option, sizeof option, "--port=%d", port);
	source = run((const char *[]){path, option, NULL}, false);
	expect_text(source, 0, "source started on http://127.0.0.1:");
	expect_text(source, 0, "to stop it");
	source->port = number_behind(source, "source started on http://127.0.0.1:");
	return source;
}

/* redis and cluster are whole options, or NULL. */
static struct program *
start_member(int source_port, const char *force, const char *pull, const char *redis,
             const char *cluster)
{
	char path[512], source[64], force_option[32], pull_option[32], workers[32];
	struct program *service;

	snprintf(path, sizeof path, "%s", path_of("refresh"));
	snprintf(source, sizeof source, "--source=http://127.0.0.1:%d/", source_port);
	snprintf(force_option, sizeof force_option, "--force=%s", force);
	snprintf(pull_option, sizeof pull_option, "--pull=%s", pull);
	snprintf(workers, sizeof workers, "--workers=%d", WORKERS);
	service = run((const char *[]){path, "--port=0", source, force_option, pull_option, workers,
	                               redis, cluster, NULL},
	              false);
	expect_text(service, 0, "refresh started on http://127.0.0.1:");
	expect_text(service, 0, "to stop it");
	service->port = number_behind(service, "refresh started on http://127.0.0.1:");
	return service;
}

static struct program *
start_service(int source_port, const char *force, const char *pull)
{
	return start_member(source_port, force, pull, NULL, NULL);
}

/* ---- HTTP --------------------------------------------------------------------- */

/* The answer to a request, or NULL if there is none. The text is valid until the next call. */
static const char *
ask_for(int port, const char *method, const char *path, const char *body)
{
	static char text[4096];
	char request[128];
	struct cluster server = {.port = port};
	int client = cluster_connect(&server);
	ssize_t n;
	size_t length = 0;

	snprintf(request, sizeof request, "%s %s HTTP/1.0\r\nContent-Length: %zu\r\n\r\n%s", method,
	         path, strlen(body), body);
	if (send(client, request, strlen(request), MSG_NOSIGNAL) == -1)
		length = 0;
	while ((n = recv(client, text + length, sizeof text - 1 - length, 0)) > 0)
		length += (size_t)n;
	text[length] = '\0';
	close(client);
	return length > 0 ? text : NULL;
}

static const char *
fetch(int port, const char *path)
{
	return ask_for(port, "GET", path, "");
}

static void
change(struct program *source, const char *how)
{
	const char *answer = ask_for(source->port, "POST", how, "");

	cr_assert(answer != NULL && strstr(answer, " 200 OK\r\n") != NULL);
}

/* Ask once; returns the pid of the app that has answered with this text, or 0. */
static int
ask(struct program *service, const char *text)
{
	const char *answer = fetch(service->port, "/");
	const char *pid = answer != NULL ? strstr(answer, "\"pid\":") : NULL;

	if (pid == NULL) /* the app has just been killed */
		return 0;
	return strstr(answer, text) != NULL ? atoi(pid + strlen("\"pid\":")) : 0;
}

/* Wait until every app has answered with this text. */
static void
expect_all(struct program *service, const char *text)
{
	int64_t deadline = clutch_now() + time_limit();
	int pids[WORKERS], count = 0, i, pid;

	while (count < WORKERS) {
		cr_assert(clutch_now() < deadline, "not all answer with %s: %s\n%s", text,
		          fetch(service->port, "/"), service->text);
		read_more(service);
		pid = ask(service, text);
		if (pid == 0)
			count = 0;
		for (i = 0; i < count && pids[i] != pid; i++)
			;
		if (i == count && pid != 0)
			pids[count++] = pid;
	}
}

/* ---- three ways -------------------------------------------------------------------- */

Test(refresh, the_first_load_is_by_force)
{
	struct program *source = start_source(0), *service;

	service = start_service(source->port, "1h", "1h");
	expect_all(service, "\r\n\r\n{\"index\":1,\"lastUpdateBy\":\"force\",\"pid\":");
	cr_assert(strstr(fetch(service->port, "/nowhere"), " 404 ") != NULL);
	stop(service);
	stop(source);
}

/* The source changes once, and only one way can notice the change: all apps get the new data.
 * The agent logs `pushes` changes: 1 if the way is push, else 0. */
static void
expect_way(const char *force, const char *pull, const char *how, const char *by, int pushes)
{
	struct program *source = start_source(0);
	struct program *service = start_service(source->port, force, pull);
	char expected[64];

	expect_text(service, 0, "listens to http://127.0.0.1:%d/\n", source->port);
	change(source, how);
	snprintf(expected, sizeof expected, "{\"index\":2,\"lastUpdateBy\":\"%s\",", by);
	expect_all(service, expected);
	cr_assert_eq(count_text(service, "has changed (push)"), pushes);
	stop(service);
	stop(source);
}

Test(refresh, push)
{
	expect_way("1h", "1h", "/change", "push", 1);
}

Test(refresh, pull)
{
	expect_way("1h", "100ms", "/change?quietly", "pull", 0);
}

Test(refresh, force)
{
	expect_way("200ms", "1h", "/change?quietly", "force", 0);
}

/* All three ways are in use: sooner or later each app has an update by each of them. */
Test(refresh, force_pull_and_push_in_turn)
{
	static const char *const ways[] = {"\"force\"", "\"pull\"", "\"push\""};
	struct program *source = start_source(0);
	struct program *service = start_service(source->port, "700ms", "150ms");
	int64_t deadline = clutch_now() + 2 * time_limit();
	int pids[WORKERS][3] = {{0}}, seen = 0, i, j, round, pid;

	for (round = 0; seen < WORKERS * 3; round++) {
		cr_assert(clutch_now() < deadline,
		          "not every app had an update by each of the three ways, only %d updates "
		          "were seen:\n%s",
		          seen, service->text);
		if (round % 40 == 0)
			change(source, round % 80 == 0 ? "/change" : "/change?quietly");
		for (i = 0; i < 3; i++) {
			pid = ask(service, ways[i]);
			for (j = 0; j < WORKERS && pids[j][i] != 0 && pids[j][i] != pid; j++)
				;
			if (pid == 0 || j == WORKERS || pids[j][i] == pid)
				continue;
			pids[j][i] = pid;
			seen++;
		}
		read_more(service);
	}
	stop(service);
	stop(source);
}

/* ---- what goes wrong ------------------------------------------------------------------ */

#define GONE "no push from "

/* The apps go on serving the cache, even an app that was forked after the source died. Later
 * all recovers without help. One line reports the loss, and one line the recovery. */
Test(refresh, the_source_is_killed_and_restarted)
{
	struct program *source = start_source(0);
	struct program *service = start_service(source->port, "300ms", "100ms");
	int port = source->port, status;

	expect_text(service, 0, "listens to");
	change(source, "/change");
	expect_all(service, "{\"index\":2,");
	kill(source->pid, SIGKILL);
	status = wait_for_end(source);
	cr_assert(WIFSIGNALED(status));
	free(source);
	expect_text(service, 0, GONE);
	kill(number_behind(service, "app_worker#1:"), SIGKILL);
	expect_text(service, 0, "app_worker#%d:", WORKERS + 1);
	expect_text(service, 0, "remain 0 (");
	expect_all(service, " 200 OK\r\n");
	expect_all(service, "{\"index\":2,");
	source = start_source(port);
	expect_text(service, 0, "listens to http://127.0.0.1:%d/ again\n", port);
	expect_all(service, "{\"index\":1,");
	change(source, "/change");
	expect_all(service, "{\"index\":2,");
	cr_assert_eq(count_text(service, GONE), 1, "%s", service->text);
	cr_assert_eq(count_text(service, " again\n"), 1, "%s", service->text);
	stop(service);
	stop(source);
}

/* The service starts without data, and answers with 503 until it has some. */
Test(refresh, the_source_is_not_there_yet)
{
	struct program *source = start_source(0), *service;
	int port = source->port;

	stop(source);
	service = start_service(port, "1h", "1h");
	expect_all(service, " 503 Service Unavailable\r\n");
	expect_all(service, "{\"error\":\"the source has not answered yet\",\"pid\":");
	cr_assert_eq(count_text(service, GONE), 1, "%s", service->text);
	cr_assert_eq(count_text(service, "/ (Connection refused); force and pull go on\n"), 1);
	source = start_source(port);
	expect_all(service, "{\"index\":1,\"lastUpdateBy\":\"force\",");
	expect_text(service, 0, " again\n");
	change(source, "/change");
	expect_all(service, "{\"index\":2,\"lastUpdateBy\":\"push\",");
	stop(service);
	stop(source);
}

/* Another program listens on the source's port. */
Test(refresh, a_source_that_talks_nonsense)
{
	struct program *source = start_source(0), *other, *service;

	other = start_service(source->port, "1h", "1h"); /* it has no /data */
	service = start_service(other->port, "200ms", "100ms");
	expect_text(service, 0, GONE "http://127.0.0.1:%d/ (it refuses)", other->port);
	expect_all(service, " 503 ");
	cr_assert_eq(count_text(service, GONE), 1, "%s", service->text);
	stop(service);
	stop(other);
	stop(source);
}

/* A source in a child of the test: it answers /push and /data with the texts given here. */
struct fake {
	pid_t pid;
	int port;
	struct {
		const char *push, *data; /* NULL: no answer, but the connection stays open */
		bool hangs_up;           /* it closes after the answer to /push */
		int pushes;              /* requests for /push */
	} * shared;
};

static void
fake_answer(const struct fake *fake, int client)
{
	char request[1024] = "";
	size_t length = 0;
	ssize_t n = 1;
	bool is_push;
	const char *text;

	while (n > 0 && strstr(request, "\r\n\r\n") == NULL) {
		n = recv(client, request + length, sizeof request - 1 - length, 0);
		length += n > 0 ? (size_t)n : 0;
	}
	is_push = strncmp(request, "GET /push ", 10) == 0;
	fake->shared->pushes += is_push;
	text = is_push ? fake->shared->push : fake->shared->data;
	if (text == NULL || send(client, text, strlen(text), MSG_NOSIGNAL) == -1)
		return;
	if (!is_push || fake->shared->hangs_up)
		close(client);
}

static void
fake_start(struct fake *fake, const char *push, bool hangs_up, const char *data)
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	socklen_t size = sizeof address;
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	pid_t test = getpid();

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	cr_assert(bind(listener, (struct sockaddr *)&address, size) == 0 &&
	          listen(listener, 16) == 0 &&
	          getsockname(listener, (struct sockaddr *)&address, &size) == 0);
	fake->port = ntohs(address.sin_port);
	fake->shared = mmap(NULL, sizeof *fake->shared, PROT_READ | PROT_WRITE,
	                    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	cr_assert(fake->shared != MAP_FAILED);
	fake->shared->push = push;
	fake->shared->hangs_up = hangs_up;
	fake->shared->data = data;
	fake->pid = fork();
	cr_assert(fake->pid != -1);
	if (fake->pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		while (getppid() == test)
			fake_answer(fake, accept(listener, NULL, NULL));
		_exit(0);
	}
	close(listener);
}

static void
fake_stop(struct fake *fake)
{
	kill(fake->pid, SIGKILL);
	cr_assert_eq(waitpid(fake->pid, NULL, 0), fake->pid);
	munmap(fake->shared, sizeof *fake->shared);
}

#define INDEX "HTTP/1.1 200 OK\r\n\r\n{\"index\":7}\n"

/* A stream that ends at once is no success: the pauses grow, and only one line reports the loss.
 * The five pauses between six streams are 0.1, 0.2, 0.4, 0.8 and 1.6 s. */
Test(refresh, a_source_that_hangs_up_after_each_line)
{
	struct program *service;
	struct fake fake;
	int64_t began = clutch_now();

	fake_start(&fake, INDEX, true, INDEX);
	service = start_service(fake.port, "1h", "1h");
	while (fake.shared->pushes < 6) {
		cr_assert(clutch_now() - began < time_limit(), "%s", service->text);
		read_more(service);
	}
	cr_assert_geq(clutch_now() - began, 3000);
	cr_assert_eq(count_text(service, "listens to"), 1, "%s", service->text);
	cr_assert_eq(count_text(service, GONE), 1, "%s", service->text);
	cr_assert_eq(count_text(service, " (it has hung up); "), 1, "%s", service->text);
	stop(service);
	fake_stop(&fake);
}

/* Push works, but the data does not come: each app logs the failure once, and its end once. */
static void
expect_no_data(const char *data, const char *why)
{
	struct program *service;
	struct fake fake;
	char line[128];
	int i;
	size_t at = 0;

	fake_start(&fake, INDEX, false, data);
	service = start_service(fake.port, "200ms", "1h");
	snprintf(line, sizeof line, ": cannot load the data (%s); it asks the other apps\n", why);
	for (i = 0; i < WORKERS; i++)
		at = expect_text(service, at, "%s", line);
	expect_all(service, " 503 ");
	fake.shared->data = INDEX;
	for (i = 0, at = 0; i < WORKERS; i++)
		at = expect_text(service, at, ": has loaded the data\n");
	expect_all(service, "{\"index\":7,");
	cr_assert_eq(count_text(service, "cannot load"), WORKERS, "%s", service->text);
	cr_assert_eq(count_text(service, GONE), 0, "%s", service->text);
	fake.shared->data = "HTTP/1.1 200 OK\r\n\r\nnonsense";
	for (i = 0, at = 0; i < WORKERS; i++)
		at = expect_text(service, at,
		                 ": cannot load the data (there is no index in it); "
		                 "it serves what it has\n");
	expect_all(service, "{\"index\":7,");
	stop(service);
	fake_stop(&fake);
}

Test(refresh, a_source_whose_data_is_an_error)
{
	expect_no_data("HTTP/1.1 500 Oh\r\n\r\n", "status 500");
}

Test(refresh, a_source_whose_data_does_not_come)
{
	expect_no_data(NULL, "it takes too long");
}

Test(refresh, an_app_is_killed)
{
	struct program *source = start_source(0);
	struct program *service = start_service(source->port, "1h", "1h");

	expect_text(service, 0, "listens to");
	change(source, "/change");
	expect_all(service, "{\"index\":2,\"lastUpdateBy\":\"push\",");
	kill(number_behind(service, "app_worker#1:"), SIGKILL);
	expect_text(service, 0, "app_worker#%d:", WORKERS + 1);
	expect_all(service, "{\"index\":2,");
	change(source, "/change");
	expect_all(service, "{\"index\":3,\"lastUpdateBy\":\"push\",");
	stop(service);
	stop(source);
}

Test(refresh, the_agent_is_killed)
{
	struct program *source = start_source(0);
	struct program *service = start_service(source->port, "1h", "1h");
	int agent;
	size_t at;

	expect_text(service, 0, "listens to");
	agent = number_behind(service, "agent_worker#1:");
	kill(agent, SIGKILL);
	at = expect_text(service, 0, "agent_worker#2:");
	agent = atoi(service->text + at);
	expect_text(service, 0, "agent %d: listens to http://127.0.0.1:%d/\n", agent, source->port);
	change(source, "/change");
	expect_all(service, "{\"index\":2,\"lastUpdateBy\":\"push\",");
	stop(service);
	stop(source);
}

/* ---- two machines ------------------------------------------------------------------------- */

/* Two clusters, each with its own source. B's source announces no change, so only a message
 * from A can refresh B. */
struct machines {
	struct server redis;
	struct program *source_a, *source_b, *a, *b;
	int index; /* of both sources */
};

static void
machines_start(struct machines *machines, const char *pull_of_a)
{
	char option[128];

	server_start(&machines->redis, NULL);
	snprintf(option, sizeof option, "--redis=%s", machines->redis.url);
	machines->source_a = start_source(0);
	machines->source_b = start_source(0);
	machines->a =
		start_member(machines->source_a->port, "1h", pull_of_a, option, "--cluster=a");
	machines->b = start_member(machines->source_b->port, "1h", "1h", option, "--cluster=b");
	machines->index = 1;
	expect_text(machines->a, 0, "listens to");
	expect_all(machines->a, "{\"index\":1,\"lastUpdateBy\":\"force\",");
	expect_all(machines->b, "{\"index\":1,\"lastUpdateBy\":\"force\",");
}

static void
machines_change(struct machines *machines, const char *how)
{
	change(machines->source_b, "/change?quietly");
	change(machines->source_a, how);
	machines->index++;
}

static void
machines_expect(struct machines *machines, struct program *service, const char *by)
{
	char text[64];

	snprintf(text, sizeof text, "{\"index\":%d,\"lastUpdateBy\":\"%s\",", machines->index, by);
	expect_all(service, text);
}

/* Change the data until B has heard of a change: no line of the log says when B is connected. */
static void
machines_meet(struct machines *machines, const char *how, const char *by)
{
	int64_t deadline = clutch_now() + 2 * time_limit(), next;
	char text[64];

	do {
		cr_assert(clutch_now() < deadline, "the machines do not meet. A:\n%s\nB:\n%s",
		          machines->a->text, machines->b->text);
		machines_change(machines, how);
		snprintf(text, sizeof text, "{\"index\":%d,\"lastUpdateBy\":\"%s\",",
		         machines->index, by);
		next = clutch_now() + 500;
		while (ask(machines->b, text) == 0 && clutch_now() < next) {
			read_more(machines->a);
			read_more(machines->b);
		}
	} while (ask(machines->b, text) == 0);
}

static void
machines_stop(struct machines *machines)
{
	stop(machines->a);
	stop(machines->b);
	stop(machines->source_a);
	stop(machines->source_b);
}

/* A change that one machine notices reaches all apps of both machines. */
static void
expect_news(const char *pull_of_a, const char *how, const char *by)
{
	struct machines machines;

	skip_without_redis();
	machines_start(&machines, pull_of_a);
	machines_meet(&machines, how, by); /* A publishes the change */
	machines_expect(&machines, machines.a, by);
	machines_expect(&machines, machines.b, by);
	cr_assert_eq(count_text(machines.b, "has changed"), 0, "%s", machines.b->text);
	machines_stop(&machines);
	server_end(&machines.redis, SIGTERM);
}

Test(refresh, a_push_to_one_machine_refreshes_the_other)
{
	expect_news("1h", "/change", "push");
}

Test(refresh, a_pull_by_one_machine_refreshes_the_other)
{
	expect_news("100ms", "/change?quietly", "pull");
}

/* Without Redis each cluster goes on alone; with Redis again, A's changes reach B again. */
Test(refresh, redis_is_killed_and_restarted)
{
	struct machines machines;

	skip_without_redis();
	machines_start(&machines, "1h");
	machines_meet(&machines, "/change", "push");
	server_end(&machines.redis, SIGKILL);
	expect_text(machines.a, 0, "[bridge] refresh: ");
	machines_change(&machines, "/change");
	machines_expect(&machines, machines.a, "push");
	machines.index--;
	machines_expect(&machines, machines.b, "push"); /* B has not heard of the change */
	machines.index++;
	server_start(&machines.redis, NULL);
	machines_meet(&machines, "/change", "push");
	machines_expect(&machines, machines.b, "push");
	machines_stop(&machines);
	server_end(&machines.redis, SIGTERM);
}

/* The service works without Redis, too. */
Test(refresh, redis_is_not_there)
{
	struct program *source = start_source(0), *service;
	char option[300];

	snprintf(option, sizeof option, "--redis=unix://%s/nobody", test_folder());
	service = start_member(source->port, "1h", "1h", option, NULL);
	expect_text(service, 0, "listens to");
	change(source, "/change");
	expect_all(service, "{\"index\":2,\"lastUpdateBy\":\"push\",");
	stop(service);
	stop(source);
}

/* ---- the source -------------------------------------------------------------------------- */

Test(refresh, the_source_changes_by_itself_and_loses_every_second_notice)
{
	char path[512];
	struct program *source;
	size_t at;

	snprintf(path, sizeof path, "%s", path_of("source"));
	source = run((const char *[]){path, "--port=0", "--every=1", "--lose=2", NULL}, false);
	at = expect_text(source, 0, "source: the data is 2 now\n");
	expect_text(source, at, "source: the data is 3 now, but the notice is lost\n");
	stop(source);
}

Test(refresh, the_source_has_its_pages)
{
	struct program *source = start_source(0);

	cr_assert(strstr(fetch(source->port, "/data"), "\r\n\r\n{\"index\":1}\n") != NULL);
	cr_assert(strstr(fetch(source->port, "/check"), "\r\n\r\n{\"index\":1}\n") != NULL);
	cr_assert(strstr(fetch(source->port, "/"), " 404 ") != NULL);
	change(source, "/change?quietly");
	cr_assert(strstr(fetch(source->port, "/data"), "\r\n\r\n{\"index\":2}\n") != NULL);
	cr_assert(strstr(ask_for(source->port, "POST", "/change", "42"), "{\"index\":42}\n") !=
	          NULL);
	cr_assert(strstr(ask_for(source->port, "POST", "/change", "4x"), " 400 ") != NULL);
	cr_assert(strstr(ask_for(source->port, "POST", "/change", "1234567890"), " 400 ") != NULL);
	cr_assert(strstr(ask_for(source->port, "POST", "/data", "1"), " 405 ") != NULL);
	cr_assert(strstr(fetch(source->port, "/change"), "\r\nAllow: POST\r\n") != NULL);
	cr_assert(strstr(fetch(source->port, "/data"), "{\"index\":42}\n") != NULL);
	stop(source);
}

/* ---- the command line --------------------------------------------------------------------- */

static void
expect_usage(const char *name, const char *argument, int code, const char *message)
{
	char path[512], option[2048];
	struct program *program;

	snprintf(path, sizeof path, "%s", path_of(name));
	snprintf(option, sizeof option, "%s", argument);
	program = run((const char *[]){path, option, "--port=0", NULL}, false);
	expect_text(program, 0, "%s", message);
	expect_end(program, code);
}

Test(refresh, a_wrong_command_line_is_one_clear_line)
{
	static const struct {
		const char *argument, *message;
	} refresh[] = {
		{"--nonsense", "unknown option --nonsense (see refresh --help)"},
		{"--forced=1s", "unknown option --forced=1s (see refresh --help)"},
		{"-force=1s", "unknown option -force=1s (see refresh --help)"},
		{"refresh", "unknown command refresh (see refresh --help)"},
		{"--port=65536", "--port=65536: give a number from 0 to 65535"},
		{"--source=https://127.0.0.1", "--source=https://127.0.0.1: give http://"},
		{"--source=nobody", "--source=nobody: give http://"},
		{"--source=", "--source wants a value"},
		{"--pull=", "--pull wants a value"},
		{"--redis=", "--redis wants a value"},
	};
	static const char *const source[] = {"--nonsense", "--port=65536", "--every=x",
	                                     "--lose=", "x"};
	char message[128];
	size_t i;

	for (i = 0; i < sizeof refresh / sizeof refresh[0]; i++) {
		snprintf(message, sizeof message, "refresh: %s", refresh[i].message);
		expect_usage("refresh", refresh[i].argument, 64, message);
	}
	for (i = 0; i < sizeof source / sizeof source[0]; i++) {
		snprintf(message, sizeof message, "source: %s? It takes --port=", source[i]);
		expect_usage("source", source[i], 64, message);
	}
	expect_usage("refresh", "--force=often", 1, "often");
	expect_usage("refresh", "--pull=never", 1, "pull_refresh");
	expect_usage("refresh", "--redis=http://127.0.0.1", 1, "refresh: --redis wants redis://");
}

Test(refresh, help_has_both_kinds_of_options)
{
	struct program *help = run((const char *[]){path_of("refresh"), "--help", NULL}, false);
	size_t at = expect_text(help, 0, "usage: refresh [start | stop | status | reload]");

	at = expect_text(help, at, "--workers=N");
	at = expect_text(help, at, "--source=URL");
	expect_text(help, at, "--pull=TIME");
	expect_end(help, 0);
}

/* An option's value may be the next word. The last option has no next word: that is an error. */
Test(refresh, an_option_in_two_words)
{
	struct program *program;

	program = run((const char *[]){path_of("refresh"), "--force", "often", "--port", "0", NULL},
	              false);
	expect_text(program, 0, "force_refresh");
	expect_end(program, 1);
	program = run((const char *[]){path_of("refresh"), "--port=0", "--pull", NULL}, false);
	expect_text(program, 0, "refresh: --pull wants a value\n");
	expect_end(program, 64);
}

/* ---- in the background ----------------------------------------------------------------------- */

/* Run a command to its end. Returns the number that the command prints behind `text`. */
static int
command(const char *text, const char *const arguments[])
{
	struct program *program = run(arguments, false);
	int number;

	expect_text(program, 0, "%s", text);
	while (program->output != -1)
		read_more(program);
	number = number_behind(program, text);
	expect_end(program, 0);
	return number;
}

Test(refresh, as_a_daemon_it_is_looked_at_reloaded_and_stopped)
{
	struct program *source = start_source(0), service = {.port = 0};
	char path[512], from[64], pid_file[300], output[300], leashed[32];
	int leash = test_leash(); /* no process outlives the test */

	snprintf(path, sizeof path, "%s", path_of("refresh"));
	snprintf(from, sizeof from, "--source=http://127.0.0.1:%d", source->port);
	snprintf(pid_file, sizeof pid_file, "--pid-file=%s/pid", test_folder());
	snprintf(output, sizeof output, "--stdout=%s/log", test_folder());
	snprintf(leashed, sizeof leashed, "--stderr=/dev/fd/%d", leash); /* inherited */
	service.port = command("refresh: started on http://127.0.0.1:",
	                       (const char *[]){path, "start", "--daemon", "--workers=2",
	                                        "--port=0", from, pid_file, output, leashed, NULL});
	cr_assert(ask(&service, "{\"index\":1,\"lastUpdateBy\":\"force\",") > 0);
	cr_assert_gt(command("\napp       1 ", (const char *[]){path, "status", pid_file, NULL}),
	             0);
	cr_assert_eq(command("refresh: reloaded ",
	                     (const char *[]){path, "reload", from, pid_file, NULL}),
	             2);
	cr_assert(ask(&service, "{\"index\":1,\"lastUpdateBy\":\"force\",") > 0);
	command("refresh: stopped (", (const char *[]){path, "stop", pid_file, NULL});
	close(leash);
	stop(source);
}

/* ---- make run -------------------------------------------------------------------------------- */

/* Start "make run", or the script that it runs, and wait until service and source work. */
static struct program *
run_both(bool by_make)
{
	struct program *both;
	char port[16], build[512];

	clear_environment();
	snprintf(port, sizeof port, "%d", test_free_port());
	setenv("SOURCE_PORT", port, 1);
	snprintf(port, sizeof port, "%d", test_free_port());
	setenv("PORT", port, 1);
	setenv("EGG_WORKERS", "2", 1);
	unsetenv("MAKEFLAGS"); /* the make that runs the tests has set them */
	unsetenv("MAKELEVEL");
	snprintf(build, sizeof build, "BUILD=%.*s", (int)(strlen(path_of("")) - 10), path_of(""));
	if (by_make)
		both = run((const char *[]){"make", "-s", "run", build, NULL}, true);
	else
		both = run((const char *[]){"sh", "examples/run", NULL}, true);
	expect_text(both, 0, "refresh started on http://127.0.0.1:%s ", port);
	expect_text(both, 0, "source started on http://127.0.0.1:%s ", getenv("SOURCE_PORT"));
	both->port = atoi(port);
	expect_all(both, "{\"index\":1,");
	return both;
}

/* Returns the status of the shell, or of make. */
static int
wait_for_both(struct program *both)
{
	expect_text(both, expect_text(both, 0, "[master] exit with code:0"),
	            "[master] exit with code:0");
	return wait_for_end(both);
}

static void
expect_both_end(struct program *both)
{
	int status = wait_for_both(both);

	cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %#x:\n%s", status,
	          both->text);
	free(both);
}

Test(refresh, ctrl_c_at_make_run_leaves_nobody)
{
	struct program *both = run_both(true);
	int status;

	cr_assert_eq(write(both->output, "\003", 1), 1);
	status = wait_for_both(both); /* some makes die of SIGINT */
	cr_assert(WIFEXITED(status) || WTERMSIG(status) == SIGINT, "status %#x", status);
	free(both);
}

Test(refresh, sigterm_to_make_leaves_nobody)
{
	struct program *both = run_both(true);

	kill(both->pid, SIGTERM);
	wait_for_both(both);
	free(both);
}

Test(refresh, sigterm_to_the_shell_ends_both)
{
	struct program *both = run_both(false);

	kill(both->pid, SIGTERM);
	expect_both_end(both);
}

/* The source ends with the service, for whatever reason the service ends. */
Test(refresh, the_service_ends_and_so_does_its_source)
{
	struct program *both = run_both(false);
	const char *at = strstr(both->text, "[master] refresh started on");

	at = strstr(at, "or kill ");
	cr_assert(at != NULL);
	kill(atoi(at + strlen("or kill ")), SIGTERM);
	expect_both_end(both);
}

/* ---- make run: both, or none ----------------------------------------------------- */

Test(refresh, where_the_source_s_port_is_taken_neither_starts)
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	socklen_t size = sizeof address;
	int taken = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct program *both;
	char port[16];

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	cr_assert(bind(taken, (struct sockaddr *)&address, size) == 0 && listen(taken, 1) == 0);
	cr_assert(getsockname(taken, (struct sockaddr *)&address, &size) == 0);
	clear_environment();
	snprintf(port, sizeof port, "%d", ntohs(address.sin_port));
	setenv("SOURCE_PORT", port, 1);
	both = run((const char *[]){"sh", "examples/run", "--port=0", NULL}, false);
	expect_text(both, 0, "SOURCE_PORT=NUMBER gives the source another port.\n");
	cr_assert_eq(count_text(both, "127.0.0.1 port "), 1);
	cr_assert_eq(count_text(both, "started"), 1, "%s", both->text); /* in the error message */
	expect_end(both, 1);
	close(taken);
}

/* Write a program that takes the place of one in examples/. */
static void
write_program(const char *name, const char *script)
{
	char path[512];
	FILE *file;

	snprintf(path, sizeof path, "%s/examples", test_folder());
	mkdir(path, 0700);
	snprintf(path, sizeof path, "%s/examples/%s", test_folder(), name);
	file = fopen(path, "w");
	cr_assert(file != NULL);
	cr_assert(fprintf(file, "#!/bin/sh\n%s\n", script) > 0 && fclose(file) == 0 &&
	          chmod(path, 0700) == 0);
}

/* The source never answers, and a signal comes meanwhile. */
Test(refresh, a_signal_before_the_source_answers_ends_it_and_starts_nothing)
{
	struct program *both;
	int status;

	write_program("source", "echo loading\nexec tail -f /dev/null");
	write_program("refresh", "echo the service has started");
	setenv("BUILD", test_folder(), 1);
	both = run((const char *[]){"sh", "examples/run", NULL}, false);
	expect_text(both, 0, "loading\n");
	kill(both->pid, SIGTERM);
	status = wait_for_end(both);
	cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 128 + SIGTERM, "%#x", status);
	cr_assert(strstr(both->text, "the service has started") == NULL, "%s", both->text);
	free(both);
}

Test(refresh, a_source_that_ends_before_it_answers_is_a_failure)
{
	struct program *both;

	write_program("source", "exit 0");
	write_program("refresh", "echo the service has started");
	setenv("BUILD", test_folder(), 1);
	both = run((const char *[]){"sh", "examples/run", NULL}, false);
	expect_text(both, 0, "examples/run: the source cannot start");
	cr_assert_eq(count_text(both, "the service has started"), 0);
	expect_end(both, 1);
}

Test(refresh, a_descriptor_that_is_not_open_cannot_be_told)
{
	char path[512];
	struct program *source;

	snprintf(path, sizeof path, "%s", path_of("source"));
	source = run((const char *[]){path, "--port=0", "--ready=99", NULL}, false);
	expect_text(source, 0, "source: --ready=99: no such descriptor is open\n");
	expect_end(source, 64);
}
