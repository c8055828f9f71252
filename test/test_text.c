/*
 * The lines of the log: print_line, and format_text below it.
 *
 * What format_text makes of a format is what snprintf(3) makes of it, into buffers
 * of every size; only what it returns is not the same: the length of what is there.
 */
#include "harness.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

TestSuite(text, .timeout = 120);

enum { ROOM = 512, UNTOUCHED = 0x5a };

/* Into a buffer of that size: the same bytes, their number, and none behind them. */
static void
expect_same_in(const char *where, size_t size, const char *format, va_list arguments)
{
	char ours[ROOM], theirs[ROOM];
	va_list again;
	size_t length, whole;

	memset(ours, UNTOUCHED, sizeof ours);
	memset(theirs, UNTOUCHED, sizeof theirs);
	va_copy(again, arguments);
	whole = (size_t)vsnprintf(theirs, size, format, again);
	va_end(again);
	cr_assert_lt(whole, INT_MAX, "%s: \"%s\" is not for snprintf", where, format);
	va_copy(again, arguments);
	length = vformat_text(ours, size, format, again);
	va_end(again);
	cr_assert_eq(length,
	             whole < size ? whole
	             : size > 0   ? size - 1
	                          : 0,
	             "%s: \"%s\" in %zu: %zu bytes of %zu", where, format, size, length, whole);
	if (size > 0)
		cr_assert_str_eq(ours, theirs, "%s: \"%s\" in %zu", where, format, size);
	for (length += size > 0; length < sizeof ours; length++)
		cr_assert_eq(ours[length], UNTOUCHED, "%s: \"%s\" in %zu: byte %zu", where, format,
		             size, length);
}

/* Into buffers of 0 bytes up to one with two bytes to spare. */
static void expect_same_at(const char *where, const char *format, ...) PRINTF_LIKE(2, 3);

static void
expect_same_at(const char *where, const char *format, ...)
{
	va_list arguments, again;
	size_t size;
	int length;

	va_start(arguments, format);
	va_copy(again, arguments);
	length = vsnprintf(NULL, 0, format, again);
	va_end(again);
	cr_assert(length >= 0 && length + 3 < ROOM, "%s: \"%s\"", where, format);
	for (size = 0; size <= (size_t)length + 3; size++)
		expect_same_in(where, size, format, arguments);
	va_end(arguments);
}

#define TEXT(line) #line
#define LINE(line) "line " TEXT(line)
#define expect_same(...) expect_same_at(LINE(__LINE__), __VA_ARGS__)

/* ---- a table ------------------------------------------------------------- */

Test(text, without_a_conversion_is_itself)
{
	char nothing[4];

	cr_assert_eq(format_text(nothing, sizeof nothing, "%s", ""), 0);
	cr_assert_str_eq(nothing, "");
	expect_same("a");
	expect_same("[master] a line\twith \"this\" and {that}\n");
	expect_same("%%");
	expect_same("100%% of %%d, %%");
}

Test(text, into_no_room_writes_nothing)
{
	char byte = UNTOUCHED;

	cr_assert_eq(format_text(NULL, 0, "%s", "text"), 0);
	cr_assert_eq(format_text(&byte, 0, "%d", 1), 0);
	cr_assert_eq(byte, UNTOUCHED);
	cr_assert_eq(format_text(&byte, 1, "%d", 1), 0);
	cr_assert_eq(byte, '\0');
}

Test(text, of_literal_values)
{
	char line[64];

	cr_assert_eq(
		format_text(line, sizeof line, "%-6s|%4d|%zu|%.2s%%", "app", -7, (size_t)3, "abc"),
		17);
	cr_assert_str_eq(line, "app   |  -7|3|ab%");
}

Test(text, of_strings)
{
	const char *volatile nothing = NULL; /* a compiler that knew would warn */

	expect_same("%s", "text");
	expect_same("%s%s%s", "a", "", "b");
	expect_same("[%6s] [%-6s]", "app", "app");
	expect_same("[%3s] [%-3s]", "longer", "longer");
	expect_same("[%1s] [%-1s] [%10s]", "", "", "");
	expect_same("[%.3s] [%.0s] [%.s] [%.9s]", "longer", "x", "x", "longer");
	expect_same("[%8.3s] [%-8.3s] [%2.3s]", "longer", "longer", "longer");
	expect_same("[%.*s] [%.*s] [%.*s]", 3, "longer", 0, "longer", -1, "longer");
	expect_same("[%-9.*s] [%9.*s]", 2, "longer", -9, "longer");
	expect_same("%.64s", "a long one, longer than the sixty-four bytes that are to be shown");
	expect_same("%s", nothing);
	expect_same("[%8s] [%-8s] [%.20s] [%.6s]", nothing, nothing, nothing, nothing);
}

