/*
 * Who receives what (in the master), and what a child does with it.
 *
 * egg: egg-cluster/lib/utils/messenger.js (the master's side), to be read beside
 * it: the numbers in the margin are its lines; egg/lib/core/messenger/ipc.js
 * (the child's side), and the loop that Node gives for free.
 */
#include "messenger.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* What was sent is written out before an exit, within this time. */
#define EXIT_FLUSH_TIMEOUT 5000

/* The same before a parent's messenger_close returns. */
#define CLOSE_FLUSH_TIMEOUT 1000

/* Who speaks in each turn and never waits looks around in each so-many-th: a look
 * costs as much as a message. */
#define BLIND_TURNS 8

/* Memory is short for what must not be lost: it is asked for again this long. */
#define STARVED_TIMEOUT 1000

/* ---- the master's side: egg-cluster/lib/utils/messenger.js --------------- */

static void send_to_master(struct master_messenger *messenger, struct message *data);
static void send_to_parent(struct master_messenger *messenger, struct message *data);
static void send_to_app_worker(struct master_messenger *messenger, struct message *data);
static void send_to_agent_worker(struct master_messenger *messenger, struct message *data);

/* D26: nobody receives it. What the master says of itself may find nobody. */
static void
count_undeliverable(struct master_messenger *messenger, const struct message *data)
{
	messenger->undeliverable += data->from != ROLE_MASTER;
}

/* egg's debug('%s -> %s, data: %j', data.from, data.to, data) */
static void
debug(const struct message *data, enum role claimed)
{
	if (trace_on)
		trace(ROLE_MASTER, "routes", data, "%s -> %s, %s", role_name(data->from),
		      role_name(data->to),
		      data->receiver_pid != 0 ? "by its receiverPid"
		      : claimed == ROLE_NONE  ? "by default"
		                              : "by its to");
}

void
master_messenger_receive(struct master_messenger *messenger, struct process *sender,
                         struct message *msg)
{
	if (trace_on)
		trace(ROLE_MASTER, "receives", msg, "from %s:%ld", role_name(sender->role),
		      (long)sender->worker_id);
	msg->from = sender->role; /* :60 */
	messenger->sender = sender;
	master_messenger_send(messenger, msg); /* :61 */
	messenger->sender = NULL;
}

void
master_messenger_send(struct master_messenger *messenger, struct message *data)
{
	const struct process *agent = messenger->worker_manager->agent;
	enum role claimed = data->to;

	if (data->from == ROLE_NONE)      /* :75 */
		data->from = ROLE_MASTER; /* :76 */

	/* recognise receiver_pid: who is it? */
	if (data->receiver_pid != 0) {                                                /* :80 */
		if (data->receiver_pid == messenger->pid) {                           /* :81 */
			data->to = ROLE_MASTER;                                       /* :82 */
		} else if (agent != NULL && data->receiver_pid == agent->worker_id) { /* :83 D1 */
			data->to = ROLE_AGENT;                                        /* :84 */
		} else {                                                              /* :85 */
			data->to = ROLE_APP;                                          /* :86 */
		}
	}

	/* who gets what is addressed to nobody */
	if (data->to == ROLE_NONE) {          /* :91 */
		if (data->from == ROLE_AGENT) /* :92 */
			data->to = ROLE_APP;
		if (data->from == ROLE_APP) /* :93 */
			data->to = ROLE_AGENT;
		if (data->from == ROLE_PARENT) /* :94 */
			data->to = ROLE_MASTER;
	}

	/* app -> master, agent -> master */
	if (data->to == ROLE_MASTER) {           /* :99 */
		debug(data, claimed);            /* :100 */
		send_to_master(messenger, data); /* :102 */
		return;
	}

	/* master -> parent, app -> parent, agent -> parent */
	if (data->to == ROLE_PARENT) {           /* :109 */
		debug(data, claimed);            /* :110 */
		send_to_parent(messenger, data); /* :111 */
		return;
	}

	/* parent -> app, agent -> app */
	if (data->to == ROLE_APP) {                  /* :117 */
		debug(data, claimed);                /* :118 */
		send_to_app_worker(messenger, data); /* :119 */
		return;
	}

	/* parent -> agent, app -> agent */
	if (data->to == ROLE_AGENT) {                  /* :125 */
		debug(data, claimed);                  /* :126 */
		send_to_agent_worker(messenger, data); /* :127 */
		return;
	}
	count_undeliverable(messenger, data);
}

/* The sender waits for the receiver with the longest queue of those it feeds.
 * Once that one has drained it is heard again, and if another is too long still,
 * that one is then the longest: so none grows by more than two reads. */
static void
wait_for(struct process *sender, struct process *receiver)
{
	const struct process *longest = sender->waits_for;

	if (longest == NULL ||
	    channel_pending(&longest->channel) < channel_pending(&receiver->channel))
		sender->waits_for = receiver;
}

