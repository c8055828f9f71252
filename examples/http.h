/*
 * The HTTP/1.1 server of the examples, on top of messenger_watch and
 * messenger_set_timeout: GET and HEAD, keep-alive, pipelining. It never blocks,
 * bounds all that a client can make it keep or wait for, and leaves with its
 * process: idle connections are closed, begun requests are answered.
 */
#ifndef EXAMPLES_HTTP_H
#define EXAMPLES_HTTP_H

struct messenger;

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

#endif
