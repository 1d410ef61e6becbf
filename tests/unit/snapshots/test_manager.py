"""The promise: a manager saves the state that it has applied, and goes on. Closing does not wait for a save."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.harness import free_ports
from warren_raft.config import Config
from warren_raft.errors import Closed, RefusedForSafety
from warren_raft.maintenance import inspect, verify
from warren_raft.manager.store import ReplicatedStore
from warren_raft.model.entities import Node
from warren_raft.snapshots import saving
from warren_raft.snapshots.file import SnapshotInfo, read_manifest


def config(directory: Path, **more: Any) -> Config:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    return Config(node_id="m1", data_dir=directory / "m1", listen=address, members={"m1": address}, **more)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ReplicatedStore]:
    with ReplicatedStore(config(tmp_path, admin=False)) as opened:
        opened.wait_ready(30)
        opened.create_node(Node(id="n1"))
        yield opened


def test_it_saves_the_applied_state(store: ReplicatedStore, tmp_path: Path) -> None:
    told = store.snapshot(tmp_path / "s.mdb")
    status = store.status()
    assert told == verify(tmp_path / "s.mdb") == inspect(tmp_path / "s.mdb")
    assert (told.index, told.digest) == (status.applied_index, status.digest)
    assert (told.cluster_id, told.node_id, told.quorum) == (status.cluster_id, "m1", True)
    with pytest.raises(RefusedForSafety, match="exists already"):
        store.snapshot(tmp_path / "s.mdb")


def test_writes_go_on_while_it_is_verified(
    store: ReplicatedStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meanwhile(path: str, **_named: object) -> SnapshotInfo:
        store.create_node(Node(id="meanwhile"))
        return read_manifest(path)

    monkeypatch.setattr("warren_raft.snapshots.saving.verify_in_child", meanwhile)
    assert store.snapshot(tmp_path / "s.mdb").counts["nodes"] == 1
    assert store.get_node("meanwhile")


def test_a_manager_shows_itself_and_knows_the_old_name_of_a_property(store: ReplicatedStore, tmp_path: Path) -> None:
    assert repr(store) == f"<ReplicatedStore m1 on {str(store.config.directory)!r}, open>"
    with pytest.warns(DeprecationWarning, match="waiting_for"):
        assert store.waits == store.waiting_for == ""
    store.close()
    assert repr(store) == f"<ReplicatedStore m1 on {str(store.config.directory)!r}, closed>"


def test_closing_ends_one_that_is_under_way(
    store: ReplicatedStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child would never end: only `close` can end the wait for it."""
    monkeypatch.setattr("warren_raft.snapshots.verification._BEGIN", "import threading; threading.Event().wait()")
    began, caught = threading.Event(), []
    popen = saving.verify_in_child

    def noted(*arguments: Any, **named: Any) -> Any:
        began.set()
        return popen(*arguments, **named)

    monkeypatch.setattr("warren_raft.snapshots.saving.verify_in_child", noted)

    def save() -> None:
        try:
            store.snapshot(tmp_path / "s.mdb")
        except Closed as error:
            caught.append(error)

    thread = threading.Thread(target=save)
    thread.start()
    assert began.wait(30)
    store.close()
    thread.join(30)
    assert len(caught) == 1
    assert [name for name in os.listdir(tmp_path) if "s.mdb" in name] == []
    with pytest.raises(Closed):
        store.snapshot(tmp_path / "s.mdb")


def test_also_in_the_callback_of_a_future(store: ReplicatedStore, tmp_path: Path) -> None:
    """That is a thread of its own: the raft thread would lose its leadership while a child verifies."""
    saved: Future[dict[str, Any]] = Future()
    with store.batch(wait=False) as batch:
        batch.create_node(Node(id="n"))
    batch.future.add_done_callback(lambda _future: saved.set_result(store.snapshot(tmp_path / "s.mdb")))
    assert saved.result(60).counts["nodes"] == 2


def test_a_nameless_one_takes_no_name_in_the_managers_directory(store: ReplicatedStore, tmp_path: Path) -> None:
    with open(store._parts.saving.nameless(), "rb") as file:
        assert os.listdir(tmp_path / "m1" / "snapshots") == []
        (tmp_path / "s.mdb").write_bytes(file.read())
    assert verify(tmp_path / "s.mdb").node_id == "m1"


def test_backups_end_with_their_manager(tmp_path: Path) -> None:
    settings = config(tmp_path, admin=False, backup_dir=tmp_path / "backups", backup_every_seconds=0.05)
    with ReplicatedStore(settings) as store:
        store.wait_ready(30)
        assert "warren-raft-backups" in {thread.name for thread in threading.enumerate()}
    assert "warren-raft-backups" not in {thread.name for thread in threading.enumerate()}


def test_without_a_directory_there_is_no_thread_for_backups(store: ReplicatedStore) -> None:
    assert store.status().alarms == ()
    assert "warren-raft-backups" not in {thread.name for thread in threading.enumerate()}
