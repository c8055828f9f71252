/*
 * draw/ draws a trace, with the same bytes in any awk. The committed figures belong to the
 * committed traces, and the processes still do what these traces show.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "harness.h"

#include <criterion/criterion.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

TestSuite(draw, .timeout = 120);

/* Run a shell command in which $T is the test's folder. Returns the exit status; the command's
 * output is in `output`. */
static char output[256 * 1024];

static int
shell(const char *command)
{
	char text[2048];
	size_t length;
	FILE *pipe;

	snprintf(text, sizeof text, "T='%s'; { %s; } 2>&1", test_folder(), command);
	pipe = popen(text, "r");
	cr_assert_not_null(pipe);
	length = fread(output, 1, sizeof output - 1, pipe);
	output[length] = '\0';
	return WEXITSTATUS(pclose(pipe));
}

/* A line of a trace; \t stands between its fields. */
static void
write_trace(const char *lines)
{
	char path[512];
	FILE *file;

	snprintf(path, sizeof path, "%s/trace", test_folder());
	file = fopen(path, "w");
	cr_assert_not_null(file);
	fputs(lines, file);
	fclose(file);
}

static void
check_figures(const char *awk)
{
	char command[512];

	snprintf(command, sizeof command,
	         "command -v %s >/dev/null || { echo skipped: there is no %s; exit 0; }; "
	         "FIGURES=$T AWK='%s' sh draw/figures/make >/dev/null && "
	         "diff -r -x make $T draw/figures",
	         awk, awk, awk);
	cr_assert_eq(shell(command), 0, "%s: %.2000s", awk, output);
	if (strncmp(output, "skipped", 7) == 0)
		cr_log_warn("%s", output);
}

Test(draw, the_figures_are_those_of_the_traces)
{
	check_figures("awk");
}

Test(draw, mawk_draws_the_same)
{
	check_figures("mawk");
}

Test(draw, gawk_draws_the_same)
{
	check_figures("gawk");
}

Test(draw, busybox_draws_the_same)
{
	check_figures("busybox awk");
}

Test(draw, the_processes_do_what_the_traces_show)
{
	cr_assert_eq(shell("make -s BUILD=$BUILD traces-check"), 0, "%s", output);
	cr_assert_eq(shell("cut -f5 draw/traces/pressure.trace | grep -cx -e waits -e 'goes on'"),
	             0);
	cr_assert_geq(atoi(output), 2,
	              "the trace `pressure` does not show that the agent waits and goes on");
}

Test(draw, the_check_sees_another_trace)
{
	cr_assert_eq(shell("sed 's/take/give/' draw/traces/message.trace >$T/trace && "
	                   "awk -f draw/own.awk $T/trace $T/trace | sort >$T/new; "
	                   "awk -f draw/own.awk draw/traces/message.trace "
	                   "draw/traces/message.trace | sort | cmp - $T/new"),
	             1);
}

Test(draw, a_run_is_traced_and_drawn_in_one_step)
{
	cr_assert_eq(shell("draw/run -k $T/trace -a ping $BUILD/examples/ping 2>/dev/null"), 0);
	cr_assert_not_null(strstr(output, "master"), "%s", output);
	cr_assert_not_null(strstr(output, " ping "), "%s", output);
	cr_assert_null(strstr(output, "fork"), "%s", output);
	cr_assert_eq(shell("draw/draw $T/trace"), 0);
	cr_assert_not_null(strstr(output, "fork"), "%s", output);
}

/* The trace does not know the other end of a joined channel, so its messages are notes without
 * an arrow, and do not come from the master. */
Test(draw, a_message_on_a_joined_channel_is_a_note)
{
	write_trace(
		"trace\t1000\tapp:0:7\t0\tstarts\tmaster:0:0\t0\t0\t->-:0\tparent 5\t-\t-1\t\t\n"
		"trace\t2000\tapp:0:7\t0\tsends\tapp:0:7\t1\t9\t->-:0\t 0\t-\t-1\task\t\n"
		"trace\t3000\tapp:0:7\t0\thears\tapp:0:7\t1\t0\t->-:0\t 0\t-\t-1\tanswer\t\n");
	cr_assert_eq(shell("draw/draw $T/trace"), 0);
	cr_assert_not_null(strstr(output, "sends ask, past the master"), "%s", output);
	cr_assert_not_null(strstr(output, "hears answer, past the master"), "%s", output);
	cr_assert_null(strstr(output, "in vain"), "%s", output);
	cr_assert_null(strstr(output, "->"), "%s", output);
}

