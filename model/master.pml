/*
 * The lifecycle of a cluster, for Spin: master.c as it is. See README.md.
 *
 * Each inline stands for the C function of its name. Above it stand the functions that it
 * stands for, each with a checksum of its text: model/check compares them.
 *
 * Sizes: SLOTS, PLACES (records of app workers in the list; a full list is memory that is
 * short), CORPSES. What happens besides: FORKS_FAIL, RELOADS, GROUPS (what a process has
 * started outlives it), PARENT, FAULTS (broken protocol, full queues, closed reading ends),
 * CHECKS (the health check).
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#ifndef SLOTS
#define SLOTS 2
#endif
#ifndef PLACES
#define PLACES 3
#endif
#ifndef CORPSES
#define CORPSES 2
#endif

/* C: master.c enum phase */
#define PHASE_RUNNING 0
#define PHASE_CLOSING_APPS 1
#define PHASE_CLOSING_AGENT 2
#define PHASE_FAILING 3
#define PHASE_CLOSED 4

/* C: messenger.h enum process_state */
#define STATE_NONE 0
#define STATE_ONLINE 1
#define STATE_LISTENING 2
#define STATE_LEAVING 3
#define STATE_DISCONNECTED 4
#define STATE_DEAD 5

/* C: messenger.h enum deadline */
#define DEADLINE_NONE 0
#define DEADLINE_START 1
#define DEADLINE_BARRIER 2
#define DEADLINE_LEAVE 3
#define DEADLINE_DISCONNECTED 4
#define DEADLINE_DEAF 5
#define DEADLINE_KILLED 6

/* The properties that are assertions. Each is false, so that its name stands in what Spin
 * prints when its assertion fails: P1 || what must be true. */
hidden byte P1_no_slot_is_lost;
hidden byte P2_one_holder;
hidden byte P3_no_fork_while_closing;
hidden byte P4_pids_before_ready;
hidden byte P5_closing_wakes_up;
hidden byte P6_reload_keeps_a_worker;
hidden byte P7_all_are_reaped;
hidden byte P8_no_stray_signal;
hidden byte P9_ready_when_all_are;
hidden byte P10_deadline_stays;
hidden byte P11_reload_goes_on;

/* ---- what the master knows: struct master, struct process -------------------- */

typedef process {
	unsigned state : 3;
	unsigned deadline : 3;
	unsigned slot : 2;
	bit worker_id; /* is it not 0? */
	bit disable_refork;
	bit is_dev_reload;
	bit is_reload_id; /* its id is master->reload_id */
	bit told_pids;    /* not in C: this agent was sent egg-pids */

	/* What the kernel knows. */
	bit number; /* its pid is its own: it was forked, and is not reaped */
	bit killed; /* SIGKILL has worked: the next turn finds a zombie */
};

#define AGENT 0
process p[PLACES + 1]; /* the agent, and the list of app workers: 1 to count */
unsigned count : 3 = SLOTS;

unsigned phase : 3;
bit is_started, apps_forked; /* forked[ROLE_APP] > 0 */
bit started[SLOTS];
#define NO_SLOT 3
unsigned reload_slot : 2 = NO_SLOT;
bit refork_at[SLOTS], agent_refork_at; /* is it not 0? */
unsigned corpses : 2, killed_corpses : 2;

/* These two only while the cluster is closed; before that nothing depends on them. */
bit timed_out; /* poll has ended because a time has come */
bit at_once;   /* a time that has come already: poll does not sleep */

/* due: the time that has come for certain, while the cluster is closed: that of a process, or
 * one of these. */
#define DUE_CORPSES 6
#define DUE_NOTHING 15
unsigned due : 4;

/* The loops over the processes: the next one, the last one. */
byte i, last;

/* What lives within one step of the master only: forget() sets it to 0 at the step's end. */
byte j, k, found, old, number_of, failed, later, remain;
bit pending, loading, deleted, never_ready, was_reload_id, changed;
bit is_reaped; /* it is known to be dead, and speaks its last words */
inline forget() {
	d_step {
		j = 0; k = 0; found = 0; old = 0; number_of = 0; failed = 0; later = 0; remain = 0;
		deleted = 0; never_ready = 0; was_reload_id = 0; changed = 0; pending = 0; loading = 0
	}
}

/* STEP is done for each i from 0 to the last one: a step each, so that the checker compares what
 * it has seen after each of them. */
