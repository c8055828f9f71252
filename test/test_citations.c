/*
 * The comments of the sources cite lines of egg, and divergences. The citations must be true.
 *
 * A citation is a number in a comment: "ipc.js:71" names its file; ":83" is a line of
 * the file that is pinned there. A pin is the file's path, as in
 * "egg-cluster/lib/master.js": in the comment above a function it holds for that
 * function, in a heading ("---- ... ----") for its section, and in the first comment of a
 * file, if that comment has only one pin, for the lines before any heading.
 *
 * Always checked: each branch of messenger.js is cited once, in order, at a branch; each
 * D has a row in docs/divergences.md, and each row has a test. With EGG=folder, each cited
 * line is looked up in the pinned packages (EGG/egg-cluster-2.5.0, or its subfolder
 * `package`, as npm pack makes it, or EGG/node_modules): the cited line and the C line
 * must have a name in common.
 *
 * The suite `mirror` checks the same for the roles: master.c, agent.c and worker.c cite the
 * functions and branches of egg's master.js and its helpers, and each other branch is an
 * exception with a reason.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include <criterion/criterion.h>

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "mirror.h"

enum { LINE = 512, PATH = 256, WORD = 64, WORDS = 64, LINES_MOST = 4000 };

/* The branches of messenger.js: each `if`, `else if`, `else` and `for`. */
static const int branches[] = {75, 80,  81,  83,  85,  91,  92,  93,  94,
                               99, 109, 117, 125, 145, 157, 159, 163, 176};

enum { BRANCHES = sizeof branches / sizeof branches[0] };

/* D1 to this number, the divergences of the core and of egg-scripts, must be there. The
 * divergences of other packages are checked only if their folder is there. */
enum { KNOWN_DIVERGENCES = 32, DIVERGENCES_MOST = 200 };

static const char master_section[] = "/* ---- the master's side";
static const char child_section[] = "/* ---- the child's side";

/* ---- the pinned files --------------------------------------------------------- */

/* A citation names a file by the end of its path, or by its package and path. If two files have
 * that name, it means the first one of this table. */
static const struct {
	const char *package, *version, *path;
} pinned[] = {
	{"egg-cluster", "2.5.0", "lib/utils/messenger.js"},
	{"egg-cluster", "2.5.0", "lib/master.js"},
	{"egg-cluster", "2.5.0", "lib/agent_worker.js"},
	{"egg-cluster", "2.5.0", "lib/app_worker.js"},
	{"egg-cluster", "2.5.0", "lib/utils/manager.js"},
	{"egg-cluster", "2.5.0", "lib/utils/options.js"},
	{"egg-cluster", "2.5.0", "lib/utils/terminate.js"},
	{"egg-cluster", "2.5.0", "lib/utils/mode/impl/process/agent.js"},
	{"egg-cluster", "2.5.0", "lib/utils/mode/impl/process/app.js"},
	{"egg", "3.34.0", "lib/core/messenger/ipc.js"},
	{"sendmessage", "1.1.0", "index.js"},
	{"cfork", "1.11.0", "index.js"},
	{"graceful", "1.1.0", "index.js"},
	{"graceful-process", "1.3.0", "index.js"},
	{"egg-scripts", "3.1.0", "lib/cmd/start.js"},
	{"egg-scripts", "3.1.0", "lib/cmd/stop.js"},
	{"cluster-client", "3.7.0", "lib/leader.js"},
	{"cluster-client", "3.7.0", "lib/server.js"},
	{"cluster-client", "3.7.0", "lib/wrapper/base.js"},
	{"egg-schedule", "4.0.1", "lib/strategy/timer.js"},
	{"cron-parser", "2.18.0", "lib/expression.js"},
};

/* EGG must have the first CORE_PINNED files; the packages of the others may be missing. */
enum { PINNED = sizeof pinned / sizeof pinned[0], CORE_PINNED = 14, NOT_PINNED = -1 };

/* Find a name such as "master.js", "process/app.js" or "cfork/index.js". */
static int
find_pinned(const char *name)
{
	char path[PATH];
	size_t length, wanted = strlen(name);
	int i;

	for (i = 0; i < PINNED; i++) {
		length = (size_t)snprintf(path, sizeof path, "%s/%s", pinned[i].package,
		                          pinned[i].path);
		if (wanted == length && strcmp(path, name) == 0)
			return i;
		if (wanted < length && path[length - wanted - 1] == '/' &&
		    strcmp(path + length - wanted, name) == 0)
			return i;
	}
	return NOT_PINNED;
}

/* The only pinned path that the text names in full. */
static int
find_pin(const char *text)
{
	char path[PATH];
	int i, found = NOT_PINNED;

	for (i = 0; i < PINNED; i++) {
		snprintf(path, sizeof path, "%s/%s", pinned[i].package, pinned[i].path);
		if (strstr(text, path) == NULL)
			continue;
		if (found != NOT_PINNED)
			return NOT_PINNED;
		found = i;
	}
	return found;
}

/* ---- files and lines -------------------------------------------------------- */

struct text {
	char **lines; /* the first line is lines[1], as editors count */
	size_t count;
};

static struct text
read_text(FILE *file)
{
	struct text text = {NULL, 0};
	char line[8192];
	size_t size = 0;

	while (fgets(line, sizeof line, file) != NULL) {
		if (text.count + 2 > size) {
			size = size > 0 ? 2 * size : 1024;
			text.lines = realloc(text.lines, size * sizeof *text.lines);
			cr_assert_not_null(text.lines);
		}
		line[strcspn(line, "\r\n")] = '\0';
		text.lines[++text.count] = strdup(line);
	}
	fclose(file);
	return text;
}

