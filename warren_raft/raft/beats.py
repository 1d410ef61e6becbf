"""Heartbeats of nodes between managers: each tells the leader, the leader tells all, and finds the nodes that are due.

Lives here: the messages about beats, and which nodes the leader may call down. Not here: the ages (beat_table.py); the
nodes as entities, and writing that a node is down or ready again (heartbeats/). No log entry, no sync.
Invariant: a node is due only if no manager can have answered a beat of it in the last `ttl` seconds: each one has said
so since, or has been away for so long that it answers none.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from warren_raft.config import MEMBERS_MAX
from warren_raft.raft.beat_table import MARK_BITS, BeatTable
from warren_raft.raft.context import LONG_AGO, Context
from warren_raft.raft.core import Core
from warren_raft.raft.elections import Elections
from warren_raft.raft.leading import Leading
from warren_raft.raft.messages import BEATS_MAX, Beats, BeatsWanted, PeerFault

TELL_SECONDS: Final = 0.2
"""A manager collects the beats of its callers for so long before it tells the leader of them in one message."""
SHARE_SECONDS: Final = 1.0
"""The leader tells the other managers so often about the beats that came since. The next leader then knows them."""
MARGIN_SECONDS: Final = 0.3
"""A node is due this much later than its ttl: clocks differ, and may leap by less than a gap (beat_table.py)."""
SEARCH_SECONDS: Final = 0.1
"""The least time between two searches for nodes that are due."""
SEARCH_AT_LEAST_SECONDS: Final = 1.0
"""The most time between two searches: a beat may come with a shorter ttl."""
ASK_AGAIN_SECONDS: Final = 0.5
"""A manager that did not follow its leader yet does not answer its question."""
TAKES_TIMEOUTS: Final = 1.0
"""A manager answers beats for so many election timeouts after it last heard a leader."""
LEADS_ON_TIMEOUTS: Final = 0.5
"""The same for a leader, after it last found that it leads. That ends 1.5 election timeouts after the others went."""
AWAY_TIMEOUTS: Final = 3.0
"""So many election timeouts after a manager was last connected to any other, it surely answers no more beats. At worst
it followed a leader that was cut off with it: that one leads for 1.5 timeouts (CHECK_QUORUM_TIMEOUTS), and its follower
answers for TAKES_TIMEOUTS after that. The rest is for looks and clocks."""
SILENT_SECONDS: Final = 5.0
"""A connected manager that has not answered a question for so long counts as away from then on. A link over which
nothing is heard is closed in this time, and then the manager hears its leader no more."""
ONE: Final = struct.Struct(">III")
"""A beat in a message: its ttl and its age in milliseconds, and its mark."""
SEEN: Final = struct.Struct(">II")


class Verdict(NamedTuple):
    """The nodes that are due, as found by the leader of this term. Term 0: this manager does not lead."""

    term: int
    due: frozenset[str]


NOBODY: Final = Verdict(0, frozenset())


@dataclass(slots=True)
class _Manager:
    """Another manager, which may have answered beats that are not known here. Times are by the clock of the table."""

    seen_at: float
    """When it was last connected to this manager."""
    told_at: float = LONG_AGO
    """When it was last connected to another manager that has told this one so."""
    heard_of_at: float = LONG_AGO
    """The same by hearsay. It is not told on: what two managers tell each other again and again seems to stay young."""
    link: int = -1
    """The number of the link over which it was told all beats."""
    asked: int = 0
    """The number of the last question."""
    asked_over: int = -1
    """The number of the link over which it was asked."""
    sent_at: float = LONG_AGO
    """When that question was sent."""
    asked_at: float | None = None
    """When it was asked first of the questions that it has not answered; None: it has answered."""
    answered_at: float = LONG_AGO
    """It has told all beats that it had answered until then."""

    @property
    def last_seen(self) -> float:
        """When it was last connected, as far as this manager knows."""
        return max(self.seen_at, self.told_at, self.heard_of_at)


class NodeBeats:
    """For the raft thread or a simulator only; `take`, `age_of`, `table.known.get`, `verdict` and setting `watched` for
    any thread."""

    def __init__(self, context: Context, core: Core, elections: Elections, leading: Leading) -> None:
        self._context = context
        self._core = core
        self._roster = context.roster
        self._outbox = context.outbox
        self._elections = elections
        self._leading = leading
        self._timeout = context.settings.election_timeout_seconds
        self.table: Final = BeatTable(context.random.getrandbits)
        self.takes_until = LONG_AGO
        """Until this time of the monotonic clock beats are answered."""
        self.watched: Mapping[str, float | None] = {}
        """The nodes that are not down: their ttl, or None if only the table has it. Set as a whole, for the leader."""
        self.verdict = NOBODY
        self._managers: dict[str, _Manager] = {}
        self._untold: set[str] = set()
        """The nodes with beats of which the leader, or as the leader the others, have to be told."""
        self._route: tuple[str, int, int] | None = None
        """The leader, its term and the number of the link to it, to which all beats here were told."""
        self._led_term = 0
        """The term in which this manager leads; 0: it does not."""
        self._told_at = self._searched_at = LONG_AGO
        self._next_due = LONG_AGO
        """No node is due before this, by the clock of the table."""
        self._searched: Mapping[str, float | None] = self.watched
        self._question = 0
        """The number of the last question to any manager."""

    # For any thread ----------------------------------------------------------------------------------------------

    def take(self, node_id: str, ttl_seconds: float, now: float) -> bool:
        """A caller brings a beat. Returns whether it may be answered. If not, it is kept all the same: no leader was
        heard for a while, so it is not sure that the beat gets to one in time."""
        self.table.take(node_id, ttl_seconds, now)
        return now < self.takes_until

    # Once a look -------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        table, now = self.table, self._context.now
        self._extend(now)
        self._look()
        leads = self._leading.leads_for_sure and self._leading.is_leader
        if not leads and self._led_term:
            self._led_term, self.verdict = 0, NOBODY
            self._forget_questions()
        self._look_at_managers()
        if leads and self._led_term != self._core.term:
            self._begin_to_lead()  # also if no beat is known: the judge may know of leases
        if not table.known and not self.watched:
            return
        if leads:
            self._lead(now)
        else:
            self._tell_leader(now)

    def _look(self) -> None:
        """Bring the clock of the table up to now, and take in the beats of callers."""
        self._untold.update(self.table.look(self._context.now))

    def _extend(self, now: float) -> None:
        """How long beats are answered."""
        if self._leading.role == "leader":
            self.takes_until = now + LEADS_ON_TIMEOUTS * self._timeout
        elif self._leading.leader is not None:
            self.takes_until = self._elections.leader_contact + TAKES_TIMEOUTS * self._timeout

    def _look_at_managers(self) -> None:
        """All members, and all that were members, count until they have been away for long. A manager that is no member
        any more is away, also if it is connected: it hears no leader, and is not asked."""
        roster, now = self._roster, self.table.now
        for id_ in roster.members:
            if id_ != roster.node_id and id_ not in self._managers:
                self._managers[id_] = _Manager(now)
        for peer, link in roster.links.items():
            manager = self._managers.get(peer)
            if manager is None or not roster.counts(peer):
                continue
            if manager.asked_over != link.number:
                manager.asked_at = None  # it never got the question, or its answer was lost
            if manager.asked_at is None or now - manager.asked_at <= SILENT_SECONDS:
                manager.seen_at = now

    def _forget_questions(self) -> None:
        for manager in self._managers.values():
            manager.asked_at, manager.answered_at = None, LONG_AGO

    # A follower --------------------------------------------------------------------------------------------------

    def _tell_leader(self, now: float, answers: int = 0) -> None:
        """Tell the leader of the beats that it does not know; all of them if it is another one, or over another link:
        messages may have been lost. `answers`: the number of its question."""
        leader = self._leading.leader
        link = None if leader is None else self._roster.links.get(leader)
        if leader is None or link is None:
            self._route = None
            return
        route = leader, self._core.term, link.number
        if route != self._route:
            self._route = route
            self._untold.update(self.table.known)
            self._told_at = LONG_AGO
        if answers or (self._untold and now - self._told_at >= TELL_SECONDS):
            self._told_at = now
            self._send([leader], self._untold, answers=answers)
            self._untold.clear()

    def _send(self, peers: Collection[str], node_ids: Iterable[str], *, answers: int = 0) -> None:
        """Send the beats of these nodes, in as many messages as needed. The answer to a question is in the last one."""
        table, now = self.table, self.table.now
        rows = [(id_, beat) for id_ in node_ids for beat in table.to_tell(id_)]
        managers = sorted(self._managers)[:MEMBERS_MAX]
        seen = b"".join(
            SEEN.pack(_milliseconds(now - manager.seen_at), _milliseconds(now - manager.told_at))
            for manager in map(self._managers.__getitem__, managers)
        )
        for first in range(0, max(1, len(rows)), BEATS_MAX):
            part = rows[first : first + BEATS_MAX]
            is_last = first + BEATS_MAX >= len(rows)
            message = Beats(
                term=self._core.term,
                answers=answers if is_last else 0,
                nodes=[id_ for id_, _ in part],
                beats=b"".join(
                    ONE.pack(round(beat.ttl_seconds * 1e3), _milliseconds(now - beat.at), beat.mark) for _, beat in part
                ),
                managers=managers,
                seen=seen,
            )
            for peer in peers:
                self._outbox.send(peer, message)

    # The leader --------------------------------------------------------------------------------------------------

    def _begin_to_lead(self) -> None:
        self._led_term = self._core.term
        self.verdict = Verdict(self._led_term, frozenset())
        self._route = None
        self._untold.update(self.table.known)
        self._told_at = self._searched_at = self._next_due = LONG_AGO
        self._forget_questions()

    def _lead(self, now: float) -> None:
        if now - self._told_at >= SHARE_SECONDS:
            self._told_at = now
            self._share()
        is_changed = self._searched is not self.watched
        if is_changed or (self.table.now >= self._next_due and now - self._searched_at >= SEARCH_SECONDS):
            self._searched_at = now
            self._search()

    def _share(self) -> None:
        """Tell the other managers of the beats that came since the last time; a manager on another link, of all."""
        old: list[str] = []
        new: list[str] = []
        for peer, link in sorted(self._roster.links.items()):
            manager = self._managers.get(peer)
            if manager is not None and self._roster.counts(peer):
                (old if manager.link == link.number else new).append(peer)
                manager.link = link.number
        if old:
            self._send(old, self._untold)
        if new:
            self._send(new, self.table.known)
        self._untold.clear()

    def _search(self) -> None:
        """Find the nodes that are due, and ask the managers that may know of later beats."""
        table, watched = self.table, self.watched
        self._searched = watched
        late = []
        next_due = table.now + SEARCH_AT_LEAST_SECONDS
        for node_id, ttl_seconds in watched.items():
            if ttl_seconds is not None:
                table.begin_to_count(node_id, ttl_seconds)
            beat = table.known.get(node_id)
            if beat is not None:
                deadline = beat.at + beat.ttl_seconds + MARGIN_SECONDS
                if deadline <= table.now:
                    late.append((node_id, deadline, beat.ttl_seconds))
                next_due = min(next_due, deadline)
        self._next_due = next_due
        due = frozenset(node_id for node_id, *times in late if not self._may_be_known_elsewhere(*times))
        self.verdict = Verdict(self._led_term, due)
        if len(due) < len(late):
            self._ask(max(deadline for _, deadline, _ in late))

    def _may_be_known_elsewhere(self, deadline: float, ttl_seconds: float) -> bool:
        """Whether another manager may have answered a beat that makes a node not due, and not have said so."""
        now = self.table.now
        # A manager that was connected to it later may have gone away before it told so.
        away = AWAY_TIMEOUTS * self._timeout + SHARE_SECONDS
        return any(
            manager.answered_at < deadline and now < manager.last_seen + away + ttl_seconds
            for manager in self._managers.values()
        )

    def _ask(self, deadline: float) -> None:
        """Ask the connected managers that have not said since `deadline` which beats they have answered."""
        now = self.table.now
        for peer, link in sorted(self._roster.links.items()):
            manager = self._managers.get(peer)
            if manager is None or not self._roster.counts(peer) or manager.answered_at >= deadline:
                continue
            if manager.asked_at is None or manager.asked_over != link.number:
                manager.asked_at, manager.asked_over = now, link.number
            elif now - manager.sent_at < ASK_AGAIN_SECONDS:
                continue
            self._question += 1
            manager.asked, manager.sent_at = self._question, now
            self._outbox.send(peer, BeatsWanted(term=self._led_term, question=self._question))

    # Messages ----------------------------------------------------------------------------------------------------

    def on_beats(self, peer: str, message: Beats) -> None:
        table = self.table
        if len(message.beats) != ONE.size * len(message.nodes):
            raise PeerFault(f"{message.NAME} with {len(message.nodes)} nodes and {len(message.beats)} bytes of beats")
        if len(message.seen) != SEEN.size * len(message.managers):
            raise PeerFault(f"{message.NAME} with {len(message.managers)} managers and {len(message.seen)} bytes")
        self._look()
        for node_id, (ttl, age, mark) in zip(message.nodes, ONE.iter_unpack(message.beats), strict=True):
            if table.merge(node_id, ttl / 1e3, age / 1e3, mark) and self._led_term:
                self._untold.add(node_id)
        for id_, (seen, told) in zip(message.managers, SEEN.iter_unpack(message.seen), strict=True):
            manager = self._managers.get(id_)
            if manager is not None:
                manager.told_at = max(manager.told_at, table.now - seen / 1e3)
                manager.heard_of_at = max(manager.heard_of_at, table.now - told / 1e3)
        if self._led_term and message.term == self._led_term:
            self._answered(peer, message.answers)

    def _answered(self, peer: str, question: int) -> None:
        manager = self._managers.get(peer)
        if manager is not None and manager.asked_at is not None and question == manager.asked:
            manager.answered_at, manager.asked_at = manager.asked_at, None
            self._searched_at = self._next_due = LONG_AGO

    def on_beats_wanted(self, peer: str, message: BeatsWanted) -> None:
        """The leader asks. If this manager does not follow it yet, it is asked again."""
        if peer == self._leading.leader and message.term == self._core.term:
            self._look()
            self._tell_leader(self._context.now, answers=message.question)


def _milliseconds(seconds: float) -> int:
    return max(0, min(int(seconds * 1e3), (1 << MARK_BITS) - 1))