Test(draw, a_text_is_as_wide_as_wanted)
{
	char *line, *text = output;
	size_t longest = 0;

	cr_assert_eq(shell("draw/draw draw/traces/reload.trace"), 0);
	while ((line = strsep(&text, "\n")) != NULL)
		longest = strlen(line) > longest ? strlen(line) : longest;
	cr_assert_leq(longest, 80);
	cr_assert_eq(shell("draw/draw -w 160 draw/traces/reload.trace"), 0);
	for (text = output, longest = 0; (line = strsep(&text, "\n")) != NULL;)
		longest = strlen(line) > longest ? strlen(line) : longest;
	cr_assert_leq(longest, 160);
	cr_assert_gt(longest, 120);
}

Test(draw, can_be_limited)
{
	cr_assert_eq(shell("draw/draw -p 'master agent' draw/traces/message.trace"), 0);
	cr_assert_not_null(strstr(output, "agent-start"), "%s", output);
	cr_assert_null(strstr(output, "listening"), "%s", output);
	cr_assert_eq(shell("draw/draw -t 50,100000 draw/traces/message.trace"), 0);
	cr_assert_null(strstr(output, "fork"), "%s", output);
	cr_assert_not_null(strstr(output, "SIGTERM"), "%s", output);
}

/* Each read and write has the number of its messages. The agent's second message is not whole
 * after the first read. */
Test(draw, all_calls_are_drawn_with_their_messages)
{
	write_trace(
		"trace\t1000\tmaster:0:1\t0\tis ready\tagent:0:2\t1\t0\t->-:0\t 0\t-\t-1\t\t\n"
		"trace\t2000\tagent:0:2\t0\twrites\tmaster:0:0\t3\t20\t->-:0\tbytes 80\t-\t-1\t\t\n"
		"trace\t3000\tmaster:0:1\t0\treads\tagent:0:2\t1\t0\t->-:0\tbytes 80\t-\t-1\t\t\n"
		"trace\t4000\tmaster:0:1\t0\treceives\tagent:0:2\t2\t0\tagent>app:0\t "
		"0\t-\t1\tone\t1\n"
		"trace\t5000\tagent:0:2\t0\twrites\tmaster:0:0\t4\t0\t->-:0\tbytes 60\t-\t-1\t\t\n"
		"trace\t6000\tmaster:0:1\t0\treads\tagent:0:2\t2\t0\t->-:0\tbytes 60\t-\t-1\t\t\n"
		"trace\t7000\tmaster:0:1\t0\treceives\tagent:0:2\t3\t0\tagent>app:0\t "
		"0\t-\t1\ttwo\t2\n"
		"trace\t8000\tmaster:0:1\t0\treceives\tagent:0:2\t4\t0\tagent>app:0\t "
		"0\t-\t1\tsix\t6\n");
	cr_assert_eq(shell("draw/draw -r -w 160 $T/trace"), 0);
	cr_assert_not_null(strstr(output, "0.00  | ready"), "%s", output);
	cr_assert_not_null(strstr(output, "writes 80 bytes, 3 messages "), "%s", output);
	cr_assert_not_null(strstr(output, "reads 80 bytes of agent, 1 message "), "%s", output);
	cr_assert_not_null(strstr(output, "writes 60 bytes, 1 message "), "%s", output);
	cr_assert_not_null(strstr(output, "reads 60 bytes of agent, 2 messages "), "%s", output);
	cr_assert_eq(shell("draw/draw $T/trace"), 0);
	cr_assert_null(strstr(output, " bytes"), "%s", output);
}

