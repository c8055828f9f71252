/*
 * System calls that fail on order.
 *
 * The program is linked with --wrap=NAME for each NAME in CALLS, so each such call
 * of the core, and of the test, goes to faults.c. (faults_find_missing finds the other
 * calls of the core; only calls that cannot fail are allowed.) A site is one call in the
 * core: the address that the call returns to. faults_find_sites lists all sites from
 * the program's own disassembly, so none can be forgotten. Memory that all processes share
 * counts when each site is reached, and in which process. A plan says which site is to fail,
 * how, and when.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#ifndef FAULTS_H
#define FAULTS_H

#include "messenger.h"

#include <stdint.h>

/* The functions that are wrapped; the Makefile reads this list. */
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

/* ANY_SITE: every site but poll that can fail in this way fails, as when memory is short. */
enum { SITES_MAX = 256, ANY_SITE = SITES_MAX - 1, LIVES_MAX = 64, PLANS = 2 };

/* The process in which a call fails. A newborn child does not know its role yet. */
enum place { PLACE_PARENT, PLACE_MASTER, PLACE_NEWBORN, PLACE_AGENT, PLACE_APP, PLACES };

/* The time at which a call fails: the acts of the play in test_faults.c. */
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

/* The ways to fail besides an errno. */
enum {
	FAULT_ONE_BYTE = 1000, /* the call transfers only one byte */
	FAULT_HALF,            /* the call transfers half of the bytes */
	FAULT_EARLY,           /* poll: timed out at once, with no event */
	FAULT_END,             /* recvmsg: end of file */
	FAULT_NO_HANDLE        /* recvmsg: no descriptor was left for the handle */
};

struct site {
	uintptr_t address; /* where the call returns to, relative to the program */
	enum call call;
	char function[48], file[32];
	int line;
};

struct fault {
	int site, place, act; /* at the first call from that act on */
	int how;              /* an errno or a FAULT_; 0: no fault */
	int lasts;            /* ms on the cluster's clock; 0: only one call fails */
};

/* In shared memory, for each cluster. */
struct faults {
	int act;
	struct fault plan[PLANS];
	int fired[PLANS], fired_act[PLANS], fired_births[PLANS];
	int64_t fired_at[PLANS];
	int births; /* the number of processes so far; the parent is the first */
	pid_t pids[LIVES_MAX];
	int places[LIVES_MAX];
	uint32_t hits[ACTS][SITES_MAX][PLACES];
	int command[SITES_MAX]; /* of the last call of fcntl at this site */
};

extern struct site sites[SITES_MAX];
extern int site_count;
extern struct faults *faults; /* NULL: no call is counted, and none fails */
extern int faults_life;       /* which of the births this process is */

/* Fill in `sites`. Returns NULL, or what is wrong with the build of the program. */
const char *faults_find_sites(void);

/* The functions that the core calls and that are not wrapped, though they may fail. */
const char *faults_find_missing(const char *objects);

/* The faults that a site can have: errno and FAULT_, up to a 0. */
const int *faults_of(const struct site *site, int command);

bool is_allocation(enum call call);

/* Must the fault have no effect that can be observed? */
bool fault_is_invisible(const struct site *site, int how);

const char *call_name(enum call call);
const char *fault_name(int how);

/* The true time. The cluster's clock runs faster, by a factor that is smaller under a sanitizer
 * and on a busy machine, so that a timeout of a second costs the test a fraction of a second. */
int64_t faults_clock(void);
int faults_speed(void);
/* From now on the clock of this process is as slow as the true one. */
void faults_run_slowly(void);

/* A sanitizer, if there is one, calls the callback when it ends a process. */
void __sanitizer_set_death_callback(void (*callback)(void)) __attribute__((weak));

#endif
