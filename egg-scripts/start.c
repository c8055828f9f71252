/*
 * The launcher: it forks the master, is its parent, and waits: in the foreground for the
 * master's end, with --daemon for egg-ready or the master's end, whichever comes first.
 *
 * egg: egg-scripts/lib/cmd/start.js
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#if defined _POSIX_C_SOURCE && !defined _XOPEN_SOURCE
#define _XOPEN_SOURCE 700 /* for SA_RESTART, which FreeBSD hides otherwise */
#endif
#include "scripts.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define START_TIMEOUT 300 /* seconds, of a daemon; start.js:59 */
#define START_REPORT 1000 /* how often it says for which processes it waits, in ms */
#define DESCRIPTORS 65536 /* a daemon closes those below this, if the limit is higher */

/* The launcher hands these on to the master, except SIGCHLD, which tells it of the master's
 * end. */
static const int caught[] = {SIGTERM, SIGINT, SIGQUIT, SIGUSR1, SIGUSR2, SIGCHLD};
enum { CAUGHT = sizeof caught / sizeof caught[0] };

struct launcher {
	const struct command *command;
	struct messenger *parent;
	char *notify_socket; /* systemd's, in the foreground; or NULL */
	int listener;        /* the socket that systemd has bound, or 0 */
	char *paths[2];      /* the daemon's stdout and stderr */
	int files[2];        /* the same, open; or -1 */
	char *lock_path;     /* the lock of a daemon's start, and its file */
	int lock;            /* -1: there is none */
	pid_t master;
	int status;   /* of the master, once it has ended */
	bool ended;   /* the master has ended */
	bool ready;   /* all workers are ready */
	bool late;    /* they were not ready within the timeout */
	bool closing; /* systemd has been told of the end */
	int order;    /* a signal that ends the start of a daemon */
};

static int signal_pipe[2]; /* the numbers of the signals that came */

/* ---- events ------------------------------------------------------------------- */

static void
on_signal(int number)
{
	unsigned char byte = (unsigned char)number;
	int saved = errno;

	while (write(signal_pipe[1], &byte, 1) == -1 && errno == EINTR)
		;
	errno = saved;
}

static void
notify_closing(struct launcher *launcher)
{
	if (!launcher->closing)
		scripts_notify(launcher->command, launcher->notify_socket, "STOPPING=1");
	launcher->closing = true;
}

static void
hand_on(struct launcher *launcher, int number)
{
	if (launcher->ended)
		return;
	if (number != SIGUSR1 && number != SIGUSR2)
		notify_closing(launcher);
	kill(launcher->master, number);
}

/* The master may have ended; and process 1 of a container inherits every orphan there. */
static void
reap(struct launcher *launcher)
{
	pid_t child = getpid() == 1 ? -1 : launcher->master, pid;
	int status;

	while ((pid = waitpid(child, &status, WNOHANG)) > 0)
		if (pid == launcher->master) {
			launcher->ended = true;
			launcher->status = status;
		}
}

static void
take_signal(struct launcher *launcher, int number)
{
	if (number == SIGCHLD)
		reap(launcher);
	else if (launcher->command->daemon && number != SIGUSR1 && number != SIGUSR2)
		launcher->order = number;
	else
		hand_on(launcher, number);
}

static int
on_signals(struct messenger *parent, int descriptor, short revents, void *arg)
{
	unsigned char numbers[64];
	ssize_t i, count = read(descriptor, numbers, sizeof numbers);

	(void)parent, (void)revents;
	for (i = 0; i < count; i++)
		take_signal(arg, numbers[i]);
	return 0;
}

/* The data: {"workers":2,"port":7001,"address":"http://127.0.0.1:7001","protocol":"http"} */
static int
on_ready(struct messenger *parent, const struct message *message, void *arg)
{
	struct launcher *launcher = arg;
	const char *at = strstr(message->data, "\"address\":\"");

	(void)parent;
	launcher->ready = true;
	if (!launcher->command->daemon) { /* the master has printed it */
		scripts_notify(launcher->command, launcher->notify_socket, "READY=1");
		return 0;
	}
	at = at != NULL ? at + strlen("\"address\":\"") : "";
	scripts_say(launcher->command, "started%s%.*s, pid %ld; logs: %s, %s",
	            *at != '\0' ? " on " : "", (int)strcspn(at, "\""), at, (long)launcher->master,
	            launcher->paths[0], launcher->paths[1]);
	return 0;
}

