/*
 * The times at which a job is due. golden/cron.tsv and golden/interval.tsv have the results of
 * cron-parser 2.18 and humanize-ms 1.2; the system's time zones say when clocks change.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "egg-schedule/cron.h"

#include <criterion/criterion.h>
#include <criterion/logging.h>

#include <errno.h>
#include <ftw.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

TestSuite(cron, .timeout = 120);

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* "2027-03-28 02:30:00", local. */
static time_t
local_time(const char *text)
{
	struct tm date = {.tm_isdst = -1};

	if (strptime(text, "%Y-%m-%d %H:%M:%S", &date) == NULL)
		abort();
	return mktime(&date);
}

/* The folder of the system's time zones. */
static const char *
zones(void)
{
	return getenv("TZDIR") != NULL ? getenv("TZDIR") : "/usr/share/zoneinfo";
}

/* Use the local time of this zone from now on. If the system does not have the zone, the test is
 * skipped, and a line says so, because Criterion does not show the reason. */
static void
use_zone(const char *zone)
{
	char path[1024];

	snprintf(path, sizeof path, "%s/%s", zones(), zone);
	if (strcmp(zone, "UTC") != 0 && access(path, R_OK) == -1) {
		fprintf(stderr, "there is no time zone %s: not checked\n", path);
		cr_skip_test("no time zones");
	}
	setenv("TZ", zone, 1);
	tzset();
}

/* ---- golden ----------------------------------------------------------------- */

/* Tests run in the root of the project, or TEST_ROOT says where it is. */
static FILE *
open_golden(const char *name)
{
	const char *root = getenv("TEST_ROOT");
	char path[1024];
	FILE *file;

	snprintf(path, sizeof path, "%s/test/golden/%s", root != NULL ? root : ".", name);
	file = fopen(path, "r");
	cr_assert_not_null(file, "%s: %s", path, strerror(errno));
	return file;
}

/* The columns of the next line; NULL after the last line. "\t" stands for a tab. */
static char **
next_row(FILE *file, size_t columns)
{
	static char line[1024], *column[8], *tab;
	char *next = line;
	size_t i;

	if (fgets(line, sizeof line, file) == NULL)
		return NULL;
	line[strcspn(line, "\n")] = '\0';
	for (i = 0; i < columns; i++) {
		column[i] = strsep(&next, "\t");
		cr_assert_not_null(column[i]);
		while ((tab = strstr(column[i], "\\t")) != NULL) {
			*tab = '\t';
			memmove(tab + 1, tab + 2, strlen(tab + 2) + 1);
		}
	}
	return column;
}

/* The next `count` times after `from`, as the golden file writes them; or "ERROR". */
static const char *
times_after(const char *expression, time_t from, int count)
{
	static char text[512];
	struct cron cron;
	struct tm local;
	char why[128] = "";
	size_t used = 0;

	if (cron_parse(&cron, expression, why, sizeof why) == -1) {
		cr_assert(errno == EINVAL && strlen(why) > 10,
		          "the refusal of \"%s\" has no reason, or a wrong errno: \"%s\"",
		          expression, why);
		return "ERROR";
	}
	for (; count > 0; count--) {
		from = cron_next(&cron, from);
		cr_assert_neq(from, -1, "cron_next finds no time for \"%s\"", expression);
		localtime_r(&from, &local);
		used += strftime(text + used, sizeof text - used, "%Y-%m-%d %H:%M:%S %z", &local);
		used += (size_t)snprintf(text + used, sizeof text - used, count > 1 ? ", " : "");
	}
	return text;
}

/* The rows in which cron-parser is wrong, and the right times. */
static const struct {
	const char *zone, *expression, *from, *right;
} wrong_golden[] = {
	/* D48: clocks leap over the midnight of 4 November */
	{"America/Sao_Paulo", "0 0 * * *", "2018-11-02T18:00:00Z",
         "2018-11-03 00:00:00 -0300, 2018-11-04 01:00:00 -0200, "
         "2018-11-05 00:00:00 -0200, 2018-11-06 00:00:00 -0200"},
	{"America/Sao_Paulo", "30 0 * * *", "2018-11-02T18:00:00Z",
         "2018-11-03 00:30:00 -0300, 2018-11-04 01:30:00 -0200, "
         "2018-11-05 00:30:00 -0200, 2018-11-06 00:30:00 -0200"},
	/* D49: half an hour comes twice */
	{"Australia/Lord_Howe", "45 1 * * *", "2027-04-02T18:00:00Z",
         "2027-04-04 01:45:00 +1100, 2027-04-05 01:45:00 +1030, "
         "2027-04-06 01:45:00 +1030, 2027-04-07 01:45:00 +1030"},
};

