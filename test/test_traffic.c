/*
 * One process that is slow, stuck, hostile or gone costs the others nothing.
 *
 * The core is linked here with small limits (TRAFFIC_LIMITS in the Makefile), so that a
 * queue is full after 128 KiB and a process is stuck after 1.5 s. Some system calls
 * are wrapped, so that a test can make them fail, and can watch the master's signals
 * (struct world). The clock can run faster or slower than the true one.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#define CLUTCH_PRIVATE
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
	/* sendmsg(2) with a handle fails so, in that process; 0: it does not */
	int shortage;
	pid_t short_of;
	int met;      /* how often */
	int met_last; /* and it ends at this time; 0: it lasts */
	/* in its next turn a process gets this descriptor as stdout or stderr; 0: none */
	int log[3];
	pid_t log_of; /* which process; 0: all */
	int diverted; /* the processes that have done so */
	/* poll(2) says that this log has room, but other writers have taken it; 0: none */
	int crowded;
	/* the master's queue for a process that will hang: how it writes large messages */
	enum { WRITES, WRITES_NOTHING, WRITES_ONCE } writes;
	/* recvmsg(2) finds nothing only if nothing has come for a while: who writes is fast */
	bool prolific;
	/* the children that the master has reaped, and the signals to their numbers */
	pid_t reaped[REAPED_MAX];
	int reaped_count, signals_to_reaped;
	pid_t stolen; /* a dead child that another part of the program reaps; 0: none */
	/* the last group that got SIGKILL, and its leader's end, in ms */
	pid_t killed;
	int64_t killed_at, reaped_at;
	volatile bool job_left; /* see order_leave_a_job */
	/* what the roles of a test look at */
	bool ill;
	int agents;
	int64_t last_beat, worst_gap;
	int turns; /* of the master */
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

TestSuite(traffic, .init = open_world, .timeout = 60);

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

/* From now on that number may be a stranger's. */
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

/* A child of an app or agent, in its group: it speaks as its parent does, without a
 * pause, for as long as anybody listens, and then it stays. (The socket takes so small a
 * frame as a whole, or not at all.) */
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
	sigprocmask(SIG_SETMASK, &none, NULL); /* on_told_to_end hears what has come before it */
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

/* Into the master's group, so that no signal to a group of its own reaches it. */
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

/* A grandchild that only SIGKILL ends. Its parent has left the group, and reaps it only when
 * the app is reaped: so there is somebody in the group for as long as the master waits. */
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
	raw_write(messenger, "this is not a frame", 19);
	hang();
	return 0;
}

/* Read, but only so much in a second: 48 KiB. */
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

/* "PID PID": 512 KiB to each, by calls that block. Nothing is read meanwhile. */
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

/* A message with a descriptor, to a pid. */
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

/* 1,500 descriptors in flight, which count for all processes of this user. */
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

/* Of the listener that all apps share. */
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

/* Each 5 ms one message to that app, and a larger one to the agent. */
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

static struct cluster *
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

static struct cluster *
start(int workers)
{
	struct cluster *c = launch((struct options){.workers = workers});

	cluster_ready(c);
	return c;
}

static void
stop(struct cluster *c)
{
	assert_nothing_bad(c);
	cluster_stop(c);
}

static void tell(struct cluster *c, const char *who, const char *format, ...) CLUTCH_PRINTF(3, 4);

static void
tell(struct cluster *c, const char *who, const char *format, ...)
{
	char text[128];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(text, sizeof text, format, arguments);
	va_end(arguments);
	cluster_order(c, who, text);
}

/* Two processes exchange 100 messages each way, and it takes no longer than that. */
static void
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

static bool
is_later(struct cluster *c, void *arg)
{
	(void)c;
	return clutch_now() > *(const int64_t *)arg;
}

static void
let_pass(struct cluster *c, int milliseconds)
{
	int64_t until = clutch_now() + milliseconds;

	cluster_until(c, is_later, &until, "time to pass");
}

/* A second in which nothing happens: the loop has few turns. */
static void
assert_not_busy(struct cluster *c)
{
	world->turns = 0;
	let_pass(c, 1000);
	cr_assert_lt(world->turns, 100, "the loop had %d turns with nothing", world->turns);
}

/* What the master says that is queued for a process. */
static size_t
queued(struct cluster *c, const char *who)
{
	cluster_ask_status(c);
	return (size_t)cluster_figure(c, who, "queued");
}

static bool
is_full(struct cluster *c, void *arg)
{
	return queued(c, arg) > CHANNEL_HIGH_WATER;
}

static bool
is_drained(struct cluster *c, void *arg)
{
	return queued(c, arg) < CHANNEL_LOW_WATER;
}

static void
wait_until_full(struct cluster *c, const char *who)
{
	char name[16];

	snprintf(name, sizeof name, "%s", who);
	cluster_until(c, is_full, name, "a queue to fill");
}

static bool
are_so_many(struct cluster *c, void *arg)
{
	pid_t pids[64];

	return cluster_processes(c, pids, 64) == *(size_t *)arg;
}

/* An ordinary user, whose processes nobody else has: limits count for it. (The clock tells
 * apart processes of two PID namespaces that have the same number.) */
static void
become_nobody(void)
{
	uid_t user = (uid_t)(40000 + (getpid() * 61 + clutch_now()) % 20000);

	if (geteuid() != 0)
		cr_skip_test("only root can become another user");
	cr_assert(setresgid(user, user, user) == 0 && setresuid(user, user, user) == 0);
	cr_assert(prctl(PR_SET_DUMPABLE, 1) == 0); /* or /proc would be closed to it */
}

#ifdef __GLIBC__
typedef __rlimit_resource_t resource_kind;
#else
typedef int resource_kind;
#endif

