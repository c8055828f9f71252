/*
 * System calls that fail on order; faults.h describes the functions.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "faults.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct site sites[SITES_MAX];
int site_count;
struct faults *faults;
int faults_life;

/* ---- the sites ----------------------------------------------------------- */

static const char *const core[] = {"sendmessage.c", "messenger.c", "agent.c", "worker.c",
                                   "master.c"};

#define CALL_NAME(name) #name,
static const char *const call_names[] = {CALLS(CALL_NAME)};

const char *
call_name(enum call call)
{
	return call_names[call];
}

int __wrap_fork(void);

/* "  401b2c:  call   4023f0 <__wrap_fork>": which call is it? */
static int
parse_call(const char *line)
{
	const char *name = strstr(line, "<__wrap_");
	size_t length;
	int call;

	if (name == NULL || line[0] != ' ' || strchr(line, ':') == NULL)
		return -1;
	name += strlen("<__wrap_");
	length = strcspn(name, ">+");
	for (call = 0; call < CALL_COUNT; call++)
		if (strlen(call_names[call]) == length &&
		    strncmp(call_names[call], name, length) == 0 && name[length] == '>')
			return call;
	return -1;
}

/* Each call is a site; its address is that of the next instruction, where the call returns to. */
static bool
list_calls(const char *program, uintptr_t *fork_address)
{
	char command[4200], line[512];
	FILE *listing;
	int call = -1;

	snprintf(command, sizeof command, "objdump -d --no-show-raw-insn '%s'", program);
	listing = popen(command, "r");
	while (listing != NULL && fgets(line, sizeof line, listing) != NULL) {
		if (strstr(line, " <__wrap_fork>:") != NULL)
			*fork_address = strtoul(line, NULL, 16);
		if (line[0] != ' ')
			continue;
		if (call != -1 && site_count < SITES_MAX) {
			sites[site_count].call = (enum call)call;
			sites[site_count++].address = strtoul(line, NULL, 16);
		}
		call = parse_call(line);
	}
	return listing != NULL && pclose(listing) == 0;
}

static bool
is_core(const char *file)
{
	size_t i;

	for (i = 0; i < sizeof core / sizeof core[0]; i++)
		if (strcmp(file, core[i]) == 0)
			return true;
	return false;
}

/* Find the function, file and line of each site, and drop the sites outside the core. */
static bool
name_sites(const char *program)
{
	static char command[SITES_MAX * 20 + 4200];
	char line[4200], *colon, *slash;
	int i, kept = 0, used = snprintf(command, sizeof command, "addr2line -f -e '%s'", program);
	FILE *names;

	for (i = 0; i < site_count; i++) /* - 1: an address inside the call, not behind it */
		used += snprintf(command + used, sizeof command - (size_t)used, " %lx",
		                 (unsigned long)sites[i].address - 1);
	names = popen(command, "r");
	for (i = 0; names != NULL && i < site_count; i++) {
		if (fgets(line, sizeof line, names) == NULL)
			break;
		line[strcspn(line, "\n")] = '\0';
		snprintf(sites[kept].function, sizeof sites[kept].function, "%.47s", line);
		if (fgets(line, sizeof line, names) == NULL)
			break;
		colon = strrchr(line, ':');
		sites[kept].line = colon != NULL ? atoi(colon + 1) : 0;
		if (colon != NULL)
			*colon = '\0';
		slash = strrchr(line, '/');
		snprintf(sites[kept].file, sizeof sites[kept].file, "%.31s",
		         slash != NULL ? slash + 1 : line);
		sites[kept].address = sites[i].address;
		sites[kept].call = sites[i].call;
		kept += is_core(sites[kept].file);
	}
	site_count = kept;
	return names != NULL && pclose(names) == 0;
}

static uintptr_t base; /* where the program stands in memory */

