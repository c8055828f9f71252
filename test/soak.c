/*
 * A storm: a cluster under full traffic, in which processes are killed, stopped
 * and told to leave at random, and nobody who lives misses a message.
 *
 *	soak [SECONDS] [SEED]    60 seconds, and a seed of the clock's, by default
 *
 * This program is the parent. Every process sends numbered messages:
 *
 *	by pid      app, agent and parent to each app; app and parent to the agent
 *	to agent    app and parent, to whoever is the agent
 *	to apps     app, agent and parent, to whoever is an app (an app to itself, too)
 *	to parent   app and agent
 *
 * What is claimed, and checked by each receiver for each sender (a process, not a
 * slot: a replacement is somebody else) and for each of these four ways:
 *
 *  - the numbers that it hears are consecutive: none is missing, none comes twice,
 *    none comes late;
 *  - by pid and to the parent the first is 1: the sender counts for each pid anew,
 *    from the moment that it first addresses it;
 *  - to agent and to apps the first is 1 if the receiver is older than the sender;
 *    a newcomer hears a suffix, from any number on, and without a gap from there;
 *  - what is sent to a pid is heard by nobody else;
 *  - the last is the last that was sent: twice, after the warm-up and at the end,
 *    the storm pauses, and each sender tells each receiver how many there were. An
 *    app that leaves on SIGTERM says so, too: what it sent to the parent is all
 *    there, although it is not.
 *
 * (By pid: as long as no pid is given out twice within a run.)
 *
 * What is sent to a process that is dead, or dies before it has read it, is claimed
 * by nobody. A sender whose queue is full tries the same number again later.
 *
 * The master is looked at in both pauses, when it has the same processes to care
 * for: it holds as many descriptors in the second as in the first, and at most
 * MEMORY_GROWTH more memory; it has no zombie and no child too many. When it is
 * told to, it ends with 0, and its last child has ended before it does.
 *
 * The seed decides what the parent does, and when; not how the system schedules,
 * so that a run cannot be repeated exactly. It ends within SECONDS + 20.
 */
#include "messenger.h"
#include "sanitized.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

/* How much more memory the master may use in the second pause, in KiB. */
#ifndef MEMORY_GROWTH
#define MEMORY_GROWTH 512
#endif

enum {
	APPS = 4,
	SECONDS_MAX = 600, /* the tables are made for that */

	TICK = 4,            /* ms between the turns of a sender, */
	BURST = 16,          /* the numbers that it sends in a turn, each way */
	FLOOD_EVERY = 250,   /* once in so many turns one way gets all that fits, or so many: */
	FLOOD = 50000,       /* who floods does not listen, and must not do so for seconds */
	REPORT = 50,         /* ms between the reports of a process */
	DEATH_EVERY = 600,   /* ms, and up to twice as much again: the 60th re-fork within */
	DEATH_JITTER = 1200, /* a minute would have to wait, and that is not the question */
	STOP_EVERY = 50,     /* ms from one stop to the next, and up to */
	STOP_JITTER = 400,   /* so much more */
	STOP_MIN = 10,       /* ms that a process is stopped */
	STOP_MAX = 500,
	CHECK_INTERVAL = 10000, /* of the master's health check; the agent is spared */
	CHECK_SPARE = 2500,     /* so long before it */

	START_LIMIT = 5000, /* ms */
	QUIET_LIMIT = 7000,
	END_LIMIT = 7000,
	LEAVE = 1 << 30 /* the round of those who leave */
};

/* ---- every process: what it knows -------------------------------------------- */

enum way { BY_PID, TO_AGENT, TO_APPS, TO_PARENT, WAYS };

static const char *const way_names[WAYS] = {"by pid", "to agent", "to apps", "to parent"};

/* What it sends one way. One that is not listed any more keeps its count: lists
 * travel, and one that is late must not make a count begin anew. */
struct stream {
	enum way way;
	enum role whose; /* who lists it */
	pid_t pid;       /* 0 but for BY_PID */
	unsigned long long sent;
	bool listed;
	int round; /* told the number of last */
};

/* What it hears one way. */
struct heard {
	pid_t pid; /* the sender's; 0: free */
	enum way way;
	unsigned long long floor, last; /* what was heard first and last; 0: nothing yet */
	uint64_t seen;                  /* bit i: last - i was heard */
	int round;
};

enum { STREAMS = 4096, HEARD = 16384, COMPLAINTS = 5 };

/* Since the last report. */
struct counts {
	long long delivered, refused, lost, duplicated, disordered, damaged, astray;
};

static struct {
	pid_t pid;
	long long birth;
	int reports; /* the pipe to the parent */
	unsigned long long random;
	bool talks, quiet, list_due;
	int round, round_heard; /* the parent's order, and what others' ends belong to */
	int ends, ends_told;    /* heard in this round, and reported */
	int64_t report_at;
	int complaints;
	struct counts counts;
	struct stream streams[STREAMS];
	int stream_count;
	struct heard heard[HEARD];
} me;

static unsigned
random_below(unsigned limit)
{
	me.random ^= me.random >> 12;
	me.random ^= me.random << 25;
	me.random ^= me.random >> 27;
	return (unsigned)((me.random * 2685821657736338717ULL) >> 33) % limit;
}

