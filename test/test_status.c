/*
 * The pid file, the log and the status of a live cluster.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "manners.h"

TestSuite(status, .timeout = 120);

/* ---- 14: the pid file -------------------------------------------------------------------- */

static char pid_file[64];

static const char *
name_pid_file(const char *name)
{
	snprintf(pid_file, sizeof pid_file, "%s/%s", test_folder(), name);
	return pid_file;
}

static void
write_file(const char *path, const char *text)
{
	FILE *file = fopen(path, "w");

	cr_assert(file != NULL && fputs(text, file) != EOF && fclose(file) == 0);
}

/* The content of a file; "none" if there is no such file. */
static const char *
content_of(const char *path)
{
	static char text[4096];
	FILE *file = fopen(path, "r");
	size_t length;

	if (file == NULL)
		return "none";
	length = fread(text, 1, sizeof text - 1, file);
	fclose(file);
	text[length] = '\0';
	return text;
}

/* Expect the pid in the pid file and nothing else, not even a new line. */
static void
expect_pid(pid_t pid)
{
	char text[16];

	snprintf(text, sizeof text, "%ld", (long)pid);
	cr_assert_str_eq(content_of(pid_file), text);
}

static int
load_and_look_for_pid_file(struct messenger *agent, void *arg)
{
	(void)arg;
	report(agent, "finds %s", content_of(pid_file));
	return 0;
}

/* The pid file and its directories are made before the first fork. */
Test(status, s14a_the_pid_file_is_written_and_removed)
{
	struct stat status;
	struct cluster *c;

	umask(022);
	manners.agent.load = load_and_look_for_pid_file;
	c = start((struct options){.workers = 1, .pid_file = name_pid_file("a/b/egg.pid")});
	expect_pid(c->master);
	cluster_wait(c, 0, ":AGENT#1 finds MASTER");
	cr_assert_eq(stat(pid_file, &status), 0);
	cr_assert_eq(status.st_mode & 0777, 0600);
	cluster_stop(c);
	cr_assert_str_eq(content_of(pid_file), "none");
	*strrchr(pid_file, '/') = '\0';
	cr_assert_eq(stat(pid_file, &status), 0,
	             "the master has removed the folder of its pid file");
}

Test(status, s14b_an_old_pid_file_is_overwritten_and_stays_after_sigkill)
{
	struct cluster *c;
	pid_t first;

	write_file(name_pid_file("egg.pid"), "4711471147114711\n"); /* longer than a pid */
	c = start((struct options){.workers = 1, .pid_file = pid_file});
	first = c->master;
	expect_pid(first);
	cluster_signal(c, "MASTER", SIGKILL);
	cluster_killed(c, SIGKILL);
	expect_pid(first);
	c = start((struct options){.workers = 1, .pid_file = pid_file});
	expect_pid(c->master);
	cluster_stop(c);
	cr_assert_str_eq(content_of(pid_file), "none");
}

Test(status, s14c_a_failed_start_removes_the_pid_file)
{
	struct cluster *c;

	manners.agent.load = load_and_look_for_pid_file;
	manners.app.load = load_badly;
	c = launch((struct options){.workers = 1, .pid_file = name_pid_file("egg.pid")});
	cluster_wait(c, 0, ":AGENT#1 finds MASTER");
	cluster_wait(c, 0, "exit of APP#1: 1");
	cluster_wait(c, 0, "exit of AGENT#1: 110");
	cluster_ended(c, 1);
	cr_assert_str_eq(content_of(pid_file), "none");
}

Test(status, s14d_a_pid_file_with_another_pid_is_removed)
{
	struct cluster *c =
		start((struct options){.workers = 1, .pid_file = name_pid_file("egg.pid")});

	write_file(pid_file, "4711");
	cluster_stop(c);
	cr_assert_str_eq(content_of(pid_file), "none");
}

/* D16: another file that has taken the pid file's name is not the master's. */
Test(status, s14d_a_foreign_pid_file_is_not_removed)
{
	struct cluster *c =
		start((struct options){.workers = 1, .pid_file = name_pid_file("egg.pid")});

	cr_assert_eq(unlink(pid_file), 0);
	write_file(pid_file, "4711");
	cluster_stop(c);
	cr_assert_str_eq(content_of(pid_file), "4711");
}

