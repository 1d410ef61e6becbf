"""The promises of reads: each sees one moment, waits for nobody, and the cache gives the same entities as the file.

A mistake would hide in the cache: a wrong entity from it looks like any other. So each way in which an entity can
change under it (update, delete, another generation, an older view) is tested here.
"""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import cbor2
import pytest

from tests.direct_store import DirectStore, put_all
from warren_raft.errors import (
    Closed,
    Corrupted,
    InUse,
    Misuse,
    NotFound,
    RefusedForSafety,
)
from warren_raft.local.read_only import ReadOnlyStore
from warren_raft.model.entities import (
    Container,
    Ingress,
    Network,
    Node,
    NodeRole,
    Secret,
    Service,
    TLSCertificate,
    Volume,
)
from warren_raft.store import cache, codec, reading
from warren_raft.store.database import Database
from warren_raft.store.generations import StateDirectory
from warren_raft.store.interface import Reader
from warren_raft.store.position import Position
from warren_raft.store.tables import (
    CA,
    CERTIFICATE,
    CONTAINER,
    INGRESS,
    NETWORK,
    NODE,
    SECRET,
    SERVICE,
    VOLUME,
)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database.open(tmp_path / "data", sync=False) as opened:
        yield opened


@pytest.fixture
def store(database: Database) -> DirectStore:
    return DirectStore(database)


def put_twins(database: Database) -> None:
    """Two entities of every kind; where there are names, both have the same."""
    put_all(
        database,
        (NODE, Node(id="n1")),
        (NODE, Node(id="n2", role="manager")),
        (SERVICE, Service(id="s1", name="web")),
        (SERVICE, Service(id="s2", name="web")),
        (CONTAINER, Container(id="c1", service_id="s1", node_id="n1")),
        (CONTAINER, Container(id="c2", service_id="s1", node_id="n2")),
        (SECRET, Secret(id="x1", name="key", data=b"1")),
        (SECRET, Secret(id="x2", name="key", data=b"2")),
        (VOLUME, Volume(id="v1", name="disk")),
        (VOLUME, Volume(id="v2", name="disk")),
        (NETWORK, Network(id="w1", name="net")),
        (NETWORK, Network(id="w2", name="net")),
        (INGRESS, Ingress(id="i1", name="in")),
        (INGRESS, Ingress(id="i2", name="in")),
        (CERTIFICATE, TLSCertificate(id="t1", name="cert", hosts=("a.example", "b.example"))),
        (CERTIFICATE, TLSCertificate(id="t2", name="cert", hosts=("*.example", "a.example"))),
        (CA, b"the ca"),
    )


# ---- Every operation, on a store and on a view.

BY_ID = {
    "get_node": ("n1", "n2"),
    "get_service": ("s1", "s2"),
    "get_container": ("c1", "c2"),
    "get_secret": ("x1", "x2"),
    "get_volume": ("v1", "v2"),
    "get_network": ("w1", "w2"),
    "get_ingress": ("i1", "i2"),
    "get_tls_certificate": ("t1", "t2"),
}
BY_NAME = {
    "get_service_by_name": ("web", "s1"),
    "get_secret_by_name": ("key", "x1"),
    "get_volume_by_name": ("disk", "v1"),
    "get_ingress_by_name": ("in", "i1"),
    "get_tls_certificate_by_name": ("cert", "t1"),
}
LISTS = {
    "list_nodes": ("n1", "n2"),
    "list_services": ("s1", "s2"),
    "list_containers": ("c1", "c2"),
    "list_secrets": ("x1", "x2"),
    "list_volumes": ("v1", "v2"),
    "list_networks": ("w1", "w2"),
    "list_ingresses": ("i1", "i2"),
    "list_tls_certificates": ("t1", "t2"),
}
LISTS_BY = {
    "list_containers_by_service": {"s1": ["c1", "c2"], "s2": [], "none": []},
    "list_containers_by_node": {"n1": ["c1"], "n2": ["c2"], "none": []},
    "get_tls_certificates_by_host": {"a.example": ["t1", "t2"], "b.example": ["t1", "t2"], "c.d.example": []},
}
KEY_TOO_LONG = "x" * 512


