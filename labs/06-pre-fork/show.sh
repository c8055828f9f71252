# A hundred connections for two apps; then both are greeted.
. labs/lib.sh
start build/labs/06-pre-fork/lab
started
must_print 'connections were accepted'
sed -n '/accepted/p' "$log"
wait_for 2 printed 'app 1 is greeted' 3 && wait_for 2 printed 'app 2 is greeted' 3
printed 'app 1 is greeted' 3 && printed 'app 2 is greeted' 3 && echo 'both apps are greeted' ||
	echo 'an app is not greeted'
kill -TERM "$master"
wait_for 5 dead "$master"