/* D15: egg leaves its pid file after a second SIGTERM. */
Test(status, s14e_a_second_sigterm_and_the_pid_file)
{
	struct cluster *c;
	size_t mark;

	manners.app.close = close_when_told;
	c = start((struct options){
		.workers = 1, .pid_file = name_pid_file("egg.pid"), .app_close_timeout = LONG});
	mark = signal_master(c, SIGTERM);
	cluster_wait(c, mark, ":APP#1 waits");
	cluster_signal(c, "MASTER", SIGTERM);
	cluster_ask_status(c);
	expect_pid(c->master);
	go(c, ROLE_APP);
	cluster_ended(c, 0);
	cr_assert_str_eq(content_of(pid_file), "none");
}

/* The second master prints one line, exits with 1, and leaves the file as it was. */
static void
expect_second_master_to_be_refused(const struct cluster *first)
{
	struct cluster *c = launch((struct options){.workers = 1, .pid_file = pid_file});

	cluster_wait(c, 0, "[master] pid file %s: another master holds it", pid_file);
	cluster_wait_death(c, "MASTER");
	cr_assert_eq(cluster_count(c, 0, "[master]"), 1,
	             "the master logged not one line but more, or none");
	cr_assert_eq(cluster_count(c, 0, "_worker#"), 0);
	cluster_ended(c, 1);
	expect_pid(first->master);
}

/* D16. A lock is easily lost: any close(2) of the locked file by its owner drops the lock. */
Test(status, s14_a_second_master_is_refused_as_long_as_the_first_lives)
{
	struct cluster *c =
		start((struct options){.workers = 1, .pid_file = name_pid_file("egg.pid")});

	expect_second_master_to_be_refused(c);
	expect_second_master_to_be_refused(c);
	cluster_signal(c, "APP#1", SIGKILL);
	cluster_wait(c, 0, ":APP#2 saw egg-ready");
	cluster_signal(c, "AGENT#1", SIGKILL);
	cluster_wait(c, 0, ":AGENT#2 saw egg-ready");
	expect_second_master_to_be_refused(c);
	cluster_stop(c);
	cr_assert_str_eq(content_of(pid_file), "none");
}

/* ---- D17: a log that is not read --------------------------------------------------------- */

/* The apps that have reported to the parent, and the number of deaths that the parent knows. */
struct roll {
	pid_t apps[8];
	int count, deaths;
};

static int
on_present(struct messenger *parent, const struct message *message, void *arg)
{
	struct roll *roll = arg;

	(void)parent;
	if (roll->count < 8)
		roll->apps[roll->count++] = (pid_t)atol(message->data);
	return 0;
}

static int
on_death(struct messenger *parent, const struct message *message, void *arg)
{
	(void)parent, (void)message;
	((struct roll *)arg)->deaths++;
	return 0;
}

static int
on_all_ready(struct messenger *app, const struct message *message, void *arg)
{
	char pid[16];

	(void)message, (void)arg;
	snprintf(pid, sizeof pid, "%ld", (long)messenger_pid(app));
	return messenger_send(app, "present", pid, ROLE_PARENT);
}

static int
be_present(struct messenger *app, void *arg)
{
	(void)arg;
	return messenger_on(app, "egg-ready", on_all_ready, NULL);
}

static pid_t unrecorded; /* a master that the harness does not know */

static void
kill_unrecorded(void)
{
	if (unrecorded > 0)
		kill(unrecorded, SIGKILL); /* its children see an end of file */
}

static const char *buffered = ""; /* text in stdout's buffer before the fork */

static struct messenger *
start_into(int log, pid_t *master, struct roll *roll)
{
	struct options options = {.app = be_present, .workers = 2, .port = -1};
	int saved[2] = {dup(1), dup(2)};
	struct messenger *parent;

	clear_environment();
	fflush(stdout);
	dup2(log, 1);
	dup2(log, 2);
	fputs(buffered, stdout);
	parent = fork_cluster(&options, master);
	dup2(saved[0], 1);
	dup2(saved[1], 2);
	close(saved[0]);
	close(saved[1]);
	cr_assert(parent != NULL);
	unrecorded = *master;
	atexit(kill_unrecorded);
	messenger_on(parent, "present", on_present, roll);
	messenger_on(parent, "app-worker-died", on_death, roll);
	return parent;
}

static void
wait_for_roll(struct messenger *parent, const struct roll *roll, int count, int deaths)
{
	int64_t deadline = clutch_now() + time_limit();

	while (roll->count < count || roll->deaths < deaths) {
		cr_assert(clutch_now() < deadline,
		          "the parent has heard of %d of %d apps and of %d of %d deaths",
		          roll->count, count, roll->deaths, deaths);
		cr_assert_geq(messenger_step(parent, 100), 0);
	}
}

