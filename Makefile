# clutch: build it, run it, test it, check it.
#
#	make                    the library and the examples, into build/
#	make run                the data source and the service that caches it, until Ctrl-C
#	make live               a page that shows a cluster alive, until Ctrl-C
#	make test               every test;  make test T=sendmessage  one file of them;
#	                        make test T=routing/every_row  one test
#	make install            headers, libraries and manual pages, into prefix=/usr/local
#	make uninstall          remove them again (more of this: packaging/packaging.mk)
#	make check              the tests, and then the next seven
#	make sanitize           the tests under AddressSanitizer and UBSan
#	make valgrind           a sample of the tests, and two clusters, under valgrind
#	make portable           other compilers, standards, libcs and processors; minutes
#	make portable-short     one of each kind
#	make static             build a small static program with musl, and run it
#	make warnings           everything with gcc and clang, with our flags and with others;
#	                        a warning is an error
#	make tidy               clang-tidy and cppcheck
#	make format-check       clang-format
#	make size               the core has few lines, and no long or deep function
#	make soak               a storm of faults under full traffic, SOAK_SECONDS=60
#	make fuzz               libFuzzer on each parser of a stranger's bytes, FUZZ_SECONDS=600
#	                        in all; FUZZ=cron  one of them
#	make coverage           what the tests do not reach
#	make bench              how fast clutch is, beside bare sockets
#	make bench-ipc          the four ways of examples/ipc, beside each other
#	make bench-bridge       what the bridge between clusters costs
#	make traces             record the traces of draw/traces/ anew
#	make traces-check       do the processes still do what these traces show?
#	make figures            draw the figures from them
#	make lab LAB=1          a copy of the tree that is broken in one place, to be mended;
#	                        CHECK=1: is it mended? See labs/README.md
#	make labs-check         each lab, or LAB=1, is what its page says; SHORT=1: as in CI
#	make model              is the model of model/ the code, and is what it promises true?
#	                        BROKEN=1: is each property found when it is broken?
#	make model-short        a part of it, in less than a minute: as in CI
#	make model-record       the C has changed, and the model has been looked at
#	make mutants            do the tests find it if the core is changed a little? MUTANTS=300
#	make mutants-short      a few of them, in about a minute
#	make docs-check         do text and code say the same? BROKEN=1: does the check see it?
#	make docs-write         record anew what the documents quote and show
#	make book               docs/book/ as one page, build/book.html, with pandoc
#	make chapter CHAPTER=2  what the runs of a chapter need, in build/chapter2
#	make clean              remove build/
#
# Set CC, CFLAGS, CPPFLAGS, LDFLAGS and LDLIBS as you need them. A tiny system sets its
# limits in CPPFLAGS (see messenger.h):  make CPPFLAGS=-DMESSAGE_DATA_MAX=4096
#
# Copyright (c) 2026 the clutch authors
# SPDX-License-Identifier: MIT

# ---- the sources -----------------------------------------------------------

