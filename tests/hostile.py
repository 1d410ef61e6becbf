"""An attacker, played by hand against the engines of tests/engine_harness.py.

It has links like any other manager, with the hello and the certificate that the test gives it, and sends the messages
of the test. Not here: bytes that are not messages (unit/test_wire.py).
"""

from __future__ import annotations

from typing import Any

from tests.engine_harness import Cluster, Message, Node
from warren_raft.certificates.identity import Identity
from warren_raft.raft.effects import CloseLink
from warren_raft.raft.events import LinkUp, Received
from warren_raft.raft.refusal import Refusal


class Hostile:
    """`id` has a link to each manager that lets it in. `refusals`: those of the other managers."""

    def __init__(self, cluster: Cluster, id_: str, hello: Message, identity: Identity | None = None) -> None:
        self.cluster = cluster
        self.id = id_
        self.hello = hello
        self.identity = identity
        self.refusals: dict[str, Refusal] = {}

    @classmethod
    def stranger(cls, cluster: Cluster, id_: str = "x", **claims: Any) -> Hostile:
        """An attacker that is not a member, with a certificate if links are TLS. Its hello is that of a blank manager,
        changed by `claims`."""
        some = next(iter(cluster.nodes.values()))
        own = {"node_id": id_, "incarnation": f"of {id_}", "address": "127.0.0.1:9999"}
        blank = {"blank": True, "cluster_id": None, "membership_index": 0, "founding": b"", "origin": ""}
        hello = {**some.engine.hello(), **own, **blank, **claims}
        return cls(cluster, id_, hello, cluster.certificate(id_))

    @classmethod
    def member(cls, cluster: Cluster, id_: str) -> Hostile:
        """An attacker in the place of a member that runs, with its directory, its id and its certificate."""
        hello = cluster.nodes[id_].engine.hello()
        cluster.crash(id_)
        cluster.turn()
        hostile = cls(cluster, id_, hello, cluster.certificate(id_))
        for victim in list(cluster.nodes):
            assert hostile.connect(victim) is None
        cluster.turn()
        return hostile

    def connect(self, victim: str) -> Refusal | None:
        """Make a link to a manager. Returns the refusal if the manager does not let it in."""
        cluster, node = self.cluster, self.cluster.nodes[victim]
        refusal = node.engine.judge(self.hello, self.identity)
        if refusal is not None:
            self.refusals[victim] = refusal
            return refusal
        cluster._link_number += 1
        cluster.links[victim, self.id] = cluster.links[self.id, victim] = cluster._link_number
        cluster.hold((victim, self.id))  # messages wait until a test looks at them
        node.events.append(LinkUp(self.id, cluster._link_number, self.hello, self.identity))
        return None

    def say(self, victim: str, *messages: Message) -> list[str]:
        """Messages arrive at a manager now. Returns its reasons for closing the link."""
        cluster, node = self.cluster, self.cluster.nodes[victim]
        link = cluster.links[victim, self.id]
        events, node.events = [*node.events, *(Received(self.id, link, message) for message in messages)], []
        reasons = []
        for effect in node.engine.step(cluster.now, events):
            if isinstance(effect, CloseLink) and effect.link == link:
                reasons.append(effect.reason)
            cluster._perform(node, effect)
        node.engine.apply()
        return reasons

    def heard(self, victim: str, kind: str) -> list[Message]:
        """The messages of this type that a manager has sent to the attacker on its present link."""
        return [message for message in self.cluster.on_wire(victim, self.id) if message["type"] == kind]


def append_to(node: Node, **changes: Any) -> Message:
    """A correct heartbeat of the present leader, at the end of the log."""
    return {
        "type": "append_entries",
        "term": node.engine.term,
        "commit_index": node.log.commit_index,
        "previous_index": node.log.last_index,
        "previous_term": node.log.last_term,
        "entries": [],
        "sequence": 1000,
        **changes,
    }


def vote_request(node: Node, **changes: Any) -> Message:
    """A vote request for the next term, of a candidate with a log as good as this manager's."""
    return {
        "type": "request_vote",
        "term": node.engine.term + 1,
        "last_log_index": node.log.last_index,
        "last_log_term": node.log.last_term,
        "transfer": False,
        "why": ["test", "a test"],
        **changes,
    }
