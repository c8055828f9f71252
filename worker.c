/*
 * The app worker role: the shared port, and leaving without dropping a connection.
 *
 * egg: egg-cluster/lib/app_worker.js, npm graceful, npm graceful-process
 *
 * How a worker leaves, and when:
 *
 *	why                    first                      then                     exit
 *	SIGTERM                its connections finish     its channel is heard     0
 *	                                                  to the end
 *	the master dies        its connections finish     -                        0 (not ready: 1)
 *	an uncaught error, or  its channel is closed, so  its connections finish   1
 *	messenger_graceful_    that the master forks a
 *	exit                   replacement
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#define CLUTCH_PRIVATE
#include "messenger.h"

#include <errno.h>
#include <sched.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* How long the process accepts no connection when it is out of descriptors or memory, in ms. */
#define ACCEPT_PAUSE 100

/* What the role knows; there is one app worker in a process. */
static struct {
	const struct options *options;
	int listener;
	const char *address; /* JSON */
	bool was_first;      /* it accepted the last time it tried */
	bool is_short;       /* of descriptors or memory, and has said so */
	bool terminated, leaving;
	bool disconnects; /* it leaves gracefully */
	bool shut;        /* it has closed its half of the channel itself */
	int code;
	int64_t deadline; /* of the connections, when leaving */
} worker;

static int on_connection(struct messenger *app, int listener, short revents, void *arg);

/* ---- egg-cluster/lib/app_worker.js --------------------------------------- */

/* egg: startServer */
static void
on_ready(struct messenger *app, int status) /* :79 startServer */
{
	if (status != 0) /* :80 err */
		clutch_process_fail(app);
	if (worker.listener != -1 && messenger_watch(app, worker.listener, POLLIN, on_connection,
	                                             NULL) == -1) /* :108 server */
		clutch_process_fail(app);
	clutch_process_catch_sigterm();
	messenger_tell(app, ROLE_MASTER, "listening", worker.address); /* :163 */
	if (channel_flush(&app->channel) == PEER_GONE)
		clutch_process_exit(1); /* the master died while this process was busy loading */
}

/* ---- accepting ----------------------------------------------------------- */

static int
accept_again(struct messenger *app, void *arg)
{
	(void)arg;
	if (!worker.leaving &&
	    messenger_watch(app, worker.listener, POLLIN, on_connection, NULL) == -1)
		messenger_set_timeout(app, ACCEPT_PAUSE, accept_again, NULL);
	return 0;
}

static void
on_accept_error(struct messenger *app, int error)
{
	switch (error) {
	case EMFILE:
	case ENFILE:
	case ENOMEM:
	case ENOBUFS:
		if (!worker.is_short)
			clutch_log(CLUTCH_WARN,
			           "[app_worker] cannot accept: no descriptor or memory left");
		worker.is_short = true;
		if (messenger_set_timeout(app, ACCEPT_PAUSE, accept_again, NULL) != -1)
			messenger_unwatch(app, worker.listener);
		return;
	case EBADF:
	case EINVAL:
	case ENOTSOCK:
		clutch_log(CLUTCH_ERROR, "[app_worker] accepts no more: the shared listener was "
		                         "shut down; restart the cluster");
		messenger_unwatch(app, worker.listener);
		return;
	default: /* another worker was first, or the client has left */
		return;
	}
}

/* The listener became readable in every worker at once (a thundering herd), and one of
 * them gets the connection: so the listener is non-blocking, or the others would hang in
 * accept. One connection a turn, and the worker that accepted last yields, so that
 * connections spread. */
static int
on_connection(struct messenger *app, int listener, short revents, void *arg)
{
	int descriptor, result;

	(void)revents, (void)arg;
	if (worker.was_first)
		sched_yield();
	descriptor = accept(listener, NULL, NULL);
	worker.was_first = descriptor != -1;
	if (descriptor == -1) {
		on_accept_error(app, errno);
		return 0;
	}
	worker.is_short = false;
	if (clutch_set_flags(descriptor) == -1) {
		close(descriptor);
		return 0;
	}
	app->accepted = descriptor;
	result = worker.options->connection(app, descriptor, worker.options->arg);
	app->accepted = -1;
	return result;
}

