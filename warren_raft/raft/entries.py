"""The content of a log entry: a batch of commands, one change of members, or nothing (a leader's first entry).

Not here: the meaning of a command (the state machine's matter). Invariant: an entry of an unknown kind stops the
manager. It is never skipped, because other managers may have applied it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import cbor2

from warren_raft.errors import InvariantViolation
from warren_raft.raft.core import NO_OP, REGULAR
from warren_raft.raft.membership import Change
from warren_raft.support import strict_cbor

_COMMANDS: Final = REGULAR + b"\x01"
CHANGE: Final = REGULAR + b"\x02"
"""The first two bytes of an entry that holds a change of members."""

_BYTES: Final = frozenset([bytes])

COMMANDS_PER_ENTRY: Final = 1024
"""The most commands that group commit puts into one entry. Applying so many takes some tens of milliseconds."""
ENTRY_BYTES: Final = 1024 * 1024
"""The most bytes that group commit puts into one entry. A larger command has an entry of its own."""
_HEADS_BYTES: Final = 16 * COMMANDS_PER_ENTRY
"""More bytes than CBOR adds to the commands of an entry."""


def encode_commands(commands: Sequence[bytes]) -> bytes:
    return _COMMANDS + cbor2.dumps(commands)


def encode_change(change: Change) -> bytes:
    return CHANGE + change.encode()


def decode(entry: bytes) -> list[bytes] | Change:
    """The commands of an entry (no command for a leader's first entry), or its change of members.

    Raises InvariantViolation if this version does not know the kind of the entry, or if the entry does not decode.
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
        raise InvariantViolation(f"a log entry does not decode: {error}") from None
    raise InvariantViolation(
        f"a log entry has the unknown kind {kind!r}. If a newer release wrote it, upgrade this manager. If not, "
        "docs/recovery.md says how to continue without the entry"
    )


def problem_of(entry: bytes, of_command: Callable[[bytes], str]) -> str:
    """Why the entry may not be put into a log; "" if it may. `of_command` answers the same for one command."""
    try:
        content = decode(entry)
    except InvariantViolation as error:
        return str(error)
    if isinstance(content, Change):
        return ""
    if len(content) > COMMANDS_PER_ENTRY or (len(content) > 1 and len(entry) > ENTRY_BYTES + _HEADS_BYTES):
        return f"{len(content)} commands in {len(entry)} bytes"
    return next(filter(None, map(of_command, content)), "")
