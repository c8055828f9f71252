/*
 * Options of start_cluster that a program sets for its system: a listener that is bound
 * already, a path as host, timeouts and limits, where the log goes; and connections that
 * options.connection has not been given.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "compile.h"

#include <criterion/criterion.h>

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- in the processes ------------------------------------------------------------------- */

/* "refuse" is an uncaught error. The handle of "held" counts as a connection, also if the handle
 * is watched already. */
static int
on_ended(struct messenger *app, int descriptor, short revents, void *arg)
{
	(void)revents, (void)arg;
	report(app, "the other end is closed");
	messenger_unwatch(app, descriptor);
	close(descriptor);
	return 0;
}

static int
on_held(struct messenger *app, const struct message *message, void *arg)
{
	int kept = dup(message->handle);

	(void)arg;
	if (message->data != NULL)
		messenger_watch(app, kept, POLLIN, on_ended, NULL);
	report(app, "watches %d", messenger_watch_connection(app, kept, POLLIN, on_ended, NULL));
	return 0;
}

static int
on_refuse(struct messenger *app, const struct message *message, void *arg)
{
	(void)app, (void)message, (void)arg;
	return 7;
}

static int
plain(struct messenger *messenger, void *arg)
{
	(void)arg;
	messenger_on(messenger, "test-held", on_held, NULL);
	messenger_on(messenger, "test-refuse", on_refuse, NULL);
	return observe(messenger);
}

/* A byte for each connection. */
static int
answer(struct messenger *app, int descriptor, void *arg)
{
	ssize_t sent = send(descriptor, "x", 1, MSG_NOSIGNAL);

	(void)app, (void)arg;
	close(descriptor);
	return sent == 1 || errno == EPIPE || errno == ECONNRESET ? 0 : 1;
}

static struct cluster *
start(struct options options)
{
	options.agent = plain;
	options.app = plain;
	return cluster_start(&options);
}

static struct cluster *
start_ready(struct options options)
{
	struct cluster *c = start(options);

	cluster_ready(c);
	return c;
}

/* ---- a listener that is bound already ----------------------------------------------------- */

static int
bound_socket(int type, struct sockaddr_in *address)
{
	socklen_t length = sizeof *address;
	int descriptor = socket(AF_INET, type, 0);

	memset(address, 0, sizeof *address);
	address->sin_family = AF_INET;
	address->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	cr_assert_eq(bind(descriptor, (struct sockaddr *)address, sizeof *address), 0);
	cr_assert_eq(getsockname(descriptor, (struct sockaddr *)address, &length), 0);
	return descriptor;
}

static bool
is_answered(const struct sockaddr *address, socklen_t length)
{
	int client = socket(address->sa_family, SOCK_STREAM, 0);
	char byte = 0;
	bool answered = connect(client, address, length) == 0 && read(client, &byte, 1) == 1;

	close(client);
	return answered && byte == 'x';
}

/* A process that connects again and again until it is told to stop: it exits with 0 if each
 * connection was answered. */
static volatile sig_atomic_t stopped;

static void
on_stop(int number)
{
	(void)number;
	stopped = 1;
}

static pid_t
fork_clients(const struct sockaddr_in *address)
{
	pid_t pid = fork();

	if (pid != 0)
		return pid;
	signal(SIGTERM, on_stop);
	while (!stopped)
		if (!is_answered((const struct sockaddr *)address, sizeof *address))
			_exit(1);
	_exit(0);
}

/* The next build starts on the same socket, then the one before it stops. */
Test(options, a_new_build_replaces_an_old_one_without_a_refused_connection)
{
	struct options options = {.connection = answer, .workers = 2};
	struct cluster *old, *new;
	struct sockaddr_in address;
	int i, status, clients[2];
	char line[64];

	options.listener = bound_socket(SOCK_STREAM, &address);
	old = start_ready(options);
	snprintf(line, sizeof line, " started at http://127.0.0.1:%d,", ntohs(address.sin_port));
	cluster_wait(old, 0, "%s", line);
	for (i = 0; i < 2; i++)
		clients[i] = fork_clients(&address);
	for (i = 0; i < 3; i++) {
		new = start_ready(options);
		cluster_stop(old);
		old = new;
	}
	for (i = 0; i < 2; i++) {
		kill(clients[i], SIGTERM);
		cr_assert_eq(waitpid(clients[i], &status, 0), clients[i]);
		cr_assert_eq(status, 0, "a connection was refused or not answered");
	}
	cluster_stop(old);
}

