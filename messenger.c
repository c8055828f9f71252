/*
 * Which process receives a message (in the master), and what a child does with one.
 *
 * egg: egg-cluster/lib/utils/messenger.js (the master's side), to be read beside
 * this file: the numbers in the margin are its lines; egg/lib/core/messenger/ipc.js
 * (the child's side), and the loop that Node gives for free.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#define CLUTCH_PRIVATE
#include "messenger.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* How long an exit waits until what was sent is written out, in ms. */
#define EXIT_FLUSH_TIMEOUT 5000

/* The same for messenger_close. */
#define CLOSE_FLUSH_TIMEOUT 1000

/* How long a channel is left alone when the system was short of memory for it, in ms. */
#define SHORTAGE_PAUSE 10

/* How long nothing happens in a process before its queue's memory is freed, in ms. */
#define QUIET_TIME 1000

/* A line of the log, in bytes, its new line included. */
#define LOG_LINE 1024

/* The log is full: a line waits this long, in ms, before it is lost. */
#define LOG_PATIENCE 10

/* For this long, in ms, a line that a signal has interrupted is tried again. */
#define LOG_BLOCKED 900

/* A log that has lost a line after half of that gets no other line for this long, in ms. */
#define LOG_SILENCE 10000

/* ---- the master's side: egg-cluster/lib/utils/messenger.js --------------- */

static void send_to_master(struct master_messenger *messenger, struct message *data);
static void send_to_parent(struct master_messenger *messenger, struct message *data);
static void send_to_app_worker(struct master_messenger *messenger, struct message *data);
static void send_to_agent_worker(struct master_messenger *messenger, struct message *data);
static bool process_send(struct master_messenger *messenger, struct process *process,
                         struct message *data);

/* The message has no receiver. */
static void
reach_nobody(struct master_messenger *messenger, const struct message *data)
{
	clutch_trace("reaches nobody", NULL, data, "", 0);
	messenger->undeliverable += data->from != ROLE_MASTER;
}

/* egg's debug('%s -> %s, data: %j', data.from, data.to, data) */
static void
debug(const struct message *data, enum role claimed)
{
	const char *rule = data->receiver_pid != 0 ? "by its receiverPid"
	                   : claimed == ROLE_NONE  ? "by default"
	                                           : "by its to";

	clutch_trace("routes", NULL, data, rule, 0);
}

void
master_messenger_receive(struct master_messenger *messenger, struct process *sender,
                         struct message *msg)
{
	clutch_trace("receives", &sender->channel, msg, "", 0);
	msg->from = sender->role; /* :60 */
	messenger->sender = sender;
	master_messenger_send(messenger, msg); /* :61 */
	messenger->sender = NULL;
}

/* NOLINTBEGIN(readability-function-size): as long as the JavaScript that it mirrors */
void
master_messenger_send(struct master_messenger *messenger, struct message *data)
{
	const struct process *agent = messenger->worker_manager->agent;
	enum role claimed = data->to;

	if (data->from == ROLE_NONE)      /* :75 */
		data->from = ROLE_MASTER; /* :76 */

	/* recognise receiver_pid: whose is it? */
	if (data->receiver_pid != 0) {                                                /* :80 */
		if (data->receiver_pid == messenger->pid) {                           /* :81 */
			data->to = ROLE_MASTER;                                       /* :82 */
		} else if (agent != NULL && data->receiver_pid == agent->worker_id) { /* :83 D1 */
			data->to = ROLE_AGENT;                                        /* :84 */
		} else {                                                              /* :85 */
			data->to = ROLE_APP;                                          /* :86 */
		}
	}

	/* default rules from -> to */
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
	reach_nobody(messenger, data); /* D26 */
}
/* NOLINTEND(readability-function-size) */

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

	if (parent == NULL ||                       /* :145 has_parent */
	    !process_send(messenger, parent, data)) /* :148 */
		reach_nobody(messenger, data);
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
		/* D50: a message for all apps is heard by the worker that replaces this one */
		if (worker->is_dev_reload && data->receiver_pid == 0)
			continue;
		/* D23: what agent and parent say waits until the worker is forked */
		if (worker->state == STATE_NONE && data->from == ROLE_MASTER)
			continue;
		receivers += process_send(messenger, worker, data); /* :166 */
	}
	if (receivers == 0)
		reach_nobody(messenger, data);
}

/* message to the agent worker */
static void
send_to_agent_worker(struct master_messenger *messenger, struct message *data)
{
	struct process *agent = messenger->worker_manager->agent; /* :175 */

	/* D24: a dead agent's slot keeps what others send for the next one */
	if (agent != NULL && agent->channel.descriptor == -1 && data->from == ROLE_MASTER)
		return;
	/* a message with the dead agent's pid was not meant for the next one */
	if (agent == NULL || (agent->channel.descriptor == -1 && data->receiver_pid != 0) ||
	    !process_send(messenger, agent, data)) /* :176 */
		reach_nobody(messenger, data);
}

/* ---- the master's side: backpressure ------------------------------------- */

bool
process_is_above(const struct process *process, size_t mark)
{
	return channel_pending(&process->channel) > mark ||
	       process->channel.waiting_count > CHANNEL_HANDLES_MAX / 2;
}

/* The receivers for which a sender waits are a set of places, a bit for each: the parent's,
 * the agent's, each slot. */
static size_t
place(const struct process *process)
{
	return process->role == ROLE_APP ? 2 + (size_t)process->slot : process->role == ROLE_AGENT;
}

