/*
 * The main program of a test file that was compiled with the stand-in for Criterion. It forks
 * a process for each test, a few at once, and prints the same last line as Criterion, which
 * test/run adds up. Of Criterion's options it knows --filter SUITE/NAME, with wildcards.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include <errno.h>
#include <fnmatch.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { AT_ONCE = 4, EXIT_SKIPPED = 77 };

static struct criterion_test *tests, **last = &tests;

void
criterion_add(struct criterion_test *test)
{
	*last = test;
	last = &test->next;
}

/* ---- in the process of a test ------------------------------------------------ */

static struct {
	pid_t pid;
	bool failed;
	sigjmp_buf end;
} own;

/* A single write, so that the lines of several processes do not mix. */
static void
print_failure(const char *file, int line, const char *text, const char *format, va_list arguments)
{
	char message[2048], all[4096];

	vsnprintf(message, sizeof message, format, arguments);
	snprintf(all, sizeof all, "[----] %s:%d: not so: %s%s%s\n", file, line, text,
	         message[0] != '\0' ? ": " : "", message);
	if (write(STDERR_FILENO, all, strlen(all)) == -1)
		errno = 0;
}

/* A child of the test's process must exit: only the process itself may end the test. */
static void
fail(bool fatal)
{
	own.failed = true;
	if (fatal && getpid() != own.pid)
		_exit(1);
	if (fatal)
		siglongjmp(own.end, 1);
}

void
criterion_check(bool ok, bool fatal, const char *file, int line, const char *text,
                const char *format, ...)
{
	va_list arguments;

	if (ok)
		return;
	va_start(arguments, format);
	print_failure(file, line, text, format, arguments);
	va_end(arguments);
	fail(fatal);
}

void
criterion_check_text(const char *actual, const char *expected, bool equal, bool fatal,
                     const char *file, int line, const char *text, const char *format, ...)
{
	char both[1500];
	va_list arguments;

	if ((strcmp(actual, expected) == 0) == equal)
		return;
	snprintf(both, sizeof both, "%s is %s\"%.600s\", which is \"%.600s\"", text,
	         equal ? "" : "not ", expected, actual);
	va_start(arguments, format);
	print_failure(file, line, both, format, arguments);
	va_end(arguments);
	fail(fatal);
}

void
criterion_skip(const char *format, ...)
{
	va_list arguments;

	fprintf(stderr, "[SKIP] ");
	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fprintf(stderr, "\n");
	exit(EXIT_SKIPPED);
}

/* The options are copied first, because a test may change the memory that it finds. */
static void
run_test(const struct criterion_test *test, const struct criterion_test *suite)
{
	void (*init)(void) = test->options.init;
	void (*fini)(void) = test->options.fini;

	own.pid = getpid();
	if (sigsetjmp(own.end, 1) == 0) {
		if (suite != NULL && suite->options.init != NULL)
			suite->options.init();
		if (init != NULL)
			init();
		test->run();
	}
	if (sigsetjmp(own.end, 1) == 0) {
		if (fini != NULL)
			fini();
		if (suite != NULL && suite->options.fini != NULL)
			suite->options.fini();
	}
	exit(own.failed ? 1 : 0);
}

/* ---- in the runner ------------------------------------------------------------- */

struct running {
	const struct criterion_test *test; /* NULL: the place is free */
	pid_t pid;
	int64_t deadline;
};

static struct running running[AT_ONCE];
static int tested, passing, crashing;

static int64_t
clock_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static const struct criterion_test *
find_suite(const char *name)
{
	const struct criterion_test *test;

	for (test = tests; test != NULL; test = test->next)
		if (test->run == NULL && strcmp(test->suite, name) == 0)
			return test;
	return NULL;
}

/* The timeout in ms: of the test, of its suite, of TEST_TIMEOUT (in s), or else a minute. */
static int64_t
time_of(const struct criterion_test *test, const struct criterion_test *suite)
{
	const char *wanted = getenv("TEST_TIMEOUT");
	double seconds = test->options.timeout;

	if (seconds <= 0 && suite != NULL)
		seconds = suite->options.timeout;
	if (seconds <= 0)
		seconds = wanted != NULL ? strtod(wanted, NULL) : 60;
	return (int64_t)(seconds * 1000);
}

static void
start_test(struct running *place, const struct criterion_test *test, const sigset_t *mask)
{
	const struct criterion_test *suite = find_suite(test->suite);

	fflush(NULL);
	*place = (struct running){test, fork(), clock_now() + time_of(test, suite)};
	if (place->pid == 0) {
		setpgid(0, 0);
		sigprocmask(SIG_SETMASK, mask, NULL);
		run_test(test, suite);
	}
	if (place->pid == -1) {
		perror("fork");
		exit(1);
	}
}

static void
end_test(struct running *place, int status)
{
	bool crashed = !WIFEXITED(status);
	bool skipped = !crashed && WEXITSTATUS(status) == EXIT_SKIPPED;
	bool passed = !crashed && WEXITSTATUS(status) == 0;

	if (crashed)
		printf("[CRASH] %s::%s: signal %d\n", place->test->suite, place->test->name,
		       WTERMSIG(status));
	else if (!passed && !skipped)
		printf("[FAIL] %s::%s\n", place->test->suite, place->test->name);
	tested += !skipped;
	passing += passed;
	crashing += crashed;
	place->test = NULL;
}

/* Kill the tests whose time is over, reap the tests that have ended, and count the others. */
static int
look_after(void)
{
	int i, status, count = 0;

	for (i = 0; i < AT_ONCE; i++) {
		if (running[i].test == NULL)
			continue;
		if (running[i].deadline <= clock_now()) {
			printf("[----] %s::%s: it takes too long\n", running[i].test->suite,
			       running[i].test->name);
			kill(-running[i].pid, SIGKILL);
			kill(running[i].pid, SIGKILL);
			running[i].deadline = INT64_MAX;
		}
		if (waitpid(running[i].pid, &status, WNOHANG) == running[i].pid)
			end_test(&running[i], status);
		count += running[i].test != NULL;
	}
	return count;
}

/* Wait until a place is free (all: until every place is free), and return a free place. */
static struct running *
wait_for_place(const sigset_t *chld, bool all)
{
	const struct timespec second = {1, 0}; /* how often deadlines are checked */
	int i, count;

	while ((count = look_after()) > 0 && (all || count == AT_ONCE))
		sigtimedwait(chld, NULL, &second);
	for (i = 0; i < AT_ONCE - 1 && running[i].test != NULL; i++)
		;
	return &running[i];
}

static bool
is_wanted(const struct criterion_test *test, const char *filter)
{
	char name[512];

	snprintf(name, sizeof name, "%s/%s", test->suite, test->name);
	return test->run != NULL && (filter == NULL || fnmatch(filter, name, 0) == 0);
}

int
main(int argc, char **argv)
{
	const struct criterion_test *test;
	const char *filter = NULL;
	sigset_t chld, mask;
	int i;

	for (i = 1; i + 1 < argc; i++)
		if (strcmp(argv[i], "--filter") == 0)
			filter = argv[i + 1];
	sigemptyset(&chld);
	sigaddset(&chld, SIGCHLD);
	sigprocmask(SIG_BLOCK, &chld, &mask);
	for (test = tests; test != NULL; test = test->next)
		if (is_wanted(test, filter))
			start_test(wait_for_place(&chld, false), test, &mask);
	wait_for_place(&chld, true);
	printf("[====] Synthesis: Tested: %d | Passing: %d | Failing: %d | Crashing: %d\n", tested,
	       passing, tested - passing, crashing);
	return passing == tested ? 0 : 1;
}