/* The right times of the row. Rows in which cron-parser is wrong are counted. */
static const char *
right_times(char **row, size_t *wrong)
{
	size_t i;

	for (i = 0; i < COUNT(wrong_golden); i++)
		if (strcmp(row[0], wrong_golden[i].zone) == 0 &&
		    strcmp(row[1], wrong_golden[i].from) == 0 &&
		    strcmp(row[2], wrong_golden[i].expression) == 0) {
			cr_expect_str_neq(row[3], wrong_golden[i].right,
			                  "cron-parser is right about \"%s\"", row[2]);
			++*wrong;
			return wrong_golden[i].right;
		}
	return row[3];
}

Test(cron, is_due_when_cron_parser_says)
{
	FILE *file = open_golden("cron.tsv");
	struct tm date;
	char **row;
	const char *right, *comma;
	size_t wrong = 0;
	int rows = 0, count;

	for (next_row(file, 4); (row = next_row(file, 4)) != NULL; rows++) {
		use_zone(row[0]);
		date = (struct tm){0};
		cr_assert_not_null(strptime(row[1], "%Y-%m-%dT%H:%M:%SZ", &date));
		right = right_times(row, &wrong);
		for (count = 1, comma = right; (comma = strchr(comma, ',')) != NULL; comma++)
			count++;
		cr_expect_str_eq(times_after(row[2], timegm(&date), count), right,
		                 "%s, %s after %s", row[2], row[0], row[1]);
	}
	cr_assert_eq(rows, 149);
	cr_assert_eq(wrong, COUNT(wrong_golden));
	fclose(file);
}

Test(cron, intervals_are_those_of_humanize_ms)
{
	FILE *file = open_golden("interval.tsv");
	char **row;
	int rows = 0;

	for (next_row(file, 2); (row = next_row(file, 2)) != NULL; rows++)
		cr_expect_eq(cron_parse_interval(row[0]),
		             strcmp(row[1], "ERROR") == 0 ? -1 : atoll(row[1]), "\"%s\"", row[0]);
	cr_assert_eq(rows, 51);
	fclose(file);
}

/* A number may have any count of digits. Too many digits in front of the point are an interval
 * that is too long; behind the point, no digit that matters is lost. */
Test(cron, intervals_of_many_digits)
{
	char text[1024];

	snprintf(text, sizeof text, "1.%0400ds", 0);
	cr_expect_eq(cron_parse_interval(text), 1000);
	snprintf(text, sizeof text, "%0400d.25s", 1);
	cr_expect_eq(cron_parse_interval(text), 1250);
	snprintf(text, sizeof text, "1%0400d.%0400ds", 0, 0);
	cr_expect_eq(cron_parse_interval(text), -1);
}

Test(cron, dates)
{
	static const char *const bad[] = {
		"",
		"2027",
		"2027-13-01",
		"2027-02-29",
		"2027-01-01 24:00",
		"2027-01-01 12",
		"2027-01-01 12:60",
		"2027-01-01 12:00:61",
		"2027-01-01x12:00",
		"2027-01-01 12:00:00Z",
		"1.1.2027",
		"2027-01-00",
		"2027-01-01 ",
		"tomorrow",
		" 2027-01-01",
		"2027-1-01",
		"2027-01-1",
		"+027-01-01",
		"2027-01-01 1:00",
		"2027-01-01 +1:00",
		"2027-01-01 12:00:0",
		"1969-12-31",
	};
	size_t i;

	use_zone("Europe/Berlin");
	cr_expect_eq(cron_parse_date("2027-07-01"), local_time("2027-07-01 00:00:00"));
	cr_expect_eq(cron_parse_date("2027-01-31 23:59"), local_time("2027-01-31 23:59:00"));
	cr_expect_eq(cron_parse_date("2028-02-29T12:34:56"), local_time("2028-02-29 12:34:56"));
	cr_expect_eq(cron_parse_date("2027-03-28 02:30"), local_time("2027-03-28 03:30:00"));
	cr_expect_eq(cron_parse_date("2027-10-31 02:30"), local_time("2027-10-31 03:30:00") - 7200);
	for (i = 0; i < COUNT(bad); i++)
		cr_expect_eq(cron_parse_date(bad[i]), -1, "\"%s\" is accepted", bad[i]);
	use_zone("Africa/Cairo");
	cr_expect_eq(cron_parse_date("2026-04-24"), local_time("2026-04-24 01:00:00"));
	use_zone("America/Scoresbysund");
	cr_expect_eq(cron_parse_date("2026-03-28 23:30"), local_time("2026-03-29 00:30:00"));
	use_zone("Pacific/Apia");
	cr_expect_eq(cron_parse_date("2011-12-30"), local_time("2011-12-31 00:00:00"));
}

