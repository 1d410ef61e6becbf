"""The promise: after an error the old content is in place, and nothing of a new file is left.

Each test lets every change that its module makes fail, one at a time: no space is left, or the disk is broken. The
process lives on. Files and LMDB are real. Not here: power cuts (test_power_cuts.py); the log (test_log_sweep.py).
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.fsm_harness import contents
from tests.snapshot_support import NOON, add_node, small_state, snapshot_of
from tests.unit.test_power_cuts import (
    NEW_KEY,
    OLD_KEY,
    directory_with,
    fill,
    opened,
    require_old_or_new,
    take_new_key,
    with_old_key,
)
from tests.watched_files import WatchedFiles
from warren_raft.certificates import files as tls_files
from warren_raft.disk.durable import replace_file
from warren_raft.disk.files import Files
from warren_raft.errors import StorageFull
from warren_raft.snapshots import saving, staging
from warren_raft.snapshots.directory import SnapshotDirectory
from warren_raft.snapshots.file import extract, read_manifest
from warren_raft.snapshots.verification import prove_state, verify
from warren_raft.store.database import Database
from warren_raft.store.lmdb_errors import StorageFailed

CLEAN_UP = {"unlink", "remove_directory"}
"""If a name cannot be removed, the clean-up after an error is impossible too: these do not fail here."""


def every_failure(
    root: Path, make: Callable[[Path], object], step: Callable[[Files], object]
) -> Iterator[Exception | None]:
    """`root`, made by `make`, after `step` with each of its changes failing. With the error of `step`, None: it went
    through."""
    for error in (errno.ENOSPC, errno.EIO):
        for operations in count():
            make(root)
            files = WatchedFiles()
            files.fail_after(operations, error)
            raised: Exception | None = None
            try:
                step(files)
            except (OSError, StorageFull, StorageFailed) as problem:
                raised = problem
            if files.failed not in CLEAN_UP:
                yield raised
            shutil.rmtree(root)
            if not files.failed:
                assert operations > 1, "it changes nothing"
                break


@pytest.fixture(autouse=True)
def no_syncs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is lost here, and hundreds of runs would wait for the real disk."""
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, lambda _descriptor: None)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with small_state(tmp_path / "data", containers=5) as made:
        yield made


def test_a_replaced_file_leaves_no_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "root" / "file"
    for error in every_failure(
        path.parent, directory_with("file"), lambda files: replace_file(str(path), b"new", files=files)
    ):
        assert path.read_bytes() in ([b"new"] if error is None else [b"precious", b"new"])
        assert os.listdir(path.parent) == ["file"]


def test_a_save_that_fails_leaves_no_file(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "verify_in_child", lambda part, **_options: verify(part))
    root = tmp_path / "root"

    def save(files: Files) -> None:
        saving.save(database, root / "s.mdb", created_at=NOON, node_id="n1", quorum=True, files=files)

    for error in every_failure(root, directory_with("other.mdb"), save):
        assert sorted(os.listdir(root)) == (["other.mdb", "s.mdb"] if error is None else ["other.mdb"])


def test_a_snapshot_that_cannot_be_taken_leaves_no_part_of_it(database: Database, tmp_path: Path) -> None:
    root = tmp_path / "root"

    def step(files: Files) -> None:
        SnapshotDirectory(root, files=files).take(database, created_at=NOON, node_id="n1", quorum=True, verify=verify)

    for error in every_failure(root, lambda root: SnapshotDirectory(root).create(), step):
        names = os.listdir(root / "snapshots")
        assert not [name for name in names if not name.endswith(".mdb")]
        assert all(verify(root / "snapshots" / name) for name in names)
        assert names or error is not None


def test_a_database_that_cannot_be_extracted_leaves_no_half_of_it(database: Database, tmp_path: Path) -> None:
    root = tmp_path / "root"
    snapshot_of(database, tmp_path / "s.mdb")
    size = read_manifest(tmp_path / "s.mdb").size_bytes
    step = lambda files: extract(tmp_path / "s.mdb", root / "copy.mdb", files=files)  # noqa: E731
    for error in every_failure(root, directory_with("other"), step):
        assert (root / "copy.mdb").exists() == (error is None)
        assert error is not None or (root / "copy.mdb").stat().st_size == size


def test_a_restore_that_fails_does_not_take_place_later(tmp_path: Path) -> None:
    """(Pins a bug: when the directory could not be synced, the operator read of a failure, and the next start of the
    manager completed the restore.)"""
    root, committed = tmp_path / "root", False

    def step(files: Files) -> None:
        nonlocal committed
        committed = False
        try:
            fill(Path(staging.begin(root, files=files)), "new", files=files)
            staging.commit(root, NOON, files=files)
        except OSError:
            staging.discard(root)
            raise
        committed = True
        staging.finish(root, files=files)

    for error in every_failure(root, lambda root: fill(root, "old"), step):
        assert committed or error is not None
        staging.finish(root)
        require_old_or_new(root, is_done=committed)
        assert bool(staging.asides(root)) == committed


def test_keys_and_certificates_belong_together(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for error in every_failure(root, with_old_key, lambda files: take_new_key(root, files)):
        tls_files.finish(root)
        assert tls_files.contents(root) in ([NEW_KEY] if error is None else [OLD_KEY, NEW_KEY])


def test_a_store_that_cannot_go_on_in_a_copy_loses_no_write(tmp_path: Path) -> None:
    """Either it writes on in the old file, and that is the file of the next start; or it writes no more. (Pins a bug:
    when the directory could not be synced, the pointer named the copy, and the copy was removed. The next start found
    no state.)"""
    root, refused = tmp_path / "root", 0
    expected: dict[str, object] = {}

    def make(root: Path) -> None:
        with small_state(root, containers=5):
            pass

    def step(files: Files) -> None:
        with Database.open(opened(root, 1), sync=True) as old:
            old._files = old._state.files = files  # type: ignore[misc, union-attr]
            try:
                old.renewed().close()
            except (OSError, StorageFull):
                add_node(old, "n-later")
                raise
            finally:
                expected.update(contents(old))

    for error in every_failure(root, make, step):
        refused += isinstance(error, StorageFailed)
        with Database.open(opened(root, 2), sync=True, prove=prove_state) as found:
            assert contents(found) == expected
    assert refused > 0