#define EACH(most, STEP)                                                                  \
	atomic { i = 0; last = most };                                                    \
	do                                                                                \
	:: atomic { i <= last -> STEP; i++; forget() }                                    \
	:: atomic { i > last -> i = 0; last = 0; break }                                  \
	od

#define IS_ALIVE(n) (p[n].worker_id && p[n].state != STATE_DEAD)
#define HAS_CHANNEL(n)                                                                    \
	(phase != PHASE_FAILING && (p[n].state == STATE_ONLINE ||                         \
	                            p[n].state == STATE_LISTENING || p[n].state == STATE_LEAVING))
#define HOLDS(n, s)                                                                       \
	(p[n].slot == s && !p[n].is_dev_reload &&                                         \
	 (p[n].state == STATE_ONLINE || p[n].state == STATE_LISTENING))
#define IS_NEXT(n) (n == AGENT && phase == PHASE_CLOSING_APPS)
#define IS_REPLACED(n) p[n].is_dev_reload
#ifdef STEADY_AGENT
#define IS_STEADY(n) (n == AGENT && phase == PHASE_RUNNING)
#else
#define IS_STEADY(n) false
#endif
#define ARMED(n) (p[n].deadline != DEADLINE_NONE && !IS_STEADY(n))

#if PLACES == 2
#define ANY(f) (f(0) || f(1) || f(2))
#elif PLACES == 3
#define ANY(f) (f(0) || f(1) || f(2) || f(3))
#else
#define ANY(f) (f(0) || f(1) || f(2) || f(3) || f(4))
#endif

/* ---- the transitions of a trace ---------------------------------------------- */

/* What the master does with a process has a line in its trace (docs/trace.md). The model
 * prints each such transition once, and model/check compares the list with
 * model/transitions, by which model/replay checks the traces of real runs. */
#define FORKS 0    /* "forks", and the fork has not failed */
#define READY 1    /* "receives" agent-start or listening */
#define SILENT 2   /* no line: a younger one in its slot is ready; or it is dead */
#define TERM 3     /* "signals" 15 */
#define KILL 4     /* "signals" 9 */
#define ENDS 5     /* "ends" */
#define DIES 6     /* "dies" */
#define FAILS 7    /* the same, when the start has failed: all channels were closed before */
hidden byte t_n, t_role, t_from, t_event, t_to;
c_decl {
static unsigned char taken[2][8][8][8];
static const char *const events[] = {"forks", "ready", "-", "TERM", "KILL", "ends", "dies",
                                     "fails"};
static const char *const states[] = {"NONE", "ONLINE", "LISTENING", "LEAVING", "DISCONNECTED",
                                     "DEAD"};
}
inline transition(n, event, from, to) {
	d_step {
		t_n = n; t_role = (n > 0 -> 1 : 0); t_from = from; t_event = event; t_to = to;
		c_code {
			if (readtrail) /* for model/check show */
				printf("step p[%d] %s %s %s %s\n", t_n, t_role ? "app" : "agent",
				       states[t_from], events[t_event], states[t_to]);
			if (!taken[t_role][t_from][t_event][t_to]) {
				taken[t_role][t_from][t_event][t_to] = 1;
				printf("transition %s %s %s %s\n", t_role ? "app" : "agent",
				       states[t_from], events[t_event], states[t_to]);
			}
		}
	}
}

/* ---- master.c ---------------------------------------------------------------- */

/* What SIGTERM does to a process is the process's own affair: see `hear`. SIGKILL works,
 * if not at the first time, then at the second. */
/* C: master.c is_alive 935368864 */
/* C: master.c signal_process 4003216065 */
inline signal_process(n, event) {
	if
	:: IS_ALIVE(n) ->
		assert(P8_no_stray_signal || p[n].number);
		if
		:: event == KILL -> transition(n, KILL, p[n].state, p[n].state);
			if
			:: p[n].killed = 1
			:: !p[n].killed && p[n].deadline != DEADLINE_KILLED
			fi
		:: else
		fi
	:: else
	fi
}

/* Time is abstract: a process that was told to end may be given more time or less than it
 * has left. */
/* C: master.c timeout_of 3868144347 */
/* C: master.c expect 1990331121 */
inline expect(n, why) {
	if
	:: later = 0
	:: p[n].deadline >= DEADLINE_LEAVE -> later = 1
	fi;
	if
	:: p[n].deadline >= DEADLINE_LEAVE && later
	:: else -> p[n].deadline = why;
		assert(P10_deadline_stays || !later)
	fi
}