static bool
is_above(const struct process *process, size_t mark)
{
	return channel_pending(&process->channel) > mark ||
	       process->channel.waiting_count > CHANNEL_HANDLES_MAX / 2;
}

bool
process_may_speak(struct process *process)
{
	if (process->waits_for != NULL && !is_above(process->waits_for, CHANNEL_LOW_WATER))
		process->waits_for = NULL;
	return process->waits_for == NULL;
}

void
process_forget(const struct process *gone, const struct worker_manager *manager)
{
	struct process *worker;

	if (manager->agent != NULL && manager->agent->waits_for == gone)
		manager->agent->waits_for = NULL;
	if (manager->parent != NULL && manager->parent->waits_for == gone)
		manager->parent->waits_for = NULL;
	for (worker = manager->workers; worker != NULL; worker = worker->next)
		if (worker->waits_for == gone)
			worker->waits_for = NULL;
}

/* worker.send(data). A queue that is long now makes the sender wait; where
 * memory is short, the master tries again for a moment, and then gives the
 * receiver up rather than leave a gap in what it is sent. */
static bool
process_send(struct master_messenger *messenger, struct process *process, struct message *data)
{
	struct message without;
	int64_t deadline = 0;

	if (trace_on)
		trace(ROLE_MASTER, "sends", data, "to %s:%ld", role_name(process->role),
		      (long)process->worker_id);
	while (sendmessage(&process->channel, data) == -1) {
		if (errno == EMFILE && data->handle != -1) {
			without = *data; /* the message is worth more than its handle; */
			without.handle = -1;
			without.frame = NULL; /* its frame announces one: this is no run */
			data = &without;
		} else if (errno == ENOMEM && process->channel.descriptor != -1) {
			deadline = deadline != 0 ? deadline : clock_now() + STARVED_TIMEOUT;
			if (clock_now() > deadline)
				process->killed_for = "no memory for its messages";
			if (clock_now() > deadline ||
			    channel_drain(&process->channel, 10) == PEER_GONE)
				return false;
		} else {
			return false; /* EPIPE: it is dying; ENOBUFS: nobody is there yet */
		}
	}
	/* D21; a queue with a limit of its own has nobody at its end to drain it */
	if (messenger->sender != NULL && process->channel.limit == 0 &&
	    is_above(process, CHANNEL_HIGH_WATER))
		wait_for(messenger->sender, process);
	return true;
}

/* message to the master itself */
static void
send_to_master(struct master_messenger *messenger, struct message *data)
{
	messenger->emit(messenger->master, data); /* :137 */
}

/* message to the parent process */
static void
send_to_parent(struct master_messenger *messenger, struct message *data)
{
	struct process *parent = messenger->worker_manager->parent;

	if (parent == NULL) { /* :145 has_parent */
		count_undeliverable(messenger, data);
		return;
	}
	if (!process_send(messenger, parent, data)) /* :148 */
		count_undeliverable(messenger, data);
}

/* message to app workers */
static void
send_to_app_worker(struct master_messenger *messenger, struct message *data)
{
	struct process *worker;
	int receivers = 0;

	for (worker = messenger->worker_manager->workers; worker != NULL;
	     worker = worker->next) {                    /* :157 */
		if (worker->state == STATE_DISCONNECTED) /* :159 */
			continue;
		/* check receiver_pid */
		if (data->receiver_pid != 0 && data->receiver_pid != worker->worker_id) /* :163 */
			continue;
		/* D23: before it is forked, what the agent and the parent say waits */
		if (worker->state == STATE_NONE && data->from == ROLE_MASTER)
			continue;
		receivers += process_send(messenger, worker, data); /* :166 */
	}
	if (receivers == 0)
		count_undeliverable(messenger, data);
}

/* message to the agent worker */
static void
send_to_agent_worker(struct master_messenger *messenger, struct message *data)
{
	struct process *agent = messenger->worker_manager->agent; /* :175 */

	/* D24: a dead agent's slot keeps what others send for the next one */
	if (agent != NULL && agent->channel.descriptor == -1 && data->from == ROLE_MASTER)
		return;
	/* by its pid it was meant for the dead one, not for the next */
	if (agent == NULL || (agent->channel.descriptor == -1 && data->receiver_pid != 0) ||
	    !process_send(messenger, agent, data)) /* :176 */
		count_undeliverable(messenger, data);
}

/* ---- the child's side: egg/lib/core/messenger/ipc.js --------------------- */

struct listener {
	messenger_listener call;
	void *arg;
	bool once;
	uint64_t added, removed; /* in which turn; removed 0: it is not */
};

/* The listeners of one action, in order of adding. */
struct action_listeners {
	struct action_listeners *next; /* in the bucket */
	uint32_t hash;
	size_t length;
	struct listener *list;
	size_t count, size;
	bool unswept; /* it has listeners that are to be forgotten */
	struct action_listeners *next_unswept;
	char action[];
};

struct watch {
	messenger_watcher call; /* NULL: unwatched */
	void *arg;
	bool connection; /* it counts as an open connection */
};

