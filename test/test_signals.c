/*
 * The signals of a caller: it handles, blocks or ignores them. Clutch sets those that it
 * needs, runs no handler of the caller's, and puts back what it has changed. What an
 * application starts finds the signals as the caller had them.
 *
 * Each test forks a program that calls clutch as its author would: see caller.h.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "caller.h"

#include <time.h>

TestSuite(signals, .timeout = 60);

/* ---- the caller's signal handlers ------------------------------------------------ */

static int wanted_signal;

/* Every process inherits WORDS, so that the test reads this line wherever the handler runs. */
static void
callers_handler(int number)
{
	static const char line[] = "the caller's handler has run\n";
	int saved = errno;

	(void)number;
	if (write(WORDS, line, sizeof line - 1) == -1)
		errno = saved;
}

/* SIGCHLD is left out, because the caller gets it when a forked master ends. */
static void
handle_all(void)
{
	static const int handled[] = {SIGHUP,  SIGINT,   SIGQUIT, SIGUSR1, SIGUSR2, SIGTERM,
	                              SIGPIPE, SIGWINCH, SIGURG,  SIGPROF, SIGALRM};
	size_t i;

	for (i = 0; i < sizeof handled / sizeof handled[0]; i++)
		signal(handled[i], callers_handler);
}

/* Let this time pass without giving up the processor. */
static void
spin(long microseconds)
{
	struct timespec begin, now;

	clock_gettime(CLOCK_MONOTONIC, &begin);
	do
		clock_gettime(CLOCK_MONOTONIC, &now);
	while ((now.tv_sec - begin.tv_sec) * 1000000 + (now.tv_nsec - begin.tv_nsec) / 1000 <
	       microseconds);
}

/* A cluster that gets a signal at once, or a few microseconds after it was forked. */
static int
forks_and_signals(void)
{
	const struct options options = {.agent = role, .app = role, .workers = 1};
	struct messenger *parent;
	int i, status;
	int64_t deadline;
	pid_t master;

	signal(SIGTERM, callers_handler);
	signal(SIGINT, callers_handler);
	signal(SIGHUP, callers_handler);
	for (i = 0; i < 20; i++) {
		parent = fork_cluster(&options, &master);
		spin(20 * i);
		kill(master, wanted_signal);
		if (wanted_signal == SIGHUP) /* the master need not end at SIGHUP */
			kill(master, SIGTERM);
		deadline = clutch_now() + 2000 * time_scale();
		while (waitpid(master, &status, WNOHANG) == 0 && clutch_now() < deadline)
			messenger_step(parent, 5);
		messenger_close(parent);
		if (clutch_now() >= deadline) {
			say("signal %d is lost", i + 1);
			return 1;
		}
		say("it has ended");
	}
	return 0;
}

static void
signal_at_once(int number)
{
	struct caller *c;

	wanted_signal = number;
	c = caller_start(forks_and_signals);
	caller_until(c, caller_is_dead, NULL);
	caller_assert(c, caller_count(c, "the caller's handler") == 0,
	              "the caller's handler has run in its master");
	caller_ends(c, 0);
	caller_assert(c, caller_count(c, "it has ended") == 20, "not every cluster has ended");
	caller_free(c);
}

Test(signals, a_SIGTERM_right_after_the_fork_ends_the_cluster)
{
	signal_at_once(SIGTERM);
}

Test(signals, a_SIGINT_right_after_the_fork_ends_the_cluster)
{
	signal_at_once(SIGINT);
}

Test(signals, a_SIGHUP_right_after_the_fork_is_not_for_the_callers_handler)
{
	signal_at_once(SIGHUP);
}

static int
with_handlers(void)
{
	handle_all();
	return run_cluster(&(struct options){.agent = role, .app = role, .workers = 1, .port = -1});
}

/* A set of signals in /proc/PID/status, as SigCgt: bit n - 1 is signal n. */
static unsigned long long
signals_of(pid_t pid, const char *name)
{
	unsigned long long set = 0;
	char path[64], wanted[32];
	const char *line;

	snprintf(path, sizeof path, "/proc/%ld/status", (long)pid);
	snprintf(wanted, sizeof wanted, "\n%s:", name);
	line = strstr(content_of(path), wanted);
	cr_assert(line != NULL, "no %s of process %ld", name, (long)pid);
	sscanf(line + strlen(wanted), "%llx", &set);
	return set;
}

