/*
 * The master: it starts the others, relays what they say, and outlives them.
 *
 * egg: egg-cluster/lib/master.js, lib/utils/manager.js, lib/utils/terminate.js,
 * lib/utils/mode/impl/process/agent.js and app.js, npm cfork
 *
 *	start_cluster     parse_options, bind, lock the pid file, fork the agent
 *	  agent-start     on_agent_start: fork the apps
 *	    listening     on_app_start: when all are, egg-ready
 *	loop              the living speak; the dead are counted; orders; the clock
 *	  disconnect      on_disconnect: a replacement for an app, at once
 *	  exit            on_app_exit, on_agent_exit: the agent's after 1 s
 *	  SIGTERM         close_cluster: apps, then agent, then itself
 *
 * Who is alive is what the kernel says; who speaks is whose channel it is. What
 * a message claims is never believed (D5).
 */
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
#include <sys/wait.h>
#include <unistd.h>

#define AGENT_REFORK_DELAY 1000 /* master.js:339 */
#define CHECK_INTERVAL 10000    /* manager.js:78 */
#define CHECK_EXCEPTIONS 3      /* manager.js:74 */
#define REFORK_LIMIT 59         /* cfork: the 60th within the duration is refused */
#define REFORK_DURATION 60000   /* cfork */
#define BACKOFF_FIRST 1000      /* D11: 1, 2, 4 ... 32 s */
#define BACKOFF_DOUBLINGS 5
#define FORK_RETRY 1000 /* fork failed: no process or memory left */
#define KILL_RETRY 1000 /* kill failed */
#define KILL_TIME 200   /* in which SIGKILL has ended a process */
#define GROUP_CHECK 50  /* how soon a process group's end is noticed */
#define PID_SIZE 12     /* a pid in JSON, and its comma, in bytes */

/* The signals that are the master's while it runs. */
static const int caught[] = {SIGTERM, SIGINT, SIGQUIT, SIGCHLD, SIGUSR1, SIGUSR2, SIGPIPE};
enum { CAUGHT = sizeof caught / sizeof caught[0] };

enum phase {
	PHASE_RUNNING,
	PHASE_CLOSING_APPS,
	PHASE_CLOSING_AGENT,
	PHASE_FAILING, /* given up: the children see the end of their channels */
	PHASE_CLOSED
};

/* The place of one app worker, kept by its replacements. */
struct slot {
	int64_t refork_at; /* 0: not waiting for one */
	int failures;      /* deaths in a row before it was ready */
	int reforks;
	char last_death[64];
};

struct master {
	struct options options; /* every default filled in */
	char options_json[160]; /* what egg-ready carries */
	char address[80];       /* http://host:port, or empty */
	char *pids;             /* room for egg-pids, with all of them */
	size_t pids_size;
	bool is_production;
	struct worker_manager worker_manager;
	struct master_messenger messenger;
	struct process parent, agent;
	struct slot agent_slot, *slots;
	int listener, pid_file;
	struct stat pid_file_status;

	enum phase phase;
	int exit_code;
	bool is_started;            /* egg-ready was sent */
	bool is_all_worker_started; /* the same, seen from the apps */
	int start_success_count;
	int agent_id, app_id; /* forked so far */
	int reload_slot;      /* the next one of an ordered reload, or -1 */
	int reloads_done, reloads_given_up;

	int64_t now, start_time, app_start_time;
	int64_t check_at;              /* 0: no health check */
	int exception;                 /* failed health checks in a row */
	int64_t reforks[REFORK_LIMIT]; /* when, the oldest first */
	int refork_count;

	int wake;
	size_t caught; /* signals, the first of those above */
	struct sigaction inherited[CAUGHT];
	struct pollfd *set;
	struct process **speakers; /* whose descriptor stands there in the set */
	size_t set_size;
	bool retry; /* a process's channel met a shortage: a pause, and try again */
};

static volatile sig_atomic_t got_signal; /* SIGTERM, SIGINT or SIGQUIT */
static volatile sig_atomic_t got_sigchld;
static volatile sig_atomic_t got_sigusr1;
static volatile sig_atomic_t got_sigusr2;

static void fail(struct master *master, int code);
static void save_status(const struct master *master);

#define log_info(...) clutch_print_line(STDOUT_FILENO, "[master] " __VA_ARGS__)
#define log_error(...) clutch_print_line(STDERR_FILENO, "[master] " __VA_ARGS__)

/* ---- what the master says ------------------------------------------------ */

static void
tell(struct master *master, enum role to, pid_t receiver_pid, const char *action, const char *data)
{
	struct message message = {action, ROLE_MASTER, to, receiver_pid, data, 0, -1, NULL};

	message.data_length = data != NULL ? strlen(data) : 0;
	master_messenger_send(&master->messenger, &message);
}

