/*
 * A client of Redis: one connection and the commands that wait for it. See redis.h.
 *
 *	          deadline                 connected               all said yes
 *	WAITING ------------> CONNECTING ------------> GREETING ----------------> READY
 *	   ^                      |         AUTH, SELECT, PING, SUBSCRIBE           |
 *	   |                      |                       |                         |
 *	   `----------------------+-----------------------+-------------------------'
 *	                       anything goes wrong: lose()
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
#include <sys/un.h>
#include <unistd.h>

#ifndef MSG_NOSIGNAL /* not every system has it */
#define MSG_NOSIGNAL 0
#endif

/* How many bytes are read at once. */
#define READ_SIZE 65536

/* The most words of redis_command. */
#define WORDS_MAX 64

enum state { WAITING, CONNECTING, GREETING, READY };

/* Bytes from start to end. */
struct buffer {
	char *bytes;
	size_t start, end, size;
};

/* A command without a reply. `begin` and `end` are the positions of its bytes, counted from
 * the first byte that was ever queued. */
struct command {
	redis_callback callback;
	void *arg;
	uint64_t begin, end;
	int64_t deadline;
};

struct redis {
	struct messenger *messenger; /* or NULL */
	struct redis_options options;
	char *url; /* cut into its parts, of which each may be NULL */
	const char *host, *port, *path, *database;
	const char *auth[2]; /* user and password, or only a password */
	char name[128];

	enum state state;
	int descriptor;
	int64_t deadline; /* WAITING: the next try; CONNECTING, GREETING: the end of this one */
	int64_t since;    /* READY: since then; heard: when the last bytes came */
	int64_t heard;
	int wait;          /* between the last two tries */
	size_t tries;      /* to connect, ever: they choose the next address */
	bool complained;   /* the log knows that there is no connection */
	char refusal[128]; /* the last refusal of Redis */
	size_t greetings;  /* GREETING: the replies that have not come yet, */
	size_t channels;   /* and how many of them are those of SUBSCRIBE, the last ones */

	struct buffer out;
	uint64_t written;       /* the bytes that left `out`, ever */
	struct buffer commands; /* struct command, in their order */

	struct buffer in;
	struct resp_parser resp; /* the reply that is being heard */

	bool turning;  /* in a turn, in which callbacks are called */
	bool closed;   /* in redis_close: commands are refused */
	int result;    /* of the callbacks: the first that was not 0 */
	short watched; /* messenger: the events, and the timer with its time */
	int timer;
	int64_t timer_due;
};

/* ---- odds and ends --------------------------------------------------------- */

static size_t
buffered(const struct buffer *buffer)
{
	return buffer->end - buffer->start;
}

/* Make room behind the end, and return the end; NULL: no memory. A quarter stays free, so
 * that not each call moves the bytes. */
static void *
reserve(struct buffer *buffer, size_t more)
{
	size_t length = buffered(buffer), size = buffer->size > 0 ? buffer->size : 1024;
	char *grown;

	if (buffer->size - buffer->end >= more)
		return buffer->bytes + buffer->end;
	while (size - length < more || length > size / 4 * 3)
		size *= 2;
	if (buffer->start > 0)
		memmove(buffer->bytes, buffer->bytes + buffer->start, length);
	buffer->start = 0;
	buffer->end = length;
	grown = size > buffer->size ? realloc(buffer->bytes, size) : buffer->bytes;
	if (grown == NULL)
		return NULL;
	buffer->bytes = grown;
	buffer->size = size;
	return grown + length;
}

/* Forget the first bytes, and free a buffer that has become large when it is empty. */
static void
consume(struct buffer *buffer, size_t length)
{
	buffer->start += length;
	if (buffer->start < buffer->end)
		return;
	buffer->start = buffer->end = 0;
	if (buffer->size > 4 * READ_SIZE) {
		free(buffer->bytes);
		*buffer = (struct buffer){0};
	}
}

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
	return reply->text != NULL && reply->length == strlen(text) &&
	       memcmp(reply->text, text, reply->length) == 0;
}

bool
redis_ready(const struct redis *redis)
{
	return redis->state == READY;
}

