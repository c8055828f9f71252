/*
 * What the two files of live share: live.c, the parent, and live_app.c, its agent and apps.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#ifndef EXAMPLES_LIVE_H
#define EXAMPLES_LIVE_H

#include <stdbool.h>

struct messenger;

extern const char live_html[]; /* the page: live.html, which the Makefile turns into C */

extern int live_workers; /* how many apps there are */

/* A page that has the token may order. There is a new token for each start. */
extern char live_token[33];
bool live_make_token(void);

/* For struct options. */
int live_agent(struct messenger *agent, void *arg);
int live_app(struct messenger *app, void *arg);
int live_connection(struct messenger *app, int descriptor, void *arg);

#endif
