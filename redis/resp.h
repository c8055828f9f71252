/*
 * RESP2, the language of Redis: bytes to replies, words to bytes. No input, no
 * output, no memory of its own: redis.c has those.
 *
 *	+OK\r\n             a status           $5\r\nhello\r\n    a string, any bytes
 *	-ERR no\r\n         an error           $-1\r\n  *-1\r\n   nil
 *	:42\r\n             an integer         *2\r\n ... ...     an array of two
 *
 * Replies come in pieces. resp_scan goes over what is here once, checks it, and
 * counts the elements; when a reply is whole, resp_build makes the tree, in memory
 * for that many, of texts that stand where they were read.
 */
#ifndef RESP_H
#define RESP_H

#include "redis.h"

enum resp { RESP_WHOLE, RESP_TORN, RESP_BROKEN };

/* How far a reply has been scanned; all zero is its beginning. */
struct resp_scan {
	size_t at;                     /* the bytes that are done */
	size_t searched;               /* of the line behind them: its end is not in these */
	size_t elements;               /* so far */
	int depth;                     /* the arrays that are open, */
	int64_t left[REDIS_DEPTH_MAX]; /* and what each still misses */
};

/* Go on with a reply that begins at bytes[0]. RESP_WHOLE: it has scan->at bytes.
 * RESP_TORN: more must come. RESP_BROKEN: it is none, and *why says it. */
enum resp resp_scan(struct resp_scan *scan, const char *bytes, size_t length, const char **why);

/* Build a whole reply from its bytes, in as many elements as resp_scan counted; the
 * first is the reply. The bytes change: a 0 ends each text. */
void resp_build(char *bytes, struct redis_reply *elements);

/* The bytes of a command, and how many they are; with NULL only that. */
size_t resp_command(char *bytes, size_t argc, const char *const argv[], const size_t lengths[]);

#endif
