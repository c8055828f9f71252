/*
 * A cron expression is six sets of numbers. To find the next time, the search leaps
 * over what cannot be right: months, then days, quarters of an hour, minutes.
 *
 * egg: npm cron-parser 2.18, lib/expression.js; npm humanize-ms 1.2; npm ms 2.1
 *
 *	year   |---------|---------|---------|     month is wrong: to the next one
 *	month      |--|--|--|--|                   day is wrong: to the next midnight
 *	day            |----|----|----|            hour is wrong: 15 minutes on, for
 *	hour               |-|-|-|-|               clocks change at such times only
 *
 * All zones that are in use today differ from UTC by whole quarters of an hour.
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

/* Where the parser stands. `at` goes on as long as what stands there is right. */
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

/* 5, 5-9, *, and each with a step; a step behind a single value goes on to the end. */
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
	return at_end(parser) || fail(parser, "what stands there is no value, range or step");
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

/* One month, and none of the days that are given is in it. */
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

	if (cron->nth != 0 && (local->tm_mday + 6) / 7 != cron->nth)
		return false;
	if (cron->any_day)
		return cron->any_weekday || weekday;
	return day || (!cron->any_weekday && weekday);
}

/*
 * What the clock on the wall showed an hour ago tells whether it has been changed:
 *
 *	3:30, and 1:30 then: there was no 2:30, which is made up for now
 *	2:30, and 2:30 then: it comes for the second time
 *
 * egg: _applyTimezoneShift, _dstStart, _dstEnd: kept from one search to the next,
 * while here each time tells by itself (D43).
 */
static bool
hour_matches(const struct cron *cron, time_t now, const struct tm *local)
{
	int hour = local->tm_hour;
	time_t ago = now - AN_HOUR;
	struct tm then;

	if (cron->any_hour || localtime_r(&ago, &then) == NULL)
		return has(cron->hour, hour);
	if (has(cron->hour, hour))
		return then.tm_hour != hour || then.tm_min != local->tm_min;
	return hour >= 2 && has(cron->hour, hour - 1) && then.tm_hour == hour - 2;
}

static int
day_of(time_t time)
{
	struct tm local;

	return localtime_r(&time, &local) != NULL ? local.tm_mday : -1;
}

/* The first second of a later day. Its midnight may not exist, or come twice, and what
 * mktime makes of it then is every libc's own; so the way there is from noon. -1: time_t
 * does not reach that far. */
static time_t
day_start(time_t now, int year, int month, int day)
{
	struct tm noon = {
		.tm_year = year, .tm_mon = month, .tm_mday = day, .tm_hour = 12, .tm_isdst = -1};
	time_t at = mktime(&noon), start = at - 12 * AN_HOUR;

	if (at == -1)
		return -1;
	while (start < at && day_of(start) != noon.tm_mday)
		start += A_QUARTER;
	while (start > now && day_of(start - A_QUARTER) == noon.tm_mday)
		start -= A_QUARTER;
	return start > now ? start : now + A_QUARTER - now % A_QUARTER;
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
	while (now != -1 && localtime_r(&now, &local) != NULL && local.tm_year <= last_year) {
		if (!has(cron->month, local.tm_mon + 1))
			now = day_start(now, local.tm_year, local.tm_mon + 1, 1);
		else if (!day_matches(cron, &local))
			now = day_start(now, local.tm_year, local.tm_mon, local.tm_mday + 1);
		else if (!hour_matches(cron, now, &local))
			now += A_QUARTER - now % A_QUARTER;
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

/* What one of a unit is in milliseconds; 0: there is no such unit. */
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
	bool digit = false; /* the last one was */

	for (; isdigit((unsigned char)*text); text++, digit = true)
		number = 10 * number + (*text - '0');
	if (*text == '.')
		for (digit = false, text++; isdigit((unsigned char)*text); text++, digit = true) {
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

time_t
cron_parse_date(const char *text)
{
	struct tm date = {.tm_isdst = -1}, asked;
	int length[3] = {0, 0, 0}, used;
	char between = ' ';
	time_t result;

	sscanf(text, "%4d-%2d-%2d%n%c%2d:%2d%n:%2d%n", &date.tm_year, &date.tm_mon, &date.tm_mday,
	       &length[0], &between, &date.tm_hour, &date.tm_min, &length[1], &date.tm_sec,
	       &length[2]);
	used = length[2] > 0 ? length[2] : length[1] > 0 ? length[1] : length[0];
	date.tm_year -= 1900;
	date.tm_mon--;
	asked = date;
	result = mktime(&date);
	if (used == 0 || text[used] != '\0' || (between != ' ' && between != 'T') || result == -1 ||
	    date.tm_mon != asked.tm_mon || date.tm_mday != asked.tm_mday || asked.tm_hour < 0 ||
	    asked.tm_hour > 23 || date.tm_min != asked.tm_min || date.tm_sec != asked.tm_sec) {
		errno = EINVAL;
		return -1;
	}
	return result;
}
