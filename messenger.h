/*
 * clutch: egg-cluster's process model and messenger in POSIX C.
 *
 *                 parent
 *                   |
 *                 master          one process each, joined by socketpairs;
 *                /   |   \        there is no channel between two children:
 *           agent   app   app     the master relays
 *
 * This header is the whole contract. Part one is all that an application needs, and
 * all that it sees. Part two, the channel alone, is for a program that defines
 * CLUTCH_CHANNEL before the include. Part three is private: what the files of
 * clutch share among themselves.
 *
 * Unless a function says otherwise: times are milliseconds; a pointer that you
 * pass is read during the call and stays yours; an int result is 0, or -1 with
 * errno set and nothing changed; no function may be called from a signal
 * handler, nor from two threads.
 *
 * "egg:" names the JavaScript that a function mirrors.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#ifndef MESSENGER_H
#define MESSENGER_H

#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The version of this header. That of the library that runs is what clutch_version says. */
#define CLUTCH_VERSION "1.0.0"
#define CLUTCH_VERSION_MAJOR 1
#define CLUTCH_VERSION_MINOR 0
#define CLUTCH_VERSION_PATCH 0

/* ------------------------------------------------------------------------ */
/* Limits: each can be set on the compiler's command line, for tiny systems  */
/* ------------------------------------------------------------------------ */

/* The longest data of one message, in bytes. */
#ifndef MESSAGE_DATA_MAX
#define MESSAGE_DATA_MAX (1024 * 1024)
#endif

/* The longest action, in bytes: its length travels in one byte. */
#define MESSAGE_ACTION_MAX 255

/* A process reads up to this many bytes at once, from one channel at a time. */
#ifndef CHANNEL_READ_SIZE
#define CHANNEL_READ_SIZE (512 * 1024)
#endif

/* The size of the socket buffer (SO_SNDBUF) at both ends of a channel, in bytes; 0 keeps
 * the system's default. */
#ifndef CHANNEL_SOCKET_BUFFER
#define CHANNEL_SOCKET_BUFFER (512 * 1024)
#endif

/* A queue that has grown by this many bytes since it was last written is written at
 * once, and not at the end of the turn. */
#ifndef CHANNEL_FLUSH_SIZE
#define CHANNEL_FLUSH_SIZE (256 * 1024)
#endif

/* In child and parent: a send call that would queue more bytes than this fails. In the
 * master: of what is sent to a process that is not there, this many bytes wait. */
#ifndef CHANNEL_QUEUE_MAX
#define CHANNEL_QUEUE_MAX (4 * 1024 * 1024)
#endif

/* In the master: when a receiver's queue passes the high mark (bytes), the processes
 * that feed it are not read until it has fallen below the low mark. */
#ifndef CHANNEL_HIGH_WATER
#define CHANNEL_HIGH_WATER (1024 * 1024)
#endif
#ifndef CHANNEL_LOW_WATER
#define CHANNEL_LOW_WATER (256 * 1024)
#endif

/* The handles that may wait in one queue. */
#ifndef CHANNEL_HANDLES_MAX
#define CHANNEL_HANDLES_MAX 16
#endif

/* The default of options.stuck_timeout. */
#ifndef CLUTCH_STUCK_TIMEOUT
#define CLUTCH_STUCK_TIMEOUT 30000
#endif

/* The default of options.graceful_timeout. */
#ifndef CLUTCH_GRACEFUL_TIMEOUT
#define CLUTCH_GRACEFUL_TIMEOUT 30000
#endif

/* The most app workers of one master: 1024, or as many pids as find room in egg-pids. */
#ifndef CLUTCH_WORKERS_MAX
#define CLUTCH_WORKERS_MAX ((MESSAGE_DATA_MAX) < 12 * 1024 + 2 ? ((MESSAGE_DATA_MAX)-2) / 12 : 1024)
#endif

/* ------------------------------------------------------------------------ */
/* Part one: the application                                                 */
/* ------------------------------------------------------------------------ */

enum role { ROLE_NONE, ROLE_MASTER, ROLE_PARENT, ROLE_AGENT, ROLE_APP };

/*
 * One message. Received: everything in it is valid until the listener returns, and
 * the handle, if there is one, is closed then: dup(2) it to keep it. Sent:
 * everything in it stays yours, the handle too (the channel duplicates it).
 */
struct message {
	const char *action;   /* NULL or "": only listeners of every action hear it */
	enum role from;       /* set by the master; your value is overwritten */
	enum role to;         /* ROLE_NONE: agent to app, app to agent, parent to master */
	pid_t receiver_pid;   /* 0: none; otherwise it overrides `to` */
	const char *data;     /* JSON text; NULL is JavaScript's undefined */
	size_t data_length;   /* bytes; data[data_length] is 0 in what you receive */
	int handle;           /* a descriptor that travels along, or -1: set it, 0 is one, too */
	unsigned char *frame; /* NULL in what you hear and send; part two has a use for it */
};

/* A process's end of the cluster: the emitter, the send calls and the loop. */
struct messenger;

/*
 * Callbacks. Non-zero is C's uncaught exception: an app worker then leaves
 * gracefully and is replaced at once (see messenger_graceful_exit); the agent
 * logs it and lives on; in a parent, messenger_step returns -1 with ECANCELED.
 */
typedef int (*messenger_listener)(struct messenger *messenger, const struct message *message,
                                  void *arg);
typedef int (*messenger_watcher)(struct messenger *messenger, int descriptor, short revents,
                                 void *arg);
typedef int (*messenger_timer)(struct messenger *messenger, void *arg);
typedef int (*messenger_callback)(struct messenger *messenger, void *arg);