static void
free_text(struct text *text)
{
	size_t i;

	for (i = 1; i <= text->count; i++)
		free(text->lines[i]);
	free(text->lines);
}

/* Tests run in the root of the project, or TEST_ROOT says where it is. */
static const char *
root(void)
{
	const char *told = getenv("TEST_ROOT");
	FILE *file = fopen("messenger.c", "r");

	if (file == NULL)
		return told != NULL ? told : ".";
	fclose(file);
	return ".";
}

/* NULL if the file is not there. */
static FILE *
open_in(const char *folder, const char *name)
{
	char path[1024];

	snprintf(path, sizeof path, "%s/%s", folder, name);
	return fopen(path, "r");
}

static struct text
read_source(const char *name)
{
	FILE *file = open_in(root(), name);

	cr_assert_not_null(file, "%s: %s (TEST_ROOT?)", name, strerror(errno));
	return read_text(file);
}

/* Call back for each file of a folder of the project whose name has this ending. */
static size_t
each_source(const char *folder, const char *end, void (*call)(const char *name, void *arg),
            void *arg)
{
	char path[1024];
	const struct dirent *entry;
	DIR *files;
	size_t count = 0, length;

	snprintf(path, sizeof path, "%s/%s", root(), folder);
	files = opendir(path);
	cr_assert_not_null(files, "%s: %s", path, strerror(errno));
	while ((entry = readdir(files)) != NULL) {
		length = strlen(entry->d_name);
		if (length <= strlen(end) || strcmp(entry->d_name + length - strlen(end), end) != 0)
			continue;
		snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
		call(path, arg);
		count++;
	}
	closedir(files);
	return count;
}

/* Call back for each source in the folders of the packages. */
static void
each_package(void (*call)(const char *name, void *arg), void *arg)
{
	static const char *const packages[] = {"cluster-client", "egg-schedule", "egg-scripts",
	                                       "redis"};
	char path[1024];
	size_t i;

	for (i = 0; i < sizeof packages / sizeof packages[0]; i++) {
		snprintf(path, sizeof path, "%s/%s", root(), packages[i]);
		if (access(path, F_OK) == 0)
			each_source(packages[i], ".c", call, arg);
	}
}

/* ---- words -------------------------------------------------------------------- */

struct words {
	char word[WORDS][WORD];
	size_t count;
};

static void
add_word(struct words *words, const char *word, size_t length)
{
	cr_assert_lt(words->count, WORDS);
	cr_assert_lt(length, WORD);
	memcpy(words->word[words->count], word, length);
	words->word[words->count++][length] = '\0';
}

static bool
has_word(const struct words *words, const char *word)
{
	size_t i;

	for (i = 0; i < words->count; i++)
		if (strcmp(words->word[i], word) == 0)
			return true;
	return false;
}

/* Words that stand in nearly every line do not show that two lines belong together. */
static bool
is_common(const char *word)
{
	static const char *const common[] = {"data",   "message", "messenger", "this",   "const",
	                                     "let",    "var",     "return",    "struct", "if",
	                                     "else",   "for",     "of",        "new",    "int",
	                                     "size_t", "static",  "void",      "js",     "define"};
	size_t i;

	for (i = 0; i < sizeof common / sizeof common[0]; i++)
		if (strcmp(word, common[i]) == 0)
			return true;
	return false;
}

/* The identifiers and numbers of a line, as they stand. */
static void
split_words(const char *line, struct words *words)
{
	size_t length;

	words->count = 0;
	while (*line != '\0') {
		for (length = 0; isalnum((unsigned char)line[length]) || line[length] == '_';)
			length++;
		if (length > 0)
			add_word(words, line, length);
		line += length > 0 ? length : 1;
	}
}

/* receiver_pid -> receiverPid. */
static void
to_camel(const char *snake, char *camel)
{
	for (; *snake != '\0'; snake++) {
		if (*snake == '_' && snake[1] != '\0')
			*camel++ = (char)toupper((unsigned char)*++snake);
		else
			*camel++ = *snake;
	}
	*camel = '\0';
}

/* ROLE_APP is 'app', STATE_DISCONNECTED is 'disconnected'. */
static bool
constant_name(const char *word, char *name)
{
	static const char *const prefixes[] = {"ROLE_", "STATE_"};
	size_t i;

	for (i = 0; i < sizeof prefixes / sizeof prefixes[0]; i++) {
		if (strncmp(word, prefixes[i], strlen(prefixes[i])) != 0)
			continue;
		for (word += strlen(prefixes[i]); *word != '\0'; word++)
			*name++ = (char)tolower((unsigned char)*word);
		*name = '\0';
		return true;
	}
	return false;
}

/* The words of a line of JavaScript. process.send also counts as processSend. */
static void
split_javascript(const char *line, struct words *words)
{
	char chain[2 * WORD];
	const char *dot;
	size_t before, after;

	split_words(line, words);
	for (dot = strchr(line, '.'); dot != NULL; dot = strchr(dot + 1, '.')) {
		for (before = 0;
		     dot - line > (long)before && isalnum((unsigned char)dot[-1 - (long)before]);)
			before++;
		for (after = 0; isalnum((unsigned char)dot[1 + after]);)
			after++;
		if (before == 0 || after == 0 || before + after >= WORD)
			continue;
		memcpy(chain, dot - before, before);
		memcpy(chain + before, dot + 1, after);
		chain[before] = (char)toupper((unsigned char)chain[before]);
		add_word(words, chain, before + after);
	}
}

/* Do a line of C and one of JavaScript have a name, a constant or a number in
 * common? */
