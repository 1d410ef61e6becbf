"""The child's side of `verify_in_child` and `prove_state_in_child`: one file, and one JSON object on stdout.

Nothing is decided here. Invariant: the child does not outlive its parent; what it could not do is an exit code.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, Final

from warren_raft.errors import Corrupted, RefusedForSafety, SnapshotInvalid
from warren_raft.snapshots.verification import BEGUN, prove_state, verify

_PR_SET_PDEATHSIG: Final = 1  # prctl: the signal that this process gets when its parent's thread ends


def main(arguments: Sequence[str]) -> None:
    """`arguments`: the path, and the options as JSON: state or records, nice, parent (its process id)."""
    path, options = arguments[0], json.loads(arguments[1])
    _die_with(options["parent"])
    if options["nice"]:
        os.nice(options["nice"])
    sys.stdout.write(BEGUN.decode())
    sys.stdout.flush()
    sys.stdout.write(json.dumps(_answer(path, options)))


def _die_with(parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it went before
        os._exit(1)


def _answer(path: str, options: dict[str, Any]) -> dict[str, Any]:
    try:
        if "state" in options:
            prove_state(path)
            return {"sound": {}}
        return {"sound": verify(path, records=options["records"]).to_json()}
    except (SnapshotInvalid, Corrupted) as error:
        return {"error": type(error).__name__, "detail": error.detail}
    except RefusedForSafety as error:
        return {"error": "RefusedForSafety", "detail": str(error)}
    except OSError as error:
        return {"error": "OSError", "errno": error.errno, "detail": error.strerror}
