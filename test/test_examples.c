/*
 * The programs that README.md quotes compile, and do what README.md says. And an example that
 * is started without stdin, stdout or stderr opens no socket, pipe or file of its own under the
 * free numbers, into which its lines would then go.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "harness.h"

#include <criterion/criterion.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

TestSuite(examples, .timeout = 120);

static const char *
path_of(const char *name)
{
	static char path[256];
	const char *build = getenv("BUILD");

	snprintf(path, sizeof path, "%s/examples/%s", build != NULL ? build : "build", name);
	return path;
}

/* ---- the programs in README.md ---------------------------------------------------- */

static char *
read_file(const char *path)
{
	static char text[64 * 1024];
	FILE *file = fopen(path, "r");

	cr_assert(file != NULL, "%s: %s", path, strerror(errno));
	text[fread(text, 1, sizeof text - 1, file)] = '\0';
	fclose(file);
	return text;
}

/* The first block of README.md in this language that has the text. The block lives until the next
 * file is read. Words for docs/check may follow the language. */
static const char *
find_block(const char *language, const char *text)
{
	char *at = read_file("README.md"), *end = NULL;
	char start[16];

	snprintf(start, sizeof start, "```%s", language);
	while ((at = strstr(at, start)) != NULL) {
		at += strlen(start);
		if (*at != ' ' && *at != '\n')
			continue;
		at = strchr(at, '\n') + 1;
		end = strstr(at, "```\n");
		cr_assert(end != NULL);
		*end = '\0';
		if (strstr(at, text) != NULL)
			break;
		at = end + 1;
	}
	cr_assert(at != NULL, "README.md has no block of %s with %s", language, text);
	return at;
}

static void
write_file(const char *path, const char *head, const char *text, const char *tail)
{
	FILE *file = fopen(path, "w");

	cr_assert(file != NULL && fputs(head, file) >= 0 && fputs(text, file) >= 0 &&
	          fputs(tail, file) >= 0 && fclose(file) == 0);
}

/* Compile the source with the command of README.md, in place of yours.c. */
static void
compile(const char *program, const char *source)
{
	static const char yours[] = " yours.c ";
	char command[1024];
	char *at = strstr(read_file("README.md"), "\ncc "), *rest;

	cr_assert(at != NULL);
	at++;
	at[strcspn(at, "\n")] = '\0';
	rest = strstr(at, yours);
	cr_assert(rest != NULL, "%s", at);
	snprintf(command, sizeof command, "%.*s -I. -o %s %s %s", (int)(rest - at), at, program,
	         source, rest + strlen(yours));
	cr_assert_eq(system(command), 0, "%s", command);
}

/* Read until the text has come this many times. */
static void
wait_for_text(int output, const char *wanted, int times)
{
	static char text[16 * 1024];
	struct pollfd wait = {output, POLLIN, 0};
	int64_t deadline = clutch_now() + time_limit();
	const char *at = text, *found;
	size_t length = 0;
	ssize_t count;

	while (times > 0) {
		count = 0;
		if (poll(&wait, 1, (int)(deadline - clutch_now())) > 0)
			count = read(output, text + length, sizeof text - 1 - length);
		cr_assert(count > 0, "waited in vain for \"%s\", %d times more, in:\n%s", wanted,
		          times, text);
		length += (size_t)count;
		text[length] = '\0';
		while (times > 0 && (found = strstr(at, wanted)) != NULL) {
			at = found + strlen(wanted);
			times--;
		}
	}
}

/* Compile the program of README.md that has the text. Returns its path. */
static const char *
build_program(const char *text)
{
	static char program[128];
	char source[128 + 2];

	if (system("command -v cc >/dev/null") != 0)
		cr_skip_test("no cc here");
	clear_environment();
	test_leash();
	snprintf(program, sizeof program, "%s/program", test_folder());
	snprintf(source, sizeof source, "%s.c", program);
	write_file(source, "", find_block("c", text), "");
	compile(program, source);
	return program;
}

