"""Small sizes in the product, so that a run reaches limits that real sizes put out of reach; and "no space left" for
the state, because LMDB meets that on a really full disk only: at a commit, at a copy, and when it is published.

Constants that are made small: bytes of a snapshot's chunk, sessions that are remembered. Not here: disks of the log
(memory_files.py). Invariant: the product's own decisions stay; only the numbers, and the result of a commit, differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from unittest import mock

from tests.simulation.options import Options
from tests.simulation.world import Directory, World
from warren_raft.disk.files import Files
from warren_raft.errors import StorageFull
from warren_raft.fsm import sessions
from warren_raft.raft import catchup
from warren_raft.snapshots import keeper
from warren_raft.store.database import Database, WriteTransaction

CAME_THROUGH = 0.2
"""Probability that a commit that fails with "no space left" is on disk all the same: the state machine has to look."""


@contextmanager
def scaled(world: World) -> Iterator[None]:
    """The small sizes, until the end of the block, for all managers of this process."""
    options: Options = world.options
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(catchup, "CHUNK_BYTES", options.chunk_bytes))
        stack.enter_context(mock.patch.object(sessions, "MAX_SESSIONS", options.sessions_max))
        stack.enter_context(_counted_evictions(world))
        if options.state_full_rate:
            stack.enter_context(mock.patch.object(Database, "write", _writer(world)))
            stack.enter_context(mock.patch.object(Database, "publish", _publisher(world)))
            stack.enter_context(mock.patch.object(keeper, "extract", _extractor(world)))
        yield


def _counted_evictions(world: World) -> mock._patch[object]:
    evict = sessions.Sessions._evict

    def counted(self: sessions.Sessions) -> None:
        world.faults["session evicted"] += 1
        evict(self)

    return mock.patch.object(sessions.Sessions, "_evict", counted)


def _full_directory(world: World, path: str) -> Directory | None:
    """The directory of this file of a state, if its disk has no space left."""
    for directory in world.directories.values():
        if directory.state_full_until > world.now and path.startswith(f"{directory.path}/state/"):
            return directory
    return None


def _writer(world: World) -> object:
    def write(database: Database) -> WriteTransaction:
        directory = _full_directory(world, database.path)
        return WriteTransaction(database) if directory is None else _Full(database, directory)

    return write


def _require_room(world: World, path: str) -> None:
    """For a manager that runs; a start that finds no space left is not simulated."""
    directory = _full_directory(world, path)
    process = None if directory is None else world.processes.get(directory.id)
    if process is not None and process.directory is directory:
        raise StorageFull("no room for another state: made so by the simulation")


def _publisher(world: World) -> object:
    publish = Database.publish

    def published(database: Database) -> None:
        _require_room(world, database.path)
        publish(database)

    return published


def _extractor(world: World) -> object:
    extract = keeper.extract

    def extracted(path: str, target: str, *, files: Files) -> object:
        _require_room(world, target)
        return extract(path, target, files=files)

    return extracted


class _Full(WriteTransaction):
    """A write transaction that finds no space left when it commits."""

    __slots__ = ("_directory",)

    def __init__(self, database: Database, directory: Directory) -> None:
        super().__init__(database)
        self._directory = directory

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        full = StorageFull("no space left for the state: a fault of the simulation")
        world = self._directory.world
        if kind is None and world.random.random() >= CAME_THROUGH:
            super().__exit__(StorageFull, full, trace)
        else:
            super().__exit__(kind, error, trace)
        if kind is None:
            world.faults["StorageFull while applying"] += 1
            raise full
