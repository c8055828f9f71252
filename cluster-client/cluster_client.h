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

/* The followers of one process: a process that opens more and more leaves room for others. */
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
 * hence cluster_link_, cluster_topic_, and cluster_base_ for what both sides have. */

/*
 * link.c: one packet, one end of a connection.
 *
 * A packet is a message (messenger.h). Its action is egg's name; the id of a call stands
 * in receiverPid. The data is the name that the packet is about (a key or a method) and
 * a 0, if there is one, and then the value, argument or result.
 *
 *	follower                              id      name     data            leader
 *	    | register_channel                -       -        PID TIMEOUT ----> |
 *	    | <---- register_channel_res      -       [code]   [error]           |
 *	    | subscribe                       -       key      - --------------> |
 *	    | <---- subscribe_result          -       key      value             |
 *	    | unSubscribe                     -       key      - --------------> |
 *	    | publish                         -       key      value ----------> |
 *	    | invoke                          call    method   argument -------> |  0: one-way
 *	    | <---- invoke_result             call    [code]   result or error   |
 *	    | heartbeat                       -       -        - --------------> |
 *
 * PID TIMEOUT is the text "4711 3000". `to` has no meaning between two ends. Here it says
 * that the packet is an error, which has a code for a name (PACKET_FAILED), or that a name
 * and its data are too long for one message (PACKET_NAMED_BEFORE): then a message `name`,
 * whose data is the name, came before. A `subscribe` with the id 1 is for one more listener
 * of a key: the answer to it, with that id, is for such listeners alone.
 * egg: cluster-client/lib/protocol/, lib/connection.js
 */
#define PACKET_FAILED ROLE_PARENT
#define PACKET_NAMED_BEFORE ROLE_MASTER

struct packet {
	const char *action;
	int id;
	const char *name; /* NULL: none */
	const char *data;
	size_t length;
	bool failed;
};

struct cluster_link;

/* What an end hears. heard returns what is wrong with the packet, or NULL. */
struct packet_type {
	const char *action; /* NULL ends the list */
	bool has_name;
	bool early; /* it is heard before the link is registered, too */
	const char *(*heard)(struct cluster_link *link, const struct packet *packet); /* or NULL */
};

/* One end: a messenger that is joined to the process's. */
struct cluster_link {
	struct messenger *messenger; /* NULL: closed */
	struct cluster_client *client;
	const struct packet_type *types;
	/* It has ended, and is closed. `why` is what the other end did wrong, NULL if it
	 * is just gone. */
	void (*ended)(struct cluster_link *link, const char *why);
	bool registered;
	int64_t heard_at;                      /* if there are heartbeats */
	char name[CLUSTER_CLIENT_KEY_MAX + 1]; /* that came before its packet, or "" */
};

/*
 * open gives a link that is all zero but for client, types and ended a descriptor, which
 * becomes the link's or is closed. errno: EBADF, ENOMEM. close writes what the socket
 * takes; once more is nothing. say queues a packet; errno: ENOBUFS, ENOMEM. What is said to
 * an end that is gone is lost. compose and send are the two halves of say, for a packet that
 * goes to many links: the composed message is valid until the next compose or say.
 */
int cluster_link_open(struct cluster_link *link, int descriptor);
void cluster_link_close(struct cluster_link *link);
int cluster_link_say(struct cluster_link *link, const struct packet *packet);
struct message cluster_link_compose(const struct packet *packet);
int cluster_link_send(struct cluster_link *link, const char *name, const struct message *message);
const struct packet_type *cluster_link_find(const struct packet_type *types, const char *action);

/*
 * follower.c: what a client is to its user, in the agent and in an app, and its way to the
 * leader.
 * egg: cluster-client/lib/wrapper/base.js, lib/follower.js
 */

/* It hears the values of a key. */
struct listener {
	struct listener *next;
	cluster_listener call; /* NULL: arg is a leader's follower */
	void *arg;
	bool removed;
	bool late; /* it has asked for the last value */
};

struct value {
	size_t length;
	char data[]; /* and a 0 */
};

/* All about one key, in a client or in a leader; it goes when nothing is left. */
struct topic {
	struct topic *next; /* in the bucket */
	uint32_t hash;
	int users;       /* functions that are using it just now */
	bool subscribed; /* a client's: the leader knows; a leader's: the real client knows */
	struct listener *listeners;
	size_t count; /* of those that are not removed */

	struct value *published; /* a client's */
	bool said;               /* `published` has been */

