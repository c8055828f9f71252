/*
 * What the files of egg-schedule share: the jobs, the messages about their runs, and
 * the log.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#ifndef SCHEDULE_H
#define SCHEDULE_H

#include "cron.h"
#include "egg_schedule.h"

#include <unistd.h>

/* A run's id, the reason of its failure, and a message about it, in bytes. */
#define RUN_ID_SIZE 96
#define RUN_MESSAGE_SIZE 64
#define RUN_JSON_SIZE (SCHEDULE_NAME_MAX + RUN_ID_SIZE + RUN_MESSAGE_SIZE + 128)

/* A job, as schedule_load has parsed it. */
struct job {
	const struct schedule *schedule;
	int64_t interval; /* milliseconds; 0: there is cron, or neither */
	bool has_cron;
	struct cron cron;
	int64_t end;    /* the last millisecond, wall clock; INT64_MAX: none */
	size_t running; /* its runs: in this worker, or, in the agent, in all workers */

	/* the agent's */
	struct messenger *agent;
	int64_t due;       /* the next tick, by the job's clock: for cron the wall clock,
	                    * for an interval the clock that only goes forward */
	bool has_no_timer; /* there was no memory for one */
	int64_t looked_at; /* when the agent last looked at that clock */
};

struct jobs {
	struct job *job;
	size_t count;
};

/*
 * Check and parse the jobs. -1: a job is not right, and a line on stderr said so
 * (EINVAL); there are jobs already (EALREADY); or ENOMEM.
 * egg: egg-schedule/lib/load_schedule.js, the asserts of lib/strategy/timer.js
 */
int schedule_load(struct jobs *jobs, const struct schedule *schedules, size_t count);

/* NULL: there is no job of that name. */
struct job *schedule_find_job(const struct jobs *jobs, const char *name);

/* What a message tells about a run. */
struct run_info {
	char key[SCHEDULE_NAME_MAX + 1];
	char id[RUN_ID_SIZE];
	pid_t worker_id; /* 0: it is a tick, from the agent */
	bool ended;      /* if it has, the rest is known: */
	bool success;
	int64_t rt;                     /* milliseconds; -1: it was never measured */
	char message[RUN_MESSAGE_SIZE]; /* why it failed */
};

/* To egg's JSON, and back. false: this is not such a message. */
void schedule_info_print(const struct run_info *info, char *json, size_t size);
bool schedule_info_parse(struct run_info *info, const struct message *message);

/* Log a line: info is everyday work, and goes where egg_schedule_log says; warn is a
 * failure, and goes to stderr. */
extern int schedule_log;
#define schedule_log_info(...)                                                                     \
	(schedule_log >= 0 ? clutch_print_line(schedule_log, __VA_ARGS__) : (void)0)
#define schedule_log_warn(...) clutch_log(CLUTCH_WARN, __VA_ARGS__)

#endif
