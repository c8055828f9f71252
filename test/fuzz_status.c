/*
 * The files that egg-scripts reads: a pid file and a status, which another user may have written
 * with any content. The table has a line for each row, and no control character; a number is
 * printed as it stands there, or as the nearest limit; and a list of processes is one line that
 * fits.
 *
 * An input is the pid file's text, a 0, and the status.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "egg-scripts/scripts.h"
#include "fuzz.h"

#include <errno.h>
#include <sys/param.h>

/* The rows of the status are the lines behind the first that begin like a row. */
static size_t
count_rows(const char *status)
{
	size_t count = 0;
	const char *at = status;

	while ((at = strchr(at, '\n')) != NULL) {
		at++;
		count += strncmp(at, "{\"role\":", 8) == 0;
	}
	return count;
}

static void
check_rows(const char *status)
{
	size_t count = 0;
	const char *row = status;

	while ((row = scripts_next_row(row)) != NULL) {
		CHECK(row[-1] == '\n' && strncmp(row, "{\"role\":", 8) == 0);
		count++;
	}
	CHECK(count == count_rows(status));
}

static size_t
count_lines(const char *text)
{
	size_t count = 0;

	while ((text = strchr(text, '\n')) != NULL) {
		text++;
		count++;
	}
	return count;
}

static void
check_table(const char *status)
{
	static struct text text;
	struct capture capture;
	const char *last = strrchr(status, ']');
	size_t lines = 4 + count_rows(status);

	capture_begin(&capture, STDOUT_FILENO);
	scripts_print_json(status);
	capture_end(&capture, &text);
	CHECK(text.length == strlen(status));
	text_add(&text, "\n", 1);
	CHECK(text_has_lines(&text, 1 + count_lines(status)));
	lines += last != NULL && scripts_number(last, "left_out") > 0;
	capture_begin(&capture, STDOUT_FILENO);
	scripts_print_table(status);
	capture_end(&capture, &text);
	CHECK(text.length == sizeof text.bytes - 1 || text_has_lines(&text, lines));
}

/* Compare with the number that a plain search for the name finds. */
static void
check_number(const char *line, const char *name)
{
	char quoted[32];
	const char *end = strchr(line, '\n'), *at;
	long long value;

	snprintf(quoted, sizeof quoted, "\"%s\":", name);
	at = strstr(line, quoted);
	value = scripts_number(line, name);
	if (at == NULL || (end != NULL && at > end))
		CHECK(value == 0);
	else
		CHECK(value == MIN(MAX(strtoll(at + strlen(quoted), NULL, 10), -INT64_MAX / 4),
		                   INT64_MAX / 4));
}

/* A list of processes fits, ends, and has no control character. */
static void
check_line(const char *text, size_t size)
{
	size_t i, length = strnlen(text, size);

	CHECK(length < size);
	for (i = 0; i < length; i++)
		CHECK((unsigned char)text[i] >= ' ' && text[i] != 127);
}

static void
check_lists(const struct cluster_found *cluster, const char *status)
{
	char text[512], small[16];
	struct command command = {.timeout = 0};

	scripts_list_unready(status, text, sizeof text);
	check_line(text, sizeof text);
	scripts_list_unready(status, small, sizeof small);
	check_line(small, sizeof small);
	scripts_list_left(cluster, status, text, sizeof text);
	check_line(text, sizeof text);
	CHECK(scripts_patience(&command, status) > 0);
}

/* No process holds the lock of the pid file, so no process is a master. */
static void
check_pid_file(const char *pid, size_t length, const char *status)
{
	static char path[64];
	static int file = -1;
	struct command command = {.options = {.name = "egg", .pid_file = path}};
	struct cluster_found cluster;

	if (file == -1) {
		snprintf(path, sizeof path, "/tmp/clutch-fuzz-%ld.pid", (long)getpid());
		file = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	}
	CHECK(file != -1 && ftruncate(file, 0) == 0);
	CHECK(pwrite(file, pid, length, 0) == (ssize_t)length);
	CHECK(scripts_find(&command, &cluster) == 0 && cluster.master == 0);
	CHECK(cluster.descriptor != -1 && scripts_is_gone(&cluster));
	cluster.master = getppid(); /* as if it held the lock */
	check_lists(&cluster, status);
	errno = 0;
	CHECK(scripts_ask(&cluster, 0, 0) == NULL && errno == ESRCH);
	scripts_close(&cluster);
}

int
LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
	static const char *const names[] = {"pid", "slot", "left_out", "app_close"};
	char *copy = malloc(size + 1);
	const char *status, *row;
	size_t length, i;

	CHECK(copy != NULL);
	if (size > 0)
		memcpy(copy, input, size);
	copy[size] = '\0';
	length = strlen(copy);
	status = copy + length + (length < size);
	check_rows(status);
	check_table(status);
	for (row = status; row != NULL; row = scripts_next_row(row))
		for (i = 0; i < 4; i++)
			check_number(row, names[i]);
	check_pid_file(copy, length, status);
	free(copy);
	return 0;
}