struct timer {
	int id;
	bool fresh; /* set by a timer of this turn */
	int64_t due;
	int period; /* 0: once */
	messenger_timer call;
	void *arg;
};

/* A message is being delivered: it stands in the read buffer, which no loop of
 * this process may use meanwhile. */
static bool in_listener;

struct closer {
	struct closer *next;
	messenger_callback call;
	void *arg;
};

/* All messengers of the process, and the one of its role. */
static struct messenger *messengers;
static struct messenger *own;

int
messenger_init(struct messenger *messenger, int descriptor, enum role role)
{
	memset(messenger, 0, sizeof *messenger);
	channel_init(&messenger->channel, CHANNEL_QUEUE_MAX);
	messenger->role = role;
	messenger->pid = getpid();
	messenger->slot = -1;
	messenger->flush_at = CHANNEL_FLUSH_SIZE;
	messenger->turn = 1;
	messenger->accepted = -1;
	messenger->random = (uint64_t)messenger->pid * 2654435761U ^ (uintptr_t)messenger;
	messenger->watch_size = 8;
	messenger->watches = calloc(messenger->watch_size, sizeof *messenger->watches);
	messenger->set = calloc(messenger->watch_size + 1, sizeof *messenger->set);
	if (messenger->watches == NULL || messenger->set == NULL ||
	    channel_attach(&messenger->channel, descriptor) == -1) {
		free(messenger->watches);
		free(messenger->set);
		return -1;
	}
	messenger->next = messengers;
	messengers = messenger;
	return 0;
}

struct messenger *
messenger_open(int descriptor, enum role role)
{
	struct messenger *messenger = malloc(sizeof *messenger);

	if (messenger != NULL && messenger_init(messenger, descriptor, role) == 0)
		return messenger;
	free(messenger);
	return NULL;
}

void
messenger_close(struct messenger *messenger)
{
	if (messenger == NULL)
		return;
	if (messenger->channel.descriptor != -1)
		channel_drain(&messenger->channel, CLOSE_FLUSH_TIMEOUT);
	messenger_free(messenger);
}

static void
free_action(struct action_listeners *action)
{
	if (action != NULL)
		free(action->list);
	free(action);
}

void
messenger_free(struct messenger *messenger)
{
	enum { BUCKETS = sizeof messenger->actions / sizeof messenger->actions[0] };
	struct action_listeners *action;
	struct closer *closer;
	struct messenger **link = &messengers;
	int saved = errno;
	size_t i;

	while (*link != NULL && *link != messenger)
		link = &(*link)->next;
	if (*link != NULL)
		*link = messenger->next;
	for (i = 0; i < BUCKETS; i++)
		while ((action = messenger->actions[i]) != NULL) {
			messenger->actions[i] = action->next;
			free_action(action);
		}
	free_action(messenger->every);
	while ((closer = messenger->closers) != NULL) {
		messenger->closers = closer->next;
		free(closer);
	}
	channel_close(&messenger->channel);
	free(messenger->opids);
	free(messenger->watches);
	free(messenger->set);
	free(messenger->timers);
	free(messenger);
	errno = saved;
}

enum role
messenger_role(const struct messenger *messenger)
{
	return messenger->role;
}

pid_t
messenger_pid(const struct messenger *messenger)
{
	return messenger->pid;
}

int
messenger_slot(const struct messenger *messenger)
{
	return messenger->slot;
}

const pid_t *
messenger_opids(const struct messenger *messenger, size_t *count)
{
	*count = messenger->opid_count;
	return messenger->opids;
}

/* ---- send calls ---------------------------------------------------------- */

int
messenger_send_message(struct messenger *messenger, const struct message *message)
{
	struct channel *channel = &messenger->channel;

	if (channel->descriptor == -1) {
		errno = EPIPE;
		return -1;
	}
	if (sendmessage(channel, message) == -1)
		return -1;
	if (trace_on)
		trace(messenger->role, "sends", message, "to %s, receiverPid %ld",
		      role_name(message->to), (long)message->receiver_pid);
	/* Not at every call while the socket is full: each would be in vain. */
	if (channel_pending(channel) >= messenger->flush_at) {
		channel_flush(channel); /* a dead peer shows at the next read */
		messenger->flush_at = channel_pending(channel) + CHANNEL_FLUSH_SIZE;
	}
	return 0;
}

static struct message
compose(const char *action, const char *data, enum role to, pid_t receiver_pid)
{
	struct message message = {action, ROLE_NONE, to, receiver_pid, data, 0, -1, NULL};

	message.data_length = data != NULL ? strlen(data) : 0;
	return message;
}

