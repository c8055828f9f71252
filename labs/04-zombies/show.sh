# kill -9 of an app, and SIGTERM: what becomes of the dead?
. labs/lib.sh
start build/examples/action1
started
set -- $(children)
kill -KILL "$2"
must_print '_worker#4.* start'
reaped() { [ -z "$(state "$1")" ]; }
if wait_for 2 reaped "$2"; then
	echo "the dead app is gone"
else
	echo "the dead app is in state $(state "$2")"
fi
kill_list="$kill_list $(children | tail -n 1)"
kill -TERM "$master"
if wait_for 5 dead "$master"; then
	echo "SIGTERM has ended the cluster"
else
	echo "5 s after SIGTERM the master is still there"
fi
