/*
 * Compare the table "Messages of the cluster" in messenger.h with the messages of a live
 * cluster: each row is observed, and no message is observed that has no row.
 *
 * With CLUTCH_TRACE=1 the master prints a line for each message that it routes, also for
 * messages to itself.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "harness.h"

#include <criterion/criterion.h>

#include <ctype.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

TestSuite(messages, .timeout = 120);

enum { LINE = 512, NAME = 32, ROWS_MOST = 32, SHAPES_MOST = 4 };

/* ---- the table ---------------------------------------------------------------- */

struct row {
	char action[NAME], from[NAME], to[NAME], data[NAME];
	size_t observed;
};

/* A form that OPTIONS may have, with each number replaced by 0. */
struct shape {
	char text[LINE];
	size_t observed;
};

static struct row rows[ROWS_MOST];
static struct shape shapes[SHAPES_MOST];
static size_t row_count, shape_count;

/* Each number becomes 0, and a list of numbers [0]. */
static void
find_shape(const char *text, char *shape)
{
	while (*text != '\0') {
		if (!isdigit((unsigned char)*text)) {
			*shape++ = *text++;
			continue;
		}
		*shape++ = '0';
		text += strspn(text, "0123456789");
		if (shape[-2] == '[')
			text += strspn(text, "0123456789,");
	}
	*shape = '\0';
}

static void
read_row(const char *line)
{
	struct row *row = &rows[row_count];
	char json[LINE];

	if (sscanf(line, " *\tOPTIONS %511s", json) == 1) {
		cr_assert_lt(shape_count, SHAPES_MOST);
		find_shape(json, shapes[shape_count++].text);
	} else if (sscanf(line, " *\t%31[a-z-] %31[a-z] %31[a-z] %31[A-Z-] ", row->action,
	                  row->from, row->to, row->data) == 4) {
		row_count++;
		cr_assert_lt(row_count, ROWS_MOST);
	}
}

/* The table ends where its comment ends. */
static void
read_table(void)
{
	FILE *file = fopen("messenger.h", "r");
	char line[LINE];
	bool inside = false;

	cr_assert_not_null(file);
	while (fgets(line, sizeof line, file) != NULL) {
		if (strcmp(line, " * Messages of the cluster\n") == 0)
			inside = true;
		else if (strcmp(line, " */\n") == 0)
			inside = false;
		else if (inside)
			read_row(line);
	}
	fclose(file);
	cr_assert_gt(row_count, 8, "only %zu rows of the table in messenger.h were read",
	             row_count);
	cr_assert_gt(shape_count, 0);
}

/* ---- what is observed ------------------------------------------------------------ */

static bool
has_shape(const char *kind, const char *data)
{
	char shape[LINE];
	size_t i;

	if (strcmp(kind, "-") == 0)
		return strcmp(data, "-") == 0;
	find_shape(data, shape);
	if (strcmp(kind, "STATUS") == 0)
		return strncmp(data, "{\"name\":", 8) == 0;
	if (strcmp(kind, "PIDS") == 0)
		return strcmp(shape, "[0]") == 0 || strcmp(shape, "[]") == 0;
	for (i = 0; strcmp(kind, "OPTIONS") == 0 && i < shape_count; i++)
		if (strcmp(shape, shapes[i].text) == 0) {
			shapes[i].observed++;
			return true;
		}
	return false;
}

/* In the table "any" is each process but the master, and "that" is the process that has asked. */
static bool
has_role(const char *wanted, const char *role)
{
	if (strcmp(wanted, "any") == 0 || strcmp(wanted, "that") == 0)
		return strcmp(role, "master") != 0;
	return strcmp(wanted, role) == 0;
}

/* `line` is a trace line from its event "routes" on: peer, number, queue, roles, rule, handle,
 * length, action, data follow. */
static void
check_line(const char *line)
{
	char action[NAME], data[LINE] = "-", from[NAME], to[NAME];
	size_t i;

	cr_assert_geq(
		sscanf(strstr(line, "\troutes\t"),
	               "\troutes\t%*s %*s %*s %31[a-z]>%31[a-z]:%*d %*[^\t]\t%*s %*d %31s %511s",
	               from, to, action, data),
		3, "%s", line);
	if (strncmp(action, "test-", 5) == 0)
		return;
	for (i = 0; i < row_count; i++)
		if (strcmp(rows[i].action, action) == 0 && has_role(rows[i].from, from) &&
		    has_role(rows[i].to, to)) {
			rows[i].observed++;
			cr_expect(has_shape(rows[i].data, data),
			          "%s %s -> %s: the table says that the data is %s, and it is %s",
			          action, from, to, rows[i].data, data);
			return;
		}
	cr_expect_fail("the table has no row for this message: %s", line);
}

