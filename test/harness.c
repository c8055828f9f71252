/*
 * A live cluster in a test; harness.h describes the functions.
 *
 * Each cluster has one pipe. All its processes inherit the writing end, as stdout, as stderr and
 * for reports; a process that holds it belongs to the cluster, even as an orphan. So the record
 * is what was read from the pipe, end of file means that no process is left, and a
 * cluster is ended by killing the holders. A process beside the test does that: the guardian,
 * which wakes up when the test is gone.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "harness.h"

#include <criterion/criterion.h>

#include <arpa/inet.h>
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

#define TIME_LIMIT 10000
#define TURN 5                  /* ms: how often a wait looks at things that cause no event */
#define PIPE_SIZE (1024 * 1024) /* large, so that no log line is lost while the test computes */

struct name {
	char name[16];
	pid_t pid;
	bool reaped;
};

struct record {
	struct cluster *next; /* of the test's clusters */
	int pipe;             /* its reading end */
	ino_t inode;          /* of the pipe */
	bool ended;           /* no process writes any more */
	bool dumped;
	char **lines;
	size_t count, size;
	char *partial; /* the beginning of a line whose end has not come yet */
	size_t partial_length;
	struct name *names; /* in order of forking */
	size_t name_count;
	pid_t guardian;
};

/* ---- in the processes of the cluster --------------------------------------- */

static int reports = -1;

void
report(const struct messenger *messenger, const char *format, ...)
{
	char line[PIPE_BUF];
	int used = snprintf(line, sizeof line, "@%s:%d:%ld ",
	                    clutch_role_name(messenger_role(messenger)), messenger_slot(messenger),
	                    (long)getpid());
	va_list arguments;
	char *c;

	va_start(arguments, format);
	vsnprintf(line + used, sizeof line - (size_t)used - 1, format, arguments);
	va_end(arguments);
	for (c = line; *c != '\0'; c++)
		if (*c == '\n')
			*c = ' ';
	*c++ = '\n';
	while (write(reports, line, (size_t)(c - line)) == -1 && errno == EINTR)
		;
}

/* "ACTION DATA from X to Y", as it is in the record. */
static void
describe(const struct message *message, char *text, size_t size)
{
	int used = snprintf(text, size, "%s", message->action[0] != '\0' ? message->action : "-");

	if (message->data != NULL && message->data_length > 1024)
		used += snprintf(text + used, size - (size_t)used, " (%zu bytes)",
		                 message->data_length);
	else if (message->data != NULL)
		used += snprintf(text + used, size - (size_t)used, " %s",
		                 message->data_length > 0 ? message->data : "(empty)");
	used += snprintf(text + used, size - (size_t)used, " from %s to %s",
	                 clutch_role_name(message->from), clutch_role_name(message->to));
	if (message->receiver_pid != 0)
		used += snprintf(text + used, size - (size_t)used, " receiverPid %ld",
		                 (long)message->receiver_pid);
	if (message->handle != -1)
		snprintf(text + used, size - (size_t)used, " handle");
}

static int
on_any(struct messenger *messenger, const struct message *message, void *arg)
{
	char text[2048];

	(void)arg;
	describe(message, text, sizeof text);
	report(messenger, "saw %s", text);
	return 0;
}

int
observe(struct messenger *messenger)
{
	return messenger_on(messenger, NULL, on_any, NULL);
}

/* ---- orders -------------------------------------------------------------------- */

static int
order_exit(struct messenger *messenger, const char *line)
{
	(void)messenger;
	exit(atoi(order_rest(line)));
}

static int
order_ready(struct messenger *messenger, const char *line)
{
	return messenger_ready(messenger, atoi(order_rest(line)));
}

static int
order_uncaught(struct messenger *messenger, const char *line)
{
	(void)messenger;
	return atoi(order_rest(line));
}

static int
order_ignore(struct messenger *messenger, const char *line)
{
	(void)messenger, (void)line;
	return signal(SIGTERM, SIG_IGN) == SIG_ERR ? -1 : 0;
}

static int
order_graceful(struct messenger *messenger, const char *line)
{
	(void)line;
	messenger_graceful_exit(messenger);
	return 0;
}

/* The tables of this process. */
enum { TABLES = 4 };
static const struct order *orders_of[TABLES];

static const struct order *
find_order(const struct order *order, const char *line)
{
	size_t length = strcspn(line, " ");

	while (order->word != NULL &&
	       (strlen(order->word) != length || memcmp(order->word, line, length) != 0))
		order++;
	return order;
}

static int
on_order(struct messenger *messenger, const struct message *message, void *arg)
{
	static const struct order common[] = {
		{"exit", order_exit},         {"ready", order_ready},
		{"uncaught", order_uncaught}, {"ignore", order_ignore},
		{"graceful", order_graceful}, {NULL, NULL}};
	const struct order *order = find_order(common, message->data);
	int result = -1, i;

	(void)arg;
	for (i = 0; i < TABLES && orders_of[i] != NULL; i++)
		if (find_order(orders_of[i], message->data)->obey != NULL)
			order = find_order(orders_of[i], message->data);
	errno = ENOSYS;
	if (order->obey != NULL)
		result = order->obey(messenger, message->data);
	report(messenger, "did %s: %s", message->data, result >= 0 ? "yes" : strerror(errno));
	return result > 0 ? result : 0;
}