/* The master has said what it knows (clutch-status). */
static int
on_status(struct messenger *parent, const struct message *message, void *arg)
{
	const struct launcher *launcher = arg;
	char text[512];

	(void)parent;
	if (launcher->ready || launcher->closing || message->data == NULL)
		return 0;
	scripts_list_unready(message->data, text, sizeof text);
	if (text[0] != '\0')
		scripts_say(launcher->command, "waits for %s%s%s%s%s", text,
		            launcher->command->daemon ? "; logs: " : "",
		            launcher->command->daemon ? launcher->paths[0] : "",
		            launcher->command->daemon ? ", " : "",
		            launcher->command->daemon ? launcher->paths[1] : "");
	return 0;
}

/* Until all workers are ready, ask for which ones the master waits. */
static int
ask_status(struct messenger *parent, void *arg)
{
	const struct launcher *launcher = arg;

	if (launcher->ready || launcher->closing)
		return 0;
	messenger_send(parent, "clutch-status", NULL, ROLE_MASTER); /* or the next time */
	return messenger_set_timeout(parent, START_REPORT, ask_status, arg) == -1 ? -1 : 0;
}

static void
complain_late(const struct command *command)
{
	scripts_complain(command, "not ready within %d s, stopping it",
	                 command->timeout > 0 ? command->timeout : START_TIMEOUT);
}

/* D47: in the foreground, too. If SIGTERM does not end the master there, the user at the
 * terminal or a supervisor can kill it. */
static int
on_timeout(struct messenger *parent, void *arg)
{
	struct launcher *launcher = arg;

	(void)parent;
	if (launcher->ready || launcher->ended)
		return 0;
	launcher->late = true;
	if (!launcher->command->daemon) {
		complain_late(launcher->command);
		hand_on(launcher, SIGTERM);
	}
	return 0;
}

/* ---- one start of a daemon at a time ------------------------------------------ */

/* Is it an empty plain file of ours, and still the one of that name? */
static bool
is_own_lock(int descriptor, const char *path)
{
	struct stat own, named;

	return fstat(descriptor, &own) == 0 && lstat(path, &named) == 0 && S_ISREG(own.st_mode) &&
	       own.st_uid == geteuid() && own.st_size == 0 && own.st_ino == named.st_ino &&
	       own.st_dev == named.st_dev;
}

/* Open and lock a file. As with D16, another launcher may unlink it in between. -1: errno,
 * EAGAIN if it is locked, EEXIST if it is a file of another kind or has a content. */
static int
open_locked(const char *path)
{
	struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 1};
	int tries, descriptor, error = EEXIST;

	for (tries = 0; tries < 100 && error == EEXIST; tries++) {
		descriptor = open(path,
		                  O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC,
		                  0600);
		if (descriptor == -1) {
			if (errno == ELOOP || errno == ENXIO || errno == EISDIR)
				errno = EEXIST;
			return -1;
		}
		if (fcntl(descriptor, F_SETLK, &lock) == -1)
			error = errno == EACCES ? EAGAIN : errno; /* POSIX allows both */
		else if (is_own_lock(descriptor, path))
			return descriptor;
		close(descriptor);
	}
	errno = error;
	return -1;
}

/* A second start would find no master yet, and rename the first one's logs. Until a start
 * is over, the launcher has PID_FILE.start locked. */
static int
lock_start(struct launcher *launcher)
{
	const struct command *command = launcher->command;
	size_t size = strlen(command->options.pid_file) + sizeof ".start";

	launcher->lock_path = malloc(size);
	if (launcher->lock_path != NULL) {
		snprintf(launcher->lock_path, size, "%s.start", command->options.pid_file);
		if (scripts_make_folders(command, launcher->lock_path) == -1)
			return -1;
		launcher->lock = open_locked(launcher->lock_path);
	}
	if (launcher->lock != -1)
		return 0;
	if (errno == EAGAIN)
		scripts_complain(command, "is being started already (pid file %s)",
		                 command->options.pid_file);
	else
		scripts_complain(command, "cannot lock the start (%s.start): %s",
		                 command->options.pid_file,
		                 errno == EEXIST ? "another file is in the way" : strerror(errno));
	return -1;
}

static void
unlock_start(struct launcher *launcher)
{
	if (launcher->lock != -1) {
		if (is_own_lock(launcher->lock, launcher->lock_path))
			unlink(launcher->lock_path);
		close(launcher->lock);
	}
	free(launcher->lock_path);
}