/* What start_cluster is told. Zero (or NULL) in a field means its default. */
struct options {
	/* Called once in the agent and in each app worker, after the fork. They
	 * add listeners and return 0; non-zero is a failed start. */
	messenger_callback agent;
	messenger_callback app;
	/* Given: the master binds host:port, and each app worker calls this for
	 * every connection it accepts, with a descriptor (non-blocking, close on
	 * exec) that is the callback's to close. If the callback watches the
	 * descriptor (messenger_watch), the connection counts as open until it is
	 * unwatched, and a worker that leaves waits for that. */
	int (*connection)(struct messenger *app, int descriptor, void *arg);
	/* Called first in every process that clutch forks, before anything else
	 * of the application's: close there what the process must not keep. The
	 * role is what the process will be: ROLE_MASTER (fork_cluster), ROLE_AGENT
	 * or ROLE_APP. After fork_cluster it is called in the master and again in
	 * its children: close once, and forget the number. */
	void (*in_child)(enum role role, void *arg);
	void *arg; /* handed to the four above */

	const char *name;         /* in the log; "egg" */
	const char *version;      /* of the program, for egg-scripts' --version; none */
	int workers;              /* 1 to CLUTCH_WORKERS_MAX; EGG_WORKERS, or the number of
	                           * processors that are on line */
	const char *host;         /* HOST, or 127.0.0.1; a numeric address, "localhost", or the
	                           * path of a Unix-domain socket, from / on: the file that a
	                           * killed master of this user has left is replaced, any other
	                           * is refused; the master removes its own at the end */
	int port;                 /* PORT, or 7001; -1: any free one */
	int listener;             /* instead of both: a stream socket that is bound, perhaps
	                           * shared with another cluster, and stays yours; 0: none */
	const char *env;          /* EGG_SERVER_ENV, or "prod"; in "local" and "unittest" no
	                           * app worker is re-forked, and no health checked */
	const char *pid_file;     /* locked while the master lives; none. A plain file of the
	                           * caller's user that is new, empty or holds a pid; no link.
	                           * Each child locks the byte of its own pid in it (a child
	                           * that closes the file again loses the lock). What SIGUSR1
	                           * shows, and what a reload has come to, is in
	                           * pid_file.status, too (0600) */
	int worker_start_timeout; /* until a process must be ready; 600000 */
	int app_close_timeout;    /* EGG_APP_CLOSE_TIMEOUT, EGG_MASTER_CLOSE_TIMEOUT, or 5000 */
	int agent_close_timeout;  /* EGG_AGENT_CLOSE_TIMEOUT, EGG_MASTER_CLOSE_TIMEOUT, or 5000 */
	int graceful_timeout;     /* of messenger_graceful_exit; CLUTCH_GRACEFUL_TIMEOUT */
	int stuck_timeout;        /* a process whose queue has held up its senders for this long
	                           * is killed; CLUTCH_STUCK_TIMEOUT */
	int refork_limit;         /* more re-forks than this within a minute wait; 59, or up to
	                           * 65536 */
	int log;                  /* where the log of all processes of the cluster goes, a
	                           * descriptor that stays open; 0: to stdout and stderr */
	int parent;               /* this end of the channel to the parent: start_cluster
	                           * closes it; 0: no parent */
	bool end_with_parent;     /* when the parent closes it, or dies, the cluster stops */
};

/*
 * Messages of the cluster
 *
 * These messages the cluster itself sends; a listener hears them as it hears any other.
 * "app" is every app worker, unless the last column says otherwise.
 *
 *	action             from    to      data     when
 *	agent-start        agent   master  -        the agent is ready
 *	agent-start        master  app     -        the agent is ready, and so is each later one
 *	listening          app     master  OPTIONS  the app worker is ready
 *	egg-pids           master  app     PIDS     the agent is ready, or has died; and to each
 *	                                            new app worker alone, as its first message
 *	egg-pids           master  agent   PIDS     an app worker is ready, has disconnected, or
 *	                                            has died; and to a new agent, when it is ready
 *	egg-ready          master  parent  OPTIONS  all are ready: once
 *	egg-ready          master  app     OPTIONS  all are ready: once; and to each later app
 *	                                            worker alone, when it is ready
 *	egg-ready          master  agent   OPTIONS  all are ready: once; and to each later agent,
 *	                                            when it is ready, after its egg-pids
 *	agent-worker-died  master  parent  -        the agent has died; a new one starts in 1 s
 *	app-worker-died    master  parent  -        an app worker has died, replaced or not
 *	reload-worker      parent  master  -        an order, by the application: replace the app
 *	                                            workers, one after the other
 *	reload-worker      agent   master  -        the same
 *	clutch-barrier     master  agent   -        a reload is about to end a worker; no listener
 *	                                            hears this one
 *	clutch-barrier     agent   master  -        the answer to it
 *	clutch-status      any     master  -        an application asks what the master knows
 *	clutch-status      master  that    STATUS   the answer to it
 *
 *	PIDS     [4711,4712]: to the agent those of all app workers that are ready, to an app
 *	         worker that of the agent; or []
 *	OPTIONS  {"workers":2,"port":7001,"address":"http://127.0.0.1:7001","protocol":"http"}
 *	OPTIONS  {"workers":2} if options.connection is NULL
 *	STATUS   {"name":"hello","pid":4709, ... "processes":[...],"left_out":0}: a row for each
 *	         process and for each slot without one (docs/operating.md); rows that find no
 *	         room in MESSAGE_DATA_MAX are only counted. There is no answer while more than
 *	         CHANNEL_HIGH_WATER bytes wait for the process that asks
 *
 * The two actions that tell of a death are sent only after egg-ready: a death before it is a
 * failed start. No process may send these actions in the cluster's place, nor egg's
 * agent-exit, app-exit, app-start, and, to the master, realport: the message is dropped,
 * and the first one of each process is logged. clutch-pause and clutch-resume are what
 * messenger_pause and messenger_resume tell the master.
 */

