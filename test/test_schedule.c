/*
 * egg-schedule in live clusters: which worker runs a job, and the result of the run.
 *
 * The agent's clocks stand still and are advanced by the test, so no result here
 * depends on the speed of the machine.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "egg-schedule/egg_schedule.h"
#include "harness.h"

#include <criterion/criterion.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

TestSuite(schedule, .timeout = 120);

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* ---- the clocks ------------------------------------------------------------- */

static bool clocks_stand; /* of this process */
static int64_t wall, steady;

/* This function takes the place of libc's. */
int
clock_gettime(clockid_t clock, struct timespec *now)
{
	int64_t time = clock == CLOCK_REALTIME ? wall : steady;

	if (!clocks_stand || (clock != CLOCK_REALTIME && clock != CLOCK_MONOTONIC))
		return (int)syscall(SYS_clock_gettime, clock, now);
	now->tv_sec = time / 1000;
	now->tv_nsec = time % 1000 * 1000000;
	return 0;
}

static int timers_to_fail; /* so many calls fail, in this process */

int __real_messenger_set_timeout(struct messenger *, int, messenger_timer, void *);
int __wrap_messenger_set_timeout(struct messenger *, int, messenger_timer, void *);

/* The linker puts this function in the place of messenger_set_timeout. */
int
__wrap_messenger_set_timeout(struct messenger *messenger, int milliseconds, messenger_timer timer,
                             void *arg)
{
	if (timers_to_fail == 0)
		return __real_messenger_set_timeout(messenger, milliseconds, timer, arg);
	timers_to_fail--;
	errno = ENOMEM;
	return -1;
}

/* text: "2027-03-28 02:30:00", in local time. */
static time_t
local_time(const char *text)
{
	struct tm date = {.tm_isdst = -1};

	if (strptime(text, "%Y-%m-%d %H:%M:%S", &date) == NULL)
		abort();
	return mktime(&date);
}

static void
use_zone(const char *zone)
{
	setenv("TZ", zone, 1);
	tzset();
}

/* ---- clusters --------------------------------------------------------------- */

/* The cluster's processes inherit these variables: set them before the start. */
static const struct schedule *jobs;
static size_t job_count, app_job_count;
static const char *start_time = "2027-06-01 12:00:00";
static bool real_clocks, app_loads, advances_when_it_closes;

static struct schedule_run *held[16];
static size_t held_count;

static char ok[] = "ok", by_cron[] = "cron", fails[] = "fail", dies[] = "die", holds[] = "hold",
	    ends_within[] = "done within", later_fails[] = "later and fail";

/* The task of all jobs. Its arg says how the run ends. */
static int
task(struct messenger *app, struct schedule_run *run, void *arg)
{
	const char *how = arg;

	report(app, "ran %s", how);
	if (strcmp(how, "fail") == 0)
		return 3;
	if (strcmp(how, "die") == 0)
		raise(SIGKILL);
	if (strcmp(how, "hold") == 0 || strcmp(how, "later and fail") == 0 ||
	    strcmp(how, "done within") == 0)
		schedule_later(run);
	if (strcmp(how, "done within") == 0)
		schedule_done(run, 5);
	if (strcmp(how, "hold") == 0)
		held[held_count++] = run;
	return strcmp(how, "later and fail") == 0 ? 4 : 0;
}

static void
run_by_hand(struct messenger *app, const char *name)
{
	if (egg_schedule_run(app, name) == -1)
		report(app, "cannot run %s: %s", name, strerror(errno));
}

static void
advance_clocks(struct messenger *messenger, int64_t by)
{
	wall += by;
	steady += by;
	report(messenger, "advanced");
}

static int
order_advance(struct messenger *messenger, const char *line)
{
	advance_clocks(messenger, atoll(order_rest(line)));
	return 0;
}

static int
order_wall(struct messenger *messenger, const char *line)
{
	(void)messenger;
	wall = (int64_t)local_time(order_rest(line)) * 1000;
	return 0;
}

static int
order_fail(struct messenger *messenger, const char *line)
{
	(void)messenger;
	timers_to_fail = atoi(order_rest(line));
	return 0;
}

static int
order_settle(struct messenger *agent, const char *line)
{
	return messenger_send_to_app(agent, "test-settle", order_rest(line));
}

static int
order_done(struct messenger *app, const char *line)
{
	(void)app;
	schedule_done(held[0], atoi(order_rest(line)));
	memmove(held, held + 1, --held_count * sizeof *held);
	return 0;
}

static int
order_run(struct messenger *app, const char *line)
{
	run_by_hand(app, order_rest(line));
	return 0;
}

static const struct order orders[] = {{"advance", order_advance},
                                      {"wall", order_wall},
                                      {"fail", order_fail},
                                      {"settle", order_settle},
                                      {"done", order_done},
                                      {"run", order_run},
                                      {NULL, NULL}};

static int settle_turns;
static char settle_number[32];

/* In an app: each task begins in its own turn of the loop, so let some turns pass first. */
static int
settle_later(struct messenger *app, void *arg)
{
	if (settle_turns-- > 0)
		return messenger_set_timeout(app, 0, settle_later, arg) != -1 ? 0 : -1;
	return messenger_send_to_agent(app, "test-settle", settle_number);
}

/* Messages arrive in order: when this message arrives, all earlier messages have arrived. */
static int
on_settle(struct messenger *messenger, const struct message *message, void *arg)
{
	if (messenger_role(messenger) == ROLE_AGENT) {
		report(messenger, "settled %s", message->data);
		return 0;
	}
	snprintf(settle_number, sizeof settle_number, "%s", message->data);
	settle_turns = 8;
	return settle_later(messenger, arg);
}

/* Time passes while the agent leaves. */
static int
on_close(struct messenger *agent, void *arg)
{
	int i;

	(void)arg;
	report(agent, "closes");
	for (i = 0; i < 3; i++) {
		advance_clocks(agent, 3600000);
		messenger_step(agent, 0);
	}
	return 0;
}

static int
agent(struct messenger *agent, void *arg)
{
	(void)arg;
	if (!real_clocks) {
		steady = clutch_now();
		wall = (int64_t)local_time(start_time) * 1000;
		clocks_stand = true;
	}
	if (advances_when_it_closes)
		messenger_before_close(agent, on_close, NULL);
	obey_orders(agent, orders);
	messenger_on(agent, "test-settle", on_settle, NULL);
	return observe(agent) != 0 || egg_schedule_agent(agent, jobs, job_count) != 0;
}

