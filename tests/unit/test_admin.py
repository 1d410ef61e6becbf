"""The promise: the command line reaches a running manager through its directory, with any name of the directory; every
error arrives with its class and data; a dead manager's socket is replaced; a slow client blocks no other client.
"""

from __future__ import annotations

import base64
import contextlib
import gc
import http.client
import json
import math
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest

from tests.unit.test_sharing import FIRST, as_user
from warren_raft import errors
from warren_raft.admin import (
    MAX_REQUEST_BYTES,
    ManagerFailed,
    error_from_json,
    error_to_json,
    socket_address,
)
from warren_raft.admin import client as client_module
from warren_raft.admin.client import (
    CHUNK_BYTES,
    CHUNK_RECORDS,
    AdminClient,
    NotRunning,
    _chunks,
)
from warren_raft.admin.server import MAX_CALLS, OPERATIONS, AdminServer, Arguments
from warren_raft.disk import last_failure
from warren_raft.errors import Unavailable
from warren_raft.local.store import LocalStore
from warren_raft.model.entities import Node, TLSCertificate
from warren_raft.model.json_form import to_json
from warren_raft.raft.refusals import Removed
from warren_raft.store import codec
from warren_raft.store.command import Operation
from warren_raft.store.generations import StateUntrusted
from warren_raft.store.operations import put_operation
from warren_raft.store.ownership import DirectoryLock
from warren_raft.store.reader_slots import UnknownReaders
from warren_raft.store.tables import NODE


class FakeResult:
    def __init__(self, **fields: Any) -> None:
        self._fields = fields

    def to_json(self) -> dict[str, Any]:
        return self._fields


class FakeBatch:
    """Notes its operations, like one atomic command."""

    def __init__(self, manager: FakeManager, timeout: float | None) -> None:
        self._manager = manager
        self.timeout = timeout
        self.revision = 0
        self.operations: list[tuple[Any, ...]] = []

    def __enter__(self) -> FakeBatch:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if error is None:
            self._manager.commit(self)

    def _write(self, operation: Operation, timeout: None, request_id: None) -> None:
        self.operations.append(("write", operation, timeout))

    def __getattr__(self, name: str) -> Any:
        if not name.startswith(("create_", "delete_", "save_")):
            raise AttributeError(name)
        return lambda value, *, if_revision=None: self.operations.append((name, value, if_revision))


class FakeManager:
    """A manager with the interface that the server uses; calls answer or raise `outcome`."""

    def __init__(self) -> None:
        self.batches: list[tuple[list[tuple[Any, ...]], float | None]] = []
        self.calls: list[tuple[Any, ...]] = []
        self.outcome: BaseException | None = None
        self.gate: threading.Event | None = None  # a write waits for it
        self.entered = threading.Event()
        self._lock = threading.Lock()

    def batch(self, *, timeout: float | None = None) -> Any:
        return FakeBatch(self, timeout)

    def commit(self, batch: FakeBatch) -> None:
        self.entered.set()
        if self.gate is not None:
            assert self.gate.wait(30)
        if self.outcome is not None:
            raise self.outcome
        with self._lock:
            self.batches.append((batch.operations, batch.timeout))
            batch.revision = len(self.batches)

    def status(self) -> Any:
        if self.outcome is not None:
            raise self.outcome
        return FakeResult(node_id="m1", role="leader")

    def nameless_snapshot(self) -> int:
        raise AssertionError("nothing here asks for a snapshot")

    def members(self) -> Any:
        return (FakeResult(id="m1", address="127.0.0.1:7946", connected=True),)

    def add_member(self, id: str, address: str, *, timeout: float | None = None) -> None:  # noqa: A002
        self.calls.append(("add", id, address, timeout))

    def update_member(self, id: str, address: str, *, timeout: float | None = None) -> str:  # noqa: A002
        self.calls.append(("update", id, address, timeout))
        return f"{id} does not answer at {address}"

    def remove_member(self, id: str, *, timeout: float | None = None) -> None:  # noqa: A002
        self.calls.append(("remove", id, timeout))

    def transfer_leadership(self, id: str | None = None, *, timeout: float | None = None) -> str:  # noqa: A002
        self.calls.append(("transfer", id, timeout))
        return id or "m2"


@contextlib.contextmanager
def running(manager: FakeManager, directory: Path) -> Iterator[AdminClient]:
    server = AdminServer(manager, directory, manager.nameless_snapshot)
    server.start()
    try:
        yield AdminClient(directory)
    finally:
        server.stop()


