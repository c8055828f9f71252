/*
 * What the caller brings along: closed descriptors, signals that it handles, blocks or
 * ignores, handlers for its exit, open messengers, threads, a terminal, a small limit of
 * descriptors, or no process above it. Clutch uses some of these for itself. Clutch restores
 * everything that it changes, and a program that an application starts finds the caller's state.
 *
 * Each test forks a program that calls clutch as its author would: see caller.h.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "caller.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <strings.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <termios.h>

TestSuite(caller, .timeout = 60);

static int
take_connection(struct messenger *app, int descriptor, void *arg)
{
	(void)app, (void)arg;
	close(descriptor);
	return 0;
}

/* In the caller: become one of the examples. */
static void
become(const char *program, const char *first, const char *second, const char *third)
{
	const char *build = getenv("BUILD");
	char path[PATH_MAX];

	snprintf(path, sizeof path, "%s/examples/%s", build != NULL ? build : "build", program);
	execl(path, program, first, second, third, (char *)NULL);
	_exit(127);
}

/* ---- descriptors 0, 1 and 2 are closed ------------------------------------------ */

static unsigned closed_ones; /* bit n: the caller has closed descriptor n */
static const char *pid_file;

static void
close_them(void)
{
	int number;

	for (number = 0; number < 3; number++)
		if ((closed_ones >> number & 1) != 0)
			close(number);
}

static int
without_descriptors(void)
{
	close_them();
	return run_cluster(&(struct options){.agent = role,
	                                     .app = role,
	                                     .connection = take_connection,
	                                     .workers = 2,
	                                     .port = -1,
	                                     .pid_file = pid_file});
}

/* The name of the file that a process has as descriptor `number`; "nothing" if it is closed. */
static const char *
descriptor_of(pid_t pid, int number)
{
	static char target[128];
	char path[64];
	ssize_t length;

	snprintf(path, sizeof path, "/proc/%ld/fd/%d", (long)pid, number);
	length = readlink(path, target, sizeof target - 1);
	if (length <= 0)
		return "nothing";
	target[length] = '\0';
	return target;
}

/* Below 3 a process may have what the caller had there, and /dev/null; the caller itself
 * may have nothing there. */
static bool
is_right(const struct caller *c, pid_t pid, int number, const char *output)
{
	const char *found = descriptor_of(pid, number);

	return strcmp(found, "/dev/null") == 0 || strcmp(found, output) == 0 ||
	       (pid == c->pid && strcmp(found, "nothing") == 0) || !process_is_alive(pid);
}

/* A linker or a sanitizer may have a file open there for a moment. */
static void
check_descriptors(struct caller *c)
{
	int64_t deadline = clutch_now() + 1000;
	pid_t pids[16];
	size_t i, count = test_leashed(pids, 16);
	char output[64];
	struct stat status;
	int number;

	fstat(c->output, &status);
	snprintf(output, sizeof output, "pipe:[%llu]", (unsigned long long)status.st_ino);
	for (i = 0; i < count; i++)
		for (number = 0; number < 3; number++) {
			while (!is_right(c, pids[i], number, output) && clutch_now() < deadline)
				poll(NULL, 0, 5);
			caller_assert(c, is_right(c, pids[i], number, output),
			              "descriptor %d of process %ld (the caller is %ld) is %s",
			              number, (long)pids[i], (long)c->pid,
			              descriptor_of(pids[i], number));
		}
}

/* The cluster starts, replaces a killed app, and stops; its pid file holds a pid. */
static void
start_without(bool by_fork, unsigned closed)
{
	struct caller *c;
	char pid[16];
	size_t at;

	forks = by_fork;
	closed_ones = closed;
	pid_file = path_of("pid");
	c = caller_start(without_descriptors);
	caller_wait(c, 0, "agent is ");
	check_descriptors(c);
	at = caller_wait(c, 0, "app ready ");
	at = caller_wait(c, at, "app ready ");
	check_descriptors(c);
	kill(caller_number(c, "app is "), SIGKILL);
	caller_wait(c, at, "app ready ");
	check_descriptors(c);
	snprintf(pid, sizeof pid, "%ld", (long)caller_number(c, "master is "));
	caller_assert(c, strcmp(content_of(pid_file), pid) == 0, "the pid file holds \"%s\"",
	              content_of(pid_file));
	caller_stop(c);
	caller_free(c);
}

Test(caller, start_cluster_without_stdin)
{
	start_without(false, 1);
}

Test(caller, start_cluster_without_stdout)
{
	start_without(false, 2);
}

Test(caller, start_cluster_without_stderr)
{
	start_without(false, 4);
}

Test(caller, start_cluster_without_any_descriptor)
{
	start_without(false, 7);
}

Test(caller, fork_cluster_without_stdin)
{
	start_without(true, 1);
}

Test(caller, fork_cluster_without_stdout)
{
	start_without(true, 2);
}

Test(caller, fork_cluster_without_stderr)
{
	start_without(true, 4);
}

Test(caller, fork_cluster_without_any_descriptor)
{
	start_without(true, 7);
}

static int
ping(void)
{
	close_them();
	become("ping", NULL, NULL, NULL);
	return 127;
}

Test(caller, ping_answers_without_stdout)
{
	for (closed_ones = 1; closed_ones < 8; closed_ones++) {
		struct caller *c = caller_start(ping);

		caller_ends(c, 0);
		caller_free(c);
	}
}

