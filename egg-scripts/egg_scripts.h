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

#ifdef __cplusplus
extern "C" {
#endif

/* What --version says. */
#ifndef CLUTCH_VERSION
#define CLUTCH_VERSION "1.0.0"
#endif

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
 * these and SIGCHLD from then on, and ignores SIGPIPE.
 *
 * A daemon closes the descriptors from 3 on that are not close-on-exec: they are
 * whoever's who has started it. What the program opens before, for itself, it marks
 * with FD_CLOEXEC. Two clusters of one program need two pid files.
 *
 * docs/egg-scripts.md has the options, the files, and what they are by default.
 */
int egg_scripts(int argc, char *const argv[], const struct options *options);

/* A program with options of its own takes them out of argv first (examples/refresh.c). */
enum { EXIT_NOT_RUNNING = 3, EXIT_USAGE = 64 };

#ifdef __cplusplus
}
#endif

#endif
