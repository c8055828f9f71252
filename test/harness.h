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
 * The test is the parent. All that the cluster's processes print, all that they
 * report, and all that the parent hears, is one record of lines, in the order in
 * which it came. A test waits for lines, never for time:
 *
 *	[master] app_worker#1:4711 start                               printed
 *	@app:0:4711 saw egg-ready {"workers":1} from master to app     observed
 *	@app:0:4711 loaded                                             reported
 *	@exit:0:4711 code: 110, signal: null                           reaped by the test
 *
 * What a test looks for has symbolic names: a pid is AGENT#n, APP#n (the n-th one forked),
 * MASTER or PARENT, the port is PORT, and what egg-ready carries is <options>. A line of the
 * log is looked at behind its head, which has the time; cluster_next_line has it whole.
 * Lines that a test is given have pids: a number in them may be equal to one.
 *
 * A test that fails prints the record. However a test ends,
 * none of its processes outlives it, nor does its folder.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#ifndef HARNESS_H
#define HARNESS_H

#include "messenger.h"

/* ---- in the processes of the cluster --------------------------------------- */

/* One line in the record: "@role:slot:pid ...". Longer than a pipe writes at
 * once it is cut; a new line in it becomes a blank. */
void report(const struct messenger *messenger, const char *format, ...) CLUTCH_PRINTF(2, 3);

/* Report every message that comes from now on: "saw ACTION DATA from X to Y",
 * then " receiverPid P" and " handle" if it has them. */
int observe(struct messenger *messenger);

/*
 * Children that obey. An order is a line that begins with a word. A process does it, and
 * reports "did LINE: yes", or why it could not. Each process knows
 *
 *	exit CODE       ready STATUS       uncaught ERROR (in the listener)
 *	ignore          (it ignores SIGTERM from now on)
 *	graceful        (messenger_graceful_exit)
 *
 * and the words of a table, or of several. The last row of a table has no word: its
 * function, if there is one, takes each other line. The function gets the whole line, and returns 0, -1 with errno, or
 * the error of a listener. order_rest: what stands behind the word.
 */
struct order {
	const char *word;
	int (*obey)(struct messenger *messenger, const char *line);
};
int obey_orders(struct messenger *messenger, const struct order *orders);
const char *order_rest(const char *line);

/* Write bytes to the process's own channel, past all that would check them. */
int raw_write(const struct messenger *messenger, const void *bytes, size_t length);

/* ---- in the test ----------------------------------------------------------- */

struct cluster {
	pid_t master; /* in a process group of its own */
	struct messenger *parent;
	int port;   /* once it is ready, if it has one */
	int status; /* of the master, as waitpid(2) has it, once it is dead */
	bool dead;  /* is it? */
	struct record *record;
};

/* A folder of the test's own, empty at first; it is removed with all in it. */
const char *test_folder(void);

/* A TCP port of 127.0.0.1 that is free, another one at each call. It is below those that the
 * system gives to connections, so that none of them has it before the test does. */
int test_free_port(void);

/*
 * For processes that are no cluster's: whoever has inherited this descriptor is
 * killed when the test is over, however it ends. leashed: those that live, without
 * the test itself. Once in a test.
 */
int test_leash(void);
size_t test_leashed(pid_t *pids, size_t size);

/* How long a wait may take: seconds 10, times TEST_TIME_SCALE. */
int time_limit(void);
int time_scale(void);

/*
 * fork_cluster. A port of 0 is any free one, workers of 0
 * are one, and the environment's PORT, HOST, EGG_ and so on are not seen:
 * clear_environment was called.
 *   ready    wait for egg-ready at the parent, and learn the port
 *   stop     SIGTERM, exit 0, and nobody is left
 *   ended    wait for its end, exit `code`, and nobody is left
 *   killed   wait until a signal has killed the master, and the others have left
 * The last three free it.
 */
struct cluster *cluster_start(const struct options *options);
void cluster_ready(struct cluster *cluster);
void cluster_stop(struct cluster *cluster);
void cluster_ended(struct cluster *cluster, int code);
void cluster_killed(struct cluster *cluster, int number);

/* Forget PORT, HOST, EGG_* and CLUTCH_TRACE; cluster_start does it by itself,
 * once in a test. Call it before you set one of them. */
void clear_environment(void);

