# See docs/check/references. The variable `input` says what the next file holds: the files of
# the tree, the words of its code, its tests, how many there are in each file, the targets of
# make, foreign names, the anchors of the files that the document links to; and then the
# document, which `doc` names.
#
# Copyright (c) 2026 the clutch authors
# SPDX-License-Identifier: MIT

input == "files" {
	file[$0] = 1
	n = split($0, part, "/")
	for (tail = part[n]; n > 1; tail = part[--n] "/" tail)
		ends_with[tail] = 1
	ends_with[$0] = 1
	next
}
input == "words" { word[$0] = 1; next }
input == "tests" { test[$0] = 1; next }
input == "cases" { cases[$1] = $2; next }
input == "targets" { target[$0] = 1; next }
input == "foreign" { sub(/[ \t]*#.*/, ""); foreign[$0] = 1; next }
input == "anchors" { anchor[$0] = 1; next }

function complain(text) {
	print doc ":" FNR ": " text
	wrong++
}

# A path without its . and .., seen from the top of the tree.
function flat(path,    part, n, i, out, m) {
	n = split(path, part, "/")
	m = 0
	for (i = 1; i <= n; i++) {
		if (part[i] == ".." && m > 0)
			m--
		else if (part[i] != "." && part[i] != "")
			out[++m] = part[i]
	}
	path = out[1]
	for (i = 2; i <= m; i++)
		path = path "/" out[i]
	return path
}

function here(    folder) {
	folder = doc
	if (!sub(/\/[^\/]*$/, "", folder))
		folder = "."
	return folder
}

function check_link(link,    path, hash) {
	if (link ~ /^[a-z]+:/)
		return
	hash = index(link, "#")
	path = hash ? substr(link, 1, hash - 1) : link
	if (path != "" && !(flat(here() "/" path) in file))
		complain("the link leads nowhere: " link)
	else if (hash && !(link in anchor))
		complain("no heading makes this anchor: " link)
}

# Of a program in build/ its source has to be there.
function check_built(path) {
	sub(/^build\//, "", path)
	if (path ~ /^(examples|draw|bench|labs|docs|test)\/.*[a-z_]$/ && !((path ".c") in file))
		complain("make builds no such program: build/" path)
}

function check_make(text,    part, n, i, number) {
	n = split(text, part, " ")
	for (i = 2; i <= n && part[i] !~ /[|&;#>'"]/; i++) {
		if (part[i] ~ /^T=[a-z_]+$/ && !(("test/test_" substr(part[i], 3) ".c") in file))
			complain("there is no such file of tests: " part[i])
		else if (part[i] ~ /^LAB=[0-9]+$/) {
			number = sprintf("labs/%02d-", substr(part[i], 5))
			if (!starts_a_file(number))
				complain("there is no such lab: " part[i])
		} else if (part[i] ~ /^[a-z][a-z0-9-]*$/ && !(part[i] in target))
			complain("there is no such target: make " part[i])
	}
}

function starts_a_file(text,    name) {
	for (name in file)
		if (index(name, text) == 1)
			return 1
	return 0
}

# A command, in a block or in the text.
function check_command(text,    part, n, i) {
	sub(/^[$] /, "", text)
	while (text ~ /^[A-Z_]+=[^ ]* /)
		sub(/^[^ ]* /, "", text)
	if (text ~ /^make( |$)/)
		check_make(text)
	n = split(text, part, /[ ()<>|&;]+/)
	for (i = 1; i <= n; i++) {
		if (part[i] ~ /^build\/[a-z_\/0-9-]*$/)
			check_built(part[i])
		else if (part[i] ~ /^(labs|draw|docs|test|bench|examples)\/[a-z0-9_\/.-]*[a-z0-9]$/ && \
		         !(part[i] in file))
			complain("there is no such file: " part[i])
	}
}

function check_name(text) {
	if (text in foreign || text ~ /NAME/ || text ~ /^[a-z_]+\.js:|^(lib|process)\/.*\.js/)
		return
	if (text ~ / /) {
		check_command(text)
		return
	}
	sub(/=.*/, "", text)
	if (text ~ /^build\//)
		check_built(text)
	else if (text ~ /^[a-z_]+\/[a-z0-9_]+$/ && !(text in ends_with)) {
		if (!(text in test) && !((text ".c") in ends_with))
			complain("there is no such file, and no such test: " text)
	} else if (text ~ /^[.A-Za-z0-9_][A-Za-z0-9_.\/-]*\/$/) {
		sub(/\/$/, "", text)
		if (!(text in ends_with))
			complain("there is no such folder: " text "/")
	} else if (text ~ /^[.A-Za-z0-9_][A-Za-z0-9_.\/-]*\.(c|h|md|sh|awk|svg|txt|patch|trace|mk|service|logrotate)$/ || \
	           text ~ /^[A-Za-z0-9_.-]+\/[A-Za-z0-9_.\/-]+$/) {
		if (!(text in ends_with) && !((text ".c") in ends_with) && !(flat(here() "/" text) in file))
			complain("there is no such file: " text)
	} else if (text ~ /^[A-Za-z][A-Za-z0-9]*(_[A-Za-z0-9]+)+(\(\))?$/ || text ~ /^[a-z0-9_]+\(\)$/) {
		sub(/\(\)$/, "", text)
		if (!(text in word))
			complain("no code has this name: " text)
	} else if (text ~ /^--[a-z][a-z-]*$/ && !(text in word))
		complain("no program has this option: " text)
}

# A row of a table: | `make test T=slow` | 15 of 16 cases | ...
function check_cases(row,    part, name, number) {
	split(row, part, / *[|] */)
	name = part[2]
	gsub(/^`make test T=|`$/, "", name)
	number = part[3]
	sub(/^[0-9]+ of /, "", number)
	sub(/ cases?$/, "", number)
	if (name in cases && number != cases[name])
		complain("test/test_" name ".c has " cases[name] " cases")
}

/^ *```/ {
	fence = !fence
	commands = /^ *```(console run( [a-z0-9 -]+)?|console|sh)?$/
	next
}
fence {
	if (commands && /^ *([$] |make|build\/|sh |labs\/|draw\/|docs\/)/) {
		text = $0
		sub(/^ */, "", text)
		sub(/   +.*| #.*/, "", text) # what stands beside a command explains it
		check_command(text)
	}
	next
}
/^[|] `make test T=[a-z_]+` [|] [0-9a-z ]+ cases? [|]/ { check_cases($0) }
{
	text = $0
	while (match(text, /`[^`]+`/)) {
		check_name(substr(text, RSTART + 1, RLENGTH - 2))
		text = substr(text, 1, RSTART - 1) "_" substr(text, RSTART + RLENGTH)
	}
	while (match(text, /\]\([^) ]+\)/)) {
		check_link(substr(text, RSTART + 2, RLENGTH - 3))
		text = substr(text, RSTART + RLENGTH)
	}
}
END { exit wrong > 0 }
