/*
 * RESP2, the language of Redis: bytes to replies, words to bytes.
 *
 *	+OK\r\n             a status           $5\r\nhello\r\n    a string, any bytes
 *	-ERR no\r\n         an error           $-1\r\n  *-1\r\n   nil
 *	:42\r\n             an integer         *2\r\n ... ...     an array of two
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#ifndef RESP_H
#define RESP_H

#include "redis.h"

enum resp { RESP_WHOLE, RESP_TORN, RESP_BROKEN };

struct resp_parser {
	struct redis_reply *elements; /* the first is the reply; to be freed */
	size_t size, used;            /* there is room for `size`, and `used` are in it */
	size_t at;                    /* RESP_WHOLE: the reply's length in bytes */
	const char *why;              /* RESP_BROKEN: it is no reply */
};

/* Parse the reply that begins at bytes[0]. RESP_TORN: more bytes must come. The texts of a whole
 * reply stand where they were read, and a 0 ends each: parse it once. */
enum resp resp_parse(struct resp_parser *resp, char *bytes, size_t length);

/* The bytes of a command, and how many they are; with NULL only that. */
size_t resp_command(char *bytes, size_t argc, const char *const argv[], const size_t lengths[]);

/* Write a number as a C string, and return the address of its end. */
char *resp_number(char *at, uint64_t number);

#endif
