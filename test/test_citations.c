/*
 * What the comments of the sources say of egg, and of divergences, is true.
 *
 * A citation is a number in a comment: ":83" in the master's side of messenger.c
 * is line 83 of egg's messenger.js; elsewhere the file is named, "ipc.js:71".
 * Always checked: each branch of messenger.js is cited once, in order, at a
 * branch; each D has its row in docs/divergences.md, and each row its test. With
 * EGG=folder, where the pinned packages lie (EGG/egg-cluster-2.5.0, or in
 * EGG/node_modules, as npm makes them), each cited line is looked up: what it
 * says and what the C line says must have a name in common.
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

enum { LINE = 512, WORD = 64, WORDS = 64 };

/* The branches of messenger.js: each `if`, `else if`, `else` and `for`. */
static const int branches[] = {75, 80,  81,  83,  85,  91,  92,  93,  94,
                               99, 109, 117, 125, 145, 157, 159, 163, 176};

enum { BRANCHES = sizeof branches / sizeof branches[0] };

/* The divergences of the core and of egg-scripts, D1 to this one, must be there; those
 * of the other packages are checked where they are. */
enum { KNOWN_DIVERGENCES = 32, DIVERGENCES_MOST = 200 };

static const char master_section[] = "/* ---- the master's side";
static const char child_section[] = "/* ---- the child's side";

/* ---- files and lines -------------------------------------------------------- */

struct text {
	char **lines; /* the first is lines[1], as people count */
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

/* Tests run in the root of the project, or are told where that is. */
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

/* NULL if it is not there. */
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

/* Call back for each file of a folder of the project whose name so ends. */
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

/* What stands in nearly every line says nothing about one. */
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

/* The words of a line of JavaScript; process.send is processSend, too. */
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

/* Have a line of C and one of JavaScript a name, a constant or a number in
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

/* The keyword by which a line is a branch, or NULL. */
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
	return NULL;
}

/* ---- citations ------------------------------------------------------------------ */

/* One number in a comment. */
struct citation {
	const char *source; /* the C file */
	size_t at;          /* its line */
	char file[WORD];    /* "": messenger.js, by the section */
	size_t line;
	char code[4 * LINE]; /* the statement: the line, with those that it goes on from */
	char comment[LINE];  /* what else the comment says */
};

/* Where the comment at the end of the line begins; NULL if there is none, or if
 * it is more than that. */
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

/* Does a line of C go on in the next one? Lines are broken behind operators; one
 * that ends in a parenthesis is the head of what follows, unless `? :` does. */
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

/* Does the line close more parentheses than it opens? */
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

/* "ipc.js:71" or ":71"; anything else is none. */
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
	size_t last;        /* line cited */
	size_t times[1000]; /* each line is cited */
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

/* Behind code, at the end of its line; and where the citation is of a branch, it
 * is a branch. */
static void
check_place(const struct citation *citation, void *arg)
{
	const char *line = section.text.lines[citation->at];
	const char *keyword = branch_keyword(citation->code);

	(void)arg;
	if (!is_in_section(citation) || citation->file[0] != '\0')
		return;
	cr_assert_neq(line[strspn(line, " \t")], '/', "messenger.c:%zu: :%zu stands without code",
	              citation->at, citation->line);
	cr_assert(!is_branch(citation->line) || keyword != NULL,
	          "messenger.c:%zu is no branch, messenger.js:%zu is one: %s", citation->at,
	          citation->line, citation->code);
}

Test(citations, branches_are_cited_at_branches)
{
	cr_assert_gt(each_citation("./messenger.c", &section.text, check_place, NULL), BRANCHES);
}

/* A number without a file's name is only understood in the master's side. */
static void
check_file_is_named(const struct citation *citation, void *arg)
{
	(void)arg;
	cr_assert(citation->file[0] != '\0' || is_in_section(citation),
	          "%s:%zu cites :%zu, and no file", citation->source, citation->at, citation->line);
}

static void
check_files_are_named(const char *name, void *arg)
{
	struct text text = read_source(name);

	*(size_t *)arg += each_citation(name, &text, check_file_is_named, NULL);
	free_text(&text);
}

