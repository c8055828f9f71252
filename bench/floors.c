/*
 * The floors: what the kernel charges for moving the same bytes through three
 * processes, without frames, routing or checks.
 *
 *	sender --socketpair--> relay --socketpair--> receiver(s)
 *
 * Their descriptors block: the kernel schedules them, and no loop has to.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "bench.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { RECEIVERS_MAX = 16, CHUNK_MAX = 1024 * 1024 };

/* How a stream is moved. */
struct plan {
	size_t write_size; /* the sender's write */
	size_t read_size;  /* the relay's and the receiver's read */
	bool whole;        /* a read waits for a whole message */
	int socket_buffer; /* 0: the system's */
	int receivers;
	int64_t duration;
};

/* What sender and receivers tell the bench. */
struct report {
	uint64_t bytes;
	int64_t at; /* the sender: of the first write; a receiver: of the end of file */
};

static char buffer[CHUNK_MAX];

static void
make_pair(int pair[2], int socket_buffer)
{
	int i;

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == -1)
		fail("socketpair: %s", strerror(errno));
	for (i = 0; i < 2 && socket_buffer > 0; i++)
		setsockopt(pair[i], SOL_SOCKET, SO_SNDBUF, &socket_buffer, sizeof socket_buffer);
}

static void
write_all(int descriptor, const void *bytes, size_t size)
{
	const char *from = bytes;
	ssize_t count;

	while (size > 0) {
		count = write(descriptor, from, size);
		if (count == -1)
			fail("a floor's write: %s", strerror(errno));
		from += count;
		size -= (size_t)count;
	}
}

/* Read once, or until a whole message is there. 0 at the end of file. */
static size_t
read_some(int descriptor, size_t size, bool whole)
{
	size_t total = 0;
	ssize_t count;

	do {
		count = read(descriptor, buffer + total, size - total);
		if (count == -1)
			fail("a floor's read: %s", strerror(errno));
		total += (size_t)count;
	} while (whole && count > 0 && total < size);
	return total;
}

static void
run_sender(const struct plan *plan, int to, int results)
{
	struct report report = {0, now_ns()};
	unsigned turn;

	do { /* reading the clock costs a few percent of a short write */
		for (turn = 0; turn < (plan->write_size < COPY_CHUNK ? 64 : 1); turn++) {
			write_all(to, buffer, plan->write_size);
			report.bytes += plan->write_size;
		}
	} while (now_ns() - report.at < plan->duration);
	write_all(results, &report, sizeof report);
}

static void
run_relay(const struct plan *plan, int from, const int *to)
{
	size_t count;
	int i;

	while ((count = read_some(from, plan->read_size, plan->whole)) > 0)
		for (i = 0; i < plan->receivers; i++)
			write_all(to[i], buffer, count);
}

static void
run_receiver(const struct plan *plan, int from, int results)
{
	struct report report = {0, 0};
	size_t count;

	while ((count = read_some(from, plan->read_size, plan->whole)) > 0)
		report.bytes += count;
	report.at = now_ns();
	write_all(results, &report, sizeof report);
}

/* The sender's report, then those of the receivers, as bytes per second. */
static double
collect(const struct plan *plan, int sent, int received)
{
	struct report sender, receiver;
	int64_t end = 0;
	int i;

	read_result(sent, &sender, sizeof sender);
	for (i = 0; i < plan->receivers; i++) {
		read_result(received, &receiver, sizeof receiver);
		if (receiver.bytes != sender.bytes)
			fail("a floor lost bytes: %llu of %llu arrived",
			     (unsigned long long)receiver.bytes, (unsigned long long)sender.bytes);
		end = receiver.at > end ? receiver.at : end;
	}
	return (double)sender.bytes * plan->receivers * 1e9 / (double)(end - sender.at);
}

