"""Promise: an operation of a store does what its docstring says (store/reading.py, store/writing.py), in any order.

Hypothesis drives a LocalStore and a few dicts side by side: writes, batches, conditions, look-ups, restarts. After each
step all reads must be the same, the digest must be that of the records, and the indexes those of a rebuild.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.strategies import entities
from warren_raft.errors import NotFound, RevisionConflict
from warren_raft.fsm.history import since
from warren_raft.fsm.machine import recompute_digest
from warren_raft.local.store import LocalStore
from warren_raft.model.entities import TLSCertificate
from warren_raft.store import codec
from warren_raft.store.interface import Batch
from warren_raft.store.operations import put_operation
from warren_raft.store.tables import (
    BY_NUMBER,
    CA_ID,
    CERTIFICATE,
    CONTAINER,
    KINDS,
    SERVICE,
    Kind,
)

MEMORY = "/dev/shm"
"""Each step is a sync; on a disk, nearly all of the test's time would be spent in them."""

ALIKE = ["a", "b", "ä", "A", "ab"]
"""Few ids, names and references, so that things meet; some are the beginning of others, or differ in case."""
HOSTS = ["example.com", "*.example.com", "A.Example.com", "a.b.example.com", "*.b.example.com", "xn--e1afmkfd", "*."]
ASKED = [*HOSTS, "a.example.com", "B.EXAMPLE.COM", ".example.com", "com", "", "x.xn--e1afmkfd"]

CONDITIONS = ["none", "right", "absent", "wrong"]
METHOD_NAMES = {CERTIFICATE.name: "tls_certificate"}
PLURAL_NAMES = {CERTIFICATE.name: "tls_certificates"}
BY_NAME = ("service", "secret", "volume", "ingress", "certificate")


def method_name(kind: Kind[Any]) -> str:
    return METHOD_NAMES.get(kind.name, kind.name)


def bytes_of(kind: Kind[Any], entity: Any) -> bytes | None:
    return put_operation(kind, entity, None).entity


def texts_of(kind: Kind[Any], entity: Any) -> tuple[str, ...]:
    """The indexed values that the history keeps."""
    return tuple(getattr(entity, index.field) for index in kind.indexes if not index.many)


def plural_name(kind: Kind[Any]) -> str:
    return PLURAL_NAMES.get(kind.name, kind.plural)


class Write(NamedTuple):
    """A write as it is drawn. `entity` is None for a delete, bytes for the CA."""

    kind: Kind[Any]
    id: str
    entity: Any
    update: bool
    condition: str
    cascades: bool = False


def _with_alike(entity: Any, draw: st.DrawFn) -> Any:
    """Give the entity an id, a name and references that others have too."""
    changes: dict[str, Any] = {"id": draw(st.sampled_from(ALIKE))}
    for field in ("name", "service_id", "node_id"):
        if hasattr(entity, field):
            changes[field] = draw(st.sampled_from([*ALIKE, ""]))
    if isinstance(entity, TLSCertificate):
        changes["hosts"] = tuple(draw(st.lists(st.sampled_from(HOSTS), max_size=3)))
    return replace(entity, **changes)


@st.composite
def writes(draw: st.DrawFn) -> Write:
    kind = draw(st.sampled_from(KINDS))
    condition = draw(st.sampled_from(CONDITIONS))
    if kind.entity is None:
        return Write(kind, CA_ID, draw(st.binary(max_size=20)), False, condition)
    if draw(st.integers(0, 2)) == 0:
        return Write(
            kind, draw(st.sampled_from(ALIKE)), None, False, condition, kind is SERVICE and draw(st.booleans())
        )
    entity = _with_alike(draw(entities(kind.entity)), draw)
    return Write(kind, entity.id, entity, kind.updatable and draw(st.booleans()), condition)


