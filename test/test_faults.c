/*
 * Failing system calls: each call that the core makes, in each process that makes
 * it, in each act of a cluster's life, fails once, in each way in which it can.
 *
 * The play: a cluster of an agent, two app workers and this test as the parent
 * starts, talks, loses processes, reloads, loses its agent, and ends. Each message has
 * a number, and memory that all processes share (struct world) counts which process has
 * sent and heard which message; so each step can tell whether a message between two live
 * processes was lost, doubled or swapped. The first play has no fault: it shows which
 * process makes which call in which act. Then there is one play for each call and each
 * way to fail, cut down to the act that matters, followed by an epilogue that shows
 * whether the cluster is still sound.
 *
 * The table of errors in CONTRIBUTING.md says what a fault may cost (may_fail_to_start,
 * fault_is_invisible); each other effect is printed in one line.
 *
 * Then memory, descriptors or the kernel's buffers are short in all processes of a role, in
 * each act: all calls that this can make fail do so, for a while or for too long.
 *
 *	FAULTS=all make test T=faults            every combination
 *	FAULTS=shortages make test T=faults      only the shortages
 *	FAULTS=short make test T=faults          each call in one act, and no shortages
 *	FAULTS=sendmessage.c:379 make test T=faults   those of one line
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "faults.h"
#include "harness.h"

#include <criterion/criterion.h>

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
	WORKERS = 2,
	LANES = 4,          /* clusters at a time */
	STEP_LIMIT = 5500,  /* real ms that a step of the play may take */
	PLAY_LIMIT = 20000, /* real ms that the whole play may take */
	BIG = CHANNEL_READ_SIZE + 1000,
	PERSISTENT = 200, /* ms on the cluster's clock */
	TOO_LONG = 3000,  /* longer than the core retries for a message that it must not lose */
	FOR_EVER = 1000000,
	TRIES = 2000 /* of a refused call, one real millisecond apart */
};

static int
patience(void)
{
	return time_scale() * 10 / faults_speed();
}

/* ---- what all processes of one cluster share ------------------------------- */

enum stream { TO_APP, TO_AGENT, TO_PARENT, DIRECT, STREAMS };

/* The messages of a burst, and the orders for one process. */
enum burst { SMALL, LARGE, FLOOD, HANDLES };
enum command { NONE, SLEEP, LEAVE, QUIT, FAIL, HANG, GARBAGE };

struct life {
	bool ready, leaving, hung, cut_off;
	int heirs; /* if it left in good order: those born before must hear all */
	int round; /* the last burst that the process has sent */
	pid_t opids[8];
	size_t opid_count;
	uint32_t sent[STREAMS], direct[LIVES_MAX];
	uint32_t heard[LIVES_MAX][STREAMS];
	uint32_t before[LIVES_MAX][STREAMS]; /* what the others had sent when it was born */
	unsigned handles, bare, accepted;
};

struct world {
	struct faults faults;
	int round;
	enum burst burst;
	pid_t commanded;
	enum command command;
	struct life lives[LIVES_MAX];
	int descriptors[PLACES]; /* in the epilogue */
	bool started, finished;
	int told; /* is there a problem? */
	char problem[600];
	char folder[64];
	int expected[PLACES]; /* descriptors, without a fault; 0: not known yet */
	int births[ACTS], expected_births[ACTS];
};

static struct world *world;
static struct life *me;

static void complain(const char *format, ...) CLUTCH_PRINTF(1, 2);

/* The first complaint counts; the others are its consequences. */
static void
complain(const char *format, ...)
{
	va_list arguments;

	if (__atomic_exchange_n(&world->told, 1, __ATOMIC_SEQ_CST) != 0)
		return;
	va_start(arguments, format);
	vsnprintf(world->problem, sizeof world->problem, format, arguments);
	va_end(arguments);
}

static const char *
place_name(int place)
{
	static const char *const names[] = {"parent", "master", "newborn", "agent", "app"};

	return names[place];
}

/* "app#5": the fifth process after the parent. */
static const char *
life_name(int life)
{
	static char names[4][24];
	static int next;

	next = (next + 1) % 4;
	snprintf(names[next], sizeof names[next], "%s#%d", place_name(world->faults.places[life]),
	         life);
	return names[next];
}

/* ---- agent, app and parent: they count, and do what they are told ---------- */

/* How much of its burst this process has sent. */
static struct {
	int round;
	enum burst burst;
	int stream, target;
	int left; /* messages of this stream */
} todo = {.stream = STREAMS, .target = LIVES_MAX};

static bool
sends_on(int place, int stream)
{
	switch (place) {
	case PLACE_PARENT:
		return stream == TO_APP || stream == TO_AGENT;
	case PLACE_AGENT:
		return stream == TO_APP || stream == TO_PARENT;
	default:
		return stream == TO_APP || stream == TO_AGENT || stream == TO_PARENT;
	}
}

static int
burst_length(enum burst burst, int stream)
{
	if (burst == FLOOD && stream == TO_APP)
		return 24;
	return burst == HANDLES ? 6 : 8;
}

static size_t
message_length(enum burst burst, int stream, uint32_t number)
{
	if (burst == LARGE && number % 4 == 0)
		return BIG;
	return burst == FLOOD && stream == TO_APP ? 20000 : 40 + number * 37 % 300;
}

/* Send a message: "[life,stream,number,size,"aaa..."]". Returns 0 or errno. */
static int
send_numbered(struct messenger *messenger, int stream, uint32_t number, pid_t pid)
{
	static const enum role roles[] = {ROLE_APP, ROLE_AGENT, ROLE_PARENT, ROLE_NONE};
	static char data[BIG + 1];
	size_t size = message_length(todo.burst, stream, number);
	int used =
		snprintf(data, sizeof data, "[%d,%d,%u,%zu,\"", faults_life, stream, number, size);
	struct message message = {.action = "numbered",
	                          .to = roles[stream],
	                          .receiver_pid = pid,
	                          .data = data,
	                          .data_length = size,
	                          .handle = -1};
	int result, saved;

	memset(data + used, 'a' + (int)(number % 26), size - (size_t)used - 2);
	memcpy(data + size - 2, "\"]", 3);
	if (todo.burst == HANDLES && stream != DIRECT)
		message.handle = open("/dev/null", O_RDONLY);
	result = messenger_send_message(messenger, &message);
	saved = errno;
	if (message.handle != -1)
		close(message.handle);
	return result == 0 ? 0 : saved;
}

/* The errors after which a send is tried again. */
static bool
is_refusal(int error)
{
	return error == ENOBUFS || error == ENOMEM || error == EMFILE;
}

/* Can this process be sent a message by its pid? */
static bool
is_target(int life)
{
	return life != faults_life && world->lives[life].ready && !world->lives[life].leaving &&
	       world->faults.places[life] >= PLACE_AGENT;
}