int
obey_orders(struct messenger *messenger, const struct order *orders)
{
	int i = 0;

	while (i < TABLES && orders_of[i] != NULL)
		i++;
	if (i == TABLES)
		abort();
	orders_of[i] = orders;
	return i == 0 ? messenger_on(messenger, "test-order", on_order, NULL) : 0;
}

const char *
order_rest(const char *line)
{
	line += strcspn(line, " ");
	return *line != '\0' ? line + 1 : line;
}

int
write_to_channel(const struct messenger *messenger, const void *bytes, size_t length)
{
	return write(messenger->channel.descriptor, bytes, length) == (ssize_t)length ? 0 : -1;
}

/* ---- /proc ------------------------------------------------------------------- */

void
limit_descriptors(int number)
{
	struct rlimit limit;

	cr_assert(getrlimit(RLIMIT_NOFILE, &limit) == 0);
	limit.rlim_cur = (rlim_t)number;
	cr_assert(setrlimit(RLIMIT_NOFILE, &limit) == 0, "%d descriptors: %s", number,
	          strerror(errno));
}

int
free_descriptor(void)
{
	int number = 0;

	while (fcntl(number, F_GETFD) != -1)
		number++;
	return number;
}

bool
process_is_alive(pid_t pid)
{
	char path[64], line[512], *state;
	FILE *file;

	snprintf(path, sizeof path, "/proc/%ld/stat", (long)pid);
	file = fopen(path, "r");
	if (file == NULL)
		return false;
	state = fgets(line, sizeof line, file) != NULL ? strrchr(line, ')') : NULL;
	fclose(file);
	return state != NULL && state[2] != 'Z' && state[2] != 'X';
}

long
process_memory(pid_t pid)
{
	char path[64], line[256];
	long kib = -1;
	FILE *file;

	snprintf(path, sizeof path, "/proc/%ld/status", (long)pid);
	file = fopen(path, "r");
	while (file != NULL && fgets(line, sizeof line, file) != NULL)
		if (sscanf(line, "VmRSS: %ld", &kib) == 1)
			break;
	if (file != NULL)
		fclose(file);
	return kib;
}

int
process_descriptors(pid_t pid)
{
	char path[64];
	struct dirent *entry;
	int count = 0;
	DIR *folder;

	snprintf(path, sizeof path, "/proc/%ld/fd", (long)pid);
	folder = opendir(path);
	if (folder == NULL)
		return -1;
	while ((entry = readdir(folder)) != NULL)
		count += entry->d_name[0] != '.';
	closedir(folder);
	return count;
}

int64_t
process_processor_time(pid_t pid)
{
	char path[64], line[1024], *end;
	unsigned long user = 0, system = 0;
	FILE *file;
	int found = 0;

	snprintf(path, sizeof path, "/proc/%ld/stat", (long)pid);
	file = fopen(path, "r");
	if (file == NULL)
		return -1;
	if (fgets(line, sizeof line, file) != NULL && (end = strrchr(line, ')')) != NULL)
		found = sscanf(end + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu",
		               &user, &system);
	fclose(file);
	return found == 2 ? (int64_t)(user + system) * 1000 / sysconf(_SC_CLK_TCK) : -1;
}

/* Does the process hold the writing end of the pipe? */
static bool
holds(pid_t pid, ino_t inode)
{
	char path[300], target[64], wanted[64];
	struct dirent *entry;
	struct stat link;
	bool found = false;
	ssize_t length;
	DIR *folder;

	snprintf(wanted, sizeof wanted, "pipe:[%llu]", (unsigned long long)inode);
	snprintf(path, sizeof path, "/proc/%ld/fd", (long)pid);
	folder = opendir(path);
	while (folder != NULL && !found && (entry = readdir(folder)) != NULL) {
		snprintf(path, sizeof path, "/proc/%ld/fd/%s", (long)pid, entry->d_name);
		length = readlink(path, target, sizeof target - 1);
		if (length <= 0)
			continue;
		target[length] = '\0';
		found = strcmp(target, wanted) == 0 && lstat(path, &link) == 0 &&
		        (link.st_mode & S_IWUSR) != 0;
	}
	if (folder != NULL)
		closedir(folder);
	return found;
}

static size_t
holders(ino_t inode, pid_t *pids, size_t size)
{
	struct dirent *entry;
	DIR *folder = opendir("/proc");
	size_t count = 0;
	pid_t pid;

	while (folder != NULL && (entry = readdir(folder)) != NULL) {
		pid = (pid_t)atol(entry->d_name);
		if (pid > 0 && pid != getpid() && holds(pid, inode)) {
			if (count < size)
				pids[count] = pid;
			count++;
		}
	}
	if (folder != NULL)
		closedir(folder);
	return count < size ? count : size;
}

/* ---- the guardian ------------------------------------------------------------ */

static int
remove_entry(const char *path, const struct stat *status, int type, struct FTW *where)
{
	(void)status, (void)type, (void)where;
	return remove(path);
}

