/*
 * A Redis server for one test. It listens on a Unix path in test_folder(), and ends with the
 * test, however the test ends.
 *
 *	struct server server;
 *
 *	skip_without_redis();
 *	server_start(&server, "--requirepass", "secret", NULL);
 *	... server.url ...
 *	server_end(&server, SIGTERM);
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#ifndef REDIS_SERVER_H
#define REDIS_SERVER_H

#include "harness.h"

#include <criterion/criterion.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

struct server {
	pid_t pid;
	char path[64]; /* of the server's socket */
	char url[80];
};

/* "/usr/bin/redis-server", or NULL. */
static const char *
find_server(void)
{
	static char path[256];
	FILE *answer = popen("sh test/redis server", "r");

	if (answer == NULL || fgets(path, sizeof path, answer) == NULL)
		path[0] = '\0';
	if (answer != NULL)
		pclose(answer);
	path[strcspn(path, "\n")] = '\0';
	return path[0] != '\0' ? path : NULL;
}

static void
skip_without_redis(void)
{
	if (find_server() == NULL)
		cr_skip_test("no Redis server here");
}

static int
unix_connection(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int descriptor = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
	if (connect(descriptor, (struct sockaddr *)&address, sizeof address) == 0)
		return descriptor;
	close(descriptor);
	return -1;
}

/* Does the server answer PING, rather than say that it is still loading? */
static bool
server_answers(const struct server *server)
{
	struct timeval limit = {.tv_usec = 200 * 1000};
	int descriptor = unix_connection(server->path);
	char answer[64] = "";

	if (descriptor == -1)
		return false;
	setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	if (write(descriptor, "PING\r\n", 6) == 6 &&
	    read(descriptor, answer, sizeof answer - 1) == -1)
		answer[0] = '\0';
	close(descriptor);
	return strncmp(answer, "+PONG", 5) == 0 || strncmp(answer, "-NOAUTH", 7) == 0;
}

static void
exec_server(const struct server *server, const char *const more[], size_t count)
{
	const char *argv[32] = {find_server(), "--port", "0", "--unixsocket", server->path, "--dir",
	                        test_folder(), "--save", ""};
	int i, log = open("/dev/null", O_RDWR);

	memcpy(&argv[9], more, count * sizeof *argv);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	setpgid(0, 0);
	for (i = 0; i < 3; i++)
		dup2(log, i);
	for (i = 3; i < 1024; i++)
		close(i); /* also a cluster's record: redis is no process of the cluster */
	execv(argv[0], (char *const *)(uintptr_t)argv);
	_exit(127);
}

/* Start a server with arguments as in redis.conf, such as "--requirepass", "secret", up to NULL.
 * A server that has ended starts again on the same path. */
__attribute__((sentinel)) static void
server_start(struct server *server, ...)
{
	const char *more[22] = {NULL};
	size_t count = 0;
	int64_t deadline = clutch_now() + 2 * time_limit();
	va_list words;

	va_start(words, server);
	while ((more[count] = va_arg(words, const char *)) != NULL)
		count++;
	va_end(words);
	snprintf(server->path, sizeof server->path, "%s/redis", test_folder());
	snprintf(server->url, sizeof server->url, "unix://%s", server->path);
	server->pid = fork();
	cr_assert(server->pid != -1);
	if (server->pid == 0)
		exec_server(server, more, count);
	while (!server_answers(server)) {
		cr_assert(clutch_now() < deadline, "redis-server does not start");
		cr_assert(waitpid(server->pid, NULL, WNOHANG) == 0, "redis-server has ended");
		poll(NULL, 0, 5);
	}
}

static void
server_end(struct server *server, int number)
{
	cr_assert(kill(server->pid, number) == 0);
	cr_assert(waitpid(server->pid, NULL, 0) == server->pid);
}

#endif
