# The anchors of a document's headings, as GitHub makes them: name#anchor.
#
# Copyright (c) 2026 the clutch authors
# SPDX-License-Identifier: MIT

/^```/ { fence = !fence }
!fence && /^#+ / {
	text = $0
	sub(/^#+ +/, "", text)
	text = tolower(text)
	gsub(/[!-,.\/:-@[-^`{-~]/, "", text)
	gsub(/，|。|：|；|、|？|！|（|）|《|》|「|」|“|”/, "", text)
	gsub(/ /, "-", text)
	print name "#" text (seen[text]++ ? "-" seen[text] - 1 : "")
}
