/*
 * The parent: the storm. Signals come all the time. The parts of the storm are dealt like
 * cards: each of them once, and then again in another order.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "soak.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
	/* Milliseconds. Deaths are this rare because the 60th re-fork within a minute would
	 * have to wait, which this storm does not test. */
	DEATH_EVERY = 1000,
	DEATH_JITTER = 1200,
	STOP_EVERY = 50, /* from one SIGSTOP to the next, and up to STOP_JITTER more */
	STOP_JITTER = 400,
	STOP_MIN = 10,
	STOP_MAX = 500,
	CHECK_INTERVAL = 10000, /* of the master's health check; the agent is spared */
	CHECK_SPARE = 2500,     /* for this long before the check */

	PART_EVERY = 6000, /* at the most */
	PART_AGAIN = 4000, /* how long parts that have not occurred are tried again at the end */
	LOG_TRICKLE_LONG = 1000, /* at the most */
	LOG_STOPPED_LONG = 4000, /* longer than SILENCE_LIMIT */
	SLOW_LONG = 1500,
	HELPERS_MOST = 8,   /* of one app worker */
	FORKS_SHORT = 1200, /* forks fail for this long, and in a long life for more */
	FORKS_LONG = 5000,
	HELD = 8,             /* requests during a reload */
	RELOAD_DELAY = 250,   /* in which they are accepted */
	BURST_LONG = 1000,    /* of HTTP load */
	BURST_CONNECTIONS = 4 /* of wrk */
};

const char *const part_names[PARTS] = {"full log pipe", "helper",      "reload", "failed forks",
                                       "stray helper",  "slow reader", "group",  "HTTP load"};

static bool forks_can_fail, long_life;
static char wrk[256]; /* the path of wrk; "": wrk is not installed */
static struct rlimit fork_limit;

/* ---- signals ---------------------------------------------------------------- */

/* The agent is spared before a health check: if there is no agent at three checks in a
 * row, the master gives up, as it should. */
static bool
is_check_near(void)
{
	return (clutch_now() - soak.started_at) % CHECK_INTERVAL > CHECK_INTERVAL - CHECK_SPARE;
}

/* Choose a process that is ready and is not about to end; a process to be stopped is not
 * stopped yet. Returns its index, or -1. */
static int
any_victim(bool to_die, bool only_app)
{
	const struct record *record;
	int i, found[APPS * 4];
	unsigned count = 0;

	for (i = 1; i < shared->record_count && i < RECORDS && count < APPS * 4; i++) {
		record = &shared->records[i];
		if (record->ready_at == 0 || record->left_at != 0 || soak.victims[i].dead ||
		    soak.victims[i].sentence != 0)
			continue;
		if (record->role == ROLE_AGENT && (only_app || (to_die && is_check_near())))
			continue;
		if (!to_die && soak.victims[i].continue_at != 0)
			continue;
		if (to_die && record->pid == soak.leaves_group)
			continue;
		found[count++] = i;
	}
	return count > 0 ? found[random_below(count)] : -1;
}

static void
sentence(int index, int number, bool by_us)
{
	struct victim *victim = &soak.victims[index];

	victim->sentence = number;
	victim->sentenced_at = clutch_now();
	if (number == SIGKILL && shared->records[index].role == ROLE_APP)
		soak.killed_at = victim->sentenced_at;
	if (by_us)
		kill(shared->records[index].pid, number);
}

static void
stop_one(void)
{
	int index = any_victim(false, false);

	if (index == -1 || kill(shared->records[index].pid, SIGSTOP) == -1)
		return;
	soak.victims[index].continue_at =
		clutch_now() + STOP_MIN + random_below(STOP_MAX - STOP_MIN + 1);
	soak.totals.stops++;
}

static void
continue_those_due(int64_t now)
{
	struct victim *victim;
	int i;

	for (i = 1; i < shared->record_count && i < RECORDS; i++) {
		victim = &soak.victims[i];
		if (victim->continue_at == 0 || victim->continue_at > now)
			continue;
		victim->continue_at = 0;
		if (!victim->dead)
			kill(shared->records[i].pid, SIGCONT);
	}
}

void
continue_all(void)
{
	continue_those_due(INT64_MAX);
}

/* ---- a log that is not read ------------------------------------------------- */

static int
on_log(struct messenger *parent, int descriptor, short revents, void *arg)
{
	static char text[8192];
	static size_t length;
	ssize_t count = read(descriptor, text + length, sizeof text - 1 - length);
	char *end;

	(void)parent, (void)revents, (void)arg;
	if (count <= 0)
		return 0;
	length += (size_t)count;
	text[length] = '\0';
	while ((end = strchr(text, '\n')) != NULL) {
		*end = '\0';
		log_line(text);
		length -= (size_t)(end + 1 - text);
		memmove(text, end + 1, length + 1);
	}
	if (length == sizeof text - 1)
		length = 0; /* no line of ours is that long */
	return 0;
}

