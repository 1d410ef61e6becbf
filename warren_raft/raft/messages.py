"""Every message between managers, in one table: its name on the wire, its lane, its permitted senders, its fields.

Lives here: the message classes, and how a message is checked, decoded and encoded. Not here: frames (links/wire.py),
and the handling of a message (dispatch.py). Invariant: a decoded message holds only values that its class allows.

On the wire a message is a CBOR map: `type` is its name, the other keys are its fields. A missing field has its default;
a field without a default must be there. Keys that the class does not name are ignored: a later version sends them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter, itemgetter
from typing import Annotated, Any, ClassVar, Final, TypeVar, dataclass_transform, get_type_hints

from warren_raft.config import MEMBERS_MAX
from warren_raft.raft.address_book import are_told
from warren_raft.raft.lanes import LINK_LANES, Lane
from warren_raft.raft.membership import INDEX_MAX
from warren_raft.raft.membership import TEXT_CHARACTERS as MEMBER_CHARACTERS
from warren_raft.raft.reports import are_digests, is_report
from warren_raft.raft.trust import PeerStanding
from warren_raft.support.constants import constant
from warren_raft.support.wording import quoted

FAULT_CHARACTERS: Final = 500
"""Longest text about a faulty message in a line for the operator."""
TEXT_CHARACTERS: Final = 4096
"""Longest text in a message: an id, an address, a sentence for an operator."""
SHA256_CHARACTERS: Final = 64
CHUNK_BYTES_MAX: Final = 256 * 1024
"""Longest part of a snapshot in one message."""
COMMAND_BYTES_MAX: Final = 4 * 1024 * 1024
"""Longest command: the state machine takes none that is longer. A frame has 64 KiB more, for the fields that an entry
and its message add."""
COMMANDS_MAX: Final = 16 * 1024
"""Commands in one message: more than a manager may have on their way."""
BEATS_MAX: Final = 1024
"""Beats of nodes in one message."""
NODE_ID_BYTES: Final = 511
DONE, PENDING, WAIT, REFUSED = "done", "pending", "wait", "refused"
"""States of the answer to a requested change."""


class PeerFault(Exception):
    """A message that no correct manager sends: its link is dropped, an alarm is raised, and this manager goes on."""


# The values of a field ------------------------------------------------------------------------------------------------


def _is_index(value: object) -> bool:
    return type(value) is int and 0 <= value <= INDEX_MAX


def _is_number(value: object) -> bool:
    return type(value) is int and 0 < value <= INDEX_MAX


def _is_text(value: object) -> bool:
    return type(value) is str and len(value) <= TEXT_CHARACTERS


def _is_bool(value: object) -> bool:
    return type(value) is bool


def _is_bytes(value: object) -> bool:
    return type(value) is bytes


def _is_list(value: object) -> bool:
    return type(value) is list


def _is_entry(value: object) -> bool:
    return type(value) is bytes and len(value) > 0


def _is_command(value: object) -> bool:
    return type(value) is bytes and len(value) <= COMMAND_BYTES_MAX


def _are_commands(value: object) -> bool:
    return type(value) is list and len(value) <= COMMANDS_MAX and all(map(_is_command, value))


def _is_chunk(value: object) -> bool:
    return type(value) is bytes and 0 < len(value) <= CHUNK_BYTES_MAX


def _is_sha256(value: object) -> bool:
    return type(value) is str and len(value) == SHA256_CHARACTERS


def _is_pair(value: object) -> bool:
    return type(value) is list and len(value) == 2 and all(map(_is_index, value))


def _are_texts_by_member(value: object) -> bool:
    if type(value) is not dict or len(value) > MEMBERS_MAX:
        return False
    return all(type(part) is str and len(part) <= MEMBER_CHARACTERS for item in value.items() for part in item)


def _are_nodes(value: object) -> bool:
    return type(value) is list and len(value) <= BEATS_MAX and all(map(_is_node, value))


def _is_node(value: object) -> bool:
    return type(value) is str and 0 < len(value.encode(errors="replace")) <= NODE_ID_BYTES


def _are_members(value: object) -> bool:
    return type(value) is list and len(value) <= MEMBERS_MAX and all(map(_is_text, value))


def _is_state(value: object) -> bool:
    return value in (DONE, PENDING, WAIT, REFUSED)


def _or_none(check: Callable[[object], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)


def _anything(_: object) -> bool:
    return True


Index = Annotated[int, _is_index]
"""A term, an index, or a round: from 0 to 2^62."""
Number = Annotated[int, _is_number]
"""An index or a number from 1 on."""
Text = Annotated[str, _is_text]
Flag = Annotated[bool, _is_bool]
Bytes = Annotated[bytes, _is_bytes]
Entry = Annotated[bytes, _is_entry]
Command = Annotated[bytes, _is_command]
Sha256 = Annotated[str, _is_sha256]
"""In hexadecimal digits."""
Pair = Annotated[Sequence[int], _is_pair]
"""Two indexes: (index, term) of an entry, or (term, sequence number) of a message."""
OptionalPair = Annotated[Sequence[int] | None, _or_none(_is_pair)]
OptionalIndex = Annotated[int | None, _or_none(_is_index)]
OptionalText = Annotated[str | None, _or_none(_is_text)]
TextsByMember = Annotated[Mapping[str, str], _are_texts_by_member]
Why = Annotated[Any, _anything]
"""The reason of a change of leaders, for the log: reasons.py takes it as it is, or leaves it."""


# The table ------------------------------------------------------------------------------------------------------------


class Message:
    """A message to or from another manager. Instances are immutable and belong to no thread."""

    __slots__ = ()
    NAME: ClassVar[str]
    """On the wire."""
    LANE: ClassVar[Lane]
    SENT_BY: ClassVar[frozenset[PeerStanding]]
    """The standings (trust.py) of the peers that may send it."""
    CHECKS: ClassVar[tuple[tuple[str, Callable[[Any], bool], Any], ...]]
    """(name, check, default) of each field; the default of a required one is None, which its check refuses."""
    _values: ClassVar[Callable[[Any], Any]]
    _keys: ClassVar[tuple[str, ...]]

    @classmethod
    def quickly(cls, wire: Mapping[str, Any]) -> Message | None:
        """The same as `decode`, for a message as managers nearly always send it. None: `decode` has to look closely.
        A class of which each write has some messages has a quick way of its own."""
        return None


_M = TypeVar("_M", bound=Message)

BY_NAME: Final[dict[str, type[Message]]] = {}
"""Every message class by its name on the wire."""

_MEMBER = frozenset({PeerStanding.MEMBER})
_VOTER = _MEMBER | {PeerStanding.LEAVING}
_VOTER_OR_AHEAD = _VOTER | {PeerStanding.AHEAD}
_FOUNDER = _VOTER | {PeerStanding.FORMING}
_ANYBODY_NEW = _FOUNDER | {PeerStanding.GUEST}


@dataclass_transform(frozen_default=True)
def _message(name: str, lane: Lane, sent_by: frozenset[PeerStanding]) -> Callable[[type[_M]], type[_M]]:
    """One row of the table: the class decorated, under its name on the wire."""

    def add(cls: type[_M]) -> type[_M]:
        made = constant(cls)
        hints = get_type_hints(made, include_extras=True)
        fields = dataclasses.fields(made)  # type: ignore[arg-type]
        made.NAME, made.LANE, made.SENT_BY = name, lane, sent_by
        made.CHECKS = tuple(
            (each.name, hints[each.name].__metadata__[0], None if each.default is dataclasses.MISSING else each.default)
            for each in fields
        )
        made._keys = tuple(each.name for each in fields)
        made._values = attrgetter(*made._keys) if made._keys else lambda _: ()
        BY_NAME[name] = made
        return made

    return add


# Elections


@_message("pre_vote", Lane.CONTROL, _VOTER_OR_AHEAD)
class PreVote(Message):
    """Would the receiver vote for the sender? (Raft thesis 9.6)"""

    round: Index
    term: Index
    last_log_index: Index
    last_log_term: Index


@_message("pre_vote_reply", Lane.CONTROL, _VOTER)
class PreVoteReply(Message):
    round: Index
    granted: Flag
    term: Index


@_message("request_vote", Lane.CONTROL, _VOTER_OR_AHEAD)
class RequestVote(Message):
    term: Index
    last_log_index: Index
    last_log_term: Index
    transfer: Flag = False
    """The present leader hands leadership to the sender."""
    why: Why = None


@_message("response_vote", Lane.CONTROL, _VOTER)
class Vote(Message):
    """The sender votes for the receiver; there is no message for a refusal."""

    term: Index


@_message("hand_over", Lane.CONTROL, _VOTER)
class HandOver(Message):
    """The leader tells the voters which member it hands leadership over to."""

    term: Index
    target: Text


@_message("timeout_now", Lane.CONTROL, _VOTER)
class TimeoutNow(Message):
    """The leader tells the receiver to campaign at once (Raft thesis 3.10)."""

    term: Index
    why: Why = None


@_message("nack", Lane.CONTROL, _VOTER)
class Nack(Message):
    """The sender is in a later term than the leader that it answers."""

    term: Index


# The log


@_message("append_entries", Lane.NORMAL, _VOTER_OR_AHEAD)
class AppendEntries(Message):
    """Entries behind (previous_index, previous_term); without entries a heartbeat. guard.py checks the entries."""

    term: Index
    commit_index: Index
    previous_index: Index
    previous_term: Index
    entries: Annotated[Sequence[Any], _is_list]
    """(command, index, term) of each. In the place of the command: the number of a large entry sent ahead, or the
    negative number of a large command that the receiver itself lent to the leader."""
    sequence: Index
    """The number of this message among those of its leader's term."""

    @classmethod
    def quickly(cls, wire: Mapping[str, Any]) -> Message | None:
        if len(wire) != _APPEND_KEYS:
            return None
        try:
            term, commit_index, previous_index, previous_term, entries, sequence = values = _append_values(wire)
        except KeyError:
            return None
        if (
            type(entries) is not list
            or not type(term) is type(commit_index) is type(previous_index) is type(previous_term) is int
            or type(sequence) is not int
            or min(term, commit_index, previous_index, previous_term, sequence) < 0
            or max(term, commit_index, previous_index, previous_term, sequence) > INDEX_MAX
        ):
            return None
        return cls(*values)