/* Send the next message. False: none is left, or this message must be tried again later. */
static bool
send_next(struct messenger *messenger)
{
	int place = world->faults.places[faults_life], error;
	uint32_t *sent;

	while (todo.stream < DIRECT && (!sends_on(place, todo.stream) || todo.left == 0))
		todo.left = burst_length(todo.burst, ++todo.stream);
	if (todo.stream == DIRECT)
		while (todo.target < world->faults.births && !is_target(todo.target))
			todo.target++;
	if (todo.stream >= DIRECT && todo.target >= world->faults.births) {
		me->round = todo.round;
		return false;
	}
	sent = todo.stream == DIRECT ? &me->direct[todo.target] : &me->sent[todo.stream];
	error = send_numbered(messenger, todo.stream, *sent + 1,
	                      todo.stream == DIRECT ? world->faults.pids[todo.target] : 0);
	if (error != 0 && !is_refusal(error) && error != EPIPE)
		complain("a send call of %s failed: %s", life_name(faults_life), strerror(error));
	if (error != 0)
		return false;
	++*sent;
	if (todo.stream == DIRECT)
		todo.target++;
	else
		todo.left--;
	return true;
}

static void
send_burst(struct messenger *messenger, int round, enum burst burst)
{
	if (round > todo.round) {
		todo.round = round;
		todo.burst = burst;
		todo.stream = TO_APP;
		todo.left = burst_length(burst, TO_APP);
		todo.target = 0;
	}
	while (todo.round > me->round && send_next(messenger))
		;
}

static int
obey(struct messenger *messenger, enum command command)
{
	unsigned char garbage[64];
	sigset_t all;

	world->commanded = 0;
	switch (command) {
	case NONE:
		break;
	case SLEEP:
		poll(NULL, 0, 20);
		break;
	case LEAVE: /* both with many messages that are not written yet */
	case QUIT:
		me->heirs = world->faults.births;
		me->leaving = true;
		send_burst(messenger, world->round + 1, FLOOD);
		if (command == QUIT)
			exit(0);
		messenger_graceful_exit(messenger);
		break;
	case FAIL:
		me->leaving = true;
		return 5;
	case HANG:
		me->leaving = me->hung = true;
		sigfillset(&all);
		sigprocmask(SIG_BLOCK, &all, NULL);
		for (;;)
			pause();
	case GARBAGE:
		me->leaving = true;
		memset(garbage, 0xff, sizeof garbage);
		raw_write(messenger, garbage, sizeof garbage);
		break;
	}
	return 0;
}

static int
on_tick(struct messenger *messenger, void *arg)
{
	const pid_t *opids;

	(void)arg;
	opids = messenger_opids(messenger, &me->opid_count);
	if (me->opid_count > 8)
		me->opid_count = 8;
	if (me->opid_count > 0)
		memcpy(me->opids, opids, me->opid_count * sizeof *opids);
	if (world->commanded == getpid())
		return obey(messenger, world->command);
	if (me->ready && !me->leaving)
		send_burst(messenger, world->round, world->burst);
	return 0;
}

/* A process that was there from the start hears each sender's first message. */
static bool
is_founder(int life)
{
	return life <= 2 + WORKERS;
}

static bool
is_intact(const struct message *message, uint32_t number, size_t size)
{
	const char *text = strchr(message->data, '"') + 1;
	size_t length = strspn(text, (char[]){(char)('a' + (int)(number % 26)), '\0'});

	return message->data_length == size && strcmp(text + length, "\"]") == 0 &&
	       text + length + 2 == message->data + size;
}

/* Messages to a role without a live process wait in a queue with a limit, so a large one among
 * them may be dropped before a small one. No other message may be missing. */
static int
on_numbered(struct messenger *messenger, const struct message *message, void *arg)
{
	int from = -1, stream = -1;
	unsigned number = 0;
	size_t size = 0;
	uint32_t *heard;

	(void)messenger, (void)arg;
	if (message->data == NULL ||
	    sscanf(message->data, "[%d,%d,%u,%zu,", &from, &stream, &number, &size) != 4 ||
	    from < 0 || from >= LIVES_MAX || stream < 0 || stream >= STREAMS ||
	    !is_intact(message, number, size)) {
		complain("%s heard a message that is not as it was sent", life_name(faults_life));
		return 0;
	}
	heard = &me->heard[from][stream];
	if (*heard != 0 ? number != *heard + 1 && number > me->before[from][stream] + 1
	                : number != 1 && (stream == DIRECT || is_founder(faults_life)))
		complain("%s heard message %u of %s in stream %d after %u", life_name(faults_life),
		         number, life_name(from), stream, *heard);
	*heard = number;
	if (message->handle != -1)
		me->handles++;
	else if (world->burst == HANDLES && stream != DIRECT)
		me->bare++;
	return 0;
}

static int
on_egg_ready(struct messenger *messenger, const struct message *message, void *arg)
{
	(void)messenger, (void)message, (void)arg;
	me->ready = true;
	return 0;
}

static int
on_close(struct messenger *messenger, void *arg)
{
	(void)messenger, (void)arg;
	me->leaving = true;
	return 0;
}

/* A call that fails must change nothing, so it is repeated until it works, TRIES times at most. */
static bool
is_worth_another_try(int result, int *tries)
{
	if (result != -1 || !is_refusal(errno) || ++*tries > TRIES)
		return false;
	poll(NULL, 0, 1);
	return true;
}

#define INSIST(call)                                                                               \
	do {                                                                                       \
		int result_, tries_ = 0;                                                           \
                                                                                                   \
		do                                                                                 \
			result_ = (call);                                                          \
		while (is_worth_another_try(result_, &tries_));                                    \
		if (result_ == -1)                                                                 \
			return -1;                                                                 \
	} while (0)

static int
ignore_descriptor(struct messenger *messenger, int descriptor, short revents, void *arg)
{
	(void)messenger, (void)descriptor, (void)revents, (void)arg;
	return 0;
}

static int
ignore_time(struct messenger *messenger, void *arg)
{
	(void)messenger, (void)arg;
	return 0;
}

/* Add more watches, timers and listeners than the first arrays have room for. */
static int
grow(struct messenger *messenger)
{
	int i, extra[12];

	for (i = 0; i < 12; i++) {
		extra[i] = open("/dev/null", O_RDONLY);
		INSIST(messenger_watch(messenger, extra[i], 0, ignore_descriptor, NULL));
	}
	for (i = 0; i < 12; i++) {
		messenger_unwatch(messenger, extra[i]);
		close(extra[i]);
	}
	for (i = 0; i < 7; i++) /* eight with on_tick's, so that the next timer needs memory */
		INSIST(messenger_set_interval(messenger, 1000000, ignore_time, NULL));
	for (i = 0; i < 3; i++)
		INSIST(messenger_on(messenger, "grow", on_egg_ready, NULL));
	return 0;
}

static int
join(struct messenger *messenger)
{
	INSIST(messenger_on(messenger, "numbered", on_numbered, NULL));
	INSIST(messenger_once(messenger, "egg-ready", on_egg_ready, NULL));
	INSIST(messenger_set_interval(messenger, 10, on_tick, NULL));
	return grow(messenger);
}