static bool write_report(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* One line, whole or not at all: it is shorter than PIPE_BUF. */
static bool
write_report(const char *format, ...)
{
	char line[512];
	va_list arguments;
	int length;

	va_start(arguments, format);
	length = vsnprintf(line, sizeof line - 1, format, arguments);
	va_end(arguments);
	if (length >= (int)sizeof line - 1)
		length = (int)sizeof line - 2;
	line[length++] = '\n';
	return write(me.reports, line, (size_t)length) == length;
}

static void
report_counts(void)
{
	const struct counts *c = &me.counts;

	if (c->delivered + c->refused + c->duplicated + c->disordered + c->damaged + c->astray >
	            0 ||
	    c->lost != 0)
		if (write_report("counts %lld %lld %lld %lld %lld %lld %lld", c->delivered,
		                 c->refused, c->lost, c->duplicated, c->disordered, c->damaged,
		                 c->astray))
			me.counts = (struct counts){0};
	if (me.ends_told != me.ends &&
	    write_report("ends %ld %d %d", (long)me.pid, me.round_heard, me.ends))
		me.ends_told = me.ends;
}

/* ---- every process: it sends ------------------------------------------------- */

/* "pid birth way receiver number round ", and the number's letter so many times */
struct content {
	long pid;
	long long birth;
	int way;
	long receiver;
	unsigned long long number;
	int round; /* 0: a number; otherwise how many there were before this round's pause */
};

static int
send_content(struct messenger *messenger, const struct stream *stream, unsigned long long number,
             int round, size_t filler)
{
	static char data[128 + 65536];
	int used = snprintf(data, 128, "%ld %lld %d %ld %llu %d ", (long)me.pid, me.birth,
	                    stream->way, (long)stream->pid, number, round);

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

/* Most are short; some fill a good part of what the master reads at once. */
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
		if (send_content(messenger, stream, stream->sent + 1, 0, any_size()) == -1) {
			me.counts.refused++;
			return; /* this number is the first of a later turn */
		}
		stream->sent++;
	}
}

/* How many there were. */
static void
tell_ends(struct messenger *messenger, int round)
{
	struct stream *stream;
	int i;

	for (i = 0; i < me.stream_count; i++) {
		stream = &me.streams[i];
		if (stream->listed && stream->round != round &&
		    send_content(messenger, stream, stream->sent, round, 0) == 0)
			stream->round = round;
	}
}

static struct stream *
find_stream(enum way way, pid_t pid)
{
	struct stream *stream;
	int i;

	for (i = 0; i < me.stream_count; i++)
		if (me.streams[i].way == way && me.streams[i].pid == pid)
			return &me.streams[i];
	if (me.stream_count == STREAMS)
		abort(); /* more deaths than SECONDS_MAX allows */
	stream = &me.streams[me.stream_count++];
	*stream = (struct stream){.way = way, .pid = pid};
	return stream;
}

static void
add_stream(enum way way, enum role whose, pid_t pid)
{
	struct stream *stream = find_stream(way, pid);

	stream->whose = whose;
	stream->listed = true;
}

/* These are the pids to write to, of those whom somebody lists. */
static void
list_pids(enum role whose, const pid_t *pids, size_t count)
{
	size_t i;
	int j;

	for (j = 0; j < me.stream_count; j++)
		if (me.streams[j].way == BY_PID && me.streams[j].whose == whose)
			me.streams[j].listed = false;
	for (i = 0; i < count; i++)
		if (pids[i] != me.pid)
			add_stream(BY_PID, whose, pids[i]);
}

static size_t
parse_pids(const char *text, pid_t *pids, size_t most)
{
	size_t count = 0;
	char *end;
	long pid;

	while (count < most && (pid = strtol(text, &end, 10), end != text)) {
		pids[count++] = (pid_t)pid;
		text = end;
	}
	return count;
}

/* The agent knows the apps, and tells them about each other. */
static void
tell_list(struct messenger *agent)
{
	char text[16 * (APPS + 8)] = "";
	size_t i, count, used = 0;
	const pid_t *pids = messenger_opids(agent, &count);

	for (i = 0; i < count && used < sizeof text - 16; i++)
		used += (size_t)snprintf(text + used, sizeof text - used, "%ld ", (long)pids[i]);
	me.list_due = messenger_send_to_app(agent, "soak-pids", text) == -1;
}

static int
on_tick(struct messenger *messenger, void *arg)
{
	int i, first, flooded = random_below(FLOOD_EVERY) == 0 ? 0 : -1;

	(void)arg;
	if (me.list_due)
		tell_list(messenger);
	if (me.talks && !me.quiet && me.stream_count > 0) {
		first = (int)random_below((unsigned)me.stream_count);
		for (i = 0; i < me.stream_count; i++) /* nobody is always the last */
			pump(messenger, &me.streams[(first + i) % me.stream_count],
			     i == flooded ? FLOOD : BURST);
	}
	if (me.quiet)
		tell_ends(messenger, me.round);
	if (clutch_now() >= me.report_at) {
		me.report_at = clutch_now() + REPORT;
		report_counts();
	}
	return 0;
}

/* ---- every process: it hears ------------------------------------------------- */

static void
complain(const char *what, const struct content *content, const struct heard *heard)
{
	if (me.complaints++ < COMPLAINTS)
		write_report("bad %s: %ld heard %llu (round %d) after %llu from %ld, %s", what,
		             (long)me.pid, content->number, content->round, heard->last,
		             (long)heard->pid, way_names[heard->way]);
}