void
log_watch(void)
{
	messenger_watch(soak.messenger, soak.log[0], POLLIN, on_log, NULL);
}

/* A process that writes into the same pipe as the master, and blocks there. Each write
 * takes a whole page, as much as one read of ours makes room for. So when the master has
 * found room by poll, another process has often taken it before the master writes. */
static void
chatter(void)
{
	char text[4096];

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	close_descriptors(soak.log[1], -1);
	memset(text, CHATTER, sizeof text - 1);
	text[sizeof text - 1] = '\n';
	while (write(soak.log[1], text, sizeof text) > 0)
		;
	_exit(0);
}

static bool
start_log(void)
{
	int i;

	if (soak.log_mode != LOG_READ)
		return false;
	for (i = 0; i < CHATTERS; i++) {
		soak.chatters[i] = fork();
		if (soak.chatters[i] == 0)
			chatter();
	}
	messenger_unwatch(soak.messenger, soak.log[0]);
	soak.log_mode = LOG_TRICKLE;
	soak.log_next_at = clutch_now() + LOG_TRICKLE_LONG;
	return true;
}

static void
end_log(void)
{
	int i;

	for (i = 0; i < CHATTERS; i++) {
		if (soak.chatters[i] > 0)
			kill(soak.chatters[i], SIGKILL);
		soak.chatters[i] = 0;
	}
	if (soak.log_mode != LOG_READ)
		log_watch();
	soak.log_mode = LOG_READ;
}

/* First a page is read each turn, while the master has much to say (SIGUSR1: its table).
 * Then, at a moment at which the master is writing, if there is one, nothing is read. */
static void
turn_log(int64_t now)
{
	char text[4096];

	if (soak.log_mode == LOG_READ)
		return;
	if (soak.log_mode == LOG_TRICKLE) {
		if (read(soak.log[0], text, sizeof text) > 0 && !soak.ended)
			kill(soak.master, SIGUSR1);
		if (now >= soak.log_next_at || process_writes_pipe(soak.master)) {
			soak.log_mode = LOG_STOPPED;
			soak.log_next_at = now + LOG_STOPPED_LONG;
		}
	} else if (now >= soak.log_next_at) {
		soak.totals.logs++;
		end_log();
	}
}

/* ---- orders to one app worker ------------------------------------------------ */

static bool
start_helper(bool is_stray)
{
	int index = any_victim(true, true);
	struct record *record;

	if (index == -1)
		return false;
	record = &shared->records[index];
	record->order_signal = random_below(4) == 0 ? SIGTERM : SIGKILL;
	record->order_count = 1 + random_below(HELPERS_MOST);
	record->order_stubborn = random_below(2) == 0;
	sentence(index, record->order_signal, false);
	record->order = is_stray ? ORDER_STRAY : ORDER_HELPER;
	return true;
}

static bool
start_slow(void)
{
	int index = any_victim(true, true);

	if (index == -1)
		return false;
	soak.slow = shared->records[index].pid;
	shared->records[index].order_until = clutch_now() + SLOW_LONG;
	shared->records[index].order = ORDER_SLOW;
	soak.totals.slow++;
	return true;
}

/* ---- reloads ----------------------------------------------------------------- */

static bool
start_reload(void)
{
	if (soak.reload_at != 0)
		return false;
	pages_ask(0, HELD);
	soak.reload_at = clutch_now() + RELOAD_DELAY;
	return true;
}

/* The master must signal a worker even if it has left its process group. */
static bool
start_group(void)
{
	int index = any_victim(true, true);

	if (index == -1 || !start_reload())
		return false;
	soak.leaves_group = shared->records[index].pid;
	shared->records[index].order = ORDER_GROUP;
	return true;
}

static void
turn_reload(int64_t now)
{
	if (soak.reload_at == 0 || now < soak.reload_at)
		return;
	soak.reload_at = 0;
	soak.totals.reloads++;
	if (!soak.ended)
		kill(soak.master, SIGUSR2);
}

/* ---- forks that fail ---------------------------------------------------------- */

/* The limit does not hold for root: so the cluster then runs as an ordinary user. Called in the
 * master, before it starts. False: the cluster stays root's. */
bool
prepare_user(void)
{
	return geteuid() != 0 || (setgid(65534) == 0 && setuid(65534) == 0);
}

