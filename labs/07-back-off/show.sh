# From now on no app can start, and one of two is killed.
. labs/lib.sh
start build/labs/07-back-off/lab "$scratch/broken"
started
: >"$scratch/broken"
set -- $(children)
kill -KILL "$2"
sleep 3
count=$(grep -c 'app_worker#.* start ' "$log")
if [ "$count" -le 6 ]; then
	echo "within 3 s the master has forked a few replacements"
elif [ "$count" -ge 40 ]; then
	echo "within 3 s the master has forked dozens of replacements"
else
	echo "within 3 s the master has forked $count apps"
fi
kill -TERM "$master"
wait_for 5 dead "$master"
