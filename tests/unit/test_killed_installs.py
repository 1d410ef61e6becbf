"""A manager that dies at any file operation of taking, fetching or installing a snapshot, or of rebuilding its state,
starts again with its old state or with the new one. There is no state in between, and nothing is lost. The same holds
for a power cut before any change of its directory, the log's included. If the disk is full for a moment, the manager
tries again.

Files and LMDB are real, one process, no threads. Not here: races, which the simulation draws.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from random import Random

import pytest

from tests.fsm_harness import Contents, command, contents, put
from tests.killed import Killed, killed_after
from tests.page_cache import PageCache
from tests.watched_files import WatchedFiles
from warren_raft.config import Config
from warren_raft.data_dir.opening import OpenedDirectory
from warren_raft.disk.files import OS_FILES, Files
from warren_raft.errors import StorageFull
from warren_raft.fsm.machine import StateMachine
from warren_raft.model.entities import Container
from warren_raft.raft import entries
from warren_raft.raft.catchup import CHUNK_BYTES
from warren_raft.raft.log.log import Log
from warren_raft.snapshots.directory import INCOMING
from warren_raft.snapshots.verification import verify

OLD, NEW, TERM = 10, 25, 1
Step = Callable[[OpenedDirectory], None]


def opened(directory: Path, *, files: Files = OS_FILES, boot: int = 1) -> OpenedDirectory:
    config = Config(
        node_id="m1",
        data_dir=directory,
        listen="127.0.0.1:7",
        members={"m1": "127.0.0.1:7"},
        admin=False,
        disk_reserve_bytes=0,
    )
    return OpenedDirectory(
        config,
        files=files,
        random=Random(1),
        boot_id=lambda: f"boot {boot}",
        verify=lambda path, records, _cancel: verify(path, records=records),
    )


def entry(index: int) -> bytes:
    return command(put(Container(id=f"c{index}", service_id="s", image="x" * 500)))


def write(log: Log) -> None:
    batch = log.take_batch()
    assert batch is not None
    batch.write()
    log.complete(batch)


def extend(directory: OpenedDirectory, last: int) -> None:
    """The log and the state, up to an index."""
    log, machine = directory.log, directory.machine
    if log.current_term < TERM:
        log.set_term(TERM, None)
    for index in range(log.last_index + 1, last + 1):
        log.append(entries.encode_commands([entry(index)]), index, TERM)
    log.set_commit(last)
    write(log)
    replay(machine, log)


def replay(machine: StateMachine, log: Log) -> None:
    """Apply the committed entries as the engine does."""
    for index in range(machine.applied_index + 1, log.commit_index + 1):
        data, _, term = log.entries[index - log.base_index]
        machine.apply(index, term, entries.decode(data))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, str]:
    """A snapshot of another manager, at NEW: the file, and its sha256."""
    directory = opened(tmp_path_factory.mktemp("sender"))
    extend(directory, NEW)
    held = directory.keeper.take(quorum=True)()
    data = Path(held.snapshot.path).read_bytes()
    directory.release()
    return data, held.sha256


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Contents]:
    """The contents of a state at an index."""
    directory = opened(tmp_path_factory.mktemp("expected"))
    found = {}
    for index in range(2, NEW + 6):
        extend(directory, index)
        found[index] = contents(directory.database)
    directory.release()
    return found


class Kill:
    """The process is killed: the page cache survives."""

    next_boot = 1

    def __init__(self, _directory: Path) -> None:
        self.files: Files = OS_FILES
        self.died = False

    @contextmanager
    def after(self, operations: int) -> Iterator[None]:
        """The process dies in this block, after so many operations."""
        with killed_after(operations) as countdown, suppress(Killed):
            yield
        self.died = countdown.died

    def leave_the_disk(self) -> None:
        """The process is gone. Leave the directory as the next process finds it."""


class PowerCut:
    """The machine loses its power: some of the bytes and names that were not synced are lost."""

    next_boot = 2

    def __init__(self, directory: Path) -> None:
        self.files = PageCache(directory)
        self._random = Random(1)
        self._watching = ExitStack()
        self._watching.enter_context(self.files.watching())

    @property
    def died(self) -> bool:
        return self.files.died

    @contextmanager
    def after(self, operations: int) -> Iterator[None]:
        self._random = Random(operations)
        self.files.die_after(operations)
        with suppress(Killed):
            yield

    def leave_the_disk(self) -> None:
        self._watching.close()
        keep_pages, name_changes = self._random.choice([0.0, 0.5]), self._random.choice([0, 1, 2, 99])
        self.files.cut(self._random, keep_pages=keep_pages, name_changes=name_changes)


Death = type[Kill] | type[PowerCut]
both_deaths = pytest.mark.parametrize("death", [Kill, PowerCut])


def sweep(original: Path, scratch: Path, step: Step, check: Callable[[OpenedDirectory], None], death: Death) -> int:
    """`step` on a copy of a directory, and a death at each of its operations in turn; `check` after the next start."""
    for operations in range(10_000):
        shutil.copytree(original, scratch)
        dying = death(scratch)
        directory = opened(scratch, files=dying.files)
        with dying.after(operations):
            step(directory)
        directory.release()
        dying.leave_the_disk()
        again = opened(scratch, boot=dying.next_boot)
        try:
            replay(again.machine, again.log)
            check(again)
        finally:
            again.release()
        shutil.rmtree(scratch)
        if not dying.died:
            return operations
    raise AssertionError("it never comes to an end")


@pytest.mark.slow
@both_deaths
def test_a_manager_that_dies_while_it_takes_a_snapshot(
    tmp_path: Path, expected: dict[int, Contents], sent: tuple[bytes, str], death: Death
) -> None:
    directory = opened(tmp_path / "original")
    extend(directory, OLD)
    directory.close(failed=False)

    def take(directory: OpenedDirectory) -> None:
        keeper = directory.keeper
        keeper.took(keeper.take(quorum=True)(), set())
        extend(directory, OLD + 5)
        keeper.took(keeper.take(quorum=True)(), set())
        directory.log.drop_prefix(OLD)
        extend(directory, OLD + 6)
        keeper.tidy()

    def check(directory: OpenedDirectory) -> None:
        applied = directory.machine.applied_index
        assert OLD <= applied <= OLD + 6
        assert contents(directory.database) == expected[applied]
        assert not [name for name in os.listdir(tmp_path / "m1" / "snapshots") if name == "taking.part"]
        for held in directory.keeper.held:
            verify(held.snapshot.path)

    assert sweep(tmp_path / "original", tmp_path / "m1", take, check, death) > 20


def install(directory: OpenedDirectory, sent: tuple[bytes, str]) -> None:
    """As raft/catchup.py and raft/engine.py do it, one after the other."""
    data, sha256 = sent
    keeper, log = directory.keeper, directory.log
    for offset in range(0, len(data), CHUNK_BYTES):
        keeper.receive(sha256, offset, data[offset : offset + CHUNK_BYTES], len(data))()
    held, machine = keeper.open_incoming(sha256, None)()
    if not log.holds(machine.applied_index, machine.applied_term):
        batch = log.reset_batch(machine.applied_index, machine.applied_term)
        batch.write()
        log.complete(batch)
    keeper.publish(machine)()
    keeper.swap(machine, "")
    keeper.took(held, set())
    keeper.tidy()
    removal = log.removal()
    if removal is not None:
        removal()


@pytest.mark.slow
@both_deaths
def test_a_manager_that_dies_while_a_snapshot_is_installed(
    tmp_path: Path, expected: dict[int, Contents], sent: tuple[bytes, str], death: Death
) -> None:
    directory = opened(tmp_path / "original")
    extend(directory, OLD)
    directory.close(failed=False)

    def check(directory: OpenedDirectory) -> None:
        applied = directory.machine.applied_index
        assert applied in (OLD, NEW)
        assert contents(directory.database) == expected[applied]
        assert directory.log.base_index <= applied <= directory.log.last_index
        install(directory, sent) if applied == OLD else None
        extend(directory, NEW + 5)
        assert contents(directory.database) == expected[NEW + 5]

    operations = sweep(tmp_path / "original", tmp_path / "m1", lambda each: install(each, sent), check, death)
    assert operations > (40 if death is Kill else 30)


@pytest.mark.slow
@both_deaths
def test_a_manager_that_dies_while_its_state_is_rebuilt(
    tmp_path: Path, expected: dict[int, Contents], death: Death
) -> None:
    """Its log was cut, so it needs its snapshot; it dies at each operation of the start that rebuilds."""
    original = tmp_path / "original"
    directory = opened(original)
    extend(directory, OLD)
    for index in (OLD, OLD + 4):
        extend(directory, index) if index > OLD else None
        directory.keeper.took(directory.keeper.take(quorum=True)(), set())
    directory.log.drop_prefix(OLD)
    extend(directory, OLD + 6)
    directory.close(failed=False)
    path = next((original / "state").glob("*.mdb"))
    path.write_bytes(path.read_bytes()[:8192] + bytes(4096) + path.read_bytes()[12288:])
    for operations in range(10_000):
        shutil.copytree(original, tmp_path / "m1")
        dying, first = death(tmp_path / "m1"), None
        with dying.after(operations):
            first = opened(tmp_path / "m1", files=dying.files)
        if first is not None:
            first.release()
        dying.leave_the_disk()
        second = opened(tmp_path / "m1", boot=dying.next_boot)
        replay(second.machine, second.log)
        assert contents(second.database) == expected[OLD + 6]
        second.release()
        shutil.rmtree(tmp_path / "m1")
        if not dying.died:
            assert operations > 10
            return


def until_it_works(job: Callable[[], object]) -> None:
    """As consensus does: after a shortage it tries again."""
    try:
        job()
    except (OSError, StorageFull):
        job()


def fetch_and_install(directory: OpenedDirectory, sent: tuple[bytes, str]) -> None:
    """Take a snapshot of its own, then fetch another one and make it the state."""
    data, sha256 = sent
    keeper, log = directory.keeper, directory.log

    def fetch() -> None:
        for offset in range(0, len(data), CHUNK_BYTES):
            keeper.receive(sha256, offset, data[offset : offset + CHUNK_BYTES], len(data))()

    def take() -> None:
        keeper.took(keeper.take(quorum=True)(), set())

    def open_fetched() -> None:
        nonlocal machine
        held, machine = keeper.open_incoming(sha256, None)()
        keeper.took(held, set())

    machine = directory.machine
    until_it_works(take)
    until_it_works(fetch)
    until_it_works(open_fetched)
    batch = log.reset_batch(machine.applied_index, machine.applied_term)
    batch.write()
    log.complete(batch)
    until_it_works(keeper.publish(machine))
    keeper.swap(machine, "")
    until_it_works(keeper.tidy)
    until_it_works(keeper.tidy)


@pytest.mark.slow
def test_a_manager_whose_disk_is_full_for_a_moment_installs_a_snapshot_all_the_same(
    tmp_path: Path, sent: tuple[bytes, str], expected: dict[int, Contents]
) -> None:
    """Each change of its state and its snapshots fails once, with ENOSPC. The step is tried again, and no file is left
    over."""
    original = tmp_path / "original"
    directory = opened(original)
    extend(directory, OLD)
    directory.close(failed=False)
    for operations in count():
        shutil.copytree(original, tmp_path / "m1")
        files = WatchedFiles(may_fail=lambda path: "/log" not in path)
        directory = opened(tmp_path / "m1", files=files)
        files.fail_after(operations, errno.ENOSPC)
        fetch_and_install(directory, sent)
        files.permit()
        directory.close(failed=False)
        assert sorted(os.listdir(tmp_path / "m1" / "state")) == ["2.mdb", "2.mdb-lock", "2.mdb.sealed", "current"]
        assert len([name for name in os.listdir(tmp_path / "m1" / "snapshots") if name != INCOMING[1]]) == 2
        again = opened(tmp_path / "m1", boot=2)
        assert contents(again.database) == expected[NEW]
        again.close(failed=False)
        shutil.rmtree(tmp_path / "m1")
        if not files.failed:
            assert operations > 20
            return
