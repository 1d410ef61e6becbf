"""PySyncObj behind glass: a private copy of its module, and each of its internals that we use. "The core" is this copy.

Lives here: the replacements for its parts that must never run (journal, pickle, snapshots, sockets, clock), and the few
name-mangled attributes that we read or set, each with its reason. "Hole N" is a section of docs/pysyncobj-holes.md. Not
here: which messages may reach the core (guard.py) and when it may campaign (elections.py). Invariant: no other file
knows a PySyncObj name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, Literal

from warren_raft.errors import InvariantViolation
from warren_raft.raft import audited
from warren_raft.raft.audited import UnauditedEngine
from warren_raft.raft.messages import (
    AppendEntries,
    AppendReply,
    RequestVote,
    Vote,
)

if TYPE_CHECKING:
    from warren_raft.raft.log.log import Log

BEHIND: Final[Literal["behind"]] = "behind"
"""Takes the place of an append message if the follower is behind the start of our log."""
CoreMessage = AppendEntries | AppendReply | RequestVote | Vote
"""The messages that PySyncObj itself sends and takes. Only this file knows their form inside it."""
NO_ANSWER: Final = (0, 0)
Entry = tuple[bytes, int, int]
"""(command, index, term), in PySyncObj's order."""

REGULAR: Final = b"\x00"
"""The first byte of our own entries. PySyncObj's membership entries (2) and version entries (3) are never written."""
NO_OP: Final = b"\x01"
"""A leader's first entry of its term, written by PySyncObj itself."""

FOLLOWER, CANDIDATE, LEADER = 0, 1, 2

NEVER_SECONDS: Final = 1e9
"""The core's own election timer and connection timer are off, because elections.py and the links decide."""
MESSAGE_BYTES: Final = 512 * 1024
"""The most bytes of entries in one append message; a first entry that is larger goes alone. A heartbeat does not wait
long behind so few bytes while a follower catches up, and so many keep a disk busy."""
_ENTRY_OVERHEAD_BYTES: Final = 32
"""Counted for the index and the term of each entry. Without it, a run of empty entries would make a message of too many
items."""
_UNREACHABLE_BYTES: Final = 1 << 40
"""The core cuts an entry into 'transmission' pieces at its own batch size (hole 11d). No entry is as large as this."""


class _Refuser:
    """Takes the place of a part that the core must never use. Each use is a bug of ours."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __getattr__(self, name: str) -> Any:
        raise InvariantViolation(f"PySyncObj used {self._what}.{name}, which no manager may use")


class _NoSnapshots:
    """PySyncObj's snapshot code never runs (holes 4a-4f, 11a, 11c), because a snapshot is always being written.

    If a follower needs a snapshot, the core sends a message without entries (see guard.py).
    """

    _SERIALIZING = 1  # SERIALIZER_STATE.SERIALIZING: __tryLogCompaction returns at once

    def __init__(self, *_: object) -> None:
        pass

    def checkSerializing(self) -> tuple[int, None]:  # noqa: N802 - PySyncObj's name
        return self._SERIALIZING, None

    def getTransmissionData(self, _node: object) -> None:  # noqa: N802
        return None

    def cancelTransmisstion(self, _node: object) -> None:  # noqa: N802 - its spelling
        return None


class _NoPoller:
    """The core polls no socket. Sockets belong to links/transport.py."""

    def poll(self, _timeout: float) -> None:
        return None


class _NoResolver:
    """All users of PySyncObj in the process share the real resolver, so we must not change its settings."""

    def setTimeouts(self, *_: object) -> None:  # noqa: N802
        return None

    def setPreferredAddrFamily(self, *_: object) -> None:  # noqa: N802
        return None


class _NoRandomness:
    """Only the core's own election timer asks for random numbers, and that timer is off."""

    @staticmethod
    def random() -> float:
        return 0.0


@cache
def _sources(directory: Path) -> audited.Sources:
    return audited.Sources(directory)


def load_module(clock: Callable[[], float]) -> ModuleType:
    """A private copy of pysyncobj.syncobj, so that another user of PySyncObj in this process is not affected.

    The copy is not in sys.modules. Raises UnauditedEngine if the installed source is not the audited one.
    """
    module = _sources(audited.directory()).new_module("syncobj")
    names: dict[str, Any] = {
        "createJournal": lambda journal: journal,
        "pickle": _Refuser("pickle"),
        "Serializer": _NoSnapshots,
        "createPoller": lambda _kind: _NoPoller(),
        "PIPE_NOTIFIER_ENABLED": False,
        "globalDnsResolver": _NoResolver,
        "monotonicTime": clock,
        "random": _NoRandomness,
    }
    for name, replacement in names.items():
        if not hasattr(module, name):
            raise UnauditedEngine(f"pysyncobj.syncobj has no {name}, which this program replaces")
        setattr(module, name, replacement)
    return module