static int
role(struct messenger *messenger, void *arg)
{
	int i;

	(void)arg;
	me = &world->lives[faults_life];
	for (i = 0; i < LIVES_MAX; i++)
		memcpy(me->before[i], world->lives[i].sent, sizeof me->before[i]);
	if (messenger_role(messenger) == ROLE_APP &&
	    (getenv("CFORK_WORKER_INDEX") == NULL || getenv("CFORK_WORKER_COUNT") == NULL))
		complain("%s has no CFORK_WORKER_INDEX or CFORK_WORKER_COUNT",
		         life_name(faults_life));
	INSIST(messenger_before_close(messenger, on_close, NULL));
	return join(messenger);
}

static int
on_request(struct messenger *app, int descriptor, short revents, void *arg)
{
	char bytes[16];
	ssize_t count = read(descriptor, bytes, sizeof bytes);

	(void)revents, (void)arg;
	if (count == -1 && errno == EAGAIN)
		return 0;
	if (count > 0 && write(descriptor, bytes, (size_t)count) == -1)
		complain("an app cannot answer on a connection: %s", strerror(errno));
	messenger_unwatch(app, descriptor);
	close(descriptor);
	return 0;
}

static int
on_connection(struct messenger *app, int descriptor, void *arg)
{
	(void)arg;
	me->accepted++;
	INSIST(messenger_watch(app, descriptor, POLLIN, on_request, NULL));
	return 0;
}

/* ---- the play, seen from the parent ---------------------------------------- */

static struct messenger *parent;
static pid_t master;
static bool ended; /* has the master ended? */
static int master_status;

static bool
fired(void)
{
	return world->faults.fired[0] != 0;
}

static bool
ends_channel(int how)
{
	return how == EPIPE || how == ECONNRESET || how == FAULT_END;
}

/* Was memory short for a moment? This costs no process its life once the process has a channel
 * and runs its loop. */
static bool
is_passing_shortage(int i)
{
	const struct fault *plan = &world->faults.plan[i];
	const struct site *site = &sites[plan->site];

	return plan->how == ENOMEM && plan->lasts <= PERSISTENT && is_allocation(site->call) &&
	       strcmp(site->function, "messenger_open") != 0 &&
	       (strcmp(site->function, "clutch_grow") != 0 || plan->place <= PLACE_MASTER) &&
	       (plan->site != ANY_SITE || plan->place <= PLACE_MASTER) &&
	       (plan->place != PLACE_MASTER || world->faults.fired_births[i] > 2);
}

/* Must every fault of the plan remain without effect? */
static bool
is_invisible(void)
{
	const struct fault *plan = world->faults.plan;
	bool invisible = true;
	int i;

	for (i = 0; i < PLANS; i++)
		invisible = invisible && (plan[i].how == 0 || is_passing_shortage(i) ||
		                          fault_is_invisible(&sites[plan[i].site], plan[i].how));
	return invisible;
}

static bool
is_parent_cut_off(void)
{
	return world->lives[0].cut_off;
}

/* One turn of the parent's loop, a millisecond long at most. */
static void
turn(void)
{
	int result = parent != NULL ? messenger_step(parent, 1) : 0;

	if (result == -1 && errno == EPROTO)
		complain("the parent heard a broken frame");
	if (result == 0 && parent != NULL && !is_parent_cut_off()) {
		world->lives[0].cut_off = world->lives[0].leaving = true;
		messenger_close(parent);
		parent = NULL;
	}
	if (parent == NULL || result == -1)
		poll(NULL, 0, 1);
	if (!ended && waitpid(master, &master_status, WNOHANG) == master)
		ended = true;
}

/* Wait until is_so returns true. The complaint has the text that is_so leaves in `missing`. */
static bool
until(bool (*is_so)(char *missing, size_t size), const char *step)
{
	int64_t deadline = faults_clock() + STEP_LIMIT * patience();
	char missing[300] = "";

	while (!ended && !is_so(missing, sizeof missing)) {
		if (world->told)
			return false;
		if (faults_clock() > deadline) {
			complain("%s: %s", step, missing);
			return false;
		}
		turn();
	}
	return !ended;
}

static int
find_life(int place, int but)
{
	int life;

	for (life = 0; life < world->faults.births; life++)
		if (world->faults.places[life] == place && life != but &&
		    world->lives[life].ready && !world->lives[life].leaving)
			return life;
	return -1;
}

/* Has the receiver heard all of what the sender has sent to it? */
static bool
has_heard(int to, int from, char *missing, size_t size)
{
	const struct life *receiver = &world->lives[to], *sender = &world->lives[from];
	static const int streams[PLACES] = {
		[PLACE_PARENT] = TO_PARENT, [PLACE_AGENT] = TO_AGENT, [PLACE_APP] = TO_APP};
	int stream = streams[world->faults.places[to]];

	if (receiver->heard[from][stream] != sender->sent[stream])
		snprintf(missing, size, "%s heard %u of %u messages of %s", life_name(to),
		         receiver->heard[from][stream], sender->sent[stream], life_name(from));
	else if (receiver->heard[from][DIRECT] != sender->direct[to])
		snprintf(missing, size, "%s heard %u of %u messages of %s by its pid",
		         life_name(to), receiver->heard[from][DIRECT], sender->direct[to],
		         life_name(from));
	else
		return true;
	return false;
}

/* Does the process know the pids of the other role: the agent's, or those of all apps? */
static bool
knows(int life, char *missing, size_t size)
{
	int place = world->faults.places[life] == PLACE_APP ? PLACE_AGENT : PLACE_APP;
	const struct life *it = &world->lives[life];
	size_t i, wanted = place == PLACE_AGENT ? 1 : WORKERS;
	int other;

	if (world->faults.places[life] == PLACE_PARENT)
		return true;
	snprintf(missing, size, "%s does not know the right pids", life_name(life));
	if (it->opid_count != wanted)
		return false;
	for (other = 0; other < world->faults.births; other++) {
		if (world->faults.places[other] != place ||
		    !process_is_alive(world->faults.pids[other]))
			continue;
		for (i = 0; i < wanted && it->opids[i] != world->faults.pids[other]; i++)
			;
		if (i == wanted)
			return false;
	}
	return true;
}

/* Are there one agent and two apps, all ready, and is none of them leaving? */
static bool
is_complete(char *missing, size_t size)
{
	int life, count[PLACES] = {0};

	for (life = 0; life < world->faults.births; life++) {
		if (!process_is_alive(world->faults.pids[life]))
			continue;
		count[world->faults.places[life]]++;
		if (world->faults.places[life] == PLACE_MASTER || life == 0)
			continue;
		snprintf(missing, size, "%s is %s", life_name(life),
		         world->lives[life].leaving ? "still leaving" : "not ready");
		if (!world->lives[life].ready || world->lives[life].leaving)
			return false;
	}
	snprintf(missing, size, "%d agent(s) and %d app(s) live", count[PLACE_AGENT],
	         count[PLACE_APP]);
	return count[PLACE_AGENT] == 1 && count[PLACE_APP] == WORKERS;
}

/* Has every live process sent this round's burst, and heard all messages of the other processes
 * and of those that left in good order? */
