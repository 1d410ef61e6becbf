"""The promise: of a group of threads that wait, each is woken, whatever happens in the threads that wake the next ones:
a deadline, an interrupt between any two instructions, a signal handler that waits itself.
"""

from __future__ import annotations

import itertools
import random
import threading
import time

import pytest

from tests.interrupting import At, interrupt, interrupted
from warren_raft.support import waking as module
from warren_raft.support.waking import CHAINS, Sleeper, Waking

DEADLINE = 30.0


def awake(sleepers: list[Sleeper]) -> list[int]:
    """The numbers of the sleepers that were woken. They do not leave by this."""
    return [number for number, sleeper in enumerate(sleepers) if not sleeper._lock.locked()]


def run_those_awake(sleepers: list[Sleeper]) -> set[int]:
    """Each sleeper that is woken runs, and wakes the next. Returns the numbers of those that ran."""
    ran: set[int] = set()
    while found := awake(sleepers):
        for number in found:
            assert sleepers[number].sleep(0)
            ran.add(number)
    return ran


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """`look` waits for no chain."""
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.0)


@pytest.mark.parametrize("count", range(3 * CHAINS))
def test_each_sleeper_wakes_the_next_of_its_chain(count: int) -> None:
    waking, sleepers = Waking(), [Sleeper() for _ in range(count)]
    waking.wake(sleepers)
    assert awake(sleepers) == [*range(min(count, CHAINS))], "no more at the same time"
    for number in range(count):
        assert sleepers[number].sleep(0)
        assert awake(sleepers) == [*range(number + 1, min(count, number + 1 + CHAINS))]
    assert not waking.look()


@pytest.mark.parametrize("when", ["before the group is made", "when it is made"])
@pytest.mark.parametrize("gone", [gone for n in range(8) for gone in itertools.combinations(range(7), n)])
def test_a_sleeper_that_has_left_hands_its_turn_on(gone: tuple[int, ...], when: str) -> None:
    """Its deadline came, or it was interrupted, at any time before it was woken."""
    waking, sleepers = Waking(), [Sleeper() for _ in range(7)]
    if when == "before the group is made":
        for number in gone:
            assert not sleepers[number].sleep(0)
    waking.wake(sleepers)
    ran: set[int] = set()
    if when != "before the group is made":
        for number in gone:
            sleepers[number].sleep(0)
            ran.add(number)
    ran |= run_those_awake(sleepers)
    assert ran | set(gone) == set(range(7)), "and without `look`"
    assert not waking.look()


@pytest.mark.usefixtures("impatient")
def test_an_interrupt_between_any_two_instructions_keeps_nobody_asleep() -> None:
    seen = 0
    for interrupts in itertools.count(1):
        waking, sleepers = Waking(), [Sleeper() for _ in range(9)]
        waking.wake(sleepers)
        at = At(interrupts, interrupt)
        interrupted(at, lambda first=sleepers[0]: first.sleep(0))  # type: ignore[misc]
        ran = run_those_awake(sleepers)
        assert {1, 4, 7, 2, 5, 8} <= ran, f"the other chains, interrupted at {at.where}"
        waking.look()
        ran |= run_those_awake(sleepers)
        assert set(range(1, 9)) <= ran, at.where
        assert not waking.look()
        if at.seen < interrupts:
            break
        seen += 1
    assert seen > 10


@pytest.mark.usefixtures("impatient")
def test_a_signal_handler_may_wait_for_a_later_sleeper_of_its_own_chain() -> None:
    """Its thread is the one that should wake that sleeper, and does not run on before the handler ends."""
    waking, sleepers = Waking(), [Sleeper() for _ in range(2 * CHAINS)]
    waking.wake(sleepers)

    def handler() -> None:
        seen.append(CHAINS in awake(sleepers))
        waking.look()  # in a thread of the store
        seen.append(sleepers[CHAINS].sleep(0))

    seen: list[bool] = []
    At(1, handler).run(lambda: sleepers[0].sleep(0))
    assert seen == [False, True]


def test_a_group_that_takes_too_long_is_woken_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    waking, sleepers = Waking(), [Sleeper() for _ in range(20)]
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    waking.wake(sleepers)
    now += module.PATIENCE_SECONDS * 0.9
    assert waking.look()
    assert len(awake(sleepers)) == CHAINS
    later = [Sleeper() for _ in range(20)]
    waking.wake(later)
    now += module.PATIENCE_SECONDS * 0.2
    assert waking.look(), "the later group has time"
    assert len(awake(sleepers)) == 20
    assert len(awake(later)) == CHAINS


def test_a_sleeper_behind_an_interrupted_one_is_woken_though_the_last_one_has_left(impatient: None) -> None:
    """(Pins a bug: the group was taken for awake, and the caller slept until its own deadline.)"""
    sleepers = [Sleeper() for _ in range(2 * CHAINS + 1)]
    sleepers[-1].leave()  # its time was up
    waking = Waking()
    waking.wake(sleepers)
    sleepers[0].has_left = True  # an exception came in `leave`, before it woke the next one
    behind = sleepers[CHAINS]
    assert all(sleeper.sleep(0) for sleeper in sleepers[1:-1] if sleeper is not behind)
    assert not waking.look()
    assert behind.sleep(0)


def test_all_are_woken_at_the_end() -> None:
    waking, groups = Waking(), [[Sleeper() for _ in range(10)] for _ in range(3)]
    for sleepers in groups:
        waking.wake(sleepers)
    waking.wake_all()
    for sleepers in groups:
        assert len(awake(sleepers)) == 10


@pytest.mark.slow
def test_threads_with_deadlines_of_any_length_keep_nobody_asleep() -> None:
    """Deadlines and wakes meet at random moments. `look` is never called."""
    lots = random.Random(1)
    for _ in range(100):
        waking, sleepers = Waking(), [Sleeper() for _ in range(24)]
        patient = set(lots.sample(range(24), 8))
        woken: list[int] = []

        def wait(number: int, seconds: float, sleepers: list[Sleeper] = sleepers, woken: list[int] = woken) -> None:
            if sleepers[number].sleep(seconds):
                woken.append(number)

        seconds = [DEADLINE if number in patient else lots.random() * 0.002 for number in range(24)]
        threads = [threading.Thread(target=wait, args=(number, seconds[number]), daemon=True) for number in range(24)]
        for thread in threads:
            thread.start()
        began = time.monotonic()
        waking.wake(sleepers)
        for thread in threads:
            thread.join(DEADLINE)
        assert patient <= set(woken)
        assert time.monotonic() - began < DEADLINE / 2
