"""The promise: a snapshot is one file, complete or absent, readable only by its owner, that proves its own content."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import random
import resource
import stat
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from tests.snapshot_support import NOON, add_node, database_in, snapshot_of
from tests.watched_files import WatchedFiles
from warren_raft.errors import RefusedForSafety, SnapshotInvalid, StorageFull
from warren_raft.fsm.machine import StateMachine
from warren_raft.snapshots.file import (
    MAGIC,
    TRAILER_BYTES,
    SnapshotInfo,
    extract,
    make_trailer,
    read_manifest,
    write,
)
from warren_raft.snapshots.verification import verify
from warren_raft.store.database import Database, StorageFailed

# ---- writing


def test_the_manifest_agrees_with_the_state(database: Database, tmp_path: Path) -> None:
    manifest = snapshot_of(database, tmp_path / "s.mdb")
    machine = StateMachine(database)
    data = (tmp_path / "s.mdb").read_bytes()
    assert manifest == SnapshotInfo(
        cluster_id="cluster-1",
        index=machine.applied_index,
        term=1,
        revision=machine.revision,
        digest=machine.digest.hex(),
        counts=manifest.counts,
        size_bytes=len(data) - TRAILER_BYTES,
        sha256=hashlib.sha256(data[:-TRAILER_BYTES]).hexdigest(),
        created_at=NOON,
        node_id="n1",
        quorum=True,
    )
    assert manifest.counts["containers"] == 42
    assert manifest.counts["certificates"] == 1
    assert "ca" not in manifest.counts
    assert read_manifest(tmp_path / "s.mdb") == manifest


def test_a_time_in_another_zone_is_told_in_utc(database: Database, tmp_path: Path) -> None:
    there = NOON.astimezone(timezone(timedelta(hours=5)))
    manifest = write(database, tmp_path / "s.mdb", created_at=there, node_id="n1", quorum=False)
    assert manifest.to_json()["created_at"] == "2026-11-22T12:00:00.000000Z"
    assert not manifest.quorum


def test_only_its_owner_may_read_it_whatever_the_umask(database: Database, tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        snapshot_of(database, tmp_path / "s.mdb")
        extract(tmp_path / "s.mdb", tmp_path / "copy.mdb")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "s.mdb").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "copy.mdb").stat().st_mode) == 0o600


@pytest.mark.parametrize("link", [False, True])
def test_an_existing_file_or_link_is_not_touched(database: Database, tmp_path: Path, link: bool) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"precious")
    path = tmp_path / "s.mdb"
    if link:
        path.symlink_to(elsewhere)
    else:
        path.write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        snapshot_of(database, path)
    assert path.read_bytes() == b"precious"


def test_a_link_that_leads_nowhere_is_not_followed(database: Database, path: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError):
        snapshot_of(database, tmp_path / "link")
    with pytest.raises(FileExistsError):
        extract(path, tmp_path / "link")
    assert not (tmp_path / "nowhere").exists()


def refuse(code: int) -> Callable[..., Any]:
    def call(*_arguments: object) -> Any:
        raise OSError(code, os.strerror(code))

    return call


def refusing(operation: str, error: int) -> WatchedFiles:
    files = WatchedFiles()
    files.refuse(operation, error)
    return files


@pytest.mark.parametrize("operation", ["make_file", "write", "sync"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_nothing(database: Database, tmp_path: Path, operation: str, code: int) -> None:
    with pytest.raises(StorageFull, match=r"s\.mdb: no space"):
        snapshot_of(database, tmp_path / "s.mdb", files=refusing(operation, code))
    assert not (tmp_path / "s.mdb").exists()


def test_a_disk_that_fails_leaves_nothing(database: Database, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Input/output error"):
        snapshot_of(database, tmp_path / "s.mdb", files=refusing("sync", errno.EIO))
    assert not (tmp_path / "s.mdb").exists()


def test_a_copy_that_lmdb_could_not_finish_names_the_file_that_was_to_be(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_arguments: object) -> None:
        raise StorageFailed("1.mdb", "Input/output error", errno.EIO)

    monkeypatch.setattr(Database, "copy_to", broken)
    with pytest.raises(OSError, match="Input/output error") as caught:
        snapshot_of(database, tmp_path / "s.mdb")
    assert caught.value.filename == str(tmp_path / "s.mdb")
    assert not (tmp_path / "s.mdb").exists()


def test_a_copy_that_would_be_larger_than_a_file_may_be_says_so(database: Database, tmp_path: Path) -> None:
    _, hard = before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(StorageFull, match="the snapshot cannot be written: a file would become larger") as caught:
            snapshot_of(database, tmp_path / "s.mdb")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(caught.value).startswith(str(tmp_path / "s.mdb"))
    assert not (tmp_path / "s.mdb").exists()


def test_lmdb_without_space_is_storage_full_of_the_copy(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object) -> None:
        raise StorageFull("of the state")

    monkeypatch.setattr(Database, "copy_to", full)
    with pytest.raises(StorageFull, match=r"s\.mdb: no space left for the snapshot"):
        snapshot_of(database, tmp_path / "s.mdb")
    assert not (tmp_path / "s.mdb").exists()


def test_a_snapshot_holds_the_state_at_its_beginning(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copy, index, digest and counts are of one moment, in spite of writes meanwhile."""
    index, copy_to = StateMachine(database).applied_index, Database.copy_to

    def with_a_write_before(self: Database, *arguments: Any) -> None:
        add_node(self, "late")
        copy_to(self, *arguments)

    monkeypatch.setattr(Database, "copy_to", with_a_write_before)
    manifest = snapshot_of(database, tmp_path / "s.mdb")
    assert manifest.index == index
    assert verify(tmp_path / "s.mdb") == manifest


