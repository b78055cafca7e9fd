#!/usr/bin/env bash
# Answers: how many user-space instructions a call takes, on each side, and which functions they are in.
# By callgrind, so the same number each time, on any machine with the same compiler.
#
# perf/instructions.sh [--calls N] [--functions] [OPTIONS OF sendright bench only]
# Without options: a line for each way on each driver. With --functions: each function's own share, too.

set -euo pipefail
. "${0%"${0##*/}"}common.sh"

FUNCTIONS=no
words=()
for word in "$@"; do
    if [ "$word" = --functions ]; then FUNCTIONS=yes; else words+=("$word"); fi
done
take_words "${words[@]+"${words[@]}"}"
need valgrind callgrind_annotate awk cat mktemp mv rm sort
prepare

# Leaves $SCRATCH/client.N and $SCRATCH/server.N.
count() {
    local calls=$1 times=$2 file
    shift 2
    rm -f "$SCRATCH"/out.*
    valgrind -q --tool=callgrind --trace-children=yes --callgrind-out-file="$SCRATCH/out.%p" \
        "$PROGRAM" bench only --calls "$((calls * times))" "$@" >/dev/null 2>"$SCRATCH/errors" ||
        { cat "$SCRATCH/errors" >&2; exit 1; }
    for file in "$SCRATCH"/out.*; do
        # A server is this program once more, without words.
        if awk '/^cmd:/ { exit !/ bench only / } ' "$file"; then
            mv "$file" "$SCRATCH/client.$times"
        else
            mv "$file" "$SCRATCH/server.$times"
        fi
    done
}

total() { awk '/^(summary|totals):/ { print $2; exit }' "$1"; }

look() {
    local name=$1 side
    shift
    count "$CALLS" 1 "$@"
    count "$CALLS" 2 "$@"
    for side in client server; do
        printf '%-50s %s %8d instructions per call\n' "$name" "$side" \
            "$((($(total "$SCRATCH/$side.2") - $(total "$SCRATCH/$side.1")) / CALLS))"
        if [ "$FUNCTIONS" = yes ]; then functions "$side"; fi
    done
}

functions() {
    local side=$1 times
    for times in 1 2; do
        callgrind_annotate --threshold=100 --auto=no "$SCRATCH/$side.$times" >"$SCRATCH/annotated.$times" 2>/dev/null
    done
    awk -v calls="$CALLS" '
        # "12,345 (1.2%)  file:function [object]"
        !/^ *[0-9,]+ \( *[0-9.]+%\)/ || /PROGRAM TOTALS/ { next }
        {
            count = $1
            gsub(",", "", count)
            sub(/^ *[0-9,]+ \( *[0-9.]+%\) +/, "")
            sub(/ \[[^]]*\]$/, "")
            sub(/^[^ :]*:/, "")
            sum[$0] += FILENAME ~ /2$/ ? count : -count
        }
        END { for (name in sum) if (sum[name] >= calls * 5) printf "%10.0f  %s\n", sum[name] / calls, name }
    ' "$SCRATCH/annotated.1" "$SCRATCH/annotated.2" | sort -rn | awk 'NR <= 40 { print "  " substr($0, 1, 120) }'
}

for_each_way look
