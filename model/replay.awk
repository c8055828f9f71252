# Is each step of the master in a trace one of the model's? Arguments: model/transitions, and a
# trace that is in order of time (docs/trace.md).
#
# A process may be in one of several states as far as its trace tells, because some steps have
# no line: at each line it takes those that the model has, and none is left where a step is not
# the model's.
#
# Copyright (c) 2026 the clutch authors
# SPDX-License-Identifier: MIT
BEGIN { FS = "[ \t]+" }

FNR == NR {
	if ($1 !~ /^#/) {
		next_state[$1, $2, $3, $4] = 1
		states[$2] = states[$4] = 1
	}
	next
}
FNR == 1 && NR > 1 { FS = "\t"; $0 = $0 }

function complain(text)
{
	print "model: " name ", line " FNR ": " text
	failed = 1
}

function role_of(id) { return substr(id, 1, index(id, ":") - 1) }

# The steps that have no line.
function widen(id,   from, to)
{
	for (from in states)
		for (to in states)
			if ((id, from) in at && (role_of(id), from, "-", to) in next_state)
				at[id, to] = 1
}

function step(id, event,   role, from, to, after)
{
	role = role_of(id)
	widen(id)
	for (from in states)
		for (to in states)
			if ((id, from) in at && (role, from, event, to) in next_state)
				after = after " " to
	if (after == "")
		complain(id ": " event " in " names(id) " is no step of the model")
	for (from in states)
		delete at[id, from]
	split(after, list, " ")
	for (from in list)
		at[id, list[from]] = 1
	seen[event]++
}

function can(id, event,   from, to)
{
	widen(id)
	for (from in states)
		for (to in states)
			if ((id, from) in at && (role_of(id), from, event, to) in next_state)
				return 1
	return 0
}

function names(id,   state, text)
{
	for (state in states)
		if ((id, state) in at)
			text = text (text != "" ? " or " : "") state
	return text
}

# The place that is forked for has no pid yet: the pid comes with the next line of it.
function known(id,   word, place)
{
	if ((id in alive))
		return 1
	split(id, word, ":")
	place = word[1] ":" word[2]
	if (!(place in forking) || word[3] == 0)
		return 0
	delete forking[place]
	alive[id] = 1
	at[id, word[1] == "agent" && agents++ ? "DEAD" : "NONE"] = 1
	step(id, "forks")
	return 1
}

$1 != "trace" { next }
{ split($3, self, ":") }
$5 == "starts" && (self[1] == "app" || self[1] == "agent") { known($3) }
self[1] != "master" { next }
{ split($6, other, ":") }

$5 == "sends" && $13 == "egg-ready" { started = 1 }
$5 == "is signaled" && $10 ~ / (15|2|3)$/ { closing = 1 }
$5 == "forks" {
	if (closing)
		complain("a fork while the cluster is closed")
	if (other[1] == "app" || other[1] == "agent")
		forking[other[1] ":" other[2]] = 1
	next
}
$5 == "reaps" {
	split($10, word, " ")
	reaped[word[2]] = 1
}
other[1] != "app" && other[1] != "agent" { next }
$5 == "is ready" && known($6) { step($6, "ready") }
$5 == "signals" && $10 == "signal 15" && known($6) { step($6, "TERM") }
$5 == "signals" && $10 == "signal 9" && known($6) { step($6, "KILL") }
$5 == "ends" && known($6) { step($6, "ends") }
$5 == "dies" && known($6) { # where the start has failed, all channels were closed before
	step($6, started || !can($6, "fails") ? "dies" : "fails")
	died[other[3]] = 1
}
$5 == "dies" || $5 == "signals" || $5 == "ends" {
	if (other[3] != 0 && !($6 in alive))
		complain($6 " was not forked")
}

END {
	for (pid in died)
		if (!(pid in reaped))
			complain("the zombie " pid " was not reaped")
	printf "%s: %d forks, %d ready, %d ends, %d TERM, %d KILL, %d dead: %s\n", name, seen["forks"],
		seen["ready"], seen["ends"], seen["TERM"], seen["KILL"], seen["dies"] + seen["fails"],
		failed ? "not all of it is the model's" : "all of it is the model's"
	exit failed
}