/* egg-pids to the agent. egg: getListeningWorkerIds */
static void
tell_agent_pids(struct master *master)
{
	const struct process *worker;
	char *json = master->pids;
	size_t used = 1;

	json[0] = '[';
	for (worker = master->worker_manager.workers; worker != NULL; worker = worker->next)
		if (worker->state == STATE_LISTENING)
			used += (size_t)snprintf(json + used, master->pids_size - used, "%s%ld",
			                         used > 1 ? "," : "", (long)worker->worker_id);
	json[used++] = ']';
	json[used] = '\0';
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

/* ---- egg-cluster/lib/utils/manager.js ------------------------------------ */

static void
set_worker(struct master *master, struct process *worker)
{
	struct process **last = &master->worker_manager.workers;

	while (*last != NULL)
		last = &(*last)->next;
	*last = worker;
}

static void
delete_worker(struct master *master, struct process *worker)
{
	struct process **link = &master->worker_manager.workers;

	while (*link != worker)
		link = &(*link)->next;
	*link = worker->next;
	process_forget(worker, &master->worker_manager);
	channel_close(&worker->channel);
	free(worker);
}

/* The process that holds a slot, if it is not the one with that id (0: none has).
 * Who has been replaced and is on its way out holds none. */
static struct process *
get_slot_worker(const struct master *master, int slot, int except)
{
	struct process *worker;

	for (worker = master->worker_manager.workers; worker != NULL; worker = worker->next)
		if (worker->slot == slot && worker->id != except && !worker->is_dev_reload &&
		    (worker->state == STATE_ONLINE || worker->state == STATE_LISTENING))
			return worker;
	return NULL;
}

/* Agent and workers must be alive; if they are not three times in a row, the
 * cluster is in a state that nobody knows. egg: startCheck */
static void
check(struct master *master)
{
	const struct process *worker;
	int agents = master->agent.state == STATE_LISTENING, workers = 0;

	for (worker = master->worker_manager.workers; worker != NULL; worker = worker->next)
		workers += worker->worker_id != 0;
	master->check_at = master->now + CHECK_INTERVAL;
	if (agents > 0 && workers > 0) {
		master->exception = 0;
		return;
	}
	if (++master->exception < CHECK_EXCEPTIONS)
		return;
	log_error("%d agent and %d worker(s) alive, exit to avoid unknown state", agents, workers);
	fail(master, 1);
}

/* ---- forking ------------------------------------------------------------- */

/* Give back all that the master holds. */
static void
release(struct master *master, bool with_listener)
{
	struct process *worker;

	while ((worker = master->worker_manager.workers) != NULL)
		delete_worker(master, worker);
	channel_close(&master->agent.channel);
	channel_close(&master->parent.channel);
	messenger_disown();
	if (master->pid_file != -1)
		close(master->pid_file);
	if (with_listener && master->listener != -1)
		close(master->listener);
	free(master->pids);
	free(master->slots);
	free(master->set);
	free(master->speakers);
}

/* Lock one byte of the pid file: the master the first one, a child that of its own
 * number. So the kernel's list of its locks is the list of those alive, and who stops
 * the cluster from outside takes no stranger for one of them (D30). */
static int
lock_byte(int descriptor, off_t byte)
{
	struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
	int result;

	do
		result = fcntl(descriptor, F_SETLK, &lock);
	while (result == -1 && errno == EINTR);
	return result;
}

/* No handler of the master's in a child. SIGPIPE stays ignored. */
static void
reset_signals(const sigset_t *mask)
{
	size_t i;

	for (i = 0; i < CAUGHT; i++)
		if (caught[i] != SIGPIPE)
			clutch_catch_signal(caught[i], SIG_DFL);
	sigprocmask(SIG_SETMASK, mask, NULL);
}

/* The child's first steps: nothing of the master's stays but its options. */
static void
become(struct master *master, const struct process *process, int descriptor, const sigset_t *mask)
{
	enum role role = process->role;
	int slot = process->slot;
	struct messenger messenger;
	char number[16];

	setpgid(0, 0);
	reset_signals(mask);
	if (master->pid_file != -1)
		lock_byte(master->pid_file, getpid());
	master->pid_file = -1; /* it stays open, for the child's lock */
	release(master, role == ROLE_AGENT);
	if (messenger_init(&messenger, descriptor, role) == -1) {
		clutch_print_line(STDERR_FILENO, "[%s] start error: %s", clutch_role_name(role), strerror(errno));
		exit(1);
	}
	if (role == ROLE_AGENT)
		agent_run(&messenger, &master->options);
	messenger.slot = slot;
	snprintf(number, sizeof number, "%d", slot);
	setenv("CFORK_WORKER_INDEX", number, 1);
	snprintf(number, sizeof number, "%d", master->options.workers);
	setenv("CFORK_WORKER_COUNT", number, 1);
	worker_run(&messenger, &master->options, master->listener, master->options_json);
}

/* Fork a child over a channel of its own. In its own process group, so that
 * Ctrl-C reaches the master alone (D4), and kill(-pid) its children too. */
static int
fork_process(struct master *master, struct process *process)
{
	int pair[2];
	sigset_t all, mask;
	pid_t pid;

	if (channel_pair(pair) == -1)
		return -1;
	if (channel_attach(&process->channel, pair[0]) == -1) {
		close(pair[0]);
		close(pair[1]);
		return -1;
	}
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, &mask);
	pid = fork();
	if (pid == 0)
		become(master, process, pair[1], &mask);
	sigprocmask(SIG_SETMASK, &mask, NULL);
	close(pair[1]);
	if (pid == -1) {
		close(pair[0]);
		process->channel.descriptor = -1; /* what waits goes on waiting */
		return -1;
	}
	setpgid(pid, pid);
	process->channel.limit = 0;
	process->worker_id = pid;
	process->state = STATE_ONLINE;
	process->forked_at = master->now;
	process->deadline = master->now + master->options.worker_start_timeout;
	return 0;
}

/* Room for the pid of one more app worker. */
static bool
pids_reserve(struct master *master)
{
	const struct process *worker;
	size_t size = sizeof "[]" + PID_SIZE;
	char *pids;

	for (worker = master->worker_manager.workers; worker != NULL; worker = worker->next)
		size += PID_SIZE;
	if (size <= master->pids_size)
		return true;
	pids = realloc(master->pids, 2 * size);
	if (pids == NULL)
		return false;
	master->pids = pids;
	master->pids_size = 2 * size;
	return true;
}

/* A place for an app worker that is not forked yet; NULL if memory is short. */
static struct process *
new_worker(struct master *master, int slot)
{
	struct process *worker = pids_reserve(master) ? calloc(1, sizeof *worker) : NULL;

	if (worker == NULL)
		return NULL;
	channel_init(&worker->channel, CHANNEL_QUEUE_MAX);
	worker->role = ROLE_APP;
	worker->slot = slot;
	worker->disable_refork = true;
	set_worker(master, worker);
	return worker;
}

/* egg: cluster.on('fork') */
static void
on_fork(struct master *master, struct process *worker)
{
	worker->id = ++master->app_id;
	log_info("app_worker#%d:%ld start", worker->id, (long)worker->worker_id);
	tell_app_pids(master, worker->worker_id); /* D7 */
}

/* Returns who holds the slot now, for on_fork; NULL: it is tried again later. */
static struct process *
fork_app_worker(struct master *master, int slot)
{
	struct process *worker = master->worker_manager.workers;

	while (worker != NULL && (worker->slot != slot || worker->state != STATE_NONE))
		worker = worker->next;
	if (worker == NULL)
		worker = new_worker(master, slot);
	if (worker == NULL || fork_process(master, worker) == -1) {
		log_error("cannot fork app_worker %d: %s, next try in %dms", slot + 1,
		          strerror(errno), FORK_RETRY);
		master->slots[slot].refork_at = master->now + FORK_RETRY;
		return NULL;
	}
	master->slots[slot].refork_at = 0;
	return worker;
}

static void
fork_again(struct master *master, int slot)
{
	struct process *worker = fork_app_worker(master, slot);

	if (worker != NULL)
		on_fork(master, worker);
}

/* cfork's allow(): when may the next re-fork be? D13: later, not never. */
static int64_t
allow(struct master *master)
{
	if (master->refork_count < REFORK_LIMIT ||
	    master->now - master->reforks[0] > REFORK_DURATION)
		return master->now;
	return master->reforks[0] + REFORK_DURATION + 1;
}

static void
wait_for_window(struct master *master, int number)
{
	struct slot *slot = &master->slots[number];
	int64_t at = allow(master);

	if (at <= master->now || at <= slot->refork_at)
		return;
	slot->refork_at = at;
	log_error("worker died too fast: app_worker of slot %d waits %lldms", number + 1,
	          (long long)(slot->refork_at - master->now));
}

/* Fork for a slot if its time has come. */
static void
refork_due(struct master *master, int number)
{
	struct slot *slot = &master->slots[number];

	if (slot->refork_at == 0 || slot->refork_at > master->now)
		return;
	wait_for_window(master, number); /* others have been there meanwhile */
	if (slot->refork_at > master->now)
		return;
	if (master->refork_count == REFORK_LIMIT)
		memmove(master->reforks, master->reforks + 1,
		        (size_t)--master->refork_count * sizeof master->reforks[0]);
	master->reforks[master->refork_count++] = master->now;
	slot->reforks++;
	slot->refork_at = 0;
	fork_again(master, number);
}

/* cfork's re-fork of a slot that nobody holds: now if it may be. */
static void
refork(struct master *master, int number)
{
	struct slot *slot = &master->slots[number];
	int64_t at = master->now;

	if (!master->is_production || master->phase != PHASE_RUNNING || slot->refork_at != 0 ||
	    get_slot_worker(master, number, 0) != NULL)
		return;
	if (slot->failures > 0) /* D11 */
		at += (int64_t)BACKOFF_FIRST
		      << (slot->failures < BACKOFF_DOUBLINGS ? slot->failures - 1
		                                             : BACKOFF_DOUBLINGS);
	slot->refork_at = at;
	wait_for_window(master, number);
	refork_due(master, number);
}

/* ---- egg-cluster/lib/master.js ------------------------------------------- */

static void
fork_agent_worker(struct master *master)
{
	struct process *agent = &master->agent;

	master->agent_slot.refork_at = 0;
	master->agent_slot.reforks += master->is_started;
	if (fork_process(master, agent) == -1) {
		log_error("cannot fork the agent_worker: %s, next try in %dms", strerror(errno),
		          FORK_RETRY);
		master->agent_slot.refork_at = master->now + FORK_RETRY;
		return;
	}
	agent->id = ++master->agent_id;
	log_info("agent_worker#%d:%ld start", agent->id, (long)agent->worker_id);
}

