"""Large commands: their bytes go to the others ahead of the log, in parts, beside everything else.

The log has an order, so what follows a 4 MiB entry in it waits for all of its bytes: four seconds at 1 MB/s, for a
write of some bytes. So the leader sends a large entry ahead, in the lane of what nobody waits for (lanes.py), and
proposes it when a majority holds its bytes. The append message to a peer that holds them only names them. Not here:
whose commands they are (submit.py), the log. Invariant: whatever is named to a peer is held there until the leader says
that it may be dropped, or the link ends; nothing held counts for anything before it is appended.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Protocol, TypeVar

from warren_raft.raft import entries
from warren_raft.raft.messages import (
    LargeEntry,
    LargeEntryCancel,
    LargeEntryDrop,
    Message,
    SubmitLarge,
    SubmitLargeCancel,
    SubmitLargeEnd,
)

Send = Callable[[str, Message], None]
Cancel = Callable[[str, int], None]

LARGE_BYTES: Final = 64 * 1024
"""A command above this is large: a link of 1 MB/s is busy with it for 65 ms. For a smaller one, sending it ahead costs
more, a way and back, than it saves."""
AHEAD_BYTES: Final = 8 * 1024 * 1024
"""Of large entries on their way to one peer, or held there and not in its log yet: two of the largest. One is always
let through. The same for what a manager has sent to the leader."""
QUEUE_BYTES: Final = 64 * 1024 * 1024
"""Of large commands that wait at the leader; who sends more is told to come back."""
HELD_BYTES_MAX: Final = 4 * AHEAD_BYTES
HELD_MAX: Final = 16 * 1024
"""What a manager holds for a leader. No correct one sends half of it."""

LONGEST_SECONDS: Final = 1e9
"""In a message, for a command whose caller waits for ever."""

UNDER_WAY: Final = 0
"""In the place of the name of an entry: the peer is about to hold it, so it is not to be sent again."""


@dataclass(slots=True, eq=False)
class Large:
    """A large command at the leader, and from when it travels, its entry."""

    command: bytes
    deadline: float
    origin: str = ""
    """The manager that sent it; "": it is of a caller of ours."""
    origin_number: int = 0
    waiter: Any = None
    """The proposal of our own caller."""
    number: int = 0
    """By which it is known to those it is sent to; 0: it was not sent to anybody yet."""
    encoded: bytes = b""
    """As an entry, from when it is needed."""
    index: int = 0
    """Where it is in the log; 0: not yet."""
    names: dict[str, int] = field(default_factory=dict)
    """Peer -> under which name it is held there, or UNDER_WAY: our own number, or for what a peer sent to us the
    number of that peer, negative."""
    refused_by: set[str] = field(default_factory=set)
    """Peers that did not take it ahead of the log, as they did not know that we lead. It is in an append message to
    them."""

    @property
    def entry(self) -> bytes:
        if not self.encoded:
            self.encoded = entries.encode_commands([self.command])
        return self.encoded


class LargeEntries:
    """Those of a leader. Raft thread or simulator only."""

    def __init__(self, send: Send, cancel: Cancel) -> None:
        self._send = send
        self._cancel = cancel
        self._number = 0
        self._refused: dict[str, int] = {}
        """Manager -> the newest of its commands that was given back. What it sent before it has heard of that is given
        back too: it would be proposed before the other."""
        self._queue: deque[Large] = deque()
        self._queue_bytes = 0
        self._proposed: dict[int, Large] = {}
        """By index; kept until whoever holds the bytes has the entry in its log."""
        self._ahead_bytes: dict[str, int] = {}
        """Of what is on its way to a peer, or held there."""

    def next_number(self) -> int:
        """Of what this manager sends: never used twice."""
        self._number += 1
        return self._number

    @property
    def is_waiting(self) -> bool:
        return bool(self._queue)

    @property
    def is_busy(self) -> bool:
        """Whether there is any, in the queue or in the log, whose bytes are on their way."""
        return bool(self._queue or self._proposed)

    @property
    def has_room(self) -> bool:
        return self._queue_bytes < QUEUE_BYTES

    def add(self, large: Large) -> None:
        """Queue it: they are proposed in the order in which they came."""
        self._queue.append(large)
        self._queue_bytes += len(large.command)
        if large.origin:
            large.names[large.origin] = -large.origin_number

    def receive(self, peer: str, message: SubmitLarge, now: float, *, is_leader: bool) -> None:
        """A manager sends one. It is given back where we do not lead, or have no room."""
        number = message.number
        if is_leader and self.has_room and message.heard >= self._refused.get(peer, 0):
            self.add(Large(message.command, now + message.milliseconds / 1000, peer, number))
        else:
            self._end(peer, number, again=True)

    def receive_cancel(self, peer: str, number: int) -> None:
        """A manager does not wait for one any more. It may never have arrived as a whole."""
        found = [large for large in self._all() if large.names.get(peer) == -number]
        for large in found:
            if not large.index:
                self._give_up(large)
        if not found:
            self._end(peer, number)

    # Sending ahead -----------------------------------------------------------------------------------------------

    def send_ahead(self, now: float, term: int, peers: list[str]) -> None:
        """One step: those at the head of the queue go to every peer (the other voters with a link)."""
        for large in [large for large in self._queue if large.deadline <= now]:
            self._give_up(large)
        with_room = list(peers)
        for large in self._queue:
            for peer in with_room:
                if peer not in large.names and peer not in large.refused_by and self._has_room_for(peer, large):
                    self._send_entry(peer, large, term)
            with_room = [peer for peer in with_room if self._ahead_bytes.get(peer, 0) < AHEAD_BYTES]
            if not with_room:
                return

    def _send_entry(self, peer: str, large: Large, term: int) -> None:
        large.number = large.number or self.next_number()
        large.names[peer] = UNDER_WAY
        self._ahead_bytes[peer] = self._ahead_bytes.get(peer, 0) + len(large.command)
        self._send(peer, LargeEntry(number=large.number, term=term, entry=large.entry))

    def _has_room_for(self, peer: str, large: Large) -> bool:
        ahead = self._ahead_bytes.get(peer, 0)
        return not ahead or ahead + len(large.command) <= AHEAD_BYTES

    def _all(self) -> Iterator[Large]:
        yield from self._queue
        yield from self._proposed.values()

    def held(self, peer: str, number: int) -> None:
        """A peer says that it holds all of it."""
        for large in self._all():
            if large.number == number and large.names.get(peer) == UNDER_WAY:
                large.names[peer] = number

    def refused(self, peer: str, number: int) -> None:
        """A peer does not take it."""
        for large in self._all():
            if large.number == number and large.names.get(peer) == UNDER_WAY:
                del large.names[peer]
                large.refused_by.add(peer)
                self._ahead_bytes[peer] -= len(large.command)

    # Into the log ------------------------------------------------------------------------------------------------

    def next_ready(self, node_id: str, voters: frozenset[str]) -> Large | None:
        """The first in the queue, if a majority holds it."""
        if not self._queue:
            return None
        large = self._queue[0]
        holders = {node_id, *(peer for peer, name in large.names.items() if name != UNDER_WAY)}
        return large if len(holders & voters) * 2 > len(voters) else None

    def drop_next(self) -> None:
        """The first in the queue is not wanted any more."""
        self._give_up(self._queue[0])

    def proposed(self, index: int) -> None:
        """The first in the queue is in the log now."""
        large = self._queue.popleft()
        self._queue_bytes -= len(large.command)
        large.index = index
        if large.names:
            self._proposed[index] = large

    @property
    def is_naming(self) -> bool:
        """Whether `name_for` may have an answer."""
        return bool(self._proposed)

    def name_for(self, peer: str, index: int) -> int | None:
        """How an append message names this entry to a peer; UNDER_WAY: not yet; None: it holds none of it."""
        large = self._proposed.get(index)
        return None if large is None else large.names.get(peer)

    def appended(self, match_index: Callable[[str], int]) -> None:
        """Whoever has an entry in its log does not need to hold it beside."""
        for index, large in list(self._proposed.items()):
            for peer in [peer for peer in large.names if match_index(peer) >= index]:
                self._let_go(large, peer)
            if not large.names:
                del self._proposed[index]

    # The end -----------------------------------------------------------------------------------------------------

    def link_down(self, peer: str) -> None:
        """What it held is gone, and what it sent it will send again."""
        self._refused.pop(peer, None)
        for large in [large for large in self._queue if large.origin == peer]:
            large.names.pop(peer, None)
            self._give_up(large)
        for large in self._all():
            large.names.pop(peer, None)
            large.refused_by.discard(peer)
        self._ahead_bytes.pop(peer, None)

    def clear(self) -> None:
        """We lead no more."""
        for large in [*self._all()]:
            self._release(large, again=True)
        self._queue.clear()
        self._queue_bytes = 0
        self._proposed.clear()

    def _give_up(self, large: Large) -> None:
        self._queue.remove(large)
        self._queue_bytes -= len(large.command)
        self._release(large)

    def _release(self, large: Large, *, again: bool = False) -> None:
        for peer in list(large.names):
            self._let_go(large, peer, again=again)

    def _let_go(self, large: Large, peer: str, *, again: bool = False) -> None:
        name = large.names.pop(peer)
        if name < 0:
            self._end(peer, -name, again=again)
            return
        self._ahead_bytes[peer] -= len(large.command)
        if name == UNDER_WAY:
            self._cancel(peer, large.number)
            self._send(peer, LargeEntryCancel(large.number))  # should it arrive all the same
        else:
            self._send(peer, LargeEntryDrop(large.number))  # behind what names it

    def _end(self, peer: str, number: int, *, again: bool = False) -> None:
        """Tell a manager that what it sent is not needed any more; `again`: it was not done."""
        if again:
            self._refused[peer] = max(number, self._refused.get(peer, 0))
        self._send(peer, SubmitLargeEnd(number=number, again=again))


class HeldEntries:
    """What this manager holds for the leader that sent it ahead. Raft thread or simulator only."""

    def __init__(self) -> None:
        self._peer = ""
        self._held: dict[int, bytes] = {}
        self._bytes = 0

    def add(self, peer: str, number: int, entry: bytes) -> bool:
        """False: it is more than a correct leader sends. What another leader sent before is of no use any more."""
        if peer != self._peer:
            self.link_down(self._peer)
            self._peer = peer
        self.drop(peer, number)
        self._held[number] = entry
        self._bytes += len(entry)
        return self._bytes <= HELD_BYTES_MAX and len(self._held) <= HELD_MAX

    def get(self, peer: str, number: int) -> bytes | None:
        return self._held.get(number) if peer == self._peer else None

    def drop(self, peer: str, number: int) -> None:
        if peer == self._peer:
            self._bytes -= len(self._held.pop(number, b""))

    def link_down(self, peer: str) -> None:
        if peer == self._peer:
            self._held.clear()
            self._bytes = 0


class Command(Protocol):
    """What is looked at of a caller's large command."""

    data: bytes
    deadline: float
    sent: bool