static bool
is_settled(char *missing, size_t size)
{
	int to, from;

	if (!is_complete(missing, size))
		return false;
	for (from = 0; from < world->faults.births; from++) {
		const struct life *sender = &world->lives[from];
		bool lives = process_is_alive(world->faults.pids[from]) && !sender->cut_off;

		if (world->faults.places[from] == PLACE_MASTER || (!lives && sender->heirs == 0))
			continue;
		snprintf(missing, size, "%s has not sent its burst", life_name(from));
		if (lives && (sender->round < world->round || !knows(from, missing, size)))
			return false;
		for (to = 0; to < (lives ? world->faults.births : sender->heirs); to++)
			if (world->faults.places[to] != PLACE_MASTER &&
			    process_is_alive(world->faults.pids[to]) && !world->lives[to].cut_off &&
			    (lives || !fired()) && !(lives && to == from && to == 0) &&
			    !has_heard(to, from, missing, size))
				return false;
	}
	return true;
}

static int births; /* the number of processes when the burst began */

static bool
is_settled_or_changed(char *missing, size_t size)
{
	return births != world->faults.births || is_settled(missing, size);
}

/* Wait until the cluster is complete, let each process send a burst, and wait until all have
 * heard it. If a process died meanwhile, repeat this with its replacement. */
static bool
settle(enum burst burst, const char *step)
{
	do {
		if (!until(is_complete, step))
			return false;
		births = world->faults.births;
		world->burst = burst;
		world->round++;
		if (!until(is_settled_or_changed, step))
			return false;
	} while (births != world->faults.births);
	return true;
}

static bool
has_obeyed(char *missing, size_t size)
{
	snprintf(missing, size, "an order was not obeyed");
	return world->commanded == 0 || !process_is_alive(world->commanded);
}

/* Give a process an order, and wait until it has obeyed or is dead. */
static bool
order(int life, enum command command)
{
	if (life == -1)
		return false;
	world->command = command;
	world->commanded = world->faults.pids[life];
	return until(has_obeyed, "an order");
}

static int waited_for;

static bool
is_dead(char *missing, size_t size)
{
	snprintf(missing, size, "%s lives", life_name(waited_for));
	return !process_is_alive(world->faults.pids[waited_for]);
}

static bool
kill_life(int life)
{
	if (life == -1)
		return false;
	waited_for = life;
	world->lives[life].leaving = true;
	kill(world->faults.pids[life], SIGKILL);
	return until(is_dead, "a kill");
}

/* ---- the acts -------------------------------------------------------------- */

static int port;

static int
on_parent_ready(struct messenger *messenger, const struct message *message, void *arg)
{
	const char *found = strstr(message->data, "\"port\":");

	(void)messenger, (void)arg;
	port = found != NULL ? atoi(found + strlen("\"port\":")) : 0;
	me->ready = true;
	return 0;
}

static int
join_as_parent(void)
{
	INSIST(messenger_on(parent, "egg-ready", on_parent_ready, NULL));
	return join(parent);
}

/* Call fork_cluster, and repeat it if it fails: nothing of a failed attempt may be left. */
static bool
begin(void)
{
	static char pid_file[128];
	struct options options = {.agent = role,
	                          .app = role,
	                          .connection = on_connection,
	                          .workers = WORKERS,
	                          .port = -1,
	                          .name = "play",
	                          .pid_file = pid_file,
	                          .worker_start_timeout = 30000,
	                          .app_close_timeout = 4000,
	                          .agent_close_timeout = 4000};
	int attempt, before = process_descriptors(getpid());

	me = &world->lives[0];
	snprintf(pid_file, sizeof pid_file, "%s/run/pid", world->folder);
	for (attempt = 0; attempt < TRIES && parent == NULL; attempt++) {
		parent = fork_cluster(&options, &master);
		if (parent == NULL && process_descriptors(getpid()) != before)
			complain("fork_cluster failed (%s) and left a descriptor open",
			         strerror(errno));
		if (parent == NULL)
			poll(NULL, 0, 1);
	}
	if (parent == NULL || join_as_parent() == -1) {
		complain("the parent cannot start: %s", strerror(errno));
		return false;
	}
	return true;
}

static bool
act_start(void)
{
	if (!begin() || !settle(SMALL, "after the start"))
		return false;
	world->started = true;
	return true;
}

/* Make one connection. Does the app echo the byte? */
static bool
ask(void)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
	struct timeval limit = {.tv_sec = 3};
	int descriptor = socket(AF_INET, SOCK_STREAM, 0);
	char answer = '-';
	bool answered;

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	answered = connect(descriptor, (struct sockaddr *)&address, sizeof address) == 0 &&
	           write(descriptor, "x", 1) == 1 && read(descriptor, &answer, 1) == 1 &&
	           answer == 'x';
	close(descriptor);
	return answered;
}

/* A fault that is not invisible may cost one connection. */
static void
connect_to_all(void)
{
	int i, lost = 0;

	for (i = 0; i < 4 && port != 0; i++)
		lost += !ask();
	if (lost > (fired() && !is_invisible()))
		complain("%d of 4 connections were not answered", lost);
}

/* Make a connection. Has each app accepted one by now? */
static bool
accepts(char *missing, size_t size)
{
	int life;

	if (port == 0) /* the parent does not know the port */
		return true;
	ask();
	for (life = 0; life < world->faults.births; life++)
		if (world->faults.places[life] == PLACE_APP && world->lives[life].accepted == 0 &&
		    process_is_alive(world->faults.pids[life])) {
			snprintf(missing, size, "%s accepts nobody", life_name(life));
			return false;
		}
	return true;
}

static bool
all_accept(void)
{
	int life;

	for (life = 0; life < world->faults.births; life++)
		world->lives[life].accepted = 0;
	return until(accepts, "connections");
}

static bool
act_connect(void)
{
	kill(master, SIGUSR1);
	connect_to_all();
	return settle(SMALL, "after connections");
}

static bool
act_large(void)
{
	return settle(LARGE, "after large messages");
}

static bool
act_handles(void)
{
	return settle(HANDLES, "after handles");
}

/* Flood an app that is busy with something else. */
static bool
act_flood(void)
{
	int sleeper = find_life(PLACE_APP, -1);

	if (sleeper != -1) {
		world->command = SLEEP;
		world->commanded = world->faults.pids[sleeper];
	}
	return settle(FLOOD, "after a flood to a slow reader");
}

/* Run a loop with nothing to do in this process: an idle loop frees the memory of its queue. */
static void
be_quiet(void)
{
	struct messenger *messenger;
	int pair[2], result;

	if (channel_pair(pair) == -1 && channel_pair(pair) == -1)
		return;
	while ((messenger = messenger_open(pair[0], ROLE_PARENT)) == NULL)
		poll(NULL, 0, 1);
	while (messenger_send(messenger, "quiet", NULL, ROLE_MASTER) == -1)
		poll(NULL, 0, 1);
	result = messenger_step(messenger, 1500);
	if (result != 1 && !(fired() && (errno == ENOMEM || errno == EAGAIN || result == 0)))
		complain("a loop with nothing to do failed: %s", strerror(errno));
	messenger_close(messenger);
	close(pair[1]);
}

