/*
 * cron: when a cron expression is due; and the two other texts about time in a job.
 * Nothing here knows of jobs or messages.
 *
 * egg: npm cron-parser 2.18, npm humanize-ms 1.2
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#ifndef CRON_H
#define CRON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

/* A parsed expression: bit n of a field is set if n is one of its values. */
struct cron {
	uint64_t second, minute, hour, day, month, weekday;
	bool any_hour, any_day, any_weekday; /* the field is all of its values */
	bool last_day;                       /* L */
	int nth;                             /* the n of 1#n; 0: none */
};

/*
 * Parse an expression, as struct schedule describes it. -1 with EINVAL: it is not one,
 * or it can never be due; `why` then holds a line that says so, cut to its size.
 */
int cron_parse(struct cron *cron, const char *expression, char *why, size_t size);

/*
 * The first second after `after` at which the expression is due, in local time; -1: there
 * is none within CRON_YEARS. Where hours are given (not all 24) and clocks change:
 *
 *	a time that they leap over    is due at the same minute of the next hour that
 *	                              exists: 2:30 at 3:30, 0:00 at 1:00 (D48)
 *	a time that comes twice       counts once, the first time (D49)
 *
 * Where all hours are given, each hour that the clock shows counts.
 */
time_t cron_next(const struct cron *cron, time_t after);

/* How far cron_next looks: 29 February may be a Monday only after 40 years. */
#define CRON_YEARS 50

/* "1.5h" in milliseconds, rounded down; -1 with EINVAL: it is not an interval, or not
 * positive, or beyond 10,000 years. */
int64_t cron_parse_interval(const char *text);

/* "2027-01-31", "2027-01-31 23:59" or "2027-01-31T23:59:59" in local time. If the clock shows
 * it twice, it is the first of the two times; if clocks leap over it, the time is as much later
 * as they leap. -1 with EINVAL: it is not a date, or one before 1970. */
time_t cron_parse_date(const char *text);

#endif
