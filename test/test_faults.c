/*
 * Failing system calls: each call that the core makes, in each process that makes
 * it, in each act of a cluster's life, fails once, in each way in which it can.
 *
 * The first play (play.h) has no fault: it shows which process makes which call in which act.
 * Then there is one play for each call and each way to fail, cut down to the act that matters,
 * followed by an epilogue that shows whether the cluster is still sound.
 *
 * The table of errors in CONTRIBUTING.md says what a fault may cost (may_fail_to_start,
 * fault_is_invisible); each other effect is printed in one line.
 *
 * Then memory, descriptors or the kernel's buffers are short in all processes of a role, in
 * each act: all calls that this can make fail do so, for a while or for too long.
 *
 *	FAULTS=all make test T=faults            every combination
 *	FAULTS=shortages make test T=faults      only the shortages
 *	FAULTS=short make test T=faults          each call in one act, and no shortages
 *	FAULTS=sendmessage.c:379 make test T=faults   those of one line
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "play.h"

#include <ftw.h>
#include <sys/mman.h>
#include <sys/prctl.h>

/* ---- the judgement --------------------------------------------------------- */

/* If the set-up fails, the start ends with one line. Once its loop runs, the master tries again.
 * If a child cannot start, the cluster's start fails too. */
static bool
may_fail_to_start(void)
{
	const struct faults *f = &world->faults;
	int i;

	for (i = 0; i < PLANS; i++) {
		const struct fault *plan = &f->plan[i];

		if (plan->how == 0 || f->fired[i] == 0 ||
		    fault_is_invisible(&sites[plan->site], plan->how))
			continue;
		if (plan->place == PLACE_MASTER && !ends_channel(plan->how) &&
		    plan->lasts != TOO_LONG &&
		    (f->fired_births[i] > 2 || sites[plan->site].call == CALL_fork))
			continue;
		if (plan->place != PLACE_PARENT)
			return true;
	}
	return false;
}

/* The last line of stderr, without those that only tell the exit code. */
static void
last_words(char *words, size_t size)
{
	char path[128], line[300];
	FILE *file;

	snprintf(path, sizeof path, "%s/err", world->folder);
	file = fopen(path, "r");
	words[0] = '\0';
	while (file != NULL && fgets(line, sizeof line, file) != NULL) {
		line[strcspn(line, "\n")] = '\0';
		if (strstr(line, "exit with code") == NULL)
			snprintf(words, size, "%s", line);
	}
	if (file != NULL)
		fclose(file);
}

/* The master must not remove a file unless it knows that the file is its own. */
static bool
may_leave_pid_file(void)
{
	const struct fault *plan;

	for (plan = world->faults.plan; plan < world->faults.plan + PLANS; plan++) {
		if (plan->how == 0 || plan->place != PLACE_MASTER)
			continue;
		switch ((int)sites[plan->site].call) {
		case CALL_fcntl:
		case CALL_fstat:
		case CALL_lstat:
		case CALL_pread:
		case CALL_unlink:
			return true;
		default:
			break;
		}
	}
	return false;
}

/* The pid file and the status file must be gone, and no other file may be in their folder. */
static void
judge_files(void)
{
	char folder[128];

	snprintf(folder, sizeof folder, "%s/run", world->folder);
	if (rmdir(folder) == -1 && errno == ENOTEMPTY && !may_leave_pid_file())
		complain("the pid file, or a status file, is left");
}

static void
judge_end(void)
{
	char words[300];
	bool good = WIFEXITED(master_status) && WEXITSTATUS(master_status) == 0;

	last_words(words, sizeof words);
	if (WIFSIGNALED(master_status))
		complain("the master was killed by signal %d", WTERMSIG(master_status));
	else if (!good && !world->started && !may_fail_to_start())
		complain("the start failed, exit %d: %s", WEXITSTATUS(master_status), words);
	else if (!good && !world->started && words[0] == '\0')
		complain("the start failed, and no line says why");
	else if (!good && !world->started && strstr(words, "Success") != NULL)
		complain("the start failed with a wrong reason: %s", words);
	else if (!good && world->started)
		complain("the master exited with %d: %s", WEXITSTATUS(master_status), words);
	else if (good && !world->finished)
		complain("the master exited with 0 before it was told to end: %s", words);
	judge_files();
}

