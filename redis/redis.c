/*
 * A client of Redis: one connection and the commands that wait for it. See redis.h.
 *
 *	          deadline                         all said yes
 *	WAITING ------------> GREETING -------------------------> READY
 *	   ^         connect, AUTH, SELECT, PING, SUBSCRIBE         |
 *	   `----------------- anything goes wrong: lose() ----------'
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "redis.h"
#include "resp.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#ifndef MSG_NOSIGNAL /* not every system has it */
#define MSG_NOSIGNAL 0
#endif

/* How many bytes are read, and how many commands are written, at once at most. */
#define READ_SIZE (256 * 1024)
#define PIECES 16    /* every system takes this many */
#define WORDS_MAX 64 /* of redis_command */

enum state { WAITING, GREETING, READY };

/* A command without a reply, and its bytes. */
struct command {
	struct command *next;
	redis_callback callback;
	void *arg;
	int64_t deadline;
	size_t size, written;
	char bytes[];
};

/* Commands in their order, and how many of their bytes are not written. `unsent` is the first
 * command that is not written to its end. */
struct queue {
	struct command *first, *last, *unsent;
	size_t count, bytes;
};

struct redis {
	struct messenger *messenger; /* or NULL */
	struct redis_options options;
	const char *host, *port, *path, *database;
	const char *auth[2]; /* user and password, or only a password */
	char name[128];

	enum state state;
	int descriptor;
	int64_t deadline; /* WAITING: the next try; GREETING: the end of this one */
	int64_t since;    /* READY: since then; heard: when the last bytes came */
	int64_t heard;
	int wait;       /* between the last two tries */
	size_t tries;   /* to connect, ever: they choose the next address */
	char said[128]; /* why there is no connection, as the log knows it; "": there is one */

	struct queue greeting; /* GREETING: what begins the connection, */
	struct queue commands; /* READY: and what the program asks */

	char *in; /* read, and from in_start on not heard */
	size_t in_start, in_length;
	struct resp_parser resp; /* the reply that is being heard */

	bool turning;  /* in a turn, in which callbacks are called */
	bool closed;   /* in redis_close: commands are refused */
	int result;    /* of the callbacks: the first that was not 0 */
	short watched; /* messenger: the events, and the timer */
	int timer;
	char url[]; /* cut into its parts */
};

/* ---- odds and ends --------------------------------------------------------- */

/* One line of the log. It may hold text of Redis, so control characters are replaced. */
static void
complain(const struct redis *redis, const char *what, const char *why, const char *end)
{
	char line[512], *at;

	snprintf(line, sizeof line, "[redis] %s: %s%s%s", redis->name, what, why, end);
	for (at = line; *at != '\0'; at++)
		if ((unsigned char)*at < ' ' || *at == 127)
			*at = '?';
	if (redis->options.log != NULL)
		redis->options.log(line, redis->options.arg);
	else
		clutch_log(CLUTCH_WARN, "%s", line);
}

/* Keep the result of a callback, if it is the first that is not 0. */
static void
keep_result(struct redis *redis, int result)
{
	if (redis->result == 0)
		redis->result = result;
}

bool
redis_is(const struct redis_reply *reply, const char *text)
{
	return reply->length == strlen(text) && memcmp(reply->text, text, reply->length) == 0;
}

bool
redis_ready(const struct redis *redis)
{
	return redis->state == READY;
}

size_t
redis_pending(const struct redis *redis)
{
	return redis->commands.count;
}

const char *
redis_name(const struct redis *redis)
{
	return redis->name;
}

static void
forget_input(struct redis *redis)
{
	free(redis->in);
	free(redis->resp.elements);
	redis->in = NULL;
	redis->in_start = redis->in_length = 0;
	redis->resp = (struct resp_parser){0};
}

/* ---- the URL --------------------------------------------------------------- */

/* Decode each %XX in its place. */
static bool
decode(char *text)
{
	char digits[3] = "", *to = text;

	for (; *text != '\0'; *to++ = *text++) {
		if (*text != '%')
			continue;
		if (strspn(text + 1, "0123456789abcdefABCDEF") < 2 ||
		    memcmp(text + 1, "00", 2) == 0)
			return false;
		memcpy(digits, text + 1, 2);
		text += 2;
		*text = (char)strtol(digits, NULL, 16);
	}
	*to = '\0';
	return true;
}

