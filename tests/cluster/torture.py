"""Faults without end against a cluster of real processes under load: `scripts/torture.sh --minutes 10`.

Faults are drawn from a seed, but their course on a real machine is not repeatable. After every few faults the load
stops, the managers must converge, and the state of each must agree with the callers' answers (checkers.py). A cluster
ends with the loss of all managers and a restore, half of the time with a mistake first. A failure ends the run, with 1.
Invariant: each fault ends before the next check, so that the check can demand a working cluster.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.cluster.harness import WAIT_SECONDS, Cluster, ManagerDied, ManagerError, free_ports
from warren_raft.recovery.restore import restore

FAULTS_A_ROUND: Final = 6
WRITES_BETWEEN: Final = 40
TIMEOUTS_SECONDS: Final = (0.3, 2.0, 20.0)
"""The writers' timeouts. Some writers give up early, so that their answers are tested too."""
ROUNDS_A_CLUSTER: Final = 8
"""After these rounds there is a new cluster: each check judges all writes of a cluster, so long histories cost more and
more."""
MINUTES: Final = 1.0
HOLD_SECONDS: Final = (0.2, 1.0, 2.5, 6.0)
"""The time of a fault that has no end of its own: less or more than an election takes."""

REJOIN: Final = (
    "none of its snapshots can be used: move the data directory of ",
    "differs from the majority's whenever it is rebuilt",
    "this manager must not vote with a part of its log: move the data directory of ",
    "this manager cannot vote with the rest of its log: move the data directory of ",
)
"""The errors of a manager that cannot go on with its damaged files."""


@dataclass
class Tally:
    """The faults and the results of all clusters of a run."""

    began: float = field(default_factory=time.monotonic)
    clusters: int = 0
    kills: int = 0
    refused: int = 0
    """Managers that could not start because of damaged files, and that joined again."""
    faults: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[str] = field(default_factory=Counter)

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.began

    def add(self, cluster: Cluster) -> None:
        """Add a cluster that has ended and has passed all its checks."""
        self.clusters += 1
        self.outcomes.update(write.outcome for write in cluster.history.writes)
        self.verdicts.update(cluster.verdicts)

    def __str__(self) -> str:
        """A tally never shows lost or doubled writes, because the first such write ends the run."""
        lines = [
            f"elapsed: {self.elapsed:.0f} s, {self.clusters} clusters",
            f"kills: {self.kills}, refused and joined again: {self.refused}",
            f"faults: {self.faults.total()}",
            *(f"    {name}: {count}" for name, count in sorted(self.faults.items())),
            f"writes acknowledged: {self.outcomes['ok']}, lost: 0, doubled: 0",
            f"    conflicts: {self.outcomes['conflict']}, not done: {self.outcomes['nothing']}, "
            f"unknown: {self.outcomes['unknown']}, reads: {self.outcomes['read']}",
            f"histories linearizable: {self.verdicts['linearizable']}, not decided: {self.verdicts['not decided']}",
        ]
        return "\n".join(lines)