/* Not in C: these are not read any more while the cluster is closed. So each has one value then,
 * and states that differ in nothing else are one. Were they read, every re-fork would be due. */
inline drop_plans() {
	d_step {
		for (j : 0 .. (SLOTS - 1)) { refork_at[j] = 1; started[j] = 0 }
		agent_refork_at = 1;
		for (j : 1 .. count) {
			p[j].slot = 0; p[j].disable_refork = 0; p[j].is_dev_reload = 0;
			p[j].is_reload_id = 0; p[j].told_pids = 0
		}
	}
}

/* C: master.c fail 3478447528 */
inline fail() {
	assert(phase == PHASE_RUNNING);
	reload_slot = NO_SLOT;
	phase = PHASE_FAILING;
	drop_plans();
	for (k : 0 .. count) {
		if
		:: IS_ALIVE(k) -> expect(k, DEADLINE_DISCONNECTED)
		:: else
		fi
	}
}

/* C: master.c set_worker 3701054000 */
/* C: master.c new_worker 1054359039 */
inline new_worker(s) {
	d_step {
		found = 0;
		if
		:: count < PLACES -> count++; found = count; p[found].slot = s; p[found].disable_refork = 1
		:: else
		fi
	}
}

/* C: master.c get_slot_worker 3825602976 */
inline get_slot_worker(s) {
	d_step {
		found = 0;
		for (j : 1 .. count) {
			if
			:: found == 0 && HOLDS(j, s) -> found = j
			:: else
			fi
		}
	}
}

inline copy(to, from) {
	p[to].state = p[from].state; p[to].deadline = p[from].deadline; p[to].slot = p[from].slot;
	p[to].worker_id = p[from].worker_id; p[to].disable_refork = p[from].disable_refork;
	p[to].is_dev_reload = p[from].is_dev_reload; p[to].is_reload_id = p[from].is_reload_id;
	p[to].told_pids = p[from].told_pids; p[to].number = p[from].number;
	p[to].killed = p[from].killed
}

inline clear(n) {
	p[n].state = STATE_NONE; p[n].deadline = DEADLINE_NONE; p[n].slot = 0; p[n].worker_id = 0;
	p[n].disable_refork = 0; p[n].is_dev_reload = 0; p[n].is_reload_id = 0;
	p[n].told_pids = 0; p[n].number = 0; p[n].killed = 0
}

/* The list stays in order of registration. */
/* C: master.c delete_worker 1673350559 */
inline delete_worker(n) {
	d_step {
		for (j : n .. (count - 1)) {
			copy(j, j + 1)
		}
		clear(count);
		count--
	}
}

/* Time is abstract: three checks in a row may come at any time. */
/* C: master.c check_alive 948192447 */
inline check_alive() {
	number_of = 0;
	for (j : 1 .. count) {
		if
		:: IS_ALIVE(j) -> number_of++
		:: else
		fi
	}
	if
	:: p[AGENT].state == STATE_LISTENING && number_of > 0
	:: else ->
		if
		:: fail()
		:: true /* less than CHECK_EXCEPTIONS */
		fi
	fi
}

/* C: master.c terminate 1114018962 */
inline terminate(n) {
	if
	:: !IS_ALIVE(n) || p[n].deadline == DEADLINE_LEAVE
	:: else ->
		old = p[n].state;
		signal_process(n, TERM);
		if
		:: p[n].state != STATE_DISCONNECTED -> p[n].state = STATE_LEAVING
		:: else
		fi;
		transition(n, TERM, old, p[n].state);
		expect(n, DEADLINE_LEAVE)
	fi
}

/* C: master.c tell_agent_pids 2958229128 */
inline tell_agent_pids() {
	d_step {
		if
		:: HAS_CHANNEL(AGENT) -> p[AGENT].told_pids = 1
		:: else
		fi
	}
}

/* The agent that is about to be told egg-ready. */
inline tell_agent_ready() {
	assert(P4_pids_before_ready || !HAS_CHANNEL(AGENT) || p[AGENT].told_pids)
}