/*
 * Make the calling process the master: bind the port, start the agent, then
 * the app workers, relay their messages, re-fork the dead, and, on SIGTERM,
 * SIGINT or SIGQUIT, stop apps, agent and itself. Returns only in the master,
 * when every child is gone: 0 after such a signal; 1 if the start failed (one
 * line on stderr says why) or the cluster was given up. SIGUSR1: the master logs all that
 * it knows, as the answer to clutch-status has it; SIGUSR2: it replaces the app workers one
 * after the other, as the message reload-worker does. An order to reload while a reload is under
 * way begins it anew.
 * egg: egg-cluster/index.js startCluster, egg-cluster/lib/master.js
 */
int start_cluster(const struct options *options);

/*
 * Fork a process that calls start_cluster with these options and the caller as
 * its parent. Returns the parent's messenger (end it with messenger_close) and
 * stores the pid in *master: reaping it is the caller's task. NULL with errno:
 * ENOMEM, EMFILE, EAGAIN. As in egg the cluster outlives its parent, unless
 * options.end_with_parent is set: end it with SIGTERM to the master.
 * egg: child_process.fork in egg-scripts/lib/cmd/start.js
 */
struct messenger *fork_cluster(const struct options *options, pid_t *master);

/*
 * In a program that already lives
 *
 * What start_cluster and fork_cluster find is given back when start_cluster returns,
 * and fork_cluster changes nothing in the caller but the first row:
 *
 *	descriptors 0 to 2   those that are closed are opened on /dev/null, and stay so:
 *	                     no descriptor of clutch's is ever below 3. All other
 *	                     descriptors stay open in every process of the cluster, close
 *	                     on exec or not: see options.in_child
 *	signals              while start_cluster runs, the master owns SIGTERM, SIGINT,
 *	                     SIGQUIT, SIGCHLD, SIGUSR1, SIGUSR2, SIGPIPE, SIGXFSZ and
 *	                     SIGALRM, and unblocks them; SIGINT and SIGQUIT stay ignored
 *	                     where the starter ignores them. A handler of the caller's
 *	                     runs in no process that clutch forks. What an application
 *	                     starts finds the dispositions and the mask of the starter,
 *	                     SIGTTIN and SIGTTOU aside: these are ignored in the children
 *	                     of a cluster that has a terminal, which would stop them
 *	SIGPIPE, SIGXFSZ     do not end a process of the cluster: write(2) fails with
 *	                     EPIPE or EFBIG
 *	SIGALRM              is the application's in agent and app, until its process
 *	                     leaves: then it ends the process at the close timeout
 *	exit handlers        clutch ends its processes with _exit(2), after it has written
 *	                     out what was sent and flushed the output streams of stdio:
 *	                     no handler of atexit(3) runs, and stdin is left alone.
 *	                     exit(3), called by the application, does what the C library
 *	                     says, and what was sent is written out, too
 *	standard streams     stdout and stderr are flushed before each call's first fork;
 *	                     flush other output streams yourself, or each process writes
 *	                     what their buffers hold. clutch does not set line buffering:
 *	                     with setvbuf(3) a program sees its lines when they are printed
 *	threads              fork before you start any: only the calling thread lives on in
 *	                     the processes of the cluster
 *	children             the master waits only for processes that it has forked, by
 *	                     their pids; as PID 1 of a container it reaps orphans, too.
 *	                     Where its own process group is that of a process outside of
 *	                     its PID namespace (unshare --pid without setsid), the master
 *	                     cannot see the end of a dead worker's group, and gives it
 *	                     the whole close timeout
 *	working directory    and environment are the caller's; agent and app inherit both,
 *	                     an app finds CFORK_WORKER_INDEX and CFORK_WORKER_COUNT, too
 *	the log              the master waits at most a second for a log that blocks,
 *	                     then drops lines for ten; shared pipes stay as they are
 *
 * In a worker
 *
 * Agent and app lead process groups of their own. When one dies, what it has started and
 * what is still in its group gets SIGTERM, and after the close timeout SIGKILL. A reload
 * takes a worker out of egg-pids, then sends SIGTERM to its group. The worker stops
 * accepting, calls the callbacks of messenger_before_close in order of adding, serves
 * its open connections and hears its channel to the end, within the close timeout.
 */

/*
 * A messenger over one end of a connected stream socket, in the given role
 * (ROLE_PARENT for a parent that starts its master by itself). The descriptor
 * becomes the messenger's; on failure it stays the caller's. NULL with errno:
 * EBADF, ENOMEM. messenger_close writes out what was sent (waiting a second at
 * most for a full socket), closes, and frees: not inside a callback of its own,
 * unless it is joined (see messenger_join). NULL is ignored.
 */
struct messenger *messenger_open(int descriptor, enum role role);
void messenger_close(struct messenger *messenger);

/* The process's role, pid and slot. The slot is an app worker's number, 0 to
 * workers - 1, kept by its replacements (egg: CFORK_WORKER_INDEX); -1 in other roles. */
enum role messenger_role(const struct messenger *messenger);
pid_t messenger_pid(const struct messenger *messenger);
int messenger_slot(const struct messenger *messenger);

/*
 * The pids on the other side, as the master last told: in the agent those of
 * the listening apps, in an app that of the agent. The array is the
 * messenger's and is valid until the next message is heard; it may be NULL where
 * *count is 0.
 * egg: Messenger#opids
 */
