/*
 * The third of the four ways: a server with a name, for processes that are not related.
 * Names, messages and behaviour are those of npm node-ipc, whose programs can be at the
 * other end.
 *
 *	ann --.                                {"type":"message","data":{"id":"ann",...}}\f
 *	       >-- FOLDER/app.world --.
 *	bob --'                        > world
 *	cid ----- 127.0.0.1:PORT -----'        {"type":"message","data":"hello"}\f
 *
 * The world is one process, and the three clients are another. When the world dies, the
 * clients are disconnected, and each tries again every 1.5 s until there is a world. A
 * message that is sent meanwhile is lost. A client that leaves on purpose does not come
 * back.
 *
 *	build/examples/ipc/socket [MILLISECONDS between two tries]
 *	build/examples/ipc/socket world [PORT]
 *
 * The second command is the world alone, for the clients of other programs, until Ctrl-C.
 * It listens where node-ipc's clients look for it: on port 8000, and on /tmp/app.world.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "standard.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define RETRY 1500                    /* milliseconds, as node-ipc's examples have it */
#define DEADLINE 60000                /* milliseconds, for any one step of the story */
#define WORLD_PORT 8000               /* node-ipc's networkPort */
#define CLIENTS_MAX 100               /* as node-ipc's maxConnections */
#define MESSAGE_MAX 4096              /* bytes of one message, its '\f' too */
#define ANSWER_MAX (MESSAGE_MAX + 64) /* bytes of an answer, which has the message in it */
#define DELIMITER '\f'

/* One end of a connection, with the beginning of its next message. */
struct end {
	int descriptor; /* -1: not connected */
	char id[16];
	char bytes[MESSAGE_MAX];
	size_t length;
};

static char folder[80], path[sizeof folder + sizeof "/app.world"]; /* at most 104: see sys/un.h */
static volatile sig_atomic_t path_is_ours;
static in_port_t port; /* in network byte order; 0: not known yet */

/* It calls only functions that a signal handler may call. */
static void
clean_up(void)
{
	if (path_is_ours)
		unlink(path);
	rmdir(folder);
}

static void
on_signal(int number)
{
	clean_up();
	_exit(128 + number);
}

static void
catch_endings(void (*handler)(int))
{
	static const int endings[] = {SIGHUP, SIGINT, SIGQUIT, SIGTERM};
	size_t i;

	for (i = 0; i < sizeof endings / sizeof endings[0]; i++)
		signal(endings[i], handler);
}

static void
fail(const char *what)
{
	fprintf(stderr, "socket: %s: %s\n", what, strerror(errno));
	clean_up();
	exit(1); /* the world sees the end of its lifeline, and ends */
}

static int64_t
now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (int64_t)time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

/* ---- both: an address, and one end of a connection ----------------------- */

static socklen_t
address_of_world(struct sockaddr_storage *address, bool tcp)
{
	struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = port};
	struct sockaddr_un un = {.sun_family = AF_UNIX};

	in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	snprintf(un.sun_path, sizeof un.sun_path, "%s", path);
	memset(address, 0, sizeof *address);
	if (tcp)
		memcpy(address, &in, sizeof in);
	else
		memcpy(address, &un, sizeof un);
	return tcp ? sizeof in : sizeof un;
}

static void
attach(struct end *end, int descriptor)
{
	end->descriptor = descriptor;
	end->length = 0;
}

static void
detach(struct end *end)
{
	close(end->descriptor);
	end->descriptor = -1;
}

/* Write the message as a whole, or end the connection: the other end does not read fast
 * enough. Both ends then see the end of file. False: the message is lost. */
static bool
emit(const struct end *end, const char *message)
{
	char text[ANSWER_MAX + 1];
	int length = snprintf(text, sizeof text, "%s%c", message, DELIMITER);

	if (end->descriptor == -1)
		return false;
	if (write(end->descriptor, text, (size_t)length) == length)
		return true;
	shutdown(end->descriptor, SHUT_RDWR);
	return false;
}

/* Is there no room left, although there is no whole message? */
static bool
is_too_long(const struct end *end)
{
	return end->length == sizeof end->bytes &&
	       memchr(end->bytes, DELIMITER, sizeof end->bytes) == NULL;
}

/* Read once. False: the end of file, or a message that is too long. */
static bool
receive(struct end *end)
{
	ssize_t count =
		read(end->descriptor, end->bytes + end->length, sizeof end->bytes - end->length);

	if (count == -1)
		return errno == EAGAIN || errno == EINTR;
	end->length += (size_t)count;
	return count > 0 && !is_too_long(end);
}

