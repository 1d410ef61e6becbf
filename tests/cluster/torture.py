"""Faults without end against a cluster of real processes under load: `python -m tests.cluster.torture --minutes 10`.

Faults are drawn from a seed; what the machine makes of them is not repeatable. After every few of them the load stops,
the managers must converge, and each must hold what its callers were told (checkers.py). A failure ends it, with 1.
Invariant: a fault is ended before the next check, so what is demanded then can be had.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from tests.cluster.harness import Cluster

FAULTS_A_ROUND: Final = 6
WRITES_BETWEEN: Final = 40
TIMEOUTS_SECONDS: Final = (0.3, 2.0, 20.0)
"""Of the writers: some give up early, so that what is told to them is tested too."""


class Torture:
    """One cluster, and whatever happens to it."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self.cluster = cluster
        self.draw = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.faults: list[Callable[[], None]] = [
            self.kill_leader,
            self.kill_follower,
            self.kill_two,
            self.kill_all,
            self.stop_leader,
            self.pause_leader,
            self.pause_follower,
            self.pause_two,
            self.transfer,
            self.slow_sync,
            self.forge_marker,
        ]

    def round(self) -> None:
        """Some faults under load, then the check."""
        cluster = self.cluster
        self.load(*cluster.alive)
        for _ in range(FAULTS_A_ROUND):
            fault = self.draw.choice(self.faults)
            self.done[fault.__name__] += 1
            cluster.wait_acknowledged(WRITES_BETWEEN)
            fault()
        cluster.wait_acknowledged(WRITES_BETWEEN)
        cluster.stop_load()
        cluster.check()
        cluster.check_logs()

    def load(self, *ids: str) -> None:
        for id_ in ids:
            self.cluster.start_load(id_, threads=2, timeout=self.draw.choice(TIMEOUTS_SECONDS))

    def leader(self) -> str:
        return self.cluster.wait_leader()

    def any_follower(self) -> str:
        return self.draw.choice(self.cluster.followers())

    def restart(self, *ids: str) -> None:
        self.cluster.start(*ids)
        self.load(*ids)

    def kill_and_restart(self, *ids: str) -> None:
        self.cluster.kill(*ids)
        if len(self.cluster.alive) == 2 and self.draw.random() < 0.7:
            self.cluster.wait_acknowledged(WRITES_BETWEEN)
        self.restart(*ids)

    # The faults

    def kill_leader(self) -> None:
        self.kill_and_restart(self.leader())

    def kill_follower(self) -> None:
        self.kill_and_restart(self.any_follower())

    def kill_two(self) -> None:
        self.kill_and_restart(*self.draw.sample(self.cluster.alive, 2))

    def kill_all(self) -> None:
        self.kill_and_restart(*self.cluster.alive)

    def stop_leader(self) -> None:
        leader = self.leader()
        self.cluster.stop(leader)
        self.restart(leader)

    def pause(self, *ids: str) -> None:
        """For less or more than an election takes."""
        for id_ in ids:
            self.cluster.pause(id_)
        end = time.monotonic() + self.draw.choice((0.2, 1.0, 2.5, 6.0))
        self.cluster.wait(lambda: time.monotonic() >= end, "the end of a pause")
        for id_ in ids:
            self.cluster.resume(id_)

    def pause_leader(self) -> None:
        self.pause(self.leader())

    def pause_follower(self) -> None:
        self.pause(self.any_follower())

    def pause_two(self) -> None:
        self.pause(*self.draw.sample(self.cluster.alive, 2))

    def transfer(self) -> None:
        for _ in range(3):
            self.cluster.call(self.leader(), "transfer_leadership")

    def slow_sync(self) -> None:
        for id_ in self.draw.sample(self.cluster.alive, self.draw.randint(1, 3)):
            self.cluster.call(id_, "delay_next_sync", seconds=self.draw.choice((0.1, 0.7, 2.0)))

    def forge_marker(self) -> None:
        victim = self.draw.choice(self.cluster.alive)
        self.cluster.kill(victim)
        self.cluster.forge_marker(victim)
        self.restart(victim)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    with Cluster() as cluster:
        torture = Torture(cluster, arguments.seed)
        end = time.monotonic() + arguments.minutes * 60
        while time.monotonic() < end:
            torture.round()
            outcomes = Counter(write.outcome for write in cluster.history.writes)
            print(f"{sum(torture.done.values())} faults, {dict(outcomes)}, 0 lost", flush=True)
    print(f"faults: {dict(torture.done)}")


if __name__ == "__main__":
    sys.exit(main())
