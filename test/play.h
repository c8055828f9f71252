/*
 * The play of test_faults.c: a cluster of an agent, two app workers and the test as the parent
 * starts, talks, loses processes, reloads, loses its agent, and ends. Each message has a number,
 * and memory that all processes share (struct world) counts which process has sent and heard
 * which message; so each act can tell whether a message between two live processes was lost,
 * doubled or swapped.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#ifndef PLAY_H
#define PLAY_H

#include "faults.h"
#include "harness.h"

#include <criterion/criterion.h>

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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
		if (command == QUIT) {
			faults_run_slowly(); /* a busy machine needs time for the last words */
			exit(0);
		}
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
		write_to_channel(messenger, garbage, sizeof garbage);
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

#endif