static void
fork_app_workers(struct master *master)
{
	struct process *worker;
	int slot;

	master->app_start_time = master->now;
	for (slot = 0; slot < master->options.workers; slot++)
		fork_app_worker(master, slot);
	for (worker = master->worker_manager.workers; worker != NULL; worker = worker->next)
		if (worker->state == STATE_ONLINE)
			on_fork(master, worker);
}

static int
close_timeout(const struct master *master, const struct process *process)
{
	return process->role == ROLE_AGENT ? master->options.agent_close_timeout
	                                   : master->options.app_close_timeout;
}

/* SIGTERM to a process and its children; SIGKILL when the timeout is over. */
static void
terminate(struct master *master, struct process *process)
{
	if (process->worker_id == 0 || process->terminated || process->state == STATE_DEAD)
		return;
	kill(-process->worker_id, SIGTERM);
	process->terminated = true;
	process->deadline = master->now + close_timeout(master, process);
}

static void
kill_agent_worker(struct master *master)
{
	log_info("kill agent worker with signal SIGTERM");
	terminate(master, &master->agent);
}

static void
kill_app_workers(struct master *master)
{
	struct process *worker;

	for (worker = master->worker_manager.workers; worker != NULL; worker = worker->next)
		terminate(master, worker);
}

/* What died of what: "code: 1, signal: null" (D19). */
static void
describe_death(struct slot *slot, int status, const char *killed_for)
{
	char code[16] = "null", name[16] = "null";

	if (WIFEXITED(status))
		snprintf(code, sizeof code, "%d", WEXITSTATUS(status));
	else if (WTERMSIG(status) == SIGKILL)
		snprintf(name, sizeof name, "SIGKILL");
	else if (WTERMSIG(status) == SIGTERM)
		snprintf(name, sizeof name, "SIGTERM");
	else
		snprintf(name, sizeof name, "%d", WTERMSIG(status));
	snprintf(slot->last_death, sizeof slot->last_death, "code: %s, signal: %s%s%s", code, name,
	         killed_for != NULL ? ", " : "", killed_for != NULL ? killed_for : "");
}

static void
on_agent_exit(struct master *master, int status)
{
	struct process *agent = &master->agent;
	pid_t worker_id = agent->worker_id;
	struct channel waiting;

	describe_death(&master->agent_slot, status, agent->killed_for);
	if (master->phase != PHASE_RUNNING) /* D14 */
		return;
	waiting = agent->channel;        /* D24: on_disconnect has opened it */
	memset(agent, 0, sizeof *agent); /* egg: deleteAgent */
	agent->channel = waiting;
	agent->role = ROLE_AGENT;
	agent->id = master->agent_id;
	agent->state = STATE_DEAD;
	tell_app_pids(master, 0);
	log_error("agent_worker#%d:%ld died (%s)", agent->id, (long)worker_id,
	          master->agent_slot.last_death);
	if (!master->is_started) {
		log_error("agent_worker#%d:%ld start fail, exiting with code:1", agent->id,
		          (long)worker_id);
		fail(master, 1);
		return;
	}
	log_info("try to start a new agent_worker after 1s ...");
	master->agent_slot.refork_at = master->now + AGENT_REFORK_DELAY;
	tell(master, ROLE_PARENT, 0, "agent-worker-died", NULL);
}

/* It need not be ready in time any more; but who was told to leave must do that. */
static void
start_is_over(struct process *process)
{
	if (!process->terminated)
		process->deadline = 0;
}

static void
on_agent_start(struct master *master)
{
	struct process *agent = &master->agent;

	agent->state = STATE_LISTENING; /* egg: status = 'started' */
	start_is_over(agent);
	if (master->is_started) { /* D8: first who is there, then that all is ready */
		tell_agent_pids(master);
		tell(master, ROLE_AGENT, 0, "egg-ready", master->options_json);
	}
	tell_app_pids(master, 0);
	tell(master, ROLE_APP, 0, "agent-start", NULL);
	log_info("agent_worker#%d:%ld started (%lldms)", agent->id, (long)agent->worker_id,
	         (long long)(clutch_now() - agent->forked_at));
	if (master->app_start_time == 0 && master->phase == PHASE_RUNNING) /* D14; this.once */
		fork_app_workers(master);
}

static void
end_reload(struct master *master, int *count)
{
	master->reload_slot = -1;
	(*count)++;
	save_status(master); /* who has ordered it waits for this */
}

static void
on_app_exit(struct master *master, struct process *worker, int status)
{
	struct slot *slot = &master->slots[worker->slot];
	int number = worker->slot, id = worker->id;
	bool never_ready = worker->disable_refork;
	pid_t worker_id = worker->worker_id;

	describe_death(slot, status, worker->killed_for);
	if (master->phase != PHASE_RUNNING)
		return;
	if (!worker->is_dev_reload)
		log_error("app_worker#%d:%ld died (%s)", id, (long)worker_id, slot->last_death);
	delete_worker(master, worker);
	tell_agent_pids(master);
	if (!master->is_all_worker_started) {
		log_error("app_worker#%d:%ld start fail, exiting with code:1", id, (long)worker_id);
		fail(master, 1);
		return;
	}
	tell(master, ROLE_PARENT, 0, "app-worker-died", NULL);
	slot->failures += never_ready;
	if (never_ready && number == master->reload_slot) { /* D12 */
		log_error("reload given up: the new app_worker died before it was ready");
		end_reload(master, &master->reloads_given_up);
	}
	if (never_ready) /* the others were replaced when they disconnected, as in cfork */
		refork(master, number);
}

/* egg: this.ready(() => { ... }) */
static void
on_ready(struct master *master)
{
	const char *name = master->options.name;

	master->is_started = true;
	log_info("%s started%s%s (%lldms)", name, master->address[0] != '\0' ? " on " : "",
	         master->address, (long long)(clutch_now() - master->start_time));
	log_info("to stop it: Ctrl-C, or kill %ld", (long)master->messenger.pid);
	tell(master, ROLE_PARENT, 0, "egg-ready", master->options_json);
	tell(master, ROLE_APP, 0, "egg-ready", master->options_json);
	tell(master, ROLE_AGENT, 0, "egg-ready", master->options_json);
	if (master->is_production)
		master->check_at = master->now + CHECK_INTERVAL;
}

/* Replace the worker of the next slot; egg: cluster-reload, all at once. */
static void
reload_next(struct master *master)
{
	while (master->reload_slot < master->options.workers) {
		if (get_slot_worker(master, master->reload_slot, 0) != NULL) {
			fork_again(master, master->reload_slot);
			return;
		}
		master->reload_slot++; /* it waits for its re-fork: that will be a new one */
	}
	log_info("reload done");
	end_reload(master, &master->reloads_done);
}

static void
on_app_start(struct master *master, struct process *worker)
{
	struct slot *slot = &master->slots[worker->slot];
	struct process *old;
	int remain;

	worker->state = STATE_LISTENING;
	start_is_over(worker);
	tell_agent_pids(master);
	master->start_success_count++; /* D18: a worker comes here once, and none has died */
	remain = master->is_all_worker_started
	                 ? 0
	                 : master->options.workers - master->start_success_count;
	log_info("app_worker#%d:%ld started%s%s, remain %d (%lldms)", worker->id,
	         (long)worker->worker_id, master->address[0] != '\0' ? " at " : "", master->address,
	         remain, (long long)(clutch_now() - worker->forked_at));
	if (master->is_all_worker_started) /* D10: to the newcomer alone */
		tell(master, ROLE_APP, worker->worker_id, "egg-ready", master->options_json);
	worker->disable_refork = false;
	slot->failures = 0;
	old = get_slot_worker(master, worker->slot, worker->id);
	if (old != NULL) { /* D12 */
		old->is_dev_reload = true;
		terminate(master, old);
	}
	if (worker->slot == master->reload_slot) {
		master->reload_slot++;
		reload_next(master);
	}
	if (master->is_all_worker_started || master->phase != PHASE_RUNNING ||
	    master->start_success_count < master->options.workers)
		return;
	master->is_all_worker_started = true;
	on_ready(master);
}

