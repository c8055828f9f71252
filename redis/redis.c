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
	char *host, *port, *path, *user, *password, *database; /* the parts of the URL, or NULL */
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
	uint64_t random;

	struct buffer greeting;
	int greeting_replies; /* that have not come yet */

	struct buffer out;
	uint64_t written;         /* the bytes that left `out`, ever */
	struct command *commands; /* a ring */
	size_t first, count, size;
	struct subscription *subscriptions;

	struct buffer in;
	struct resp_scan scan;
	struct redis_reply *elements; /* of the reply that is being heard */
	size_t elements_size;

	bool turning;  /* in a turn, in which callbacks are called */
	bool closed;   /* in redis_close: commands are refused */
	int result;    /* of the callbacks: the first that was not 0 */
	short watched; /* messenger: the events, and the timer with its time */
	int timer;
	int64_t timer_due;
};

/* ---- odds and ends --------------------------------------------------------- */

/* xorshift64. The numbers need not be secret; two processes must have different ones. */
static int
below(struct redis *redis, int limit)
{
	redis->random ^= redis->random << 13;
	redis->random ^= redis->random >> 7;
	redis->random ^= redis->random << 17;
	return limit > 0 ? (int)(redis->random % (uint64_t)limit) : 0;
}

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

/* A copy with each %XX decoded; NULL with errno. */
static char *
decode(const char *text, size_t length)
{
	char *copy = malloc(length + 1), *to = copy, digits[3] = "";
	const char *end = text + length;

	if (copy == NULL)
		return NULL;
	for (; text < end; text++) {
		if (*text != '%') {
			*to++ = *text;
			continue;
		}
		memcpy(digits, text + 1, end - text > 2 ? 2 : 0);
		if (end - text < 3 || strspn(digits, "0123456789abcdefABCDEF") != 2 ||
		    strcmp(digits, "00") == 0) {
			free(copy);
			errno = EINVAL;
			return NULL;
		}
		*to++ = (char)strtol(digits, NULL, 16);
		text += 2;
	}
	*to = '\0';
	return copy;
}

/* Decode into *to, unless the text is empty. */
static int
take(char **to, const char *text, size_t length)
{
	if (length > 0)
		*to = decode(text, length);
	return length == 0 || *to != NULL ? 0 : -1;
}

static int
take_number(char **to, const char *text, size_t length, long most)
{
	if (strspn(text, "0123456789") < length || length > 9 || strtol(text, NULL, 10) > most) {
		errno = EINVAL;
		return -1;
	}
	return take(to, text, length);
}

/* host[:port][/database] */
static int
parse_host(struct redis *redis, const char *at)
{
	size_t length = strcspn(at, "/:");

	if (*at == '[' && strchr(at, ']') != NULL) {
		length = strcspn(at, "]");
		if (take(&redis->host, at + 1, length - 1) == -1)
			return -1;
		length++;
	} else if (take(&redis->host, at, length) == -1) {
		return -1;
	}
	at += length;
	if (*at == ':') {
		length = strcspn(++at, "/");
		if (take_number(&redis->port, at, length, 65535) == -1)
			return -1;
		at += length;
	}
	if (redis->host == NULL || (*at != '/' && *at != '\0')) {
		errno = EINVAL;
		return -1;
	}
	return *at == '/' ? take_number(&redis->database, at + 1, strlen(at + 1), 999999) : 0;
}

/* /path[?db=database] */
static int
parse_path(struct redis *redis, const char *at)
{
	size_t length = strcspn(at, "?");
	const char *query = at + length;

	if (*at != '/' || (*query == '?' && strncmp(query, "?db=", 4) != 0)) {
		errno = EINVAL;
		return -1;
	}
	if (*query == '?' &&
	    take_number(&redis->database, query + 4, strlen(query + 4), 999999) == -1)
		return -1;
	if (take(&redis->path, at, length) == -1)
		return -1;
	if (redis->path != NULL && strlen(redis->path) < sizeof((struct sockaddr_un *)0)->sun_path)
		return 0;
	errno = EINVAL;
	return -1;
}