/* C: master.c fork_process 3350181757 */
inline fork_process(n) {
	assert(P3_no_fork_while_closing || phase == PHASE_RUNNING);
	if
	:: n > PLACES -> failed = 1 /* no memory for a place */
#ifdef FORKS_FAIL
	:: n <= PLACES -> failed = 1
#endif
	:: n <= PLACES -> failed = 0;
		transition(n, FORKS, p[n].state, STATE_ONLINE);
		p[n].worker_id = 1;
		p[n].state = STATE_ONLINE;
		p[n].number = 1; p[n].killed = 0;
		p[n].told_pids = 0;
		expect(n, DEADLINE_START)
	fi
}

/* found: the worker, or 0 */
/* C: master.c fork_app_worker 1813890214 */
inline fork_app_worker(s) {
	found = 0;
	for (j : 1 .. count) {
		if
		:: found == 0 && p[j].slot == s && p[j].state == STATE_NONE -> found = j
		:: else
		fi
	}
	if
	:: found == 0 -> new_worker(s)
	:: else
	fi;
	found = (found > 0 -> found : PLACES + 1);
	fork_process(found);
	refork_at[s] = failed;
	found = (failed -> 0 : found)
}

/* C: master.c on_fork 89186234 */
inline on_fork(n) {
	d_step {
		if
		:: n > 0 ->
			if
			:: p[n].slot == reload_slot ->
				for (j : 1 .. count) { p[j].is_reload_id = 0 }
				p[n].is_reload_id = 1
			:: else
			fi;
			p[n].told_pids = 1
		:: else
		fi
	}
}

/* The window of 59 re-forks in a minute may be full: then it is a later turn's. */
/* C: master.c refork_due 2589911749 */
inline refork_due(s) {
	get_slot_worker(s);
	if
	:: s != reload_slot && found > 0 -> refork_at[s] = 0
	:: !(s != reload_slot && found > 0) -> fork_app_worker(s); on_fork(found)
	:: true /* not allowed yet */
	fi
}

/* C: master.c refork 2333340239 */
inline refork(s) {
	get_slot_worker(s);
	if
	:: phase != PHASE_RUNNING || refork_at[s] || found > 0
	:: else -> refork_at[s] = 1;
		refork_due(s) /* or back-off */
	fi
}

/* The answer of the agent may come at any time, as may the end of the deadline; both have
 * the same effect (see may_leave). */
/* C: master.c leave_later 1870896349 */
/* C: master.c may_leave 2024233432 */
inline leave_later(n) {
	expect(n, DEADLINE_BARRIER)
}

/* found: is there one? s: the slot, or NO_SLOT for any */
/* C: master.c is_replaced_one_left 3626041781 */
inline is_replaced_one_left(s) {
	d_step {
		found = 0;
		for (j : 1 .. count) {
			if
			:: p[j].is_dev_reload && (s == NO_SLOT || p[j].slot == s) -> found = 1
			:: else
			fi
		}
	}
}

inline is_reload_id_set() {
	d_step {
		found = 0;
		for (j : 1 .. count) {
			if
			:: p[j].is_reload_id -> found = 1
			:: else
			fi
		}
	}
}

/* C: master.c end_reload 1402336479 */
inline end_reload() {
	d_step {
		reload_slot = NO_SLOT;
		for (j : 1 .. count) { p[j].is_reload_id = 0 }
	}
}

/* C: master.c reload_next 248463511 */
inline reload_next() {
	is_reload_id_set();
	if
	:: reload_slot == NO_SLOT || found
	:: else ->
		do
		:: reload_slot < SLOTS ->
			is_replaced_one_left(reload_slot);
			if
			:: found -> break
			:: else
			fi;
			get_slot_worker(reload_slot);
			if
			:: found > 0 && p[found].state == STATE_LISTENING ->
				if
				:: !refork_at[reload_slot] ->
					fork_app_worker(reload_slot); on_fork(found)
				:: else
				fi;
				break
			:: else -> reload_slot++
			fi
		:: else ->
			is_replaced_one_left(NO_SLOT);
			if
			:: found
			:: else -> end_reload()
			fi;
			break
		od
	fi
}

/* C: master.c on_ready 568227486 */
inline on_ready() {
	d_step {
		is_started = 1;
		assert(P9_ready_when_all_are || (started[0] && started[SLOTS - 1]));
		for (k : 1 .. count) { /* tell(ROLE_APP): messenger.c, send_to_app_worker */
			assert(P4_pids_before_ready || p[k].state == STATE_NONE || p[k].told_pids)
		}
		tell_agent_ready()
	}
}