static int
action1(void)
{
	close_them();
	become("action1", NULL, NULL, NULL);
	return 127;
}

/* Are there five processes, and none of them has the pid `arg` points to (if it is not 0)? */
static bool
five_without(struct caller *c, const void *arg)
{
	const pid_t *gone = arg;
	pid_t pids[16];
	size_t i, count = test_leashed(pids, 16);

	(void)c;
	for (i = 0; i < count; i++)
		if (pids[i] == *gone)
			return false;
	return count == 5;
}

Test(caller, action1_replaces_an_app_without_any_descriptor)
{
	struct caller *c;
	pid_t pids[16], killed = 0;
	size_t i;

	closed_ones = 7;
	c = caller_start(action1);
	cr_assert(caller_until(c, five_without, &killed), "action1 has not started");
	check_descriptors(c);
	test_leashed(pids, 16);
	for (i = 0; i < 5; i++) /* an app has been forked last */
		killed = pids[i] > killed ? pids[i] : killed;
	kill(killed, SIGKILL);
	cr_assert(caller_until(c, five_without, &killed), "the app is not replaced");
	check_descriptors(c);
	kill(c->pid, SIGTERM);
	caller_ends(c, 0);
	caller_free(c);
}

/* ---- another messenger of the caller's ---------------------------------------------- */

static int
fails(struct messenger *messenger, void *arg)
{
	(void)messenger, (void)arg;
	return 1;
}

/* Two messengers of one process: does what one sends arrive at the other's end? */
static void
check_messenger(struct messenger *messenger, int other, const char *after)
{
	char bytes[256];

	if (messenger_send(messenger, "hello", NULL, ROLE_MASTER) == -1)
		say("cut off after %s: %s", after, strerror(errno));
	else if (messenger_step(messenger, 0) != 1 ||
	         recv(other, bytes, sizeof bytes, MSG_DONTWAIT) <= 0)
		say("cut off after %s", after);
	else
		say("still open after %s", after);
}

static int
with_a_messenger(void)
{
	struct messenger *messenger;
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == -1)
		return 1;
	messenger = messenger_open(pair[0], ROLE_PARENT);
	start_cluster(&(struct options){
		.host = "no-such-host", .port = -1, .connection = take_connection, .workers = 1});
	check_messenger(messenger, pair[1], "a bad host");
	start_cluster(&(struct options){.workers = CLUTCH_WORKERS_MAX + 1});
	check_messenger(messenger, pair[1], "too many workers");
	start_cluster(&(struct options){.workers = 1, .pid_file = "/"});
	check_messenger(messenger, pair[1], "a bad pid file");
	start_cluster(&(struct options){.workers = 1, .agent = fails});
	check_messenger(messenger, pair[1], "an agent that fails");
	messenger_close(messenger);
	return 0;
}

Test(caller, a_failed_start_touches_no_other_messenger)
{
	struct caller *c = caller_start(with_a_messenger);

	caller_ends(c, 0);
	caller_assert(c, caller_count(c, "cut off") == 0, "the caller's messenger is closed");
	caller_assert(c, caller_count(c, "still open") == 4, "not all was tried");
	caller_free(c);
}

static void
fail_to_start(struct options options)
{
	int i, before = process_descriptors(getpid());

	start_cluster(&options);
	for (i = 0; i < 3; i++)
		if (fcntl(i, F_GETFD) == -1)
			say("%d is closed", i);
	say("%d lost", before - process_descriptors(getpid()));
}

/* Each of these starts fails, before it has forked anything. */
static int
with_open_descriptors(void)
{
	fail_to_start((struct options){.workers = 1, .parent = 1 << 20});
	fail_to_start((struct options){.workers = CLUTCH_WORKERS_MAX + 1});
	fail_to_start((struct options){.workers = 1, .pid_file = "/"});
	return 0;
}

Test(caller, a_failed_start_closes_no_descriptor_of_the_callers)
{
	struct caller *c = caller_start(with_open_descriptors);

	caller_ends(c, 0);
	caller_assert(c, caller_count(c, "closed") == 0, "a standard descriptor is closed");
	caller_assert(c, caller_count(c, "0 lost") == 3, "a descriptor is closed");
	caller_free(c);
}

/* The cluster owns the parent's end from the call on, even if the start fails. */
static int
with_a_parents_end(void)
{
	struct options options = {.workers = CLUTCH_WORKERS_MAX + 1};
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == -1)
		return 1;
	options.parent = pair[0];
	start_cluster(&options);
	say("the parent's end is %s", fcntl(pair[0], F_GETFD) == -1 ? "closed" : "open");
	options = (struct options){.workers = 1, .agent = fails, .parent = dup(pair[1])};
	start_cluster(&options);
	say("the parent's end is %s", fcntl(options.parent, F_GETFD) == -1 ? "closed" : "open");
	return 0;
}

Test(caller, the_parents_end_is_closed_after_each_start)
{
	struct caller *c = caller_start(with_a_parents_end);

	caller_ends(c, 0);
	caller_assert(c, caller_count(c, "end is closed") == 2, "it is open");
	caller_free(c);
}

/* The caller holds its own end of the channel, and no copy of the master's end: so the caller
 * sees the end of file when the master is killed. */
