/*
 * One message, one channel: frames, queues, read, write.
 *
 * egg: npm sendmessage/index.js, and the IPC channel that Node gives for free
 *
 * A message is copied once: from the read buffer, or from the caller's memory, into
 * the queue of its receiver. A queue that passes CHANNEL_FLUSH_SIZE is written at once,
 * the others are written at the end of the turn: hundreds of messages leave in one
 * system call.
 *
 *	read buffer   | frame | frame | frame | frame | fra      <- torn
 *	                  |       |       |       |
 *	                  v       v       v       v    memcpy
 *	queue of app 1    |-------|---------------|
 *	queue of app 2            |-------|
 *
 * The read buffer belongs to the process, not to a channel. At the end of a read a frame
 * may be torn: its first bytes are kept in its channel, and the next read continues there.
 */
#define CLUTCH_PRIVATE
#include "messenger.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* The first memory of a queue, in bytes. */
#define QUEUE_LEAST 256

/* An empty queue keeps at most this much memory for the next burst, in bytes: memory
 * that is freed at each drain is paged in anew by each burst. */
#define QUEUE_KEEP (4 * CHANNEL_FLUSH_SIZE)

/* A line of the log, in bytes, its new line included. */
#define LOG_LINE 1024

/* The log is full: a line waits so long, in milliseconds, before it is lost. */
#define LOG_PATIENCE 10

/* A handle that came, but that this process had no descriptor left for. */
#define HANDLE_LOST (-2)

typedef char queue_holds_the_largest_frame[CHANNEL_QUEUE_MAX >= FRAME_MAX ? 1 : -1];
typedef char pid_fits_its_field[sizeof(pid_t) <= sizeof(uint32_t) ? 1 : -1];

/* The read buffer: one for the process, lent to one reader at a time. */
static struct {
	struct channel *reader;
	size_t next, end;                       /* what the reader has not taken yet */
	unsigned char *mended;                  /* the torn frame that was completed last */
	unsigned char bytes[CHANNEL_READ_SIZE]; /* last: a short read touches one page */
} buffer;

bool clutch_trace_on;

static uint32_t
get32(const unsigned char *p)
{
	return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | (uint32_t)p[3];
}

static void
put32(unsigned char *p, uint32_t value)
{
	p[0] = (unsigned char)(value >> 24);
	p[1] = (unsigned char)(value >> 16);
	p[2] = (unsigned char)(value >> 8);
	p[3] = (unsigned char)value;
}

int64_t
clutch_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* ---- frames -------------------------------------------------------------- */

static size_t
frame_size(const unsigned char *frame)
{
	return (size_t)get32(frame + FRAME_LENGTH) + 4;
}

size_t
message_size(const struct message *message)
{
	size_t action = message->action != NULL ? strlen(message->action) : 0;

	if ((unsigned)message->from > ROLE_APP || (unsigned)message->to > ROLE_APP ||
	    message->receiver_pid < 0 || (message->data == NULL && message->data_length != 0)) {
		errno = EINVAL;
		return 0;
	}
	if (action > MESSAGE_ACTION_MAX || message->data_length > MESSAGE_DATA_MAX) {
		errno = EMSGSIZE;
		return 0;
	}
	return FRAME_HEADER + action + 1 + message->data_length + 1;
}

/* A valid message as a frame of message_size bytes. */
static void
frame_encode(unsigned char *frame, size_t size, const struct message *message)
{
	size_t action = size - FRAME_HEADER - 2 - message->data_length;
	unsigned char *data = frame + FRAME_HEADER + action + 1;

	put32(frame + FRAME_LENGTH, (uint32_t)(size - 4));
	frame[FRAME_FLAGS] = message->data != NULL ? FRAME_HAS_DATA : 0;
	frame[FRAME_ACTION_LENGTH] = (unsigned char)action;
	put32(frame + FRAME_RECEIVER_PID, (uint32_t)message->receiver_pid);
	if (action > 0)
		memcpy(frame + FRAME_HEADER, message->action, action);
	data[-1] = 0;
	if (message->data_length > 0)
		memcpy(data, message->data, message->data_length);
	frame[size - 1] = 0;
}