/* C: master.c fork_agent_worker 2979809304 */
inline fork_agent_worker() {
	fork_process(AGENT);
	agent_refork_at = failed
}

/* C: master.c fork_app_workers 965397715 */
inline fork_app_workers() {
	apps_forked = 1;
	for (k : 0 .. (SLOTS - 1)) { fork_app_worker(k) }
	for (k : 1 .. count) {
		if
		:: p[k].state == STATE_ONLINE -> on_fork(k)
		:: else
		fi
	}
}

/* C: master.c on_agent_exit 12207833 */
inline on_agent_exit() {
	if
	:: phase != PHASE_RUNNING
	:: else ->
		clear(AGENT);
		p[AGENT].state = STATE_DEAD;
		if
		:: is_started -> agent_refork_at = 1
		:: else -> fail()
		fi
	fi
}

/* C: master.c on_agent_start 2329675287 */
inline on_agent_start() {
	old = p[AGENT].state;
	if
	:: p[AGENT].state == STATE_ONLINE ->
		p[AGENT].state = STATE_LISTENING;
		assert(P10_deadline_stays || p[AGENT].deadline < DEADLINE_LEAVE);
		p[AGENT].deadline = DEADLINE_NONE
	:: else
	fi;
	transition(AGENT, READY, old, p[AGENT].state);
	if
	:: is_started -> tell_agent_pids()
	:: else
	fi;
	if
	:: is_started -> tell_agent_ready()
	:: else
	fi;
	if
	:: !apps_forked && phase == PHASE_RUNNING -> fork_app_workers()
	:: else
	fi
}

/* C: master.c on_app_exit 3653555487 */
inline on_app_exit(n) {
	if
	:: phase != PHASE_RUNNING
	:: else ->
		number_of = p[n].slot; was_reload_id = p[n].is_reload_id;
		never_ready = p[n].disable_refork;
		delete_worker(n); deleted = 1;
		tell_agent_pids();
		if
		:: !is_started -> fail()
		:: else ->
			if
			:: was_reload_id -> end_reload()
			:: else
			fi;
			if
			:: never_ready -> refork(number_of)
			:: else
			fi
		fi
	fi
}

/* C: master.c on_app_start 1823787667 */
inline on_app_start(n) {
	number_of = p[n].slot;
	get_slot_worker(number_of);
	transition(n, READY, p[n].state, STATE_LISTENING);
	p[n].state = STATE_LISTENING;
	assert(P10_deadline_stays || p[n].deadline < DEADLINE_LEAVE);
	p[n].deadline = DEADLINE_NONE;
	if
	:: found != n ->
		transition(found, SILENT, p[found].state, STATE_LEAVING);
		assert(P6_reload_keeps_a_worker || (p[n].number && !is_reaped && !p[n].is_dev_reload));
		p[found].is_dev_reload = 1;
		p[found].state = STATE_LEAVING
	:: else
	fi;
	tell_agent_pids();
	started[p[n].slot] = 1;
	remain = SLOTS - started[0] - (SLOTS > 1 -> started[SLOTS - 1] : 0);
	if
	:: is_started -> assert(P4_pids_before_ready || p[n].told_pids)
	:: else
	fi;
	p[n].disable_refork = 0;
	if
	:: found != n -> leave_later(found)
	:: else
	fi;
	if
	:: p[n].is_reload_id -> p[n].is_reload_id = 0; reload_slot++
	:: else
	fi;
	if
	:: is_started || remain > 0 || phase != PHASE_RUNNING
	:: else -> on_ready()
	fi
}

/* C: master.c on_reload 167552831 */
inline on_reload() {
	if
	:: !is_started || phase != PHASE_RUNNING
	:: else ->
		for (k : 1 .. count) {
			if
			:: p[k].is_reload_id -> p[k].is_dev_reload = 1; terminate(k)
			:: else
			fi
		}
		end_reload();
		reload_slot = 0
	fi
}

/* C: master.c kill_app_workers 3159859435 */
/* C: master.c close_cluster 124468736 */
inline close_cluster() {
	reload_slot = NO_SLOT;
	phase = PHASE_CLOSING_APPS;
	drop_plans();
	for (k : 1 .. count) { terminate(k) }
}

