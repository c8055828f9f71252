/*
 * What tree.c reports of each app worker that is ready: its pid, and since when it is.
 * Pid 0: all are ready for the first time.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#ifndef TREE_H
#define TREE_H

#include <stdint.h>

struct alive {
	int64_t at; /* nanoseconds, on the clock of now_ns */
	int64_t pid;
};

#endif
