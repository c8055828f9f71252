/*
 * The master's side of the messenger in a test: a master with real sockets. The test reads their
 * far ends, and decodes the bytes without the code that is tested.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#ifndef WORLD_H
#define WORLD_H

#include "harness.h"
#include "messenger.h"

#include <criterion/criterion.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
	ROWS = 980,
	ROWS_THROWN = 280, /* D1: egg throws */
	ROWS_HEARD = 588,  /* sent by parent, agent or app, over a channel */
	ROWS_WITHOUT_AGENT = 490,
	EXTRA_ROWS = 34,
	MANY = 12 /* workers */
};

enum { MASTER_PID = 100, UNKNOWN_PID = 999 };

/* ---- the world: a master's view, and the far ends ---------------------------------------- */

enum who { PARENT, AGENT, APP1, APP2, APP3, PROCESSES };

static const struct {
	const char *name;
	enum role role;
	enum process_state state;
	pid_t pid;
} cast[PROCESSES] = {
	{"PARENT", ROLE_PARENT, STATE_LISTENING, 50}, {"AGENT", ROLE_AGENT, STATE_LISTENING, 200},
	{"APP1", ROLE_APP, STATE_LISTENING, 301},     {"APP2", ROLE_APP, STATE_LISTENING, 302},
	{"APP3", ROLE_APP, STATE_DISCONNECTED, 303},
};

static struct process processes[PROCESSES];
static int ends[PROCESSES];
static struct worker_manager manager;
static struct master_messenger messenger;

/* The messages that the master itself got. */
static struct {
	size_t count;
	struct message message;
	bool handle_is_open;
} emitted;

/* The row of the table, for the message of an assertion that fails. */
static char context[512] = "-";

static inline void
on_emit(void *master, const struct message *message)
{
	cr_assert_eq(master, &manager, "%s: emit is not called with its master", context);
	emitted.count++;
	emitted.message = *message;
	emitted.handle_is_open = message->handle != -1 && fcntl(message->handle, F_GETFD) != -1;
}

/* Open a process as the master knows it; returns the far end. */
static inline int
open_process(struct process *process, enum role role, enum process_state state, pid_t pid)
{
	int pair[2];

	memset(process, 0, sizeof *process);
	channel_init(&process->channel, 0);
	process->role = role;
	process->state = state;
	process->worker_id = pid;
	cr_assert_eq(channel_pair(pair), 0);
	cr_assert_eq(channel_attach(&process->channel, pair[0]), 0);
	return pair[1];
}

/* Add a worker at the end, as set_worker does. */
static inline void
add_worker(struct process *worker)
{
	struct process **last = &manager.workers;

	while (*last != NULL)
		last = &(*last)->next;
	worker->next = NULL;
	*last = worker;
}

static inline void
remove_worker(const struct process *worker)
{
	struct process **link = &manager.workers;

	while (*link != worker)
		link = &(*link)->next;
	*link = worker->next;
}

static inline void
open_world(bool has_parent, bool has_agent)
{
	int who;

	memset(&manager, 0, sizeof manager);
	memset(&emitted, 0, sizeof emitted);
	messenger = (struct master_messenger){
		.worker_manager = &manager, .emit = on_emit, .master = &manager, .pid = MASTER_PID};
	for (who = 0; who < PROCESSES; who++)
		ends[who] = open_process(&processes[who], cast[who].role, cast[who].state,
		                         cast[who].pid);
	for (who = APP1; who <= APP3; who++) {
		processes[who].slot = (int)who - APP1;
		add_worker(&processes[who]);
	}
	manager.parent = has_parent ? &processes[PARENT] : NULL;
	manager.agent = has_agent ? &processes[AGENT] : NULL;
}

static inline void
close_world(void)
{
	int who;

	for (who = 0; who < PROCESSES; who++) {
		channel_close(&processes[who].channel);
		if (ends[who] != -1)
			close(ends[who]);
	}
	snprintf(context, sizeof context, "-");
}

static inline void
open_full_world(void)
{
	open_world(true, true);
}

/* Leave a slot without a process, as on_agent_exit does (D24). */
static inline void
kill_agent(void)
{
	channel_close(&processes[AGENT].channel);
	memset(&processes[AGENT], 0, sizeof processes[AGENT]);
	channel_init(&processes[AGENT].channel, CHANNEL_QUEUE_MAX);
	processes[AGENT].role = ROLE_AGENT;
	processes[AGENT].state = STATE_DEAD;
	manager.agent = &processes[AGENT];
}

/* ---- bytes ------------------------------------------------------------------------------- */

struct inbox {
	unsigned char bytes[8192];
	size_t length;
	int handle; /* -1: none came */
	size_t handles;
};

static inline void
put_number(unsigned char *at, size_t number)
{
	at[0] = (unsigned char)(number >> 24);
	at[1] = (unsigned char)(number >> 16);
	at[2] = (unsigned char)(number >> 8);
	at[3] = (unsigned char)number;
}