static void
check_lines(struct cluster *cluster)
{
	const char *line;
	size_t from = 0;

	while ((line = cluster_next_line(cluster, &from, "\troutes\t")) != NULL)
		check_line(line);
}

/* ---- the cluster -------------------------------------------------------------------- */

static int
order_reload(struct messenger *agent, const struct message *message, void *arg)
{
	(void)message, (void)arg;
	return messenger_send(agent, "reload-worker", NULL, ROLE_MASTER);
}

static int
ask_status(struct messenger *messenger, const struct message *message, void *arg)
{
	(void)message, (void)arg;
	return messenger_send(messenger, "clutch-status", NULL, ROLE_MASTER);
}

static int
tell_answer(struct messenger *messenger, const struct message *message, void *arg)
{
	(void)message, (void)arg;
	report(messenger, "was answered");
	return 0;
}

static int
run_app(struct messenger *messenger, void *arg)
{
	(void)arg;
	return messenger_on(messenger, "test-ask", ask_status, NULL) == 0
	               ? messenger_on(messenger, "clutch-status", tell_answer, NULL)
	               : -1;
}

static int
run_agent(struct messenger *agent, void *arg)
{
	return messenger_on(agent, "test-reload", order_reload, NULL) == 0 ? run_app(agent, arg)
	                                                                   : -1;
}

static int
close_connection(struct messenger *app, int descriptor, void *arg)
{
	(void)app, (void)arg;
	return close(descriptor);
}

static struct cluster *
start(struct options options)
{
	struct cluster *cluster;

	clear_environment();
	setenv("CLUTCH_TRACE", "1", 1);
	options.agent = run_agent;
	options.app = run_app;
	cluster = cluster_start(&options);
	cluster_ready(cluster);
	return cluster;
}

/* Observe the cluster to its last message: closing sends no message that has no row. */
static void
end(struct cluster *cluster)
{
	cluster_signal(cluster, "MASTER", SIGTERM);
	cluster_wait(cluster, 0, "[master] exit with code:0");
	check_lines(cluster);
	cluster_ended(cluster, 0);
}

Test(messages, the_cluster_sends_what_the_table_says_and_nothing_else)
{
	struct cluster *c;
	size_t at, i;

	read_table();
	c = start((struct options){.workers = 2, .connection = close_connection});
	at = cluster_mark(c);
	cluster_signal(c, "APP#1", SIGKILL);
	cluster_wait(c, at, "app_worker#3:APP#3 started");
	cluster_signal(c, "AGENT#1", SIGKILL);
	cluster_wait(c, at, "agent_worker#2:AGENT#2 started");
	cr_assert_eq(messenger_send(c->parent, "reload-worker", NULL, ROLE_MASTER), 0);
	at = cluster_wait(c, at, "[master] reload done");
	cr_assert_eq(messenger_send_to_agent(c->parent, "test-reload", NULL), 0);
	at = cluster_wait(c, at, "[master] reload done");
	cr_assert_eq(messenger_send_to_agent(c->parent, "test-ask", NULL), 0);
	cr_assert_eq(messenger_send_to_app(c->parent, "test-ask", NULL), 0);
	cr_assert_eq(messenger_send(c->parent, "clutch-status", NULL, ROLE_MASTER), 0);
	cluster_wait(c, at, ":AGENT#2 was answered");
	cluster_wait(c, at, "@app:1:APP#7 was answered");
	cluster_wait(c, at, ":PARENT saw clutch-status ");
	end(c);
	end(start((struct options){.workers = 1})); /* no port */
	for (i = 0; i < row_count; i++)
		cr_expect_gt(rows[i].observed, 0,
		             "no message of this row was observed: %s %s -> %s", rows[i].action,
		             rows[i].from, rows[i].to);
	for (i = 0; i < shape_count; i++)
		cr_expect_gt(shapes[i].observed, 0, "no OPTIONS of this form were observed: %s",
		             shapes[i].text);
}
