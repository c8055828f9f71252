/*
 * Processes that misbehave on a test's order, and system calls that fail: what the tests of
 * traffic and of processes have in common.
 *
 * The core is linked with small limits there (TRAFFIC_LIMITS in the Makefile), so that a
 * queue is full after 128 KiB and a process is stuck after 1.5 s. Some system calls are
 * wrapped, so that a test can make them fail, and can watch the master's signals (struct
 * world). The clock can run faster or slower than the true one.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#ifndef TROUBLES_H
#define TROUBLES_H

#include "traffic.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>

enum { REAPED_MAX = 64, HELPERS = 8, PIECE = 8 * 1024, PAUSE = 3000 };

/* ---- what all processes share, and the wrapped calls ------------------------------------- */

struct world {
	pid_t master;
	/* in process short_of, sendmsg(2) of a handle fails with this errno; 0: with none */
	int shortage;
	pid_t short_of;
	int met;      /* how often sendmsg has failed */
	int met_last; /* the shortage ends after so many failures; 0: it lasts */
	/* in its next turn a process gets this descriptor as stdout or stderr; 0: none */
	int log[3];
	pid_t log_of; /* the process that gets the descriptor; 0: all */
	int diverted; /* how many logs have been replaced */
	/* poll(2) reports room in this log, though other writers have filled it; 0: in none */
	int crowded;
	/* how the master writes large messages to a process that is going to hang */
	enum { WRITES, WRITES_NOTHING, WRITES_ONCE } writes;
	/* the writers are fast: recvmsg(2) reports EAGAIN only after waiting for a while */
	bool prolific;
	/* the children that the master has reaped, and how many signals went to their pids */
	pid_t reaped[REAPED_MAX];
	int reaped_count, signals_to_reaped;
	pid_t stolen; /* a dead child that another part of the program reaps; 0: none */
	/* the last group that got SIGKILL, and its leader's end, in ms */
	pid_t killed;
	int64_t killed_at, reaped_at;
	volatile bool job_left; /* see order_leave_a_job */
	/* what the role functions of a test read and write */
	bool ill;
	int agents;
	int64_t last_beat, worst_gap;
	int turns; /* of the master's loop */
};

static struct world *world;
static pid_t owner;                /* the test's own process */
static int faster = 1, slower = 1; /* the clock, as the processes of the test see it */

static void
open_world(void)
{
	world = mmap(NULL, sizeof *world, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
	             0);
	cr_assert(world != MAP_FAILED);
	owner = getpid();
}

static bool
is_master(void)
{
	return world != NULL && getpid() == world->master;
}

/* Stdout or stderr becomes what the test has opened for it. */
static void
divert_logs(void)
{
	static bool done[3];
	int log;

	for (log = STDOUT_FILENO; log <= STDERR_FILENO; log++) {
		if (done[log] || world->log[log] == 0 ||
		    (world->log_of != 0 && world->log_of != getpid()))
			continue;
		done[log] = dup2(world->log[log], log) == log;
		__atomic_fetch_add(&world->diverted, 1, __ATOMIC_SEQ_CST);
	}
}

int __real_poll(struct pollfd *set, nfds_t count, int timeout);
int __wrap_poll(struct pollfd *set, nfds_t count, int timeout);

int
__wrap_poll(struct pollfd *set, nfds_t count, int timeout)
{
	if (world != NULL && getpid() != owner) {
		divert_logs();
		if (timeout > 0)
			timeout = (timeout * slower + faster - 1) / faster;
	}
	if (is_master() && count > 1)
		world->turns++;
	if (is_master() && count == 1 && set[0].fd > 0 && set[0].fd == world->crowded) {
		set[0].revents = POLLOUT;
		return 1;
	}
	return __real_poll(set, count, timeout);
}

int __real_clock_gettime(clockid_t clock, struct timespec *now);
int __wrap_clock_gettime(clockid_t clock, struct timespec *now);

int
__wrap_clock_gettime(clockid_t clock, struct timespec *now)
{
	int64_t microseconds;

	if (__real_clock_gettime(clock, now) == -1)
		return -1;
	microseconds = ((int64_t)now->tv_sec * 1000000 + now->tv_nsec / 1000) * faster / slower;
	now->tv_sec = microseconds / 1000000;
	now->tv_nsec = microseconds % 1000000 * 1000;
	return 0;
}

ssize_t __real_sendmsg(int descriptor, const struct msghdr *header, int flags);
ssize_t __wrap_sendmsg(int descriptor, const struct msghdr *header, int flags);

