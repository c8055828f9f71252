/*
 * The pid file and the status file beside it: the master writes, empties and removes only
 * its own files, also where other files stand under their names.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "harness.h"

#include <criterion/criterion.h>

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <unistd.h>

TestSuite(pid_file, .timeout = 60);

static char path[128], beside[128];

static void
name_files(void)
{
	snprintf(path, sizeof path, "%s/egg.pid", test_folder());
	snprintf(beside, sizeof beside, "%s/beside", test_folder());
}

static void
write_file(const char *name, const char *text, size_t length)
{
	FILE *file = fopen(name, "w");

	cr_assert(file != NULL && fwrite(text, 1, length, file) == length && fclose(file) == 0,
	          "%s: %s", name, strerror(errno));
}

/* At most 64 bytes of a file; the length, or -1 if there is no such file. */
static ssize_t
read_file(const char *name, char text[64])
{
	int descriptor = open(name, O_RDONLY);
	ssize_t length = descriptor != -1 ? read(descriptor, text, 63) : -1;

	if (descriptor != -1)
		close(descriptor);
	text[length > 0 ? length : 0] = '\0';
	return length;
}

static void
expect_content(const char *name, const char *expected, size_t length)
{
	char text[64];
	ssize_t count = read_file(name, text);

	cr_assert(count == (ssize_t)length && memcmp(text, expected, length) == 0, "%s holds %s",
	          name, count == -1 ? "nothing: it is not there" : text);
}

/* The start fails with one line and exit 1; the file of the pid file's name stays as it was. */
static void
expect_refusal(const char *reason)
{
	struct stat before, after;
	struct cluster *c;

	cr_assert_eq(lstat(path, &before), 0);
	c = cluster_start(&(struct options){.pid_file = path});
	cluster_wait(c, 0, "[master] pid file %s: %s", path, reason);
	cluster_wait_death(c, "MASTER");
	cr_assert_eq(cluster_count(c, 0, "[master]"), 1,
	             "the master logged not one line but more, or none");
	cluster_ended(c, 1);
	cr_assert_eq(lstat(path, &after), 0, "%s is gone", path);
	cr_assert(after.st_ino == before.st_ino && after.st_mode == before.st_mode &&
	          after.st_size == before.st_size);
}

/* Only the master drops its rights; as root nothing would be forbidden. */
static void
be_an_ordinary_user(enum role role, void *arg)
{
	(void)arg;
	if (role == ROLE_MASTER && geteuid() == 0 && setuid(65534) == -1)
		_exit(99);
}

/* The line must not say what a later call would say: that there is no such file, or a bad
 * descriptor. */
Test(pid_file, a_folder_or_file_that_cannot_be_made_says_why)
{
	static const char *const paths[] = {"locked/new/egg.pid", "locked/egg.pid"};
	struct cluster *c;
	char locked[128];
	size_t i;

	snprintf(locked, sizeof locked, "%s/locked", test_folder());
	cr_assert_eq(chmod(test_folder(), 0755), 0);
	cr_assert_eq(mkdir(locked, 0555), 0);
	for (i = 0; i < 2; i++) {
		snprintf(path, sizeof path, "%s/%s", test_folder(), paths[i]);
		c = cluster_start(
			&(struct options){.pid_file = path, .in_child = be_an_ordinary_user});
		cluster_wait(c, 0, "[master] pid file %s: Permission denied", path);
		cluster_ended(c, 1);
	}
}

/* D44: a user that can read the file can lock its bytes. Then no master starts, or the commands do
 * not see that a worker is alive. */
Test(pid_file, is_closed_to_other_users)
{
	struct cluster *c;
	struct stat status;

	name_files();
	c = cluster_start(&(struct options){.pid_file = path});
	cluster_ready(c);
	cr_assert_eq(stat(path, &status), 0);
	cr_assert_eq(status.st_mode & 0777, 0600);
	cluster_stop(c);
}

/* D44: egg writes through each of these links, and removes the name. */
Test(pid_file, a_link_is_refused)
{
	name_files();
	write_file(beside, "4711", 4);
	cr_assert_eq(symlink(beside, path), 0);
	expect_refusal("it is a symbolic link");
	expect_content(beside, "4711", 4);

	unlink(beside); /* the same where the link leads nowhere: the target is not made */
	expect_refusal("it is a symbolic link");
	cr_assert_eq(access(beside, F_OK), -1);

	unlink(path);
	write_file(beside, "4711", 4);
	cr_assert_eq(link(beside, path), 0);
	expect_refusal("it has a second name");
	expect_content(beside, "4711", 4);
}

/* The start does not hang at a FIFO. */
Test(pid_file, what_is_not_a_plain_file_is_refused)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	name_files();
	cr_assert_eq(mkfifo(path, 0600), 0);
	expect_refusal("it is not a plain file");
	unlink(path);
	cr_assert_eq(mkdir(path, 0700), 0);
	expect_refusal("it is not a plain file");
	rmdir(path);
	snprintf(address.sun_path, sizeof address.sun_path, "%.100s", path);
	cr_assert_eq(bind(listener, (struct sockaddr *)&address, sizeof address), 0);
	expect_refusal("it is not a plain file");
	close(listener);
	unlink(path);
	if (mknod(path, S_IFCHR | 0600, makedev(1, 3)) ==
	    0) /* a second /dev/null; only root can make one */
		expect_refusal("it is not a plain file");
}

