/*
 * A caller is a program of the test's own that starts a cluster. The test decides which open
 * descriptors, signal dispositions and handlers the program has when it does so.
 *
 *	static int
 *	body(void)
 *	{
 *		signal(SIGINT, SIG_IGN);
 *		return run_cluster(&(struct options){.app = role, .workers = 1});
 *	}
 *
 *	struct caller *c = caller_start(body);
 *	size_t at = caller_wait(c, 0, "app ready");
 *	kill(caller_number(c, "master is"), SIGTERM);
 *	caller_ends(c, 0);
 *
 * All that the caller and its cluster print and say is one text. A test waits for words in
 * this text. A test that fails prints the text, and no process outlives its test
 * (see test_leash in harness.h).
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#ifndef CALLER_H
#define CALLER_H

#include "harness.h"

#include <criterion/criterion.h>

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
	WORDS = 100,     /* the descriptor that say writes to; no test closes it */
	PATIENCE = 10000 /* how long a wait may take, in ms, times the time scale */
};

struct caller {
	struct caller *next; /* of the test's callers */
	pid_t pid;
	int output;   /* the reading end of stdout, stderr and WORDS */
	int terminal; /* the master's end of the caller's terminal; -1: it has none */
	bool ended;   /* no process has the other end of the output any more */
	bool reaped;  /* by the test */
	bool dead;    /* reaped, and its whole output has been read */
	int status;   /* as waitpid(2) has it */
	char *text;
	size_t length;
};

/* A list of all callers, so that a leak checker in a forked process finds inherited memory. */
static struct caller *callers;

/* The cluster is started by fork_cluster, and not by start_cluster. */
static bool forks;

/* ---- in the caller and its cluster -------------------------------------------- */

/* Add a line to the text, even if stdout is closed. */
static inline void CLUTCH_PRINTF(1, 2) say(const char *format, ...)
{
	char line[PIPE_BUF];
	va_list arguments;
	int length;

	va_start(arguments, format);
	length = vsnprintf(line, sizeof line - 1, format, arguments);
	va_end(arguments);
	if (length > (int)sizeof line - 2)
		length = (int)sizeof line - 2;
	line[length++] = '\n';
	while (write(WORDS, line, (size_t)length) == -1 && errno == EINTR)
		;
}

