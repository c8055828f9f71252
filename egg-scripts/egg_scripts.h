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
 * The kernel says which processes run: fcntl(2) tells which process holds a lock. The
 * number in the pid file is for people. A process that opens and closes the pid file loses
 * its lock, as POSIX has it: an application leaves that file alone.
 *
 * egg: npm egg-scripts
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#ifndef EGG_SCRIPTS_H
#define EGG_SCRIPTS_H

#include "../messenger.h"

#ifdef __cplusplus
extern "C" {
#endif

/* How many logs of older runs a daemon keeps, of its stdout and of its stderr. */
#ifndef EGG_SCRIPTS_OLD_LOGS
#define EGG_SCRIPTS_OLD_LOGS 10
#endif

/*
 * Do what the command line says, and return the exit status for main: call it in place of
 * start_cluster. The options are the program's own defaults; the command line overrides
 * them. argv must stay as it is; the options need not. Every line that it prints begins
 * with options->name, or else with argv[0]'s last part. --version prints that name,
 * options->version, and the version of clutch.
 *
 *	start      run the cluster: in the foreground, or with --daemon in the
 *	           background. Without a command it runs in the foreground without a
 *	           pid file (unless one is given), so that any number can run
 *	stop       end it, and wait until no process is left
 *	status     print what the master knows
 *	reload     replace the app workers one after the other
 *
 * Returns
 *	0          it is done; stop: or there was nothing to stop
 *	1          it failed: one line on stderr says why
 *	3          status, reload: it is not running (as in LSB's init scripts)
 *	64         the command line is wrong (EX_USAGE): one line says what
 *	128 + n    start in the foreground: signal n has killed the master
 *
 * In the foreground the caller is the master's parent, and returns the master's exit
 * status. It hands SIGTERM, SIGINT, SIGQUIT, SIGUSR1 and SIGUSR2 on to the master, but not
 * a SIGINT or SIGQUIT that its own starter has set to be ignored. With --daemon the first
 * three end a start that is not done. From then on egg_scripts owns these signals and
 * SIGCHLD, and ignores SIGPIPE. The master of a daemon reloads on SIGHUP, too.
 *
 * Where NOTIFY_SOCKET is set, start in the foreground tells systemd READY=1 and
 * STOPPING=1. Where LISTEN_FDS is set for this process, start takes the first socket that
 * systemd has bound, instead of host and port. The variables are removed: no process of
 * the cluster inherits them.
 *
 * Descriptors 0, 1 and 2 are opened (/dev/null) where they are closed. A daemon closes
 * the descriptors from 3 on that are not close-on-exec: they belong to the process that
 * has started it. The program marks with FD_CLOEXEC the ones that it has opened itself.
 * Two clusters of one program need two pid files.
 *
 * docs/egg-scripts.md has the options, the files, and their defaults.
 */
int egg_scripts(int argc, char *const argv[], const struct options *options);

/* A program with options of its own removes them from argv first (examples/refresh.c). */
enum { EXIT_NOT_RUNNING = 3, EXIT_USAGE = 64 };

#ifdef __cplusplus
}
#endif

#endif
