/*
 * What the files of egg-scripts share: the parsed command line, and a cluster as another
 * process sees it.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#ifndef SCRIPTS_H
#define SCRIPTS_H

#include "egg_scripts.h"

/* egg_scripts.c: the parsed command line. */
struct command {
	struct options options; /* for the master */
	int timeout;            /* seconds; 0: not given */
	bool daemon, json;
	const char *standard_output, *standard_error; /* the daemon's files, or NULL */
};

/* Print one line on stdout (say) or on stderr (complain). The line begins with the
 * program's name. */
void scripts_say(const struct command *command, const char *format, ...) CLUTCH_PRINTF(2, 3);
void scripts_complain(const struct command *command, const char *format, ...) CLUTCH_PRINTF(2, 3);

/* A default path, $HOME/FOLDER/NAMEend; the caller frees it. NAME is the pid file's name
 * without .pid, so that two clusters of one program do not share their logs; without a
 * pid file it is the program's name. NULL: it complained. */
char *scripts_home_file(const struct command *command, const char *folder, const char *end);

/*
 * helper.c: a cluster as another process sees it.
 *
 * find opens the pid file. Returns 1 if a master holds its lock; 0 if no master does, or
 * if there is no such file; -1: it complained, because the file is no pid file, or
 * because the master runs where no signal from here reaches it. In every case the caller
 * calls close. is_gone: neither the master nor a child is left.
 */
struct cluster_found {
	const char *pid_file;
	int descriptor; /* -1: there is no such file */
	uid_t user;     /* the owner of the file */
	pid_t master;   /* 0: none */
};

int scripts_find(const struct command *command, struct cluster_found *cluster);
void scripts_close(struct cluster_found *cluster);
bool scripts_is_gone(const struct cluster_found *cluster);

/* Wait until no process of the cluster is left, for at most `timeout` milliseconds. */
bool scripts_wait_gone(const struct cluster_found *cluster, int64_t timeout);

/* Send SIGKILL to master, children and grandchildren until none is left. -1: one is
 * left, and no signal reaches it. */
int scripts_kill(const struct cluster_found *cluster);

/* Store the names of the processes that are left: "app 0 (pid 4711)", or the master if no other
 * one is. `status` is what the master has said before its end, or NULL. */
void scripts_list_left(const struct cluster_found *cluster, const char *status, char *text,
                       size_t size);

/*
 * Get a new status from the master: `number` (SIGUSR1 or SIGUSR2) is the order after which
 * the master writes its status. The caller frees it. NULL with errno: ETIMEDOUT (not
 * within `timeout` milliseconds), ESRCH (the master has ended), EPERM (the master is
 * another user's), or why the file with the status cannot be removed or read.
 */
char *scripts_ask(const struct cluster_found *cluster, int number, int64_t timeout);

/* How many milliseconds the master itself may take to stop. */
int64_t scripts_patience(const struct command *command, const char *status);

/*
 * table.c: the status. number and is look at one line of it: the number of that name (0 if
 * there is none), and whether the text of that name is this one. next_row returns the next
 * line that is a process or an empty slot, or NULL. list_unready: "agent (pid 4710), app 1"
 * for those that are not ready. Another user may have written the status: where a text of it
 * is printed, a question mark takes the place of each control character, which a terminal
 * would obey.
 */
long long scripts_number(const char *line, const char *name);
bool scripts_is(const char *line, const char *name, const char *text);
const char *scripts_next_row(const char *at);
void scripts_list_unready(const char *status, char *text, size_t size);
void scripts_print_table(const char *status);
void scripts_print_json(const char *status);

/* Append the name of a row's process: "agent", "app 2". */
void scripts_add_process(char *text, size_t size, const char *row);

/*
 * logs.c: the files of a daemon.
 *
 * make_folders makes the folders above a file where they are missing. open_logs opens
 * the daemon's stdout and stderr and stores their paths, which the caller frees in every
 * case. Both return -1 if they complained. note_failure prints the end of the daemon's
 * stderr and says that the start has failed, also in that file.
 */
int scripts_make_folders(const struct command *command, const char *path);
int scripts_open_logs(const struct command *command, char *paths[2], int files[2]);
void scripts_note_failure(const struct command *command, const char *path, int file);

/* notify.c: systemd's sd_notify and sd_listen_fds. take_notify_socket removes NOTIFY_SOCKET
 * from the environment, so that no other process speaks for this one, and returns its value.
 * The caller frees it; NULL: it was not set, or there is no memory. take_listener does the
 * same for LISTEN_FDS, and returns the socket that systemd has bound (socket activation), or
 * 0. */
char *scripts_take_notify_socket(void);
int scripts_take_listener(const struct command *command);
void scripts_notify(const struct command *command, const char *path, const char *state);

/* The commands. Each returns what egg_scripts returns. */
int scripts_start(const struct command *command);
int scripts_stop(const struct command *command);
int scripts_status(const struct command *command);
int scripts_reload(const struct command *command);

#endif
