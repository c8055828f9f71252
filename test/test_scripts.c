/*
 * The command line: start, stop, status and reload, as a shell would call them.
 *
 * Each command runs in a process of its own: the example server, or egg_scripts
 * with the roles of this file. HOME is the test's folder, so the default pid file
 * and logs are there.
 */
#include "egg-scripts/egg_scripts.h"
#include "harness.h"

#include <criterion/criterion.h>

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

TestSuite(scripts, .timeout = 120);

/* ---- roles that obey -------------------------------------------------------- */

/* What the cluster's processes do, as the test wants it before it starts them. */
static struct {
	bool app_fails, app_is_never_ready, app_forks;
	bool fork_is_stubborn;  /* it ignores SIGTERM, and says so */
	bool hang;              /* soon after they are ready, both roles, for good */
	const char *fails_if;   /* a file: as long as it is there, an app does not start */
	const char *app_prints; /* on stderr */
	bool app_prints_notify_socket;
} manners;

static int
hang(struct messenger *messenger, void *arg)
{
	(void)messenger, (void)arg;
	fprintf(stderr, "hangs\n");
	while (pause() == -1)
		; /* SIGTERM only sets a flag, and nobody looks at the channel */
	return 0;
}

static int
agent(struct messenger *messenger, void *arg)
{
	(void)arg;
	return manners.hang ? messenger_set_timeout(messenger, 0, hang, NULL) == -1 : 0;
}

static void
be_forked(void)
{
	if (manners.fork_is_stubborn) {
		signal(SIGTERM, SIG_IGN);
		fprintf(stderr, "stubborn\n");
	}
	for (;;)
		pause();
}

static int
app(struct messenger *messenger, void *arg)
{
	const char *socket_name = getenv("NOTIFY_SOCKET");

	(void)arg;
	if (manners.app_prints != NULL)
		fprintf(stderr, "%s\n", manners.app_prints);
	if (manners.app_prints_notify_socket)
		fprintf(stderr, "app's NOTIFY_SOCKET: %s\n", socket_name ? socket_name : "none");
	if (manners.app_fails ||
	    (manners.fails_if != NULL && access(manners.fails_if, F_OK) == 0)) {
		fprintf(stderr, "app: no database\n");
		return 1;
	}
	if (manners.app_forks && fork() == 0)
		be_forked();
	if (manners.app_is_never_ready)
		messenger_ready_later(messenger);
	return manners.hang ? messenger_set_timeout(messenger, 0, hang, NULL) == -1 : 0;
}

static struct options program = {.agent = agent, .app = app, .name = "egg", .workers = 2};

/* ---- commands ------------------------------------------------------------------ */

/* A command that runs, or has run. */
struct run {
	pid_t pid;
	int output; /* the reading end of its stdout and stderr, or a terminal's master */
	char text[64 * 1024];
	size_t length;
	bool ended; /* nobody writes any more */
	int64_t begin;
};

static int leash = -1;

/* HOME and all that the test's commands find. */
static const char *
home(void)
{
	if (leash == -1) {
		clear_environment();
		unsetenv("NOTIFY_SOCKET");
		leash = test_leash();
		setenv("HOME", test_folder(), 1);
		prctl(PR_SET_CHILD_SUBREAPER, 1); /* daemons are the test's to reap */
	}
	return test_folder();
}

static const char *
path_of(const char *name)
{
	static char paths[8][256];
	static int next;
	char *path = paths[next++ % 8];

	snprintf(path, sizeof paths[0], "%s/%s", home(), name);
	return path;
}

/* In the child: become the command. A line that begins with a slash or with "build"
 * is a program; another one is words for egg_scripts. */
static void
become(char *line)
{
	char name[] = "egg", *words[16] = {name};
	int count = 1;

	for (line = strtok(line, " "); line != NULL && count < 15; line = strtok(NULL, " "))
		words[count++] = line;
	if (count > 1 && strchr(words[1], '/') != NULL && words[1][0] != '-') {
		execv(words[1], words + 1);
		_exit(127);
	}
	fcntl(leash, F_SETFD, FD_CLOEXEC); /* or a daemon closes it */
	setvbuf(stdout, NULL, _IOLBF, 0);
	exit(egg_scripts(count, words, &program));
}

/* `end` is what the command has as stdin (a terminal), stdout and stderr. */
static void
fork_command(struct run *run, const char *line, int end, bool terminal)
{
	char copy[1024];

	snprintf(copy, sizeof copy, "%s", line);
	fflush(NULL);
	run->pid = fork();
	cr_assert(run->pid != -1);
	if (run->pid != 0) {
		close(end);
		return;
	}
	if (terminal) {
		setsid();
		ioctl(end, TIOCSCTTY, 0);
		dup2(end, 0);
	}
	dup2(end, 1);
	dup2(end, 2);
	close(end);
	close(run->output);
	become(copy);
}

static void
start(struct run *run, const char *line)
{
	int ends[2];

	home();
	memset(run, 0, sizeof *run);
	run->begin = clutch_now();
	cr_assert_eq(pipe2(ends, O_CLOEXEC), 0);
	run->output = ends[0];
	fork_command(run, line, ends[1], false);
}

/* In the foreground of a terminal of its own. */
static void
start_in_terminal(struct run *run, const char *line)
{
	struct termios settings;
	int end;

	home();
	memset(run, 0, sizeof *run);
	run->output = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
	cr_assert(run->output != -1 && grantpt(run->output) == 0 && unlockpt(run->output) == 0);
	end = open(ptsname(run->output), O_RDWR | O_NOCTTY | O_CLOEXEC);
	cr_assert(end != -1 && tcgetattr(end, &settings) == 0);
	settings.c_lflag |= NOFLSH; /* or a Ctrl-C takes with it what is not read yet */
	cr_assert_eq(tcsetattr(end, TCSANOW, &settings), 0);
	fork_command(run, line, end, true);
}

