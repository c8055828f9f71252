/*
 * The processes of a master: it ends those that have left their group, does not listen to the
 * helpers of the dead, repeats a fork that failed, and signals no pid that it has given back.
 *
 * The processes, the wrapped calls and the small limits are those of troubles.h.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#define CLUTCH_PRIVATE
#include "troubles.h"

TestSuite(processes, .init = open_world, .timeout = 60);

/* ---- the last words of a dead process are finite ----------------------------------------- */

struct suspect {
	const char *died; /* the line that says so */
	long most;        /* memory, KiB */
};

static bool
is_buried_or_fat(struct cluster *c, void *arg)
{
	const struct suspect *suspect = arg;

	return cluster_count(c, 0, "%s", suspect->died) > 0 ||
	       process_memory(c->master) > suspect->most;
}

/* The children of `who` write into its channel for as long as the master reads it. The master
 * sends them SIGTERM, and SIGKILL to the children that ignore it. */
static void
expect_finite_last_words(const char *who, const char *died, const char *replaced)
{
	struct cluster *c = launch((struct options){
		.workers = 3, .app_close_timeout = 2000, .agent_close_timeout = 2000});
	struct suspect suspect = {.died = died};
	size_t mark, count = 1 + 1 + 3;
	long before;

	cluster_ready(c);
	before = process_memory(c->master);
	suspect.most = before + 256 * 1024;
	mark = cluster_mark(c);
	tell(c, who, "help leave");
	cluster_until(c, is_buried_or_fat, &suspect,
	              "the dead process to be counted, or the master to grow");
	assert_memory(c, "the helpers of a dead process speak", before, 8 * 1024);
	mark = cluster_wait(c, mark, "%s", died);
	exchange(c, "APP#2", "APP#3", 3000);
	cluster_wait(c, mark, "%s", replaced);
	cluster_until(c, are_so_many, &count, "the helpers to be gone");
	cr_assert_eq(cluster_count(c, 0, "was told to end"), HELPERS / 2,
	             "SIGKILL came without a SIGTERM");
	assert_memory(c, "the helpers of a dead process speak", before, 8 * 1024);
	stop(c);
}

Test(processes, the_helpers_of_a_dead_app_are_not_listened_to)
{
	expect_finite_last_words("APP#1", "app_worker#1:APP#1 died", "app_worker#4:APP#4 started");
}

Test(processes, the_helpers_of_a_dead_agent_are_not_listened_to)
{
	expect_finite_last_words("AGENT#1", "agent_worker#1:AGENT#1 died",
	                         "agent_worker#2:AGENT#2 started");
}

Test(processes, the_helpers_of_an_app_that_has_left_do_not_keep_the_cluster_open)
{
	struct cluster *c = start(3);

	tell(c, "APP#1", "help stay");
	cluster_wait(c, 0, ":APP#1 has helpers");
	stop(c);
}

/* ---- a process that has left its group --------------------------------------------------- */

static int
wait_for_the_job(struct messenger *agent, void *arg)
{
	(void)agent, (void)arg;
	while (!world->job_left)
		__real_poll(NULL, 0, 5);
	return 0;
}

/* The agent keeps the master alive until the parent of the job has ended. */
static int
act_and_leave_behind_the_job(struct messenger *agent, void *arg)
{
	return messenger_before_close(agent, wait_for_the_job, arg) == -1 ? -1 : act(agent, arg);
}

/* A group does not die at once of SIGKILL: the master reaps its leader, and so gives up the
 * group's number, only later. */
Test(processes, a_group_that_was_killed_has_time_to_die)
{
	struct cluster *c = launch((struct options){.agent = act_and_leave_behind_the_job});

	cluster_ready(c);
	tell(c, "APP#1", "leave-a-job");
	cluster_wait(c, 0, "has left a job");
	stop(c);
	cr_assert_neq(world->killed, 0, "the job has left by itself");
	cr_assert_gt(world->reaped_at - world->killed_at, 100);
}

Test(processes, who_has_left_its_group_is_ended_all_the_same)
{
	struct cluster *c = start(2);

	tell(c, "AGENT#1", "move");
	tell(c, "APP#1", "move deaf");
	tell(c, "APP#2", "move");
	cluster_wait(c, 0, ":AGENT#1 has moved");
	cluster_wait(c, 0, ":APP#1 has moved");
	cluster_wait(c, 0, ":APP#2 has moved");
	stop(c);
}

/* If not 0: what this process's children fork makes no group of its own. */
static pid_t late_for;

