/*
 * A live cluster in a test.
 *
 *	static int app(struct messenger *app, void *arg)
 *	{
 *		observe(app);
 *		return 0;
 *	}
 *
 *	Test(cluster, app_hears_that_all_is_ready)
 *	{
 *		struct cluster *c = cluster_start(&(struct options){.app = app, .workers = 1});
 *
 *		cluster_ready(c);
 *		cluster_wait_saw(c, "APP#1", "egg-pids [AGENT#1] -> egg-ready <options>");
 *		cluster_stop(c);
 *	}
 *
 * The test is the parent. Everything that the cluster's processes print or report, and
 * everything that the parent hears, goes into one record of lines, in the order in which it
 * came. A test waits for lines, never for time:
 *
 *	[master] app_worker#1:4711 start                               printed
 *	@app:0:4711 saw egg-ready {"workers":1} from master to app     observed
 *	@app:0:4711 loaded                                             reported
 *	@exit:0:4711 code: 110, signal: null                           reaped by the test
 *
 * A text that a test looks for has symbolic names: a pid is AGENT#n, APP#n (the n-th one forked),
 * MASTER or PARENT, the port is PORT, and the data of egg-ready is <options>. The head of a
 * log line (the time, the level ...) is left out; only cluster_next_line returns it. Lines that
 * are returned to a test have real pids, because another number in them may be equal to a pid.
 *
 * A test that fails prints the record. However a test ends, its processes are killed and its
 * folder is removed.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#ifndef HARNESS_H
#define HARNESS_H

#include "messenger.h"

/* ---- in the processes of the cluster --------------------------------------- */

/* Write one line into the record: "@role:slot:pid ...". A line is cut at the length that a pipe
 * writes at once (PIPE_BUF); a newline in it becomes a blank. */
void report(const struct messenger *messenger, const char *format, ...) CLUTCH_PRINTF(2, 3);

/* Report every message from now on: "saw ACTION DATA from X to Y", then " receiverPid P" and
 * " handle" if the message has them. */
int observe(struct messenger *messenger);

/*
 * Children that obey. An order is a line that begins with a word. A process carries it out, and
 * reports "did LINE: yes", or the error instead of "yes". Each process knows
 *
 *	exit CODE       ready STATUS       uncaught ERROR (in the listener)
 *	ignore          (ignore SIGTERM from now on)
 *	graceful        (messenger_graceful_exit)
 *
 * and the words of a table, or of several. The last row of a table has no word: its
 * function, if there is one, takes all other lines. A function gets the whole line, and
 * returns 0, -1 with errno, or the error of a listener. order_rest: the text behind the word.
 */
struct order {
	const char *word;
	int (*obey)(struct messenger *messenger, const char *line);
};
int obey_orders(struct messenger *messenger, const struct order *orders);
const char *order_rest(const char *line);

/* Write bytes to the process's own channel, without any check of them. */
int write_to_channel(const struct messenger *messenger, const void *bytes, size_t length);

/* ---- in the test ----------------------------------------------------------- */

struct cluster {
	pid_t master; /* in a process group of its own */
	struct messenger *parent;
	int port;   /* known once the cluster is ready, if it listens */
	int status; /* of a dead master, as waitpid(2) has it */
	bool dead;  /* is the master dead? */
	struct record *record;
};

/* The test's own folder, empty at first; it is removed, with all that is in it. */
const char *test_folder(void);

/* A free TCP port of 127.0.0.1, another one at each call. It is below the range of ephemeral
 * ports, so that no outgoing connection takes it before the test does. */
int test_free_port(void);

/*
 * For processes that belong to no cluster: each process that has inherited this descriptor is
 * killed at the end of the test, however it ends. Call it once in a test. leashed: the pids
 * of the processes that have it and are alive, without the test itself.
 */
int test_leash(void);
size_t test_leashed(pid_t *pids, size_t size);

/* How long a wait may take: 10 seconds, times TEST_TIME_SCALE; in ms. */
int time_limit(void);
int time_scale(void);

/*
 * cluster_start calls fork_cluster. Port 0 is any free port, workers 0 means one worker. PORT,
 * HOST, EGG_* and so on have no effect, because clear_environment is called first.
 *   ready    wait for egg-ready at the parent, and learn the port
 *   stop     send SIGTERM; the master must exit with 0, and no process is left
 *   ended    wait for the end; the master must exit with `code`, and no process is left
 *   killed   wait until a signal has killed the master, and the others have left
 * The last three free the cluster.
 */
struct cluster *cluster_start(const struct options *options);
void cluster_ready(struct cluster *cluster);
void cluster_stop(struct cluster *cluster);
void cluster_ended(struct cluster *cluster, int code);
void cluster_killed(struct cluster *cluster, int number);

