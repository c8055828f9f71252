/*
 * systemd's sd_notify and sd_listen_fds without its library: a datagram to the Unix domain
 * socket that NOTIFY_SOCKET names, and the shared port, already bound, as descriptor 3.
 *
 * The launcher is the unit's main process, and the master tells it over the channel when
 * all workers are ready. So the launcher alone speaks to systemd (NotifyAccess=main).
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "scripts.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#define LISTEN_FDS_START 3
#define NOTIFY_TIMEOUT 5 /* seconds: how long systemd may leave its socket full */

char *
scripts_take_notify_socket(void)
{
	const char *value = getenv("NOTIFY_SOCKET");
	char *path = value != NULL && value[0] != '\0' ? strdup(value) : NULL;

	unsetenv("NOTIFY_SOCKET");
	return path;
}

int
scripts_take_listener(const struct command *command)
{
	const char *pid = getenv("LISTEN_PID"), *given = getenv("LISTEN_FDS");
	long count = given != NULL ? strtol(given, NULL, 10) : 0;
	bool ours = pid != NULL && strtol(pid, NULL, 10) == (long)getpid() && count > 0;

	unsetenv("LISTEN_PID");
	unsetenv("LISTEN_FDS");
	unsetenv("LISTEN_FDNAMES");
	if (!ours)
		return 0;
	if (count > 1)
		scripts_complain(command, "LISTEN_FDS=%ld: only the first socket is used", count);
	fcntl(LISTEN_FDS_START, F_SETFD, FD_CLOEXEC);
	return LISTEN_FDS_START;
}

/* "/path", or "@name", which is Linux's abstract socket. -1: errno. */
static int
set_address(struct sockaddr_un *address, socklen_t *size, const char *path)
{
	size_t length = strlen(path);

	if ((path[0] != '/' && path[0] != '@') || length < 2) {
		errno = EAFNOSUPPORT;
		return -1;
	}
	if (length > sizeof address->sun_path) {
		errno = ENAMETOOLONG;
		return -1;
	}
	memset(address, 0, sizeof *address);
	address->sun_family = AF_UNIX;
	memcpy(address->sun_path, path, length);
	if (path[0] == '@')
		address->sun_path[0] = '\0';
	*size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length);
	return 0;
}

/* A service whose READY=1 is lost is a service that never starts: if the socket is full,
 * wait for room. */
static int
send_state(const char *path, const char *state)
{
	struct timeval limit = {.tv_sec = NOTIFY_TIMEOUT};
	struct sockaddr_un address;
	ssize_t sent = -1;
	socklen_t size;
	int descriptor, error;

	if (set_address(&address, &size, path) == -1)
		return -1;
	descriptor = socket(AF_UNIX, SOCK_DGRAM, 0);
	if (descriptor == -1)
		return -1;
	if (fcntl(descriptor, F_SETFD, FD_CLOEXEC) == 0 &&
	    setsockopt(descriptor, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit) == 0)
		do
			sent = sendto(descriptor, state, strlen(state), 0,
			              (struct sockaddr *)&address, size);
		while (sent == -1 && errno == EINTR);
	error = errno;
	close(descriptor);
	errno = error;
	return sent == -1 ? -1 : 0;
}

void
scripts_notify(const struct command *command, const char *path, const char *state)
{
	if (path != NULL && send_state(path, state) == -1)
		scripts_complain(command, "cannot tell NOTIFY_SOCKET=%s: %s", path,
		                 strerror(errno));
}
