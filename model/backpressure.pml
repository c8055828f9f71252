/*
 * Backpressure, for Spin: how queues stay short, and how a process whose queue stays long is
 * found. messenger.c and master.c as they are. See README.md.
 *
 * Each inline stands for the C functions that are named above it, each with a checksum of its
 * text: model/check compares them.
 *
 * A unit of data is one read (CHANNEL_READ_SIZE); HIGH and LOW are the two marks in this unit.
 * PROCESSES children feed whom they like: one, all, themselves; with SENDERS only the first
 * ones do. A child reads, or does not read for a while, or never again: while it writes, or
 * because it hangs. The master cannot tell, it sees only whether a socket takes something now.
 * So the model decides when the master looks, and keeps nothing of it before. With DEATHS a
 * child may die, too.
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
	unsigned waits_for : PROCESSES; /* a bit for each process */
	bit full_since;         /* the clock of the stuck timeout runs for it */
	bit held;               /* another process is to blame */
	bit buried;             /* it is dead, or given up */
};
process p[PROCESSES];
byte i, j, r, found, looked_after;
byte said; /* one read, for these receivers */

/* STEP is done for each process: a step each, so that the checker compares what it has seen
 * after each of them. */
#define EACH(STEP)                                                                        \
	do                                                                                \
	:: atomic { i < PROCESSES -> STEP; i++; r = 0 }                                   \
	:: atomic { i == PROCESSES -> i = 0; break }                                      \
	od

/* ---- messenger.c --------------------------------------------------------------- */

/* C: messenger.c process_is_above 3769478276 */
#define ABOVE(n, mark) (p[n].queue > mark)

/* Write once. The socket takes one read, if the child has read meanwhile. */
/* C: sendmessage.c channel_flush 929637308 */
inline channel_flush(n) {
	if
	:: p[n].queue > 0 -> p[n].queue--
	:: true
	fi
}

/* The master reads what a sender has said, and copies it into the receivers' queues. A queue
 * that is long is written at once (CHANNEL_FLUSH_SIZE). */
/* C: messenger.c process_send 447240600 */
/* C: messenger.c master_messenger_receive 2810909244 */
/* C: messenger.c place 2673874596 */
/* C: sendmessage.c sendmessage 552827372 */
inline process_send(sender) {
	for (r : 0 .. (PROCESSES - 1)) {
		if
		:: (said >> r & 1) && !p[r].buried ->
			p[r].queue++;
			channel_flush(r);
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
	said = 0
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
#define CLOCK_RUNS(n) (p[n].full_since && !STOPPED(n))

/* full_since is set anew, to now, while the process is stopped: so its timeout cannot come. Else
 * it may come at any time. */
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
	:: CLOCK_RUNS(n) -> on_disconnect(n) /* condemn */
	:: true
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
	p[n].buried = 1; p[n].queue = 0; p[n].waits = 0; p[n].waits_for = 0;
	p[n].full_since = 0; p[n].held = 0
}

/* C: master.c prepare_all 2842887332 */
/* C: master.c prepare 174932422 */
inline prepare_all() {
	EACH(channel_flush(i); if :: !p[i].buried -> watch_queue(i) :: else fi);
	atomic {
		find_held();
		for (i : 0 .. (PROCESSES - 1)) {
			if
			:: !p[i].buried -> process_stop_waiting(i)
			:: else
			fi
		}
	}
}

/* One read of what a child says. */
#define MAY_SPEAK(n) (n < SENDERS && !p[n].buried)
#define EVERYONE ((1 << PROCESSES) - 1)
inline hear(n) {
	if
	:: MAY_SPEAK(n) -> select(said : 1 .. EVERYONE); process_send(n)
	:: true
	fi
}

/* C: master.c hear_all 2627631141 */
/* C: master.c hear 668160317 */
inline hear_all() {
	EACH(if :: !p[i].waits -> hear(i) :: else fi)
}

/* A dead process's last words are heard, even if it waits. */
/* C: master.c on_process_exit 232831310 */
/* C: master.c reap_all 2639729848 */
inline reap_all() {
#ifdef DEATHS
	EACH(if :: !p[i].buried -> hear(i); on_disconnect(i) :: true fi)
#else
	skip
#endif
}

/* ---- what must be true whenever the master goes to sleep ----------------------- */

/* Should no process read any more from now on, each one that waits is heard again all the same:
 * the time of a process runs that holds it up, directly or through others. */
inline invariants() {
	d_step {
		looked_after = 0;
		for (r : 1 .. PROCESSES) { /* until no more are found */
			for (i : 0 .. (PROCESSES - 1)) {
				for (j : 0 .. (PROCESSES - 1)) {
					if
					:: p[i].waits && WAITS_FOR(i, j) &&
					   (CLOCK_RUNS(j) || (looked_after >> j & 1)) ->
						looked_after = looked_after | (1 << i)
					:: else
					fi
				}
			}
		}
		for (i : 0 .. (PROCESSES - 1)) {
			assert(B2_who_waits_is_looked_after || !p[i].waits || (looked_after >> i & 1))
		}
		looked_after = 0
	}
}

/* C: master.c loop 3637057502 */
active proctype master() {
	do
	:: prepare_all();
	   d_step { invariants(); i = 0; j = 0; r = 0; found = 0 }
	   hear_all(); /* poll, and who is heard */
	   reap_all()
	od
}
