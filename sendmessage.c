/*
 * One message, one channel: frames, buffers, read, write.
 *
 * egg: npm sendmessage/index.js, and the IPC channel that Node gives for free
 *
 * The cost of a relay is its system calls and its copies, so this file saves
 * both. What is read stands in one buffer for the whole process. A message that
 * is forwarded stays there: the receiver's channel only notes where it is, and
 * if the next message for it follows directly, the note grows:
 *
 *	read buffer   | frame | frame | frame | frame | fra      <- torn
 *	                \________ run _______/
 *
 * A thousand messages for one receiver so leave in one write, and a broadcast
 * costs one write for each receiver. Only what a socket refuses is copied, into
 * that channel's queue; and so is a short run that another run would follow,
 * because a copy of a few hundred bytes is cheaper than a system call.
 */
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

/* A run of fewer bytes is cheaper copied than written: in streams to several
 * receivers, and where a torn frame stands before a run. */
#define RUN_SHORT (64 * 1024)

/* The first memory of a queue. */
#define QUEUE_LEAST 256

/* A queue larger than this gives its memory back when it was empty for so many
 * turns: memory that is freed at each drain is paged in anew by each burst. */
#define QUEUE_KEEP ((size_t)2 * CHANNEL_FLUSH_SIZE)
#define QUEUE_IDLE 64

/* The log is full: a line waits so long, in milliseconds, before it is lost. */
#define LOG_PATIENCE 10

/* A handle that came, but that this process had no descriptor left for. */
#define HANDLE_LOST (-2)

typedef char queue_holds_the_largest_frame[CHANNEL_QUEUE_MAX >= FRAME_MAX ? 1 : -1];
typedef char pid_fits_its_field[sizeof(pid_t) <= sizeof(uint32_t) ? 1 : -1];

/* The read buffer: one for the process, lent to one reader at a time. */
static struct {
	size_t next, end; /* what the reader has not taken yet */
	struct channel *reader;
	unsigned char *spent;                   /* a torn frame that was completed and taken */
	struct channel *borrowers;              /* whose runs point into bytes or spent */
	bool starved;                           /* memory was short a moment ago */
	unsigned char bytes[CHANNEL_READ_SIZE]; /* last: a short read touches one page */
} buffer;

bool trace_on;

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
clock_now(void)
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

/* Can a frame hold it? Its action aside. */
static bool
message_valid(const struct message *message)
{
	if ((unsigned)message->from > ROLE_APP || (unsigned)message->to > ROLE_APP ||
	    message->receiver_pid < 0 || (message->data == NULL && message->data_length != 0)) {
		errno = EINVAL;
		return false;
	}
	if (message->data_length > MESSAGE_DATA_MAX) {
		errno = EMSGSIZE;
		return false;
	}
	return true;
}

size_t
message_size(const struct message *message)
{
	size_t action = message->action != NULL ? strlen(message->action) : 0;

	if (!message_valid(message))
		return 0;
	if (action > MESSAGE_ACTION_MAX) {
		errno = EMSGSIZE;
		return 0;
	}
	return FRAME_HEADER + action + 1 + message->data_length + 1;
}

/* A valid message as a frame, where there is room for the longest action: that
 * is measured while it is copied. Returns the frame's size; 0: EMSGSIZE. */
