/*
 * The glue of docs/loops.md: a parent whose loop is libuv's or libevent's. The code is taken
 * from the document, so that the document is what works.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "compile.h"
#include "harness.h"

#include <criterion/criterion.h>

#include <stdio.h>
#include <stdlib.h>

TestSuite(loops, .timeout = 120);

/* The app sends back what it hears. The parent sends 1, 2 and 3 from a timer of the loop, which
 * is then closed, and 4 from a timer of the messenger's own. When 4 has come back it ends the
 * cluster, and the loop ends by itself: by then nothing but the glue wakes it. */
static const char cluster[] =
	"#include <messenger.h>\n"
	"#include <poll.h>\n"
	"#include <signal.h>\n"
	"#include <stdio.h>\n"
	"#include <stdlib.h>\n"
	"#include <string.h>\n"
	"#include <sys/wait.h>\n"
	"static pid_t master;\n"
	"static int sent, heard;\n"
	"static struct messenger *parent;\n"
	"static int echo(struct messenger *app, const struct message *message, void *arg)\n"
	"{\n"
	"	(void)arg;\n"
	"	return messenger_send(app, \"pong\", message->data, ROLE_PARENT);\n"
	"}\n"
	"static int app(struct messenger *app, void *arg)\n"
	"{\n"
	"	return messenger_on(app, \"ping\", echo, arg);\n"
	"}\n"
	"static int on_pong(struct messenger *m, const struct message *message, void *arg)\n"
	"{\n"
	"	(void)m, (void)arg;\n"
	"	printf(\"pong %s\\n\", message->data);\n"
	"	if (atoi(message->data) == heard + 1 && ++heard == 4)\n"
	"		kill(master, SIGTERM);\n"
	"	return 0;\n"
	"}\n"
	"static int on_timer(struct messenger *m, void *arg)\n"
	"{\n"
	"	(void)arg;\n"
	"	return messenger_send_to_app(m, \"ping\", \"4\");\n"
	"}\n"
	"static int is_ready;\n"
	"static int on_ready(struct messenger *m, const struct message *message, void *arg)\n"
	"{\n"
	"	(void)m, (void)message, (void)arg;\n"
	"	is_ready = 1;\n"
	"	return 0;\n"
	"}\n"
	"static void send_next(void)\n"
	"{\n"
	"	char data[16];\n"
	"	if (!is_ready || sent == 3)\n"
	"		return;\n"
	"	snprintf(data, sizeof data, \"%d\", ++sent);\n"
	"	messenger_send_to_app(parent, \"ping\", data);\n"
	"}\n"
	"static int begin(void)\n"
	"{\n"
	"	parent = fork_cluster(&(struct options){.app = app, .workers = 1}, &master);\n"
	"	return parent == NULL || messenger_on(parent, \"pong\", on_pong, NULL) == -1 ||\n"
	"	       messenger_on(parent, \"egg-ready\", on_ready, NULL) == -1 ||\n"
	"	       messenger_set_timeout(parent, 300, on_timer, NULL) == -1;\n"
	"}\n"
	"static int end(void)\n"
	"{\n"
	"	int status = -1;\n"
	"	waitpid(master, &status, 0);\n"
	"	messenger_close(parent);\n"
	"	printf(\"heard %d, status %d\\n\", heard, status);\n"
	"	return heard == 4 && status == 0 ? 0 : 1;\n"
	"}\n";

static const char uv_main[] = "static uv_timer_t clock_;\n"
			      "static void tick(uv_timer_t *timer)\n"
			      "{\n"
			      "	send_next();\n"
			      "	if (sent == 3)\n"
			      "		uv_close((uv_handle_t *)timer, NULL);\n"
			      "}\n"
			      "int main(void)\n"
			      "{\n"
			      "	struct glue glue;\n"
			      "	uv_loop_t *loop;\n"
			      "	if (begin() != 0)\n"
			      "		return 1;\n"
			      "	loop = uv_default_loop();\n"
			      "	if (glue_start(&glue, loop, parent) != 0)\n"
			      "		return 1;\n"
			      "	uv_timer_init(loop, &clock_);\n"
			      "	uv_timer_start(&clock_, tick, 5, 5);\n"
			      "	uv_run(loop, UV_RUN_DEFAULT);\n"
			      "	return end() != 0 || uv_loop_close(loop) != 0;\n"
			      "}\n";

static const char event_main[] =
	"static struct glue glue;\n"
	"static struct event *clock_;\n"
	"static void tick(evutil_socket_t descriptor, short what, void *arg)\n"
	"{\n"
	"	(void)descriptor, (void)what, (void)arg;\n"
	"	send_next();\n"
	"	glue_arm(&glue);\n"
	"	if (sent == 3)\n"
	"		event_del(clock_);\n"
	"}\n"
	"int main(void)\n"
	"{\n"
	"	struct timeval time = {0, 5000};\n"
	"	int status;\n"
	"	if (begin() != 0)\n"
	"		return 1;\n"
	"	glue.messenger = parent;\n"
	"	glue.base = event_base_new();\n"
	"	clock_ = event_new(glue.base, -1, EV_PERSIST, tick, NULL);\n"
	"	event_add(clock_, &time);\n"
	"	glue_arm(&glue);\n"
	"	event_base_dispatch(glue.base);\n"
	"	status = end();\n"
	"	event_free(clock_);\n"
	"	event_free(glue.event);\n"
	"	event_base_free(glue.base);\n"
	"	return status;\n"
	"}\n";

/* Compile the library's part of the document between the cluster and the main program. */
static void
expect_loop_works(const char *library, const char *header, const char *main_program)
{
	const char *folder = test_folder();

	if (!run("pkg-config --exists %s", library)) {
		fprintf(stderr, "there is no %s: skipped\n", library);
		cr_skip_test("no %s", library);
	}
	clear_environment();
	test_leash();
	write_source("begin.c", "#include <%s>\n%s", header, cluster);
	write_source("end.c", "%s", main_program);
	cr_assert(run("awk '/^## / { here = $2 == \"%s\" } /^```$/ { code = 0 } here && code; "
	              "/^```c$/ { code = 1 }' docs/loops.md >%s/glue.c && test -s %s/glue.c",
	              library, folder, folder));
	cr_assert(run("cat %s/begin.c %s/glue.c %s/end.c >%s/loop.c && "
	              "%s %s -Wall -Wextra -Werror -I. $(pkg-config --cflags %s) -o %s/loop "
	              "%s/loop.c %s/libclutch.a %s $(pkg-config --libs %s)",
	              folder, folder, folder, folder, environment("CC", "cc"),
	              environment("CFLAGS", ""), library, folder, folder,
	              environment("BUILD", "build"), environment("LDFLAGS", ""), library));
	cr_expect(run("%s/loop", folder));
}

Test(loops, libuv)
{
	expect_loop_works("libuv", "uv.h", uv_main);
}

Test(loops, libevent)
{
	expect_loop_works("libevent", "event2/event.h", event_main);
}