static struct heard *
find_heard(pid_t pid, enum way way)
{
	unsigned at = ((unsigned)pid * WAYS + way) % HEARD;
	int tries = HEARD;

	while (me.heard[at].pid != 0 && (me.heard[at].pid != pid || me.heard[at].way != way)) {
		if (--tries == 0)
			abort(); /* more deaths than SECONDS_MAX allows */
		at = (at + 1) % HEARD;
	}
	me.heard[at].pid = pid;
	me.heard[at].way = way;
	return &me.heard[at];
}

/* Must we hear this one from its beginning? */
static bool
hears_all(const struct content *content)
{
	return content->way == BY_PID || content->way == TO_PARENT || me.birth < content->birth;
}

static void
skip(struct heard *heard, const struct content *content)
{
	unsigned long long gap = content->number - heard->last - 1;

	complain("lost", content, heard);
	me.counts.lost += (long long)gap;
	heard->seen = gap < 63 ? heard->seen << (gap + 1) | 1 : 1;
	heard->last = content->number;
}

/* One of the past: it comes again, or it comes late. */
static void
look_back(struct heard *heard, const struct content *content)
{
	unsigned long long age = heard->last - content->number;

	if (age < 64 && (heard->seen >> age & 1) == 0) {
		complain("out of order", content, heard);
		me.counts.disordered++;
		me.counts.lost -= content->number >= heard->floor; /* it was not lost, then */
		heard->seen |= (uint64_t)1 << age;
	} else {
		complain("duplicated", content, heard);
		me.counts.duplicated++;
	}
}

static void
hear_number(struct heard *heard, const struct content *content)
{
	me.counts.delivered++;
	if (heard->last == 0 && !hears_all(content)) {
		heard->floor = heard->last = content->number;
		heard->seen = 1;
	} else if (content->number == heard->last + 1) {
		heard->last++;
		heard->seen = heard->seen << 1 | 1;
	} else if (content->number > heard->last) {
		skip(heard, content);
	} else {
		look_back(heard, content);
	}
}

static void
hear_end(struct heard *heard, const struct content *content)
{
	bool newcomer = heard->last == 0 && !hears_all(content);

	if (!newcomer && content->number > heard->last) {
		complain("lost at the end", content, heard);
		me.counts.lost += (long long)(content->number - heard->last);
	}
	if (!newcomer && content->number < heard->last) {
		complain("duplicated at the end", content, heard);
		me.counts.duplicated++;
	}
	if (content->number > 0)
		heard->last = content->number;
	if (content->round == heard->round)
		me.counts.duplicated++;
	heard->round = content->round;
	if (content->round == LEAVE)
		return;
	if (content->round > me.round_heard) {
		me.round_heard = content->round;
		me.ends = me.ends_told = 0;
	}
	me.ends++;
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
	content->round = (int)strtol(end, &end, 10);
	if (*end != ' ' || content->pid <= 0 || content->way < 0 || content->way >= WAYS)
		return false;
	for (at = end + 1; *at == (char)('a' + content->number % 26); at++)
		;
	return at == message->data + message->data_length;
}

static int
on_soak(struct messenger *messenger, const struct message *message, void *arg)
{
	struct content content;
	struct heard *heard;

	(void)messenger, (void)arg;
	if (!parse_content(message, &content)) {
		if (me.complaints++ < COMPLAINTS)
			write_report("bad damaged: %ld heard %.60s", (long)me.pid, message->data);
		me.counts.damaged++;
		return 0;
	}
	heard = find_heard((pid_t)content.pid, (enum way)content.way);
	if (content.receiver != 0 && content.receiver != me.pid) {
		complain("astray, it is another pid's", &content, heard);
		me.counts.astray++;
	} else if (content.round == 0) {
		hear_number(heard, &content);
	} else {
		hear_end(heard, &content);
	}
	return 0;
}

/* ---- agent and app ----------------------------------------------------------- */

static int
on_egg_ready(struct messenger *messenger, const struct message *message, void *arg)
{
	(void)messenger, (void)message, (void)arg;
	me.talks = true;
	return 0;
}

/* The master says who is on the other side. */
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

/* The agent says who the apps are. */
static int
on_soak_pids(struct messenger *app, const struct message *message, void *arg)
{
	pid_t pids[APPS + 8];

	(void)app, (void)arg;
	list_pids(ROLE_APP, pids, parse_pids(message->data, pids, APPS + 8));
	return 0;
}

/* The parent orders a pause: "round agent app app ..."; everybody is there, and
 * knows now of everybody. "0": go on. */
static int
on_soak_quiet(struct messenger *messenger, const struct message *message, void *arg)
{
	pid_t numbers[APPS + 8];
	size_t count = parse_pids(message->data, numbers, APPS + 8);

	(void)arg;
	me.quiet = count > 2;
	if (!me.quiet)
		return 0;
	me.round = (int)numbers[0];
	list_pids(ROLE_APP, numbers + 2, count - 2);
	if (messenger_role(messenger) == ROLE_APP)
		list_pids(ROLE_AGENT, numbers + 1, 1);
	return 0;
}

/* SIGTERM: the parent is told, on the pipe and by the cluster, how much it must
 * have heard when this process has ended. */
