# Draw mutants: small changes of the core's code, at most one in each line.
#
#	awk -v count=300 -v seed=1 -v room=FILE -f test/mutants.awk master.c agent.c ...
#
# Each printed line is a mutant: FILE, FUNCTION, NTH, BEFORE, AFTER, LINE, with tabs between
# them. The first five are the mutant's name: among the lines of the function that read
# BEFORE, the NTH becomes AFTER. A hash of name and seed decides which mutants are drawn, so
# that a change elsewhere in the code leaves most of them as they are. Each file has a share,
# by the number of its lines that can be changed.
#
# Copyright (c) 2026 the clutch authors
# SPDX-License-Identifier: MIT
BEGIN {
	FS = "\n"
	for (i = 1; i < 127; i++)
		ord[sprintf("%c", i)] = i
	other["<"] = "<="; other["<="] = "<"; other[">"] = ">="; other[">="] = ">"
	other["=="] = "!="; other["!="] = "=="; other["&&"] = "||"; other["||"] = "&&"
	other[" + "] = " - "; other[" - "] = " + "; other["+="] = "-="; other["-="] = "+="
	other["++"] = "--"; other["--"] = "++"; other["true"] = "false"; other["false"] = "true"
	other["break;"] = "continue;"; other["continue;"] = "break;"
	other["return -1;"] = "return 0;"; other["return 0;"] = "return -1;"
	type = "^(const|static|struct|enum|unsigned|int|size_t|ssize_t|bool|char|short|long|pid_t|" \
	       "mode_t|off_t|socklen_t|sigset_t|va_list|time_t|nfds_t|u?int[0-9]+_t|void) "
	told = "(assert|clutch_log|log_info|log_warn|log_error|clutch_trace|debug|write_line)\\("
}

function hash(text,   h, i)
{
	h = seed
	for (i = 1; i <= length(text); i++)
		h = (h * 65599 + ord[substr(text, i, 1)]) % 2147483647
	return (h * 48271 + seed) % 2147483647
}

# Replace each character of a comment, a string or a character constant by a blank; `open` says
# whether a comment goes on in the next line. In `bare` only the comments are replaced.
function code(line,   i, c, two, quote, text)
{
	bare = ""
	for (i = 1; i <= length(line); i++) {
		c = substr(line, i, 1)
		two = substr(line, i, 2)
		if (open ? two == "*/" : quote == "" && two == "/*") {
			open = !open
			text = text "  "
			bare = bare "  "
			i++
			continue
		} else if (open) {
			text = text " "
			bare = bare " "
			continue
		} else if (quote != "") {
			if (c == "\\") {
				text = text " "
				bare = bare c
				c = substr(line, ++i, 1)
			} else if (c == quote) {
				quote = ""
			}
			text = text " "
		} else if (c == "\"" || c == "\047") {
			quote = c
			text = text " "
		} else {
			text = text c
		}
		bare = bare c
	}
	return text
}

function depth(text)
{
	return gsub(/\(/, "(", text) - gsub(/\)/, ")", text)
}

function trim(text)
{
	sub(/^[ \t]+/, "", text)
	sub(/[ \t]+$/, "", text)
	return text
}

# Replace `length_` characters at `at` by a text, and drop the comment.
function changed(at, length_, text)
{
	return trim(substr(bare, 1, at - 1) text substr(bare, at + length_))
}

# Consider another way to change this line. The way with the least hash is kept.
function offer(after,   h)
{
	if (after == before)
		return
	h = hash(FILENAME " " name " " nth " " before " " after)
	if (best == "" || h < least) {
		least = h
		best = after
	}
}

# Consider each place where the pattern matches.
function each(pattern, kind,   at, rest, found, start)
{
	for (at = 1; match(rest = substr(line, at), pattern); at = start + RLENGTH) {
		start = at + RSTART - 1
		found = substr(line, start, RLENGTH)
		if (RLENGTH == 0)
			return
		change(kind, start, found, at)
		match(rest, pattern)
	}
}

function change(kind, at, found,   n, near)
{
	near = substr(line, at - 1, 1)
	if (kind == "swap") {
		if (found == ">" && near == "-")
			return
		offer(changed(at, length(found), other[found]))
	} else if (kind == "number") {
		n = found + 0
		if (found ~ /^0[0-9]/ || near ~ /[A-Za-z_0-9.]/ || substr(line, at + length(found), 1) ~ /[A-Za-z_0-9.]/)
			return
		if (n >= 100) {
			offer(changed(at, length(found), n * 10))
			offer(changed(at, length(found), int(n / 10)))
		} else {
			offer(changed(at, length(found), n + 1))
			if (n > 0)
				offer(changed(at, length(found), n - 1))
		}
	} else if (kind == "flag") {
		offer(changed(at, length(found), ""))
	} else if (kind == "not") {
		offer(changed(at, 1, ""))
	}
}

