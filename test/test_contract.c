/*
 * A program that uses clutch sees part one of messenger.h and nothing else, in C and in
 * C++; and a linker sees only the public symbols.
 *
 * The tests run the compilers that are installed: gcc and clang, or else cc. Programs are
 * linked with the $CC and $CFLAGS of $BUILD/libclutch.a. A test that needs something that is
 * missing (a C++ compiler, curses) is skipped with a line.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include <criterion/criterion.h>

#include <dirent.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "compile.h"
#include "harness.h"

enum { NAME = 128, NAMES_MOST = 4096 };

TestSuite(contract, .timeout = 240);

/* ---- compilers --------------------------------------------------------------- */

/* Those commands of a list that are installed. The last one is used only if no other is. */
static const char *const *
those_there(const char *const *names)
{
	static const char *here[8];
	size_t count = 0, i;

	for (i = 0; names[i] != NULL; i++)
		if ((names[i + 1] != NULL || count == 0) && is_there(names[i]))
			here[count++] = names[i];
	here[count] = NULL;
	cr_assert_gt(count, 0, "there is no compiler");
	return here;
}

static const char *const c_compilers[] = {"gcc", "clang", "cc", NULL};
static const char *const cc_compilers[] = {"g++", "clang++", "c++", NULL};

/* The source compiles without a warning, with each C compiler. */
static void
expect_compiles(const char *path)
{
	const char *const *compiler;

	for (compiler = those_there(c_compilers); *compiler != NULL; compiler++)
		cr_expect(run("%s -std=c99 -D_POSIX_C_SOURCE=200809L -Wall -Wextra -Werror "
		              "-Wno-unused-function -I. -c -o %s/object.o %s",
		              *compiler, test_folder(), path),
		          "%s: %s does not compile", *compiler, path);
}

/* ---- part one, and nothing else ------------------------------------------------ */

/* Names that a program may define itself. Many of them were once declared in messenger.h. */
static const char own_names[] =
	"struct process { int own; };\n"
	"struct channel { int own; };\n"
	"struct master_messenger { int own; };\n"
	"struct worker_manager { int own; };\n"
	"struct listener { int own; };\n"
	"struct watch { int own; };\n"
	"struct timer { int own; };\n"
	"struct closer { int own; };\n"
	"struct waiting_handle { int own; };\n"
	"enum peer { PEER_ALIVE, PEER_GONE, PEER_BROKEN };\n"
	"enum process_state { STATE_NONE, STATE_ONLINE, STATE_DEAD };\n"
	"struct frame { int own; };\n"
	"enum { FRAME_LENGTH, FRAME_HEADER, FRAME_MAX };\n"
	"static void trace(const char *text) { (void)text; }\n"
	"static void print_line(int descriptor) { (void)descriptor; }\n"
	"static long clock_now(void) { return 0; }\n"
	"static int trace_on, agent_worker, text_length, limit, starved;\n"
	"static const char *role_name(int role) { return role != 0 ? \"\" : 0; }\n"
	"static int sendmessage(int channel) { return channel; }\n"
	"static int catch_signal(int number) { return number; }\n"
	"static int wake_open(void) { return 0; }\n"
	"static void wake_up(void) { }\n"
	"static void wake_drain(void) { }\n"
	"static void wake_close(void) { }\n"
	"static void graceful_process(void) { }\n"
	"static void graceful_process_start(void) { }\n"
	"static int channel_init(void) { return 0; }\n"
	"static int message_size(void) { return 0; }\n"
	"static int agent_run(void) { return trace_on + agent_worker + text_length; }\n"
	"static int worker_run(void) { return limit + starved; }\n"
	"static int format_text(void) { return 0; }\n";

Test(contract, a_program_may_use_every_name_that_is_not_in_part_one)
{
	expect_compiles(write_source("after.c", "#include \"messenger.h\"\n%s", own_names));
	expect_compiles(write_source("before.c", "%s#include \"messenger.h\"\n", own_names));
}

/* ---- the same, for each name that parts two and three have --------------------- */

