"""The promise: a list has the records of its moment, although it is mostly corrected and not read again.

Every way in which a list can differ from the one before is tried here: changes, deletions, transactions that are not
committed, views of other moments, more changes than are remembered, other processes, and threads that do all of it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import lmdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.direct_store import DirectStore, put_all
from tests.other_process import Other
from warren_raft.local.store import LocalStore
from warren_raft.model.entities import Container, Node, Secret
from warren_raft.store import codec, lookup, memo
from warren_raft.store.cache import CACHED_RECORD_BYTES_MAX
from warren_raft.store.database import Database
from warren_raft.store.memo import ChangedKeys
from warren_raft.store.reading import ReadMethods, View
from warren_raft.store.tables import CONTAINER, NODE, SECRET


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database.open(tmp_path / "data", sync=False) as opened:
        yield opened


@pytest.fixture
def store(database: Database) -> DirectStore:
    return DirectStore(database)


def held_by(view: View) -> list[Node]:
    """The nodes that the file holds at the moment of a view, read without any cache."""
    return [codec.decode(NODE, record) for _, record in view._opened().items(NODE)]


def require_same(reader: ReadMethods, expected: list[Node]) -> None:
    nodes = reader.list_nodes()
    assert nodes == expected
    assert [node.revision for node in nodes] == [node.revision for node in expected]


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kinds of the lists for which every record was read."""
    found: list[str] = []
    scanned = lookup._scanned

    def recorded(database: Any, txn: Any, kind: Any, moment: int) -> Any:
        found.append(kind.plural)
        return scanned(database, txn, kind, moment)

    monkeypatch.setattr(lookup, "_scanned", recorded)
    return found


# ---- Reading, and correcting.


def test_a_list_is_read_once_and_then_corrected(database: Database, store: DirectStore, scans: list[str]) -> None:
    put_all(database, *((NODE, Node(id=f"n{number:02}")) for number in range(50)))
    assert store.list_nodes() == store.list_nodes()
    store.create_node(Node(id="n100"))
    store.update_node(Node(id="n07", address="x"))
    store.delete_node("n09")
    store.delete_node("n09")
    store.delete_node("nobody")
    nodes = {node.id: node.address for node in store.list_nodes()}
    assert nodes == {**{f"n{number:02}": "" for number in range(50) if number != 9}, "n07": "x", "n100": ""}
    assert list(nodes) == sorted(nodes)
    assert scans == ["nodes"]


def test_changes_of_other_kinds_do_not_matter(database: Database, store: DirectStore, scans: list[str]) -> None:
    put_all(database, (NODE, Node(id="n")))
    store.list_nodes()
    for number in range(memo.CHANGED_KEYS_MAX * 2):
        put_all(database, (CONTAINER, Container(id=str(number))))
    assert [node.id for node in store.list_nodes()] == ["n"]
    assert scans == ["nodes"]


def test_a_list_is_the_callers_own(database: Database, store: DirectStore) -> None:
    put_all(database, *((NODE, Node(id=f"n{number}")) for number in range(9)))
    for _ in range(3):
        nodes = store.list_nodes()
        assert len(nodes) == 9
        nodes.clear()
    store.update_node(Node(id="n3", address="x"))
    store.list_nodes().reverse()
    assert [node.address for node in store.list_nodes()] == ["", "", "", "x", "", "", "", "", ""]


def test_large_records_are_not_kept_by_a_list(database: Database, store: DirectStore) -> None:
    put_all(database, *((SECRET, Secret(id=f"s{number}")) for number in range(9)))
    assert len(store.list_secrets()) == 9
    listed = database.tables[SECRET.number].listed
    assert listed is not None
    large = bytes(CACHED_RECORD_BYTES_MAX)
    store.create_secret(Secret(id="s5", data=large))
    for _ in range(2):
        assert [len(secret.data) for secret in store.list_secrets()] == [0, 0, 0, 0, 0, len(large), 0, 0, 0]
    assert database.tables[SECRET.number].listed is listed
    store.delete_secret("s5")
    assert len(store.list_secrets()) == 8


def test_the_kept_lists_are_bounded_together(
    database: Database, store: DirectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup, "CACHED_ENTITIES_MAX", 20)

    def kept() -> dict[str, int]:
        tables = {kind.plural: database.tables[kind.number] for kind in (NODE, CONTAINER)}
        return {name: len(table.listed.keys) for name, table in tables.items() if table.listed is not None}

    put_all(database, *((NODE, Node(id=f"n{number}")) for number in range(12)), (CONTAINER, Container(id="c")))
    store.list_nodes()
    store.list_containers()
    assert kept() == {"nodes": 12, "containers": 1}
    put_all(database, *((CONTAINER, Container(id=f"c{number}")) for number in range(15)))
    assert len(store.list_containers()) == 16
    assert kept() == {"containers": 16}
    put_all(database, *((CONTAINER, Container(id=f"d{number}")) for number in range(15)))
    assert len(store.list_containers()) == 31
    assert kept() == {}


# ---- Moments.