ssize_t
__wrap_sendmsg(int descriptor, const struct msghdr *header, int flags)
{
	if (world != NULL && world->shortage != 0 && world->short_of == getpid() &&
	    header->msg_controllen > 0) {
		errno = world->shortage;
		if (++world->met == world->met_last)
			world->shortage = 0;
		return -1;
	}
	return __real_sendmsg(descriptor, header, flags);
}

ssize_t __real_send(int descriptor, const void *bytes, size_t length, int flags);
ssize_t __wrap_send(int descriptor, const void *bytes, size_t length, int flags);

/* A receiver whose socket is full reads once, between the messages of a turn of the master
 * and the end of this turn: its queue rises above the high mark, and has fallen below it when
 * the master looks. Then the receiver hangs. Each message makes the master write, and the
 * queue is longer each time; the write at the end of the turn finds it as it was. */
ssize_t
__wrap_send(int descriptor, const void *bytes, size_t length, int flags)
{
	static size_t last;
	bool again = length == last;

	if (!is_master() || world->writes == WRITES || length < PIECE)
		return __real_send(descriptor, bytes, length, flags);
	last = length;
	if (world->writes == WRITES_ONCE && again && length > CHANNEL_HIGH_WATER) {
		world->writes = WRITES_NOTHING;
		return (ssize_t)(length - CHANNEL_HIGH_WATER / 2);
	}
	errno = EAGAIN;
	return -1;
}

ssize_t __real_recvmsg(int descriptor, struct msghdr *header, int flags);
ssize_t __wrap_recvmsg(int descriptor, struct msghdr *header, int flags);

ssize_t
__wrap_recvmsg(int descriptor, struct msghdr *header, int flags)
{
	struct pollfd more = {.fd = descriptor, .events = POLLIN};
	ssize_t count = __real_recvmsg(descriptor, header, flags);

	if (count == -1 && errno == EAGAIN && is_master() && world->prolific) {
		__real_poll(&more, 1, 20);
		count = __real_recvmsg(descriptor, header, flags);
	}
	return count;
}

/* The kernel may give the pid of a reaped child to a stranger at any time. */
static void
note_reaped(pid_t pid)
{
	if (is_master() && pid == world->killed)
		world->reaped_at = clutch_now();
	if (is_master() && world->reaped_count < REAPED_MAX)
		world->reaped[world->reaped_count++] = pid;
}

pid_t __real_waitpid(pid_t pid, int *status, int options);
pid_t __wrap_waitpid(pid_t pid, int *status, int options);

pid_t
__wrap_waitpid(pid_t pid, int *status, int options)
{
	pid_t reaped = __real_waitpid(pid, status, options);

	if (reaped > 0)
		note_reaped(reaped);
	return reaped;
}

int __real_waitid(idtype_t type, id_t id, siginfo_t *info, int options);
int __wrap_waitid(idtype_t type, id_t id, siginfo_t *info, int options);

int
__wrap_waitid(idtype_t type, id_t id, siginfo_t *info, int options)
{
	siginfo_t found;
	int result;

	if (is_master() && type == P_PID && (pid_t)id == world->stolen)
		__wrap_waitpid(world->stolen, NULL, 0);
	result = __real_waitid(type, id, &found, options);
	if (result == 0 && info != NULL)
		*info = found; /* Linux writes there though it fails, other systems do not */
	if (result == 0 && info != NULL && info->si_pid > 0 && (options & WNOWAIT) == 0)
		note_reaped(info->si_pid);
	return result;
}

int __real_kill(pid_t pid, int number);
int __wrap_kill(pid_t pid, int number);

int
__wrap_kill(pid_t pid, int number)
{
	int i;

	for (i = 0; is_master() && number != 0 && i < world->reaped_count; i++)
		world->signals_to_reaped += world->reaped[i] == (pid < 0 ? -pid : pid);
	if (is_master() && pid < 0 && number == SIGKILL) {
		world->killed = -pid;
		world->killed_at = clutch_now();
	}
	return __real_kill(pid, number);
}

/* ---- what a process can be told to do ---------------------------------------------------- */

static volatile sig_atomic_t told_to_end;

static void
on_told_to_end(int number)
{
	(void)number;
	told_to_end = 1;
}

/* The bytes of a message as they travel. */
static size_t
make_frame(const struct message *message, unsigned char **frame)
{
	struct channel channel;

	channel_init(&channel, 0);
	if (sendmessage(&channel, message) == -1)
		abort();
	*frame = channel.queue + channel.queue_start;
	return channel_pending(&channel);
}