static int
with_a_master_that_is_killed(void)
{
	int before = process_descriptors(getpid());
	struct options options = {.workers = 1};
	struct messenger *parent;
	pid_t master;

	parent = fork_cluster(&options, &master);
	say("%d more", process_descriptors(getpid()) - before);
	kill(master, SIGKILL);
	waitpid(master, NULL, 0);
	while (messenger_step(parent, PATIENCE) == 1)
		;
	say("the channel has ended");
	messenger_close(parent);
	return 0;
}

Test(caller, fork_cluster_opens_one_descriptor_in_the_caller)
{
	struct caller *c = caller_start(with_a_master_that_is_killed);

	caller_wait(c, 0, "1 more");
	caller_wait(c, 0, "the channel has ended");
	caller_ends(c, 0);
	caller_free(c);
}

static int
end_inner_cluster(struct messenger *messenger, void *arg)
{
	(void)messenger, (void)arg;
	kill(getppid(), SIGTERM);
	return 0;
}

/* The turns after egg-ready would show a process that leaves. */
static int
inner_ready(struct messenger *messenger, const struct message *message, void *arg)
{
	(void)message;
	return messenger_set_timeout(messenger, 50, end_inner_cluster, arg) == -1;
}

static int
inner_role(struct messenger *messenger, void *arg)
{
	(void)arg;
	return messenger_once(messenger, "egg-ready", inner_ready, NULL);
}

static int
start_an_inner_cluster(struct messenger *messenger, void *arg)
{
	(void)messenger, (void)arg;
	say("inner cluster: %d",
	    start_cluster(&(struct options){.name = "inner", .workers = 1, .app = inner_role}));
	return 0;
}

static int
nesting_role(struct messenger *messenger, void *arg)
{
	messenger_before_close(messenger, start_an_inner_cluster, NULL);
	return role(messenger, arg);
}

static int
with_an_inner_cluster(void)
{
	return run_cluster(&(struct options){.app = nesting_role, .workers = 1});
}

/* The worker was told to leave; the inner cluster's processes must not inherit that order. */
Test(caller, a_worker_that_leaves_may_start_a_cluster)
{
	struct caller *c = caller_start(with_an_inner_cluster);

	caller_wait(c, 0, "app ready");
	kill(caller_number(c, "master is"), SIGTERM);
	caller_wait(c, 0, "inner started");
	caller_ends(c, 0);
	caller_assert(c, caller_count(c, "inner cluster: 0") == 1, "the inner cluster failed");
	caller_assert(c, caller_count(c, " disconnect") == 0, "an inner process has left at once");
	caller_assert(c, caller_count(c, "master: [app_worker]") == 0,
	              "the worker goes on under the name of the inner master");
	caller_assert(c, caller_count(c, "app 0: [app_worker] beforeExit success") == 2,
	              "both workers say so");
	caller_free(c);
}

static int
with_two_clusters(void)
{
	const struct options options = {.agent = role, .app = role, .workers = 1};
	struct messenger *parent;
	pid_t master;

	parent = fork_cluster(&options, &master);
	start_cluster(&(struct options){.workers = 1, .agent = fails});
	say("master is %ld", (long)master);
	if (parent == NULL || messenger_once(parent, "egg-ready", say_ready, NULL) == -1)
		return 1;
	while (messenger_step(parent, -1) == 1)
		;
	messenger_close(parent);
	waitpid(master, NULL, 0);
	return 0;
}

Test(caller, a_failed_start_touches_no_other_cluster)
{
	struct caller *c = caller_start(with_two_clusters);

	caller_wait(c, 0, "parent ready ");
	caller_stop(c);
	caller_free(c);
}

/* ---- what happens at exit ------------------------------------------------------------ */

/* The caller reads its orders from a file, and one of them starts a cluster. */
static int
reads_orders(void)
{
	char line[64];
	int clusters = 0, input = open(pid_file, O_RDONLY);

	dup2(input, STDIN_FILENO);
	clearerr(stdin);
	while (fgets(line, sizeof line, stdin) != NULL) {
		say("order: %.*s", (int)strcspn(line, "\n"), line);
		if (strcmp(line, "cluster\n") == 0 && ++clusters > 1)
			break; /* the file would be read for ever */
		if (strcmp(line, "cluster\n") == 0)
			run_cluster(&(struct options){.agent = role, .app = role, .workers = 2});
	}
	say("the offset is %ld", (long)lseek(STDIN_FILENO, 0, SEEK_CUR));
	return 0;
}

static void
read_orders(bool by_fork)
{
	static const char orders[] = "first\ncluster\nlast\n";
	struct caller *c;
	int file;

	forks = by_fork;
	pid_file = path_of("orders");
	file = open(pid_file, O_WRONLY | O_CREAT, 0600);
	cr_assert(write(file, orders, sizeof orders - 1) == sizeof orders - 1);
	close(file);
	c = caller_start(reads_orders);
	caller_wait(c, 0, "app ready ");
	caller_stop(c);
	caller_assert(c, caller_count(c, "order: ") == 3, "%zu orders of 3 were read",
	              caller_count(c, "order: "));
	caller_assert(c, caller_count(c, "the offset is 19\n") == 1, "stdin was moved");
	caller_free(c);
}

Test(caller, the_children_of_start_cluster_do_not_move_stdin)
{
	read_orders(false);
}

Test(caller, a_forked_cluster_does_not_move_stdin)
{
	read_orders(true);
}

