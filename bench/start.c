/*
 * How soon a tree of processes is ready, how soon a killed one is replaced, and
 * how much memory they take. The tree is a program of its own (tree.c), linked
 * statically against musl where that is possible: so small systems run it.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "bench.h"

#include "../messenger.h"
#include "tree.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum { KILLS = 5, PROCESSES_MAX = 64 };
enum { READY, REPLACED, RSS, PSS, SIZE }; /* the figures */

const char *tree_program, *ping_program;

/* ---- /proc --------------------------------------------------------------- */

static pid_t
parent_of(const char *pid)
{
	char path[64], line[512];
	const char *after;
	long parent = 0;
	FILE *file;

	snprintf(path, sizeof path, "/proc/%.16s/stat", pid);
	file = fopen(path, "r");
	if (file == NULL)
		return 0;
	if (fgets(line, sizeof line, file) != NULL) {
		after = strrchr(line, ')'); /* the end of the name, whatever that is */
		if (after != NULL && sscanf(after, ") %*c %ld", &parent) != 1)
			parent = 0;
	}
	fclose(file);
	return (pid_t)parent;
}

size_t
children_of(pid_t parent, pid_t *children, size_t most)
{
	DIR *processes = opendir("/proc");
	const struct dirent *entry;
	size_t count = 0;

	if (processes == NULL)
		return 0;
	while (count < most && (entry = readdir(processes)) != NULL)
		if (isdigit((unsigned char)entry->d_name[0]) && parent_of(entry->d_name) == parent)
			children[count++] = (pid_t)strtol(entry->d_name, NULL, 10);
	closedir(processes);
	return count;
}

/* Adds KiB; pss may be NULL. */
static void
memory_of(pid_t pid, double *rss, double *pss)
{
	char path[64], line[256];
	double kib;
	FILE *file;

	snprintf(path, sizeof path, "/proc/%ld/smaps_rollup", (long)pid);
	file = fopen(path, "r");
	if (file == NULL)
		fail("%s: %s", path, strerror(errno));
	while (fgets(line, sizeof line, file) != NULL) {
		if (sscanf(line, "Rss: %lf", &kib) == 1)
			*rss += kib;
		else if (pss != NULL && sscanf(line, "Pss: %lf", &kib) == 1)
			*pss += kib;
	}
	fclose(file);
}

static void
measure_memory(pid_t root, double *figures)
{
	pid_t children[PROCESSES_MAX];
	size_t i, count = children_of(root, children, PROCESSES_MAX);

	figures[RSS] = figures[PSS] = 0;
	memory_of(root, &figures[RSS], &figures[PSS]);
	for (i = 0; i < count; i++)
		memory_of(children[i], &figures[RSS], &figures[PSS]);
}

/* ---- a tree -------------------------------------------------------------- */

struct tree {
	pid_t pid;
	int channel;       /* to the tree: the floor's reports, or the parent's channel */
	int64_t start;     /* of exec */
	int ready;         /* how many app workers have ever been ready */
	bool all_ready;    /* clutch: egg-ready has come */
	struct alive last; /* the app worker that was ready last */
};

/* Fork and exec, with the time just before exec. */
static void
grow(struct tree *tree, const char *kind, int apps)
{
	char channel[16], count[16];
	int pair[2], clock[2];

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == -1 || pipe(clock) == -1)
		fail("socketpair: %s", strerror(errno));
	memset(tree, 0, sizeof *tree);
	tree->channel = pair[0];
	tree->pid = spawn();
	if (tree->pid == 0) {
		snprintf(channel, sizeof channel, "%d", pair[1]);
		snprintf(count, sizeof count, "%d", apps);
		close(pair[0]);
		close(clock[0]);
		close(silence());
		dup2(STDOUT_FILENO, STDERR_FILENO); /* the deaths are expected */
		tree->start = now_ns();
		if (write(clock[1], &tree->start, sizeof tree->start) == -1)
			fail("write: %s", strerror(errno));
		close(clock[1]);
		execl(tree_program, tree_program, kind, channel, count, (char *)NULL);
		_exit(127); /* the bench sees it */
	}
	close(pair[1]);
	close(clock[1]);
	read_result(clock[0], &tree->start, sizeof tree->start);
	close(clock[0]);
}

