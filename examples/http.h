/*
 * HTTP for the examples, on top of messenger_watch and messenger_set_timeout.
 *
 * The server speaks HTTP/1.1: GET and HEAD, keep-alive, pipelining, streams. It never
 * blocks, and it has a limit for everything that a client can make it keep or wait for.
 * When its process leaves, it closes idle connections and answers requests that have
 * begun. The client fetches a page, or listens to a stream, under the same limits.
 */
#ifndef EXAMPLES_HTTP_H
#define EXAMPLES_HTTP_H

#include <stdbool.h>

struct messenger;

/* Bytes. */
#ifndef HTTP_HEAD_MAX
#define HTTP_HEAD_MAX 8192 /* request line and headers; more is answered with 431 */
#endif
#ifndef HTTP_BODY_MAX
#define HTTP_BODY_MAX 65536 /* of a request, which is skipped (more: 413); of an answer */
#endif
#ifndef HTTP_OUTPUT_MAX
#define HTTP_OUTPUT_MAX 65536 /* while more is unwritten, no further request begins */
#endif
#ifndef HTTP_URL_MAX
#define HTTP_URL_MAX 1024 /* of the client */
#endif

/* Milliseconds. */
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
 * client is gone by then. The strings are as the client sent them (%41 stays %41), without
 * control characters.
 */
struct http_request {
	struct messenger *app;
	const char *method; /* "GET" or "HEAD"; others are answered with 405 */
	const char *path;   /* begins with '/' */
	const char *query;  /* what follows the '?', or "" */
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
 * Answer a request, exactly once; the request and its strings are gone then.
 * status is one that has a body (not 204, not 304); type is the Content-Type, text/plain
 * if NULL; for HEAD the body is left out. Returns 0: if the client is gone, or there is no
 * memory, the answer and its connection are lost.
 */
int http_reply(struct http_request *request, int status, const char *type, const char *body);

/*
 * Answer a request with 200 and a stream: a text that goes on until the client leaves or
 * does not read it, or the process leaves. It begins with `first`; http_publish adds a
 * text to all streams of a topic, and may be called anywhere, in a handler too. A topic is
 * any address. The rest is as at http_reply.
 */
int http_subscribe(struct http_request *request, const char *type, const void *topic,
                   const char *first);
void http_publish(const void *topic, const char *text);

/*
 * The listener of a client hears the status of an answer, and its body. Status 0: there
 * is no answer, or a stream has ended, and the text says why. The text lives until the
 * listener returns; non-zero is an uncaught exception, as in messenger.h.
 */
typedef int (*http_listener)(struct messenger *messenger, int status, const char *text, void *arg);

/* Can the client fetch this url? "http://127.0.0.1:7002/data": a numeric address, or
 * "localhost". Any other name would need a lookup, which blocks. */
bool http_is_url(const char *url);

/*
 * Fetch an url. The listener is called exactly once, in a later turn of the loop, after
 * `timeout` ms at the latest. On -1 it is not called. errno: EINVAL (the url), ENOMEM, or
 * that of socket(2) and connect(2).
 */
int http_get(struct messenger *messenger, const char *url, int timeout, http_listener listener,
             void *arg);

/*
 * The same for a stream: the listener is called for each line, without its line end, and
 * once more with status 0 when the stream has ended: the server has left, was silent for
 * `silence` ms, or did not answer with 200.
 */
int http_listen(struct messenger *messenger, const char *url, int silence, http_listener listener,
                void *arg);

#endif
