/*
 * A client of Redis (or Valkey) for a program that must not block: one connection, many
 * commands without a reply at a time, replies in order.
 *
 *	static int
 *	on_value(struct redis *redis, const struct redis_reply *reply, void *arg)
 *	{
 *		return reply->type == REDIS_STRING ? puts(reply->text) < 0 : 0;
 *	}
 *
 *	redis = redis_open(messenger, "redis://127.0.0.1:6379", NULL);
 *	redis_command(redis, on_value, NULL, "GET", "name", (char *)NULL);
 *
 * With a messenger, the connection is served by that messenger's loop. With NULL, the
 * program calls redis_step, as it would call messenger_step.
 *
 * The client makes the connection, and makes it again when it is lost. A command waits
 * for a connection, is written once, never twice, and has one answer: the reply of Redis,
 * or REDIS_NO_REPLY with the reason. If no byte of it was written in time, Redis has not
 * done it. If the connection is lost or no reply comes in time after that, Redis may have
 * done it, or not.
 *
 * As in messenger.h: times are milliseconds; an int result is 0, or -1 with errno
 * set and nothing changed; what you pass is read during the call and stays yours.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#ifndef REDIS_H
#define REDIS_H

#include "../messenger.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Limits. Those that do not follow from another can be set on the compiler's command line. The
 * longest reply, in bytes; and in it: a line (a status, an error, a number), the elements of all
 * arrays, and arrays in arrays. */
#ifndef REDIS_REPLY_MAX
#define REDIS_REPLY_MAX (16 * 1024 * 1024)
#endif
#define REDIS_LINE_MAX (REDIS_REPLY_MAX / 256)
#define REDIS_ELEMENTS_MAX (REDIS_REPLY_MAX / 64)
#define REDIS_DEPTH_MAX 8

/* A command is refused that would leave more bytes to be written, or more commands without a
 * reply. */
#ifndef REDIS_QUEUE_MAX
#define REDIS_QUEUE_MAX (4 * 1024 * 1024)
#endif
#define REDIS_PENDING_MAX (REDIS_QUEUE_MAX / 256)

/* The time limit for connecting, and for a reply. A command waits as long for a connection;
 * when there is one, its time begins again. After three times as long without a byte, a
 * PING asks whether Redis is there. */
#ifndef REDIS_TIMEOUT
#define REDIS_TIMEOUT 5000
#endif

/* The back-off between two tries to connect: the first wait and the longest; each wait is
 * twice as long as the last. A random part of up to half of it is left out, so that not
 * all clients come at once (thundering herd). */
#ifndef REDIS_RETRY_MIN
#define REDIS_RETRY_MIN 100
#endif
#ifndef REDIS_RETRY_MAX
#define REDIS_RETRY_MAX 5000
#endif

enum redis_type {
	REDIS_STATUS,  /* "OK": text */
	REDIS_ERROR,   /* Redis says no: text, "WRONGTYPE Operation against ..." */
	REDIS_INTEGER, /* integer */
	REDIS_STRING,  /* any bytes: text */
	REDIS_NIL,     /* nothing */
	REDIS_ARRAY,   /* count of element */
	REDIS_NO_REPLY /* there is no reply, and none will come: text says why */
};

/* A reply lives until the callback returns, with everything that is in it. */
struct redis_reply {
	enum redis_type type;
	int64_t integer;
	const char *text; /* text[length] is 0 */
	size_t length;
	const struct redis_reply *element;
	size_t count;
};

/* Is it a text (status, error, string) of exactly these bytes? */
bool redis_is(const struct redis_reply *reply, const char *text);

struct redis;

/* Called once for each command, never inside redis_command. Non-zero is C's uncaught exception:
 * in a messenger's loop it is the watcher's result; otherwise redis_step returns -1 with
 * ECANCELED. */
typedef int (*redis_callback)(struct redis *redis, const struct redis_reply *reply, void *arg);

/* Zero (or NULL) in a field means its default. */
struct redis_options {
	int timeout;   /* REDIS_TIMEOUT; longer than any command may block in Redis */
	int retry_max; /* REDIS_RETRY_MAX */
	/* A lost connection ends all commands, not only those written: for a program that
	 * begins again with each connection, in order. */
	bool drops;
	/* The connection is ready (authenticated, its database selected), or it is lost
	 * and the commands that were written have heard of it. Non-zero: as above. */
	int (*on_change)(struct redis *redis, bool ready, void *arg);
	/* Subscribe to these channels (NULL behind the last; they stay yours, and in place until
	 * redis_close), now and each time the connection is made again. The connection is for
	 * them alone, and is ready when it listens to all of them. Each message is an array of
	 * three: "message", the channel, the text. Non-zero: as above. */
	const char *const *channels;
	redis_callback on_message;
	/* One line, without its line end: the connection was lost, cannot be made, is
	 * refused, is back. Not each try: only changes. NULL: to stderr. */
	void (*log)(const char *line, void *arg);
	void *arg; /* handed to all of them */
};

/* Open a connection; it is made later, in the loop. The URL:
 *
 *	redis://[user][:password@]host[:port][/database]
 *	unix://[user][:password@]/path/of/socket[?db=database]
 *
 * (redis+unix:// is the same as unix://); %XX in user, password and path is the byte XX; an
 * IPv6 address stands in brackets. A host that is a name is looked up at each try to connect,
 * and getaddrinfo(3) waits for its answer.
 *
 * NULL with errno: EINVAL (the URL; channels without on_message), ENOMEM. The messenger must
 * outlive it. redis_close closes and frees; each command without a reply hears REDIS_NO_REPLY,
 * and what was not written is not written. Commands that these callbacks queue are refused
 * (EPIPE). Do not close a connection inside a callback of its own. NULL is ignored. */
struct redis *redis_open(struct messenger *messenger, const char *url,
                         const struct redis_options *options);
void redis_close(struct redis *redis);

/* Queue a command: up to 64 words as C strings, (char *)NULL behind the last; or argc of them in
 * argv, of these lengths (NULL: C strings). The callback may be NULL. Commands queued in one turn
 * of the loop leave together. errno: EINVAL (no word, or too many; or this connection
 * subscribes), EMSGSIZE (larger than REDIS_QUEUE_MAX), ENOBUFS (the queue is full), ENOMEM,
 * EPIPE (it is being closed). */
#ifdef __GNUC__
__attribute__((sentinel))
#endif
int
redis_command(struct redis *redis, redis_callback callback, void *arg, const char *word, ...);
int redis_command_argv(struct redis *redis, redis_callback callback, void *arg, size_t argc,
                       const char *const argv[], const size_t lengths[]);

/* Is the connection ready? How many commands have heard no reply yet? */
bool redis_ready(const struct redis *redis);
size_t redis_pending(const struct redis *redis);

/* What it is connected to, without user and password: for log lines. */
const char *redis_name(const struct redis *redis);

/* Without a messenger. step: write what is queued, wait up to `timeout` (-1: as long as it takes)
 * for something to do, and do it. Returns 1 while the connection is ready, otherwise 0: it is
 * being made; -1 with EBUSY inside a callback, ECANCELED as said at redis_callback, or poll(2)'s
 * errno.
 *
 * A foreign loop polls what `descriptor` returns (-1: none, for now) for what it stores in *events,
 * for `timeout` at the longest, and then, whatever happened, calls redis_step(redis, 0). */
int redis_step(struct redis *redis, int timeout);
int redis_descriptor(const struct redis *redis, short *events);
int redis_timeout(const struct redis *redis);

#ifdef __cplusplus
}
#endif

#endif