bool
process_waits_for(const struct process *sender, const struct process *receiver)
{
	size_t bit = receiver != NULL ? place(receiver) : 0;

	return receiver != NULL && (sender->waits_for[bit / 8] >> bit % 8 & 1) != 0 &&
	       receiver->state != STATE_DISCONNECTED &&
	       receiver->channel.limit == 0 && /* else there is no process to drain it */
	       process_is_above(receiver, CHANNEL_LOW_WATER);
}

bool
process_stop_waiting(struct process *sender, const struct worker_manager *manager)
{
	const struct process *worker;

	if (sender->waits_since == 0)
		return true;
	if (process_waits_for(sender, manager->parent) || process_waits_for(sender, manager->agent))
		return false;
	for (worker = manager->workers; worker != NULL; worker = worker->next)
		if (process_waits_for(sender, worker))
			return false;
	memset(sender->waits_for, 0, sizeof sender->waits_for);
	sender->waits_since = 0;
	clutch_trace("goes on", &sender->channel, NULL, "", 0);
	return true;
}

/* worker.send(data). A queue that is too long now makes the sender wait (D21). Where
 * there is no memory, the master tries again for a second, and then gives the receiver
 * up: a gap in what the receiver is sent would be worse. */
static bool
process_send(struct master_messenger *messenger, struct process *process, struct message *data)
{
	size_t bit = place(process);
	int handle = data->handle;
	int64_t deadline = 0;
	int result;

	while ((result = sendmessage(&process->channel, data)) == -1) {
		if ((errno == EMFILE || errno == ENOBUFS) && data->handle != -1) {
			data->handle = -1; /* the message is worth more than its handle */
			process->channel.handles_lost++;
		} else if (errno != ENOMEM || process->channel.descriptor == -1) {
			break; /* EPIPE: it is dying; ENOBUFS: it is not forked yet */
		} else if (channel_flush(&process->channel) == PEER_GONE ||
		           !clutch_retry(&deadline)) {
			process->killed_for = "no memory for its messages";
			process->channel.write_closed = true; /* no message behind the gap */
			break;
		}
	}
	clutch_trace(result == 0 ? "sends" : "drops", &process->channel, data, "", 0);
	data->handle = handle; /* the next receiver may have more luck */
	process->dropped += result == -1 && errno == ENOBUFS;
	/* A queue that has a limit has no process at its end to drain it. */
	if (result == 0 && messenger->sender != NULL && process->channel.limit == 0 &&
	    process_is_above(process, CHANNEL_HIGH_WATER)) {
		if ((messenger->sender->waits_for[bit / 8] >> bit % 8 & 1) == 0)
			clutch_trace("waits", &messenger->sender->channel, NULL,
			             clutch_role_name(process->role), process->slot);
		if (messenger->sender->waits_since == 0)
			messenger->sender->waits_since = clutch_now();
		messenger->sender->waits_for[bit / 8] |= (unsigned char)(1 << bit % 8);
	}
	return result == 0;
}

/* ---- version, trace and log ---------------------------------------------- */

const char *
clutch_version(void)
{
	return CLUTCH_VERSION;
}

/* All messengers of the process, and the one of its role. */
static struct messenger *messengers;
static struct messenger *own;

const char *
clutch_role_name(enum role role)
{
	static const char *const names[] = {"-", "master", "parent", "agent", "app"};

	return (unsigned)role <= ROLE_APP ? names[role] : "?";
}

/* A log that no process reads does not stop this one (D17): when the patience is over, the
 * line is lost. Another writer may fill the pipe between poll and write, so that write
 * blocks: the master sets an alarm, which interrupts it. */
static bool
write_line(int descriptor, const char *line, size_t length, int patience)
{
	struct pollfd log = {.fd = descriptor, .events = POLLOUT};
	int64_t deadline = clutch_now() + LOG_BLOCKED;
	ssize_t written = -1;
	int ready;

	do {
		ready = poll(&log, 1, patience);
		if (ready == 1)
			written = write(descriptor, line, length);
	} while (written == -1 && ready != 0 && errno == EINTR && clutch_now() < deadline);
	return written == (ssize_t)length;
}

void
clutch_print_line(int descriptor, const char *format, ...)
{
	char line[LOG_LINE] = "";
	va_list arguments;
	size_t length;

	va_start(arguments, format);
	vsnprintf(line, sizeof line, format, arguments);
	va_end(arguments);
	length = strlen(line);
	line[length++] = '\n';
	write_line(descriptor, line, length, LOG_PATIENCE);
}

struct clutch_logging clutch_logging = {.least = CLUTCH_INFO};
static const struct process its_master = {.role = ROLE_MASTER}; /* of an agent or an app */
static const char *const levels[] = {"ERROR", "WARN", "INFO"};
static unsigned long trace_lost;
static struct stream {
	unsigned long lost;
	int64_t silent_until;
} streams[2]; /* stdout, stderr */
bool clutch_log_alarm;

bool
clutch_log_set(const char *level)
{
	enum clutch_level *least = &clutch_logging.least;

	for (*least = CLUTCH_ERROR; *least <= CLUTCH_INFO; ++*least)
		if (strcasecmp(level, levels[*least]) == 0)
			return true;
	return false;
}

/* "2026-11-29 14:03:21.123 ERROR 3061 app 2: ", or "14:03:21.123 ERROR app 2: ". */
static size_t
put_head(char *line, enum clutch_level level, bool is_short)
{
	char time[24], pid[16] = "", slot[16] = "";
	struct timespec now;
	struct tm local;

	clock_gettime(CLOCK_REALTIME, &now);
	strftime(time, sizeof time, is_short ? "%H:%M:%S" : "%Y-%m-%d %H:%M:%S",
	         localtime_r(&now.tv_sec, &local));
	if (!is_short)
		snprintf(pid, sizeof pid, "%ld ", (long)getpid());
	if (clutch_logging.self.role == ROLE_APP)
		snprintf(slot, sizeof slot, " %d", clutch_logging.self.slot);
	return (size_t)sprintf(line, "%s.%03ld %s%s%s%s%s: ", time, now.tv_nsec / 1000000,
	                       is_short && level == CLUTCH_INFO ? "" : levels[level],
	                       is_short && level == CLUTCH_INFO ? "" : " ", pid,
	                       clutch_role_name(clutch_logging.self.role), slot);
}