int
messenger_broadcast(struct messenger *messenger, const char *action, const char *data)
{
	struct message message = compose(action, data, ROLE_APP, 0); /* ipc.js:39 */
	size_t size = message_size(&message);

	if (size == 0)
		return -1;
	if (channel_pending(&messenger->channel) + 2 * size > messenger->channel.limit) {
		channel_flush(&messenger->channel);
		if (channel_pending(&messenger->channel) + 2 * size > messenger->channel.limit) {
			errno = ENOBUFS;
			return -1;
		}
	}
	if (messenger_send_message(messenger, &message) == -1)
		return -1;
	message.to = ROLE_AGENT; /* ipc.js:40 */
	return messenger_send_message(messenger, &message);
}

int
messenger_send_to(struct messenger *messenger, pid_t pid, const char *action, const char *data)
{
	struct message message = compose(action, data, ROLE_NONE, pid); /* ipc.js:56 */

	if (pid <= 0) {
		errno = EINVAL;
		return -1;
	}
	return messenger_send_message(messenger, &message);
}

/* xorshift64*: uniform enough for a choice among pids. */
static uint64_t
random_next(struct messenger *messenger)
{
	uint64_t x = messenger->random | 1;

	x ^= x >> 12;
	x ^= x << 25;
	x ^= x >> 27;
	messenger->random = x;
	return (x * 2685821657736338717U) >> 32;
}

int
messenger_send_random(struct messenger *messenger, const char *action, const char *data)
{
	size_t count = messenger->opid_count;

	if (count == 0) { /* ipc.js:71 opids */
		errno = ESRCH;
		return -1;
	}
	return messenger_send_to(messenger, messenger->opids[random_next(messenger) % count],
	                         action, data);
}

int
messenger_send_to_app(struct messenger *messenger, const char *action, const char *data)
{
	return messenger_send(messenger, action, data, ROLE_APP); /* ipc.js:85 */
}

int
messenger_send_to_agent(struct messenger *messenger, const char *action, const char *data)
{
	return messenger_send(messenger, action, data, ROLE_AGENT); /* ipc.js:97 */
}

int
messenger_send(struct messenger *messenger, const char *action, const char *data, enum role to)
{
	struct message message = compose(action, data, to, 0); /* ipc.js:111 */

	return messenger_send_message(messenger, &message);
}

/* ---- listeners ----------------------------------------------------------- */

/* FNV-1a */
static uint32_t
hash_action(const char *action, size_t length)
{
	uint32_t hash = 2166136261U;

	while (length-- > 0)
		hash = (hash ^ (unsigned char)*action++) * 16777619U;
	return hash;
}

static inline bool
is_action(const struct action_listeners *action, const char *name, size_t length)
{
	return action->length == length && memcmp(action->action, name, length) == 0;
}

static struct action_listeners *
look_up_action(struct messenger *messenger, const char *name, size_t length)
{
	enum { BUCKETS = sizeof messenger->actions / sizeof messenger->actions[0] };
	uint32_t hash = hash_action(name, length);
	struct action_listeners *action;

	for (action = messenger->actions[hash % BUCKETS]; action != NULL; action = action->next)
		if (action->hash == hash && is_action(action, name, length)) {
			messenger->last = action;
			return action;
		}
	return NULL;
}

/* The listeners of an action, or NULL. Messages of one action tend to follow
 * each other, so the last answer is tried first. */
static inline struct action_listeners *
find_action(struct messenger *messenger, const char *name, size_t length)
{
	if (messenger->last != NULL && is_action(messenger->last, name, length))
		return messenger->last;
	return look_up_action(messenger, name, length);
}

static struct action_listeners *
add_action(struct messenger *messenger, const char *name)
{
	enum { BUCKETS = sizeof messenger->actions / sizeof messenger->actions[0] };
	size_t length = name != NULL ? strlen(name) : 0;
	struct action_listeners *action = calloc(1, sizeof *action + length + 1);

	if (action == NULL)
		return NULL;
	if (name == NULL) {
		messenger->every = action;
		return action;
	}
	memcpy(action->action, name, length);
	action->length = length;
	action->hash = hash_action(name, length);
	action->next = messenger->actions[action->hash % BUCKETS];
	messenger->actions[action->hash % BUCKETS] = action;
	return action;
}

static int
add_listener(struct messenger *messenger, const char *name, messenger_listener call, void *arg,
             bool once)
{
	struct listener listener = {call, arg, once, messenger->delivering ? messenger->turn : 0,
	                            0};
	struct action_listeners *action = messenger->every;
	struct listener *grown;
	size_t size;

	if (call == NULL ||
	    (name != NULL && (name[0] == '\0' || strlen(name) > MESSAGE_ACTION_MAX))) {
		errno = EINVAL;
		return -1;
	}
	if (name != NULL)
		action = find_action(messenger, name, strlen(name));
	if (action == NULL)
		action = add_action(messenger, name);
	if (action == NULL)
		return -1;
	if (action->count == action->size) {
		size = action->size > 0 ? 2 * action->size : 2;
		grown = realloc(action->list, size * sizeof *grown);
		if (grown == NULL)
			return -1;
		action->list = grown;
		action->size = size;
	}
	action->list[action->count++] = listener;
	return 0;
}

