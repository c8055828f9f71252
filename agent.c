/*
 * The agent role; and how agent and app worker leave.
 *
 * egg: egg-cluster/lib/agent_worker.js, npm graceful-process
 *
 * The agent ends in two cases only: SIGTERM, exit 0; and the end of its channel,
 * exit 110 (its master must have died). What it fails at meanwhile is logged.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#define CLUTCH_PRIVATE
#include "messenger.h"

#include <signal.h>
#include <stdio.h>
#include <unistd.h>

/* egg's exit code of an agent that has lost its master */
#define EXIT_DISCONNECTED 110

/* ---- egg-cluster/lib/agent_worker.js ------------------------------------- */

static void
on_ready(struct messenger *agent, int status) /* :47 ready */
{
	if (status != 0) /* :49 err */
		clutch_process_fail(agent);
	clutch_process_catch_sigterm();
	messenger_tell(agent, ROLE_MASTER, "agent-start", NULL); /* :52 */
}

static void
on_uncaught(struct messenger *agent, int result, const char *where)
{
	if (agent->channel.write_closed || agent->channel.descriptor == -1)
		return; /* the master is gone: what cannot be sent any more is no news */
	clutch_log(CLUTCH_ERROR, "[agent_worker] uncaught error %d in a %s", result, where);
}

void
agent_run(struct messenger *agent, const struct options *options)
{
	int code;

	agent->on_ready = on_ready;
	agent->on_uncaught = on_uncaught;
	clutch_process_start(agent, options->agent, options->arg);
	while (!clutch_process_terminated() && agent->channel.descriptor != -1)
		messenger_step(agent, -1);
	code = clutch_process_terminated() ? 0 : EXIT_DISCONNECTED;
	clutch_log(code == 0 ? CLUTCH_INFO : CLUTCH_WARN,
	           "[agent_worker] receive %s, exiting with code:%d",
	           code == 0 ? "signal SIGTERM" : "disconnect event", code);
	clutch_process_leave(agent, code, options->agent_close_timeout);
	clutch_process_exit(code);
}

/* ---- npm graceful-process ------------------------------------------------ */

static volatile sig_atomic_t terminated, exit_code, seconds_left;

static void
on_sigterm(int number)
{
	(void)number;
	terminated = 1;
	clutch_wake_up();
}

/* The callbacks of before_close, or the last connections, take too long. Counted by the
 * second, so that the time in which the process was stopped does not count. */
static void
on_sigalrm(int number)
{
	(void)number;
	if (seconds_left-- <= 0)
		_exit(exit_code);
	alarm(1);
}

static int
on_wake(struct messenger *messenger, int descriptor, short revents, void *arg)
{
	(void)messenger, (void)revents, (void)arg;
	clutch_wake_drain(descriptor);
	return 0;
}

void
clutch_process_start(struct messenger *messenger, messenger_callback role, void *arg)
{
	int descriptor = clutch_wake_open();

	terminated = 0; /* a worker that was leaving may have started this cluster */
	if (descriptor == -1 || messenger_own(messenger) != 0 ||
	    messenger_watch(messenger, descriptor, POLLIN, on_wake, NULL) == -1 ||
	    (role != NULL && role(messenger, arg) != 0))
		clutch_process_fail(messenger);
	if (messenger->ready_later || messenger->ready)
		clutch_process_catch_sigterm(); /* until here SIGTERM kills, as it does in egg */
	else
		messenger_ready(messenger, 0);
}

/* egg: start error */
void
clutch_process_fail(const struct messenger *messenger)
{
	clutch_log(CLUTCH_ERROR, "[%s_worker] start error, exiting with code:1",
	           clutch_role_name(messenger->role));
	clutch_process_exit(1); /* D19 */
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
clutch_process_leave(struct messenger *messenger, int code, int timeout)
{
	sigset_t set;
	bool failed;

	messenger_resume(messenger);
	exit_code = code;
	clutch_catch_signal(SIGALRM, on_sigalrm);
	sigemptyset(&set);
	sigaddset(&set, SIGALRM);
	sigprocmask(SIG_UNBLOCK, &set, NULL); /* the starter may have blocked it */
	seconds_left = timeout / 1000;
	alarm(1);
	failed = messenger_run_closers(messenger) != 0;
	clutch_log(failed ? CLUTCH_WARN : CLUTCH_INFO, "[%s_worker] beforeExit %s",
	           clutch_role_name(messenger->role), failed ? "fail" : "success");
}

/* exit(3) would run the handlers of the program that started the cluster, and move the
 * offset of its standard input, which all processes share. */
void
clutch_process_exit(int code)
{
	messenger_flush_own();
	fflush(NULL);
	_exit(code);
}
