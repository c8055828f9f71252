/*
 * The cache-refresh service: data that seldom changes is kept in the memory of every
 * app worker, so that a request is answered from memory, and the data is kept fresh in
 * three ways at once.
 *
 *	force   each app loads the data every 10 minutes          schedule, type all
 *	pull    one app asks whether it has changed, every 10 s,  schedule, type worker
 *	        and if so tells all apps
 *	push    the agent listens to the source, and tells all    messenger_send_to_app
 *	        apps of each change
 *
 *	source               agent            master           every app
 *	  | -- /push: 7 ------> |                |                  |
 *	  |                     | -- refresh --> | -- refresh ----> |
 *	  |                     |    "push"      |    "push"        |
 *	  | <---------------------------------------- GET /data --- |
 *
 * With --redis=URL a change that one machine finds refreshes the apps of all machines:
 * push and pull announce the change through Redis (docs/scaling.md). Without Redis, or
 * while Redis is down, each machine goes on by itself.
 *
 * Push is quick, but a notice can get lost. Pull finds such a change within seconds, with
 * one small request for all apps. Force is right whatever went wrong before. While the
 * source is down its last data is served, and an app that could not load it tries again.
 *
 *	build/examples/source &
 *	build/examples/refresh [--source=http://127.0.0.1:7002] [--force=10m] [--pull=10s]
 *	                       [--redis=redis://127.0.0.1]
 *	curl http://127.0.0.1:7001/      {"index":7,"lastUpdateBy":"push","pid":4711}
 *
 * It has egg-scripts' command line, too: refresh start --daemon --port=8080, refresh
 * status, reload, stop. --help lists all commands and options.
 *
 * egg: the example of its documentation's chapter on cluster and IPC
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "../egg-schedule/egg_schedule.h"
#include "../egg-scripts/egg_scripts.h"
#include "../messenger.h"
#include "../redis/bridge.h"
#include "http.h"
#include "http_client.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Milliseconds. */
#define ANSWER_TIMEOUT 3000 /* for the source to answer */
#define SILENCE 15000       /* three heartbeats are missing: the stream is dead */
#define RETRY_FIRST 100     /* and twice as long after each failure */
#define RETRY_MOST 5000
#define LASTING 5000  /* a stream that was opened again works if it lives this long */
#define PATIENCE 2000 /* a start without the data: then the app serves without it */

static const char *source = "http://127.0.0.1:7002";
static const char *force_interval = "10m";
static const char *pull_interval = "10s";
static const char *redis; /* NULL: there is no other machine */
static const char *cluster;

/* Take the number out of {"index":7}; false: the text has none. */
static bool
parse_index(const char *json, long *index)
{
	const char *at = strstr(json, "\"index\":");
	char *end;

	if (at == NULL)
		return false;
	at += strlen("\"index\":");
	*index = strtol(at, &end, 10);
	return end > at;
}

static void
make_url(char url[HTTP_URL_MAX], const char *page)
{
	int length = (int)strlen(source);

	if (source[length - 1] == '/')
		length--;
	snprintf(url, HTTP_URL_MAX, "%.*s%s", length, source, page);
}

/* ---- the other machines ----------------------------------------------------- */

static struct bridge *bridge; /* NULL: there are none */

/* In the agent and in each app. A wrong URL is a failed start; a Redis that does not
 * answer is not. The URL is not printed: there may be a password in it. */
static int
join_others(struct messenger *messenger)
{
	if (redis == NULL)
		return 0;
	bridge = bridge_start(
		messenger,
		&(struct bridge_options){.url = redis, .channel = "refresh", .cluster = cluster});
	if (bridge != NULL)
		return 0;
	clutch_print_line(STDERR_FILENO,
	                  "refresh: --redis wants redis://ADDRESS:PORT or unix://PATH, and "
	                  "--cluster a name of at most %d bytes: %s",
	                  BRIDGE_NAME_MAX, strerror(errno));
	return -1;
}

