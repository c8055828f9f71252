/*
 * The four ways of examples/ipc, run as a user runs them: their lines and their exit
 * status. They leave nothing behind: no process (each holds the pipe, which is read to
 * its end), and no file (TMPDIR is the test's folder).
 *
 * RSMQ in C is compared with the keys of npm rsmq, and with npm rsmq itself.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "harness.h"
#include "redis/redis.h"
#include "redis_server.h"

#include <criterion/criterion.h>

#include <arpa/inet.h>
#include <dirent.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

TestSuite(ipc, .timeout = 120);

/* ---- a program ----------------------------------------------------------- */

struct program {
	pid_t pid;
	int pipe;
	char text[64 * 1024]; /* the output of the program and its children */
	size_t length;
	int status;
};

static char *
path_of(const char *name)
{
	static char path[256];
	const char *build = getenv("BUILD");

	snprintf(path, sizeof path, "%s/examples/ipc/%s", build != NULL ? build : "build", name);
	return path;
}

/* If set, a program is started with this TMPDIR instead of the test's folder; without stdin. */
static const char *temp;
static bool stdin_closed;

/* Start a program in a process group of its own, so that no process outlives a failed test. */
static struct program *
start(const char *path, const char *const arguments[])
{
	struct program *program = calloc(1, sizeof *program);
	const char *argv[16] = {path};
	int ends[2], i;

	cr_assert(pipe(ends) == 0);
	for (i = 0; arguments[i] != NULL; i++)
		argv[i + 1] = arguments[i];
	setenv("TMPDIR", temp != NULL ? temp : test_folder(), 1);
	program->pid = fork();
	cr_assert(program->pid != -1);
	if (program->pid == 0) {
		setpgid(0, 0);
		prctl(PR_SET_PDEATHSIG, SIGKILL); /* a test that fails kills nothing */
		dup2(ends[1], STDOUT_FILENO);
		dup2(ends[1], STDERR_FILENO);
		close(ends[0]), close(ends[1]);
		if (stdin_closed)
			close(STDIN_FILENO);
		execvp(path, (char *const *)(uintptr_t)argv);
		_exit(127);
	}
	setpgid(program->pid, program->pid);
	close(ends[1]);
	program->pipe = ends[0];
	return program;
}

static void
give_up(struct program *program, const char *why)
{
	kill(-program->pid, SIGKILL);
	cr_assert(false, "waited in vain for %s; the program printed:\n%s", why, program->text);
}

/* Read once; false: no process holds the pipe any more. */
static bool
hear(struct program *program)
{
	struct pollfd wait = {.fd = program->pipe, .events = POLLIN};
	ssize_t count;

	if (poll(&wait, 1, 3 * time_limit()) != 1)
		give_up(program, "a further line");
	count = read(program->pipe, program->text + program->length,
	             sizeof program->text - 1 - program->length);
	if (count > 0)
		program->length += (size_t)count;
	return count > 0;
}

static void
wait_for_line(struct program *program, const char *line)
{
	while (strstr(program->text, line) == NULL)
		if (!hear(program))
			give_up(program, line);
}

/* Wait for the end of the program and its children. Returns its status as waitpid(2) has it. */
static int
end(struct program *program)
{
	while (hear(program))
		;
	cr_assert(waitpid(program->pid, &program->status, 0) == program->pid);
	close(program->pipe);
	return program->status;
}

static struct program *
run(const char *path, const char *const arguments[])
{
	struct program *program = start(path, arguments);

	end(program);
	return program;
}

#define RUN(name, ...) run(path_of(name), (const char *const[]){__VA_ARGS__})
#define START(name, ...) start(path_of(name), (const char *const[]){__VA_ARGS__})

static bool
left(const struct program *program, int code)
{
	return WIFEXITED(program->status) && WEXITSTATUS(program->status) == code;
}

static const char *
test_path(const char *name)
{
	static char path[128];

	snprintf(path, sizeof path, "%s/%s", test_folder(), name);
	return path;
}

static int
files_left(void)
{
	struct dirent *entry;
	DIR *folder = opendir(test_folder());
	int count = 0;

	while ((entry = readdir(folder)) != NULL)
		count += strncmp(entry->d_name, "clutch-", 7) == 0;
	closedir(folder);
	return count;
}

/* The program prints one line on stderr, exits with `code`, and leaves nothing behind. */
static void
expect_refusal(struct program *program, int code, const char *beginning)
{
	cr_expect(left(program, code), "status 0x%x:\n%s", (unsigned)program->status,
	          program->text);
	cr_expect(strncmp(program->text, beginning, strlen(beginning)) == 0, "%s", program->text);
	cr_expect(program->length > 0 &&
	                  strchr(program->text, '\n') == program->text + program->length - 1,
	          "not one line:\n%s", program->text);
	cr_expect(files_left() == 0);
	free(program);
}

/* The lines with this beginning, without the beginning and the blanks behind it. */
static char *
lines_of(const struct program *program, const char *beginning)
{
	static char lines[64 * 1024];
	char copy[64 * 1024], *line, *rest = copy;
	size_t used = 0;

	memcpy(copy, program->text, program->length + 1);
	lines[0] = '\0';
	while ((line = strtok_r(rest, "\n", &rest)) != NULL) {
		if (strncmp(line, beginning, strlen(beginning)) != 0)
			continue;
		line += strlen(beginning);
		line += strspn(line, " ");
		used += (size_t)snprintf(lines + used, sizeof lines - used, "%s\n", line);
	}
	return lines;
}

static size_t
count_of(const struct program *program, const char *text)
{
	const char *at = program->text;
	size_t count = 0;

	while ((at = strstr(at, text)) != NULL) {
		at += strlen(text);
		count++;
	}
	return count;
}

/* ---- stdio --------------------------------------------------------------- */

static const char stdio_story[] =
	"parent hears     {\"hello\":\"parent\",\"version\":1}\n"
	"parent says      {\"id\":1,\"add\":[2,3]}\n"
	"parent hears     {\"id\":1,\"sum\":5}\n"
	"parent says      {\"id\":2,\"debug\":7}\n"
	"parent refuses   debug: a is 7   (no object: its stdout is our channel)\n"
	"parent hears     {\"id\":2,\"debugged\":7}\n"
	"parent says      {\"id\":3,\"halves\":3}\n"
	"parent keeps     {\"id\":3,\"hal   (half a line)\n"
	"parent says      {\"go\":\"on\"}\n"
	"parent hears     {\"id\":3,\"halves\":3}\n"
	"parent says      {\"id\":4,\"halves\":4}\n"
	"parent keeps     {\"id\":4,\"hal   (half a line)\n"
	"parent drops     {\"id\":4,\"hal   (the end, and no end of line)\n"
	"parent reaps     a child killed by signal 9\n"
	"parent says      {\"id\":4,\"halves\":4}\n"
	"parent is told   EPIPE: nobody will ever read this\n"
	"parent hears     {\"hello\":\"parent\",\"version\":1}\n"
	"parent says      {\"id\":4,\"halves\":4}\n"
	"parent keeps     {\"id\":4,\"hal   (half a line)\n"
	"parent says      {\"go\":\"on\"}\n"
	"parent hears     {\"id\":4,\"halves\":4}\n"
	"parent reaps     a child that left with 0\n";

