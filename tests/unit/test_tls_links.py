"""Promises: managers speak TLS 1.3 with certificates on both sides. A link speaks only for the id of its certificate. A
peer without a certificate, or with a wrong one, is refused, and a log line on each side says why. All tests run over
real loopback sockets."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import logging
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.certificates import DAY, Authority
from tests.tls_records import (
    DATA,
    HANDSHAKE,
    KEY_UPDATE,
    KEY_UPDATE_ASKED,
    KEY_UPDATE_HEAD,
    Crafter,
    with_key_log,
)
from tests.unit.test_transport import (
    FAST,
    PATIENCE_SECONDS,
    Node,
    Stage,
    Stranger,
    hello,
    is_unharmed,
    linked,
    no_descriptors,
    scenario,
    until,
)
from warren_raft.certificates.credentials import Credentials
from warren_raft.certificates.identity import Identity
from warren_raft.certificates.tls_session import Session
from warren_raft.errors import InvariantViolation
from warren_raft.raft.links import connection as connection_module
from warren_raft.raft.links import handshakes as handshakes_module
from warren_raft.raft.links import transport as transport_module
from warren_raft.raft.links.connection import REST_FOR_A_TURN, TURN_SECONDS, Connection
from warren_raft.raft.links.handshakes import MAX_UNFINISHED
from warren_raft.raft.links.transport import MAX_GUESTS, LinkEnd, Timing
from warren_raft.raft.links.wire import encode
from warren_raft.raft.refusal import Refusal

NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


PATIENT = replace(FAST, handshake_seconds=PATIENCE_SECONDS, link_timeout_seconds=PATIENCE_SECONDS)
"""For strangers that are slow to speak, on a busy machine."""


async def tls_pair(stage: Stage, authority: Authority, directory: Path, timing: Timing = PATIENT) -> tuple[Node, Node]:
    """m1, which dials, and m2, with a link between them."""
    a = await stage.node("m1", timing, credentials=authority.credentials(directory, "m1"))
    b = await stage.node("m2", timing, credentials=authority.credentials(directory, "m2"))
    a.transport.set_peers({"m2": (b.address,)})
    await linked(a, b)
    return a, b


async def dial_with(stage: Stage, node: Node, context: ssl.SSLContext) -> Stranger:
    stranger = Stranger(*await asyncio.open_connection(*node.transport.listening, ssl=context))
    stage.stack.callback(stranger.writer.close)
    return stranger


def test_messages_of_every_size_pass_both_ways_and_each_side_knows_the_others_certificate(
    authority: Authority, tmp_path: Path
) -> None:
    @scenario
    async def scene(stage: Stage) -> None:
        a, b = await tls_pair(stage, authority, tmp_path)
        assert a.identities["m2"] == Credentials.load(tmp_path / "m2", "m2").identity
        assert b.identities["m1"] == Credentials.load(tmp_path / "m1", "m1").identity
        sizes = [0, 1, 16_383, 16_384, 16_385, 300_000, 4_000_000]
        for node, peer in ((a, "m2"), (b, "m1")):
            for number, size in enumerate(sizes):
                node.send(peer, {"type": "append", "number": number, "data": bytes([number]) * size})
        for node in (a, b):
            await until(lambda node=node: len(node.messages()) == len(sizes))
            assert [m["number"] for m in node.messages()] == list(range(len(sizes)))
            assert all(m["data"] == bytes([n]) * sizes[n] for n, m in enumerate(node.messages()))
        assert not a.told("down")

    scene()


def test_nothing_but_tls_1_3_is_spoken(authority: Authority, tmp_path: Path) -> None:
    @scenario
    async def scene(stage: Stage) -> None:
        a, b = await tls_pair(stage, authority, tmp_path)
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(ssl.SSLError):
            await dial_with(stage, b, old)
        stranger = await dial_with(stage, b, Credentials.load(tmp_path / "m1", "m1").client)
        tls = stranger.writer.get_extra_info("ssl_object")
        assert tls.version() == "TLSv1.3"
        assert tls.session is None or not tls.session.has_ticket
        a.send("m2", {"type": "well?"})
        await until(lambda: {"type": "well?"} in b.messages())

    scene()


def test_a_refusal_is_told_with_the_certificate_of_the_peer_that_refuses(authority: Authority, tmp_path: Path) -> None:
    @scenario
    async def scene(stage: Stage) -> None:
        a = await stage.node("m1", credentials=authority.credentials(tmp_path, "m1"))
        b = await stage.node("m2", credentials=authority.credentials(tmp_path, "m2"))
        b.judge = lambda hello: Refusal("removed", f"{hello['node_id']} was removed")
        a.transport.set_peers({"m2": (b.address,)})
        await until(lambda: a.told("refused"))
        assert a.refused_by["m2"] == Credentials.load(tmp_path / "m2", "m2").identity

    scene()


def test_a_link_speaks_only_as_the_id_of_its_certificate(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    @scenario
    async def scene(stage: Stage) -> None:
        a, b = await tls_pair(stage, authority, tmp_path)
        thief = await dial_with(stage, b, authority.credentials(tmp_path, "m9").client)
        thief.say(hello("m1"))
        answer = await thief.hear()
        assert answer["type"] == "refused"
        assert answer["text"] == "it says that it is m1, and its certificate is m9's"
        assert not a.told("down")
        assert not b.told("down")

    with caplog.at_level(logging.INFO, logger="warren_raft.transport"):
        scene()
    assert any("peer=m9" in line and "its certificate is m9's" in line for line in caplog.messages)


# Refused peers. In each row: the difference between m1 and m2, and the lines that each of them logs about the other.


def presented(node_id: str, make: Callable[[Authority, Path], Path]) -> Callable[[Authority, Path], Credentials]:
    """Credentials with which no manager would start: right ones, but with another certificate to show."""

    def credentials(authority: Authority, directory: Path) -> Credentials:
        loaded = authority.credentials(directory, node_id)
        wrong = make(authority, directory / "wrong")
        for context in (loaded.server, loaded.client):
            context.load_cert_chain(wrong / "cert.pem", wrong / "key.pem")
        return loaded

    return credentials


def nothing(authority: Authority, directory: Path) -> Credentials:
    loaded = authority.credentials(directory, "m1")
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.check_hostname = False
    bare.load_verify_locations(directory / "m1" / "ca.pem")
    object.__setattr__(loaded, "client", bare)
    return loaded


def plaintext(authority: Authority, directory: Path) -> None:
    return None


def of_other_ca(authority: Authority, directory: Path) -> Path:
    return Authority("another CA").issue(directory, "m1")


NO_CA_OF_OURS = r"its certificate was not issued by a CA that this manager trusts \(tls/ca.pem\)"
OUT_OF_DATE = "it is valid from .* to .*, and the clock of the manager that checked it says .* UTC"
REFUSED: dict[str, tuple[Callable[[Authority, Path], Credentials | None], str, str]] = {
    "no certificate": (nothing, "it wants a certificate, and this manager showed none", "it has no certificate"),
    "self-signed": (
        presented("m1", lambda a, d: a.issue(d, "m1", is_self_signed=True)),
        "it does not accept this manager's certificate: issued by a CA that it does not trust",
        "its certificate is signed by itself, not by the cluster's CA",
    ),
    "another CA": (
        presented("m1", of_other_ca),
        "it does not accept this manager's certificate: issued by a CA that it does not trust",
        NO_CA_OF_OURS,
    ),
    "another CA that has the name of ours": (
        presented("m1", lambda a, d: Authority(a.name).issue(d, "m1")),
        "it does not accept this manager's certificate: ",
        "its certificate ",
    ),
    "expired": (
        presented("m1", lambda a, d: a.issue(d, "m1", begin=NOW - 9 * DAY, end=NOW - DAY)),
        f"the certificate has expired: {OUT_OF_DATE}",
        f"we refuse it: the certificate has expired: {OUT_OF_DATE}",
    ),
    "not valid yet": (
        presented("m1", lambda a, d: a.issue(d, "m1", begin=NOW + DAY, end=NOW + 9 * DAY)),
        f"the certificate is not valid yet: {OUT_OF_DATE}",
        f"we refuse it: the certificate is not valid yet: {OUT_OF_DATE}",
    ),
    "the trust domain of another cluster": (
        presented("m1", lambda a, d: a.issue(d, "m1", trust_domain="other")),
        "the certificate of m1 is of the trust domain other, this manager's is of test: they belong to different",
        "we refuse it: the certificate of m1 is of the trust domain other, this manager's is of test",
    ),
    "another id": (
        presented("m1", lambda a, d: a.issue(d, "m9")),
        "it says that it is m1, and its certificate is m9's",
        "we refuse it: it says that it is m1, and its certificate is m9's",
    ),
    "plaintext": (plaintext, "it speaks TLS, and this manager runs with insecure_plaintext", "it does not speak TLS"),
}
"""The certificate that m1 shows, the reason that m1 hears or logs, and the reason that m2 logs."""


WRONG_DIALS, RIGHT_DIALS = "the wrong one dials", "the right one dials"
BOTH_WAYS = [(what, dials) for what in REFUSED for dials in (WRONG_DIALS, RIGHT_DIALS)]
BOTH_WAYS.remove(("no certificate", RIGHT_DIALS))  # a listener without a certificate does not speak TLS at all


@pytest.mark.parametrize(("what", "dials"), BOTH_WAYS)
def test_who_is_refused_and_what_each_side_says(
    authority: Authority, tmp_path: Path, what: str, dials: str, caplog: pytest.LogCaptureFixture
) -> None:
    make, ours, theirs = REFUSED[what]

    @scenario
    async def scene(stage: Stage) -> None:
        m1 = await stage.node("m1", credentials=make(authority, tmp_path))
        m2 = await stage.node("m2", credentials=authority.credentials(tmp_path, "m2"))
        dialler, dialled = (m1, m2) if dials == WRONG_DIALS else (m2, m1)
        dialler.transport.set_peers({dialled.node_id: (dialled.address,)})

        def says(node: str, text: str) -> bool:
            lines = [line for line in caplog.messages if f"node={node} " in line]
            heard = [refusal[-1] for refusal in (m1 if node == "m1" else m2).told("refused")]
            return any(re.search(text, line) for line in lines + heard)

        await until(lambda: says("m1", ours) and says("m2", theirs), f"{ours!r} and {theirs!r}")
        assert not m1.current
        assert not m2.current
        assert not m2.told("up")

    with caplog.at_level(logging.INFO, logger="warren_raft.transport"):
        scene()


def test_a_link_that_is_up_stays_when_its_certificate_expires(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All certificates of a cluster expire together. Its links stay, but no new link is made."""
    identity_of = Credentials.identity_of

    def later(self: Credentials, session: Session, now: float) -> Identity:
        return identity_of(self, session, now + 400 * DAY.total_seconds())

    @scenario
    async def scene(stage: Stage) -> None:
        a, b = await tls_pair(stage, authority, tmp_path)
        monkeypatch.setattr(Credentials, "identity_of", later)
        c = await stage.node("m3", PATIENT, credentials=authority.credentials(tmp_path, "m3"))
        c.transport.set_peers({"m2": (b.address,)})
        await until(lambda: any("has expired" in why for _, why in c.told("dial refused")))
        await until(lambda: c.told("certificate refused"))
        who, code, text = c.told("certificate refused")[0]
        assert (who, code, text.startswith("the certificate has expired: it is valid from")) == ("m2", "expired", True)
        assert not c.told("up")
        await is_unharmed(a, b)

    scene()