const char *
faults_find_sites(void)
{
	char program[4096];
	ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
	uintptr_t fork_address = 0;

	if (length <= 0)
		return "there is no /proc/self/exe";
	program[length] = '\0';
	site_count = 0;
	if (!list_calls(program, &fork_address) || !name_sites(program))
		return "objdump and addr2line (of binutils) are needed";
	if (fork_address == 0 || site_count == 0)
		return "the program must be linked with --wrap and compiled with -g";
	if (site_count >= ANY_SITE)
		return "SITES_MAX is too small";
	sites[ANY_SITE] = (struct site){.call = CALL_malloc, .function = "any", .file = "any call"};
	base = (uintptr_t)__wrap_fork - fork_address;
	return NULL;
}

/* May the core call this without a wrapper? Its own functions, and functions that cannot fail.
 * (Text that is too long to print is cut; sysconf and getenv may have no answer.) */
static bool
is_safe(const char *name)
{
	static const char *const safe[] = {
		"getpgid",     "_exit",       "alarm",      "clock_gettime", "fflush",
		"free",        "htonl",       "ntohl",      "rand_r",        "getenv",
		"geteuid",     "getpgrp",     "getpid",     "getppid",       "htons",
		"inet_pton",   "connect",     "inet_ntop",  "strcpy",        "strpbrk",
		"isatty",      "localtime_r", "strcasecmp", "strftime",      "strtok",
		"memcmp",      "memcpy",      "memmove",    "memset",        "ntohs",
		"sched_yield", "sigaddset",   "sigdelset",  "sigemptyset",   "sigfillset",
		"sigprocmask", "snprintf",    "sprintf",    "stderr",        "stdout",
		"strchr",      "strcmp",      "strerror",   "strlen",        "strspn",
		"strtol",      "sysconf",     "vsnprintf"};
	size_t i;
	int call;

	for (i = 0; i < sizeof safe / sizeof safe[0]; i++)
		if (strcmp(safe[i], name) == 0)
			return true;
	for (call = 0; call < CALL_COUNT; call++)
		if (strcmp(call_names[call], name) == 0)
			return true;
	return strncmp(name, "__", 2) == 0; /* a function of the compiler, or of a sanitizer */
}

const char *
faults_find_missing(const char *objects)
{
	static char missing[400];
	char command[4200], name[256];
	size_t used = 0;
	FILE *names;

	snprintf(command, sizeof command,
	         "nm -u -P %s/*.o | awk 'NF > 1 && $2 == \"U\" { print $1 }' | sort -u "
	         ">%s/undefined;"
	         "nm -P %s/*.o | awk '$2 == \"T\" || $2 == \"B\" || $2 == \"D\" { print $1 }' | "
	         "sort -u | comm -23 %s/undefined -",
	         objects, objects, objects, objects);
	names = popen(command, "r");
	while (names != NULL && fscanf(names, "%255s", name) == 1)
		if (!is_safe(name) && used < sizeof missing)
			used += (size_t)snprintf(missing + used, sizeof missing - used, " %s",
			                         name);
	return names == NULL || pclose(names) != 0 ? "nm is needed" : missing;
}

/* ---- what can happen ----------------------------------------------------- */

