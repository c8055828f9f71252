# The runs of a document. See docs/check/runs.
#
#	awk -v folder=FOLDER -f docs/check/block.awk FILE
#	awk -v folder=FOLDER -v write=1 -f docs/check/block.awk FILE
#
# Each run N becomes FOLDER/N.sh, a script that shows each command before it does it;
# FOLDER/N.shown, what the document shows; FOLDER/N.press, after how many lines of which
# command Ctrl-C is pressed; FOLDER/N.needs, the programs that it needs; and FOLDER/N.line,
# where it stands. A block that is a file becomes this file in FOLDER/tree. With write=1 the
# document is printed, with FOLDER/N.new in the place of each run.
#
# Copyright (c) 2026 the clutch authors
# SPDX-License-Identifier: MIT

function quoted(text) {
	gsub(/'/, "'\\''", text)
	return "'" text "'"
}

function begin(    name) {
	run++
	script = folder "/" run ".sh"
	shown = folder "/" run ".shown"
	press = folder "/" run ".press"
	command = 0
	if (write) {
		name = folder "/" run ".new"
		while ((getline text < name) > 0)
			print prefix text
		close(name)
		return
	}
	print "trap : INT" > script
	printf "" > shown
	printf "" > press
	print FNR > (folder "/" run ".line")
	name = $0
	sub(/^ *```console run */, "", name)
	print name > (folder "/" run ".needs")
}

function end() {
	close(script)
	close(shown)
	close(press)
	close(folder "/" run ".line")
	close(folder "/" run ".needs")
}

!fence && /^ *```console run( [a-z0-9 -]+)?$/ {
	match($0, /^ */)
	prefix = substr($0, 1, RLENGTH)
	if (write)
		print
	fence = running = 1
	begin()
	next
}
!fence && /^ *```[a-z]* file [a-z_.]+$/ && !write {
	match($0, /^ */)
	prefix = substr($0, 1, RLENGTH)
	fence = filing = 1
	file = folder "/tree/" $3
	printf "" > file
	next
}
/^ *```/ {
	if (running)
		end()
	if (filing)
		close(file)
	fence = !fence
	running = filing = 0
}
filing { print substr($0, length(prefix) + 1) > file }
running && write { next }
running {
	text = substr($0, length(prefix) + 1)
	print text > shown
	if (text ~ /^[$] /) {
		command++
		lines = 0
		print "printf '%s\\n' " quoted(text) > script
		print substr(text, 3) > script
	} else if (text == "^C")
		print command ":" lines > press
	else
		lines++
}
write { print }