/* Lines that find no room are counted, and the next one says how many were lost before it;
 * until then the process waits no more. */
void
clutch_log(enum clutch_level level, const char *format, ...)
{
	int standard = level == CLUTCH_INFO ? STDOUT_FILENO : STDERR_FILENO;
	int descriptor = clutch_logging.descriptor != 0 ? clutch_logging.descriptor : standard;
	struct stream *stream = &streams[descriptor == STDERR_FILENO];
	bool is_short = isatty(descriptor) == 1;
	char line[2 * LOG_LINE], *end = line, *text;
	int64_t before = clutch_now(), after;
	va_list arguments;

	if (level > clutch_logging.least)
		return;
	if (stream->lost > 0) {
		end += put_head(end, CLUTCH_WARN, is_short);
		end += sprintf(end, "the log was full: %lu lines are lost\n", stream->lost);
	}
	end += put_head(end, level, is_short);
	text = end;
	*text = '\0';
	va_start(arguments, format);
	vsnprintf(text, LOG_LINE, format, arguments);
	va_end(arguments);
	for (; *end != '\0'; end++)
		if ((unsigned char)*end < ' ' || *end == 127)
			*end = '?'; /* a stranger's text is no line */
	*end++ = '\n';
	if (clutch_log_alarm)
		alarm(1);
	if (before >= stream->silent_until &&
	    write_line(descriptor, line, (size_t)(end - line), stream->lost > 0 ? 0 : LOG_PATIENCE))
		stream->lost = 0;
	else
		stream->lost++;
	if (clutch_log_alarm)
		alarm(0);
	after = clutch_now();
	if (stream->lost > 0 && after - before > LOG_BLOCKED / 2)
		stream->silent_until = after + LOG_SILENCE;
}

#define TRACE_FORMAT                                                                               \
	"trace\t%lld\t%s:%d:%ld\t%lu\t%s\t%s:%d:%ld\t%ld\t%zu\t%s>%s:%ld\t%s %ld\t%s\t%ld\t"
#define NAME(process) clutch_role_name((process)->role), (process)->slot, (long)(process)->worker_id

/* Append the beginning of a text, 256 bytes. Control characters are escaped, so that no text
 * can imitate a field or a line. */
static char *
trace_text(char *end, const char *text, long length)
{
	for (length = length < LOG_LINE / 4 ? length : LOG_LINE / 4; length > 0; length--, text++)
		if ((unsigned char)*text < ' ' || *text == '\\' || *text == 127)
			end += sprintf(end, "\\x%02x", (unsigned char)*text);
		else
			*end++ = *text;
	return end;
}

/* One write(2) for each event, to a file that is opened for it, so that a traced process has
 * the same descriptors as any other. A line that cannot be written is counted, and the next
 * one says how many were lost before it; until then the process waits no more. */
static void
trace_event(const char *event, const struct channel *channel, const struct message *message,
            const char *detail, long value)
{
	static const struct message none = {.action = "", .handle = -1};
	const char *path = getenv("CLUTCH_TRACE"), *only = getenv("CLUTCH_TRACE_ACTION"), *action;
	bool to_file = path != NULL && strcmp(path, "1") != 0;
	char line[2 * LOG_LINE + 512], *end = line;
	int saved = errno, patience = trace_lost > 0 ? 0 : LOG_PATIENCE, file = STDERR_FILENO;
	long length = message == NULL || !message->data ? -1 : (long)message->data_length;
	const struct process *self = &clutch_logging.self;
	struct timespec now;

	channel = channel != NULL ? channel : &self->channel;
	message = message != NULL ? message : &none;
	action = message->action != NULL ? message->action : "";
	if (only != NULL && *only && strcmp(only, action) != 0)
		return;
	clock_gettime(CLOCK_MONOTONIC, &now);
	end += sprintf(end, TRACE_FORMAT, now.tv_sec * 1000000LL + now.tv_nsec / 1000, NAME(self),
	               trace_lost, event, NAME(channel->process != NULL ? channel->process : self),
	               (long)(strchr("sw", *event) ? channel->messages_out : channel->messages_in),
	               channel_pending(channel), clutch_role_name(message->from),
	               clutch_role_name(message->to), (long)message->receiver_pid, detail, value,
	               message->handle != -1 ? "handle" : "-", length);
	end = trace_text(end, action, (long)strlen(action));
	*end++ = '\t';
	end = trace_text(end, message->data, length);
	*end++ = '\n';
	if (to_file)
		file = open(path, O_WRONLY | O_APPEND | O_CREAT | O_NONBLOCK | O_CLOEXEC, 0600);
	if (file == -1 && trace_lost == 0)
		clutch_log(CLUTCH_WARN, "cannot write %s: %s", path, strerror(errno));
	trace_lost = write_line(file, line, (size_t)(end - line), patience) ? 0 : trace_lost + 1;
	if (to_file)
		close(file);
	errno = saved;
}

void
clutch_trace_init(enum role role, int slot)
{
	static pid_t counts; /* the process that has lost these lines */
	const char *wanted = getenv("CLUTCH_TRACE");

	clutch_tracer = wanted && *wanted && strcmp(wanted, "0") != 0 ? trace_event : NULL;
	if (getpid() != counts) /* a child has lost none */
		trace_lost = streams[0].lost = streams[1].lost = 0;
	counts = getpid();
	clutch_logging.self = (struct process){.role = role, .slot = slot, .worker_id = getpid()};
}

