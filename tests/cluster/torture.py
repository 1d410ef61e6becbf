"""Faults without end against a cluster of real processes under load: `python -m tests.cluster.torture --minutes 10`.

Faults are drawn from a seed; what the machine makes of them is not repeatable. After every few of them the load stops,
the managers must converge, and each must hold what its callers were told (checkers.py). A failure ends it, with 1.
Invariant: a fault is ended before the next check, so what is demanded then can be had.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from tests.cluster.harness import Cluster, ManagerDied, ManagerError, free_ports

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
            self.wipe_follower,
            self.move_follower,
            self.kill_the_leader_of_a_change,
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

    def wipe_follower(self) -> None:
        """Its directory is lost; as the refusal says, it is removed and added again."""
        follower = self.any_follower()
        self.cluster.kill(follower)
        shutil.rmtree(self.cluster.data_dir(follower))
        self.cluster.start(follower, ready=False)
        self.change("remove_member", id=follower)
        self.change("add_member", id=follower, address=self.cluster.addresses[follower])
        self.cluster.wait_ready(follower)
        self.load(follower)

    def move_follower(self) -> None:
        follower = self.any_follower()
        self.cluster.kill(follower)
        address = self.cluster.addresses[follower] = f"127.0.0.1:{free_ports(1)[0]}"
        self.change("update_member", id=follower, address=address)
        self.restart(follower)

    def kill_the_leader_of_a_change(self) -> None:
        """A fourth member is being added, or removed, when the leader dies; whoever asked asks again."""
        leader = self.leader()
        self.cluster.add_blank("m4")
        asked = self.cluster.ask(
            self.any_of_three(), "add_member", id="m4", address=self.cluster.addresses["m4"], timeout=20.0
        )
        self.cluster.wait_acknowledged(self.draw.choice((1, 5, 20)))
        self.kill_and_restart(leader)
        with contextlib.suppress(ManagerError, ManagerDied):
            asked.result(60)
        self.change("add_member", id="m4", address=self.cluster.addresses["m4"])
        self.load("m4")
        self.cluster.wait_acknowledged(10, "m4")
        asked = self.cluster.ask(self.any_of_three(), "remove_member", id="m4", timeout=20.0)
        self.kill_and_restart(self.leader_of_three())
        with contextlib.suppress(ManagerError, ManagerDied):
            asked.result(60)
        self.change("remove_member", id="m4")
        self.cluster.kill("m4")
        shutil.rmtree(self.cluster.data_dir("m4"))

    def any_of_three(self) -> str:
        return self.draw.choice([id_ for id_ in self.cluster.alive if id_ != "m4"])

    def leader_of_three(self) -> str:
        leader = self.leader()
        return leader if leader != "m4" else self.any_of_three()

    def change(self, command: str, **arguments: Any) -> None:
        """As an operator would: again, when the leader is lost meanwhile; safe, since asking twice is harmless."""
        for attempt in range(5):
            try:
                self.cluster.call(self.any_of_three(), command, timeout=20.0, **arguments)
            except ManagerError as error:
                if error.kind != "Unavailable" or attempt == 4:
                    raise
            else:
                return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the cluster ends, however this is ended
    with Cluster() as cluster:
        cluster.allowed_in_logs.append("m4 was removed from the cluster")
        torture = Torture(cluster, arguments.seed)
        end = time.monotonic() + arguments.minutes * 60
        while time.monotonic() < end:
            torture.round()
            outcomes = Counter(write.outcome for write in cluster.history.writes)
            print(f"{sum(torture.done.values())} faults, {dict(outcomes)}, 0 lost", flush=True)
    print(f"faults: {dict(torture.done)}")


if __name__ == "__main__":
    sys.exit(main())
