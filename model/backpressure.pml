/*
 * Backpressure, for Spin: how queues stay short, and how a process whose queue stays long is
 * found. messenger.c and master.c as they are. See README.md.
 *
 * Each inline stands for the C functions that are named above it, each with a checksum of its
 * text: model/check compares them.
 *
 * A unit of data is one read (CHANNEL_READ_SIZE); HIGH and LOW are the two marks in this unit.
 * PROCESSES children feed whom they like: one, all, themselves; with SENDERS only the first
 * ones do. A child reads, or does not read for a while, or, with HANGS, never again.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#ifndef PROCESSES
#define PROCESSES 2
#endif
#ifndef SENDERS
#define SENDERS PROCESSES
#endif
#define HIGH 3 /* CHANNEL_HIGH_WATER in messenger.h is two reads; a third shows more */
#define LOW 1 /* CHANNEL_LOW_WATER is half a read */

/* One read more for each sender, and the last words of those that die. */
#ifdef DEATHS
#define MOST (HIGH + 2 * SENDERS)
#else
#define MOST (HIGH + SENDERS)
#endif

/* The properties that are assertions: see master.pml. */
hidden byte B1_queue_is_bounded;
hidden byte B2_who_waits_is_looked_after;

typedef process {
	unsigned queue : 4;     /* channel_pending */
	bit waits;              /* it is not read */
	unsigned waits_for : 3; /* a bit for each process */
	bit full_since;         /* the clock of the stuck timeout runs for it */
	bit held;               /* another process is to blame */
	bit reads;              /* POLLIN is asked for */

	/* The kernel and the child. */
	unsigned said : 3; /* one read is in its socket, for these receivers; 0: nothing is */
	bit room;          /* its socket takes one read */
	bit hangs;         /* it reads nothing any more */
	bit dead, buried;
};
process p[PROCESSES];
bit stuck_timeout;
byte i, j, r, found;

/* ---- messenger.c --------------------------------------------------------------- */

/* C: messenger.c process_is_above 3769478276 */
#define ABOVE(n, mark) (p[n].queue > mark)

/* The master reads what a sender has said, and copies it into the receivers' queues. A queue
 * that is long is written at once (CHANNEL_FLUSH_SIZE). */
/* C: messenger.c process_send 447240600 */
/* C: messenger.c master_messenger_receive 2810909244 */
/* C: messenger.c place 2673874596 */
/* C: sendmessage.c sendmessage 552827372 */
inline process_send(sender) {
	for (r : 0 .. (PROCESSES - 1)) {
		if
		:: (p[sender].said >> r & 1) && !p[r].buried ->
			p[r].queue++;
			if
			:: p[r].room -> p[r].queue--; p[r].room = 0
			:: else
			fi;
			assert(B1_queue_is_bounded || p[r].queue <= MOST);
			if
			:: ABOVE(r, HIGH) ->
				p[sender].waits = 1;
				p[sender].waits_for = p[sender].waits_for | (1 << r)
			:: else
			fi
		:: else
		fi
	}
	p[sender].said = 0
}

/* C: messenger.c process_waits_for 3752120348 */
#define WAITS_FOR(s, n) ((p[s].waits_for >> n & 1) && !p[n].buried && ABOVE(n, LOW))

/* C: messenger.c process_stop_waiting 109777804 */
inline process_stop_waiting(sender) {
	found = 0;
	for (r : 0 .. (PROCESSES - 1)) {
		if
		:: p[sender].waits && WAITS_FOR(sender, r) -> found = 1
		:: else
		fi
	}
	if
	:: p[sender].waits && !found -> p[sender].waits = 0; p[sender].waits_for = 0
	:: else
	fi
}

/* ---- master.c ------------------------------------------------------------------ */

#define STOPPED(n) p[n].held

/* full_since is set anew, to now, while the process is stopped: so its timeout cannot come. */
/* C: master.c watch_queue 1595929738 */
inline watch_queue(n) {
	if
	:: !ABOVE(n, LOW) -> p[n].full_since = 0
	:: else ->
		if
		:: !STOPPED(n) && !p[n].full_since && ABOVE(n, HIGH) -> p[n].full_since = 1
		:: else
		fi
	fi;
	if
	:: stuck_timeout && p[n].full_since && !STOPPED(n) ->
		stuck_timeout = 0;
		on_disconnect(n) /* condemn */
	:: else
	fi
}

/* C: master.c is_held 2617596744 */
inline is_held(n) {
	for (j : 0 .. (PROCESSES - 1)) {
		if
		:: WAITS_FOR(n, j) ->
			p[j].full_since = 1;
			p[n].held = p[n].held || !p[j].waits || p[j].held
		:: else
		fi
	}
}