_append_values: Final = itemgetter(*AppendEntries._keys)
_APPEND_KEYS: Final = 1 + len(AppendEntries._keys)


@_message("append_reply", Lane.CONTROL, _VOTER)
class AppendReply(Message):
    answers: Pair
    """(term, sequence) of the message that is answered."""
    next_index: Index
    success: Flag
    reset: Flag
    hint: Flag = False
    """`next_index` was found by going back in whole terms."""
    kept: OptionalIndex = None
    """The commit index on the sender's disk; None in a sign of life, which claims nothing."""
    sync_ms: Index = 0
    """The milliseconds for which this reply waited for the sender's disk. It is on the wire only if they are many
    (stages.py): an earlier release does not know it."""

    @classmethod
    def quickly(cls, wire: Mapping[str, Any]) -> Message | None:
        if len(wire) != _REPLY_KEYS:
            return None
        try:
            answers, next_index, success, reset, hint, kept = values = _reply_values(wire)
        except KeyError:
            return None
        if type(answers) is not list or len(answers) != 2:
            return None
        term, sequence = answers
        if (
            not type(term) is type(sequence) is type(next_index) is type(kept) is int
            or not type(success) is type(reset) is type(hint) is bool
            or min(term, sequence, next_index, kept) < 0
            or max(term, sequence, next_index, kept) > INDEX_MAX
        ):
            return None
        return cls(*values)


