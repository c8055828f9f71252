# The agent sends a message that claims to be from the master.
. labs/lib.sh
start build/labs/09-identity/lab
started
must_print 'the app hears'
sed -n '/hears/p' "$log"
kill -TERM "$master"
wait_for 5 dead "$master"
