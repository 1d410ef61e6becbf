"""The promise: probes get a manager's health by named checks, over the admin socket and over a bounded port.

Nothing can be changed there. A slow or greedy client costs a few threads for a few seconds.
"""

from __future__ import annotations

import errno
import http.client
import json
import re
import socket
import socketserver
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

import warren_raft as wr
from tests.cluster.harness import free_ports, wait_until
from warren_raft.admin import socket_address
from warren_raft.alarms import Alarm
from warren_raft.health import server as health_server
from warren_raft.health.checks import CHECKS
from warren_raft.health.pages import Pages
from warren_raft.results import Fetching, MemberStatus, Status

PAGE = Path(__file__).resolve().parents[2] / "docs" / "health.md"


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[wr.ReplicatedStore]:
    port, metrics = free_ports(2)
    address = f"127.0.0.1:{port}"
    config = wr.Config(
        node_id="m1",
        data_dir=tmp_path_factory.mktemp("health") / "m1",
        listen=address,
        members={"m1": address},
        metrics_listen=f"127.0.0.1:{metrics}",
    )
    with wr.ReplicatedStore(config) as store:
        store.wait_ready()
        store.create_secret(wr.Secret(id="hush", name="hush", data=b"not for probes"))
        yield store


def port_of(store: wr.ReplicatedStore) -> int:
    assert store.config.metrics_listen is not None
    return int(store.config.metrics_listen.rpartition(":")[2])


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, directory: str) -> None:
        super().__init__("localhost", timeout=20)
        self._directory = directory

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with socket_address(self._directory) as address:
            self.sock.connect(address)


def by_port(store: wr.ReplicatedStore) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", port_of(store), timeout=20)


def by_socket(store: wr.ReplicatedStore) -> http.client.HTTPConnection:
    return _UnixConnection(str(store.config.data_dir))


Connect = Callable[[wr.ReplicatedStore], http.client.HTTPConnection]


def asked(connection: http.client.HTTPConnection, path: str, method: str = "GET") -> tuple[int, str]:
    with closing(connection):
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read().decode()


@pytest.mark.parametrize("connect", [by_port, by_socket])
def test_the_four_pages(manager: wr.ReplicatedStore, connect: Connect) -> None:
    assert asked(connect(manager), "/livez") == (200, "ok\n")
    assert asked(connect(manager), "/livez?verbose") == (200, "[+]raft-thread ok\nlivez check passed\n")
    assert asked(connect(manager), "/readyz") == (200, "ok\n")
    code, text = asked(connect(manager), "/readyz?verbose&exclude=space&exclude=sapce")
    assert code == 200
    assert text.splitlines() == [
        "[+]store ok",
        "[+]leader ok",
        "[+]sync ok",
        "[+]digest ok",
        "[+]space excluded: ok",
        "[+]links ok",
        'warn: some health checks cannot be excluded: no matches for "sapce"',
        "readyz check passed",
    ]
    code, text = asked(connect(manager), "/status")
    assert (code, json.loads(text)["node_id"]) == (200, "m1")
    assert json.loads(text).keys() == manager.status().to_json().keys()
    code, text = asked(connect(manager), "/metrics")
    assert code == 200
    assert "warren_raft_is_leader 1.0\n" in text
    assert "process_start_time_seconds" in text
    assert "storage_nodes_total" not in text
    assert "storage_nodes_total" in asked(connect(manager), "/metrics?legacy_names")[1]


def test_an_unknown_check_to_exclude_is_named_without_verbose_too(manager: wr.ReplicatedStore) -> None:
    """(Pins a bug: the answer to a mistyped probe was "ok" alone.)"""
    warning = "warn: some health checks cannot be excluded: no matches for"
    for page, check, foreign in (("/readyz", "space", "raft-thread"), ("/livez", "raft-thread", "space")):
        answer = asked(by_port(manager), f"{page}?exclude=x&exclude=nonsense&exclude={check}&exclude={foreign}")
        named = ", ".join(f'"{name}"' for name in sorted([foreign, "nonsense", "x"]))
        assert answer == (200, f"ok\n{warning} {named}\n")
    injected = asked(by_port(manager), "/readyz?exclude=%0aok%1b%5b2J")[1]
    assert injected == f'ok\n{warning} "\\nok\\x1b[2J"\n'


