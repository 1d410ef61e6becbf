"""Where the time of one replicated write goes: the stages of its way, from the stamps of three managers.

    python benchmarks/ledger.py [--callers 1] [--seconds 3] [--directory DIR] [--json]

The callers are threads of the leader's process. The stages of a write follow each other without a gap, so the means
add up to the whole. A leader needs the reply of one follower, so the way leads through the follower that replied first.
Medians show the usual write, and the mean contains the rare long waits. Times are in microseconds.
"""

from __future__ import annotations

import bisect
import itertools
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import writes
from common import options, quantile, run

from warren_raft.support.stamps import Stamp, Stamps

STAGES = (
    "caller: checks and encodes",
    "wait for the leader's raft thread",
    "leader: step, the entry is made",
    "leader: encodes messages, hands the batch to its disk",
    "wire to the follower, until it has decoded",
    "follower: turn of its loop",
    "follower: step",
    "follower: hands the batch to its sync thread",
    "follower: writes and syncs the log",
    "wait for the follower's raft thread",
    "follower: step, the reply is released",
    "follower: encodes the reply",
    "wire to the leader, until it has decoded",
    "leader: turn of its loop",
    "leader: step, the entry is committed",
    "leader: encodes messages, sends",
    "leader: applies",
    "leader: wakes the caller",
)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--callers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3.0)
    run(
        parser,
        lambda directory, given: measure(directory, given.callers, given.seconds),
        table,
        manager=lambda settings: Manager(settings).run(),
    )


class Manager(writes.Manager):
    def stamp(self) -> None:
        self.store._parts.driver.stamps = Stamps()

    def stamps(self) -> list[Stamp]:
        driver = self.store._parts.driver
        stamps: Stamps | None = driver.stamps
        assert stamps is not None
        driver.stamps = None
        return stamps.take()


# The stages of a write -----------------------------------------------------------------------------------------------


class Missing(Exception):
    """The stamps of this write are not complete: it was on its way when stamping began or ended."""


class Point(NamedTuple):
    """All stamps of one point in one manager, oldest first."""

    times: list[int]
    numbers: list[int]

    def first_from(self, time: int) -> int:
        """The position of the first stamp at `time` or later."""
        return self._checked(bisect.bisect_left(self.times, time))

    def last_until(self, time: int) -> int:
        return self._checked(bisect.bisect_right(self.times, time) - 1)

    def first_number(self, least: int) -> int:
        """The position of the first stamp with this number or a higher one: indexes of a log grow."""
        return self._checked(bisect.bisect_left(self.numbers, least))

    def after(self, time: int) -> int:
        """The time of the first stamp at `time` or later."""
        return self.times[self.first_from(time)]

    def before(self, time: int) -> int:
        return self.times[self.last_until(time)]

    def reaching(self, index: int) -> int:
        """The time of the first stamp with this index or a higher one."""
        return self.times[self.first_number(index)]

    def _checked(self, position: int) -> int:
        if not 0 <= position < len(self.times):
            raise Missing
        return position


Points = dict[str, Point]


def points_of(stamps: Iterable[Stamp]) -> Points:
    found: Points = defaultdict(lambda: Point([], []))
    for time, point, number in sorted(stamps):
        found[point].times.append(time)
        found[point].numbers.append(number)
    return found


def calls_of(leader: Points) -> list[tuple[int, int, int]]:
    """(called, submitted, answered) of each write."""
    by_thread: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for name in ("called", "submitted", "answered"):
        for time, thread in zip(*leader[name], strict=True):
            by_thread[thread][name].append(time)
    found = []
    for own in by_thread.values():
        for called, submitted in zip(own["called"], own["submitted"], strict=False):
            position = bisect.bisect_left(own["answered"], submitted)
            if called <= submitted and position < len(own["answered"]):
                found.append((called, submitted, own["answered"][position]))
    return found


def way_of(call: tuple[int, int, int], leader: Points, followers: Sequence[Points]) -> list[int]:
    """The times at which a write began each stage, and at which it ended. Raises Missing."""
    called, submitted, answered = call
    taken = leader["step"].after(submitted)
    position = leader["stepped"].first_from(taken)
    if position == 0:
        raise Missing
    # The step that takes the write makes its entry. A step under load makes some entries, and the write is in the last.
    entry_made = leader["stepped"].first_number(leader["stepped"].numbers[position - 1] + 1)
    made, index = leader["stepped"].times[entry_made], leader["stepped"].numbers[entry_made]
    follower = min((way_of_follower(index, each) for each in followers), key=lambda way: way[-1])
    applied = leader["applied"].reaching(index)
    committing = leader["step"].before(applied)
    return [
        called,
        submitted,
        leader["step"].before(made),
        made,
        leader["handed"].after(made),
        *follower,
        leader["arrived"].before(committing),
        committing,
        leader["stepped"].after(committing),
        leader["sent"].after(committing),
        applied,
        answered,
    ]


def way_of_follower(index: int, follower: Points) -> list[int]:
    stepped, written = follower["stepped"].reaching(index), follower["written"].reaching(index)
    step, reply = follower["step"].before(stepped), follower["step"].after(written)
    return [
        follower["arrived"].before(step),
        step,
        stepped,
        follower["writing"].reaching(index),
        written,
        reply,
        follower["stepped"].after(reply),
        follower["handed"].after(reply),
    ]


# The figures ---------------------------------------------------------------------------------------------------------


def measure(directory: Path, callers: int, seconds: float) -> dict[str, Any]:
    with writes.Cluster(directory, script=__file__) as cluster:
        leader = cluster.places()["leader"]
        leader.call("load", callers, 1.0)  # warm
        cluster.call_all("stamp")
        load = leader.call("load", callers, seconds)
        leader_id = next(id_ for id_, manager in cluster.managers.items() if manager is leader)
        stamps = dict(zip(cluster.managers, cluster.call_all("stamps"), strict=True))
    points = {id_: points_of(each) for id_, each in stamps.items()}
    return {"callers": callers, "load": load, **stages(points.pop(leader_id), list(points.values()))}


def stages(leader: Points, followers: Sequence[Points]) -> dict[str, Any]:
    calls, ways = calls_of(leader), []
    for call in calls:
        try:
            ways.append(way_of(call, leader, followers))
        except Missing:
            continue
    if not ways:
        raise SystemExit("no write has all its stamps; try more seconds")
    times = zip(*([(end - begin) / 1e3 for begin, end in itertools.pairwise(way)] for way in ways), strict=True)
    return {
        "writes": len(ways),
        "writes_without_all_stamps": len(calls) - len(ways),
        "stages": {name: summary(values) for name, values in zip(STAGES, times, strict=True)},
        "whole": summary([(way[-1] - way[0]) / 1e3 for way in ways]),
    }


def summary(values: Sequence[float]) -> dict[str, float]:
    return {
        "p50_us": round(statistics.median(values), 1),
        "mean_us": round(statistics.fmean(values), 1),
        "p90_us": round(quantile(values, 0.9), 1),
    }


def table(figures: dict[str, Any]) -> str:
    lines = [
        f"{figures['callers']} callers, {figures['writes']} writes; {figures['load']}",
        f"{'stage':<56}{'p50 µs':>9}{'mean µs':>9}{'p90 µs':>9}",
    ]
    rows = {**figures["stages"], "whole": figures["whole"]}
    lines += [f"{name:<56}{row['p50_us']:>9}{row['mean_us']:>9}{row['p90_us']:>9}" for name, row in rows.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