static void
callers_exit(void)
{
	say("the caller's exit handler runs in %ld", (long)getpid());
}

static int
on_word(struct messenger *messenger, const struct message *message, void *arg)
{
	(void)arg;
	if (strcmp(message->action, "test-uncaught") == 0)
		return 1;
	printf("last words of %ld;", (long)getpid());
	messenger_send_to_agent(messenger, "test-farewell", NULL);
	say("exits: %ld", (long)getpid());
	exit(3);
}

static int
say_farewell(struct messenger *agent, const struct message *message, void *arg)
{
	(void)agent, (void)message, (void)arg;
	say("farewell");
	return 0;
}

/* At egg-ready the agent has the app exit, or fail. */
static int
order_the_end(struct messenger *agent, const struct message *message, void *arg)
{
	say_ready(agent, message, NULL);
	return arg != NULL ? messenger_send_to_app(agent, arg, NULL) : 0;
}

static int
exit_agent(struct messenger *agent, void *arg)
{
	say("agent is %ld", (long)getpid());
	return messenger_on(agent, "test-farewell", say_farewell, NULL) == 0
	               ? messenger_once(agent, "egg-ready", order_the_end, arg)
	               : -1;
}

static int
fail_later(struct messenger *messenger, void *arg)
{
	(void)arg;
	return messenger_ready(messenger, 1);
}

/* The app's start ends in the way that `exit_word` names. */
static int
exit_app(struct messenger *app, void *arg)
{
	if (arg != NULL && strcmp(arg, "start") == 0)
		return 1;
	if (arg != NULL && strcmp(arg, "ready") == 0) {
		messenger_ready_later(app);
		return messenger_set_timeout(app, 0, fail_later, NULL) > 0 ? 0 : -1;
	}
	return messenger_on(app, "test-exit", on_word, NULL) == 0 &&
	                       messenger_on(app, "test-uncaught", on_word, NULL) == 0
	               ? role(app, NULL)
	               : -1;
}

static const char *exit_word;

static int
with_an_exit_handler(void)
{
	char word[32];

	atexit(callers_exit);
	setvbuf(stdout, NULL, _IOFBF, 4096);
	if (exit_word != NULL)
		snprintf(word, sizeof word, "%s", exit_word);
	return run_cluster(&(struct options){
		.agent = exit_word != NULL && strcmp(exit_word, "agent") == 0 ? fails : exit_agent,
		.app = exit_app,
		.arg = exit_word != NULL ? word : NULL,
		.workers = 1});
}

/* The caller leaves by _exit: so if its handler runs, another process has run it. */
static struct caller *
start_with_handler(bool by_fork, const char *word)
{
	forks = by_fork;
	exit_word = word;
	return caller_start(with_an_exit_handler);
}

static void
end_without_handler(struct caller *c, int status)
{
	caller_ends(c, status);
	caller_assert(c, caller_count(c, "the caller's exit handler") == 0,
	              "the caller's exit handler has run in %ld",
	              (long)caller_number(c, "exit handler runs in "));
	caller_free(c);
}

/* Take every way in which clutch itself ends a process. */
static void
leave_in_every_way(bool by_fork)
{
	static const char *const failures[] = {"agent", "start", "ready"};
	struct caller *c;
	size_t i, at;

	for (i = 0; i < sizeof failures / sizeof failures[0]; i++)
		end_without_handler(start_with_handler(by_fork, failures[i]), 1);

	c = start_with_handler(by_fork, "test-uncaught");
	at = caller_wait(c, caller_wait(c, 0, "app is "), "app is ");
	caller_wait(c, at, "app ready ");
	kill(caller_number(c, "master is "), SIGTERM);
	end_without_handler(c, 0);

	c = start_with_handler(by_fork, NULL);
	caller_wait(c, 0, "app ready ");
	caller_wait(c, 0, "agent ready ");
	kill(caller_number(c, "master is "), SIGKILL);
	end_without_handler(c, 128 + SIGKILL);
}

Test(caller, the_children_of_start_cluster_run_no_exit_handler_of_the_caller)
{
	leave_in_every_way(false);
}

Test(caller, a_forked_cluster_runs_no_exit_handler_of_the_caller)
{
	leave_in_every_way(true);
}

/* An application that calls exit(3) gets all that the C library promises: handlers run, stdout
 * is flushed, and sent messages arrive. No other way out runs the handler. */
Test(caller, an_exit_of_the_applications_own_is_the_c_librarys)
{
	struct caller *c = start_with_handler(false, "test-exit");
	char words[64];
	pid_t pid;

	caller_wait(c, caller_wait(c, 0, "app is "), "app is ");
	caller_wait(c, 0, "farewell");
	pid = caller_number(c, "exits: ");
	snprintf(words, sizeof words, "exit handler runs in %ld\n", (long)pid);
	caller_wait(c, 0, words);
	snprintf(words, sizeof words, "last words of %ld;", (long)pid);
	caller_wait(c, 0, words);
	caller_wait(c, 0, "code: 3");
	caller_stop(c);
	caller_assert(c, caller_count(c, "the caller's exit handler") == 1,
	              "the caller's exit handler has run elsewhere, too");
	caller_free(c);
}