/* Take out the first message of those that were read, if it is complete. */
static bool
next(struct end *end, char *message)
{
	char *stop = memchr(end->bytes, DELIMITER, end->length);
	size_t used;

	if (stop == NULL)
		return false;
	used = (size_t)(stop + 1 - end->bytes);
	memcpy(message, end->bytes, used);
	message[used - 1] = '\0';
	end->length -= used;
	memmove(end->bytes, stop + 1, end->length);
	return true;
}

/* ---- JSON: as much of it as the world must understand ---------------------- */

/* The text of one value, from its first character to its last. NULL: there is none. */
struct json {
	const char *text;
	size_t length;
};

static const char *
skip_blanks(const char *text)
{
	return text + strspn(text, " \t\r\n");
}

/* From its first quote to behind its last one. NULL: the string does not end. */
static const char *
skip_string(const char *text)
{
	for (text++; *text != '"'; text++) {
		if (*text == '\\')
			text++;
		if (*text == '\0')
			return NULL;
	}
	return text + 1;
}

/* Skip a string, a bracket, or a word that is a number, true, false or null. */
static const char *
skip_token(const char *text)
{
	static const char no_word[] = "\"{}[],: \t\r\n";

	if (*text == '"')
		return skip_string(text);
	return strchr(no_word, *text) != NULL ? text + 1 : text + strcspn(text, no_word);
}

/* The value at the beginning of the text. */
static struct json
value_of(const char *text)
{
	const struct json none = {NULL, 0};
	const char *end = skip_blanks(text);
	int depth = 0;

	text = end;
	do {
		if (*end == '\0')
			return none;
		depth += (*end == '{' || *end == '[') - (*end == '}' || *end == ']');
		end = skip_token(end);
		if (end == NULL)
			return none;
	} while (depth > 0);
	return (struct json){text, (size_t)(end - text)};
}

static bool
is(struct json value, const char *text)
{
	return value.length == strlen(text) && memcmp(value.text, text, value.length) == 0;
}

static bool
is_string(struct json value)
{
	return value.length >= 2 && value.text[0] == '"';
}

/* The value of an object's member. */
static struct json
member(struct json object, const char *name)
{
	const struct json none = {NULL, 0};
	const char *at = object.text;
	struct json key, value;

	if (object.length < 2 || *at != '{')
		return none;
	do {
		key = value_of(at + 1);
		if (!is_string(key))
			return none;
		at = skip_blanks(key.text + key.length);
		value = *at == ':' ? value_of(at + 1) : none;
		if (value.text == NULL)
			return none;
		if (key.length == strlen(name) + 2 &&
		    memcmp(key.text + 1, name, key.length - 2) == 0)
			return value;
		at = skip_blanks(value.text + value.length);
	} while (*at == ',');
	return none;
}

/* ---- the world ----------------------------------------------------------- */

static struct end clients[CLIENTS_MAX];
static bool no_descriptors; /* until a client leaves, the next ones wait in the backlog */

static void
broadcast(const char *message)
{
	int i;

	for (i = 0; i < CLIENTS_MAX; i++)
		if (clients[i].descriptor != -1)
			emit(&clients[i], message);
}

/* node-ipc's server knows a client by the id that was in its data. */
static void
remember(struct end *client, struct json id)
{
	if (is_string(id) && id.length - 2 < sizeof client->id)
		snprintf(client->id, sizeof client->id, "%.*s", (int)id.length - 2, id.text + 1);
}

/* As node-ipc's examples: "hello" is answered by "hello world!", and an object with a
 * message in it by such an object. False: it is neither. The string's JSON, without its
 * last quote, is the beginning of the answer, so no escape in it has to be understood. */
static bool
answer(struct end *client, struct json data)
{
	struct json text = is_string(data) ? data : member(data, "message");
	char message[ANSWER_MAX];

	if (!is_string(text))
		return false;
	snprintf(message, sizeof message,
	         text.text == data.text
	                 ? "{\"type\":\"message\",\"data\":%.*s world!\"}"
	                 : "{\"type\":\"message\",\"data\":{\"id\":\"world\",\"message\":%.*s "
	                   "world!\"}}",
	         (int)text.length - 1, text.text);
	remember(client, member(data, "id"));
	emit(client, message);
	return true;
}