def test_a_bad_certificate_of_another_manager_says_nothing_about_the_dialled_one(
    authority: Authority, tmp_path: Path
) -> None:
    """(Pins a fault: a stranger with an expired certificate had the address of m2, and an alarm said that the
    certificate of m2 had expired.)"""

    @scenario
    async def scene(stage: Stage) -> None:
        expired = presented("m9", lambda a, d: a.issue(d, "m9", begin=NOW - 9 * DAY, end=NOW - DAY))
        stranger = await stage.node("m9", credentials=expired(authority, tmp_path))
        m1 = await stage.node("m1", credentials=authority.credentials(tmp_path, "m1"))
        m1.transport.set_peers({"m2": (stranger.address,)})
        await until(lambda: m1.told("dial refused"))
        who, why = m1.told("dial refused")[0]
        assert (who, why.startswith("m9 answers there (we refuse it: the certificate has expired")) == ("m2", True)
        assert not m1.told("certificate refused")

    scene()


# The limits of peers without a certificate, and of peers that have one and are not members.


def client_hello() -> bytes:
    """A real ClientHello, which any TLS client sends first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    said = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), said).do_handshake()
    return said.read()


async def closed(reader: asyncio.StreamReader) -> None:
    """Read and drop all bytes until the peer has closed the connection."""
    with contextlib.suppress(ConnectionError):
        while await reader.read(65_536):
            pass


HOSTILE_BYTES: dict[str, bytes] = {
    "a browser": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "noise": bytes(range(256)) * 20,
    "a TLS record that claims the largest length": b"\x16\x03\x01\xff\xff" + bytes(100_000),
    "half a ClientHello, and noise": client_hello()[:100] + bytes(60_000),
    "a ClientHello that never ends": b"\x16\x03\x01\x40\x00\x01\x01\xff\xfc\x03\x03" + bytes(100_000),
    "a ClientHello, and a frame in the clear": client_hello() + encode(hello("m1")),
    "many alerts": b"\x15\x03\x03\x00\x02\x01\x00" * 1000,
}


def test_strangers_cost_their_own_connection_and_never_reach_the_raft_thread(
    authority: Authority, tmp_path: Path
) -> None:
    @scenario
    async def scene(stage: Stage) -> None:
        a, b = await tls_pair(stage, authority, tmp_path)
        before = set(b.transport._connections)
        for data in HOSTILE_BYTES.values():
            reader, writer = await asyncio.open_connection(*b.transport.listening)
            writer.write(data)
            await closed(reader)
            writer.close()
        assert set(b.transport._connections) == before
        await is_unharmed(a, b)

    scene()


@pytest.mark.parametrize("said", [b"", client_hello()], ids=["silent", "after a ClientHello"])
def test_a_handshake_has_a_deadline_from_the_accept_on(authority: Authority, tmp_path: Path, said: bytes) -> None:
    """A connection without any bytes, and one that sends a few now and then, end after the same time."""

    @scenario
    async def scene(stage: Stage) -> None:
        _, b = await tls_pair(stage, authority, tmp_path, FAST)
        reader, writer = await asyncio.open_connection(*b.transport.listening)
        began = time.monotonic()
        writer.write(said)
        await closed(reader)
        assert time.monotonic() - began >= FAST.handshake_seconds * 0.9
        writer.close()

    scene()


def test_a_flood_of_handshakes_is_bounded_and_keeps_no_peer_out(authority: Authority, tmp_path: Path) -> None:
    @scenario
    async def scene(stage: Stage) -> None:
        a = await stage.node("m1", PATIENT, credentials=authority.credentials(tmp_path, "m1"))
        b = await stage.node("m2", PATIENT, credentials=authority.credentials(tmp_path, "m2"))
        silent = [await asyncio.open_connection(*b.transport.listening) for _ in range(MAX_UNFINISHED + 20)]
        a.transport.set_peers({"m2": (b.address,)})
        await linked(a, b)
        for reader, _ in silent[:20]:
            await closed(reader)  # the oldest made room
        assert len(b.transport._handshakes._unfinished) <= MAX_UNFINISHED
        for _, writer in silent:
            writer.close()

    scene()


def test_a_connection_that_speaks_in_the_moment_in_which_it_makes_room_for_another_harms_nobody(
    authority: Authority, tmp_path: Path
) -> None:
    """(Pins a fault: a flood of ClientHellos stopped the manager, because it handled the event of a connection that had
    just been dropped.)"""

    @scenario
    async def scene(stage: Stage) -> None:
        a, b = await tls_pair(stage, authority, tmp_path)
        handshakes, held, go_on = b.transport._handshakes, threading.Event(), threading.Event()
        silent = [await asyncio.open_connection(*b.transport.listening) for _ in range(MAX_UNFINISHED)]
        await until(lambda: len(handshakes._unfinished) == MAX_UNFINISHED)
        handshakes._call(lambda: (held.set(), go_on.wait(PATIENCE_SECONDS)))
        await until(held.is_set)
        one_more = await asyncio.open_connection(*b.transport.listening)
        silent[0][1].write(client_hello())
        await asyncio.sleep(0)
        go_on.set()
        await closed(silent[0][0])
        for _, writer in [*silent, one_more]:
            writer.close()
        await is_unharmed(a, b)
        await until(lambda: not handshakes._unfinished)
        assert handshakes._thread.is_alive()

    scene()


def test_a_fault_of_ours_in_a_handshake_costs_that_connection_and_is_logged(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(session: Session) -> bool:
        raise RuntimeError("a bug")

    @scenario
    async def scene(stage: Stage) -> None:
        a, b = await tls_pair(stage, authority, tmp_path)
        with monkeypatch.context() as patched:
            patched.setattr(Session, "shake", broken)
            reader, writer = await asyncio.open_connection(*b.transport.listening)
            writer.write(client_hello_bytes)
            await closed(reader)
            writer.close()
        await is_unharmed(a, b)
        a.transport.close_link(a.current["m2"], "to be made again")
        await until(lambda: len(a.told("up")) == 2)

    client_hello_bytes = client_hello()
    scene()
    (record,) = [record for record in caplog.records if "handshake broke" in record.getMessage()]
    assert record.exc_info is not None
    assert "node=m2" in record.getMessage()


def test_an_address_that_begins_too_many_handshakes_is_turned_away_for_a_while(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(handshakes_module, "SOURCE_PER_SECOND", 1.0)
    monkeypatch.setattr(handshakes_module, "SOURCE_BURST", 5.0)

    @scenario
    async def scene(stage: Stage) -> None:
        a, b = await tls_pair(stage, authority, tmp_path)
        said = client_hello()
        for _ in range(30):
            reader, writer = await asyncio.open_connection(*b.transport.listening)
            writer.write(said)
            with contextlib.suppress(OSError):  # it is refused already
                writer.write_eof()
            await closed(reader)
            writer.close()
        await until(lambda: any("refused: this address begins more than" in line for line in caplog.messages))
        await is_unharmed(a, b)
        a.transport.close_link(a.current["m2"], "to be made again")
        await until(lambda: len(a.told("up")) == 2)

    with caplog.at_level(logging.INFO, logger="warren_raft.transport"):
        scene()
    assert len([line for line in caplog.messages if "link not made" in line]) < 5


def test_one_certificate_has_one_connection_under_way_and_a_budget(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each link that comes and goes costs the raft thread time, also with a right certificate."""
    monkeypatch.setattr(handshakes_module, "IDENTITY_PER_SECOND", 0.001)
    monkeypatch.setattr(handshakes_module, "IDENTITY_BURST", 5.0)

    @scenario
    async def scene(stage: Stage) -> None:
        a, b = await tls_pair(stage, authority, tmp_path)
        context = authority.credentials(tmp_path, "m9").client
        strangers = [await dial_with(stage, b, context) for _ in range(8)]
        for stranger in strangers[:4] + strangers[5:]:
            await stranger.hear_the_end()
        under_way = [c for c in b.transport._connections if c.in_handshake]
        assert [c.peer_id for c in under_way] == ["m9"]
        await strangers[4].shake_hands("m9")
        await until(lambda: "m9" in b.current)
        await is_unharmed(a, b)

    scene()


