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
 * costs one write for each receiver. And since messages of one kind tend to follow
 * each other, those whose head is that of the message before are not even shown to
 * who routes: they go where it went (channel_follow).
 *
 * Only what a socket refuses is copied, into that channel's queue; and so is a short
 * run that another run would follow, because a copy of a few hundred bytes is cheaper
 * than a system call.
 */
#include "messenger.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* A run of fewer bytes is cheaper copied than written: in streams to several
 * receivers, and where a torn frame stands before a run. */
#define RUN_SHORT CHANNEL_FLUSH_SIZE

/* The first memory of a queue. */
#define QUEUE_LEAST 256

/* A queue larger than this gives its memory back when it was empty for so many
 * turns: memory that is freed at each drain is paged in anew by each burst. */
#define QUEUE_KEEP (CHANNEL_FLUSH_SIZE / 2)
#define QUEUE_IDLE 64

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
	size_t next, end; /* what the reader has not taken yet */
	struct channel *reader;
	unsigned char *taken;      /* the frame that was taken last, if it was not copied */
	unsigned char claimed[2];  /* its from and to, as they came */
	unsigned char *spent;      /* a torn frame that was completed and taken */
	struct channel *borrowers; /* whose runs point into bytes or spent */
	bool starved;              /* memory was short a moment ago */
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
static inline bool
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
static inline size_t
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

/* Make room for `size` more bytes at the queue's end. Written bytes at its start
 * are reused when they are the greater part, and otherwise the queue doubles: so a
 * byte is moved once or twice, however long the queue. */
