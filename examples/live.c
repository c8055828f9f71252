/*
 * A page that shows a cluster alive, with buttons that break it (docs/live.md).
 *
 *	make live
 *	build/examples/live [--port=7001] [--workers=3]
 *
 *	page                   any app              master              parent: this program
 *	  | -- GET /events ----> |                    |                   |
 *	  |                      | -- clutch-status ->|                   |
 *	  | <-- event: status -- | <- clutch-status --|                   |
 *	  |                      | -- live-ask -------|-----------------> |
 *	  | <-- event: log ----- | <------------------|----- live-log --- | reads what all print
 *	  |                      |                    |                   |
 *	  | -- POST /order ----> | -- live-order -----|-----------------> |
 *	  |                      |                    | <- clutch-status -|
 *	  |                      |                    |-- clutch-status ->| kill(2)
 *
 * The parent is the process that signals: it does not die of what the page orders, and it
 * asks the master anew for each order, so that no signal reaches a pid that is not the
 * cluster's. Only a page that has the token of the printed address may order; another page in
 * the same browser has no token.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "live.h"
#include "../messenger.h"
#include "status.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
	WORKERS_MAX = 100, /* so that their status fits into a stream's buffer */
	LINES = 20,        /* of the log that the page shows */
	LINE = 512,        /* bytes of one; the rest is cut */
	ORDERS = 16        /* that wait for the master's answer */
};

int live_workers = 3;

/* ---- parent: the log ------------------------------------------------------------ */

static int logs[2]; /* a pipe: the cluster's stdout and stderr */
static bool log_ended;
static char lines[LINES][LINE];
static unsigned long line_count;

static void CLUTCH_PRINTF(1, 2) take_line(const char *format, ...)
{
	char *line = lines[line_count++ % LINES];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(line, LINE, format, arguments);
	va_end(arguments);
	clutch_print_line(STDOUT_FILENO, "%s", line);
}

static int
on_output(struct messenger *parent, int descriptor, short revents, void *arg)
{
	static char text[4096];
	static size_t length;
	ssize_t n = read(descriptor, text + length, sizeof text - 1 - length);
	char *line = text, *end;

	(void)revents, (void)arg;
	if (n <= 0) {
		log_ended = n == 0 || (errno != EAGAIN && errno != EINTR);
		return log_ended ? messenger_unwatch(parent, descriptor) : 0;
	}
	length += (size_t)n;
	text[length] = '\0';
	for (; (end = strchr(line, '\n')) != NULL; line = end + 1) {
		*end = '\0';
		take_line("%s", line);
	}
	length -= (size_t)(line - text);
	memmove(text, line, length);
	if (length == sizeof text - 1)
		length = 0; /* this is no line of a log */
	return 0;
}

/* Append a line as a string of JSON. */
static char *
put_line(char *at, const char *line)
{
	*at++ = '"';
	for (; *line != '\0'; line++) {
		if (*line == '"' || *line == '\\')
			*at++ = '\\';
		*at++ = *line;
		if ((unsigned char)*line < ' ')
			at[-1] = ' ';
	}
	*at++ = '"';
	return at;
}

/* ---- parent: the orders ---------------------------------------------------------- */

static struct order {
	char what[16];
	long pid;
} orders[ORDERS]; /* the oldest first; for each the master has been asked for the status */

static int order_count;

static long stopped[2 * WORKERS_MAX]; /* pids, by the page */
static int stopped_count;

static bool
is_stopped(long pid)
{
	int i = 0;

	while (i < stopped_count && stopped[i] != pid)
		i++;
	return i < stopped_count;
}

/* The last lines of the log, for the app that feeds a page. A process whose message goes to
 * a full queue is held up until the queue drains, and the parent must not be held up by a
 * stopped process that only the parent can continue. So it sends nothing to that process.
 * And it sends nothing between its question to the master and its signal: the answer shows
 * that the master has read, and held up, nothing of the parent's. */