int
messenger_on(struct messenger *messenger, const char *action, messenger_listener listener,
             void *arg)
{
	return add_listener(messenger, action, listener, arg, false);
}

int
messenger_once(struct messenger *messenger, const char *action, messenger_listener listener,
               void *arg)
{
	return add_listener(messenger, action, listener, arg, true);
}

/* Of an action that nobody listens to any longer, nothing stays. */
static void
delete_action(struct messenger *messenger, struct action_listeners *action)
{
	enum { BUCKETS = sizeof messenger->actions / sizeof messenger->actions[0] };
	struct action_listeners **link = &messenger->actions[action->hash % BUCKETS];

	if (action == messenger->every) {
		messenger->every = NULL;
	} else {
		while (*link != action)
			link = &(*link)->next;
		*link = action->next;
	}
	if (messenger->last == action)
		messenger->last = NULL;
	free_action(action);
}

/* A listener is to be forgotten: after this message, so that its delivery does
 * not stumble. */
static void
remove_at(struct messenger *messenger, struct action_listeners *action, size_t i)
{
	action->list[i].removed = messenger->turn;
	if (!action->unswept) {
		action->unswept = true;
		action->next_unswept = messenger->unswept;
		messenger->unswept = action;
	}
}

static void
sweep(struct messenger *messenger)
{
	struct action_listeners *action;
	size_t from, to;

	while ((action = messenger->unswept) != NULL && !messenger->delivering) {
		messenger->unswept = action->next_unswept;
		action->unswept = false;
		for (from = to = 0; from < action->count; from++)
			if (action->list[from].removed == 0)
				action->list[to++] = action->list[from];
		action->count = to;
		if (to == 0)
			delete_action(messenger, action);
	}
}

int
messenger_remove_listener(struct messenger *messenger, const char *action,
                          messenger_listener listener, void *arg)
{
	struct action_listeners *found = messenger->every;
	struct listener *last;
	size_t i;

	if (action != NULL)
		found = find_action(messenger, action, strlen(action));
	for (i = found != NULL ? found->count : 0; i > 0; i--) {
		last = &found->list[i - 1];
		if (last->call != listener || last->arg != arg || last->removed != 0)
			continue;
		remove_at(messenger, found, i - 1);
		sweep(messenger);
		return 0;
	}
	errno = ENOENT;
	return -1;
}

/* What a callback returned: non-zero is an uncaught exception. */
static void
check(struct messenger *messenger, int result, const char *where)
{
	if (result == 0)
		return;
	if (messenger->on_uncaught != NULL)
		messenger->on_uncaught(messenger, result, where);
	else
		messenger->canceled = true;
}

static void
emit(struct messenger *messenger, struct action_listeners *action, const struct message *message)
{
	size_t i, count = action->count;
	const struct listener *listener;

	for (i = 0; i < count; i++) {
		listener = &action->list[i]; /* until a call: a listener may move the list */
		if (listener->added == messenger->turn)
			continue; /* and who was removed in this turn is still called */
		if (listener->once && listener->removed == 0)
			remove_at(messenger, action, i);
		if (trace_on)
			trace(messenger->role, "delivers", message, "to listener %zu of %zu", i + 1,
			      count);
		check(messenger, listener->call(messenger, message, listener->arg), "listener");
	}
}

/* this.on('egg-pids', pids => { this.opids = pids; }). Nobody tells them again, so
 * where memory is short it is asked for a moment; then those that fit are true. */
static void
on_egg_pids(struct messenger *messenger, const struct message *message)
{
	const char *at = message->data != NULL ? message->data : "";
	const char *comma;
	int64_t deadline = 0;
	size_t most = 1;
	pid_t *grown;
	int pid;

	for (comma = at; (comma = strchr(comma, ',')) != NULL; comma++)
		most++;
	while (most > messenger->opid_size) {
		grown = realloc(messenger->opids, most * sizeof *grown);
		if (grown != NULL) {
			messenger->opids = grown;
			messenger->opid_size = most;
		} else if (deadline == 0) {
			deadline = clock_now() + STARVED_TIMEOUT;
		} else if (clock_now() > deadline) {
			break;
		} else {
			poll(NULL, 0, 10);
		}
	}
	messenger->opid_count = 0;
	while (*at == '[' || *at == ',') {
		at++;
		pid = parse_digits(&at);
		if (pid <= 0 || messenger->opid_count == messenger->opid_size)
			break;
		messenger->opids[messenger->opid_count++] = pid;
	}
}

/* egg: _onMessage */
static void
deliver(struct messenger *messenger, const struct message *message)
{
	size_t length = message->frame[FRAME_ACTION_LENGTH];
	struct action_listeners *action;

	messenger->turn++;
	in_listener = messenger->delivering = true;
	if (message->from == ROLE_MASTER && strcmp(message->action, "egg-pids") == 0)
		on_egg_pids(messenger, message);
	if (messenger->every != NULL)
		emit(messenger, messenger->every, message);
	action = length > 0 ? find_action(messenger, message->action, length)
	                    : NULL; /* ipc.js:117 */
	if (action != NULL)
		emit(messenger, action, message); /* ipc.js:120 D6 */
	else if (trace_on)
		trace(messenger->role, "receives", message, "without a listener for its action");
	in_listener = messenger->delivering = false;
	if (messenger->unswept != NULL)
		sweep(messenger);
	if (message->handle != -1)
		close(message->handle);
}

