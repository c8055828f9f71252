# Does what a document quotes stand in the code?
#
#	awk -f docs/check/quotes.awk README.md docs/book/*.md
#	awk -v write=1 -f docs/check/quotes.awk FILE        the file, with its quotes renewed
#
# A quote is a fenced block that names its source, a file and something that it defines:
#
#	```c master.c fork_process
#
# Its lines stand there, one after the other; a line "..." leaves some out, and lines may be
# missing before the first and after the last. In the text, `master.c fork_process` is such a
# name, too. A quote of a whole definition is renewed with -v write=1; of any other one an
# author has to choose the lines.
#
# Copyright (c) 2026 the clutch authors
# SPDX-License-Identifier: MIT

# The lines of a definition go into body[]. It begins in the first column: a function of C
# or sh, a struct, enum or union, a variable, or a macro; if there is none, a function that
# is only declared. Returns how many lines it has.
function load(file, name) {
	return load_as(file, name, 0) > 0 ? count : load_as(file, name, 1)
}

function load_as(file, name, declared,    line, before, on, macro) {
	count = 0
	on = macro = 0
	while ((getline line < file) > 0) {
		if (!on && (declared ? declares(line, name) : begins(line, name))) {
			on = 1
			macro = line ~ /^#/
			if (index(line, name "(") == 1 && before ~ /^[a-z].*[a-z*]$/)
				body[++count] = before # the return type
		}
		if (on) {
			body[++count] = line
			if (macro ? line !~ /\\$/ : line ~ /^}/ || line ~ /;$/ && (declared || count == 1))
				break
		}
		before = line
	}
	close(file)
	return count
}

function begins(line, name) {
	return index(line, name "(") == 1 && line !~ /;$/ || \
		line ~ "^(static |typedef )?(const )?(struct|enum|union) " name " [{]" || \
		line ~ "^[a-z][a-z_0-9 ]*[ *]" name "(\\[[A-Z_0-9]*\\])* = " || \
		line ~ "^# *define " name "[ (]"
}

function declares(line, name) {
	return line ~ "^[a-z][A-Za-z_0-9 ]*[ *]" name "\\(" && line !~ /^return/ || \
		line ~ "^[a-z][A-Za-z_0-9 ]*[ *]" name "(\\[[A-Za-z_0-9]*\\])*;"
}

function complain(text, number) {
	print FILENAME ":" number ": " text > "/dev/stderr"
	wrong++
}

# Is the block a whole definition, or one that was whole before the code has changed?
function whole(    i, first) {
	for (i = 1; i <= lines; i++)
		if (text[i] ~ /^[ \t]*\.\.\.$/)
			return 0
	first = lines > 1 && index(text[2], name "(") == 1 ? 2 : 1
	return lines > 0 && begins(text[first], name) && (text[lines] ~ /^}/ || lines == 1)
}

function compare(    i, j, at, gap, found) {
	at = 0
	gap = 1
	for (i = 1; i <= lines; i++) {
		if (text[i] ~ /^[ \t]*\.\.\.$/) {
			gap = 1
			continue
		}
		found = 0
		for (j = at + 1; j <= count && !found; j++) {
			if (body[j] == text[i])
				found = at = j
			else if (!gap)
				break
		}
		if (!found) {
			complain(file " " name " has no such line here: " text[i], start + i)
			return
		}
		gap = 0
	}
}

function end_of_quote(    i) {
	if (load(file, name) == 0)
		complain(file " defines no " name, start)
	else if (write && whole()) {
		lines = 0
		for (i = 1; i <= count; i++)
			text[++lines] = body[i]
	} else
		compare()
	for (i = 1; write && i <= lines; i++)
		print text[i]
}

FNR == 1 { fence = quoting = 0 }

!fence && /^```[a-z]+ [A-Za-z0-9_\/.-]+ [A-Za-z_0-9]+$/ && $2 !~ /^(file|run)$/ {
	fence = quoting = 1
	file = $2
	name = $3
	start = FNR
	lines = 0
	if (write)
		print
	next
}
/^ *```/ {
	if (quoting)
		end_of_quote()
	fence = !fence
	quoting = 0
}
quoting { text[++lines] = $0; next }
write { print }
!fence {
	rest = $0
	while (match(rest, /`[A-Za-z0-9_\/.-]+\.[a-z]+ [a-z_0-9]+`/)) {
		split(substr(rest, RSTART + 1, RLENGTH - 2), part, " ")
		rest = substr(rest, RSTART + RLENGTH)
		if (load(part[1], part[2]) == 0)
			complain(part[1] " defines no " part[2], FNR)
	}
}
END { exit wrong > 0 }
