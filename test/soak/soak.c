/*
 * A storm: clusters under full traffic. Their processes are killed, stopped, replaced and
 * starved at random, and no process that lives misses a message.
 *
 *	soak [-s SEED] [-f STATE_FILE] [-o RESULT_FILE] [SECONDS]
 *
 * This program is the parent of one master after the other. Every process, the parent
 * too, sends numbered messages:
 *
 *	by pid      app, agent and parent to each app; app and parent to the agent
 *	to agent    app and parent, to the process that is the agent
 *	to apps     app, agent and parent, to all that are apps (an app to itself, too)
 *	to parent   app and agent
 *
 * Each receiver checks for each sender (a process, not a slot: a replacement is another
 * process) and for each of these four ways:
 *
 *  - the numbers that it hears are consecutive: none is missing, none comes twice, none
 *    comes late; and across the four ways the order of sending is kept;
 *  - by pid and to the parent the first number is 1: the sender counts for each pid anew,
 *    from the moment that it first addresses it;
 *  - to agent and to apps the first number is 1 if the receiver is older than the sender;
 *    a newcomer hears from any number on. Messages from before its birth have waited for
 *    it in a queue with a limit: there the numbers may have gaps;
 *  - no process hears a message to the pid of another one;
 *  - in a pause, each process has heard all that was sent to it by processes that live, and
 *    by processes that left when they were told to.
 *
 * (By pid: as long as no pid is given out twice in the life of one master.)
 *
 * No claim is made for a message to a process that is dead, or that is killed before it
 * has read the message. But a worker that a reload replaces reads its channel to the end:
 * claims.c says which messages it must have heard. A sender whose queue is full tries the
 * same number again later.
 *
 * The parent looks at the master in two pauses of a life, when the master has the same
 * processes to care for. In the second pause the master holds as many descriptors as in the
 * first, and hardly more memory; it has no zombie and no child too many. It never has more
 * than SOAK_RSS_MAX in memory. When the master is told to end, it exits with 0, after its
 * last child. When it is killed, its children leave by themselves, and the next master
 * starts at once.
 *
 * While the storm lasts, processes send and none is stopped, the parent is never without a
 * message for SILENCE_LIMIT, whatever a helper, a slow reader or the log does. A request that
 * a worker has begun to answer is answered, even if a reload replaces the worker meanwhile.
 *
 * The seed decides the actions of the parent, and their times. It does not decide how the
 * system schedules, so a run cannot be repeated exactly. The state file keeps the sums:
 * the next run continues one that was interrupted, up to SECONDS in all.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "soak.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
	SECONDS_LEAST = 10,
	/* How long a master lives, in milliseconds. */
	KILLED_LEAST = 5000, /* one that is to be killed: this, and up to KILLED_MORE more */
	KILLED_MORE = 15000,
	MEASURED_LEAST = 20000, /* one that is to be measured: this, doubled up to three times */
	DOUBLINGS = 4,
	LEAST = 3000 /* no life is planned shorter */
};

struct soak soak = {.seed = 0, .state_path = "build/soak.state"};

/* ---- signals ------------------------------------------------------------------ */

static void
kill_all_processes(void)
{
	int i;

	if (soak.master > 0)
		kill(soak.master, SIGKILL);
	for (i = 1; shared != NULL && i < shared->record_count && i < RECORDS; i++)
		if (shared->records[i].pid > 0 && !soak.victims[i].dead) {
			kill(shared->records[i].pid, SIGKILL);
			kill(-shared->records[i].pid, SIGKILL);
		}
	for (i = 0; shared != NULL && i < shared->helper_count && i < HELPERS; i++)
		if (shared->helpers[i].pid > 0 && soak.helpers_over[i] == 0)
			kill(shared->helpers[i].pid, SIGKILL);
}

static void
on_alarm(int number)
{
	static const char message[] = "soak: FAILED, the run hangs, or was told to end twice\n";

	(void)number;
	kill_all_processes();
	_exit(write(STDERR_FILENO, message, sizeof message - 1) >= 0 ? 1 : 2);
}

/* The first signal ends the run in good order, the second one ends it at once. */
static void
on_interrupt(int number)
{
	if (soak.interrupted != 0)
		on_alarm(number);
	soak.interrupted = number;
}

/* ---- the run -------------------------------------------------------------------- */

