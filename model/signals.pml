/*
 * The signals of the master, for Spin: none is forgotten, however it comes. See README.md.
 *
 * A handler runs between any two steps of the loop: it sets a flag and writes a byte to a
 * pipe, whose other end poll looks at (the self-pipe trick). Two signals share the byte; the
 * loop looks for one of them before the other.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#define SIGNALS 2

/* The property that is an assertion: see master.pml. */
hidden byte S1_no_signal_is_forgotten;

bit got[SIGNALS];
bit undone[SIGNALS]; /* not in C: it has come, and the master has not done anything about it */
bit byte_waits;

/* A full pipe has a byte, too. */
/* C: master.c on_caught 2436536468 */
/* C: messenger.c clutch_wake_up 2733928415 */
inline on_caught(number) {
	got[number] = 1; undone[number] = 1;
	byte_waits = 1
}

/* C: messenger.c clutch_wake_drain 177295410 */
inline clutch_wake_drain() {
	byte_waits = 0
}

/* C: master.c take 236169611 */
inline take(number) {
	if
	:: !got[number]
	:: got[number] -> atomic { got[number] = 0; undone[number] = 0 }
	fi
}

/* Poll ends at once where a byte waits. Else it sleeps, and ends without a report of the byte:
 * a signal interrupts it, or a child speaks, or a time has come. */
inline poll() {
	if
	:: atomic { byte_waits -> reported = 1 }
	:: atomic { !byte_waits -> reported = 0;
		assert(S1_no_signal_is_forgotten || (!undone[0] && !undone[1])) }
	fi
}

/* C: master.c obey 2479054325 */
/* C: master.c loop 3637057502 */
active proctype master() {
	bit reported;
	do
	:: poll();
		if
		:: reported -> clutch_wake_drain()
		:: else
		fi;
		take(0); /* SIGCHLD */
		take(1)  /* the orders */
	od
}

active proctype signals() {
	do
	:: atomic { on_caught(0) }
	:: atomic { on_caught(1) }
	od
}
