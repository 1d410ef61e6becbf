"""What stands between the links and PySyncObj: which messages reach the core, in which form, and what leaves it.

Each rule closes one hole of PySyncObj 0.3.17, named where it stands (docs/pysyncobj-holes.md tells each story).
Not here: timers, elections, membership. Pure: no clock, randomness, files or sockets. Invariant: the core never
truncates an entry that matches or is committed, and never counts an acknowledgement that was not given to this leader
in this term for entries that are durable on both sides.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from warren_raft.errors import InvariantViolation
from warren_raft.raft.core import BEHIND, CANDIDATE, Core, CoreMessage, Entry
from warren_raft.raft.large import UNDER_WAY, LargeEntries
from warren_raft.raft.log import Log
from warren_raft.raft.log_contents import BASE_INDEX
from warren_raft.raft.messages import (
    AppendEntries,
    AppendReply,
    Message,
    Nack,
    PeerFault,
    RequestVote,
    Vote,
)
from warren_raft.raft.outbox import Outbox

WINDOW_BYTES: Final = 4 * 1024 * 1024
"""Entries on their way to one follower without an answer. Beyond it nothing new is sent to that follower: without a
bound the core would pour a lagging follower's whole backlog into the link's buffer in one tick (hole 9)."""
NAMED_BYTES: Final = 16
"""What an entry counts in that window which its message only names, as the follower holds its bytes (large.py)."""
UNCOMMITTED_MAX: Final = 4096
UNCOMMITTED_FEW: Final = 64
UNCOMMITTED_BYTES: Final = 128 * 1024 * 1024
"""Entries beyond what a leader says is committed, and their bytes where they are more than a few. No snapshot ever
stands for them, so a leader that sent them without end would fill the log. A correct one proposes two at a time, or a
megabyte of large ones, and inherits as many from each leader before it."""


@dataclass(slots=True)
class _Progress:
    """What the leader of this term knows of one follower."""

    match: int = 0
    """Highest index the follower acknowledged as durable, whether or not our own disk has it yet."""
    kept: int = 0
    """The commit index that the follower has on its disk, or a higher one."""
    next_index: int = 0
    """First index not yet sent on the present link; 0 before the first entries."""
    barrier: int = 0
    """Resets that answer messages before this sequence number are stale: a later reset was acted upon already."""
    unacknowledged: deque[tuple[int, int]] = field(default_factory=deque)
    """(last index, bytes) of each message with entries on its way."""
    unacknowledged_bytes: int = 0

    def forget_link(self, next_sequence: int) -> None:
        self.next_index = 0
        self.barrier = next_sequence
        self.unacknowledged.clear()
        self.unacknowledged_bytes = 0

    def acknowledge(self, index: int) -> None:
        self.match = max(self.match, index)
        while self.unacknowledged and self.unacknowledged[0][0] <= index:
            self.unacknowledged_bytes -= self.unacknowledged.popleft()[1]


class Guard:
    """The filter of one manager.

    `heard_leader(peer, commit_index)` is called for each append message of a legitimate leader. `large` are the entries
    that we sent ahead as a leader; `held(peer, name)` is the one that a leader sent ahead to us; None: there is none.
    `problem_of(entry)` says why an entry may not be appended; "": it may.
    """

    def __init__(
        self,
        log: Log,
        outbox: Outbox,
        *,
        heard_leader: Callable[[str, int], None],
        large: LargeEntries,
        held: Callable[[str, int], bytes | None],
        problem_of: Callable[[bytes], str],
    ) -> None:
        self._log = log
        self._outbox = outbox
        self._problem_of = problem_of
        self._heard_leader = heard_leader
        self._large = large
        self._held = held
        self.core: Core  # set by the engine right after the core, which needs outgoing(), is made
        self.transferring = False
        self.why: list[str] = []
        """The reason of the present campaign, for the logs of those who are asked to vote."""
        """The running campaign was asked for by the leader: its vote requests say so, and are not held sticky."""
        self.stats: Counter[str] = Counter()
        self.needs_snapshot: set[str] = set()
        self._progress: dict[str, _Progress] = {}
        self._progress_term = -1
        self._sequence = 0
        self._braked: dict[str, int] = {}
        self._answering: tuple[str, int, int] | None = None
        self._answer: tuple[int, bool] | None = None
        """(next index, hint) of the reply, where it is not the core's."""
        self._last_answered: tuple[str, int, int] | None = None
        self._votes: tuple[int, set[str]] = (-1, set())

    # Out: called by the core while it handles a message or a tick -------------------------------------------------

    def outgoing(self, peer: str, message: CoreMessage | Literal["behind"]) -> None:
        if message == BEHIND:
            # The core would repeat this message without end within one tick (hole 4e), so it is told that the follower
            # is gone until the tick is over.
            self._behind(peer)
        elif type(message) is AppendEntries:
            self._outgoing_append(peer, message)
        elif type(message) is AppendReply:
            self._outgoing_reply(peer, message)
        elif type(message) is RequestVote:
            self._emit_gated(peer, replace(message, transfer=self.transferring, why=self.why))
        else:
            self._emit_gated(peer, message)

    def _emit_gated(self, peer: str, message: Message) -> None:
        """Nothing speaks for what is not synced (hole 1): it waits for everything the log holds at this moment."""
        self._outbox.send_when_synced(peer, message)

    def _outgoing_append(self, peer: str, message: AppendEntries) -> None:
        entries = message.entries
        progress = self._progress_of(peer)
        if entries and peer in self.needs_snapshot:
            # It cannot use them before it has the snapshot; until then it gets heartbeats, and answers them.
            self._brake(peer, entries[0][1])
            entries = []
        if entries and progress.unacknowledged_bytes >= WINDOW_BYTES:
            # A heartbeat nevertheless: its answer tells of entries that were dropped on the way, while that manager
            # replaced its state, say, on a link that stayed up. Without one the window would stay full for ever.
            self._brake(peer, entries[0][1])
            entries = []
        if entries and self._large.is_naming:
            entries = self._named(peer, entries)
        self._sequence += 1
        out = AppendEntries(
            term=message.term,
            commit_index=min(message.commit_index, self._log.synced_index),
            previous_index=message.previous_index,
            previous_term=message.previous_term,
            entries=entries,
            sequence=self._sequence,
        )
        if entries:
            size = sum(NAMED_BYTES if isinstance(entry[0], int) else len(entry[0]) for entry in entries)
            progress.next_index = entries[-1][1] + 1
            progress.unacknowledged.append((entries[-1][1], size))
            progress.unacknowledged_bytes += size
        # Its own entries need not be durable yet, but its term must be: a single voter leads before its vote for itself
        # is synced, and would after a crash lead the same term again with other entries at the same indexes.
        self._outbox.append(peer, out, self.core.term_position)

    def _named(self, peer: str, entries: Sequence[Entry]) -> list[tuple[bytes | int, int, int]]:
        """Those whose bytes the follower holds are only named. One that it is about to hold is not sent again: it and
        what follows wait."""
        named: list[tuple[bytes | int, int, int]] = []
        for command, index, term in entries:
            name = self._large.name_for(peer, index)
            if name == UNDER_WAY:
                self._brake(peer, index)
                break
            named.append((command if name is None else name, index, term))
        return named

    def _brake(self, peer: str, first_unsent: int) -> None:
        self.core.disconnected(peer)
        self._braked.setdefault(peer, first_unsent)

    def _behind(self, peer: str) -> None:
        """It lacks entries that our log has dropped; catchup.py offers it a snapshot that ends at our base or above."""
        self.needs_snapshot.add(peer)
        self._brake(peer, self._log.base_index + 1)

    def release_brakes(self) -> None:
        """After the tick: the braked followers are connected again, and are sent from where we stopped."""
        for peer, first_unsent in self._braked.items():
            self.core.connected(peer)
            self.core.set_next_index(peer, first_unsent)
        self._braked.clear()

    def _outgoing_reply(self, peer: str, message: AppendReply) -> None:
        if self._answering is None or self._answering[0] != peer:
            raise InvariantViolation("PySyncObj replied to a message that it was not given")
        _, term, sequence = self._answering
        next_index, hint = self._answer or (message.next_index, False)
        reply = AppendReply(
            answers=(term, sequence),
            next_index=next_index,
            success=message.success,
            reset=message.reset,
            hint=hint,
            kept=self._log.synced_commit_index,
        )
        self._emit_gated(peer, reply)

    def alive(self) -> tuple[str, Message] | None:
        """A sign of life to the leader that claims nothing, for while the disk is slow: no entry, no term, no vote."""
        if self._last_answered is None:
            return None
        peer, term, sequence = self._last_answered
        return peer, AppendReply(answers=(term, sequence), next_index=0, success=False, reset=False)

    # In: append messages -----------------------------------------------------------------------------------------

    def receive_append(self, peer: str, message: AppendEntries) -> None:
        """Raises PeerFault for what no correct leader sends."""
        term, sequence = message.term, message.sequence
        if term < self.core.term:
            # Stock ignores it without a word and the stale leader goes on for 30 s (hole 6).
            self._emit_gated(peer, Nack(self.core.term))
            return
        if term == self.core.term and self.core.leader not in (None, peer):
            raise PeerFault(f"{peer} claims to lead term {term}, which {self.core.leader} leads")
        self._answering = self._last_answered = (peer, term, sequence)
        self._answer = None
        try:
            self._append(peer, message, _checked_entries(message, lambda name: self._held(peer, name)))
        finally:
            self._answering = None
        self._heard_leader(peer, message.commit_index)

    def is_led_by(self, peer: str, term: int) -> bool:
        """Whether a peer, of whose large message parts arrive, leads us now; it says that it leads this term."""
        if term < self.core.term:
            self._emit_gated(peer, Nack(self.core.term))  # as for the message, which comes later
        return term == self.core.term and peer == self.core.leader

    def _append(self, peer: str, message: AppendEntries, entries: Sequence[Entry]) -> None:
        log = self._log
        previous, previous_term = message.previous_index, message.previous_term
        leader_commit = message.commit_index
        if previous > log.last_index:
            self._deliver_append(peer, message, previous, previous_term, (), 0)  # the core answers: reset to last + 1
            return
        if previous < log.base_index:
            # Everything at or below our base is committed, so it matches; what lies above decides.
            entries = [entry for entry in entries if entry[1] > log.base_index]
            previous, previous_term = log.base_index, log.base_term
        if self._term_at(previous) != previous_term:
            self._answer_conflict(peer, message, previous, previous_term)
            return
        verified = previous + len(entries)
        known_commit = min(leader_commit, verified)
        held = self._matching(entries)
        if held == len(entries):
            # Nothing new. Stock would cut everything behind `previous`, acknowledged entries included (holes 2a-2c),
            # so the core sees a heartbeat at our own last index; the reply says what was really verified.
            if verified < log.last_index:
                self.stats["truncation of matching entries avoided"] += 1
            self._answer = (verified + 1, False)
            self._note_commit(known_commit)
            last = log.last_index
            self._deliver_append(peer, message, last, self._term_at(last), (), known_commit)
            return
        keep = previous + held
        if keep < log.last_index and keep < log.commit_index:
            raise PeerFault(f"{peer} would overwrite committed entries from index {keep + 1}")
        self._check_new(entries[held:], verified, max(known_commit, log.commit_index))
        self._deliver_append(peer, message, keep, self._term_at(keep), entries[held:], known_commit)
        self._note_commit(known_commit)

    def _check_new(self, entries: Sequence[Entry], last: int, committed: int) -> None:
        """What a manager could not read never gets into the log: no manager could start on it."""
        for command, index, _ in entries:
            problem = self._problem_of(command)
            if problem:
                raise PeerFault(f"an entry at index {index} that may not be appended: {problem}")
        if last - committed > UNCOMMITTED_MAX:
            raise PeerFault(f"{last - committed} entries that are not committed; no leader has more than a few")
        if last - committed > UNCOMMITTED_FEW:
            kept = (len(command) for command, _, _ in self._log.entries[committed + 1 - self._log.base_index :])
            if sum(kept) + sum(len(command) for command, _, _ in entries) > UNCOMMITTED_BYTES:
                raise PeerFault(f"more than {UNCOMMITTED_BYTES} bytes of entries that are not committed")

    def _note_commit(self, index: int) -> None:
        """What is known to be committed rides with the next log batch. A message may know less than we do already: a
        new leader's first heartbeat, or one that is older than the last."""
        if index > self._log.commit_index:
            self._log.set_commit(index)

    def _deliver_append(
        self,
        peer: str,
        message: AppendEntries,
        previous: int,
        previous_term: int,
        entries: Sequence[Entry],
        commit: int,
    ) -> None:
        checked = AppendEntries(
            term=message.term,
            # Nothing is applied beyond the synced log; the rest follows when the sync returns (synced()).
            commit_index=min(commit, self._log.synced_index),
            previous_index=previous,
            previous_term=previous_term,
            entries=entries,
            sequence=message.sequence,
        )
        self.core.deliver_append(peer, checked)

    def _answer_conflict(self, peer: str, message: AppendEntries, previous: int, previous_term: int) -> None:
        log = self._log
        if previous <= log.commit_index:
            raise PeerFault(f"{peer} has another entry at committed index {previous}")
        # One step a term instead of one an entry; stock walks down one index a heartbeat and, past one batch, never
        # arrives at all (hole 11b).
        first = previous
        conflicting = self._term_at(previous)
        while first - 1 > max(log.commit_index, log.base_index) and self._term_at(first - 1) == conflicting:
            first -= 1
        self._answer = (max(first, log.commit_index + 1), True)
        self._deliver_append(peer, message, previous, previous_term, (), 0)

    def _matching(self, entries: Sequence[Entry]) -> int:
        """How many of the first entries our log holds already."""
        last = self._log.last_index
        for count, (_, index, term) in enumerate(entries):
            if index > last or self._term_at(index) != term:
                return count
        return len(entries)

    def _term_at(self, index: int) -> int:
        return self._log.entries[index - self._log.base_index][2]

    # In: replies -------------------------------------------------------------------------------------------------

    def receive_reply(self, peer: str, message: AppendReply) -> None:
        """Raises PeerFault for an acknowledgement that cannot be."""
        term, sequence = message.answers
        if not self.core.is_leader or term != self.core.term:
            # Stock counts it for the present term: a match index for entries the follower never had (hole 3).
            self.stats["reply to another term dropped"] += 1
            return
        if not self.core.follows(peer):
            raise PeerFault(f"{peer} answers what nobody sent it")
        progress = self._progress_of(peer)
        next_index = message.next_index
        if next_index <= BASE_INDEX and (message.success or message.reset):
            raise PeerFault(f"{peer} speaks of index {next_index - 1}, which no log lacks")
        if message.kept is not None:
            progress.kept = max(progress.kept, message.kept)
        self.core.deliver_answer(peer)
        if message.success:
            self._acknowledged(peer, progress, next_index - 1)
        elif message.reset:
            self._reset(peer, progress, next_index, sequence, hint=message.hint)

    def _acknowledged(self, peer: str, progress: _Progress, index: int) -> None:
        if index > self._log.last_index:
            raise PeerFault(f"{peer} acknowledges index {index}, our log ends at {self._log.last_index}")
        window_was_full = progress.unacknowledged_bytes >= WINDOW_BYTES
        progress.acknowledge(index)
        if index >= self._log.base_index:
            self.needs_snapshot.discard(peer)
        counted = min(index, self._log.synced_index)
        self.core.deliver_success(peer, counted)
        # Stock rewinds nextIndex to what was acknowledged and sends everything in flight again (hole 2b).
        self.core.set_next_index(peer, max(progress.next_index, progress.match + 1))
        if window_was_full and progress.unacknowledged_bytes < WINDOW_BYTES:
            self.core.send_soon()

    def _reset(self, peer: str, progress: _Progress, next_index: int, sequence: int, *, hint: bool) -> None:
        if sequence < progress.barrier:
            # Several messages of one burst miss; acting on each sends the same again and again (holes 2a, 11b).
            self.stats["stale reset dropped"] += 1
            return
        if next_index <= progress.match:
            if not hint:
                raise PeerFault(
                    f"{peer} acknowledged up to {progress.match} and now ends at {next_index - 1}: its data directory "
                    f"is an older copy, or its disk has lost what was synced; with {peer} running on an empty "
                    f"directory, run: members remove {peer}; members add {peer}=HOST:PORT"
                )
            next_index = progress.match + 1
        if next_index > self._log.last_index + 1:
            raise PeerFault(f"{peer} asks for index {next_index}, our log ends at {self._log.last_index}")
        progress.forget_link(self._sequence + 1)
        if next_index <= self._log.base_index:
            self.needs_snapshot.add(peer)
            self.core.set_next_index(peer, self._log.base_index + 1)
            return
        self.needs_snapshot.discard(peer)
        self.core.set_next_index(peer, next_index)
        self.core.send_soon()

    # In: votes ---------------------------------------------------------------------------------------------------

    def receive_vote_request(self, peer: str, message: RequestVote) -> None:
        """The caller has decided that we may vote at all, and that no living leader stands against it."""
        self.core.deliver_vote_request(peer, message)

    def receive_vote(self, peer: str, message: Vote) -> None:
        """Stock counts votes without asking from whom (hole 6); each voter counts once a term."""
        term = message.term
        if self.core.state != CANDIDATE or term != self.core.term or peer not in self.core.voters:
            return
        if self._votes[0] != term:
            self._votes = (term, set())
        if peer not in self._votes[1]:
            self._votes[1].add(peer)
            self.core.deliver_vote(peer, term)

    # Links and syncs ---------------------------------------------------------------------------------------------

    def link_up(self, peer: str) -> None:
        """What was on its way on the old link is lost: send again from what is known to be there."""
        progress = self._progress_of(peer)
        progress.forget_link(self._sequence + 1)
        if self.core.is_leader:
            self.core.send_soon()
            if progress.match:
                self.core.set_next_index(peer, progress.match + 1)

    def link_down(self, peer: str) -> None:
        self._braked.pop(peer, None)
        if self._last_answered is not None and self._last_answered[0] == peer:
            self._last_answered = None

    def forget(self, peer: str) -> None:
        """A member left. What its data directory acknowledged says nothing of the next one under the same id."""
        self._progress.pop(peer, None)
        self._braked.pop(peer, None)
        self.needs_snapshot.discard(peer)

    def synced(self) -> None:
        """Our own disk has caught up: count what waited for it."""
        log = self._log
        if self.core.is_leader:
            for peer, progress in self._progresses().items():
                self.core.raise_match_index(peer, min(progress.match, log.synced_index))
        else:
            self.core.raise_commit_index(min(log.commit_index, log.synced_index))

    def after_tick(self) -> None:
        self.release_brakes()
        # Of a leader; and of one that has just counted a majority and, in the same tick, found itself cut off.
        self._note_commit(min(self.core.commit_index, self._log.synced_index))

    def match_index(self, peer: str) -> int:
        """What the follower holds for certain, as this leader knows it; 0 when unknown."""
        return self._progresses()[peer].match if peer in self._progresses() else 0

    def kept_index(self, peer: str) -> int:
        """Up to where the follower knows after any crash that entries are committed; 0 when unknown."""
        return self._progresses()[peer].kept if peer in self._progresses() else 0

    def learn_commit(self, index: int, term: int) -> None:
        """A peer says that the entry (index, term) is committed. If our log holds it, it is so here too, whoever said
        it: who leads, and who has all entries but not the word of it, need not be the same (DESIGN.md)."""
        log = self._log
        if not self.core.is_leader and index > log.commit_index and log.holds(index, term):
            log.set_commit(index)
            self.core.raise_commit_index(min(index, log.synced_index))

    def _progresses(self) -> dict[str, _Progress]:
        if self._progress_term != self.core.term:
            self._progress_term = self.core.term
            self._progress.clear()
            self.needs_snapshot.clear()
        return self._progress

    def _progress_of(self, peer: str) -> _Progress:
        progresses = self._progresses()
        progress = progresses.get(peer)
        if progress is None:
            progress = progresses[peer] = _Progress(barrier=0)
        return progress


def _checked_entries(message: AppendEntries, held: Callable[[int], bytes | None]) -> list[Entry]:
    """Consecutive indexes, terms that never go back nor beyond the leader's, commands that are bytes, or are held."""
    entries: list[Entry] = []
    index, term = message.previous_index, message.previous_term
    for item in message.entries:
        index += 1
        if not isinstance(item, (list, tuple)) or len(item) != 3:
            raise PeerFault("append_entries with an entry that is not three values")
        command, item_index, item_term = item
        if type(command) is int:
            name, command = command, held(command)
            if command is None:
                raise PeerFault(f"append_entries names an entry, {name}, that it did not send before"[:200])
        if type(command) is not bytes or not command or item_index != index or type(item_term) is not int:
            raise PeerFault(f"append_entries with a bad entry at index {index}")
        if not term <= item_term <= message.term:
            raise PeerFault(f"append_entries with term {item_term} at index {index}")
        term = item_term
        entries.append((command, item_index, item_term))
    return entries