static int
on_leave(struct messenger *messenger, void *arg)
{
	(void)arg;
	tell_ends(messenger, LEAVE);
	report_counts();
	write_report("left %ld %llu", (long)me.pid, find_stream(TO_PARENT, 0)->sent);
	return 0;
}

static int
open_traffic(struct messenger *messenger)
{
	me.pid = getpid();
	me.birth = clutch_now();
	me.random = (unsigned long long)me.pid * 2654435761U ^ (unsigned long long)me.birth << 20;
	if (messenger_on(messenger, "soak", on_soak, NULL) == -1 ||
	    messenger_set_interval(messenger, TICK, on_tick, NULL) == -1)
		return -1;
	return messenger_once(messenger, "egg-ready", on_egg_ready, NULL);
}

static int
role(struct messenger *messenger, void *arg)
{
	(void)arg;
	if (open_traffic(messenger) == -1 ||
	    messenger_on(messenger, "egg-pids", on_egg_pids, NULL) == -1 ||
	    messenger_on(messenger, "soak-pids", on_soak_pids, NULL) == -1 ||
	    messenger_on(messenger, "soak-quiet", on_soak_quiet, NULL) == -1 ||
	    messenger_before_close(messenger, on_leave, NULL) == -1)
		return -1;
	add_stream(TO_APPS, ROLE_NONE, 0);
	add_stream(TO_PARENT, ROLE_NONE, 0);
	if (messenger_role(messenger) == ROLE_APP)
		add_stream(TO_AGENT, ROLE_NONE, 0);
	return 0;
}

/* ---- the parent: what it knows of the others --------------------------------- */

struct victim {
	pid_t pid;
	bool is_agent, ready, dead, exited; /* exited: with 0 */
	int sentence;                       /* SIGKILL or SIGTERM, or 0 */
	int64_t sentenced_at, died_at;
	int64_t continue_at; /* stopped until then; 0: it is not */
	long long left;      /* what it has sent us, as it says; -1: nothing said */
	int ends;            /* it has heard, in the present round */
};

enum { VICTIMS = 4096, LOG_LINES = 24, FAILURES = 16 };

static struct {
	struct messenger *messenger;
	pid_t master;
	int log, reports; /* to be read */
	int64_t start, deadline;
	bool started, ended;
	int status; /* of the master, when it has ended */
	int64_t started_at;

	struct victim victims[VICTIMS];
	int victim_count;
	int deaths[2][2]; /* of apps and agents, by SIGKILL and SIGTERM */
	int starts, stops, zombies, orphans, complaints;
	struct counts counts;
	long descriptors[2], memory[2]; /* in the first and the second pause */
	int64_t paused_at;

	char lines[LOG_LINES][256]; /* the master's last ones */
	int line_count;
	char failures[FAILURES][300];
	int failure_count;
} soak;

static void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

static void
fail(const char *format, ...)
{
	va_list arguments;

	if (soak.failure_count == FAILURES)
		return;
	va_start(arguments, format);
	vsnprintf(soak.failures[soak.failure_count++], sizeof soak.failures[0], format, arguments);
	va_end(arguments);
}

static struct victim *
find_victim(pid_t pid)
{
	struct victim *victim;
	int i;

	for (i = soak.victim_count; i > 0; i--)
		if (soak.victims[i - 1].pid == pid)
			return &soak.victims[i - 1];
	if (soak.victim_count == VICTIMS)
		abort(); /* more deaths than SECONDS_MAX allows */
	victim = &soak.victims[soak.victim_count++];
	*victim = (struct victim){.pid = pid, .left = -1};
	return victim;
}

/* Whom the parent writes to by pid: those who are ready and not about to die. */
static void
list_victims(void)
{
	pid_t pids[APPS + 8];
	size_t count = 0;
	int i;

	for (i = 0; i < soak.victim_count && count < APPS + 8; i++)
		if (soak.victims[i].ready && !soak.victims[i].dead)
			pids[count++] = soak.victims[i].pid;
	list_pids(ROLE_PARENT, pids, count);
}

static void
on_death(struct victim *victim, const char *line)
{
	victim->dead = true;
	victim->died_at = clutch_now();
	victim->exited = strstr(line, "code: 0") != NULL;
	if (victim->sentence == 0)
		fail("a death that nobody ordered: %s", line);
	else
		soak.deaths[victim->is_agent][victim->sentence == SIGTERM]++;
}

/* "[master] app_worker#7:1234 start", "... started ...", "... died (...)" */
static void
on_log(const char *line)
{
	struct victim *victim;
	char who[16], what[16];
	long pid;
	int used = 0;

	snprintf(soak.lines[soak.line_count++ % LOG_LINES], sizeof soak.lines[0], "%s", line);
	if (sscanf(line, "[master] %15[a-z_]#%*d:%ld %15s%n", who, &pid, what, &used) != 3)
		return;
	victim = find_victim((pid_t)pid);
	victim->is_agent = strcmp(who, "agent_worker") == 0;
	if (strcmp(what, "start") == 0 && line[used] == '\0')
		soak.starts++;
	else if (strncmp(what, "started", strlen("started")) == 0) /* or "started," */
		victim->ready = true;
	else if (strcmp(what, "died") == 0)
		on_death(victim, line);
	list_victims();
}