static int
app(struct messenger *app, void *arg)
{
	(void)arg;
	if (app_loads)
		messenger_ready_later(app);
	obey_orders(app, orders);
	messenger_on(app, "test-settle", on_settle, NULL);
	return observe(app) != 0 || egg_schedule_app(app, jobs, app_job_count) != 0;
}

static struct cluster *
start(const struct schedule *schedules, size_t count, int workers)
{
	jobs = schedules;
	job_count = app_job_count = count;
	return cluster_start(&(struct options){.agent = agent, .app = app, .workers = workers});
}

/* Start a cluster and wait until its agent has set the timers of the jobs. */
static struct cluster *
started(const struct schedule *schedules, size_t count, int workers)
{
	struct cluster *c = start(schedules, count, workers);

	cluster_ready(c);
	cluster_wait(c, 0, "[Timer] ");
	return c;
}

/* Wait until the apps have done all the agent's orders, and the agent has their answers. */
static void
settle(struct cluster *c, const char *agent_name, int apps)
{
	static int number;
	size_t at = 0;
	char line[32];

	snprintf(line, sizeof line, "settle %d", ++number);
	cluster_order(c, agent_name, line);
	while (apps-- > 0)
		at = cluster_wait(c, at, ":%s settled %d", agent_name, number);
}

/* Let `by` milliseconds pass, and wait until the jobs that are due have been run. */
static void
pass(struct cluster *c, const char *agent_name, int apps, long long by)
{
	size_t mark = cluster_mark(c);
	char line[32];

	snprintf(line, sizeof line, "advance %lld", by);
	cluster_order(c, agent_name, line);
	cluster_wait(c, mark, ":%s advanced", agent_name);
	settle(c, agent_name, apps); /* the agent reads this order after its timers have run */
}

/* ---- which worker runs a job -------------------------------------------------- */

Test(schedule, immediate_in_all_workers)
{
	static const struct schedule list[] = {
		{.name = "everywhere", .type = "all", .immediate = true, .task = task, .arg = ok}};
	struct cluster *c = started(list, 1, 3);
	size_t at, i;

	for (i = 1; i <= 3; i++) {
		cluster_wait(c, 0, ":APP#%zu ran ok", i);
		at = cluster_wait(c, 0,
		                  "\"args\":[],\"success\":true,\"workerId\":APP#%zu,\"rt\":", i);
	}
	settle(c, "AGENT#1", 3);
	cr_expect_eq(cluster_count(c, 0, "ran ok"), 3);
	cr_expect_eq(cluster_count(c, 0, "everywhere execute succeed, used "), 3);
	cr_expect_eq(cluster_count(c, 0, "[egg-schedule]: register schedule everywhere"), 3);
	at = cluster_wait(c, 0, "[Timer] everywhere next time will execute immediate");
	cluster_wait(c, at, "[Timer] everywhere reach endDate, will stop");
	cluster_wait(c, at, ":APP#1 saw egg-schedule {\"key\":\"everywhere\",\"id\":\"");
	pass(c, "AGENT#1", 3, 86400000);
	cr_expect_eq(cluster_count(c, 0, "ran ok"), 3);
	cluster_stop(c);
}

Test(schedule, in_one_worker_at_random)
{
	static const struct schedule list[] = {{.name = "somewhere",
	                                        .type = "worker",
	                                        .interval = "10s",
	                                        .task = task,
	                                        .arg = ok}};
	struct cluster *c = started(list, 1, 3);
	int i;

	for (i = 1; i <= 40; i++) {
		cr_assert_eq(cluster_count(c, 0, "ran ok"), (size_t)i - 1);
		pass(c, "AGENT#1", 3, 10000);
	}
	cr_expect_eq(cluster_count(c, 0, "ran ok"), 40);
	for (i = 1; i <= 3; i++)
		cr_expect_gt(cluster_count(c, 0, ":APP#%d ran ok", i), 0, "%d", i);
	cluster_stop(c);
}

Test(schedule, nothing_before_all_is_ready)
{
	static const struct schedule list[] = {
		{.name = "first", .type = "all", .immediate = true, .task = task, .arg = ok}};
	struct cluster *c;

	app_loads = true;
	c = start(list, 1, 2);
	cluster_wait(c, 0, "register schedule first");
	cluster_order(c, "APP#1", "ready 0");
	cluster_wait(c, 0, ":APP#1 started, remain 1");
	cluster_order(c, "AGENT#1", "settle 0");
	cluster_wait(c, 0, ":AGENT#1 settled 0");
	cr_expect_eq(cluster_count(c, 0, "[Timer]"), 0);
	cluster_order(c, "APP#2", "ready 0");
	cluster_wait(c, 0, ":APP#2 ran ok");
	cluster_wait(c, 0, ":APP#1 ran ok");
	cluster_stop(c);
}

Test(schedule, real_clocks)
{
	static const struct schedule list[] = {
		{.name = "often", .type = "worker", .interval = "20ms", .task = task, .arg = ok},
		{.name = "seconds",
	         .type = "all",
	         .cron = "* * * * * *",
	         .task = task,
	         .arg = by_cron},
	};
	struct cluster *c;
	size_t at = 0;
	int i;

	real_clocks = true;
	c = started(list, 2, 2);
	for (i = 0; i < 10; i++)
		at = cluster_wait(c, at, "ran ok");
	cluster_wait(c, 0, ":APP#1 ran cron");
	cluster_wait(c, 0, ":APP#2 ran cron");
	cluster_stop(c);
}