/* End the text at this character, and return what stands behind it, or "". */
static char *
cut(char *text, char at)
{
	char *end = text + strcspn(text, (const char[]){at, '\0'});

	if (*end != '\0')
		*end++ = '\0';
	return end;
}

/* Is it a number up to `most`, or nothing? */
static bool
is_number(const char *text, long most)
{
	size_t length = strlen(text);

	return length <= 9 && strspn(text, "0123456789") == length &&
	       strtol(text, NULL, 10) <= most;
}

/* host[:port][/database] */
static bool
parse_host(struct redis *redis, char *host)
{
	bool is_ipv6 = *host == '[';
	char *at = is_ipv6 ? strchr(host, ']') : host;

	if (at == NULL || (is_ipv6 && strchr(":/", at[1]) == NULL))
		return false;
	redis->database = cut(at, '/');
	redis->port = cut(at, ':');
	if (is_ipv6)
		*at = '\0';
	if (*redis->port == '\0')
		redis->port = "6379";
	redis->host = host + is_ipv6;
	snprintf(redis->name, sizeof redis->name, is_ipv6 ? "redis://[%s]:%s" : "redis://%s:%s",
	         redis->host, redis->port);
	return *redis->host != '\0' && decode(host) && is_number(redis->port, 65535);
}

/* /path[?db=database] */
static bool
parse_path(struct redis *redis, char *at)
{
	char *query = cut(at, '?');

	if (*query != '\0' && strncmp(query, "db=", 3) != 0)
		return false;
	redis->database = query + strlen(*query != '\0' ? "db=" : "");
	redis->path = at;
	if (!decode(at) || *at != '/' || strlen(at) >= sizeof((struct sockaddr_un *)0)->sun_path)
		return false;
	snprintf(redis->name, sizeof redis->name, "unix://%s", at);
	return true;
}

/* scheme://[user][:password@], and the rest */
static bool
parse_url(struct redis *redis)
{
	char *at = strstr(redis->url, "://"), *password;
	bool is_tcp = strncmp(redis->url, "redis://", 8) == 0;
	bool is_unix = strncmp(redis->url, "unix://", 7) == 0 ||
	               strncmp(redis->url, "redis+unix://", 13) == 0;
	size_t length;

	if (!is_tcp && !is_unix)
		return false;
	at += strlen("://");
	length = strcspn(at, "@/");
	if (at[length] == '@') {
		at[length] = '\0';
		password = cut(at, ':');
		if (*password == '\0' || !decode(at) || !decode(password))
			return false;
		redis->auth[0] = *at != '\0' ? at : password;
		redis->auth[1] = *at != '\0' ? password : NULL;
		at += length + 1;
	}
	return (is_tcp ? parse_host : parse_path)(redis, at) && is_number(redis->database, 999999);
}

/* ---- commands that wait ---------------------------------------------------- */

/* The first command gets its only reply. Bytes of it that are not written never will be. */
static void
answer(struct redis *redis, struct queue *queue, const struct redis_reply *reply)
{
	struct command *command = queue->first;

	queue->first = command->next;
	if (queue->unsent == command)
		queue->unsent = command->next;
	queue->count--;
	queue->bytes -= command->size - command->written;
	if (command->callback != NULL)
		keep_result(redis, command->callback(redis, reply, command->arg));
	free(command);
}

/* The first `count` commands get the same reply. */
static void
answer_all(struct redis *redis, struct queue *queue, size_t count, enum redis_type type,
           const char *text)
{
	struct redis_reply reply = {.type = type, .text = text, .length = strlen(text)};

	while (count-- > 0)
		answer(redis, queue, &reply);
}

/* Tell the messenger which events and which time this connection waits for. */
static void attend(struct redis *redis);

static int
enqueue(struct redis *redis, struct queue *queue, redis_callback callback, void *arg, size_t argc,
        const char *const argv[], const size_t lengths[])
{
	size_t size = resp_command(NULL, argc, argv, lengths);
	struct command *command;

	errno = size > REDIS_QUEUE_MAX ? EMSGSIZE : ENOBUFS;
	if (queue->bytes + size > REDIS_QUEUE_MAX || queue->count == REDIS_PENDING_MAX)
		return -1;
	command = malloc(sizeof *command + size);
	if (command == NULL)
		return -1;
	*command = (struct command){.callback = callback, .arg = arg, .size = size};
	command->deadline = clutch_now() + redis->options.timeout;
	resp_command(command->bytes, argc, argv, lengths);
	*(queue->first == NULL ? &queue->first : &queue->last->next) = command;
	queue->last = command;
	if (queue->unsent == NULL)
		queue->unsent = command;
	queue->count++;
	queue->bytes += size;
	return 0;
}

