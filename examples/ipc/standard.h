/*
 * Descriptors 0, 1 and 2 are stdin, stdout and stderr for every function of the C
 * library. But a program can be started without them:
 *
 *	build/examples/ipc/native <&- >&- 2>&-
 *
 * The kernel gives a new descriptor the lowest number that is free. So the first
 * socket of such a program would become its stdout, and whatever it prints would go
 * to the other end of that socket. A program that opens descriptors therefore fills
 * the three first.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#ifndef EXAMPLES_STANDARD_H
#define EXAMPLES_STANDARD_H

#include <fcntl.h>
#include <stdbool.h>
#include <unistd.h>

/* Open /dev/null as each of the three that is not open. False: it cannot be opened;
 * errno is open(2)'s. */
static inline bool
fill_standard_descriptors(void)
{
	int number;

	for (number = STDIN_FILENO; number <= STDERR_FILENO; number++)
		if (fcntl(number, F_GETFD) == -1 && open("/dev/null", O_RDWR) == -1)
			return false;
	return true;
}

#endif
