"""What is inside a log entry: a batch of commands, or one membership change, or nothing (a leader's first entry).

Not here: what a command means (the state machine's matter). Invariant: an entry of a kind this version does not know
stops the manager rather than being skipped, since the others may have understood it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import cbor2

from warren_raft import strict_cbor
from warren_raft.errors import InvariantViolation
from warren_raft.raft.core import NO_OP, REGULAR
from warren_raft.raft.membership import Change

_COMMANDS: Final = REGULAR + b"\x01"
CHANGE: Final = REGULAR + b"\x02"
"""The first two bytes of an entry that is a membership change."""

_BYTES: Final = frozenset([bytes])

COMMANDS_PER_ENTRY: Final = 1024
"""Group commit takes at most so many commands into one entry: applying them stays within some tens of milliseconds."""
ENTRY_BYTES: Final = 1024 * 1024
"""... and stops taking more at this size; a single larger command goes alone."""
_HEADS_BYTES: Final = 16 * COMMANDS_PER_ENTRY
"""More than CBOR puts before the commands of an entry."""


def encode_commands(commands: Sequence[bytes]) -> bytes:
    return _COMMANDS + cbor2.dumps(commands)


def encode_change(change: Change) -> bytes:
    return CHANGE + change.encode()


def decode(entry: bytes) -> list[bytes] | Change:
    """The commands of an entry (none for a leader's first entry), or its membership change.

    Raises InvariantViolation for a kind of entry that this version does not know, or one that does not decode.
    """
    if entry == NO_OP:
        return []
    kind = entry[:2]
    try:
        if kind == _COMMANDS:
            commands = strict_cbor.decode(entry[2:])
            if type(commands) is list and {*map(type, commands)} <= _BYTES:
                return commands
            raise ValueError("its commands are not a list of byte strings")
        if kind == CHANGE:
            return Change.decode(entry[2:])
    except ValueError as error:
        raise InvariantViolation(f"a log entry that does not decode: {error}") from None
    raise InvariantViolation(
        f"a log entry of unknown kind {kind!r}: upgrade, if a newer release wrote it; if none did, docs/recovery.md "
        "says how to go on without it"
    )


def problem_of(entry: bytes, of_command: Callable[[bytes], str]) -> str:
    """Why the entry may not be put into a log; "": it may. `of_command` says the same of each command in it."""
    try:
        content = decode(entry)
    except InvariantViolation as error:
        return str(error)
    if isinstance(content, Change):
        return ""
    if len(content) > COMMANDS_PER_ENTRY or (len(content) > 1 and len(entry) > ENTRY_BYTES + _HEADS_BYTES):
        return f"{len(content)} commands in {len(entry)} bytes"
    return next(filter(None, map(of_command, content)), "")