/* Unset PORT, HOST, EGG_* and CLUTCH_TRACE. cluster_start calls this once in a test; a test that
 * sets one of these variables must call it before. */
void clear_environment(void);

/*
 * The record. `from` is the place at which to begin: 0 is the beginning of the record. `wait`
 * returns the place behind the line that it found, so that a chain of waits also checks the
 * order. count does not wait. line returns the last such line with real pids, without its head,
 * or NULL; it lives as long as the cluster.
 */
size_t cluster_wait(struct cluster *cluster, size_t from, const char *format, ...)
	CLUTCH_PRINTF(3, 4);
size_t cluster_count(struct cluster *cluster, size_t from, const char *format, ...)
	CLUTCH_PRINTF(3, 4);
const char *cluster_line(struct cluster *cluster, const char *format, ...) CLUTCH_PRINTF(2, 3);
/* The first line from `*from` on that has the text, with real pids and with its head; `*from`
 * is then behind this line. NULL if there is none. */
const char *cluster_next_line(struct cluster *cluster, size_t *from, const char *text);
size_t cluster_mark(struct cluster *cluster); /* the end of the record now */
void cluster_dump(struct cluster *cluster);   /* to stderr */

/*
 * The status. ask_status sends SIGUSR1, waits until the log has the whole status, and returns
 * the place where the status begins. The others look at the last status. status: a field as
 * text, without quotation marks, which lives until the next call; NULL if there is none. figure:
 * the field as a number; the test fails if there is none. `who` is AGENT#n, APP#n, PARENT,
 * "agent", "app 2" for a slot (the last of its rows), or NULL for the cluster's own fields.
 */
size_t cluster_ask_status(struct cluster *cluster);
const char *cluster_status(struct cluster *cluster, const char *who, const char *field);
long long cluster_figure(struct cluster *cluster, const char *who, const char *field);

/*
 * The messages that a process saw, in order: "egg-pids [APP#1] -> egg-ready <options>"; "" if
 * there are none. who is PARENT, AGENT#n or APP#n. Actions that begin with "test-" belong to
 * the test, and are left out. wait_saw waits until the process has seen exactly the expected
 * messages, from `from` on, and fails as soon as that is impossible. If more than one order
 * is right, `expected` has each of them, with " || " between them.
 */
const char *cluster_saw(struct cluster *cluster, size_t from, const char *who);
void cluster_wait_saw(struct cluster *cluster, const char *who, const char *expected);
void cluster_wait_saw_from(struct cluster *cluster, size_t from, const char *who,
                           const char *expected);

/* Wait for something else: is_so is called after each event, and otherwise every 5 ms.
 * The failure's message has `what`. */
void cluster_until(struct cluster *cluster, bool (*is_so)(struct cluster *cluster, void *arg),
                   void *arg, const char *what);

/* Let the parent turn its loop, so that it writes the messages that it has sent. */
void cluster_turn(struct cluster *cluster);

/* Give a process an order (see obey_orders). cluster_did also waits until the process has
 * carried it out, and returns the place in the record behind its report. */
void cluster_order(struct cluster *cluster, const char *who, const char *line);
size_t cluster_did(struct cluster *cluster, const char *who, const char *line);

/* ---- processes -------------------------------------------------------------- */

/* pid: wait until the process with the name (PARENT, MASTER, AGENT#n, APP#n) has been forked.
 * name: the way back; "?" if the pid is of no process of the cluster. */
pid_t cluster_pid(struct cluster *cluster, const char *who);
const char *cluster_name(struct cluster *cluster, pid_t pid);

/* Send a signal; wait until a process is dead (also as a zombie). wait_end waits until the
 * master has logged the death, and returns the reason, "code: 1, signal: null". */
void cluster_signal(struct cluster *cluster, const char *who, int number);
void cluster_wait_death(struct cluster *cluster, const char *who);
const char *cluster_wait_end(struct cluster *cluster, const char *who);

/* All live processes of the cluster, also the master and grandchildren: the processes that hold
 * the pipe of the record open. */
size_t cluster_processes(struct cluster *cluster, pid_t *pids, size_t size);

/* The line behind its head, such as "2026-11-29 14:03:21.123 ERROR 3061 app 2: "; the line
 * itself if it has no head. */
const char *behind_head(const char *line);

/* Let this process open no descriptor with this number or a larger one; free_descriptor() is
 * the lowest number that is free. */
void limit_descriptors(int number);
int free_descriptor(void);

bool process_is_alive(pid_t pid);          /* a zombie is not */
long process_memory(pid_t pid);            /* resident, KiB; -1: dead */
int process_descriptors(pid_t pid);        /* open ones; -1: dead */
int64_t process_processor_time(pid_t pid); /* used so far, ms; -1: dead */

/* A blocking TCP connection to the shared port, with the time limit as its timeout. */
int cluster_connect(const struct cluster *cluster);

#endif