/* The process catches no signal that only the caller handles. */
static void
check_handlers(struct caller *c, const char *words)
{
	static const int foreign[] = {SIGWINCH, SIGURG, SIGPROF, SIGHUP};
	bool is_master = strcmp(words, "master is ") == 0; /* the master may handle SIGHUP */
	unsigned long long caught = signals_of(caller_number(c, words), "SigCgt");
	size_t i;

	for (i = 0; i < sizeof foreign / sizeof foreign[0] - is_master; i++)
		caller_assert(c, (caught >> (foreign[i] - 1) & 1) == 0,
		              "%s...: it catches %s, which only the caller does", words,
		              strsignal(foreign[i]));
}

/* The children get the signals and end; so a handler would have run before the test looks. */
static void
signal_the_children(bool by_fork)
{
	static const int numbers[] = {SIGWINCH, SIGURG, SIGUSR1, SIGINT, SIGHUP};
	struct caller *c;
	size_t i;

	forks = by_fork;
	c = caller_start(with_handlers);
	caller_wait(c, 0, "agent ready ");
	caller_wait(c, 0, "app ready ");
	if (by_fork)
		check_handlers(c, "master is ");
	check_handlers(c, "agent is ");
	check_handlers(c, "app is ");
	for (i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
		kill(caller_number(c, "agent is "), numbers[i]);
		kill(caller_number(c, "app is "), numbers[i]);
	}
	caller_stop(c);
	caller_assert(c, caller_count(c, "the caller's handler") == 0,
	              "the caller's handler has run");
	caller_free(c);
}

Test(signals, the_callers_handlers_do_not_run_in_the_children_of_start_cluster)
{
	signal_the_children(false);
}

Test(signals, the_callers_handlers_do_not_run_in_a_forked_cluster)
{
	signal_the_children(true);
}

/* ---- a blocked SIGALRM ------------------------------------------------------------- */

static int
hang(struct messenger *messenger, void *arg)
{
	(void)arg;
	say("%s hangs", clutch_role_name(messenger_role(messenger)));
	for (;;)
		pause();
	return 0;
}

static int
hangs_when_it_leaves(struct messenger *messenger, void *arg)
{
	return messenger_before_close(messenger, hang, arg) == 0 ? role(messenger, arg) : -1;
}

static int
with_SIGALRM_blocked(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGALRM);
	sigprocmask(SIG_BLOCK, &set, NULL);
	return run_cluster(&(struct options){.agent = hangs_when_it_leaves,
	                                     .app = hangs_when_it_leaves,
	                                     .workers = 2,
	                                     .app_close_timeout = 1000,
	                                     .agent_close_timeout = 1000});
}

static void
kill_the_master(bool by_fork)
{
	struct caller *c;

	forks = by_fork;
	c = caller_start(with_SIGALRM_blocked);
	caller_wait(c, 0, "app ready ");
	caller_wait(c, 0, "agent ready ");
	kill(caller_number(c, "master is "), SIGKILL);
	caller_wait(c, caller_wait(c, 0, "app hangs"), "app hangs");
	caller_wait(c, 0, "agent hangs");
	caller_assert(c, caller_until(c, caller_has_left, NULL),
	              "what hangs does not end after its close timeout");
	caller_free(c);
}

Test(signals, with_SIGALRM_blocked_what_hangs_ends_by_itself)
{
	kill_the_master(false);
}

Test(signals, with_SIGALRM_blocked_what_hangs_in_a_forked_cluster_ends_by_itself)
{
	kill_the_master(true);
}

/* ---- what an application starts finds what the caller had -------------------------- */

static unsigned long ignored_ones, blocked_ones; /* bit n: signal n */

