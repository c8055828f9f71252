/*
 * RSMQ, a really simple message queue, in C: npm rsmq's calls, names and keys, so
 * that programs in both languages share one queue.
 *
 *	rsmq:QUEUES      set    the names of all queues
 *	rsmq:NAME        zset   message id -> the time from which it is visible, in ms
 *	rsmq:NAME:Q      hash   vt, delay (seconds), maxsize, created, modified (seconds),
 *	                        totalsent, totalrecv, and for each message
 *	                        ID -> its text,  ID:rc -> times received,  ID:fr -> first, in ms
 *
 * A receiver does not take a message away: it hides the message from all others for vt
 * seconds. When the work is done, the receiver deletes the message. If the receiver dies
 * before that, another one gets the message. So each message is received at least once.
 *
 *	sent --delay--> visible --receive--> hidden --delete--> gone
 *	                   ^                   |
 *	                   `------ vt ---------'
 *
 * Every call is one script in Redis (5 or later): it happens wholly or not at all.
 * The connection is one without a messenger (see redis.h). Each call turns its loop until
 * the answer is there, at most as long as the options of the connection say. So these calls
 * are for a process that has nothing else to wait for, and not for a callback.
 *
 * A result of -1 means that nothing was done, as far as this process knows; errno is
 * EINVAL (a name or a number that RSMQ does not allow), ENOENT (no such queue),
 * EEXIST (the queue exists), EMSGSIZE (longer than the queue's maxsize), EIO (Redis
 * refuses, or does not answer), ENOMEM. rsmq_reason returns the reason in words.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#ifndef EXAMPLES_RSMQ_H
#define EXAMPLES_RSMQ_H

#include "../../redis/redis.h"

enum {
	RSMQ_NAME_MAX = 160, /* characters, of a-z A-Z 0-9 _ - */
	RSMQ_ID_LENGTH = 32, /* characters: 10 of the time in base 36, 22 at random */
	RSMQ_SECONDS_MAX = 9999999,
	RSMQ_DEFAULT = -2,  /* create: vt 30, delay 0, maxsize 65536; later: the queue's */
	RSMQ_UNLIMITED = -1 /* a maxsize; otherwise it is 1024 to 65536 */
};

/* Counted as JavaScript does: UTF-16 units. The times are Redis's clock's. */
struct rsmq_attributes {
	int64_t vt, delay; /* seconds */
	int64_t maxsize;
	int64_t totalrecv, totalsent;
	int64_t created, modified; /* seconds since 1970 */
	int64_t msgs, hiddenmsgs;  /* hidden: also those of this second */
};

struct rsmq_message {
	char id[RSMQ_ID_LENGTH + 1];
	char *message; /* C string; free(3) it */
	size_t length;
	int64_t rc;       /* how often it was received, this time included */
	int64_t fr, sent; /* first received, sent: milliseconds since 1970 */
};

/* The numbers may be RSMQ_DEFAULT. */
int rsmq_create_queue(struct redis *redis, const char *name, int vt, int delay, int maxsize);
int rsmq_delete_queue(struct redis *redis, const char *name);
int rsmq_get_queue_attributes(struct redis *redis, const char *name,
                              struct rsmq_attributes *attributes);

/* The id is stored where `id` points, unless it is NULL. */
int rsmq_send_message(struct redis *redis, const char *name, const char *message, int delay,
                      char id[RSMQ_ID_LENGTH + 1]);

/* 1: *message is filled, and hidden from others for vt seconds; 0: there is none. */
int rsmq_receive_message(struct redis *redis, const char *name, int vt,
                         struct rsmq_message *message);

/* 1: done; 0: there is no such message (any more). change: it is visible in vt seconds. */
int rsmq_delete_message(struct redis *redis, const char *name, const char *id);
int rsmq_change_message_visibility(struct redis *redis, const char *name, const char *id, int vt);

/* Why the last call that failed did: one line, without its end. */
const char *rsmq_reason(void);

#endif
