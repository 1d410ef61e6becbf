"""Promises: after the handshake each record gives data. A ticket, a KeyUpdate, a part of one, or an empty record is an
error of its connection at once. Records of data may arrive in any pieces."""

from __future__ import annotations

import random
import ssl
from pathlib import Path

import pytest

from tests.certificates import Authority
from tests.tls_records import (
    DATA,
    HANDSHAKE,
    KEY_UPDATE,
    KEY_UPDATE_ASKED,
    KEY_UPDATE_HEAD,
    TICKET_HEAD,
    Crafter,
    with_key_log,
)
from warren_raft.certificates.tls_session import NotData, Session, is_alert, reason_of


class Pair:
    """Our session after its handshake, and the peer's records."""

    def __init__(self, directory: Path, *, is_server: bool, early: bytes = b"") -> None:
        authority = Authority()
        ours, theirs = authority.credentials(directory, "m1"), authority.credentials(directory, "m2")
        context = with_key_log(theirs.client if is_server else theirs.server, directory / "keys")
        self.session = ours.session(is_server=is_server)
        self.peer = Session(context, is_server=not is_server)
        first, second = (self.peer, self.session) if is_server else (self.session, self.peer)
        first.shake()
        second.feed(first.take())
        second.shake()
        first.feed(second.take())
        assert first.shake()
        if early:
            second.feed(first.take() + first.write(early))
        else:
            second.feed(first.take())
        assert second.shake()
        assert second.take() == b"", "no tickets"
        self.crafter = Crafter(directory / "keys", self.peer._tls.cipher()[0], "CLIENT" if is_server else "SERVER")

    def read(self, size: int = 100_000) -> bytes:
        buffer = memoryview(bytearray(size))
        return bytes(buffer[: self.session.read(buffer)])


@pytest.mark.parametrize("is_server", [True, False])
@pytest.mark.parametrize("before", [b"", b"data"])
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (HANDSHAKE, KEY_UPDATE),
        (HANDSHAKE, KEY_UPDATE_ASKED),
        (HANDSHAKE, KEY_UPDATE_HEAD),
        (HANDSHAKE, TICKET_HEAD),
        (DATA, b""),
    ],
)
def test_a_record_without_data_is_an_error(
    tmp_path: Path, kind: int, said: bytes, before: bytes, is_server: bool
) -> None:
    pair = Pair(tmp_path, is_server=is_server)
    if before:
        pair.session.feed(pair.crafter.record(DATA, before))
    pair.session.feed(pair.crafter.record(kind, said))
    with pytest.raises(ssl.SSLError) as raised:
        pair.read()
    assert not is_alert(raised.value)
    assert reason_of(raised.value)
    if said != TICKET_HEAD or not is_server:  # OpenSSL itself takes no ticket from a client
        assert isinstance(raised.value, NotData)
        assert reason_of(raised.value) == "it sent TLS messages without data after the handshake"


@pytest.mark.parametrize("is_server", [True, False])
def test_records_of_data_may_come_in_any_pieces(tmp_path: Path, is_server: bool) -> None:
    pair = Pair(tmp_path, is_server=is_server)
    draw = random.Random(1)
    sent = [draw.randbytes(draw.choice([1, 5, 300, 16_384, 40_000])) for _ in range(60)]
    wire = b"".join(pair.peer.write(data) for data in sent)
    got, at = bytearray(), 0
    while at < len(wire):
        piece = wire[at : at + draw.choice([1, 2, 3, 4, 5, 6, 7, 1000, 16_406, 50_000])]
        at += len(piece)
        pair.session.feed(memoryview(piece))
        while part := pair.read(draw.choice([1, 100, 16_384, 200_000])):
            got += part
    assert bytes(got) == b"".join(sent)


def test_data_that_comes_with_the_end_of_the_handshake_is_read(tmp_path: Path) -> None:
    pair = Pair(tmp_path, is_server=True, early=b"early")
    assert pair.read() == b"early"
    pair.session.feed(pair.peer.write(b"late"))
    assert pair.read() == b"late"


class Given:
    """The bytes on their way to OpenSSL, and how many there were."""

    def __init__(self, real: ssl.MemoryBIO) -> None:
        self._real = real
        self.size_bytes = 0

    def write(self, data: bytes) -> int:
        self.size_bytes += len(data)
        return self._real.write(data)

    @property
    def pending(self) -> int:
        return self._real.pending


@pytest.mark.parametrize("before", [b"", b"data"])
def test_a_flood_of_records_without_data_is_an_error_after_the_first_of_them(tmp_path: Path, before: bytes) -> None:
    """(Pins a fault: 256 KiB of KeyUpdates held the raft thread for 75 ms.)"""
    pair = Pair(tmp_path, is_server=True)
    given = Given(pair.session._incoming)
    pair.session._incoming = given  # type: ignore[assignment]
    first = pair.crafter.record(DATA, before) if before else b""
    flood = pair.crafter.updates(2000)
    pair.session.feed(first + flood)
    with pytest.raises(NotData):
        pair.read()
    assert 0 < given.size_bytes < 17_000 < len(flood)
    pair.session.feed(b"and more")
    with pytest.raises(NotData):
        pair.read()
    assert given.size_bytes < 17_000
