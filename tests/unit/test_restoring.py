"""The promise: a restore makes a complete directory or changes nothing, and every mistake is refused with one sentence.
All members that restore the same file with the same list get the same state of the same cluster.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.fsm_harness import apply, command, put
from tests.snapshot_support import add_node, change, members_of, small_state, snapshot_of
from warren_raft.config import Config
from warren_raft.data_dir.opening import OpenedDirectory
from warren_raft.data_dir.remembered import Remembered, write
from warren_raft.disk.files import OsFiles
from warren_raft.errors import (
    Closed,
    Corrupted,
    InUse,
    InvalidConfig,
    RefusedForSafety,
    SnapshotInvalid,
    StorageFull,
    WatchLost,
)
from warren_raft.fsm import history
from warren_raft.fsm.digest import recompute
from warren_raft.fsm.machine import StateMachine
from warren_raft.local.read_only import ReadOnlyStore
from warren_raft.local.store import LocalStore
from warren_raft.model.entities import Node
from warren_raft.raft import entries
from warren_raft.raft.log.log import Log
from warren_raft.raft.membership import (
    FORM,
    REMOVE,
    Change,
    Member,
    Origin,
    apply_change,
    read_note,
)
from warren_raft.recovery import recover as recovering
from warren_raft.recovery import restore as restoring
from warren_raft.recovery.recover import Preview, Recovery
from warren_raft.recovery.restore import Restored, restore
from warren_raft.snapshots import beside, staging
from warren_raft.snapshots import install as installing
from warren_raft.snapshots.file import extract, read_manifest
from warren_raft.snapshots.install import RESTORED_INDEX, REVISION_STEP
from warren_raft.snapshots.verification import VerificationFailed, verify, verify_in_child
from warren_raft.store import levels
from warren_raft.store.database import SESSIONS, Database
from warren_raft.store.generations import StateDirectory
from warren_raft.store.ownership import DirectoryLock
from warren_raft.store.tables import NODE

MEMBERS = {"m1": "127.0.0.1:7001", "m2": "127.0.0.1:7002", "m3": "127.0.0.1:7003"}
CLUSTER = "cluster-1"
"""Of `small_state`."""


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """A snapshot of a small state of CLUSTER."""
    with small_state(tmp_path / "old") as database:
        snapshot_of(database, tmp_path / "s.mdb")
    return tmp_path / "s.mdb"


def snapshot_of_cluster(directory: Path, cluster_id: str, nodes: int = 0) -> Path:
    """Of another cluster, or a later state."""
    with small_state(directory / f"{cluster_id}-{nodes}") as database:
        machine = StateMachine(database)
        index = machine.applied_index + 1
        machine.apply_membership(index, 1, cluster_id, members_of(cluster_id, index))
        for number in range(nodes):
            add_node(database, f"later-{number}")
        snapshot_of(database, directory / f"{cluster_id}-{nodes}.mdb")
    return directory / f"{cluster_id}-{nodes}.mdb"


def tree(directory: Path) -> dict[str, bytes]:
    """Everything a manager would find, by path; not LMDB's lock files, which a reader may make."""
    files = (p for name in staging.held(directory) for p in sorted((directory / name).rglob("*")))
    return {str(p.relative_to(directory)): p.read_bytes() for p in files if p.is_file() and not p.match("*-lock")}