struct names {
	char name[NAMES_MOST][NAME];
	size_t count;
};

static bool
has_name(const struct names *names, const char *name)
{
	size_t i;

	for (i = 0; i < names->count; i++)
		if (strcmp(names->name[i], name) == 0)
			return true;
	return false;
}

static void
add_name(struct names *names, const char *name)
{
	if (has_name(names, name))
		return;
	cr_assert_lt(names->count, NAMES_MOST);
	snprintf(names->name[names->count++], NAME, "%s", name);
}

/* The identifiers in a command's output, or (macros) only in its second column. */
static void
read_names(struct names *names, bool macros, const char *command)
{
	static const char letters[] =
		"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789";
	char line[16 * LINE], *rest, *word;
	FILE *output = popen(command, "r");
	size_t length;

	names->count = 0;
	cr_assert_not_null(output);
	while (fgets(line, sizeof line, output) != NULL) {
		rest = macros ? strchr(line, ' ') : line;
		while (rest != NULL && *(word = rest + strcspn(rest, letters)) != '\0') {
			length = strspn(word, letters);
			rest = macros ? NULL : word + length + (word[length] != '\0');
			word[length] = '\0';
			if (strncmp(word, "__", 2) != 0 && strspn(word, "0123456789") == 0)
				add_name(names, word);
		}
	}
	cr_assert_eq(pclose(output), 0, "%s", command);
}

static void
preprocess(struct names *names, bool macros, const char *flags, const char *source)
{
	char command[4 * LINE];

	snprintf(command, sizeof command,
	         "printf '%s' | %s -std=c99 -D_POSIX_C_SOURCE=200809L %s -E %s -I. -x c -", source,
	         environment("CC", "cc"), flags, macros ? "-dM" : "-P");
	read_names(names, macros, command);
}

static bool
is_keyword(const char *name)
{
	static const char *const keywords[] = {
		"auto",    "break",  "case",   "char",     "const",  "continue", "default",
		"do",      "double", "else",   "enum",     "extern", "float",    "for",
		"goto",    "if",     "inline", "int",      "long",   "register", "restrict",
		"return",  "short",  "signed", "sizeof",   "static", "struct",   "switch",
		"typedef", "union",  "void",   "volatile", "while",  "unsigned", "_Bool"};
	size_t i;

	for (i = 0; i < sizeof keywords / sizeof keywords[0]; i++)
		if (strcmp(keywords[i], name) == 0)
			return true;
	return false;
}

static struct names part_one, all_parts, system_names;

/* Define each name as a tag and a constant, which clash with any declaration in the header. */
static void
write_names(FILE *file, const char *header)
{
	size_t i, count = 0;

	fprintf(file, "#include \"%s\"\n", header);
	for (i = 0; i < all_parts.count; i++) {
		if (has_name(&part_one, all_parts.name[i]) || is_keyword(all_parts.name[i]))
			continue;
		fprintf(file, "struct %s { int own; };\nenum { %s };\n", all_parts.name[i],
		        all_parts.name[i]);
		count++;
	}
	cr_assert_gt(count, 50, "the other parts of %s have only %zu names", header, count);
}

static void
check_part_one(const char *header, const char *macro)
{
	char include[LINE], flag[LINE];
	const char *path = write_source("names.c", "");
	FILE *file = fopen(path, "w");

	cr_assert_not_null(file);
	snprintf(include, sizeof include, "#include \"%s\"\\n", header);
	snprintf(flag, sizeof flag, "-D%s", macro);
	preprocess(&part_one, false, "", include);
	preprocess(&all_parts, false, flag, include);
	write_names(file, header);
	cr_assert_eq(fclose(file), 0);
	expect_compiles(path);
}

Test(contract, no_name_of_the_other_parts_is_in_part_one)
{
	check_part_one("messenger.h", "CLUTCH_PRIVATE");
	check_part_one("cluster-client/cluster_client.h", "CLUSTER_CLIENT_PRIVATE");
}

