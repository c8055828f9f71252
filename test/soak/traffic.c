/*
 * Every process of the cluster, and the parent: sending messages, and checking those that
 * arrive.
 *
 * The data of a message is "pid birth way receiver number serial ", and then a letter
 * that stands for the number, repeated. The number counts one way to one receiver, the
 * serial number counts everything that the sender has sent.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "soak.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
	BURST = 16,        /* messages in a tick, each way */
	FLOOD_EVERY = 250, /* once in this many ticks one way gets all that fits, at most FLOOD: */
	FLOOD = 50000,     /* a process that floods does not listen meanwhile */
	SLOW_BYTES = 4096  /* a slow reader sleeps for 1 ms after this many bytes */
};

struct shared *shared;
struct record *me;
const char *const way_names[] = {"by pid", "to agent", "to apps", "to parent", "any way"};

static struct {
	unsigned long long random, serial;
	bool mute;
	int64_t slow_until;
	size_t eaten;
} self;

struct content {
	long pid;
	long long birth;
	int way;
	long receiver;
	unsigned long long number, serial;
};

unsigned
random_below(unsigned limit)
{
	self.random ^= self.random >> 12;
	self.random ^= self.random << 25;
	self.random ^= self.random >> 27;
	return (unsigned)((self.random * 2685821657736338717ULL) >> 33) % limit;
}

void
random_seed(unsigned long long seed)
{
	self.random = seed * 0x9e3779b97f4a7c15ULL + 1;
}

/* ---- sending ---------------------------------------------------------------- */

static int
send_content(struct messenger *messenger, const struct stream *stream, size_t filler)
{
	static char data[160 + 65536];
	unsigned long long number = stream->sent + 1;
	int used = snprintf(data, 160, "%ld %lld %d %ld %llu %llu ", (long)me->pid, me->birth,
	                    stream->way, (long)stream->pid, number, self.serial + 1);

	memset(data + used, 'a' + (int)(number % 26), filler);
	data[(size_t)used + filler] = '\0';
	switch (stream->way) {
	case BY_PID:
		return messenger_send_to(messenger, stream->pid, "soak", data);
	case TO_AGENT:
		return messenger_send_to_agent(messenger, "soak", data);
	case TO_APPS:
		return messenger_send_to_app(messenger, "soak", data);
	case TO_PARENT:
		return messenger_send(messenger, "soak", data, ROLE_PARENT);
	case WAYS:
		break;
	}
	return -1;
}

/* Most messages are short; some fill a good part of the master's read buffer. */
static size_t
any_size(void)
{
	unsigned which = random_below(2048);

	return random_below(which == 0 ? 65536 : which < 32 ? 4096 : 200);
}

static void
pump(struct messenger *messenger, struct stream *stream, int most)
{
	while (stream->listed && most-- > 0) {
		if (send_content(messenger, stream, any_size()) == -1) {
			me->counts.refused++;
			return; /* a later turn begins with this number */
		}
		stream->sent++;
		self.serial++;
	}
}

struct stream *
stream_of(struct record *record, enum way way, pid_t pid)
{
	int i;

	for (i = 0; i < record->stream_count; i++)
		if (record->streams[i].way == way && record->streams[i].pid == pid)
			return &record->streams[i];
	return NULL;
}

void
add_stream(enum way way, enum role whose, pid_t pid)
{
	struct stream *stream = stream_of(me, way, pid);

	if (stream == NULL) {
		if (me->stream_count == STREAMS)
			abort();
		stream = &me->streams[me->stream_count];
		*stream = (struct stream){.way = way, .pid = pid};
		me->stream_count++; /* the parent looks at it from now on */
	}
	stream->whose = whose;
	stream->listed = true;
}

/* These are all pids of one list. */
void
list_pids(enum role whose, const pid_t *pids, size_t count)
{
	size_t i;
	int j;

	for (j = 0; j < me->stream_count; j++)
		if (me->streams[j].way == BY_PID && me->streams[j].whose == whose)
			me->streams[j].listed = false;
	for (i = 0; i < count; i++)
		if (pids[i] != me->pid)
			add_stream(BY_PID, whose, pids[i]);
}

void
traffic_mute(void)
{
	self.mute = true;
}