def test_only_a_few_managers_that_are_no_members_have_links(authority: Authority, tmp_path: Path) -> None:
    @scenario
    async def scene(stage: Stage) -> None:
        a, b = await tls_pair(stage, authority, tmp_path)
        b.transport.set_peers({"m1": (a.address,)})
        guests = [f"g{number}" for number in range(MAX_GUESTS + 1)]
        strangers = [await dial_with(stage, b, authority.credentials(tmp_path, id_).client) for id_ in guests]
        for id_, stranger in list(zip(guests, strangers, strict=True))[:-1]:
            await stranger.shake_hands(id_)
        await until(lambda: len(b.current) == 1 + MAX_GUESTS)
        strangers[-1].say(hello(guests[-1]))
        answer = await strangers[-1].hear()
        assert (answer["type"], answer["code"]) == ("refused", "guests")
        await is_unharmed(a, b)
        again = await dial_with(stage, b, authority.credentials(tmp_path, guests[0]).client)
        await again.shake_hands(guests[0])  # a guest that has a link may make it again
        await until(lambda: len(b.told("up")) == 1 + MAX_GUESTS + 1)

    scene()


def test_without_descriptors_the_door_stays(authority: Authority, tmp_path: Path) -> None:
    @scenario
    async def scene(stage: Stage) -> None:
        a, b = await tls_pair(stage, authority, tmp_path)
        c = await stage.node("m3", PATIENT, credentials=authority.credentials(tmp_path, "m3"))
        with socket.socket() as visitor, no_descriptors():
            visitor.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                visitor.connect(b.transport.listening)
            await until(lambda: b.transport._log.has_said("accept"), "a failed accept")
            await is_unharmed(a, b)
        c.transport.set_peers({"m2": (b.address,)})
        await linked(c, b)

    scene()


