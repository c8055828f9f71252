/*
 * The command line. One table holds all options; --help is made from it, too.
 *
 * egg: egg-scripts/lib/command.js
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "scripts.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The commands, as bits: each option says which commands take it. */
enum { START = 1, STOP = 2, STATUS = 4, RELOAD = 8, ALL = 15 };

enum kind { FLAG, NUMBER, TEXT };

#define FIELD(name) offsetof(struct command, name)

static const struct option {
	const char *name, *value; /* value: its name in --help */
	size_t field;             /* of struct command */
	enum kind kind;
	int commands, least, most;
	const char *help;
} table[] = {
	{"workers", "N", FIELD(options.workers), NUMBER, START, 1, CLUTCH_WORKERS_MAX,
         "app workers [EGG_WORKERS, or the number of processors online]"},
	{"port", "P", FIELD(options.port), NUMBER, START, 0, 65535,
         "the shared port, 0 is any free one [PORT, or 7001]"},
	{"host", "H", FIELD(options.host), TEXT, START, 0, 0,
         "an address, localhost, or a socket's path [HOST, or 127.0.0.1]"},
	{"env", "E", FIELD(options.env), TEXT, START, 0, 0,
         "local, unittest: no worker is replaced [EGG_SERVER_ENV, or prod]"},
	{"daemon", NULL, FIELD(daemon), FLAG, START, 0, 0, "run in the background"},
	{"stdout", "FILE", FIELD(standard_output), TEXT, START, 0, 0,
         "of the daemon [~/logs/NAME-stdout.log, NAME as the pid file]"},
	{"stderr", "FILE", FIELD(standard_error), TEXT, START, 0, 0,
         "of the daemon [~/logs/NAME-stderr.log]"},
	{"end-with-parent", NULL, FIELD(options.end_with_parent), FLAG, START, 0, 0,
         "the cluster stops when the launcher is gone"},
	{"json", NULL, FIELD(json), FLAG, STATUS, 0, 0, "print it as it is: one JSON object"},
	{"pid-file", "FILE", FIELD(options.pid_file), TEXT, ALL, 0, 0,
         "says which cluster [~/run/NAME.pid]"},
	{"timeout", "S", FIELD(timeout), NUMBER, ALL, 1, 86400,
         "seconds; stop: then SIGKILL [daemon, reload: 300; status: 5]"},
};

enum { OPTIONS = sizeof table / sizeof table[0] };

static const struct {
	const char *name;
	int bit;
	const char *help;
} commands[] = {
	{"start", START, "run the cluster"},
	{"stop", STOP, "end it, and wait until no process is left"},
	{"status", STATUS, "print what the master knows; exit 3 if it is not running"},
	{"reload", RELOAD, "replace the app workers, one after the other"},
};

enum { COMMANDS = sizeof commands / sizeof commands[0] };

/* ---- lines and paths -------------------------------------------------------- */

/* A word of the command line, or a file's name, may hold any byte: a control character becomes
 * a question mark, so that the line is one line, and a terminal obeys nothing in it. */
static void
print(FILE *file, const struct command *command, const char *format, va_list arguments)
{
	char line[1024], *at;

	vsnprintf(line, sizeof line, format, arguments);
	for (at = line; *at != '\0'; at++)
		if (iscntrl((unsigned char)*at))
			*at = '?';
	fprintf(file, "%s: %s\n", command->options.name, line);
	fflush(file);
}

void
scripts_say(const struct command *command, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	print(stdout, command, format, arguments);
	va_end(arguments);
}

void
scripts_complain(const struct command *command, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	print(stderr, command, format, arguments);
	va_end(arguments);
}

char *
scripts_home_file(const struct command *command, const char *folder, const char *end)
{
	const char *home = getenv("HOME"), *name = command->options.name, *slash;
	size_t length = strlen(name), size;
	char *path;

	if (home == NULL || home[0] == '\0') {
		scripts_complain(command,
		                 "HOME is not set: give --pid-file, and for a daemon --stdout "
		                 "and --stderr");
		return NULL;
	}
	if (command->options.pid_file != NULL) {
		slash = strrchr(command->options.pid_file, '/');
		name = slash != NULL ? slash + 1 : command->options.pid_file;
		length = strlen(name);
		length -= length > 4 && strcmp(name + length - 4, ".pid") == 0 ? 4 : 0;
	}
	size = strlen(home) + strlen(folder) + length + strlen(end) + 3;
	path = malloc(size);
	if (path == NULL)
		scripts_complain(command, "no memory left");
	else
		snprintf(path, size, "%s/%s/%.*s%s", home, folder, (int)length, name, end);
	return path;
}

