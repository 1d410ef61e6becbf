"""Promise: the same log makes the same state everywhere; an entry is applied wholly or not at all, and once.

A wrong command gets an answer, and raises nothing. An error of the disk is raised, and changes nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fsm_harness import apply, command, contents, delete, one, put, some_entities
from tests.strategies import any_entity
from warren_raft.errors import (
    InvalidEntity,
    InvariantViolation,
    RevisionConflict,
    StorageFull,
    Unavailable,
)
from warren_raft.fsm import entry
from warren_raft.fsm.answers import (
    BAD_ENTITY,
    BAD_KIND,
    CONFLICT,
    MALFORMED,
    STALE,
    TOO_MANY_OUTSTANDING,
    UNKNOWN_SESSION,
    Result,
    raise_for,
)
from warren_raft.fsm.history import since
from warren_raft.fsm.machine import (
    EXAMINED_BYTES_EACH,
    EXAMINED_MAX,
    RECENT_DIGESTS,
    StateMachine,
    recompute_digest,
)
from warren_raft.model.entities import (
    Container,
    Node,
    Secret,
    Service,
    Volume,
)
from warren_raft.store import codec, environments
from warren_raft.store.command import (
    OPEN_SESSION,
    PUT,
    Command,
    Operation,
    UnknownCommandVersion,
    decode,
)
from warren_raft.store.database import Database
from warren_raft.store.tables import (
    CA,
    CA_ID,
    CONTAINER,
    KINDS,
    NETWORK,
    NODE,
    SECRET,
    SERVICE,
)
from warren_raft.store.transactions import POSITION, WriteTransaction


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database.open(tmp_path / "data", sync=False) as database:
        yield database


@pytest.fixture
def machine(database: Database) -> StateMachine:
    return StateMachine(database)


def stored(machine: StateMachine, kind: Any, id: str) -> Any:  # noqa: A002
    with machine.database.read() as transaction:
        record = transaction.get(kind, id)
        return None if record is None else codec.decode(kind, record)


def assert_sound(machine: StateMachine) -> None:
    """The conditions that must hold after every entry, also for a machine that is made again."""
    with machine.database.read() as transaction:
        assert recompute_digest(transaction) == machine.digest
        assert transaction.verify_indexes() == []
        assert transaction.position == machine.committed.position
        assert transaction.revision == machine.revision
        assert transaction.has_sound_position
    assert StateMachine(machine.database).committed == machine.committed


# ---------------------------------------------------------------------------------------- where the log stands


def test_a_new_database_has_applied_the_entry_that_every_log_begins_with(machine: StateMachine) -> None:
    assert machine.committed == (1, 0, 0, bytes(32), None, None, 1)
    assert machine.digest_at(1) == bytes(32)


def test_an_entry_without_commands_moves_the_index_and_nothing_else(machine: StateMachine) -> None:
    assert machine.apply(2, 7, []) == []
    assert machine.committed == (2, 7, 0, bytes(32), None, None, 1)
    assert_sound(machine)


@pytest.mark.parametrize("index", [0, 1, 2, 4, 2**40])
def test_an_entry_that_is_not_the_next_one_is_refused(machine: StateMachine, index: int) -> None:
    """rqlite #2747 and #2759: an entry applied twice, or one left out, and the replicas differ for ever."""
    machine.apply(2, 1, [])
    with pytest.raises(InvariantViolation, match="was to be applied after"):
        machine.apply(index, 1, [command(put(Node(id="n")))])
    assert machine.applied_index == 2
    assert stored(machine, NODE, "n") is None


def test_the_machine_goes_on_from_where_the_database_is(tmp_path: Path) -> None:
    with Database.open(tmp_path, sync=False) as database:
        machine = StateMachine(database)
        apply(machine, *(command(put(entity)) for entity in some_entities()), term=3)
        machine.apply_membership(3, 4, "cluster-1", b"members")
        before = machine.committed
    with Database.open(tmp_path, sync=False) as database:
        machine = StateMachine(database)
        assert machine.committed == before
        assert machine.committed == (3, 4, 8, before.digest, b"members", "cluster-1", 1)
        assert one(machine, put(Node(id="n-9"))).revision == 9
        assert_sound(machine)


