/*
 * The runs that the figures show: an agent, two apps, and a parent that makes something
 * happen and ends the cluster.
 *
 *	CLUTCH_TRACE=/tmp/run build/draw/runs start|message|handle|uncaught|kill|reload|shutdown|
 *	                                      stopped|pressure|large|flood|orphans
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "../messenger.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { FLOOD = 18, PIECE = 200 * 1024, LARGE = MESSAGE_DATA_MAX, DEADLINE = 20000 };

static const char *run;
static pid_t master, stopped;
static bool failed;

static bool
is(const char *name)
{
	return strcmp(run, name) == 0;
}

/* ---- the agent and the apps ------------------------------------------------ */

/* What the apps write into the pipe; the end of file comes when each copy is closed. */
static int
on_pipe(struct messenger *agent, int descriptor, short revents, void *arg)
{
	static size_t count;
	char text[64];
	ssize_t length = read(descriptor, text, sizeof text);

	(void)revents, (void)arg;
	if (length > 0) {
		count += (size_t)length;
		return 0;
	}
	clutch_print_line(STDOUT_FILENO, "the agent has read %zu bytes, and then end of file",
	                  count);
	messenger_unwatch(agent, descriptor);
	close(descriptor);
	return messenger_send(agent, "done", NULL, ROLE_PARENT);
}

/* The writing end travels to the apps; the agent keeps the reading end alone. */
static int
give_pipe(struct messenger *agent)
{
	struct message message = {.action = "pipe", .to = ROLE_APP};
	int pair[2], result;

	if (pipe(pair) == -1)
		return -1;
	message.handle = pair[1];
	result = messenger_send_message(agent, &message);
	close(pair[1]);
	return result == 0 ? messenger_watch(agent, pair[0], POLLIN, on_pipe, NULL) : -1;
}

static int
use_pipe(struct messenger *app, const struct message *message, void *arg)
{
	(void)arg;
	clutch_print_line(STDOUT_FILENO, "app %d writes 5 bytes into the pipe",
	                  messenger_slot(app));
	return write(message->handle, "hello", 5) != 5; /* clutch closes the handle now */
}

/* Many large messages to all apps, and then a small one. */
static int
flood(struct messenger *sender)
{
	static char piece[PIECE + 1];
	int i;

	memset(piece, '1', PIECE);
	for (i = 0; i < FLOOD; i++)
		if (messenger_send(sender, "order", piece, ROLE_APP) == -1)
			return -1;
	return messenger_send(sender, "last", NULL, ROLE_APP);
}

static int
on_order(struct messenger *agent, const struct message *message, void *arg)
{
	(void)arg;
	if (is("handle"))
		return give_pipe(agent);
	return is("pressure") ? flood(agent) : messenger_send_to_app(agent, "order", message->data);
}

/* In the run "large" each of the two apps sends a message of the largest size. */
static int
on_large(struct messenger *agent, const struct message *message, void *arg)
{
	static int count;

	(void)message, (void)arg;
	return ++count == 2 ? messenger_send(agent, "done", NULL, ROLE_PARENT) : 0;
}

static int
agent(struct messenger *agent, void *arg)
{
	return messenger_on(agent, "take", on_order, arg) == -1 ||
	       messenger_on(agent, "large", on_large, arg) == -1;
}

/* In the run "uncaught" an app throws. In the run "pressure" it takes its time. */
static int
hear_order(struct messenger *app, const struct message *message, void *arg)
{
	struct timespec while_ms = {.tv_nsec = 10 * 1000 * 1000};

	(void)message, (void)arg;
	if (messenger_slot(app) == 0 && is("pressure"))
		nanosleep(&while_ms, NULL);
	return messenger_slot(app) == 0 && is("uncaught") ? 1 : 0;
}

/* In the run "flood" there are two of them for each app. */
static int
hear_last(struct messenger *app, const struct message *message, void *arg)
{
	static int count;

	(void)message, (void)arg;
	if (is("flood"))
		return ++count == 2 ? messenger_send(app, "done", NULL, ROLE_PARENT) : 0;
	return messenger_slot(app) == 0 ? messenger_send(app, "done", NULL, ROLE_PARENT) : 0;
}

/* Tell the parent the pid of this app (the parent kills the first one), or that this app is there
 * in the place of another. */
static int
say(struct messenger *app, const struct message *message, void *arg)
{
	char pid[16];

	(void)arg;
	if (strcmp(message->action, "who") == 0 && messenger_slot(app) != 0)
		return 0;
	snprintf(pid, sizeof pid, "%ld", (long)messenger_pid(app));
	return messenger_send(app, strcmp(message->action, "who") == 0 ? "me" : "here", pid,
	                      ROLE_PARENT);
}

/* The app leaves slowly: its replacement is forked at once, and its death is counted later. */
static int
save_work(struct messenger *app, void *arg)
{
	struct timespec while_ms = {.tv_nsec = 30 * 1000 * 1000};

	(void)app, (void)arg;
	return nanosleep(&while_ms, NULL);
}

static int
pour(struct messenger *app, const struct message *message, void *arg)
{
	static char large[LARGE + 1];

	(void)message, (void)arg;
	if (is("flood"))
		return flood(app);
	memset(large, '1', LARGE);
	return messenger_send_to_agent(app, "large", large);
}

