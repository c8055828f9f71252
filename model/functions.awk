# A checksum of the text of each C function, without comments and white space:
# FILE FUNCTION SUM LINE. And each enum's names: FILE enum NAME A B C ...
#
# A function begins with its name in the first column, and ends with a } there.
#
# Copyright (c) 2026 the clutch authors
# SPDX-License-Identifier: MIT
BEGIN {
	for (i = 1; i < 127; i++)
		ord[sprintf("%c", i)] = i
}

# The line without comments; `open` says whether one goes on.
function code(line,   at, text)
{
	while (line != "") {
		if (open) {
			at = index(line, "*/")
			if (at == 0)
				return text
			line = substr(line, at + 2)
			open = 0
		} else {
			at = index(line, "/*")
			if (at == 0)
				return text line
			text = text substr(line, 1, at - 1)
			line = substr(line, at + 2)
			open = 1
		}
	}
	return text
}

function sum(text,   h, i)
{
	for (i = 1; i <= length(text); i++)
		h = (h * 257 + ord[substr(text, i, 1)]) % 4294967291
	return sprintf("%.0f", h)
}

FNR == 1 { open = 0; name = ""; enum = "" }

{
	line = code($0)
	if (name == "" && match(line, /^[a-z_]+\(/)) {
		name = substr(line, 1, RLENGTH - 1)
		text = ""
	} else if (match(line, /^enum [a-z_]+ \{/)) {
		split(line, word, " ")
		enum = word[2]
		text = ""
	}
	bare = line
	gsub(/[ \t]/, "", bare)
	text = text bare
	if (name != "" && line ~ /^}/) {
		print FILENAME, name, sum(text)
		name = ""
	} else if (enum != "" && line ~ /^}/) {
		gsub(/^.*\{|\}.*$/, "", text)
		gsub(/=[0-9]+/, "", text)
		gsub(/,/, " ", text)
		print FILENAME, "enum", enum, text
		enum = ""
	}
}
