/*
 * One message, one channel: frames, queues, reading, writing.
 *
 * egg: npm sendmessage/index.js, and the IPC channel that Node gives for free
 *
 * A socket carries bytes, not messages. So each message travels as a frame that
 * begins with its length (framing), and the receiver puts together what the kernel
 * has cut apart (a partial read).
 *
 * A message is copied once: sendmessage copies it to the end of its receiver's
 * queue. A queue that passes CHANNEL_FLUSH_SIZE is written at once, the others at
 * the end of the turn, so that hundreds of messages leave in one system call.
 *
 *	read buffer      | frame | frame | frame | frame | fra      <- a torn frame
 *	                     |       |       |       |
 *	                     v       v       v       v    memcpy
 *	queue of app 0       |-------|---------------|
 *	queue of app 1               |-------|
 *
 * The read buffer belongs to the process, not to a channel: 256 idle children cost
 * kilobytes. A message that was read stands in the read buffer, and is valid until
 * the next channel_read in this process, of any channel.
 *
 * A frame that a read has torn waits in the read buffer for its rest; if another
 * channel reads first, its own channel keeps it meanwhile. When its writer dies, the
 * rest never comes: the torn frame is dropped with the channel, and half a message is
 * never heard.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#define CLUTCH_PRIVATE
#include "messenger.h"

#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* The first memory of a queue, in bytes. */
#define QUEUE_LEAST 256

/* How long to retry an allocation without which a message would be lost, and how
 * long a handle that the kernel does not take may hold up its channel, in ms. */
#define SHORTAGE_TIMEOUT 1000

typedef char queue_holds_the_largest_frame[CHANNEL_QUEUE_MAX >= FRAME_MAX ? 1 : -1];
typedef char pid_fits_its_field[sizeof(pid_t) <= sizeof(uint32_t) ? 1 : -1];

/* The read buffer: one for the process, lent to one channel at a time. */
static struct {
	struct channel *reader;
	size_t next, end; /* what channel_next has not given yet */
	unsigned char bytes[FRAME_MAX + CHANNEL_READ_SIZE];
} buffer;

void (*clutch_tracer)(const char *event, const struct channel *channel,
                      const struct message *message, const char *detail, long value);

/* Not every system has these: 0 is no flag, and ENOBUFS is a shortage, too. */
#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0
#endif
#ifndef MSG_DONTWAIT
#define MSG_DONTWAIT 0
#endif
#ifndef ETOOMANYREFS
#define ETOOMANYREFS ENOBUFS
#endif

/* A control message of sendmsg(2) and recvmsg(2), with more room than one handle needs: the
 * BSDs hide CMSG_SPACE and CMSG_LEN from a program that asks for POSIX.1-2008, and cut off a
 * handle that has no padding behind it. */
union control {
	struct cmsghdr header;
	char space[64];
};

/* The length of one with one handle: CMSG_LEN(sizeof(int)). */
static socklen_t
control_length(union control *control)
{
	return (socklen_t)(CMSG_DATA(&control->header) - (unsigned char *)control) + sizeof(int);
}

static uint32_t
get32(const unsigned char *p)
{
	uint32_t value;

	memcpy(&value, p, sizeof value);
	return ntohl(value);
}

static void
put32(unsigned char *p, uint32_t value)
{
	value = htonl(value);
	memcpy(p, &value, sizeof value);
}

int64_t
clutch_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

bool
clutch_retry(int64_t *deadline)
{
	int64_t now = clutch_now();

	if (*deadline == 0)
		*deadline = now + SHORTAGE_TIMEOUT;
	poll(NULL, 0, 10);
	return now < *deadline;
}

int
clutch_fail(int error)
{
	errno = error;
	return -1;
}

int
clutch_grow(void *array, size_t count, size_t size)
{
	void *old, *grown;

	if ((count & (count - 1)) != 0)
		return 0;
	memcpy(&old, array, sizeof old);
	grown = realloc(old, (count > 0 ? 2 * count : 1) * size);
	if (grown == NULL)
		return -1;
	memcpy(array, &grown, sizeof grown);
	/* cppcheck-suppress memleak ; the caller's pointer is what memcpy has set */
	return 0;
}

