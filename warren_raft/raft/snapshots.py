"""The protocol of the snapshots on this manager, as consensus uses them.

Lives here: the operations, and which of them are jobs for a worker thread. Not here: their files and checks
(snapshots/keeper.py), and when a snapshot is taken, sent or fetched (catchup.py). Invariant: a snapshot that is held
was verified in full.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from warren_raft.raft.effects import Job


class Snapshot(Protocol):
    """One verified snapshot file. `sha256` names it; `file_bytes` is its size."""

    @property
    def index(self) -> int: ...
    @property
    def term(self) -> int: ...
    @property
    def sha256(self) -> str: ...
    @property
    def file_bytes(self) -> int: ...


class Snapshots(Protocol):
    """The snapshots on this manager. The jobs are for a worker thread, everything else is for the raft thread.

    Jobs raise OSError, StorageFull, SnapshotInvalid, Corrupted. Of each kind of job only one runs at a time.
    """

    @property
    def held(self) -> Sequence[Snapshot]:
        """Verified snapshots, the newest first. One that is found damaged or missing disappears at any time."""

    @property
    def incoming(self) -> tuple[str, int]:
        """(sha256, bytes) of the file that is being fetched, or was being fetched when this manager last ran."""

    def state_bytes(self) -> int:
        """The size of the newest snapshot's state; 0 before the first snapshot."""

    def take(self, *, quorum: bool) -> Job:
        """Writes and verifies a snapshot, and returns it."""

    def took(self, snapshot: Any, pinned: set[str]) -> None:
        """Hold a snapshot that was taken or fetched. Of the other snapshots keep the newest and the pinned ones."""

    def read(self, sha256: str, offset: int, size: int, *, again: bool = False) -> Job:
        """Reads a part of a held snapshot. `again`: a follower fetched the file in vain, so it is verified before."""

    def receive(self, sha256: str, offset: int, data: bytes, size: int) -> Job:
        """Writes a chunk of the file of `size` bytes that is being fetched; offset 0 begins the file again."""

    def open_incoming(self, sha256: str, cluster_id: str | None) -> Job:
        """Verifies the fetched file in full, and returns (the snapshot, a state machine on a copy of it)."""

    def rebuild(self, log_holds: Callable[[int, int], bool]) -> Job:
        """A state machine on a copy of the newest good snapshot that ends at an (index, term) the log holds. If there
        is none, and the log reaches back to its start, on an empty state; else raises Corrupted."""

    def publish(self, machine: Any) -> Job:
        """Makes the state of `machine` the one that the next start opens."""

    def swap(self, machine: Any, why: str) -> None:
        """From now on readers see the state of `machine`. `why`: a word under which the old state is kept for study;
        "": the old state was only old, and is not kept."""

    def discard(self, machine: Any) -> None:
        """The state of `machine` is not wanted after all."""

    def drop(self, snapshot: Any) -> None:
        """The snapshot that `take` returned is not wanted."""

    def drop_held(self, but: Any) -> None:
        """Do not use the held snapshots any more, except for `but`, which was fetched just now."""

    def drop_incoming(self) -> None:
        """Forget the fetched bytes."""
