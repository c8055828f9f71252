/*
 * HTTP for the examples: the client.
 *
 * It asks in HTTP/1.0, so that the answer is never chunked: the answer has a length, or
 * ends with the connection. A stream is an answer that does not end.
 *
 *	connect --> the request is written --> head --> body: all of it, or line by line
 *	                                                 |
 *	      the listener hears the answer, or why there is none, and all is freed
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "http_client.h"
#include "http_head.h"

#include "../messenger.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

struct client {
	struct messenger *messenger;
	http_listener listener;
	void *arg;
	bool is_stream;
	int descriptor, timeout, timer;
	bool is_sent; /* the request, which stands in `text` until then */
	int status;   /* of the answer; 0: its first line has not come */
	struct http_head head;
	size_t length; /* of the text: of the head, or of the body, once the head is whole */
	char text[HTTP_ANSWER_HEAD_MAX + HTTP_ANSWER_BODY_MAX + 1];
};

static void
client_free(struct client *client)
{
	if (client->timer > 0)
		messenger_clear_timeout(client->messenger, client->timer);
	messenger_unwatch(client->messenger, client->descriptor);
	close(client->descriptor);
	free(client);
}

/* The listener may open the next client. This one is freed after that. */
static int
client_end(struct client *client, int status, const char *text)
{
	int result = client->listener(client->messenger, status, text, client->arg);

	client_free(client);
	return result;
}

static int
on_client_timeout(struct messenger *messenger, void *arg)
{
	struct client *client = arg;

	(void)messenger;
	client->timer = 0;
	return client_end(client, 0, "it takes too long");
}

static bool
client_set_timer(struct client *client)
{
	if (client->timer > 0)
		messenger_clear_timeout(client->messenger, client->timer);
	client->timer = messenger_set_timeout(client->messenger, client->timeout, on_client_timeout,
	                                      client);
	return client->timer > 0;
}

/* "HTTP/1.1 200 OK" */
static bool
client_parse_status(struct client *client, const char *line)
{
	return strncmp(line, "HTTP/1.", 7) == 0 && isdigit((unsigned char)line[7]) &&
	       sscanf(line + 8, " %3d", &client->status) == 1 && client->status >= 100;
}

/* Read what has come of the head. Returns NULL, or the reason why it is wrong. */
static const char *
client_read_head(struct client *client)
{
	struct http_head *head = &client->head;
	bool is_wrong = http_head_parse(head, client->text, client->length) != 0;

	if (!is_wrong && head->start != NULL && client->status == 0)
		is_wrong = !client_parse_status(client, head->start);
	if (is_wrong || head->body_length > HTTP_ANSWER_BODY_MAX)
		return "it answers something else than HTTP";
	if ((head->is_whole ? head->length : client->length) > HTTP_ANSWER_HEAD_MAX)
		return "the head of its answer is too long";
	if (!head->is_whole)
		return NULL;
	client->length -= head->length;
	memmove(client->text, client->text + head->length, client->length);
	return client->is_stream && client->status != 200 ? "it refuses" : NULL;
}

/* Call the listener for each whole line, and keep the beginning of the next one. */
static int
client_read_lines(struct client *client)
{
	char *line = client->text, *end;
	int result, uncaught = 0;
	size_t left = client->length;

	while ((end = memchr(line, '\n', left)) != NULL) {
		*end = '\0';
		if (end > line && end[-1] == '\r')
			end[-1] = '\0';
		result = client->listener(client->messenger, client->status, line, client->arg);
		uncaught = uncaught != 0 ? uncaught : result;
		left -= (size_t)(end + 1 - line);
		line = end + 1;
	}
	memmove(client->text, line, left);
	client->length = left;
	return uncaught;
}

/* Take out of `text` whatever is complete. Returns the listener's result. */
static int
client_run(struct client *client, bool end_of_file)
{
	const struct http_head *head = &client->head;
	const char *why = head->is_whole ? NULL : client_read_head(client);
	bool whole = head->has_body ? client->length >= head->body_length : end_of_file;
	int uncaught = 0;

	if (why == NULL && head->is_whole && client->is_stream)
		uncaught = client_read_lines(client);
	else if (why == NULL && head->is_whole && whole) {
		client->text[head->has_body ? head->body_length : client->length] = '\0';
		return client_end(client, client->status, client->text);
	}
	if (why == NULL && end_of_file)
		why = "it has hung up";
	if (why == NULL && client->length == sizeof client->text - 1)
		why = "its answer is too long";
	if (why == NULL || uncaught != 0)
		return uncaught;
	return client_end(client, 0, why);
}