/* ---- the loop ------------------------------------------------------------ */

static int wake[2] = {-1, -1};

int
wake_open(void)
{
	int i;

	wake_close();
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, wake) == -1)
		return -1;
	for (i = 0; i < 2; i++)
		if (fcntl(wake[i], F_SETFL, O_NONBLOCK) == -1 ||
		    fcntl(wake[i], F_SETFD, FD_CLOEXEC) == -1) {
			wake_close();
			return -1;
		}
	return wake[0];
}

int
catch_signal(int number, void (*handler)(int))
{
	struct sigaction action = {.sa_handler = handler};

	sigemptyset(&action.sa_mask);
	return sigaction(number, &action, NULL);
}

void
wake_up(void)
{
	int saved = errno;

	if (write(wake[1], "", 1) == -1) /* full is as good: it is awake */
		errno = saved;
}

void
wake_drain(int descriptor)
{
	char bytes[64];

	while (read(descriptor, bytes, sizeof bytes) > 0)
		;
}

void
wake_close(void)
{
	int i, saved = errno;

	for (i = 0; i < 2; i++) {
		if (wake[i] != -1)
			close(wake[i]);
		wake[i] = -1;
	}
	errno = saved;
}

int
messenger_watch(struct messenger *messenger, int descriptor, short events,
                messenger_watcher watcher, void *arg)
{
	struct watch *watches;
	struct pollfd *set;
	size_t i, size = 2 * messenger->watch_size + 2;

	if (descriptor < 0 || watcher == NULL) {
		errno = EINVAL;
		return -1;
	}
	for (i = 0; i < messenger->watch_count; i++)
		if (messenger->set[i + 1].fd == descriptor)
			break;
	if (i == messenger->watch_size) {
		watches = realloc(messenger->watches, size * sizeof *watches);
		if (watches == NULL)
			return -1;
		messenger->watches = watches;
		set = realloc(messenger->set, (size + 1) * sizeof *set);
		if (set == NULL)
			return -1;
		messenger->set = set;
		messenger->watch_size = size;
	}
	if (i == messenger->watch_count) {
		messenger->watch_count++;
		messenger->watches[i].connection = descriptor == messenger->accepted;
		messenger->connections += descriptor == messenger->accepted;
		messenger->set[i + 1].fd = descriptor;
		messenger->set[i + 1].revents = 0;
	}
	messenger->watches[i].call = watcher;
	messenger->watches[i].arg = arg;
	messenger->set[i + 1].events = events;
	return 0;
}

/* Close the gaps that unwatch leaves, but not while the loop walks over them. */
static void
compact_watches(struct messenger *messenger)
{
	size_t from, to = 0;

	for (from = 0; from < messenger->watch_count; from++) {
		if (messenger->set[from + 1].fd == -1)
			continue;
		messenger->watches[to] = messenger->watches[from];
		messenger->set[++to] = messenger->set[from + 1];
	}
	messenger->watch_count = to;
	messenger->unwatched = false;
}

int
messenger_unwatch(struct messenger *messenger, int descriptor)
{
	size_t i;

	for (i = 0; descriptor >= 0 && i < messenger->watch_count; i++) {
		if (messenger->set[i + 1].fd != descriptor)
			continue;
		messenger->connections -= messenger->watches[i].connection;
		messenger->set[i + 1].fd = -1;
		messenger->unwatched = true;
		if (!messenger->stepping)
			compact_watches(messenger);
		return 0;
	}
	errno = ENOENT;
	return -1;
}

/* The index of a pending timer; timer_count if there is none of that id. */
static size_t
find_timer(const struct messenger *messenger, int id)
{
	size_t i = 0;

	while (i < messenger->timer_count && messenger->timers[i].id != id)
		i++;
	return i;
}

static int
add_timer(struct messenger *messenger, int milliseconds, int period, messenger_timer call,
          void *arg)
{
	size_t size = messenger->timer_size > 0 ? 2 * messenger->timer_size : 4;
	struct timer *grown;

	if (milliseconds < 0 || call == NULL) {
		errno = EINVAL;
		return -1;
	}
	if (messenger->timer_count == messenger->timer_size) {
		grown = realloc(messenger->timers, size * sizeof *grown);
		if (grown == NULL)
			return -1;
		messenger->timers = grown;
		messenger->timer_size = size;
	}
	do /* an id that begins anew must not meet one that is pending */
		messenger->timer_id = messenger->timer_id < INT_MAX ? messenger->timer_id + 1 : 1;
	while (find_timer(messenger, messenger->timer_id) < messenger->timer_count);
	messenger->timers[messenger->timer_count++] = (struct timer){messenger->timer_id,
	                                                             messenger->timing,
	                                                             clock_now() + milliseconds,
	                                                             period,
	                                                             call,
	                                                             arg};
	return messenger->timer_id;
}

