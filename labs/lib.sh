# Functions for the show.sh of each lab. They run in the top folder of a tree: the
# student's, or an unbroken one.

set -u

# What is left when the script ends, however it ends, is killed.
kill_list=''
scratch=$(mktemp -d) || exit 1
log=$scratch/log
clean_up()
{
	# shellcheck disable=SC2086
	[ -z "$kill_list" ] || kill -CONT $kill_list 2>/dev/null
	# shellcheck disable=SC2086
	[ -z "$kill_list" ] || kill -KILL $kill_list 2>/dev/null
	rm -rf "$scratch"
}
trap clean_up EXIT
trap 'exit 1' HUP INT TERM

# What a test of the caller's may have set.
unset CLUTCH_TRACE EGG_WORKERS EGG_SERVER_ENV EGG_APP_CLOSE_TIMEOUT EGG_AGENT_CLOSE_TIMEOUT
export EGG_MASTER_CLOSE_TIMEOUT=1000

# start PROGRAM [ARGUMENT]: build it if need be, and start it; $master is its pid, $log
# what it prints. A student at a terminal learns why nothing happens meanwhile.
start()
{
	if [ -t 2 ] && ! make -q "$1" >/dev/null 2>&1; then
		echo "(building $1: some seconds)" >&2
	fi
	make -s "$1" >"$scratch/make" 2>&1 || { cat "$scratch/make" >&2; exit 2; }
	: >"$log"
	"$@" >>"$log" 2>&1 </dev/null &
	master=$!
	kill_list="$kill_list $master"
}

# wait_for SECONDS COMMAND: until the command succeeds. False: it did not.
wait_for()
{
	tenths=$(($1 * 10))
	shift
	until "$@"; do
		[ "$tenths" -gt 0 ] || return 1
		tenths=$((tenths - 1))
		sleep 0.1
	done
}

# printed TEXT [COUNT]: has this text been printed (so often)?
printed()
{
	[ "$(grep -c -- "$1" "$log")" -ge "${2:-1}" ]
}

# must_print TEXT [COUNT]: wait for it; without it there is nothing to show.
must_print()
{
	wait_for 10 printed "$@" && return
	echo "this was not printed within 10 s: $1" >&2
	cat "$log" >&2
	exit 2
}

# The lines of the log without their heads (time, level, pid, process).
words()
{
	sed 's/^[0-9-]* [0-9:.]* [A-Z]* [0-9]* [a-z]*\( [0-9]*\)*: //' "$log"
}

# The pids of the children, as the master's log has them: the agent first.
children()
{
	sed -n 's/.*_worker#[0-9]*:\([0-9]*\) start\( (app [0-9]*)\)*$/\1/p' "$log"
}

# The letter of a process's state (S sleeps, T is stopped, Z is a zombie); empty: gone.
state()
{
	if [ -r "/proc/$1/stat" ]; then
		sed 's/.*) //; s/ .*//' "/proc/$1/stat" 2>/dev/null
	elif [ ! -e /proc/self/stat ]; then
		ps -o stat= -p "$1" | cut -c 1
	fi
}

alive()
{
	case $(state "$1") in
	'' | Z | X) return 1 ;;
	esac
}

dead()
{
	! alive "$1"
}

# How many of these processes are alive?
count_alive()
{
	number=0
	for pid; do
		if alive "$pid"; then
			number=$((number + 1))
		fi
	done
	echo "$number"
}

# The memory of a process in KiB.
memory()
{
	ps -o rss= -p "$1" 2>/dev/null || sed -n 's/VmRSS:[^0-9]*\([0-9]*\).*/\1/p' "/proc/$1/status"
}

# started: all are ready.
started()
{
	must_print 'to stop it'
	# shellcheck disable=SC2046
	set -- $(children)
	kill_list="$kill_list $*"
}