static int
print_words(struct messenger *messenger, void *arg)
{
	FILE *own = fdopen(dup(WORDS), "w"); /* full buffering, as it is no terminal */

	printf("words of %ld;", (long)getpid());
	fprintf(stderr, "errors of %ld;", (long)getpid());
	fprintf(own, "stream of %ld;", (long)getpid());
	if (messenger_role(messenger) == ROLE_APP)
		return exit_app(messenger, arg);
	return exit_agent(messenger, arg);
}

/* Words of the caller's own wait in stdout and stderr, too. */
static int
with_words(void)
{
	static char buffer[4096], word[32];
	int status;

	setvbuf(stdout, NULL, _IOFBF, 4096);
	setvbuf(stderr, buffer, _IOFBF, sizeof buffer);
	printf("words of %ld;", (long)getpid());
	fprintf(stderr, "errors of %ld;", (long)getpid());
	if (exit_word != NULL)
		snprintf(word, sizeof word, "%s", exit_word);
	status = run_cluster(&(struct options){.agent = print_words,
	                                       .app = print_words,
	                                       .arg = exit_word != NULL ? word : NULL,
	                                       .workers = 1});
	fflush(stdout);
	fflush(stderr);
	return status;
}

/* Each process that has printed its pid behind `who` has printed its words exactly once. */
static void
check_words(struct caller *c, const char *who)
{
	static const char *const kinds[] = {"words", "errors", "stream"};
	char words[64], line[256];
	const char *at = c->text;
	int count = 0;
	size_t i;

	while ((at = line_behind(c, at, who, line)) != NULL) {
		for (i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
			snprintf(words, sizeof words, "%s of %ld;", kinds[i], atol(line));
			caller_assert(c, caller_count(c, words) == 1, "%zu times \"%s\"",
			              caller_count(c, words), words);
		}
		count++;
	}
	caller_assert(c, count > 0, "no process says \"%s\"", who);
}

static void
end_with_words(struct caller *c, int status)
{
	char words[64];

	caller_ends(c, status);
	check_words(c, "agent is ");
	if (exit_word == NULL || strcmp(exit_word, "test-uncaught") == 0)
		check_words(c, "app is ");
	snprintf(words, sizeof words, "words of %ld;", (long)c->pid);
	caller_assert(c, caller_count(c, words) == 1, "%zu times the caller's \"%s\"",
	              caller_count(c, words), words);
	caller_free(c);
}

/* Text printed with stdio comes out once, in every way that a process can end. */
static void
print_and_leave(bool by_fork)
{
	struct caller *c;
	size_t at;

	forks = by_fork;
	exit_word = NULL;
	c = caller_start(with_words);
	caller_wait(c, 0, "app ready ");
	caller_wait(c, 0, "agent ready ");
	kill(caller_number(c, "master is "), SIGTERM);
	end_with_words(c, 0);

	exit_word = "test-uncaught";
	c = caller_start(with_words);
	at = caller_wait(c, caller_wait(c, 0, "app is "), "app is ");
	caller_wait(c, at, "app ready ");
	kill(caller_number(c, "master is "), SIGTERM);
	end_with_words(c, 0);

	exit_word = "ready";
	c = caller_start(with_words);
	end_with_words(c, 1);
	exit_word = "start";
	c = caller_start(with_words);
	end_with_words(c, 1);
}

Test(caller, what_is_printed_comes_out_once)
{
	print_and_leave(false);
}

Test(caller, what_is_printed_in_a_forked_cluster_comes_out_once)
{
	print_and_leave(true);
}

/* ---- a thread that reads ------------------------------------------------------------- */

static void *
read_line(void *stream)
{
	char line[64];

	if (fgets(line, sizeof line, stream) != NULL)
		say("a thread has read a line");
	return NULL;
}

/* Two threads hold the locks of their streams, because nothing comes. */
static int
with_threads(void)
{
	FILE *streams[2] = {stdin, NULL};
	pthread_t thread;
	int i, ends[2];

	for (i = 0; i < 2; i++) {
		if (pipe(ends) == -1)
			return 1;
		if (i == 0)
			dup2(ends[0], STDIN_FILENO);
		else
			streams[i] = fdopen(ends[0], "r");
		if (pthread_create(&thread, NULL, read_line, streams[i]) != 0)
			return 1;
		while (ftrylockfile(streams[i]) == 0) {
			funlockfile(streams[i]);
			sched_yield();
		}
	}
	say("the threads read");
	return run_cluster(&(struct options){.agent = role, .app = role, .workers = 1});
}

static void
start_beside_threads(bool by_fork)
{
	struct caller *c;

	forks = by_fork;
	c = caller_start(with_threads);
	caller_wait(c, caller_wait(c, 0, "the threads read"), "app ready ");
	caller_stop(c);
	caller_free(c);
}

Test(caller, start_cluster_does_not_wait_for_a_thread_that_reads)
{
	start_beside_threads(false);
}

Test(caller, fork_cluster_does_not_wait_for_a_thread_that_reads)
{
	start_beside_threads(true);
}

/* ---- a terminal ----------------------------------------------------------------------- */

static const char *terminal_path;
static enum role terminal_role; /* the role that uses the terminal */
static bool terminal_is_read;   /* false: it is written to, with "stty tostop" */

