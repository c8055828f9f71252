/*
 * Let realloc(3) fail in this process, and in those that it forks. (The Makefile finds the names of
 * the functions of a test that take the place of others.)
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#ifndef NO_MEMORY_H
#define NO_MEMORY_H

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>

static bool is_memory_short;

void *__real_realloc(void *room, size_t size);
void *__wrap_realloc(void *room, size_t size);

void *
__wrap_realloc(void *room, size_t size)
{
	if (!is_memory_short)
		return __real_realloc(room, size);
	errno = ENOMEM;
	return NULL;
}

#endif
