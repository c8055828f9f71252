/*
 * The second of the four ways: messages over a socketpair, as Node's process.send.
 * sendmessage.c alone is enough: no master, no loop, no cluster.
 *
 *	parent  <======= socketpair, frames in both directions =======>  child
 *
 * A frame begins with its length, so a message comes whole or not at all, whatever bytes
 * are in it; and a descriptor can travel along. Both ends are alike: each may send at any
 * time, and no message needs an answer.
 *
 *	build/examples/ipc/native
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#define CLUTCH_CHANNEL
#include "messenger.h"
#include "standard.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define DEADLINE 10000 /* milliseconds, for the next message of the other end */

static const char *self = "parent";

static void
fail(const char *what)
{
	fprintf(stderr, "native: %s: %s: %s\n", self, what, strerror(errno));
	exit(1); /* the other process reads end of file */
}

/* ---- one end of the channel ---------------------------------------------- */

static void
say(struct channel *channel, const char *action, const char *data, int handle)
{
	const struct message message = {
		.action = action, .data = data, .data_length = strlen(data), .handle = handle};

	if (message.data_length > 64)
		printf("%s sends %s, %zu bytes\n", self, action, message.data_length);
	else
		printf("%s sends %s %s\n", self, action, data);
	if (sendmessage(channel, &message) == -1) /* it is queued, and turn writes it */
		fail("sendmessage");
}

/*
 * One turn of a loop: write the queue, wait for either direction, read. We read even while
 * our socket is full: if both ends only waited to write, they would wait for ever
 * (deadlock).
 */
static enum peer
turn(struct channel *channel)
{
	struct pollfd wait = {.fd = channel->descriptor, .events = POLLIN};
	enum peer peer = channel_flush(channel);
	int count;

	if (channel_pending(channel) > 0)
		wait.events |= POLLOUT;
	while ((count = poll(&wait, 1, DEADLINE)) == -1 && errno == EINTR)
		;
	if (count == 0)
		errno = ETIMEDOUT;
	if (count != 1)
		fail("the other end says nothing");
	if ((wait.revents & ~POLLOUT) != 0) /* read before you believe a hangup */
		peer = channel_read(channel);
	return peer;
}

/* The next message. False: the other end is gone, and no message of it is left. */
static bool
hear(struct channel *channel, struct message *message)
{
	static enum peer peer;
	int count;

	while ((count = channel_next(channel, message)) == 0 && peer == PEER_ALIVE)
		peer = turn(channel);
	if (count == -1 || peer == PEER_BROKEN) {
		errno = EPROTO;
		fail("this is no frame");
	}
	if (count == 0)
		return false;
	if (message->data_length > 64)
		printf("%s hears %s, %zu bytes\n", self, message->action, message->data_length);
	else
		printf("%s hears %s %s\n", self, message->action, message->data);
	return true;
}

static void
expect(struct channel *channel, const char *action, struct message *message)
{
	if (!hear(channel, message)) {
		errno = EPIPE;
		fail("the other end has left");
	}
	if (strcmp(message->action, action) != 0) {
		errno = EPROTO;
		fail(message->action);
	}
}

/* ---- the child ----------------------------------------------------------- */

/* The largest message: one JSON string of 1 MiB, which is twice as much as a socket takes. */
static char *
large(void)
{
	char *text = malloc(MESSAGE_DATA_MAX + 1);

	if (text == NULL)
		fail("malloc");
	memset(text, 'x', MESSAGE_DATA_MAX);
	text[0] = text[MESSAGE_DATA_MAX - 1] = '"';
	text[MESSAGE_DATA_MAX] = '\0';
	return text;
}

/* The parent's descriptor is now also ours. It could be any kind; here it is a pipe. */
static void
write_into(int handle)
{
	static const char text[] = "written by the child";

	if (handle == -1 || write(handle, text, strlen(text)) == -1)
		fail("handle");
	close(handle);
}

static void
say_size(struct channel *channel, size_t size)
{
	char text[32];

	snprintf(text, sizeof text, "%zu", size);
	say(channel, "measured", text, -1);
}