/* Start a program with a pipe as stdout, as when another program keeps the log. */
static pid_t
start_program(const char *program, const char *argument, int *output)
{
	int ends[2];
	pid_t pid;

	cr_assert(pipe(ends) == 0);
	pid = fork();
	cr_assert(pid != -1);
	if (pid == 0) {
		dup2(ends[1], STDOUT_FILENO);
		close(ends[0]), close(ends[1]);
		execl(program, program, argument, (char *)NULL);
		_exit(127);
	}
	close(ends[1]);
	*output = ends[0];
	return pid;
}

static void
expect_success(pid_t pid)
{
	int status;

	cr_assert(waitpid(pid, &status, 0) == pid);
	cr_assert_eq(status, 0, "status %#x", (unsigned)status);
}

/* Each line must come while the program runs, and not only when the program writes its buffer at
 * the end. */
Test(examples, the_program_in_the_readme_prints_its_lines_into_a_pipe)
{
	int output;
	pid_t pid = start_program(build_program("\"action1\""), NULL, &output);

	wait_for_text(output, ": action1 {\"a\":1}\n", 3);
	cr_assert(kill(pid, SIGTERM) == 0);
	expect_success(pid);
	close(output);
}

/* Has a process this file open? */
static bool
holds(pid_t pid, const char *path)
{
	char link[64], target[256];
	int descriptor;
	ssize_t length;

	for (descriptor = 0; descriptor < 256; descriptor++) {
		snprintf(link, sizeof link, "/proc/%ld/fd/%d", (long)pid, descriptor);
		length = readlink(link, target, sizeof target - 1);
		target[length > 0 ? length : 0] = '\0';
		if (strcmp(target, path) == 0)
			return true;
	}
	return false;
}

/* The program, its master, an agent and two apps; only the program has the pipe. */
static void
expect_closed_in_children(pid_t program, const char *path)
{
	pid_t pids[64];
	size_t i, count = test_leashed(pids, 64), processes = 0;

	for (i = 0; i < count; i++) {
		processes += process_is_alive(pids[i]);
		cr_expect_eq(holds(pids[i], path), pids[i] == program,
		             "process %ld (the program is %ld) holds the pipe, or does not hold it",
		             (long)pids[i], (long)program);
	}
	cr_expect_eq(processes, 5, "%zu processes", processes);
}

/* The recipe for a program that already runs: the program hears both its own descriptor and the
 * cluster, its children close the descriptors that it has opened, and the cluster ends with it. */
Test(examples, the_program_in_the_readme_that_already_lives_keeps_its_own_descriptor)
{
	const char *program = build_program("messenger_descriptors(");
	char orders[256], *folder = realpath(test_folder(), NULL);
	int output, writer;
	pid_t pid;

	cr_assert(folder != NULL);
	snprintf(orders, sizeof orders, "%s/orders", folder);
	free(folder);
	cr_assert(mkfifo(orders, 0600) == 0);
	pid = start_program(program, orders, &output);
	writer = open(orders, O_WRONLY);
	cr_assert(writer != -1 && write(writer, "1", 1) == 1);
	wait_for_text(output, ": order 1\n", 2);
	expect_closed_in_children(pid, orders);
	cr_assert(write(writer, "2", 1) == 1);
	wait_for_text(output, ": order 2\n", 2);
	cr_assert(write(writer, "3", 1) == 1 && close(writer) == 0);
	wait_for_text(output, ": order 3\n", 2);
	expect_success(pid);
	close(output);
}

/* Each of two apps greets the agent over a socketpair, and hears its answer. */
Test(examples, the_program_in_the_readme_that_talks_past_the_master)
{
	int output;
	pid_t pid = start_program(build_program("messenger_join("), NULL, &output);

	wait_for_text(output, "an app hears \"hello yourself\"\n", 2);
	cr_assert(kill(pid, SIGTERM) == 0);
	expect_success(pid);
	close(output);
}