/* Start a program, and report its output in one line behind `words`. */
static void
start_program(const char *words, const char *script)
{
	char text[1024];
	size_t length = 0;
	ssize_t count;
	int ends[2];

	if (pipe(ends) == -1)
		return;
	if (fork() == 0) {
		dup2(ends[1], STDOUT_FILENO);
		if (script != NULL)
			execl("/bin/sh", "sh", "-c", script, (char *)NULL);
		else
			execlp("grep", "grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status",
			       (char *)NULL);
		_exit(127);
	}
	close(ends[1]);
	while ((count = read(ends[0], text + length, sizeof text - 1 - length)) > 0 ||
	       (count == -1 && errno == EINTR))
		length += count > 0 ? (size_t)count : 0;
	close(ends[0]);
	wait(NULL); /* where SIGCHLD is ignored, the kernel reaps the child */
	text[length] = '\0';
	while (length > 0)
		if (text[--length] == '\n')
			text[length] = ' ';
	say("%s: %s", words, text);
}

/* yes | head -1, and the status with which "yes" has ended. */
static void
start_pipeline(const char *words)
{
	start_program(words, "exec 9>&1; (yes; echo $? >&9) 2>/dev/null | head -1 >/dev/null");
}

static int
start_at_the_end(struct messenger *messenger, void *arg)
{
	(void)messenger, (void)arg;
	start_program("a program finds", NULL);
	start_pipeline("a pipeline says");
	return 0;
}

static int
start_when_ready(struct messenger *messenger, const struct message *message, void *arg)
{
	start_at_the_end(messenger, arg);
	return say_ready(messenger, message, arg);
}

static int
role_that_starts(struct messenger *messenger, void *arg)
{
	start_at_the_end(messenger, arg);
	return messenger_once(messenger, "egg-ready", start_when_ready, arg) == 0
	               ? messenger_before_close(messenger, start_at_the_end, arg)
	               : -1;
}

static int
with_signals(void)
{
	sigset_t set;
	int number;

	setsid(); /* without a terminal, SIGTTIN and SIGTTOU do not come */
	sigemptyset(&set);
	for (number = 1; number < 32; number++) {
		if ((ignored_ones >> number & 1) != 0)
			signal(number, SIG_IGN);
		if ((blocked_ones >> number & 1) != 0)
			sigaddset(&set, number);
	}
	sigprocmask(SIG_BLOCK, &set, NULL);
	start_program("the caller finds", NULL);
	start_pipeline("the caller's pipeline says");
	run_cluster(&(struct options){
		.agent = role_that_starts, .app = role_that_starts, .workers = 1});
	return 0;
}

static void
all_say_the_same(const struct caller *c, const char *caller_words, const char *words)
{
	char expected[256], found[256];
	const char *at = NULL;
	int count = 0;

	line_behind(c, NULL, caller_words, expected);
	caller_assert(c, expected[0] != '\0', "nothing stands behind \"%s\"", caller_words);
	while ((at = line_behind(c, at, words, found)) != NULL) {
		caller_assert(c, strcmp(found, expected) == 0, "%s%s; but %s%s", caller_words,
		              expected, words, found);
		count++;
	}
	caller_assert(c, count == 6, "%d times \"%s\", not 6 times", count, words);
}

/* Each role starts a program three times: before it is ready, when it is, and when it leaves. */
static void
programs_find(bool by_fork, unsigned long ignored, unsigned long blocked)
{
	struct caller *c;

	forks = by_fork;
	ignored_ones = ignored;
	blocked_ones = blocked;
	c = caller_start(with_signals);
	caller_wait(c, 0, "app ready ");
	caller_wait(c, 0, "agent ready ");
	caller_stop(c);
	all_say_the_same(c, "the caller finds", "a program finds");
	all_say_the_same(c, "the caller's pipeline says", "a pipeline says");
	caller_free(c);
}

Test(signals, what_a_child_starts_finds_default_signals)
{
	programs_find(false, 0, 0);
}

Test(signals, what_a_forked_clusters_child_starts_finds_default_signals)
{
	programs_find(true, 0, 0);
}

#define BIT(number) (1ul << (number))

/* SIGTERM is not among them: a child catches it, and what is caught is the default after
 * exec, not ignored. The same is true of SIGALRM once a child leaves. */