/* ---- the child's side: egg/lib/core/messenger/ipc.js --------------------- */

struct listener {
	unsigned key; /* of the action; 0: it hears every message */
	char *action;
	messenger_listener call;
	void *arg;
	bool once;
	bool removed; /* forgotten before the next message */
};

struct watch {
	int descriptor;
	messenger_watcher call;
	void *arg;
	bool connection; /* it counts as an open connection */
};

struct timer {
	int id;
	unsigned turn; /* in which it was set: it is called in a later one */
	int64_t due;
	int period; /* 0: once */
	messenger_timer call;
	void *arg;
};

struct closer {
	messenger_callback call;
	void *arg;
};

/* The messenger that delivers a message, or NULL: the message stands in the read buffer, so
 * that no loop of this process may read meanwhile. */
static const struct messenger *delivering;

static void end_channel(struct messenger *messenger);
static void tell_pause(struct messenger *messenger);
static int on_joined(struct messenger *loop, int descriptor, short revents, void *arg);

struct messenger *
messenger_open(int descriptor, enum role role)
{
	struct messenger *messenger = calloc(1, sizeof *messenger);

	if (messenger == NULL)
		return NULL;
	if (own == NULL) /* else the process has its name already, whatever it opens */
		clutch_trace_init(role, 0);
	channel_init(&messenger->channel, CHANNEL_QUEUE_MAX);
	messenger->channel.process = own == NULL ? &its_master : NULL;
	messenger->role = role;
	messenger->pid = getpid();
	messenger->slot = -1;
	messenger->accepted = -1;
	messenger->random = (unsigned)messenger->pid * 2654435761U;
	messenger->next = messengers;
	messengers = messenger;
	if (clutch_grow(&messenger->set, 0, sizeof *messenger->set) == 0 &&
	    channel_attach(&messenger->channel, descriptor) == 0)
		return messenger;
	messenger_close(messenger);
	return NULL;
}

static void
free_messenger(struct messenger *messenger)
{
	struct messenger **link = &messengers;

	while (*link != messenger)
		link = &(*link)->next;
	*link = messenger->next;
	while (messenger->listener_count > 0)
		free(messenger->listeners[--messenger->listener_count].action);
	free(messenger->listeners);
	free(messenger->closers);
	free(messenger->opids);
	free(messenger->watches);
	free(messenger->set);
	free(messenger->timers);
	free(messenger);
}

void
messenger_close(struct messenger *messenger)
{
	int timeout, saved = errno;
	struct messenger *at;

	if (messenger == NULL)
		return;
	timeout = messenger->loop == NULL ? CLOSE_FLUSH_TIMEOUT : 0;
	if (messenger->channel.descriptor != -1)
		channel_drain(&messenger->channel, timeout);
	end_channel(messenger);
	for (at = messengers; at != NULL; at = at->next)
		if (at->loop == messenger)
			at->loop = NULL;
	messenger->closed = true;
	if (!messenger->stepping) /* else on_joined frees it */
		free_messenger(messenger);
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
	if (messenger->channel.descriptor == -1)
		return clutch_fail(EPIPE);
	if (sendmessage(&messenger->channel, message) == -1)
		return -1;
	clutch_trace("sends", &messenger->channel, message, "", 0);
	return 0;
}

static struct message
compose(const char *action, const char *data, enum role to, pid_t receiver_pid)
{
	size_t length = data != NULL ? strlen(data) : 0;

	return (struct message){action, ROLE_NONE, to, receiver_pid, data, length, -1, NULL};
}

void
messenger_tell(struct messenger *messenger, enum role to, const char *action, const char *data)
{
	messenger->channel.limit = SIZE_MAX;
	while (messenger_send(messenger, action, data, to) == -1 && errno == ENOMEM)
		poll(NULL, 0, 10);
	messenger->channel.limit = CHANNEL_QUEUE_MAX;
}

int
messenger_broadcast(struct messenger *messenger, const char *action, const char *data)
{
	struct message message = compose(action, data, ROLE_APP, 0); /* ipc.js:39 */
	size_t size = 2 * message_size(&message);

	if (size == 0)
		return -1;
	if (channel_pending(&messenger->channel) + size > messenger->channel.limit)
		channel_flush(&messenger->channel);
	if (channel_pending(&messenger->channel) + size > messenger->channel.limit)
		return clutch_fail(ENOBUFS);
	if (messenger_send_message(messenger, &message) == -1)
		return -1;
	messenger_tell(messenger, ROLE_AGENT, action, data); /* ipc.js:40 */
	return 0;
}

int
messenger_send_to(struct messenger *messenger, pid_t pid, const char *action, const char *data)
{
	struct message message = compose(action, data, ROLE_NONE, pid); /* ipc.js:56 */

	if (pid <= 0)
		return clutch_fail(EINVAL);
	return messenger_send_message(messenger, &message);
}