def everything(directory: Path) -> dict[str, tuple[bytes, int]]:
    """Every file of a directory, by path: its content and when it was changed."""
    files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    return {str(path.relative_to(directory)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def opened(directory: Path, node_id: str = "m1") -> OpenedDirectory:
    config = Config(node_id=node_id, data_dir=directory, listen=MEMBERS[node_id], members=MEMBERS)
    return OpenedDirectory(config, files=OsFiles(), random=Random(1))


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(RefusedForSafety) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# The result ----------------------------------------------------------------------------------------------------------


def test_two_members_come_to_the_same_state_of_the_same_new_cluster(snapshot: Path, tmp_path: Path) -> None:
    one = restore(snapshot, tmp_path / "a", node_id="m1", members=MEMBERS)
    reordered = dict(reversed(MEMBERS.items()))
    two = restore(snapshot, tmp_path / "b", node_id="m2", members=reordered)
    assert (one.cluster_id, one.digest, one.revision) == (two.cluster_id, two.digest, two.revision)
    assert one.cluster_id != CLUSTER
    assert len(one.cluster_id) == 32
    incarnations = set()
    for directory, node_id in ((tmp_path / "a", "m1"), (tmp_path / "b", "m2")):
        directory_ = opened(directory, node_id)
        incarnations.add(directory_.log.incarnation)
        assert read_note(directory_.log.note) == Origin(one.cluster_id, MEMBERS)
        assert (directory_.log.base_index, directory_.log.base_term) == (RESTORED_INDEX, 0)
        assert directory_.log.has_only_base
        directory_.close(failed=False)
    assert len(incarnations) == 2


def test_another_list_or_another_file_is_another_cluster(snapshot: Path, tmp_path: Path) -> None:
    other = snapshot_of_cluster(tmp_path, CLUSTER, 1)
    two = {id_: MEMBERS[id_] for id_ in ("m1", "m2")}
    moved = MEMBERS | {"m3": "127.0.0.1:8003"}
    made = [
        restore(file, tmp_path / str(n), node_id="m1", members=members).cluster_id
        for n, (file, members) in enumerate([(snapshot, MEMBERS), (snapshot, two), (snapshot, moved), (other, MEMBERS)])
    ]
    assert len(set(made)) == 4


def test_only_entities_are_kept_and_revisions_go_on_far_ahead(snapshot: Path, tmp_path: Path) -> None:
    with Database.open_read_only(tmp_path / "old") as old, old.read() as transaction:
        old_revision = transaction.revision
    restored = restore(snapshot, tmp_path / "a", node_id="m1", members=MEMBERS)
    assert restored.revision == old_revision + REVISION_STEP
    assert not list((tmp_path / "a" / "state").glob("*.unsynced"))
    directory = opened(tmp_path / "a")
    machine = directory.machine
    assert machine.committed._replace(digest=b"") == (
        RESTORED_INDEX,
        0,
        restored.revision,
        b"",
        None,
        restored.cluster_id,
        levels.FIRST,
    )
    with directory.database.read() as transaction:
        assert list(transaction.scan(SESSIONS)) == []
        assert recompute(transaction) == machine.digest
        for seen in (0, old_revision, old_revision + 100):
            with pytest.raises(WatchLost) as lost:
                history.since(transaction, seen)
            assert lost.value.resume_from == restored.revision
        assert list(history.since(transaction, restored.revision)) == []
    apply(machine, command(put(Node(id="new"))))
    assert machine.revision == restored.revision + 1
    directory.close(failed=False)
    with ReadOnlyStore(tmp_path / "old") as old_store, ReadOnlyStore(tmp_path / "a") as store:
        assert store.list_containers() == old_store.list_containers()
        assert store.get_node("new").revision == restored.revision + 1


@pytest.mark.slow
def test_its_own_snapshot_is_that_state_and_a_lost_state_is_rebuilt_from_it(snapshot: Path, tmp_path: Path) -> None:
    restored = restore(snapshot, tmp_path / "a", node_id="m1", members=MEMBERS)
    (file,) = (tmp_path / "a" / "snapshots").iterdir()
    manifest = verify(file)
    assert (manifest.index, manifest.term, manifest.digest) == (RESTORED_INDEX, 0, restored.digest)
    opened(tmp_path / "a").close(failed=False)
    assert not [each for each in os.listdir(tmp_path / "a" / "state") if "aside" in each], "a start trusts it"
    for each in (tmp_path / "a" / "state").iterdir():
        each.unlink()
    directory = opened(tmp_path / "a")
    assert directory.machine.digest.hex() == restored.digest
    directory.close(failed=False)


def test_the_file_stays_as_it_is_and_may_be_the_directorys_own(snapshot: Path, tmp_path: Path) -> None:
    before = snapshot.read_bytes()
    restore(snapshot, tmp_path / "a", node_id="m1", members=MEMBERS)
    assert snapshot.read_bytes() == before
    (own,) = (tmp_path / "a" / "snapshots").iterdir()
    restored = restore(own, tmp_path / "a", node_id="m1", members=MEMBERS, move_aside=True)
    assert restored.aside is not None
    assert restored.revision == restored.old.revision + REVISION_STEP


def test_the_remains_of_file_systems_and_dead_managers_do_not_matter(snapshot: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(mode=0o700)
    (tmp_path / "a" / "lost+found").mkdir()
    (tmp_path / "a" / "tls").mkdir(mode=0o700)
    for name in ("lock", "admin.sock"):
        (tmp_path / "a" / name).touch(mode=0o600)
    assert held(tmp_path / "a", snapshot).aside is None
    assert (tmp_path / "a" / "lost+found").exists()


def test_a_directory_that_holds_something_else_is_refused(snapshot: Path, tmp_path: Path) -> None:
    """A slip in --data-dir: a home directory, or /etc."""
    (tmp_path / "a").mkdir(mode=0o700)
    (tmp_path / "a" / "notes").touch()
    text = refused(lambda: held(tmp_path / "a", snapshot))
    assert text == f"{tmp_path / 'a'} holds notes, and no manager's data: name an empty directory"
    assert os.listdir(tmp_path / "a") == ["notes"]


def test_progress_never_falls_and_ends_at_all_of_it(snapshot: Path, tmp_path: Path) -> None:
    shares: list[float] = []
    restore(snapshot, tmp_path / "a", node_id="m1", members=MEMBERS, progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


# Refusals ------------------------------------------------------------------------------------------------------------


def held(directory: Path, snapshot: Path, **options: Any) -> Restored:
    return restore(snapshot, directory, node_id="m1", members=MEMBERS, **options)


def test_a_directory_that_holds_a_state_is_refused_with_both_compared(snapshot: Path, tmp_path: Path) -> None:
    before = tree(tmp_path / "old")
    text = refused(lambda: held(tmp_path / "old", snapshot))
    assert "holds cluster cluster-1 at index 12, revision 48" in text
    assert "has cluster cluster-1 at index 12, revision 48" in text
    assert "--move-aside" in text
    assert tree(tmp_path / "old") == before
    moved = held(tmp_path / "old", snapshot, move_aside=True)
    assert moved.aside is not None
    assert tree(Path(moved.aside)) == before


@pytest.mark.parametrize("name", staging.OURS)
def test_any_one_of_our_own_names_is_enough(snapshot: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "a").mkdir(mode=0o700)
    (tmp_path / "a" / name).mkdir(mode=0o700)
    assert "--move-aside" in refused(lambda: held(tmp_path / "a", snapshot))
    assert os.listdir(tmp_path / "a" / name) == []


def test_a_manager_that_runs_there_is_not_disturbed(snapshot: Path, tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path / "old")
    for options in ({}, {"move_aside": True, "allow_rollback": True, "cluster_id": CLUSTER}):
        assert refused(lambda options=options: held(tmp_path / "old", snapshot, **options)).endswith(  # type: ignore[misc]
            "stop it first"
        )
    assert refused(lambda: Recovery(tmp_path / "old")).endswith("stop it first")
    lock.release()


def test_a_node_that_is_not_a_member_is_refused(snapshot: Path, tmp_path: Path) -> None:
    text = refused(lambda: restore(snapshot, tmp_path / "a", node_id="m9", members=MEMBERS))
    assert text == "m9 is not among the members (m1, m2, m3): name it with them"
    assert not (tmp_path / "a").exists()


def test_the_directory_of_another_member_is_refused(snapshot: Path, tmp_path: Path) -> None:
    """A slip in --node-id would move that member's data aside."""
    held(tmp_path / "a", snapshot)
    before = tree(tmp_path / "a")
    text = refused(
        lambda: restore(
            snapshot,
            tmp_path / "a",
            node_id="m2",
            members=MEMBERS,
            move_aside=True,
            allow_rollback=True,
            cluster_id="cluster-1",
        )
    )
    assert "is the directory of m1, not of m2" in text
    assert tree(tmp_path / "a") == before


def test_a_repeated_restore_is_refused_with_the_reason(snapshot: Path, tmp_path: Path) -> None:
    held(tmp_path / "a", snapshot)
    text = refused(lambda: held(tmp_path / "a", snapshot, move_aside=True))
    assert "was restored from this file with these members already: start its manager" in text


def test_members_that_share_an_address_are_refused(snapshot: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="share the address"):
        restore(snapshot, tmp_path / "a", node_id="m1", members=MEMBERS | {"m2": MEMBERS["m1"]})


def test_the_id_that_is_typed_must_be_the_files(snapshot: Path, tmp_path: Path) -> None:
    text = refused(lambda: held(tmp_path / "a", snapshot, cluster_id="cluster-2"))
    assert text.endswith("is a snapshot of cluster cluster-1, not of cluster-2")
    assert not (tmp_path / "a").exists()
    assert held(tmp_path / "a", snapshot, cluster_id=CLUSTER).old.cluster_id == CLUSTER


def test_a_snapshot_of_no_cluster_is_told_by_the_word_that_is_typed_for_it(snapshot: Path, tmp_path: Path) -> None:
    """`cluster None` is Python's word; --cluster-id takes `none`."""
    with LocalStore(tmp_path / "local") as store:
        store.create_node(Node(id="n1"))
        store.snapshot(tmp_path / "local.mdb")
    typed = refused(lambda: held(tmp_path / "a", tmp_path / "local.mdb", cluster_id=CLUSTER))
    assert typed.endswith("is a snapshot of cluster none, not of cluster-1")
    compared = refused(lambda: held(tmp_path / "old", tmp_path / "local.mdb"))
    assert "has cluster none at index" in compared
    assert "holds cluster none at index" in refused(lambda: held(tmp_path / "local", snapshot))


def test_a_snapshot_of_another_cluster_needs_its_id_typed(snapshot: Path, tmp_path: Path) -> None:
    other = snapshot_of_cluster(tmp_path, "cluster-2", 5)
    text = refused(lambda: held(tmp_path / "old", other, move_aside=True, allow_rollback=True))
    assert "holds cluster cluster-1" in text
    assert "has cluster cluster-2" in text
    assert text.endswith("if that is meant, add --cluster-id cluster-2")
    assert held(tmp_path / "old", other, move_aside=True, cluster_id="cluster-2").aside


def test_also_where_the_other_cluster_was_moved_aside(snapshot: Path, tmp_path: Path) -> None:
    """Else a second try, after the first has moved everything aside, would go unasked."""
    other = snapshot_of_cluster(tmp_path, "cluster-2", 5)
    aside = tmp_path / "a" / "aside-20261122T120000Z"
    aside.parent.mkdir(mode=0o700)
    os.rename(tmp_path / "old", aside)
    assert "was cluster cluster-1 before" in refused(lambda: held(tmp_path / "a", other))
    assert held(tmp_path / "a", snapshot).old.cluster_id == CLUSTER


def test_an_older_snapshot_needs_a_flag_and_its_refusal_lists_the_loss(snapshot: Path, tmp_path: Path) -> None:
    with Database.open(tmp_path / "old", sync=True) as database:
        for name in ("x", "y"):
            add_node(database, name)
    for options in ({}, {"move_aside": True}):
        text = refused(lambda options=options: held(tmp_path / "old", snapshot, **options))  # type: ignore[misc]
        assert "older by 2 changes that would vanish (3 nodes become 1)" in text
    assert text.endswith("add --allow-rollback")
    assert held(tmp_path / "old", snapshot, move_aside=True, allow_rollback=True).aside


def test_a_file_is_not_restored_over_its_own_later_state_without_a_flag(snapshot: Path, tmp_path: Path) -> None:
    """Its revisions were handed out since, and would be once more."""
    held(tmp_path / "a", snapshot)
    text = refused(lambda: held(tmp_path / "a", snapshot, move_aside=True, cluster_id=CLUSTER))
    assert "watchers and caches would take old data for new" in text
    assert text.endswith("add --allow-rollback")
    assert held(tmp_path / "a", snapshot, move_aside=True, cluster_id=CLUSTER, allow_rollback=True).aside


def test_one_change_is_no_plural(snapshot: Path, tmp_path: Path) -> None:
    with Database.open(tmp_path / "old", sync=True) as database:
        add_node(database, "x")
    assert "older by 1 change that would vanish (2 nodes become 1)" in refused(lambda: held(tmp_path / "old", snapshot))


def test_data_that_cannot_be_read_is_not_set_aside_without_a_flag(snapshot: Path, tmp_path: Path) -> None:
    (tmp_path / "old" / "state" / "1.mdb").write_bytes(b"rubbish")
    text = refused(lambda: held(tmp_path / "old", snapshot, move_aside=True))
    assert "cannot be read" in text
    assert text.endswith("add --allow-rollback")
    assert held(tmp_path / "old", snapshot, move_aside=True, allow_rollback=True).aside


def test_too_little_room_is_refused_before_anything_is_copied(
    snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = os.statvfs(tmp_path)
    full = os.statvfs_result([*status[:4], 1, *status[5:]])
    monkeypatch.setattr(os, "statvfs", lambda _path: full)
    assert "free some space first" in refused(lambda: held(tmp_path / "a", snapshot))
    assert not (tmp_path / "a").exists()


def test_a_damaged_file_is_found_and_leaves_nothing(snapshot: Path, tmp_path: Path) -> None:
    data = bytearray(snapshot.read_bytes())
    data[len(data) // 2] ^= 8
    snapshot.write_bytes(data)
    with pytest.raises(SnapshotInvalid):
        held(tmp_path / "a", snapshot)
    assert not (tmp_path / "a").exists()


def spoil(file: Path, at: int = 5000) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def test_the_bytes_that_were_verified_are_the_bytes_that_are_used(
    snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy is verified, so a change of the file before the copy is found, and a change after it does not matter."""
    extract = beside.extract

    def spoil_then_copy(*arguments: Any, **options: Any) -> Any:
        spoil(snapshot)
        return extract(*arguments, **options)

    def copy_then_spoil(*arguments: Any, **options: Any) -> Any:
        manifest = extract(*arguments, **options)
        spoil(snapshot)
        return manifest

    monkeypatch.setattr(beside, "extract", spoil_then_copy)
    with pytest.raises(SnapshotInvalid, match="do not fit the hash"):
        held(tmp_path / "a", snapshot)
    assert not (tmp_path / "a").exists()
    spoil(snapshot)
    monkeypatch.setattr(beside, "extract", copy_then_spoil)
    assert held(tmp_path / "a", snapshot).counts


def test_a_copy_with_another_bit_is_found(snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extract = beside.extract

    def spoilt(file: Path, copy: str, **options: Any) -> Any:
        manifest = extract(file, copy, **options)
        spoil(Path(copy))
        return manifest

    monkeypatch.setattr(beside, "extract", spoilt)
    with pytest.raises(SnapshotInvalid, match="do not fit the hash") as caught:
        held(tmp_path / "a", snapshot)
    assert caught.value.path == str(snapshot)
    assert not (tmp_path / "a").exists()


def test_a_state_with_another_bit_than_its_snapshot_is_found_by_the_first_start(
    snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The seal is the hash of the verified snapshot, and not of the file that was copied from it."""

    def spoilt(file: Path, target: str, **options: Any) -> Any:
        manifest = extract(file, target, **options)
        spoil(Path(target))
        return manifest

    monkeypatch.setattr(installing, "extract", spoilt)
    restored = held(tmp_path / "a", snapshot)
    directory = opened(tmp_path / "a")
    assert directory.machine.digest.hex() == restored.digest
    directory.close(failed=False)
    assert [each for each in os.listdir(tmp_path / "a" / "state") if "damaged" in each], "it was rebuilt"


# Verified beside -----------------------------------------------------------------------------------------------------


@pytest.fixture
def two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every snapshot is large enough to be verified in a child, and there is a processor for it."""
    monkeypatch.setattr(beside, "BESIDE_BYTES", 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1})


@pytest.mark.usefixtures("two_processes")
def test_a_restore_in_two_processes_has_the_result_of_one(
    snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = held(tmp_path / "a", snapshot)
    monkeypatch.setattr(beside, "BESIDE_BYTES", 1 << 40)
    one = held(tmp_path / "b", snapshot)
    assert replace(two, data_dir="") == replace(one, data_dir="")


@pytest.mark.usefixtures("two_processes")
def test_a_session_that_cannot_be_read_is_a_fault_of_the_file(tmp_path: Path) -> None:
    """(Pins a bug: the copy was named as corrupted, by a path that was removed already.)"""
    file = tmp_path / "wrong.snapshot"
    with small_state(tmp_path / "wrong") as database:
        change(database, lambda transaction: transaction.store("sessions", b"12345678", b"\x80"), new_digest=True)
        snapshot_of(database, file)
    with pytest.raises(SnapshotInvalid, match=re.escape(str(file))):
        held(tmp_path / "a", file)
    assert not (tmp_path / "a").exists()


@pytest.mark.usefixtures("two_processes")
def test_a_fault_that_only_the_records_show_is_found_in_the_other_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hash, structure and digest fit, so this process has made the new state when the fault is known."""
    file = tmp_path / "wrong.snapshot"
    with small_state(tmp_path / "wrong") as database:
        change(database, lambda transaction: transaction.put(NODE, "x", b"\x82\x01\xff"), new_digest=True)
        snapshot_of(database, file)
    made: list[str] = []
    monkeypatch.setattr(staging, "commit", lambda *_arguments, **_options: made.append("committed"))
    with pytest.raises(SnapshotInvalid, match="node 'x' cannot be read") as caught:
        held(tmp_path / "a", file)
    assert caught.value.path == str(file)
    assert made == []
    assert not (tmp_path / "a").exists()


@pytest.mark.usefixtures("two_processes")
def test_a_damaged_file_is_not_opened_while_the_other_process_verifies_it(
    snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[object] = []
    monkeypatch.setattr(Database, "open_generation", lambda *arguments, **_options: opened.append(arguments))
    data = bytearray(snapshot.read_bytes())
    data[len(data) // 2] ^= 8
    snapshot.write_bytes(data)
    with pytest.raises(SnapshotInvalid, match="hash"):
        held(tmp_path / "a", snapshot)
    assert opened == []
    assert not (tmp_path / "a").exists()


@pytest.mark.usefixtures("two_processes")
def test_a_file_with_other_bytes_in_the_other_process_is_refused(
    snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Structure and digest were proved of the copy, so they are known of the file only if its hash is the same."""
    later = snapshot_of_cluster(tmp_path, CLUSTER, 1)
    extract, replaced = beside.extract, threading.Event()

    def copy_then_replace(*arguments: Any, **options: Any) -> Any:
        manifest = extract(*arguments, **options)
        os.replace(later, snapshot)
        replaced.set()
        return manifest

    def late(path: str, *, proof: int, **options: Any) -> Any:
        assert replaced.wait(60)
        return verify_in_child(path, proof=proof, **options)

    monkeypatch.setattr(beside, "extract", copy_then_replace)
    monkeypatch.setattr(beside, "verify_in_child", late)
    with pytest.raises(SnapshotInvalid, match="was changed while it was verified"):
        held(tmp_path / "a", snapshot)
    assert not (tmp_path / "a").exists()


@pytest.mark.usefixtures("two_processes")
def test_records_are_verified_here_if_the_other_process_has_no_result(
    snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def killed(path: str, **_options: Any) -> Any:
        raise VerificationFailed(path, "the process that verified it ended with -9")

    def counted(path: str, *, records: bool = True, **options: Any) -> Any:
        asked.append(records)
        return verify(path, records=records, **options)

    monkeypatch.setattr(beside, "verify_in_child", killed)
    monkeypatch.setattr(beside, "verify", counted)
    assert held(tmp_path / "a", snapshot).counts
    assert asked == [True]


@pytest.mark.usefixtures("two_processes")
def test_a_file_that_is_another_one_in_the_other_process_is_refused(
    snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(read_manifest(snapshot), node_id="another")
    monkeypatch.setattr(beside, "verify_in_child", lambda *_arguments, **_options: other)
    with pytest.raises(SnapshotInvalid, match="was changed while it was verified"):
        held(tmp_path / "a", snapshot)
    assert not (tmp_path / "a").exists()


@pytest.mark.usefixtures("two_processes")
def test_a_restore_that_fails_ends_the_other_process(
    snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[bool] = []

    def waiting(_path: str, *, cancel: threading.Event, **_options: Any) -> Any:
        ended.append(cancel.wait(60))
        raise Closed("the verification was cancelled")

    def no_space(*_arguments: object, **_options: object) -> None:
        raise StorageFull("no space left")

    monkeypatch.setattr(beside, "verify_in_child", waiting)
    monkeypatch.setattr(restoring, "install", no_space)
    with pytest.raises(StorageFull):
        held(tmp_path / "a", snapshot)
    assert ended == [True]
    assert not (tmp_path / "a").exists()


# Killed --------------------------------------------------------------------------------------------------------------

OPERATIONS = (
    *("open", "write", "pwrite", "rename", "link", "mkdir", "unlink", "rmdir", "chmod", "fsync", "fdatasync"),
    *("ftruncate", "truncate", "copy_file_range"),
)


@pytest.fixture
def no_syncs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process loses nothing that was not synced, and hundreds of these runs would wait for the disk."""
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, lambda _descriptor: None)


def killed_at(operation: int, call: Callable[[], object]) -> int:
    """Calls it in a child that ends, as by SIGKILL, before its file operation of that number. Its exit code: 9 where
    that happened, 0 where it came to its end."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        count = 0

        def counted(function: Callable[..., object]) -> Callable[..., object]:
            def counting(*arguments: object, **options: object) -> object:
                nonlocal count
                count += 1
                if count == operation:
                    os._exit(9)
                return function(*arguments, **options)

            return counting

        for name in OPERATIONS:
            if hasattr(os, name):
                setattr(os, name, counted(getattr(os, name)))
        call()
    except BaseException as error:  # noqa: BLE001  # the child must not go on with the tests
        print(repr(error), file=sys.stderr)
        os._exit(1)
    os._exit(0)


def every_kill(call: Callable[[Path], object], make: Callable[[int], Path], step: int = 1) -> Iterator[Path]:
    """The directory as each kill (each `step`th) leaves it, until one comes to its end."""
    for operation in range(1, 10_000, step):
        directory = make(operation)
        code = killed_at(operation, lambda directory=directory: call(directory))  # type: ignore[misc]
        if code == 0:
            return
        assert code == 9, f"failed at operation {operation}"
        yield directory
    raise AssertionError("no end")


@pytest.mark.slow
@pytest.mark.usefixtures("no_syncs")
def test_killed_at_any_file_operation_it_has_restored_all_or_nothing(snapshot: Path, tmp_path: Path) -> None:
    wanted = held(tmp_path / "whole", snapshot)
    before = done = 0
    for directory in every_kill(lambda d: held(d, snapshot), lambda n: tmp_path / f"kill-{n}"):
        if not (directory / "restore.ready").exists() and not (directory / "log").exists():
            before += 1
            assert staging.held(directory) == []
            if before % 8:  # most of them need not be tried again
                continue
            assert held(directory, snapshot).digest == wanted.digest
        else:
            done += 1
        machine = opened(directory)
        assert machine.machine.digest.hex() == wanted.digest
        assert machine.log.base_index == RESTORED_INDEX
        machine.close(failed=False)
        assert staging.held(directory) == list(staging.OURS)
        assert not (directory / "restore.part").exists()
    assert done > 5, "some kills must have come after the point of no return"


@pytest.mark.slow
@pytest.mark.usefixtures("no_syncs")
def test_killed_while_it_moves_aside_it_is_the_old_directory_or_the_new_one(snapshot: Path, tmp_path: Path) -> None:
    import shutil

    before = tree(tmp_path / "old")
    wanted = held(tmp_path / "whole", snapshot)

    def copy(number: int) -> Path:
        return Path(shutil.copytree(tmp_path / "old", tmp_path / f"kill-{number}"))

    for directory in every_kill(lambda d: held(d, snapshot, move_aside=True), copy):
        if not (directory / "restore.ready").exists() and not staging.asides(directory):
            assert tree(directory) == before
            continue
        machine = opened(directory)
        assert machine.machine.digest.hex() == wanted.digest
        machine.close(failed=False)
        (aside,) = staging.asides(directory)
        assert tree(Path(aside)) == before


def test_the_part_of_a_killed_restore_goes_when_the_manager_starts(tmp_path: Path) -> None:
    """The part is as large as the state; an operator that gave up the restore would never have got that space back."""
    survivor(tmp_path / "m1")
    part = Path(staging.begin(tmp_path / "m1"))
    (part / "state").touch(mode=0o600)
    (part / "state").write_bytes(b"half of a state")
    lock = DirectoryLock(tmp_path / "m1")
    with pytest.raises(InUse):
        opened(tmp_path / "m1")
    lock.release()
    assert (part / "state").exists(), "a restore that runs now has the lock"
    opened(tmp_path / "m1").close(failed=False)
    assert not part.exists()


# Recover -------------------------------------------------------------------------------------------------------------


def survivor(
    directory: Path, *, uncertain: int = 2, address: str = MEMBERS["m1"], others: dict[str, str] | None = None
) -> None:
    """A stopped manager m1 of three: ten nodes are applied, some more entries are in its log."""
    others = {"m2": MEMBERS["m2"], "m3": MEMBERS["m3"]} if others is None else others
    directory.mkdir(mode=0o700)
    log = Log.open(str(directory / "log"), files=OsFiles(), node_id="m1", new_incarnation=lambda: "i1")
    members = [Member("m1", address, "i1", voter=True)]
    members += [Member(id_, at, f"i-{id_}", voter=True) for id_, at in others.items()]
    form = Change(FORM, cluster_id=CLUSTER, members=tuple(members))
    log.set_term(3, "m1")
    log.append(entries.encode_change(form), 2, 3)
    for number in range(10 + uncertain):
        log.append(entries.encode_commands([command(put(Node(id=f"n{number}")))]), 3 + number, 3)
    log.set_commit(12)
    batch = log.take_batch()
    assert batch is not None
    batch.write()
    log.complete(batch)
    with Database.open(StateDirectory(directory), sync=False) as database:
        machine = StateMachine(database)
        membership = apply_change(None, form, 2)
        assert membership is not None
        machine.apply_membership(2, 3, CLUSTER, membership.encode())
        for index in range(3, 9):  # after the entries that it knows to be committed: a crash lost the rest
            machine.apply(index, 3, entries.decode(log.entries[index - 1][0]))  # type: ignore[arg-type]
    log.close()


def test_a_survivor_becomes_a_cluster_of_one_with_everything_its_log_held(tmp_path: Path) -> None:
    survivor(tmp_path / "m1")
    before = tree(tmp_path / "m1")
    with Recovery(tmp_path / "m1") as recovery:
        assert (recovery.node_id, recovery.address) == ("m1", MEMBERS["m1"])
        assert (recovery.old_cluster_id, sorted(recovery.others)) == (CLUSTER, ["m2", "m3"])
        assert (recovery.index, recovery.term, recovery.uncertain) == (14, 3, 2)
        restored = recovery.carry_out()
    assert restored.counts["nodes"] == 12
    assert restored.revision == 12 + REVISION_STEP
    assert restored.members == {"m1": MEMBERS["m1"]}
    assert restored.aside is not None
    assert tree(Path(restored.aside)).keys() >= before.keys()
    with ReadOnlyStore(restored.aside) as old, ReadOnlyStore(tmp_path / "m1") as new:
        assert len(old.list_nodes()) == 6, "the old state has no entry that may not be committed"
        assert len(new.list_nodes()) == 12
    directory = opened(tmp_path / "m1")
    assert read_note(directory.log.note) == Origin(restored.cluster_id, {"m1": MEMBERS["m1"]})
    assert directory.log.incarnation != "i1"
    directory.close(failed=False)


@pytest.mark.parametrize("look", [Recovery, Preview])
def test_the_last_survivor_is_recovered_though_it_was_to_be_removed(
    tmp_path: Path, look: type[Recovery | Preview]
) -> None:
    """The leader died during the removal: the entry is in the log of the removed member, which has all the data. Only
    the operator can know whether the removal was done."""
    survivor(tmp_path / "m1")
    log = Log.open(str(tmp_path / "m1" / "log"), files=OsFiles(), node_id="m1", new_incarnation=lambda: "never")
    log.append(entries.encode_change(Change(REMOVE, id="m1", incarnation="i1")), 15, 3)
    batch = log.take_batch()
    assert batch is not None
    batch.write()
    log.complete(batch)
    log.close()
    with pytest.raises(RefusedForSafety, match="add --force if no other is left"):
        look(tmp_path / "m1")
    if look is Preview:
        assert Preview(tmp_path / "m1", force=True).others == {"m2": MEMBERS["m2"], "m3": MEMBERS["m3"]}
        return
    with Recovery(tmp_path / "m1", force=True) as recovery:
        assert (recovery.address, sorted(recovery.others)) == (MEMBERS["m1"], ["m2", "m3"])
        assert recovery.carry_out().counts["nodes"] == 12
    opened(tmp_path / "m1").close(failed=False)


UNREADABLE = {
    "a command of version 9": entries.encode_commands([b"\x85\x09" + command(put(Node(id="x")))[2:]]),
    "unknown kind": b"\x00\x09",
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_an_entry_that_no_manager_can_read_is_left_out_with_all_behind_it(tmp_path: Path, name: str) -> None:
    """For example an attacker put it there, and every manager stopped at it: no manager applied any later entry."""
    survivor(tmp_path / "m1")
    log = Log.open(str(tmp_path / "m1" / "log"), files=OsFiles(), node_id="m1", new_incarnation=lambda: "never")
    log.append(UNREADABLE[name], 15, 3)
    log.append(entries.encode_commands([command(put(Node(id="behind")))]), 16, 3)
    log.set_commit(16)
    batch = log.take_batch()
    assert batch is not None
    batch.write()
    log.complete(batch)
    log.close()
    with pytest.raises(RefusedForSafety, match=r"entry at index 15 that this release cannot read .*add --force"):
        Recovery(tmp_path / "m1")
    with Recovery(tmp_path / "m1", force=True) as recovery:
        assert (recovery.index, recovery.term, recovery.uncertain) == (14, 3, 0)
        assert recovery.carry_out().counts["nodes"] == 12
    opened(tmp_path / "m1").close(failed=False)


def test_two_recoveries_of_the_same_data_are_two_clusters(tmp_path: Path) -> None:
    ids = set()
    for name in ("a", "b"):
        survivor(tmp_path / name)
        with Recovery(tmp_path / name) as recovery:
            ids.add(recovery.carry_out().cluster_id)
    assert len(ids) == 2


def test_nothing_is_changed_before_it_is_carried_out(tmp_path: Path) -> None:
    survivor(tmp_path / "m1")
    before = tree(tmp_path / "m1")
    with Recovery(tmp_path / "m1"):
        pass
    after = tree(tmp_path / "m1")
    assert after.keys() >= {name for name in before if not name.startswith("log")}
    assert {n: d for n, d in after.items() if n.endswith(".mdb")} == {
        n: d for n, d in before.items() if n.endswith(".mdb")
    }
    assert staging.asides(tmp_path / "m1") == []


LOOKS = pytest.mark.parametrize("look", [Recovery, Preview])
"""A dry run refuses the same cases as the recovery, in the same words."""


@LOOKS
def test_while_another_member_answers_it_is_refused(tmp_path: Path, look: type[Recovery | Preview]) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        survivor(tmp_path / "m1", others={"m2": address})
        assert f"m2 ({address}) accepts connections: stop it" in refused(lambda: look(tmp_path / "m1"))
        assert Preview(tmp_path / "m1", force=True).others == {"m2": address}
        with Recovery(tmp_path / "m1", force=True) as recovery:
            assert recovery.carry_out().members == {"m1": MEMBERS["m1"]}


@LOOKS
def test_a_member_that_answers_where_it_said_it_is_counts_too(tmp_path: Path, look: type[Recovery | Preview]) -> None:
    """It has moved, and the list was not told: a recovery beside it would be a second cluster."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        survivor(tmp_path / "m1")
        said = {"m2": address, "m9": address}
        kept = Remembered(node_id="m1", incarnation="i1", listen=MEMBERS["m1"], members=MEMBERS, said=said)
        write(tmp_path / "m1", kept)
        assert f"m2 ({address}) accepts connections: stop it" in refused(lambda: look(tmp_path / "m1"))


def test_a_survivor_that_has_moved_keeps_the_address_that_it_listened_on(tmp_path: Path) -> None:
    survivor(tmp_path / "m1")
    write(tmp_path / "m1", Remembered(node_id="m1", incarnation="i1", listen="127.0.0.1:8", members=MEMBERS, said={}))
    with Recovery(tmp_path / "m1") as recovery:
        assert recovery.carry_out().members == {"m1": "127.0.0.1:8"}


def test_several_that_answer_are_named_in_one_sentence(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as one, closing(socket.create_server(("127.0.0.1", 0))) as two:
        others = {id_: f"127.0.0.1:{s.getsockname()[1]}" for id_, s in (("m2", one), ("m3", two))}
        survivor(tmp_path / "m1", others=others)
        assert refused(lambda: Recovery(tmp_path / "m1")) == (
            f"m2 ({others['m2']}), m3 ({others['m3']}) accept connections: stop them, or add --force if they are not "
            "members of this cluster"
        )


@LOOKS
def test_a_directory_that_is_not_a_survivors_is_refused(
    tmp_path: Path, snapshot: Path, look: type[Recovery | Preview]
) -> None:
    assert "there is no directory" in refused(lambda: look(tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()
    assert "holds no manager's log" in refused(lambda: look(tmp_path / "old"))
    held(tmp_path / "a", snapshot)
    assert "not been part of a cluster yet" in refused(lambda: look(tmp_path / "a"))
    survivor(tmp_path / "m1")
    lock = DirectoryLock(tmp_path / "m1")
    assert refused(lambda: look(tmp_path / "m1")).endswith("stop it first")
    lock.release()


def test_a_dry_run_lists_the_entries_to_take_over_and_changes_nothing(tmp_path: Path) -> None:
    survivor(tmp_path / "m1")
    before = everything(tmp_path / "m1")
    found = Preview(tmp_path / "m1")
    assert everything(tmp_path / "m1") == before
    with Recovery(tmp_path / "m1") as recovery:
        for name in ("node_id", "address", "old_cluster_id", "others", "index", "term", "uncertain"):
            assert getattr(found, name) == getattr(recovery, name), name


def test_a_dry_run_needs_the_room_that_the_recovery_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    survivor(tmp_path / "m1")
    monkeypatch.setattr(recovering, "_ROOM", 1 << 60)
    assert "three times the state" in refused(lambda: Preview(tmp_path / "m1"))


def spoil_header(directory: Path) -> None:
    (newest,) = (directory / "log").glob("*.log")
    newest.write_bytes(b"x" * 100 + newest.read_bytes()[100:])


def spoil_batch(directory: Path) -> None:
    (newest,) = (directory / "log").glob("*.log")
    os.truncate(newest, newest.stat().st_size - 1)


@LOOKS
@pytest.mark.parametrize("spoil", [spoil_header, spoil_batch])
def test_a_failed_recovery_does_not_advise_to_ask_the_lost_cluster(
    tmp_path: Path, spoil: Callable[[Path], None], look: type[Recovery | Preview]
) -> None:
    """The usual advice for a damaged log is to remove and add the manager again; here no cluster is left for that."""
    survivor(tmp_path / "m1")
    spoil(tmp_path / "m1")
    before = tree(tmp_path / "m1")
    with pytest.raises(Corrupted) as caught:
        look(tmp_path / "m1")
    assert str(caught.value).endswith("; recover another survivor, or restore a snapshot: docs/recovery.md")
    assert "members" not in str(caught.value)
    assert tree(tmp_path / "m1") == before


@pytest.mark.slow
@pytest.mark.usefixtures("no_syncs")
def test_a_recovery_that_is_killed_is_the_old_directory_or_the_new_one(tmp_path: Path) -> None:
    import shutil

    survivor(tmp_path / "m1", others={})

    def copy(number: int) -> Path:
        return Path(shutil.copytree(tmp_path / "m1", tmp_path / f"kill-{number}"))

    def recover(directory: Path) -> None:
        with Recovery(directory) as recovery:
            recovery.carry_out()

    seen = set()
    for directory in every_kill(recover, copy, step=2):
        machine = opened(directory)
        seen.add(machine.log.base_index)
        if machine.log.base_index == RESTORED_INDEX:
            assert machine.machine.revision == 12 + REVISION_STEP
        else:
            assert machine.log.last_index == 14
            assert machine.machine.applied_index == 8
        machine.close(failed=False)
    assert seen == {1, RESTORED_INDEX}
