/*
 * The commands for a cluster that runs: stop, status, reload.
 *
 * egg: egg-scripts/lib/cmd/stop.js; cluster-reload
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "scripts.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Milliseconds, without --timeout. */
#define ASK_TIMEOUT 5000 /* for a status */
#define ASK_FIRST 1000   /* for the master's deadlines, before it is stopped */
#define RELOAD_TIMEOUT 300000
#define RELOAD_LOOK 200  /* how soon reload asks again, if others ask meanwhile */
#define STOP_REPORT 1000 /* how often stop says for which processes it waits */

/* ---- stop ------------------------------------------------------------------- */

/* Wait until no process is left, and say each second which processes are. */
static bool
wait_gone(const struct command *command, const struct cluster_found *cluster, const char *status,
          int64_t patience)
{
	int64_t deadline = clutch_now() + patience, rest;
	char text[512];

	while ((rest = deadline - clutch_now()) > 0) {
		if (scripts_wait_gone(cluster, rest < STOP_REPORT ? rest : STOP_REPORT))
			return true;
		scripts_list_left(cluster, status, text, sizeof text);
		if (rest > STOP_REPORT && text[0] != '\0')
			scripts_say(command, "waits for %s", text);
	}
	scripts_complain(command, "not stopped within %lld s: SIGKILL to all that are left",
	                 (long long)patience / 1000);
	return false;
}

static int
stop(const struct command *command, const struct cluster_found *cluster)
{
	char *status = cluster->master != 0 ? scripts_ask(cluster, SIGUSR1, ASK_FIRST) : NULL;
	int64_t begin = clutch_now(), patience = scripts_patience(command, status);
	bool is_gone;

	if (cluster->master != 0 && kill(cluster->master, SIGTERM) == -1 && errno == EPERM) {
		scripts_complain(command, "pid %ld is another user's", (long)cluster->master);
		free(status);
		return 1;
	}
	is_gone = wait_gone(command, cluster, status, patience);
	free(status);
	if (!is_gone && scripts_kill(cluster) == -1) {
		scripts_complain(command, "a process is left that SIGKILL does not end");
		return 1;
	}
	scripts_say(command, "stopped (%lldms)", (long long)(clutch_now() - begin));
	return 0;
}

int
scripts_stop(const struct command *command)
{
	struct cluster_found cluster;
	int result = scripts_find(command, &cluster) == -1;

	if (result == 0 && (cluster.descriptor == -1 || scripts_is_gone(&cluster)))
		scripts_complain(command, "warning: not running (pid file %s)", cluster.pid_file);
	else if (result == 0)
		result = stop(command, &cluster);
	scripts_close(&cluster);
	return result;
}

/* ---- status ------------------------------------------------------------------- */

static int
report_silence(const struct command *command, const struct cluster_found *cluster, int64_t timeout)
{
	switch (errno) {
	case ESRCH:
		scripts_say(command, "not running (pid file %s)", cluster->pid_file);
		return EXIT_NOT_RUNNING;
	case EPERM:
		scripts_complain(command, "pid %ld is another user's", (long)cluster->master);
		return 1;
	case ETIMEDOUT:
		scripts_complain(command, "pid %ld has not answered within %lld s: see its log",
		                 (long)cluster->master, (long long)timeout / 1000);
		return 1;
	default:
		scripts_complain(command, "cannot read %s.status: %s", cluster->pid_file,
		                 strerror(errno));
		return 1;
	}
}

static int64_t
timeout_of(const struct command *command, int64_t otherwise)
{
	return command->timeout > 0 ? (int64_t)command->timeout * 1000 : otherwise;
}

static int
status(const struct command *command, const struct cluster_found *cluster)
{
	int64_t timeout = timeout_of(command, ASK_TIMEOUT);
	char *text = scripts_ask(cluster, SIGUSR1, timeout);

	if (text == NULL)
		return report_silence(command, cluster, timeout);
	if (command->json)
		scripts_print_json(text);
	else
		scripts_print_table(text);
	free(text);
	return 0;
}

