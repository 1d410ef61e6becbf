"""The cost of TLS: the same managers with plaintext links and with TLS, in turns, on three managers of one machine.

    python benchmarks/tls.py [--rounds 4] [--seconds 3] [--containers 100000] [--directory DIR] [--json]

Two clusters of three processes each; one works while the other is idle. Measured: one caller, 64 callers, and a
follower that was away while all containers were written again, and fetches them as a snapshot. Each round measures
plaintext and then TLS, so other work on the machine disturbs both. The figures are medians of the rounds. Exits with 1
if a mark is missed.
"""

from __future__ import annotations

import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import common
import writes
from common import options, run, sync_ms, verdict, wait_for

from warren_raft.certificates import files as tls_files
from warren_raft.certificates.ca import Authority
from warren_raft.certificates.credentials import Credentials

KINDS = ("plaintext", "tls")
THREADS = 64
BATCH = 200
CUT_AFTER_BYTES = 100
"""Bytes for each container, while a follower is away. A container takes 400 bytes of log, so two snapshots are taken,
the log is compacted to the first one, and the follower gets a snapshot."""

MARKS = {
    "one caller: p50 more ms": 0.3,
    "64 callers: writes/s of plaintext's": 0.85,
    "catch-up: speed of plaintext's": 0.70,
}
"""The first value is the most, the others are the least."""


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=3.0, help="of load for each figure and round")
    parser.add_argument("--containers", type=int, default=100_000, help="of the catch-up; 0: none")
    run(
        parser,
        lambda directory, given: measure(directory, given.rounds, given.seconds, given.containers),
        table,
        is_missed=lambda figures: not all(is_met(name, figures) for name in MARKS if name in figures),
        manager=lambda settings: Manager(settings).run(),
    )


# The managers --------------------------------------------------------------------------------------------------------


class Manager(writes.Manager):
    def cut_often(self, often: bool) -> None:
        """Whether a snapshot is taken, and the log compacted, after snapshot_after_bytes, at any size of the state."""
        self.store._parts.opened.keeper.state_bytes = (lambda: 0) if often else (lambda: 1 << 60)

    def takes_a_snapshot(self) -> bool:
        return bool(self.store._parts.driver.engine._catchup._taking)


class Cluster(common.Cluster):
    """A cluster with links of one kind."""

    script = __file__

    def __init__(self, directory: Path, kind: str, snapshot_after_bytes: int = 32 * 1024 * 1024) -> None:
        self.kind = kind
        super().__init__(self.script, directory, admin=False, snapshot_after_bytes=snapshot_after_bytes)
        for manager in self.managers.values():
            assert manager.read() == "started"
        self.call_all("ready")
        self.call_all("cut_often", False)
        assert {state["links"] for state in self.call_all("state")} == {kind}

    def launch(self, id_: str) -> common.Process:
        self._settings["insecure_plaintext"] = self.kind == "plaintext"
        if self.kind == "tls" and not (self.directory / id_).exists():
            self._issue(id_)
        return super().launch(id_)

    def _issue(self, id_: str) -> None:
        place = self.directory / "ca"
        authority = Authority(place) if place.exists() else Authority.create(place)
        (self.directory / id_).mkdir(mode=0o700)
        files = authority.issue({id_: self.addresses[id_]})[0].files
        tls_files.install(self.directory / id_, files, check=partial(Credentials.load, node_id=id_))


# The figures ---------------------------------------------------------------------------------------------------------


def measure(directory: Path, rounds: int, seconds: float, containers: int) -> dict[str, Any]:
    figures: dict[str, Any] = {"rounds": rounds, "fdatasync_p50_ms": [sync_ms(directory)]}
    cut_after = CUT_AFTER_BYTES * containers
    with Cluster(directory, "plaintext", cut_after) as plaintext, Cluster(directory, "tls", cut_after) as tls:
        clusters = {"plaintext": plaintext, "tls": tls}
        figures |= write_figures(clusters, rounds, seconds)
        if containers:
            figures |= catch_up_figures(clusters, rounds, containers)
    figures["fdatasync_p50_ms"].append(sync_ms(directory))
    return figures


