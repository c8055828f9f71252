/*
 * The smallest egg application: an agent, app workers, one page and one message.
 *
 *	build/examples/hello             then: curl http://127.0.0.1:7001/
 *	build/examples/hello start --daemon --port=8080 --workers=2
 *	build/examples/hello --help
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "../egg-scripts/egg_scripts.h"
#include "../messenger.h"
#include "http.h"

#include <stdio.h>
#include <string.h>

/* ---- agent.js: one process, for tasks that must run only once ------------- */

/* egg-ready: every app worker is ready. Send all of them a message. */
static int
on_ready(struct messenger *agent, const struct message *message, void *arg)
{
	(void)message, (void)arg;
	return messenger_send_to_app(agent, "action1", "{\"a\":1}");
}

static int
agent(struct messenger *agent, void *arg)
{
	return messenger_once(agent, "egg-ready", on_ready, arg);
}

/* ---- app.js: runs in every app worker ------------------------------------ */

static int
on_action1(struct messenger *app, const struct message *message, void *arg)
{
	(void)arg;
	printf("app %ld got %s %s\n", (long)messenger_pid(app), message->action, message->data);
	return 0;
}

static int
app(struct messenger *app, void *arg)
{
	return messenger_on(app, "action1", on_action1, arg);
}

/* ---- the router and its only controller ---------------------------------- */

static int
answer(struct http_request *request, void *arg)
{
	char body[64];

	(void)arg;
	if (!http_allow(request, "GET, HEAD"))
		return 0;
	if (strcmp(request->path, "/") != 0)
		return http_reply(request, 404, NULL, "not found\n");
	snprintf(body, sizeof body, "hello world from pid %ld\n",
	         (long)messenger_pid(request->app));
	return http_reply(request, 200, NULL, body);
}

/* All workers share one port; this one has accepted a connection. */
static int
connection(struct messenger *app, int descriptor, void *arg)
{
	return http_serve(app, descriptor, answer, arg);
}

int
main(int argc, char *argv[])
{
	setvbuf(stdout, NULL, _IOLBF, 0); /* one write for each line, so that lines do not mix */
	return egg_scripts(argc, argv,
	                   &(struct options){.agent = agent, .app = app, .connection = connection});
}