class _Journal:
    """Our durable log, in the form of the core's journal. A change is not on disk before its batch is synced.

    `journal[position]` is an entry; `on` makes a journal that has this operator.
    """

    def __init__(self, log: Log, commit_index: int) -> None:
        self._log = log
        self._entries = log.entries
        self._commit_index = commit_index
        self.term_position = 0
        """Log.position of the record of the present term and vote; 0 if the record was durable at the start."""

    @staticmethod
    def on(log: Log, commit_index: int) -> _Journal:
        """The journal of a log. It has the operators of the list of entries itself, and no Python code runs for them:
        the core asks for an entry twenty times a write."""
        operators = {"__getitem__": log.entries.__getitem__, "__len__": log.entries.__len__}
        journal: _Journal = type("_JournalOfLog", (_Journal,), operators)(log, commit_index)
        return journal

    def entries_from(self, index: int, count: int | None = None, size_bytes: int | None = None) -> list[Entry]:
        """Takes the place of PySyncObj's own method: the entries from `index` on, and [] if the log does not reach back
        so far. With a size, which it gives only for a message, they are at most MESSAGE_BYTES.

        Stock copies the whole rest of the log for each message (hole 9). For a follower that was 400,000 entries
        behind, that took 4.7 s.
        """
        entries = self._entries
        start = index - entries[0][1]
        if start < 0:
            return []
        if count is not None:
            return entries[start : start + count]
        if size_bytes is None or start + 1 >= len(entries):
            return entries[start:]
        size = 0
        for position in range(start, len(entries)):
            size += len(entries[position][0]) + _ENTRY_OVERHEAD_BYTES
            if size > MESSAGE_BYTES and position > start:
                return entries[start:position]
        return entries[start:]

    def add(self, command: bytes, index: int, term: int) -> None:
        self._log.append(command, index, term)

    def deleteEntriesFrom(self, position: int) -> None:  # noqa: N802
        if position < len(self._entries):
            self._log.truncate_from(self._entries[position][1])

    def deleteEntriesTo(self, _position: int) -> None:  # noqa: N802
        raise InvariantViolation("PySyncObj tried to compact the log by itself")

    def clear(self) -> None:
        raise InvariantViolation("PySyncObj tried to clear the log")

    def setRaftCommitIndex(self, _index: int) -> None:  # noqa: N802
        return None  # guard.py records the verified commit index; the core's own may be clamped to a lower one

    def getRaftCommitIndex(self) -> int:  # noqa: N802
        return self._commit_index

    def setCurrentTerm(self, term: int, voted_for: str | None) -> None:  # noqa: N802
        self._log.set_term(term, voted_for)
        self.term_position = self._log.position

    def getCurrentTerm(self) -> int:  # noqa: N802
        return self._log.current_term

    def getVotedForNodeId(self) -> str | None:  # noqa: N802
        return self._log.voted_for

    def onOneSecondTimer(self) -> None:  # noqa: N802
        return None

    def _destroy(self) -> None:
        return None


