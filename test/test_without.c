/*
 * If Criterion cannot be installed, test/criterion prints one line and changes nothing, and the
 * tests run with test/without, which must see every failure.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "compile.h"
#include "harness.h"

#include <criterion/criterion.h>

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

TestSuite(without, .timeout = 120);

/* ---- test/criterion ------------------------------------------------------------ */

/* Run test/criterion as a user without the right to install, with a compiler that works or does
 * not. Its output goes into the file "line". */
static bool
look_for_criterion(const char *compiler)
{
	const char *folder = test_folder();

	return run("cd %s && env BUILD=build CC=%s HOME=%s %s sh criterion >line 2>&1", folder,
	           compiler, folder,
	           getuid() == 0 ? "setpriv --reuid=65534 --regid=65534 --clear-groups" : "");
}

static void
prepare(void)
{
	if (getuid() == 0 && !is_there("setpriv")) {
		fprintf(stderr, "there is no setpriv: skipped\n");
		cr_skip_test("no setpriv");
	}
	unsetenv("WITHOUT_CRITERION");
	cr_assert(run("cp test/criterion %s", test_folder()));
	cr_assert(
		run("cd %s && mkdir -p build/test && chmod 777 . build build/test", test_folder()));
}

Test(without, a_missing_criterion_is_one_line)
{
	const char *folder = test_folder();

	prepare();
	cr_assert(look_for_criterion("false"));
	cr_expect(run("cd %s && test \"$(wc -l <line)\" -eq 1 && "
	              "grep 'Criterion is missing (the package .*criterion.*): the tests run' line",
	              folder));
	cr_expect(run("cd %s && BUILD=build sh criterion compile | grep test/without", folder));
	cr_expect(run("cd %s && test -z \"$(BUILD=build sh criterion link)\"", folder));
}

/* Objects that were compiled without Criterion are compiled again once Criterion is there. */
Test(without, a_criterion_that_has_come_is_used)
{
	const char *folder = test_folder();

	prepare();
	cr_assert(look_for_criterion("false"));
	cr_assert(run("touch %s/build/test/test_a.o && chmod 666 %s/build/test/test_a.o", folder,
	              folder));
	cr_assert(look_for_criterion("false"));
	cr_expect(run("test -e %s/build/test/test_a.o", folder));
	cr_assert(look_for_criterion("true"));
	cr_expect(run("cd %s && test ! -s line && test ! -e build/test/test_a.o", folder));
	cr_expect(run("cd %s && ! BUILD=build sh criterion compile | grep test/without", folder));
}

/* ---- test/without ---------------------------------------------------------------- */

static const char failures[] =
	"#include <criterion/criterion.h>\n"
	"#include <stdio.h>\n"
	"#include <stdlib.h>\n"
	"#include <unistd.h>\n"
	"static int started;\n"
	"static void start(void) { started = 1; }\n"
	"static void end(void) { puts(\"fini\"); }\n"
	"TestSuite(a, .init = start, .fini = end);\n"
	"Test(a, passes) { cr_assert_eq(started, 1); cr_assert(started, \"%d\", started); }\n"
	"Test(a, fails) { cr_assert_str_eq(\"is\", \"should\"); puts(\"not reached\"); }\n"
	"Test(a, goes_on) { cr_expect_lt(2, 1, \"why %d\", 7); puts(\"reached\"); }\n"
	"Test(a, crashes) { abort(); }\n"
	"Test(a, hangs, .timeout = 0.2) { for (;;) pause(); }\n"
	"Test(a, is_skipped) { cr_skip_test(\"none here\"); }\n"
	"Test(b, exits) { exit(3); }\n";

Test(without, the_stand_in_sees_each_failure)
{
	const char *source = write_source("failures.c", "%s", failures);
	const char *folder = test_folder();

	cr_assert(run("%s -std=gnu11 -D_GNU_SOURCE %s -isystem test/without -o %s/failures %s "
	              "test/runner.c %s",
	              environment("CC", "cc"), environment("CFLAGS", ""), folder, source,
	              environment("LDFLAGS", "")));
	cr_expect_not(run("%s/failures >%s/output 2>&1", folder, folder));
	cr_expect(run("cd %s && tail -n 1 output | grep -Fx '[====] Synthesis: Tested: 6 | "
	              "Passing: 1 | Failing: 5 | Crashing: 2'",
	              folder));
	cr_expect(run("cd %s && grep 'not so: .*\"should\", which is \"is\"' output && "
	              "grep 'not so: 2 < 1: why 7' output && grep -x reached output && "
	              "! grep 'not reached' output && test \"$(grep -cx fini output)\" -eq 3 && "
	              "grep -F '[FAIL] b::exits' output && grep -F '[SKIP] none here' output",
	              folder));
	cr_expect(run("%s/failures --filter 'a/pass*' >%s/output 2>&1", folder, folder));
}
