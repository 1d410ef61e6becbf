"""Random changes of members, disturbed and cut off at random moments: the remaining managers must be able to elect.

Each seed is a small story on a virtual clock. At the end all machines go down, and as few managers come back as must
suffice: a majority of each list that may be in force, and a voter that was being removed and had not stopped. Checked:
they elect a leader, its list has every change that was answered, and every acknowledged write is there. Not here:
single stories (test_settled.py), all other faults (tests/simulation).
"""

from __future__ import annotations

from random import Random

import pytest

from tests.engine_harness import Cluster
from tests.fast import fast_first
from warren_raft.raft.changes import DONE, Answer
from warren_raft.raft.membership import ADD, REMOVE
from warren_raft.raft.refusals import Removed
from warren_raft.raft.requests import ChangeWanted, TransferWanted

STORIES = 60
ELECTED_SECONDS = 60.0
ASK_EVERY_TURNS = 3


class Story:
    def __init__(self, seed: int) -> None:
        self.random = Random(f"settled {seed}")
        size = self.random.choice([1, 2, 2, 3, 3, 4, 5])
        self.cluster = Cluster([f"m{number}" for number in range(1, size + 1)], seed=seed)
        self.cluster.wait_ready()
        self.founders = set(self.cluster.nodes)
        self.voters = set(self.cluster.nodes)
        """The voters by the last answer."""
        self.pending: tuple[str, str] | None = None
        """(verb, id) of the change that was asked for and has no answer yet."""
        self.writes = 0
        self.write_rate = self.random.choice([0.0, 0.0, 0.2])
        """Writes in a turn. In an idle cluster no write takes the commit index to the disks."""
        self.is_over = False
        """All machines go down now: an answer was given at this very moment."""

    # The operator ------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        if len(self.voters) > 1 and self.random.random() < 0.6:
            self.pending = (REMOVE, self.random.choice(sorted(self.voters)))
            return
        id_ = f"m{len(self.cluster.addresses) + 1}"
        self.cluster.addresses[id_] = f"127.0.0.1:{7100 + len(self.cluster.addresses)}"
        self.start(id_)
        self.pending = (ADD, id_)

    def ask(self) -> None:
        if self.pending is None or not self.cluster.nodes:
            return
        asked, (verb, id_) = self.pending, self.pending

        def answered(answer: Answer) -> None:
            if answer.state == DONE and self.pending == asked:
                self.done()

        asks = self.cluster.nodes[self.random.choice(sorted(self.cluster.nodes))]
        asks.events.append(ChangeWanted(verb, id_, self.cluster.addresses[id_], answered))

    def done(self) -> None:
        assert self.pending is not None
        self.voters ^= {self.pending[1]}
        self.pending = None
        self.is_over = self.random.random() < 0.5

    # Events ------------------------------------------------------------------------------------------------------

    def start(self, id_: str) -> None:
        members = None if id_ in self.founders else dict(self.cluster.addresses)
        self.cluster.start(id_, members=members)

    def start_all(self) -> None:
        for id_ in sorted(self.cluster.addresses):
            if id_ not in self.cluster.nodes and id_ not in self.cluster.stopped and self.random.random() < 0.7:
                self.start(id_)

    def turns(self, count: int) -> None:
        for turn in range(0 if self.is_over else count):
            if turn % ASK_EVERY_TURNS == 0:
                self.ask()
            if self.cluster.nodes and self.random.random() < self.write_rate:
                self.writes += 1
                self.cluster.submit(self.random.choice(sorted(self.cluster.nodes)), f"w{self.writes}")
            self.cluster.turn()
            self.look()
            if self.is_over:
                return

    def look(self) -> None:
        """A manager stops by itself only if its removal was asked for; then the removal counts as answered. No manager
        accuses another of an impossible message."""
        for node in self.cluster.nodes.values():
            assert not [alarm for alarm in node.engine.alarms.active if alarm.name == "peer-fault"]
        for id_, failure in self.cluster.stopped.items():
            assert isinstance(failure, Removed), f"{id_} stopped: {failure!r}"
            if id_ in self.voters:
                assert self.pending == (REMOVE, id_), f"{id_} stopped, and nobody asked for it"
                self.done()

    def disturb(self) -> None:
        ids = sorted(self.cluster.nodes)
        if len(ids) > 1:
            for _ in range(self.random.choice([0, 1, 1, 2])):
                one, other = self.random.sample(ids, 2)
                if self.random.random() < 0.7:
                    self.cluster.hold((one, other))
                else:
                    self.cluster.part(one, other)
        if ids and self.random.random() < 0.3:
            self.cluster.nodes[self.random.choice(ids)].disk_seconds = self.random.choice([0.03, 0.1, 0.3])

    def strike(self) -> None:
        ids = sorted(self.cluster.nodes)
        leader = self.cluster.leader
        kind = self.random.choice(["one", "leader", "all", "transfer", "nothing"])
        if kind == "one":
            self.cluster.power_cut(self.random.choice(ids))
        elif kind == "leader" and leader is not None:
            if self.random.random() < 0.5:
                self.cluster.power_cut(leader.id)
            else:
                self.cluster.crash(leader.id)
        elif kind == "all":
            self.cluster.power_cut()
        elif kind == "transfer":
            event = TransferWanted(None, lambda _answer: None)
            self.cluster.nodes[self.random.choice(ids)].events.append(event)

    def tell(self) -> None:
        for _ in range(self.random.choice([1, 1, 2, 3])):
            if not self.cluster.nodes:
                self.start(self.random.choice(sorted(self.voters)))
            if len(self.voters) > 2 and self.random.random() < 0.3:
                self.cluster.power_cut(self.random.choice(sorted(self.cluster.nodes)))
                self.turns(30)
            if self.pending is None:
                self.begin()
            self.disturb()
            self.turns(self.random.choice([1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 40, 80]))
            if self.is_over:
                return
            if self.cluster.nodes:
                self.strike()
            if self.random.random() < 0.5:
                self.cluster.heal()
            self.start_all()
            self.turns(self.random.choice([0, 3, 10, 30, 100]))

    # The end -----------------------------------------------------------------------------------------------------

    def lists(self) -> list[set[str]]:
        """The voters of each list that may be in force."""
        return [self.voters, *([self.voters ^ {self.pending[1]}] if self.pending else [])]

    def come_back(self) -> None:
        lists = self.lists()
        back = set.union(*lists)
        for id_ in self.random.sample(sorted(back), len(back)):
            fewer = back - {id_}
            if self.pending != (REMOVE, id_) and all(len(fewer & voters) * 2 > len(voters) for voters in lists):
                back = fewer
        for id_ in sorted(back - self.cluster.stopped.keys()):
            self.start(id_)

    def end(self) -> None:
        cluster = self.cluster
        cluster.power_cut()
        cluster.heal()
        self.come_back()
        cluster.run_until(lambda: cluster.leader, ELECTED_SECONDS)
        cluster.run(3)
        self.look()
        leader = cluster.wait_leader()
        voters = {id_ for id_, votes in cluster.members(leader.id).items() if votes}
        assert voters in self.lists()
        cluster.write(leader.id, "last")
        assert cluster.acknowledged.keys() <= set(leader.machine.applied)


@pytest.mark.parametrize("seed", fast_first(range(STORIES), 15))
def test_whoever_is_left_elects_a_leader_that_knows_every_answered_change(seed: int) -> None:
    story = Story(seed)
    story.tell()
    story.end()