static void
on_reload(struct master *master)
{
	if (!master->is_all_worker_started || master->reload_slot != -1 ||
	    master->phase != PHASE_RUNNING)
		return;
	log_info("reload workers...");
	master->reload_slot = 0;
	reload_next(master);
}

/* egg: close */
static void
close_cluster(struct master *master)
{
	master->reload_slot = -1;
	master->phase = PHASE_CLOSING_APPS;
	log_info("send kill SIGTERM to app workers, will exit with code:0 after %dms",
	         master->options.app_close_timeout);
	kill_app_workers(master);
}

/* egg: onSignal */
static void
on_signal(struct master *master, int number)
{
	if (master->phase != PHASE_RUNNING) /* D15 */
		return;
	log_info("master is killed by signal %s, closing", number == SIGTERM  ? "SIGTERM"
	                                                   : number == SIGINT ? "SIGINT"
	                                                                      : "SIGQUIT");
	close_cluster(master);
}

static void
on_parent_gone(struct master *master)
{
	master->worker_manager.parent = NULL; /* messenger.js:64 has_parent */
	if (!master->options.end_with_parent || master->phase != PHASE_RUNNING) /* D32 */
		return;
	log_info("the parent is gone, closing");
	close_cluster(master);
}

/* egg: process.exit(code). But nobody is left behind (D3): the children see the
 * end of their channels, and who does not leave then is killed. */
static void
fail(struct master *master, int code)
{
	struct process *worker;

	assert(master->phase == PHASE_RUNNING);
	master->reload_slot = -1;
	master->phase = PHASE_FAILING;
	master->exit_code = code;
	for (worker = master->worker_manager.workers; worker != NULL; worker = worker->next) {
		channel_flush(&worker->channel);
		channel_close(&worker->channel);
		worker->deadline = master->now + master->options.app_close_timeout;
		worker->terminated = true;
	}
	channel_flush(&master->agent.channel);
	channel_close(&master->agent.channel);
	master->agent.deadline = master->now + master->options.agent_close_timeout;
	master->agent.terminated = true;
}

/* ---- the living speak ---------------------------------------------------- */

/* A channel has ended; its process may live on. What waits for a worker that
 * leaves gracefully still goes out; anybody else has closed for good.
 * egg: cluster.on('disconnect') */
static void
on_disconnect(struct master *master, struct process *process)
{
	bool again = process->state == STATE_DISCONNECTED;

	channel_flush(&process->channel);
	if (again || process->role != ROLE_APP || process->killed_for != NULL ||
	    channel_pending(&process->channel) == 0)
		channel_close(&process->channel);
	process_forget(process, &master->worker_manager);
	if (again)
		return;
	if (process->role == ROLE_PARENT) {
		on_parent_gone(master);
		return;
	}
	process->state = STATE_DISCONNECTED;
	if (master->phase != PHASE_RUNNING)
		return;
	process->deadline = master->now + close_timeout(master, process);
	if (process->role == ROLE_AGENT) {
		channel_init(&process->channel, 0); /* D24: for the next one */
		return;
	}
	if (!process->disable_refork)
		process->deadline += CLUTCH_GRACEFUL_TIMEOUT;
	log_info("app_worker#%d:%ld disconnect", process->id, (long)process->worker_id);
	tell_agent_pids(master); /* D9 */
	if (!process->disable_refork)
		refork(master, process->slot);
}

/* A process did what none may do, or cannot be served: it alone pays for it. */
static void
condemn(struct master *master, struct process *process, const char *why)
{
	log_error("%s#%d:%ld %s: %s", clutch_role_name(process->role), process->id,
	          (long)process->worker_id, why,
	          process->role == ROLE_PARENT ? "its channel is closed" : "killed");
	process->killed_for = why;
	if (process->role != ROLE_PARENT)
		kill(-process->worker_id, SIGKILL);
	on_disconnect(master, process);
}

/* The actions that only the master may utter, and those that only it hears. */
static bool
is_reserved(const struct master *master, const struct process *process,
            const struct message *message)
{
	static const char *const reserved[] = {"agent-exit",        "agent-start",    "app-exit",
	                                       "app-start",         "egg-pids",       "egg-ready",
	                                       "agent-worker-died", "app-worker-died"};
	static const char *const orders[] = {"listening", "realport", "reload-worker"};
	bool to_master = message->receiver_pid != 0
	                         ? message->receiver_pid == master->messenger.pid
	                         : message->to == ROLE_MASTER || (message->to == ROLE_NONE &&
	                                                          process->role == ROLE_PARENT);
	size_t i;

	switch (message->action[0]) { /* most are not worth a comparison */
	case 'a':
	case 'e':
	case 'l':
	case 'r':
		break;
	default:
		return false;
	}
	for (i = 0; i < sizeof reserved / sizeof reserved[0]; i++)
		if (strcmp(message->action, reserved[i]) == 0)
			return true;
	for (i = 0; to_master && i < sizeof orders / sizeof orders[0]; i++)
		if (strcmp(message->action, orders[i]) == 0)
			return true;
	return false;
}

/* D5: each says of itself once that it is ready; parent and agent may order a
 * reload. Everything else that is reserved, nobody may say. */
static bool
is_allowed(const struct process *process, const struct message *message)
{
	bool online = process->state == STATE_ONLINE && message->to == ROLE_MASTER;

	if (strcmp(message->action, "reload-worker") == 0)
		return process->role != ROLE_APP;
	return online && strcmp(message->action,
	                        process->role == ROLE_AGENT ? "agent-start" : "listening") == 0;
}

/* this.on(...): what is routed to the master itself. */
static void
emit(void *arg, const struct message *message)
{
	struct master *master = arg;

	if (strcmp(message->action, "agent-start") == 0)
		on_agent_start(master);
	else if (strcmp(message->action, "listening") == 0)
		on_app_start(master, master->messenger.sender);
	else if (strcmp(message->action, "reload-worker") == 0)
		on_reload(master);
}

static void
on_message(struct master *master, struct process *process, struct message *message)
{
	if (!is_reserved(master, process, message) || is_allowed(process, message)) {
		master_messenger_receive(&master->messenger, process, message);
		return;
	}
	if (!process->refused)
		log_error("%s#%d:%ld may not send %s: refused, as are more of this kind",
		          clutch_role_name(process->role), process->id, (long)process->worker_id,
		          message->action);
	process->refused = true;
}

static void
hear(struct master *master, struct process *process)
{
	enum peer peer = channel_read(&process->channel);
	struct message message;
	int found, handle;

	while ((found = channel_next(&process->channel, &message)) == 1) {
		handle = message.handle;
		on_message(master, process, &message);
		if (handle != -1)
			close(handle);
	}
	if (found == -1 && errno == ENOMEM)
		condemn(master, process, "no memory for what it sends");
	else if (found == -1 || peer == PEER_BROKEN) /* D2 */
		condemn(master, process, "broke the protocol");
	else if (peer == PEER_GONE)
		on_disconnect(master, process);
}

