/*
 * A cluster as another process sees it: which process holds which byte of its pid file?
 *
 *	byte     0          4711    4712    4713
 *	lock     master     agent   app     app
 *
 * The kernel releases a lock when its process ends, however it ends. So every process
 * found here is alive and belongs to the cluster. The number in a stale file may be that of
 * another program by now, and decides nothing (D30).
 *
 * egg: egg-scripts/lib/helper.js, which reads the list of all processes
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "scripts.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef PATH_MAX /* Hurd has no limit */
#define PATH_MAX 4096
#endif

/* The end of a lock makes no event that a process can wait for: look this often, in ms. */
#define LOOK_AGAIN 10

#define KILL_TIMEOUT 10000 /* how long the kernel may keep a killed process busy */
#define REAP_TIMEOUT 100   /* how long the parent of the dead master may take to reap it */
#define LEFT_MAX 8         /* as many names of processes fit into a line */
#define ASK_LAST 1000      /* how long the master may take to say which groups are left */

/* Not through a symbolic link, and without waiting for the other end of a FIFO. */
static int
open_plain(const char *path)
{
	return open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
}

/* ---- locks ------------------------------------------------------------------ */

/* Find a lock in these bytes (length 0: all that follow): 1, 0 (there is none), or -1.
 * Only write locks are looked for: to lock a byte for reading, a stranger need not be able
 * to write the file. */
static int
find_lock(int descriptor, off_t start, off_t length, struct flock *lock)
{
	memset(lock, 0, sizeof *lock);
	lock->l_type = F_RDLCK;
	lock->l_whence = SEEK_SET;
	lock->l_start = start;
	lock->l_len = length;
	if (fcntl(descriptor, F_GETLK, lock) == -1)
		return -1;
	return lock->l_type != F_UNLCK;
}

/* Look at the open file and its lock. Returns why it is of no use, or NULL. */
static const char *
look_at(struct cluster_found *cluster)
{
	struct stat status;
	struct flock lock;
	int found;

	if (fstat(cluster->descriptor, &status) == -1)
		return strerror(errno);
	if (!S_ISREG(status.st_mode))
		return "it is not a plain file";
	cluster->user = status.st_uid;
	found = find_lock(cluster->descriptor, 0, 1, &lock);
	if (found == -1)
		return strerror(errno);
	if (found == 1 && lock.l_pid <= 0) /* the kernel has no number for it here */
		return "its master runs where no signal from here reaches it: in another PID "
		       "namespace, or on another machine";
	cluster->master = found == 1 ? lock.l_pid : 0;
	return NULL;
}

/* Why open(2) has failed. It has several errors for a file that is not a plain one. */
static const char *
why_not_opened(const char *path)
{
	const char *why = strerror(errno);
	struct stat status;

	if (lstat(path, &status) == -1 || S_ISREG(status.st_mode))
		return why;
	return S_ISLNK(status.st_mode) ? "it is a symbolic link" : "it is not a plain file";
}

int
scripts_find(const struct command *command, struct cluster_found *cluster)
{
	const char *why;

	memset(cluster, 0, sizeof *cluster);
	cluster->pid_file = command->options.pid_file;
	cluster->descriptor = open_plain(cluster->pid_file);
	if (cluster->descriptor == -1 && (errno == ENOENT || errno == ENOTDIR))
		return 0;
	why = cluster->descriptor == -1 ? why_not_opened(cluster->pid_file) : look_at(cluster);
	if (why == NULL)
		return cluster->master != 0;
	scripts_complain(command, "pid file %s: %s", cluster->pid_file, why);
	return -1;
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
	struct flock lock;

	return find_lock(cluster->descriptor, 0, 0, &lock) == 0;
}

/* The master's lock ends a moment before the master does. If the parent of the master
 * does not reap it, no more can be seen from here. */
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

/* ---- the status ------------------------------------------------------------- */

/* Read the master's status. A folder that others may write to can hold a forged one: only
 * a plain file of the pid file's user, of root or of the caller is believed. */
