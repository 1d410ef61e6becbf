"""Promises about time, on a machine that is too busy to keep them: the test is run again, at most twice.

Lives here: the judgement that the machine was too busy, and the second run of a test. Not here: the tests that need it.
Invariant: a test that fails while its processes get a processor when they want one has failed; so has a test that
fails ATTEMPTS times.

"This fault costs no election" is true of managers that run. A manager that the kernel does not run for a while is like
a dead one, and the others are right to elect another leader.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Final

import pytest
from _pytest.runner import runtestprotocol

ATTEMPTS: Final = 3
TOO_LONG_SECONDS: Final = 0.5
"""Half of the default election timeout."""
PRESSURE: Final = Path("/proc/pressure/cpu")


class MachineTooBusy(AssertionError):
    """A promise about time was not kept, and threads of this machine had to wait for a processor meanwhile."""


def waited_seconds() -> float:
    """For how long, since the machine was started, some thread was ready to run and waited for a processor. Infinite if
    this kernel does not count it."""
    try:
        some = PRESSURE.read_text().splitlines()[0]
    except OSError:
        return math.inf
    return int(some.partition("total=")[2]) / 1e6


BEFORE: Final = pytest.StashKey[float]()
"""`waited_seconds` when the test began."""
TOO_BUSY: Final = pytest.StashKey[bool]()
RAN_AGAIN: Final = "ran again on a busy machine"
"""The property of a report that says so, because reports are what a worker of xdist sends."""
_running: list[pytest.Item] = []


@contextlib.contextmanager
def in_time() -> Iterator[None]:
    """Around assertions about time. MachineTooBusy if one fails and threads waited for too long since the test
    began."""
    try:
        yield
    except AssertionError as error:
        if not _running:  # a script that uses the helpers of the tests
            raise
        waited = waited_seconds()
        if waited < math.inf:
            waited -= _running[-1].stash[BEFORE]
        if waited < TOO_LONG_SECONDS:
            raise
        text = f"{error}\nmeanwhile threads of this machine waited {waited:.1f} s for a processor"
        raise MachineTooBusy(text) from error


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    if call.excinfo is not None and call.excinfo.errisinstance(MachineTooBusy):
        item.stash[TOO_BUSY] = True
    return (yield)


def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    """Run the test, each time with new fixtures, until it has passed, or failed for another reason."""
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    _running.append(item)
    for attempt in range(1, ATTEMPTS + 1):
        item.stash[TOO_BUSY], item.stash[BEFORE] = False, waited_seconds()
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
        if not item.stash[TOO_BUSY] or attempt == ATTEMPTS:
            break
        item.user_properties.append((RAN_AGAIN, attempt))
    _running.pop()
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name each test that ran again. A test that is here often has a fault that shows only now and then."""
    ran_again = [
        report.nodeid
        for reports in terminalreporter.stats.values()
        for report in reports
        if isinstance(report, pytest.TestReport)
        and report.when == "call"
        and any(name == RAN_AGAIN for name, _ in report.user_properties)
    ]
    if ran_again:
        terminalreporter.section(RAN_AGAIN)
        for nodeid in sorted(ran_again):
            terminalreporter.line(nodeid)
