/*
 * The launcher: it forks the master, is its parent, and waits: in the foreground
 * for its end, with --daemon for egg-ready or its end, whichever comes first.
 *
 * egg: egg-scripts/lib/cmd/start.js
 */
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
#include <time.h>
#include <unistd.h>

#define START_TIMEOUT 300 /* seconds; start.js:59 */
#define TAIL 4096         /* bytes of the daemon's stderr that are shown */
#define DESCRIPTORS 65536 /* those below are closed in a daemon, where the limit is higher */

/* Handed on to the master; the launcher is told of its end by SIGCHLD. */
static const int caught[] = {SIGTERM, SIGINT, SIGQUIT, SIGUSR1, SIGUSR2, SIGCHLD};
enum { CAUGHT = sizeof caught / sizeof caught[0] };

struct launcher {
	const struct command *command;
	struct messenger *parent;
	char *paths[2];  /* the daemon's stdout and stderr */
	int files[2];    /* the same, open; or -1 */
	char *lock_path; /* the lock of a daemon's start, and its file */
	int lock;        /* -1: there is none */
	pid_t master;
	int status; /* of the master, once it has ended */
	bool ended, ready, late;
	int order; /* a signal that ends the start of a daemon */
};

static int signal_pipe[2]; /* the numbers of the signals that came */

/* ---- what may happen --------------------------------------------------------- */

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
take_signal(struct launcher *launcher, int number)
{
	if (number == SIGCHLD)
		launcher->ended = launcher->ended || waitpid(launcher->master, &launcher->status,
		                                             WNOHANG) == launcher->master;
	else if (launcher->command->daemon && number != SIGUSR1 && number != SIGUSR2)
		launcher->order = number;
	else if (!launcher->ended)
		kill(launcher->master, number);
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

/* {"workers":2,"port":7001,"address":"http://127.0.0.1:7001","protocol":"http"} */
static int
on_ready(struct messenger *parent, const struct message *message, void *arg)
{
	struct launcher *launcher = arg;
	const char *at = strstr(message->data, "\"address\":\"");

	(void)parent;
	launcher->ready = true;
	if (!launcher->command->daemon) /* the master has said it */
		return 0;
	at = at != NULL ? at + strlen("\"address\":\"") : "";
	scripts_say(launcher->command, "started%s%.*s, pid %ld", *at != '\0' ? " on " : "",
	            (int)strcspn(at, "\""), at, (long)launcher->master);
	return 0;
}

static int
on_timeout(struct messenger *parent, void *arg)
{
	struct launcher *launcher = arg;

	(void)parent;
	launcher->late = true;
	return 0;
}

/* ---- the daemon's files --------------------------------------------------------- */

/* egg: getRotatelog. The last run's file becomes FILE.20260131.235959. Two within a
 * second: the second one is FILE.20260131.235959.1. */
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
	while (stat(to, &there) == 0 && ++i < 1000)
		snprintf(to, size, "%s.%s.%d", path, stamp, i);
	result = rename(path, to);
	free(to);
	return result;
}

/* The folders of a file, where they are missing. */
static void
make_folders(const char *path)
{
	char *copy = strdup(path), *slash = copy;

	while (slash != NULL && (slash = strchr(slash + 1, '/')) != NULL) {
		*slash = '\0';
		mkdir(copy, 0777); /* if that fails, so does open(2) */
		*slash = '/';
	}
	free(copy);
}

/* Is that descriptor's file still the one of that name? */
static bool
is_named(int descriptor, const char *path)
{
	struct stat own, named;

	return fstat(descriptor, &own) == 0 && stat(path, &named) == 0 &&
	       own.st_ino == named.st_ino && own.st_dev == named.st_dev;
}

/* Open and lock a file; as with D16, somebody may unlink it in between. -1: errno. */
static int
open_locked(const char *path)
{
	struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 1};
	int descriptor, error;

	while ((descriptor = open(path, O_RDWR | O_CREAT, 0600)) != -1) {
		if (fcntl(descriptor, F_SETFD, FD_CLOEXEC) == -1 ||
		    fcntl(descriptor, F_SETLK, &lock) == -1)
			break;
		if (is_named(descriptor, path))
			return descriptor;
		close(descriptor);
	}
	error = errno;
	if (descriptor != -1)
		close(descriptor);
	errno = descriptor != -1 && error == EACCES ? EAGAIN : error; /* POSIX has both */
	return -1;
}

/* One start of a daemon at a time: a second one would find no master yet, and rename
 * the first one's logs. Until a start is over, it has PID_FILE.start locked. */
static int
lock_start(struct launcher *launcher)
{
	const struct command *command = launcher->command;
	size_t size = strlen(command->options.pid_file) + sizeof ".start";

	launcher->lock_path = malloc(size);
	if (launcher->lock_path != NULL) {
		snprintf(launcher->lock_path, size, "%s.start", command->options.pid_file);
		make_folders(launcher->lock_path);
		launcher->lock = open_locked(launcher->lock_path);
	}
	if (launcher->lock != -1)
		return 0;
	if (errno == EAGAIN)
		scripts_complain(command, "is being started already (pid file %s)",
		                 command->options.pid_file);
	else
		scripts_complain(command, "cannot lock the start (pid file %s): %s",
		                 command->options.pid_file, strerror(errno));
	return -1;
}

static void
unlock_start(struct launcher *launcher)
{
	if (launcher->lock != -1) {
		unlink(launcher->lock_path);
		close(launcher->lock);
	}
	free(launcher->lock_path);
}

