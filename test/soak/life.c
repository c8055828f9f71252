/*
 * The parent: one master, from its start to its end.
 *
 * A life ends in one of two ways. Either the storm pauses twice, after its first quarter
 * and at its end, so that the master can be looked at twice in the same state; then the
 * master is told to end. Or the master is killed in full traffic: its children must
 * leave by themselves, while the next master starts at once, on the same port.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "soak.h"

#include "../sanitized.h"

#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

/* The most that the master may ever have in memory, in KiB: a full queue for the agent, for
 * the parent, for each app worker and for each worker that leaves beside its successor; and
 * 8 MiB for everything else. */
#ifndef SOAK_RSS_MAX
#define SOAK_RSS_MAX ((2 * APPS + 2) * (CHANNEL_QUEUE_MAX / 1024) + 8 * 1024)
#endif
/* How much more memory the master may have in the second pause than in the first, in KiB: the
 * read buffer of 512 KiB may not have been full before the first pause. */
#ifndef SOAK_RSS_GROWTH
#define SOAK_RSS_GROWTH 1024
#endif

enum {
	/* Milliseconds. */
	START_LIMIT = 5000,
	PORT_LIMIT = 8000, /* until then the old apps have left, and the port is free */
	PORT_AGAIN = 250,
	COMPLETE_LIMIT = 12000,
	QUIET_LIMIT = 7000,
	REST = 2000, /* the master gives the memory of its idle queues back meanwhile */
	END_LIMIT = 2 * CLOSE_TIMEOUT + 3000,
	ANSWERS_LIMIT = 6000,
	GHOST_LIMIT = CLOSE_TIMEOUT + 3000,
	GHOST_STOPPED = 300,
	WATCH_EVERY = 20,
	SAVE_EVERY = 3000,
	ALARM_SPARE = 90, /* s */

	GHOSTS = 64
};

/* The processes that a killed master has left. */
static struct ghost {
	pid_t pid;
	enum role role;
	int64_t since; /* 0: the place is free */
	bool settled;  /* it was ready and not told to leave, so its exit status is known */
	bool stopped;  /* by us, for GHOST_STOPPED */
} ghosts[GHOSTS];

static int64_t paused_at, try_again_at;

/* ---- the loop ---------------------------------------------------------------- */

static struct ghost *
ghost_of(pid_t pid)
{
	int i;

	for (i = 0; i < GHOSTS; i++)
		if (ghosts[i].since != 0 && ghosts[i].pid == pid)
			return &ghosts[i];
	return NULL;
}

