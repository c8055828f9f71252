/*
 * What the files of egg-schedule share: the jobs, the messages about their runs,
 * and the log.
 */
#ifndef SCHEDULE_H
#define SCHEDULE_H

#include "cron.h"
#include "egg_schedule.h"

#include <unistd.h>

/* A run's id, and all that a message about it takes, in bytes. */
#define RUN_ID_SIZE 96
#define RUN_JSON_SIZE (SCHEDULE_NAME_MAX + RUN_ID_SIZE + 128)

/* A job, and what schedule_load has made of it. */
struct job {
	const struct schedule *schedule;
	int64_t interval; /* milliseconds; 0: there is cron, or neither */
	bool has_cron;
	struct cron cron;
	int64_t end;    /* the last millisecond, wall clock; INT64_MAX: none */
	size_t running; /* its runs: in this worker, or, in the agent, that it knows of */

	/* the agent's */
	struct messenger *agent;
	int64_t due;       /* of the next tick: cron by the wall clock, interval by
	                    * the one that only goes forward */
	bool has_no_timer; /* there was no memory for one */
	int64_t looked_at; /* cron: the wall clock, when it was last looked at */
};

struct jobs {
	struct job *job;
	size_t count;
};

/*
 * Check the jobs and parse what they hold. -1: one is not right, and a line on
 * stderr said so (EINVAL); there are some already (EALREADY); or ENOMEM.
 * egg: egg-schedule/lib/load_schedule.js, the asserts of lib/strategy/timer.js
 */
int schedule_load(struct jobs *jobs, const struct schedule *schedules, size_t count);

/* NULL: there is none of that name. */
struct job *schedule_find_job(const struct jobs *jobs, const char *name);

/* One run, as the messages about it tell. */
struct run_info {
	char key[SCHEDULE_NAME_MAX + 1];
	char id[RUN_ID_SIZE];
	pid_t worker_id; /* 0: the agent says so */
	bool ended;      /* it tells how: */
	bool success;
	int64_t rt;    /* milliseconds */
	long long why; /* it failed with this; in the message's text */
};

/* To JSON, as egg has it, and back; false: that is no such message. */
void schedule_info_print(const struct run_info *info, char *json, size_t size);
bool schedule_info_parse(struct run_info *info, const struct message *message);

/* One line: of everyday work (where to, egg_schedule_log says), or of what went
 * wrong. */
extern int schedule_log;
#define schedule_log_info(...) (schedule_log >= 0 ? clutch_print_line(schedule_log, __VA_ARGS__) : (void)0)
#define schedule_log_warn(...) clutch_print_line(STDERR_FILENO, __VA_ARGS__)

#endif
