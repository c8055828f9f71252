/*
 * The command line and the environment of egg-scripts. Either a command is called once, with
 * values within their limits, and 0 is returned; or one line says what is wrong, and 64 is
 * returned. A command line that is made again from the parsed values means the same.
 *
 * An input consists of lines. A line with a $ in front is a variable, any other line is a word.
 * This file replaces scripts_start and the other commands by functions that only remember.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "egg-scripts/scripts.h"
#include "fuzz.h"

#include <arpa/inet.h>

static struct command seen;
static char seen_pid_file[8192];
static int calls;
static const char *called;

static int
remember(const struct command *command, const char *name)
{
	const char *file = command->options.pid_file;

	seen = *command;
	seen.options.pid_file = NULL;
	snprintf(seen_pid_file, sizeof seen_pid_file, "%s", file != NULL ? file : "-");
	called = name;
	calls++;
	return 0;
}

int
scripts_start(const struct command *command)
{
	return remember(command, "start");
}

int
scripts_stop(const struct command *command)
{
	return remember(command, "stop");
}

int
scripts_status(const struct command *command)
{
	return remember(command, "status");
}

int
scripts_reload(const struct command *command)
{
	return remember(command, "reload");
}

/* ---- one run ---------------------------------------------------------------- */

enum { WORDS = 32 };

static int
run(const char *words[], struct text *out, struct text *err)
{
	static const struct options options = {.name = "egg", .version = "1.2.3"};
	struct capture output, errors;
	int argc = 0, result;

	while (words[argc] != NULL)
		argc++;
	calls = 0;
	called = NULL;
	seen = (struct command){.timeout = 0};
	capture_begin(&output, STDOUT_FILENO);
	capture_begin(&errors, STDERR_FILENO);
	result = egg_scripts(argc, (char *const *)(uintptr_t)words, &options);
	capture_end(&errors, err);
	capture_end(&output, out);
	return result;
}

/* Does the host say where to listen: an address, or a path? */
static bool
is_host(const char *host)
{
	struct in6_addr any;

	return host == NULL || host[0] == '/' || strcmp(host, "localhost") == 0 ||
	       inet_pton(AF_INET, host, &any) == 1 || inet_pton(AF_INET6, host, &any) == 1;
}

/* A command takes only its own options, and only within their limits. */
static void
check_seen(void)
{
	const struct options *options = &seen.options;
	bool starts = strcmp(called, "start") == 0;

	CHECK(options->workers >= 0 && options->workers <= CLUTCH_WORKERS_MAX);
	CHECK(options->port >= -1 && options->port <= 65535 && is_host(options->host));
	CHECK(seen.timeout >= 0 && seen.timeout <= 86400);
	CHECK(starts || (options->workers == 0 && options->port <= 0 && options->host == NULL &&
	                 options->env == NULL && !options->end_with_parent && !seen.daemon));
	CHECK(!seen.json || strcmp(called, "status") == 0);
	CHECK(seen.daemon || (seen.standard_output == NULL && seen.standard_error == NULL));
	CHECK(!seen.daemon || !options->end_with_parent);
	CHECK(starts || strcmp(seen_pid_file, "-") != 0);
}

/* ---- again, with a line that is made from the parsed values -------------------- */

static int
add(const char *words[], int count, char *line, const char *name, const char *value)
{
	if (value != NULL) {
		snprintf(line, 8192, "--%s=%s", name, value);
		words[count++] = line;
	}
	return count;
}

static const char *
number(char *text, int value)
{
	sprintf(text, "%d", value == -1 ? 0 : value);
	return value != 0 ? text : NULL;
}

