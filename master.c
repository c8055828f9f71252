/*
 * The master: it starts the others, relays what they say, and outlives them.
 *
 * egg: egg-cluster/lib/master.js, lib/utils/manager.js, lib/utils/terminate.js,
 * npm cfork; what egg has from Node (forking, counting the dead, the loop)
 *
 *	start_cluster     parse_options, bind, lock the pid file, fork the agent
 *	  agent-start     on_agent_start: fork the apps (pre-fork: before a client comes)
 *	    listening     on_app_start: when all are, egg-ready
 *	loop              the living speak; the dead are counted; orders; the clock
 *	  disconnect      on_disconnect: a replacement for an app, at once
 *	  exit            on_app_exit, on_agent_exit: the agent's after 1 s
 *	  SIGTERM         close_cluster: apps, then agent, then itself
 *
 * waitid says which process is alive; the channel over which a message came says which
 * process sent it. No message can claim either (D5).
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#if defined _POSIX_C_SOURCE && !defined _XOPEN_SOURCE
#define _XOPEN_SOURCE 700 /* for SIGXFSZ, which FreeBSD hides otherwise */
#endif
#define CLUTCH_PRIVATE
#include "messenger.h"

#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define AGENT_REFORK_DELAY 1000 /* master.js:339 */
#define CHECK_INTERVAL 10000    /* manager.js:78 */
#define CHECK_EXCEPTIONS 3      /* manager.js:74 */
#define REFORK_DURATION 60000   /* cfork */
#define BACKOFF_FIRST 1000      /* D11: 1, 2, 4 ... 32 s */
#define BACKOFF_DOUBLINGS 5
#define FORK_RETRY 1000 /* fork failed: no process or memory left */
#define KILL_RETRY 1000 /* SIGKILL could not be sent, or has not worked yet */
#define KILL_TIME 200   /* a process group has this long to die of SIGKILL */
#define GROUP_CHECK 50  /* how soon a process group's end is noticed */
#define LAST_WORDS (1024 * 1024 + 3 * CHANNEL_SOCKET_BUFFER) /* more than a socket holds */
#define PORT_PATIENCE 3000   /* how long to wait for a port in use */
#define TRIM_INTERVAL 1000   /* queues that were not used for this long are freed */
#define LATE 1000            /* the master itself did not run, if it is this late */
#define OTHER_DESCRIPTORS 16 /* 0 to 2, agent, parent, listener, files ... */
#define SIGNAL_MAX 64        /* the system refuses numbers past its last signal */
#define PID_SIZE 12          /* a pid in JSON, and its comma, in bytes */
#define STATUS_END 32        /* the last line of the status, in bytes */

typedef char egg_pids_hold_all[MESSAGE_DATA_MAX >= CLUTCH_WORKERS_MAX * PID_SIZE + 2 ? 1 : -1];

static volatile sig_atomic_t got[SIGNAL_MAX + 1]; /* the signals that came */

/* A handler may call only what is async-signal-safe, and runs between any two lines of the
 * loop: so it sets a flag and writes a byte that wakes poll (the self-pipe trick). */
static void
on_caught(int number)
{
	got[number] = 1;
	if (number == SIGALRM) /* see clutch_log; again, should this one have come too early */
		alarm(1);
	clutch_wake_up();
}

/* Not SIG_IGN: that would be inherited by what an application starts. */
static void
on_ignored(int number)
{
	(void)number;
}

/* The signals that are the master's while it runs. Some stay ignored where the starter
 * ignores them (nohup, a shell's `&`), because the master can do without them. */
static const struct {
	int number;
	bool may_be_ignored;
	void (*handler)(int);
} caught[] = {
	{SIGTERM, false, on_caught}, {SIGINT, true, on_caught},   {SIGQUIT, true, on_caught},
	{SIGCHLD, false, on_caught}, {SIGUSR1, false, on_caught}, {SIGUSR2, false, on_caught},
	{SIGALRM, false, on_caught}, {SIGPIPE, true, on_ignored}, {SIGXFSZ, true, on_ignored}};
enum { CAUGHT = sizeof caught / sizeof caught[0] };

/* Make a system call again, if a signal has interrupted it. */
#define AGAIN(result, call)                                                                        \
	do                                                                                         \
		(result) = (call);                                                                 \
	while ((result) == -1 && errno == EINTR)

enum phase {
	PHASE_RUNNING,
	PHASE_CLOSING_APPS,
	PHASE_CLOSING_AGENT,
	PHASE_FAILING, /* given up: the children see the end of their channels */
	PHASE_CLOSED
};

/* The place of one app worker, kept by its replacements. */
struct slot {
	bool started;      /* a worker in it has been ready */
	int64_t refork_at; /* 0: not waiting for a re-fork */
	int failures;      /* deaths in a row before a worker was ready */
	int reforks;
	char last_death[80];
};

struct master {
	struct options options; /* every default filled in */
	char options_json[256]; /* what egg-ready carries */
	char address[128];      /* http://host:port, the path of a socket, or empty */
	struct stat socket;     /* of that path; with no link: there is none */
	bool is_production;
	struct worker_manager worker_manager;
	struct master_messenger messenger;
	struct process parent, agent;
	struct slot agent_slot, *slots;
	struct corpse *corpses;
	int listener, pid_file;

	enum phase phase;
	int exit_code;
	bool is_started;          /* egg-ready was sent (egg: isAllWorkerStarted, too) */
	int forked[ROLE_APP + 1]; /* of each role, so far */
	int reload_slot;          /* the next one of an ordered reload, or -1 */
	int reload_id;            /* the app worker that the reload has forked for it, or 0 */
	int reloads_done, reloads_given_up;

	int64_t now, lost; /* the clock leaves out the time in which the master stood still */
	int64_t start_time;
	int64_t next_at;  /* when the clock runs at the latest; 0: not at all */
	int64_t check_at; /* 0: no health check */
	int64_t trim_at;  /* 0: no queue keeps memory */
	int exception;    /* failed health checks in a row */

	int64_t *reforks;      /* when the last options.refork_limit were, a ring */
	unsigned refork_count; /* ever */

	int wake;

	struct sigaction inherited[CAUGHT];
	sigset_t mask;      /* the caller's */
	unsigned alarm;     /* the caller's, in seconds */
	struct pollfd *set; /* self-pipe, parent, agent, app workers; an fd of -1: not polled */
	size_t worker_count;
};

static void close_cluster(struct master *master);

/* ---- the log ------------------------------------------------------------- */

#define log_info(...) clutch_log(CLUTCH_INFO, "[master] " __VA_ARGS__)
#define log_warn(...) clutch_log(CLUTCH_WARN, "[master] " __VA_ARGS__)
#define log_error(...) clutch_log(CLUTCH_ERROR, "[master] " __VA_ARGS__)

/* ---- processes ------------------------------------------------------------ */

/* "app_worker#2:4711", "agent_worker#1:4710" or "parent", for a line about a process. egg's
 * number is that of the fork: a line about an app ends with its slot, in_slot. Both are valid
 * until the next call. */
static char in_slot[16];

static const char *
process_name(const struct process *process)
{
	static char name[64];

	in_slot[0] = '\0';
	if (process->role == ROLE_APP)
		snprintf(in_slot, sizeof in_slot, " (app %d)", process->slot);
	if (process->role == ROLE_PARENT)
		return "parent";
	snprintf(name, sizeof name, "%s_worker#%d:%ld", clutch_role_name(process->role),
	         process->id, (long)process->worker_id);
	return name;
}

static int
slot_of(const struct process *process)
{
	return process->role == ROLE_APP ? process->slot : -1;
}

static bool
is_alive(const struct process *process)
{
	return process->worker_id > 0 && process->state != STATE_DEAD;
}

/* The only place where a process is signalled: by its number, because it may have left its
 * group, and its group, because its children are in it. Neither number is ever reused
 * before the process was reaped, and that is the last step (see `bury`). */
static void
signal_process(const struct process *process, int number)
{
	if (is_alive(process)) {
		clutch_trace("signals", &process->channel, NULL, "signal", number);
		kill(-process->worker_id, number);
		if (getpgid(process->worker_id) != process->worker_id)
			kill(process->worker_id, number);
	}
}

static int64_t
timeout_of(const struct master *master, const struct process *process, enum deadline deadline)
{
	int64_t timeout = process->role == ROLE_AGENT ? master->options.agent_close_timeout
	                                              : master->options.app_close_timeout;

	if (deadline == DEADLINE_START)
		return master->options.worker_start_timeout;
	if (deadline == DEADLINE_KILLED)
		return KILL_RETRY;
	if (deadline == DEADLINE_DISCONNECTED && process->role == ROLE_APP &&
	    !process->disable_refork && master->phase == PHASE_RUNNING)
		timeout += master->options.graceful_timeout;
	return timeout;
}

/* Has this time come? 0 never does. If not, the loop sleeps no longer than until then. */
static bool
await(struct master *master, int64_t at)
{
	if (at != 0 && (master->next_at == 0 || at < master->next_at))
		master->next_at = at;
	return at != 0 && at <= master->now;
}

/* A process is to end, or to get ready, within some time; on_deadline says what happens
 * if it does not. A process that was told to end gets no more time by anything that
 * happens later (D31). */
static void
expect(struct master *master, struct process *process, enum deadline deadline)
{
	int64_t at = master->now + timeout_of(master, process, deadline);

	if (process->deadline >= DEADLINE_LEAVE && at > process->deadline_at)
		return;
	process->deadline = deadline;
	process->deadline_at = at;
}

/* egg: process.exit(code). But no process is left behind as an orphan (D3): the children
 * see the end of their channels, and a process that does not leave then is killed. */
static void
fail(struct master *master, int code)
{
	struct process *process;

	assert(master->phase == PHASE_RUNNING);
	master->reload_slot = -1;
	master->phase = PHASE_FAILING;
	master->exit_code = code;
	for (process = &master->agent; process != NULL; process = process->next) {
		channel_flush(&process->channel);
		channel_close(&process->channel);
		if (is_alive(process))
			expect(master, process, DEADLINE_DISCONNECTED);
	}
}

/* ---- egg-cluster/lib/utils/manager.js ------------------------------------ */

static void
set_worker(struct master *master, struct process *worker) /* :30 */
{
	struct process **last = &master->worker_manager.workers;

	while (*last != NULL)
		last = &(*last)->next;
	*last = worker;
	master->agent.next = master->worker_manager.workers;
}