static void
set_limit(pid_t pid, resource_kind resource, rlim_t value)
{
	struct rlimit limit;

	cr_assert(prlimit(pid, resource, NULL, &limit) == 0);
	limit.rlim_cur = value < limit.rlim_max ? value : limit.rlim_max;
	cr_assert(prlimit(pid, resource, &limit, NULL) == 0);
}

/* ---- the last words of a dead process are finite ----------------------------------------- */

struct suspect {
	const char *died; /* the line that says so */
	long most;        /* memory, KiB */
};

static bool
is_buried_or_fat(struct cluster *c, void *arg)
{
	const struct suspect *suspect = arg;

	return cluster_count(c, 0, "%s", suspect->died) > 0 ||
	       process_memory(c->master) > suspect->most;
}

/* Its children write into its channel for as long as anybody reads it. They are told to
 * end; those that do not are killed. */
static void
expect_finite_last_words(const char *who, const char *died, const char *replaced)
{
	struct cluster *c = launch((struct options){
		.workers = 3, .app_close_timeout = 2000, .agent_close_timeout = 2000});
	struct suspect suspect = {.died = died};
	size_t mark, count = 1 + 1 + 3;
	long before;

	cluster_ready(c);
	before = process_memory(c->master);
	suspect.most = before + 256 * 1024;
	mark = cluster_mark(c);
	tell(c, who, "help leave");
	cluster_until(c, is_buried_or_fat, &suspect, "a death");
	assert_memory(c, "the helpers of a dead process speak", before, 8 * 1024);
	mark = cluster_wait(c, mark, "%s", died);
	exchange(c, "APP#2", "APP#3", 3000);
	cluster_wait(c, mark, "%s", replaced);
	cluster_until(c, are_so_many, &count, "the helpers to be gone");
	cr_assert_eq(cluster_count(c, 0, "was told to end"), HELPERS / 2,
	             "SIGKILL came without a SIGTERM");
	assert_memory(c, "the helpers of a dead process speak", before, 8 * 1024);
	stop(c);
}

Test(traffic, the_helpers_of_a_dead_app_are_not_listened_to)
{
	expect_finite_last_words("APP#1", "app_worker#1:APP#1 died", "app_worker#4:APP#4 started");
}

Test(traffic, the_helpers_of_a_dead_agent_are_not_listened_to)
{
	expect_finite_last_words("AGENT#1", "agent_worker#1:AGENT#1 died",
	                         "agent_worker#2:AGENT#2 started");
}

Test(traffic, the_helpers_of_an_app_that_has_left_do_not_keep_the_cluster_open)
{
	struct cluster *c = start(3);

	tell(c, "APP#1", "help stay");
	cluster_wait(c, 0, ":APP#1 has helpers");
	stop(c);
}

/* ---- a shortage concerns the channel that meets it --------------------------------------- */

/* It lasts. The message goes without its handle, the others have not waited. */
Test(traffic, a_shortage_for_a_handle_in_the_master_is_that_channels_alone)
{
	static const int shortages[] = {ETOOMANYREFS, ENOMEM, ENOBUFS};
	struct cluster *c = start(5);
	char who[16];
	size_t mark;
	int i;

	world->short_of = c->master;
	for (i = 0; i < 3; i++) {
		mark = cluster_mark(c);
		snprintf(who, sizeof who, "APP#%d", i + 2);
		world->shortage = shortages[i];
		tell(c, "APP#1", "pass %ld", (long)cluster_pid(c, who));
		exchange(c, "AGENT#1", "APP#5", 3000);
		cluster_wait(c, mark, ":%s got it bare", who);
		cluster_wait(c, mark,
		             "app_worker#%d:%s: no descriptor or memory for a handle: its "
		             "message goes without it, as do more of this kind (app %d)",
		             i + 2, who, i + 1);
		cr_assert_eq(cluster_count(c, mark, "handle"), 1, "one line says so");
		exchange(c, "APP#1", who, 3000);
		world->shortage = 0;
		tell(c, "APP#1", "pass %ld", (long)cluster_pid(c, who));
		cluster_wait(c, mark, ":%s got it whole", who);
	}
	cr_assert_eq(cluster_count(c, 0, " died "), 0);
	stop(c);
}

Test(traffic, a_shortage_that_is_over_soon_costs_no_handle)
{
	struct cluster *c = start(2);

	world->short_of = c->master;
	world->met_last = 3;
	world->shortage = ETOOMANYREFS;
	tell(c, "APP#1", "pass %ld", (long)cluster_pid(c, "APP#2"));
	cluster_wait(c, 0, ":APP#2 got it");
	cr_assert_eq(cluster_count(c, 0, ":APP#2 got it whole"), 1);
	cr_assert_eq(world->met, 3);
	stop(c);
}

static bool
has_met_a_shortage(struct cluster *c, void *arg)
{
	(void)c;
	return world->met > *(int *)arg;
}

/* The same in the process that sends: it reads on. */
static void
expect_shortage_in_sender(const char *who)
{
	static const int shortages[] = {ETOOMANYREFS, ENOMEM, ENOBUFS};
	struct cluster *c = start(2);
	size_t mark;
	int i, met;

	for (i = 0; i < 3; i++) {
		mark = cluster_mark(c);
		met = world->met;
		world->short_of = cluster_pid(c, who);
		world->shortage = shortages[i];
		tell(c, who, "pass %ld", (long)cluster_pid(c, "APP#2"));
		cluster_until(c, has_met_a_shortage, &met, "a shortage");
		tell(c, who, "answer %d", i);
		cluster_wait(c, mark, ":%s answers %d", who, i);
		cluster_wait(c, mark, ":APP#2 got it bare");
		world->shortage = 0;
		tell(c, who, "pass %ld", (long)cluster_pid(c, "APP#2"));
		cluster_wait(c, mark, ":APP#2 got it whole");
	}
	exchange(c, who, "APP#2", 3000);
	stop(c);
}

Test(traffic, an_app_that_meets_a_shortage_for_a_handle_reads_on)
{
	expect_shortage_in_sender("APP#1");
}