static void
on_report(const char *line)
{
	struct counts *all = &soak.counts, more;
	long long sent;
	int round, ends;
	long pid;

	if (sscanf(line, "counts %lld %lld %lld %lld %lld %lld %lld", &more.delivered,
	           &more.refused, &more.lost, &more.duplicated, &more.disordered, &more.damaged,
	           &more.astray) == 7) {
		all->delivered += more.delivered;
		all->refused += more.refused;
		all->lost += more.lost;
		all->duplicated += more.duplicated;
		all->disordered += more.disordered;
		all->damaged += more.damaged;
		all->astray += more.astray;
	} else if (sscanf(line, "ends %ld %d %d", &pid, &round, &ends) == 3) {
		if (pid != me.pid && round == me.round)
			find_victim((pid_t)pid)->ends = ends;
	} else if (sscanf(line, "left %ld %lld", &pid, &sent) == 2) {
		find_victim((pid_t)pid)->left = sent;
	} else if (soak.complaints++ < COMPLAINTS) { /* "bad ..."; all of them are counted */
		fail("%s", line);
	}
}

/* ---- the parent: its loop ---------------------------------------------------- */

struct lines {
	void (*on_line)(const char *line);
	size_t length;
	char text[8192];
};

static int
on_readable(struct messenger *messenger, int descriptor, short revents, void *arg)
{
	struct lines *lines = arg;
	ssize_t count;
	char *end;

	(void)revents;
	count = read(descriptor, lines->text + lines->length,
	             sizeof lines->text - 1 - lines->length);
	if (count == -1)
		return 0;
	if (count == 0) {
		messenger_unwatch(messenger, descriptor);
		return 0;
	}
	lines->length += (size_t)count;
	lines->text[lines->length] = '\0';
	while ((end = strchr(lines->text, '\n')) != NULL) {
		*end = '\0';
		lines->on_line(lines->text);
		lines->length -= (size_t)(end + 1 - lines->text);
		memmove(lines->text, end + 1, lines->length + 1);
	}
	if (lines->length == sizeof lines->text - 1)
		lines->length = 0; /* no line of ours is that long */
	return 0;
}

/* One turn; false: the master has ended, or the time is over. */
static bool
turn(void)
{
	if (messenger_step(soak.messenger, 10) == -1)
		fail("the parent's loop: %s", strerror(errno));
	if (!soak.ended && waitpid(soak.master, &soak.status, WNOHANG) == soak.master)
		soak.ended = true;
	return !soak.ended && clutch_now() < soak.deadline;
}

static bool
wait_until(bool (*condition)(void), int limit)
{
	int64_t until = clutch_now() + limit;

	while (!condition())
		if (!turn() || clutch_now() >= until)
			return condition();
	return true;
}

static bool
is_started(void)
{
	return me.talks;
}

/* ---- the parent: the storm --------------------------------------------------- */

/* Spare the agent before a health check: without an agent at three in a row the
 * master gives up, as it should. */
static bool
is_check_near(void)
{
	return (clutch_now() - soak.started_at) % CHECK_INTERVAL > CHECK_INTERVAL - CHECK_SPARE;
}

/* Anybody who lives, is not sentenced yet, and (to be stopped) is not stopped. */
static struct victim *
any_victim(bool to_die)
{
	struct victim *victim, *found[APPS * 4];
	unsigned count = 0;
	int i;

	for (i = 0; i < soak.victim_count && count < APPS * 4; i++) {
		victim = &soak.victims[i];
		if (victim->dead || victim->sentence != 0 ||
		    (to_die ? victim->is_agent && is_check_near() : victim->continue_at != 0))
			continue;
		found[count++] = victim;
	}
	return count > 0 ? found[random_below(count)] : NULL;
}

static void
sentence_one(void)
{
	struct victim *victim = any_victim(true);

	if (victim == NULL)
		return;
	victim->sentence = random_below(2) == 0 ? SIGKILL : SIGTERM;
	victim->sentenced_at = clutch_now();
	kill(victim->pid, victim->sentence);
}

static void
stop_one(void)
{
	struct victim *victim = any_victim(false);

	if (victim == NULL || kill(victim->pid, SIGSTOP) == -1)
		return;
	victim->continue_at = clutch_now() + STOP_MIN + random_below(STOP_MAX - STOP_MIN + 1);
	soak.stops++;
}

static void
continue_those_due(int64_t now)
{
	struct victim *victim;
	int i;

	for (i = 0; i < soak.victim_count; i++) {
		victim = &soak.victims[i];
		if (victim->continue_at == 0 || victim->continue_at > now)
			continue;
		victim->continue_at = 0;
		if (!victim->dead)
			kill(victim->pid, SIGCONT);
	}
}

static void
storm(int64_t milliseconds)
{
	int64_t now = clutch_now(), until = now + milliseconds;
	int64_t stop_at = now, death_at = now + DEATH_EVERY;

	while (now < until && turn()) {
		now = clutch_now();
		continue_those_due(now);
		if (now >= stop_at) {
			stop_one();
			stop_at = now + STOP_EVERY + random_below(STOP_JITTER);
		}
		if (now >= death_at) {
			sentence_one();
			death_at = now + DEATH_EVERY + random_below(DEATH_JITTER);
		}
	}
	continue_those_due(INT64_MAX);
}

/* ---- the parent: the pauses -------------------------------------------------- */