/* A child of an app or agent, in the same process group. It writes messages into its parent's
 * channel without a pause until the other end is closed or SIGTERM comes, and lives until
 * SIGTERM or SIGKILL. (The socket takes a frame of this size whole or not at all.) */
static void
help(struct messenger *messenger, int number)
{
	static char data[12 * 1024];
	struct message message = {.action = "noise", .to = ROLE_APP, .data = data, .handle = -1};
	int descriptor = messenger->channel.descriptor, room = 200 * 1024;
	unsigned char *frame;
	sigset_t none;
	size_t size;

	memset(data, '1', sizeof data - 1);
	message.data_length = sizeof data - 1;
	size = make_frame(&message, &frame);
	signal(SIGPIPE, SIG_IGN);
	signal(SIGTERM, number % 2 == 0 ? on_told_to_end : SIG_IGN);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none,
	            NULL); /* SIGTERM may have come already: on_told_to_end runs now */
	setsockopt(descriptor, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
	while (!told_to_end && (write(descriptor, frame, size) != -1 || errno == EAGAIN ||
	                        errno == EINTR || errno == ENOBUFS))
		;
	while (!told_to_end)
		__real_poll(NULL, 0, 100);
	report(messenger, "helper %d was told to end", number);
	_exit(0);
}

static int
order_help(struct messenger *messenger, const char *line)
{
	sigset_t all, before;
	int i;

	world->prolific = true;
	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, &before);
	for (i = 0; i < HELPERS; i++)
		if (fork() == 0)
			help(messenger, i);
	sigprocmask(SIG_SETMASK, &before, NULL);
	if (strcmp(order_rest(line), "leave") == 0)
		_exit(0);
	report(messenger, "has helpers");
	return 0;
}

/* The process moves into the master's group, so that a signal to its old group misses it. */
static int
order_move(struct messenger *messenger, const char *line)
{
	if (strcmp(order_rest(line), "deaf") == 0)
		signal(SIGTERM, SIG_IGN);
	if (setpgid(0, getpgid(getppid())) == -1)
		report(messenger, "cannot move: %s", strerror(errno));
	else
		report(messenger, "has moved");
	return 0;
}

static void
hang(void)
{
	for (;;)
		pause();
}

/* A grandchild that only SIGKILL ends. Its parent has left the group, and lives until the
 * app is reaped, so that the grandchild is in the group for as long as the master waits. */
static int
order_leave_a_job(struct messenger *messenger, const char *line)
{
	pid_t app = getpid();

	(void)line;
	if (fork() != 0)
		return 0;
	close(messenger->channel.descriptor);
	signal(SIGTERM, SIG_IGN);
	if (fork() == 0)
		hang();
	setpgid(0, 0);
	report(messenger, "has left a job");
	while (__real_kill(app, 0) == 0)
		__real_poll(NULL, 0, 5);
	world->job_left = true;
	_exit(0);
}

static int
order_break_the_protocol(struct messenger *messenger, const char *line)
{
	(void)line;
	write_to_channel(messenger, "this is not a frame", 19);
	hang();
	return 0;
}

/* The process reads only 48 KiB in a second. */
static int
order_sip(struct messenger *messenger, const char *line)
{
	static char bytes[PIECE];

	(void)line;
	report(messenger, "sips");
	while (read(messenger->channel.descriptor, bytes, sizeof bytes) != 0)
		__real_poll(NULL, 0, 170);
	_exit(0);
	return 0;
}

/* "PID PID": write 512 KiB to each pid with calls that block, and read nothing meanwhile. */
static int
order_gush(struct messenger *messenger, const char *line)
{
	static char data[PIECE];
	struct message message = {.action = "noise", .data = data, .handle = -1};
	int descriptor = messenger->channel.descriptor, flags = fcntl(descriptor, F_GETFL), i, j;
	unsigned char *frame;
	long pids[2];
	size_t size;

	memset(data, '1', sizeof data - 1);
	message.data_length = sizeof data - 1;
	sscanf(order_rest(line), "%ld %ld", &pids[0], &pids[1]);
	fcntl(descriptor, F_SETFL, flags & ~O_NONBLOCK);
	for (i = 0; i < 2; i++) {
		message.receiver_pid = (pid_t)pids[i];
		size = make_frame(&message, &frame);
		for (j = 0; j < 64; j++)
			if (write(descriptor, frame, size) != (ssize_t)size)
				report(messenger, "BAD write: %s", strerror(errno));
		free(frame);
		report(messenger, "has gushed to %ld", pids[i]);
	}
	fcntl(descriptor, F_SETFL, flags);
	return 0;
}