def test_a_database_that_somebody_else_wrote_to_is_left_alone(machine: StateMachine) -> None:
    other = StateMachine(machine.database)
    one(other, put(Node(id="n")))
    with pytest.raises(InvariantViolation, match="changed by another writer"):
        one(machine, put(Node(id="m")))
    assert stored(machine, NODE, "m") is None


# ---------------------------------------------------------------------------------------- revisions and results


def test_every_change_has_a_revision_of_its_own(machine: StateMachine) -> None:
    changed = Node(id="a", hostname="alpha")
    results = apply(machine, command(put(Node(id="a"))), command(put(Node(id="b"))), command(put(changed)))
    assert [result.revision for result in results] == [1, 2, 3]
    assert (stored(machine, NODE, "a").revision, stored(machine, NODE, "b").revision) == (3, 2)
    assert_sound(machine)


def test_a_deletion_has_a_revision_and_a_deletion_of_nothing_has_the_latest(machine: StateMachine) -> None:
    results = apply(
        machine,
        command(put(Node(id="a"))),
        command(delete(NODE, "a")),
        command(delete(NODE, "a")),
        command(delete(SERVICE, "never there")),
        command(put(Node(id="b"))),
    )
    assert [result.revision for result in results] == [1, 2, 2, 2, 3]
    assert stored(machine, NODE, "a") is None
    assert_sound(machine)


def test_a_batch_is_one_revision_and_a_barrier_is_none(machine: StateMachine) -> None:
    batch = command(put(Node(id="a")), put(Service(id="s", name="web")), delete(NODE, "not there"))
    results = apply(machine, batch, command(), command(delete(NODE, "x"), delete(NODE, "y")))
    assert [result.revision for result in results] == [1, 1, 1]
    assert stored(machine, NODE, "a").revision == stored(machine, SERVICE, "s").revision == 1
    assert_sound(machine)


def test_putting_the_same_entity_again_was_a_change_in_version_1(machine: StateMachine) -> None:
    """A log may have such commands for ever, and every manager has to come to the revision of those that ran then."""
    node = Node(id="a", hostname="alpha")
    again = command(put(node), version=1)
    assert [result.revision for result in apply(machine, again, again)] == [1, 2]
    assert stored(machine, NODE, "a").revision == 2
    assert_sound(machine)


def test_the_ca_is_an_entity_like_any_other(machine: StateMachine) -> None:
    assert one(machine, put(b"first", 0)).revision == 1
    assert one(machine, put(b"second", 0)).error == (CONFLICT, CA.number, CA_ID, 0, 1)
    assert one(machine, put(b"second", 1)).revision == 2
    assert stored(machine, CA, CA_ID) == b"second"
    assert_sound(machine)


# ---------------------------------------------------------------------------------------- conditions


@pytest.mark.parametrize(
    ("operation", "error"),
    [
        (put(Node(id="a"), 1), None),
        (put(Node(id="a"), 2), (CONFLICT, 1, "a", 2, 1)),
        (put(Node(id="a"), 0), (CONFLICT, 1, "a", 0, 1)),
        (put(Node(id="b"), 0), None),
        (put(Node(id="b"), 7), (CONFLICT, 1, "b", 7, 0)),
        (delete(NODE, "a", 1), None),
        (delete(NODE, "a", 3), (CONFLICT, 1, "a", 3, 1)),
        (delete(NODE, "b", 0), None),
        (delete(NODE, "b", 1), (CONFLICT, 1, "b", 1, 0)),
    ],
)
def test_a_condition_holds_or_nothing_is_changed(
    machine: StateMachine, operation: Operation, error: tuple[Any, ...] | None
) -> None:
    one(machine, put(Node(id="a")))
    before = machine.committed
    result = one(machine, operation)
    assert result.error == error
    if error is not None:
        assert result.revision == 1
        assert (machine.revision, machine.digest) == (before.revision, before.digest)
    assert_sound(machine)


