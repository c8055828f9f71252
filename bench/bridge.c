/*
 * What the bridge costs: two clusters on this machine, one app each, one Redis.
 *
 *	make bench-bridge                     starts a Redis of its own
 *	build/bench/bridge unix:///path       uses yours
 *
 *	bridge   A: app -> agent -> Redis -> agent -> app :B; a round trip is twice the way
 *	floor    process -> Redis -> process, with the same payload over the same socket:
 *	         nothing but write(2) and read(2) of PUBLISH, or of XADD and XREADGROUP, XACK
 *
 * Floor and bridge take turns; the table has the medians of all rounds.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "../redis/bridge.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { TRIPS = 2000, FLOW = 50000, WINDOW = 500, ROUNDS = 7, BATCH = 128 };

static const char payload[] =
	"\"0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567"
	"89012345\"";

typedef int (*sender)(struct bridge *bridge, const char *cluster, const char *action,
                      const char *data);

static const struct kind {
	const char *name;
	sender send;
	const char *ping, *pong, *flow, *flowed;
} kinds[] = {
	{"publish", bridge_publish, "ping", "pong", "flow", "flowed"},
	{"send", bridge_send, "r-ping", "r-pong", "r-flow", "r-flowed"},
};

static double
seconds(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

/* ---- B: the echo ------------------------------------------------------------------ */

static bool heard_of_a;
static size_t counted;

static int
say_hello(struct messenger *app, void *arg)
{
	(void)app;
	return heard_of_a ? 0 : bridge_send(arg, NULL, "hello", NULL);
}

static int
echo(struct bridge *bridge, const struct bridge_message *message, void *arg)
{
	size_t i;

	(void)arg;
	for (i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
		if (strcmp(message->action, kinds[i].ping) == 0) {
			heard_of_a = true;
			return kinds[i].send(bridge, "A", kinds[i].pong, message->data);
		}
		if (strcmp(message->action, kinds[i].flow) == 0 && ++counted % WINDOW == 0)
			return bridge_publish(bridge, "A", kinds[i].flowed, NULL);
	}
	return 0;
}

/* ---- A: the clock ----------------------------------------------------------------- */

static struct {
	struct messenger *app;
	struct bridge *bridge;
	size_t kind, trips, sent, flowed;
	double begin, trip[TRIPS];
} clocks;

static int
compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

/* Two windows are on their way: publish/subscribe has nothing that would hold it back. */
static int
flow(struct messenger *app, void *arg)
{
	const struct kind *kind = &kinds[clocks.kind];

	(void)app, (void)arg;
	while (clocks.sent < FLOW && clocks.sent < clocks.flowed + (size_t)2 * WINDOW) {
		if (kind->send(clocks.bridge, "B", kind->flow, payload) == -1)
			return messenger_set_timeout(clocks.app, 1, flow, NULL) == -1;
		clocks.sent++;
	}
	return 0;
}

static int
trip(void)
{
	clocks.begin = seconds();
	return kinds[clocks.kind].send(clocks.bridge, "B", kinds[clocks.kind].ping, payload);
}

/* The parent's order: "trips KIND" or "flow KIND". */
static int
on_order(struct messenger *app, const struct message *message, void *arg)
{
	bool trips = strcmp(message->action, "trips") == 0;

	(void)app, (void)arg;
	clocks.kind = (size_t)atoi(message->data);
	clocks.trips = clocks.sent = clocks.flowed = 0;
	clocks.begin = seconds();
	return trips ? trip() : flow(clocks.app, NULL);
}

static int
tell(const char *format, double first, double second)
{
	char line[64];

	snprintf(line, sizeof line, format, first, second);
	return messenger_send(clocks.app, "result", line, ROLE_PARENT);
}

static int
on_pong(void)
{
	clocks.trip[clocks.trips++] = seconds() - clocks.begin;
	if (clocks.trips < TRIPS)
		return trip();
	qsort(clocks.trip, TRIPS, sizeof clocks.trip[0], compare);
	return tell("%.0f %.0f", 1e6 * clocks.trip[TRIPS / 2], 1e6 * clocks.trip[TRIPS / 100 * 99]);
}

static int
on_flowed(void)
{
	clocks.flowed += WINDOW;
	return clocks.flowed < FLOW ? flow(clocks.app, NULL)
	                            : tell("%.0f %.0f", FLOW / (seconds() - clocks.begin), 0);
}

static int
measure(struct bridge *bridge, const struct bridge_message *message, void *arg)
{
	const struct kind *kind = &kinds[clocks.kind];

	(void)bridge, (void)arg;
	if (strcmp(message->action, "hello") == 0 && clocks.begin == 0)
		return tell("%.0f %.0f", 0, 0);
	if (strcmp(message->action, kind->pong) == 0)
		return on_pong();
	return strcmp(message->action, kind->flowed) == 0 ? on_flowed() : 0;
}

/* ---- both ------------------------------------------------------------------------- */

