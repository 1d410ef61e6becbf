"""The promise: `top` shows the cluster in 80 columns, live until q and once for a script, and leaves the terminal as it
was; its numbers are those of two readings, or none."""

from __future__ import annotations

import math
import os
import pty
import re
import struct
import sys
import termios
import time
from bisect import bisect_left
from collections.abc import Sequence
from fcntl import ioctl
from itertools import accumulate
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
from cli_support import Command
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from warren_raft.admin.client import AdminClient
from warren_raft_cli.readings import (
    Histogram,
    Reading,
    began_again,
    changes_per_second,
    histograms_in,
    quantile_of,
    quantiles,
    write_stage_quantiles,
)
from warren_raft_cli.top import frame, read

BOUNDS = (0.001, 0.002, 0.004, 0.008, float("inf"))
SECONDS = st.floats(0.0001, 0.0079)


def histogram(durations: Sequence[float]) -> Histogram:
    counts = [0] * len(BOUNDS)
    for duration in durations:
        counts[bisect_left(BOUNDS, duration)] += 1
    return list(zip(BOUNDS, map(float, accumulate(counts)), strict=True))


@given(earlier=st.lists(SECONDS), later=st.lists(SECONDS, min_size=1), quantile=st.sampled_from((0.5, 0.99)))
def test_a_quantile_is_in_the_bucket_of_the_exact_one(
    earlier: list[float], later: list[float], quantile: float
) -> None:
    exact = sorted(later)[math.ceil(len(later) * quantile) - 1]
    found = quantile_of(histogram(earlier), histogram([*earlier, *later]), quantile)
    assert found is not None
    at = bisect_left(BOUNDS, exact)
    assert (BOUNDS[at - 1] if at else 0) <= found <= BOUNDS[at]


@pytest.mark.parametrize(
    ("before", "after"),
    [([], []), ([0.001], [0.001]), ([0.001, 0.003], [0.001]), ([0.001], [0.005, 0.005])],
    ids=["none", "none since", "began again", "began again and went on"],
)
def test_what_two_readings_do_not_give_is_none(before: list[float], after: list[float]) -> None:
    assert quantile_of(histogram(before), histogram(after), 0.99) is None
    assert quantile_of([(1.0, 1.0)], histogram(after), 0.99) is None


def test_a_duration_above_every_bound_is_the_highest_bound() -> None:
    assert quantile_of(histogram([]), histogram([20.0]), 0.99) == 0.008


def test_a_manager_without_metrics_has_no_p99() -> None:
    before, after = (Reading(at, {"revision": revision}, {}) for at, revision in ((1.0, 4), (3.0, 10)))
    assert quantiles(before, after, 0.99) == {}
    assert changes_per_second(before, after) == 3.0
    assert changes_per_second(after, before) is None
    assert histograms_in("") == {}


def test_a_manager_that_was_started_again_is_noticed() -> None:
    older, newer, earlier_release = (Reading(0.0, status, {}) for status in
                                     ({"uptime_seconds": 3.0}, {"uptime_seconds": 4.0}, {}))  # fmt: skip
    assert began_again(newer, older)
    assert not began_again(older, newer)
    assert not began_again(earlier_release, earlier_release)


# ---------------------------------------------------------------------------------------------- the frame


@pytest.fixture
def reading(manager: Path) -> Reading:
    return read(AdminClient(manager))


def shown(reading: Reading, problem: str = "", recent: Reading | None = None, width: int = 80) -> str:
    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115  # ends with the console
    with console.file:
        console.print(frame(reading, recent or reading, reading, problem))
        return console.export_text()


def member(reading: Reading, **values: Any) -> Reading:
    """The reading, with other values of its only member."""
    (only,) = reading.status["members"]
    return Reading(reading.at, {**reading.status, "members": [only | values]}, reading.histograms)


def test_a_frame_fits_80_columns_with_the_worst_of_texts(reading: Reading) -> None:
    """A name that is longer than a line is cut; every number and every word of an alarm is there."""
    words = "the disk is full, make some space \N{BULLET} " * 6
    alarm = {"name": "disk-low", "subject": "m\x1b[2J" * 30, "severity": "critical", "since": "2026-01-01T00:00:00Z"}
    status = reading.status | {
        "verdict": {"state": "no quorum", "text": words},
        "alarms": [alarm | {"text": words}],
        "revision": 2**62,
        "applied_index": 2**62,
    }
    worst = member(
        Reading(reading.at, status, reading.histograms),
        id="m" * 60,
        connected=False,
        contact_age_seconds=9e6,
        alarms=[alarm, alarm],
    )
    lines = shown(worst, problem=words).splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    text = " ".join(" ".join(lines).split())
    assert "\x1b[2J" not in text
    assert r"m\x1b[2Jm" in text.replace(" ", "")
    assert text.count("make some space") == 3 * 6
    assert str(2**62) in text
    assert "out of date" in text