/* ---- the dead are counted ------------------------------------------------ */

static bool
group_lives(const struct process *process)
{
	return kill(-process->worker_id, 0) == 0 || errno == EPERM;
}

/* A dead process's children were sent SIGKILL: their end takes a moment, and is
 * waited for, but not for long: an init may not reap what it adopts. */
static void
await_group(struct master *master, struct process *process)
{
	if (!process->group_killed)
		process->deadline = master->now + KILL_TIME;
	process->group_killed = true;
}

/* A process is dead: its last words, then the end of its channel, then its end.
 * Its own children must not outlive it: while closing they have until the
 * deadline, as the process had (egg: killChildren). */
static void
on_exit(struct master *master, struct process *process, int status)
{
	uint64_t heard;

	do {
		heard = process->channel.bytes_in;
		if (process->channel.descriptor != -1)
			hear(master, process);
	} while (process->channel.descriptor != -1 && process->channel.bytes_in != heard);
	if (process->channel.descriptor != -1)
		on_disconnect(master, process);
	if (master->phase == PHASE_RUNNING)
		kill(-process->worker_id, SIGKILL);
	if (master->phase == PHASE_FAILING)
		kill(-process->worker_id, SIGTERM);
	process->state = STATE_DEAD;
	if (master->phase != PHASE_RUNNING && process->deadline == 0)
		await_group(master, process);
	if (process->role == ROLE_AGENT)
		on_agent_exit(master, status);
	else
		on_app_exit(master, process, status);
}

static void
reap(struct master *master, struct process *process)
{
	int status = 0;
	pid_t pid;

	if (process->worker_id == 0 || process->state == STATE_DEAD)
		return;
	do
		pid = waitpid(process->worker_id, &status, WNOHANG);
	while (pid == -1 && errno == EINTR);
	if (pid != 0) /* -1: somebody else has reaped it; it is dead all the same */
		on_exit(master, process, status);
}

static void
reap_all(struct master *master)
{
	struct process *worker, *next;

	reap(master, &master->agent);
	for (worker = master->worker_manager.workers; worker != NULL; worker = next) {
		next = worker->next;
		reap(master, worker);
	}
}

/* ---- the clock ----------------------------------------------------------- */

/* A process has had its time. */
static void
on_deadline(struct master *master, struct process *process)
{
	process->deadline = 0;
	switch (process->state) {
	case STATE_NONE:
		return;
	case STATE_ONLINE:
		if (!process->terminated) { /* D25 */
			log_error("%s#%d:%ld start timeout", clutch_role_name(process->role), process->id,
			          (long)process->worker_id);
			process->killed_for = "start timeout";
			terminate(master, process);
			return;
		}
		break;
	case STATE_LISTENING:
		if (!process->terminated)
			process->killed_for = "reads no more";
		break;
	case STATE_DISCONNECTED:
	case STATE_DEAD:
		break;
	}
	if (process->killed_for == NULL)
		process->killed_for = "did not leave in time";
	if (kill(-process->worker_id, SIGKILL) == -1 && process->state != STATE_DEAD) /* D3 */
		process->deadline = master->now + KILL_RETRY;
	if (process->state == STATE_DEAD)
		await_group(master, process);
}

/* Is nothing left of it (D27)? While closing, its children count too. */
static bool
is_gone(const struct process *process)
{
	return process->worker_id == 0 ||
	       (process->state == STATE_DEAD && (process->deadline == 0 || !group_lives(process)));
}

static bool
are_apps_gone(const struct master *master)
{
	const struct process *worker = master->worker_manager.workers;

	while (worker != NULL && is_gone(worker))
		worker = worker->next;
	return worker == NULL;
}

/* One step further towards the end, if its time has come. egg: _doClose */
static void
advance(struct master *master)
{
	switch (master->phase) {
	case PHASE_RUNNING:
		return;
	case PHASE_CLOSING_APPS:
		if (!are_apps_gone(master))
			return;
		log_info("send kill SIGTERM to agent worker, will exit with code:0 after %dms",
		         master->options.agent_close_timeout);
		kill_agent_worker(master);
		master->phase = PHASE_CLOSING_AGENT;
		return;
	case PHASE_CLOSING_AGENT:
	case PHASE_FAILING:
		if (are_apps_gone(master) && is_gone(&master->agent))
			master->phase = PHASE_CLOSED;
		return;
	case PHASE_CLOSED:
		return;
	}
}

static void
sooner(int64_t *next, int64_t at)
{
	if (at != 0 && (*next == 0 || at < *next))
		*next = at;
}

static void
run_clock(struct master *master)
{
	struct process *worker;
	int slot;

	if (master->agent.deadline != 0 && master->agent.deadline <= master->now)
		on_deadline(master, &master->agent);
	for (worker = master->worker_manager.workers; worker != NULL; worker = worker->next)
		if (worker->deadline != 0 && worker->deadline <= master->now)
			on_deadline(master, worker);
	if (master->phase != PHASE_RUNNING)
		return;
	if (master->agent_slot.refork_at != 0 && master->agent_slot.refork_at <= master->now)
		fork_agent_worker(master);
	for (slot = 0; slot < master->options.workers; slot++)
		refork_due(master, slot);
	if (master->check_at != 0 && master->check_at <= master->now)
		check(master);
}

/* Milliseconds until the clock has something to do; -1: it has not. */
static int
clock_timeout(const struct master *master)
{
	const struct process *worker;
	int64_t next = 0, left;
	int slot;

	sooner(&next, master->agent.deadline);
	for (worker = master->worker_manager.workers; worker != NULL; worker = worker->next) {
		sooner(&next, worker->deadline);
		if (worker->stuck_since != 0)
			sooner(&next, worker->stuck_since + CLUTCH_STUCK_TIMEOUT);
		if (worker->state == STATE_DEAD)
			sooner(&next, master->now + GROUP_CHECK);
	}
	if (master->agent.state == STATE_DEAD && master->phase != PHASE_RUNNING)
		sooner(&next, master->now + GROUP_CHECK);
	if (master->agent.stuck_since != 0)
		sooner(&next, master->agent.stuck_since + CLUTCH_STUCK_TIMEOUT);
	if (master->parent.stuck_since != 0)
		sooner(&next, master->parent.stuck_since + CLUTCH_STUCK_TIMEOUT);
	for (slot = 0; slot < master->options.workers && master->phase == PHASE_RUNNING; slot++)
		sooner(&next, master->slots[slot].refork_at);
	if (master->phase == PHASE_RUNNING) {
		sooner(&next, master->agent_slot.refork_at);
		sooner(&next, master->check_at);
	}
	left = next - clutch_now();
	return next == 0 ? -1 : left < 0 ? 0 : left > INT_MAX ? INT_MAX : (int)left;
}

/* ---- SIGUSR1: all that the master knows ----------------------------------- */

/* Where the table goes: into the log (-1), or into a file, until that fails. */
struct sheet {
	int file;
	int error; /* 0, or the errno of that */
};

static int
write_all(int descriptor, const char *text, size_t length)
{
	ssize_t count;

	while (length > 0) {
		count = write(descriptor, text, length);
		if (count == -1 && errno != EINTR)
			return -1;
		if (count > 0) {
			text += count;
			length -= (size_t)count;
		}
	}
	return 0;
}

/* A line of the table. */
static void
put(struct sheet *sheet, const char *format, ...)
{
	char line[512 + 1]; /* its new line too */
	va_list arguments;
	size_t length;

	va_start(arguments, format);
	length = clutch_text_length(vsnprintf(line, sizeof line - 1, format, arguments), sizeof line - 1);
	va_end(arguments);
	if (sheet->file == -1) {
		log_info("%s", line);
		return;
	}
	line[length++] = '\n';
	if (sheet->error == 0 && write_all(sheet->file, line, length) == -1)
		sheet->error = errno;
}