def test_each_view_lists_its_own_moment_in_any_order(database: Database, store: DirectStore, scans: list[str]) -> None:
    with ExitStack() as stack:
        views = []
        for number in range(6):
            put_all(database, *((NODE, Node(id=f"n{n:02}", address=str(number))) for n in range(number, 40, 9)))
            if number % 2:
                store.delete_node(f"n{number:02}")
            views.append(stack.enter_context(store.read()))
        for number in (3, 5, 0, 4, 1, 5, 2, 0, 3):
            require_same(views[number], held_by(views[number]))
            require_same(store, held_by(views[-1]))
    assert 0 < len(scans) < 18


def test_a_transaction_that_is_not_committed_changes_no_list(database: Database, store: DirectStore) -> None:
    put_all(database, *((NODE, Node(id=f"n{number}")) for number in range(9)))
    before = store.list_nodes()
    record = codec.make_record(99, codec.encode(NODE, Node(id="n1", address="x")))
    with suppress(ZeroDivisionError), database.write() as transaction:
        transaction.put(NODE, "n1", record)
        transaction.delete(NODE, "n2")
        assert store.list_nodes() == before  # the transaction is open
        raise ZeroDivisionError
    assert store.list_nodes() == before
    with database.write() as transaction:  # it has the number of the one before
        transaction.put(NODE, "n3", record)
    assert [node.address for node in store.list_nodes()] == ["", "", "", "x", "", "", "", "", ""]


@given(st.data())
def test_any_history_of_changes_and_views_lists_the_file(tmp_path_factory: Any, data: st.DataObject) -> None:
    ids = [f"n{number}" for number in range(8)]
    with (
        pytest.MonkeyPatch.context() as patch,
        Database.open(tmp_path_factory.mktemp("data"), sync=False) as database,
        ExitStack() as stack,
    ):
        patch.setattr(memo, "CHANGED_KEYS_MAX", data.draw(st.sampled_from([2, 6, 1024])))
        patch.setattr(lookup, "CORRECTED_PART_MAX", data.draw(st.sampled_from([0.25, 100])))
        store, views = DirectStore(database), []
        for turn in range(data.draw(st.integers(1, 25))):
            step = data.draw(st.sampled_from(["put", "put", "delete", "abort", "view", "list", "list", "list a view"]))
            some = data.draw(st.lists(st.sampled_from(ids), min_size=1, max_size=4))
            if step == "put":
                put_all(database, *((NODE, Node(id=id_, address=str(turn))) for id_ in some))
            elif step == "delete":
                with store.batch() as batch:
                    for id_ in some:
                        batch.delete_node(id_)
            elif step == "abort":
                with suppress(lmdb.Error, ZeroDivisionError), database.write() as transaction:
                    for id_ in some:
                        transaction.delete(NODE, id_)
                    raise ZeroDivisionError
            elif step == "view":
                views.append(stack.enter_context(store.read()))
            elif step == "list a view" and views:
                view = data.draw(st.sampled_from(views))
                require_same(view, held_by(view))
            else:
                with store.read() as view:
                    require_same(store, held_by(view))


def test_threads_that_list_while_others_write_see_committed_moments(
    database: Database, store: DirectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each turn changes five nodes in one transaction, so that the sum of the addresses tells a mixture."""
    monkeypatch.setattr(memo, "CHANGED_KEYS_MAX", 24)
    put_all(database, *((NODE, Node(id=f"n{number:02}", address="0")) for number in range(60)))
    stop, failures = threading.Event(), list[str]()

    def read() -> None:
        last = 0
        while not stop.is_set():
            with store.read() as view:
                now = view.list_nodes() if last % 2 else store.list_nodes()
                if view.list_nodes() != held_by(view):
                    failures.append("a view lists another moment")
            turn, left = divmod(sum(int(node.address) for node in now), 5)
            if left or turn < last:
                failures.append(f"turn {turn} and {left} after turn {last}")
            last = turn

    threads = [threading.Thread(target=read) for _ in range(3)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for turn in range(200):
            ids = [(turn * 7 + step * 12) % 60 for step in range(5)]
            with store.read() as view:
                addresses = {id_: int(view.get_node(f"n{id_:02}").address) for id_ in ids}
            put_all(database, *((NODE, Node(id=f"n{i:02}", address=str(n + 1))) for i, n in addresses.items()))
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
        sys.setswitchinterval(interval)
    assert failures == []
    assert sum(int(node.address) for node in store.list_nodes()) == 1000


def test_a_process_that_does_not_write_lists_what_the_writer_wrote(tmp_path: Path) -> None:
    with LocalStore(tmp_path) as store:
        store.create_container(Container(id="c", image="1"))
        other = Other(tmp_path)
        try:
            other.open()
            for image in "123":
                store.update_container(Container(id="c", image=image))
                assert other.tell("values(store)") == other.tell("values(store)") == [image]
        finally:
            other.close()


# ---- The keys that were changed.


def test_changed_keys_are_known_back_to_a_moment_and_bounded() -> None:
    changed = ChangedKeys()
    assert changed.since(0) == []
    for transaction in range(1, 5000):
        changed.note(b"%d" % (transaction % 2000), transaction)
        changed.note(b"hot", transaction)
        assert sum(map(len, changed._notes)) <= memo.CHANGED_KEYS_MAX
        known = changed.since(max(0, transaction - 200))
        assert known is not None
        assert set(known) == {b"hot", *(b"%d" % (n % 2000) for n in range(max(1, transaction - 199), transaction + 1))}
    assert changed.since(4999) == []
    assert changed.since(3000) is None
