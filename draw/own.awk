# What each process did, for a comparison of two runs: its own events, without times and
# pids. In which order a process hears of others depends on their speed, and so do what a read
# or a write takes, how long a queue is, and which apps are ready first: the lines are sorted
# before two runs are compared, and these things are left out.
#
# Input: a trace, sorted by time, twice.

BEGIN { FS = "\t" }

function name(id,    part, place) {
	if (id in symbol)
		return symbol[id]
	split(id, part, ":")
	if (part[1] == "master" || part[1] == "parent" || part[3] == 0)
		return part[1] (part[1] == "app" ? part[2] : "")
	place = part[1] (part[1] == "app" ? part[2] : "")
	symbol[id] = place "#" (++forked[place])
	pid_name[part[3]] = symbol[id]
	return symbol[id]
}

# Numbers that are pids become names.
function without_pids(text,    out, number) {
	out = ""
	while (match(text, /[0-9]+/)) {
		number = substr(text, RSTART, RLENGTH)
		out = out substr(text, 1, RSTART - 1) (number in pid_name ? pid_name[number] : number)
		text = substr(text, RSTART + RLENGTH)
	}
	return out text
}

$1 != "trace" || NF != 14 { next }

NR == FNR { # the first time: learn the names
	name($3)
	name($6)
	if ($3 ~ /^(master|parent):/) {
		split($3, part, ":")
		pid_name[part[3]] = part[1]
	}
	next
}

$5 !~ /^(reads|writes|waits|goes on|is signaled|starts)$/ {
	print name($3), $5, name($6), without_pids($9), without_pids($10), $13, $13 == "egg-pids" ? "[PIDS]" : without_pids($14)
}