Test(ipc, stdio_half_a_line_waits_for_its_end_and_a_dead_child_is_asked_no_more)
{
	struct program *program = RUN("stdio", NULL);

	cr_assert(left(program, 0), "status 0x%x:\n%s", (unsigned)program->status, program->text);
	cr_assert_str_eq(program->text, stdio_story);
	free(program);
}

/* Without stdin, a pipe could become descriptor 0. */
Test(ipc, stdio_runs_where_stdin_is_closed)
{
	struct program *program;

	stdin_closed = true;
	program = RUN("stdio", NULL);
	cr_assert(left(program, 0), "status 0x%x:\n%s", (unsigned)program->status, program->text);
	cr_assert_str_eq(program->text, stdio_story);
	free(program);
}

Test(ipc, arguments_that_nobody_asked_for_are_one_line_and_64)
{
	expect_refusal(RUN("stdio", "x", NULL), 64, "stdio: x: ");
	expect_refusal(RUN("native", "x", NULL), 64, "native: x: ");
	expect_refusal(RUN("socket", "x", NULL), 64, "usage: socket ");
	expect_refusal(RUN("socket", "", NULL), 64, "usage: socket ");
	expect_refusal(RUN("socket", "0", NULL), 64, "usage: socket ");
	expect_refusal(RUN("socket", "60001", NULL), 64, "usage: socket ");
	expect_refusal(RUN("socket", "20", "20", NULL), 64, "usage: socket ");
	expect_refusal(RUN("socket", "world", "0", NULL), 64, "usage: socket ");
	expect_refusal(RUN("socket", "world", "65536", NULL), 64, "usage: socket ");
	expect_refusal(RUN("socket", "world", "8000x", NULL), 64, "usage: socket ");
	expect_refusal(RUN("socket", "world", "8000", "x", NULL), 64, "usage: socket ");
	expect_refusal(RUN("queue", "x", NULL), 64, "usage: queue ");
	expect_refusal(RUN("queue", "gopher://x", NULL), 64, "queue: gopher://x: ");
	expect_refusal(RUN("queue", "unix:///x", "y", NULL), 64, "usage: queue ");
	expect_refusal(RUN("rsmq_call", NULL), 64, "usage: rsmq_call ");
	expect_refusal(RUN("rsmq_call", "unix:///x", "shout", "q", NULL), 64, "usage: rsmq_call ");
	expect_refusal(RUN("rsmq_call", "unix:///x", "send", "q", NULL), 64, "usage: rsmq_call ");
	expect_refusal(RUN("rsmq_call", "unix:///x", "send", "q", "t", "soon", NULL), 64,
	               "rsmq_call: soon: ");
	expect_refusal(RUN("rsmq_call", "gopher://x", "attributes", "q", NULL), 64,
	               "rsmq_call: gopher://x: ");
}

/* ---- native -------------------------------------------------------------- */

Test(ipc, native_both_ends_speak_at_once_and_last_words_are_heard)
{
	struct program *program = RUN("native", NULL);

	cr_assert(left(program, 0), "status 0x%x:\n%s", (unsigned)program->status, program->text);
	cr_expect_str_eq(lines_of(program, "parent"),
	                 "hears online {\"ready\":true}\n"
	                 "sends ping {\"n\":1}\n"
	                 "hears pong {\"n\":1}\n"
	                 "sends both {}\n"
	                 "sends large, 1048576 bytes\n"
	                 "hears large, 1048576 bytes\n"
	                 "sends measure, 1048576 bytes\n"
	                 "hears measured 1048576\n"
	                 "sends descriptor {\"kind\":\"pipe\"}\n"
	                 "reads \"written by the child\" from its pipe\n"
	                 "sends leave {}\n"
	                 "hears last 1\n"
	                 "hears last 2\n"
	                 "sees the end, and reaps a child that left with 7\n"
	                 "sends ping {\"n\":2}\n"
	                 "is told that nobody is there\n");
	cr_expect_str_eq(lines_of(program, "child"), "sends online {\"ready\":true}\n"
	                                             "hears ping {\"n\":1}\n"
	                                             "sends pong {\"n\":1}\n"
	                                             "hears both {}\n"
	                                             "sends large, 1048576 bytes\n"
	                                             "hears large, 1048576 bytes\n"
	                                             "hears measure, 1048576 bytes\n"
	                                             "sends measured 1048576\n"
	                                             "hears descriptor {\"kind\":\"pipe\"}\n"
	                                             "hears leave {}\n"
	                                             "sends last 1\n"
	                                             "sends last 2\n");
	free(program);
}

/* ---- socket -------------------------------------------------------------- */

#define HELLO(data) "{\"type\":\"message\",\"data\":" data "}\n"
#define NAMED(id, text) "{\"id\":\"" id "\",\"message\":\"" text "\"}"
#define ALL "hears        {\"type\":\"all\",\"data\":" NAMED("ann", "good morning") "}\n"
#define LEFT "hears        {\"type\":\"left\",\"data\":{\"id\":\"bob\"}}\n"
#define LIFE(way, retry, answer)                                                                   \
	"is connected by " way "\nhears        " HELLO(answer) ALL                                 \
		"is disconnected, tries again in " retry " ms\n"                                   \
		"is refused, tries again in " retry " ms\n"
#define LIFE_AGAIN(way, answer) "is connected by " way "\nhears        " HELLO(answer)
#define PATH_LIFE(retry, between)                                                                  \
	LIFE("the Unix path", retry, NAMED("world", "hello world!"))                               \
	between LIFE_AGAIN("the Unix path", NAMED("world", "hello world!"))
#define TCP_LIFE(retry) LIFE("TCP", retry, "\"hello world!\"") LIFE_AGAIN("TCP", "\"hello world!\"")
#define LOST "is not connected: \"good night\" is lost\n"

static void
expect_lives(struct program *program, const char *ann, const char *bob, const char *cid)
{
	cr_assert(left(program, 0), "status 0x%x:\n%s", (unsigned)program->status, program->text);
	cr_expect_str_eq(lines_of(program, "ann"), ann);
	cr_expect_str_eq(lines_of(program, "bob"), bob);
	cr_expect_str_eq(lines_of(program, "cid"), cid);
	cr_expect(files_left() == 0);
}

Test(ipc, socket_clients_of_a_dead_world_come_back_every_1500_ms)
{
	int64_t start = clutch_now();
	struct program *program = RUN("socket", NULL);

	expect_lives(program, PATH_LIFE("1500", LOST) LEFT,
	             PATH_LIFE("1500", "") "leaves for good\n", TCP_LIFE("1500") LEFT);
	cr_expect(clutch_now() - start >= 3000, "two tries took %d ms",
	          (int)(clutch_now() - start));
	free(program);
}