# ---- every kind of damage


def test_every_flipped_bit_is_found(path: Path) -> None:
    data, source = bytearray(path.read_bytes()), random.Random(4)
    places = [source.randrange(8 * len(data)) for _ in range(700)]
    places += [8 * (len(data) - TRAILER_BYTES) + source.randrange(8 * TRAILER_BYTES) for _ in range(300)]
    with open(path, "r+b") as file:
        for place in places:
            position, bit = divmod(place, 8)
            os.pwrite(file.fileno(), bytes([data[position] ^ 1 << bit]), position)
            with pytest.raises(SnapshotInvalid):
                verify(path)
            os.pwrite(file.fileno(), data[position : position + 1], position)
    verify(path)


def test_every_flipped_bit_of_the_last_page_is_found_by_a_reader_of_that_page(path: Path) -> None:
    data = bytearray(path.read_bytes())
    with open(path, "r+b") as file:
        for position in range(len(data) - TRAILER_BYTES, len(data)):
            os.pwrite(file.fileno(), bytes([data[position] ^ 1 << position % 8]), position)
            with pytest.raises(SnapshotInvalid):
                read_manifest(path)
            os.pwrite(file.fileno(), data[position : position + 1], position)
    read_manifest(path)


def test_every_cut_is_found(path: Path) -> None:
    size = path.stat().st_size
    cuts = {*range(0, size, 4096), *random.Random(4).sample(range(size), 100), 0, 1, size - 1, size - 32}
    data = path.read_bytes()
    for cut in cuts:
        path.write_bytes(data[:cut])
        with pytest.raises(SnapshotInvalid):
            read_manifest(path)
        with pytest.raises(SnapshotInvalid):
            verify(path)


def test_a_page_that_is_missing_in_the_middle_or_too_many_is_found(path: Path) -> None:
    data = path.read_bytes()
    for wrong in (data[:4096] + data[8192:], data[:8192] + data[4096:], data + b"\0" * 4096, data + b"\n", data + data):
        path.write_bytes(wrong)
        with pytest.raises(SnapshotInvalid):
            read_manifest(path)


# ---- files that are not snapshots