/* D40. cron-parser finds every day of that June. */
Test(cron, the_mondays_of_one_month)
{
	use_zone("UTC");
	cr_expect_str_eq(times_after("0 9 * 6 1", local_time("2026-06-01 00:00:00"), 3),
	                 "2026-06-01 09:00:00 +0000, 2026-06-08 09:00:00 +0000, "
	                 "2026-06-15 09:00:00 +0000");
	cr_expect_str_eq(times_after("0 9 * FEB MON#5", local_time("2026-06-01 00:00:00"), 2),
	                 "2044-02-29 09:00:00 +0000, 2072-02-29 09:00:00 +0000");
}

/* D41. cron-parser never finds a Sunday, and never the 5th. */
Test(cron, no_value_of_a_range_or_list_is_forgotten)
{
	use_zone("UTC");
	cr_expect_str_eq(times_after("0 0 * * 5-7", local_time("2026-06-01 00:00:00"), 4),
	                 "2026-06-05 00:00:00 +0000, 2026-06-06 00:00:00 +0000, "
	                 "2026-06-07 00:00:00 +0000, 2026-06-12 00:00:00 +0000");
	cr_expect_str_eq(times_after("0 0 20,L,5 * *", local_time("2026-06-01 00:00:00"), 3),
	                 "2026-06-05 00:00:00 +0000, 2026-06-20 00:00:00 +0000, "
	                 "2026-06-30 00:00:00 +0000");
}

/* D42. cron-parser accepts all of these expressions, and gives them another meaning or none. */
Test(cron, what_means_nothing_is_refused)
{
	static const char *const crons[] = {
		"0 0 31 4,6 *",
		"0 0 1|2 * *",
		"0 0 LL * *",
		"0 0 * * 1#1.5",
		"*",
		"1 2",
		"",
		"0 0 * 1jan *",
		"1*/3 * * * *",
		"1-2-3 * * * *",
		"*/2/3 * * * *",
		"0 0 * * */mon",
	};
	static const char *const intervals[] = {"0", "0s", "-5", "-1s", "0.5", ".5ms", "99999y"};
	size_t i;

	use_zone("UTC");
	for (i = 0; i < COUNT(crons); i++)
		cr_expect_str_eq(times_after(crons[i], 0, 1), "ERROR", "\"%s\" is accepted",
		                 crons[i]);
	for (i = 0; i < COUNT(intervals); i++)
		cr_expect_eq(cron_parse_interval(intervals[i]), -1, "\"%s\" is accepted",
		             intervals[i]);
}

/* D43. In cron-parser a search that begins within the hour finds 2:30 again. On Lord Howe
 * Island, where 2:00 becomes 2:30, the search finds 2:40 or 3:40, depending on its beginning. */
Test(cron, the_hour_that_comes_twice_counts_once_wherever_the_search_begins)
{
	time_t second; /* the second 2:10 of that night */

	use_zone("Europe/Berlin");
	second = local_time("2027-10-31 03:10:00") - 3600;
	cr_expect_str_eq(times_after("30 2 * * *", second, 1), "2027-11-01 02:30:00 +0100");
	cr_expect_str_eq(times_after("30 * * * *", second, 1), "2027-10-31 02:30:00 +0100");
	use_zone("Australia/Lord_Howe");
	cr_expect_str_eq(times_after("*/20 2 * * *", local_time("2026-10-04 01:10:00"), 4),
	                 "2026-10-04 02:40:00 +1100, 2026-10-04 03:00:00 +1100, "
	                 "2026-10-04 03:20:00 +1100, 2026-10-05 02:00:00 +1100");
}

