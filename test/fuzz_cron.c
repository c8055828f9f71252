/*
 * A cron expression, compared with a plain model of it. In UTC the model finds the next time by
 * counting days. In zones whose clocks change, each second before the next time has the same one.
 *
 * An input is two bytes that say when to begin, one that chooses the zone, and the expression.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "egg-schedule/cron.h"
#include "fuzz.h"

#include <ctype.h>
#include <strings.h>
#include <time.h>

#define DAY 86400

static char zones[][40] = {"TZ=UTC0", "TZ=CET-1CEST,M3.5.0,M10.5.0/3",
                           "TZ=LHST-10:30LHDT-11,M10.1.0,M4.1.0", "TZ=X3Y,M3.5.0/0,M10.5.0/0"};

/* ---- the model of an expression ------------------------------------------------- */

struct model {
	bool second[64], minute[64], hour[64], day[64], month[64], weekday[64];
	int day_count, weekday_count, nth;
	bool last_day;
};

/* The value of a number or of a name (a month, a weekday); -1: it is neither. */
static int
model_value(const char *text, size_t length, int field)
{
	static const char *const names[6] = {
		[4] = "JANFEBMARAPRMAYJUNJULAUGSEPOCTNOVDEC", [5] = "SUNMONTUEWEDTHUFRISAT"};
	size_t i;
	int value = 0;

	for (i = 0; length == 3 && names[field] != NULL && names[field][3 * i] != '\0'; i++)
		if (strncasecmp(names[field] + 3 * i, text, 3) == 0)
			return (int)i + (field == 4);
	for (i = 0; i < length; i++) {
		if (!isdigit((unsigned char)text[i]))
			return -1;
		value = value < 1000 ? 10 * value + (text[i] - '0') : value;
	}
	return length > 0 ? value : -1;
}

/* Add "*", "5", "5-9" (each perhaps with "/2"). Returns the number of values; 0: it is wrong. */
static int
model_item(bool *set, const char *text, size_t length, int field)
{
	static const int lows[] = {0, 0, 0, 1, 1, 0}, highs[] = {59, 59, 23, 31, 12, 7};
	const char *slash = memchr(text, '/', length);
	size_t base = slash != NULL ? (size_t)(slash - text) : length;
	const char *dash = memchr(text, '-', base);
	size_t first = dash != NULL ? (size_t)(dash - text) : base;
	int low = lows[field], high = highs[field], step = 1, value, count = 0;

	if (base != 1 || (text[0] != '*' && (text[0] != '?' || (field != 3 && field != 5)))) {
		low = model_value(text, first, field);
		high = dash != NULL    ? model_value(dash + 1, base - first - 1, field)
		       : slash != NULL ? high
		                       : low;
		if (low < lows[field] || low > highs[field] || high < lows[field] ||
		    high > highs[field] || ((dash != NULL || slash != NULL) && low >= high))
			return 0;
	}
	if (slash != NULL)
		step = model_value(slash + 1, length - base - 1, 0);
	if (step <= 0)
		return 0;
	for (value = low; value <= high; value += step, count++)
		set[value] = true;
	return count;
}

/* A list of items, "L" in the days, "1#2" alone in the weekdays. Returns the number; 0: wrong. */
static int
model_field(struct model *model, const char *text, size_t length, int field)
{
	bool *sets[] = {model->second, model->minute, model->hour,
	                model->day,    model->month,  model->weekday};
	const char *end = text + length, *hash = memchr(text, '#', length), *comma;
	int count = 0, found;

	if (field == 5 && hash != NULL) {
		model->nth = model_value(hash + 1, (size_t)(end - hash) - 1, 0);
		if (model->nth < 1 || model->nth > 5 ||
		    strcspn(text, ",/-") < (size_t)(hash - text))
			return 0;
		end = hash;
	}
	for (; text <= end; text = comma + 1, count += found) {
		comma = memchr(text, ',', (size_t)(end - text));
		comma = comma != NULL ? comma : end;
		found = comma - text == 1 && *text == 'L' && field == 3;
		model->last_day |= found;
		if (!found)
			found = model_item(sets[field], text, (size_t)(comma - text), field);
		if (found == 0)
			return 0;
	}
	return count;
}

static int
days_of(int month, int year)
{
	static const int days[] = {0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};

	return days[month] +
	       (month == 2 && (year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)));
}

/* If only one month is given, does it have the earliest of the days? */
static bool
model_has_day(const struct model *model)
{
	int month, only = 0, count = 0, day = 1;

	for (month = 12; month >= 1; month--)
		if (model->month[month]) {
			only = month;
			count++;
		}
	while (day <= 31 && !model->day[day])
		day++;
	return count != 1 || day == 32 || day <= days_of(only, 4);
}

