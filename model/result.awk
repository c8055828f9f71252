# What Spin's checker has found, in a line.
#
# Copyright (c) 2026 the clutch authors
# SPDX-License-Identifier: MIT
/^pan:1:/ && error == "" {
	error = $0
	if (match(error, /[PB][0-9]+_[a-z_0-9]+/))
		error = substr(error, RSTART, RLENGTH)
	else
		sub(/^pan:1: /, "", error)
}
/^pan: out of memory|max search depth too small|Search not completed/ && error == "" { error = $0 }
/errors:/ { done = 1; depth = $6 }
/states, stored/ { states = $1 }
/total actual memory usage/ { memory = $1 }
/elapsed time/ { seconds = $4 }
END {
	if (!done && error == "")
		error = "the checker has not come to its end"
	sub(/,/, "", depth)
	if (error != "")
		printf "model: %s: %s (see: model/check show %s)\n", name, error, name
	else
		printf "%-9s %9d states, depth %d, %d MB, %.1f s\n", name, states, depth, memory, seconds
	exit error != ""
}
