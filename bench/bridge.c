/*
 * What the bridge costs: two clusters on this machine, one app each, one Redis.
 *
 *	make bench-bridge                     starts a Redis of its own
 *	build/bench/bridge unix:///path       uses yours
 *
 *	A: app -> agent -> Redis -> agent -> app :B, and back: a round trip is twice the way.
 */
#include "../redis/bridge.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { TRIPS = 2000, FLOW = 20000, WINDOW = 500 };

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

static int
tell(double rate)
{
	char line[128];

	snprintf(line, sizeof line, "%-8s %8.0f us %8.0f us %10.0f messages/s",
	         kinds[clocks.kind].name, 1e6 * clocks.trip[TRIPS / 2],
	         1e6 * clocks.trip[TRIPS / 100 * 99], rate);
	return messenger_send(clocks.app, "line", line, ROLE_PARENT);
}

static int
on_pong(void)
{
	clocks.trip[clocks.trips++] = seconds() - clocks.begin;
	if (clocks.trips < TRIPS)
		return trip();
	qsort(clocks.trip, TRIPS, sizeof clocks.trip[0], compare);
	clocks.begin = seconds();
	return flow(clocks.app, NULL);
}

static int
on_flowed(void)
{
	clocks.flowed += WINDOW;
	if (clocks.flowed < FLOW)
		return flow(clocks.app, NULL);
	if (tell(FLOW / (seconds() - clocks.begin)) == -1)
		return -1;
	clocks.trips = clocks.sent = clocks.flowed = 0;
	if (++clocks.kind < sizeof kinds / sizeof kinds[0])
		return trip();
	return messenger_send(clocks.app, "end", NULL, ROLE_PARENT);
}

static int
measure(struct bridge *bridge, const struct bridge_message *message, void *arg)
{
	const struct kind *kind = &kinds[clocks.kind % (sizeof kinds / sizeof kinds[0])];

	(void)bridge, (void)arg;
	if (strcmp(message->action, "hello") == 0 && clocks.begin == 0)
		return trip();
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
	if (strcmp(options->cluster, "A") == 0)
		return bridge_on(bridge, NULL, measure, NULL);
	messenger_set_interval(messenger, 100, say_hello, bridge);
	return bridge_on(bridge, NULL, echo, NULL);
}

static int
on_line(struct messenger *parent, const struct message *message, void *arg)
{
	(void)parent, (void)arg;
	printf("%s\n", message->data);
	return 0;
}

static int
on_end(struct messenger *parent, const struct message *message, void *arg)
{
	(void)parent, (void)message;
	*(bool *)arg = true;
	return 0;
}

int
main(int argc, char **argv)
{
	struct bridge_options ends[2] = {{.cluster = "A"}, {.cluster = "B"}};
	struct messenger *parents[2] = {NULL, NULL};
	pid_t masters[2];
	bool ended = false;
	int i, out = dup(STDOUT_FILENO), nowhere = open("/dev/null", O_WRONLY | O_CLOEXEC);

	if (argc != 2) {
		fprintf(stderr, "usage: bridge URL-of-Redis\n");
		return 64;
	}
	printf("%-8s %11s %11s %21s\n", "", "trip p50", "trip p99", "one way");
	fflush(stdout);
	dup2(nowhere, STDOUT_FILENO); /* the log of the clusters */
	for (i = 0; i < 2; i++) {
		ends[i].url = argv[1];
		parents[i] = fork_cluster(&(struct options){.agent = agent,
		                                            .app = app,
		                                            .arg = &ends[i],
		                                            .workers = 1,
		                                            .name = ends[i].cluster},
		                          &masters[i]);
		if (parents[i] == NULL) {
			perror("fork_cluster");
			return 1;
		}
	}
	dup2(out, STDOUT_FILENO);
	messenger_on(parents[0], "line", on_line, NULL);
	messenger_on(parents[0], "end", on_end, &ended);
	while (!ended && messenger_step(parents[0], 100) == 1)
		if (messenger_step(parents[1], 0) != 1)
			break;
	for (i = 0; i < 2; i++) {
		kill(masters[i], SIGTERM);
		waitpid(masters[i], NULL, 0);
		messenger_close(parents[i]);
	}
	return ended ? 0 : 1;
}
