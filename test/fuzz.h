/*
 * The shared part of the fuzz targets. A target is a file test/fuzz_NAME.c with the function
 * below, which gives an input to a parser and checks the result, mostly against a model: a
 * second, plain parser of the same input. `make fuzz` gives the target the inputs of libFuzzer,
 * and `make test T=fuzz` those of test/corpus/NAME.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#ifndef FUZZ_H
#define FUZZ_H

#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size);

#define CHECK(what)                                                                                \
	do {                                                                                       \
		if (!(what)) {                                                                     \
			fprintf(stderr, "%s:%d: this must hold and does not: %s\n", __FILE__,      \
			        __LINE__, #what);                                                  \
			abort();                                                                   \
		}                                                                                  \
	} while (0)

/* ---- a text that grows ------------------------------------------------------- */

struct text {
	char bytes[64 * 1024];
	size_t length;
};

/* Bytes that find no room are left out, also from the model's text, so both stay equal. */
static inline void
text_add(struct text *text, const void *bytes, size_t length)
{
	size_t room = sizeof text->bytes - 1 - text->length;

	length = length < room ? length : room;
	if (length > 0)
		memcpy(text->bytes + text->length, bytes, length);
	text->length += length;
	text->bytes[text->length] = '\0';
}

static inline bool
text_is(const struct text *text, const struct text *other)
{
	return text->length == other->length &&
	       memcmp(text->bytes, other->bytes, text->length) == 0;
}

/* ---- an input in pieces -------------------------------------------------------- */

/* An input is a byte, up to eight sizes of pieces, and the bytes that come in these pieces:
 *
 *	+-------+---------------+-------------------------------------+
 *	| count | count%8 sizes | the bytes; without a size: at once  |
 *	+-------+---------------+-------------------------------------+
 */
struct pieces {
	const uint8_t *sizes, *bytes;
	size_t count, length;
	size_t at, next;
};

static inline bool
pieces_read(struct pieces *pieces, const uint8_t *input, size_t size)
{
	if (size < 1 || size < 1 + (size_t)input[0] % 8)
		return false;
	*pieces = (struct pieces){.sizes = input + 1, .count = input[0] % 8};
	pieces->bytes = input + 1 + pieces->count;
	pieces->length = size - 1 - pieces->count;
	return true;
}

/* Move pieces->at behind the next piece. Returns the size of the piece; 0: there is none. */
static inline size_t
pieces_next(struct pieces *pieces)
{
	size_t left = pieces->length - pieces->at, size = left;

	if (pieces->count > 0)
		size = 1 + pieces->sizes[pieces->next++ % pieces->count];
	size = size < left ? size : left;
	pieces->at += size;
	return size;
}

/* ---- what is printed ------------------------------------------------------------ */

void __sanitizer_set_report_fd(void *descriptor) __attribute__((weak));

/* Between capture_begin and capture_end, output to stdout or stderr goes into a file. A
 * sanitizer still prints to stderr. */
struct capture {
	int descriptor, saved;
	FILE *file;
};

static inline void
capture_begin(struct capture *capture, int descriptor)
{
	static FILE *files[3];

	if (files[descriptor] == NULL) {
		files[descriptor] = tmpfile();
		CHECK(files[descriptor] != NULL);
		/* The file is emptied between inputs, so each write must go to its end. */
		CHECK(fcntl(fileno(files[descriptor]), F_SETFL, O_APPEND) == 0);
	}
	fflush(NULL);
	*capture = (struct capture){descriptor, dup(descriptor), files[descriptor]};
	CHECK(capture->saved != -1 && ftruncate(fileno(capture->file), 0) == 0);
	if (__sanitizer_set_report_fd != NULL && descriptor == STDERR_FILENO)
		__sanitizer_set_report_fd((void *)(intptr_t)capture->saved);
	CHECK(dup2(fileno(capture->file), descriptor) == descriptor);
}

static inline void
capture_end(struct capture *capture, struct text *text)
{
	ssize_t length;

	fflush(NULL);
	CHECK(dup2(capture->saved, capture->descriptor) == capture->descriptor);
	if (__sanitizer_set_report_fd != NULL && capture->descriptor == STDERR_FILENO)
		__sanitizer_set_report_fd((void *)(intptr_t)STDERR_FILENO);
	close(capture->saved);
	length = pread(fileno(capture->file), text->bytes, sizeof text->bytes - 1, 0);
	CHECK(length >= 0);
	text->length = (size_t)length;
	text->bytes[length] = '\0';
}

/* Has the text this many lines, each of them whole and without any control character? */
static inline bool
text_has_lines(const struct text *text, size_t lines)
{
	size_t i, count = 0;

	for (i = 0; i < text->length; i++)
		if (text->bytes[i] == '\n')
			count++;
		else if ((unsigned char)text->bytes[i] < ' ' || text->bytes[i] == 127)
			return false;
	return count == lines && (text->length == 0 || text->bytes[text->length - 1] == '\n');
}

#endif