static void
remove_folder(const char *path)
{
	nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

/* Kill the processes that hold the pipe, and the children that they fork meanwhile. */
static void
kill_holders(ino_t inode)
{
	pid_t pids[256];
	size_t i, count;

	while ((count = holders(inode, pids, 256)) > 0) {
		for (i = 0; i < count; i++)
			kill(pids[i], SIGKILL);
		poll(NULL, 0, 1); /* a death takes its time */
	}
}

static pid_t
fork_guardian(ino_t inode, const char *folder)
{
	pid_t test = getpid(), pid = fork();
	sigset_t set;
	int number;

	if (pid != 0)
		return pid;
	sigfillset(&set);
	sigprocmask(SIG_BLOCK, &set, NULL);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	for (number = 0; number < 1024; number++)
		close(number);
	prctl(PR_SET_PDEATHSIG, SIGUSR1);
	if (getppid() == test)
		sigwait(&set, &number);
	kill_holders(inode);
	remove_folder(folder);
	_exit(0);
}

/* ---- the record -------------------------------------------------------------- */

static void
add_name(struct record *record, const char *name, pid_t pid)
{
	struct name *added;

	record->names = realloc(record->names, (record->name_count + 1) * sizeof *record->names);
	cr_assert(record->names != NULL);
	added = &record->names[record->name_count++];
	snprintf(added->name, sizeof added->name, "%s", name);
	added->pid = pid;
	added->reaped = false;
}

const char *
behind_head(const char *line)
{
	int end = 0;

	sscanf(line, "%*4d-%*2d-%*2d %*2d:%*2d:%*2d.%*3d %*[A-Z] %*d %*[a-z]%n", &end);
	if (end == 0)
		return line;
	if (line[end] == ' ')
		end += 1 + (int)strspn(line + end + 1, "0123456789");
	return strncmp(line + end, ": ", 2) == 0 ? line + end + 2 : line;
}

/* "[master] app_worker#1:4711 start (app 0)": learn the name of process 4711. */
static void
learn_name(struct record *record, const char *line)
{
	char role[8], name[32];
	int id, end = 0;
	long pid;

	if (sscanf(behind_head(line), "[master] %7[a-z]_worker#%d:%ld start%n", role, &id, &pid,
	           &end) != 3 ||
	    end == 0)
		return;
	line = behind_head(line) + end;
	if (line[0] != '\0' && strncmp(line, " (app ", 6) != 0)
		return;
	snprintf(name, sizeof name, "%s#%d", role[1] == 'g' ? "AGENT" : "APP", id);
	add_name(record, name, (pid_t)pid);
}

static void
add_line(struct record *record, const char *text, size_t length)
{
	if (record->count == record->size) {
		record->size = record->size > 0 ? 2 * record->size : 64;
		record->lines = realloc(record->lines, record->size * sizeof *record->lines);
		cr_assert(record->lines != NULL);
	}
	record->lines[record->count] = strndup(text, length);
	cr_assert(record->lines[record->count] != NULL);
	learn_name(record, record->lines[record->count++]);
}

/* Read what there is in the pipe. */
static void
read_record(struct record *record)
{
	static char bytes[64 * 1024];
	char *text, *line, *end;
	ssize_t count;
	size_t length;

	while (!record->ended && (count = read(record->pipe, bytes, sizeof bytes)) != -1) {
		record->ended = count == 0;
		length = record->partial_length + (size_t)count;
		text = realloc(record->partial, length + 1);
		cr_assert(text != NULL);
		memcpy(text + record->partial_length, bytes, (size_t)count);
		text[length] = '\0';
		for (line = text; (end = memchr(line, '\n', length - (size_t)(line - text)));
		     line = end + 1)
			add_line(record, line, (size_t)(end - line));
		record->partial_length = length - (size_t)(line - text);
		memmove(text, line, record->partial_length);
		record->partial = text;
	}
}

static int
on_parent_hears(struct messenger *parent, const struct message *message, void *arg)
{
	struct record *record = arg;
	char text[2048], line[2200];
	int length;

	describe(message, text, sizeof text);
	length = snprintf(line, sizeof line, "@parent:-1:%ld saw %s", (long)messenger_pid(parent),
	                  text);
	add_line(record, line, (size_t)length);
	return 0;
}

/* ---- symbolic names ----------------------------------------------------------- */

static const char *
name_of(const struct record *record, pid_t pid)
{
	size_t i;

	for (i = record->name_count; i > 0; i--)
		if (record->names[i - 1].pid == pid)
			return record->names[i - 1].name;
	return NULL;
}

static bool
ends_with(const char *text, size_t length, const char *end)
{
	return length >= strlen(end) && memcmp(text + length - strlen(end), end, strlen(end)) == 0;
}

/* Does the text end where a line has a port? */
static bool
is_before_port(const char *text, size_t length)
{
	return ends_with(text, length, ".1:") || ends_with(text, length, "\"port\":") ||
	       ends_with(text, length, "port ");
}

/* The name of the number that begins at text[at] and ends before text[end], or
 * NULL if it is just a number. */
static const char *
name_of_number(const struct cluster *cluster, const char *text, size_t at, size_t end)
{
	long number = atol(text + at);

	if (number == cluster->port && number != 0 && is_before_port(text, at))
		return "PORT";
	if (at > 0 && (isalnum((unsigned char)text[at - 1]) || strchr("_.#", text[at - 1])))
		return NULL;
	if (isalnum((unsigned char)text[end]))
		return NULL;
	return name_of(cluster->record, (pid_t)number);
}

/* The line without its head, with symbolic names; it lives until the next call. */
static const char *
symbolic(const struct cluster *cluster, const char *text)
{
	static char out[2 * PIPE_BUF];
	size_t at = 0, end, used = 0;
	const char *name;

	text = behind_head(text);
	while (text[at] != '\0' && used < sizeof out - 32) {
		end = at;
		while (isdigit((unsigned char)text[end]) && end - at < 20)
			end++;
		name = end > at ? name_of_number(cluster, text, at, end) : NULL;
		if (end == at)
			end++;
		if (name != NULL)
			used += (size_t)sprintf(out + used, "%s", name);
		else
			used += (size_t)sprintf(out + used, "%.*s", (int)(end - at), text + at);
		at = end;
	}
	out[used] = '\0';
	return out;
}

static const struct name *
named(const struct record *record, const char *text, size_t length)
{
	size_t i;

	for (i = 0; i < record->name_count; i++)
		if (strlen(record->names[i].name) == length &&
		    memcmp(record->names[i].name, text, length) == 0)
			return &record->names[i];
	return NULL;
}

/* Replace the names in the text by pids. A line must have these pids: a number that stands in
 * the text itself is just a number, even if a process has this pid. */
static void
with_pids(const struct cluster *cluster, const char *text, char *out, size_t size)
{
	const struct name *name;
	size_t length, used = 0;

	for (; *text != '\0' && used + 32 < size; text += length) {
		length = strspn(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZ");
		if (text[length] == '#')
			length += 1 + strspn(text + length + 1, "0123456789");
		name = named(cluster->record, text, length);
		if ((used > 0 && out[used - 1] == '_') || text[length] == '_')
			name = NULL; /* MASTER in EGG_MASTER_CLOSE_TIMEOUT is no name */
		if (name != NULL)
			used += (size_t)sprintf(out + used, "%ld", (long)name->pid);
		else if (length == strlen("PORT") && memcmp(text, "PORT", length) == 0 &&
		         is_before_port(out, used))
			used += (size_t)sprintf(out + used, "%d", cluster->port);
		else
			used += (size_t)sprintf(out + used, "%.*s", (int)(length += length == 0),
			                        text);
	}
	out[used] = '\0';
}

/* Does the line have the text? A number at an end of the text must be whole in the line, too. */
static bool
has_text(const char *line, const char *text)
{
	size_t length = strlen(text);
	const char *at;

	at = line = behind_head(line);
	while ((at = strstr(at, text)) != NULL) {
		if (!(isdigit((unsigned char)text[0]) && at > line &&
		      isdigit((unsigned char)at[-1])) &&
		    !(isdigit((unsigned char)text[length - 1]) &&
		      isdigit((unsigned char)at[length])))
			return true;
		at++;
	}
	return false;
}

/* ---- waiting ------------------------------------------------------------------ */

int
time_scale(void)
{
	const char *scale = getenv("TEST_TIME_SCALE");

	return scale != NULL && atoi(scale) > 0 ? atoi(scale) : 1;
}

int
time_limit(void)
{
	return TIME_LIMIT * time_scale();
}

static void
note_exit(struct record *record, pid_t pid, int status)
{
	char line[128];
	int length;

	if (WIFEXITED(status))
		length = snprintf(line, sizeof line, "@exit:-1:%ld code: %d, signal: null",
		                  (long)pid, WEXITSTATUS(status));
	else
		length = snprintf(line, sizeof line, "@exit:-1:%ld code: null, signal: %s",
		                  (long)pid, strsignal(WTERMSIG(status)));
	add_line(record, line, (size_t)length);
}

/* The test reaps its master, and the orphans that a dead master leaves. */
static void
reap(struct cluster *cluster)
{
	struct record *record = cluster->record;
	int status;
	size_t i;

	for (i = 0; i < record->name_count; i++) {
		if (record->names[i].reaped || record->names[i].pid == getpid() ||
		    waitpid(record->names[i].pid, &status, WNOHANG) <= 0)
			continue;
		record->names[i].reaped = true;
		if (record->names[i].pid == cluster->master) {
			cluster->dead = true;
			cluster->status = status;
		}
		read_record(record); /* the record has its last lines before its exit */
		note_exit(record, record->names[i].pid, status);
	}
}

/* One turn: read new lines, hear messages, and reap dead processes. */
static void
turn(struct cluster *cluster, int timeout)
{
	struct pollfd set[16];
	size_t count = messenger_descriptors(cluster->parent, set, 15);
	int due = messenger_timeout(cluster->parent);

	count = count < 15 ? count : 15;
	if (!cluster->record->ended)
		set[count++] = (struct pollfd){cluster->record->pipe, POLLIN, 0};
	if (due >= 0 && due < timeout)
		timeout = due;
	poll(set, count, timeout);
	messenger_step(cluster->parent, 0);
	read_record(cluster->record);
	reap(cluster);
}

void
cluster_turn(struct cluster *cluster)
{
	turn(cluster, 0);
}

void
cluster_order(struct cluster *cluster, const char *who, const char *line)
{
	cr_assert_eq(
		messenger_send_to(cluster->parent, cluster_pid(cluster, who), "test-order", line),
		0);
	cluster_turn(cluster);
}

size_t
cluster_did(struct cluster *cluster, const char *who, const char *line)
{
	size_t mark = cluster_mark(cluster);

	cluster_order(cluster, who, line);
	return cluster_wait(cluster, mark, ":%s did %s: yes", who, line);
}

void
cluster_until(struct cluster *cluster, bool (*is_so)(struct cluster *, void *), void *arg,
              const char *what)
{
	int64_t deadline = clutch_now() + time_limit();

	turn(cluster, 0);
	while (!is_so(cluster, arg)) {
		if (clutch_now() > deadline) {
			cluster_dump(cluster);
			cr_assert(false, "waited %d ms in vain for %s", time_limit(), what);
		}
		turn(cluster, TURN);
	}
}

struct search {
	size_t from, found; /* found: behind the line */
	const char *text;
};

static bool
find_line(struct cluster *cluster, void *arg)
{
	struct search *search = arg;
	char text[2 * PIPE_BUF];
	size_t i;

	with_pids(cluster, search->text, text, sizeof text);
	for (i = search->from; i < cluster->record->count; i++)
		if (has_text(cluster->record->lines[i], text)) {
			search->found = i + 1;
			return true;
		}
	return false;
}

#define FORMAT(text, format)                                                                       \
	do {                                                                                       \
		va_list arguments;                                                                 \
		va_start(arguments, format);                                                       \
		vsnprintf(text, sizeof text, format, arguments);                                   \
		va_end(arguments);                                                                 \
	} while (0)

size_t
cluster_wait(struct cluster *cluster, size_t from, const char *format, ...)
{
	char text[PIPE_BUF], what[PIPE_BUF + 64];
	struct search search = {from, 0, text};

	FORMAT(text, format);
	snprintf(what, sizeof what, "a line from %zu on with \"%s\"", from, text);
	cluster_until(cluster, find_line, &search, what);
	return search.found;
}

size_t
cluster_count(struct cluster *cluster, size_t from, const char *format, ...)
{
	char text[PIPE_BUF], wanted[2 * PIPE_BUF];
	size_t i, count = 0;

	FORMAT(text, format);
	turn(cluster, 0);
	with_pids(cluster, text, wanted, sizeof wanted);
	for (i = from; i < cluster->record->count; i++)
		count += has_text(cluster->record->lines[i], wanted);
	return count;
}

const char *
cluster_next_line(struct cluster *cluster, size_t *from, const char *text)
{
	turn(cluster, 0);
	while (*from < cluster->record->count)
		if (strstr(cluster->record->lines[(*from)++], text) != NULL)
			return cluster->record->lines[*from - 1];
	return NULL;
}

const char *
cluster_line(struct cluster *cluster, const char *format, ...)
{
	char text[PIPE_BUF], wanted[2 * PIPE_BUF];
	size_t i;

	FORMAT(text, format);
	turn(cluster, 0);
	with_pids(cluster, text, wanted, sizeof wanted);
	for (i = cluster->record->count; i > 0; i--)
		if (has_text(cluster->record->lines[i - 1], wanted))
			return behind_head(cluster->record->lines[i - 1]);
	return NULL;
}

size_t
cluster_mark(struct cluster *cluster)
{
	turn(cluster, 0);
	return cluster->record->count;
}

void
cluster_dump(struct cluster *cluster)
{
	size_t i;

	cluster->record->dumped = true;
	fprintf(stderr, "---- the record:\n");
	for (i = 0; i < cluster->record->count; i++)
		fprintf(stderr, "%4zu %s\n", i, symbolic(cluster, cluster->record->lines[i]));
	fprintf(stderr, "----\n");
}

/* ---- the status ------------------------------------------------------------------- */

size_t
cluster_ask_status(struct cluster *cluster)
{
	size_t mark = cluster_mark(cluster);

	cluster_signal(cluster, "MASTER", SIGUSR1);
	cluster_wait(cluster, mark, "[master] status ],\"left_out\":");
	return mark;
}

/* The last line of the last status that has the text, without its head; or NULL. */
static const char *
status_line(const struct cluster *cluster, const char *text)
{
	static const char start[] = "[master] status ";
	size_t i = cluster->record->count;
	bool is_status = false, is_head = false;
	const char *line;

	while (i-- > 0 && !is_head) {
		line = behind_head(cluster->record->lines[i]);
		if (strncmp(line, start, strlen(start)) != 0)
			continue;
		line += strlen(start);
		is_status = is_status || line[0] == ']';
		is_head = is_status && strncmp(line, "{\"name\":", 8) == 0;
		if (is_status && strstr(line, text) != NULL)
			return line;
	}
	return NULL;
}

const char *
cluster_status(struct cluster *cluster, const char *who, const char *field)
{
	static char value[512];
	char wanted[64];
	const char *line;
	int slot;

	turn(cluster, 0);
	if (who == NULL)
		snprintf(wanted, sizeof wanted, "{\"name\":");
	else if (sscanf(who, "app %d", &slot) == 1)
		snprintf(wanted, sizeof wanted, "{\"role\":\"app\",\"slot\":%d,", slot);
	else if (strcmp(who, "agent") == 0 || strcmp(who, "PARENT") == 0)
		snprintf(wanted, sizeof wanted, "{\"role\":\"%s\"",
		         who[0] == 'a' ? "agent" : "parent");
	else
		snprintf(wanted, sizeof wanted, "\"pid\":%ld,", (long)cluster_pid(cluster, who));
	line = status_line(cluster, wanted);
	snprintf(wanted, sizeof wanted, "\"%s\":", field);
	if (line == NULL || (line = strstr(line, wanted)) == NULL)
		return NULL;
	line += strlen(wanted);
	if (line[0] == '"')
		snprintf(value, sizeof value, "%.*s", (int)strcspn(line + 1, "\""), line + 1);
	else if (line[0] == '[')
		snprintf(value, sizeof value, "%.*s]", (int)strcspn(line, "]"), line);
	else
		snprintf(value, sizeof value, "%.*s", (int)strcspn(line, ",}"), line);
	return value;
}

long long
cluster_figure(struct cluster *cluster, const char *who, const char *field)
{
	const char *value = cluster_status(cluster, who, field);

	if (value == NULL || (!isdigit((unsigned char)value[0]) && value[0] != '-')) {
		cluster_dump(cluster);
		cr_assert(false, "no figure \"%s\" of %s in the status", field,
		          who != NULL ? who : "the cluster");
	}
	return atoll(value);
}

/* ---- what a process saw -------------------------------------------------------- */

/* If the line reports a message that this pid saw: its "ACTION DATA", and the length; or 0. */
static size_t
seen(const char *line, pid_t pid, const char **message)
{
	long speaker;
	int at = 0;
	const char *end, *next;

	if (sscanf(line, "@%*[a-z]:%*d:%ld saw %n", &speaker, &at) != 1 || at == 0 ||
	    speaker != (long)pid || strncmp(line + at, "test-", 5) == 0)
		return 0;
	*message = line + at;
	end = strstr(*message, " from ");
	while (end != NULL && (next = strstr(end + 1, " from ")) != NULL)
		end = next;
	return end != NULL ? (size_t)(end - *message) : 0;
}

/* The messages that `who` saw, as they were written, or with symbolic names. */
static const char *
saw(struct cluster *cluster, size_t from, const char *who, bool is_symbolic)
{
	static char out[32 * 1024];
	pid_t pid = cluster_pid(cluster, who);
	char one[PIPE_BUF];
	const char *message;
	size_t i, length, used = 0;

	out[0] = '\0';
	for (i = from; i < cluster->record->count && used < sizeof out - 2 * PIPE_BUF; i++) {
		length = seen(cluster->record->lines[i], pid, &message);
		if (length == 0)
			continue;
		snprintf(one, sizeof one, "%.*s", (int)length, message);
		if (strncmp(one, "egg-ready {", 11) == 0)
			strcpy(one, "egg-ready <options>");
		used += (size_t)sprintf(out + used, "%s%s", used > 0 ? " -> " : "",
		                        is_symbolic ? symbolic(cluster, one) : one);
	}
	return out;
}

const char *
cluster_saw(struct cluster *cluster, size_t from, const char *who)
{
	return saw(cluster, from, who, true);
}

struct sequence {
	size_t from;
	const char *who, *expected;
};

static bool
has_seen(struct cluster *cluster, void *arg)
{
	const struct sequence *sequence = arg;
	const char *messages = saw(cluster, sequence->from, sequence->who, false);
	static char text[32 * 1024];
	const char *expected, *end;
	size_t length = strlen(messages);
	bool may_become = false;

	with_pids(cluster, sequence->expected, text, sizeof text);
	for (expected = text; expected != NULL; expected = end != NULL ? end + 4 : NULL) {
		end = strstr(expected, " || ");
		if (strncmp(messages, expected, length) != 0)
			continue;
		may_become = true;
		if (expected[length] == '\0' || expected + length == end)
			return true;
	}
	if (!may_become) {
		cluster_dump(cluster);
		cr_assert(false, "%s saw %s; expected %s", sequence->who,
		          cluster_saw(cluster, sequence->from, sequence->who), sequence->expected);
	}
	return false;
}

void
cluster_wait_saw_from(struct cluster *cluster, size_t from, const char *who, const char *expected)
{
	struct sequence sequence = {from, who, expected};
	char what[PIPE_BUF];

	snprintf(what, sizeof what, "%s to see %s", who, expected);
	cluster_until(cluster, has_seen, &sequence, what);
}

void
cluster_wait_saw(struct cluster *cluster, const char *who, const char *expected)
{
	cluster_wait_saw_from(cluster, 0, who, expected);
}

/* ---- processes ------------------------------------------------------------------ */

static bool
is_named(struct cluster *cluster, void *arg)
{
	size_t i;

	for (i = 0; i < cluster->record->name_count; i++)
		if (strcmp(cluster->record->names[i].name, arg) == 0)
			return true;
	return false;
}

pid_t
cluster_pid(struct cluster *cluster, const char *who)
{
	char name[32], what[64];
	size_t i;

	snprintf(name, sizeof name, "%s", who);
	snprintf(what, sizeof what, "%s to be forked", who);
	if (!is_named(cluster, name))
		cluster_until(cluster, is_named, name, what);
	for (i = 0; strcmp(cluster->record->names[i].name, who) != 0; i++)
		;
	return cluster->record->names[i].pid;
}

const char *
cluster_name(struct cluster *cluster, pid_t pid)
{
	const char *name = name_of(cluster->record, pid);

	return name != NULL ? name : "?";
}

void
cluster_signal(struct cluster *cluster, const char *who, int number)
{
	pid_t pid = cluster_pid(cluster, who);

	cr_assert(kill(pid, number) == 0, "kill(%s, %d): %s", who, number, strerror(errno));
}

static bool
is_dead(struct cluster *cluster, void *arg)
{
	const pid_t *pid = arg;

	(void)cluster;
	return !process_is_alive(*pid);
}

void
cluster_wait_death(struct cluster *cluster, const char *who)
{
	pid_t pid = cluster_pid(cluster, who);
	char what[64];

	snprintf(what, sizeof what, "the death of %s", who);
	cluster_until(cluster, is_dead, &pid, what);
}

/* The reason in "... died (code: 1, signal: null)" or "@exit:-1:4711 code: 1, signal: null". The
 * lines are searched without symbolic names, because an exit code may be equal to a pid. */
static const char *
end_of(struct cluster *cluster, pid_t pid)
{
	static char reason[128];
	char died[32], exited[32];
	const char *line, *at;
	size_t i;

	snprintf(died, sizeof died, ":%ld died (", (long)pid);
	snprintf(exited, sizeof exited, "@exit:-1:%ld ", (long)pid);
	for (i = 0; i < cluster->record->count; i++) {
		line = behind_head(cluster->record->lines[i]);
		at = strstr(line, died);
		if (at != NULL) /* " (app 0)" may follow */
			snprintf(reason, sizeof reason, "%.*s",
			         (int)strcspn(at + strlen(died), ")"), at + strlen(died));
		else if (strncmp(line, exited, strlen(exited)) == 0)
			snprintf(reason, sizeof reason, "%s", line + strlen(exited));
		else
			continue;
		return reason;
	}
	return NULL;
}

static bool
has_ended(struct cluster *cluster, void *arg)
{
	return end_of(cluster, *(const pid_t *)arg) != NULL;
}

const char *
cluster_wait_end(struct cluster *cluster, const char *who)
{
	pid_t pid = cluster_pid(cluster, who);
	char what[64];

	snprintf(what, sizeof what, "the end of %s", who);
	cluster_until(cluster, has_ended, &pid, what);
	return end_of(cluster, pid);
}

/* Leave out the guardian, which may not have closed its end of the pipe yet. */
static size_t
without(pid_t guardian, pid_t *pids, size_t count)
{
	size_t i;

	for (i = 0; i < count; i++)
		if (pids[i] == guardian)
			pids[i--] = pids[--count];
	return count;
}

size_t
cluster_processes(struct cluster *cluster, pid_t *pids, size_t size)
{
	return without(cluster->record->guardian, pids,
	               holders(cluster->record->inode, pids, size));
}

int
cluster_connect(const struct cluster *cluster)
{
	struct sockaddr_in address = {.sin_family = AF_INET,
	                              .sin_port = htons((uint16_t)cluster->port)};
	struct timeval limit = {.tv_sec = time_limit() / 1000};
	int descriptor = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	cr_assert(descriptor != -1);
	setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	setsockopt(descriptor, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
	cr_assert(connect(descriptor, (struct sockaddr *)&address, sizeof address) == 0,
	          "connect to port %d: %s", cluster->port, strerror(errno));
	return descriptor;
}

/* ---- start and end --------------------------------------------------------------- */

void
clear_environment(void)
{
	static const char *const ours[] = {"PORT=", "HOST=", "EGG_", "CFORK_", "CLUTCH_"};
	static bool is_clear;
	char name[64];
	size_t i, j;

	for (i = 0; !is_clear && environ[i] != NULL; i++)
		for (j = 0; j < sizeof ours / sizeof ours[0]; j++)
			if (strncmp(environ[i], ours[j], strlen(ours[j])) == 0) {
				snprintf(name, sizeof name, "%.*s", (int)strcspn(environ[i], "="),
				         environ[i]);
				unsetenv(name);
				i--; /* the next variable has moved up */
				break;
			}
	is_clear = true;
}

/* The pipe is stdout and stderr during the fork, so that the cluster inherits it. */
static void
start_into(struct cluster *cluster, const struct options *options, int pipe)
{
	int saved[2] = {fcntl(1, F_DUPFD, 10), fcntl(2, F_DUPFD, 10)};

	cr_assert(saved[0] != -1 && saved[1] != -1);
	fflush(NULL);
	dup2(pipe, 1);
	dup2(pipe, 2);
	cluster->parent = fork_cluster(options, &cluster->master);
	dup2(saved[0], 1);
	dup2(saved[1], 2);
	close(saved[0]);
	close(saved[1]);
	clutch_tracer = NULL; /* the test itself does not trace */
	cr_assert(cluster->parent != NULL, "fork_cluster: %s", strerror(errno));
}

static struct cluster *clusters;
static pid_t owner; /* the test. Its children inherit this, and the handlers of atexit(3) */
static char test_folder_path[] = "/tmp/clutch-test-XXXXXX";

/* The test is over. If a cluster is still alive, the test has failed. */
static void
at_exit(void)
{
	struct cluster *cluster;

	for (cluster = clusters; cluster != NULL && getpid() == owner;
	     cluster = cluster->record->next) {
		read_record(cluster->record);
		if (!cluster->record->dumped)
			cluster_dump(cluster);
		kill_holders(cluster->record->inode);
	}
	while (clusters != NULL && getpid() == owner && waitpid(-1, NULL, WNOHANG) > 0)
		;
	if (getpid() == owner)
		remove_folder(test_folder_path);
}

const char *
test_folder(void)
{
	if (owner == 0) {
		owner = getpid();
		cr_assert(mkdtemp(test_folder_path) != NULL && atexit(at_exit) == 0);
	}
	return test_folder_path;
}

int
test_free_port(void)
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	static unsigned number;
	int descriptor, result;

	if (number == 0) /* differs between tests that begin at the same time, or have equal pids */
		number = (unsigned)clutch_now() * 61 + (unsigned)getpid() * 7;
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	do {
		address.sin_port = htons((in_port_t)(10000 + number++ % 20000));
		descriptor = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
		cr_assert(descriptor != -1);
		result = bind(descriptor, (struct sockaddr *)&address, sizeof address);
		close(descriptor);
	} while (result == -1);
	return ntohs(address.sin_port);
}

static ino_t leash;
static pid_t leash_guardian;

int
test_leash(void)
{
	struct stat status;
	int ends[2];

	cr_assert(pipe(ends) == 0 && fstat(ends[0], &status) == 0);
	leash = status.st_ino;
	leash_guardian = fork_guardian(leash, test_folder());
	cr_assert(leash_guardian != -1);
	close(ends[0]);
	return ends[1];
}

size_t
test_leashed(pid_t *pids, size_t size)
{
	return without(leash_guardian, pids, holders(leash, pids, size));
}

struct cluster *
cluster_start(const struct options *given)
{
	struct cluster *cluster = calloc(1, sizeof *cluster);
	struct record *record = calloc(1, sizeof *record);
	struct options options = *given;
	struct stat status;
	int ends[2];

	cr_assert(cluster != NULL && record != NULL);
	clear_environment();
	prctl(PR_SET_CHILD_SUBREAPER, 1); /* so that the test can reap orphans */
	if (options.port == 0 && getenv("PORT") == NULL)
		options.port = -1;
	if (options.workers == 0 && getenv("EGG_WORKERS") == NULL)
		options.workers = 1;
	cluster->record = record;
	cr_assert(pipe(ends) == 0);
	fcntl(ends[1], F_SETPIPE_SZ, PIPE_SIZE);
	fcntl(ends[0], F_SETFL, O_NONBLOCK);
	fstat(ends[0], &status);
	record->pipe = ends[0];
	record->inode = status.st_ino;
	record->guardian = fork_guardian(record->inode, test_folder());
	cr_assert(record->guardian != -1);
	reports = ends[1];
	start_into(cluster, &options, ends[1]);
	close(ends[1]);
	setpgid(cluster->master, cluster->master);
	record->next = clusters;
	clusters = cluster;
	add_name(record, "MASTER", cluster->master);
	add_name(record, "PARENT", getpid());
	cr_assert(messenger_on(cluster->parent, NULL, on_parent_hears, record) == 0);
	return cluster;
}

void
cluster_ready(struct cluster *cluster)
{
	size_t found = cluster_wait(cluster, 0, "@parent:-1:PARENT saw egg-ready {");
	const char *port = strstr(cluster->record->lines[found - 1], "\"port\":");

	if (port != NULL)
		cluster->port = atoi(port + strlen("\"port\":"));
}

static void
cluster_free(struct cluster *cluster)
{
	struct record *record = cluster->record;
	struct cluster **link = &clusters;
	size_t i;

	while (*link != cluster)
		link = &(*link)->record->next;
	*link = record->next;
	kill(record->guardian, SIGKILL);
	waitpid(record->guardian, NULL, 0);
	messenger_close(cluster->parent);
	close(record->pipe);
	for (i = 0; i < record->count; i++)
		free(record->lines[i]);
	free(record->lines);
	free(record->partial);
	free(record->names);
	free(record);
	free(cluster);
}

static bool
master_is_dead(struct cluster *cluster, void *arg)
{
	(void)arg;
	return cluster->dead;
}

static bool
nobody_writes(struct cluster *cluster, void *arg)
{
	(void)arg;
	return cluster->record->ended;
}

void
cluster_ended(struct cluster *cluster, int code)
{
	pid_t left[8];
	size_t count;

	cluster_until(cluster, master_is_dead, NULL, "the end of the master");
	count = cluster_processes(cluster, left, 8);
	if (!WIFEXITED(cluster->status) || WEXITSTATUS(cluster->status) != code || count > 0) {
		turn(cluster, 0);
		cluster_dump(cluster);
		cr_assert(count == 0, "%zu processes outlive their master, the first is %s (%ld)",
		          count, cluster_name(cluster, left[0]), (long)left[0]);
		cr_assert(false, "the master ended with %s; expected exit %d",
		          cluster_wait_end(cluster, "MASTER"), code);
	}
	cluster_free(cluster);
}

void
cluster_killed(struct cluster *cluster, int number)
{
	cluster_until(cluster, master_is_dead, NULL, "the end of the master");
	cluster_until(cluster, nobody_writes, NULL, "everybody to leave");
	if (!WIFSIGNALED(cluster->status) || WTERMSIG(cluster->status) != number) {
		cluster_dump(cluster);
		cr_assert(false, "the master ended with %s; expected signal %d",
		          cluster_wait_end(cluster, "MASTER"), number);
	}
	cluster_free(cluster);
}

void
cluster_stop(struct cluster *cluster)
{
	turn(cluster, 0);
	cr_assert(!cluster->dead, "the master has ended before it was told to");
	cluster_signal(cluster, "MASTER", SIGTERM);
	cluster_ended(cluster, 0);
}
