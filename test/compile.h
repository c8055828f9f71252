/*
 * Real compilers, and other commands, in a test.
 *
 * $BUILD/libclutch.a was built with $CC, $CFLAGS and $LDFLAGS. A test that needs something that
 * this machine does not have is skipped, with a line.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#ifndef COMPILE_H
#define COMPILE_H

#include "harness.h"

#include <criterion/criterion.h>

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

enum { LINE = 512 };

static inline const char *
environment(const char *name, const char *otherwise)
{
	const char *value = getenv(name);

	return value != NULL ? value : otherwise;
}

/* Run a shell command. If it fails, its output is printed. */
static inline bool
run(const char *format, ...)
{
	char command[4 * LINE], line[LINE], text[8 * LINE];
	va_list arguments;
	FILE *log;
	int status;

	va_start(arguments, format);
	vsnprintf(command, sizeof command, format, arguments);
	va_end(arguments);
	snprintf(text, sizeof text, "{ %s; } >%s/log 2>&1 </dev/null", command, test_folder());
	status = system(text);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
		return true;
	snprintf(text, sizeof text, "%s/log", test_folder());
	log = fopen(text, "r");
	cr_assert_not_null(log);
	fprintf(stderr, "$ %s\n", command);
	while (fgets(line, sizeof line, log) != NULL)
		fputs(line, stderr);
	fclose(log);
	return false;
}

static inline bool
is_there(const char *command)
{
	char text[LINE];

	snprintf(text, sizeof text, "command -v %s >/dev/null 2>&1", command);
	return system(text) == 0;
}

/* Write a source file into the test's folder. Its path lives until the next call. */
static inline const char *
write_source(const char *name, const char *format, ...)
{
	static char path[LINE];
	va_list arguments;
	FILE *file;

	snprintf(path, sizeof path, "%s/%s", test_folder(), name);
	file = fopen(path, "w");
	cr_assert_not_null(file);
	va_start(arguments, format);
	vfprintf(file, format, arguments);
	va_end(arguments);
	cr_assert_eq(fclose(file), 0);
	return path;
}

static inline void
skip_without_cplusplus(const char *compiler)
{
	if (run("printf 'int main() { return 0; }' | %s -x c++ -c -o %s/probe.o -", compiler,
	        test_folder()))
		return;
	fprintf(stderr, "%s compiles no C++: skipped\n", compiler);
	cr_skip_test("no C++ compiler");
}

/* The C++ compiler that goes with $CC: gcc's is g++, clang-14's clang++-14. */
static inline const char *
cplusplus(void)
{
	static const char *const pairs[][2] = {{"clang", "clang++"}, {"gcc", "g++"}, {"cc", "c++"}};
	static char name[LINE];
	const char *cc = environment("CC", "cc"), *found;
	size_t i;

	for (i = 0; i < sizeof pairs / sizeof pairs[0]; i++) {
		found = strstr(cc, pairs[i][0]);
		if (found == NULL)
			continue;
		snprintf(name, sizeof name, "%.*s%s%s", (int)(found - cc), cc, pairs[i][1],
		         found + strlen(pairs[i][0]));
		return name;
	}
	return "c++";
}

#endif
