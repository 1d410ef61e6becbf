"""Tests: when a call has waited for too long, and when a run has converged.

Not here: whole runs (test_simulation.py). Invariant: no manager runs here; each case gives the checker its facts.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.simulation.checkers.ends import ANSWERED_SECONDS, CallsEnd
from tests.simulation.run import _converged
from tests.simulation.world import Failure, Process
from warren_raft.raft.replacement import Event, Replacement

CALM_AT = 110.0
"""When the faults of the run ended."""


def waits_until(
    seconds: float,
    *,
    bytes_arrive_until: float = 0.0,
    fetches_until: float = 0.0,
    lacks_room: tuple[str, ...] = (),
    wiped: tuple[str, ...] = (),
    fetching: tuple[str, ...] = (),
    down: tuple[str, ...] = (),
) -> None:
    """Show a call to the checker that waited when the state was replaced, and still waits so many seconds after the
    faults. Raises Failure if that is too long. `lacks_room`: voters without room for a snapshot, of m1, m2 and m3."""
    alarm = SimpleNamespace(name="snapshot-not-installed")
    engines = {
        id_: SimpleNamespace(
            alarms=SimpleNamespace(active=[alarm] if id_ in lacks_room else []),
            membership=None if id_ in wiped else object(),
            fetching=(0, 5_000_000) if id_ in fetching else None,
        )
        for id_ in ("m1", "m2", "m3")
    }
    processes = {id_: SimpleNamespace(engine=engine) for id_, engine in engines.items() if id_ not in down}
    lists = SimpleNamespace(newest=SimpleNamespace(voters=frozenset(engines)))
    network = SimpleNamespace(latest_arrival=bytes_arrive_until, slowest_seconds=0.0)
    world = SimpleNamespace(
        now=CALM_AT, network=network, is_calm=True, processes=processes, audience=SimpleNamespace(lists=lists)
    )
    call = SimpleNamespace(deadline=1e9)
    engine = SimpleNamespace(leader="m1", term=3, fetching=None)
    process: Any = SimpleNamespace(id="m2", number=7, clock=0.0, calls={(0, 1): call}, world=world, engine=engine)
    checker = CallsEnd()
    checker.swapped(process)
    for n in range(int(seconds / 0.5) + 1):
        world.now = CALM_AT + n * 0.5
        network.latest_arrival = max(network.latest_arrival, world.now)
        process.clock += 1.0
        engine.fetching = (0, 5_000_000) if world.now < fetches_until else None
        checker.step_ended(process)


def test_a_call_waits_for_the_bytes_that_are_on_a_thin_link_when_the_calm_begins() -> None:
    """(Pins a false alarm: 600 kB were on their way for four seconds.)"""
    waits_until(ANSWERED_SECONDS)
    with pytest.raises(Failure, match="not answered since its state was replaced"):
        waits_until(ANSWERED_SECONDS + 1.0)
    waits_until(ANSWERED_SECONDS + 4.0, bytes_arrive_until=CALM_AT + 4.0)
    with pytest.raises(Failure, match="not answered since its state was replaced"):
        waits_until(ANSWERED_SECONDS + 5.0, bytes_arrive_until=CALM_AT + 4.0)


def test_a_call_waits_while_its_manager_fetches_a_snapshot() -> None:
    """(Pins a false alarm: a snapshot of 5 MB came in chunks of 4 KB.)"""
    waits_until(ANSWERED_SECONDS + 9.0, fetches_until=CALM_AT + 9.5)
    with pytest.raises(Failure, match="not answered since its state was replaced"):
        waits_until(ANSWERED_SECONDS + 11.0, fetches_until=CALM_AT + 9.5)


def test_a_call_waits_while_the_voters_that_take_entries_are_no_quorum() -> None:
    """(Pins false alarms: the only other voter found no room for a snapshot, and tried again after ten seconds; or it
    fetched one, and the third voter's directory was wiped.)"""
    waits_until(ANSWERED_SECONDS + 5.0, lacks_room=("m1", "m3"))
    waits_until(ANSWERED_SECONDS + 5.0, wiped=("m1",), lacks_room=("m3",))
    waits_until(ANSWERED_SECONDS + 5.0, down=("m1",), fetching=("m3",))
    for few in ({"lacks_room": ("m3",)}, {"wiped": ("m1",)}, {"down": ("m1",)}, {"fetching": ("m3",)}):
        with pytest.raises(Failure, match="not answered since its state was replaced"):
            waits_until(ANSWERED_SECONDS + 1.0, **few)


@pytest.mark.parametrize("is_about_to_begin", [False, True])
def test_managers_have_not_converged_while_one_of_them_replaces_its_state(is_about_to_begin: bool) -> None:
    """(Pins a false alarm: a leader handed over in the calm because its state was to move to another file.)"""
    engine = SimpleNamespace(renewal_wanted=False, members={"m1"}, _replacement=Replacement())
    opened = SimpleNamespace(log=SimpleNamespace(last_index=9), machine=SimpleNamespace(applied_index=9))
    process: Any = Process.__new__(Process)
    process.id, process.engine, process.opened, process.state_is_wrong = "m1", engine, opened, False
    world: Any = SimpleNamespace(
        leader=process, directories={"m1": 0}, processes={"m1": process}, removed=set(), members=lambda: [process]
    )
    assert _converged(world)
    if is_about_to_begin:
        engine.renewal_wanted = True
    else:
        engine._replacement.go(Event.RENEW)
    assert not _converged(world)
