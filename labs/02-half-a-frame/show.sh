# Two messages of 1 MiB: do they arrive?
. labs/lib.sh
start build/labs/02-half-a-frame/lab
started
wait_for 3 printed 'the agent hears' 2
words | sed -n -e 's/#[0-9]*:[0-9]*//' -e 's/ (app [0-9]*)$//' -e '/hears/p' -e '/broke/p' | sort | uniq | head -n 2
kill -TERM "$master"
wait_for 5 dead "$master"