/* Bytes per second, summed over the receivers. */
static double
stream(const struct plan *plan)
{
	int in[2], out[RECEIVERS_MAX], pair[2], sent[2], received[2];
	double result;
	int i;

	make_pair(sent, 0);
	make_pair(received, 0);
	for (i = 0; i < plan->receivers; i++) {
		make_pair(pair, plan->socket_buffer);
		if (spawn() == 0) {
			close(pair[0]);
			while (i-- > 0) /* the older ones' ends: they wait for the end of file */
				close(out[i]);
			run_receiver(plan, pair[1], received[1]);
			_exit(0);
		}
		close(pair[1]);
		out[i] = pair[0];
	}
	make_pair(in, plan->socket_buffer);
	if (spawn() == 0) {
		close(in[0]);
		run_relay(plan, in[1], out);
		_exit(0);
	}
	close(in[1]);
	for (i = 0; i < plan->receivers; i++)
		close(out[i]);
	if (spawn() == 0) {
		run_sender(plan, in[0], sent[1]);
		_exit(0);
	}
	close(in[0]);
	result = collect(plan, sent[0], received[0]);
	for (i = 0; i < 2; i++) {
		close(sent[i]);
		close(received[i]);
	}
	reap();
	return result;
}

/* Messages per second, and megabytes of data per second. */
static void
stream_messages(const struct plan *plan, const struct trial *trial, double *figures)
{
	figures[0] = stream(plan) / (double)frame_bytes(trial->bytes);
	figures[1] = figures[0] * (double)trial->bytes / 1e6;
}

void
floor_copy(const struct trial *trial, double *figures)
{
	struct plan plan = {COPY_CHUNK, COPY_CHUNK, false, 0, trial->apps, trial->duration};

	stream_messages(&plan, trial, figures);
}

/* One receiver, however many apps share the messages elsewhere. */
void
floor_copy_once(const struct trial *trial, double *figures)
{
	struct plan plan = {COPY_CHUNK, COPY_CHUNK, false, 0, 1, trial->duration};

	stream_messages(&plan, trial, figures);
}

/* Find out in a short run which sizes are the best ones here. */
static struct plan
find_best(int64_t duration)
{
	static const int socket_buffers[] = {0, 256 * 1024, 512 * 1024, 1024 * 1024};
	struct plan plan = {0, 0, false, 0, 1, duration};
	struct plan best = plan;
	double result, most = 0;
	size_t chunk, i;

	for (chunk = COPY_CHUNK; chunk <= CHUNK_MAX; chunk *= 2)
		for (i = 0; i < sizeof socket_buffers / sizeof socket_buffers[0]; i++) {
			plan.write_size = plan.read_size = chunk;
			plan.socket_buffer = socket_buffers[i];
			result = stream(&plan);
			if (result > most) {
				most = result;
				best = plan;
			}
		}
	fprintf(stderr, "copy-best: chunks of %zu KiB, SO_SNDBUF %d KiB (0: the system's)\n",
	        best.write_size / 1024, best.socket_buffer / 1024);
	return best;
}

void
floor_copy_best(const struct trial *trial, double *figures)
{
	static struct plan best;

	if (best.receivers == 0)
		best = find_best(trial->duration / 5);
	best.duration = trial->duration;
	stream_messages(&best, trial, figures);
}

void
floor_copy_turn(const struct trial *trial, double *figures)
{
	struct plan plan = {
		frame_bytes(trial->bytes), COPY_CHUNK, false, 0, trial->apps, trial->duration};

	stream_messages(&plan, trial, figures);
}

void
floor_naive(const struct trial *trial, double *figures)
{
	size_t frame = frame_bytes(trial->bytes);
	struct plan plan = {frame, frame, true, 0, trial->apps, trial->duration};

	stream_messages(&plan, trial, figures);
}

/* ---- latency ------------------------------------------------------------- */

/* Poll, then read a whole message; false at the end of file. */
static bool
await(int descriptor, size_t size)
{
	struct pollfd wait = {.fd = descriptor, .events = POLLIN};
	size_t total = 0;
	ssize_t count;

	while (total < size) {
		poll(&wait, 1, -1);
		count = read(descriptor, buffer, sizeof buffer);
		if (count <= 0)
			return false;
		total += (size_t)count;
	}
	return true;
}

