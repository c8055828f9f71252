/*
 * cluster-client: one connection to a remote service for the whole cluster.
 *
 *	                      the remote service
 *	                              |   one connection
 *	                      real client
 *	      agent           leader                     master
 *	                     /      \                    (only hands the
 *	                    /        \   a socketpair     socket over)
 *	      apps     follower    follower
 *
 * The agent holds the real client and its leader; each app worker holds a
 * follower. To its user either is a struct cluster_client with the same
 * functions. A follower makes a socketpair and sends one end to the agent, as the
 * handle of a message; from then on it and the leader talk without the master: each
 * end is a messenger that is joined to the loop of its process (messenger_join).
 * What the leader tells the agent itself goes over such a pair, too.
 *
 * Unless a function says otherwise: times are milliseconds; a pointer that you
 * pass is read during the call and stays yours; the arguments of a callback live
 * until it returns; an int result is 0, or -1 with errno set and nothing changed.
 * No callback is called inside the function that it was given to. A callback's
 * non-zero result is an uncaught exception, as in messenger.h. Data is bytes with
 * a length, usually JSON text: what you pass may be NULL, 0; what you receive has a
 * 0 at data[length].
 *
 * "egg:" names the JavaScript of npm cluster-client that a function mirrors.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#ifndef CLUSTER_CLIENT_H
#define CLUSTER_CLIENT_H

#include "../messenger.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------------------ */
/* Limits: each can be set on the compiler's command line, for tiny systems  */
/* ------------------------------------------------------------------------ */

/* The longest name of a client, and the longest key or method, in bytes. */
#ifndef CLUSTER_CLIENT_NAME_MAX
#define CLUSTER_CLIENT_NAME_MAX 128
#endif
#ifndef CLUSTER_CLIENT_KEY_MAX
#define CLUSTER_CLIENT_KEY_MAX 1024
#endif

/* The longest value, argument or result, in bytes: MESSAGE_DATA_MAX at most. What waits
 * at one end to be written is limited by CHANNEL_QUEUE_MAX. */
#ifndef CLUSTER_CLIENT_DATA_MAX
#define CLUSTER_CLIENT_DATA_MAX MESSAGE_DATA_MAX
#endif

/* The calls of one client that may be without an answer. */
#ifndef CLUSTER_CLIENT_CALLS_MAX
#define CLUSTER_CLIENT_CALLS_MAX 1024
#endif

/* The keys that one process may use at once, subscribed or published. */
#ifndef CLUSTER_CLIENT_KEYS_MAX
#define CLUSTER_CLIENT_KEYS_MAX 16384
#endif

/* The followers of one leader. */
#ifndef CLUSTER_CLIENT_FOLLOWERS_MAX
#define CLUSTER_CLIENT_FOLLOWERS_MAX (2 * CLUTCH_WORKERS_MAX)
#endif

/* Those of one process: if it opens more and more, there is room for the others. */
#ifndef CLUSTER_CLIENT_PROCESS_MAX
#define CLUSTER_CLIENT_PROCESS_MAX 16
#endif

/* The back-off, in ms: a failed start or connection is tried again after the first
 * time, then after twice as long, and so on up to the second time, without end. */
#ifndef CLUSTER_CLIENT_RETRY_MIN
#define CLUSTER_CLIENT_RETRY_MIN 100
#endif
#ifndef CLUSTER_CLIENT_RETRY_MAX
#define CLUSTER_CLIENT_RETRY_MAX 3000
#endif

/* ------------------------------------------------------------------------ */
/* Part one: the application                                                 */
/* ------------------------------------------------------------------------ */

/* One client, in the agent or in an app. */
struct cluster_client;

/* One call that a real client has to answer. */
struct cluster_call;

/* Why there is no result. The code is the real client's, or one of ours:
 *   "ResponseTimeoutError"    no answer within the response timeout
 *   "SocketCloseError"        the leader died: the call may have been made, or not
 *   "ClusterClientCloseError" this client was closed
 *   "ClusterCallLimitError"   too many calls of this process wait for the real client */
struct cluster_error {
	const char *code, *message;
};

typedef int (*cluster_ready_callback)(struct cluster_client *client,
                                      const struct cluster_error *error, void *arg);
typedef int (*cluster_listener)(struct cluster_client *client, const char *key, const char *data,
                                size_t length, void *arg);
