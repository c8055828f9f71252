/*
 * What the agent and the app worker have in common: they check the jobs, print and parse
 * the messages about runs, and log.
 *
 * egg: egg-schedule/lib/load_schedule.js
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "schedule.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the log ------------------------------------------------------------- */

int schedule_log = STDOUT_FILENO;

void
egg_schedule_log(int descriptor)
{
	schedule_log = descriptor;
}

/* ---- the jobs ------------------------------------------------------------ */

/* A name is printed into JSON and into the log without any escaping. */
static bool
name_is_valid(const char *name)
{
	size_t length = name != NULL ? strlen(name) : 0;
	size_t i;

	for (i = 0; i < length; i++)
		if (name[i] == '"' || name[i] == '\\' || iscntrl((unsigned char)name[i]))
			return false;
	return length > 0 && length <= SCHEDULE_NAME_MAX;
}

/* egg: an empty interval or cron counts as not given. */
static bool
is_given(const char *text)
{
	return text != NULL && text[0] != '\0';
}

static int refuse(const struct schedule *schedule, const char *field, const char *format, ...)
	CLUTCH_PRINTF(3, 4);

static int
refuse(const struct schedule *schedule, const char *field, const char *format, ...)
{
	char why[256];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(why, sizeof why, format, arguments);
	va_end(arguments);
	schedule_log_warn("[egg-schedule] job %.*s: %s: %s", SCHEDULE_NAME_MAX, schedule->name,
	                  field, why);
	errno = EINVAL;
	return -1;
}

/* egg: the constructor of lib/strategy/timer.js */
static int
check_times(struct job *job)
{
	const struct schedule *schedule = job->schedule;
	char why[128];
	time_t end;

	if (!is_given(schedule->interval) && !is_given(schedule->cron) && !schedule->immediate)
		return refuse(schedule, "interval, cron, immediate", "one of them must be given");
	if (is_given(schedule->interval) &&
	    (job->interval = cron_parse_interval(schedule->interval)) == -1)
		return refuse(schedule, "interval",
		              "\"%.64s\" is not an interval; write \"10s\", \"5m\" or "
		              "a number of milliseconds",
		              schedule->interval);
	job->has_cron = is_given(schedule->cron);
	if (job->has_cron && cron_parse(&job->cron, schedule->cron, why, sizeof why) == -1)
		return refuse(schedule, "cron", "\"%.64s\": %s", schedule->cron, why);
	if (is_given(schedule->end_date)) {
		end = cron_parse_date(schedule->end_date);
		if (end == -1)
			return refuse(schedule, "end_date",
			              "\"%.64s\" is not a date; write \"2027-12-31 23:59:59\"",
			              schedule->end_date);
		job->end = (int64_t)end * 1000;
	}
	return 0;
}

/* egg: registerSchedule. A disabled job needs nothing but a task. */
static int
check(struct job *job)
{
	const struct schedule *schedule = job->schedule;

	if (schedule->task == NULL)
		return refuse(schedule, "task", "it must be given");
	if (schedule->disable)
		return 0;
	if (schedule->type == NULL ||
	    (strcmp(schedule->type, "worker") != 0 && strcmp(schedule->type, "all") != 0))
		return refuse(schedule, "type",
		              "\"%.64s\" is not defined; it is \"worker\" or \"all\"",
		              schedule->type != NULL ? schedule->type : "");
	return check_times(job);
}

struct job *
schedule_find_job(const struct jobs *jobs, const char *name)
{
	size_t i;

	for (i = 0; i < jobs->count; i++)
		if (strcmp(jobs->job[i].schedule->name, name) == 0)
			return &jobs->job[i];
	return NULL;
}

