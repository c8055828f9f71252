/*
 * A parent, its master and one app worker: "hi there" goes down to the app, and
 * comes back as an answer. The parent prints both, and ends the cluster.
 *
 *	parent -- ping --> master -- ping --> app
 *	parent <-- pong -- master <-- pong -- app
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "../messenger.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define DEADLINE 10000 /* milliseconds, for all of it */

static pid_t master;
static bool answered;

static int
on_ping(struct messenger *app, const struct message *message, void *arg) /* in the app */
{
	(void)arg;
	return messenger_send(app, "pong", message->data, ROLE_PARENT);
}

static int
app(struct messenger *app, void *arg)
{
	return messenger_on(app, "ping", on_ping, arg);
}

static int
on_ready(struct messenger *parent, const struct message *message, void *arg)
{
	(void)message, (void)arg;
	clutch_print_line(STDOUT_FILENO, "parent sends \"hi there\"");
	return messenger_send_to_app(parent, "ping", "\"hi there\"");
}

static int
on_pong(struct messenger *parent, const struct message *message, void *arg)
{
	(void)parent, (void)arg;
	clutch_print_line(STDOUT_FILENO, "app answers %s", message->data);
	answered = true;
	return kill(master, SIGTERM); /* the cluster stops, app first */
}

/* When the master is killed, its children see the end of their channels, and exit. */
static int
on_deadline(struct messenger *parent, void *arg)
{
	(void)parent, (void)arg;
	clutch_print_line(STDERR_FILENO, "ping: not done after %d ms, killing the master",
	                  DEADLINE);
	return kill(master, SIGKILL);
}

int
main(void)
{
	struct messenger *parent;
	int status = 0;

	parent = fork_cluster(&(struct options){.app = app, .workers = 1}, &master);
	if (parent == NULL) {
		clutch_print_line(STDERR_FILENO, "ping: %s", strerror(errno));
		return 1;
	}
	if (messenger_once(parent, "egg-ready", on_ready, NULL) == -1 ||
	    messenger_once(parent, "pong", on_pong, NULL) == -1 ||
	    messenger_set_timeout(parent, DEADLINE, on_deadline, NULL) == -1) {
		clutch_print_line(STDERR_FILENO, "ping: %s", strerror(errno));
		kill(master, SIGKILL);
	}
	while (waitpid(master, &status, WNOHANG) == 0)
		messenger_step(parent, 50);
	messenger_close(parent);
	if (!answered)
		clutch_print_line(STDERR_FILENO,
		                  "ping: the master is gone, and there was no answer");
	return answered && status == 0 ? 0 : 1;
}