Test(schedule, a_disabled_job_runs_by_hand_alone)
{
	static const struct schedule list[] = {
		{.name = "off",
	         .disable = true,
	         .immediate = true,
	         .cron = "bad",
	         .task = task,
	         .arg = fails},
		{.name = "on", .type = "worker", .interval = "1s", .task = task, .arg = ok},
	};
	struct cluster *c = started(list, 2, 1);

	pass(c, "AGENT#1", 1, 1000);
	cr_expect_eq(cluster_count(c, 0, "ran ok"), 1);
	cr_expect_eq(cluster_count(c, 0, "off"), 0, "the log has a line about the job that is off");
	cluster_order(c, "APP#1", "run off");
	cluster_wait(c, 0, "[Job#by hand] off execute failed, used ");
	cluster_wait(c, 0, "ms. The task returned 3");
	cluster_order(c, "APP#1", "run nobody");
	cluster_wait(c, 0, ":APP#1 cannot run nobody: No such file or directory");
	cr_assert_eq(messenger_send_to_app(c->parent, "egg-schedule",
	                                   "{\"key\":\"off\",\"id\":\"1\",\"args\":[]}"),
	             0);
	cluster_turn(c);
	cluster_wait(c, 0, "[Job#1] off disable");
	settle(c, "AGENT#1", 1);
	cr_expect_eq(cluster_count(c, 0, "ran fail"), 1);
	cr_expect_eq(cluster_count(c, 0, ":AGENT#1 saw egg-schedule"), 2,
	             "the agent did not hear of one run and one refusal");
	cluster_stop(c);
}

/* ---- when ---------------------------------------------------------------------- */

Test(schedule, an_interval_does_not_drift)
{
	static const struct schedule list[] = {
		{.name = "tick", .type = "worker", .interval = "10s", .task = task, .arg = ok}};
	struct cluster *c = started(list, 1, 1);
	size_t at = cluster_wait(c, 0,
	                         "tick next time will execute after 10000ms at "
	                         "2027-06-01 12:00:10.000");

	pass(c, "AGENT#1", 1, 9999);
	cr_expect_eq(cluster_count(c, 0, "ran ok"), 0);
	pass(c, "AGENT#1", 1, 8);
	at = cluster_wait(c, at, "after 9993ms at 2027-06-01 12:00:20.000");
	pass(c, "AGENT#1", 1, 9993 + 123);
	at = cluster_wait(c, at, "after 9877ms at 2027-06-01 12:00:30.000");
	pass(c, "AGENT#1", 1, 9877 + 25000); /* late by two periods, but it runs once */
	cluster_wait(c, at, "after 5000ms at 2027-06-01 12:01:00.000");
	cr_expect_eq(cluster_count(c, 0, "ran ok"), 3);
	cluster_stop(c);
}

Test(schedule, an_interval_that_is_too_long_for_a_timer)
{
	static const struct schedule list[] = {
		{.name = "monthly", .type = "worker", .interval = "30d", .task = task, .arg = ok}};
	struct cluster *c = started(list, 1, 1);

	pass(c, "AGENT#1", 1, 2147483647);
	pass(c, "AGENT#1", 1, 444516352);
	cr_expect_eq(cluster_count(c, 0, "ran ok"), 0);
	pass(c, "AGENT#1", 1, 1);
	cr_expect_eq(cluster_count(c, 0, "ran ok"), 1);
	cluster_stop(c);
}

Test(schedule, a_timer_that_cannot_be_set_is_set_later)
{
	static const struct schedule list[] = {
		{.name = "tick", .type = "worker", .interval = "10s", .task = task, .arg = ok}};
	struct cluster *c = started(list, 1, 1);
	size_t at;

	cluster_order(c, "AGENT#1", "fail 1");
	pass(c, "AGENT#1", 1, 10000);
	at = cluster_wait(c, 0, "[Timer] tick waits for a timer: Cannot allocate memory");
	pass(c, "AGENT#1", 1, 49999);
	cr_expect_eq(cluster_count(c, 0, "ran ok"), 1);
	pass(c, "AGENT#1", 1, 1);
	cluster_wait(c, at, "ran ok");
	cluster_wait(c, at, "[Timer] tick next time will execute after 10000ms");
	cluster_stop(c);
}

Test(schedule, a_task_that_finds_no_timer_begins_at_once)
{
	static const struct schedule list[] = {
		{.name = "tick", .type = "worker", .interval = "10s", .task = task, .arg = ok}};
	struct cluster *c = started(list, 1, 1);

	cluster_order(c, "APP#1", "fail 1");
	cluster_wait(c, 0, ":APP#1 saw test-order fail 1");
	cluster_order(c, "AGENT#1", "advance 10000");
	cluster_wait(c, 0, ":APP#1 ran ok");
	pass(c, "AGENT#1", 1, 10000);
	cr_expect_eq(cluster_count(c, 0, "ran ok"), 2);
	cluster_stop(c);
}

Test(schedule, immediate_and_then_the_interval)
{
	static const struct schedule list[] = {{.name = "both",
	                                        .type = "worker",
	                                        .immediate = true,
	                                        .interval = "5m",
	                                        .task = task,
	                                        .arg = ok}};
	struct cluster *c = started(list, 1, 1);

	cluster_wait(c, 0, "ran ok");
	cluster_wait(c, 0, "after 300000ms at 2027-06-01 12:05:00.000");
	pass(c, "AGENT#1", 1, 300000);
	cr_expect_eq(cluster_count(c, 0, "ran ok"), 2);
	cluster_stop(c);
}

/* The agent reads the wall clock each minute; a job never runs early. */
Test(schedule, cron_when_clocks_change)
{
	static const struct schedule list[] = {
		{.name = "night", .type = "worker", .cron = "30 2 * * *", .task = task, .arg = ok}};
	struct cluster *c;

	use_zone("Europe/Berlin");
	start_time = "2027-03-28 01:58:00";
	c = started(list, 1, 1);
	cluster_wait(c, 0, "after 1920000ms at 2027-03-28 03:30:00.000");
	pass(c, "AGENT#1", 1, 1919999);
	cr_expect_eq(cluster_count(c, 0, "ran ok"), 0);
	pass(c, "AGENT#1", 1, 1);
	cr_expect_eq(cluster_count(c, 0, "ran ok"), 1);
	cluster_wait(c, 0, "after 82800000ms at 2027-03-29 02:30:00.000");
	cluster_stop(c);
}

