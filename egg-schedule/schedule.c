/*
 * The agent's part: it holds the clocks, tells workers when a job is due, and knows
 * who runs what.
 *
 *	          arm                     it is due                   arm
 *	egg-ready ---> a timer of the loop ---------> tick, and the next ---> ...
 *	                 |        ^
 *	                 +--------+ not yet: a wait that is too long for the loop, or
 *	                            cron, which looks at the wall clock every minute
 *
 * egg: egg-schedule/agent.js, lib/schedule.js, lib/strategy/{base,timer,worker,all}.js
 */
#include "schedule.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Somebody may set the wall clock: cron asks it at least so often. */
#define LOOK_AGAIN 60000

/* One run that goes on, as far as the agent knows. */
struct running {
	struct job *job;
	pid_t worker_id;
	char id[RUN_ID_SIZE];
};

/* There is one in a process. */
static struct {
	struct jobs jobs;
	struct running *runs; /* run_count of them, in no order; there is room for run_size */
	size_t run_count, run_size;
	uint64_t random;
	unsigned ticks;
} scheduler;

/* ---- who runs what (D39) ------------------------------------------------- */

/* Make room for so many more of a job. */
static bool
runs_reserve(const struct job *job, size_t more)
{
	size_t size = scheduler.run_size > 0 ? scheduler.run_size : 16;
	struct running *grown;

	if (more > SCHEDULE_RUNS_MAX - job->running) {
		errno = EAGAIN;
		return false;
	}
	while (size < scheduler.run_count + more)
		size *= 2;
	if (size == scheduler.run_size)
		return true;
	grown = realloc(scheduler.runs, size * sizeof *grown);
	if (grown == NULL)
		return false;
	scheduler.runs = grown;
	scheduler.run_size = size;
	return true;
}

/* There is room for it. */
static void
runs_add(struct job *job, const char *id, pid_t worker_id)
{
	struct running *run = &scheduler.runs[scheduler.run_count++];

	run->job = job;
	run->worker_id = worker_id;
	snprintf(run->id, sizeof run->id, "%s", id);
	job->running++;
}

static void
runs_remove(struct running *run)
{
	run->job->running--;
	*run = scheduler.runs[--scheduler.run_count];
}

static struct running *
runs_find(const char *id, pid_t worker_id)
{
	size_t i;

	for (i = 0; i < scheduler.run_count; i++)
		if (scheduler.runs[i].worker_id == worker_id &&
		    strcmp(scheduler.runs[i].id, id) == 0)
			return &scheduler.runs[i];
	return NULL;
}

static bool
is_listening(struct messenger *agent, pid_t pid)
{
	size_t count, i;
	const pid_t *pids = messenger_opids(agent, &count);

	for (i = 0; i < count; i++)
		if (pids[i] == pid)
			return true;
	return false;
}

/* egg-pids: the workers' runs that are no longer there have failed. */
static int
on_pids(struct messenger *agent, const struct message *message, void *arg)
{
	size_t i = scheduler.run_count;
	struct running *run;

	(void)message, (void)arg;
	while (i-- > 0) {
		run = &scheduler.runs[i];
		if (is_listening(agent, run->worker_id))
			continue;
		schedule_log_warn("[Job#%s] %s execute failed, worker %ld died", run->id,
		                  run->job->schedule->name, (long)run->worker_id);
		runs_remove(run);
	}
	return 0;
}

/* egg: onJobFinish. What has not ended is told by who could not be known to run it: an
 * app that was not ready at the tick, or that runs it since before this agent. */
static int
on_report(struct messenger *agent, const struct message *message, void *arg)
{
	struct running *run;
	struct run_info info;
	struct job *job;

	(void)arg;
	if (!schedule_info_parse(&info, message))
		return 0;
	run = runs_find(info.id, info.worker_id);
	if (info.ended && run != NULL) {
		runs_remove(run);
	} else if (!info.ended && run == NULL) {
		job = schedule_find_job(&scheduler.jobs, info.key);
		if (job != NULL && is_listening(agent, info.worker_id) && runs_reserve(job, 1))
			runs_add(job, info.id, info.worker_id);
	}
	return 0;
}

/* ---- lib/strategy/base.js ------------------------------------------------ */

/* Milliseconds by the clock on the wall. */
static int64_t
wall_clock(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static uint64_t
random_number(void)
{
	if (scheduler.random == 0)
		scheduler.random = (uint64_t)wall_clock() * 2654435761U + 1;
	scheduler.random ^= scheduler.random << 13;
	scheduler.random ^= scheduler.random >> 7;
	scheduler.random ^= scheduler.random << 17;
	return scheduler.random;
}

/* egg: getSeqId */
static void
make_info(struct job *job, struct run_info *info)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	*info = (struct run_info){.worker_id = 0};
	snprintf(info->key, sizeof info->key, "%s", job->schedule->name);
	snprintf(info->id, sizeof info->id, "%lld%lld%ld%u", (long long)wall_clock(),
	         (long long)now.tv_sec, now.tv_nsec, ++scheduler.ticks);
}

/* egg: sendOne. The agent itself chooses the worker, to know who it is. */
static int
send_one(struct messenger *agent, struct job *job, const struct run_info *info, const char *json)
{
	size_t count;
	const pid_t *pids = messenger_opids(agent, &count);
	pid_t pid;

	if (count == 0) {
		errno = ESRCH;
		return -1;
	}
	pid = pids[random_number() % count];
	if (!runs_reserve(job, 1) || messenger_send_to(agent, pid, "egg-schedule", json) == -1)
		return -1;
	runs_add(job, info->id, pid);
	return 0;
}

