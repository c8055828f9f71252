/*
 * HTTP: each app worker has two pages, and the parent asks for them.
 *
 *	/          answered at once
 *	/hold?N    answered HOLD_LONG ms later, or soon after the worker has begun to leave:
 *	           a reload must not take the answer away
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "soak.h"

#include "../../examples/http.h"
#include "../../examples/http_client.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HOLD_LONG = 1500, HOLD_LEAVING = 150, ANSWER_LIMIT = 5000 };

/* ---- the app worker --------------------------------------------------------- */

static struct {
	struct http_request *request; /* NULL: this place is free */
	int number;
	int64_t since;
} held[REQUESTS];

static bool looks;

/* Answer the requests whose time has come. */
static int
on_held_tick(struct messenger *app, void *arg)
{
	bool leaving = messenger_closing(app);
	int64_t now = clutch_now();
	int i;

	(void)arg;
	for (i = 0; i < REQUESTS; i++) {
		if (held[i].request == NULL ||
		    !(now - held[i].since >= HOLD_LONG ||
		      (leaving && me->left_at != 0 && now - me->left_at >= HOLD_LEAVING)))
			continue;
		shared->holds[held[i].number].over_leave = leaving;
		http_reply(held[i].request, 200, NULL, "held\n");
		held[i].request = NULL;
	}
	return 0;
}

static int
hold(struct http_request *request)
{
	int i = 0, number = atoi(request->query);

	while (i < REQUESTS && held[i].request != NULL)
		i++;
	if (i == REQUESTS || number < 0 || number >= REQUESTS ||
	    (!looks && messenger_set_interval(request->app, 50, on_held_tick, NULL) == -1))
		return http_reply(request, 503, NULL, "too many\n");
	looks = true;
	held[i].request = request;
	held[i].number = number;
	held[i].since = clutch_now();
	shared->holds[number].pid = me->pid;
	return 0;
}

static int
answer(struct http_request *request, void *arg)
{
	(void)arg;
	me->counts.requests++;
	if (strcmp(request->path, "/hold") == 0)
		return hold(request);
	return http_reply(request, 200, NULL, "page\n");
}

int
pages_serve(struct messenger *app, int descriptor, void *arg)
{
	return http_serve(app, descriptor, answer, arg);
}

/* ---- the parent ------------------------------------------------------------- */

struct request {
	bool busy, is_hold;
	int64_t since;
};

static struct request requests[REQUESTS];
static int pending;

int
pages_pending(void)
{
	return pending;
}

/* Has a process that may have had this request been killed, or has it left? A worker that
 * leaves closes a connection on which it has read nothing yet: the client asks again. */
static bool
may_fail(const struct request *request)
{
	const struct hold *hold = &shared->holds[request - requests];
	int i;

	if (!soak.started || soak.ended)
		return true;
	for (i = 0; i < shared->record_count && i < RECORDS; i++)
		if (request->is_hold && hold->pid != 0 && shared->records[i].pid == hold->pid)
			return soak.victims[i].sentence == SIGKILL;
	for (i = 0; i < shared->record_count && i < RECORDS; i++)
		if (shared->records[i].left_at >= request->since)
			return true;
	return soak.killed_at >= request->since - CLEAN_LEAVE;
}

static int
on_answer(struct messenger *parent, int status, const char *text, void *arg)
{
	struct request *request = arg;
	struct hold *hold = &shared->holds[request - requests];

	(void)parent;
	pending--;
	request->busy = false;
	if (status == 200 && strcmp(text, request->is_hold ? "held\n" : "page\n") == 0)
		soak.totals.held += request->is_hold && hold->over_leave;
	else if (may_fail(request))
		soak.totals.requests_again++;
	else
		fail("HTTP: %s has got status %d after %lld ms: %s",
		     request->is_hold ? "a request held by a worker" : "a request", status,
		     (long long)(clutch_now() - request->since), text);
	*hold = (struct hold){0};
	return 0;
}

static void
ask(struct request *request, bool is_hold)
{
	char url[64];

	snprintf(url, sizeof url, "http://127.0.0.1:%d/%s?%d", soak.port, is_hold ? "hold" : "",
	         (int)(request - requests));
	shared->holds[request - requests] = (struct hold){0};
	*request = (struct request){.busy = true, .is_hold = is_hold, .since = clutch_now()};
	if (http_get(soak.messenger, url, ANSWER_LIMIT, on_answer, request) == 0) {
		pending++;
		return;
	}
	request->busy = false;
	if (!may_fail(request))
		fail("HTTP: cannot send a request: %s", strerror(errno));
}

/* Ask for held pages, and for others until `most` requests are on their way. */
void
pages_ask(int most, int holds)
{
	int i;

	for (i = 0; i < REQUESTS && (holds > 0 || pending < most); i++) {
		if (requests[i].busy)
			continue;
		ask(&requests[i], holds > 0);
		holds--;
	}
}