/* What comes from one side goes to the other. */
static void
run_middle(const int sides[2])
{
	struct pollfd wait[2] = {{.fd = sides[0], .events = POLLIN},
	                         {.fd = sides[1], .events = POLLIN}};
	ssize_t count;
	int i;

	for (;;) {
		poll(wait, 2, -1);
		for (i = 0; i < 2; i++) {
			if (wait[i].revents == 0)
				continue;
			count = read(sides[i], buffer, sizeof buffer);
			if (count <= 0)
				return;
			write_all(sides[1 - i], buffer, (size_t)count);
		}
	}
}

/* Call again and again for the time of the trial; report the p50 and p99 of a call, in us. */
static void
run_rounds(void (*call)(const int *to, size_t size, int count), const int *to,
           const struct trial *trial, int results)
{
	static double latencies[LATENCIES_MAX];
	size_t size = frame_bytes(trial->bytes), count = 0;
	int64_t start = now_ns(), sent = start, now;
	double figures[2];

	do {
		call(to, size, trial->apps);
		now = now_ns();
		latencies[count++] = (double)(now - sent) / 1e3;
		sent = now;
	} while (count < LATENCIES_MAX && now - start < trial->duration);
	figures[0] = percentile(latencies, count, 0.50);
	figures[1] = percentile(latencies, count, 0.99);
	write_all(results, figures, sizeof figures);
}

static void
ping(const int *to, size_t size, int count)
{
	(void)count;
	write_all(to[0], buffer, size);
	if (!await(to[0], size))
		fail("pingpong: no answer");
}

void
floor_pingpong(const struct trial *trial, double *figures)
{
	size_t size = frame_bytes(trial->bytes);
	int left[2], right[2], results[2];
	int sides[2];

	pin(true);
	make_pair(left, 0);
	make_pair(right, 0);
	make_pair(results, 0);
	sides[0] = left[1];
	sides[1] = right[1];
	if (spawn() == 0) {
		close(left[0]);
		close(right[0]);
		run_middle(sides);
		_exit(0);
	}
	close(left[1]);
	close(right[1]);
	if (spawn() == 0) {
		close(left[0]);
		while (await(right[0], size))
			write_all(right[0], buffer, size);
		_exit(0);
	}
	close(right[0]);
	if (spawn() == 0) {
		run_rounds(ping, left, trial, results[1]);
		_exit(0);
	}
	close(left[0]);
	read_result(results[0], figures, 2 * sizeof *figures);
	close(results[0]);
	close(results[1]);
	reap();
	pin(false);
}

/* ---- one to all, and all to one ------------------------------------------- */

enum { ANSWER = 32 }; /* bytes */

/* Write to all, then wait until each has answered. */
static void
call_all(const int *to, size_t size, int count)
{
	struct pollfd wait[RECEIVERS_MAX];
	int i, answers = 0;

	for (i = 0; i < count; i++) {
		write_all(to[i], buffer, size);
		wait[i] = (struct pollfd){.fd = to[i], .events = POLLIN};
	}
	while (answers < count) {
		poll(wait, (nfds_t)count, -1);
		for (i = 0; i < count; i++)
			if (wait[i].revents != 0) {
				read_some(to[i], ANSWER, true);
				answers++;
			}
	}
}

void
floor_star(const struct trial *trial, double *figures)
{
	size_t size = frame_bytes(trial->bytes);
	int to[RECEIVERS_MAX], pair[2], results[2];
	int i;

	pin(true);
	for (i = 0; i < trial->apps; i++) {
		make_pair(pair, 0);
		if (spawn() == 0) {
			close(pair[0]);
			while (i-- > 0) /* or the older children see no end of file */
				close(to[i]);
			while (await(pair[1], size))
				write_all(pair[1], buffer, ANSWER);
			_exit(0);
		}
		close(pair[1]);
		to[i] = pair[0];
	}
	make_pair(results, 0);
	if (spawn() == 0) {
		run_rounds(call_all, to, trial, results[1]);
		_exit(0);
	}
	for (i = 0; i < trial->apps; i++)
		close(to[i]);
	read_result(results[0], figures, 2 * sizeof *figures);
	close(results[0]);
	close(results[1]);
	reap();
	pin(false);
}