static int
app(struct messenger *app, void *arg)
{
	if (messenger_on(app, "order", hear_order, arg) == -1 ||
	    messenger_on(app, "last", hear_last, arg) == -1 ||
	    messenger_on(app, "pipe", use_pipe, arg) == -1 ||
	    (is("uncaught") && messenger_before_close(app, save_work, arg) == -1) ||
	    ((is("kill") || is("stopped")) && messenger_on(app, "who", say, arg) == -1))
		return -1;
	if (is("large") || is("flood"))
		return messenger_on(app, "egg-ready", pour, arg);
	return is("kill") || is("uncaught") || is("reload")
	               ? messenger_on(app, "egg-ready", say, arg)
	               : 0;
}

/* ---- the parent ---------------------------------------------------------------- */

static int
stop(struct messenger *parent, void *arg)
{
	(void)parent, (void)arg;
	return kill(master, is("orphans") ? SIGKILL : SIGTERM);
}

/* What is on its way arrives first. */
static int
stop_soon(struct messenger *parent)
{
	return messenger_set_timeout(parent, 60, stop, NULL) == -1;
}

static int
on_ready(struct messenger *parent, const struct message *message, void *arg)
{
	(void)message, (void)arg;
	if (is("message") || is("handle") || is("uncaught") || is("pressure"))
		messenger_send_to_agent(parent, "take", "{\"id\":7}");
	if (is("reload"))
		messenger_send(parent, "reload-worker", NULL, ROLE_MASTER);
	if (is("kill") || is("stopped"))
		messenger_send_to_app(parent, "who", NULL);
	return is("start") || is("message") || is("shutdown") || is("orphans") ? stop_soon(parent)
	                                                                       : 0;
}

static int
on_done(struct messenger *parent, const struct message *message, void *arg)
{
	static int done;

	(void)message, (void)arg;
	return ++done == (is("flood") ? 2 : 1) ? stop_soon(parent) : 0;
}

/* The app that answers is killed; or it is stopped, so that it does not hear SIGTERM. */
static int
on_me(struct messenger *parent, const struct message *message, void *arg)
{
	pid_t pid = (pid_t)strtol(message->data, NULL, 10);

	(void)arg;
	if (is("kill"))
		return kill(pid, SIGKILL);
	stopped = pid;
	return kill(pid, SIGSTOP) == -1 || stop_soon(parent);
}

/* Two are there at first; one is replaced, or, by a reload, both are. The death of an app that
 * was replaced before it died counts, too: the run is not over before it. */
static int
on_here(struct messenger *parent, const struct message *message, void *arg)
{
	static int here;

	(void)message, (void)arg;
	return ++here == (is("kill") ? 3 : is("reload") ? 6 : 4) ? stop_soon(parent) : 0;
}

static int
on_deadline(struct messenger *parent, void *arg)
{
	(void)parent, (void)arg;
	clutch_print_line(STDERR_FILENO, "runs: %s is not done after %d ms", run, DEADLINE);
	failed = true;
	if (stopped != 0)
		kill(stopped, SIGKILL); /* it would not see the end of its master */
	return kill(master, SIGKILL);
}

/* The master is dead, and its children are no children of this process: but each of them holds
 * a copy of the pipe's other end, and so does no other process. */
static void
wait_for_orphans(struct messenger *parent, int pipe)
{
	struct pollfd end = {.fd = pipe, .events = POLLIN};

	while (messenger_step(parent, 50) == 1)
		;
	failed = failed || poll(&end, 1, DEADLINE) != 1;
}

int
main(int count, char **argument)
{
	struct messenger *parent;
	int status = 0, ends[2];

	if (count != 2) {
		clutch_print_line(STDERR_FILENO,
		                  "usage: runs start|message|handle|uncaught|kill|reload|shutdown|"
		                  "stopped|pressure|large|flood|orphans");
		return 2;
	}
	run = argument[1];
	if (pipe(ends) == -1)
		return 1;
	parent = fork_cluster(&(struct options){.agent = agent,
	                                        .app = app,
	                                        .workers = 2,
	                                        .app_close_timeout = is("stopped") ? 500 : 0},
	                      &master);
	if (parent == NULL || messenger_on(parent, "egg-ready", on_ready, NULL) == -1 ||
	    messenger_on(parent, "done", on_done, NULL) == -1 ||
	    messenger_once(parent, "me", on_me, NULL) == -1 ||
	    messenger_on(parent, "here", on_here, NULL) == -1 ||
	    (!is("kill") && messenger_on(parent, "app-worker-died", on_here, NULL) == -1) ||
	    messenger_set_timeout(parent, DEADLINE, on_deadline, NULL) == -1) {
		clutch_print_line(STDERR_FILENO, "runs: %s", strerror(errno));
		return 1;
	}
	while (waitpid(master, &status, WNOHANG) == 0)
		messenger_step(parent, 50);
	close(ends[1]);
	if (is("orphans"))
		wait_for_orphans(parent, ends[0]);
	messenger_close(parent);
	return failed || (status != 0 && !is("orphans"));
}