/* Open a channel from this process to itself, so that nobody reads during channel_drain. */
static bool
act_drain(void)
{
	struct message message = {.action = "drain", .data = "[]", .data_length = 2, .handle = -1};
	struct channel out, in;
	int pair[2], sent = 0, heard = 0, found = 0, tries;

	if (channel_pair(pair) == -1 && channel_pair(pair) == -1)
		return false;
	channel_init(&out, 0);
	channel_init(&in, 0);
	if ((channel_attach(&out, pair[0]) == -1 && channel_attach(&out, pair[0]) == -1) ||
	    (channel_attach(&in, pair[1]) == -1 && channel_attach(&in, pair[1]) == -1))
		complain("a channel cannot be attached: %s", strerror(errno));
	for (tries = 0; sent < 10000 && tries < 20000; tries++)
		sent += sendmessage(&out, &message) == 0;
	for (tries = 0; heard < sent && tries < 5000 && found != -1; tries++) {
		if (channel_drain(&out, 10) != PEER_ALIVE || channel_read(&in) != PEER_ALIVE)
			break;
		while ((found = channel_next(&in, &message)) == 1)
			heard++;
	}
	if ((heard < sent || found == -1) && !(fired() && ends_channel(world->faults.plan[0].how)))
		complain("only %d of the %d messages that were sent came through", heard, sent);
	channel_close(&out);
	channel_close(&in);
	be_quiet();
	return true;
}

static bool
act_kill(void)
{
	return kill_life(find_life(PLACE_APP, -1)) && settle(SMALL, "after an app's death");
}

static bool
act_leave(void)
{
	return order(find_life(PLACE_APP, -1), LEAVE) && settle(SMALL, "after a graceful exit");
}

static bool
act_quit(void)
{
	return order(find_life(PLACE_APP, -1), QUIT) && settle(SMALL, "after an exit");
}

static bool
act_fail(void)
{
	return order(find_life(PLACE_APP, -1), FAIL) && settle(SMALL, "after an uncaught error");
}

static bool
act_garbage(void)
{
	return order(find_life(PLACE_APP, -1), GARBAGE) && settle(SMALL, "after a broken frame");
}

static void
order_reload(void)
{
	int tries;

	for (tries = 0; parent != NULL && tries < 100; tries++)
		if (messenger_send(parent, "reload-worker", NULL, ROLE_MASTER) == 0)
			return;
}

static int reload_births;
static int64_t reload_at, reload_pause;

/* D12: if the new worker of a reload dies, the old worker stays, so the test orders another reload.
 * The pauses grow, since an order restarts a reload that is under way: with short pauses a busy
 * machine would never finish one. */
static bool
is_reloaded(char *missing, size_t size)
{
	int life;

	if (fired() && faults_clock() > reload_at + reload_pause) {
		order_reload();
		reload_at = faults_clock();
		reload_pause *= 4;
	}
	for (life = 0; life < reload_births && parent != NULL; life++)
		if (world->faults.places[life] == PLACE_APP &&
		    process_is_alive(world->faults.pids[life])) {
			snprintf(missing, size, "%s has not been replaced", life_name(life));
			return false;
		}
	return true;
}

static bool
reload(const char *step)
{
	int life;

	reload_births = world->faults.births;
	reload_at = faults_clock();
	reload_pause = 100;
	order_reload();
	if (!until(is_reloaded, step))
		return false;
	for (life = 0; life < reload_births && parent == NULL; life++)
		if (world->lives[life].hung && !kill_life(life))
			return false;
	return settle(SMALL, step);
}

static bool
act_reload(void)
{
	return reload("after a reload");
}

static bool
act_hang(void)
{
	int hung = find_life(PLACE_APP, -1);

	if (!order(hung, HANG))
		return false;
	if (parent == NULL) /* only the parent can order a reload */
		return kill_life(hung);
	return reload("after a reload of a hung worker");
}

static bool
act_kill_agent(void)
{
	return kill_life(find_life(PLACE_AGENT, -1)) && settle(SMALL, "after the agent's death");
}

static bool
act_quit_agent(void)
{
	return order(find_life(PLACE_AGENT, -1), QUIT) && settle(SMALL, "after the agent's exit");
}

/* Does each process hold as many descriptors as without a fault? */
static bool
holds_no_more(char *missing, size_t size)
{
	int life, place, count, expected;

	for (life = 0; life < world->faults.births; life++) {
		place = world->faults.places[life];
		if (!process_is_alive(world->faults.pids[life]))
			continue;
		count = process_descriptors(world->faults.pids[life]);
		expected = world->expected[place];
		if (is_parent_cut_off() && place <= PLACE_MASTER)
			expected--;
		snprintf(missing, size, "%s holds %d descriptors instead of %d", life_name(life),
		         count, expected);
		if (world->expected[place] != 0 && count != expected)
			return false;
		world->descriptors[place] = count;
	}
	return true;
}

/* Is the cluster sound after the fault? */
static bool
act_after(void)
{
	return settle(SMALL, "afterwards") && all_accept() && kill_life(find_life(PLACE_APP, -1)) &&
	       settle(SMALL, "afterwards, after an app's death") &&
	       until(holds_no_more, "descriptors");
}

static bool
act_end(void)
{
	kill(master, SIGTERM);
	return true;
}

static const struct {
	const char *name;
	bool (*play)(void);
} acts[ACTS] = {
	[ACT_START] = {"start", act_start},
	[ACT_CONNECT] = {"connections", act_connect},
	[ACT_LARGE] = {"large messages", act_large},
	[ACT_HANDLES] = {"handles", act_handles},
	[ACT_FLOOD] = {"flood", act_flood},
	[ACT_DRAIN] = {"drain", act_drain},
	[ACT_KILL] = {"app killed", act_kill},
	[ACT_LEAVE] = {"app leaves", act_leave},
	[ACT_QUIT] = {"app exits", act_quit},
	[ACT_FAIL] = {"app fails", act_fail},
	[ACT_GARBAGE] = {"broken frame", act_garbage},
	[ACT_RELOAD] = {"reload", act_reload},
	[ACT_HANG] = {"hung app", act_hang},
	[ACT_KILL_AGENT] = {"agent killed", act_kill_agent},
	[ACT_QUIT_AGENT] = {"agent exits", act_quit_agent},
	[ACT_AFTER] = {"afterwards", act_after},
	[ACT_END] = {"end", act_end},
};

/* ---- the judgement --------------------------------------------------------- */

/* If the set-up fails, the start ends with one line. Once its loop runs, the master tries again.
 * If a child cannot start, the cluster's start fails too. */
static bool
may_fail_to_start(void)
{
	const struct faults *f = &world->faults;
	int i;

	for (i = 0; i < PLANS; i++) {
		const struct fault *plan = &f->plan[i];

		if (plan->how == 0 || f->fired[i] == 0 ||
		    fault_is_invisible(&sites[plan->site], plan->how))
			continue;
		if (plan->place == PLACE_MASTER && !ends_channel(plan->how) &&
		    plan->lasts != TOO_LONG &&
		    (f->fired_births[i] > 2 || sites[plan->site].call == CALL_fork))
			continue;
		if (plan->place != PLACE_PARENT)
			return true;
	}
	return false;
}

