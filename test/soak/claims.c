/*
 * The parent: it checks the claims about processes and messages.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "soak.h"

#include <stdio.h>
#include <string.h>

enum {
	HELPER_LIMIT = CLOSE_TIMEOUT + 3000, /* ms from an app worker's death to its helpers' */
	REPLACED_LIMIT = 4000                /* ms after which a replaced worker has left */
};

static const char *
role_of(const struct record *record)
{
	return record->role == ROLE_PARENT  ? "parent"
	       : record->role == ROLE_AGENT ? "agent"
	                                    : "app";
}

/* Every process that has a record, in order of birth; the first is the parent itself. */
static struct record *
next_record(struct record *record)
{
	struct record *end = shared->records + shared->record_count;

	do
		record = record == NULL ? shared->records : record + 1;
	while (record < end && record < shared->records + RECORDS && record->pid == 0);
	return record < end && record < shared->records + RECORDS ? record : NULL;
}

static struct victim *
victim_of(const struct record *record)
{
	return &soak.victims[record - shared->records];
}

/* Was the process told to end, and has it ended in time? Then all that it has sent must arrive. */
static bool
left_in_time(const struct record *record)
{
	const struct victim *victim = victim_of(record);

	return victim->dead && record->left_at != 0 && victim->sentence != SIGKILL &&
	       victim->died_at - record->left_at < CLEAN_LEAVE &&
	       (victim->sentence == 0 || victim->died_at - victim->sentenced_at < CLEAN_LEAVE);
}

/* Is this a worker that a reload has replaced? */
static bool
was_replaced(const struct record *record)
{
	return record->role == ROLE_APP && victim_of(record)->sentence == 0 && left_in_time(record);
}

/* ---- the living and the dead ------------------------------------------------ */

static void
on_death(struct record *record, struct victim *victim)
{
	struct totals *totals = &soak.totals;
	bool killed = victim->sentence == SIGKILL;

	victim->dead = true;
	victim->died_at = clutch_now();
	if (victim->sentence != 0 && record->role == ROLE_APP) {
		totals->apps_killed += killed;
		totals->apps_terminated += !killed;
	} else if (victim->sentence != 0) {
		totals->agents_killed += killed;
		totals->agents_terminated += !killed;
	} else if (soak.is_ending) {
		; /* the whole cluster ends, so each death is expected */
	} else if (record->left_at == 0) {
		fail("%s %ld has died without an order", role_of(record), (long)record->pid);
	} else if (soak.totals.reloads == 0 || record->role == ROLE_AGENT) {
		fail("%s %ld has left without an order", role_of(record), (long)record->pid);
	} else {
		totals->replaced++;
	}
	if (killed && record->role == ROLE_APP)
		soak.killed_at = victim->died_at;
}

/* The first newer process in the slot that was ready by `ready_until`, or NULL. That process
 * made the master tell the old one to leave, even if a signal killed it soon after. */
static struct record *
replacement_of(struct record *old, int64_t ready_until)
{
	struct record *record = old, *found = NULL;

	while ((record = next_record(record)) != NULL)
		if (record->role == ROLE_APP && record->slot == old->slot &&
		    record->ready_at != 0 && record->ready_at <= ready_until &&
		    (found == NULL || record->ready_at < found->ready_at))
			found = record;
	return found;
}

static void
watch_replaced(struct record *record, struct victim *victim)
{
	if (record->role != ROLE_APP || victim->overdue || victim->sentence != 0 ||
	    replacement_of(record, clutch_now() - REPLACED_LIMIT) == NULL)
		return;
	victim->overdue = true;
	fail("app %ld%s was replaced %d ms ago and %s", (long)record->pid,
	     record->in_other_group ? ", which has left its process group," : "", REPLACED_LIMIT,
	     record->left_at == 0 ? "was not told to leave" : "has not left");
	victim->sentence = SIGKILL;
	victim->sentenced_at = clutch_now();
	kill(record->pid, SIGKILL);
}

/* When the app worker is dead, the master ends a helper in the worker's group. A stray helper
 * ends by itself, when the master has closed the channel. */
static void
watch_helper(int index)
{
	struct helper *helper = &shared->helpers[index];
	int64_t now = clutch_now();
	char state;

	if (helper->pid == 0 || soak.helpers_over[index] != 0)
		return;
	if (helper->alone_at != 0 && !soak.helpers_counted[index]) {
		soak.helpers_counted[index] = true;
		soak.totals.helpers += !helper->is_stray;
		soak.totals.strays += helper->is_stray;
	}
	state = process_state(helper->pid, NULL);
	if (state == 0 || state == 'Z') {
		soak.helpers_over[index] = now;
	} else if (helper->alone_at != 0 && now - helper->alone_at > HELPER_LIMIT) {
		fail("a %s of a dead app worker was still there after %d ms, with %llu frames sent",
		     helper->is_stray ? "child that has left the process group" : "helper",
		     HELPER_LIMIT, helper->sent);
		soak.helpers_over[index] = -1;
		kill(helper->pid, SIGKILL);
	}
}