/* The process that holds a slot, the older one, if another is about to replace it. A process
 * that was replaced and is on its way out holds none. */
static struct process *
get_slot_worker(const struct master *master, int slot)
{
	struct process *worker;

	for (worker = master->worker_manager.workers; worker != NULL; worker = worker->next)
		if (worker->slot == slot && !worker->is_dev_reload &&
		    (worker->state == STATE_ONLINE || worker->state == STATE_LISTENING))
			return worker;
	return NULL;
}

static void
delete_worker(struct master *master, struct process *worker) /* :38 */
{
	struct process **link = &master->worker_manager.workers;

	while (*link != worker)
		link = &(*link)->next;
	*link = worker->next;
	master->agent.next = master->worker_manager.workers;
	master->worker_count--;
	channel_close(&worker->channel);
	free(worker);
}

/* As JSON; a pid that finds no room there is left out. */
static void
get_listening_worker_ids(const struct master *master, char *json, size_t size) /* :46 */
{
	const struct process *worker;
	size_t used = 1;

	json[0] = '[';
	for (worker = master->worker_manager.workers; worker != NULL;
	     worker = worker->next)                                                 /* :48 */
		if (worker->state == STATE_LISTENING && size - used > PID_SIZE + 2) /* :49 */
			used += (size_t)snprintf(json + used, size - used, "%s%ld",
			                         used > 1 ? "," : "", (long)worker->worker_id);
	memcpy(json + used, "]", 2);
}

/* Agent and workers must be alive; if three checks in a row find no agent or no worker, the
 * cluster is in an unknown state. egg: count, startCheck */
static void
check_alive(struct master *master) /* :65 startCheck */
{
	const struct process *worker;
	int agents = master->agent.state == STATE_LISTENING, workers = 0;

	for (worker = master->worker_manager.workers; worker != NULL; worker = worker->next)
		workers += is_alive(worker);
	master->check_at = master->now + CHECK_INTERVAL;
	if (agents > 0 && workers > 0) { /* :69 count */
		master->exception = 0;
		return;
	}
	if (++master->exception < CHECK_EXCEPTIONS) /* :74 */
		return;
	log_error("%d agent and %d worker(s) alive, exit to avoid unknown state", agents, workers);
	fail(master, 1); /* master.js:184 */
}

/* ---- egg-cluster/lib/utils/terminate.js ---------------------------------- */

/* SIGTERM to a process and its children; SIGKILL when the timeout is over (D3). egg:
 * killProcess, killChildren */
static void
terminate(struct master *master, struct process *process) /* :7 timeout */
{
	if (!is_alive(process) || process->deadline == DEADLINE_LEAVE) /* :24 killed, D3 */
		return;
	signal_process(process, SIGTERM);
	if (process->state != STATE_DISCONNECTED)
		process->state = STATE_LEAVING;
	expect(master, process, DEADLINE_LEAVE);
}

/* ---- what the master says ------------------------------------------------ */

static void
tell(struct master *master, enum role to, pid_t receiver_pid, const char *action, const char *data)
{
	struct message message = {action, ROLE_MASTER, to, receiver_pid, data, 0, -1, NULL};

	message.data_length = data != NULL ? strlen(data) : 0;
	master_messenger_send(&master->messenger, &message);
}

/* egg-pids to the agent */
static void
tell_agent_pids(struct master *master)
{
	char json[(CLUTCH_WORKERS_MAX + 1) * PID_SIZE + 3];

	get_listening_worker_ids(master, json, sizeof json);
	tell(master, ROLE_AGENT, 0, "egg-pids", json);
}

/* egg-pids to the apps, or to one of them: the pid of the agent, if it is ready. */
static void
tell_app_pids(struct master *master, pid_t receiver_pid)
{
	char json[32] = "[]";

	if (master->agent.state == STATE_LISTENING)
		snprintf(json, sizeof json, "[%ld]", (long)master->agent.worker_id);
	tell(master, ROLE_APP, receiver_pid, "egg-pids", json);
}

/* ---- the status: SIGUSR1, clutch-status, pid_file.status ------------------ */

/* One JSON object: a line for the cluster, one for each process, and an end. */
struct status {
	char text[MESSAGE_DATA_MAX];
	size_t length;
	int rows, left_out;
};

/* Append a row, if there is room for it and for the end. */
static void CLUTCH_PRINTF(2, 3) put(struct status *status, const char *format, ...)
{
	size_t room = sizeof status->text - STATUS_END - status->length;
	va_list arguments;
	int length;

	va_start(arguments, format);
	length = vsnprintf(status->text + status->length, room, format, arguments);
	va_end(arguments);
	if (length >= 0 && (size_t)length < room) {
		status->length += (size_t)length;
		status->rows++;
	} else {
		status->left_out++;
	}
}

/* The processes for which a sender waits: ["agent:-1","app:2"], as in a trace, as many as find
 * room. */
static void
list_waits(const struct master *master, const struct process *sender, char *json, size_t size)
{
	const struct process *process;
	size_t used = 1;

	json[0] = '[';
	for (process = &master->parent; process != NULL; process = process->next)
		if (process_waits_for(sender, process) && size - used > 24)
			used += (size_t)snprintf(json + used, size - used, "%s\"%s:%d\"",
			                         used > 1 ? "," : "",
			                         clutch_role_name(process->role), slot_of(process));
	memcpy(json + used, "]", 2);
}

static void
put_process(struct status *status, const struct master *master, const struct process *process,
            const struct slot *slot)
{
	static const char *const states[] = {"waiting", "starting",     "listening",
	                                     "leaving", "disconnected", "dead"};
	const struct channel *channel = &process->channel;
	const int64_t now = master->now;
	char waits[128];

	list_waits(master, process, waits, sizeof waits);
	put(status,
	    "%s\n{\"role\":\"%s\",\"slot\":%d,\"pid\":%ld,\"state\":\"%s\",\"age\":%lld,"
	    "\"reforks\":%d,\"refork_in\":%lld,\"heard\":%llu,\"told\":%llu,\"bytes_in\":%llu,"
	    "\"bytes_out\":%llu,\"queued\":%zu,\"dropped\":%llu,\"waits_for\":%s,\"waits\":%lld,"
	    "\"last_death\":\"%s\"}",
	    status->rows > 1 ? "," : "", clutch_role_name(process->role), slot_of(process),
	    (long)process->worker_id, states[process->state],
	    (long long)(process->worker_id != 0 ? now - process->forked_at : 0), slot->reforks,
	    (long long)(slot->refork_at > now ? slot->refork_at - now : 0),
	    (unsigned long long)channel->messages_in, (unsigned long long)channel->messages_out,
	    (unsigned long long)channel->bytes_in, (unsigned long long)channel->written,
	    channel_pending(channel), (unsigned long long)process->dropped, waits,
	    (long long)(process->waits_since != 0 ? clutch_now() - process->waits_since : 0),
	    slot->last_death);
}

/* What would end a text in JSON becomes a question mark. */
static void
make_plain(char *text)
{
	for (; *text != '\0'; text++)
		if ((unsigned char)*text < ' ' || *text == '"' || *text == '\\')
			*text = '?';
}

static void
put_cluster(struct status *status, const struct master *master)
{
	const struct options *options = &master->options;
	char name[64];

	snprintf(name, sizeof name, "%s", options->name);
	make_plain(name);
	put(status,
	    "{\"name\":\"%s\",\"pid\":%ld,\"address\":\"%s\",\"state\":\"%s\",\"age\":%lld,"
	    "\"workers\":%d,\"reload\":{\"done\":%d,\"given_up\":%d,\"slot\":%d},"
	    "\"undeliverable\":%llu,\"limits\":{\"start\":%d,\"app_close\":%d,\"agent_close\":%d,"
	    "\"stuck\":%d,\"data\":%ld,\"high_water\":%ld,\"low_water\":%ld},\"processes\":[",
	    name, (long)master->messenger.pid, master->address,
	    master->phase != PHASE_RUNNING ? "stopping"
	    : master->is_started           ? "running"
	                                   : "starting",
	    (long long)(master->now - master->start_time), options->workers, master->reloads_done,
	    master->reloads_given_up, master->reload_slot,
	    (unsigned long long)master->messenger.undeliverable, options->worker_start_timeout,
	    options->app_close_timeout, options->agent_close_timeout, options->stuck_timeout,
	    (long)MESSAGE_DATA_MAX, (long)CHANNEL_HIGH_WATER, (long)CHANNEL_LOW_WATER);
}

/* All that the master knows (docs/operating.md). A slot without a process has a row, too. The
 * text lives until the next call. */
static char *
get_status(const struct master *master)
{
	static const struct slot none;
	static struct status status;
	struct process empty = {.role = ROLE_APP};
	const struct process *worker;
	int rows;

	status.length = 0;
	status.rows = status.left_out = 0;
	put_cluster(&status, master);
	if (status.rows == 0)
		put(&status, "{\"processes\":["); /* a tiny MESSAGE_DATA_MAX */
	if (master->worker_manager.parent != NULL)
		put_process(&status, master, &master->parent, &none);
	put_process(&status, master, &master->agent, &master->agent_slot);
	for (empty.slot = 0; empty.slot < master->options.workers; empty.slot++) {
		rows = status.rows + status.left_out;
		for (worker = master->worker_manager.workers; worker != NULL; worker = worker->next)
			if (worker->slot == empty.slot)
				put_process(&status, master, worker, &master->slots[empty.slot]);
		if (rows == status.rows + status.left_out)
			put_process(&status, master, &empty, &master->slots[empty.slot]);
	}
	snprintf(status.text + status.length, STATUS_END, "\n],\"left_out\":%d}", status.left_out);
	return status.text;
}

/* ---- the pid file, and the status beside it --------------------------- */

/* What lies beside the pid file: PID_FILE.status, and PID_FILE.status.new while it is
 * written. */
#ifndef PATH_MAX /* Hurd has no limit */
#define PATH_MAX 4096
#endif
enum { STATUS_PATH_MAX = PATH_MAX + 16 };

/* Not through a symbolic link, not waiting for the other end of a FIFO, and without
 * making a terminal the master's own. */
static int
open_again(const char *path, int flags, mode_t mode)
{
	int descriptor;

	flags |= O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC;
	AGAIN(descriptor, open(path, flags, mode));
	return descriptor;
}

