"""The tests' own model of a power cut (tests/page_cache.py) takes all unsynced data, and nothing else.

A model that loses too little finds nothing; one that loses too much blames the product.
"""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

import pytest

from tests.page_cache import PageCache
from warren_raft.disk.durable import make_directory, replace_file, sync_directory


def cut(cache: PageCache, *, keep_pages: float = 0.0, name_changes: int = 0) -> None:
    cache.cut(Random(1), keep_pages=keep_pages, name_changes=name_changes)


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def write(path: Path, data: bytes, *, sync: bool) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(descriptor, data)
        if sync:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    directory = tmp_path / "data"
    (directory / "sub").mkdir(parents=True)
    (directory / "sub" / "old").write_bytes(b"old")
    return directory


def test_the_earlier_content_stays(root: Path) -> None:
    cache = PageCache(root)
    with cache.watching():
        pass
    cut(cache)
    assert tree(root) == {"sub/old": b"old"}


def test_a_file_needs_its_own_sync_and_that_of_its_directory(root: Path) -> None:
    cache = PageCache(root)
    with cache.watching():
        write(root / "neither", b"x", sync=False)
        write(root / "content", b"x", sync=True)
        write(root / "sub" / "name", b"x", sync=False)
        sync_directory(str(root / "sub"))
        write(root / "sub" / "both", b"x", sync=True)
        sync_directory(str(root / "sub"))
    cut(cache)
    assert tree(root) == {"sub/old": b"old", "sub/name": b"", "sub/both": b"x"}


def test_an_overwritten_file_is_the_old_one_or_the_new_one(root: Path) -> None:
    for keep, left in ((0.0, b"old"), (1.0, b"new")):
        cache = PageCache(root)
        with cache.watching():
            write(root / "sub" / "old", b"new", sync=False)
        cut(cache, keep_pages=keep)
        assert tree(root) == {"sub/old": left}


def test_a_rename_is_whole_and_durable_with_either_directory(root: Path) -> None:
    cache = PageCache(root)
    with cache.watching():
        os.rename(root / "sub" / "old", root / "moved")
    cut(cache)
    assert tree(root) == {"sub/old": b"old"}
    cache = PageCache(root)
    with cache.watching():
        os.rename(root / "sub" / "old", root / "moved")
        sync_directory(str(root))
    cut(cache)
    assert tree(root) == {"moved": b"old"}


def test_names_that_were_not_synced_survive_in_their_order(root: Path) -> None:
    for survivors, left in ((1, {"sub/old", "a"}), (2, {"sub/old", "a", "b"})):
        cache = PageCache(root)
        with cache.watching():
            for name in "abc":
                write(root / name, b"x", sync=True)
        cut(cache, name_changes=survivors)
        assert tree(root).keys() == left
        (root / "a").unlink()


def test_data_that_the_product_calls_durable_is_durable(root: Path) -> None:
    cache = PageCache(root)
    with cache.watching():
        make_directory(str(root / "one" / "two"))
        replace_file(str(root / "one" / "two" / "note"), b"kept")
        descriptor = os.open(root / "sub", os.O_RDONLY)
        os.unlink("old", dir_fd=descriptor)
        os.fsync(descriptor)
        os.close(descriptor)
    cut(cache)
    assert tree(root) == {"one/two/note": b"kept"}