C = TypeVar("C", bound=Command)


class LentCommands(Generic[C]):
    """Large commands that a manager has sent to the leader, until that one says that it does not need them any more.
    Raft thread or simulator only."""

    def __init__(self, send: Send, cancel: Cancel, next_number: Callable[[], int]) -> None:
        self._send = send
        self._cancel = cancel
        self._next_number = next_number
        self._lent: dict[str, dict[int, C]] = {}
        self._cancelled: set[int] = set()
        self._overtaken: set[int] = set()
        """Our state was replaced since they were sent, by one that may hold their outcome: each is sent once more."""
        self._heard: dict[str, int] = {}
        """Manager -> the newest one that it gave back."""

    def of(self, peer: str) -> dict[int, C]:
        """Those that a manager has, or is getting, by number."""
        return self._lent.setdefault(peer, {})

    def awaited(self, peer: str) -> list[C]:
        """Those of them whose outcome is still to come to us without another copy."""
        return [command for number, command in self.of(peer).items() if number not in self._overtaken]

    def overtake(self) -> None:
        """Our state was replaced."""
        self._overtaken = {number for lent in self._lent.values() for number in lent}

    def has_room_for(self, peer: str, command: C) -> bool:
        lent = self.of(peer).values()
        return not lent or sum(len(each.data) for each in lent) + len(command.data) <= AHEAD_BYTES

    def send(self, peer: str, command: C, now: float) -> None:
        number = self._next_number()
        self.of(peer)[number] = command
        command.sent = True
        message = SubmitLarge(
            number=number,
            heard=self._heard.get(peer, 0),
            command=command.data,
            milliseconds=int(1000 * min(max(command.deadline - now, 0.0), LONGEST_SECONDS)),
        )
        self._send(peer, message)

    def ended(self, peer: str, number: int, *, again: bool) -> C | None:
        """A manager does not need it any more; what it was."""
        if again:
            self._heard[peer] = max(number, self._heard.get(peer, 0))
        self._cancelled.discard(number)
        self._overtaken.discard(number)
        return self.of(peer).pop(number, None)

    def cancel(self, is_wanted: Callable[[C], bool]) -> None:
        """What is on its way for nobody does not hold up what comes behind it."""
        for peer, lent in self._lent.items():
            for number, command in lent.items():
                if number not in self._cancelled and not is_wanted(command):
                    self._cancelled.add(number)
                    self._cancel(peer, number)
                    self._send(peer, SubmitLargeCancel(number))

    def link_down(self, peer: str) -> None:
        gone = self._lent.pop(peer, {}).keys()
        self._cancelled -= gone
        self._overtaken -= gone
        self._heard.pop(peer, None)