@pytest.fixture
def manager() -> FakeManager:
    return FakeManager()


@pytest.fixture
def client(manager: FakeManager, tmp_path: Path) -> Iterator[AdminClient]:
    with running(manager, tmp_path) as client:
        yield client


# ------------------------------------------------------------------------------------------ the socket


def test_a_long_directory_name_does_not_break_the_socket(manager: FakeManager, tmp_path: Path) -> None:
    """A socket's name has at most 108 bytes; the name of a test directory or a container volume may be longer."""
    directory = tmp_path / ("d" * 120) / ("e" * 120)
    directory.mkdir(parents=True)
    with running(manager, directory) as client:
        assert client.status()["node_id"] == "m1"


def test_a_manager_of_an_earlier_release_has_no_reports(client: AdminClient) -> None:
    for ask in (client.explain, client.self_report):
        with pytest.raises(ManagerFailed, match=r"of a release that has no '(explain|self_report)': upgrade it"):
            ask()


def test_a_relative_directory_works(manager: FakeManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m1").mkdir()
    with running(manager, Path("m1")) as client:
        assert client.status()["node_id"] == "m1"


def test_only_the_owner_may_use_the_socket_whatever_the_umask(manager: FakeManager, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with running(manager, tmp_path):
            assert stat.S_IMODE((tmp_path / "admin.sock").stat().st_mode) == 0o600
    finally:
        os.umask(before)


@pytest.mark.skipif(os.geteuid() != 0, reason="to become other users needs root")
def test_a_caller_of_another_user_is_refused_whatever_the_modes_say(
    manager: FakeManager, caplog: pytest.LogCaptureFixture
) -> None:
    """A chmod, or a capability, may let other users reach the socket; the kernel names the user of each connection.
    Nothing that another user sends is read, and other users cannot fill the log."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        with running(manager, Path(name)) as client:
            os.chmod(Path(name) / "admin.sock", 0o666)

            def call() -> None:
                for _ in range(3):
                    with pytest.raises(Unavailable, match="broke"):
                        client.status()

            as_user(FIRST, call)
            assert manager.calls == []
            assert client.status()["node_id"] == "m1"  # root
    lines = [record for record in caplog.records if "admin caller refused" in record.getMessage()]
    assert len(lines) == 1
    assert f"user=#{FIRST}" in lines[0].getMessage()


@pytest.mark.skipif(os.geteuid() != 0, reason="to become other users needs root")
def test_the_user_that_runs_the_manager_and_root_are_answered(
    manager: FakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory() as name:
        os.chown(name, FIRST, FIRST)

        def call() -> None:
            with running(manager, Path(name)) as client:
                assert client.status()["node_id"] == "m1"

        as_user(FIRST, call)
        monkeypatch.setattr(os, "geteuid", lambda: FIRST)  # the manager's own user; the client is root
        call()


def test_the_socket_goes_with_the_manager(manager: FakeManager, tmp_path: Path) -> None:
    with running(manager, tmp_path):
        assert (tmp_path / "admin.sock").is_socket()
    assert list(tmp_path.iterdir()) == []


def test_callers_that_come_while_it_stops_leave_nothing_open(manager: FakeManager, tmp_path: Path) -> None:
    """asyncio leaves a connection open that it accepts while the listener is closed."""
    stopped = threading.Event()

    def call() -> None:
        while not stopped.is_set():
            with socket.socket(socket.AF_UNIX) as caller, contextlib.suppress(OSError):
                caller.connect(str(tmp_path / "admin.sock"))

    callers = [threading.Thread(target=call) for _ in range(3)]
    for caller in callers:
        caller.start()
    try:
        for _ in range(10):
            with running(manager, tmp_path):
                pass
    finally:
        stopped.set()
        for caller in callers:
            caller.join()
    gc.collect()  # a connection left open makes a ResourceWarning, which is an error here


def test_a_dead_managers_socket_is_replaced(manager: FakeManager, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead, socket_address(tmp_path) as address:
        dead.bind(address)
    with pytest.raises(NotRunning):
        AdminClient(tmp_path).status()
    with running(manager, tmp_path) as client:
        assert client.status()["node_id"] == "m1"


def test_a_directory_without_a_manager_is_named_with_the_command_that_starts_one(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    with pytest.raises(NotRunning) as caught:
        AdminClient(tmp_path).status()
    assert str(caught.value) == (
        f"no manager is running on {tmp_path}; start it with: warren-raft serve --data-dir {tmp_path} … (if it was "
        "started a moment ago, try again)"
    )


def test_a_manager_that_starts_is_waited_for_and_not_started_again(tmp_path: Path) -> None:
    """(Pins a report: `status` just after the start of `serve` said that no manager is running, and to start it.)"""
    last_failure.keep(tmp_path, "an earlier start failed", datetime.now(UTC))
    lock = DirectoryLock(tmp_path)
    try:
        (tmp_path / "log").mkdir()
        with pytest.raises(NotRunning) as caught:
            AdminClient(tmp_path).status()
        starting = str(caught.value)
        (tmp_path / "log").rmdir()
        with pytest.raises(NotRunning) as caught:
            AdminClient(tmp_path).status()
        unknown = str(caught.value)
    finally:
        lock.release()
    process = re.escape(f"process {os.getpid()} (")
    wait = "wait a few seconds, and try again; if that lasts, look at its log"
    assert re.fullmatch(
        rf"a manager is starting or stopping on {tmp_path}, and does not answer yet \({process}.+\)\): {wait}"
        r"\. A manager with admin=False answers no commands: use its program",
        starting,
    )
    assert re.search(rf"{wait}. If a program has a LocalStore there, it answers no commands: use that program", unknown)
    with pytest.raises(NotRunning, match="an earlier start failed"):
        AdminClient(tmp_path).status()


def test_a_directory_that_no_manager_can_have_is_named_with_the_reason(tmp_path: Path) -> None:
    """(Pins a bug: `status --data-dir /etc` told the operator to start a manager in /etc.)"""
    for directory, reason in ((tmp_path, "holds no manager's data"), (tmp_path / "none", "there is no such directory")):
        with pytest.raises(NotRunning, match=reason) as caught:
            AdminClient(directory).status()
        assert str(directory) in str(caught.value)
        assert "serve" not in str(caught.value)


def test_a_manager_that_is_stopped_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator asks for `status` first, also from a process that hangs."""
    monkeypatch.setattr(client_module, "QUICK_ANSWER_SECONDS", 0.1)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "admin.sock"))
        listener.listen()
        for ask in (AdminClient(tmp_path).status, AdminClient(tmp_path).members):
            with pytest.raises(Unavailable) as caught:
                ask()
            assert str(caught.value) == (
                f"the manager on {tmp_path} (process {os.getpid()}) does not answer: look at its log, or start it again"
            )