int
messenger_send_random(struct messenger *messenger, const char *action, const char *data)
{
	size_t i;

	if (messenger->opid_count == 0) /* ipc.js:71 opids */
		return clutch_fail(ESRCH);
	i = (size_t)rand_r(&messenger->random) % messenger->opid_count;
	return messenger_send_to(messenger, messenger->opids[i], action, data);
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

/* An action's length and its last three bytes, which are compared first: in a family of
 * actions the beginnings are alike. */
static unsigned
key_of(const char *action, size_t length)
{
	unsigned key = (unsigned)length;
	size_t i;

	for (i = length > 3 ? length - 3 : 0; i < length; i++)
		key = key << 8 | (unsigned char)action[i];
	return key;
}

static int
add_listener(struct messenger *messenger, const char *action, messenger_listener call, void *arg,
             bool once)
{
	size_t length = action != NULL ? strlen(action) : 0;
	struct listener listener = {key_of(action, length), NULL, call, arg, once, false};

	if (call == NULL || (action != NULL && length == 0) || length > MESSAGE_ACTION_MAX)
		return clutch_fail(EINVAL);
	if (clutch_grow(&messenger->listeners, messenger->listener_count, sizeof listener) == -1)
		return -1;
	listener.action = strdup(action != NULL ? action : "");
	if (listener.action == NULL)
		return -1;
	messenger->listeners[messenger->listener_count++] = listener;
	messenger->hears_every = messenger->hears_every || action == NULL;
	messenger->hears_some = messenger->hears_some || action != NULL;
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

/* Forget what was removed, but not while the list is being walked. */
static void
sweep(struct messenger *messenger)
{
	struct listener *list = messenger->listeners;
	size_t from, to = 0;

	if (delivering == messenger || !messenger->unswept)
		return;
	for (from = 0; from < messenger->listener_count; from++)
		if (list[from].removed)
			free(list[from].action);
		else
			list[to++] = list[from];
	messenger->listener_count = to;
	messenger->unswept = false;
}

int
messenger_remove_listener(struct messenger *messenger, const char *action,
                          messenger_listener listener, void *arg)
{
	const char *wanted = action != NULL ? action : "";
	struct listener *at;
	size_t i;

	for (i = messenger->listener_count; i > 0; i--) {
		at = &messenger->listeners[i - 1];
		if (at->removed || at->call != listener || at->arg != arg ||
		    (action == NULL) != (at->key == 0) || strcmp(at->action, wanted) != 0)
			continue;
		at->removed = messenger->unswept = true;
		sweep(messenger);
		return 0;
	}
	return clutch_fail(ENOENT);
}

/* A callback has returned: non-zero is an uncaught exception. */
static void
check(struct messenger *messenger, int result, const char *where, const char *action)
{
	char name[MESSAGE_ACTION_MAX + 32];

	if (result == 0)
		return;
	clutch_trace("fails", NULL, NULL, where, result);
	snprintf(name, sizeof name, *action != '\0' ? "%s of \"%s\"" : "%s", where, action);
	if (messenger->on_uncaught != NULL)
		messenger->on_uncaught(messenger, result, name);
	else
		messenger->canceled = true;
}

/* Call those of the first `count` listeners that were added for the message's action, or,
 * with an empty action, for every message. A listener that is added meanwhile stands behind
 * them; one that is removed meanwhile is still called. Returns how many were called. */
static size_t
emit(struct messenger *messenger, size_t count, const char *action, size_t length,
     const struct message *message)
{
	struct messenger *loop = messenger->loop != NULL ? messenger->loop : messenger;
	unsigned key = key_of(action, length);
	const struct listener *listener;
	size_t i, called = 0;

	for (i = 0; i < count && !messenger->closed; i++) {
		listener = &messenger->listeners[i]; /* valid until the call: the list may move */
		if (listener->key != key || memcmp(listener->action, action, length) != 0)
			continue;
		if (listener->once)
			messenger->listeners[i].removed = messenger->unswept = true;
		called++;
		clutch_trace("delivers", &messenger->channel, message, "listener", (long)called);
		check(loop, listener->call(messenger, message, listener->arg), "listener",
		      message->action);
	}
	return called;
}

/* this.on('egg-pids', pids => { this.opids = pids; }). The master sends this list once: if
 * there is no memory for the list, the process waits until there is. */
static void
on_egg_pids(struct messenger *messenger, const struct message *message)
{
	const char *at = message->data != NULL ? message->data : "";
	char *end;
	long pid;

	messenger->opid_count = 0;
	while (*at == '[' || *at == ',') {
		pid = strtol(at + 1, &end, 10);
		if (pid <= 0 || pid > INT_MAX)
			return;
		while (clutch_grow(&messenger->opids, messenger->opid_count, sizeof(pid_t)) == -1)
			poll(NULL, 0, 10);
		messenger->opids[messenger->opid_count++] = (pid_t)pid;
		at = end;
	}
}

/* Is this what messenger_pause tells a master? At the other end of a joined messenger there may
 * be a process that pauses; this process is no master, and its listeners hear nothing of that. */
static bool
is_about_a_pause(const struct message *message)
{
	return message->to == ROLE_MASTER && (strcmp(message->action, "clutch-pause") == 0 ||
	                                      strcmp(message->action, "clutch-resume") == 0);
}

/* egg: _onMessage */
static void
deliver(struct messenger *messenger, struct message *message)
{
	bool by_master = message->from == ROLE_MASTER && messenger->loop == NULL;
	size_t count, length = message->frame[FRAME_ACTION_LENGTH];

	message->frame = NULL; /* a listener may send on what it hears, changed or not */
	clutch_trace("hears", &messenger->channel, message, "", 0);
	if (by_master && strcmp(message->action, "clutch-barrier") == 0) {
		messenger_tell(messenger, ROLE_MASTER, "clutch-barrier", NULL); /* D50 */
		return;
	}
	count = is_about_a_pause(message) ? 0 : messenger->listener_count;
	delivering = messenger;
	if (by_master && strcmp(message->action, "egg-pids") == 0)
		on_egg_pids(messenger, message);
	if (messenger->hears_every)
		emit(messenger, count, "", 0, message); /* ipc.js:120 D6 */
	if (length == 0 || !messenger->hears_some ||
	    emit(messenger, count, message->action, length, message) == 0)
		clutch_trace("ignores", &messenger->channel, message, "", 0);
	delivering = NULL;
	sweep(messenger);
	if (message->handle != -1)
		close(message->handle);
}

/* ---- the loop ------------------------------------------------------------ */

static int wake[2] = {-1, -1};

int
clutch_wake_open(void)
{
	clutch_wake_close();
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, wake) == 0 && clutch_set_flags(wake[0]) == 0 &&
	    clutch_set_flags(wake[1]) == 0)
		return wake[0];
	clutch_wake_close();
	return -1;
}