class Torture:
    """One cluster and its faults."""

    def __init__(self, cluster: Cluster, draw: random.Random, tally: Tally, only: str = "") -> None:
        self.cluster = cluster
        self.draw = draw
        self.tally = tally
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
            self.full_disk,
            self.forge_marker,
            self.wipe_follower,
            self.move_follower,
            self.kill_the_leader_of_a_change,
            self.cut_leader_off,
            self.cut_follower_off,
            self.cut_all_off,
            self.cut_link,
            self.cut_link_one_way,
            self.cut_leader_off_again_and_again,
            self.cut_leader_off_and_kill,
            self.deaf_leader,
            self.mute_leader,
            self.slow_links,
            self.thin_link,
            self.away_until_the_log_is_cut,
            self.kill_the_fetching_follower,
            self.kill_the_sending_leader,
            self.rotten_snapshot,
            self.snapshots_deleted,
            self.rotten_state,
            self.rotten_log,
        ]
        self.faults = [fault for fault in self.faults if only in fault.__name__]
        if not self.faults:
            raise ValueError(f"there is no fault with {only!r} in its name")
        self._deck = self._shuffled()

    def _shuffled(self) -> Iterator[Callable[[], None]]:
        """All faults in a random order, then all of them in another random order, and so on."""
        while True:
            yield from self.draw.sample(self.faults, len(self.faults))

    def round(self, is_enough: Callable[[], bool]) -> None:
        """Some faults under load (fewer if `is_enough`), then the check."""
        cluster = self.cluster
        self.load(*cluster.alive)
        for fault in itertools.islice(self._deck, FAULTS_A_ROUND):
            self.tally.faults[fault.__name__] += 1
            cluster.wait_acknowledged(WRITES_BETWEEN)
            before = cluster.kills
            fault()
            self.tally.kills += cluster.kills - before
            if is_enough():
                break
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
        for id_ in ids:
            self.cluster.pause(id_)
        self.hold()
        for id_ in ids:
            self.cluster.resume(id_)

    def hold(self) -> None:
        end = time.monotonic() + self.draw.choice(HOLD_SECONDS)
        self.cluster.wait(lambda: time.monotonic() >= end, "the end of a fault")

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

    def full_disk(self) -> None:
        """The disk of one manager's log is full. The others go on; if it was the leader's, under another leader."""
        victim = self.draw.choice(self.cluster.alive)
        self.cluster.call(victim, "fill_disk")
        self.cluster.wait_acknowledged(WRITES_BETWEEN, *self.others(victim))
        self.hold()
        self.cluster.call(victim, "make_room")
        self.cluster.wait(lambda: not self.says(victim, "no space left for the log"), "the alarm of a full disk to end")

    def forge_marker(self) -> None:
        victim = self.draw.choice(self.cluster.alive)
        self.cluster.kill(victim)
        self.cluster.forge_marker(victim)
        self.restart(victim)

    def wipe_follower(self) -> None:
        """A follower loses its directory; it is removed and added again, as the refusal says."""
        follower = self.any_follower()
        self.cluster.kill(follower)
        self.rejoin(follower)

    def move_follower(self) -> None:
        follower = self.any_follower()
        self.cluster.kill(follower)
        address = self.cluster.addresses[follower] = f"127.0.0.1:{free_ports(1)[0]}"
        self.change("update_member", id=follower, address=address)
        self.restart(follower)

    def kill_the_leader_of_a_change(self) -> None:
        """The leader dies while a fourth member is added or removed; the operator asks again."""
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

    # Snapshots, and damaged files

    def left_behind(self) -> tuple[str, int]:
        """A follower that is down, and for which no manager has the necessary log any more."""
        follower = self.any_follower()
        return follower, self.cluster.leave_behind(follower)

    def fetching(self) -> str:
        """A follower that usually is in the middle of a fetch; the fetch may have ended already."""
        follower, index = self.left_behind()
        self.cluster.slow_links(follower, delay_seconds=self.draw.choice((0.0, 0.002, 0.005)))
        self.cluster.start(follower, ready=False)
        part = self.draw.choice((0.0, 0.5, 0.95))

        def far_enough() -> bool:
            status = self.cluster.status(follower)
            fetching = status["fetching"]
            is_there = status["applied_index"] > index
            return is_there or (fetching is not None and fetching["bytes"] >= part * fetching["of"])

        self.cluster.wait(far_enough, "the fetch")
        return follower

    def away_until_the_log_is_cut(self) -> None:
        follower, _ = self.left_behind()
        self.restart(follower)

    def kill_the_fetching_follower(self) -> None:
        follower = self.fetching()
        self.cluster.kill(follower)
        self.cluster.heal()
        self.restart(follower)

    def kill_the_sending_leader(self) -> None:
        follower = self.fetching()
        leader = self.leader()
        self.cluster.kill(leader)
        self.cluster.heal()
        self.restart(leader)
        self.cluster.wait_ready(follower)
        self.load(follower)

    def rotten_snapshot(self) -> None:
        """Flip a bit of the newest snapshot. It is noticed when the snapshot is sent, or when a state is made of it."""
        victim = self.draw.choice(self.cluster.alive)
        self.cluster.kill(victim)
        for snapshot in self.cluster.snapshots_of(victim)[:1]:
            self.cluster.flip_bit(snapshot, self.draw)
        if self.draw.random() < 0.5 and self.cluster.is_unsynced(victim):
            self.cluster.forge_marker(victim)
        self.restart_or_rejoin(victim)

    def snapshots_deleted(self) -> None:
        """Delete all snapshots of a manager. If its state is gone too, only a whole log can rebuild the state."""
        victim = self.draw.choice(self.cluster.alive)
        self.cluster.kill(victim)
        for snapshot in self.cluster.snapshots_of(victim):
            snapshot.unlink()
        if self.draw.random() < 0.5 and self.cluster.is_unsynced(victim):
            self.cluster.forge_marker(victim)
        self.restart_or_rejoin(victim)

    def rotten_state(self) -> None:
        """Flip a bit anywhere in the state file of a stopped manager: the seal shows it."""
        victim = self.draw.choice(self.cluster.alive)
        self.cluster.stop(victim)
        self.cluster.flip_bit(self.cluster.state_of(victim) / f"{self.cluster.generation(victim)}.mdb", self.draw)
        self.restart_or_rejoin(victim)

    def rotten_log(self) -> None:
        """Flip a bit in a log. The log is refused, or the bit is not read any more; no wrong entry is ever read."""
        victim = self.draw.choice(self.cluster.alive)
        self.cluster.kill(victim)
        segments = sorted((self.cluster.data_dir(victim) / "log").iterdir())
        self.cluster.flip_bit(self.draw.choice(segments), self.draw)
        self.restart_or_rejoin(victim)

    def restart_or_rejoin(self, victim: str) -> None:
        """A manager that refuses to start says that it has to be removed, emptied and added again. Do that."""
        opened = self.cluster.launch(victim).opened.exception(WAIT_SECONDS)
        if opened is None:
            self.cluster.wait_ready(victim)
            self.load(victim)
            return
        assert isinstance(opened, ManagerError), f"{victim} died: {opened!r}"
        assert opened.kind == "Corrupted", opened
        assert any(remedy in opened.text for remedy in REJOIN), opened
        self.cluster.refused(victim)
        self.tally.refused += 1
        self.rejoin(victim)

    def rejoin(self, id_: str) -> None:
        """Empty the directory of a stopped manager, start it, remove it and add it."""
        shutil.rmtree(self.cluster.data_dir(id_))
        self.cluster.start(id_, ready=False)
        self.change("remove_member", id=id_)
        self.change("add_member", id=id_, address=self.cluster.addresses[id_])
        self.cluster.wait_ready(id_)
        self.load(id_)

    # The end: all managers are lost

    def disaster(self) -> None:
        """Restore one manager's saved snapshot into all managers. Half of the time restore it into some of them first,
        and start the others as they were: no member of one cluster may take a member of the other for its own."""
        cluster, ids = self.cluster, list(self.cluster.members)
        cluster.wait_converged()
        before, old = cluster.call(ids[0], "dump"), cluster.status(ids[0])["cluster_id"]
        file = cluster.directory / "saved"
        revision = cluster.call(self.draw.choice(ids), "snapshot", path=str(file))
        assert revision == before["revision"]
        self.kill_for_good(*ids)
        mistaken = self.draw.sample(ids, self.draw.choice((0, 0, 1, 2)))
        self.restore(file, *mistaken)
        if mistaken:
            self.tally.faults["restored in part"] += 1
            self.start_apart(mistaken, [id_ for id_ in ids if id_ not in mistaken])
        self.restore(file, *(id_ for id_ in ids if id_ not in mistaken))
        self.tally.faults["restored"] += 1
        cluster.start(*ids)
        for id_ in ids:
            dump, status = cluster.call(id_, "dump"), cluster.status(id_)
            assert status["cluster_id"] != old, f"{id_} is of the old cluster"
            assert dump.pop("revision") > revision, f"{id_}: a new revision can be taken for an old one"
            assert dump == {name: value for name, value in before.items() if name != "revision"}, id_
        cluster.call(self.draw.choice(ids), "put", key="after the restore", value="x")
        cluster.wait_converged()

    def says(self, id_: str, text: str) -> bool:
        return any(text in alarm["text"] for alarm in self.cluster.status(id_)["alarms"])

    def kill_for_good(self, *ids: str) -> None:
        self.cluster.kill(*ids)
        self.tally.kills += len(ids)

    def restore(self, file: Path, *ids: str) -> None:
        members = {id_: self.cluster.addresses[id_] for id_ in self.cluster.members}
        for id_ in ids:
            restore(file, self.cluster.data_dir(id_), node_id=id_, members=members, move_aside=True)

    def start_apart(self, restored: list[str], others: list[str]) -> None:
        """Two members of the old cluster are a majority of it. A single one finds out and stops. The restored managers
        wait."""
        self.cluster.start(*restored, *others, ready=False)
        if len(others) == 2:
            self.cluster.wait_ready(*others)
        else:
            self.cluster.wait(lambda: self.cluster.status(others[0])["failure"], "the old member to find out")
        for id_ in restored:
            self.cluster.wait(lambda id_=id_: self.says(id_, "to be restored from the same file"), f"{id_} to say so")
            assert not self.cluster.status(id_)["ready"], f"{id_} is ready, and not all are restored"
        self.kill_for_good(*restored, *others)

    # The network: managers that are not cut off must go on

    def others(self, id_: str) -> list[str]:
        return [other for other in self.cluster.alive if other != id_]

    def cut_off(self, id_: str) -> None:
        self.cluster.isolate(id_)
        self.cluster.wait_acknowledged(WRITES_BETWEEN, *self.others(id_))

    def cut_leader_off(self) -> None:
        self.cut_off(self.leader())
        self.hold()
        self.cluster.heal()

    def cut_follower_off(self) -> None:
        self.cut_off(self.any_follower())
        self.hold()
        self.cluster.heal()

    def cut_all_off(self) -> None:
        self.cluster.split(*([id_] for id_ in self.cluster.alive))
        self.hold()
        self.cluster.heal()

    def cut_link(self) -> None:
        self.cluster.cut(*self.draw.sample(self.cluster.alive, 2))
        self.cluster.wait_acknowledged(WRITES_BETWEEN)
        self.hold()
        self.cluster.heal()

    def cut_link_one_way(self) -> None:
        self.cluster.cut_one_way(*self.draw.sample(self.cluster.alive, 2))
        self.cluster.wait_acknowledged(WRITES_BETWEEN)
        self.hold()
        self.cluster.heal()

    def cut_leader_off_again_and_again(self) -> None:
        """Held bytes arrive each time, and each time they are older than the changes meanwhile."""
        for _ in range(4):
            self.cut_off(self.leader())
            self.cluster.heal()

    def cut_leader_off_and_kill(self) -> None:
        """The majority goes on without the old leader, and one of its managers is killed. Only one manager then has
        the acknowledged writes, and the old leader, with another log, must follow it."""
        leader = self.leader()
        others = self.others(leader)
        self.cluster.isolate(leader)
        self.cluster.wait_acknowledged(WRITES_BETWEEN, *others)
        victim = self.draw.choice(others)
        self.cluster.kill(victim)
        self.cluster.heal()
        self.cluster.wait_acknowledged(WRITES_BETWEEN)
        self.restart(victim)

    def deaf_leader(self) -> None:
        """The others hear the leader, and the leader hears no manager. So it must notice by itself that it has no
        majority."""
        leader = self.leader()
        for other in self.others(leader):
            self.cluster.cut_one_way(other, leader)
        self.cluster.wait_acknowledged(WRITES_BETWEEN, *self.others(leader))
        self.cluster.heal()

    def mute_leader(self) -> None:
        leader = self.leader()
        for other in self.others(leader):
            self.cluster.cut_one_way(leader, other)
        self.cluster.wait_acknowledged(WRITES_BETWEEN, *self.others(leader))
        self.cluster.heal()

    def slow_links(self) -> None:
        whose = self.draw.sample(self.cluster.alive, self.draw.randint(1, 3))
        self.cluster.slow_links(*whose, delay_seconds=self.draw.uniform(0.02, 0.2))
        self.hold()
        self.cluster.heal()

    def thin_link(self) -> None:
        self.cluster.slow_links(
            self.draw.choice(self.cluster.alive), bytes_per_second=self.draw.choice((2e3, 2e4, 2e5))
        )
        self.hold()
        self.cluster.heal()

    # Members

    def any_of_three(self, *, but: str = "") -> str:
        return self.draw.choice([id_ for id_ in self.cluster.alive if id_ not in ("m4", but)])

    def leader_of_three(self) -> str:
        leader = self.leader()
        return leader if leader != "m4" else self.any_of_three()

    def change(self, command: str, **arguments: Any) -> None:
        """Make a change like an operator: through another manager than the changed one, which may have no links; and
        again, if the leader is lost meanwhile, because it is harmless to ask twice."""
        for attempt in range(5):
            try:
                asked = self.any_of_three(but=arguments["id"])
                self.cluster.call(asked, command, timeout=20.0, **arguments)
            except ManagerError as error:
                if error.kind != "Unavailable" or attempt == 4:
                    raise
            else:
                return


