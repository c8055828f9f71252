/*
 * The parent: the sums over all lives, of this run and of those that it continues.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "soak.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

enum { FAILURES = 24, LOG_LINES = 24, WIDTH = 300 };

static char failures[FAILURES][WIDTH], log_lines[LOG_LINES][256];
static int failure_count, line_count;

void
fail(const char *format, ...)
{
	va_list arguments;

	soak.totals.failures++;
	if (failure_count == FAILURES)
		return;
	va_start(arguments, format);
	vsnprintf(failures[failure_count], WIDTH, format, arguments);
	va_end(arguments);
	fprintf(stderr, "soak: %lld s: %s\n", soak.totals.milliseconds / 1000,
	        failures[failure_count++]);
}

void
log_line(const char *line)
{
	if (line[0] != CHATTER)
		snprintf(log_lines[line_count++ % LOG_LINES], sizeof log_lines[0], "%s", line);
}

/* The last line of a master. */
const char *
last_log_line(void)
{
	const char *line;
	int i;

	for (i = 1; i <= LOG_LINES && i <= line_count; i++) {
		line = log_lines[(line_count - i) % LOG_LINES];
		if (strncmp(line, "[master]", 8) == 0)
			return line;
	}
	return "it has said nothing";
}

struct totals
totals_now(void)
{
	struct totals all = soak.totals;
	const struct counts *counts;
	int i;

	for (i = 0; shared != NULL && i < shared->record_count && i < RECORDS; i++) {
		counts = &shared->records[i].counts;
		all.delivered += counts->delivered;
		all.refused += counts->refused;
		all.lost += counts->lost;
		all.doubled += counts->doubled;
		all.disordered += counts->disordered;
		all.damaged += counts->damaged;
		all.astray += counts->astray;
		all.dropped += counts->dropped;
		all.requests += counts->requests;
		all.forks += i > 0;
	}
	return all;
}

/* ---- the state file ------------------------------------------------------------ */