const pid_t *messenger_opids(const struct messenger *messenger, size_t *count);

/*
 * Call the listener for each message of that action, in order of adding; the
 * action is copied. A NULL action hears every message, before the others do.
 * `once` is removed before its first call. remove_listener removes the most
 * recently added match of action, listener and arg. As in Node, what is added
 * or removed while a message is being delivered counts from the next message
 * on: a listener removed by an earlier one is still called for this message.
 * errno: EINVAL (no listener, or an empty or overlong action), ENOMEM; ENOENT
 * (remove: no such listener).
 * egg: EventEmitter on, once, removeListener; egg/lib/core/messenger/ipc.js
 */
int messenger_on(struct messenger *messenger, const char *action, messenger_listener listener,
                 void *arg);
int messenger_once(struct messenger *messenger, const char *action, messenger_listener listener,
                   void *arg);
int messenger_remove_listener(struct messenger *messenger, const char *action,
                              messenger_listener listener, void *arg);

/*
 * Send. The message is queued and leaves with the others of this turn of the
 * loop; what was accepted is also written out before an exit. `data` is a C
 * string of JSON, or NULL. errno: EINVAL (a role that does not exist), EMSGSIZE
 * (see the limits), ENOBUFS (the queue is full: nothing was queued; try again
 * in a later turn), EPIPE (the channel is closed), EMFILE (the handle), ENOMEM.
 * If a process on the way has no free descriptor, or the kernel no memory, the handle is
 * lost, and the message arrives without it.
 *   broadcast       every app, then the agent. Both or neither are queued.
 *   send_to         the process with that pid; EINVAL unless pid > 0
 *   send_random     one of opids, uniformly; ESRCH when there is none
 *   send_to_app     every app, the sender too if it is one
 *   send_to_agent   the agent
 *   send            `to`, or by the rules at `struct message` if ROLE_NONE
 *   send_message    any receiver, data with its length, a handle
 * egg: egg/lib/core/messenger/ipc.js
 */
int messenger_broadcast(struct messenger *messenger, const char *action, const char *data);
int messenger_send_to(struct messenger *messenger, pid_t pid, const char *action, const char *data);
int messenger_send_random(struct messenger *messenger, const char *action, const char *data);
int messenger_send_to_app(struct messenger *messenger, const char *action, const char *data);
int messenger_send_to_agent(struct messenger *messenger, const char *action, const char *data);
int messenger_send(struct messenger *messenger, const char *action, const char *data, enum role to);
int messenger_send_message(struct messenger *messenger, const struct message *message);

/*
 * The loop. Agent and app worker run it by themselves; a parent, or a role
 * function that waits for something, turns it with messenger_step.
 *
 * watch: call back when poll(2) reports one of `events` (POLLIN, POLLOUT, or 0;
 * also POLLHUP, POLLERR, POLLNVAL, unasked). Watching a descriptor again replaces
 * its events, watcher and arg. unwatch before you close it; ENOENT if it is
 * not watched. errno: EINVAL, ENOMEM.
 *
 * watch_connection: the same for a connection that options.connection was not given, but a
 * handle, say: until it is unwatched, an app worker that leaves waits for it.
 *
 * set_timeout, set_interval: call back after so many milliseconds, once or
 * again and again (without drift); the id (> 0) is for clear_timeout, ENOENT
 * if it is not pending. An interval that is late by several periods is called
 * once. errno: EINVAL (negative, or an interval of 0), ENOMEM.
 *
 * step: write what is queued, wait up to `timeout` (-1: without a limit) for
 * something to do, and do it: messages, watched descriptors, timers. Returns 1
 * while the channel is open; 0 once it is closed and all that came over it is
 * delivered (descriptors and timers go on); -1 with EBUSY inside a callback of
 * this messenger or a listener of any messenger of the process, EPROTO when the other
 * end broke the protocol, ECANCELED as said at the callbacks, or poll(2)'s errno.
 *
 * drain: turn the loop until at most `most` bytes of what was sent wait to be
 * written; at once, without a turn, if there are no more. A process that calls
 * messenger_drain(m, CHANNEL_FLUSH_SIZE) after each message never gets ENOBUFS.
 * Returns as step does, 1 if there is nothing to wait for.
 *
 * pause, resume: hear no message until resume, not even one that has arrived
 * already; sending, descriptors and timers go on. Meanwhile the processes that send
 * to this one are held up, as by any slow receiver: a listener that cannot send on
 * what it hears (ENOBUFS) pauses, and the backpressure reaches the source. A pause
 * ends with the channel, and when the process begins to leave. pause: EPIPE.
 *
 * A foreign loop polls what `descriptors` stores (at most `size`; it returns
 * how many there are), for `timeout` at the longest (-1: no limit), and then,
 * whatever happened, calls messenger_step(messenger, 0). It asks anew before each
 * wait: while the system is short of memory, the channel is not stored.
 */
int messenger_watch(struct messenger *messenger, int descriptor, short events,
                    messenger_watcher watcher, void *arg);
int messenger_watch_connection(struct messenger *messenger, int descriptor, short events,
                               messenger_watcher watcher, void *arg);
int messenger_unwatch(struct messenger *messenger, int descriptor);
int messenger_set_timeout(struct messenger *messenger, int milliseconds, messenger_timer timer,
                          void *arg);
int messenger_set_interval(struct messenger *messenger, int milliseconds, messenger_timer timer,
                           void *arg);