def test_one_condition_that_fails_undoes_the_whole_batch_and_no_other_command(machine: StateMachine) -> None:
    results = apply(
        machine,
        command(put(Node(id="a"))),
        command(put(Node(id="b")), delete(NODE, "a"), put(Service(id="s", name="web"), 5)),
        command(put(Node(id="c"))),
    )
    assert [result.error for result in results] == [None, (CONFLICT, SERVICE.number, "s", 5, 0), None]
    assert [stored(machine, NODE, id_) is not None for id_ in "abc"] == [True, False, True]
    assert machine.revision == 2
    assert_sound(machine)


@pytest.mark.parametrize(
    ("batch", "error"),
    [
        ((delete(NODE, "a"), put(Node(id="a"), 0)), None),
        ((put(Node(id="b")), put(Node(id="b"), 0)), (CONFLICT, 1, "b", 0, 2)),
        ((put(Node(id="b")), put(Node(id="b"), 2)), None),  # the revision that this batch is about to have
        ((put(Node(id="b")), delete(NODE, "b", 2), put(Node(id="b"), 0)), None),
        ((put(Node(id="a"), 1), put(Node(id="a"), 1)), (CONFLICT, 1, "a", 1, 2)),
        ((put(Service(id="a", name="x")), put(Node(id="a"), 1)), None),  # another kind with the same id
    ],
)
def test_a_later_condition_of_a_batch_saw_the_earlier_operations_in_version_1(
    machine: StateMachine, batch: Sequence[Operation], error: tuple[Any, ...] | None
) -> None:
    one(machine, put(Node(id="a")))
    assert apply(machine, command(*batch, version=1))[0].error == error
    assert machine.revision == (2 if error is None else 1)
    assert_sound(machine)


def test_of_several_writes_to_one_entity_in_a_batch_the_last_one_stays(machine: StateMachine) -> None:
    one(machine, put(Service(id="s", name="a")), put(Service(id="s", name="b")), put(Service(id="s", name="c")))
    assert stored(machine, SERVICE, "s").name == "c"
    assert_sound(machine)
    one(machine, put(Service(id="s", name="d")), delete(SERVICE, "s"))
    assert stored(machine, SERVICE, "s") is None
    assert machine.revision == 2
    assert_sound(machine)


# ---------------------------------------------------------------------------------------- indexes


@pytest.mark.parametrize("fields", [["c", "s"], ["c", "s", "web", ""], ["c", "s", "web", "m"], ["c", "t", "web", "n"]])
def test_after_an_update_an_index_has_the_values_of_the_new_entity(machine: StateMachine, fields: list[str]) -> None:
    """Also an entity of an older manager that ends before the field. Most updates change no index, and are quick."""
    one(machine, put(Container(id="c", service_id="s", service_name="web", node_id="n", image="before")))
    one(machine, Operation(PUT, CONTAINER.number, "c", cbor2.dumps(fields)))
    assert stored(machine, CONTAINER, "c").image == ""
    assert_sound(machine)
    one(machine, put(Container(id="c", service_id="s", service_name="web", node_id="n", image="after")))
    assert stored(machine, CONTAINER, "c").image == "after"
    assert_sound(machine)


# ---------------------------------------------------------------------------------------- malformed commands


GOOD = codec.encode(NODE, Node(id="n"))


@pytest.mark.parametrize(
    ("operation", "reason"),
    [
        (Operation(PUT, 10, "n", GOOD), BAD_KIND),
        (Operation(2, 23, "n"), BAD_KIND),
        (Operation(PUT, NODE.number, "other", GOOD), BAD_ENTITY),  # not the id that the entity has
        (Operation(PUT, NODE.number, "n", b"\x80"), BAD_ENTITY),
        (Operation(PUT, NODE.number, "n", b"\xa1\x00\x61n"), BAD_ENTITY),  # a map
        (Operation(PUT, NODE.number, "n", b"\x61n"), BAD_ENTITY),
        (Operation(PUT, NODE.number, "n", b"\x81\x41n"), BAD_ENTITY),  # the id as bytes
        (Operation(PUT, NODE.number, "n", b"\x81\x62n"), BAD_ENTITY),
        (Operation(PUT, CA.number, CA_ID, codec.encode(NODE, Node(id=CA_ID))), BAD_ENTITY),
        (Operation(PUT, CA.number, "other", codec.encode(CA, b"data")), BAD_ENTITY),
        (Operation(PUT, CA.number, CA_ID, codec.encode(CA, b"data") + b"\x00"), BAD_ENTITY),
    ],
)
def test_a_command_that_cannot_be_stored_is_answered_and_changes_nothing(
    machine: StateMachine, operation: Operation, reason: str
) -> None:
    one(machine, put(Node(id="n", hostname="before")))
    before = machine.committed
    results = apply(machine, command(put(Node(id="m")), operation), command(put(Node(id="after"))))
    assert [result.error for result in results] == [(MALFORMED, reason), None]
    assert stored(machine, NODE, "m") is None
    assert stored(machine, NODE, "n").hostname == "before"
    assert machine.revision == before.revision + 1
    assert_sound(machine)


