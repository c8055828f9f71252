/*
 * A bridge between clusters: the apps of all clusters hear what one cluster sends.
 *
 *	machine A                                                        machine B
 *	app app app                                                    app app app
 *	  \  |  /                                                        \  |  /
 *	   agent ..... PUBLISH, XADD ..> Redis ..> SUBSCRIBE, XREADGROUP .. agent
 *
 * Agents meet in Redis (5 or newer); apps know only their agent. The agent and each app start
 * their end with the same call in their role's function:
 *
 *	bridge = bridge_start(messenger, &(struct bridge_options){.url = "redis://10.0.0.1"});
 *
 * An app then calls bridge_on(bridge, "refresh", on_refresh, arg), and both can say
 * bridge_publish(bridge, NULL, "refresh", "\"push\""), anywhere. Two kinds of message:
 *
 *	                 bridge_publish              bridge_send
 *	in Redis         publish/subscribe           a stream, one consumer group a cluster
 *	Redis away       own apps hear it, no        it waits at its sender; a full outbox
 *	                 other; the log counts       refuses (ENOBUFS)
 *	a cluster away   it does not hear            it hears when it is back
 *	each app hears   once, or not                at least once: a repeat has the same id
 *	order            each sender's               the stream's, the same in all clusters;
 *	                                             each sender's, repeats aside
 *	own apps         at once, by the agent       through Redis, like all others
 *
 * Messages travel in batches: those of one turn of the agent's loop, or those that wait while Redis
 * takes the last ones. A bridge of clutch's first version, which knew no batches, is heard, and
 * hears nothing: the logs of both sides say so.
 *
 * A cluster has joined from its agent's first connection on: Redis knows its name, and keeps for it
 * the messages that are sent from then on, up to BRIDGE_STREAM_MAX. When Redis is restarted without
 * appendonly, its messages are lost, and the clusters join again by themselves.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
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

/* The longest data, in bytes. The bridge's own text and the data must fit in a message. */
#ifndef BRIDGE_DATA_MAX
#define BRIDGE_DATA_MAX (MESSAGE_DATA_MAX < 128 * 1024 ? MESSAGE_DATA_MAX / 2 : 64 * 1024)
#endif

/* The most bytes of reliable messages, and the most messages, that wait at their sender until
 * Redis has them; more are refused. */
#ifndef BRIDGE_WAITING_BYTES
#define BRIDGE_WAITING_BYTES (4 * 1024 * 1024)
#endif
#define BRIDGE_WAITING_MAX (BRIDGE_WAITING_BYTES / 4096)

/* The most batches that the agent takes from the stream before the apps have heard them. */
#ifndef BRIDGE_BATCH
#define BRIDGE_BATCH 128
#endif

/* About how many batches of a channel's stream Redis keeps, and the most bytes of a batch
 * that is not one message. */
#ifndef BRIDGE_STREAM_MAX
#define BRIDGE_STREAM_MAX 10000
#endif
#ifndef BRIDGE_ENTRY_MAX
#define BRIDGE_ENTRY_MAX (16 * 1024)
#endif

/* How long a process that leaves waits for Redis to take its messages, in ms. */
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
	/* How long Redis may take to answer; REDIS_TIMEOUT. An app that is ready and does not acknowledge,
	 * or has not started its end, holds up its cluster's reliable messages for at most
	 * twice this time. Then the others go on, and messages for that app wait in its
	 * channel. */
	int timeout;
};

/* One message for a listener. All of it lives until the listener returns. */
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

/* Agent and app: start this process's end, in the role's function. The agent does not wait for
 * Redis; without it the cluster runs on, and the log has one line. NULL with errno: EINVAL (URL,
 * channel or cluster; a role that is neither), ENOMEM. */
struct bridge *bridge_start(struct messenger *messenger, const struct bridge_options *options);

/* App: call the listener for each message of that action; NULL: for every one, before
 * the others. A listener that is added while a message is being delivered is called from
 * the next message on. errno: EINVAL (no listener; an agent), ENOMEM. */
int bridge_on(struct bridge *bridge, const char *action, bridge_listener listener, void *arg);

/* Send to the apps of one cluster, or (NULL) of all, this one included. data is a C string of
 * JSON, or NULL.
 *   publish   and forget: the apps that are there now may hear it. errno: as at
 *             messenger_send.
 *   send      reliably: an accepted message waits here until Redis has it. It survives the
 *             death of the agent and of Redis, but not the death of this process.
 *             errno: ENOBUFS (too many messages wait already: it is not sent).
 * Both: EINVAL (a name), EMSGSIZE (the data), ENOMEM. */
int bridge_publish(struct bridge *bridge, const char *cluster, const char *action,
                   const char *data);
int bridge_send(struct bridge *bridge, const char *cluster, const char *action, const char *data);

/* The number of reliable messages of this process that may not have reached Redis. */
size_t bridge_waiting(const struct bridge *bridge);

#ifdef __cplusplus
}
#endif

#endif
