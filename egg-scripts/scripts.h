/*
 * What the files of egg-scripts share: the command line, understood, and a cluster
 * as it is seen from outside.
 */
#ifndef SCRIPTS_H
#define SCRIPTS_H

#include "egg_scripts.h"

/* egg_scripts.c: the command line, understood. */
struct command {
	struct options options; /* for the master */
	int timeout;            /* seconds; 0: not given */
	bool daemon;
	const char *standard_output, *standard_error; /* the daemon's files, or NULL */
};

/* One line on stdout, or on stderr; it begins with the program's name. */
void scripts_say(const struct command *command, const char *format, ...) CLUTCH_PRINTF(2, 3);
void scripts_complain(const struct command *command, const char *format, ...) CLUTCH_PRINTF(2, 3);

/* $HOME/FOLDER/NAMEend, a default: free it. NAME is the pid file's without its .pid
 * where there is one, so that two clusters of one program do not share logs, and the
 * program's otherwise. NULL: it complained. */
char *scripts_home_file(const struct command *command, const char *folder, const char *end);

/*
 * helper.c: a cluster as it is seen from outside.
 *
 * find opens the pid file. Returns 1 if a master holds its lock; 0 if nobody
 * does, or there is no such file; -1: it complained. In any case: close it.
 * is_gone: nobody of the cluster is left, neither master nor child.
 */
struct cluster_found {
	const char *pid_file;
	int descriptor; /* -1: there is no such file */
	pid_t master;
};

int scripts_find(const struct command *command, struct cluster_found *cluster);
void scripts_close(struct cluster_found *cluster);
bool scripts_is_gone(const struct cluster_found *cluster);

/* Wait until nobody is left, `timeout` milliseconds at most; true: nobody is. */
bool scripts_wait_gone(const struct cluster_found *cluster, int64_t timeout);

/* SIGKILL to master, children and grandchildren, until nobody is left. -1: somebody
 * is, whom no signal reaches. */
int scripts_kill(const struct cluster_found *cluster);

/*
 * The master's table, fresh: `number` (SIGUSR1 or SIGUSR2) is the order that makes
 * the master write it. NULL if it does not within `timeout` milliseconds, or ends
 * (errno ETIMEDOUT, ESRCH), or cannot be told (kill(2)'s). The caller frees it.
 */
char *scripts_ask(const struct cluster_found *cluster, int number, int64_t timeout);

/* The milliseconds that the master itself may take to stop. */
int64_t scripts_patience(const struct command *command, const char *table);

/* The commands. Each returns what egg_scripts shall return. */
int scripts_start(const struct command *command);
int scripts_stop(const struct command *command);
int scripts_status(const struct command *command);
int scripts_reload(const struct command *command);

#endif
