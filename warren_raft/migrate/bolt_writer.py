"""Writes a database file of Go's bbolt: named buckets of keys and values, in one transaction.

Not here: reading one, and the format's numbers (bolt.py); the meaning of the buckets (records.py).
Invariant: a file that was written to its end is sound for bbolt and for its `check`: no page is lost or used twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from struct import Struct
from typing import IO, Final

from warren_raft.migrate.bolt import (
    BRANCH,
    BRANCH_ELEMENT,
    BUCKET,
    BUCKET_HEADER,
    FREELIST,
    LEAF,
    LEAF_ELEMENT,
    MAGIC,
    META,
    META_BODY,
    META_PAGES,
    PAGE_HEADER,
    VERSION,
    fnv_1a,
)

PAGE_SIZE: Final = 4096
"""bbolt takes the size from the file. 4 KiB is the usual one."""
_META_WITHOUT_CHECKSUM: Final = Struct("<IIIIQQQQQ")

Element = tuple[int, bytes, bytes]
"""The flags, the key and the value of an element of a leaf."""


def write(file: IO[bytes], buckets: Mapping[str, Iterable[tuple[bytes, bytes]]]) -> None:
    """Write the whole database to an empty file that can seek. The keys of each bucket must ascend.

    Nothing is synced. Raises ValueError for keys that do not ascend, and the errors of the file.
    """
    pages = _Pages(file)
    freelist = pages.add(FREELIST, 0, b"")
    roots = [
        (BUCKET, name.encode(), BUCKET_HEADER.pack(pages.tree((0, *record) for record in records), 0))
        for name, records in sorted(buckets.items(), key=lambda named: named[0].encode())
    ]
    root = pages.tree(roots)
    for number in range(META_PAGES):
        body = _META_WITHOUT_CHECKSUM.pack(MAGIC, VERSION, PAGE_SIZE, 0, root, 0, freelist, pages.end, number)
        body += fnv_1a(body).to_bytes(8, "little")
        assert len(body) == META_BODY.size
        pages.put(number, META, 0, body)


class _Pages:
    """The pages of a file, which are written one behind the other."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.end = META_PAGES
        """The number of the next page."""

    def add(self, flags: int, count: int, body: bytes) -> int:
        """Write a page, as long as its bytes need. Returns its number."""
        number = self.end
        self.end += self.put(number, flags, count, body)
        return number

    def put(self, number: int, flags: int, count: int, body: bytes) -> int:
        """Write a page at its place. Returns how many pages of the file it takes."""
        taken = -(-(PAGE_HEADER.size + len(body)) // PAGE_SIZE)
        data = PAGE_HEADER.pack(number, flags, count, taken - 1) + body
        self._file.seek(number * PAGE_SIZE)
        self._file.write(data.ljust(taken * PAGE_SIZE, b"\0"))
        return taken

    def tree(self, elements: Iterable[Element]) -> int:
        """Write a bucket: leaves, and branches above them until there is one page. Returns the number of that page."""
        children = []
        for group in _grouped(_ascending(elements), LEAF_ELEMENT.size, 1):
            children.append((group[0][1], self._leaf(group)))
        if not children:
            return self.add(LEAF, 0, b"")
        while len(children) > 1:
            level = ((0, key, page.to_bytes(8, "little")) for key, page in children)
            groups = _grouped(level, BRANCH_ELEMENT.size - 8, 2)
            children = [(group[0][1], self._branch(group)) for group in groups]
        return children[0][1]

    def _leaf(self, elements: list[Element]) -> int:
        heads: list[bytes] = []
        data: list[bytes] = []
        place = LEAF_ELEMENT.size * len(elements)  # from the present element to its bytes
        for flags, key, value in elements:
            heads.append(LEAF_ELEMENT.pack(flags, place, len(key), len(value)))
            data += (key, value)
            place += len(key) + len(value) - LEAF_ELEMENT.size
        return self.add(LEAF, len(elements), b"".join(heads + data))

    def _branch(self, children: list[Element]) -> int:
        heads: list[bytes] = []
        data: list[bytes] = []
        place = BRANCH_ELEMENT.size * len(children)
        for _, key, page in children:
            heads.append(BRANCH_ELEMENT.pack(place, len(key), int.from_bytes(page, "little")))
            data.append(key)
            place += len(key) - BRANCH_ELEMENT.size
        return self.add(BRANCH, len(children), b"".join(heads + data))


def _ascending(elements: Iterable[Element]) -> Iterator[Element]:
    before = b""
    for element in elements:
        if element[1] <= before:
            raise ValueError(f"the key {element[1]!r:.60} comes after {before!r:.60}")
        before = element[1]
        yield element


def _grouped(elements: Iterable[Element], head_bytes: int, least: int) -> Iterator[list[Element]]:
    """The elements in groups that fit into a page. A group of `least` elements may need more pages. (A branch has two
    or more children, or the tree would never get narrower.)"""
    group: list[Element] = []
    room = PAGE_SIZE - PAGE_HEADER.size
    for element in elements:
        size = head_bytes + len(element[1]) + len(element[2])
        if len(group) >= least and size > room:
            yield group
            group, room = [], PAGE_SIZE - PAGE_HEADER.size
        group.append(element)
        room -= size
    if group:
        yield group
