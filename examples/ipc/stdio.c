/*
 * The first of the four ways: stdin and stdout. The child is a filter, which could be
 * written in any language: it only has to know that each line is one JSON object.
 *
 *	          {"id":1,"add":[2,3]}\n
 *	parent  ------------- pipe ------------>  0 stdin
 *	                                                    child
 *	        <------------ pipe -------------  1 stdout
 *	          {"id":1,"sum":5}\n              2 stderr: for logs, no protocol
 *
 * A pipe has no messages, only bytes. A read can end in the middle of a line (partial
 * read), and a child can die in the middle of one. The line end makes it a message: this
 * is framing.
 *
 *	build/examples/ipc/stdio
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "standard.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
	DEADLINE = 10000,     /* milliseconds, for the child's next line */
	LINE_SIZE = 64 * 1024 /* bytes; the child sends no longer line */
};

struct child {
	pid_t pid;
	int to, from; /* our ends of its stdin and stdout */
	char line[LINE_SIZE];
	size_t length; /* of the bytes that are read, but not handled */
};

/* ---- the child: reads, answers, and ends with its stdin ------------------ */

static int
child_main(void)
{
	char line[256];
	int id, a, b;

	printf("{\"hello\":\"parent\",\"version\":1}\n");
	/* A program's stdout is a buffer that is written into a pipe when it is full. A filter
	 * must write each answer at once. (This one has line buffering from its parent, but
	 * half a line must be written, too.) */
	while (fflush(stdout) == 0 && fgets(line, sizeof line, stdin) != NULL) {
		if (sscanf(line, "{\"id\":%d,\"add\":[%d,%d]}", &id, &a, &b) == 3) {
			printf("{\"id\":%d,\"sum\":%d}\n", id, a + b);
		} else if (sscanf(line, "{\"id\":%d,\"debug\":%d}", &id, &a) == 2) {
			printf("debug: a is %d\n", a); /* a mistake: it belongs on stderr */
			printf("{\"id\":%d,\"debugged\":%d}\n", id, a);
		} else if (sscanf(line, "{\"id\":%d,\"halves\":%d}", &id, &a) == 2) {
			printf("{\"id\":%d,\"hal", id);
			if (fflush(stdout) == EOF || fgets(line, sizeof line, stdin) == NULL)
				return 1;
			printf("ves\":%d}\n", a);
		}
	}
	return 0;
}

/* ---- the parent ---------------------------------------------------------- */

static void
fail(const char *what)
{
	fprintf(stderr, "stdio: %s: %s\n", what, strerror(errno));
	exit(1); /* a living child sees the end of its stdin, and leaves */
}

/* Two pipes and a fork. No other child may inherit our ends; here the next child is forked
 * when the first one is gone. */
static void
start(struct child *child)
{
	int in[2], out[2];

	if (pipe(in) == -1 || pipe(out) == -1)
		fail("pipe");
	fflush(stdout); /* or the child would print it again */
	child->pid = fork();
	if (child->pid == -1)
		fail("fork");
	if (child->pid == 0) {
		if (dup2(in[0], STDIN_FILENO) == -1 || dup2(out[1], STDOUT_FILENO) == -1)
			fail("dup2");
		close(in[0]), close(in[1]), close(out[0]), close(out[1]);
		exit(child_main());
	}
	close(in[0]), close(out[1]); /* or we would never see the end of file */
	child->to = in[1];
	child->from = out[0];
	child->length = 0;
}

/* Send one line. An empty pipe takes PIPE_BUF bytes at once, as a whole. */
static int
tell(const struct child *child, const char *line)
{
	char text[512];
	int length = snprintf(text, sizeof text, "%s\n", line);

	printf("parent says      %s\n", line);
	return write(child->to, text, (size_t)length) == length ? 0 : -1;
}

enum heard { HEARD_LINE, HEARD_PART, HEARD_END };

/* Take the first line out of the bytes that were read; PART: there is no whole line. */
static enum heard
take_line(struct child *child, char *line)
{
	char *end = memchr(child->line, '\n', child->length);
	size_t used;

	if (end == NULL)
		return HEARD_PART;
	used = (size_t)(end + 1 - child->line);
	memcpy(line, child->line, used - 1);
	line[used - 1] = '\0';
	child->length -= used;
	memmove(child->line, end + 1, child->length);
	return HEARD_LINE;
}