Test(citations, outside_the_masters_side_the_file_is_named)
{
	size_t count = 0;

	cr_assert_geq(each_source(".", ".c", check_files_are_named, &count), 5);
	cr_assert_gt(count, 2 * BRANCHES);
}

/* ---- EGG: the real lines ------------------------------------------------------------ */

static const struct {
	const char *file, *package, *version, *path;
} pinned[] = {
	{"messenger.js", "egg-cluster", "2.5.0", "lib/utils/messenger.js"},
	{"master.js", "egg-cluster", "2.5.0", "lib/master.js"},
	{"agent_worker.js", "egg-cluster", "2.5.0", "lib/agent_worker.js"},
	{"app_worker.js", "egg-cluster", "2.5.0", "lib/app_worker.js"},
	{"manager.js", "egg-cluster", "2.5.0", "lib/utils/manager.js"},
	{"options.js", "egg-cluster", "2.5.0", "lib/utils/options.js"},
	{"terminate.js", "egg-cluster", "2.5.0", "lib/utils/terminate.js"},
	{"agent.js", "egg-cluster", "2.5.0", "lib/utils/mode/impl/process/agent.js"},
	{"app.js", "egg-cluster", "2.5.0", "lib/utils/mode/impl/process/app.js"},
	{"ipc.js", "egg", "3.34.0", "lib/core/messenger/ipc.js"},
	{"sendmessage/index.js", "sendmessage", "1.1.0", "index.js"},
	{"cfork/index.js", "cfork", "1.11.0", "index.js"},
	{"graceful/index.js", "graceful", "1.1.0", "index.js"},
	{"graceful-process/index.js", "graceful-process", "1.3.0", "index.js"},
};

/* EGG/NAME-VERSION, EGG/node_modules/NAME, EGG/NAME: the first that has it. */
static FILE *
open_packaged(size_t i, const char *path)
{
	const char *egg = getenv("EGG");
	char name[256];
	FILE *file;

	snprintf(name, sizeof name, "%s-%s/%s", pinned[i].package, pinned[i].version, path);
	file = open_in(egg, name);
	snprintf(name, sizeof name, "node_modules/%s/%s", pinned[i].package, path);
	file = file != NULL ? file : open_in(egg, name);
	snprintf(name, sizeof name, "%s/%s", pinned[i].package, path);
	file = file != NULL ? file : open_in(egg, name);
	cr_assert_not_null(file, "EGG=%s: no %s@%s (%s)", egg, pinned[i].package, pinned[i].version,
	                   path);
	return file;
}

static void
check_version(size_t i)
{
	struct text text = read_text(open_packaged(i, "package.json"));
	char wanted[64];
	size_t at;

	snprintf(wanted, sizeof wanted, "\"version\": \"%s\"", pinned[i].version);
	for (at = 1; at <= text.count && strstr(text.lines[at], wanted) == NULL; at++)
		;
	cr_assert_leq(at, text.count, "EGG: %s is not %s", pinned[i].package, pinned[i].version);
	free_text(&text);
}

static struct text
read_pinned(const char *file)
{
	size_t i;

	for (i = 0; i < sizeof pinned / sizeof pinned[0]; i++)
		if (strcmp(pinned[i].file, file[0] != '\0' ? file : "messenger.js") == 0)
			break;
	cr_assert_lt(i, sizeof pinned / sizeof pinned[0], "%s is of no pinned package", file);
	check_version(i);
	return read_text(open_packaged(i, pinned[i].path));
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
	text = read_pinned("messenger.js");
	for (at = 1; at <= text.count; at++) {
		if (branch_keyword(text.lines[at]) == NULL)
			continue;
		cr_assert_lt(found, BRANCHES, "messenger.js:%zu is one more branch", at);
		cr_assert_eq(at, (size_t)branches[found], "messenger.js:%zu is a branch, :%d next",
		             at, branches[found]);
		found++;
	}
	cr_assert_eq(found, BRANCHES);
	free_text(&text);
}