Test(traffic, an_agent_that_meets_a_shortage_for_a_handle_reads_on)
{
	expect_shortage_in_sender("AGENT#1");
}

/* The real thing: the user's descriptors in flight are more than the master may have. */
Test(traffic, descriptors_in_flight_hold_up_no_other_channel)
{
	struct rlimit limit;
	struct cluster *c;

	become_nobody();
	getrlimit(RLIMIT_NOFILE, &limit);
	if (limit.rlim_max != RLIM_INFINITY && limit.rlim_max < 2000)
		cr_skip_test("an app cannot have enough descriptors in flight");
	set_limit(0, RLIMIT_NOFILE, 256);
	c = start(4);
	tell(c, "APP#1", "park");
	cluster_wait(c, 0, ":APP#1 has parked");
	tell(c, "APP#1", "pass %ld", (long)cluster_pid(c, "APP#2"));
	exchange(c, "APP#3", "APP#4", 3000);
	cluster_wait(c, 0, ":APP#2 got it");
	cr_assert_eq(cluster_count(c, 0, ":APP#2 got it bare"), 1);
	cluster_wait(c, 0, "handle");
	cr_assert_eq(cluster_count(c, 0, "handle"), 1, "one line says so");
	exchange(c, "APP#1", "APP#2", 3000);
	stop(c);
}

/* ---- a process that has left its group --------------------------------------------------- */

static int
wait_for_the_job(struct messenger *agent, void *arg)
{
	(void)agent, (void)arg;
	while (!world->job_left)
		__real_poll(NULL, 0, 5);
	return 0;
}

/* Its master must not end before the one that has left the job. */
static int
act_and_leave_behind_the_job(struct messenger *agent, void *arg)
{
	return messenger_before_close(agent, wait_for_the_job, arg) == -1 ? -1 : act(agent, arg);
}

/* SIGKILL takes its time, too: the number of the group is kept until then. */
Test(traffic, a_group_that_was_killed_has_time_to_die)
{
	struct cluster *c = launch((struct options){.agent = act_and_leave_behind_the_job});

	cluster_ready(c);
	tell(c, "APP#1", "leave-a-job");
	cluster_wait(c, 0, "has left a job");
	stop(c);
	cr_assert_neq(world->killed, 0, "the job has left by itself");
	cr_assert_gt(world->reaped_at - world->killed_at, 100);
}

Test(traffic, who_has_left_its_group_is_ended_all_the_same)
{
	struct cluster *c = start(2);

	tell(c, "AGENT#1", "move");
	tell(c, "APP#1", "move deaf");
	tell(c, "APP#2", "move");
	cluster_wait(c, 0, ":AGENT#1 has moved");
	cluster_wait(c, 0, ":APP#1 has moved");
	cluster_wait(c, 0, ":APP#2 has moved");
	stop(c);
}

static int
move_and_load(struct messenger *messenger, void *arg)
{
	(void)arg;
	order_move(messenger, "move deaf");
	for (;;) { /* again: its master gives it a group of its own, maybe after this */
		setpgid(0, getpgid(getppid()));
		__real_poll(NULL, 0, 10);
	}
	return 0;
}

Test(traffic, an_app_that_has_left_its_group_has_a_start_timeout)
{
	struct cluster *c = launch((struct options){
		.app = move_and_load, .worker_start_timeout = 1500, .app_close_timeout = 300});

	cluster_wait(c, 0, ":APP#1 has moved");
	cluster_ended(c, 1);
}

Test(traffic, an_agent_that_has_left_its_group_has_a_start_timeout)
{
	struct cluster *c = launch((struct options){
		.agent = move_and_load, .worker_start_timeout = 1500, .agent_close_timeout = 300});

	cluster_wait(c, 0, ":AGENT#1 has moved");
	cluster_ended(c, 1);
}

static void
expect_end_of_liar(const char *who, const char *died, const char *replaced)
{
	struct cluster *c = start(2);

	tell(c, who, "move deaf");
	cluster_wait(c, 0, ":%s has moved", who);
	tell(c, who, "break-the-protocol");
	cluster_wait(c, 0, "%s (code: null, signal: SIGKILL, broke the protocol)", died);
	cluster_wait(c, 0, "%s", replaced);
	stop(c);
}

Test(traffic, an_app_that_has_left_its_group_pays_for_a_breach_of_protocol)
{
	expect_end_of_liar("APP#1", "APP#1 died", "app_worker#3:APP#3 started");
}

Test(traffic, an_agent_that_has_left_its_group_pays_for_a_breach_of_protocol)
{
	expect_end_of_liar("AGENT#1", "AGENT#1 died", "agent_worker#2:AGENT#2 started");
}

/* ---- a log that blocks ------------------------------------------------------------------- */

static bool
are_diverted(struct cluster *c, void *arg)
{
	cluster_turn(c);
	return world->diverted >= *(int *)arg;
}

/* From now on that is the stdout or stderr of one process, or of all (0). */
static void
divert_log(struct cluster *c, int log, int descriptor, pid_t pid, int processes)
{
	world->log_of = pid;
	world->log[log] = descriptor;
	exchange(c, "AGENT#1", "APP#1", 3000); /* so that each of them turns its loop */
	exchange(c, "APP#2", "APP#3", 3000);
	exchange(c, "AGENT#1", "APP#1", 3000);
	exchange(c, "APP#2", "APP#3", 3000);
	cluster_until(c, are_diverted, &processes, "the log to be another one");
}

/* The pipe has room when the master asks, and none when it writes: other processes
 * write into it, and nobody reads it any more. */
