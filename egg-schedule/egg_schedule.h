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
 * The agent holds the clocks. When a job is due it sends `egg-schedule`, and who
 * has run the task answers with the same, and with what came of it:
 *
 *	agent                                                    app
 *	  |  {"key":"clean","id":"...","args":[]}                 |
 *	  | ----------------------------------------------------> | task()
 *	  |  {... "success":true,"workerId":4711,"rt":12}         |
 *	  | <---------------------------------------------------- |
 *
 * What a task does on its way is its own: it may watch descriptors, set timers
 * and send messages, and finish later (schedule_later).
 *
 * egg: npm egg-schedule
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

/* The runs of one job that may go on at a time, in one worker and in all of them:
 * past it a tick is lost, with a line in the log. */
#ifndef SCHEDULE_RUNS_MAX
#define SCHEDULE_RUNS_MAX 4096
#endif

/* One run of a task in a worker. */
struct schedule_run;

/* A job's work, in an app worker: 0 is success, all else has failed. That is no
 * uncaught exception: it is logged and told to the agent, and the next tick comes. */
typedef int (*schedule_task)(struct messenger *app, struct schedule_run *run, void *arg);

/* A job. It needs a name, a task, a type, and an interval, a cron or immediate. */
struct schedule {
	const char *name; /* egg: the key, its file's path. Unique; without '"', '\\'
	                   * and control characters, at most SCHEDULE_NAME_MAX bytes */
	const char *type; /* "worker": one of them, at random; "all": each of them */

	/* "500" or "500ms", "1.5s", "10m", "1 hour", "1d", "2w": from one tick to
	 * the next, without drift, however long the task takes.
	 * egg: npm humanize-ms */
	const char *interval;

	/*
	 * Local time; without seconds they are 0.
	 *
	 *	*    *    *    *    *    *
	 *	|    |    |    |    |    +-- day of week: 0-7, 0 and 7 are Sunday; SUN-SAT; 1#2
	 *	|    |    |    |    +------- month: 1-12; JAN-DEC          is the second Monday
	 *	|    |    |    +------------ day of month: 1-31; L is the last
	 *	|    |    +----------------- hour: 0-23
	 *	|    +---------------------- minute: 0-59
	 *	+--------------------------- second: 0-59, may be left out
	 *
	 * Each is a list of values, ranges and steps: 1,5-9,20/10. A day is right if
	 * the one or the other day field is, where neither is a wildcard. Or @hourly,
	 * @daily, @weekly, @monthly, @yearly. If there is an interval, too, that one
	 * counts.
	 * egg: npm cron-parser 2
	 */
	const char *cron;

	/* No tick after this local time: "2027-01-31", "2027-01-31 23:59" or
	 * "2027-01-31T23:59:59"; but the first one of immediate comes anyway, as in
	 * egg. egg: cronOptions.endDate */
	const char *end_date;

	bool immediate; /* a tick at once, at egg-ready; the next as interval or cron say */
	bool disable;   /* no tick at all; only egg_schedule_run runs it */
	bool skip_while_running; /* D38: no tick while a run of this job goes on */

	schedule_task task;
	void *arg; /* handed to the task */
};

/*
 * To be called in the role functions, once in a process: the agent starts the
 * clocks at egg-ready, and stops them when it leaves; an agent that replaces a
 * dead one starts them anew. The jobs, and all that they point to, are read as long
 * as the process lives. -1: a job is not right, and one line on stderr says which,
 * and why (EINVAL); there are jobs already (EALREADY); ENOMEM. The role function
 * then returns that -1: a failed start.
 *
 * A worker that dies in a task, or closes its channel, has failed; the agent logs
 * it (D39), and skip_while_running does not wait for it.
 * egg: egg-schedule/agent.js, egg-schedule/app.js
 */
int egg_schedule_agent(struct messenger *agent, const struct schedule *jobs, size_t count);
int egg_schedule_app(struct messenger *app, const struct schedule *jobs, size_t count);

/*
 * In an app worker: run the task of that name here and now, whatever the clock
 * says; the agent is not told. -1 with ENOENT if there is no such job, ENOMEM,
 * EAGAIN (SCHEDULE_RUNS_MAX); otherwise 0, and the log says what came of it.
 * egg: app.runSchedule
 */
int egg_schedule_run(struct messenger *app, const char *name);

/*
 * A task that goes on after it has returned: it calls schedule_later, returns 0,
 * and something that it set in motion calls schedule_done, once, with 0 or with
 * what failed. The run is gone then. (A task that called schedule_later and
 * returns non-zero has failed at once: no schedule_done.)
 * egg: async subscribe()
 */
void schedule_later(struct schedule_run *run);
void schedule_done(struct schedule_run *run, int status);

/*
 * Where the lines of everyday work go (next tick, executing, succeed): to stdout,
 * unless another descriptor is given, or -1 for nowhere. It is read as long as the
 * process lives; set it before start_cluster, and all inherit it (egg_scripts' daemon
 * does if it is close-on-exec). What went wrong goes to stderr, always.
 * egg: config.customLogger.scheduleLogger
 */
void egg_schedule_log(int descriptor);

#ifdef __cplusplus
}
#endif

#endif
