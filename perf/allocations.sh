#!/usr/bin/env bash
# Answers: how often a call asks the heap for memory, on each side, for how many bytes, and where in the source.
# By valgrind's dhat. Where: only if python3 is there, which reads its file.
#
# perf/allocations.sh [--calls N] [OPTIONS OF sendright bench only]
# Without options: each way on each driver.

set -euo pipefail
. "${0%"${0##*/}"}common.sh"

take_words "$@"
need valgrind awk cat mkdir mktemp rm
prepare
if ! command -v python3 >/dev/null; then
    printf 'missing: python3: it is not said where memory is asked for\n' >&2
fi

count() {
    local times=$1
    shift
    rm -rf "$SCRATCH/$times"
    mkdir "$SCRATCH/$times"
    valgrind --tool=dhat --num-callers=40 --trace-children=yes --dhat-out-file="$SCRATCH/$times/dhat.%p" \
        --log-file="$SCRATCH/$times/log.%p" "$PROGRAM" bench only --calls "$((CALLS * times))" "$@" >/dev/null ||
        { cat "$SCRATCH/$times"/log.* >&2; exit 1; }
}

look() {
    local name=$1
    shift
    count 1 "$@"
    count 2 "$@"
    awk -v calls="$CALLS" -v name="$name" '
        /Command:/ { side = / bench only / ? "client" : "server" }
        # "==7== Total:     1,234 bytes in 56 blocks"
        /== Total:/ {
            gsub(",", "")
            times = FILENAME ~ /\/2\/log[^\/]*$/ ? 1 : -1
            bytes[side] += times * $3
            blocks[side] += times * $6
        }
        END {
            for (s = 1; s <= 2; s++) {
                side = s == 1 ? "client" : "server"
                printf "%-50s %s %7.3f allocations, %6.0f bytes per call\n", \
                    name, side, blocks[side] / calls, bytes[side] / calls
            }
        }
    ' "$SCRATCH"/1/log.* "$SCRATCH"/2/log.*
    if command -v python3 >/dev/null; then sites; fi
}

sites() {
    python3 - "$SCRATCH" "$CALLS" <<'PYTHON'
import collections, glob, json, re, sys

scratch, calls = sys.argv[1], int(sys.argv[2])
blocks = collections.Counter()
sizes = collections.Counter()
for times, sign in ((1, -1), (2, 1)):
    for path in glob.glob(f"{scratch}/{times}/dhat.*"):
        with open(path) as file:
            seen = json.load(file)
        side = "client" if " bench only " in seen["cmd"] else "server"
        frames = [re.sub(r"^0x[0-9A-F]+: ", "", frame) for frame in seen["ftbl"]]
        for point in seen["pps"]:
            # Nobody here wrote the allocator, or the standard library.
            ours = [frames[index] for index in point["fs"]]
            ours = [f for f in ours if not re.match(r"(alloc::|<alloc::|__r|malloc|calloc|realloc|\[root\])", f)]
            ours = [f for f in ours if "/rustc/" not in f and "library/" not in f and "vg_replace" not in f]
            ours = [re.sub(r" \(in .*", "", f).replace("UnknownInlinedFun ", "") for f in ours]
            place = side, " < ".join(ours[:4])
            blocks[place] += sign * point["tbk"]
            sizes[place] += sign * point["tb"]
for (side, place), count in blocks.most_common(40):
    if count > calls / 200:
        print(f"  {side} {count / calls:6.2f}  {sizes[side, place] / calls:6.0f} B  {place}")
PYTHON
}

for_each_way look