static int
on_ask(struct messenger *parent, const struct message *message, void *arg)
{
	static char json[LINES * (2 * LINE + 3) + 2 * WORKERS_MAX * 12 + 64];
	unsigned long line = line_count > LINES ? line_count - LINES : 0;
	long pid = atol(message->data);
	char *at = json;
	int i;

	(void)arg;
	if (order_count > 0 || is_stopped(pid))
		return 0;
	at += sprintf(at, "{\"count\":%lu,\"stopped\":[", line_count);
	for (i = 0; i < stopped_count; i++)
		at += sprintf(at, "%s%ld", i > 0 ? "," : "", stopped[i]);
	at += sprintf(at, "],\"lines\":[");
	for (; line < line_count; line++) {
		at = put_line(at, lines[line % LINES]);
		*at++ = line + 1 < line_count ? ',' : ' ';
	}
	memcpy(at, "]}", sizeof "]}");
	messenger_send_to(parent, (pid_t)pid, "live-log", json);
	return 0;
}

static const char *
find_row(const char *status, long pid)
{
	const char *row = status_first_row(status);

	while (row != NULL && status_number(row, "pid") != pid)
		row = status_next_row(row);
	return row;
}

/* Forget a pid, and those that are dead. */
static void
forget_stopped(const char *status, long pid)
{
	int i, kept = 0;

	for (i = 0; i < stopped_count; i++)
		if (stopped[i] != pid && find_row(status, stopped[i]) != NULL)
			stopped[kept++] = stopped[i];
	stopped_count = kept;
}

/* The agent floods an app; the first app that is able to floods the agent. */
static void
order_flood(struct messenger *parent, const char *status, long receiver)
{
	const char *row = status_first_row(status);
	char pid[24];

	while (row != NULL &&
	       (status_is(row, "role", "parent") || !status_is(row, "state", "listening") ||
	        status_number(row, "pid") == receiver ||
	        is_stopped((long)status_number(row, "pid"))))
		row = status_next_row(row);
	snprintf(pid, sizeof pid, "%ld", receiver);
	if (row != NULL)
		messenger_send_to(parent, (pid_t)status_number(row, "pid"), "live-flood", pid);
}

static int
signal_of(const char *what)
{
	if (strcmp(what, "kill") == 0)
		return SIGKILL;
	return strcmp(what, "stop") == 0 ? SIGSTOP : SIGCONT;
}

/* The status is fresh: it was asked for after the order had come. */
static void
obey(struct messenger *parent, const struct order *order, const char *status)
{
	const char *row = find_row(status, order->pid);
	bool is_app = row != NULL && status_is(row, "role", "app");
	char name[16] = "agent";

	if (!is_app && (row == NULL || !status_is(row, "role", "agent"))) {
		take_line("live: pid %ld is no agent or app of this cluster", order->pid);
		return;
	}
	if (is_app)
		snprintf(name, sizeof name, "app %lld", status_number(row, "slot"));
	take_line("live: %s %s, pid %ld", order->what, name, order->pid);
	if (strcmp(order->what, "flood") == 0) {
		order_flood(parent, status, order->pid);
		return;
	}
	kill((pid_t)order->pid, signal_of(order->what));
	forget_stopped(status, order->pid);
	if (strcmp(order->what, "stop") == 0 && stopped_count < 2 * WORKERS_MAX)
		stopped[stopped_count++] = order->pid;
}

static int
on_status(struct messenger *parent, const struct message *message, void *arg)
{
	struct order order = orders[0];

	(void)arg;
	if (order_count == 0)
		return 0;
	memmove(orders, orders + 1, (size_t)--order_count * sizeof orders[0]);
	obey(parent, &order, message->data);
	return 0;
}

static int
on_order(struct messenger *parent, const struct message *message, void *arg)
{
	struct order order = {.what = ""};

	(void)arg;
	sscanf(message->data, "\"%15[a-z] %ld", order.what, &order.pid);
	if (strcmp(order.what, "reload") == 0) {
		take_line("live: reload");
		messenger_send(parent, "reload-worker", NULL, ROLE_MASTER);
	} else if (order_count < ORDERS &&
	           messenger_send(parent, "clutch-status", NULL, ROLE_MASTER) == 0) {
		orders[order_count++] = order;
	}
	return 0;
}