static void
end_unrecorded(struct messenger *parent, pid_t master)
{
	int64_t deadline = clutch_now() + time_limit();
	int status;

	kill(master, SIGTERM);
	while (waitpid(master, &status, WNOHANG) == 0) {
		cr_assert(clutch_now() < deadline, "the master does not end");
		messenger_step(parent, 20);
	}
	unrecorded = 0;
	cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %x", (unsigned)status);
	messenger_close(parent);
}

/* The cluster starts, replaces dead apps, takes SIGUSR1, idles without a busy loop, and ends. */
static void
expect_life_without_log(int log)
{
	struct roll roll = {.count = 0};
	int64_t used, end;
	struct messenger *parent;
	pid_t master;
	int i;

	parent = start_into(log, &master, &roll);
	wait_for_roll(parent, &roll, 2, 0);
	for (i = 0; i < 3; i++) {
		kill(master, SIGUSR1);
		kill(roll.apps[i], SIGKILL);
		wait_for_roll(parent, &roll, 3 + i, i + 1);
	}
	used = process_processor_time(master);
	for (end = clutch_now() + 500; clutch_now() < end;)
		messenger_step(parent, 20);
	cr_assert_lt(process_processor_time(master) - used, 100, "the idle master is busy");
	end_unrecorded(parent, master);
}

Test(status, a_log_without_a_reader_is_lost)
{
	int ends[2];

	cr_assert_eq(pipe(ends), 0);
	close(ends[0]);
	expect_life_without_log(ends[1]);
}

Test(status, a_log_that_nobody_reads_is_lost)
{
	static const char zeros[4096];
	int ends[2];

	cr_assert_eq(pipe(ends), 0);
	fcntl(ends[1], F_SETPIPE_SZ, sizeof zeros);
	fcntl(ends[1], F_SETFL, O_NONBLOCK);
	while (write(ends[1], zeros, sizeof zeros) > 0)
		;
	fcntl(ends[1], F_SETFL, 0);
	expect_life_without_log(ends[1]);
}

/* The same as s16_what_is_buffered_is_printed_once, but here a parent forks the master. */
Test(status, s01_what_the_parent_has_buffered_is_printed_once)
{
	static struct bare all;
	int64_t deadline = clutch_now() + time_limit();
	struct roll roll = {.count = 0};
	struct messenger *parent;
	pid_t master;
	int ends[2];

	cr_assert_eq(pipe(ends), 0);
	all.output = ends[0];
	buffered = BUFFERED;
	parent = start_into(ends[1], &master, &roll);
	buffered = "";
	wait_for_roll(parent, &roll, 2, 0);
	end_unrecorded(parent, master);
	close(ends[1]);
	while (bare_read(&all, deadline))
		;
	cr_assert_eq(bare_count(&all, BUFFERED), 1, "%s", all.text);
}

/* ---- SIGUSR1: the status ----------------------------------------------------------------- */

Test(status, sigusr1_logs_a_line_for_each_process)
{
	struct cluster *c = start((struct options){.workers = 2});
	size_t at = cluster_ask_status(c), begin = at;

	at = cluster_wait(c, at, "[master] status {\"name\":\"egg\",\"pid\":MASTER,");
	cr_assert_eq(at, begin + 1, "the cluster's line is not the first one of the status");
	at = cluster_wait(c, at, "status {\"role\":\"parent\",\"slot\":-1,\"pid\":0,");
	at = cluster_wait(c, at, "status {\"role\":\"agent\",\"slot\":-1,\"pid\":AGENT#1,");
	at = cluster_wait(c, at, "status {\"role\":\"app\",\"slot\":0,\"pid\":APP#1,");
	at = cluster_wait(c, at, "status {\"role\":\"app\",\"slot\":1,\"pid\":APP#2,");
	at = cluster_wait(c, at, "status ],\"left_out\":0}");
	cr_assert_eq(at - begin, 6, "the status does not have six lines");
	expect_state(c, NULL, "running");
	cr_assert_eq(cluster_figure(c, NULL, "undeliverable"), 0);
	cr_assert_eq(cluster_figure(c, NULL, "workers"), 2);
	expect_state(c, "AGENT#1", "listening");
	expect_state(c, "APP#2", "listening");
	cr_assert_eq(cluster_figure(c, "APP#2", "reforks"), 0);
	cr_assert_eq(cluster_figure(c, "APP#2", "refork_in"), 0);
	cr_assert_eq(cluster_figure(c, "APP#2", "queued"), 0);
	cr_assert_eq(cluster_figure(c, "APP#2", "waits"), 0);
	cr_assert_str_eq(cluster_status(c, "APP#2", "waits_for"), "[]");
	cr_assert_str_eq(cluster_status(c, "APP#2", "last_death"), "");
	cluster_stop(c);
}

