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
#define FORK_RETRY 1000          /* fork failed: no process or memory left */
#define KILL_RETRY 1000          /* SIGKILL could not be sent, or has not worked yet */
#define KILL_TIME 200            /* a process group has this long to die of SIGKILL */
#define GROUP_CHECK 50           /* how soon a process group's end is noticed */
#define LAST_WORDS (1024 * 1024) /* what is read from a dead process, in bytes */
#define LOG_SILENCE 10000        /* a full log gets no line for this long */
#define PORT_PATIENCE 3000       /* how long to wait for a port in use */
#define TRIM_INTERVAL 1000       /* queues that were not used for this long are freed */
#define LATE 1000                /* the master itself did not run, if it is this late */
#define OTHER_DESCRIPTORS 16     /* 0 to 2, agent, parent, listener, files ... */
#define SIGNAL_MAX 64            /* the system refuses numbers past its last signal */
#define PID_SIZE 12              /* a pid in JSON, and its comma, in bytes */

static void on_caught(int number);
static void on_alarm(int number);
static void on_ignored(int number);

/* The signals that are the master's while it runs. Some stay ignored where the starter
 * ignores them (nohup, a shell's `&`), because the master can do without them. */
static const struct {
	int number;
	bool may_be_ignored;
	void (*handler)(int);
} caught[] = {
	{SIGTERM, false, on_caught}, {SIGINT, true, on_caught},   {SIGQUIT, true, on_caught},
	{SIGCHLD, false, on_caught}, {SIGUSR1, false, on_caught}, {SIGUSR2, false, on_caught},
	{SIGALRM, false, on_alarm},  {SIGPIPE, true, on_ignored}, {SIGXFSZ, true, on_ignored}};
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
	bool started;      /* a worker in it has been ready */
	int64_t refork_at; /* 0: not waiting for a re-fork */
	int failures;      /* deaths in a row before a worker was ready */
	int reforks;
	char last_death[64];
};

struct master {
	struct options options; /* every default filled in */
	char options_json[160]; /* what egg-ready carries */
	char address[80];       /* http://host:port, or empty */
	bool is_production, has_terminal, port_given;
	struct worker_manager worker_manager;
	struct master_messenger messenger;
	struct process parent, agent;
	struct slot agent_slot, *slots;
	struct corpse *corpses;
	int listener, pid_file;
	struct stat pid_file_status;

	enum phase phase;
	int exit_code;
	bool is_started; /* egg-ready was sent (egg: isAllWorkerStarted, too) */
	int start_success_count;
	int agent_id, app_id; /* forked so far */
	int reload_slot;      /* the next one of an ordered reload, or -1 */
	int reload_id;        /* the app worker that the reload has forked for it, or 0 */
	int reloads_done, reloads_given_up;

	int64_t now, start_time, app_start_time;
	int64_t check_at;              /* 0: no health check */
	int64_t trim_at;               /* 0: no queue keeps memory */
	int exception;                 /* failed health checks in a row */
	bool fork_failed;              /* the last time it was tried */
	bool can_drain;                /* a process that holds others up is itself read */
	int64_t reforks[REFORK_LIMIT]; /* when, the oldest first */
	int refork_count;

	int wake;
	size_t caught; /* signals, the first of those above */
	struct sigaction inherited[CAUGHT];
	sigset_t mask;  /* the caller's */
	unsigned alarm; /* the caller's, in seconds */
	struct pollfd *set;
	size_t set_size;
	bool retry; /* a channel met a shortage: try again soon */
};

static volatile sig_atomic_t got_signal; /* SIGTERM, SIGINT or SIGQUIT */
static volatile sig_atomic_t got_sigchld;
static volatile sig_atomic_t got_sigusr1;
static volatile sig_atomic_t got_sigusr2;
static volatile sig_atomic_t catches_alarm;

static void close_cluster(struct master *master);
static void fail(struct master *master, int code);
static void get_listening_worker_ids(const struct master *master, char *json, size_t size);
static int fork_process(struct master *master, struct process *process);
static void on_fork(struct master *master, struct process *worker);
static bool fork_again(struct master *master, int slot);
static struct process *fork_app_worker(struct master *master, int slot);
static void expect(struct master *master, struct process *process, int64_t timeout,
                   enum deadline deadline);
static void leave_later(struct master *master, struct process *worker);
static void refork(struct master *master, int number);
static void reload_next(struct master *master);
static void end_reload(struct master *master, int *count);
static void save_status(const struct master *master);
static void remove_pid_file(const struct master *master);
static int signal_process(const struct process *process, int number);
static void terminate(struct master *master, struct process *process);

/* ---- the log ------------------------------------------------------------- */

#define log_info(...) log_line(STDOUT_FILENO, "[master] " __VA_ARGS__)
#define log_error(...) log_line(STDERR_FILENO, "[master] " __VA_ARGS__)

/* The log may be a pipe that other processes fill, too, between our poll and our write. An
 * alarm ends a write that waits (its handler does not restart it). When half a
 * second was lost with lines one after the other, the log gets no line for a while: the
 * master serves everybody else. */
static void CLUTCH_PRINTF(2, 3) log_line(int descriptor, const char *format, ...)
{
	static int64_t silent_until, lost;
	int64_t took, now = clutch_now();
	va_list arguments;
	bool written;

	if (now < silent_until)
		return;
	if (catches_alarm)
		alarm(1);
	va_start(arguments, format);
	written = clutch_vprint_line(descriptor, format, arguments);
	va_end(arguments);
	if (catches_alarm)
		alarm(0);
	took = clutch_now() - now;
	lost = written && took < LATE / 2 ? 0 : lost + took;
	if (lost > LATE / 2)
		silent_until = clutch_now() + LOG_SILENCE;
}