/* The snippet in C++ is the end of a function. */
Test(examples, the_cplusplus_in_the_readme_compiles)
{
	char source[128], command[512];

	if (system("printf 'int main() { return 0; }' | c++ -x c++ -fsyntax-only - 2>/dev/null") !=
	    0) {
		fprintf(stderr, "there is no C++ compiler: skipped\n");
		cr_skip_test("no C++ compiler");
	}
	snprintf(source, sizeof source, "%s/program.cc", test_folder());
	write_file(source,
	           "#include \"messenger.h\"\n"
	           "static int run_app(struct messenger *, void *) { return 0; }\n"
	           "int main() {\n",
	           find_block("cpp", "struct options"), "}\n");
	snprintf(command, sizeof command,
	         "c++ -Wall -Wextra -Wno-missing-field-initializers -Werror -I. -fsyntax-only %s",
	         source);
	cr_assert_eq(system(command), 0, "%s", command);
}

/* For two processes that only talk, a reader copies the include and the command. */
Test(examples, the_channel_in_the_readme_needs_sendmessage_c_alone)
{
	static const char start[] =
		"\ncc -std=c99 -D_POSIX_C_SOURCE=200809L yours.c sendmessage.c\n";
	char source[128], command[512];

	if (system("command -v cc >/dev/null") != 0)
		cr_skip_test("no cc here");
	snprintf(source, sizeof source, "%s/program.c", test_folder());
	write_file(source, "", find_block("c", "CLUTCH_CHANNEL"),
	           "int main(void) { struct channel channel; channel_init(&channel, 0);\n"
	           "return channel_flush(&channel) == PEER_ALIVE ? 0 : 1; }\n");
	cr_assert(strstr(read_file("README.md"), start) != NULL, "README.md says:%s", start);
	snprintf(command, sizeof command,
	         "cc -std=c99 -D_POSIX_C_SOURCE=200809L -I. -o %s/program %s sendmessage.c && "
	         "%s/program",
	         test_folder(), source, test_folder());
	cr_assert_eq(system(command), 0, "%s", command);
}

/* ---- without stdin, stdout or stderr ---------------------------------------------- */

struct example {
	const char *name;
	const char *arguments[4];
	size_t processes; /* the test looks at their descriptors when this many live */
	int status;       /* at the end, as waitpid(2) has it */
	bool stays;       /* the example runs until SIGTERM */
	bool is_short;    /* the first line has to wait until the test has looked */
	bool is_missable; /* the lines do not wait, so the end may come before the test looks */
	bool only_main;   /* a child has pipes as stdin and stdout on purpose */
};

/* One run of an example. */
struct run {
	const struct example *example;
	int closed; /* bit N: the example is started without descriptor N */
	pid_t pid;
	int output;             /* the reading end of its stdout and stderr */
	int listener, accepted; /* of a server to which the example must have connected; or -1 */
	char given[3][64];      /* the descriptors at the start, as /proc has them */
	bool checked;           /* the test has looked at the descriptors */
};

static const char *
link_of(pid_t pid, int descriptor, char target[64])
{
	char path[64];
	ssize_t length;

	snprintf(path, sizeof path, "/proc/%ld/fd/%d", (long)pid, descriptor);
	length = readlink(path, target, 63);
	target[length > 0 ? length : 0] = '\0';
	return target;
}

/* Fill the pipe: the next process that prints into it has to wait. */
static void
fill_pipe(int pipe_end)
{
	static const char text[4096];

	fcntl(pipe_end, F_SETFL, O_NONBLOCK);
	while (write(pipe_end, text, sizeof text) > 0)
		;
	fcntl(pipe_end, F_SETFL, 0);
}