static void
expect_life_with_a_full_pipe(int log)
{
	static const char zeros[4096];
	struct cluster *c;
	int64_t since;
	int ends[2];

	cr_assert_eq(pipe(ends), 0);
	fcntl(ends[1], F_SETFL, O_NONBLOCK);
	while (write(ends[1], zeros, sizeof zeros) > 0)
		;
	fcntl(ends[1], F_SETFL, 0);
	c = start(3);
	divert_log(c, log, ends[1], c->master, 1);
	world->crowded = log;
	since = clutch_now();
	cluster_signal(c, "MASTER", SIGUSR1); /* many lines on stdout */
	cluster_signal(c, "APP#1", SIGKILL);  /* lines on both */
	exchange(c, "APP#2", "APP#3", 3000);
	cluster_signal(c, "MASTER", SIGUSR1);
	cluster_signal(c, "AGENT#1", SIGKILL);
	exchange(c, "APP#2", "APP#3", 3000);
	stop(c);
	cr_assert_lt(clutch_now() - since, 8000 * time_scale());
}

Test(traffic, a_full_pipe_that_others_share_does_not_block_stdout)
{
	expect_life_with_a_full_pipe(STDOUT_FILENO);
}

Test(traffic, a_full_pipe_that_others_share_does_not_block_stderr)
{
	expect_life_with_a_full_pipe(STDERR_FILENO);
}

/* Each line costs 10 ms at most, but there are seven hundred of them. */
Test(traffic, a_full_pipe_does_not_slow_the_master_down_for_long)
{
	static const char zeros[4096];
	struct cluster *c;
	int64_t since;
	int ends[2], i;

	cr_assert_eq(pipe(ends), 0);
	fcntl(ends[1], F_SETFL, O_NONBLOCK);
	while (write(ends[1], zeros, sizeof zeros) > 0)
		;
	fcntl(ends[1], F_SETFL, 0);
	c = start(3);
	divert_log(c, STDOUT_FILENO, ends[1], c->master, 1);
	since = clutch_now();
	for (i = 0; i < 100; i++) {
		cluster_signal(c, "MASTER", SIGUSR1);
		exchange(c, "APP#2", "APP#3", 3000);
	}
	cr_assert_lt(clutch_now() - since, 7000 * time_scale(), "it took %lldms",
	             (long long)(clutch_now() - since));
	stop(c);
}

/* ---- a log that has reached its limit ---------------------------------------------------- */

enum { LOG_LIMIT = 8 * 1024 };

static struct cluster *
start_with_log_at_its_limit(int log)
{
	char path[128], who[16];
	struct cluster *c;
	int file, i;

	snprintf(path, sizeof path, "%s/log", test_folder());
	file = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
	cr_assert(file != -1 && ftruncate(file, LOG_LIMIT) == 0);
	c = start(3);
	divert_log(c, log, file, 0, 5);
	set_limit(c->master, RLIMIT_FSIZE, LOG_LIMIT);
	set_limit(cluster_pid(c, "AGENT#1"), RLIMIT_FSIZE, LOG_LIMIT);
	for (i = 1; i <= 3; i++) {
		snprintf(who, sizeof who, "APP#%d", i);
		set_limit(cluster_pid(c, who), RLIMIT_FSIZE, LOG_LIMIT);
	}
	return c;
}

Test(traffic, an_app_survives_a_stdout_at_its_limit)
{
	struct cluster *c = start_with_log_at_its_limit(STDOUT_FILENO);

	cluster_signal(c, "APP#3", SIGTERM); /* it says so */
	cr_assert_str_eq(cluster_wait_end(c, "APP#3"), "code: 0, signal: null");
	exchange(c, "APP#1", "APP#2", 3000);
	stop(c);
}

Test(traffic, an_app_survives_a_stderr_at_its_limit)
{
	struct cluster *c = start_with_log_at_its_limit(STDERR_FILENO);
	size_t mark = cluster_mark(c);

	tell(c, "APP#3", "uncaught 1"); /* it says so */
	cluster_wait(c, mark, "app_worker#4:APP#4 started");
	cluster_wait_death(c, "APP#3");
	exchange(c, "APP#1", "APP#2", 3000);
	mark = cluster_mark(c);
	cluster_signal(c, "MASTER", SIGUSR1);
	cluster_wait(c, mark, "code: 1, signal: null");
	stop(c);
}

Test(traffic, the_master_survives_a_stdout_at_its_limit)
{
	struct cluster *c = start_with_log_at_its_limit(STDOUT_FILENO);

	cluster_signal(c, "MASTER", SIGUSR1);
	exchange(c, "APP#1", "APP#2", 3000);
	exchange(c, "APP#1", "APP#2", 3000);
	stop(c);
}

Test(traffic, the_master_survives_a_stderr_at_its_limit)
{
	struct cluster *c = start_with_log_at_its_limit(STDERR_FILENO);
	size_t mark = cluster_mark(c);

	cluster_signal(c, "APP#3", SIGKILL);
	cluster_wait(c, mark, "app_worker#4:APP#4 started");
	cluster_signal(c, "AGENT#1", SIGKILL);
	cluster_wait(c, mark, "agent_worker#2:AGENT#2 started");
	exchange(c, "APP#1", "APP#2", 3000);
	stop(c);
}

/* ---- too slow ---------------------------------------------------------------------------- */

/* It reads a little all the time, so that its queue is never short. */
Test(traffic, an_app_that_is_always_too_slow_is_replaced)
{
	struct cluster *c = start(3);
	size_t mark = cluster_mark(c);

	tell(c, "APP#1", "sip");
	cluster_wait(c, 0, ":APP#1 sips");
	say(c, "AGENT#1", 1, TO_APPS, 0, PIECE);
	say(c, "APP#2", 2, cluster_pid(c, "APP#3"), 0, 100); /* the master does not sleep */
	cluster_wait(c, mark, ":APP#1 died (code: null, signal: SIGKILL");
	cluster_wait(c, mark, "app_worker#4:APP#4 started");
	cr_assert_eq(cluster_count(c, 0, " died "), 1);
	cluster_order(c, "AGENT#1", "finish");
	cluster_order(c, "APP#2", "finish");
	cluster_wait(c, mark, ":APP#2 heard #");
	cluster_wait(c, mark, ":APP#3 heard #");
	exchange(c, "APP#2", "APP#3", 3000);
	cluster_stop(c); /* APP#4 has not heard the stream's beginning */
}