/* Everybody is there, is ready, and nobody is about to die. */
static bool
is_complete(void)
{
	int i, apps = 0, agents = 0;

	for (i = 0; i < soak.victim_count; i++) {
		if (soak.victims[i].dead)
			continue;
		if (!soak.victims[i].ready || soak.victims[i].sentence != 0)
			return false;
		apps += !soak.victims[i].is_agent;
		agents += soak.victims[i].is_agent;
	}
	return apps == APPS && agents == 1;
}

/* How many ends a process hears in a pause: from each other app by pid and to
 * apps, from itself to apps, from agent and parent by pid and to apps. */
static int
ends_of(const struct victim *victim)
{
	return victim->is_agent ? 2 * APPS + 2 : 2 * (APPS - 1) + 1 + 2 + 2;
}

static bool
is_quiet(void)
{
	int i;

	for (i = 0; i < soak.victim_count; i++)
		if (!soak.victims[i].dead && soak.victims[i].ends < ends_of(&soak.victims[i]))
			return false;
	return me.round_heard == me.round && me.ends >= APPS + 1;
}

static void
explain_noise(void)
{
	int i;

	for (i = 0; i < soak.victim_count; i++)
		if (!soak.victims[i].dead && soak.victims[i].ends < ends_of(&soak.victims[i]))
			fail("%s %ld has heard the ends of %d streams of %d",
			     soak.victims[i].is_agent ? "agent" : "app", (long)soak.victims[i].pid,
			     soak.victims[i].ends, ends_of(&soak.victims[i]));
	if (me.ends < APPS + 1)
		fail("the parent has heard the ends of %d streams of %d", me.ends, APPS + 1);
}

static void
order(const char *data)
{
	while (messenger_broadcast(soak.messenger, "soak-quiet", data) == -1)
		if (!turn())
			return;
}

static void
compose_order(char *text, size_t size, int round)
{
	size_t used = (size_t)snprintf(text, size, "%d", round);
	int i, pass;

	for (pass = 0; pass < 2; pass++) /* the agent first */
		for (i = 0; i < soak.victim_count; i++)
			if (!soak.victims[i].dead && soak.victims[i].is_agent == (pass == 0) &&
			    used < size - 16)
				used += (size_t)snprintf(text + used, size - used, " %ld",
				                         (long)soak.victims[i].pid);
}

static bool
pause_storm(int round)
{
	char text[16 * (APPS + 8)];
	int i;

	if (!wait_until(is_complete, QUIET_LIMIT)) {
		fail("pause %d: not everybody who died is back", round);
		return false;
	}
	for (i = 0; i < soak.victim_count; i++)
		soak.victims[i].ends = 0;
	compose_order(text, sizeof text, round);
	me.quiet = true;
	me.round = round;
	order(text);
	if (!wait_until(is_quiet, QUIET_LIMIT)) {
		fail("pause %d: not everything has arrived", round);
		explain_noise();
		return false;
	}
	return true;
}

static void
resume(void)
{
	order("0");
	me.quiet = false;
}

/* ---- the parent: what the kernel knows --------------------------------------- */

static long
count_descriptors(pid_t pid)
{
	char path[64];
	long count = 0;
	DIR *folder;

	snprintf(path, sizeof path, "/proc/%ld/fd", (long)pid);
	folder = opendir(path);
	if (folder == NULL)
		return -1;
	while (readdir(folder) != NULL)
		count++;
	closedir(folder);
	return count - 2; /* . and .. */
}

/* In KiB. */
static long
memory_of(pid_t pid)
{
	char path[64], line[256];
	long kib = -1;
	FILE *file;

	snprintf(path, sizeof path, "/proc/%ld/status", (long)pid);
	file = fopen(path, "r");
	if (file == NULL)
		return -1;
	while (kib == -1 && fgets(line, sizeof line, file) != NULL)
		if (sscanf(line, "VmRSS: %ld", &kib) != 1)
			kib = -1;
	fclose(file);
	return kib;
}

/* The state of a process, 'Z' for a zombie, if it is a child of that parent, or 0. */
static char
state_of_child(const char *pid, pid_t parent)
{
	char path[300], line[512], state = 0;
	long ppid = 0;
	const char *end;
	FILE *file;

	snprintf(path, sizeof path, "/proc/%s/stat", pid);
	file = fopen(path, "r");
	if (file == NULL)
		return 0;
	if (fgets(line, sizeof line, file) != NULL && (end = strrchr(line, ')')) != NULL &&
	    sscanf(end, ") %c %ld", &state, &ppid) != 2)
		ppid = 0;
	fclose(file);
	return ppid == parent ? state : '\0';
}

/* Count the children of a process; with a signal: of ours, and send it to them. */
static int
walk_children(pid_t parent, int *zombies, int number)
{
	DIR *folder = opendir("/proc");
	struct dirent *entry;
	int children = 0;
	char state;

	*zombies = 0;
	while (folder != NULL && (entry = readdir(folder)) != NULL) {
		if (!isdigit((unsigned char)entry->d_name[0]))
			continue;
		state = state_of_child(entry->d_name, parent);
		children += state != 0;
		*zombies += state == 'Z';
		if (state != 0 && number != 0)
			kill((pid_t)strtol(entry->d_name, NULL, 10), number);
	}
	if (folder != NULL)
		closedir(folder);
	return children;
}