/* Find the master that runs, and call the function with it. */
static int
with_master(const struct command *command,
            int (*call)(const struct command *command, const struct cluster_found *cluster))
{
	struct cluster_found cluster;
	int found = scripts_find(command, &cluster), result = 1;

	errno = ESRCH;
	if (found == 1)
		result = call(command, &cluster);
	else if (found == 0)
		result = report_silence(command, &cluster, 0);
	scripts_close(&cluster);
	return result;
}

int
scripts_status(const struct command *command)
{
	return with_master(command, status);
}

/* ---- reload ------------------------------------------------------------------- */

/* The row of the next app worker that listens, or NULL. */
static const char *
next_app(const char *row)
{
	while ((row = scripts_next_row(row)) != NULL)
		if (scripts_is(row, "role", "app") && scripts_is(row, "state", "listening"))
			return row;
	return NULL;
}

/* Is there a listening app worker behind `row` with the same number of this name? */
static bool
has_app(const char *row, const char *name, long long number)
{
	while ((row = next_app(row)) != NULL)
		if (scripts_number(row, name) == number)
			return true;
	return false;
}

/* Is there a listening app worker in that slot that was not there before? */
static bool
is_renewed(const char *before, const char *after, long long slot)
{
	while ((after = next_app(after)) != NULL)
		if (scripts_number(after, "slot") == slot &&
		    !has_app(before, "pid", scripts_number(after, "pid")))
			return true;
	return false;
}

/* Count the slots in which an app worker listened before, and those of them in which a new
 * one listens. A slot may have two workers: one has been leaving since the last reload. */
static int
count_slots(const char *before, const char *after, int *renewed)
{
	const char *row = before;
	int count = 0;

	*renewed = 0;
	while ((row = next_app(row)) != NULL) {
		if (has_app(row, "slot", scripts_number(row, "slot")))
			continue;
		count++;
		*renewed += is_renewed(before, after, scripts_number(row, "slot"));
	}
	return count;
}

/* The master writes its status when a reload has ended. Another command may have asked for the
 * status that comes, in the middle of the reload: then ask for the next one. The order is given
 * once, because during a reload it would begin the reload anew. */
static int
watch_reload(const struct command *command, const struct cluster_found *cluster, const char *before)
{
	int64_t timeout = timeout_of(command, RELOAD_TIMEOUT), begin = clutch_now(), now;
	int count = 1, renewed = 0, given_up = 0, order = SIGUSR2;
	char *after;

	for (now = begin; renewed < count && !given_up; now = clutch_now()) {
		if (order == SIGUSR1)
			poll(NULL, 0, RELOAD_LOOK);
		after = scripts_ask(cluster, order, begin + timeout - now);
		if (after == NULL)
			return report_silence(command, cluster, timeout);
		order = SIGUSR1;
		count = count_slots(before, after, &renewed);
		given_up = renewed < count &&
		           scripts_number(after, "given_up") > scripts_number(before, "given_up");
		free(after);
	}
	if (given_up) {
		scripts_complain(command,
		                 "reload given up: a new app worker did not start; %d of %d are "
		                 "new, the others stay",
		                 renewed, count);
		return 1;
	}
	scripts_say(command, "reloaded %d app workers (%lldms)", count, (long long)(now - begin));
	return 0;
}

static int
reload(const struct command *command, const struct cluster_found *cluster)
{
	char *before = scripts_ask(cluster, SIGUSR1, ASK_TIMEOUT);
	int result = 1;

	if (before == NULL)
		return report_silence(command, cluster, ASK_TIMEOUT);
	if (!scripts_is(before, "state", "running"))
		scripts_complain(command, "cannot reload: not yet ready, or already stopping");
	else
		result = watch_reload(command, cluster, before);
	free(before);
	return result;
}

int
scripts_reload(const struct command *command)
{
	return with_master(command, reload);
}
