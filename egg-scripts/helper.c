/*
 * A cluster as it is seen from outside: who holds which byte of its pid file?
 *
 *	byte     0          4711    4712    4713
 *	lock     master     agent   app     app
 *
 * The kernel gives a lock back when its process ends, however it ends. So what is
 * found here is alive, and belongs to the cluster: a number that stands in a stale
 * file, and is a stranger's by now, is never even read (D30).
 *
 * egg: egg-scripts/lib/helper.js, which reads the list of all processes
 */
#include "scripts.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A lock that goes makes no event that one could wait for: look so often, in ms. */
#define LOOK_AGAIN 10

#define KILL_TIMEOUT 10000 /* a killed process may be busy in the kernel for so long */
#define REAP_TIMEOUT 100   /* so long its parent may take to reap the dead master */
#define ASK_LAST 1000      /* so long the master may take to say who is left */

#define TABLE_MAX (CLUTCH_WORKERS_MAX * 256 + 4096) /* bytes */

/* A lock in these bytes (length 0: all that follow); its owner, 0 if there is none. */
static pid_t
owner(int descriptor, off_t start, off_t length, off_t *byte)
{
	struct flock lock = {
		.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = start, .l_len = length};

	if (fcntl(descriptor, F_GETLK, &lock) == -1 || lock.l_type == F_UNLCK)
		return 0;
	*byte = lock.l_start;
	return lock.l_pid;
}

int
scripts_find(const struct command *command, struct cluster_found *cluster)
{
	off_t byte;

	cluster->pid_file = command->options.pid_file;
	cluster->master = 0;
	cluster->descriptor = open(cluster->pid_file, O_RDONLY);
	if (cluster->descriptor == -1 && (errno == ENOENT || errno == ENOTDIR))
		return 0;
	if (cluster->descriptor == -1) {
		scripts_complain(command, "pid file %s: %s", cluster->pid_file, strerror(errno));
		return -1;
	}
	fcntl(cluster->descriptor, F_SETFD, FD_CLOEXEC);
	cluster->master = owner(cluster->descriptor, 0, 1, &byte);
	if (cluster->master < 0) { /* a file system that several machines share */
		scripts_complain(command, "pid file %s: its master is on another machine",
		                 cluster->pid_file);
		return -1;
	}
	return cluster->master != 0;
}

void
scripts_close(struct cluster_found *cluster)
{
	if (cluster->descriptor != -1)
		close(cluster->descriptor);
	cluster->descriptor = -1;
}

bool
scripts_is_gone(const struct cluster_found *cluster)
{
	off_t byte;

	return owner(cluster->descriptor, 0, 0, &byte) == 0;
}

/* The master lets go of its lock a moment before its end. (Where it waits for a parent
 * that reaps nobody, there is nothing else that one could see from here.) */
static void
wait_for_reaping(pid_t master)
{
	int64_t deadline = clutch_now() + REAP_TIMEOUT;

	while (master > 0 && kill(master, 0) == 0 && clutch_now() < deadline)
		poll(NULL, 0, LOOK_AGAIN);
}

bool
scripts_wait_gone(const struct cluster_found *cluster, int64_t timeout)
{
	int64_t deadline = clutch_now() + timeout;

	while (!scripts_is_gone(cluster)) {
		if (clutch_now() >= deadline)
			return false;
		poll(NULL, 0, LOOK_AGAIN);
	}
	wait_for_reaping(cluster->master);
	return true;
}

/* SIGKILL to everybody with a lock from start on, before `end`. Which of several
 * locks fcntl(2) tells is its choice: on both sides of it there may be more. */
static void
kill_between(const struct cluster_found *cluster, off_t start, off_t end)
{
	off_t byte = 0;
	pid_t pid = start < end ? owner(cluster->descriptor, start, end - start, &byte) : 0;

	if (pid <= 0)
		return;
	if (pid != cluster->master)
		kill(-pid, SIGKILL); /* each child leads a group: its own children */
	kill(pid, SIGKILL);
	kill_between(cluster, start, byte);
	kill_between(cluster, byte + 1, end);
}

/* All of a file; NULL if it is not there. */
static char *
read_file(const char *path)
{
	FILE *file = fopen(path, "r");
	char *text = file != NULL ? malloc(TABLE_MAX) : NULL;

	if (text != NULL)
		text[fread(text, 1, TABLE_MAX - 1, file)] = '\0';
	if (file != NULL)
		fclose(file);
	return text;
}

/* Is it still the master? Its number may be a stranger's by now. */
static bool
is_master(const struct cluster_found *cluster)
{
	off_t byte;

	return cluster->master != 0 && owner(cluster->descriptor, 0, 1, &byte) == cluster->master;
}

char *
scripts_ask(const struct cluster_found *cluster, int number, int64_t timeout)
{
	int64_t deadline = clutch_now() + timeout;
	char path[PATH_MAX + 16], *table;

	snprintf(path, sizeof path, "%s.status", cluster->pid_file);
	unlink(path); /* what is there after the order is fresh */
	errno = ESRCH;
	if (!is_master(cluster) || kill(cluster->master, number) == -1)
		return NULL;
	while ((table = read_file(path)) == NULL) {
		errno = ESRCH;
		if (!is_master(cluster))
			return NULL;
		errno = ETIMEDOUT;
		if (clutch_now() >= deadline)
			return NULL;
		poll(NULL, 0, LOOK_AGAIN);
	}
	return table;
}

/* SIGKILL to the groups of the table's rows: a child that is dead holds no lock any
 * more, but its own children may be alive, and then the master waits for them. It would
 * do the same itself at its deadline. */
static void
kill_groups(const char *table)
{
	char role[8];
	long pid;

	for (; table != NULL; table = strchr(table, '\n')) {
		table += *table == '\n';
		if (sscanf(table, "%7s %*d %ld", role, &pid) == 2 && pid > 1 &&
		    (strcmp(role, "app") == 0 || strcmp(role, "agent") == 0))
			kill(-(pid_t)pid, SIGKILL);
	}
}

/* The table is asked for now: one from before the wait has numbers in it that may be
 * anybody's. A master that hangs does not answer: then there are the locks alone. */
int
scripts_kill(const struct cluster_found *cluster)
{
	char *table = scripts_ask(cluster, SIGUSR1, ASK_LAST);
	int64_t deadline = clutch_now() + KILL_TIMEOUT;

	kill_groups(table);
	free(table);
	do {
		kill_between(cluster, 0, INT_MAX);
		if (scripts_wait_gone(cluster, 5 * LOOK_AGAIN))
			return 0;
	} while (clutch_now() < deadline);
	return -1;
}

int64_t
scripts_patience(const struct command *command, const char *table)
{
	const char *at = table != NULL ? strstr(table, "stops within ") : NULL;
	long patience = at != NULL ? strtol(at + strlen("stops within "), NULL, 10) : 0;

	if (command->timeout > 0)
		return (int64_t)command->timeout * 1000;
	return patience > 0 ? patience + 2000 : 30000; /* D31 */
}
