/*
 * For test/coverage alone, included before each file: a process of clutch ends with
 * _exit(2), which runs no exit handler, so gcov's counts are written first. A test may
 * have given the process a limit on the size of files, which is meant for its log and not
 * for the counts: the limit is lifted before.
 *
 * A function, not a macro with a comma: in _exit(run()) the counts are written after run().
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#ifndef COVERAGE_H
#define COVERAGE_H

#include <sys/resource.h>
#include <unistd.h>

void __gcov_dump(void);

static inline void __attribute__((noreturn)) coverage_exit(int code)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_FSIZE, &limit) == 0) {
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_FSIZE, &limit);
	}
	__gcov_dump();
	_exit(code);
}

#define _exit(code) coverage_exit(code)

#endif