_REPLY_FIELDS: Final = AppendReply._keys[:-1]
"""Without `sync_ms`."""
_reply_values: Final = itemgetter(*_REPLY_FIELDS)
_REPLY_KEYS: Final = 1 + len(_REPLY_FIELDS)


@_message("large_entry", Lane.BULK, _VOTER_OR_AHEAD)
class LargeEntry(Message):
    """A leader sends a large entry ahead of the log, under a number by which AppendEntries names it."""

    number: Number
    term: Index
    entry: Entry


@_message("large_entry_cancel", Lane.BULK, _VOTER_OR_AHEAD)
class LargeEntryCancel(Message):
    number: Number


@_message("large_entry_drop", Lane.NORMAL, _VOTER_OR_AHEAD)
class LargeEntryDrop(Message):
    number: Number


@_message("large_entry_held", Lane.CONTROL, _VOTER)
class LargeEntryHeld(Message):
    number: Number


@_message("large_entry_refused", Lane.CONTROL, _VOTER)
class LargeEntryRefused(Message):
    number: Number


# Writes on their way to the leader


@_message("submit", Lane.NORMAL, _VOTER)
class Submit(Message):
    commands: Annotated[list[bytes], _are_commands]


@_message("submit_refused", Lane.NORMAL, _VOTER)
class SubmitRefused(Message):
    """The sender does not lead, or its queue is full."""


