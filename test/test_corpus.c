/*
 * The checks of fuzz_frame.c, for every input of test/corpus/frame: the inputs that were
 * written by hand, and the inputs that once failed.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include <criterion/criterion.h>
#include <dirent.h>

#include "fuzz_frame.c"

/* Tests run in the root of the project, or TEST_ROOT says where it is. */
static DIR *
open_corpus(char *path, size_t size)
{
	const char *root = getenv("TEST_ROOT");
	DIR *folder;

	snprintf(path, size, "test/corpus/frame");
	folder = opendir(path);
	if (folder == NULL && root != NULL) {
		snprintf(path, size, "%s/test/corpus/frame", root);
		folder = opendir(path);
	}
	cr_assert_not_null(folder, "%s: %s (TEST_ROOT?)", path, strerror(errno));
	return folder;
}

/* The name is printed first, because a failed assertion ends the process. */
static void
replay(const char *folder, const char *name)
{
	static uint8_t input[64 * 1024];
	char path[2048];
	FILE *file;
	size_t size;

	snprintf(path, sizeof path, "%s/%s", folder, name);
	file = fopen(path, "rb");
	cr_assert_not_null(file, "%s: %s", path, strerror(errno));
	size = fread(input, 1, sizeof input, file);
	fclose(file);
	cr_assert_lt(size, sizeof input, "%s is too large", path);
	fprintf(stderr, "%s\n", path);
	LLVMFuzzerTestOneInput(input, size);
}

/* Replay the inputs whose name begins with the prefix. There must be at least one. */
static void
replay_all(const char *prefix)
{
	char path[1024];
	DIR *folder = open_corpus(path, sizeof path);
	const struct dirent *entry;
	int count = 0;

	while ((entry = readdir(folder)) != NULL) {
		if (strncmp(entry->d_name, prefix, strlen(prefix)) != 0)
			continue;
		replay(path, entry->d_name);
		count++;
	}
	closedir(folder);
	cr_assert_gt(count, 0, "%s: nothing begins with %s", path, prefix);
}

Test(corpus, valid_frames_arrive_whole)
{
	replay_all("valid-");
}

Test(corpus, torn_frames_are_put_together)
{
	replay_all("torn-");
}

Test(corpus, bad_frames_end_the_channel)
{
	replay_all("bad-");
}

Test(corpus, handles_stay_with_their_frames)
{
	replay_all("handle-");
}

Test(corpus, inputs_that_once_failed)
{
	replay_all("found-");
}