static bool
is_one_stopped(void)
{
	int i;

	for (i = 1; i < shared->record_count && i < RECORDS; i++)
		if (soak.victims[i].continue_at != 0 && !soak.victims[i].dead)
			return true;
	return false;
}

/* Agent and apps that are ready and do not leave. While forks fail, the storm may kill all of
 * them. */
static int
count_speakers(void)
{
	struct record *record = next_record(NULL); /* the parent */
	int count = 0;

	while ((record = next_record(record)) != NULL)
		count += !victim_of(record)->dead && record->ready_at != 0 && record->left_at == 0;
	return count;
}

/* All processes send to the parent, so it must hear messages all the time. A stopped process
 * rightly holds up its senders: time in which a process is stopped, or no process sends, does
 * not count. */
static void
watch_silence(void)
{
	int64_t now = clutch_now();
	long long heard = me->counts.delivered;

	if (is_one_stopped() || count_speakers() == 0)
		soak.heard_at += now - soak.looked_at;
	soak.looked_at = now;
	if (heard != soak.heard || !soak.is_storm) {
		soak.heard = heard;
		soak.heard_at = now;
		return;
	}
	if (now - soak.heard_at > soak.totals.silence)
		soak.totals.silence = now - soak.heard_at;
	if (now - soak.heard_at < SILENCE_LIMIT)
		return;
	fail("nothing has come to the parent for %d ms, and %d processes send (under way: %s)",
	     SILENCE_LIMIT, count_speakers(), parts_under_way());
	soak.heard_at = now; /* report it again if it goes on */
}

void
watch_processes(void)
{
	pid_t pids[APPS * 4];
	struct record *record = next_record(NULL); /* the parent */
	struct victim *victim;
	size_t count = 0;
	char state;
	int i;

	while ((record = next_record(record)) != NULL) {
		victim = victim_of(record);
		if (victim->dead)
			continue;
		soak.totals.groups += record->in_other_group && !victim->in_other_group;
		victim->in_other_group = record->in_other_group;
		state = process_state(record->pid, NULL);
		if (state == 0 || state == 'Z')
			on_death(record, victim);
		else if (!soak.ended)
			watch_replaced(record, victim);
		if (!victim->dead && record->ready_at != 0 && record->left_at == 0 &&
		    count < APPS * 4)
			pids[count++] = record->pid;
	}
	list_pids(ROLE_PARENT, pids, count);
	for (i = 0; i < shared->helper_count && i < HELPERS; i++)
		watch_helper(i);
	watch_silence();
}

bool
are_helpers_gone(void)
{
	int i;

	for (i = 0; i < shared->helper_count && i < HELPERS; i++)
		if (shared->helpers[i].pid != 0 && soak.helpers_over[i] == 0)
			return false;
	return true;
}

/* ---- a pause ---------------------------------------------------------------- */

/* Is every process there and ready, is none about to end, and has the master no child that
 * we do not know? */
bool
is_complete(void)
{
	struct record *record = next_record(NULL);
	int apps = 0, agents = 0, zombies;

	while ((record = next_record(record)) != NULL) {
		if (victim_of(record)->dead)
			continue;
		if (record->ready_at == 0 || record->left_at != 0 ||
		    victim_of(record)->sentence != 0)
			return false;
		apps += record->role == ROLE_APP;
		agents += record->role == ROLE_AGENT;
	}
	return apps == APPS && agents == 1 && are_helpers_gone() &&
	       process_children(soak.master, &zombies, 0) == APPS + 1 && zombies == 0;
}

void
explain_incomplete(void)
{
	struct record *record = next_record(NULL);
	int apps = 0, agents = 0, children, zombies;

	while ((record = next_record(record)) != NULL) {
		if (victim_of(record)->dead)
			continue;
		apps += record->role == ROLE_APP;
		agents += record->role == ROLE_AGENT;
		if (record->ready_at == 0 || record->left_at != 0)
			fail("pause: %s %ld is %s", role_of(record), (long)record->pid,
			     record->ready_at == 0 ? "not ready" : "still leaving");
	}
	children = process_children(soak.master, &zombies, 0);
	soak.totals.zombies += zombies;
	fail("pause: there are %d apps and %d agents, not %d and 1; the master has %d children, %d "
	     "of them zombies%s",
	     apps, agents, APPS, children, zombies, are_helpers_gone() ? "" : "; helpers are left");
}

static bool
is_for(const struct stream *stream, const struct record *receiver)
{
	switch (stream->way) {
	case BY_PID:
		return stream->pid == receiver->pid;
	case TO_AGENT:
		return receiver->role == ROLE_AGENT;
	case TO_APPS:
		return receiver->role == ROLE_APP;
	case TO_PARENT:
		return receiver->role == ROLE_PARENT;
	case WAYS:
		break;
	}
	return false;
}

/* How many of a stream's messages a receiver has not heard and must hear. */
static unsigned long long
missing(struct record *receiver, const struct record *sender, const struct stream *stream)
{
	const struct heard *row = heard_of(receiver, sender->pid, stream->way);
	unsigned long long last = row != NULL ? row->last : 0;
	unsigned long long before = row != NULL ? row->before : 0;

	if (!hears_all(receiver, sender->birth, stream->way) && stream->sent <= before)
		return 0;
	return stream->sent > last ? stream->sent - last : 0;
}