/* Tell all apps, here and elsewhere, that the data has changed. */
static int
tell_all(struct messenger *messenger, const char *by)
{
	if (bridge != NULL)
		return bridge_publish(bridge, NULL, "refresh", by);
	return messenger_send_to_app(messenger, "refresh", by);
}

/* ---- the cache: one in each app worker ------------------------------------- */

static struct {
	long index;       /* the data */
	const char *by;   /* lastUpdateBy: "force", "pull" or "push"; NULL: there is no data */
	const char *want; /* by which it is to be loaded next, or NULL */
	const char *load; /* by which it is being loaded now, or NULL */
	bool is_failing;  /* the last attempt to load has failed, and a line has said so */
	int retry;        /* ms until the next attempt, after a failure */
	int timer;        /* the timer that waits for that attempt, or 0 */
} cache;

static const char *
which_way(const char *json)
{
	if (strstr(json, "\"push\"") != NULL)
		return "push";
	return strstr(json, "\"pull\"") != NULL ? "pull" : "force";
}

static void
cache_fill(struct messenger *app, long index, const char *by)
{
	cache.index = index;
	cache.by = by;
	messenger_ready(app, 0); /* if it has been waiting for this */
}

/* Load the data. A change that is heard while the data is being loaded makes the app load it
 * once more: the answer that is under way may be older than the change. */
static int cache_load(struct messenger *app);

static int
on_retry(struct messenger *app, void *arg)
{
	(void)arg;
	cache.timer = 0;
	return cache_load(app);
}

/* This app is new and could not load the data. The other apps may have it: ask them. */
static int
ask_siblings(struct messenger *app)
{
	char pid[32];

	snprintf(pid, sizeof pid, "%ld", (long)messenger_pid(app));
	return messenger_send_to_app(app, "cache-wanted", pid);
}

/* Try again later. There is one line about it, however often the load fails. */
static int
load_failed(struct messenger *app, const char *why)
{
	if (!cache.is_failing)
		fprintf(stderr, "app %ld: cannot load the data (%s); it %s\n",
		        (long)messenger_pid(app), why,
		        cache.by != NULL ? "serves what it has" : "asks the other apps");
	cache.is_failing = true;
	if (cache.want == NULL)
		cache.want = cache.load;
	cache.load = NULL;
	cache.timer = messenger_set_timeout(app, cache.retry, on_retry, NULL);
	cache.retry = cache.retry * 2 < RETRY_MOST ? cache.retry * 2 : RETRY_MOST;
	return cache.timer == -1 || (cache.by == NULL && ask_siblings(app) == -1);
}

static int
on_data(struct messenger *app, int status, const char *text, void *arg)
{
	char refusal[32];
	long index;

	(void)arg;
	snprintf(refusal, sizeof refusal, "status %d", status);
	if (status != 200)
		return load_failed(app, status == 0 ? text : refusal);
	if (!parse_index(text, &index))
		return load_failed(app, "there is no index in it");
	if (cache.is_failing)
		printf("app %ld: has loaded the data\n", (long)messenger_pid(app));
	cache.is_failing = false;
	cache_fill(app, index, cache.load);
	cache.load = NULL;
	cache.retry = RETRY_FIRST;
	return cache.want != NULL ? cache_load(app) : 0;
}

static int
cache_load(struct messenger *app)
{
	char url[HTTP_URL_MAX];

	cache.load = cache.want;
	cache.want = NULL;
	make_url(url, "/data");
	if (http_get(app, url, ANSWER_TIMEOUT, on_data, NULL) == 0)
		return 0;
	return load_failed(app, strerror(errno));
}

static int
cache_refresh(struct messenger *app, const char *by)
{
	cache.want = by;
	if (cache.load != NULL)
		return 0;
	if (cache.timer > 0)
		messenger_clear_timeout(app, cache.timer);
	cache.timer = 0;
	return cache_load(app);
}

/* ---- app.js ------------------------------------------------------------------ */

