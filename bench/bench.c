/*
 * clutch beside its floors: what it costs, measured against what the kernel
 * charges for the same bytes and forks without it.
 *
 *	bench [--tsv] [--quick] [--rounds N] [WORKLOAD]
 *
 * In each round every contestant of a case runs once, one after the other. So other
 * work of the machine disturbs all of them alike. The table has medians.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "bench.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
	ROUNDS = 5,
	ROUNDS_MAX = 99,
	ROUND_SECONDS = 10, /* a round that takes longer has failed */
	DURATION = 250,     /* milliseconds of sending */
	QUICK_DURATION = 20,
	CONTESTANTS_MAX = 4,
	CASES_MAX = 4
};

struct contestant {
	const char *name;
	contest *run;
};

/* A workload has a case for each size and each number of apps. The first contestant is the
 * floor; if there is only clutch, the first case is the floor. */
struct workload {
	const char *name;
	struct {
		const char *suffix, *unit;
	} figures[FIGURES_MAX];
	struct contestant contestants[CONTESTANTS_MAX];
	size_t bytes[CASES_MAX];
	int apps[CASES_MAX];
};

#define SIZES                                                                                      \
	{                                                                                          \
		16, 128, 1024, 16384                                                               \
	}

static const struct workload workloads[] = {
	{"unicast",
         {{"", "messages/s"}, {"", "MB/s"}},
         {{"copy", floor_copy},
          {"copy-best", floor_copy_best},
          {"naive", floor_naive},
          {"clutch", clutch_unicast}},
         SIZES,
         {1}},
	{"actions",
         {{"", "messages/s"}},
         {{"one", clutch_unicast}, {"of-64", clutch_crowd}},
         {16, 128},
         {1}},
	{"unicast-turn",
         {{"", "messages/s"}, {"", "MB/s"}},
         {{"copy-turn", floor_copy_turn}, {"clutch", clutch_unicast_turn}},
         SIZES,
         {1}},
	{"mixed",
         {{"", "deliveries/s"}},
         {{"copy", floor_copy_once}, {"clutch", clutch_mixed}},
         SIZES,
         {4}},
	{"broadcast",
         {{"", "deliveries/s"}},
         {{"copy", floor_copy}, {"clutch", clutch_broadcast}},
         SIZES,
         {2, 4, 16}},
	{"latency",
         {{"-p50", "us"}, {"-p99", "us"}},
         {{"pingpong", floor_pingpong}, {"clutch", clutch_latency}},
         SIZES,
         {1}},
	{"invoke",
         {{"-p50", "us"}, {"-p99", "us"}},
         {{"master", clutch_latency}, {"leader", client_invoke}},
         SIZES,
         {1}},
	{"fanout",
         {{"-p50", "us"}, {"-p99", "us"}},
         {{"star", floor_star}, {"master", master_fanout}, {"leader", client_fanout}},
         {128},
         {2, 4, 16}},
	{"fanout-stream",
         {{"", "deliveries/s"}},
         {{"copy", floor_copy}, {"master", clutch_broadcast}, {"leader", client_stream}},
         {128, 16384},
         {2, 4, 16}},
	{"scale",
         {{"-rss", "KiB"}, {"-unicast", "us"}, {"-roundtrip", "us"}},
         {{"clutch", clutch_scale}},
         {128},
         {2, 16, 64, 256}},
	{"start",
         {{"-ready", "ms"},
          {"-replaced", "ms"},
          {"-rss", "KiB"},
          {"-pss", "KiB"},
          {"-static", "B"}},
         {{"fork", floor_fork}, {"clutch", clutch_start}},
         {0},
         {4}},
};

static bool tsv;
static int rounds = ROUNDS;
static int64_t duration = (int64_t)DURATION * 1000000;
static pid_t bench;
static int64_t deadline;
static volatile sig_atomic_t interrupted;

/* ---- processes ----------------------------------------------------------- */

int64_t
now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static void
on_signal(int number)
{
	interrupted = number;
}

