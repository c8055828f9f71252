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
 * handle of a message; from then on it and the leader talk without the master.
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

/* The longest value, argument or result, in bytes. */
#ifndef CLUSTER_CLIENT_DATA_MAX
#define CLUSTER_CLIENT_DATA_MAX (1024 * 1024)
#endif

/* The bytes that may wait at one end of a connection to be written; beyond them
 * a follower's call fails, and a leader gives the follower up. */
#ifndef CLUSTER_CLIENT_QUEUE_MAX
#define CLUSTER_CLIENT_QUEUE_MAX (4 * 1024 * 1024)
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
 * arg is the one below. A function that is NULL is not offered.
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
	bool no_broadcast;    /* a value goes to one subscriber, chosen at random */
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
 * the last one (not in a leader with no_broadcast). The same listener and arg may be
 * added again. Before the client is ready, and while the leader is dead, the subscription
 * waits; it is repeated after each new start, and then the listener hears the last value
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
 *   emit     a value of a key, for all its subscribers; nobody: it is dropped.
 *            ENOENT (nobody), EMSGSIZE, ENOMEM, ENOBUFS (too much in one turn
 *            for the leader's own listeners).
 *   reply    answer a call. EMSGSIZE, ENOMEM: it is still to be answered.
 *   fail     answer it with an error; long texts are cut.
 * A call may be answered after its follower, or the client, is gone. A follower that
 * does not read what it is sent is given up, with one line in the log.
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
 * hence cluster_connection_, cluster_topic_, cluster_value_, and cluster_base_ for what
 * both sides have. */

/*
 * connection.c: one packet, one connection.
 *
 * A packet: egg's header of 24 bytes, in network byte order, and what it announces.
 *
 *	 0   1   2       4                               12
 *	+---+---+-------+-------------------------------+
 *	|ver|r/r|   0   |          request id           |   r/r: 0 request, 1 response
 *	+---+---+-------+---------------+---------------+
 *	|  timeout, ms  | object length |  data length  |
 *	+---------------+---------------+---------------+
 *	 12              16              20              24
 *	| connection object: flat JSON  | data          |   with the lengths above
 *	+-------------------------------+---------------+
 *
 *	follower                                        leader
 *	    | register_channel channelName pid ----------> |
 *	    | <-------------- register_channel_res success |  once it is ready
 *	    | subscribe key -----------------------------> |
 *	    | <--------------- subscribe_result key [data] |  again and again
 *	    | unSubscribe key ---------------------------> |
 *	    | publish key [data] ------------------------> |
 *	    | invoke method oneway [data] ---------------> |
 *	    | <--------------- invoke_result success [data]|  unless it is one-way
 *	    | heartbeat ---------------------------------> |
 *	    | <------------------------------ heartbeat_res|
 *
 * Without success the data is {"code":"...","message":"..."}.
 * egg: cluster-client/lib/protocol/packet.js, lib/connection.js
 */
enum packet_offset {
	PACKET_VERSION = 0,
	PACKET_KIND = 1,
	PACKET_RESERVED = 2,
	PACKET_ID = 4,
	PACKET_TIMEOUT = 12,
	PACKET_OBJECT_LENGTH = 16,
	PACKET_DATA_LENGTH = 20,
	PACKET_HEADER = 24,

	/* every byte of a key may be written as \u0000 */
	PACKET_OBJECT_MAX = 6 * CLUSTER_CLIENT_KEY_MAX + 128
};

enum packet_type {
	PACKET_REGISTER_CHANNEL,
	PACKET_REGISTER_CHANNEL_RES,
	PACKET_SUBSCRIBE,
	PACKET_UNSUBSCRIBE,
	PACKET_SUBSCRIBE_RESULT,
	PACKET_PUBLISH,
	PACKET_INVOKE,
	PACKET_INVOKE_RESULT,
	PACKET_HEARTBEAT,
	PACKET_HEARTBEAT_RES,
	PACKET_TYPES
};

struct packet {
	enum packet_type type;
	uint64_t id;      /* a response has its request's */
	uint32_t timeout; /* of a request, for its response */
	const char *name; /* the channel, key or method, as the type has it; or NULL */
	long pid;         /* register_channel: whose; only for the log */
	bool oneway, success;
	const char *data;
	size_t length;
};

/* One end. Its owner makes it and frees it; the connection ends only in a turn
 * of the loop of its own, so that nobody who sends loses it on the way. */
struct connection {
	struct messenger *messenger;
	int descriptor; /* -1: closed */
	short events;   /* that are watched */
	bool reading;   /* what is sent now leaves when all is read */
	char *in;       /* an incomplete packet */
	size_t in_length, in_size;
	char *out; /* to be written: from start to end */
	size_t out_start, out_end, out_size;
	const char *doom; /* why it shall end, or NULL */

	/* Each packet; a result is what is wrong with it, or NULL. */
	const char *(*heard)(struct connection *connection, const struct packet *packet);
	/* It has ended: is closed, unwatched, and may be freed. `why` is what the
	 * other end did wrong, NULL if it is just gone. */
	void (*gone)(struct connection *connection, const char *why);
	struct cluster_client *client;
};

/*
 * open gives a connection, which is all zero but for heard, gone and client, a
 * descriptor; on failure that stays the caller's. errno: fcntl(2)'s, ENOMEM.
 * close frees what it holds; once more is nothing. send queues a packet; at_once:
 * and writes it, otherwise flush does. ENOBUFS, ENOMEM: nothing was queued. What
 * is sent to a dead end is lost: it shows at the next read. doom: let it end.
 */
int cluster_connection_open(struct connection *connection, struct messenger *messenger,
                            int descriptor);
void cluster_connection_close(struct connection *connection);
int cluster_connection_send(struct connection *connection, const struct packet *packet,
                            bool at_once);
void cluster_connection_flush(struct connection *connection);
void cluster_connection_doom(struct connection *connection, const char *why);
size_t cluster_connection_pending(const struct connection *connection);

/* An error as data, ERROR_DATA_MAX bytes at most: long texts are cut. Returns the
 * length. And back, by a copy of that size in which the texts then stand; what
 * cannot be read is an error, too. */
#define ERROR_DATA_MAX 2048
size_t cluster_error_encode(char *data, const char *code, const char *message);
struct cluster_error cluster_error_decode(char *copy, const char *data, size_t length);

/*
 * client.c: what both sides are to their user.
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
	bool late; /* it is owed the last value */
};