/* With an error there is no data: NULL, 0. */
typedef int (*cluster_callback)(struct cluster_client *client, const struct cluster_error *error,
                                const char *data, size_t length, void *arg);

/*
 * A real client, which is egg's class: its functions. They are called in the
 * agent only, but the apps' followers are given the same description: they know
 * from it what can be called. It must live as long as the client. `client` is the leader;
 * arg is the one below. A function that is NULL is not offered. None but close may turn
 * the loop (messenger_step), or close the client.
 */
struct real_method {
	const char *name; /* NULL ends the list */
	/* Answer it now or later, with cluster_client_reply or _fail, once. For a
	 * one-way call `call` is NULL, and those two ignore it. */
	void (*invoke)(struct cluster_client *client, struct cluster_call *call, const char *data,
	               size_t length, void *arg);
};

struct real_client {
	/* Start; say with cluster_client_started how it went, now or later. It is
	 * called again after a failure. NULL: it is ready at once. */
	void (*ready)(struct cluster_client *client, void *arg);
	/* A key has its first subscriber, or has lost its last one. Give values to
	 * cluster_client_emit, now and whenever there is a new one. */
	void (*subscribe)(struct cluster_client *client, const char *key, void *arg);
	void (*unsubscribe)(struct cluster_client *client, const char *key, void *arg);
	void (*publish)(struct cluster_client *client, const char *key, const char *data,
	                size_t length, void *arg);
	const struct real_method *methods; /* NULL: none */
	/* The last call: `client` is not to be used afterwards. It may turn the loop where
	 * the process may (in messenger_before_close). */
	void (*close)(struct cluster_client *client, void *arg);
	void *arg;
};

/* Zero in a field means its default. The same on both sides. */
struct cluster_client_options {
	int response_timeout; /* of a follower's call; 3000 */
	bool no_broadcast;    /* a value goes to one subscribed process, chosen at random */
	/* The time between two heartbeats of a follower; a leader closes a connection
	 * that was silent for three times as long. 0: no heartbeats; a death is seen as
	 * an end of file. */
	int heartbeat_interval;
};

/*
 * Make a client: the leader in the agent, a follower in each app; options may be
 * NULL. Each client has a name of its own, and its own channel. A follower may be
 * made before its leader: it waits. When the process begins to
 * leave, its clients are closed (messenger_before_close). NULL with errno: EINVAL
 * (the name is empty or too long), EEXIST (this process has one of that name), ENOMEM.
 * (Where a connection cannot be made, for want of descriptors, it is tried again.)
 * egg: agent.cluster(clientClass).create(), app.cluster(clientClass).create()
 */
struct cluster_client *cluster_client_leader(struct messenger *agent, const char *name,
                                             const struct real_client *real,
                                             const struct cluster_client_options *options);
struct cluster_client *cluster_client_follower(struct messenger *app, const char *name,
                                               const struct real_client *real,
                                               const struct cluster_client_options *options);

/*
 * Close: the leader closes its followers' connections (they wait for the next
 * leader) and the real client; a follower's subscriptions are gone. The callbacks of
 * calls without an answer, and those that wait for ready, are called with an error
 * before it returns; after that no callback is called. It may be called in any callback.
 * The client is freed in a later turn of the loop: do not use it any more. NULL is
 * ignored.
 * egg: WrapperBase close
 */
void cluster_client_close(struct cluster_client *client);

/* Call back once, in a later turn, when the client is ready; or, with the real client's
 * error, when a start has failed. The start is tried again all the same. ENOMEM, EPIPE
 * (closed).
 * egg: sdk-base ready */
int cluster_client_ready(struct cluster_client *client, cluster_ready_callback callback, void *arg);

/*
 * Call the listener for each value of the key, and, if there is one already, for
 * the last one (not with no_broadcast, where a value is for one process alone). The
 * same listener and arg may be added again. Before the client is ready, and while the
 * leader is dead, the subscription waits; it is repeated after each new start, and then the listener hears the last value
 * again.
 * A listener that is added while a value is being delivered is not called for that
 * value; it hears the last one, in a later turn.
 * unsubscribe removes the most recently added match, or with a NULL listener
 * every listener of the key. A removed listener is not called any more. errno: EINVAL
 * (no listener; an empty or overlong key), ENOSYS (the real client has no
 * subscribe), ENOENT (unsubscribe: none), ENOBUFS (too many keys, or a full queue), ENOMEM, EPIPE.
 * egg: WrapperBase subscribe, unSubscribe
 */
