/*
 * The master's status, as it is in PID_FILE.status and in the answer to clutch-status: one
 * JSON object. Its first line is the cluster, each of the next ones is a process or an
 * empty slot, and the last line ends it. This file finds values in these lines, and prints
 * all of it as a table.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "scripts.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define STATUS_LIST_MAX 8 /* as many names of processes fit into a line */

/* No number of a status is larger: the sum of two does not overflow. */
#define NUMBER_MAX (INT64_MAX / 4)

/* Where the value of this name begins in the line, or NULL. */
static const char *
find_value(const char *line, const char *name)
{
	const char *at = line, *end = line + strcspn(line, "\n");
	size_t length = strlen(name);

	while ((at = strchr(at, '"')) != NULL && at < end)
		if (strncmp(++at, name, length) == 0 && strncmp(at + length, "\":", 2) == 0)
			return at + length + 2;
	return NULL;
}

long long
scripts_number(const char *line, const char *name)
{
	const char *at = find_value(line, name);
	long long number = at != NULL ? strtoll(at, NULL, 10) : 0;

	return number > NUMBER_MAX ? NUMBER_MAX : number < -NUMBER_MAX ? -NUMBER_MAX : number;
}

bool
scripts_is(const char *line, const char *name, const char *text)
{
	const char *at = find_value(line, name);
	size_t length = strlen(text);

	return at != NULL && *at == '"' && strncmp(at + 1, text, length) == 0 &&
	       at[1 + length] == '"';
}

const char *
scripts_next_row(const char *at)
{
	at = strchr(at, '\n');
	while (at != NULL && strncmp(at, "\n{\"role\":", 9) != 0)
		at = strchr(at + 1, '\n');
	return at != NULL ? at + 1 : NULL;
}

/* Append the text; what finds no room is left out. */
static void CLUTCH_PRINTF(3, 4) add(char *text, size_t size, const char *format, ...)
{
	size_t used = strlen(text);
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(text + used, size - used, format, arguments);
	va_end(arguments);
}

void
scripts_add_process(char *text, size_t size, const char *row)
{
	if (scripts_is(row, "role", "app"))
		add(text, size, "app %lld", scripts_number(row, "slot"));
	else
		add(text, size, scripts_is(row, "role", "agent") ? "agent" : "parent");
}

/* ---- a process that is not ready ------------------------------------------------ */

void
scripts_list_unready(const char *status, char *text, size_t size)
{
	const char *row = status;
	int count = 0;

	text[0] = '\0';
	while ((row = scripts_next_row(row)) != NULL) {
		if (scripts_is(row, "state", "listening") || ++count > STATUS_LIST_MAX)
			continue;
		add(text, size, count > 1 ? ", " : "");
		scripts_add_process(text, size, row);
		if (scripts_number(row, "refork_in") > 0)
			add(text, size, " (died, starts again in %llds)",
			    (scripts_number(row, "refork_in") + 999) / 1000);
		else if (scripts_is(row, "state", "starting"))
			add(text, size, " (pid %lld)", scripts_number(row, "pid"));
	}
	if (count > STATUS_LIST_MAX)
		add(text, size, " and %d more", count - STATUS_LIST_MAX);
}

/* ---- the table -------------------------------------------------------------------- */

static char
plain(char character)
{
	return iscntrl((unsigned char)character) ? '?' : character;
}

/* The text of that name, cut to the size. */
static const char *
get_text(const char *line, const char *name, char *text, size_t size)
{
	const char *at = find_value(line, name);
	size_t i = 0;

	if (at != NULL && *at++ == '"')
		for (; i < size - 1 && at[i] != '\0' && at[i] != '"' && at[i] != '\n'; i++)
			text[i] = plain(at[i]);
	text[i] = '\0';
	return text;
}

static void
print_cluster(const char *line)
{
	char name[256], address[256], state[16];

	get_text(line, "address", address, sizeof address);
	printf("%s%s%s, pid %lld, %llds, %lld workers\n", get_text(line, "name", name, sizeof name),
	       address[0] != '\0' ? " on " : "", address, scripts_number(line, "pid"),
	       scripts_number(line, "age") / 1000, scripts_number(line, "workers"));
	printf("%s, stops within %lldms, reloads: %lld done, %lld given up%s\n",
	       get_text(line, "state", state, sizeof state),
	       scripts_number(line, "app_close") + scripts_number(line, "agent_close"),
	       scripts_number(line, "done"), scripts_number(line, "given_up"),
	       scripts_number(line, "slot") != -1 ? ", one under way" : "");
	printf("%-6s %4s %7s %-12s %8s %7s %9s %9s %11s %11s %8s  %-12s  %s\n", "role", "slot",
	       "pid", "state", "age", "reforks", "heard", "told", "bytes in", "bytes out", "queued",
	       "waits for", "last death");
}

/* "agent, app 2 for 3s" for ["agent:-1","app:2"] and 3000 ms. */
static void
list_waits(const char *row, char *text, size_t size)
{
	const char *at = find_value(row, "waits_for");
	char role[8];
	int slot, end;

	text[0] = '\0';
	while (at != NULL && *at != '\0') {
		end = 0;
		if (sscanf(at + 1, "\"%7[a-z]:%d\"%n", role, &slot, &end) != 2 || end == 0)
			break;
		add(text, size, slot == -1 ? "%s%s" : "%s%s %d", *at == ',' ? ", " : "", role,
		    slot);
		at += 1 + end;
	}
	if (text[0] != '\0')
		add(text, size, " for %llds", scripts_number(row, "waits") / 1000);
	else
		add(text, size, "-");
}

static void
print_row(const char *row)
{
	long long refork_in = scripts_number(row, "refork_in");
	char role[8], slot[24] = "-", state[16], waits[256], death[128];

	snprintf(role, sizeof role, "%s",
	         scripts_is(row, "role", "app")     ? "app"
	         : scripts_is(row, "role", "agent") ? "agent"
	                                            : "parent");
	if (scripts_is(row, "role", "app"))
		snprintf(slot, sizeof slot, "%lld", scripts_number(row, "slot"));
	list_waits(row, waits, sizeof waits);
	printf("%-6s %4s %7lld %-12s %7llds %7lld %9lld %9lld %11lld %11lld %8lld  %-12s  ", role,
	       slot, scripts_number(row, "pid"), get_text(row, "state", state, sizeof state),
	       scripts_number(row, "age") / 1000, scripts_number(row, "reforks"),
	       scripts_number(row, "heard"), scripts_number(row, "told"),
	       scripts_number(row, "bytes_in"), scripts_number(row, "bytes_out"),
	       scripts_number(row, "queued"), waits);
	get_text(row, "last_death", death, sizeof death);
	printf("%s", scripts_is(row, "last_death", "") ? "-" : death);
	if (refork_in > 0)
		printf(", starts again in %llds", (refork_in + 999) / 1000);
	printf("\n");
}

void
scripts_print_table(const char *status)
{
	const char *row = status, *last = strrchr(status, ']');
	long long left_out = last != NULL ? scripts_number(last, "left_out") : 0;

	print_cluster(status);
	while ((row = scripts_next_row(row)) != NULL)
		print_row(row);
	printf("%lld undeliverable\n", scripts_number(status, "undeliverable"));
	if (left_out > 0)
		printf("%lld rows found no room\n", left_out);
}

void
scripts_print_json(const char *status)
{
	for (; *status != '\0'; status++)
		putchar(*status == '\n' ? '\n' : plain(*status));
}