/* Set the master's limit from a process of the same user: that needs no privilege.
 * Returns 0 or an errno. */
static int
limit_forks(const struct rlimit *limit)
{
	int status = 0, error;
	pid_t pid = fork();

	if (pid == 0) {
		error = prepare_user() && prlimit(soak.master, RLIMIT_NPROC, limit, NULL) == 0
		                ? 0
		                : errno;
		_exit(error);
	}
	if (pid == -1 || waitpid(pid, &status, 0) == -1)
		return errno;
	return WIFEXITED(status) ? WEXITSTATUS(status) : EINTR;
}

static bool
start_forks(void)
{
	struct rlimit none;
	int i, index, error;

	if (soak.forks_until != 0 || part_skipped(PART_FORKS) != NULL)
		return false;
	getrlimit(RLIMIT_NPROC, &fork_limit); /* the master has inherited it */
	none = (struct rlimit){0, fork_limit.rlim_max};
	error = limit_forks(&none);
	if (error != 0) {
		fail("cannot set RLIMIT_NPROC of the master: %s", strerror(error));
		return false;
	}
	soak.forks_until = clutch_now() + FORKS_SHORT + (long_life ? random_below(FORKS_LONG) : 0);
	for (i = 0; i < 2; i++)
		if ((index = any_victim(true, i == 0)) != -1)
			sentence(index, SIGKILL, true);
	return true;
}

static void
end_forks(void)
{
	if (soak.forks_until != 0 && !soak.ended)
		limit_forks(&fork_limit);
	soak.forks_until = 0;
}

static void
turn_forks(int64_t now)
{
	int zombies;

	if (soak.forks_until == 0 || now < soak.forks_until)
		return;
	if (process_children(soak.master, &zombies, 0) - zombies < APPS + 1)
		soak.totals.failed_forks++;
	end_forks();
}

/* ---- HTTP load ------------------------------------------------------------------ */

static bool
find_wrk(void)
{
	char *path = getenv("PATH"), *at, *end;

	for (at = path; wrk[0] == '\0' && at != NULL && *at != '\0'; at = *end ? end + 1 : end) {
		end = at + strcspn(at, ":");
		snprintf(wrk, sizeof wrk, "%.*s/wrk", (int)(end - at), at);
		if (access(wrk, X_OK) == -1)
			wrk[0] = '\0';
	}
	return wrk[0] != '\0';
}

static void
run_wrk(void)
{
	char url[64], connections[16];
	int nowhere = open("/dev/null", O_RDWR);

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	setpgid(0, 0);
	close_descriptors(nowhere, -1);
	dup2(nowhere, STDOUT_FILENO);
	dup2(nowhere, STDERR_FILENO);
	snprintf(url, sizeof url, "http://127.0.0.1:%d/", soak.port);
	snprintf(connections, sizeof connections, "-c%d", BURST_CONNECTIONS);
	execl(wrk, wrk, "-t1", connections, "-d60s", url, (char *)NULL);
	_exit(127);
}

static bool
start_http(void)
{
	if (soak.burst_until != 0)
		return false;
	soak.burst_until = clutch_now() + BURST_LONG;
	if (find_wrk()) {
		soak.load = fork();
		if (soak.load == 0)
			run_wrk();
	}
	return true;
}

static void
end_http(void)
{
	if (soak.load > 0)
		kill(soak.load, SIGKILL);
	soak.load = 0;
	soak.burst_until = 0;
}

/* Without wrk our own clients are the load. */
static void
turn_http(int64_t now)
{
	if (soak.is_storm)
		pages_ask(soak.burst_until != 0 && soak.load == 0 ? REQUESTS / 2 : 2, 0);
	if (soak.burst_until != 0 && now >= soak.burst_until)
		end_http();
}

/* ---- the parts -------------------------------------------------------------------- */

static bool
start_part(enum part part)
{
	switch (part) {
	case PART_LOG:
		return start_log();
	case PART_HELPER:
	case PART_STRAY:
		return start_helper(part == PART_STRAY);
	case PART_SLOW:
		return start_slow();
	case PART_FORKS:
		return start_forks();
	case PART_RELOAD:
		return start_reload();
	case PART_GROUP:
		return start_group();
	case PART_HTTP:
		return start_http();
	case PARTS:
		break;
	}
	return false;
}

bool
part_has_occurred(enum part part)
{
	struct totals all = totals_now();

	switch (part) {
	case PART_LOG:
		return all.logs > 0;
	case PART_HELPER:
		return all.helpers > 0;
	case PART_STRAY:
		return all.strays > 0;
	case PART_SLOW:
		return all.slow > 0;
	case PART_FORKS:
		return all.failed_forks > 0;
	case PART_RELOAD:
		return all.replaced > 0 && all.held > 0;
	case PART_GROUP:
		return all.groups > 0;
	case PART_HTTP:
		return all.requests > 0;
	case PARTS:
		break;
	}
	return true;
}