/* C: master.c on_signal 2184248282 */
inline on_signal() {
	if
	:: phase != PHASE_RUNNING
	:: else -> close_cluster()
	fi
}

/* C: master.c do_close 1898428828 */
/* C: master.c kill_agent_worker 971025134 */
inline do_close() {
	found = 0;
	for (j : 1 .. count) {
		if
		:: IS_ALIVE(j) -> found = j
		:: else
		fi
	}
	if
	:: phase == PHASE_RUNNING || found > 0 || corpses + killed_corpses > 0
	:: else ->
		if
		:: phase == PHASE_CLOSING_APPS ->
			phase = PHASE_CLOSING_AGENT;
			terminate(AGENT)
		:: else
		fi;
		if
		:: !IS_ALIVE(AGENT) -> phase = PHASE_CLOSED
		:: else
		fi
	fi
}

/* The half of the channel that a leaving worker still reads (D20) is left out; that it ends
 * later changes nothing. */
/* C: master.c on_disconnect 3362922333 */
inline on_disconnect(n) {
	transition(n, ENDS, p[n].state, STATE_DISCONNECTED);
	if
	:: n > 0 -> transition(n, ENDS, STATE_DISCONNECTED, STATE_DISCONNECTED)
	:: else
	fi;
	p[n].state = STATE_DISCONNECTED;
	if
	:: phase != PHASE_RUNNING
	:: else ->
		expect(n, DEADLINE_DISCONNECTED);
		if
		:: n == AGENT
		:: else ->
			tell_agent_pids();
			if
			:: !p[n].disable_refork -> number_of = p[n].slot; refork(number_of)
			:: else
			fi
		fi
	fi
}

/* C: master.c condemn 1380930990 */
inline condemn(n) {
	signal_process(n, KILL);
	on_disconnect(n)
}

/* A child does what it likes, or nothing: it says that it is ready, closes its end of the
 * channel, ends. The master cannot tell when it has done so, only that it has, when it looks.
 * So the model decides at that moment, and keeps nothing of it before. That is all that these
 * functions may do, and more: */
/* C: agent.c agent_run 1767821978 */
/* C: agent.c clutch_process_start 2600521474 */
/* C: agent.c clutch_process_leave 137344297 */
/* C: worker.c worker_run 2900699826 */
/* C: worker.c consider_leaving 750679438 */
/* C: worker.c disconnect 1958245097 */
/* C: worker.c has_left 4000535173 */
#define MAY_END(n) (!IS_STEADY(n))

/* One read: the message that makes a process ready, which one that is ready cannot send
 * again; or the end; or what none may send. */
/* C: sendmessage.c channel_read 2316672175 */
/* C: master.c may_say 1773463059 */
/* C: master.c emit 1034965217 */
/* C: master.c hear 668160317 */
inline hear(n) {
	if
	:: p[n].state != STATE_LISTENING ->
		if
		:: n == AGENT -> on_agent_start()
		:: n > 0 && p[n].state == STATE_ONLINE -> on_app_start(n)
		:: else -> transition(n, READY, p[n].state, p[n].state)
		fi
	:: MAY_END(n) -> on_disconnect(n)
#ifdef FAULTS
	:: true
#else
	:: else
#endif
	fi
#ifdef FAULTS
	;
	if
	:: HAS_CHANNEL(n) -> condemn(n)
	:: true
	fi
#endif
}

/* The zombie keeps its number until its group is gone: it is a corpse. */
/* C: master.c bury 3079252834 */
inline bury(n) {
	p[n].number = 0;
	if
	:: corpses + killed_corpses < CORPSES && p[n].deadline == DEADLINE_KILLED -> killed_corpses++
	:: corpses + killed_corpses < CORPSES && p[n].deadline != DEADLINE_KILLED -> corpses++
	:: corpses + killed_corpses == CORPSES /* no memory for it: SIGKILL, waitpid */
	fi
}

/* Without GROUPS a group is gone when its leader is a corpse. */
/* C: master.c reap_corpses 4072428810 */
inline reap_corpses() {
	changed = 0;
	do
	:: corpses > 0 -> corpses--; at_once = phase != PHASE_RUNNING; changed = 1
#ifdef GROUPS
	:: corpses > 0 -> corpses--; killed_corpses++; changed = 1
	:: killed_corpses > 0 -> killed_corpses--; at_once = phase != PHASE_RUNNING; changed = 1
	:: due != DUE_CORPSES || changed -> break
#else
	:: killed_corpses > 0 -> killed_corpses--; at_once = phase != PHASE_RUNNING
	:: corpses + killed_corpses == 0 -> break
#endif
	od
}

