"""Promise: a watcher that resumes sees every change since, in order and once, or is told that it missed some.

The history for it is bounded in number and in bytes, and no transaction ever deletes for long.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fsm_harness import apply, command, delete, one, put
from warren_raft.errors import StorageFull, WatchLost
from warren_raft.fsm import history
from warren_raft.fsm.history import Change, History, since
from warren_raft.fsm.machine import StateMachine
from warren_raft.model.entities import Container, Node, Service, TLSCertificate
from warren_raft.store import codec
from warren_raft.store.command import DELETE, PUT, encode_operations
from warren_raft.store.database import Database
from warren_raft.store.tables import CERTIFICATE, CONTAINER, NODE, SERVICE
from warren_raft.store.transactions import HISTORY, WriteTransaction


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[StateMachine]:
    with Database.open(tmp_path, sync=False) as database:
        yield StateMachine(database)


def changes_since(machine: StateMachine, revision: int) -> list[Change]:
    with machine.database.read() as transaction:
        return list(since(transaction, revision))


def kept(machine: StateMachine) -> list[int]:
    """The revisions that are kept. Their number is that of which the bound is counted."""
    with machine.database.read() as transaction:
        revisions = range(history.floor(transaction) + 1, machine.revision + 1)
        found = [change.revision for change in since(transaction, revisions.start - 1)]
        counted_again = History(transaction)._count
    assert sorted(set(found)) == list(revisions)
    assert machine._history._count == counted_again == len(revisions)
    return list(revisions)


def kept_bytes(machine: StateMachine) -> int:
    with machine.database.read() as transaction:
        return sum(len(record) + history.RECORD_OVERHEAD_BYTES for _, record in transaction.scan(HISTORY))


def node(number: int) -> Node:
    return Node(id=f"n-{number}", hostname=str(number))


def test_every_change_is_seen_in_order_with_its_result(machine: StateMachine) -> None:
    one(machine, put(node(1)))
    one(machine, delete(NODE, "n-1"))
    one(machine, put(b"the CA"))
    expected = [
        Change(1, (put(node(1)),), (None,)),
        Change(2, (delete(NODE, "n-1"),), (None,)),
        Change(3, (put(b"the CA"),), (None,)),
    ]
    for revision in range(4):
        assert changes_since(machine, revision) == expected[revision:]


def test_a_batch_is_one_revision_with_its_changes_in_order(machine: StateMachine) -> None:
    """Only an effective operation is a change: the deletion of a missing entity is none."""
    one(
        machine,
        put(node(1)),
        delete(NODE, "none"),
        put(Service(id="s", name="web"), 0),
        put(Node(id="n-1", hostname="other")),
        delete(NODE, "n-1"),
    )
    (change,) = changes_since(machine, 0)
    assert [(each.verb, each.kind_number, each.id) for each in change.operations] == [
        (PUT, NODE.number, "n-1"),
        (PUT, SERVICE.number, "s"),
        (PUT, NODE.number, "n-1"),
        (DELETE, NODE.number, "n-1"),
    ]


def container(service: str, on_node: str, **fields: Any) -> Container:
    return Container(id="c-1", service_id=service, node_id=on_node, **fields)


def test_the_indexed_values_before_a_change_are_kept_if_it_took_them_away(machine: StateMachine) -> None:
    """A watcher of node n-1 has to hear that a container left it, and of deletes only those of its containers."""
    one(machine, put(container("s-1", "n-1")))
    one(machine, put(container("s-1", "n-1", service_name="web", error="an unchanged place")))
    one(machine, put(container("s-1", "n-2")))
    one(machine, put(Service(id="s-1", name="web")), put(container("s-1", "")), put(Service(id="s-1", name="db")))
    one(machine, delete(CONTAINER, "c-1"), delete(SERVICE, "s-1"), delete(CONTAINER, "none"))
    assert [change.before for change in changes_since(machine, 0)] == [
        (None,),
        (None,),
        (("s-1", "n-1"),),
        (None, ("s-1", "n-2"), ("web",)),
        (("s-1", ""), ("db",)),
    ]


def test_a_value_that_is_not_indexed_is_kept_as_an_empty_text(machine: StateMachine) -> None:
    """No writer makes such entities, but a peer can send them."""
    for service in ("s" * 512, "ä" * 256, 7, "s" * 511):
        fields = cbor2.loads(codec.encode(CONTAINER, container("", "n-1")))
        entity = cbor2.dumps([fields[0], service, *fields[2:]])
        one(machine, put(container("", ""))._replace(entity=entity))
        one(machine, delete(CONTAINER, "c-1"))
    found = [change.before for change in changes_since(machine, 0)]
    assert found[1::2] == [(("", "n-1"),), (("", "n-1"),), (("", "n-1"),), (("s" * 511, "n-1"),)]


def test_hosts_are_not_kept(machine: StateMachine) -> None:
    """They may be 32,768 an entity, and no watch filters by them."""
    one(machine, put(TLSCertificate(id="t", name="web", hosts=("a.example", "b.example"))))
    one(machine, put(TLSCertificate(id="t", name="web", hosts=("c.example",))))
    one(machine, delete(CERTIFICATE, "t"))
    assert [change.before for change in changes_since(machine, 1)] == [(("web",),), (("web",),)]


def test_the_values_before_are_unknown_in_a_record_of_an_earlier_release(machine: StateMachine) -> None:
    """A watcher that needs them has to say that it is lost, and must not take "unknown" for "unchanged"."""
    one(machine, put(container("s-1", "n-1")))
    apply(machine, command(put(container("s-1", "n-1")), version=1))
    with machine.database.write() as transaction:
        key, record = next(transaction.scan(HISTORY))
        transaction.store(HISTORY, key, record[:2] + bytes((record[2] & 0x7F,)) + record[3:])
    unknown, known = changes_since(machine, 0)
    assert unknown == known._replace(revision=1, before=None)
    assert len(kept(machine)) == 2


def test_an_aborted_change_leaves_no_values_to_the_next_one(machine: StateMachine) -> None:
    one(machine, put(container("s-1", "n-1")))
    with suppress(ZeroDivisionError), machine.database.write() as transaction:
        transaction.delete(CONTAINER, "c-1")
        raise ZeroDivisionError
    one(machine, put(node(1)))
    assert changes_since(machine, 1) == [Change(2, (put(node(1)),), (None,))]


def test_an_operation_without_effect_is_not_a_change(machine: StateMachine) -> None:
    apply(machine, command(), command(put(node(1), 5)), command(delete(NODE, "x")), b"junk")
    assert changes_since(machine, 0) == []


def test_a_watcher_ahead_of_this_manager_waits(machine: StateMachine) -> None:
    """It watched another manager, which has applied more."""
    one(machine, put(node(1)))
    assert changes_since(machine, 5) == []


def test_the_oldest_changes_go_first_and_a_watcher_that_needs_them_is_told(
    machine: StateMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "MAX_CHANGES", 5)
    for number in range(1, 13):
        one(machine, put(node(number)))
    assert kept(machine) == [8, 9, 10, 11, 12]
    assert [change.revision for change in changes_since(machine, 7)] == [8, 9, 10, 11, 12]
    for revision in (0, 6):
        with machine.database.read() as transaction, pytest.raises(WatchLost) as lost:
            since(transaction, revision)
        assert lost.value.resume_from == 12


def test_bytes_are_bounded_too(machine: StateMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "MAX_BYTES", 10_000)
    for number in range(1, 40):
        one(machine, put(b"x" * (100 + 53 * number)))
        assert kept_bytes(machine) <= 10_000
    newest = kept(machine)
    assert newest == list(range(newest[0], 40))
    assert kept_bytes(machine) > 10_000 - 2 * (100 + 53 * 40)


def test_a_change_above_the_bound_by_itself_leaves_an_empty_history(
    machine: StateMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "MAX_BYTES", 1_000)
    one(machine, put(node(1)))
    one(machine, put(b"x" * 2_000))
    assert kept(machine) == []
    assert changes_since(machine, 2) == []
    with machine.database.read() as transaction, pytest.raises(WatchLost):
        since(transaction, 1)
    one(machine, put(node(2)))
    assert [change.revision for change in changes_since(machine, 2)] == [3]


def test_no_entry_deletes_for_long_and_the_bound_is_reached_soon(
    machine: StateMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(50):
        one(machine, put(node(number)))
    monkeypatch.setattr(history, "MAX_CHANGES", 10)
    monkeypatch.setattr(history, "MAX_DROPPED_PER_APPLY", 15)
    lengths = []
    for number in range(5):
        one(machine, put(node(50 + number)))
        lengths.append(len(kept(machine)))
    assert lengths == [36, 22, 10, 10, 10]


def test_beyond_a_bound_some_more_is_dropped_so_that_few_entries_have_to_drop(
    machine: StateMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "MAX_CHANGES", 400)
    for number in range(410):
        one(machine, put(node(number)))
        assert len(kept(machine)) == (number + 1 if number < 400 else 398 + (number - 400) % 3)


@pytest.mark.parametrize("record_bytes", [1, 60, 16 * 1024])
def test_the_changes_of_an_entry_share_records_and_a_watcher_may_stand_between_them(
    machine: StateMachine, monkeypatch: pytest.MonkeyPatch, record_bytes: int
) -> None:
    monkeypatch.setattr(history, "RECORD_BYTES", record_bytes)
    one(machine, put(node(0)))
    apply(machine, command(put(node(1))), command(put(node(2)), delete(NODE, "n-1")), b"junk", command(put(node(3))))
    expected = [
        Change(1, (put(node(0)),), (None,)),
        Change(2, (put(node(1)),), (None,)),
        Change(3, (put(node(2)), delete(NODE, "n-1")), (None, None)),
        Change(4, (put(node(3)),), (None,)),
    ]
    for revision in range(5):
        assert changes_since(machine, revision) == [change for change in expected if change.revision > revision]
    with machine.database.read() as transaction:
        assert transaction.size(HISTORY) == {1: 4, 60: 3, 16 * 1024: 2}[record_bytes]
    kept(machine)
    monkeypatch.setattr(history, "MAX_CHANGES", 2)
    one(machine, put(node(4)))
    assert kept(machine) == ([4, 5] if record_bytes <= 60 else [5])


def test_a_body_whose_values_do_not_fit_it_is_told(machine: StateMachine) -> None:
    one(machine, put(container("s", "n-1")))
    one(machine, put(container("s", "n-2")))
    with machine.database.read() as transaction:
        _, (key, record) = transaction.scan(HISTORY)
    head, size, rest = record[:9], record[12], record[13:]
    wrong = [record[:cut] for cut in (9, 12, 13, 14, 20, 21, 22, 24, -1)]
    wrong += [head + bytes((0, 0, 0, number)) + rest for number in (0, size - 1, size + 1, 255)]
    wrong += [head + bytes((0, 0, 0, size, count)) + rest[1:] for count in (0, 2, 4, 255)]
    wrong += [head + bytes((0, 0, 0, size, 3, 0, 1, 0xFF)) + rest[4:]]  # not UTF-8
    for each in wrong:
        with machine.database.write() as transaction:
            transaction.store(HISTORY, key, each)
        assert changes_since(machine, 2) == []
        with pytest.raises(ValueError, match=r"the history|not an operation|after the end|too long"):
            changes_since(machine, 1)


@pytest.mark.parametrize("cut", [8, 15, 16, -1])
def test_a_record_that_ends_too_early_is_told(machine: StateMachine, cut: int) -> None:
    apply(machine, command(put(node(1))), command(put(node(2))))
    with machine.database.write() as transaction:
        ((key, record),) = transaction.scan(HISTORY)
        transaction.store(HISTORY, key, record[:cut])
    with pytest.raises(ValueError, match="a record of the history"):
        changes_since(machine, 0)


def test_the_bounds_are_counted_on_after_a_restart(machine: StateMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "MAX_BYTES", 5_000)
    for number in range(60):
        one(machine, put(b"x" * (50 + number)))
        machine = StateMachine(machine.database)
        assert kept_bytes(machine) <= 5_000
    assert kept_bytes(machine) > 4_800


def test_the_bounds_are_counted_rightly_after_a_failed_commit(
    machine: StateMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "MAX_BYTES", 5_000)

    def no_space(self: WriteTransaction, *_exception: object) -> None:
        real(self, StorageFull, StorageFull("full"), None)
        raise StorageFull("full")

    real = WriteTransaction.__exit__
    for number in range(60):
        with monkeypatch.context() as patch:
            patch.setattr(WriteTransaction, "__exit__", no_space)
            with pytest.raises(StorageFull):
                one(machine, put(b"x" * 500))
        one(machine, put(b"x" * (50 + number)))
    assert 4_800 < kept_bytes(machine) <= 5_000


def test_an_empty_history_of_a_restored_state_is_complete_from_its_revision_on(machine: StateMachine) -> None:
    """A restore drops the history and lets the revision leap: an older watcher must not be told that all is well."""
    one(machine, put(node(1)))
    with machine.database.write() as transaction:
        for key, _ in list(transaction.scan(HISTORY)):
            transaction.erase(HISTORY, key)
        transaction.move(transaction.position._replace(revision=1_000_000_001))
    machine = StateMachine(machine.database)
    with machine.database.read() as transaction, pytest.raises(WatchLost) as lost:
        since(transaction, 1)
    assert lost.value.resume_from == 1_000_000_001
    assert changes_since(machine, 1_000_000_001) == []
    one(machine, put(node(2)))
    assert [change.revision for change in changes_since(machine, 1_000_000_001)] == [1_000_000_002]


def test_the_layout_of_a_record_is_pinned(machine: StateMachine) -> None:
    """It is on the disk, and in snapshots: 8 bytes with the size of all that was ever kept, then the operations."""
    one(machine, put(node(1)))
    with machine.database.read() as transaction:
        ((key, record),) = transaction.scan(HISTORY)
    body = encode_operations([put(node(1))])
    assert key == (1).to_bytes(8, "big")
    size = 8 + len(body) + history.RECORD_OVERHEAD_BYTES
    assert record == bytes((0, 0, 0x80, 0, 0, 0)) + size.to_bytes(2, "big") + body
    again = command(put(node(1)), version=1)
    apply(machine, again, command(delete(NODE, "n-1")), again)
    with machine.database.read() as transaction:
        _, (key, record) = transaction.scan(HISTORY)
    bodies = [body, encode_operations([delete(NODE, "n-1")]), body]
    rest = b"".join(len(each).to_bytes(4, "big") for each in bodies) + b"".join(bodies)
    assert key == (4).to_bytes(8, "big")
    total = size + 8 + len(rest) + history.RECORD_OVERHEAD_BYTES
    assert record == (2).to_bytes(2, "big") + (1 << 47 | total).to_bytes(6, "big") + rest
    one(machine, put(container("s", "n-1")), put(node(1)))
    one(machine, put(container("s", "n-2")), delete(NODE, "n-1"))
    with machine.database.read() as transaction:
        *_, (key, record) = transaction.scan(HISTORY)
    values = bytes((3, 0, 1)) + b"s" + bytes((0, 3)) + b"n-1" + bytes((0,))
    body = encode_operations([put(container("s", "n-2")), delete(NODE, "n-1")])
    assert record[8:] == b"\x5a" + len(values).to_bytes(4, "big") + values + body


def test_a_reader_takes_as_much_as_it_wants(machine: StateMachine) -> None:
    for number in range(20):
        one(machine, put(node(number)))
    with machine.database.read() as transaction:
        assert [change.revision for change in islice(since(transaction, 4), 3)] == [5, 6, 7]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 5), max_size=4), max_size=12), st.integers(0, 3))
def test_replaying_the_history_gives_the_state(
    tmp_path_factory: pytest.TempPathFactory, entries: list[list[int]], batch: int
) -> None:
    """Completeness: the tables that a watcher builds from the changes equal the real tables."""
    with Database.open(tmp_path_factory.mktemp("replay"), sync=False) as database:
        machine = StateMachine(database)
        for numbers in entries:
            operations = [delete(NODE, f"n-{n}") if n % 2 else put(node(n // 2 * 2 + batch % 2)) for n in numbers]
            apply(machine, command(*operations), *(command(operation) for operation in operations))
        replica: dict[str, tuple[int, bytes]] = {}
        for revision, operations, _ in changes_since(machine, 0):
            for operation in operations:
                if operation.entity is None:
                    del replica[operation.id]
                else:
                    replica[operation.id] = (revision, operation.entity)
        with database.read() as transaction:
            stored = {key.decode(): record for key, record in transaction.items(NODE)}
        assert {id_: codec.make_record(*found) for id_, found in replica.items()} == stored