static int
stop_all(struct messenger *app, void *arg)
{
	(void)app, (void)arg;
	return kill(getppid(), SIGTERM);
}

Test(options, a_listener_stays_open_when_the_cluster_has_ended)
{
	struct options options = {.app = stop_all,
	                          .connection = answer,
	                          .workers = 1,
	                          .log = open("/dev/null", O_WRONLY)};
	struct sockaddr_in address;
	int status;
	pid_t pid;

	clear_environment();
	options.listener = bound_socket(SOCK_STREAM, &address);
	pid = fork();
	if (pid == 0)
		_exit(start_cluster(&options) + 2 * (fcntl(options.listener, F_GETFD) == -1));
	cr_assert_eq(waitpid(pid, &status, 0), pid);
	cr_assert_eq(status, 0, "status %x", status);
}

Test(options, a_listener_that_is_none_is_one_clear_line)
{
	struct sockaddr_in address;
	struct cluster *c;

	c = start((struct options){.connection = answer, .listener = 999});
	cluster_wait(c, 0,
	             "[master] cannot listen on options.listener: "
	             "Bad file descriptor");
	cluster_ended(c, 1);
	c = start((struct options){.connection = answer,
	                           .listener = bound_socket(SOCK_DGRAM, &address)});
	cluster_wait(c, 0, "[master] cannot listen on options.listener: Operation not supported");
	cluster_ended(c, 1);
}

/* The address stands in the JSON of egg-ready and of the status. */
Test(options, a_listener_may_have_any_path)
{
	struct sockaddr_un odd = {.sun_family = AF_UNIX};
	struct cluster *c;
	int listener = socket(AF_UNIX, SOCK_STREAM, 0);

	snprintf(odd.sun_path, sizeof odd.sun_path, "%s/a\"b\tc", test_folder());
	cr_assert_eq(bind(listener, (struct sockaddr *)&odd, sizeof odd), 0);
	c = start_ready((struct options){.connection = answer, .listener = listener});
	cluster_wait(c, 0, "\"address\":\"%s/a?b?c\",\"protocol\":\"http\"}", test_folder());
	cr_assert(is_answered((struct sockaddr *)&odd, sizeof odd));
	cluster_stop(c);
	cr_assert_eq(access(odd.sun_path, F_OK), 0,
	             "the master has removed the socket of its caller");
}

/* As systemd does for a socket unit. */
Test(options, a_socket_that_systemd_has_bound_is_the_shared_port)
{
	static const char request[] = "GET / HTTP/1.0\r\n\r\n";
	char program[256], pid_option[160], number[16], byte;
	struct sockaddr_in address;
	int client, listener = bound_socket(SOCK_STREAM, &address), status;
	pid_t pid;

	clear_environment();
	test_leash();
	cr_assert_eq(listen(listener, 8), 0);
	snprintf(program, sizeof program, "%s/examples/hello",
	         getenv("BUILD") != NULL ? getenv("BUILD") : "build");
	snprintf(pid_option, sizeof pid_option, "--pid-file=%s/pid", test_folder());
	pid = fork();
	if (pid == 0) {
		dup2(listener, 3);
		snprintf(number, sizeof number, "%ld", (long)getpid());
		setenv("LISTEN_PID", number, 1);
		setenv("LISTEN_FDS", "1", 1);
		execl(program, program, "start", pid_option, (char *)NULL);
		_exit(127);
	}
	client = socket(AF_INET, SOCK_STREAM, 0);
	cr_assert_eq(connect(client, (struct sockaddr *)&address, sizeof address), 0);
	cr_assert_eq(write(client, request, sizeof request - 1), (ssize_t)sizeof request - 1);
	cr_assert(read(client, &byte, 1) == 1 && byte == 'H',
	          "the connection that waited was not answered by an app");
	kill(pid, SIGTERM);
	cr_assert_eq(waitpid(pid, &status, 0), pid);
	cr_assert_eq(status, 0, "status %x", status);
}

/* ---- a path as host ------------------------------------------------------------------------ */

static struct sockaddr_un path;

static const char *
name_path(void)
{
	path.sun_family = AF_UNIX;
	snprintf(path.sun_path, sizeof path.sun_path, "%s/socket", test_folder());
	return path.sun_path;
}

