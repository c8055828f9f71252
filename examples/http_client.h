/*
 * An HTTP client for the examples, on top of messenger_watch and messenger_set_timeout. It
 * fetches a page, or listens to a stream. It never blocks, and it has a limit for
 * everything that a server can make it keep or wait for.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#ifndef EXAMPLES_HTTP_CLIENT_H
#define EXAMPLES_HTTP_CLIENT_H

#include <stdbool.h>

struct messenger;

/* Bytes. */
#ifndef HTTP_ANSWER_HEAD_MAX
#define HTTP_ANSWER_HEAD_MAX 8192
#endif
#ifndef HTTP_ANSWER_BODY_MAX
#define HTTP_ANSWER_BODY_MAX 65536
#endif
#ifndef HTTP_URL_MAX
#define HTTP_URL_MAX 1024
#endif

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
