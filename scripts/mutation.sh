#!/usr/bin/env bash
# Changes one small thing in the product at a time, and checks whether a test fails:
#   scripts/mutation.sh --mutants 300 --seed 1 --results mutants.jsonl
#   scripts/mutation.sh --again mutants.jsonl      tries the survivors of that run again, after tests were added
# Works on a copy in the temporary directory, with a .venv of its own.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

copy=$(mktemp -d --tmpdir warren-raft-mutation-XXXXXX)
trap 'rm -rf -- "$copy"' EXIT
git -C "$project_root" ls-files -z --cached --others --exclude-standard | (cd -- "$project_root" && tar --null -T - -c) | tar -x -C "$copy"
project_root=$copy venv=$copy/.venv
ensure_venv test,mutation
PYTHONPATH="$copy" "$venv/bin/python" -m tests.mutation --tree "$copy" "$@"
