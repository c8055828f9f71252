/*
 * The answer to clutch-status, read: one JSON object, which has strings, numbers, and a list
 * of rows. This is no reader of JSON for any text: it believes that the text is right, since
 * the master has written it.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#ifndef EXAMPLES_STATUS_H
#define EXAMPLES_STATUS_H

#include <stdbool.h>

/* The value of a member of the object that begins at `object`; NULL: the object has no member
 * of this name. */
const char *status_value(const char *object, const char *name);

/* A member's number; 0 if there is none. */
long long status_number(const char *object, const char *name);

/* Is a member this string? */
bool status_is(const char *object, const char *name, const char *text);

/* The first row of the status, and the one that follows a row; NULL: there is none. A row is
 * an object. */
const char *status_first_row(const char *status);
const char *status_next_row(const char *row);

#endif