Test(schedule, somebody_sets_the_wall_clock)
{
	static const struct schedule list[] = {
		{.name = "hourly", .type = "worker", .cron = "@hourly", .task = task, .arg = ok}};
	struct cluster *c;
	size_t at;

	start_time = "2027-06-01 12:10:00";
	c = started(list, 1, 1);
	cluster_order(c, "AGENT#1", "wall 2027-06-01 12:59:30"); /* forward */
	pass(c, "AGENT#1", 1, 29999);
	cr_expect_eq(cluster_count(c, 0, "ran ok"), 0);
	pass(c, "AGENT#1", 1, 30001); /* a minute since the start is over */
	cr_expect_eq(cluster_count(c, 0, "ran ok"), 1);
	at = cluster_wait(c, 0, "after 3570000ms at 2027-06-01 14:00:00.000") - 1;
	cluster_order(c, "AGENT#1", "wall 2027-06-01 09:58:00"); /* back */
	pass(c, "AGENT#1", 1, 59000);
	pass(c, "AGENT#1", 1, 1000);
	cluster_wait(c, at, "at 2027-06-01 10:00:00.000");
	pass(c, "AGENT#1", 1, 60000);
	cr_expect_eq(cluster_count(c, 0, "ran ok"), 2);
	cluster_wait(c, at, "at 2027-06-01 11:00:00.000");
	cluster_stop(c);
}

Test(schedule, no_tick_after_the_end_date)
{
	static const struct schedule list[] = {
		{.name = "cron",
	         .type = "worker",
	         .cron = "* * * * *",
	         .task = task,
	         .arg = ok,
	         .end_date = "2027-06-01 12:02"},
		{.name = "interval",
	         .type = "worker",
	         .interval = "1m",
	         .task = task,
	         .arg = fails,
	         .end_date = "2027-06-01 12:01:59"},
		{.name = "past",
	         .type = "worker",
	         .interval = "1s",
	         .task = task,
	         .arg = dies,
	         .end_date = "2027-05-31"},
		{.name = "once",
	         .type = "worker",
	         .immediate = true,
	         .interval = "1s",
	         .task = task,
	         .arg = by_cron,
	         .end_date = "2027-05-31"},
	};
	struct cluster *c = started(list, 4, 1);
	int i;

	for (i = 0; i < 5; i++)
		pass(c, "AGENT#1", 1, 60000);
	cr_expect_eq(cluster_count(c, 0, "ran ok"), 2,
	             "the job did not run at 12:01 and 12:02 alone");
	cr_expect_eq(cluster_count(c, 0, "ran fail"), 1, "the job did not run at 12:01 alone");
	cr_expect_eq(cluster_count(c, 0, "ran die"), 0);
	cluster_wait(c, 0, "[Timer] cron reach endDate, will stop");
	cluster_wait(c, 0, "[Timer] interval reach endDate, will stop");
	cluster_wait(c, 0, "[Timer] past reach endDate, will stop");
	cr_expect_eq(cluster_count(c, 0, "ran cron"), 1,
	             "an immediate job did not run once after its end_date, as in egg");
	cluster_wait(c, 0, "[Timer] once reach endDate, will stop");
	cluster_stop(c);
}

/* ---- the result of a run --------------------------------------------------------- */

Test(schedule, a_task_that_fails_is_logged_and_the_next_tick_comes)
{
	static const struct schedule list[] = {
		{.name = "bad", .type = "worker", .interval = "1s", .task = task, .arg = fails}};
	struct cluster *c = started(list, 1, 1);
	size_t at;

	pass(c, "AGENT#1", 1, 1000);
	at = cluster_wait(c, 0, "] bad execute failed, used ");
	cluster_wait(c, 0, "ms. The task returned 3");
	cluster_wait(c, 0, "\"success\":false,\"workerId\":APP#1,\"rt\":");
	cluster_wait(c, 0, ",\"message\":\"The task returned 3\"} from app to agent");
	pass(c, "AGENT#1", 1, 1000);
	cluster_wait(c, at, "] bad execute failed, used ");
	cluster_stop(c);
}

Test(schedule, a_task_that_goes_on_after_it_has_returned)
{
	static const struct schedule list[] = {
		{.name = "held", .type = "all", .immediate = true, .task = task, .arg = holds},
		{.name = "within",
	         .type = "all",
	         .immediate = true,
	         .task = task,
	         .arg = ends_within},
		{.name = "failed",
	         .type = "all",
	         .immediate = true,
	         .task = task,
	         .arg = later_fails},
	};
	struct cluster *c = started(list, 3, 1);

	cluster_wait(c, 0, "] within execute failed, used");
	cluster_wait(c, 0, "ms. The task returned 5");
	cluster_wait(c, 0, "] failed execute failed, used");
	cluster_wait(c, 0, "ms. The task returned 4");
	settle(c, "AGENT#1", 1);
	cr_expect_eq(cluster_count(c, 0, "] held executing"), 1);
	cr_expect_eq(cluster_count(c, 0, "] held execute "), 0);
	cluster_order(c, "APP#1", "run held");
	cluster_order(c, "APP#1", "done 0");
	cluster_wait(c, 0, "] held execute succeed, used ");
	cluster_order(c, "APP#1", "done 9");
	cluster_wait(c, 0, "[Job#by hand] held execute failed, used ");
	settle(c, "AGENT#1", 1);
	cr_expect_eq(cluster_count(c, 0, ":AGENT#1 saw egg-schedule"), 3,
	             "the agent heard of a run that was started by hand");
	cluster_stop(c);
}

/* D38 */
Test(schedule, a_tick_is_skipped_while_the_last_run_goes_on)
{
	static const struct schedule list[] = {
		{.name = "egg", .type = "worker", .interval = "1m", .task = task, .arg = holds},
		{.name = "option",
	         .type = "all",
	         .interval = "1m",
	         .task = task,
	         .arg = holds,
	         .skip_while_running = true},
	};
	struct cluster *c = started(list, 2, 1);
	size_t mark;

	pass(c, "AGENT#1", 1, 60000);
	pass(c, "AGENT#1", 1, 60000);
	pass(c, "AGENT#1", 1, 60000);
	cr_expect_eq(cluster_count(c, 0, "] egg executing by app"), 3);
	cr_expect_eq(cluster_count(c, 0, "] option executing by app"), 1);
	cr_expect_eq(cluster_count(c, 0, "[Timer] option skip: 1 of its runs go on"), 2);
	cluster_order(c, "APP#1", "done 0");
	cluster_order(c, "APP#1", "done 0");
	cluster_wait(c, 0, "] option execute succeed");
	settle(c, "AGENT#1", 1);
	mark = cluster_mark(c);
	pass(c, "AGENT#1", 1, 60000);
	cr_expect_eq(cluster_count(c, mark, "] option executing by app"), 1);
	cluster_stop(c);
}

