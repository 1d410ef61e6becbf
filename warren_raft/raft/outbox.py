"""The outbox of one manager: which messages leave at the end of a step, which wait for the disk, which wait briefly.

Lives here: the gates that hold a message back until the log is synced, notices that wait for a message to ride on, and
signs of life while the disk is slow. Not here: the content of a message (guard.py and the other parts of the engine).
Invariant: a message that speaks for the log leaves after the sync that covers it, and only on the link it was made for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from warren_raft.raft.effects import (
    Cancel,
    CloseLink,
    Effect,
    Job,
    Send,
    Then,
    Work,
)
from warren_raft.raft.log.log import Log
from warren_raft.raft.messages import (
    AppendEntries,
    AppendReply,
    Message,
    PreVote,
    PreVoteReply,
    encode,
)
from warren_raft.raft.stages import SLOW_SYNC_SECONDS

NOTICE_SECONDS: Final = 0.002
"""A new commit index waits this long for entries to ride on: with writes following each other it spares each follower
one of three wake-ups a write. It does not wait for a follower that has a caller of this write."""
ALIVE_AFTER_SECONDS: Final = 0.05
"""A reply that has waited this long for our disk is preceded by a sign of life that claims nothing."""
LONG_AGO: Final = -1e9


class Sender(Protocol):
    """The part of the outbox that most parts of the engine use: messages that leave with the step."""

    def send(self, peer: str, message: Message) -> None: ...
    def cancel(self, peer: str, number: int) -> None: ...


@dataclass(slots=True)
class _Outgoing:
    peer: str
    message: Message
    gate: int
    """The Log.position up to which the log has to be synced before it may leave; 0: at once."""


class Outbox:
    """Raft thread or simulator only."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._links: dict[str, int] = {}
        """The number of the present link to each peer."""
        self._effects: list[Effect] = []
        self._new: list[_Outgoing] = []
        """Of this step, in the order in which they were made."""
        self._new_appends: dict[str, int] = {}
        """Peer -> position of its newest append message in `_new`."""
        self._gated: deque[tuple[_Outgoing, float]] = deque()
        """Messages that wait for the disk, and since when."""
        self.notices: dict[str, tuple[Message, float]] = {}
        """Messages that wait for one to ride on, by peer, and since when. If there are any, a step is wanted within
        NOTICE_SECONDS."""
        self._alive_sent_at = LONG_AGO
        self._encoded: tuple[Message | None, dict[str, Any]] = (None, {})
        """The newest message that was sent, and its form on the wire."""

    # Links ---------------------------------------------------------------------------------------------------------

    def link_up(self, peer: str, number: int) -> None:
        self._links[peer] = number

    def link_down(self, peer: str) -> None:
        """A message that was made for the old link would be out of order on a new one."""
        self._links.pop(peer, None)
        self._gated = deque(item for item in self._gated if item[0].peer != peer)
        self.notices.pop(peer, None)
        if self._new:
            self._new = [each for each in self._new if each.peer != peer]
            appends = ((n, each) for n, each in enumerate(self._new) if isinstance(each.message, AppendEntries))
            self._new_appends = {each.peer: position for position, each in appends}

    def close_link(self, peer: str, reason: str) -> None:
        """Close the present link to a peer, if there is one; the log says why."""
        number = self._links.get(peer)
        if number is not None:
            self._effects.append(CloseLink(number, reason))

    # Messages ------------------------------------------------------------------------------------------------------

    def send(self, peer: str, message: Message) -> None:
        """It leaves with this step. Nothing if there is no link."""
        number = self._links.get(peer)
        if number is not None:
            if self._encoded[0] is not message:  # a leader sends its followers the same object
                self._encoded = message, encode(message)
            self._effects.append(Send(number, self._encoded[1]))

    def cancel(self, peer: str, number: int) -> None:
        """The large message of this number need not be sent on."""
        link = self._links.get(peer)
        if link is not None:
            self._effects.append(Cancel(link, number))

    def send_when_synced(self, peer: str, message: Message) -> None:
        """It leaves when everything that the log holds now is durable."""
        self._new.append(_Outgoing(peer, message, self._log.position))

    def append(self, peer: str, message: AppendEntries, gate: int) -> None:
        """An append message. It takes the place of one of the same step without entries: that is not worth a packet."""
        position = self._new_appends.get(peer)
        if position is not None:
            earlier = self._new[position].message
            assert isinstance(earlier, AppendEntries)
            if not earlier.entries and earlier.previous_index == message.previous_index:
                self._new[position].message = message
                return
        self._new_appends[peer] = len(self._new)
        self._new.append(_Outgoing(peer, message, gate))

    def clear(self) -> None:
        """Another log and another core stand in the place of ours: nothing that waits speaks for them."""
        self._new.clear()
        self._new_appends.clear()
        self._gated.clear()
        self.notices.clear()

    # The end of a step -----------------------------------------------------------------------------------------------

    def add(self, effect: Effect) -> None:
        """Another effect of this step."""
        self._effects.append(effect)

    def work(self, job: Job, then: Then) -> None:
        """Have a worker call `job`; a later step calls `then` with its result."""
        self._effects.append(Work(job, then))

    def flush(self, now: float, waited_for: Collection[str] | None = None) -> bool:
        """Send the messages that may leave. `waited_for`: the followers that this step tells of a new commit index,
        because their callers wait for it; the message to another one waits for entries to ride on. None: none waits.
        True: a message waits for the disk."""
        if self._new:
            new, self._new = self._new, []
            self._new_appends.clear()
            for each in new:
                self._let_go(each, now, waited_for)
        if self.notices:
            self._send_notices(now)
        return bool(self._gated)

    def _let_go(self, each: _Outgoing, now: float, waited_for: Collection[str] | None) -> None:
        if each.gate > self._log.synced_position:
            self._hold(each, now)
            return
        message = each.message
        if type(message) is AppendEntries:
            if waited_for is not None and not message.entries and each.peer not in waited_for:
                _, since = self.notices.get(each.peer, (None, now))
                self.notices[each.peer] = (message, since)
                return
            self.notices.pop(each.peer, None)
        self.send(each.peer, message)

    def _hold(self, new: _Outgoing, now: float) -> None:
        """It waits for the disk, in the place of a message that it repeats if there is one: a disk may be full for
        days, and each heartbeat brings another answer."""
        for position in range(len(self._gated) - 1, -1, -1):
            earlier, since = self._gated[position]
            if earlier.gate != new.gate:
                break
            if _repeats(new, earlier):
                self._gated[position] = new, since
                return
        self._gated.append((new, now))

    def _send_notices(self, now: float) -> None:
        for peer, (message, since) in list(self.notices.items()):
            if now - since >= NOTICE_SECONDS:
                del self.notices[peer]
                self.send(peer, message)

    def send_alive(self, now: float, alive: Callable[[], tuple[str, Message] | None]) -> None:
        """A slow disk must not look like a dead manager (check-quorum), nor may it speak for what is not synced."""
        if not self._gated or now - self._gated[0][1] < ALIVE_AFTER_SECONDS:
            return
        if now - self._alive_sent_at >= ALIVE_AFTER_SECONDS:
            sign = alive()
            if sign is not None:
                self._alive_sent_at = now
                self.send(*sign)

    def synced(self, now: float) -> None:
        """The log is durable up to a later position: the messages that waited for it leave."""
        while self._gated and self._gated[0][0].gate <= self._log.synced_position:
            outgoing, since = self._gated.popleft()
            message = outgoing.message
            if now - since >= SLOW_SYNC_SECONDS and type(message) is AppendReply:
                message = replace(message, sync_ms=int(1000 * (now - since)))
            self.send(outgoing.peer, message)

    def take(self) -> list[Effect]:
        """The effects of this step."""
        effects, self._effects = self._effects, []
        return effects


def _repeats(later: _Outgoing, earlier: _Outgoing) -> bool:
    """Whether they say the same to the same peer, but for the numbers that tie them to a message or a round."""
    return later.peer == earlier.peer and _without_numbers(later.message) == _without_numbers(earlier.message)


def _without_numbers(message: Message) -> Message:
    match message:
        case AppendReply():
            return replace(message, answers=(0, 0))
        case AppendEntries():
            return replace(message, sequence=0)
        case PreVote() | PreVoteReply():
            return replace(message, round=0)
        case _:
            return message
