/*
 * docs/operating.md explains each warning and each error that the sources log, and nothing
 * else: each format of the sources has its row, and each row's line has its format. And it
 * explains each field of the status.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "harness.h"

#include <criterion/criterion.h>

#include <ctype.h>
#include <glob.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

TestSuite(operating, .timeout = 60);

enum { TEXT = 512, MANY = 512 };

/* A hole (1) stands for a part that differs: a conversion of printf, or <name> in the page. */
#define HOLE '\1'

static char formats[MANY][TEXT];     /* of whole lines */
static char pieces[MANY][TEXT];      /* the parts of lines that are put together */
static char strings[4 * MANY][TEXT]; /* all strings in the sources */
static char rows[MANY][TEXT];
static size_t format_count, piece_count, string_count, row_count;

static char *
read_file(const char *path)
{
	FILE *file = fopen(path, "r");
	char *text = calloc(1, 1024 * 1024);

	cr_assert(file != NULL && text != NULL, "%s", path);
	cr_assert_lt(fread(text, 1, 1024 * 1024 - 1, file), 1024 * 1024 - 1, "%s", path);
	fclose(file);
	return text;
}

/* ---- the sources ------------------------------------------------------------------ */

/* The functions that log, and whether each string of a call is a piece of a line, or the
 * first one is the line's format. */
static const struct logger {
	const char *name;
	bool in_pieces;
} loggers[] = {
	{"log_warn", false},         {"log_error", false}, {"log_line", false},
	{"clutch_log", false},       {"say", false},       {"refuse", false},
	{"scripts_complain", false}, {"complain", true},   {"cluster_base_log", true},
	{"condemn", true},           {"give_up", true},
};

/* Copy the string at `at` and those that follow it at once, with holes for the conversions.
 * Returns the place behind them. */
static const char *
take_string(const char *at, char *out)
{
	size_t used = 0;
	char byte;

	while (*at == '"') {
		for (at++; *at != '"'; at++) {
			byte = *at;
			if (at[0] == '%' && at[1] == '%') {
				at++;
			} else if (at[0] == '%') {
				at += strcspn(at + 1, "\"diuscxpfgeoXn[");
				at += at[1] != '"'; /* else the % is no conversion */
				byte = HOLE;
			} else if (at[0] == '\\') {
				at++;
				byte = *at == 'n' ? ' ' : *at;
			}
			if (used < TEXT - 16)
				out[used++] = byte;
		}
		at++;
		at += strspn(at, " \t\n");
	}
	while (used > 0 && out[used - 1] == ' ')
		used--;
	out[used] = '\0';
	return at;
}

/* Returns the place behind a character constant: 'a', '\'', '\033'. */
static const char *
skip_character(const char *at)
{
	at += at[1] == '\\' ? 3 : 2;
	return at + strcspn(at, "'") + 1;
}

/* The strings of a call whose arguments begin at `at`. */
static void
take_call(const char *at, bool in_pieces)
{
	char text[TEXT];
	int depth = 1;
	bool is_first = true;

	if (strncmp(at, "CLUTCH_INFO", 11) == 0)
		return;
	while (depth > 0) {
		if (*at == '"') {
			at = take_string(at, text);
			if (in_pieces && strlen(text) > 4)
				strcpy(pieces[piece_count++], text);
			else if (is_first)
				strcpy(formats[format_count++], text);
			is_first = false;
			cr_assert(format_count < MANY && piece_count < MANY);
			continue;
		}
		depth += (*at == '(') - (*at == ')');
		at = *at == '\'' ? skip_character(at) : at + 1;
	}
}

/* Is a function of that name called here? (Its definition names a type first.) */
static bool
is_call(const char *text, const char *at, const char *name)
{
	return (at == text || (!isalnum((unsigned char)at[-1]) && at[-1] != '_')) &&
	       at[strlen(name)] == '(' && (at == text || at[-1] != '\n');
}

/* All strings, outside of comments and of #include. */
static void
take_strings(const char *at)
{
	while (*at != '\0') {
		if (strncmp(at, "/*", 2) == 0) {
			at = strstr(at, "*/") + 2;
		} else if (*at == '\'') {
			at = skip_character(at);
		} else if (*at == '"') {
			at = take_string(at, strings[string_count]);
			string_count++;
			cr_assert_lt(string_count, 4 * MANY);
		} else {
			at++;
		}
	}
}

static void
read_source(const char *path)
{
	char *text = read_file(path), *at;
	size_t i;

	for (i = 0; i < sizeof loggers / sizeof loggers[0]; i++)
		for (at = text; (at = strstr(at, loggers[i].name)) != NULL;
		     at += strlen(loggers[i].name))
			if (is_call(text, at, loggers[i].name) &&
			    strstr(at, "struct ") != at + strlen(loggers[i].name) + 1)
				take_call(at + strlen(loggers[i].name) + 1, loggers[i].in_pieces);
	at = strstr(text, "\"the log was full");
	if (at != NULL) /* the piece is printed before another line */
		take_string(at, formats[format_count++]);
	take_strings(text);
	free(text);
}

static void
read_sources(void)
{
	static const char *const paths[] = {"[a-z]*.c", "cluster-client/*.c", "egg-scripts/*.c",
	                                    "redis/*.c"};
	glob_t found;
	size_t i, j;

	for (i = 0; i < sizeof paths / sizeof paths[0]; i++) {
		cr_assert_eq(glob(paths[i], 0, NULL, &found), 0);
		for (j = 0; j < found.gl_pathc; j++)
			read_source(found.gl_pathv[j]);
		globfree(&found);
	}
}

