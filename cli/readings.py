"""Two readings of a manager's status and metrics, and what follows from them: writes a second, p99 of each stage.

Not here: asking the manager (admin/client.py), showing (top.py). Invariant: a number that the two readings do not give
is None, never a guess.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

STAGES: Final[Mapping[str, str]] = {
    "write": "warren_raft_commit_duration_seconds",
    "sync": "warren_raft_sync_duration_seconds",
    "apply": "warren_raft_apply_duration_seconds",
}
"""The stages of a write on this manager, and the metric with the time of each. `write` is all of a write of this
manager's own callers."""
WRITE_STAGES: Final = "warren_raft_write_stage_duration_seconds"
"""The metric with the time of each stage of single writes, which follow each other (docs/metrics.md)."""
Histogram = Sequence[tuple[float, float]]
"""(upper bound in seconds, how many durations were at most this long), in the order of the bounds; the last bound is
infinite."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A manager at one moment."""

    at: float
    """In seconds, by a monotonic clock."""
    status: Mapping[str, Any]
    histograms: Mapping[str, Histogram]
    """By stage; without a stage for which the manager has no metric."""
    write_stages: Mapping[str, Histogram] = field(default_factory=dict)
    """By stage of a single write, in their order."""


def histograms_in(page: str) -> dict[str, Histogram]:
    """The histogram of each stage, from the text of /metrics. Raises ValueError for another text."""
    from prometheus_client.parser import text_string_to_metric_families

    families = {family.name: family for family in text_string_to_metric_families(page)}
    found: dict[str, Histogram] = {}
    for stage, name in STAGES.items():
        samples = families[name].samples if name in families else []
        buckets = [(float(each.labels["le"]), each.value) for each in samples if each.name == f"{name}_bucket"]
        if buckets:
            found[stage] = sorted(buckets)
    return found


def write_stages_in(page: str) -> dict[str, Histogram]:
    """The histogram of each stage of single writes. Raises ValueError for another text."""
    from prometheus_client.parser import text_string_to_metric_families

    found: dict[str, list[tuple[float, float]]] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name == f"{WRITE_STAGES}_bucket":
                found.setdefault(sample.labels["stage"], []).append((float(sample.labels["le"]), sample.value))
    return {stage: sorted(buckets) for stage, buckets in found.items()}


def began_again(before: Reading, after: Reading) -> bool:
    """Whether the manager was started again in between. Not noticed of an earlier release, which has no uptime."""
    uptimes = [reading.status.get("uptime_seconds", 0.0) for reading in (before, after)]
    return bool(uptimes[1] < uptimes[0])


def changes_per_second(before: Reading, after: Reading) -> float | None:
    """Changes of the state a second, from all managers' callers. None after a restart."""
    changes: int = after.status["revision"] - before.status["revision"]
    seconds = after.at - before.at
    return changes / seconds if changes >= 0 and seconds > 0 else None


def quantiles(before: Reading, after: Reading, quantile: float) -> dict[str, float | None]:
    """The quantile of each stage in seconds, between two readings; None where nothing was measured."""
    return _quantiles(before.histograms, after.histograms, quantile)


def write_stage_quantiles(before: Reading, after: Reading, quantile: float) -> dict[str, float]:
    """The same for the stages of single writes, without those that no write had: `followers` on a follower."""
    found = _quantiles(before.write_stages, after.write_stages, quantile)
    return {stage: value for stage, value in found.items() if value is not None}


def _quantiles(
    before: Mapping[str, Histogram], after: Mapping[str, Histogram], quantile: float
) -> dict[str, float | None]:
    return {
        stage: quantile_of(before[stage], histogram, quantile) for stage, histogram in after.items() if stage in before
    }


def quantile_of(before: Histogram, after: Histogram, quantile: float) -> float | None:
    """The quantile of the durations that `after` has and `before` has not, by a straight line within its bucket. In
    the last bucket it is the last finite bound. None if there are none, or the counters began again."""
    if [bound for bound, _ in before] != [bound for bound, _ in after]:
        return None
    counts = [count - earlier for (_, count), (_, earlier) in zip(after, before, strict=True)]
    if counts[-1] <= 0 or not _is_rising(counts):
        return None
    wanted, lower, below = quantile * counts[-1], 0.0, 0.0
    for (bound, _), count in zip(after, counts, strict=True):
        if count >= wanted:
            return lower if math.isinf(bound) else lower + (bound - lower) * (wanted - below) / (count - below)
        lower, below = bound, count
    return None


def _is_rising(counts: Iterable[float]) -> bool:
    before = 0.0
    for count in counts:
        if count < before:
            return False
        before = count
    return True
