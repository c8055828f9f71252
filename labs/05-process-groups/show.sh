# Ctrl-C: a SIGINT to the whole process group of the terminal's foreground.
. labs/lib.sh
start build/labs/05-process-groups/lab alone
started
kill -INT "-$master"
wait_for 5 dead "$master"
if printed 'agent .* has saved'; then
	echo "the agent has saved its work"
else
	echo "the agent has ended, and its work is lost"
fi