/* The header, as soon as it is complete: nothing is kept for a frame that lies.
 * The size is what it announces. */
static bool
frame_header_valid(const unsigned char *frame, size_t size)
{
	size_t least = FRAME_HEADER + (size_t)frame[FRAME_ACTION_LENGTH] + 2;

	return size >= least && size - least <= MESSAGE_DATA_MAX &&
	       (size == least || (frame[FRAME_FLAGS] & FRAME_HAS_DATA) != 0) &&
	       frame[FRAME_FROM] <= ROLE_APP && frame[FRAME_TO] <= ROLE_APP &&
	       frame[FRAME_FLAGS] <= (FRAME_HAS_DATA | FRAME_HAS_HANDLE) &&
	       frame[FRAME_RECEIVER_PID] <= 0x7f;
}

/* The whole frame, its header being valid. */
static inline bool
frame_decode(unsigned char *frame, size_t size, struct message *message)
{
	size_t action = frame[FRAME_ACTION_LENGTH], i;
	unsigned char *data = frame + FRAME_HEADER + action + 1;

	for (i = 0; i < action; i++) /* it is short: quicker than a call of memchr */
		if (frame[FRAME_HEADER + i] == 0)
			return false;
	if (data[-1] != 0 || frame[size - 1] != 0)
		return false;
	message->action = (char *)frame + FRAME_HEADER;
	message->from = (enum role)frame[FRAME_FROM];
	message->to = (enum role)frame[FRAME_TO];
	message->receiver_pid = (pid_t)get32(frame + FRAME_RECEIVER_PID);
	message->data = (frame[FRAME_FLAGS] & FRAME_HAS_DATA) != 0 ? (char *)data : NULL;
	message->data_length = size - FRAME_HEADER - action - 2;
	message->handle = -1;
	message->frame = frame;
	return true;
}

/* ---- the channel's life -------------------------------------------------- */

int
channel_pair(int descriptors[2])
{
	int size = CHANNEL_SOCKET_BUFFER;
	int i;

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, descriptors) == -1)
		return -1;
	for (i = 0; i < 2 && size > 0; i++) /* a smaller buffer is slower, not wrong */
		setsockopt(descriptors[i], SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
	return 0;
}

void
channel_init(struct channel *channel, size_t limit)
{
	const char *wanted = getenv("CLUTCH_TRACE");

	clutch_trace_on = wanted != NULL && strcmp(wanted, "1") == 0;
	memset(channel, 0, sizeof *channel);
	channel->descriptor = -1;
	channel->limit = limit;
	channel->flush_at = CHANNEL_FLUSH_SIZE;
}

int
channel_attach(struct channel *channel, int descriptor)
{
	int flags = fcntl(descriptor, F_GETFL);

	assert(channel->descriptor == -1);
	if (flags == -1 || fcntl(descriptor, F_SETFL, flags | O_NONBLOCK) == -1 ||
	    fcntl(descriptor, F_SETFD, FD_CLOEXEC) == -1)
		return -1;
	channel->descriptor = descriptor;
	return 0;
}

/* Drop what waits to be written: nobody reads it any more. */
static void
close_writing(struct channel *channel)
{
	while (channel->waiting_count > 0)
		close(channel->waiting[--channel->waiting_count].descriptor);
	free(channel->waiting);
	channel->waiting = NULL;
	channel->waiting_size = 0;
	free(channel->queue);
	channel->queue = NULL;
	channel->queue_start = channel->queue_end = channel->queue_size = 0;
	channel->write_closed = true;
}