/* C: master.c find_held 322833158 */
inline find_held() {
	for (i : 0 .. (PROCESSES - 1)) { p[i].held = 0 }
	for (r : 1 .. PROCESSES) { /* until no more are found */
		for (i : 0 .. (PROCESSES - 1)) {
			if
			:: p[i].waits && !p[i].held -> is_held(i)
			:: else
			fi
		}
	}
}

/* Its queue is dropped. */
/* C: master.c on_disconnect 3362922333 */
inline on_disconnect(n) {
	p[n].buried = 1; p[n].queue = 0; p[n].waits = 0; p[n].waits_for = 0; p[n].said = 0;
	p[n].room = 0; p[n].full_since = 0; p[n].held = 0; p[n].reads = 0; p[n].hangs = 0; p[n].dead = 1
}

/* C: master.c prepare_all 3922337180 */
/* C: master.c prepare 174932422 */
/* C: sendmessage.c channel_flush 929637308 */
inline prepare_all() {
	for (i : 0 .. (PROCESSES - 1)) {
		if
		:: p[i].room && p[i].queue > 0 -> p[i].queue--; p[i].room = 0
		:: else
		fi;
		if
		:: !p[i].buried -> watch_queue(i)
		:: else
		fi
	}
	find_held();
	for (i : 0 .. (PROCESSES - 1)) {
		if
		:: !p[i].buried -> process_stop_waiting(i); p[i].reads = !p[i].waits
		:: else
		fi
	}
}

/* C: master.c hear_all 2627631141 */
/* C: master.c hear 668160317 */
inline hear_all() {
	for (i : 0 .. (PROCESSES - 1)) {
		if
		:: p[i].reads && p[i].said -> process_send(i)
		:: else
		fi
	}
}

/* A dead process's last words are heard, even if it waits. */
/* C: master.c on_process_exit 232831310 */
/* C: master.c reap_all 2639729848 */
inline reap_all() {
	for (i : 0 .. (PROCESSES - 1)) {
		if
		:: p[i].dead && !p[i].buried ->
			if
			:: p[i].said -> process_send(i)
			:: else
			fi;
			on_disconnect(i)
		:: else
		fi
	}
}

#if PROCESSES == 2
#define ANY(f) (f(0) || f(1))
#else
#define ANY(f) (f(0) || f(1) || f(2))
#endif
#define READABLE(n) (p[n].reads && p[n].said)
#define WRITABLE(n) (p[n].room && p[n].queue > 0)
#define TOLLS(n) (p[n].dead && !p[n].buried)
#define WAITS(n) p[n].waits
#define CLOCK_RUNS(n) (p[n].full_since && !STOPPED(n))

/* GUSHES: a child reads nothing while the master does not take what it writes. */
#ifdef GUSHES
#define WILL_READ(n) (!p[n].hangs && !p[n].dead && !p[n].said)
#else
#define WILL_READ(n) (!p[n].hangs && !p[n].dead)
#endif
#define READS_LATER(n) (WILL_READ(n) && !p[n].room)

/* Nothing happens any more, but that a child says something new. */
#define AT_REST (!ANY(READABLE) && !ANY(WRITABLE) && !ANY(TOLLS) && !ANY(READS_LATER))

/* C: master.c loop 3637057502 */
active proctype master() {
	do
	:: d_step { prepare_all(); i = 0; j = 0; r = 0; found = 0; stuck_timeout = 0 }
end_poll:
	   atomic {
		if
		:: ANY(READABLE) || ANY(WRITABLE) || ANY(TOLLS)
		:: AT_REST && ANY(WAITS) -> stuck_timeout = 1;
			/* A process that waits is heard again: another one reads, or its time
			 * runs. */
			assert(B2_who_waits_is_looked_after || ANY(CLOCK_RUNS))
		fi;
		hear_all(); reap_all(); i = 0; r = 0 }
	od
}

#define CHILD(n)                                                                          \
	:: atomic { READS_LATER(n) -> p[n].room = 1 }                                     \
	:: atomic { n < SENDERS && !p[n].dead && !p[n].said -> select(set : 1 .. EVERYONE); \
		p[n].said = set; set = 0 }                                                \
	MAY_HANG(n)                                                                       \
	MAY_DIE(n)
#define EVERYONE ((1 << PROCESSES) - 1)
#ifdef HANGS
#define MAY_HANG(n) :: atomic { !p[n].dead && !p[n].hangs -> p[n].hangs = 1 }
#else
#define MAY_HANG(n)
#endif
#ifdef DEATHS
#define MAY_DIE(n) :: atomic { !p[n].dead -> p[n].dead = 1; p[n].hangs = 0 }
#else
#define MAY_DIE(n)
#endif

active proctype world() {
	byte set;
end_world:
	do
	CHILD(0)
	CHILD(1)
#if PROCESSES > 2
	CHILD(2)
#endif
	od
}