/* [user][:password@], if it is there: *at moves behind it. */
static int
parse_user(struct redis *redis, const char **at)
{
	size_t length = strcspn(*at, "@/"), user = strcspn(*at, ":");

	if ((*at)[length] != '@')
		return 0;
	if (user >= length) {
		errno = EINVAL; /* a user without a password */
		return -1;
	}
	if (take(&redis->user, *at, user) == -1 ||
	    take(&redis->password, *at + user + 1, length - user - 1) == -1)
		return -1;
	if (redis->password == NULL) {
		errno = EINVAL;
		return -1;
	}
	*at += length + 1;
	return 0;
}

static int
parse_url(struct redis *redis, const char *url)
{
	const char *at = strstr(url, "://");
	size_t scheme = strcspn(url, ":");

	if (at == NULL) {
		errno = EINVAL;
		return -1;
	}
	at += strlen("://");
	if (scheme == 5 && strncmp(url, "redis", 5) == 0) {
		if (parse_user(redis, &at) == -1 || parse_host(redis, at) == -1)
			return -1;
		snprintf(redis->name, sizeof redis->name, "redis://%s%s%s:%s",
		         strchr(redis->host, ':') != NULL ? "[" : "", redis->host,
		         strchr(redis->host, ':') != NULL ? "]" : "",
		         redis->port != NULL ? redis->port : "6379");
		return 0;
	}
	if ((scheme == 4 && strncmp(url, "unix", 4) == 0) ||
	    (scheme == 10 && strncmp(url, "redis+unix", 10) == 0)) {
		if (parse_user(redis, &at) == -1 || parse_path(redis, at) == -1)
			return -1;
		snprintf(redis->name, sizeof redis->name, "unix://%s", redis->path);
		return 0;
	}
	errno = EINVAL;
	return -1;
}

/* ---- commands that wait ---------------------------------------------------- */

