"""Large commands: their bytes go to the other voters ahead of the log, in parts, beside all other messages.

The log has an order, so entries behind a 4 MiB entry wait for all of its bytes: four seconds at 1 MB/s, for a write of
some bytes. So the leader sends a large entry ahead in the lane BULK (lanes.py), and proposes it when a majority holds
its bytes. The append message to a peer that holds the bytes only names them. Not here: the callers of large commands
(submit.py), the log. Invariant: a peer holds the bytes that an append message names to it until the leader says that
they may be dropped, or the link ends. Held bytes count for nothing before the entry is appended.
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
    SubmitLarge,
    SubmitLargeCancel,
    SubmitLargeEnd,
)
from warren_raft.raft.outbox import Sender

LARGE_BYTES: Final = 64 * 1024
"""A command above this is large: a link of 1 MB/s is busy with it for 65 ms. To send a smaller command ahead costs more
(one round trip) than it saves."""
AHEAD_BYTES: Final = 8 * 1024 * 1024
"""Large entries on their way to one peer, or held there and not in its log yet: two of the largest. One entry is always
let through. The same bound holds for the large commands that a manager has sent to the leader."""
QUEUE_BYTES: Final = 64 * 1024 * 1024
"""Large commands that wait at the leader; beyond it the sender is told to try again."""
HELD_BYTES_MAX: Final = 4 * AHEAD_BYTES
HELD_MAX: Final = 16 * 1024
"""Bytes and entries that a manager holds for a leader. A correct leader sends less than half of it."""
HELD_OF_ALL: Final = 2
"""For all peers together, so many times as much: the old leader and the new one. Entries beyond it are refused."""

LONGEST_SECONDS: Final = 1e9
"""The deadline in a message if the caller of the command waits for ever."""

UNDER_WAY: Final = 0
"""In the place of the name of an entry: the entry is on its way to the peer, so it is not sent to it again."""


@dataclass(slots=True, eq=False)
class Large:
    """A large command at the leader, and its entry once that is needed."""

    command: bytes
    deadline: float
    sender: str = ""
    """The manager that sent the command; "": one of our own callers made it."""
    sender_number: int = 0
    waiter: Any = None
    """The proposal of our own caller."""
    number: int = 0
    """The number under which it is sent to peers; 0: it was not sent to any peer yet."""
    encoded: bytes = b""
    """The entry, encoded when it is first needed."""
    index: int = 0
    """Its index in the log; 0: it is not in the log yet."""
    names: dict[str, int] = field(default_factory=dict)
    """Peer -> the name under which the peer holds it, or UNDER_WAY. The name is `number`; for the peer that sent the
    command to us it is -sender_number."""
    refused_by: set[str] = field(default_factory=set)
    """Peers that did not take it ahead of the log, because they did not know that we lead. The append message to them
    has its bytes."""

    @property
    def entry(self) -> bytes:
        if not self.encoded:
            self.encoded = entries.encode_commands([self.command])
        return self.encoded


class LargeEntries:
    """The large commands at a leader. For the raft thread or a simulator only."""

    def __init__(self, outbox: Sender) -> None:
        self._outbox = outbox
        self._number = 0
        self._refused: dict[str, int] = {}
        """Manager -> the number of its newest command that was given back. The commands that it sent before it knew of
        that are given back too: they would be proposed before the earlier command."""
        self._queue: deque[Large] = deque()
        self._queue_bytes = 0
        self._proposed: dict[int, Large] = {}
        """Index -> its large command, kept until all peers that hold the bytes have the entry in their logs."""
        self._ahead_bytes: dict[str, int] = {}
        """Peer -> bytes on their way to it, or held there."""

    def next_number(self) -> int:
        """The number of the next large message of this manager; no number is used twice."""
        self._number += 1
        return self._number

    @property
    def is_waiting(self) -> bool:
        return bool(self._queue)

    @property
    def is_busy(self) -> bool:
        """Whether a large command waits in the queue, or is in the log and still held by a peer."""
        return bool(self._queue or self._proposed)

    @property
    def has_room(self) -> bool:
        return self._queue_bytes < QUEUE_BYTES

    def add(self, large: Large) -> None:
        """Put a large command into the queue. They are proposed in the order in which they came."""
        self._queue.append(large)
        self._queue_bytes += len(large.command)
        if large.sender:
            large.names[large.sender] = -large.sender_number

    def receive(self, peer: str, message: SubmitLarge, now: float, *, is_leader: bool) -> None:
        """A manager sends a large command. It is given back if we do not lead, or the queue is full."""
        number = message.number
        if is_leader and self.has_room and message.heard >= self._refused.get(peer, 0):
            self.add(Large(message.command, now + message.milliseconds / 1000, peer, number))
        else:
            self._end(peer, number, again=True)

    def receive_cancel(self, peer: str, number: int) -> None:
        """A manager does not wait for its large command any more. The command may not have arrived as a whole."""
        found = [large for large in self._all() if large.names.get(peer) == -number]
        for large in found:
            if not large.index:
                self._give_up(large)
        if not found:
            self._end(peer, number)

    # Sending ahead -----------------------------------------------------------------------------------------------

    def send_ahead(self, now: float, term: int, peers: list[str]) -> None:
        """One step: send the commands at the head of the queue to each peer (the other voters with a link)."""
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
        self._outbox.send(peer, LargeEntry(number=large.number, term=term, entry=large.entry))

    def _has_room_for(self, peer: str, large: Large) -> bool:
        ahead = self._ahead_bytes.get(peer, 0)
        return not ahead or ahead + len(large.command) <= AHEAD_BYTES

    def _all(self) -> Iterator[Large]:
        yield from self._queue
        yield from self._proposed.values()

    def held(self, peer: str, number: int) -> None:
        """A peer says that it holds the whole entry."""
        for large in self._all():
            if large.number == number and large.names.get(peer) == UNDER_WAY:
                large.names[peer] = number

    def refused(self, peer: str, number: int) -> None:
        """A peer does not take the entry."""
        for large in self._all():
            if large.number == number and large.names.get(peer) == UNDER_WAY:
                del large.names[peer]
                large.refused_by.add(peer)
                self._ahead_bytes[peer] -= len(large.command)

    # Into the log ------------------------------------------------------------------------------------------------

    def next_ready(self, node_id: str, voters: frozenset[str]) -> Large | None:
        """The first command in the queue, if a majority holds it."""
        if not self._queue:
            return None
        large = self._queue[0]
        holders = {node_id, *(peer for peer, name in large.names.items() if name != UNDER_WAY)}
        return large if len(holders & voters) * 2 > len(voters) else None

    def drop_next(self) -> None:
        """Drop the first command in the queue: its caller does not wait any more."""
        self._give_up(self._queue[0])

    def proposed(self, index: int) -> None:
        """The first command in the queue is in the log now, at `index`."""
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
        """The name of this entry in an append message to a peer. UNDER_WAY: the entry is still on its way to the peer;
        None: the peer has no bytes of it."""
        large = self._proposed.get(index)
        return None if large is None else large.names.get(peer)

    def appended(self, match_index: Callable[[str], int]) -> None:
        """Tell the peers that have an entry in their logs to drop the held bytes of it."""
        for index, large in list(self._proposed.items()):
            for peer in [peer for peer in large.names if match_index(peer) >= index]:
                self._let_go(large, peer)
            if not large.names:
                del self._proposed[index]

    # The end -----------------------------------------------------------------------------------------------------

    def link_down(self, peer: str) -> None:
        """The peer has dropped the bytes that it held. It will send its own large commands again."""
        self._refused.pop(peer, None)
        for large in [large for large in self._queue if large.sender == peer]:
            large.names.pop(peer, None)
            self._give_up(large)
        for large in self._all():
            large.names.pop(peer, None)
            large.refused_by.discard(peer)
        self._ahead_bytes.pop(peer, None)

    def clear(self) -> None:
        """This manager does not lead any more."""
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
            self._outbox.cancel(peer, large.number)
            self._outbox.send(peer, LargeEntryCancel(large.number))  # for the case that the entry arrives all the same
        else:
            # It arrives after the append message that names the entry.
            self._outbox.send(peer, LargeEntryDrop(large.number))

    def _end(self, peer: str, number: int, *, again: bool = False) -> None:
        """Tell a manager that its large command is not needed any more; `again`: it was not proposed."""
        if again:
            self._refused[peer] = max(number, self._refused.get(peer, 0))
        self._outbox.send(peer, SubmitLargeEnd(number=number, again=again))


class _OfOne:
    """The entries that one peer has sent ahead."""

    __slots__ = ("entries", "size_bytes")

    def __init__(self) -> None:
        self.entries: dict[int, bytes] = {}
        self.size_bytes = 0

    def drop(self, number: int) -> None:
        self.size_bytes -= len(self.entries.pop(number, b""))


class HeldEntries:
    """The large entries that this manager holds, of each peer that sent some. For the raft thread or a simulator only.

    `lent` has the large commands that this manager has sent to a leader: a leader may name these, too.
    """

    def __init__(self, lent: LentCommands[Any]) -> None:
        self._lent = lent
        self._held: dict[str, _OfOne] = {}

    def has_room_for(self, entry: bytes) -> bool:
        """Whether one more entry may be held. A peer goes by our word that we hold its entries, so they are kept when
        another peer sends some: more than one may lead, or seem to, before we know the leader."""
        all_held = self._held.values()
        return (
            sum(held.size_bytes for held in all_held) + len(entry) <= HELD_OF_ALL * HELD_BYTES_MAX
            and sum(len(held.entries) for held in all_held) < HELD_OF_ALL * HELD_MAX
        )

    def add(self, peer: str, number: int, entry: bytes) -> bool:
        """Hold an entry of `peer`. False: this is more than a correct leader sends."""
        held = self._held.setdefault(peer, _OfOne())
        held.drop(number)
        held.entries[number] = entry
        held.size_bytes += len(entry)
        return held.size_bytes <= HELD_BYTES_MAX and len(held.entries) <= HELD_MAX

    def get(self, peer: str, number: int) -> bytes | None:
        held = self._held.get(peer)
        return None if held is None else held.entries.get(number)

    def named(self, peer: str, name: int) -> bytes | None:
        """The entry that a leader names: one that it sent ahead or, by a negative number, a command of ours."""
        if name > 0:
            return self.get(peer, name)
        command = self._lent.of(peer).get(-name)
        return None if command is None else entries.encode_commands([command.data])

    def drop(self, peer: str, number: int) -> None:
        held = self._held.get(peer)
        if held is not None:
            held.drop(number)

    def link_down(self, peer: str) -> None:
        self._held.pop(peer, None)


class Command(Protocol):
    """The fields of a caller's large command that LentCommands uses."""

    data: bytes
    deadline: float
    sent: bool


