#!/usr/bin/env bash
# Answers: of the time a call takes, how much each side sleeps, how much it waits for a CPU although it could
# run, and how much it runs; and in which kernel functions it went to sleep.
#
# perf/offcpu.sh [--calls N] [OPTIONS OF sendright bench only]
# Without options: each way on each driver. Wants root, or leave to read tracepoints of all processes.

set -euo pipefail
. "${0%"${0##*/}"}common.sh"

take_words "$@"
need perf awk cat mktemp rm
need_tracepoints
prepare

look() {
    local name=$1 called=${PROGRAM##*/}
    shift
    # What a process is called is cut short by the kernel.
    called=${called:0:15}
    # On all CPUs: that somebody is woken or gets a CPU is an event of whoever ran there before.
    perf record -q -a -g -o "$SCRATCH/data" \
        -e sched:sched_process_fork --filter "parent_comm == \"$called\"" \
        -e sched:sched_switch --filter "prev_comm == \"$called\" || next_comm == \"$called\"" \
        -e sched:sched_wakeup --filter "comm == \"$called\"" -- \
        "$BASH" -c 'echo $$ >"$1"; shift; exec "$@"' only "$SCRATCH/client" \
        "$PROGRAM" bench only --calls "$CALLS" "$@" >/dev/null 2>"$SCRATCH/errors" ||
        { cat "$SCRATCH/errors" >&2; exit 1; }
    perf script -i "$SCRATCH/data" --ns -F comm,pid,time,event,ip,sym,trace 2>/dev/null >"$SCRATCH/events"
    awk -v calls="$CALLS" -v name="$name" -v client="$(cat "$SCRATCH/client")" '
        function value(key) {
            if (!match($0, " " key "=[^ ]*")) return ""
            return substr($0, RSTART + length(key) + 2, RLENGTH - length(key) - 2)
        }
        BEGIN { side[client] = "client" }
        /sched:sched_/ {
            match($0, /[0-9]+\.[0-9]+:/)
            now = substr($0, RSTART, RLENGTH - 1) * 1000000
            leaving = ""
        }
        # The first it starts is its server.
        /sched:sched_process_fork:/ && server == "" && value("pid") == client {
            server = value("child_pid")
            side[server] = "server"
        }
        /sched:sched_wakeup:/ {
            pid = value("pid")
            if (state[pid] == "asleep") {
                slept[pid] += now - since[pid]
                since[pid] = now
                state[pid] = "waiting"
            }
        }
        /sched:sched_switch:/ {
            pid = value("next_pid")
            if (state[pid] == "waiting") waited[pid] += now - since[pid]
            state[pid] = "running"
            since[pid] = now
            pid = value("prev_pid")
            if (state[pid] == "running") ran[pid] += now - since[pid]
            state[pid] = value("prev_state") ~ /^R/ ? "waiting" : "asleep"
            since[pid] = now
            if (state[pid] == "asleep" && pid in side) { leaving = pid; depth = 0; path = "" }
        }
        /sched:sched_/ { next }
        # The stack of who goes to sleep: the first functions that are not the scheduler itself.
        leaving != "" && NF >= 2 && $1 ~ /^[0-9a-f]+$/ {
            if ($2 ~ /^(__schedule|schedule|perf_trace_|__traceiter_|__bpf_trace)/) next
            if (depth++ < 4) path = path (depth == 1 ? "" : " < ") $2
        }
        NF == 0 && leaving != "" {
            places[side[leaving] " %6.3f sleeps per call in " path]++
            leaving = ""
        }
        END {
            for (n = 1; n <= 2; n++) {
                pid = n == 1 ? client : server
                printf "%-50s %s µs per call: %7.2f running, %7.2f waiting for a CPU, %7.2f asleep\n", \
                    name, side[pid], ran[pid] / calls, waited[pid] / calls, slept[pid] / calls
            }
            for (place in places)
                if (places[place] > calls / 50) printf "  " place "\n", places[place] / calls
        }
    ' "$SCRATCH/events"
}

for_each_way look
