"""The child's side of `verify_in_child`: verify one file, and answer with one JSON object on stdout.

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

from warren_raft.errors import RefusedForSafety, SnapshotInvalid
from warren_raft.snapshots.verification import verify

_PR_SET_PDEATHSIG: Final = 1  # prctl: the signal that this process gets when its parent's thread ends


def main(arguments: Sequence[str]) -> None:
    """`arguments`: the path, and the options as JSON: records, nice, parent (its process id)."""
    path, options = arguments[0], json.loads(arguments[1])
    _die_with(options["parent"])
    if options["nice"]:
        os.nice(options["nice"])
    sys.stdout.write(json.dumps(_answer(path, options["records"])))


def _die_with(parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it went before
        os._exit(1)


def _answer(path: str, records: bool) -> dict[str, Any]:
    try:
        return {"manifest": verify(path, records=records).to_json()}
    except SnapshotInvalid as error:
        return {"error": "SnapshotInvalid", "detail": error.detail}
    except RefusedForSafety as error:
        return {"error": "RefusedForSafety", "detail": str(error)}
    except OSError as error:
        return {"error": "OSError", "errno": error.errno, "detail": error.strerror}