static bool
share_word(const struct words *c, const struct words *javascript)
{
	char camel[WORD], name[WORD];
	size_t i;

	for (i = 0; i < c->count; i++) {
		to_camel(c->word[i], camel);
		if (!is_common(camel) && has_word(javascript, camel))
			return true;
		if (constant_name(c->word[i], name) && has_word(javascript, name))
			return true;
	}
	return false;
}

/* A role in the C line that the JavaScript does not name; NULL: none. */
static const char *
foreign_role(const struct words *c, const struct words *javascript)
{
	char name[WORD];
	size_t i;

	for (i = 0; i < c->count; i++)
		if (strncmp(c->word[i], "ROLE_", 5) == 0 && strcmp(c->word[i], "ROLE_NONE") != 0 &&
		    constant_name(c->word[i], name) && !has_word(javascript, name))
			return c->word[i];
	return NULL;
}

/* The keyword that makes the line a branch, or NULL. */
static const char *
branch_keyword(const char *line)
{
	line += strspn(line, " \t}");
	if (strncmp(line, "if (", 4) == 0)
		return "if";
	if (strncmp(line, "else if (", 9) == 0)
		return "else if";
	if (strncmp(line, "else", 4) == 0 && (line[4] == '\0' || line[4] == ' '))
		return "else";
	if (strncmp(line, "for (", 5) == 0)
		return "for";
	if (strncmp(line, "while (", 7) == 0)
		return "while";
	return NULL;
}

/* ---- citations ------------------------------------------------------------------ */

/* A number in a comment. */
struct citation {
	const char *source; /* the C file */
	size_t at;          /* its line */
	char file[WORD];    /* "": the pinned file */
	int pin;            /* the file of egg's, or NOT_PINNED */
	size_t line;
	char code[4 * LINE]; /* the whole statement that ends in this line */
	char comment[LINE];  /* the rest of the comment */
};

/* The beginning of the comment at the end of the line; NULL if there is none, or if the comment
 * goes on in the next line. */
static const char *
find_comment(const char *line)
{
	const char *comment = strstr(line, "/*");
	size_t length = strlen(line);

	if (comment == NULL || length < 2 || strcmp(line + length - 2, "*/") != 0)
		return NULL;
	return comment;
}

/* The code of a line, without its comment. */
static size_t
code_length(const char *line)
{
	const char *comment = strstr(line, "/*");

	return comment != NULL ? (size_t)(comment - line) : strlen(line);
}

/* Does a line of C go on in the next line? Lines are broken behind operators. A line that ends in
 * a parenthesis is the head of the next statement, unless the next line begins with ? or :. */
static bool
goes_on(const char *line, const char *next)
{
	const char *keyword = branch_keyword(line);
	size_t length = code_length(line);

	while (length > 0 && isspace((unsigned char)line[length - 1]))
		length--;
	next += strspn(next, " \t");
	if (length == 0 || !isspace((unsigned char)line[0]) ||
	    (keyword != NULL && strcmp(keyword, "else") == 0))
		return false;
	if (*next == ':' || *next == '?')
		return true;
	return strchr(";{}:/)", line[length - 1]) == NULL;
}

/* How many more parentheses the line closes than it opens. */
static int
closed_parentheses(const char *line)
{
	size_t i, length = code_length(line);
	int closed = 0;

	for (i = 0; i < length; i++)
		closed += (line[i] == ')') - (line[i] == '(');
	return closed;
}

/* The statement that stands in, or ends in, the line. */
static void
find_code(const struct text *text, size_t at, char *code, size_t size)
{
	int used = 0, closed = closed_parentheses(text->lines[at]);
	size_t first = at;

	while (first > 1 && branch_keyword(text->lines[first]) == NULL &&
	       (closed > 0 || goes_on(text->lines[first - 1], text->lines[first])))
		closed += closed_parentheses(text->lines[--first]);
	for (code[0] = '\0'; first <= at && used < (int)size; first++)
		used += snprintf(code + used, size - (size_t)used, "%.*s ",
		                 (int)code_length(text->lines[first]), text->lines[first]);
}

/* Only "ipc.js:71" and ":71" are citations. */
static bool
parse_citation(const char *word, struct citation *citation)
{
	const char *colon = strchr(word, ':');
	char *end;

	if (colon == NULL || !isdigit((unsigned char)colon[1]) || colon - word >= WORD)
		return false;
	if (colon != word && (colon - word < 4 || strncmp(colon - 3, ".js", 3) != 0))
		return false;
	citation->line = (size_t)strtol(colon + 1, &end, 10);
	memcpy(citation->file, word, (size_t)(colon - word));
	citation->file[colon - word] = '\0';
	return *end == '\0' || (ispunct((unsigned char)*end) && end[1] == '\0');
}

/* For each line of a source: the file that a bare number in this line cites. */
static int pins[LINES_MOST];

static bool
starts_with(const char *line, const char *start)
{
	return strncmp(line, start, strlen(start)) == 0;
}

/* The comment that begins in a line, as one text. Returns its last line. */
static size_t
join_comment(const struct text *text, size_t at, char *comment, size_t size)
{
	size_t used = 0;

	for (comment[0] = '\0'; at <= text->count; at++) {
		used += (size_t)snprintf(comment + used, size - used, "%s ", text->lines[at]);
		cr_assert_lt(used, size);
		if (strstr(text->lines[at], "*/") != NULL)
			break;
	}
	return at;
}