/* Lock one byte of the pid file: the master the first one, a child that of its own
 * number. So the kernel's list of its locks is the list of those alive, and a program that
 * stops the cluster from outside takes no stranger for one of them (D30). */
static int
lock_byte(int descriptor, off_t byte)
{
	struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
	int result;

	AGAIN(result, fcntl(descriptor, F_SETLK, &lock));
	return result;
}

/* Make the directories above a file. */
static int
make_directories(const char *path)
{
	char above[PATH_MAX];
	size_t i;

	for (i = 0; i < sizeof above && path[i] != '\0'; i++) {
		above[i] = '\0';
		if (i > 0 && path[i] == '/' && mkdir(above, 0777) == -1 && errno != EEXIST)
			return -1;
		above[i] = path[i];
	}
	return 0;
}

static const char moved[] = "another file has its name";

/* D44: the master writes, empties and removes a plain file of its own user that is empty
 * or holds a pid, and no other file. Returns why this one is none; NULL: it is one. */
static const char *
why_not_pid_file(int descriptor, const char *path)
{
	char text[32] = "";
	struct stat own, named;
	size_t length;

	if (fstat(descriptor, &own) == -1 || pread(descriptor, text, sizeof text - 1, 0) == -1)
		return strerror(errno);
	if (lstat(path, &named) == -1 || own.st_ino != named.st_ino || own.st_dev != named.st_dev)
		return moved;
	if (!S_ISREG(own.st_mode))
		return "it is not a plain file";
	if (own.st_uid != geteuid())
		return "it belongs to another user";
	if (own.st_nlink > 1)
		return "it has a second name";
	length = strspn(text, "0123456789");
	length += length > 0 && text[length] == '\n';
	return (off_t)length == own.st_size ? NULL : "it holds something other than a pid";
}

/* D16: the lock says which master the file belongs to. Another process may unlink the file
 * between our open and our lock: then no other process can see the file that we have
 * locked. Returns why there is no lock; NULL: there is one. */
static const char *
lock_pid_file(struct master *master)
{
	static const char taken[] =
		"another master holds it; stop that one, or choose another file";
	const char *path = master->options.pid_file, *why;
	struct stat status;
	int descriptor;

	do {
		if (lstat(path, &status) == 0 && !S_ISREG(status.st_mode))
			return S_ISLNK(status.st_mode) ? "it is a symbolic link"
			                               : "it is not a plain file";
		descriptor = open_again(path, O_RDWR | O_CREAT, 0600);
		if (descriptor == -1)
			return strerror(errno);
		if (lock_byte(descriptor, 0) == 0)
			why = why_not_pid_file(descriptor, path);
		else
			why = errno == EACCES || errno == EAGAIN ? taken : strerror(errno);
		if (why != NULL)
			close(descriptor);
	} while (why == moved);
	if (why == NULL)
		master->pid_file = descriptor;
	return why;
}

/* egg: egg-cluster/lib/master.js, constructor */
static int
open_pid_file(struct master *master)
{
	const char *path = master->options.pid_file, *why;
	int result;

	if (path == NULL) /* :162 pidFile */
		return 0;
	why = make_directories(path) == -1 ? strerror(errno) : lock_pid_file(master);
	if (why == NULL) {
		AGAIN(result, ftruncate(master->pid_file, 0));
		if (result == 0 && dprintf(master->pid_file, "%ld", (long)getpid()) > 0)
			return 0;
		why = strerror(errno);
	}
	log_error("pid file %s: %s", path, why);
	return -1;
}

/* egg: onExit. The master removes only its own file. */
static void
remove_pid_file(const struct master *master)
{
	char path[STATUS_PATH_MAX];

	if (why_not_pid_file(master->pid_file, master->options.pid_file) != NULL)
		return;
	snprintf(path, sizeof path, "%s.status", master->options.pid_file);
	unlink(path);
	unlink(master->options.pid_file);
}

/* The status as a file, for a command that cannot ask by a message (egg-scripts status).
 * The file is complete, or it is not there. Its folder may be writable for others: a file
 * that stands in the way and cannot be removed is not written to. */
static void
save_status(const struct master *master)
{
	char path[STATUS_PATH_MAX], new_path[STATUS_PATH_MAX];
	bool written;
	int file = -1;

	if (master->pid_file == -1)
		return;
	snprintf(path, sizeof path, "%s.status", master->options.pid_file);
	snprintf(new_path, sizeof new_path, "%s.status.new", master->options.pid_file);
	if (unlink(new_path) == 0 || errno == ENOENT)
		file = open_again(new_path, O_WRONLY | O_CREAT | O_EXCL, 0600);
	if (file != -1) {
		written = dprintf(file, "%s\n", get_status(master)) > 0;
		if (close(file) == 0 && written && /* a full disk may show only now */
		    rename(new_path, path) == 0)
			return;
	}
	log_error("cannot write %s: %s", new_path, strerror(errno));
	unlink(new_path);
}

/* ---- forking ------------------------------------------------------------- */

/* Give back all that the master holds. */
static void
release(struct master *master, bool with_listener)
{
	struct corpse *corpse;

	while (master->worker_manager.workers != NULL)
		delete_worker(master, master->worker_manager.workers);
	while ((corpse = master->corpses) != NULL) {
		master->corpses = corpse->next;
		free(corpse);
	}
	channel_close(&master->agent.channel);
	channel_close(&master->parent.channel);
	if (master->pid_file != -1)
		close(master->pid_file);
	if (with_listener && master->listener != -1)
		close(master->listener);
	free(master->slots);
	free(master->reforks);
	free(master->set);
}

/* No handler of the program that started the cluster, nor of the master, runs in a child. */
static void
drop_handlers(void)
{
	struct sigaction action;
	int number;

	for (number = 1; number <= SIGNAL_MAX; number++)
		if (sigaction(number, NULL, &action) == 0 && action.sa_handler != SIG_DFL &&
		    action.sa_handler != SIG_IGN && action.sa_handler != on_ignored)
			clutch_catch_signal(number, SIG_DFL);
}

/* In a child: what the starter ignores is ignored again, but SIGTERM, which must end it. */
static void
reset_signals(const struct master *master)
{
	int terminal = open("/dev/tty", O_RDWR | O_NOCTTY);
	sigset_t mask = master->mask;
	size_t i;

	drop_handlers();
	clutch_log_alarm = false;
	for (i = 0; i < CAUGHT; i++)
		if (master->inherited[i].sa_handler == SIG_IGN && caught[i].number != SIGTERM)
			clutch_catch_signal(caught[i].number, SIG_IGN);
	if (terminal != -1) { /* which stops background groups that use it */
		clutch_catch_signal(SIGTTIN, SIG_IGN);
		clutch_catch_signal(SIGTTOU, SIG_IGN);
		close(terminal);
	}
	sigdelset(&mask, SIGTERM);
	sigprocmask(SIG_SETMASK, &mask, NULL);
}

static int
set_number(const char *name, int value)
{
	char number[16];

	snprintf(number, sizeof number, "%d", value);
	return setenv(name, number, 1);
}

/* The child's first steps: nothing of the master's stays but its options. It closes its
 * siblings' descriptors: while a copy of a channel's end is open in any process, the other
 * end does not see its end of file. */
static void
become_child(struct master *master, const struct process *process, int descriptor)
{
	enum role role = process->role;
	const struct options *options = &master->options;
	int slot = process->slot;
	struct messenger *messenger;

	setpgid(0, 0);
	reset_signals(master);
	if (master->pid_file != -1)
		lock_byte(master->pid_file, getpid());
	master->pid_file = -1; /* it stays open, for the child's lock */
	release(master, role == ROLE_AGENT);
	messenger_disown();
	clutch_trace_init(role, slot);
	if (options->in_child != NULL)
		options->in_child(role, options->arg);
	messenger = messenger_open(descriptor, role);
	clutch_trace_init(role, slot); /* messenger_open knows no slot */
	clutch_trace("starts", NULL, NULL, "parent", (long)getppid());
	if (messenger == NULL ||
	    (role == ROLE_APP && (set_number("CFORK_WORKER_INDEX", slot) == -1 ||
	                          set_number("CFORK_WORKER_COUNT", options->workers) == -1))) {
		clutch_log(CLUTCH_ERROR, "[%s] start error: %s", clutch_role_name(role),
		           strerror(errno));
		clutch_process_exit(1);
	} else if (role == ROLE_AGENT) {
		agent_run(messenger, options);
	} else {
		messenger->slot = slot;
		worker_run(messenger, options, master->listener, master->options_json);
	}
}

/* fork(2). The child begins with all signals blocked, the caller has them back. */
static pid_t
fork_blocked(sigset_t *mask)
{
	sigset_t all;
	pid_t pid;

	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, mask);
	pid = fork();
	if (pid != 0)
		sigprocmask(SIG_SETMASK, mask, NULL);
	return pid;
}

/* Fork a child over a channel of its own. It leads a process group of its own, so that
 * Ctrl-C reaches the master alone (D4), and a signal to the group its children, too. Both
 * sides call setpgid: whichever runs first, the group is there when either goes on. A fork
 * that fails is tried again; a process of NULL, for which there was no memory, is one. */
static bool
fork_process(struct master *master, struct process *process, struct slot *slot)
{
	int pair[2] = {-1, -1};
	pid_t pid = -1;
	sigset_t mask;

	clutch_trace("forks", process != NULL ? &process->channel : NULL, NULL, "", 0);
	if (process != NULL && channel_pair(pair) == 0 &&
	    channel_attach(&process->channel, pair[0]) == 0)
		pid = fork_blocked(&mask);
	if (pid == 0)
		become_child(master, process, pair[1]);
	if (pair[1] != -1)
		close(pair[1]);
	slot->refork_at = pid == -1 ? master->now + FORK_RETRY : 0;
	if (pid == -1) {
		master->exception = 0; /* it is known why a process is missing */
		log_error("cannot fork %s_worker: %s, next try in %dms",
		          slot == &master->agent_slot ? "agent" : "app", strerror(errno),
		          FORK_RETRY);
		if (pair[0] != -1) {
			close(pair[0]);
			process->channel.descriptor = -1; /* what waits goes on waiting */
		}
		return false;
	}
	setpgid(pid, pid);
	process->channel.limit = 0;
	process->worker_id = pid;
	process->id = ++master->forked[process->role];
	process->state = STATE_ONLINE;
	process->forked_at = master->now;
	process->dropped = 0;
	expect(master, process, DEADLINE_START);
	return true;
}

