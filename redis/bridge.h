/*
 * A bridge between clusters: what one sends, the apps of all hear.
 *
 *	  machine A                                           machine B
 *	app app app                                         app app app
 *	  \  |  /                                             \  |  /
 *	  master         PUBLISH, XADD      SUBSCRIBE,        master
 *	    |    ........> +-------+ .... XREADGROUP ....>      |
 *	  agent            | Redis |                          agent
 *	         <........ +-------+ <....................
 *
 * Agents meet in Redis; apps know only their agent. The agent and each app start
 * their end with the same call:
 *
 *	static const struct bridge_options options = {.url = "redis://10.0.0.1"};
 *
 *	static int
 *	agent(struct messenger *agent, void *arg)
 *	{
 *		return bridge_start(agent, &options) == NULL;
 *	}
 *
 *	static int
 *	app(struct messenger *app, void *arg)
 *	{
 *		bridge = bridge_start(app, &options);
 *		return bridge == NULL || bridge_on(bridge, "refresh", on_refresh, arg) == -1;
 *	}
 *
 * and then, anywhere: bridge_publish(bridge, NULL, "refresh", "\"push\"").
 *
 * Two kinds of message:
 *
 *	                 bridge_publish              bridge_send
 *	in Redis         publish/subscribe           a stream, one consumer group a cluster
 *	Redis away       own apps hear it, no        it waits at its sender; a full outbox
 *	                 other; the log counts       refuses (ENOBUFS)
 *	a cluster away   it does not hear            it hears when it is back
 *	each app hears   once, or not                at least once: a repeat has the same id
 *	order            each sender's               the stream's, the same in all clusters;
 *	                                             each sender's, repeats aside, unless
 *	                                             Redis refuses one and takes the next
 *	own apps         at once, by the agent       through Redis, like all others
 *
 * A cluster has joined from its agent's first connection on: Redis knows its name,
 * and keeps for it what is sent from then on, the last BRIDGE_STREAM_MAX messages.
 * What Redis itself forgets (restarted without appendonly) is gone; then clusters
 * join anew by themselves. Redis 5 or newer.
 */
#ifndef BRIDGE_H
#define BRIDGE_H

#include "../messenger.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The longest channel, cluster and action, in bytes. No control characters, no " and
 * no \ in them. */
#ifndef BRIDGE_NAME_MAX
#define BRIDGE_NAME_MAX 100
#endif

/* The longest data, in bytes: with what stands around it, it must fit in a message. */
#ifndef BRIDGE_DATA_MAX
#if MESSAGE_DATA_MAX < 128 * 1024
#define BRIDGE_DATA_MAX (MESSAGE_DATA_MAX / 2)
#else
#define BRIDGE_DATA_MAX (64 * 1024)
#endif
#endif

/* So many reliable messages, of so many bytes together, wait at their sender until
 * Redis has them; more are refused. */
#ifndef BRIDGE_WAITING_MAX
#define BRIDGE_WAITING_MAX 1024
#endif
#ifndef BRIDGE_WAITING_BYTES
#define BRIDGE_WAITING_BYTES (4 * 1024 * 1024)
#endif

/* The agent takes so many from the stream at once; then the apps must have heard
 * them before it takes more. */
#ifndef BRIDGE_BATCH
#define BRIDGE_BATCH 32
#endif

/* Redis keeps about so many messages of a channel's stream. */
#ifndef BRIDGE_STREAM_MAX
#define BRIDGE_STREAM_MAX 10000
#endif

/* A process that leaves gives Redis so long to take what waits. */
#ifndef BRIDGE_LEAVE_TIMEOUT
#define BRIDGE_LEAVE_TIMEOUT 1000
#endif

/* One process's end of the bridge. It lives as long as the process. */
struct bridge;

/* Zero (or NULL) in a field means its default. */
struct bridge_options {
	const char *url;     /* of Redis, as in redis.h; redis://127.0.0.1 */
	const char *channel; /* where clusters meet; "bridge" */
	const char *cluster; /* this one's name, no other's; the host's */
	/* For Redis to answer; REDIS_TIMEOUT. Twice as long an app that does not hear holds up
	 * the reliable messages for its cluster: then the others go on, and what was sent
	 * to it waits in its channel. */
	int timeout;
};

/* What a listener hears. All of it lives until the listener returns. */
struct bridge_message {
	const char *id;   /* of this message alone; its repeats have it too */
	const char *from; /* the cluster */
	const char *action;
	const char *data; /* JSON text, data[data_length] is 0; NULL: none */
	size_t data_length;
};

/* Non-zero is an uncaught exception, as in messenger.h. */
typedef int (*bridge_listener)(struct bridge *bridge, const struct bridge_message *message,
                               void *arg);

/*
 * Agent and app: start this process's end, in the role's function. The agent does not
 * wait for Redis; without it the cluster runs on, and the log has one line.
 * NULL with errno: EINVAL (URL, channel or cluster; a role that is neither), ENOMEM.
 */
struct bridge *bridge_start(struct messenger *messenger, const struct bridge_options *options);

/* App: call the listener for each message of that action; NULL: for every one, before
 * the others. errno: EINVAL (no listener; an agent), ENOMEM. */
int bridge_on(struct bridge *bridge, const char *action, bridge_listener listener, void *arg);

/*
 * Send to the apps of one cluster, or (NULL) of all, this one included. data is a C
 * string of JSON, or NULL.
 *   publish   and forget: who is there now may hear it. errno: as at messenger_send.
 *   send      reliably. Accepted, it waits here until Redis has it, over the death of
 *             the agent and of Redis; not over the death of this process.
 *             errno: ENOBUFS (so many wait already: it is not sent).
 * Both: EINVAL (a name), EMSGSIZE (the data), ENOMEM.
 */
int bridge_publish(struct bridge *bridge, const char *cluster, const char *action,
                   const char *data);
int bridge_send(struct bridge *bridge, const char *cluster, const char *action, const char *data);

/* The reliable messages of this process that Redis is not known to have. */
size_t bridge_waiting(const struct bridge *bridge);

#ifdef __cplusplus
}
#endif

#endif