@_message("submit_large", Lane.BULK, _VOTER)
class SubmitLarge(Message):
    number: Number
    heard: Index
    command: Command
    milliseconds: Index
    """Until the deadline of its caller."""


@_message("submit_large_cancel", Lane.BULK, _VOTER)
class SubmitLargeCancel(Message):
    number: Number


@_message("submit_large_end", Lane.NORMAL, _VOTER)
class SubmitLargeEnd(Message):
    number: Number
    again: Flag
    """The sender does not lead, or its queue is full: the command has to be sent again."""


# Barriers


@_message("read_index", Lane.CONTROL, _VOTER)
class ReadIndex(Message):
    """The sender asks the leader for an index: what was acknowledged before this question is at or below it."""

    number: Number
    """The sender never uses it again, not even after a restart."""


@_message("read_index_is", Lane.CONTROL, _VOTER)
class ReadIndexIs(Message):
    """The leader's answer to the question of this number, and to all questions before it on this link."""

    number: Number
    index: Index


@_message("confirm", Lane.CONTROL, _VOTER)
class Confirm(Message):
    """A leader asks a voter whether it still follows the leader (Raft thesis 6.4)."""

    term: Index
    round: Index


@_message("confirmed", Lane.CONTROL, _MEMBER)
class Confirmed(Message):
    """The sender follows the receiver, in this term."""

    term: Index
    round: Index


# Snapshots


@_message("snapshot_offer", Lane.NORMAL, _VOTER_OR_AHEAD)
class SnapshotOffer(Message):
    sha256: Sha256
    index: Index
    size: Index


@_message("snapshot_get", Lane.NORMAL, _MEMBER)
class SnapshotGet(Message):
    sha256: Sha256
    offset: Index


@_message("snapshot_chunk", Lane.BULK, _VOTER_OR_AHEAD)
class SnapshotChunk(Message):
    sha256: Sha256
    offset: Index
    data: Annotated[bytes, _is_chunk]
    check: Bytes
    """A short hash of `data`, so that damage is found at once and not at the end of the file."""


@_message("snapshot_gone", Lane.NORMAL, _VOTER_OR_AHEAD)
class SnapshotGone(Message):
    sha256: Sha256


@_message("snapshot_wanted", Lane.NORMAL, _MEMBER)
class SnapshotWanted(Message):
    """The sender's state is wrong and its own snapshots do not help; its log begins at `index`."""

    index: Index


# Members and their state


@_message("change", Lane.CONTROL, _VOTER)
class RequestChange(Message):
    """An operator asks the leader for a change of members, or for a leadership transfer (requests.py)."""

    number: Index
    verb: Text
    id: Text
    address: Text
    incarnation: OptionalText = None
    closing: Flag = False


@_message("change_answer", Lane.CONTROL, _VOTER)
class ChangeAnswer(Message):
    number: Index
    state: Annotated[str, _is_state]
    text: Text
    made: Flag = False