/* {"type":"message"} gets an answer, {"type":"all"} goes to all clients. */
static void
hear(struct end *client, const char *message)
{
	struct json all = value_of(message), type = member(all, "type");

	printf("world hears      %s\n", message);
	if (is(type, "\"all\""))
		broadcast(message);
	else if (!is(type, "\"message\"") || !answer(client, member(all, "data")))
		printf("world            does not understand this\n");
}

static void
lose(struct end *client)
{
	char message[128];

	detach(client);
	no_descriptors = false;
	printf("world            is left by %s\n", client->id);
	snprintf(message, sizeof message, "{\"type\":\"left\",\"data\":{\"id\":\"%s\"}}",
	         client->id);
	broadcast(message);
}

static void
admit(int listener)
{
	int i, descriptor = accept(listener, NULL, NULL);

	for (i = 0; descriptor != -1 && i < CLIENTS_MAX; i++) {
		if (clients[i].descriptor == -1) {
			attach(&clients[i], descriptor);
			fcntl(descriptor, F_SETFL, O_NONBLOCK);
			snprintf(clients[i].id, sizeof clients[i].id, "a stranger");
			return;
		}
	}
	if (descriptor != -1)
		close(descriptor); /* the world is full */
	else if (errno == EMFILE || errno == ENFILE) {
		printf("world            has no descriptor for one more client\n");
		no_descriptors = true;
	}
}

static void
serve(struct end *client)
{
	char message[MESSAGE_MAX];
	bool alive = receive(client);

	while (next(client, message))
		hear(client, message);
	if (is_too_long(client))
		printf("world            ends %s: a message is longer than %d bytes\n", client->id,
		       MESSAGE_MAX);
	if (!alive)
		lose(client);
}

/* The world ends with its lifeline, because then it has no clients any more. A world
 * without a lifeline (-1) is ended by a signal. */
static void
world(int lifeline, const int listeners[2])
{
	struct pollfd set[3 + CLIENTS_MAX] = {
		{.fd = lifeline, .events = POLLIN}, {.fd = listeners[0]}, {.fd = listeners[1]}};
	int i, used;

	for (i = 0; i < CLIENTS_MAX; i++)
		clients[i].descriptor = -1;
	while (set[0].revents == 0) {
		set[1].events = set[2].events = no_descriptors ? 0 : POLLIN;
		for (i = 0, used = 0; i < CLIENTS_MAX; i++) {
			set[3 + i].fd = clients[i].descriptor; /* poll ignores -1 */
			set[3 + i].events = POLLIN;
			if (clients[i].descriptor != -1)
				used = i + 1;
		}
		/* Not all of them: poll(2) refuses more entries than a process may open. */
		if (poll(set, 3 + (nfds_t)used, -1) == -1)
			continue;
		for (i = 0; i < used; i++)
			if (set[3 + i].revents != 0)
				serve(&clients[i]);
		for (i = 0; i < 2; i++)
			if (set[1 + i].revents != 0)
				admit(listeners[i]);
	}
}

/* ---- the clients --------------------------------------------------------- */

/* The last event of a client that the story waits for. */
enum news { NOTHING, GREETED, TOLD_ALL, REFUSED, TOLD_LEFT };

static struct client {
	struct end end;
	bool tcp;
	bool explicitly_disconnected; /* it does not come back */
	int64_t retry_at;
	enum news news;
} people[] = {{.end = {.id = "ann"}}, {.end = {.id = "bob"}}, {.end = {.id = "cid"}, .tcp = true}};

enum { ANN, BOB, CID, PEOPLE };

static int retry = RETRY;

static void
disconnected(struct client *client, const char *why)
{
	detach(&client->end);
	client->retry_at = now() + retry;
	printf("%s              %s, tries again in %d ms\n", client->end.id, why, retry);
}

/* Connect, and greet as node-ipc's examples do: by TCP with a string, otherwise with an
 * object, which has the client's name in it. On one machine connect(2) returns
 * at once; over a network it would have to be non-blocking, too. */