static struct cluster *
start_at_path(void)
{
	return start((struct options){.connection = answer, .host = name_path()});
}

Test(options, a_path_is_a_shared_port)
{
	struct cluster *c = start_at_path();
	struct stat status;

	cluster_ready(c);
	cluster_wait(c, 0, "egg started on %s ", path.sun_path);
	cluster_wait(c, 0, "\"port\":0,\"address\":\"%s\",\"protocol\":\"http\"}", path.sun_path);
	cr_assert(is_answered((struct sockaddr *)&path, sizeof path));
	cr_assert(stat(path.sun_path, &status) == 0 && S_ISSOCK(status.st_mode));
	cluster_stop(c);
	cr_assert_eq(access(path.sun_path, F_OK), -1,
	             "the master has not removed the socket that it made");
}

/* A master that was killed leaves its socket file; the next one replaces that, when the apps
 * of the first have left. */
Test(options, a_path_that_a_killed_master_has_left_is_taken)
{
	struct cluster *c = start_at_path();
	int descriptors;

	cluster_ready(c);
	descriptors = process_descriptors(c->master);
	cluster_signal(c, "MASTER", SIGKILL);
	cluster_killed(c, SIGKILL);
	cr_assert_eq(access(path.sun_path, F_OK), 0);
	c = start_at_path();
	cluster_ready(c);
	cr_assert_eq(process_descriptors(c->master), descriptors, "the trial connection is closed");
	cr_assert(is_answered((struct sockaddr *)&path, sizeof path));
	cluster_stop(c);
}

Test(options, a_path_of_others_is_refused)
{
	struct cluster *first, *second;
	int file;

	first = start_at_path();
	cluster_ready(first);
	second = start_at_path();
	cluster_wait(second, 0, "[master] %s is in use: stop what listens there", path.sun_path);
	cluster_ended(second, 1);
	cr_assert(is_answered((struct sockaddr *)&path, sizeof path));
	cr_assert_eq(unlink(path.sun_path), 0);
	file = open(path.sun_path, O_WRONLY | O_CREAT, 0600);
	cr_assert(file != -1 && close(file) == 0);
	cluster_stop(first);
	cr_assert_eq(access(path.sun_path, F_OK), 0,
	             "the master has removed another file that had the name of its socket");
	second = start_at_path();
	cluster_wait(second, 0, "[master] %s is in use", path.sun_path);
	cluster_ended(second, 1);
	cr_assert_eq(access(path.sun_path, F_OK), 0);
}

/* No process listens any more at a socket of another user; but only that user may remove it. */
Test(options, a_dead_socket_of_another_user_is_refused)
{
	int listener = socket(AF_UNIX, SOCK_STREAM, 0);
	struct cluster *c;

	if (geteuid() != 0)
		cr_skip_test("only root can give a file away");
	name_path();
	cr_assert_eq(bind(listener, (struct sockaddr *)&path, sizeof path), 0);
	close(listener);
	cr_assert_eq(chown(path.sun_path, 65534, (gid_t)-1), 0);
	c = start_at_path();
	cluster_wait(c, 0, "[master] %s is in use", path.sun_path);
	cluster_ended(c, 1);
	cr_assert_eq(access(path.sun_path, F_OK), 0);
}

/* A listener that is too busy to take another connection is alive. */
Test(options, a_path_whose_queue_of_connections_is_full_is_in_use)
{
	int listener = socket(AF_UNIX, SOCK_STREAM, 0), client;
	struct cluster *c;

	name_path();
	cr_assert_eq(bind(listener, (struct sockaddr *)&path, sizeof path), 0);
	cr_assert_eq(listen(listener, 0), 0);
	do
		client = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
	while (connect(client, (struct sockaddr *)&path, sizeof path) == 0);
	cr_assert_eq(errno, EAGAIN);
	c = start_at_path();
	cluster_wait(c, 0, "[master] %s is in use", path.sun_path);
	cluster_ended(c, 1);
	cr_assert_eq(access(path.sun_path, F_OK), 0);
}

Test(options, a_path_that_somebody_has_removed_is_no_fault)
{
	struct cluster *c = start_at_path();

	cluster_ready(c);
	cr_assert_eq(unlink(path.sun_path), 0);
	cluster_stop(c);
}

