/*
 * A Redis for the time of one program: on a Unix path in a folder of its own.
 *
 *	main --fork--> keeper --fork, exec--> redis-server
 *
 * The keeper waits for the end of main or of Redis, kills Redis, and removes the folder. So
 * nothing is left when main is killed, and a keeper that is killed is told by main.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "queue.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { NO_SERVER = 127 /* exit status: there is no program to execute */ };

static int redis_lifeline = -1; /* the end that main holds */
static pid_t owner, keeper;     /* main, and the parent of our own Redis; 0: none */
static char folder[80], path[sizeof folder + sizeof "/redis"]; /* at most 104: see sys/un.h */
static char url[sizeof path + sizeof "unix://"];

/* The only exec of this project: Redis, or Valkey, is not ours. */
static void
exec_redis(void)
{
	static const char *const servers[] = {"redis-server", "valkey-server"};
	int i;

	for (i = 0; i < 2; i++)
		execlp(servers[i], servers[i], "--port", "0", "--unixsocket", path, "--dir", folder,
		       "--save", "", "--appendonly", "no", "--logfile", "/dev/null", (char *)NULL);
	fprintf(stderr, "queue: redis-server: %s: install it, or give the URL of a Redis\n",
	        strerror(errno));
	_exit(NO_SERVER);
}

/* The parent of Redis. When main or Redis has ended, it removes all that is left. */
static void
keep_redis(int lifeline)
{
	struct pollfd set[2] = {{.fd = lifeline, .events = POLLIN}, {.events = POLLIN}};
	int ends[2], status = 0;
	pid_t redis;

	signal(SIGINT, SIG_IGN); /* Ctrl-C and the like are for main */
	signal(SIGQUIT, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	signal(SIGTERM, SIG_IGN);
	queue_open_lifeline(ends); /* Redis holds the writing end, and does not know of it */
	redis = queue_fork();
	if (redis == 0) {
		close(lifeline), close(ends[0]);
		exec_redis();
	}
	close(ends[1]);
	set[1].fd = ends[0];
	while (poll(set, 2, -1) == -1 && errno == EINTR)
		;
	kill(redis, SIGKILL); /* it has no data to save */
	while (waitpid(redis, &status, 0) == -1 && errno == EINTR)
		;
	if (set[0].revents == 0 && !(WIFEXITED(status) && WEXITSTATUS(status) == NO_SERVER))
		fprintf(stderr, "queue: redis-server: it has ended, its path was %s\n", path);
	unlink(path);
	rmdir(folder);
	_exit(0);
}

static int
on_shutdown(struct redis *redis, const struct redis_reply *reply, void *arg)
{
	(void)redis, (void)reply;
	*(bool *)arg = true; /* Redis ends instead of a reply */
	return 0;
}

/* The keeper was killed, so main ends its Redis. */
static void
shut_down(void)
{
	struct redis *redis = queue_open_redis(url, NULL);
	bool over =
		redis_command(redis, on_shutdown, &over, "SHUTDOWN", "NOSAVE", (char *)NULL) == -1;

	while (!over)
		redis_step(redis, -1);
	redis_close(redis);
	unlink(path);
	rmdir(folder);
}

/* Registered with atexit. The children of main inherit it, and do nothing here. */
static void
end_redis(void)
{
	int status = 0;

	if (keeper == 0 || getpid() != owner)
		return;
	close(redis_lifeline);
	while (waitpid(keeper, &status, 0) == -1 && errno == EINTR)
		;
	keeper = 0;
	if (!WIFSIGNALED(status))
		return;
	fprintf(stderr, "queue: the keeper of redis-server was killed by signal %d\n",
	        WTERMSIG(status));
	shut_down();
	fflush(stdout);
	_exit(1);
}

const char *
queue_start_redis(void)
{
	const char *temp = getenv("TMPDIR");
	int ends[2];

	temp = temp != NULL ? temp : "/tmp";
	errno = ENAMETOOLONG;
	if (snprintf(folder, sizeof folder, "%s/clutch-XXXXXX", temp) >= (int)sizeof folder ||
	    mkdtemp(folder) == NULL)
		queue_fail_by_errno(temp);
	snprintf(path, sizeof path, "%s/redis", folder);
	snprintf(url, sizeof url, "unix://%s", path);
	queue_open_lifeline(ends);
	keeper = queue_fork();
	if (keeper == 0) {
		close(ends[1]);
		keep_redis(ends[0]);
	}
	close(ends[0]);
	redis_lifeline = ends[1];
	owner = getpid();
	atexit(end_redis);
	return url;
}

void
queue_leave_redis(void)
{
	if (redis_lifeline != -1)
		close(redis_lifeline);
	redis_lifeline = -1;
}

bool
queue_wait_for_redis(const char *where)
{
	struct redis *redis = queue_open_redis(where, NULL);
	siginfo_t ended = {.si_pid = 0};

	while (!redis_ready(redis) && ended.si_pid == 0) {
		redis_step(redis, QUEUE_PAUSE);
		waitid(P_PID, (id_t)keeper, &ended, WEXITED | WNOHANG | WNOWAIT);
	}
	redis_close(redis);
	return ended.si_pid == 0; /* otherwise end_redis reaps the keeper */
}