static int
on_refresh(struct messenger *app, const struct message *message, void *arg)
{
	(void)arg;
	return message->data != NULL ? cache_refresh(app, which_way(message->data)) : 0;
}

/* The same through Redis, from this cluster or another one. */
static int
on_bridge_refresh(struct bridge *from, const struct bridge_message *message, void *app)
{
	(void)from;
	return message->data != NULL ? cache_refresh(app, which_way(message->data)) : 0;
}

static int
on_cache_wanted(struct messenger *app, const struct message *message, void *arg)
{
	pid_t pid = message->data != NULL ? (pid_t)strtol(message->data, NULL, 10) : 0;
	char json[64];

	(void)arg;
	if (cache.by == NULL || pid <= 0)
		return 0;
	snprintf(json, sizeof json, "{\"index\":%ld,\"by\":\"%s\"}", cache.index, cache.by);
	return messenger_send_to(app, pid, "cache", json);
}

/* Another app's data is better than none. This app goes on trying to load the data. */
static int
on_cache(struct messenger *app, const struct message *message, void *arg)
{
	long index;

	(void)arg;
	if (cache.by == NULL && message->data != NULL && parse_index(message->data, &index))
		cache_fill(app, index, which_way(message->data));
	return 0;
}

/* egg: schedule/force_refresh.js */
static int
force_refresh(struct messenger *app, struct schedule_run *run, void *arg)
{
	(void)run, (void)arg;
	return cache_refresh(app, "force");
}

/* A source that does not answer is taken as unchanged. */
static int
on_check(struct messenger *app, int status, const char *text, void *arg)
{
	struct schedule_run *run = arg;
	int result = 0;
	long index;

	if (status == 200 && parse_index(text, &index) &&
	    (cache.by == NULL || index != cache.index)) {
		printf("app %ld: the source has changed (pull)\n", (long)messenger_pid(app));
		result = tell_all(app, "\"pull\"");
	}
	schedule_done(run, result);
	return 0;
}

/* egg: schedule/pull_refresh.js */
static int
pull_refresh(struct messenger *app, struct schedule_run *run, void *arg)
{
	char url[HTTP_URL_MAX];

	(void)arg;
	make_url(url, "/check");
	if (http_get(app, url, ANSWER_TIMEOUT, on_check, run) == 0)
		schedule_later(run);
	return 0;
}

static int
on_patience(struct messenger *app, void *arg)
{
	(void)arg;
	messenger_ready(app, 0); /* EALREADY: the app has the data, and is ready */
	return 0;
}

static const struct schedule *
schedules(void)
{
	static struct schedule jobs[] = {
		{.name = "force_refresh", .type = "all", .task = force_refresh},
		{.name = "pull_refresh",
	         .type = "worker",
	         .task = pull_refresh,
	         .skip_while_running = true},
	};

	jobs[0].interval = force_interval;
	jobs[1].interval = pull_interval;
	return jobs;
}

/* The app is ready when it has the data, or after PATIENCE without the data. */
static int
app(struct messenger *app, void *arg)
{
	cache.retry = RETRY_FIRST;
	messenger_ready_later(app);
	if (messenger_on(app, "refresh", on_refresh, arg) == -1 ||
	    messenger_on(app, "cache-wanted", on_cache_wanted, arg) == -1 ||
	    messenger_on(app, "cache", on_cache, arg) == -1 ||
	    messenger_set_timeout(app, PATIENCE, on_patience, arg) == -1 ||
	    egg_schedule_app(app, schedules(), 2) == -1 || join_others(app) == -1)
		return -1;
	if (bridge != NULL && bridge_on(bridge, "refresh", on_bridge_refresh, app) == -1)
		return -1;
	return cache_refresh(app, "force");
}

/* ---- agent.js: listens to the source for all apps ----------------------------- */

static struct {
	bool is_known; /* the source has told its index */
	long index;    /* the last one that it told */

	enum { NOTHING, LISTENS, FAILS } told; /* the last line about the stream */
	int retry;                             /* ms until the next attempt, after a failure */
	int timer;                             /* the stream lasts when this fires, or 0 */
} push;

