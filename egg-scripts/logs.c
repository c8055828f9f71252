/*
 * The files of a daemon: its stdout and its stderr.
 *
 *	hello-stdout.log                    this run's
 *	hello-stdout.log.20260131.235959    an older run's, named by when the next one began
 *
 * They are opened with O_APPEND: a tool that copies and empties them (logrotate's
 * copytruncate) needs no signal, and leaves no hole.
 *
 * egg: egg-scripts/lib/cmd/start.js
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "scripts.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#ifndef NAME_MAX
#define NAME_MAX 255
#endif

#define TAIL 4096 /* bytes of the daemon's stderr that are shown */

/* ---- folders ---------------------------------------------------------------- */

static bool
is_folder(const char *path)
{
	struct stat status;

	return stat(path, &status) == 0 && S_ISDIR(status.st_mode);
}

int
scripts_make_folders(const struct command *command, const char *path)
{
	char *copy = strdup(path), *slash = copy;
	int result = copy != NULL ? 0 : -1, error;

	while (result == 0 && (slash = strchr(slash + 1, '/')) != NULL) {
		*slash = '\0';
		result = mkdir(copy, 0777);
		error = errno;
		if (result == -1 && is_folder(copy))
			result = 0;
		else if (result == -1)
			scripts_complain(command, "cannot make the folder %s: %s", copy,
			                 strerror(error == EEXIST ? ENOTDIR : error));
		*slash = '/';
	}
	if (copy == NULL)
		scripts_complain(command, "no memory left");
	free(copy);
	return result;
}

/* ---- old logs --------------------------------------------------------------- */

/* "20260131.235959", or "20260131.235959.1" where two runs began within a second. Stores
 * that last number. */
static bool
is_stamp(const char *text, long *number)
{
	char *end;
	int i;

	for (i = 0; i < 15; i++)
		if (i == 8 ? text[i] != '.' : !isdigit((unsigned char)text[i]))
			return false;
	*number = 0;
	if (text[15] == '\0')
		return true;
	if (text[15] != '.' || !isdigit((unsigned char)text[16]))
		return false;
	*number = strtol(text + 16, &end, 10);
	return *end == '\0';
}

static bool
is_older(const char *stamp, const char *other)
{
	long number, other_number;
	int order = strncmp(stamp, other, 15);

	return is_stamp(stamp, &number) && is_stamp(other, &other_number) &&
	       (order < 0 || (order == 0 && number < other_number));
}

/* Count the old logs of NAME in an open folder, and find the oldest one. */
static int
count_old(DIR *folder, const char *name, char oldest[NAME_MAX + 1])
{
	const size_t length = strlen(name);
	const struct dirent *entry;
	const char *stamp;
	long number;
	int count = 0;

	rewinddir(folder);
	while ((entry = readdir(folder)) != NULL) {
		if (strncmp(entry->d_name, name, length) != 0 || entry->d_name[length] != '.')
			continue;
		stamp = entry->d_name + length + 1;
		if (!is_stamp(stamp, &number))
			continue;
		if (count++ == 0 || is_older(stamp, oldest + length + 1))
			snprintf(oldest, NAME_MAX + 1, "%s", entry->d_name);
	}
	return count;
}

/* D45: keep the newest ones. */
static void
remove_old(const char *path)
{
	const char *slash = strrchr(path, '/'), *name = slash != NULL ? slash + 1 : path;
	char oldest[NAME_MAX + 1], *above = strdup(slash != NULL ? path : ".");
	DIR *folder = NULL;

	if (above != NULL && slash != NULL)
		above[slash - path + 1] = '\0';
	if (above != NULL)
		folder = opendir(above);
	while (folder != NULL && count_old(folder, name, oldest) > EGG_SCRIPTS_OLD_LOGS)
		if (unlinkat(dirfd(folder), oldest, 0) == -1)
			break;
	if (folder != NULL)
		closedir(folder);
	free(above);
}

