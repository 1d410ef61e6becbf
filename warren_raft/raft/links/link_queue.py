"""The messages that one link is about to send: which frame goes next, and how many bytes may be on their way at once.

Lives here: three lanes, the cutting of large messages, and a window that follows the link's speed. Not here: sockets
(connection.py), the bytes of a frame (wire.py). Pure: time is passed in. Invariant: frames of one lane leave in the
order of their messages. Without control messages, at most the window and one frame are on their way.

The reason for a window of our own: no message can overtake bytes that the kernel, a proxy or a router has taken. A
heartbeat behind 4 MiB in their buffers is 4 s late at 1 MB/s, and leadership is lost long before.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from warren_raft.raft.lanes import Lane
from warren_raft.raft.links.wire import (
    FIRST,
    FIRST_BYTES,
    GIVEN_UP,
    HEADER_BYTES,
    KIB,
    MARK,
    MAX_BODY_BYTES,
    MIB,
    MORE,
    BadFrame,
    first_body,
    frame_head,
)

QUEUE_SECONDS: Final = 0.1
"""The longest time that a byte should wait in the buffers on the way to the peer. A longer time would only delay all
messages behind it. With a shorter time, a link across continents, or to a peer that is busy for a moment, would run
dry."""
WINDOW_BYTES_MIN: Final = 16 * KIB
WINDOW_BYTES_MAX: Final = 8 * MIB
WINDOW_BYTES_START: Final = 64 * KIB
"""The window of a new link. Its speed is unknown. A link of 1 MB/s is busy with this window for 65 ms."""
WINDOW_BYTES_UNUSED: Final = 256 * KIB
"""If frames arrive so fast that the window is small for the link, it grows to this size although it is not in use.
Otherwise a fast link would go on cutting and marking messages that are small for it. The limit is there because some
networks let a burst through faster than the bytes behind it."""
PARTS_PER_WINDOW: Final = 8
PART_BYTES_MIN: Final = 4 * KIB
"""A large message is cut into parts of an eighth of the window, but of at least these 4 KiB and at most a frame's
64 KiB."""
WAY_SECONDS: Final = 10.0
"""The interval at which the time of the way itself is measured again, because the way may have changed."""
JOINED_BYTES: Final = 4 * KIB
"""A smaller body is copied behind its head, because that costs less than passing on two objects."""
NORMAL_SHARE: Final = 3
"""While both lanes wait, NORMAL gets so many bytes for each byte of BULK, so that neither stops the other."""


class Window:
    """The bytes that may be on their way: as many as the link carries in one round trip and QUEUE_SECONDS.

    Some frames carry a mark, which the peer answers at once. If the answer takes longer than that time, the mark has
    waited in a buffer, and the window shrinks in proportion. If it takes less time and the window was in use, the
    window grows. It changes once in a round trip.
    """

    def __init__(self) -> None:
        self.bytes = WINDOW_BYTES_START
        self.part_bytes = self._step
        """The largest part of a message."""
        self._sent = 0
        self._acknowledged = 0
        self._marked = 0
        self._marks: deque[_Mark] = deque()
        self._mark_at = 0
        """The next mark is due when so many bytes are sent."""
        self._changed_at = 0
        """The bytes that were sent when the window last changed. Marks before this say nothing about the new window."""
        self._way = float("inf")
        """The shortest time from a mark to its answer. It is the best known time of the way without buffers."""
        self._way_until = float("-inf")
        """The time after which `_way` is out of date."""
        self._is_in_use = False
        """Whether the window has held a frame back since it last changed. If not, the effect of a larger window is
        unknown."""
        self._was_never_full = True
        """Whether no buffer on the way was ever full. Then the link's speed is unknown, and the window doubles."""
        self.measures_way = False
        """Whether large messages wait until no mark is on its way, so that the next mark finds the buffers empty."""
        self._marks_meanwhile = 0

    @property
    def _step(self) -> int:
        """The bytes between two marks while half of the window or more is on its way. With larger steps, frames would
        leave in bursts, and the bytes of a burst look like a full buffer."""
        return self.bytes // PARTS_PER_WINDOW

    def is_open(self, lane: Lane, message_bytes: int) -> bool:
        """Whether a frame of a message may leave. NORMAL has one more step than BULK, so that it does not wait for an
        answer behind BULK."""
        if not self._marks:
            return True  # one more frame, with a mark: without a mark the peer would never answer and open the window
        if self.measures_way and (lane is Lane.BULK or message_bytes > PART_BYTES_MIN):
            return False
        on_its_way = self._sent - self._acknowledged
        is_open = on_its_way < self.bytes + (0 if lane is Lane.BULK else self._step)
        self._is_in_use = self._is_in_use or not is_open
        return is_open

    def send(self, size: int, now: float) -> bool:
        """Note that a frame leaves. Whether it has to carry a mark."""
        self._sent += size
        if self._sent < self._mark_at and (self._marks or now < self._way_until):
            return False
        self._measure_way(now)
        self._marks.append(_Mark(self._sent, self._sent - self._acknowledged, size, now, not self._marks))
        self._marked = self._sent
        self._plan()
        return True

    def _measure_way(self, now: float) -> None:
        """At each mark: begin, continue or end the measurement of the way. If small messages alone keep the link busy,
        the measurement is put off."""
        self.measures_way = bool(self._marks) and now >= self._way_until
        self._marks_meanwhile = self._marks_meanwhile + 1 if self.measures_way else 0
        if self._marks_meanwhile > PARTS_PER_WINDOW:
            self.measures_way = False
            self._way_until = now + WAY_SECONDS

    def _plan(self) -> None:
        self._mark_at = max(self._marked + self._step, self._acknowledged + self.bytes // 2)

    def acknowledge(self, total: int, now: float) -> None:
        """The peer says that it has got the first `total` bytes. Raises `BadFrame` if there was no mark at that
        place."""
        mark = None
        while self._marks and self._marks[0].total <= total:
            mark = self._marks.popleft()
        if mark is None or mark.total != total:
            raise BadFrame(f"it says that it got {total} bytes, but no mark was sent there")
        self._acknowledged = total
        self._adapt(mark, now)
        self._plan()

    def _adapt(self, mark: _Mark, now: float) -> None:
        took = now - mark.at
        if took < self._way or (mark.alone and now >= self._way_until):
            self._way, self._way_until = took, now + WAY_SECONDS
        if mark.total <= self._changed_at:
            return
        # Scaled as if the whole window had been on its way, because the first marks of a burst find empty buffers.
        waited = (took - self._way) * max(1.0, self.bytes / mark.on_its_way)
        factor = (self._way + QUEUE_SECONDS) / max(self._way + waited, 1e-6)
        is_fast = mark.size * QUEUE_SECONDS > self.bytes * took and self.bytes < WINDOW_BYTES_UNUSED
        if factor >= 1.0 and not self._is_in_use and not is_fast:
            return
        if self._was_never_full and waited < QUEUE_SECONDS / 2:
            factor = 2.0
        else:
            self._was_never_full = False
        self.bytes = min(max(int(self.bytes * min(max(factor, 0.5), 2.0)), WINDOW_BYTES_MIN), WINDOW_BYTES_MAX)
        self.part_bytes = min(max(self._step, PART_BYTES_MIN), MAX_BODY_BYTES)
        self._changed_at = self._sent
        self._is_in_use = False


@dataclass(frozen=True, slots=True)
class _Mark:
    total: int
    """The bytes that were sent up to the end of its frame."""
    on_its_way: int
    """The bytes of `total` that were not acknowledged when the mark left."""
    size: int
    """The bytes of its frame."""
    at: float
    """The time when it left."""
    alone: bool
    """Whether no other mark was on its way."""


@dataclass(slots=True)
class _Waiting:
    """A message that has not left completely."""

    body: bytes
    term: int
    number: int
    at: int = 0
    """The bytes of it that have left."""
    is_given_up: bool = False


class LinkQueue:
    """The frames of one link, from its first to its last. Not thread-safe."""

    def __init__(self) -> None:
        self.window = Window()
        self._ready: list[bytes | memoryview] = []
        self._ready_bytes = 0
        self._waiting_bytes = 0
        self._lanes: dict[Lane, deque[_Waiting]] = {Lane.NORMAL: deque(), Lane.BULK: deque()}
        self._owed_bytes = 0
        """The bytes that NORMAL has sent beyond its share while BULK waited."""

    @property
    def waiting_bytes(self) -> int:
        """The bytes that `take` has not returned yet."""
        return self._waiting_bytes + self._ready_bytes

    def put(self, lane: Lane, body: bytes, now: float, *, term: int = 0, number: int = 0) -> None:
        """Add a message. `number` is for `cancel`; 0: the message has no number."""
        size = len(body)
        window = self.window
        if lane is Lane.CONTROL:
            self._add(lane, body)
        elif size <= window.part_bytes and not self._lanes[lane] and window.is_open(lane, size):
            self._add(lane | MARK if window.send(HEADER_BYTES + size, now) else lane, body)  # nearly always
        else:
            self._waiting_bytes += size
            self._lanes[lane].append(_Waiting(body, term, number))

    def _add(self, flags: int, body: bytes | memoryview) -> None:
        self._ready_bytes += len(body)
        if len(body) < JOINED_BYTES:
            self._ready.append(frame_head(flags, body) + body)
        else:
            self._ready += (frame_head(flags, body), body)

    def cancel(self, number: int) -> None:
        """Drop the message with this number, or its rest if a part has left."""
        lane = self._lanes[Lane.BULK]
        for position, waiting in enumerate(lane):
            if waiting.number == number and not waiting.is_given_up:
                self._waiting_bytes -= len(waiting.body) - waiting.at
                if waiting.at:
                    waiting.is_given_up, waiting.body = True, b""
                else:
                    del lane[position]
                return

    def take(self, now: float) -> list[bytes | memoryview]:
        """The bytes that may leave now, in order: whole frames, or heads and bodies of frames."""
        while (lane := self._next_lane()) is not None and self.window.is_open(lane, len(self._lanes[lane][0].body)):
            self._add_part(lane, now)
        ready, self._ready = self._ready, []
        self._ready_bytes = 0
        return ready

    def take_rest(self, now: float) -> list[bytes | memoryview]:
        """All waiting bytes except those of BULK, for a link that closes."""
        self._lanes[Lane.BULK].clear()
        while self._lanes[Lane.NORMAL]:
            self._add_part(Lane.NORMAL, now)
        return self.take(now)

    def _next_lane(self) -> Lane | None:
        normal, bulk = self._lanes[Lane.NORMAL], self._lanes[Lane.BULK]
        if not bulk:
            self._owed_bytes = 0
            return Lane.NORMAL if normal else None
        is_its_turn = self._owed_bytes >= NORMAL_SHARE * self.window.part_bytes and not self.window.measures_way
        return Lane.BULK if is_its_turn or not normal else Lane.NORMAL

    def _add_part(self, lane: Lane, now: float) -> None:
        flags, body = self._next_part(self._lanes[lane][0])
        if not flags & MORE:
            self._lanes[lane].popleft()
        size = HEADER_BYTES + len(body)
        if lane is Lane.BULK:
            self._owed_bytes = max(0, self._owed_bytes - NORMAL_SHARE * size)
        else:
            self._owed_bytes += size
        if self.window.send(size, now):
            flags |= MARK
        self._add(lane | flags, body)

    def _next_part(self, waiting: _Waiting) -> tuple[int, bytes | memoryview]:
        if waiting.is_given_up:
            return GIVEN_UP, b""
        body, at, part_bytes = waiting.body, waiting.at, self.window.part_bytes
        if at == 0 and len(body) <= part_bytes:
            self._waiting_bytes -= len(body)
            return 0, body
        part = memoryview(body)[at : at + part_bytes - (0 if at else FIRST_BYTES)]
        waiting.at += len(part)
        self._waiting_bytes -= len(part)
        more = MORE if waiting.at < len(body) else 0
        return (more, part) if at else (FIRST | more, first_body(waiting.term, len(body), part))
