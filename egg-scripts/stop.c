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
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Milliseconds, without --timeout. */
#define ASK_TIMEOUT 5000 /* for a table */
#define ASK_FIRST 1000   /* for the master's deadlines, before it is stopped */
#define RELOAD_TIMEOUT 300000

/* ---- stop ------------------------------------------------------------------- */

/* Give the order. Returns how long the master itself may take, or -1 if the order could
 * not be given. */
static int64_t
order_to_stop(const struct command *command, const struct cluster_found *cluster)
{
	char *table = cluster->master != 0 ? scripts_ask(cluster, SIGUSR1, ASK_FIRST) : NULL;
	int64_t patience = scripts_patience(command, table);

	free(table);
	if (cluster->master != 0 && kill(cluster->master, SIGTERM) == -1 && errno == EPERM) {
		scripts_complain(command, "pid %ld is another user's", (long)cluster->master);
		return -1;
	}
	return patience;
}

static int
stop(const struct command *command, const struct cluster_found *cluster)
{
	int64_t begin = clutch_now(), patience = order_to_stop(command, cluster);

	if (patience == -1)
		return 1;
	if (!scripts_wait_gone(cluster, patience)) {
		scripts_complain(command, "not stopped within %lld s: SIGKILL to all that are left",
		                 (long long)patience / 1000);
		if (scripts_kill(cluster) == -1) {
			scripts_complain(command, "a process is left that SIGKILL does not end");
			return 1;
		}
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
	char *table = scripts_ask(cluster, SIGUSR1, timeout);

	if (table == NULL)
		return report_silence(command, cluster, timeout);
	fputs(table, stdout);
	free(table);
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

/* Find the table's next listening app worker from `at` on. Returns the text behind it, or
 * NULL. */
static const char *
next_app(const char *at, int *slot, long *pid)
{
	int length;

	while (at != NULL) {
		length = 0;
		if (sscanf(at, "app %d %ld listening%n", slot, pid, &length) == 2 && length > 0)
			return at + length;
		at = strchr(at, '\n');
		if (at != NULL)
			at++;
	}
	return NULL;
}

/* Does an app worker listen in that slot (0: in any), with that pid (0: with any)? */
static bool
has_app(const char *table, int wanted_slot, long wanted_pid)
{
	long pid;
	int slot;

	while ((table = next_app(table, &slot, &pid)) != NULL)
		if ((wanted_slot == 0 || slot == wanted_slot) &&
		    (wanted_pid == 0 || pid == wanted_pid))
			return true;
	return false;
}

/* Does an app worker listen in that slot that was not there before? */
static bool
is_renewed(const char *before, const char *after, int wanted)
{
	long pid;
	int slot;

	while ((after = next_app(after, &slot, &pid)) != NULL)
		if (slot == wanted && !has_app(before, 0, pid))
			return true;
	return false;
}

/* Count the slots in which an app worker listened before, and those of them in which a new
 * one listens. A slot may have two workers: one is leaving since the last reload. */
static int
count_slots(const char *before, const char *after, int *renewed)
{
	const char *at = before;
	int slot, count = 0;
	long pid;

	*renewed = 0;
	while ((at = next_app(at, &slot, &pid)) != NULL) {
		if (has_app(at, slot, 0))
			continue;
		count++;
		*renewed += is_renewed(before, after, slot);
	}
	return count;
}

static int
times_given_up(const char *table)
{
	const char *at = strstr(table, " done, ");

	return at != NULL ? atoi(at + strlen(" done, ")) : 0;
}

/* The master writes its table when a reload has ended. Another command may have ordered
 * that reload, or that table: then give the order again. */
static int
watch_reload(const struct command *command, const struct cluster_found *cluster, const char *before)
{
	int64_t timeout = timeout_of(command, RELOAD_TIMEOUT), begin = clutch_now(), now;
	int count = 1, renewed = 0, given_up = 0;
	char *table;

	for (now = begin; renewed < count && !given_up; now = clutch_now()) {
		table = scripts_ask(cluster, SIGUSR2, begin + timeout - now);
		if (table == NULL)
			return report_silence(command, cluster, timeout);
		count = count_slots(before, table, &renewed);
		given_up = renewed < count && times_given_up(table) > times_given_up(before);
		free(table);
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
	if (strstr(before, "\nrunning, ") == NULL)
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
