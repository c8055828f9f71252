/*
 * Two runs about what a relay costs, and about a way past it. They end by themselves.
 *
 *	CLUTCH_TRACE=/tmp/run build/draw/relay burst [MESSAGES]
 *	CLUTCH_TRACE=/tmp/run build/draw/relay leader
 *
 * burst    The agent sends this many messages to two apps in one turn of its loop.
 * leader   An app calls a client that lives in the agent, while the master is stopped, and
 *          after the agent was killed.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "../cluster-client/cluster_client.h"
#include "../messenger.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Milliseconds. A drawing shows the burst without the start and the end of the cluster. */
enum { BEFORE = 500, AFTER = 500, DEADLINE = 20000 };

static pid_t master;
static bool failed;

static int
stop(struct messenger *parent, void *arg)
{
	(void)parent, (void)arg;
	return kill(master, SIGTERM);
}

/* ---- the run "burst" ------------------------------------------------------------ */

static int messages = 4;
static double begin;

static int
on_take(struct messenger *agent, const struct message *message, void *arg)
{
	int i = 0;

	(void)arg;
	while (i < messages && messenger_send_to_app(agent, "order", message->data) == 0)
		i++;
	if (i == messages && messenger_send_to_app(agent, "last", NULL) == 0)
		return 0;
	clutch_print_line(STDERR_FILENO, "relay: message %d of %d was not sent: %s", i + 1,
	                  messages + 1, strerror(errno));
	return kill(getppid(), SIGKILL); /* the run ends: a message to the parent would fail, too */
}

static int
take(struct messenger *agent, void *arg)
{
	return messenger_on(agent, "take", on_take, arg);
}

static int
on_order(struct messenger *app, const struct message *message, void *arg)
{
	(void)app, (void)message, (void)arg;
	return 0;
}

static int
on_last(struct messenger *app, const struct message *message, void *arg)
{
	(void)message, (void)arg;
	return messenger_send(app, "done", NULL, ROLE_PARENT);
}

static int
hear(struct messenger *app, void *arg)
{
	return messenger_on(app, "order", on_order, arg) == -1 ||
	       messenger_on(app, "last", on_last, arg) == -1;
}

static double
milliseconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

static int
start_burst(struct messenger *parent, void *arg)
{
	(void)arg;
	begin = milliseconds();
	return messenger_send_to_agent(parent, "take", "{\"id\":7}");
}

static int
on_ready(struct messenger *parent, const struct message *message, void *arg)
{
	(void)message;
	return messenger_set_timeout(parent, BEFORE, start_burst, arg) == -1;
}

static int
on_done(struct messenger *parent, const struct message *message, void *arg)
{
	static int apps;

	(void)message;
	if (++apps < 2)
		return 0;
	clutch_print_line(STDOUT_FILENO, "two apps have heard %d messages each in %.1f ms",
	                  messages, milliseconds() - begin);
	return messenger_set_timeout(parent, AFTER, stop, arg) == -1;
}

/* ---- the run "leader": the agent, which holds the real client ------------------------ */

static void
tell_pid(struct cluster_client *client, struct cluster_call *call, const char *data, size_t length,
         void *arg)
{
	char pid[16];

	(void)client, (void)data, (void)length, (void)arg;
	cluster_client_reply(call, pid, (size_t)snprintf(pid, sizeof pid, "%ld", (long)getpid()));
}

static const struct real_method methods[] = {{"getPid", tell_pid}, {NULL, NULL}};
static const struct real_client real = {.methods = methods};

static int
lead(struct messenger *agent, void *arg)
{
	(void)arg;
	return cluster_client_leader(agent, "pid", &real, NULL) == NULL;
}

/* ---- the run "leader": the app, which calls it ----------------------------------------- */

static struct cluster_client *follower;

static int
on_answer(struct cluster_client *client, const struct cluster_error *error, const char *data,
          size_t length, void *app)
{
	(void)client, (void)length;
	if (error != NULL)
		clutch_print_line(STDOUT_FILENO, "the app has called, and %s", error->message);
	else
		clutch_print_line(STDOUT_FILENO, "the app has called, and agent %s has answered",
		                  data);
	return messenger_send(app, "answer", data, ROLE_PARENT);
}