int
redis_command_argv(struct redis *redis, redis_callback callback, void *arg, size_t argc,
                   const char *const argv[], const size_t lengths[])
{
	errno = redis->closed ? EPIPE : EINVAL;
	if (redis->closed || argc == 0 || redis->options.channels != NULL ||
	    enqueue(redis, &redis->commands, callback, arg, argc, argv, lengths) == -1)
		return -1;
	if (!redis->turning)
		attend(redis);
	return 0;
}

int
redis_command(struct redis *redis, redis_callback callback, void *arg, const char *word, ...)
{
	const char *argv[WORDS_MAX];
	size_t argc = 0;
	va_list words;

	va_start(words, word);
	for (; word != NULL && argc < WORDS_MAX; word = va_arg(words, const char *))
		argv[argc++] = word;
	va_end(words);
	return redis_command_argv(redis, callback, arg, word == NULL ? argc : 0, argv, NULL);
}

/* ---- the connection: lost --------------------------------------------------- */

static void
disconnect(struct redis *redis)
{
	if (redis->watched != 0)
		messenger_unwatch(redis->messenger, redis->descriptor);
	redis->watched = 0;
	if (redis->descriptor != -1)
		close(redis->descriptor);
	redis->descriptor = -1;
}

/* The back-off: it begins again after a connection that lasted longer than the last wait. */
static int64_t
next_try(struct redis *redis)
{
	int64_t time = clutch_now();
	uint64_t random;

	if (redis->state == READY && time - redis->since >= redis->wait)
		redis->wait = 0;
	redis->wait = redis->wait == 0 ? REDIS_RETRY_MIN : 2 * redis->wait;
	if (redis->wait > redis->options.retry_max)
		redis->wait = redis->options.retry_max;
	/* The number need not be secret; two processes must have different ones. */
	random = (uint64_t)time * 31 + (uint64_t)getpid() * 17 + (uintptr_t)redis / 16;
	return time + redis->wait - (int64_t)(random % (uint64_t)(redis->wait / 2 + 1));
}

/* The connection, or the try to make one, has ended. Commands of which at least the
 * first byte was written hear of it; the others wait for the next connection. The log has one line
 * for each change. */
static void
lose(struct redis *redis, const char *why)
{
	bool was_ready = redis->state == READY;
	const struct command *command = redis->commands.first;
	size_t ended = 0;
	char text[160];

	disconnect(redis);
	redis->deadline = next_try(redis);
	redis->state = WAITING;
	redis->in_start = redis->in_length = 0;
	if (redis->said[0] == '\0') {
		complain(redis, was_ready ? "lost: " : "cannot connect: ", why, "; trying again");
		snprintf(redis->said, sizeof redis->said, "%s", why);
	}
	snprintf(text, sizeof text, "connection lost: %s", why);
	for (; command != NULL && (redis->options.drops || command->written > 0); ended++)
		command = command->next;
	answer_all(redis, &redis->greeting, redis->greeting.count, REDIS_NO_REPLY, text);
	answer_all(redis, &redis->commands, ended, REDIS_NO_REPLY, text);
	if (was_ready && redis->options.on_change != NULL)
		keep_result(redis, redis->options.on_change(redis, false, redis->options.arg));
}

/* Redis refuses the greeting. Commands that wait hear it, too, because the next try will be
 * refused as well; unless Redis is only loading its data. */
static void
refuse(struct redis *redis, const struct redis_reply *reply)
{
	char text[sizeof redis->said];

	snprintf(text, sizeof text, "%s", reply->type == REDIS_ERROR ? reply->text : "no PONG");
	if (strncmp(text, "LOADING", strlen("LOADING")) == 0) {
		lose(redis, text);
		return;
	}
	if (strcmp(text, redis->said) != 0)
		complain(redis, "refused (is its URL right?): ", text, "");
	memcpy(redis->said, text, sizeof text);
	lose(redis, text);
	answer_all(redis, &redis->commands, redis->commands.count, REDIS_ERROR, text);
}

