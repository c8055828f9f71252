/*
 * The agent's part: it holds the clocks, tells workers when a job is due, knows which
 * worker runs which job, and logs what came of each run.
 *
 *	          arm                     it is due                   arm
 *	egg-ready ---> a timer of the loop ---------> tick, and the next ---> ...
 *	                 |        ^
 *	                 +--------+ not yet: the wait is too long for a timer, or the job
 *	                            has a cron: the agent looks at the wall clock each minute
 *
 * egg: egg-schedule/agent.js, lib/schedule.js, lib/strategy/{base,timer,worker,all}.js
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "schedule.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* How often to look at the wall clock for cron, in ms: somebody may set it. */
#define LOOK_AGAIN 60000

/* How often to ask whether a worker that egg-pids does not name any more is dead, in ms. */
#define LOOK_FOR_DEAD 200

/* One run that has not ended, as far as the agent knows. */
struct running {
	struct job *job;
	pid_t worker_id;
	char id[RUN_ID_SIZE];
	bool dead; /* the worker is dead, and report_death has said so */
};

/* There is one agent in a process. */
static struct {
	struct jobs jobs;
	struct running *runs; /* in no order; there is room for run_size */
	size_t run_count, run_size;
	bool looking_for_dead;             /* a timer is set */
	pid_t leaving[CLUTCH_WORKERS_MAX]; /* of the listening workers, those that leave */
	size_t leaving_count;
	uint64_t random;
	unsigned ticks;
} scheduler;

/* ---- which worker runs which job (D39) ------------------------------------- */

/* Make room for `more` runs of a job. EAGAIN: it would have too many. */
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

/* There must be room: see runs_reserve. */
static void
runs_add(struct job *job, const char *id, pid_t worker_id)
{
	struct running *run = &scheduler.runs[scheduler.run_count++];

	run->job = job;
	run->worker_id = worker_id;
	run->dead = false;
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

static bool
takes_ticks(struct messenger *agent, pid_t pid)
{
	size_t i;

	for (i = 0; i < scheduler.leaving_count; i++)
		if (scheduler.leaving[i] == pid)
			return false;
	return is_listening(agent, pid);
}

/* A worker that egg-pids does not name any more either leaves, and finishes its runs, or is
 * dead. The kernel knows which: once the master has reaped the worker, there is no process
 * of that number. (The kernel does not give a number to another process so soon.) */
static bool
is_dead(pid_t worker_id)
{
	return kill(worker_id, 0) == -1 && errno == ESRCH;
}

/* The agent sends itself the report, by way of the master. What the dead worker has sent may
 * still be on that way, and arrives first. So this report ends the run only if the worker has
 * not reported an end itself. */
static bool
report_death(struct messenger *agent, const struct running *run)
{
	struct run_info info = {.worker_id = run->worker_id, .ended = true, .rt = -1};
	char json[RUN_JSON_SIZE];

	snprintf(info.key, sizeof info.key, "%s", run->job->schedule->name);
	snprintf(info.id, sizeof info.id, "%s", run->id);
	snprintf(info.message, sizeof info.message, "execute failed, worker %ld died",
	         (long)run->worker_id);
	schedule_info_print(&info, json, sizeof json);
	return messenger_send_to(agent, messenger_pid(agent), "egg-schedule", json) == 0;
}

/* Returns how many runs may end by a death at any time: their workers leave, or are dead,
 * and the agent has not heard yet what has become of them. */
static size_t
report_deaths(struct messenger *agent)
{
	struct running *run = scheduler.runs;
	size_t i, count = 0;

	for (i = 0; i < scheduler.run_count; i++, run++) {
		if (!run->dead && is_dead(run->worker_id))
			run->dead = report_death(agent, run);
		count += run->dead || !takes_ticks(agent, run->worker_id);
	}
	return count;
}

/* As long as there are such runs, look for deaths again and again. */
static int
on_look_for_dead(struct messenger *agent, void *arg)
{
	(void)arg;
	scheduler.looking_for_dead =
		report_deaths(agent) > 0 &&
		messenger_set_timeout(agent, LOOK_FOR_DEAD, on_look_for_dead, NULL) != -1;
	return 0;
}

/* egg-pids; and each minute, in case there was no memory for a timer. */
static void
look_for_dead(struct messenger *agent)
{
	if (!scheduler.looking_for_dead)
		on_look_for_dead(agent, NULL);
	else
		report_deaths(agent);
}

static int
on_pids(struct messenger *agent, const struct message *message, void *arg)
{
	size_t i, kept = 0;

	(void)message, (void)arg;
	for (i = 0; i < scheduler.leaving_count; i++)
		if (is_listening(agent, scheduler.leaving[i]))
			scheduler.leaving[kept++] = scheduler.leaving[i];
	scheduler.leaving_count = kept;
	look_for_dead(agent);
	return 0;
}

/* One line about the end of a run, or of a tick that could not be kept. */
static void
log_end(const struct run_info *info)
{
	if (info->success)
		schedule_log_info("[Job#%s] %s execute succeed, used %lldms.", info->id, info->key,
		                  (long long)info->rt);
	else if (info->rt >= 0)
		schedule_log_warn("[Job#%s] %s execute failed, used %lldms. %s", info->id,
		                  info->key, (long long)info->rt, info->message);
	else
		schedule_log_warn("[Job#%s] %s %s", info->id, info->key, info->message);
}

/*
 * egg: onJobFinish. A worker also says which run it has begun, if this agent cannot know that:
 * the worker was not ready at the tick, or an earlier agent sent it. The end of a run that
 * this agent does not know is logged, too; but what this agent says itself (report_death)
 * only counts if the run has not ended before.
 */
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
	if (info.ended) {
		if (run != NULL || message->from != ROLE_AGENT)
			log_end(&info);
		if (run != NULL)
			runs_remove(run);
	} else if (run == NULL) {
		job = schedule_find_job(&scheduler.jobs, info.key);
		if (job != NULL && is_listening(agent, info.worker_id) && runs_reserve(job, 1))
			runs_add(job, info.id, info.worker_id);
	}
	return 0;
}