static bool
is_reaped(struct cluster *c, void *arg)
{
	(void)c;
	return kill(*(pid_t *)arg, 0) == -1 && errno == ESRCH;
}

/* Wait until the master has reaped a dead worker, then let the agent's timer see its death. */
static void
reaped(struct cluster *c, const char *who, const char *agent_name)
{
	pid_t pid = cluster_pid(c, who);

	cluster_until(c, is_reaped, &pid, "a dead worker to be reaped");
	cluster_order(c, agent_name, "advance 200");
}

/* D38 and D39: the agent does not wait for a dead worker. */
Test(schedule, a_worker_that_dies_in_a_task_is_reported)
{
	static const struct schedule list[] = {{.name = "deadly",
	                                        .type = "worker",
	                                        .interval = "1m",
	                                        .task = task,
	                                        .arg = dies,
	                                        .skip_while_running = true}};
	struct cluster *c = started(list, 1, 1);

	cluster_order(c, "AGENT#1", "advance 60000");
	cluster_wait(c, 0, ":APP#1 ran die");
	reaped(c, "APP#1", "AGENT#1");
	cluster_wait(c, 0, "] deadly execute failed, worker APP#1 died");
	cluster_wait(c, 0, ":AGENT#1 saw egg-pids [APP#2]");
	cluster_order(c, "AGENT#1", "advance 60000");
	cluster_wait(c, 0, ":APP#2 ran die");
	reaped(c, "APP#2", "AGENT#1");
	cluster_wait(c, 0, "] deadly execute failed, worker APP#2 died");
	cr_expect_eq(cluster_count(c, 0, "skip"), 0);
	cr_expect_eq(cluster_count(c, 0, "] deadly execute failed"), 2, "each app has one line");
	cluster_stop(c);
}

/* D39: of three workers one is killed; another closes its channel and cannot report its run. */
Test(schedule, only_the_dead_ones_run_is_given_up)
{
	static const struct schedule list[] = {{.name = "long",
	                                        .type = "all",
	                                        .interval = "1m",
	                                        .task = task,
	                                        .arg = holds,
	                                        .skip_while_running = true}};
	struct cluster *c = started(list, 1, 3);
	size_t mark;

	pass(c, "AGENT#1", 3, 60000);
	cluster_signal(c, "APP#2", SIGKILL);
	reaped(c, "APP#2", "AGENT#1");
	cluster_wait(c, 0, "] long execute failed, worker APP#2 died");
	cluster_order(c, "APP#3", "graceful 0");
	reaped(c, "APP#3", "AGENT#1");
	cluster_wait(c, 0, "] long execute failed, worker APP#3 died");
	cr_expect_eq(cluster_count(c, 0, "] long execute failed"), 2);
	cluster_order(c, "AGENT#1", "advance 60000");
	cluster_wait(c, 0, "[Timer] long skip: 1 of its runs go on");
	cluster_order(c, "APP#1", "done 0");
	cluster_wait(c, 0, "] long execute succeed");
	mark = cluster_mark(c);
	cluster_order(c, "AGENT#1", "advance 60000");
	cluster_wait(c, mark, ":APP#1 ran hold");
	cluster_stop(c);
}

/* D39: the log has one line about the end of each run, and the line is true. */
Test(schedule, a_task_that_crashes_takes_no_other_run_along)
{
	static const struct schedule list[] = {
		{.name = "first", .type = "all", .immediate = true, .task = task, .arg = ok},
		{.name = "second", .type = "all", .immediate = true, .task = task, .arg = dies},
	};
	struct cluster *c = started(list, 2, 1);

	cluster_wait(c, 0, ":APP#1 ran die");
	reaped(c, "APP#1", "AGENT#1");
	cluster_wait(c, 0, "] second execute failed, worker APP#1 died");
	cr_expect_eq(cluster_count(c, 0, "] first execute succeed"), 1);
	cr_expect_eq(cluster_count(c, 0, "] first execute "), 1);
	cr_expect_eq(cluster_count(c, 0, "] second execute "), 1);
	cluster_stop(c);
}

/* A report that a worker sent before it died counts, even if the agent reads it after the
 * worker's death. */
Test(schedule, the_last_words_of_a_worker_count)
{
	static const struct schedule list[] = {
		{.name = "long", .type = "all", .immediate = true, .task = task, .arg = holds}};
	struct cluster *c = started(list, 1, 1);
	size_t mark;

	cluster_wait(c, 0, ":APP#1 ran hold");
	mark = cluster_mark(c);
	cr_assert_eq(kill(cluster_pid(c, "AGENT#1"), SIGSTOP), 0);
	cr_assert_eq(kill(cluster_pid(c, "APP#1"), SIGTERM), 0);
	cluster_wait(c, mark, "[app_worker] receive signal SIGTERM");
	cluster_order(c, "APP#1", "done 0");
	cluster_wait(c, mark, ":APP#2 saw egg-ready");
	cr_assert_eq(kill(cluster_pid(c, "AGENT#1"), SIGCONT), 0);
	reaped(c, "APP#1", "AGENT#1");
	cluster_wait(c, mark, "] long execute succeed");
	settle(c, "AGENT#1", 1);
	settle(c, "AGENT#1", 1);
	cr_expect_eq(cluster_count(c, 0, "] long execute "), 1);
	cluster_stop(c);
}

/* ---- leaving ------------------------------------------------------------------ */

Test(schedule, a_worker_that_leaves_finishes_its_runs)
{
	static const struct schedule list[] = {{.name = "long",
	                                        .type = "all",
	                                        .interval = "1m",
	                                        .task = task,
	                                        .arg = holds,
	                                        .skip_while_running = true}};
	struct cluster *c = started(list, 1, 1);
	size_t mark;

	pass(c, "AGENT#1", 1, 60000);
	mark = cluster_mark(c);
	cr_assert_eq(kill(c->master, SIGUSR2), 0); /* a reload */
	mark = cluster_wait(c, mark, "[app_worker] receive signal SIGTERM");
	cluster_order(c, "AGENT#1", "advance 60000");
	cluster_wait(c, mark, "[Timer] long skip: 1 of its runs go on");
	cluster_order(c, "APP#1", "done 0");
	cluster_wait(c, mark, "] long execute succeed");
	reaped(c, "APP#1", "AGENT#1");
	settle(c, "AGENT#1", 1);
	cr_expect_eq(cluster_count(c, 0, "] long execute "), 1);
	cluster_stop(c);
}