C = TypeVar("C", bound=Command)


class LentCommands(Generic[C]):
    """Large commands that this manager has sent to the leader, kept until the leader says that it does not need them
    any more. For the raft thread or a simulator only."""

    def __init__(self, outbox: Sender, numbers: LargeEntries) -> None:
        """`numbers` gives the numbers of large messages, so that no number is used twice."""
        self._outbox = outbox
        self._numbers = numbers
        self._lent: dict[str, dict[int, C]] = {}
        self._cancelled: set[int] = set()
        self._overtaken: set[int] = set()
        """Numbers sent before our state was replaced. The new state may contain these commands; each is sent again."""
        self._heard: dict[str, int] = {}
        """Manager -> the number of the newest command that it gave back."""

    def of(self, peer: str) -> dict[int, C]:
        """The commands that a manager has, or is getting: number -> command."""
        return self._lent.setdefault(peer, {})

    def awaited(self, peer: str) -> list[C]:
        """The commands among them that need not be sent again for us to see their result."""
        return [command for number, command in self.of(peer).items() if number not in self._overtaken]

    def overtake(self) -> None:
        """Our state was replaced: all commands sent so far are to be sent again."""
        self._overtaken = {number for lent in self._lent.values() for number in lent}

    def has_room_for(self, peer: str, command: C) -> bool:
        lent = self.of(peer).values()
        return not lent or sum(len(each.data) for each in lent) + len(command.data) <= AHEAD_BYTES

    def send(self, peer: str, command: C, now: float) -> None:
        number = self._numbers.next_number()
        self.of(peer)[number] = command
        command.sent = True
        message = SubmitLarge(
            number=number,
            heard=self._heard.get(peer, 0),
            command=command.data,
            milliseconds=int(1000 * min(max(command.deadline - now, 0.0), LONGEST_SECONDS)),
        )
        self._outbox.send(peer, message)

    def ended(self, peer: str, number: int, *, again: bool) -> C | None:
        """A manager does not need a command any more. Returns the command; None: its number is not known."""
        if again:
            self._heard[peer] = max(number, self._heard.get(peer, 0))
        self._cancelled.discard(number)
        self._overtaken.discard(number)
        return self.of(peer).pop(number, None)

    def cancel(self, is_wanted: Callable[[C], bool]) -> None:
        """Cancel the commands that no caller waits for any more, so that they do not delay the commands behind."""
        for peer, lent in self._lent.items():
            for number, command in lent.items():
                if number not in self._cancelled and not is_wanted(command):
                    self._cancelled.add(number)
                    self._outbox.cancel(peer, number)
                    self._outbox.send(peer, SubmitLargeCancel(number))

    def link_down(self, peer: str) -> None:
        gone = self._lent.pop(peer, {}).keys()
        self._cancelled -= gone
        self._overtaken -= gone
        self._heard.pop(peer, None)
