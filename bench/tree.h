/*
 * What tree.c says of each app worker that is ready: who, and since when.
 */
#ifndef TREE_H
#define TREE_H

#include <stdint.h>

struct alive {
	int64_t at; /* nanoseconds, on the clock of now_ns */
	int64_t pid;
};

#endif