static int
use_terminal(struct messenger *messenger, void *arg)
{
	char byte;

	if (messenger_role(messenger) != terminal_role)
		return role(messenger, arg);
	say("it uses the terminal");
	if (terminal_is_read ? read(STDIN_FILENO, &byte, 1) == -1
	                     : write(STDOUT_FILENO, "word\n", 5) == -1)
		say("its result: %s", strerror(errno));
	return role(messenger, arg);
}

/* A session leader in the foreground of its terminal. */
static int
in_the_foreground(void)
{
	struct termios settings;
	int terminal;

	setsid();
	terminal = open(terminal_path, O_RDWR);
	if (terminal == -1 || tcgetattr(terminal, &settings) == -1)
		return 1;
	if (!terminal_is_read)
		settings.c_lflag |= TOSTOP;
	tcsetattr(terminal, TCSANOW, &settings);
	dup2(terminal, 0);
	dup2(terminal, 1);
	dup2(terminal, 2);
	return run_cluster(&(struct options){.agent = use_terminal,
	                                     .app = use_terminal,
	                                     .workers = 1,
	                                     .app_close_timeout = 500,
	                                     .agent_close_timeout = 500});
}

/* The app is ready, or a line says why it is not. */
static bool
ready_or_said(struct caller *c, const void *arg)
{
	(void)arg;
	return caller_count(c, "app ready ") > 0 || caller_count(c, "SIGTT") > 0 ||
	       (c->length > 0 && strcasestr(strstr(c->text, "it uses the terminal") != NULL
	                                            ? strstr(c->text, "it uses the terminal") + 20
	                                            : "",
	                                    "terminal") != NULL);
}

static void
start_at_a_terminal(enum role who, bool reads)
{
	int terminal = posix_openpt(O_RDWR | O_NOCTTY);
	struct caller *c;

	cr_assert(terminal != -1 && grantpt(terminal) == 0 && unlockpt(terminal) == 0);
	fcntl(terminal, F_SETFL, O_NONBLOCK);
	fcntl(terminal, F_SETFD, FD_CLOEXEC);
	terminal_path = ptsname(terminal);
	terminal_role = who;
	terminal_is_read = reads;
	c = caller_start(in_the_foreground);
	c->terminal = terminal;
	caller_wait(c, 0, "it uses the terminal");
	caller_assert(c, caller_until(c, ready_or_said, NULL),
	              "the cluster hangs, and no line says why");
	caller_stop(c);
	caller_free(c);
}

Test(caller, an_app_may_read_the_terminal)
{
	start_at_a_terminal(ROLE_APP, true);
}

Test(caller, an_app_may_write_to_a_terminal_that_stops_the_background)
{
	start_at_a_terminal(ROLE_APP, false);
}

Test(caller, the_agent_may_read_the_terminal)
{
	start_at_a_terminal(ROLE_AGENT, true);
}

Test(caller, the_agent_may_write_to_a_terminal_that_stops_the_background)
{
	start_at_a_terminal(ROLE_AGENT, false);
}

/* ---- process 1 --------------------------------------------------------------------------- */

static int (*body_of_one)(void);

