/*
 * A client of Redis: one connection and the commands that wait for it. See redis.h.
 *
 *	          deadline                 connected               all said yes
 *	WAITING ------------> CONNECTING ------------> GREETING ----------------> READY
 *	   ^                      |                AUTH, SELECT, PING               |
 *	   |                      |                       |                         |
 *	   `----------------------+-----------------------+-------------------------'
 *	                       anything goes wrong: lose()
 */
#include "redis.h"
#include "resp.h"

#include <assert.h>
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

struct subscription {
	struct subscription *next;
	redis_callback callback;
	void *arg;
	char channel[];
};

struct redis {
	struct messenger *messenger; /* or NULL */
	struct redis_options options;
	char *url; /* cut into its parts, of which each may be NULL */
	char *host, *port, *path, *user, *password, *database;
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
	int greetings;     /* GREETING: the replies that have not come yet */

	struct buffer out;
	uint64_t written;         /* the bytes that left `out`, ever */
	struct command *commands; /* a ring */
	size_t first, count, size;
	struct subscription *subscriptions;

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

/* Make room behind the end. */
static int
reserve(struct buffer *buffer, size_t more)
{
	size_t length = buffered(buffer), size = buffer->size > 0 ? buffer->size : 1024;
	char *grown;

	if (buffer->size - buffer->end >= more)
		return 0;
	if (buffer->start > 0) {
		memmove(buffer->bytes, buffer->bytes + buffer->start, length);
		buffer->start = 0;
		buffer->end = length;
	}
	while (size - length < more)
		size *= 2;
	if (size == buffer->size)
		return 0;
	grown = realloc(buffer->bytes, size);
	if (grown == NULL)
		return -1;
	buffer->bytes = grown;
	buffer->size = size;
	return 0;
}

/* Forget the bytes, and free a buffer that has become large. */
static void
empty(struct buffer *buffer)
{
	if (buffer->size > 4 * READ_SIZE) {
		free(buffer->bytes);
		*buffer = (struct buffer){0};
	}
	buffer->start = buffer->end = 0;
}

static void
consume(struct buffer *buffer, size_t length)
{
	buffer->start += length;
	if (buffer->start == buffer->end)
		empty(buffer);
}

/* One line of the log. It may hold text of Redis, so control characters are replaced. */
static void
complain(const struct redis *redis, const char *what, const char *why)
{
	char line[512], *at;

	snprintf(line, sizeof line, "[redis] %s: %s%s", redis->name, what, why);
	for (at = line; *at != '\0'; at++)
		if ((unsigned char)*at < ' ' || *at == 127)
			*at = '?';
	if (redis->options.log != NULL)
		redis->options.log(line, redis->options.arg);
	else
		clutch_print_line(STDERR_FILENO, "%s", line);
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
	return redis->count;
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

	for (; text != NULL && *text != '\0'; *to++ = *text++) {
		if (*text != '%')
			continue;
		if (strspn(text + 1, "0123456789abcdefABCDEF") < 2 ||
		    memcmp(text + 1, "00", 2) == 0)
			return false;
		memcpy(digits, text + 1, 2);
		text += 2;
		*text = (char)strtol(digits, NULL, 16);
	}
	if (text != NULL)
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

	if (at[length] != '@')
		return at;
	at[length] = '\0';
	redis->password = cut(at, ':');
	redis->user = *at != '\0' ? at : NULL;
	if (redis->password == NULL || *redis->password == '\0' || !decode(redis->user) ||
	    !decode(redis->password))
		return NULL;
	return at + length + 1;
}

/* host[:port][/database] */
static bool
parse_host(struct redis *redis, char *at)
{
	bool is_ipv6 = *at == '[';

	redis->database = cut(at, '/');
	redis->host = at + is_ipv6;
	at = is_ipv6 ? cut(at, ']') : at;
	if (at == NULL || (is_ipv6 && *at != ':' && *at != '\0'))
		return false;
	redis->port = cut(at, ':');
	snprintf(redis->name, sizeof redis->name, is_ipv6 ? "redis://[%s]:%s" : "redis://%s:%s",
	         redis->host, redis->port != NULL ? redis->port : "6379");
	return *redis->host != '\0' && decode(redis->host) && is_number(redis->port, 65535);
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
	if (redis->port != NULL && *redis->port == '\0')
		redis->port = NULL;
	if (redis->database != NULL && *redis->database == '\0')
		redis->database = NULL;
	return true;
}

/* ---- commands that wait ---------------------------------------------------- */

static struct command *
head(const struct redis *redis)
{
	return redis->count > 0 ? &redis->commands[redis->first] : NULL;
}

/* Has the first command been written? */
static bool
was_written(const struct redis *redis)
{
	return redis->count > 0 && head(redis)->end <= redis->written;
}

static void
call(struct redis *redis, redis_callback callback, void *arg, const struct redis_reply *reply)
{
	int result;

	if (callback == NULL)
		return;
	result = callback(redis, reply, arg);
	if (redis->result == 0)
		redis->result = result;
}

/* The first command gets its only reply. Bytes of it that are not written never will be. */
static void
answer(struct redis *redis, const struct redis_reply *reply)
{
	struct command command = *head(redis);

	redis->first = (redis->first + 1) % redis->size;
	redis->count--;
	if (command.end > redis->written) {
		consume(&redis->out, (size_t)(command.end - redis->written));
		redis->written = command.end;
	}
	call(redis, command.callback, command.arg, reply);
}

/* The first `count` commands get the same reply. */
static void
answer_all(struct redis *redis, size_t count, enum redis_type type, const char *text)
{
	struct redis_reply reply = {.type = type, .text = text, .length = strlen(text)};

	while (count-- > 0)
		answer(redis, &reply);
}

/* A place behind the last command; NULL: no memory. */
static struct command *
new_command(struct redis *redis)
{
	size_t i, size = redis->size > 0 ? 2 * redis->size : 16;
	struct command *grown;

	if (redis->commands == NULL || redis->count == redis->size) {
		grown = malloc(size * sizeof *grown);
		if (grown == NULL)
			return NULL;
		for (i = 0; redis->commands != NULL && i < redis->count; i++)
			grown[i] = redis->commands[(redis->first + i) % redis->size];
		free(redis->commands);
		redis->commands = grown;
		redis->first = 0;
		redis->size = size;
	}
	assert(redis->size > redis->count);
	return &redis->commands[(redis->first + redis->count++) % redis->size];
}

/* Tell the messenger which events and which time this connection waits for. */
static void attend(struct redis *redis);

static int
queue(struct redis *redis, redis_callback callback, void *arg, size_t argc,
      const char *const argv[], const size_t lengths[])
{
	size_t size = resp_command(NULL, argc, argv, lengths);
	uint64_t begin = redis->written + buffered(&redis->out);
	struct command *command;

	if (redis->closed) {
		errno = EPIPE;
		return -1;
	}
	if (size > REDIS_QUEUE_MAX) {
		errno = EMSGSIZE;
		return -1;
	}
	if (buffered(&redis->out) + size > REDIS_QUEUE_MAX || redis->count == REDIS_PENDING_MAX) {
		errno = ENOBUFS;
		return -1;
	}
	command = reserve(&redis->out, size) == 0 ? new_command(redis) : NULL;
	if (command == NULL)
		return -1;
	*command = (struct command){callback, arg, begin, begin + size,
	                            clutch_now() + redis->options.timeout};
	redis->out.end += resp_command(redis->out.bytes + redis->out.end, argc, argv, lengths);
	if (!redis->turning)
		attend(redis);
	return 0;
}

int
redis_command_argv(struct redis *redis, redis_callback callback, void *arg, size_t argc,
                   const char *const argv[], const size_t lengths[])
{
	if (argc == 0 || redis->subscriptions != NULL) {
		errno = EINVAL;
		return -1;
	}
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

/* ---- subscriptions --------------------------------------------------------- */

static int
queue_subscribe(struct redis *redis, const struct subscription *subscription)
{
	return queue(redis, NULL, NULL, 2,
	             (const char *const[]){"SUBSCRIBE", subscription->channel}, NULL);
}

int
redis_subscribe(struct redis *redis, const char *channel, redis_callback callback, void *arg)
{
	size_t size = strlen(channel) + 1;
	struct subscription *subscription;

	if (callback == NULL || (redis->subscriptions == NULL && redis->count > 0)) {
		errno = EINVAL;
		return -1;
	}
	subscription = malloc(sizeof *subscription + size);
	if (subscription == NULL)
		return -1;
	*subscription = (struct subscription){redis->subscriptions, callback, arg};
	memcpy(subscription->channel, channel, size);
	if (redis->state == READY && queue_subscribe(redis, subscription) == -1) {
		free(subscription);
		return -1;
	}
	redis->subscriptions = subscription;
	return 0;
}

/* Redis has subscribed this connection to a channel, or has a message of it. */
static void
hear_channel(struct redis *redis, const struct redis_reply *reply)
{
	const struct subscription *subscription = redis->subscriptions;

	for (; subscription != NULL; subscription = subscription->next)
		if (redis_is(&reply->element[1], subscription->channel))
			call(redis, subscription->callback, subscription->arg, reply);
}

/* ---- the connection: lost --------------------------------------------------- */

static void
disconnect(struct redis *redis)
{
	if (redis->descriptor == -1)
		return;
	if (redis->watched != 0)
		messenger_unwatch(redis->messenger, redis->descriptor);
	redis->watched = 0;
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

/* How many commands have been written, at least their first byte? */
static size_t
count_written(const struct redis *redis)
{
	size_t i = 0;

	while (i < redis->count &&
	       redis->commands[(redis->first + i) % redis->size].begin < redis->written)
		i++;
	return i;
}

static void
change(struct redis *redis, bool ready)
{
	int result;

	if (redis->options.on_change == NULL)
		return;
	result = redis->options.on_change(redis, ready, redis->options.arg);
	if (redis->result == 0)
		redis->result = result;
}

/* The connection, or the try to make one, has ended. Commands that were written hear so;
 * the others wait for the next connection. The log has one line for each change. */
static void
lose(struct redis *redis, const char *why)
{
	bool was_ready = redis->state == READY, all;
	char text[160];

	disconnect(redis);
	redis->deadline = next_try(redis);
	redis->state = WAITING;
	empty(&redis->in);
	snprintf(text, sizeof text, "%s: %s; trying again", was_ready ? "lost" : "cannot connect",
	         why);
	if (!redis->complained)
		complain(redis, text, "");
	redis->complained = true;
	snprintf(text, sizeof text, "connection lost: %s", why);
	all = redis->options.drops || redis->subscriptions != NULL;
	answer_all(redis, all ? redis->count : count_written(redis), REDIS_NO_REPLY, text);
	if (was_ready)
		change(redis, false);
}

/* Redis refuses the greeting or a subscription. Commands that wait hear it, too, because
 * the next try will be refused as well; unless Redis is only loading its data. */
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
		complain(redis, "refused (is its URL right?): ", text);
	memcpy(redis->refusal, text, sizeof text);
	redis->complained = true;
	lose(redis, text);
	answer_all(redis, redis->count, REDIS_ERROR, text);
}

/* ---- the connection: made ---------------------------------------------------- */

/* The commands that a connection begins with, in one write: a new socket has room. */
static int
greet(struct redis *redis)
{
	const char *const auth[] = {"AUTH", redis->password}, *const ping[] = {"PING"};
	const char *const auth_user[] = {"AUTH", redis->user, redis->password};
	const char *const select[] = {"SELECT", redis->database};
	const struct {
		bool wanted;
		size_t argc;
		const char *const *argv;
	} all[] = {{redis->password != NULL && redis->user == NULL, 2, auth},
	           {redis->password != NULL && redis->user != NULL, 3, auth_user},
	           {redis->database != NULL, 2, select},
	           {true, 1, ping}};
	struct buffer *out = &redis->in; /* nothing has been read yet */
	ssize_t written;
	size_t i;

	redis->greetings = 0;
	for (i = 0; i < sizeof all / sizeof all[0]; i++) {
		if (!all[i].wanted)
			continue;
		if (reserve(out, resp_command(NULL, all[i].argc, all[i].argv, NULL)) == -1)
			return -1;
		out->end += resp_command(out->bytes + out->end, all[i].argc, all[i].argv, NULL);
		redis->greetings++;
	}
	written = send(redis->descriptor, out->bytes, out->end, MSG_NOSIGNAL);
	if (written >= 0 && (size_t)written < out->end)
		errno = ENOBUFS;
	i = out->end;
	empty(out);
	return written == (ssize_t)i ? 0 : -1;
}

/* The time of the commands that waited begins with the connection: the time without one is
 * not counted. */
static void
restart_clocks(struct redis *redis)
{
	int64_t deadline = clutch_now() + redis->options.timeout;
	size_t i;

	for (i = 0; i < redis->count; i++)
		redis->commands[(redis->first + i) % redis->size].deadline = deadline;
}

static void
become_ready(struct redis *redis)
{
	const struct subscription *subscription = redis->subscriptions;

	for (; subscription != NULL; subscription = subscription->next)
		if (queue_subscribe(redis, subscription) == -1) {
			lose(redis, strerror(errno));
			return;
		}
	restart_clocks(redis);
	redis->state = READY;
	redis->since = clutch_now();
	if (redis->complained)
		complain(redis, "connected again", "");
	redis->complained = false;
	redis->refusal[0] = '\0';
	change(redis, true);
}

/* A socket that is being connected; -1 with errno. */
static int
open_socket(const struct sockaddr *address, socklen_t length)
{
	int saved, on = 1, descriptor = socket(address->sa_family, SOCK_STREAM, 0);

	if (descriptor == -1)
		return -1;
	if (address->sa_family != AF_UNIX)
		setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
	if (fcntl(descriptor, F_SETFL, O_NONBLOCK) == 0 &&
	    fcntl(descriptor, F_SETFD, FD_CLOEXEC) == 0 &&
	    (connect(descriptor, address, length) == 0 || errno == EINPROGRESS || errno == EINTR))
		return descriptor;
	saved = errno;
	close(descriptor);
	errno = saved;
	return -1;
}

static int
open_unix(const struct redis *redis)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};

