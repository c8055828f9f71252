# A sequence diagram as SVG: lifelines with births and deaths, messages as arrows from where
# they leave to where they arrive, waits shaded, the time at the side. It reads well in light
# and dark.
#
#	name="..."    the title

function escape(text) {
	gsub(/&/, "\\&amp;", text)
	gsub(/</, "\\&lt;", text)
	gsub(/>/, "\\&gt;", text)
	return text
}

function x(c) { return 122 + (c - 1) * 138 }
function y(r) { return 66 + place[r] * 21 }

function label(at, down, anchor, class, text) {
	printf "<text x=\"%d\" y=\"%.1f\" text-anchor=\"%s\" class=\"%s\">%s</text>\n", at, down, anchor, class, escape(text)
}

function line(x1, y1, x2, y2, class) {
	printf "<line x1=\"%d\" y1=\"%.1f\" x2=\"%d\" y2=\"%.1f\" class=\"%s\"/>\n", x1, y1, x2, y2, class
}

function marker(class) {
	printf "<marker id=\"%s\" viewBox=\"-8 -4 8 8\" markerWidth=\"8\" markerHeight=\"8\" markerUnits=\"userSpaceOnUse\" orient=\"auto\"><path d=\"M-8,-4 L0,0 L-8,4 z\" class=\"%sh\"/></marker>\n", class, class
}

# The text stands at the arrow's end: no two arrows end at one place.
function arrow(x1, y1, x2, y2, class, text,    long, part) {
	line(x1, y1, x2, y2, class "\" marker-end=\"url(#" class ")")
	long = x1 < x2 ? x2 - x1 : x1 - x2
	text = fit(text, int((long - 16) / 6.7))
	part = 1 - (12 + length(text) * 3.35) / long
	label(x1 + (x2 - x1) * part, y1 + (y2 - y1) * part - 4, "middle", class "t", text)
}

function beside(c, down, class, text) {
	if (c < columns || columns == 1)
		label(x(c) + 9, down + 4, "start", class, clip(text, 40))
	else
		label(x(c) + 9, down + 4, "start", class, clip(text, 26))
}

function style() {
	print "<style>"
	print "svg{--ink:#1f2328;--paper:#fff;--dim:#6b7280;--life:#57708f;--box:#e8eef6;--born:#1a7f4b;--dead:#c22a2a;--wait:#f3c969;--sig:#8a4fbf}"
	print "@media (prefers-color-scheme:dark){svg{--ink:#e6edf3;--paper:#0d1117;--dim:#8b949e;--life:#7d97b8;--box:#1c2836;--born:#4cc38a;--dead:#ff7b72;--wait:#7a5c12;--sig:#c297ff}}"
	print "text{font:11px ui-monospace,Menlo,Consolas,monospace;fill:var(--ink);stroke:var(--paper);stroke-width:3px;paint-order:stroke;stroke-linejoin:round}"
	print ".paper{fill:var(--paper)} .title{font-size:13px;font-weight:bold} .time,.pid{fill:var(--dim);font-size:10px} .who{stroke:none;font-weight:bold} .pid{stroke:none}"
	print ".life{stroke:var(--life);stroke-width:2} .box{fill:var(--box);stroke:var(--life)} .zone{fill:var(--wait);opacity:.75}"
	print ".m{stroke:var(--ink);stroke-width:1.2} .mh{fill:var(--ink)} .i{stroke:var(--dim);stroke-dasharray:4 3} .ih{fill:var(--dim)} .it{fill:var(--dim)}"
	print ".s{stroke:var(--sig);stroke-width:1.4;stroke-dasharray:7 3} .sh{fill:var(--sig)} .st{fill:var(--sig)} .f{stroke:var(--born);stroke-dasharray:2 3;stroke-width:1.4} .fh{fill:var(--born)} .ft{fill:var(--born)}"
	print ".n{fill:var(--dim)} .b,.d{fill:var(--dead)} .x{stroke:var(--dead);stroke-width:3} .dot{fill:var(--life)} .r{fill:var(--born)} .w{fill:var(--ink)}"
	print "</style>"
}

