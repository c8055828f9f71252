/*
 * For test/coverage alone, included before each file: a process of clutch ends with
 * _exit(2), which runs no exit handler, so gcov's counts are written first.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#ifndef COVERAGE_H
#define COVERAGE_H

#include <unistd.h>

void __gcov_dump(void);

#define _exit(code) (__gcov_dump(), (_exit)(code))

#endif