static int
on_tick(struct messenger *messenger, void *arg)
{
	int i, first, flooded = random_below(FLOOD_EVERY) == 0 ? 0 : -1;

	(void)arg;
	me->slow = clutch_now() < self.slow_until;
	if (me->ready_at == 0 || shared->quiet || self.mute || me->stream_count == 0)
		return 0;
	first = (int)random_below((unsigned)me->stream_count);
	for (i = 0; i < me->stream_count; i++) /* no stream is always the last one */
		pump(messenger, &me->streams[(first + i) % me->stream_count],
		     i == flooded ? FLOOD : BURST);
	return 0;
}

/* ---- hearing ---------------------------------------------------------------- */

static void complain(const char *format, ...) CLUTCH_PRINTF(1, 2);

static void
complain(const char *format, ...)
{
	va_list arguments;
	int used;
	char *text;

	if (me->complaint_count >= COMPLAINTS)
		return;
	text = me->complaints[me->complaint_count];
	used = snprintf(text, 32, "%ld ", (long)me->pid);
	va_start(arguments, format);
	vsnprintf(text + used, sizeof me->complaints[0] - (size_t)used, format, arguments);
	va_end(arguments);
	me->complaint_count++;
}

/* The row of a sender in a record's table, or NULL: it has none and is not to get one. */
static struct heard *
find_row(struct record *record, pid_t pid, enum way way, bool create)
{
	unsigned at = ((unsigned)pid * (WAYS + 1) + way) % HEARD;
	int tries = HEARD;
	struct heard *row;

	for (;; at = (at + 1) % HEARD) {
		row = &record->heard[at];
		if (row->pid == pid && row->way == way)
			return row;
		if (row->pid == 0)
			break;
		if (--tries == 0)
			abort();
	}
	if (!create)
		return NULL;
	row->way = way;
	row->pid = pid;
	return row;
}

struct heard *
heard_of(struct record *record, pid_t pid, enum way way)
{
	return find_row(record, pid, way, false);
}

/* Must the receiver hear all that the sender sends this way? */
bool
hears_all(const struct record *receiver, long long sender_birth, enum way way)
{
	return way == BY_PID || way == TO_PARENT || receiver->birth < sender_birth;
}

/* Numbers are missing. Before the receiver was born, messages waited for it in a queue with
 * a limit: those past the limit were dropped, and are no loss. (One more than `before`: its
 * sender may have been stopped between the call that sent it and the count.) */
static void
skip(struct heard *row, const struct content *content)
{
	unsigned long long gap = content->number - row->last - 1;

	if (!hears_all(me, content->birth, row->way) && content->number - 1 <= row->before + 1) {
		me->counts.dropped += (long long)gap;
	} else {
		complain("lost: heard %llu after %llu from %ld, %s (before its birth: %llu)",
		         content->number, row->last, content->pid, way_names[row->way],
		         row->before);
		me->counts.lost += (long long)gap;
	}
	row->seen = gap < 63 ? row->seen << (gap + 1) | 1 : 1;
	row->last = content->number;
}

/* The number is an old one: the message comes twice, or it comes late. */
static void
look_back(struct heard *row, const struct content *content)
{
	unsigned long long age = row->last - content->number;
	bool late = age < 64 && (row->seen >> age & 1) == 0;

	complain("%s: heard %llu after %llu from %ld, %s", late ? "out of order" : "doubled",
	         content->number, row->last, content->pid, way_names[row->way]);
	if (!late) {
		me->counts.doubled++;
		return;
	}
	me->counts.disordered++;
	me->counts.lost -= content->number >= row->first; /* it was counted as lost */
	row->seen |= (uint64_t)1 << age;
}

/* From one sender, the order is kept across all ways. */
static void
check_serial(const struct content *content)
{
	struct heard *row = find_row(me, (pid_t)content->pid, ANY_WAY, true);

	if (content->serial <= row->last) {
		complain("out of order: heard serial %llu after %llu from %ld, %s", content->serial,
		         row->last, content->pid, way_names[content->way]);
		me->counts.disordered++;
	} else {
		row->last = content->serial;
	}
}

