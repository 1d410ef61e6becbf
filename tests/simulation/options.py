"""What one seed means: every option of a run, drawn from it and printed with it.

Not here: what the options do (world.py, network.py, nemesis.py, workload.py). Invariant: the same seed and overrides
give the same options on every machine, so a failing seed can be run again exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from random import Random
from typing import Any, Final

DISASTERS = 0.12
"""Share of the seeds in which there is one. Drawn by itself, so the other seeds are what they would be without."""
MISTAKES = 0.7
"""Of the disasters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Times in simulated seconds, rates per simulated second, probabilities 0 to 1."""

    seed: int
    managers: int
    safety_seconds: float
    """How long faults are injected."""
    latency_min: float
    latency_max: float
    slow_link: float
    """Probability that a message takes up to 20 times longer."""
    slow_direction: float
    """Probability that a direction between two managers is up to 20 times slower for the whole run."""
    tick_seconds: float
    """How often a manager steps when nothing happens."""
    clock_drift: float
    """How much faster or slower a manager's clock runs, at most."""
    sync_min: float
    sync_max: float
    slow_sync: float
    """Probability that a log sync takes up to 2 s."""
    late_messages: bool
    """Whether what was on a broken connection may still arrive, under its old number."""
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
    """Probability that a crash is one by EIO at a random file operation."""
    member_rate: float
    damage: float
    """Probability that a bit of a crashed manager's log is flipped."""
    swap_rate: float
    """Two managers are stopped and one is started on the other's directory."""
    wipe: float
    """Probability that a crashed manager comes back with an empty directory, and is removed and added again."""
    minority_stays_down: float
    """Probability that as many members as may fail are down for the whole liveness phase."""
    transfer_rate: float
    throw_rate: float
    """Two transfers in short order, there and back, with one follower's answers held back."""
    call_rate: float
    """Calls per manager."""
    keys: int
    write_timeout: float
    leap_rate: float
    """A manager's clock leaps forward by 0.1 s to an hour."""
    file_fault_rate: float
    """One of the next file operations of a manager's log fails, for want of room or for a bad disk."""
    replay: float
    """Probability that a message that arrived does so again when its connection has been replaced."""
    snapshot_after_bytes: int
    """How much the log grows before a snapshot is taken and the log is cut."""
    job_seconds: float
    """How long a job on snapshots takes, at most."""
    job_kill: float
    """Probability that a manager dies at some file operation of a job on snapshots."""
    rot: float
    """Probability that a crashed manager's newest snapshot, or what it has fetched, is damaged."""
    disaster: float
    """Probability that all is lost after the safety phase, and operators restore or recover (disaster.py)."""
    mistake: float
    """Probability that they make a mistake first."""
    large_bytes: int
    """A command above this travels ahead of the log."""
    bulk_factor: float
    """How many times longer it takes what nobody waits for to arrive, as large messages do on thin links."""

    def describe(self) -> str:
        return " ".join(
            f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in asdict(self).items()
        )


HANDOVERS_SHARE: Final = 0.05
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
"""Leadership is handed to and fro while links break and managers pause: what one of them was told before it paused
meets what happened meanwhile. Independent draws bring it about too seldom."""


def draw(seed: int) -> Options:
    """Calm, rough and terrible runs alike: each kind of fault is absent in a good part of the seeds."""
    random = Random(f"options {seed}")

    def sometimes(probability: float, low: float, high: float) -> float:
        return random.uniform(low, high) if random.random() < probability else 0.0

    latency = random.choice([0.0005, 0.002, 0.01, 0.05])
    sync = random.choice([0.0002, 0.001, 0.01])
    options = Options(
        seed=seed,
        managers=random.choice([3, 3, 3, 5, 1]),
        safety_seconds=random.uniform(2.0, 10.0),
        latency_min=latency * 0.2,
        latency_max=latency * random.choice([1.0, 5.0]),
        slow_link=sometimes(0.3, 0.0, 0.1),
        slow_direction=sometimes(0.3, 0.0, 0.4),
        tick_seconds=random.choice([0.02, 0.02, 0.05]),
        clock_drift=random.choice([0.0, 0.001, 0.1]),
        sync_min=sync * 0.5,
        sync_max=sync * random.choice([1.0, 10.0]),
        slow_sync=sometimes(0.3, 0.0, 0.05),
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
        member_rate=sometimes(0.4, 0.05, 0.3),
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
        job_seconds=random.choice([0.0, 0.02, 0.5]),
        rot=sometimes(0.2, 0.0, 0.5),
        job_kill=sometimes(0.3, 0.0, 0.2),
        disaster=float(Random(f"disaster {seed}").random() < DISASTERS),
        mistake=MISTAKES,
        large_bytes=Random(f"large {seed}").choice([0, 60, 1 << 40, 1 << 40]),
        bulk_factor=Random(f"bulk {seed}").choice([1.0, 10.0]),
    )
    return replace(options, **HANDOVERS) if random.random() < HANDOVERS_SHARE else options