/* ---- parent: start and end --------------------------------------------------------- */

static volatile sig_atomic_t is_told_to_end;

static void
end(int number)
{
	(void)number;
	is_told_to_end = 1;
}

/* The master, and so all that it forks, prints into the pipe. */
static void
in_child(enum role role, void *arg)
{
	(void)arg;
	if (role != ROLE_MASTER)
		return;
	dup2(logs[1], STDOUT_FILENO);
	dup2(logs[1], STDERR_FILENO);
	close(logs[0]);
	close(logs[1]);
}

/* The token stands behind the '#': a browser does not send that part. And this line is not
 * one of those that the page shows. */
static int
on_ready(struct messenger *parent, const struct message *message, void *arg)
{
	(void)parent, (void)arg;
	clutch_print_line(STDOUT_FILENO, "live: open http://127.0.0.1:%lld/#%s (Ctrl-C ends it)",
	                  status_number(message->data, "port"), live_token);
	return 0;
}

/* Keep the numbers from 0 to 2 from the pipe, where one of them is closed. */
static bool
open_logs(void)
{
	int null = open("/dev/null", O_RDWR);

	while (null != -1 && null <= STDERR_FILENO)
		null = open("/dev/null", O_RDWR);
	return null != -1 && close(null) == 0 && pipe(logs) == 0;
}

/* Returns the master's exit status, when all has been printed. */
static int
run(struct messenger *parent, pid_t master)
{
	int64_t deadline;
	int status = 0;

	while (waitpid(master, &status, WNOHANG) == 0) {
		if (is_told_to_end)
			kill(master, SIGTERM);
		is_told_to_end = 0;
		messenger_step(parent, 50);
	}
	for (deadline = clutch_now() + 1000; !log_ended && clutch_now() < deadline;)
		messenger_step(parent, 50);
	messenger_close(parent);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

static int
start(const struct options *options)
{
	struct sigaction action = {.sa_handler = end};
	struct messenger *parent = NULL;
	pid_t master;

	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	if (open_logs() && live_make_token())
		parent = fork_cluster(options, &master);
	if (parent == NULL) {
		clutch_print_line(STDERR_FILENO, "live: %s", strerror(errno));
		return 1;
	}
	close(logs[1]);
	fcntl(logs[0], F_SETFL, O_NONBLOCK);
	if (messenger_once(parent, "egg-ready", on_ready, NULL) == -1 ||
	    messenger_on(parent, "live-ask", on_ask, NULL) == -1 ||
	    messenger_on(parent, "live-order", on_order, NULL) == -1 ||
	    messenger_on(parent, "clutch-status", on_status, NULL) == -1 ||
	    messenger_watch(parent, logs[0], POLLIN, on_output, NULL) == -1)
		kill(master, SIGKILL); /* no memory */
	return run(parent, master);
}

/* "--NAME=NUMBER", with a number up to `most`. */
static bool
is_option(const char *argument, const char *name, int most, int *value)
{
	const char *text = argument + strlen(name);
	size_t digits;

	if (strncmp(argument, name, strlen(name)) != 0)
		return false;
	digits = strspn(text, "0123456789");
	if (digits == 0 || digits > 5 || text[digits] != '\0' || atoi(text) > most)
		return false;
	*value = atoi(text);
	return true;
}

int
main(int argc, char *argv[])
{
	int i = 1, port = 7001;

	while (i < argc && (is_option(argv[i], "--port=", 65535, &port) ||
	                    is_option(argv[i], "--workers=", WORKERS_MAX, &live_workers)))
		i++;
	if (i < argc || live_workers == 0) {
		clutch_print_line(
			STDERR_FILENO,
			"live takes --port=7001 (0: any free one) and --workers=3 (up to %d)",
			WORKERS_MAX);
		return 1;
	}
	return start(&(struct options){.agent = live_agent,
	                               .app = live_app,
	                               .connection = live_connection,
	                               .in_child = in_child,
	                               .name = "live",
	                               .workers = live_workers,
	                               .host = "127.0.0.1",
	                               .port = port > 0 ? port : -1,
	                               .end_with_parent = true});
}