/* A place for an app worker that is not forked yet, and in the set to poll; NULL: ENOMEM. */
static struct process *
new_worker(struct master *master, int slot)
{
	struct process *worker = calloc(1, sizeof *worker);
	struct pollfd *set = realloc(master->set, (master->worker_count + 4) * sizeof *set);

	if (set != NULL)
		master->set = set;
	if (set == NULL || worker == NULL) {
		free(worker);
		return NULL;
	}
	master->worker_count++;
	channel_init(&worker->channel, CHANNEL_QUEUE_MAX);
	worker->channel.process = worker;
	worker->role = ROLE_APP;
	worker->slot = slot;
	worker->disable_refork = true;
	set_worker(master, worker);
	return worker;
}

/* Fork for a slot, into the place where messages wait for its worker, if there is one. The
 * worker is for on_fork; NULL: it is tried again. */
static struct process *
fork_app_worker(struct master *master, int number)
{
	struct process *worker = master->worker_manager.workers;

	while (worker != NULL && (worker->slot != number || worker->state != STATE_NONE))
		worker = worker->next;
	if (worker == NULL)
		worker = new_worker(master, number);
	return fork_process(master, worker, &master->slots[number]) ? worker : NULL;
}

/* ---- npm cfork ----------------------------------------------------------- */

/* NULL: the fork has failed. egg: cluster.on('fork') */
static bool
on_fork(struct master *master, const struct process *worker)
{
	if (worker == NULL)
		return false;
	log_info("%s start%s", process_name(worker), in_slot);
	if (worker->slot == master->reload_slot)
		master->reload_id = worker->id;
	tell_app_pids(master, worker->worker_id); /* D7 */
	return true;
}

/* Fork for a slot if its time has come, and if fewer than options.refork_limit were forked
 * again within the last minute; else later, not never (D13). A fork that fails counts as none. */
static void
refork_due(struct master *master, int number)
{
	struct slot *slot = &master->slots[number];
	unsigned limit = (unsigned)master->options.refork_limit;
	int64_t *oldest = &master->reforks[master->refork_count % limit];
	int64_t allowed_at = *oldest + REFORK_DURATION + 1;

	if (!await(master, slot->refork_at))
		return;
	if (number != master->reload_slot && get_slot_worker(master, number) != NULL) {
		slot->refork_at = 0; /* the reload that wanted it is over, or has begun anew */
		return;
	}
	if (master->refork_count >= limit && allowed_at > master->now) {
		slot->refork_at = allowed_at;
		log_warn("worker died too fast: app_worker of slot %d waits %lldms", number,
		         (long long)(allowed_at - master->now));
	} else if (on_fork(master, fork_app_worker(master, number))) {
		*oldest = master->now;
		master->refork_count++;
		slot->reforks++;
	}
}

/* Re-fork a slot that no process holds: now, if that is allowed. A worker that crashes at
 * every start is forked again with back-off: after 1, 2, 4 ... seconds (D11). */
static void
refork(struct master *master, int number)
{
	struct slot *slot = &master->slots[number];
	int doublings = slot->failures < BACKOFF_DOUBLINGS ? slot->failures - 1 : BACKOFF_DOUBLINGS;

	if (!master->is_production || master->phase != PHASE_RUNNING || slot->refork_at != 0 ||
	    get_slot_worker(master, number) != NULL)
		return;
	slot->refork_at = master->now;
	if (slot->failures > 0)
		slot->refork_at += (int64_t)BACKOFF_FIRST << doublings;
	refork_due(master, number);
}

/* ---- what egg does not have: rolling reload (D12) ------------------------- */

/* A replaced worker gets SIGTERM when the agent has answered that it has read on, past the
 * egg-pids without that worker: so no message for the worker is on its way when its channel
 * ends (D50). */
static void
leave_later(struct master *master, struct process *worker)
{
	struct process *agent = &master->agent;

	tell(master, ROLE_AGENT, 0, "clutch-barrier", NULL);
	agent->barriers_told += agent->channel.descriptor != -1; /* a dead one hears none */
	worker->leave_after = agent->barriers_told;
	expect(master, worker, DEADLINE_BARRIER);
}

static bool
may_leave(const struct master *master, const struct process *process)
{
	return process->deadline == DEADLINE_BARRIER &&
	       (master->agent.barriers_heard >= process->leave_after || !is_alive(&master->agent));
}

static bool
is_replaced_one_left(const struct master *master, int slot)
{
	const struct process *worker;

	for (worker = master->worker_manager.workers; worker != NULL; worker = worker->next)
		if (worker->is_dev_reload && (slot == -1 || worker->slot == slot))
			return true;
	return false;
}

static void
end_reload(struct master *master, int *count)
{
	master->reload_slot = -1;
	master->reload_id = 0;
	(*count)++;
	save_status(master); /* the program that has ordered the reload waits for this */
}

/* A step of an ordered reload, if its time has come: replace the worker of the next slot.
 * A slot has one old worker at most: the next one is forked when that one has left. egg:
 * cluster-reload, all at once */
static void
reload_next(struct master *master)
{
	const struct process *worker;

	if (master->reload_slot == -1 || master->reload_id != 0)
		return;
	for (; master->reload_slot < master->options.workers; master->reload_slot++) {
		if (is_replaced_one_left(master, master->reload_slot))
			return;
		worker = get_slot_worker(master, master->reload_slot);
		if (worker != NULL && worker->state == STATE_LISTENING) {
			if (master->slots[master->reload_slot].refork_at == 0)
				on_fork(master, fork_app_worker(master, master->reload_slot));
			return; /* or refork_due does it, when a fork has failed */
		}
		/* else the slot's re-fork is new anyway */
	}
	if (is_replaced_one_left(master, -1))
		return;
	log_info("reload done");
	end_reload(master, &master->reloads_done);
}

/* ---- egg-cluster/lib/master.js ------------------------------------------- */

/* egg: this.ready(() => { ... }) */
static void
on_ready(struct master *master) /* :94 ready */
{
	const char *name = master->options.name;

	master->is_started = true; /* :95 */
	log_info("%s started%s%s (%lldms)", name, master->address[0] != '\0' ? " on " : "",
	         master->address, (long long)(master->now - master->start_time));
	log_info("to stop it: Ctrl-C, or kill %ld", (long)master->messenger.pid);
	tell(master, ROLE_PARENT, 0, "egg-ready", master->options_json); /* :109 */
	tell(master, ROLE_APP, 0, "egg-ready", master->options_json);    /* :119 */
	tell(master, ROLE_AGENT, 0, "egg-ready", master->options_json);  /* :124 */
	if (master->is_production)                                       /* :129 */
		master->check_at = master->now + CHECK_INTERVAL;
}

static void
fork_agent_worker(struct master *master) /* :281 */
{
	if (!fork_process(master, &master->agent, &master->agent_slot)) /* :283 fork */
		return;
	master->agent_slot.reforks += master->is_started;
	log_info("%s start", process_name(&master->agent));
}

/* All are forked before the first is announced, as in egg. */
static void
fork_app_workers(struct master *master) /* :286 */
{
	struct process *worker;
	int slot;

	for (slot = 0; slot < master->options.workers; slot++)
		fork_app_worker(master, slot); /* :288 fork */
	for (worker = master->worker_manager.workers; worker != NULL; worker = worker->next)
		if (worker->state == STATE_ONLINE)
			on_fork(master, worker);
}

static void
kill_agent_worker(struct master *master) /* :300 */
{
	log_info("kill agent worker with signal SIGTERM");
	terminate(master, &master->agent); /* :301 kill */
}

static void
kill_app_workers(struct master *master) /* :304 */
{
	struct process *worker;

	for (worker = master->worker_manager.workers; worker != NULL; worker = worker->next)
		terminate(master, worker); /* :305 kill */
}

static void
on_agent_exit(struct master *master) /* :315 */
{
	struct process *agent = &master->agent;
	struct process waiting = {
		.role = agent->role, .id = agent->id, .state = STATE_DEAD, .next = agent->next};
	const char *name = process_name(agent);

	if (master->phase != PHASE_RUNNING) /* :316 closed, D14 */
		return;
	tell_app_pids(master, 0);         /* :319 egg-pids */
	waiting.channel = agent->channel; /* D24: on_disconnect has opened it */
	*agent = waiting;                 /* :324 delete_agent */
	log_error("%s died (%s)", name, master->agent_slot.last_death); /* :326 */
	if (master->is_started) {                                       /* :334 */
		log_info("try to start a new agent_worker after 1s ...");
		master->agent_slot.refork_at =
			master->now + AGENT_REFORK_DELAY;                /* :336 setTimeout */
		tell(master, ROLE_PARENT, 0, "agent-worker-died", NULL); /* :342 */
	} else {                                                         /* :344 */
		log_error("%s start fail, exiting with code:1", name);
		fail(master, 1); /* :347 */
	}
}

static void
on_agent_start(struct master *master) /* :351 */
{
	struct process *agent = &master->agent;

	if (agent->state == STATE_ONLINE) {     /* and not told to leave meanwhile */
		agent->state = STATE_LISTENING; /* :352 started */
		agent->deadline = DEADLINE_NONE;
		clutch_trace("is ready", &agent->channel, NULL, "", 0);
	}
	/* D8: first which workers there are, then that all is ready */
	if (master->is_started) /* :369 D8 */
		tell_agent_pids(master);
	if (master->is_started) /* :355 isAllWorkerStarted */
		tell(master, ROLE_AGENT, 0, "egg-ready", master->options_json);
	tell_app_pids(master, 0);                       /* :364 egg-pids */
	tell(master, ROLE_APP, 0, "agent-start", NULL); /* :379 */
	log_info("%s started (%lldms)", process_name(agent),
	         (long long)(master->now - agent->forked_at));
	if (master->forked[ROLE_APP] == 0 && master->phase == PHASE_RUNNING)
		fork_app_workers(master); /* :142, D14 */
}