static struct command *
head(const struct redis *redis)
{
	return redis->count > 0 ? &redis->commands[redis->first] : NULL;
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

	if (redis->state == READY && time - redis->since >= redis->wait)
		redis->wait = 0;
	redis->wait = redis->wait == 0 ? REDIS_RETRY_MIN : 2 * redis->wait;
	if (redis->wait > redis->options.retry_max)
		redis->wait = redis->options.retry_max;
	return time + redis->wait - below(redis, redis->wait / 2);
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
	empty(&redis->greeting);
	redis->scan = (struct resp_scan){0};
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

static int
greet(struct redis *redis, size_t argc, const char *const argv[])
{
	if (reserve(&redis->greeting, resp_command(NULL, argc, argv, NULL)) == -1)
		return -1;
	redis->greeting.end +=
		resp_command(redis->greeting.bytes + redis->greeting.end, argc, argv, NULL);
	redis->greeting_replies++;
	return 0;
}

/* The commands that a connection begins with, in one write. */
static int
prepare_greeting(struct redis *redis)
{
	redis->greeting_replies = 0;
	if (redis->password != NULL && redis->user == NULL &&
	    greet(redis, 2, (const char *const[]){"AUTH", redis->password}) == -1)
		return -1;
	if (redis->password != NULL && redis->user != NULL &&
	    greet(redis, 3, (const char *const[]){"AUTH", redis->user, redis->password}) == -1)
		return -1;
	if (redis->database != NULL &&
	    greet(redis, 2, (const char *const[]){"SELECT", redis->database}) == -1)
		return -1;
	return greet(redis, 1, (const char *const[]){"PING"});
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
	if (error == 0 && prepare_greeting(redis) == -1)
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
	else if (--redis->greeting_replies == 0)
		become_ready(redis);
}

static void
hear(struct redis *redis, const struct redis_reply *reply)
{
	static const struct redis_reply done = {.type = REDIS_NIL, .text = ""};
	bool is_channel =
		redis->subscriptions != NULL && reply->type == REDIS_ARRAY && reply->count == 3;

	if (redis->state == GREETING) {
		hear_greeting(redis, reply);
	} else if (redis->subscriptions != NULL && reply->type == REDIS_ERROR) {
		refuse(redis, reply);
	} else if (is_channel && redis_is(&reply->element[0], "message")) {
		hear_channel(redis, reply);
	} else if (redis->count == 0 || head(redis)->end > redis->written) {
		lose(redis, "a reply to no command");
	} else if (is_channel) {
		answer(redis, &done); /* the command SUBSCRIBE has no callback */
		hear_channel(redis, reply);
	} else {
		answer(redis, reply);
	}
}

/* The next whole reply, in redis->elements; NULL: there is none. */
static const struct redis_reply *
next_reply(struct redis *redis)
{
	struct buffer *in = &redis->in;
	struct redis_reply *grown;
	const char *why;
	enum resp result;

	if (buffered(in) == 0)
		return NULL;
	result = resp_scan(&redis->scan, in->bytes + in->start, buffered(in), &why);
	if (result == RESP_BROKEN)
		lose(redis, why);
	if (result != RESP_WHOLE)
		return NULL;
	if (redis->scan.elements > redis->elements_size) {
		grown = realloc(redis->elements, redis->scan.elements * sizeof *grown);
		if (grown == NULL) {
			lose(redis, strerror(ENOMEM));
			return NULL;
		}
		redis->elements = grown;
		redis->elements_size = redis->scan.elements;
	}
	resp_build(in->bytes + in->start, redis->elements);
	return redis->elements;
}

/* Read once, as much as fits, and handle each whole reply. */
static void
receive(struct redis *redis)
{
	const struct redis_reply *reply;
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
	while (redis->descriptor != -1 && (reply = next_reply(redis)) != NULL) {
		used = redis->scan.at;
		redis->scan = (struct resp_scan){0};
		hear(redis, reply);
		if (redis->descriptor != -1)
			consume(&redis->in, used);
	}
	if (redis->elements_size > READ_SIZE / sizeof *redis->elements) {
		free(redis->elements);
		redis->elements = NULL;
		redis->elements_size = 0;
	}
}

/* Write what the socket takes. An error is left for `receive` to find, after the last words
 * of Redis. */
static void
transmit(struct redis *redis, struct buffer *buffer)
{
	ssize_t length;

	if (redis->descriptor == -1 || buffered(buffer) == 0)
		return;
	length = send(redis->descriptor, buffer->bytes + buffer->start, buffered(buffer),
	              MSG_NOSIGNAL);
	if (length <= 0)
		return;
	if (buffer == &redis->out)
		redis->written += (uint64_t)length;
	consume(buffer, (size_t)length);
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
	if (redis->state == GREETING)
		transmit(redis, &redis->greeting);
	if (redis->state == READY)
		transmit(redis, &redis->out);
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
	size_t waits = redis->state == GREETING ? buffered(&redis->greeting) : 0;

	if (redis->state == READY)
		waits = buffered(&redis->out);
	if (redis->state == CONNECTING)
		*events = POLLOUT;
	else
		*events = waits > 0 ? POLLIN | POLLOUT : POLLIN;
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
	free(redis->host);
	free(redis->port);
	free(redis->path);
	free(redis->user);
	free(redis->password);
	free(redis->database);
	free(redis->greeting.bytes);
	free(redis->out.bytes);
	free(redis->in.bytes);
	free(redis->commands);
	free(redis->elements);
	free(redis);
	errno = saved;
}

struct redis *
redis_open(struct messenger *messenger, const char *url, const struct redis_options *options)
{
	struct redis *redis = calloc(1, sizeof *redis);

	if (redis == NULL)
		return NULL;
	if (parse_url(redis, url) == -1)
		goto fail;
	if (options != NULL)
		redis->options = *options;
	if (redis->options.timeout <= 0)
		redis->options.timeout = REDIS_TIMEOUT;
	if (redis->options.retry_max <= 0)
		redis->options.retry_max = REDIS_RETRY_MAX;
	redis->descriptor = -1;
	redis->deadline = clutch_now();
	redis->random =
		((uint64_t)getpid() << 32 ^ (uint64_t)redis->deadline ^ (uintptr_t)redis) | 1;
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
