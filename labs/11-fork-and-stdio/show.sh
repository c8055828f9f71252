# One printf, and then three forks. The output is a file, so that stdio keeps the line
# in its buffer.
. labs/lib.sh
start build/labs/11-fork-and-stdio/lab
started
kill -TERM "$master"
wait_for 5 dead "$master"
echo "lines: $(grep -c 'hello, once' "$log")"