#define IGNORED                                                                                    \
	(BIT(SIGHUP) | BIT(SIGINT) | BIT(SIGQUIT) | BIT(SIGPIPE) | BIT(SIGUSR1) | BIT(SIGUSR2) |   \
	 BIT(SIGCHLD) | BIT(SIGTSTP) | BIT(SIGTTIN) | BIT(SIGTTOU) | BIT(SIGXFSZ) |                \
	 BIT(SIGWINCH) | BIT(SIGURG))

Test(signals, what_a_child_starts_finds_ignored_what_the_caller_ignores)
{
	programs_find(false, IGNORED, 0);
}

Test(signals, what_a_forked_clusters_child_starts_finds_ignored_what_the_caller_ignores)
{
	programs_find(true, IGNORED, 0);
}

static int
load_for_ever(struct messenger *app, void *arg)
{
	(void)arg;
	report(app, "loads");
	for (;;)
		poll(NULL, 0, 1000);
	return 0;
}

/* Until an app is ready, SIGTERM kills it, whatever the caller does with SIGTERM. */
Test(signals, an_app_that_loads_does_not_ignore_SIGTERM_as_its_caller_does)
{
	struct cluster *c;

	signal(SIGTERM, SIG_IGN);
	c = cluster_start(&(struct options){.app = load_for_ever, .workers = 1});
	cluster_wait(c, 0, ":APP#1 loads");
	cluster_signal(c, "APP#1", SIGTERM);
	cr_assert_str_eq(cluster_wait_end(c, "APP#1"), "code: null, signal: SIGTERM");
	cluster_ended(c, 1);
}

/* SIGTERM and SIGALRM are not among them, because a child must be able to receive them. */
#define BLOCKED                                                                                    \
	(BIT(SIGHUP) | BIT(SIGINT) | BIT(SIGQUIT) | BIT(SIGPIPE) | BIT(SIGUSR1) | BIT(SIGUSR2) |   \
	 BIT(SIGCHLD) | BIT(SIGTSTP) | BIT(SIGWINCH))

Test(signals, what_a_child_starts_finds_blocked_what_the_caller_blocks)
{
	programs_find(false, 0, BLOCKED);
}

Test(signals, what_a_forked_clusters_child_starts_finds_blocked_what_the_caller_blocks)
{
	programs_find(true, 0, BLOCKED);
}

/* ---- what is changed is put back ---------------------------------------------------- */

static struct sigaction actions[32];
static sigset_t mask;

static void
note_signals(void)
{
	int number;

	sigprocmask(SIG_SETMASK, NULL, &mask);
	for (number = 1; number < 32; number++)
		sigaction(number, NULL, &actions[number]);
}

/* Report each setting that is not as it was noted. */
static void
compare_signals(const char *when)
{
	struct sigaction now;
	sigset_t set;
	int number;

	sigprocmask(SIG_SETMASK, NULL, &set);
	for (number = 1; number < 32; number++) {
		sigaction(number, NULL, &now);
		if (sigismember(&set, number) != sigismember(&mask, number))
			say("changed %s: is signal %d blocked", when, number);
		if (now.sa_handler != actions[number].sa_handler ||
		    now.sa_flags != actions[number].sa_flags)
			say("changed %s: what signal %d does", when, number);
	}
}

static int
starts_and_compares(void)
{
	const struct options options = {.agent = role, .app = role, .workers = 1};
	struct messenger *parent;
	struct sigaction once = {.sa_handler = callers_handler, .sa_flags = SA_RESTART};
	sigset_t set;
	pid_t master;

	sigfillset(&set);
	sigdelset(&set, SIGALRM);
	sigprocmask(SIG_SETMASK, &set, NULL);
	sigaction(SIGUSR1, &once, NULL);
	sigaction(SIGALRM, &once, NULL);
	signal(SIGINT, SIG_IGN);
	alarm(1000);
	note_signals();
	parent = fork_cluster(&options, &master);
	compare_signals("by fork_cluster");
	kill(master, SIGTERM);
	waitpid(master, NULL, 0);
	messenger_close(parent);
	compare_signals("by messenger_close");
	say("master is %ld", (long)getpid());
	start_cluster(&options);
	compare_signals("by start_cluster");
	if (alarm(0) < 900)
		say("changed: the alarm");
	return 0;
}