int messenger_clear_timeout(struct messenger *messenger, int id);
int messenger_step(struct messenger *messenger, int timeout);
int messenger_drain(struct messenger *messenger, size_t most);
int messenger_pause(struct messenger *messenger);
int messenger_resume(struct messenger *messenger);
size_t messenger_descriptors(const struct messenger *messenger, struct pollfd *set, size_t size);
int messenger_timeout(const struct messenger *messenger);

/*
 * Several messengers, one loop. From the join on each step of `loop` turns the channel of
 * `messenger`, too. So a parent has two clusters, and two children talk over a socketpair
 * of their own, past the master: one child sends an end of the pair to the other as a
 * handle, and each opens and joins its end. Descriptors and timers are those of the loop:
 * watch and the timers of a joined messenger fail with EINVAL, step and drain with EBUSY.
 *
 *   the end   `ended`, which may be NULL, is called once, when the channel is closed and all
 *             that came over it is delivered: with 0 if the other end is gone, with EPROTO
 *             if it broke the protocol. No step of the loop fails for that. The messenger is
 *             joined no more, and is to be closed, in `ended` or later.
 *   errors    A non-zero result of a joined messenger's callback counts as one of the loop:
 *             the process's role learns of it, or the loop's step fails.
 *   close     messenger_close of a joined messenger is allowed in every callback, its own
 *             too. No callback of that messenger is called any more. The call does not wait:
 *             what the socket does not take at once is lost, so that an end that does not read
 *             stops no process. Where the loop is closed first, which no callback of a joined
 *             messenger may do, those that it turned have a step of their own.
 *   limits    A send fails with ENOBUFS as any other: an end that does not read costs its
 *             process at most CHANNEL_QUEUE_MAX. `from` is what the other end says, if that
 *             is no master.
 *
 * errno: EINVAL (the process's own messenger, one that is joined, or has descriptors, timers
 * or joined ones itself, or a loop that is joined), EBUSY (inside a callback of `messenger`),
 * EPIPE (its channel is closed), ENOMEM.
 */
typedef int (*messenger_end)(struct messenger *messenger, int error, void *arg);
int messenger_join(struct messenger *messenger, struct messenger *loop, messenger_end ended,
                   void *arg);

/*
 * Agent and app worker, ready later: the role function calls ready_later, and
 * something that it set in motion calls ready with 0, or with non-zero for a
 * failed start (exit 1). Until then the cluster waits, up to
 * options.worker_start_timeout. ready, in a process that is ready (as a parent
 * always is): EALREADY.
 * egg: beforeStart, get-ready
 */
void messenger_ready_later(struct messenger *messenger);
int messenger_ready(struct messenger *messenger, int status);

/*
 * Agent and app worker: call back once when the process begins to leave, in
 * order of adding and outside of any step; messenger_closing is true by then. The
 * callback may turn the loop with messenger_step while it takes its time, within
 * the close timeout. Its result is only logged. An app worker then goes on until
 * its open connections have ended, within the same time. ENOMEM.
 * egg: beforeClose
 */
int messenger_before_close(struct messenger *messenger, messenger_callback callback, void *arg);

/* Is the process leaving? Then a server answers what it has begun, and ends. */
bool messenger_closing(const struct messenger *messenger);

/*
 * App worker: stop accepting, write out and close the channel (the master forks
 * a replacement at once), let the open connections finish, and exit 1 when the
 * last one is unwatched, after options.graceful_timeout at the latest. Returns
 * at once; later calls change nothing. In other roles: nothing.
 * egg: npm graceful, worker.disconnect
 */
void messenger_graceful_exit(struct messenger *messenger);

/* Milliseconds on a clock that only goes forward: what deadlines are made of. */
int64_t clutch_now(void);

/* The version of the library: CLUTCH_VERSION when the library was compiled, a constant string. */
const char *clutch_version(void);

#ifdef __GNUC__
#define CLUTCH_PRINTF(text, first) __attribute__((format(printf, text, first)))
#else
#define CLUTCH_PRINTF(text, first)
#endif

/*
 * Print a line in one write(2), so that the lines of several processes do not mix; the new
 * line at its end is added. Past 1023 bytes a line is cut. The process does not wait for a
 * reader that is slow: after 10 ms the line is lost. errno may change.
 */
void clutch_print_line(int descriptor, const char *format, ...) CLUTCH_PRINTF(2, 3);

/*
 * A line for the log: CLUTCH_INFO to stdout, the others to stderr. It begins with the local
 * time, the level, the pid, and the process with an app worker's slot:
 *
 *	2026-11-29 14:03:21.123 ERROR 3061 app 2: uncaught error 9 in a listener of "order"
 *
 * On a terminal it is shorter: without date, pid and INFO. CLUTCH_LOG, in the environment, is
 * the least level that a cluster prints: error, warn or info, which is the default. A control
 * character in the text becomes a question mark. A line that finds the log full is lost, as
 * above; the next line that finds room says how many were. errno may change.
 */
enum clutch_level { CLUTCH_ERROR, CLUTCH_WARN, CLUTCH_INFO };
void clutch_log(enum clutch_level level, const char *format, ...) CLUTCH_PRINTF(2, 3);

#ifdef __cplusplus
}
#endif

#endif /* MESSENGER_H */

/* ------------------------------------------------------------------------ */
/* Part two: the channel, for a program that defines CLUTCH_CHANNEL          */
/* ------------------------------------------------------------------------ */

#if (defined CLUTCH_CHANNEL || defined CLUTCH_PRIVATE) && !defined CLUTCH_CHANNEL_H
#define CLUTCH_CHANNEL_H

