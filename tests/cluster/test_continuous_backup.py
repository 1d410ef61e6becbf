"""The promise: with a continuous backup, a cluster that is lost as a whole loses the changes of a second or two. It
goes on through changes of leader and faults of the disk, and a gap is closed by a new backup.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import warren_raft as wr
from tests.cluster.harness import wait_until
from warren_raft.manager import shipping
from warren_raft.raft.log.contents import Entry
from warren_raft.recovery.shipped_log import Contents, Mark, ShippedFile, names_in
from warren_raft.testing import Cluster


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipping, "PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(shipping, "RETRY_SECONDS", 0.05)


@pytest.fixture
def backups(tmp_path: Path) -> Path:
    return tmp_path / "backups"


def cluster(backups: Path, size: int = 1, **settings: Any) -> Cluster:
    return Cluster(size, backup_dir=backups, backup_continuous=True, **settings)


def create(store: wr.ReplicatedStore, *ids: str) -> None:
    for id_ in ids:
        store.create_node(wr.Node(id=id_))


def wait_shipped(store: wr.ReplicatedStore) -> None:
    """Until everything that the store has applied is in the directory."""
    wanted = store.status().applied_index

    def is_shipped() -> bool:
        backup = store.status().backup
        return backup is not None and (backup.log_index or 0) >= wanted

    wait_until(is_shipped, "the entries in the backup directory")


def snapshots_in(backups: Path) -> list[Path]:
    return sorted(backups.glob("warren-*.mdb")) if backups.exists() else []


def logs_in(backups: Path) -> list[str]:
    return names_in([path.name for path in backups.iterdir()])


def restored(file: Path, directory: Path) -> set[str]:
    wr.restore(file, directory, node_id="m1", members={"m1": "127.0.0.1:7946"}, to_revision="last")
    with wr.ReadOnlyStore(directory) as store:
        return {node.id for node in store.list_nodes()}


def test_another_leader_goes_on_where_the_files_end(backups: Path, tmp_path: Path) -> None:
    with cluster(backups, 3) as managers:
        create(managers.leader, "a")
        wait_shipped(managers.leader)
        create(managers.leader, "b")
        wait_shipped(managers.leader)
        managers.kill(managers.leader.config.node_id)
        create(managers.leader, "c", "d")
        wait_shipped(managers.leader)
        (base,) = snapshots_in(backups)
        first, second = (Contents(str(backups / name)) for name in logs_in(backups))
        assert first.last is not None
        assert second.header.first_index == first.last.index + 1, "nothing is written twice"
    assert restored(base, tmp_path / "new") == {"a", "b", "c", "d"}


def test_a_cluster_that_is_killed_as_a_whole_loses_only_what_the_status_said_is_unsaved(
    backups: Path, tmp_path: Path
) -> None:
    acknowledged: dict[str, int] = {}

    def load(store: wr.ReplicatedStore) -> None:
        try:
            while True:
                id_ = f"n-{len(acknowledged)}"
                acknowledged[id_] = store.create_node(wr.Node(id=id_))
        except wr.WarrenError:  # it was killed
            return

    with cluster(backups, 3) as managers:
        leader = managers.leader
        wait_until(lambda: snapshots_in(backups), "the first backup")
        thread = threading.Thread(target=load, args=(leader,))
        thread.start()
        begun = leader.status().applied_index

        def saved() -> int:
            backup = leader.status().backup
            return 0 if backup is None or backup.log_index is None else backup.log_index

        wait_until(lambda: saved() > begun + 50, "some entries in the directory")
        promised = saved()
        for id_ in managers.ids:
            managers.kill(id_)
        thread.join(60)
    (base,) = snapshots_in(backups)
    directory = tmp_path / "new"
    made = wr.restore(base, directory, node_id="m1", members={"m1": "127.0.0.1:7946"}, to_revision="last")
    assert made.replayed is not None
    assert made.replayed.index >= promised
    with wr.ReadOnlyStore(directory) as store:
        found = {node.id for node in store.list_nodes()}
    assert {id_ for id_, revision in acknowledged.items() if revision <= made.replayed.revision} <= found


def test_a_disk_that_fails_is_an_alarm_and_nothing_is_missing_afterwards(
    backups: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = ShippedFile.append
    fails = False

    def once_in_a_while(self: ShippedFile, entries: Sequence[Entry], mark: Mark) -> None:
        if fails:
            self._write([b"half of a record"])
            raise OSError(errno.EIO, "Input/output error")
        append(self, entries, mark)

    monkeypatch.setattr(ShippedFile, "append", once_in_a_while)
    with cluster(backups) as managers:
        store = managers.leader
        create(store, "a")
        wait_shipped(store)
        fails = True
        create(store, "b")

        def alarms() -> list[wr.Alarm]:
            return [alarm for alarm in store.alarms if alarm.name == "backup-log-failed"]

        (alarm,) = wait_until(alarms, "the alarm")
        assert f"the newest changes cannot be written to {backups}: [Errno 5] Input/output error" in alarm.text
        create(store, "c")
        fails = False
        wait_shipped(store)
        wait_until(lambda: not alarms(), "the end of the alarm")
        (base,) = snapshots_in(backups)
    assert restored(base, tmp_path / "new") == {"a", "b", "c"}


def test_entries_that_the_log_has_dropped_are_replaced_by_a_new_backup(
    backups: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk of the backups was away for so long that the log was compacted meanwhile."""
    away = False
    make = ShippedFile.__init__

    def made(self: ShippedFile, *arguments: object, **options: object) -> None:
        if away:
            raise OSError(errno.EIO, "Input/output error")
        make(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(ShippedFile, "__init__", made)
    with cluster(backups, snapshot_after_bytes=100_000, backup_keep=2) as managers:
        store = managers.leader
        create(store, "a")
        wait_shipped(store)
        away = True
        monkeypatch.setattr(shipping, "FILE_BYTES", 0)  # the next mark needs a new file
        create(store, "b")
        (first,) = snapshots_in(backups)
        written = store.status().applied_index
        log = store._parts.opened.log
        while log.base_index <= written:  # two snapshots
            store.create_secret(wr.Secret(id="s", name="s", data=os.urandom(50_000)))
        away = False
        wait_shipped(store)
        create(store, "c")
        wait_shipped(store)
        second = max(snapshots_in(backups))
        assert second != first
    assert restored(second, tmp_path / "new") == {"a", "b", "c"}
    with pytest.raises(wr.RefusedForSafety, match="are in no file, and"):
        restored(first, tmp_path / "old")


def test_entries_go_with_the_backups_that_they_follow(
    backups: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipping, "FILE_BYTES", 0)  # a file for each mark
    with cluster(backups, backup_keep=2, backup_every_seconds=0.2) as managers:
        store = managers.leader
        wait_until(lambda: snapshots_in(backups), "the first backup")
        (backups / "warren-notes.log").write_text("somebody's")
        for number in range(60):
            create(store, f"n-{number}")
            time.sleep(0.02)  # some of them in each backup
        wait_shipped(store)

        def is_tidy() -> bool:
            kept = snapshots_in(backups)
            oldest = int(kept[0].stem.rpartition("-")[2])
            ends = [contents.last.index for contents in map(Contents, paths()) if contents.last is not None]
            return len(kept) <= 2 and bool(ends) and min(ends) > oldest

        def paths() -> Iterator[str]:
            return (str(backups / name) for name in logs_in(backups))

        create(store, "last")
        wait_shipped(store)
        wait_until(is_tidy, "the old files are removed")
    oldest = snapshots_in(backups)[0]  # now nobody removes it
    assert restored(oldest, tmp_path / "new") == {*(f"n-{number}" for number in range(60)), "last"}
    assert (backups / "warren-notes.log").exists()


def test_the_age_of_unsaved_changes_counts_from_the_last_entry_that_was_written(backups: Path) -> None:
    with cluster(backups) as managers:
        store = managers.leader
        wait_until(lambda: snapshots_in(backups), "the first backup")
        create(store, "a")
        wait_shipped(store)
        before = store.status().backup
        assert before is not None
        assert before.limit_seconds == 60
        wait_until(lambda: store.status().backup.unsaved_seconds == 0, "nothing is unsaved")  # type: ignore[union-attr]
        assert before.index is not None
        assert before.log_index is not None
        assert before.log_index > before.index, "the newest backup does not hold the newest entry"