/* When the message to nobody is counted, all messages that were sent before are counted, too. */
static bool
has_one_undeliverable(struct cluster *c, void *arg)
{
	(void)arg;
	cluster_ask_status(c);
	return cluster_figure(c, NULL, "undeliverable") == 1; /* D26 */
}

struct figures {
	long long heard, told, bytes_in, bytes_out;
};

static struct figures
figures_of(struct cluster *c, const char *who)
{
	return (struct figures){cluster_figure(c, who, "heard"), cluster_figure(c, who, "told"),
	                        cluster_figure(c, who, "bytes_in"),
	                        cluster_figure(c, who, "bytes_out")};
}

/* APP#1 sends seven messages to the agent and one to nobody, on two orders of the parent. */
Test(status, sigusr1_counts_messages_and_bytes)
{
	struct cluster *c = start((struct options){.workers = 2});
	long long size = FRAME_HEADER + sizeof "test-talk" + sizeof "\"twenty bytes or so\"";
	long long order = FRAME_HEADER + sizeof "test-order";
	struct figures agent, app, other, now;

	cluster_ask_status(c);
	agent = figures_of(c, "AGENT#1");
	app = figures_of(c, "APP#1");
	other = figures_of(c, "APP#2");
	cluster_did(c, "APP#1", "talk 7");
	cluster_did(c, "APP#1", "talk-to-nobody 1");
	cluster_wait(c, 0, ":AGENT#1 saw test-talk");
	cluster_wait(c, 0, "did talk-to-nobody");
	cluster_until(c, has_one_undeliverable, NULL,
	              "the message without a receiver to be counted");
	now = figures_of(c, "AGENT#1");
	cr_assert_eq(now.told - agent.told, 7);
	cr_assert_eq(now.heard - agent.heard, 0);
	cr_assert_eq(now.bytes_out - agent.bytes_out, 7 * size);
	cr_assert_eq(now.bytes_in - agent.bytes_in, 0);
	now = figures_of(c, "APP#1");
	cr_assert_eq(now.heard - app.heard, 8);
	cr_assert_eq(now.told - app.told, 2);
	cr_assert_eq(now.bytes_in - app.bytes_in,
	             7 * size + FRAME_HEADER + (long long)sizeof "test-talk" + 1);
	cr_assert_eq(now.bytes_out - app.bytes_out,
	             2 * order + (long long)(sizeof "talk 7" + sizeof "talk-to-nobody 1"));
	now = figures_of(c, "APP#2");
	cr_assert_eq(now.told + now.heard, other.told + other.heard);
	cluster_stop(c);
}

Test(status, sigusr1_tells_of_deaths_and_ages)
{
	struct cluster *c = start((struct options){.workers = 2});
	long long age;

	pass(c, 1100);
	cluster_signal(c, "APP#2", SIGKILL);
	cluster_wait(c, 0, ":APP#3 saw egg-ready");
	cluster_wait(c, 0, ":PARENT saw app-worker-died");
	cluster_signal(c, "AGENT#1", SIGKILL);
	cluster_wait(c, 0, "try to start a new agent_worker");
	cluster_ask_status(c);
	cr_assert_null(cluster_status(c, "AGENT#1", "state"));
	expect_state(c, "agent", "dead");
	cluster_wait(c, 0, ":AGENT#2 saw egg-ready");
	cluster_ask_status(c);
	cr_assert_eq(cluster_figure(c, "APP#3", "slot"), 1);
	cr_assert_eq(cluster_figure(c, "APP#3", "reforks"), 1);
	cr_assert_str_eq(cluster_status(c, "APP#3", "last_death"), "code: null, signal: SIGKILL");
	cr_assert_eq(cluster_figure(c, "APP#1", "reforks"), 0);
	cr_assert_str_eq(cluster_status(c, "APP#1", "last_death"), "");
	age = cluster_figure(c, "APP#1", "age");
	cr_assert(age >= 1100 && age < 10000 * time_scale(), "the age of APP#1 is %lld ms", age);
	cr_assert_eq(cluster_figure(c, "AGENT#2", "reforks"), 1);
	cr_assert_str_eq(cluster_status(c, "AGENT#2", "last_death"), "code: null, signal: SIGKILL");
	cr_assert_null(cluster_status(c, "APP#2", "state"));
	cluster_stop(c);
}

