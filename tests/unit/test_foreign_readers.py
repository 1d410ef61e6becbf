"""The promise: a process that keeps old pages is named while it does, and no process makes the state grow for ever."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import warren_raft as wr
from tests.cluster.harness import wait_until
from tests.other_process import Other
from tests.unit.test_housekeeping import alone
from warren_raft.alarms import Alarms
from warren_raft.disk.files import OsFile, OsFiles
from warren_raft.local import store as local
from warren_raft.store import foreign_readers
from warren_raft.store.foreign_readers import HOLD_SECONDS, RENEW_SECONDS, ForeignReaders
from warren_raft.store.lmdb_errors import StorageFailed
from warren_raft.store.reader_slots import Holder, pid_namespace


class Table:
    """The readers of a database."""

    def __init__(self, *readers: Holder) -> None:
        self.path = "/data/state/1.mdb"
        self.newest = 10
        self.rows = list(readers)

    def readers(self) -> list[Holder]:
        return self.rows

    def newest_transaction(self) -> int:
        return self.newest

    def file_size_bytes(self) -> int:
        return 120 * 2**20


class Watch:
    """`ForeignReaders` with a clock of the test's own."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.alarms = Alarms("m1")
        self._readers = ForeignReaders(self.alarms, clock=lambda: self.now)

    def after(self, seconds: float, table: Any) -> bool:
        self.now += seconds
        return self._readers.look(table)

    @property
    def oldest(self) -> wr.ForeignRead | None:
        return self._readers.oldest

    @property
    def texts(self) -> dict[str, str]:
        return {alarm.subject: alarm.text for alarm in self.alarms.active}


def here(pid: int, transaction: int) -> Holder:
    return Holder(pid, pid_namespace(), transaction, False)


def test_a_reader_is_told_of_when_it_has_held_pages_for_a_minute() -> None:
    watch, table = Watch(), Table(here(4711, 7))
    assert not watch.after(0, table)
    assert not watch.after(HOLD_SECONDS - 1, table)
    assert watch.texts == {}
    assert not watch.after(1, table)
    (text,) = watch.texts.values()
    assert text == (
        "process 4711 has had one view of the state open for 60 s, and /data/state/1.mdb (120.0 MiB) grows by all "
        "changes meanwhile: if that process makes no progress, end that process (`ps -fp 4711` shows it)"
    )
    watch.after(30, table)
    assert "for 90 s" in watch.texts["process 4711"]
    table.rows = []
    watch.after(1, table)
    assert watch.texts == {}


def test_the_oldest_view_of_other_processes_is_known_at_once() -> None:
    """(Pins a fault: `status` showed the views of the manager's own process only, so a reader that let the state grow
    was invisible for the first minute, and its age later too.)"""
    watch, far = Watch(), Holder(9, 4026530000, 8, False)
    table = Table(here(os.getpid(), 10), here(4711, 7))
    assert watch.oldest is None
    watch.after(0, table)
    table.rows.append(far)
    watch.after(5, table)
    assert watch.oldest is not None
    assert watch.oldest.to_json() == {"pid": 4711, "pid_namespace": None, "age_seconds": 5.0}
    table.rows = [far]
    watch.after(1, table)
    assert watch.oldest.to_json() == {"pid": 9, "pid_namespace": 4026530000, "age_seconds": 1.0}
    table.rows = []
    watch.after(1, table)
    assert watch.oldest is None


def test_a_reader_that_goes_on_to_newer_views_is_not_told_of() -> None:
    watch, table = Watch(), Table(here(4711, 7))
    for newest in range(10, 20):
        table.newest, table.rows = newest, [here(4711, newest - 1)]
        watch.after(HOLD_SECONDS, table)
        assert watch.texts == {}


def test_a_reader_of_the_newest_state_holds_nothing_back() -> None:
    watch, table = Watch(), Table(here(4711, 10))
    watch.after(0, table)
    watch.after(10 * HOLD_SECONDS, table)
    assert watch.texts == {}


def test_this_process_itself_is_not_told_of_and_a_tool_of_lmdb_is() -> None:
    table = Table(Holder(os.getpid(), 0, 7, True), Holder(4712, 0, 7, True), Holder(os.getpid(), 0, 8, False))
    watch = Watch()
    watch.after(0, table)
    watch.after(HOLD_SECONDS, table)
    assert sorted(watch.texts) == sorted(["process 4712", f"process {os.getpid()}"])