static void
catch_signals(void (*handler)(int))
{
	static const int numbers[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1};
	struct sigaction action = {.sa_handler = handler};
	size_t i;

	sigemptyset(&action.sa_mask);
	for (i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
		sigaction(numbers[i], &action, NULL);
}

/* The children of a killed master become ours (PR_SET_CHILD_SUBREAPER), and are killed,
 * too. */
static void
kill_all(void)
{
	pid_t children[512];
	size_t i, count;

	while ((count = children_of(getpid(), children, sizeof children / sizeof *children)) > 0) {
		for (i = 0; i < count; i++)
			kill(children[i], SIGKILL);
		for (i = 0; i < count; i++)
			waitpid(children[i], NULL, 0);
	}
}

void
fail(const char *format, ...)
{
	char line[512];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(line, sizeof line, format, arguments);
	va_end(arguments);
	fprintf(stderr, "bench: %s\n", line);
	if (getpid() != bench) { /* in a child: the bench does the rest */
		kill(bench, SIGUSR1);
		_exit(1);
	}
	fflush(stdout);
	kill_all();
	_exit(1);
}

void
round_begin(int seconds)
{
	deadline = now_ns() + (int64_t)seconds * 1000000000;
}

/* Take the dead; false when no child is left. */
static bool
take_dead(void)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
		if (status != 0)
			fail("process %ld ended with status 0x%x", (long)pid, (unsigned)status);
	return pid == 0;
}

void
look_around(void)
{
	if (interrupted == SIGUSR1)
		fail("a process of this round has failed");
	if (interrupted != 0)
		fail("interrupted");
	if (now_ns() > deadline)
		fail("this round takes too long");
	take_dead();
}

pid_t
spawn(void)
{
	pid_t pid = fork();

	if (pid == -1)
		fail("fork: %s", strerror(errno));
	if (pid == 0) {
		catch_signals(SIG_DFL);
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != bench)
			_exit(1);
	}
	return pid;
}

void
reap(void)
{
	const struct timespec moment = {0, 1000000};

	while (take_dead()) {
		look_around();
		nanosleep(&moment, NULL);
	}
}

void
read_result(int descriptor, void *result, size_t size)
{
	struct pollfd wait = {.fd = descriptor, .events = POLLIN};
	char *to = result;
	ssize_t count;

	while (size > 0) {
		look_around();
		if (poll(&wait, 1, STEP) <= 0)
			continue;
		count = read(descriptor, to, size);
		if (count <= 0)
			fail("a process of this round has no result");
		to += count;
		size -= (size_t)count;
	}
}

int
silence(void)
{
	int kept = dup(STDOUT_FILENO);
	int null = open("/dev/null", O_WRONLY);

	fflush(stdout);
	if (kept == -1 || null == -1 || dup2(null, STDOUT_FILENO) == -1)
		fail("/dev/null: %s", strerror(errno));
	close(null);
	return kept;
}

void
pin(bool one)
{
	static cpu_set_t all;
	cpu_set_t last;
	size_t i, cpu = 0;

	if (CPU_COUNT(&all) == 0)
		sched_getaffinity(0, sizeof all, &all);
	for (i = 0; i < CPU_SETSIZE; i++)
		if (CPU_ISSET(i, &all))
			cpu = i;
	CPU_ZERO(&last);
	CPU_SET(cpu, &last);
	if (sched_setaffinity(0, sizeof last, one ? &last : &all) == -1)
		fail("sched_setaffinity: %s", strerror(errno));
}

/* ---- figures ------------------------------------------------------------- */

size_t
frame_bytes(size_t data)
{
	return 12 + 1 + 1 + data + 1;
}

static int
compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

double
percentile(double *values, size_t count, double part)
{
	qsort(values, count, sizeof *values, compare);
	return values[(size_t)((double)(count - 1) * part + 0.5)];
}

/* ---- the table ----------------------------------------------------------- */

static void
print_head(void)
{
	printf(tsv ? "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n"
	           : "%-16s %6s %5s %-10s %12s %12s %12s %-12s %s\n",
	       "workload", "bytes", "apps", "contestant", "median", "min", "max", "unit",
	       tsv ? "ratio_to_floor" : "ratio to floor");
	fflush(stdout); /* or a forked child would print it again */
}

/* With no more digits after the point than mean anything; "-": there is no such figure. */
static const char *
number(char *text, size_t size, double value)
{
	if (isnan(value))
		snprintf(text, size, "-");
	else
		snprintf(text, size, "%.*f", value >= 1000 ? 0 : value >= 10 ? 1 : 3, value);
	return text;
}

static void
print_row(const char *workload, const struct trial *trial, const char *contestant,
          const double *sorted, const char *unit, double ratio)
{
	char text[4][32];

	printf(tsv ? "%s\t%zu\t%d\t%s\t%s\t%s\t%s\t%s\t%s\n"
	           : "%-16s %6zu %5d %-10s %12s %12s %12s %-12s %8s\n",
	       workload, trial->bytes, trial->apps, contestant,
	       number(text[0], sizeof text[0], sorted[rounds / 2]),
	       number(text[1], sizeof text[1], sorted[0]),
	       number(text[2], sizeof text[2], sorted[rounds - 1]), unit,
	       number(text[3], sizeof text[3], ratio));
}