/* When the cluster stops, the agent hears of the end of each run before it leaves. */
Test(schedule, runs_end_before_the_cluster_stops)
{
	static const struct schedule list[] = {
		{.name = "long", .type = "all", .immediate = true, .task = task, .arg = holds}};
	struct cluster *c = started(list, 1, 1);

	cluster_wait(c, 0, ":APP#1 ran hold");
	cr_assert_eq(kill(c->master, SIGTERM), 0);
	cluster_wait(c, 0, "[app_worker] receive signal SIGTERM");
	cluster_order(c, "APP#1", "done 3");
	cluster_wait(c, 0, "] long execute failed, used ");
	cluster_wait(c, 0, "ms. The task returned 3");
	cluster_wait(c, 0, "[agent_worker] beforeExit success");
	cr_expect_eq(cluster_count(c, 0, "] long execute "), 1);
	cluster_ended(c, 0);
}

Test(schedule, a_run_that_outlasts_the_close_timeout_has_died)
{
	static const struct schedule list[] = {
		{.name = "endless", .type = "all", .immediate = true, .task = task, .arg = holds}};
	struct cluster *c;

	jobs = list;
	job_count = app_job_count = 1;
	real_clocks = true;
	c = cluster_start(&(struct options){.agent = agent, .app = app, .app_close_timeout = 300});
	cluster_ready(c);
	cluster_wait(c, 0, ":APP#1 ran hold");
	cr_assert_eq(kill(c->master, SIGTERM), 0);
	cluster_wait(c, 0, "] endless execute failed, worker APP#1 died");
	cluster_wait(c, 0, "[agent_worker] beforeExit success");
	cr_expect_eq(cluster_count(c, 0, "] endless execute "), 1);
	cluster_ended(c, 0);
}

/* A worker that leaves while it has a long run gets no more ticks. The agent must know that:
 * egg-pids still lists the worker, because the master does not know that it leaves. */
Test(schedule, a_worker_that_leaves_gets_no_more_ticks)
{
	static const struct schedule list[] = {
		{.name = "long", .type = "all", .immediate = true, .task = task, .arg = holds},
		{.name = "one", .type = "worker", .interval = "1m", .task = task, .arg = ok},
		{.name = "all", .type = "all", .interval = "1m", .task = task, .arg = by_cron},
	};
	struct cluster *c = started(list, 3, 2);
	size_t mark;
	int i;

	cluster_wait(c, 0, ":APP#1 ran hold");
	mark = cluster_mark(c);
	cr_assert_eq(kill(cluster_pid(c, "APP#1"), SIGTERM), 0);
	mark = cluster_wait(c, mark, ":APP#1 saw egg-schedule-leaving");
	for (i = 0; i < 10; i++)
		pass(c, "AGENT#1", 2, 60000);
	cr_expect_eq(cluster_count(c, mark, ":APP#1 ran"), 0);
	cr_expect_eq(cluster_count(c, mark, ":APP#2 ran ok"), 10);
	cr_expect_eq(cluster_count(c, mark, ":APP#2 ran cron"), 10);
	cluster_order(c, "APP#1", "done 0");
	cr_expect_str_eq(cluster_wait_end(c, "APP#1"), "code: 0, signal: null");
	cluster_wait(c, mark, ":AGENT#1 saw egg-pids [APP#2,APP#3]");
	reaped(c, "APP#1", "AGENT#1");
	settle(c, "AGENT#1", 2);
	cr_expect_eq(cluster_count(c, 0, "died\"}"), 0, "a run was given up");
	cluster_stop(c);
}

/* A worker that leaves does not wait for an agent that does not answer. */
Test(schedule, a_worker_leaves_without_an_answer)
{
	static const struct schedule list[] = {
		{.name = "long", .type = "all", .immediate = true, .task = task, .arg = holds}};
	struct cluster *c = started(list, 1, 1);

	cluster_wait(c, 0, ":APP#1 ran hold");
	cr_assert_eq(kill(cluster_pid(c, "AGENT#1"), SIGSTOP), 0);
	cr_assert_eq(kill(cluster_pid(c, "APP#1"), SIGTERM), 0);
	cluster_order(c, "APP#1", "done 0");
	cr_expect_str_eq(cluster_wait_end(c, "APP#1"), "code: 0, signal: null");
	cr_assert_eq(kill(cluster_pid(c, "AGENT#1"), SIGCONT), 0);
	cluster_wait(c, 0, "] long execute succeed");
	cluster_stop(c);
}

/* Ticks come all the time while workers are replaced, and each run that has begun succeeds. */
Test(schedule, reloads_cost_no_run)
{
	static const struct schedule list[] = {
		{.name = "one", .type = "worker", .interval = "2ms", .task = task, .arg = ok},
		{.name = "all", .type = "all", .interval = "5ms", .task = task, .arg = by_cron},
	};
	struct cluster *c;
	int i;

	real_clocks = true;
	c = started(list, 2, 1);
	for (i = 2; i <= 10; i++) {
		cr_assert_eq(kill(c->master, SIGUSR2), 0);
		cluster_wait(c, 0, ":APP#%d ran ok", i);
		cluster_wait(c, 0, ":APP#%d ran cron", i);
	}
	cr_assert_eq(kill(c->master, SIGTERM), 0);
	cluster_wait(c, 0, "[agent_worker] beforeExit success");
	cr_expect_eq(cluster_count(c, 0, "execute failed"), 0);
	cr_expect_eq(cluster_count(c, 0, " execute succeed, used "),
	             cluster_count(c, 0, " executing by app"));
	cluster_ended(c, 0);
}

