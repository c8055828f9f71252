# What a run has printed, in a form in which two runs are equal: what differs from run to run
# is replaced (pids, times, ports), and the lines of each process stand together, because in
# which order processes print is a matter of luck. All that the checks know of the format of
# a log line is here.
#
# A line that begins with "$ " begins a new command; what commands have printed is not mixed.
#
# Copyright (c) 2026 the clutch authors
# SPDX-License-Identifier: MIT

# Replace each number that follows `before` (a regular expression) by a name.
function hide(line, before, number, name,    out, at, length_before) {
	out = ""
	while (match(line, before number)) {
		at = RSTART
		length_before = RLENGTH
		match(substr(line, at, length_before), before)
		out = out substr(line, 1, at - 1) substr(line, at, RLENGTH) name
		line = substr(line, at + length_before)
	}
	return out line
}

# The numbers at the beginning of a line.
function hide_pids(line,    out) {
	out = ""
	while (match(line, /^[0-9]+ /)) {
		out = out "PID "
		line = substr(line, RLENGTH + 1)
	}
	return out line
}

function mask(line,    at, head) {
	# The prefix of a log line: 2026-11-29 14:03:21.123 ERROR 3061 app 2:
	sub(/^[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9] /, "", line)
	sub(/^[0-9][0-9]:[0-9][0-9]:[0-9][0-9]\.[0-9]+ /, "TIME ", line)
	line = hide(line, "^TIME [A-Z]+ ", "[0-9]+", "PID")
	# ps prints pids in the first columns, which are as wide as the largest pid.
	if (line ~ /^ *(PID|[0-9]+)( +(PPID|PGID|[0-9]+))+ /) {
		gsub(/ +/, " ", line)
		sub(/^ /, "", line)
		line = hide_pids(line)
	}
	if (line ~ /^ *[0-9]+ [A-Z]/) # the letter, the state, is compared
		sub(/[0-9]+/, "PID", line)
	# The state of a process at a lower priority is "SN".
	if (match(line, /^ *(PID +)+[A-Z][<NL]+/)) {
		at = RLENGTH
		head = substr(line, 1, at)
		gsub(/[<N]|L$/, "", head)
		line = head substr(line, at + 1)
	}
	if (line ~ /_worker#[0-9]+:[0-9]+ started/) { # which one is ready first?
		sub(/#[0-9]+:/, "#N:", line)
		sub(/[(]app [0-9]+[)]$/, "(app N)", line)
	}
	line = hide(line, "_worker#[0-9N]+:", "[0-9]+", "PID")
	line = hide(line, "(app|agent):[0-9]+:", "[0-9]+", "PID")
	line = hide(line, "(master|parent):0:", "[0-9]+", "PID")
	# A slot is a number, too: "app 2". It has one digit.
	line = hide(line, "(app|agent|master|parent|process|pid|pid[\"]:|kill|kill -[A-Z0-9]+),?( is)? ?", "[0-9][0-9]+", "PID")
	line = hide(line, "[[,]", "[0-9][0-9][0-9]+", "PID")
	line = hide(line, "(127\\.0\\.0\\.1|localhost):", "[0-9]+", "PORT")
	gsub(/[0-9.]+ ?ms/, "N ms", line)
	gsub(/[0-9.]+ s([^a-z]|$)/, "N s", line)
	return line
}

# The process that has printed the line, as far as the line says so.
function printer(line) {
	if (match(line, /^(20[0-9-]+ )?[0-9][0-9]:[0-9:.]+ ([A-Z]+ [0-9]+ )?(master|agent|parent|app [0-9]+): /))
		return substr(line, RSTART, RLENGTH) ~ /master/ ? "master" : last_words(substr(line, RSTART, RLENGTH - 2))
	if (match(line, /^\[[a-z_]*\]/) || match(line, /^(master|agent|app|parent):[0-9]+:[0-9]+/) ||
	    match(line, /^(master|agent|app|parent|process) [0-9]+/))
		return substr(line, RSTART, RLENGTH)
	return ""
}

function last_words(text,    part, n) {
	n = split(text, part, " ")
	return part[n] ~ /^[0-9]+$/ ? part[n - 1] " " part[n] : part[n]
}

function sort_and_print(list, n,    i, j, one) {
	for (i = 2; i <= n; i++) {
		one = list[i]
		for (j = i - 1; j >= 1 && list[j] > one; j--)
			list[j + 1] = list[j]
		list[j + 1] = one
	}
	for (i = 1; i <= n; i++)
		print list[i]
}

function end_of_command(    i, key) {
	for (i = 1; i <= printers; i++)
		story[i] = said[printer_at[i]]
	sort_and_print(story, printers)
	for (key in said)
		delete said[key]
	printers = 0
}

/: line [0-9]+: +[0-9]+ (Killed|Terminated|Hangup|Interrupt|Segmentation fault) / { next } # bash's
/^[$] / || /^\^C$/ {
	end_of_command()
	print
	next
}
{
	key = printer($0)
	if (key == "[app_worker]") # which one? Each of its lines is a story.
		key = key " " FNR
	if (!(key in said)) {
		printer_at[++printers] = key
		said[key] = mask($0)
	} else
		said[key] = said[key] "\n" mask($0)
}
END { end_of_command() }