/* "PID": send this pid a message with a descriptor. */
static int
order_pass(struct messenger *messenger, const char *line)
{
	struct message message = {.action = "test-passed",
	                          .receiver_pid = (pid_t)atol(order_rest(line)),
	                          .handle = open("/dev/null", O_RDONLY)};

	if (messenger_send_message(messenger, &message) == -1)
		report(messenger, "BAD send: %s", strerror(errno));
	close(message.handle);
	return 0;
}

static int
on_passed(struct messenger *messenger, const struct message *message, void *arg)
{
	(void)arg;
	report(messenger, message->handle == -1 ? "got it bare" : "got it whole");
	return 0;
}

/* Have 1,500 descriptors in flight: they count against the limit of all processes of the user. */
static int
order_park(struct messenger *messenger, const char *line)
{
	enum { BATCH = 250, BATCHES = 6 };
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(BATCH * sizeof(int))];
	} control;
	char byte = 0;
	struct iovec part = {&byte, 1};
	struct msghdr header = {.msg_iov = &part,
	                        .msg_iovlen = 1,
	                        .msg_control = &control,
	                        .msg_controllen = sizeof control};
	struct rlimit limit;
	int ends[2], i, descriptor;

	(void)line;
	getrlimit(RLIMIT_NOFILE, &limit);
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == -1)
		abort();
	descriptor = ends[0];
	memset(&control, 0, sizeof control);
	control.align.cmsg_level = SOL_SOCKET;
	control.align.cmsg_type = SCM_RIGHTS;
	control.align.cmsg_len = CMSG_LEN(BATCH * sizeof(int));
	for (i = 0; i < BATCH; i++)
		memcpy(CMSG_DATA(&control.align) + (size_t)i * sizeof(int), &descriptor,
		       sizeof(int));
	for (i = 0; i < BATCHES; i++)
		if (__real_sendmsg(ends[0], &header, MSG_DONTWAIT) == -1)
			report(messenger, "BAD park: %s", strerror(errno));
	report(messenger, "has parked");
	return 0;
}

/* Shut down the listener that all apps share. */
static int
order_shut_the_port(struct messenger *messenger, const char *line)
{
	int descriptor, listens;
	socklen_t size;

	(void)line;
	for (descriptor = 3; descriptor < 256; descriptor++) {
		size = sizeof listens;
		if (getsockopt(descriptor, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) == 0 &&
		    listens == 1 && shutdown(descriptor, SHUT_RDWR) == 0)
			report(messenger, "has shut the port");
	}
	return 0;
}

/* "PID": every 5 ms, send a message to the app with this pid and a larger one to the agent. */
static pid_t listener_pid;

static int
on_beat_timer(struct messenger *messenger, void *arg)
{
	static char data[PIECE];

	(void)arg;
	memset(data, '1', sizeof data - 1);
	messenger_send_to_agent(messenger, "noise", data);
	messenger_send_to(messenger, listener_pid, "test-beat", NULL);
	return 0;
}

static int
order_beat(struct messenger *messenger, const char *line)
{
	listener_pid = (pid_t)atol(order_rest(line));
	messenger_set_interval(messenger, 5, on_beat_timer, NULL);
	return 0;
}

static int
on_beat(struct messenger *messenger, const struct message *message, void *arg)
{
	int64_t now = clutch_now(), gap = now - world->last_beat;

	(void)messenger, (void)message, (void)arg;
	if (world->last_beat != 0 && gap > world->worst_gap)
		world->worst_gap = gap;
	world->last_beat = now;
	return 0;
}

static int
order_answer(struct messenger *messenger, const char *line)
{
	report(messenger, "answers %s", order_rest(line));
	return 0;
}

static const struct order orders[] = {{"help", order_help},
                                      {"move", order_move},
                                      {"leave-a-job", order_leave_a_job},
                                      {"break-the-protocol", order_break_the_protocol},
                                      {"sip", order_sip},
                                      {"gush", order_gush},
                                      {"pass", order_pass},
                                      {"park", order_park},
                                      {"shut-the-port", order_shut_the_port},
                                      {"beat", order_beat},
                                      {"answer", order_answer},
                                      {NULL, NULL}};

static int
act(struct messenger *messenger, void *arg)
{
	if (obey_orders(messenger, orders) == -1 ||
	    messenger_on(messenger, "test-passed", on_passed, NULL) == -1 ||
	    messenger_on(messenger, "test-beat", on_beat, NULL) == -1)
		return -1;
	return talk(messenger, arg);
}