static void
find_pins(const struct text *text)
{
	char comment[16 * LINE];
	int file = NOT_PINNED, section = NOT_PINNED, function = NOT_PINNED;
	bool inside = false, headed = false, first = true;
	size_t at, end;

	cr_assert_lt(text->count, LINES_MOST);
	for (at = 1; at <= text->count; at++) {
		const char *line = text->lines[at];

		if (starts_with(line, "/*")) {
			end = join_comment(text, at, comment, sizeof comment);
			if (starts_with(line, "/* ----")) {
				section = find_pin(comment);
				headed = true;
			} else if (first) {
				file = find_pin(comment);
			} else {
				function = find_pin(comment);
			}
			first = false;
			for (; at < end; at++)
				pins[at] = NOT_PINNED;
		}
		pins[at] = function != NOT_PINNED ? function : headed ? section : file;
		inside = (inside || line[0] == '{') && line[0] != '}';
		if (!inside && (line[0] == '}' || line[0] == '\0'))
			function = NOT_PINNED;
	}
}

/* Call back for each citation in a line. */
static size_t
each_in_line(const char *source, const struct text *text, size_t at,
             void (*call)(const struct citation *citation, void *arg), void *arg)
{
	const char *line = text->lines[at];
	const char *comment = find_comment(line);
	struct citation citation = {.source = source, .at = at};
	char words[LINE], *word, *rest = words;
	size_t count = 0;

	if (comment == NULL)
		return 0;
	snprintf(citation.comment, sizeof citation.comment, "%s", comment);
	snprintf(words, sizeof words, "%s", comment);
	while ((word = strsep(&rest, " ,()\t")) != NULL) {
		if (!parse_citation(word, &citation))
			continue;
		citation.pin = citation.file[0] != '\0' ? find_pinned(citation.file) : pins[at];
		find_code(text, at, citation.code, sizeof citation.code);
		call(&citation, arg);
		count++;
	}
	return count;
}

static size_t
each_citation(const char *source, const struct text *text,
              void (*call)(const struct citation *citation, void *arg), void *arg)
{
	size_t at, count = 0;

	find_pins(text);
	for (at = 1; at <= text->count; at++)
		count += each_in_line(source, text, at, call, arg);
	return count;
}

static size_t
find_line(const struct text *text, const char *start)
{
	size_t at;

	for (at = 1; at <= text->count; at++)
		if (strncmp(text->lines[at], start, strlen(start)) == 0)
			return at;
	cr_assert_fail("no line begins with: %s", start);
	return 0;
}

/* The master's side of messenger.c: the lines between two headings. */
struct section {
	struct text text;
	size_t start, end;
	size_t last;        /* the line of messenger.js that was cited last */
	size_t times[1000]; /* how often each of its lines is cited */
	size_t count;
};

static struct section section;

static bool
is_in_section(const struct citation *citation)
{
	return strcmp(citation->source, "./messenger.c") == 0 && citation->at > section.start &&
	       citation->at < section.end;
}

static void
open_section(void)
{
	memset(&section, 0, sizeof section);
	section.text = read_source("messenger.c");
	section.start = find_line(&section.text, master_section);
	section.end = find_line(&section.text, child_section);
	cr_assert_lt(section.start, section.end);
}

static void
close_section(void)
{
	free_text(&section.text);
}

TestSuite(citations, .init = open_section, .fini = close_section);

static bool
is_branch(size_t line)
{
	size_t i;

	for (i = 0; i < BRANCHES; i++)
		if ((size_t)branches[i] == line)
			return true;
	return false;
}

/* ---- always: the master's side is messenger.js, branch by branch ------------------ */

static void
check_order(const struct citation *citation, void *arg)
{
	(void)arg;
	if (!is_in_section(citation) || citation->file[0] != '\0')
		return;
	cr_assert_gt(citation->line, section.last, "messenger.c:%zu cites :%zu after :%zu",
	             citation->at, citation->line, section.last);
	cr_assert_lt(citation->line, 1000);
	section.last = citation->line;
	section.times[citation->line]++;
	section.count++;
}

Test(citations, each_branch_of_messenger_js_is_cited_once_and_in_order)
{
	size_t i;

	each_citation("./messenger.c", &section.text, check_order, NULL);
	for (i = 0; i < BRANCHES; i++)
		cr_assert_eq(section.times[branches[i]], 1, "messenger.js:%d is cited %zu times",
		             branches[i], section.times[branches[i]]);
	cr_assert_geq(section.count, BRANCHES);
}

/* A citation stands behind code, at the end of the line. If it cites a branch, the C line is a
 * branch, too. */
static void
check_place(const struct citation *citation, void *arg)
{
	const char *line = section.text.lines[citation->at];
	const char *keyword = branch_keyword(citation->code);

	(void)arg;
	if (!is_in_section(citation) || citation->file[0] != '\0')
		return;
	cr_assert_neq(line[strspn(line, " \t")], '/',
	              "messenger.c:%zu: the citation :%zu stands behind no code", citation->at,
	              citation->line);
	cr_assert(!is_branch(citation->line) || keyword != NULL,
	          "messenger.c:%zu is no branch, messenger.js:%zu is one: %s", citation->at,
	          citation->line, citation->code);
}

Test(citations, branches_are_cited_at_branches)
{
	cr_assert_gt(each_citation("./messenger.c", &section.text, check_place, NULL), BRANCHES);
}

/* A bare number needs a pinned file. A name must be the name of a pinned file. */
static void
check_file_is_known(const struct citation *citation, void *arg)
{
	(void)arg;
	cr_expect(citation->pin != NOT_PINNED || citation->file[0] != '\0',
	          "%s:%zu cites :%zu, and no file is pinned there", citation->source, citation->at,
	          citation->line);
	cr_expect(citation->pin != NOT_PINNED || citation->file[0] == '\0',
	          "%s:%zu: %s is of no pinned package", citation->source, citation->at,
	          citation->file);
}

static void
check_files_are_known(const char *name, void *arg)
{
	struct text text = read_source(name);

	*(size_t *)arg += each_citation(name, &text, check_file_is_known, NULL);
	free_text(&text);
}