/* egg: getRotatelog. The last run's file becomes FILE.20260131.235959; if there is one
 * from the same second, FILE.20260131.235959.1. */
static int
rotate(const char *path)
{
	time_t now = time(NULL);
	size_t size = strlen(path) + 40;
	char *to = malloc(size), stamp[32];
	struct stat there;
	int result, i = 0;

	if (to == NULL)
		return -1;
	strftime(stamp, sizeof stamp, "%Y%m%d.%H%M%S", localtime(&now));
	snprintf(to, size, "%s.%s", path, stamp);
	while (lstat(to, &there) == 0 && ++i < 1000)
		snprintf(to, size, "%s.%s.%d", path, stamp, i);
	result = rename(path, to);
	free(to);
	if (result == 0)
		remove_old(path);
	return result;
}

/* ---- opening ---------------------------------------------------------------- */

/* The file is the user's alone (0600): an application may log secrets. D45: only a plain
 * file is renamed. A link, a pipe or a device is opened as it is. */
static int
open_log(const struct command *command, const char *path)
{
	int descriptor, flags = O_RDWR | O_APPEND | O_CREAT | O_NOCTTY | O_CLOEXEC;
	struct stat there;

	if (scripts_make_folders(command, path) == -1)
		return -1;
	if (lstat(path, &there) == -1 || (S_ISREG(there.st_mode) && rotate(path) == 0))
		flags |= O_EXCL;
	descriptor = open(path, flags, 0600);
	if (descriptor == -1)
		scripts_complain(command, "cannot open %s: %s", path, strerror(errno));
	return descriptor;
}

static bool
is_same_file(int descriptor, const char *path)
{
	struct stat open, named;

	return fstat(descriptor, &open) == 0 && stat(path, &named) == 0 &&
	       open.st_ino == named.st_ino && open.st_dev == named.st_dev;
}

/* One file may be both, under one name or two. */
int
scripts_open_logs(const struct command *command, char *paths[2], int files[2])
{
	static const char *const ends[] = {"-stdout.log", "-stderr.log"};
	const char *given[2] = {command->standard_output, command->standard_error};
	int i;

	for (i = 0; i < 2; i++) {
		paths[i] = given[i] != NULL ? strdup(given[i])
		                            : scripts_home_file(command, "logs", ends[i]);
		if (paths[i] == NULL)
			return -1;
		if (i == 1 && is_same_file(files[0], paths[1]))
			files[1] = fcntl(files[0], F_DUPFD_CLOEXEC, 3);
		else
			files[i] = open_log(command, paths[i]);
		if (files[i] == -1)
			return -1;
	}
	return 0;
}

/* ---- a failed start --------------------------------------------------------- */

/* Print the end of the file, from the beginning of a line on. */
static void
print_tail(int file, const struct stat *status)
{
	static char text[TAIL + 1];
	off_t at = status->st_size > TAIL ? status->st_size - TAIL : 0;
	ssize_t count = pread(file, text, TAIL, at);
	const char *line = text;

	text[count > 0 ? count : 0] = '\0';
	if (at > 0 && (line = strchr(text, '\n')) == NULL)
		line = text;
	fputs(line + (*line == '\n'), stderr);
}

/* Where the log cannot be written, the reason is not in it: the disk may be full. (A write
 * to a pipe might wait: nothing is written to one.) */
void
scripts_note_failure(const struct command *command, const char *path, int file)
{
	struct stat status = {0};
	char line[300];
	int length = snprintf(line, sizeof line, "%.200s: start failed\n", command->options.name);

	if (fstat(file, &status) == 0 && S_ISREG(status.st_mode))
		print_tail(file, &status);
	if ((S_ISREG(status.st_mode) || S_ISCHR(status.st_mode)) && !isatty(file) &&
	    write(file, line, (size_t)length) != length)
		scripts_complain(command, "start failed, and %s cannot be written: %s", path,
		                 strerror(errno));
	else
		scripts_complain(command, "start failed, see %s", path);
}
