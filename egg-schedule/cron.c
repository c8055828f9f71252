/*
 * A cron expression is six sets of numbers. To find the next time, the search skips
 * times that cannot be right: days first, then quarters of an hour, then minutes.
 *
 * egg: npm cron-parser 2.18, lib/expression.js; npm humanize-ms 1.2; npm ms 2.1
 *
 *	day    |---------|---------|---------|     the day is wrong: to the next midnight
 *	hour       |-|-|-|-|                       the hour is wrong: to the next quarter
 *	minute         ||||||                      the minute is wrong: to the next minute
 *
 * All zones that are in use today differ from UTC by whole quarters of an hour.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "cron.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#define A_MINUTE 60
#define A_QUARTER (15 * A_MINUTE)
#define AN_HOUR (60 * A_MINUTE)
#define A_DAY (24 * AN_HOUR)

/* ---- the fields ---------------------------------------------------------- */

struct field {
	const char *name;
	int low, high;
	const char *names; /* of its values from `first` on, three letters each */
	int first;
};

enum { SECOND, MINUTE, HOUR, DAY, MONTH, WEEKDAY, FIELDS };

static const struct field fields[FIELDS] = {
	{"second", 0, 59, "", 0},
	{"minute", 0, 59, "", 0},
	{"hour", 0, 23, "", 0},
	{"day of month", 1, 31, "", 0},
	{"month", 1, 12, "JANFEBMARAPRMAYJUNJULAUGSEPOCTNOVDEC", 1},
	{"day of week", 0, 7, "SUNMONTUEWEDTHUFRISAT", 0},
};

/* The parser's position. `at` moves on as long as the text there is right. */
struct parser {
	const char *at;
	const struct field *field;
	uint64_t bits;
	int count; /* of values, repeated ones too: cron-parser's wildcards are made so */
	bool last_day;
	int nth;
	const char *why;
};

static bool
fail(struct parser *parser, const char *why)
{
	parser->why = why;
	return false;
}

static bool
take(struct parser *parser, char character)
{
	if (*parser->at != character)
		return false;
	parser->at++;
	return true;
}

static bool
parse_number(struct parser *parser, int *number)
{
	if (!isdigit((unsigned char)*parser->at))
		return fail(parser, "a number is expected");
	for (*number = 0; isdigit((unsigned char)*parser->at); parser->at++)
		if (*number < 1000) /* it is too large already */
			*number = 10 * *number + (*parser->at - '0');
	return true;
}

/* 7, or SUN. */
static bool
parse_value(struct parser *parser, int *value)
{
	const struct field *field = parser->field;
	const char *name;

	for (name = field->names; *name != '\0'; name += 3)
		if (strncasecmp(name, parser->at, 3) == 0) {
			parser->at += 3;
			*value = field->first + (int)(name - field->names) / 3;
			return true;
		}
	if (!parse_number(parser, value))
		return false;
	return (*value >= field->low && *value <= field->high) ||
	       fail(parser, "a value is out of range");
}

/* 5, 5-9, *, and each with a step. A single value with a step is a range to the end. */
static bool
parse_item(struct parser *parser)
{
	const struct field *field = parser->field;
	bool is_day = field == &fields[DAY] || field == &fields[WEEKDAY];
	int low = field->low, high = field->high, step = 1;
	bool range = true;

	if (!take(parser, '*') && !(is_day && take(parser, '?'))) {
		if (!parse_value(parser, &low))
			return false;
		range = take(parser, '-');
		if (!range)
			high = low;
		else if (!parse_value(parser, &high))
			return false;
	}
	if (take(parser, '/')) {
		if (!parse_number(parser, &step))
			return false;
		high = range ? high : field->high;
		range = true;
	}
	if (step == 0)
		return fail(parser, "a step of 0");
	if (range && low >= high)
		return fail(parser, "a range must go up");
	for (; low <= high; low += step, parser->count++)
		parser->bits |= (uint64_t)1 << low;
	return true;
}

/* 1#2: one day of the week, and its number in the month. */
static bool
parse_nth(struct parser *parser)
{
	if (!take(parser, '#'))
		return true;
	if (!parse_number(parser, &parser->nth))
		return false;
	return (parser->nth >= 1 && parser->nth <= 5) || fail(parser, "# is followed by 1 to 5");
}

static bool
at_end(const struct parser *parser)
{
	return *parser->at == '\0' || isspace((unsigned char)*parser->at);
}