static int subscribe(struct messenger *agent, void *arg);

static int
on_stream_end(struct messenger *agent, const char *why)
{
	if (push.told != FAILS)
		fprintf(stderr, "agent %ld: no push from %s (%s); force and pull go on\n",
		        (long)messenger_pid(agent), source, why);
	push.told = FAILS;
	if (push.timer > 0)
		messenger_clear_timeout(agent, push.timer);
	push.timer = 0;
	if (messenger_set_timeout(agent, push.retry, subscribe, NULL) == -1)
		return -1;
	push.retry = push.retry * 2 < RETRY_MOST ? push.retry * 2 : RETRY_MOST;
	return 0;
}

static int
on_lasting(struct messenger *agent, void *arg)
{
	(void)arg;
	push.timer = 0;
	push.retry = RETRY_FIRST;
	push.told = LISTENS;
	printf("agent %ld: listens to %s again\n", (long)messenger_pid(agent), source);
	return 0;
}

/* There is a stream. One that follows a failure has to last before that is told, and before
 * the next pause is short again: some sources answer and hang up. */
static void
on_stream(struct messenger *agent)
{
	if (push.told == NOTHING) {
		printf("agent %ld: listens to %s\n", (long)messenger_pid(agent), source);
		push.told = LISTENS;
	}
	if (push.told == FAILS && push.timer == 0)
		push.timer = messenger_set_timeout(agent, LASTING, on_lasting, NULL);
	if (push.timer == -1)
		on_lasting(agent, NULL); /* no memory for a timer */
}

/* The first line of a stream tells the present index, which may be new: a change between two
 * streams is found so. */
static int
on_line(struct messenger *agent, int status, const char *text, void *arg)
{
	long index;
	bool is_new;

	(void)arg;
	if (status == 0)
		return on_stream_end(agent, text);
	if (!parse_index(text, &index))
		return 0; /* a heartbeat */
	on_stream(agent);
	is_new = push.is_known && push.index != index;
	push.is_known = true;
	push.index = index;
	if (!is_new)
		return 0;
	printf("agent %ld: the source has changed (push)\n", (long)messenger_pid(agent));
	return tell_all(agent, "\"push\"");
}

static int
subscribe(struct messenger *agent, void *arg)
{
	char url[HTTP_URL_MAX];

	make_url(url, "/push");
	if (http_listen(agent, url, SILENCE, on_line, arg) == -1)
		return on_stream_end(agent, strerror(errno));
	return 0;
}

static int
agent(struct messenger *agent, void *arg)
{
	push.retry = RETRY_FIRST;
	if (egg_schedule_agent(agent, schedules(), 2) == -1 || join_others(agent) == -1)
		return -1;
	return subscribe(agent, arg);
}

/* ---- the router and its only controller --------------------------------------- */

static int
answer(struct http_request *request, void *arg)
{
	long pid = (long)messenger_pid(request->app);
	char body[128];

	(void)arg;
	if (!http_allow(request, "GET, HEAD"))
		return 0;
	if (strcmp(request->path, "/") != 0)
		return http_reply(request, 404, NULL, "not found\n");
	if (cache.by != NULL)
		snprintf(body, sizeof body, "{\"index\":%ld,\"lastUpdateBy\":\"%s\",\"pid\":%ld}\n",
		         cache.index, cache.by, pid);
	else
		snprintf(body, sizeof body,
		         "{\"error\":\"the source has not answered yet\",\"pid\":%ld}\n", pid);
	return http_reply(request, cache.by != NULL ? 200 : 503, "application/json", body);
}

static int
connection(struct messenger *app, int descriptor, void *arg)
{
	return http_serve(app, descriptor, answer, arg);
}

/* ---- the command line ----------------------------------------------------------- */

