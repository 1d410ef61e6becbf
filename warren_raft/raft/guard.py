"""The filter between the links and PySyncObj: which messages reach the core, in which form, and which leave it.

Each rule closes one hole of PySyncObj 0.3.17. "Hole N" is a section of docs/pysyncobj-holes.md, which tells its story.
"Stock" is PySyncObj as released. Not here: timers, elections, membership. Pure: no clock, randomness, files or sockets.
Invariant: the core never truncates an entry that matches or is committed. It counts an acknowledgement only if it was
given to this leader in this term, for entries that are durable on both sides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Final, Literal

from warren_raft.errors import InvariantViolation
from warren_raft.raft.context import Context
from warren_raft.raft.core import (
    BEHIND,
    CANDIDATE,
    Core,
    CoreMessage,
    Entry,
)
from warren_raft.raft.entry_checks import EntryChecks
from warren_raft.raft.large import UNDER_WAY, HeldEntries, LargeEntries
from warren_raft.raft.log.contents import BASE_INDEX
from warren_raft.raft.messages import (
    AppendEntries,
    AppendReply,
    Message,
    Nack,
    PeerFault,
    RequestVote,
    Vote,
)
from warren_raft.raft.progress import Followers, Progress
from warren_raft.raft.way_back import way_back

CHECK_QUORUM_TIMEOUTS: Final = 1.5
"""A leader that no majority has answered for so many election timeouts steps down."""
WINDOW_BYTES: Final = 4 * 1024 * 1024
"""The window of a follower: entries on their way to it without an answer. While the window is full, the follower gets
no new entries. Without a bound the core would pour the whole backlog of a lagging follower into the buffer of its link
in one tick (hole 9)."""
NAMED_BYTES: Final = 16
"""The size that counts in the window for an entry that its message only names, because the follower holds the entry's
bytes (large.py)."""
UNCOMMITTED_MAX: Final = 4096
UNCOMMITTED_FEW: Final = 64
UNCOMMITTED_BYTES: Final = 128 * 1024 * 1024
"""The most entries that a leader may send beyond its commit index, and the most bytes of them if they are more than a
few. No snapshot ever covers such entries, so a leader that sent more and more of them would fill the log. A correct
leader proposes two at a time, or a megabyte of large entries, and inherits as many from each leader before it."""


_NOTHING: Final = AppendEntries(term=0, commit_index=0, previous_index=0, previous_term=0, entries=(), sequence=0)


class Guard:
    """The filter of one manager. Not thread-safe: for the raft thread or the simulator.

    It makes the core, because the core gives it each message that is to leave. `large` has the entries that we sent
    ahead as a leader, `held` those that leaders sent ahead to us. `checks` says which entries may be appended.
    """

    def __init__(self, context: Context, *, large: LargeEntries, held: HeldEntries, checks: EntryChecks) -> None:
        self._context = context
        self._log = context.log
        self._outbox = context.outbox
        self._stages = context.stages
        self._large = large
        self._held = held
        self._checks = checks
        self.stats: Counter[str] = Counter()
        """What was dropped or avoided, and how often since the start."""
        self._forget_all()
        settings = context.settings
        self.core: Final = Core(
            node_id=context.node_id,
            voters=context.roster.voters,
            log=context.log,
            applied_index=context.machine.applied_index,
            heartbeat_seconds=settings.heartbeat_seconds,
            check_quorum_seconds=CHECK_QUORUM_TIMEOUTS * settings.election_timeout_seconds,
            clock=partial(getattr, context, "now"),  # which no Python code runs for: the core asks forty times a write
            send=self.outgoing,
        )

    def _forget_all(self) -> None:
        self.transferring = False
        """Whether the leader asked for the present campaign. The vote requests say so, and then voters do not refuse
        them because of the leader."""
        self.why: list[str] = []
        """The reason of the present campaign, for the logs of the voters."""
        self.followers = Followers()
        """While this manager leads: how far each follower's log is, as far as it has said so in this term."""
        self._sequence = 0
        self._newest: tuple[AppendEntries, AppendEntries | None, list[str]] = (_NOTHING, None, [])
        """The newest append message, the core's message that it was made of, and the followers that got it."""
        self._told_commit = 0
        """The commit index in the newest append message."""
        self.untold_since: float | None = None
        """When a leader's commit index rose that no append message has carried yet; None: there is none."""
        self._paused: dict[str, int] = {}
        self._answering: tuple[str, int, int] | None = None
        self._answer: tuple[int, bool] | None = None
        """(next index, hint) of the reply, if they are not the core's."""
        self._last_answered: tuple[str, int, int] | None = None
        self._votes: tuple[int, set[str]] = (-1, set())

    def restart(self) -> None:
        """Another state has replaced ours: begin again on the present log and state, as after a start."""
        self._forget_all()
        self.core.restart(self._context.roster.voters, self._context.machine.applied_index)

    # Out: called by the core while it handles a message or a tick -------------------------------------------------

    def outgoing(self, peer: str, message: CoreMessage | Literal["behind"]) -> None:
        if type(message) is AppendEntries:
            self._outgoing_append(peer, message)
        elif type(message) is AppendReply:
            self._outgoing_reply(peer, message)
        elif message == BEHIND:
            # The core would repeat this message without end in one tick (hole 4e). So the core is told that the
            # follower is away until the end of the tick.
            self._behind(peer)
        elif type(message) is RequestVote:
            self._emit_gated(peer, replace(message, transfer=self.transferring, why=self.why))
        else:
            self._emit_gated(peer, message)

    def _emit_gated(self, peer: str, message: Message) -> None:
        """Send a message when all changes that the log has at this moment are synced. No message may speak for changes
        that are not synced (hole 1)."""
        self._outbox.send_when_synced(peer, message)

    def _outgoing_append(self, peer: str, message: AppendEntries) -> None:
        entries = message.entries
        progress = self.followers.of(peer, self.core.term)
        if entries and self.needs_snapshot(peer):
            # The follower cannot use entries before it has the snapshot. Until then it gets heartbeats, and answers.
            self._pause(peer, entries[0][1])
            entries = []
        if entries and progress.unacknowledged_bytes >= WINDOW_BYTES:
            # A heartbeat is sent nevertheless. Its answer shows that entries were dropped on the way, for example while
            # that manager replaced its state and the link stayed up. Without it the window would stay full for ever.
            self._pause(peer, entries[0][1])
            entries = []
        if entries and self._large.is_naming:
            entries = self._named(peer, entries)
        out = self._numbered(peer, message, entries, progress)
        if entries:
            size = 0
            for command, _, _ in entries:
                size += NAMED_BYTES if isinstance(command, int) else len(command)
            progress.next_index = entries[-1][1] + 1
            progress.unacknowledged.append((entries[-1][1], size))
            progress.unacknowledged_bytes += size
        # The leader's entries need not be durable yet, but its term must be. A single voter leads before its vote for
        # itself is synced. After a crash it would lead the same term again, with other entries at the same indexes.
        self._outbox.append(peer, out, self.core.term_position)

    def _numbered(
        self,
        peer: str,
        message: AppendEntries,
        entries: Sequence[tuple[bytes | int, int, int]],
        progress: Progress,
    ) -> AppendEntries:
        """The message as it leaves. Followers that get the same from one call of the core get one object, with one
        number, so that it is encoded once. No follower gets a number twice, or one below its barrier."""
        last, of, given_to = self._newest
        if message is of and entries is message.entries and peer not in given_to and last.sequence >= progress.barrier:
            given_to.append(peer)
            return last
        self._sequence += 1
        out = AppendEntries(
            term=message.term,
            commit_index=min(message.commit_index, self._log.synced_index),
            previous_index=message.previous_index,
            previous_term=message.previous_term,
            entries=entries,
            sequence=self._sequence,
        )
        # Only a message with all entries of the core's message is given to other followers, too.
        self._newest = (out, message if entries is message.entries else None, [peer])
        self._told_commit, self.untold_since = out.commit_index, None
        return out

    def _named(self, peer: str, entries: Sequence[Entry]) -> list[tuple[bytes | int, int, int]]:
        """The entries as they are sent. If the follower holds the bytes of an entry, the entry is only named. If the
        bytes are on their way, they are not sent again: the entry and those behind it wait."""
        named: list[tuple[bytes | int, int, int]] = []
        for command, index, term in entries:
            name = self._large.name_for(peer, index)
            if name == UNDER_WAY:
                self._pause(peer, index)
                break
            named.append((command if name is None else name, index, term))
        return named

    def _pause(self, peer: str, first_unsent: int) -> None:
        self.core.disconnected(peer)
        self._paused.setdefault(peer, first_unsent)

    def _behind(self, peer: str) -> None:
        """The follower lacks entries that our log has compacted. catchup.py offers it a snapshot that ends at our base
        or above."""
        self.followers.needs_snapshot.add(peer)
        self._pause(peer, self._log.base_index + 1)

    def release_paused(self) -> None:
        """After the tick: connect the followers again that were disconnected in it. The next entries that they get are
        the first ones that were not sent."""
        for peer, first_unsent in self._paused.items():
            self.core.connected(peer)
            self.core.set_next_index(peer, first_unsent)
        self._paused.clear()

    def _outgoing_reply(self, peer: str, message: AppendReply) -> None:
        if self._answering is None or self._answering[0] != peer:
            raise InvariantViolation("PySyncObj replied to a message that it did not get")
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
        """(leader, sign of life), for the time while the disk is slow. It claims no entry, term or vote. None if there
        is no leader to send it to."""
        if self._last_answered is None:
            return None
        peer, term, sequence = self._last_answered
        return peer, AppendReply(answers=(term, sequence), next_index=0, success=False, reset=False)

    # In: append messages -----------------------------------------------------------------------------------------

    def receive_append(self, peer: str, message: AppendEntries) -> bool:
        """Whether the peer leads us. Raises PeerFault if no correct leader sends this message."""
        term, sequence = message.term, message.sequence
        if term < self.core.term:
            # Stock drops the message without an answer, and the stale leader goes on for 30 s (hole 6).
            self._emit_gated(peer, Nack(self.core.term))
            return False
        if term == self.core.term and self.core.leader not in (None, peer):
            raise PeerFault(f"{peer} claims to lead term {term}, which {self.core.leader} leads")
        self._answering = self._last_answered = (peer, term, sequence)
        self._answer = None
        try:
            self._append(peer, message, _checked_entries(peer, message, self._held))
        finally:
            self._answering = None
        return True

    def is_led_by(self, peer: str, term: int) -> bool:
        """Whether a peer leads us now. It claims to lead `term`, and sends parts of a large message."""
        if term < self.core.term:
            self._emit_gated(peer, Nack(self.core.term))  # the answer to the whole message would be the same
        return term == self.core.term and peer == self.core.leader

    def _append(self, peer: str, message: AppendEntries, entries: Sequence[Entry]) -> None:
        log = self._log
        previous, previous_term = message.previous_index, message.previous_term
        leader_commit = message.commit_index
        if previous > log.last_index:
            self._deliver_append(peer, message, previous, previous_term, (), 0)  # the core answers: reset to last + 1
            return
        if previous < log.base_index:
            # All entries up to our base are committed, so they match. The entries above the base decide.
            entries = [entry for entry in entries if entry[1] > log.base_index]
            previous, previous_term = log.base_index, log.base_term
        if self._term_at(previous) != previous_term:
            self._answer_conflict(peer, message, previous, previous_term)
            return
        verified = previous + len(entries)
        known_commit = min(leader_commit, verified)
        held = self._matching(entries)
        if held == len(entries):
            # No entry is new. Stock would truncate everything behind `previous`, acknowledged entries too (holes
            # 2a-2c). So the core gets a heartbeat at our own last index, and the reply says how far we verified.
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
        """An entry that a manager cannot read never gets into the log, because no manager could start on that log."""
        for command, index, _ in entries:
            problem = self._checks.problem_of_entry(command)
            if problem:
                raise PeerFault(f"the entry at index {index} may not be appended: {problem}")
        if last - committed > UNCOMMITTED_MAX:
            raise PeerFault(f"{last - committed} entries that are not committed; no leader has more than a few")
        if last - committed > UNCOMMITTED_FEW:
            kept = (len(command) for command, _, _ in self._log.entries[committed + 1 - self._log.base_index :])
            if sum(kept) + sum(len(command) for command, _, _ in entries) > UNCOMMITTED_BYTES:
                raise PeerFault(f"more than {UNCOMMITTED_BYTES} bytes of entries that are not committed")

    def _note_commit(self, index: int) -> None:
        """Remember the commit index; the next batch of the log carries it. A message may have a lower commit index than
        we know already: a new leader's first heartbeat, or a message that is older than the last one."""
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
        # No entry is applied beyond the synced log. synced() raises the commit index when the sync has returned.
        known = min(commit, self._log.synced_index)
        self.core.deliver_append(peer, message.term, previous, previous_term, entries, known)

    def _answer_conflict(self, peer: str, message: AppendEntries, previous: int, previous_term: int) -> None:
        log = self._log
        if previous <= log.commit_index:
            raise PeerFault(f"{peer} has another entry at committed index {previous}")
        # The answer goes back a whole term at once. Stock goes back one index with each heartbeat, and never finds the
        # place if it is further back than one message (hole 11b).
        first = previous
        conflicting = self._term_at(previous)
        while first - 1 > max(log.commit_index, log.base_index) and self._term_at(first - 1) == conflicting:
            first -= 1
        self._answer = (max(first, log.commit_index + 1), True)
        self._deliver_append(peer, message, previous, previous_term, (), 0)

    def _matching(self, entries: Sequence[Entry]) -> int:
        """The number of entries, from the first on, that our log holds already."""
        last = self._log.last_index
        for count, (_, index, term) in enumerate(entries):
            if index > last or self._term_at(index) != term:
                return count
        return len(entries)

    def _term_at(self, index: int) -> int:
        return self._log.entries[index - self._log.base_index][2]

    # In: replies -------------------------------------------------------------------------------------------------

    def receive_reply(self, peer: str, message: AppendReply) -> None:
        """Raises PeerFault for an impossible acknowledgement."""
        term, sequence = message.answers
        if not self.core.is_leader or term != self.core.term:
            # Stock counts the reply in the present term, for entries that the follower never had (hole 3).
            self.stats["reply to another term dropped"] += 1
            return
        if not self.core.follows(peer):
            raise PeerFault(f"{peer} answers an append message, but this leader sent it none")
        progress = self.followers.of(peer, self.core.term)
        next_index = message.next_index
        if next_index <= BASE_INDEX and (message.success or message.reset):
            raise PeerFault(f"{peer} answers with index {next_index - 1}, but every log begins at index {BASE_INDEX}")
        if message.kept is not None:
            progress.kept = max(progress.kept, message.kept)
        if message.success:
            self._acknowledged(peer, progress, next_index - 1, message.sync_ms)
            return
        self.core.deliver_answer(peer)
        if message.reset:
            self._reset(peer, progress, next_index, sequence, hint=message.hint)

    def _acknowledged(self, peer: str, progress: Progress, index: int, sync_ms: int) -> None:
        if index > self._log.last_index:
            raise PeerFault(f"{peer} acknowledges index {index}, but our log ends at {self._log.last_index}")
        window_was_full = progress.unacknowledged_bytes >= WINDOW_BYTES
        if index > progress.match:
            self._stages.acknowledged(peer, progress.match, index, self._context.now, sync_ms / 1000)
        progress.acknowledge(index)
        if index >= self._log.base_index:
            self.followers.needs_snapshot.discard(peer)
        counted = min(index, self._log.synced_index)
        self.core.deliver_success(peer, counted)
        # Stock sets nextIndex back to the acknowledged index and sends all entries again that are on their way (hole
        # 2b).
        self.core.set_next_index(peer, max(progress.next_index, progress.match + 1))
        if window_was_full and progress.unacknowledged_bytes < WINDOW_BYTES:
            self.core.send_soon()

    def _way_back(self, peer: str) -> str:
        roster = self._context.roster
        address = roster.members[peer].address if peer in roster.members else ""
        return way_back(peer, address, roster.trust_domain)

    def _reset(self, peer: str, progress: Progress, next_index: int, sequence: int, *, hint: bool) -> None:
        if sequence < progress.barrier:
            # Several messages of one burst do not match. If the leader acted on each reset, it would send the same
            # entries again and again (holes 2a, 11b).
            self.stats["stale reset dropped"] += 1
            return
        if next_index <= progress.match:
            if not hint:
                raise PeerFault(
                    f"{peer} acknowledged up to index {progress.match}, and its log now ends at {next_index - 1}: its "
                    f"data directory is an older copy, or its disk has lost synced bytes; {self._way_back(peer)}"
                )
            next_index = progress.match + 1
        if next_index > self._log.last_index + 1:
            raise PeerFault(f"{peer} asks for index {next_index}, but our log ends at {self._log.last_index}")
        progress.forget_link(self._sequence + 1)
        if next_index <= self._log.base_index:
            self.followers.needs_snapshot.add(peer)
            self.core.set_next_index(peer, self._log.base_index + 1)
            return
        self.followers.needs_snapshot.discard(peer)
        self.core.set_next_index(peer, next_index)
        self.core.send_soon()

    # In: votes ---------------------------------------------------------------------------------------------------

    def receive_vote_request(self, peer: str, message: RequestVote) -> None:
        """Deliver a vote request. The caller has decided that we may vote, and that no living leader forbids it."""
        self.core.deliver_vote_request(peer, message)

    def receive_vote(self, peer: str, message: Vote) -> None:
        """Count each voter once in a term. Stock counts votes without a check of the sender (hole 6)."""
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
        """Entries that were on their way on the old link are lost. Send again from the first entry that the peer has
        not acknowledged."""
        progress = self.followers.of(peer, self.core.term)
        progress.forget_link(self._sequence + 1)
        if self.core.is_leader:
            self.core.send_soon()
            if progress.match:
                self.core.set_next_index(peer, progress.match + 1)

    def link_down(self, peer: str) -> None:
        self._paused.pop(peer, None)
        if self._last_answered is not None and self._last_answered[0] == peer:
            self._last_answered = None

    def forget(self, peer: str) -> None:
        """A member left. The acknowledgements of its data directory say nothing about the next directory under the same
        id."""
        self.followers.forget(peer)
        self._paused.pop(peer, None)

    def synced(self) -> None:
        """Our own disk has caught up. Count the acknowledgements, or the leader's commit index, that waited for it."""
        log, core = self._log, self.core
        if core.is_leader:
            for peer, progress in self.followers.all(core.term).items():
                if progress.match > core.commit_index:
                    core.raise_match_index(peer, min(progress.match, log.synced_index))
                    core.needs_tick = True  # it counts
            if self._context.is_alone:
                core.needs_tick = True
        else:
            core.raise_commit_index(min(log.commit_index, log.synced_index))
        self._note_commit(min(core.commit_index, log.synced_index))  # a follower may have led when this was proposed

    def after_tick(self) -> None:
        if self._paused:
            self.release_paused()
        # The commit index of a leader, also of one that in this tick counted a majority and then lost its quorum.
        commit_index = min(self.core.commit_index, self._log.synced_index)
        self._note_commit(commit_index)
        if not self.core.is_leader:
            self.untold_since = None
        elif commit_index > self._told_commit and self.untold_since is None:
            self.untold_since = self._context.now

    def tell_commit(self) -> None:
        """Tell the followers of the commit index now, in a message without entries."""
        self.core.send_soon()
        self.core.tick()
        self.after_tick()
        self._told_commit, self.untold_since = self._log.commit_index, None  # also if there is no follower

    def match_index(self, peer: str) -> int:
        """The highest index that the follower has acknowledged to this leader; 0 if unknown."""
        return self.followers.known(peer, self.core.term).match

    def needs_snapshot(self, peer: str) -> bool:
        """Whether the follower lacks entries that our log has compacted."""
        return peer in self.followers.needs_snapshot

    def kept_index(self, peer: str) -> int:
        """The commit index that the follower still knows after any crash; 0 if unknown."""
        return self.followers.known(peer, self.core.term).kept

    def learn_commit(self, index: int, term: int) -> None:
        """A peer says that the entry (index, term) is committed. If our log holds that entry, it is committed here too,
        even if the peer does not lead. A manager may have all entries and not know yet that they are committed, while
        another manager leads (DESIGN.md)."""
        log = self._log
        if not self.core.is_leader and index > log.commit_index and log.holds(index, term):
            log.set_commit(index)
            self.core.raise_commit_index(min(index, log.synced_index))


def _checked_entries(peer: str, message: AppendEntries, held: HeldEntries) -> list[Entry]:
    """The entries of a message, with the bytes of those that it only names.

    Raises PeerFault unless the indexes are consecutive, the terms do not go back or beyond the leader's, and each
    command is bytes or the name of bytes that are held.
    """
    entries: list[Entry] = []
    index, term = message.previous_index, message.previous_term
    for item in message.entries:
        index += 1
        if not isinstance(item, (list, tuple)) or len(item) != 3:
            raise PeerFault("append_entries has an entry that is not three values")
        command, item_index, item_term = item
        if type(command) is int:
            name, command = command, held.named(peer, command)
            if command is None:
                raise PeerFault(f"append_entries names the entry {name}, which was not sent before"[:200])
        if type(command) is not bytes or not command or type(item_index) is not int or type(item_term) is not int:
            raise PeerFault(f"append_entries has a bad entry at index {index}")
        if item_index != index:
            raise PeerFault(f"append_entries has a bad entry at index {index}")
        if not term <= item_term <= message.term:
            raise PeerFault(f"append_entries has an entry of the impossible term {item_term} at index {index}")
        term = item_term
        entries.append((command, item_index, item_term))
    return entries