/* ---- in the test ------------------------------------------------------------------------- */

static inline struct cluster *
launch(struct options options)
{
	struct cluster *c;

	if (options.agent == NULL)
		options.agent = act;
	if (options.app == NULL)
		options.app = act;
	if (options.app_close_timeout == 0)
		options.app_close_timeout = 1000;
	if (options.agent_close_timeout == 0)
		options.agent_close_timeout = 1000;
	c = cluster_start(&options);
	world->master = c->master;
	return c;
}

static inline struct cluster *
start(int workers)
{
	struct cluster *c = launch((struct options){.workers = workers});

	cluster_ready(c);
	return c;
}

static inline void
stop(struct cluster *c)
{
	assert_nothing_bad(c);
	cluster_stop(c);
}

static inline void tell(struct cluster *c, const char *who, const char *format, ...)
	CLUTCH_PRINTF(3, 4);

static inline void
tell(struct cluster *c, const char *who, const char *format, ...)
{
	char text[128];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(text, sizeof text, format, arguments);
	va_end(arguments);
	cluster_order(c, who, text);
}

/* Two processes send each other 100 messages, which takes at most `most` ms. */
static inline void
exchange(struct cluster *c, const char *one, const char *other, int most)
{
	static int id = 100;
	size_t mark = cluster_mark(c);
	int64_t since = clutch_now();

	id += 2;
	say(c, one, id, cluster_pid(c, other), 100, 100);
	say(c, other, id + 1, cluster_pid(c, one), 100, 100);
	cluster_wait(c, mark, "heard #100 of #%d.", id);
	cluster_wait(c, mark, "heard #100 of #%d.", id + 1);
	cr_assert_lt(clutch_now() - since, most * time_scale(), "%s and %s were held up for %lldms",
	             one, other, (long long)(clutch_now() - since));
}

static inline bool
is_later(struct cluster *c, void *arg)
{
	(void)c;
	return clutch_now() > *(const int64_t *)arg;
}

static inline void
let_pass(struct cluster *c, int milliseconds)
{
	int64_t until = clutch_now() + milliseconds;

	cluster_until(c, is_later, &until, "time to pass");
}

/* A second in which nothing happens: the loop has few turns. */
static inline void
assert_not_busy(struct cluster *c)
{
	world->turns = 0;
	let_pass(c, 1000);
	cr_assert_lt(world->turns, 100, "the loop had %d turns with nothing", world->turns);
}

/* How many bytes the master's status reports in the queue for a process. */
static inline size_t
queued(struct cluster *c, const char *who)
{
	cluster_ask_status(c);
	return (size_t)cluster_figure(c, who, "queued");
}

static inline bool
is_full(struct cluster *c, void *arg)
{
	return queued(c, arg) > CHANNEL_HIGH_WATER;
}

static inline bool
is_drained(struct cluster *c, void *arg)
{
	return queued(c, arg) < CHANNEL_LOW_WATER;
}

static inline void
wait_until_full(struct cluster *c, const char *who)
{
	char name[16];

	snprintf(name, sizeof name, "%s", who);
	cluster_until(c, is_full, name, "a queue to fill");
}

static inline bool
are_so_many(struct cluster *c, void *arg)
{
	pid_t pids[64];

	return cluster_processes(c, pids, 64) == *(size_t *)arg;
}

/* Become an ordinary user without other processes: limits do not count for root. (The clock is
 * in the number because processes of two PID namespaces may have the same pid.) */
static inline void
become_nobody(void)
{
	uid_t user = (uid_t)(40000 + (getpid() * 61 + clutch_now()) % 20000);

	if (geteuid() != 0)
		cr_skip_test("only root can become another user");
	cr_assert(setresgid(user, user, user) == 0 && setresuid(user, user, user) == 0);
	cr_assert(prctl(PR_SET_DUMPABLE, 1) == 0); /* else this process could not read /proc/self */
}

#ifdef __GLIBC__
typedef __rlimit_resource_t resource_kind;
#else
typedef int resource_kind;
#endif

static inline void
set_limit(pid_t pid, resource_kind resource, rlim_t value)
{
	struct rlimit limit;

	cr_assert(prlimit(pid, resource, NULL, &limit) == 0);
	limit.rlim_cur = value < limit.rlim_max ? value : limit.rlim_max;
	cr_assert(prlimit(pid, resource, &limit, NULL) == 0);
}

#endif