def test_a_reader_in_another_container_is_named_so_that_it_can_be_found() -> None:
    watch, table = Watch(), Table(Holder(1, 4026532999, 7, False))
    watch.after(0, table)
    watch.after(HOLD_SECONDS, table)
    assert "`lsns 4026532999` on the host shows it" in watch.texts["process 1 of namespace 4026532999"]


def test_one_that_does_not_end_its_view_by_itself_is_known() -> None:
    watch, table = Watch(), Table(here(4711, 7))
    watch.after(0, table)
    assert not watch.after(RENEW_SECONDS - 1, table)
    assert watch.after(1, table)


# ---- with processes


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Callable[[], Other]]:
    made: list[Other] = []

    def make() -> Other:
        made.append(Other(tmp_path / "m1"))
        return made[-1]

    yield make
    for process in made:
        process.close()


@pytest.mark.slow
def test_a_manager_names_the_process_and_its_age_and_stops_when_it_is_over(
    tmp_path: Path, other: Callable[[], Other], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign_readers, "HOLD_SECONDS", 0.0)
    with wr.ReplicatedStore(alone(tmp_path / "m1")) as store:
        store.wait_ready(20)
        store.create_container(wr.Container(id="c", image="first"))
        reader = other()
        reader.open()
        assert reader.begin() == ["first"]
        store.create_container(wr.Container(id="c", image="later"))
        wait_until(lambda: store.alarms, "the alarm")
        (alarm,) = store.alarms
        assert (alarm.name, alarm.subject) == ("reader-holds-pages", f"process {reader.process.pid}")
        oldest = store.status().oldest_foreign_read
        assert oldest is not None
        assert (oldest.pid, oldest.pid_namespace) == (reader.process.pid, None)
        assert reader.look() == ["first"]
        reader.end()
        wait_until(lambda: not store.alarms, "the end of the alarm")


@pytest.mark.slow
def test_a_manager_names_no_process_that_has_died(tmp_path: Path, other: Callable[[], Other]) -> None:
    """(Pins a fault: it named it until the next checkpoint, when the process id may be that of another process.)"""
    with wr.ReplicatedStore(alone(tmp_path / "m1", checkpoint_interval_seconds=3600)) as store:
        store.wait_ready(20)
        store.create_container(wr.Container(id="c", image="first"))
        reader = other()
        reader.open()
        assert reader.begin() == ["first"]
        store.create_container(wr.Container(id="d", image="later"))
        wait_until(lambda: store.status().oldest_foreign_read, "the reader")
        reader.kill()
        wait_until(lambda: store.status().oldest_foreign_read is None, "the end of the reader")


def test_a_process_that_only_reads_ends_its_old_views_itself(tmp_path: Path, other: Callable[[], Other]) -> None:
    """(Pins a bug: a manager ended only its own views; a view that another process forgot lasted for ever.)"""
    with wr.LocalStore(tmp_path / "m1") as store:
        store.create_container(wr.Container(id="c", image="first"))
        reader = other()
        reader.open()
        modules = "__import__('warren_raft.local.read_only').local.read_only.__dict__.update(END_VIEWS_SECONDS=0.01)"
        assert reader.tell(modules) is None
        assert reader.begin() == ["first"]
        assert reader.look() == ["first"]
        assert reader.tell("setattr(store._database, 'clock', lambda: 1e12)") is None
        database = store._database
        assert database is not None
        wait_until(lambda: not database.readers(), "the end of the view")
        assert "was ended, so that the database stops growing" in reader.look()
        assert reader.begin() == ["first"]


def test_a_local_store_ends_its_own_old_views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "LOOK_SECONDS", 0.0)
    with wr.LocalStore(tmp_path / "m1") as store:
        view = store.read().__enter__()
        database = store._database
        assert database is not None
        monkeypatch.setattr(database, "clock", lambda: 1e12)
        store.create_container(wr.Container(id="c"))
        with pytest.raises(wr.Closed, match="was ended"):
            view.list_containers()