int __real_setpgid(pid_t pid, pid_t group);
int __wrap_setpgid(pid_t pid, pid_t group);

int
__wrap_setpgid(pid_t pid, pid_t group)
{
	if (pid == 0 && late_for != 0 && getppid() != late_for)
		return 0;
	return __real_setpgid(pid, group);
}

/* Parent and child both make the child's group, because nobody knows which of them runs first. */
Test(processes, the_master_makes_the_group_of_a_child_that_is_late)
{
	struct cluster *c;

	late_for = getpid();
	c = start(1);
	cr_assert_eq(getpgid(cluster_pid(c, "AGENT#1")), cluster_pid(c, "AGENT#1"));
	cr_assert_eq(getpgid(cluster_pid(c, "APP#1")), cluster_pid(c, "APP#1"));
	stop(c);
}

static int
move_and_load(struct messenger *messenger, void *arg)
{
	(void)arg;
	order_move(messenger, "move deaf");
	for (;;) { /* again, because the master may set the process's group after this call */
		setpgid(0, getpgid(getppid()));
		__real_poll(NULL, 0, 10);
	}
	return 0;
}

Test(processes, an_app_that_has_left_its_group_has_a_start_timeout)
{
	struct cluster *c = launch((struct options){
		.app = move_and_load, .worker_start_timeout = 1500, .app_close_timeout = 300});

	cluster_wait(c, 0, ":APP#1 has moved");
	cluster_ended(c, 1);
}

Test(processes, an_agent_that_has_left_its_group_has_a_start_timeout)
{
	struct cluster *c = launch((struct options){
		.agent = move_and_load, .worker_start_timeout = 1500, .agent_close_timeout = 300});

	cluster_wait(c, 0, ":AGENT#1 has moved");
	cluster_ended(c, 1);
}

static void
expect_end_of_liar(const char *who, const char *died, const char *replaced)
{
	struct cluster *c = start(2);

	tell(c, who, "move deaf");
	cluster_wait(c, 0, ":%s has moved", who);
	tell(c, who, "break-the-protocol");
	cluster_wait(c, 0, "%s (code: null, signal: SIGKILL, broke the protocol)", died);
	cluster_wait(c, 0, "%s", replaced);
	stop(c);
}

Test(processes, an_app_that_has_left_its_group_pays_for_a_breach_of_protocol)
{
	expect_end_of_liar("APP#1", "APP#1 died", "app_worker#3:APP#3 started");
}

Test(processes, an_agent_that_has_left_its_group_pays_for_a_breach_of_protocol)
{
	expect_end_of_liar("AGENT#1", "AGENT#1 died", "agent_worker#2:AGENT#2 started");
}

/* ---- forks that fail --------------------------------------------------------------------- */

/* All apps die in a shortage of 10 s, in which no fork works. */
static void
expect_return_after(resource_kind resource, rlim_t least, rlim_t most)
{
	struct cluster *c;
	int64_t since;
	char who[16];
	int i;

	faster = 10;
	be_patient(10);
	become_nobody();
	c = start(8);
	set_limit(c->master, resource, least);
	for (i = 1; i <= 8; i++) {
		snprintf(who, sizeof who, "APP#%d", i);
		cluster_signal(c, who, SIGKILL);
	}
	let_pass(c, 10000);
	cr_assert_eq(cluster_count(c, 0, "APP#9"), 0, "there was no shortage");
	set_limit(c->master, resource, most);
	since = clutch_now();
	for (i = 9; i <= 16; i++)
		cluster_wait(c, 0, "app_worker#%d:APP#%d started", i, i);
	cr_assert_lt(clutch_now() - since, 8000, "the apps were back only after %lld ms",
	             (long long)(clutch_now() - since)); /* 2 s, and some time for a slow machine */
	cr_assert_eq(cluster_count(c, 0, "too fast"), 0);
	exchange(c, "APP#9", "APP#16", 10000);
	stop(c);
}

Test(processes, apps_come_back_after_a_shortage_of_processes)
{
	expect_return_after(RLIMIT_NPROC, 1, RLIM_INFINITY);
}

Test(processes, apps_come_back_after_a_shortage_of_descriptors)
{
	expect_return_after(RLIMIT_NOFILE, 3, 1024);
}

/* ---- numbers that were given back -------------------------------------------------------- */

static int
leave_never(struct messenger *messenger, void *arg)
{
	(void)messenger, (void)arg;
	hang();
	return 0;
}

static int
hang_in_slot_1(struct messenger *app, void *arg)
{
	if (messenger_slot(app) == 1 && messenger_before_close(app, leave_never, NULL) == -1)
		return -1;
	return act(app, arg);
}

