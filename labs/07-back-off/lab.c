/* Two apps. The first argument is the name of a file: while it exists, no app can start,
 * as if a deployment had left something out.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "../../messenger.h"

#include <unistd.h>

static int
app(struct messenger *app, void *arg)
{
	const char *broken = arg;

	(void)app;
	return broken != NULL && access(broken, F_OK) == 0;
}

int
main(int argc, char **argv)
{
	return start_cluster(
		&(struct options){.app = app, .arg = argc > 1 ? argv[1] : NULL, .workers = 2});
}