class Core:
    """One PySyncObj node without its network, disk, clock, timers, snapshots and membership.

    Not thread-safe: for the raft thread or the simulator. `send(peer_id, message)` is called for every message that the
    core wants to send, from inside the deliver methods and tick().
    """

    def __init__(
        self,
        *,
        node_id: str,
        voters: Iterable[str],
        log: Log,
        applied_index: int,
        heartbeat_seconds: float,
        check_quorum_seconds: float,
        clock: Callable[[], float],
        send: Callable[[str, CoreMessage | Literal["behind"]], None],
    ) -> None:
        # These are attributes because they are read two hundred times for each write. `_look` updates them.
        self.term = 0
        self.state = FOLLOWER
        """FOLLOWER, CANDIDATE or LEADER."""
        self.is_leader = False
        self.leader: str | None = None
        """The leader of the current term, if this manager knows it; this manager itself if it leads."""
        self.commit_index = 0
        self.has_moved = False
        """Whether term, state or leader have changed. leading.py resets it."""
        self.needs_tick = False
        """Whether a tick may do something now that need not wait for the next regular one: an answer or a sync may have
        made a majority, the leader is new, or there is something to send."""
        module = load_module(clock)
        Node, Transport = module.Node, module.Transport  # noqa: N806 - classes

        class Member(int, Node):  # type: ignore[misc, valid-type]
            """A member is a number too, made from its id: the core looks members up fifty times for each write, and no
            Python code runs to hash or compare numbers. The hash does not depend on PYTHONHASHSEED. The core iterates
            over sets of members, and a simulation must repeat."""

            def __new__(cls, id: str) -> Member:  # noqa: A002
                return super().__new__(
                    cls, int.from_bytes(b"\1" + id.encode(), "big")
                )  # the 1: no id gives 0, or another's

            def __init__(self, id: str) -> None:  # noqa: A002
                Node.__init__(self, id)

            __str__ = Node.__str__
            __repr__ = Node.__repr__

        def look_and_send(node: Any, message: dict[str, Any]) -> bool:
            self._look()
            typed = self._append_of(message) if message["type"] == "append_entries" else _typed(message)
            if typed is not None:
                send(node._id, typed)
            return True

        class Link(Transport):  # type: ignore[misc, valid-type]
            ready = True
            send = staticmethod(look_and_send)

        self._links: Any = None
        self._append: AppendEntries | None = None
        """The newest append message of the present call into PySyncObj."""

        def links(*args: object) -> Any:
            self._links = Link(*args)
            return self._links

        self._module = module
        self._node_class = Member
        self._nodes: dict[str, Any] = {}
        self._node_id = node_id
        self._log = log
        self._heartbeat_seconds = heartbeat_seconds
        self._check_quorum_seconds = check_quorum_seconds
        self._make_links = links
        self._journal: _Journal
        self._core: Any
        self.restart(voters, applied_index)

    def restart(self, voters: Iterable[str], applied_index: int) -> None:
        """Begin again on the present log as a follower without links, as after a start of the process. Called when
        another state has replaced ours."""
        log = self._log
        self._journal = _Journal.on(log, max(applied_index, log.commit_index))
        conf = self._module.SyncObjConf(
            autoTick=False,
            appendEntriesUseBatch=True,  # `propose` sends, and guard.py tells of a new commit index
            appendEntriesPeriod=self._heartbeat_seconds,
            appendEntriesBatchSizeBytes=_UNREACHABLE_BYTES,
            raftMinTimeout=NEVER_SECONDS,
            raftMaxTimeout=2 * NEVER_SECONDS,
            connectionTimeout=3 * NEVER_SECONDS,
            leaderFallbackTimeout=self._check_quorum_seconds,
            commandsWaitLeader=True,
            commandsQueueSize=0,
            journalFile=self._journal,
        )
        self._nodes.clear()
        others = [self._node(voter) for voter in sorted(voters) if voter != self._node_id]
        own = self._node(self._node_id)
        self._core = self._module.SyncObj(
            own, others, conf, nodeClass=self._node_class, transportClass=self._make_links
        )
        # The state decides where replay starts. Entries that are applied are not handed out again.
        self._core._SyncObj__raftLastApplied = applied_index
        # The core's "apply" only moves its own counter. applying.py applies from the log, up to the synced index. So an
        # error while applying is not retried for ever and does not stop the heartbeats (hole 5).
        self._core._SyncObj__doApplyCommand = _apply_nothing
        self._core._SyncObj__getEntries = self._journal.entries_from
        self._look()

    def _node(self, peer_id: str) -> Any:
        node = self._nodes.get(peer_id)
        if node is None:
            node = self._nodes[peer_id] = self._node_class(peer_id)
        return node

    def _append_of(self, message: dict[str, Any]) -> AppendEntries | Literal["behind"]:
        """An append message of PySyncObj as a message of ours. Followers that get the same in one call get the same
        object, so that it is encoded once."""
        entries = message.get("entries")
        if entries is None:
            return BEHIND
        term, commit_index = message["term"], message["commit_index"]
        previous_index, previous_term = message["prevLogIdx"], message["prevLogTerm"]
        last = self._append
        if (
            last is not None
            and last.previous_index == previous_index
            and last.commit_index == commit_index
            and last.entries == entries
            and (last.term, last.previous_term) == (term, previous_term)
        ):
            return last
        self._append = AppendEntries(
            term=term,
            commit_index=commit_index,
            previous_index=previous_index,
            previous_term=previous_term,
            entries=entries,
            sequence=0,
        )
        return self._append

    # Its state ---------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Update the attributes. Called before our own code runs again: after each call into PySyncObj, and when
        PySyncObj calls `send`."""
        core = self._core
        leader = core._SyncObj__raftLeader
        leader_id = None if leader is None else leader._id
        term, state = core._SyncObj__raftCurrentTerm, core._SyncObj__raftState
        if term != self.term or state != self.state or leader_id != self.leader:
            self.term, self.state, self.leader = term, state, leader_id
            self.is_leader = state == LEADER
            self.has_moved = self.needs_tick = True
        self.commit_index = core._SyncObj__raftCommitIndex

    @property
    def term_position(self) -> int:
        """The position that Log.synced_position has to reach before a peer may hear that we are in this term."""
        return self._journal.term_position

    @property
    def voters(self) -> frozenset[str]:
        """The voters that the core counts, this manager included."""
        return frozenset([*(node.id for node in self._core._SyncObj__otherNodes), self._core.selfNode.id])

    def match_index(self, peer_id: str) -> int:
        return int(self._core._SyncObj__raftMatchIndex.get(self._node(peer_id), 0))

    def follows(self, peer_id: str) -> bool:
        """Whether the core tracks the log of this member. A leader tracks voters, and learners that have a link. An
        acknowledgement from any other peer would fail on a missing key."""
        return self._node(peer_id) in self._core._SyncObj__raftMatchIndex

    def last_response(self, peer_id: str) -> float | None:
        """The time when a member last answered this leader, in seconds of the clock; None if it never did."""
        value = self._core._SyncObj__lastResponseTime.get(self._node(peer_id))
        return None if value is None else float(value)

    # Messages and events for the core ----------------------------------------------------------------------------

    def deliver_append(
        self,
        peer_id: str,
        term: int,
        previous_index: int,
        previous_term: int,
        entries: Sequence[Entry],
        commit_index: int,
    ) -> None:
        """Deliver entries that the guard has checked. They follow an entry that our log has."""
        core_message = {
            "type": "append_entries",
            "term": term,
            "commit_index": commit_index,
            "prevLogIdx": previous_index,
            "prevLogTerm": previous_term,
            "entries": entries,
        }
        self._deliver(peer_id, core_message)

    def deliver_answer(self, peer_id: str) -> None:
        """Note that a follower has answered. This says nothing about its log."""
        self._deliver(peer_id, {"type": "next_node_idx", "next_node_idx": 0, "reset": False, "success": False})

    def deliver_success(self, peer_id: str, index: int) -> None:
        """Note that a follower has answered, and holds all entries up to `index`."""
        self._deliver(peer_id, {"type": "next_node_idx", "next_node_idx": index + 1, "reset": False, "success": True})
        if index > self.commit_index:
            self.needs_tick = True  # it counts

    def deliver_vote_request(self, peer_id: str, message: RequestVote) -> None:
        core_message = {
            "type": "request_vote",
            "term": message.term,
            "last_log_index": message.last_log_index,
            "last_log_term": message.last_log_term,
        }
        self._deliver(peer_id, core_message)

    def deliver_vote(self, peer_id: str, term: int) -> None:
        self._deliver(peer_id, {"type": "response_vote", "term": term})

    def _deliver(self, peer_id: str, message: dict[str, object]) -> None:
        self._links._onMessageReceived(self._node(peer_id), message)
        self._append = None
        self._look()

    def tick(self) -> None:
        self.needs_tick = False
        self._core.doTick(0.0)
        self._append = None
        self._look()

    def propose(self, entry: bytes) -> None:
        """Append one entry now, and send it to the followers. Only for a leader.

        A tick would append it too, but looks first whether a majority still answers. A leader that stepped down there
        would not append the entry, and PySyncObj would keep it for later.
        """
        self._core._applyCommand(entry, None, None)
        self._core._checkCommandsToApply()
        self._core._SyncObj__sendAppendEntries()
        self._append = None
        self._look()

    def connected(self, peer_id: str) -> None:
        self._links._onNodeConnected(self._node(peer_id))
        self._look()

    def disconnected(self, peer_id: str) -> None:
        self._links._onNodeDisconnected(self._node(peer_id))
        self._look()

    def campaign(self) -> bool:
        """Become a candidate of the next term now. False if the core did not.

        A `timeout_now` without a tick stays armed, and would depose a healthy leader after a reconnection; this
        happened in a run. So the message and the tick both happen here.
        """
        # The sender has to be the leader that the core knows, because the core compares them. It may be None.
        self._links._onMessageReceived(self._core._getLeader(), {"type": "timeout_now", "term": self.term})
        self._look()
        before = self.term
        self.tick()
        self._core._SyncObj__transferInProgress = False
        self._core._SyncObj__raftElectionDeadline = NEVER_SECONDS * NEVER_SECONDS
        return self.term == before + 1

    def step_down(self) -> None:
        """Become a follower in the same term, as after too long without answers from a majority."""
        self._core._SyncObj__raftState = FOLLOWER
        self._core._SyncObj__raftLeader = None
        self._look()

    def observe_term(self, term: int) -> None:
        """Enter a higher term and step down, by a vote request that can never be granted (hole 6)."""
        if term > self.term:
            request = {"type": "request_vote", "term": term, "last_log_term": -1, "last_log_index": -1}
            self._links._onMessageReceived(self._node(""), request)
            self._look()

    def go_back(self, term: int) -> None:
        """Enter an earlier term. Only if the log is untouched, because then nothing was promised in the later term."""
        self.step_down()
        self._core._SyncObj__raftCurrentTerm = term
        self._journal.setCurrentTerm(term, None)
        self._look()

    # The guard's corrections -------------------------------------------------------------------------------------

    def set_next_index(self, peer_id: str, index: int) -> None:
        """Set the index of the first entry that is sent next.

        After an acknowledgement the core sets it back although newer entries are on their way. The leader would send
        them again without need. Without the guard the follower would truncate entries that it acknowledged (hole 2b).
        """
        self._core._SyncObj__raftNextIndex[self._node(peer_id)] = index

    def send_soon(self) -> None:
        """Send append messages at the next tick instead of the next heartbeat. For a follower that catches up, or that
        has an open window again."""
        self._core._SyncObj__newAppendEntriesTime = -NEVER_SECONDS
        self.needs_tick = True

    @property
    def heartbeat_at(self) -> float:
        """A leader sends heartbeats at the first tick after this time, in seconds of the clock."""
        return float(self._core._SyncObj__newAppendEntriesTime)

    def raise_match_index(self, peer_id: str, index: int) -> None:
        """Count an earlier success of a follower in full. The follower had the entry on disk before we did, and now our
        own disk has it too."""
        match = self._core._SyncObj__raftMatchIndex
        node = self._node(peer_id)
        if node in match and match[node] < index:
            match[node] = index

    def raise_commit_index(self, index: int) -> None:
        """Raise the commit index, which was clamped to our synced log when the leader's message came. The sync has
        returned since."""
        if index > self._core._SyncObj__raftCommitIndex:
            self._core._SyncObj__raftCommitIndex = index
            self._look()

    # Membership: our own entries decide, and then the core is told (hole 7) ----------------------------------------

    def add_voter(self, peer_id: str) -> None:
        self._core._SyncObj__doChangeCluster(("add", peer_id, self._node(peer_id)))
        self._look()

    def remove_voter(self, peer_id: str) -> None:
        self._core._SyncObj__doChangeCluster(("rem", peer_id, self._node(peer_id)))
        self._look()

    def learner_connected(self, peer_id: str) -> None:
        """Send the log to a learner. PySyncObj calls it a read-only node: it counts for no majority."""
        if self._node(peer_id) in self._core._SyncObj__readonlyNodes:
            return  # a second connect would forget the learner's progress
        self._links._onReadonlyNodeConnected(self._node(peer_id))
        # Without this key, a reply of a learner that connected while we lead fails (issue 121 of PySyncObj).
        self._core._SyncObj__lastResponseTime.setdefault(self._node(peer_id), 0.0)
        self._look()

    def learner_disconnected(self, peer_id: str) -> None:
        self._links._onReadonlyNodeDisconnected(self._node(peer_id))
        self._look()


def _typed(message: dict[str, Any]) -> CoreMessage | None:
    """A message of PySyncObj that has no entries as a message of ours; None if no manager sends it.

    No manager sends apply_command and its response, because PySyncObj's forwarding loses callbacks and applies twice
    (hole 10). submit.py carries writes to the leader.
    """
    match message["type"]:
        case "next_node_idx":
            return AppendReply(
                answers=NO_ANSWER,
                next_index=message["next_node_idx"],
                success=message["success"],
                reset=message["reset"],
            )
        case "request_vote":
            return RequestVote(
                term=message["term"],
                last_log_index=message["last_log_index"],
                last_log_term=message["last_log_term"],
            )
        case "response_vote":
            return Vote(message["term"])
        case _:
            return None


def _apply_nothing(_command: bytes) -> None:
    return None
