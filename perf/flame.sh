#!/usr/bin/env bash
# Answers: where the CPU is while calls are made, on both sides and in the kernel: what share of its time the
# kernel, libc and the program have, a list of functions, and a flame graph in FILE.
# By the CPU's clock, which every machine has, hardware counters or not.
#
# perf/flame.sh [--svg FILE] [--calls N] [OPTIONS OF sendright bench only]
# Drawn with inferno if it is installed; else plainly, by perf/flame.awk. Wants root, or leave to sample.

set -euo pipefail
. "${0%"${0##*/}"}common.sh"

SVG=
words=()
while [ $# -gt 0 ]; do
    case $1 in
        --svg) SVG=${2:?--svg needs a file}; shift 2 ;;
        *) words+=("$1"); shift ;;
    esac
done
take_words --calls 100000 "${words[@]+"${words[@]}"}"
need perf awk cat mktemp rm sort
need_samples
prepare

# Stacks are unwound from what the stack held: nothing needs to be built for this.
perf record -q -e cpu-clock -F 4999 --call-graph dwarf,8192 -o "$SCRATCH/data" -- \
    "$PROGRAM" bench only --calls "$CALLS" "${CHOSEN[@]+"${CHOSEN[@]}"}" >/dev/null 2>"$SCRATCH/errors" ||
    { cat "$SCRATCH/errors" >&2; exit 1; }

perf report -i "$SCRATCH/data" --no-children -g none --sort=dso --percent-limit 0.5 --stdio 2>/dev/null |
    awk '!/^#/ && NF { sub(/ +$/, ""); print } END { print "" }'
perf report -i "$SCRATCH/data" --no-children --no-inline -g none --percent-limit 0.5 --stdio 2>/dev/null |
    awk '!/^#/ && NF { sub(/ +$/, ""); print }'

if [ -z "$SVG" ]; then exit 0; fi
perf script -i "$SCRATCH/data" --no-inline -F comm,pid,ip,sym >"$SCRATCH/stacks" 2>/dev/null
# One line for each stack: frames from the outermost in, and how often it was seen.
awk '
    /^[^ \t]/ { side = $0; sub(/ +[0-9]+.*/, "", side); if (match($0, /[0-9]+/)) pid = substr($0, RSTART, RLENGTH)
                if (client == "") client = pid
                stack = ""; next }
    NF >= 2 { $1 = ""; sub(/^ /, ""); gsub(/;/, ":"); stack = stack == "" ? $0 : $0 ";" stack; next }
    NF == 0 && stack != "" { seen[(pid == client ? "client" : "server") ";" stack]++; stack = "" }
    END { for (s in seen) print s, seen[s] }
' "$SCRATCH/stacks" >"$SCRATCH/folded"
if command -v inferno-flamegraph >/dev/null; then
    inferno-flamegraph --title "sendright bench only ${CHOSEN[*]+"${CHOSEN[*]}"}" "$SCRATCH/folded" >"$SVG"
else
    printf 'missing: inferno (cargo install inferno): drawn without a search\n' >&2
    sort "$SCRATCH/folded" | awk -f "$HERE/perf/flame.awk" >"$SVG"
fi
printf 'drawn in %s\n' "$SVG"
