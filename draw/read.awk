# A trace (docs/trace.md), sorted by time, becomes rows and columns for text.awk, svg.awk
# and timeline.awk, which draw them. Limits, all optional:
#
#	actions="a b"      messages of these actions, and nothing else
#	processes="a b"    these processes: parent, master, agent, app:0 ...
#	from=MS, to=MS     this time, in milliseconds after the first line
#	all=1              reads, writes and reaping, too
#
# A row: kind[r], its processes a[r] and b[r], what[r], and when[r]. A message leaves at
# the row left[r], and arrives at its own.

BEGIN {
	FS = "\t"
	words(actions, wanted_action)
	words(processes, wanted_process)
	split("1 HUP 2 INT 3 QUIT 6 ABRT 9 KILL 10 USR1 11 SEGV 12 USR2 13 PIPE 14 ALRM 15 TERM 17 CHLD", signal, " ")
	for (i = 1; i in signal; i += 2)
		signal_name[signal[i]] = "SIG" signal[i + 1]
	for (i = 128; i < 192; i++)
		continuation = continuation sprintf("%c", i)
}

function words(text, set,    list, n, i) {
	n = split(text, list, /[ ,]+/)
	for (i = 1; i <= n; i++)
		if (list[i] != "")
			set[list[i]] = 1
}

# "app 0", "master" ... of "app:0:4711".
function title(id,    part) {
	split(id, part, ":")
	return part[1] == "app" ? "app " part[2] : part[1]
}

# One master, and one parent, whose pid the master does not know.
function process(id) {
	if (id ~ /^(master|parent):/)
		sub(/:.*/, "", id)
	return id
}

function is_wanted(id,    part) {
	if (processes == "")
		return 1
	split(id, part, ":")
	return (part[1] in wanted_process) || ((part[1] ":" part[2]) in wanted_process)
}

# A row, unless a limit leaves it out. A row that is no message has no action.
function add(type, one, two, text, action) {
	if (actions != "" && !(action in wanted_action))
		return 0
	if (!is_wanted(one) || (two != "" && !is_wanted(two)))
		return 0
	if ((from != "" && now < from) || (to != "" && now > to))
		return 0
	rows++
	kind[rows] = type
	a[rows] = one
	b[rows] = two
	what[rows] = text
	when[rows] = now
	seen(one)
	if (two != "")
		seen(two)
	return rows
}

function seen(id) {
	if (!(id in known)) {
		known[id] = 1
		id_at[++ids] = id
	}
}

function detail_number(    part, n) {
	n = split($10, part, " ")
	return part[n]
}

function signal_of(number) {
	return number in signal_name ? signal_name[number] : "signal " number
}

function messages(count) { return count > 0 ? ", " count " message" (count > 1 ? "s" : "") : "" }

# A row for a read or a write: "writes 64 bytes for app 0, 2 messages".
function call(count,    text, row) {
	text = $5 " " detail_number() " bytes"
	if (me == "master")
		text = text ($5 == "reads" ? " of " : " for ") title(peer)
	row = add("note", me, "", text messages(count), "")
	if (row > 0)
		of_call[row] = text
	return row
}

# The message arrives: which row has seen it leave?
function arrive(one, two,    key, part, row) {
	key = one SUBSEP two SUBSEP $7
	if (!(key in sent)) { # it was sent before its receiver had a pid
		split(two, part, ":")
		key = one SUBSEP part[1] ":" part[2] ":0" SUBSEP $7
	}
	got[one, two, $7] = 1
	row = add("message", one, two, said(), $13)
	if (key in sent) {
		if (row > 0)
			left[row] = sent[key]
		arrived[sent[key]] = 1 # also if that is later than what is drawn
	}
	return row
}

# What a message says: its action and its data, and that a descriptor travels with it.
function said() { return $13 ($11 == "handle" ? "+handle" : "") (length($14) > 0 ? " " $14 : "") }

# Text that fits: no part of a UTF-8 character stays.
function clip(text, most) {
	if (length(text) <= most)
		return text
	if (most < 3)
		return ""
	most -= 2
	while (most > 0 && index(continuation, substr(text, most + 1, 1)) > 0)
		most--
	return substr(text, 1, most) ".."
}

# The text, or its first word, the action, or the beginning of it.
function fit(text, most) {
	if (length(text) > most && match(text, / /) && RSTART - 1 <= most)
		text = substr(text, 1, RSTART - 1)
	if (length(text) > most)
		sub(/[+]handle$/, "", text) # the action says more
	return clip(text, most)
}

$1 != "trace" || NF != 14 { next } # a line of the log