#ifdef __cplusplus
extern "C" {
#endif

/*
 * sendmessage.c: one message, one channel. Two processes that only want to talk need
 * this file alone. Their loop: channel_flush; poll for POLLIN, and for POLLOUT while
 * channel_pending; on any other event than POLLOUT channel_read, then channel_next until it
 * returns 0 or -1 (examples/ipc/native.c).
 *
 * A frame, in network byte order. `length` counts what follows it. The two NULs are part
 * of the frame, so that a receiver uses action and data as C strings where they stand.
 * Offsets are fixed, so that the master copies the bytes it read, and stamps from and to
 * into the copy.
 *
 *  0            4      5      6       7               8             12
 *  +------------+------+------+-------+---------------+-------------+--------+---+------+---+
 *  | length     | from |  to  | flags | action length | receiverPid | action | 0 | data | 0 |
 *  +------------+------+------+-------+---------------+-------------+--------+---+------+---+
 */
enum frame {
	FRAME_LENGTH = 0,
	FRAME_FROM = 4,
	FRAME_TO = 5,
	FRAME_FLAGS = 6,
	FRAME_ACTION_LENGTH = 7,
	FRAME_RECEIVER_PID = 8,
	FRAME_HEADER = 12,

	FRAME_HAS_DATA = 1,  /* flag: data is not undefined */
	FRAME_HAS_HANDLE = 2 /* flag: a handle came with the first byte */
};

/* The size of the largest frame, in bytes. */
#define FRAME_MAX ((size_t)FRAME_HEADER + MESSAGE_ACTION_MAX + 1 + MESSAGE_DATA_MAX + 1)

/* What an operation found at the other end. */
enum peer {
	PEER_ALIVE,
	PEER_GONE,  /* end of file, EPIPE, ECONNRESET: the peer is dead, or closed its end */
	PEER_BROKEN /* the peer broke the protocol */
};

/* A handle that waits until its frame is written. */
struct waiting_handle {
	uint64_t position; /* of the frame's first byte, in the stream */
	int descriptor;
};

/*
 * One end of a channel: what is left of an incomplete frame on the way in, and a queue
 * of frames on the way out.
 */
struct channel {
	int descriptor;        /* -1: there is no process at the other end yet; messages wait */
	bool write_closed;     /* the peer reads no more, or we shut our half down */
	bool starved;          /* a read or a write met a shortage of the system's */
	int64_t starved_since; /* the first of these writes in a row, or 0 */
	size_t limit;          /* of the queue, in bytes; 0: none */

	unsigned char *kept; /* what was read and not given, while another channel reads */
	size_t kept_length;  /* with a kept of NULL: there was no memory for it */
	int arrived[2];      /* handles that came before their frame was complete */
	int arrived_count;

	unsigned char *queue; /* to be written: the bytes from start to end */
	size_t queue_start, queue_end, queue_size;
	bool queue_used; /* since the last channel_trim */
	size_t flush_at; /* a queue of this many bytes is written at once */
	struct waiting_handle *waiting;
	size_t waiting_count;

	uint64_t written; /* bytes, ever */
	uint64_t bytes_in, messages_in, messages_out, handles_lost;
	const struct process *process; /* at the other end, for a trace, or NULL */
};

/* channel_init makes a channel without a process at the other end; channel_attach
 * gives it a descriptor, which becomes the channel's (non-blocking, close on
 * exec), and keeps what waits; on failure (fcntl(2)'s errno) the descriptor stays
 * the caller's. channel_close drops the queue and frees all memory; a second call does
 * nothing. */
void channel_init(struct channel *channel, size_t limit);
int channel_attach(struct channel *channel, int descriptor);
void channel_close(struct channel *channel);

/* A connected pair of stream sockets with the channel's buffer size. errno:
 * socketpair(2)'s. */
int channel_pair(int descriptors[2]);

/*
 * Copy a message to the end of the queue. A message that has a frame (channel_next sets
 * it; or it is one that sendmessage has put into the queue of another channel) is copied
 * as this frame, with message->from, message->to and message->handle stamped into the
 * copy: set frame to NULL if you have changed anything else. A queue that passes
 * CHANNEL_FLUSH_SIZE is written. errno as at messenger_send.
 * egg: npm sendmessage, child.send
 */
int sendmessage(struct channel *channel, const struct message *message);

/* The size of a message's frame in bytes; 0 with errno EINVAL or EMSGSIZE if
 * sendmessage would refuse the message. */
size_t message_size(const struct message *message);

/* The bytes that wait to be written. */
static inline size_t
channel_pending(const struct channel *channel)
{
	return channel->queue_end - channel->queue_start;
}

/* Write what the socket takes; the rest stays queued. Never PEER_BROKEN. */
enum peer channel_flush(struct channel *channel);

/* Write what is queued, waiting up to `timeout` for the socket to take it. */
enum peer channel_drain(struct channel *channel, int timeout);

/*
 * Read once, as much as there is, at most CHANNEL_READ_SIZE; then take out the
 * messages one by one, until there is none (0) or a bad frame (-1). A message is valid
 * until the next channel_read in this process, of any channel; message->handle is yours
 * to close. Messages that were not taken out come again after the channel's next read,
 * which reads nothing more.
 * PEER_BROKEN and -1 end the channel: errno is EPROTO if the peer broke the protocol,
 * ENOMEM if there was no memory for the rest of a frame.
 */
enum peer channel_read(struct channel *channel);
int channel_next(struct channel *channel, struct message *message);

/* Did a read or a write meet a shortage of the system's since the last call? Then do not
 * poll the channel, but try again soon: the socket would be ready at once. */
bool channel_take_starved(struct channel *channel);

/* Free the queue's memory if it was not used since the last call. Returns whether it
 * was: then call again, about a second later. */
bool channel_trim(struct channel *channel);

#ifdef __cplusplus
}
#endif

