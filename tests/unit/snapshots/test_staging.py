"""The promise: a directory's log, state and snapshots are replaced together or not at all, and nothing is removed."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from warren_raft.disk import privacy
from warren_raft.errors import Corrupted
from warren_raft.snapshots import staging

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


def fill(directory: Path, text: str) -> None:
    for name in staging.OURS:
        (directory / name).mkdir(parents=True)
        (directory / name / "file").write_text(text)


def contents(directory: Path) -> dict[str, str]:
    return {str(p.relative_to(directory)): p.read_text() for p in sorted(directory.rglob("*")) if p.is_file()}


def test_old_files_go_aside_and_strangers_stay(tmp_path: Path) -> None:
    fill(tmp_path, "old")
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    fill(Path(staging.begin(tmp_path)), "new")
    before = contents(tmp_path)
    assert staging.finish(tmp_path) is None, "not before the commit"
    assert contents(tmp_path) == before
    staging.commit(tmp_path, NOON)
    aside = tmp_path / "aside-20261122T120000Z"
    assert staging.finish(tmp_path) == str(aside)
    assert staging.asides(tmp_path) == [str(aside)]
    new = {f"{name}/file": "new" for name in staging.OURS}
    assert contents(tmp_path) == new | {"notes.txt": "mine"} | {
        f"{aside.name}/{name}/file": "old" for name in staging.OURS
    }
    assert staging.finish(tmp_path) is None


def test_a_directory_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert staging.asides(tmp_path / "m1") == privacy.strangers(tmp_path / "m1") == staging.held(tmp_path / "m1") == []


def test_two_in_one_second_have_two_names(tmp_path: Path) -> None:
    for text in ("first", "second", "third"):
        fill(Path(staging.begin(tmp_path)), text)
        staging.commit(tmp_path, NOON)
        staging.finish(tmp_path)
    assert [Path(path).name for path in staging.asides(tmp_path)] == [
        "aside-20261122T120000Z",
        "aside-20261122T120000Z-2",
    ]


def test_an_empty_directory_gets_no_aside(tmp_path: Path) -> None:
    assert staging.held(tmp_path) == []
    fill(Path(staging.begin(tmp_path)), "new")
    staging.commit(tmp_path, NOON)
    assert staging.finish(tmp_path) is None
    assert staging.asides(tmp_path) == []
    assert staging.held(tmp_path) == list(staging.OURS)


def test_an_uncommitted_part_goes_with_the_next(tmp_path: Path) -> None:
    fill(Path(staging.begin(tmp_path)), "first")
    part = Path(staging.begin(tmp_path))
    assert contents(part) == {}
    staging.discard(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_was_not_written_there_is_not_followed(tmp_path: Path) -> None:
    fill(Path(staging.begin(tmp_path)), "new")
    staging.commit(tmp_path, NOON)
    (tmp_path / "restore.ready" / "aside").write_text("../elsewhere")
    with pytest.raises(Corrupted, match="not a name"):
        staging.finish(tmp_path)
