# kill -9 of the master: do the agent and the three apps of action1 leave?
. labs/lib.sh
start build/examples/action1
started
kill -KILL "$master"
for pid in $(children); do
	wait_for 2 dead "$pid"
done
# shellcheck disable=SC2046
echo "2 s after the master's death, $(count_alive $(children)) of 4 children are alive"