# A long gap is drawn as a gap: rows are in order, not to scale.
function draw_row(r,    one, two, x1, x2, down, start) {
	one = column[a[r]]
	two = b[r] in column ? column[b[r]] : 0
	down = y(r)
	label(72, down + 4, "end", "time", sprintf("%.2f", when[r]))
	if (kind[r] == "birth") {
		arrow(x(one), down - 9, x(two) + (one < two ? -48 : 48), down - 9, "f", "fork")
	} else if (kind[r] == "death") {
		printf "<path d=\"M%d,%.1f l12,12 m0,-12 l-12,12\" class=\"x\"/>\n", x(one) - 6, down - 6
		beside(one, down, "d", what[r])
	} else if (kind[r] == "message") {
		x1 = x(one) + (one < two ? 3 : -3)
		x2 = x(two) + (one < two ? -3 : 3)
		start = left[r] ? y_of_leave(left[r], r) : down
		arrow(x1, start, x2, down, ignored[r] && !delivered[r] ? "i" : "m", what[r])
		if (delivered[r] > 1)
			beside(two, down, "n", delivered[r] " listeners")
	} else if (kind[r] == "signal") {
		arrow(x(one), down, x(two) + (one < two ? -3 : 3), down, "s", what[r])
	} else {
		printf "<circle cx=\"%d\" cy=\"%.1f\" r=\"%d\" class=\"%s\"/>\n", x(one), down, kind[r] == "ready" ? 5 : 3, kind[r] == "ready" ? "r" : "dot"
		beside(one, down, kind[r] == "bad" || kind[r] == "lost" ? "b" : kind[r] == "wait" || kind[r] == "goes" ? "w" : "n", (kind[r] == "lost" ? "in vain: " : "") what[r])
	}
}

# A message that was long on its way leaves three rows above, so that its arrow can be told
# from others.
function y_of_leave(from, r) {
	return place[r] - place[from] > 3 ? y(r) - 42 : y(from)
}

function zone(c, from, to) {
	printf "<rect x=\"%d\" y=\"%.1f\" width=\"14\" height=\"%.1f\" class=\"zone\"/>\n", x(c) - 7, from, to - from
}

function zones(    r, c, since) {
	for (c = 1; c <= columns; c++)
		if (id_of[c] in waits_before)
			since[c] = 66
	for (r = 1; r <= rows; r++) {
		c = column[a[r]]
		if (kind[r] == "wait" && !(c in since))
			since[c] = y(r)
		if ((kind[r] == "goes" || kind[r] == "death") && (c in since)) {
			zone(c, since[c], y(r))
			delete since[c]
		}
	}
	for (c = 1; c <= columns; c++)
		if (c in since)
			zone(c, since[c], bottom)
}

END {
	bottom = 66 + lay_out() * 21 + 26
	wide = x(columns) + 175
	print "<!-- Copyright (c) 2026 the clutch authors\n     SPDX-License-Identifier: MIT -->"
	printf "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" height=\"%d\" role=\"img\">\n", wide, bottom + 10, wide, bottom + 10
	printf "<title>%s</title>\n", escape(name != "" ? name : "A run of clutch")
	style()
	marker("m")
	marker("i")
	marker("s")
	marker("f")
	printf "<rect width=\"%d\" height=\"%d\" class=\"paper\"/>\n", wide, bottom + 10
	label(14, 20, "start", "title", name)
	label(72, 58, "end", "time", "ms")
	for (c = 1; c <= columns; c++) {
		top = c in birth ? y(birth[c]) : 66
		line(x(c), top, x(c), c in death ? y(death[c]) : bottom, "life")
	}
	zones()
	for (c = 1; c <= columns; c++) {
		top = c in birth ? y(birth[c]) : 66
		split(id_of[c], part, ":")
		printf "<rect x=\"%d\" y=\"%.1f\" width=\"96\" height=\"20\" rx=\"4\" class=\"box\"/>\n", x(c) - 48, top - 20
		printf "<text x=\"%d\" y=\"%.1f\" text-anchor=\"middle\" class=\"who\">%s<tspan class=\"pid\" dx=\"6\">%s</tspan></text>\n", x(c), top - 6, title(id_of[c]), part[3]
	}
	for (r = 1; r <= rows; r++)
		if (shown[r])
			draw_row(r)
	print "</svg>"
}
