/*
 * The lines of egg-cluster 2.5.0 that master.c, agent.c and worker.c mirror: the functions
 * that are mirrored, and each branch (if, else, for, while) of the whole file. A line without
 * an exception is cited once; a line with an exception is cited nowhere, and the exception
 * says why.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#ifndef MIRROR_H
#define MIRROR_H

#include <stddef.h>

struct mirrored {
	size_t line;
	const char *what;      /* the branch's keyword, or what begins here */
	const char *exception; /* NULL: the line is mirrored */
};

#define THREADS "worker_threads: there is one mode, processes"
#define STICKY "sticky mode: clutch has none"
#define DEBUGGER "the debugger's port: there is no inspector to attach to"
#define LOGGING "logging: one level, whole lines, no heap to report"
#define NODE "Node: modules, NODE_ENV, alinode"
#define HTTPS "https: a connection is the application's own"
#define BOUND "the master has bound the port before it forks: no app worker can listen elsewhere"
#define GROUP "the children are a process group: one signal reaches all, without a list of them"
#define ONCE_READY                                                                                 \
	"a worker that is ready is re-forked; before all are, a death ends the cluster anyway"
#define TOGETHER "D3: the loop waits for the end of all, and knows it from the kernel"

static const struct mirrored master_js[] = {
	/* constructor */
	{62, "if", LOGGING},
	{71, "if", THREADS},
	{73, "else", THREADS},
	{80, "if", NODE},
	{83, "if", LOGGING},
	{86, "else", LOGGING},
	{94, "this.ready", NULL},
	{100, "if", DEBUGGER},
	{129, "if", NULL},
	{146, "if", BOUND},
	{147, "if", BOUND},
	{162, "if", NULL},
	/* detectPorts, startMasterSocketServer, stickyWorker */
	{224, "if", STICKY},
	{229, "if", STICKY},
	{254, "if", STICKY},
	{259, "else", STICKY},
	{271, "for", STICKY},
	{272, "if", STICKY},

	{281, "forkAgentWorker", NULL},
	{286, "forkAppWorkers", NULL},
	{300, "killAgentWorker", NULL},
	{304, "killAppWorkers", NULL},

	{315, "onAgentExit", NULL},
	{316, "if", NULL},
	{334, "if", NULL},
	{344, "else", NULL},

	{351, "onAgentStart", NULL},
	{355, "if", NULL},
	{369, "if", NULL},

	{392, "onAppExit", NULL},
	{393, "if", NULL},
	{397, "if", NULL},
	{405, "if", DEBUGGER},
	{410, "else", DEBUGGER},
	{427, "if", NULL},
	{434, "else", NULL},

	{448, "onAppStart", NULL},
	{453, "if", STICKY},
	{454, "if", STICKY},
	{458, "else if", BOUND},
	{478, "if", NULL},
	{487, "if", ONCE_READY},
	{491, "if", NULL},
	{498, "for", ONCE_READY},
	{507, "if", STICKY},
	{509, "if", STICKY},
	{512, "else", STICKY},

	{521, "onExit", NULL},
	{522, "if", NULL},
	{536, "onSignal", NULL},
	{537, "if", NULL},
	{552, "onReload", NULL},
	{554, "for", NULL},
	{561, "close", NULL},
	{573, "_doClose", NULL},

	/* isProduction, getAddress */
	{600, "if", NODE},
	{614, "if", BOUND},
	{617, "if", BOUND},
	{620, "if", BOUND},
};

static const struct mirrored manager_js[] = {
	{30, "setWorker", NULL}, {38, "deleteWorker", NULL}, {46, "getListeningWorkerIds", NULL},
	{48, "for", NULL},       {49, "if", NULL},           {65, "startCheck", NULL},
	{69, "if", NULL},        {74, "if", NULL},
};

static const struct mirrored terminate_js[] = {
	{7, "function", NULL}, {24, "if", NULL},  {33, "if", GROUP},  {41, "while", TOGETHER},
	{44, "if", TOGETHER},  {53, "if", GROUP}, {60, "for", GROUP},
};

static const struct mirrored agent_worker_js[] = {
	{13, "if", NODE},          {21, "if", THREADS}, {23, "else", THREADS},
	{47, "agent.ready", NULL}, {49, "if", NULL},
};

static const struct mirrored app_worker_js[] = {
	{5, "if", NODE},           {13, "if", THREADS},   {15, "else", THREADS},
	{49, "if", BOUND},

	{79, "startServer", NULL}, {80, "if", NULL},      {93, "if", HTTPS},
	{98, "if", DEBUGGER},      {101, "else", HTTPS},  {103, "if", DEBUGGER},
	{116, "if", STICKY},       {120, "if", STICKY},   {129, "else", STICKY},
	{130, "if", BOUND},        {132, "else", BOUND},  {133, "if", BOUND},
	{138, "if", BOUND},        {141, "if", BOUND},    {146, "else", BOUND},
	{148, "if", BOUND},        {155, "if", DEBUGGER},
};

#define LINES(table) table, sizeof table / sizeof table[0]

static const struct mirror {
	const char *egg, *c; /* the files */
	const struct mirrored *lines;
	size_t count;
} mirrors[] = {
	{"lib/master.js", "./master.c", LINES(master_js)},
	{"lib/utils/manager.js", "./master.c", LINES(manager_js)},
	{"lib/utils/terminate.js", "./master.c", LINES(terminate_js)},
	{"lib/agent_worker.js", "./agent.c", LINES(agent_worker_js)},
	{"lib/app_worker.js", "./worker.c", LINES(app_worker_js)},
};

enum { MIRRORS = sizeof mirrors / sizeof mirrors[0] };

#endif