static int
client_read(struct client *client)
{
	ssize_t n = recv(client->descriptor, client->text + client->length,
	                 sizeof client->text - 1 - client->length, 0);

	if (n == -1 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
		return 0;
	if (n == -1)
		return client_end(client, 0, strerror(errno));
	client->length += (size_t)n;
	if (client->is_stream && !client_set_timer(client))
		return client_end(client, 0, strerror(ENOMEM));
	return client_run(client, n == 0);
}

static int on_server(struct messenger *messenger, int descriptor, short revents, void *arg);

static bool
client_watch(struct client *client, short events)
{
	return messenger_watch(client->messenger, client->descriptor, events, on_server, client) ==
	       0;
}

/* The attempt to connect has ended: send the request, or tell why it failed. */
static int
client_write(struct client *client)
{
	int error = 0;
	socklen_t size = sizeof error;
	ssize_t n = -1;

	if (getsockopt(client->descriptor, SOL_SOCKET, SO_ERROR, &error, &size) == -1)
		error = errno;
	if (error == 0)
		n = send(client->descriptor, client->text, client->length, MSG_NOSIGNAL);
	if (n == -1 && error == 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (n == -1)
		return client_end(client, 0, strerror(error != 0 ? error : errno));
	client->length -= (size_t)n;
	memmove(client->text, client->text + n, client->length);
	client->is_sent = client->length == 0;
	if (client->is_sent && !client_watch(client, POLLIN))
		return client_end(client, 0, strerror(ENOMEM));
	return 0;
}

static int
on_server(struct messenger *messenger, int descriptor, short revents, void *arg)
{
	struct client *client = arg;

	(void)messenger, (void)descriptor, (void)revents;
	return client->is_sent ? client_read(client) : client_write(client);
}

/* "127.0.0.1:7002", or "localhost". Any other name would need a lookup, which blocks. */
static bool
parse_authority(char *host, struct sockaddr_in *address)
{
	char *port = strchr(host, ':');
	size_t digits = port != NULL ? strspn(port + 1, "0123456789") : 0;
	long number = port == NULL ? 80 : digits <= 5 ? strtol(port + 1, NULL, 10) : 0;

	if (number < 1 || number > 65535 || (port != NULL && port[1 + digits] != '\0'))
		return false;
	if (port != NULL)
		*port = '\0';
	*address = (struct sockaddr_in){.sin_family = AF_INET};
	address->sin_port = htons((uint16_t)number);
	address->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	return strcmp(host, "localhost") == 0 || inet_pton(AF_INET, host, &address->sin_addr) == 1;
}

static bool
is_printable(const char *url)
{
	for (; *url != '\0'; url++)
		if (*url == ' ' || iscntrl((unsigned char)*url))
			return false;
	return true;
}

/* The address in "http://127.0.0.1:7002/data". */
static bool
parse_url(const char *url, struct sockaddr_in *address)
{
	char host[64];
	size_t length;

	if (strncmp(url, "http://", 7) != 0 || strlen(url) > HTTP_URL_MAX || !is_printable(url))
		return false;
	length = strcspn(url + 7, "/");
	if (length >= sizeof host)
		return false;
	memcpy(host, url + 7, length);
	host[length] = '\0';
	return parse_authority(host, address);
}

bool
http_is_url(const char *url)
{
	struct sockaddr_in address;

	return parse_url(url, &address);
}

/* A socket that has begun to connect; -1 with errno. */
static int
connect_to(const struct sockaddr_in *address)
{
	int descriptor = socket(AF_INET, SOCK_STREAM, 0);
	int error;

	if (descriptor == -1)
		return -1;
	if (fcntl(descriptor, F_SETFL, O_NONBLOCK) == -1 ||
	    fcntl(descriptor, F_SETFD, FD_CLOEXEC) == -1 ||
	    (connect(descriptor, (const struct sockaddr *)address, sizeof *address) == -1 &&
	     errno != EINPROGRESS && errno != EINTR)) {
		error = errno;
		close(descriptor);
		errno = error;
		return -1;
	}
	return descriptor;
}

static int
client_start(struct client *client, const char *url)
{
	struct sockaddr_in address;
	const char *path;

	if (!parse_url(url, &address)) {
		errno = EINVAL;
		return -1;
	}
	path = url + 7 + strcspn(url + 7, "/");
	client->length = (size_t)snprintf(
		client->text, sizeof client->text, "GET %s HTTP/1.0\r\nHost: %.*s\r\n\r\n",
		*path != '\0' ? path : "/", (int)(path - url - 7), url + 7);
	client->descriptor = connect_to(&address);
	if (client->descriptor == -1)
		return -1;
	if (client_set_timer(client) && client_watch(client, POLLOUT))
		return 0;
	messenger_clear_timeout(client->messenger, client->timer);
	close(client->descriptor);
	errno = ENOMEM;
	return -1;
}

static int
client_open(struct messenger *messenger, const char *url, int timeout, bool is_stream,
            http_listener listener, void *arg)
{
	struct client *client = calloc(1, sizeof *client);
	int error;

	if (client == NULL)
		return -1;
	client->messenger = messenger;
	client->timeout = timeout;
	client->is_stream = is_stream;
	client->listener = listener;
	client->arg = arg;
	if (client_start(client, url) == 0)
		return 0;
	error = errno;
	free(client);
	errno = error;
	return -1;
}

int
http_get(struct messenger *messenger, const char *url, int timeout, http_listener listener,
         void *arg)
{
	return client_open(messenger, url, timeout, false, listener, arg);
}

int
http_listen(struct messenger *messenger, const char *url, int silence, http_listener listener,
            void *arg)
{
	return client_open(messenger, url, silence, true, listener, arg);
}
