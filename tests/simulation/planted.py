"""Bugs to be planted into the product for one run, to see that the simulator finds them: `--plant NAME`.

Each is a row of a table: a function, and the text to replace in its source. The product's files stay as they are: the
functions are compiled again with the new text, in this process, and the old ones are put back afterwards. Invariant: a
row raises an error if its text is not in the source any more, so a planted bug cannot disappear unnoticed.
"""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

from tests.memory_files import MemoryFile
from tests.page_cache import CachedFile
from tests.simulation.beats import NodesThatBeat
from tests.simulation.workload import Client
from warren_raft.fsm import history
from warren_raft.fsm.entry import Entries
from warren_raft.fsm.requests import Requests
from warren_raft.fsm.sessions import Sessions
from warren_raft.raft import levels as level_of_members
from warren_raft.raft import membership, submit
from warren_raft.raft.applying import Applying
from warren_raft.raft.barriers import Barriers
from warren_raft.raft.beat_table import BeatTable
from warren_raft.raft.beats import NodeBeats
from warren_raft.raft.changes import Changes
from warren_raft.raft.confirming import Confirming
from warren_raft.raft.core import Core
from warren_raft.raft.dispatch import Dispatch
from warren_raft.raft.engine import Engine
from warren_raft.raft.forming import Forming
from warren_raft.raft.guard import Guard
from warren_raft.raft.installation import Installation
from warren_raft.raft.log.contents import Contents
from warren_raft.raft.log.log import Log
from warren_raft.raft.log_writer import LogWriter
from warren_raft.raft.outbox import Outbox
from warren_raft.raft.roster import Roster
from warren_raft.raft.settling import Settling
from warren_raft.raft.submit import Submitter
from warren_raft.raft.swapping import Swap
from warren_raft.raft.votes import Votes
from warren_raft.recovery import restore as restoring
from warren_raft.recovery.recover import Recovery
from warren_raft.snapshots.keeper import Keeper
from warren_raft.store.watch import Feed
from warren_raft.watching.feeding import Feeding


class Change(NamedTuple):
    """In the source of `owner`.`name`, `old` becomes `new`."""

    owner: Any
    name: str
    old: str
    new: str


_TRUNCATION = (
    Change(Guard, "_append", "held = self._matching(entries)", "held = 0"),
    Change(Guard, "_append", "if held == len(entries):", "if not entries and previous == log.last_index:"),
    Change(Guard, "_append", "keep < log.last_index and keep < log.commit_index", "False"),
)
_UNCHECKED_TRUNCATION = Change(
    Contents, "truncate_from", "index <= max(self.base_index, self.commit_index)", "index <= self.base_index"
)
_SECOND_VOTE = Change(
    Guard,
    "receive_vote_request",
    "        self.core.deliver_vote_request(peer, message)",
    "        self.core._core._SyncObj__votedForNodeId = None\n        self.core.deliver_vote_request(peer, message)",
)