int
messenger_set_timeout(struct messenger *messenger, int milliseconds, messenger_timer timer,
                      void *arg)
{
	return add_timer(messenger, milliseconds, 0, timer, arg);
}

int
messenger_set_interval(struct messenger *messenger, int milliseconds, messenger_timer timer,
                       void *arg)
{
	return add_timer(messenger, milliseconds > 0 ? milliseconds : -1, milliseconds, timer, arg);
}

int
messenger_clear_timeout(struct messenger *messenger, int id)
{
	size_t i = find_timer(messenger, id);

	if (i == messenger->timer_count) {
		errno = ENOENT;
		return -1;
	}
	messenger->timers[i] = messenger->timers[--messenger->timer_count];
	return 0;
}

/* The timer that is due first, or NULL; of two, the one that was set first. */
static struct timer *
next_timer(const struct messenger *messenger)
{
	struct timer *timer, *first = NULL;
	size_t i;

	for (i = 0; i < messenger->timer_count; i++) {
		timer = &messenger->timers[i];
		if (!timer->fresh && (first == NULL || timer->due < first->due ||
		                      (timer->due == first->due && timer->id < first->id)))
			first = timer;
	}
	return first;
}

int
messenger_timeout(const struct messenger *messenger)
{
	const struct timer *timer = next_timer(messenger);
	int64_t left = timer != NULL ? timer->due - clock_now() : -1;

	if (timer == NULL)
		return -1;
	return left < 0 ? 0 : left > INT_MAX ? INT_MAX : (int)left;
}

/* Call those that are due now; what they set comes in a later turn. */
static void
run_timers(struct messenger *messenger)
{
	struct timer *timer, due;
	int64_t now;
	size_t i;

	if (messenger->timer_count == 0)
		return;
	now = clock_now();
	messenger->timing = true;
	while ((timer = next_timer(messenger)) != NULL && timer->due <= now) {
		due = *timer;
		if (due.period > 0)
			timer->due += (1 + (now - due.due) / due.period) * due.period;
		else
			*timer = messenger->timers[--messenger->timer_count];
		check(messenger, due.call(messenger, due.arg), "timer");
	}
	messenger->timing = false;
	for (i = 0; i < messenger->timer_count; i++)
		messenger->timers[i].fresh = false;
}

/* The channel has something to say, or is gone. */
static void
hear(struct messenger *messenger)
{
	enum peer peer = channel_read(&messenger->channel);
	struct message message;
	int found;

	while ((found = channel_next(&messenger->channel, &message)) == 1)
		deliver(messenger, &message);
	if (found == -1)
		peer = PEER_BROKEN;
	messenger->broken = peer == PEER_BROKEN;
	if (peer != PEER_ALIVE)
		channel_close(&messenger->channel);
}

static void
prepare(const struct messenger *messenger, struct pollfd *channel)
{
	channel->fd = messenger->channel.descriptor;
	channel->events = channel_pending(&messenger->channel) > 0 ? POLLIN | POLLOUT : POLLIN;
	channel->revents = 0;
}

size_t
messenger_descriptors(const struct messenger *messenger, struct pollfd *set, size_t size)
{
	struct pollfd channel;
	size_t i, count = 0;

	prepare(messenger, &channel);
	for (i = 0; i <= messenger->watch_count; i++) {
		if ((i == 0 ? channel.fd : messenger->set[i].fd) < 0)
			continue;
		if (count < size)
			set[count] = i == 0 ? channel : messenger->set[i];
		count++;
	}
	return count;
}

/* One turn, after poll(2) has filled the set. */
static void
dispatch(struct messenger *messenger)
{
	size_t i, count = messenger->watch_count;
	struct pollfd ready;

	if ((messenger->set[0].revents & POLLOUT) != 0)
		channel_flush(&messenger->channel); /* who waited for room finds it */
	if ((messenger->set[0].revents & ~POLLOUT) != 0)
		hear(messenger);
	for (i = 0; i < count; i++) {
		ready = messenger->set[i + 1];
		messenger->set[i + 1].revents = 0;
		if (ready.fd != -1 && ready.revents != 0)
			check(messenger,
			      messenger->watches[i].call(messenger, ready.fd, ready.revents,
			                                 messenger->watches[i].arg),
			      "watcher");
	}
	run_timers(messenger);
}

/* A turn begins: what was queued leaves. */
static int
begin_turn(struct messenger *messenger)
{
	if (messenger->stepping || in_listener) {
		errno = EBUSY;
		return -1;
	}
	channel_flush(&messenger->channel);
	messenger->flush_at = channel_pending(&messenger->channel) + CHANNEL_FLUSH_SIZE;
	return 0;
}

