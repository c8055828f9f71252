/*
 * GET /metrics: what the master knows, as Prometheus reads it (its text format 0.0.4).
 *
 *	build/examples/metrics --port=7001       then: curl http://127.0.0.1:7001/metrics
 *
 *	Prometheus              an app                 master
 *	  | -- GET /metrics --> |                      |
 *	  |                     | -- clutch-status --> |
 *	  |                     | <-- clutch-status -- |   one JSON object
 *	  | <--- 200, text ---- |                      |
 *
 * Any app answers for the whole cluster, and none of them counts anything. What the master
 * counts for a process begins at 0 with its replacement; rate() of Prometheus expects that.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "../egg-scripts/egg_scripts.h"
#include "../messenger.h"
#include "http.h"
#include "status.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WAITING_MAX = 64 };

/* A metric: its value is that member of the JSON. Seconds of a metric stand there in ms. */
struct metric {
	const char *name, *type, *member, *help;
};

static const struct metric of_cluster[] = {
	{"clutch_cluster_age_seconds", "gauge", "age", "Since the start of the master."},
	{"clutch_cluster_workers", "gauge", "workers", "App workers that there are to be."},
	{"clutch_cluster_undeliverable_messages_total", "counter", "undeliverable",
         "Messages whose receiver was not there."},
};

static const struct metric of_process[] = {
	{"clutch_process_up", "gauge", "state", "Is the process ready? 1 or 0."},
	{"clutch_process_age_seconds", "gauge", "age", "Since the fork of the process."},
	{"clutch_process_reforks_total", "counter", "reforks", "Replacements in this place."},
	{"clutch_process_heard_messages_total", "counter", "heard", "Messages from the process."},
	{"clutch_process_told_messages_total", "counter", "told", "Messages to the process."},
	{"clutch_process_heard_bytes_total", "counter", "bytes_in", "Bytes from the process."},
	{"clutch_process_told_bytes_total", "counter", "bytes_out", "Bytes to the process."},
	{"clutch_process_queue_bytes", "gauge", "queued", "Bytes that wait for the process."},
	{"clutch_process_dropped_messages_total", "counter", "dropped",
         "Messages that found no room while the process was not there."},
	{"clutch_process_waiting_seconds", "gauge", "waits",
         "How long the process has been held up by a receiver that is too slow."},
};

static void
put_head(FILE *out, const struct metric *metric)
{
	fprintf(out, "# HELP %s %s\n# TYPE %s %s\n", metric->name, metric->help, metric->name,
	        metric->type);
}

static void
put_value(FILE *out, const struct metric *metric, const char *object)
{
	long long value = status_number(object, metric->member);

	if (strcmp(metric->member, "state") == 0)
		value = status_is(object, "state", "listening");
	if (strstr(metric->name, "_seconds") != NULL)
		fprintf(out, " %lld.%03lld\n", value / 1000, value % 1000);
	else
		fprintf(out, " %lld\n", value);
}

/* Of a row's role, which is a word of clutch's own, the characters up to its end. */
static int
role_of(const char *row, const char **role)
{
	const char *value = status_value(row, "role");

	*role = value != NULL ? value + 1 : "";
	return (int)strcspn(*role, "\"");
}

/* During a reload a slot has two rows, one after the other: the process that leaves, and
 * its replacement. Prometheus refuses two values of one series. */
static bool
is_followed(const char *row)
{
	const char *next = status_next_row(row);
	long long slot = status_number(row, "slot");

	return slot >= 0 && next != NULL && status_number(next, "slot") == slot;
}

static void
put_process(FILE *out, const struct metric *metric, const char *row)
{
	const char *role;
	int length = role_of(row, &role);

	if (is_followed(row))
		return;
	fprintf(out, "%s{role=\"%.*s\",slot=\"%lld\"}", metric->name, length, role,
	        status_number(row, "slot"));
	put_value(out, metric, row);
}

static void
put_reloads(FILE *out, const char *status)
{
	static const struct metric metric = {"clutch_cluster_reloads_total", "counter", "",
	                                     "Reloads, by how they ended."};
	const char *reload = status_value(status, "reload");

	put_head(out, &metric);
	fprintf(out, "clutch_cluster_reloads_total{result=\"done\"} %lld\n",
	        reload != NULL ? status_number(reload, "done") : 0);
	fprintf(out, "clutch_cluster_reloads_total{result=\"given_up\"} %lld\n",
	        reload != NULL ? status_number(reload, "given_up") : 0);
}

/* All samples of a metric stand together, below its head. */
static void
put_all(FILE *out, const char *status)
{
	const char *row;
	size_t i;

	for (i = 0; i < sizeof of_cluster / sizeof of_cluster[0]; i++) {
		put_head(out, &of_cluster[i]);
		fputs(of_cluster[i].name, out);
		put_value(out, &of_cluster[i], status);
	}
	put_reloads(out, status);
	for (i = 0; i < sizeof of_process / sizeof of_process[0]; i++) {
		put_head(out, &of_process[i]);
		for (row = status_first_row(status); row != NULL; row = status_next_row(row))
			put_process(out, &of_process[i], row);
	}
}

/* ---- the app ---------------------------------------------------------------- */

/* The requests that wait for the master's answer. */
static struct http_request *waiting[WAITING_MAX];
static int waiting_count;

static int
on_status(struct messenger *app, const struct message *message, void *arg)
{
	char *text = NULL;
	size_t length;
	FILE *out = open_memstream(&text, &length);
	bool is_whole = false;

	(void)app, (void)arg;
	if (out != NULL) {
		put_all(out, message->data);
		is_whole = fclose(out) == 0;
	}
	while (waiting_count > 0)
		if (is_whole)
			http_reply(waiting[--waiting_count], 200,
			           "text/plain; version=0.0.4; charset=utf-8", text);
		else
			http_reply(waiting[--waiting_count], 503, NULL, "no memory\n");
	free(text);
	return 0;
}

static int
app(struct messenger *app, void *arg)
{
	return messenger_on(app, "clutch-status", on_status, arg);
}

/* One question to the master serves all requests that wait for its answer. */
static int
answer(struct http_request *request, void *arg)
{
	(void)arg;
	if (!http_allow(request, "GET, HEAD"))
		return 0;
	if (strcmp(request->path, "/metrics") != 0)
		return http_reply(request, 404, NULL, "try /metrics\n");
	if (waiting_count == WAITING_MAX ||
	    (waiting_count == 0 &&
	     messenger_send(request->app, "clutch-status", NULL, ROLE_MASTER) == -1))
		return http_reply(request, 503, NULL, "too many requests\n");
	waiting[waiting_count++] = request;
	return 0;
}

static int
connection(struct messenger *app, int descriptor, void *arg)
{
	return http_serve(app, descriptor, answer, arg);
}

int
main(int argc, char *argv[])
{
	setvbuf(stdout, NULL, _IOLBF, 0); /* one write for each line, so that lines do not mix */
	return egg_scripts(argc, argv, &(struct options){.app = app, .connection = connection});
}