/* APP#1 cannot read before it has written, and the master does not read what it writes
 * for others who do not read. Each of these is slow for a second. */
Test(traffic, an_app_that_the_master_does_not_read_is_not_stuck)
{
	struct cluster *c = start(3);

	cluster_signal(c, "APP#2", SIGSTOP);
	cluster_signal(c, "APP#3", SIGSTOP);
	tell(c, "APP#1", "gush %ld %ld", (long)cluster_pid(c, "APP#2"),
	     (long)cluster_pid(c, "APP#3"));
	wait_until_full(c, "APP#2");
	say(c, "AGENT#1", 1, cluster_pid(c, "APP#1"), 100, PIECE);
	wait_until_full(c, "APP#1");
	let_pass(c, 800);
	cluster_signal(c, "APP#2", SIGCONT);
	cluster_wait(c, 0, ":APP#1 has gushed to APP#2");
	wait_until_full(c, "APP#3");
	let_pass(c, 800);
	cluster_signal(c, "APP#3", SIGCONT);
	cluster_wait(c, 0, ":APP#1 has gushed to APP#3");
	cluster_wait(c, 0, ":APP#1 heard #100 of #1.");
	cr_assert_eq(cluster_count(c, 0, "is stuck"), 0);
	stop(c);
}

/* APP#2 writes to itself, and reads nothing meanwhile. APP#1 reads nothing either, but its
 * queue is not so long that another process waits for it. */
Test(traffic, an_app_that_waits_for_itself_is_stuck_whatever_others_do)
{
	struct cluster *c = start(3);
	size_t mark = cluster_mark(c);
	long self = (long)cluster_pid(c, "APP#2");

	cluster_signal(c, "APP#1", SIGSTOP);
	say(c, "AGENT#1", 1, cluster_pid(c, "APP#1"), 16, PIECE);
	cluster_wait(c, mark, ":AGENT#1 sent #16 of #1");
	tell(c, "APP#2", "gush %ld %ld", self, self);
	cluster_wait(c, mark, "app_worker#2:APP#2 is stuck, its queue is full: killed");
	cluster_signal(c, "APP#1", SIGCONT);
	cluster_wait(c, mark, ":APP#1 heard #16 of #1.");
	cr_assert_eq(cluster_count(c, 0, "is stuck, its queue is full: killed"), 1);
	stop(c);
}

/* Its queue is above the high mark within one turn of the master only, but its sender waits. */
Test(traffic, an_app_whose_queue_was_full_for_a_moment_is_stuck_when_it_hangs)
{
	struct cluster *c = start(2);
	size_t mark = cluster_mark(c);

	cluster_signal(c, "APP#1", SIGSTOP);
	world->writes = WRITES_ONCE;
	say(c, "AGENT#1", 1, cluster_pid(c, "APP#1"), 40, PIECE);
	cluster_wait(c, mark, "app_worker#1:APP#1 is stuck, its queue is full: killed");
	cr_assert_eq(world->writes, WRITES_NOTHING, "the queue was never full");
	world->writes = WRITES;
	cluster_wait(c, mark, ":AGENT#1 sent #40 of #1");
	cluster_wait(c, mark, "app_worker#3:APP#3 started");
	exchange(c, "AGENT#1", "APP#3", 1000);
	stop(c);
}

/* Its channel is closed, so that its queue is nobody's any more. The parent gets another
 * channel, whose other end stays open and silent. */
Test(traffic, a_stuck_parent_makes_the_master_not_busy)
{
	struct cluster *c = start(2);
	int silent[2], stopped = c->parent->channel.descriptor;

	say(c, "APP#1", 1, TO_PARENT, 100, PIECE);
	cr_assert_eq(channel_pair(silent), 0);
	c->parent->channel.descriptor = silent[0];
	cluster_wait(c, 0, "parent is stuck, its queue is full: its channel is closed");
	cluster_wait(c, 0, ":APP#1 sent #100 of #1");
	assert_not_busy(c);
	c->parent->channel.descriptor = stopped;
	close(silent[0]);
	close(silent[1]);
	stop(c);
}

/* ---- forks that fail --------------------------------------------------------------------- */

/* All apps die in a shortage of 10 s, in which no fork works. */
static void
expect_return_after(resource_kind resource, rlim_t least, rlim_t most)
{
	struct cluster *c;
	int64_t since;
	char who[16];
	int i;

	faster = 10;
	be_patient(10);
	become_nobody();
	c = start(8);
	set_limit(c->master, resource, least);
	for (i = 1; i <= 8; i++) {
		snprintf(who, sizeof who, "APP#%d", i);
		cluster_signal(c, who, SIGKILL);
	}
	let_pass(c, 10000);
	cr_assert_eq(cluster_count(c, 0, "APP#9"), 0, "there was no shortage");
	set_limit(c->master, resource, most);
	since = clutch_now();
	for (i = 9; i <= 16; i++)
		cluster_wait(c, 0, "app_worker#%d:APP#%d started", i, i);
	cr_assert_lt(clutch_now() - since, 8000, "they are back after %lldms",
	             (long long)(clutch_now() - since)); /* 2 s, and the machine's own time */
	cr_assert_eq(cluster_count(c, 0, "too fast"), 0);
	exchange(c, "APP#9", "APP#16", 10000);
	stop(c);
}

Test(traffic, apps_come_back_after_a_shortage_of_processes)
{
	expect_return_after(RLIMIT_NPROC, 1, RLIM_INFINITY);
}

Test(traffic, apps_come_back_after_a_shortage_of_descriptors)
{
	expect_return_after(RLIMIT_NOFILE, 3, 1024);
}

