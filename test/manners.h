/*
 * Processes that obey, for the tests of how a live cluster ends and is reloaded.
 *
 * While a cluster closes, the master logs no deaths. So each process that exits by itself
 * says its exit code ("exit of APP#1: 0"). The master's status (SIGUSR1) shows how the apps
 * have ended, while an agent with a long close waits for the test's order to leave.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#ifndef MANNERS_H
#define MANNERS_H

#include "harness.h"

#include <criterion/criterion.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#define LONG 60000 /* a close timeout that does not matter in the test */

/* ---- processes that obey ----------------------------------------------------------------- */

/* How agent and apps load and leave. A cluster inherits this from its test. */
static struct manners {
	struct {
		messenger_callback load, close;
	} agent, app;
} manners;

static bool says_its_exit;

static inline void
say_exit(int code, void *arg)
{
	(void)arg;
	clutch_print_line(STDOUT_FILENO, "exit of %ld: %d", (long)getpid(), code);
}

/* clutch ends its processes with _exit(2), which calls no handlers of on_exit. */
void __real__exit(int code);
void __wrap__exit(int code);

void
__wrap__exit(int code)
{
	if (says_its_exit)
		say_exit(code, NULL);
	__real__exit(code);
}

/* The 10,000 messages of D22 are more than a socket takes. */
enum { FLOOD = 10000, FLOOD_SIZE = 200 };

static inline int
order_flood(struct messenger *app, const char *line)
{
	char data[FLOOD_SIZE + 1];
	int i;

	for (i = 0; i < FLOOD; i++) {
		snprintf(data, sizeof data, "%0*d", FLOOD_SIZE, i);
		if (messenger_send_to_agent(app, "test-flood", data) == -1)
			report(app, "cannot send %d: %s", i, strerror(errno));
	}
	exit(atoi(order_rest(line)));
}

static inline int
on_flood(struct messenger *agent, const struct message *message, void *arg)
{
	int *expected = arg, number = atoi(message->data);

	if (number != *expected)
		report(agent, "got %d instead of %d", number, *expected);
	*expected = number + 1;
	if (number == FLOOD - 1)
		report(agent, "got the last");
	return 0;
}

/* End the channel, and go on living. */
static inline int
order_hang_up(struct messenger *messenger, const char *line)
{
	(void)line;
	shutdown(messenger->channel.descriptor, SHUT_RDWR);
	while (pause() == -1)
		;
	return 0;
}

static inline int
order_reload(struct messenger *messenger, const char *line)
{
	if (strcmp(order_rest(line), "by pid") == 0)
		return messenger_send_to(messenger, getppid(), "reload-worker", NULL);
	return messenger_send(messenger, "reload-worker", NULL, ROLE_MASTER);
}

static inline int
order_listening(struct messenger *messenger, const char *line)
{
	(void)line;
	return messenger_send(messenger, "listening", NULL, ROLE_MASTER);
}

static inline int
order_talk(struct messenger *messenger, const char *line)
{
	int count = atoi(order_rest(line));

	while (count-- > 0)
		if (messenger_send_to_agent(messenger, "test-talk", "\"twenty bytes or so\"") == -1)
			return 1;
	return 0;
}

static inline int
order_talk_to_nobody(struct messenger *messenger, const char *line)
{
	int count = atoi(order_rest(line));

	while (count-- > 0)
		messenger_send_to(messenger, 0x7ffffffe, "test-talk", NULL);
	return 0;
}

static const struct order orders[] = {
	{"flood", order_flood},
	{"hang-up", order_hang_up},
	{"listening", order_listening},
	{"reload", order_reload},
	{"talk", order_talk},
	{"talk-to-nobody", order_talk_to_nobody},
	{NULL, NULL},
};

static bool told_to_go;
static bool unobserved; /* report no messages: those of a flood would fill the record (D17) */

static inline int
on_go(struct messenger *messenger, const struct message *message, void *arg)
{
	(void)messenger, (void)message, (void)arg;
	told_to_go = true;
	return 0;
}

/* The role function of agent and apps. */
static inline int
obey(struct messenger *messenger, void *arg)
{
	static int expected;
	bool is_app = messenger_role(messenger) == ROLE_APP;
	messenger_callback load = is_app ? manners.app.load : manners.agent.load;
	messenger_callback close = is_app ? manners.app.close : manners.agent.close;

	on_exit(say_exit, NULL);
	says_its_exit = true;
	if ((!unobserved && observe(messenger) == -1) || obey_orders(messenger, orders) == -1 ||
	    messenger_on(messenger, "test-go", on_go, NULL) == -1 ||
	    messenger_on(messenger, "test-flood", on_flood, &expected) == -1 ||
	    (close != NULL && messenger_before_close(messenger, close, NULL) == -1))
		return 1;
	return load != NULL ? load(messenger, arg) : 0;
}