/* ---- the connection: made ---------------------------------------------------- */

/* With the last reply the connection is ready, and the time of the commands that waited begins:
 * the time without a connection is not counted. */
static int
on_greeting(struct redis *redis, const struct redis_reply *reply, void *subscribes)
{
	bool listens = reply->count == 3 && redis_is(reply->element, "subscribe");
	struct command *command = redis->commands.first;

	if (reply->type == REDIS_NO_REPLY)
		return 0;
	if (reply->type == REDIS_ERROR || (subscribes == NULL && reply->type != REDIS_STATUS))
		refuse(redis, reply);
	else if (subscribes != NULL && !listens)
		lose(redis, "a reply that no subscriber expects");
	if (redis->state == WAITING || redis->greeting.first != NULL)
		return 0;
	redis->state = READY;
	redis->since = redis->heard;
	for (; command != NULL; command = command->next)
		command->deadline = redis->heard + redis->options.timeout;
	if (redis->said[0] != '\0')
		complain(redis, "connected again", "", "");
	redis->said[0] = '\0';
	return redis->options.on_change != NULL
	               ? redis->options.on_change(redis, true, redis->options.arg)
	               : 0;
}

/* Queue the commands that a connection begins with. */
static int
greet(struct redis *redis)
{
	const char *const words[3][3] = {
		{"AUTH", redis->auth[0], redis->auth[1]}, {"SELECT", redis->database}, {"PING"}};
	const char *const *channel = redis->options.channels;
	size_t i, argc;
	int failed = 0;

	for (i = 0; i < 3; i++) {
		argc = words[i][1] == NULL || *words[i][1] == '\0' ? 1
		       : words[i][2] == NULL                       ? 2
		                                                   : 3;
		if (argc > 1 || i == 2)
			failed |= enqueue(redis, &redis->greeting, on_greeting, NULL, argc,
			                  words[i], NULL);
	}
	for (; channel != NULL && *channel != NULL; channel++)
		failed |= enqueue(redis, &redis->greeting, on_greeting, redis, 2,
		                  (const char *const[]){"SUBSCRIBE", *channel}, NULL);
	return failed;
}

/* Open a socket that is being connected; -1 with errno, and lose() closes it. */
static int
open_socket(struct redis *redis, const struct addrinfo *to)
{
	int on = 1, descriptor = socket(to->ai_family, SOCK_STREAM, 0);

	redis->descriptor = descriptor;
	if (descriptor == -1 || fcntl(descriptor, F_SETFL, O_NONBLOCK) == -1 ||
	    fcntl(descriptor, F_SETFD, FD_CLOEXEC) == -1)
		return -1;
	if (to->ai_family != AF_UNIX)
		setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
	if (connect(descriptor, to->ai_addr, to->ai_addrlen) == -1 && errno != EINPROGRESS)
		return errno == EINTR ? 0 : -1;
	return 0;
}

/* Begin to connect, and queue the greeting. If there is no connection, `receive` finds out why. The
 * addresses of a name are tried in turn, one at each try. */
static void
begin_connecting(struct redis *redis)
{
	struct sockaddr_un path = {.sun_family = AF_UNIX};
	struct addrinfo local = {.ai_family = AF_UNIX,
	                         .ai_addr = (struct sockaddr *)&path,
	                         .ai_addrlen = sizeof path};
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found = NULL, *to;
	size_t skipped = redis->tries++ % 64;
	int error = 0;

	if (redis->path != NULL)
		memcpy(path.sun_path, redis->path, strlen(redis->path));
	else
		error = getaddrinfo(redis->host, redis->port, &hints, &found);
	for (to = found; found != NULL && skipped > 0; skipped--)
		to = to->ai_next != NULL ? to->ai_next : found;
	redis->state = GREETING;
	redis->deadline = clutch_now() + redis->options.timeout;
	if (error != 0)
		lose(redis, gai_strerror(error));
	else if (open_socket(redis, found != NULL ? to : &local) == -1 || greet(redis) == -1)
		lose(redis, strerror(errno));
	if (found != NULL)
		freeaddrinfo(found);
}

/* ---- the connection: used ---------------------------------------------------- */