def test_other_files_are_not_taken_for_snapshots(database: Database, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("warren" * 1000)
    (tmp_path / "plain.mdb").write_bytes(bytes(database_in(_written(database, tmp_path))))
    os.mkfifo(tmp_path / "pipe")
    for name in ("empty", "text", "plain.mdb", "pipe", "data"):
        with pytest.raises(SnapshotInvalid) as caught:
            verify(tmp_path / name)
        assert caught.value.path == str(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        verify(tmp_path / "missing")


def _written(database: Database, tmp_path: Path) -> Path:
    snapshot_of(database, tmp_path / "s.mdb")
    return tmp_path / "s.mdb"


def test_a_newer_format_is_refused_and_not_called_damaged(path: Path) -> None:
    data = bytes(database_in(path))
    path.write_bytes(data + make_trailer(replace(read_manifest(path), format=2)))
    for read in (read_manifest, verify):
        with pytest.raises(RefusedForSafety, match="format 2"):
            read(path)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"{}", b"null", b"\xff", b"[" * 3000, b'{"index": 1}'],
)
def test_a_manifest_that_is_none_is_damage(path: Path, body: bytes) -> None:
    page = (MAGIC + b"\0\0\0\1" + len(body).to_bytes(4, "big") + body).ljust(TRAILER_BYTES - 32, b"\0")
    path.write_bytes(bytes(database_in(path)) + page + hashlib.sha256(page).digest())
    with pytest.raises(SnapshotInvalid, match="last page"):
        read_manifest(path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"index": "1"}, {"index": -1}, {"term": True}, {"revision": None}, {"size_bytes": 1.0}, {"digest": 1},
        {"cluster_id": 1}, {"counts": []}, {"counts": {"nodes": "1"}}, {"created_at": 1}, {"created_at": "noon"},
        {"created_at": "2026-11-22T12:00:00"}, {"node_id": None}, {"quorum": 1}, {"sha256": None},
        {"created_at": "0001-01-01T00:00:00+23:59"}, {"created_at": "9999-12-31T23:59:59-23:59"},
        {"created_at": ["2026"]}, {"index": 10**30}, {"revision": 2**63}, {"counts": {"nodes": -1}},
        {"counts": {"\ud800": 1}}, {"node_id": "\ud800"}, {"node_id": "\x1b[2Jn1"}, {"cluster_id": "a\nb"},
        {"digest": "00"}, {"sha256": "G" * 64},
    ],
)  # fmt: skip
def test_a_value_of_a_wrong_type_is_no_manifest(path: Path, wrong: dict[str, Any]) -> None:
    good = read_manifest(path).to_json()
    assert SnapshotInfo.from_json(good | {"added by a newer release": 1}) == read_manifest(path)
    with pytest.raises(ValueError, match=r"manifest|isoformat"):
        SnapshotInfo.from_json(good | wrong)


# ---- getting the database out


def without_reflink(*_arguments: object) -> Any:
    raise OSError(errno.EOPNOTSUPP, "no reflink")


@pytest.mark.parametrize("how", ["as this file system does it", "in the kernel", "by hand"])
def test_the_extracted_file_is_the_database_and_the_snapshot_stays(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how != "as this file system does it":
        monkeypatch.setattr(fcntl, "ioctl", without_reflink)
    if how == "by hand":
        monkeypatch.setattr(os, "copy_file_range", refuse(errno.EXDEV))
    before = path.read_bytes()
    target = tmp_path / "copy.mdb"
    assert extract(path, target) == read_manifest(path)
    assert target.read_bytes() == before[:-TRAILER_BYTES]
    assert target.stat().st_ino != path.stat().st_ino
    target.write_bytes(b"x" * 5000)
    assert path.read_bytes() == before


def test_a_file_system_that_shares_blocks_is_asked_first(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reflink shares the whole file, so the part after the database is cut off."""

    def reflink(copy: int, request: int, source: int) -> int:
        assert request == 0x40049409
        return os.pwrite(copy, os.pread(source, 1 << 30, 0), 0)

    monkeypatch.setattr(fcntl, "ioctl", reflink)
    monkeypatch.setattr(os, "copy_file_range", refuse(errno.EIO))
    extract(path, tmp_path / "copy.mdb")
    assert (tmp_path / "copy.mdb").read_bytes() == path.read_bytes()[:-TRAILER_BYTES]


@pytest.mark.parametrize("how", ["in the kernel", "by hand", "at the sync"])
def test_a_full_disk_leaves_no_half_of_the_database(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(fcntl, "ioctl", without_reflink)
    if how != "at the sync":
        monkeypatch.setattr(os, "copy_file_range", refuse(errno.ENOSPC if how == "in the kernel" else errno.EXDEV))
    files = refusing("write" if how == "by hand" else "sync", errno.ENOSPC)
    with pytest.raises(StorageFull, match=r"copy\.mdb"):
        extract(path, tmp_path / "copy.mdb", files=files)
    assert not (tmp_path / "copy.mdb").exists()


def test_a_snapshot_that_shrinks_while_it_is_copied_is_noticed(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "ioctl", without_reflink)
    monkeypatch.setattr(os, "copy_file_range", lambda *_arguments: 0)
    with pytest.raises(SnapshotInvalid, match="shorter"):
        extract(path, tmp_path / "copy.mdb")
    assert not (tmp_path / "copy.mdb").exists()


def test_an_extracted_database_is_a_state_to_continue_from(path: Path, tmp_path: Path) -> None:
    manifest = read_manifest(path)
    with Database.open(tmp_path / "other", sync=True) as made:
        target = made.path
    os.unlink(target)
    extract(path, target)
    with Database.open(tmp_path / "other", sync=True) as opened:
        assert StateMachine(opened).digest.hex() == manifest.digest
        add_node(opened, "new")
        assert StateMachine(opened).applied_index == manifest.index + 1
    verify(path)