/* A load function that takes until the test orders the process to be ready. */
static inline int
load_long(struct messenger *messenger, void *arg)
{
	(void)arg;
	messenger_ready_later(messenger);
	report(messenger, "loads");
	return 0;
}

/* A close function that takes until the test orders the process to leave. */
static inline int
close_when_told(struct messenger *messenger, void *arg)
{
	(void)arg;
	report(messenger, "waits");
	while (!told_to_go &&
	       messenger_step(messenger, 20) == 1) /* in 20 ms: the channel may be closed */
		;
	return 0;
}

/* ---- their cluster ----------------------------------------------------------------------- */

static inline struct cluster *
launch(struct options options)
{
	options.agent = options.app = obey;
	return cluster_start(&options);
}

/* Start a cluster, and wait until it is ready and everybody has heard so. */
static inline struct cluster *
start(struct options options)
{
	struct cluster *c = launch(options);
	int i;

	cluster_ready(c);
	cluster_wait(c, 0, ":AGENT#1 saw egg-ready");
	for (i = 1; i <= options.workers; i++)
		cluster_wait(c, 0, ":APP#%d saw egg-ready", i);
	return c;
}

static inline bool
has_passed(struct cluster *c, void *arg)
{
	(void)c;
	return clutch_now() >= *(int64_t *)arg;
}

/* Let time pass, where a time is itself the subject of the test. */
static inline void
pass(struct cluster *c, int64_t milliseconds)
{
	int64_t end = clutch_now() + milliseconds, next;

	while (clutch_now() < end) { /* a single wait must stay below the time limit */
		next = clutch_now() + time_limit() / 2;
		next = next < end ? next : end;
		cluster_until(c, has_passed, &next, "time to pass");
	}
}

static inline size_t
signal_master(struct cluster *c, int number)
{
	size_t mark = cluster_mark(c);

	cluster_signal(c, "MASTER", number);
	return mark;
}

static inline void
go(struct cluster *c, enum role role)
{
	cr_assert_eq(messenger_send(c->parent, "test-go", NULL, role), 0);
	cluster_turn(c);
}

/* ---- the status -------------------------------------------------------------------------- */

static inline void
expect_state(struct cluster *c, const char *who, const char *state)
{
	const char *is = cluster_status(c, who, "state");

	cr_assert_str_eq(is != NULL ? is : "none", state, "%s", who != NULL ? who : "cluster");
}

/* ---- 08: orders to the master ------------------------------------------------------------ */

/* A load function that ends the cluster, and returns when its own process gets SIGTERM. */
static inline int
load_into_the_end(struct messenger *messenger, void *arg)
{
	sigset_t set;
	int number;

	(void)messenger, (void)arg;
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigprocmask(SIG_BLOCK, &set, NULL);
	kill(getppid(), SIGTERM);
	return sigwait(&set, &number);
}

/* ---- 12: processes that do not leave ----------------------------------------------------- */

static inline int
load_badly(struct messenger *app, void *arg)
{
	(void)app, (void)arg;
	return 1;
}

/* ---- a cluster without a parent, or with a terminal -------------------------------------- */

/* Started by start_cluster in a process that the test forks. */
struct bare {
	pid_t master;
	bool buffers; /* the process has text in a buffer of stdio when it starts the cluster */
	int output;   /* the reading end of its stdout and stderr */
	char text[32 * 1024];
	size_t length;
};

#define BUFFERED "it stood in a buffer\n"
/* In the child: become the master, in the foreground of the terminal if `end` is one. */
static inline void
run_bare(const struct options *options, const struct bare *bare, int end)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	setsid();
	if (isatty(end))
		ioctl(end, TIOCSCTTY, 0);
	dup2(end, 0);
	dup2(end, 1);
	dup2(end, 2);
	close(end);
	close(bare->output);
	if (bare->buffers)
		cr_assert(fputs(BUFFERED, stdout) != EOF);
	exit(start_cluster(options));
}

/* Read on; false at end of file (EIO of a terminal), when no process is left. */
static inline bool
bare_read(struct bare *bare, int64_t deadline)
{
	struct pollfd set = {bare->output, POLLIN, 0};
	size_t room = sizeof bare->text - 1 - bare->length;
	ssize_t count;

	cr_assert(clutch_now() < deadline && poll(&set, 1, time_limit()) == 1,
	          "waited in vain:\n%s", bare->text);
	count = read(bare->output, bare->text + bare->length, room);
	if (count <= 0)
		return false;
	bare->length += (size_t)count;
	bare->text[bare->length] = '\0';
	return true;
}

static inline size_t
bare_count(const struct bare *bare, const char *text)
{
	const char *at = bare->text;
	size_t count = 0;

	while ((at = strstr(at, text)) != NULL) {
		at += strlen(text);
		count++;
	}
	return count;
}

#endif