static int
add_job(struct jobs *jobs, const struct schedule *schedule)
{
	struct job *job = &jobs->job[jobs->count];

	if (!name_is_valid(schedule->name)) {
		schedule_log_warn(
			"[egg-schedule] job %zu: name: it must have 1 to %d bytes, and no "
			"quotation mark, backslash or control character",
			jobs->count, SCHEDULE_NAME_MAX);
		errno = EINVAL;
		return -1;
	}
	if (schedule_find_job(jobs, schedule->name) != NULL)
		return refuse(schedule, "name", "there is another job of that name");
	*job = (struct job){.schedule = schedule, .end = INT64_MAX};
	if (check(job) == -1)
		return -1;
	jobs->count++;
	return 0;
}

int
schedule_load(struct jobs *jobs, const struct schedule *schedules, size_t count)
{
	size_t i;
	int error;

	if (jobs->job != NULL) {
		schedule_log_warn(
			"[egg-schedule] there are jobs already: a process is given its jobs once");
		errno = EALREADY;
		return -1;
	}
	jobs->job = calloc(count + 1, sizeof *jobs->job);
	jobs->count = 0;
	if (jobs->job == NULL)
		return -1;
	for (i = 0; i < count; i++)
		if (add_job(jobs, &schedules[i]) == -1) {
			error = errno;
			free(jobs->job);
			*jobs = (struct jobs){NULL, 0};
			errno = error;
			return -1;
		}
	return 0;
}

/* ---- the messages -------------------------------------------------------- */

void
schedule_info_print(const struct run_info *info, char *json, size_t size)
{
	int used = snprintf(json, size, "{\"key\":\"%s\",\"id\":\"%s\",\"args\":[]", info->key,
	                    info->id);

	if (info->ended)
		used += snprintf(json + used, size - (size_t)used, ",\"success\":%s",
		                 info->success ? "true" : "false");
	if (info->worker_id != 0)
		used += snprintf(json + used, size - (size_t)used, ",\"workerId\":%ld",
		                 (long)info->worker_id);
	if (info->ended && info->rt >= 0)
		used += snprintf(json + used, size - (size_t)used, ",\"rt\":%" PRId64, info->rt);
	if (info->ended && !info->success)
		used += snprintf(json + used, size - (size_t)used, ",\"message\":\"%s\"",
		                 info->message);
	snprintf(json + used, size - (size_t)used, "}");
}

/* The beginning of a member's value, or NULL. The object must be flat and without blanks, as
 * schedule_info_print and JSON.stringify write it. */
static const char *
member(const char *json, const char *name)
{
	char quoted[16];
	const char *at;

	snprintf(quoted, sizeof quoted, "\"%s\":", name);
	at = strstr(json, quoted);
	return at != NULL ? at + strlen(quoted) : NULL;
}

static bool
copy_string(const char *value, char *copy, size_t size)
{
	size_t length;

	if (value == NULL || *value != '"')
		return false;
	for (length = 0, value++; value[length] != '"'; length++)
		if (length == size - 1 || value[length] == '\\' ||
		    iscntrl((unsigned char)value[length]))
			return false; /* so is the NUL at the end of the text */
	memcpy(copy, value, length);
	copy[length] = '\0';
	return true;
}

bool
schedule_info_parse(struct run_info *info, const struct message *message)
{
	const char *json = message->data != NULL ? message->data : "";
	const char *success = member(json, "success"), *worker = member(json, "workerId");
	const char *rt = member(json, "rt");
	long pid = worker != NULL ? strtol(worker, NULL, 10) : 0;

	*info = (struct run_info){.ended = success != NULL};
	info->rt = rt != NULL ? strtoll(rt, NULL, 10) : -1;
	copy_string(member(json, "message"), info->message, sizeof info->message);
	info->success = success != NULL && strncmp(success, "true", 4) == 0;
	info->worker_id = pid > 0 && pid <= INT32_MAX ? (pid_t)pid : 0;
	return copy_string(member(json, "key"), info->key, sizeof info->key) &&
	       copy_string(member(json, "id"), info->id, sizeof info->id);
}