static const int kinds[CALL_COUNT][12] = {
	[CALL_fork] = {EAGAIN, ENOMEM},
	[CALL_socketpair] = {EMFILE, ENFILE, ENOMEM, ENOBUFS},
	[CALL_poll] = {EINTR, EAGAIN, ENOMEM, FAULT_EARLY},
	[CALL_read] = {EINTR, EAGAIN, FAULT_ONE_BYTE},
	[CALL_write] = {EINTR, FAULT_ONE_BYTE, EAGAIN, EPIPE, ENOSPC, EIO, ENOBUFS},
	[CALL_send] = {EINTR, FAULT_ONE_BYTE, FAULT_HALF, EAGAIN, ENOBUFS, ENOMEM, EPIPE,
                       ECONNRESET},
	[CALL_sendmsg] = {EINTR, FAULT_ONE_BYTE, FAULT_HALF, EAGAIN, ENOBUFS, ENOMEM, ETOOMANYREFS,
                          EPIPE, ECONNRESET},
	[CALL_recvmsg] = {EINTR, FAULT_ONE_BYTE, FAULT_HALF, EAGAIN, ENOBUFS, ENOMEM, ECONNRESET,
                          FAULT_END, FAULT_NO_HANDLE},
	[CALL_malloc] = {ENOMEM},
	[CALL_calloc] = {ENOMEM},
	[CALL_realloc] = {ENOMEM},
	[CALL_strdup] = {ENOMEM},
	[CALL_accept] = {EINTR, EAGAIN, ECONNABORTED, EMFILE, ENFILE, ENOBUFS, ENOMEM, EPROTO},
	[CALL_fcntl] = {EBADF},
	[CALL_sigaction] = {EINVAL},
	[CALL_kill] = {ESRCH, EPERM},
	[CALL_waitpid] = {EINTR, ECHILD},
	[CALL_waitid] = {EINTR, ECHILD},
	[CALL_setpgid] = {EPERM, EACCES, ESRCH},
	[CALL_open] = {EINTR, EACCES, EMFILE, ENFILE, ENOENT, ENOSPC, EROFS, ENOMEM},
	[CALL_close] = {EINTR, EIO},
	[CALL_mkdir] = {EACCES, ENOSPC, EROFS, EMLINK},
	[CALL_lstat] = {EACCES, EIO, EOVERFLOW, ENOENT},
	[CALL_pread] = {EIO},
	[CALL_fstat] = {EIO, EOVERFLOW},
	[CALL_ftruncate] = {EINTR, EIO},
	[CALL_dprintf] = {EIO, ENOSPC},
	[CALL_unlink] = {EACCES, EROFS, ENOENT},
	[CALL_rename] = {EACCES, ENOSPC, EROFS},
	[CALL_socket] = {EMFILE, ENFILE, ENOBUFS, ENOMEM, EACCES, EAFNOSUPPORT},
	[CALL_setsockopt] = {ENOMEM, ENOBUFS, EINVAL},
	[CALL_bind] = {EADDRINUSE, EACCES, EADDRNOTAVAIL, ENOBUFS},
	[CALL_listen] = {EADDRINUSE, ENOBUFS},
	[CALL_getsockname] = {ENOBUFS},
	[CALL_shutdown] = {ENOTCONN, ENOBUFS},
	[CALL_setenv] = {ENOMEM},
	[CALL_atexit] = {ENOMEM},
};

const int *
faults_of(const struct site *site, int command)
{
	static const int duplicate[] = {EMFILE, 0};
	static const int lock[] = {EAGAIN, EACCES, EINTR, ENOLCK, EDEADLK, 0};

	if (site->call == CALL_fcntl && command == F_DUPFD_CLOEXEC)
		return duplicate;
	if (site->call == CALL_fcntl && command == F_DUPFD)
		return duplicate;
	if (site->call == CALL_fcntl && command == F_SETLK)
		return lock;
	return kinds[site->call];
}

bool
is_allocation(enum call call)
{
	return call == CALL_malloc || call == CALL_calloc || call == CALL_realloc ||
	       call == CALL_strdup;
}

bool
fault_is_invisible(const struct site *site, int how)
{
	if (how == EINTR || how == FAULT_ONE_BYTE || how == FAULT_HALF || how == FAULT_EARLY)
		return true;
	if (site->call == CALL_send || site->call == CALL_sendmsg || site->call == CALL_recvmsg)
		return how == EAGAIN || how == ENOBUFS || how == ENOMEM || how == ETOOMANYREFS;
	if (site->call == CALL_poll || site->call == CALL_accept)
		return true; /* the core calls again */
	if (site->call == CALL_close)
		return true; /* the descriptor is closed all the same */
	return how == EAGAIN && site->call == CALL_read;
}

const char *
fault_name(int how)
{
	static const struct {
		int how;
		const char *name;
	} names[] = {
		{EINTR, "EINTR"},
		{EAGAIN, "EAGAIN"},
		{ENOMEM, "ENOMEM"},
		{EMFILE, "EMFILE"},
		{ENFILE, "ENFILE"},
		{ENOBUFS, "ENOBUFS"},
		{EPIPE, "EPIPE"},
		{ECONNRESET, "ECONNRESET"},
		{ECONNABORTED, "ECONNABORTED"},
		{ETOOMANYREFS, "ETOOMANYREFS"},
		{EBADF, "EBADF"},
		{EINVAL, "EINVAL"},
		{ESRCH, "ESRCH"},
		{EPERM, "EPERM"},
		{ECHILD, "ECHILD"},
		{EIO, "EIO"},
		{EACCES, "EACCES"},
		{FAULT_ONE_BYTE, "one byte"},
		{FAULT_HALF, "half"},
		{FAULT_EARLY, "returns early"},
		{FAULT_END, "end of file"},
		{FAULT_NO_HANDLE, "no descriptor for the handle"},
	};
	size_t i;

	for (i = 0; i < sizeof names / sizeof names[0]; i++)
		if (names[i].how == how)
			return names[i].name;
	return strerror(how);
}

