#!/usr/bin/env bash
# Answers: what the ring does for a call: requests submitted, completions posted, work run later in the task,
# waits, polls armed, and requests handed to worker threads (which is always too many).
#
# perf/uring.sh [--calls N] [OPTIONS OF sendright bench only]
# Without options: each way on the uring driver. Wants root, or leave to read tracepoints.

set -euo pipefail
. "${0%"${0##*/}"}common.sh"

take_words "$@"
need perf awk cat mktemp rm sort
need_tracepoints
prepare

count() {
    local times=$1
    shift
    perf record -q -e 'io_uring:*' -o "$SCRATCH/data" -- \
        "$PROGRAM" bench only --calls "$((CALLS * times))" "$@" >/dev/null 2>"$SCRATCH/errors" ||
        { cat "$SCRATCH/errors" >&2; exit 1; }
    perf script -i "$SCRATCH/data" -F comm,pid,event,trace >"$SCRATCH/events.$times" 2>/dev/null
}

look() {
    local name=$1
    shift
    case $name in *'--driver epoll'*) return ;; esac
    count 1 "$@"
    count 2 "$@"
    printf '%s\n' "$name"
    awk -v calls="$CALLS" '
        FNR == 1 { client = ""; times = FILENAME ~ /2$/ ? 1 : -1 }
        {
            if (!match($0, / [0-9]+ +io_uring:[a-z_]+/)) next
            split(substr($0, RSTART, RLENGTH), part, " ")
            if (client == "") client = part[1]
            side = part[1] == client ? "client" : "server"
            event = part[2]
            # Which request it is, where the event says so.
            if (match($0, /opcode [A-Z0-9_]+/)) event = event " " substr($0, RSTART + 7, RLENGTH - 7)
            count[side " " event] += times
        }
        END { for (what in count) if (count[what] > calls / 500) printf "  %8.3f  %s\n", count[what] / calls, what }
    ' "$SCRATCH/events.1" "$SCRATCH/events.2" | sort -k2,2 -k1,1rn
}

for_each_way look