/* ---- leaving: npm graceful, npm graceful-process -------------------------- */

/* egg: npm graceful, uncaughtException */
static void
on_uncaught(struct messenger *app, int result, const char *where)
{
	if ((app->channel.write_closed || app->channel.descriptor == -1) && !worker.shut)
		return; /* the master is gone: what cannot be sent any more is no news */
	clutch_log(CLUTCH_ERROR, "[app_worker] uncaught error %d in a %s", result, where);
	if (!app->ready && !worker.leaving)
		clutch_process_exit(1);
	messenger_graceful_exit(app);
}

/* Stop accepting; the loop goes on until the last connection has ended. */
static void
leave(struct messenger *app, int code, int timeout)
{
	worker.leaving = true;
	worker.code = code;
	worker.deadline = clutch_now() + timeout;
	if (worker.listener != -1) {
		messenger_unwatch(app, worker.listener);
		close(worker.listener);
		worker.listener = -1;
	}
	clutch_process_leave(app, code, timeout);
}

/* egg: worker.disconnect(). When all is written, this end stops writing. The master then
 * closes its own end, and what it had sent until then still arrives. */
static void
disconnect(struct messenger *app)
{
	if (app->channel.write_closed || app->channel.descriptor == -1)
		return;
	channel_flush(&app->channel);
	if (channel_pending(&app->channel) > 0)
		return;
	app->channel.write_closed = worker.shut = true;
	shutdown(app->channel.descriptor, SHUT_WR);
}

/* Is there a reason to leave? SIGTERM is one even if the worker is already leaving. */
static void
consider_leaving(struct messenger *app)
{
	int timeout = worker.options->app_close_timeout;
	int patience = timeout - timeout / 10; /* the worker ends before the master's SIGKILL */

	if (clutch_process_terminated() && !worker.terminated) {
		worker.terminated = true;
		clutch_log(CLUTCH_INFO, "[app_worker] receive signal SIGTERM, exiting with code:0");
		leave(app, 0, patience);
	} else if (app->graceful && !worker.leaving) {
		clutch_log(CLUTCH_WARN, "[app_worker] will exit after %dms at most",
		           worker.options->graceful_timeout);
		worker.disconnects = true;
		disconnect(app); /* the sooner there is a replacement */
		leave(app, 1, worker.options->graceful_timeout);
	} else if (app->channel.descriptor == -1 && !worker.leaving) {
		clutch_log(CLUTCH_WARN, "[app_worker] receive disconnect event, exiting");
		leave(app, app->ready ? 0 : 1, patience);
	}
}

/* Has everything ended that is worth waiting for (D20)? */
static bool
has_left(const struct messenger *app)
{
	return worker.leaving && (clutch_now() >= worker.deadline ||
	                          (app->connections == 0 && app->channel.descriptor == -1));
}

void
worker_run(struct messenger *app, const struct options *options, int listener, const char *address)
{
	int64_t left, before, late;

	memset(&worker, 0, sizeof worker);
	worker.options = options;
	worker.listener = listener;
	worker.address = address;
	app->on_ready = on_ready;
	app->on_uncaught = on_uncaught;
	clutch_process_start(app, options->app, options->arg);
	for (;;) {
		consider_leaving(app);
		if (worker.leaving && (worker.disconnects || app->connections == 0))
			disconnect(app);
		if (has_left(app))
			break;
		before = clutch_now();
		left = worker.deadline - before;
		left = !worker.leaving || left > 1000 ? 1000 : left > 0 ? left : 0;
		messenger_step(app, worker.leaving ? (int)left : -1);
		late = clutch_now() - before - left;
		if (worker.leaving && late > 1000) /* the process was stopped meanwhile */
			worker.deadline += late;
	}
	clutch_process_exit(worker.code);
}
