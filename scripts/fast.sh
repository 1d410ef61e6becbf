#!/usr/bin/env bash
# The unit and model tests without the slow ones, with fewer examples of each property: the loop while you work.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

# Their files are in memory if there is room: they sync thousands of small files. The full run has them on the disk.
# A TMPDIR of the caller stays. Tests execute scripts that they write, which a file system may forbid (noexec).
has_room_in_memory() {
    local probe
    (($(df --output=avail /dev/shm 2>/dev/null | tail -n 1) > 2000000)) || return 1
    probe=$(mktemp /dev/shm/warren-raft-XXXXXX) || return 1
    printf '#!/bin/sh\n' >"$probe"
    chmod u+x "$probe"
    local executes=0
    "$probe" 2>/dev/null || executes=1
    rm -f -- "$probe"
    return "$executes"
}

if [[ -z ${TMPDIR-} ]] && has_room_in_memory 2>/dev/null; then
    export TMPDIR=/dev/shm
fi
# For a part of the time these tests wait: for a process, a deadline, another thread. So there are twice as many workers as
# processors. pytest starts a thread before each test that would print all stacks late in a hanging one: a twentieth of the
# time of short tests. pytest-timeout prints the stacks too, without a thread.
exec scripts/test.sh -q -n $((2 * $(nproc))) --dist worksteal -m "not slow" --hypothesis-profile quick -o faulthandler_timeout=0 \
    tests/unit tests/model "$@"