LISTEN = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); print(); input()"


def test_a_suspended_manager_is_named_with_the_command_to_let_it_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After `kill -STOP`. (Pins a bug: "did not answer", and a snapshot was waited for half an hour.)"""
    monkeypatch.setattr(client_module, "QUICK_ANSWER_SECONDS", 0.1)
    command = [sys.executable, "-u", "-c", LISTEN, str(tmp_path / "admin.sock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"\n"  # it listens
            process.send_signal(signal.SIGSTOP)
            os.waitpid(process.pid, os.WUNTRACED)
            for ask in (AdminClient(tmp_path).status, AdminClient(tmp_path).snapshot().__enter__):
                with pytest.raises(Unavailable) as caught:
                    ask()
                assert str(caught.value) == (
                    f"the manager on {tmp_path} does not answer: process {process.pid} is suspended; "
                    f"type kill -CONT {process.pid}"
                )
        finally:
            process.kill()


def test_a_server_that_cannot_listen_says_why_and_leaves_no_thread(manager: FakeManager, tmp_path: Path) -> None:
    server = AdminServer(manager, tmp_path / "none", manager.nameless_snapshot)
    with pytest.raises(FileNotFoundError):
        server.start()
    server.stop()
    assert not [t for t in threading.enumerate() if t.name.startswith("warren-admin")]


def test_no_descriptor_is_left_behind(manager: FakeManager, tmp_path: Path) -> None:
    with running(manager, tmp_path) as client:
        client.status()  # modules that are loaded once are loaded now
    before = set(os.listdir("/proc/self/fd"))
    with running(manager, tmp_path) as client:
        for _ in range(20):
            client.status()
    assert set(os.listdir("/proc/self/fd")) == before


# ---------------------------------------------------------------------------------------------- writes


def test_a_put_arrives_as_the_entity_it_was(client: AdminClient, manager: FakeManager) -> None:
    node = Node(id="n1", role="worker", labels={"zone": "a"})
    assert client.put("node", to_json(node), if_revision=4, timeout=2.5) == 1
    assert manager.batches == [([("create_node", node, 4)], 2.5)]


def test_kinds_that_the_store_calls_otherwise_find_their_method(client: AdminClient, manager: FakeManager) -> None:
    client.put("certificate", {"id": "c1", "name": "web"})
    client.put("ca", base64.b64encode(b"\0CA").decode())
    client.delete("certificate", "c1", if_revision=1)
    assert [operations for operations, _ in manager.batches] == [
        [("create_tls_certificate", TLSCertificate(id="c1", name="web"), None)],
        [("save_ca", b"\0CA", None)],
        [("delete_tls_certificate", "c1", 1)],
    ]


def test_a_batch_is_one_command(client: AdminClient, manager: FakeManager) -> None:
    client.put_batch([("node", {"id": "n1"}), ("service", {"id": "s1"})])
    ((operations, _timeout),) = manager.batches
    assert [name for name, *_ in operations] == ["create_node", "create_service"]


def test_an_item_may_be_the_encoded_entity(client: AdminClient, manager: FakeManager) -> None:
    node = Node(id="n1", role="worker", labels={"zone": "a"})
    encoded = base64.b64encode(codec.encode(NODE, node)).decode()
    client.put_batch([("node", encoded), ("ca", base64.b64encode(b"\0CA").decode()), ("service", {"id": "s1"})])
    ((operations, _timeout),) = manager.batches
    assert operations[:2] == [("write", put_operation(NODE, node, None), None), ("save_ca", b"\0CA", None)]


def _longer(data: bytes) -> bytes:
    """The entity with one more field, which a newer release has."""
    return bytes([data[0] + 1]) + data[1:] + b"\x01"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not an entity"),
        (b"\xff", "not an entity"),
        (b"\x80", "not"),
        (b"\x81\x80", "id"),
        (b"\x82cn-1\x05", "role"),
        (b"\x82cn-1cnone", "role"),
        (b"\x81cn-1", "does not write"),
        (codec.encode(NODE, Node(id="n-1")), ""),
        (_longer(codec.encode(NODE, Node(id="n-1"))), "does not write"),
    ],
)
def test_an_encoded_item_is_checked_like_any_other(tmp_path: Path, data: bytes, says: str) -> None:
    """Against a real store: the bytes may have any values."""
    with LocalStore(tmp_path / "store") as store:
        batch = [["node", base64.b64encode(data).decode()]]
        put = partial(OPERATIONS["put_batch"], cast("Any", store), Arguments({"items": batch}))
        if not says:
            put()
            assert store.get_node("n-1") == Node(id="n-1")
            return
        with pytest.raises(errors.InvalidEntity, match=says):
            put()
        assert store.list_nodes() == []


def test_an_item_that_is_no_base64_is_refused(client: AdminClient, manager: FakeManager) -> None:
    with pytest.raises(errors.InvalidEntity, match="base64"):
        client.put_batch([("node", "no base64!")])
    assert manager.batches == []


def test_many_items_are_stored_in_bounded_batches_and_told_of(client: AdminClient, manager: FakeManager) -> None:
    told: list[int] = []
    items = [("node", {"id": f"n{number}"}) for number in range(3 * CHUNK_RECORDS + 7)]
    client.put_all(items, done=told.append)
    assert told == [CHUNK_RECORDS, CHUNK_RECORDS, CHUNK_RECORDS, 7]
    stored = [node.id for operations, _ in manager.batches for _, node, _ in operations]
    assert sorted(stored) == sorted(str(entity["id"]) for _, entity in items)


def test_chunks_are_bounded_in_bytes_but_one_large_item_still_goes() -> None:
    large = ("secret", {"id": "s", "data": "A" * CHUNK_BYTES})
    small = ("node", {"id": "n"})
    assert [len(chunk) for chunk in _chunks([small, large, small, small])] == [1, 1, 2]


def test_an_error_in_the_middle_of_many_items_is_raised(client: AdminClient, manager: FakeManager) -> None:
    manager.outcome = errors.Unavailable("no quorum", maybe_applied=False)
    with pytest.raises(errors.Unavailable):
        client.put_all([("node", {"id": f"n{number}"}) for number in range(5 * CHUNK_RECORDS)])


@pytest.mark.parametrize(
    ("operation", "arguments", "says"),
    [
        ("put", {"kind": "nodde", "entity": {"id": "n1"}}, "no kind 'nodde'"),
        ("put", {"kind": "node", "entity": {"id": ""}}, "id"),
        ("put", {"kind": "node", "entity": {"id": "n1", "rolle": "worker"}}, "rolle"),
        ("put", {"kind": "node", "entity": ["n1"]}, "must be a JSON object"),
        ("put", {"kind": "node", "entity": {"id": "n1"}, "if_revision": "4"}, "if_revision"),
        ("put", {"kind": "node", "entity": {"id": "n1"}, "if_revision": True}, "if_revision"),
        ("put", {"kind": "ca", "entity": "no base64!"}, "base64"),
        ("put_batch", {"items": []}, "items"),
        ("put_batch", {"items": [["node"]]}, "items"),
        ("put_batch", {"items": {"node": 1}}, "items"),
        ("delete", {"kind": "ca", "id": "ca"}, "cannot be deleted"),
        ("delete", {"kind": "node"}, "id"),
        ("add_member", {"id": "m4"}, "address"),
        ("explode", {}, "no such operation"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_and_nothing_is_called(
    client: AdminClient, manager: FakeManager, operation: str, arguments: dict[str, Any], says: str
) -> None:
    with pytest.raises(errors.InvalidEntity, match=says):
        client.call(operation, arguments)
    assert manager.batches == []
    assert manager.calls == []


def raw_request(directory: Path, body: bytes) -> Any:
    with socket.socket(socket.AF_UNIX) as link:
        with socket_address(directory) as address:
            link.connect(address)
        connection = http.client.HTTPConnection("manager")
        connection.sock = link
        connection.request("POST", "/v1/put", body)
        return json.loads(connection.getresponse().read())


@pytest.mark.parametrize("body", [b'{"kind": "no', b"[]", b'"put"', b"\xff", b"[" * 100_000])
@pytest.mark.usefixtures("client")
def test_a_body_that_is_no_json_object_is_refused(tmp_path: Path, body: bytes) -> None:
    assert raw_request(tmp_path, body)["error"] == "InvalidEntity"


@pytest.mark.parametrize("timeout", [-1.0, 3601, 1e10, math.inf, math.nan, True, "5"])
def test_a_timeout_out_of_range_is_refused(client: AdminClient, manager: FakeManager, timeout: Any) -> None:
    with pytest.raises(errors.InvalidEntity, match=r"^timeout: must be"):
        client.call("put", {"kind": "node", "entity": {"id": "n1"}}, timeout=timeout)
    assert manager.batches == []


# --------------------------------------------------------------------------------------------- members


def test_member_calls_arrive_with_their_arguments(client: AdminClient, manager: FakeManager) -> None:
    assert client.members()[0]["id"] == "m1"
    client.add_member("m4", "127.0.0.1:7949", timeout=3)
    assert client.update_member("m4", "127.0.0.1:7950") == "m4 does not answer at 127.0.0.1:7950"
    client.remove_member("m4")
    assert client.transfer_leadership() == "m2"
    assert client.transfer_leadership("m3", timeout=1) == "m3"
    assert manager.calls == [
        ("add", "m4", "127.0.0.1:7949", 3.0),
        ("update", "m4", "127.0.0.1:7950", None),
        ("remove", "m4", None),
        ("transfer", None, None),
        ("transfer", "m3", 1.0),
    ]


# ---------------------------------------------------------------------------------------------- errors

EXAMPLES = [
    errors.NotFound("node", "n1"),
    errors.RevisionConflict("node", "n1", 3, 4),
    errors.LeadershipLost(7),
    errors.InvalidEntity("node", "is empty", id="n1", field="id"),
    errors.InvalidConfig("must be at least 1", field="queue_limit"),
    errors.Unavailable("no quorum", maybe_applied=True),
    errors.StorageFull("no room"),
    errors.Corrupted("/data/log", "is torn", remedy="add it again"),
    errors.SnapshotInvalid("/s.mdb", "is torn"),
    errors.RefusedForSafety("it would lose the quorum"),
    errors.InUse("port 7946"),
    errors.WatchLost(17),
    errors.Misuse("the batch has ended"),
    errors.Closed("the store is closed"),
    errors.InvariantViolation("applied beyond the log"),
]


def test_every_error_of_the_package_has_an_example_here() -> None:
    defined = {cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, errors.WarrenError)}
    assert {type(error) for error in EXAMPLES} == defined - {errors.WarrenError}


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_arrives_with_its_class_its_data_and_its_text(
    client: AdminClient, manager: FakeManager, error: errors.WarrenError
) -> None:
    manager.outcome = error
    with pytest.raises(type(error)) as caught:
        client.status()
    assert str(caught.value) == str(error)
    assert vars(caught.value) == vars(error)


def test_an_error_that_is_not_ours_is_told_as_such(
    client: AdminClient, manager: FakeManager, caplog: pytest.LogCaptureFixture
) -> None:
    manager.outcome = ZeroDivisionError("by zero")
    with pytest.raises(ManagerFailed, match="ZeroDivisionError: by zero"):
        client.status()
    assert "admin call failed" in caplog.text  # with the traceback, so that the bug can be found


@pytest.mark.parametrize(
    ("error", "public"),
    [
        (StateUntrusted("state/2.mdb", "lost pages", 2), errors.Corrupted),
        (UnknownReaders("state/2.mdb"), errors.InUse),
        (Removed("m2 was removed"), errors.RefusedForSafety),
    ],
)
def test_an_inner_error_reaches_the_client_as_its_public_class(error: Exception, public: type[Exception]) -> None:
    """(Pins a fault: it was ManagerFailed, so the exit code was that of an unknown failure.)"""
    made = error_from_json(json.loads(json.dumps(error_to_json(error))))
    assert type(made) is public
    assert str(made) == str(error)


def test_an_error_of_a_newer_manager_is_still_told() -> None:
    answer = {"error": "QuotaExceeded", "message": "too much", "data": {"limit": 5}}
    assert str(error_from_json(answer)) == "too much"
    assert error_to_json(errors.Closed())["message"] == "the store is closed"


# ------------------------------------------------------------------------------------ slow and broken ends


def test_however_many_writes_wait_for_a_quorum_the_status_can_be_looked_at(
    client: AdminClient, manager: FakeManager
) -> None:
    """When nothing moves, an operator asks for `status` first."""
    manager.gate = threading.Event()
    writers = [
        threading.Thread(target=client.put, args=("node", {"id": f"n{number}"})) for number in range(2 * MAX_CALLS)
    ]
    for writer in writers:
        writer.start()
    try:
        assert manager.entered.wait(30)
        for _ in range(5):
            assert client.status()["node_id"] == "m1"
        assert all(writer.is_alive() for writer in writers)
    finally:
        manager.gate.set()
        for writer in writers:
            writer.join()
    assert len(manager.batches) == 2 * MAX_CALLS, "those beyond the bound waited their turn"


def test_a_request_beyond_all_bounds_is_refused(client: AdminClient, manager: FakeManager) -> None:
    with pytest.raises(errors.InvalidEntity, match="Too Large"):
        client.put("secret", {"id": "s", "data": "A" * MAX_REQUEST_BYTES})
    assert manager.batches == []


@pytest.mark.slow
def test_a_manager_that_closes_under_a_write_leaves_the_outcome_open(manager: FakeManager, tmp_path: Path) -> None:
    """The write may have been applied. Any other answer would make a caller repeat or forget it wrongly."""
    manager.gate = threading.Event()
    caught: list[BaseException] = []

    def write() -> None:
        try:
            AdminClient(tmp_path).put("node", {"id": "n1"})
        except errors.WarrenError as error:
            caught.append(error)

    with running(manager, tmp_path):
        writer = threading.Thread(target=write)
        writer.start()
        assert manager.entered.wait(30)
    writer.join()
    manager.gate.set()
    (error,) = caught
    assert isinstance(error, errors.Unavailable)
    assert error.maybe_applied


def test_a_manager_that_does_not_answer_is_unavailable_at_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("warren_raft.admin.client.ANSWER_MARGIN_SECONDS", 0.1)
    with socket.socket(socket.AF_UNIX) as silent:
        with socket_address(tmp_path) as address:
            silent.bind(address)
        silent.listen()
        with pytest.raises(errors.Unavailable, match="does not answer") as caught:
            AdminClient(tmp_path).put("node", {"id": "n1"}, timeout=0.1)
        with pytest.raises(errors.Unavailable, match=r"does not answer: .*; leadership may still move$") as transfer:
            AdminClient(tmp_path).transfer_leadership(timeout=0.1)
    assert caught.value.maybe_applied
    assert (transfer.value.maybe_applied, transfer.value.of_write) == (True, False)