static bool
has_prefix(const char *name, const char *const *prefixes)
{
	size_t length;

	for (; *prefixes != NULL; prefixes++) {
		length = strlen(*prefixes);
		if ((*prefixes)[length - 1] == '_' ? strncmp(name, *prefixes, length) == 0
		                                   : strcmp(name, *prefixes) == 0)
			return true;
	}
	return false;
}

Test(contract, each_macro_of_part_one_has_a_prefix)
{
	static const char *const prefixes[] = {"MESSAGE_", "MESSENGER_", "CHANNEL_", "CLUTCH_",
	                                       NULL};
	size_t i, count = 0;

	preprocess(&system_names, true, "",
	           "#include <poll.h>\\n#include <stdbool.h>\\n#include <stddef.h>\\n"
	           "#include <stdint.h>\\n#include <sys/types.h>\\n");
	preprocess(&part_one, true, "", "#include \"messenger.h\"\\n");
	for (i = 0; i < part_one.count; i++) {
		if (has_name(&system_names, part_one.name[i]))
			continue;
		cr_expect(has_prefix(part_one.name[i], prefixes), "messenger.h defines %s",
		          part_one.name[i]);
		count++;
	}
	cr_assert_gt(count, 10);
}

/* The three numbers of the version, its text and the library's version agree. */
Test(contract, the_version_is_one)
{
	char text[64];

	snprintf(text, sizeof text, "%d.%d.%d", CLUTCH_VERSION_MAJOR, CLUTCH_VERSION_MINOR,
	         CLUTCH_VERSION_PATCH);
	cr_expect_str_eq(text, CLUTCH_VERSION);
	cr_expect_str_eq(text, clutch_version());
}

/* ---- curses --------------------------------------------------------------------- */

/* Names that <curses.h> declares, and that a messenger could also want. */
static const char curses_names[] =
	"typedef struct window WINDOW;\n"
	"extern WINDOW *stdscr;\n"
	"void trace(const unsigned int mask);\n"
	"void wtimeout(WINDOW *window, int delay);\n"
	"int beep(void), echo(void), raw(void), filter(void), flash(void), nl(void);\n"
	"int wclear(WINDOW *window), werase(WINDOW *window), wrefresh(WINDOW *window);\n"
	"int wmove(WINDOW *window, int y, int x), wdelch(WINDOW *window);\n"
	"#define ERR (-1)\n"
	"#define OK (0)\n"
	"#define TRUE 1\n"
	"#define FALSE 0\n"
	"#define timeout(delay) wtimeout(stdscr, (delay))\n"
	"#define clear() wclear(stdscr)\n"
	"#define erase() werase(stdscr)\n"
	"#define refresh() wrefresh(stdscr)\n"
	"#define move(y, x) wmove(stdscr, (y), (x))\n"
	"#define delch() wdelch(stdscr)\n";

Test(contract, the_header_goes_with_the_names_of_curses)
{
	expect_compiles(write_source("a.c", "%s#include \"messenger.h\"\n", curses_names));
	expect_compiles(write_source("b.c", "#include \"messenger.h\"\n%s", curses_names));
}

Test(contract, the_header_goes_with_curses)
{
	char command[LINE];

	snprintf(command, sizeof command,
	         "printf '#include <curses.h>\\n' | %s -E -x c - >/dev/null 2>&1",
	         environment("CC", "cc"));
	if (system(command) != 0) {
		fprintf(stderr, "there is no <curses.h>: skipped\n");
		cr_skip_test("no <curses.h>");
	}
	expect_compiles(write_source("a.c", "#include <curses.h>\n#include \"messenger.h\"\n"
	                                    "int main(void) { timeout(0); return OK; }\n"));
	expect_compiles(write_source("b.c", "#include \"messenger.h\"\n#include <curses.h>\n"
	                                    "int main(void) { timeout(0); return OK; }\n"));
}

/* ---- the channel, for the program that asks for it ---------------------------------- */