Test(signals, the_callers_signals_are_put_back)
{
	struct caller *c = caller_start(starts_and_compares);

	caller_wait(c, 0, "app ready ");
	caller_stop(c);
	caller_assert(c, caller_count(c, "changed") == 0, "a signal is not as it was before");
	caller_free(c);
}

/* ---- SIGINT and SIGQUIT are ignored ------------------------------------------------------ */

static int
in_the_background(void)
{
	signal(SIGINT, SIG_IGN); /* as a shell script does for a command before "&" */
	signal(SIGQUIT, SIG_IGN);
	return run_cluster(&(struct options){.agent = role, .app = role, .workers = 1});
}

static void
interrupt(bool by_fork, int number)
{
	struct caller *c;
	size_t at;

	forks = by_fork;
	c = caller_start(in_the_background);
	at = caller_wait(c, 0, "app ready ");
	kill(caller_number(c, "master is "), number);
	kill(caller_number(c, "app is "), SIGKILL);
	caller_wait(c, at, "app ready "); /* a master that closes would not replace the app */
	caller_stop(c);
	caller_free(c);
}

Test(signals, an_ignored_SIGINT_stays_ignored)
{
	interrupt(false, SIGINT);
	interrupt(true, SIGINT);
}

Test(signals, an_ignored_SIGQUIT_stays_ignored)
{
	interrupt(false, SIGQUIT);
	interrupt(true, SIGQUIT);
}

/* ---- a signal just before the poll ----------------------------------------------- */

static volatile sig_atomic_t raise_before_poll, raise_when_idle;

int __real_poll(struct pollfd *set, nfds_t count, int timeout);
int __wrap_poll(struct pollfd *set, nfds_t count, int timeout);

/* The signal comes between the last look at the flags and the sleep. */
int
__wrap_poll(struct pollfd *set, nfds_t count, int timeout)
{
	int number = raise_before_poll;

	if (number != 0 && timeout != 0) {
		raise_before_poll = 0;
		raise(number);
	}
	number = raise_when_idle;
	if (number != 0 && timeout == -1) {
		raise_when_idle = 0;
		raise(number);
	}
	return __real_poll(set, count, timeout);
}

static int
will_raise(struct messenger *messenger, const struct message *message, void *arg)
{
	(void)messenger, (void)message, (void)arg;
	raise_before_poll = SIGTERM;
	return 0;
}

static int
raises(struct messenger *messenger, void *arg)
{
	(void)arg;
	return messenger_on(messenger, "test-raise", will_raise, NULL) == 0 ? observe(messenger)
	                                                                    : -1;
}

/* agent.c, on_sigterm: the handler wakes the loop. If it does not, the process sleeps
 * until a message comes. */
Test(signals, a_SIGTERM_just_before_the_poll_is_not_slept_over)
{
	struct cluster *c =
		cluster_start(&(struct options){.agent = raises, .app = raises, .workers = 1});

	cluster_ready(c);
	cr_assert_eq(messenger_send_to_app(c->parent, "test-raise", NULL), 0);
	cluster_turn(c);
	cr_assert_str_eq(cluster_wait_end(c, "APP#1"), "code: 0, signal: null");
	cr_assert_eq(messenger_send_to_agent(c->parent, "test-raise", NULL), 0);
	cluster_turn(c);
	cr_assert_str_eq(cluster_wait_end(c, "AGENT#1"), "code: 0, signal: null");
	cluster_stop(c);
}

/* The signal is for the master alone: its children reset the variable. */
static void
raises_when_idle(enum role role, void *arg)
{
	(void)arg;
	raise_when_idle = role == ROLE_MASTER ? SIGTERM : 0;
}

/* master.c, on_caught: the handler wakes the loop, the self-pipe trick. In env "local" an
 * idle master has no deadline that would wake it. */
Test(signals, a_SIGTERM_just_before_an_idle_master_polls_is_not_slept_over)
{
	struct cluster *c = cluster_start(
		&(struct options){.in_child = raises_when_idle, .workers = 1, .env = "local"});

	cluster_wait(c, 0, "[master] master is killed by signal SIGTERM, closing");
	cluster_ended(c, 0);
}