CORE     = sendmessage.c messenger.c agent.c worker.c master.c
PACKAGES = $(wildcard cluster-client/*.c egg-schedule/*.c egg-scripts/*.c redis/*.c)
HELPERS  = $(wildcard examples/http*.c) examples/status.c examples/live_app.c \
           $(addprefix examples/ipc/,rsmq.c queue_lists.c queue_redis.c)
EXAMPLES = $(filter-out $(HELPERS),$(wildcard examples/*.c examples/ipc/*.c))
TESTS    = $(if $(T),$(T_FILES),$(filter-out $(SKIP:%=test/test_%.c),$(wildcard test/test_*.c)))

# T=routing is one file of tests; T=routing/every_row is one test, as docs/divergences.md
# names it, in whichever file.
T_NAME  = $(if $(findstring /,$(T)),$(notdir $(T)))
T_FILES = $(if $(T_NAME),$(shell grep -lE '^(Test\(.*)? *$(T_NAME)[,)]' test/test_*.c),test/test_$(T).c)

# All sources of this project, for the checks.
SOURCES      = $(filter-out $(TEST_SOURCES) build/%,$(wildcard *.c */*.c */*/*.c))
TEST_SOURCES = $(wildcard test/*.c test/soak/*.c)
HEADERS      = $(filter-out build/%,$(wildcard *.h */*.h */*/*.h))

# ---- how it is compiled ----------------------------------------------------

# All build output goes here; the checks that build anew have folders of their own in it.
BUILD   = build
LIBRARY = $(BUILD)/libclutch.a

CFLAGS ?= -O2 -g
WARN    = -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wswitch-enum \
          -Wstrict-prototypes -Wmissing-prototypes -Wwrite-strings \
          -Wcast-qual -Wvla
POSIX   = -std=c99 -D_POSIX_C_SOURCE=200809L
ifeq ($(shell uname -s),Darwin) # it hides the number of processors from plain POSIX
POSIX  += -D_DARWIN_C_SOURCE
endif

# The tests need Criterion, and use more of the system than clutch does. test/criterion
# prints Criterion's flags; make calls it only when a test is built.
GNU               = -std=gnu11 -D_GNU_SOURCE -DCLUTCH_PRIVATE=
CRITERION         = BUILD=$(BUILD) CC='$(CC)' sh test/criterion
CRITERION_COMPILE = $(shell $(CRITERION) compile)
CRITERION_LINK    = $(shell $(CRITERION) link)

COMMA = ,

# make V=1 shows whole commands.
Q = $(if $(V),,@)

# Each object's headers, for make. A compiler that cannot tell them: make DEPEND=
DEPEND = -MMD -MP

COMPILE = $(CC) $(WARN) $(WERROR) -I. $(DEPEND) $(CPPFLAGS) $(CFLAGS)

# ---- build -----------------------------------------------------------------

.DEFAULT_GOAL = all
PROGRAMS      = $(EXAMPLES:%.c=$(BUILD)/%)
TEST_PROGRAMS = $(TESTS:%.c=$(BUILD)/%)

LIBRARY_OBJECTS = $(patsubst %.c,$(BUILD)/%.o,$(CORE) $(PACKAGES))

include packaging/packaging.mk

all: $(LIBRARY) $(SHARED) $(MAN3) $(PROGRAMS)

$(LIBRARY): $(LIBRARY_OBJECTS)
	@echo "  ar  $@"
	$(Q)rm -f $@
	$(Q)$(AR) rcs $@ $^

HTTP = $(BUILD)/examples/http.o $(BUILD)/examples/http_head.o

$(addprefix $(BUILD)/examples/,hello live metrics refresh source): $(HTTP)
$(BUILD)/examples/refresh: $(BUILD)/examples/http_client.o
$(BUILD)/examples/live $(BUILD)/examples/metrics: $(BUILD)/examples/status.o
$(BUILD)/examples/live: $(BUILD)/examples/live_app.o $(BUILD)/examples/live_html.o

# The page is a part of its program: byte by byte, since a string in C may be too short.
$(BUILD)/examples/live_html.c: examples/live.html
	@mkdir -p $(@D)
	$(Q){ echo 'extern const char live_html[]; const char live_html[] = {'; \
		od -An -v -to1 $< | sed "s/ *\([0-7][0-7]*\)/'\\\\\1',/g"; echo '0};'; } >$@

$(BUILD)/examples/live_html.o: $(BUILD)/examples/live_html.c
	@echo "  cc  examples/live.html"
	$(Q)$(COMPILE) $(POSIX) -c -o $@ $<

$(BUILD)/examples/ipc/queue $(BUILD)/examples/ipc/rsmq_call: $(BUILD)/examples/ipc/rsmq.o
$(BUILD)/examples/ipc/queue: $(BUILD)/examples/ipc/queue_lists.o $(BUILD)/examples/ipc/queue_redis.o

$(BUILD)/examples/%: $(BUILD)/examples/%.o $(LIBRARY)
	@echo "  ld  $@"
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $(filter %.o,$^) $(LIBRARY) $(LDLIBS)

$(BUILD)/draw/%: $(BUILD)/draw/%.o $(LIBRARY)
	@echo "  ld  $@"
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $(filter %.o,$^) $(LIBRARY) $(LDLIBS)

$(BUILD)/docs/%: $(BUILD)/docs/%.o
	@echo "  ld  $@"
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LDLIBS)

# The programs of the labs.
$(BUILD)/labs/%/lab: $(BUILD)/labs/%/lab.o $(LIBRARY)
	@echo "  ld  $@"
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $(filter %.o,$^) $(LIBRARY) $(LDLIBS)

$(BUILD)/test/test_%: $(BUILD)/test/test_%.o $(BUILD)/test/harness.o \
                      $(BUILD)/test/runner.o $(LIBRARY)
	@echo "  ld  $@"
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $(filter %.o,$^) $(LIBRARY) $(WRAPS) $(CRITERION_LINK) $(LDLIBS)

$(BUILD)/test/test_fuzz: $(patsubst test/%.c,$(BUILD)/test/%.o,$(filter-out %/fuzz_frame.c,$(wildcard test/fuzz_*.c))) $(HTTP)

# A test makes a call fail by a function of its own: for each __wrap_NAME in its source, and in
# the headers of test/ that it includes, the linker lets the program call that one, not NAME.
WRAPS = $(shell sed -n 's/^__wrap_\([a-z_]*\)[^a-z_].*/-Wl,--wrap=\1/p' \
                $(filter test/%.c test/%.h,$(shell cat $(@F:%=$(BUILD)/test/%.d))))

# Failing system calls: the core once more, with small limits, and with a wrapper for each
# call in the list of test/faults.h. It is not optimized, so that a call in the source is
# one call in the program. The wrappers are not sanitized: they run before a sanitizer is
# ready.
FAULTS_LIMITS = -DMESSAGE_DATA_MAX=131072 -DCHANNEL_READ_SIZE=65536 \
                -DCHANNEL_SOCKET_BUFFER=32768 -DCHANNEL_FLUSH_SIZE=8192 \
                -DCHANNEL_QUEUE_MAX=524288 -DCHANNEL_HIGH_WATER=131072 \
                -DCHANNEL_LOW_WATER=32768 -DCLUTCH_GRACEFUL_TIMEOUT=5000
FAULTS_WRAP   = $(shell sed -n 's/.*X(\([a-z]*\)).*/-Wl,--wrap=\1/p' test/faults.h) \
                -Wl,--wrap=messenger_open -Wl,--wrap=clock_gettime
FAULTS_CORE   = $(CORE:%.c=$(BUILD)/faults/%.o)

$(BUILD)/test/test_faults: $(BUILD)/test/test_faults.o $(BUILD)/test/faults.o \
                           $(BUILD)/test/harness.o $(BUILD)/test/runner.o $(FAULTS_CORE)
	@echo "  ld  $@"
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $(filter %.o,$^) $(FAULTS_WRAP) $(CRITERION_LINK) $(LDLIBS)

$(BUILD)/test/test_faults.o: override CPPFLAGS += $(FAULTS_LIMITS)
$(BUILD)/test/faults.o: override CFLAGS += -fno-sanitize=all

$(BUILD)/faults/%.o: %.c
	@mkdir -p $(@D)
	@echo "  cc  $< (for faults)"
	$(Q)$(COMPILE) $(FAULTS_LIMITS) -O0 -g $(POSIX) -c -o $@ $<

# Traffic with small limits: the core once more, with the same limits, an even smaller
# socket buffer, and a short CLUTCH_STUCK_TIMEOUT.
TRAFFIC_LIMITS = $(FAULTS_LIMITS:-DCHANNEL_SOCKET_BUFFER=%=-DCHANNEL_SOCKET_BUFFER=16384) \
               -DCLUTCH_STUCK_TIMEOUT=1500
TRAFFIC_TESTS  = $(patsubst %,$(BUILD)/test/test_%,traffic processes pause)

$(TRAFFIC_TESTS): %: %.o $(BUILD)/test/harness.o $(BUILD)/test/runner.o $(CORE:%.c=$(BUILD)/traffic/%.o)
	@echo "  ld  $@"
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $(filter %.o,$^) $(WRAPS) $(CRITERION_LINK) $(LDLIBS)

$(TRAFFIC_TESTS:%=%.o): override CPPFLAGS += $(TRAFFIC_LIMITS)

$(BUILD)/traffic/%.o: %.c
	@mkdir -p $(@D)
	@echo "  cc  $< (for traffic)"
	$(Q)$(COMPILE) $(TRAFFIC_LIMITS) $(POSIX) -c -o $@ $<

# Older versions of make take the first pattern rule that matches, so the rule for
# test/soak/ stands before the rule for test/.
$(BUILD)/test/soak/%.o: test/soak/%.c
	@test ! -f $(@D) || rm -f $(@D) # an older Makefile built a program of this name
	@mkdir -p $(@D)
	@echo "  cc  $<"
	$(Q)$(COMPILE) $(GNU) -c -o $@ $<

# In test/test_fuzz.c all targets are in one program, so there each has a name of its own.
FUZZ_NAME = -DLLVMFuzzerTestOneInput=fuzz_$*

$(BUILD)/test/fuzz_%.o: test/fuzz_%.c
	@mkdir -p $(@D)
	@echo "  cc  $<"
	$(Q)$(COMPILE) $(GNU) $(FUZZ_NAME) -c -o $@ $<

$(BUILD)/test/%.o: test/%.c | criterion
	@mkdir -p $(@D)
	@echo "  cc  $<"
	$(Q)$(COMPILE) $(GNU) $(CRITERION_COMPILE) -c -o $@ $<

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	@echo "  cc  $<"
	$(Q)$(COMPILE) $(POSIX) -c -o $@ $<

# The files that each object depends on, headers included: -MMD has listed them.
-include $(wildcard $(BUILD)/*.d $(BUILD)/*/*.d $(BUILD)/*/*/*.d)

# Keep the objects that only pattern rules mention: make would delete them.
.SECONDARY:

# ---- run -------------------------------------------------------------------

# exec: the shell takes the place of the recipe's own shell, so that a signal reaches
# examples/run itself, which stops both clusters.
run: all
	@BUILD=$(BUILD) exec sh examples/run

# A page that shows a cluster, and has buttons that break it: make live PORT=8080
live: $(BUILD)/examples/live
	@exec $< $(PORT:%=--port=%) $(EGG_WORKERS:%=--workers=%)

# ---- traces and figures ----------------------------------------------------

# The traces that are committed, recorded anew; and the figures in the documents, drawn from
# them. traces-check runs each once more, and compares what each process did.
traces: $(BUILD)/draw/runs $(BUILD)/draw/relay $(BUILD)/examples/bridge
	@BUILD=$(BUILD) sh draw/traces/record $(RUN)

figures:
	@sh draw/figures/make

traces-check: $(BUILD)/draw/runs $(BUILD)/draw/relay $(BUILD)/examples/bridge
	@BUILD=$(BUILD) sh draw/traces/check $(RUN)

# ---- test ------------------------------------------------------------------

# The environment tells the tests where the programs are ($BUILD/examples/hello), and how to
# link with the library. The last line is the total: N passed, N failed.
test: all $(TEST_PROGRAMS) | redis-server
	@BUILD=$(BUILD) CC='$(CC)' CFLAGS='$(CFLAGS)' LDFLAGS='$(LDFLAGS)' \
		CRITERION_FLAGS='$(if $(T_NAME),--filter=$(T) )$(CRITERION_FLAGS)' sh test/run $(TEST_PROGRAMS)

# Install Criterion if it is missing; where that is not possible, test/without stands in.
criterion:
	@$(CRITERION)

# Install a Redis server, if that is possible, for the tests that need one.
redis-server:
	@$(if $(filter test/test_redis.c test/test_bridge.c test/test_ipc.c test/test_refresh.c test/test_examples.c,$(TESTS)),sh test/redis,:)

# ---- check -----------------------------------------------------------------

# One after the other, even with -j: tests with deadlines would fail beside other checks.
check:
	$(MAKE) test
	$(MAKE) warnings
	$(MAKE) format-check
	$(MAKE) size
	$(MAKE) tidy
	$(MAKE) sanitize
	$(MAKE) valgrind
	$(MAKE) static

# Each process writes the errors that a sanitizer finds into a file, so that none is missed
# in a child whose exit status no process reads, or whose stderr is closed. (The folder is
# everybody's: some tests become another user.) Leaks are looked for in children, too: see
# test/leaks.h. The processes are slower, and so a wait may take twice as long. The files of
# SKIP look at texts, or build programs of their own: no code that is sanitized runs in them.
SANITIZE    = -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
SANITIZE_CC = $(shell mkdir -p build; echo 'int main(void) { return 0; }' >build/probe.c; \
	for cc in clang gcc $(CC); do \
		$$cc $(SANITIZE) -o build/probe build/probe.c 2>/dev/null && echo $$cc && break; \
	done)

sanitize:
	@cc='$(SANITIZE_CC)'; test -n "$$cc" || \
		{ echo 'make sanitize: no compiler here links $(SANITIZE)' >&2; exit 1; }; \
	rm -rf build/sanitize/report; mkdir -p -m 777 build/sanitize/report; \
	ASAN_OPTIONS="$$ASAN_OPTIONS:detect_leaks=1:log_path=build/sanitize/report/of" \
	UBSAN_OPTIONS="$$UBSAN_OPTIONS:print_stacktrace=1:log_path=build/sanitize/report/of" \
	TEST_TIME_SCALE="$${TEST_TIME_SCALE:-2}" \
	$(MAKE) BUILD=build/sanitize CC="$$cc" CFLAGS='-O1 -g $(SANITIZE) -include test/leaks.h' \
		SKIP='citations install operating without' test; \
	status=$$?; \
	cat build/sanitize/report/of.* >build/sanitize/reports 2>/dev/null; \
	if grep -q '^SUMMARY' build/sanitize/reports; then \
		echo 'make sanitize: all of this is in build/sanitize/reports:'; \
		grep '^SUMMARY' build/sanitize/reports | sort | uniq -c; \
		status=1; \
	fi >&2; \
	exit $$status

# Two clusters from start to end, and the tests of the lower layers that deal with
# descriptors and memory. Errors, lost memory and descriptors left open in any process are
# in build/valgrind/*.log. This runs all tests of these files, and takes minutes:
# make valgrind FILTER='*'
valgrind: all $(patsubst %,build/test/test_%,sendmessage handles forwarding backpressure)
	FILTER='$(FILTER)' sh test/valgrind

# A program with clutch in it as a single file of 96 KiB at most, which needs no library.
# (On a system whose libc is musl: make static MUSL_CC=cc. -Wconversion is off because of
# musl's CMSG_NXTHDR.)
MUSL_CC    = musl-gcc
STATIC_MAX = 98304
static: $(BUILD)/static/examples/ping
	@ls -l $<
	@size=$$(wc -c <$<); test $$size -le $(STATIC_MAX) || \
		{ echo "make static: $< has $$size bytes, more than $(STATIC_MAX)" >&2; exit 1; }
	$<

# The flags for a program that is small on disk and in memory, and so starts fast: no unwind
# tables, no padding between the segments, no function that is never called, no assert.
SMALL = -Os -static -s -DNDEBUG -fno-pie -fno-asynchronous-unwind-tables -ffunction-sections \
        -fdata-sections -Wl,--gc-sections -Wl,-z,noseparate-code -Wl,-z,norelro

$(BUILD)/static/%: %.c $(CORE) $(HEADERS)
	@mkdir -p $(@D)
	@echo "  cc  $@"
	$(Q)$(MUSL_CC) $(POSIX) $(filter-out -Wconversion,$(WARN)) -I. $(CPPFLAGS) $(SMALL) -o $@ \
		$< $(CORE)

# The same source, elsewhere: docs/portability.md.
portable:
	test/portable

portable-short:
	test/portable short

# First everything, with our flags. Then everything but the tests, as other projects compile
# the files that they have copied: with the compiler's default C, with _GNU_SOURCE, and with
# -std=gnu2x, which newer compilers have as their default.
warnings: warnings-gcc warnings-clang

warnings-%:
	$(MAKE) BUILD=build/warnings/$* CC=$* WERROR=-Werror objects
	$(MAKE) BUILD=build/warnings/$*-plain POSIX= $(ELSEWHERE)
	$(MAKE) BUILD=build/warnings/$*-gnu POSIX=-D_GNU_SOURCE $(ELSEWHERE)
	$(MAKE) BUILD=build/warnings/$*-c2x POSIX=-std=gnu2x $(ELSEWHERE)

ELSEWHERE = CC=$* CFLAGS= WARN='-Wall -Wextra' WERROR=-Werror objects TEST_OBJECTS=

TEST_OBJECTS = $(patsubst %.c,$(BUILD)/%.o,$(TEST_SOURCES))
objects: $(patsubst %.c,$(BUILD)/%.o,$(SOURCES)) $(TEST_OBJECTS)

# .clang-tidy says which checks are on, and why the others are off. The tests are left out,
# because neither tool understands Criterion's macros. cppcheck's style checks are off:
# they report the parameters of callbacks, and members that are there to align a union.
tidy: $(SOURCES:%.c=$(BUILD)/tidy/%)
	cppcheck --quiet --enable=warning,performance,portability \
		--inline-suppr --suppress=unmatchedSuppression --suppress=missingIncludeSystem \
		--error-exitcode=1 --std=c99 -D_POSIX_C_SOURCE=200809L -I. $(SOURCES)

$(BUILD)/tidy/%: %.c $(HEADERS) .clang-tidy
	@mkdir -p $(@D)
	clang-tidy --quiet $< -- $(POSIX) -I. $(CPPFLAGS)
	@touch $@

# The most lines of code, as cloc counts them. .clang-tidy says how long and how deep a
# function may be.
SIZE_MAX = 4305
SENDMESSAGE_MAX = 550
size:
	@SIZE_MAX=$(SIZE_MAX) SENDMESSAGE_MAX=$(SENDMESSAGE_MAX) sh test/size messenger.h $(CORE)

format-check:
	clang-format --dry-run -Werror $(SOURCES) $(TEST_SOURCES) $(HEADERS) $(wildcard test/*/*.cc)

# ---- what takes longer ------------------------------------------------------

# A storm of faults under full traffic, for SOAK_SECONDS in all. A run that is interrupted
# (Ctrl-C) keeps its sums in SOAK_STATE, and the same command continues it. SOAK_RESULT=FILE
# writes the table into a file. SOAK_SEED=NUMBER chooses the same faults again; the system
# schedules them differently, so no run is repeated exactly.
SOAK_SECONDS = 60
SOAK_STATE   = build/soak.state
SOAK_PARTS   = $(patsubst %.c,$(BUILD)/%.o,$(wildcard test/soak/*.c)) $(HTTP) \
               $(BUILD)/examples/http_client.o

# exec: the shell becomes the soak test, so that a signal reaches the test itself.
soak: $(BUILD)/test/soak/soak
	@mkdir -p $(dir $(SOAK_STATE))
	@exec $< -s '$(SOAK_SEED)' -f '$(SOAK_STATE)' -o '$(SOAK_RESULT)' $(SOAK_SECONDS)

$(BUILD)/test/soak/soak: $(SOAK_PARTS) $(LIBRARY)
	@echo "  ld  $@"
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $(filter %.o,$^) $(LIBRARY) $(LDLIBS)

# libFuzzer gives the targets test/fuzz_*.c inputs, for FUZZ_SECONDS in all. A run that is
# interrupted (Ctrl-C) keeps its sums in build/fuzz, and the same command continues it. The
# inputs found are kept in CORPUS. FUZZ_RESULT=FILE writes each target's row of the table in
# this file anew. fuzz-merge adds the inputs found that reach more to those of test/corpus.
FUZZ         = $(patsubst test/fuzz_%.c,%,$(wildcard test/fuzz_*.c))
FUZZ_SECONDS = 600
FUZZ_CFLAGS  = -g -O1 -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined
CORPUS       = build/fuzz/corpus

fuzz: fuzz-build
	@CORPUS='$(CORPUS)' RESULT='$(FUZZ_RESULT)' sh test/fuzz '$(FUZZ_SECONDS)' $(FUZZ)

fuzz-merge: fuzz-build
	@CORPUS='$(CORPUS)' sh test/fuzz merge $(FUZZ)

fuzz-build:
	@$(MAKE) BUILD=build/fuzz CC=clang CFLAGS='$(FUZZ_CFLAGS)' CPPFLAGS='$(CPPFLAGS) $(FUZZ_LIMITS)' \
		FUZZ_NAME= $(FUZZ:%=build/fuzz/test/fuzz_%)

# Limits that an input of 4 KiB can reach.
FUZZ_LIMITS = -DREDIS_REPLY_MAX=8192 -DCLUSTER_CLIENT_KEY_MAX=16 -DCLUSTER_CLIENT_KEYS_MAX=4 \
              -DHTTP_HEAD_MAX=512 -DHTTP_BODY_MAX=1024

$(BUILD)/test/fuzz_%: $(BUILD)/test/fuzz_%.o $(HTTP) $(LIBRARY)
	@echo "  ld  $@"
	$(Q)$(CC) $(CFLAGS) -fsanitize=fuzzer $(LDFLAGS) -o $@ $(filter %.o,$^) $(LIBRARY) $(LDLIBS)

coverage:
	@sh test/coverage

# clutch beside bare sockets, a floor that no relay can beat: see bench/run.
bench:
	bench/run

# The bridge between clusters beside its floor, with a Redis of the bench's own.
bench-bridge: $(BUILD)/bench/bridge
	@folder=$$(mktemp -d) || exit 1; \
	$$(sh test/redis server) --port 0 --unixsocket $$folder/redis --save '' >/dev/null & \
	$(BUILD)/bench/bridge unix://$$folder/redis; status=$$?; \
	kill $$!; wait; rm -rf $$folder; exit $$status

$(BUILD)/bench/bridge: $(BUILD)/bench/bridge.o $(LIBRARY)
	@echo "  ld  $@"
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $(filter %.o,$^) $(LIBRARY) $(LDLIBS)

# The four ways of examples/ipc beside each other: see docs/ipc-four-ways.md.
bench-ipc:
	bench/ipc

$(BUILD)/bench/ipc: $(BUILD)/bench/ipc.o $(BUILD)/examples/ipc/rsmq.o $(LIBRARY)
	@echo "  ld  $@"
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $(filter %.o,$^) $(LIBRARY) $(LDLIBS)

# ---- what a student breaks ---------------------------------------------------

lab:
	@sh labs/lab '$(LAB)' $(if $(CHECK),check)

labs-check:
	+@sh labs/check $(if $(SHORT),short) $(LAB)

# ---- the model ---------------------------------------------------------------

model: $(BUILD)/model/storm
	@BUILD=$(BUILD) CC='$(CC)' model/check $(if $(BROKEN),broken,long)

model-short: $(BUILD)/model/storm
	@BUILD=$(BUILD) CC='$(CC)' model/check short

model-record:
	@CC='$(CC)' model/check record

$(BUILD)/model/storm: $(BUILD)/model/storm.o $(LIBRARY)
	@echo "  ld  $@"
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $(filter %.o,$^) $(LIBRARY) $(LDLIBS)

# ---- mutants -----------------------------------------------------------------

# Hours; it may be interrupted (Ctrl-C), and the same command continues it.
MUTANTS      = 300
MUTANTS_SEED = 1
mutants:
	@MUTANTS=$(MUTANTS) SEED=$(MUTANTS_SEED) CC='$(CC)' test/mutants

mutants-short:
	@CC='$(CC)' test/mutants short

# ---- the documents ------------------------------------------------------------

# What they quote, show and name is what is there: docs/check/check. docs-write records
# anew; read the difference before you commit it.
SHOWN = $(BUILD)/draw/runs $(BUILD)/draw/relay $(BUILD)/docs/check/terminal \
        $(patsubst %.c,$(BUILD)/%,$(wildcard labs/*/lab.c))

docs-check: all $(SHOWN)
	@BUILD=$(BUILD) sh docs/check/check $(if $(BROKEN),-b) $(FILE)

docs-write: all $(SHOWN)
	@BUILD=$(BUILD) sh docs/check/check -w $(FILE)

book:
	@BUILD=$(BUILD) sh docs/check/book

chapter: all $(SHOWN)
	@BUILD=$(BUILD) sh docs/check/chapter '$(CHAPTER)'

clean:
	rm -rf $(BUILD)

.PHONY: all run live traces figures traces-check test criterion redis-server check sanitize valgrind \
	static portable portable-short warnings objects size tidy format-check soak fuzz fuzz-merge \
	fuzz-build coverage bench bench-ipc bench-bridge lab labs-check model model-short \
	model-record mutants mutants-short docs-check docs-write book chapter clean