static void
hear(const struct content *content)
{
	struct heard *row = find_row(me, (pid_t)content->pid, (enum way)content->way, true);

	me->counts.delivered++;
	if (row->last == 0 && !hears_all(me, content->birth, row->way)) {
		row->first = row->last = content->number;
		row->seen = 1;
	} else if (content->number == row->last + 1) {
		row->first += row->first == 0;
		row->last++;
		row->seen = row->seen << 1 | 1;
	} else if (content->number > row->last) {
		row->first += row->first == 0;
		skip(row, content);
	} else {
		look_back(row, content);
		return;
	}
	check_serial(content);
}

static bool
parse_content(const struct message *message, struct content *content)
{
	const char *at = message->data != NULL ? message->data : "";
	char *end;

	content->pid = strtol(at, &end, 10);
	content->birth = strtoll(end, &end, 10);
	content->way = (int)strtol(end, &end, 10);
	content->receiver = strtol(end, &end, 10);
	content->number = strtoull(end, &end, 10);
	content->serial = strtoull(end, &end, 10);
	if (*end != ' ' || content->pid <= 0 || content->way < 0 || content->way >= WAYS)
		return false;
	for (at = end + 1; *at == (char)('a' + content->number % 26); at++)
		;
	return at == message->data + message->data_length;
}

static void
read_slowly(size_t bytes)
{
	self.eaten += bytes;
	if (self.eaten >= SLOW_BYTES) {
		self.eaten = 0;
		poll(NULL, 0, 1);
	}
}

void
traffic_slow_until(int64_t until)
{
	self.slow_until = until;
	me->slow = true;
}

static int
on_soak(struct messenger *messenger, const struct message *message, void *arg)
{
	struct content content;

	(void)messenger, (void)arg;
	if (!parse_content(message, &content)) {
		complain("damaged: heard %.60s", message->data != NULL ? message->data : "nothing");
		me->counts.damaged++;
	} else if (content.receiver != 0 && content.receiver != me->pid) {
		complain("astray: heard a message from %ld to %ld", content.pid, content.receiver);
		me->counts.astray++;
	} else {
		hear(&content);
	}
	if (me->slow && !shared->quiet && clutch_now() < self.slow_until)
		read_slowly(message->data_length);
	return 0;
}

/* ---- the beginning ---------------------------------------------------------- */

static int
on_egg_ready(struct messenger *messenger, const struct message *message, void *arg)
{
	int i;

	(void)messenger, (void)message, (void)arg;
	for (i = 0; i < HEARD; i++)
		if (me->heard[i].way == TO_APPS)
			me->heard[i].at_ready = me->heard[i].last;
	me->ready_at = clutch_now();
	return 0;
}

/* Note how many messages were sent to this role before this process was born. */
static void
note_sent_before(void)
{
	enum way way = me->role == ROLE_AGENT ? TO_AGENT : TO_APPS;
	struct record *other;
	struct stream *stream;

	for (other = shared->records; other < me; other++) {
		stream = stream_of(other, way, 0);
		if (other->pid != 0 && stream != NULL)
			find_row(me, other->pid, way, true)->before = stream->sent;
	}
}

/* The parent is older than all others: it is not born after them. */
int
traffic_open(struct messenger *messenger, enum role role, int slot)
{
	int index = role == ROLE_PARENT ? 0 : __sync_fetch_and_add(&shared->record_count, 1);

	if (index >= RECORDS)
		abort();
	memset(&self, 0, sizeof self);
	me = &shared->records[index];
	me->role = role;
	me->slot = slot;
	me->birth = clutch_now();
	random_seed((unsigned long long)getpid() << 32 ^ (unsigned long long)me->birth);
	add_stream(TO_APPS, ROLE_NONE, 0);
	if (role != ROLE_PARENT)
		add_stream(TO_PARENT, ROLE_NONE, 0);
	if (role != ROLE_AGENT)
		add_stream(TO_AGENT, ROLE_NONE, 0);
	if (role != ROLE_PARENT)
		note_sent_before();
	me->pid = getpid();
	if (messenger_on(messenger, "soak", on_soak, NULL) == -1 ||
	    messenger_set_interval(messenger, TICK, on_tick, NULL) == -1)
		return -1;
	return messenger_once(messenger, "egg-ready", on_egg_ready, NULL);
}
