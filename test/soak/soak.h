/*
 * The declarations that the files of the soak test share. soak.c describes the test.
 *
 *	traffic.c   every process: it sends numbered messages, and checks those that it hears
 *	member.c    agent and app worker: the lists of pids, orders of the parent, helpers
 *	pages.c     HTTP: the pages of an app worker, and the parent's requests
 *	kernel.c    facts about processes, from /proc
 *	claims.c    the parent: which messages must have arrived, and which process must have ended
 *	storm.c     the parent: signals, and the parts of the storm
 *	life.c      one master from its start to its end
 *	totals.c    the sums over all lives: state file, table, result
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#ifndef SOAK_H
#define SOAK_H

#include "messenger.h"

#include <signal.h>

enum {
	APPS = 4,

	/* The sizes of the tables of one master's life. A life ends early when the records or the
	 * helpers have filled half of their table. */
	RECORDS = 768,
	STREAMS = 800,
	HEARD = 4096,
	HELPERS = 128,
	REQUESTS = 64,
	CHATTERS = 6,
	COMPLAINTS = 4, /* that the record of one process keeps */

	/* Milliseconds. */
	TICK = 4,
	CLOSE_TIMEOUT = 3000,
	CLEAN_LEAVE = 2500, /* a process that leaves within this time is not killed by the master */
	HELPER_SENDS = 4000, /* how long a helper sends after the death of its app worker */
	SILENCE_LIMIT = 3000 /* how long the parent may hear nothing while all others send to it */
};

enum way { BY_PID, TO_AGENT, TO_APPS, TO_PARENT, WAYS, ANY_WAY = WAYS };

/* The messages that a process sends one way. A pid that is no longer listed keeps its count: lists
 * travel, and a late list must not make a count begin anew. */
struct stream {
	enum way way;
	enum role whose; /* the role whose list names the pid */
	pid_t pid;       /* 0 but for BY_PID */
	unsigned long long sent;
	bool listed;
};

/* The messages that a process hears from one sender one way. The row of ANY_WAY has the last serial
 * number of all ways. */
struct heard {
	pid_t pid; /* the sender's; 0: the row is free */
	enum way way;
	unsigned long long first, last; /* numbers; 0: nothing was heard yet */
	unsigned long long before;      /* sent before the receiver was born */
	unsigned long long at_ready;    /* heard before the receiver was told egg-ready */
	uint64_t seen;                  /* bit i: the number last - i was heard */
};

struct counts {
	long long delivered, refused, lost, doubled, disordered, damaged, astray;
	long long dropped; /* sent before the receiver was born, past the limit of its queue */
	long long requests;
};

enum order { ORDER_NONE, ORDER_HELPER, ORDER_STRAY, ORDER_SLOW, ORDER_GROUP };

/* The report of one process to the parent. It is in shared memory, so the report of a killed
 * process is complete, too. */
struct record {
	pid_t pid; /* 0: not filled in yet */
	enum role role;
	int slot;
	long long birth;
	int64_t ready_at, left_at; /* when egg-ready was heard; when SIGTERM began the leaving */
	bool slow, in_other_group;

	enum order order;     /* the parent sets it, the process clears it */
	int order_signal;     /* ORDER_HELPER, ORDER_STRAY: the signal to end itself with */
	int64_t order_until;  /* ORDER_SLOW: how long to read slowly */
	bool order_stubborn;  /* ORDER_HELPER: the helper ignores SIGTERM */
	unsigned order_count; /* ORDER_HELPER: the number of helpers */

	struct counts counts;
	int complaint_count;
	char complaints[COMPLAINTS][200];
	int stream_count;
	struct stream streams[STREAMS];
	struct heard heard[HEARD];
};

/* A process that an app worker has forked, and that keeps its channel. */
struct helper {
	pid_t pid;               /* 0: not filled in yet */
	bool is_stray;           /* it has left the process group by setsid */
	int64_t alone_at;        /* when its app worker was dead; 0: the worker lives */
	unsigned long long sent; /* frames that the helper has sent after that */
};

/* A request for a page that is answered late. */
struct hold {
	pid_t pid;       /* of the app worker that has the request; 0: not accepted yet */
	bool over_leave; /* it was answered while the app worker was leaving */
};

struct shared {
	bool quiet; /* a pause: no process sends */
	int record_count, helper_count;
	struct helper helpers[HELPERS];
	struct hold holds[REQUESTS];
	struct record records[RECORDS]; /* the first is the parent's */
};

/* ---- traffic.c ------------------------------------------------------------- */

extern struct shared *shared;
extern struct record *me;
extern const char *const way_names[];

unsigned random_below(unsigned limit);
void random_seed(unsigned long long seed);
int traffic_open(struct messenger *messenger, enum role role, int slot);
void traffic_mute(void);
void traffic_slow_until(int64_t until);
void add_stream(enum way way, enum role whose, pid_t pid);
void list_pids(enum role whose, const pid_t *pids, size_t count);
struct stream *stream_of(struct record *record, enum way way, pid_t pid);
struct heard *heard_of(struct record *record, pid_t pid, enum way way);
bool hears_all(const struct record *receiver, long long sender_birth, enum way way);

/* ---- member.c, pages.c ----------------------------------------------------- */

int member(struct messenger *messenger, void *arg);
int pages_serve(struct messenger *app, int descriptor, void *arg);
void pages_ask(int most, int holds);
int pages_pending(void);