static void
hear(struct redis *redis, const struct redis_reply *reply)
{
	struct queue *queue = redis->state == READY ? &redis->commands : &redis->greeting;

	if (redis->options.channels != NULL && reply->count == 3 &&
	    redis_is(reply->element, "message"))
		keep_result(redis, redis->options.on_message(redis, reply, redis->options.arg));
	else if (queue->first == queue->unsent)
		lose(redis, "a reply to no command");
	else
		answer(redis, queue, reply);
}

/* Read once, and handle each whole reply. Only the beginning of one that is not whole is kept. */
static void
receive(struct redis *redis)
{
	static char bytes[READ_SIZE];
	ssize_t length = recv(redis->descriptor, bytes, sizeof bytes, 0);
	enum resp found = RESP_WHOLE;
	char *grown = NULL;

	if (length == -1 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
		return;
	if (length > 0)
		grown = realloc(redis->in, redis->in_length + (size_t)length);
	if (grown == NULL) {
		lose(redis, length == 0 ? "closed by Redis" : strerror(errno));
		return;
	}
	redis->in = grown;
	memcpy(grown + redis->in_length, bytes, (size_t)length);
	redis->in_length += (size_t)length;
	redis->heard = clutch_now();
	while (redis->in_start < redis->in_length && found == RESP_WHOLE) {
		found = resp_parse(&redis->resp, redis->in + redis->in_start,
		                   redis->in_length - redis->in_start);
		redis->in_start += found == RESP_WHOLE ? redis->resp.at : 0;
		if (found == RESP_BROKEN)
			lose(redis, redis->resp.why);
		else if (found == RESP_WHOLE)
			hear(redis, redis->resp.elements);
	}
	redis->in_length -= redis->in_start;
	memmove(redis->in, redis->in + redis->in_start, redis->in_length);
	redis->in_start = 0;
	if (redis->in_length == 0)
		forget_input(redis);
}

/* Write what the socket takes. True: it has taken everything, and there is more to write. An
 * error is left for `receive` to find, after the last words of Redis. */
static bool
transmit(struct redis *redis)
{
	struct queue *queue = redis->state == READY ? &redis->commands : &redis->greeting;
	struct iovec pieces[PIECES];
	struct msghdr message = {.msg_iov = pieces};
	struct command *next = queue->unsent, *command;
	size_t piece;
	ssize_t sent;

	for (; next != NULL && message.msg_iovlen < PIECES; next = next->next)
		pieces[message.msg_iovlen++] =
			(struct iovec){next->bytes + next->written, next->size - next->written};
	sent = queue->unsent != NULL ? sendmsg(redis->descriptor, &message, MSG_NOSIGNAL) : 0;
	for (; sent > 0; sent -= (ssize_t)piece) {
		command = queue->unsent;
		piece = command->size - command->written;
		piece = piece < (size_t)sent ? piece : (size_t)sent;
		command->written += piece;
		queue->bytes -= piece;
		if (command->written == command->size)
			queue->unsent = command->next;
	}
	return next != NULL && queue->unsent == next;
}

/* The time of the next turn, if no event comes before. */
static int64_t
due(const struct redis *redis)
{
	bool ready = redis->state == READY;
	int64_t ping = redis->heard + 3 * (int64_t)redis->options.timeout;
	const struct command *first = redis->commands.first;

	if (first != NULL && (ready || first->deadline < redis->deadline))
		return first->deadline;
	return ready ? ping : redis->deadline;
}

/* Fail what has not been answered in time. */
static void
watch_clock(struct redis *redis)
{
	const struct command *first = redis->commands.first;
	int64_t time = clutch_now();
	char text[64];

	if (due(redis) > time)
		return;
	if (redis->state == READY && first == NULL) {
		enqueue(redis, &redis->commands, NULL, NULL, 1, (const char *const[]){"PING"},
		        NULL);
		return;
	}
	snprintf(text, sizeof text, "no reply within %d ms", redis->options.timeout);
	if (redis->state == READY || (redis->state != WAITING && redis->deadline <= time))
		lose(redis, text);
	snprintf(text, sizeof text, "no connection within %d ms", redis->options.timeout);
	while ((first = redis->commands.first) != NULL && first->deadline <= time)
		answer_all(redis, &redis->commands, 1, REDIS_NO_REPLY, text);
}

/* One turn, after poll(2). It returns the result of the callbacks since the last one. */
static int
turn(struct redis *redis, short revents)
{
	int result;

	redis->turning = true;
	if (redis->state == WAITING && redis->deadline <= clutch_now())
		begin_connecting(redis);
	else if (redis->state != WAITING && (revents & ~POLLOUT) != 0)
		receive(redis);
	/* Before the connection is made, an attempt to write would take its error away. */
	while ((redis->state == READY || (revents & POLLOUT) != 0) && transmit(redis))
		;
	watch_clock(redis);
	redis->turning = false;
	attend(redis);
	result = redis->result;
	redis->result = 0;
	return result;
}

/* ---- in a loop of the caller's, and in a messenger's --------------------------- */

int
redis_descriptor(const struct redis *redis, short *events)
{
	const struct queue *queue = redis->state == READY ? &redis->commands : &redis->greeting;

	*events = POLLIN;
	if (queue->unsent != NULL)
		*events = POLLIN | POLLOUT;
	return redis->descriptor;
}

int
redis_timeout(const struct redis *redis)
{
	int64_t left = due(redis) - clutch_now();

	return left < 0 ? 0 : left > INT_MAX ? INT_MAX : (int)left;
}

int
redis_step(struct redis *redis, int timeout)
{
	int left = redis_timeout(redis), ready;
	struct pollfd set;

	errno = EBUSY;
	if (redis->turning)
		return -1;
	set.fd = redis_descriptor(redis, &set.events);
	ready = poll(&set, 1, timeout < 0 || left < timeout ? left : timeout);
	if (ready == -1 && errno != EINTR)
		return -1;
	if (turn(redis, (short)(ready == 1 ? set.revents : 0)) == 0)
		return redis->state == READY;
	errno = ECANCELED;
	return -1;
}

static int
on_event(struct messenger *messenger, int descriptor, short revents, void *arg)
{
	(void)messenger, (void)descriptor;
	return turn(arg, revents);
}

static int
on_timer(struct messenger *messenger, void *arg)
{
	(void)messenger;
	return turn(arg, 0);
}

/* The timer that is cleared leaves its place free: so the next one needs no memory. */
static void
attend(struct redis *redis)
{
	short events;

	if (redis->messenger == NULL)
		return;
	if (redis_descriptor(redis, &events) != -1 && events != redis->watched) {
		redis->watched = events;
		if (messenger_watch(redis->messenger, redis->descriptor, events, on_event, redis) ==
		    -1)
			lose(redis, strerror(errno)); /* never in redis_command: it is watched */
	}
	messenger_clear_timeout(redis->messenger, redis->timer);
	redis->timer =
		messenger_set_timeout(redis->messenger, redis_timeout(redis), on_timer, redis);
}

/* ---- open and close --------------------------------------------------------------- */

struct redis *
redis_open(struct messenger *messenger, const char *url, const struct redis_options *options)
{
	struct redis *redis = calloc(1, sizeof *redis + strlen(url) + 1);

	if (redis == NULL)
		return NULL;
	redis->descriptor = -1;
	memcpy(redis->url, url, strlen(url) + 1);
	if (options != NULL)
		redis->options = *options;
	errno = EINVAL;
	if (!parse_url(redis) ||
	    (redis->options.channels != NULL && redis->options.on_message == NULL))
		goto fail;
	redis->options.drops |= redis->options.channels != NULL; /* its only command is a PING */
	if (redis->options.timeout <= 0)
		redis->options.timeout = REDIS_TIMEOUT;
	if (redis->options.retry_max <= 0)
		redis->options.retry_max = REDIS_RETRY_MAX;
	redis->deadline = clutch_now();
	redis->messenger = messenger;
	attend(redis);
	if (messenger == NULL || redis->timer > 0)
		return redis;
fail:
	redis_close(redis);
	return NULL;
}

void
redis_close(struct redis *redis)
{
	int saved = errno;

	if (redis == NULL)
		return;
	disconnect(redis);
	if (redis->timer > 0)
		messenger_clear_timeout(redis->messenger, redis->timer);
	redis->messenger = NULL;
	redis->turning = redis->closed = true;
	redis->state = WAITING;
	answer_all(redis, &redis->greeting, redis->greeting.count, REDIS_NO_REPLY, "closed");
	answer_all(redis, &redis->commands, redis->commands.count, REDIS_NO_REPLY, "closed");
	forget_input(redis);
	free(redis);
	errno = saved;
}