PLANTED: dict[str, tuple[Change, ...]] = {
    "level-is-raised-early": (Change(level_of_members, "read_by_all", "min(known,", "max(known,"),),
    # Hole 1: PySyncObj flushes its journal, it does not sync it.
    "no-sync-before-reply": (Change(Outbox, "send_when_synced", "self._log.position", "0"),),
    "apply-beyond-synced-log": (
        Change(Applying, "_limit", "min(self._log.commit_index, self._log.synced_index)", "self._core.commit_index"),
        Change(Guard, "_deliver_append", "min(commit, self._log.synced_index)", "commit"),
        Change(Guard, "_acknowledged", "min(index, self._log.synced_index)", "index"),
    ),
    # Holes 2a to 2c: all entries behind prevLogIdx are dropped, even if the message has the same entries.
    "truncate-on-match": _TRUNCATION,
    "truncate-on-match-unchecked": (*_TRUNCATION, _UNCHECKED_TRUNCATION),
    # Hole 3: an answer to an earlier term counts in this one.
    "no-term-on-replies": (
        Change(Guard, "receive_reply", "not self.core.is_leader or term != self.core.term", "not self.core.is_leader"),
    ),
    # Hole 10: a command that was sent again is carried out again.
    "apply-twice": (Change(Sessions, "recall", "if done_at is not None:", "if False:"),),
    # A leader that was paused carries out what it decided before another one took over.
    "fence-is-ignored": (Change(Entries, "_carry_out", "fence != NO_FENCE and fence != self._term", "False"),),
    # The fence is compared with the term in which this manager is when it applies the entry.
    "fence-by-the-managers-term": (
        Change(
            Applying,
            "_apply_together",
            "        machine = self._context.machine\n",
            "        machine = self._context.machine\n"
            "        from tests.simulation.planted import present\n"
            "        present.term = self._core.term\n",
        ),
        Change(
            Entries,
            "_carry_out",
            "        if fence != NO_FENCE and fence != self._term:\n",
            "        from tests.simulation.planted import present\n"
            "        if fence != NO_FENCE and fence != present.term:\n",
        ),
    ),
    # A caller that died after its write was carried out makes it again, and it is carried out again.
    "request-key-is-forgotten": (Change(Requests, "remember", "min(forget_below, index)", "index"),),
    # At its deadline a caller is told that its write was not applied, although the write may be on its way.
    "late-is-taken-for-never": (Change(submit, "expired", "maybe_applied=proposal.sent", "maybe_applied=False"),),
    "vote-twice": (_SECOND_VOTE,),
    "vote-twice-unchecked": (
        _SECOND_VOTE,
        Change(Contents, "set_term", "self.voted_for not in (None, voted_for)", "False"),
    ),
    "forget-the-vote": (Change(Contents, "_replay_record", "content.decode() if second else None", "None"),),
    "forget-the-commit-index": (
        Change(Contents, "replay", "self.set_commit(self._at_least_base(batch.commit_index))", "pass"),
    ),
    # Hole 7: a wiped disk votes in its predecessor's name.
    "blank-manager-votes": (
        Change(Roster, "may_vote", "self.membership is not None or self.founding is not None", "True"),
        Change(Roster, "is_voter", " and me.incarnation == self._log.incarnation", ""),
        Change(Roster, "standing", "member.incarnation == link.hello.incarnation", "True"),
        Change(
            membership,
            "_judge_as_member",
            "return _unknown_directory(theirs, known.address, trust_domain)",
            "return None",
        ),
        Change(
            membership, "_judge_before_cluster", "return _unknown_directory(hello, hello.address, trust_domain)", "pass"
        ),
    ),
    # Hole 2c: a message of an old connection is taken for one of the present connection.
    "hears-dead-links": (Change(Dispatch, "receive", "link is None or link.number != number", "link is None"),),
    # The result of fdatasync is not looked at; planted below the log.
    "deaf-to-failed-syncs": (
        Change(MemoryFile, "sync", "end(fault,", "end(None if fault and fault.error == errno.EIO else fault,"),
    ),
    "full-disk-stops": (Change(LogWriter, "_refused", "shortage is None", "True"),),
    "full-disk-for-ever": (Change(LogWriter, "_refused", "self._context.now + RETRY_SECONDS", "1e18"),),
    # A bug that the product had for an hour: a power cut leaves a log that ends below its state.
    "install-before-the-log-is-synced": (
        Change(Installation, "_is_ready", "<= self._log.synced_index", "<= self._log.last_index"),
    ),
    "rotten-snapshot-is-used": (
        Change(Keeper, "_prove", "self._verify(path, False, self.closing)", "pass"),
        Change(
            Keeper,
            "open_incoming",
            "                manifest = self._verify(path, True, self.closing)",
            "                from warren_raft.snapshots.file import read_manifest as looked_at\n"
            "                manifest = looked_at(path)",
        ),
    ),
    # If a message waits for the disk when its link breaks, it leaves on the next link.
    "answers-survive-their-link": (
        Change(
            Outbox,
            "link_down",
            "        self._gated = deque(item for item in self._gated if item[0].peer != peer)\n",
            "",
        ),
    ),
    # A state is replaced by an older one, because it has gone on meanwhile.
    "installed-state-goes-back": (
        Change(Installation, "_is_ready", "applied_index <= incoming.applied_index <=", "incoming.applied_index <="),
    ),
    "callers-are-forgotten-at-a-swap": (
        Change(Swap, "use", "self._submitter.state_replaced()", "self._submitter._pending.clear()"),
    ),
    # Writes that were sent are not sent again. The writes that a snapshot covers are never applied here, and their
    # callers get no answer.
    "callers-do-not-ask-again": (
        Change(
            Submitter, "_line_up_small", "and not proposal.is_held:", "and not proposal.is_held and not proposal.sent:"
        ),
    ),
    # Applying goes by the core's commit index, which begins again at the applied index when the state is replaced.
    "commit-index-is-lost-at-a-swap": (
        Change(
            Core, "restart", "_Journal.on(log, max(applied_index, log.commit_index))", "_Journal.on(log, applied_index)"
        ),
        Change(Applying, "_limit", "min(self._log.commit_index,", "min(self._core.commit_index,"),
    ),
    # The batch on its way holds entries that are truncated meanwhile, and other entries take their indexes.
    "truncation-forgets-the-batch": (Change(Log, "truncate_from", "if self._in_flight is not None:", "if False:"),),
    # Over a thin link a large message takes longer than an election timeout, and nothing else is heard meanwhile.
    "parts-are-no-sign-of-life": (
        Change(Dispatch, "arriving", "if term and self._guard.is_led_by(peer, term):", "if False:"),
    ),
    # A change is answered when it is applied, but the commit index that covers it becomes durable with the next write.
    "an-answered-change-is-forgotten": (
        Change(Changes, "request", "if found.state == DONE and not roster.is_settled:", "if False:"),
    ),
    # The removed voter applies its own removal first, and stops voting before another manager knows that the removal is
    # committed.
    "a-removed-voter-leaves-at-once": (
        Change(Settling, "holds_back", "if not is_own or not roster.is_voter:", "if True:"),
    ),
    # A power cut takes the log of a restored directory.
    "restored-log-is-not-synced": (Change(CachedFile, "sync", "self._cache.file_synced(self.fileno())", "pass"),),
    # The product does not do this: a leader answers a barrier by itself, as long as by its own clock no other manager
    # can have been elected since a quorum last answered.
    "reads-by-lease": (
        Change(
            Client,
            "_read",
            "        self.process.take(",
            "        from tests.simulation.planted import holds_lease\n"
            "        if holds_lease(self.process.engine):\n"
            "            return barrier.end()\n"
            "        self.process.take(",
        ),
    ),
    # A leader answers a barrier without asking the voters whether it still leads.
    "barriers-without-a-round": (Change(Confirming, "_count", " <= len(voters)", " < 1"),),
    # A round that runs already answers a new question, with answers of voters that were sent before the question.
    "a-round-answers-later-questions": (
        Change(Barriers, "add", "self._new += barriers", "self._new += barriers; self.go_on(self._context.now)"),
        Change(
            Confirming,
            "ask",
            "self._waiting[asker] =",
            "(self._waiting if self._round is None else self._round.questions)[asker] =",
        ),
    ),
    # A voter that is in another term, and follows another leader, confirms the old one.
    "confirmed-in-another-term": (
        Change(Confirming, "on_confirm", "peer == self._core.leader and message.term == self._core.term", "True"),
    ),
    # An answer to a question with this number may be that to an earlier question.
    "question-number-used-again": (
        Change(Barriers, "go_on", "self._number + 1 if self._number else", "1 if True else"),
    ),
    # The same, only after a restart (etcd-io/raft): the answer to the process before comes to the next one.
    "question-numbers-begin-again": (
        Change(Barriers, "go_on", "self._context.random.getrandbits(FIRST_NUMBER_BITS) + 1", "1"),
        Change(Barriers, "on_read_index_is", " and message.number <= self._number", ""),
        Change(Confirming, "link_down", "self._waiting.pop(peer, None)", "return"),
    ),
    # A new leader does not know yet which entries of earlier leaders are committed.
    "a-new-leader-answers-at-once": (
        Change(Confirming, "_may_answer", "self._context.machine.applied_term == self._core.term", "True"),
    ),
    # A follower may have applied, and acknowledged, an entry that the leader has not applied yet.
    "the-index-is-what-the-leader-applied": (
        Change(Confirming, "_begin", "self._log.commit_index", "self._context.machine.applied_index"),
    ),
    # The index that this manager knows to be committed is older than the one that the leader answers.
    "the-index-is-what-the-asker-knows": (
        Change(
            Barriers,
            "_answered",
            "(index, self._answers",
            "(min(index, self._log.commit_index), self._answers",
        ),
    ),
    # Managers that were restored from two snapshots become one cluster with two states.
    "origin-is-ignored": (
        Change(membership, "_judge_before_cluster", "mine.origin != theirs.origin", "False"),
        Change(Forming, "_view", " and hello.origin == roster.origin", ""),
        Change(Forming, "_adopt", " and founding.origin == roster.origin", ""),
    ),
    "restored-as-the-old-cluster": (
        Change(
            restoring,
            "_common_cluster_id",
            "hashlib.sha256(said.encode()).hexdigest()[:CLUSTER_ID_CHARACTERS]",
            "manifest.cluster_id",
        ),
    ),
    "any-cluster-is-let-in": (Change(membership, "_are_of_two_clusters", "all(clusters) and", "False and"),),
    # An entry that a survivor does not know to be committed is left out, although it may have been acknowledged.
    "recover-leaves-out-the-uncertain": (
        Change(
            Recovery,
            "_replay",
            "in self._entries:",
            "in self._entries[: len(self._entries) - self.uncertain]:",
        ),
    ),
    # Heartbeats of nodes. A leader calls a node down by its own knowledge, although another manager answers its beats.
    "nodes-are-down-by-ignorance": (
        Change(NodeBeats, "_may_be_known_elsewhere", "return any(", "return False and any("),
    ),
    "ages-are-lost-at-a-hand-over": (
        Change(NodeBeats, "_tell_leader", "self._untold.update(self.table.known)", "pass"),
        Change(NodeBeats, "_share", "if old:", "if False:"),
        Change(NodeBeats, "_share", "if new:", "if False:"),
    ),
    "each-leader-counts-from-its-start": (
        Change(
            NodeBeats,
            "_begin_to_lead",
            "self._untold.update(self.table.known)",
            "self.table.known.update({id_: b._replace(at=self.table.now) for id_, b in self.table.known.items()})",
        ),
    ),
    # A leader that was deposed, or suspended, calls a node down, although the next leader knows of its beats.
    "nodes-are-down-without-the-fence": (Change(NodesThatBeat, "_decide", "fence=term", "fence=0"),),
    "a-clock-that-leaps-makes-beats-older": (
        Change(BeatTable, "look", "min(now - self._looked_at, GAP_SECONDS)", "now - self._looked_at"),
    ),
    # Hole 6: a timeout_now that the core has stays armed until the core ticks with a link. The product had this bug: a
    # manager that was told to campaign in the step in which its last link broke deposed the leader that it met later.
    "armed-timeout-now": (
        Change(Core, "campaign", "        self.tick()\n", ""),
        Change(Core, "campaign", "        self._core._SyncObj__transferInProgress = False\n", ""),
        Change(
            Core,
            "campaign",
            "        self._core._SyncObj__raftElectionDeadline = NEVER_SECONDS * NEVER_SECONDS\n",
            "",
        ),
    ),
    # The same, and the voters do not know that the leader hands over.
    "armed-without-a-word": (
        Change(
            Votes,
            "on_timeout_now",
            "self._leading.campaign(why)",
            "self._core._deliver(peer, {'type': 'timeout_now', 'term': message.term})",
        ),
    ),
    # A watch whose queue was full goes on behind the change that found it full.
    "events-lost-when-a-watch-lags": (
        Change(
            Feeding,
            "_route",
            "self._fall_behind(feed, change.revision - 1)",
            "self._fall_behind(feed, change.revision)",
        ),
    ),
    # A watch that is resumed gets new events while it still reads the old ones.
    "events-reordered-at-resume": (
        Change(
            Feeding,
            "_admit",
            "            self._behind[feed] = None\n",
            "            self._behind[feed] = self._live[feed] = None\n            self._routes.add(feed)\n",
        ),
        Change(Feed, "put", "self.position = self.given = revision", "self.given = revision"),
    ),
    # A watch that comes from a manager that was ahead gets what it had there once more.
    "events-repeated-after-reconnect": (
        Change(Feeding, "_route", "if change.revision <= feed.position:", "if False:"),
    ),
    # A bookmark says how far the state is, not how far the watch is.
    "bookmark-ahead-of-its-events": (
        Change(Feeding, "_bookmark", "revision = self._position", "revision = self._newest"),
    ),
    # A revision of the old cluster is taken for one of the restored cluster, whose history is empty at first.
    "restored-taken-for-the-old": (Change(history, "floor", "return transaction.revision", "return 0"),),
}


