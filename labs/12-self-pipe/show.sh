# SIGTERM while the master is busy with SIGUSR1.
. labs/lib.sh
start build/labs/12-self-pipe/lab
must_print 'the agent has sent'
if wait_for 2 dead "$master"; then
	echo "SIGTERM has ended the cluster"
else
	echo "2 s after SIGTERM the master has not noticed it"
fi
wait_for 10 dead "$master" && echo "the cluster has ended" # the agent has woken the master