def test_no_read_operation_is_forgotten_here() -> None:
    public = {
        name for name, _ in inspect.getmembers(reading.ReadMethods, inspect.isfunction) if not name.startswith("_")
    }
    assert public == {*BY_ID, *BY_NAME, *LISTS, *LISTS_BY, "get_ca"}
    assert all(inspect.getdoc(getattr(reading.ReadMethods, name)) for name in public)


@pytest.mark.parametrize("through_view", [False, True], ids=["store", "view"])
def test_every_read_operation_finds_a_present_entity_and_reports_a_missing_one(
    database: Database, store: DirectStore, through_view: bool
) -> None:
    def check(reads: reading.ReadMethods, is_empty: bool) -> None:
        for method, ids in BY_ID.items():
            for id_ in (*ids, "none", "", KEY_TOO_LONG, "\ud800"):
                check_one(getattr(reads, method), id_, None if is_empty or id_ not in ids else id_)
        for method, (name, smallest) in BY_NAME.items():
            for value in (name, "none", "", KEY_TOO_LONG, "\ud800"):
                check_one(getattr(reads, method), value, None if is_empty or value != name else smallest)
        for method, listed in LISTS.items():
            assert [entity.id for entity in getattr(reads, method)()] == ([] if is_empty else list(listed))
        for method, answers in LISTS_BY.items():
            for value, found in {**answers, "": [], KEY_TOO_LONG: [], "\ud800": []}.items():
                assert [entity.id for entity in getattr(reads, method)(value)] == ([] if is_empty else found)
        check_ca(reads, is_empty)

    for is_empty in (True, False):
        if not is_empty:
            put_twins(database)
        if through_view:
            with store.read() as view:
                check(view, is_empty)
        else:
            check(store, is_empty)


def check_one(get: Callable[[str], Any], key: str, expected: str | None) -> None:
    if expected is not None:
        entity = get(key)
        assert (entity.id, entity.revision) == (expected, 1)
        return
    with pytest.raises(NotFound) as caught:
        get(key)
    kind = get.__name__.removeprefix("get_").removesuffix("_by_name").removeprefix("tls_")
    assert (caught.value.kind, caught.value.key) == (kind, key)
    assert isinstance(caught.value, KeyError)


def check_ca(reads: reading.ReadMethods, is_empty: bool) -> None:
    if not is_empty:
        assert reads.get_ca() == b"the ca"
        return
    with pytest.raises(NotFound) as caught:
        reads.get_ca()
    assert (caught.value.kind, caught.value.key) == ("ca", "ca")


def test_lists_are_ordered_by_id(database: Database, store: DirectStore) -> None:
    put_all(
        database, *((CONTAINER, Container(id=id_, service_id="s")) for id_ in ["b", "aa", "é", "a", "Z", "10", "9"])
    )
    ordered = ["10", "9", "Z", "a", "aa", "b", "é"]
    assert [container.id for container in store.list_containers()] == ordered
    assert [container.id for container in store.list_containers_by_service("s")] == ordered


def test_a_name_that_was_taken_over_is_the_next_ones(database: Database, store: DirectStore) -> None:
    put_twins(database)
    store.update_service(Service(id="s1", name="other"))
    assert store.get_service_by_name("web").id == "s2"
    assert store.get_service_by_name("other").id == "s1"
    store.delete_service("s2")
    with pytest.raises(NotFound):
        store.get_service_by_name("web")


# ---- Hosts (RFC 6125, 6.4.3).