# Conditions that end in the same line: if (...) and while (...), and the branches of a ? b : c.
function conditions(   at, end, level, text, part)
{
	if (match(line, /(^|[^a-z_])(if|while) \(/)) {
		at = RSTART + RLENGTH - 1
		for (end = at; end <= length(line); end++) {
			level += depth(substr(line, end, 1))
			if (level == 0)
				break
		}
		if (level == 0)
			offer(changed(at, end - at + 1, "(!" substr(bare, at, end - at + 1) ")"))
	}
	if (match(line, /\? [^?:;,()]+ : [^?:;,()]+[;,)]/)) {
		at = RSTART
		end = RLENGTH - 1
		text = substr(bare, at + 2, end - 2)
		split(text, part, " : ")
		if (part[1] != "" && part[1] " : " part[2] == text)
			offer(changed(at, end, "? " part[2] " : " part[1]))
	}
}

# Leave out a call or an assignment. `while (0)` stands in its place, because an else may follow.
function removals(   text)
{
	text = trim(line)
	if (text ~ type || text ~ /^(if|while|for|switch|else|do|case|default|return|goto|va_)/ ||
	    text ~ /^[{}]/ || !begins)
		return text == "return;" ? offer("(void)0;") : 0
	if (text ~ /^\*?[a-z_][][A-Za-z_0-9.>*-]*\(/ ||
	    text ~ /^\(?\*?[a-z_][^=(]* ([-+|&^*\/]|<<|>>)?= / ||
	    text ~ /^[^ ]*(\+\+|--)[^ ]*;/)
		offer("while (0) " before)
}

function mutate(   text)
{
	best = ""
	before = trim(bare)
	nth = ++seen[name, before]
	text = trim(line)
	each("[<>=!]=|[<>]", "swap")
	each("&&|\\|\\|", "swap")
	each(" [-+] ", "swap")
	each("[-+]=|\\+\\+|--", "swap")
	each("(true|false)", "swap")
	each("(break|continue);", "swap")
	each(" \\| [A-Z_0-9]+", "flag")
	each("![a-z_(]", "not")
	if (text ~ /^return -?[01];$/) {
		each("return -1;", "swap")
		each("return 0;", "swap")
		if (text == "return 1;")
			offer("return 0;")
	} else if (text !~ /^case / && !(text ~ type && text ~ /\[[0-9]+\]/)) {
		each("[0-9]+", "number")
	}
	conditions()
	removals()
	keep()
}

function constant()
{
	best = ""
	before = trim(bare)
	nth = ++seen[name, before]
	each("[0-9]+", "number")
	keep()
}

function keep()
{
	if (best == "")
		return
	mutants++
	changes[FILENAME]++
	file_of[mutants] = FILENAME
	rank[mutants] = hash(FILENAME name nth before best "|")
	row[mutants] = FILENAME "\t" name "\t" nth "\t" before "\t" best "\t" FNR
}

FNR == 1 {
	open = level = inside = 0
	name = ""
	begins = 1
	files[++file_count] = FILENAME
}

{
	line = code($0)
	gsub(/\t/, " ", bare)
	gsub(/\t/, " ", line)
}
line ~ /^[ ]*$/ { next }
!inside && /^[a-z_0-9]+\(/ { name = substr($0, 1, index($0, "(") - 1) }
!inside && line ~ /^#define [A-Z_]+ [(0-9]/ && line !~ /VERSION|_POSIX|_XOPEN/ {
	name = "#define"
	if (!open)
		constant()
	next
}
/^\{/ { inside = 1; begins = 1; next }
/^\}/ { inside = 0; next }
inside && name !~ /trace/ {
	if (skipping || line ~ told) {
		skipping += depth(line)
		begins = line ~ /[;{}:)] *$/ && !skipping
		next
	}
	if (line !~ /^#/ && !open) # a comment that goes on would lose its beginning
		mutate()
	begins = line ~ /[;{}:] *$/ || (line ~ /^ *(if|while|for|else)/ && depth(line) == 0) ||
	         (begins_later && depth(line) < 0)
	begins_later = line ~ /^ *(if|while|for) / && depth(line) > 0 || begins_later && !begins
}

# Find the shares by the largest remainder; then print the mutants with the least hashes.
END {
	for (i = 1; i <= file_count; i++)
		all += changes[files[i]]
	for (i = 1; i <= file_count; i++) {
		exact = count * changes[files[i]] / all
		share[files[i]] = int(exact)
		rest[i] = exact - int(exact)
		given += int(exact)
	}
	for (; given < count; given++) {
		most = 1
		for (i = 2; i <= file_count; i++)
			if (rest[i] > rest[most])
				most = i
		rest[most] = -1
		share[files[most]]++
	}
	for (i = 1; i <= mutants; i++)
		print file_of[i] "\t" rank[i] "\t" row[i] | "sort -t '\t' -k 2,2n >" room
	close("sort -t '\t' -k 2,2n >" room)
	while ((getline text <room) > 0) {
		split(text, field, "\t")
		if (taken[field[1]]++ < share[field[1]]) {
			sub(/^[^\t]*\t[^\t]*\t/, "", text)
			print text
		}
	}
}
