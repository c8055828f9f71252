# A Redis, and a cluster of one app that dies of a message. Does the next app get the message?
. labs/lib.sh
server=$(sh test/redis server) || { echo "this lab needs a Redis server" >&2; exit 2; }
"$server" --port 0 --unixsocket "$scratch/redis" --dir "$scratch" --save '' >/dev/null 2>&1 &
kill_list="$kill_list $!"
wait_for 5 test -S "$scratch/redis"
start build/labs/14-acknowledge/lab "unix://$scratch/redis"
started
must_print 'has done "three"'
sed -n '/the .* app has done/p' "$log"
kill_list="$kill_list $(children | tr '\n' ' ')"
kill -TERM "$master"
wait_for 5 dead "$master"