static void
on_app_exit(struct master *master, struct process *worker) /* :392 */
{
	struct slot *slot = &master->slots[worker->slot];
	const char *name = process_name(worker);
	int number = worker->slot, id = worker->id;
	bool never_ready = worker->disable_refork, replaced = worker->is_dev_reload;

	if (master->phase != PHASE_RUNNING) /* :393 closed */
		return;
	if (!replaced) /* :397 isDevReload */
		log_error("%s died (%s)%s", name, slot->last_death, in_slot);
	delete_worker(master, worker); /* :419 */
	tell_agent_pids(master);       /* :422 egg-pids */
	if (master->is_started) {      /* :427 isAllWorkerStarted */
		tell(master, ROLE_PARENT, 0, "app-worker-died", NULL);
	} else { /* :434 */
		log_error("%s start fail, exiting with code:1%s", name, in_slot);
		fail(master, 1); /* :438 */
		return;
	}
	slot->failures += never_ready && !replaced;
	if (id == master->reload_id) { /* D12 */
		log_error("reload given up: the new app_worker died before it was ready");
		end_reload(master, &master->reloads_given_up);
	}
	if (never_ready) /* the others were replaced when they disconnected, as in cfork */
		refork(master, number);
}

/* egg compares the port that the worker reports with its own (:458). Here each worker
 * accepts on the one listener that the master has bound: there is nothing to compare. */
static void
on_app_start(struct master *master, struct process *worker) /* :448 */
{
	struct slot *slot = &master->slots[worker->slot];
	struct process *old = get_slot_worker(master, worker->slot); /* or the worker itself */
	int i, remain = 0;

	worker->state = STATE_LISTENING;
	worker->deadline = DEADLINE_NONE;
	clutch_trace("is ready", &worker->channel, NULL, "", 0);
	if (old != worker) { /* D12 */
		old->is_dev_reload = true;
		old->state = STATE_LEAVING;
	}
	tell_agent_pids(master); /* :466 egg-pids */
	slot->started = true;    /* :471 startSuccessCount, D18 */
	for (i = 0; i < master->options.workers; i++)
		remain += !master->slots[i].started;
	log_info("%s started%s%s, remain %d (%lldms)%s", process_name(worker),
	         master->address[0] != '\0' ? " at " : "", master->address, remain,
	         (long long)(master->now - worker->forked_at), in_slot);
	if (master->is_started) /* :478 isAllWorkerStarted; D10: to the newcomer alone */
		tell(master, ROLE_APP, worker->worker_id, "egg-ready", master->options_json);
	worker->disable_refork = false;
	slot->failures = 0;
	if (old != worker)
		leave_later(master, old);
	if (worker->id == master->reload_id) {
		master->reload_id = 0;
		master->reload_slot++;
	}
	if (master->is_started || remain > 0 || /* :491 startSuccessCount */
	    master->phase != PHASE_RUNNING)
		return;
	on_ready(master); /* :513 ready */
}

static void
log_exit(const struct master *master) /* :521 onExit */
{
	if (master->pid_file != -1) /* :522 pidFile */
		remove_pid_file(master);
	if (master->phase == PHASE_CLOSED) /* else it has not even started */
		clutch_log(master->exit_code == 0 ? CLUTCH_INFO : CLUTCH_ERROR,
		           "[master] exit with code:%d", master->exit_code); /* :533 code */
}

static void
on_signal(struct master *master, const char *name) /* :536 */
{
	if (master->phase != PHASE_RUNNING) /* :537 closed, D15 */
		return;
	log_info("master is killed by signal %s, closing", name);
	close_cluster(master); /* :546 close */
}

/* An order during a reload begins it anew: its new worker may never get ready. */
static void
on_reload(struct master *master) /* :552 */
{
	struct process *worker;

	if (!master->is_started || master->phase != PHASE_RUNNING)
		return;
	log_info("reload workers...%s", master->reload_slot != -1 ? " anew" : ""); /* :553 */
	for (worker = master->worker_manager.workers; worker != NULL;
	     worker = worker->next) /* :554 */
		if (worker->id == master->reload_id && master->reload_id != 0) {
			worker->is_dev_reload = true; /* :556 */
			terminate(master, worker);
		}
	master->reload_slot = master->reload_id = 0; /* :558 cluster-reload, D12 */
}

static void
close_cluster(struct master *master) /* :561 close */
{
	master->reload_slot = -1;
	master->phase = PHASE_CLOSING_APPS; /* :562 closed */
	log_info("send kill SIGTERM to app workers, will exit with code:0 after %dms", /* :580 */
	         master->options.app_close_timeout);
	kill_app_workers(master); /* :583 */
}

/* When no app is alive, and no process group that a dead app has left behind (D27), it is the
 * agent's turn, and then the master's. egg: _doClose, close */
static void
do_close(struct master *master) /* :573 async */
{
	const struct process *worker = master->worker_manager.workers;

	while (worker != NULL && !is_alive(worker))
		worker = worker->next;
	if (master->phase == PHASE_RUNNING || worker != NULL || master->corpses != NULL)
		return;
	if (master->phase == PHASE_CLOSING_APPS) {
		master->phase = PHASE_CLOSING_AGENT;
		log_info("send kill SIGTERM to agent worker, will exit with code:0 after %dms",
		         master->options.agent_close_timeout); /* :587 */
		kill_agent_worker(master);                     /* :590 */
	}
	if (!is_alive(&master->agent))
		master->phase = PHASE_CLOSED; /* master.js:566 exit */
}

/* ---- the end of a channel ------------------------------------------------- */

/* A channel has ended; its process may live on. What waits for a worker that
 * leaves gracefully still goes out; any other process has closed for good.
 * egg: cluster.on('disconnect') */
static void
on_disconnect(struct master *master, struct process *process)
{
	bool again = process->state == STATE_DISCONNECTED; /* what waited could not be written */
	bool graceful = process->role == ROLE_APP && process->killed_for == NULL && !again;

	clutch_trace("ends", &process->channel, NULL, "", 0);
	channel_flush(&process->channel);
	if (!graceful || channel_pending(&process->channel) == 0)
		channel_close(&process->channel);
	if (again)
		return;
	if (process->role == ROLE_PARENT) {
		master->worker_manager.parent = NULL; /* messenger.js:64 has_parent */
		if (master->phase == PHASE_RUNNING && master->options.end_with_parent) { /* D32 */
			log_info("the parent is gone, closing");
			close_cluster(master);
		}
		return;
	}
	process->state = STATE_DISCONNECTED;
	if (master->phase != PHASE_RUNNING)
		return;
	expect(master, process, DEADLINE_DISCONNECTED);
	if (process->role == ROLE_AGENT) { /* D24: what is sent from now on is the next one's */
		channel_init(&process->channel, CHANNEL_QUEUE_MAX);
		process->channel.process = process;
		return;
	}
	log_info("%s disconnect%s", process_name(process), in_slot);
	tell_agent_pids(master); /* D9 */
	if (!process->disable_refork)
		refork(master, process->slot);
}

/* ---- the living speak ---------------------------------------------------- */

/* A process did what none may do, or cannot be served: it alone pays for it. */
static void
condemn(struct master *master, struct process *process, const char *why)
{
	log_error("%s %s: %s%s", process_name(process), why,
	          process->role == ROLE_PARENT ? "its channel is closed" : "killed", in_slot);
	process->killed_for = why;
	signal_process(process, SIGKILL);
	on_disconnect(master, process);
}

enum { PARENT = 1 << ROLE_PARENT, AGENT = 1 << ROLE_AGENT, APP = 1 << ROLE_APP };

/* The actions with a meaning for the master, and the roles that may say them to it (D5). The
 * first few are the master's own: no child sends them to any other process either. */
static const struct rule {
	const char *action;
	int roles;
	bool everywhere;
	bool once; /* while the process is not ready */
} rules[] = {
	{"agent-exit", 0, true, false},
	{"agent-start", AGENT, true, true},
	{"agent-worker-died", 0, true, false},
	{"app-exit", 0, true, false},
	{"app-start", 0, true, false},
	{"app-worker-died", 0, true, false},
	{"clutch-pause", PARENT | AGENT | APP, true, false},
	{"clutch-barrier", AGENT, true, false},
	{"clutch-resume", PARENT | AGENT | APP, true, false},
	{"clutch-status", PARENT | AGENT | APP, true, false},
	{"egg-pids", 0, true, false},
	{"egg-ready", 0, true, false},
	{"listening", APP, false, true},
	{"realport", 0, false, false},
	{"reload-worker", PARENT | AGENT, false, false},
};

static bool
may_say(const struct master *master, const struct process *process, const struct message *message)
{
	bool to_master = message->receiver_pid != 0
	                         ? message->receiver_pid == master->messenger.pid
	                         : message->to == ROLE_MASTER || (message->to == ROLE_NONE &&
	                                                          process->role == ROLE_PARENT);
	const struct rule *rule = rules, *end = rules + sizeof rules / sizeof rules[0];

	if (strchr("acelr", message->action[0]) == NULL) /* most are not worth a comparison */
		return true;
	while (rule < end && strcmp(message->action, rule->action) != 0)
		rule++;
	if (rule == end || (!to_master && !rule->everywhere))
		return true;
	return to_master && (rule->roles >> process->role & 1) != 0 &&
	       (!rule->once || process->state != STATE_LISTENING);
}

/* this.on(...): what is routed to the master itself. */
static void
emit(void *arg, const struct message *message)
{
	struct master *master = arg;
	struct process *sender = master->messenger.sender;
	const char *action = message->action;

	if (strcmp(action, "agent-start") == 0) /* master.js:135 */
		on_agent_start(master);
	else if (strcmp(action, "listening") == 0 &&
	         sender->state == STATE_ONLINE) /* master.js:137 app-start */
		on_app_start(master, sender);
	else if (strcmp(action, "reload-worker") == 0) /* master.js:138 */
		on_reload(master);
	else if (strcmp(action, "clutch-status") == 0 && /* D52; an answer outgrows its question */
	         !process_is_above(sender, CHANNEL_HIGH_WATER))
		tell(master, sender->role, sender->worker_id, action, get_status(master));
	else if (strcmp(action, "clutch-barrier") == 0) /* D50 */
		sender->barriers_heard++;
	else if (strcmp(action, "clutch-pause") == 0 || strcmp(action, "clutch-resume") == 0)
		sender->paused = strcmp(action, "clutch-pause") == 0;
}

static void
hear(struct master *master, struct process *process)
{
	enum peer peer = channel_read(&process->channel);
	struct message message;
	int found;

	while ((found = channel_next(&process->channel, &message)) == 1) {
		if (may_say(master, process, &message)) {
			master_messenger_receive(&master->messenger, process, &message);
		} else if (!process->refused) {
			log_error("%s may not send %s: refused, as are more of this kind%s",
			          process_name(process), message.action, in_slot);
			process->refused = true;
		}
		if (message.handle != -1)
			close(message.handle);
	}
	if (found == -1 || peer == PEER_BROKEN) /* D2 */
		condemn(master, process,
		        errno == ENOMEM ? "sends more than there is memory for"
		                        : "broke the protocol");
	else if (peer == PEER_GONE)
		on_disconnect(master, process);
}

