"""Attackers: impostors with false claims, replays of old hellos, a hostile member.

A hostile member is simulated by messages on a real member's link that the member never sent. Attacks of a hostile
leader or candidate that Raft allows (DESIGN.md, "Trust") are not drawn: votes by a false log, entries, a commit index.
Not here: faults of correct managers (nemesis.py). Invariant: the draws are from a generator of its own.
"""

from __future__ import annotations

from random import Random
from typing import Any

from tests.simulation.world import Process, World
from warren_raft.raft import entries
from warren_raft.raft.events import LinkUp, Received
from warren_raft.raft.membership import ADD, INDEX_MAX

MESSAGES_MAX = 30
HELLOS_KEPT = 50
STAYS_SECONDS = 1.0
FORGED = "a hostile member says so"
"""The text of a hostile leader's answers to operators."""
FAR = 1 << 60

Message = dict[str, Any]


class Hostile:
    """The attackers of a run; each `turn` is one act of one of them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.random = Random(f"hostile {world.options.seed}")
        self._hellos: list[Message] = []
        """Hellos that managers had at some time."""
        self._links = 0

    def turn(self) -> None:
        running = list(self.world.running())
        if not running:
            return
        victim = self.random.choice(running)
        self._hellos = [*self._hellos, self.random.choice(running).engine.hello()][-HELLOS_KEPT:]
        self.random.choice([self._impostor, self._replay, self._member])(victim)

    def _count(self, what: str) -> None:
        self.world.faults[f"hostile: {what}"] += 1

    # Strangers -----------------------------------------------------------------------------------------------------

    def _impostor(self, victim: Process) -> None:
        """An impostor claims an id, a directory, a later list, or a founding record."""
        own, random = victim.engine.hello(), self.random
        claims = {
            "node_id": random.choice(["x", *self.world.initial]),
            "incarnation": "of an impostor",
            "membership_index": random.choice([0, own["membership_index"] + 1, FAR]),
            "cluster_id": random.choice([None, own["cluster_id"], "another"]),
            "blank": random.random() < 0.5,
            "founding": random.choice([b"", own["founding"]]),
        }
        self._come("impostor", victim, {**own, "address": "127.0.0.1:6666", **claims}, says=True)

    def _replay(self, victim: Process) -> None:
        """Replay an overheard hello, of another manager or of an earlier directory."""
        self._come("replayed hello", victim, self.random.choice(self._hellos), says=False)

    def _come(self, what: str, victim: Process, hello: Message, *, says: bool) -> None:
        peer, network = hello["node_id"], self.world.network
        if peer == victim.id or peer in victim.engine._roster.links or network.has_link(victim.id, peer):
            return
        refusal = victim.engine.judge(hello)
        if refusal is not None:
            self._count(f"{what} refused")
            return
        self._count(f"{what} let in")
        self._links -= 1
        number = self._links
        victim.take(LinkUp(peer, number, hello))
        network.uninvited[victim.id, peer] = number
        for _ in range(self.random.randrange(MESSAGES_MAX) if says else 0):
            self._say(victim, peer, number)

        def go() -> None:
            if network.uninvited.get((victim.id, peer)) == number:
                network.end_uninvited(victim, peer)

        self.world.after(self.random.uniform(0.0, STAYS_SECONDS), go)

    # A member ------------------------------------------------------------------------------------------------------

    def _member(self, victim: Process) -> None:
        links = victim.engine._roster.links
        if links:
            peer = self.random.choice(sorted(links))
            for _ in range(self.random.randrange(MESSAGES_MAX)):
                self._say(victim, peer, links[peer].number)

    def _say(self, victim: Process, peer: str, number: int) -> None:
        kind, message = self.random.choice(sorted(self._messages(victim).items()))
        self._count(f"said {kind}")
        self.world.accused.add(peer)
        self.world.tell("delivered", victim, peer, {"type": kind, **message})
        victim.take(Received(peer, number, {"type": kind, **message}))

    def _messages(self, victim: Process) -> dict[str, Message]:
        engine, log, random = victim.engine, victim.opened.log, self.random
        term = engine.term + random.choice([0, 1, 1, 2, 1000, FAR])
        last = {"last_log_index": 0, "last_log_term": 0}
        bad = b"\x85\x09" + bytes(40)
        return {
            "nack": {"term": min(term, INDEX_MAX)},
            "pre_vote": {"round": random.randrange(100), "term": term, **last},
            "pre_vote_reply": {"round": random.randrange(100), "granted": False, "term": term},
            "request_vote": {"term": term, **last, "transfer": random.random() < 0.7, "why": []},
            "hand_over": {"term": engine.term, "target": peer_of(victim, random)},
            "timeout_now": {"term": engine.term, "why": []},
            "submit": {"commands": [bad]},
            "read_index": {"number": random.choice([1, FAR])},
            "read_index_is": {"number": random.choice([1, FAR]), "index": random.choice([0, log.last_index, FAR])},
            "confirm": {"term": term, "round": 1},
            "confirmed": {"term": term + 1, "round": random.randrange(1, 50)},
            "submit_large": {"number": 1, "heard": 0, "command": bad, "milliseconds": 1000},
            "large_entry": {"number": FAR, "term": term, "entry": entries.encode_commands([bad])},
            "large_entry_refused": {"number": random.randrange(1, 50)},
            "change": {"number": FAR, "verb": ADD, "id": "m99", "address": "127.0.0.1:6667"},
            "change_answer": {"number": random.randrange(1, 50), "state": "done", "text": FORGED},
            "addresses": {"said": [["m1", "of an impostor", "127.0.0.1:6668"]]},
            "snapshot_get": {"sha256": "0" * 64, "offset": 0},
            "snapshot_wanted": {"index": random.choice([1, log.last_index, FAR])},
            "founding": {"founding": b"\x80"},
            "append_entries": {
                "term": engine.term + FAR,
                "commit_index": log.commit_index,
                "sequence": 1,
                "previous_index": log.last_index,
                "previous_term": log.last_term,
                "entries": [[bad, 1, 1]],
            },
        }


def peer_of(victim: Process, random: Random) -> str:
    return random.choice(sorted([*victim.engine._roster.links, "x"]))