/* A pipe travels from the agent to the master, and from there to two apps; "done" has no handle. */
Test(draw, a_message_says_that_a_descriptor_travels_along)
{
	cr_assert_eq(
		shell("draw/draw -a 'pipe done' draw/traces/handle.trace | grep -c 'pipe+handle'"),
		0);
	cr_assert_str_eq(output, "3\n");
	cr_assert_eq(shell("draw/draw -f svg -a 'pipe done' draw/traces/handle.trace | "
	                   "grep -c 'pipe+handle'"),
	             0);
	cr_assert_eq(shell("draw/draw -a 'pipe done' draw/traces/handle.trace | grep -c ' done '"),
	             0);
	cr_assert_str_eq(output, "2\n");
}

/* A part of the trace is drawn. App 1 already waits at its beginning, and a message that arrives
 * after its end is not drawn as lost. */
Test(draw, a_time_is_a_part_of_the_same_picture)
{
	write_trace("trace\t1000\tmaster:0:1\t0\twaits\tapp:1:3\t1\t9\t->-:0\tapp 0\t-\t-1\t\t\n"
	            "trace\t3000\tmaster:0:1\t0\tsends\tapp:1:3\t1\t9\tagent>app:0\t "
	            "0\t-\t9\tlate\t1\n"
	            "trace\t4000\tmaster:0:1\t0\tsignals\tapp:1:3\t1\t9\t->-:0\tsignal "
	            "15\t-\t-1\t\t\n"
	            "trace\t5000\tapp:1:3\t0\thears\tmaster:0:0\t1\t0\tagent>app:0\t "
	            "0\t-\t9\tlate\t1\n");
	cr_assert_eq(shell("draw/draw -t 1,3.5 $T/trace"), 0);
	cr_assert_not_null(strstr(output, "SIGTERM ~"), "%s", output);
	cr_assert_not_null(strstr(output, "~>#\n"), "%s", output);
	cr_assert_null(strstr(output, "vain"), "%s", output);
	cr_assert_eq(shell("draw/draw -f svg -t 1,3.5 $T/trace | grep -c 'class=\"zone\"'"), 0);
}

/* Text is escaped, also in an SVG. */
Test(draw, what_is_sent_cannot_spoil_a_picture)
{
	write_trace("trace\t1000\tmaster:0:1\t0\tsends\tapp:0:2\t1\t9\tagent>app:0\t "
	            "0\t-\t9\t<a>\t\"<&>\"\n"
	            "trace\t3000\tapp:0:2\t4\thears\tmaster:0:0\t1\t0\tagent>app:0\t "
	            "0\t-\t9\t<a>\t\"<&>\"\n");
	cr_assert_eq(shell("draw/draw -f svg -n 'a & b' $T/trace"), 0);
	cr_assert_not_null(strstr(output, ">&lt;a&gt;"), "%s", output);
	cr_assert_not_null(strstr(output, ">a &amp; b<"), "%s", output);
	cr_assert_null(strstr(output, "<a>"), "%s", output);
	cr_assert_not_null(strstr(output, ">4 lines are lost<"), "%s", output);
	cr_assert_eq(shell("draw/draw -f timeline $T/trace"), 0);
	cr_assert_not_null(strstr(output, "the thickest is 9 bytes"), "%s", output);
}

Test(draw, says_what_is_wrong_with_its_arguments)
{
	cr_assert_eq(shell("draw/draw $T/none"), 1);
	cr_assert_not_null(strstr(output, "cannot be read"), "%s", output);
	write_trace("no trace\n");
	cr_assert_eq(shell("draw/draw $T/trace"), 1);
	cr_assert_not_null(strstr(output, "no line of a trace"), "%s", output);
	cr_assert_eq(shell("draw/draw -f png draw/traces/kill.trace"), 2);
	cr_assert_not_null(strstr(output, "give text, svg or timeline"), "%s", output);
	cr_assert_eq(shell("draw/draw -w x draw/traces/kill.trace"), 2);
	cr_assert_eq(shell("draw/draw -t soon draw/traces/kill.trace"), 2);
	cr_assert_eq(shell("draw/draw"), 2);
	cr_assert_eq(shell("draw/run"), 2);
}
