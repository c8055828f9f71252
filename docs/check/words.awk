# Does the glossary have the words that a chapter tells its readers to look up?
#
#	awk -f docs/check/words.awk docs/book/glossary.md docs/book/*.md
#
# In a chapter they stand under "## Words to look up", with a dot between two of them, and
# commas between words of one translation. In the glossary they are the first column.
#
# Copyright (c) 2026 the clutch authors
# SPDX-License-Identifier: MIT

NR == FNR {
	if (split($0, column, "|") > 3) {
		count = split(tolower(column[2]), word, ",")
		for (i = 1; i <= count; i++) {
			gsub(/^ +| +$|\([^)]*\)/, "", word[i])
			known[word[i]] = 1
		}
	}
	next
}
FNR == 1 { looking = 0 }
/^## / { looking = $0 == "## Words to look up"; text = ""; next }
/^<!--/ { looking = 0 }
looking {
	text = text " " $0
	gsub(/·/, ",", text)
	while (match(text, /\([^)]*\)/)) { # as far as the next translation
		count = split(tolower(substr(text, 1, RSTART - 1)), word, ",")
		text = substr(text, RSTART + RLENGTH)
		for (i = 1; i <= count; i++) {
			gsub(/^ +| +$/, "", word[i])
			if (word[i] != "" && !(word[i] in known)) {
				print FILENAME ":" FNR ": the glossary does not have the word: " word[i]
				wrong++
			}
		}
	}
}
END { exit wrong > 0 }