/* The master gives its empty queues' memory back when they have been idle for a
 * moment. */
static bool
has_rested(void)
{
	return clutch_now() - soak.paused_at >= 2000;
}

static void
look_at_master(int pause)
{
	int children, zombies;

	soak.paused_at = clutch_now();
	wait_until(has_rested, 5000);
	soak.descriptors[pause] = count_descriptors(soak.master);
	soak.memory[pause] = memory_of(soak.master);
	children = walk_children(soak.master, &zombies, 0);
	soak.zombies += zombies;
	if (zombies > 0)
		fail("pause %d: the master has %d zombies", pause + 1, zombies);
	if (children - zombies != APPS + 1)
		fail("pause %d: the master has %d living children, not %d", pause + 1,
		     children - zombies, APPS + 1);
}

/* ---- the parent: the end ----------------------------------------------------- */

static bool
is_ended(void)
{
	return soak.ended;
}

static void
end_master(void)
{
	kill(soak.master, SIGTERM);
	if (!wait_until(is_ended, END_LIMIT)) {
		fail("the master has not ended");
		return;
	}
	if (!WIFEXITED(soak.status) || WEXITSTATUS(soak.status) != 0)
		fail("the master ended with %s %d", WIFEXITED(soak.status) ? "code" : "signal",
		     WIFEXITED(soak.status) ? WEXITSTATUS(soak.status) : WTERMSIG(soak.status));
}

/* Whom the master has left, dead or alive, is ours now. Nobody stays. */
static void
end_everybody(void)
{
	int ignored, left = soak.ended ? 0 : -1; /* the master itself is no orphan */
	pid_t pid;

	for (;;) {
		pid = waitpid(-1, NULL, WNOHANG);
		if (pid == -1)
			break;
		if (pid > 0) {
			left++;
			continue;
		}
		walk_children(getpid(), &ignored, SIGKILL);
		poll(NULL, 0, 5);
	}
	soak.orphans = left;
	if (left > 0)
		fail("the master has left %d processes", left);
}

/* What an app says that it has sent us before it left, with 0: is it all here? */
static void
check_those_who_left(void)
{
	const struct victim *victim;
	unsigned long long last;
	int i;

	for (i = 0; i < soak.victim_count; i++) {
		victim = &soak.victims[i];
		if (!victim->exited || victim->left < 0)
			continue;
		last = find_heard(victim->pid, TO_PARENT)->last;
		if ((long long)last == victim->left)
			continue;
		fail("%ld left after %lld messages to the parent, %lld ms after its SIGTERM: %llu "
		     "were heard",
		     (long)victim->pid, victim->left,
		     (long long)(victim->died_at - victim->sentenced_at), last);
		soak.counts.lost += victim->left - (long long)last;
	}
}

static void
judge(bool measured)
{
	const struct counts *c = &soak.counts;
	long growth = soak.memory[1] - soak.memory[0];

	if (c->lost != 0 || c->duplicated + c->disordered + c->damaged + c->astray > 0)
		fail("messages: %lld lost, %lld duplicated, %lld out of order, %lld damaged, "
		     "%lld astray",
		     c->lost, c->duplicated, c->disordered, c->damaged, c->astray);
	if (c->delivered == 0)
		fail("no message was delivered");
	if (!measured)
		return;
	if (soak.descriptors[1] != soak.descriptors[0])
		fail("descriptors of the master: %ld, then %ld", soak.descriptors[0],
		     soak.descriptors[1]);
	if (MEMORY_COUNTS && growth > MEMORY_GROWTH)
		fail("memory of the master: %ld KiB more, where %d are allowed", growth,
		     MEMORY_GROWTH);
}

static int
print_report(unsigned long seed)
{
	const struct counts *c = &soak.counts;
	double seconds = (double)(clutch_now() - soak.start) / 1000;
	int i;

	printf("%-14s%.1f, seed %lu\n", "seconds", seconds, seed);
	printf("%-14s%lld, %.0f per second; %lld sends were refused for a while\n", "delivered",
	       c->delivered, (double)c->delivered / seconds, c->refused);
	printf("%-14s%d apps by SIGKILL, %d by SIGTERM; %d agents by SIGKILL, %d by SIGTERM\n",
	       "deaths", soak.deaths[0][0], soak.deaths[0][1], soak.deaths[1][0],
	       soak.deaths[1][1]);
	printf("%-14s%d\n", "re-forks", soak.starts - APPS - 1);
	printf("%-14s%d, of %d to %d ms\n", "stops", soak.stops, STOP_MIN, STOP_MAX);
	printf("%-14s%lld lost, %lld duplicated, %lld out of order, %lld damaged, %lld astray\n",
	       "violations", c->lost, c->duplicated, c->disordered, c->damaged, c->astray);
	printf("%-14s%ld KiB, then %ld KiB (at most %d more)\n", "memory", soak.memory[0],
	       soak.memory[1], MEMORY_GROWTH);
	printf("%-14s%ld, then %ld\n", "descriptors", soak.descriptors[0], soak.descriptors[1]);
	printf("%-14s%d zombies, %d orphans\n", "left", soak.zombies, soak.orphans);
	for (i = 0; soak.failure_count > 0 && i < LOG_LINES && i < soak.line_count; i++)
		printf("  %s\n",
		       soak.lines[soak.line_count < LOG_LINES ? i
		                                              : (soak.line_count + i) % LOG_LINES]);
	for (i = 0; i < soak.failure_count; i++)
		printf("  - %s\n", soak.failures[i]);
	if (soak.failure_count == 0)
		puts("soak: ok");
	else
		printf("soak: FAILED, for %d reasons, the last: %s\n", soak.failure_count,
		       soak.failures[soak.failure_count - 1]);
	return soak.failure_count > 0;
}