Test(schedule, a_new_agent_goes_on_and_learns_who_runs_what)
{
	static const struct schedule list[] = {
		{.name = "long",
	         .type = "worker",
	         .interval = "1m",
	         .task = task,
	         .arg = holds,
	         .skip_while_running = true},
		{.name = "short", .type = "worker", .interval = "1m", .task = task, .arg = ok},
	};
	struct cluster *c = started(list, 2, 1);
	size_t mark;

	pass(c, "AGENT#1", 1, 60000);
	cr_expect_eq(cluster_count(c, 0, "ran hold"), 1);
	mark = cluster_mark(c);
	cluster_signal(c, "AGENT#1", SIGKILL);
	mark = cluster_wait(c, mark, ":AGENT#2 saw egg-ready");
	cluster_wait(c, mark, "[Timer] short next time will execute after 60000ms");
	cluster_wait(c, 0, ":AGENT#2 saw egg-schedule {\"key\":\"long\",\"id\":\"");
	pass(c, "AGENT#2", 1, 60000);
	cr_expect_eq(cluster_count(c, 0, "ran ok"), 2);
	cr_expect_eq(cluster_count(c, 0, "ran hold"), 1);
	cluster_wait(c, mark, "[Timer] long skip: 1 of its runs go on");
	cluster_order(c, "APP#1", "done 0");
	cluster_wait(c, mark, "] long execute succeed");
	pass(c, "AGENT#2", 1, 60000);
	cr_expect_eq(cluster_count(c, 0, "ran hold"), 2);
	cluster_stop(c);
}

/* egg: await app.ready(). The app tells the agent when it has got the tick. */
Test(schedule, an_app_that_loads_runs_the_tick_when_it_is_ready)
{
	static const struct schedule list[] = {
		{.name = "all", .type = "all", .interval = "1m", .task = task, .arg = holds}};
	struct cluster *c;
	size_t mark;

	app_loads = true;
	c = start(list, 1, 1);
	cluster_order(c, "APP#1", "ready 0");
	cluster_wait(c, 0, "[Timer] ");
	cluster_signal(c, "APP#1", SIGKILL);
	cluster_wait(c, 0, ":APP#2 start");
	cluster_order(c, "AGENT#1", "advance 60000");
	cluster_wait(c, 0, ":APP#2 saw egg-schedule ");
	settle(c, "AGENT#1", 1);
	cr_expect_eq(cluster_count(c, 0, "ran hold"), 0);
	mark = cluster_mark(c);
	cluster_order(c, "APP#2", "ready 0");
	cluster_wait(c, mark, ":APP#2 ran hold");
	cluster_wait(c, mark, "\"args\":[],\"workerId\":APP#2} from app to agent");
	cluster_signal(c, "APP#2", SIGKILL);
	reaped(c, "APP#2", "AGENT#1");
	cluster_wait(c, mark, "] all execute failed, worker APP#2 died");
	cluster_stop(c);
}

Test(schedule, without_a_worker_a_tick_is_lost_with_a_line)
{
	static const struct schedule list[] = {
		{.name = "one", .type = "worker", .interval = "1m", .task = task, .arg = ok}};
	struct cluster *c;

	app_loads = true;
	c = start(list, 1, 1);
	cluster_order(c, "APP#1", "ready 0");
	cluster_wait(c, 0, "[Timer] ");
	cluster_signal(c, "APP#1", SIGKILL);
	cluster_wait(c, 0, ":AGENT#1 saw egg-pids [] ");
	cluster_order(c, "AGENT#1", "advance 60000");
	cluster_wait(c, 0, "] one not sent: no worker is listening");
	cluster_order(c, "APP#2", "ready 0");
	cluster_wait(c, 0, ":AGENT#1 saw egg-pids [APP#2] ");
	cluster_order(c, "AGENT#1", "advance 60000");
	cluster_wait(c, 0, ":APP#2 ran ok");
	cluster_stop(c);
}

Test(schedule, what_an_app_does_not_know)
{
	static const struct schedule list[] = {
		{.name = "known", .type = "all", .immediate = true, .task = task, .arg = ok},
		{.name = "new", .type = "all", .immediate = true, .task = task, .arg = fails},
	};
	struct cluster *c;

	jobs = list;
	job_count = 2;
	app_job_count = 1;
	c = cluster_start(&(struct options){.agent = agent, .app = app});
	cluster_ready(c);
	cluster_wait(c, 0, "] new unknown task");
	cluster_wait(c, 0, ":APP#1 ran ok");
	messenger_send_to_app(c->parent, "egg-schedule", NULL);
	messenger_send_to_app(c->parent, "egg-schedule", "{\"key\":\"known\",\"id\":\"\\u0031\"}");
	messenger_send_to_app(c->parent, "egg-schedule", "{\"key\":\"known");
	messenger_send_to_agent(c->parent, "egg-schedule", "{\"success\":true}");
	cluster_turn(c);
	cluster_wait(c, 0, "[egg-schedule] a message that is not a tick: undefined");
	cluster_wait(c, 0, "[egg-schedule] a message that is not a tick: {\"key\":\"known\",");
	cluster_wait(c, 0, "[egg-schedule] a message that is not a tick: {\"key\":\"known");
	settle(c, "AGENT#1", 1);
	cr_expect_eq(cluster_count(c, 0, "ran ok"), 1);
	cluster_stop(c);
}

/* The agent is told that the run will not begin, so it does not skip the next tick. */
Test(schedule, a_job_that_the_app_does_not_know_is_not_waited_for)
{
	static const struct schedule list[] = {{.name = "new",
	                                        .type = "all",
	                                        .interval = "1m",
	                                        .task = task,
	                                        .arg = ok,
	                                        .skip_while_running = true}};
	struct cluster *c;

	jobs = list;
	job_count = 1;
	app_job_count = 0;
	c = cluster_start(&(struct options){.agent = agent, .app = app});
	cluster_ready(c);
	cluster_wait(c, 0, "[Timer] ");
	pass(c, "AGENT#1", 1, 60000);
	pass(c, "AGENT#1", 1, 60000);
	cr_expect_eq(cluster_count(c, 0, "] new unknown task"), 2);
	cr_expect_eq(cluster_count(c, 0, "skip"), 0);
	cluster_stop(c);
}

/* ---- limits ------------------------------------------------------------------- */

/* Fill the app's queue until it has no room even for a short message. */
static int
flood(struct messenger *app, struct schedule_run *run, void *arg)
{
	static char data[65536];
	size_t size;

	(void)run, (void)arg;
	for (size = sizeof data; size > 1; size /= 2) {
		memset(data, '1', size - 1);
		data[size - 1] = '\0';
		while (messenger_send_to_agent(app, "test-flood", data) == 0)
			;
	}
	report(app, "flooded: %s", strerror(errno));
	return 0;
}

