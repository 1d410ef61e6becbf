"""The child's part of `verify_in_child` and `prove_state_in_child`: it checks one file and prints one JSON object.

Nothing is decided here. Invariant: the child does not outlive its parent; a check that it cannot do ends with an exit
code.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Sequence
from typing import Any, Final

from warren_raft.errors import Corrupted, RefusedForSafety, SnapshotInvalid
from warren_raft.snapshots.verification import BEGUN, prove_state, verify, verify_records
from warren_raft.support.core_dumps import forbid_core_dumps

_PR_SET_PDEATHSIG: Final = 1  # prctl: the signal that this process gets when its parent's thread ends


def main(arguments: Sequence[str]) -> None:
    """`arguments`: the path, and the options as JSON: state, or records and proof; nice, parent (its process id), and
    the limits cpu_seconds and memory_bytes."""
    path, options = arguments[0], json.loads(arguments[1])
    forbid_core_dumps()  # a damaged file may end this process by a signal
    _die_with(options["parent"])
    if options["nice"]:
        os.nice(options["nice"])
    _limit(resource.RLIMIT_CPU, options["cpu_seconds"])
    _limit(resource.RLIMIT_DATA, options["memory_bytes"])
    _limit(resource.RLIMIT_CORE, 0)  # a core dump would hold the secrets in the file
    sys.stdout.write(BEGUN.decode())
    sys.stdout.flush()
    sys.stdout.write(json.dumps(_answer(path, options)))


def _die_with(parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # the parent ended before
        os._exit(1)


def _limit(name: int, value: int) -> None:
    """Lower a limit of this process. (Not the address space: LMDB reserves 64 GiB, and uses little of it.)"""
    soft, hard = resource.getrlimit(name)
    if soft == resource.RLIM_INFINITY or value < soft:
        resource.setrlimit(name, (value, hard))


def _answer(path: str, options: dict[str, Any]) -> dict[str, Any]:
    try:
        if "state" in options:
            prove_state(path)
            return {"sound": {}}
        if "proof" in options:
            return {"sound": verify_records(path, lambda: sys.stdin.readline().strip()).to_json()}
        return {"sound": verify(path, records=options["records"]).to_json()}
    except (SnapshotInvalid, Corrupted) as error:
        return {"error": type(error).__name__, "detail": error.detail}
    except RefusedForSafety as error:
        return {"error": "RefusedForSafety", "detail": str(error)}
    except MemoryError:
        limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
        return {"error": "MemoryError", "detail": f"there was not enough memory for it; it may take {limit >> 20} MiB"}
    except OSError as error:
        return {"error": "OSError", "errno": error.errno, "detail": error.strerror}