def write_figures(clusters: dict[str, Cluster], rounds: int, seconds: float) -> dict[str, Any]:
    one: dict[str, list[float]] = {kind: [] for kind in KINDS}
    many: dict[str, list[float]] = {kind: [] for kind in KINDS}
    leaders = {kind: cluster.managers[cluster.leader_and_follower()[0]] for kind, cluster in clusters.items()}
    for leader in leaders.values():
        leader.call("fill", writes.STORED, BATCH)
        leader.call("load", 8, min(1.0, seconds))  # warm
    for _ in range(rounds):
        for kind in KINDS:
            one[kind].append(leaders[kind].call("load", 1, seconds)["p50_ms"])
        for kind in KINDS:
            many[kind].append(leaders[kind].call("load", THREADS, seconds)["writes_per_second"])
    return {
        "one caller: p50 ms": one,
        "one caller: p50 more ms": round(middle(one["tls"]) - middle(one["plaintext"]), 3),
        "64 callers: writes/s": many,
        "64 callers: writes/s of plaintext's": round(middle(many["tls"]) / middle(many["plaintext"]), 3),
    }


def catch_up_figures(clusters: dict[str, Cluster], rounds: int, containers: int) -> dict[str, Any]:
    took: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(rounds):
        for kind in KINDS:
            away = leave_behind(clusters[kind], containers)
            took[kind].append(catch_up(clusters[kind], away))
    return {
        "catch-up: s": took,
        "catch-up: speed of plaintext's": round(middle(took["plaintext"]) / middle(took["tls"]), 3),
    }


def leave_behind(cluster: Cluster, containers: int) -> str:
    """End a follower. Then write all containers again, and some more until the log is compacted.

    This is done again each time: a follower that came back with an older copy of its directory would be refused,
    because it would have lost acknowledged entries.
    """
    leader_id, away = cluster.leader_and_follower()
    leader = cluster.managers[leader_id]
    cluster.managers.pop(away).end()
    behind = leader.call("state")["applied_index"]
    cluster.call_all("cut_often", True)
    leader.call("fill", containers, BATCH)

    def is_cut() -> bool:
        state = leader.call("state")
        if state["applied_index"] - state["log_entries"] > behind:
            return True
        if not leader.call("takes_a_snapshot"):
            leader.call("fill", BATCH, BATCH)
        return False

    wait_for(is_cut, "the log to be cut", lambda: cluster.call_all("state"))
    cluster.call_all("cut_often", False)
    wait_for(lambda: not any(cluster.call_all("takes_a_snapshot")), "the last snapshot")
    return away


def catch_up(cluster: Cluster, away: str) -> float:
    """Seconds from the start of the manager until it has the leader's state."""
    leader = cluster.managers[cluster.leader_and_follower()[0]]
    follower = cluster.launch(away)
    assert follower.read() == "started"
    begin = time.monotonic()

    def is_level() -> bool:
        return bool(follower.call("state")["applied_index"] >= leader.call("state")["applied_index"])

    wait_for(is_level, f"{away} to catch up", lambda: cluster.call_all("state"))
    seconds = time.monotonic() - begin
    follower.call("cut_often", False)
    return round(seconds, 3)


def middle(values: list[float]) -> float:
    return statistics.median(values)


def is_met(name: str, figures: dict[str, Any]) -> bool:
    mark = MARKS[name]
    return bool(figures[name] <= mark if name.startswith("one") else figures[name] >= mark)


def table(figures: dict[str, Any]) -> str:
    lines = []
    for name, value in figures.items():
        if isinstance(value, dict):
            lines += [f"{name:<40}{kind:>10}  {' '.join(map(str, value[kind]))}" for kind in KINDS]
        else:
            sign = "<=" if name.startswith("one") else ">="
            shown = f"  {verdict(is_met(name, figures), f'{sign} {MARKS[name]}')}" if name in MARKS else ""
            lines.append(f"{name:<40}{value}{shown}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