class Model:
    """The documented meaning of the operations, on dicts: (entity, revision) by kind and id."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[str, tuple[Any, int]]] = {kind.name: {} for kind in KINDS}
        self.revision = 0

    def revision_of(self, write: Write) -> int:
        return self.tables[write.kind.name].get(write.id, (None, 0))[1]

    def if_revision(self, write: Write) -> int | None:
        """The value of the drawn condition for the present state."""
        actual = self.revision_of(write)
        return {"none": None, "right": actual, "absent": 0, "wrong": actual + 1}[write.condition]

    def carry_out(self, batch: Iterable[tuple[Write, int | None]]) -> int | tuple[str, str, int, int]:
        """All of it, as one revision, or (kind, id, expected, actual) of a conflict and nothing of it."""
        steps = list(batch)
        for write, if_revision in steps:
            actual = self.revision_of(write)
            if if_revision is not None and if_revision != actual:
                return write.kind.name, write.id, if_revision, actual
        changed, same_at = False, 0
        for write, _ in steps:
            table = self.tables[write.kind.name]
            if write.entity is None:
                changed = self._delete(write) or changed
            elif write.id in table and bytes_of(write.kind, table[write.id][0]) == bytes_of(write.kind, write.entity):
                same_at = max(same_at, table[write.id][1])
            else:
                table[write.id] = (write.entity, self.revision + 1)
                changed = True
        self.revision += changed
        return self.revision if changed else same_at or self.revision

    def _delete(self, write: Write) -> bool:
        """Whether there was something to delete."""
        containers = self.tables[CONTAINER.name]
        taken_along = self.ids(CONTAINER, lambda e: e.service_id == write.id) if write.cascades else []
        for id_ in taken_along:
            del containers[id_]
        return self.tables[write.kind.name].pop(write.id, None) is not None or bool(taken_along)

    def ids(self, kind: Kind[Any], has: Callable[[Any], bool]) -> list[str]:
        """The ids of a kind's entities for which `has` is true, in the order of their UTF-8 bytes."""
        return sorted((id_ for id_, (e, _) in self.tables[kind.name].items() if has(e)), key=str.encode)


def covers(pattern: str, host: str) -> bool:
    """RFC 6125, 6.4.3, as API.md has it: the star is the whole first label, and stands for one label."""
    pattern, host = pattern.lower(), host.lower()
    if not pattern.startswith("*."):
        return pattern == host
    first, dot, rest = host.partition(".")
    return pattern == host or (first != "" and dot == "." and rest != "" and rest == pattern[2:])


def send(target: LocalStore | Batch, write: Write, if_revision: int | None) -> Any:
    """Through the method that a user calls."""
    if write.kind.entity is None:
        return target.save_ca(write.entity, if_revision=if_revision)
    if write.entity is None:
        more = {"cascade": True} if write.cascades else {}
        return getattr(target, f"delete_{method_name(write.kind)}")(write.id, if_revision=if_revision, **more)
    verb = "update" if write.update else "create"
    return getattr(target, f"{verb}_{method_name(write.kind)}")(write.entity, if_revision=if_revision)