@pytest.mark.parametrize(
    ("width", "columns"),
    [
        (80, "MEMBER ROLE CONTACT APPLIED LAG FREE DATABASE ALARMS"),
        (63, "MEMBER ROLE CONTACT APPLIED LAG FREE ALARMS"),
        (53, "MEMBER ROLE CONTACT APPLIED LAG ALARMS"),
        (43, "MEMBER ROLE CONTACT APPLIED ALARMS"),
    ],
)
def test_a_narrow_terminal_has_fewer_columns_and_whole_numbers(reading: Reading, width: int, columns: str) -> None:
    alarms = [{"name": "member-away", "subject": "m2", "severity": "warning"}]
    narrow = member(
        reading,
        connected=False,
        leader=False,
        contact_age_seconds=3.0,
        applied_index=1_234_567,
        disk_free_bytes=74 * 2**30,
        alarms=alarms,
    )
    text = shown(narrow, width=width)
    header, row = (line for line in text.splitlines() if line.startswith(("MEMBER", "m1  ")))
    assert header.split() == columns.split()
    assert all(part in row for part in ("away 3s", "1234567", "memb"))
    assert ("74.0 GiB" in row) == ("FREE" in columns)
    assert row.count("\N{HORIZONTAL ELLIPSIS}") <= 1  # in the alarms
    assert text.splitlines()[0].rstrip().endswith("q quits")


def test_the_stages_of_a_write_have_a_line(manager: Path) -> None:
    before = read(AdminClient(manager))
    assert "stages " not in shown(before)  # no write since
    AdminClient(manager).put("volume", {"id": "staged"})
    after = read(AdminClient(manager))
    assert [*write_stage_quantiles(before, after, 0.99)] == ["queue", "sync", "apply", "wake"]
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115  # ends with the console
    with console.file:
        console.print(frame(before, before, after))
        text = console.export_text()
    assert re.search(
        r"^stages +queue [0-9.]+ ms, sync [0-9.]+ ms, apply [0-9.]+ ms, wake [0-9.]+ ms", text, re.MULTILINE
    )


def test_the_delay_of_reports_is_no_lag(reading: Reading) -> None:
    """(Pins a fault that was seen: during writes the leader seemed to be 200 entries behind.)"""
    applied = reading.status["applied_index"]
    behind = member(reading, applied_index=applied - 1, lag_entries=1)
    before = Reading(0.0, reading.status | {"applied_index": applied - 1}, {})
    row = {name: shown(behind, recent=recent).splitlines()[-1].split() for name, recent in
           (("moving", before), ("standing", reading))}  # fmt: skip
    assert (row["moving"][4], row["standing"][4]) == ("0", "1")


# ---------------------------------------------------------------------------------------------- the command


def test_once_is_for_scripts(warren: Command, manager: Path) -> None:
    found = warren("top", "--once", "-o", "json", "--data-dir", manager).json
    assert set(found) == {"writes_per_second", "p99_seconds", "write_stages_p99_seconds", "status"}
    assert set(found["p99_seconds"]) == {"write", "sync", "apply"}
    assert found["writes_per_second"] >= 0
    assert found["status"]["node_id"] == "m1"


def test_without_a_terminal_it_says_what_to_add(warren: Command, manager: Path) -> None:
    ran = warren("top", "--data-dir", manager)
    assert ran.code == 2
    assert "--once" in ran.err


def test_no_manager_is_one_line(warren: Command, tmp_path: Path) -> None:
    assert warren("top", "--once", "--data-dir", tmp_path).code == 1


@pytest.mark.slow
def test_q_ends_it_and_the_terminal_is_as_before(manager: Path) -> None:
    controller, terminal = pty.openpty()
    ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    before = termios.tcgetattr(terminal)
    command = [sys.executable, "-m", "warren_raft_cli", "top", "--data-dir", str(manager)]
    process = Popen(command, stdin=terminal, stdout=terminal, stderr=terminal)
    try:
        seen, deadline = b"", time.monotonic() + 60
        while b"q quits" not in seen:
            assert time.monotonic() < deadline, seen
            seen += os.read(controller, 65_536)
        os.write(controller, b"q")
        assert process.wait(60) == 0
        os.set_blocking(controller, False)
        seen += os.read(controller, 65_536)
        assert b"\x1b[?1049h" in seen
        assert b"\x1b[?1049l" in seen
        assert termios.tcgetattr(terminal) == before
    finally:
        process.kill()
        process.wait()
        os.close(controller)
        os.close(terminal)