@pytest.mark.parametrize(
    ("host", "covering"),
    [
        ("example.com", ["exact"]),
        ("EXAMPLE.Com", ["exact"]),
        ("a.example.com", ["wild"]),
        ("A.EXAMPLE.COM", ["wild"]),
        ("a.b.example.com", ["deep"]),
        ("b.example.com", ["both", "wild"]),
        ("*.example.com", ["wild"]),
        ("*.b.example.com", ["deep"]),
        (".example.com", []),
        ("example.com.", []),
        ("com", []),
        ("x.com", []),
        ("*", []),
        (".", []),
        ("", []),
        ("xn--bcher-kva.example.com", ["wild"]),
        ("Ä.example.com", ["umlaut", "wild"]),
        ("ä.example.com", ["wild"]),
        ("x" * 600 + ".example.com", []),
        ("x" * 490 + ".example.com", ["wild"]),
    ],
)
def test_hosts_are_matched_without_case_and_a_wildcard_is_one_label(
    database: Database, store: DirectStore, host: str, covering: list[str]
) -> None:
    put_all(
        database,
        (CERTIFICATE, TLSCertificate(id="wild", hosts=("*.Example.COM",))),
        (CERTIFICATE, TLSCertificate(id="exact", hosts=("example.com", "EXAMPLE.com"))),
        (CERTIFICATE, TLSCertificate(id="both", hosts=("b.example.com", "other.org"))),
        (CERTIFICATE, TLSCertificate(id="deep", hosts=("*.b.example.com",))),
        (CERTIFICATE, TLSCertificate(id="umlaut", hosts=("Ä.example.com",))),
        (CERTIFICATE, TLSCertificate(id="none")),
    )
    assert [certificate.id for certificate in store.get_tls_certificates_by_host(host)] == covering


def test_a_certificate_that_covers_a_host_twice_comes_once(database: Database, store: DirectStore) -> None:
    put_all(database, (CERTIFICATE, TLSCertificate(id="t", hosts=("a.example", "*.example", "A.example"))))
    assert [certificate.id for certificate in store.get_tls_certificates_by_host("a.example")] == ["t"]


# ---- The cache.


def test_an_entity_that_did_not_change_is_the_same_object(database: Database, store: DirectStore) -> None:
    put_twins(database)
    first = store.get_container("c1")
    assert store.get_container("c1") is first
    assert store.list_containers()[0] is first
    assert store.list_containers_by_node("n1") == [first]
    store.update_container(Container(id="c2"))
    assert store.get_container("c1") is first
    with store.read() as view:
        assert next(view.iter_containers()) is first


def test_a_change_is_seen_at_once_by_every_way_of_reading(database: Database, store: DirectStore) -> None:
    put_twins(database)
    for number in range(3):
        revision = store.update_service(Service(id="s1", name=f"name{number}", replicas=number))
        read = [store.get_service("s1"), store.get_service_by_name(f"name{number}"), store.list_services()[0]]
        assert [(service.replicas, service.revision) for service in read] == [(number, revision)] * 3
    store.delete_service("s1")
    with pytest.raises(NotFound):
        store.get_service("s1")
    revision = store.create_service(Service(id="s1", name="again"))
    assert store.get_service("s1") == Service(id="s1", name="again")
    assert store.get_service("s1").revision == revision


def test_an_older_view_and_a_newer_read_do_not_mislead_each_other(database: Database, store: DirectStore) -> None:
    """Both decode into one cache, in turns."""
    put_all(database, (NODE, Node(id="n", address="old")))
    with store.read() as view:
        put_all(database, (NODE, Node(id="n", address="new")))
        for _ in range(3):
            assert view.get_node("n").address == "old"
            assert store.get_node("n").address == "new"
            assert [node.address for node in view.list_nodes()] == ["old"]
            assert [node.address for node in store.list_nodes()] == ["new"]


def test_another_generation_begins_with_an_empty_cache(tmp_path: Path, database: Database, store: DirectStore) -> None:
    """After a restore the same id may have other content at the same revision."""
    put_all(database, (NODE, Node(id="n", address="old")))
    assert store.get_node("n").address == "old"
    with store.read() as view, Database.create(StateDirectory(tmp_path / "data"), sync=False) as other:
        put_all(other, (NODE, Node(id="n", address="new")))
        other.publish()
        store.attach(other)
        assert store.get_node("n").address == "new"
        assert store.get_node("n").revision == view.get_node("n").revision
        assert view.get_node("n").address == "old"