/* ---- the parent: the beginning ----------------------------------------------- */

/* Told to end, or something in here hangs: nobody may stay. */
static void
on_alarm(int number)
{
	static const char message[] = "soak: FAILED it was ended before its time, or hangs\n";
	int i;

	(void)number;
	kill(soak.master, SIGKILL);
	for (i = 0; i < soak.victim_count; i++)
		if (!soak.victims[i].dead)
			kill(-soak.victims[i].pid, SIGKILL);
	_exit(write(STDOUT_FILENO, message, sizeof message - 1) >= 0 ? 1 : 2);
}

static void
master_process(const int *log, const int *reports, const int *pair)
{
	struct options options = {.agent = role,
	                          .app = role,
	                          .name = "soak",
	                          .workers = APPS,
	                          .env = "prod",
	                          .parent = pair[1]};

	prctl(PR_SET_PDEATHSIG, SIGTERM); /* nobody stays, even if the parent is killed */
#ifdef __GLIBC__
	/* What is freed goes back, or its memory would be that of its longest queues. */
	mallopt(M_MMAP_THRESHOLD, 64 * 1024);
	mallopt(M_TRIM_THRESHOLD, 64 * 1024);
#endif
	close(pair[0]);
	close(log[0]);
	close(reports[0]);
	dup2(log[1], STDOUT_FILENO);
	dup2(log[1], STDERR_FILENO);
	close(log[1]);
	exit(start_cluster(&options));
}

static int
open_cluster(void)
{
	int log[2], reports[2], pair[2];

	if (pipe(log) == -1 || pipe(reports) == -1 ||
	    socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == -1 ||
	    fcntl(reports[1], F_SETFL, O_NONBLOCK) == -1 || prctl(PR_SET_CHILD_SUBREAPER, 1) == -1)
		return -1;
	me.reports = reports[1];
	fflush(NULL);
	soak.master = fork();
	if (soak.master == 0)
		master_process(log, reports, pair);
	close(log[1]);
	close(pair[1]);
	soak.log = log[0];
	soak.reports = reports[0];
	soak.messenger = soak.master > 0 ? messenger_open(pair[0], ROLE_PARENT) : NULL;
	return soak.messenger != NULL ? 0 : -1;
}

static int
open_parent(int seconds, unsigned long seed)
{
	static struct lines log = {.on_line = on_log}, reports = {.on_line = on_report};
	static const int ends[] = {SIGALRM, SIGTERM, SIGINT, SIGHUP};
	size_t i;

	soak.start = clutch_now();
	soak.deadline = soak.start + ((int64_t)seconds + 17) * 1000;
	if (open_cluster() == -1 || open_traffic(soak.messenger) == -1 ||
	    messenger_watch(soak.messenger, soak.log, POLLIN, on_readable, &log) == -1 ||
	    messenger_watch(soak.messenger, soak.reports, POLLIN, on_readable, &reports) == -1)
		return -1;
	for (i = 0; i < sizeof ends / sizeof ends[0]; i++)
		signal(ends[i], on_alarm);
	alarm((unsigned)seconds + 19);
	me.birth = soak.start; /* older than everybody */
	me.random = seed * 2654435761U + 1;
	add_stream(TO_APPS, ROLE_NONE, 0);
	add_stream(TO_AGENT, ROLE_NONE, 0);
	return 0;
}

/* True: both pauses were reached. */
static bool
run(int seconds)
{
	int warm_up = seconds > 18 ? seconds / 6 : 3;

	if (!wait_until(is_started, START_LIMIT)) {
		fail("the cluster has not started");
		return false;
	}
	soak.started_at = clutch_now();
	storm((int64_t)warm_up * 1000);
	if (!pause_storm(1))
		return false;
	look_at_master(0);
	resume();
	storm((int64_t)(seconds - warm_up) * 1000);
	if (!pause_storm(2))
		return false;
	look_at_master(1);
	return true;
}

int
main(int argc, char **argv)
{
	int seconds = argc > 1 ? atoi(argv[1]) : 60;
	unsigned long seed = argc > 2 ? strtoul(argv[2], NULL, 10) : (unsigned long)clutch_now();
	bool measured;

	if (seconds < 5 || seconds > SECONDS_MAX) {
		fprintf(stderr, "usage: soak [SECONDS, from 5 to %d] [SEED]\n", SECONDS_MAX);
		return 2;
	}
	if (open_parent(seconds, seed) == -1) {
		fprintf(stderr, "soak: FAILED it cannot start: %s\n", strerror(errno));
		return 1;
	}
	measured = run(seconds);
	if (soak.ended)
		fail("the master ended by itself");
	else
		end_master();
	end_everybody();
	turn(); /* the last reports */
	check_those_who_left();
	report_counts();
	turn();
	judge(measured);
	messenger_close(soak.messenger);
	return print_report(seed);
}