static void
connect_to_world(struct client *client)
{
	struct sockaddr_storage address;
	char message[128];
	socklen_t size = address_of_world(&address, client->tcp);
	int descriptor = socket(address.ss_family, SOCK_STREAM, 0);

	if (descriptor == -1)
		fail("socket");
	attach(&client->end, descriptor);
	if (connect(descriptor, (struct sockaddr *)&address, size) == -1) {
		client->news = REFUSED;
		disconnected(client, "is refused");
		return;
	}
	fcntl(descriptor, F_SETFL, O_NONBLOCK);
	printf("%s              is connected by %s\n", client->end.id,
	       client->tcp ? "TCP" : "the Unix path");
	snprintf(message, sizeof message,
	         client->tcp
	                 ? "{\"type\":\"message\",\"data\":\"hello\"}"
	                 : "{\"type\":\"message\",\"data\":{\"id\":\"%s\",\"message\":\"hello\"}}",
	         client->end.id);
	emit(&client->end, message);
}

static void
listen_to_world(struct client *client)
{
	char message[MESSAGE_MAX];
	bool alive = receive(&client->end);

	while (next(&client->end, message)) {
		printf("%s hears        %s\n", client->end.id, message);
		if (strncmp(message, "{\"type\":\"message\"", 17) == 0)
			client->news = GREETED;
		else if (strncmp(message, "{\"type\":\"all\"", 13) == 0)
			client->news = TOLD_ALL;
		else
			client->news = TOLD_LEFT;
	}
	if (!alive)
		disconnected(client, "is disconnected");
}

static bool
waits_to_connect(const struct client *client)
{
	return client->end.descriptor == -1 && !client->explicitly_disconnected;
}

/* One turn of the loop: read what the world sends, and try to connect where it is time. */
static void
turn(void)
{
	struct pollfd set[PEOPLE];
	int64_t left, first = DEADLINE;
	int i;

	for (i = 0; i < PEOPLE; i++) {
		set[i].fd = people[i].end.descriptor;
		set[i].events = POLLIN;
		left = people[i].retry_at - now();
		if (waits_to_connect(&people[i]) && left < first)
			first = left > 0 ? left : 0;
	}
	if (poll(set, PEOPLE, (int)first) == -1)
		return;
	for (i = 0; i < PEOPLE; i++)
		if (waits_to_connect(&people[i]) && people[i].retry_at <= now())
			connect_to_world(&people[i]);
		else if (set[i].fd != -1 && set[i].revents != 0)
			listen_to_world(&people[i]);
}

/* ---- the story ----------------------------------------------------------- */

static void
everybody(enum news news)
{
	int64_t deadline = now() + DEADLINE;
	int i, count;

	do {
		turn();
		for (i = 0, count = 0; i < PEOPLE; i++)
			count += people[i].news == news || people[i].explicitly_disconnected;
		errno = ETIMEDOUT;
		if (now() > deadline)
			fail("the world does not answer");
	} while (count < PEOPLE);
}

/* Remove the path that a killed world has left behind, but neither that of a living one,
 * which answers, nor what is no socket at all. */
static void
remove_dead_path(const struct sockaddr_storage *address, socklen_t size)
{
	struct stat file;
	int probe, refused;

	if (lstat(path, &file) == -1)
		return;
	probe = socket(AF_UNIX, SOCK_STREAM, 0);
	refused = connect(probe, (const struct sockaddr *)address, size);
	close(probe);
	errno = EADDRINUSE;
	if (!S_ISSOCK(file.st_mode) || refused == 0)
		fail(path);
	unlink(path);
}

/* A world that was killed has left its path behind, and its connections keep the port busy
 * for a while, in TIME_WAIT (hence SO_REUSEADDR). */
static int
open_listener(bool tcp)
{
	char where[sizeof "127.0.0.1:65535"];
	struct sockaddr_storage address;
	socklen_t size = address_of_world(&address, tcp);
	const int on = 1;
	int listener = socket(address.ss_family, SOCK_STREAM, 0);

	if (tcp)
		snprintf(where, sizeof where, "127.0.0.1:%d", ntohs(port));
	else
		remove_dead_path(&address, size);
	if (listener == -1 ||
	    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == -1 ||
	    bind(listener, (struct sockaddr *)&address, size) == -1 ||
	    listen(listener, SOMAXCONN) == -1 || fcntl(listener, F_SETFL, O_NONBLOCK) == -1 ||
	    getsockname(listener, (struct sockaddr *)&address, &size) == -1)
		fail(tcp ? where : path);
	if (tcp)
		port = ((struct sockaddr_in *)&address)->sin_port;
	else
		path_is_ours = true;
	return listener;
}