/* Drop what is left of an incomplete frame. */
static void
drop_torn(struct channel *channel)
{
	free(channel->torn);
	channel->torn = NULL;
	channel->torn_size = channel->torn_length = 0;
}

void
channel_close(struct channel *channel)
{
	close_writing(channel);
	drop_torn(channel);
	if (buffer.reader == channel)
		buffer.reader = NULL;
	while (channel->arrived_count > 0)
		if (channel->arrived[--channel->arrived_count] >= 0)
			close(channel->arrived[channel->arrived_count]);
	if (channel->descriptor != -1)
		close(channel->descriptor);
	channel->descriptor = -1;
}

/* ---- writing ------------------------------------------------------------- */

/* Make room for `size` more bytes at the queue's end; NULL: ENOMEM. Written bytes at its
 * start are reused when they are the greater part, and otherwise the queue doubles: so a
 * byte is moved once or twice, however long the queue. */
static unsigned char *
queue_reserve(struct channel *channel, size_t size)
{
	size_t used = channel_pending(channel);
	size_t room = channel->queue_size;
	unsigned char *queue = channel->queue;

	if (room - channel->queue_end >= size)
		return queue + channel->queue_end;
	if (channel->queue_start < used || room - used < size) {
		room = 2 * used + size + QUEUE_LEAST;
		queue = malloc(room);
		if (queue == NULL)
			return NULL;
	}
	if (used > 0)
		memmove(queue, channel->queue + channel->queue_start, used);
	if (queue != channel->queue)
		free(channel->queue);
	channel->queue = queue;
	channel->queue_size = room;
	channel->queue_start = 0;
	channel->queue_end = used;
	return queue + used;
}

/* Write once, but not past the next handle, which goes with the first byte of its
 * frame. Returns what sendmsg(2) does, and stores how much it tried. */
static ssize_t
write_once(struct channel *channel, size_t *tried)
{
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec part;
	struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1};
	const struct waiting_handle *waiting = channel->waiting;
	int waiting_count = channel->waiting_count;

	*tried = channel_pending(channel);
	if (waiting_count > 0 && waiting->position == channel->written) {
		memset(&control, 0, sizeof control);
		header.msg_control = &control;
		header.msg_controllen = sizeof control;
		control.align.cmsg_level = SOL_SOCKET;
		control.align.cmsg_type = SCM_RIGHTS;
		control.align.cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(&control.align), &waiting->descriptor, sizeof(int));
		waiting_count--;
		waiting++;
	}
	if (waiting_count > 0)
		*tried = (size_t)(waiting->position - channel->written);
	part.iov_base = channel->queue + channel->queue_start;
	part.iov_len = *tried;
	return sendmsg(channel->descriptor, &header, MSG_NOSIGNAL);
}

/* So many bytes are written. */
static void
write_advance(struct channel *channel, size_t count)
{
	if (channel->waiting_count > 0 && channel->waiting[0].position == channel->written) {
		close(channel->waiting[0].descriptor);
		memmove(channel->waiting, channel->waiting + 1,
		        (size_t)--channel->waiting_count * sizeof channel->waiting[0]);
	}
	channel->written += count;
	channel->queue_start += count;
	if (channel->queue_start < channel->queue_end)
		return;
	channel->queue_start = channel->queue_end = 0;
	if (channel->queue_size > QUEUE_KEEP) {
		free(channel->queue);
		channel->queue = NULL;
		channel->queue_size = 0;
	}
}

/* Is memory, or something else of the system's, short for the moment? */
static bool
is_shortage(int error)
{
	return error == ENOMEM || error == ENOBUFS || error == ETOOMANYREFS;
}

