/*
 * One call of RSMQ from the command line: to look at a queue, or to talk to the program
 * at its other end.
 *
 *	build/examples/ipc/rsmq_call URL create NAME [VT [DELAY [MAXSIZE]]]
 *	build/examples/ipc/rsmq_call URL remove NAME
 *	build/examples/ipc/rsmq_call URL attributes NAME
 *	build/examples/ipc/rsmq_call URL send NAME TEXT [DELAY]
 *	build/examples/ipc/rsmq_call URL receive NAME [VT]
 *	build/examples/ipc/rsmq_call URL delete NAME ID
 *	build/examples/ipc/rsmq_call URL hide NAME ID VT
 *
 * VT and DELAY are seconds. send prints the id of the message. receive prints the id, the
 * number of times it was received, the times at which it was first received and sent
 * (milliseconds since 1970), and the text. The exit status is 0; 1 if the call failed, and
 * one line says why; 2 if there is no such message.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "rsmq.h"
#include "standard.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The number in a word. NULL: the word is missing. */
static int
number(const char *word)
{
	char *end;
	long value;

	if (word == NULL)
		return RSMQ_DEFAULT;
	value = strtol(word, &end, 10);
	if (*word == '\0' || *end != '\0' || value < RSMQ_UNLIMITED || value > RSMQ_SECONDS_MAX) {
		fprintf(stderr, "rsmq_call: %s: not a number from -1 to %d\n", word,
		        RSMQ_SECONDS_MAX);
		exit(64);
	}
	return (int)value;
}

/* The calls. `words` is NAME and the words behind it; a missing word is NULL. Each returns
 * 1: done; 0: there is no such message; -1: it failed. */
static int
create(struct redis *redis, char **words)
{
	return rsmq_create_queue(redis, words[0], number(words[1]), number(words[2]),
	                         number(words[3])) == 0
	               ? 1
	               : -1;
}

static int
remove_queue(struct redis *redis, char **words)
{
	return rsmq_delete_queue(redis, words[0]) == 0 ? 1 : -1;
}

static int
attributes(struct redis *redis, char **words)
{
	struct rsmq_attributes a;

	if (rsmq_get_queue_attributes(redis, words[0], &a) == -1)
		return -1;
	printf("{\"vt\":%" PRId64 ",\"delay\":%" PRId64 ",\"maxsize\":%" PRId64
	       ",\"totalrecv\":%" PRId64 ",\"totalsent\":%" PRId64 ",\"created\":%" PRId64
	       ",\"modified\":%" PRId64 ",\"msgs\":%" PRId64 ",\"hiddenmsgs\":%" PRId64 "}\n",
	       a.vt, a.delay, a.maxsize, a.totalrecv, a.totalsent, a.created, a.modified, a.msgs,
	       a.hiddenmsgs);
	return 1;
}

static int
send_message(struct redis *redis, char **words)
{
	char id[RSMQ_ID_LENGTH + 1];

	if (rsmq_send_message(redis, words[0], words[1], number(words[2]), id) == -1)
		return -1;
	printf("%s\n", id);
	return 1;
}

static int
receive(struct redis *redis, char **words)
{
	struct rsmq_message message;
	int received = rsmq_receive_message(redis, words[0], number(words[1]), &message);

	if (received != 1)
		return received;
	printf("%s %" PRId64 " %" PRId64 " %" PRId64 " %s\n", message.id, message.rc, message.fr,
	       message.sent, message.message);
	free(message.message);
	return 1;
}

static int
delete_message(struct redis *redis, char **words)
{
	return rsmq_delete_message(redis, words[0], words[1]);
}

static int
hide(struct redis *redis, char **words)
{
	return rsmq_change_message_visibility(redis, words[0], words[1], number(words[2]));
}

static const struct call {
	const char *name;
	int least, most; /* words: NAME and those behind it */
	int (*run)(struct redis *redis, char **words);
} calls[] = {{"create", 1, 4, create},
             {"remove", 1, 1, remove_queue},
             {"attributes", 1, 1, attributes},
             {"send", 2, 3, send_message},
             {"receive", 1, 2, receive},
             {"delete", 2, 2, delete_message},
             {"hide", 3, 3, hide}};

static const struct call *
find(int argc, char **argv)
{
	size_t i;

	for (i = 0; argc >= 3 && i < sizeof calls / sizeof calls[0]; i++)
		if (strcmp(argv[2], calls[i].name) == 0 && argc - 3 >= calls[i].least &&
		    argc - 3 <= calls[i].most)
			return &calls[i];
	return NULL;
}

static void
no_log(const char *line, void *arg)
{
	(void)line, (void)arg; /* the result of the call says more */
}

int
main(int argc, char **argv)
{
	const struct call *call = find(argc, argv);
	char *words[4] = {NULL};
	struct redis *redis;
	int result;

	if (call == NULL) {
		fprintf(stderr, "usage: rsmq_call URL create|remove|attributes|send|receive|"
		                "delete|hide NAME ...\n");
		return 64;
	}
	if (!fill_standard_descriptors()) {
		fprintf(stderr, "rsmq_call: /dev/null: %s\n", strerror(errno));
		return 1;
	}
	redis = redis_open(NULL, argv[1], &(struct redis_options){.log = no_log});
	if (redis == NULL) {
		fprintf(stderr, "rsmq_call: %s: %s\n", argv[1], strerror(errno));
		return errno == EINVAL ? 64 : 1;
	}
	signal(SIGPIPE, SIG_IGN);
	memcpy(words, argv + 3, (size_t)(argc - 3) * sizeof *words);
	result = call->run(redis, words);
	if (result == -1)
		fprintf(stderr, "rsmq_call: %s %s: %s\n", call->name, words[0], rsmq_reason());
	redis_close(redis);
	return result == 1 ? 0 : result == 0 ? 2 : 1;
}