@pytest.mark.parametrize(
    "rest",
    [
        b"\x60",  # less than the head says
        b"\x60" * 30,  # more
        b"\x81" * 5_000,  # nested too deeply for any decoder
        b"\xc0\x61x\x61m",  # a tag that does not fit
        b"\x60\x61m\x61",  # cut off
        b"\x61s\x60\x61\xff",  # no UTF-8
        b"\x9f\xff\x61m\x61m",  # no length
    ],
)
def test_the_bytes_after_the_id_are_stored_unchanged(machine: StateMachine, rest: bytes) -> None:
    """A decoder's opinion of it may change with its release, and then two managers would differ for ever.

    No writer of ours makes such a record. A reader sees the rest of it, or gets Corrupted.
    """
    one(machine, put(Container(id="c", service_id="s", node_id="m")))
    before = machine.digest
    assert one(machine, Operation(PUT, CONTAINER.number, "c", b"\x84\x61c" + rest)).error is None
    assert machine.digest != before
    assert_sound(machine)
    with suppress(codec.MalformedRecord):
        assert stored(machine, CONTAINER, "c").id == "c"
    one(machine, put(Container(id="c", service_id="s", node_id="n")))
    assert_sound(machine)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=120) | st.binary(max_size=60).map(lambda tail: command()[:34] + tail), max_size=6))