def test_who_answers_in_the_place_of_another_and_refuses_is_known(authority: Authority, tmp_path: Path) -> None:
    """An operator adds a manager at an address where a manager of another cluster runs."""

    @scenario
    async def scene(stage: Stage) -> None:
        a, b = await tls_pair(stage, authority, tmp_path)
        b.judge = lambda hello: Refusal("other-cluster", f"{hello['node_id']} belongs to another cluster")
        a.transport.set_peers({"m9": (b.address,)})
        await until(lambda: ("m9", "m2 answers there") in a.told("dial refused"))
        assert ("m2", "other-cluster", "m1 belongs to another cluster") in a.told("refused")

    scene()


def test_a_handshake_that_cannot_begin_costs_its_connection_only(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The kernel limits the sockets that the processes of a user watch (max_user_watches). (Pins a fault: the OSError
    ended the thread of the handshakes, and no one was told.)"""

    def refused(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    @scenario
    async def scene(stage: Stage) -> None:
        a, b = await tls_pair(stage, authority, tmp_path)
        for node in (a, b):
            with monkeypatch.context() as patched:
                patched.setattr(node.transport._handshakes._selector, "register", refused)
                a.transport.close_link(a.current["m2"], "to be made again")
                said = f"node={node.node_id} peer="  # one of them dials the link, and the other accepts it
                await until(
                    lambda said=said: any(
                        "the handshake cannot begin" in line and said in line for line in caplog.messages
                    )
                )
            await until(lambda: "m2" in a.current)

    scene()


def test_a_thread_of_handshakes_that_ends_by_a_system_error_is_the_end_of_the_manager(
    authority: Authority, tmp_path: Path
) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    @scenario
    async def scene(stage: Stage) -> None:
        _, b = await tls_pair(stage, authority, tmp_path)
        failures: list[BaseException] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: failures.append(context["exception"]))
        b.transport._handshakes._call(broken)
        await until(lambda: bool(failures))
        assert isinstance(failures[0], InvariantViolation)  # not an OSError, which would only cost a link (see Driver)

    scene()


# Another certificate.


def test_with_new_credentials_links_are_made_again_one_at_a_time(authority: Authority, tmp_path: Path) -> None:
    @scenario
    async def scene(stage: Stage) -> None:
        a = await stage.node("m1", credentials=authority.credentials(tmp_path, "m1"))
        others = [await stage.node(id_, credentials=authority.credentials(tmp_path, id_)) for id_ in ("m2", "m3")]
        for other in others:
            other.transport.set_peers({"m1": (a.address,)})
        await until(lambda: len(a.current) == 2)
        fewest = []
        a.on_down = lambda: fewest.append(len(a.current))
        renewed = authority.credentials(tmp_path / "new", "m1")
        a.transport.set_credentials(renewed)
        await until(lambda: len(a.told("up")) == 4)
        assert fewest == [1, 1]
        for other in others:
            await until(lambda other=other: other.identities["m1"] == renewed.identity)

    scene()


def test_a_link_that_does_not_come_again_does_not_hold_up_the_others(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport_module, "RENEWAL_SECONDS", 0.05)

    @scenario
    async def scene(stage: Stage) -> None:
        a = await stage.node("m1", PATIENT, credentials=authority.credentials(tmp_path, "m1"))
        gone = await dial_with(stage, a, authority.credentials(tmp_path, "m2").client)
        await gone.shake_hands("m2")
        await until(lambda: a.current)
        b = await stage.node("m3", credentials=authority.credentials(tmp_path, "m3"))
        b.transport.set_peers({"m1": (a.address,)})
        await linked(a, b)
        a.transport.set_credentials(authority.credentials(tmp_path / "new", "m1"))
        await until(lambda: [peer for peer, _ in a.told("up")] == ["m2", "m3", "m3"])

    scene()


# After the handshake.


def raw_link(node: Node, credentials: Credentials, directory: Path) -> tuple[socket.socket, Crafter]:
    """A link of m2 with a node, made by hand: its socket, and the maker of its next records."""
    context = with_key_log(credentials.client, directory / "keys")
    raw = socket.create_connection(node.transport.listening)
    raw.settimeout(PATIENCE_SECONDS)
    session = Session(context, is_server=False)
    while not session.shake():
        raw.sendall(session.take())
        session.feed(raw.recv(65_536))
    raw.sendall(session.take())
    crafter = Crafter(directory / "keys", session._tls.cipher()[0], "CLIENT")
    raw.sendall(crafter.record(DATA, encode(hello("m2"))))
    raw.recv(65_536)
    raw.sendall(crafter.record(DATA, encode({"type": "welcome"})))
    return raw, crafter


@pytest.mark.parametrize("said", [KEY_UPDATE_HEAD, KEY_UPDATE, KEY_UPDATE_ASKED])
def test_a_message_of_tls_after_the_handshake_costs_its_link_and_nothing_else(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture, said: bytes
) -> None:
    @scenario
    async def scene(stage: Stage) -> None:
        node = await stage.node("m1", PATIENT, credentials=mine)
        raw, crafter = await asyncio.to_thread(raw_link, node, theirs, tmp_path)
        with raw:
            await until(lambda: node.current)
            raw.sendall(crafter.record(HANDSHAKE, said))
            await until(lambda: node.told("down"))
            assert node.told("down") == [("m2", LinkEnd.CLOSED)]
            assert not node.transport._watcher.done()  # type: ignore[union-attr]

    mine, theirs = (authority.credentials(tmp_path, name) for name in ("m1", "m2"))
    with caplog.at_level(logging.INFO, logger="warren_raft.transport"):
        scene()
    assert any("it sent TLS messages without data after the handshake" in line for line in caplog.messages)


def test_a_link_that_cannot_encrypt_ends_and_the_sender_goes_on(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(session: Session, data: object) -> bytes:
        raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "The operation did not complete (read)")

    @scenario
    async def scene(stage: Stage) -> None:
        a, b = await tls_pair(stage, authority, tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(Session, "write", broken)
            a.send("m2", {"type": "append"})
            a.transport.flush()
            await until(lambda: a.told("down"))
        assert a.told("down") == [("m2", LinkEnd.CLOSED)]
        await linked(a, b)  # it is dialled again

    scene()


def test_encrypted_bytes_that_wait_count_as_unsent(authority: Authority, tmp_path: Path) -> None:
    @scenario
    async def scene(stage: Stage) -> None:
        a, _ = await tls_pair(stage, authority, tmp_path)
        connection = a.transport._current["m2"]
        before = connection.buffered_bytes()
        assert connection._session is not None
        connection._session._tls.write(b"x" * 1000)
        assert connection.buffered_bytes() >= before + 1000
        connection._session.take()

    scene()


def test_a_turn_that_brings_no_message_and_takes_long_makes_its_link_wait(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @scenario
    async def scene(stage: Stage) -> None:
        _, b = await tls_pair(stage, authority, tmp_path)
        rests: list[float] = []
        later = Connection._read_on_later
        monkeypatch.setattr(
            Connection, "_read_on_later", lambda self, seconds: (rests.append(seconds), later(self, seconds))[1]
        )
        clock = iter(range(1_000_000))
        monkeypatch.setattr(connection_module.time, "thread_time", lambda: float(next(clock)))
        b.transport._current["m1"]._read()  # nothing has come
        assert rests == [REST_FOR_A_TURN * 1.0]

    scene()


def test_a_first_turn_that_takes_long_makes_its_link_wait_too(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(Pins a fault: the bytes that came with the end of the handshake were a turn without a rest.)"""
    reads: list[bool] = []
    opened = Connection.open
    clock = itertools.count(step=2 * TURN_SECONDS)

    def open_slowly(connection: Connection, loop: asyncio.AbstractEventLoop, connected: socket.socket) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(connection_module.time, "thread_time", lambda: next(clock))
            opened(connection, loop, connected)
        assert connection._socket is not None
        reads.append(connection._socket._reads)

    @scenario
    async def scene(stage: Stage) -> None:
        monkeypatch.setattr(Connection, "open", open_slowly)
        await tls_pair(stage, authority, tmp_path)  # they go on after the rest
        assert reads
        assert not any(reads)

    scene()