static void
put_summary(const struct master *master, struct sheet *sheet)
{
	const struct options *options = &master->options;

	put(sheet, "%s%s%s, pid %ld, %llds, %d workers", options->name,
	    master->address[0] != '\0' ? " on " : "", master->address, (long)master->messenger.pid,
	    (long long)(master->now - master->start_time) / 1000, options->workers);
	put(sheet, "%s, stops within %dms, reloads: %d done, %d given up%s",
	    master->phase != PHASE_RUNNING ? "stopping"
	    : master->is_started           ? "running"
	                                   : "starting",
	    options->app_close_timeout + options->agent_close_timeout, master->reloads_done,
	    master->reloads_given_up, master->reload_slot != -1 ? ", one under way" : "");
}

static void
put_process(struct sheet *sheet, const struct master *master, const struct process *process,
            const struct slot *slot)
{
	static const char *const states[] = {"waiting", "starting", "listening", "disconnected",
	                                     "dead"};
	const struct channel *channel = &process->channel;

	put(sheet, "%-6s %4d %7ld %-12s %7llds %7d %9llu %9llu %11llu %11llu %8zu  %s",
	    clutch_role_name(process->role), process->slot + 1, (long)process->worker_id,
	    states[process->state],
	    process->worker_id != 0 ? (long long)(master->now - process->forked_at) / 1000 : 0,
	    slot->reforks, (unsigned long long)channel->messages_in,
	    (unsigned long long)channel->messages_out, (unsigned long long)channel->bytes_in,
	    (unsigned long long)channel->written, channel_pending(channel),
	    slot->last_death[0] != '\0' ? slot->last_death : "-");
}

static void
put_table(const struct master *master, struct sheet *sheet)
{
	static const struct slot none;
	const struct process *worker;

	put(sheet, "%-6s %4s %7s %-12s %8s %7s %9s %9s %11s %11s %8s  %s", "role", "slot", "pid",
	    "state", "age", "reforks", "heard", "told", "bytes in", "bytes out", "queued",
	    "last death");
	if (master->worker_manager.parent != NULL)
		put_process(sheet, master, &master->parent, &none);
	put_process(sheet, master, &master->agent, &master->agent_slot);
	for (worker = master->worker_manager.workers; worker != NULL; worker = worker->next)
		put_process(sheet, master, worker, &master->slots[worker->slot]);
	put(sheet, "%llu undeliverable", (unsigned long long)master->messenger.undeliverable);
}

/* What lies beside the pid file: PID_FILE.status, and the same while it is written. */
enum { STATUS_PATH_MAX = PATH_MAX + 16 };

static const char *
status_path(char path[STATUS_PATH_MAX], const struct master *master, const char *end)
{
	snprintf(path, STATUS_PATH_MAX, "%s.status%s", master->options.pid_file, end);
	return path;
}

/* Not through a symbolic link, not waiting for the other end of a FIFO, and without
 * making a terminal the master's own. */
static int
open_again(const char *path, int flags, mode_t mode)
{
	int descriptor;

	do
		descriptor = open(path, flags | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY, mode);
	while (descriptor == -1 && errno == EINTR);
	return descriptor;
}

/* Closes the file. */
static int
fill_status(const struct master *master, int file)
{
	struct sheet sheet = {.file = file};

	put_summary(master, &sheet);
	put_table(master, &sheet);
	if (close(file) == -1 && errno != EINTR && sheet.error == 0)
		sheet.error = errno; /* some file systems notice only now that they are full */
	errno = sheet.error;
	return sheet.error == 0 ? 0 : -1;
}

/* The table as a file, for a command that cannot read the log (egg-scripts status). The
 * file is complete, or it is not there. Its folder may be writable for others: a file
 * that stands in the way and cannot be removed is not written to. */
static void
save_status(const struct master *master)
{
	char path[STATUS_PATH_MAX], new_path[STATUS_PATH_MAX];
	int file = -1;

	if (master->pid_file == -1)
		return;
	if (unlink(status_path(new_path, master, ".new")) == 0 || errno == ENOENT)
		file = open_again(new_path, O_WRONLY | O_CREAT | O_EXCL, 0600);
	if (file != -1 && fill_status(master, file) == 0 &&
	    rename(new_path, status_path(path, master, "")) == 0)
		return;
	log_error("cannot write %s: %s", new_path, strerror(errno));
	unlink(new_path);
}

/* ---- the loop ------------------------------------------------------------ */

/* A full queue that nobody empties: give its owner up before it harms others. And
 * one who reads no more is about to leave, or is made to. */
static void
watch_queue(struct master *master, struct process *process)
{
	struct channel *channel = &process->channel;

	if (channel->write_closed && process->deadline == 0 && process->role != ROLE_PARENT)
		process->deadline = master->now + close_timeout(master, process);
	if (process->killed_for == NULL && channel_pending(channel) > CHANNEL_HIGH_WATER) {
		if (process->stuck_since == 0 || process->stuck_at != channel->written)
			process->stuck_since = master->now;
		process->stuck_at = channel->written;
		if (master->now - process->stuck_since >= CLUTCH_STUCK_TIMEOUT)
			process->killed_for = "is stuck, its queue is full";
	} else {
		process->stuck_since = 0;
	}
	if (process->killed_for != NULL && !process->terminated)
		condemn(master, process, process->killed_for);
}

/* Room for one more to poll. Where memory is short, somebody is not heard for now. */
static bool
set_reserve(struct master *master, size_t count)
{
	struct process **speakers;
	struct pollfd *set;
	size_t size = 2 * count + 8;

	if (count < master->set_size)
		return true;
	set = realloc(master->set, size * sizeof *set);
	if (set == NULL)
		return false;
	master->set = set;
	speakers = realloc(master->speakers, size * sizeof(struct process *));
	if (speakers == NULL)
		return false;
	master->speakers = speakers;
	master->set_size = size;
	return true;
}

/* Say what to poll for. */
static void
prepare(struct master *master, struct process *process, size_t *count)
{
	struct pollfd *entry;

	if (process->channel.descriptor == -1)
		return;
	watch_queue(master, process);
	if (channel_starved(&process->channel)) {
		master->retry = true;
		return;
	}
	if (process->channel.descriptor == -1 || !set_reserve(master, *count))
		return;
	entry = &master->set[*count];
	entry->fd = process->channel.descriptor;
	entry->events = 0;
	if (process->state != STATE_DISCONNECTED && process_may_speak(process))
		entry->events |= POLLIN;
	if (channel_pending(&process->channel) > 0)
		entry->events |= POLLOUT;
	if (entry->events == 0) { /* or its hangup would be reported again and again */
		if (process->state == STATE_DISCONNECTED)
			channel_close(&process->channel);
		return;
	}
	master->speakers[(*count)++] = process;
}

static size_t
prepare_all(struct master *master)
{
	struct process *worker;
	size_t count = 1;

	master->set[0].fd = master->wake;
	master->set[0].events = POLLIN;
	master->retry = false;
	/* All queues first: a sender is heard again when the last of them is short. */
	channel_flush(&master->parent.channel);
	for (worker = master->worker_manager.workers; worker != NULL; worker = worker->next)
		channel_flush(&worker->channel);
	channel_flush(&master->agent.channel);
	prepare(master, &master->parent, &count);
	prepare(master, &master->agent, &count);
	/* A replacement, too: it stands behind the one that is given up here. */
	for (worker = master->worker_manager.workers; worker != NULL; worker = worker->next)
		prepare(master, worker, &count);
	return count;
}