/* ---- the master --------------------------------------------------------------- */

/* A descriptor that has come through exec(3) is not close-on-exec: it belongs to the
 * process that called the launcher, which may wait for its end. The program itself has
 * opened a descriptor that is close-on-exec. */
static void
close_inherited(void)
{
	long limit = sysconf(_SC_OPEN_MAX);
	int descriptor, flags;

	if (limit == -1 || limit > DESCRIPTORS)
		limit = DESCRIPTORS;
	for (descriptor = 3; descriptor < limit; descriptor++) {
		flags = fcntl(descriptor, F_GETFD);
		if (flags != -1 && (flags & FD_CLOEXEC) == 0)
			close(descriptor);
	}
}

/* In the child: out of reach of the terminal. The working folder stays the same. */
static int
leave_terminal(const int files[2])
{
	int null = open("/dev/null", O_RDWR);

	if (null == -1 || setsid() == -1 || dup2(null, 0) == -1 || dup2(files[0], 1) == -1 ||
	    dup2(files[1], 2) == -1)
		return -1;
	close(null);
	close(files[0]);
	close(files[1]);
	close_inherited();
	return 0;
}

static pid_t daemon_master;

/* D46: SIGHUP tells of the end of a terminal, and a daemon has none. So SIGHUP is the order
 * to reload, as SIGUSR2 is. A child that still has this handler dies of the signal. */
static void
on_hangup(int number)
{
	if (getpid() == daemon_master) {
		kill(daemon_master, SIGUSR2);
		return;
	}
	signal(number, SIG_DFL);
	raise(number);
}

static void
reload_on_hangup(void)
{
	struct sigaction action = {.sa_handler = on_hangup, .sa_flags = SA_RESTART};
	sigset_t set;

	daemon_master = getpid();
	sigemptyset(&action.sa_mask);
	sigaction(SIGHUP, &action, NULL);
	sigemptyset(&set);
	sigaddset(&set, SIGHUP);
	sigprocmask(SIG_UNBLOCK, &set, NULL);
}

/* The child's life. The signals stay blocked until the master has its handlers. */
static void
be_master(struct launcher *launcher, int channel)
{
	struct options options = launcher->command->options;

	if (launcher->command->daemon)
		reload_on_hangup();
	messenger_close(launcher->parent);
	close(signal_pipe[0]);
	close(signal_pipe[1]);
	if (launcher->lock != -1)
		close(launcher->lock);
	if (launcher->command->daemon && leave_terminal(launcher->files) == -1) {
		scripts_complain(launcher->command, "cannot leave the terminal: %s",
		                 strerror(errno));
		exit(1);
	}
	options.parent = channel;
	if (launcher->listener != 0)
		options.listener = launcher->listener;
	exit(start_cluster(&options));
}

/* Everything that may fail before there is a master. Stores the master's end of the channel. */
static int
prepare(struct launcher *launcher, int *channel)
{
	const struct command *command = launcher->command;
	int pair[2], i, timeout = command->timeout > 0 ? command->timeout : START_TIMEOUT;

	if (pipe(signal_pipe) == -1 || socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == -1)
		return -1;
	for (i = 0; i < 2; i++)
		if (fcntl(signal_pipe[i], F_SETFL, O_NONBLOCK) == -1 ||
		    fcntl(signal_pipe[i], F_SETFD, FD_CLOEXEC) == -1 ||
		    fcntl(pair[i], F_SETFD, FD_CLOEXEC) == -1)
			return -1;
	*channel = pair[1];
	launcher->parent = messenger_open(pair[0], ROLE_PARENT);
	if (launcher->parent == NULL ||
	    messenger_watch(launcher->parent, signal_pipe[0], POLLIN, on_signals, launcher) == -1 ||
	    messenger_once(launcher->parent, "egg-ready", on_ready, launcher) == -1 ||
	    messenger_on(launcher->parent, "clutch-status", on_status, launcher) == -1 ||
	    messenger_set_timeout(launcher->parent, START_REPORT, ask_status, launcher) == -1)
		return -1;
	if ((command->daemon || command->timeout > 0) &&
	    messenger_set_timeout(launcher->parent, timeout * 1000, on_timeout, launcher) == -1)
		return -1;
	return command->options.env != NULL ? setenv("EGG_SERVER_ENV", command->options.env, 1) : 0;
}