static void
set_field(struct totals *totals, const char *name, long long value)
{
#define X(field)                                                                                   \
	if (strcmp(name, #field) == 0)                                                             \
		totals->field = value;
	TOTALS(X)
#undef X
}

/* Returns 0 if the file was read, or if there is none. */
int
totals_load(void)
{
	FILE *file = fopen(soak.state_path, "r");
	char line[WIDTH + 32], name[32];
	long long value;

	if (file == NULL)
		return errno == ENOENT ? 0 : -1;
	while (fgets(line, sizeof line, file) != NULL) {
		line[strcspn(line, "\n")] = '\0';
		if (strncmp(line, "failure: ", 9) == 0 && failure_count < FAILURES)
			snprintf(failures[failure_count++], WIDTH, "%.*s", WIDTH - 1, line + 9);
		else if (sscanf(line, "%31s %lld", name, &value) == 2)
			set_field(&soak.totals, name, value);
	}
	fclose(file);
	return 0;
}

static int
write_state(const char *path, const struct totals *all)
{
	FILE *file = fopen(path, "w");
	int i;

	if (file == NULL)
		return -1;
#define X(field) fprintf(file, "%s %lld\n", #field, all->field);
	TOTALS(X)
#undef X
	for (i = 0; i < failure_count; i++)
		fprintf(file, "failure: %s\n", failures[i]);
	return fclose(file);
}

/* The new file replaces the old one when it is complete. Returns -1, with errno, if it could
 * not be written. */
int
totals_save(void)
{
	struct totals all = totals_now();
	char path[4096];

	snprintf(path, sizeof path, "%s.new", soak.state_path);
	return write_state(path, &all) == -1 ? -1 : rename(path, soak.state_path);
}

/* ---- the table ------------------------------------------------------------------ */

static void
print_messages(FILE *file, const struct totals *all)
{
	double seconds = (double)all->milliseconds / 1000;

	fprintf(file, "%-14s%.0f of storm in %lld run%s, seed %lld\n", "seconds", seconds,
	        all->runs, all->runs == 1 ? "" : "s", all->seed);
	fprintf(file, "%-14s%lld, %.0f per second; %lld sends were refused for a while\n",
	        "messages", all->delivered, seconds > 0 ? (double)all->delivered / seconds : 0,
	        all->refused);
	fprintf(file,
	        "%-14slost %lld, by reloads %lld, doubled %lld, out of order %lld, damaged %lld, "
	        "astray %lld\n",
	        "violations", all->lost, all->lost_by_reload, all->doubled, all->disordered,
	        all->damaged, all->astray);
	fprintf(file,
	        "%-14s%lld dropped before the receiver was there, %lld sent to the pid of a worker "
	        "that had left\n",
	        "unclaimed", all->dropped, all->late);
}

static void
print_deaths(FILE *file, const struct totals *all)
{
	fprintf(file,
	        "%-14s%lld apps by SIGKILL, %lld by SIGTERM; %lld agents by SIGKILL, %lld by "
	        "SIGTERM; %lld SIGSTOPs\n",
	        "kills", all->apps_killed, all->apps_terminated, all->agents_killed,
	        all->agents_terminated, all->stops);
	fprintf(file,
	        "%-14s%lld killed and started anew, %lld ended by SIGTERM; %lld processes forked\n",
	        "masters", all->masters_killed, all->masters_ended, all->forks);
	fprintf(file,
	        "%-14s%lld, %lld workers replaced; %lld workers had left their process group\n",
	        "reloads", all->reloads, all->replaced, all->groups);
	fprintf(file, "%-14s%lld that kept a dead worker's channel, %lld after setsid\n", "helpers",
	        all->helpers, all->strays);
	fprintf(file, "%-14s%lld slow readers, %lld full log pipes, %lld times failed forks\n",
	        "faults", all->slow, all->logs, all->failed_forks);
	fprintf(file, "%-14s%lld requests, %lld asked again, %lld held over a reload\n", "HTTP",
	        all->requests, all->requests_again, all->held);
}

static void
print_master(FILE *file, const struct totals *all)
{
	struct utsname system;

	fprintf(file,
	        "%-14sgreatest RSS %lld KiB, %lld KiB more in the second pause; %lld descriptors "
	        "leaked\n",
	        "master", all->rss, all->rss_growth, all->descriptors);
	fprintf(file, "%-14s%lld zombies, %lld orphans; longest silence at the parent %lld ms\n",
	        "left", all->zombies, all->orphans, all->silence);
	if (uname(&system) == 0)
		fprintf(file, "%-14s%s %s %s, %ld processors, %ld MiB\n", "machine", system.sysname,
		        system.release, system.machine, sysconf(_SC_NPROCESSORS_ONLN),
		        sysconf(_SC_PHYS_PAGES) / 1024 * (sysconf(_SC_PAGESIZE) / 1024));
}

static void
print_table(FILE *file, const struct totals *all)
{
	int part;

	print_messages(file, all);
	print_deaths(file, all);
	print_master(file, all);
	for (part = 0; part < PARTS; part++)
		if (part_skipped((enum part)part) != NULL)
			fprintf(file, "%-14s%s: %s\n", "skipped", part_names[part],
			        part_skipped((enum part)part));
	if (all->failures == 0)
		fprintf(file, "soak: ok\n");
	else
		fprintf(file, "soak: FAILED, reasons: %lld, the first: %s\n", all->failures,
		        failures[0]);
}

static void
print_reasons(void)
{
	int i;

	for (i = 0; i < LOG_LINES && i < line_count; i++)
		printf("  %s\n",
		       log_lines[line_count < LOG_LINES ? i : (line_count + i) % LOG_LINES]);
	for (i = 0; i < failure_count; i++)
		printf("  - %s\n", failures[i]);
}

/* Returns the exit status. */
int
totals_report(void)
{
	struct totals all = totals_now();
	FILE *file;

	if (all.failures > 0)
		print_reasons();
	print_table(stdout, &all);
	if (soak.interrupted || soak.result_path == NULL)
		return all.failures > 0;
	file = fopen(soak.result_path, "w");
	if (file != NULL) {
		print_table(file, &all);
		if (fclose(file) == 0)
			return all.failures > 0;
	}
	fprintf(stderr, "soak: cannot write %s: %s\n", soak.result_path, strerror(errno));
	return 1;
}