/* ---- numbers that were given back -------------------------------------------------------- */

static int
leave_never(struct messenger *messenger, void *arg)
{
	(void)messenger, (void)arg;
	hang();
	return 0;
}

static int
hang_in_slot_1(struct messenger *app, void *arg)
{
	if (messenger_slot(app) == 1 && messenger_before_close(app, leave_never, NULL) == -1)
		return -1;
	return act(app, arg);
}

/* As soon as a child is reaped its number may be a stranger's. */
Test(traffic, nobody_reaped_is_signalled_while_closing)
{
	struct cluster *c = launch((struct options){.app = hang_in_slot_1, .workers = 3});

	cluster_ready(c);
	cluster_stop(c);
	cr_assert_gt(world->reaped_count, 0);
	cr_assert_eq(world->signals_to_reaped, 0, "%d signals went to numbers that were given back",
	             world->signals_to_reaped);
}

static int
load_for_ever(struct messenger *app, void *arg)
{
	if (messenger_slot(app) == 1)
		hang();
	if (messenger_slot(app) == 2) /* a failed start: the cluster is given up */
		return __real_poll(NULL, 0, 200) - 1;
	return act(app, arg);
}

Test(traffic, nobody_reaped_is_signalled_in_a_failed_start)
{
	struct cluster *c = launch((struct options){.app = load_for_ever, .workers = 3});

	cluster_ended(c, 1);
	cr_assert_gt(world->reaped_count, 0);
	cr_assert_eq(world->signals_to_reaped, 0, "%d signals went to numbers that were given back",
	             world->signals_to_reaped);
}

Test(traffic, nobody_reaped_is_signalled_while_running)
{
	struct cluster *c = start(2);

	tell(c, "APP#1", "help stay");
	cluster_wait(c, 0, ":APP#1 has helpers");
	cluster_signal(c, "APP#1", SIGKILL);
	cluster_signal(c, "AGENT#1", SIGKILL);
	cluster_wait(c, 0, "app_worker#3:APP#3 started");
	cluster_wait(c, 0, "agent_worker#2:AGENT#2 started");
	stop(c);
	cr_assert_gt(world->reaped_count, 0);
	cr_assert_eq(world->signals_to_reaped, 0, "%d signals went to numbers that were given back",
	             world->signals_to_reaped);
}

/* Another child has died at the same time: what is known of that one is no news of this one. */
Test(traffic, nobody_that_another_part_of_the_program_has_reaped_is_signalled)
{
	struct cluster *c = start(2);

	kill(c->master, SIGSTOP);
	cluster_signal(c, "AGENT#1", SIGKILL);
	cluster_signal(c, "APP#1", SIGKILL);
	world->stolen = cluster_pid(c, "APP#1");
	kill(c->master, SIGCONT);
	cluster_wait(c, 0, "app_worker#3:APP#3 started");
	cluster_wait(c, 0, "agent_worker#2:AGENT#2 started");
	stop(c);
	cr_assert_eq(world->signals_to_reaped, 0, "%d signals went to numbers that were given back",
	             world->signals_to_reaped);
}

/* ---- a pause of all ---------------------------------------------------------------------- */

static void
signal_all(struct cluster *c, int number)
{
	pid_t pids[16];
	size_t i, count = cluster_processes(c, pids, 16);

	for (i = 0; i < count; i++)
		kill(pids[i], number);
}

/* As a container is paused: a full queue, and time goes by in which nobody runs. */
Test(traffic, a_pause_of_all_makes_nobody_stuck)
{
	struct cluster *c = start(3);

	cluster_signal(c, "APP#1", SIGSTOP);
	say(c, "AGENT#1", 1, cluster_pid(c, "APP#1"), 100, PIECE);
	wait_until_full(c, "APP#1");
	signal_all(c, SIGSTOP);
	let_pass(c, PAUSE);
	cluster_signal(c, "MASTER", SIGCONT); /* it is the first to run again */
	let_pass(c, 150);
	signal_all(c, SIGCONT);
	cluster_wait(c, 0, ":APP#1 heard #100 of #1.");
	cr_assert_eq(cluster_count(c, 0, "is stuck"), 0);
	cr_assert_eq(cluster_count(c, 0, " died "), 0);
	stop(c);
}

/* The master, while it waits for something to happen; then it has run again. */
static void
stop_for_a_while(struct cluster *c)
{
	let_pass(c, 100);
	cluster_signal(c, "MASTER", SIGSTOP);
	let_pass(c, PAUSE);
	cluster_signal(c, "MASTER", SIGCONT);
	let_pass(c, 150);
}

/* It needs a moment, which the pause must not take from it. */
static int
leave_slowly(struct messenger *app, void *arg)
{
	(void)arg;
	alarm(0); /* its own limit is not what is tested */
	signal(SIGUSR2, release);
	report(app, "is about to leave");
	while (!released)
		__real_poll(NULL, 0, 10);
	report(app, "has left in good order");
	return 0;
}

static int
act_and_leave_slowly(struct messenger *app, void *arg)
{
	if (messenger_before_close(app, leave_slowly, NULL) == -1)
		return -1;
	return act(app, arg);
}

static void
expect_pause_while_closing(const char *who, struct options options)
{
	struct cluster *c;

	options.app_close_timeout = options.agent_close_timeout = 2500; /* less than PAUSE */
	c = launch(options);
	cluster_ready(c);
	cluster_signal(c, "MASTER", SIGTERM);
	cluster_wait(c, 0, ":%s is about to leave", who);
	stop_for_a_while(c);
	cluster_signal(c, who, SIGUSR2);
	cluster_wait(c, 0, ":%s has left in good order", who);
	cluster_ended(c, 0);
}

Test(traffic, a_pause_takes_no_time_from_an_app_that_leaves)
{
	expect_pause_while_closing("APP#1", (struct options){.app = act_and_leave_slowly});
}