/* Read on; at the end, when nobody has the pipe any more, it has ended. */
static void
read_output(struct run *run, int64_t deadline)
{
	struct pollfd set = {run->output, POLLIN, 0};
	int64_t left = deadline - clutch_now();
	ssize_t count;

	cr_assert(left > 0 && poll(&set, 1, (int)left) == 1, "waited in vain:\n%s", run->text);
	count = read(run->output, run->text + run->length, sizeof run->text - 1 - run->length);
	run->ended = count <= 0;
	run->length += count > 0 ? (size_t)count : 0;
	run->text[run->length] = '\0';
}

static void
wait_text(struct run *run, const char *text)
{
	int64_t deadline = clutch_now() + time_limit();

	while (strstr(run->text, text) == NULL) {
		cr_assert(!run->ended, "no \"%s\" in:\n%s", text, run->text);
		read_output(run, deadline);
	}
}

/* Wait until all that it has started in the foreground has ended. Its exit status, or
 * the negative number of a signal. */
static int
end(struct run *run)
{
	int64_t deadline = clutch_now() + 2 * time_limit();
	int status;

	while (!run->ended)
		read_output(run, deadline);
	close(run->output);
	cr_assert_eq(waitpid(run->pid, &status, 0), run->pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

/* Run a command to its end; fail unless it exits so and prints this. */
static const char *
command(const char *line, int code, const char *text)
{
	static struct run run;
	int got;

	start(&run, line);
	got = end(&run);
	cr_assert(got == code && strstr(run.text, text) != NULL,
	          "%s: exit %d, expected %d and \"%s\"; it printed:\n%s", line, got, code, text,
	          run.text);
	return run.text;
}

static const char *
hello(const char *words)
{
	static char line[1024];
	const char *build = getenv("BUILD");

	home();
	snprintf(line, sizeof line, "%s/examples/hello %s", build != NULL ? build : "build", words);
	if (strstr(words, "--daemon") != NULL) /* it keeps the leash as its stderr */
		snprintf(line + strlen(line), sizeof line - strlen(line), " --stderr=/dev/fd/%d",
		         leash);
	return line;
}

static size_t
count_text(const char *text, const char *wanted)
{
	size_t count = 0;

	while ((text = strstr(text, wanted)) != NULL) {
		text += strlen(wanted);
		count++;
	}
	return count;
}

/* ---- what is there ----------------------------------------------------------------- */

static const char *
content_of(const char *path)
{
	static char text[64 * 1024];
	FILE *file = fopen(path, "r");

	if (file == NULL)
		return "none";
	text[fread(text, 1, sizeof text - 1, file)] = '\0';
	fclose(file);
	return text;
}

static pid_t
master_pid(void)
{
	pid_t pid = (pid_t)atol(content_of(path_of("run/egg.pid")));

	cr_assert_gt(pid, 1, "the pid file says %s", content_of(path_of("run/egg.pid")));
	return pid;
}

static void
wait_until(bool (*is_so)(const void *arg), const void *arg, const char *what)
{
	int64_t deadline = clutch_now() + time_limit();

	while (!is_so(arg)) {
		cr_assert(clutch_now() < deadline, "waited in vain for %s", what);
		poll(NULL, 0, 5);
	}
}

/* Reap what has become the test's, but not the commands that it waits for. */
static bool
is_nobody_left(const void *arg)
{
	pid_t pids[64];
	const pid_t *except = arg;
	size_t i, count = test_leashed(pids, 64), left = 0;

	for (i = 0; i < count; i++)
		left += (except == NULL || pids[i] != *except) && process_is_alive(pids[i]);
	return left == 0;
}

static void
nobody_is_left(void)
{
	wait_until(is_nobody_left, NULL, "everybody to leave");
	while (waitpid(-1, NULL, WNOHANG) > 0)
		;
}

struct needle {
	const char *path, *text;
	size_t count;
};

static bool
has_text(const void *arg)
{
	const struct needle *needle = arg;

	return count_text(content_of(needle->path), needle->text) >= needle->count;
}

static void
wait_file(const char *name, const char *text, size_t count)
{
	char path[256];

	snprintf(path, sizeof path, "%s", path_of(name));
	wait_until(has_text, &(struct needle){path, text, count}, text);
}

static int
mode_of(const char *path)
{
	struct stat status;

	cr_assert_eq(stat(path, &status), 0, "%s: %s", path, strerror(errno));
	return (int)(status.st_mode & 07777);
}

/* The files of a folder whose names so begin. */
static int
count_files(const char *folder, const char *start_of_name)
{
	const struct dirent *entry;
	DIR *files = opendir(folder);
	int count = 0;

	cr_assert_not_null(files);
	while ((entry = readdir(files)) != NULL)
		count += strncmp(entry->d_name, start_of_name, strlen(start_of_name)) == 0;
	closedir(files);
	return count;
}

/* ---- the command line ------------------------------------------------------------------ */

Test(scripts, a_bad_command_line_is_one_line_and_64)
{
	static const char *const lines[][2] = {
		{"--workers=0", "egg: --workers=0: give a number from 1 to 1024 "},
		{"--workers=1025", "egg: --workers=1025: give a number from 1 to 1024 "},
		{"--workers=", "egg: --workers=: give a number from 1 to 1024 "},
		{"--workers=2x", "egg: --workers=2x: give "},
		{"--workers=99999999999999999999", "egg: --workers=99999999999999999999: give "},
		{"--workers", "egg: --workers wants a value "},
		{"--workers --daemon", "egg: --workers=--daemon: give "},
		{"start --port=65536", "egg: --port=65536: give a number from 0 to 65535 "},
		{"start --port=-1", "egg: --port=-1: give "},
		{"start --port=+0", "egg: --port=+0: give "},
		{"start --port=\t0", "egg: --port=\t0: give "},
		{"start --host=localhorst", "egg: --host=localhorst: give a numeric address or "},
		{"start --host=", "egg: --host wants a value "},
		{"start --env=", "egg: --env wants a value "},
		{"start --env=production", "egg: --env=production: give prod, local or unittest "},
		{"start --pid-file=", "egg: --pid-file wants a value "},
		{"start --pid-file", "egg: --pid-file wants a value "},
		{"start --stdout=", "egg: --stdout wants a value "},
		{"start --stderr=", "egg: --stderr wants a value "},
		{"start --timeout=0", "egg: --timeout=0: give a number from 1 to 86400 "},
		{"stop --timeout=soon", "egg: --timeout=soon: give "},
		{"start --daemon=yes", "egg: --daemon takes no value "},
		{"start --daemon --end-with-parent", "egg: --daemon has no parent for "},
		{"start --stdout=x", "egg: --stdout and --stderr are a daemon's: add --daemon "},
		{"--stderr x", "egg: --stdout and --stderr are a daemon's: add --daemon "},
		{"start --wrokers=2", "egg: unknown option --wrokers=2 "},
		{"start --work=2", "egg: unknown option --work=2 "},
		{"start --=2", "egg: unknown option --=2 "},
		{"start --", "egg: unknown option -- "},
		{"start -d", "egg: unknown option -d "},
		{"strat", "egg: unknown command strat "},
		{"start stop", "egg: one command is enough, stop is too much "},
		{"stop --workers=2", "egg: stop takes no --workers "},
		{"--daemon status", "egg: status takes no --daemon "},
		{"reload --stdout=x", "egg: reload takes no --stdout "},
	};
	const char *text;
	size_t i;

	for (i = 0; i < sizeof lines / sizeof lines[0]; i++) {
		text = command(lines[i][0], 64, lines[i][1]);
		cr_assert_eq(count_text(text, "\n"), 1, "%s: %s", lines[i][0], text);
		cr_assert(strstr(text, "(see egg --help)\n") != NULL, "%s", text);
	}
	cr_assert_eq(access(path_of("run"), F_OK), -1);
	nobody_is_left();
}

Test(scripts, help_and_version)
{
	static const char *const words[] = {
		"--workers=N", "--port=P",          "--host=H",   "--env=E",
		"--pid-file=", "--timeout=S",       "--daemon",   "--stdout=",
		"--stderr=",   "  start ",          "  stop ",    "  status ",
		"  reload ",   "--end-with-parent", "\nstart:\n", "\nall:\n"};
	const char *text = command("stop --help", 0, "usage: egg [start | stop | status | reload]");
	size_t i;

	for (i = 0; i < sizeof words / sizeof words[0]; i++)
		cr_assert_eq(count_text(text, words[i]), 1, "%s in:\n%s", words[i], text);
	cr_assert_str_eq(command("--version", 0, ""), "egg (clutch " CLUTCH_VERSION ")\n");
}

Test(scripts, without_home_a_pid_file_must_be_given)
{
	home();
	unsetenv("HOME");
	command("status", 1, "egg: HOME is not set: give --pid-file");
	setenv("HOME", "", 1);
	command("start --daemon", 1, "egg: HOME is not set: give --pid-file");
	command("status --pid-file=nowhere", 3, "egg: not running (pid file nowhere)\n");
}

/* The command line has the last word: against the program, and the environment. */
Test(scripts, the_command_line_is_stronger_than_program_and_environment)
{
	static struct run run;

	home();
	setenv("EGG_WORKERS", "7", 1);
	setenv("EGG_SERVER_ENV", "prod", 1);
	start(&run, "--workers 3 --env=local");
	wait_text(&run, "[master] to stop it");
	cr_assert(strstr(run.text, "app_worker#3") && !strstr(run.text, "app_worker#4"), "%s",
	          run.text);
	kill(run.pid, SIGUSR1); /* the launcher hands it on */
	wait_text(&run, " undeliverable");
	kill(run.pid, SIGTERM);
	cr_assert_eq(end(&run), 0, "%s", run.text);
	nobody_is_left();
}

/* A program that links the library may have functions of any other name. */
Test(scripts, every_public_symbol_has_the_packages_name)
{
	static const char *const prefixes[] = {"egg_s", "scripts_", "schedule_", "cron_", "_"};
	const char *build = getenv("BUILD") != NULL ? getenv("BUILD") : "build";
	char line[512], name[256], kind;
	int count = 0;
	size_t i;
	FILE *symbols;

	snprintf(line, sizeof line, "nm -P -g %s/egg-scripts/*.o %s/egg-schedule/*.o", build,
	         build);
	symbols = popen(line, "r");
	cr_assert_not_null(symbols);
	while (fgets(line, sizeof line, symbols) != NULL) {
		if (sscanf(line, "%255s %c", name, &kind) != 2 || strchr("TDBC", kind) == NULL)
			continue;
		for (i = 0; i < 5 && strncmp(name, prefixes[i], strlen(prefixes[i])) != 0; i++)
			;
		cr_expect_lt(i, 5, "%s", name);
		count++;
	}
	cr_assert(pclose(symbols) == 0 && count > 20, "%d symbols", count);
}

/* ---- in the foreground --------------------------------------------------------------------- */

static void
expect_order_to_end_it(const char *line, int number, const char *name)
{
	static struct run run;

	start(&run, line);
	wait_text(&run, "[master] to stop it");
	kill(run.pid, number);
	cr_assert_eq(end(&run), 0, "%s", run.text);
	cr_assert(strstr(run.text, name) != NULL, "%s", run.text);
	cr_assert_eq(count_text(run.text, "exiting with code:0"), 3, "%s", run.text);
	cr_assert_eq(count_text(run.text, "[master] exit with code:0"), 1);
	nobody_is_left();
}

Test(scripts, the_launcher_hands_orders_on)
{
	expect_order_to_end_it("start", SIGTERM, "signal SIGTERM, closing");
	expect_order_to_end_it("start", SIGINT, "signal SIGINT, closing");
	expect_order_to_end_it("", SIGQUIT, "signal SIGQUIT, closing");
}

/* Without a command any number of them can run: there is no pid file to fight for. */
Test(scripts, without_a_command_there_is_no_pid_file)
{
	static struct run first, second, third;

	start(&first, "");
	start(&second, "");
	wait_text(&first, "[master] to stop it");
	wait_text(&second, "[master] to stop it");
	cr_assert_eq(access(path_of("run"), F_OK), -1);
	start(&third, "start");
	wait_text(&third, "[master] to stop it");
	command("start", 1, "egg: is already running, pid ");
	command("stop", 0, "egg: stopped (");
	cr_assert_eq(end(&third), 0);
	kill(first.pid, SIGTERM);
	kill(second.pid, SIGTERM);
	cr_assert_eq(end(&first), 0);
	cr_assert_eq(end(&second), 0);
	nobody_is_left();
}

/* The terminal tells launcher and master, and the launcher tells the master again. */
Test(scripts, ctrl_c_in_a_terminal)
{
	static struct run run;

	start_in_terminal(&run, "start");
	wait_text(&run, "[master] to stop it");
	cr_assert_eq(write(run.output, "\003", 1), 1);
	cr_assert_eq(end(&run), 0, "%s", run.text);
	cr_assert_eq(count_text(run.text, "signal SIGINT, closing"), 1, "%s", run.text);
	cr_assert_eq(count_text(run.text, "exiting with code:0"), 3, "%s", run.text);
	nobody_is_left();
}

/* The launcher ends as the master did. */
Test(scripts, the_launcher_exits_with_the_masters_status)
{
	static struct run run;

	start(&run, "start");
	wait_text(&run, "[master] to stop it");
	kill(master_pid(), SIGKILL);
	cr_assert_eq(end(&run), 128 + SIGKILL, "%s", run.text);
	nobody_is_left();
	manners.app_fails = true;
	command("start", 1, "start fail, exiting with code:1");
	nobody_is_left();
}

/* Whenever the order comes, nobody is left, though perhaps nobody was there yet. */
Test(scripts, an_order_in_the_middle_of_a_start_is_not_lost)
{
	static struct run run;
	int i;

	for (i = 0; i < 24; i++) {
		start(&run, "start");
		if (i % 3 == 1)
			wait_text(&run, "agent_worker#1");
		else if (i % 3 == 2)
			wait_text(&run, "app_worker#1");
		else
			poll(NULL, 0, i / 6);
		kill(run.pid, SIGTERM);
		end(&run);
		nobody_is_left();
	}
}

/* D32: as in egg the cluster goes on; with the option it does not. */
Test(scripts, the_cluster_outlives_its_launcher_unless_it_shall_not)
{
	static struct run run;
	pid_t master;

	start(&run, "start");
	wait_text(&run, "[master] to stop it");
	kill(run.pid, SIGKILL);
	cr_assert_eq(waitpid(run.pid, NULL, 0), run.pid);
	command("status", 0, "\nrunning, ");
	master = master_pid();
	command("stop", 0, "egg: stopped (");
	cr_assert_not(process_is_alive(master));
	nobody_is_left();

	start(&run, "start --end-with-parent");
	wait_text(&run, "[master] to stop it");
	kill(run.pid, SIGKILL);
	cr_assert_eq(waitpid(run.pid, NULL, 0), run.pid);
	wait_text(&run, "[master] the parent is gone, closing");
	wait_text(&run, "[master] exit with code:0");
	nobody_is_left();
}

/* ---- the daemon --------------------------------------------------------------------------------- */

static const char *
field_of(pid_t pid, const char *name, char *target, size_t size)
{
	char path[64];
	ssize_t length;

	snprintf(path, sizeof path, "/proc/%ld/%s", (long)pid, name);
	length = readlink(path, target, size - 1);
	target[length > 0 ? length : 0] = '\0';
	return target;
}

Test(scripts, a_daemons_life)
{
	char line[256], target[256];
	pid_t master;
	FILE *file;

	home();
	command("status", 3, "egg: not running (pid file ");
	command("start --daemon", 0, "egg: started, pid ");
	master = master_pid();
	cr_assert_eq(getsid(master), master);
	cr_assert_str_eq(field_of(master, "fd/0", target, sizeof target), "/dev/null");
	cr_assert_str_eq(field_of(master, "fd/1", target, sizeof target),
	                 path_of("logs/egg-stdout.log"));
	cr_assert_str_eq(field_of(master, "fd/2", target, sizeof target),
	                 path_of("logs/egg-stderr.log"));
	cr_assert_eq(mode_of(path_of("logs/egg-stdout.log")), 0600);
	cr_assert_eq(mode_of(path_of("logs/egg-stderr.log")), 0600);
	snprintf(line, sizeof line, "egg, pid %ld, ", (long)master);
	command("status", 0, line);
	cr_assert_eq(mode_of(path_of("run/egg.pid.status")), 0600);

	/* A second one is refused, and leaves the first one's files alone. */
	snprintf(line, sizeof line, "egg: is already running, pid %ld (pid file ", (long)master);
	command("start --daemon", 1, line);
	cr_assert_eq(count_files(path_of("logs"), "egg"), 2);

	command("stop", 0, "egg: stopped (");
	cr_assert_not(process_is_alive(master));
	nobody_is_left();
	cr_assert_eq(count_files(path_of("run"), "egg"), 0);
	command("stop", 0, "egg: warning: not running (pid file ");

	/* The next one keeps the last one's files by renaming them: also two in a second. */
	file = fopen(path_of("logs/egg-stdout.log"), "a");
	fprintf(file, "the first run\n");
	fclose(file);
	command("start --daemon", 0, "egg: started, pid ");
	cr_assert_eq(count_text(content_of(path_of("logs/egg-stdout.log")), "the first run"), 0);
	command("stop", 0, "egg: stopped (");
	command("start --daemon", 0, "egg: started, pid ");
	command("stop", 0, "egg: stopped (");
	cr_assert_eq(count_files(path_of("logs"), "egg-stdout.log"), 3);
	cr_assert_eq(count_files(path_of("logs"), "egg-stderr.log."), 2);
	nobody_is_left();
}

/* Of many starts at once one is the first, and nobody renames its files. */
Test(scripts, daemons_that_start_at_once_leave_the_firsts_files_alone)
{
	enum { STARTS = 6 };
	static struct run runs[STARTS];
	char target[256];
	int i, started = 0;

	for (i = 0; i < STARTS; i++)
		start(&runs[i], "start --daemon");
	for (i = 0; i < STARTS; i++)
		started += end(&runs[i]) == 0;
	cr_assert_eq(started, 1);
	for (i = 0; i < STARTS; i++)
		cr_assert(strstr(runs[i].text, "egg: started, pid ") != NULL ||
		                  strstr(runs[i].text, "egg: is already running, pid ") != NULL ||
		                  strstr(runs[i].text, "egg: is being started already") != NULL,
		          "%s", runs[i].text);
	cr_assert_str_eq(field_of(master_pid(), "fd/1", target, sizeof target),
	                 path_of("logs/egg-stdout.log"));
	cr_assert_eq(count_files(path_of("logs"), "egg"), 2);
	cr_assert_eq(count_files(path_of("run"), "egg.pid.start"), 0);
	command("stop", 0, "egg: stopped (");
	nobody_is_left();
}

/* Two clusters of one program: the pid file's name says whose a log is. */
Test(scripts, clusters_with_two_pid_files_have_logs_of_their_own)
{
	char line[300], target[256];
	pid_t master;

	home();
	command("start --daemon", 0, "egg: started, pid ");
	master = master_pid();
	snprintf(line, sizeof line, "start --daemon --pid-file=%s", path_of("two.pid"));
	command(line, 0, "egg: started, pid ");
	cr_assert_str_eq(field_of(master, "fd/1", target, sizeof target),
	                 path_of("logs/egg-stdout.log"));
	cr_assert_eq(count_files(path_of("logs"), "egg"), 2);
	wait_file("logs/two-stdout.log", "[master] egg started", 1);
	snprintf(line, sizeof line, "stop --pid-file=%s", path_of("two.pid"));
	command(line, 0, "egg: stopped (");
	command("stop", 0, "egg: stopped (");
	nobody_is_left();
}

/* Who waits for the end of what he has handed to the launcher does not wait for the
 * daemon's. */
Test(scripts, a_daemon_closes_what_it_has_inherited)
{
	int ends[2];
	struct pollfd set = {.events = POLLIN};
	char byte;

	home();
	cr_assert_eq(pipe(ends), 0);
	fcntl(ends[0], F_SETFD, FD_CLOEXEC);
	command(hello("start --daemon --port=0 --workers=1"), 0, "started on ");
	close(ends[1]);
	set.fd = ends[0];
	cr_assert_eq(poll(&set, 1, time_limit()), 1, "the daemon holds it");
	cr_assert_eq(read(ends[0], &byte, 1), 0);
	close(ends[0]);
	command(hello("status"), 0, "\nrunning, ");
	command(hello("stop"), 0, "hello: stopped (");
	nobody_is_left();
}

/* start --daemon | true */
Test(scripts, nobody_reads_that_a_daemon_has_started)
{
	static struct run run;
	int status;

	home();
	signal(SIGPIPE, SIG_DFL);
	start(&run, "start --daemon");
	close(run.output);
	cr_assert_eq(waitpid(run.pid, &status, 0), run.pid);
	cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %d", status);
	command("stop", 0, "egg: stopped (");
	nobody_is_left();
}

Test(scripts, a_daemons_files_can_be_chosen)
{
	char line[1024];

	home();
	snprintf(line, sizeof line, "start --daemon --pid-file=%s --stdout %s --stderr=%s",
	         path_of("x/pid"), path_of("out/both"), path_of("out/both"));
	command(line, 0, "egg: started, pid ");
	cr_assert(strstr(content_of(path_of("out/both")), "[master] egg started") != NULL);
	cr_assert_eq(count_files(path_of("out"), ""), 3); /* . and .. and both */
	command("stop", 0, "not running");                /* there is another one's default */
	snprintf(line, sizeof line, "stop --pid-file %s", path_of("x/pid"));
	command(line, 0, "egg: stopped (");
	nobody_is_left();
	snprintf(line, sizeof line, "start --daemon --stdout=/dev/null --stderr=%s",
	         path_of("out/both/x"));
	command(line, 1, "egg: cannot open ");
	command("start --daemon --stdout=/dev/null --stderr=/dev/null", 0, "egg: started, pid ");
	command("stop", 0, "egg: stopped (");
	cr_assert_eq(access("/dev/null", F_OK), 0);
	nobody_is_left();
}

/* ---- connections to the example server ------------------------------------------------------- */

static int
port_in(const char *text)
{
	const char *at = strstr(text, "started on http://127.0.0.1:");

	cr_assert_not_null(at, "%s", text);
	return atoi(at + strlen("started on http://127.0.0.1:"));
}

/* GET / over a connection of its own: the pid that answered, or 0. */
static pid_t
get(int port)
{
	static const char request[] = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
	struct timeval limit = {.tv_sec = time_limit() / 1000};
	int descriptor = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	char answer[512];
	const char *at = NULL;
	ssize_t count;
	size_t length = 0;

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	if (connect(descriptor, (struct sockaddr *)&address, sizeof address) == 0 &&
	    write(descriptor, request, sizeof request - 1) == sizeof request - 1) {
		while (length < sizeof answer - 1 &&
		       (count = read(descriptor, answer + length, sizeof answer - 1 - length)) > 0)
			length += (size_t)count;
		answer[length] = '\0';
		at = strstr(answer, "hello world from pid ");
	}
	close(descriptor);
	return at != NULL ? (pid_t)atol(at + strlen("hello world from pid ")) : 0;
}

Test(scripts, a_daemon_survives_the_end_of_its_terminal)
{
	static struct run run;
	char path[64], name[32] = "";
	int port, terminal = -1, status;
	pid_t master;

	start_in_terminal(&run, hello("start --daemon --port=0 --workers=2"));
	wait_text(&run, "hello: started on http://127.0.0.1:");
	port = port_in(run.text);
	cr_assert_eq(waitpid(run.pid, &status, 0), run.pid);
	cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0, "%s", run.text);
	close(run.output); /* the terminal is gone */
	master = (pid_t)atol(content_of(path_of("run/hello.pid")));
	snprintf(path, sizeof path, "/proc/%ld/stat", (long)master);
	cr_assert_eq(sscanf(content_of(path), "%*d %31s %*c %*d %*d %*d %d", name, &terminal), 2);
	cr_assert_eq(terminal, 0, "it has a terminal");
	cr_assert_neq(get(port), 0);
	command(hello("status"), 0, "\nrunning, ");
	command(hello("stop"), 0, "hello: stopped (");
	nobody_is_left();
}

/* D28: in egg the launcher waits for its timeout, whatever has happened. */
Test(scripts, an_early_death_shows_at_once)
{
	const char *text;
	int64_t begin;

	home();
	manners.app_fails = true;
	begin = clutch_now();
	text = command("start --daemon", 1, "app: no database\n");
	cr_assert_lt(clutch_now() - begin, time_limit());
	cr_assert(strstr(text, "start fail, exiting with code:1") != NULL, "%s", text);
	cr_assert(strstr(text, "\negg: start failed, see ") != NULL, "%s", text);
	cr_assert(strstr(text, "logs/egg-stderr.log\n") != NULL, "%s", text);
	nobody_is_left();
}

/* Only the end of a long story is shown, and it begins with a line. */
Test(scripts, of_a_long_stderr_the_end_is_shown)
{
	static char long_text[9000];
	const char *text;
	int i;

	home();
	for (i = 0; i < 899; i++)
		memcpy(long_text + i * 10, "aaaaaaaaa\n", 10);
	manners.app_prints = long_text;
	manners.app_fails = true;
	text = command("start --daemon --workers=1", 1, "\negg: start failed");
	cr_assert_lt(strlen(text), 4096 + 256);
	cr_assert_eq(strncmp(text, "aaaaaaaaa\n", 10), 0, "%.40s", text);
	nobody_is_left();
}

/* D29: in egg output on stderr makes the start fail. */
Test(scripts, what_stands_on_stderr_is_no_failure)
{
	home();
	manners.app_prints = "DeprecationWarning: this is no error";
	command("start --daemon", 0, "egg: started, pid ");
	wait_file("logs/egg-stderr.log", "DeprecationWarning", 2);
	command("stop", 0, "egg: stopped (");
	nobody_is_left();
}

Test(scripts, a_start_that_takes_too_long_is_stopped)
{
	home();
	manners.app_is_never_ready = true;
	command("start --daemon --timeout=1", 1, "egg: not ready within 1 s, stopping it\n");
	nobody_is_left();
	cr_assert_eq(access(path_of("run/egg.pid"), F_OK), -1);
}

Test(scripts, a_start_that_is_interrupted_is_stopped)
{
	static struct run run;

	home();
	manners.app_is_never_ready = true;
	start(&run, "start --daemon");
	wait_file("logs/egg-stdout.log", "app_worker#2", 1);
	kill(run.pid, SIGINT);
	cr_assert_eq(end(&run), 1, "%s", run.text);
	cr_assert(strstr(run.text, "egg: interrupted, stopping it\n") != NULL, "%s", run.text);
	nobody_is_left();
}

/* ---- stop ------------------------------------------------------------------------------------------ */

static void
start_hanging(int close_timeout)
{
	home();
	manners.hang = true;
	manners.app_forks = true;
	program.app_close_timeout = close_timeout;
	program.agent_close_timeout = close_timeout;
	command("start --daemon", 0, "egg: started, pid ");
	wait_file("logs/egg-stderr.log", "hangs", 3);
}

/* D31: egg waits 5 s, whatever the master needs. The first one here needs 6 s: stop
 * learns it from the master, and nobody is killed before. The second one is to need
 * 1.4 s, and is stopped itself: stop does not wait its 30 s for it. */
Test(scripts, stop_waits_as_long_as_the_master_may_take)
{
	static struct run slow, stuck;
	char line[300];
	int64_t begin;

	start_hanging(3000);
	program.app_close_timeout = program.agent_close_timeout = 700;
	snprintf(line, sizeof line, "start --daemon --pid-file=%s", path_of("run/stuck.pid"));
	command(line, 0, "egg: started, pid ");
	wait_file("logs/stuck-stderr.log", "hangs", 3);
	begin = clutch_now();
	start(&slow, "stop");
	snprintf(line, sizeof line, "stop --pid-file=%s", path_of("run/stuck.pid"));
	start(&stuck, line);
	wait_file("logs/stuck-stdout.log", "signal SIGTERM, closing", 1);
	kill((pid_t)atol(content_of(path_of("run/stuck.pid"))), SIGSTOP);
	cr_assert_eq(end(&stuck), 0, "%s", stuck.text);
	cr_assert(strstr(stuck.text, "egg: not stopped within 3 s: SIGKILL to all") != NULL, "%s",
	          stuck.text);
	cr_assert_lt(clutch_now() - begin, 30000);
	cr_assert_eq(end(&slow), 0, "%s", slow.text);
	cr_assert(strstr(slow.text, "egg: stopped (") == slow.text, "%s", slow.text);
	cr_assert_geq(clutch_now() - begin, 6000);
	cr_assert(is_nobody_left(NULL));
	wait_file("logs/egg-stdout.log", "[master] exit with code:0", 1);
	cr_assert_eq(access(path_of("run/egg.pid"), F_OK), -1);
	nobody_is_left();
}

/* The apps obey and are dead, what they have forked does not: the master waits for it,
 * and no lock tells of it. */
Test(scripts, past_its_timeout_stop_kills_the_children_of_the_dead)
{
	home();
	manners.app_forks = manners.fork_is_stubborn = true;
	program.app_close_timeout = 60000;
	command("start --daemon", 0, "egg: started, pid ");
	wait_file("logs/egg-stderr.log", "stubborn", 2);
	command("stop --timeout=1", 0, "egg: not stopped within 1 s: SIGKILL to all that are left");
	nobody_is_left();
}

/* A master that is stopped, children that hang, and children of theirs. */
Test(scripts, past_its_timeout_stop_kills_them_all)
{
	pid_t master;

	start_hanging(60000);
	master = master_pid();
	cr_assert_eq(kill(master, SIGSTOP), 0);
	command("stop --timeout=1", 0, "egg: not stopped within 1 s: SIGKILL to all that are left");
	cr_assert_not(process_is_alive(master));
	nobody_is_left();
	command("status", 3, "egg: not running");
	manners.hang = manners.app_forks = false;
	command("start --daemon", 0, "egg: started, pid "); /* the old file is no obstacle */
	command("stop", 0, "egg: stopped (");
	nobody_is_left();
}

/* The master is killed; its children hang. They are still the cluster's. */
Test(scripts, stop_finds_children_whose_master_is_dead)
{
	pid_t master;

	start_hanging(60000);
	master = master_pid();
	kill(master, SIGKILL);
	waitpid(master, NULL, 0);
	command("status", 3, "egg: not running");
	command("stop --timeout=1", 0, "egg: not stopped within 1 s: SIGKILL to all that are left");
	nobody_is_left();
}

/* D30: a number in a file is no proof. */
Test(scripts, a_stranger_whose_pid_is_in_the_file_is_left_alone)
{
	pid_t stranger;
	FILE *file;

	home();
	stranger = fork();
	if (stranger == 0)
		for (;;)
			pause();
	mkdir(path_of("run"), 0777);
	file = fopen(path_of("run/egg.pid"), "w");
	fprintf(file, "%ld", (long)stranger);
	fclose(file);
	command("stop --timeout=1", 0, "egg: warning: not running (pid file ");
	command("status", 3, "egg: not running (pid file ");
	command("reload", 3, "egg: not running (pid file ");
	cr_assert_eq(waitpid(stranger, NULL, WNOHANG), 0);
	command("start --daemon", 0, "egg: started, pid ");
	cr_assert_neq(master_pid(), stranger);
	command("stop", 0, "egg: stopped (");
	cr_assert_eq(waitpid(stranger, NULL, WNOHANG), 0);
	kill(stranger, SIGKILL);
	nobody_is_left();
}

/* D30: in egg `stop` ends every cluster of the host. */
Test(scripts, stop_ends_one_cluster_not_all)
{
	char line[300];
	pid_t master;

	home();
	command("start --daemon", 0, "egg: started, pid ");
	master = master_pid();
	snprintf(line, sizeof line, "start --daemon --pid-file=%s --stdout=/dev/null --stderr=%s",
	         path_of("other.pid"), path_of("other.log"));
	command(line, 0, "egg: started, pid ");
	snprintf(line, sizeof line, "stop --pid-file=%s", path_of("other.pid"));
	command(line, 0, "egg: stopped (");
	cr_assert(process_is_alive(master));
	command("status", 0, "\nrunning, ");
	command("stop", 0, "egg: stopped (");
	nobody_is_left();
}

/* ---- status and reload ----------------------------------------------------------------------------- */

Test(scripts, status_shows_the_masters_table)
{
	const char *text;
	char line[128];
	pid_t master;

	home();
	command("start --daemon --env=local", 0, "egg: started, pid ");
	master = master_pid();
	text = command("status", 0, "\nrunning, stops within 10000ms, reloads: 0 done, 0 given up");
	cr_assert_eq(count_text(text, " listening "), 3, "%s", text);
	cr_assert_eq(count_text(text, "[master]"), 0, "%s", text);
	cr_assert_eq(count_text(text, "\n0 undeliverable\n"), 1, "%s", text);
	wait_file("logs/egg-stdout.log", "[master] 0 undeliverable", 1);
	kill(master, SIGSTOP);
	snprintf(line, sizeof line, "egg: pid %ld has not answered within 1 s", (long)master);
	command("status --timeout=1", 1, line);
	kill(master, SIGCONT);
	command("status", 0, "\nrunning, ");
	command("stop", 0, "egg: stopped (");
	nobody_is_left();
}

/* What cannot be written is one line of the log. */
Test(scripts, a_status_that_cannot_be_written_harms_nobody)
{
	home();
	command("start --daemon", 0, "egg: started, pid ");
	cr_assert_eq(mkdir(path_of("run/egg.pid.status.new"), 0700), 0);
	command("status --timeout=1", 1, "has not answered within 1 s");
	wait_file("logs/egg-stderr.log", "egg.pid.status.new: ", 1);
	rmdir(path_of("run/egg.pid.status.new"));
	cr_assert_eq(count_text(content_of(path_of("logs/egg-stderr.log")), "\n"), 1);
	command("status", 0, "\nrunning, ");
	command("stop", 0, "egg: stopped (");
	nobody_is_left();
}

/* In shared memory: what the clients have seen. */
enum { CLIENTS = 3 };

struct load {
	volatile int served[CLIENTS], failed[CLIENTS];
	volatile bool over;
};

static void
run_client(struct load *load, int number, int port)
{
	while (!load->over) {
		if (get(port) > 0)
			load->served[number]++;
		else
			load->failed[number]++;
	}
	_exit(0);
}

static bool
have_been_served(const void *arg)
{
	const struct load *load = arg;
	int i;

	for (i = 0; i < CLIENTS && (load->served[i] >= 20 || load->failed[i] > 0); i++)
		;
	return i == CLIENTS;
}

static void
serve_on(struct load *load)
{
	int i;

	for (i = 0; i < CLIENTS; i++)
		load->served[i] = 0;
	wait_until(have_been_served, load, "20 answers for each client");
}

/* Two reloads while three clients ask and ask: nobody is refused, nobody is reset. */
Test(scripts, a_reload_under_load_costs_nobody_a_connection)
{
	struct load *load =
		mmap(NULL, sizeof *load, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid_t clients[CLIENTS];
	int i, port;

	cr_assert(load != MAP_FAILED);
	home();
	port = port_in(command(hello("start --daemon --port=0 --workers=3"), 0, "started on "));
	for (i = 0; i < CLIENTS; i++)
		if ((clients[i] = fork()) == 0)
			run_client(load, i, port);
	serve_on(load);
	for (i = 0; i < 2; i++) {
		command(hello("reload"), 0, "hello: reloaded 3 app workers (");
		serve_on(load);
	}
	load->over = true;
	for (i = 0; i < CLIENTS; i++) {
		cr_assert_eq(waitpid(clients[i], NULL, 0), clients[i]);
		cr_expect_eq(load->failed[i], 0, "%d failed", load->failed[i]);
	}
	command(hello("stop"), 0, "hello: stopped (");
	cr_assert_eq(count_text(content_of(path_of("logs/hello-stdout.log")), "] reload done"), 2);
	nobody_is_left();
}

static bool
is_dead(const void *pid)
{
	return !process_is_alive((pid_t) * (const long *)pid);
}

/* Every worker is another one afterwards, and the agent is the same. */
Test(scripts, a_reload_replaces_every_app_worker)
{
	static char before[8192];
	const char *after, *row;
	char wanted[64];
	long pid;

	home();
	command("start --daemon --workers=3", 0, "egg: started, pid ");
	snprintf(before, sizeof before, "%s", command("status", 0, "\nrunning, "));
	command("reload", 0, "egg: reloaded 3 app workers (");
	after = command("status", 0, " reloads: 1 done, 0 given up\n");
	for (row = strstr(before, "\na"); row != NULL; row = strstr(row + 1, "\na")) {
		cr_assert_eq(sscanf(row, "%*s %*d %ld listening", &pid), 1, "%s", row);
		snprintf(wanted, sizeof wanted, " %ld listening ", pid);
		if (strncmp(row, "\nagent", 6) == 0)
			cr_assert(strstr(after, wanted) != NULL, "%s%s", before, after);
		else
			wait_until(is_dead, &pid, "the end of an old worker");
	}
	command("stop", 0, "egg: stopped (");
	nobody_is_left();
}

/* D12: the old ones stay; and the next reload is a good one. */
Test(scripts, a_reload_whose_workers_do_not_start_fails)
{
	static char before[8192];
	static char no_start[256];
	FILE *file;

	snprintf(no_start, sizeof no_start, "%s", path_of("no-start"));
	manners.fails_if = no_start;
	command("start --daemon", 0, "egg: started, pid ");
	snprintf(before, sizeof before, "%s", command("status", 0, "\nrunning, "));
	file = fopen(no_start, "w");
	cr_assert_not_null(file);
	fclose(file);
	command("reload", 1,
	        "egg: reload given up: a new app worker did not start; 0 of 2 are new");
	command("status", 0, " reloads: 0 done, 1 given up\n");
	cr_assert_eq(unlink(no_start), 0);
	command("reload", 0, "egg: reloaded 2 app workers (");
	command("stop", 0, "egg: stopped (");
	nobody_is_left();
}

Test(scripts, what_is_not_ready_cannot_be_reloaded)
{
	static struct run run;

	home();
	manners.app_is_never_ready = true;
	start(&run, "start");
	wait_text(&run, "app_worker#2");
	command("reload", 1, "egg: cannot reload: not yet ready, or already stopping\n");
	command("status", 0, "\nstarting, ");
	command("stop", 0, "egg: stopped (");
	cr_assert_eq(end(&run), 0);
	nobody_is_left();
}

/* ---- systemd ------------------------------------------------------------------------------------------ */

/* systemd's end: a datagram socket. A name that begins with @ is an abstract one. */
static int
open_notify_socket(const char *name)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct timeval limit = {.tv_sec = time_limit() / 1000};
	int descriptor = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	size_t length = strlen(name);

	memcpy(address.sun_path, name, length);
	if (name[0] == '@')
		address.sun_path[0] = '\0';
	length += offsetof(struct sockaddr_un, sun_path);
	cr_assert_eq(bind(descriptor, (struct sockaddr *)&address, (socklen_t)length), 0, "%s: %s",
	             name, strerror(errno));
	setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	setenv("NOTIFY_SOCKET", name, 1);
	return descriptor;
}

static const char *
receive(int descriptor)
{
	static char text[256];
	ssize_t count = recv(descriptor, text, sizeof text - 1, 0);

	text[count > 0 ? count : 0] = '\0';
	return text;
}

static void
expect_notices(const char *name)
{
	static struct run run;
	int descriptor = open_notify_socket(name);

	manners.app_prints_notify_socket = true;
	start(&run, "start");
	cr_assert_str_eq(receive(descriptor), "READY=1");
	wait_text(&run, "[master] to stop it");
	cr_assert_eq(count_text(run.text, "app's NOTIFY_SOCKET: none"), 2, "%s", run.text);
	kill(run.pid, SIGTERM);
	cr_assert_str_eq(receive(descriptor), "STOPPING=1");
	cr_assert_eq(end(&run), 0);
	cr_assert_eq(recv(descriptor, run.text, 1, MSG_DONTWAIT), -1);
	close(descriptor);
	nobody_is_left();
}

Test(scripts, systemd_is_told)
{
	char abstract[64];

	home();
	snprintf(abstract, sizeof abstract, "@clutch-%ld", (long)getpid());
	expect_notices(path_of("notify"));
	expect_notices(abstract);
}

/* A socket that is not there: a line of the log, and all else as ever. */
Test(scripts, a_notify_socket_that_is_not_there_harms_nobody)
{
	static struct run run;

	home();
	setenv("NOTIFY_SOCKET", path_of("nowhere"), 1);
	start(&run, "start");
	wait_text(&run, "[master] cannot tell NOTIFY_SOCKET=");
	wait_text(&run, "[master] to stop it");
	kill(run.pid, SIGTERM);
	cr_assert_eq(end(&run), 0);
	nobody_is_left();
}