/* ---- the dead are counted ------------------------------------------------ */

/* How a process died: "code: 1, signal: null" (D19). */
static void
describe_death(struct slot *slot, const siginfo_t *info, const struct process *process)
{
	const char *killed_for = process->killed_for;
	bool exited = info->si_code == CLD_EXITED;
	char number[16];
	const char *name = info->si_status == SIGKILL   ? "SIGKILL"
	                   : info->si_status == SIGTERM ? "SIGTERM"
	                                                : number;

	snprintf(number, sizeof number, "%d", info->si_status);
	snprintf(slot->last_death, sizeof slot->last_death, "code: %s, signal: %s%s%s",
	         exited ? number : "null", exited ? "null" : name, killed_for != NULL ? ", " : "",
	         killed_for != NULL ? killed_for : "");
	clutch_trace("dies", &process->channel, NULL, slot->last_death, 0);
}

/* What a process has started must not outlive it: its group gets SIGTERM, and SIGKILL at
 * the deadline. The zombie is moved out of its group, so that the group's end shows, and
 * is reaped after that (D51). Without memory to remember it the group gets no time. egg:
 * killChildren */
static void
bury(struct master *master, const struct process *process)
{
	struct corpse *corpse = malloc(sizeof *corpse);
	bool killed = process->deadline == DEADLINE_KILLED; /* the group, too */
	int64_t deadline =
		master->now + (killed ? KILL_TIME : timeout_of(master, process, DEADLINE_LEAVE));
	pid_t pid = process->worker_id;

	if (process->deadline == DEADLINE_LEAVE && process->deadline_at < deadline)
		deadline = process->deadline_at;
	setpgid(pid, getpgrp());
	kill(-pid, corpse != NULL ? SIGTERM : SIGKILL);
	if (corpse == NULL) {
		waitpid(pid, NULL, 0);
		return;
	}
	*corpse = (struct corpse){master->corpses, pid, deadline, killed};
	master->corpses = corpse;
}

/* Look at the dead without reaping them. */
static int
wait_for_death(idtype_t type, pid_t pid, siginfo_t *info)
{
	int result;

	memset(info, 0, sizeof *info);
	AGAIN(result, waitid(type, (id_t)pid, info, WEXITED | WNOHANG | WNOWAIT));
	return result;
}

/* A child, or a corpse that is kept? */
static bool
is_own(const struct master *master, pid_t pid)
{
	const struct process *process = &master->agent;
	const struct corpse *corpse = master->corpses;

	while (process != NULL && process->worker_id != pid)
		process = process->next;
	while (corpse != NULL && corpse->pid != pid)
		corpse = corpse->next;
	return process != NULL || corpse != NULL;
}

/* Process 1 of a container inherits every orphan there, and reaps them: all, or those of
 * a process group. A dead child, or a corpse, hides the orphans behind it for now. */
static void
reap_orphans(struct master *master, idtype_t type, pid_t group)
{
	siginfo_t info;

	while (master->messenger.pid == 1 && wait_for_death(type, group, &info) == 0 &&
	       info.si_pid != 0 && !is_own(master, info.si_pid))
		waitpid(info.si_pid, NULL, 0);
}

/* Reap each corpse whose group is gone, or has not gone for SIGKILL: an init may not reap
 * what it adopts. */
static void
reap_corpses(struct master *master)
{
	struct corpse *corpse, **link = &master->corpses;
	bool group_lives;

	while ((corpse = *link) != NULL) {
		reap_orphans(master, P_PGID, corpse->pid); /* they would keep the group */
		group_lives = kill(-corpse->pid, 0) == 0 || errno == EPERM;
		if (group_lives && !corpse->killed && corpse->deadline <= master->now) {
			kill(-corpse->pid, SIGKILL);
			corpse->killed = true;
			corpse->deadline = master->now + KILL_TIME;
		}
		if (group_lives && corpse->deadline > master->now) {
			await(master, master->now + GROUP_CHECK);
			link = &corpse->next;
			continue;
		}
		waitpid(corpse->pid, NULL, 0);
		clutch_trace("reaps", NULL, NULL, "pid", (long)corpse->pid);
		await(master, master->now); /* it may have been the last one */
		*link = corpse->next;
		free(corpse);
		reap_orphans(master, P_ALL, 0);
	}
}

/* A process is dead: its last words, then the end of its channel, then its end. Last words
 * are finite: what was in the socket, not what a child of it goes on writing there. */
static void
on_process_exit(struct master *master, struct process *process, const siginfo_t *info)
{
	struct channel *channel = &process->channel;
	uint64_t before, first = channel->bytes_in;
	int64_t deadline = 0;
	bool more = true;

	if (process->state == STATE_ONLINE)
		process->state = STATE_LEAVING; /* it cannot get ready any more, nor replace any */
	while (channel->descriptor != -1 && more && channel->bytes_in - first < LAST_WORDS) {
		before = channel->bytes_in;
		hear(master, process);
		more = channel->bytes_in > before ||
		       (channel_take_starved(channel) && clutch_retry(&deadline));
	}
	if (channel->descriptor != -1)
		on_disconnect(master, process);
	if (channel->descriptor != -1) /* something still waited there */
		channel_close(channel);
	describe_death(process->role == ROLE_AGENT ? &master->agent_slot
	                                           : &master->slots[process->slot],
	               info, process);
	process->state = STATE_DEAD;
	if (info->si_pid != 0)
		bury(master, process);
	if (process->role == ROLE_AGENT)
		on_agent_exit(master);
	else
		on_app_exit(master, process);
}

static void
reap_all(struct master *master)
{
	struct process *process, *next;
	siginfo_t info;

	for (process = &master->agent; process != NULL; process = next) {
		next = process->next;
		/* -1: another part of the program has reaped it, so it is dead, too */
		if (is_alive(process) &&
		    (wait_for_death(P_PID, process->worker_id, &info) == -1 || info.si_pid != 0))
			on_process_exit(master, process, &info);
	}
	reap_orphans(master, P_ALL, 0);
}

/* ---- the clock ----------------------------------------------------------- */

/* A process has had its time: the table at `struct process` says what follows. */
static void
on_deadline(struct master *master, struct process *process)
{
	enum deadline deadline = process->deadline;

	process->deadline = DEADLINE_NONE;
	if (deadline == DEADLINE_START) { /* D25 */
		log_error("%s start timeout%s", process_name(process), in_slot);
		process->killed_for = "start timeout";
	}
	if (deadline < DEADLINE_LEAVE) {
		terminate(master, process);
		return;
	}
	if (process->killed_for == NULL)
		process->killed_for =
			deadline == DEADLINE_DEAF ? "reads no more" : "did not leave in time";
	signal_process(process, SIGKILL); /* D3 */
	if (is_alive(process))
		expect(master, process, DEADLINE_KILLED);
}

/* While a process has a deadline, the clock runs each second, so that it notices when the
 * master itself was stopped (see advance_clock). */
static void
run_clock(struct master *master)
{
	struct process *process;
	bool trim = await(master, master->trim_at);
	int slot;

	for (process = &master->parent; process != NULL; process = process->next) {
		if (process->deadline != DEADLINE_NONE || process->full_since != 0)
			await(master, master->now + LATE);
		if (process->full_since != 0)
			await(master, process->full_since + master->options.stuck_timeout);
		if ((process->deadline != DEADLINE_NONE && await(master, process->deadline_at)) ||
		    may_leave(master, process))
			on_deadline(master, process);
		if (trim)
			channel_trim(&process->channel);
	}
	if (trim)
		master->trim_at = 0; /* prepare sets it again, if a queue keeps memory */
	reap_corpses(master);
	if (master->phase != PHASE_RUNNING)
		return;
	if (await(master, master->agent_slot.refork_at))
		fork_agent_worker(master);
	for (slot = 0; slot < master->options.workers; slot++)
		refork_due(master, slot);
	if (await(master, master->check_at))
		check_alive(master);
}

/* The whole cluster may have been stopped (a container that was paused, a laptop that
 * slept): then no process had the time that has passed, and no deadline comes by it. */
static void
advance_clock(struct master *master, int timeout)
{
	int64_t passed = clutch_now() - master->lost - master->now;

	if (timeout >= 0 && passed >= timeout + LATE)
		master->lost += passed;
	else
		master->now += passed;
}

/* ---- the loop ------------------------------------------------------------ */

/* Does the process wait for another one that is itself read, or held? A process for which
 * others wait has the stuck timeout from now on, whatever the length of its queue. */
static bool
is_held(struct master *master, const struct process *process)
{
	struct process *other;
	bool held = false;

	for (other = &master->parent; other != NULL; other = other->next) {
		if (!process_waits_for(process, other))
			continue;
		if (other->full_since == 0)
			other->full_since = master->now;
		held = held || other->waits_since == 0 || other->held;
	}
	return held;
}

/* Which processes are held up by others that can drain their queues? The rest of those that
 * wait are waiting for each other: a deadlock, in which none of them will ever read. */
static void
find_held(struct master *master)
{
	struct process *process;
	bool found = true;

	for (process = &master->parent; process != NULL; process = process->next)
		process->held = false;
	while (found) {
		found = false;
		for (process = &master->parent; process != NULL; process = process->next)
			if (process->waits_since != 0 && !process->held && is_held(master, process))
				process->held = found = true;
	}
}

/* A queue that is full for too long costs its owner its life, before it harms others. The
 * clock does not run for a process that wants a pause, nor for one that is held up by others.
 * A process that was told to end has a deadline of its own. A process that has closed its
 * reading end is expected to exit. */
static void
watch_queue(struct master *master, struct process *process)
{
	bool stopped = process->paused || process->held || process->deadline >= DEADLINE_LEAVE;

	if (process->channel.write_closed && process->deadline == DEADLINE_NONE &&
	    is_alive(process))
		expect(master, process, DEADLINE_DEAF);
	if (!process_is_above(process, CHANNEL_LOW_WATER))
		process->full_since = 0;
	else if (stopped ? process->full_since != 0
	                 : process->full_since == 0 &&
	                           process_is_above(process, CHANNEL_HIGH_WATER))
		process->full_since = master->now;
	if (process->full_since != 0 &&
	    master->now - process->full_since >= master->options.stuck_timeout)
		process->killed_for = "is stuck, its queue is full";
	if (process->killed_for != NULL && process->deadline < DEADLINE_LEAVE &&
	    process->state != STATE_DISCONNECTED)
		condemn(master, process, process->killed_for);
}

