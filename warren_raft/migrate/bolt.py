"""Reads a database file of Go's bbolt: the keys and values of its buckets, from bytes that nobody has to trust.

Not here: the meaning of the buckets (records.py). Nothing in the file is changed. No length and no page number in it
is believed before it is checked: https://github.com/etcd-io/bbolt has the format in page.go, meta.go and bucket.go.
Invariant: every record of the newest transaction is given, in the order of the keys, or Corrupted is raised.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from operator import lt
from struct import Struct
from typing import Final, NamedTuple

from warren_raft.errors import Corrupted, InUse

MAGIC: Final = 0xED0CDAED
VERSION: Final = 2
MAGIC_OFFSET: Final = 16
"""The place of the magic number in a meta page, behind the header that every page has."""
PAGE_SIZES: Final = tuple(1024 << shift for shift in range(7))
"""A page has the size of the memory pages of the machine that made the file: 4 KiB nearly everywhere."""
DEPTH_MAX: Final = 32
"""Branch pages above a leaf. A page of 1 KiB has two or more children, so more levels than this need 2^32 pages."""
KEY_MAX_BYTES: Final = 32_768
PAGES_MAX: Final = 1 << 26
"""256 GiB of pages of 4 KiB. Each has a mark in memory, and a file with a hole may have any number of them."""

BRANCH: Final = 0x01
LEAF: Final = 0x02
META: Final = 0x04
FREELIST: Final = 0x10
BUCKET: Final = 0x01
"""The flag of a leaf's element that is a bucket."""
NO_FREELIST: Final = 0xFFFF_FFFF_FFFF_FFFF
"""In the place of the freelist's page, if bbolt was told to keep no freelist in the file."""
LARGE_COUNT: Final = 0xFFFF
"""The count of a freelist with this many pages or more, whose true count is its first number."""
META_PAGES: Final = 2

PAGE_HEADER: Final = Struct("<QHHI")  # its number, flags, count, overflow
META_BODY: Final = Struct("<IIIIQQQQQQ")
"""Magic, version, page size, flags, root bucket (page, sequence), freelist, first page beyond the end, transaction,
checksum."""
BRANCH_ELEMENT: Final = Struct("<IIQ")  # position, size of the key, page
LEAF_ELEMENT: Final = Struct("<IIII")  # flags, position, size of the key, size of the value
BUCKET_HEADER: Final = Struct("<QQ")  # page (0: the page follows in the value), sequence

_FNV_OFFSET: Final = 0xCBF2_9CE4_8422_2325
_FNV_PRIME: Final = 0x0000_0100_0000_01B3
_MASK_64: Final = 0xFFFF_FFFF_FFFF_FFFF


class Meta(NamedTuple):
    """A meta page: where the state of one transaction is."""

    page_size: int
    root: int
    freelist: int
    end: int
    """The number of the first page that the transaction does not use."""
    transaction: int


class Record(NamedTuple):
    """A key and its value. `buckets` are the names of the buckets around it, the outermost one first."""

    buckets: tuple[bytes, ...]
    key: bytes
    value: bytes


class _Range(NamedTuple):
    """The keys that a page may hold: from `low` on and, if that is not None, below `high`."""

    low: bytes
    high: bytes | None