Test(citations, each_citation_is_of_a_pinned_file)
{
	size_t count = 0;

	each_package(check_files_are_known, &count);
	cr_assert_geq(each_source(".", ".c", check_files_are_known, &count), 5);
	cr_assert_gt(count, 2 * BRANCHES);
}

/* ---- EGG: the real lines ------------------------------------------------------------ */

/* Open the path in the first folder that has it: EGG/NAME-VERSION, the same with package/,
 * EGG/node_modules/NAME, EGG/NAME. NULL: no folder has it, and the package may be missing. */
static FILE *
open_packaged(int i, const char *path)
{
	const char *egg = getenv("EGG"), *package = pinned[i].package;
	char name[4][PATH];
	FILE *file = NULL;
	size_t at;

	snprintf(name[0], PATH, "%s-%s/%s", package, pinned[i].version, path);
	snprintf(name[1], PATH, "%s-%s/package/%s", package, pinned[i].version, path);
	snprintf(name[2], PATH, "node_modules/%s/%s", package, path);
	snprintf(name[3], PATH, "%s/%s", package, path);
	for (at = 0; file == NULL && at < 4; at++)
		file = open_in(egg, name[at]);
	cr_assert(file != NULL || i >= CORE_PINNED, "EGG=%s: no %s@%s (%s)", egg, package,
	          pinned[i].version, path);
	return file;
}

static void
check_version(int i)
{
	struct text text = read_text(open_packaged(i, "package.json"));
	char wanted[64];
	size_t at;

	snprintf(wanted, sizeof wanted, "\"version\": \"%s\"", pinned[i].version);
	for (at = 1; at <= text.count && strstr(text.lines[at], wanted) == NULL; at++)
		;
	cr_assert_leq(at, text.count, "EGG: %s does not have the version %s", pinned[i].package,
	              pinned[i].version);
	free_text(&text);
}

/* Returns a text without lines if the package may be missing, and is. */
static struct text
read_pinned(int i)
{
	struct text none = {NULL, 0};
	FILE *file = open_packaged(i, pinned[i].path);

	if (file == NULL) {
		fprintf(stderr, "EGG: %s-%s is not there: %s is not looked up\n", pinned[i].package,
		        pinned[i].version, pinned[i].path);
		return none;
	}
	check_version(i);
	return read_text(file);
}

static void
skip_without_egg(void)
{
	if (getenv("EGG") == NULL)
		cr_skip_test("EGG is not set");
}

Test(citations, the_branches_are_those_of_the_real_messenger_js)
{
	struct text text;
	size_t at, found = 0;

	skip_without_egg();
	text = read_pinned(find_pinned("messenger.js"));
	for (at = 1; at <= text.count; at++) {
		if (branch_keyword(text.lines[at]) == NULL)
			continue;
		cr_assert_lt(found, BRANCHES,
		             "messenger.js:%zu is a branch behind the last one in `branches`", at);
		cr_assert_eq(at, (size_t)branches[found],
		             "messenger.js:%zu is the next branch, and `branches` has :%d", at,
		             branches[found]);
		found++;
	}
	cr_assert_eq(found, BRANCHES);
	free_text(&text);
}

/* Both lines are the same kind of branch, the C line names no other role, and the lines have a
 * name in common. */
static void
compare(const struct citation *citation, const char *line)
{
	struct words c, note, javascript;
	const char *keyword = branch_keyword(line), *ours = branch_keyword(citation->code);
	const char *role;
	bool shared;

	split_words(citation->code, &c);
	split_words(citation->comment, &note);
	split_javascript(line, &javascript);
	role = foreign_role(&c, &javascript);
	shared = share_word(&c, &javascript) || share_word(&note, &javascript);
	if (keyword != NULL && is_in_section(citation)) {
		cr_expect_str_eq(keyword, ours != NULL ? ours : "no branch",
		                 "%s:%zu is not the kind of branch that line %zu of egg is: %s",
		                 citation->source, citation->at, citation->line, line);
	}
	shared = shared || (keyword != NULL && ours != NULL && strcmp(keyword, "else") == 0 &&
	                    strcmp(ours, "else") == 0);
	cr_expect_null(role, "%s:%zu says %s, %s:%zu does not: %s", citation->source, citation->at,
	               role, pinned[citation->pin].path, citation->line, line);
	cr_expect(shared, "%s:%zu has nothing in common with %s:%zu\n  %s\n  %s", citation->source,
	          citation->at, pinned[citation->pin].path, citation->line, citation->code, line);
}

static void
look_up(const struct citation *citation, void *arg)
{
	struct text text;

	(void)arg;
	if (citation->pin == NOT_PINNED) /* another test finds this fault */
		return;
	text = read_pinned(citation->pin);
	cr_expect(citation->line <= text.count || text.count == 0, "%s:%zu: %s has no line %zu",
	          citation->source, citation->at, pinned[citation->pin].path, citation->line);
	if (citation->line <= text.count)
		compare(citation, text.lines[citation->line]);
	free_text(&text);
}

static void
look_up_all(const char *name, void *arg)
{
	struct text text = read_source(name);

	*(size_t *)arg += each_citation(name, &text, look_up, NULL);
	free_text(&text);
}

Test(citations, each_cited_line_says_what_the_c_line_says)
{
	size_t count = 0;

	if (getenv("EGG") == NULL) /* because Criterion does not show skipped tests */
		fprintf(stderr, "EGG is not set: the cited lines of egg are not looked up\n");
	skip_without_egg();
	each_source(".", ".c", look_up_all, &count);
	each_package(look_up_all, &count);
	cr_assert_gt(count, 2 * BRANCHES);
}

/* ---- divergences: a mark, a row, a test ----------------------------------------------- */