Test(ipc, socket_the_world_hears_everybody_twice_and_sees_them_leave)
{
	struct program *program = RUN("socket", "300", NULL);

	cr_assert(left(program, 0), "status 0x%x:\n%s", (unsigned)program->status, program->text);
	cr_expect(count_of(program, "world hears      " HELLO(NAMED("ann", "hello"))) == 2);
	cr_expect(count_of(program, "world hears      " HELLO(NAMED("bob", "hello"))) == 2);
	cr_expect(count_of(program, "world hears      " HELLO("\"hello\"")) == 2);
	cr_expect(count_of(program, "world            listens on ") == 2);
	cr_expect(count_of(program, "world            is killed by signal 9\n") == 1);
	cr_expect(count_of(program, "world            is left by ann\n") == 1);
	cr_expect(count_of(program, "world            is left by bob\n") == 1);
	cr_expect(count_of(program, "world            is left by a stranger\n") == 1);
	cr_expect(count_of(program, "world            ends with 0\n") == 1);
	cr_expect(files_left() == 0);
	free(program);
}

Test(ipc, socket_the_clients_are_ended_and_nothing_is_left)
{
	struct program *program = START("socket", "60000", NULL);

	wait_for_line(program, "is disconnected, tries again in 60000 ms\n");
	kill(program->pid, SIGTERM);
	end(program);
	cr_expect(left(program, 128 + SIGTERM), "status 0x%x", (unsigned)program->status);
	cr_expect(files_left() == 0);
	free(program);
}

static const char *
free_port(void)
{
	static char text[8];

	snprintf(text, sizeof text, "%d", test_free_port());
	return text;
}

static int
connect_to(const char *port)
{
	struct sockaddr_in address = {.sin_family = AF_INET,
	                              .sin_port = htons((in_port_t)atoi(port))};
	struct timeval limit = {.tv_sec = time_limit() / 1000};
	int descriptor = socket(AF_INET, SOCK_STREAM, 0);

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	cr_assert(connect(descriptor, (struct sockaddr *)&address, sizeof address) == 0);
	return descriptor;
}

static struct program *
start_world(const char *port)
{
	struct program *world = START("socket", "world", port, NULL);

	wait_for_line(world, "world            listens on ");
	return world;
}

static void
end_world(struct program *world)
{
	kill(world->pid, SIGTERM);
	end(world);
	cr_expect(left(world, 128 + SIGTERM), "status 0x%x:\n%s", (unsigned)world->status,
	          world->text);
	free(world);
}

/* Read up to the next delimiter, and return the text in front of it. */
static const char *
next_message(int descriptor)
{
	static char text[8192];
	size_t length = 0;

	while (length < sizeof text && read(descriptor, text + length, 1) == 1)
		if (text[length++] == '\f')
			break;
	cr_assert(length > 0 && text[length - 1] == '\f', "%.*s", (int)length, text);
	text[length - 1] = '\0';
	return text;
}

static const char *
say_to_world(int descriptor, const char *message)
{
	cr_assert(write(descriptor, message, strlen(message)) == (ssize_t)strlen(message));
	cr_assert(write(descriptor, "\f", 1) == 1);
	return next_message(descriptor);
}

/* The bytes of the client in the article, as node-ipc 9.1.1 writes them, and as other writers of
 * JSON write the same message. */
Test(ipc, socket_the_world_answers_node_ipcs_bytes)
{
	const char *port = free_port();
	struct program *world = start_world(port);
	int descriptor = connect_to(port);

	cr_expect_str_eq(say_to_world(descriptor, "{\"type\":\"message\",\"data\":\"hello\"}"),
	                 "{\"type\":\"message\",\"data\":\"hello world!\"}");
	cr_expect_str_eq(say_to_world(descriptor,
	                              " { \"data\" : \"\\\"}\\\\\",\n\"x\":[{\"type\":1},-2.5],"
	                              "\"type\" : \"message\" } "),
	                 "{\"type\":\"message\",\"data\":\"\\\"}\\\\ world!\"}");
	cr_expect_str_eq(
		say_to_world(descriptor, "{\"type\":\"message\",\"data\":{\"message\":\"\","
	                                 "\"id\":\"dan\"}}"),
		"{\"type\":\"message\",\"data\":{\"id\":\"world\",\"message\":\" world!\"}}");
	close(descriptor);
	wait_for_line(world, "world            is left by dan\n");
	end_world(world);
	cr_expect(access(test_path("app.world"), F_OK) == -1);
}

/* Each causes one line, and the connection stays open. */
Test(ipc, socket_what_is_no_message_is_said)
{
	static const char *const bad[] = {"",
	                                  "hello",
	                                  "\"message\"",
	                                  "{",
	                                  "{\"type\"",
	                                  "{\"type\":\"message\"",
	                                  "{\"type\":\"message\"}",
	                                  "{\"type\":\"message\",\"data\":7}",
	                                  "{\"type\":\"message\",\"data\":{}}",
	                                  "{\"type\":\"message\",\"data\":\"hel",
	                                  "{\"type\":\"message\",\"data\":\"hel\\",
	                                  "{\"type\":\"message\" \"data\":\"hello\"}",
	                                  "{\"type\":\"shout\",\"data\":\"hello\"}",
	                                  "]]]"};
	const char *port = free_port();
	struct program *world = start_world(port);
	int descriptor = connect_to(port);
	size_t i;

	for (i = 0; i < sizeof bad / sizeof bad[0]; i++)
		dprintf(descriptor, "%s\f", bad[i]);
	cr_expect_str_eq(say_to_world(descriptor, "{\"type\":\"message\",\"data\":\"\"}"),
	                 "{\"type\":\"message\",\"data\":\" world!\"}");
	close(descriptor);
	wait_for_line(world, "world            is left by a stranger\n");
	cr_expect(count_of(world, "world            does not understand this\n") ==
	                  sizeof bad / sizeof bad[0],
	          "%s", world->text);
	end_world(world);
}

/* A message of 4096 bytes, with its delimiter, is answered; at a longer one the sender is cut. */
Test(ipc, socket_a_message_that_is_too_long_ends_its_sender)
{
	const char *port = free_port();
	struct program *world = start_world(port);
	int descriptor = connect_to(port);
	char text[4096 + 1];

	snprintf(text, sizeof text, "{\"type\":\"message\",\"data\":\"%04067d\"}", 7);
	cr_assert(strlen(text) == 4095);
	cr_expect(strlen(say_to_world(descriptor, text)) == 4095 + strlen(" world!"));
	memset(text, 'x', sizeof text);
	cr_assert(write(descriptor, text, 4096) == 4096);
	cr_expect(read(descriptor, text, 1) == 0);
	close(descriptor);
	wait_for_line(world, "world            is left by a stranger\n");
	cr_expect(count_of(world, "world            ends a stranger: a message is longer than 4096 "
	                          "bytes\n") == 1,
	          "%s", world->text);
	end_world(world);
}