@_message("addresses", Lane.NORMAL, _VOTER)
class Addresses(Message):
    """Where members said they are, if that is not where the list has them."""

    said: Annotated[Sequence[tuple[str, str, str]], are_told]


@_message("health", Lane.NORMAL, _VOTER)
class HealthReport(Message):
    """The sender's state, once a second."""

    digests: Annotated[Sequence[tuple[int, bytes]], are_digests]
    low: Flag
    """The sender is low on space."""
    full: Flag
    """The sender leads, and a majority of the voters is low on space."""
    report: Annotated[Mapping[str, Any], is_report]
    commit: OptionalPair = None
    """(index, term) of the newest entry that the sender knows to be committed and has on its disk."""
    settled: OptionalIndex = None
    """The index of the newest settled list of members."""


@_message("beats", Lane.NORMAL, _VOTER)
class Beats(Message):
    """The last beats of nodes: from any manager to its leader, and from a leader to all (beats.py)."""

    term: Index
    nodes: Annotated[Sequence[str], _are_nodes]
    beats: Bytes
    """For each of the nodes 12 bytes: ttl and age in milliseconds, and a mark."""
    managers: Annotated[Sequence[str], _are_members]
    """Other managers that the sender knows."""
    seen: Bytes
    """For each of these managers 8 bytes: milliseconds since it was connected to the sender, and since it was connected
    to a manager that has told the sender so."""
    answers: Index = 0
    """The number of the leader's question to which this is the answer, or the end of it; 0: to none."""


@_message("beats_wanted", Lane.NORMAL, _VOTER)
class BeatsWanted(Message):
    """The leader asks for all beats that the receiver has answered and not told yet."""

    term: Index
    question: Number


@_message("founding_view", Lane.NORMAL, _ANYBODY_NEW)
class FoundingView(Message):
    """The members that a blank manager has met, and those that it was told to expect."""

    view: TextsByMember
    configured: TextsByMember


@_message("founding", Lane.NORMAL, _FOUNDER)
class FoundingRecord(Message):
    """The record of the founding members, durable at the sender."""

    founding: Bytes


LEADERS_NAMES: Final = frozenset({AppendEntries.NAME, LargeEntry.NAME})
"""Only a leader sends these, and says of which term. While a large one arrives, that leader is alive."""


# To and from the wire -------------------------------------------------------------------------------------------------


def decode(wire: Mapping[str, Any]) -> Message | None:
    """The message that a map from the wire is; None for a type that this version does not know.

    Raises PeerFault for values that no manager sends.
    """
    cls = BY_NAME.get(wire["type"])
    if cls is None:
        return None
    message = cls.quickly(wire)
    if message is not None:
        return message
    values = []
    for name, check, default in cls.CHECKS:
        value = wire.get(name, default)
        if not check(value):
            raise PeerFault(f"{cls.NAME} with {name} = {quoted(value, FAULT_CHARACTERS)}"[:FAULT_CHARACTERS])
        values.append(value)
    return cls(*values)


def encode(message: Message) -> dict[str, Any]:
    """The map that goes on the wire."""
    cls = type(message)
    values = cls._values(message)
    wire = dict(zip(cls._keys, values, strict=True)) if len(cls._keys) > 1 else dict.fromkeys(cls._keys, values)
    if cls is AppendReply and not wire["sync_ms"]:  # nearly always
        del wire["sync_ms"]
    wire["type"] = cls.NAME
    return wire


LANES: Final[Mapping[str, Lane]] = {**LINK_LANES, **{name: cls.LANE for name, cls in BY_NAME.items()}}
"""The lane of every message by its name, those of the links themselves included."""


def lane_of(wire: Mapping[str, Any]) -> Lane:
    """The lane of a message on its way; NORMAL for a name that this version does not know."""
    return LANES.get(wire["type"], Lane.NORMAL)


def leaders_term(wire: Mapping[str, Any]) -> int:
    """The term in which the sender of a message leads; 0 for a message that others send too."""
    return int(wire["term"]) if wire["type"] in LEADERS_NAMES else 0
