/*
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
/* A line, printed once, before the cluster is started. */
#include "../../messenger.h"

#include <stdio.h>

int
main(void)
{
	printf("hello, once\n");
	return start_cluster(&(struct options){.workers = 2});
}