/* As soon as a child is reaped, its pid may belong to a stranger. */
Test(processes, nobody_reaped_is_signalled_while_closing)
{
	struct cluster *c = launch((struct options){.app = hang_in_slot_1, .workers = 3});

	cluster_ready(c);
	cluster_stop(c);
	cr_assert_gt(world->reaped_count, 0);
	cr_assert_eq(world->signals_to_reaped, 0, "%d signals went to numbers that were given back",
	             world->signals_to_reaped);
}

static int
load_for_ever(struct messenger *app, void *arg)
{
	if (messenger_slot(app) == 1)
		hang();
	if (messenger_slot(app) == 2) /* a failed start ends the cluster */
		return __real_poll(NULL, 0, 200) - 1;
	return act(app, arg);
}

Test(processes, nobody_reaped_is_signalled_in_a_failed_start)
{
	struct cluster *c = launch((struct options){.app = load_for_ever, .workers = 3});

	cluster_ended(c, 1);
	cr_assert_gt(world->reaped_count, 0);
	cr_assert_eq(world->signals_to_reaped, 0, "%d signals went to numbers that were given back",
	             world->signals_to_reaped);
}

Test(processes, nobody_reaped_is_signalled_while_running)
{
	struct cluster *c = start(2);

	tell(c, "APP#1", "help stay");
	cluster_wait(c, 0, ":APP#1 has helpers");
	cluster_signal(c, "APP#1", SIGKILL);
	cluster_signal(c, "AGENT#1", SIGKILL);
	cluster_wait(c, 0, "app_worker#3:APP#3 started");
	cluster_wait(c, 0, "agent_worker#2:AGENT#2 started");
	stop(c);
	cr_assert_gt(world->reaped_count, 0);
	cr_assert_eq(world->signals_to_reaped, 0, "%d signals went to numbers that were given back",
	             world->signals_to_reaped);
}

/* Another child has died at the same time: its siginfo must not be taken for this child's. */
Test(processes, nobody_that_another_part_of_the_program_has_reaped_is_signalled)
{
	struct cluster *c = start(2);

	kill(c->master, SIGSTOP);
	cluster_signal(c, "AGENT#1", SIGKILL);
	cluster_signal(c, "APP#1", SIGKILL);
	world->stolen = cluster_pid(c, "APP#1");
	kill(c->master, SIGCONT);
	cluster_wait(c, 0, "app_worker#3:APP#3 started");
	cluster_wait(c, 0, "agent_worker#2:AGENT#2 started");
	stop(c);
	cr_assert_eq(world->signals_to_reaped, 0, "%d signals went to numbers that were given back",
	             world->signals_to_reaped);
}

/* ---- a reload that waits ----------------------------------------------------------------- */

static int
act_unless_ill(struct messenger *app, void *arg)
{
	if (world->ill) {
		messenger_ready_later(app); /* but is never ready */
		report(app, "is ill");
	}
	return act(app, arg);
}

static void
reload_by_signal(struct cluster *c)
{
	cluster_signal(c, "MASTER", SIGUSR2);
}

static void
reload_by_message(struct cluster *c)
{
	cr_assert_eq(messenger_send(c->parent, "reload-worker", NULL, ROLE_MASTER), 0);
	cluster_turn(c);
}

/* The cause of the wait is removed, and the reload is ordered again. */
static void
expect_second_reload(void (*reload)(struct cluster *c))
{
	struct cluster *c = launch((struct options){.app = act_unless_ill, .workers = 2});
	size_t mark;

	cluster_ready(c);
	world->ill = true;
	reload(c);
	cluster_wait(c, 0, ":APP#3 is ill");
	world->ill = false;
	mark = cluster_mark(c);
	reload(c);
	cluster_wait(c, mark, "app_worker#4:APP#4 started");
	cluster_wait(c, mark, "app_worker#5:APP#5 started");
	cluster_wait(c, mark, "reload done");
	cr_assert_gt(cluster_count(c, mark, "reload"), 1,
	             "no line says that the reload starts anew");
	cluster_wait_death(c, "APP#1");
	cluster_wait_death(c, "APP#2");
	cluster_wait_death(c, "APP#3");
	exchange(c, "APP#4", "APP#5", 3000);
	stop(c);
}

Test(processes, a_second_order_by_signal_starts_a_waiting_reload_anew)
{
	expect_second_reload(reload_by_signal);
}

Test(processes, a_second_order_by_message_starts_a_waiting_reload_anew)
{
	expect_second_reload(reload_by_message);
}