static int
call(struct messenger *app, void *arg)
{
	(void)arg;
	return cluster_client_invoke(follower, "getPid", NULL, 0, on_answer, app);
}

/* The agent is dead. The follower learns of it in this turn: a timer comes behind that. Otherwise
 * the call might go into the old connection, and fail. */
static int
on_call(struct messenger *app, const struct message *message, void *arg)
{
	(void)message;
	return messenger_set_timeout(app, 0, call, arg) == -1;
}

/* Now, and again when the parent has stopped the master. */
static int
on_egg_ready(struct messenger *app, const struct message *message, void *arg)
{
	(void)message;
	return call(app, arg) == -1 || messenger_set_timeout(app, 50, call, arg) == -1;
}

static int
on_registered(struct cluster_client *client, const struct cluster_error *error, void *app)
{
	(void)client, (void)error;
	return messenger_ready(app, 0);
}

static int
follow(struct messenger *app, void *arg)
{
	follower = cluster_client_follower(app, "pid", &real, NULL);
	messenger_ready_later(app);
	return follower == NULL || cluster_client_ready(follower, on_registered, app) == -1 ||
	       messenger_once(app, "egg-ready", on_egg_ready, arg) == -1 ||
	       messenger_on(app, "call", on_call, arg) == -1;
}

/* ---- the run "leader": the parent --------------------------------------------------------- */

static int
go_on(struct messenger *parent, void *arg)
{
	(void)parent, (void)arg;
	clutch_print_line(STDOUT_FILENO, "-- the master goes on");
	return kill(master, SIGCONT);
}

/* The parent hears the first answer; the second one, which the app had while the master was
 * stopped, when the master goes on; and one by another agent. */
static int
on_told(struct messenger *parent, const struct message *message, void *arg)
{
	static int answers;

	answers++;
	if (answers == 1) {
		kill(master, SIGSTOP);
		clutch_print_line(STDOUT_FILENO, "-- the master is stopped");
		return messenger_set_timeout(parent, 200, go_on, arg) == -1;
	}
	if (answers == 3)
		return messenger_set_timeout(parent, 60, stop, arg) == -1;
	clutch_print_line(STDOUT_FILENO, "-- the agent is killed");
	return kill((pid_t)strtol(message->data, NULL, 10), SIGKILL);
}

static int
on_agent_death(struct messenger *parent, const struct message *message, void *arg)
{
	(void)message, (void)arg;
	return messenger_send_to_app(parent, "call", NULL);
}

/* ---- both --------------------------------------------------------------------------------- */

static int
on_deadline(struct messenger *parent, void *arg)
{
	(void)parent, (void)arg;
	clutch_print_line(STDERR_FILENO, "relay: not done after %d ms", DEADLINE);
	failed = true;
	return kill(master, SIGKILL);
}

static int
run_burst(struct messenger *parent)
{
	return messenger_once(parent, "egg-ready", on_ready, NULL) == -1 ||
	       messenger_on(parent, "done", on_done, NULL) == -1;
}

static int
run_leader(struct messenger *parent)
{
	return messenger_on(parent, "answer", on_told, NULL) == -1 ||
	       messenger_once(parent, "agent-worker-died", on_agent_death, NULL) == -1;
}

int
main(int argc, char **argv)
{
	bool burst = argc > 1 && strcmp(argv[1], "burst") == 0;
	struct options options = {.agent = burst ? take : lead,
	                          .app = burst ? hear : follow,
	                          .workers = burst ? 2 : 1};
	struct messenger *parent;
	int status = 0;

	if (argc < 2 || argc > 3 || (!burst && strcmp(argv[1], "leader") != 0)) {
		clutch_print_line(STDERR_FILENO, "usage: relay leader | burst [MESSAGES]");
		return 2;
	}
	messages = argc == 3 ? atoi(argv[2]) : messages;
	parent = fork_cluster(&options, &master);
	if (parent == NULL || (burst ? run_burst(parent) : run_leader(parent)) != 0 ||
	    messenger_set_timeout(parent, DEADLINE, on_deadline, NULL) == -1) {
		clutch_print_line(STDERR_FILENO, "relay: %s", strerror(errno));
		return 1;
	}
	while (waitpid(master, &status, WNOHANG) == 0)
		messenger_step(parent, 50);
	messenger_close(parent);
	return failed || status != 0;
}