static inline size_t
get_number(const unsigned char *at)
{
	return (size_t)at[0] << 24 | (size_t)at[1] << 16 | (size_t)at[2] << 8 | (size_t)at[3];
}

static inline struct message
compose(enum role from, enum role to, pid_t receiver_pid)
{
	return (struct message){.action = "x",
	                        .from = from,
	                        .to = to,
	                        .receiver_pid = receiver_pid,
	                        .data = "{\"a\":1}",
	                        .data_length = 7,
	                        .handle = -1};
}

/* Make the frame of a message, as messenger.h draws it; returns its size. */
static inline size_t
make_frame(unsigned char *frame, const struct message *message)
{
	size_t action = message->action != NULL ? strlen(message->action) : 0;
	size_t size = FRAME_HEADER + action + 1 + message->data_length + 1;

	memset(frame, 0, size);
	put_number(frame + FRAME_LENGTH, size - 4);
	frame[FRAME_FROM] = (unsigned char)message->from;
	frame[FRAME_TO] = (unsigned char)message->to;
	if (message->data != NULL)
		frame[FRAME_FLAGS] |= FRAME_HAS_DATA;
	if (message->handle != -1)
		frame[FRAME_FLAGS] |= FRAME_HAS_HANDLE;
	frame[FRAME_ACTION_LENGTH] = (unsigned char)action;
	put_number(frame + FRAME_RECEIVER_PID, (size_t)message->receiver_pid);
	if (action > 0)
		memcpy(frame + FRAME_HEADER, message->action, action);
	if (message->data_length > 0)
		memcpy(frame + FRAME_HEADER + action + 1, message->data, message->data_length);
	return size;
}

/* Read once; 0 if there is nothing. */
static inline size_t
take_once(int end, struct inbox *inbox)
{
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(4 * sizeof(int))];
	} control;
	struct iovec part = {inbox->bytes + inbox->length, sizeof inbox->bytes - inbox->length};
	struct msghdr header = {.msg_iov = &part,
	                        .msg_iovlen = 1,
	                        .msg_control = &control,
	                        .msg_controllen = sizeof control};
	ssize_t count = recvmsg(end, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	const struct cmsghdr *first = CMSG_FIRSTHDR(&header);

	if (count <= 0)
		return 0;
	inbox->length += (size_t)count;
	if (first != NULL) {
		cr_assert_eq(first->cmsg_len, CMSG_LEN(sizeof(int)), "%s: not one handle", context);
		memcpy(&inbox->handle, CMSG_DATA(first), sizeof(int));
		inbox->handles++;
	}
	return (size_t)count;
}

/* Read everything that was sent to the process and that it has not read yet. */
static inline void
take_from(struct process *process, int end, struct inbox *inbox)
{
	inbox->length = inbox->handles = 0;
	inbox->handle = -1;
	if (process->channel.descriptor != -1)
		channel_flush(&process->channel);
	while (take_once(end, inbox) > 0)
		;
}

static inline void
take(enum who who, struct inbox *inbox)
{
	take_from(&processes[who], ends[who], inbox);
}

/* How many frames are in the inbox. The last one must end where the inbox ends. */
static inline size_t
count_frames(const struct inbox *inbox)
{
	size_t at = 0, count = 0;

	while (at + 4 <= inbox->length) {
		at += 4 + get_number(inbox->bytes + at);
		count++;
	}
	cr_assert_eq(at, inbox->length, "%s: not only whole frames", context);
	return count;
}

/* A process sends a message: the bytes go over its channel. */
static inline void
put_on_wire(enum who who, const void *bytes, size_t length, int handle)
{
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(sizeof(int))];
	} control;
	unsigned char copy[512];
	struct iovec part = {copy, length};
	struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1};

	cr_assert_leq(length, sizeof copy);
	memcpy(copy, bytes, length);
	if (handle != -1) {
		memset(&control, 0, sizeof control);
		control.align.cmsg_level = SOL_SOCKET;
		control.align.cmsg_type = SCM_RIGHTS;
		control.align.cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(&control.align), &handle, sizeof(int));
		header.msg_control = &control;
		header.msg_controllen = sizeof control;
	}
	cr_assert_eq(sendmsg(ends[who], &header, 0), (ssize_t)length);
}

/* The master reads what the process says and takes one message out. */
static inline int
hear(enum who who, struct message *message)
{
	cr_assert_eq(channel_read(&processes[who].channel), PEER_ALIVE, "%s", context);
	return channel_next(&processes[who].channel, message);
}

/* Send, hear and route a message. Afterwards *message is the message as it was routed. */
static inline void
relay(enum who who, struct message *message)
{
	unsigned char frame[512];

	put_on_wire(who, frame, make_frame(frame, message), message->handle);
	cr_assert_eq(hear(who, message), 1, "%s: the frame was refused", context);
	master_messenger_receive(&messenger, &processes[who], message);
	cr_assert_null(messenger.sender, "%s: the sender stays", context);
}

#endif