enum peer
channel_flush(struct channel *channel)
{
	bool writable = channel->descriptor != -1;
	size_t tried;
	ssize_t count;

	while (writable && channel_pending(channel) > 0) {
		count = write_once(channel, &tried);
		if (count >= 0) {
			write_advance(channel, (size_t)count);
			writable = (size_t)count == tried; /* else the socket is full */
		} else if (errno == EAGAIN || errno == EWOULDBLOCK) {
			writable = false;
		} else if (is_shortage(errno)) {
			channel->starved = true;
			writable = false;
		} else if (errno != EINTR) {
			close_writing(channel); /* but it may have left last words to read */
		}
	}
	channel->flush_at = channel_pending(channel) + CHANNEL_FLUSH_SIZE;
	return channel->write_closed ? PEER_GONE : PEER_ALIVE;
}

bool
channel_starved(struct channel *channel)
{
	bool starved = channel->starved;

	channel->starved = false;
	return starved;
}

enum peer
channel_drain(struct channel *channel, int timeout)
{
	struct pollfd wait = {.fd = channel->descriptor, .events = POLLOUT};
	int64_t deadline = clutch_now() + timeout;
	enum peer peer;

	for (;;) {
		peer = channel_flush(channel);
		timeout = (int)(deadline - clutch_now());
		if (peer != PEER_ALIVE || channel_pending(channel) == 0 || timeout <= 0 ||
		    channel->descriptor == -1)
			return peer;
		if (channel_starved(channel)) /* the socket has room, the system has not */
			poll(NULL, 0, timeout < 10 ? timeout : 10);
		else
			poll(&wait, 1, timeout);
	}
}

/* Let a handle wait for the frame that comes next. */
static int
queue_handle(struct channel *channel, int handle)
{
	struct waiting_handle waiting;
	struct waiting_handle *grown;
	int size = channel->waiting_size > 0 ? 2 * channel->waiting_size : 4;

	if (channel->waiting_count == channel->waiting_size) {
		grown = realloc(channel->waiting, (size_t)size * sizeof *grown);
		if (grown == NULL)
			return -1;
		channel->waiting = grown;
		channel->waiting_size = size;
	}
	waiting.position = channel->written + channel_pending(channel);
	waiting.descriptor = fcntl(handle, F_DUPFD_CLOEXEC, 0);
	if (waiting.descriptor == -1)
		return -1;
	channel->waiting[channel->waiting_count++] = waiting;
	return 0;
}

/* Is there no room for a message of that size in a queue with a limit? */
static bool
is_full(const struct channel *channel, size_t size, bool with_handle)
{
	return channel->limit > 0 &&
	       (channel_pending(channel) + size > channel->limit ||
	        (with_handle && channel->waiting_count == CHANNEL_HANDLES_MAX));
}

int
sendmessage(struct channel *channel, const struct message *message)
{
	const unsigned char *frame = message->frame;
	bool with_handle = message->handle >= 0;
	unsigned char *copy;
	size_t size;

	if (channel->write_closed) {
		errno = EPIPE;
		return -1;
	}
	size = frame != NULL ? frame_size(frame) : message_size(message);
	if (size == 0)
		return -1;
	if (is_full(channel, size, with_handle)) {
		errno = ENOBUFS;
		return -1;
	}
	copy = queue_reserve(channel, size);
	if (copy == NULL || (with_handle && queue_handle(channel, message->handle) == -1))
		return -1;
	if (frame != NULL)
		memcpy(copy, frame, size);
	else
		frame_encode(copy, size, message);
	copy[FRAME_FROM] = (unsigned char)message->from;
	copy[FRAME_TO] = (unsigned char)message->to;
	copy[FRAME_FLAGS] = (unsigned char)((copy[FRAME_FLAGS] & FRAME_HAS_DATA) |
	                                    (with_handle ? FRAME_HAS_HANDLE : 0));
	channel->queue_end += size;
	channel->messages_out++;
	if (channel_pending(channel) >= channel->flush_at)
		channel_flush(channel); /* a dead peer shows at the next read */
	return 0;
}

/* ---- reading ------------------------------------------------------------- */

