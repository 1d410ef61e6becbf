"""Another state takes the place of ours: the parts begin again with it, in this order, as they do at a start.

Lives here: the order. Not here: where the state comes from (installation.py, catchup.py), and its publication, which is
over by then. Invariant: the core begins again as a follower, on a state that is not behind its log's begin, and every
caller that waits is asked for again.
"""

from __future__ import annotations

from warren_raft.raft.context import Context
from warren_raft.raft.guard import Guard
from warren_raft.raft.health import Health
from warren_raft.raft.leading import Leading
from warren_raft.raft.peers import Peers
from warren_raft.raft.settling import Settling
from warren_raft.raft.snapshots import Snapshots
from warren_raft.raft.state_machine import StateMachine, membership_of
from warren_raft.raft.submit import Submitter


class Swap:
    """For the raft thread or a simulator only."""

    def __init__(
        self,
        context: Context,
        guard: Guard,
        *,
        snapshots: Snapshots,
        settling: Settling,
        submitter: Submitter,
        leading: Leading,
        peers: Peers,
        health: Health,
    ) -> None:
        self._context = context
        self._guard = guard
        self._snapshots = snapshots
        self._settling = settling
        self._submitter = submitter
        self._leading = leading
        self._peers = peers
        self._health = health

    def use(self, incoming: StateMachine, why: str) -> None:
        """The old state is kept under the word `why`, or not at all if it is empty. Raises Removed if the new state
        says that this manager was removed."""
        self._context.machine = incoming
        self._peers.replace(membership_of(incoming))
        self._leading.state_replaced()
        self._submitter.state_replaced()
        self._context.commit_what_is_applied()
        self._peers.keep_list()
        self._context.outbox.clear()
        self._guard.restart()
        self._settling.restart()
        self._peers.connect_again()
        self._snapshots.swap(incoming, why)
        self._health.state_changed()
        self._leading.check_ready()