int
clutch_catch_signal(int number, void (*handler)(int))
{
	struct sigaction action = {.sa_handler = handler};

	sigemptyset(&action.sa_mask);
	return sigaction(number, &action, NULL);
}

void
clutch_wake_up(void)
{
	int saved = errno;

	if (write(wake[1], "", 1) == -1) /* full is as good: it is awake */
		errno = saved;
}

void
clutch_wake_drain(int descriptor)
{
	char bytes[64];

	while (read(descriptor, bytes, sizeof bytes) > 0)
		;
}

void
clutch_wake_close(void)
{
	int i;

	for (i = 0; i < 2; i++) {
		if (wake[i] != -1)
			close(wake[i]);
		wake[i] = -1;
	}
}

/* The index of a watch; watch_count if the descriptor is not watched. */
static size_t
find_watch(const struct messenger *messenger, int descriptor)
{
	size_t i = 0;

	while (i < messenger->watch_count && messenger->watches[i].descriptor != descriptor)
		i++;
	return i;
}

int
messenger_watch(struct messenger *messenger, int descriptor, short events,
                messenger_watcher watcher, void *arg)
{
	size_t i = find_watch(messenger, descriptor);

	if (descriptor < 0 || watcher == NULL || messenger->loop != NULL)
		return clutch_fail(EINVAL);
	if (i == messenger->watch_count) {
		if (clutch_grow(&messenger->watches, i, sizeof *messenger->watches) == -1 ||
		    clutch_grow(&messenger->set, i + 1, sizeof *messenger->set) == -1)
			return -1;
		messenger->watch_count++;
		messenger->watches[i] = (struct watch){.descriptor = descriptor};
		messenger->set[i + 1] = (struct pollfd){.fd = descriptor};
	}
	if (descriptor == messenger->accepted && !messenger->watches[i].connection)
		messenger->connections += messenger->watches[i].connection = true;
	messenger->watches[i].call = watcher;
	messenger->watches[i].arg = arg;
	messenger->set[i + 1].events = events;
	return 0;
}

int
messenger_watch_connection(struct messenger *messenger, int descriptor, short events,
                           messenger_watcher watcher, void *arg)
{
	int accepted = messenger->accepted, result;

	messenger->accepted = descriptor;
	result = messenger_watch(messenger, descriptor, events, watcher, arg);
	messenger->accepted = accepted;
	return result;
}

