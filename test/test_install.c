/*
 * Programs in C and C++ use an installed clutch, with the shared and with the static library.
 * They know the place of the installation only from pkg-config.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include "compile.h"
#include "harness.h"
#include "sanitized.h"

#include <criterion/criterion.h>

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

TestSuite(install, .timeout = 240);

/* Install into the test's folder, and tell pkg-config where that is. */
static const char *
stage(void)
{
	static char folder[LINE], path[LINE + 64];

	if (!is_there("pkg-config")) {
		fprintf(stderr, "there is no pkg-config: skipped\n");
		cr_skip_test("no pkg-config");
	}
	clear_environment();
	test_leash();
	snprintf(folder, sizeof folder, "%s/stage", test_folder());
	cr_assert(run("make install DESTDIR=%s", folder));
	snprintf(path, sizeof path, "%s/usr/local/lib/pkgconfig", folder);
	setenv("PKG_CONFIG_PATH", path, 1);
	setenv("PKG_CONFIG_SYSROOT_DIR", folder, 1);
	snprintf(path, sizeof path, "%s/usr/local/lib", folder);
	setenv("LD_LIBRARY_PATH", path, 1);
	return folder;
}

/* Compile a source with the flags of pkg-config, and run it. No -I leads into this tree. */
static void
expect_runs(const char *compiler, const char *source, const char *how, const char *pkg_config)
{
	cr_expect(run("%s %s $(%s --cflags clutch) -o %s/program %s %s $(%s --libs clutch) %s",
	              compiler, environment("CFLAGS", ""), pkg_config, test_folder(), source, how,
	              pkg_config, environment("LDFLAGS", "")),
	          "%s %s %s", compiler, source, how);
	cr_expect(run("%s/program", test_folder()), "%s %s %s", compiler, source, how);
}

/* Is the last program linked with the shared library, by its soname? */
static bool
is_shared(void)
{
	return run("readelf -d %s/program | grep 'NEEDED.*libclutch[.]so[.][0-9]*[]]'",
	           test_folder());
}

static void
expect_programs_run(const char *compiler, const char *source)
{
	char archive[2 * LINE];

	expect_runs(compiler, source, "", "pkg-config");
	cr_expect(is_shared());
#ifdef SANITIZED /* a sanitizer may be there only as a shared library */
	snprintf(archive, sizeof archive, "%s/stage/usr/local/lib/libclutch.a", test_folder());
	expect_runs(compiler, source, archive, "pkg-config --static");
#else
	snprintf(archive, sizeof archive, "-static");
	expect_runs(compiler, source, archive, "pkg-config --static");
	cr_expect_not(is_shared());
#endif
}

/* A copy of one of our examples, without the path that leads into this tree. */
static const char *
copy_example(const char *name)
{
	static char path[2 * LINE];

	cr_assert(run("sed 's|#include \"[.][.]/|#include \"|' examples/%s >%s/%s", name,
	              test_folder(), name));
	snprintf(path, sizeof path, "%s/%s", test_folder(), name);
	return path;
}

Test(install, programs_in_c_run)
{
	stage();
	expect_programs_run(environment("CC", "cc"), copy_example("ping.c"));
	/* an example with a package */
	expect_runs(environment("CC", "cc"), copy_example("registry.c"), "", "pkg-config");
}

Test(install, programs_in_cplusplus_run)
{
	skip_without_cplusplus(cplusplus());
	stage();
	expect_programs_run(cplusplus(), "test/contract/cluster.cc");
}

/* <clutch/messenger.h> and "messenger.h" are the same file. Each header compiles alone. */
static const char each_header[] = "#include <clutch/%s>\n"
				  "#include \"%s\"\n"
				  "int main(void) { return 0; }\n";

Test(install, each_header_is_there)
{
	static const char *const headers[] = {"messenger.h",
	                                      "cluster-client/cluster_client.h",
	                                      "egg-schedule/egg_schedule.h",
	                                      "egg-scripts/egg_scripts.h",
	                                      "redis/bridge.h",
	                                      "redis/redis.h"};
	size_t i;

	stage();
	for (i = 0; i < sizeof headers / sizeof headers[0]; i++)
		expect_runs(environment("CC", "cc"),
		            write_source("header.c", each_header, headers[i], headers[i]), "",
		            "pkg-config");
}

/* A tree that was moved after the installation works without DESTDIR. */
Test(install, a_moved_install_works)
{
	char path[2 * LINE];
	const char *folder = stage();

	cr_assert(run("mkdir %s/opt && mv %s/usr/local %s/opt/clutch", test_folder(), folder,
	              test_folder()));
	unsetenv("PKG_CONFIG_SYSROOT_DIR");
	snprintf(path, sizeof path, "%s/opt/clutch/lib", test_folder());
	setenv("LD_LIBRARY_PATH", path, 1);
	snprintf(path, sizeof path, "%s/opt/clutch/lib/pkgconfig", test_folder());
	setenv("PKG_CONFIG_PATH", path, 1);
	expect_runs(environment("CC", "cc"), copy_example("ping.c"), "",
	            "pkg-config --define-prefix");
}

