#!/usr/bin/env bash
# Answers: how many system calls a call takes, on each side, and which.
# By strace, on one CPU, where both sides sleep and nothing is found by luck.
#
# perf/syscalls.sh [--calls N] [OPTIONS OF sendright bench only]
# Without options: two lines for each way on each driver.

set -euo pipefail
. "${0%"${0##*/}"}common.sh"

take_words "$@"
need strace awk mkdir mktemp rm
prepare

count() {
    local times=$1
    shift
    rm -rf "$SCRATCH/$times"
    mkdir "$SCRATCH/$times"
    strace -ff -qq -e signal=none -o "$SCRATCH/$times/trace" \
        "$PROGRAM" bench only --calls "$((CALLS * times))" "$@" >/dev/null
}

look() {
    local name=$1
    shift
    count 1 "$@"
    count 2 "$@"
    # The client is the process that was started with words; every other file is a server's.
    awk -v calls="$CALLS" -v name="$name" '
        FNR == 1 { side = "server" }
        /^execve\(.*"bench", "only"/ { side = "client" }
        {
            call = $0
            if (!sub(/\(.*/, "", call)) next
            times = FILENAME ~ /\/2\/trace[^\/]*$/ ? 1 : -1
            count[side, call] += times
            sum[side] += times
            calls_seen[call] = 1
        }
        END {
            for (s = 1; s <= 2; s++) {
                side = s == 1 ? "client" : "server"
                line = ""
                while (1) {
                    best = ""
                    for (call in calls_seen)
                        if (count[side, call] > calls / 500 && (best == "" || count[side, call] > count[side, best]))
                            best = call
                    if (best == "") break
                    line = line sprintf("  %s %.3f", best, count[side, best] / calls)
                    count[side, best] = 0
                }
                printf "%-50s %s %7.3f system calls per call:%s\n", name, side, sum[side] / calls, line
            }
        }
    ' "$SCRATCH"/1/trace* "$SCRATCH"/2/trace*
}

for_each_way look