/* A client sends to all, and another does not read: the sender hears that the other has left. */
Test(ipc, socket_a_client_that_does_not_read_is_ended)
{
	const char *port = free_port();
	struct program *world = start_world(port);
	int deaf = connect_to(port), speaker = connect_to(port);
	char all[4000], heard[2 * sizeof all] = "";
	int i, most = 16384; /* 64 MB: more than the buffers of a socket hold */
	ssize_t length;

	say_to_world(deaf, "{\"type\":\"message\",\"data\":{\"id\":\"deaf\",\"message\":\"\"}}");
	close(world->pipe); /* this test does not need the world's lines */
	snprintf(all, sizeof all, "{\"type\":\"all\",\"data\":%03974d}\f", 7);
	for (i = 0; i < most && strstr(heard, "\"left\"") == NULL; i++) {
		cr_assert(write(speaker, all, strlen(all)) == (ssize_t)strlen(all));
		do {
			length = read(speaker, heard, sizeof heard - 1);
			cr_assert(length > 0);
			heard[length] = '\0';
		} while (heard[length - 1] != '\f');
	}
	cr_expect(i < most, "the world keeps a client that does not read");
	close(deaf), close(speaker);
	kill(world->pid, SIGKILL);
	cr_assert(waitpid(world->pid, NULL, 0) == world->pid);
	free(world);
}

/* A world without free descriptors prints this once, and does not poll in a busy loop. When a
 * client has left, the next client is served. */
Test(ipc, socket_a_world_without_descriptors_lets_clients_wait)
{
	const char *port = free_port();
	char command[512];
	const char *answer;
	struct program *world;
	int clients[16];
	size_t i, count = sizeof clients / sizeof clients[0];

	snprintf(command, sizeof command, "ulimit -n 12; exec %s world %s", path_of("socket"),
	         port);
	world = start("sh", (const char *const[]){"-c", command, NULL});
	wait_for_line(world, "world            listens on ");
	for (i = 0; i < count; i++)
		clients[i] = connect_to(port);
	wait_for_line(world, "world            has no descriptor for one more client\n");
	for (i = 0; i < count; i++) {
		answer = say_to_world(clients[i], "{\"type\":\"message\",\"data\":\"hello\"}");
		while (strstr(answer, "\"left\"") != NULL)
			answer = next_message(clients[i]);
		cr_expect_str_eq(answer, "{\"type\":\"message\",\"data\":\"hello world!\"}");
		close(clients[i]);
	}
	cr_expect(count_of(world, "has no descriptor") <= count, "%s", world->text);
	end_world(world);
}

/* A world takes over the path of a dead world, but neither of a live one nor of another file. */
Test(ipc, socket_only_a_dead_worlds_path_is_taken)
{
	char port[8], other[8], in_use[64];
	struct program *world;
	FILE *file;

	snprintf(port, sizeof port, "%s", free_port());
	snprintf(in_use, sizeof in_use, "socket: 127.0.0.1:%s: Address", port);
	world = start_world(port);
	snprintf(other, sizeof other, "%s", free_port());
	expect_refusal(RUN("socket", "world", port, NULL), 1, in_use);
	expect_refusal(RUN("socket", "world", other, NULL), 1, "socket: ");
	cr_expect(access(test_path("app.world"), F_OK) == 0);
	kill(world->pid, SIGKILL);
	end(world);
	free(world);
	cr_expect(access(test_path("app.world"), F_OK) == 0);
	end_world(start_world(port));

	file = fopen(test_path("app.world"), "w");
	cr_assert(file != NULL && fclose(file) == 0);
	expect_refusal(RUN("socket", "world", other, NULL), 1, "socket: ");
	cr_expect(access(test_path("app.world"), F_OK) == 0);
}

/* The killed clients say no goodbye, but the world sees end of file on its lifeline. */
Test(ipc, socket_the_clients_are_killed_and_the_world_ends)
{
	struct program *program = START("socket", NULL);

	wait_for_line(program, "is connected by");
	kill(program->pid, SIGKILL);
	end(program); /* at end of file no process holds the pipe */
	cr_expect(WIFSIGNALED(program->status));
	free(program);
}

Test(ipc, a_folder_that_is_not_there_or_has_a_long_name_is_one_line)
{
	char name[128];

	temp = "/nonexistent";
	expect_refusal(RUN("socket", NULL), 1, "socket: /nonexistent: No such file");
	expect_refusal(RUN("queue", NULL), 1, "queue: /nonexistent: No such file");
	memset(name, 'x', sizeof name - 1);
	name[0] = '/';
	name[sizeof name - 1] = '\0';
	temp = name;
	expect_refusal(RUN("socket", NULL), 1, "socket: /xxxx");
	expect_refusal(RUN("queue", NULL), 1, "queue: /xxxx");
}

/* ---- queue --------------------------------------------------------------- */

static bool
is_installed(const char *command)
{
	char line[128];

	snprintf(line, sizeof line, "command -v %s >/dev/null 2>&1", command);
	return system(line) == 0;
}

/* Criterion does not show which tests it skips. */
Test(ipc, what_is_skipped_is_said)
{
	if (find_server() == NULL)
		fprintf(stderr, "test_ipc: no redis-server: the queue is not tested\n");
	if (!is_installed("node") || !is_installed("npm"))
		fprintf(stderr,
		        "test_ipc: no node or no npm: npm rsmq and node-ipc are not tested\n");
}

static void
expect_queue_story(struct program *program)
{
	static const char *const jobs[] = {
		"{\"producer\":1,\"job\":1}", "{\"producer\":1,\"job\":2}",
		"{\"producer\":1,\"job\":3}", "{\"producer\":2,\"job\":1}",
		"{\"producer\":2,\"job\":2}", "{\"producer\":2,\"job\":3}",
		"{\"job\":\"deadly\"}",       "{\"job\":\"later\"}"};
	char text[96];
	size_t i;

	cr_assert(left(program, 0), "status 0x%x:\n%s", (unsigned)program->status, program->text);
	for (i = 0; i < sizeof jobs / sizeof jobs[0]; i++) {
		snprintf(text, sizeof text, " sends      %s", jobs[i]);
		cr_expect(i > 5 || count_of(program, text) == 1, "%s:\n%s", text, program->text);
		snprintf(text, sizeof text, " deletes      %s\n", jobs[i]);
		cr_expect(count_of(program, text) == 1, "%s:\n%s", text, program->text);
	}
	cr_expect(count_of(program, "the queue             8 sent, ") == 1, "%s", program->text);
	cr_expect(count_of(program, " taken, 0 left\n") == 1, "%s", program->text);
	cr_expect_str_eq(lines_of(program, "main publishes"),
	                 "\"good morning\", and nobody listens: it is lost\n"
	                 "\"good evening\", and somebody hears it\n");
	cr_expect_str_eq(lines_of(program, "subscriber"),
	                 "listens from now on\nhears      \"good evening\"\n");
	cr_expect(files_left() == 0);
}

