# The marks of a model, compared with the functions that functions.awk has found.
#
#	/* C: FILE FUNCTION SUM */    above the inline that stands for the function
#	/* C: FILE enum NAME */       above the #defines with the enum's names and numbers
#
# With record=record the model is printed with the sums of today.
#
# Copyright (c) 2026 the clutch authors
# SPDX-License-Identifier: MIT
FNR == NR {
	if ($2 == "enum") {
		members = ""
		for (i = 4; i <= NF; i++)
			members = members $i " " i - 4 "\n"
		enums[$1, $3] = members
	} else {
		sums[$1, $2] = $3
	}
	next
}

function complain(text)
{
	if (record == "")
		print "model: " text
	failed = 1
}

# The function of each mark is compared when it is known which inline stands below the mark.
function compare(inline,   i)
{
	sub(/\(.*/, "", inline)
	for (i = 1; i <= marks; i++)
		complain(changed[i] ": look at " inline ", " FILENAME ":" FNR \
			", and then make model-record")
	marks = 0
}

function end_enum()
{
	if (enum != "" && defines != enums[enum])
		complain("enum " enum_name " is not the same in " FILENAME)
	enum = ""
}

enum != "" && $1 == "#define" { defines = defines $2 " " $3 "\n" }
enum != "" && $1 != "#define" { end_enum() }

$1 == "/*" && $2 == "C:" && $4 == "enum" {
	enum = $3 SUBSEP $5
	enum_name = $5
	defines = ""
	if (!(enum in enums))
		complain("there is no enum " $5 " in " $3)
}

$1 == "/*" && $2 == "C:" && $4 != "enum" {
	key = $3 SUBSEP $4
	if (!(key in sums))
		changed[++marks] = $4 " (" $3 ") is gone"
	else if ($5 != sums[key])
		changed[++marks] = $4 " (" $3 ") has changed"
	if (record != "" && key in sums) {
		$0 = "/* C: " $3 " " $4 " " sums[key] " */"
		marks = 0
	}
}

/^inline |^#define |^active / {
	if (marks > 0)
		compare($1 == "active" ? $3 : $2)
}

record != "" { print }

END { exit failed }