class BoltFile:
    """A database file that is open for reading, and locked: a bbolt that writes to it is kept away meanwhile.

    A context manager, for one thread. Raises OSError if the file cannot be opened, InUse if a program has it open for
    writing, and Corrupted for every fault in its bytes.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path: Final = os.fspath(path)
        self._file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._lock()
            status = os.fstat(self._file)
            if not stat.S_ISREG(status.st_mode):
                raise self._fault("is not a regular file")
            self._size_bytes = status.st_size
            self.meta, self.has_one_meta = self._newest_meta()
        except BaseException:
            os.close(self._file)
            raise
        self._used = bytearray(self.meta.end)
        """For each page: whether it was reached, or is free."""

    def __enter__(self) -> BoltFile:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def records(self) -> list[Record]:
        """Every record, in the order of the buckets' names and of the keys. Call it once.

        They are given only after every page was seen: a page that is reached twice, or by nobody and is not free, means
        that records are wrong or missing. (bbolt's own `check` has the same rules.)
        """
        self._used[:META_PAGES] = b"\1" * META_PAGES
        found = list(self._bucket((), self.meta.root))
        if self.meta.freelist != NO_FREELIST:
            self._take_free_pages()
            lost = self._used.find(0)
            if lost >= 0:
                raise self._fault(f"page {lost} is neither used nor free: records are missing")
        return found

    # ---- the file

    def _fault(self, detail: str) -> Corrupted:
        return Corrupted(self.path, f"is not a sound bbolt database: {detail}")

    def _lock(self) -> None:
        """bbolt keeps an exclusive lock on a file that it may write."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno == errno.EWOULDBLOCK:
                raise InUse(
                    self.path, "is open in a running program: stop Warren, or give a copy of the file"
                ) from None
            raise

    def _read(self, offset: int, size_bytes: int) -> bytes:
        try:
            data = os.pread(self._file, size_bytes, offset)
        except (MemoryError, OverflowError):
            raise self._fault(f"what begins at byte {offset} takes {size_bytes} bytes, more than the memory") from None
        if len(data) != size_bytes:
            raise self._fault(f"it ends at byte {offset + len(data)}, in the middle of a page")
        return data

    # ---- the two meta pages

    def _newest_meta(self) -> tuple[Meta, bool]:
        """The sound meta page of the newest transaction, as bbolt chooses it, and whether the other one is damaged."""
        first = self._meta_at(0)
        sizes = PAGE_SIZES if first is None else (first.page_size,)
        second = next(
            (meta for size in sizes if (meta := self._meta_at(size)) is not None and meta.page_size == size), None
        )
        sound = [meta for meta in (first, second) if meta is not None]
        if not sound:
            least = META_PAGES * PAGE_SIZES[0]
            cut = f": it was truncated, {self._size_bytes} of its bytes are left" if self._size_bytes < least else ""
            raise self._fault(f"neither of its two meta pages is sound{cut}")
        meta = max(sound, key=lambda meta: meta.transaction)
        needed = meta.end * meta.page_size
        if needed > self._size_bytes:
            raise self._fault(
                f"it is shorter than its pages, {self._size_bytes} of {needed} bytes: it was truncated, perhaps by a "
                "copy that was cut short; copy the whole file again, while Warren is stopped"
            )
        if meta.end > PAGES_MAX:
            raise self._fault(f"it has {meta.end} pages, more than {PAGES_MAX}")
        return meta, len(sound) < META_PAGES

    def _meta_at(self, offset: int) -> Meta | None:
        """None if the page is not sound, which a crash of bbolt may leave: it then uses the other one."""
        data = os.pread(self._file, PAGE_HEADER.size + META_BODY.size, offset)
        if len(data) < PAGE_HEADER.size + META_BODY.size:
            return None
        body = data[PAGE_HEADER.size :]
        magic, version, page_size, _flags, root, _sequence, freelist, end, transaction, checksum = META_BODY.unpack(
            body
        )
        if (magic, version) != (MAGIC, VERSION) or checksum != fnv_1a(body[:-8]):
            return None
        if page_size not in PAGE_SIZES or end <= META_PAGES:
            raise self._fault(f"the meta page at byte {offset} has a page size of {page_size} and {end} pages")
        return Meta(page_size, root, freelist, end, transaction)

    # ---- pages

    def _page(self, number: int) -> tuple[int, int, bytes]:
        """The flags, the count and the bytes of a page, which is used from now on. Raises Corrupted."""
        end, size = self.meta.end, self.meta.page_size
        if not META_PAGES <= number < end:
            raise self._fault(f"a page {number} is named; pages {META_PAGES} to {end - 1} exist")
        own, flags, count, overflow = PAGE_HEADER.unpack(self._read(number * size, PAGE_HEADER.size))
        if own != number:
            raise self._fault(f"page {number} says that it is page {own}")
        if overflow >= end - number:
            raise self._fault(f"page {number} goes on for {overflow} pages, beyond the end")
        self._use(number, overflow + 1)
        needed = self._needed(number, flags, count, (overflow + 1) * size)
        if flags != FREELIST and overflow > needed // size:  # earlier releases of bbolt took a page too many
            raise self._fault(f"page {number} goes on for {overflow} pages, and its elements take {needed} bytes")
        return flags, count, self._read(number * size, needed if flags == FREELIST else (overflow + 1) * size)

    def _needed(self, number: int, flags: int, count: int, most: int) -> int:
        """The bytes that a page takes, by its header and its elements, which are read first: a file with a hole may
        have pages that go on for more than the memory. `most` is what it has."""
        start = number * self.meta.page_size
        element = {BRANCH: BRANCH_ELEMENT, LEAF: LEAF_ELEMENT}.get(flags)
        if element is not None:
            table = count * element.size
        elif flags != FREELIST:
            raise self._fault(f"page {number} is of no known kind, its flags are {flags:#x}")
        elif count == LARGE_COUNT:
            table = 8 + 8 * int.from_bytes(self._read(start + PAGE_HEADER.size, 8), "little")
        else:
            table = 8 * count
        needed = PAGE_HEADER.size + table
        if needed > most:
            raise self._fault(f"page {number} has {count} elements, more than fit")
        if element is not None:
            sizes = element.iter_unpack(self._read(start + PAGE_HEADER.size, table))
            needed += sum(sum(each[2:]) if flags == LEAF else each[1] for each in sizes)
        if needed > most:
            raise self._fault(f"page {number} has elements of {needed} bytes, more than fit")
        return needed

    def _use(self, number: int, count: int) -> None:
        """Mark pages, each of which has one use only. So no loop of pages goes on for ever."""
        used = self._used.find(1, number, number + count)
        if used >= 0:
            raise self._fault(f"page {used} is used twice")
        self._used[number : number + count] = b"\1" * count

    def _take_free_pages(self) -> None:
        number = self.meta.freelist
        flags, count, page = self._page(number)
        if flags != FREELIST:
            raise self._fault(f"page {number} is not a freelist")
        start = PAGE_HEADER.size
        if count == LARGE_COUNT:
            count = int.from_bytes(page[start : start + 8], "little")
            start += 8
        if count > (len(page) - start) // 8:
            raise self._fault(f"the freelist has {count} pages, more than fit")
        for free in memoryview(page)[start : start + 8 * count].cast("Q"):
            if not META_PAGES <= free < self.meta.end:
                raise self._fault(f"a page {free} is free; pages {META_PAGES} to {self.meta.end - 1} exist")
            self._use(free, 1)

    # ---- buckets

    def _bucket(self, path: tuple[bytes, ...], root: int) -> Iterator[Record]:
        """The records of a bucket, and of the buckets in it. `root` is its page."""
        if len(path) > DEPTH_MAX:
            raise self._fault(f"more than {DEPTH_MAX} buckets are inside each other")
        todo = [(root, _Range(b"", None), 0)]
        while todo:
            number, allowed, depth = todo.pop()
            flags, count, page = self._page(number)
            if flags == BRANCH:
                if depth == DEPTH_MAX:
                    raise self._fault(f"page {number} is below {depth} other branch pages")
                children = self._children(f"page {number}", page, count, allowed)
                todo += [(child, keys, depth + 1) for child, keys in reversed(children)]
            elif flags == LEAF:
                if count == 0 and depth > 0:  # only the one page of an empty bucket has no elements
                    raise self._fault(f"page {number} is empty")
                yield from self._leaf(path, f"page {number}", page, count, allowed)
            else:
                raise self._fault(f"page {number} is neither a branch nor a leaf, its flags are {flags:#x}")

    def _children(self, place: str, page: bytes, count: int, allowed: _Range) -> list[tuple[int, _Range]]:
        """The pages below a branch page, each with the keys that it may hold."""
        data = _Data(self, place, page, count, BRANCH_ELEMENT)
        keys, children = [], []
        for position, key_size, child in data.elements:
            keys.append(data.take(position, key_size))
            children.append(child)
        self._require_order(place, keys, allowed)
        if not children:
            raise self._fault(f"branch {place} has no children")
        return [
            (child, _Range(low, high))
            for child, low, high in zip(children, keys, [*keys[1:], allowed.high], strict=True)
        ]

    def _require_order(self, place: str, keys: list[bytes], allowed: _Range) -> None:
        in_order = all(map(lt, keys, keys[1:]))
        if keys and (not in_order or keys[0] < allowed.low or (allowed.high is not None and keys[-1] >= allowed.high)):
            raise self._fault(f"the keys of {place} are not in order")

    def _leaf(
        self, path: tuple[bytes, ...], place: str, page: bytes, count: int, allowed: _Range, *, may_nest: bool = True
    ) -> Iterator[Record]:
        data = _Data(self, place, page, count, LEAF_ELEMENT)
        keys = []
        for flags, position, key_size, value_size in data.elements:
            both = data.take(position, key_size + value_size)
            key, value = both[:key_size], both[key_size:]
            if not 0 < key_size <= KEY_MAX_BYTES:
                raise self._fault(f"{place} has a key of {key_size} bytes")
            keys.append(key)
            if flags == 0:
                yield Record(path, key, value)
            elif flags == BUCKET and may_nest:
                yield from self._nested((*path, key), place, value)
            else:
                raise self._fault(f"{place} has an element with the flags {flags:#x}")
        self._require_order(place, keys, allowed)

    def _nested(self, path: tuple[bytes, ...], place: str, value: bytes) -> Iterator[Record]:
        """A small bucket is a page within the value; another one has pages of its own."""
        if len(value) < BUCKET_HEADER.size:
            raise self._fault(f"{place} has a bucket of {len(value)} bytes")
        root, _sequence = BUCKET_HEADER.unpack_from(value)
        page = value[BUCKET_HEADER.size :]
        if root != 0:
            if page:
                raise self._fault(f"{place} has a bucket with both a page and bytes of its own")
            yield from self._bucket(path, root)
            return
        if len(page) < PAGE_HEADER.size:
            raise self._fault(f"{place} has a bucket that ends within its header")
        _number, flags, count, overflow = PAGE_HEADER.unpack_from(page)
        if flags != LEAF or overflow:
            raise self._fault(f"{place} has a bucket that is not a leaf, its flags are {flags:#x}")
        place = f"bucket {path[-1]!r:.60} in {place}"
        yield from self._leaf(path, place, page, count, _Range(b"", None), may_nest=False)


class _Data:
    """The elements of a page, and the bytes behind them. bbolt writes these in the order of the elements and without a
    gap, and so they are read: a changed length or position is a fault."""

    def __init__(self, file: BoltFile, place: str, page: bytes, count: int, element: Struct) -> None:
        self._file, self._place, self._page = file, place, page
        self._size = element.size
        self._element = PAGE_HEADER.size
        self._next = PAGE_HEADER.size + count * element.size
        if self._next > len(page):
            raise file._fault(f"{place} has {count} elements, more than fit")
        self.elements = element.iter_unpack(page[PAGE_HEADER.size : self._next])

    def take(self, position: int, size_bytes: int) -> bytes:
        """The bytes of the next element. `position` counts from the element itself."""
        start, end = self._element + position, self._next + size_bytes
        if start != self._next or end > len(self._page):
            raise self._file._fault(f"an element of {self._place} has its bytes in a wrong place")
        self._element += self._size
        self._next = end
        return self._page[start:end]


def fnv_1a(data: bytes) -> int:
    """The 64-bit FNV-1a hash, bbolt's checksum of a meta page."""
    value = _FNV_OFFSET
    for byte in data:
        value = (value ^ byte) * _FNV_PRIME & _MASK_64
    return value