int cluster_client_subscribe(struct cluster_client *client, const char *key,
                             cluster_listener listener, void *arg);
int cluster_client_unsubscribe(struct cluster_client *client, const char *key,
                               cluster_listener listener, void *arg);

/*
 * Publish. The client remembers the last publication of each key, and publishes
 * it again after each new start. errno: EINVAL (the key), EMSGSIZE, ENOSYS,
 * ENOBUFS, ENOMEM, EPIPE.
 * egg: WrapperBase publish
 */
int cluster_client_publish(struct cluster_client *client, const char *key, const void *data,
                           size_t length);

/*
 * Call a method of the real client; the callback is called once, with the result
 * or with an error. Many calls may wait, and are answered in any order. Before the
 * client is ready a call waits. Its response timeout begins now; in the leader
 * there is none, as in egg. A one-way call (no callback) has no answer, and is
 * forgotten if it could not be sent within the response timeout. errno: EINVAL (invoke:
 * no callback), ENOSYS (no such method), EMSGSIZE, ENOBUFS (too many calls, or a full
 * queue), ENOMEM, EPIPE.
 * egg: WrapperBase invoke
 */
int cluster_client_invoke(struct cluster_client *client, const char *method, const void *data,
                          size_t length, cluster_callback callback, void *arg);
int cluster_client_invoke_oneway(struct cluster_client *client, const char *method,
                                 const void *data, size_t length);

/*
 * For the real client, in the leader:
 *   started  it is ready (NULL), or has failed to start: then its `ready` is
 *            called again later. Not after it was ready.
 *   emit     a value of a key, for all its subscribers; a key without any: dropped.
 *            ENOENT (no subscriber), EMSGSIZE, ENOMEM, ENOBUFS (too much in one turn
 *            for the agent's own listeners: no process has got it).
 *   reply    answer a call. EMSGSIZE; of the agent's own also ENOMEM, ENOBUFS (too much in
 *            one turn): it is still to be answered.
 *   fail     answer it with an error; long texts are cut.
 * A call may be answered after its follower, or the client, is gone.
 *
 * A follower that does not read what it is sent costs the agent no time, and at most
 * CHANNEL_QUEUE_MAX bytes: with the first packet that finds no room the leader closes its
 * connection, with one line in the log (of such lines there are at most 32 in a minute).
 * A follower that lives connects again, and hears the last values.
 */
void cluster_client_started(struct cluster_client *client, const struct cluster_error *error);
int cluster_client_emit(struct cluster_client *client, const char *key, const void *data,
                        size_t length);
int cluster_client_reply(struct cluster_call *call, const void *data, size_t length);
int cluster_client_fail(struct cluster_call *call, const char *code, const char *message);

#ifdef __cplusplus
}
#endif

/* ------------------------------------------------------------------------ */
/* Part two: what the files of cluster-client share; private                 */
/* ------------------------------------------------------------------------ */

#ifdef CLUSTER_CLIENT_PRIVATE

/* The linker shows these names to the application, which has its own of such words:
 * hence cluster_link_, cluster_topic_, cluster_value_, and cluster_base_ for what
 * both sides have. */

/*
 * link.c: one packet, one end of a connection.
 *
 * A packet is a message (messenger.h). Its action is egg's name; the id of a call stands
 * in receiverPid. The data is the name that the packet is about (a key or a method) and
 * a 0, if there is one, and then the value, argument or result.
 *
 *	follower                              id      name     data            leader
 *	    | register_channel                -       -        PID TIMEOUT ----> |
 *	    | <---- register_channel_res      -       -        [error]           |
 *	    | subscribe                       -       key      - --------------> |
 *	    | <---- subscribe_result          -       key      value             |
 *	    | unSubscribe                     -       key      - --------------> |
 *	    | publish                         -       key      value ----------> |
 *	    | invoke                          call    method   argument -------> |  0: one-way
 *	    | <---- invoke_result             call    -        result or error   |
 *	    | heartbeat                       -       -        - --------------> |
 *
 * PID TIMEOUT is the text "4711 3000". `to` has no meaning between two ends. Here it says
 * that the data is an error (PACKET_FAILED: a code, a 0 and a text), or that a name and
 * its data are too long for one message (PACKET_NAMED_BEFORE): then a message `name`,
 * whose data is the name, came before. A `subscribe` with the id 1 is for one more listener
 * of a key: the answer to it, with that id, is for such listeners alone.
 * egg: cluster-client/lib/protocol/, lib/connection.js
 */