static int
child(struct channel *channel)
{
	struct message message;
	char *text = large();

	say(channel, "online", "{\"ready\":true}", -1); /* without a question */
	while (hear(channel, &message)) {
		if (strcmp(message.action, "ping") == 0)
			say(channel, "pong", message.data, -1);
		else if (strcmp(message.action, "both") == 0)
			say(channel, "large", text, -1);
		else if (strcmp(message.action, "measure") == 0)
			say_size(channel, message.data_length);
		else if (strcmp(message.action, "descriptor") == 0)
			write_into(message.handle);
		else if (strcmp(message.action, "leave") == 0)
			break;
	}
	free(text);
	say(channel, "last", "1", -1);
	say(channel, "last", "2", -1);
	channel_drain(channel, DEADLINE); /* write the queue before we leave */
	channel_close(channel);
	return 7;
}

/* ---- the parent ---------------------------------------------------------- */

/* Each process closes the other's end: an end of file comes only when no process has the
 * other end open. */
static pid_t
start(struct channel *channel)
{
	int pair[2];
	pid_t pid;

	if (channel_pair(pair) == -1)
		fail("socketpair");
	fflush(stdout); /* or the child would print it again */
	pid = fork();
	if (pid == -1)
		fail("fork");
	if (pid == 0)
		self = "child ";
	channel_init(channel, CHANNEL_QUEUE_MAX);
	close(pair[pid == 0 ? 0 : 1]);
	if (channel_attach(channel, pair[pid == 0 ? 1 : 0]) == -1)
		fail("fcntl");
	if (pid == 0)
		exit(child(channel));
	return pid;
}

/* Both send at once, more than a socket holds, and neither waits for the other. */
static void
speak_at_once(struct channel *channel)
{
	struct message message;
	char *text = large();

	say(channel, "both", "{}", -1);
	say(channel, "large", text, -1);
	expect(channel, "large", &message);
	say(channel, "measure", text, -1); /* and in one direction */
	expect(channel, "measured", &message);
	free(text);
}

static void
send_descriptor(struct channel *channel)
{
	char text[64];
	ssize_t length;
	int ends[2];

	if (pipe(ends) == -1)
		fail("pipe");
	say(channel, "descriptor", "{\"kind\":\"pipe\"}", ends[1]); /* duplicated: ours stays */
	close(ends[1]);
	if (channel_drain(channel, DEADLINE) != PEER_ALIVE || channel_pending(channel) > 0)
		fail("the child does not take it");
	length = read(ends[0], text, sizeof text);
	close(ends[0]);
	if (length <= 0)
		fail("nothing is in the pipe");
	printf("parent reads \"%.*s\" from its pipe\n", (int)length, text);
}

/* All messages from before the end are heard; then comes the end of file. */
static int
wait_for_end(struct channel *channel, pid_t pid)
{
	struct message message;
	int status = 0;

	while (hear(channel, &message))
		;
	while (waitpid(pid, &status, 0) == -1 && errno == EINTR)
		;
	printf("parent sees the end, and reaps a child that left with %d\n", WEXITSTATUS(status));
	say(channel, "ping", "{\"n\":2}", -1);
	if (channel_flush(channel) != PEER_GONE)
		fail("somebody listens to the dead");
	printf("parent is told that nobody is there\n");
	return status;
}

int
main(int argc, char **argv)
{
	struct channel channel;
	struct message message;
	int status;
	pid_t pid;

	if (argc > 1) {
		fprintf(stderr, "native: %s: it takes no arguments\n", argv[1]);
		return 64;
	}
	if (!fill_standard_descriptors())
		fail("/dev/null");
	signal(SIGPIPE, SIG_IGN);
	setvbuf(stdout, NULL, _IOLBF, 0);
	pid = start(&channel);
	expect(&channel, "online", &message);
	say(&channel, "ping", "{\"n\":1}", -1);
	expect(&channel, "pong", &message);
	speak_at_once(&channel);
	send_descriptor(&channel);
	say(&channel, "leave", "{}", -1);
	status = wait_for_end(&channel, pid);
	channel_close(&channel);
	return WIFEXITED(status) && WEXITSTATUS(status) == 7 ? 0 : 1;
}