/* A shell that starts a job with & has it ignore SIGINT and SIGQUIT: Ctrl-C is meant for
 * another job. */
static void
catch_signals(void)
{
	struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART}, old;
	int i;

	sigemptyset(&action.sa_mask);
	for (i = 0; i < CAUGHT; i++)
		if ((caught[i] != SIGINT && caught[i] != SIGQUIT) ||
		    sigaction(caught[i], NULL, &old) == -1 || old.sa_handler != SIG_IGN)
			sigaction(caught[i], &action, NULL);
	signal(SIGPIPE, SIG_IGN); /* the reader of its own line may have gone */
}

static int
launch(struct launcher *launcher)
{
	sigset_t set;
	int channel, i;

	if (prepare(launcher, &channel) == -1)
		return -1;
	sigemptyset(&set);
	for (i = 0; i < CAUGHT; i++)
		sigaddset(&set, caught[i]);
	fflush(NULL); /* or the child would print it again */
	sigprocmask(SIG_BLOCK, &set, NULL);
	launcher->master = fork();
	if (launcher->master == 0)
		be_master(launcher, channel);
	catch_signals();
	sigprocmask(SIG_UNBLOCK, &set, NULL);
	close(channel);
	return launcher->master == -1 ? -1 : 0;
}

/* ---- the launcher's end ------------------------------------------------------- */

static int
exit_status(int status)
{
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

/* The start took too long, or a signal has ended it. */
static void
give_up(struct launcher *launcher)
{
	const struct command *command = launcher->command;
	struct cluster_found cluster;
	struct command plain = *command;

	if (launcher->late)
		complain_late(command);
	else
		scripts_complain(command, "interrupted, stopping it");
	plain.timeout = 0;
	kill(launcher->master, SIGTERM);
	if (scripts_find(command, &cluster) == 1 && cluster.master == launcher->master &&
	    !scripts_wait_gone(&cluster, scripts_patience(&plain, NULL)))
		scripts_kill(&cluster);
	scripts_close(&cluster);
	while (waitpid(launcher->master, &launcher->status, 0) == -1 && errno == EINTR)
		;
}

/* D28: only egg-ready is a success, and every failure shows at once. D29: a line on stderr
 * is no failure. */
static int
finish_daemon(struct launcher *launcher)
{
	if (launcher->ready)
		return 0;
	if (!launcher->ended)
		give_up(launcher);
	scripts_note_failure(launcher->command, launcher->paths[1], launcher->files[1]);
	return 1;
}

static int
finish(struct launcher *launcher)
{
	if (launcher->command->daemon)
		return finish_daemon(launcher);
	notify_closing(launcher);
	return launcher->late ? 1 : exit_status(launcher->status);
}

static bool
is_over(const struct launcher *launcher)
{
	if (launcher->ended || !launcher->command->daemon)
		return launcher->ended;
	return launcher->ready || launcher->late || launcher->order != 0;
}

static int
is_running(const struct command *command)
{
	struct cluster_found cluster;
	int found = command->options.pid_file != NULL ? scripts_find(command, &cluster) : 0;

	if (found == 1)
		scripts_complain(command, "is already running, pid %ld (pid file %s)",
		                 (long)cluster.master, cluster.pid_file);
	if (command->options.pid_file != NULL)
		scripts_close(&cluster);
	return found;
}

static int
start(struct launcher *launcher)
{
	const struct command *command = launcher->command;

	if ((command->daemon && lock_start(launcher) == -1) || is_running(command) != 0 ||
	    (command->daemon && scripts_open_logs(command, launcher->paths, launcher->files) == -1))
		return 1;
	if (launch(launcher) == -1) {
		scripts_complain(command, "cannot start: %s", strerror(errno));
		return 1;
	}
	while (!is_over(launcher))
		messenger_step(launcher->parent, -1);
	messenger_close(launcher->parent);
	return finish(launcher);
}

int
scripts_start(const struct command *command)
{
	struct launcher launcher = {.command = command, .files = {-1, -1}, .lock = -1};
	int result;

	launcher.notify_socket = scripts_take_notify_socket();
	launcher.listener = scripts_take_listener(command);
	result = start(&launcher);
	unlock_start(&launcher);
	free(launcher.notify_socket);
	free(launcher.paths[0]);
	free(launcher.paths[1]);
	return result;
}