/* The last line of stderr, without those that only tell the exit code. */
static void
last_words(char *words, size_t size)
{
	char path[128], line[300];
	FILE *file;

	snprintf(path, sizeof path, "%s/err", world->folder);
	file = fopen(path, "r");
	words[0] = '\0';
	while (file != NULL && fgets(line, sizeof line, file) != NULL) {
		line[strcspn(line, "\n")] = '\0';
		if (strstr(line, "exit with code") == NULL)
			snprintf(words, size, "%s", line);
	}
	if (file != NULL)
		fclose(file);
}

/* The master must not remove a file unless it knows that the file is its own. */
static bool
may_leave_pid_file(void)
{
	const struct fault *plan;

	for (plan = world->faults.plan; plan < world->faults.plan + PLANS; plan++) {
		if (plan->how == 0 || plan->place != PLACE_MASTER)
			continue;
		switch ((int)sites[plan->site].call) {
		case CALL_fcntl:
		case CALL_fstat:
		case CALL_lstat:
		case CALL_pread:
		case CALL_unlink:
			return true;
		default:
			break;
		}
	}
	return false;
}

/* The pid file and the status file must be gone, and no other file may be in their folder. */
static void
judge_files(void)
{
	char folder[128];

	snprintf(folder, sizeof folder, "%s/run", world->folder);
	if (rmdir(folder) == -1 && errno == ENOTEMPTY && !may_leave_pid_file())
		complain("the pid file, or a status file, is left");
}

static void
judge_end(void)
{
	char words[300];
	bool good = WIFEXITED(master_status) && WEXITSTATUS(master_status) == 0;

	last_words(words, sizeof words);
	if (WIFSIGNALED(master_status))
		complain("the master was killed by signal %d", WTERMSIG(master_status));
	else if (!good && !world->started && !may_fail_to_start())
		complain("the start failed, exit %d: %s", WEXITSTATUS(master_status), words);
	else if (!good && !world->started && words[0] == '\0')
		complain("the start failed, and no line says why");
	else if (!good && !world->started && strstr(words, "Success") != NULL)
		complain("the start failed with a wrong reason: %s", words);
	else if (!good && world->started)
		complain("the master exited with %d: %s", WEXITSTATUS(master_status), words);
	else if (good && !world->finished)
		complain("the master exited with 0 before it was told to end: %s", words);
	judge_files();
}

/* This process is the subreaper, so an orphan of the cluster becomes its child. Only children are
 * killed: any other pid may belong to a foreign process by now. Returns whether a process was
 * left, and appends the names to the text. */
static bool
kill_left(char *names, size_t size)
{
	size_t used = strlen(names);
	bool found = false;
	int life;
	pid_t pid;

	for (life = 1; life < world->faults.births; life++) {
		pid = world->faults.pids[life];
		if (pid <= 0 || waitpid(pid, NULL, WNOHANG) != 0)
			continue;
		kill(pid, SIGKILL);
		found = true;
		if (used < size)
			used += (size_t)snprintf(names + used, size - used, " %s", life_name(life));
	}
	return found;
}

static void
judge_left(void)
{
	int64_t deadline = faults_clock() + 1500 * patience();
	char left[300] = "";
	pid_t pid;

	while ((pid = waitpid(-1, NULL, WNOHANG)) != -1 && faults_clock() < deadline)
		if (pid == 0)
			poll(NULL, 0, 1);
	if (pid != -1 && kill_left(left, sizeof left))
		complain("processes are left behind:%s", left);
	while (waitpid(-1, NULL, 0) != -1)
		;
}

static bool
is_over(char *missing, size_t size)
{
	snprintf(missing, size, "the master does not end");
	return ended;
}

/* An invisible fault must cost no process its life. (A slow reload is ordered again, and may then
 * fork once more.) */
static void
judge_births(int act)
{
	int expected = world->expected_births[act];

	if (expected != 0 && is_invisible() && world->births[act] > expected && act != ACT_RELOAD &&
	    act != ACT_HANG)
		complain("the fault cost a process its life");
}

static void
play_acts(void)
{
	const struct fault *plan = &world->faults.plan[0];
	int act, before;

	for (act = 0; act < ACTS; act++) {
		if (plan->how != 0 && act != plan->act && act != ACT_START && act < ACT_AFTER)
			continue;
		if (plan->how != 0 && plan->act == ACT_END && act == ACT_AFTER)
			continue;
		before = world->faults.births;
		world->faults.act = act;
		world->finished = act == ACT_END;
		if (!acts[act].play()) {
			if (ended || world->told)
				break;
		}
		world->births[act] = world->faults.births - before;
		judge_births(act);
	}
	if (world->told && !ended && master > 0)
		kill(master, SIGKILL);
	ended = ended || master <= 0; /* fork_cluster failed */
	until(is_over, "the end");
	while (!ended && waitpid(master, &master_status, 0) == -1)
		;
}

static void
on_crash(int number)
{
	complain("%s crashed with signal %d", life_name(faults_life), number);
	signal(number, SIG_DFL);
	raise(number);
}

static void
on_sanitizer_death(void)
{
	complain("the sanitizer stopped %s", life_name(faults_life));
}