static size_t
frame_encode(unsigned char *frame, const struct message *message, bool with_handle)
{
	const char *action = message->action != NULL ? message->action : "";
	unsigned char *end = frame + FRAME_HEADER;
	size_t size;

	while ((*end = (unsigned char)*action++) != 0)
		if (end++ == frame + FRAME_HEADER + MESSAGE_ACTION_MAX) {
			errno = EMSGSIZE;
			return 0;
		}
	frame[FRAME_ACTION_LENGTH] = (unsigned char)(end - (frame + FRAME_HEADER));
	frame[FRAME_FROM] = (unsigned char)message->from;
	frame[FRAME_TO] = (unsigned char)message->to;
	frame[FRAME_FLAGS] = (unsigned char)((message->data != NULL ? FRAME_HAS_DATA : 0) |
	                                     (with_handle ? FRAME_HAS_HANDLE : 0));
	put32(frame + FRAME_RECEIVER_PID, (uint32_t)message->receiver_pid);
	end++;
	if (message->data_length > 0)
		memcpy(end, message->data, message->data_length);
	end += message->data_length;
	*end++ = 0;
	size = (size_t)(end - frame);
	put32(frame + FRAME_LENGTH, (uint32_t)(size - 4));
	return size;
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
static bool
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

	trace_on = wanted != NULL && strcmp(wanted, "1") == 0;
	memset(channel, 0, sizeof *channel);
	channel->descriptor = -1;
	channel->limit = limit;
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

/* Drop what waits to be written. */
static void
channel_deafen(struct channel *channel)
{
	while (channel->waiting_count > 0)
		close(channel->waiting[--channel->waiting_count].descriptor);
	free(channel->queue);
	channel->queue = NULL;
	channel->queue_start = channel->queue_end = channel->queue_size = 0;
	channel->run_length = 0;
	channel->deaf = true;
	free(channel->waiting);
	channel->waiting = NULL;
	channel->waiting_size = 0;
}

void
channel_close(struct channel *channel)
{
	struct channel **link = &buffer.borrowers;

	channel_deafen(channel);
	while (*link != NULL && *link != channel)
		link = &(*link)->next_borrower;
	if (*link != NULL)
		*link = channel->next_borrower;
	channel->borrows = false;
	if (buffer.reader == channel)
		buffer.reader = NULL;
	while (channel->arrived_count > 0)
		if (channel->arrived[--channel->arrived_count] >= 0)
			close(channel->arrived[channel->arrived_count]);
	free(channel->torn);
	channel->torn = NULL;
	channel->torn_size = channel->torn_length = 0;
	if (channel->descriptor != -1)
		close(channel->descriptor);
	channel->descriptor = -1;
}

size_t
channel_memory(const struct channel *channel)
{
	return channel->queue_size + (channel->torn != NULL ? channel->torn_size : 0);
}

void
channel_abandon(const struct channel *channel)
{
	int i;

	for (i = 0; i < channel->waiting_count; i++)
		close(channel->waiting[i].descriptor);
	for (i = 0; i < channel->arrived_count; i++)
		if (channel->arrived[i] >= 0)
			close(channel->arrived[i]);
	if (channel->descriptor != -1)
		close(channel->descriptor);
}

/* ---- writing ------------------------------------------------------------- */

/* Room for `size` more bytes at the queue's end, or NULL (ENOMEM). Written bytes
 * at its start are reused when they are the greater part, and otherwise the queue
 * doubles: so a byte is moved once or twice, however long the queue. */
static unsigned char *
queue_reserve(struct channel *channel, size_t size)
{
	size_t used = channel->queue_end - channel->queue_start;
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

/* Write once: the queue and the run, but not past the next handle, which goes
 * with the first byte of its frame. Returns what write(2) would, and stores how
 * much it tried. */
static ssize_t
write_once(struct channel *channel, size_t *tried)
{
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(sizeof(int))];
	} control;
	size_t queued = channel->queue_end - channel->queue_start;
	struct iovec part[2];
	struct msghdr header = {.msg_iov = part, .msg_iovlen = 1};
	const struct waiting_handle *waiting = channel->waiting;
	int waiting_count = channel->waiting_count;
	size_t until = SIZE_MAX;

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
		until = (size_t)(waiting->position - channel->written);
	part[0].iov_base = queued > 0 ? channel->queue + channel->queue_start : NULL;
	part[0].iov_len = queued < until ? queued : until;
	*tried = part[0].iov_len;
	if (channel->run_length > 0 && until == SIZE_MAX) { /* handles are only in the queue */
		struct iovec *run = queued > 0 ? &part[1] : &part[0];

		run->iov_base = channel->run;
		run->iov_len = channel->run_length;
		*tried = queued + channel->run_length;
		header.msg_iovlen = queued > 0 ? 2 : 1;
	}
	if (header.msg_iovlen == 1 && header.msg_control == NULL) /* the cheaper call */
		return send(channel->descriptor, part[0].iov_base, part[0].iov_len, MSG_NOSIGNAL);
	return sendmsg(channel->descriptor, &header, MSG_NOSIGNAL);
}