struct divergences {
	bool marked[DIVERGENCES_MOST]; /* in a comment of a source */
	char *row[DIVERGENCES_MOST];   /* in docs/divergences.md */
	struct text page;
};

static struct divergences divergences;

/* The number of a mark such as `D12` that is not a part of a word, or 0. */
static size_t
mark_at(const char *line, const char *at)
{
	char *end;
	long number;

	if (*at != 'D' || !isdigit((unsigned char)at[1]) ||
	    (at > line && (isalnum((unsigned char)at[-1]) || at[-1] == '_')))
		return 0;
	number = strtol(at + 1, &end, 10);
	if (isalnum((unsigned char)*end) || *end == '_')
		return 0;
	cr_assert_lt(number, DIVERGENCES_MOST, "a number is too large: %s", line);
	return (size_t)number;
}

static void
find_marks(const char *name, void *arg)
{
	struct text text = read_source(name);
	const char *p;
	size_t at, number;

	(void)arg;
	for (at = 1; at <= text.count; at++)
		for (p = text.lines[at]; *p != '\0'; p++) {
			number = mark_at(text.lines[at], p);
			if (number == 0)
				continue;
			divergences.marked[number] = true;
			cr_expect_not_null(divergences.row[number],
			                   "%s:%zu has the mark D%zu, and docs/divergences.md has "
			                   "no row for it",
			                   name, at, number);
		}
	free_text(&text);
}

/* Find the marks in the core and in the packages' folders. */
static void
find_all_marks(void)
{
	each_source(".", ".c", find_marks, NULL);
	each_package(find_marks, NULL);
}

/* The rows: "| D12 | ... |". */
static void
read_divergences(void)
{
	FILE *file = open_in(root(), "docs/divergences.md");
	size_t at, number;
	char *line;

	memset(&divergences, 0, sizeof divergences);
	if (file == NULL)
		cr_skip_test("docs/divergences.md is not there");
	divergences.page = read_text(file);
	for (at = 1; at <= divergences.page.count; at++) {
		line = divergences.page.lines[at];
		if (strncmp(line, "| D", 3) != 0 || (number = mark_at(line, line + 2)) == 0)
			continue;
		cr_assert_null(divergences.row[number], "D%zu has two rows", number);
		divergences.row[number] = line;
	}
}

Test(citations, each_mark_of_a_divergence_has_a_row)
{
	size_t number;

	read_divergences();
	find_all_marks();
	for (number = 1; number <= KNOWN_DIVERGENCES; number++)
		cr_expect_not_null(divergences.row[number],
		                   "docs/divergences.md has no row for D%zu", number);
	free_text(&divergences.page);
}

Test(citations, each_divergence_is_marked_in_the_source)
{
	size_t number;

	read_divergences();
	find_all_marks();
	for (number = 1; number < DIVERGENCES_MOST; number++)
		cr_expect(divergences.marked[number] || divergences.row[number] == NULL,
		          "no .c file has the mark D%zu", number);
	free_text(&divergences.page);
}

/* ---- the lines of egg that the rows cite --------------------------------------------- */

/* A place in the second column: "`master.js:164`, `:524`; cfork `index.js:201`". */
struct place {
	size_t number;   /* of the row's D */
	char file[PATH]; /* the last file named, with its package if one is named */
	int pin;
	size_t line; /* 0: the whole file */
};

/* The package that the word before the backquote names, or NULL. */
static const char *
find_package(const char *cell, const char *quote)
{
	size_t length;
	int i;

	for (i = 0; i < PINNED; i++) {
		length = strlen(pinned[i].package);
		if (quote - cell > (long)length && quote[-1] == ' ' &&
		    strncmp(quote - 1 - length, pinned[i].package, length) == 0 &&
		    (quote - cell == (long)length + 1 || quote[-2 - (long)length] == ' '))
			return pinned[i].package;
	}
	return NULL;
}

/* The end of a path within a package: "index.js" of cfork is "cfork/index.js". */
static int
find_in_package(const char *package, const char *file)
{
	size_t wanted = strlen(file), length;
	int i;

	for (i = 0; i < PINNED; i++) {
		length = strlen(pinned[i].path);
		if (strcmp(pinned[i].package, package) == 0 && length >= wanted &&
		    strcmp(pinned[i].path + length - wanted, file) == 0 &&
		    (length == wanted || pinned[i].path[length - wanted - 1] == '/'))
			return i;
	}
	return NOT_PINNED;
}

/* "FILE.js:NN", ":NN" (of the last file named), or "FILE.js". */
static void
parse_place(const char *package, const char *text, struct place *place)
{
	const char *colon = strchr(text, ':');
	size_t length = colon != NULL ? (size_t)(colon - text) : strlen(text);
	char *end = NULL;

	if (length > 0) {
		snprintf(place->file, sizeof place->file, "%.*s", (int)length, text);
		place->pin = package != NULL ? find_in_package(package, place->file)
		                             : find_pinned(place->file);
	}
	place->line = colon != NULL ? strtoul(colon + 1, &end, 10) : 0;
	cr_expect(end == NULL || (*end == '\0' && place->line > 0), "D%zu: `%s` is no citation",
	          place->number, text);
	cr_expect_neq(place->pin, NOT_PINNED, "D%zu: `%s` is of no pinned package", place->number,
	              text);
}

static void
look_up_place(const struct place *place)
{
	struct text text;
	const char *line;

	if (getenv("EGG") == NULL || place->pin == NOT_PINNED || place->line == 0)
		return;
	text = read_pinned(place->pin);
	cr_expect(place->line <= text.count || text.count == 0, "D%zu: %s has no line %zu",
	          place->number, place->file, place->line);
	if (place->line <= text.count) {
		line = text.lines[place->line];
		line += strspn(line, " \t})];,");
		cr_expect(*line != '\0' && !starts_with(line, "//") && *line != '*',
		          "D%zu: %s:%zu is a blank line or a comment", place->number, place->file,
		          place->line);
	}
	free_text(&text);
}

