/*
 * The environment of start_cluster, and an old pid file. A wrong value is named in one line, and
 * nothing starts; a file that does not contain a pid is left as it is.
 *
 * An input has lines NAME=value, and pid=text with the content of the pid file. No cluster
 * starts here: if all values are right, the pid file is a device, which is refused.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "fuzz.h"
#include "messenger.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <limits.h>
#include <strings.h>
#include <sys/un.h>

static const struct variable {
	const char *name;
	long most;
} variables[] = {
	{"EGG_WORKERS", CLUTCH_WORKERS_MAX},
	{"PORT", 65535},
	{"EGG_MASTER_CLOSE_TIMEOUT", INT_MAX},
	{"EGG_APP_CLOSE_TIMEOUT", INT_MAX},
	{"EGG_AGENT_CLOSE_TIMEOUT", INT_MAX},
	{"EGG_SERVER_ENV", 0},
	{"CLUTCH_LOG", 0},
	{"HOST", 0},
};

enum { VARIABLES = sizeof variables / sizeof *variables, NUMBERS = 5 };

static char path[64];

/* ---- the model ------------------------------------------------------------------- */

/* A number from 1 to `most`, perhaps with blanks and a + in front. */
static bool
is_number(const char *text, long most)
{
	long value = 0;

	while (isspace((unsigned char)*text))
		text++;
	text += *text == '+';
	if (*text == '\0')
		return false;
	for (; *text != '\0'; text++) {
		if (!isdigit((unsigned char)*text))
			return false;
		value = value <= most ? 10 * value + (*text - '0') : value;
	}
	return value >= 1 && value <= most;
}

static bool
is_host(const char *host)
{
	struct in6_addr any;
	size_t i;

	for (i = 0; host[0] == '/' && host[i] != '\0'; i++)
		if ((unsigned char)host[i] < ' ' || strchr("\"\\", host[i]) != NULL)
			return false;
	return (host[0] == '/' && i < sizeof((struct sockaddr_un *)0)->sun_path) ||
	       strcmp(host, "localhost") == 0 || inet_pton(AF_INET, host, &any) == 1 ||
	       inet_pton(AF_INET6, host, &any) == 1;
}

/* The word that the line must have. */
static const char *
model_fault(bool listens)
{
	const char *value = getenv("CLUTCH_LOG");
	size_t i;

	if (value != NULL && strcmp(value, "") != 0 && strcasecmp(value, "info") != 0 &&
	    strcasecmp(value, "warn") != 0 && strcasecmp(value, "error") != 0)
		return "CLUTCH_LOG=";
	for (i = 0; i < NUMBERS; i++) {
		value = getenv(variables[i].name);
		if (value != NULL && value[0] != '\0' && !is_number(value, variables[i].most) &&
		    (i != 1 || !listens))
			return variables[i].name;
	}
	value = getenv("EGG_WORKERS");
	if (value != NULL && atol(value) + 16 > sysconf(_SC_OPEN_MAX))
		return " descriptors, and the limit is ";
	value = getenv("HOST");
	if (listens && value != NULL && value[0] != '\0' && !is_host(value))
		return "HOST=";
	return listens && value != NULL && value[0] != '\0' ? "" : "pid file ";
}

/* ---- one start ----------------------------------------------------------------------- */

static int
on_connection(struct messenger *app, int descriptor, void *arg)
{
	(void)app, (void)descriptor, (void)arg;
	return 0;
}

/* The line names the fault, and is the only one. (HOST may also be an address that this machine
 * does not have.) */
static void
check_start(bool listens, const char *pid_file)
{
	static struct text text;
	struct options options = {.pid_file = pid_file,
	                          .connection = listens ? on_connection : NULL,
	                          .port = listens ? -1 : 0};
	const char *fault = model_fault(listens), *found;
	struct capture capture;
	int result;

	capture_begin(&capture, STDERR_FILENO);
	result = start_cluster(&options);
	capture_end(&capture, &text);
	CHECK(result == 1 && text_has_lines(&text, 1));
	found = strstr(text.bytes, fault);
	CHECK(found != NULL && memchr(text.bytes, '\n', (size_t)(found - text.bytes)) == NULL);
}

static void
check_pid_file(const char *pid)
{
	size_t length = strlen(pid), digits = strspn(pid, "0123456789");
	char after[4096 + 1] = "";
	int file;

	if (digits + (digits > 0 && pid[digits] == '\n') == length && length < 32)
		return; /* a valid pid file, with which the cluster would start */
	file = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	CHECK(file != -1 && write(file, pid, length) == (ssize_t)length);
	check_start(false, path);
	CHECK(pread(file, after, sizeof after - 1, 0) == (ssize_t)length);
	CHECK(strcmp(after, pid) == 0);
	close(file);
	unlink(path);
}

/* ---- the input ------------------------------------------------------------------------- */

/* No path but those of a folder that is not there: no file is made, and none removed. */
static void
set_variable(const char *name, const char *value)
{
	char inside[4096 + 64];

	snprintf(inside, sizeof inside, "/nonexistent%s", value);
	setenv(name, strcmp(name, "HOST") == 0 && value[0] == '/' ? inside : value, 1);
}

static char *
read_lines(char *input)
{
	static char none[] = "";
	char *line, *value, *rest = input, *pid = none;
	size_t i;

	for (i = 0; i < VARIABLES; i++)
		unsetenv(variables[i].name);
	while ((line = strsep(&rest, "\n")) != NULL) {
		value = strchr(line, '=');
		if (value == NULL)
			continue;
		*value++ = '\0';
		for (i = 0; i < VARIABLES; i++)
			if (strcmp(variables[i].name, line) == 0)
				set_variable(line, value);
		pid = strcmp(line, "pid") == 0 ? value : pid;
	}
	return pid;
}

int
LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
	static char copy[4096 + 1];
	char *pid;

	if (size > sizeof copy - 1)
		return 0;
	if (size > 0)
		memcpy(copy, input, size);
	copy[size] = '\0';
	snprintf(path, sizeof path, "/tmp/clutch-fuzz-%ld.pid", (long)getpid());
	pid = read_lines(copy);
	check_start(false, "/dev/null");
	check_start(true, "/dev/null");
	check_pid_file(pid);
	return 0;
}