static int
agent(struct messenger *messenger, void *arg)
{
	return bridge_start(messenger, arg) == NULL;
}

static int
app(struct messenger *messenger, void *arg)
{
	const struct bridge_options *options = arg;
	struct bridge *bridge = bridge_start(messenger, options);

	if (bridge == NULL)
		return -1;
	clocks.app = messenger;
	clocks.bridge = bridge;
	messenger_on(messenger, "trips", on_order, NULL);
	messenger_on(messenger, "flow", on_order, NULL);
	if (strcmp(options->cluster, "A") == 0)
		return bridge_on(bridge, NULL, measure, NULL);
	messenger_set_interval(messenger, 100, say_hello, bridge);
	return bridge_on(bridge, NULL, echo, NULL);
}

/* ---- the floor -------------------------------------------------------------------- */

/* A command's bytes: its words stand with blanks between them. */
static size_t
encode(char *to, const char *words)
{
	size_t count = 1, length, at;
	const char *word;

	for (word = words; (word = strchr(word, ' ')) != NULL; word++)
		count++;
	at = (size_t)sprintf(to, "*%zu\r\n", count);
	for (word = words; count-- > 0; word += length + 1) {
		length = strcspn(word, " ");
		at += (size_t)sprintf(to + at, "$%zu\r\n%.*s\r\n", length, (int)length, word);
	}
	return at;
}

static void
fail(const char *where)
{
	perror(where);
	exit(1);
}

static void
write_all(int descriptor, const char *bytes, size_t length)
{
	ssize_t written;

	for (; length > 0; bytes += written, length -= (size_t)written)
		if ((written = write(descriptor, bytes, length)) <= 0)
			fail("write");
}

/* Read what is there, behind `used` bytes, and return how many bytes there are. */
static size_t
read_more(int descriptor, char *bytes, size_t size, size_t used)
{
	ssize_t length = read(descriptor, bytes + used, size - used - 1);

	if (length <= 0)
		fail("read");
	bytes[used + (size_t)length] = '\0';
	return used + (size_t)length;
}

static void
command(int descriptor, const char *words)
{
	char bytes[512];

	write_all(descriptor, bytes, encode(bytes, words));
}

static int
connect_to(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int descriptor = socket(AF_UNIX, SOCK_STREAM, 0);

	snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
	if (connect(descriptor, (struct sockaddr *)&address, sizeof address) == -1)
		fail(path);
	return descriptor;
}

/* Read FLOW published messages. */
static void
read_published(int descriptor)
{
	static char bytes[256 * 1024];
	size_t left = FLOW * strlen("*3\r\n$7\r\nmessage\r\n$5\r\nfloor\r\n$98\r\n\r\n") +
	              FLOW * (sizeof payload - 1);

	while (left > 0)
		left -= read_more(descriptor, bytes, sizeof bytes, 0);
}

/* The ids of one reply to XREADGROUP into an XACK, and how many they are; 0: it is torn. An
 * entry is "*2", "$15", ID, "*2", "$1", "m", "$98", payload; before the first are 5 lines. */
static size_t
take_ids(char *ack, size_t *length, const char *at)
{
	char words[BATCH * 32] = "XACK floor all";
	size_t count, line, used = strlen(words), entries;

	entries =
		(size_t)atoi(strstr(at, "floor\r\n*") != NULL ? strstr(at, "floor\r\n*") + 8 : "0");
	for (line = 0; line < 5 && at != NULL; line++)
		at = strchr(at, '\n') != NULL ? strchr(at, '\n') + 1 : NULL;
	for (count = 0; count < entries && at != NULL; count++)
		for (line = 0; line < 8 && at != NULL; line++) {
			if (line == 2)
				used += (size_t)sprintf(words + used, " %.*s",
				                        (int)strcspn(at, "\r"), at);
			at = strchr(at, '\n');
			at = at != NULL ? at + 1 : NULL;
		}
	*length = at != NULL ? encode(ack, words) : 0;
	return at != NULL ? entries : 0;
}

/* Read FLOW messages of the stream, and acknowledge them, 128 at a time. */
static void
read_stream(int descriptor)
{
	static char bytes[256 * 1024], ack[256 * BATCH];
	static const char next[] = "XREADGROUP GROUP all one COUNT 128 BLOCK 0 STREAMS floor >";
	size_t used, count, length, heard;

	command(descriptor, next);
	for (heard = 0; heard < FLOW; heard += count) {
		used = 0;
		do
			used = read_more(descriptor, bytes, sizeof bytes, used);
		while ((count = take_ids(ack, &length,
		                         *bytes == ':' ? strchr(bytes, '\n') + 1 : bytes)) == 0);
		length += encode(ack + length, next);
		write_all(descriptor, ack, length);
	}
}