static char *
read_status(const struct cluster_found *cluster, const char *path)
{
	int descriptor = open_plain(path);
	FILE *file = descriptor != -1 ? fdopen(descriptor, "r") : NULL;
	struct stat status;
	char *text = NULL;

	if (file == NULL) {
		if (descriptor != -1)
			close(descriptor);
		return NULL;
	}
	errno = EACCES;
	if (fstat(descriptor, &status) == 0 && S_ISREG(status.st_mode) &&
	    (status.st_uid == cluster->user || status.st_uid == 0 || status.st_uid == geteuid()))
		text = malloc(MESSAGE_DATA_MAX + 2); /* the status, a new line and a NUL */
	if (text != NULL)
		text[fread(text, 1, MESSAGE_DATA_MAX + 1, file)] = '\0';
	fclose(file);
	return text;
}

/* Does the same process still hold the master's lock? Otherwise its number may be a
 * stranger's by now. */
static bool
is_master(const struct cluster_found *cluster)
{
	struct flock lock;

	return cluster->master != 0 && find_lock(cluster->descriptor, 0, 1, &lock) == 1 &&
	       lock.l_pid == cluster->master;
}

/* Remove the last status, so that the next one there is a new one. EPERM becomes EACCES,
 * because EPERM says that kill(2) has failed. */
static int
remove_status(const char *path)
{
	if (unlink(path) == 0 || errno == ENOENT)
		return 0;
	if (errno == EPERM)
		errno = EACCES;
	return -1;
}

char *
scripts_ask(const struct cluster_found *cluster, int number, int64_t timeout)
{
	int64_t deadline = clutch_now() + timeout;
	char path[PATH_MAX + 16], *status;
	int error;

	snprintf(path, sizeof path, "%s.status", cluster->pid_file);
	if (!is_master(cluster)) {
		errno = ESRCH;
		return NULL;
	}
	if (kill(cluster->master, 0) == -1 || remove_status(path) == -1 ||
	    kill(cluster->master, number) == -1)
		return NULL;
	while ((status = read_status(cluster, path)) == NULL) {
		error = errno == ENOENT ? ETIMEDOUT : errno;
		if (!is_master(cluster)) {
			errno = ESRCH;
			return NULL;
		}
		errno = error;
		if (clutch_now() >= deadline)
			return NULL;
		poll(NULL, 0, LOOK_AGAIN);
	}
	return status;
}

/* ---- the processes that are left --------------------------------------------- */

/* Do the numbers in the status name the same processes here? Those of a container do not:
 * then the number in the pid file is not the one that the kernel gives for the master. And
 * root does not kill the processes that another user's status names. */
static bool
has_numbers_of_here(const struct cluster_found *cluster)
{
	char text[16] = "";

	return cluster->user == geteuid() &&
	       pread(cluster->descriptor, text, sizeof text - 1, 0) > 0 &&
	       atol(text) == (long)cluster->master;
}

struct left {
	const struct cluster_found *cluster;
	const char *status; /* NULL: its numbers do not name the processes here */
	char *text;
	size_t size, count;
};

static void CLUTCH_PRINTF(2, 3) add_left(struct left *left, const char *format, ...)
{
	size_t used = strlen(left->text);
	va_list arguments;

	if (++left->count > LEFT_MAX)
		return;
	if (left->count > 1)
		used += (size_t)snprintf(left->text + used, left->size - used, ", ");
	va_start(arguments, format);
	vsnprintf(left->text + used, left->size - used, format, arguments);
	va_end(arguments);
}

static void
add_process(struct left *left, pid_t pid)
{
	const char *row = left->status;
	char name[32] = "";

	while (row != NULL && (row = scripts_next_row(row)) != NULL)
		if (scripts_number(row, "pid") == pid)
			break;
	if (row != NULL)
		scripts_add_process(name, sizeof name, row);
	add_left(left, "%s%spid %ld%s", name, row != NULL ? " (" : "", (long)pid,
	         row != NULL ? ")" : "");
}