@pytest.mark.parametrize("connect", [by_port, by_socket])
def test_no_answer_is_taken_for_another_type_than_it_says(manager: wr.ReplicatedStore, connect: Connect) -> None:
    """A browser guesses at the type of a text without this header."""
    answers = ["/livez", "/readyz?verbose", "/status", "/metrics", "/nothing", "/livez?" + "&".join(["exclude=a"] * 60)]
    for path in answers + ["/livez?" + "a" * 70_000] * (connect is by_port):
        with closing(connect(manager)) as connection:
            connection.request("GET", path)
            response = connection.getresponse()
            assert response.headers.get_all("X-Content-Type-Options") == ["nosniff"], path


def test_the_port_has_these_pages_alone_and_changes_nothing(manager: wr.ReplicatedStore) -> None:
    before = manager.status().revision
    for path in ("/", "/v1/status", "/v1/put", "/status/", "/..", "/livez/"):
        assert asked(by_port(manager), path)[0] == 404, path
        assert asked(by_port(manager), path, "POST")[0] == 501, path
    assert asked(by_port(manager), "/livez", "DELETE")[0] == 501
    for path in ("/status", "/metrics", "/readyz?verbose"):
        text = asked(by_port(manager), path)[1]
        assert "hush" not in text
        assert "not for probes" not in text
    assert asked(by_port(manager), "/livez?" + "&".join(["exclude=a"] * 60))[0] == 400
    assert asked(by_port(manager), "/livez?" + "a" * 70_000)[0] == 414
    assert asked(by_port(manager), "/status", "HEAD") == (200, "")
    assert manager.status().revision == before