/* ---- --help ---------------------------------------------------------------- */

static void
print_help(const char *name)
{
	char left[32];
	size_t i;

	printf("usage: %s [start | stop | status | reload] [options]\n\n", name);
	for (i = 0; i < COMMANDS; i++)
		printf("  %-20s %s\n", commands[i].name, commands[i].help);
	printf("\nWithout a command it runs in the foreground, without a pid file.\n");
	for (i = 0; i < OPTIONS; i++) {
		if (i == 0 || table[i].commands != table[i - 1].commands)
			printf("\n%s:\n", table[i].commands == ALL      ? "all"
			                  : table[i].commands == STATUS ? "status"
			                                                : "start");
		snprintf(left, sizeof left, "--%s%s%s", table[i].name,
		         table[i].value != NULL ? "=" : "",
		         table[i].value != NULL ? table[i].value : "");
		printf("  %-20s %s\n", left, table[i].help);
	}
	printf("\n  %-20s\n  %-20s\n", "--help, -h, help", "--version");
}

static void
print_version(const struct options *options)
{
	printf("%s%s%s (clutch %s)\n", options->name, options->version != NULL ? " " : "",
	       options->version != NULL ? options->version : "", clutch_version());
}

/* ---- the command line ------------------------------------------------------ */

/* One line about a wrong word. Returns EXIT_USAGE. */
static int
refuse(const struct command *command, const char *format, ...)
{
	char line[512];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(line, sizeof line, format, arguments);
	va_end(arguments);
	scripts_complain(command, "%s (see %s --help)", line, command->options.name);
	return EXIT_USAGE;
}

static bool
is_address(const char *host)
{
	struct in6_addr any;

	return host[0] == '/' || strcmp(host, "localhost") == 0 ||
	       inet_pton(AF_INET, host, &any) == 1 || inet_pton(AF_INET6, host, &any) == 1;
}

static void *
field(struct command *command, const struct option *option)
{
	return (char *)command + option->field;
}

static int
set_number(struct command *command, const struct option *option, const char *value)
{
	int *number = field(command, option);
	char *end;
	long wanted;

	errno = 0;
	wanted = strtol(value, &end, 10);
	if (!isdigit((unsigned char)value[0]) || errno != 0 || *end != '\0' ||
	    wanted < option->least || wanted > option->most)
		return refuse(command, "--%s=%s: give a number from %d to %d", option->name, value,
		              option->least, option->most);
	*number = (int)wanted;
	if (number == &command->options.port && wanted == 0)
		*number = -1; /* its name in struct options */
	return 0;
}

static int
set_text(struct command *command, const struct option *option, const char *value)
{
	const char **text = field(command, option);

	if (value[0] == '\0')
		return refuse(command, "--%s wants a value", option->name);
	if (text == &command->options.host && !is_address(value))
		return refuse(command, "--host=%s: give a numeric address, localhost or a path",
		              value);
	*text = value;
	return 0;
}

static int
set_flag(struct command *command, const struct option *option)
{
	bool *flag = field(command, option);

	*flag = true;
	return 0;
}

/* "--name", "--name=value", or "--name" and "value". Returns how many words it was, or 0
 * if it is refused. */
static int
parse_option(struct command *command, char *const *words, bool given[OPTIONS])
{
	const char *name = words[0] + 2, *equals = strchr(name, '=');
	size_t length = equals != NULL ? (size_t)(equals - name) : strlen(name), i = 0;
	const char *value = equals != NULL ? equals + 1 : words[1];
	int refused;

	while (i < OPTIONS &&
	       (strncmp(table[i].name, name, length) != 0 || table[i].name[length] != '\0'))
		i++;
	if (strncmp(words[0], "--", 2) != 0 || i == OPTIONS)
		refused = refuse(command, "unknown option %s", words[0]);
	else if (table[i].kind == FLAG && equals != NULL)
		refused = refuse(command, "--%s takes no value", table[i].name);
	else if (table[i].kind == FLAG)
		refused = set_flag(command, &table[i]);
	else if (value == NULL)
		refused = refuse(command, "--%s wants a value", table[i].name);
	else
		refused = table[i].kind == NUMBER ? set_number(command, &table[i], value)
		                                  : set_text(command, &table[i], value);
	if (refused)
		return 0;
	given[i] = true;
	return table[i].kind != FLAG && equals == NULL ? 2 : 1;
}