/* All about one key; it goes when nothing is left. */
struct topic {
	struct topic *next; /* in the bucket */
	uint32_t hash;
	int busy; /* somebody stands in it */
	struct listener *listeners;
	struct value *value;     /* the last one */
	struct value *published; /* by this process */
	bool subscribed;         /* leader: upstream; follower: the leader knows */
	bool said;               /* `published` has been */
	struct follower **followers;
	size_t follower_count, follower_size;
	char key[];
};

/* A call of this process, until it has its answer. */
struct pending {
	struct pending *next;
	uint64_t id;
	const struct real_method *method;
	cluster_callback callback; /* NULL: one-way */
	void *arg;
	int64_t deadline;
	struct value *data;   /* it waits for ready */
	struct value *answer; /* it waits for the end of the turn */
	bool success;
};

/* A value on its way to listeners of this process. */
struct delivery {
	struct delivery *next;
	struct topic *topic;
	struct value *value;
	struct listener *only; /* NULL: all of them */
	bool owed;             /* only while that one is late */
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

/* The side's own functions. subscribe and publish: -1 with errno. */
struct client_side {
	int (*subscribe)(struct cluster_client *client, struct topic *topic);
	void (*unsubscribe)(struct cluster_client *client, struct topic *topic);
	int (*publish)(struct cluster_client *client, struct topic *topic);
	int (*invoke)(struct cluster_client *client, struct pending *pending, const void *data,
	              size_t length);
	void (*flush)(struct cluster_client *client);
	void (*close)(struct cluster_client *client);
	void (*free)(struct cluster_client *client);
	bool (*tells_late)(const struct cluster_client *client); /* the last value */
	bool calls_expire;
	size_t keys_max;
};

enum { CLIENT_BUCKETS = 256 };

struct cluster_client {
	struct cluster_client *next; /* of this process */
	const struct client_side *side;
	struct messenger *messenger;
	const struct real_client *real;
	struct cluster_client_options options;
	enum client_state state;
	bool closed, catching_up;
	int result; /* of the callbacks of this turn */
	struct topic *topics[CLIENT_BUCKETS];
	size_t topic_count;
	struct pending *pending, **last_pending;
	size_t pending_count, waiting_bytes;
	uint64_t last_id;
	struct delivery *deliveries, **last_delivery;
	size_t delivery_bytes;
	struct waiter *waiters;
	int tick, expiry, retry, heartbeat; /* timers; 0: none; tick: -1, not to be set */
	int delay;                          /* before the next retry */

