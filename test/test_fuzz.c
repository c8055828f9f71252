/*
 * Every input of test/corpus, once more: what the fuzz targets assert holds for the inputs that
 * were written by hand, and for those that once failed or reach a place that no other does. (The
 * frames, which test_corpus.c replays on each platform, are left out.)
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include <criterion/criterion.h>

#include <dirent.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Each input has memory of its own, so that ASan finds a read past its end. */
static void
replay(int (*target)(const uint8_t *input, size_t size), const char *folder, const char *name)
{
	char path[1024];
	uint8_t *input;
	FILE *file;
	long size;

	snprintf(path, sizeof path, "%s/%s", folder, name);
	file = fopen(path, "rb");
	cr_assert_not_null(file, "%s: %s", path, strerror(errno));
	fseek(file, 0, SEEK_END);
	size = ftell(file);
	rewind(file);
	input = malloc((size_t)size + 1);
	cr_assert(input != NULL && fread(input, 1, (size_t)size, file) == (size_t)size);
	fclose(file);
	fprintf(stderr, "%s\n", path); /* a failed assertion ends the process */
	target(input, (size_t)size);
	free(input);
}

/* Tests run in the root of the project, or are told where that is. */
static void
replay_all(int (*target)(const uint8_t *input, size_t size), const char *name)
{
	const char *root = getenv("TEST_ROOT");
	char path[512];
	const struct dirent *entry;
	int count = 0;
	DIR *folder;

	snprintf(path, sizeof path, "%s/test/corpus/%s", root != NULL ? root : ".", name);
	folder = opendir(path);
	cr_assert_not_null(folder, "%s: %s (TEST_ROOT?)", path, strerror(errno));
	while ((entry = readdir(folder)) != NULL)
		if (entry->d_name[0] != '.') {
			replay(target, path, entry->d_name);
			count++;
		}
	closedir(folder);
	cr_assert_geq(count, 10, "%s has %d inputs", path, count);
}

#define TARGET(name)                                                                               \
	int fuzz_##name(const uint8_t *input, size_t size);                                        \
	Test(fuzz, name)                                                                           \
	{                                                                                          \
		replay_all(fuzz_##name, #name);                                                    \
	}

TARGET(cluster)
TARGET(cron)
TARGET(http)
TARGET(options)
TARGET(resp)
TARGET(schedule)
TARGET(scripts)
TARGET(status)
