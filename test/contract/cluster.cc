/*
 * The header in C++: a cluster of one agent and one app, and its parent. The app asks
 * the agent once all is ready, and the agent's answer comes to the parent, which then
 * ends the cluster. Exits 0 if all of this has happened.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "messenger.h"
/* And once more, for the channel. */
#define CLUTCH_CHANNEL
#include "messenger.h"

#include <csignal>
#include <cstring>
#include <sys/wait.h>

static int
hear_question(struct messenger *agent, const struct message *question, void *)
{
	struct message answer = {};

	answer.action = "answer";
	answer.to = ROLE_PARENT;
	answer.data = question->data;
	answer.data_length = question->data_length;
	answer.handle = -1;
	return messenger_send_message(agent, &answer);
}

static int
ask(struct messenger *app, const struct message *, void *)
{
	return messenger_send_to_agent(app, "question", "[7]");
}

static int
run_agent(struct messenger *agent, void *)
{
	return messenger_on(agent, "question", hear_question, NULL);
}

static int
run_app(struct messenger *app, void *)
{
	return messenger_once(app, "egg-ready", ask, NULL);
}

static int
hear_answer(struct messenger *, const struct message *answer, void *heard)
{
	*static_cast<bool *>(heard) = std::strcmp(answer->data, "[7]") == 0;
	return 0;
}

/* The channel's functions link, too: a message to oneself, over one of one's own. */
static bool
channel_works()
{
	struct channel ends[2];
	struct message message = {};
	int pair[2];
	bool works;

	message.action = "self";
	message.handle = -1;
	channel_init(&ends[0], 0);
	channel_init(&ends[1], 0);
	works = channel_pair(pair) == 0 && channel_attach(&ends[0], pair[0]) == 0 &&
	        channel_attach(&ends[1], pair[1]) == 0 && sendmessage(&ends[0], &message) == 0 &&
	        channel_flush(&ends[0]) == PEER_ALIVE && channel_pending(&ends[0]) == 0 &&
	        channel_read(&ends[1]) == PEER_ALIVE && channel_next(&ends[1], &message) == 1 &&
	        std::strcmp(message.action, "self") == 0;
	channel_close(&ends[0]);
	channel_close(&ends[1]);
	return works;
}

int
main()
{
	struct options options = {}; /* every field is zero: its default */
	struct messenger *parent;
	pid_t master;
	int status = -1;
	bool heard = false;

	options.agent = run_agent;
	options.app = run_app;
	options.workers = 1;
	parent = fork_cluster(&options, &master);
	if (parent == NULL || messenger_on(parent, "answer", hear_answer, &heard) == -1)
		return 1;
	while (!heard && messenger_step(parent, -1) == 1)
		;
	kill(master, SIGTERM);
	waitpid(master, &status, 0);
	messenger_close(parent);
	return heard && WIFEXITED(status) && WEXITSTATUS(status) == 0 && channel_works() ? 0 : 1;
}
