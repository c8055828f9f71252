/*
 * The app worker's part: it runs the tasks, and tells the agent what came of them.
 *
 *	a tick arrives --> waits: is the app ready? --> task() --> the run has ended: tell
 *	                   one task in a turn             |        the agent, free the run
 *	                                           schedule_later      ^
 *	                                                  +--> schedule_done
 *
 * egg: egg-schedule/app.js, egg-schedule/lib/schedule_worker.js
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "schedule.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* How long a worker that leaves waits for the agent's answer, in ms. */
#define LEAVING_TIMEOUT 500

/* If the queue to the agent is full, tell it again after this time, in ms. */
#define TELL_AGAIN 100

struct schedule_run {
	struct schedule_run *next;
	struct messenger *app;
	struct job *job;
	struct run_info info;
	int64_t start;
	bool by_hand; /* by egg_schedule_run: the agent does not know of it */
	bool begun;
	bool in_task; /* the task has been called and has not returned yet */
	bool later, done;
	int status; /* given to schedule_done within the task */
};

/* There is one app worker in a process. */
static struct {
	struct jobs jobs;
	struct schedule_run *runs; /* in order of their ticks */
	bool ready;                /* egg-ready has come */
	pid_t agent;               /* the agent that knows of the runs */
	bool telling;              /* a timer is set: tell_again */
	bool beginning;            /* a timer is set: begin_next */
	bool no_more_ticks;        /* the worker leaves */
} worker;

/* ---- one run ------------------------------------------------------------- */

static struct schedule_run *
run_create(struct messenger *app, struct job *job, const char *id)
{
	struct schedule_run *run, **last = &worker.runs;

	if (job->running == SCHEDULE_RUNS_MAX) {
		errno = EAGAIN;
		return NULL;
	}
	run = calloc(1, sizeof *run);
	if (run == NULL)
		return NULL;
	run->app = app;
	run->job = job;
	run->info.worker_id = messenger_pid(app);
	snprintf(run->info.key, sizeof run->info.key, "%s", job->schedule->name);
	snprintf(run->info.id, sizeof run->info.id, "%s", id);
	while (*last != NULL)
		last = &(*last)->next;
	*last = run;
	job->running++;
	return run;
}

static void
run_free(struct schedule_run *run)
{
	struct schedule_run **at = &worker.runs;

	while (*at != run)
		at = &(*at)->next;
	*at = run->next;
	run->job->running--;
	free(run);
}

static int
tell_agent(struct messenger *app, const struct run_info *info)
{
	char json[RUN_JSON_SIZE];

	schedule_info_print(info, json, sizeof json);
	return messenger_send_to_agent(app, "egg-schedule", json);
}

static int tell_again(struct messenger *app, void *arg);

/* Tell the agent that the run has ended; if there is no room now, tell it later, because
 * the agent may be waiting for that (skip_while_running). */
static void
run_tell(struct schedule_run *run)
{
	struct messenger *app = run->app;

	if (run->by_hand || tell_agent(app, &run->info) == 0 ||
	    (errno != ENOBUFS && errno != ENOMEM))
		run_free(run);
	else if (!worker.telling)
		worker.telling = messenger_set_timeout(app, TELL_AGAIN, tell_again, NULL) != -1;
}

static int
tell_again(struct messenger *app, void *arg)
{
	struct schedule_run *run, *next;

	(void)app, (void)arg;
	worker.telling = false;
	for (run = worker.runs; run != NULL; run = next) {
		next = run->next;
		if (run->info.ended)
			run_tell(run);
	}
	return 0;
}

/* Only the end of a run by hand is logged here. All others are logged by the agent, which
 * also knows of the workers that have died: so the log has one end of each run. */
static void
run_log_by_hand(const struct run_info *info)
{
	if (info->success)
		schedule_log_info("[Job#%s] %s execute succeed, used %lldms.", info->id, info->key,
		                  (long long)info->rt);
	else
		schedule_log_warn("[Job#%s] %s execute failed, used %lldms. %s", info->id,
		                  info->key, (long long)info->rt, info->message);
}

static void
run_end(struct schedule_run *run, int status)
{
	struct run_info *info = &run->info;

	info->ended = true;
	info->success = status == 0;
	info->rt = clutch_now() - run->start;
	if (!info->success)
		snprintf(info->message, sizeof info->message, "The task returned %d", status);
	if (run->by_hand)
		run_log_by_hand(info);
	run_tell(run);
}

static void
run_begin(struct schedule_run *run)
{
	int status;

	schedule_log_info("[Job#%s] %s executing by app", run->info.id, run->info.key);
	run->begun = true;
	run->start = clutch_now();
	run->in_task = true;
	status = run->job->schedule->task(run->app, run, run->job->schedule->arg);
	run->in_task = false;
	if (run->done)
		run_end(run, run->status);
	else if (status != 0 || !run->later)
		run_end(run, status);
}

void
schedule_later(struct schedule_run *run)
{
	run->later = true;
}

void
schedule_done(struct schedule_run *run, int status)
{
	if (run->in_task) { /* the task may still use the run */
		run->done = true;
		run->status = status;
	} else {
		run_end(run, status);
	}
}

int
egg_schedule_run(struct messenger *app, const char *name)
{
	struct job *job = schedule_find_job(&worker.jobs, name);
	struct schedule_run *run;

	if (job == NULL) {
		errno = ENOENT;
		return -1;
	}
	run = run_create(app, job, "by hand");
	if (run == NULL)
		return -1;
	run->by_hand = true;
	run_begin(run);
	return 0;
}