static void
loop(struct master *master)
{
	size_t i, count;
	int timeout, order;

	while (master->phase != PHASE_CLOSED) {
		count = prepare_all(master);
		timeout = clock_timeout(master);
		if (master->retry && (timeout < 0 || timeout > 10))
			timeout = 10;
		if (poll(master->set, count, timeout) == -1)
			count = 0; /* EINTR, ENOMEM: the next turn asks again */
		master->now = clutch_now();

		for (i = 1; i < count; i++) /* the living speak */
			if ((master->set[i].revents & ~POLLOUT) != 0 &&
			    master->speakers[i]->channel.descriptor == master->set[i].fd)
				hear(master, master->speakers[i]);
		if (count > 0 && master->set[0].revents != 0)
			clutch_wake_drain(master->wake);
		if (got_sigchld) { /* the dead are counted */
			got_sigchld = 0;
			reap_all(master);
		}
		if (got_signal != 0) { /* orders; the flag first, or the next one is lost */
			order = got_signal;
			got_signal = 0;
			on_signal(master, order);
		}
		if (got_sigusr1) {
			got_sigusr1 = 0;
			put_table(master, &(struct sheet){.file = -1});
			save_status(master);
		}
		if (got_sigusr2) {
			got_sigusr2 = 0;
			on_reload(master);
		}
		run_clock(master);
		advance(master);
	}
}

/* ---- start_cluster ------------------------------------------------------- */

static void
on_caught(int number)
{
	switch (number) {
	case SIGCHLD:
		got_sigchld = 1;
		break;
	case SIGUSR1:
		got_sigusr1 = 1;
		break;
	case SIGUSR2:
		got_sigusr2 = 1;
		break;
	default:
		got_signal = number;
	}
	clutch_wake_up();
}