/* So many bytes are written. */
static void
write_advance(struct channel *channel, size_t count)
{
	size_t queued = channel->queue_end - channel->queue_start;
	size_t from_queue = count < queued ? count : queued;

	if (channel->waiting_count > 0 && channel->waiting[0].position == channel->written) {
		close(channel->waiting[0].descriptor);
		memmove(channel->waiting, channel->waiting + 1,
		        (size_t)--channel->waiting_count * sizeof channel->waiting[0]);
	}
	channel->written += count;
	channel->queue_start += from_queue;
	if (count > from_queue) {
		channel->run += count - from_queue;
		channel->run_length -= count - from_queue;
	}
	if (channel->queue_start == channel->queue_end)
		channel->queue_start = channel->queue_end = 0;
}

bool
channel_rests(const struct channel *channel)
{
	return channel->queue_size > QUEUE_KEEP && channel_pending(channel) == 0;
}

/* A turn without anything to write. */
static void
queue_rest(struct channel *channel)
{
	if (!channel_rests(channel) || ++channel->idle < QUEUE_IDLE)
		return;
	free(channel->queue);
	channel->queue = NULL;
	channel->queue_size = 0;
}

/* As much as the socket takes; the run may remain. */
static enum peer
channel_write(struct channel *channel)
{
	size_t tried;
	ssize_t count;

	while (channel->descriptor != -1 && channel_pending(channel) > 0) {
		count = write_once(channel, &tried);
		if (count >= 0) {
			write_advance(channel, (size_t)count);
			if ((size_t)count < tried)
				break; /* the socket is full */
		} else if (errno == EAGAIN || errno == EWOULDBLOCK) {
			break;
		} else if (errno == ENOMEM || errno == ENOBUFS || errno == ETOOMANYREFS) {
			buffer.starved = true;
			break;
		} else if (errno != EINTR) {
			channel_deafen(channel); /* but it may have left last words to read */
			return PEER_GONE;
		}
	}
	return channel->deaf ? PEER_GONE : PEER_ALIVE;
}

/* Copy the run to the end of the queue, so that its bytes are free. */
static int
run_to_queue(struct channel *channel)
{
	unsigned char *room;

	if (channel->run_length == 0)
		return 0;
	room = queue_reserve(channel, channel->run_length);
	if (room == NULL)
		return -1;
	memcpy(room, channel->run, channel->run_length);
	channel->queue_end += channel->run_length;
	channel->run_length = 0;
	return 0;
}

enum peer
channel_flush(struct channel *channel)
{
	enum peer peer;

	if (channel_pending(channel) == 0) {
		queue_rest(channel);
		return channel->deaf ? PEER_GONE : PEER_ALIVE;
	}
	channel->idle = 0;
	peer = channel_write(channel);
	if (run_to_queue(channel) == -1)
		buffer.starved = true; /* it stays borrowed: nobody reads until it is not */
	return peer;
}

