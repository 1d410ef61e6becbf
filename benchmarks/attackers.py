"""Attackers of a running cluster: a connection that sends any given bytes, and certificates for it.

Used by attacks.py and hostile.py. Lives here: sockets, TLS and handshake of an attacker, and a manager that also tells
how long its raft thread was busy. Not here: the attacker's messages, and the judgement. Invariant: an attacker has
nothing of the cluster except the certificate that it is given.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import ssl
import threading
import time
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import common
import tls
from common import quantile, sample

from warren_raft.certificates import files as tls_files
from warren_raft.certificates.ca import Authority
from warren_raft.certificates.tls_session import Session
from warren_raft.raft.links.transport import PROTOCOL_MAGIC, PROTOCOL_VERSIONS
from warren_raft.raft.links.wire import (
    MARK,
    BadFrame,
    FrameReader,
    encode,
    encode_body,
    frame_head,
)
from warren_raft.store.levels import NEWEST

Message = dict[str, Any]

PATIENCE_SECONDS = 10.0
"""The longest wait for an answer that a manager gives at once, on a busy machine."""
TURNED_AWAY_SECONDS = 0.25
"""The pause between two connections: one certificate may connect four times a second."""
TRIES = 20
RECEIVE_BYTES = 256 * 1024
PROBE_SECONDS = 0.005
NORMAL_LANE = 1
ENTRY_BYTES = 200
"""The memory of an entry's objects in the log, without its bytes."""
FIGURE_BYTES = 112
HEARD_MAX = 1000
"""So many of a manager's newest messages are kept until the attacker takes them."""
HASH_BOMB = (Path(__file__).parents[1] / "tests/fuzz/corpus/cbor/hash-bomb").read_bytes()[1:]
"""A map with nested lists as its keys; each list contains the next one twice, 43 times. Hashing it takes months."""


class Gone(Exception):
    """The manager has ended the connection. The text is the manager's last message about it."""


# Connections ---------------------------------------------------------------------------------------------------------


