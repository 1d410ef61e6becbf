"""The first items of an entity, read directly from the bytes of its record: its id and its indexed fields.

cbor2 is not used here, because every manager must find the same in the same bytes with any release of cbor2. Most
updates also leave the indexed fields unchanged, and comparing the first bytes takes a fifth of the time of decoding
them all.
Invariant: `is_…`, `begin_alike` and `leading_items` raise nothing for any bytes. An unreadable item ends the reading.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final

from warren_raft.store.encoding import text

INTEGER_BYTES: Final = {0x18: 1, 0x19: 2, 0x1A: 4, 0x1B: 8}
"""How many bytes follow the head of a CBOR unsigned integer, for the heads that have more bytes (RFC 8949, 3.1)."""

_BYTES: Final = 2
_TEXT: Final = 3
_ARRAY: Final = 4
_MAP: Final = 5
_TAG: Final = 6
_SHORT_TEXT: Final = 0x60
_SHORT_TEXT_END: Final = _SHORT_TEXT - 1
"""The head of a short text minus this is the size of the head and the text together."""
_TEXT_8: Final = 0x78
_SHORT_TEXT_SIZES: Final = [head - _SHORT_TEXT_END if _SHORT_TEXT <= head < _TEXT_8 else 0 for head in range(256)]
"""By the head of an item: the size of the head and the text together; 0: it is no short text."""
_SHORT_ARRAY: Final = 0x80
_ARRAY_8: Final = 0x98
_ARRAY_OF_1: Final = 0x81
_ARRAY_OF_2: Final = 0x82
_UNREADABLE: Final = (IndexError, ValueError)
"""IndexError: the bytes end too early."""


def is_entity_of(id: str, entity: bytes) -> bool:  # noqa: A002
    """Whether these bytes begin like the entity of this id. The bytes after the id are not examined."""
    if entity and _SHORT_ARRAY < entity[0] < _ARRAY_8:  # nearly all
        return entity.startswith(text(id), 1)
    try:
        count, start = _array_at(entity, 0)
    except _UNREADABLE:
        return False
    return count > 0 and entity.startswith(text(id), start)


def is_byte_string(entity: bytes) -> bool:
    """Whether these are the bytes of an entity that is plain bytes (the CA)."""
    try:
        major, size, start = _head_at(entity, 1)
    except _UNREADABLE:
        return False
    return entity[0] == _ARRAY_OF_1 and major == _BYTES and start + size == len(entity)


def begin_alike(record: bytes, other: bytes, count: int) -> bool:
    """Whether the entities of two records have the same number of items, and the same first `count` items.

    For speed the answer is also no if the comparison would take longer, for example if an item is not a text of 0 to
    255 bytes.
    """
    try:
        if record[0] != _ARRAY_OF_2 or other[0] != _ARRAY_OF_2:
            return False
        start = 2 + INTEGER_BYTES.get(record[1], 0)
        at = start + 1
        if not _SHORT_ARRAY <= record[start] < _ARRAY_8:
            _, at = _array_at(record, start)
        for _ in range(count):
            size = _SHORT_TEXT_SIZES[record[at]]
            if size:
                at += size
            elif record[at] == _TEXT_8:
                at += 2 + record[at + 1]
            else:
                return False
        return at <= len(record) and other.startswith(record[start:at], 2 + INTEGER_BYTES.get(other[1], 0))
    except _UNREADABLE:
        return False


def leading_items(record: bytes, count: int) -> list[Any]:
    """The first items (at most `count`) of the entity in a record: a text, or a list of the texts in an array.

    None stands for an item of any other type.
    """
    items: list[Any] = []
    item: Any
    with suppress(*_UNREADABLE):
        available, at = _array_at(record, _entity_start(record))
        for _ in range(min(count, available)):
            head = record[at]
            if _SHORT_TEXT <= head < _TEXT_8:  # nearly all
                item, at = _text_at(record, at + 1, head - _SHORT_TEXT)
            else:
                item, at = _item_at(record, at)
            items.append(item)
    return items


def text_of(record: bytes, position: int) -> bytes:
    """The text at this position of the entity in a record, in UTF-8. b"" stands for an item that is no text, is missing
    or cannot be read."""
    try:
        at = _item_start(record, _entity_start(record), position)
        size = _SHORT_TEXT_SIZES[record[at]]
        if size:
            return record[at + 1 : at + size]
        major, size, start = _head_at(record, at)
        return record[start : start + size] if major == _TEXT else b""
    except _UNREADABLE:
        return b""


def texts_of_both(entity: bytes, record: bytes, position: int) -> tuple[bytes, bytes] | None:
    """`text_of` for an entity and for the record that it replaces. None, for speed, if the items before differ, or one
    of the items is not a short text."""
    try:
        if not _SHORT_ARRAY < entity[0] < _ARRAY_8:
            return None
        at = 1
        for _ in range(position):
            size = _SHORT_TEXT_SIZES[entity[at]]
            if size:
                at += size
            elif entity[at] == _TEXT_8:
                at += 2 + entity[at + 1]
            else:
                return None
        in_record = 2 + INTEGER_BYTES.get(record[1], 0)
        if not record.startswith(entity[:at], in_record):
            return None
        in_record += at
        size, size_in_record = _SHORT_TEXT_SIZES[entity[at]], _SHORT_TEXT_SIZES[record[in_record]]
        if size and size_in_record:
            return entity[at + 1 : at + size], record[in_record + 1 : in_record + size_in_record]
    except _UNREADABLE:
        pass
    return None


def _item_start(data: bytes, start: int, position: int) -> int:
    """Where an item of the entity that begins at `start` begins."""
    count = data[start] - _SHORT_ARRAY
    at = start + 1
    if not 0 <= count < _ARRAY_8 - _SHORT_ARRAY:
        count, at = _array_at(data, start)
    if position >= count:
        raise ValueError
    for _ in range(position):
        size = _SHORT_TEXT_SIZES[data[at]]
        if size:
            at += size
        elif data[at] == _TEXT_8:
            at += 2 + data[at + 1]
        else:
            at = _skip(data, at)
    return at


def indexed_items(entity: bytes, count: int, most: int) -> int:
    """The number of items in the arrays among the first `count` items of an entity, `most` at most.

    Raises ValueError or IndexError if one of the first items is neither text nor an array of texts, or if the arrays
    hold more. Used for commands before they are in a log: `leading_items` accepts any bytes, and takes seconds for some
    of them.
    """
    found = 0
    available, at = entity[0] - _SHORT_ARRAY, 1
    if not 0 <= available < _ARRAY_8 - _SHORT_ARRAY:
        available, at = _array_at(entity, 0)
    for _ in range(min(count, available)):
        head = entity[at]
        if _SHORT_TEXT <= head < _TEXT_8:  # nearly all
            at += head - _SHORT_TEXT_END
            continue
        major, number, at = _head_at(entity, at)
        if major == _ARRAY:
            found += number
            if found > most:
                raise ValueError
            for _ in range(number):
                major, size, at = _head_at(entity, at)
                if major != _TEXT:
                    raise ValueError
                at += size
        elif major == _TEXT:
            at += number
        else:
            raise ValueError
    if at > len(entity):
        raise ValueError
    return found


def _entity_start(record: bytes) -> int:
    """Where the entity begins in a record, behind its revision."""
    if record[0] != _ARRAY_OF_2:
        raise ValueError
    return 2 + INTEGER_BYTES.get(record[1], 0)


def _array_at(data: bytes, at: int) -> tuple[int, int]:
    """How many items an entity's array has, and where the first begins. No entity has 256 fields."""
    head = data[at]
    if _SHORT_ARRAY <= head < _ARRAY_8:
        return head - _SHORT_ARRAY, at + 1
    if head == _ARRAY_8:
        return data[at + 1], at + 2
    raise ValueError


