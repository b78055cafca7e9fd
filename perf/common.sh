#!/usr/bin/env bash
# Answers nothing by itself: what the other scripts here share. They source it first.
#
# Which program is looked at: $SENDRIGHT if it is set (a path), else the one of this checkout, built in the
# release profile. What is looked at: `sendright bench only`, which makes so many calls of one kind between two
# processes and looks at no clock. What counts runs N calls and twice as many, and says the difference for each
# call, so that starting and ending cancel out.

set -euo pipefail

# Before anything else is run: says all that is missing, and ends.
need() {
    local missing=0 tool
    for tool in "$@"; do
        if ! command -v "$tool" >/dev/null; then
            printf 'missing: %s%s\n' "$tool" "$(where_from "$tool")" >&2
            missing=1
        fi
    done
    if [ "$missing" = 1 ]; then exit 3; fi
}

# Who has it, where that is not its name.
where_from() {
    case $1 in
        perf) printf ' (linux-perf, or linux-tools of the running kernel)' ;;
        valgrind | callgrind_annotate) printf ' (valgrind)' ;;
        cargo) printf ' (the Rust toolchain; or set SENDRIGHT to a program that is built already)' ;;
        taskset) printf ' (util-linux)' ;;
        awk) printf ' (mawk or gawk)' ;;
    esac
}

# Who is not root may look at its own processes, and with perf only as far as this number lets it.
need_tracepoints() {
    local tracing
    for tracing in /sys/kernel/tracing /sys/kernel/debug/tracing; do
        if [ -r "$tracing/events/sched/sched_switch/id" ]; then return; fi
    done
    printf 'missing: the right to read tracepoints: run as root, or let them be read with\n' >&2
    printf '  mount -o remount,mode=755 /sys/kernel/tracing; sysctl kernel.perf_event_paranoid=-1\n' >&2
    exit 3
}

need_samples() {
    local paranoid=2
    if [ -r /proc/sys/kernel/perf_event_paranoid ]; then read -r paranoid </proc/sys/kernel/perf_event_paranoid; fi
    if [ "$EUID" != 0 ] && [ "$paranoid" -gt 1 ]; then
        printf 'missing: the right to sample the kernel: run as root, or sysctl kernel.perf_event_paranoid=1\n' >&2
        exit 3
    fi
}

usage() {
    # The header of the script, without its first line.
    local line
    while read -r line; do
        case $line in
            '#!'*) ;;
            '#'*) printf '%s\n' "${line#'#'}" ;;
            *) break ;;
        esac
    done <"$0"
}

# Takes the words of the command line apart: --calls N is ours, the rest goes to `sendright bench only`.
CALLS=2048
CHOSEN=()
take_words() {
    while [ $# -gt 0 ]; do
        case $1 in
            -h | --help)
                usage
                exit 0
                ;;
            --calls)
                CALLS=${2:?--calls needs a number}
                shift 2
                ;;
            *)
                CHOSEN+=("$1")
                shift
                ;;
        esac
    done
    case $CALLS in
        '' | 0 | *[!0-9]*)
            printf 'not a number of calls: %s\n' "$CALLS" >&2
            exit 2
            ;;
    esac
}

# A directory that is gone afterwards, and where this checkout is.
make_scratch() {
    HERE=${BASH_SOURCE[0]%"${BASH_SOURCE[0]##*/}"}
    HERE=$(cd "${HERE:-.}/.." && pwd)
    SCRATCH=$(mktemp -d)
    trap 'rm -rf "$SCRATCH"' EXIT
}

# Finds or builds what is looked at.
find_program() {
    if [ -n "${SENDRIGHT:-}" ]; then
        need "$SENDRIGHT"
        PROGRAM=$(command -v "$SENDRIGHT")
    else
        need cargo
        (cd "$HERE" && cargo build --quiet --release -p sendright --bin sendright)
        PROGRAM=${CARGO_TARGET_DIR:-$HERE/target}/release/sendright
    fi
}

# What all but `compare.sh` begin with.
prepare() {
    make_scratch
    find_program
}

# Calls the function given, with a name and with words for `sendright bench only`, for what the command line
# chose, or else for each way that matters, on each driver.
for_each_way() {
    local look=$1 driver words
    if [ ${#CHOSEN[@]} -gt 0 ]; then
        "$look" "${CHOSEN[*]}" "${CHOSEN[@]}"
        return
    fi
    for driver in uring epoll; do
        for words in '--way session' '--way session --depth 32' '--way plain' '--way returned' \
            '--client blocking' '--client blocking --depth 32' '--client blocking --way plain' \
            '--client blocking --way returned'; do
            # shellcheck disable=SC2086 # words are words
            "$look" "$words --driver $driver" $words --driver "$driver"
        done
    done
}
