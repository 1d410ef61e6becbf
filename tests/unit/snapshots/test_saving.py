"""The promise: `store.snapshot(path)` makes one verified file or none, replaces nothing, and returns the manifest."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.snapshot_support import NOON, change, small_state, snapshot_of
from tests.watched_files import WatchedFiles
from warren_raft.errors import (
    Closed,
    RefusedForSafety,
    SnapshotInvalid,
    StorageFull,
)
from warren_raft.local.store import LocalStore
from warren_raft.model.entities import Node
from warren_raft.snapshots import saving
from warren_raft.snapshots.file import read_manifest
from warren_raft.snapshots.saving import (
    LEFTOVER_SECONDS,
    new_file,
    require_hash,
    save,
    take_nameless,
)
from warren_raft.snapshots.verification import verify
from warren_raft.store import codec
from warren_raft.store.database import Database
from warren_raft.store.tables import NODE


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with small_state(tmp_path / "data", containers=5) as opened:
        yield opened


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def saved(database: Database, path: Path, **more: Any) -> None:
    save(database, path, created_at=NOON, node_id="n1", quorum=True, **more)


def test_a_local_store_saves_its_state(tmp_path: Path, out: Path) -> None:
    before = datetime.now(UTC)
    with LocalStore(tmp_path / "store") as store:
        store.create_node(Node(id="n1"))
        told = store.snapshot(out / "s.mdb")
        store.create_node(Node(id="n2"))
    manifest = verify(out / "s.mdb")
    assert told == manifest
    assert told.counts["nodes"] == 1
    assert told.revision == 1
    assert told.cluster_id is None
    assert before <= manifest.created_at <= datetime.now(UTC)
    assert os.listdir(out) == ["s.mdb"]
    assert stat.S_IMODE((out / "s.mdb").stat().st_mode) == 0o600
    with pytest.raises(Closed):
        store.snapshot(out / "late.mdb")


@pytest.mark.parametrize("what", ["file", "directory", "link that leads nowhere"])
def test_an_existing_file_is_never_replaced(database: Database, out: Path, what: str) -> None:
    path = out / "s.mdb"
    if what == "file":
        path.write_text("precious")
    elif what == "directory":
        path.mkdir()
    else:
        path.symlink_to(out / "nowhere")
    with pytest.raises(RefusedForSafety, match="is a directory" if what == "directory" else "exists already"):
        saved(database, path)
    assert os.listdir(out) == ["s.mdb"]


def test_a_file_that_was_put_there_meanwhile_is_not_replaced_either(
    database: Database, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "verify_in_child", lambda *_a, **_n: (out / "s.mdb").write_text("precious"))
    with pytest.raises(RefusedForSafety):
        saved(database, out / "s.mdb")
    assert (out / "s.mdb").read_text() == "precious"
    assert os.listdir(out) == ["s.mdb"]


def test_a_file_system_without_links_does_as_well(database: Database, out: Path) -> None:
    files = WatchedFiles()
    files.refuse("link", errno.EPERM)
    saved(database, out / "s.mdb", files=files)
    assert os.listdir(out) == ["s.mdb"]
    with pytest.raises(RefusedForSafety):
        saved(database, out / "s.mdb", files=files)


def test_a_state_that_is_not_sound_is_not_saved(database: Database, out: Path) -> None:
    """The digest fits, the record does not: only the full verification finds that."""
    record = codec.make_record(1, b"\x82\x61x")
    change(database, lambda transaction: transaction.put(NODE, "x", record), new_digest=True)
    with pytest.raises(SnapshotInvalid, match="node 'x' cannot be read"):
        saved(database, out / "s.mdb")
    assert os.listdir(out) == []


def test_it_has_its_name_only_when_it_is_verified_and_on_disk(
    database: Database, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[str, bool]] = []

    def step(name: str, _path: str = "") -> None:
        steps.append((name, (out / "s.mdb").exists()))

    monkeypatch.setattr(saving, "verify_in_child", lambda *_arguments, **_named: step("verify"))
    saved(database, out / "s.mdb", files=WatchedFiles(watcher=step))
    assert steps == [
        ("make_file", False),
        ("write", False),
        ("sync", False),
        ("verify", False),
        ("link", False),
        ("unlink", True),
        ("sync_directory", True),
    ]


def test_a_full_disk_and_a_missing_directory_leave_nothing(database: Database, out: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        saved(database, out / "none" / "s.mdb")
    assert caught.value.filename == str(out / "none" / "s.mdb")
    files = WatchedFiles()
    files.refuse("write", errno.ENOSPC)
    with pytest.raises(StorageFull):
        saved(database, out / "s.mdb", files=files)
    assert os.listdir(out) == []


def test_a_store_that_closes_ends_it(database: Database, out: Path) -> None:
    closing = threading.Event()
    closing.set()
    with pytest.raises(Closed):
        saved(database, out / "s.mdb", cancel=closing)
    assert os.listdir(out) == []


def test_an_interrupt_leaves_nothing(out: Path) -> None:
    def interrupted() -> None:
        with new_file(out / "s.mdb") as part:
            Path(part).write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert os.listdir(out) == []


def test_the_part_of_a_killed_save_goes_with_the_next_save_a_day_later(database: Database, out: Path) -> None:
    """The part is as large as the state, and nothing else would ever remove it. A part that is being filled is
    younger."""
    others = ["s.mdb.89abcdef.part", "s.mdb.0123abcd.part.part", "s.mdb.mine.part", "t.mdb.0123abcd.part"]
    for name in ["s.mdb.0123abcd.part", *others]:
        (out / name).touch()
    for name in ["s.mdb.0123abcd.part", *others[1:]]:
        os.utime(out / name, (0, time.time() - LEFTOVER_SECONDS - 1))
    saved(database, out / "s.mdb")
    assert sorted(os.listdir(out)) == sorted(["s.mdb", *others])


def test_a_part_that_cannot_be_removed_does_not_prevent_a_save(
    database: Database, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (out / "s.mdb.0123abcd.part").mkdir()
    os.utime(out / "s.mdb.0123abcd.part", (0, 0))
    saved(database, out / "s.mdb")
    assert "not removed" in caplog.text


def test_a_file_that_was_changed_on_its_way_is_refused(database: Database, out: Path) -> None:
    snapshot_of(database, out / "s.mdb")
    assert require_hash(out / "s.mdb") == read_manifest(out / "s.mdb")
    data = bytearray((out / "s.mdb").read_bytes())
    data[4242] ^= 1
    (out / "s.mdb").write_bytes(data)
    with pytest.raises(SnapshotInvalid, match="on its way"):
        require_hash(out / "s.mdb")


def test_a_nameless_one_takes_no_name(database: Database, out: Path) -> None:
    def take(path: str) -> None:
        assert os.path.basename(path).endswith(".part"), "else a start would not remove the rest of it"
        snapshot_of(database, Path(path))

    with open(take_nameless(str(out), take), "rb") as file:
        assert os.listdir(out) == []
        (out / "s.mdb").write_bytes(file.read())
    verify(out / "s.mdb")
    with pytest.raises(ZeroDivisionError):
        take_nameless(str(out), lambda _path: 1 / 0)
    assert os.listdir(out) == ["s.mdb"]


def test_a_snapshot_for_a_pipe_goes_into_it_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    reading, writing = os.pipe()
    try:
        with new_file(Path(f"/dev/fd/{writing}")) as part:
            assert Path(part).is_relative_to(tmp_path / "temporary")
            Path(part).write_bytes(b"a snapshot")
        assert os.read(reading, 100) == b"a snapshot"
    finally:
        os.close(reading)
        os.close(writing)
    assert os.listdir(tmp_path / "temporary") == []
