/*
 * Facts about processes, from /proc.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "soak.h"

#include <ctype.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The state of a process ('Z' is a zombie) and its parent; 0: there is no such process. */
char
process_state(pid_t pid, pid_t *parent)
{
	char path[64], line[512], state = 0;
	long ppid = 0;
	const char *end;
	FILE *file;

	snprintf(path, sizeof path, "/proc/%ld/stat", (long)pid);
	file = fopen(path, "r");
	if (file == NULL)
		return 0;
	if (fgets(line, sizeof line, file) == NULL || (end = strrchr(line, ')')) == NULL ||
	    sscanf(end, ") %c %ld", &state, &ppid) != 2)
		state = 0;
	fclose(file);
	if (parent != NULL)
		*parent = (pid_t)ppid;
	return state;
}

/* RssAnon is what a process has in memory now, without the pages of files; VmHWM is the
 * most that it ever had, with them; in KiB. */
long
process_memory(pid_t pid, const char *field)
{
	char path[64], line[256];
	size_t length = strlen(field);
	long kib = -1;
	FILE *file;

	snprintf(path, sizeof path, "/proc/%ld/status", (long)pid);
	file = fopen(path, "r");
	if (file == NULL)
		return -1;
	while (kib == -1 && fgets(line, sizeof line, file) != NULL)
		if (strncmp(line, field, length) == 0 && line[length] == ':')
			kib = strtol(line + length + 1, NULL, 10);
	fclose(file);
	return kib;
}

/* Does a process wait in a write to a pipe? */
bool
process_writes_pipe(pid_t pid)
{
	char path[64], name[64] = "";
	FILE *file;

	snprintf(path, sizeof path, "/proc/%ld/wchan", (long)pid);
	file = fopen(path, "r");
	if (file == NULL)
		return false;
	if (fgets(name, sizeof name, file) == NULL)
		name[0] = '\0';
	fclose(file);
	return strstr(name, "pipe_write") != NULL;
}

long
process_descriptors(pid_t pid)
{
	char path[64];
	long count = 0;
	DIR *folder;

	snprintf(path, sizeof path, "/proc/%ld/fd", (long)pid);
	folder = opendir(path);
	if (folder == NULL)
		return -1;
	while (readdir(folder) != NULL)
		count++;
	closedir(folder);
	return count - 2; /* . and .. */
}

/* Count the children of a process, and send each of them a signal if it is not 0. */
int
process_children(pid_t parent, int *zombies, int signal)
{
	DIR *folder = opendir("/proc");
	struct dirent *entry;
	int children = 0;
	pid_t pid, ppid;
	char state;

	*zombies = 0;
	while (folder != NULL && (entry = readdir(folder)) != NULL) {
		if (!isdigit((unsigned char)entry->d_name[0]))
			continue;
		pid = (pid_t)strtol(entry->d_name, NULL, 10);
		state = process_state(pid, &ppid);
		if (state == 0 || ppid != parent)
			continue;
		children++;
		*zombies += state == 'Z';
		if (signal != 0)
			kill(pid, signal);
	}
	if (folder != NULL)
		closedir(folder);
	return children;
}

/* In a process that was just forked: close all but 0 to 2 and these two. */
void
close_descriptors(int but, int and_but)
{
	int descriptor;

	for (descriptor = 3; descriptor < 1024; descriptor++)
		if (descriptor != but && descriptor != and_but)
			close(descriptor);
}
