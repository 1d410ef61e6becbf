"""Promise: a state that an earlier release wrote is read, and is changed to the present format in place.

`tests/data/format-1.snapshot.gz` was written by the release before format 2: entities of most kinds, a session with
answers and a refusal, members, a history, and a record for each part of the position.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest

from tests.fsm_harness import apply, command, contents, delete, put
from tests.unit.test_machine import failing_exit
from warren_raft.errors import Corrupted, StorageFull
from warren_raft.fsm.answers import CONFLICT
from warren_raft.fsm.entry import read_committed
from warren_raft.fsm.history import floor, since
from warren_raft.fsm.machine import StateMachine, recompute_digest
from warren_raft.model.entities import Node
from warren_raft.snapshots.file import extract
from warren_raft.snapshots.verification import prove_state, verify
from warren_raft.store.database import Database
from warren_raft.store.generations import StateDirectory
from warren_raft.store.tables import NODE
from warren_raft.store.transactions import (
    CHECK_OF_FORMAT_1,
    CLUSTER_ID,
    FORMAT,
    FORMAT_VERSION,
    HISTORY,
    MEMBERSHIP,
    META,
    POSITION,
    POSITION_OF_FORMAT_1,
)

FIXTURE = Path(__file__).parents[1] / "data" / "format-1.snapshot.gz"
DIGEST = bytes.fromhex("8ff26e59e2a9d12f5aebf3a1ad143bcbd7ecda1daf48aef7b82a8c7914a6650f")
META_OF_FORMAT_1 = {*POSITION_OF_FORMAT_1, CHECK_OF_FORMAT_1, CLUSTER_ID, MEMBERSHIP, FORMAT_VERSION}


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    path = tmp_path / "old.snapshot"
    path.write_bytes(gzip.decompress(FIXTURE.read_bytes()))
    return path


@pytest.fixture
def state(tmp_path: Path, snapshot: Path) -> StateDirectory:
    """A data directory with the state of the snapshot, as the earlier release left it."""
    state = StateDirectory(tmp_path / "data")
    state.create()
    extract(snapshot, state.file_of(1))
    state.publish(1)
    return state


@pytest.fixture
def database(state: StateDirectory) -> Iterator[Database]:
    with Database.open(state, sync=False) as database:
        yield database


def test_a_snapshot_of_the_earlier_format_is_verified(snapshot: Path) -> None:
    manifest = verify(snapshot)
    assert (manifest.index, manifest.revision, manifest.digest) == (14, 22, DIGEST.hex())


def test_a_state_of_the_earlier_format_is_read_by_reader_and_manager_without_a_change(
    state: StateDirectory,
) -> None:
    prove_state(state.file_of(1))
    with Database.open_read_only(state) as database, database.read() as transaction:
        assert read_committed(transaction).position == (14, 3, 22, DIGEST)
    with Database.open(state, sync=False) as database:
        _check_the_earlier_state(database)


def _check_the_earlier_state(database: Database) -> None:
    machine = StateMachine(database)
    assert machine.committed[:4] == (14, 3, 22, DIGEST)
    assert machine.cluster_id == "cluster-1"
    with database.read() as transaction:
        assert transaction.meta_keys() == META_OF_FORMAT_1
        assert transaction.has_sound_position
        assert transaction.revision == 22
        assert floor(transaction) == 0
        assert [change.revision for change in since(transaction, 8)] == list(range(9, 23))


def test_the_first_entry_changes_the_format_in_its_own_transaction(database: Database) -> None:
    machine = StateMachine(database)
    assert apply(machine, command(put(Node(id="new")), session=7, sequence=13, lowest=5))[0].revision == 23
    for again in (machine, StateMachine(database)):
        assert again.committed[:3] == (15, 1, 23)
        with database.read() as transaction:
            assert transaction.meta_keys() == {POSITION, CLUSTER_ID, MEMBERSHIP, FORMAT_VERSION}
            assert transaction.fetch(META, FORMAT_VERSION) == FORMAT.to_bytes(8, "big")
            assert transaction.has_sound_position
            assert recompute_digest(transaction) == again.digest
            assert [change.revision for change in since(transaction, 0)][-2:] == [22, 23]
            assert transaction.size(HISTORY) == 23


def test_a_commit_that_fails_leaves_the_earlier_format(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = StateMachine(database)
    before, before_contents = machine.committed, contents(database)
    with failing_exit(monkeypatch, after_commit=False, error=StorageFull("full")), pytest.raises(StorageFull):
        apply(machine, command(put(Node(id="new"))))
    assert (machine.committed, contents(database)) == (before, before_contents)
    apply(machine, command(put(Node(id="new"))))
    assert machine.applied_index == 15


def test_answers_of_the_earlier_release_are_found(database: Database) -> None:
    """Its sender never saw them: the managers were stopped for the new release."""
    machine = StateMachine(database)
    refused, deletion = apply(
        machine,
        command(put(Node(id="n-1"), 77), session=7, sequence=10, lowest=5),
        command(delete(NODE, "n-2"), session=7, sequence=12, lowest=5),
    )
    assert refused.error == (CONFLICT, NODE.number, "n-1", 77, 1)
    assert (deletion.revision, deletion.error, machine.revision) == (22, None, 22)


def test_the_digest_does_not_depend_on_the_format(database: Database) -> None:
    """So managers of both releases agree, at each index, while a cluster is changed over.

    The earlier release had this digest after these two entries. The second one has only the index in its session.
    """
    machine = StateMachine(database)
    for _ in range(2):
        apply(machine, command(put(Node(id="new")), session=7, sequence=13, lowest=6))
        with database.read() as transaction:
            assert recompute_digest(transaction) == machine.digest
    assert machine.digest.hex() == "e49203073d3b5e78cbd2375f2a10c7a09bbcf029004ae9524203a5ce2c37e240"


def test_a_flipped_bit_in_either_form_of_the_position_is_found(state: StateDirectory, database: Database) -> None:
    machine = StateMachine(database)
    with database.write() as transaction:
        transaction.store(META, b"applied_index", (15).to_bytes(8, "big"))
    with database.read() as transaction:
        assert not transaction.has_sound_position
    machine = StateMachine(database)
    apply(machine, command(put(Node(id="new"))))
    with database.read() as transaction:
        record = transaction.fetch(META, POSITION)
    assert record is not None
    for bit in range(8 * len(record)):
        flipped = int.from_bytes(record, "big") ^ 1 << bit
        with database.write() as transaction:
            transaction.store(META, POSITION, flipped.to_bytes(len(record), "big"))
        with database.read() as transaction:
            assert not transaction.has_sound_position
    with database.write() as transaction:
        transaction.store(META, POSITION, record[:-1])
    with pytest.raises(Corrupted, match="a position of 59 bytes"):
        StateMachine(database)


def test_an_earlier_release_refuses_the_present_format(state: StateDirectory, database: Database) -> None:
    """It looks for nothing else but the number: with another number it would begin at the first entry."""
    apply(StateMachine(database), command(put(Node(id="new"))))
    database.close()
    with lmdb.open(state.file_of(1), subdir=False, readonly=True, lock=False, max_dbs=64) as environment:
        meta = environment.open_db(b"meta", create=False)
        with environment.begin(meta) as transaction:
            assert int.from_bytes(transaction.get(b"format"), "big") == 2
