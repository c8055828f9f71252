# The agent, which is the leader, is killed. What does the app get from the next one?
. labs/lib.sh
start build/labs/13-leader/lab
started
must_print 'the app hears'
must_print 'the app calls'
set -- $(children)
kill -KILL "$1"
must_print 'the app calls' 2
echo "a call: the next agent answers"
if wait_for 2 printed 'the app hears' 2; then
	echo "the subscription: the app hears the next agent's value"
else
	echo "the subscription: the app hears nothing"
fi
kill_list="$kill_list $(children | tr '\n' ' ')"
kill -TERM "$master"
wait_for 5 dead "$master"
