# One app is stopped. Do the others hear each other, and does the master obey?
. labs/lib.sh
start build/labs/03-never-block/lab
started
must_print 'has heard'
set -- $(children)
kill -STOP "$2"
sleep 2 # until the queue and the socket of that app are full
before=$(grep -c 'has heard' "$log")
if wait_for 4 printed 'has heard' $((before + 2)); then
	echo "the second app hears hellos"
else
	echo "the second app hears nothing any more"
fi
kill -TERM "$master"
if wait_for 5 dead "$master"; then
	echo "SIGTERM has ended the cluster"
else
	echo "5 s after SIGTERM the master is still there"
fi