Test(schedule, a_result_that_has_no_room_is_told_later)
{
	static const struct schedule list[] = {{.name = "flood",
	                                        .type = "all",
	                                        .interval = "1m",
	                                        .task = flood,
	                                        .skip_while_running = true}};
	struct cluster *c = started(list, 1, 1);
	size_t at;

	cluster_order(c, "AGENT#1", "advance 60000");
	at = cluster_wait(c, 0, ":APP#1 flooded: No buffer space available");
	cluster_wait(c, at, ":AGENT#1 saw egg-schedule {\"key\":\"flood\",");
	cluster_order(c, "AGENT#1", "advance 60000");
	cluster_wait(c, at, ":APP#1 flooded");
	cluster_stop(c);
}

/* Begin runs that do not end, until the limit is reached. */
static int
hoard(struct messenger *app, struct schedule_run *run, void *arg)
{
	static int depth;
	int count = 0;

	(void)arg;
	schedule_later(run);
	if (depth++ > 0)
		return 0;
	while (egg_schedule_run(app, "hoard") == 0)
		count++;
	report(app, "%d more: %s", count, strerror(errno));
	return 0;
}

Test(schedule, so_many_runs_at_a_time_and_no_more)
{
	static const struct schedule list[] = {
		{.name = "hoard", .type = "all", .interval = "1m", .task = hoard},
		{.name = "other", .type = "all", .interval = "1m", .task = task, .arg = ok},
	};
	struct cluster *c;

	egg_schedule_log(-1);
	c = start(list, 2, 1);
	cluster_ready(c);
	pass(c, "AGENT#1", 1, 60000);
	cluster_wait(c, 0, ":APP#1 4095 more: Resource temporarily unavailable");
	pass(c, "AGENT#1", 1, 60000);
	cluster_wait(c, 0, "] hoard execute failed: too many of its runs go on");
	cr_expect_eq(cluster_count(c, 0, "ran ok"), 2, "the other job has stopped");
	cr_expect_eq(cluster_count(c, 0, "[Timer]") + cluster_count(c, 0, "executing") +
	                     cluster_count(c, 0, "register"),
	             0, "a line was logged although the log is off");
	cluster_stop(c);
}

/* ---- an agent that leaves, and bad jobs ----------------------------------------- */

Test(schedule, an_agent_that_leaves_sends_no_tick)
{
	static const struct schedule list[] = {
		{.name = "late", .type = "worker", .interval = "1m", .task = task, .arg = ok},
		{.name = "cron", .type = "worker", .cron = "* * * * *", .task = task, .arg = ok},
	};
	struct cluster *c;
	size_t mark;

	advances_when_it_closes = true;
	c = started(list, 2, 1);
	settle(c, "AGENT#1", 1);
	mark = cluster_mark(c);
	cr_assert_eq(kill(cluster_pid(c, "AGENT#1"), SIGTERM), 0);
	mark = cluster_wait(c, mark, ":AGENT#1 closes");
	cluster_wait(c, mark, "beforeExit success");
	cr_expect_eq(cluster_count(c, mark, ":AGENT#1 advanced"), 3);
	cluster_wait(c, mark, ":AGENT#2 saw egg-ready");
	settle(c, "AGENT#2", 1);
	cr_expect_eq(cluster_count(c, 0, "ran ok"), 0);
	cluster_stop(c);
}

Test(schedule, a_job_that_is_not_right_is_one_line_and_a_failed_start)
{
	static const struct {
		struct schedule job;
		const char *line;
	} bad[] = {
		{{.name = "a", .task = task, .arg = ok}, "job a: type: \"\" is not defined"},
		{{.name = "b", .type = "some", .interval = "1s", .task = task, .arg = ok},
	         "job b: type: \"some\" is not defined; it is \"worker\" or \"all\""},
		{{.name = "c", .type = "all", .task = task, .arg = ok},
	         "job c: interval, cron, immediate: one of them must be given"},
		{{.name = "d", .type = "all", .interval = "soon", .task = task, .arg = ok},
	         "job d: interval: \"soon\" is not an interval; write \"10s\""},
		{{.name = "e", .type = "all", .cron = "0 25 * * *", .task = task, .arg = ok},
	         "job e: cron: \"0 25 * * *\": hour (0-23): a value is out of range"},
		{{.name = "f", .type = "all", .cron = "0 0 30 2 *", .task = task, .arg = ok},
	         "job f: cron: \"0 0 30 2 *\": there is no such day"},
		{{.name = "g", .type = "all", .interval = "1s"}, "job g: task: it must be given"},
		{{.name = "h",
	          .type = "all",
	          .interval = "1s",
	          .end_date = "soon",
	          .task = task,
	          .arg = ok},
	         "job h: end_date: \"soon\" is not a date"},
		{{.name = "same", .type = "all", .interval = "1s", .task = task, .arg = ok},
	         "job same: name: there is another job of that name"},
		{{.name = "i\"", .type = "all", .interval = "1s", .task = task, .arg = ok},
	         "job 1: name: it must have"},
		{{.type = "all", .interval = "1s", .task = task, .arg = ok},
	         "job 1: name: it must have 1 to 255 bytes"},
	};
	struct schedule list[2] = {{.name = "same", .disable = true, .task = task, .arg = ok}};
	struct cluster *c;
	size_t i;

	for (i = 0; i < COUNT(bad); i++) {
		list[1] = bad[i].job;
		c = start(list, 2, 1);
		cluster_wait(c, 0, "[egg-schedule] %s", bad[i].line);
		cluster_wait(c, 0, "[agent_worker] start error, exiting with code:1");
		cr_expect_eq(cluster_count(c, 0, "[egg-schedule]"), 1, "%s", bad[i].line);
		cluster_ended(c, 1);
	}
}

static int
app_twice(struct messenger *messenger, void *arg)
{
	return app(messenger, arg) != 0 || app(messenger, arg) != 0;
}

Test(schedule, jobs_are_given_once)
{
	struct cluster *c = cluster_start(&(struct options){.app = app_twice});

	cluster_wait(c, 0, "[egg-schedule] there are jobs already");
	cluster_wait(c, 0, "[app_worker] start error, exiting with code:1");
	cluster_ended(c, 1);
}
