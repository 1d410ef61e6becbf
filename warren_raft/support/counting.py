"""How often something took how long: plain numbers that quick code keeps anyway, and that metrics/ reads.

Lives here: the histogram and its limits. Not here: names and labels (metrics/families.py). Invariant: noting a duration
takes no lock, and CPython changes threads at none of its two additions, so no count is lost.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

QUICK_BOUNDS: Final = tuple(1e-6 * 4**power for power in range(11))
"""For reads, in seconds: 1 µs to 1.05 s, four times as much each."""
SLOW_BOUNDS: Final = tuple(0.000125 * 2**power for power in range(17))
"""For everything that waits for a disk, in seconds: 0.125 ms to 8.192 s, twice as much each."""


class Durations:
    """A histogram in seconds. `note` may be called by any thread, and read by any other one meanwhile."""

    __slots__ = ("bounds", "counts", "sum_seconds")

    def __init__(self, bounds: tuple[float, ...] = SLOW_BOUNDS) -> None:
        self.bounds: Final = bounds
        self.counts: Final = [0] * (len(bounds) + 1)
        """How many durations were above the bound before and at most this one; the last: above all bounds."""
        self.sum_seconds = 0.0

    def note(self, seconds: float) -> None:
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.sum_seconds += seconds

    def take_over(self, earlier: Durations) -> None:
        """Add what another histogram with the same bounds has counted, which counts no more."""
        for at, count in enumerate(earlier.counts):
            self.counts[at] += count
        self.sum_seconds += earlier.sum_seconds

    def cumulated(self) -> list[int]:
        """How many durations were at most each bound; the last is their number."""
        total, found = 0, []
        for count in self.counts.copy():
            total += count
            found.append(total)
        return found