/* The lifeline is a pipe that nobody writes to: the world sees its end when we end. */
static pid_t
start_world(int *lifeline)
{
	/* They listen before the fork, so a client that connects now will be served. */
	const int listeners[] = {open_listener(false), open_listener(true)};
	int ends[2];
	pid_t pid;

	if (pipe(ends) == -1)
		fail("pipe");
	printf("world            listens on %s and 127.0.0.1:%d\n", path, ntohs(port));
	fflush(stdout);
	pid = fork();
	if (pid == -1)
		fail("fork");
	if (pid == 0) {
		catch_endings(SIG_DFL);
		close(ends[1]);
		world(ends[0], listeners);
		clean_up(); /* its parent may have been killed */
		exit(0);
	}
	close(ends[0]), close(listeners[0]), close(listeners[1]);
	*lifeline = ends[1];
	return pid;
}

static int
end_world(pid_t pid, int lifeline)
{
	int status = 0;

	close(lifeline);
	while (waitpid(pid, &status, 0) == -1 && errno == EINTR)
		;
	return status;
}

static void
tell_all(const char *text)
{
	char message[128];

	snprintf(message, sizeof message,
	         "{\"type\":\"all\",\"data\":{\"id\":\"ann\",\"message\":\"%s\"}}", text);
	if (!emit(&people[ANN].end, message))
		printf("ann              is not connected: \"%s\" is lost\n", text);
}

static int
story(void)
{
	int lifeline, status, i;
	pid_t pid;

	pid = start_world(&lifeline);
	for (i = 0; i < PEOPLE; i++)
		people[i].end.descriptor = -1; /* and retry_at is 0: it tries at once */
	everybody(GREETED);
	tell_all("good morning");
	everybody(TOLD_ALL);

	kill(pid, SIGKILL);
	printf("world            is killed by signal %d\n", WTERMSIG(end_world(pid, lifeline)));
	everybody(REFUSED);
	tell_all("good night");

	pid = start_world(&lifeline);
	everybody(GREETED);
	printf("bob              leaves for good\n");
	people[BOB].explicitly_disconnected = true;
	detach(&people[BOB].end);
	everybody(TOLD_LEFT);

	detach(&people[ANN].end);
	detach(&people[CID].end);
	status = end_world(pid, lifeline);
	printf("world            ends with %d\n", WEXITSTATUS(status));
	return status == 0 ? 0 : 1;
}

static void
usage(void)
{
	fprintf(stderr,
	        "usage: socket [MILLISECONDS between two tries, 1 to %d], "
	        "or socket world [PORT]\n",
	        DEADLINE);
	exit(64);
}

/* A number from 1 to `most`, or the program ends. */
static int
number(const char *word, int most)
{
	char *end;
	long value = strtol(word, &end, 10);

	if (*end != '\0' || value < 1 || value > most)
		usage();
	return (int)value;
}

/* The world alone, until a signal ends it. */
static int
serve_others(const char *temp, const char *number_of_port)
{
	int listeners[2];

	errno = ENAMETOOLONG;
	if (snprintf(path, sizeof path, "%s/app.world", temp) >= (int)sizeof path)
		fail(temp);
	port = htons((in_port_t)(number_of_port != NULL ? number(number_of_port, UINT16_MAX)
	                                                : WORLD_PORT));
	listeners[1] = open_listener(true);
	listeners[0] = open_listener(false);
	printf("world            listens on %s and 127.0.0.1:%d\n", path, ntohs(port));
	world(-1, listeners);
	return 0;
}

/* The story's world has a folder of its own, gone at the end. */
static int
tell_story(const char *temp)
{
	int status;

	errno = ENAMETOOLONG; /* the path of a socket is short: see sys/un.h */
	if (snprintf(folder, sizeof folder, "%s/clutch-XXXXXX", temp) >= (int)sizeof folder ||
	    mkdtemp(folder) == NULL)
		fail(temp);
	snprintf(path, sizeof path, "%s/app.world", folder);
	status = story();
	clean_up();
	return status;
}

int
main(int argc, char **argv)
{
	const char *temp = getenv("TMPDIR");
	bool alone = argc > 1 && strcmp(argv[1], "world") == 0;

	if (argc > 1 && !alone)
		retry = number(argv[1], DEADLINE);
	if (argc > 3 || (argc == 3 && !alone))
		usage();
	if (!fill_standard_descriptors())
		fail("/dev/null");
	temp = temp != NULL ? temp : "/tmp";
	signal(SIGPIPE, SIG_IGN);
	catch_endings(on_signal);
	setvbuf(stdout, NULL, _IOLBF, 0);
	return alone ? serve_others(temp, argv[2]) : tell_story(temp);
}