/* Be the parent of a process 1 in a namespace of its own. */
static int
as_process_one(void)
{
	int status;
	pid_t pid;

	if (unshare(CLONE_NEWPID) == -1) {
		say("not permitted");
		return 0;
	}
	pid = fork();
	if (pid == 0) {
		setsid(); /* as the runtime of a container does */
		_exit(body_of_one());
	}
	say("process 1 is %ld", (long)pid);
	waitpid(pid, &status, 0);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static int
start_as_one(void)
{
	return start_cluster(&(struct options){.agent = role, .app = role, .workers = 1});
}

static int
launch_as_one(void)
{
	setenv("HOME", test_folder(), 1);
	become("hello", "start", "--port=0", "--workers=1");
	return 127;
}

enum { ORPHANS = 5 };

/* In the namespace, where process 1 is the parent of every orphan. */
static void
be_an_orphan(void)
{
	while (getppid() != 1)
		sched_yield();
	_exit(0);
}

/* Leave five orphans to the process 1 of a namespace, and wait until they end. */
static void
leave_orphans(pid_t one)
{
	char path[64], byte;
	int i, name, ends[2];
	pid_t parent;

	cr_assert(pipe(ends) == 0);
	snprintf(path, sizeof path, "/proc/%ld/ns/pid", (long)one);
	parent = fork();
	if (parent == 0) {
		name = open(path, O_RDONLY);
		if (name == -1 || setns(name, CLONE_NEWPID) == -1)
			_exit(1);
		parent = fork(); /* it is in the namespace */
		for (i = 0; parent == 0 && i < ORPHANS; i++)
			if (fork() == 0)
				be_an_orphan();
		_exit(parent > 0 && waitpid(parent, NULL, 0) == parent ? 0 : 1);
	}
	close(ends[1]);
	cr_assert(read(ends[0], &byte, 1) == 0); /* end of file: every orphan has ended */
	close(ends[0]);
	waitpid(parent, NULL, 0);
}

/* How many children a process has, zombies too. */
static int
children_of(pid_t pid)
{
	struct dirent *entry;
	DIR *folder = opendir("/proc");
	char path[300];
	const char *at;
	int count = 0;

	while (folder != NULL && (entry = readdir(folder)) != NULL) {
		snprintf(path, sizeof path, "/proc/%s/status", entry->d_name);
		at = atol(entry->d_name) > 0 ? strstr(content_of(path), "\nPPid:") : NULL;
		count += at != NULL && atol(at + strlen("\nPPid:")) == pid;
	}
	if (folder != NULL)
		closedir(folder);
	return count;
}

struct family {
	pid_t parent;
	int children;
};

static bool
are_reaped(struct caller *c, const void *arg)
{
	const struct family *family = arg;

	(void)c;
	return children_of(family->parent) == family->children;
}

static void
reap_orphans(int (*body)(void), const char *ready)
{
	struct family family;
	struct caller *c;

	body_of_one = body;
	c = caller_start(as_process_one);
	caller_until(c, caller_has_or_ended, &(struct caller_search){0, ready});
	if (caller_count(c, "not permitted") > 0) {
		fprintf(stderr, "no pid namespaces: this test is skipped\n");
		cr_skip_test("no pid namespaces");
	}
	caller_wait(c, 0, ready);
	family.parent = caller_number(c, "process 1 is ");
	family.children = children_of(family.parent);
	caller_assert(c, family.children > 0, "process 1 has no children");
	leave_orphans(family.parent);
	caller_assert(c, caller_until(c, are_reaped, &family), "%d orphans stay zombies",
	              children_of(family.parent) - family.children);
	kill(caller_number(c, "process 1 is "), SIGTERM);
	caller_ends(c, 0);
	caller_free(c);
}

Test(caller, as_process_1_start_cluster_reaps_orphans)
{
	reap_orphans(start_as_one, "app ready ");
}

Test(caller, as_process_1_the_launcher_reaps_orphans)
{
	reap_orphans(launch_as_one, " started on ");
}

/* The helper ends when a signal tells it to, and is then a dead orphan of process 1. */
static int
role_with_helper(struct messenger *messenger, void *arg)
{
	pid_t pid = fork();

	if (pid == 0)
		for (;;)
			pause();
	return pid == -1 ? -1 : role(messenger, arg);
}

static int
start_as_one_with_helpers(void)
{
	return start_cluster(&(struct options){
		.agent = role_with_helper, .app = role_with_helper, .workers = 1});
}

Test(caller, as_process_1_a_close_does_not_wait_for_orphans_that_are_dead)
{
	struct caller *c;
	int64_t since;

	body_of_one = start_as_one_with_helpers;
	c = caller_start(as_process_one);
	caller_until(c, caller_has_or_ended, &(struct caller_search){0, "app ready "});
	if (caller_count(c, "not permitted") > 0)
		cr_skip_test("no pid namespaces");
	caller_wait(c, 0, "app ready ");
	since = clutch_now();
	kill(caller_number(c, "process 1 is "), SIGTERM);
	caller_ends(c, 0);
	caller_assert(c, clutch_now() - since < 3000 * time_scale(), "the close took %lldms",
	              (long long)(clutch_now() - since));
	caller_free(c);
}

static int
exit_now(struct messenger *app, void *arg)
{
	(void)app, (void)arg;
	_exit(1);
}

/* The app ends soon, and its helper stays until the master kills it. */
static int
app_with_stubborn_helper(struct messenger *app, void *arg)
{
	pid_t pid = fork();

	if (pid == 0) {
		signal(SIGTERM, SIG_IGN);
		for (;;)
			pause();
	}
	return pid == -1 || role(app, arg) != 0 ||
	                       messenger_set_timeout(app, 100, exit_now, NULL) == -1
	               ? -1
	               : 0;
}

static int
start_as_one_with_stubborn_helper(void)
{
	return start_cluster(&(struct options){.agent = role,
	                                       .app = app_with_stubborn_helper,
	                                       .workers = 1,
	                                       .env = "local",
	                                       .app_close_timeout = 2000});
}

/* As long as the group of the dead app lives, the app stays a zombie, and hides the orphans. Then
 * they are reaped with it. */
Test(caller, as_process_1_orphans_behind_a_dead_app_are_reaped_with_it)
{
	struct family family = {.children = 1}; /* the agent */
	struct caller *c;

	body_of_one = start_as_one_with_stubborn_helper;
	c = caller_start(as_process_one);
	caller_until(c, caller_has_or_ended, &(struct caller_search){0, "app_worker#1:"});
	if (caller_count(c, "not permitted") > 0)
		cr_skip_test("no pid namespaces");
	caller_wait(c, 0, " died (code: 1");
	family.parent = caller_number(c, "process 1 is ");
	leave_orphans(family.parent);
	caller_assert(c, caller_until(c, are_reaped, &family), "%d zombies are left",
	              children_of(family.parent) - family.children);
	kill(family.parent, SIGTERM);
	caller_ends(c, 0);
	caller_free(c);
}

/* ---- a small limit of descriptors ------------------------------------------------------- */

static int many_workers;

static void
have_few_descriptors(void)
{
	struct rlimit limit = {64, 64};

	setrlimit(RLIMIT_NOFILE, &limit);
}

static int
with_few_descriptors(void)
{
	have_few_descriptors();
	return run_cluster(&(struct options){.agent = role,
	                                     .app = role,
	                                     .workers = many_workers,
	                                     .worker_start_timeout = 60000});
}

static int
daemon_with_few_descriptors(void)
{
	have_few_descriptors();
	setenv("HOME", test_folder(), 1);
	become("hello", "start", "--daemon", "--workers=100");
	return 127;
}

/* Count the lines of the text that the test has not printed itself. */
static size_t
lines_of(const struct caller *c)
{
	return caller_count(c, "\n") - caller_count(c, "master is ");
}

/* The master sees the shortage before its first fork: it prints one line and exits with 1. */
static void
start_too_many(bool by_fork)
{
	struct caller *c;

	forks = by_fork;
	many_workers = 64 - 16 + 1; /* one too many beside the 16 others of the master */
	c = caller_start(with_few_descriptors);
	caller_ends(c, 1);
	caller_assert(c, caller_count(c, " start\n") == 0 && caller_count(c, "agent is ") == 0,
	              "somebody was forked");
	caller_assert(c, lines_of(c) == 1, "%zu lines, not one", lines_of(c));
	caller_free(c);
}

Test(caller, too_few_descriptors_are_known_before_the_first_fork)
{
	start_too_many(false);
	start_too_many(true);
}

Test(caller, too_few_descriptors_for_a_daemon_are_known_before_the_first_fork)
{
	struct caller *c = caller_start(daemon_with_few_descriptors);
	int status = caller_status(c);

	if (status == -1) { /* a launcher that is interrupted ends the daemon */
		kill(c->pid, SIGTERM);
		caller_until(c, caller_is_dead, NULL);
	}
	caller_assert(c, status == 1, "the launcher ended with %d (-1: it has not)", status);
	caller_assert(c, strstr(content_of(path_of("logs/hello-stdout.log")), "worker#") == NULL,
	              "somebody was forked");
	caller_assert(c, caller_count(c, "too fast") == 0, "it says what is not true");
	caller_free(c);
}

/* A cluster that has enough descriptors starts. */
Test(caller, enough_descriptors_are_enough)
{
	struct caller *c;

	forks = false;
	many_workers = 20;
	c = caller_start(with_few_descriptors);
	caller_wait(c, 0, "app ready ");
	caller_stop(c);
	caller_free(c);
}

/* ---- the port of a cluster whose master was killed -------------------------------------- */

static int shared_port;
static int gate[2] = {-1, -1}; /* a busy app waits here for a byte */

static int
wait_at_the_gate(struct messenger *app, void *arg)
{
	char byte;

	(void)app, (void)arg;
	say("app is busy");
	while (read(gate[0], &byte, 1) == -1 && errno == EINTR)
		;
	return 0;
}

static int
busy_role(struct messenger *app, void *arg)
{
	if (gate[0] != -1 && messenger_set_timeout(app, 0, wait_at_the_gate, arg) == -1)
		return -1;
	return role(app, arg);
}

static int
with_a_port(void)
{
	return run_cluster(&(struct options){.agent = role,
	                                     .app = busy_role,
	                                     .connection = take_connection,
	                                     .workers = 2,
	                                     .port = shared_port});
}

/* Start with any free port, and remember the port for the next clusters. */
static struct caller *
start_first(void)
{
	struct caller *c;

	forks = false;
	shared_port = -1;
	c = caller_start(with_a_port);
	caller_wait(c, caller_wait(c, 0, "ready"), "\"port\":");
	shared_port = caller_number(c, "\"port\":");
	return c;
}

Test(caller, a_killed_master_is_replaced_at_once_20_times)
{
	struct caller *c = start_first(), *old;
	int i;

	for (i = 0; i < 20; i++) {
		caller_wait(c, 0, "app ready ");
		kill(c->pid, SIGKILL);
		old = c;
		cr_assert_eq(caller_status(old), 128 + SIGKILL);
		c = caller_start(with_a_port);
		caller_free(old);
	}
	caller_wait(c, 0, "app ready ");
	caller_stop(c);
	caller_free(c);
}

/* The old app still holds the port. The new master says that it waits, and gets it. */
Test(caller, a_master_waits_for_the_port_of_a_killed_one)
{
	struct caller *old, *c;
	char port[32];

	cr_assert(pipe(gate) == 0);
	old = start_first();
	caller_wait(old, caller_wait(old, 0, "app is busy"), "app is busy");
	kill(old->pid, SIGKILL);
	cr_assert_eq(caller_status(old), 128 + SIGKILL);
	close(gate[0]);
	gate[0] = -1;
	c = caller_start(with_a_port);
	snprintf(port, sizeof port, "port %d", shared_port);
	caller_wait(c, 0, port);
	cr_assert(write(gate[1], "xx", 2) == 2);
	caller_wait(c, 0, "app ready ");
	caller_stop(c);
	caller_free(c);
	caller_free(old);
}

/* A stranger keeps the port: the master waits for it in vain, but not for long. */
Test(caller, a_port_that_stays_in_use_is_waited_for_3_seconds)
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	socklen_t length = sizeof address;
	int stranger = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int64_t begin = clutch_now();
	struct caller *c;

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	cr_assert(bind(stranger, (struct sockaddr *)&address, sizeof address) == 0 &&
	          listen(stranger, 1) == 0 &&
	          getsockname(stranger, (struct sockaddr *)&address, &length) == 0);
	shared_port = ntohs(address.sin_port);
	c = caller_start(with_a_port);
	close(stranger); /* the caller has it, too */
	caller_ends(c, 1);
	caller_assert(c, clutch_now() - begin >= 2500, "it has waited %d ms only",
	              (int)(clutch_now() - begin));
	caller_assert(c, caller_count(c, "in use") > 0, "it does not say why");
	caller_free(c);
}