/* egg: the agent leaves with 110 when its master is dead, an app worker with 0. */
static void
on_ghost_end(struct ghost *ghost, int status)
{
	int expected = ghost->role == ROLE_AGENT ? 110 : 0;

	if (ghost->settled && (!WIFEXITED(status) || WEXITSTATUS(status) != expected))
		fail("%s %ld has ended with %s %d after its master was killed",
		     ghost->role == ROLE_AGENT ? "agent" : "app", (long)ghost->pid,
		     WIFEXITED(status) ? "code" : "signal",
		     WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
	*ghost = (struct ghost){0};
}

/* A process of a dead parent is a child of ours: we are its subreaper. */
static void
on_child_end(pid_t pid, int status)
{
	struct ghost *ghost = ghost_of(pid);
	int i;

	if (pid == soak.master) {
		soak.ended = true;
		soak.status = status;
	} else if (ghost != NULL) {
		on_ghost_end(ghost, status);
	} else if (shared != NULL && !soak.master_killed) {
		for (i = 1; i < shared->record_count && i < RECORDS; i++)
			soak.totals.orphans += shared->records[i].pid == pid;
	}
}

static void
reap(void)
{
	pid_t pid;
	int status;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
		on_child_end(pid, status);
}

static void
watch_ghosts(void)
{
	int i;

	for (i = 0; i < GHOSTS; i++) {
		if (ghosts[i].stopped && clutch_now() - ghosts[i].since >= GHOST_STOPPED) {
			kill(ghosts[i].pid, SIGCONT);
			ghosts[i].stopped = false;
		}
		if (ghosts[i].since == 0 || clutch_now() - ghosts[i].since < GHOST_LIMIT)
			continue;
		fail("%s %ld lives %d ms after its master was killed",
		     ghosts[i].role == ROLE_AGENT ? "agent"
		     : ghosts[i].role == ROLE_APP ? "app"
		                                  : "stray helper",
		     (long)ghosts[i].pid, GHOST_LIMIT);
		soak.totals.orphans++;
		kill(ghosts[i].pid, SIGKILL);
		ghosts[i] = (struct ghost){0};
	}
}

static void
look_at_memory(void)
{
	long kib = soak.ended ? -1 : process_memory(soak.master, "VmHWM");

	if (kib > soak.rss)
		soak.rss = kib;
	if (kib > soak.totals.rss)
		soak.totals.rss = kib;
}

/* False: the master has ended. */
bool
turn(void)
{
	static int64_t watch_at, save_at, last;
	static bool reported;
	int64_t now = clutch_now();

	if (soak.is_storm)
		soak.totals.milliseconds += now - last;
	last = now;
	if (messenger_step(soak.messenger, soak.ended ? 0 : 10) == -1)
		fail("a turn of the parent's loop failed: %s", strerror(errno));
	reap();
	if (soak.ended)
		poll(NULL, 0, 5);
	storm_turn();
	if (now >= watch_at) {
		watch_at = now + WATCH_EVERY;
		watch_processes();
		watch_ghosts();
	}
	if (now >= save_at) {
		save_at = now + SAVE_EVERY;
		look_at_memory();
		if (totals_save() == -1 && !reported) {
			reported = true;
			fail("cannot write %s: %s", soak.state_path, strerror(errno));
		}
	}
	return !soak.ended;
}

/* An interruption ends each wait but those for the end. */
bool
wait_until(bool (*condition)(void), int limit)
{
	int64_t until = clutch_now() + limit;

	while (!condition()) {
		if (!turn() && !soak.is_ending)
			return condition();
		if (clutch_now() >= until || (soak.interrupted && !soak.is_ending))
			return condition();
	}
	return true;
}

/* ---- the start --------------------------------------------------------------- */

static void
run_master(const int *pair)
{
	struct options options = {.agent = member,
	                          .app = member,
	                          .connection = pages_serve,
	                          .name = "soak",
	                          .workers = APPS,
	                          .env = "prod",
	                          .host = "127.0.0.1",
	                          .port = soak.port,
	                          .app_close_timeout = CLOSE_TIMEOUT,
	                          .agent_close_timeout = CLOSE_TIMEOUT,
	                          .parent = pair[1]};

	prepare_user();
	prctl(PR_SET_PDEATHSIG, SIGTERM); /* no process stays, even if the parent is killed */
	setpgid(0, 0);                    /* Ctrl-C reaches the parent alone */
	signal(SIGALRM, SIG_DFL);
#ifdef __GLIBC__
	/* Freed memory goes back to the system at once. Otherwise the memory of the master
	 * would always be that of its longest queues. */
	mallopt(M_MMAP_THRESHOLD, 64 * 1024);
	mallopt(M_TRIM_THRESHOLD, 64 * 1024);
#endif
	dup2(soak.log[1], STDOUT_FILENO);
	dup2(soak.log[1], STDERR_FILENO);
	close_descriptors(pair[1], -1);
	exit(start_cluster(&options));
}

/* The system has no resources for a master: the run ends. */
static void
give_up(const char *what)
{
	fprintf(stderr, "soak: FAILED, %s: %s\n", what, strerror(errno));
	if (soak.master > 0)
		kill(soak.master, SIGKILL);
	exit(1);
}

static void
open_life(void)
{
	int pair[2];

	shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE,
	              MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (shared == MAP_FAILED || socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == -1)
		give_up("no memory or no descriptors");
	shared->record_count = 1; /* the parent's, before any other process is there */
	memset(soak.victims, 0, sizeof soak.victims);
	memset(soak.helpers_over, 0, sizeof soak.helpers_over);
	memset(soak.helpers_counted, 0, sizeof soak.helpers_counted);
	soak.started = soak.ended = soak.is_ending = soak.master_killed = false;
	soak.heard = soak.rss = 0;
	soak.killed_at = soak.slow = soak.leaves_group = 0;
	fflush(NULL);
	soak.master = fork();
	if (soak.master == -1)
		give_up("cannot fork a master");
	if (soak.master == 0)
		run_master(pair);
	close(pair[1]);
	soak.messenger = messenger_open(pair[0], ROLE_PARENT);
	if (soak.messenger == NULL || traffic_open(soak.messenger, ROLE_PARENT, -1) == -1)
		give_up("cannot open the parent's messenger");
	random_seed(soak.seed + (unsigned long)soak.totals.lives * 1000003UL);
	log_watch();
}

/* The sums are complete; nothing of this life is needed any more. */
static void
close_life(void)
{
	int i, j;

	watch_processes();
	for (i = 0; i < shared->record_count && i < RECORDS; i++)
		for (j = 0; j < shared->records[i].complaint_count; j++)
			fail("%s", shared->records[i].complaints[j]);
	check_replaced();
	soak.totals = totals_now();
	messenger_close(soak.messenger);
	munmap(shared, sizeof *shared);
	soak.messenger = NULL;
	shared = NULL;
	soak.master = 0;
}

static bool
is_started(void)
{
	return me->ready_at != 0;
}

static bool
is_time_to_try_again(void)
{
	return clutch_now() >= try_again_at;
}

/* A start that fails is tried again: the storm is to go on. */
static bool
start_master(void)
{
	int64_t since = clutch_now();
	bool reported = false;

	do {
		open_life();
		if (wait_until(is_started, START_LIMIT)) {
			soak.started = true;
			soak.started_at = clutch_now();
			soak.totals.lives++;
			return true;
		}
		if (soak.interrupted || !soak.ended)
			return false;
		try_again_at = clutch_now() + PORT_AGAIN;
		soak.is_ending = true;
		wait_until(is_time_to_try_again, PORT_AGAIN + 1000); /* this also reads the log */
		if (!reported)
			fail("a master did not start, %lld ms after the end of the last one: %s",
			     (long long)(try_again_at - PORT_AGAIN - since), last_log_line());
		reported = true;
		close_life();
	} while (clutch_now() - since < PORT_LIMIT);
	return false;
}

/* ---- a pause ------------------------------------------------------------------ */

static bool
has_rested(void)
{
	return clutch_now() - paused_at >= REST;
}

/* False: a process was replaced meanwhile. */
static bool
is_undisturbed(int records)
{
	paused_at = clutch_now();
	wait_until(has_rested, REST + 1000);
	return shared->record_count == records && is_complete();
}

/* Returns true when every message has arrived; the storm is quiet from then on. */
static bool
pause_storm(void)
{
	int tries, records;

	storm_end();
	for (tries = 0; tries < 4 && !soak.interrupted; tries++) {
		if (!wait_until(is_complete, COMPLETE_LIMIT)) {
			if (!soak.interrupted)
				explain_incomplete();
			return false;
		}
		records = shared->record_count;
		shared->quiet = true;
		if (!wait_until(is_quiet, QUIET_LIMIT)) {
			if (!soak.interrupted)
				explain_noise();
			return false;
		}
		if (is_undisturbed(records))
			return true;
		shared->quiet = false;
	}
	if (!soak.interrupted)
		fail("pause: the processes were replaced again and again");
	return false;
}

/* Returns the master's memory, and stores the number of its descriptors. */
static long
look_at_master(long *descriptors)
{
	look_at_memory();
	*descriptors = process_descriptors(soak.master);
	return process_memory(soak.master, "RssAnon");
}

static void
compare(long memory, long descriptors, long memory_now, long descriptors_now)
{
	if (memory_now - memory > soak.totals.rss_growth)
		soak.totals.rss_growth = memory_now - memory;
	if (MEMORY_COUNTS && memory_now - memory > SOAK_RSS_GROWTH)
		fail("the master had %ld KiB of memory in the first pause and %ld KiB in the "
		     "second, where %d more are allowed",
		     memory, memory_now, SOAK_RSS_GROWTH);
	if (descriptors_now != descriptors) {
		fail("the master had %ld descriptors in the first pause and %ld in the second",
		     descriptors, descriptors_now);
		soak.totals.descriptors += descriptors_now - descriptors;
	}
}

/* ---- the end ------------------------------------------------------------------ */

static bool
is_ended(void)
{
	return soak.ended;
}

static bool
are_answers_here(void)
{
	return pages_pending() == 0;
}

static bool
are_ghosts_gone(void)
{
	int i;

	for (i = 0; i < GHOSTS; i++)
		if (ghosts[i].since != 0)
			return false;
	return true;
}

static void
add_ghost(pid_t pid, enum role role, bool settled, bool stopped)
{
	int i = 0;

	while (i < GHOSTS && ghosts[i].since != 0)
		i++;
	if (i < GHOSTS)
		ghosts[i] = (struct ghost){pid, role, clutch_now(), settled, stopped};
}

/* After the master's end its processes are our children: none may be left. */
static void
kill_all(bool count)
{
	pid_t parent;
	int i, zombies;

	for (i = 1; i < shared->record_count && i < RECORDS; i++)
		if (!soak.victims[i].dead && process_state(shared->records[i].pid, &parent) != 0 &&
		    (parent == getpid() || parent == soak.master)) {
			kill(shared->records[i].pid, SIGKILL);
			soak.totals.orphans += count;
		}
	for (i = 0; i < shared->helper_count && i < HELPERS; i++)
		if (shared->helpers[i].pid != 0 && soak.helpers_over[i] == 0) {
			kill(shared->helpers[i].pid, SIGKILL);
			soak.totals.orphans += count && !shared->helpers[i].is_stray;
		}
	if (!count)
		process_children(soak.master, &zombies, SIGKILL);
}

static void
explain_survivors(void)
{
	const struct record *record;
	int i;

	fail("the master has not ended %d ms after SIGTERM", END_LIMIT);
	for (i = 1; i < shared->record_count && i < RECORDS; i++) {
		record = &shared->records[i];
		if (record->pid != 0 && !soak.victims[i].dead)
			fail("at the end %s %ld%s is left, which %s told to leave",
			     record->role == ROLE_AGENT ? "agent" : "app", (long)record->pid,
			     record->in_other_group ? ", outside its process group," : "",
			     record->left_at != 0 ? "was" : "was not");
	}
}

static void
end_master(void)
{
	long long orphans = soak.totals.orphans;

	soak.is_ending = true;
	look_at_memory();
	if (!soak.ended)
		kill(soak.master, SIGTERM);
	if (!wait_until(is_ended, END_LIMIT)) {
		explain_survivors();
		kill_all(false);
		kill(soak.master, SIGKILL);
		soak.master_killed = true; /* its children are no orphans that it has left */
		wait_until(is_ended, END_LIMIT);
		return;
	}
	if (!WIFEXITED(soak.status) || WEXITSTATUS(soak.status) != 0)
		fail("the master ended with %s %d", WIFEXITED(soak.status) ? "code" : "signal",
		     WIFEXITED(soak.status) ? WEXITSTATUS(soak.status) : WTERMSIG(soak.status));
	reap();
	watch_processes();
	kill_all(true);
	if (soak.totals.orphans > orphans)
		fail("the master has left %lld processes", soak.totals.orphans - orphans);
	soak.totals.masters_ended++;
}

/* The children of the master see the end of file of their channels. We stop one app worker
 * for a moment: meanwhile it keeps the port's listener open. A helper in the group of a
 * dead app worker has lost the process that would have ended it, so we end it. */
static void
kill_master(void)
{
	const struct record *record;
	const struct victim *victim;
	bool stop, stopped = false;
	int i;

	look_at_memory();
	watch_processes();
	soak.master_killed = true;
	for (i = 1; i < shared->record_count && i < RECORDS; i++) {
		record = &shared->records[i];
		victim = &soak.victims[i];
		if (victim->dead || record->pid == 0)
			continue;
		stop = !stopped && record->role == ROLE_APP && kill(record->pid, SIGSTOP) == 0;
		stopped = stopped || stop;
		add_ghost(record->pid, record->role,
		          victim->sentence == 0 && record->ready_at != 0 && record->left_at == 0,
		          stop);
	}
	kill(soak.master, SIGKILL);
	for (i = 0; i < shared->helper_count && i < HELPERS; i++)
		if (shared->helpers[i].pid != 0 && soak.helpers_over[i] == 0) {
			if (shared->helpers[i].is_stray && shared->helpers[i].alone_at != 0)
				add_ghost(shared->helpers[i].pid, ROLE_NONE, false, false);
			else
				kill(shared->helpers[i].pid, SIGKILL);
		}
	soak.is_ending = true;
	wait_until(is_ended, END_LIMIT);
	soak.totals.masters_killed++;
}

/* ---- a life -------------------------------------------------------------------- */

static void
live_to_be_killed(int64_t milliseconds)
{
	storm(milliseconds, true);
	storm_end();
	wait_until(are_answers_here, ANSWERS_LIMIT);
	if (soak.interrupted || soak.ended)
		end_master();
	else
		kill_master();
}

static void
live_to_be_measured(int64_t milliseconds)
{
	long memory, descriptors, memory_now, descriptors_now;

	storm(milliseconds / 4, false);
	if (!soak.interrupted && pause_storm()) {
		memory = look_at_master(&descriptors);
		shared->quiet = false;
		storm(milliseconds - milliseconds / 4, true);
		if (!soak.interrupted && pause_storm()) {
			memory_now = look_at_master(&descriptors_now);
			compare(memory, descriptors, memory_now, descriptors_now);
		}
	}
	storm_end();
	wait_until(are_answers_here, ANSWERS_LIMIT);
	end_master();
}

void
live(int64_t milliseconds, bool to_be_killed)
{
	alarm((unsigned)(milliseconds / 1000) + ALARM_SPARE);
	if (start_master()) {
		if (to_be_killed)
			live_to_be_killed(milliseconds);
		else
			live_to_be_measured(milliseconds);
	} else if (shared != NULL) {
		if (!soak.interrupted)
			fail("the cluster has not started: %s", last_log_line());
		end_master();
	}
	if (MEMORY_COUNTS && soak.rss > SOAK_RSS_MAX)
		fail("the master had up to %ld KiB in memory, where %d are allowed", soak.rss,
		     SOAK_RSS_MAX);
	if (shared != NULL)
		close_life();
}

/* Wait for the processes of the last master, if it was killed. No process is left then. */
void
end_lives(void)
{
	while (!are_ghosts_gone()) {
		reap();
		watch_ghosts();
		poll(NULL, 0, 5);
	}
	reap();
}
