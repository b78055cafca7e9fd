#!/usr/bin/env bash
# Answers: how often a call has the CPU change hands, on each side, and how often each side wakes somebody up.
# A call that waits for one answer on one CPU costs one switch and one wake-up on each side, and nothing more.
#
# perf/switches.sh [--calls N] [OPTIONS OF sendright bench only]
# Without options: two lines for each way on each driver. Wants root, or leave to read tracepoints.

set -euo pipefail
. "${0%"${0##*/}"}common.sh"

take_words "$@"
need perf awk cat mktemp rm
need_tracepoints
prepare

count() {
    local times=$1
    shift
    perf record -q -e sched:sched_switch,sched:sched_wakeup -o "$SCRATCH/data" -- \
        "$PROGRAM" bench only --calls "$((CALLS * times))" "$@" >/dev/null 2>"$SCRATCH/errors" ||
        { cat "$SCRATCH/errors" >&2; exit 1; }
    perf script -i "$SCRATCH/data" --ns -F comm,pid,event,trace >"$SCRATCH/events.$times" 2>/dev/null
}

look() {
    local name=$1
    shift
    count 1 "$@"
    count 2 "$@"
    awk -v calls="$CALLS" -v name="$name" '
        # The process seen first is the client: it starts the other.
        FNR == 1 { client = ""; times = FILENAME ~ /2$/ ? 1 : -1 }
        {
            if (!match($0, / [0-9]+ +sched:/)) next
            pid = substr($0, RSTART, RLENGTH) + 0
            if (client == "") client = pid
            # What is started beside a server shares its number with nobody we count twice.
            side = pid == client ? "client" : "server"
            if (/sched:sched_wakeup:/) wakes[side] += times
            else if (/prev_state=R/) forced[side] += times
            else slept[side] += times
        }
        END {
            for (s = 1; s <= 2; s++) {
                side = s == 1 ? "client" : "server"
                printf "%-50s %s per call: %6.3f to sleep, %6.3f while it could run, %6.3f wake-ups\n", \
                    name, side, slept[side] / calls, forced[side] / calls, wakes[side] / calls
            }
        }
    ' "$SCRATCH/events.1" "$SCRATCH/events.2"
}

for_each_way look