/* Nobody else reads it: there is no telling what an application logs. What is not
 * a plain file (/dev/null, a pipe) is opened as it is. */
static int
open_log(const struct command *command, const char *path)
{
	int descriptor, flags = O_RDWR | O_APPEND | O_NOCTTY;
	struct stat there;

	make_folders(path);
	if (stat(path, &there) == -1)
		flags |= O_CREAT | O_EXCL;
	else if (S_ISREG(there.st_mode))
		flags |= rotate(path) == 0 ? O_CREAT | O_EXCL : 0;
	descriptor = open(path, flags, 0600);
	if (descriptor == -1)
		scripts_complain(command, "cannot open %s: %s", path, strerror(errno));
	else
		fcntl(descriptor, F_SETFD, FD_CLOEXEC);
	return descriptor;
}

/* Both may be one file. */
static int
open_files(struct launcher *launcher)
{
	static const char *const ends[] = {"-stdout.log", "-stderr.log"};
	const struct command *command = launcher->command;
	const char *given[2] = {command->standard_output, command->standard_error};
	int i;

	for (i = 0; i < 2; i++) {
		launcher->paths[i] = given[i] != NULL ? strdup(given[i])
		                                      : scripts_home_file(command, "logs", ends[i]);
		if (launcher->paths[i] == NULL)
			return -1;
		if (i == 1 && strcmp(launcher->paths[0], launcher->paths[1]) == 0)
			launcher->files[1] = dup(launcher->files[0]);
		else
			launcher->files[i] = open_log(command, launcher->paths[i]);
		if (launcher->files[i] == -1)
			return -1;
	}
	return 0;
}

/* The end of the daemon's stderr, from a line's beginning on. */
static void
print_tail(int descriptor)
{
	static char text[TAIL + 1];
	struct stat status;
	const char *line = text;
	off_t at;
	ssize_t count;

	if (fstat(descriptor, &status) == -1 || !S_ISREG(status.st_mode))
		return;
	at = status.st_size > TAIL ? status.st_size - TAIL : 0;
	count = pread(descriptor, text, TAIL, at);
	text[count > 0 ? count : 0] = '\0';
	if (at > 0 && (line = strchr(text, '\n')) == NULL)
		line = text;
	fputs(line + (*line == '\n'), stderr);
}

/* ---- the master ------------------------------------------------------------------ */

/* What has come through exec(3) is not close-on-exec: it is whoever's who called the
 * launcher, and waits for its end, perhaps. What is, the program has opened itself. */
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

/* In the child: out of reach of the terminal. Its folder stays what it was. */
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

/* The child's life. The signals stay blocked until the master has its handlers. */
static void
be_master(struct launcher *launcher, int channel)
{
	struct options options = launcher->command->options;

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
	exit(start_cluster(&options));
}

/* Descriptors 0, 1 and 2 are somebody's, or no file of ours may become one of them. */
static void
fill_standard_descriptors(void)
{
	int descriptor;

	do
		descriptor = open("/dev/null", O_RDWR);
	while (descriptor >= 0 && descriptor < 3);
	close(descriptor);
}

/* All that may fail, before there is a master. Stores its end of the channel. */
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
	    messenger_once(launcher->parent, "egg-ready", on_ready, launcher) == -1)
		return -1;
	if (command->daemon &&
	    messenger_set_timeout(launcher->parent, timeout * 1000, on_timeout, launcher) == -1)
		return -1;
	return command->options.env != NULL ? setenv("EGG_SERVER_ENV", command->options.env, 1) : 0;
}

static int
launch(struct launcher *launcher)
{
	struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
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
	sigemptyset(&action.sa_mask);
	for (i = 0; i < CAUGHT; i++)
		sigaction(caught[i], &action, NULL);
	signal(SIGPIPE, SIG_IGN); /* nobody may be there to read that it has started */
	sigprocmask(SIG_UNBLOCK, &set, NULL);
	close(channel);
	return launcher->master == -1 ? -1 : 0;
}

/* ---- the launcher's end ------------------------------------------------------------ */

static int
exit_status(int status)
{
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

/* It took too long, or somebody has changed his mind. */
static void
give_up(struct launcher *launcher)
{
	const struct command *command = launcher->command;
	struct cluster_found cluster;
	struct command plain = *command;

	if (launcher->late)
		scripts_complain(command, "not ready within %d s, stopping it",
		                 command->timeout > 0 ? command->timeout : START_TIMEOUT);
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

/* D28: nothing but egg-ready is a success; everything else shows at once. D29: what
 * stands on stderr is no failure. */
static int
finish_daemon(struct launcher *launcher)
{
	if (launcher->ready)
		return 0;
	if (!launcher->ended)
		give_up(launcher);
	print_tail(launcher->files[1]);
	scripts_complain(launcher->command, "start failed, see %s", launcher->paths[1]);
	return 1;
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
	    (command->daemon && open_files(launcher) == -1))
		return 1;
	if (launch(launcher) == -1) {
		scripts_complain(command, "cannot start: %s", strerror(errno));
		return 1;
	}
	while (!is_over(launcher))
		messenger_step(launcher->parent, -1);
	messenger_close(launcher->parent);
	return command->daemon ? finish_daemon(launcher) : exit_status(launcher->status);
}

int
scripts_start(const struct command *command)
{
	struct launcher launcher = {.command = command, .files = {-1, -1}, .lock = -1};
	int result;

	fill_standard_descriptors();
	result = start(&launcher);
	unlock_start(&launcher);
	free(launcher.paths[0]);
	free(launcher.paths[1]);
	return result;
}