/* ---- kernel.c -------------------------------------------------------------- */

char process_state(pid_t pid, pid_t *parent);
long process_memory(pid_t pid, const char *field);
bool process_writes_pipe(pid_t pid);
long process_descriptors(pid_t pid);
int process_children(pid_t parent, int *zombies, int signal);
void close_descriptors(int but, int and_but);

/* ---- the parent ------------------------------------------------------------ */

enum part {
	PART_LOG,    /* the pipe of the log is full: its reader stops, and goes on */
	PART_HELPER, /* helpers keep the channel of a dead app worker, and send */
	PART_RELOAD,
	PART_FORKS, /* fork fails */
	PART_STRAY, /* a helper that has left the process group */
	PART_SLOW,  /* an app worker reads slowly */
	PART_GROUP, /* an app worker has left its process group, and is replaced by a reload */
	PART_HTTP,
	PARTS
};

/* The sums over all lives: whole numbers, each with its name in the state file. */
#define TOTALS(X)                                                                                  \
	X(seed)                                                                                    \
	X(runs)                                                                                    \
	X(lives)                                                                                   \
	X(milliseconds)                                                                            \
	X(delivered)                                                                               \
	X(refused)                                                                                 \
	X(dropped)                                                                                 \
	X(late)                                                                                    \
	X(lost)                                                                                    \
	X(lost_by_reload)                                                                          \
	X(doubled)                                                                                 \
	X(disordered)                                                                              \
	X(damaged)                                                                                 \
	X(astray)                                                                                  \
	X(apps_killed)                                                                             \
	X(apps_terminated)                                                                         \
	X(agents_killed)                                                                           \
	X(agents_terminated)                                                                       \
	X(stops)                                                                                   \
	X(forks)                                                                                   \
	X(masters_killed)                                                                          \
	X(masters_ended)                                                                           \
	X(reloads)                                                                                 \
	X(replaced)                                                                                \
	X(helpers)                                                                                 \
	X(strays)                                                                                  \
	X(groups)                                                                                  \
	X(slow)                                                                                    \
	X(logs)                                                                                    \
	X(failed_forks)                                                                            \
	X(requests)                                                                                \
	X(requests_again)                                                                          \
	X(held)                                                                                    \
	X(zombies)                                                                                 \
	X(orphans)                                                                                 \
	X(descriptors)                                                                             \
	X(silence)                                                                                 \
	X(rss)                                                                                     \
	X(rss_growth)                                                                              \
	X(failures)

struct totals {
#define X(name) long long name;
	TOTALS(X)
#undef X
};

/* The parent's own notes about the process of a record. */
struct victim {
	bool dead;
	int sentence; /* SIGKILL or SIGTERM, which the parent has sent or ordered; 0: none */
	int64_t sentenced_at, died_at;
	int64_t continue_at; /* the process is stopped until then; 0: it is not stopped */
	bool in_other_group; /* the sums count the process as one that has left its group */
	bool overdue;        /* the process lives although it was replaced long ago: reported */
};

enum log_mode { LOG_READ, LOG_TRICKLE, LOG_STOPPED };

struct soak {
	struct messenger *messenger;
	struct totals totals; /* of the lives that have ended */
	int64_t target;       /* milliseconds of storm */
	unsigned long seed;
	const char *state_path, *result_path;
	volatile sig_atomic_t interrupted; /* the number of the signal that ends the run, or 0 */

	/* This life. */
	pid_t master;
	bool started, ended, is_storm, is_ending;
	bool master_killed;
	int status; /* of the master, when it has ended */
	int port;
	int64_t started_at, heard_at, looked_at,
		killed_at; /* when the last app worker died by SIGKILL */
	long rss;          /* of the master, the greatest so far, in KiB */
	long long heard;   /* messages that the parent had heard at heard_at */
	struct victim victims[RECORDS];
	int64_t helpers_over[HELPERS]; /* when the helper ended; -1: it was overdue, and killed */
	bool helpers_counted[HELPERS];

	/* Parts of the storm that are under way. */
	int log[2];
	enum log_mode log_mode;
	int64_t log_next_at;
	pid_t chatters[CHATTERS], load;
	int64_t forks_until, reload_at, reload_seen_at, burst_until;
	pid_t slow, leaves_group;
};

extern struct soak soak;
extern const char *const part_names[PARTS];

void fail(const char *format, ...) CLUTCH_PRINTF(1, 2);
bool turn(void);
bool wait_until(bool (*condition)(void), int limit);

/* claims.c */
void watch_processes(void);
bool is_complete(void);
bool is_quiet(void);
void explain_incomplete(void);
void explain_noise(void);
void check_replaced(void);
bool are_helpers_gone(void);

/* storm.c */
void storm(int64_t milliseconds, bool with_parts);
void storm_turn(void);
void storm_end(void);
void continue_all(void);
const char *parts_under_way(void);
bool part_has_occurred(enum part part);
const char *part_skipped(enum part part);
void log_watch(void);
bool prepare_user(void);

/* life.c */
void live(int64_t milliseconds, bool to_be_killed);
void end_lives(void);

/* totals.c */
struct totals totals_now(void);
#define CHATTER '~' /* a line that begins with it is only there to fill the log's pipe */
int totals_load(void);
int totals_save(void);
int totals_report(void);
void log_line(const char *line);
const char *last_log_line(void);

#endif