/* The rest of the read buffer is the beginning of a frame: keep it for the next read.
 * -1: ENOMEM. */
static int
keep_torn(struct channel *channel)
{
	const unsigned char *left = buffer.bytes + buffer.next;
	size_t length = buffer.end - buffer.next;

	buffer.reader = NULL;
	if (length >= FRAME_HEADER) {
		channel->torn_size = frame_size(left);
		channel->torn = malloc(channel->torn_size);
		if (channel->torn == NULL)
			return -1;
	}
	memcpy(channel->torn != NULL ? channel->torn : channel->header, left, length);
	channel->torn_length = length;
	return 0;
}

/* Keep the handles that came. An honest sender sends one with a frame, so two
 * at most are here before their frames are taken: one of a torn frame, and the
 * one at which the kernel stopped reading. */
static enum peer
take_handles(struct channel *channel, struct msghdr *header)
{
	enum { MOST = sizeof channel->arrived / sizeof channel->arrived[0] };
	struct cmsghdr *control;
	enum peer peer = PEER_ALIVE;
	size_t i, count, total = 0;
	int descriptor;

	for (control = CMSG_FIRSTHDR(header); control != NULL;
	     control = CMSG_NXTHDR(header, control)) {
		if (control->cmsg_level != SOL_SOCKET || control->cmsg_type != SCM_RIGHTS)
			continue;
		count = (control->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (i = 0; i < count; i++, total++) {
			memcpy(&descriptor, CMSG_DATA(control) + i * sizeof(int), sizeof(int));
			if (total == 0 && channel->arrived_count < MOST) {
				if (fcntl(descriptor, F_SETFD, FD_CLOEXEC) == -1) {
					close(descriptor); /* not the sender's fault */
					descriptor = HANDLE_LOST;
				}
				channel->arrived[channel->arrived_count++] = descriptor;
			} else {
				close(descriptor);
				peer = PEER_BROKEN;
			}
		}
	}
	if ((header->msg_flags & MSG_CTRUNC) != 0) {
		if (total == 0 && channel->arrived_count < MOST)
			channel->arrived[channel->arrived_count++] = HANDLE_LOST;
		else
			peer = PEER_BROKEN;
	}
	return peer;
}

enum peer
channel_read(struct channel *channel)
{
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec part[2];
	struct msghdr header = {.msg_iov = part,
	                        .msg_iovlen = 1,
	                        .msg_control = &control,
	                        .msg_controllen = sizeof control};
	size_t head = 0, completes = 0;
	ssize_t count;

	free(buffer.mended);
	buffer.mended = NULL;
	if (channel->torn != NULL) {
		completes = channel->torn_size - channel->torn_length;
		part[0].iov_base = channel->torn + channel->torn_length;
		part[0].iov_len = completes;
		header.msg_iovlen = 2;
	} else {
		head = channel->torn_length;
		memcpy(buffer.bytes, channel->header, head);
	}
	part[header.msg_iovlen - 1].iov_base = buffer.bytes + head;
	part[header.msg_iovlen - 1].iov_len = sizeof buffer.bytes - head;
	do
		count = recvmsg(channel->descriptor, &header, 0);
	while (count == -1 && errno == EINTR);
	if (count == -1 && (errno == EAGAIN || errno == EWOULDBLOCK))
		return PEER_ALIVE;
	if (count == -1 && is_shortage(errno)) {
		channel->starved = true;
		return PEER_ALIVE;
	}
	if (count <= 0)
		return PEER_GONE;

	channel->bytes_in += (uint64_t)count;
	completes = (size_t)count < completes ? (size_t)count : completes;
	channel->torn_length = channel->torn != NULL ? channel->torn_length + completes : 0;
	buffer.reader = channel;
	buffer.next = 0;
	buffer.end = head + (size_t)count - completes;
	if (take_handles(channel, &header) == PEER_ALIVE)
		return PEER_ALIVE;
	buffer.reader = NULL; /* nothing more comes, not even what this read completed */
	drop_torn(channel);
	return PEER_BROKEN;
}

/* The handle that a frame announces. */
static bool
take_handle(struct channel *channel, struct message *message)
{
	if (channel->arrived_count == 0)
		return false;
	message->handle = channel->arrived[0];
	channel->arrived[0] = channel->arrived[1];
	channel->arrived_count--;
	if (message->handle == HANDLE_LOST)
		message->handle = -1; /* the message is worth more than its handle */
	return true;
}

int
channel_next(struct channel *channel, struct message *message)
{
	unsigned char *frame = buffer.bytes + buffer.next;
	size_t size, left = buffer.end - buffer.next;

	if (channel->torn != NULL) { /* it began in an earlier read */
		if (channel->torn_length < channel->torn_size)
			return 0;
		frame = buffer.mended = channel->torn;
		size = channel->torn_size;
		channel->torn = NULL;
		channel->torn_length = 0;
	} else {
		if (buffer.reader != channel)
			return 0;
		size = left < FRAME_HEADER ? SIZE_MAX : frame_size(frame);
		if (left >= FRAME_HEADER && !frame_header_valid(frame, size))
			goto broken;
		if (left < size)
			return keep_torn(channel);
		buffer.next += size;
	}
	if (!frame_decode(frame, size, message) ||
	    ((frame[FRAME_FLAGS] & FRAME_HAS_HANDLE) != 0 && !take_handle(channel, message)))
		goto broken;
	channel->messages_in++;
	return 1;
broken:
	buffer.reader = NULL; /* what follows a lie is not to be kept */
	errno = EPROTO;
	return -1;
}

/* ---- log and trace ------------------------------------------------------- */

/* A text shorter than LOG_LINE, as a line. */
static void
write_line(int descriptor, char *line, size_t length)
{
	struct pollfd log = {.fd = descriptor, .events = POLLOUT};
	int ready;

	line[length++] = '\n';
	/* D17: if nobody reads the log, the line is lost, and nobody waits for long. (A
	 * terminal that another process writes to is busy for a moment.) */
	do
		ready = poll(&log, 1, LOG_PATIENCE);
	while (ready == -1 && errno == EINTR);
	while (ready == 1 && write(descriptor, line, length) == -1 && errno == EINTR)
		;
}

size_t
clutch_text_length(int result, size_t size)
{
	return result < 0 ? 0 : (size_t)result < size ? (size_t)result : size - 1;
}

void
clutch_print_line(int descriptor, const char *format, ...)
{
	char line[LOG_LINE];
	va_list arguments;
	int length;

	va_start(arguments, format);
	length = vsnprintf(line, sizeof line, format, arguments);
	va_end(arguments);
	write_line(descriptor, line, clutch_text_length(length, sizeof line));
}

const char *
clutch_role_name(enum role role)
{
	static const char *const names[] = {"-", "master", "parent", "agent", "app"};

	return (unsigned)role <= ROLE_APP ? names[role] : "?";
}

void
clutch_trace(enum role role, const char *step, const struct message *message, const char *format, ...)
{
	bool short_data = message->data != NULL && message->data_length <= 128;
	char line[LOG_LINE];
	va_list arguments;
	size_t used;

	used = clutch_text_length(
		snprintf(line, sizeof line, "trace %s:%ld %s %.64s %.*s: ", clutch_role_name(role),
	                 (long)getpid(), step,
	                 message->action != NULL && message->action[0] != '\0' ? message->action
	                                                                       : "-",
	                 short_data ? (int)message->data_length : 1,
	                 short_data ? message->data : "-"),
		sizeof line);
	va_start(arguments, format);
	used += clutch_text_length(vsnprintf(line + used, sizeof line - used, format, arguments),
	                    sizeof line - used);
	va_end(arguments);
	write_line(STDERR_FILENO, line, used);
}