/* The job that kills its first worker is delivered to another worker. */
static void
expect_redelivery(const struct program *program)
{
	const char *taken = strstr(program->text, "takes        {\"job\":\"deadly\"}, ");
	const char *again =
		strstr(program->text, "takes        {\"job\":\"deadly\"}, for the 2. time");
	const char *dead = strstr(program->text, " is dead, killed by signal 9\n");
	const char *later = strstr(program->text, "takes        {\"job\":\"later\"}, ");

	cr_assert(taken != NULL && again != NULL && dead != NULL && later != NULL, "%s",
	          program->text);
	cr_expect(taken < again && dead[-1] == taken[-2] && again[-2] != taken[-2], "%s",
	          program->text);
	cr_expect(atoi(later + strlen("takes        {\"job\":\"later\"}, ")) >= 1000, "%s",
	          program->text);
}

/* Check all lines between the last line of RSMQ and the first line of publish. */
static void
expect_lists(const struct program *program)
{
	static const char story[] =
		" left\n"
		"main pushes           {\"job\":\"sweep\"} into low\n"
		"main pushes           {\"job\":\"mow\"} into low\n"
		"main pushes           {\"job\":\"fire\"} into urgent\n"
		"list worker 1 takes   {\"job\":\"fire\"} from urgent\n"
		"list worker 1 takes   {\"job\":\"sweep\"} from low\n"
		"list worker 1 takes   {\"job\":\"mow\"} from low\n"
		"main pushes           {\"job\":\"deadly\"} into low\n"
		"list worker 1 takes   {\"job\":\"deadly\"} from low\n"
		"list worker 1 is dead, killed by signal 9\n"
		"main pushes           {\"job\":\"next\"} into low\n"
		"list worker 2 takes   {\"job\":\"next\"} from low\n"
		"main finds            0 jobs in the lists: {\"job\":\"deadly\"} is lost\n"
		"producer 3 adds       {\"order\":1,\"part\":1} to its group\n"
		"producer 3 is dead, killed by signal 9\n"
		"main adds             {\"order\":2,\"part\":1} to its group\n"
		"main pushes           {\"job\":\"other\"} into low\n"
		"list worker 2 takes   {\"job\":\"other\"} from low\n"
		"main adds             {\"order\":2,\"part\":2} to its group\n"
		"main executes         the commands of its group\n"
		"list worker 2 takes   {\"order\":2,\"part\":1} from low\n"
		"list worker 2 takes   {\"order\":2,\"part\":2} from low\n"
		"main publishes ";

	cr_expect(strstr(program->text, story) != NULL, "%s", program->text);
}

Test(ipc, queue_a_list_has_priorities_and_groups_and_loses_a_dead_workers_job)
{
	struct program *program;

	skip_without_redis();
	program = RUN("queue", NULL);
	cr_assert(left(program, 0), "status 0x%x:\n%s", (unsigned)program->status, program->text);
	expect_lists(program);
	free(program);
}

Test(ipc, queue_a_dead_workers_job_is_done_by_another_and_a_delayed_one_waits)
{
	struct program *program;

	skip_without_redis();
	program = RUN("queue", NULL);
	expect_queue_story(program);
	expect_redelivery(program);
	free(program);
}

/* Kill the program after a line. Its Redis, its workers and its folder must go with it. */
static void
kill_after(const char *line)
{
	struct program *program = START("queue", NULL);

	wait_for_line(program, line);
	kill(program->pid, SIGKILL);
	end(program);
	cr_expect(WIFSIGNALED(program->status));
	cr_expect(files_left() == 0);
	free(program);
}

Test(ipc, queue_killed_leaves_nothing)
{
	skip_without_redis();
	kill_after("main sends            {\"job\":\"deadly\"}");
	kill_after("main pushes           {\"job\":\"next\"}");
}

/* The first child that the program has forked. */
static pid_t
first_child(const struct program *program)
{
	char name[64], line[64] = "";
	FILE *children;

	snprintf(name, sizeof name, "/proc/%ld/task/%ld/children", (long)program->pid,
	         (long)program->pid);
	children = fopen(name, "r");
	cr_assert_not_null(children);
	cr_assert_not_null(fgets(line, sizeof line, children));
	fclose(children);
	return (pid_t)atol(line);
}

/* Redis also holds the pipe of the program's output, so end() waits for Redis, too. */
Test(ipc, queue_its_keeper_killed_leaves_nothing)
{
	struct program *program;

	skip_without_redis();
	program = START("queue", NULL);
	wait_for_line(program, "main sends            {\"job\":\"deadly\"}");
	kill(first_child(program), SIGKILL);
	end(program);
	cr_expect(left(program, 1), "status 0x%x:\n%s", (unsigned)program->status, program->text);
	cr_expect(count_of(program, "queue: the keeper of redis-server was killed by signal 9\n") ==
	          1);
	cr_expect(files_left() == 0);
	free(program);
}

/* Send a signal to the whole process group, as a terminal does. */
static void
expect_end_by(const char *name, const char *line, int number)
{
	struct program *program = START(name, NULL);

	wait_for_line(program, line);
	kill(-program->pid, number);
	end(program);
	cr_expect(files_left() == 0, "%s, signal %d", name, number);
	free(program);
}

Test(ipc, a_signal_to_all_leaves_no_folder)
{
	expect_end_by("socket", "is connected by", SIGHUP);
	expect_end_by("socket", "is connected by", SIGQUIT);
	skip_without_redis();
	expect_end_by("queue", "producer 1 sends", SIGHUP);
	expect_end_by("queue", "producer 1 sends", SIGQUIT);
}

Test(ipc, queue_without_redis_is_one_line)
{
	setenv("PATH", "/nonexistent", 1);
	expect_refusal(RUN("queue", NULL), 1, "queue: redis-server: No such file");
}

/* This redis-server ends at once. */
Test(ipc, queue_with_a_redis_that_ends_at_once_is_one_line)
{
	char path[128], search[256];
	FILE *file;

	snprintf(path, sizeof path, "%s/redis-server", test_folder());
	file = fopen(path, "w");
	cr_assert(file != NULL && fputs("#!/bin/sh\nexit 1\n", file) != EOF && fclose(file) == 0);
	cr_assert(chmod(path, 0700) == 0);
	snprintf(search, sizeof search, "%s:/bin:/usr/bin", test_folder());
	setenv("PATH", search, 1);
	expect_refusal(RUN("queue", NULL), 1, "queue: redis-server: it has ended");
}

Test(ipc, queue_with_a_redis_that_is_not_there_is_one_line)
{
	struct program *queue = START("queue", "unix:///nonexistent/redis", NULL);
	struct program *caller =
		START("rsmq_call", "unix:///nonexistent/redis", "attributes", "q", NULL);

	end(queue);
	end(caller);
	expect_refusal(queue, 1, "queue: jobs-");
	expect_refusal(caller, 1, "rsmq_call: attributes q: ");
}

/* ---- a Redis for the test ------------------------------------------------ */

static struct server server;
static struct redis *redis;

static void
start_redis(void)
{
	skip_without_redis();
	server_start(&server, NULL);
	redis = redis_open(NULL, server.url, NULL);
	cr_assert(redis != NULL);
}