/* Each try is a connection for the process that listens there. */
Test(options, a_path_in_use_is_tried_seldom)
{
	int client, listener = socket(AF_UNIX, SOCK_STREAM, 0), tries = 0;
	struct cluster *c;

	name_path();
	cr_assert_eq(bind(listener, (struct sockaddr *)&path, sizeof path), 0);
	cr_assert_eq(listen(listener, 128), 0);
	cr_assert_eq(fcntl(listener, F_SETFL, O_NONBLOCK), 0);
	c = start_at_path();
	cluster_wait(c, 0, "[master] %s is in use: stop what listens there", path.sun_path);
	cluster_ended(c, 1);
	while ((client = accept(listener, NULL, NULL)) != -1) {
		tries++;
		close(client);
	}
	close(listener);
	cr_assert(tries >= 2 && tries <= 12, "the master tried the path %d times in 3 s", tries);
}

/* Between its bind and its listen, a master's socket refuses a connection. In this program the
 * socket refuses once; a cluster that starts ends by itself, with 0. */
static const char second_master[] =
	"#include \"messenger.h\"\n"
	"#include <errno.h>\n#include <signal.h>\n#include <sys/socket.h>\n#include <unistd.h>\n"
	"int connect(int descriptor, const struct sockaddr *address, socklen_t length)\n"
	"{\n"
	"	static int calls;\n"
	"	(void)descriptor, (void)address, (void)length;\n"
	"	errno = ECONNREFUSED;\n"
	"	return calls++ == 0 ? -1 : 0;\n"
	"}\n"
	"static int stop(struct messenger *app, void *arg)\n"
	"{ (void)app, (void)arg; return kill(getppid(), SIGTERM); }\n"
	"static int answer(struct messenger *app, int descriptor, void *arg)\n"
	"{ (void)app, (void)arg; return close(descriptor); }\n"
	"int main(int count, char **words)\n"
	"{\n"
	"	(void)count;\n"
	"	return start_cluster(&(struct options){.app = stop, .connection = answer,\n"
	"	                                       .host = words[1], .workers = 1});\n"
	"}\n";

Test(options, a_path_whose_master_is_about_to_listen_is_left_alone)
{
	const char *build = environment("BUILD", "build"), *folder = test_folder();
	struct cluster *c = start_at_path();

	cluster_ready(c);
	cr_assert(run("%s %s -I. -o %s/second %s %s/libclutch.a %s", environment("CC", "cc"),
	              environment("CFLAGS", ""), folder,
	              write_source("second.c", "%s", second_master), build,
	              environment("LDFLAGS", "")));
	cr_assert(run("! %s/second %s", folder, path.sun_path),
	          "the second master took the path of the first");
	cr_assert(is_answered((struct sockaddr *)&path, sizeof path));
	cluster_stop(c);
}

Test(options, a_path_that_is_none_is_one_clear_line)
{
	static const char *const bad[] = {"/with\"quote", "/with\ttab", "relative/path",
	                                  "/no/such/folder/socket"};
	static const char *const why[] = {"is no good", "is no good", "is no good",
	                                  "cannot listen on /no/such/folder/socket: No such file"};
	char long_path[200] = "/";
	struct cluster *c;
	size_t i;

	for (i = 0; i < 4; i++) {
		c = start((struct options){.connection = answer, .host = bad[i]});
		cluster_wait(c, 0, "%s", why[i]);
		cluster_ended(c, 1);
	}
	memset(long_path + 1, 'a', sizeof long_path - 2);
	c = start((struct options){.connection = answer, .host = long_path});
	cluster_wait(c, 0, "is no good: give a numeric address, localhost, or the path");
	cluster_ended(c, 1);
}

/* APP#1 gets one end of a connection as a handle; the test keeps the other end. */
static int
give_connection(struct cluster *c, const char *data)
{
	struct message message = {.action = "test-held", .to = ROLE_APP, .data = data};
	int pair[2];

	message.data_length = data != NULL ? strlen(data) : 0;
	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
	message.handle = pair[0];
	cr_assert_eq(messenger_send_message(c->parent, &message), 0);
	cluster_wait(c, 0, ":APP#1 watches 0");
	close(pair[0]);
	return pair[1];
}

/* ---- limits -------------------------------------------------------------------------------- */