def _item_at(data: bytes, at: int) -> tuple[Any, int]:
    """An item, and where the next begins."""
    major, number, start = _head_at(data, at)
    if major == _TEXT:
        return _text_at(data, start, number)
    if major != _ARRAY:
        return None, _skip(data, at)
    texts: list[str] = []
    at = start
    for _ in range(number):  # a false number ends with the bytes: each item takes at least one byte
        major, size, start = _head_at(data, at)
        if major == _TEXT:
            item, at = _text_at(data, start, size)
            texts.append(item)
        else:
            at = _skip(data, at)
    return texts, at


def _text_at(data: bytes, start: int, size: int) -> tuple[str, int]:
    end = start + size
    if end > len(data):
        raise ValueError
    return str(data[start:end], "utf-8"), end


def _skip(data: bytes, at: int) -> int:
    """Where the next item begins. Without recursion, so that any depth of nesting is safe."""
    waiting = 1
    while waiting:
        major, number, at = _head_at(data, at)
        waiting -= 1
        if major in (_BYTES, _TEXT):
            at += number
        elif major in (_ARRAY, _MAP):
            waiting += number * (major - _ARRAY + 1)  # a map has two items an entry
        elif major == _TAG:
            waiting += 1
    if at > len(data):
        raise ValueError
    return at


def _head_at(data: bytes, at: int) -> tuple[int, int, int]:
    """The major type of an item, its number (a value or a length), and where the rest of the item begins."""
    major, number = divmod(data[at], 32)
    if number < 24:
        return major, number, at + 1
    size = INTEGER_BYTES.get(number)  # the same for every major type
    if size is None or at + 1 + size > len(data):  # reserved, or without a length: this package never writes it
        raise ValueError
    start = at + 1 + size
    return major, int.from_bytes(data[at + 1 : start], "big"), start
