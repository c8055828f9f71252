# What a packager needs: the shared library, make install, make uninstall, make dist.
# The Makefile includes this file.
#
#	make install            into prefix=/usr/local; DESTDIR=FOLDER stages it
#	make uninstall          remove what make install has installed
#	make abi                does the soname stand for the public structs?
#	make abi-record         write down what it stands for
#	make licence            does each source file say whose it is?
#	make dist               a tarball of what is committed: build/clutch-VERSION.tar.gz
#	make dist-check         unpack it, build it, test a part of it, install it
#
# The GNU variables: prefix, exec_prefix, libdir, includedir, datarootdir, mandir, DESTDIR,
# INSTALL, INSTALL_DATA, INSTALL_PROGRAM. Give the same CPPFLAGS to make and to make install.
#
# Copyright (c) 2026 the clutch authors
# SPDX-License-Identifier: MIT

prefix       = /usr/local
exec_prefix  = $(prefix)
libdir       = $(exec_prefix)/lib
includedir   = $(prefix)/include
datarootdir  = $(prefix)/share
mandir       = $(datarootdir)/man
pkgconfigdir = $(libdir)/pkgconfig

INSTALL         = install
INSTALL_DATA    = $(INSTALL) -m 644
INSTALL_PROGRAM = $(INSTALL) -m 755

VERSION := $(shell sed -n 's/^.define CLUTCH_VERSION "\(.*\)"/\1/p' messenger.h)

# The number in the soname. A program that was linked with one soname never gets a library of
# another. Raise it when a public struct, enum or function changes: make abi tells.
SOVERSION = 1

# ---- the public headers -----------------------------------------------------

PUBLIC    = messenger.h cluster-client/cluster_client.h egg-schedule/egg_schedule.h \
            egg-scripts/egg_scripts.h redis/bridge.h redis/redis.h
INSTALLED = $(PUBLIC:%=$(BUILD)/include/clutch/%)

$(BUILD)/include/clutch/%.h: %.h packaging/header
	@mkdir -p $(@D)
	$(Q)packaging/header $< '$(CC) -E $(POSIX) -I. $(CPPFLAGS)' >$@.new
	@mv $@.new $@

abi abi-record: $(INSTALLED)
	@packaging/abi $(if $(filter abi-record,$@),-r) $(SOVERSION) $(INSTALLED)

# ---- the shared library -----------------------------------------------------

# It exports what the public headers declare, and nothing else, where the linker has version
# scripts (those of Linux, the BSDs and Hurd have; that of macOS has a list of its own).
ifeq ($(shell uname -s),Darwin)
SHARED_NAME = libclutch.$(VERSION).dylib
SONAME      = libclutch.$(SOVERSION).dylib
SHARED_LINK = libclutch.dylib
SHARED_HOW  = -dynamiclib -install_name $(libdir)/$(SONAME) -current_version $(VERSION) \
              -exported_symbols_list $(BUILD)/symbols
else
SHARED_NAME = libclutch.so.$(VERSION)
SONAME      = libclutch.so.$(SOVERSION)
SHARED_LINK = libclutch.so
SHARED_HOW  = -shared -Wl,-soname=$(SONAME) $(VERSION_SCRIPT)
endif
SHARED = $(BUILD)/$(SHARED_NAME)

# The same objects are in both libraries. Without -fno-semantic-interposition gcc would not
# put a public function in its caller's place; with it the code is as fast as without -fPIC.
PIC = -fPIC -fno-semantic-interposition
$(LIBRARY_OBJECTS): override CFLAGS += $(PIC)

VERSION_SCRIPT = $(shell echo 'int clutch_now(void); int clutch_now(void) { return 0; }' \
		>$(BUILD)/probe.c && \
	$(CC) -shared -fPIC -Wl,--version-script=$(BUILD)/symbols -o $(BUILD)/probe.so \
		$(BUILD)/probe.c 2>/dev/null && echo -Wl,--version-script=$(BUILD)/symbols; \
	rm -f $(BUILD)/probe.c $(BUILD)/probe.so)

$(BUILD)/symbols: $(INSTALLED) packaging/declarations
ifeq ($(shell uname -s),Darwin)
	$(Q)packaging/declarations -f $(INSTALLED) | sed 's/^/_/' >$@
else
	$(Q)packaging/declarations -f $(INSTALLED) | \
		awk 'BEGIN { print "CLUTCH_$(SOVERSION) {\nglobal:" } { print $$0 ";" } \
			END { print "local: *;\n};" }' >$@