Test(options, more_reforks_than_the_limit_wait)
{
	struct cluster *c = start_ready((struct options){.refork_limit = 2});
	size_t mark = cluster_mark(c);
	char who[16];
	int i;

	for (i = 1; i <= 3; i++) {
		snprintf(who, sizeof who, "APP#%d", i);
		if (i < 3)
			cluster_wait(c, 0, "app_worker#%d:%s start", i, who);
		cluster_wait(c, 0, ":%s saw egg-ready", who);
		cr_assert_eq(cluster_count(c, mark, "worker died too fast"), 0);
		cluster_signal(c, who, SIGKILL);
	}
	cluster_wait(c, mark,
	             "[master] worker died too fast: app_worker of "
	             "slot 0 waits ");
	cluster_stop(c);
}

Test(options, a_graceful_exit_has_its_own_timeout)
{
	struct cluster *c = start_ready((struct options){.graceful_timeout = 200});
	int other = give_connection(c, NULL);

	messenger_send_to_app(c->parent, "test-refuse", NULL);
	cluster_wait(c, 0, "[app_worker] will exit after 200ms at most");
	cr_assert_str_eq(cluster_wait_end(c, "APP#1"), "code: 1, signal: null");
	close(other);
	cluster_stop(c);
}

/* A stopped app reads nothing, and its full queue holds up the parent. */
Test(options, a_stuck_process_has_its_own_timeout)
{
	struct cluster *c = start_ready((struct options){.stuck_timeout = 1000});
	static char data[64 * 1024];
	int i;

	memset(data, '1', sizeof data - 1);
	cluster_signal(c, "APP#1", SIGSTOP);
	for (i = 0; i < 40; i++) {
		cr_assert_eq(messenger_send_to_app(c->parent, "test-much", data), 0);
		cluster_turn(c);
	}
	cluster_wait(c, 0, ":APP#1 is stuck, its queue is full: killed");
	cluster_wait(c, 0, ":APP#2 saw egg-ready");
	cluster_stop(c);
}

Test(options, numbers_out_of_range_are_one_clear_line)
{
	static const struct {
		struct options given;
		const char *line;
	} rows[] = {
		{{.refork_limit = -1},
	         "options.refork_limit=-1 is no good: give a number from 1 to 65536"},
		{{.refork_limit = INT_MAX},
	         "options.refork_limit=2147483647 is no good: give a number from 1 to 65536"},
		{{.worker_start_timeout = -1},
	         "options.worker_start_timeout=-1 is no good: give a number"},
		{{.stuck_timeout = -1}, "options.stuck_timeout=-1 is no good: give a number"},
		{{.graceful_timeout = -1}, "options.graceful_timeout=-1 is no good: give a number"},
		{{.port = 65536}, "PORT=65536 is no good: give a number from 1 to 65535"},
	};
	struct cluster *c;
	size_t i;

	for (i = 0; i < sizeof rows / sizeof rows[0]; i++) {
		c = start(rows[i].given);
		cluster_wait(c, 0, "[master] %s", rows[i].line);
		cluster_ended(c, 1);
	}
}

Test(options, a_variable_with_the_name_of_an_option_sets_nothing)
{
	setenv("options.stuck_timeout", "abc", 1);
	cluster_stop(start_ready((struct options){.workers = 1}));
}

/* ---- a connection that came as a handle ------------------------------------------------------ */

static void
leave_with_handle(const char *data)
{
	struct cluster *c = start_ready((struct options){.app_close_timeout = 60000});
	int other = give_connection(c, data);

	cluster_signal(c, "APP#1", SIGTERM);
	cluster_wait(c, 0, "[app_worker] beforeExit success"); /* and the app still waits */
	messenger_send_to_app(c->parent, "test-late", NULL);
	cluster_wait(c, 0, ":APP#1 saw test-late");
	close(other);
	cluster_wait(c, 0, ":APP#1 the other end is closed");
	cr_assert_str_eq(cluster_wait_end(c, "APP#1"), "code: 0, signal: null");
	cluster_stop(c);
}

Test(options, a_leaving_worker_waits_for_a_connection_that_came_as_a_handle)
{
	leave_with_handle(NULL);
}

Test(options, a_descriptor_that_is_watched_already_becomes_a_connection)
{
	leave_with_handle("\"watched\"");
}

/* ---- a port in use ----------------------------------------------------------------------- */

