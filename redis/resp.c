/*
 * RESP2: see resp.h.
 */
#include "resp.h"

#include <string.h>

/* ---- bytes to replies ------------------------------------------------------ */

/* The decimal number of a line, from `at` to `end`, and nothing else. */
static bool
read_integer(const char *at, const char *end, int64_t *integer)
{
	bool negative = at < end && *at == '-';
	int64_t value = 0; /* it is negative: there is one more of these */
	int digit;

	at += at < end && (*at == '-' || *at == '+');
	if (at == end)
		return false;
	for (; at < end; at++) {
		digit = *at - '0';
		if (digit < 0 || digit > 9 || value < (INT64_MIN + digit) / 10)
			return false;
		value = 10 * value - digit;
	}
	if (!negative && value == INT64_MIN)
		return false;
	*integer = negative ? value : -value;
	return true;
}

static enum resp
broken(const char **why, const char *reason)
{
	*why = reason;
	return RESP_BROKEN;
}

/* The end (its \r) of the line that begins at scan->at. */
static enum resp
find_line(struct resp_scan *scan, const char *bytes, size_t length, const char **end,
          const char **why)
{
	const char *begin = bytes + scan->at;
	size_t here = length - scan->at;
	const char *found = memchr(begin + scan->searched, '\n', here - scan->searched);

	if (here > 0 && memchr("+-:$*", *begin, 5) == NULL)
		return broken(why, "a reply that is not RESP2");
	if ((found != NULL ? (size_t)(found - begin) : here) > REDIS_LINE_MAX)
		return broken(why, "a line longer than REDIS_LINE_MAX");
	scan->searched = here;
	if (found == NULL)
		return RESP_TORN;
	*end = found - 1;
	if (**end != '\r' || memchr(begin, '\r', (size_t)(found - begin)) != *end)
		return broken(why, "a line that does not end with CR LF");
	return RESP_WHOLE;
}

static enum resp
scan_string(struct resp_scan *scan, const char *bytes, size_t length, size_t text, int64_t size,
            const char **why)
{
	size_t end;

	if (size < -1 || size > REDIS_REPLY_MAX)
		return broken(why, "a string longer than REDIS_REPLY_MAX, or of negative length");
	if (size == -1) {
		scan->at = text;
		return RESP_WHOLE;
	}
	end = text + (size_t)size;
	if (length < end + 2)
		return RESP_TORN;
	if (bytes[end] != '\r' || bytes[end + 1] != '\n')
		return broken(why, "a string that does not end with CR LF");
	scan->at = end + 2;
	return RESP_WHOLE;
}

static enum resp
scan_array(struct resp_scan *scan, int64_t count, const char **why)
{
	if (count < -1 || count > REDIS_ELEMENTS_MAX)
		return broken(why,
		              "an array longer than REDIS_ELEMENTS_MAX, or of negative length");
	if (count <= 0)
		return RESP_WHOLE;
	if (scan->depth == REDIS_DEPTH_MAX)
		return broken(why, "arrays nested deeper than REDIS_DEPTH_MAX");
	scan->left[scan->depth++] = count;
	return RESP_WHOLE;
}

/* One element; of an array, its head. */
static enum resp
scan_element(struct resp_scan *scan, const char *bytes, size_t length, const char **why)
{
	const char *line = bytes + scan->at, *end;
	enum resp result = find_line(scan, bytes, length, &end, why);
	int64_t number = 0;
	size_t next;

	if (result != RESP_WHOLE)
		return result;
	next = (size_t)(end - bytes) + 2;
	if (*line != '+' && *line != '-' && !read_integer(line + 1, end, &number))
		return broken(why, "a number that is none");
	if (*line == '$')
		result = scan_string(scan, bytes, length, next, number, why);
	else
		scan->at = next;
	if (*line == '*')
		result = scan_array(scan, number, why);
	scan->searched = 0;
	if (result == RESP_WHOLE && ++scan->elements > REDIS_ELEMENTS_MAX)
		return broken(why, "more elements than REDIS_ELEMENTS_MAX");
	return result;
}

enum resp
resp_scan(struct resp_scan *scan, const char *bytes, size_t length, const char **why)
{
	enum resp result;
	int depth;

	do {
		depth = scan->depth;
		result = scan_element(scan, bytes, length, why);
		if (result == RESP_BROKEN)
			return result;
		if (scan->at > REDIS_REPLY_MAX || (result == RESP_TORN && length > REDIS_REPLY_MAX))
			return broken(why, "a reply longer than REDIS_REPLY_MAX");
		if (result == RESP_TORN)
			return result;
		if (scan->depth > depth)
			continue; /* what was an array's head has elements now */
		while (scan->depth > 0 && --scan->left[scan->depth - 1] == 0)
			scan->depth--;
	} while (scan->depth > 0);
	return RESP_WHOLE;
}

/* Build the element at *at into `reply`, and what is in it from *free_elements on; both
 * move. It was scanned: nothing can be wrong, and the depth is bounded. */
static void
build(char **at, struct redis_reply *reply, struct redis_reply **free_elements)
{
	char type = **at, *line = *at + 1, *end = line;
	struct redis_reply *elements;
	size_t i;

	while (*end != '\r')
		end++;
	*at = end + 2;
	*reply = (struct redis_reply){.type = type == '-' ? REDIS_ERROR : REDIS_STATUS,
	                              .text = line,
	                              .length = (size_t)(end - line)};
	if (type == '+' || type == '-') {
		*end = '\0';
		return;
	}
	*reply = (struct redis_reply){.type = REDIS_INTEGER, .text = ""};
	read_integer(line, end, &reply->integer);
	if (type == ':')
		return;
	if (reply->integer < 0) {
		reply->type = REDIS_NIL;
	} else if (type == '$') {
		reply->type = REDIS_STRING;
		reply->text = *at;
		reply->length = (size_t)reply->integer;
		*at += reply->length + 2;
		(*at)[-2] = '\0';
	} else {
		elements = *free_elements;
		reply->type = REDIS_ARRAY;
		reply->element = elements;
		reply->count = (size_t)reply->integer;
		*free_elements += reply->count;
		for (i = 0; i < reply->count; i++)
			build(at, &elements[i], free_elements);
	}
	reply->integer = 0;
}

void
resp_build(char *bytes, struct redis_reply *elements)
{
	struct redis_reply *rest = elements + 1;

	build(&bytes, elements, &rest);
}

/* ---- words to bytes -------------------------------------------------------- */

/* "*3" or "$5", and the end of the line: its length; the bytes too, unless they are NULL. */
static size_t
put_head(char *bytes, char kind, size_t number)
{
	char line[24], *first = line + sizeof line;
	size_t length;

	*--first = '\n';
	*--first = '\r';
	do
		*--first = (char)('0' + number % 10);
	while ((number /= 10) > 0);
	*--first = kind;
	length = (size_t)(line + sizeof line - first);
	if (bytes != NULL)
		memcpy(bytes, first, length);
	return length;
}

size_t
resp_command(char *bytes, size_t argc, const char *const argv[], const size_t lengths[])
{
	size_t i, length, size = put_head(bytes, '*', argc);

	for (i = 0; i < argc; i++) {
		length = lengths != NULL ? lengths[i] : strlen(argv[i]);
		size += put_head(bytes != NULL ? bytes + size : NULL, '$', length);
		if (bytes != NULL) {
			memcpy(bytes + size, argv[i], length);
			memcpy(bytes + size + length, "\r\n", 2);
		}
		size += length + 2;
	}
	return size;
}