/* Write FLOW commands, two windows without a reply at the most. */
static void
write_flow(int descriptor, const char *words, size_t lines)
{
	static char window[WINDOW * 256], bytes[64 * 1024];
	size_t i, length = 0, used, left = 0, sent;

	for (i = 0; i < WINDOW; i++)
		length += encode(window + length, words);
	for (sent = 0; sent < FLOW || left > 0;) {
		if (sent < FLOW && left <= WINDOW * lines) {
			write_all(descriptor, window, length);
			sent += WINDOW;
			left += WINDOW * lines;
			continue;
		}
		used = read_more(descriptor, bytes, sizeof bytes, 0);
		for (i = 0; i < used; i++)
			left -= bytes[i] == '\n';
	}
}

/* The rate from one process to another. */
static double
run_floor(const char *path, size_t kind)
{
	int writer = connect_to(path), reader = connect_to(path), status;
	char bytes[512], words[256];
	double begin;
	pid_t pid;

	command(writer, "DEL floor");
	read_more(writer, bytes, sizeof bytes, 0);
	command(reader, kind == 0 ? "SUBSCRIBE floor" : "XGROUP CREATE floor all $ MKSTREAM");
	read_more(reader, bytes, sizeof bytes, 0);
	snprintf(words, sizeof words, "%s %s", kind == 0 ? "PUBLISH floor" : "XADD floor * m",
	         payload);
	pid = fork();
	if (pid == 0) {
		(kind == 0 ? read_published : read_stream)(reader);
		_exit(0);
	}
	begin = seconds();
	write_flow(writer, words, kind == 0 ? 1 : 2);
	waitpid(pid, &status, 0);
	if (status != 0)
		fail("the floor's reader");
	command(writer, "DEL floor");
	close(writer), close(reader);
	return FLOW / (seconds() - begin);
}

/* ---- the parent ------------------------------------------------------------------- */

static struct messenger *parents[2];
static pid_t masters[2];
static bool answered;
static double answer[2];

static int
on_result(struct messenger *parent, const struct message *message, void *arg)
{
	(void)parent, (void)arg;
	answered = sscanf(message->data, "%lf %lf", &answer[0], &answer[1]) == 2;
	return answered ? 0 : -1;
}

/* Wait for the result of an order to A's app; NULL: for its greeting. */
static void
ask(const char *order, size_t kind)
{
	answered = false;
	if (order != NULL)
		messenger_send(parents[0], order, kind == 0 ? "0" : "1", ROLE_APP);
	while (!answered)
		if (messenger_step(parents[0], 100) != 1 || messenger_step(parents[1], 0) != 1)
			fail("a cluster has ended");
}

static double
median(double *of)
{
	qsort(of, ROUNDS, sizeof *of, compare);
	return of[ROUNDS / 2];
}

static void
measure_all(const char *path)
{
	double rate[2][ROUNDS], floor[2][ROUNDS], share[2][ROUNDS], trips[2][2];
	size_t round, kind;

	ask(NULL, 0);
	for (kind = 0; kind < 2; kind++) {
		ask("trips", kind);
		memcpy(trips[kind], answer, sizeof answer);
	}
	for (round = 0; round < ROUNDS; round++)
		for (kind = 0; kind < 2; kind++) {
			floor[kind][round] = run_floor(path, kind);
			ask("flow", kind);
			rate[kind][round] = answer[0];
			share[kind][round] = answer[0] / floor[kind][round];
		}
	printf("%-8s %11s %11s %15s %15s %9s\n", "", "trip p50", "trip p99", "messages/s", "floor",
	       "of floor");
	for (kind = 0; kind < 2; kind++)
		printf("%-8s %8.0f us %8.0f us %15.0f %15.0f %9.2f\n", kinds[kind].name,
		       trips[kind][0], trips[kind][1], median(rate[kind]), median(floor[kind]),
		       median(share[kind]));
}

int
main(int argc, char **argv)
{
	struct bridge_options ends[2] = {{.cluster = "A"}, {.cluster = "B"}};
	int i, out = dup(STDOUT_FILENO), nowhere = open("/dev/null", O_WRONLY | O_CLOEXEC);

	if (argc != 2 || strncmp(argv[1], "unix://", 7) != 0) {
		fprintf(stderr, "usage: bridge unix:///path-of-Redis\n");
		return 64;
	}
	dup2(nowhere, STDOUT_FILENO); /* the log of the clusters */
	for (i = 0; i < 2; i++) {
		ends[i].url = argv[1];
		parents[i] = fork_cluster(&(struct options){.agent = agent,
		                                            .app = app,
		                                            .arg = &ends[i],
		                                            .workers = 1,
		                                            .end_with_parent = true,
		                                            .name = ends[i].cluster},
		                          &masters[i]);
		if (parents[i] == NULL)
			fail("fork_cluster");
	}
	dup2(out, STDOUT_FILENO);
	messenger_on(parents[0], "result", on_result, NULL);
	measure_all(argv[1] + strlen("unix://"));
	for (i = 0; i < 2; i++) {
		kill(masters[i], SIGTERM);
		waitpid(masters[i], NULL, 0);
		messenger_close(parents[i]);
	}
	return 0;
}
