"""The promise: the description of a stopped manager's directory is true, and making it changes nothing there.

An operator at night compares the directories that are left; a look must not be a start.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.memory_files import MemoryFiles
from tests.snapshot_support import small_state, snapshot_of
from tests.unit.test_restoring import CLUSTER, MEMBERS, everything, opened, survivor
from warren_raft.data_dir.description import (
    LEARNER,
    REMOVED,
    VOTER,
    WAITING,
    describe,
)
from warren_raft.disk import last_failure
from warren_raft.disk.files import OsFiles
from warren_raft.errors import Corrupted, InUse, RefusedForSafety
from warren_raft.raft import entries
from warren_raft.raft.log import opening as log_opening
from warren_raft.raft.log.log import Log
from warren_raft.raft.membership import (
    ADD,
    REMOVE,
    UPDATE,
    Change,
)
from warren_raft.recovery.recover import Recovery
from warren_raft.recovery.restore import restore
from warren_raft.snapshots import staging
from warren_raft.store.generations import StateDirectory
from warren_raft.store.ownership import DirectoryLock
from warren_raft_cli.describe import describe as describe_command


def test_it_says_node_cluster_members_and_how_far(tmp_path: Path) -> None:
    survivor(tmp_path / "m1")
    before = everything(tmp_path / "m1")
    said = describe(tmp_path / "m1").to_json()
    assert everything(tmp_path / "m1") == before
    size = (tmp_path / "m1" / "state" / "1.mdb").stat().st_size
    assert {name: said[name] for name in said if name not in ("digest", "counts", "log_bytes")} == {
        "data_dir": str(tmp_path / "m1"),
        "node_id": "m1",
        "cluster_id": CLUSTER,
        "origin": None,
        "standing": VOTER,
        "index": 14,
        "term": 3,
        "commit_index": 12,
        "applied_index": 8,
        "revision": 6,
        "state_problem": None,
        "members": [
            {"id": id_, "address": MEMBERS[id_], "voter": True, "standing": VOTER} for id_ in ("m1", "m2", "m3")
        ],
        "db_size_bytes": size,
        "snapshots": [],
        "aside": [],
    }
    assert said["counts"]["nodes"] == 6
    with opened(tmp_path / "m1").database.read() as transaction:
        assert transaction.revision == said["revision"]


def append(directory: Path, *changes: Change, committed: bool = True) -> None:
    """Membership changes at the end of a stopped manager's log, which its state has not got."""
    log = Log.open(str(directory / "log"), files=OsFiles(), node_id="m1", new_incarnation=lambda: "")
    for change in changes:
        log.append(entries.encode_change(change), log.last_index + 1, log.last_term)
    if committed:
        log.set_commit(log.last_index)
    batch = log.take_batch()
    assert batch is not None
    batch.write()
    log.complete(batch)
    log.close()


def test_members_are_those_of_the_last_change_that_is_known_to_be_committed(tmp_path: Path) -> None:
    survivor(tmp_path / "m1")
    append(tmp_path / "m1", Change(REMOVE, id="m3", incarnation="i-m3"))
    append(tmp_path / "m1", Change(UPDATE, id="m2", address="127.0.0.1:9", incarnation="i-m2"), committed=False)
    found = describe(tmp_path / "m1")
    assert [(member.id, member.address) for member in found.members] == [("m1", MEMBERS["m1"]), ("m2", MEMBERS["m2"])]
    last = found.membership_at(found.index)
    assert last is not None
    assert last.members["m2"].address == "127.0.0.1:9"


@pytest.mark.parametrize(
    ("changes", "standing"),
    [
        ([Change(REMOVE, id="m1", incarnation="i1")], REMOVED),
        (
            [Change(REMOVE, id="m1", incarnation="i1"), Change(ADD, id="m1", address="127.0.0.1:9", incarnation="i2")],
            REMOVED,
        ),
        (
            [Change(REMOVE, id="m1", incarnation="i1"), Change(ADD, id="m1", address="127.0.0.1:9", incarnation="i1")],
            LEARNER,
        ),
    ],
)
def test_it_says_whether_the_directory_is_still_a_member(tmp_path: Path, changes: list[Change], standing: str) -> None:
    survivor(tmp_path / "m1")
    append(tmp_path / "m1", *changes)
    assert describe(tmp_path / "m1").standing == standing