static unsigned char *
queue_grow(struct channel *channel, size_t size)
{
	size_t used = channel->queue_end - channel->queue_start;
	size_t room = channel->queue_size;
	unsigned char *queue = channel->queue;

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

/* Room for `size` more bytes at the queue's end, or NULL (ENOMEM). */
static inline unsigned char *
queue_reserve(struct channel *channel, size_t size)
{
	if (channel->queue_size - channel->queue_end >= size)
		return channel->queue + channel->queue_end;
	return queue_grow(channel, size);
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
static inline int
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

static bool
run_ends_at(const struct channel *channel, const unsigned char *end)
{
	return channel->run_length > 0 && channel->run + channel->run_length == end;
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
	if (run_ends_at(channel, frame + frame_size(frame)))
		buffer.taken = NULL; /* it goes there twice: none may follow it */
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
	if (!borrowed)
		buffer.taken = NULL; /* what comes next must be copied, too */
	if (borrowed && run_ends_at(channel, frame))
		channel->run_length += frame_size(frame);
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

	buffer.taken = NULL;
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
static inline int
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
	buffer.taken = frame;
	memcpy(buffer.claimed, frame + FRAME_FROM, sizeof buffer.claimed);
	return take_frame(channel, frame, size, message);
}

/* The size of the frame that stands here, if it is whole and valid and has the head
 * of the one that was taken last; else 0. */
static size_t
follower_size(const unsigned char *frame, size_t left)
{
	const unsigned char *taken = buffer.taken;
	size_t action = taken[FRAME_ACTION_LENGTH];
	size_t least = FRAME_HEADER + action + 2, size;

	if (left < least)
		return 0;
	size = frame_size(frame);
	if (size < least || size > left || size - least > MESSAGE_DATA_MAX ||
	    memcmp(frame + FRAME_FROM, buffer.claimed, sizeof buffer.claimed) != 0 ||
	    memcmp(frame + FRAME_FLAGS, taken + FRAME_FLAGS, FRAME_HEADER - FRAME_FLAGS) != 0 ||
	    memcmp(frame + FRAME_HEADER, taken + FRAME_HEADER, action + 1) != 0 ||
	    (size > least && (frame[FRAME_FLAGS] & FRAME_HAS_DATA) == 0) || frame[size - 1] != 0)
		return 0;
	return size;
}

/* So much may be added to every run that ends here until a queue is too long. */
static size_t
room_behind(const unsigned char *end)
{
	const struct channel *channel;
	size_t room = SIZE_MAX, pending;
	bool found = false;

	for (channel = buffer.borrowers; channel != NULL; channel = channel->next_borrower) {
		if (!run_ends_at(channel, end))
			continue;
		found = true;
		pending = channel_pending(channel);
		pending = pending < CHANNEL_HIGH_WATER ? CHANNEL_HIGH_WATER - pending : 0;
		room = room < pending ? room : pending;
	}
	return found ? room : 0;
}

size_t
channel_follow(struct channel *channel)
{
	unsigned char *start = buffer.bytes + buffer.next, *end = start;
	size_t left = buffer.end - buffer.next, size, count = 0;
	struct channel *receiver;

	if (buffer.taken == NULL || follower_size(start, left) == 0 || trace_on)
		return 0;
	size = room_behind(start); /* who received the last one has a run that ends here */
	left = left < size ? left : size;
	while ((size = follower_size(end, left)) > 0) {
		end[FRAME_FROM] = buffer.taken[FRAME_FROM];
		end[FRAME_TO] = buffer.taken[FRAME_TO];
		end += size;
		left -= size;
		count++;
	}
	for (receiver = buffer.borrowers; receiver != NULL; receiver = receiver->next_borrower) {
		if (!run_ends_at(receiver, start))
			continue;
		receiver->run_length += (size_t)(end - start);
		receiver->messages_out += count;
	}
	buffer.next += (size_t)(end - start);
	channel->messages_in += count;
	return count;
}

/* ---- text ---------------------------------------------------------------- */

/* What the log needs of printf(3), whose code would be a fifth of a small static
 * program. What it shows, printf shows, too. */

/* A text that is being made: there is room from at to end. */
struct text {
	char *at, *end;
	const char *format; /* what is left of it */
	va_list arguments;
};

/* What stands between a conversion's '%' and its letter. */
struct field {
	bool left;
	size_t width; /* it takes so many bytes at least, */
	size_t most;  /* and shows so many of a string at most */
};

static void
put_bytes(struct text *text, const char *bytes, size_t count)
{
	size_t room = (size_t)(text->end - text->at);

	count = count < room ? count : room;
	memcpy(text->at, bytes, count);
	text->at += count;
}

static void
put_field(struct text *text, const struct field *field, const char *bytes, size_t count)
{
	size_t blanks = field->width > count ? field->width - count : 0;

	if (field->left)
		put_bytes(text, bytes, count);
	while (blanks-- > 0 && text->at < text->end)
		*text->at++ = ' ';
	if (!field->left)
		put_bytes(text, bytes, count);
}

static void
put_string(struct text *text, const struct field *field, const char *string)
{
	if (string == NULL)
		string = "(null)";
	put_field(text, field, string, strnlen(string, field->most));
}

static void
put_number(struct text *text, const struct field *field, unsigned long long number, bool negative)
{
	char digits[sizeof number * CHAR_BIT / 3 + 2]; /* a digit is more than three bits */
	char *end = digits + sizeof digits;
	char *first = end;

	assert(field->most == SIZE_MAX);
	do
		*--first = (char)('0' + number % 10);
	while ((number /= 10) > 0);
	if (negative)
		*--first = '-';
	put_field(text, field, first, (size_t)(end - first));
}

static void
put_signed(struct text *text, const struct field *field, long long number)
{
	bool negative = number < 0;

	/* -number does not exist for the least of all numbers; 0 - that, unsigned, does */
	put_number(text, field,
	           negative ? 0 - (unsigned long long)number : (unsigned long long)number,
	           negative);
}

int
parse_digits(const char **text)
{
	const char *at = *text;
	int digit, number = 0;

	for (; *at >= '0' && *at <= '9'; at++) {
		digit = *at - '0';
		if (number > (INT_MAX - digit) / 10)
			return -1;
		number = 10 * number + digit;
	}
	if (at == *text)
		return -1;
	*text = at;
	return number;
}

/* If the format goes on with this, take it. */
static bool
take(struct text *text, const char *what)
{
	size_t length = strlen(what);

	if (strncmp(text->format, what, length) != 0)
		return false;
	text->format += length;
	return true;
}

static size_t
take_number(struct text *text)
{
	int number = parse_digits(&text->format);

	return number > 0 ? (size_t)number : 0;
}

static struct field
take_field(struct text *text)
{
	struct field field = {.most = SIZE_MAX};
	int most;

	field.left = take(text, "-");
	if (*text->format != '0') /* that would be a flag, an unknown one */
		field.width = take_number(text);
	if (take(text, ".*")) {
		most = va_arg(text->arguments, int);
		if (most >= 0)
			field.most = (size_t)most;
	} else if (take(text, ".")) {
		field.most = take_number(text);
	}
	return field;
}

/* One conversion, from behind its '%' on, if it is known. */
static bool
convert(struct text *text)
{
	struct field field = take_field(text);

	/* NOLINTBEGIN(bugprone-branch-clone): it takes long and long long for the same */
	if (take(text, "s"))
		put_string(text, &field, va_arg(text->arguments, const char *));
	else if (take(text, "d"))
		put_signed(text, &field, va_arg(text->arguments, int));
	else if (take(text, "ld"))
		put_signed(text, &field, va_arg(text->arguments, long));
	else if (take(text, "lld"))
		put_signed(text, &field, va_arg(text->arguments, long long));
	else if (take(text, "u"))
		put_number(text, &field, va_arg(text->arguments, unsigned), false);
	else if (take(text, "lu"))
		put_number(text, &field, va_arg(text->arguments, unsigned long), false);
	else if (take(text, "llu"))
		put_number(text, &field, va_arg(text->arguments, unsigned long long), false);
	else if (take(text, "zu"))
		put_number(text, &field, va_arg(text->arguments, size_t), false);
	else if (take(text, "%"))
		put_bytes(text, "%", 1);
	else
		return false;
	/* NOLINTEND(bugprone-branch-clone) */
	return true;
}

size_t
vformat_text(char *to, size_t size, const char *format, va_list arguments)
{
	struct text text = {.at = to, .format = format};
	bool known = true;
	size_t plain;

	if (size == 0)
		return 0;
	text.end = to + size - 1;
	va_copy(text.arguments, arguments);
	while (known && *text.format != '\0') {
		plain = strcspn(text.format, "%");
		put_bytes(&text, text.format, plain);
		text.format += plain;
		known = !take(&text, "%") || convert(&text);
	}
	assert(known); /* or the text ends here: what follows would read wrong arguments */
	va_end(text.arguments);
	*text.at = '\0';
	return (size_t)(text.at - to);
}

size_t
format_text(char *to, size_t size, const char *format, ...)
{
	va_list arguments;
	size_t length;

	va_start(arguments, format);
	length = vformat_text(to, size, format, arguments);
	va_end(arguments);
	return length;
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

void
print_line(int descriptor, const char *format, ...)
{
	char line[LOG_LINE];
	va_list arguments;

	va_start(arguments, format);
	write_line(descriptor, line, vformat_text(line, sizeof line, format, arguments));
	va_end(arguments);
}

const char *
role_name(enum role role)
{
	static const char *const names[] = {"-", "master", "parent", "agent", "app"};

	return (unsigned)role <= ROLE_APP ? names[role] : "?";
}

void
trace(enum role role, const char *step, const struct message *message, const char *format, ...)
{
	bool short_data = message->data != NULL && message->data_length <= 128;
	char line[LOG_LINE];
	va_list arguments;
	size_t used;

	used = format_text(
		line, sizeof line, "trace %s:%ld %s %.64s %.*s: ", role_name(role), (long)getpid(),
		step, message->action != NULL && message->action[0] != '\0' ? message->action : "-",
		short_data ? (int)message->data_length : 1, short_data ? message->data : "-");
	va_start(arguments, format);
	used += vformat_text(line + used, sizeof line - used, format, arguments);
	va_end(arguments);
	write_line(STDERR_FILENO, line, used);
}