# ---- a reader that does not end by itself


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that is seen by two checks counts as holding its pages since the first."""
    monkeypatch.setattr(foreign_readers, "HOLD_SECONDS", 0.0)
    monkeypatch.setattr(foreign_readers, "RENEW_SECONDS", 0.0)
    monkeypatch.setattr(local, "LOOK_SECONDS", 0.0)


def write(store: wr.LocalStore, value: str) -> None:
    with store.batch() as batch:
        for number in range(60):
            batch.create_container(wr.Container(id=f"c{number}", image=value, env=("x" * 500,)))


@pytest.mark.usefixtures("at_once")
def test_a_store_goes_on_in_a_copy_when_a_stopped_process_holds_on_to_its_file(
    tmp_path: Path, other: Callable[[], Other]
) -> None:
    """(Pins a bug: the file grew by everything that was written from then on. Nobody may end that view for it.)"""
    with wr.LocalStore(tmp_path / "m1") as store:
        write(store, "first")
        reader = other()
        reader.open()
        assert reader.begin() == ["first"]
        reader.process.send_signal(signal.SIGSTOP)
        view = store.read().__enter__()
        for number in range(20):
            write(store, f"later{number}")
        assert [c.image for c in view.list_containers()] == ["first"] * 60
        view.__exit__(None, None, None)
        files = {name for name in os.listdir(tmp_path / "m1" / "state") if not name.endswith("-lock")}
        assert files == {"2.mdb", "current"}
        database = store._database
        assert database is not None
        assert database.readers() == []
        with database.read() as transaction:
            used = transaction.used_bytes()
        size = database.file_size_bytes()
        for number in range(20):
            write(store, f"later still{number}")
        with database.read() as transaction:
            assert database.file_size_bytes() - size < 10 * (transaction.used_bytes() - used)
        reader.process.send_signal(signal.SIGCONT)
        assert reader.look() == ["first"]
        reader.end()
        assert reader.begin() == ["later still19"]
    with wr.LocalStore(tmp_path / "m1") as store:
        assert {c.image for c in store.list_containers()} == {"later still19"}


@pytest.mark.usefixtures("at_once")
def test_a_copy_of_which_nobody_knows_whether_the_next_start_finds_it_ends_all_writing(
    tmp_path: Path, other: Callable[[], Other], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pointer names it, and the directory could not be synced. (Pins a bug: the store wrote on in the old file, and
    removed the copy. The next start found no state.)"""

    def broken(_files: OsFiles, _path: str) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with wr.LocalStore(tmp_path / "m1") as store:
        write(store, "first")
        reader = other()
        reader.open()
        reader.begin()
        write(store, "second")
        monkeypatch.setattr(OsFiles, "sync_directory", broken)
        for _ in range(2):
            with pytest.raises(StorageFailed, match="whether its new content is on the disk"):
                write(store, "later")
        monkeypatch.undo()
        assert {c.image for c in store.list_containers()} == {"second"}
    with wr.LocalStore(tmp_path / "m1") as store:
        assert {c.image for c in store.list_containers()} == {"second"}
        write(store, "later")


@pytest.mark.usefixtures("at_once")
def test_a_copy_that_finds_no_room_stops_nobody(
    tmp_path: Path, other: Callable[[], Other], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The space ends in the copy itself, when its bytes are synced."""
    tried: list[int] = []

    def full(file: OsFile) -> None:
        tried.append(file.fileno())
        raise OSError(errno.ENOSPC, "No space left on device")

    with wr.LocalStore(tmp_path / "m1") as store:
        write(store, "first")
        reader = other()
        reader.open()
        reader.begin()
        monkeypatch.setattr(OsFile, "sync", full)
        for number in range(3):
            write(store, f"later{number}")
        monkeypatch.undo()
        assert tried, "no copy was begun"
        assert {c.image for c in store.list_containers()} == {"later2"}
        assert [name for name in os.listdir(tmp_path / "m1" / "state") if name.startswith("2")] == []
        assert reader.look() == ["first"]


@pytest.mark.slow
@pytest.mark.usefixtures("at_once")
def test_a_manager_goes_on_in_another_file_too(tmp_path: Path, other: Callable[[], Other]) -> None:
    with wr.ReplicatedStore(alone(tmp_path / "m1")) as store:
        store.wait_ready(20)
        store.create_container(wr.Container(id="c", image="first"))
        reader = other()
        reader.open()
        assert reader.begin() == ["first"]
        reader.process.send_signal(signal.SIGSTOP)
        store.create_container(wr.Container(id="c", image="later"))
        state = tmp_path / "m1" / "state"
        wait_until(lambda: (state / "2.mdb").exists() and not (state / "1.mdb").exists(), "the other file")
        wait_until(lambda: not store.alarms, "the end of the alarm")
        store.create_container(wr.Container(id="c", image="later still"))
        reader.process.send_signal(signal.SIGCONT)
        assert reader.look() == ["first"]
        reader.end()
        assert reader.begin() == ["later still"]
