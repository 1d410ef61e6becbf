"""When a write passes the points on its way through a manager: the newest stamps, while somebody wants them.

Lives here: the points, and the ring that holds the stamps. Not here: the places that stamp (raft/driver.py,
manager/calls.py), and the times between stamps (benchmarks/ledger.py). Invariant: memory is bounded, and a stamp waits
for no lock.
"""

from __future__ import annotations

from collections import deque
from time import perf_counter_ns
from typing import Final, Literal

STAMPS_MAX: Final = 32_768
"""So many of the newest stamps are kept: about 2,000 writes, 4 MiB."""

Point = Literal[
    "called",  # caller's thread: the write's operations are known. Number: the thread's id
    "submitted",  # caller's thread: the write is encoded and about to be queued. Number: the thread's id
    "arrived",  # raft thread: a message of a peer is decoded
    "step",  # raft thread: a step begins
    "stepped",  # raft thread: the engine has decided. Number: the last index of the log
    "handed",  # raft thread: messages are encoded, and the log's batch is handed to the sync thread
    "sent",  # raft thread: the messages were given to the kernel
    "applied",  # raft thread: committed entries are applied, and no caller is woken yet. Number: the applied index
    "writing",  # sync thread: it has the log's batch. Number: the last index of the batch
    "written",  # sync thread: the log's batch is durable. Number: the last index of the batch
    "answered",  # caller's thread: it runs again. Number: the thread's id
]

Stamp = tuple[int, Point, int]
"""The time in nanoseconds of `time.perf_counter_ns`, which all processes of a Linux machine share; the point; its
number."""


class Stamps:
    """The newest stamps of one manager, oldest first. Thread-safe."""

    def __init__(self) -> None:
        self._ring: deque[Stamp] = deque(maxlen=STAMPS_MAX)

    def add(self, point: Point, number: int = 0) -> None:
        self._ring.append((perf_counter_ns(), point, number))

    def take(self) -> list[Stamp]:
        """A copy of the stamps."""
        return list(self._ring)
