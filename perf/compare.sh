#!/usr/bin/env bash
# Answers: is one commit faster than another? Builds both beside each other and lets them take turns, so that
# whatever the machine does meanwhile it does to both.
#
# perf/compare.sh BEFORE [AFTER] [--rounds N] [--calls N] [OPTIONS OF sendright bench only]
# AFTER is what lies in the checkout, unless a commit is named. What is said is the time for each call in the
# best round of each, its ratio, and how many of the rounds AFTER won: whoever wins nine of ten is faster.

set -euo pipefail
. "${0%"${0##*/}"}common.sh"

case ${1:-} in
    -h | --help) usage; exit 0 ;;
    '' | -*) printf 'which commit? perf/compare.sh BEFORE [AFTER]\n' >&2; exit 2 ;;
esac
BEFORE=$1
AFTER=
shift
case ${1:-} in
    '' | -*) ;;
    *) AFTER=$1; shift ;;
esac
ROUNDS=10
words=()
while [ $# -gt 0 ]; do
    case $1 in
        --rounds) ROUNDS=${2:?--rounds needs a number}; shift 2 ;;
        *) words+=("$1"); shift ;;
    esac
done
take_words --calls 20000 "${words[@]+"${words[@]}"}"
need git cargo awk cp mkdir mktemp rm
make_scratch
trap forget_all EXIT

forget_all() {
    local tree
    for tree in "$SCRATCH"/tree.*; do
        if [ -d "$tree" ]; then git -C "$HERE" worktree remove --force "$tree"; fi
    done
    rm -rf "$SCRATCH"
}

# Beside the checkout's own, so that what both have in common is built once and kept.
build() {
    local commit=$1 tree=$SCRATCH/tree.$2 target=${CARGO_TARGET_DIR:-$HERE/target}/compare
    git -C "$HERE" worktree add --quiet --detach "$tree" "$commit"
    (cd "$tree" && CARGO_TARGET_DIR=$target cargo build --quiet --release -p sendright --bin sendright)
    cp "$target/release/sendright" "$SCRATCH/sendright.$2"
}

build "$BEFORE" before
if [ -n "$AFTER" ]; then
    build "$AFTER" after
else
    find_program
    cp "$PROGRAM" "$SCRATCH/sendright.after"
fi

# Sets TOOK to what so many calls took, starting included, in microseconds.
time_us() {
    local program=$1 calls=$2 began
    shift 2
    began=${EPOCHREALTIME/[.,]/}
    "$program" bench only --calls "$calls" "$@" >/dev/null
    TOOK=$((${EPOCHREALTIME/[.,]/} - began))
}

# Of two times the shorter; of none, the other.
shorter() { if [ "$1" = 0 ] || [ "$2" -lt "$1" ]; then printf '%d' "$2"; else printf '%d' "$1"; fi; }

look() {
    local name=$1 round which turns won=0 before=0 after=0
    local start_before=0 start_after=0 best_before=0 best_after=0
    shift
    for ((round = 0; round < ROUNDS; round++)); do
        # Whoever comes second finds what the first has warmed.
        if ((round % 2)); then turns='after before'; else turns='before after'; fi
        for which in $turns; do
            local -n now=$which start=start_$which best=best_$which
            time_us "$SCRATCH/sendright.$which" 1 "$@"
            start=$(shorter "$start" "$TOOK")
            time_us "$SCRATCH/sendright.$which" "$CALLS" "$@"
            now=$TOOK
            best=$(shorter "$best" "$TOOK")
        done
        if [ "$after" -lt "$before" ]; then won=$((won + 1)); fi
    done
    awk -v name="$name" -v before="$((best_before - start_before))" -v after="$((best_after - start_after))" \
        -v calls="$CALLS" -v won="$won" -v rounds="$ROUNDS" 'BEGIN {
        if (before <= 0 || after <= 0) {
            printf "%-50s too few calls to tell from starting: give more with --calls\n", name
            exit
        }
        printf "%-50s before %8.3f µs, after %8.3f µs: × %.3f, faster in %d of %d rounds\n", \
            name, before / calls, after / calls, after / before, won, rounds
    }'
}

for_each_way look
