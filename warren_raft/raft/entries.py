"""The content of a log entry: a batch of commands, one change of members, or nothing (a leader's first entry).

Not here: the meaning of a command (the state machine's matter). Invariant: an entry of an unknown kind stops the
manager. It is never skipped, because other managers may have applied it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

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
KEPT_ENTRIES: Final = 4
"""The entries whose contents are kept until they are applied: a leader has two under way. The others are decoded
again."""
Content: TypeAlias = "list[bytes] | Change"
_HEADS_BYTES: Final = 16 * COMMANDS_PER_ENTRY
"""More bytes than CBOR adds to the commands of an entry."""


def encode_commands(commands: Sequence[bytes]) -> bytes:
    return _COMMANDS + cbor2.dumps(commands)


def encode_change(change: Change) -> bytes:
    return CHANGE + change.encode()


def decode(entry: bytes) -> Content:
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


class Decoded:
    """The contents of entries on their way to the state machine, so that an entry which was decoded to be checked, or
    made here, is not decoded again to be applied. For the raft thread or a simulator only."""

    def __init__(self) -> None:
        self._kept: deque[tuple[bytes, Content]] = deque(maxlen=KEPT_ENTRIES)

    def keep(self, entry: bytes, content: Content) -> None:
        """`content` is what `entry`, this very object, decodes to."""
        self._kept.append((entry, content))

    def take(self, entry: bytes) -> Content:
        """The content of an entry. Raises as `decode` does."""
        for position, (kept, content) in enumerate(self._kept):
            if kept is entry:
                del self._kept[position]
                return content
        return decode(entry)


def problem_of(entry: bytes, of_command: Callable[[bytes], str], decoded: Decoded | None = None) -> str:
    """Why the entry may not be put into a log; "" if it may: then `decoded` keeps its content. `of_command` answers
    the same for one command."""
    try:
        content = decode(entry)
    except InvariantViolation as error:
        return str(error)
    problem = _problem_of(entry, content, of_command)
    if decoded is not None and not problem:
        decoded.keep(entry, content)
    return problem


def _problem_of(entry: bytes, content: Content, of_command: Callable[[bytes], str]) -> str:
    if isinstance(content, Change):
        return ""
    if len(content) > COMMANDS_PER_ENTRY or (len(content) > 1 and len(entry) > ENTRY_BYTES + _HEADS_BYTES):
        return f"{len(content)} commands in {len(entry)} bytes"
    return next(filter(None, map(of_command, content)), "")