{
	if (first == "")
		first = $2
	now = ($2 - first) / 1000
	me = process($3)
	peer = process($6)
	last_time = now
	if ($4 > 0)
		add("note", me, "", $4 " lines are lost", "")
	if ($6 != $3) { # how long is the queue?
		samples++
		sample_at[samples] = now
		sample_of[samples] = me == "master" ? peer : me
		sample_out[samples] = me == "master"
		sample[samples] = $8
	}
	if (!(me in first_time))
		first_time[me] = now
	final_time[me] = now
}

$5 == "starts" { add("birth", "master", me, "fork", "") }
# A channel that a process has joined: the trace does not know the process at the other end.
me == peer && ($5 == "sends" || $5 == "hears") {
	heard_at[me] = add("note", me, "", $5 " " $13 ", past the master", $13)
	next
}
# A large message is written at once: it may arrive before its sender has said so.
$5 == "sends" && !((me, peer, $7) in got) {
	row = add("leave", me, peer, said(), $13)
	if (row > 0)
		sent[me, peer, $7] = row
}
$5 == "receives" { arrive(peer, me) }
$5 == "hears" { heard_at[me] = arrive("master", me) }
$5 == "ignores" && $13 !~ /^egg-pids$/ { ignored[heard_at[me]] = 1 }
$5 == "delivers" { delivered[heard_at[me]]++ }
$5 == "is ready" { add("ready", peer, "", "ready", "") }
$5 == "fails" { add("bad", me, "", "fails: " $10, "") }
$5 == "drops" { add("note", me, "", "drops " $13 " for " title(peer), $13) }
$5 == "reaches nobody" && $9 !~ /^master>/ { add("note", me, "", "nobody for " $13, $13) }
$5 == "ends" && me == "master" { add("note", me, "", "end of " title(peer), "") }
$5 == "ends" && me != "master" { add("note", me, "", "end of file", "") }
$5 == "signals" { add("signal", me, peer, signal_of(detail_number()), "") }
$5 == "is signaled" && detail_number() !~ /^(14|17)$/ {
	add("note", me, "", "gets " signal_of(detail_number()), "")
}
$5 == "waits" {
	add("wait", peer, "", "waits for " $10, "")
	if (!(peer in waits_since))
		waits_since[peer] = now
	if (from != "" && now < from)
		waits_before[peer] = 1
}
$5 == "goes on" {
	add("goes", peer, "", "goes on", "")
	wait_count++
	wait_of[wait_count] = peer
	wait_from[wait_count] = waits_since[peer]
	wait_to[wait_count] = now
	delete waits_since[peer]
	if (from != "" && now < from)
		delete waits_before[peer]
}
$5 == "dies" {
	text = $10
	sub(/ 0$/, "", text)
	if (text ~ /signal: null/)
		sub(/code: /, "exit ", text)
	sub(/, signal: null|code: null, signal: /, "", text)
	add("death", peer, "", text, "")
	death_time[peer] = now
}
all && $5 == "reaps" { add("note", me, "", "reaps " $10, "") }
# How many messages a call has carried: a write those that were queued since the one before,
# a read those that are taken before the next one. A process may have joined many channels.
all && $5 == "writes" {
	call(me == peer ? 0 : $7 - wrote[me, peer])
	wrote[me, peer] = $7
}
all && $5 == "reads" {
	reading[me, peer] = call(0)
	taken[me, peer] = 0
}
all && me != peer && ($5 == "receives" || $5 == "hears") && reading[me, peer] > 0 {
	what[reading[me, peer]] = of_call[reading[me, peer]] messages(++taken[me, peer])
}

# Columns from left to right: parent, agents, master, apps by slot; of one place the older
# process first.
function rank(id,    part) {
	split(id, part, ":")
	if (part[1] == "app")
		return 3 + part[2]
	return part[1] == "parent" ? 0 : part[1] == "agent" ? 1 : 2
}

function lay_out(    i, j, id, n) {
	for (i = 2; i <= ids; i++) {
		id = id_at[i]
		for (j = i - 1; j >= 1 && rank(id_at[j]) > rank(id); j--)
			id_at[j + 1] = id_at[j]
		id_at[j + 1] = id
	}
	for (i = 1; i <= ids; i++)
		if (id_at[i] !~ /:0$/ || id_at[i] == "parent:0:0") # never born: no process
			column[id_at[i]] = ++columns
	for (i = 1; i <= columns; i++)
		id_of[i] = ""
	for (id in column)
		id_of[column[id]] = id
	for (i = 1; i <= rows; i++) {
		if (kind[i] == "leave" && !arrived[i] && (b[i] in column))
			kind[i] = "lost"
		if (kind[i] == "leave" || !(a[i] in column)) {
			place[i] = n + 0.5
			shown[i] = 0
		} else {
			place[i] = ++n
			shown[i] = 1
		}
		if (kind[i] == "birth")
			birth[column[b[i]]] = i
		if (kind[i] == "death")
			death[column[a[i]]] = i
	}
	return n
}
