/*
 * The answer to clutch-status, read.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "status.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

/* The place behind the string that begins here. */
static const char *
skip_string(const char *at)
{
	for (at++; *at != '"' && *at != '\0'; at++)
		if (*at == '\\' && at[1] != '\0')
			at++;
	return *at == '"' ? at + 1 : at;
}

/* The place behind the value that begins here: a string, a number, or all that a bracket opens. */
static const char *
skip_value(const char *at)
{
	int depth = 0;

	do {
		if (*at == '"') {
			at = skip_string(at);
			continue;
		}
		depth += *at == '{' || *at == '[' ? 1 : 0;
		depth -= *at == '}' || *at == ']' ? 1 : 0;
		at++;
	} while (*at != '\0' && (depth > 0 || strchr(",]} \n", *at) == NULL));
	return at;
}

const char *
status_value(const char *object, const char *name)
{
	size_t length = strlen(name);
	const char *at = object + 1, *key;

	while (*(at += strspn(at, ", \n")) == '"') {
		key = at + 1;
		at = skip_string(at);
		at += strspn(at, ": \n");
		if (strncmp(key, name, length) == 0 && key[length] == '"')
			return at;
		at = skip_value(at);
	}
	return NULL;
}

long long
status_number(const char *object, const char *name)
{
	const char *value = status_value(object, name);

	return value != NULL ? strtoll(value, NULL, 10) : 0;
}

bool
status_is(const char *object, const char *name, const char *text)
{
	const char *value = status_value(object, name);
	size_t length = strlen(text);

	return value != NULL && *value == '"' && strncmp(value + 1, text, length) == 0 &&
	       value[1 + length] == '"';
}

static const char *
row_at(const char *at)
{
	at += strspn(at, ", \n");
	return *at == '{' ? at : NULL;
}

const char *
status_first_row(const char *status)
{
	const char *rows = status_value(status, "processes");

	return rows != NULL && *rows == '[' ? row_at(rows + 1) : NULL;
}

const char *
status_next_row(const char *row)
{
	return row_at(skip_value(row));
}
