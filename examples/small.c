/*
 * A cluster in one small file, without clutch, and five ways to break it. A message goes from
 * the agent to the master, and from there to each process of its role.
 *
 *	build/examples/small            it works; Ctrl-C ends it
 *	build/examples/small half       the agent sends half a frame: the master hangs in read
 *	build/examples/small stopped    an app is stopped: the master hangs in write
 *	build/examples/small lie        the agent says that it is the master: the apps believe it
 *	build/examples/small zombie     the agent ends: it stays a zombie
 *	build/examples/small orphan     the master is killed: its children stay
 *
 * kill -9 ends a stopped process, or an orphan.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum role { ROLE_MASTER, ROLE_AGENT, ROLE_APP };
enum { PROCESSES = 3, DATA_MAX = 65536, HEADER = 6 };

struct message {
	enum role from, to;
	size_t length;
	char data[DATA_MAX + 1];
};

struct process {
	enum role role;
	pid_t pid;
	int descriptor; /* the master's end of its channel; -1: it has ended */
};

static const char *const names[] = {"master", "agent", "app"};
static struct message message; /* the one that was received last */
static const char *mistake;    /* how to break it; or NULL */
static int forked;             /* processes so far; in a child, its own number */

static int
is(const char *name)
{
	return mistake != NULL && strcmp(mistake, name) == 0;
}

/* ---- a message is a frame: its length (4 bytes), from, to, data ---------------------- */

static int
write_all(int descriptor, const void *bytes, size_t length)
{
	const char *at = bytes;
	ssize_t count;

	for (; length > 0; at += count, length -= (size_t)count)
		if ((count = write(descriptor, at, length)) == -1)
			return -1;
	return 0;
}

static int
read_all(int descriptor, void *bytes, size_t length)
{
	char *at = bytes;
	ssize_t count;

	for (; length > 0; at += count, length -= (size_t)count)
		if ((count = read(descriptor, at, length)) <= 0)
			return -1; /* the end, or an error: here they are the same */
	return 0;
}

static int
send_message(int descriptor, enum role from, enum role to, const char *data, size_t length)
{
	unsigned char head[HEADER] = {(unsigned char)(length >> 24), (unsigned char)(length >> 16),
	                              (unsigned char)(length >> 8),  (unsigned char)length,
	                              (unsigned char)from,           (unsigned char)to};

	if (write_all(descriptor, head, sizeof head) == -1)
		return -1;
	return write_all(descriptor, data, length);
}

static int
receive(int descriptor)
{
	unsigned char head[HEADER];

	if (read_all(descriptor, head, sizeof head) == -1)
		return -1;
	message.length =
		(size_t)head[0] << 24 | (size_t)head[1] << 16 | (size_t)head[2] << 8 | head[3];
	message.from = (enum role)head[4];
	message.to = (enum role)head[5];
	if (message.length > DATA_MAX || message.from > ROLE_APP || message.to > ROLE_APP)
		return -1;
	message.data[message.length] = '\0';
	return read_all(descriptor, message.data, message.length);
}

/* ---- the children --------------------------------------------------------------------- */

static void
run_agent(int master)
{
	if (is("half")) /* the header of a message of 100 bytes, and nothing behind it */
		write_all(master, "\0\0\0\144\1\2", HEADER);
	else
		send_message(master, is("lie") ? ROLE_MASTER : ROLE_AGENT, ROLE_APP, "hello", 5);
	while (is("stopped"))
		send_message(master, ROLE_AGENT, ROLE_APP, message.data, DATA_MAX);
	while (!is("zombie"))
		pause();
}

static void
run_app(int master)
{
	while (receive(master) == 0) {
		printf("app %ld hears %zu bytes from the %s: %s\n", (long)getpid(), message.length,
		       names[message.from], message.data);
		if (is("stopped") && forked == 1)
			raise(SIGSTOP);
	}
	printf("app %ld: the channel has ended\n", (long)getpid());
}

/* ---- the master ------------------------------------------------------------------------ */

static void
start(struct process *process, enum role role)
{
	int pair[2];

	forked++;
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == -1 || (process->pid = fork()) == -1) {
		perror("small");
		exit(1);
	}
	if (process->pid == 0) {
		(role == ROLE_AGENT ? run_agent : run_app)(pair[1]); /* what else is open here? */
		exit(0);
	}
	close(pair[1]);
	process->role = role;
	process->descriptor = pair[0];
	printf("master %ld: %s is %ld\n", (long)getpid(), names[role], (long)process->pid);
}

static void
hear(struct process *processes, struct process *sender)
{
	int i;

	if (receive(sender->descriptor) == -1) {
		printf("master %ld: the channel of %s %ld has ended\n", (long)getpid(),
		       names[sender->role], (long)sender->pid);
		close(sender->descriptor);
		sender->descriptor = -1;
		return;
	}
	for (i = 0; i < PROCESSES; i++)
		if (processes[i].role == message.to && processes[i].descriptor != -1)
			send_message(processes[i].descriptor, message.from, message.to,
			             message.data, message.length);
	if (is("orphan"))
		raise(SIGKILL);
}

int
main(int argc, char **argv)
{
	struct process processes[PROCESSES];
	struct pollfd set[PROCESSES];
	int i;

	mistake = argc > 1 ? argv[1] : NULL;
	if (argc > 2 || (argc == 2 && !is("half") && !is("stopped") && !is("lie") &&
	                 !is("zombie") && !is("orphan"))) {
		fputs("usage: small [half|stopped|lie|zombie|orphan]\n", stderr);
		return 1;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	for (i = 0; i < PROCESSES; i++) /* the agent last: it speaks at once */
		start(&processes[i], i < PROCESSES - 1 ? ROLE_APP : ROLE_AGENT);
	for (;;) {
		for (i = 0; i < PROCESSES; i++)
			set[i] = (struct pollfd){.fd = processes[i].descriptor, .events = POLLIN};
		poll(set, PROCESSES, -1);
		for (i = 0; i < PROCESSES; i++)
			if (set[i].revents != 0)
				hear(processes, &processes[i]);
	}
}
