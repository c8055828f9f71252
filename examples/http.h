/*
 * An HTTP server for the examples, on top of messenger_watch and messenger_set_interval.
 *
 * It speaks HTTP/1.1: bodies with a length, keep-alive, pipelining, streams. It never
 * blocks, and it has a limit for everything that a client can make it keep or wait for.
 * When its process leaves, it closes idle connections and answers requests that have
 * begun. The client is in http_client.h.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#ifndef EXAMPLES_HTTP_H
#define EXAMPLES_HTTP_H

#include <stdbool.h>
#include <stddef.h>

struct messenger;

/* Bytes. */
#ifndef HTTP_HEAD_MAX
#define HTTP_HEAD_MAX 8192 /* request line and headers; more is answered with 431 */
#endif
#ifndef HTTP_BODY_MAX
#define HTTP_BODY_MAX 65536 /* of a request; more is answered with 413 */
#endif
#ifndef HTTP_OUTPUT_MAX
#define HTTP_OUTPUT_MAX 65536 /* while more is unwritten, no further request begins */
#endif

/* Milliseconds. The time limits are checked every HTTP_SWEEP. */
#ifndef HTTP_SWEEP
#define HTTP_SWEEP 250
#endif
#ifndef HTTP_IDLE_TIMEOUT
#define HTTP_IDLE_TIMEOUT 5000 /* between two requests; then the connection ends */
#endif
#ifndef HTTP_REQUEST_TIMEOUT
#define HTTP_REQUEST_TIMEOUT 10000 /* from a request's first byte to its last; then 408 */
#endif
#ifndef HTTP_WRITE_TIMEOUT
#define HTTP_WRITE_TIMEOUT 10000 /* for a client that reads nothing */
#endif

/*
 * One request. It belongs to the server, and it lives until it is answered, even if its
 * client is gone by then. Path and query are as the client sent them (%41 stays %41),
 * without control characters; the body may have any bytes.
 */
struct http_request {
	struct messenger *app;
	const char *method; /* "GET", "POST", or whatever the client sent: see http_allow */
	const char *path;   /* begins with '/' */
	const char *query;  /* what follows the '?', or "" */
	const char *host;   /* what the client calls this server, or "" */
	const char *origin; /* whose page sends it, as a browser says ("http://host"), or "" */
	const char *body;   /* "" if there is none; body[body_length] is 0 */
	size_t body_length;
};

/*
 * A handler answers with http_reply, at once or later: until then it keeps the request.
 * Non-zero is an uncaught exception, as in messenger.h: an unanswered request is then
 * answered with 500, and is gone.
 */
typedef int (*http_handler)(struct http_request *request, void *arg);

/*
 * Serve a connection until it ends: options.connection can be this one call. The
 * descriptor becomes the server's. Returns 0; without memory the connection is closed.
 */
int http_serve(struct messenger *app, int descriptor, http_handler handler, void *arg);

/*
 * Is the request's method one of these ("GET, HEAD")? If not, this answers the request
 * with 405 and the list, and the handler has nothing more to do.
 */
bool http_allow(struct http_request *request, const char *methods);

/*
 * Answer a request, exactly once; the request and its strings are gone then.
 * status is one that has a body (not 204, not 304); type is the Content-Type, text/plain
 * if NULL; for HEAD the body is left out. Returns 0: if the client is gone, or there is no
 * memory, the answer and its connection are lost.
 */
int http_reply(struct http_request *request, int status, const char *type, const char *body);

/*
 * Let the connection end with the answer that follows. The client's next request then is on a
 * new connection, which any worker that is able to accepts.
 */
void http_last(struct http_request *request);

/*
 * Answer a request with 200 and a stream: a text that goes on until the client leaves or
 * does not read it, or the process leaves. It begins with `first`; http_publish adds a
 * text to all streams of a topic, and may be called anywhere, in a handler too. A topic is
 * any address. http_publish returns how many streams the topic has. The rest is as at
 * http_reply.
 */
int http_subscribe(struct http_request *request, const char *type, const void *topic,
                   const char *first);
int http_publish(const void *topic, const char *text);

#endif
