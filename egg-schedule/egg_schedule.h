/*
 * egg-schedule: jobs by the clock, in one worker or in all of them.
 *
 *	static const struct schedule jobs[] = {
 *		{.name = "force_refresh", .type = "all", .interval = "10m", .task = force},
 *		{.name = "pull_refresh", .type = "worker", .interval = "10s", .task = pull},
 *		{.name = "clean", .type = "worker", .cron = "0 3 * * *", .task = clean},
 *	};
 *
 *	static int agent(struct messenger *agent, void *arg)
 *	{
 *		return egg_schedule_agent(agent, jobs, 3);
 *	}
 *
 *	static int app(struct messenger *app, void *arg)
 *	{
 *		return egg_schedule_app(app, jobs, 3);
 *	}
 *
 * The agent holds the clocks. When a job is due the agent sends `egg-schedule`, and the
 * worker that has run the task answers with the same action, and with the result:
 *
 *	agent                                                    app
 *	  |  {"key":"clean","id":"...","args":[]}                 |
 *	  | ----------------------------------------------------> | task()
 *	  |  {... "success":true,"workerId":4711,"rt":12}         |
 *	  | <---------------------------------------------------- |
 *
 * A task may watch descriptors, set timers and send messages, and finish later
 * (schedule_later).
 *
 * egg: npm egg-schedule
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#ifndef EGG_SCHEDULE_H
#define EGG_SCHEDULE_H

#include "../messenger.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The longest name of a job, in bytes. */
#ifndef SCHEDULE_NAME_MAX
#define SCHEDULE_NAME_MAX 255
#endif

/* The most runs of one job at a time, in one worker and in all of them. Past this limit
 * a tick is lost, with a line in the log. */
#ifndef SCHEDULE_RUNS_MAX
#define SCHEDULE_RUNS_MAX 4096
#endif

/* One run of a task in a worker. */
struct schedule_run;

/* A job's work, in an app worker: 0 is success, every other number is a failure. A failure is
 * not an uncaught exception: it is logged, and the next tick comes. */
typedef int (*schedule_task)(struct messenger *app, struct schedule_run *run, void *arg);

/* A job. It needs a name, a task, a type, and an interval, a cron or immediate. */
struct schedule {
	const char *name; /* egg: the key, its file's path. Unique; without '"', '\\'
	                   * and control characters, at most SCHEDULE_NAME_MAX bytes */
	const char *type; /* "worker": one app worker, at random; "all": each of them */

	/* "500" or "500ms", "1.5s", "10m", "1 hour", "1d", "2w": from one tick to
	 * the next, without drift, however long the task takes.
	 * egg: npm humanize-ms */
	const char *interval;

	/*
	 * In local time. If the field of the seconds is left out, the second is 0.
	 *
	 *	*    *    *    *    *    *
	 *	|    |    |    |    |    +-- day of week: 0-7, 0 and 7 are Sunday; SUN-SAT; 1#2
	 *	|    |    |    |    +------- month: 1-12; JAN-DEC          is the second Monday
	 *	|    |    |    +------------ day of month: 1-31; L is the last
	 *	|    |    +----------------- hour: 0-23
	 *	|    +---------------------- minute: 0-59
	 *	+--------------------------- second: 0-59, may be left out
	 *
	 * Each is a list of values, ranges and steps: 1,5-9,20/10. If neither day field is
	 * a wildcard, a day is right if one of the two fields matches. Or @hourly, @daily,
	 * @weekly, @monthly, @yearly. If there is an interval, too, the cron is ignored.
	 * Where clocks change: see cron_next in cron.h.
	 * egg: npm cron-parser 2
	 */
	const char *cron;

	/* No tick after this local time: "2027-01-31", "2027-01-31 23:59" or
	 * "2027-01-31T23:59:59"; but the first tick of an immediate job comes anyway, as in
	 * egg. egg: cronOptions.endDate */
	const char *end_date;

	bool immediate;          /* a tick at egg-ready; the next as the interval or cron says */
	bool disable;            /* no ticks; only egg_schedule_run runs it */
	bool skip_while_running; /* D38: no tick while a run of this job goes on */

	schedule_task task;
	void *arg; /* handed to the task */
};

/*
 * Call these in the role functions, once in a process. The agent starts the clocks at
 * egg-ready, and stops them when it leaves; an agent that replaces a dead one starts them
 * anew. The jobs, and all that they point to, are read as long as the process lives. -1:
 * a job is not right, and one line on stderr says which, and why (EINVAL); there are jobs
 * already (EALREADY); ENOMEM. The role function then returns that -1: a failed start.
 *
 * The agent logs what came of each run, once. It knows which worker runs which job: a run
 * whose worker has died without having told its end has failed (D39), and
 * skip_while_running does not wait for it.
 *
 * A worker that leaves because of SIGTERM (a reload, or the cluster stops) gets no more ticks
 * (egg-schedule-leaving, egg-schedule-left) and finishes its runs first, within the close
 * timeout, in a callback of messenger_before_close. So add callbacks that take away what a
 * task needs after egg_schedule_app. In a worker whose channel is closed
 * (messenger_graceful_exit, or the master is dead) runs are not waited for.
 * egg: egg-schedule/agent.js, egg-schedule/app.js
 */
int egg_schedule_agent(struct messenger *agent, const struct schedule *jobs, size_t count);
int egg_schedule_app(struct messenger *app, const struct schedule *jobs, size_t count);

/*
 * In an app worker: run the task of that name here and now, whatever the clock says,
 * without the agent. -1 with ENOENT if there is no such job, ENOMEM, EAGAIN
 * (SCHEDULE_RUNS_MAX); otherwise 0, and the log says what came of it.
 * egg: app.runSchedule
 */
int egg_schedule_run(struct messenger *app, const char *name);

/*
 * A task that goes on after it has returned calls schedule_later and returns 0; and
 * something that it has started (a timer, a watched descriptor) calls schedule_done, once,
 * with 0 or with a number that says what failed. The run does not exist any more then. (A
 * task that called schedule_later and returns non-zero has failed at once: no schedule_done.)
 * egg: async subscribe()
 */
void schedule_later(struct schedule_run *run);
void schedule_done(struct schedule_run *run, int status);

/*
 * Where the lines about everyday work go (next tick, executing, succeed): to stdout, unless
 * another descriptor is given, or nowhere (-1). Call it before start_cluster, so that all
 * processes inherit it, and keep the descriptor open. (egg_scripts' daemon inherits it if it
 * is close-on-exec.) Failures are always logged on stderr.
 * egg: config.customLogger.scheduleLogger
 */
void egg_schedule_log(int descriptor);

#ifdef __cplusplus
}
#endif

#endif
