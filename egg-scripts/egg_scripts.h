/*
 * A program's command line: start, stop, status and reload of its cluster.
 *
 *	int
 *	main(int argc, char *argv[])
 *	{
 *		return egg_scripts(argc, argv, &(struct options){.agent = agent, .app = app});
 *	}
 *
 *	terminal -- launcher            starts the master, waits until all are ready
 *	               |                (or until it ends), and is its parent
 *	            master              holds the lock of the pid file
 *	           /   |   \
 *	       agent  app  app          each holds the byte of its own number
 *
 * Who runs is asked of the kernel: fcntl(2) tells whose lock it is. What stands
 * in the pid file is for people.
 *
 * egg: npm egg-scripts
 */
#ifndef EGG_SCRIPTS_H
#define EGG_SCRIPTS_H

#include "../messenger.h"

/* What --version says. */
#ifndef CLUTCH_VERSION
#define CLUTCH_VERSION "1.0.0"
#endif

/* ------------------------------------------------------------------------ */
/* Part one: the application                                                 */
/* ------------------------------------------------------------------------ */

/*
 * Do what the command line says, and return what main shall return: call it in
 * place of start_cluster. The options are the program's own defaults; the command
 * line has the last word. What is needed is copied: argv must stay, the options
 * need not. The name in all it prints is options->name, or else argv[0]'s.
 *
 *	start      run the cluster: in the foreground, or with --daemon in the
 *	           background; without a command, in the foreground without a pid
 *	           file (unless one is given), so that any number can run
 *	stop       end it, and wait until nobody is left
 *	status     print what the master knows
 *	reload     replace the app workers one after the other
 *
 * Returns
 *	0          it is done; stop: or there was nothing to stop
 *	1          it failed: one line on stderr says why
 *	3          status, reload: it is not running (as LSB's init scripts say it)
 *	64         the command line is wrong (EX_USAGE): one line says what
 *	128 + n    start in the foreground: signal n has killed the master
 *
 * In the foreground the caller is the master's parent, and returns the master's
 * exit status. It hands SIGTERM, SIGINT, SIGQUIT, SIGUSR1 and SIGUSR2 on to the
 * master; with --daemon the first three end a start that is not done. It owns
 * these and SIGCHLD from then on.
 *
 * docs/egg-scripts.md has the options, the files, and what they are by default.
 */
int egg_scripts(int argc, char *const argv[], const struct options *options);

/* A program with options of its own takes them out of argv first (examples/refresh.c). */
enum { EXIT_NOT_RUNNING = 3, EXIT_USAGE = 64 };

/* ------------------------------------------------------------------------ */
/* Part two: what the files of egg-scripts share                             */
/* ------------------------------------------------------------------------ */

/* egg_scripts.c: the command line, understood. */
struct command {
	struct options options; /* for the master */
	int timeout;            /* seconds; 0: not given */
	bool daemon;
	const char *standard_output, *standard_error; /* the daemon's files, or NULL */
};

/* One line on stdout, or on stderr; it begins with the program's name. */
void say(const struct command *command, const char *format, ...) PRINTF_LIKE(2, 3);
void complain(const struct command *command, const char *format, ...) PRINTF_LIKE(2, 3);

/* $HOME/FOLDER/NAMEend, a default: free it. NULL: it complained. */
char *home_file(const struct command *command, const char *folder, const char *end);

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

int cluster_find(const struct command *command, struct cluster_found *cluster);
void cluster_close(struct cluster_found *cluster);
bool cluster_is_gone(const struct cluster_found *cluster);

/* Wait until nobody is left, `timeout` milliseconds at most; true: nobody is. */
bool cluster_wait_gone(const struct cluster_found *cluster, int64_t timeout);

/* SIGKILL to master, children and grandchildren, until nobody is left. -1: somebody
 * is, whom no signal reaches. */
int cluster_kill(const struct cluster_found *cluster);

/*
 * The master's table, fresh: `number` (SIGUSR1 or SIGUSR2) is the order that makes
 * the master write it. NULL if it does not within `timeout` milliseconds, or ends
 * (errno ETIMEDOUT, ESRCH), or cannot be told (kill(2)'s). The caller frees it.
 */
char *cluster_ask(const struct cluster_found *cluster, int number, int64_t timeout);

/* The milliseconds that the master itself may take to stop. */
int64_t cluster_patience(const struct command *command, const char *table);

/* The commands. Each returns what egg_scripts shall return. */
int start_command(const struct command *command);
int stop_command(const struct command *command);
int status_command(const struct command *command);
int reload_command(const struct command *command);

#endif