/* Run the cluster until it is gone, and return its exit status as a shell has it. */
static inline int
run_cluster(const struct options *options)
{
	struct messenger *parent;
	int status = 0;
	pid_t master;

	if (!forks) {
		say("master is %ld", (long)getpid());
		return start_cluster(options);
	}
	parent = fork_cluster(options, &master);
	if (parent == NULL)
		return 1;
	say("master is %ld", (long)master);
	while (waitpid(master, &status, WNOHANG) == 0)
		messenger_step(parent, 20);
	messenger_close(parent);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static inline int
say_ready(struct messenger *messenger, const struct message *message, void *arg)
{
	(void)arg;
	say("%s ready %ld %s", clutch_role_name(messenger_role(messenger)), (long)getpid(),
	    message->data);
	return 0;
}

/* A role that says "app is PID", and "app ready PID OPTIONS" at egg-ready. */
static inline int
role(struct messenger *messenger, void *arg)
{
	(void)arg;
	say("%s is %ld", clutch_role_name(messenger_role(messenger)), (long)getpid());
	return messenger_once(messenger, "egg-ready", say_ready, NULL);
}

/* ---- in the test ---------------------------------------------------------------- */

/* Set the signals as a caller finds them if nobody has changed any. */
static inline void
default_signals(void)
{
	sigset_t none;
	int number;

	for (number = 1; number < 32; number++)
		signal(number, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

static inline struct caller *
caller_start(int (*body)(void))
{
	static int leash = -1;
	struct caller *caller = calloc(1, sizeof *caller);
	int ends[2], null = open("/dev/null", O_RDONLY);

	if (leash == -1) {
		clear_environment();
		leash = test_leash();
		prctl(PR_SET_CHILD_SUBREAPER, 1); /* so that the test can reap orphans */
	}
	cr_assert(caller != NULL && null != -1 && pipe(ends) == 0);
	caller->next = callers;
	callers = caller;
	fflush(stdout);
	fflush(stderr);
	caller->pid = fork();
	cr_assert(caller->pid != -1);
	if (caller->pid == 0) {
		default_signals();
		if (dup2(null, 0) == -1 || dup2(ends[1], 1) == -1 || dup2(ends[1], 2) == -1 ||
		    dup2(ends[1], WORDS) == -1)
			_exit(99);
		close(ends[0]);
		close(ends[1]);
		close(null);
		_exit(body());
	}
	close(null);
	close(ends[1]);
	fcntl(ends[0], F_SETFL, O_NONBLOCK);
	caller->output = ends[0];
	caller->terminal = -1;
	return caller;
}

/* Read what is there. Returns false at end of file, or if there is nothing. */
static inline bool
caller_read(struct caller *caller, int descriptor)
{
	char bytes[4096];
	ssize_t count = read(descriptor, bytes, sizeof bytes);

	if (count == 0 && descriptor == caller->output)
		caller->ended = true;
	if (count <= 0)
		return false;
	caller->text = realloc(caller->text, caller->length + (size_t)count + 1);
	cr_assert(caller->text != NULL);
	memcpy(caller->text + caller->length, bytes, (size_t)count);
	caller->length += (size_t)count;
	caller->text[caller->length] = '\0';
	return true;
}

/* Reap callers, and the orphans that they leave. */
static inline void
caller_reap(void)
{
	struct caller *caller;
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
		for (caller = callers; caller != NULL; caller = caller->next)
			if (caller->pid == pid) {
				caller->reaped = true;
				caller->status = status;
			}
}

static inline void
caller_turn(struct caller *caller, int timeout)
{
	struct pollfd set[] = {{caller->ended ? -1 : caller->output, POLLIN, 0},
	                       {caller->terminal, POLLIN, 0}};
	bool dead;

	caller_reap();
	dead = caller->reaped;
	poll(set, 2, timeout);
	while (caller_read(caller, caller->output))
		;
	while (caller->terminal != -1 && caller_read(caller, caller->terminal))
		;
	caller->dead = dead;
}

/* Wait until is_so returns true; returns false if that takes too long. */
static inline bool
caller_until(struct caller *caller, bool (*is_so)(struct caller *caller, const void *arg),
             const void *arg)
{
	int64_t deadline = clutch_now() + (int64_t)PATIENCE * time_scale();

	caller_turn(caller, 0);
	while (!is_so(caller, arg)) {
		if (clutch_now() > deadline)
			return false;
		caller_turn(caller, 5);
	}
	return true;
}

/* An assertion that prints the caller's text when it fails. */
#define caller_assert(caller, condition, ...)                                                      \
	do {                                                                                       \
		if (!(condition)) {                                                                \
			fprintf(stderr, "---- the caller's text:\n%.8000s----\n",                  \
			        (caller)->length > 0 ? (caller)->text : "");                       \
			cr_assert(false, __VA_ARGS__);                                             \
		}                                                                                  \
	} while (0)

static inline size_t
caller_count(const struct caller *caller, const char *words)
{
	const char *at = caller->length > 0 ? caller->text : "";
	size_t count = 0;

	while ((at = strstr(at, words)) != NULL) {
		at += strlen(words);
		count++;
	}
	return count;
}

struct caller_search {
	size_t from;
	const char *words;
};

static inline bool
caller_has(struct caller *caller, const void *arg)
{
	const struct caller_search *search = arg;

	return caller->length > search->from &&
	       strstr(caller->text + search->from, search->words) != NULL;
}

static inline bool
caller_has_or_ended(struct caller *caller, const void *arg)
{
	return caller->ended || caller_has(caller, arg);
}

/* Wait for words behind `from`; returns the position behind these words. */
static inline size_t
caller_wait(struct caller *caller, size_t from, const char *words)
{
	struct caller_search search = {from, words};

	caller_until(caller, caller_has_or_ended, &search);
	caller_assert(caller, caller_has(caller, &search), "waited in vain for \"%s\"", words);
	return (size_t)(strstr(caller->text + from, words) - caller->text) + strlen(words);
}

/* The number behind the last occurrence of these words. */
static inline pid_t
caller_number(struct caller *caller, const char *words)
{
	size_t at = caller_wait(caller, 0, words);
	struct caller_search search = {at, words};

	while (caller_has(caller, &search))
		search.from = caller_wait(caller, search.from, words);
	return (pid_t)atol(caller->text + search.from);
}

/* A path in the test's folder. */
static inline const char *
path_of(const char *name)
{
	static char paths[4][256];
	static int next;
	char *path = paths[next++ % 4];

	snprintf(path, sizeof paths[0], "%s/%s", test_folder(), name);
	return path;
}

/* The first bytes of a file, as text. */
static inline const char *
content_of(const char *path)
{
	static char text[8192];
	int file = open(path, O_RDONLY);
	ssize_t count = file != -1 ? read(file, text, sizeof text - 1) : 0;

	text[count > 0 ? count : 0] = '\0';
	close(file);
	return text;
}

/* The rest of the line behind the first occurrence of these words. */
static inline const char *
line_behind(const struct caller *c, const char *from, const char *words, char line[256])
{
	const char *at = strstr(from != NULL ? from : c->text, words);

	line[0] = '\0';
	if (at == NULL)
		return NULL;
	at += strlen(words);
	snprintf(line, 256, "%.*s", (int)strcspn(at, "\n"), at);
	return at;
}

static inline bool
caller_is_dead(struct caller *caller, const void *arg)
{
	(void)arg;
	return caller->dead;
}

/* Are the caller and all that it has started dead? */
static inline bool
caller_has_left(struct caller *caller, const void *arg)
{
	pid_t left[1];

	(void)arg;
	return caller->dead && test_leashed(left, 1) == 0;
}

/* Wait until the caller is dead; returns its exit status as a shell has it, or -1. */
static inline int
caller_status(struct caller *caller)
{
	if (!caller_until(caller, caller_is_dead, NULL))
		return -1;
	return WIFEXITED(caller->status) ? WEXITSTATUS(caller->status)
	                                 : 128 + WTERMSIG(caller->status);
}

static inline void
caller_free(struct caller *caller)
{
	struct caller **link = &callers;

	while (*link != caller)
		link = &(*link)->next;
	*link = caller->next;
	close(caller->output);
	if (caller->terminal != -1)
		close(caller->terminal);
	free(caller->text);
	free(caller);
}

/* Wait for the caller's end with this exit status, and until nobody is left. */
static inline void
caller_ends(struct caller *caller, int expected)
{
	int status = caller_status(caller);

	caller_assert(caller, status != -1, "the caller has not ended");
	caller_assert(caller, status == expected, "the caller ended with %d, not with %d", status,
	              expected);
	caller_assert(caller, caller_until(caller, caller_has_left, NULL),
	              "somebody has outlived the caller");
	caller_turn(caller, 0);
}

/* Send SIGTERM to the master, which must end with 0. */
static inline void
caller_stop(struct caller *caller)
{
	kill(caller_number(caller, "master is "), SIGTERM);
	caller_ends(caller, 0);
}

#endif