/* A program with two ends of a channel. The part that the roles share is not declared. */
static const char channel_program[] =
	"#include \"messenger.h\"\n"
	"#define CLUTCH_CHANNEL\n"
	"#include \"messenger.h\"\n"
	"#include <string.h>\n"
	"struct process { int own; };\n"
	"struct master_messenger { int own; };\n"
	"enum process_state { STATE_NONE, STATE_DEAD };\n"
	"int main(void)\n"
	"{\n"
	"	struct message message = {.action = \"a\", .data = \"[1]\", .data_length = 3, "
	".handle = "
	"-1};\n"
	"	struct channel ends[2];\n"
	"	int pair[2];\n"
	"	channel_init(&ends[0], 0);\n"
	"	channel_init(&ends[1], 0);\n"
	"	if (channel_pair(pair) == -1 || channel_attach(&ends[0], pair[0]) == -1 ||\n"
	"	    channel_attach(&ends[1], pair[1]) == -1 || sendmessage(&ends[0], &message) == "
	"-1 ||\n"
	"	    channel_flush(&ends[0]) != PEER_ALIVE || channel_read(&ends[1]) != PEER_ALIVE "
	"||\n"
	"	    channel_next(&ends[1], &message) != 1 || strcmp(message.data, \"[1]\") != 0)\n"
	"		return 1;\n"
	"	channel_close(&ends[0]);\n"
	"	channel_close(&ends[1]);\n"
	"	return 0;\n"
	"}\n";

Test(contract, the_channel_comes_with_a_second_include)
{
	expect_compiles(write_source("channel.c", "%s", channel_program));
}

Test(contract, the_limits_are_those_that_the_readme_names)
{
	static const struct {
		const char *before;
		long value;
		const char *after;
	} rows[] = {
		{"| data of a message | ", MESSAGE_DATA_MAX >> 20, " MiB (`MESSAGE_DATA_MAX`)"},
		{"| an action | ", MESSAGE_ACTION_MAX, " bytes |"},
		{"queue | ", CHANNEL_QUEUE_MAX >> 20, " MiB (`CHANNEL_QUEUE_MAX`)"},
		{" and ", CHANNEL_HANDLES_MAX, " descriptors (`CHANNEL_HANDLES_MAX`)"},
		{"receiver | ", CHANNEL_HIGH_WATER >> 20, " MiB (`CHANNEL_HIGH_WATER`)"},
		{"(`CHANNEL_READ_SIZE`, ", CHANNEL_READ_SIZE >> 10, " KiB)"},
		{"below ", CHANNEL_LOW_WATER >> 10, " KiB (`CHANNEL_LOW_WATER`)"},
		{"after ", CLUTCH_STUCK_TIMEOUT / 1000, " s (`options.stuck_timeout`)"},
		{"for ", CLUTCH_GRACEFUL_TIMEOUT / 1000, " s (`options.graceful_timeout`)"},
	};
	static char readme[256 * 1024];
	char wanted[128];
	FILE *file = fopen("README.md", "r");
	size_t i;

	cr_assert_not_null(file);
	cr_assert_gt(fread(readme, 1, sizeof readme - 1, file), 0);
	fclose(file);
	for (i = 0; i < sizeof rows / sizeof rows[0]; i++) {
		snprintf(wanted, sizeof wanted, "%s%ld%s", rows[i].before, rows[i].value,
		         rows[i].after);
		cr_assert_not_null(strstr(readme, wanted), "the README does not say: %s", wanted);
	}
}

/* README: two processes that only want to talk need sendmessage.c alone. */
Test(contract, the_channel_needs_sendmessage_c_alone)
{
	const char *path = write_source("channel.c", "%s", channel_program);
	const char *const *compiler;

	for (compiler = those_there(c_compilers); *compiler != NULL; compiler++)
		cr_expect(run("%s -std=c99 -D_POSIX_C_SOURCE=200809L -I. -o %s/channel %s "
		              "sendmessage.c && %s/channel",
		              *compiler, test_folder(), path, test_folder()),
		          "%s", *compiler);
}

/* ---- C++ ------------------------------------------------------------------------ */