/* Its number in the table of commands, or -1. */
static int
find_command(const char *word)
{
	int i;

	for (i = 0; i < COMMANDS; i++)
		if (strcmp(commands[i].name, word) == 0)
			return i;
	return -1;
}

/* Does the command take the options that were given? Otherwise complain. */
static int
check_given(const struct command *command, int chosen, const bool given[OPTIONS])
{
	int bit = chosen == -1 ? START : commands[chosen].bit;
	size_t i;

	for (i = 0; i < OPTIONS; i++)
		if (given[i] && (table[i].commands & bit) == 0)
			return refuse(command, "%s takes no --%s",
			              chosen == -1 ? "start" : commands[chosen].name,
			              table[i].name);
	if (command->daemon && command->options.end_with_parent)
		return refuse(command, "--daemon has no parent for --end-with-parent");
	if (!command->daemon && (command->standard_output || command->standard_error))
		return refuse(command, "--stdout and --stderr are a daemon's: add --daemon");
	return 0;
}

/* Stores the number of the command, -1 if none is given. Options end at "--". */
static int
parse(struct command *command, char *const *words, int *chosen)
{
	bool given[OPTIONS] = {false}, ended = false;
	int count;

	*chosen = -1;
	for (; *words != NULL; words += count) {
		count = 1;
		if (!ended && strcmp(*words, "--") == 0) {
			ended = true;
		} else if (!ended && (*words)[0] == '-') {
			count = parse_option(command, words, given);
			if (count == 0)
				return EXIT_USAGE;
		} else if (*chosen != -1) {
			return refuse(command, "one command is enough, %s is too much", *words);
		} else if ((*chosen = find_command(*words)) == -1) {
			return refuse(command, "unknown command %s", *words);
		}
	}
	return check_given(command, *chosen, given);
}

/* Does the word stand anywhere before "--"? */
static bool
asks_for(char *const *words, const char *wanted)
{
	while (*words != NULL && strcmp(*words, "--") != 0 && strcmp(*words, wanted) != 0)
		words++;
	return *words != NULL && strcmp(*words, wanted) == 0;
}

static bool
asks_for_help(char *const *words)
{
	return asks_for(words, "--help") || asks_for(words, "-h") ||
	       (*words != NULL && strcmp(*words, "help") == 0);
}

/* ---- egg_scripts ------------------------------------------------------------- */

/* Open descriptors 0, 1 and 2 where they are closed. Otherwise a pid file or a channel
 * would get such a number, and with it every line that is printed. */
static void
fill_standard_descriptors(void)
{
	int descriptor;

	do
		descriptor = open("/dev/null", O_RDWR);
	while (descriptor >= 0 && descriptor < 3);
	if (descriptor >= 3)
		close(descriptor);
}

/* PORT=0 means the same as --port=0. */
static void
take_environment(struct options *options)
{
	const char *port = getenv("PORT");

	if (options->port == 0 && port != NULL && strcmp(port, "0") == 0)
		options->port = -1;
}

static int
run(const struct command *command, int bit)
{
	switch (bit) {
	case STOP:
		return scripts_stop(command);
	case STATUS:
		return scripts_status(command);
	case RELOAD:
		return scripts_reload(command);
	default:
		return scripts_start(command);
	}
}

int
egg_scripts(int argc, char *const argv[], const struct options *options)
{
	struct command command = {.options = *options};
	const char *slash = argc > 0 ? strrchr(argv[0], '/') : NULL;
	char *pid_file = NULL;
	int chosen, result;

	fill_standard_descriptors();
	if (command.options.name == NULL)
		command.options.name = slash != NULL ? slash + 1 : argc > 0 ? argv[0] : "egg";
	argv += argc > 0;
	if (asks_for_help(argv)) {
		print_help(command.options.name);
		return 0;
	}
	if (asks_for(argv, "--version")) {
		print_version(&command.options);
		return 0;
	}
	result = parse(&command, argv, &chosen);
	if (result != 0)
		return result;
	if (command.options.pid_file == NULL && (chosen != -1 || command.daemon)) {
		pid_file = scripts_home_file(&command, "run", ".pid");
		if (pid_file == NULL)
			return 1;
		command.options.pid_file = pid_file;
	}
	take_environment(&command.options);
	result = run(&command, chosen == -1 ? START : commands[chosen].bit);
	free(pid_file);
	return result;
}