def no_certificate() -> ssl.SSLContext:
    """A client that speaks TLS 1.3, accepts any server, and has no certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def client_hello() -> bytes:
    """The first bytes of a TLS client."""
    session = Session(no_certificate(), is_server=False)
    session.shake()
    return session.take()


def frame(body: bytes) -> bytes:
    """One frame with any body."""
    return frame_head(NORMAL_LANE, body) + body


def empty_lists(size_bytes: int) -> bytes:
    """A list of empty lists in CBOR: 64 bytes of memory for each byte."""
    return b"\x9a" + (size_bytes - 5).to_bytes(4, "big") + b"\x80" * (size_bytes - 5)


class Peer:
    """A connection to a manager, for `with`. Operations that fail raise Gone."""

    def __init__(self, port: int, context: ssl.SSLContext | None = None) -> None:
        """`context`: the client's TLS; None: plaintext."""
        self.came = bytearray()
        """All decrypted bytes from the manager."""
        self._heard: deque[Message] = deque(maxlen=HEARD_MAX)
        self._reader = FrameReader()
        self._session = None if context is None else Session(context, is_server=False)
        self._buffer = memoryview(bytearray(RECEIVE_BYTES))
        self._socket = socket.socket()
        try:
            self._socket.settimeout(PATIENCE_SECONDS)
            self._socket.connect(("127.0.0.1", port))
            self._socket.setblocking(False)
            if self._session is not None:
                self._shake(self._session)
        except (OSError, Gone) as error:
            self.close()
            raise Gone(f"no TLS: {error}") from None

    def _shake(self, session: Session) -> None:
        while not session.shake():
            self._send(session.take())
            self._wait(reading=True, seconds=PATIENCE_SECONDS)
            data = self._socket.recv(RECEIVE_BYTES)
            if not data:
                raise Gone("closed")
            session.feed(data)
        self._send(session.take())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def write(self, data: bytes) -> None:
        """Write all bytes, and read meanwhile: a manager that cannot write stops reading."""
        self.take()
        self._send(data if self._session is None else self._session.write(data))

    def say(self, *messages: Message) -> None:
        self.write(b"".join(map(encode, messages)))

    def _send(self, data: bytes) -> None:
        rest = memoryview(data)
        try:
            while rest:
                with contextlib.suppress(BlockingIOError):
                    rest = rest[self._socket.send(rest) :]
                    continue
                self._wait(reading=False, seconds=PATIENCE_SECONDS)
                self.take()
        except OSError as error:
            raise Gone(f"dropped: {error}") from None

    def _wait(self, *, reading: bool, seconds: float) -> None:
        own, nothing = [self._socket], list[socket.socket]()
        if not any(select.select(own if reading else nothing, nothing if reading else own, nothing, seconds)):
            raise Gone("silent" if reading else "it does not read")

    def take(self) -> None:
        """Read the bytes that have come, without waiting. Raises Gone at the end of the connection."""
        while True:
            try:
                data = self._socket.recv(RECEIVE_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                raise self._end(f"dropped: {error}") from None
            if not data:
                raise self._end("dropped")
            plain = data if self._session is None else self._decrypted(self._session, data)
            self.came += plain
            self._reader.feed(plain)
            try:
                while (message := self._reader.read()) is not None:
                    self._heard.append(message)
            except BadFrame:
                raise self._end("refused: an alert of TLS") from None

    def _end(self, text: str) -> Gone:
        """The error for the end of the connection. If the manager sent a last message, its text counts."""
        codes = [message["code"] for message in self._heard if message["type"] == "refused"]
        return Gone(f"refused: {codes[0]}" if codes else text)

    def _decrypted(self, session: Session, data: bytes) -> bytes:
        session.feed(data)
        parts = []
        try:
            while count := session.read(self._buffer):
                parts.append(bytes(self._buffer[:count]))
        except ssl.SSLError as error:
            raise self._end(f"refused: {error.reason}") from None
        return b"".join(parts)

    def hear(self, seconds: float = PATIENCE_SECONDS) -> Message:
        """The next message that is not a ping. Raises Gone, also if no message comes."""
        deadline = time.monotonic() + seconds
        while True:
            while self._heard:
                message = self._heard.popleft()
                if message["type"] != "ping":
                    return message
            self._wait(reading=True, seconds=max(0.0, deadline - time.monotonic()))
            self.take()

    def shake_hands(self, hello: Message) -> None:
        """Make a link. Raises Gone, with the code of the refusal if there is one."""
        self.say(hello_of(hello))
        for expected in ("hello", "welcome"):
            message = self.hear()
            if message["type"] == "refused":
                raise Gone(f"refused: {message['code']}")
            if message["type"] != expected:
                raise Gone(f"dropped: {message['type']}")
        self.say({"type": "welcome"})

    def settle(self) -> None:
        """Return when the manager has taken in all messages; raise Gone if it has ended the link because of them."""
        body = encode_body({"type": "no such type"})
        self.write(frame_head(NORMAL_LANE | MARK, body) + body)
        while (message := self.hear())["type"] != "got":
            if message["type"] == "bye":
                raise Gone("dropped")


def linked(port: int, context: ssl.SSLContext, hello: Message) -> Peer:
    """Make a link; raises Gone if that fails. Tries again if the manager refuses because of too many connections."""
    for attempt in range(TRIES):
        try:
            peer = Peer(port, context)
            peer.shake_hands(hello)
        except Gone as gone:
            if str(gone).startswith("refused") or attempt == TRIES - 1:
                raise
            time.sleep(TURNED_AWAY_SECONDS)
        else:
            return peer
    raise AssertionError


def hello_of(claims: Mapping[str, Any]) -> Message:
    """A manager's hello with these claims."""
    usual = {"type": "hello", "magic": PROTOCOL_MAGIC, "protocol": list(PROTOCOL_VERSIONS), "level_max": NEWEST}
    blank = {"address": "nowhere", "incarnation": "f" * 32, "blank": True, "cluster_id": None, "membership_index": 0}
    return {**usual, **blank, "founding": b"", "origin": "", **claims}


# Certificates --------------------------------------------------------------------------------------------------------


def issue(authority: Authority, directory: Path, *ids: str) -> dict[str, ssl.SSLContext]:
    """Issue a certificate of the cluster's CA for each of these ids. Returns id -> the TLS of its client."""
    contexts = {}
    for number, each in enumerate(
        authority.issue({id_: f"127.0.0.1:{1 + zlib.crc32(id_.encode()) % 65_000}" for id_ in ids})
    ):
        place = directory / f"stranger-{ids[number]}"
        place.mkdir(mode=0o700)
        tls_files.install(place, each.files, check=lambda _: None)
        contexts[ids[number]] = client_context(place / "tls")
    return contexts


def client_context(directory: Path) -> ssl.SSLContext:
    """The TLS of a client with the key and certificate in a directory."""
    context = no_certificate()
    context.load_cert_chain(directory / "cert.pem", directory / "key.pem")
    return context


# Managers ------------------------------------------------------------------------------------------------------------


class Manager(tls.Manager):
    """A manager that logs to a file. Beside the callers, a thread asks the raft thread for a sign of life 200 times a
    second."""

    def __init__(self, settings: dict[str, Any]) -> None:
        log = logging.FileHandler(settings["data_dir"] + ".log")
        log.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
        logger = logging.getLogger("warren_raft")
        logger.addHandler(log)
        logger.setLevel(logging.INFO)
        super().__init__(settings)
        self.stalls: list[tuple[float, float]] = []

    def load_for_ever(self, callers: int) -> None:
        for number in range(callers):
            self.start_caller([sample(n) for n in range(number, 2_000, callers)])
        self.probe()

    def probe(self) -> None:
        threading.Thread(target=self._probe, daemon=True).start()

    def _probe(self) -> None:
        loop = self.store._parts.driver._loop
        answered = threading.Event()
        while not self.stop.wait(PROBE_SECONDS):
            answered.clear()
            begin = time.monotonic()
            try:
                loop.call_soon_threadsafe(answered.set)
            except RuntimeError:
                return  # the loop is closed
            answered.wait()
            self.stalls.append((time.monotonic(), time.monotonic() - begin))

    def pace(self, begin: float, end: float) -> dict[str, float]:
        took = [seconds for _, seconds in self.between(begin, end)]
        return {
            "writes/s": round(len(took) / (end - begin)),
            "p99 ms": round(quantile(took, 0.99) * 1e3, 1) if took else float("inf"),
            "stall ms": self.longest_stall(begin, end),
        }

    def longest_stall(self, begin: float, end: float) -> float:
        stalls = [seconds for moment, seconds in [*self.stalls] if begin < moment < end]
        return round((max(stalls) if stalls else end - begin) * 1e3, 1)

    def own_bytes(self) -> int:
        """The memory of the callers' writes, which does not depend on the attacker: their entries in the log, and the
        figures here."""
        log_bytes = sum(len(entry[0]) + ENTRY_BYTES for entry in tuple(self.store._parts.driver.engine._log.entries))
        return log_bytes + FIGURE_BYTES * (len(self.times) + len(self.stalls))

    def member_ids(self) -> list[str]:
        return [member.id for member in self.store.members()]

    def remove(self, id_: str) -> None:
        self.store.remove_member(id_, timeout=common.WAIT_SECONDS)

    def facts(self) -> dict[str, Any]:
        """The facts that an attacker may know: this manager's hello, the end of its log, its snapshots."""
        engine = self.store._parts.driver.engine
        hello = {name: value.hex() if isinstance(value, bytes) else value for name, value in engine.hello().items()}
        log, held = engine._log, self.store._parts.opened.keeper.held
        return {
            "hello": hello,
            "term": engine.term,
            "last_index": log.last_index,
            "last_term": log.last_term,
            "commit_index": log.commit_index,
            "snapshots": [snapshot.sha256 for snapshot in held],
            "incarnations": {member.id: member.incarnation for member in engine.members.values()},
        }


@contextlib.contextmanager
def without(cluster: tls.Cluster, id_: str) -> Iterator[dict[str, Any]]:
    """Stop a member during the block, so that an attacker can play it. Gives its hello. Afterwards it runs again."""
    hello = cluster.managers[id_].call("facts")["hello"]
    cluster.managers.pop(id_).end()
    yield {**hello, "founding": bytes.fromhex(hello["founding"])}
    assert cluster.launch(id_).read() == "started"
    cluster.managers[id_].call("ready")


def was_member(cluster: tls.Cluster, leader_id: str, id_: str, context: ssl.SSLContext) -> Message:
    """The leader adds an attacker because of its certificate, and an operator removes it again. Returns its hello."""
    leader = cluster.managers[leader_id]
    port = int(cluster.addresses[leader_id].rpartition(":")[2])
    hello = {"node_id": id_, "address": "127.0.0.1:1", "incarnation": "e" * 32}
    with linked(port, context, hello):
        common.wait_for(lambda: id_ in leader.call("member_ids"), f"{id_} to be added")
    leader.call("remove", id_)
    return hello