int
messenger_unwatch(struct messenger *messenger, int descriptor)
{
	size_t behind, i = find_watch(messenger, descriptor);

	if (i == messenger->watch_count)
		return clutch_fail(ENOENT);
	behind = --messenger->watch_count - i;
	messenger->connections -= messenger->watches[i].connection;
	memmove(&messenger->watches[i], &messenger->watches[i + 1],
	        behind * sizeof *messenger->watches);
	memmove(&messenger->set[i + 1], &messenger->set[i + 2], behind * sizeof *messenger->set);
	if (i < messenger->watch_next)
		messenger->watch_next--; /* the loop walks over them just now */
	return 0;
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

/* Timers stand in order of being due; of two, the one that was set first. */
static void
insert_timer(struct messenger *messenger, struct timer timer)
{
	size_t i = messenger->timer_count++;

	for (; i > 0 && messenger->timers[i - 1].due > timer.due; i--)
		messenger->timers[i] = messenger->timers[i - 1];
	messenger->timers[i] = timer;
}

static void
remove_timer(struct messenger *messenger, size_t i)
{
	memmove(&messenger->timers[i], &messenger->timers[i + 1],
	        (--messenger->timer_count - i) * sizeof *messenger->timers);
}

static int
add_timer(struct messenger *messenger, int milliseconds, int period, messenger_timer call,
          void *arg)
{
	struct timer timer = {.turn = messenger->turn, .period = period, .call = call, .arg = arg};

	if (milliseconds < 0 || call == NULL || messenger->loop != NULL)
		return clutch_fail(EINVAL);
	if (clutch_grow(&messenger->timers, messenger->timer_count, sizeof timer) == -1)
		return -1;
	do /* an id that begins anew must not meet one that is pending */
		messenger->timer_id = messenger->timer_id < INT_MAX ? messenger->timer_id + 1 : 1;
	while (find_timer(messenger, messenger->timer_id) < messenger->timer_count);
	timer.id = messenger->timer_id;
	timer.due = clutch_now() + milliseconds;
	insert_timer(messenger, timer);
	return timer.id;
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

	if (i == messenger->timer_count)
		return clutch_fail(ENOENT);
	remove_timer(messenger, i);
	return 0;
}

/* Those that a loop turns: itself, and the joined ones. */
static struct messenger *
next_turned(const struct messenger *loop, const struct messenger *last)
{
	struct messenger *next = last == NULL ? messengers : last->next;

	while (next != NULL && next != loop && next->loop != loop)
		next = next->next;
	return next;
}

/* Where poll(2) finds the channel of one of them. */
static struct pollfd *
entry_of(const struct messenger *messenger)
{
	const struct messenger *loop = messenger->loop;

	return loop == NULL ? &messenger->set[0]
	                    : &loop->set[1 + find_watch(loop, messenger->channel.descriptor)];
}

/* Have messages waited for the end of a pause? */
static bool
may_go_on(const struct messenger *messenger)
{
	return messenger->has_unread && !messenger->paused;
}

int
messenger_timeout(const struct messenger *messenger)
{
	const struct messenger *at = NULL;
	int64_t left = INT64_MAX;

	if (messenger->timer_count > 0)
		left = messenger->timers[0].due - clutch_now();
	while ((at = next_turned(messenger, at)) != NULL)
		if (may_go_on(at))
			left = 0;
		else if (at->channel.starved && left > SHORTAGE_PAUSE)
			left = SHORTAGE_PAUSE;
	return left == INT64_MAX ? -1 : left > 0 ? (int)left : 0;
}

/* Call those that are due now; what they set comes in a later turn. */
static void
run_timers(struct messenger *messenger)
{
	int64_t now = clutch_now();
	struct timer due;

	messenger->turn++;
	while (messenger->timer_count > 0 && messenger->timers[0].due <= now &&
	       messenger->timers[0].turn != messenger->turn) {
		due = messenger->timers[0];
		remove_timer(messenger, 0);
		if (due.period > 0) {
			due.due += (1 + (now - due.due) / due.period) * due.period;
			insert_timer(messenger, due);
		}
		check(messenger, due.call(messenger, due.arg), "timer", "");
	}
}

/* The channel can be read, or its peer is gone. A listener may pause the messenger: then
 * the messages behind its own wait. */
static void
hear(struct messenger *messenger)
{
	struct messenger *loop = messenger->loop;
	struct channel *channel = &messenger->channel;
	enum peer peer = channel_read(channel);
	struct message message;
	int found, error;

	do
		if ((found = channel_next(channel, &message)) == 1)
			deliver(messenger, &message);
	while (found == 1 && !messenger->paused);
	messenger->has_unread = found == 1; /* paused: there may be more */
	if (peer == PEER_ALIVE && found != -1)
		return;
	clutch_trace("ends", &messenger->channel, NULL, "", 0);
	end_channel(messenger);
	error = peer == PEER_BROKEN || found == -1 ? EPROTO : 0;
	if (loop == NULL)
		messenger->broken = error != 0;
	else if (messenger->ended != NULL && !messenger->closed)
		check(loop, messenger->ended(messenger, error, messenger->arg), "joined end", "");
}

/* The channel's part of a turn. */
static void
serve(struct messenger *messenger, short revents)
{
	if ((revents & POLLOUT) != 0)
		channel_flush(&messenger->channel); /* a callback that needs room finds it */
	if ((revents & ~POLLOUT) == 0)
		return;
	messenger->paused = false; /* a hangup ends a pause */
	hear(messenger);
}

/* What poll(2) waits for at a channel. During a shortage poll would return at once: then the
 * channel is left out. */
static void
prepare_entry(const struct messenger *messenger, struct pollfd *entry)
{
	entry->fd = messenger->channel.starved ? -1 : messenger->channel.descriptor;
	entry->events = messenger->paused ? 0 : POLLIN;
	if (channel_pending(&messenger->channel) > 0)
		entry->events |= POLLOUT;
	entry->revents = 0;
}

/* At all channels. There may be thousands: none is looked up. */
static void
prepare(const struct messenger *loop)
{
	size_t i;

	prepare_entry(loop, &loop->set[0]);
	for (i = 0; i < loop->watch_count; i++)
		if (loop->watches[i].call == on_joined)
			prepare_entry(loop->watches[i].arg, &loop->set[i + 1]);
}

size_t
messenger_descriptors(const struct messenger *messenger, struct pollfd *set, size_t size)
{
	size_t i, count = 0;

	prepare(messenger);
	for (i = 0; i <= messenger->watch_count; i++)
		if (messenger->set[i].fd != -1 && count++ < size)
			set[count - 1] = messenger->set[i];
	return count;
}

/* Do what there is to do, after poll(2) has filled the set. */
static void
dispatch(struct messenger *messenger)
{
	const struct watch *watch;
	short revents;

	serve(messenger, messenger->set[0].revents);
	for (messenger->watch_next = 0; messenger->watch_next < messenger->watch_count;) {
		watch = &messenger->watches[messenger->watch_next++];
		revents = messenger->set[messenger->watch_next].revents;
		messenger->set[messenger->watch_next].revents = 0;
		if (revents != 0)
			check(messenger,
			      watch->call(messenger, watch->descriptor, revents, watch->arg),
			      "watcher", "");
	}
	run_timers(messenger);
}

/* poll(2), and if nothing happens for a while: the queues' memory is not needed now. */
static int
wait_for_events(struct messenger *messenger, int timeout)
{
	nfds_t count = messenger->watch_count + 1;
	bool keeps = false, quiet = timeout < 0 || timeout > QUIET_TIME;
	struct messenger *at = NULL;
	int ready;

	while ((at = next_turned(messenger, at)) != NULL)
		keeps = keeps || at->channel.queue_size > 0;
	quiet = quiet && keeps;
	ready = poll(messenger->set, count, quiet ? QUIET_TIME : timeout);
	if (ready != 0 || !quiet)
		return ready;
	while ((at = next_turned(messenger, at)) != NULL) {
		at->channel.queue_used = false;
		channel_trim(&at->channel);
	}
	return poll(messenger->set, count, timeout < 0 ? -1 : timeout - QUIET_TIME);
}

/* Write what is queued, and, unless less than `least` bytes wait then, take a turn. */
static int
turn(struct messenger *messenger, size_t least, int timeout)
{
	struct messenger *at = NULL;
	int due;

	if (messenger->stepping || messenger->loop != NULL || delivering != NULL)
		return clutch_fail(EBUSY);
	while ((at = next_turned(messenger, at)) != NULL) {
		channel_flush(&at->channel);
		tell_pause(at);
	}
	if (channel_pending(&messenger->channel) < least)
		return 1;
	due = messenger_timeout(messenger);
	prepare(messenger);
	if (due >= 0 && (timeout < 0 || due < timeout))
		timeout = due;
	while ((at = next_turned(messenger, at)) != NULL)
		channel_take_starved(&at->channel); /* the next turn tries again */
	if (wait_for_events(messenger, timeout) == -1 && errno != EINTR)
		return -1;
	while ((at = next_turned(messenger, at)) != NULL)
		if (may_go_on(at))
			entry_of(at)->revents |= POLLIN;
	messenger->stepping = true;
	dispatch(messenger);
	messenger->stepping = false;
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
	return turn(messenger, 0, timeout);
}

int
messenger_drain(struct messenger *messenger, size_t most)
{
	int result = 1;

	while (result == 1 && channel_pending(&messenger->channel) > most)
		result = turn(messenger, most + 1, -1);
	return result;
}

/* ---- several messengers, one loop ----------------------------------------- */

/* Close the channel, and let the loop that has turned it know it no more. */
static void
end_channel(struct messenger *messenger)
{
	if (messenger->loop != NULL)
		messenger_unwatch(messenger->loop, messenger->channel.descriptor);
	messenger->loop = NULL;
	channel_close(&messenger->channel);
}

/* A callback may close the messenger: its memory goes when no callback of it runs. */
static int
on_joined(struct messenger *loop, int descriptor, short revents, void *arg)
{
	struct messenger *joined = arg;

	(void)loop, (void)descriptor;
	joined->stepping = true;
	serve(joined, revents);
	joined->stepping = false;
	if (joined->closed)
		free_messenger(joined);
	return 0;
}

int
messenger_join(struct messenger *messenger, struct messenger *loop, messenger_end ended, void *arg)
{
	if (messenger == loop || messenger == own || messenger->loop != NULL ||
	    loop->loop != NULL || messenger->watch_count > 0 || messenger->timer_count > 0)
		return clutch_fail(EINVAL);
	if (messenger->stepping)
		return clutch_fail(EBUSY);
	if (messenger->channel.descriptor == -1)
		return clutch_fail(EPIPE);
	if (messenger_watch(loop, messenger->channel.descriptor, POLLIN, on_joined, messenger) ==
	    -1)
		return -1;
	messenger->loop = loop;
	messenger->ended = ended;
	messenger->arg = arg;
	return 0;
}

/* ---- pausing ------------------------------------------------------------- */

/* Tell the other end, if it does not know. Where the queue is full the next turn does that, or
 * a process that pauses again and again would fill its memory. */
static void
tell_pause(struct messenger *messenger)
{
	bool paused = messenger->paused;

	if (paused == messenger->told_paused ||
	    channel_pending(&messenger->channel) >= CHANNEL_QUEUE_MAX)
		return;
	messenger->told_paused = paused;
	messenger_tell(messenger, ROLE_MASTER, paused ? "clutch-pause" : "clutch-resume", NULL);
}

int
messenger_pause(struct messenger *messenger)
{
	if (messenger->channel.descriptor == -1)
		return clutch_fail(EPIPE);
	messenger->paused = true;
	tell_pause(messenger);
	return 0;
}

int
messenger_resume(struct messenger *messenger)
{
	messenger->paused = false;
	tell_pause(messenger);
	return 0;
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
	if (messenger->ready || messenger->on_ready == NULL)
		return clutch_fail(EALREADY);
	messenger->ready = true;
	messenger->on_ready(messenger, status);
	return 0;
}

int
messenger_before_close(struct messenger *messenger, messenger_callback callback, void *arg)
{
	struct closer closer = {callback, arg};

	if (clutch_grow(&messenger->closers, messenger->closer_count, sizeof closer) == -1)
		return -1;
	messenger->closers[messenger->closer_count++] = closer;
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
	int failures = 0;
	struct closer closer;

	messenger->closing = true;
	while (messenger->closers_run < messenger->closer_count) {
		closer = messenger->closers[messenger->closers_run++];
		failures += closer.call(messenger, closer.arg) != 0;
	}
	return failures;
}

void
messenger_graceful_exit(struct messenger *messenger)
{
	messenger->graceful = messenger->graceful || messenger->role == ROLE_APP;
}

/* D22: what a send call accepted is written before the process ends. It hears meanwhile,
 * without listeners: the master stops reading from a process whose own incoming queue is full
 * (D21), so that a process that sends to itself would wait for ever. */
void
messenger_flush_own(void)
{
	int64_t deadline = clutch_now() + EXIT_FLUSH_TIMEOUT;
	struct messenger *at = NULL;

	if (own == NULL || own->pid != getpid())
		return;
	while ((at = next_turned(own, at)) != NULL)
		channel_flush(&at->channel);
	own->listener_count = 0; /* exit(3) may be called by one of them */
	own->paused = false;
	while (channel_drain(&own->channel, 10) == PEER_ALIVE &&
	       channel_pending(&own->channel) > 0 && clutch_now() < deadline)
		hear(own);
}

int
messenger_own(struct messenger *messenger)
{
	own = messenger;
	return atexit(messenger_flush_own);
}

void
messenger_disown(void)
{
	struct messenger *messenger;

	own = NULL;
	delivering = NULL;
	for (messenger = messengers; messenger != NULL; messenger = messenger->next)
		channel_close(&messenger->channel);
	clutch_wake_close();
}