/* Say once what is lost, and why. */
static void
watch_losses(struct process *process)
{
	if (process->dropped > 0 && !process->drop_logged)
		log_error("%s is not there and its queue is full: messages for it are dropped%s",
		          process_name(process), in_slot);
	process->drop_logged = process->dropped > 0;
	if (process->channel.handles_lost > 0 && !process->handle_logged)
		log_error("%s: no descriptor or memory for a handle: its message goes without it, "
		          "as do more of this kind%s",
		          process_name(process), in_slot);
	process->handle_logged = process->channel.handles_lost > 0;
}

/* Say what to poll for. A descriptor without events is left out, or its hangup would be
 * reported again and again. */
static void
prepare(struct master *master, struct process *process, struct pollfd *entry)
{
	struct channel *channel = &process->channel;

	entry->fd = -1;
	entry->events = 0;
	if (channel->queue_size > 0 && master->trim_at == 0)
		master->trim_at = master->now + TRIM_INTERVAL;
	if (channel->descriptor == -1)
		return;
	if (channel_take_starved(channel)) {
		await(master, master->now + 10);
		return;
	}
	if (process->state != STATE_DISCONNECTED &&
	    process_stop_waiting(process, &master->worker_manager))
		entry->events |= POLLIN;
	if (channel_pending(channel) > 0)
		entry->events |= POLLOUT;
	if (entry->events != 0)
		entry->fd = channel->descriptor;
	else if (process->state == STATE_DISCONNECTED) /* all is written */
		channel_close(channel);
}

/* Flush all queues before asking which processes may be read: a flush can release a
 * sender. */
static size_t
prepare_all(struct master *master)
{
	struct process *process;
	size_t count = 1;

	master->next_at = 0;
	for (process = &master->parent; process != NULL; process = process->next) {
		channel_flush(&process->channel);
		watch_losses(process);
		if (process->channel.descriptor != -1)
			watch_queue(master, process);
		else
			process->full_since = 0; /* its queue is nobody's any more */
	}
	find_held(master);
	master->set[0].fd = master->wake;
	master->set[0].events = POLLIN;
	for (process = &master->parent; process != NULL; process = process->next)
		prepare(master, process, &master->set[count++]);
	return count;
}

/* Hear the processes that poll has found to have something to say. */
static void
hear_all(struct master *master, size_t count)
{
	struct process *process = &master->parent;
	size_t i;

	for (i = 1; i < count; i++) { /* a fork meanwhile makes the set longer, and moves it */
		if ((master->set[i].revents & ~POLLOUT) != 0 &&
		    master->set[i].fd == process->channel.descriptor)
			hear(master, process);
		process = process->next;
	}
}

/* Has this signal come since the last call? */
static bool
take(int number)
{
	if (got[number] == 0)
		return false; /* if it comes now, it stays for the next turn */
	got[number] = 0;
	clutch_trace("is signaled", NULL, NULL, "signal", number);
	return true;
}

static void
obey(struct master *master)
{
	const char *line;

	if (take(SIGTERM))
		on_signal(master, "SIGTERM");
	if (take(SIGINT))
		on_signal(master, "SIGINT");
	if (take(SIGQUIT))
		on_signal(master, "SIGQUIT");
	if (take(SIGUSR1)) {
		for (line = strtok(get_status(master), "\n"); line; line = strtok(NULL, "\n"))
			log_info("status %s", line);
		save_status(master);
	}
	if (take(SIGUSR2))
		on_reload(master);
}

static void
loop(struct master *master)
{
	int64_t left;
	size_t count;
	int timeout;

	for (;;) {
		do_close(master);
		reload_next(master);
		if (master->phase == PHASE_CLOSED)
			return;
		count = prepare_all(master);
		run_clock(master);
		left = master->next_at - master->now;
		timeout = left < 0 ? 0 : left > INT_MAX ? INT_MAX : (int)left;
		if (master->next_at == 0)
			timeout = -1;
		if (poll(master->set, count, timeout) == -1)
			count = 0; /* EINTR, ENOMEM: the next turn asks again */
		advance_clock(master, timeout);

		hear_all(master, count); /* the living speak */
		if (count > 0 && master->set[0].revents != 0)
			clutch_wake_drain(master->wake);
		if (take(SIGCHLD)) /* the dead are counted */
			reap_all(master);
		obey(master);
	}
}

/* ---- start_cluster ------------------------------------------------------- */

/* The option's value if it is given, or the environment's, or the default. */
static const char *
parse_text(const char *option, const char *name, const char *otherwise)
{
	if (option == NULL)
		option = getenv(name);
	return option != NULL && option[0] != '\0' ? option : otherwise;
}

/* The name of an option that no variable sets has a dot. */
static int
parse_number(int *option, const char *name, int most, int otherwise)
{
	const char *text = strchr(name, '.') == NULL ? getenv(name) : NULL;
	char given[16], *end;
	long value;

	if (*option == 0 && (text == NULL || text[0] == '\0')) {
		*option = otherwise;
		return 0;
	}
	if (*option != 0) {
		snprintf(given, sizeof given, "%d", *option);
		text = given;
	}
	value = strtol(text, &end, 10);
	if (end == text || *end != '\0' || value < 1 || value > most) {
		log_error("%s=%s is no good: give a number from 1 to %d", name, text, most);
		return -1;
	}
	*option = (int)value;
	return 0;
}

static int
processors(void)
{
	long count = 1;

#ifdef _SC_NPROCESSORS_ONLN
	count = sysconf(_SC_NPROCESSORS_ONLN);
#endif
	return count < 1 ? 1 : count > CLUTCH_WORKERS_MAX ? CLUTCH_WORKERS_MAX : (int)count;
}

/* Each process has a descriptor in the master: is there one for all, before the first fork? */
static int
check_descriptors(int workers)
{
	int wanted = workers + OTHER_DESCRIPTORS;
	long limit = sysconf(_SC_OPEN_MAX);

	if (limit == -1 || limit >= wanted)
		return 0;
	log_error("%d workers need %d descriptors, and the limit is %ld: raise it (ulimit -n), "
	          "or start fewer workers",
	          workers, wanted, limit);
	return -1;
}

/* egg: lib/utils/options.js */
static int
parse_options(struct master *master, const struct options *given)
{
	struct options *options = &master->options;
	int legacy = 0;

	*options = *given;
	if (options->parent != 0) {
		if (channel_attach(&master->parent.channel, options->parent) == -1) {
			log_error("options.parent=%d: %s", options->parent, strerror(errno));
			return -1;
		}
		master->parent.state = STATE_LISTENING;
		master->worker_manager.parent = &master->parent;
	}
	if (options->log != 0 && fcntl(options->log, F_GETFL) == -1) {
		log_error("options.log=%d: %s", options->log, strerror(errno));
		return -1;
	}
	clutch_logging.descriptor = options->log;
	if (!clutch_log_set(parse_text(NULL, "CLUTCH_LOG", "info"))) {
		log_error("CLUTCH_LOG=%s is no good: give error, warn or info",
		          getenv("CLUTCH_LOG"));
		return -1;
	}
	if (options->name == NULL)
		options->name = "egg";
	options->env = parse_text(options->env, "EGG_SERVER_ENV", "prod");
	options->host = parse_text(options->host, "HOST", "127.0.0.1");
	if (parse_number(&options->workers, "EGG_WORKERS", CLUTCH_WORKERS_MAX, processors()) ||
	    (options->port >= 0 && parse_number(&options->port, "PORT", 65535, 7001)) ||
	    parse_number(&options->worker_start_timeout, "options.worker_start_timeout", INT_MAX,
	                 600000) ||
	    parse_number(&options->stuck_timeout, "options.stuck_timeout", INT_MAX,
	                 CLUTCH_STUCK_TIMEOUT) ||
	    parse_number(&options->graceful_timeout, "options.graceful_timeout", INT_MAX,
	                 CLUTCH_GRACEFUL_TIMEOUT) ||
	    parse_number(&options->refork_limit, "options.refork_limit", 65536, 59) ||
	    parse_number(&legacy, "EGG_MASTER_CLOSE_TIMEOUT", INT_MAX, 5000) ||
	    parse_number(&options->app_close_timeout, "EGG_APP_CLOSE_TIMEOUT", INT_MAX, legacy) ||
	    parse_number(&options->agent_close_timeout, "EGG_AGENT_CLOSE_TIMEOUT", INT_MAX, legacy))
		return -1;
	master->is_production =
		strcmp(options->env, "local") != 0 && strcmp(options->env, "unittest") != 0;
	snprintf(master->options_json, sizeof master->options_json, "{\"workers\":%d}",
	         options->workers);
	return check_descriptors(options->workers);
}

union address {
	struct sockaddr any;
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;
	struct sockaddr_un path;
};

/* HOST and PORT as an address: its length, or 0. */
static socklen_t
parse_address(const struct options *options, union address *address)
{
	const char *host = strcmp(options->host, "localhost") == 0 ? "127.0.0.1" : options->host;
	const in_port_t port = htons((in_port_t)(options->port > 0 ? options->port : 0));

	memset(address, 0, sizeof *address);
	if (host[0] == '/' && strlen(host) < sizeof address->path.sun_path) {
		address->path.sun_family = AF_UNIX;
		memcpy(address->path.sun_path, host, strlen(host) + 1);
		make_plain(address->path.sun_path);
		if (strcmp(address->path.sun_path, host) == 0) /* it can stand in JSON */
			return sizeof address->path;
	}
	if (inet_pton(AF_INET, host, &address->v4.sin_addr) == 1) {
		address->v4.sin_family = AF_INET;
		address->v4.sin_port = port;
		return sizeof address->v4;
	}
	if (inet_pton(AF_INET6, host, &address->v6.sin6_addr) == 1) {
		address->v6.sin6_family = AF_INET6;
		address->v6.sin6_port = port;
		return sizeof address->v6;
	}
	log_error("HOST=%s is no good: give a numeric address, localhost, or the path of a socket",
	          host);
	return 0;
}