static bool
model_parse(struct model *model, const char *text)
{
	static const char *const names[][2] = {{"@yearly", "0 0 1 1 *"},
	                                       {"@monthly", "0 0 1 * *"},
	                                       {"@weekly", "0 0 * * 0"},
	                                       {"@daily", "0 0 * * *"},
	                                       {"@hourly", "0 * * * *"}};
	static const char blanks[] = " \t\n\v\f\r";
	size_t i, lengths[7], count = 0;
	const char *fields[7];
	int found;

	*model = (struct model){.second = {true}};
	for (i = 0; i < 5; i++)
		text = strcmp(text, names[i][0]) == 0 ? names[i][1] : text;
	for (text += strspn(text, blanks); *text != '\0' && count < 7; count++) {
		fields[count] = text;
		lengths[count] = strcspn(text, blanks);
		text += lengths[count];
		text += strspn(text, blanks);
	}
	if (count != 5 && count != 6)
		return false;
	if (count == 6)
		model->second[0] = false;
	for (i = 0; i < count; i++) {
		found = model_field(model, fields[i], lengths[i], (int)(i + 6 - count));
		if (found == 0)
			return false;
		model->day_count = i + 6 - count == 3 ? found : model->day_count;
		model->weekday_count = i + 6 - count == 5 ? found : model->weekday_count;
	}
	model->weekday[0] |= model->weekday[7];
	return model_has_day(model);
}

/* ---- the next time in UTC --------------------------------------------------------- */

static bool
model_day(const struct model *model, const struct tm *date)
{
	int last = days_of(date->tm_mon + 1, date->tm_year + 1900);
	bool day = model->day[date->tm_mday] || (model->last_day && date->tm_mday == last);
	bool any_weekday = model->weekday_count == 8, weekday = model->weekday[date->tm_wday];

	if (!model->month[date->tm_mon + 1])
		return false;
	if (model->nth != 0 && (date->tm_mday - 1) / 7 + 1 != model->nth)
		return false;
	if (model->day_count == 31)
		return any_weekday || weekday;
	return day || (!any_weekday && weekday);
}

/* The next time from `from` on; -1: there is none. */
static time_t
model_time(const struct model *model, time_t from)
{
	for (; from < DAY; from++) {
		if (!model->hour[from / 3600])
			from += 3600 - from % 3600 - 1;
		else if (!model->minute[from / 60 % 60])
			from += 60 - from % 60 - 1;
		else if (model->second[from % 60])
			return from;
	}
	return -1;
}

static void
next_day(struct tm *date)
{
	date->tm_wday = (date->tm_wday + 1) % 7;
	if (++date->tm_mday <= days_of(date->tm_mon + 1, date->tm_year + 1900))
		return;
	date->tm_mday = 1;
	date->tm_mon = (date->tm_mon + 1) % 12;
	date->tm_year += date->tm_mon == 0;
}

static time_t
model_next(const struct model *model, time_t after)
{
	time_t day = (after + 1) / DAY * DAY, from = (after + 1) % DAY, found;
	struct tm date;
	int last_year;

	gmtime_r(&day, &date);
	last_year = date.tm_year + CRON_YEARS;
	for (; date.tm_year <= last_year; next_day(&date), day += DAY, from = 0) {
		found = model_day(model, &date) ? model_time(model, from) : -1;
		if (found != -1)
			return day + found;
	}
	return -1;
}

static void
check_cron(const char *text, time_t after, size_t zone)
{
	char why[64] = "";
	struct model model;
	struct cron cron;
	time_t next, between, other;
	bool is_right = model_parse(&model, text) && model_next(&model, time(NULL)) != -1;

	putenv(zones[0]);
	tzset();
	CHECK((cron_parse(&cron, text, why, sizeof why) == 0) == is_right);
	CHECK(is_right == (why[0] == '\0') && strchr(why, '\n') == NULL);
	if (!is_right)
		return;
	CHECK(cron_next(&cron, after) == model_next(&model, after));
	putenv(zones[zone]);
	tzset();
	next = cron_next(&cron, after);
	if (next == -1)
		return;
	between = after + (next - after) / 2;
	CHECK(next > after && cron_next(&cron, next - 1) == next);
	CHECK(cron_next(&cron, between) == next);
	other = cron_next(&cron, next);
	CHECK(other == -1 || other > next);
}

int
LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
	char *text = size >= 3 ? malloc(size - 2) : NULL;
	time_t after;

	if (text == NULL)
		return 0;
	memcpy(text, input + 3, size - 3);
	text[size - 3] = '\0';
	/* 45 years from 2020 on, in steps of 21,661 seconds */
	after = 1577836800 + (input[0] * 256 + input[1]) * (time_t)21661;
	check_cron(text, after, input[2] % 4);
	free(text);
	return 0;
}