/* ---- the run ------------------------------------------------------------- */

/* One figure of one contestant, a value for each round. */
typedef double samples[ROUNDS_MAX];

static void
print_case(const struct workload *workload, const struct trial *trial,
           samples results[CONTESTANTS_MAX][FIGURES_MAX], const double *floors)
{
	const struct contestant *contestant;
	char name[64];
	double *values;
	int f, c;

	for (f = 0; f < FIGURES_MAX && workload->figures[f].unit != NULL; f++) {
		snprintf(name, sizeof name, "%s%s", workload->name, workload->figures[f].suffix);
		for (c = 0; c < CONTESTANTS_MAX && workload->contestants[c].run != NULL; c++) {
			contestant = &workload->contestants[c];
			values = results[c][f];
			if (!isnan(values[0])) /* otherwise there is no such figure here */
				print_row(name, trial, contestant->name, values,
				          workload->figures[f].unit,
				          values[rounds / 2] / floors[f]);
		}
	}
	fflush(stdout);
}

/* All rounds of one case. The floors are stored if there are none yet. */
static void
run_case(const struct workload *workload, const struct trial *trial, double *floors)
{
	static samples results[CONTESTANTS_MAX][FIGURES_MAX];
	double figures[FIGURES_MAX];
	int round, c, f;

	for (round = 0; round < rounds; round++) {
		for (c = 0; c < CONTESTANTS_MAX && workload->contestants[c].run != NULL; c++) {
			memset(figures, 0, sizeof figures);
			round_begin(ROUND_SECONDS);
			workload->contestants[c].run(trial, figures);
			for (f = 0; f < FIGURES_MAX; f++)
				results[c][f][round] = figures[f];
		}
	}
	for (f = 0; f < FIGURES_MAX; f++) {
		for (c = 0; c < CONTESTANTS_MAX; c++)
			qsort(results[c][f], (size_t)rounds, sizeof(double), compare);
		if (isnan(floors[f]))
			floors[f] = results[0][f][rounds / 2];
	}
	print_case(workload, trial, results, floors);
}

static void
run_workload(const struct workload *workload)
{
	struct trial trial = {.duration = duration};
	double floors[FIGURES_MAX];
	bool own_floor = workload->contestants[1].run != NULL;
	int a, b, f;

	for (a = 0; a < CASES_MAX && workload->apps[a] != 0; a++) {
		for (b = 0; b < CASES_MAX && (b == 0 || workload->bytes[b] != 0); b++) {
			for (f = 0; f < FIGURES_MAX && (own_floor || a + b == 0); f++)
				floors[f] = NAN;
			trial.apps = workload->apps[a];
			trial.bytes = workload->bytes[b];
			run_case(workload, &trial, floors);
		}
	}
}

static int
usage(void)
{
	size_t i;

	fprintf(stderr, "usage: bench [--tsv] [--quick] [--rounds N] [WORKLOAD]\nworkloads:");
	for (i = 0; i < sizeof workloads / sizeof workloads[0]; i++)
		fprintf(stderr, " %s", workloads[i].name);
	fprintf(stderr, "\n");
	return 2;
}

/* False: an unknown option. */
static bool
parse(int argc, char **argv, const char **only)
{
	int i;

	for (i = 1; i < argc; i++) {
		if (strcmp(argv[i], "--tsv") == 0) {
			tsv = true;
		} else if (strcmp(argv[i], "--quick") == 0) {
			rounds = 1;
			duration = (int64_t)QUICK_DURATION * 1000000;
		} else if (strcmp(argv[i], "--rounds") == 0 && i + 1 < argc) {
			rounds = atoi(argv[++i]);
		} else if (argv[i][0] != '-' && *only == NULL) {
			*only = argv[i];
		} else {
			return false;
		}
	}
	return rounds > 0 && rounds <= ROUNDS_MAX;
}

int
main(int argc, char **argv)
{
	const char *only = NULL;
	size_t i, ran = 0;

	if (!parse(argc, argv, &only))
		return usage();
	for (i = 0; only != NULL && i < sizeof workloads / sizeof workloads[0]; i++)
		ran += strcmp(only, workloads[i].name) == 0;
	if (only != NULL && ran == 0)
		return usage();
	bench = getpid();
	tree_program = getenv("BENCH_TREE");
	ping_program = getenv("BENCH_PING");
	catch_signals(on_signal);
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	print_head();
	for (i = 0; i < sizeof workloads / sizeof workloads[0]; i++)
		if (only == NULL || strcmp(only, workloads[i].name) == 0)
			run_workload(&workloads[i]);
	return 0;
}