/* A port that every master of this run binds. */
static int
choose_port(void)
{
	struct sockaddr_in address = {.sin_family = AF_INET,
	                              .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t length = sizeof address;
	int descriptor = socket(AF_INET, SOCK_STREAM, 0);

	if (descriptor == -1 ||
	    bind(descriptor, (struct sockaddr *)&address, sizeof address) == -1 ||
	    getsockname(descriptor, (struct sockaddr *)&address, &length) == -1)
		return -1;
	close(descriptor);
	return ntohs(address.sin_port);
}

static int
prepare(void)
{
	static const int ends[] = {SIGTERM, SIGINT, SIGHUP, SIGQUIT};
	size_t i;

	soak.port = choose_port();
	if (soak.port == -1 || pipe(soak.log) == -1 ||
	    fcntl(soak.log[0], F_SETFL, O_NONBLOCK) == -1 ||
	    fcntl(soak.log[0], F_SETFD, FD_CLOEXEC) == -1 ||
	    fcntl(soak.log[1], F_SETFD, FD_CLOEXEC) == -1 || prctl(PR_SET_CHILD_SUBREAPER, 1) == -1)
		return -1;
	signal(SIGALRM, on_alarm);
	signal(SIGPIPE, SIG_IGN);
	for (i = 0; i < sizeof ends / sizeof ends[0]; i++)
		signal(ends[i], on_interrupt);
	random_seed(soak.seed + (unsigned long)soak.totals.runs);
	return 0;
}

/* One life is killed, the next one is measured. */
static void
run(void)
{
	bool to_be_killed = soak.totals.masters_killed <= soak.totals.masters_ended;
	int64_t left, length;

	while (!soak.interrupted && (left = soak.target - soak.totals.milliseconds) > 0) {
		if (to_be_killed)
			length = KILLED_LEAST + random_below(KILLED_MORE);
		else
			length = (int64_t)MEASURED_LEAST << random_below(DOUBLINGS);
		if (to_be_killed && length > left / 2)
			length = left / 2;
		if (!to_be_killed && length > left - LEAST)
			length = left;
		live(length > LEAST ? length : LEAST, to_be_killed);
		to_be_killed = !to_be_killed;
		totals_save();
	}
	end_lives();
}

static void
judge(void)
{
	const struct totals *all = &soak.totals;
	int part;

	if (all->lost + all->lost_by_reload + all->doubled + all->disordered + all->damaged +
	            all->astray !=
	    0)
		fail("messages: %lld lost, %lld of them by reloads, %lld doubled, %lld out of "
		     "order, "
		     "%lld damaged, %lld astray",
		     all->lost + all->lost_by_reload, all->lost_by_reload, all->doubled,
		     all->disordered, all->damaged, all->astray);
	if (all->delivered == 0)
		fail("no message was delivered");
	if (all->masters_killed == 0)
		fail("no master was killed");
	for (part = 0; part < PARTS; part++)
		if (!part_has_occurred((enum part)part) && part_skipped((enum part)part) == NULL)
			fail("this part of the storm has not occurred: %s", part_names[part]);
}

/* ---- the command line ----------------------------------------------------------- */

static int
usage(void)
{
	fprintf(stderr,
	        "usage: soak [-s SEED] [-f STATE_FILE] [-o RESULT_FILE] [SECONDS, %d or more]\n",
	        SECONDS_LEAST);
	return 2;
}

static bool
parse_number(const char *text, unsigned long *number)
{
	char *end;

	errno = 0;
	*number = strtoul(text, &end, 10);
	return text[0] >= '0' && text[0] <= '9' && *end == '\0' && errno == 0;
}

/* An option whose text is empty is an option that was not given: make passes those. */
static bool
parse_options(int argc, char **argv, unsigned long *seconds, bool *seed_given)
{
	int option;

	while ((option = getopt(argc, argv, "s:f:o:")) != -1) {
		if (option == '?')
			return false;
		if (optarg[0] == '\0')
			continue;
		if (option == 's' && !parse_number(optarg, &soak.seed))
			return false;
		*seed_given |= option == 's';
		if (option == 'f')
			soak.state_path = optarg;
		if (option == 'o')
			soak.result_path = optarg;
	}
	if (optind < argc && !parse_number(argv[optind++], seconds))
		return false;
	return optind == argc && *seconds >= SECONDS_LEAST && *seconds <= 100000000;
}

/* Begin, or go on where the state file ends. Returns -1 after a line that says why not. */
static int
begin(bool seed_given)
{
	unsigned long seed = seed_given ? soak.seed : (unsigned long)clutch_now();

	if (totals_load() == -1) {
		fprintf(stderr, "soak: cannot read %s: %s\n", soak.state_path, strerror(errno));
		return -1;
	}
	if (soak.totals.runs > 0 && soak.totals.milliseconds >= soak.target) {
		fprintf(stderr, "soak: %s has %lld s already: give more SECONDS, or remove it\n",
		        soak.state_path, soak.totals.milliseconds / 1000);
		return -1;
	}
	if (soak.totals.runs > 0 && seed_given && (long long)seed != soak.totals.seed) {
		fprintf(stderr, "soak: %s has the seed %lld: give the same SEED, or remove it\n",
		        soak.state_path, soak.totals.seed);
		return -1;
	}
	if (soak.totals.runs == 0)
		soak.totals.seed = (long long)seed;
	soak.seed = (unsigned long)soak.totals.seed;
	soak.totals.runs++;
	if (totals_save() == -1) {
		fprintf(stderr, "soak: cannot write %s: %s\n", soak.state_path, strerror(errno));
		return -1;
	}
	printf("soak: %lld s, from %lld s on; seed %lu\n", (long long)soak.target / 1000,
	       soak.totals.milliseconds / 1000, soak.seed);
	return fflush(stdout);
}

int
main(int argc, char **argv)
{
	unsigned long seconds = 60;
	bool seed_given = false;
	int status;

	if (!parse_options(argc, argv, &seconds, &seed_given))
		return usage();
	soak.target = (int64_t)seconds * 1000;
	if (begin(seed_given) == -1)
		return 2;
	if (prepare() == -1) {
		fprintf(stderr, "soak: cannot start: %s\n", strerror(errno));
		return 1;
	}
	run();
	if (soak.interrupted) {
		totals_save();
		status = totals_report();
		printf("soak: interrupted; the same command goes on from here\n");
		return status != 0 ? status : 128 + (int)soak.interrupted;
	}
	judge();
	status = totals_report();
	unlink(soak.state_path); /* the total is reached: the next run begins anew */
	return status;
}
