"""Shared by all tests: this user's CA for managers on one machine is made in a directory of the test session.

Managers of tests get their certificates like other managers, and leave nothing in the home of the user of the tests.
"""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from typing import Final

import pytest
from hypothesis import settings

from tests.busy_machine import pytest_runtest_makereport, pytest_runtest_protocol

__all__ = ["pytest_runtest_makereport", "pytest_runtest_protocol"]

LONG: Final = ("test_torture.py", "test_simulation.py", "test_benchmarks.py")
"""Files with tests of half a minute and more. They come first: if such a test began last, it would run alone."""

settings.register_profile("any machine", deadline=None)  # the time of an example only says how busy the machine is
settings.register_profile("quick", deadline=None, max_examples=25)  # of `make fast`; the full run has 100 examples
settings.load_profile("any machine")


def pytest_configure() -> None:
    # A shell starts its background jobs with SIGINT ignored. The processes of tests would inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONG)  # apart from that, their order stays


def pytest_collection_finish() -> None:
    """The garbage collector leaves the tests themselves out. With them, each of its full collections takes a fifth of a
    second."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def state_home_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Processes that tests start inherit it."""
    before = os.environ.get("XDG_STATE_HOME")
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state-home"))
    yield
    if before is None:
        del os.environ["XDG_STATE_HOME"]
    else:
        os.environ["XDG_STATE_HOME"] = before