/* Data has a length; no 0 need follow it. */
Test(text, reads_no_byte_of_a_string_beyond_its_precision)
{
	char *end = malloc(3), text[8];

	memcpy(end, "abc", 3);
	cr_assert_eq(format_text(text, sizeof text, "%.*s", 3, end), 3); /* sanitizers look on */
	cr_assert_str_eq(text, "abc");
	cr_assert_eq(format_text(text, sizeof text, "%.2s", end), 2);
	cr_assert_str_eq(text, "ab");
	free(end);
}

Test(text, of_numbers)
{
	expect_same("%d %d %d %d", 0, 7, -7, 1234567890);
	expect_same("%d %d", INT_MAX, INT_MIN);
	expect_same("%ld %ld %ld", LONG_MAX, LONG_MIN, -1L);
	expect_same("%lld %lld %lld", LLONG_MAX, LLONG_MIN, 10LL);
	expect_same("%u %u %u", 0u, 9u, UINT_MAX);
	expect_same("%lu %lu", 0ul, ULONG_MAX);
	expect_same("%llu %llu", 0ull, ULLONG_MAX);
	expect_same("%zu %zu", (size_t)0, SIZE_MAX);
	expect_same("%" PRId64 " %" PRIu64 " %" PRIu32, INT64_MIN, UINT64_MAX, UINT32_MAX);
	expect_same("[%7ld] [%-7ld] [%1ld] [%2ld]", -123L, -123L, -123L, -1L);
	expect_same("[%20lld] [%-20lld] [%19lld]", LLONG_MIN, LLONG_MIN, LLONG_MIN);
	expect_same("[%9llu] [%-9llu] [%8zu] [%-8zu]", 12ull, 12ull, (size_t)34, (size_t)34);
	expect_same("[%100d] [%-100d]", 1, -1);
}

/* Each in its own size: if one is read as another, the next one is wrong. */
Test(text, of_arguments_one_after_the_other)
{
	expect_same("%d%s%ld%s%lld%s%u%s%llu%s%zu%s%.*s|%d", -1, "a", -2L, "b", -3LL, "c", 4u, "d",
	            5ull, "e", (size_t)6, "f", 2, "gggg", 7);
	expect_same("%-6s %4d %7ld %-12s %7llds %7d %9llu %9llu %11llu %11llu %8zu  %s", "agent", 1,
	            4711L, "listening", 12LL, 0, 1ull, 22ull, 333ull, 4444ull, (size_t)55555, "-");
}

/* ---- at random ----------------------------------------------------------- */

/* splitmix64 */
static uint64_t
draw(uint64_t *state)
{
	uint64_t z = (*state += 0x9e3779b97f4a7c15u);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

/* Of every length, the extreme ones among them. */
static uint64_t
draw_number(uint64_t *state)
{
	static const uint64_t edges[] = {0,
	                                 1,
	                                 9,
	                                 10,
	                                 INT_MAX,
	                                 INT64_MAX,
	                                 UINT64_MAX,
	                                 UINT32_MAX,
	                                 (uint64_t)1 << 63,
	                                 (uint64_t)INT64_MIN + 1};
	uint64_t number = draw(state);

	if (draw(state) % 8 == 0)
		return edges[number % (sizeof edges / sizeof edges[0])];
	number >>= draw(state) % 64;
	return draw(state) % 2 == 0 ? number : 0 - number;
}

/* Add plain text, '%', perhaps '-' and a width, and a string's precision. */
static void
add_field(uint64_t *state, char *format, const char *precision, const char *letters)
{
	static const char *const plain[] = {"", " ", ": ", "%%", "ms, "};

	strcat(format, plain[draw(state) % 5]);
	strcat(format, draw(state) % 2 == 0 ? "%" : "%-");
	if (draw(state) % 2 == 0)
		sprintf(format + strlen(format), "%d", 1 + (int)(draw(state) % 40));
	if (precision[0] == '.' && draw(state) % 2 == 0)
		sprintf(format + strlen(format), ".%d", (int)(draw(state) % 40));
	else
		strcat(format, precision);
	strcat(format, letters);
}

static void
draw_string(uint64_t *state, char *string, size_t most)
{
	size_t i, length = draw(state) % most;

	for (i = 0; i < length; i++)
		string[i] = (char)(1 + draw(state) % 255);
	string[length] = '\0';
}

static void
expect_same_at_random(uint64_t *state, const char *where)
{
	char format[256] = "", first[48], second[48];

	draw_string(state, first, sizeof first);
	draw_string(state, second, sizeof second);
	add_field(state, format, "", "d");
	add_field(state, format, ".", "s");
	add_field(state, format, "", "ld");
	add_field(state, format, "", "lld");
	add_field(state, format, "", "u");
	strcat(format, "%.*s");
	add_field(state, format, "", "lu");
	add_field(state, format, "", "llu");
	add_field(state, format, "", "zu");
	expect_same_at(where, format, (int)draw_number(state), first, (long)draw_number(state),
	               (long long)draw_number(state), (unsigned)draw_number(state),
	               (int)(draw(state) % 60) - 5, second, (unsigned long)draw_number(state),
	               (unsigned long long)draw_number(state), (size_t)draw_number(state));
}

/* CLUTCH_TEST_SEED repeats a run. */
Test(text, at_random)
{
	const char *given = getenv("CLUTCH_TEST_SEED");
	unsigned seed = given != NULL ? (unsigned)strtoul(given, NULL, 10)
	                              : (unsigned)clock_now() ^ (unsigned)getpid() << 16;
	uint64_t state = seed;
	char where[64];
	int i;

	fprintf(stderr, "test_text: CLUTCH_TEST_SEED=%u\n", seed);
	for (i = 0; i < 2000; i++) {
		snprintf(where, sizeof where, "seed %u, %d", seed, i);
		expect_same_at_random(&state, where);
	}
}

/* ---- what it does not know ----------------------------------------------- */

/* An assertion fails; without assertions the text ends there, and no argument of a
 * later conversion is read. */
static void
expect_unknown(const char *format)
{
	const struct rlimit no_core = {0, 0};
	char text[64], after[] = "after";
	int status;
	pid_t pid = fork();

	if (pid == 0) {
		setrlimit(RLIMIT_CORE, &no_core);
		dup2(open("/dev/null", O_WRONLY), 2);
		format_text(text, sizeof text, format, 1, after, after);
		_exit(strcmp(text, "before ") != 0);
	}
	cr_assert_eq(waitpid(pid, &status, 0), pid);
#ifdef NDEBUG
	cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0, "\"%s\": %x", format, status);
#else
	cr_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT, "\"%s\": %x", format, status);
