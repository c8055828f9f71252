/*
 * RSMQ in C: rsmq.h says what it is. The keys are npm rsmq's (0.12.4), and what is
 * done to them; where npm rsmq needs two trips to Redis, one script does it here.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "rsmq.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define NAMESPACE "rsmq:"
#define QUEUES "rsmq:QUEUES"
#define NAME_LETTERS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"
#define ID_LETTERS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

static char reason[256] = "no call has failed";

const char *
rsmq_reason(void)
{
	return reason;
}

static int
fail(int error, const char *why)
{
	snprintf(reason, sizeof reason, "%s", why);
	errno = error;
	return -1;
}

/* ---- the scripts --------------------------------------------------------- */

/* KEYS: rsmq:NAME, rsmq:NAME:Q, rsmq:QUEUES. A script that finds no queue returns
 * the status NONE; q is the queue's vt, delay and maxsize, now is in milliseconds. */
#define TIME                                                                                       \
	"local t = redis.call('TIME') "                                                            \
	"local now = t[1] * 1000 + math.floor(t[2] / 1000) "
#define QUEUE                                                                                      \
	TIME "local q = redis.call('HMGET', KEYS[2], 'vt', 'delay', 'maxsize') "                   \
	     "if not (q[1] and q[2] and q[3]) then return redis.status_reply('NONE') end "

/* ARGV: vt, delay, maxsize */
static const char create_script[] =
	TIME "if redis.call('HSETNX', KEYS[2], 'vt', ARGV[1]) == 0 then return 0 end "
	     "redis.call('HSETNX', KEYS[2], 'delay', ARGV[2]) "
	     "redis.call('HSETNX', KEYS[2], 'maxsize', ARGV[3]) "
	     "redis.call('HSETNX', KEYS[2], 'created', t[1]) "
	     "redis.call('HSETNX', KEYS[2], 'modified', t[1]) "
	     "redis.call('SADD', KEYS[3], ARGV[4]) return 1";

static const char delete_queue_script[] =
	"redis.call('SREM', KEYS[3], ARGV[1]) return redis.call('DEL', KEYS[1], KEYS[2])";

static const char attributes_script[] =
	QUEUE "local a = redis.call('HMGET', KEYS[2], 'vt', 'delay', 'maxsize', 'totalrecv', "
	      "'totalsent', 'created', 'modified') "
	      "a[8] = redis.call('ZCARD', KEYS[1]) "
	      "a[9] = redis.call('ZCOUNT', KEYS[1], t[1] .. '000', '+inf') return a";

/* ARGV: the message, its length, a delay or '', 22 random letters */
static const char send_script[] =
	QUEUE "if q[3] ~= '-1' and ARGV[2] + 0 > q[3] + 0 then return 0 end "
	      "local digits = '0123456789abcdefghijklmnopqrstuvwxyz' "
	      "local n, id = t[1] * 1000000 + t[2], ARGV[4] "
	      "repeat "
	      "local d = n % 36 "
	      "id = string.sub(digits, d + 1, d + 1) .. id "
	      "n = (n - d) / 36 "
	      "until n == 0 "
	      "local delay = ARGV[3] == '' and q[2] or ARGV[3] "
	      "redis.call('ZADD', KEYS[1], now + delay * 1000, id) "
	      "redis.call('HSET', KEYS[2], id, ARGV[1]) "
	      "redis.call('HINCRBY', KEYS[2], 'totalsent', 1) return id";

/* ARGV: a vt or '' */
static const char receive_script[] =
	QUEUE "local id = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, 1)[1] "
	      "if not id then return {} end "
	      "local vt = ARGV[1] == '' and q[1] or ARGV[1] "
	      "redis.call('ZADD', KEYS[1], now + vt * 1000, id) "
	      "redis.call('HINCRBY', KEYS[2], 'totalrecv', 1) "
	      "local rc = redis.call('HINCRBY', KEYS[2], id .. ':rc', 1) "
	      "if rc == 1 then redis.call('HSET', KEYS[2], id .. ':fr', now) end "
	      "return {id, redis.call('HGET', KEYS[2], id), rc, "
	      "redis.call('HGET', KEYS[2], id .. ':fr')}";

/* ARGV: the id */
static const char delete_script[] =
	"if redis.call('ZREM', KEYS[1], ARGV[1]) == 0 then return 0 end "
	"redis.call('HDEL', KEYS[2], ARGV[1], ARGV[1] .. ':rc', ARGV[1] .. ':fr') return 1";

/* ARGV: the id, the vt */
static const char visibility_script[] =
	QUEUE "if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then return 0 end "
	      "redis.call('ZADD', KEYS[1], now + ARGV[2] * 1000, ARGV[1]) return 1";

/* ---- a call -------------------------------------------------------------- */