int
clutch_set_flags(int descriptor)
{
	int flags = fcntl(descriptor, F_GETFL);

	if (flags == -1 || fcntl(descriptor, F_SETFL, flags | O_NONBLOCK) == -1)
		return -1;
	return fcntl(descriptor, F_SETFD, FD_CLOEXEC);
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

/* Write a valid message as a frame of `size` bytes, which message_size has told;
 * sendmessage sets from, to and the flag of a handle. */
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

/* Can a frame of that size, the one that it announces, have this header? Checked as
 * soon as the header is complete, so that no memory is kept for a frame that lies. */
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

/* Decode a whole frame whose header is valid. False: its strings do not end where
 * they must, or the action has a NUL inside. */
static bool
frame_decode(unsigned char *frame, size_t size, struct message *message)
{
	size_t action = frame[FRAME_ACTION_LENGTH];
	unsigned char *data = frame + FRAME_HEADER + action + 1;

	message->action = (char *)frame + FRAME_HEADER;
	if (data[-1] != 0 || frame[size - 1] != 0 || strlen(message->action) != action)
		return false;
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
	memset(channel, 0, sizeof *channel);
	channel->descriptor = -1;
	channel->limit = limit;
	channel->flush_at = CHANNEL_FLUSH_SIZE;
}

int
channel_attach(struct channel *channel, int descriptor)
{
	assert(channel->descriptor == -1);
	if (clutch_set_flags(descriptor) == -1)
		return -1;
	channel->descriptor = descriptor;
	return 0;
}

static void
free_queue(struct channel *channel)
{
	free(channel->queue);
	channel->queue = NULL;
	channel->queue_start = channel->queue_end = channel->queue_size = 0;
}

static void
remove_first_handle(struct channel *channel)
{
	close(channel->waiting[0].descriptor);
	memmove(channel->waiting, channel->waiting + 1,
	        --channel->waiting_count * sizeof *channel->waiting);
}

/* Drop what waits to be written: the peer does not read it any more. */
static void
stop_writing(struct channel *channel)
{
	while (channel->waiting_count > 0)
		remove_first_handle(channel);
	free(channel->waiting);
	channel->waiting = NULL;
	free_queue(channel);
	channel->write_closed = true;
}

void
channel_close(struct channel *channel)
{
	stop_writing(channel);
	free(channel->kept);
	channel->kept = NULL;
	channel->kept_length = 0;
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

/* Make room for `size` more bytes at the queue's end; NULL: ENOMEM. Bytes at its start
 * that are written are reused when they are the greater part, otherwise the queue
 * doubles: so a byte is moved once or twice, however long the queue is. */
static unsigned char *
queue_reserve(struct channel *channel, size_t size)
{
	size_t used = channel_pending(channel), room = 2 * used + size + QUEUE_LEAST;
	bool grows = channel->queue_start < used || used + size > channel->queue_size;
	unsigned char *queue = channel->queue;

	channel->queue_used = true;
	if (channel->queue_size - channel->queue_end >= size)
		return queue + channel->queue_end;
	if (used > 0)
		memmove(queue, queue + channel->queue_start, used);
	channel->queue_start = 0;
	channel->queue_end = used;
	if (grows) {
		queue = realloc(queue, room);
		if (queue == NULL)
			return NULL;
		channel->queue = queue;
		channel->queue_size = room;
	}
	return queue + used;
}

bool
channel_trim(struct channel *channel)
{
	bool used = channel->queue_used || channel_pending(channel) > 0;

	channel->queue_used = false;
	if (!used)
		free_queue(channel);
	return used;
}

/* Does the frame at the queue's start take a handle along? */
static bool
handle_is_next(const struct channel *channel)
{
	return channel->waiting_count > 0 && channel->waiting[0].position == channel->written;
}

/* Write once, but not past the next handle, which travels with the first byte of its
 * frame. Returns what sendmsg(2) does, and stores how many bytes it tried. The socket is
 * non-blocking, unless another process that has this end, too, has changed that: so each call
 * says MSG_DONTWAIT. */
static ssize_t
write_once(struct channel *channel, size_t *tried)
{
	union control control = {.header = {.cmsg_len = control_length(&control),
	                                    .cmsg_level = SOL_SOCKET,
	                                    .cmsg_type = SCM_RIGHTS}};
	unsigned char *bytes = channel->queue + channel->queue_start;
	bool with_handle = handle_is_next(channel);
	struct iovec part = {.iov_base = bytes};
	struct msghdr header = {.msg_iov = &part,
	                        .msg_iovlen = 1,
	                        .msg_control = &control,
	                        .msg_controllen = control_length(&control)};

	*tried = channel_pending(channel);
	if (channel->waiting_count > with_handle)
		*tried = (size_t)(channel->waiting[with_handle].position - channel->written);
	if (!with_handle) /* the cheaper call */
		return send(channel->descriptor, bytes, *tried, MSG_NOSIGNAL | MSG_DONTWAIT);
	part.iov_len = *tried;
	memcpy(CMSG_DATA(&control.header), &channel->waiting[0].descriptor, sizeof(int));
	return sendmsg(channel->descriptor, &header, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static void
write_advance(struct channel *channel, size_t count)
{
	if (handle_is_next(channel))
		remove_first_handle(channel);
	channel->starved_since = 0;
	channel->written += count;
	channel->queue_start += count;
	if (channel->queue_start == channel->queue_end)
		channel->queue_start = channel->queue_end = 0;
}

/* Is memory, or something else of the system's, short for the moment? */
static bool
is_shortage(int error)
{
	return error == ENOMEM || error == ENOBUFS || error == ETOOMANYREFS;
}

/* The system has nothing left for this channel's next write. A handle that holds it up
 * is given up after a while: the message is worth more than its handle. */
static void
write_later(struct channel *channel)
{
	int64_t now = clutch_now();

	channel->starved = true;
	if (channel->starved_since == 0)
		channel->starved_since = now;
	if (!handle_is_next(channel) || now - channel->starved_since < SHORTAGE_TIMEOUT)
		return;
	remove_first_handle(channel);
	channel->queue[channel->queue_start + FRAME_FLAGS] &= (unsigned char)~FRAME_HAS_HANDLE;
	channel->handles_lost++;
	channel->starved_since = 0;
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
			clutch_trace("writes", channel, NULL, "bytes", count);
			writable = (size_t)count == tried; /* else the socket is full */
		} else if (errno == EAGAIN || errno == EWOULDBLOCK) {
			writable = false;
		} else if (is_shortage(errno)) {
			write_later(channel);
			writable = false;
		} else if (errno != EINTR) {
			stop_writing(channel); /* but the peer may have left last words to read */
		}
	}
	channel->flush_at = channel_pending(channel) + CHANNEL_FLUSH_SIZE;
	return channel->write_closed ? PEER_GONE : PEER_ALIVE;
}

bool
channel_take_starved(struct channel *channel)
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
	bool starved; /* the socket has room, the system has none: poll would return at once */

	while (channel_flush(channel) == PEER_ALIVE && channel_pending(channel) > 0 &&
	       channel->descriptor != -1 && timeout > 0) {
		starved = channel_take_starved(channel);
		poll(&wait, starved ? 0 : 1, starved && timeout > 10 ? 10 : timeout);
		timeout = (int)(deadline - clutch_now());
	}
	return channel->write_closed ? PEER_GONE : PEER_ALIVE;
}

/* Let a handle wait for the frame that is queued next. */
static int
queue_handle(struct channel *channel, int handle)
{
	uint64_t position = channel->written + channel_pending(channel);

	if (clutch_grow(&channel->waiting, channel->waiting_count, sizeof *channel->waiting) == -1)
		return -1;
	handle = fcntl(handle, F_DUPFD_CLOEXEC, 3);
	if (handle == -1)
		return -1;
	channel->waiting[channel->waiting_count++] = (struct waiting_handle){position, handle};
	return 0;
}

int
sendmessage(struct channel *channel, const struct message *message)
{
	const unsigned char *frame = message->frame;
	bool with_handle = message->handle >= 0;
	size_t size = frame != NULL ? frame_size(frame) : message_size(message);
	unsigned char *copy;

	if (channel->write_closed)
		return clutch_fail(EPIPE);
	if (size == 0)
		return -1;
	if (channel->limit > 0 && (channel_pending(channel) + size > channel->limit ||
	                           (with_handle && channel->waiting_count >= CHANNEL_HANDLES_MAX)))
		return clutch_fail(ENOBUFS);
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

/* Another channel needs the read buffer: its reader keeps what was not given yet, a torn
 * frame or messages of a paused process. Where there is no memory for that, its
 * next read fails: a gap in what it reads would be worse. */
static void
keep_rest(struct channel *reader)
{
	size_t length = buffer.end - buffer.next;
	int64_t deadline = 0;

	do
		reader->kept = malloc(length);
	while (reader->kept == NULL && clutch_retry(&deadline));
	if (reader->kept != NULL)
		memcpy(reader->kept, buffer.bytes + buffer.next, length);
	reader->kept_length = length;
}

/* Lend the read buffer to a channel; the rest of the channel's last read stands in it. */
static int
lend_buffer(struct channel *channel)
{
	if (buffer.reader == channel)
		return 0;
	if (channel->kept == NULL && channel->kept_length > 0)
		return clutch_fail(ENOMEM);
	if (buffer.reader != NULL && buffer.next < buffer.end)
		keep_rest(buffer.reader);
	buffer.reader = channel;
	buffer.next = 0;
	buffer.end = channel->kept_length;
	if (channel->kept != NULL)
		memcpy(buffer.bytes, channel->kept, channel->kept_length);
	free(channel->kept);
	channel->kept = NULL;
	channel->kept_length = 0;
	return 0;
}

/* Copy the handles that recvmsg(2) has brought, and return how many they are. A hostile sender
 * may send as many as a control message has room for. Credentials, if somebody has asked for
 * them at this socket, stand before them. macOS leaves cmsg_len as it was where it has cut the
 * message. */
static size_t
handles_of(struct msghdr *header, int handles[sizeof(union control) / sizeof(int)])
{
	const unsigned char *end = (unsigned char *)header->msg_control + header->msg_controllen;
	struct cmsghdr *control = CMSG_FIRSTHDR(header);
	size_t begin, length, count = 0;

	for (; control != NULL; control = CMSG_NXTHDR(header, control)) {
		begin = (size_t)(CMSG_DATA(control) - (unsigned char *)control);
		length = control->cmsg_len;
		if (length > (size_t)(end - (unsigned char *)control))
			length = (size_t)(end - (unsigned char *)control);
		if (control->cmsg_type != SCM_RIGHTS || length < begin)
			continue;
		memcpy(handles + count, CMSG_DATA(control), length - begin);
		count += (length - begin) / sizeof(int);
	}
	return count;
}

/* Keep the descriptor that recvmsg(2) has brought, if there is one, until its frame is
 * taken. An honest sender sends one with a frame, so two at most are here before their
 * frames are taken: one of a torn frame, and the one at which the kernel stopped reading.
 * Where the kernel cut something off (MSG_CTRUNC), there were more than there was room for;
 * or it brought none, because this process has no descriptor left. */
static bool
keep_handle(struct channel *channel, struct msghdr *header)
{
	int handles[sizeof(union control) / sizeof(int)];
	size_t count = handles_of(header, handles);
	bool cut = (header->msg_flags & MSG_CTRUNC) != 0;
	bool honest = channel->arrived_count < 2 && count <= (cut ? 0 : 1);
	int kept = -1; /* it is lost, which is not the sender's fault */

	if (count == 0 && !cut)
		return true;
	if (honest && count == 1 && fcntl(handles[0], F_SETFD, FD_CLOEXEC) == 0)
		kept = handles[--count];
	while (count > 0)
		close(handles[--count]);
	if (honest)
		channel->arrived[channel->arrived_count++] = kept;
	return honest;
}

/* Has the last read left a frame, whole or bad, that channel_next can take? A process that
 * pauses leaves one. What is behind it in the socket waits there: the handles of frames
 * that were not taken would find no place, and the peer's end would come too soon. */
static bool
is_frame_waiting(void)
{
	const unsigned char *frame = buffer.bytes + buffer.next;
	size_t left = buffer.end - buffer.next;

	return left >= FRAME_HEADER &&
	       (left >= frame_size(frame) || !frame_header_valid(frame, frame_size(frame)));
}

enum peer
channel_read(struct channel *channel)
{
	union control control;
	struct iovec part;
	struct msghdr header = {.msg_iov = &part,
	                        .msg_iovlen = 1,
	                        .msg_control = &control,
	                        .msg_controllen = sizeof control};
	ssize_t count;

	if (lend_buffer(channel) == -1)
		return PEER_BROKEN;
	if (is_frame_waiting())
		return PEER_ALIVE;
	memmove(buffer.bytes, buffer.bytes + buffer.next, buffer.end - buffer.next);
	buffer.end -= buffer.next;
	buffer.next = 0;
	part.iov_base = buffer.bytes + buffer.end;
	part.iov_len = sizeof buffer.bytes - buffer.end;
	if (part.iov_len > CHANNEL_READ_SIZE)
		part.iov_len = CHANNEL_READ_SIZE;
	do
		count = recvmsg(channel->descriptor, &header, MSG_DONTWAIT);
	while (count == -1 && errno == EINTR);
	if (count == -1 && (errno == EAGAIN || errno == EWOULDBLOCK))
		return PEER_ALIVE;
	if (count == -1 && is_shortage(errno)) {
		channel->starved = true;
		return PEER_ALIVE;
	}
	/* No descriptor is left for a handle: Linux brings the bytes without the handle; the BSDs
	 * and macOS fail first, and bring the bytes next time. */
	if (count == -1 && (errno == EMSGSIZE || errno == EMFILE) && channel->arrived_count < 2) {
		channel->arrived[channel->arrived_count++] = -1;
		return PEER_ALIVE;
	}
	if (count <= 0)
		return PEER_GONE;
	channel->bytes_in += (uint64_t)count;
	buffer.end += (size_t)count;
	clutch_trace("reads", channel, NULL, "bytes", count);
	if (keep_handle(channel, &header))
		return PEER_ALIVE;
	buffer.reader = NULL; /* nothing of this read is heard */
	errno = EPROTO;
	return PEER_BROKEN;
}

int
channel_next(struct channel *channel, struct message *message)
{
	unsigned char *frame = buffer.bytes + buffer.next;
	bool with_handle;
	size_t size;

	if (buffer.reader != channel || !is_frame_waiting())
		return 0;
	size = frame_size(frame);
	with_handle = (frame[FRAME_FLAGS] & FRAME_HAS_HANDLE) != 0;
	if (!frame_header_valid(frame, size) || !frame_decode(frame, size, message) ||
	    (with_handle && channel->arrived_count == 0)) {
		buffer.reader = NULL; /* what follows a lie is not to be believed */
		return clutch_fail(EPROTO);
	}
	if (with_handle) {
		message->handle = channel->arrived[0];
		channel->arrived[0] = channel->arrived[1];
		channel->arrived_count--;
		channel->handles_lost += message->handle == -1; /* the message is worth more */
	}
	buffer.next += size;
	channel->messages_in++;
	return 1;
}