/* Why a part cannot occur here, or NULL. */
const char *
part_skipped(enum part part)
{
	static bool asked;
	int status = 1;
	pid_t pid;

	if (part != PART_FORKS)
		return NULL;
	if (!asked) {
		pid = fork();
		if (pid == 0)
			_exit(prepare_user() ? 0 : 1);
		if (pid > 0)
			waitpid(pid, &status, 0);
		forks_can_fail = pid > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0;
		asked = true;
	}
	return forks_can_fail ? NULL : "this root cannot become another user";
}

/* For the message about a failure: its cause may be among these. */
const char *
parts_under_way(void)
{
	static char text[160];
	size_t used = 0;
	int i, helpers = 0;

	for (i = 0; i < shared->helper_count && i < HELPERS; i++)
		helpers += shared->helpers[i].alone_at != 0 && soak.helpers_over[i] == 0;
	text[0] = '\0';
	if (soak.log_mode != LOG_READ)
		used += (size_t)snprintf(text + used, sizeof text - used, " full-log-pipe");
	if (helpers > 0)
		used += (size_t)snprintf(text + used, sizeof text - used, " %d-helpers", helpers);
	if (soak.forks_until != 0)
		used += (size_t)snprintf(text + used, sizeof text - used, " no-forks");
	if (soak.burst_until != 0)
		used += (size_t)snprintf(text + used, sizeof text - used, " HTTP-load");
	return used > 0 ? text + 1 : "signals alone";
}

void
storm_turn(void)
{
	int64_t now = clutch_now();

	turn_log(now);
	turn_reload(now);
	turn_forks(now);
	turn_http(now);
}

/* End the storm before a pause, or before the master's end. The helpers end by themselves. */
void
storm_end(void)
{
	soak.is_storm = false;
	continue_all();
	end_log();
	end_forks();
	end_http();
	soak.reload_at = 0;
	soak.leaves_group = 0;
}

static enum part cards[PARTS];
static unsigned dealt;

/* A life begins with the parts in their own order: the first ones take the longest. */
static void
collect_cards(void)
{
	int i;

	for (i = 0; i < PARTS; i++)
		cards[i] = (enum part)i;
	dealt = 0;
}

static enum part
next_part(void)
{
	enum part part;
	unsigned i, other;

	for (i = 0; i < PARTS && dealt == PARTS; i++) { /* shuffle */
		other = random_below(PARTS);
		part = cards[i];
		cards[i] = cards[other];
		cards[other] = part;
	}
	dealt %= PARTS;
	return cards[dealt++];
}

/* The parts that have not occurred in the whole run are tried again. */
static bool
try_again(void)
{
	static int64_t next_at;
	bool some = false;
	int part;

	for (part = 0; part < PARTS; part++) {
		if (part_has_occurred((enum part)part) || part_skipped((enum part)part) != NULL)
			continue;
		some = true;
		if (clutch_now() >= next_at)
			start_part((enum part)part);
	}
	if (clutch_now() >= next_at)
		next_at = clutch_now() + PART_AGAIN / 2;
	return some;
}

/* Is a table of this life half full? Then the storm ends early. */
static bool
is_full(void)
{
	return shared->record_count > RECORDS / 2 || shared->helper_count > HELPERS / 2;
}

void
storm(int64_t milliseconds, bool with_parts)
{
	int64_t now = clutch_now(), until = now + milliseconds;
	int64_t stop_at = now, death_at = now + DEATH_EVERY, part_at = now;
	int64_t part_every = milliseconds / (PARTS + 2);
	int index;

	long_life = part_every > PART_EVERY;
	if (long_life)
		part_every = PART_EVERY;
	collect_cards();
	soak.is_storm = true;
	while ((now < until || (with_parts && now < until + PART_AGAIN && try_again())) &&
	       !soak.interrupted && !is_full() && turn()) {
		now = clutch_now();
		continue_those_due(now);
		if (now >= stop_at) {
			stop_one();
			stop_at = now + STOP_EVERY + random_below(STOP_JITTER);
		}
		if (now >= death_at && (index = any_victim(true, false)) != -1) {
			sentence(index, random_below(2) == 0 ? SIGKILL : SIGTERM, true);
			death_at = now + DEATH_EVERY + random_below(DEATH_JITTER);
		}
		if (with_parts && now >= part_at && now < until) {
			start_part(next_part());
			part_at = now + part_every;
		}
	}
}