	char *last; /* a leader's: the data of the packet with the last value, or NULL */
	struct message packet;
	char key[];
};

enum { TOPIC_BUCKETS = 256 };

struct topics {
	struct topic *buckets[TOPIC_BUCKETS];
	size_t count, most;
};

/* A callback that is called once. */
struct pending {
	struct pending *next;
	struct cluster_client *client;
	struct pending_list *list;
	uint64_t number;                 /* the n-th of this client */
	cluster_ready_callback on_ready; /* it waits for ready, and is no call; or NULL */
	const struct real_method *method;
	cluster_callback callback; /* NULL: one-way */
	void *arg;
	int timer;          /* 0: none */
	struct value *data; /* the argument of a call that is not sent yet */
};

struct pending_list {
	struct pending *first, **end;
};

struct cluster_client {
	struct cluster_client *next; /* of this process */
	struct messenger *messenger; /* of the process's role */
	const struct real_client *real;
	struct cluster_client_options options;
	bool ready;         /* the leader knows all that it is to be told */
	bool closed, ended; /* ended: no function uses the client any more */
	int result;         /* of the callbacks of this turn */
	struct topics topics;
	/* The callbacks and the calls that wait for ready; the calls without an answer. */
	struct pending_list waiters, waiting, sent;
	size_t call_count, waiting_bytes;
	uint64_t number;            /* of the last pending */
	int tick, retry, heartbeat; /* timers; 0: none */
	int delay;                  /* of the next retry */
	struct cluster_link link;   /* to the leader */
	struct leader *leader;      /* the agent's; NULL in a follower */

	char name[CLUSTER_CLIENT_NAME_MAX + 1];
	char action[CLUSTER_CLIENT_NAME_MAX + 32]; /* of the message with the handle */
};

/* new: a client, listed and without a connection; free undoes it. connect makes a link and
 * registers, again and again. */
struct cluster_client *cluster_base_new(struct messenger *messenger, const char *name,
                                        const struct real_client *real,
                                        const struct cluster_client_options *options);
void cluster_base_free(struct cluster_client *client);
void cluster_base_connect(struct cluster_client *client);
void cluster_base_clear_timer(struct cluster_client *client, int *timer);

/* At the end of this turn, make the calls that are due, and remove the listeners and followers
 * that are gone. */
void cluster_base_tick(struct cluster_client *client);

/* Set errno, and return -1. */
int cluster_base_refuse(int number);

/* What the callbacks of this turn returned, for the loop; it begins anew. */
int cluster_base_result(struct cluster_client *client);

/* One line on stderr: who did what, and what is done about it. */
void cluster_base_log(const struct cluster_client *client, const char *who, const char *what,
                      const char *then);

const struct real_method *cluster_base_find_method(const struct real_client *real,
                                                   const char *name);

/* find: NULL if there is none. make: NULL with errno ENOBUFS, ENOMEM. leave ends a use, which
 * `users` counts, and frees the topic if nothing is left of it. each calls the function for each
 * topic until a result is not 0. clear frees all of a table. add, at the end or as the first:
 * NULL with ENOMEM. find_listener: the match that was added last, or NULL. */
struct topic *cluster_topic_find(struct topics *topics, const char *key);
struct topic *cluster_topic_make(struct topics *topics, const char *key);
void cluster_topic_leave(struct topics *topics, struct topic *topic);
typedef int (*cluster_topic_function)(struct topic *topic, void *arg);
int cluster_topic_each(struct topics *topics, cluster_topic_function function, void *arg);
void cluster_topic_clear(struct topics *topics);
struct listener *cluster_topic_add(struct topic *topic, cluster_listener call, void *arg,
                                   bool first);
struct listener *cluster_topic_find_listener(const struct topic *topic, cluster_listener call,
                                             const void *arg);
void cluster_topic_remove(struct topic *topic, struct listener *listener);

/*
 * leader.c. adopt: a new follower with this end, which becomes its own or is closed; `own`
 * is the agent's. hear: a packet of the agent's own; -1: ENOMEM. tick: tell how the start
 * went, and remove the followers whose links are closed.
 */
int cluster_leader_hear(struct cluster_client *client, const struct packet *packet);
void cluster_leader_adopt(struct cluster_client *client, int descriptor, bool own);
void cluster_leader_tick(struct cluster_client *client);
void cluster_leader_check_heartbeats(struct cluster_client *client);
void cluster_leader_close(struct cluster_client *client);
void cluster_leader_free(struct cluster_client *client);

#endif /* CLUSTER_CLIENT_PRIVATE */

#endif