/* One call: what is to be done with the reply, and the result. */
struct call {
	int (*take)(const struct redis_reply *reply, void *to);
	void *to;
	bool done;
	int result, error;
};

static int
on_reply(struct redis *redis, const struct redis_reply *reply, void *arg)
{
	struct call *call = arg;

	(void)redis;
	if (reply->type == REDIS_ERROR || reply->type == REDIS_NO_REPLY)
		call->result = fail(EIO, reply->text);
	else if (reply->type == REDIS_STATUS)
		call->result = fail(ENOENT, "there is no such queue");
	else
		call->result = call->take(reply, call->to);
	call->error = errno;
	call->done = true;
	return 0;
}

static bool
name_is_valid(const char *name)
{
	size_t length = strlen(name);

	return length >= 1 && length <= RSMQ_NAME_MAX && strspn(name, NAME_LETTERS) == length;
}

/* Run a script on the keys of a queue, with these further words, and wait. */
static int
run(struct redis *redis, const char *script, const char *name, size_t count,
    const char *const words[], struct call *call)
{
	char key[sizeof NAMESPACE + RSMQ_NAME_MAX], hash[sizeof key + 2];
	size_t i;
	const char *argv[10] = {"EVAL", script, "3", key, hash, QUEUES};

	if (!name_is_valid(name))
		return fail(EINVAL, "a queue's name is 1 to 160 of a-z A-Z 0-9 _ -");
	snprintf(key, sizeof key, "%s%s", NAMESPACE, name);
	snprintf(hash, sizeof hash, "%s:Q", key);
	for (i = 0; i < count; i++)
		argv[6 + i] = words[i];
	if (redis_command_argv(redis, on_reply, call, 6 + count, argv, NULL) == -1)
		return fail(errno == ENOMEM || errno == EMSGSIZE ? errno : EIO, strerror(errno));
	while (!call->done) /* it will be: a command is answered, or given up in time */
		redis_step(redis, -1);
	errno = call->error;
	return call->result;
}

static int
take_number(const struct redis_reply *reply, void *to)
{
	(void)to;
	return (int)reply->integer;
}

/* A number of seconds as a word: '' is the default. */
static bool
seconds(int value, char word[16])
{
	word[0] = '\0';
	if (value >= 0)
		snprintf(word, 16, "%d", value);
	return (value >= 0 && value <= RSMQ_SECONDS_MAX) || value == RSMQ_DEFAULT;
}

static bool
id_is_valid(const char *id)
{
	return strlen(id) == RSMQ_ID_LENGTH && strspn(id, ID_LETTERS ":") == RSMQ_ID_LENGTH;
}

/* ---- queues -------------------------------------------------------------- */

int
rsmq_create_queue(struct redis *redis, const char *name, int vt, int delay, int maxsize)
{
	struct call call = {.take = take_number};
	char words[3][16];
	int created;

	vt = vt == RSMQ_DEFAULT ? 30 : vt;
	delay = delay == RSMQ_DEFAULT ? 0 : delay;
	maxsize = maxsize == RSMQ_DEFAULT ? 65536 : maxsize;
	if (!seconds(vt, words[0]) || !seconds(delay, words[1]) ||
	    (maxsize != RSMQ_UNLIMITED && (maxsize < 1024 || maxsize > 65536)))
		return fail(EINVAL, "vt and delay are 0 to 9999999, "
		                    "maxsize is 1024 to 65536, or -1");
	snprintf(words[2], sizeof words[2], "%d", maxsize);
	created = run(redis, create_script, name, 4,
	              (const char *const[]){words[0], words[1], words[2], name}, &call);
	return created == 0 ? fail(EEXIST, "the queue exists") : created == 1 ? 0 : -1;
}

int
rsmq_delete_queue(struct redis *redis, const char *name)
{
	struct call call = {.take = take_number};
	int deleted = run(redis, delete_queue_script, name, 1, &name, &call);

	return deleted == 0 ? fail(ENOENT, "there is no such queue") : deleted > 0 ? 0 : -1;
}

/* A number as Redis has it: an integer, or a text in a hash; nothing is 0. */
static int64_t
number(const struct redis_reply *reply)
{
	if (reply->type == REDIS_STRING)
		return strtoll(reply->text, NULL, 10);
	return reply->type == REDIS_INTEGER ? reply->integer : 0;
}

static int
take_attributes(const struct redis_reply *reply, void *to)
{
	const struct redis_reply *e = reply->element;

	if (reply->type != REDIS_ARRAY || reply->count != 9)
		return fail(EIO, "a reply that is none");
	*(struct rsmq_attributes *)to = (struct rsmq_attributes){
		number(&e[0]), number(&e[1]), number(&e[2]), number(&e[3]), number(&e[4]),
		number(&e[5]), number(&e[6]), number(&e[7]), number(&e[8])};
	return 0;
}

