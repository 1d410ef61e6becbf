"""The options of a run: all of them are drawn from its seed, and printed with it.

Not here: the effects of the options (world.py, network.py, nemesis.py, workload.py). Invariant: the same seed and
overrides give the same options on every machine, so a failing seed can be run again exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from random import Random
from typing import Any, Final

DISASTERS = 0.12
"""Share of the seeds with a disaster. It has its own draw, so the other seeds do not depend on it."""
BEATING = 0.25
"""Share of the seeds with nodes that beat, unless they have a disaster."""
UPGRADING = 0.06
"""Share of the seeds with upgrades, unless they have a disaster, hostile ones, nodes that beat, or watchers."""
MISTAKES = 0.7
"""Share of the disasters in which operators make a mistake first."""
INTERRUPTED = 0.5
"""Share of the disasters with a mistake in which a tool is interrupted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Times in simulated seconds, rates per simulated second, probabilities 0 to 1."""

    seed: int
    profile: str = ""
    """A name in PROFILES; "": no profile."""
    managers: int
    safety_seconds: float
    """The time during which faults are injected."""
    latency_min: float
    latency_max: float
    slow_link: float
    """Probability that a message takes up to 20 times longer."""
    slow_direction: float
    """Probability that a direction between two managers is up to 20 times slower for the whole run."""
    link_bytes_per_second: float
    """The bytes that each direction of a link carries; 0: no limit."""
    large_values: float
    """Probability that a put writes a value of many bytes."""
    value_bytes: int
    tick_seconds: float
    """The interval of a manager's steps when nothing happens."""
    clock_drift: float
    """The largest fraction by which a manager's clock runs faster or slower."""
    sync_min: float
    sync_max: float
    slow_sync: float
    """Probability that a log sync takes up to 2 s."""
    overrule_rate: float
    """A leader with a slow disk is cut off, goes on writing, and comes back while its disk is still writing."""
    late_messages: bool
    """Whether messages on a broken connection may still arrive, under its old number."""
    break_rate: float
    partition_rate: float
    partition_max: float
    crash_rate: float
    power_cut: float
    """Probability that a crash takes the page cache with it."""
    keep_pages: float
    """Probability that an unsynced page survives a power cut."""
    all_crash: float
    """Probability that a crash takes all managers at once."""
    pause_rate: float
    pause_max: float
    down_max: float
    disk_full_rate: float
    disk_error: float
    """Probability that EIO at a random file operation takes the place of a crash."""
    member_rate: float
    """Changes of members that operators begin."""
    founders_leave: float
    """Probability that any member may be removed; otherwise only one that was added."""
    operators: int
    """The most operators that change members at the same time."""
    abandon: float
    """Probability that an operator goes away before a change is answered."""
    damage: float
    """Probability that a bit of a crashed manager's log is flipped."""
    swap_rate: float
    """Two managers are stopped, and one is started on the directory of the other."""
    wipe: float
    """Probability that a crashed manager comes back with an empty directory, and is removed and added again."""
    minority_stays_down: float
    """Probability that as many members as may be lost are down for the whole liveness phase."""
    transfer_rate: float
    throw_rate: float
    """Two transfers of leadership, there and back, while one follower's answers are held back."""
    call_rate: float
    """Calls at each manager."""
    keys: int
    write_timeout: float
    leap_rate: float
    """A manager's clock leaps forward by 0.1 s to an hour."""
    file_fault_rate: float
    """One of the next file operations of a manager's log fails: no space is left, or the disk is bad."""
    replay: float
    """Probability that a message arrives again after its connection was replaced."""
    snapshot_after_bytes: int
    """The bytes by which the log grows before a snapshot is taken and the log is compacted."""
    chunk_bytes: int
    """The size of a snapshot's chunk; a small size makes many chunks."""
    sessions_max: int
    """The number of sessions that are remembered; with a small number, sessions in use are evicted."""
    wrong_state_rate: float
    """The state of a manager that runs becomes wrong, as by a bug, or by a flipped bit of its memory."""
    useless_snapshots: float
    """Probability that a manager whose state was made wrong cannot rebuild it from its own snapshots."""
    found_at_once: float
    """Probability that a state that was made wrong is found by a copy of it at once. Otherwise digests show it."""
    renewal_rate: float
    """The state of a manager that runs has to move to another file."""
    arrow_kill: float
    """Probability that a manager dies at one of the deadly arrows of this run, while its state is replaced (see
    raft/replacement.py)."""
    deadly_arrow: str = ""
    """The only deadly arrow; "": they are drawn."""
    hostile_rate: float
    """Acts of impostors, of programs that replay hellos, and of a hostile member (hostile.py)."""
    state_full_rate: float
    """The disk of a manager's state has no space left, for up to 3 s."""
    job_seconds: float
    """The longest time of a job on snapshots."""
    job_kill: float
    """Probability that a manager dies at some file operation of a job on snapshots."""
    rot: float
    """Probability that a crashed manager's newest snapshot, or its fetched file, is damaged."""
    idle: float
    """The longest time without a write before the power cut (blackout.py); 0: there is no such power cut."""
    disaster: float
    """Probability that all managers are lost after the safety phase, and operators restore or recover (disaster.py)."""
    mistake: float
    """Probability that the operators make a mistake first."""
    interrupted: float
    """If they make a mistake: the probability that a tool is interrupted at one of the members."""
    beat_nodes: int
    """Nodes that beat; 0: none, and no manager sends a message about beats."""
    node_death_rate: float
    """Nodes that stop to beat; most of them come back."""
    large_bytes: int
    """A command above this travels ahead of the log."""
    watchers: int
    """Programs that watch, with writers of containers beside them (watchers.py)."""
    upgrade_rate: float
    """Managers that are restarted with another release (upgrades.py); 0: all run the newest."""
    bulk_factor: float
    """Messages in the lane BULK take so many times as long, as on thin links."""

    def describe(self) -> str:
        return " ".join(
            f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in asdict(self).items()
        )