/* Uninstalling removes what was installed, and nothing else. */
Test(install, uninstall_leaves_nothing)
{
	const char *folder = stage();

	cr_assert(run("touch %s/usr/local/include/clutch/mine.h", folder));
	cr_assert(run("make uninstall DESTDIR=%s", folder));
	cr_expect(run("test \"$(cd %s && find . ! -type d)\" = ./usr/local/include/clutch/mine.h",
	              folder));
	cr_assert(run("rm %s/usr/local/include/clutch/mine.h", folder));
	cr_assert(run("make install DESTDIR=%s && make uninstall DESTDIR=%s", folder, folder));
	cr_expect(run("test ! -e %s/usr/local/include/clutch && test -d %s/usr/local/include",
	              folder, folder));
}

/* The GNU variables work, also with a folder that is not below prefix. */
Test(install, the_folders_can_be_chosen)
{
	stage();
	cr_assert(run("make install DESTDIR=%s/other prefix=/usr libdir=/usr/lib/here "
	              "includedir=/headers mandir=/man",
	              test_folder()));
	cr_expect(run("cd %s/other && test -f usr/lib/here/libclutch.a && "
	              "test -f headers/clutch/redis/redis.h && test ! -e usr/include && "
	              "grep -qx 'libdir=${prefix}/lib/here' usr/lib/here/pkgconfig/clutch.pc && "
	              "grep -qx 'includedir=/headers' usr/lib/here/pkgconfig/clutch.pc",
	              test_folder()));
}

/* ---- what the shared library exports ------------------------------------------------ */

/* nm -P prints "name type value size"; with a version script a name may end in its version. */
Test(install, the_public_symbols_are_exported_and_no_others)
{
	stage();
	cr_assert(run("packaging/declarations -f $(find %s/stage -name '*.h') | sort >%s/public",
	              test_folder(), test_folder()));
	cr_assert(run("nm -D --defined-only -P %s/stage/usr/local/lib/libclutch.so | "
	              "sed 's/[@ ].*//' | grep -vx 'CLUTCH_[0-9]*' | sort >%s/exported",
	              test_folder(), test_folder()));
	cr_expect(run("diff %s/public %s/exported", test_folder(), test_folder()));
	cr_expect(run("grep -x messenger_send %s/exported", test_folder()));
}

/* ---- manual pages ----------------------------------------------------------------- */

/* man messenger_send finds a page that has the function as the header declares it. */
Test(install, each_public_function_has_a_manual_page)
{
	stage();
	cr_assert(run("packaging/declarations -f $(find %s/stage -name '*.h') >%s/names && "
	              "grep -x egg_scripts %s/names",
	              test_folder(), test_folder(), test_folder()));
	cr_expect(run("cd %s/stage/usr/local/share/man/man3 && result=0 && "
	              "for name in $(cat %s/names); do "
	              "grep -qx \".Fo $name\" $name.3 || { echo \"$name\"; result=1; }; "
	              "done; test $result = 0",
	              test_folder(), test_folder()));
}

/* mandoc has no complaint about the pages. It also checks cross references, for which it looks for
 * the pages in the working folder. */
Test(install, mandoc_likes_the_manual_pages)
{
	if (!is_there("mandoc")) {
		fprintf(stderr, "there is no mandoc: skipped\n");
		cr_skip_test("no mandoc");
	}
	stage();
	cr_assert(run("mkdir %s/flat && cp %s/stage/usr/local/share/man/man*/* %s/flat",
	              test_folder(), test_folder(), test_folder()));
	cr_expect(run("cd %s/flat && mandoc -Tlint $(cd %s/stage/usr/local/share/man && "
	              "find . -type f | sed 's|.*/||' | grep .) >%s/lint; cat %s/lint; "
	              "test -f messenger.3 && test ! -s %s/lint",
	              test_folder(), test_folder(), test_folder(), test_folder(), test_folder()));
}

/* ---- limits, and the soname ---------------------------------------------------------- */

/* An installation has the limits of its library, whatever a program's flags say. */
Test(install, the_limits_are_those_of_the_build)
{
	write_source("limits.c", "#include \"redis/bridge.h\"\n"
	                         "int main(void) { return MESSAGE_DATA_MAX != 4096 ||\n"
	                         "	BRIDGE_DATA_MAX != 2048 || CHANNEL_HANDLES_MAX != 16; }\n");
	cr_assert(run("mkdir %s/redis && for header in messenger.h redis/bridge.h; do "
	              "packaging/header $header \"${CC:-cc} -E -I. -DMESSAGE_DATA_MAX=4096\" "
	              ">%s/$header || exit 1; done",
	              test_folder(), test_folder()));
	cr_assert(run("cd %s && ${CC:-cc} -DMESSAGE_DATA_MAX=100 -o limits limits.c && ./limits",
	              test_folder()));
	cr_expect(run("! grep CLUTCH_PRIVATE_H %s/messenger.h", test_folder()));
}