/* ---- the page --------------------------------------------------------------------- */

/* "| `LINE` | ..." in the part about the log. */
static void
read_page(void)
{
	char *page = read_file("docs/operating.md"), *end = strstr(page, "\n## The status"), *at;
	size_t used;

	cr_assert_not_null(end);
	*end = '\0';
	for (at = page; (at = strstr(at, "\n| `")) != NULL;) {
		used = 0;
		for (at += 4; *at != '`'; at++) {
			if (*at == '<') {
				at = strchr(at, '>');
				rows[row_count][used++] = HOLE;
			} else {
				rows[row_count][used++] = *at;
			}
			cr_assert_lt(used, TEXT - 1);
		}
		row_count++;
		cr_assert_lt(row_count, MANY);
	}
	free(page);
}

/* ---- the comparison ----------------------------------------------------------------- */

/* Can the pattern become the text, if each hole stands for any text? */
static bool
matches(const char *pattern, const char *text)
{
	if (*pattern == '\0')
		return *text == '\0';
	if (*pattern == HOLE)
		return matches(pattern + 1, text) || (*text != '\0' && matches(pattern, text + 1));
	return *pattern == *text && matches(pattern + 1, text + 1);
}

/* The row's line, without the name of the process that the sources add elsewhere. */
static const char *
behind_name(const char *row)
{
	static const char *const names[] = {"[master] ", "[bridge] \1: "};
	size_t i;

	for (i = 0; i < sizeof names / sizeof names[0]; i++)
		if (strncmp(row, names[i], strlen(names[i])) == 0)
			return row + strlen(names[i]);
	return row;
}

/* Has the text words of its own, or only holes? */
static bool
has_words(const char *text)
{
	size_t letters = 0;

	for (; *text != '\0'; text++)
		letters += isalpha((unsigned char)*text) != 0;
	return letters >= 4;
}

static void
print_text(const char *text)
{
	for (; *text != '\0'; text++)
		fputs(*text == HOLE ? "<...>" : (char[]){*text, '\0'}, stderr);
	fputs("\n", stderr);
}

/* Is there a row for the line? The row of a piece has the piece anywhere in it. */
static bool
has_row(const char *text, bool is_piece)
{
	size_t i;

	for (i = 0; i < row_count; i++)
		if (is_piece ? strstr(rows[i], text) != NULL
		             : matches(text, rows[i]) || matches(text, behind_name(rows[i])) ||
		                       strstr(rows[i], text) != NULL)
			return true;
	return false;
}

/* Some format makes the line, or each part of it between two holes is in the sources. */
static bool
has_source(const char *row)
{
	char part[TEXT];
	size_t i, length;
	bool found;

	for (i = 0; i < format_count; i++)
		if (has_words(formats[i]) &&
		    (matches(formats[i], row) || matches(formats[i], behind_name(row))))
			return true;
	for (row = behind_name(row); *row != '\0'; row += length) {
		row += strspn(row, "\1 :;");
		length = strcspn(row, "\1:;");
		snprintf(part, sizeof part, "%.*s", (int)length, row);
		found = !has_words(part);
		for (i = 0; i < string_count && !found; i++)
			found = strstr(strings[i], part) != NULL;
		if (!found)
			return false;
	}
	return true;
}

Test(operating, each_warning_and_each_error_has_its_row)
{
	size_t i, missing = 0;

	read_sources();
	read_page();
	cr_assert_gt(format_count, 80, "the sources have only %zu formats", format_count);
	cr_assert_gt(piece_count, 8, "the sources have only %zu pieces of lines", piece_count);
	for (i = 0; i < format_count; i++)
		if (has_words(formats[i]) && !has_row(formats[i], false)) {
			print_text(formats[i]);
			missing++;
		}
	for (i = 0; i < piece_count; i++)
		if (has_words(pieces[i]) && !has_row(pieces[i], true)) {
			print_text(pieces[i]);
			missing++;
		}
	cr_assert_eq(missing, 0, "docs/operating.md does not explain %zu lines", missing);
}

Test(operating, each_row_has_its_line_in_the_sources)
{
	size_t i, stale = 0;

	read_sources();
	read_page();
	cr_assert_gt(row_count, 80, "docs/operating.md has only %zu rows", row_count);
	for (i = 0; i < row_count; i++)
		if (!has_source(rows[i])) {
			print_text(rows[i]);
			stale++;
		}
	cr_assert_eq(stale, 0, "docs/operating.md has %zu lines that no source logs", stale);
}

/* ---- the status ------------------------------------------------------------------------ */

/* Each name in the JSON is in the part about the status: `name`. */
Test(operating, each_field_of_the_status_is_explained)
{
	struct cluster *c = cluster_start(&(struct options){.workers = 1});
	char *page = read_file("docs/operating.md"), wanted[64];
	const char *line, *at, *status = strstr(page, "\n## The status");
	size_t from, length, fields = 0;

	cluster_ready(c);
	from = cluster_ask_status(c);
	while ((line = cluster_next_line(c, &from, "[master] status ")) != NULL)
		for (at = line; (at = strchr(at, '"')) != NULL; at += length + 1) {
			length = strcspn(at + 1, "\"") + 1;
			if (at[length + 1] != ':')
				continue;
			snprintf(wanted, sizeof wanted, "`%.*s`", (int)length - 1, at + 1);
			cr_expect(strstr(status, wanted) != NULL, "%s", wanted);
			fields++;
		}
	cr_assert_gt(fields, 60);
	free(page);
	cluster_stop(c);
}