/* ---- now? ---------------------------------------------------------------- */

static enum place place = PLACE_PARENT;

int __real_clock_gettime(clockid_t clock, struct timespec *now);

int64_t
faults_clock(void)
{
	struct timespec now;

	__real_clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int
faults_speed(void)
{
	static int speed; /* the same in all processes that this one forks */
	double load = 0;

	if (speed == 0) {
		getloadavg(&load, 1);
		speed = __sanitizer_set_death_callback != NULL ||
		                        load > 5.0 * (double)sysconf(_SC_NPROCESSORS_ONLN)
		                ? 4
		                : 10;
	}
	return speed;
}

static int
find_site(const void *address)
{
	uintptr_t wanted = (uintptr_t)address - base;
	int low = 0, high = site_count - 1, middle;

	while (low <= high) { /* objdump lists them in order */
		middle = (low + high) / 2;
		if (sites[middle].address == wanted)
			return middle;
		if (sites[middle].address < wanted)
			low = middle + 1;
		else
			high = middle - 1;
	}
	return -1;
}

/* The call matches the plan. Is it the first such call, or does the fault still last? */
static bool
fires(int i)
{
	const struct fault *plan = &faults->plan[i];
	int64_t now = faults_clock() * faults_speed();

	if (__atomic_exchange_n(&faults->fired[i], 1, __ATOMIC_SEQ_CST) == 0) {
		faults->fired_at[i] = now;
		faults->fired_act[i] = faults->act;
		faults->fired_births[i] = faults->births;
		return true;
	}
	return plan->lasts > 0 && now - faults->fired_at[i] < plan->lasts;
}

static bool
is_meant(const struct fault *plan, int site, int command)
{
	const int *how = faults_of(&sites[site], command);

	if (plan->site != ANY_SITE)
		return plan->site == site;
	if (sites[site].call == CALL_poll) /* poll of a few descriptors needs no memory */
		return false;
	while (*how != 0 && *how != plan->how)
		how++;
	return *how != 0;
}

/* How the call that returns to this address is to fail; 0: it does not fail. */
static int
fault_at(const void *address, int command)
{
	int i, site;

	if (faults == NULL || (site = find_site(address)) == -1)
		return 0;
	__atomic_fetch_add(&faults->hits[faults->act][site][place], 1, __ATOMIC_RELAXED);
	if (command >= 0)
		faults->command[site] = command;
	for (i = 0; i < PLANS; i++)
		if (faults->plan[i].how != 0 && is_meant(&faults->plan[i], site, command) &&
		    faults->plan[i].place == (int)place && faults->act >= faults->plan[i].act &&
		    fires(i))
			return faults->plan[i].how;
	return 0;
}

static bool
is_called_by_core(const void *address)
{
	return faults != NULL && find_site(address) != -1;
}

/* ---- the wrappers -------------------------------------------------------- */

/* Most calls fail in one way only: they return an error value. */
#define WRAP(type, failure, name, parameters, arguments)                                           \
	type __real_##name parameters;                                                             \
	type __wrap_##name parameters;                                                             \
	type __wrap_##name parameters                                                              \
	{                                                                                          \
		int how = fault_at(__builtin_return_address(0), -1);                               \
                                                                                                   \
		if (how == 0)                                                                      \
			return __real_##name arguments;                                            \
		errno = how;                                                                       \
		return failure;                                                                    \
	}

WRAP(int, -1, socketpair, (int domain, int type, int protocol, int *pair),
     (domain, type, protocol, pair))
WRAP(void *, NULL, malloc, (size_t size), (size))
WRAP(void *, NULL, calloc, (size_t count, size_t size), (count, size))
WRAP(void *, NULL, realloc, (void *memory, size_t size), (memory, size))
WRAP(int, -1, accept, (int descriptor, struct sockaddr *address, socklen_t *length),
     (descriptor, address, length))
WRAP(char *, NULL, strdup, (const char *text), (text))
WRAP(int, -1, rename, (const char *path, const char *new_path), (path, new_path))
WRAP(int, -1, sigaction, (int number, const struct sigaction *action, struct sigaction *old),
     (number, action, old))
WRAP(int, -1, kill, (pid_t pid, int number), (pid, number))
WRAP(pid_t, -1, waitpid, (pid_t pid, int *status, int options), (pid, status, options))
WRAP(int, -1, setpgid, (pid_t pid, pid_t group), (pid, group))
WRAP(int, -1, mkdir, (const char *path, mode_t mode), (path, mode))
WRAP(int, -1, lstat, (const char *path, struct stat *status), (path, status))
WRAP(ssize_t, -1, pread, (int descriptor, void *buffer, size_t size, off_t at),
     (descriptor, buffer, size, at))
WRAP(int, -1, fstat, (int descriptor, struct stat *status), (descriptor, status))
WRAP(int, -1, ftruncate, (int descriptor, off_t length), (descriptor, length))
WRAP(int, -1, unlink, (const char *path), (path))
WRAP(int, -1, socket, (int domain, int type, int protocol), (domain, type, protocol))
WRAP(int, -1, setsockopt,
     (int descriptor, int level, int option, const void *value, socklen_t length),
     (descriptor, level, option, value, length))
WRAP(int, -1, bind, (int descriptor, const struct sockaddr *address, socklen_t length),
     (descriptor, address, length))
WRAP(int, -1, listen, (int descriptor, int backlog), (descriptor, backlog))
WRAP(int, -1, getsockname, (int descriptor, struct sockaddr *address, socklen_t *length),
     (descriptor, address, length))
WRAP(int, -1, shutdown, (int descriptor, int what), (descriptor, what))
WRAP(int, -1, setenv, (const char *name, const char *value, int overwrite),
     (name, value, overwrite))
WRAP(int, -1, atexit, (void (*function)(void)), (function))

int __real_close(int descriptor);
int __wrap_close(int descriptor);

int
__wrap_close(int descriptor)
{
	int how = fault_at(__builtin_return_address(0), -1), result = __real_close(descriptor);

	if (how == 0)
		return result;
	errno = how;
	return -1;
}

int __real_waitid(idtype_t type, id_t id, siginfo_t *info, int options);
int __wrap_waitid(idtype_t type, id_t id, siginfo_t *info, int options);

int
__wrap_waitid(idtype_t type, id_t id, siginfo_t *info, int options)
{
	int how = fault_at(__builtin_return_address(0), -1);

	if (how == 0)
		return __real_waitid(type, id, info, options);
	if (how == ECHILD && type == P_PID) { /* make it true: the child has been reaped */
		kill((pid_t)id, SIGKILL);
		waitpid((pid_t)id, NULL, 0);
	}
	errno = how;
	return -1;
}

int __real_fork(void);

/* Enter a birth before the fork, so that parent and child do not write at the same time. -1: the
 * table is full, because the cluster forks without end; then fork fails. */
static int
enter_birth(enum place child)
{
	int life = faults->births;

	if (life >= LIVES_MAX)
		return -1;
	faults->places[life] = (int)child;
	faults->births++; /* only one process forks at a time: the parent, then the master */
	return life;
}

/* A child learns its place and its number, whichever process forks. */
int
__wrap_fork(void)
{
	bool by_core = is_called_by_core(__builtin_return_address(0));
	int how = fault_at(__builtin_return_address(0), -1), life = 0;
	enum place child = place == PLACE_PARENT ? PLACE_MASTER : PLACE_NEWBORN;
	pid_t pid;

	if (how == 0 && by_core && (life = enter_birth(child)) == -1)
		how = EAGAIN;
	errno = how;
	pid = how == 0 ? __real_fork() : -1;
	if (!by_core || pid == -1)
		return pid;
	faults->pids[life] = pid == 0 ? getpid() : pid;
	if (pid == 0) {
		place = child;
		faults_life = life;
	}
	return pid;
}

struct messenger *__real_messenger_open(int descriptor, enum role role);
struct messenger *__wrap_messenger_open(int descriptor, enum role role);

/* A newborn child learns its role. */
struct messenger *
__wrap_messenger_open(int descriptor, enum role role)
{
	if (place == PLACE_NEWBORN) {
		place = role == ROLE_AGENT ? PLACE_AGENT : PLACE_APP;
		faults->places[faults_life] = (int)place;
	}
	return __real_messenger_open(descriptor, role);
}

int __wrap_clock_gettime(clockid_t clock, struct timespec *now);

static int64_t slow_since; /* real microseconds */

void
faults_run_slowly(void)
{
	struct timespec now;

	__real_clock_gettime(CLOCK_MONOTONIC, &now);
	slow_since = (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

int
__wrap_clock_gettime(clockid_t clock, struct timespec *now)
{
	int64_t microseconds;

	if (__real_clock_gettime(clock, now) == -1)
		return -1;
	microseconds = (int64_t)now->tv_sec * 1000000 + now->tv_nsec / 1000;
	if (clock == CLOCK_MONOTONIC && slow_since > 0)
		microseconds += slow_since * (faults_speed() - 1);
	else
		microseconds *= faults_speed();
	now->tv_sec = microseconds / 1000000;
	now->tv_nsec = microseconds % 1000000 * 1000;
	return 0;
}

int __real_poll(struct pollfd *set, nfds_t count, int timeout);
int __wrap_poll(struct pollfd *set, nfds_t count, int timeout);

int
__wrap_poll(struct pollfd *set, nfds_t count, int timeout)
{
	int how = fault_at(__builtin_return_address(0), -1);
	nfds_t i;

	if (timeout > 0 && is_called_by_core(__builtin_return_address(0)))
		timeout = (timeout + faults_speed() - 1) / faults_speed();
	if (how == 0)
		return __real_poll(set, count, timeout);
	for (i = 0; i < count; i++) /* the kernel leaves revents alone if memory is short */
		if (how != ENOMEM)
			set[i].revents = 0;
	errno = how;
	return how == FAULT_EARLY ? 0 : -1;
}

static size_t
shortened(size_t size, int how)
{
	if (how == FAULT_ONE_BYTE && size > 1)
		return 1;
	return how == FAULT_HALF ? (size + 1) / 2 : size;
}

ssize_t __real_read(int descriptor, void *bytes, size_t size);
ssize_t __wrap_read(int descriptor, void *bytes, size_t size);

ssize_t
__wrap_read(int descriptor, void *bytes, size_t size)
{
	int how = fault_at(__builtin_return_address(0), -1);

	if (how == 0 || how == FAULT_ONE_BYTE)
		return __real_read(descriptor, bytes, shortened(size, how));
	errno = how;
	return -1;
}

ssize_t __real_write(int descriptor, const void *bytes, size_t size);
ssize_t __wrap_write(int descriptor, const void *bytes, size_t size);

ssize_t
__wrap_write(int descriptor, const void *bytes, size_t size)
{
	int how = fault_at(__builtin_return_address(0), -1);

	if (how == 0 || how == FAULT_ONE_BYTE)
		return __real_write(descriptor, bytes, shortened(size, how));
	errno = how;
	return -1;
}

/* Cut the parts, so that together they have fewer bytes. */
static void
cut(const struct msghdr *header, struct iovec part[2], struct msghdr *shorter, int how)
{
	size_t i, left = 0;

	*shorter = *header;
	shorter->msg_iov = part;
	for (i = 0; i < (size_t)header->msg_iovlen; i++)
		left += header->msg_iov[i].iov_len;
	left = shortened(left, how);
	for (i = 0; i < (size_t)header->msg_iovlen; i++) {
		part[i] = header->msg_iov[i];
		part[i].iov_len = part[i].iov_len < left ? part[i].iov_len : left;
		left -= part[i].iov_len;
	}
}

ssize_t __real_sendmsg(int descriptor, const struct msghdr *header, int flags);
ssize_t __wrap_sendmsg(int descriptor, const struct msghdr *header, int flags);

ssize_t
__wrap_sendmsg(int descriptor, const struct msghdr *header, int flags)
{
	int how = fault_at(__builtin_return_address(0), -1);
	struct iovec part[2];
	struct msghdr shorter;

	if (how == 0)
		return __real_sendmsg(descriptor, header, flags);
	if (how == FAULT_ONE_BYTE || how == FAULT_HALF) {
		cut(header, part, &shorter, how);
		return __real_sendmsg(descriptor, &shorter, flags);
	}
	if (how == EPIPE || how == ECONNRESET) /* then it is true for the other end, too */
		shutdown(descriptor, SHUT_RDWR);
	errno = how;
	return -1;
}

ssize_t __real_send(int descriptor, const void *bytes, size_t size, int flags);
ssize_t __wrap_send(int descriptor, const void *bytes, size_t size, int flags);

ssize_t
__wrap_send(int descriptor, const void *bytes, size_t size, int flags)
{
	int how = fault_at(__builtin_return_address(0), -1);

	if (how == 0 || how == FAULT_ONE_BYTE || how == FAULT_HALF)
		return __real_send(descriptor, bytes, shortened(size, how), flags);
	if (how == EPIPE || how == ECONNRESET) /* then it is true for the other end, too */
		shutdown(descriptor, SHUT_RDWR);
	errno = how;
	return -1;
}

ssize_t __real_recvmsg(int descriptor, struct msghdr *header, int flags);
ssize_t __wrap_recvmsg(int descriptor, struct msghdr *header, int flags);

ssize_t
__wrap_recvmsg(int descriptor, struct msghdr *header, int flags)
{
	int how = fault_at(__builtin_return_address(0), -1);
	struct iovec part[2], *parts = header->msg_iov;
	struct msghdr shorter;
	ssize_t count;

	if (how == 0)
		return __real_recvmsg(descriptor, header, flags);
	if (how == FAULT_NO_HANDLE)
		header->msg_controllen = 0;
	if (how == FAULT_ONE_BYTE || how == FAULT_HALF || how == FAULT_NO_HANDLE) {
		cut(header, part, &shorter, how);
		count = __real_recvmsg(descriptor, &shorter, flags);
		*header = shorter;
		header->msg_iov = parts;
		return count;
	}
	if (how == ECONNRESET || how == FAULT_END)
		shutdown(descriptor, SHUT_RDWR);
	errno = how;
	return how == FAULT_END ? 0 : -1;
}

int __real_fcntl(int descriptor, int command, ...);
int __wrap_fcntl(int descriptor, int command, ...);

int
__wrap_fcntl(int descriptor, int command, ...)
{
	int how = fault_at(__builtin_return_address(0), command);
	struct flock *lock;
	va_list more;
	int number;

	if (how != 0) {
		errno = how;
		return -1;
	}
	va_start(more, command);
	if (command == F_SETLK || command == F_GETLK) {
		lock = va_arg(more, struct flock *);
		va_end(more);
		return __real_fcntl(descriptor, command, lock);
	}
	number = command == F_GETFL || command == F_GETFD ? 0 : va_arg(more, int);
	va_end(more);
	return __real_fcntl(descriptor, command, number);
}

int __wrap_dprintf(int descriptor, const char *format, ...) CLUTCH_PRINTF(2, 3);

int
__wrap_dprintf(int descriptor, const char *format, ...)
{
	int how = fault_at(__builtin_return_address(0), -1), result;
	va_list arguments;

	if (how != 0) {
		errno = how;
		return -1;
	}
	va_start(arguments, format);
	result = vdprintf(descriptor, format, arguments);
	va_end(arguments);
	return result;
}

int __real_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...);

int
__wrap_open(const char *path, int flags, ...)
{
	int how = fault_at(__builtin_return_address(0), -1);
	unsigned mode = 0;
	va_list more;

	if (how != 0) {
		errno = how;
		return -1;
	}
	va_start(more, flags);
	if ((flags & O_CREAT) != 0)
		mode = va_arg(more, unsigned);
	va_end(more);
	return __real_open(path, flags, mode);
}
