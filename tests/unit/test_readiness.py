"""Waiting for a leader or for readiness ends with the state, or with one sentence that says what was waited for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from warren_raft.alarms import Alarms
from warren_raft.errors import Closed, InvariantViolation, Unavailable
from warren_raft.manager.lifetime import Lifetime
from warren_raft.manager.readiness import Readiness


@pytest.fixture
def life() -> Lifetime:
    return Lifetime(Alarms("m1"))


@pytest.fixture
def engine() -> Any:
    return SimpleNamespace(is_ready=True, is_leader=True, leader="m1", term=3, waits="")


@pytest.fixture
def readiness(life: Lifetime, engine: Any) -> Readiness:
    return Readiness("m1", life, engine)


def test_the_time_in_a_message_is_a_rounded_one(readiness: Readiness, engine: Any) -> None:
    """(Pins a bug: the rest of a transfer's time was told as "within 0.19999 s".)"""
    engine.leader, engine.waits = None, "m2 was not reached yet"
    with pytest.raises(Unavailable) as caught:
        readiness.wait_leader(0.0199999)
    assert str(caught.value) == "no leader was elected within 0.02 s: m2 was not reached yet"


def test_a_manager_with_a_raft_thread_that_is_stuck_knows_nothing(readiness: Readiness, life: Lifetime) -> None:
    assert (readiness.is_ready, readiness.is_leader, readiness.leader) == (True, True, "m1")
    life.is_stuck = True
    assert (readiness.is_ready, readiness.is_leader, readiness.leader) == (False, False, None)
    assert readiness.leading_term() is None


def test_a_manager_that_stopped_leads_no_more_and_keeps_its_first_reason(readiness: Readiness, life: Lifetime) -> None:
    life.fail(InvariantViolation("the first"))
    life.fail(InvariantViolation("the second"))
    assert (readiness.is_leader, readiness.leader) == (False, None)
    with pytest.raises(Closed, match=r"^this manager stopped: the first$"):
        readiness.wait_ready(None)
    assert life.wait_failed(0)
