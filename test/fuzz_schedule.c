/*
 * The other texts of egg-schedule, each compared with a plain model. An interval has as many
 * milliseconds as its number and its unit make; a date is a day of the calendar, in one of five
 * forms. A message about a run, which any worker may send to the agent, contains nothing that
 * does not fit into a line of the log; and a run that was parsed and printed again means the
 * same.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "egg-schedule/schedule.h"
#include "fuzz.h"

#include <ctype.h>
#include <strings.h>
#include <time.h>

#define DAY 86400

static long double
model_unit(const char *unit)
{
	static const char *const names[] = {"",
	                                    "ms msec msecs millisecond milliseconds",
	                                    "s sec secs second seconds",
	                                    "m min mins minute minutes",
	                                    "h hr hrs hour hours",
	                                    "d day days",
	                                    "w week weeks",
	                                    "y yr yrs year years"};
	static const long double sizes[] = {1,       1,        1000,      60e3L,
	                                    3600e3L, 86400e3L, 604800e3L, 31557600e3L};
	size_t i, length = strlen(unit), word;
	const char *at;

	for (i = 0; i < 8; i++)
		for (at = names[i];; at += word + 1) {
			word = strcspn(at, " ");
			if (word == length && strncasecmp(at, unit, length) == 0)
				return sizes[i];
			if (at[word] == '\0')
				break;
		}
	return 0;
}

static void
check_interval(const char *text)
{
	size_t whole = strspn(text, "0123456789");
	size_t point = whole + (text[whole] == '.');
	size_t number = point + (point > whole ? strspn(text + point, "0123456789") : 0);
	bool ends_with_digit = number > 0 && text[number - 1] != '.';
	const char *unit = text + number + strspn(text + number, " ");
	long double size = ends_with_digit ? model_unit(unit) : 0;
	long double right = size > 0 ? strtold(text, NULL) * size : 0;
	int64_t said = cron_parse_interval(text);

	CHECK(said == -1 || (said >= 1 && said <= 10000 * 366LL * DAY * 1000));
	if (said == -1)
		CHECK(right < 1 + 1e-9L || right > 10000 * 366e3L * DAY - 1);
	else
		CHECK((long double)said > right - 1.5L && (long double)said < right + 0.5L);
}

static int
days_of(int month, int year)
{
	static const int days[] = {0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};

	return days[month] + (month == 2 && year % 4 == 0 && (year % 100 != 0 || year % 400 == 0));
}

static void
check_date(const char *text)
{
	static const char *const forms[] = {"dddd-dd-dd", "dddd-dd-dd dd:dd", "dddd-dd-dd dd:dd:dd",
	                                    "dddd-dd-ddTdd:dd", "dddd-dd-ddTdd:dd:dd"};
	struct tm date = {0};
	size_t i, at, length = strlen(text);
	bool is_right = false;
	static char zone[] = "TZ=UTC0";
	time_t said;

	for (i = 0; i < 5 && !is_right; i++) {
		is_right = strlen(forms[i]) == length;
		for (at = 0; at < length && is_right; at++)
			is_right = forms[i][at] == 'd' ? isdigit((unsigned char)text[at]) != 0
			                               : forms[i][at] == text[at];
	}
	sscanf(text, "%4d-%2d-%2d%*c%2d:%2d:%2d", &date.tm_year, &date.tm_mon, &date.tm_mday,
	       &date.tm_hour, &date.tm_min, &date.tm_sec);
	is_right = is_right && date.tm_year >= 1970 && date.tm_mon >= 1 && date.tm_mon <= 12 &&
	           date.tm_mday >= 1 && date.tm_mday <= days_of(date.tm_mon, date.tm_year) &&
	           date.tm_hour < 24 && date.tm_min < 60 && date.tm_sec < 60;
	date.tm_year -= 1900;
	date.tm_mon--;
	putenv(zone);
	tzset();
	said = cron_parse_date(text);
	CHECK(said == (is_right ? timegm(&date) : -1));
}

/* ---- a message about a run ----------------------------------------------------- */

static bool
is_plain(const char *text)
{
	for (; *text != '\0'; text++)
		if (*text == '"' || *text == '\\' || iscntrl((unsigned char)*text))
			return false;
	return true;
}

static void
check_run(const char *text)
{
	struct message message = {.data = text, .data_length = strlen(text), .handle = -1};
	struct run_info info, again;
	char json[RUN_JSON_SIZE];

	if (!schedule_info_parse(&info, &message))
		return;
	CHECK(is_plain(info.key) && is_plain(info.id) && is_plain(info.message));
	CHECK(info.worker_id >= 0 && (info.ended || !info.success));
	schedule_info_print(&info, json, sizeof json);
	CHECK(strlen(json) < sizeof json - 1 && json[strlen(json) - 1] == '}');
	message.data = json;
	CHECK(schedule_info_parse(&again, &message));
	CHECK(strcmp(again.key, info.key) == 0 && strcmp(again.id, info.id) == 0);
	CHECK(again.worker_id == info.worker_id && again.ended == info.ended);
	CHECK(again.success == info.success && (!info.ended || info.rt < 0 || again.rt == info.rt));
	CHECK(!info.ended || info.success || strcmp(again.message, info.message) == 0);
}

int
LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
	char *text = malloc(size + 1);

	CHECK(text != NULL);
	if (size > 0)
		memcpy(text, input, size);
	text[size] = '\0';
	check_interval(text);
	check_date(text);
	check_run(text);
	free(text);
	return 0;
}
