# A counterexample, in short: what comes from outside, and which inlines the master goes
# through. Arguments: the model, and the output of ./pan -r.
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
/^ *[0-9]+:.*proc/ {
	line = $0
	sub(/^.*pml:/, "", line)
	line += 0
	text = $0
	sub(/^[^[]*\[/, "", text)
	if ($0 ~ /\(world\)/) {
		print "world: " text
		last = ""
	} else if (where[line] != last && text !~ /^else|^D_STEP|^[ijk] = /) {
		last = where[line]
		print "\t" last
	}
}
/^pan:/ { print }
/^global vars/ { vars = 1 }
vars { print }