endif

$(SHARED): $(LIBRARY_OBJECTS) $(BUILD)/symbols
	@echo "  ld  $@"
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) $(SHARED_HOW) -o $@ $(LIBRARY_OBJECTS) $(LDLIBS)
	$(Q)ln -sf $(SHARED_NAME) $(BUILD)/$(SONAME)
	$(Q)ln -sf $(SONAME) $(BUILD)/$(SHARED_LINK)

# ---- manual pages ---------------------------------------------------------------

# The pages about functions are made from the installed headers, so that the two cannot
# differ; the others are in man/.
MAN1 = $(wildcard man/*.1)
MAN7 = $(wildcard man/*.7)
MAN3 = $(addprefix $(BUILD)/man/,messenger.3 start_cluster.3 channel.3 cluster_client.3 \
       egg_schedule.3 egg_scripts.3 bridge.3 redis.3)

MAN_DATE = November 29, 2026
MAN_MAKE = @mkdir -p $(@D); packaging/manual $(basename $(@F)) $1 '$(MAN_DATE)' $2 $< $3 >$@.new \
           && mv $@.new $@

$(BUILD)/man/messenger.3: $(BUILD)/include/clutch/messenger.h
	$(call MAN_MAKE,'talk to the other processes of a cluster',\
		'channel(3)$(COMMA) start_cluster(3)$(COMMA) clutch(7)',\
		'$(COMMA)options$(COMMA)messenger_open$(COMMA)frame')

$(BUILD)/man/start_cluster.3: $(BUILD)/include/clutch/messenger.h
	$(call MAN_MAKE,'start a cluster: one master$(COMMA) one agent$(COMMA) app workers',\
		'egg_scripts(3)$(COMMA) messenger(3)$(COMMA) clutch(7)',\
		'options$(COMMA)messenger_open')

$(BUILD)/man/channel.3: $(BUILD)/include/clutch/messenger.h
	$(call MAN_MAKE,'messages over a socket between two processes',\
		'messenger(3)$(COMMA) clutch(7)','frame')

$(BUILD)/man/cluster_client.3: $(BUILD)/include/clutch/cluster-client/cluster_client.h
	$(call MAN_MAKE,'one connection to a remote service for the whole cluster',\
		'messenger(3)$(COMMA) clutch(7)')

$(BUILD)/man/egg_schedule.3: $(BUILD)/include/clutch/egg-schedule/egg_schedule.h
	$(call MAN_MAKE,'jobs by the clock','messenger(3)$(COMMA) clutch(7)')

$(BUILD)/man/egg_scripts.3: $(BUILD)/include/clutch/egg-scripts/egg_scripts.h
	$(call MAN_MAKE,'the command line of a program with a cluster',\
		'egg-scripts(1)$(COMMA) start_cluster(3)$(COMMA) clutch(7)')

$(BUILD)/man/bridge.3: $(BUILD)/include/clutch/redis/bridge.h
	$(call MAN_MAKE,'messages between the clusters of several machines',\
		'messenger(3)$(COMMA) redis(3)$(COMMA) clutch(7)')

$(BUILD)/man/redis.3: $(BUILD)/include/clutch/redis/redis.h
	$(call MAN_MAKE,'a client of Redis that does not block',\
		'bridge(3)$(COMMA) messenger(3)$(COMMA) clutch(7)')

$(MAN3): packaging/manual

# ---- install ----------------------------------------------------------------

# In clutch.pc a folder below prefix stands as ${prefix}/..., so that pkg-config
# --define-prefix finds all of it where a whole tree was moved.
below_prefix = $(if $(filter $(prefix),$1),$${prefix},$(patsubst $(prefix)/%,$${prefix}/%,$1))

HEADER_FOLDERS = $(sort $(dir $(PUBLIC:%=clutch/%)))

# man messenger_on shows messenger(3): do $1 for each name that is not its page's own.
EACH_NAME = for page in $(basename $(notdir $(MAN3))); do \
		for name in $$(sed -n 's/^[.]Nm \([a-z_]*\).*/\1/p' $(BUILD)/man/$$page.3); do \
			test $$name = $$page || $1 || exit 1; \
		done; \
	done

install: all
	$(INSTALL) -d $(HEADER_FOLDERS:%='$(DESTDIR)$(includedir)/%') \
		'$(DESTDIR)$(pkgconfigdir)' '$(DESTDIR)$(mandir)/man1' \
		'$(DESTDIR)$(mandir)/man3' '$(DESTDIR)$(mandir)/man7'
	for header in $(PUBLIC); do \
		$(INSTALL_DATA) $(BUILD)/include/clutch/$$header \
			'$(DESTDIR)$(includedir)/clutch/'$$header || exit 1; \
	done
	$(INSTALL_DATA) $(LIBRARY) '$(DESTDIR)$(libdir)/libclutch.a'
	$(INSTALL_PROGRAM) $(SHARED) '$(DESTDIR)$(libdir)/$(SHARED_NAME)'
	ln -sf $(SHARED_NAME) '$(DESTDIR)$(libdir)/$(SONAME)'
	ln -sf $(SONAME) '$(DESTDIR)$(libdir)/$(SHARED_LINK)'
	$(INSTALL_DATA) $(MAN1) '$(DESTDIR)$(mandir)/man1'
	$(INSTALL_DATA) $(MAN3) '$(DESTDIR)$(mandir)/man3'
	$(INSTALL_DATA) $(MAN7) '$(DESTDIR)$(mandir)/man7'
	$(call EACH_NAME,ln -sf $$page.3 '$(DESTDIR)$(mandir)/man3/'$$name.3)
	sed -e 's|@prefix@|$(prefix)|' -e 's|@exec_prefix@|$(call below_prefix,$(exec_prefix))|' \
		-e 's|@libdir@|$(call below_prefix,$(libdir))|' \
		-e 's|@includedir@|$(call below_prefix,$(includedir))|' \
		-e 's|@VERSION@|$(VERSION)|' packaging/clutch.pc.in \
		>'$(DESTDIR)$(pkgconfigdir)/clutch.pc'
	chmod 644 '$(DESTDIR)$(pkgconfigdir)/clutch.pc'

# A folder is removed if it is clutch's own, and empty.
uninstall: $(MAN3)
	for header in $(PUBLIC); do \
		rm -f '$(DESTDIR)$(includedir)/clutch/'$$header; \
	done
	rm -f '$(DESTDIR)$(libdir)/libclutch.a' '$(DESTDIR)$(libdir)/$(SHARED_NAME)' \
		'$(DESTDIR)$(libdir)/$(SONAME)' '$(DESTDIR)$(libdir)/$(SHARED_LINK)' \
		'$(DESTDIR)$(pkgconfigdir)/clutch.pc'
	for page in $(notdir $(MAN1) $(MAN3) $(MAN7)); do \
		rm -f '$(DESTDIR)$(mandir)'/man[137]/$$page; \
	done
	$(call EACH_NAME,rm -f '$(DESTDIR)$(mandir)/man3/'$$name.3)
	for folder in $(filter-out clutch/,$(HEADER_FOLDERS)) clutch; do \
		rmdir '$(DESTDIR)$(includedir)/'$$folder 2>/dev/null || :; \
	done

# ---- whose it is -----------------------------------------------------------------

# packaging/licence -w writes the two lines into new files.
licence:
	@packaging/licence

# ---- a tarball ----------------------------------------------------------------

DIST = clutch-$(VERSION)

# The same commit gives the same bytes: gzip -n leaves out the time.
dist:
	@test -e .git || { echo 'make dist: this is not a git repository' >&2; exit 1; }
	@mkdir -p $(BUILD)
	git archive --format=tar --prefix=$(DIST)/ HEAD | gzip -n -9 >$(BUILD)/$(DIST).tar.gz
	@ls -l $(BUILD)/$(DIST).tar.gz

dist-check: dist
	rm -rf $(BUILD)/dist
	mkdir -p $(BUILD)/dist
	gzip -dc $(BUILD)/$(DIST).tar.gz | (cd $(BUILD)/dist && tar xf -)
	$(MAKE) -C $(BUILD)/dist/$(DIST) BUILD=build all
	$(MAKE) -C $(BUILD)/dist/$(DIST) BUILD=build T=sendmessage test
	cd $(BUILD)/dist && $(MAKE) -C $(DIST) BUILD=build DESTDIR="$$PWD/stage" install && \
		test -n "$$(find stage ! -type d)" && \
		$(MAKE) -C $(DIST) BUILD=build DESTDIR="$$PWD/stage" uninstall && \
		test -z "$$(find stage ! -type d)"

.PHONY: install uninstall abi abi-record licence dist dist-check
