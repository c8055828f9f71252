/*
 * Agent and app worker: the lists of pids, and the orders of the parent.
 *
 * A helper is a process that an app worker has forked: it keeps the worker's channel
 * when the worker is dead, and sends valid frames into it.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "soak.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { PIDS = APPS * 4, HELPER_LIFE = 60 /* s, at the longest */, NOISE = 1000 /* bytes */ };

static bool list_due; /* the agent could not send its list yet */

/* ---- helpers ---------------------------------------------------------------- */

static void
put_number(unsigned char *at, uint32_t number)
{
	at[0] = (unsigned char)(number >> 24);
	at[1] = (unsigned char)(number >> 16);
	at[2] = (unsigned char)(number >> 8);
	at[3] = (unsigned char)number;
}

/* A frame to all apps that no listener hears. Returns its length. */
static size_t
compose_noise(unsigned char *frame)
{
	static const char action[] = "soak-noise";
	size_t at = FRAME_HEADER;

	memset(frame, 0, FRAME_HEADER);
	frame[FRAME_FROM] = ROLE_APP;
	frame[FRAME_TO] = ROLE_APP;
	frame[FRAME_FLAGS] = FRAME_HAS_DATA;
	frame[FRAME_ACTION_LENGTH] = sizeof action - 1;
	memcpy(frame + at, action, sizeof action);
	at += sizeof action;
	memset(frame + at, 'n', NOISE);
	at += NOISE;
	frame[at++] = '\0';
	put_number(frame + FRAME_LENGTH, (uint32_t)(at - 4));
	return at;
}

/* Returns false if the channel is closed. */
static bool
write_frame(int channel, const unsigned char *frame, size_t length)
{
	struct pollfd ready = {.fd = channel, .events = POLLOUT};
	ssize_t count;

	while (length > 0) {
		count = send(channel, frame, length, MSG_NOSIGNAL);
		if (count > 0) {
			frame += count;
			length -= (size_t)count;
		} else if (errno == EAGAIN) {
			poll(&ready, 1, -1);
		} else if (errno != EINTR) {
			return false;
		}
	}
	return true;
}

/* When the app worker is dead, its end of the leash is closed. */
static void
run_helper(struct helper *helper, int channel, int leash, bool stubborn)
{
	unsigned char frame[FRAME_HEADER + NOISE + 64];
	size_t length = compose_noise(frame);
	struct pollfd dead = {.fd = leash, .events = POLLIN}, closed = {.fd = channel};

	signal(SIGTERM, stubborn ? SIG_IGN : SIG_DFL);
	signal(SIGALRM, SIG_DFL);
	alarm(HELPER_LIFE);
	if (helper->is_stray)
		setsid();
	close_descriptors(channel, leash);
	while (poll(&dead, 1, -1) != 1)
		;
	helper->alone_at = clutch_now();
	while (clutch_now() < helper->alone_at + HELPER_SENDS &&
	       write_frame(channel, frame, length))
		helper->sent++;
	while (helper->is_stray && poll(&closed, 1, -1) != 1)
		;
	while (!helper->is_stray)
		pause(); /* its process group is told to end */
	_exit(0);
}

static void
start_helper(int channel, bool is_stray)
{
	int index = __sync_fetch_and_add(&shared->helper_count, 1), leash[2];
	struct helper *helper = &shared->helpers[index];
	pid_t pid;

	if (index >= HELPERS || pipe(leash) == -1)
		return;
	helper->is_stray = is_stray;
	pid = fork();
	if (pid == 0) {
		close(leash[1]);
		run_helper(helper, channel, leash[0], me->order_stubborn);
	}
	close(leash[0]); /* the other end stays open as long as this process lives */
	if (pid > 0)
		helper->pid = pid;
}

/* No frame may be cut in the middle, because the helpers' frames follow. So this process sends
 * no more; once its queue is written the helpers start, and the process ends. */
static void
leave_to_helpers(struct messenger *messenger)
{
	struct pollfd set[1];
	unsigned i, count = me->order == ORDER_STRAY ? 1 : me->order_count;
	bool is_stray = me->order == ORDER_STRAY;

	traffic_mute();
	messenger_descriptors(messenger, set, 1);
	if ((set[0].events & POLLOUT) != 0)
		return;
	for (i = 0; i < count; i++)
		start_helper(set[0].fd, is_stray);
	me->order = ORDER_NONE;
	kill(getpid(), me->order_signal);
}

/* ---- orders ----------------------------------------------------------------- */

static void
obey(struct messenger *messenger)
{
	switch (me->order) {
	case ORDER_NONE:
		break;
	case ORDER_HELPER:
	case ORDER_STRAY:
		leave_to_helpers(messenger);
		break;
	case ORDER_SLOW:
		traffic_slow_until(me->order_until);
		me->order = ORDER_NONE;
		break;
	case ORDER_GROUP: /* the master's group */
		me->in_other_group = setpgid(0, getpgid(getppid())) == 0;
		me->order = ORDER_NONE;
		break;
	}
}

/* ---- lists ------------------------------------------------------------------ */

static size_t
parse_pids(const char *text, pid_t *pids)
{
	size_t count = 0;
	char *end;
	long pid;

	while (count < PIDS && (pid = strtol(text, &end, 10), end != text)) {
		pids[count++] = (pid_t)pid;
		text = end;
	}
	return count;
}

/* The agent knows the pids of the apps, and tells each app the pids of the others. */
static void
tell_list(struct messenger *agent)
{
	char text[16 * PIDS] = "";
	size_t i, count, used = 0;
	const pid_t *pids = messenger_opids(agent, &count);

	for (i = 0; i < count && i < PIDS; i++)
		used += (size_t)snprintf(text + used, sizeof text - used, "%ld ", (long)pids[i]);
	list_due = messenger_send_to_app(agent, "soak-pids", text) == -1;
}

/* The master tells the agent the pids of the apps, and an app the pid of the agent. */
static int
on_egg_pids(struct messenger *messenger, const struct message *message, void *arg)
{
	bool is_agent = messenger_role(messenger) == ROLE_AGENT;
	size_t count;
	const pid_t *pids = messenger_opids(messenger, &count);

	(void)message, (void)arg;
	list_pids(is_agent ? ROLE_APP : ROLE_AGENT, pids, count);
	if (is_agent)
		tell_list(messenger);
	return 0;
}

static int
on_soak_pids(struct messenger *app, const struct message *message, void *arg)
{
	pid_t pids[PIDS];

	(void)app, (void)arg;
	list_pids(ROLE_APP, pids, parse_pids(message->data, pids));
	return 0;
}

/* ---- the role --------------------------------------------------------------- */

static int
on_member_tick(struct messenger *messenger, void *arg)
{
	(void)arg;
	if (list_due)
		tell_list(messenger);
	obey(messenger);
	return 0;
}

static int
on_leave(struct messenger *messenger, void *arg)
{
	(void)messenger, (void)arg;
	me->left_at = clutch_now();
	return 0;
}

int
member(struct messenger *messenger, void *arg)
{
	(void)arg;
	list_due = false;
	if (traffic_open(messenger, messenger_role(messenger), messenger_slot(messenger)) == -1 ||
	    messenger_set_interval(messenger, TICK, on_member_tick, NULL) == -1 ||
	    messenger_on(messenger, "egg-pids", on_egg_pids, NULL) == -1 ||
	    messenger_on(messenger, "soak-pids", on_soak_pids, NULL) == -1)
		return -1;
	return messenger_before_close(messenger, on_leave, NULL);
}