#endif /* CLUTCH_CHANNEL_H */

/* ------------------------------------------------------------------------ */
/* Part three: what the files of clutch share; private                       */
/* ------------------------------------------------------------------------ */

#if defined CLUTCH_PRIVATE && !defined CLUTCH_PRIVATE_H
#define CLUTCH_PRIVATE_H

/* Memory is short for something that may not be lost: wait 10 ms and return true; false
 * when a second has passed since *deadline was set, which is 0 before the first call. */
bool clutch_retry(int64_t *deadline);

/* Set errno and return -1. */
int clutch_fail(int error);

/* Make room for one more element of `size` bytes in an array that has only grown by this
 * function, one by one: its room is the next power of two. `array` is the address of the
 * pointer to it, which may change; -1: ENOMEM, and nothing has changed. */
int clutch_grow(void *array, size_t count, size_t size);

/* Make a descriptor non-blocking and close on exec; -1: fcntl(2)'s errno. */
int clutch_set_flags(int descriptor);

/* An alarm may end a write that waits: SIGALRM is handled, and not the application's. */
extern bool clutch_log_alarm;

/* Set the least level that is printed; false: no level has this name. */
bool clutch_log_set(const char *level);

/*
 * The trace (docs/trace.md): a line for each event, if CLUTCH_TRACE said so when
 * clutch_trace_init was called, which also says which process this one is. A macro, so that
 * nothing is prepared for a line that is not printed. Channel and message may be NULL. An
 * event whose name begins with s or w goes out over the channel, any other comes in.
 */
#define clutch_trace(...) (clutch_tracer != NULL ? clutch_tracer(__VA_ARGS__) : (void)0)
extern void (*clutch_tracer)(const char *event, const struct channel *channel,
                             const struct message *message, const char *detail, long value);
void clutch_trace_init(enum role role, int slot);
const char *clutch_role_name(enum role role);

/*
 * messenger.c, master's side: which process receives a message.
 *
 * A process's life:
 *
 *              fork_process              "agent-start", "listening"
 *     NONE ---------------> ONLINE ------------------------------> LISTENING
 *      ^                      |  \                                  /   |
 *      |             its end  |   \  told to leave: SIGTERM        /    | its end
 *      |             of the   |    +---------> LEAVING <----------+     | of the
 *      | refork,     channel  |                   |                     | channel
 *      | 1 s                  v                   v                     v
 *      |                  DISCONNECTED <----------+---------------------+
 *      |                      |
 *      |                      | exit, seen by waitid (from every state)
 *      +------------------- DEAD   an app's record is freed, the agent's place waits; the
 *                                  corpse is kept until its process group is gone
 *
 * A deadline and its reason are set together by expect (master.c):
 *
 *	set when                          the process must     if it does not
 *	START         forked              be ready             SIGTERM, "start timeout"
 *	BARRIER       to be replaced      be forgotten         it is told to leave anyway
 *	                                  by the agent
 *	LEAVE         sent SIGTERM        be gone              SIGKILL, "did not leave in time"
 *	DISCONNECTED  its channel ended   be gone (in a        SIGKILL, the same
 *	                                  graceful exit it has graceful_timeout more)
 *	DEAF          its reading end is  be gone              SIGKILL, "reads no more"
 *	              closed
 *	KILLED        sent SIGKILL        be gone              SIGKILL again
 *
 * The deadline of a process that was told to end never moves back.
 */
enum process_state {
	STATE_NONE,         /* never forked */
	STATE_ONLINE,       /* forked, not ready */
	STATE_LISTENING,    /* ready */
	STATE_LEAVING,      /* told to end; it hears its channel to the end */
	STATE_DISCONNECTED, /* its channel is closed, the process lives */
	STATE_DEAD
};

enum deadline {
	DEADLINE_NONE,
	DEADLINE_START,
	DEADLINE_BARRIER,
	DEADLINE_LEAVE, /* from here on the process was told to end */
	DEADLINE_DISCONNECTED,
	DEADLINE_DEAF,
	DEADLINE_KILLED
};

/* A dead process that is not reaped yet. A zombie keeps its number, so that no signal to
 * its process group reaches a stranger; it is reaped when the group is gone. */
struct corpse {
	struct corpse *next;
	pid_t pid;
	int64_t deadline; /* then the group gets SIGKILL */
	bool killed;      /* it got that */
};

/* Parent, agent or app worker, as the master knows it. */
struct process {
	struct channel channel;
	enum role role;
	enum process_state state;
	pid_t worker_id;        /* egg's name for the pid; 0 if there is none */
	int id;                 /* the n-th forked of its role, from 1 */
	int slot;               /* app worker: from 0, kept by its replacements */
	bool disable_refork;    /* it has not been ready yet */
	bool is_dev_reload;     /* another process has its slot: its death is no news */
	bool refused;           /* a refused action of it has been logged */
	bool paused;            /* it has asked for a pause: it reads nothing until it resumes */
	const char *killed_for; /* why the master gave it up, or NULL */
	struct process *next;   /* app workers, in order of registration */

	int64_t waits_since; /* the master does not read it since then, because queues that it
	                      * feeds are too long; 0: the master reads it */
	unsigned char waits_for[(CLUTCH_WORKERS_MAX + 2) / 8 + 1]; /* bits: parent, agent, slots */
	bool held;          /* a process for which this one waits can drain, or is held itself */
	int64_t full_since; /* its own queue has held up others since then; 0: it has not */
	uint64_t barriers_told, barriers_heard; /* agent: sent to it, and answered */
	uint64_t leave_after; /* app to be replaced: the agent must have answered this one */
	uint64_t dropped;     /* messages that found no room while it was not there */
	bool drop_logged, handle_logged;