/* This process is the subreaper, so an orphan of the cluster becomes its child. Only children are
 * killed: any other pid may belong to a foreign process by now. Returns whether a process was
 * left, and appends the names to the text. */
static bool
kill_left(char *names, size_t size)
{
	size_t used = strlen(names);
	bool found = false;
	int life;
	pid_t pid;

	for (life = 1; life < world->faults.births; life++) {
		pid = world->faults.pids[life];
		if (pid <= 0 || waitpid(pid, NULL, WNOHANG) != 0)
			continue;
		kill(pid, SIGKILL);
		found = true;
		if (used < size)
			used += (size_t)snprintf(names + used, size - used, " %s", life_name(life));
	}
	return found;
}

static void
judge_left(void)
{
	int64_t deadline = faults_clock() + 1500 * patience();
	char left[300] = "";
	pid_t pid;

	while ((pid = waitpid(-1, NULL, WNOHANG)) != -1 && faults_clock() < deadline)
		if (pid == 0)
			poll(NULL, 0, 1);
	if (pid != -1 && kill_left(left, sizeof left))
		complain("processes are left behind:%s", left);
	while (waitpid(-1, NULL, 0) != -1)
		;
}

static bool
is_over(char *missing, size_t size)
{
	snprintf(missing, size, "the master does not end");
	return ended;
}

/* An invisible fault must cost no process its life. (A slow reload is ordered again, and may then
 * fork once more.) */
static void
judge_births(int act)
{
	int expected = world->expected_births[act];

	if (expected != 0 && is_invisible() && world->births[act] > expected && act != ACT_RELOAD &&
	    act != ACT_HANG)
		complain("the fault cost a process its life");
}

static void
play_acts(void)
{
	const struct fault *plan = &world->faults.plan[0];
	int act, before;

	for (act = 0; act < ACTS; act++) {
		if (plan->how != 0 && act != plan->act && act != ACT_START && act < ACT_AFTER)
			continue;
		if (plan->how != 0 && plan->act == ACT_END && act == ACT_AFTER)
			continue;
		before = world->faults.births;
		world->faults.act = act;
		world->finished = act == ACT_END;
		if (!acts[act].play()) {
			if (ended || world->told)
				break;
		}
		world->births[act] = world->faults.births - before;
		judge_births(act);
	}
	if (world->told && !ended && master > 0)
		kill(master, SIGKILL);
	ended = ended || master <= 0; /* fork_cluster failed */
	until(is_over, "the end");
	while (!ended && waitpid(master, &master_status, 0) == -1)
		;
}

static void
on_crash(int number)
{
	complain("%s crashed with signal %d", life_name(faults_life), number);
	signal(number, SIG_DFL);
	raise(number);
}

static void
on_sanitizer_death(void)
{
	complain("the sanitizer stopped %s", life_name(faults_life));
}