/*
 * The record. `from` is where to look: 0 is its beginning, and what `wait`
 * returns is behind the line that it found, so that a chain of waits is also
 * about order. count does not wait. line finds the last such line, or NULL, as it
 * was written, without its head; it lives as long as the cluster.
 */
size_t cluster_wait(struct cluster *cluster, size_t from, const char *format, ...)
	CLUTCH_PRINTF(3, 4);
size_t cluster_count(struct cluster *cluster, size_t from, const char *format, ...)
	CLUTCH_PRINTF(3, 4);
const char *cluster_line(struct cluster *cluster, const char *format, ...) CLUTCH_PRINTF(2, 3);
/* The first line from `*from` on that has the text, as it was written: with pids, and with
 * its head; and `*from` is then behind it. NULL if there is none. */
const char *cluster_next_line(struct cluster *cluster, size_t *from, const char *text);
size_t cluster_mark(struct cluster *cluster); /* behind what is there now */
void cluster_dump(struct cluster *cluster);   /* to stderr */

/*
 * The status. ask_status sends SIGUSR1 and waits until the log has all of it; returns where
 * it begins. The others look at the last one. status: a field as text, without quotation
 * marks; it lives until the next call; NULL if there is none. figure: the field as a number;
 * the test fails if there is none. `who` is AGENT#n, APP#n, PARENT, "agent", "app 2" for a
 * slot (the last row, if it has several), or NULL for the cluster's own fields.
 */
size_t cluster_ask_status(struct cluster *cluster);
const char *cluster_status(struct cluster *cluster, const char *who, const char *field);
long long cluster_figure(struct cluster *cluster, const char *who, const char *field);

/*
 * What a process saw, in order, in egg's way: "egg-pids [APP#1] -> egg-ready
 * <options>"; "" if nothing. who is PARENT, AGENT#n or APP#n. Actions that begin
 * with "test-" are the test's own, and left out. wait_saw waits until all that it
 * saw, from `from` on, is that; it fails as soon as it cannot become that. Where
 * the order is nobody's promise, " || " stands between what may be.
 */
const char *cluster_saw(struct cluster *cluster, size_t from, const char *who);
void cluster_wait_saw(struct cluster *cluster, const char *who, const char *expected);
void cluster_wait_saw_from(struct cluster *cluster, size_t from, const char *who,
                           const char *expected);

/* Wait for something else. It is asked again after each event, and otherwise
 * every 5 ms; `what` is for the failure's message. */
void cluster_until(struct cluster *cluster, bool (*is_so)(struct cluster *cluster, void *arg),
                   void *arg, const char *what);

/* Let the parent turn its loop, so that what it has sent leaves. */
void cluster_turn(struct cluster *cluster);

/* Give a process an order, see obey_orders. did: and wait until it has done that; returns the
 * place in the record behind it. */
void cluster_order(struct cluster *cluster, const char *who, const char *line);
size_t cluster_did(struct cluster *cluster, const char *who, const char *line);

/* ---- processes -------------------------------------------------------------- */

/* By name: PARENT, MASTER, AGENT#n, APP#n; wait until it has been forked. And
 * back: "?" if it is none of the cluster's. */
pid_t cluster_pid(struct cluster *cluster, const char *who);
const char *cluster_name(struct cluster *cluster, pid_t pid);

/* Send a signal; wait until it is dead (a zombie is). wait_end waits until the
 * master has logged its death and returns the reason, "code: 1, signal: null". */
void cluster_signal(struct cluster *cluster, const char *who, int number);
void cluster_wait_death(struct cluster *cluster, const char *who);
const char *cluster_wait_end(struct cluster *cluster, const char *who);

/* Those alive, the master and grandchildren too: who holds the record's pipe. */
size_t cluster_processes(struct cluster *cluster, pid_t *pids, size_t size);

/* Behind the head of a line of the log: "2026-11-29 14:03:21.123 ERROR 3061 app 2: "; the
 * line itself if it has none. */
const char *behind_head(const char *line);

bool process_is_alive(pid_t pid);          /* a zombie is not */
long process_memory(pid_t pid);            /* resident, KiB; -1: dead */
int process_descriptors(pid_t pid);        /* open ones; -1: dead */
int64_t process_processor_time(pid_t pid); /* used so far, ms; -1: dead */

/* A TCP connection to the shared port, blocking, with the time limit on it. */
int cluster_connect(const struct cluster *cluster);

#endif