def test_a_read_that_meets_the_change_of_generation_is_done_in_the_new_one(
    tmp_path: Path, database: Database, store: DirectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader has looked which database is attached, and it is replaced and closed before the reader begins."""
    with Database.create(StateDirectory(tmp_path / "data"), sync=False) as other:
        put_all(other, (NODE, Node(id="n")))
        looks: list[Database] = []

        def attached() -> Database:
            looks.append(database if not looks else other)
            return looks[-1]

        monkeypatch.setattr(store, "_attached", attached)
        database.close()
        assert store.get_node("n").id == "n"
        looks.clear()
        with store.read() as view:
            assert view.get_node("n").id == "n"


def test_the_cache_is_bounded(database: Database, store: DirectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "CACHED_ENTITIES_MAX", 50)
    put_all(
        database,
        *((CONTAINER, Container(id=f"c{number}")) for number in range(100)),
        *((NODE, Node(id=f"n{number}")) for number in range(30)),
    )
    for _ in range(2):
        assert len(store.list_nodes()) == 30
        assert len(store.list_containers()) == 100
        assert len(database.decoded) == 50
        assert sum(map(len, database.decoded.tables)) == 50
    assert len(database.decoded.tables[NODE.number]) == 30  # a long list of one kind leaves the others alone


def test_large_records_and_streams_are_not_kept(database: Database, store: DirectStore) -> None:
    size = cache.CACHED_RECORD_BYTES_MAX
    put_all(database, (SECRET, Secret(id="large", data=bytes(size))), (SECRET, Secret(id="small")))
    with store.read() as view:
        assert [secret.id for secret in view.iter_secrets()] == ["large", "small"]
    assert len(database.decoded) == 0
    assert [len(secret.data) for secret in store.list_secrets()] == [size, 0]
    assert len(database.decoded) == 1


def test_threads_that_fill_and_empty_the_cache_see_the_committed_state(
    database: Database, store: DirectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "CACHED_ENTITIES_MAX", 20)
    put_all(database, *((NODE, Node(id=f"n{number:02}", address="0")) for number in range(60)))
    stop, failures = threading.Event(), list[str]()

    def read() -> None:
        last = 0
        while not stop.is_set():
            with store.read() as view:
                addresses = {node.address for node in view.list_nodes()}
                one = int(view.get_node("n33").address)
            if len(addresses) != 1 or int(addresses.pop()) != one or one < last:
                failures.append("a mixture")
            last = one

    threads = [threading.Thread(target=read) for _ in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for turn in range(1, 60):
            put_all(database, *((NODE, Node(id=f"n{number:02}", address=str(turn))) for number in range(60)))
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
        sys.setswitchinterval(interval)
    assert failures == []
    assert len(database.decoded) == sum(map(len, database.decoded.tables)) <= 20 + len(threads)


# ---- Contents that the file should not have.


def test_an_unknown_member_of_an_enumeration_is_read_as_text(database: Database, store: DirectStore) -> None:
    put_all(database, (NODE, Node(id="m", role="manager")))
    with database.write() as transaction:
        transaction.put(NODE, "n", codec.make_record(2, cbor2.dumps(["n", "arbiter"])))
    assert store.get_node("n").role == "arbiter"
    assert store.get_node("m").role is NodeRole.MANAGER


def test_a_record_that_cannot_be_decoded_is_corrupted_and_named(database: Database, store: DirectStore) -> None:
    put_twins(database)
    with database.write() as transaction:
        transaction.put(SERVICE, "s1", b"\x82\x02noise")
    reads: list[Callable[[], Any]] = [lambda: store.get_service("s1"), store.list_services]
    for read in reads:
        with pytest.raises(Corrupted, match=r"service 's1'"):
            read()
    assert store.get_service("s2").name == "web"


def test_an_index_without_its_record_is_corrupted(database: Database, store: DirectStore) -> None:
    with database.write() as transaction:
        raw: Any = transaction._txn
        raw.put(b"web", b"ghost", db=database.index_handles["service.name"])
    with pytest.raises(Corrupted, match="ghost"):
        store.get_service_by_name("web")


# ---- Views.


def test_a_view_sees_one_moment(database: Database, store: DirectStore) -> None:
    put_twins(database)
    with store.read() as view:
        before = view.list_services()
        store.delete_service("s1")
        store.create_node(Node(id="n3"))
        assert view.list_services() == before
        assert [node.id for node in view.list_nodes()] == ["n1", "n2"]
        assert (view.revision, view.get_service("s1").name) == (1, "web")
        with store.read() as later:
            assert (later.revision, len(later.list_nodes())) == (3, 3)


def test_a_view_streams_more_than_one_chunk_in_order(database: Database, store: DirectStore) -> None:
    for count in (0, 1, reading.STREAM_CHUNK - 1, reading.STREAM_CHUNK, reading.STREAM_CHUNK + 1, 1000):
        put_all(database, *((CONTAINER, Container(id=f"c{number:04}")) for number in range(count)))
        with store.read() as view:
            stream = view.iter_containers()
            some = [container.id for container in islice(stream, 10)]
            store.delete_container("c0100")  # does not disturb
            assert some + [container.id for container in stream] == [f"c{number:04}" for number in range(count)]


@pytest.mark.parametrize("longest", ["z" * 510, "z" * 511])
def test_a_stream_goes_on_after_the_longest_of_keys(
    database: Database, store: DirectStore, monkeypatch: pytest.MonkeyPatch, longest: str
) -> None:
    monkeypatch.setattr(reading, "STREAM_CHUNK", 1)
    put_all(database, (NODE, Node(id="a")), (NODE, Node(id=longest)))
    with store.read() as view:
        assert [node.id for node in view.iter_nodes()] == ["a", longest]


def test_every_kind_can_be_streamed(database: Database, store: DirectStore) -> None:
    put_twins(database)
    with store.read() as view:
        for name, ids in LISTS.items():
            assert [entity.id for entity in getattr(view, name.replace("list_", "iter_"))()] == list(ids)


def test_a_view_ends_with_its_block_and_is_opened_once(database: Database, store: DirectStore) -> None:
    put_twins(database)
    view = store.read()
    calls: list[Callable[[], Any]] = [view.list_nodes, lambda: view.get_node("n1"), lambda: list(view.iter_nodes())]
    calls.append(lambda: view.revision)
    for call in calls:
        with pytest.raises(Misuse):
            call()
    with view:
        stream = view.iter_nodes()
        assert next(stream).id == "n1"
    for call in calls[:-1]:
        with pytest.raises(Closed):
            call()
    assert [node.id for node in stream] == ["n2"]  # decoded before the end
    assert view.revision == 1
    with pytest.raises(Misuse), view:
        pass


def test_an_open_view_outlives_its_store(database: Database, store: DirectStore) -> None:
    put_twins(database)
    with store.read() as view:
        store.close()
        assert view.get_node("n1").id == "n1"
        assert len(view.list_containers()) == 2
    for call in (store.list_nodes, lambda: store.get_node("n1"), store.read().__enter__):
        with pytest.raises(Closed):
            call()


def test_an_old_view_is_reported_and_ended(tmp_path: Path) -> None:
    now = [0.0]
    with Database.open(tmp_path, sync=False, clock=lambda: now[0]) as database:
        store = DirectStore(database)
        with store.read() as view:
            now[0] = 3601.0
            assert database.oldest_read_age_seconds() == 3601.0
            assert database.end_old_reads() == 1
            with pytest.raises(Closed, match="was ended"):
                view.list_nodes()
        assert store.list_nodes() == []


def test_a_read_on_the_store_leaves_no_transaction_open(database: Database, store: DirectStore) -> None:
    """Or the file would grow for ever."""
    put_twins(database)
    store.list_containers()
    store.get_service_by_name("web")
    with pytest.raises(NotFound):
        store.get_node("none")
    assert database.readers() == []


# ---- ReadOnlyStore.


def test_a_read_only_store_reads_the_state_of_a_stopped_store(tmp_path: Path) -> None:
    with Database.open(tmp_path, sync=True) as database:
        put_twins(database)
    with ReadOnlyStore(tmp_path) as store:
        assert store.get_service_by_name("web").id == "s1"
        assert isinstance(store, Reader)
        with store.read() as view:
            assert view.revision == 1
            assert view.leader_contact_age_seconds is None
        with pytest.raises(InUse):
            ReadOnlyStore(tmp_path)
    store.close()
    for call in (store.list_nodes, lambda: store.get_node("n1"), store.read().__enter__):
        with pytest.raises(Closed):
            call()
    ReadOnlyStore(tmp_path).close()


def test_a_read_only_store_cannot_write() -> None:
    assert not [name for name in dir(ReadOnlyStore) if name.startswith(("create", "update", "delete", "save", "batch"))]


def test_a_read_only_store_of_nothing_is_refused_and_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(RefusedForSafety, match="holds no manager's data"):
        ReadOnlyStore(tmp_path)
    with pytest.raises(RefusedForSafety, match="there is no such directory"):
        ReadOnlyStore(tmp_path / "none")
    assert os.listdir(tmp_path) == []
    (tmp_path / "log").mkdir()  # a manager that waits for its first state
    with pytest.raises(RefusedForSafety, match="holds no state yet: start its manager first"):
        ReadOnlyStore(tmp_path)
    assert os.listdir(tmp_path) == ["log"]


def test_a_read_only_store_follows_the_generation_and_its_views_do_not(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    with Database.open(state, sync=True) as first:
        put_all(first, (NODE, Node(id="n", address="first")))
    with ReadOnlyStore(tmp_path) as store, store.read() as view:
        assert store.get_node("n").address == "first"
        with Database.create(state, sync=True) as second:
            put_all(second, (NODE, Node(id="n", address="second")))
            assert store.get_node("n").address == "first"
        state.publish(2)
        assert store.get_node("n").address == "second"
        assert view.get_node("n").address == "first"
        state.publish(2)  # the same again changes nothing
        assert store.get_node("n").address == "second"
        state.set_aside(2, "diverged")
        state.publish(2)
        assert store.get_node("n").address == "second"  # an open file is as good without its name
        state.publish(3)
        for _ in range(2):
            with pytest.raises(Corrupted, match="missing"):
                store.get_node("n")
        assert view.get_node("n").address == "first"


def test_a_read_only_store_beside_a_running_one_sees_each_commit(tmp_path: Path) -> None:
    """Two processes on one file: the reader is asked after every step of the writer."""
    script = """
        import sys
        from warren_raft.errors import WarrenError
        from warren_raft.local.read_only import ReadOnlyStore
        with ReadOnlyStore(sys.argv[1]) as store:
            for _ in sys.stdin:
                try:
                    print(*(node.address for node in store.list_nodes()), flush=True)
                except WarrenError as error:
                    print(type(error).__name__, flush=True)
    """
    state = StateDirectory(tmp_path)
    database = Database.open(state, sync=False)
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None

        def asked() -> str:
            stdin.write("?\n")
            stdin.flush()
            return stdout.readline().strip()

        assert asked() == ""
        for address in ("one", "two"):
            put_all(database, (NODE, Node(id="n", address=address)))
            assert asked() == address
        other = Database.create(state, sync=False)
        put_all(other, (NODE, Node(id="n", address="other")))
        assert asked() == "two"
        other.publish()
        database.close()
        state.remove_stale()
        assert asked() == "other"
        other.abandon()  # the manager was killed; the page cache has it all
        assert asked() == "other"
        with Database.open(state, sync=False) as again:
            put_all(again, (NODE, Node(id="n", address="again")))
            assert asked() == "again"
        stdin.close()
    assert process.returncode == 0


def test_after_a_crash_of_the_machine_a_read_only_store_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Database.open(tmp_path, sync=False).abandon()
    Path(tmp_path, "state", "1.mdb.unsynced").write_bytes(b"of another boot")
    with pytest.raises(Corrupted, match="the manager rebuilds it"):
        ReadOnlyStore(tmp_path)


def test_the_revision_in_a_record_is_the_one_that_reads_tell(database: Database, store: DirectStore) -> None:
    with database.write() as transaction:
        transaction.move(Position(revision=2**40))
    revision = store.create_node(Node(id="n", revision=7))
    assert revision == 2**40 + 1 == store.get_node("n").revision
    with database.read() as reader:
        record = reader.get(NODE, "n")
    assert record is not None
    assert codec.record_revision(record) == revision