	memcpy(address.sun_path, redis->path, strlen(redis->path));
	return open_socket((struct sockaddr *)&address, sizeof address);
}

/* The addresses of the name are tried in turn, one at each try. */
static int
open_tcp(struct redis *redis, const char **why)
{
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found, *address;
	const char *port = redis->port != NULL ? redis->port : "6379";
	int result = getaddrinfo(redis->host, port, &hints, &found), saved;
	size_t turn;

	if (result != 0) {
		*why = gai_strerror(result);
		return -1;
	}
	address = found;
	for (turn = redis->tries++ % 64; turn > 0; turn--)
		address = address->ai_next != NULL ? address->ai_next : found;
	result = open_socket(address->ai_addr, address->ai_addrlen);
	saved = errno;
	freeaddrinfo(found);
	if (result == -1)
		*why = strerror(saved);
	return result;
}

static void
begin_connecting(struct redis *redis)
{
	const char *why = NULL;

	redis->descriptor = redis->path != NULL ? open_unix(redis) : open_tcp(redis, &why);
	if (redis->descriptor == -1) {
		lose(redis, why != NULL ? why : strerror(errno));
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

	if (getsockopt(redis->descriptor, SOL_SOCKET, SO_ERROR, &error, &length) == -1)
		error = errno;
	if (error == 0 && greet(redis) == -1)
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
	if (reply->type != REDIS_STATUS)
		refuse(redis, reply);
	else if (--redis->greetings == 0)
		become_ready(redis);
}

/* Redis has subscribed this connection to a channel, has a message of it, or answers PING. */
static void
hear_subscribed(struct redis *redis, const struct redis_reply *reply)
{
	static const struct redis_reply done = {.type = REDIS_NIL, .text = ""};
	bool is_message = reply->count == 3 && redis_is(&reply->element[0], "message");

	if (reply->type == REDIS_ERROR) {
		refuse(redis, reply);
	} else if (!is_message && (reply->count < 2 || !was_written(redis))) {
		lose(redis, "a reply that no subscriber expects");
	} else {
		if (!is_message)
			answer(redis, &done); /* SUBSCRIBE and PING have no callbacks */
		if (reply->count == 3)
			hear_channel(redis, reply);
	}
}

static void
hear(struct redis *redis, const struct redis_reply *reply)
{
	if (redis->state == GREETING)
		hear_greeting(redis, reply);
	else if (redis->subscriptions != NULL)
		hear_subscribed(redis, reply);
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
	ssize_t length;
	size_t used;

	if (reserve(&redis->in, READ_SIZE) == -1) {
		lose(redis, strerror(errno));
		return;
	}
	length = recv(redis->descriptor, redis->in.bytes + redis->in.end,
	              redis->in.size - redis->in.end, 0);
	if (length == -1 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
		return;
	if (length <= 0) {
		lose(redis, length == 0 ? "closed by Redis" : strerror(errno));
		return;
	}
	redis->heard = clutch_now();
	redis->in.end += (size_t)length;
	while (redis->descriptor != -1 && next_reply(redis)) {
		used = redis->resp.at;
		hear(redis, redis->resp.elements);
		if (redis->descriptor != -1)
			consume(&redis->in, used);
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

/* Fail what has not been answered in time. */
static void
watch_clock(struct redis *redis)
{
	const struct command *first = head(redis);
	int64_t time = clutch_now();
	char text[64];

	snprintf(text, sizeof text, "no reply within %d ms", redis->options.timeout);
	if (redis->state == READY && first == NULL) {
		if (redis->heard + 3 * (int64_t)redis->options.timeout <= time)
			queue(redis, NULL, NULL, 1, (const char *const[]){"PING"}, NULL);
		return;
	}
	if ((redis->state == READY && first->deadline <= time) ||
	    ((redis->state == CONNECTING || redis->state == GREETING) && redis->deadline <= time))
		lose(redis, text);
	if (redis->state == READY)
		return;
	snprintf(text, sizeof text, "no connection within %d ms", redis->options.timeout);
	while ((first = head(redis)) != NULL && first->deadline <= time)
		answer_all(redis, 1, REDIS_NO_REPLY, text);
}

/* One turn, after poll(2). */
static void
turn(struct redis *redis, short revents)
{
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
}

/* The result of the callbacks since the last call. */
static int
take_result(struct redis *redis)
{
	int result = redis->result;

	redis->result = 0;
	return result;
}

/* ---- in a loop of the caller's ------------------------------------------------- */

int
redis_descriptor(const struct redis *redis, short *events)
{
	bool writes = redis->state == READY && buffered(&redis->out) > 0;

	if (redis->state == CONNECTING)
		*events = POLLOUT;
	else
		*events = writes ? POLLIN | POLLOUT : POLLIN;
	return redis->descriptor;
}

/* The time of the next turn, if no event comes before. */
static int64_t
due(const struct redis *redis)
{
	const struct command *first = head(redis);

	if (redis->state == READY)
		return first != NULL ? first->deadline
		                     : redis->heard + 3 * (int64_t)redis->options.timeout;
	return first != NULL && first->deadline < redis->deadline ? first->deadline
	                                                          : redis->deadline;
}

static int
milliseconds_until(int64_t time)
{
	int64_t left = time - clutch_now();

	return left < 0 ? 0 : left > INT_MAX ? INT_MAX : (int)left;
}

int
redis_timeout(const struct redis *redis)
{
	return milliseconds_until(due(redis));
}

int
redis_step(struct redis *redis, int timeout)
{
	struct pollfd set = {.revents = 0};
	int left = redis_timeout(redis), found;

	if (redis->turning) {
		errno = EBUSY;
		return -1;
	}
	set.fd = redis_descriptor(redis, &set.events);
	found = poll(&set, set.fd != -1, timeout < 0 || left < timeout ? left : timeout);
	if (found == -1 && errno != EINTR)
		return -1;
	if (found == -1)
		set.revents = 0;
	turn(redis, set.revents);
	if (take_result(redis) == 0)
		return redis->state == READY;
	errno = ECANCELED;
	return -1;
}

/* ---- in a messenger's loop ------------------------------------------------------ */

static int on_event(struct messenger *messenger, int descriptor, short revents, void *arg);
static int on_timer(struct messenger *messenger, void *arg);

/* There is always a timer, and it never comes too late. It may come too early, and then it
 * only looks at the clock: so not each command has to set another one. */
static void
attend_clock(struct redis *redis, int64_t time)
{
	int id;

	if (redis->timer != 0 && redis->timer_due <= time)
		return;
	id = messenger_set_timeout(redis->messenger, milliseconds_until(time), on_timer, redis);
	if (id == -1)
		return; /* no memory: the present timer will come */
	if (redis->timer != 0)
		messenger_clear_timeout(redis->messenger, redis->timer);
	redis->timer = id;
	redis->timer_due = time;
}

static void
attend(struct redis *redis)
{
	short events;

	if (redis->messenger == NULL)
		return;
	if (redis_descriptor(redis, &events) != -1 && events != redis->watched) {
		if (messenger_watch(redis->messenger, redis->descriptor, events, on_event, redis) ==
		    -1)
			lose(redis, strerror(errno)); /* never in redis_command: it is watched */
		else
			redis->watched = events;
	}
	attend_clock(redis, due(redis));
}

static int
on_event(struct messenger *messenger, int descriptor, short revents, void *arg)
{
	struct redis *redis = arg;

	(void)messenger, (void)descriptor;
	turn(redis, revents);
	return take_result(redis);
}

/* The timer that called us has left its place free, so this one needs no memory. It comes
 * if there is no memory for a better one. */
static int
on_timer(struct messenger *messenger, void *arg)
{
	struct redis *redis = arg;

	redis->timer = messenger_set_timeout(messenger, REDIS_RETRY_MIN, on_timer, redis);
	redis->timer_due = clutch_now() + REDIS_RETRY_MIN;
	turn(redis, 0);
	return take_result(redis);
}

/* ---- open and close --------------------------------------------------------------- */

static void
free_redis(struct redis *redis)
{
	struct subscription *subscription;
	int saved = errno;

	while ((subscription = redis->subscriptions) != NULL) {
		redis->subscriptions = subscription->next;
		free(subscription);
	}
	free(redis->url);
	free(redis->out.bytes);
	free(redis->in.bytes);
	free(redis->commands);
	free(redis->resp.elements);
	free(redis);
	errno = saved;
}

struct redis *
redis_open(struct messenger *messenger, const char *url, const struct redis_options *options)
{
	struct redis *redis = calloc(1, sizeof *redis);

	if (redis == NULL)
		return NULL;
	redis->url = malloc(strlen(url) + 1);
	if (redis->url == NULL)
		goto fail;
	memcpy(redis->url, url, strlen(url) + 1);
	errno = EINVAL;
	if (!parse_url(redis))
		goto fail;
	if (options != NULL)
		redis->options = *options;
	if (redis->options.timeout <= 0)
		redis->options.timeout = REDIS_TIMEOUT;
	if (redis->options.retry_max <= 0)
		redis->options.retry_max = REDIS_RETRY_MAX;
	redis->descriptor = -1;
	redis->deadline = clutch_now();
	redis->messenger = messenger;
	attend(redis);
	if (messenger == NULL || redis->timer != 0)
		return redis;
fail:
	free_redis(redis);
	return NULL;
}

void
redis_close(struct redis *redis)
{
	if (redis == NULL)
		return;
	disconnect(redis);
	if (redis->timer != 0)
		messenger_clear_timeout(redis->messenger, redis->timer);
	redis->messenger = NULL;
	redis->turning = redis->closed = true;
	redis->state = WAITING;
	answer_all(redis, redis->count, REDIS_NO_REPLY, "closed");
	free_redis(redis);
}