static void
stop_redis(void)
{
	redis_close(redis);
	server_end(&server, SIGKILL);
}

/* Write a reply as one line: "vt 30 delay 0", "1"; an empty reply is "-". */
static void
write_reply(char *text, size_t size, const struct redis_reply *reply)
{
	size_t i, used = strlen(text);

	if (reply->type == REDIS_ARRAY)
		for (i = 0; i < reply->count; i++)
			write_reply(text, size, &reply->element[i]);
	else if (reply->type == REDIS_INTEGER)
		snprintf(text + used, size - used, "%s%lld", used > 0 ? " " : "",
		         (long long)reply->integer);
	else
		snprintf(text + used, size - used, "%s%s", used > 0 ? " " : "",
		         reply->type == REDIS_NIL ? "-" : reply->text);
}

static char said[8192];
static bool has_said;

static int
on_reply(struct redis *from, const struct redis_reply *reply, void *arg)
{
	(void)from, (void)arg;
	said[0] = '\0';
	write_reply(said, sizeof said, reply);
	has_said = true;
	return 0;
}

/* The reply of Redis to a command, whose words have blanks between them. */
static const char *
ask(const char *format, ...)
{
	char command[512], *word, *rest = command;
	const char *argv[16];
	va_list arguments;
	size_t argc = 0;

	va_start(arguments, format);
	vsnprintf(command, sizeof command, format, arguments);
	va_end(arguments);
	while ((word = strtok_r(rest, " ", &rest)) != NULL)
		argv[argc++] = word;
	has_said = false;
	cr_assert(redis_command_argv(redis, on_reply, NULL, argc, argv, NULL) == 0);
	while (!has_said)
		redis_step(redis, -1);
	return said;
}

/* rsmq_call's output without its end of line. rsmq_call must exit with `code`. */
static const char *
call(int code, const char *const words[])
{
	static char text[70000];
	const char *arguments[12] = {server.url};
	struct program *program;
	size_t i;

	for (i = 0; words[i] != NULL; i++)
		arguments[i + 1] = words[i];
	program = run(path_of("rsmq_call"), arguments);
	cr_assert(left(program, code), "rsmq_call %s %s: status 0x%x: %s", words[0], words[1],
	          (unsigned)program->status, program->text);
	snprintf(text, sizeof text, "%s", program->text);
	text[strcspn(text, "\n")] = '\0';
	free(program);
	return text;
}

#define CALL(code, ...) call(code, (const char *const[]){__VA_ARGS__, NULL})

Test(ipc, queue_in_a_redis_of_others_leaves_no_key)
{
	struct program *program;

	start_redis();
	ask("SET theirs kept");
	program = RUN("queue", server.url, NULL);
	cr_assert(left(program, 0), "status 0x%x:\n%s", (unsigned)program->status, program->text);
	cr_expect_str_eq(ask("KEYS *"), "theirs");
	free(program);
	stop_redis();
}

/* ---- the claims of docs/ipc-four-ways.md about Redis ----------------------- */

/* Redis has sent the message to a process that waited for it, but that never reads it. */
Test(ipc, list_a_message_that_is_popped_but_not_read_is_lost)
{
	int descriptor;

	start_redis();
	descriptor = unix_connection(server.path);
	cr_assert(write(descriptor, "BRPOP list 0\r\n", 14) == 14);
	while (strstr(ask("INFO clients"), "blocked_clients:1") == NULL)
		;
	cr_expect_str_eq(ask("LPUSH list job"), "1");
	close(descriptor);
	cr_expect_str_eq(ask("LLEN list"), "0");
	stop_redis();
}

Test(ipc, list_a_transaction_is_not_undone_when_one_of_its_commands_fails)
{
	start_redis();
	ask("SET word x");
	cr_expect_str_eq(ask("MULTI"), "OK");
	cr_expect_str_eq(ask("LPUSH list job"), "QUEUED");
	cr_expect_str_eq(ask("LPUSH word job"), "QUEUED");
	cr_expect(strncmp(ask("EXEC"), "1 WRONGTYPE", 11) == 0, "%s", said);
	cr_expect_str_eq(ask("LLEN list"), "1");
	ask("MULTI");
	ask("LPUSH list job");
	cr_expect(strncmp(ask("LPUSH list"), "ERR wrong number", 16) == 0, "%s", said);
	cr_expect(strncmp(ask("EXEC"), "EXECABORT", 9) == 0, "%s", said);
	cr_expect_str_eq(ask("LLEN list"), "1");
	stop_redis();
}

/* Redis closes the connection of a subscriber that does not read; then no process hears. */
Test(ipc, publish_a_subscriber_that_does_not_read_is_ended)
{
	static const char publish[] =
		"EVAL return(redis.call('PUBLISH','news',string.rep('x',4194304))) 0";
	int descriptor, i;

	start_redis();
	cr_expect_str_eq(ask(publish), "0");
	descriptor = unix_connection(server.path);
	cr_assert(write(descriptor, "SUBSCRIBE news\r\n", 16) == 16);
	while (strcmp(ask("PUBSUB NUMSUB news"), "news 1") != 0)
		;
	cr_expect_str_eq(ask(publish), "1");
	for (i = 0; i < 16 && strcmp(ask(publish), "1") == 0; i++)
		; /* 64 MB: twice as much as the limit */
	cr_expect_str_eq(said, "0");
	close(descriptor);
	stop_redis();
}

/* When Redis has no memory, sending fails, but earlier messages can still be taken. */
Test(ipc, rsmq_a_queue_grows_until_redis_has_no_memory)
{
	char text[1024];

	start_redis();
	memset(text, 'x', sizeof text - 1);
	text[sizeof text - 1] = '\0';
	CALL(0, "create", "q");
	CALL(0, "send", "q", text);
	ask("CONFIG SET maxmemory 1");
	cr_expect(strstr(CALL(1, "send", "q", text), "rsmq_call: send q: OOM") != NULL);
	ask("CONFIG SET maxmemory 0");
	cr_expect(strstr(CALL(0, "attributes", "q"), "\"msgs\":1,") != NULL);
	stop_redis();
}