Test(traffic, a_pause_takes_no_time_from_an_agent_that_leaves)
{
	expect_pause_while_closing("AGENT#1", (struct options){.agent = act_and_leave_slowly});
}

/* It reads nothing while it leaves, for longer than the stuck timeout. */
Test(traffic, a_full_queue_of_an_app_that_leaves_makes_the_master_not_busy)
{
	struct cluster *c =
		launch((struct options){.app = act_and_leave_slowly, .app_close_timeout = 60000});

	cluster_ready(c);
	cluster_signal(c, "MASTER", SIGUSR2);
	cluster_wait(c, 0, ":APP#1 is about to leave");
	say(c, "AGENT#1", 1, cluster_pid(c, "APP#1"), 1000, PIECE);
	let_pass(c, CLUTCH_STUCK_TIMEOUT + 500);
	assert_not_busy(c);
	cluster_signal(c, "APP#1", SIGUSR2);
	cluster_wait(c, 0, ":APP#1 has left in good order");
	cluster_signal(c, "MASTER", SIGTERM);
	cluster_wait(c, 0, ":APP#2 is about to leave");
	cluster_signal(c, "APP#2", SIGUSR2);
	cluster_ended(c, 0);
}

/* It is ready as soon as it is told so. */
static int
load_until_released(struct messenger *app, void *arg)
{
	signal(SIGUSR2, release);
	report(app, "is loading");
	while (!released)
		__real_poll(NULL, 0, 10);
	return act(app, arg);
}

Test(traffic, a_pause_takes_no_time_from_an_app_that_starts)
{
	struct cluster *c =
		launch((struct options){.app = load_until_released, .worker_start_timeout = 2500});

	cluster_wait(c, 0, ":APP#1 is loading");
	stop_for_a_while(c);
	cluster_signal(c, "APP#1", SIGUSR2);
	cluster_ready(c);
	stop(c);
}

/* ---- nobody there ------------------------------------------------------------------------ */

/* The first one is well; the others fail at their start. */
static int
act_once(struct messenger *agent, void *arg)
{
	return world->agents++ == 0 ? act(agent, arg) : -1;
}

static unsigned long
undeliverable(struct cluster *c)
{
	cluster_ask_status(c);
	return (unsigned long)cluster_figure(c, NULL, "undeliverable");
}

/* Whoever speaks to an agent that is not there is heard by the others all the same. */
Test(traffic, an_agent_that_cannot_start_holds_nobody_up)
{
	struct cluster *c = launch((struct options){.agent = act_once, .workers = 3});
	unsigned long lost;
	long before;
	size_t mark;

	cluster_ready(c);
	before = process_memory(c->master);
	lost = undeliverable(c);
	tell(c, "APP#1", "beat %ld", (long)cluster_pid(c, "APP#2"));
	let_pass(c, 100);
	mark = cluster_mark(c);
	cluster_signal(c, "AGENT#1", SIGKILL);
	cluster_wait(c, mark, "agent_worker#1:AGENT#1 died");
	cluster_wait(c, mark, "agent_worker#3:AGENT#3 died");
	let_pass(c, 600);
	cr_assert_lt(world->worst_gap, 400 * time_scale(), "APP#2 heard nothing for %lldms",
	             (long long)world->worst_gap);
	cr_assert_leq(cluster_count(c, mark, "[master]"), 3 * 5, "one line for an outage");
	cr_assert_gt(undeliverable(c), lost, "what is dropped is counted");
	assert_memory(c, "an agent that cannot start", before, 8 * 1024);
	stop(c);
}

/* There was a good check before: three bad ones in a row are more than 20 s. */
Test(traffic, a_good_health_check_makes_the_count_begin_anew)
{
	struct cluster *c;
	int64_t since;

	faster = 10;
	be_patient(10);
	c = launch((struct options){
		.agent = act_once, .app_close_timeout = 60000, .agent_close_timeout = 60000});
	cluster_ready(c);
	let_pass(c, 15000);
	since = clutch_now();
	cluster_signal(c, "AGENT#1", SIGKILL);
	cluster_wait(c, 0, "0 agent and 1 worker(s) alive, exit to avoid unknown state");
	since = clutch_now() - since;
	cr_assert_gt(since, 20000, "it has given up after %lldms", (long long)since);
	cluster_ended(c, 1);
}

/* What one agent has lost is not what the next one loses. */
Test(traffic, each_outage_of_the_agent_is_told_once)
{
	struct cluster *c;
	size_t mark;
	int agent;

	slower = 4; /* the queue is full before the next agent comes, on a busy machine, too */
	c = launch((struct options){.workers = 2});
	cluster_ready(c);
	tell(c, "APP#1", "beat %ld", (long)cluster_pid(c, "APP#2"));
	for (agent = 1; agent <= 2; agent++) {
		mark = cluster_mark(c);
		kill(cluster_pid(c, agent == 1 ? "AGENT#1" : "AGENT#2"), SIGKILL);
		cluster_wait(c, mark, "is not there and its queue is full");
		cluster_wait(c, mark, "agent_worker#%d:AGENT#%d started", agent + 1, agent + 1);
		cr_assert_eq(cluster_count(c, mark, "is not there and its queue is full"), 1);
	}
	cluster_ask_status(c);
	cr_assert_eq(cluster_figure(c, "AGENT#3", "dropped"), 0);
	stop(c);
}

/* APP#1 waits for two receivers: one dies, and what APP#3 says to the place that it leaves
 * is more than a little; then the other one goes on reading. */