static void
start(struct run *run)
{
	const char *argv[6] = {path_of(run->example->name)};
	int ends[2], null = open("/dev/null", O_RDWR), i;

	for (i = 0; run->example->arguments[i] != NULL; i++)
		argv[i + 1] = run->example->arguments[i];
	cr_assert(pipe(ends) == 0);
	if (run->example->is_short)
		fill_pipe(ends[1]);
	fcntl(ends[0], F_SETFL, O_NONBLOCK);
	link_of(getpid(), null, run->given[0]);
	link_of(getpid(), ends[1], run->given[1]);
	link_of(getpid(), ends[1], run->given[2]);
	run->pid = fork();
	cr_assert(run->pid != -1);
	if (run->pid == 0) {
		dup2(null, 0), dup2(ends[1], 1), dup2(ends[1], 2);
		close(null), close(ends[0]), close(ends[1]);
		if (run->listener != -1)
			close(run->listener);
		for (i = 0; i < 3; i++)
			if ((run->closed & 1 << i) != 0)
				close(i);
		execv(argv[0], (char *const *)(uintptr_t)argv);
		_exit(127);
	}
	close(null), close(ends[1]);
	run->output = ends[0];
}

static const char *
name_of(const struct run *run)
{
	static char name[64];

	snprintf(name, sizeof name, "%s%s%s%s", run->example->name,
	         (run->closed & 1) != 0 ? " <&-" : "", (run->closed & 2) != 0 ? " >&-" : "",
	         (run->closed & 4) != 0 ? " 2>&-" : "");
	return name;
}

/* A descriptor that the example was given is still the same one. A descriptor that it was
 * not given is closed, or /dev/null. */
static void
check(const struct run *run, pid_t pid)
{
	char target[64];
	int i;

	for (i = 0; i < 3; i++) {
		link_of(pid, i, target);
		if (target[0] == '\0') /* closed, or the process has just died */
			continue;
		cr_assert_str_eq(target, (run->closed & 1 << i) != 0 ? "/dev/null" : run->given[i],
		                 "%s: descriptor %d of process %ld is %s", name_of(run), i,
		                 (long)pid, target);
	}
}

/* Look only when the example has forked. Until then the dynamic linker may have a library open
 * under one of the numbers. */
static void
look(struct run *run)
{
	pid_t pids[64];
	size_t i, count = test_leashed(pids, 64);

	if (run->listener != -1 && run->accepted == -1)
		run->accepted = accept(run->listener, NULL, NULL);
	if (count < run->example->processes || (run->listener != -1 && run->accepted == -1))
		return;
	for (i = 0; i < count; i++)
		if (!run->example->only_main || pids[i] == run->pid)
			check(run, pids[i]);
	run->checked = true;
}

static bool
is_nobody_left(void)
{
	pid_t pids[64];
	size_t count = test_leashed(pids, 64);

	while (count > 0 && !process_is_alive(pids[count - 1]))
		count--;
	return count == 0;
}

/* Run the example, and look again and again until it ends. */
static void
run_without(const struct example *example, int closed, int listener)
{
	struct run run = {
		.example = example, .closed = closed, .listener = listener, .accepted = -1};
	int64_t deadline = clutch_now() + 3 * time_limit();
	bool told = false;
	char text[4096];
	int status;

	start(&run);
	while (waitpid(run.pid, &status, WNOHANG) == 0) {
		cr_assert(clutch_now() < deadline,
		          "%s does not end (its descriptors were looked at: %d)", name_of(&run),
		          run.checked);
		look(&run);
		while (run.checked && read(run.output, text, sizeof text) > 0)
			;
		if (run.checked && example->stays && !told)
			told = kill(run.pid, SIGTERM) == 0;
		poll(NULL, 0, 1);
	}
	cr_assert_eq(status, example->status, "%s: status %#x", name_of(&run), (unsigned)status);
	cr_assert(run.checked || example->is_missable || (example->is_short && (closed & 2) != 0),
	          "the descriptors of %s were not looked at", name_of(&run));
	while (!is_nobody_left()) {
		cr_assert(clutch_now() < deadline, "%s has left a process behind", name_of(&run));
		poll(NULL, 0, 1);
	}
	close(run.output);
	if (run.accepted != -1)
		close(run.accepted);
}

/* Without stdin, without stdout, without stderr, without all of them. */
static void
run_without_each(const struct example *example, int listener)
{
	static const int closed[] = {1, 2, 4, 7};
	size_t i;

	clear_environment();
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	test_leash();
	for (i = 0; i < sizeof closed / sizeof closed[0]; i++)
		run_without(example, closed[i], listener);
}