Test(contract, the_headers_compile_as_cplusplus)
{
	static const char *const standards[] = {"c++98", "c++11", "c++17", "c++20"};
	const char *path, *const *compiler;
	size_t i;

	skip_without_cplusplus("c++");
	path = write_source("headers.cc", "#include \"cluster-client/cluster_client.h\"\n"
	                                  "#include \"egg-schedule/egg_schedule.h\"\n"
	                                  "#include \"egg-scripts/egg_scripts.h\"\n"
	                                  "#include \"redis/bridge.h\"\n"
	                                  "#include \"redis/redis.h\"\n");
	for (compiler = those_there(cc_compilers); *compiler != NULL; compiler++)
		for (i = 0; i < sizeof standards / sizeof standards[0]; i++) {
			cr_expect(run("%s -std=%s -Wall -Wextra -Wno-missing-field-initializers "
			              "-pedantic -Werror -I. -c -o %s/a.o test/contract/cluster.cc",
			              *compiler, standards[i], test_folder()),
			          "%s", *compiler);
			cr_expect(run("%s -std=%s -Wall -Wextra -pedantic -Werror -I. -c -o %s/a.o "
			              "%s",
			              *compiler, standards[i], test_folder(), path),
			          "%s", *compiler);
		}
}

Test(contract, a_program_in_cplusplus_runs_a_cluster)
{
	skip_without_cplusplus(cplusplus());
	clear_environment();
	test_leash();
	cr_assert(run("%s %s -I. -o %s/cluster test/contract/cluster.cc %s/libclutch.a %s",
	              cplusplus(), environment("CFLAGS", ""), test_folder(),
	              environment("BUILD", "build"), environment("LDFLAGS", "")));
	cr_expect(run("%s/cluster", test_folder()));
}

/* ---- the symbols that a linker sees ----------------------------------------------- */

/* The sources of a folder, and their symbols: prefixes (with "_" at the end) or whole names. */
struct owner {
	const char *folder;
	const char *prefixes[12];
};

static const struct owner owners[] = {
	{".",
         {"messenger_", "message_", "channel_", "process_", "master_", "agent_", "worker_",
          "clutch_", "sendmessage", "start_cluster", "fork_cluster"}},
	{"cluster-client", {"cluster_"}},
	{"egg-schedule", {"egg_schedule_", "schedule_", "cron_"}},
	{"egg-scripts", {"egg_scripts", "egg_scripts_", "scripts_"}},
	{"redis", {"redis_", "resp_", "bridge_"}},
};

/* nm -P prints "name type value size". A name with two underscores belongs to the compiler. */
static size_t
check_symbols(const struct owner *owner, const char *source)
{
	char command[LINE], line[LINE], name[LINE], type;
	FILE *output;
	size_t count = 0;

	snprintf(command, sizeof command, "nm -P -g %s/%s/%.*s.o", environment("BUILD", "build"),
	         owner->folder, (int)strlen(source) - 2, source);
	output = popen(command, "r");
	cr_assert_not_null(output);
	while (fgets(line, sizeof line, output) != NULL) {
		if (sscanf(line, "%511s %c", name, &type) != 2 || type == 'U' || type == 'w' ||
		    strncmp(name, "__", 2) == 0)
			continue;
		cr_expect(has_prefix(name, owner->prefixes),
		          "%s/%s: %s has no prefix of its folder's", owner->folder, source, name);
		count++;
	}
	cr_assert_eq(pclose(output), 0, "%s", command);
	return count;
}

Test(contract, each_symbol_begins_with_its_type_or_package)
{
	const struct dirent *entry;
	size_t i, length, count;
	DIR *files;

	for (i = 0; i < sizeof owners / sizeof owners[0]; i++) {
		files = opendir(owners[i].folder);
		cr_assert_not_null(files, "%s", owners[i].folder);
		count = 0;
		while ((entry = readdir(files)) != NULL) {
			length = strlen(entry->d_name);
			if (length > 2 && strcmp(entry->d_name + length - 2, ".c") == 0)
				count += check_symbols(&owners[i], entry->d_name);
		}
		closedir(files);
		cr_expect_gt(count, 0, "%s has no symbol", owners[i].folder);
	}
}