/* And goes on: wait, and do what there is to do; without a look, only what the
 * clock says. */
static int
end_turn(struct messenger *messenger, int timeout, bool look)
{
	int due = messenger_timeout(messenger);

	prepare(messenger, &messenger->set[0]);
	if (due >= 0 && (timeout < 0 || due < timeout))
		timeout = due;
	if (channel_starved()) { /* let time pass, then try again */
		messenger->set[0].fd = -1;
		timeout = timeout < 0 || timeout > 10 ? 10 : timeout;
	}
	if (look && poll(messenger->set, messenger->watch_count + 1, timeout) == -1 &&
	    errno != EINTR)
		return -1;
	messenger->stepping = true;
	dispatch(messenger);
	messenger->stepping = false;
	if (messenger->unwatched)
		compact_watches(messenger);
	if (messenger->canceled || messenger->broken) {
		errno = messenger->canceled ? ECANCELED : EPROTO;
		messenger->canceled = messenger->broken = false;
		return -1;
	}
	return messenger->channel.descriptor != -1;
}

int
messenger_step(struct messenger *messenger, int timeout)
{
	bool spoke = channel_pending(&messenger->channel) > 0, look;

	if (begin_turn(messenger) == -1)
		return -1;
	look = timeout != 0 || !spoke || channel_pending(&messenger->channel) > 0 ||
	       ++messenger->blind_turns == BLIND_TURNS;
	if (look)
		messenger->blind_turns = 0;
	return end_turn(messenger, timeout, look);
}

int
messenger_drain(struct messenger *messenger, size_t most)
{
	int result = 1;

	while (result == 1 && channel_pending(&messenger->channel) > most) {
		if (begin_turn(messenger) == -1)
			return -1;
		if (channel_pending(&messenger->channel) > most) /* else nobody would wake it */
			result = end_turn(messenger, -1, true);
	}
	return result;
}

/* ---- starting and leaving ------------------------------------------------ */

void
messenger_ready_later(struct messenger *messenger)
{
	messenger->ready_later = true;
}

int
messenger_ready(struct messenger *messenger, int status)
{
	if (messenger->ready || messenger->on_ready == NULL) {
		errno = EALREADY;
		return -1;
	}
	messenger->ready = true;
	messenger->on_ready(messenger, status);
	return 0;
}

int
messenger_before_close(struct messenger *messenger, messenger_callback callback, void *arg)
{
	struct closer **last = &messenger->closers;
	struct closer *closer = malloc(sizeof *closer);

	if (closer == NULL)
		return -1;
	*closer = (struct closer){NULL, callback, arg};
	while (*last != NULL)
		last = &(*last)->next;
	*last = closer;
	return 0;
}

bool
messenger_closing(const struct messenger *messenger)
{
	return messenger->closing;
}

int
messenger_run_closers(struct messenger *messenger)
{
	struct closer *closer;
	int failures = 0;

	messenger->closing = true;
	while ((closer = messenger->closers) != NULL) {
		messenger->closers = closer->next;
		failures += closer->call(messenger, closer->arg) != 0;
		free(closer);
	}
	return failures;
}

void
messenger_graceful_exit(struct messenger *messenger)
{
	messenger->graceful = messenger->graceful || messenger->role == ROLE_APP;
}

/* Take what comes, for nobody. */
static enum peer
read_for_nobody(struct channel *channel)
{
	enum peer peer = channel_read(channel);
	struct message message;
	int found;

	while ((found = channel_next(channel, &message)) == 1)
		if (message.handle != -1)
			close(message.handle);
	return found == -1 ? PEER_BROKEN : peer;
}

/* D22: what a send call accepted leaves before the process does. It reads too:
 * the master does not listen to who feeds itself and does not take it. */
static void
flush_at_exit(void)
{
	int64_t left, deadline = clock_now() + EXIT_FLUSH_TIMEOUT;
	struct pollfd wait = {.events = POLLIN | POLLOUT};

	if (own == NULL || own->pid != getpid())
		return;
	channel_disown(); /* exit(3) may stand in a listener, with messages behind its own */
	wait.fd = own->channel.descriptor;
	while (wait.fd != -1 && channel_flush(&own->channel) == PEER_ALIVE &&
	       channel_pending(&own->channel) > 0 && (left = deadline - clock_now()) > 0) {
		if (channel_starved())
			poll(NULL, 0, 10);
		else if (poll(&wait, 1, (int)left) == 1 && (wait.revents & ~POLLOUT) != 0 &&
		         read_for_nobody(&own->channel) != PEER_ALIVE)
			return;
	}
}

int
messenger_own(struct messenger *messenger)
{
	own = messenger;
	return atexit(flush_at_exit);
}

void
messenger_disown(void)
{
	struct messenger *messenger;

	own = NULL;
	in_listener = false;
	for (messenger = messengers; messenger != NULL; messenger = messenger->next)
		channel_close(&messenger->channel);
	channel_disown();
	wake_close();
}