/* In order: fcntl(2) chooses which of several locks it reports. */
static void
add_between(struct left *left, off_t start, off_t end)
{
	struct flock lock;

	if (start >= end || find_lock(left->cluster->descriptor, start, end - start, &lock) != 1)
		return;
	add_between(left, start, lock.l_start);
	add_process(left, lock.l_pid);
	add_between(left, lock.l_start + 1, end);
}

/* The process group of a row's process; 0: it has none, or its number is no pid. */
static pid_t
group_of(const char *row)
{
	long long pid = scripts_number(row, "pid");

	return pid > 1 && pid <= INT_MAX ? (pid_t)pid : 0;
}

/* A process that is dead itself may have left others, for which the master waits. */
static void
add_groups(struct left *left)
{
	const char *row = left->status;
	char name[32];
	struct flock lock;
	pid_t pid;

	while (row != NULL && (row = scripts_next_row(row)) != NULL) {
		pid = group_of(row);
		if (pid == 0 || find_lock(left->cluster->descriptor, pid, 1, &lock) == 1 ||
		    kill(-pid, 0) == -1)
			continue;
		name[0] = '\0';
		scripts_add_process(name, sizeof name, row);
		add_left(left, "processes of %s (group %ld)", name, (long)pid);
	}
}

void
scripts_list_left(const struct cluster_found *cluster, const char *status, char *text, size_t size)
{
	struct left left = {cluster, status, text, size, 0};

	text[0] = '\0';
	if (!has_numbers_of_here(cluster))
		left.status = NULL;
	add_between(&left, 1, INT_MAX);
	add_groups(&left);
	if (left.count == 0 && cluster->master != 0)
		add_left(&left, "the master (pid %ld)", (long)cluster->master);
	if (left.count > LEFT_MAX)
		snprintf(text + strlen(text), size - strlen(text), " and %zu more",
		         left.count - LEFT_MAX);
}

/* ---- SIGKILL ---------------------------------------------------------------- */

/* Kill every process with a lock from start on, before `end`. fcntl(2) chooses which of
 * several locks it reports: there may be more on both sides of that one. */
static void
kill_between(const struct cluster_found *cluster, off_t start, off_t end)
{
	struct flock lock;

	if (start >= end || find_lock(cluster->descriptor, start, end - start, &lock) != 1)
		return;
	if (lock.l_pid > 1 && lock.l_pid != cluster->master)
		kill(-lock.l_pid, SIGKILL); /* each child leads a process group */
	if (lock.l_pid > 0)
		kill(lock.l_pid, SIGKILL);
	kill_between(cluster, start, lock.l_start);
	kill_between(cluster, lock.l_start + 1, end);
}

/* SIGKILL to the groups in the status's rows. A dead child holds no lock any more, but its
 * own children may be alive, and the master waits for them. The master does the same at
 * its deadline. */
static void
kill_groups(const char *row)
{
	while ((row = scripts_next_row(row)) != NULL)
		if (group_of(row) != 0 && !scripts_is(row, "role", "parent"))
			kill(-group_of(row), SIGKILL);
}

/* The status is a new one: the numbers in an older one may be other processes' by now. A
 * master that hangs does not answer; then only the locks are left. */
int
scripts_kill(const struct cluster_found *cluster)
{
	char *status =
		has_numbers_of_here(cluster) ? scripts_ask(cluster, SIGUSR1, ASK_LAST) : NULL;
	int64_t deadline = clutch_now() + KILL_TIMEOUT;

	if (status != NULL)
		kill_groups(status);
	free(status);
	do {
		kill_between(cluster, 0, INT_MAX);
		if (scripts_wait_gone(cluster, 5 * LOOK_AGAIN))
			return 0;
	} while (clutch_now() < deadline);
	return -1;
}

int64_t
scripts_patience(const struct command *command, const char *status)
{
	int64_t patience = 0;

	if (status != NULL)
		patience =
			scripts_number(status, "app_close") + scripts_number(status, "agent_close");
	if (command->timeout > 0)
		return (int64_t)command->timeout * 1000;
	return patience > 0 ? patience + 2000 : 30000; /* D31 */
}