Test(examples, action1_without_stdin_stdout_or_stderr)
{
	run_without_each(&(struct example){.name = "action1", .processes = 5, .stays = true}, -1);
}

Test(examples, hello_without_stdin_stdout_or_stderr)
{
	run_without_each(&(struct example){.name = "hello",
	                                   .arguments = {"--port=0", "--workers=2"},
	                                   .processes = 5,
	                                   .stays = true},
	                 -1);
}

Test(examples, ping_without_stdin_stdout_or_stderr)
{
	run_without_each(
		&(struct example){
			.name = "ping", .processes = 2, .is_short = true, .is_missable = true},
		-1);
}

Test(examples, refresh_without_stdin_stdout_or_stderr)
{
	run_without_each(&(struct example){.name = "refresh",
	                                   .arguments = {"--port=0", "--workers=2",
	                                                 "--source=http://127.0.0.1:9"},
	                                   .processes = 5,
	                                   .stays = true},
	                 -1);
}

Test(examples, source_without_stdin_stdout_or_stderr)
{
	run_without_each(
		&(struct example){
			.name = "source", .arguments = {"--port=0"}, .processes = 3, .stays = true},
		-1);
}

Test(examples, metrics_without_stdin_stdout_or_stderr)
{
	run_without_each(&(struct example){.name = "metrics",
	                                   .arguments = {"--port=0", "--workers=2"},
	                                   .processes = 5,
	                                   .stays = true},
	                 -1);
}

/* The cluster prints into a pipe of the parent's. */
Test(examples, live_without_stdin_stdout_or_stderr)
{
	run_without_each(&(struct example){.name = "live",
	                                   .arguments = {"--port=0", "--workers=2"},
	                                   .processes = 5,
	                                   .stays = true,
	                                   .only_main = true},
	                 -1);
}

Test(examples, registry_without_stdin_stdout_or_stderr)
{
	run_without_each(&(struct example){.name = "registry", .processes = 4}, -1);
}

Test(examples, api_client_without_stdin_stdout_or_stderr)
{
	run_without_each(&(struct example){.name = "api_client", .processes = 4}, -1);
}

Test(examples, stdio_without_stdin_stdout_or_stderr)
{
	run_without_each(
		&(struct example){
			.name = "ipc/stdio", .processes = 2, .is_short = true, .only_main = true},
		-1);
}

Test(examples, native_without_stdin_stdout_or_stderr)
{
	run_without_each(&(struct example){.name = "ipc/native", .processes = 2, .is_short = true},
	                 -1);
}

Test(examples, socket_without_stdin_stdout_or_stderr)
{
	setenv("TMPDIR", test_folder(), 1);
	run_without_each(
		&(struct example){.name = "ipc/socket", .arguments = {"1000"}, .processes = 2}, -1);
}

Test(examples, queue_without_stdin_stdout_or_stderr)
{
	if (system("sh test/redis server >/dev/null") != 0)
		cr_skip_test("no Redis server here");
	setenv("TMPDIR", test_folder(), 1);
	run_without_each(&(struct example){.name = "ipc/queue", .processes = 4}, -1);
}

/* This Redis does not answer, so the program waits and keeps its connection. */
Test(examples, rsmq_call_without_stdin_stdout_or_stderr)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
	char url[128];

	snprintf(address.sun_path, sizeof address.sun_path, "%s/redis", test_folder());
	snprintf(url, sizeof url, "unix://%s", address.sun_path);
	cr_assert(bind(listener, (struct sockaddr *)&address, sizeof address) == 0 &&
	          listen(listener, 1) == 0);
	run_without_each(&(struct example){.name = "ipc/rsmq_call",
	                                   .arguments = {url, "attributes", "jobs"},
	                                   .processes = 1,
	                                   .stays = true,
	                                   .status = SIGTERM},
	                 listener);
	close(listener);
}