	int64_t forked_at;
	int64_t deadline_at; /* 0: none */
	enum deadline deadline;
};

/* How this process logs and traces. start_cluster gives back what it finds. */
extern struct clutch_logging {
	struct process self; /* its role, slot and pid */
	enum clutch_level least;
	int descriptor; /* options.log */
} clutch_logging;

struct worker_manager {
	struct process *workers; /* egg's Map: in order of registration */
	struct process *agent;   /* one place for all agents, one after the other */
	struct process *parent;  /* NULL: none, or gone (egg: hasParent) */
};

/* egg: class Messenger of egg-cluster/lib/utils/messenger.js */
struct master_messenger {
	struct worker_manager *worker_manager;
	void (*emit)(void *master, const struct message *message);
	void *master;
	pid_t pid;
	struct process *sender; /* of the message being routed; NULL: the master */
	uint64_t undeliverable;
};

/*
 * send routes one message: it stamps from and to, and queues the message at
 * every receiver. receive does so for a message that came over the sender's
 * channel; a receiver whose queue is then too long makes the sender wait.
 * process_stop_waiting: lets the sender be read again, if every queue for which it
 * waits has drained; returns whether it may be read. process_waits_for: is the receiver's
 * queue one of those?
 */
void master_messenger_send(struct master_messenger *messenger, struct message *data);
void master_messenger_receive(struct master_messenger *messenger, struct process *sender,
                              struct message *msg);
bool process_stop_waiting(struct process *sender, const struct worker_manager *manager);
bool process_waits_for(const struct process *sender, const struct process *receiver);
bool process_is_above(const struct process *process, size_t mark);

/*
 * messenger.c, child's side: what agent.c and worker.c add to it.
 */
struct messenger {
	struct messenger *next; /* of this process */
	struct channel channel;
	enum role role;
	pid_t pid;
	int slot;
	pid_t *opids;
	size_t opid_count;
	unsigned random; /* rand_r(3)'s */

	struct listener *listeners; /* in order of adding */
	size_t listener_count;
	bool hears_every; /* a listener of every message was added */
	bool hears_some;  /* a listener of one action was added */
	bool unswept;     /* there are removed listeners in the list */
	bool paused, told_paused, has_unread;

	struct watch *watches;
	struct pollfd *set; /* the channel, then one for each watch */
	size_t watch_count;
	size_t watch_next;    /* of them, the loop has come to this one */
	struct timer *timers; /* in order of being due */
	size_t timer_count;
	int timer_id;
	unsigned turn; /* of the timers: those that a callback sets wait for the next */
	bool stepping, canceled, broken;
	bool closed; /* to be freed when its last callback has returned */

	struct messenger *loop; /* the one that turns this one, if it is joined */
	messenger_end ended;
	void *arg; /* of ended */

	/* set by the roles */
	void (*on_ready)(struct messenger *messenger, int status);
	void (*on_uncaught)(struct messenger *messenger, int result, const char *where);
	bool ready_later, ready, closing, graceful;
	struct closer *closers;
	size_t closer_count, closers_run;
	int accepted;       /* what options.connection is being handed, or -1 */
	size_t connections; /* accepted, and watched */
};

/* Send what must not fail: whatever else waits in the queue, and as soon as there is
 * memory for it. */
void messenger_tell(struct messenger *messenger, enum role to, const char *action,
                    const char *data);

/* Call the callbacks of messenger_before_close, each once. Returns how many
 * failed. */
int messenger_run_closers(struct messenger *messenger);

/* own: this is the messenger of the process's role. What was sent over it is written out by
 * flush_own, also before exit(3); -1: atexit(3) failed. disown, in a forked child: the
 * messengers of its parent, all of them, are its parent's. */
int messenger_own(struct messenger *messenger);
void messenger_flush_own(void);
void messenger_disown(void);

/*
 * The roles. Each runs in a freshly forked child and ends it: it never returns.
 * The listener is the shared port's, or -1; address is its JSON.
 * egg: agent_worker.js, app_worker.js
 */
void agent_run(struct messenger *agent, const struct options *options);
void worker_run(struct messenger *app, const struct options *options, int listener,
                const char *address);

/*
 * agent.c, for both roles (egg: npm graceful-process). start calls the role's function
 * and, unless the process will be ready later, says that it is ready; if that fails, fail
 * ends the process. From then on catch_sigterm catches SIGTERM; terminated tells whether
 * it came. leave runs the callbacks of messenger_before_close; soon after the timeout the
 * process ends by itself. exit writes out what was sent and printed, and ends the process.
 */
void clutch_process_start(struct messenger *messenger, messenger_callback role, void *arg);
void clutch_process_fail(const struct messenger *messenger);
void clutch_process_catch_sigterm(void);
bool clutch_process_terminated(void);
void clutch_process_leave(struct messenger *messenger, int code, int timeout);
void clutch_process_exit(int code);

/*
 * messenger.c, for every loop: a signal handler, set with catch_signal, calls
 * wake_up, which makes the descriptor of wake_open (one for a process; -1 with
 * socketpair(2)'s errno) readable until wake_drain: the self-pipe trick. A forked child
 * closes its parent's with wake_close.
 */
int clutch_catch_signal(int number, void (*handler)(int));
int clutch_wake_open(void);
void clutch_wake_up(void);
void clutch_wake_drain(int descriptor);
void clutch_wake_close(void);

#endif /* CLUTCH_PRIVATE_H */
