"""Promises: a link sends urgent messages first, and cuts large ones. No more bytes are on their way than the link
carries in a moment, even if the buffers on the way would take more. Yet the link is kept busy.

The link is a model on a virtual clock. It has a way, a speed, and a buffer without a bound, like a router or a proxy.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fast import fast_first
from warren_raft.raft.lanes import Lane
from warren_raft.raft.links.link_queue import (
    PART_BYTES_MIN,
    QUEUE_SECONDS,
    WINDOW_BYTES_MAX,
    WINDOW_BYTES_MIN,
    WINDOW_BYTES_START,
    WINDOW_BYTES_UNUSED,
    LinkQueue,
)
from warren_raft.raft.links.wire import (
    KIB,
    MAX_BODY_BYTES,
    MIB,
    BadFrame,
    FrameReader,
    Message,
    encode_body,
)


@dataclass
class Link:
    """A queue, and the network between it and its peer."""

    rate: float
    """Bytes a second."""
    way: float
    """Seconds of the way to the peer, and of the way back."""
    queue: LinkQueue = field(default_factory=LinkQueue)
    reader: FrameReader = field(default_factory=FrameReader)
    now: float = 0.0
    free_at: float = 0.0
    """The time at which the bytes in the buffer have left it."""
    arrived: list[tuple[float, Message]] = field(default_factory=list)
    most_queued: float = 0.0
    """Bytes."""
    carried: int = 0
    _events: list[tuple[float, int, str, bytes | int]] = field(default_factory=list)
    _order: itertools.count[int] = field(default_factory=itertools.count)
    _answered: int = 0

    def put(self, lane: Lane, message: Message, **more: int) -> None:
        self.queue.put(lane, encode_body(message), self.now, **more)
        self.flush()

    def flush(self) -> None:
        for piece in self.queue.take(self.now):
            self.free_at = max(self.now, self.free_at) + len(piece) / self.rate
            self.carried += len(piece)
            self._push(self.free_at + self.way, "bytes", bytes(piece))
        self.most_queued = max(self.most_queued, (self.free_at - self.now) * self.rate)

    def _push(self, at: float, kind: str, what: bytes | int) -> None:
        heapq.heappush(self._events, (at, next(self._order), kind, what))

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            self.now, _, kind, what = heapq.heappop(self._events)
            if kind == "bytes":
                assert isinstance(what, bytes)
                self._arrive(what)
            else:
                assert isinstance(what, int)
                self.queue.window.acknowledge(what, self.now)
                self.flush()
        self.now = end

    def _arrive(self, piece: bytes) -> None:
        self.reader.feed(piece)
        while (message := self.reader.read()) is not None:
            self.arrived.append((self.now, message))
        if self.reader.marked_bytes != self._answered:
            self._answered = self.reader.marked_bytes
            self._push(self.now + self.way, "got", self._answered)

    def delay_of(self, lane: Lane) -> float:
        """The time that a small message of this lane takes if it is sent now."""
        sent_at, number = self.now, next(self._order)
        self.put(lane, {"type": "probe", "n": number})
        while True:
            self.run(0.001)
            for at, message in reversed(self.arrived):
                if message.get("n") == number:
                    return at - sent_at


LARGE = encode_body({"type": "bulk", "data": bytes(4 * MIB)})

RATES = [64 * KIB, 512 * KIB, MIB, 40 * MIB]


@pytest.mark.parametrize("rate", fast_first(RATES, 3))
@pytest.mark.parametrize("way", [0.0001, 0.02, 0.2])
def test_a_link_is_kept_busy_and_nothing_waits_long_in_its_buffers(rate: float, way: float) -> None:
    """Megabytes wait. The link carries them at its speed, and a message that is sent meanwhile is late by a moment
    only."""
    link = Link(rate, way)
    for _ in range(0, int(rate * (6 + 50 * way)), 4 * MIB):
        link.queue.put(Lane.BULK, LARGE, link.now)
    link.flush()
    link.run(4.0)  # the window finds the link's speed
    allowed = way + 1.5 * QUEUE_SECONDS + (2 * WINDOW_BYTES_MIN + 2 * PART_BYTES_MIN) / rate
    before = link.carried
    begin = link.now
    for lane in (Lane.CONTROL, Lane.NORMAL) * 4:
        assert link.delay_of(lane) <= allowed + link.queue.window.part_bytes / rate
        link.run(0.1 + 4 * way)  # a long way takes time to measure, once in ten seconds
    carried = (link.carried - before) / (link.now - begin)
    most = min(rate, WINDOW_BYTES_MAX / (2 * way + 0.001))
    assert carried >= 0.75 * most, f"{carried / rate:.0%} of the speed of the link"


@pytest.mark.parametrize("rate", [64 * KIB, MIB])
def test_a_link_that_is_new_or_idle_is_not_filled_before_its_speed_is_known(rate: float) -> None:
    link = Link(rate, 0.01)
    for _ in range(3):
        link.most_queued = 0.0
        link.queue.put(Lane.BULK, LARGE, link.now)
        link.flush()
        link.run(4 * MIB / rate + 20.0)
        assert link.most_queued <= max(1.3 * WINDOW_BYTES_START, 0.25 * rate)
    assert len(link.arrived) == 3


def test_the_window_follows_a_link_that_becomes_slow_and_fast_again() -> None:
    link = Link(40 * MIB, 0.001)
    for _ in range(80):
        link.queue.put(Lane.BULK, LARGE, link.now)
    link.flush()
    link.run(2.0)
    assert link.queue.window.bytes > 2 * MIB
    link.rate = MIB
    link.run(20.0)
    assert link.delay_of(Lane.CONTROL) < 0.3
    link.rate = 40 * MIB
    link.run(2.0)
    before = link.carried
    link.run(1.0)
    assert link.carried - before > 30 * MIB


def test_a_way_that_becomes_longer_is_not_taken_for_a_full_buffer_for_ever() -> None:
    """The shortest measured time belongs to the earlier way, so the way is measured again."""
    link = Link(4 * MIB, 0.001)
    for _ in range(60):
        link.queue.put(Lane.BULK, LARGE, link.now)
    link.flush()
    link.run(5.0)
    link.way = 0.15
    link.run(25.0)
    before = link.carried
    link.run(5.0)
    assert link.carried - before > 5 * 3 * MIB


def test_a_small_message_does_not_wait_while_the_way_is_measured() -> None:
    """Every ten seconds BULK stops for the measurement until the buffers are empty. A write does not wait for it."""
    link = Link(MIB, 0.15)
    for _ in range(10):
        link.queue.put(Lane.BULK, LARGE, link.now)
    link.flush()
    link.run(5.0)
    measured = 0
    late = []
    while link.now < 30.0:
        late.append(link.delay_of(Lane.NORMAL))
        measured += link.queue.window.measures_way
        link.run(0.02)
    assert measured > 1
    assert max(late) < 0.15 + 2 * QUEUE_SECONDS + 0.1


def test_small_messages_that_keep_a_link_busy_do_not_stop_large_ones_for_good() -> None:
    link = Link(MIB, 0.1)
    link.queue.put(Lane.BULK, LARGE, link.now)
    link.queue.put(Lane.BULK, LARGE, link.now)
    small = encode_body({"type": "append", "data": bytes(3000)})
    while link.now < 40.0:
        if link.queue.waiting_bytes < 8 * MIB + 20_000:
            for _ in range(10):
                link.queue.put(Lane.NORMAL, small, link.now)
        link.flush()
        link.run(0.01)
    assert sum(message["type"] == "bulk" for _, message in link.arrived) == 2


def test_small_messages_cost_no_answers_of_their_own() -> None:
    """A link that carries a write of a kilobyte now and then does not need twice as many packets."""
    link = Link(100 * MIB, 0.0005)
    answers = 0
    for _ in range(400):
        link.put(Lane.NORMAL, {"type": "append", "data": bytes(1000)})
        before = link.reader.marked_bytes
        link.run(0.01)
        answers += link.reader.marked_bytes != before
    assert len(link.arrived) == 400
    assert 0 < answers < 10
    assert WINDOW_BYTES_START < link.queue.window.bytes <= WINDOW_BYTES_UNUSED


def test_a_thin_link_that_carries_little_is_not_taken_for_a_fast_one() -> None:
    link = Link(128 * KIB, 0.0005)
    for _ in range(400):
        link.put(Lane.NORMAL, {"type": "append", "data": bytes(1000)})
        link.run(0.05)
    assert link.queue.window.bytes <= WINDOW_BYTES_START


@given(st.lists(st.tuples(st.sampled_from(list(Lane)), st.integers(0, 300_000)), max_size=25))
def test_each_lane_is_in_order_and_whole(sent: list[tuple[Lane, int]]) -> None:
    link = Link(5 * MIB, 0.005)
    for number, (lane, size) in enumerate(sent):
        size = min(size, 500) if lane is Lane.CONTROL else size
        link.put(lane, {"type": str(int(lane)), "n": number, "data": bytes(size)})
    link.run(60.0)
    for lane in Lane:
        assert [m["n"] for _, m in link.arrived if m["type"] == str(int(lane))] == [
            number for number, (other, _) in enumerate(sent) if other is lane
        ]
    assert link.queue.waiting_bytes == 0


def test_control_goes_before_everything_and_is_never_held_back() -> None:
    """Also if the peer has not answered for long: an election must not wait for messages that it may end."""
    queue = LinkQueue()
    queue.put(Lane.BULK, LARGE, 0.0)
    queue.put(Lane.NORMAL, LARGE, 0.0)
    held = b"".join(queue.take(0.0))
    assert len(held) <= WINDOW_BYTES_START + MAX_BODY_BYTES
    assert queue.take(100.0) == []
    queue.put(Lane.CONTROL, encode_body({"type": "vote"}), 100.0)
    (frame,) = queue.take(100.0)
    assert bytes(frame).endswith(encode_body({"type": "vote"}))


def test_normal_goes_first_and_bulk_is_not_starved() -> None:
    link = Link(MIB, 0.01)
    for number in range(40):
        link.put(Lane.BULK, {"type": "bulk", "n": number, "data": bytes(100 * KIB)})
        link.put(Lane.NORMAL, {"type": "normal", "n": number, "data": bytes(100 * KIB)})
    link.run(4.0)
    came = [message["type"] for _, message in link.arrived]
    assert 0.6 < came.count("normal") / len(came) < 0.9
    assert came.count("bulk") >= 6


def test_what_is_not_wanted_any_more_is_taken_back() -> None:
    """A message that was not begun never leaves. The rest of a begun message does not leave, and the next message of
    its lane is whole."""
    link = Link(MIB, 0.01)
    for number in (1, 2, 3):
        link.queue.put(Lane.BULK, encode_body({"type": "bulk", "n": number, "data": bytes(MIB)}), 0.0, number=number)
    link.flush()
    link.run(0.2)
    link.queue.cancel(1)
    link.queue.cancel(2)
    link.queue.cancel(99)
    link.queue.cancel(1)
    link.flush()
    link.run(3.0)
    assert [message["n"] for _, message in link.arrived] == [3]
    assert link.carried < 1.5 * MIB
    assert link.queue.waiting_bytes == 0
    assert link.reader.unfinished_bytes == 0


def test_a_link_that_closes_says_what_is_left_without_waiting_but_for_bulk() -> None:
    queue = LinkQueue()
    reader = FrameReader()
    queue.put(Lane.BULK, LARGE, 0.0)
    reader.feed(b"".join(queue.take(0.0)))
    assert reader.read() is None
    queue.put(Lane.NORMAL, encode_body({"type": "large", "data": bytes(MIB)}), 0.0)
    queue.put(Lane.CONTROL, encode_body({"type": "small"}), 0.0)
    found = []
    reader.feed(b"".join(queue.take_rest(0.0)))
    while (message := reader.read()) is not None:
        found.append(message["type"])
    assert found == ["small", "large"]


def test_an_answer_to_what_was_not_asked_is_refused() -> None:
    for total in (0, 1, 10**9, -5):
        queue = LinkQueue()
        queue.put(Lane.BULK, LARGE, 0.0)
        queue.take(0.0)
        with pytest.raises(BadFrame, match="no mark was sent there"):
            queue.window.acknowledge(total, 1.0)


def test_what_waits_is_counted() -> None:
    queue = LinkQueue()
    for lane in Lane:
        queue.put(lane, bytes(1000), 0.0)
    queue.put(Lane.BULK, bytes(MIB), 0.0, number=7)
    assert queue.waiting_bytes == 3000 + MIB
    taken = b"".join(queue.take(0.0))
    assert queue.waiting_bytes >= 3000 + MIB - len(taken)
    queue.cancel(7)
    assert queue.waiting_bytes == 0