static unsigned long long
missing_at(struct record *receiver, bool explain)
{
	unsigned long long count, all = 0;
	struct record *sender = NULL;
	int i;

	while ((sender = next_record(sender)) != NULL) {
		if (victim_of(sender)->dead && !left_in_time(sender))
			continue;
		for (i = 0; i < sender->stream_count; i++) {
			if (!is_for(&sender->streams[i], receiver))
				continue;
			count = missing(receiver, sender, &sender->streams[i]);
			all += count;
			if (count > 0 && explain)
				fail("pause: %s %ld has not heard %llu messages of %s %ld%s, %s",
				     role_of(receiver), (long)receiver->pid, count, role_of(sender),
				     (long)sender->pid,
				     victim_of(sender)->dead ? ", which left" : "",
				     way_names[sender->streams[i].way]);
		}
	}
	return all;
}

static unsigned long long
missing_everywhere(bool explain)
{
	struct record *receiver = NULL;
	unsigned long long all = 0;

	while ((receiver = next_record(receiver)) != NULL)
		if (!victim_of(receiver)->dead && (all == 0 || explain))
			all += missing_at(receiver, explain);
	return all;
}

/* Have the living processes heard all messages that were sent to them? */
bool
is_quiet(void)
{
	return missing_everywhere(false) == 0;
}

void
explain_noise(void)
{
	soak.totals.lost += (long long)missing_everywhere(true);
}

/* ---- those that a reload has replaced ---------------------------------------- */

/*
 * The master has told the newcomer egg-ready, and then the old worker to leave. So what
 * the newcomer had heard before egg-ready, the master had sent to the old worker, too;
 * and the old worker reads its channel to the end. From one sender the order is kept
 * across all ways: with a message to all apps, all that this sender had sent to the
 * worker by pid before is claimed, too.
 */
static unsigned long long
count_unread(struct record *old, const struct record *new)
{
	const struct heard *row, *there;
	unsigned long long lost = 0;
	int i;

	for (i = 0; i < HEARD; i++) {
		row = &new->heard[i];
		if (row->pid == 0 || row->way != TO_APPS)
			continue;
		there = heard_of(old, row->pid, TO_APPS);
		if (there != NULL && there->last < row->at_ready)
			lost += row->at_ready - there->last;
	}
	return lost;
}

/* The agent hears first that it must not write to the worker any more, and the worker is
 * told to leave when the agent has answered (D50). So the worker reads all that the agent
 * has sent to its pid. */
static unsigned long long
count_unread_of_agent(struct record *old, const struct record *new)
{
	struct record *agent = NULL;
	const struct stream *stream;
	const struct heard *row;
	unsigned long long lost = 0, last;

	if (old->left_at - new->ready_at >= CLEAN_LEAVE)
		return 0; /* the master has not waited longer for the agent */
	while ((agent = next_record(agent)) != NULL) {
		stream = agent->role == ROLE_AGENT ? stream_of(agent, BY_PID, old->pid) : NULL;
		if (stream == NULL || (victim_of(agent)->dead &&
		                       victim_of(agent)->died_at <= victim_of(old)->died_at))
			continue;
		row = heard_of(old, agent->pid, BY_PID);
		last = row != NULL ? row->last : 0;
		lost += stream->sent > last ? stream->sent - last : 0;
	}
	return lost;
}

static void
check_old(struct record *old, struct record *new)
{
	unsigned long long to_apps = count_unread(old, new);
	unsigned long long by_agent = count_unread_of_agent(old, new);

	soak.totals.lost_by_reload += (long long)(to_apps + by_agent);
	if (to_apps + by_agent > 0)
		fail("app %ld, which app %ld replaced by a reload, has not read the last %llu "
		     "messages to apps, and %llu of the agent's (SIGTERM %lld ms after the other "
		     "was ready, end %lld ms later)",
		     (long)old->pid, (long)new->pid, to_apps, by_agent,
		     (long long)(old->left_at - new->ready_at),
		     (long long)(victim_of(old)->died_at - old->left_at));
}

/* The messages to the pid of a worker that had left: they are counted, and no claim is made. */
static long long
count_late(struct record *old)
{
	struct record *sender = NULL;
	struct stream *stream;
	struct heard *row;
	long long late = 0;

	while ((sender = next_record(sender)) != NULL) {
		stream = stream_of(sender, BY_PID, old->pid);
		row = heard_of(old, sender->pid, BY_PID);
		if (stream != NULL)
			late += (long long)(stream->sent - (row != NULL ? row->last : 0));
	}
	return late;
}

void
check_replaced(void)
{
	struct record *old = next_record(NULL);
	struct record *new;

	while ((old = next_record(old)) != NULL) {
		new = was_replaced(old) ? replacement_of(old, old->left_at) : NULL;
		if (new == NULL)
			continue;
		soak.totals.late += count_late(old);
		check_old(old, new);
	}
}