/* ---- SIGUSR1: the same as a file --------------------------------------------------------- */

static const char *
status_file(const char *end)
{
	static char path[sizeof pid_file + 16];

	snprintf(path, sizeof path, "%s.status%s", pid_file, end);
	return path;
}

/* Is there a new status file, with another inode than *arg? */
static bool
is_status_new(struct cluster *c, void *arg)
{
	const ino_t *old = arg;
	struct stat status;

	(void)c;
	return stat(status_file(""), &status) == 0 && status.st_ino != *old;
}

/* Ask for a new status file and return its inode. */
static ino_t
ask_for_status(struct cluster *c, ino_t old)
{
	struct stat status;

	cluster_ask_status(c);
	cluster_until(c, is_status_new, &old, "a new status file");
	cr_assert_eq(stat(status_file(""), &status), 0);
	return status.st_ino;
}

/* Expect all of the status in the file: the same lines as in the log. */
static void
expect_whole_status(struct cluster *c)
{
	const char *text = content_of(status_file(""));
	char start[64];
	size_t i, count = 0;

	snprintf(start, sizeof start, "{\"name\":\"egg\",\"pid\":%ld,", (long)c->master);
	cr_assert_eq(strncmp(text, start, strlen(start)), 0, "%s", text);
	cr_assert(strstr(text, "\"processes\":[\n{\"role\":\"parent\",") != NULL, "%s", text);
	cr_assert(strstr(text, "},\n{\"role\":\"agent\",") != NULL, "%s", text);
	cr_assert(strstr(text, "},\n{\"role\":\"app\",\"slot\":1,") != NULL, "%s", text);
	for (i = 0; text[i] != '\0'; i++)
		count += text[i] == '\n';
	cr_assert_eq(count, 6, "%s", text);
	cr_assert_str_eq(text + i - strlen("}\n],\"left_out\":0}\n"), "}\n],\"left_out\":0}\n");
}

static bool
is_unfinished_status_gone(struct cluster *c, void *arg)
{
	(void)c, (void)arg;
	return access(status_file(".new"), F_OK) == -1;
}

/* RLIMIT_FSIZE stands for a full file system: only the beginning of a status fits. The old
 * status stays whole, and the unfinished file is removed. */
Test(status, sigusr1_writes_a_whole_file_or_none)
{
	struct rlimit full, before;
	char old[4096], line[256];
	struct cluster *c;
	ino_t first;

	signal(SIGXFSZ, SIG_IGN);
	c = start((struct options){.workers = 2, .pid_file = name_pid_file("egg.pid")});
	first = ask_for_status(c, 0);
	expect_whole_status(c);
	snprintf(old, sizeof old, "%s", content_of(status_file("")));

	cr_assert_eq(prlimit(c->master, RLIMIT_FSIZE, NULL, &before), 0);
	full = (struct rlimit){150, before.rlim_max};
	cr_assert_eq(prlimit(c->master, RLIMIT_FSIZE, &full, NULL), 0);
	snprintf(line, sizeof line, "[master] cannot write %s: File too large",
	         status_file(".new"));
	cluster_wait(c, signal_master(c, SIGUSR1), "%s", line);
	cluster_until(c, is_unfinished_status_gone, NULL, "the end of the unfinished file");
	cr_assert_str_eq(content_of(status_file("")), old);

	cr_assert_eq(prlimit(c->master, RLIMIT_FSIZE, &before, NULL), 0);
	ask_for_status(c, first);
	expect_whole_status(c);
	cluster_stop(c);
	cr_assert_str_eq(content_of(status_file("")), "none");
}

/* master.c, save_status: only the owner may read and write the status file. */
Test(status, the_status_file_is_its_owners_to_read_and_write)
{
	char path[300], status[320];
	struct cluster *c;
	struct stat found;

	snprintf(path, sizeof path, "%s/pid", test_folder());
	snprintf(status, sizeof status, "%s.status", path);
	c = cluster_start(
		&(struct options){.agent = obey, .app = obey, .workers = 1, .pid_file = path});
	cluster_ready(c);
	cluster_signal(c, "MASTER", SIGUSR1);
	while (stat(status, &found) == -1)
		poll(NULL, 0, 1); /* Criterion's time limit ends this */
	cr_assert_eq(found.st_mode & 0777, 0600);
	cluster_stop(c);
}