class Present:
    """For "fence-by-the-managers-term": the term of the manager that is applying entries."""

    term = 0


present = Present()


def holds_lease(engine: Engine) -> bool:
    """For "reads-by-lease": whether a quorum has answered this leader, by its clock, within an election timeout."""
    context = engine._context
    others = [engine._core.last_response(voter) or 0.0 for voter in engine._core.voters - {engine._node_id}]
    heard = sorted(others, reverse=True)[: len(engine._core.voters) // 2]
    return engine.is_leader and all(context.now - at < context.settings.election_timeout_seconds for at in heard)


def planted(name: str | None) -> AbstractContextManager[None]:
    """The product with this bug, until the end of the block. None: without a bug."""
    return changed(PLANTED[name] if name is not None else ())


@contextmanager
def changed(changes: Iterable[Change]) -> Iterator[None]:
    """The product with these changes, until the end of the block."""
    undo: list[tuple[Any, str, Any]] = []
    try:
        for change in changes:
            undo.append((change.owner, change.name, vars(change.owner)[change.name]))
            setattr(change.owner, change.name, _rewritten(change))
        yield
    finally:
        for owner, attribute, before in reversed(undo):
            setattr(owner, attribute, before)


def _rewritten(change: Change) -> Any:
    found = vars(change.owner)[change.name]
    source = _source(found)
    if source.count(change.old) != 1:
        raise ValueError(
            f"{change.name} has {change.old!r} {source.count(change.old)} times: update the row in PLANTED"
        )
    source = source.replace(change.old, change.new)
    module = sys.modules[change.owner.__module__] if inspect.isclass(change.owner) else change.owner
    body = source
    if inspect.isclass(change.owner):
        body = f"class {change.owner.__name__}:\n{source}"
    names: dict[str, Any] = {}
    exec(
        compile(f"from __future__ import annotations\n{body}", f"<planted {change.name}>", "exec"), vars(module), names
    )
    made: Any = vars(names[change.owner.__name__])[change.name] if inspect.isclass(change.owner) else names[change.name]
    _sources[id(made)] = source
    _kept.append(made)
    return made


_sources: dict[int, str] = {}
_kept: list[Any] = []


def _source(found: Any) -> str:
    """The source of a function or property, indented by four as in its class; if it was rewritten, the new source."""
    if id(found) in _sources:
        return _sources[id(found)]
    function = found.fget if isinstance(found, property) else found
    source = textwrap.dedent(inspect.getsource(function))
    return textwrap.indent(source, "    ") if "." in function.__qualname__ else source