/* egg: sendAll */
static int
send_all(struct messenger *agent, struct job *job, const struct run_info *info, const char *json)
{
	size_t count, i;
	const pid_t *pids = messenger_opids(agent, &count);

	if (!runs_reserve(job, count) || messenger_send_to_app(agent, "egg-schedule", json) == -1)
		return -1;
	for (i = 0; i < count; i++)
		runs_add(job, info->id, pids[i]);
	return 0;
}

static void
tick(struct job *job)
{
	char json[RUN_JSON_SIZE];
	struct run_info info;
	int result;

	if (job->schedule->skip_while_running && job->running > 0) { /* D38 */
		schedule_log_info("[Timer] %s skip: %zu of its runs go on", job->schedule->name,
		                  job->running);
		return;
	}
	make_info(job, &info);
	schedule_info_print(&info, json, sizeof json);
	if (strcmp(job->schedule->type, "all") == 0)
		result = send_all(job->agent, job, &info, json);
	else
		result = send_one(job->agent, job, &info, json);
	if (result == -1)
		schedule_log_warn("[Job#%s] %s not sent: %s", info.id, info.key,
		                  errno == ESRCH    ? "no worker is listening"
		                  : errno == EAGAIN ? "too many of its runs go on"
		                                    : strerror(errno));
}

/* ---- lib/strategy/timer.js ----------------------------------------------- */

static int on_timer(struct messenger *agent, void *arg);

/* The clock that the job goes by. */
static int64_t
job_now(const struct job *job)
{
	return job->interval != 0 ? clutch_now() : wall_clock();
}

static void
arm(struct job *job)
{
	int64_t wait = job->due - job_now(job);
	int64_t most = job->interval != 0 ? INT_MAX : LOOK_AGAIN;

	wait = wait < 0 ? 0 : wait > most ? most : wait;
	job->has_no_timer = messenger_set_timeout(job->agent, (int)wait, on_timer, job) == -1;
	if (job->has_no_timer)
		schedule_log_warn("[Timer] %s waits for a timer: %s", job->schedule->name,
		                  strerror(errno));
}

/* Each minute: who could not be given a timer is given one now. */
static int
on_look(struct messenger *agent, void *arg)
{
	size_t i;

	(void)arg;
	for (i = 0; i < scheduler.jobs.count && !messenger_closing(agent); i++)
		if (scheduler.jobs.job[i].has_no_timer)
			arm(&scheduler.jobs.job[i]);
	return 0;
}

/* egg: utility.logDate */
static void
print_date(char *date, size_t size, int64_t time)
{
	time_t seconds = (time_t)(time / 1000);
	struct tm local;
	char text[32] = "?";

	if (localtime_r(&seconds, &local) != NULL)
		strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S", &local);
	snprintf(date, size, "%s.%03d", text, (int)(time % 1000));
}

/* egg: getNextTick. When is it due after `now`? false: never. */
static bool
next_due(struct job *job, int64_t now)
{
	time_t next;

	if (job->interval != 0) {
		/* from the last one on, so that it does not drift; what was missed is gone */
		job->due += job->due <= now ? (1 + (now - job->due) / job->interval) * job->interval
		                            : 0;
		return true;
	}
	next = job->has_cron ? cron_next(&job->cron, (time_t)(now / 1000)) : -1;
	job->due = (int64_t)next * 1000;
	job->looked_at = now;
	return next != -1;
}

/* egg: _scheduleNext */
static void
schedule_next(struct job *job)
{
	int64_t now = job_now(job), wall = wall_clock();
	char date[64];

	if (!next_due(job, now) || wall + (job->due - now) > job->end) {
		schedule_log_info("[Timer] %s reach endDate, will stop", job->schedule->name);
		return;
	}
	print_date(date, sizeof date, wall + (job->due - now));
	schedule_log_info("[Timer] %s next time will execute after %lldms at %s",
	                  job->schedule->name, (long long)(job->due - now), date);
	arm(job);
}

/* Is it due? It is not where the wait was too long for one timer, where the wall clock
 * was set, or where it runs slower than the other one. */
static int
on_timer(struct messenger *agent, void *arg)
{
	struct job *job = arg;
	int64_t now = job_now(job);

	if (messenger_closing(agent)) /* egg: schedule.closed */
		return 0;
	if (now >= job->due) {
		tick(job);
		schedule_next(job);
	} else if (job->interval == 0 && now < job->looked_at) {
		schedule_next(job); /* the clock was put back: there may be an earlier time */
	} else {
		job->looked_at = now;
		arm(job);
	}
	return 0;
}

/* egg: start */
static int
on_ready(struct messenger *agent, const struct message *message, void *arg)
{
	struct job *job;
	size_t i;

	(void)message, (void)arg;
	for (i = 0; i < scheduler.jobs.count; i++) {
		job = &scheduler.jobs.job[i];
		job->agent = agent;
		job->due = job_now(job);
		job->looked_at = job->due;
		if (job->schedule->disable)
			continue;
		if (job->schedule->immediate) {
			schedule_log_info("[Timer] %s next time will execute immediate",
			                  job->schedule->name);
			arm(job);
		} else {
			schedule_next(job);
		}
	}
	return 0;
}

int
egg_schedule_agent(struct messenger *agent, const struct schedule *jobs, size_t count)
{
	if (schedule_load(&scheduler.jobs, jobs, count) == -1 ||
	    messenger_on(agent, "egg-schedule", on_report, NULL) == -1 ||
	    messenger_on(agent, "egg-pids", on_pids, NULL) == -1 ||
	    messenger_set_interval(agent, LOOK_AGAIN, on_look, NULL) == -1)
		return -1;
	return messenger_once(agent, "egg-ready", on_ready, NULL);
}
