/*
 * The set-up of a test program's runner. (Criterion executes the program again for each test;
 * the process that does so is the runner.)
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include <criterion/criterion.h>

#include <signal.h>

/* nohup(1) and a shell's `&` make a command ignore signals, and every child inherits that. The
 * tests need the default actions. */
__attribute__((constructor)) static void
take_signals_back(void)
{
	signal(SIGHUP, SIG_DFL);
	signal(SIGINT, SIG_DFL);
	signal(SIGQUIT, SIG_DFL);
	signal(SIGPIPE, SIG_DFL);
}

#ifdef CRITERION_STAND_IN
#include "without/runner.h"
#else

#include <criterion/hooks.h>
#include <stdbool.h>
#include <stdlib.h>

static bool is_runner;

/*
 * A test that hangs must fail. A test without a deadline (.timeout of the test or of its
 * suite) gets TEST_TIMEOUT seconds, or a minute. (Criterion's own --timeout only shortens
 * deadlines that are there.)
 */
ReportHook(PRE_ALL)(struct criterion_test_set *tests)
{
	const char *wanted = getenv("TEST_TIMEOUT");
	double seconds = wanted != NULL ? strtod(wanted, NULL) : 60;

	is_runner = true;
	/* clang-format off */
	FOREACH_SET (struct criterion_suite_set *suite, tests->suites) {
		if (suite->suite.data != NULL && suite->suite.data->timeout > 0)
			continue;
		FOREACH_SET (struct criterion_test *test, suite->tests) {
			if (test->data->timeout <= 0)
				test->data->timeout = seconds;
		}
	}
	/* clang-format on */
}

/*
 * LeakSanitizer calls this at the end of a process. In the runner, Criterion sometimes leaks
 * 48 bytes; no code of clutch runs there.
 */
int __lsan_is_turned_off(void);

int
__lsan_is_turned_off(void)
{
	return is_runner;
}

#endif