/* Remove the socket file of a master that was killed: one of this user's, to which no process
 * listens. A file that refuses for the first time may belong to a master that is about to
 * listen: *refused then holds the file's number, and the next call removes the file. */
static void
remove_stale(const union address *address, socklen_t length, ino_t *refused)
{
	const char *path = address->path.sun_path;
	struct stat status;
	int client;

	if (address->any.sa_family != AF_UNIX || lstat(path, &status) == -1 ||
	    !S_ISSOCK(status.st_mode) || status.st_uid != geteuid())
		return;
	client = socket(AF_UNIX, SOCK_STREAM, 0);
	if (client != -1 && clutch_set_flags(client) == 0 &&
	    connect(client, &address->any, length) == -1 && errno == ECONNREFUSED) {
		if (*refused == status.st_ino)
			unlink(path);
		*refused = status.st_ino;
	}
	close(client);
}

/* The apps of a master that was killed have the port until they have left. Each try at a path
 * is a connection for the process that listens there, so that the tries become rare. */
static int
bind_patiently(const struct master *master, const union address *address, socklen_t length)
{
	int64_t deadline = clutch_now() + PORT_PATIENCE, left;
	int pause = 0, other = (int)(getpid() % 32); /* not in step with another */
	ino_t refused = 0;

	while (bind(master->listener, &address->any, length) == -1) {
		left = deadline - clutch_now();
		if (errno != EADDRINUSE || left <= 0)
			return -1;
		if (pause > 0)
			poll(NULL, 0, pause + other < left ? pause + other : (int)left);
		else if (address->any.sa_family != AF_UNIX)
			log_info("port %d is in use, waiting up to %dms", master->options.port,
			         PORT_PATIENCE);
		pause = pause == 0 ? 32 : pause < 512 ? 2 * pause : pause;
		remove_stale(address, length, &refused);
	}
	return 0;
}

static int
bind_listener(struct master *master, bool port_is_fixed)
{
	const struct options *options = &master->options;
	union address address;
	socklen_t length = parse_address(options, &address);
	bool is_path = address.any.sa_family == AF_UNIX;
	char where[128];
	int on = 1;

	if (length == 0)
		return -1;
	snprintf(where, sizeof where, is_path ? "%s" : "%s port %d", options->host, options->port);
	master->listener = socket(address.any.sa_family, SOCK_STREAM, 0);
	if (master->listener != -1 &&
	    setsockopt(master->listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == 0 &&
	    bind_patiently(master, &address, length) == 0 &&
	    (!is_path || lstat(options->host, &master->socket) == 0))
		return 0;
	if (errno != EADDRINUSE)
		log_error("cannot listen on %s: %s", where, strerror(errno));
	else
		log_error("%s is in use: stop what listens there, or %s", where,
		          is_path         ? "remove it"
		          : port_is_fixed ? "choose another port"
		                          : "choose another port, as in PORT=7002");
	return -1;
}

/* The address in egg's words: http://127.0.0.1:7001, or a path. egg: getAddress */
static void
describe_listener(struct master *master, const union address *address)
{
	bool is_v6 = address->any.sa_family == AF_INET6;
	char host[INET6_ADDRSTRLEN] = "";

	if (address->any.sa_family == AF_UNIX) {
		master->options.port = 0;
		snprintf(master->address, sizeof master->address, "%s", address->path.sun_path);
		make_plain(master->address); /* options.listener may have any path */
	} else {
		master->options.port = ntohs(is_v6 ? address->v6.sin6_port : address->v4.sin_port);
		inet_ntop(address->any.sa_family,
		          is_v6 ? (const void *)&address->v6.sin6_addr : &address->v4.sin_addr,
		          host, sizeof host);
		is_v6 = is_v6 && strcmp(host, "::") != 0;
		if (strcmp(host, "0.0.0.0") == 0 || strcmp(host, "::") == 0)
			snprintf(host, sizeof host, "127.0.0.1");
		snprintf(master->address, sizeof master->address,
		         is_v6 ? "http://[%s]:%d" : "http://%s:%d", host, master->options.port);
	}
	snprintf(master->options_json, sizeof master->options_json,
	         "{\"workers\":%d,\"port\":%d,\"address\":\"%s\",\"protocol\":\"http\"}",
	         master->options.workers, master->options.port, master->address);
}

/* The shared port, before any fork: a master that cannot have it says so at once (D19). */
static int
open_listener(struct master *master, const struct options *given)
{
	union address address = {.any = {0}};
	socklen_t length = sizeof address;

	if (given->listener != 0)
		master->listener = fcntl(given->listener, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
	else if (bind_listener(master, given->port > 0) == -1)
		return -1;
	if (clutch_set_flags(master->listener) == -1 || listen(master->listener, SOMAXCONN) == -1 ||
	    getsockname(master->listener, &address.any, &length) == -1) {
		log_error("cannot listen on %s: %s",
		          given->listener != 0 ? "options.listener" : master->options.host,
		          strerror(errno));
		return -1;
	}
	describe_listener(master, &address);
	return 0;
}

/* The master removes only the socket file that it has made. */
static void
remove_socket(const struct master *master)
{
	struct stat now;

	if (master->socket.st_nlink > 0 && lstat(master->address, &now) == 0 &&
	    now.st_ino == master->socket.st_ino && now.st_dev == master->socket.st_dev)
		unlink(master->address);
}

/* The places of the apps: what is sent to an app that is not forked yet waits there (D23). */
static int
open_places(struct master *master)
{
	int slot;

	master->slots = calloc((size_t)master->options.workers, sizeof *master->slots);
	master->reforks = calloc((size_t)master->options.refork_limit, sizeof *master->reforks);
	if (master->slots == NULL || master->reforks == NULL)
		return -1;
	for (slot = 0; slot < master->options.workers; slot++)
		if (new_worker(master, slot) == NULL)
			return -1;
	return 0;
}

/* Take the signals over. */
static int
open_signals(struct master *master, const sigset_t *mask)
{
	sigset_t set = *mask;
	size_t i;

	master->wake = clutch_wake_open();
	if (master->wake == -1)
		return -1;
	for (i = 0; i < CAUGHT; i++)
		sigaction(caught[i].number, NULL, &master->inherited[i]);
	master->mask = *mask;
	master->alarm = alarm(0);
	clutch_log_alarm = true;
	for (i = 0; i < CAUGHT; i++) {
		got[caught[i].number] = 0;
		sigdelset(&set, caught[i].number);
		if ((master->inherited[i].sa_handler != SIG_IGN || !caught[i].may_be_ignored) &&
		    clutch_catch_signal(caught[i].number, caught[i].handler) == -1)
			return -1;
	}
	return sigprocmask(SIG_SETMASK, &set, NULL);
}

/* Give them back. */
static void
close_signals(struct master *master)
{
	size_t i;

	clutch_wake_close();
	if (!clutch_log_alarm)
		return;
	clutch_log_alarm = false;
	alarm(master->alarm);
	for (i = 0; i < CAUGHT; i++)
		sigaction(caught[i].number, &master->inherited[i], NULL);
	sigprocmask(SIG_SETMASK, &master->mask, NULL);
}

/* Open descriptors 0 to 2, where they are closed, so that no channel becomes one of them:
 * what is printed would go there. */
static void
fill_standard_descriptors(void)
{
	int descriptor;

	do
		descriptor = open("/dev/null", O_RDWR);
	while (descriptor != -1 && descriptor <= STDERR_FILENO);
	if (descriptor != -1)
		close(descriptor);
}

static int
run_cluster(const struct options *given, const sigset_t *mask)
{
	struct master master = {.listener = -1, .pid_file = -1, .reload_slot = -1, .exit_code = 1};
	const struct clutch_logging before = clutch_logging;

	master.now = master.start_time = clutch_now();
	master.worker_manager.agent = &master.agent;
	master.messenger =
		(struct master_messenger){&master.worker_manager, emit, &master, getpid(), NULL, 0};
	master.parent.next = &master.agent;
	master.parent.role = ROLE_PARENT;
	master.agent.role = ROLE_AGENT;
	channel_init(&master.parent.channel, 0);
	channel_init(&master.agent.channel, 0); /* what is sent before it is forked waits (D24) */
	master.parent.channel.process = &master.parent;
	master.agent.channel.process = &master.agent;
	clutch_trace_init(ROLE_MASTER, 0);
	fflush(stdout); /* or each child would print it again */
	fflush(stderr);
	if (parse_options(&master, given) == 0 &&
	    (given->connection == NULL || open_listener(&master, given) == 0) &&
	    open_pid_file(&master) == 0) {
		if (open_places(&master) == -1 || open_signals(&master, mask) == -1) {
			log_error("cannot start: %s", strerror(errno));
		} else {
			master.exit_code = 0;
			master.now = clutch_now(); /* the port may have taken its time */
			fork_agent_worker(&master);
			loop(&master);
		}
	}
	remove_socket(&master);
	log_exit(&master);
	channel_drain(&master.parent.channel, 1000);
	release(&master, true);
	close_signals(&master);
	clutch_logging = before;
	return master.exit_code;
}

int
start_cluster(const struct options *given)
{
	sigset_t mask;

	fill_standard_descriptors();
	sigprocmask(SIG_BLOCK, NULL, &mask);
	return run_cluster(given, &mask);
}

/* In the master-to-be: all signals are blocked, so that none is lost before the master
 * has its handlers. */
static void
become_master(const struct options *given, int parent, const sigset_t *mask)
{
	struct options options = *given;

	drop_handlers();
	messenger_disown();
	clutch_trace_init(ROLE_MASTER, 0);
	if (options.in_child != NULL)
		options.in_child(ROLE_MASTER, options.arg);
	options.parent = parent;
	clutch_process_exit(run_cluster(&options, mask));
}

struct messenger *
fork_cluster(const struct options *options, pid_t *pid)
{
	struct messenger *parent;
	sigset_t mask;
	int pair[2];

	fill_standard_descriptors();
	if (channel_pair(pair) == -1)
		return NULL;
	parent = messenger_open(pair[0], ROLE_PARENT);
	if (parent == NULL) {
		close(pair[0]);
		close(pair[1]);
		return NULL;
	}
	fflush(stdout);
	fflush(stderr);
	*pid = fork_blocked(&mask);
	if (*pid == 0)
		become_master(options, pair[1], &mask);
	close(pair[1]);
	if (*pid == -1) {
		messenger_close(parent);
		return NULL;
	}
	return parent;
}
