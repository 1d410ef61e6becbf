"""The promise: the log has a line with an address for each change of a link. No stranger can fill a disk with lines:
not by connecting for ever, not by failing in ever new ways, not from ever new addresses."""

from __future__ import annotations

import logging

import pytest

from warren_raft.raft.links.budgets import Budgets, source_of
from warren_raft.raft.links.link_log import LINES_BURST, STRANGERS_LINES_BURST, LinkLog

DAY_SECONDS = 86_400


class Said:
    """A LinkLog with a clock, and the lines that it wrote."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self.now = 0.0
        self.log = LinkLog("m1", lambda: self.now)
        self._caplog = caplog
        caplog.set_level(logging.INFO, logger="warren_raft.transport")

    @property
    def lines(self) -> list[str]:
        return self._caplog.messages

    def fail(self, text: str, host: str = "192.0.2.9", port: int = 1, *, is_stranger: bool = True) -> None:
        address = f"{host}:{port}"
        self.log.say(
            host,
            logging.WARNING,
            "link not made",
            text,
            peer=host,
            address=address,
            source=host,
            is_stranger=is_stranger,
        )


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Said:
    return Said(caplog)


def test_a_line_is_said_once_until_something_changed(said: Said) -> None:
    for port in (1, 2, 3):
        said.fail("it has no certificate", port=port)
    assert said.lines == ["link not made node=m1 peer=192.0.2.9 address=192.0.2.9:1: it has no certificate"]
    said.log.forget("192.0.2.9")
    said.fail("it has no certificate", port=4)
    assert len(said.lines) == 2


@pytest.mark.slow
def test_who_fails_in_ever_new_ways_writes_a_bounded_number_of_lines_a_day(said: Said) -> None:
    for number in range(50_000):
        said.now = number / 50_000 * DAY_SECONDS
        said.fail(f"a frame claims {number} bytes")
    assert len(said.lines) <= LINES_BURST + DAY_SECONDS / 60 + 1
    assert sum(map(len, said.lines)) < 500_000


def test_what_was_left_out_is_counted_in_the_next_line(said: Said) -> None:
    for number in range(LINES_BURST + 7):
        said.fail(f"failure {number}")
    said.now = 3600.0
    said.fail("one more")
    assert said.lines[-1] == "link not made node=m1 peer=192.0.2.9 address=192.0.2.9:1 left_out=7: one more"


def test_ever_new_addresses_have_one_budget_together_and_others_lose_nothing_by_it(said: Said) -> None:
    for number in range(50_000):
        said.fail("it has no certificate", host=f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert len(said.lines) == STRANGERS_LINES_BURST
    said.fail("it says that it is m1, and its certificate is m3's", host="192.0.2.3", is_stranger=False)
    said.log.say("m2", logging.INFO, "link up", peer="m2", address="192.0.2.2:7946", dialled_by="m1")
    assert len(said.lines) == STRANGERS_LINES_BURST + 2


def test_a_budget_fills_up_again_to_its_bound() -> None:
    budgets = Budgets(per_second=2.0, burst=3.0)
    assert [budgets.take("a", 0.0) for _ in range(5)] == [True, True, True, False, False]
    assert budgets.take("b", 0.0), "each key has a bucket of its own"
    assert [budgets.take("a", 1.0) for _ in range(3)] == [True, True, False]
    assert [budgets.take("a", 1000.0) for _ in range(4)] == [True, True, True, False]


def test_the_keys_that_are_remembered_are_bounded() -> None:
    budgets = Budgets(per_second=0.001, burst=1.0, keys_max=10)
    assert budgets.take("often", 0.0)
    for number in range(100):
        assert budgets.take(f"key {number}", 0.0)
        assert not budgets.take("often", 0.0), "a key that is used is not forgotten"
    assert len(budgets._levels) == 10


def test_the_addresses_of_one_host_are_one_source() -> None:
    assert source_of("192.0.2.1") == "192.0.2.1" != source_of("192.0.2.2")
    assert source_of("2001:db8::1") == source_of("[2001:db8::ffff:2]") == "2001:db8::/64"
    assert source_of("2001:db8:0:1::1") != source_of("2001:db8::1")
    assert source_of("::ffff:192.0.2.1") == "192.0.2.1"
    assert source_of("fe80::1%eth0") == "fe80::/64"
    assert source_of("m1.example") == "m1.example"