Test(pid_file, a_file_with_something_else_in_it_is_refused)
{
	static const struct {
		const char *text;
		size_t length;
	} contents[] = {{"a letter\n", 9}, {"4711 4712", 9},  {"4711\n\n", 6},
	                {"\n", 1},         {"4711\0data", 9}, {"-4711", 5},
	                {" 4711", 5},      {"4711a", 5},      {"\0\0\0\0", 4}};
	char digits[4096];
	size_t i;

	name_files();
	for (i = 0; i < sizeof contents / sizeof contents[0]; i++) {
		write_file(path, contents[i].text, contents[i].length);
		expect_refusal("it holds something other than a pid");
		expect_content(path, contents[i].text, contents[i].length);
	}
	memset(digits, '1', sizeof digits);
	write_file(path, digits, sizeof digits);
	expect_refusal("it holds something other than a pid");
}

Test(pid_file, a_file_of_another_user_is_refused)
{
	name_files();
	write_file(path, "4711", 4);
	if (geteuid() != 0 || chown(path, 4711, (gid_t)-1) == -1)
		cr_skip_test("only root can give a file away");
	expect_refusal("it belongs to another user");
	expect_content(path, "4711", 4);
}

/* The files that a crash may leave: an empty file, a pid, a pid with a newline. */
Test(pid_file, a_file_that_a_crash_has_left_is_taken)
{
	static const char *const contents[] = {"", "4711", "4711\n"};
	char text[64], expected[16];
	struct cluster *c;
	size_t i;

	name_files();
	for (i = 0; i < sizeof contents / sizeof contents[0]; i++) {
		write_file(path, contents[i], strlen(contents[i]));
		c = cluster_start(&(struct options){.pid_file = path});
		cluster_ready(c);
		snprintf(expected, sizeof expected, "%ld", (long)c->master);
		cr_assert_eq(read_file(path, text), (ssize_t)strlen(expected));
		cr_assert_str_eq(text, expected);
		cluster_stop(c);
		cr_assert_eq(access(path, F_OK), -1);
	}
}

/* The master does not remove a file in which somebody keeps notes, nor a link that has taken
 * the file's place, though the link leads to the file. */
Test(pid_file, at_the_end_only_the_masters_own_file_is_removed)
{
	struct cluster *c;

	name_files();
	c = cluster_start(&(struct options){.pid_file = path});
	cluster_ready(c);
	write_file(path, "do not restart before noon\n", 27);
	cluster_stop(c);
	expect_content(path, "do not restart before noon\n", 27);

	unlink(path);
	c = cluster_start(&(struct options){.pid_file = path});
	cluster_ready(c);
	cr_assert(rename(path, beside) == 0 && symlink(beside, path) == 0);
	cluster_stop(c);
	cr_assert_eq(access(beside, F_OK), 0);
	cr_assert_eq(access(path, F_OK), 0);
}

static bool
is_status_written(struct cluster *cluster, void *arg)
{
	struct stat status;

	(void)cluster;
	return lstat(arg, &status) == 0 && S_ISREG(status.st_mode) && status.st_size > 100;
}

/* A link under either name of the status file is replaced, and its target stays. A file that
 * cannot be removed costs one line of the log, and is not written to. */
Test(pid_file, the_status_file_is_always_a_new_one)
{
	char status[160], new_status[160];
	struct cluster *c;
	size_t mark;

	name_files();
	snprintf(status, sizeof status, "%s.status", path);
	snprintf(new_status, sizeof new_status, "%s.status.new", path);
	write_file(beside, "mine", 4);
	c = cluster_start(&(struct options){.pid_file = path});
	cluster_ready(c);
	cr_assert(symlink(beside, status) == 0 && symlink(beside, new_status) == 0);
	kill(c->master, SIGUSR1);
	cluster_until(c, is_status_written, status, "the status file");
	cr_assert_eq(access(new_status, F_OK), -1);
	expect_content(beside, "mine", 4);

	cr_assert_eq(mkdir(new_status, 0700), 0);
	mark = cluster_mark(c);
	kill(c->master, SIGUSR1);
	cluster_wait(c, mark, "[master] cannot write %s: ", new_status);
	cluster_stop(c);
	cr_assert_eq(rmdir(new_status), 0);
}

Test(pid_file, one_that_cannot_be_is_a_failed_start)
{
	static char long_path[PATH_MAX + 2];
	const char *const paths[] = {"/dev/null/master.pid", "/dev/null/pid/master.pid", long_path};
	struct cluster *c;
	size_t i;

	memset(long_path, 'x', sizeof long_path - 1);
	for (i = 0; i < sizeof paths / sizeof paths[0]; i++) {
		c = cluster_start(&(struct options){.pid_file = paths[i]});
		cluster_wait(c, 0, "[master] pid file %.40s", paths[i]);
		cluster_ended(c, 1);
	}
}