#define PACKET_FAILED ROLE_PARENT
#define PACKET_NAMED_BEFORE ROLE_MASTER

enum packet_type {
	PACKET_SUBSCRIBE_RESULT,
	PACKET_INVOKE,
	PACKET_INVOKE_RESULT,
	PACKET_PUBLISH,
	PACKET_SUBSCRIBE,
	PACKET_UNSUBSCRIBE,
	PACKET_REGISTER_CHANNEL,
	PACKET_REGISTER_CHANNEL_RES,
	PACKET_HEARTBEAT,
	PACKET_NAME,
	PACKET_TYPES
};

struct packet {
	enum packet_type type;
	int id;
	const char *name;
	const char *data;
	size_t length;
	bool failed;
};

/* One end: a messenger that is joined to the process's. */
struct cluster_link {
	struct messenger *messenger; /* NULL: closed */
	struct cluster_client *client;
	char *name; /* that came before its packet */

	/* Each packet; a result is what is wrong with it, or NULL. */
	const char *(*heard)(struct cluster_link *link, const struct packet *packet);
	/* It has ended, and is closed. `why` is what the other end did wrong, NULL if it
	 * is just gone. */
	void (*ended)(struct cluster_link *link, const char *why);
};

/*
 * open gives a link that is all zero but for client, heard and ended a descriptor, which
 * becomes the link's or is closed. errno: EBADF, ENOMEM. close writes what the socket
 * takes; once more is nothing. send queues a packet, which `composed` may already be;
 * errno: ENOBUFS, ENOMEM. What is sent to an end that is gone is lost. compose: the
 * message is valid until the next one in this process.
 */
int cluster_link_open(struct cluster_link *link, int descriptor);
void cluster_link_close(struct cluster_link *link);
int cluster_link_send(struct cluster_link *link, const struct packet *packet,
                      const struct message *composed);
struct message cluster_link_compose(const struct packet *packet);

/* An error as data, CLUSTER_ERROR_MAX bytes at most: long texts are cut. Returns the
 * length. And back: the texts stand in the data, behind which there is a 0. */
#define CLUSTER_ERROR_MAX 2048
size_t cluster_error_encode(char *data, const char *code, const char *message);
struct cluster_error cluster_error_decode(const char *data, size_t length);

/*
 * client.c: what a client is to its user, in the agent and in an app.
 * egg: cluster-client/lib/wrapper/base.js
 */

/* Bytes that several hold. */
struct value {
	size_t holders, length;
	char data[]; /* and a 0 */
};

struct listener {
	struct listener *next;
	cluster_listener call;
	void *arg;
	bool removed;
	bool late; /* it has asked for the last value */
};

/* All about one key, in a client or in a leader; it goes when nothing is left. */
struct topic {
	struct topic *next; /* in the bucket */
	uint32_t hash;
	int busy;        /* functions that are using it just now */
	bool subscribed; /* a client's: the leader knows; a leader's: the real client knows */
	/* a client's */
	struct listener *listeners;

	struct value *published;
	bool said; /* `published` has been */

	/* a leader's */
	struct value *value;         /* the last one */
	struct follower **followers; /* the agent's own is the first */
	size_t follower_count;
	char key[];
};

enum { TOPIC_BUCKETS = 256 };

struct topics {
	struct topic *buckets[TOPIC_BUCKETS];
	size_t count, most;
};

/* A call of this process, until it has its answer. */
struct pending {
	struct pending *next;
	uint64_t number; /* the n-th call */
	const struct real_method *method;
	cluster_callback callback; /* NULL: one-way */
	void *arg;
	int64_t deadline;
	struct value *data; /* it waits for ready */
};

struct waiter {
	struct waiter *next;
	cluster_ready_callback callback;
	void *arg;
};

enum client_state {
	CLIENT_STARTING,
	CLIENT_READY,
	CLIENT_FAILED /* it is tried again later */
};