/* The line names PORT only where PORT would help. */
Test(options, a_port_that_the_program_has_fixed_is_not_to_be_set_outside)
{
	struct sockaddr_in address;
	int listener = bound_socket(SOCK_STREAM, &address);
	struct cluster *c;
	char port[16];

	cr_assert_eq(listen(listener, 1), 0);
	snprintf(port, sizeof port, "%d", ntohs(address.sin_port));
	c = start((struct options){.connection = answer, .port = ntohs(address.sin_port)});
	cluster_wait(c, 0, "port %s is in use: stop what listens there, or choose another port",
	             port);
	cr_expect_eq(cluster_count(c, 0, "PORT="), 0);
	cluster_ended(c, 1);
	setenv("PORT", port, 1);
	c = start((struct options){.connection = answer});
	cluster_wait(c, 0, "or choose another port, as in PORT=7002");
	cluster_ended(c, 1);
	close(listener);
}

static int
be_ready(struct messenger *agent, void *arg)
{
	(void)arg;
	return messenger_ready(agent, 0);
}

/* The process sends at once, and is ready a little later. */
static int
load_a_little(struct messenger *agent, void *arg)
{
	messenger_ready_later(agent);
	return messenger_send(agent, "test-loads", NULL, ROLE_PARENT) == -1 ||
	       messenger_set_timeout(agent, 200, be_ready, arg) == -1;
}

static int held_port;

static void
let_port_go(enum role role, void *arg)
{
	(void)arg;
	if (role == ROLE_MASTER)
		close(held_port);
}

/* The time in which the master waits for its port counts for no process. */
Test(options, a_port_that_becomes_free_costs_the_agent_no_time)
{
	struct sockaddr_in address;
	struct options options = {.agent = load_a_little,
	                          .in_child = let_port_go,
	                          .connection = answer,
	                          .worker_start_timeout = 1000};
	struct cluster *c;

	held_port = bound_socket(SOCK_STREAM, &address);
	options.port = ntohs(address.sin_port);
	cr_assert_eq(listen(held_port, 1), 0);
	c = cluster_start(&options);
	cluster_wait(c, 0, "is in use, waiting up to 3000ms");
	poll(NULL, 0, 1200); /* the master must not count this time */
	close(held_port);
	cluster_ready(c);
	cluster_stop(c);
}

/* ---- where the log goes ---------------------------------------------------------------------- */

Test(options, the_log_goes_to_a_descriptor)
{
	char name[128], text[16384];
	struct cluster *c;
	ssize_t length;
	int file;

	snprintf(name, sizeof name, "%s/log", test_folder());
	file = open(name, O_RDWR | O_CREAT | O_APPEND, 0600);
	cr_assert_neq(file, -1);
	c = start_ready((struct options){.log = file});
	messenger_send_to_app(c->parent, "test-refuse", NULL);
	cluster_wait(c, 0, ":PARENT saw app-worker-died");
	cr_assert_eq(cluster_count(c, 0, "[master]") + cluster_count(c, 0, "_worker]"), 0);
	kill(c->master, SIGTERM);
	cluster_ended(c, 0);
	length = pread(file, text, sizeof text - 1, 0);
	cr_assert_gt(length, 0);
	text[length] = '\0';
	cr_assert(strstr(text, " INFO ") != NULL && strstr(text, "[master] egg started") != NULL);
	cr_assert(strstr(text, "[app_worker] uncaught error 7 in a listener of \"test-refuse\"\n"));
	cr_assert(strstr(text, "[agent_worker] beforeExit success\n") != NULL);
	cr_assert(strstr(text, "[master] exit with code:0\n") != NULL);
}

Test(options, a_log_that_is_none_is_one_clear_line)
{
	struct cluster *c = start((struct options){.log = 999});

	cluster_wait(c, 0, "[master] options.log=999: Bad file descriptor");
	cluster_ended(c, 1);
}

Test(options, as_many_workers_as_processors_by_default)
{
	long count = sysconf(_SC_NPROCESSORS_ONLN);
	struct cluster *c;

	clear_environment();
	setenv("EGG_WORKERS", "", 1);
	c = cluster_start(&(struct options){.agent = plain, .app = plain});
	cluster_ready(c);
	cr_assert_eq(cluster_count(c, 0, "[master] app_worker#%ld:APP#%ld start", count, count) > 0,
	             1);
	cr_assert_eq(cluster_count(c, 0, "[master] app_worker#%ld:", count + 1), 0);
	cluster_stop(c);
}
