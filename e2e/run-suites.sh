#!/usr/bin/env bash
# Runs the suites of this crate, several at a time: they wait more than they compute. What a
# suite said is printed when it ends; at the end, which failed. One that failed is run once more, alone, and has to pass
# then: packets on a busy machine are late at times. Both outputs are printed. SUITES sets how many run at once.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export LOGS
LOGS=$(mktemp -d)
trap 'rm -rf "$LOGS"' EXIT

# Arguments of this script go to cargo: --locked.
cargo test --quiet --package fairlead-e2e --no-run "$@"

run_one() {
    local suite=$1 began=$SECONDS
    shift
    if cargo test --package fairlead-e2e --test "$suite" "$@" >"$LOGS/$suite" 2>&1; then
        local result=ok
    else
        local result=FAILED
        echo "$suite" >>"$LOGS/failed"
    fi
    # One at a time at the terminal.
    {
        flock 9
        cat "$LOGS/$suite"
        echo "suite $suite: $result, $((SECONDS - began)) s"
    } 9>"$LOGS/lock"
}
export -f run_one

# The longest first, so that none of them is left alone at the end.
long=(differential_controller differential_proxy reliability better_than_upstream many_services)
all=$(for file in e2e/tests/*.rs e2e/tests/*/main.rs; do
    [[ $file = */main.rs ]] && file=$(dirname "$file")
    basename "$file" .rs
done)
{
    printf '%s\n' "${long[@]}"
    grep --invert-match --line-regexp --fixed-strings "$(printf '%s\n' "${long[@]}")" <<<"$all"
} | xargs --max-procs="${SUITES:-2}" -I {} bash -c 'run_one "$@"' run_one {} "$@"

if [ -e "$LOGS/failed" ]; then
    mv "$LOGS/failed" "$LOGS/again"
    while read -r suite; do
        echo "suite $suite failed; once more, alone"
        run_one "$suite" "$@" </dev/null
    done <"$LOGS/again"
fi
if [ -e "$LOGS/failed" ]; then
    echo "failed: $(sort "$LOGS/failed" | paste -sd ' ')" >&2
    exit 1
fi