int
rsmq_get_queue_attributes(struct redis *redis, const char *name, struct rsmq_attributes *attributes)
{
	struct call call = {.take = take_attributes, .to = attributes};

	return run(redis, attributes_script, name, 0, NULL, &call);
}

/* ---- messages ------------------------------------------------------------ */

/* JavaScript counts UTF-16 units: one for each character, two if the character has four bytes. */
static size_t
length_in_javascript(const char *text)
{
	size_t length = 0;

	for (; *text != '\0'; text++)
		if ((*text & 0xc0) != 0x80) /* not the rest of one */
			length += (*text & 0xf8) == 0xf0 ? 2 : 1;
	return length;
}

/* Two ids of one microsecond must differ: Marsaglia's xorshift. */
static void
chance(char letters[23])
{
	static uint64_t state;
	static pid_t seeded;
	struct timespec now;
	int i;

	if (seeded != getpid()) { /* a forked child needs random numbers of its own */
		seeded = getpid();
		clock_gettime(CLOCK_REALTIME, &now);
		state = (uint64_t)now.tv_sec << 32 ^ (uint64_t)now.tv_nsec << 16 ^ (uint64_t)seeded;
	}
	for (i = 0; i < 22; i++) {
		state ^= state << 13;
		state ^= state >> 7;
		state ^= state << 17;
		letters[i] = ID_LETTERS[state % (sizeof ID_LETTERS - 1)];
	}
	letters[22] = '\0';
}

static int
take_id(const struct redis_reply *reply, void *to)
{
	if (reply->type != REDIS_STRING || reply->length != RSMQ_ID_LENGTH)
		return fail(EMSGSIZE, "the message is longer than the queue's maxsize");
	if (to != NULL)
		memcpy(to, reply->text, RSMQ_ID_LENGTH + 1);
	return 0;
}

int
rsmq_send_message(struct redis *redis, const char *name, const char *message, int delay,
                  char id[RSMQ_ID_LENGTH + 1])
{
	struct call call = {.take = take_id, .to = id};
	char length[24], later[16], letters[23];

	if (!seconds(delay, later))
		return fail(EINVAL, "a delay is 0 to 9999999 seconds");
	snprintf(length, sizeof length, "%zu", length_in_javascript(message));
	chance(letters);
	return run(redis, send_script, name, 4,
	           (const char *const[]){message, length, later, letters}, &call);
}

static int
take_message(const struct redis_reply *reply, void *to)
{
	const struct redis_reply *e = reply->element;
	struct rsmq_message *message = to;
	char sent[11] = ""; /* the id's first ten: microseconds */

	if (reply->type == REDIS_ARRAY && reply->count == 0)
		return 0;
	if (reply->type != REDIS_ARRAY || reply->count != 4 || e[0].type != REDIS_STRING ||
	    e[0].length != RSMQ_ID_LENGTH || e[1].type != REDIS_STRING)
		return fail(EIO, "a reply that is none");
	message->message = malloc(e[1].length + 1);
	if (message->message == NULL)
		return fail(ENOMEM, strerror(ENOMEM));
	memcpy(message->message, e[1].text, e[1].length + 1);
	message->length = e[1].length;
	memcpy(message->id, e[0].text, RSMQ_ID_LENGTH + 1);
	message->rc = number(&e[2]);
	message->fr = number(&e[3]);
	memcpy(sent, message->id, sizeof sent - 1);
	message->sent = strtoll(sent, NULL, 36) / 1000;
	return 1;
}

int
rsmq_receive_message(struct redis *redis, const char *name, int vt, struct rsmq_message *message)
{
	struct call call = {.take = take_message, .to = message};
	char hidden[16];
	const char *word = hidden;

	if (!seconds(vt, hidden))
		return fail(EINVAL, "a vt is 0 to 9999999 seconds");
	return run(redis, receive_script, name, 1, &word, &call);
}

int
rsmq_delete_message(struct redis *redis, const char *name, const char *id)
{
	struct call call = {.take = take_number};

	if (!id_is_valid(id))
		return fail(EINVAL, "an id is 32 of a-z A-Z 0-9 :");
	return run(redis, delete_script, name, 1, &id, &call);
}

int
rsmq_change_message_visibility(struct redis *redis, const char *name, const char *id, int vt)
{
	struct call call = {.take = take_number};
	char visible[16];

	if (!id_is_valid(id) || !seconds(vt, visible) || vt == RSMQ_DEFAULT)
		return fail(EINVAL, "an id is 32 of a-z A-Z 0-9 :, a vt 0 to 9999999 seconds");
	return run(redis, visibility_script, name, 2, (const char *const[]){id, visible}, &call);
}
