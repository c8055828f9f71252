# A timeline as SVG, to scale: the life of each process, the queue of bytes for it (above its
# life) and from it (below), as thickness, its waits, and when messages reach it.
#
#	name="..."    the title

function escape(text) {
	gsub(/&/, "\\&amp;", text)
	gsub(/</, "\\&lt;", text)
	gsub(/>/, "\\&gt;", text)
	return text
}

function x(time) { return 112 + (time - begin) / (end - begin) * 760 }
function y(c) { return 78 + (c - 1) * 56 }

# A round number of milliseconds between two marks, so that there are ten at most.
function step(span,    one) {
	one = 0.001
	while (one * 10 < span)
		one *= 10
	return span / one > 5 ? one : span / one > 2 ? one / 2 : one / 5
}

function style() {
	print "<style>"
	print "svg{--ink:#1f2328;--paper:#fff;--dim:#6b7280;--grid:#e3e7ec;--life:#57708f;--in:#3f83d6;--out:#3c9a6e;--dead:#c22a2a;--wait:#f3c969}"
	print "@media (prefers-color-scheme:dark){svg{--ink:#e6edf3;--paper:#0d1117;--dim:#8b949e;--grid:#252c35;--life:#7d97b8;--in:#5aa2f5;--out:#4cc38a;--dead:#ff7b72;--wait:#7a5c12}}"
	print "text{font:11px ui-monospace,Menlo,Consolas,monospace;fill:var(--ink)} .title{font-size:13px;font-weight:bold} .time{fill:var(--dim);font-size:10px}"
	print ".paper{fill:var(--paper)} .grid{stroke:var(--grid)} .life{stroke:var(--life);stroke-width:3} .tick{stroke:var(--ink);opacity:.55}"
	print ".in{fill:var(--in);opacity:.8} .out{fill:var(--out);opacity:.8} .zone{fill:var(--wait)} .x{stroke:var(--dead);stroke-width:2.5} .dead{fill:var(--dead)}"
	print "</style>"
}

# The queue of one process in one direction, as a stair.
function queue(c, out, class,    i, level, path, base, sign) {
	base = y(c) + (out ? -5 : 5)
	sign = out ? -1 : 1
	level = 0
	path = ""
	for (i = 1; i <= samples; i++)
		if (sample_of[i] == id_of[c] && sample_out[i] == out && sample[i] != level) {
			if (path == "")
				path = sprintf("M%.1f,%.1f", x(sample_at[i]), base)
			path = path sprintf("H%.1fV%.1f", x(sample_at[i]), base + sign * sample[i] / largest * 17)
			level = sample[i]
		}
	if (path != "")
		printf "<path d=\"%sH%.1fV%.1fz\" class=\"%s\"/>\n", path, x(level > 0 ? end : when_zero(c, out)), base, class
}

function when_zero(c, out,    i) {
	for (i = samples; i > 1; i--)
		if (sample_of[i] == id_of[c] && sample_out[i] == out)
			return sample_at[i]
	return end
}

function lane(c,    id, from, to, i, part) {
	id = id_of[c]
	from = id in first_time ? first_time[id] : begin
	to = id in death_time ? death_time[id] : id in final_time ? final_time[id] : end
	from = from < begin ? begin : from
	to = to > end ? end : to
	split(id, part, ":")
	printf "<text x=\"14\" y=\"%d\">%s</text><text x=\"14\" y=\"%d\" class=\"time\">%s</text>\n", y(c) + 2, title(id), y(c) + 14, part[3]
	if (to < begin || from > end)
		return
	for (i = 1; i <= wait_count; i++)
		if (wait_of[i] == id && wait_to[i] >= begin && wait_from[i] <= end)
			printf "<rect x=\"%.1f\" y=\"%d\" width=\"%.1f\" height=\"10\" class=\"zone\"/>\n", x(wait_from[i] < begin ? begin : wait_from[i]), y(c) - 5, x(wait_to[i] > end ? end : wait_to[i]) - x(wait_from[i] < begin ? begin : wait_from[i])
	printf "<line x1=\"%.1f\" y1=\"%d\" x2=\"%.1f\" y2=\"%d\" class=\"life\"/>\n", x(from), y(c), x(to), y(c)
	queue(c, 1, "in")
	queue(c, 0, "out")
	for (i = 1; i <= rows; i++)
		if (kind[i] == "message" && b[i] == id)
			printf "<line x1=\"%.1f\" y1=\"%d\" x2=\"%.1f\" y2=\"%d\" class=\"tick\"/>\n", x(when[i]), y(c) - 4, x(when[i]), y(c) + 4
	if (id in death_time && death_time[id] <= end)
		printf "<path d=\"M%.1f,%d l8,8 m0,-8 l-8,8\" class=\"x\"/>\n", x(to) - 4, y(c) - 4
	for (i = 1; i <= rows; i++)
		if (kind[i] == "death" && a[i] == id)
			printf "<text x=\"%.1f\" y=\"%d\" class=\"dead\">%s</text>\n", x(to) + 8, y(c) + 4, escape(clip(what[i], 18))
}

END {
	lay_out()
	for (i in waits_since) { # it waits still
		wait_of[++wait_count] = i
		wait_from[wait_count] = waits_since[i]
		wait_to[wait_count] = i in death_time ? death_time[i] : last_time
	}
	begin = from != "" ? from + 0 : 0
	end = to != "" && to < last_time ? to + 0 : last_time
	end = end > begin ? end : begin + 0.001
	count = 0
	for (i = 1; i <= samples; i++)
		if (sample_at[i] >= begin && sample_at[i] <= end) {
			count++
			sample_at[count] = sample_at[i]
			sample_of[count] = sample_of[i]
			sample_out[count] = sample_out[i]
			sample[count] = sample[i]
			largest = sample[i] > largest ? sample[i] : largest
		}
	samples = count
	largest = largest > 0 ? largest : 1
	high = y(columns) + 62
	print "<!-- Copyright (c) 2026 the clutch authors\n     SPDX-License-Identifier: MIT -->"
	printf "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 1010 %d\" width=\"1010\" height=\"%d\" role=\"img\">\n", high, high
	printf "<title>%s</title>\n", escape(name != "" ? name : "A run of clutch, to scale")
	style()
	printf "<rect width=\"1010\" height=\"%d\" class=\"paper\"/><text x=\"14\" y=\"20\" class=\"title\">%s</text>\n", high, escape(name)
	by = step(end - begin)
	for (at = int(begin / by) * by; at <= end + by / 1000; at += by)
		if (at >= begin)
			printf "<line x1=\"%.1f\" y1=\"46\" x2=\"%.1f\" y2=\"%d\" class=\"grid\"/><text x=\"%.1f\" y=\"40\" text-anchor=\"middle\" class=\"time\">%g</text>\n", x(at), x(at), high - 32, x(at), at
	print "<text x=\"14\" y=\"40\" class=\"time\">ms</text>"
	for (c = 1; c <= columns; c++)
		lane(c)
	printf "<text x=\"14\" y=\"%d\" class=\"time\">above a life: what waits for the process; below: what waits to leave it; the thickest is %d bytes. Shaded: it waits, and is not read</text>\n", high - 10, largest
	print "</svg>"
}