HANDOVERS: Final[Mapping[str, Any]] = {
    "managers": 3,
    "safety_seconds": 10.0,
    "pause_rate": 3.0,
    "pause_max": 0.6,
    "break_rate": 12.0,
    "throw_rate": 2.0,
    "transfer_rate": 3.0,
    "crash_rate": 0.0,
    "call_rate": 3.0,
}
"""Leadership is handed to and fro while links break and managers are suspended. A manager that goes on acts on messages
from before, in a cluster that has changed meanwhile."""
FETCHES: Final[Mapping[str, Any]] = {
    "managers": 3,
    "safety_seconds": 10.0,
    "call_rate": 30.0,
    "snapshot_after_bytes": 500,
    "chunk_bytes": 4096,
    "job_seconds": 0.02,
    "break_rate": 0.5,
    "crash_rate": 0.3,
    "down_max": 5.0,
}
"""Managers are away until the log is compacted, and fetch snapshots of many chunks over links that break."""
OPERATORS: Final[Mapping[str, Any]] = {
    "safety_seconds": 10.0,
    "member_rate": 2.0,
    "operators": 2,
    "founders_leave": 0.7,
    "abandon": 0.3,
    "transfer_rate": 0.3,
    "crash_rate": 0.2,
    "idle": 3.0,
}
"""The members change all the time, by two operators that do not wait for each other."""
REPLACEMENTS: Final[Mapping[str, Any]] = {
    **FETCHES,
    "link_bytes_per_second": 0.0,
    "large_values": 0.0,
    "crash_rate": 0.2,
    "job_seconds": 0.3,
    "job_kill": 0.0,
    "wrong_state_rate": 1.0,
    "useless_snapshots": 0.5,
    "found_at_once": 0.5,
    "renewal_rate": 1.0,
    "state_full_rate": 0.6,
    "arrow_kill": 0.7,
}
"""States are replaced all the time, for each reason, and managers die on the way."""
THIN_LINKS: Final = "thin links"
THIN: Final[Mapping[str, Any]] = {
    "managers": 3,
    "safety_seconds": 15.0,
    "latency_min": 0.001,
    "latency_max": 0.02,
    "slow_link": 0.0,
    "slow_direction": 0.0,
    "clock_drift": 0.0,
    "slow_sync": 0.0,
    "overrule_rate": 0.0,
    "break_rate": 0.0,
    "partition_rate": 0.0,
    "crash_rate": 0.0,
    "pause_rate": 0.0,
    "disk_full_rate": 0.0,
    "member_rate": 0.0,
    "swap_rate": 0.0,
    "transfer_rate": 0.0,
    "throw_rate": 0.0,
    "leap_rate": 0.0,
    "file_fault_rate": 0.0,
    "hostile_rate": 0.0,
    "state_full_rate": 0.0,
    "wrong_state_rate": 0.0,
    "renewal_rate": 0.0,
    "arrow_kill": 0.0,
    "link_bytes_per_second": 150e3,
    "large_values": 0.05,
    "value_bytes": 600_000,
    "call_rate": 1.0,
    "write_timeout": 60.0,
    "sessions_max": 1000,
    "job_kill": 0.0,
    "minority_stays_down": 0.0,
    "idle": 0.0,
    "disaster": 0.0,
}
"""Nothing fails, but a large write takes four seconds to a follower: four election timeouts."""
PROFILES: Final[Mapping[str, tuple[float, Mapping[str, Any]]]] = {
    "handovers": (0.05, HANDOVERS),
    "fetches": (0.04, FETCHES),
    "operators": (0.06, OPERATORS),
    THIN_LINKS: (0.02, THIN),
    "replacements": (0.04, REPLACEMENTS),
}
"""Name -> (share of the seeds, the options that are fixed in them). Independent draws bring these situations about too
seldom."""


