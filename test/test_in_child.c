/*
 * options.in_child: what a program has open stays open in every process of its cluster,
 * unless in_child, called first in each forked process, closes it there.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "caller.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

TestSuite(in_child, .timeout = 60);

enum { FILES = 50 };

/* The open descriptors of the program: pipes, a listener, and both ends of a connection to it. */
static struct {
	int files[FILES];
	int pipe[2];
	int listener, client, server;
	in_port_t port;
} program;

static void
open_listener(void)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = program.port};
	socklen_t length = sizeof address;
	int on = 1;

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	program.listener = socket(AF_INET, SOCK_STREAM, 0);
	setsockopt(program.listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
	if (bind(program.listener, (struct sockaddr *)&address, sizeof address) == -1 ||
	    listen(program.listener, 8) == -1 ||
	    getsockname(program.listener, (struct sockaddr *)&address, &length) == -1)
		say("no port: %s", strerror(errno));
	program.port = address.sin_port;
}

static void
open_all(void)
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	int i;

	for (i = 0; i < FILES; i++)
		program.files[i] = open("/dev/zero", O_RDONLY);
	if (pipe(program.pipe) == -1)
		say("no pipe: %s", strerror(errno));
	open_listener();
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	address.sin_port = program.port;
	program.client = socket(AF_INET, SOCK_STREAM, 0);
	if (connect(program.client, (struct sockaddr *)&address, sizeof address) == -1)
		say("no connection: %s", strerror(errno));
	program.server = accept(program.listener, NULL, NULL);
}

/* The master closes the descriptors once. Its children do not inherit them, and in the children
 * the same number may belong to clutch. */
static void
close_once(int *descriptor)
{
	if (*descriptor != -1)
		close(*descriptor);
	*descriptor = -1;
}

static void
close_all(enum role role_of_child, void *arg)
{
	int i;

	say("in the child %s of %s: %ld", clutch_role_name(role_of_child), (char *)arg,
	    (long)getpid());
	for (i = 0; i < FILES; i++)
		close_once(&program.files[i]);
	close_once(&program.pipe[0]);
	close_once(&program.pipe[1]);
	close_once(&program.listener);
	close_once(&program.client);
	close_once(&program.server);
}

static char word[] = "mine";

/* While the cluster runs, the program closes its descriptors, and checks that no other process
 * holds them open. */
static int
on_ready(struct messenger *parent, const struct message *message, void *arg)
{
	char byte;

	close(program.pipe[1]);
	fcntl(program.pipe[0], F_SETFL, O_NONBLOCK);
	if (read(program.pipe[0], &byte, 1) != 0)
		say("the pipe has no end");
	close(program.server);
	fcntl(program.client, F_SETFL, O_NONBLOCK);
	if (recv(program.client, &byte, 1, MSG_DONTWAIT) != 0)
		say("the connection has no end");
	close(program.client);
	close(program.listener);
	open_listener(); /* this fails if another process still listens on the port */
	return say_ready(parent, message, arg);
}

static const struct options options = {
	.agent = role, .app = role, .workers = 2, .arg = word, .in_child = close_all};

static int
program_forks(void)
{
	struct messenger *parent;
	int status = 0;
	pid_t master;

	open_all();
	parent = fork_cluster(&options, &master);
	if (parent == NULL || messenger_once(parent, "egg-ready", on_ready, NULL) == -1)
		return 1;
	say("master is %ld", (long)master);
	while (waitpid(master, &status, WNOHANG) == 0)
		messenger_step(parent, 20);
	messenger_close(parent);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

static int
program_starts(void)
{
	open_all();
	say("master is %ld", (long)getpid());
	return start_cluster(&options);
}

/* How many of the program's files a process has. */
static int
left_in(pid_t pid)
{
	char path[64], target[64];
	int number, count = 0;
	ssize_t length;

	for (number = 0; number < 256; number++) {
		snprintf(path, sizeof path, "/proc/%ld/fd/%d", (long)pid, number);
		length = readlink(path, target, sizeof target - 1);
		target[length > 0 ? length : 0] = '\0';
		count += strcmp(target, "/dev/zero") == 0;
	}
	return count;
}

/* in_child has run once in the process, before the process has reported anything else. */
static void
check_child(struct caller *c, const char *name, pid_t pid)
{
	char words[64], said[32];
	const char *first;

	snprintf(words, sizeof words, "in the child %s of mine: %ld\n", name, (long)pid);
	snprintf(said, sizeof said, "%s is %ld\n", name, (long)pid);
	caller_assert(c, caller_count(c, words) == 1, "not once: %s", words);
	first = strstr(c->text, said);
	caller_assert(
		c, first == NULL || strcmp(name, "master") == 0 || first > strstr(c->text, words),
		"in_child was not the first in %s", said);
	caller_assert(c, left_in(pid) == 0, "%d descriptors are left in %s", left_in(pid), said);
}

Test(in_child, it_is_called_first_in_every_process_of_a_forked_cluster)
{
	struct caller *c = caller_start(program_forks);
	size_t at;

	caller_wait(c, 0, "parent ready ");
	at = caller_wait(c, 0, "app ready ");
	at = caller_wait(c, at, "app ready ");
	check_child(c, "master", caller_number(c, "master is "));
	check_child(c, "agent", caller_number(c, "agent is "));
	check_child(c, "app", caller_number(c, "app is "));
	caller_assert(c, caller_count(c, "in the child ") == 4, "%zu calls of in_child, not 4",
	              caller_count(c, "in the child "));
	kill(caller_number(c, "app is "), SIGKILL);
	caller_wait(c, at, "app ready ");
	check_child(c, "app", caller_number(c, "app is "));
	caller_stop(c);
	caller_assert(c, caller_count(c, " has no end") == 0 && caller_count(c, "no port") == 0,
	              "somebody else holds what is closed");
	caller_free(c);
}

Test(in_child, start_cluster_calls_it_in_its_children_alone)
{
	struct caller *c = caller_start(program_starts);

	caller_wait(c, caller_wait(c, 0, "app ready "), "app ready ");
	caller_wait(c, 0, "agent ready ");
	check_child(c, "agent", caller_number(c, "agent is "));
	check_child(c, "app", caller_number(c, "app is "));
	caller_assert(c, caller_count(c, "in the child ") == 3, "%zu calls of in_child, not 3",
	              caller_count(c, "in the child "));
	caller_assert(c, left_in(c->pid) == FILES, "the caller itself has lost descriptors");
	caller_stop(c);
	caller_free(c);
}