class LocalStoreModel(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.path = tempfile.mkdtemp(dir=MEMORY if Path(MEMORY).is_dir() else None)
        self.model = Model()
        self.store = LocalStore(self.path)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.path)

    # ---- steps

    @rule(write=writes())
    def one_write(self, write: Write) -> None:
        if_revision = self.model.if_revision(write)
        self.expect([(write, if_revision)], lambda: send(self.store, write, if_revision))

    @rule(drawn=st.lists(writes(), max_size=5), wait=st.booleans())
    def batch(self, drawn: list[Write], wait: bool) -> None:
        steps = [(write, self.model.if_revision(write)) for write in drawn]

        def send_batch() -> int:
            with self.store.batch(wait=wait) as batch:
                for write, if_revision in steps:
                    send(batch, write, if_revision)
            return batch.revision if wait else batch.future.result(20)

        self.expect(steps, send_batch)

    def expect(self, steps: list[tuple[Write, int | None]], call: Callable[[], int]) -> None:
        """The store gives the same answer as the model."""
        expected = self.model.carry_out(steps)
        if isinstance(expected, int):
            assert call() == expected
        else:
            with pytest.raises(RevisionConflict) as raised:
                call()
            error = raised.value
            assert (error.kind, error.id, error.expected, error.actual) == expected

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.store = LocalStore(self.path)

    # ---- all reads

    @invariant()
    def every_entity_is_there_with_its_revision(self) -> None:
        with self.store.read() as view:
            assert view.revision == self.model.revision
            for kind in KINDS:
                table = self.model.tables[kind.name]
                if kind.entity is None:
                    continue
                for target in (self.store, view):
                    found = getattr(target, f"list_{plural_name(kind)}")()
                    assert [(e, e.revision) for e in found] == [table[id_] for id_ in self.model.ids(kind, bool)]
                assert list(getattr(view, f"iter_{plural_name(kind)}")()) == found
                for id_ in ALIKE:
                    self.assert_gets(getattr(view, f"get_{method_name(kind)}"), kind, id_, table.get(id_))

    @invariant()
    def the_ca_is_there(self) -> None:
        table = self.model.tables["ca"]
        if CA_ID in table:
            assert self.store.get_ca() == table[CA_ID][0]
        else:
            with pytest.raises(NotFound):
                self.store.get_ca()

    @invariant()
    def look_ups_find_what_a_scan_finds(self) -> None:
        for value in [*ALIKE, "nobody", ""]:
            for kind in (kind for kind in KINDS if kind.name in BY_NAME):
                named = self.model.ids(kind, lambda e, value=value: e.name == value)
                expected = self.model.tables[kind.name][named[0]] if named else None
                self.assert_gets(getattr(self.store, f"get_{method_name(kind)}_by_name"), kind, value, expected)
            by_service = self.model.ids(CONTAINER, lambda e, value=value: e.service_id == value)
            assert [c.id for c in self.store.list_containers_by_service(value)] == by_service
            by_node = self.model.ids(CONTAINER, lambda e, value=value: e.node_id == value)
            assert [c.id for c in self.store.list_containers_by_node(value)] == by_node

    @invariant()
    def hosts_find_their_certificates(self) -> None:
        for host in ASKED:
            expected = self.model.ids(CERTIFICATE, lambda e, host=host: any(covers(h, host) for h in e.hosts))
            assert [c.id for c in self.store.get_tls_certificates_by_host(host)] == expected, host

    def assert_gets(self, get: Callable[[str], Any], kind: Kind[Any], key: str, expected: Any) -> None:
        if expected is None:
            with pytest.raises(NotFound) as raised:
                get(key)
            assert (raised.value.kind, raised.value.key) == (kind.name, key)
        else:
            found = get(key)
            assert (found, found.revision) == expected

    # ---- below the reads

    @invariant()
    def digest_and_indexes_are_those_of_the_records(self) -> None:
        machine = self.store._machine
        with machine.database.read() as transaction:
            assert recompute_digest(transaction) == machine.digest
            assert transaction.verify_indexes() == []

    @invariant()
    def the_history_leads_to_the_state(self) -> None:
        found: dict[str, dict[str, tuple[Any, int]]] = {kind.name: {} for kind in KINDS}
        with self.store._machine.database.read() as transaction:
            for revision, operations, before in since(transaction, 0):
                assert before is not None
                for operation, values in zip(operations, before, strict=True):
                    kind = BY_NUMBER[operation.kind_number]
                    table, id_ = found[kind.name], operation.id
                    old = texts_of(kind, table[id_][0]) if id_ in table and kind.indexes else None
                    if operation.entity is None:
                        del table[id_]
                        assert values == old
                        continue
                    entity = codec.decode_entity(kind, operation.entity, revision)
                    table[id_] = (entity, revision)
                    assert values == old or (values is None and old == texts_of(kind, entity))
        assert found == self.model.tables


@pytest.mark.slow
class TestLocalStore(LocalStoreModel.TestCase):  # type: ignore[misc]
    settings = settings(
        max_examples=60,
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


class TestLocalStoreBriefly(LocalStoreModel.TestCase):  # type: ignore[misc]
    settings = settings(TestLocalStore.settings, max_examples=6)
