/*
 * The app worker role: the shared port, and leaving without dropping anybody.
 *
 * egg: egg-cluster/lib/app_worker.js, npm graceful, npm graceful-process
 *
 *	what happens              channel                        connections   exit
 *	SIGTERM                   until the end                  finish        0
 *	the master dies           is gone                        finish        0 (not ready: 1)
 *	an uncaught error, or     closed at once, so that the    finish        1
 *	messenger_graceful_exit   master forks a replacement
 */
#define CLUTCH_PRIVATE
#include "messenger.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

/* Out of descriptors or memory: nobody is accepted for so long. */
#define ACCEPT_PAUSE 100

/* What app_worker is about; there is one in a process. */
static struct {
	const struct options *options;
	int listener;
	const char *address; /* JSON */
	bool was_first;      /* it accepted the last time it tried */
	bool terminated, leaving;
	bool disconnects; /* it leaves gracefully */
	int code;
	int64_t deadline; /* of the connections, when leaving */
} worker;

static int on_connection(struct messenger *app, int listener, short revents, void *arg);

static int
accept_again(struct messenger *app, void *arg)
{
	(void)arg;
	if (!worker.leaving)
		messenger_watch(app, worker.listener, POLLIN, on_connection, NULL);
	return 0;
}

/* One connection a turn: the others are for the other workers. All of them were
 * woken for this one, and whose turn it was last lets the others go first. */
static int
on_connection(struct messenger *app, int listener, short revents, void *arg)
{
	int descriptor, result;

	if (worker.was_first)
		sched_yield();
	descriptor = accept(listener, NULL, NULL);
	worker.was_first = descriptor != -1;

	(void)revents, (void)arg;
	if (descriptor == -1) {
		if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
			clutch_print_line(STDERR_FILENO,
			           "[app_worker] cannot accept: no descriptor or memory left");
			messenger_unwatch(app, listener);
			messenger_set_timeout(app, ACCEPT_PAUSE, accept_again, NULL);
		}
		return 0; /* otherwise another worker was first, or the client has left */
	}
	if (fcntl(descriptor, F_SETFL, O_NONBLOCK) == -1 ||
	    fcntl(descriptor, F_SETFD, FD_CLOEXEC) == -1) {
		close(descriptor);
		return 0;
	}
	app->accepted = descriptor;
	result = worker.options->connection(app, descriptor, worker.options->arg);
	app->accepted = -1;
	return result;
}

/* egg: startServer */
static void
on_ready(struct messenger *app, int status)
{
	if (status != 0 ||
	    (worker.listener != -1 &&
	     messenger_watch(app, worker.listener, POLLIN, on_connection, NULL) == -1)) { /* D19 */
		clutch_print_line(STDERR_FILENO, "[app_worker] start error, exiting with code:1");
		exit(1);
	}
	clutch_process_catch_sigterm();
	clutch_process_tell(app, "listening", worker.address);
	if (channel_flush(&app->channel) == PEER_GONE)
		exit(1); /* the master died while this process was busy loading */
}

/* egg: npm graceful, uncaughtException */
static void
on_uncaught(struct messenger *app, int result, const char *where)
{
	clutch_print_line(STDERR_FILENO, "[app_worker] uncaught error %d in a %s", result, where);
	if (!app->ready && !worker.leaving)
		exit(1);
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
	clutch_process_leave(app, "app_worker", code, timeout);
}

/* egg: worker.disconnect(). When all is written, our half of the channel is closed;
 * the master then closes its own, and what it had sent until then still arrives. */
static void
disconnect(struct messenger *app)
{
	if (app->channel.write_closed || app->channel.descriptor == -1)
		return;
	channel_flush(&app->channel);
	if (channel_pending(&app->channel) > 0)
		return;
	app->channel.write_closed = true;
	shutdown(app->channel.descriptor, SHUT_WR);
}

/* Is there a reason to leave? SIGTERM is one even for who is leaving. */
static void
consider_leaving(struct messenger *app)
{
	int timeout = worker.options->app_close_timeout;
	int patience = timeout - timeout / 10; /* it ends before the master's SIGKILL */

	if (clutch_process_terminated() && !worker.terminated) {
		worker.terminated = true;
		clutch_print_line(STDOUT_FILENO,
		           "[app_worker] receive signal SIGTERM, exiting with code:0");
		leave(app, 0, patience);
	} else if (app->graceful && !worker.leaving) {
		clutch_print_line(STDERR_FILENO, "[app_worker] will exit after %dms at most",
		           CLUTCH_GRACEFUL_TIMEOUT);
		worker.disconnects = true;
		disconnect(app); /* the sooner there is a replacement */
		leave(app, 1, CLUTCH_GRACEFUL_TIMEOUT);
	} else if (app->channel.descriptor == -1 && !worker.leaving) {
		clutch_print_line(STDERR_FILENO, "[app_worker] receive disconnect event, exiting");
		leave(app, app->ready ? 0 : 1, patience);
	}
}

/* Has all ended that is worth waiting for? (D20: at once, where there is none.) */
static bool
has_left(const struct messenger *app)
{
	bool disconnected = app->channel.descriptor == -1 || !worker.disconnects;

	return worker.leaving &&
	       (clutch_now() >= worker.deadline || (app->connections == 0 && disconnected));
}

void
worker_run(struct messenger *app, const struct options *options, int listener, const char *address)
{
	int64_t left;

	worker.options = options;
	worker.listener = listener;
	worker.address = address;
	app->on_ready = on_ready;
	app->on_uncaught = on_uncaught;
	if (clutch_process_start(app, "app_worker", options->app, options->arg) == -1)
		exit(1);
	for (;;) {
		consider_leaving(app);
		if (has_left(app))
			break;
		if (worker.disconnects)
			disconnect(app);
		left = worker.deadline - clutch_now();
		messenger_step(app, !worker.leaving ? -1 : left > 0 ? (int)left : 0);
	}
	exit(worker.code);
}