enum peer
channel_drain(struct channel *channel, int timeout)
{
	struct pollfd wait = {.fd = channel->descriptor, .events = POLLOUT};
	int64_t deadline = clock_now() + timeout;
	enum peer peer;

	for (;;) {
		peer = channel_flush(channel);
		timeout = (int)(deadline - clock_now());
		if (peer != PEER_ALIVE || channel_pending(channel) == 0 || timeout <= 0 ||
		    channel->descriptor == -1)
			return peer;
		if (buffer.starved) /* not the socket is short, but memory: a pause */
			poll(NULL, 0, timeout < 10 ? timeout : 10);
		else
			poll(&wait, 1, timeout);
		buffer.starved = false;
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

/* Copy a message to the end of the queue. */
static int
queue_message(struct channel *channel, const struct message *message)
{
	size_t most = FRAME_HEADER + MESSAGE_ACTION_MAX + 2 + message->data_length, size;
	unsigned char *room;

	if (!message_valid(message) || run_to_queue(channel) == -1)
		return -1;
	if (channel->limit > 0 &&
	    (channel_pending(channel) + message->data_length >= channel->limit ||
	     (message->handle >= 0 && channel->waiting_count == CHANNEL_HANDLES_MAX))) {
		errno = ENOBUFS;
		return -1;
	}
	room = queue_reserve(channel, most);
	if (room == NULL)
		return -1;
	size = frame_encode(room, message, message->handle >= 0);
	if (size == 0)
		return -1;
	if (channel->limit > 0 && channel_pending(channel) + size > channel->limit) {
		errno = ENOBUFS;
		return -1;
	}
	if (message->handle >= 0 && queue_handle(channel, message->handle) == -1)
		return -1;
	channel->queue_end += size;
	return 0;
}

/* Let a message of the read buffer begin a run of its channel. */
static int
begin_run(struct channel *channel, const struct message *message)
{
	unsigned char *frame = message->frame;

	if (channel->run_length >= RUN_SHORT && channel_write(channel) == PEER_GONE) {
		errno = EPIPE;
		return -1;
	}
	if (run_to_queue(channel) == -1)
		return -1;
	channel->run = frame;
	channel->run_length = frame_size(frame);
	if (!channel->borrows) {
		channel->borrows = true;
		channel->next_borrower = buffer.borrowers;
		buffer.borrowers = channel;
	}
	return 0;
}

int
sendmessage(struct channel *channel, const struct message *message)
{
	unsigned char *frame = message->handle < 0 ? message->frame : NULL;
	bool borrowed = frame != NULL && channel->descriptor != -1 && channel->limit == 0;

	if (channel->deaf) {
		errno = EPIPE;
		return -1;
	}
	if (borrowed) {
		frame[FRAME_FROM] = (unsigned char)message->from;
		frame[FRAME_TO] = (unsigned char)message->to;
	}
	if (borrowed && channel->run_length > 0 && frame == channel->run + channel->run_length)
		channel->run_length += frame_size(frame); /* nearly all messages end here */
	else if ((borrowed ? begin_run(channel, message) : queue_message(channel, message)) == -1)
		return -1;
	channel->messages_out++;
	return 0;
}

/* ---- reading ------------------------------------------------------------- */

/* Nothing may point into the read buffer, or stand in it, when it is read into
 * again. -1 if memory is short for that: then it is not read into. */
static int
buffer_settle(void)
{
	struct channel *channel;
	const unsigned char *left = buffer.bytes + buffer.next;
	size_t length = buffer.end - buffer.next;

	while ((channel = buffer.borrowers) != NULL) {
		channel_flush(channel);
		if (channel->run_length > 0)
			return -1;
		channel->borrows = false;
		buffer.borrowers = channel->next_borrower;
	}
	free(buffer.spent);
	buffer.spent = NULL;
	channel = buffer.reader;
	if (channel == NULL)
		return 0;
	if (channel->torn == NULL) {
		assert(length < FRAME_HEADER || length < frame_size(left));
		if (length >= FRAME_HEADER) {
			channel->torn = malloc(frame_size(left));
			if (channel->torn == NULL)
				return -1;
			channel->torn_size = frame_size(left);
		}
		memcpy(channel->torn != NULL ? channel->torn : channel->header, left, length);
		channel->torn_length = length;
	}
	buffer.reader = NULL;
	return 0;
}

bool
channel_starved(void)
{
	bool settled = buffer_settle() == 0;
	bool starved = buffer.starved || !settled;

	buffer.starved = false;
	return starved;
}

void
channel_disown(void)
{
	while (buffer.borrowers != NULL) {
		buffer.borrowers->borrows = false;
		buffer.borrowers->run_length = 0;
		buffer.borrowers = buffer.borrowers->next_borrower;
	}
	buffer.reader = NULL;
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

	if (buffer_settle() == -1) {
		buffer.starved = true;
		return PEER_ALIVE;
	}
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
	if (count == -1 && (errno == ENOMEM || errno == ENOBUFS)) {
		buffer.starved = true;
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
	buffer.reader = NULL;
	free(channel->torn); /* nothing more comes, not even what this read completed */
	channel->torn = NULL;
	channel->torn_size = channel->torn_length = 0;
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
	if (message->handle == HANDLE_LOST) { /* the message is worth more than that */
		message->handle = -1;
		message->frame[FRAME_FLAGS] &= (unsigned char)~FRAME_HAS_HANDLE;
	}
	return true;
}

/* A frame is complete. */
static int
take_frame(struct channel *channel, unsigned char *frame, size_t size, struct message *message)
{
	if (!frame_decode(frame, size, message) ||
	    ((frame[FRAME_FLAGS] & FRAME_HAS_HANDLE) != 0 && !take_handle(channel, message))) {
		buffer.reader = NULL; /* what follows a lie is not to be kept */
		return -1;
	}
	channel->messages_in++;
	return 1;
}

/* The frame that began in an earlier read. */
static int
next_torn(struct channel *channel, struct message *message)
{
	if (channel->torn_length < channel->torn_size)
		return 0;
	buffer.spent = channel->torn;
	channel->torn = NULL;
	channel->torn_length = 0;
	return take_frame(channel, buffer.spent, channel->torn_size, message);
}

int
channel_next(struct channel *channel, struct message *message)
{
	unsigned char *frame = buffer.bytes + buffer.next;
	size_t size, left = buffer.end - buffer.next;

	if (channel->torn != NULL)
		return next_torn(channel, message);
	if (buffer.reader != channel || left < FRAME_HEADER)
		return 0;
	size = frame_size(frame);
	if (!frame_header_valid(frame, size)) {
		buffer.reader = NULL;
		return -1;
	}
	if (left < size)
		return 0;
	buffer.next += size;
	return take_frame(channel, frame, size, message);
}

/* ---- trace --------------------------------------------------------------- */

const char *
role_name(enum role role)
{
	static const char *const names[] = {"-", "master", "parent", "agent", "app"};

	return (unsigned)role <= ROLE_APP ? names[role] : "?";
}

static void
print_arguments(int descriptor, const char *start, const char *format, va_list arguments)
{
	struct pollfd log = {.fd = descriptor, .events = POLLOUT};
	char line[1024];
	int used = snprintf(line, sizeof line, "%s", start);
	int more = vsnprintf(line + used, sizeof line - (size_t)used, format, arguments);
	int ready;

	used += more < (int)sizeof line - used ? more : (int)sizeof line - used - 1;
	line[used++] = '\n';
	/* D17: if nobody reads the log, the line is lost, and nobody waits for long. (A
	 * terminal that another process writes to is busy for a moment.) */
	do
		ready = poll(&log, 1, LOG_PATIENCE);
	while (ready == -1 && errno == EINTR);
	while (ready == 1 && write(descriptor, line, (size_t)used) == -1 && errno == EINTR)
		;
}

void
print_line(int descriptor, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	print_arguments(descriptor, "", format, arguments);
	va_end(arguments);
}

void
trace(enum role role, const char *step, const struct message *message, const char *format, ...)
{
	char start[512];
	va_list arguments;
	bool short_data = message->data != NULL && message->data_length <= 128;

	snprintf(start, sizeof start, "trace %s:%ld %s %.64s %.*s: ", role_name(role),
	         (long)getpid(), step,
	         message->action != NULL && message->action[0] != '\0' ? message->action : "-",
	         short_data ? (int)message->data_length : 1, short_data ? message->data : "-");
	va_start(arguments, format);
	print_arguments(STDERR_FILENO, start, format, arguments);
	va_end(arguments);
}