/* Kill the youngest app worker, again and again. Returns the median time until another one
 * is ready; `wait` waits for that. */
static double
measure_replacement(struct tree *tree, void (*wait)(struct tree *tree, void *arg), void *arg)
{
	double took[KILLS];
	int64_t killed;
	size_t i;

	for (i = 0; i < KILLS; i++) {
		killed = now_ns();
		kill((pid_t)tree->last.pid, SIGKILL);
		wait(tree, arg);
		took[i] = (double)(tree->last.at - killed) / 1e6;
	}
	return percentile(took, KILLS, 0.5);
}

static void
fell(const struct tree *tree)
{
	kill(tree->pid, SIGTERM);
	reap();
}

/* ---- the floor ----------------------------------------------------------- */

static void
await_report(struct tree *tree, void *arg)
{
	(void)arg;
	read_result(tree->channel, &tree->last, sizeof tree->last);
}

void
floor_fork(const struct trial *trial, double *figures)
{
	struct tree tree;

	grow(&tree, "fork", trial->apps);
	await_report(&tree, NULL); /* all are ready */
	figures[READY] = (double)(now_ns() - tree.start) / 1e6;
	for (; tree.ready < trial->apps; tree.ready++)
		await_report(&tree, NULL);
	measure_memory(tree.pid, figures);
	figures[REPLACED] = measure_replacement(&tree, await_report, NULL);
	figures[SIZE] = NAN;
	fell(&tree);
	close(tree.channel);
}

/* ---- clutch -------------------------------------------------------------- */

static int
on_message(struct messenger *parent, const struct message *message, void *arg)
{
	struct tree *tree = arg;
	long long at, pid;

	(void)parent;
	if (strcmp(message->action, "egg-ready") == 0)
		tree->all_ready = true;
	if (strcmp(message->action, "alive") == 0 &&
	    sscanf(message->data, "[%lld,%lld]", &at, &pid) == 2) {
		tree->last = (struct alive){at, pid};
		tree->ready++;
	}
	return 0;
}

static void
turn(struct messenger *parent)
{
	look_around();
	if (messenger_step(parent, STEP) != 1)
		fail("the cluster ended too soon");
}

static void
await_replacement(struct tree *tree, void *arg)
{
	int before = tree->ready;

	/* on_message counts, which cppcheck cannot see */
	/* cppcheck-suppress knownConditionTrueFalse */
	while (tree->ready == before)
		turn(arg);
}

/* The size of the stripped static program; without musl there is none. */
static double
size_of_ping(void)
{
	struct stat status;

	return ping_program != NULL && stat(ping_program, &status) == 0 ? (double)status.st_size
	                                                                : NAN;
}

/* Grow a cluster, and wait until it says that all are ready. */
static struct messenger *
grow_cluster(struct tree *tree, int apps)
{
	struct messenger *parent;

	grow(tree, "clutch", apps);
	parent = messenger_open(tree->channel, ROLE_PARENT);
	if (parent == NULL || messenger_on(parent, NULL, on_message, tree) == -1)
		fail("messenger_open: %s", strerror(errno));
	while (!tree->all_ready)
		turn(parent);
	return parent;
}

void
clutch_start(const struct trial *trial, double *figures)
{
	struct tree tree;
	struct messenger *parent = grow_cluster(&tree, trial->apps);

	figures[READY] = (double)(now_ns() - tree.start) / 1e6;
	while (tree.ready < trial->apps)
		turn(parent);
	measure_memory(tree.pid, figures);
	figures[REPLACED] = measure_replacement(&tree, await_replacement, parent);
	figures[SIZE] = size_of_ping();
	fell(&tree);
	messenger_close(parent);
}

double
idle_master_rss(int apps)
{
	struct tree tree;
	struct messenger *parent = grow_cluster(&tree, apps);
	double rss = 0;

	while (tree.ready < apps)
		turn(parent);
	memory_of(tree.pid, &rss, NULL);
	fell(&tree);
	messenger_close(parent);
	return rss;
}