def draw(seed: int) -> Options:
    """Draw calm, rough and terrible runs: each kind of fault is absent in a good part of the seeds."""
    random = Random(f"options {seed}")

    def sometimes(probability: float, low: float, high: float) -> float:
        return random.uniform(low, high) if random.random() < probability else 0.0

    latency = random.choice([0.0005, 0.002, 0.01, 0.05])
    sync = random.choice([0.0002, 0.001, 0.01])
    replacement = Random(f"replacement {seed}")
    beats = Random(f"beats {seed}")
    others = Random(f"hostile options {seed}")  # so that the other draws of a seed do not change
    options = Options(
        seed=seed,
        hostile_rate=others.uniform(0.3, 4.0) if others.random() < 0.15 else 0.0,
        managers=random.choice([3, 3, 3, 3, 5, 5, 4, 2, 1]),
        safety_seconds=random.uniform(2.0, 10.0),
        latency_min=latency * 0.2,
        latency_max=latency * random.choice([1.0, 5.0]),
        slow_link=sometimes(0.3, 0.0, 0.1),
        slow_direction=sometimes(0.3, 0.0, 0.4),
        link_bytes_per_second=random.choice([0.0] * 8 + [20e3, 200e3, 10e6]),
        large_values=sometimes(0.2, 0.0, 0.1),
        value_bytes=random.choice([2_000, 20_000, 100_000]),
        tick_seconds=random.choice([0.02, 0.02, 0.05]),
        clock_drift=random.choice([0.0, 0.001, 0.1]),
        sync_min=sync * 0.5,
        sync_max=sync * random.choice([1.0, 10.0]),
        slow_sync=sometimes(0.3, 0.0, 0.05),
        overrule_rate=sometimes(0.15, 0.05, 0.3),
        late_messages=random.random() < 0.5,
        break_rate=sometimes(0.6, 0.05, 1.0),
        partition_rate=sometimes(0.6, 0.05, 0.5),
        partition_max=random.uniform(0.5, 8.0),
        crash_rate=sometimes(0.7, 0.05, 0.5),
        power_cut=random.choice([0.0, 0.5, 1.0]),
        keep_pages=random.choice([0.0, 0.5, 0.9]),
        all_crash=sometimes(0.5, 0.0, 0.3),
        pause_rate=sometimes(0.4, 0.05, 0.3),
        pause_max=random.uniform(0.1, 4.0),
        down_max=random.uniform(0.1, 5.0),
        disk_full_rate=sometimes(0.2, 0.02, 0.2),
        disk_error=sometimes(0.2, 0.0, 0.3),
        member_rate=sometimes(0.5, 0.05, 0.6),
        founders_leave=random.choice([0.0, 0.6, 0.6]),
        operators=random.choice([1, 1, 2]),
        abandon=sometimes(0.4, 0.1, 0.6),
        damage=sometimes(0.25, 0.0, 0.5),
        swap_rate=sometimes(0.15, 0.05, 0.2),
        wipe=sometimes(0.3, 0.0, 0.3),
        minority_stays_down=random.choice([0.0, 0.0, 1.0]),
        transfer_rate=sometimes(0.4, 0.05, 0.5),
        throw_rate=sometimes(0.2, 0.05, 0.4),
        call_rate=random.choice([3.0, 10.0, 30.0]),
        keys=random.choice([1, 3, 8]),
        write_timeout=random.choice([0.5, 2.0, 5.0]),
        leap_rate=sometimes(0.3, 0.05, 0.3),
        file_fault_rate=sometimes(0.3, 0.05, 0.5),
        replay=sometimes(0.4, 0.0, 0.2),
        snapshot_after_bytes=random.choice([500, 4_000, 4_000, 16_000, 1 << 40, 1 << 40]),
        chunk_bytes=random.choice([4096, 16 * 1024, 256 * 1024]),
        sessions_max=random.choice([3, 6, 1000, 1000, 1000, 1000]),
        wrong_state_rate=sometimes(0.15, 0.05, 0.3),
        state_full_rate=sometimes(0.2, 0.05, 0.5),
        job_seconds=random.choice([0.0, 0.02, 0.5]),
        rot=sometimes(0.2, 0.0, 0.5),
        job_kill=sometimes(0.3, 0.0, 0.2),
        useless_snapshots=replacement.choice([0.0, 0.5]),
        found_at_once=replacement.choice([0.0, 0.5]),
        renewal_rate=replacement.choice([0.0, 0.0, 0.0, 0.1, 0.5]),
        arrow_kill=replacement.choice([0.0, 0.2, 0.7]),
        idle=sometimes(0.2, 2.0, 10.0),
        disaster=float(Random(f"disaster {seed}").random() < DISASTERS),
        mistake=MISTAKES,
        interrupted=INTERRUPTED,
        beat_nodes=beats.randrange(1, 5) if beats.random() < BEATING else 0,
        node_death_rate=beats.uniform(0.1, 0.6),
        large_bytes=Random(f"large {seed}").choice([0, 60, 1 << 40, 1 << 40]),
        upgrade_rate=0.0,
        watchers=Random(f"watchers of {seed}").choice([0, 0, 0, 3, 8]),
        bulk_factor=Random(f"bulk {seed}").choice([1.0, 10.0]),
    )
    chosen = random.random()
    for name, (share, fixed) in PROFILES.items():
        if 0.0 <= chosen < share:
            options = replace(options, profile=name, **fixed)
        chosen -= share
    if options.disaster or options.hostile_rate:
        return replace(options, beat_nodes=0)
    upgrades = Random(f"upgrades of {seed}")  # so that the other draws of a seed do not change
    if options.beat_nodes or options.watchers or options.profile == THIN_LINKS or upgrades.random() >= UPGRADING:
        return options
    return replace(options, upgrade_rate=upgrades.uniform(0.3, 2.0))