static bool
parse_field(struct parser *parser)
{
	const char *start = parser->at;
	const char *mark = start + strcspn(start, "#,/- \t\n");
	bool has_nth = parser->field == &fields[WEEKDAY] && *mark == '#';

	do {
		if (parser->field == &fields[DAY] && take(parser, 'L')) {
			parser->last_day = true;
			parser->count++;
		} else if (!parse_item(parser)) {
			return false;
		}
	} while (!has_nth && take(parser, ','));
	if (has_nth && !parse_nth(parser))
		return false;
	return at_end(parser) || fail(parser, "this is not a value, a range or a step");
}

/* ---- the expression ------------------------------------------------------ */

static const char *
predefined(const char *expression)
{
	static const char *const names[][2] = {
		{"@yearly", "0 0 1 1 *"}, {"@monthly", "0 0 1 * *"}, {"@weekly", "0 0 * * 0"},
		{"@daily", "0 0 * * *"},  {"@hourly", "0 * * * *"},
	};
	size_t i;

	for (i = 0; i < sizeof names / sizeof *names; i++)
		if (strcmp(expression, names[i][0]) == 0)
			return names[i][1];
	return expression;
}

static void
skip_blanks(struct parser *parser)
{
	while (isspace((unsigned char)*parser->at))
		parser->at++;
}

static int
count_fields(const char *text)
{
	struct parser parser = {.at = text};
	int count = 0;

	for (skip_blanks(&parser); *parser.at != '\0'; skip_blanks(&parser)) {
		count++;
		while (!at_end(&parser))
			parser.at++;
	}
	return count;
}

static int
days_in_month(int month, int year)
{
	static const int days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
	bool leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;

	return days[month] + (month == 1 && leap);
}

/* Is one of the days in the month? Only if a single month is given; cron-parser checks that. */
static bool
day_is_in_month(const struct cron *cron)
{
	int month = 0, day = 1;

	while ((cron->month >> (month + 1) & 1) == 0)
		month++;
	if (cron->month >> (month + 1) != 1 || cron->day == 0)
		return true; /* several months, or L alone */
	while ((cron->day >> day & 1) == 0)
		day++;
	return day <= days_in_month(month, 4);
}

static void
store(struct cron *cron, int which, const struct parser *field)
{
	uint64_t *const sets[FIELDS] = {&cron->second, &cron->minute, &cron->hour,
	                                &cron->day,    &cron->month,  &cron->weekday};

	*sets[which] = field->bits;
	if (which == HOUR)
		cron->any_hour = field->count == 24;
	if (which == DAY) {
		cron->any_day = field->count == 31; /* D40: also where the month is shorter */
		cron->last_day = field->last_day;
	}
	if (which == WEEKDAY) {
		cron->any_weekday = field->count == 8;
		cron->weekday |= field->bits >> 7; /* D41: 7 is Sunday in a range, too */
		cron->nth = field->nth;
	}
}

int
cron_parse(struct cron *cron, const char *expression, char *why, size_t size)
{
	struct parser parser = {.at = predefined(expression)};
	int count = count_fields(parser.at);
	int which = count == 6 ? SECOND : MINUTE;

	*cron = (struct cron){.second = 1};
	errno = EINVAL;
	if (count != 5 && count != 6) { /* D42 */
		snprintf(why, size, "there are 5 fields, or 6 with seconds, not %d", count);
		return -1;
	}
	for (; which < FIELDS; which++) {
		parser = (struct parser){.at = parser.at, .field = &fields[which]};
		skip_blanks(&parser);
		if (!parse_field(&parser)) {
			snprintf(why, size, "%s (%d-%d): %s", parser.field->name, parser.field->low,
			         parser.field->high, parser.why);
			return -1;
		}
		store(cron, which, &parser);
	}
	if (!day_is_in_month(cron) || cron_next(cron, time(NULL)) == -1) { /* D42 */
		snprintf(why, size, "there is no such day");
		errno = EINVAL;
		return -1;
	}
	return 0;
}

/* ---- the clock on the wall ----------------------------------------------- */

/* What a clock on the wall shows, as one number: the seconds since 1970 if its zone were
 * UTC. The formula is POSIX's, "Seconds Since the Epoch"; gmtime_r(3) is its inverse. */
static time_t
wall_seconds(const struct tm *shown)
{
	time_t year = shown->tm_year;
	time_t days = shown->tm_yday + (year - 70) * 365 + (year - 69) / 4 - (year - 1) / 100 +
	              (year + 299) / 400;

	return days * A_DAY + shown->tm_hour * AN_HOUR + shown->tm_min * A_MINUTE + shown->tm_sec;
}