	/* a follower's */
	struct connection connection;
	uint64_t registration; /* the id of its register_channel */

	/* a leader's */
	struct follower *followers;
	size_t follower_count;
	struct cluster_call *calls;
	size_t orphans;            /* calls that no follower waits for */
	struct value *start_error; /* as data; NULL: it is ready */
	uint64_t random;

	char name[CLUSTER_CLIENT_NAME_MAX + 1];
	char action[CLUSTER_CLIENT_NAME_MAX + 32]; /* of the message with the handle */
};

/* A client of that side, listed and without a connection; free undoes it. */
struct cluster_client *cluster_base_new(struct messenger *messenger, const char *name,
                                        const struct real_client *real,
                                        const struct cluster_client_options *options,
                                        const struct client_side *side);
void cluster_base_free(struct cluster_client *client);

/* ready: subscribe, publish and call all that waits. not_ready: those who wait hear
 * this error. lost: what was sent fails, all the rest is to be said again. retry: try
 * again, by a timer with this callback, after a delay that grows. */
void cluster_base_ready(struct cluster_client *client);
void cluster_base_not_ready(struct cluster_client *client, const char *data, size_t length);
void cluster_base_lost(struct cluster_client *client);
void cluster_base_retry(struct cluster_client *client, messenger_timer again);

/* At the end of this turn, call who is owed something, and flush. */
void cluster_base_tick(struct cluster_client *client);

/* A value for a listener, or all, of this process: now, or in cluster_base_tick. ENOMEM. */
void cluster_base_deliver(struct cluster_client *client, struct topic *topic, struct value *value,
                          struct listener *only);
int cluster_base_queue_delivery(struct cluster_client *client, struct topic *topic,
                                struct value *value, struct listener *only, bool owed);

/* A call is answered: call back, and forget it. */
void cluster_base_settle(struct cluster_client *client, struct pending *pending, bool success,
                         const char *data, size_t length);
struct pending *cluster_base_find_pending(struct cluster_client *client, uint64_t id);

/* What the callbacks of this turn returned, for the loop; it begins anew. */
int cluster_base_result(struct cluster_client *client);

/* Every options.heartbeat_interval, if there is one. -1: ENOMEM, EINVAL. */
int cluster_base_beat(struct cluster_client *client, messenger_timer beat);

/* One line on stderr: who did what, and what is done about it. */
void cluster_base_log(const struct cluster_client *client, const char *who, const char *what,
                      const char *then);

const struct real_method *cluster_base_find_method(const struct real_client *real,
                                                   const char *name);

/* find: NULL if there is none. make: NULL with errno ENOBUFS, ENOMEM. sweep frees
 * it if nothing is left. */
struct topic *cluster_topic_find(struct cluster_client *client, const char *key);
struct topic *cluster_topic_make(struct cluster_client *client, const char *key);
void cluster_topic_sweep(struct cluster_client *client, struct topic *topic);
bool cluster_topic_has_listeners(const struct topic *topic);

/* A copy with one holder, or NULL: ENOMEM. drop: NULL is ignored. */
struct value *cluster_value_new(const void *data, size_t length);
struct value *cluster_value_hold(struct value *value);
void cluster_value_drop(struct value *value);

#endif /* CLUSTER_CLIENT_PRIVATE */

#endif
