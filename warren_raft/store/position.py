"""The position of the state in the log as one record: index, term, revision, digest, and a check of them.

The key of the record, and the earlier form with a record for each of them, are in transactions.py. Pure.
Invariant: a record with a flipped bit does not fit its check. The log would continue at a wrong entry after it.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple
from zlib import crc32

FIRST_INDEX: Final = 1
"""The index of the empty entry that every log begins with. A new database has already applied it."""
NO_RECORDS: Final = bytes(32)
"""The digest of a state without records."""


class Position(NamedTuple):
    """The last entry that was applied, the latest revision, and the digest of the state after that entry."""

    applied_index: int = FIRST_INDEX
    applied_term: int = 0
    revision: int = 0
    digest: bytes = NO_RECORDS


_FORM: Final = Struct(">QQQ32s")
_CHECK_BYTES: Final = 4
RECORD_BYTES: Final = _FORM.size + _CHECK_BYTES


def record_of(position: Position) -> bytes:
    """The record of a position."""
    data = _FORM.pack(*position)
    return data + crc32(data).to_bytes(_CHECK_BYTES, "big")


def position_in(record: bytes) -> Position:
    """The position in a record, whether it fits its check or not. Raises ValueError for another number of bytes."""
    if len(record) != RECORD_BYTES:
        raise ValueError(f"a position of {len(record)} bytes")
    return Position(*_FORM.unpack_from(record))


def revision_in(record: bytes) -> int:
    """The revision in a record of a position."""
    return int.from_bytes(record[16:24], "big")


def fits_check(record: bytes) -> bool:
    """Whether these are the bytes that `record_of` made."""
    return crc32(record[:-_CHECK_BYTES]).to_bytes(_CHECK_BYTES, "big") == record[-_CHECK_BYTES:]
