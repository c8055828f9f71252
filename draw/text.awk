# A sequence diagram as text: a row for each event, a column for each process.
#
#	width=80    how many columns of characters

function put(line, at, text) {
	if (at < 1)
		return line
	return substr(line, 1, at - 1) text substr(line, at + length(text))
}

function x(c) { return 1 + int((c - 1) * pitch) }

function lifelines(    c, line) {
	line = sprintf("%" room "s", "")
	for (c = 1; c <= columns; c++)
		if (alive[c])
			line = put(line, x(c), waiting[c] ? "#" : "|")
	return line
}

# Beside the lifeline of column c, on the side where there is room for it.
function beside(line, c, text,    right) {
	right = room - x(c) - 1
	if (length(text) <= right || right >= x(c) - 2)
		return put(line, x(c) + 2, clip(text, right))
	text = clip(text, x(c) - 3)
	return put(line, x(c) - 1 - length(text), text)
}

function arrow(line, from, to, text, stroke,    low, high, i) {
	low = from < to ? from : to
	high = from < to ? to : from
	for (i = low + 1; i < high; i++)
		line = put(line, i, stroke)
	line = from < to ? put(line, high - 1, ">") : put(line, low + 1, "<")
	text = fit(text, high - low - 3)
	if (length(text) <= high - low - 5 && text != "")
		text = " " text " "
	return put(line, low + 2 + int((high - low - 3 - length(text)) / 2), text)
}

function draw_row(r,    one, two, line) {
	one = column[a[r]]
	two = b[r] in column ? column[b[r]] : 0
	if (kind[r] == "birth")
		alive[two] = 1
	if (kind[r] == "goes")
		waiting[one] = 0
	line = lifelines()
	if (kind[r] == "birth")
		line = put(arrow(line, x(one), x(two), "fork", "="), x(two), "o")
	else if (kind[r] == "death")
		line = beside(put(line, x(one), "X"), one, what[r])
	else if (kind[r] == "message")
		line = arrow(line, x(one), x(two), what[r], ignored[r] && !delivered[r] ? "." : "-")
	else if (kind[r] == "lost")
		line = beside(line, one, "sends " what[r] ", in vain")
	else if (kind[r] == "signal")
		line = arrow(line, x(one), x(two), what[r], "~")
	else
		line = beside(line, one, what[r])
	if (kind[r] == "death")
		alive[one] = waiting[one] = 0
	if (kind[r] == "wait")
		waiting[one] = 1
	sub(/ +$/, "", line)
	printf "%8.2f  %s\n", when[r], line
}

END {
	lay_out()
	width = width > 0 ? width : 80
	room = width - 10
	pitch = columns > 1 ? (room - 9) / (columns - 1) : room
	head = pids = sprintf("%" room "s", "")
	for (c = 1; c <= columns; c++) {
		head = put(head, x(c), title(id_of[c]))
		split(id_of[c], part, ":")
		pids = put(pids, x(c), part[3])
		alive[c] = !(c in birth)
		waiting[c] = id_of[c] in waits_before
	}
	sub(/ +$/, "", head)
	sub(/ +$/, "", pids)
	printf "%8s  %s\n%8s  %s\n", "ms", head, "pid", pids
	for (r = 1; r <= rows; r++)
		if (shown[r])
			draw_row(r)
}