/* Trying again, by a timer, after a delay that grows. */
struct retry {
	int timer; /* 0: none */
	int delay;
};

struct cluster_client {
	struct cluster_client *next; /* of this process */
	struct messenger *messenger; /* of the process's role */
	const struct real_client *real;
	struct cluster_client_options options;
	enum client_state state;
	bool closed, catching_up;
	int result; /* of the callbacks of this turn */
	struct topics topics;
	struct pending *pending, **last_pending;
	size_t pending_count, waiting_bytes;
	uint64_t calls; /* ever */
	struct waiter *waiters;
	int tick, expiry, heartbeat; /* timers; 0: none; tick: -1, not to be set */
	struct retry retry;
	struct cluster_link link; /* to the leader */
	bool registering;         /* an answer is to come */
	struct leader *leader;    /* the agent's; NULL in a follower */

	char name[CLUSTER_CLIENT_NAME_MAX + 1];
	char action[CLUSTER_CLIENT_NAME_MAX + 32]; /* of the message with the handle */
};

/* A client, listed and without a connection, with `beat` in each heartbeat interval, if there
 * is one; free undoes it. */
struct cluster_client *cluster_base_new(struct messenger *messenger, const char *name,
                                        const struct real_client *real,
                                        const struct cluster_client_options *options,
                                        messenger_timer beat);
void cluster_base_free(struct cluster_client *client);

/* ready: subscribe, publish and call all that waits. not_ready: those who wait hear
 * this error. lost: what was sent fails, all the rest is to be said again. retry: call
 * `again` after the delay, unless that is set already. */
void cluster_base_ready(struct cluster_client *client);
void cluster_base_not_ready(struct cluster_client *client, const struct cluster_error *error);
void cluster_base_lost(struct cluster_client *client);
void cluster_base_retry(struct cluster_client *client, struct retry *retry, messenger_timer again);
void cluster_base_clear_timer(struct cluster_client *client, int *timer);

/* At the end of this turn, make the calls that are due, and remove the listeners and followers
 * that are gone. */
void cluster_base_tick(struct cluster_client *client);

/* What the leader says: a value, and the answer to a call. */
void cluster_base_on_value(struct cluster_client *client, const struct packet *packet);
void cluster_base_on_answer(struct cluster_client *client, const struct packet *packet);

/* Set errno, and return -1. */
int cluster_base_refuse(int number);

/* What the callbacks of this turn returned, for the loop; it begins anew. */
int cluster_base_result(struct cluster_client *client);

/* One line on stderr: who did what, and what is done about it. */
void cluster_base_log(const struct cluster_client *client, const char *who, const char *what,
                      const char *then);

const struct real_method *cluster_base_find_method(const struct real_client *real,
                                                   const char *name);

/* find: NULL if there is none. make: NULL with errno ENOBUFS, ENOMEM. sweep frees
 * it if nothing is left. clear frees all of a table. */
struct topic *cluster_topic_find(struct topics *topics, const char *key);
struct topic *cluster_topic_make(struct topics *topics, const char *key);
void cluster_topic_sweep(struct topics *topics, struct topic *topic);
void cluster_topic_clear(struct topics *topics);

/* A copy with one holder, or NULL: ENOMEM. drop: NULL is ignored. */
struct value *cluster_value_new(const void *data, size_t length);
void cluster_value_drop(struct value *value);

/*
 * follower.c: the way to the leader. connect makes a link and registers, again and again.
 */
int cluster_follower_connect(struct messenger *messenger, void *client);
int cluster_follower_say(struct cluster_client *client, const struct packet *packet);

/*
 * leader.c. adopt: a new follower with this end, which becomes its own or is closed; `own`
 * is the agent's. hear: a packet of the agent's own; -1: ENOMEM. tick: tell how the start
 * went, and remove the followers whose links are closed.
 */
int cluster_leader_hear(struct cluster_client *client, const struct packet *packet);
void cluster_leader_adopt(struct cluster_client *client, int descriptor, bool own);
void cluster_leader_tick(struct cluster_client *client);
void cluster_leader_close(struct cluster_client *client);
void cluster_leader_free(struct cluster_client *client);

#endif /* CLUSTER_CLIENT_PRIVATE */

#endif