/* ---- ticks --------------------------------------------------------------- */

static struct schedule_run *
first_waiting(void)
{
	struct schedule_run *run = worker.runs;

	while (run != NULL && run->begun)
		run = run->next;
	return run;
}

static int begin_next(struct messenger *app, void *arg);

/* Each task begins in a turn of its own. By then the results of earlier runs have been
 * written, so that a task that crashes does not take them along. */
static void
begin_waiting(struct messenger *app)
{
	struct schedule_run *run;

	while (worker.ready && !worker.beginning && (run = first_waiting()) != NULL) {
		worker.beginning = messenger_set_timeout(app, 0, begin_next, NULL) != -1;
		if (!worker.beginning)
			run_begin(run); /* there is no memory for a timer */
	}
}

static int
begin_next(struct messenger *app, void *arg)
{
	struct schedule_run *run = first_waiting();

	(void)arg;
	if (run != NULL)
		run_begin(run);
	worker.beginning = false;
	begin_waiting(app);
	return 0;
}

/* Tell the agent that this run will never begin: it may be waiting for its end
 * (skip_while_running). */
static void
refuse_tick(struct messenger *app, const struct run_info *tick, const char *why)
{
	struct run_info info = *tick;

	info.ended = true;
	info.rt = -1;
	info.worker_id = messenger_pid(app);
	snprintf(info.message, sizeof info.message, "%s", why);
	tell_agent(app, &info);
}

/* egg: app.messenger.on('egg-schedule', ...); await app.ready() */
static int
on_tick(struct messenger *app, const struct message *message, void *arg)
{
	struct run_info tick;
	struct job *job;

	(void)arg;
	if (worker.no_more_ticks)
		return 0;
	if (!schedule_info_parse(&tick, message)) {
		schedule_log_warn("[egg-schedule] a message that is not a tick: %.100s",
		                  message->data != NULL ? message->data : "undefined");
		return 0;
	}
	job = schedule_find_job(&worker.jobs, tick.key);
	if (job == NULL || job->schedule->disable)
		refuse_tick(app, &tick, job == NULL ? "unknown task" : "disable");
	else if (run_create(app, job, tick.id) == NULL)
		refuse_tick(app, &tick,
		            errno == EAGAIN ? "execute failed: too many of its runs go on"
		                            : "execute failed: no memory left");
	begin_waiting(app);
	return 0;
}

/* The agent does not know yet that this app has ticks: they came before the app was ready. */
static int
on_ready(struct messenger *app, const struct message *message, void *arg)
{
	const struct schedule_run *run;

	(void)message, (void)arg;
	worker.ready = true;
	for (run = worker.runs; run != NULL; run = run->next)
		if (!run->begun)
			tell_agent(app, &run->info);
	begin_waiting(app);
	return 0;
}

/* The agent sends no more ticks: those that it had sent before have arrived. */
static int
on_leaving(struct messenger *app, const struct message *message, void *arg)
{
	(void)app, (void)message, (void)arg;
	worker.no_more_ticks = true;
	return 0;
}

static void
tell_leaving(struct messenger *app, const char *action)
{
	char pid[16];

	snprintf(pid, sizeof pid, "%ld", (long)messenger_pid(app));
	messenger_send_to_agent(app, action, pid);
}

/*
 * The worker leaves. Its runs end first, within the close timeout, and as long as there is
 * a channel: without a channel nobody hears of their ends. Ticks may be on their way here,
 * so the agent is asked to send no more, and answers.
 */
static int
on_close(struct messenger *app, void *arg)
{
	int64_t left, deadline = clutch_now() + LEAVING_TIMEOUT;
	int open = 1;

	(void)arg;
	tell_leaving(app, "egg-schedule-leaving");
	while (open == 1 && !worker.no_more_ticks && (left = deadline - clutch_now()) > 0)
		open = messenger_step(app, (int)left);
	while (open == 1 && worker.ready && worker.runs != NULL)
		open = messenger_step(app, -1);
	worker.no_more_ticks = true;
	if (open == 1)
		tell_leaving(app, "egg-schedule-left");
	return 0;
}

/* A new agent does not know the runs that an earlier agent has begun. */
static int
on_pids(struct messenger *app, const struct message *message, void *arg)
{
	const struct schedule_run *run;
	size_t count;
	const pid_t *pids = messenger_opids(app, &count);

	(void)message, (void)arg;
	if (count == 0 || pids[0] == worker.agent)
		return 0;
	if (worker.agent != 0)
		for (run = worker.runs; run != NULL; run = run->next)
			if (worker.ready && !run->by_hand && !run->info.ended)
				tell_agent(app, &run->info);
	worker.agent = pids[0];
	return 0;
}

int
egg_schedule_app(struct messenger *app, const struct schedule *jobs, size_t count)
{
	size_t i;

	if (schedule_load(&worker.jobs, jobs, count) == -1)
		return -1;
	for (i = 0; i < count; i++)
		if (!jobs[i].disable)
			schedule_log_info("[egg-schedule]: register schedule %s", jobs[i].name);
	if (messenger_on(app, "egg-schedule", on_tick, NULL) == -1 ||
	    messenger_on(app, "egg-schedule-leaving", on_leaving, NULL) == -1 ||
	    messenger_on(app, "egg-pids", on_pids, NULL) == -1 ||
	    messenger_before_close(app, on_close, NULL) == -1)
		return -1;
	return messenger_once(app, "egg-ready", on_ready, NULL);
}
