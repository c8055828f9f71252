# A hundred connections for eight apps; then all of them are greeted.
. labs/lib.sh
start build/labs/06-pre-fork/lab
started
must_print 'connections were accepted'
sed -n '/accepted/p' "$log"
all_greeted()
{
	for app in 0 1 2 3 4 5 6 7; do
		printed "app $app is greeted" 3 || return 1
	done
}
if wait_for 3 all_greeted; then
	echo "all apps are greeted"
else
	echo "an app is not greeted"
fi
kill -TERM "$master"
wait_for 5 dead "$master"
