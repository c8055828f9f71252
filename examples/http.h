/*
 * HTTP for the examples, on top of messenger_watch and messenger_set_timeout.
 *
 * The server speaks HTTP/1.1: GET and HEAD, keep-alive, pipelining, streams. It
 * never blocks, bounds all that a client can make it keep or wait for, and leaves
 * with its process: idle connections are closed, begun requests are answered.
 * The client fetches a page, or listens to a stream, under the same limits.
 */
#ifndef EXAMPLES_HTTP_H
#define EXAMPLES_HTTP_H

#include <stdbool.h>

struct messenger;

/* Bytes. */
#ifndef HTTP_HEAD_MAX
#define HTTP_HEAD_MAX 8192 /* request line and headers: more is a 431 */
#endif
#ifndef HTTP_BODY_MAX
#define HTTP_BODY_MAX 65536 /* of a request, thrown away (more: a 413); of an answer */
#endif
#ifndef HTTP_OUTPUT_MAX
#define HTTP_OUTPUT_MAX 65536 /* with more unwritten, no further request is begun */
#endif
#ifndef HTTP_URL_MAX
#define HTTP_URL_MAX 1024 /* what the client asks for */
#endif

/* Milliseconds. */
#ifndef HTTP_IDLE_TIMEOUT
#define HTTP_IDLE_TIMEOUT 5000 /* between two requests: then the connection ends */
#endif
#ifndef HTTP_REQUEST_TIMEOUT
#define HTTP_REQUEST_TIMEOUT 10000 /* from a request's first byte to its last: a 408 */
#endif
#ifndef HTTP_WRITE_TIMEOUT
#define HTTP_WRITE_TIMEOUT 10000 /* for a client that reads nothing */
#endif

/*
 * One request. It is the server's, and it lives until it is answered, even when
 * its client has gone meanwhile. The strings are as the client sent them (%41
 * stays %41), without control characters.
 */
struct http_request {
	struct messenger *app;
	const char *method; /* "GET" or "HEAD"; all else has got its 405 */
	const char *path;   /* begins with '/' */
	const char *query;  /* what follows the '?', or "" */
};

/*
 * Answers with http_reply: at once, or it keeps the request and something that
 * it set in motion replies later. Non-zero is an uncaught exception, as in
 * messenger.h: an unanswered request then gets a 500, and is gone.
 */
typedef int (*http_handler)(struct http_request *request, void *arg);

/*
 * Serve a connection until it ends: options.connection can be this one call.
 * The descriptor becomes the server's. Returns 0: a connection that there is no
 * memory for is closed.
 */
int http_serve(struct messenger *app, int descriptor, http_handler handler, void *arg);

/*
 * Answer a request, exactly once; the request and its strings are gone then.
 * status is one that has a body (not 204, not 304); type is the Content-Type,
 * text/plain if NULL; HEAD is taken care of. Returns 0: if the client has gone,
 * or memory is short, the answer is lost and with it the connection.
 */
int http_reply(struct http_request *request, int status, const char *type, const char *body);

/*
 * Answer a request with 200 and a stream: text that goes on until the client leaves,
 * or does not read it, or the process leaves. It begins with `first`; http_publish,
 * at any time, adds a text to all streams of a topic. A topic is an address, of
 * anything. The rest is as at http_reply.
 */
int http_subscribe(struct http_request *request, const char *type, const void *topic,
                   const char *first);
void http_publish(const void *topic, const char *text);

/*
 * What a client hears: the status of an answer, and its body. The status is 0 if
 * there is no answer, or none any longer; then the text says why. The text lives
 * until the listener returns; non-zero is an uncaught exception, as in messenger.h.
 */
typedef int (*http_listener)(struct messenger *messenger, int status, const char *text, void *arg);

/* Is it an url that the client can fetch? "http://127.0.0.1:7002/data": numbers, or
 * "localhost"; another name would have to be looked up, which blocks. */
bool http_is_url(const char *url);

/*
 * Fetch an url. The listener is called exactly once, later, after `timeout` ms at
 * the latest. -1 with errno, and it will not be called: EINVAL (the url), ENOMEM, or
 * what socket(2) and connect(2) say.
 */
int http_get(struct messenger *messenger, const char *url, int timeout, http_listener listener,
             void *arg);

/*
 * The same for a stream: the listener is called for each line, without its end, and
 * once more with status 0 when it is over: when the server leaves, or is silent
 * for `silence` ms, or refuses from the start.
 */
int http_listen(struct messenger *messenger, const char *url, int silence, http_listener listener,
                void *arg);

#endif