static void
run_again(const char *program)
{
	static char lines[8][8192];
	static struct text out, err;
	struct command first = seen;
	char text[3][16], pid_file[sizeof seen_pid_file];
	const char *words[WORDS] = {program};
	const struct options *options = &first.options;
	int count = 1;

	strcpy(pid_file, seen_pid_file);
	if (strcmp(pid_file, "-") != 0) /* a line without a command */
		words[count++] = called;
	count = add(words, count, lines[0], "workers", number(text[0], options->workers));
	if (strcmp(called, "start") == 0) /* for other commands PORT=0 is allowed */
		count = add(words, count, lines[1], "port", number(text[1], options->port));
	count = add(words, count, lines[2], "host", options->host);
	count = add(words, count, lines[3], "env", options->env);
	count = add(words, count, lines[4], "stdout", first.standard_output);
	count = add(words, count, lines[5], "stderr", first.standard_error);
	count = add(words, count, lines[6], "timeout", number(text[2], first.timeout));
	if (strcmp(pid_file, "-") != 0)
		count = add(words, count, lines[7], "pid-file", pid_file);
	if (first.daemon)
		words[count++] = "--daemon";
	if (first.json)
		words[count++] = "--json";
	if (options->end_with_parent)
		words[count++] = "--end-with-parent";
	CHECK(run(words, &out, &err) == 0 && calls == 1 && out.length + err.length == 0);
	CHECK(seen.timeout == first.timeout && seen.options.workers == options->workers);
	CHECK(seen.options.port == options->port && seen.json == first.json);
	CHECK(strcmp(pid_file, "-") == 0 || strcmp(seen_pid_file, pid_file) == 0);
	CHECK((seen.options.host == NULL) == (options->host == NULL) &&
	      seen.daemon == first.daemon);
}

/* ---- the input ------------------------------------------------------------------ */

static void
set_environment(const char *line)
{
	static const char *const names[] = {"HOME", "PORT", "LISTEN_FDS", "LISTEN_PID",
	                                    "NOTIFY_SOCKET"};
	size_t i, length;

	for (i = 0; i < sizeof names / sizeof *names; i++) {
		length = strlen(names[i]);
		if (strncmp(line, names[i], length) == 0 && line[length] == '=')
			setenv(names[i], line + length + 1, 1);
	}
}

static int
read_words(char *input, const char *words[])
{
	char *line, *rest = input;
	int count = 1;

	words[0] = "egg";
	setenv("HOME", "/nonexistent", 1);
	unsetenv("PORT");
	while ((line = strsep(&rest, "\n")) != NULL)
		if (line[0] == '$')
			set_environment(line + 1);
		else if (count < WORDS - 1)
			words[count++] = line;
	words[count] = NULL;
	return count;
}

/* A socket that is handed to a start in the foreground is taken only if it is for this process. */
static void
check_listener(void)
{
	static struct text text;
	struct command command = {.options.name = "egg"};
	const char *pid = getenv("LISTEN_PID"), *count = getenv("LISTEN_FDS");
	char own[16];
	struct capture capture;
	int taken;

	snprintf(own, sizeof own, "%ld", (long)getpid());
	if (pid != NULL && strcmp(pid, "own") == 0)
		setenv("LISTEN_PID", own, 1);
	capture_begin(&capture, STDERR_FILENO);
	taken = scripts_take_listener(&command);
	capture_end(&capture, &text);
	CHECK(taken == 0 || taken == 3);
	CHECK(text_has_lines(&text, text.length > 0));
	CHECK(getenv("LISTEN_PID") == NULL && getenv("LISTEN_FDS") == NULL);
	CHECK(taken == 0 || (pid != NULL && count != NULL));
}

int
LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
	static const char *words[WORDS];
	static char copy[4096 + 1];
	static struct text out, err;
	int result;

	if (size > sizeof copy - 1)
		return 0;
	if (size > 0)
		memcpy(copy, input, size);
	copy[size] = '\0';
	read_words(copy, words);
	result = run(words, &out, &err);
	CHECK(result == 0 || result == 1 || result == EXIT_USAGE);
	CHECK((result != 0) == (err.length > 0) && text_has_lines(&err, result != 0));
	CHECK(calls == (result == 0 && out.length == 0));
	CHECK(result != 1 || getenv("HOME")[0] == '\0');
	check_listener();
	if (calls == 0)
		return 0;
	check_seen();
	run_again(words[0]);
	return 0;
}
