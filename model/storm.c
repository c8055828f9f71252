/*
 * A storm for the trace that model/check compares with the model: app workers that fail their
 * start, get ready late or never, die, leave, hang, close their channel or leave processes
 * behind; and a parent that kills them and orders reloads.
 *
 *	CLUTCH_TRACE=/tmp/storm.trace build/model/storm SECONDS
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "../messenger.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { WORKERS = 3, PIDS = 4096, STEP = 100, PATIENCE = 30000 };

/* What all processes share. */
static struct world {
	volatile sig_atomic_t started; /* until then the apps behave */
	int count;
	pid_t pids[PIDS];
} * world;

static pid_t master;
static int64_t end_at;
static unsigned seed = 1;

static unsigned
below(unsigned most)
{
	return (unsigned)rand_r(&seed) % most;
}

/* ---- agent and app workers ---------------------------------------------------- */

static void
register_pid(void)
{
	int index = __sync_fetch_and_add(&world->count, 1) % PIDS;

	seed = (unsigned)getpid() * 2654435761U;
	world->pids[index] = getpid();
}

static int
agent(struct messenger *agent, void *arg)
{
	(void)agent, (void)arg;
	register_pid();
	return 0;
}

/* A process of the group that SIGTERM does not end, for a second at most. */
static void
leave_a_process(void)
{
	if (fork() == 0) {
		signal(SIGTERM, SIG_IGN);
		poll(NULL, 0, 1000);
		_exit(0);
	}
}

static void
hang(void)
{
	signal(SIGTERM, SIG_IGN);
	for (;;)
		pause();
}

static int
misbehave(struct messenger *app, void *arg)
{
	struct pollfd channel;

	(void)arg;
	switch (below(7)) {
	case 0:
		_exit(3);
	case 1:
		messenger_graceful_exit(app);
		break;
	case 2:
		leave_a_process();
		_exit(4);
	case 3:
		hang();
		break;
	case 4:
		if (messenger_descriptors(app, &channel, 1) > 0)
			shutdown(channel.fd, SHUT_RDWR);
		break;
	default:
		break;
	}
	return 0;
}

static int
late(struct messenger *app, void *arg)
{
	(void)arg;
	return messenger_ready(app, 0);
}

static int
app(struct messenger *app, void *arg)
{
	(void)arg;
	register_pid();
	if (!world->started)
		return 0;
	if (messenger_set_timeout(app, (int)below(600), misbehave, NULL) == -1)
		return -1;
	switch (below(8)) {
	case 0:
		return -1;
	case 1:
		messenger_ready_later(app); /* and never is */
		return 0;
	case 2:
		messenger_ready_later(app);
		return messenger_set_timeout(app, (int)below(500), late, NULL) == -1;
	default:
		return 0;
	}
}

/* ---- the parent ----------------------------------------------------------------- */

static int
on_started(struct messenger *parent, const struct message *message, void *arg)
{
	(void)parent, (void)message, (void)arg;
	world->started = 1;
	end_at += clutch_now();
	return 0;
}

/* A pid that was reaped is no process's, or a stranger's: so it asks whose child it is. */
static void
kill_one(void)
{
	int count = world->count < PIDS ? world->count : PIDS;
	pid_t pid = count > 0 ? world->pids[count - 1 - (int)below(count < 5 ? 1 : 5)] : 0;

	if (pid > 0 && getpgid(pid) == pid)
		kill(pid, SIGKILL);
}

static int
on_step(struct messenger *parent, void *arg)
{
	(void)parent, (void)arg;
	if (!world->started)
		return 0;
	if (clutch_now() >= end_at)
		return kill(master, SIGTERM);
	if (below(4) == 0)
		kill(master, SIGUSR2);
	if (below(8) == 0)
		kill_one();
	return 0;
}

/* Memory that all processes share: a file without a name. */
static bool
open_world(void)
{
	FILE *file = tmpfile();

	if (file == NULL || ftruncate(fileno(file), sizeof *world) == -1)
		return false;
	world = mmap(NULL, sizeof *world, PROT_READ | PROT_WRITE, MAP_SHARED, fileno(file), 0);
	return world != MAP_FAILED;
}

int
main(int count, char **argument)
{
	struct options options = {.agent = agent,
	                          .app = app,
	                          .workers = WORKERS,
	                          .worker_start_timeout = 1000,
	                          .refork_limit = PIDS, /* a minute may need all of them */
	                          .app_close_timeout = 400,
	                          .agent_close_timeout = 400};
	int64_t given_up_at;
	struct messenger *parent;
	int status = 0;

	if (count != 2 || atoi(argument[1]) < 1) {
		clutch_print_line(STDERR_FILENO, "usage: storm SECONDS");
		return 2;
	}
	end_at = 1000 * (int64_t)atoi(argument[1]);
	given_up_at = clutch_now() + end_at + PATIENCE;
	if (!open_world())
		return 1;
	parent = fork_cluster(&options, &master);
	if (parent == NULL || messenger_on(parent, "egg-ready", on_started, NULL) == -1 ||
	    messenger_set_interval(parent, STEP, on_step, NULL) == -1)
		return 1;
	while (waitpid(master, &status, WNOHANG) == 0) {
		messenger_step(parent, STEP);
		if (clutch_now() > given_up_at) {
			clutch_print_line(STDERR_FILENO, "storm: the master does not end");
			kill(master, SIGKILL);
		}
	}
	messenger_close(parent);
	return status != 0;
}