/* C: master.c on_process_exit 232831310 */
inline on_process_exit(n) {
	is_reaped = 1; p[n].killed = 1;
	if
	:: p[n].state == STATE_ONLINE ->
		transition(n, SILENT, STATE_ONLINE, STATE_LEAVING);
		p[n].state = STATE_LEAVING
	:: else
	fi;
	if
	:: HAS_CHANNEL(n) -> hear(n) /* its last words, or that there are none */
	:: else
	fi;
	is_reaped = 0;
	if
	:: HAS_CHANNEL(n) -> on_disconnect(n)
	:: else
	fi;
	t_event = (phase == PHASE_FAILING -> FAILS : DIES);
	transition(n, t_event, p[n].state, STATE_DEAD);
	p[n].state = STATE_DEAD;
	bury(n);
	if
	:: n == AGENT -> on_agent_exit()
	:: else -> on_app_exit(n)
	fi
}

/* C: master.c reap_all 2639729848 */
inline reap_one() {
	if
	:: IS_ALIVE(i) && MAY_END(i) -> on_process_exit(i)
	:: !IS_ALIVE(i) || !p[i].killed
	fi;
	if
	:: deleted -> i--; last--
	:: else
	fi
}
inline reap_all() {
	EACH(count, reap_one()) /* a process that is forked meanwhile lives until the next turn */
}

/* C: master.c on_deadline 2799675917 */
inline on_deadline(n) {
	later = p[n].deadline;
	p[n].deadline = DEADLINE_NONE;
	if
	:: later < DEADLINE_LEAVE -> terminate(n)
	:: else ->
		if
		:: later == DEADLINE_KILLED -> p[n].deadline = DEADLINE_KILLED /* for signal_process */
		:: else
		fi;
		signal_process(n, KILL);
		p[n].deadline = DEADLINE_NONE;
		if
		:: IS_ALIVE(n) -> expect(n, DEADLINE_KILLED)
		:: else
		fi
	fi
}

/* Any time that the master waits for may have come; one has, if poll has ended for that. */
/* C: master.c await 2659077446 */
inline deadline_one() {
	if
	:: ARMED(i) -> at_once = phase != PHASE_RUNNING; on_deadline(i)
	:: due != i
	fi
}
inline refork_one() {
	if
	:: refork_at[i] -> refork_due(i)
	:: true
	fi
}
/* C: master.c run_clock 3913575375 */
inline run_clock() {
	atomic {
		due = DUE_NOTHING;
		if
		:: timed_out -> timed_out = 0;
			if
			:: ARMED(0) -> due = 0
			:: ARMED(1) -> due = 1
			:: ARMED(2) -> due = 2
#if PLACES > 2
			:: ARMED(3) -> due = 3
#endif
#if PLACES > 3
			:: ARMED(4) -> due = 4
#endif
			:: corpses + killed_corpses > 0 -> due = DUE_CORPSES
			:: else
			fi
		:: else
		fi
	}
	EACH(count, deadline_one());
	atomic { reap_corpses(); forget() }
	if
	:: phase != PHASE_RUNNING
	:: else ->
		atomic {
			if
			:: agent_refork_at -> fork_agent_worker()
			:: true
			fi;
			forget()
		}
		EACH(SLOTS - 1, refork_one());
#ifdef CHECKS
		atomic {
			if
			:: is_started -> check_alive(); at_once = phase != PHASE_RUNNING
			:: true
			fi;
			forget()
		}
#endif
	fi
}

/* A queue that is full for too long, and a reading end that is closed, may come at any time. */
/* C: master.c watch_queue 1595929738 */
inline watch_queue(n) {
#ifdef FAULTS
	if
	:: HAS_CHANNEL(n) && p[n].deadline == DEADLINE_NONE -> expect(n, DEADLINE_DEAF)
	:: HAS_CHANNEL(n) && p[n].deadline < DEADLINE_LEAVE -> condemn(n)
	:: true
	fi
#else
	skip
#endif
}

/* C: master.c prepare_all 2842887332 */
inline prepare_all() {
	at_once = 0;
#ifdef PARENT
	if
	:: on_signal(); /* its queue is full for too long */
		at_once = phase != PHASE_RUNNING /* trim_at: there was a queue */
	:: true
	fi;
#endif
	for (i : 0 .. count) { watch_queue(i) }
}

