/*
 * System calls that fail on order.
 *
 * The program is linked with --wrap=NAME for each NAME in CALLS, so each such call
 * of the core, and of the test, lands in faults.c. (faults_find_missing tells which
 * other calls the core makes: they must be such that cannot fail.) A site is one call in the core:
 * the place in the code that the call returns to. faults_find_sites lists them all
 * from the program's own disassembly, so none can be forgotten; which of them are
 * reached, by whom and when, is counted in memory that all processes share; and a
 * plan says which of them is to fail, how, and when.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#ifndef FAULTS_H
#define FAULTS_H

#include "messenger.h"

#include <stdint.h>

/* What is wrapped: the Makefile reads this list. */
#define CALLS(X)                                                                                   \
	X(fork)                                                                                    \
	X(socketpair)                                                                              \
	X(poll)                                                                                    \
	X(read)                                                                                    \
	X(write)                                                                                   \
	X(send)                                                                                    \
	X(sendmsg)                                                                                 \
	X(recvmsg)                                                                                 \
	X(malloc)                                                                                  \
	X(calloc)                                                                                  \
	X(realloc)                                                                                 \
	X(strdup)                                                                                  \
	X(accept)                                                                                  \
	X(fcntl)                                                                                   \
	X(sigaction)                                                                               \
	X(kill)                                                                                    \
	X(waitpid)                                                                                 \
	X(waitid)                                                                                  \
	X(setpgid)                                                                                 \
	X(open)                                                                                    \
	X(close)                                                                                   \
	X(mkdir)                                                                                   \
	X(lstat)                                                                                   \
	X(pread)                                                                                   \
	X(fstat)                                                                                   \
	X(ftruncate)                                                                               \
	X(dprintf)                                                                                 \
	X(unlink)                                                                                  \
	X(rename)                                                                                  \
	X(socket)                                                                                  \
	X(setsockopt)                                                                              \
	X(bind)                                                                                    \
	X(listen)                                                                                  \
	X(getsockname)                                                                             \
	X(shutdown)                                                                                \
	X(setenv)                                                                                  \
	X(atexit)

#define CALL_NUMBER(name) CALL_##name,
enum call { CALLS(CALL_NUMBER) CALL_COUNT };

/* ANY_SITE: each call but poll that can fail in that way does, as when memory is short. */
enum { SITES_MAX = 256, ANY_SITE = SITES_MAX - 1, LIVES_MAX = 64, PLANS = 2 };

/* In which process. A newborn does not know yet what it will be. */
enum place { PLACE_PARENT, PLACE_MASTER, PLACE_NEWBORN, PLACE_AGENT, PLACE_APP, PLACES };

/* When: the acts of the play that test_faults.c gives. */
enum act {
	ACT_START,
	ACT_CONNECT,
	ACT_LARGE,
	ACT_HANDLES,
	ACT_FLOOD,
	ACT_DRAIN,
	ACT_KILL,
	ACT_LEAVE,
	ACT_QUIT,
	ACT_FAIL,
	ACT_GARBAGE,
	ACT_RELOAD,
	ACT_HANG,
	ACT_KILL_AGENT,
	ACT_QUIT_AGENT,
	ACT_AFTER,
	ACT_END,
	ACTS
};

/* How, besides an errno. */
enum {
	FAULT_ONE_BYTE = 1000, /* the call transfers no more than that */
	FAULT_HALF,            /* half of what it was asked for */
	FAULT_EARLY,           /* poll: nothing has happened, the time is over */
	FAULT_END,             /* recvmsg: the other end is gone, without an error */
	FAULT_NO_HANDLE        /* recvmsg: no descriptor was left for the handle */
};

struct site {
	uintptr_t address; /* the call returns to it; relative to the program */
	enum call call;
	char function[48], file[32];
	int line;
};

struct fault {
	int site, place, act; /* the first time from that act on */
	int how;              /* an errno or a FAULT_; 0: no fault */
	int lasts;            /* ms on the cluster's clock; 0: once */
};

/* In shared memory: one for each cluster. */
struct faults {
	int act;
	struct fault plan[PLANS];
	int fired[PLANS], fired_act[PLANS], fired_births[PLANS];
	int64_t fired_at[PLANS];
	int births; /* processes, the parent being the first */
	pid_t pids[LIVES_MAX];
	int places[LIVES_MAX];
	uint32_t hits[ACTS][SITES_MAX][PLACES];
	int command[SITES_MAX]; /* of fcntl, when it was last called there */
};

extern struct site sites[SITES_MAX];
extern int site_count;
extern struct faults *faults; /* NULL: nothing is counted, nothing fails */
extern int faults_life;       /* which of the births this process is */

/* Fill in `sites`. NULL, or what is wrong with the way the program was made. */
const char *faults_find_sites(void);

/* The functions that the core calls and that are not wrapped, though they may fail. */
const char *faults_find_missing(const char *objects);

/* The faults that a site can have: errno and FAULT_, up to a 0. */
const int *faults_of(const struct site *site, int command);

bool is_allocation(enum call call);

/* Must nobody be able to tell that it happened? */
bool fault_is_invisible(const struct site *site, int how);

const char *call_name(enum call call);
const char *fault_name(int how);

/* The true time. The cluster's clock runs faster, so that what it waits for a
 * second costs the test a fraction of one: so many times, less under a sanitizer. */
int64_t faults_clock(void);
int faults_speed(void);

/* The sanitizer's, if there is one: it calls back when it ends a process. */
void __sanitizer_set_death_callback(void (*callback)(void)) __attribute__((weak));

#endif