Test(traffic, a_full_queue_of_an_agent_that_is_not_there_holds_nobody_up)
{
	struct cluster *c;

	slower = 4; /* the next agent comes later than all this, on a busy machine, too */
	c = launch((struct options){.agent = act_once, .workers = 4});
	cluster_ready(c);
	cluster_signal(c, "AGENT#1", SIGSTOP);
	cluster_signal(c, "APP#2", SIGSTOP);
	cluster_signal(c, "APP#1", SIGSTOP);
	say(c, "APP#1", 1, TO_AGENT, 1, 100);
	say(c, "APP#1", 2, cluster_pid(c, "APP#2"), 1, 100);
	say(c, "APP#3", 3, TO_AGENT, 1000, PIECE);
	say(c, "APP#4", 4, cluster_pid(c, "APP#2"), 1000, PIECE);
	wait_until_full(c, "AGENT#1");
	wait_until_full(c, "APP#2");
	cluster_signal(c, "APP#1", SIGCONT); /* it does both in one turn */
	cluster_wait(c, 0, ":APP#1 sent #1 of #2");
	cluster_signal(c, "AGENT#1", SIGKILL);
	cluster_wait(c, 0, "agent_worker#1:AGENT#1 died");
	cluster_wait(c, 0, ":APP#3 sent #1000 of #3");
	cluster_signal(c, "APP#2", SIGCONT);
	say(c, "APP#1", 5, cluster_pid(c, "APP#2"), 10, 100);
	cluster_wait(c, 0, ":APP#2 heard #10 of #5.");
	cr_assert_eq(cluster_count(c, 0, "AGENT#2"), 0, "it has waited for the next agent");
	stop(c);
}

/* ---- a port that nobody can listen to any more ------------------------------------------- */

static int
on_connected(struct messenger *app, int descriptor, void *arg)
{
	(void)app, (void)arg;
	close(descriptor);
	return 0;
}

static int64_t
time_used(struct cluster *c)
{
	pid_t pids[16];
	size_t i, count = cluster_processes(c, pids, 16);
	int64_t used = 0;

	for (i = 0; i < count; i++)
		used += process_processor_time(pids[i]);
	return used;
}

Test(traffic, a_port_that_was_shut_down_makes_nobody_busy)
{
	struct cluster *c = launch((struct options){.connection = on_connected, .workers = 3});
	size_t mark;
	int64_t used;
	size_t lines;

	cluster_ready(c);
	mark = cluster_mark(c);
	tell(c, "APP#1", "shut-the-port");
	cluster_wait(c, mark, ":APP#1 has shut the port");
	let_pass(c, 200);
	used = time_used(c);
	let_pass(c, 1000);
	used = time_used(c) - used;
	lines = cluster_count(c, mark, "[app_worker] ") + cluster_count(c, mark, "[master] ");
	cr_assert_lt(used, 300 * time_scale(), "%lldms of a second are spent with nothing",
	             (long long)used);
	cr_assert(lines >= 1 && lines <= 3 + 1, "%zu lines say so", lines);
	stop(c);
}

/* ---- a reload that waits ----------------------------------------------------------------- */

static int
act_unless_ill(struct messenger *app, void *arg)
{
	if (world->ill) {
		messenger_ready_later(app); /* and never is */
		report(app, "is ill");
	}
	return act(app, arg);
}

static void
reload_by_signal(struct cluster *c)
{
	cluster_signal(c, "MASTER", SIGUSR2);
}

static void
reload_by_message(struct cluster *c)
{
	cr_assert_eq(messenger_send(c->parent, "reload-worker", NULL, ROLE_MASTER), 0);
	cluster_turn(c);
}

/* The cause is removed, and the reload ordered again. */
static void
expect_second_reload(void (*reload)(struct cluster *c))
{
	struct cluster *c = launch((struct options){.app = act_unless_ill, .workers = 2});
	size_t mark;

	cluster_ready(c);
	world->ill = true;
	reload(c);
	cluster_wait(c, 0, ":APP#3 is ill");
	world->ill = false;
	mark = cluster_mark(c);
	reload(c);
	cluster_wait(c, mark, "app_worker#4:APP#4 started");
	cluster_wait(c, mark, "app_worker#5:APP#5 started");
	cluster_wait(c, mark, "reload done");
	cr_assert_gt(cluster_count(c, mark, "reload"), 1, "a line says that it starts anew");
	cluster_wait_death(c, "APP#1");
	cluster_wait_death(c, "APP#2");
	cluster_wait_death(c, "APP#3");
	exchange(c, "APP#4", "APP#5", 3000);
	stop(c);
}

Test(traffic, a_second_order_by_signal_starts_a_waiting_reload_anew)
{
	expect_second_reload(reload_by_signal);
}

Test(traffic, a_second_order_by_message_starts_a_waiting_reload_anew)
{
	expect_second_reload(reload_by_message);
}

/* ---- many full queues -------------------------------------------------------------------- */

/* Each that drains lets the sender speak once more, if it waits for nobody else. */
Test(traffic, receivers_that_drain_one_after_the_other_make_no_queue_too_long)
{
	enum { APPS = 8, MOST = 2 * CHANNEL_HIGH_WATER + 2 * CHANNEL_READ_SIZE };
	struct cluster *c;
	char who[16];
	size_t bytes;
	int i;

	slower = 2; /* nobody gets stuck meanwhile */
	c = start(APPS);
	for (i = 1; i <= APPS; i++) {
		snprintf(who, sizeof who, "APP#%d", i);
		cluster_signal(c, who, SIGSTOP);
	}
	say(c, "AGENT#1", 1, TO_APPS, 400, PIECE);
	wait_until_full(c, "APP#8");
	for (i = 1; i < APPS; i++) {
		snprintf(who, sizeof who, "APP#%d", i);
		cluster_signal(c, who, SIGCONT);
		cluster_until(c, is_drained, who, "a queue to drain");
		bytes = queued(c, "APP#8");
		cr_assert_leq(bytes, MOST, "%zu bytes are queued, %d apps have drained", bytes, i);
	}
	cluster_signal(c, "APP#8", SIGCONT);
	for (i = 1; i <= APPS; i++)
		cluster_wait(c, 0, ":APP#%d heard #400 of #1.", i);
	stop(c);
}