/* The pid in the data of a message about leaving, or 0. */
static pid_t
leaving_pid(const struct message *message)
{
	long pid = message->data != NULL ? strtol(message->data, NULL, 10) : 0;

	return pid > 0 && pid <= INT32_MAX ? (pid_t)pid : 0;
}

/* A worker begins to leave: send it no more ticks. The answer arrives behind the last one. */
static int
on_leaving(struct messenger *agent, const struct message *message, void *arg)
{
	pid_t pid = leaving_pid(message);

	(void)arg;
	if (takes_ticks(agent, pid) && scheduler.leaving_count < CLUTCH_WORKERS_MAX)
		scheduler.leaving[scheduler.leaving_count++] = pid;
	if (pid != 0)
		messenger_send_to(agent, pid, "egg-schedule-leaving", NULL);
	return 0;
}

/* A worker has left, and before that it has reported the ends of all its runs. If a run is
 * still open, its tick never reached the worker, because the broadcast left the worker out. */
static int
on_left(struct messenger *agent, const struct message *message, void *arg)
{
	size_t i = scheduler.run_count;
	pid_t pid = leaving_pid(message);

	(void)agent, (void)arg;
	while (i-- > 0)
		if (scheduler.runs[i].worker_id == pid)
			runs_remove(&scheduler.runs[i]);
	return 0;
}

/* When the cluster stops, the workers leave first, and then the agent. So the agent hears the
 * last reports of the workers, and no run is left without an end. */
static int
on_close(struct messenger *agent, void *arg)
{
	int64_t deadline = clutch_now() + 2 * LOOK_FOR_DEAD;

	(void)arg;
	while (report_deaths(agent) > 0 && clutch_now() < deadline &&
	       messenger_step(agent, LOOK_FOR_DEAD) == 1)
		;
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

/* One of the workers that take ticks, or 0. */
static pid_t
random_worker(struct messenger *agent)
{
	size_t count, i, seen = 0;
	const pid_t *pids = messenger_opids(agent, &count);
	pid_t worker = 0;

	for (i = 0; i < count; i++)
		if (takes_ticks(agent, pids[i]) && random_number() % ++seen == 0)
			worker = pids[i];
	return worker;
}

/* egg: sendOne. The agent chooses the worker itself, so that it knows which worker runs it. */
static int
send_one(struct messenger *agent, struct job *job, const struct run_info *info, const char *json)
{
	pid_t pid = random_worker(agent);

	if (pid == 0) {
		errno = ESRCH;
		return -1;
	}
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
		if (takes_ticks(agent, pids[i]))
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

/* The job's clock: an interval must not change when somebody sets the wall clock. */
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

/* Each minute: set the timers for which there was no memory before. */
static int
on_look(struct messenger *agent, void *arg)
{
	size_t i;

	(void)arg;
	look_for_dead(agent);
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

/* egg: getNextTick. Find when the job is due after `now`. false: never again. */
static bool
next_due(struct job *job, int64_t now)
{
	time_t next;

	if (job->interval != 0) {
		/* count from the last tick, so that there is no drift; missed ticks are lost */
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

/* Is the job due? It is not if the wait was too long for one timer, if somebody set the wall
 * clock, or if the wall clock is slower than the clock of the timers. */
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
	    messenger_on(agent, "egg-schedule-leaving", on_leaving, NULL) == -1 ||
	    messenger_on(agent, "egg-schedule-left", on_left, NULL) == -1 ||
	    messenger_on(agent, "egg-pids", on_pids, NULL) == -1 ||
	    messenger_before_close(agent, on_close, NULL) == -1 ||
	    messenger_set_interval(agent, LOOK_AGAIN, on_look, NULL) == -1)
		return -1;
	return messenger_once(agent, "egg-ready", on_ready, NULL);
}