def test_silent_clients_are_cut_off_and_keep_no_probe_from_its_answer(
    manager: wr.ReplicatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(Pins a fault: at the limit the new client was refused, so sixteen silent ones made a liveness probe fail.)"""
    address = ("127.0.0.1", port_of(manager))
    silent = [socket.create_connection(address, timeout=20) for _ in range(health_server.CONNECTIONS_MAX)]
    try:
        assert asked(by_port(manager), "/livez")[0] == 200
        assert silent[0].recv(1) == b"", "the oldest gave way"
        monkeypatch.setattr(health_server, "CONNECTION_SECONDS", 0.5)
        for connection in silent:
            assert connection.recv(1) == b"", "cut off, although its client sent nothing"
    finally:
        for connection in silent:
            connection.close()
    wait_until(lambda: _answers(manager), "an answer again", 20)


def test_a_page_server_that_finds_no_descriptor_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """(Pins a fault: it asked again at once, and filled a processor as long as a client waited.)"""

    def none_left(_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    pauses: list[float] = []
    monkeypatch.setattr(socketserver.TCPServer, "get_request", none_left)
    monkeypatch.setattr(health_server.time, "sleep", pauses.append)
    with health_server._Server(None, "127.0.0.1", 0) as server, pytest.raises(OSError, match="Too many"):
        server.get_request()
    assert pauses == [health_server.POLL_SECONDS]


def _answers(manager: wr.ReplicatedStore) -> bool:
    try:
        return asked(by_port(manager), "/livez")[0] == 200
    except OSError:
        return False


@pytest.mark.slow
def test_a_port_that_is_taken_is_told_and_nothing_is_left(manager: wr.ReplicatedStore, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    address = f"127.0.0.1:{port}"
    config = wr.Config(
        node_id="m2",
        data_dir=tmp_path / "m2",
        listen=address,
        members={"m2": address},
        metrics_listen=manager.config.metrics_listen,
    )
    with pytest.raises(wr.InUse, match="metrics_listen"):
        wr.ReplicatedStore(config)
    with wr.ReplicatedStore(replace(config, metrics_listen=None)) as store:
        store.wait_ready()


@pytest.mark.parametrize("wrong", ["9090", "host:", "127.0.0.1:0", "127.0.0.1:70000", 9090])
def test_a_wrong_address_is_refused(wrong: str, tmp_path: Path) -> None:
    with pytest.raises(wr.InvalidConfig, match="metrics_listen") as caught:
        wr.Config(
            node_id="m1",
            data_dir=tmp_path,
            listen="127.0.0.1:7946",
            members={"m1": "127.0.0.1:7946"},
            metrics_listen=wrong,
        )
    assert caught.value.field == "metrics_listen"


def test_the_page_lists_the_checks() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", PAGE.read_text().split("## The checks of /readyz")[1], re.MULTILINE)
    assert rows == list(CHECKS)


# ---- the checks


def member(id_: str, *, connected: bool, voter: bool = True) -> MemberStatus:
    values = dict.fromkeys(MemberStatus.__dataclass_fields__)
    return MemberStatus(**{**values, "id": id_, "address": id_, "connected": connected, "voter": voter})  # type: ignore[arg-type]


def alarm(status: Status, name: str) -> Status:
    raised = Alarm(name=name, subject="", severity="critical", text="", since=None)  # type: ignore[arg-type]
    return replace(status, alarms=(raised,))


def members(status: Status, *connected: bool) -> Status:
    others = [member(f"m{number}", connected=each) for number, each in enumerate(connected, 2)]
    return replace(status, members=(member("m1", connected=False), *others, member("x", connected=False, voter=False)))


FAULTS: dict[str, list[Callable[[Status], Status]]] = {
    "store": [
        lambda status: replace(status, failure="an invariant broke"),
        *(
            lambda status, name=name: alarm(status, name)
            for name in ("raft-thread-stuck", "log-no-space", "log-blocked", "state-no-space", "state-blocked")
        ),
    ],
    "leader": [lambda status: replace(status, leader=None), lambda status: replace(status, has_quorum=False)],
    "sync": [
        lambda status: replace(status, ready=False),
        lambda status: replace(status, fetching=Fetching(bytes=1, of=2)),
    ],
    "digest": [lambda status: alarm(status, "state-wrong")],
    "space": [lambda status: replace(status, full=True)],
    "links": [lambda status: members(status, False, False), lambda status: members(status, True, False, False)],
}


class Known:
    """A manager with a given status."""

    failure = None

    def __init__(self, status: Status) -> None:
        self._status = status
        self.alarms = status.alarms

    def status(self) -> Status:
        return self._status

    _meters = None


@pytest.mark.parametrize("check", CHECKS)
def test_each_fault_fails_its_check_alone(check: str, manager: wr.ReplicatedStore) -> None:
    good = manager.status()
    for fault in FAULTS[check]:
        pages = Pages(Known(fault(good)))  # type: ignore[arg-type]
        code, _, body = pages.page("/readyz")
        failed = re.findall(r"^\[-\](\w+) failed: ..", body.decode(), re.MULTILINE)
        assert (code, failed) == (503, [check])
        assert body.endswith(b"readyz check failed\n")
        assert pages.page(f"/readyz?exclude={check}")[::2] == (200, b"ok\n")
    assert Pages(Known(members(good, True, False))).page("/readyz").status == 200  # type: ignore[arg-type]


def test_life_does_not_depend_on_the_cluster(manager: wr.ReplicatedStore) -> None:
    alone = replace(members(manager.status(), False, False), leader=None, has_quorum=False, ready=False)
    assert Pages(Known(alone)).page("/livez")[::2] == (200, b"ok\n")  # type: ignore[arg-type]
    stuck = alarm(alone, "raft-thread-stuck")
    code, _, body = Pages(Known(stuck)).page("/livez")  # type: ignore[arg-type]
    assert (code, body.decode().splitlines()[0]) == (503, "[-]raft-thread failed: the raft thread does nothing")


def test_a_closed_manager_is_not_ready_and_its_port_is_closed(tmp_path: Path) -> None:
    port, metrics = free_ports(2)
    address = f"127.0.0.1:{port}"
    config = wr.Config(
        node_id="m1",
        data_dir=tmp_path / "m1",
        listen=address,
        members={"m1": address},
        admin=False,
        metrics_listen=f"127.0.0.1:{metrics}",
    )
    with wr.ReplicatedStore(config) as store:
        store.wait_ready()
        assert asked(by_port(store), "/livez")[0] == 200
    pages = Pages(store)
    assert pages.page("/readyz").status == pages.page("/status").status == 503
    assert b"warren_store_open 0.0" in pages.page("/metrics").body
    with pytest.raises(OSError, match="refused"):
        asked(by_port(store), "/livez")
