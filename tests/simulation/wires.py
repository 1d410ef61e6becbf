"""One direction of a connection that carries few bytes a second: the product's own queue at one end, its reader at the
other end, and between them the bytes on their way, first in first out, as in the buffers of a kernel and a router.

Not here: links without a limit, partitions, breaking links (network.py). Invariant: bytes arrive in the order in which
the queue handed them over, and no byte arrives before all bytes before it were carried.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from warren_raft.raft.lanes import Lane
from warren_raft.raft.links.connection import ARRIVING_SECONDS
from warren_raft.raft.links.link_queue import LinkQueue
from warren_raft.raft.links.wire import FrameReader, encode_body
from warren_raft.raft.messages import lane_of, leaders_term

if TYPE_CHECKING:
    from tests.simulation.world import World

LONG_WAIT_SECONDS = 0.1
"""A heartbeat's interval."""


class Wire:
    """One direction. `back` is the other direction, set when both are made."""

    back: Wire

    def __init__(
        self,
        world: World,
        bytes_per_second: float,
        *,
        latency: Callable[[], float],
        on_its_way: Callable[[float, Callable[[], None]], None],
        deliver: Callable[[dict[str, Any]], None],
        arriving: Callable[[int], None],
    ) -> None:
        """`on_its_way(when, arrive)` calls `arrive` at that time, or later, or never if the connection breaks."""
        self._world = world
        self._bytes_per_second = bytes_per_second
        self._latency = latency
        self._on_its_way = on_its_way
        self._deliver = deliver
        self._arriving = arriving
        self._queue = LinkQueue()
        self._reader = FrameReader()
        self._busy_until = 0.0
        self._last_arrival = 0.0
        self._answered_mark = 0
        self._told_arriving_at = -ARRIVING_SECONDS

    def send(self, message: dict[str, Any]) -> None:
        lane = lane_of(message)
        number = message.get("number", 0) if lane is Lane.BULK else 0
        self._queue.put(lane, encode_body(message), self._world.now, term=leaders_term(message), number=number)
        self._pump()

    def cancel(self, number: int) -> None:
        """Carry out the effect Cancel."""
        self._queue.cancel(number)

    def _pump(self) -> None:
        now = self._world.now
        for piece in self._queue.take(now):
            begin = now if self._world.is_calm else max(now, self._busy_until)
            if begin - now > LONG_WAIT_SECONDS:
                self._world.faults["bytes waited on a thin link"] += 1
            self._busy_until = begin if self._world.is_calm else begin + len(piece) / self._bytes_per_second
            self._last_arrival = max(self._last_arrival, self._busy_until + self._latency())
            self._on_its_way(self._last_arrival, lambda piece=bytes(piece): self._arrive(piece))  # type: ignore[misc]

    def _arrive(self, piece: bytes) -> None:
        reader = self._reader
        reader.feed(piece)
        while (message := reader.read()) is not None:
            if message["type"] == "got":
                self.back._queue.window.acknowledge(message["bytes"], self._world.now)
                self.back._pump()
            else:
                self._deliver(message)
        if reader.marked_bytes != self._answered_mark:
            self._answered_mark = reader.marked_bytes
            got = encode_body({"type": "got", "bytes": reader.marked_bytes})
            self.back._queue.put(Lane.CONTROL, got, self._world.now)
            self.back._pump()
        if reader.arriving_term is not None and self._world.now - self._told_arriving_at >= ARRIVING_SECONDS:
            term, reader.arriving_term = reader.arriving_term, None
            self._told_arriving_at = self._world.now
            self._world.checked["seen: part of a large message"] += 1
            self._arriving(term)