static void
catch_crashes(void)
{
	static const int numbers[] = {SIGSEGV, SIGBUS, SIGABRT, SIGFPE, SIGILL};
	size_t i;

	if (__sanitizer_set_death_callback != NULL) {
		__sanitizer_set_death_callback(on_sanitizer_death);
		return;
	}
	for (i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
		signal(numbers[i], on_crash);
}

static void
redirect(const char *name, int descriptor)
{
	char path[128];
	int file;

	snprintf(path, sizeof path, "%s/%s", world->folder, name);
	file = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
	if (file == -1 || dup2(file, descriptor) == -1)
		abort();
	close(file);
}

/* The whole play, in a process of its own. */
static void
play(void)
{
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	redirect("out", STDOUT_FILENO);
	redirect("err", STDERR_FILENO);
	catch_crashes();
	faults = &world->faults;
	faults->births = 1;
	faults->pids[0] = getpid();
	play_acts();
	judge_end();
	messenger_close(parent);
	judge_left();
	exit(0);
}

/* ---- several plays at a time ----------------------------------------------- */

struct job {
	struct fault plan[PLANS];
};

static struct lane {
	struct world *world;
	pid_t player;
	int64_t deadline;
	struct job *job;
} lanes[LANES];

static struct {
	uint32_t hits[ACTS][SITES_MAX][PLACES];   /* without a fault */
	bool usual[SITES_MAX][PLACES];            /* the same, in any act */
	bool reached[SITES_MAX];                  /* ever */
	struct job *provokers[SITES_MAX][PLACES]; /* the job that leads to an unusual call */
	int command[SITES_MAX];
	int descriptors[PLACES], births[ACTS];
	int played, failed, silent;
} tally;

static int
remove_entry(const char *path, const struct stat *status, int type, struct FTW *where)
{
	(void)status, (void)type, (void)where;
	return remove(path);
}

static void
open_lane(struct lane *lane, struct job *job)
{
	struct world *w = lane->world;

	memset(w, 0, sizeof *w);
	strcpy(w->folder, "/tmp/clutch-faults.XXXXXX");
	cr_assert(mkdtemp(w->folder) != NULL);
	memcpy(w->expected, tally.descriptors, sizeof w->expected);
	memcpy(w->expected_births, tally.births, sizeof w->expected_births);
	if (job != NULL)
		memcpy(w->faults.plan, job->plan, sizeof job->plan);
	lane->job = job;
	lane->deadline = faults_clock() + PLAY_LIMIT * patience();
	fflush(NULL);
	lane->player = fork();
	cr_assert(lane->player != -1);
	if (lane->player == 0) {
		world = w;
		play();
	}
}

static void
describe(const struct fault *fault, char *text, size_t size)
{
	const struct site *site = &sites[fault->site];

	snprintf(text, size, "%s %s:%d (%s) in the %s, %s, %s%s", call_name(site->call), site->file,
	         site->line, site->function, place_name(fault->place), acts[fault->act].name,
	         fault_name(fault->how),
	         fault->lasts == PERSISTENT ? " for a while"
	         : fault->lasts == TOO_LONG ? " for too long"
	                                    : "");
}

static void
print_problem(const struct world *w)
{
	char first[300] = "without a fault", second[300];

	if (w->faults.plan[0].how != 0)
		describe(&w->faults.plan[0], first, sizeof first);
	if (w->faults.plan[1].how != 0)
		describe(&w->faults.plan[1], second, sizeof second);
	fprintf(stderr, "%s%s%s: %s\n", w->faults.plan[1].how != 0 ? second : "",
	        w->faults.plan[1].how != 0 ? ", after " : "", first, w->problem);
	if (getenv("FAULTS_KEEP") != NULL)
		fprintf(stderr, "\tits log: %s\n", w->folder);
}

/* Count the calls that were made; for a call that only a fault leads to, remember the job. */
static void
count_hits(const struct lane *lane)
{
	const struct faults *f = &lane->world->faults;
	int site, act, place;

	for (act = 0; act < ACTS; act++)
		for (site = 0; site < site_count; site++)
			for (place = 0; place < PLACES; place++) {
				if (f->hits[act][site][place] == 0)
					continue;
				tally.reached[site] = true;
				if (lane->job != NULL && tally.provokers[site][place] == NULL &&
				    !tally.usual[site][place] && f->plan[1].how == 0) {
					tally.provokers[site][place] = lane->job;
					tally.command[site] = f->command[site];
				}
			}
}

static void
close_lane(struct lane *lane)
{
	struct world *w = lane->world;
	char text[300];
	int i;

	count_hits(lane);
	tally.played++;
	for (i = 0; i < PLANS && !w->told; i++)
		if (w->faults.plan[i].how != 0 && !w->faults.fired[i] &&
		    w->faults.plan[i].site != ANY_SITE) {
			tally.silent++;
			describe(&w->faults.plan[i], text, sizeof text);
			fprintf(stderr, "the play did not meet its fault: %s\n", text);
		}
	if (w->told) {
		tally.failed++;
		print_problem(w);
	}
	if (getenv("FAULTS_KEEP") == NULL || !w->told)
		nftw(w->folder, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
	lane->player = 0;
}

/* A process that is left would write into the world of the next play. */
static void
kill_lives(void)
{
	char names[300] = "";

	while (kill_left(names, sizeof names)) /* the master, then its children */
		poll(NULL, 0, 1);
}

/* The play takes too long: kill its parent; wait_lane then kills the others. */
static void
abort_lane(struct lane *lane)
{
	world = lane->world;
	complain("the play hangs");
	kill(lane->player, SIGKILL);
}

/* Wait a moment for the end of a play; false if none is running. */
static bool
wait_lane(void)
{
	bool busy = false;
	int i, status;
	pid_t pid;

	for (i = 0; i < LANES; i++) {
		busy |= lanes[i].player != 0;
		if (lanes[i].player != 0 && faults_clock() > lanes[i].deadline)
			abort_lane(&lanes[i]);
	}
	while (busy && (pid = waitpid(-1, &status, WNOHANG)) > 0) {
		for (i = 0; i < LANES && lanes[i].player != pid; i++)
			;
		if (i == LANES)
			continue;
		world = lanes[i].world;
		if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
			complain("the parent ended with status %d", status);
			kill_lives();
		}
		close_lane(&lanes[i]);
		return true;
	}
	if (busy)
		poll(NULL, 0, 2);
	return busy;
}

static void
play_all(struct job *jobs, size_t count)
{
	size_t next;
	int i;

	for (next = 0; next < count; next++) {
		for (;;) {
			for (i = 0; i < LANES && lanes[i].player != 0; i++)
				;
			if (i < LANES)
				break;
			wait_lane();
		}
		open_lane(&lanes[i], &jobs[next]);
	}
	while (wait_lane())
		;
}

static void
open_lanes(void)
{
	const char *wrong = faults_find_sites();
	int i;

	cr_assert(wrong == NULL, "%s", wrong);
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	for (i = 0; i < LANES; i++) {
		lanes[i].world = mmap(NULL, sizeof *lanes[i].world, PROT_READ | PROT_WRITE,
		                      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
		cr_assert(lanes[i].world != MAP_FAILED);
	}
}

/* Play without a fault: all must be well. Record which process makes which call in which act. */
static void
rehearse(void)
{
	struct world *w = lanes[0].world;
	int act, site, place;

	open_lane(&lanes[0], NULL);
	while (wait_lane())
		;
	cr_assert(!w->told, "without a fault: %s", w->problem);
	memcpy(tally.hits, w->faults.hits, sizeof tally.hits);
	for (act = 0; act < ACTS; act++)
		for (site = 0; site < site_count; site++)
			for (place = 0; place < PLACES; place++)
				tally.usual[site][place] |= tally.hits[act][site][place] > 0;
	memcpy(tally.command, w->faults.command, sizeof tally.command);
	memcpy(tally.descriptors, w->descriptors, sizeof tally.descriptors);
	memcpy(tally.births, w->births, sizeof tally.births);
}

/* ---- which faults ---------------------------------------------------------- */

static struct job jobs[SITES_MAX * 128];
static size_t job_count;

static void
add_job(const struct job *before, int site, int place, int act, int how, int lasts)
{
	struct job *job = &jobs[job_count++];

	cr_assert(job_count < sizeof jobs / sizeof jobs[0]);
	if (how == FAULT_NO_HANDLE)
		lasts = FOR_EVER; /* the first call need not carry the handle */
	if (before != NULL)
		job->plan[0] = before->plan[0];
	job->plan[before != NULL] = (struct fault){site, place, act, how, lasts};
}

static bool
is_short(void)
{
	const char *wanted = getenv("FAULTS");

	return wanted != NULL && strcmp(wanted, "short") == 0;
}

static bool
is_wanted(int site)
{
	const char *wanted = getenv("FAULTS");
	char line[64];

	if (wanted == NULL || strcmp(wanted, "all") == 0)
		return true;
	if (is_short())
		return site != ANY_SITE;
	if (site == ANY_SITE || strcmp(wanted, "shortages") == 0)
		return site == ANY_SITE && strcmp(wanted, "shortages") == 0;
	snprintf(line, sizeof line, "%s:%d", sites[site].file, sites[site].line);
	return strcmp(wanted, line) == 0;
}

/* The error of this call that may last for a while; 0 if there is none. */
static int
lasting_fault(const struct site *site, int command)
{
	switch ((int)site->call) {
	case CALL_fork:
		return EAGAIN;
	case CALL_malloc:
	case CALL_calloc:
	case CALL_realloc:
	case CALL_strdup:
		return ENOMEM;
	case CALL_send:
	case CALL_sendmsg:
	case CALL_recvmsg:
		return ENOBUFS;
	case CALL_socketpair:
	case CALL_accept:
		return EMFILE;
	case CALL_fcntl:
		return command == F_DUPFD_CLOEXEC ? EMFILE : 0;
	default:
		return 0;
	}
}

static void
add_jobs_of(const struct job *before, int site, int place, int act)
{
	const int *how;
	int lasting = lasting_fault(&sites[site], tally.command[site]);

	for (how = faults_of(&sites[site], tally.command[site]); *how != 0; how++)
		add_job(before, site, place, act, *how, 0);
	if (lasting != 0)
		add_job(before, site, place, act, lasting, PERSISTENT);
	if (lasting != 0)
		add_job(before, site, place, act, lasting, TOO_LONG);
}

/* By default a call fails in two of the acts that make it: the first, and one that differs from
 * call to call. Calls on a channel and the master's allocations also fail in all others. */
static void
list_jobs_of(int site, int place)
{
	int act, count = 0, among[ACTS];
	bool all = getenv("FAULTS") != NULL && !is_short();

	for (act = 0; act < ACTS; act++)
		if (tally.hits[act][site][place] != 0 && act != ACT_AFTER)
			among[count++] = act;
	for (act = 0; act < count; act++)
		if (all || act == 0 || (act == (site + place) % count && !is_short()))
			add_jobs_of(NULL, site, place, among[act]);
		else if (is_short())
			continue;
		else if (sites[site].call == CALL_send || sites[site].call == CALL_sendmsg ||
		         sites[site].call == CALL_recvmsg)
			add_job(NULL, site, place, among[act], ENOBUFS, PERSISTENT);
		else if (place == PLACE_MASTER && is_allocation(sites[site].call))
			add_job(NULL, site, place, among[act], ENOMEM, TOO_LONG);
}

static void
list_jobs(void)
{
	int site, place;

	for (site = 0; site < site_count; site++)
		for (place = 0; place < PLACES && is_wanted(site); place++)
			list_jobs_of(site, place);
}

/* For a call that is made only after a fault: that fault comes first, then the call fails. */
static void
list_second_jobs(void)
{
	const struct job *before;
	int site, place;

	for (site = 0; site < site_count; site++)
		for (place = 0; place < PLACES; place++) {
			before = tally.provokers[site][place];
			if (before != NULL)
				add_jobs_of(before, site, place, before->plan[0].act);
		}
}

/* One role is short of something. (There is no ENOBUFS in the start: the log would lose the line
 * that says why the start failed.) */
static void
list_shortages(void)
{
	static const int shortages[] = {ENOMEM, EMFILE, ENOBUFS};
	int place, act, i;

	for (act = 0; act < ACT_AFTER && is_wanted(ANY_SITE); act++)
		for (place = 0; place < PLACES; place++)
			for (i = act == ACT_START ? 1 : 2; i >= 0; i--) {
				add_job(NULL, ANY_SITE, place, act, shortages[i], PERSISTENT);
				add_job(NULL, ANY_SITE, place, act, shortages[i], TOO_LONG);
			}
}

/* Calls that the play does not reach, not even with a fault, and why. */
static const struct {
	const char *function;
	enum call call;
	const char *why;
} unreached[] = {
	{"trace_event", CALL_open, "the trace is off: test_trace.c has its faults"},
	{"trace_event", CALL_poll, "the trace is off"},
	{"trace_event", CALL_write, "the trace is off"},
	{"trace_event", CALL_close, "the trace is off"},
	{"reap_orphans", CALL_waitpid, "only as process 1 of a container"},
	{"reset_signals", CALL_close, "only in a terminal"},
	{"on_connection", CALL_close, "a connection whose flags cannot be set"},
	{"remove_stale", CALL_lstat, "only with a path as host: test_options.c has its faults"},
	{"remove_stale", CALL_socket, "a path as host"},
	{"remove_stale", CALL_unlink, "a path as host"},
	{"remove_stale", CALL_close, "a path as host"},
	{"bind_patiently", CALL_poll, "the port is in use"},
	{"bind_listener", CALL_lstat, "a path as host"},
	{"remove_socket", CALL_lstat, "a path as host"},
	{"remove_socket", CALL_unlink, "a path as host"},
	{"open_listener", CALL_fcntl, "options.listener: test_options.c"},
	{"signal_process", CALL_kill, "a process that has left its group"},
	{"parse_options", CALL_fcntl, "options.log: test_options.c"},
	{"channel_close", CALL_close, "a handle without its frame: the peer has died meanwhile"},
};

static bool
is_explained(const struct site *site)
{
	size_t i;

	for (i = 0; i < sizeof unreached / sizeof unreached[0]; i++)
		if (unreached[i].call == site->call &&
		    strcmp(unreached[i].function, site->function) == 0) {
			fprintf(stderr, "not reached: %s %s:%d (%s): %s\n", call_name(site->call),
			        site->file, site->line, site->function, unreached[i].why);
			return true;
		}
	return false;
}

static int
count_unexplained(void)
{
	int site, count = 0;

	for (site = 0; site < site_count; site++) {
		if (tally.reached[site] || !is_wanted(site) || is_explained(&sites[site]))
			continue;
		fprintf(stderr, "NOT REACHED, and no reason is given: %s %s:%d (%s)\n",
		        call_name(sites[site].call), sites[site].file, sites[site].line,
		        sites[site].function);
		count++;
	}
	return count;
}

Test(faults, each_call_fails_in_each_way, .timeout = 7200)
{
	size_t first, second;
	int unexplained;

	open_lanes();
	rehearse();
	list_jobs();
	first = job_count;
	fprintf(stderr, "%d calls, %zu faults\n", site_count, first);
	play_all(jobs, first);
	list_second_jobs();
	fprintf(stderr, "%zu faults of calls to which only a fault leads\n", job_count - first);
	play_all(jobs + first, job_count - first);
	second = job_count;
	list_shortages();
	fprintf(stderr, "%zu shortages\n", job_count - second);
	play_all(jobs + second, job_count - second);
	unexplained = count_unexplained();
	fprintf(stderr, "%d plays, %d did not meet their fault, %d failed\n", tally.played,
	        tally.silent, tally.failed);
	cr_assert_eq(tally.failed, 0);
	cr_assert(unexplained == 0 || is_short());
}

Test(faults, no_call_of_the_core_that_can_fail_is_left_out)
{
	const char *build = getenv("BUILD");
	char folder[4096];
	const char *missing;

	if (__sanitizer_set_death_callback != NULL)
		cr_skip_test("leaks.h adds calls of its own");
#ifdef COVERAGE_H
	cr_skip_test("coverage.h adds calls of its own");
#endif
	snprintf(folder, sizeof folder, "%s/faults", build != NULL ? build : "build");
	missing = faults_find_missing(folder);
	cr_assert_str_empty(missing, "%s", missing);
}
