"""A manager that does not keep to the rules, played by hand against the engines of tests/engine_harness.py.

It has links like any other, with the hello and the certificate that it is given, and says what a test has it say.
Not here: bytes that are no messages (test_wire.py).
"""

from __future__ import annotations

from typing import Any

from tests.engine_harness import Cluster, Message, Node
from warren_raft.raft.effects import CloseLink
from warren_raft.raft.events import LinkUp, Received
from warren_raft.raft.identity import Identity
from warren_raft.raft.refusal import Refusal


class Hostile:
    """`id` with a link to each manager that lets it in. `refusals`: of the others."""

    def __init__(self, cluster: Cluster, id_: str, hello: Message, identity: Identity | None = None) -> None:
        self.cluster = cluster
        self.id = id_
        self.hello = hello
        self.identity = identity
        self.refusals: dict[str, Refusal] = {}

    @classmethod
    def stranger(cls, cluster: Cluster, id_: str = "x", **claims: Any) -> Hostile:
        """One that is no member, with a certificate where there are any. It says what a blank manager of this cluster's
        would, but for `claims`."""
        some = next(iter(cluster.nodes.values()))
        own = {"node_id": id_, "incarnation": f"of {id_}", "address": "127.0.0.1:9999"}
        blank = {"blank": True, "cluster_id": None, "membership_index": 0, "founding": b"", "origin": ""}
        hello = {**some.engine.hello(), **own, **blank, **claims}
        return cls(cluster, id_, hello, cluster.certificate(id_))

    @classmethod
    def member(cls, cluster: Cluster, id_: str) -> Hostile:
        """In the place of a member that runs: its directory, its id, its certificate."""
        hello = cluster.nodes[id_].engine.hello()
        cluster.crash(id_)
        cluster.turn()
        hostile = cls(cluster, id_, hello, cluster.certificate(id_))
        for victim in list(cluster.nodes):
            assert hostile.connect(victim) is None
        cluster.turn()
        return hostile

    def connect(self, victim: str) -> Refusal | None:
        """A link to a manager, if that lets it in."""
        cluster, node = self.cluster, self.cluster.nodes[victim]
        refusal = node.engine.judge(self.hello, self.identity)
        if refusal is not None:
            self.refusals[victim] = refusal
            return refusal
        cluster._link_number += 1
        cluster.links[victim, self.id] = cluster.links[self.id, victim] = cluster._link_number
        cluster.hold((victim, self.id))  # until a test looks at it
        node.events.append(LinkUp(self.id, cluster._link_number, self.hello, self.identity))
        return None

    def say(self, victim: str, *messages: Message) -> list[str]:
        """Messages come off the wire at a manager, now. The reasons for which it closes the link in answer."""
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
        """What a manager has sent to it of this type, and not taken back with a link."""
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
    """For the next term, of one whose log is as good as this manager's."""
    return {
        "type": "request_vote",
        "term": node.engine.term + 1,
        "last_log_index": node.log.last_index,
        "last_log_term": node.log.last_term,
        "transfer": False,
        "why": ["test", "a test"],
        **changes,
    }
