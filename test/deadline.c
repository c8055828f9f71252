/*
 * A test that hangs has failed: one that names no deadline (.timeout, its own or
 * its suite's) gets one of TEST_TIMEOUT seconds, or a minute. (Criterion's own
 * --timeout only shortens deadlines that are there.)
 */
#include <criterion/criterion.h>
#include <criterion/hooks.h>
#include <stdlib.h>

ReportHook(PRE_ALL)(struct criterion_test_set *tests)
{
	const char *wanted = getenv("TEST_TIMEOUT");
	double seconds = wanted != NULL ? strtod(wanted, NULL) : 60;

	FOREACH_SET(struct criterion_suite_set * suite, tests->suites)
	{
		if (suite->suite.data != NULL && suite->suite.data->timeout > 0)
			continue;
		FOREACH_SET(struct criterion_test * test, suite->tests)
		{
			if (test->data->timeout <= 0)
				test->data->timeout = seconds;
		}
	}
}