/* D48. cron-parser does not find 24 April, 8 March, 29 March and 6 September. */
Test(cron, a_time_that_clocks_leap_over_is_made_up)
{
	use_zone("Africa/Cairo");
	cr_expect_str_eq(times_after("0 0 * * *", local_time("2026-04-22 12:00:00"), 3),
	                 "2026-04-23 00:00:00 +0200, 2026-04-24 01:00:00 +0300, "
	                 "2026-04-25 00:00:00 +0300");
	cr_expect_str_eq(times_after("*/20 0 24 4 *", local_time("2026-04-22 12:00:00"), 3),
	                 "2026-04-24 01:00:00 +0300, 2026-04-24 01:20:00 +0300, "
	                 "2026-04-24 01:40:00 +0300");
	use_zone("America/Havana");
	cr_expect_str_eq(times_after("0 0 * * SUN", local_time("2026-03-06 12:00:00"), 2),
	                 "2026-03-08 01:00:00 -0400, 2026-03-15 00:00:00 -0400");
	use_zone("Asia/Beirut");
	cr_expect_str_eq(times_after("0 0 29 3 *", local_time("2026-03-06 12:00:00"), 1),
	                 "2026-03-29 01:00:00 +0300");
	use_zone("America/Santiago");
	cr_expect_str_eq(times_after("@daily", local_time("2026-09-05 12:00:00"), 2),
	                 "2026-09-06 01:00:00 -0300, 2026-09-07 00:00:00 -0300");
}

/* D48: clocks leap over the last hour of a Saturday, two hours, half an hour, or a whole day. */
Test(cron, what_is_made_up_belongs_to_the_day_that_lacks_it)
{
	use_zone("America/Scoresbysund");
	cr_expect_str_eq(times_after("30 23 * * SAT", local_time("2026-03-28 12:00:00"), 2),
	                 "2026-03-29 00:30:00 -0100, 2026-04-04 23:30:00 -0100");
	use_zone("Antarctica/Troll");
	cr_expect_str_eq(times_after("30 1,2 * * *", local_time("2026-03-29 00:00:00"), 2),
	                 "2026-03-29 03:30:00 +0200, 2026-03-30 01:30:00 +0200");
	use_zone("Asia/Pyongyang");
	cr_expect_str_eq(times_after("45 23 4 5 *", local_time("2018-05-04 12:00:00"), 1),
	                 "2018-05-05 00:45:00 +0900");
	use_zone("Pacific/Apia");
	cr_expect_str_eq(times_after("30 12 * * *", local_time("2011-12-29 00:00:00"), 3),
	                 "2011-12-29 12:30:00 -1000, 2011-12-31 00:30:00 +1400, "
	                 "2011-12-31 12:30:00 +1400");
}

/* D49. cron-parser finds 1:45 twice. */
Test(cron, half_an_hour_that_comes_twice_counts_once)
{
	use_zone("Australia/Lord_Howe");
	cr_expect_str_eq(times_after("45 1 * * *", local_time("2026-04-04 12:00:00"), 2),
	                 "2026-04-05 01:45:00 +1100, 2026-04-06 01:45:00 +1030");
	cr_expect_str_eq(times_after("45 * 5 4 *", local_time("2026-04-05 01:00:00"), 3),
	                 "2026-04-05 01:45:00 +1100, 2026-04-05 01:45:00 +1030, "
	                 "2026-04-05 02:45:00 +1030");
}

/* ---- every change of every clock ------------------------------------------- */

#define MINUTE 60
#define HOUR 3600
#define DAY 86400

/* Ten years. */
#define FIRST_CHANGE 1514764800 /* 2018 */
#define LAST_CHANGE 1830297600  /* 2028 */

/* The offset to UTC changes at this time. */
struct change {
	time_t at, before, after;
};

/* An expression in numbers: "minute/step first-last * * *", or with a day and a month. */
struct sample {
	int minute, step; /* 0: only one minute */
	int first, last;
	bool has_day;
	time_t day; /* since 1970 */
};