/* Wait until there are bytes, or the end of file. */
static void
wait_for(const struct child *child)
{
	struct pollfd wait = {.fd = child->from, .events = POLLIN};
	int count;

	while ((count = poll(&wait, 1, DEADLINE)) == -1 && errno == EINTR)
		;
	if (count == 0)
		errno = ETIMEDOUT;
	if (count != 1)
		fail("the child says nothing");
}

/* The next line if it is complete; otherwise read once. The beginning of a line is kept: if
 * the end of file comes before its rest, it never becomes a message. */
static enum heard
hear(struct child *child, char *line)
{
	ssize_t count;

	if (take_line(child, line) == HEARD_LINE)
		return HEARD_LINE;
	errno = EMSGSIZE;
	if (child->length == sizeof child->line)
		fail("a line of the child does not end");
	wait_for(child);
	count = read(child->from, child->line + child->length, sizeof child->line - child->length);
	if (count == -1 && errno != EINTR)
		fail("read");
	if (count > 0)
		child->length += (size_t)count;
	return count == 0 ? HEARD_END : take_line(child, line);
}

/* The next line that is an object. Other lines are not for us. */
static enum heard
hear_object(struct child *child)
{
	static char line[LINE_SIZE];
	enum heard heard;

	while ((heard = hear(child, line)) == HEARD_LINE) {
		if (line[0] == '{' && line[strlen(line) - 1] == '}') {
			printf("parent hears     %s\n", line);
			return heard;
		}
		printf("parent refuses   %s   (no object: its stdout is our channel)\n", line);
	}
	return heard;
}

static void
answer(struct child *child)
{
	enum heard heard;

	while ((heard = hear_object(child)) == HEARD_PART)
		;
	if (heard == HEARD_END)
		fail("the child has left without an answer");
}

/* Read to the end of file before you believe a death: there may be last words. */
static int
reap(struct child *child)
{
	int status = 0;

	while (hear_object(child) != HEARD_END)
		;
	if (child->length > 0)
		printf("parent drops     %.*s   (the end, and no end of line)\n",
		       (int)child->length, child->line);
	close(child->from);
	while (waitpid(child->pid, &status, 0) == -1 && errno == EINTR)
		;
	return status;
}

/* ---- what it shows ------------------------------------------------------- */

static void
ask(struct child *child, const char *question)
{
	if (tell(child, question) == -1)
		fail("tell");
	answer(child);
}

/* Only the first half of the answer comes: before the second, the child waits for a line. */
static void
ask_for_halves(struct child *child, const char *question)
{
	if (tell(child, question) == -1 || hear_object(child) != HEARD_PART)
		fail(question);
	printf("parent keeps     %.*s   (half a line)\n", (int)child->length, child->line);
}

/* Kill the child in the middle of a line. The next child is asked the same again, because
 * there was no answer: so a question must be harmless when it is asked twice. */
static void
kill_while_asking(struct child *child, const char *question)
{
	ask_for_halves(child, question);
	kill(child->pid, SIGKILL);
	printf("parent reaps     a child killed by signal %d\n", WTERMSIG(reap(child)));
	if (tell(child, question) == 0 || errno != EPIPE)
		fail("somebody listens to the dead");
	printf("parent is told   EPIPE: nobody will ever read this\n");
	close(child->to);
}

int
main(int argc, char **argv)
{
	static struct child child;
	int status;

	if (argc > 1) {
		fprintf(stderr, "stdio: %s: it takes no arguments\n", argv[1]);
		return 64;
	}
	if (!fill_standard_descriptors())
		fail("/dev/null");
	setvbuf(stdout, NULL, _IOLBF, 0); /* into a pipe, too, each line is written at once */
	signal(SIGPIPE, SIG_IGN);         /* a write(2) to a dead child returns EPIPE */

	start(&child);
	answer(&child); /* the handshake: the child runs, and has our version */
	ask(&child, "{\"id\":1,\"add\":[2,3]}");
	ask(&child, "{\"id\":2,\"debug\":7}");
	ask_for_halves(&child, "{\"id\":3,\"halves\":3}");
	ask(&child, "{\"go\":\"on\"}");
	kill_while_asking(&child, "{\"id\":4,\"halves\":4}");
	start(&child);
	answer(&child);
	ask_for_halves(&child, "{\"id\":4,\"halves\":4}");
	ask(&child, "{\"go\":\"on\"}");
	close(child.to); /* a filter ends with its stdin */
	status = reap(&child);
	printf("parent reaps     a child that left with %d\n", WEXITSTATUS(status));
	return status == 0 ? 0 : 1;
}
