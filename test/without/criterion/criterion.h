/*
 * A stand-in for Criterion on machines for which it cannot be installed (another processor,
 * another libc). It has only the parts of Criterion that the tests use. Each test runs in its
 * own process, which runner.h forks.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#ifndef CRITERION_STAND_IN
#define CRITERION_STAND_IN

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

struct criterion_options {
	void (*init)(void);
	void (*fini)(void);
	double timeout; /* seconds */
	bool none;      /* so that no initializer is empty */
};

struct criterion_test {
	const char *suite, *name;
	void (*run)(void); /* NULL: a suite; its tests inherit its options */
	struct criterion_options options;
	struct criterion_test *next;
};

/* The tests add themselves before main is called. */
void criterion_add(struct criterion_test *test);

/* A failed assertion (fatal) ends the test, a failed expectation does not. */
void criterion_check(bool ok, bool fatal, const char *file, int line, const char *text,
                     const char *format, ...) __attribute__((format(printf, 6, 7)));
void criterion_check_text(const char *actual, const char *expected, bool equal, bool fatal,
                          const char *file, int line, const char *text, const char *format, ...)
	__attribute__((format(printf, 8, 9)));
void criterion_skip(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));

/* The last line needs the semicolon that a test file writes behind TestSuite(...). */
#define CRITERION_ADD(Suite, Name, Run, ...)                                                       \
	__attribute__((constructor)) static void Suite##_##Name##_add(void)                        \
	{                                                                                          \
		static struct criterion_test test = {.suite = #Suite, .name = #Name, .run = Run};  \
		test.options = (struct criterion_options){.none = true, __VA_ARGS__};              \
		criterion_add(&test);                                                              \
	}                                                                                          \
	struct criterion_test
#define TestSuite(Suite, ...) CRITERION_ADD(Suite, suite, NULL, __VA_ARGS__)
#define Test(Suite, Name, ...)                                                                     \
	static void Suite##_##Name##_run(void);                                                    \
	CRITERION_ADD(Suite, Name, Suite##_##Name##_run, __VA_ARGS__);                             \
	static void Suite##_##Name##_run(void)

#define CRITERION_CHECK(Ok, Fatal, Text, ...)                                                      \
	criterion_check(Ok, Fatal, __FILE__, __LINE__, Text, "" __VA_ARGS__)
#define CRITERION_TEXT(Actual, Expected, Equal, Fatal, ...)                                        \
	criterion_check_text(Actual, Expected, Equal, Fatal, __FILE__, __LINE__, #Actual,          \
	                     "" __VA_ARGS__)

#define cr_skip_test(...) criterion_skip("" __VA_ARGS__)
#define cr_log_info(...) ((void)0)

#define cr_assert_fail(...) CRITERION_CHECK(false, true, "fail", __VA_ARGS__)
#define cr_expect_fail(...) CRITERION_CHECK(false, false, "fail", __VA_ARGS__)

/* clang-format off */
#define cr_assert(A, ...) CRITERION_CHECK((A) ? true : false, true, #A, __VA_ARGS__)
#define cr_expect(A, ...) CRITERION_CHECK((A) ? true : false, false, #A, __VA_ARGS__)
#define cr_assert_not(A, ...) CRITERION_CHECK(!(A), true, "!(" #A ")", __VA_ARGS__)
#define cr_expect_not(A, ...) CRITERION_CHECK(!(A), false, "!(" #A ")", __VA_ARGS__)
#define cr_assert_null(A, ...) CRITERION_CHECK((A) == NULL, true, #A " == NULL", __VA_ARGS__)
#define cr_expect_null(A, ...) CRITERION_CHECK((A) == NULL, false, #A " == NULL", __VA_ARGS__)
#define cr_assert_not_null(A, ...) CRITERION_CHECK((A) != NULL, true, #A " != NULL", __VA_ARGS__)
#define cr_expect_not_null(A, ...) CRITERION_CHECK((A) != NULL, false, #A " != NULL", __VA_ARGS__)
#define cr_assert_eq(A, B, ...) CRITERION_CHECK((A) == (B), true, #A " == " #B, __VA_ARGS__)
#define cr_expect_eq(A, B, ...) CRITERION_CHECK((A) == (B), false, #A " == " #B, __VA_ARGS__)
#define cr_assert_neq(A, B, ...) CRITERION_CHECK((A) != (B), true, #A " != " #B, __VA_ARGS__)
#define cr_expect_neq(A, B, ...) CRITERION_CHECK((A) != (B), false, #A " != " #B, __VA_ARGS__)
#define cr_assert_lt(A, B, ...) CRITERION_CHECK((A) < (B), true, #A " < " #B, __VA_ARGS__)
#define cr_expect_lt(A, B, ...) CRITERION_CHECK((A) < (B), false, #A " < " #B, __VA_ARGS__)
#define cr_assert_leq(A, B, ...) CRITERION_CHECK((A) <= (B), true, #A " <= " #B, __VA_ARGS__)
#define cr_expect_leq(A, B, ...) CRITERION_CHECK((A) <= (B), false, #A " <= " #B, __VA_ARGS__)
#define cr_assert_gt(A, B, ...) CRITERION_CHECK((A) > (B), true, #A " > " #B, __VA_ARGS__)
#define cr_expect_gt(A, B, ...) CRITERION_CHECK((A) > (B), false, #A " > " #B, __VA_ARGS__)
#define cr_assert_geq(A, B, ...) CRITERION_CHECK((A) >= (B), true, #A " >= " #B, __VA_ARGS__)
#define cr_expect_geq(A, B, ...) CRITERION_CHECK((A) >= (B), false, #A " >= " #B, __VA_ARGS__)
#define cr_assert_str_eq(A, B, ...) CRITERION_TEXT(A, B, true, true, __VA_ARGS__)
#define cr_expect_str_eq(A, B, ...) CRITERION_TEXT(A, B, true, false, __VA_ARGS__)
#define cr_assert_str_neq(A, B, ...) CRITERION_TEXT(A, B, false, true, __VA_ARGS__)
#define cr_expect_str_neq(A, B, ...) CRITERION_TEXT(A, B, false, false, __VA_ARGS__)
#define cr_assert_str_empty(A, ...) CRITERION_TEXT(A, "", true, true, __VA_ARGS__)
#define cr_expect_str_empty(A, ...) CRITERION_TEXT(A, "", true, false, __VA_ARGS__)
/* clang-format on */

#endif
