/*
 * The agent role; and how agent and app worker leave.
 *
 * egg: egg-cluster/lib/agent_worker.js, npm graceful-process
 *
 * The agent ends in two cases only: SIGTERM, exit 0; and the end of its channel,
 * exit 110 (its master must have died). What it fails at meanwhile is logged.
 */
#define CLUTCH_PRIVATE
#include "messenger.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

/* egg's exit code of an agent that has lost its master */
#define EXIT_DISCONNECTED 110

/* ---- graceful-process ---------------------------------------------------- */

static volatile sig_atomic_t terminated;
static volatile sig_atomic_t exit_code;

static void
on_sigterm(int number)
{
	(void)number;
	terminated = 1;
	clutch_wake_up();
}

/* The callbacks of before_close, or the last connections, take too long. */
static void
on_sigalrm(int number)
{
	(void)number;
	_exit(exit_code);
}

static int
on_wake(struct messenger *messenger, int descriptor, short revents, void *arg)
{
	(void)messenger, (void)revents, (void)arg;
	clutch_wake_drain(descriptor);
	return 0;
}

int
clutch_process_start(struct messenger *messenger, const char *label, messenger_callback role,
                       void *arg)
{
	int descriptor = clutch_wake_open();

	if (descriptor == -1 || messenger_own(messenger) != 0 ||
	    messenger_watch(messenger, descriptor, POLLIN, on_wake, NULL) == -1 ||
	    (role != NULL && role(messenger, arg) != 0)) {
		clutch_print_line(STDERR_FILENO, "[%s] start error, exiting with code:1", label);
		return -1;
	}
	if (messenger->ready_later || messenger->ready)
		clutch_process_catch_sigterm(); /* until here SIGTERM kills, as it does in egg */
	else
		messenger_ready(messenger, 0);
	return 0;
}

void
clutch_process_catch_sigterm(void)
{
	clutch_catch_signal(SIGTERM, on_sigterm);
}

bool
clutch_process_terminated(void)
{
	return terminated != 0;
}

void
clutch_process_leave(struct messenger *messenger, const char *label, int code, int timeout)
{
	exit_code = code;
	clutch_catch_signal(SIGALRM, on_sigalrm);
	alarm((unsigned)timeout / 1000 + 1);
	if (messenger_run_closers(messenger) == 0)
		clutch_print_line(STDOUT_FILENO, "[%s] beforeExit success", label);
	else
		clutch_print_line(STDERR_FILENO, "[%s] beforeExit fail", label);
}

/* Tell the master, whatever else waits in the queue: this it waits for. */
void
clutch_process_tell(struct messenger *messenger, const char *action, const char *data)
{
	messenger->channel.limit = SIZE_MAX;
	while (messenger_send(messenger, action, data, ROLE_MASTER) == -1 && errno == ENOMEM)
		poll(NULL, 0, 10);
	messenger->channel.limit = CHANNEL_QUEUE_MAX;
}

/* ---- egg-cluster/lib/agent_worker.js ------------------------------------- */

static void
on_ready(struct messenger *agent, int status)
{
	if (status != 0) { /* D19 */
		clutch_print_line(STDERR_FILENO, "[agent_worker] start error, exiting with code:1");
		exit(1);
	}
	clutch_process_catch_sigterm();
	clutch_process_tell(agent, "agent-start", NULL);
}

static void
on_uncaught(struct messenger *agent, int result, const char *where)
{
	(void)agent;
	clutch_print_line(STDERR_FILENO, "[agent_worker] uncaught error %d in a %s", result, where);
}

void
agent_run(struct messenger *agent, const struct options *options)
{
	int code;

	agent->on_ready = on_ready;
	agent->on_uncaught = on_uncaught;
	if (clutch_process_start(agent, "agent_worker", options->agent, options->arg) == -1)
		exit(1);
	while (!terminated && agent->channel.descriptor != -1)
		messenger_step(agent, -1);
	if (!terminated)
		messenger_step(agent, 0); /* a SIGTERM that comes with the end explains it */
	code = terminated ? 0 : EXIT_DISCONNECTED;
	if (terminated)
		clutch_print_line(STDOUT_FILENO,
		           "[agent_worker] receive signal SIGTERM, exiting with code:0");
	else
		clutch_print_line(STDERR_FILENO,
		           "[agent_worker] receive disconnect event, exiting with code:110");
	clutch_process_leave(agent, "agent_worker", code, options->agent_close_timeout);
	exit(code);
}
