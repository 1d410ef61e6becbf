"""The quick walk over a database's pages: it accepts nothing that LMDB's own verifier does not accept."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

import lmdb.verify
import pytest

from tests.fast import fast_first
from tests.snapshot_support import small_state
from warren_raft.model.entities import Secret
from warren_raft.snapshots import structure
from warren_raft.store.operations import put_operation
from warren_raft.store.tables import SECRET

PAGE = 4096


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A copy of a state with pages of every sort: branches, leaves, long values, sets of many and of few ids."""
    copy = tmp_path / "state.mdb"
    with small_state(tmp_path / "data", containers=1_500) as database:
        with database.write() as transaction:
            for number in range(3):
                operation = put_operation(SECRET, Secret(id=f"s-{number}", data=b"x" * 9_000), None)
                assert operation.entity is not None
                transaction.put(SECRET, f"s-{number}", b"\x82\x01" + operation.entity)
        with copy.open("wb") as file:
            database.copy_to(file.fileno())
    return copy


def answer(verify: Callable[[], list[str]]) -> object:
    try:
        return verify()
    except Exception as error:  # noqa: BLE001  # whatever it is, both have to raise it
        return type(error), str(error)


def both(path: Path) -> tuple[object, object]:
    return (
        answer(lambda: structure.problems_of(partial(io.FileIO, path))),
        answer(lambda: lmdb.verify.verify(str(path))),  # type: ignore[no-untyped-call]
    )


def test_a_sound_database_is_sound_and_most_of_its_leaves_are_walked_quickly(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow: list[int] = []

    def walk_leaf(_self: object, _ctx: object, pgno: int, _buf: bytes) -> None:
        slow.append(pgno)

    assert both(path) == ([], [])
    assert structure._is_quickly_sound(partial(io.FileIO, path))
    monkeypatch.setattr(lmdb.verify._Verifier, "_walk_leaf", walk_leaf)
    structure._is_quickly_sound(partial(io.FileIO, path))
    assert len(slow) < path.stat().st_size / PAGE / 5


def test_a_database_that_is_not_walked_quickly_is_sound_all_the_same(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An LMDB whose verifier has other insides costs time, and no state."""

    def fail(*_arguments: object) -> None:
        raise AttributeError("other insides")

    monkeypatch.setattr(structure._QuickVerifier, "_walk_leaf", fail)
    assert both(path) == ([], [])


@pytest.mark.parametrize("seed", fast_first(range(4), 1))
def test_every_damage_has_the_answer_of_lmdbs_own_verifier(path: Path, seed: int) -> None:
    """In the header of a page, in its pointers, in the headers of its nodes, in their keys, and anywhere."""
    random, sound = Random(seed), path.read_bytes()
    found = 0
    for _ in range(150):
        data = bytearray(sound)
        page = random.randrange(len(sound) // PAGE) * PAGE
        pointers_end = int.from_bytes(data[page + 12 : page + 14], "little")
        pointer = random.randrange(16, min(max(pointers_end, 18), PAGE), 2)
        node = int.from_bytes(data[page + pointer : page + pointer + 2], "little")
        at = page + random.choice(
            (
                random.randrange(16),
                pointer + random.randrange(2),
                min(node + random.randrange(8), PAGE - 1),
                min(node + 8 + random.randrange(20), PAGE - 1),
                random.randrange(PAGE),
            )
        )
        data[at] = random.choice((data[at] ^ 1 << random.randrange(8), 0, 255, (data[at] + 1) & 255))
        path.write_bytes(data)
        ours, lmdbs = both(path)
        assert ours == lmdbs, f"page {page // PAGE}, byte {at - page}"
        found += lmdbs != []
    assert found > 30


def test_a_file_that_is_no_database_is_refused_as_by_lmdbs_own_verifier(tmp_path: Path) -> None:
    for content in (b"", b"\0" * 3 * PAGE, b"warren" * 5_000):
        (tmp_path / "file").write_bytes(content)
        ours, lmdbs = both(tmp_path / "file")
        assert ours == lmdbs
        assert ours != []


def test_an_error_of_the_machine_is_raised(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        structure.problems_of(partial(io.FileIO, path.with_name("missing")))