size_t
redis_pending(const struct redis *redis)
{
	return buffered(&redis->commands) / sizeof(struct command);
}

const char *
redis_name(const struct redis *redis)
{
	return redis->name;
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

/* End the text at this character, and return what stands behind it, or NULL. */
static char *
cut(char *text, char at)
{
	char *found = strchr(text, at);

	if (found != NULL)
		*found++ = '\0';
	return found;
}

/* Is it a number up to `most`, or nothing? */
static bool
is_number(const char *text, long most)
{
	size_t length = text != NULL ? strlen(text) : 0;

	return length == 0 || (length <= 9 && strspn(text, "0123456789") == length &&
	                       strtol(text, NULL, 10) <= most);
}

/* [user][:password@], if it is there. The rest; NULL: it is wrong. */
static char *
parse_user(struct redis *redis, char *at)
{
	size_t length = strcspn(at, "@/");
	char *password;

	if (at[length] != '@')
		return at;
	at[length] = '\0';
	password = cut(at, ':');
	if (password == NULL || *password == '\0' || !decode(at) || !decode(password))
		return NULL;
	redis->auth[0] = *at != '\0' ? at : password;
	redis->auth[1] = *at != '\0' ? password : NULL;
	return at + length + 1;
}

/* host[:port][/database] */
static bool
parse_host(struct redis *redis, char *host)
{
	bool is_ipv6 = *host == '[';
	char *at;

	redis->database = cut(host, '/');
	host += is_ipv6;
	at = is_ipv6 ? cut(host, ']') : host;
	if (at == NULL || (is_ipv6 && *at != ':' && *at != '\0'))
		return false;
	redis->host = host;
	redis->port = cut(at, ':');
	if (redis->port == NULL || *redis->port == '\0')
		redis->port = "6379";
	snprintf(redis->name, sizeof redis->name, is_ipv6 ? "redis://[%s]:%s" : "redis://%s:%s",
	         host, redis->port);
	return *host != '\0' && decode(host) && is_number(redis->port, 65535);
}

/* /path[?db=database] */
static bool
parse_path(struct redis *redis, char *at)
{
	char *query = cut(at, '?');

	if (query != NULL && strncmp(query, "db=", 3) != 0)
		return false;
	redis->database = query != NULL ? query + 3 : NULL;
	redis->path = at;
	if (!decode(at) || *at != '/' || strlen(at) >= sizeof((struct sockaddr_un *)0)->sun_path)
		return false;
	snprintf(redis->name, sizeof redis->name, "unix://%s", at);
	return true;
}

static bool
parse_url(struct redis *redis)
{
	char *at = strstr(redis->url, "://");
	bool is_tcp = strncmp(redis->url, "redis://", 8) == 0;
	bool is_unix = strncmp(redis->url, "unix://", 7) == 0 ||
	               strncmp(redis->url, "redis+unix://", 13) == 0;

	at = is_tcp || is_unix ? parse_user(redis, at + strlen("://")) : NULL;
	if (at == NULL || !(is_tcp ? parse_host : parse_path)(redis, at) ||
	    !is_number(redis->database, 999999))
		return false;
	if (redis->database != NULL && *redis->database == '\0')
		redis->database = NULL;
	return true;
}

/* ---- commands that wait ---------------------------------------------------- */

/* The n-th command without a reply, from 0; NULL: there are not so many. */
static struct command *
command_at(const struct redis *redis, size_t n)
{
	void *first = redis->commands.bytes;

	if (n >= redis_pending(redis))
		return NULL;
	return (struct command *)first + redis->commands.start / sizeof(struct command) + n;
}

/* Has the first command been written? */
static bool
was_written(const struct redis *redis)
{
	const struct command *first = command_at(redis, 0);

	return first != NULL && first->end <= redis->written;
}

/* The first command gets its only reply. Bytes of it that are not written never will be. */
static void
answer(struct redis *redis, const struct redis_reply *reply)
{
	struct command command = *command_at(redis, 0);

	consume(&redis->commands, sizeof command);
	if (command.end > redis->written) {
		consume(&redis->out, (size_t)(command.end - redis->written));
		redis->written = command.end;
	}
	if (command.callback != NULL)
		keep_result(redis, command.callback(redis, reply, command.arg));
}

/* The first `count` commands get the same reply. */
static void
answer_all(struct redis *redis, size_t count, enum redis_type type, const char *text)
{
	struct redis_reply reply = {.type = type, .text = text, .length = strlen(text)};

	while (count-- > 0)
		answer(redis, &reply);
}

/* Tell the messenger which events and which time this connection waits for. */
static void attend(struct redis *redis);

static int
queue(struct redis *redis, redis_callback callback, void *arg, size_t argc,
      const char *const argv[], const size_t lengths[])
{
	size_t size = resp_command(NULL, argc, argv, lengths), before = buffered(&redis->out);
	uint64_t begin = redis->written + before;
	struct command *command;
	char *bytes;

	if (redis->closed || size > REDIS_QUEUE_MAX) {
		errno = redis->closed ? EPIPE : EMSGSIZE;
		return -1;
	}
	if (before + size > REDIS_QUEUE_MAX || redis_pending(redis) == REDIS_PENDING_MAX) {
		errno = ENOBUFS;
		return -1;
	}
	bytes = reserve(&redis->out, size);
	command = bytes != NULL ? reserve(&redis->commands, sizeof *command) : NULL;
	if (command == NULL)
		return -1;
	*command = (struct command){callback, arg, begin, begin + size,
	                            clutch_now() + redis->options.timeout};
	redis->commands.end += sizeof *command;
	redis->out.end += resp_command(bytes, argc, argv, lengths);
	if (!redis->turning)
		attend(redis);
	return 0;
}

int
redis_command_argv(struct redis *redis, redis_callback callback, void *arg, size_t argc,
                   const char *const argv[], const size_t lengths[])
{
	errno = EINVAL;
	if (argc == 0 || redis->options.channels != NULL)
		return -1;
	return queue(redis, callback, arg, argc, argv, lengths);
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

static void
change(struct redis *redis, bool ready)
{
	if (redis->options.on_change != NULL)
		keep_result(redis, redis->options.on_change(redis, ready, redis->options.arg));
}

/* The connection, or the try to make one, has ended. Commands that were written, at least
 * their first byte, hear so; the others wait for the next connection. The log has one line
 * for each change. */
static void
lose(struct redis *redis, const char *why)
{
	bool was_ready = redis->state == READY;
	const struct command *command;
	size_t ended = 0;
	char text[160];

	disconnect(redis);
	redis->deadline = next_try(redis);
	redis->state = WAITING;
	consume(&redis->in, buffered(&redis->in));
	if (!redis->complained)
		complain(redis, was_ready ? "lost: " : "cannot connect: ", why, "; trying again");
	redis->complained = true;
	snprintf(text, sizeof text, "connection lost: %s", why);
	while ((command = command_at(redis, ended)) != NULL &&
	       (redis->options.drops || command->begin < redis->written))
		ended++;
	answer_all(redis, ended, REDIS_NO_REPLY, text);
	if (was_ready)
		change(redis, false);
}

/* Redis refuses the greeting. Commands that wait hear it, too, because the next try will be
 * refused as well; unless Redis is only loading its data. */
static void
refuse(struct redis *redis, const struct redis_reply *reply)
{
	char text[sizeof redis->refusal];

	snprintf(text, sizeof text, "%s", reply->type == REDIS_ERROR ? reply->text : "no PONG");
	if (strncmp(text, "LOADING", strlen("LOADING")) == 0) {
		lose(redis, text);
		return;
	}
	if (strcmp(text, redis->refusal) != 0)
		complain(redis, "refused (is its URL right?): ", text, "");
	memcpy(redis->refusal, text, sizeof text);
	redis->complained = true;
	lose(redis, text);
	answer_all(redis, redis_pending(redis), REDIS_ERROR, text);
}

/* ---- the connection: made ---------------------------------------------------- */

/* Add a command of one, two or three words to the greeting; the others are NULL. */
static bool
add_greeting(struct redis *redis, const char *name, const char *first, const char *second)
{
	const char *const argv[] = {name, first, second};
	size_t argc = first == NULL ? 1 : second == NULL ? 2 : 3;
	char *bytes = reserve(&redis->in, resp_command(NULL, argc, argv, NULL));

	if (bytes == NULL)
		return false;
	redis->in.end += resp_command(bytes, argc, argv, NULL);
	redis->greetings++;
	return true;
}

/* The commands that a connection begins with, in one write: a new socket has room. They
 * stand in `in`, because nothing has been read yet. */
static int
greet(struct redis *redis)
{
	const char *const *channel = redis->options.channels;
	size_t length;
	ssize_t written;

	redis->greetings = redis->channels = 0;
	if ((redis->auth[0] != NULL &&
	     !add_greeting(redis, "AUTH", redis->auth[0], redis->auth[1])) ||
	    (redis->database != NULL && !add_greeting(redis, "SELECT", redis->database, NULL)) ||
	    !add_greeting(redis, "PING", NULL, NULL))
		return -1;
	for (; channel != NULL && channel[redis->channels] != NULL; redis->channels++)
		if (!add_greeting(redis, "SUBSCRIBE", channel[redis->channels], NULL))
			return -1;
	length = buffered(&redis->in);
	errno = ENOBUFS;
	written = send(redis->descriptor, redis->in.bytes, length, MSG_NOSIGNAL);
	consume(&redis->in, length);
	return written == (ssize_t)length ? 0 : -1;
}

/* The time of the commands that waited begins with the connection: the time without one is
 * not counted. */
static void
become_ready(struct redis *redis)
{
	struct command *command;
	size_t i;

	redis->state = READY;
	redis->since = clutch_now();
	for (i = 0; (command = command_at(redis, i)) != NULL; i++)
		command->deadline = redis->since + redis->options.timeout;
	if (redis->complained)
		complain(redis, "connected again", "", "");
	redis->complained = false;
	redis->refusal[0] = '\0';
	change(redis, true);
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
	if (connect(descriptor, to->ai_addr, to->ai_addrlen) == 0)
		return 0;
	return errno == EINPROGRESS || errno == EINTR ? 0 : -1;
}

/* The addresses of the name are tried in turn, one at each try. */
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
	if (error != 0) {
		lose(redis, gai_strerror(error));
		return;
	}
	for (to = found; found != NULL && skipped > 0; skipped--)
		to = to->ai_next != NULL ? to->ai_next : found;
	error = open_socket(redis, found != NULL ? to : &local) == -1 ? errno : 0;
	if (found != NULL)
		freeaddrinfo(found);
	if (error != 0) {
		lose(redis, strerror(error));
		return;
	}
	redis->state = CONNECTING;
	redis->deadline = clutch_now() + redis->options.timeout;
}

static void
finish_connecting(struct redis *redis)
{
	socklen_t length = sizeof(int);
	int error = 0;

	if (getsockopt(redis->descriptor, SOL_SOCKET, SO_ERROR, &error, &length) == -1 ||
	    (error == 0 && greet(redis) == -1))
		error = errno;
	if (error != 0)
		lose(redis, strerror(error));
	else
		redis->state = GREETING;
}

/* ---- the connection: used ---------------------------------------------------- */

static void
hear_greeting(struct redis *redis, const struct redis_reply *reply)
{
	bool subscribes = redis->greetings <= redis->channels;

	if (reply->type == REDIS_ERROR || (!subscribes && reply->type != REDIS_STATUS))
		refuse(redis, reply);
	else if (subscribes && (reply->count != 3 || !redis_is(reply->element, "subscribe")))
		lose(redis, "a reply that no subscriber expects");
	else if (--redis->greetings == 0)
		become_ready(redis);
}

static void
hear(struct redis *redis, const struct redis_reply *reply)
{
	if (redis->options.channels != NULL && reply->count == 3 &&
	    redis_is(reply->element, "message"))
		keep_result(redis, redis->options.on_message(redis, reply, redis->options.arg));
	else if (redis->state == GREETING)
		hear_greeting(redis, reply);
	else if (!was_written(redis))
		lose(redis, "a reply to no command");
	else
		answer(redis, reply);
}

/* Is the next reply whole? It is in redis->resp.elements then. */
static bool
next_reply(struct redis *redis)
{
	struct buffer *in = &redis->in;
	struct resp_parser *resp = &redis->resp;
	struct redis_reply *grown;
	enum resp result;

	while (buffered(in) > 0) {
		result = resp_parse(resp, in->bytes + in->start, buffered(in));
		if (result == RESP_BROKEN)
			lose(redis, resp->why);
		if (result != RESP_TORN || resp->used <= resp->size)
			return result == RESP_WHOLE;
		grown = realloc(resp->elements, 2 * resp->used * sizeof *grown);
		if (grown == NULL) {
			lose(redis, strerror(ENOMEM));
			return false;
		}
		resp->elements = grown;
		resp->size = 2 * resp->used;
	}
	return false;
}

/* Read once, as much as fits, and handle each whole reply. */
static void
receive(struct redis *redis)
{
	char *end = reserve(&redis->in, READ_SIZE);
	ssize_t length = -1;

	if (end != NULL)
		length = recv(redis->descriptor, end, redis->in.size - redis->in.end, 0);
	if (length == -1 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
		return;
	if (length <= 0) {
		lose(redis, length == 0 ? "closed by Redis" : strerror(errno));
		return;
	}
	redis->heard = clutch_now();
	redis->in.end += (size_t)length;
	while (redis->descriptor != -1 && next_reply(redis)) {
		hear(redis, redis->resp.elements);
		if (redis->descriptor != -1)
			consume(&redis->in, redis->resp.at);
	}
	if (redis->resp.size > READ_SIZE / sizeof *redis->resp.elements) {
		free(redis->resp.elements);
		redis->resp = (struct resp_parser){0};
	}
}

/* Write what the socket takes. An error is left for `receive` to find, after the last words
 * of Redis. */
static void
transmit(struct redis *redis)
{
	ssize_t length;

	if (redis->state != READY || buffered(&redis->out) == 0)
		return;
	length = send(redis->descriptor, redis->out.bytes + redis->out.start, buffered(&redis->out),
	              MSG_NOSIGNAL);
	if (length <= 0)
		return;
	redis->written += (uint64_t)length;
	consume(&redis->out, (size_t)length);
}

/* The time of the next turn, if no event comes before. */
static int64_t
due(const struct redis *redis)
{
	const struct command *first = command_at(redis, 0);

	if (redis->state == READY)
		return first != NULL ? first->deadline
		                     : redis->heard + 3 * (int64_t)redis->options.timeout;
	return first != NULL && first->deadline < redis->deadline ? first->deadline
	                                                          : redis->deadline;
}

/* Fail what has not been answered in time. */
static void
watch_clock(struct redis *redis)
{
	const struct command *first = command_at(redis, 0);
	int64_t time = clutch_now();
	char text[64];

	if (due(redis) > time)
		return;
	if (redis->state == READY && first == NULL) {
		queue(redis, NULL, NULL, 1, (const char *const[]){"PING"}, NULL);
		return;
	}
	snprintf(text, sizeof text, "no reply within %d ms", redis->options.timeout);
	if (redis->state == READY || (redis->state != WAITING && redis->deadline <= time))
		lose(redis, text);
	snprintf(text, sizeof text, "no connection within %d ms", redis->options.timeout);
	while ((first = command_at(redis, 0)) != NULL && first->deadline <= time)
		answer_all(redis, 1, REDIS_NO_REPLY, text);
}

/* One turn, after poll(2). It returns the result of the callbacks since the last one. */
static int
turn(struct redis *redis, short revents)
{
	int result;

	redis->turning = true;
	if (redis->state == WAITING && redis->deadline <= clutch_now())
		begin_connecting(redis);
	else if (redis->state == CONNECTING && revents != 0)
		finish_connecting(redis);
	else if ((redis->state == GREETING || redis->state == READY) && (revents & ~POLLOUT) != 0)
		receive(redis);
	transmit(redis);
	watch_clock(redis);
	redis->turning = false;
	attend(redis);
	result = redis->result;
	redis->result = 0;
	return result;
}

/* ---- in a loop of the caller's ------------------------------------------------- */

int
redis_descriptor(const struct redis *redis, short *events)
{
	*events = redis->state == CONNECTING ? POLLOUT : POLLIN;
	if (redis->state == READY && buffered(&redis->out) > 0)
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
	struct pollfd set = {.revents = 0};
	int left = redis_timeout(redis);

	errno = EBUSY;
	if (redis->turning)
		return -1;
	set.fd = redis_descriptor(redis, &set.events);
	if (poll(&set, 1, timeout < 0 || left < timeout ? left : timeout) == -1) {
		if (errno != EINTR)
			return -1;
		set.revents = 0;
	}
	if (turn(redis, set.revents) == 0)
		return redis->state == READY;
	errno = ECANCELED;
	return -1;
}

/* ---- in a messenger's loop ------------------------------------------------------ */

static int
on_event(struct messenger *messenger, int descriptor, short revents, void *arg)
{
	(void)messenger, (void)descriptor;
	return turn(arg, revents);
}

/* The timer that called us has left its place free, so this one needs no memory. It comes
 * if there is no memory for a better one. */
static int
on_timer(struct messenger *messenger, void *arg)
{
	struct redis *redis = arg;

	redis->timer = messenger_set_timeout(messenger, REDIS_RETRY_MIN, on_timer, redis);
	redis->timer_due = clutch_now() + REDIS_RETRY_MIN;
	return turn(redis, 0);
}

/* There is always a timer, and it never comes too late. It may come too early, and then it
 * only looks at the clock: so not each command has to set another one. */
static void
attend(struct redis *redis)
{
	short events;
	int id;

	if (redis->messenger == NULL)
		return;
	if (redis_descriptor(redis, &events) != -1 && events != redis->watched) {
		if (messenger_watch(redis->messenger, redis->descriptor, events, on_event, redis) ==
		    0)
			redis->watched = events;
		else
			lose(redis, strerror(errno)); /* never in redis_command: it is watched */
	}
	if (redis->timer != 0 && redis->timer_due <= due(redis))
		return;
	id = messenger_set_timeout(redis->messenger, redis_timeout(redis), on_timer, redis);
	if (id == -1)
		return; /* no memory: the present timer will come */
	if (redis->timer != 0)
		messenger_clear_timeout(redis->messenger, redis->timer);
	redis->timer = id;
	redis->timer_due = due(redis);
}

/* ---- open and close --------------------------------------------------------------- */

struct redis *
redis_open(struct messenger *messenger, const char *url, const struct redis_options *options)
{
	struct redis *redis = calloc(1, sizeof *redis);

	if (redis == NULL)
		return NULL;
	redis->descriptor = -1;
	redis->url = strdup(url);
	if (redis->url == NULL)
		goto fail;
	if (options != NULL)
		redis->options = *options;
	errno = EINVAL;
	if (!parse_url(redis) ||
	    (redis->options.channels != NULL && redis->options.on_message == NULL))
		goto fail;
	if (redis->options.channels != NULL)
		redis->options.drops = true; /* its only command is a PING */
	if (redis->options.timeout <= 0)
		redis->options.timeout = REDIS_TIMEOUT;
	if (redis->options.retry_max <= 0)
		redis->options.retry_max = REDIS_RETRY_MAX;
	redis->deadline = clutch_now();
	redis->messenger = messenger;
	attend(redis);
	if (messenger == NULL || redis->timer != 0)
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
	if (redis->timer != 0)
		messenger_clear_timeout(redis->messenger, redis->timer);
	redis->messenger = NULL;
	redis->turning = redis->closed = true;
	redis->state = WAITING;
	answer_all(redis, redis_pending(redis), REDIS_NO_REPLY, "closed");
	free(redis->url);
	free(redis->out.bytes);
	free(redis->in.bytes);
	free(redis->commands.bytes);
	free(redis->resp.elements);
	free(redis);
	errno = saved;
}