def test_bytes_that_are_no_command_are_answered_and_change_only_the_index(
    tmp_path_factory: pytest.TempPathFactory, junk: list[bytes]
) -> None:
    junk = [data for data in junk if not (len(data) > 1 and data[0] >> 5 == 4 and 2 <= data[1] < 24)]
    with Database.open(tmp_path_factory.mktemp("junk"), sync=False) as database:
        machine = StateMachine(database)
        one(machine, put(Node(id="n")))
        before, before_contents = machine.committed, contents(database)
        results = apply(machine, *junk)
        for data, result in zip(junk, results, strict=True):
            assert result == (0, 0, 1, None) if data == command() else result.error is not None
        assert machine.committed == before._replace(applied_index=before.applied_index + 1)
        after_contents = contents(database)
        for before_or_after in (before_contents, after_contents):
            before_or_after["meta"].pop(POSITION)
        assert after_contents == before_contents


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_an_entity_with_any_bytes_changed_is_stored_whole_or_not_at_all(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Every reader can read the record and its indexes of every accepted entity."""
    entity = data.draw(any_entity())
    operation = put(entity)
    broken = bytearray(operation.entity or b"")
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(broken) - 1))
        broken[position : position + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
        broken = broken or bytearray(b"\x00")
    with Database.open(tmp_path_factory.mktemp("broken"), sync=False) as database:
        machine = StateMachine(database)
        result = one(machine, operation._replace(entity=bytes(broken)))
        assert result.error in (None, (MALFORMED, BAD_ENTITY))
        assert machine.revision == (1 if result.error is None else 0)
        assert_sound(machine)
        one(machine, operation)
        assert_sound(machine)


def test_a_command_that_was_examined_is_applied_as_any_other_and_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A follower examines the commands of an entry before it appends the entry, and keeps them decoded."""
    commands = [command(Operation(OPEN_SESSION), session=5, sequence=1, lowest=1)]
    for sequence, entity in enumerate(some_entities(), 2):
        commands.append(command(put(entity), session=5, sequence=sequence, lowest=1))
    large = command(put(Secret(id="large", name="large", data=bytes(EXAMINED_BYTES_EACH))), session=5, sequence=99)
    with Database.open(tmp_path / "1", sync=False) as first, Database.open(tmp_path / "2", sync=False) as second:
        examining, plain = StateMachine(first), StateMachine(second)
        assert not any(examining.problem_of(each, "") for each in (*commands, large))
        results = apply(plain, *commands, large)
        decoded: list[bytes] = []

        def counted(data: bytes) -> Command:
            decoded.append(data)
            return decode(data)

        monkeypatch.setattr(entry, "decode", counted)
        assert apply(examining, *(bytes(bytearray(each)) for each in commands), large) == results
        assert decoded == [large]
        assert examining.digest == plain.digest
        assert contents(first) == contents(second)


def test_commands_that_are_examined_and_never_applied_do_not_pile_up(machine: StateMachine) -> None:
    for sequence in range(2 * EXAMINED_MAX + 5):
        assert machine.problem_of(command(session=5, sequence=sequence, lowest=0), "") == ""
        assert len(machine._examined) <= EXAMINED_MAX


def test_a_command_of_a_newer_manager_stops_this_one_and_the_entry_is_not_applied(machine: StateMachine) -> None:
    """Skipped, it would make this replica differ silently from those that understand it (Nomad panics here)."""
    newer = b"\x87\x03" + command(put(Node(id="x")))[2:]
    before = machine.committed
    with pytest.raises(UnknownCommandVersion):
        apply(machine, command(put(Node(id="a"))), newer)
    assert machine.committed == before
    assert stored(machine, NODE, "a") is None
    assert one(machine, put(Node(id="b"))).revision == 1
    assert_sound(machine)


# ---------------------------------------------------------------------------------------- digest


def test_the_digest_depends_on_every_record_and_not_on_how_it_came_about(tmp_path: Path) -> None:
    def digest_of(name: str, *commands: bytes) -> bytes:
        with Database.open(tmp_path / name, sync=False) as database:
            machine = StateMachine(database)
            apply(machine, *commands)
            assert_sound(machine)
            return machine.digest

    a, b = put(Node(id="a")), put(Node(id="b"))
    base = digest_of("base", command(a, b))
    assert digest_of("other order", command(b, a)) == base
    assert digest_of("with detours", command(a, b, put(Node(id="c")), delete(NODE, "c"))) == base
    others = [
        digest_of("less", command(a)),
        digest_of("more", command(a, b, put(Service(id="s", name="x")))),
        digest_of("other value", command(a, put(Node(id="b", hostname="x")))),
        digest_of("other kind", command(a, put(Volume(id="b", name="b")))),
        digest_of("other revision", command(a), command(b)),
        digest_of("one kind", command(Operation(PUT, NETWORK.number, "x", b"\x81\x61x"))),
        digest_of("same bytes in another", command(Operation(PUT, SECRET.number, "x", b"\x81\x61x"))),
        digest_of("with CA", command(a, b, put(b"CA"))),
        digest_of("with a session", command(a, b), command(Operation(OPEN_SESSION), session=5)),
    ]
    assert len({base, *others}) == 1 + len(others)


def test_the_digest_of_a_state_is_pinned(machine: StateMachine) -> None:
    """The digest is stored, in snapshots too, and compared with those of other managers, perhaps of another version."""
    one(machine, Operation(PUT, NETWORK.number, "x", b"\x81\x61x"))
    assert machine.digest.hex() == "269739a0bfdf29fe5bc0a9baae64f9ad30fde1266e57f99174a1514b5d59c22f"


def test_deleting_everything_gives_the_digest_of_nothing(machine: StateMachine) -> None:
    entities = some_entities()
    apply(machine, *(command(put(entity)) for entity in entities))
    assert machine.digest != bytes(32)
    apply(machine, *(command(delete(kind, id_.decode())) for kind, id_ in _all_ids(machine)))
    assert machine.digest == bytes(32)
    assert machine.revision == 2 * len(entities)


def _all_ids(machine: StateMachine) -> list[tuple[Any, bytes]]:
    with machine.database.read() as transaction:
        return [(kind, key) for kind in KINDS for key, _ in transaction.items(kind)]


def test_members_and_the_cluster_id_are_in_the_digest(machine: StateMachine) -> None:
    digests = []
    for cluster_id, members in [("c-1", b"m1"), ("c-1", b"m1 m2"), ("c-2", b"m1 m2"), ("c-1", b"m1")]:
        machine.apply_membership(machine.applied_index + 1, 2, cluster_id, members)
        assert (machine.cluster_id, machine.membership) == (cluster_id, members)
        assert machine.revision == 0
        assert_sound(machine)
        digests.append(machine.digest)
    assert len(set(digests)) == 3
    assert digests[0] == digests[3]


def test_two_managers_can_compare_recent_digests(machine: StateMachine) -> None:
    digests = {1: machine.digest}
    for number in range(RECENT_DIGESTS + 10):
        one(machine, put(Node(id=f"n-{number % 7}", hostname=str(number))))
        digests[machine.applied_index] = machine.digest
    last = machine.applied_index
    recent = range(last - RECENT_DIGESTS + 1, last + 1)
    assert [machine.digest_at(index) for index in recent] == [digests[index] for index in recent]
    assert machine.digest_at(last) == machine.digest
    assert machine.digest_at(last - RECENT_DIGESTS + 1) == digests[last - RECENT_DIGESTS + 1]
    assert machine.digest_at(last - RECENT_DIGESTS) is None
    assert machine.digest_at(last + 1) is None


# ---------------------------------------------------------------------------------------- failures


class Interrupted(BaseException):
    """Stands for a KeyboardInterrupt at a chosen place."""


@contextmanager
def failing_exit(monkeypatch: pytest.MonkeyPatch, *, after_commit: bool, error: BaseException) -> Iterator[None]:
    """Let the end of a write transaction raise, before or after its commit."""
    real = WriteTransaction.__exit__

    def exit_(self: WriteTransaction, *exception: Any) -> None:
        if exception[0] is not None:
            real(self, *exception)
            return
        if after_commit:
            real(self, *exception)
        else:
            real(self, type(error), error, None)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(WriteTransaction, "__exit__", exit_)
        yield


def test_a_commit_that_fails_leaves_everything_as_it_was_and_may_be_repeated(
    machine: StateMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = 77
    apply(machine, command(Operation(OPEN_SESSION), session=session))
    one(machine, put(Node(id="a")))
    before, before_contents = machine.committed, contents(machine.database)
    entry = [
        command(put(Node(id="b")), session=session, sequence=1, lowest=1),
        command(delete(NODE, "a"), session=session, sequence=2, lowest=1),
        command(Operation(OPEN_SESSION), session=88),
    ]
    with failing_exit(monkeypatch, after_commit=False, error=StorageFull("full")):
        for _ in range(2):
            with pytest.raises(StorageFull):
                apply(machine, *entry)
            assert machine.committed == before
            assert contents(machine.database) == before_contents
    results = apply(machine, *entry)
    assert [(result.revision, result.error) for result in results] == [(2, None), (3, None), (3, None)]
    assert_sound(machine)


def test_an_interrupt_behind_the_commit_does_not_apply_the_entry_twice(
    machine: StateMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C between the commit and the line that notes it: the published state would be one entry behind."""
    with failing_exit(monkeypatch, after_commit=True, error=Interrupted()), pytest.raises(Interrupted):
        one(machine, put(Node(id="a")))
    assert machine.applied_index == 1
    machine.settle()
    assert (machine.applied_index, machine.revision) == (2, 1)
    with pytest.raises(InvariantViolation):
        machine.apply(2, 1, [command(put(Node(id="a")))])
    assert one(machine, put(Node(id="b"))).revision == 2
    assert_sound(machine)


def test_a_full_map_changes_nothing_and_a_smaller_write_still_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environments, "MAP_SIZE_BYTES", 1024 * 1024)
    with Database.open(tmp_path, sync=False) as database:
        machine = StateMachine(database)
        one(machine, put(Node(id="small")))
        before, before_contents = machine.committed, contents(database)
        with pytest.raises(StorageFull):
            apply(machine, command(put(Node(id="small 2"))), command(put(b"x" * 900_000)))
        assert machine.committed == before
        assert contents(database) == before_contents
        assert one(machine, delete(NODE, "small")).revision == 2
        assert_sound(machine)


# ---------------------------------------------------------------------------------------- determinism


WORKER = """
import json, locale, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from tests.fsm_harness import contents
from warren_raft.fsm.machine import StateMachine
from warren_raft.store.database import Database
time.tzset()
locale.setlocale(locale.LC_ALL, "")
entries = [[bytes.fromhex(c) for c in entry] for entry in json.loads(Path(sys.argv[1]).read_text())]
with Database.open(sys.argv[2], sync=False) as database:
    machine = StateMachine(database)
    results = [machine.apply(n + 2, n // 3 + 1, commands) for n, commands in enumerate(entries)]
    found = contents(database)
    everything = {name: sorted((k.hex(), v.hex()) for k, v in found[name].items()) for name in found}
    print(json.dumps([machine.digest.hex(), results, everything], sort_keys=True))
"""


def a_log(seed: int) -> list[list[bytes]]:
    """Entries with everything in them: sessions, duplicates, conflicts, batches, junk."""
    random = Random(seed)
    sequences = {5: 0, 2**63 - 1: 0}
    log = [[command(Operation(OPEN_SESSION), session=session) for session in sequences]]
    said: list[bytes] = []
    for _ in range(40):
        entry = []
        for _ in range(random.randrange(6)):
            session = random.choice([0, *sequences])
            if session:
                sequences[session] += 1
            number = sequences.get(session, 0)
            steps = random.sample(some_steps(random), random.randrange(4))
            said.append(command(*steps, session=session, sequence=number, lowest=max(0, number - 3)))
            entry += [said[-1], random.choice(said), b"\x00" + random.randbytes(9)][: random.choice([1, 1, 2, 3])]
        log.append(entry)
    return log


def some_steps(random: Random) -> list[Operation]:
    container = Container(id=f"c-{random.randrange(9)}", node_id=f"n-{random.randrange(3)}", env=("A=1",))
    return [
        put(random.choice(some_entities()), random.choice([None, None, 0, random.randrange(60)])),
        delete(random.choice(KINDS), random.choice(["s-1", "c-1", "n-1", CA_ID])),
        put(container),
    ]


@pytest.mark.slow
def test_two_processes_that_differ_in_everything_else_come_to_the_same_state(tmp_path: Path) -> None:
    """Invariant I16: hash seed, time zone, locale, optimisation and working directory decide nothing."""
    log = tmp_path / "log.json"
    log.write_text(json.dumps([[data.hex() for data in entry] for entry in a_log(1)]))
    root = str(Path(__file__).parents[2])
    environments = [
        {"PYTHONHASHSEED": "1", "TZ": "UTC", "LC_ALL": "C"},
        {"PYTHONHASHSEED": "4242", "TZ": "Asia/Kathmandu", "LC_ALL": "C.UTF-8", "PYTHONOPTIMIZE": "1"},
    ]
    outputs = []
    for number, environment in enumerate(environments):
        arguments = [sys.executable, "-c", WORKER, str(log), str(tmp_path / f"data-{number}"), root]
        cwd = tmp_path if number else None
        done = subprocess.run(arguments, env=os.environ | environment, cwd=cwd, check=True, capture_output=True)
        outputs.append(json.loads(done.stdout))
    assert outputs[0] == outputs[1]
    errors = {answer[3][0] for answers in outputs[0][1] for answer in answers if answer[3]}
    assert errors >= {CONFLICT, MALFORMED, STALE}, "the log is to have everything in it"


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.integers(1, 12), min_size=1, max_size=30))
def test_how_commands_are_grouped_into_entries_changes_no_revision_and_no_entity(
    tmp_path_factory: pytest.TempPathFactory, seed: int, sizes: list[int]
) -> None:
    commands = [data for entry in a_log(seed) for data in entry]
    outcomes = []
    for grouping in ([1] * len(commands), sizes):
        with Database.open(tmp_path_factory.mktemp("grouped"), sync=False) as database:
            machine = StateMachine(database)
            results: list[Result] = []
            rest, turn = list(commands), 0
            while rest:
                size = grouping[turn % len(grouping)]
                results += apply(machine, *rest[:size])
                rest, turn = rest[size:], turn + 1
            assert_sound(machine)
            found = contents(database)
            # The grouping is in the first two by the index, and the history has the changes of an entry in one record.
            del found["meta"], found["sessions"], found["history"]
            with database.read() as transaction:
                changes = list(since(transaction, 0))
            outcomes.append((results, machine.revision, found, changes))
    assert outcomes[0] == outcomes[1]


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.integers(1, 12), min_size=1, max_size=30))
def test_entries_in_one_transaction_leave_the_same_state_as_one_by_one(
    tmp_path_factory: pytest.TempPathFactory, seed: int, sizes: list[int]
) -> None:
    """A manager that catches up applies many entries at once. Digests are compared at each index."""
    log = a_log(seed)
    outcomes = []
    for groups in ([1] * len(log), sizes):
        with Database.open(tmp_path_factory.mktemp("together"), sync=False) as database:
            machine = StateMachine(database)
            results: list[list[Result]] = []
            turn = 0
            while len(results) < len(log):
                entries = [(3, commands) for commands in log[len(results) :][: groups[turn % len(groups)]]]
                results += machine.apply_all(machine.applied_index + 1, entries)
                turn += 1
            assert_sound(machine)
            found = contents(database)
            del found["history"]  # the changes of a transaction are in one record
            with database.read() as transaction:
                changes = list(since(transaction, 0))
            digests = [machine.digest_at(index) for index in range(machine.applied_index + 1)]
            outcomes.append((results, machine.committed, found, changes, digests))
    assert outcomes[0] == outcomes[1]


def test_entries_in_one_transaction_are_applied_all_or_none(machine: StateMachine) -> None:
    apply(machine, command(Operation(OPEN_SESSION), session=5))
    before, before_contents = machine.committed, contents(machine.database)
    entries = [(1, [command(put(Node(id="a")), session=5, sequence=1)]), (1, [b"\x87\x03" + command()[2:]])]
    with pytest.raises(UnknownCommandVersion):
        machine.apply_all(3, entries)
    assert (machine.committed, contents(machine.database)) == (before, before_contents)
    assert machine.apply_all(3, []) == []
    assert machine.apply_all(3, entries[:1]) == [[(5, 1, 1, None)]]
    with pytest.raises(InvariantViolation, match="was to be applied after"):
        machine.apply_all(3, entries[:1])
    assert_sound(machine)


def test_applying_changes_nothing_but_the_database(machine: StateMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    """No clock and no randomness: with both forbidden, everything goes on."""

    def forbidden(*_arguments: object) -> None:
        raise AssertionError("apply looked at the clock or at a dice")

    log = a_log(3)
    for name in ("time.time", "time.time_ns", "time.monotonic", "os.urandom", "random.random", "random.getrandbits"):
        monkeypatch.setattr(name, forbidden)
    results = [result for entry in log for result in apply(machine, *entry)]
    monkeypatch.undo()
    assert machine.revision > 20
    assert any(result.error for result in results)


# ---------------------------------------------------------------------------------------- results as errors


def test_an_answer_becomes_the_promised_error_of_a_write() -> None:
    assert raise_for(Result(1, 2, 3)) == 3
    with pytest.raises(RevisionConflict) as conflict:
        raise_for(Result(1, 2, 9, (CONFLICT, CONTAINER.number, "c-1", 4, 7)))
    assert vars(conflict.value) == {"kind": "container", "id": "c-1", "expected": 4, "actual": 7}
    with pytest.raises(InvalidEntity, match=BAD_ENTITY):
        raise_for(Result(1, 2, 9, (MALFORMED, BAD_ENTITY)))
    for word in (UNKNOWN_SESSION, STALE, TOO_MANY_OUTSTANDING):
        with pytest.raises(Unavailable) as unavailable:
            raise_for(Result(1, 2, 9, (word,)))
        assert unavailable.value.maybe_applied
    with pytest.raises(InvariantViolation):
        raise_for(Result(1, 2, 9, ("something else",)))


def test_every_error_that_apply_gives_becomes_an_exception(machine: StateMachine) -> None:
    results = [result for entry in a_log(2) for result in apply(machine, *entry)]
    for result in results:
        if result.error is not None:
            with pytest.raises((RevisionConflict, InvalidEntity, Unavailable)):
                raise_for(result)