/* What the local clock on the wall shows at a time. */
static time_t
wall_at(time_t now)
{
	struct tm local;

	return localtime_r(&now, &local) != NULL ? wall_seconds(&local) : now;
}

/* The difference to UTC at a time. */
static time_t
offset_at(time_t now)
{
	return wall_at(now) - now;
}

/* ---- the next time ------------------------------------------------------- */

static bool
has(uint64_t set, int value)
{
	return (set >> value & 1) != 0;
}

/* "If both fields are restricted, the command will be run when either field
 * matches": crontab(5). */
static bool
day_matches(const struct cron *cron, const struct tm *local)
{
	int last = days_in_month(local->tm_mon, local->tm_year + 1900);
	bool day = has(cron->day, local->tm_mday) || (cron->last_day && local->tm_mday == last);
	bool weekday = has(cron->weekday, local->tm_wday);

	if (!has(cron->month, local->tm_mon + 1))
		return false;
	if (cron->nth != 0 && (local->tm_mday + 6) / 7 != cron->nth)
		return false;
	if (cron->any_day)
		return cron->any_weekday || weekday;
	return day || (!cron->any_weekday && weekday);
}

static bool
hour_matches(const struct cron *cron, const struct tm *local)
{
	return has(cron->hour, local->tm_hour) && day_matches(cron, local);
}

/* D49: does the clock show this time for the second time? If it was put back within
 * the last day, the offset of a day ago leads from the same clock time to an earlier moment. */
static bool
comes_again(time_t now)
{
	time_t wall = wall_at(now);
	time_t first = wall - offset_at(now - A_DAY);

	return first < now && wall_at(first) == wall;
}

/*
 * D48: did clocks leap over the same minute of an earlier hour that matches, and is this
 * the first such minute that exists since? So only the hour after a leap has made-up times:
 *
 *	wall           22:30   23:30   0:30   1:30   2:30
 *	exists          yes     no      no    yes    yes       a leap from 23:00 to 1:00
 *	matches                 <----- these count at 1:30
 */
static bool
is_made_up(const struct cron *cron, time_t now)
{
	time_t offset = offset_at(now - AN_HOUR), here = wall_at(now), wall;
	struct tm leapt;

	for (wall = here - AN_HOUR; wall >= here - A_DAY; wall -= AN_HOUR) {
		if (wall_at(wall - offset) == wall)
			return false; /* this one was there, before the leap */
		if (gmtime_r(&wall, &leapt) != NULL && hour_matches(cron, &leapt))
			return true;
	}
	return false;
}

/* egg: _applyTimezoneShift, _dstStart, _dstEnd. egg keeps state from one search to the next;
 * here the time alone is enough (D43). */
static bool
hour_is_due(const struct cron *cron, time_t now, const struct tm *local)
{
	if (cron->any_hour)
		return day_matches(cron, local);
	if (hour_matches(cron, local))
		return !comes_again(now);
	return is_made_up(cron, now);
}

/* The hour is wrong. Go on to the next midnight, if the day is wrong, too, or to the next
 * quarter of an hour; but minute by minute where clocks change on the way, and to midnight
 * only if they have not changed for an hour: otherwise there may be made-up times. */
static time_t
skip(const struct cron *cron, time_t now, const struct tm *local)
{
	time_t today = local->tm_hour * AN_HOUR + local->tm_min * A_MINUTE + local->tm_sec;
	time_t midnight = now - today + A_DAY;
	time_t quarter = now - now % A_QUARTER + A_QUARTER;

	if (!day_matches(cron, local) && offset_at(now - AN_HOUR) == offset_at(midnight))
		return midnight;
	if (offset_at(now) == offset_at(quarter))
		return quarter;
	return now - now % A_MINUTE + A_MINUTE;
}

time_t
cron_next(const struct cron *cron, time_t after)
{
	time_t now = after + 1;
	struct tm local;
	int last_year;

	if (localtime_r(&now, &local) == NULL)
		return -1;
	last_year = local.tm_year + CRON_YEARS;
	while (localtime_r(&now, &local) != NULL && local.tm_year <= last_year) {
		if (!hour_is_due(cron, now, &local))
			now = skip(cron, now, &local);
		else if (!has(cron->minute, local.tm_min))
			now += A_MINUTE - now % A_MINUTE;
		else if (!has(cron->second, local.tm_sec))
			now++;
		else
			return now;
	}
	return -1;
}

