/*
 * What the files of the bench share.
 *
 * bench.c is the harness: which contestants run which workload, and the table.
 * A contestant is a function that runs one round and returns its figures; the
 * floors are in floors.c, clutch is in clutch.c, cluster-client in client.c, and
 * start.c measures the program tree.c, which is a cluster or a floor of its own.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#ifndef BENCH_H
#define BENCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum {
	FIGURES_MAX = 5,         /* of one workload */
	COPY_CHUNK = 64 * 1024,  /* bytes that the floor `copy` moves at once */
	LATENCIES_MAX = 1 << 18, /* round trips kept of one round */
	STEP = 100               /* milliseconds after which a wait calls look_around */
};

struct trial {
	size_t bytes; /* data of one message */
	int apps;
	int64_t duration; /* nanoseconds of sending */
};

typedef void contest(const struct trial *trial, double *figures);

/* floors.c */
contest floor_copy, floor_copy_once, floor_copy_best, floor_copy_turn, floor_naive, floor_pingpong,
	floor_star;

/* clutch.c */
contest clutch_unicast, clutch_crowd, clutch_unicast_turn, clutch_mixed, clutch_broadcast,
	clutch_latency, clutch_scale;

/* client.c */
contest client_invoke, master_fanout, client_fanout, client_stream;

/* start.c */
contest floor_fork, clutch_start;
extern const char *tree_program, *ping_program;
size_t children_of(pid_t parent, pid_t *children, size_t most);
double idle_master_rss(int apps); /* KiB */

/* bench.c: Nanoseconds on a clock that all processes share. */
int64_t now_ns(void);

/* The bytes of a frame: header, action "m", two NULs. */
size_t frame_bytes(size_t data);

/* Complain, kill every process of this round, exit 1. In a child: only exit 1. */
void fail(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

/* A round begins, and may take this many seconds. Every wait calls look_around, which fails
 * when they are over, or when the user interrupts. */
void round_begin(int seconds);
void look_around(void);

/* Fork; the child has default signals and dies with the bench. */
pid_t spawn(void);

/* Wait for all children; each must exit 0, and leave no orphan. */
void reap(void);

/* stdout goes to /dev/null; returns a copy of what it was. */
int silence(void);

/* Read a whole result from a child, within the round's time. */
void read_result(int descriptor, void *result, size_t size);

/* All processes forked from now on run on one processor, or on all again. */
void pin(bool one);

/* Sorts the values. */
double percentile(double *values, size_t count, double part);

#endif