/* Returns how many places the row names. */
static size_t
check_places(size_t number)
{
	struct place place = {.number = number, .pin = NOT_PINNED};
	char cell[1024], *quote, *end;
	const char *package, *start = strchr(divergences.row[number] + 2, '|') + 1;
	size_t count = 0;

	snprintf(cell, sizeof cell, "%.*s", (int)strcspn(start, "|"), start);
	for (quote = strchr(cell, '`'); quote != NULL; quote = strchr(end + 1, '`')) {
		end = strchr(quote + 1, '`');
		cr_assert_not_null(end, "D%zu: a backquote is not closed", number);
		*end = '\0';
		package = find_package(cell, quote);
		parse_place(package, quote + 1, &place);
		look_up_place(&place);
		count++;
	}
	return count;
}

Test(citations, each_place_in_egg_that_a_divergence_names_is_there)
{
	size_t number, count = 0;

	read_divergences();
	for (number = 1; number < DIVERGENCES_MOST; number++)
		if (divergences.row[number] != NULL)
			count += check_places(number);
	cr_assert_gt(count, KNOWN_DIVERGENCES);
	free_text(&divergences.page);
}

/* ---- their tests ---------------------------------------------------------------------- */

/* A test's definition: "Test(suite, name" at the beginning of a line. */
struct wanted {
	char start[2 * WORD + 16];
	bool found;
};

static void
look_for_test(const char *name, void *arg)
{
	struct wanted *wanted = arg;
	struct text text = read_source(name);
	size_t at, length = strlen(wanted->start);

	for (at = 1; at <= text.count; at++)
		if (strncmp(text.lines[at], wanted->start, length) == 0 &&
		    (text.lines[at][length] == ')' || text.lines[at][length] == ','))
			wanted->found = true;
	free_text(&text);
}

/* `suite/name` must be defined in test/. */
static void
check_test_exists(size_t number, const char *name)
{
	struct wanted wanted = {.found = false};
	const char *slash = strchr(name, '/');

	cr_expect_not_null(slash, "D%zu: `%s` does not have the form suite/test", number, name);
	if (slash == NULL)
		return;
	snprintf(wanted.start, sizeof wanted.start, "Test(%.*s, %s", (int)(slash - name), name,
	         slash + 1);
	each_source("test", ".c", look_for_test, &wanted);
	cr_expect(wanted.found, "D%zu: test/ has no %s)", number, wanted.start);
}

/* The last column has one or more `suite/test`. Returns their number. */
static size_t
check_row_names_tests(size_t number)
{
	char row[4096], *last, *name, *end;
	size_t names = 0;

	snprintf(row, sizeof row, "%s", divergences.row[number]);
	last = strrchr(row, '|');
	cr_assert_eq(last[1 + strspn(last + 1, " ")], '\0', "D%zu: the row does not end with |",
	             number);
	*last = '\0';
	last = strrchr(row, '|');
	for (name = strchr(last, '`'); name != NULL; name = strchr(end + 1, '`')) {
		end = strchr(++name, '`');
		cr_assert_not_null(end, "D%zu: a backquote is not closed", number);
		*end = '\0';
		check_test_exists(number, name);
		names++;
	}
	return names;
}

Test(citations, each_divergence_names_its_tests)
{
	char without[8 * DIVERGENCES_MOST] = "";
	size_t number;

	read_divergences();
	for (number = 1; number < DIVERGENCES_MOST; number++)
		if (divergences.row[number] != NULL && check_row_names_tests(number) == 0)
			snprintf(without + strlen(without), sizeof without - strlen(without),
			         " D%zu", number);
	cr_expect_str_empty(without, "these divergences name no test:%s", without);
	free_text(&divergences.page);
}

/* ---- mirror: the functions and branches of the roles ---------------------------------- */

/* The bare citations of one file of egg's in one C file, in the order of the C lines. */
static struct cited {
	size_t at, line, end; /* end: the line that ends its function */
	bool is_head;         /* the citation stands at the head of a function */
	bool diverges;        /* beside a Dn, which may change the order */
	char keyword[WORD];   /* of the C line; "": the line is no branch */
} cited[LINES_MOST];

static size_t cited_count;

struct gathering {
	const struct text *text;
	int pin;
};

static void
gather(const struct citation *citation, void *arg)
{
	const struct gathering *gathering = arg;
	const struct text *text = gathering->text;
	const char *keyword = branch_keyword(citation->code), *p;
	struct cited *one = &cited[cited_count];

	if (citation->pin != gathering->pin || citation->file[0] != '\0')
		return;
	cited_count++;
	cr_assert_lt(cited_count, LINES_MOST);
	one->at = citation->at;
	one->line = citation->line;
	one->is_head = text->lines[citation->at][0] != '\t';
	one->diverges = false;
	for (p = citation->comment; *p != '\0'; p++)
		one->diverges = one->diverges || mark_at(citation->comment, p) != 0;
	snprintf(one->keyword, WORD, "%s", keyword != NULL ? keyword : "");
	for (one->end = one->at; one->end < text->count && text->lines[one->end][0] != '}';)
		one->end++;
}

static void
gather_all(const struct mirror *mirror)
{
	struct text text = read_source(mirror->c);
	struct gathering gathering = {&text, find_pinned(mirror->egg)};

	cited_count = 0;
	each_citation(mirror->c, &text, gather, &gathering);
	free_text(&text);
}