Test(ipc, rsmq_the_keys_are_those_of_npm_rsmq)
{
	long long visible, first, created;
	char id[33];

	start_redis();
	CALL(0, "create", "jobs", "7", "0", "2048");
	cr_expect_str_eq(ask("SMEMBERS rsmq:QUEUES"), "jobs");
	cr_expect_str_eq(ask("HMGET rsmq:jobs:Q vt delay maxsize totalsent"), "7 0 2048 -");
	created = atoll(ask("HGET rsmq:jobs:Q created"));
	cr_expect(created > 1700000000 && created < 17000000000);
	cr_expect(atoll(ask("HGET rsmq:jobs:Q modified")) == created);

	snprintf(id, sizeof id, "%s", CALL(0, "send", "jobs", "{\"a\":1}"));
	cr_expect(strlen(id) == 32);
	cr_expect_str_eq(ask("HGET rsmq:jobs:Q %s", id), "{\"a\":1}");
	cr_expect_str_eq(ask("HMGET rsmq:jobs:Q totalsent totalrecv %s:rc %s:fr", id, id),
	                 "1 - - -");
	visible = atoll(ask("ZSCORE rsmq:jobs %s", id));
	cr_expect(visible / 1000 >= created && visible / 1000 <= created + 600);
	id[10] = '\0'; /* the time of sending, in microseconds */
	cr_expect(strtoll(id, NULL, 36) / 1000 == visible);

	snprintf(id, sizeof id, "%.32s", CALL(0, "receive", "jobs"));
	first = atoll(ask("HGET rsmq:jobs:Q %s:fr", id));
	cr_expect(first >= visible);
	cr_expect(atoll(ask("ZSCORE rsmq:jobs %s", id)) == first + 7000);
	cr_expect_str_eq(ask("HMGET rsmq:jobs:Q totalsent totalrecv %s:rc", id), "1 1 1");

	CALL(0, "delete", "jobs", id);
	cr_expect_str_eq(ask("ZCARD rsmq:jobs"), "0");
	cr_expect_str_eq(ask("HLEN rsmq:jobs:Q"), "7");
	CALL(0, "remove", "jobs");
	cr_expect_str_eq(ask("DBSIZE"), "0");
	stop_redis();
}

Test(ipc, rsmq_a_message_is_hidden_until_its_time_and_deleted_once)
{
	char id[33];

	start_redis();
	CALL(0, "create", "q", "100");
	CALL(2, "receive", "q");
	snprintf(id, sizeof id, "%s", CALL(0, "send", "q", "a"));
	cr_expect(strncmp(CALL(0, "receive", "q", "0"), id, 32) == 0);   /* visible again at once */
	cr_expect(strncmp(CALL(0, "receive", "q") + 32, " 2 ", 3) == 0); /* now hidden for 100 s */
	CALL(2, "receive", "q");
	CALL(0, "hide", "q", id, "0");
	cr_expect(strncmp(CALL(0, "receive", "q") + 32, " 3 ", 3) == 0);
	CALL(0, "delete", "q", id);
	CALL(2, "delete", "q", id);
	CALL(2, "hide", "q", id, "0");

	CALL(0, "send", "q", "later", "100");
	CALL(2, "receive", "q");
	cr_expect(strstr(CALL(0, "attributes", "q"), "\"msgs\":1,\"hiddenmsgs\":1}") != NULL);
	stop_redis();
}

/* The oldest visible message comes first. */
Test(ipc, rsmq_messages_come_in_the_order_of_sending)
{
	char text[8];
	int i;

	start_redis();
	CALL(0, "create", "q", "100");
	for (i = 0; i < 5; i++) {
		snprintf(text, sizeof text, "%d", i);
		CALL(0, "send", "q", text);
	}
	for (i = 0; i < 5; i++) {
		snprintf(text, sizeof text, " %d", i);
		cr_expect_str_eq(strrchr(CALL(0, "receive", "q"), ' '), text);
	}
	stop_redis();
}

/* `count` times the same character. */
static const char *
repeat(const char *character, size_t count)
{
	static char text[8192];

	text[0] = '\0';
	while (count-- > 0)
		strcat(text, character);
	return text;
}

Test(ipc, rsmq_refuses_what_npm_rsmq_refuses)
{
	start_redis();
	cr_expect_str_eq(CALL(1, "send", "q", "text"), "rsmq_call: send q: there is no such queue");
	CALL(1, "receive", "q");
	CALL(1, "attributes", "q");
	CALL(1, "remove", "q");
	CALL(1, "create", "a b");
	CALL(1, "create", "");
	CALL(1, "create", repeat("x", 161));
	CALL(0, "create", repeat("x", 160));
	CALL(1, "create", "q", "30", "0", "1023");
	CALL(1, "create", "q", "30", "0", "65537");
	CALL(1, "create", "q", "-1");
	CALL(0, "create", "q", "30", "0", "1024");
	cr_expect_str_eq(CALL(1, "create", "q"), "rsmq_call: create q: the queue exists");
	CALL(1, "delete", "q", "short");
	CALL(1, "hide", "q", "short", "0");

	/* maxsize counts as JavaScript does: one for é, two for what is beyond U+FFFF */
	CALL(0, "send", "q", repeat("\xc3\xa9", 1024));
	CALL(1, "send", "q", repeat("\xc3\xa9", 1025));
	CALL(0, "send", "q", repeat("\xf0\x9f\x98\x80", 512));
	CALL(1, "send", "q", repeat("\xf0\x9f\x98\x80", 513));
	CALL(0, "create", "endless", "30", "0", "-1");
	CALL(0, "send", "endless", repeat("x", 8000));
	stop_redis();
}

/* ---- npm rsmq ------------------------------------------------------------ */

/* The other side of the test, with npm rsmq. It prints one line for each answer. */
static const char javascript[] =
	"const RSMQ = require('rsmq');\n"
	"const rsmq = new RSMQ({ path: process.argv[2] });\n"
	"const say = (value) => console.log(JSON.stringify(value));\n"
	"async function main() {\n"
	"  say(await rsmq.listQueuesAsync());\n"
	"  say(await rsmq.getQueueAttributesAsync({ qname: 'from-c' }));\n"
	"  const message = await rsmq.receiveMessageAsync({ qname: 'from-c' });\n"
	"  say([message.id, message.message, message.rc, message.fr, Math.floor(message.sent)]);\n"
	"  say(await rsmq.deleteMessageAsync({ qname: 'from-c', id: message.id }));\n"
	"  say(await rsmq.receiveMessageAsync({ qname: 'from-c' }));\n"
	"  await rsmq.createQueueAsync({ qname: 'from-js', vt: 11, delay: 0, maxsize: 4096 });\n"
	"  say(await rsmq.sendMessageAsync({ qname: 'from-js', message: 'de JS \\u00e9 "
	"\\ud83d\\ude00' }));\n"
	"  say(await rsmq.getQueueAttributesAsync({ qname: 'from-js' }));\n"
	"}\n"
	"main().catch((error) => console.log(String(error))).finally(() => rsmq.quit());\n";

/* Install packages once, in a folder of their own under build/npm, without running any script of
 * theirs. If that fails, the test is skipped. */
static void
need_npm(const char *name, const char *packages)
{
	char command[512], folder[64], modules[4096];

	if (!is_installed("node") || !is_installed("npm"))
		cr_skip_test("no node, or no npm");
	snprintf(folder, sizeof folder, "build/npm/%s", name);
	snprintf(command, sizeof command,
	         "test -e %s/node_modules/%s/package.json || "
	         "npm install --prefix %s --ignore-scripts --no-audit --no-fund --fetch-retries=0 "
	         "--fetch-timeout=20000 %s >/dev/null 2>&1",
	         folder, name, folder, packages);
	if (system(command) != 0) {
		fprintf(stderr, "test_ipc: npm install fails: npm %s is not tested\n", name);
		cr_skip_test("npm install fails");
	}
	cr_assert(realpath(folder, modules) != NULL);
	strcat(modules, "/node_modules");
	setenv("NODE_PATH", modules, 1);
}

