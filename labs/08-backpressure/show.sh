# One app is stopped. How much memory does the master need for what is sent to it?
. labs/lib.sh
start build/labs/03-never-block/lab
started
must_print 'has heard'
set -- $(children)
kill -STOP "$2"
above() { [ "$(memory "$master")" -gt 65536 ]; }
if wait_for 5 above; then
	echo "the master has more than 64 MiB"
else
	echo "after 5 s the master has less than 64 MiB"
fi