static void
catch_crashes(void)
{
	static const int numbers[] = {SIGSEGV, SIGBUS, SIGABRT, SIGFPE, SIGILL};
	size_t i;

	if (__sanitizer_set_death_callback != NULL) {
		__sanitizer_set_death_callback(on_sanitizer_death);
		return;
	}
	for (i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
		signal(numbers[i], on_crash);
}

static void
redirect(const char *name, int descriptor)
{
	char path[128];
	int file;

	snprintf(path, sizeof path, "%s/%s", world->folder, name);
	file = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
	if (file == -1 || dup2(file, descriptor) == -1)
		abort();
	close(file);
}

/* The whole play, in a process of its own. */
static void
play(void)
{
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	redirect("out", STDOUT_FILENO);
	redirect("err", STDERR_FILENO);
	catch_crashes();
	faults = &world->faults;
	faults->births = 1;
	faults->pids[0] = getpid();
	play_acts();
	judge_end();
	messenger_close(parent);
	judge_left();
	exit(0);
}

/* ---- several plays at a time ----------------------------------------------- */

struct job {
	struct fault plan[PLANS];
};

static struct lane {
	struct world *world;
	pid_t player;
	int64_t deadline;
	struct job *job;
} lanes[LANES];

static struct {
	uint32_t hits[ACTS][SITES_MAX][PLACES];   /* without a fault */
	bool usual[SITES_MAX][PLACES];            /* the same, in any act */
	bool reached[SITES_MAX];                  /* ever */
	struct job *provokers[SITES_MAX][PLACES]; /* the job that leads to an unusual call */
	int command[SITES_MAX];
	int descriptors[PLACES], births[ACTS];
	int played, failed, silent;
} tally;

static int
remove_entry(const char *path, const struct stat *status, int type, struct FTW *where)
{
	(void)status, (void)type, (void)where;
	return remove(path);
}

static void
open_lane(struct lane *lane, struct job *job)
{
	struct world *w = lane->world;

	memset(w, 0, sizeof *w);
	strcpy(w->folder, "/tmp/clutch-faults.XXXXXX");
	cr_assert(mkdtemp(w->folder) != NULL);
	memcpy(w->expected, tally.descriptors, sizeof w->expected);
	memcpy(w->expected_births, tally.births, sizeof w->expected_births);
	if (job != NULL)
		memcpy(w->faults.plan, job->plan, sizeof job->plan);
	lane->job = job;
	lane->deadline = faults_clock() + PLAY_LIMIT * patience();
	fflush(NULL);
	lane->player = fork();
	cr_assert(lane->player != -1);
	if (lane->player == 0) {
		world = w;
		play();
	}
}

static void
describe(const struct fault *fault, char *text, size_t size)
{
	const struct site *site = &sites[fault->site];

	snprintf(text, size, "%s %s:%d (%s) in the %s, %s, %s%s", call_name(site->call), site->file,
	         site->line, site->function, place_name(fault->place), acts[fault->act].name,
	         fault_name(fault->how),
	         fault->lasts == PERSISTENT ? " for a while"
	         : fault->lasts == TOO_LONG ? " for too long"
	                                    : "");
}

static void
print_problem(const struct world *w)
{
	char first[300] = "without a fault", second[300];

	if (w->faults.plan[0].how != 0)
		describe(&w->faults.plan[0], first, sizeof first);
	if (w->faults.plan[1].how != 0)
		describe(&w->faults.plan[1], second, sizeof second);
	fprintf(stderr, "%s%s%s: %s\n", w->faults.plan[1].how != 0 ? second : "",
	        w->faults.plan[1].how != 0 ? ", after " : "", first, w->problem);
	if (getenv("FAULTS_KEEP") != NULL)
		fprintf(stderr, "\tits log: %s\n", w->folder);
}

/* Count the calls that were made; for a call that only a fault leads to, remember the job. */
static void
count_hits(const struct lane *lane)
{
	const struct faults *f = &lane->world->faults;
	int site, act, place;

	for (act = 0; act < ACTS; act++)
		for (site = 0; site < site_count; site++)
			for (place = 0; place < PLACES; place++) {
				if (f->hits[act][site][place] == 0)
					continue;
				tally.reached[site] = true;
				if (lane->job != NULL && tally.provokers[site][place] == NULL &&
				    !tally.usual[site][place] && f->plan[1].how == 0) {
					tally.provokers[site][place] = lane->job;
					tally.command[site] = f->command[site];
				}
			}
}

static void
close_lane(struct lane *lane)
{
	struct world *w = lane->world;
	char text[300];
	int i;

	count_hits(lane);
	tally.played++;
	for (i = 0; i < PLANS && !w->told; i++)
		if (w->faults.plan[i].how != 0 && !w->faults.fired[i] &&
		    w->faults.plan[i].site != ANY_SITE) {
			tally.silent++;
			describe(&w->faults.plan[i], text, sizeof text);
			fprintf(stderr, "the play did not meet its fault: %s\n", text);
		}
	if (w->told) {
		tally.failed++;
		print_problem(w);
	}
	if (getenv("FAULTS_KEEP") == NULL || !w->told)
		nftw(w->folder, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
	lane->player = 0;
}

/* A process that is left would write into the world of the next play. */
static void
kill_lives(void)
{
	char names[300] = "";

	while (kill_left(names, sizeof names)) /* the master, then its children */
		poll(NULL, 0, 1);
}

/* The play takes too long: kill its parent; wait_lane then kills the others. */
static void
abort_lane(struct lane *lane)
{
	world = lane->world;
	complain("the play hangs");
	kill(lane->player, SIGKILL);
}

/* Wait a moment for the end of a play; false if none is running. */
static bool
wait_lane(void)
{
	bool busy = false;
	int i, status;
	pid_t pid;

	for (i = 0; i < LANES; i++) {
		busy |= lanes[i].player != 0;
		if (lanes[i].player != 0 && faults_clock() > lanes[i].deadline)
			abort_lane(&lanes[i]);
	}
	while (busy && (pid = waitpid(-1, &status, WNOHANG)) > 0) {
		for (i = 0; i < LANES && lanes[i].player != pid; i++)
			;
		if (i == LANES)
			continue;
		world = lanes[i].world;
		if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
			complain("the parent ended with status %d", status);
			kill_lives();
		}
		close_lane(&lanes[i]);
		return true;
	}
	if (busy)
		poll(NULL, 0, 2);
	return busy;
}

static void
play_all(struct job *jobs, size_t count)
{
	size_t next;
	int i;

	for (next = 0; next < count; next++) {
		for (;;) {
			for (i = 0; i < LANES && lanes[i].player != 0; i++)
				;
			if (i < LANES)
				break;
			wait_lane();
		}
		open_lane(&lanes[i], &jobs[next]);
	}
	while (wait_lane())
		;
}

static void
open_lanes(void)
{
	const char *wrong = faults_find_sites();
	int i;

	cr_assert(wrong == NULL, "%s", wrong);
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	for (i = 0; i < LANES; i++) {
		lanes[i].world = mmap(NULL, sizeof *lanes[i].world, PROT_READ | PROT_WRITE,
		                      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
		cr_assert(lanes[i].world != MAP_FAILED);
	}
}

/* Play without a fault: all must be well. Record which process makes which call in which act. */
static void
rehearse(void)
{
	struct world *w = lanes[0].world;
	int act, site, place;

	open_lane(&lanes[0], NULL);
	while (wait_lane())
		;
	cr_assert(!w->told, "without a fault: %s", w->problem);
	memcpy(tally.hits, w->faults.hits, sizeof tally.hits);
	for (act = 0; act < ACTS; act++)
		for (site = 0; site < site_count; site++)
			for (place = 0; place < PLACES; place++)
				tally.usual[site][place] |= tally.hits[act][site][place] > 0;
	memcpy(tally.command, w->faults.command, sizeof tally.command);
	memcpy(tally.descriptors, w->descriptors, sizeof tally.descriptors);
	memcpy(tally.births, w->births, sizeof tally.births);
}

/* ---- which faults ---------------------------------------------------------- */

static struct job jobs[SITES_MAX * 128];
static size_t job_count;

static void
add_job(const struct job *before, int site, int place, int act, int how, int lasts)
{
	struct job *job = &jobs[job_count++];

	cr_assert(job_count < sizeof jobs / sizeof jobs[0]);
	if (how == FAULT_NO_HANDLE)
		lasts = FOR_EVER; /* the first call need not carry the handle */
	if (before != NULL)
		job->plan[0] = before->plan[0];
	job->plan[before != NULL] = (struct fault){site, place, act, how, lasts};
}

static bool
is_short(void)
{
	const char *wanted = getenv("FAULTS");

	return wanted != NULL && strcmp(wanted, "short") == 0;
}

static bool
is_wanted(int site)
{
	const char *wanted = getenv("FAULTS");
	char line[64];

	if (wanted == NULL || strcmp(wanted, "all") == 0)
		return true;
	if (is_short())
		return site != ANY_SITE;
	if (site == ANY_SITE || strcmp(wanted, "shortages") == 0)
		return site == ANY_SITE && strcmp(wanted, "shortages") == 0;
	snprintf(line, sizeof line, "%s:%d", sites[site].file, sites[site].line);
	return strcmp(wanted, line) == 0;
}

/* The error of this call that may last for a while; 0 if there is none. */
static int
lasting_fault(const struct site *site, int command)
{
	switch ((int)site->call) {
	case CALL_fork:
		return EAGAIN;
	case CALL_malloc:
	case CALL_calloc:
	case CALL_realloc:
	case CALL_strdup:
		return ENOMEM;
	case CALL_send:
	case CALL_sendmsg:
	case CALL_recvmsg:
		return ENOBUFS;
	case CALL_socketpair:
	case CALL_accept:
		return EMFILE;
	case CALL_fcntl:
		return command == F_DUPFD_CLOEXEC ? EMFILE : 0;
	default:
		return 0;
	}
}

static void
add_jobs_of(const struct job *before, int site, int place, int act)
{
	const int *how;
	int lasting = lasting_fault(&sites[site], tally.command[site]);

	for (how = faults_of(&sites[site], tally.command[site]); *how != 0; how++)
		add_job(before, site, place, act, *how, 0);
	if (lasting != 0)
		add_job(before, site, place, act, lasting, PERSISTENT);
	if (lasting != 0)
		add_job(before, site, place, act, lasting, TOO_LONG);
}

/* By default a call fails in two of the acts that make it: the first, and one that differs from
 * call to call. Calls on a channel and the master's allocations also fail in all others. */
static void
list_jobs_of(int site, int place)
{
	int act, count = 0, among[ACTS];
	bool all = getenv("FAULTS") != NULL && !is_short();

	for (act = 0; act < ACTS; act++)
		if (tally.hits[act][site][place] != 0 && act != ACT_AFTER)
			among[count++] = act;
	for (act = 0; act < count; act++)
		if (all || act == 0 || (act == (site + place) % count && !is_short()))
			add_jobs_of(NULL, site, place, among[act]);
		else if (is_short())
			continue;
		else if (sites[site].call == CALL_send || sites[site].call == CALL_sendmsg ||
		         sites[site].call == CALL_recvmsg)
			add_job(NULL, site, place, among[act], ENOBUFS, PERSISTENT);
		else if (place == PLACE_MASTER && is_allocation(sites[site].call))
			add_job(NULL, site, place, among[act], ENOMEM, TOO_LONG);
}

static void
list_jobs(void)
{
	int site, place;

	for (site = 0; site < site_count; site++)
		for (place = 0; place < PLACES && is_wanted(site); place++)
			list_jobs_of(site, place);
}

/* For a call that is made only after a fault: that fault comes first, then the call fails. */
static void
list_second_jobs(void)
{
	const struct job *before;
	int site, place;

	for (site = 0; site < site_count; site++)
		for (place = 0; place < PLACES; place++) {
			before = tally.provokers[site][place];
			if (before != NULL)
				add_jobs_of(before, site, place, before->plan[0].act);
		}
}

/* One role is short of something. (There is no ENOBUFS in the start: the log would lose the line
 * that says why the start failed.) */
static void
list_shortages(void)
{
	static const int shortages[] = {ENOMEM, EMFILE, ENOBUFS};
	int place, act, i;

	for (act = 0; act < ACT_AFTER && is_wanted(ANY_SITE); act++)
		for (place = 0; place < PLACES; place++)
			for (i = act == ACT_START ? 1 : 2; i >= 0; i--) {
				add_job(NULL, ANY_SITE, place, act, shortages[i], PERSISTENT);
				add_job(NULL, ANY_SITE, place, act, shortages[i], TOO_LONG);
			}
}

/* Calls that the play does not reach, not even with a fault, and why. */
static const struct {
	const char *function;
	enum call call;
	const char *why;
} unreached[] = {
	{"trace_event", CALL_open, "the trace is off: test_trace.c has its faults"},
	{"trace_event", CALL_poll, "the trace is off"},
	{"trace_event", CALL_write, "the trace is off"},
	{"trace_event", CALL_close, "the trace is off"},
	{"reap_orphans", CALL_waitpid, "only as process 1 of a container"},
	{"reset_signals", CALL_close, "only in a terminal"},
	{"on_connection", CALL_close, "a connection whose flags cannot be set"},
	{"remove_stale", CALL_lstat, "only with a path as host: test_options.c has its faults"},
	{"remove_stale", CALL_socket, "a path as host"},
	{"remove_stale", CALL_unlink, "a path as host"},
	{"remove_stale", CALL_close, "a path as host"},
	{"bind_patiently", CALL_poll, "the port is in use"},
	{"bind_listener", CALL_lstat, "a path as host"},
	{"remove_socket", CALL_lstat, "a path as host"},
	{"remove_socket", CALL_unlink, "a path as host"},
	{"open_listener", CALL_fcntl, "options.listener: test_options.c"},
	{"signal_process", CALL_kill, "a process that has left its group"},
	{"parse_options", CALL_fcntl, "options.log: test_options.c"},
	{"channel_close", CALL_close, "a handle without its frame: the peer has died meanwhile"},
};

static bool
is_explained(const struct site *site)
{
	size_t i;

	for (i = 0; i < sizeof unreached / sizeof unreached[0]; i++)
		if (unreached[i].call == site->call &&
		    strcmp(unreached[i].function, site->function) == 0) {
			fprintf(stderr, "not reached: %s %s:%d (%s): %s\n", call_name(site->call),
			        site->file, site->line, site->function, unreached[i].why);
			return true;
		}
	return false;
}

static int
count_unexplained(void)
{
	int site, count = 0;

	for (site = 0; site < site_count; site++) {
		if (tally.reached[site] || !is_wanted(site) || is_explained(&sites[site]))
			continue;
		fprintf(stderr, "NOT REACHED, and no reason is given: %s %s:%d (%s)\n",
		        call_name(sites[site].call), sites[site].file, sites[site].line,
		        sites[site].function);
		count++;
	}
	return count;
}

Test(faults, each_call_fails_in_each_way, .timeout = 7200)
{
	size_t first, second;
	int unexplained;

	open_lanes();
	rehearse();
	list_jobs();
	first = job_count;
	fprintf(stderr, "%d calls, %zu faults\n", site_count, first);
	play_all(jobs, first);
	list_second_jobs();
	fprintf(stderr, "%zu faults of calls to which only a fault leads\n", job_count - first);
	play_all(jobs + first, job_count - first);
	second = job_count;
	list_shortages();
	fprintf(stderr, "%zu shortages\n", job_count - second);
	play_all(jobs + second, job_count - second);
	unexplained = count_unexplained();
	fprintf(stderr, "%d plays, %d did not meet their fault, %d failed\n", tally.played,
	        tally.silent, tally.failed);
	cr_assert_eq(tally.failed, 0);
	cr_assert(unexplained == 0 || is_short());
}

Test(faults, no_call_of_the_core_that_can_fail_is_left_out)
{
	const char *build = getenv("BUILD");
	char folder[4096];
	const char *missing;

	if (__sanitizer_set_death_callback != NULL)
		cr_skip_test("leaks.h adds calls of its own");
#ifdef COVERAGE_H
	cr_skip_test("coverage.h adds calls of its own");
#endif
	snprintf(folder, sizeof folder, "%s/faults", build != NULL ? build : "build");
	missing = faults_find_missing(folder);
	cr_assert_str_empty(missing, "%s", missing);
}