/* Shared with the children, of which there is one for each zone: glibc keeps the names of
 * all zones that a process has used, and looks through them again and again. */
static struct totals {
	size_t zones, changes, failures, kind_count;
	struct change kinds[256];
} * totals;

static time_t
offset_at(time_t now)
{
	struct tm local;

	return localtime_r(&now, &local) != NULL ? local.tm_gmtoff : INT_MAX;
}

static bool
sample_matches(const struct sample *sample, time_t wall)
{
	int minute = (int)(wall / MINUTE % 60), hour = (int)(wall / HOUR % 24);
	int past = minute - sample->minute;

	if (sample->has_day && wall / DAY != sample->day)
		return false;
	if (hour < sample->first || hour > sample->last)
		return false;
	return past == 0 || (sample->step != 0 && past > 0 && past % sample->step == 0);
}

static const char *
sample_text(const struct sample *sample)
{
	static char text[128];
	char minute[32], hour[32], day[32] = "* *";
	time_t noon = sample->day * DAY;
	struct tm date;

	snprintf(minute, sizeof minute, sample->step != 0 ? "%d/%d" : "%d", sample->minute,
	         sample->step);
	snprintf(hour, sizeof hour, sample->first != sample->last ? "%d-%d" : "%d", sample->first,
	         sample->last);
	if (sample->has_day && gmtime_r(&noon, &date) != NULL)
		strftime(day, sizeof day, "%d %m", &date);
	snprintf(text, sizeof text, "%s %s %s *", minute, hour, day);
	return text;
}

/* Mark the minutes of the two days around the change in which the sample is due: take each
 * minute that a clock could show, and look for the time at which it does. */
static void
search_plainly(const struct change *change, const struct sample *sample, bool due[2 * DAY / MINUTE])
{
	bool any_hour = sample->first == 0 && sample->last == 23, early, late;
	time_t start = change->at - DAY, end = change->at + DAY;
	time_t shown, wall, time;

	memset(due, false, 2 * DAY / MINUTE * sizeof *due);
	for (shown = start + change->before; shown < end + change->after; shown += MINUTE) {
		if (!sample_matches(sample, shown))
			continue;
		for (wall = shown;; wall += HOUR) {
			early = wall - change->before < change->at;
			late = wall - change->after >= change->at;
			if (early || late || any_hour)
				break;
		}
		time = wall - (early ? change->before : change->after);
		if ((early || late) && time >= start && time < end)
			due[(time - start) / MINUTE] = true;
		if (any_hour && late && wall - change->after < end)
			due[(wall - change->after - start) / MINUTE] = true;
	}
}

static void
compare(const char *zone, const struct change *change, const struct sample *sample)
{
	static bool due[2 * DAY / MINUTE];
	const char *text = sample_text(sample);
	time_t start = change->at - DAY, plain = start, found = start - 1;
	struct cron cron;
	char why[128];

	if (cron_parse(&cron, text, why, sizeof why) == -1)
		abort();
	search_plainly(change, sample, due);
	for (;;) {
		while (plain < change->at + DAY && !due[(plain - start) / MINUTE])
			plain += MINUTE;
		found = cron_next(&cron, found);
		if (plain >= change->at + DAY && (found == -1 || found >= plain))
			return;
		if (found != plain)
			break;
		plain += MINUTE;
	}
	if (totals->failures++ < 10)
		fprintf(stderr,
		        "%s: %s: cron_next finds %lld, and the plain search %lld; the clock "
		        "changes at %lld\n",
		        zone, text, (long long)found, (long long)plain, (long long)change->at);
}

/* Is this the first change at this time of the day and by this difference? */
static bool
change_is_new(const struct change *change)
{
	struct change kind = {(change->at + change->before) % DAY, 0,
	                      change->after - change->before};
	const struct change *seen;
	size_t i;

	for (i = 0; i < totals->kind_count; i++) {
		seen = &totals->kinds[i];
		if (seen->at == kind.at && seen->after == kind.after)
			return false;
	}
	if (totals->kind_count < COUNT(totals->kinds))
		totals->kinds[totals->kind_count++] = kind;
	return true;
}