/* Both are the same kind of branch, the C line names no other role, and there is
 * something that both name. */
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
		                 "%s:%zu is none: %zu: %s", citation->source, citation->at,
		                 citation->line, line);
		shared = shared || strcmp(keyword, "else") == 0;
	}
	cr_expect_null(role, "%s:%zu says %s, %s:%zu does not: %s", citation->source, citation->at,
	               role, citation->file, citation->line, line);
	cr_expect(shared, "%s:%zu has nothing in common with %s:%zu\n  %s\n  %s", citation->source,
	          citation->at, citation->file, citation->line, citation->code, line);
}

static void
look_up(const struct citation *citation, void *arg)
{
	struct text text = read_pinned(citation->file);

	(void)arg;
	cr_expect_leq(citation->line, text.count, "%s:%zu: %s has no line %zu", citation->source,
	              citation->at, citation->file, citation->line);
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

	if (getenv("EGG") == NULL) /* Criterion keeps to itself what it skips */
		fprintf(stderr, "EGG is not set: the cited lines of egg are not looked up\n");
	skip_without_egg();
	each_source(".", ".c", look_up_all, &count);
	cr_assert_gt(count, 2 * BRANCHES);
}

/* ---- divergences: a mark, a row, a test ----------------------------------------------- */

struct divergences {
	bool marked[DIVERGENCES_MOST]; /* in a comment of a source */
	char *row[DIVERGENCES_MOST];   /* in docs/divergences.md */
	struct text page;
};

static struct divergences divergences;

/* `D12`, not within a word; its number, or 0. */
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
	cr_assert_lt(number, DIVERGENCES_MOST, "%s", line);
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
			                   "%s:%zu says D%zu: docs/divergences.md does not", name,
			                   at, number);
		}
	free_text(&text);
}

/* In the core, and in the packages' folders. */
static void
find_all_marks(void)
{
	static const char *const packages[] = {"cluster-client", "egg-schedule", "egg-scripts",
	                                       "redis"};
	char path[1024];
	size_t i;

	each_source(".", ".c", find_marks, NULL);
	for (i = 0; i < sizeof packages / sizeof packages[0]; i++) {
		snprintf(path, sizeof path, "%s/%s", root(), packages[i]);
		if (access(path, F_OK) == 0)
			each_source(packages[i], ".c", find_marks, NULL);
	}
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
		cr_expect_not_null(divergences.row[number], "D%zu has no row", number);
	free_text(&divergences.page);
}

Test(citations, each_divergence_is_marked_in_the_source)
{
	size_t number;

	read_divergences();
	find_all_marks();
	for (number = 1; number < DIVERGENCES_MOST; number++)
		cr_expect(divergences.marked[number] || divergences.row[number] == NULL,
		          "no .c file says D%zu", number);
	free_text(&divergences.page);
}

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

/* `suite/name` is defined in test/. */
static void
check_test_exists(size_t number, const char *name)
{
	struct wanted wanted = {.found = false};
	const char *slash = strchr(name, '/');

	cr_expect_not_null(slash, "D%zu: `%s` is not suite/test", number, name);
	if (slash == NULL)
		return;
	snprintf(wanted.start, sizeof wanted.start, "Test(%.*s, %s", (int)(slash - name), name,
	         slash + 1);
	each_source("test", ".c", look_for_test, &wanted);
	cr_expect(wanted.found, "D%zu: there is no %s)", number, wanted.start);
}

/* The last column: one or more `suite/test`. Returns how many. */
static size_t
check_row_names_tests(size_t number)
{
	char row[4096], *last, *name, *end;
	size_t names = 0;

	snprintf(row, sizeof row, "%s", divergences.row[number]);
	last = strrchr(row, '|');
	cr_assert_eq(last[1 + strspn(last + 1, " ")], '\0', "D%zu: the row has no end", number);
	*last = '\0';
	last = strrchr(row, '|');
	for (name = strchr(last, '`'); name != NULL; name = strchr(end + 1, '`')) {
		end = strchr(++name, '`');
		cr_assert_not_null(end, "D%zu: a backquote is alone", number);
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
	cr_expect_str_empty(without, "these name no test:%s", without);
	free_text(&divergences.page);
}