/* refresh's own options; egg_scripts takes all others. */
static const struct option {
	const char *name, *value; /* value: as --help calls it */
	const char **text;
	const char *help;
} table[] = {
	{"source", "URL", &source, "of the data [http://127.0.0.1:7002]"},
	{"force", "TIME", &force_interval, "after which each app loads the data anew [10m]"},
	{"pull", "TIME", &pull_interval, "after which one app asks for a change [10s]"},
	{"redis", "URL", &redis, "of the Redis that joins all machines [one machine]"},
	{"cluster", "NAME", &cluster, "of this cluster in Redis [HOSTNAME-PORT]"},
};

enum { OPTIONS = sizeof table / sizeof table[0] };

/* The option of "--name=value" or "--name"; value is NULL in the latter. */
static const struct option *
find_option(const char *word, const char **value)
{
	const char *end = word + strcspn(word, "=");
	size_t i, length;

	*value = *end == '=' ? end + 1 : NULL;
	for (i = 0; i < OPTIONS; i++) {
		length = strlen(table[i].name);
		if (strncmp(word, "--", 2) == 0 && (size_t)(end - word) == length + 2 &&
		    memcmp(word + 2, table[i].name, length) == 0)
			return &table[i];
	}
	return NULL;
}

/* Take refresh's own options out of the words. Returns how many are left, the
 * program's name among them; -1: one is wrong. */
static int
take_options(int argc, char *argv[])
{
	const struct option *option;
	const char *value;
	int i, left = 1;

	for (i = 1; i < argc; i++) {
		option = find_option(argv[i], &value);
		if (option == NULL) {
			argv[left++] = argv[i];
			continue;
		}
		value = value != NULL ? value : argv[++i];
		if (value == NULL || value[0] == '\0') {
			fprintf(stderr, "refresh: --%s wants a value\n", option->name);
			return -1;
		}
		*option->text = value;
	}
	argv[left] = NULL;
	return left;
}

/* The value of --port, as it is: egg_scripts checks it. */
static const char *
find_port(char *argv[])
{
	const char *port = getenv("PORT");

	for (; *argv != NULL; argv++)
		if (strncmp(*argv, "--port=", strlen("--port=")) == 0)
			port = *argv + strlen("--port=");
		else if (strcmp(*argv, "--port") == 0 && argv[1] != NULL)
			port = argv[1];
	return port != NULL ? port : "7001";
}

/* Two clusters of one name do not hear each other. The machine's name and the port make a
 * name that no other cluster has, and that is the same after a restart. */
static void
name_cluster(char *argv[])
{
	static char name[BRIDGE_NAME_MAX + 1];
	char host[64] = "";

	gethostname(host, sizeof host - 1);
	snprintf(name, sizeof name, "%s-%s", host, find_port(argv));
	cluster = name;
}

static bool
asks_for_help(char *argv[])
{
	while (*argv != NULL && strcmp(*argv, "--help") != 0)
		argv++;
	return *argv != NULL;
}

static void
print_help(void)
{
	char left[32];
	size_t i;

	printf("\nrefresh itself:\n");
	for (i = 0; i < OPTIONS; i++) {
		snprintf(left, sizeof left, "--%s=%s", table[i].name, table[i].value);
		printf("  %-20s %s\n", left, table[i].help);
	}
}

int
main(int argc, char *argv[])
{
	struct options options = {.agent = agent, .app = app, .connection = connection};
	int result;

	argc = argc > 0 ? take_options(argc, argv) : 0;
	if (argc == -1)
		return EXIT_USAGE;
	if (!http_is_url(source) || strlen(source) + strlen("/check") >= HTTP_URL_MAX) {
		fprintf(stderr, "refresh: --source=%s: give http://ADDRESS:PORT\n", source);
		return EXIT_USAGE;
	}
	if (cluster == NULL)
		name_cluster(argv);
	setvbuf(stdout, NULL, _IOLBF, 0); /* one write for each line, so that lines do not mix */
	egg_schedule_log(-1);             /* not several lines for each run; failures are logged */
	result = egg_scripts(argc, argv, &options);
	if (asks_for_help(argv))
		print_help();
	return result;
}