#endif
}

Test(text, of_an_unknown_conversion_is_a_failed_assertion)
{
	static const char *const unknown[] = {
		"before %x %s",  "before %f %s",    "before %5.1f %s", "before %hd %s",
		"before %+d %s", "before % d %s",   "before %#u %s",   "before %02d %s",
		"before %*d %s", "before %-05d %s", "before %i %s",    "before %jd %s",
		"before %zd %s", "before %",        "before %5",       "before %-",
		"before %l",     "before %llld %s", "before %q %s",    "before %99999999999d %s",
	};
	size_t i;

	for (i = 0; i < sizeof unknown / sizeof unknown[0]; i++)
		expect_unknown(unknown[i]);
}

#ifndef NDEBUG
Test(text, of_a_number_has_no_precision)
{
	expect_unknown("before %.3d %s");
	expect_unknown("before %.*lld %s");
}
#endif

/* ---- print_line ---------------------------------------------------------- */

static size_t
read_all(int descriptor, char *bytes, size_t size)
{
	ssize_t count;
	size_t length = 0;

	while ((count = read(descriptor, bytes + length, size - length)) > 0)
		length += (size_t)count;
	return length;
}

Test(text, is_a_line_of_at_most_1024_bytes)
{
	char bytes[8192], longest[1100];
	size_t length;
	int pair[2];

	memset(longest, 'x', sizeof longest);
	cr_assert_eq(pipe(pair), 0);
	print_line(pair[1], "%s", "");
	print_line(pair[1], "%-5s|%3ld", "app", 7L);
	print_line(pair[1], "%.*s", 1023, longest);
	print_line(pair[1], "%.*s", 1024, longest);
	print_line(pair[1], "%.*s%s", 1020, longest, "abcdef");
	close(pair[1]);
	length = read_all(pair[0], bytes, sizeof bytes);
	close(pair[0]);
	cr_assert_eq(length, 1 + 10 + 3 * 1024);
	cr_assert_eq(memcmp(bytes, "\napp  |  7\nxxx", 14), 0);
	cr_assert_eq(bytes[11 + 1022], 'x');
	cr_assert_eq(bytes[11 + 1023], '\n');
	cr_assert_eq(bytes[11 + 1024 + 1022], 'x');
	cr_assert_eq(bytes[11 + 1024 + 1023], '\n');
	cr_assert_eq(memcmp(bytes + length - 6, "xxabc\n", 6), 0);
}

/* ---- parse_digits -------------------------------------------------------- */

static void
expect_digits(const char *text, int number, const char *rest)
{
	const char *at = text;

	cr_assert_eq(parse_digits(&at), number, "\"%s\"", text);
	cr_assert_str_eq(at, rest, "\"%s\"", text);
}

Test(text, has_digits_that_are_a_number)
{
	expect_digits("0", 0, "");
	expect_digits("7,8", 7, ",8");
	expect_digits("0042]", 42, "]");
	expect_digits("2147483647", INT_MAX, "");
	expect_digits("2147483639x", 2147483639, "x");
	expect_digits("00000000000000000001", 1, "");
}

Test(text, without_digits_or_with_too_many_stays)
{
	static const char *const none[] = {
		"",   "x1", "-1",         "+1",         " 1",
		",2", "/",  "2147483648", "2147483650", "99999999999999999999"};
	size_t i;

	for (i = 0; i < sizeof none / sizeof none[0]; i++)
		expect_digits(none[i], -1, none[i]);
}