/* ---- interval and date --------------------------------------------------- */

/* One of this unit, in milliseconds; 0: there is no such unit. */
static double
unit_size(const char *unit)
{
	static const struct {
		const char *names;
		double size;
	} units[] = {
		{"/ms/msec/msecs/millisecond/milliseconds/", 1},
		{"/s/sec/secs/second/seconds/", 1e3},
		{"/m/min/mins/minute/minutes/", 60e3},
		{"/h/hr/hrs/hour/hours/", 3600e3},
		{"/d/day/days/", 86400e3},
		{"/w/week/weeks/", 7 * 86400e3},
		{"/y/yr/yrs/year/years/", 365.25 * 86400e3},
	};
	char name[16] = "/";
	size_t i, length = strlen(unit);

	if (length == 0)
		return 1;
	if (length > sizeof name - 3)
		return 0;
	for (i = 0; i < length; i++) {
		if (!isalpha((unsigned char)unit[i]))
			return 0;
		name[1 + i] = (char)tolower((unsigned char)unit[i]);
	}
	memcpy(name + 1 + length, "/", 2);
	for (i = 0; i < sizeof units / sizeof *units; i++)
		if (strstr(units[i].names, name) != NULL)
			return units[i].size;
	return 0;
}

int64_t
cron_parse_interval(const char *text)
{
	double number = 0, scale = 1, result;
	bool digit = false; /* was the last character a digit? */

	for (; isdigit((unsigned char)*text); text++, digit = true)
		number = 10 * number + (*text - '0');
	if (*text == '.')
		for (digit = false, text++; isdigit((unsigned char)*text); text++, digit = true)
			if (scale < 1e18) { /* the others are too small to count */
				number = 10 * number + (*text - '0');
				scale *= 10;
			}
	while (digit && *text == ' ')
		text++;
	result = number / scale * unit_size(text);
	if (!digit || !(result >= 1) || result > 1e4 * 366 * 86400e3) { /* D42 */
		errno = EINVAL;
		return -1;
	}
	return (int64_t)result;
}

/* The time at which the local clock shows this. If the clock shows it twice, it is the first
 * of the two times. If clocks leap over it, the time is as much later as they leap. (What
 * mktime(3) does with such times differs from libc to libc.) egg: new Date(text) */
static time_t
time_of(time_t wall)
{
	time_t before = wall - offset_at(wall - A_DAY), after = wall - offset_at(wall + A_DAY);

	return wall_at(before) != wall && wall_at(after) == wall ? after : before;
}

/* Is it a day of the calendar and a time of the day? Then its day of the year is set. */
static bool
date_is_valid(struct tm *date)
{
	int month;

	if (date->tm_mon < 0 || date->tm_mon > 11 || date->tm_mday < 1 ||
	    date->tm_mday > days_in_month(date->tm_mon, date->tm_year + 1900) ||
	    date->tm_hour < 0 || date->tm_hour > 23 || date->tm_min < 0 || date->tm_min > 59 ||
	    date->tm_sec < 0 || date->tm_sec > 59)
		return false;
	date->tm_yday = date->tm_mday - 1;
	for (month = 0; month < date->tm_mon; month++)
		date->tm_yday += days_in_month(month, date->tm_year + 1900);
	return true;
}

/* Is the text of this form, in which # is a digit, and _ a blank or a T? */
static bool
has_form(const char *text, const char *form)
{
	for (; *form != '\0' && *text != '\0'; form++, text++)
		if (*form == '#'   ? !isdigit((unsigned char)*text)
		    : *form == '_' ? *text != ' ' && *text != 'T'
		                   : *text != *form)
			return false;
	return *form == *text;
}

time_t
cron_parse_date(const char *text)
{
	struct tm date = {.tm_sec = 0};

	if (has_form(text, "####-##-##") || has_form(text, "####-##-##_##:##") ||
	    has_form(text, "####-##-##_##:##:##"))
		sscanf(text, "%d-%d-%d%*c%d:%d:%d", &date.tm_year, &date.tm_mon, &date.tm_mday,
		       &date.tm_hour, &date.tm_min, &date.tm_sec);
	date.tm_year -= 1900;
	date.tm_mon--;
	if (date.tm_year < 70 || !date_is_valid(&date)) {
		errno = EINVAL;
		return -1;
	}
	return time_of(wall_seconds(&date));
}