def test_a_damaged_log_has_the_way_back_with_the_id_and_the_address(tmp_path: Path) -> None:
    """(Pins a report: the commands named ID=HOST:PORT.)"""
    survivor(tmp_path / "m1")
    (segment,) = (tmp_path / "m1" / "log").glob("*.log")
    data = bytearray(segment.read_bytes())
    data[len(data.rstrip(b"\0")) * 3 // 4] ^= 1
    segment.write_bytes(data)
    with pytest.raises(Corrupted) as caught:
        describe(tmp_path / "m1")
    assert f"members remove m1; warren-raft members add m1={MEMBERS['m1']}" in caught.value.remedy


def test_it_says_that_it_was_removed_if_the_members_told_its_manager(
    tmp_path: Path,
) -> None:
    """(Pins two reports: the list in its own log still had it as a voter, and so had the table of members.)"""
    data_dir = tmp_path / "m1"
    survivor(data_dir)
    for incarnation, standing in (("", VOTER), ("i0", VOTER), ("i1", REMOVED)):
        last_failure.keep(data_dir, "m1 was removed", datetime.now(UTC), removed=incarnation)
        found = describe(data_dir)
        assert found.standing == standing
        own, *others = found.to_json()["members"]
        assert (own["id"], own["standing"], own["voter"]) == ("m1", standing, standing == VOTER)
        assert {(other["standing"], other["voter"]) for other in others} == {(VOTER, True)}
        table = CliRunner().invoke(describe_command, [str(data_dir)]).output.partition("\n\nID  ")[2]
        assert f"\nm1  {MEMBERS['m1']}  {standing}\nm2  {MEMBERS['m2']}  voter\n" in table
    for damaged in (b"", b"[]", b"{}", b'{"at": "2026", "text": 1, "removed": ""}', b"\xff"):
        (data_dir / last_failure.FILE_NAME).write_bytes(damaged)
        assert last_failure.read(data_dir) is None
    last_failure.forget(data_dir)
    last_failure.forget(data_dir)


def test_a_directory_that_waits_for_its_cluster_says_whom_it_was_restored_with(tmp_path: Path) -> None:
    with small_state(tmp_path / "old") as database:
        snapshot_of(database, tmp_path / "s.mdb")
    restored = restore(tmp_path / "s.mdb", tmp_path / "m1", node_id="m1", members=MEMBERS)
    found = describe(tmp_path / "m1")
    assert (found.standing, found.cluster_id, found.origin) == (WAITING, None, restored.cluster_id)
    assert {member.id: member.address for member in found.members} == MEMBERS
    assert found.address == MEMBERS["m1"]


def test_a_directory_that_was_recovered_names_the_old_one(tmp_path: Path) -> None:
    survivor(tmp_path / "m1")
    with Recovery(tmp_path / "m1") as recovery:
        aside = recovery.carry_out().aside
    found = describe(tmp_path / "m1")
    assert found.aside == (aside,)
    assert [member.id for member in found.members] == ["m1"]
    assert aside is not None
    assert describe(aside).cluster_id == CLUSTER


@pytest.mark.parametrize("harm", ["removed", "flipped"])
def test_without_a_state_that_can_be_read_the_log_tells_the_rest(tmp_path: Path, harm: str) -> None:
    """As after a power cut, when nobody reads the state before its manager has rebuilt it."""
    survivor(tmp_path / "m1")
    opened(tmp_path / "m1").close(failed=False)
    file = Path(StateDirectory(tmp_path / "m1").file_of(1))
    if harm == "removed":
        shutil.rmtree(tmp_path / "m1" / "state")
    else:
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(bytes(data))
    found = describe(tmp_path / "m1")
    assert found.state is None
    assert found.state_problem is not None
    assert found.state_problem.endswith("its manager rebuilds the state when it starts")
    assert (found.cluster_id, found.standing, found.index) == (CLUSTER, VOTER, 14)
    assert [member.id for member in found.members] == ["m1", "m2", "m3"]


def running(directory: Path) -> None:
    survivor(directory)
    lock = DirectoryLock(directory)
    try:
        with pytest.raises(InUse, match="has a running manager: see warren-raft status --data-dir"):
            describe(directory)
    finally:
        lock.release()


def unfinished(directory: Path) -> None:
    survivor(directory)
    part = Path(staging.begin(directory))
    (part / "log").mkdir()
    staging.commit(directory, datetime.now(UTC))
    with pytest.raises(RefusedForSafety, match="its next start finishes that"):
        describe(directory)


def no_manager_s(directory: Path) -> None:
    directory.mkdir()
    with pytest.raises(RefusedForSafety, match="holds no manager's log"):
        describe(directory)
    assert list(directory.iterdir()) == []
    with pytest.raises(
        RefusedForSafety, match=r"^there is no directory .*/nowhere: name the data directory of a stopped"
    ):
        describe(directory / "nowhere")


def damaged(directory: Path) -> None:
    survivor(directory)
    (log,) = (directory / "log").glob("*.log")
    log.write_bytes(b"x" * log.stat().st_size)
    with pytest.raises(Corrupted):
        describe(directory)


@pytest.mark.parametrize("scene", [running, unfinished, no_manager_s, damaged])
def test_a_directory_that_cannot_be_described_is_refused_with_the_reason(
    tmp_path: Path, scene: Callable[[Path], None]
) -> None:
    scene(tmp_path / "m1")


def test_a_look_at_a_log_finds_the_same_as_an_opening_and_writes_nothing() -> None:
    files = MemoryFiles()

    def open_log() -> Log:
        return Log.open("/log", files=files, node_id="m1", new_incarnation=lambda: "i1", start_segment_bytes=32 * 1024)

    assert log_opening.look(files, "/log") is None
    log = open_log()
    log.set_term(2, "m1")
    for index in range(2, 30):
        log.append(b"entry", index, 2)
    log.set_commit(20)
    batch = log.take_batch()
    assert batch is not None
    batch.write()
    log.complete(batch)
    log.close()
    log = open_log()  # a second segment
    log.append(b"last", 30, 2)
    batch = log.take_batch()
    assert batch is not None
    batch.write()
    log.complete(batch)
    log.close()
    names = sorted(files.list_directory("/log"))
    looked = log_opening.look(files, "/log")
    assert looked is not None
    assert sorted(files.list_directory("/log")) == names
    again = open_log()
    assert (looked.node_id, looked.incarnation) == ("m1", "i1")
    assert looked.contents.entries == again.entries
    assert (looked.contents.commit_index, looked.contents.current_term) == (again.commit_index, again.current_term)
    again.close()