/* Check the first minute that is leapt over, or comes twice, and midnight. Check more samples at
 * the first change of each kind; at every change, if TEST_ALL_CHANGES is set (this takes a
 * minute). */
static void
check_change(const char *zone, const struct change *change)
{
	bool leap = change->after > change->before;
	time_t wall = change->at + (leap ? change->before : change->after);
	int minute = (int)(wall / MINUTE % 60), hour = (int)(wall / HOUR % 24);
	const struct sample samples[] = {
		{minute, 0, hour, hour, false, 0},
		{0, 0, 0, 0, false, 0},
		{minute, 0, hour, hour, true, wall / DAY},
		{(minute + 59) % 60, 0, hour, hour, false, 0},
		{minute, 0, 0, 23, false, 0},
		{minute, 0, (hour + 1) % 24, (hour + 1) % 24, false, 0},
		{minute % 10, 10, 0, 22, false, 0},
		{0, 7, 1, 23, false, 0},
		{59, 0, 23, 23, true, wall / DAY - 1},
	};
	size_t i, count = change_is_new(change) || getenv("TEST_ALL_CHANGES") != NULL
	                          ? COUNT(samples)
	                          : 2;

	if (offset_at(change->at - DAY) != change->before ||
	    offset_at(change->at + DAY) != change->after)
		abort(); /* two changes: the plain search knows only one */
	for (i = 0; i < count; i++)
		compare(zone, change, &samples[i]);
	totals->changes++;
}

/* Find the change between these two times. */
static struct change
find_change(time_t low, time_t high)
{
	struct change change = {0, offset_at(low), offset_at(high)};
	time_t middle;

	while (high - low > 1) {
		middle = low + (high - low) / 2;
		if (offset_at(middle) == change.before)
			low = middle;
		else
			high = middle;
	}
	change.at = high;
	return change;
}

/* Runs in a child. */
static void
check_changes(const char *zone)
{
	struct change change;
	time_t now;

	setenv("TZ", zone, 1);
	tzset();
	for (now = FIRST_CHANGE; now < LAST_CHANGE; now += DAY / 2)
		if (offset_at(now) != offset_at(now + DAY / 2)) {
			change = find_change(now, now + DAY / 2);
			check_change(zone, &change);
		}
	_exit(0);
}

/* A zone can have many names. Is this the first file with these bytes? */
static bool
zone_is_new(const char *data, size_t length)
{
	static uint64_t seen[4096];
	uint64_t hash = 14695981039346656037U;
	size_t i;

	for (i = 0; i < length; i++)
		hash = (hash ^ (unsigned char)data[i]) * 1099511628211U;
	for (i = 0; i < totals->zones; i++)
		if (seen[i] == hash)
			return false;
	cr_assert_lt(totals->zones, COUNT(seen));
	seen[totals->zones++] = hash;
	return true;
}

static int
check_zone(const char *path, const struct stat *status, int type, struct FTW *where)
{
	static char data[65536];
	FILE *file = type == FTW_F && strstr(path, "/right/") == NULL ? fopen(path, "r") : NULL;
	size_t length = file != NULL ? fread(data, 1, sizeof data, file) : 0;
	int end;
	pid_t child;

	(void)status, (void)where;
	if (file != NULL)
		fclose(file);
	if (length < 4 || memcmp(data, "TZif", 4) != 0 || !zone_is_new(data, length))
		return 0;
	child = fork();
	cr_assert_neq(child, -1, "%s", strerror(errno));
	if (child == 0)
		check_changes(path);
	cr_assert_eq(waitpid(child, &end, 0), child);
	cr_assert_eq(end, 0, "%s", path);
	return 0;
}

/* D43, D48, D49. Compare cron_next with a plain search, minute by minute. */
Test(cron, every_change_of_every_clock, .timeout = 600)
{
	use_zone("Europe/Berlin");
	totals = mmap(NULL, sizeof *totals, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
	              0);
	cr_assert_neq(totals, MAP_FAILED);
	cr_assert_eq(nftw(zones(), check_zone, 16, FTW_PHYS), 0);
	cr_log_info("%zu zones, %zu changes\n", totals->zones, totals->changes);
	cr_expect_eq(totals->failures, 0);
	cr_expect_gt(totals->changes, 500);
}
