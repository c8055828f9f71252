/*
 * The program whose start is measured. "tree clutch CHANNEL APPS" is a cluster of an agent
 * and some apps. "tree fork CHANNEL APPS" is the least program that could do the same: it
 * forks one process and, when that process has sent one byte, the others. When all of them
 * have sent a byte, it sends each app one byte, and each app reports when that byte came.
 * When a process dies, it forks another one.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "tree.h"
#include "../messenger.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { CHILDREN_MAX = 64 };

static int64_t
now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static void
fail(const char *what)
{
	fprintf(stderr, "tree: %s: %s\n", what, strerror(errno));
	exit(1);
}

/* ---- clutch -------------------------------------------------------------- */

static int
on_ready(struct messenger *app, const struct message *message, void *arg)
{
	char data[64];

	(void)message, (void)arg;
	snprintf(data, sizeof data, "[%lld,%ld]", (long long)now_ns(), (long)messenger_pid(app));
	return messenger_send(app, "alive", data, ROLE_PARENT);
}

static int
app(struct messenger *app, void *arg)
{
	return messenger_once(app, "egg-ready", on_ready, arg);
}

/* ---- fork ---------------------------------------------------------------- */

static struct pollfd children[CHILDREN_MAX];
static pid_t pids[CHILDREN_MAX];

/* This child is ready. An app then reports when it was told that all are ready. The child
 * lives until its socket ends. */
static void
run_child(int number, int master)
{
	struct alive alive = {.pid = getpid()};
	char byte = 1;

	if (write(master, &byte, 1) != 1)
		_exit(1);
	while (read(master, &byte, 1) == 1) {
		alive.at = now_ns();
		if (number > 0 && write(master, &alive, sizeof alive) == -1)
			_exit(1);
	}
	_exit(0);
}

static void
fork_child(int number)
{
	int i, pair[2];

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == -1)
		fail("socketpair");
	pids[number] = fork();
	if (pids[number] == -1)
		fail("fork");
	if (pids[number] == 0) {
		close(pair[0]);
		for (i = 0; i < number; i++)
			close(children[i].fd);
		run_child(number, pair[1]);
	}
	close(pair[1]);
	children[number].fd = pair[0];
	children[number].events = POLLIN;
}

static void
tell(int descriptor, const void *what, size_t size)
{
	if (write(descriptor, what, size) == -1)
		fail("write");
}

/* A child is ready: tell the processes that wait for it, the first time when all are ready. */
static void
on_child_ready(int number, int channel, int apps)
{
	const struct alive all_ready = {0, 0};
	static int ready;

	if (number > 0 && ++ready == apps) {
		tell(channel, &all_ready, sizeof all_ready);
		for (number = 0; number <= apps; number++)
			tell(children[number].fd, "", 1);
	} else if (ready > apps) {
		tell(children[number].fd, "", 1);
	}
}

/* One child has said something, or died. */
static void
hear(int number, int channel, int apps)
{
	struct alive alive;

	switch (read(children[number].fd, &alive, sizeof alive)) {
	case 1:
		on_child_ready(number, channel, apps);
		return;
	case sizeof alive:
		tell(channel, &alive, sizeof alive);
		return;
	default:
		close(children[number].fd);
		waitpid(pids[number], NULL, 0);
		fork_child(number);
	}
}

static void
on_sigterm(int number)
{
	(void)number;
	_exit(0); /* the children see the end of their sockets */
}

static void
run_fork(int channel, int apps)
{
	int i, count = 1;

	if (apps >= CHILDREN_MAX) {
		errno = E2BIG;
		fail("fork");
	}
	signal(SIGTERM, on_sigterm);
	fork_child(0);
	poll(children, 1, -1);
	hear(0, channel, apps);
	for (; count <= apps; count++)
		fork_child(count);
	for (;;) {
		poll(children, (nfds_t)count, -1);
		for (i = 0; i < count; i++)
			if (children[i].revents != 0)
				hear(i, channel, apps);
	}
}

int
main(int argc, char **argv)
{
	struct options options = {.app = app, .env = "prod", .name = "tree"};

	if (argc != 4) {
		fprintf(stderr, "usage: tree clutch|fork CHANNEL APPS\n");
		return 2;
	}
	options.parent = atoi(argv[2]);
	options.workers = atoi(argv[3]);
	if (strcmp(argv[1], "clutch") == 0)
		return start_cluster(&options);
	run_fork(options.parent, options.workers);
}