static bool
is_keyword(const char *what)
{
	static const char *const keywords[] = {"if", "else if", "else", "for", "while"};
	size_t i;

	for (i = 0; i < sizeof keywords / sizeof keywords[0]; i++)
		if (strcmp(keywords[i], what) == 0)
			return true;
	return false;
}

/* An else is cited at an else. Otherwise the if in front of it could be reversed in C. */
static bool
are_of_a_kind(const char *egg, const char *c)
{
	bool is_loop = strcmp(egg, "for") == 0 || strcmp(egg, "while") == 0;

	if (is_loop)
		return strcmp(c, "for") == 0 || strcmp(c, "while") == 0;
	if (strcmp(egg, "else") == 0)
		return strcmp(c, "else") == 0;
	return strcmp(c, "if") == 0 || strcmp(c, "else if") == 0;
}

static const struct cited *
find_cited(size_t line, size_t *times)
{
	const struct cited *found = NULL;
	size_t i;

	*times = 0;
	for (i = 0; i < cited_count; i++)
		if (cited[i].line == line) {
			found = &cited[i];
			++*times;
		}
	return found;
}

static void
check_functions(const struct mirror *mirror)
{
	const struct cited *head;
	size_t i, times, last = 0;

	gather_all(mirror);
	for (i = 0; i < mirror->count; i++) {
		if (is_keyword(mirror->lines[i].what) || mirror->lines[i].exception != NULL)
			continue;
		head = find_cited(mirror->lines[i].line, &times);
		cr_expect(times == 1 && head->is_head,
		          "%s:%zu, %s: is cited %zu times, not once at a function's head in %s",
		          mirror->egg, mirror->lines[i].line, mirror->lines[i].what, times,
		          mirror->c);
		if (head == NULL)
			continue;
		cr_expect_gt(head->at, last, "%s:%zu mirrors %s, which comes later in %s",
		             mirror->c, head->at, mirror->lines[i].what, mirror->egg);
		last = head->at;
	}
}

Test(mirror, the_functions_stand_in_eggs_order)
{
	size_t i;

	for (i = 0; i < MIRRORS; i++)
		check_functions(&mirrors[i]);
}

static void
check_branches(const struct mirror *mirror)
{
	const struct mirrored *line;
	const struct cited *branch;
	size_t i, times;

	gather_all(mirror);
	for (i = 0; i < mirror->count; i++) {
		line = &mirror->lines[i];
		if (!is_keyword(line->what))
			continue;
		branch = find_cited(line->line, &times);
		if (line->exception != NULL) {
			cr_expect_eq(
				times, 0,
				"%s:%zu is cited, although it is an exception in mirror.h (%s)",
				mirror->egg, line->line, line->exception);
			continue;
		}
		cr_expect_eq(times, 1, "%s:%zu, %s: is cited %zu times in %s, not once",
		             mirror->egg, line->line, line->what, times, mirror->c);
		cr_expect(branch == NULL || are_of_a_kind(line->what, branch->keyword),
		          "%s:%zu is '%s', and the cited %s:%zu is '%s'", mirror->c,
		          branch != NULL ? branch->at : 0, branch != NULL ? branch->keyword : "",
		          mirror->egg, line->line, line->what);
	}
}

Test(mirror, each_branch_of_egg_is_cited_once_or_is_an_exception)
{
	size_t i;

	for (i = 0; i < MIRRORS; i++)
		check_branches(&mirrors[i]);
}

static void
check_rising(const struct mirror *mirror)
{
	size_t i, end = 0, last = 0;

	gather_all(mirror);
	for (i = 0; i < cited_count; i++) {
		if (cited[i].end != end)
			last = 0;
		end = cited[i].end;
		if (cited[i].diverges)
			continue;
		cr_expect_gt(cited[i].line, last, "%s:%zu cites :%zu after :%zu of %s", mirror->c,
		             cited[i].at, cited[i].line, last, mirror->egg);
		last = cited[i].line;
	}
}

Test(mirror, within_a_function_the_cited_lines_rise)
{
	size_t i;

	for (i = 0; i < MIRRORS; i++)
		check_rising(&mirrors[i]);
}

/* ---- EGG: mirror.h lists every function and branch ------------------------------------ */

static const struct mirrored *
find_mirrored(const struct mirror *mirror, size_t line)
{
	size_t i;

	for (i = 0; i < mirror->count; i++)
		if (mirror->lines[i].line == line)
			return &mirror->lines[i];
	return NULL;
}

static void
check_mirror(const struct mirror *mirror)
{
	struct text text = read_pinned(find_pinned(mirror->egg));
	const struct mirrored *line;
	const char *keyword;
	size_t at, found = 0;

	for (at = 1; at <= text.count; at++) {
		line = find_mirrored(mirror, at);
		keyword = branch_keyword(text.lines[at]);
		found += line != NULL;
		cr_expect(keyword == NULL || line != NULL, "%s:%zu is not in mirror.h: %s",
		          mirror->egg, at, text.lines[at]);
		if (line == NULL)
			continue;
		if (is_keyword(line->what))
			cr_expect_str_eq(line->what, keyword != NULL ? keyword : "no branch",
			                 "%s:%zu: %s", mirror->egg, at, text.lines[at]);
		else
			cr_expect_not_null(strstr(text.lines[at], line->what),
			                   "%s:%zu does not have '%s': %s", mirror->egg, at,
			                   line->what, text.lines[at]);
	}
	cr_expect_eq(found, mirror->count, "mirror.h has lines that %s does not have", mirror->egg);
	free_text(&text);
}

Test(mirror, the_table_is_complete)
{
	size_t i;

	skip_without_egg();
	for (i = 0; i < MIRRORS; i++)
		check_mirror(&mirrors[i]);
}
