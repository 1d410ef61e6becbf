#!/usr/bin/env bash
# Three managers and two workers on this machine, in the foreground; Ctrl-C ends them. Data and logs: .orchestrator/
#   examples/orchestrator/run.sh          all of them
#   examples/orchestrator/run.sh m1 w2    only these, in another terminal: for example after `kill -9`
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."
source scripts/lib.sh
ensure_venv

declare -A member=([m1]=127.0.0.1:7971 [m2]=127.0.0.1:7972 [m3]=127.0.0.1:7973)
declare -A api=([m1]=127.0.0.1:8071 [m2]=127.0.0.1:8072 [m3]=127.0.0.1:8073)

make_certificates() {
    mkdir -p -m 700 .orchestrator
    [[ -e .orchestrator/m3.join ]] && return
    "$venv/bin/warren-raft" cert init .orchestrator/ca >/dev/null
    local issued=()
    for id in m1 m2 m3; do issued+=("$id=${member[$id]}"); done
    (cd .orchestrator && "$venv/bin/warren-raft" cert issue "${issued[@]}" --ca ca >/dev/null)
}

start() {
    local id=$1 options=()
    if [[ $id == m* ]]; then
        options=(manager --id "$id" --data-dir ".orchestrator/$id" --join ".orchestrator/$id.join" --api "${api[$id]}")
    else
        options=(worker --id "$id")
        for each in m1 m2 m3; do options+=(--manager "http://${api[$each]}"); done
    fi
    "$venv/bin/python" -m examples.orchestrator "${options[@]}" 2>>".orchestrator/$id.log" &
    echo $! >".orchestrator/$id.pid"
    echo "$id: process $!, log .orchestrator/$id.log${api[$id]:+, http://${api[$id]}}"
}

make_certificates
trap 'trap "" INT TERM; kill $(jobs -p) 2>/dev/null; wait' EXIT
trap exit INT TERM
(($#)) || set -- m1 m2 m3 w1 w2
for id in "$@"; do start "$id"; done
wait