def run(seed: int, *, minutes: float | None = None, kills: int | None = None, only: str = "") -> Tally:
    """Run until the time is over or the kills are done. `only`: faults with this text in their names. AssertionError: a
    promise was broken; the managers' files are kept, and a line says where."""
    draw, tally = random.Random(seed), Tally()
    seconds = float("inf") if minutes is None else minutes * 60
    wanted = float("inf") if kills is None else kills

    def is_enough() -> bool:
        return tally.elapsed >= seconds or tally.kills >= wanted

    while not is_enough():
        with Cluster(network=True, compaction=True) as cluster, kept_if_it_fails(cluster, seed):
            cluster.allowed_in_logs += ["m4 was removed from the cluster", "start it among its own members"]
            torture = Torture(cluster, draw, tally, only)
            for _ in range(ROUNDS_A_CLUSTER):
                if not is_enough():
                    torture.round(is_enough)
                    print(
                        f"{tally.elapsed:.0f} s: {tally.faults.total()} faults, {tally.kills} kills, "
                        f"{cluster.history.acknowledged()} acknowledged by this cluster, all there",
                        flush=True,
                    )
            torture.disaster()
            tally.add(cluster)
    return tally


@contextlib.contextmanager
def kept_if_it_fails(cluster: Cluster, seed: int) -> Iterator[None]:
    """Keep data, logs and journals of a cluster that broke a promise."""
    try:
        yield
    except Exception:
        kept = Path(tempfile.mkdtemp(prefix="warren-raft-torture-")) / "cluster"
        for process in cluster.processes.values():
            process.signal(signal.SIGSTOP)  # so that files do not change while they are copied
        shutil.copytree(cluster.directory, kept, ignore=shutil.ignore_patterns("*.sock"))
        print(f"FAILED with seed {seed}; the managers' files are in {kept}", flush=True)
        raise


def main() -> None:
    parser = argparse.ArgumentParser(prog="torture.sh", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, help=f"end after so long (default: {MINUTES:g} without --kills)")
    parser.add_argument("--kills", type=int, help="end after so many SIGKILLs of managers")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32), help="of the faults")
    parser.add_argument("--only", default="", help="faults with this in their name, such as kill, cut or pause")
    arguments = parser.parse_args()
    minutes = MINUTES if arguments.minutes is None and arguments.kills is None else arguments.minutes
    print(f"seed {arguments.seed}", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the cluster ends, however this is ended
    print(run(arguments.seed, minutes=minutes, kills=arguments.kills, only=arguments.only))


if __name__ == "__main__":
    sys.exit(main())
