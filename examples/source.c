/*
 * A data source whose data seldom changes: a configuration server, a list of prices. It
 * is a small egg application itself, with one app worker, which holds the data.
 *
 *	GET /data              {"index":7}
 *	GET /check             the same; for large data it would be only the version
 *	GET /push              a stream: a line at once, and one for each change
 *	POST /change           changes the data: to the number in the body, or to the next
 *	POST /change?quietly   the same without a notice: a notice can get lost, too
 *
 *	build/examples/source [--port=7002] [--every=0] [--lose=0] [--ready=DESCRIPTOR]
 *	curl -N http://127.0.0.1:7002/push
 *	curl -d 42 http://127.0.0.1:7002/change
 *
 * --every=15: the data changes by itself, every 15 s. --lose=2: every second one of these
 * changes is not announced, and a client that relies on /push alone misses it.
 * --ready=3: when the source can answer, it writes a line to descriptor 3, which the
 * process that started it has opened (readiness notification: see examples/run).
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "../messenger.h"
#include "http.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* An empty line goes into each stream this often, in ms: a heartbeat. A stream that is silent
 * for much longer is broken, and a subscriber can rely on that. */
#define HEARTBEAT 5000

#define USAGE 64 /* the exit status for a wrong command line: EX_USAGE */

static int port = 7002;
static int every;      /* seconds; 0: the data changes only by /change */
static int lose;       /* every lose-th change is not announced; 0: all are */
static int ready = -1; /* the descriptor to write a line to when the source is ready; -1: none */

static long number = 1; /* the data; it is also the topic of the streams */

static const char *
data(void)
{
	static char json[64];

	snprintf(json, sizeof json, "{\"index\":%ld}\n", number);
	return json;
}

static void
change(long to, bool quietly)
{
	number = to;
	printf("source: the data is %ld now%s\n", number,
	       quietly ? ", but the notice is lost" : "");
	if (!quietly)
		http_publish(&number, data());
}

static int
on_time(struct messenger *app, void *arg)
{
	static int changes;

	(void)app, (void)arg;
	changes++;
	change(number + 1, lose > 0 && changes % lose == 0);
	return 0;
}

static int
on_heartbeat(struct messenger *app, void *arg)
{
	(void)app, (void)arg;
	http_publish(&number, "\n");
	return 0;
}

static int
on_ready(struct messenger *app, const struct message *message, void *arg)
{
	(void)app, (void)message, (void)arg;
	if (ready != -1)
		clutch_print_line(ready, "ready");
	return 0;
}

static int
app(struct messenger *app, void *arg)
{
	if (messenger_set_interval(app, HEARTBEAT, on_heartbeat, arg) == -1 ||
	    messenger_once(app, "egg-ready", on_ready, arg) == -1)
		return -1;
	return every > 0 && messenger_set_interval(app, every * 1000, on_time, arg) == -1;
}

static int
answer_change(struct http_request *request)
{
	size_t digits = strspn(request->body, "0123456789");

	if (!http_allow(request, "POST"))
		return 0;
	if (digits != request->body_length || digits > 9)
		return http_reply(request, 400, NULL, "the body is a number, or empty\n");
	change(digits > 0 ? atol(request->body) : number + 1,
	       strcmp(request->query, "quietly") == 0);
	return http_reply(request, 200, "application/json", data());
}

static int
answer(struct http_request *request, void *arg)
{
	(void)arg;
	if (strcmp(request->path, "/change") == 0)
		return answer_change(request);
	if (!http_allow(request, "GET, HEAD"))
		return 0;
	if (strcmp(request->path, "/push") == 0)
		return http_subscribe(request, "application/x-ndjson", &number, data());
	if (strcmp(request->path, "/data") == 0 || strcmp(request->path, "/check") == 0)
		return http_reply(request, 200, "application/json", data());
	return http_reply(request, 404, NULL, "try /data, /check, /push or /change\n");
}

static int
connection(struct messenger *app, int descriptor, void *arg)
{
	return http_serve(app, descriptor, answer, arg);
}

/* Is the argument "--NAME=NUMBER", with a number up to `most`? Then store the number. */
static bool
is_option(const char *argument, const char *name, int most, int *value)
{
	size_t length = strlen(name);
	const char *text = argument + length;
	size_t digits;

	if (strncmp(argument, name, length) != 0)
		return false;
	digits = strspn(text, "0123456789");
	if (digits == 0 || digits > 6 || text[digits] != 0 || atoi(text) > most)
		return false;
	*value = atoi(text);
	return true;
}

int
main(int argc, char *argv[])
{
	int i;

	for (i = 1; i < argc; i++)
		if (!is_option(argv[i], "--port=", 65535, &port) &&
		    !is_option(argv[i], "--every=", 86400, &every) &&
		    !is_option(argv[i], "--lose=", 1000, &lose) &&
		    !is_option(argv[i], "--ready=", 65535, &ready)) {
			fprintf(stderr,
			        "source: %s? It takes --port=7002 (0: any free one), "
			        "--every=SECONDS, --lose=N and --ready=DESCRIPTOR\n",
			        argv[i]);
			return USAGE;
		}
	if (ready != -1 && fcntl(ready, F_GETFD) == -1) {
		fprintf(stderr, "source: --ready=%d: no such descriptor is open\n", ready);
		return USAGE;
	}
	setvbuf(stdout, NULL, _IOLBF, 0); /* one write for each line, so that lines do not mix */
	return start_cluster(&(struct options){.app = app,
	                                       .connection = connection,
	                                       .name = "source",
	                                       .workers = 1,
	                                       .host = "127.0.0.1",
	                                       .port = port > 0 ? port : -1});
}