/* The option's value if it is given, or the environment's, or the default. */
static int
parse_number(int *option, const char *name, int least, int most, int otherwise)
{
	const char *text = name != NULL ? getenv(name) : NULL;
	char *end;
	long value;

	if (*option == 0 && text != NULL && text[0] != '\0') {
		value = strtol(text, &end, 10);
		if (end == text || *end != '\0' || value < least || value > most) {
			log_error("%s=%s is no good: give a number from %d to %d", name, text,
			          least, most);
			return -1;
		}
		*option = (int)value;
	}
	if (*option == 0)
		*option = otherwise;
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

/* egg: lib/utils/options.js */
static int
parse_options(struct master *master, const struct options *given)
{
	struct options *options = &master->options;
	int legacy = 0;

	*options = *given;
	if (options->name == NULL)
		options->name = "egg";
	if (options->env == NULL)
		options->env = getenv("EGG_SERVER_ENV");
	if (options->env == NULL || options->env[0] == '\0')
		options->env = "prod";
	if (options->host == NULL)
		options->host = getenv("HOST");
	if (options->host == NULL || options->host[0] == '\0')
		options->host = "127.0.0.1";
	if (parse_number(&options->workers, "EGG_WORKERS", 1, CLUTCH_WORKERS_MAX, 0) ||
	    parse_number(&options->port, "PORT", 1, 65535, 7001) ||
	    parse_number(&options->worker_start_timeout, NULL, 1, INT_MAX, 600000) ||
	    parse_number(&legacy, "EGG_MASTER_CLOSE_TIMEOUT", 1, 3600000, 5000) ||
	    parse_number(&options->app_close_timeout, "EGG_APP_CLOSE_TIMEOUT", 1, 3600000,
	                 legacy) ||
	    parse_number(&options->agent_close_timeout, "EGG_AGENT_CLOSE_TIMEOUT", 1, 3600000,
	                 legacy))
		return -1;
	if (options->workers == 0)
		options->workers = processors();
	if (options->workers < 1 || options->workers > CLUTCH_WORKERS_MAX ||
	    options->port > 65535 || options->worker_start_timeout < 1 ||
	    options->app_close_timeout < 1 || options->agent_close_timeout < 1) {
		log_error("an option is out of range: workers %d (1 to %d), port %d (to 65535), or "
		          "a negative timeout",
		          options->workers, CLUTCH_WORKERS_MAX, options->port);
		return -1;
	}
	master->is_production =
		strcmp(options->env, "local") != 0 && strcmp(options->env, "unittest") != 0;
	return 0;
}

/* The shared port, before any fork: who cannot have it says so at once (D19). */
static int
open_listener(struct master *master)
{
	const char *host = master->options.host;
	struct sockaddr_in v4 = {.sin_family = AF_INET};
	struct sockaddr_in6 v6 = {.sin6_family = AF_INET6};
	struct sockaddr *address = (struct sockaddr *)&v4;
	socklen_t length = sizeof v4;
	in_port_t port = htons((in_port_t)(master->options.port > 0 ? master->options.port : 0));
	int on = 1;

	v4.sin_port = port;
	v6.sin6_port = port;
	if (strcmp(host, "localhost") == 0)
		host = "127.0.0.1";
	if (inet_pton(AF_INET, host, &v4.sin_addr) != 1) {
		if (inet_pton(AF_INET6, host, &v6.sin6_addr) != 1) {
			log_error("HOST=%s is no good: give a numeric address or localhost", host);
			return -1;
		}
		address = (struct sockaddr *)&v6;
		length = sizeof v6;
	}
	master->listener = socket(address->sa_family, SOCK_STREAM, 0);
	if (master->listener == -1 ||
	    setsockopt(master->listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == -1 ||
	    fcntl(master->listener, F_SETFD, FD_CLOEXEC) == -1 ||
	    fcntl(master->listener, F_SETFL, O_NONBLOCK) == -1 ||
	    bind(master->listener, address, length) == -1 ||
	    listen(master->listener, SOMAXCONN) == -1 ||
	    getsockname(master->listener, address, &length) == -1) {
		if (errno == EADDRINUSE)
			log_error("%s port %d is in use: stop what listens there, or choose "
			          "another port, as in PORT=%d",
			          host, master->options.port, master->options.port % 65535 + 1);
		else
			log_error("cannot listen on %s port %d: %s", host, master->options.port,
			          strerror(errno));
		return -1;
	}
	port = address == (struct sockaddr *)&v4 ? v4.sin_port : v6.sin6_port;
	master->options.port = ntohs(port);
	if (strcmp(host, "0.0.0.0") == 0 || strcmp(host, "::") == 0)
		host = "127.0.0.1"; /* egg: getAddress */
	snprintf(master->address, sizeof master->address,
	         strchr(host, ':') != NULL ? "http://[%s]:%d" : "http://%s:%d", host,
	         master->options.port);
	return 0;
}

/* Make the directories above a file. */
static int
make_directories(const char *path)
{
	char above[PATH_MAX] = ""; /* all of it: nothing stands behind an empty path */
	char *slash = above;

	if (strlen(path) >= sizeof above) {
		errno = ENAMETOOLONG;
		return -1;
	}
	snprintf(above, sizeof above, "%s", path);
	while ((slash = strchr(slash + 1, '/')) != NULL) {
		*slash = '\0';
		if (mkdir(above, 0777) == -1 && errno != EEXIST)
			return -1;
		*slash = '/';
	}
	return 0;
}

/* Make the text the file's whole content. */
static int
fill_file(int descriptor, const char *text, size_t length)
{
	while (ftruncate(descriptor, 0) == -1)
		if (errno != EINTR)
			return -1;
	return write_all(descriptor, text, length);
}

static bool
is_same_file(const struct stat *one, const struct stat *other)
{
	return one->st_ino == other->st_ino && one->st_dev == other->st_dev;
}

/* D44: the master writes, empties and removes a plain file of its own user that is empty
 * or holds a pid, and no other file. Returns why this one is none; NULL: it is one. */
static const char *
why_not_pid_file(int descriptor, const struct stat *status)
{
	char text[32] = "";
	size_t length;

	if (!S_ISREG(status->st_mode))
		return "it is not a plain file";
	if (status->st_uid != geteuid())
		return "it belongs to another user";
	if (status->st_nlink > 1)
		return "it has a second name";
	if (pread(descriptor, text, sizeof text - 1, 0) == -1)
		return strerror(errno);
	length = strspn(text, "0123456789");
	length += length > 0 && text[length] == '\n';
	return (off_t)length == status->st_size ? NULL : "it holds something other than a pid";
}

/* Why open(2) has failed. It has several errors for a file that is not a plain one. */
static const char *
why_not_opened(const char *path)
{
	const char *why = strerror(errno);
	struct stat status;

	if (lstat(path, &status) == -1 || S_ISREG(status.st_mode))
		return why;
	return S_ISLNK(status.st_mode) ? "it is a symbolic link" : "it is not a plain file";
}

static const char *
why_not_locked(void)
{
	return errno == EACCES || errno == EAGAIN
	               ? "another master holds it; stop that one, or choose another file"
	               : strerror(errno);
}

/* D16: the lock says which master the file belongs to. Another process may unlink the file
 * between our open and our lock: then no other process can see the file that we have
 * locked. Returns why there is no lock; NULL: there is one. */
static const char *
lock_pid_file(struct master *master)
{
	const char *path = master->options.pid_file, *why;
	struct stat *own = &master->pid_file_status, named;
	int descriptor;

	for (;;) {
		descriptor = open_again(path, O_RDWR | O_CREAT, 0644);
		if (descriptor == -1)
			return why_not_opened(path);
		why = fcntl(descriptor, F_SETFD, FD_CLOEXEC) == -1 || fstat(descriptor, own) == -1
		              ? strerror(errno)
		              : why_not_pid_file(descriptor, own);
		if (why == NULL && lock_byte(descriptor, 0) == -1)
			why = why_not_locked();
		if (why == NULL && lstat(path, &named) == 0 && is_same_file(own, &named)) {
			master->pid_file = descriptor;
			return NULL;
		}
		close(descriptor);
		if (why != NULL)
			return why;
	}
}

static int
open_pid_file(struct master *master)
{
	const char *path = master->options.pid_file, *why;
	char pid[16];
	int length = snprintf(pid, sizeof pid, "%ld", (long)getpid());

	if (path == NULL)
		return 0;
	why = make_directories(path) == -1 ? strerror(errno) : lock_pid_file(master);
	if (why == NULL && fill_file(master->pid_file, pid, (size_t)length) == 0)
		return 0;
	log_error("pid file %s: %s", path, why != NULL ? why : strerror(errno));
	return -1;
}

/* egg: onExit. The master removes only its own file. */
static void
remove_pid_file(const struct master *master)
{
	char path[STATUS_PATH_MAX];
	struct stat named;

	if (master->pid_file == -1 || lstat(master->options.pid_file, &named) == -1 ||
	    !is_same_file(&named, &master->pid_file_status) ||
	    why_not_pid_file(master->pid_file, &named) != NULL)
		return;
	unlink(status_path(path, master, ""));
	unlink(master->options.pid_file);
}

static void
compose_options_json(struct master *master)
{
	const struct options *options = &master->options;

	if (master->address[0] != '\0')
		snprintf(master->options_json, sizeof master->options_json,
		         "{\"workers\":%d,\"port\":%d,\"address\":\"%s\",\"protocol\":\"http\"}",
		         options->workers, options->port, master->address);
	else
		snprintf(master->options_json, sizeof master->options_json, "{\"workers\":%d}",
		         options->workers);
}

/* The places of agent and apps: what is sent to them waits there (D23, D24). */
static int
open_slots(struct master *master)
{
	int slot;

	channel_init(&master->agent.channel, 0);
	master->agent.role = ROLE_AGENT;
	master->slots = calloc((size_t)master->options.workers, sizeof *master->slots);
	if (master->slots == NULL || !set_reserve(master, (size_t)master->options.workers + 3))
		return -1;
	for (slot = 0; slot < master->options.workers; slot++)
		if (new_worker(master, slot) == NULL)
			return -1;
	return 0;
}

static int
open_parent(struct master *master)
{
	channel_init(&master->parent.channel, 0);
	master->parent.role = ROLE_PARENT;
	if (master->options.parent == 0)
		return 0;
	master->parent.state = STATE_LISTENING;
	master->worker_manager.parent = &master->parent;
	return channel_attach(&master->parent.channel, master->options.parent);
}

static int
open_signals(struct master *master)
{
	struct sigaction action;
	sigset_t set;
	size_t i;

	master->wake = clutch_wake_open();
	if (master->wake == -1)
		return -1;
	got_signal = got_sigchld = got_sigusr1 = got_sigusr2 = 0;
	memset(&action, 0, sizeof action);
	sigemptyset(&action.sa_mask);
	sigemptyset(&set);
	for (i = 0; i < CAUGHT; i++) {
		action.sa_handler = caught[i] == SIGPIPE ? SIG_IGN : on_caught;
		if (sigaction(caught[i], &action, &master->inherited[i]) == -1)
			return -1;
		sigaddset(&set, caught[i]);
		master->caught = i + 1;
	}
	return sigprocmask(SIG_UNBLOCK, &set, NULL);
}

int
start_cluster(const struct options *given)
{
	struct master master;
	size_t i;

	memset(&master, 0, sizeof master);
	master.listener = master.pid_file = -1;
	master.reload_slot = -1;
	master.exit_code = 1;
	master.now = master.start_time = clutch_now();
	master.worker_manager.agent = &master.agent;
	master.messenger.worker_manager = &master.worker_manager;
	master.messenger.emit = emit;
	master.messenger.master = &master;
	master.messenger.pid = getpid();
	fflush(NULL); /* or each child would print it again */
	if (parse_options(&master, given) == 0 &&
	    (given->connection == NULL || open_listener(&master) == 0) &&
	    open_pid_file(&master) == 0) {
		compose_options_json(&master);
		if (open_slots(&master) == -1 || open_parent(&master) == -1 ||
		    open_signals(&master) == -1) {
			log_error("cannot start: %s", strerror(errno));
		} else {
			master.exit_code = 0;
			fork_agent_worker(&master);
			loop(&master);
			clutch_print_line(master.exit_code == 0 ? STDOUT_FILENO : STDERR_FILENO,
			           "[master] exit with code:%d", master.exit_code);
		}
	}
	remove_pid_file(&master);
	channel_drain(&master.parent.channel, 1000);
	release(&master, true);
	for (i = 0; i < master.caught; i++)
		sigaction(caught[i], &master.inherited[i], NULL);
	return master.exit_code;
}

struct messenger *
fork_cluster(const struct options *given, pid_t *pid)
{
	struct options options = *given;
	struct messenger *parent;
	int pair[2];

	if (channel_pair(pair) == -1)
		return NULL;
	parent = messenger_open(pair[0], ROLE_PARENT);
	if (parent == NULL) {
		close(pair[0]);
		close(pair[1]);
		return NULL;
	}
	fflush(NULL);
	*pid = fork();
	if (*pid == 0) {
		messenger_free(parent);
		messenger_disown();
		options.parent = pair[1] > 0 ? pair[1] : fcntl(pair[1], F_DUPFD, 1);
		exit(start_cluster(&options));
	}
	close(pair[1]);
	if (*pid == -1) {
		messenger_free(parent);
		return NULL;
	}
	return parent;
}
