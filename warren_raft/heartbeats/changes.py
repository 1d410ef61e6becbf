"""From a node with another status to the operation that stores it.

Not here: which nodes change (judging.py), the write (manager/heartbeats.py, local/heartbeats.py). Invariant: a node
that cannot be stored keeps no other node from its change, and is logged once until it can be stored again.
"""

from __future__ import annotations

import logging

from warren_raft.errors import InvalidEntity
from warren_raft.model.entities import Node
from warren_raft.store.command import Operation
from warren_raft.store.operations import put_operation
from warren_raft.store.tables import NODE
from warren_raft.support.log_lines import log_event

logger = logging.getLogger("warren_raft.heartbeats")


class Changes:
    """One thread. `at`: the node id of the manager, for the log."""

    def __init__(self, at: str) -> None:
        self._at = at
        self._refused: set[str] = set()
        """The nodes that could not be stored at their last change."""

    def operation(self, node: Node) -> Operation | None:
        """None for a node that cannot be stored: it fills the limit of an entity, so that the time of its last beat
        has no room, or a newer release has stored a value in it that is not known here."""
        try:
            operation = put_operation(NODE, node, node.revision)
        except InvalidEntity as error:
            if node.id not in self._refused:
                self._refused.add(node.id)
                text = f"{error}; its status cannot become {node.status}; update or delete the node"
                log_event(logger, logging.ERROR, "node not judged", text, node=self._at, subject=node.id)
            return None
        self._refused.discard(node.id)
        return operation
