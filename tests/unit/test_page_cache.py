"""The tests' own model of a power cut (tests/page_cache.py) takes all unsynced data, and nothing else.

A model that loses too little finds nothing; one that loses too much blames the product.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from random import Random

import pytest

from tests.killed import Killed
from tests.page_cache import PageCache
from warren_raft.disk.durable import make_directory, replace_file


def cut(cache: PageCache, *, keep_pages: float = 0.0, name_changes: int = 0) -> None:
    cache.cut(Random(1), keep_pages=keep_pages, name_changes=name_changes)


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def write(cache: PageCache, path: Path, data: bytes, *, sync: bool) -> None:
    with closing(cache.open(str(path), create=True)) as file:
        file.write(0, data)
        if sync:
            file.sync()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    directory = tmp_path / "data"
    (directory / "sub").mkdir(parents=True)
    (directory / "sub" / "old").write_bytes(b"old")
    return directory


def test_the_earlier_content_stays(root: Path) -> None:
    cut(PageCache(root))
    assert tree(root) == {"sub/old": b"old"}


def test_a_file_needs_its_own_sync_and_that_of_its_directory(root: Path) -> None:
    cache = PageCache(root)
    write(cache, root / "neither", b"x", sync=False)
    write(cache, root / "content", b"x", sync=True)
    write(cache, root / "sub" / "name", b"x", sync=False)
    cache.sync_directory(str(root / "sub"))
    write(cache, root / "sub" / "both", b"x", sync=True)
    cache.sync_directory(str(root / "sub"))
    cut(cache)
    assert tree(root) == {"sub/old": b"old", "sub/name": b"", "sub/both": b"x"}


def test_an_overwritten_file_is_the_old_one_or_the_new_one(root: Path) -> None:
    for keep, left in ((0.0, b"old"), (1.0, b"new")):
        cache = PageCache(root)
        write(cache, root / "sub" / "old", b"new", sync=False)
        cut(cache, keep_pages=keep)
        assert tree(root) == {"sub/old": left}


def test_a_rename_is_whole_and_durable_with_either_directory(root: Path) -> None:
    cache = PageCache(root)
    cache.rename(str(root / "sub" / "old"), str(root / "moved"))
    cut(cache)
    assert tree(root) == {"sub/old": b"old"}
    cache = PageCache(root)
    cache.rename(str(root / "sub" / "old"), str(root / "moved"))
    cache.sync_directory(str(root))
    cut(cache)
    assert tree(root) == {"moved": b"old"}


def test_a_link_and_a_removed_tree_need_a_sync_too(root: Path) -> None:
    cache = PageCache(root)
    cache.link(str(root / "sub" / "old"), str(root / "second"))
    cache.remove_tree(str(root / "sub"))
    cut(cache)
    assert tree(root) == {"sub/old": b"old"}
    cache = PageCache(root)
    cache.link(str(root / "sub" / "old"), str(root / "second"))
    cache.remove_tree(str(root / "sub"))
    cache.sync_directory(str(root))
    cut(cache)
    assert tree(root) == {"second": b"old"}


def test_names_that_were_not_synced_survive_in_their_order(root: Path) -> None:
    for survivors, left in ((1, {"sub/old", "a"}), (2, {"sub/old", "a", "b"})):
        cache = PageCache(root)
        for name in "abc":
            write(cache, root / name, b"x", sync=True)
        cut(cache, name_changes=survivors)
        assert tree(root).keys() == left
        (root / "a").unlink()


def test_data_that_the_product_calls_durable_is_durable(root: Path) -> None:
    cache = PageCache(root)
    make_directory(str(root / "one" / "two"), files=cache)
    replace_file(str(root / "one" / "two" / "note"), b"kept", files=cache)
    cache.unlink(str(root / "sub" / "old"))
    cache.sync_directory(str(root / "sub"))
    cut(cache)
    assert tree(root) == {"one/two/note": b"kept"}


def test_after_its_death_a_process_changes_nothing(root: Path) -> None:
    """Its clean-up must not run either."""
    cache = PageCache(root, dies_at=1)
    cache.make_directory(str(root / "one"))
    for _ in range(2):
        with pytest.raises(Killed):
            cache.unlink(str(root / "sub" / "old"))
    assert tree(root) == {"sub/old": b"old"}