/* C: master.c hear_all 2627631141 */
inline hear_one() {
	if
	:: HAS_CHANNEL(i) -> hear(i)
	:: true
	fi
}
inline hear_all() {
#ifdef PARENT
	atomic {
		if
		:: on_signal() /* it is gone */
		:: true
		fi;
#ifdef RELOADS
		if
		:: on_reload() /* its message */
		:: true
		fi;
#endif
		forget()
	}
#endif
	EACH(count, hear_one()) /* a process that is forked meanwhile is not in the set */
}

/* C: master.c take 236169611 */
/* C: master.c obey 2479054325 */
inline obey() {
	if
	:: phase == PHASE_RUNNING -> on_signal()
	:: true
	fi
#ifdef RELOADS
	;
	if
	:: is_started && phase == PHASE_RUNNING -> on_reload()
	:: true
	fi
#endif
}

/* ---- what must be true whenever the master goes to sleep ----------------------- */

inline invariants() {
	d_step {
		for (i : 0 .. (SLOTS - 1)) {
			number_of = 0; pending = 0; loading = 0;
			for (k : 1 .. count) {
				if
				:: p[k].slot == i ->
					number_of = number_of + HOLDS(k, i);
					pending = pending || (IS_ALIVE(k) && p[k].disable_refork);
					loading = loading || p[k].is_reload_id ||
					          (IS_ALIVE(k) && p[k].is_dev_reload)
				:: else
				fi
			}
			/* Each slot has a holder, or a re-fork that is due, or a process that was never
			 * ready, whose death causes one. */
			assert(P1_no_slot_is_lost || phase != PHASE_RUNNING || !apps_forked ||
			       number_of > 0 || refork_at[i] || pending);
			assert(P2_one_holder || phase != PHASE_RUNNING || number_of <= 1 || reload_slot == i);
			assert(P11_reload_goes_on || reload_slot != i || loading || refork_at[i])
		}
		assert(P11_reload_goes_on || reload_slot < SLOTS || reload_slot == NO_SLOT || ANY(IS_REPLACED));
		assert(P1_no_slot_is_lost || phase != PHASE_RUNNING || IS_ALIVE(AGENT) || agent_refork_at);
		for (i : 0 .. count) {
			/* A process that is not ready has its time; so has one that was told to end, or
			 * whose channel has ended: that one cannot be given more. (An agent whose
			 * channel ends while the apps are closed is told to end after them.) */
			assert(P10_deadline_stays || !IS_ALIVE(i) || p[i].deadline != DEADLINE_NONE ||
			       p[i].state == STATE_LISTENING || IS_NEXT(i));
			assert(P10_deadline_stays || p[i].state != STATE_DISCONNECTED ||
			       p[i].deadline >= DEADLINE_LEAVE || IS_NEXT(i));
			assert(P7_all_are_reaped || !p[i].number || IS_ALIVE(i))
		}
		assert(P5_closing_wakes_up || phase == PHASE_RUNNING || at_once || ANY(ARMED) ||
		       corpses + killed_corpses > 0)
	}
}

/* C: master.c open_places 995434256 */
/* C: master.c run_cluster 2615309307 */
/* C: master.c loop 3637057502 */
active proctype master() {
	d_step {
		for (i : 1 .. SLOTS) { p[i].slot = i - 1; p[i].disable_refork = 1 }
		i = 0
	}
	atomic { fork_agent_worker(); forget() }
	do
	:: hear_all(); /* poll, and who is heard */
	   reap_all();
	   atomic {
		obey();
		do_close();
		reload_next();
		if
		:: phase == PHASE_CLOSED -> break
		:: else
		fi;
		prepare_all();
		forget() }
#ifdef ENDS_AT_LAST
	   if
	   :: phase != PHASE_RUNNING ->
accept_P12_it_ends: timed_out = 1 /* a time has come */
	   :: true
	   fi;
#endif
	   run_clock();
	   atomic {
		invariants();
		at_once = 0; due = 0; i = 0;
		forget() }
	od;
	atomic {
		for (i : 0 .. count) { assert(P7_all_are_reaped || !p[i].number) }
		assert(P7_all_are_reaped || corpses + killed_corpses == 0)
	}
}