/* "app#2:4711", for a line about a process. */
static const char *
process_name(const struct process *process)
{
	static char name[48];

	snprintf(name, sizeof name, "%s#%d:%ld", clutch_role_name(process->role), process->id,
	         (long)process->worker_id);
	return name;
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

/* ---- egg-cluster/lib/utils/manager.js ------------------------------------ */

static bool
is_alive(const struct process *process)
{
	return process->worker_id > 0 && process->state != STATE_DEAD;
}

/* Parent, agent and app workers, one after the other; the first follows NULL. */
static struct process *
next_process(struct master *master, const struct process *process)
{
	if (process == NULL)
		return &master->parent;
	return process == &master->parent  ? &master->agent
	       : process == &master->agent ? master->worker_manager.workers
	                                   : process->next;
}

static void
set_worker(struct master *master, struct process *worker) /* :30 */
{
	struct process **last = &master->worker_manager.workers;

	while (*last != NULL)
		last = &(*last)->next;
	*last = worker;
}

/* The process that holds a slot, if it is not the one with that id (0: none has it).
 * A process that was replaced and is on its way out holds none. */
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

static void
delete_worker(struct master *master, struct process *worker) /* :38 */
{
	struct process **link = &master->worker_manager.workers;

	while (*link != worker)
		link = &(*link)->next;
	*link = worker->next;
	channel_close(&worker->channel);
	free(worker->corpse);
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

/* Agent and workers must be alive; if they are not three times in a row, the cluster is
 * in a state that nobody knows. egg: count, startCheck */
static void
check_alive(struct master *master) /* :65 startCheck */
{
	const struct process *worker;
	int agents = master->agent.state == STATE_LISTENING, workers = 0;

	for (worker = master->worker_manager.workers; worker != NULL; worker = worker->next)
		workers += is_alive(worker);
	master->check_at = master->now + CHECK_INTERVAL;
	if ((agents > 0 && workers > 0) || master->fork_failed) { /* :69 count */
		master->exception = 0;
		return;
	}
	if (++master->exception < CHECK_EXCEPTIONS) /* :74 */
		return;
	log_error("%d agent and %d worker(s) alive, exit to avoid unknown state", agents, workers);
	fail(master, 1); /* master.js:184 */
}

/* ---- egg-cluster/lib/utils/terminate.js ---------------------------------- */

static int64_t
close_timeout(const struct master *master, const struct process *process)
{
	return process->role == ROLE_AGENT ? master->options.agent_close_timeout
	                                   : master->options.app_close_timeout;
}

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
	expect(master, process, close_timeout(master, process), DEADLINE_LEAVE);
}

/* The only place where a process is signalled: by its number, because it may have left its
 * group, and its group, because its children are in it. Neither number is ever reused
 * before the process was reaped, and that is the last step (see `bury`). */
static int
signal_process(const struct process *process, int number)
{
	if (!is_alive(process))
		return 0;
	kill(-process->worker_id, number);
	return kill(process->worker_id, number);
}

/* ---- egg-cluster/lib/master.js ------------------------------------------- */

/* egg: this.ready(() => { ... }) */
static void
on_ready(struct master *master) /* :94 ready */
{
	const char *name = master->options.name;

	master->is_started = true; /* :95 */
	log_info("%s started%s%s (%lldms)", name, master->address[0] != '\0' ? " on " : "",
	         master->address, (long long)(clutch_now() - master->start_time));
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
	struct process *agent = &master->agent;

	master->agent_slot.refork_at = 0;
	if (fork_process(master, agent) == -1) { /* :283 fork */
		log_error("cannot fork the agent_worker: %s, next try in %dms", strerror(errno),
		          FORK_RETRY);
		master->agent_slot.refork_at = master->now + FORK_RETRY;
		return;
	}
	master->agent_slot.reforks += master->is_started;
	agent->id = ++master->agent_id;
	log_info("agent_worker#%d:%ld start", agent->id, (long)agent->worker_id);
}

/* All are forked before the first is announced: master and children then copy fewer
 * pages. */
static void
fork_app_workers(struct master *master) /* :286 */
{
	struct process *worker;
	int slot;

	master->app_start_time = master->now;
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
	struct channel waiting = agent->channel; /* D24: on_disconnect has opened it */
	long worker_id = (long)agent->worker_id;

	if (master->phase != PHASE_RUNNING) /* :316 closed, D14 */
		return;
	tell_app_pids(master, 0); /* :319 egg-pids */
	free(agent->corpse);
	memset(agent, 0, sizeof *agent); /* :324 delete_agent */
	agent->channel = waiting;
	agent->role = ROLE_AGENT;
	agent->id = master->agent_id;
	agent->state = STATE_DEAD;
	log_error("agent_worker#%d:%ld died (%s)", agent->id, worker_id, /* :326 */
	          master->agent_slot.last_death);
	if (master->is_started) { /* :334 */
		log_info("try to start a new agent_worker after 1s ...");
		master->agent_slot.refork_at =
			master->now + AGENT_REFORK_DELAY;                /* :336 setTimeout */
		tell(master, ROLE_PARENT, 0, "agent-worker-died", NULL); /* :342 */
	} else {                                                         /* :344 */
		log_error("agent_worker#%d:%ld start fail, exiting with code:1", agent->id,
		          worker_id);
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
	}
	/* D8: first which workers there are, then that all is ready */
	if (master->is_started) /* :369 D8 */
		tell_agent_pids(master);
	if (master->is_started) /* :355 isAllWorkerStarted */
		tell(master, ROLE_AGENT, 0, "egg-ready", master->options_json);
	tell_app_pids(master, 0);                       /* :364 egg-pids */
	tell(master, ROLE_APP, 0, "agent-start", NULL); /* :379 */
	log_info("agent_worker#%d:%ld started (%lldms)", agent->id, (long)agent->worker_id,
	         (long long)(clutch_now() - agent->forked_at));
	if (master->app_start_time == 0 &&
	    master->phase == PHASE_RUNNING) /* :142 forkAppWorkers, D14 */
		fork_app_workers(master);
}

static void
on_app_exit(struct master *master, struct process *worker) /* :392 */
{
	struct slot *slot = &master->slots[worker->slot];
	int number = worker->slot, id = worker->id;
	bool never_ready = worker->disable_refork, replaced = worker->is_dev_reload;
	long worker_id = (long)worker->worker_id;

	if (master->phase != PHASE_RUNNING) /* :393 closed */
		return;
	if (!replaced) /* :397 isDevReload */
		log_error("app_worker#%d:%ld died (%s)", id, worker_id, slot->last_death);
	delete_worker(master, worker); /* :419 */
	tell_agent_pids(master);       /* :422 egg-pids */
	if (master->is_started) {      /* :427 isAllWorkerStarted */
		tell(master, ROLE_PARENT, 0, "app-worker-died", NULL);
	} else { /* :434 */
		log_error("app_worker#%d:%ld start fail, exiting with code:1", id, worker_id);
		fail(master, 1); /* :438 */
		return;
	}
	slot->failures += never_ready && !replaced;
	if (id == master->reload_id) { /* D12 */
		log_error("reload given up: the new app_worker died before it was ready");
		end_reload(master, &master->reloads_given_up);
	} else if (master->reload_id == 0 && replaced) {
		reload_next(master); /* which has waited for this one's end */
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
	struct process *old = get_slot_worker(master, worker->slot, worker->id);
	int remain = 0;

	worker->state = STATE_LISTENING;
	worker->deadline = DEADLINE_NONE;
	if (old != NULL) { /* D12 */
		old->is_dev_reload = true;
		old->state = STATE_LEAVING;
	}
	tell_agent_pids(master);               /* :466 egg-pids */
	if (!slot->started)                    /* D18 */
		master->start_success_count++; /* :471 */
	slot->started = true;
	if (!master->is_started) /* :473 isAllWorkerStarted */
		remain = master->options.workers - master->start_success_count;
	log_info("app_worker#%d:%ld started%s%s, remain %d (%lldms)", worker->id,
	         (long)worker->worker_id, master->address[0] != '\0' ? " at " : "", master->address,
	         remain, (long long)(clutch_now() - worker->forked_at));
	if (master->is_started) /* :478 isAllWorkerStarted; D10: to the newcomer alone */
		tell(master, ROLE_APP, worker->worker_id, "egg-ready", master->options_json);
	worker->disable_refork = false;
	slot->failures = 0;
	if (old != NULL)
		leave_later(master, old);
	if (worker->id == master->reload_id) {
		master->reload_id = 0;
		master->reload_slot++;
		reload_next(master);
	}
	if (master->is_started ||
	    master->start_success_count < master->options.workers || /* :491 */
	    master->phase != PHASE_RUNNING)
		return;
	on_ready(master); /* :513 ready */
}

static void
log_exit(const struct master *master) /* :521 onExit */
{
	if (master->options.pid_file != NULL) /* :522 */
		remove_pid_file(master);
	log_line(master->exit_code == 0 ? STDOUT_FILENO : STDERR_FILENO, /* :533 code */
	         "[master] exit with code:%d", master->exit_code);
}

static void
on_signal(struct master *master, int number) /* :536 */
{
	const char *name = number == SIGTERM ? "SIGTERM" : number == SIGINT ? "SIGINT" : "SIGQUIT";

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
	master->reload_slot = master->reload_id = 0;
	reload_next(master); /* :558 cluster-reload, D12 */
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

/* Is a process alive, or a process group that one has left? (D27) */
static bool
is_anyone_left(struct master *master, bool with_agent)
{
	const struct process *worker = master->worker_manager.workers;

	while (worker != NULL && !is_alive(worker))
		worker = worker->next;
	return worker != NULL || master->corpses != NULL ||
	       (with_agent && is_alive(&master->agent));
}

/* One step further towards the end, if its time has come. egg: _doClose, close */
static bool
do_close(struct master *master) /* :573 async */
{
	switch (master->phase) {
	case PHASE_RUNNING:
	case PHASE_CLOSED:
		return false;
	case PHASE_CLOSING_APPS:
		if (is_anyone_left(master, false))
			return false;
		log_info(
			"send kill SIGTERM to agent worker, will exit with code:0 after %dms", /* :587 */
			master->options.agent_close_timeout);
		kill_agent_worker(master); /* :590 */
		master->phase = PHASE_CLOSING_AGENT;
		return true;
	case PHASE_CLOSING_AGENT:
	case PHASE_FAILING:
		if (is_anyone_left(master, true))
			return false;
		master->phase = PHASE_CLOSED; /* master.js:566 exit */
		return true;
	}
	return false;
}

/* egg: process.exit(code). But nobody is left behind (D3): the children see the
 * end of their channels, and a process that does not leave then is killed. */
static void
fail(struct master *master, int code)
{
	struct process *process;

	assert(master->phase == PHASE_RUNNING);
	master->reload_slot = -1;
	master->phase = PHASE_FAILING;
	master->exit_code = code;
	for (process = &master->agent; process != NULL; process = next_process(master, process)) {
		channel_flush(&process->channel);
		channel_close(&process->channel);
		if (is_alive(process))
			expect(master, process, close_timeout(master, process),
			       DEADLINE_DISCONNECTED);
	}
}

/* ---- what egg does not have: rolling reload (D12) ------------------------- */

/* A process is to end, or to get ready, within this time; on_deadline says what happens
 * if it does not. A process that was told to end gets no more time by anything that
 * happens later (D31). */
static void
expect(struct master *master, struct process *process, int64_t timeout, enum deadline deadline)
{
	int64_t at = master->now + timeout;

	if (process->deadline >= DEADLINE_LEAVE && at > process->deadline_at)
		return;
	process->deadline = deadline;
	process->deadline_at = at;
}

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
	expect(master, worker, master->options.app_close_timeout, DEADLINE_BARRIER);
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

/* Replace the worker of the next slot; egg: cluster-reload, all at once. A slot has one
 * old worker at most: the next one is forked when that one has left. */
static void
reload_next(struct master *master)
{
	const struct process *worker;

	if (master->reload_slot == -1)
		return;
	for (; master->reload_slot < master->options.workers; master->reload_slot++) {
		if (is_replaced_one_left(master, master->reload_slot))
			return; /* on_app_exit comes here again */
		worker = get_slot_worker(master, master->reload_slot, 0);
		if (worker != NULL && worker->state == STATE_LISTENING) {
			fork_again(master, master->reload_slot);
			return;
		}
		/* else the slot's re-fork is new anyway */
	}
	if (is_replaced_one_left(master, -1))
		return;
	log_info("reload done");
	end_reload(master, &master->reloads_done);
}

/* ---- npm cfork ----------------------------------------------------------- */

/* egg: cluster.on('fork') */
static void
on_fork(struct master *master, struct process *worker)
{
	worker->id = ++master->app_id;
	log_info("app_worker#%d:%ld start", worker->id, (long)worker->worker_id);
	tell_app_pids(master, worker->worker_id); /* D7 */
}

static bool
fork_again(struct master *master, int slot)
{
	struct process *worker = fork_app_worker(master, slot);

	if (worker == NULL)
		return false;
	on_fork(master, worker);
	if (slot == master->reload_slot)
		master->reload_id = worker->id;
	return true;
}

/* cfork's allow(): when may the next re-fork be? D13: later, not never. */
static int64_t
next_refork_time(const struct master *master)
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
	int64_t at = next_refork_time(master);

	if (at <= master->now || at <= slot->refork_at)
		return;
	slot->refork_at = at;
	log_error("worker died too fast: app_worker of slot %d waits %lldms", number + 1,
	          (long long)(slot->refork_at - master->now));
}

/* Fork for a slot if its time has come. A fork that fails counts as none. */
static void
refork_due(struct master *master, int number)
{
	struct slot *slot = &master->slots[number];

	if (slot->refork_at == 0 || slot->refork_at > master->now)
		return;
	wait_for_window(master, number); /* others have been there meanwhile */
	if (slot->refork_at > master->now || !fork_again(master, number))
		return;
	if (master->refork_count == REFORK_LIMIT)
		memmove(master->reforks, master->reforks + 1,
		        (size_t)--master->refork_count * sizeof master->reforks[0]);
	master->reforks[master->refork_count++] = master->now;
	slot->reforks++;
}

/* Re-fork a slot that no process holds: now, if that is allowed. A worker that crashes at
 * every start is forked again with back-off: after 1, 2, 4 ... seconds (D11). */
static void
refork(struct master *master, int number)
{
	struct slot *slot = &master->slots[number];
	int doublings = slot->failures < BACKOFF_DOUBLINGS ? slot->failures - 1 : BACKOFF_DOUBLINGS;

	if (!master->is_production || master->phase != PHASE_RUNNING || slot->refork_at != 0 ||
	    get_slot_worker(master, number, 0) != NULL)
		return;
	slot->refork_at = master->now;
	if (slot->failures > 0)
		slot->refork_at += (int64_t)BACKOFF_FIRST << doublings;
	wait_for_window(master, number);
	refork_due(master, number);
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

/* A channel has ended; its process may live on. What waits for a worker that
 * leaves gracefully still goes out; any other process has closed for good.
 * egg: cluster.on('disconnect') */
static void
on_disconnect(struct master *master, struct process *process)
{
	bool again = process->state == STATE_DISCONNECTED;
	bool graceful = process->role == ROLE_APP && process->killed_for == NULL && !again;

	channel_flush(&process->channel);
	if (!graceful || channel_pending(&process->channel) == 0)
		channel_close(&process->channel);
	if (again)
		return;
	if (process->role == ROLE_PARENT) {
		on_parent_gone(master);
		return;
	}
	process->state = STATE_DISCONNECTED;
	if (master->phase != PHASE_RUNNING)
		return;
	if (process->role == ROLE_AGENT) { /* D24: what is sent from now on is the next one's */
		expect(master, process, close_timeout(master, process), DEADLINE_DISCONNECTED);
		channel_init(&process->channel, CHANNEL_QUEUE_MAX);
		return;
	}
	expect(master, process,
	       close_timeout(master, process) +
	               (process->disable_refork ? 0 : CLUTCH_GRACEFUL_TIMEOUT),
	       DEADLINE_DISCONNECTED);
	log_info("app_worker#%d:%ld disconnect", process->id, (long)process->worker_id);
	tell_agent_pids(master); /* D9 */
	if (!process->disable_refork)
		refork(master, process->slot);
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
	free(master->agent.corpse);
	channel_close(&master->agent.channel);
	channel_close(&master->parent.channel);
	if (master->pid_file != -1)
		close(master->pid_file);
	if (with_listener && master->listener != -1)
		close(master->listener);
	free(master->slots);
	free(master->set);
}

/* Lock one byte of the pid file: the master the first one, a child that of its own
 * number. So the kernel's list of its locks is the list of those alive, and a program that
 * stops the cluster from outside takes no stranger for one of them (D30). */
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
	sigset_t mask = master->mask;
	size_t i;

	drop_handlers();
	for (i = 0; i < CAUGHT; i++)
		if (master->inherited[i].sa_handler == SIG_IGN && caught[i].number != SIGTERM)
			clutch_catch_signal(caught[i].number, SIG_IGN);
	if (master->has_terminal) { /* which stops background groups that use it */
		clutch_catch_signal(SIGTTIN, SIG_IGN);
		clutch_catch_signal(SIGTTOU, SIG_IGN);
	}
	sigdelset(&mask, SIGTERM);
	sigprocmask(SIG_SETMASK, &mask, NULL);
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
	struct messenger messenger;
	char number[16];

	setpgid(0, 0);
	reset_signals(master);
	if (master->pid_file != -1)
		lock_byte(master->pid_file, getpid());
	master->pid_file = -1; /* it stays open, for the child's lock */
	release(master, role == ROLE_AGENT);
	messenger_disown();
	if (options->in_child != NULL)
		options->in_child(role, options->arg);
	if (messenger_init(&messenger, descriptor, role) == -1) {
		clutch_print_line(STDERR_FILENO, "[%s] start error: %s", clutch_role_name(role),
		                  strerror(errno));
		clutch_process_exit(1);
	}
	if (role == ROLE_AGENT)
		agent_run(&messenger, options);
	messenger.slot = slot;
	snprintf(number, sizeof number, "%d", slot);
	setenv("CFORK_WORKER_INDEX", number, 1);
	snprintf(number, sizeof number, "%d", options->workers);
	setenv("CFORK_WORKER_COUNT", number, 1);
	worker_run(&messenger, options, master->listener, master->options_json);
}

/* A channel's two ends, the master's attached; -1: neither is open. */
static int
open_channel(struct process *process)
{
	int pair[2];

	if (channel_pair(pair) == -1)
		return -1;
	if (channel_attach(&process->channel, pair[0]) == 0)
		return pair[1];
	close(pair[0]);
	close(pair[1]);
	return -1;
}

/* Fork a child over a channel of its own. It leads a process group of its own, so that
 * Ctrl-C reaches the master alone (D4), and a signal to the group its children, too. Both
 * sides call setpgid: whichever runs first, the group is there when either goes on. */
static int
fork_process(struct master *master, struct process *process)
{
	sigset_t all, mask;
	int descriptor;
	pid_t pid = -1;

	if (process->corpse == NULL)
		process->corpse = calloc(1, sizeof *process->corpse);
	descriptor = process->corpse != NULL ? open_channel(process) : -1;
	if (descriptor != -1) {
		sigfillset(&all);
		sigprocmask(SIG_SETMASK, &all, &mask);
		pid = fork();
		if (pid == 0)
			become_child(master, process, descriptor);
		sigprocmask(SIG_SETMASK, &mask, NULL);
		close(descriptor);
	}
	master->fork_failed = pid == -1;
	if (pid == -1) {
		if (process->channel.descriptor != -1)
			close(process->channel.descriptor);
		process->channel.descriptor = -1; /* what waits goes on waiting */
		return -1;
	}
	setpgid(pid, pid);
	process->channel.limit = 0;
	process->worker_id = pid;
	process->state = STATE_ONLINE;
	process->forked_at = master->now;
	process->dropped = 0;
	process->drop_logged = false;
	expect(master, process, master->options.worker_start_timeout, DEADLINE_START);
	return 0;
}

/* A place for an app worker that is not forked yet; NULL: ENOMEM. */
static struct process *
new_worker(struct master *master, int slot)
{
	struct process *worker = calloc(1, sizeof *worker);

	if (worker == NULL)
		return NULL;
	channel_init(&worker->channel, CHANNEL_QUEUE_MAX);
	worker->role = ROLE_APP;
	worker->slot = slot;
	worker->disable_refork = true;
	set_worker(master, worker);
	return worker;
}

/* Returns the process that holds the slot now, for on_fork; NULL: it is tried again. */
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

/* ---- the living speak ---------------------------------------------------- */

/* A process did what none may do, or cannot be served: it alone pays for it. */
static void
condemn(struct master *master, struct process *process, const char *why)
{
	log_error("%s %s: %s", process_name(process), why,
	          process->role == ROLE_PARENT ? "its channel is closed" : "killed");
	process->killed_for = why;
	signal_process(process, SIGKILL);
	on_disconnect(master, process);
}

enum { PARENT = 1 << ROLE_PARENT, AGENT = 1 << ROLE_AGENT, APP = 1 << ROLE_APP };

/* The actions with a meaning for the master, and the roles that may say them to it (D5). The
 * first few are the master's own: no child sends them to any other process either. */
static const struct rule {
	const char *action;
	bool everywhere;
	int roles;
	bool once; /* while the process is not ready */
} rules[] = {
	{"agent-exit", true, 0, false},
	{"agent-start", true, AGENT, true},
	{"agent-worker-died", true, 0, false},
	{"app-exit", true, 0, false},
	{"app-start", true, 0, false},
	{"app-worker-died", true, 0, false},
	{"clutch-pause", true, PARENT | AGENT | APP, false},
	{"clutch-barrier", true, AGENT, false},
	{"clutch-resume", true, PARENT | AGENT | APP, false},
	{"egg-pids", true, 0, false},
	{"egg-ready", true, 0, false},
	{"listening", false, APP, true},
	{"realport", false, 0, false},
	{"reload-worker", false, PARENT | AGENT, false},
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
	else if (strcmp(action, "clutch-barrier") == 0) /* D50 */
		sender->barriers_heard++;
	else if (strcmp(action, "clutch-pause") == 0 || strcmp(action, "clutch-resume") == 0)
		sender->paused = strcmp(action, "clutch-pause") == 0;
}

static void
on_message(struct master *master, struct process *process, struct message *message)
{
	if (may_say(master, process, message)) {
		master_messenger_receive(&master->messenger, process, message);
		return;
	}
	if (!process->refused)
		log_error("%s may not send %s: refused, as are more of this kind",
		          process_name(process), message->action);
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
describe_death(struct slot *slot, const siginfo_t *info, const char *killed_for)
{
	char code[16] = "null", name[16] = "null";

	if (info->si_code == CLD_EXITED)
		snprintf(code, sizeof code, "%d", info->si_status);
	else if (info->si_status == SIGKILL)
		snprintf(name, sizeof name, "SIGKILL");
	else if (info->si_status == SIGTERM)
		snprintf(name, sizeof name, "SIGTERM");
	else
		snprintf(name, sizeof name, "%d", info->si_status);
	snprintf(slot->last_death, sizeof slot->last_death, "code: %s, signal: %s%s%s", code, name,
	         killed_for != NULL ? ", " : "", killed_for != NULL ? killed_for : "");
}

/* What a process has started must not outlive it: its group gets SIGTERM, and SIGKILL at
 * the deadline. The zombie is moved out of its group, so that the group's end shows, and
 * is reaped after that (D51). egg: killChildren */
static void
bury(struct master *master, struct process *process)
{
	struct corpse *corpse = process->corpse;

	process->corpse = NULL;
	corpse->pid = process->worker_id;
	corpse->killed = process->deadline == DEADLINE_KILLED; /* the group, too */
	corpse->deadline =
		master->now + (corpse->killed ? KILL_TIME : close_timeout(master, process));
	if (process->deadline == DEADLINE_LEAVE && process->deadline_at < corpse->deadline)
		corpse->deadline = process->deadline_at;
	corpse->next = master->corpses;
	master->corpses = corpse;
	setpgid(corpse->pid, getpgrp());
	kill(-corpse->pid, SIGTERM);
}

/* Look at the dead without reaping them. */
static int
wait_for_death(idtype_t type, pid_t pid, siginfo_t *info)
{
	int result;

	do {
		memset(info, 0, sizeof *info);
		result = waitid(type, (id_t)pid, info, WEXITED | WNOHANG | WNOWAIT);
	} while (result == -1 && errno == EINTR);
	return result;
}

/* A child, or a corpse that is kept? */
static bool
is_own(struct master *master, pid_t pid)
{
	const struct process *process = &master->agent;
	const struct corpse *corpse = master->corpses;

	while (process != NULL && process->worker_id != pid)
		process = next_process(master, process);
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

/* Reap a corpse if its group is gone, or has not gone for SIGKILL: an init may not reap
 * what it adopts. Returns whether it did. */
static bool
reap_corpse(struct master *master, struct corpse *corpse)
{
	bool group_lives;

	reap_orphans(master, P_PGID, corpse->pid); /* they would keep the group */
	group_lives = kill(-corpse->pid, 0) == 0 || errno == EPERM;
	if (group_lives && corpse->deadline > master->now)
		return false;
	if (group_lives && !corpse->killed) {
		kill(-corpse->pid, SIGKILL);
		corpse->killed = true;
		corpse->deadline = master->now + KILL_TIME;
		return false;
	}
	while (waitpid(corpse->pid, NULL, 0) == -1 && errno == EINTR)
		;
	return true;
}

static void
reap_corpses(struct master *master)
{
	struct corpse *corpse, **link = &master->corpses;

	while ((corpse = *link) != NULL)
		if (reap_corpse(master, corpse)) {
			*link = corpse->next;
			free(corpse);
			reap_orphans(master, P_ALL, 0);
		} else {
			link = &corpse->next;
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
	               info, process->killed_for);
	process->state = STATE_DEAD;
	if (info->si_pid != 0)
		bury(master, process);
	if (process->role == ROLE_AGENT)
		on_agent_exit(master);
	else
		on_app_exit(master, process);
}

static void
reap(struct master *master, struct process *process)
{
	siginfo_t info;

	if (!is_alive(process))
		return;
	/* -1: something else has reaped it; it is dead all the same */
	if (wait_for_death(P_PID, process->worker_id, &info) == -1 || info.si_pid != 0)
		on_process_exit(master, process, &info);
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
	reap_orphans(master, P_ALL, 0);
}

/* ---- the clock ----------------------------------------------------------- */

/* A process has had its time: the table at `struct process` says what follows. */
static void
on_deadline(struct master *master, struct process *process)
{
	enum deadline deadline = process->deadline;

	process->deadline = DEADLINE_NONE;
	switch (deadline) {
	case DEADLINE_NONE:
		return;
	case DEADLINE_START: /* D25 */
		log_error("%s start timeout", process_name(process));
		process->killed_for = "start timeout";
		terminate(master, process);
		return;
	case DEADLINE_BARRIER:
		terminate(master, process);
		return;
	case DEADLINE_DEAF:
		process->killed_for = "reads no more";
		break;
	case DEADLINE_LEAVE:
	case DEADLINE_DISCONNECTED:
		if (process->killed_for == NULL)
			process->killed_for = "did not leave in time";
		break;
	case DEADLINE_KILLED:
		break;
	}
	signal_process(process, SIGKILL); /* D3 */
	if (is_alive(process))
		expect(master, process, KILL_RETRY, DEADLINE_KILLED);
}

static void
run_clock(struct master *master)
{
	struct process *process = NULL;
	bool trim = master->trim_at != 0 && master->trim_at <= master->now;
	int slot;

	while ((process = next_process(master, process)) != NULL) {
		if ((process->deadline != DEADLINE_NONE && process->deadline_at <= master->now) ||
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
	if (master->agent_slot.refork_at != 0 && master->agent_slot.refork_at <= master->now)
		fork_agent_worker(master);
	for (slot = 0; slot < master->options.workers; slot++)
		refork_due(master, slot);
	if (master->check_at != 0 && master->check_at <= master->now)
		check_alive(master);
}

static void
keep_earlier(int64_t *next, int64_t at)
{
	if (at != 0 && (*next == 0 || at < *next))
		*next = at;
}

/* Milliseconds until the clock has something to do; -1: it has not. While a process has a
 * deadline, the clock runs each second, so that it notices when the master itself was
 * stopped (see skip_lost_time). */
static int
clock_timeout(struct master *master)
{
	const struct process *process = NULL;
	int64_t next = 0, left;
	int slot;

	while ((process = next_process(master, process)) != NULL) {
		if (process->deadline != DEADLINE_NONE || process->full_since != 0)
			keep_earlier(&next, master->now + LATE);
		if (process->deadline != DEADLINE_NONE)
			keep_earlier(&next, process->deadline_at);
		if (process->full_since != 0)
			keep_earlier(&next, process->full_since + CLUTCH_STUCK_TIMEOUT);
	}
	if (master->corpses != NULL)
		keep_earlier(&next, master->now + GROUP_CHECK);
	if (master->retry)
		keep_earlier(&next, master->now + 10);
	keep_earlier(&next, master->trim_at);
	for (slot = 0; slot < master->options.workers && master->phase == PHASE_RUNNING; slot++)
		keep_earlier(&next, master->slots[slot].refork_at);
	if (master->phase == PHASE_RUNNING) {
		keep_earlier(&next, master->agent_slot.refork_at);
		keep_earlier(&next, master->check_at);
	}
	left = next - clutch_now();
	return next == 0 ? -1 : left < 0 ? 0 : left > INT_MAX ? INT_MAX : (int)left;
}

/* The whole cluster may have been stopped (a container that was paused, a laptop that
 * slept): then nobody had the time that has passed, and deadlines move by it. */
static void
skip_lost_time(struct master *master, int64_t lost, int64_t expected)
{
	struct process *process = NULL;
	struct corpse *corpse;

	if (lost < expected + LATE)
		return;
	while ((process = next_process(master, process)) != NULL) {
		process->deadline_at += lost;
		process->full_since += process->full_since != 0 ? lost : 0;
	}
	for (corpse = master->corpses; corpse != NULL; corpse = corpse->next)
		corpse->deadline += lost;
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
	length = clutch_text_length(vsnprintf(line, sizeof line - 1, format, arguments),
	                            sizeof line - 1);
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
	put(sheet, "%s, stops within %lldms, reloads: %d done, %d given up%s",
	    master->phase != PHASE_RUNNING ? "stopping"
	    : master->is_started           ? "running"
	                                   : "starting",
	    (long long)options->app_close_timeout + options->agent_close_timeout,
	    master->reloads_done, master->reloads_given_up,
	    master->reload_slot != -1 ? ", one under way" : "");
}

static void
put_process(struct sheet *sheet, const struct master *master, const struct process *process,
            const struct slot *slot)
{
	static const char *const states[] = {"waiting", "starting",     "listening",
	                                     "leaving", "disconnected", "dead"};
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

/* Is a queue so full, for so long, that its owner must go before it harms others? The
 * clock does not run for a process that wants a pause, nor for one that is itself not read
 * because of others; unless all of these wait for each other. A process that was told to
 * end has a deadline of its own. A process that has closed its reading end is expected to
 * exit. */
static void
watch_queue(struct master *master, struct process *process)
{
	bool stopped = process->paused || (process->waits && master->can_drain) ||
	               process->deadline >= DEADLINE_LEAVE;

	if (process->channel.write_closed && process->deadline == DEADLINE_NONE &&
	    is_alive(process))
		expect(master, process, close_timeout(master, process), DEADLINE_DEAF);
	if (stopped || process_is_drained(process))
		process->full_since = 0;
	else if (process->full_since == 0 && process_is_full(process))
		process->full_since = master->now;
	if (process->full_since != 0 && master->now - process->full_since >= CLUTCH_STUCK_TIMEOUT)
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
		log_error("%s is not there and its queue is full: messages for it are dropped",
		          process_name(process));
	process->drop_logged = process->dropped > 0;
	if (process->channel.handles_lost > 0 && !process->handle_logged)
		log_error("%s: no descriptor or memory for a handle: its message goes without it, "
		          "as do more of this kind",
		          process_name(process));
	process->handle_logged = process->channel.handles_lost > 0;
}

/* Room for one more to poll. Where memory is short, a process is not heard for now. */
static bool
set_reserve(struct master *master, size_t count)
{
	size_t size = 2 * count + 8;
	struct pollfd *set;

	if (count < master->set_size)
		return true;
	set = realloc(master->set, size * sizeof *set);
	if (set == NULL)
		return false;
	master->set = set;
	master->set_size = size;
	return true;
}

/* Say what to poll for. A descriptor without events is left out, or its hangup would be
 * reported again and again. */
static void
prepare(struct master *master, struct process *process, size_t *count)
{
	struct channel *channel = &process->channel;
	struct pollfd *entry;

	process->polled = 0;
	watch_losses(process);
	if (channel->descriptor != -1)
		watch_queue(master, process);
	if (channel->queue_size > 0 && master->trim_at == 0)
		master->trim_at = master->now + TRIM_INTERVAL;
	if (channel->descriptor == -1)
		return;
	if (channel_take_starved(channel) || !set_reserve(master, *count)) {
		master->retry = true;
		return;
	}
	entry = &master->set[*count];
	entry->fd = channel->descriptor;
	entry->events = 0;
	if (process->state != STATE_DISCONNECTED &&
	    process_stop_waiting(process, &master->worker_manager))
		entry->events |= POLLIN;
	if (channel_pending(channel) > 0)
		entry->events |= POLLOUT;
	if (entry->events != 0)
		process->polled = (*count)++;
	else if (process->state == STATE_DISCONNECTED) /* all is written */
		channel_close(channel);
}

/* Flush all queues before asking which processes may be read: a flush can release a
 * sender. */
static size_t
prepare_all(struct master *master)
{
	struct process *process = NULL;
	bool can_drain = false;
	size_t count = 1;

	master->set[0].fd = master->wake;
	master->set[0].events = POLLIN;
	master->retry = false;
	while ((process = next_process(master, process)) != NULL)
		channel_flush(&process->channel);
	while ((process = next_process(master, process)) != NULL) {
		can_drain = can_drain || (!process->waits && !process_is_drained(process));
		prepare(master, process, &count);
	}
	master->can_drain = can_drain;
	return count;
}

/* Hear the processes that poll has found to have something to say. */
static void
hear_all(struct master *master, size_t count)
{
	struct process *process = NULL;
	const struct pollfd *entry;

	while ((process = next_process(master, process)) != NULL) {
		if (process->polled == 0 || process->polled >= count)
			continue;
		entry = &master->set[process->polled];
		if ((entry->revents & ~POLLOUT) != 0 && entry->fd == process->channel.descriptor)
			hear(master, process);
	}
}

static void
obey(struct master *master)
{
	int order = got_signal;

	if (order != 0) {
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
}

static void
loop(struct master *master)
{
	int64_t start;
	size_t count;
	int timeout;

	for (;;) {
		while (do_close(master))
			;
		if (master->phase == PHASE_CLOSED)
			return;
		count = prepare_all(master);
		timeout = clock_timeout(master);
		start = clutch_now();
		skip_lost_time(master, start - master->now, 0);
		if (poll(master->set, count, timeout) == -1)
			count = 0; /* EINTR, ENOMEM: the next turn asks again */
		master->now = clutch_now();
		if (timeout != -1)
			skip_lost_time(master, master->now - start, timeout);

		hear_all(master, count); /* the living speak */
		if (count > 0 && master->set[0].revents != 0)
			clutch_wake_drain(master->wake);
		if (got_sigchld) { /* the dead are counted */
			got_sigchld = 0;
			reap_all(master);
		}
		obey(master);
		run_clock(master);
	}
}

/* ---- start_cluster ------------------------------------------------------- */

/* A handler may call only what is async-signal-safe, and runs between any two lines of the
 * loop: so it sets a flag and writes a byte that wakes poll (the self-pipe trick). */
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

/* See log_line. Again, should the first alarm have come too early. */
static void
on_alarm(int number)
{
	(void)number;
	alarm(1);
}

/* Not SIG_IGN: that would be inherited by what an application starts. */
static void
on_ignored(int number)
{
	(void)number;
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
	master->port_given = given->port != 0;
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

/* The apps of a master that was killed have the port until they have left. */
static int
bind_patiently(const struct master *master, const struct sockaddr *address, socklen_t length)
{
	int64_t deadline = clutch_now() + PORT_PATIENCE;
	bool waits = false;

	while (bind(master->listener, address, length) == -1) {
		if (errno != EADDRINUSE || clutch_now() >= deadline)
			return -1;
		if (!waits)
			log_info("port %d is in use, waiting up to %dms", master->options.port,
			         PORT_PATIENCE);
		waits = true;
		poll(NULL, 0, 50);
	}
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
	const char *advice = master->port_given ? "" : ", as in PORT=7002";
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
	    bind_patiently(master, address, length) == -1 ||
	    listen(master->listener, SOMAXCONN) == -1 ||
	    getsockname(master->listener, address, &length) == -1) {
		if (errno == EADDRINUSE)
			log_error("%s port %d is in use: stop what listens there, or choose "
			          "another port%s",
			          host, master->options.port, advice);
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

/* egg: egg-cluster/lib/master.js, constructor */
static int
open_pid_file(struct master *master)
{
	const char *path = master->options.pid_file, *why;
	char pid[16];
	int length = snprintf(pid, sizeof pid, "%ld", (long)getpid());

	if (path == NULL) /* :162 pidFile */
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
	master->parent.role = ROLE_PARENT;
	if (master->options.parent == 0)
		return 0;
	master->parent.state = STATE_LISTENING;
	master->worker_manager.parent = &master->parent;
	return channel_attach(&master->parent.channel, master->options.parent);
}

/* Each process has a descriptor here. Whether there can be as many is known before the
 * first fork. */
static int
check_descriptors(const struct master *master)
{
	long limit = sysconf(_SC_OPEN_MAX);

	if (limit == -1 || limit >= master->options.workers + OTHER_DESCRIPTORS)
		return 0;
	log_error("%d workers need %d descriptors, and the limit is %ld: raise it (ulimit -n), or "
	          "start fewer workers",
	          master->options.workers, master->options.workers + OTHER_DESCRIPTORS, limit);
	return -1;
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
	got_signal = got_sigchld = got_sigusr1 = got_sigusr2 = 0;
	master->mask = *mask;
	for (i = 0; i < CAUGHT; i++) {
		if (sigaction(caught[i].number, NULL, &master->inherited[i]) == -1 ||
		    ((master->inherited[i].sa_handler != SIG_IGN || !caught[i].may_be_ignored) &&
		     clutch_catch_signal(caught[i].number, caught[i].handler) == -1))
			return -1;
		sigdelset(&set, caught[i].number);
		master->caught = i + 1;
	}
	master->alarm = alarm(0);
	catches_alarm = 1;
	return sigprocmask(SIG_SETMASK, &set, NULL);
}

/* Give them back. */
static void
close_signals(struct master *master)
{
	size_t i;

	clutch_wake_close();
	if (catches_alarm)
		alarm(master->alarm);
	catches_alarm = 0;
	for (i = 0; i < master->caught; i++)
		sigaction(caught[i].number, &master->inherited[i], NULL);
	if (master->caught > 0)
		sigprocmask(SIG_SETMASK, &master->mask, NULL);
}

/* Is there a terminal to which the cluster belongs? */
static bool
has_terminal(void)
{
	int descriptor = open("/dev/tty", O_RDWR | O_NOCTTY);

	if (descriptor != -1)
		close(descriptor);
	return descriptor != -1;
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
	struct master master;

	memset(&master, 0, sizeof master);
	master.listener = master.pid_file = -1;
	channel_init(&master.agent.channel, 0);
	channel_init(&master.parent.channel, 0);
	master.reload_slot = -1;
	master.exit_code = 1;
	master.now = master.start_time = clutch_now();
	master.worker_manager.agent = &master.agent;
	master.messenger.worker_manager = &master.worker_manager;
	master.messenger.emit = emit;
	master.messenger.master = &master;
	master.messenger.pid = getpid();
	master.has_terminal = has_terminal();
	clutch_trace_init();
	fflush(stdout); /* or each child would print it again */
	fflush(stderr);
	if (parse_options(&master, given) == 0 && check_descriptors(&master) == 0 &&
	    (given->connection == NULL || open_listener(&master) == 0) &&
	    open_pid_file(&master) == 0) {
		compose_options_json(&master);
		if (open_slots(&master) == -1 || open_parent(&master) == -1 ||
		    open_signals(&master, mask) == -1) {
			log_error("cannot start: %s", strerror(errno));
		} else {
			master.exit_code = 0;
			fork_agent_worker(&master);
			loop(&master);
			log_exit(&master);
		}
	}
	remove_pid_file(&master);
	channel_drain(&master.parent.channel, 1000);
	release(&master, true);
	close_signals(&master);
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
	if (options.in_child != NULL)
		options.in_child(ROLE_MASTER, options.arg);
	options.parent = parent;
	clutch_process_exit(run_cluster(&options, mask));
}

struct messenger *
fork_cluster(const struct options *options, pid_t *pid)
{
	struct messenger *parent;
	sigset_t all, mask;
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
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, &mask);
	*pid = fork();
	if (*pid == 0)
		become_master(options, pair[1], &mask);
	sigprocmask(SIG_SETMASK, &mask, NULL);
	close(pair[1]);
	if (*pid == -1) {
		messenger_free(parent);
		return NULL;
	}
	return parent;
}
