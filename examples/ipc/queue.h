/*
 * What the files of examples/ipc/queue share.
 *
 *	queue.c        the program; RSMQ; publish and subscribe
 *	queue_lists.c  a queue that is a list, priorities, and a group of messages
 *	queue_redis.c  a Redis of its own, for the time of the program
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#ifndef EXAMPLES_QUEUE_H
#define EXAMPLES_QUEUE_H

#include "../../redis/redis.h"

#include <sys/types.h>

enum {
	QUEUE_PAUSE = 50,      /* milliseconds between two questions */
	QUEUE_DEADLINE = 60000 /* milliseconds, for any one step of the story */
};

/* One line, and exit 1. The other processes see the end of their lifelines. */
void queue_fail(const char *what, const char *why);
void queue_fail_by_errno(const char *what);

/* A connection with these options, or NULL for the defaults; it logs nothing, because the
 * result of a call says more. A URL that is none ends the program. */
struct redis *queue_open_redis(const char *url, const struct redis_options *options);

/* A pipe: one process holds its writing end, and never writes to it. Its end of file tells
 * the others that this process has ended, in whatever way. */
void queue_open_lifeline(int ends[2]);
pid_t queue_fork(void);

/* queue_lists.c */
void queue_show_lists(const char *url);

/* queue_redis.c: start it and return its URL; wait until it answers (false: it cannot start,
 * and has printed the reason); close what a child must not hold. Redis ends with the
 * process that started it, and its folder is removed. */
const char *queue_start_redis(void);
bool queue_wait_for_redis(const char *url);
void queue_leave_redis(void);

#endif
