# Fifty handles are sent. How many descriptors are open then?
. labs/lib.sh
start build/labs/10-descriptor-passing/lab
started
must_print 'after 50 handles'
first=$(sed -n 's/^after 0 handles.* has \([0-9]*\) .*/\1/p' "$log")
last=$(sed -n 's/^after 50 handles.* has \([0-9]*\) .*/\1/p' "$log")
echo "after 50 handles the agent has $((last - first)) descriptors more than before"
kill -TERM "$master"
wait_for 5 dead "$master"