static struct program *
start_javascript(const char *text, const char *argument)
{
	FILE *file = fopen(test_path("program.js"), "w");

	cr_assert(file != NULL && fputs(text, file) != EOF && fclose(file) == 0);
	return start("node", (const char *const[]){test_path("program.js"), argument, NULL});
}

/* The n-th line, from 0. */
static char *
line_of(const struct program *program, int n)
{
	static char line[1024];
	const char *at = program->text;

	while (n-- > 0)
		at = strchr(at, '\n') != NULL ? strchr(at, '\n') + 1 : "";
	snprintf(line, sizeof line, "%.*s", (int)strcspn(at, "\n"), at);
	return line;
}

/* Attributes without the last one, which depends on the current second. */
static const char *
without_hidden(const char *attributes)
{
	static char text[2][512];
	static int turn;
	const char *end = strstr(attributes, ",\"hiddenmsgs\":");

	turn = !turn;
	cr_assert(end != NULL, "%s", attributes);
	snprintf(text[turn], sizeof text[turn], "%.*s", (int)(end - attributes), attributes);
	return text[turn];
}

#define FROM_C "de C \xc3\xa9 \xf0\x9f\x98\x80"
#define FROM_JS "de JS \xc3\xa9 \xf0\x9f\x98\x80"

Test(ipc, rsmq_and_npm_rsmq_hear_each_other)
{
	struct program *program;
	char id[33], expected[256], attributes[512];
	long long first, sent;

	need_npm("rsmq", "rsmq@0.12.4");
	start_redis();
	CALL(0, "create", "from-c", "7", "0", "2048");
	snprintf(id, sizeof id, "%s", CALL(0, "send", "from-c", FROM_C));
	cr_assert(sscanf(CALL(0, "receive", "from-c", "0") + 32, " 1 %lld %lld", &first, &sent) ==
	          2);
	snprintf(attributes, sizeof attributes, "%s", CALL(0, "attributes", "from-c"));

	program = start_javascript(javascript, server.path);
	end(program);
	cr_assert(left(program, 0), "%s", program->text);
	cr_expect_str_eq(line_of(program, 0), "[\"from-c\"]");
	cr_expect_str_eq(without_hidden(line_of(program, 1)), without_hidden(attributes));
	snprintf(expected, sizeof expected, "[\"%s\",\"" FROM_C "\",2,%lld,%lld]", id, first, sent);
	cr_expect_str_eq(line_of(program, 2), expected);
	cr_expect_str_eq(line_of(program, 3), "1"); /* deleted */
	cr_expect_str_eq(line_of(program, 4), "{}");
	CALL(2, "receive", "from-c");

	cr_expect_str_eq(without_hidden(CALL(0, "attributes", "from-js")),
	                 without_hidden(line_of(program, 6)));
	snprintf(expected, sizeof expected, "\"%.32s\"", CALL(0, "receive", "from-js", "0"));
	cr_expect_str_eq(line_of(program, 5), expected);
	cr_assert(sscanf(CALL(0, "receive", "from-js") + 32, " 2 %lld %lld", &first, &sent) == 2);
	cr_expect(first >= sent);
	snprintf(expected, sizeof expected, "%.32s 3 %lld %lld " FROM_JS, line_of(program, 5) + 1,
	         first, sent);
	CALL(0, "hide", "from-js", strtok(line_of(program, 5), "\""), "0");
	cr_expect_str_eq(CALL(0, "receive", "from-js"), expected);
	stop_redis();
	free(program);
}

/* ---- npm node-ipc -------------------------------------------------------- */

/* The client of the article, and of node-ipc's example/TCPSocket/basic. Only the two lines about
 * argv are new. */
static const char hello[] =
	"const ipc=require('node-ipc');\n"
	"ipc.config.id = 'hello';\n"
	"ipc.config.retry= 1500;\n"
	"ipc.config.networkPort = process.argv[2];\n"
	"ipc.connectToNet(\n"
	"    'world',\n"
	"    function(){\n"
	"        ipc.of.world.on(\n"
	"            'connect',\n"
	"            function(){\n"
	"                ipc.log('## connected to world ##', ipc.config.delay);\n"
	"                ipc.of.world.emit(\n"
	"                    'message',\n"
	"                    'hello'\n"
	"                );\n"
	"            }\n"
	"        );\n"
	"        ipc.of.world.on(\n"
	"            'disconnect',\n"
	"            function(){\n"
	"                ipc.log('disconnected from world');\n"
	"            }\n"
	"        );\n"
	"        ipc.of.world.on(\n"
	"            'message',\n"
	"            function(data){\n"
	"                ipc.log('got a message from world : ', data);\n"
	"            }\n"
	"        );\n"
	"    }\n"
	");\n";

/* node-ipc's example/unixWindowsSocket/basic, with its type of message. */
static const char hello_by_path[] =
	"const ipc=require('node-ipc');\n"
	"ipc.config.id = 'hello';\n"
	"ipc.config.socketRoot = process.argv[2] + '/';\n"
	"ipc.connectTo('world', () => {\n"
	"  ipc.of.world.on('connect', () =>\n"
	"    ipc.of.world.emit('message', { id: ipc.config.id, message: 'h\u00e9llo' }));\n"
	"  ipc.of.world.on('message', (data) => {\n"
	"    console.log('ANSWER ' + data.id + ': ' + data.message);\n"
	"    ipc.disconnect('world');\n"
	"  });\n"
	"});\n";

/* Later releases (10.1.1 to 10.1.3) overwrote files of their users, so read a newer version
 * before you use it. */
#define NODE_IPC "node-ipc@9.1.1 easy-stack@1.0.0"

static void
wait_for_count(struct program *program, const char *text, size_t count)
{
	while (count_of(program, text) < count)
		if (!hear(program))
			give_up(program, text);
}

Test(ipc, socket_the_world_answers_npm_node_ipc_and_again_after_its_death)
{
	const char *port = free_port();
	struct program *world, *client;

	need_npm("node-ipc", NODE_IPC);
	world = start_world(port);
	client = start_javascript(hello, port);
	wait_for_line(client, "got a message from world :  hello world!\n");
	wait_for_line(world, "world hears      {\"type\":\"message\",\"data\":\"hello\"}\n");
	kill(world->pid, SIGKILL);
	end(world);
	free(world);
	wait_for_line(client, "disconnected from world");
	world = start_world(port);
	wait_for_count(client, "got a message from world :  hello world!\n", 2);
	kill(client->pid, SIGKILL);
	end(client);
	free(client);
	wait_for_line(world, "world            is left by a stranger\n");

	client = start_javascript(hello_by_path, test_folder());
	end(client);
	cr_expect(left(client, 0), "%s", client->text);
	cr_expect(count_of(client, "ANSWER world: h\xc3\xa9llo world!\n") == 1, "%s", client->text);
	free(client);
	wait_for_line(world, "world            is left by hello\n");
	end_world(world);
}
