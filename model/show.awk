# A counterexample, in short: what happens to each process, and which inlines the master goes
# through on the way. Arguments: the model, and the output of ./pan -r.
#
# Copyright (c) 2026 the clutch authors
# SPDX-License-Identifier: MIT
FNR == NR {
	if ($1 == "inline")
		name = $2
	else if ($1 == "active")
		name = $3
	sub(/\(.*/, "", name)
	where[FNR] = name
	next
}
$1 == "step" { print substr($0, 6) }
/^ *[0-9]+:.*proc/ {
	line = $0
	sub(/^.*pml:/, "", line)
	line += 0
	text = $0
	sub(/^[^[]*\[/, "", text)
	if (where[line] != last && text !~ /^else|^D_STEP|^[ijk] = /) {
		last = where[line]
		if (last !~ /_all$|_one$|^run_clock$|^watch_queue$/) # the loops, which end without a step
			print "\t" last
	}
}
/^pan:/ { print }
/^global vars/ { vars = 1 }
vars { print }