/* Copy the installed headers, and replace a text in the copy. */
static void
change_header(const char *from, const char *to)
{
	cr_assert(run("rm -rf %s/abi && mkdir %s/abi && cp packaging/abi packaging/abi.txt "
	              "packaging/declarations %s/abi && "
	              "cp $(find ${BUILD:-build}/include -name '*.h') %s/abi",
	              test_folder(), test_folder(), test_folder(), test_folder()));
	cr_assert(run("sed 's/%s/%s/' %s/abi/messenger.h >%s/abi/new && "
	              "! cmp -s %s/abi/messenger.h %s/abi/new && "
	              "mv %s/abi/new %s/abi/messenger.h",
	              from, to, test_folder(), test_folder(), test_folder(), test_folder(),
	              test_folder(), test_folder()));
}

static bool
abi(const char *arguments)
{
	return run("cd %s/abi && ./abi %s *.h", test_folder(), arguments);
}

/* The number that packaging/abi.txt records. */
static int
soversion(void)
{
	FILE *file = fopen("packaging/abi.txt", "r");
	int number = -1;

	cr_assert_not_null(file);
	cr_assert_eq(fscanf(file, "SOVERSION %d", &number), 1);
	fclose(file);
	return number;
}

Test(install, the_soname_is_recorded)
{
	cr_expect(run("make abi"));
}

Test(install, a_changed_struct_changes_the_soname)
{
	static const char *const changes[][2] = {
		{"int workers;", "long workers;"}, /* a field's type */
		{"size_t data_length;", ""},       /* a field is gone */
		{"ROLE_PARENT, ROLE_AGENT", "ROLE_AGENT, ROLE_PARENT"},
		{"int messenger_ready(", "void messenger_ready("},
	};
	char now[16], record[16], next[16];
	size_t i;

	snprintf(now, sizeof now, "%d", soversion());
	snprintf(record, sizeof record, "-r %d", soversion());
	snprintf(next, sizeof next, "-r %d", soversion() + 1);
	for (i = 0; i < sizeof changes / sizeof changes[0]; i++) {
		change_header(changes[i][0], changes[i][1]);
		cr_expect_not(abi(now), "%s", changes[i][1]);
		cr_expect_not(abi(record), "%s", changes[i][1]);
		cr_expect(abi(next));
		cr_expect(abi(next + strlen("-r ")));
	}
}

Test(install, a_comment_changes_no_soname_and_a_new_function_is_recorded)
{
	char now[16], record[16];

	snprintf(now, sizeof now, "%d", soversion());
	snprintf(record, sizeof record, "-r %d", soversion());
	change_header("One message. Received:", "A message. Received:");
	cr_expect(abi(now));
	change_header("^struct messenger;", "&\\nint messenger_new(void);");
	cr_expect_not(abi(now));
	cr_expect(abi(record));
	cr_expect(abi(now));
}

/* ---- packaging/licence ---------------------------------------------------------------- */

/* Files of each kind get the two lines once, and still work. */
Test(install, the_licence_is_written_into_each_file)
{
	const char *folder = test_folder();

	write_source("a.c", "/*\n * Text.\n */\nint a;\n");
	write_source("b.c", "#include <stdio.h>\nint main(void) { return 0; } /* end */\n");
	write_source("c.h", "/* One line. */\n#define C 1\n");
	write_source("script", "#!/bin/sh\n# Text.\n\necho works\n");
	write_source("short", "#!/bin/sh\necho works\n");
	write_source("page.1", ".Dd November 29, 2026\n");
	write_source("figure.svg", "<svg></svg>\n");
	write_source("data", "no source\n");
	cr_assert(run("cp -r %s %s.before", folder, folder));
	cr_expect_not(run("packaging/licence %s/*", folder));
	cr_expect(run("packaging/licence -w %s/* >%s.before/list; "
	              "test \"$(wc -l <%s.before/list)\" -eq 7",
	              folder, folder, folder));
	cr_expect(run("packaging/licence %s/*", folder));
	cr_expect(run("cd %s && for file in a.c b.c c.h script short page.1 figure.svg; do "
	              "test \"$(grep -c 'Copyright\\|SPDX' $file)\" -eq 2 || exit 1; done",
	              folder));
	cr_expect(run("cd %s && ${CC:-cc} -c a.c b.c c.h && test \"$(sh script)\" = works && "
	              "test \"$(sh short)\" = works && cmp data %s.before/data",
	              folder, folder));
	cr_expect(run("test \"$(grep -v 'Copyright\\|SPDX\\|^ [*]$\\|^#$' %s/script)\" = "
	              "\"$(cat %s.before/script)\"",
	              folder, folder));
	cr_expect(run("packaging/licence -w %s/* >%s.before/list; test ! -s %s.before/list", folder,
	              folder, folder));
	cr_assert(run("rm -r %s.before", folder));
}
