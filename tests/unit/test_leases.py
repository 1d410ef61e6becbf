"""The nodes that beat are remembered with their ttl, in the state, so that a node that died while all managers were
stopped is found.

Not here: beats (raft/test_beats.py), the rules (test_judging.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import warren_raft as wr
from tests.cluster.harness import wait_until
from tests.fsm_harness import apply, command, delete, one, put
from warren_raft.fsm.answers import BAD_KIND, LEADERSHIP_LOST, MALFORMED
from warren_raft.fsm.digest import recompute
from warren_raft.fsm.leases import ttl_bytes
from warren_raft.fsm.machine import StateMachine
from warren_raft.model.entities import Node
from warren_raft.snapshots.install import begin_anew
from warren_raft.snapshots.records import Unreadable, check_sessions
from warren_raft.store.command import LEASE, OPEN_SESSION, Operation
from warren_raft.store.database import Database
from warren_raft.store.generations import StateDirectory
from warren_raft.store.tables import CONTAINER, NODE
from warren_raft.store.transactions import SESSIONS

LONGEST_ID = "n" * 511


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[StateMachine]:
    with Database.open(StateDirectory(tmp_path), sync=False) as database:
        yield StateMachine(database)


def lease(id_: str, seconds: float = 15.0, kind: int = NODE.number) -> Operation:
    return Operation(LEASE, kind, id_, ttl_bytes(seconds))


def check(machine: StateMachine) -> None:
    """The digest is that of the records, and a machine that reads the state again finds the same leases."""
    with machine.database.read() as transaction:
        assert recompute(transaction) == machine.digest
        check_sessions(transaction)
    assert StateMachine(machine.database).leases == machine.leases


def test_a_lease_is_kept_without_a_revision(machine: StateMachine) -> None:
    one(machine, put(Node(id="n")), put(Node(id=LONGEST_ID)))
    assert one(machine, lease("n"), lease(LONGEST_ID, 1.5)).revision == 1
    assert machine.leases == {"n": 15.0, LONGEST_ID: 1.5}
    one(machine, lease("n", 20.0))
    assert machine.leases["n"] == 20.0
    check(machine)


def test_a_lease_goes_with_its_node_and_needs_one(machine: StateMachine) -> None:
    one(machine, put(Node(id="n")))
    one(machine, lease("n"), lease("nobody"))
    assert machine.leases == {"n": 15.0}
    one(machine, delete(NODE, "n"), put(Node(id="n")))
    assert machine.leases == {}
    check(machine)


def test_a_lease_is_alone_in_its_command_and_of_a_node(machine: StateMachine) -> None:
    one(machine, put(Node(id="n")))
    for operations in (
        [lease("n", kind=CONTAINER.number)],
        [lease("n"), put(Node(id="o"))],
        [put(Node(id="o")), lease("n")],
    ):
        error = one(machine, *operations).error
        assert error is not None
        assert error[0] == MALFORMED
    assert one(machine, lease("n", kind=CONTAINER.number)).error == (MALFORMED, BAD_KIND)
    assert (machine.leases, machine.revision) == ({}, 1)


def test_a_lease_of_another_term_is_refused(machine: StateMachine) -> None:
    one(machine, put(Node(id="n")))
    (result,) = apply(machine, command(lease("n"), fence=9))
    assert (result.error, machine.leases) == ((LEADERSHIP_LOST, 9), {})


def test_sessions_and_request_keys_beside_leases_are_read_again(machine: StateMachine) -> None:
    apply(machine, command(Operation(OPEN_SESSION), session=7, sequence=1, lowest=1))
    one(machine, put(Node(id="n")), request_key="job-1")
    one(machine, lease("n"))
    one(machine, put(Node(id="o")), request_key="job-2")
    again = StateMachine(machine.database)
    assert (len(again._sessions), len(again._requests), len(again._leases)) == (1, 2, 1)
    check(machine)


def test_a_restored_cluster_keeps_the_leases(machine: StateMachine) -> None:
    apply(machine, command(Operation(OPEN_SESSION), session=7, sequence=1, lowest=1))
    one(machine, put(Node(id="n")))
    one(machine, lease("n"))
    begin_anew(machine.database, "another cluster")
    again = StateMachine(machine.database)
    assert (again.leases, len(again._sessions)) == ({"n": 15.0}, 0)
    check(again)


@pytest.mark.parametrize("record", [b"", b"\x00\x00\x01", b"\x00\x00\x01\x00other", b"\x00\x00\x01\x00\xff"])
def test_a_damaged_lease_is_found(machine: StateMachine, record: bytes) -> None:
    one(machine, put(Node(id="n")))
    one(machine, lease("n"))
    with machine.database.write() as transaction:
        ((key, _),) = transaction.scan(SESSIONS)
        transaction.store(SESSIONS, key, record)
    with machine.database.read() as transaction, pytest.raises(Unreadable):
        check_sessions(transaction)


def test_a_node_that_died_while_the_store_was_closed_is_down(tmp_path: Path) -> None:
    with wr.LocalStore(tmp_path / "state") as store:
        store.create_node(wr.Node(id="n", status="ready"))
        store.create_node(wr.Node(id="never", status="ready"))
        store.heartbeat("n", ttl_seconds=1)
        wait_until(lambda: store._machine.leases, "the lease")
    with wr.LocalStore(tmp_path / "state") as store:
        assert store.get_node("n").status == "ready"
        assert store.last_heartbeat_age("n") is None
        wait_until(lambda: store.get_node("n").status == "down", "the node to be down")
        assert store.get_node("never").status == "ready"
