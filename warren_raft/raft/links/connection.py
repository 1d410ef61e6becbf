"""One TCP connection between two managers: its handshake, its messages in and out, its pings.

Not here: listening, dialling, and which of several connections is the link (transport.py); which frame goes next
(link_queue.py).
Invariant: once `end` is set, nothing of this connection is delivered any more. Its end is reported exactly once.

The handshake: the dialler sends `hello`. The acceptor judges it and answers `refused`, or `hello` and `welcome`. The
dialler judges that hello and answers `refused`, or `welcome`. The dialler has a link when it has a welcome and sends
its own. The acceptor has a link when that welcome arrives. So no side has a link that the other side refused.
"""

from __future__ import annotations

import asyncio
import enum
import errno
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from warren_raft.certificates.identity import Identity
from warren_raft.certificates.tls_session import Session, is_alert, reason_of
from warren_raft.errors import InvariantViolation
from warren_raft.raft.lanes import Lane
from warren_raft.raft.links.addresses import format_address
from warren_raft.raft.links.link_queue import LinkQueue
from warren_raft.raft.links.link_socket import LinkSocket
from warren_raft.raft.links.wire import (
    HANDSHAKE_ITEMS,
    HANDSHAKE_MESSAGE_BYTES,
    KIB,
    MAX_BODY_BYTES,
    MAX_MESSAGE_BYTES,
    MIB,
    BadFrame,
    FrameReader,
    Message,
    check_lane,
    encode,
    encode_body,
)
from warren_raft.raft.messages import LANES, leaders_term
from warren_raft.raft.refusal import Refusal
from warren_raft.support.strict_cbor import MAX_ITEMS

MAX_BUFFERED_BYTES = 64 * MIB
"""A link with more unsent bytes than this is dropped: four of the largest messages. A suspended peer reads nothing, and
must not take this process's memory before its silence is noticed."""

ARRIVING_SECONDS = 0.05
"""While parts of a large message arrive, the engine is told so at this interval: several times within any election
timeout."""

MESSAGES_A_TURN = 256
"""The most messages of one link that are taken in before other links have their turn. 256 KiB may hold 13,000 small
messages, which take 100 ms to decode."""
PAUSE_SECONDS = 0.01
"""The pause before more is taken in from a link that had so many messages: 25,000 messages a second at most. A peer
that floods a manager then takes a quarter of its raft thread. Correct managers never send so many at once."""
TURN_SECONDS = 0.01
"""The CPU time after which no further message of a link is taken in. 256 KiB of correct messages take 5 ms. One message
of 60 KB that consists of empty lists takes 16 ms, and any manager with a link may send it."""
REST_FOR_A_TURN = 3.0
"""After a turn that took too long, the link waits for so many times that time. So it takes a quarter of the raft thread
too."""

HANDSHAKE_RECEIVE_BYTES = 4 * KIB
RECEIVE_BYTES = 256 * KIB
"""The most bytes that are taken from the kernel at once, from a stranger and from a peer. One buffer serves for the
whole life of a connection. asyncio's plain protocols get a new buffer each time, and its new pages cost more than all
the other work on 30 KB."""

MAX_QUOTED_CHARACTERS = 500
"""The most characters that a peer or a stranger can put into a line of our log."""

RESERVED_TYPES = frozenset({"hello", "welcome", "refused", "ping", "got", "bye"})
"""The message types of the links themselves. The engine can neither send nor receive them."""


@dataclass(frozen=True, slots=True)
class Timing:
    """All times of the links, in seconds. Only tests need other values."""

    ping_seconds: float = 1.0
    """If nothing was sent on a link for this time, a ping is sent: four of them within `link_timeout_seconds`."""
    link_timeout_seconds: float = 5.0
    """If nothing arrived on a link for this time, it is dropped. Elections notice a dead leader much sooner."""
    handshake_seconds: float = 3.0
    """The time for a dial, for a handshake, and for the last bytes of a connection that is being closed."""
    retry_first_seconds: float = 0.05
    """The pause after the first failed dial. It doubles with each further failure, with jitter."""
    retry_last_seconds: float = 1.0
    """The longest pause; so long a restarted peer may wait to be found. A link that lived for less than this counts as
    a failed dial."""
    away_seconds: float = 1.0
    """If our own loop did not run for this time (SIGSTOP, a slow machine), the peers are not blamed for silence."""
    crossing_seconds: float = 2.0
    """Two opposite dials may cross within this time. A dial that comes later means that the older link is dead."""


class LinkEnd(enum.StrEnum):
    """How a link ended, as evidence for elections: only `PEER_CLOSED` hints that the peer's process died."""

    PEER_CLOSED = "peer_closed"
    """The peer's kernel closed the link (EOF or reset) without a goodbye of the peer, as after a kill."""
    GOODBYE = "goodbye"
    """The peer's program closed the link and said so: a clean stop, a superseded link, our silence, a bad frame."""
    TIMEOUT = "timeout"
    """Nothing arrived for `link_timeout_seconds`, or the kernel reported a timeout. The peer has died, or the network
    to it is down."""
    SUPERSEDED = "superseded"
    """A newer link to the same peer took its place. The newer link is reported next."""
    CLOSED = "closed"
    """This manager closed the link: `close_link`, `set_peers`, `close`, a bad frame, too many unsent bytes."""


class _State(enum.Enum):
    GREETING = 1  # no hello yet
    AGREEING = 2  # we accepted the peer's hello, and wait for its welcome
    UP = 3
    OVER = 4


class Owner(Protocol):
    """The attributes and methods of the transport that a connection uses."""

    timing: Timing
    on_message: Callable[[str, int, Message], None]
    on_arriving: Callable[[str, int, int], None]

    def greeting(self) -> bytes:
        """Our hello, as a frame."""

    def judge(self, connection: Connection) -> Refusal | None:
        """The reason why the peer is refused; None if it is let in. The connection has the peer's hello."""

    def settle(self, connection: Connection) -> None:
        """Both sides accepted. The owner calls `come_up` or `close`."""

    def refused(self, connection: Connection, refusal: Refusal) -> None:
        """The peer refuses us."""

    def ended(self, connection: Connection) -> None:
        """`end` was set. Called once."""

    def gone(self, connection: Connection) -> None:
        """The socket is closed. Called once, after `ended`."""

    def body_of(self, message: Message) -> bytes:
        """The message as CBOR. Raises InvariantViolation if it cannot be sent (wire.py)."""

    def has_unsent(self, connection: Connection) -> None:
        """A message was queued. The owner calls `flush` in this turn of the loop."""

    def may_hold(self, connection: Connection, size: int) -> bool:
        """Whether there is memory for `size` more bytes of unfinished messages. A negative size gives bytes back."""


class Connection:
    """A connection from its first byte to its last. Not thread-safe: all methods run in the loop's thread."""

    def __init__(self, owner: Owner, expected_id: str | None, now: Callable[[], float]) -> None:
        self.expected_id = expected_id  # the id that we dialled; None: the peer dialled us
        self.peer_id = expected_id  # None until the peer that dialled us has said its id
        self.identity: Identity | None = None  # from the peer's certificate; None: the connection is plaintext
        self.address = self.host = "?"
        self.hello: Message = {}
        self.link = 0
        self.up_at: float | None = None
        self.end: LinkEnd | None = None
        self.why = ""
        self.over = asyncio.Event()
        self._owner = owner
        self._now = now
        self._state = _State.GREETING
        self._socket: LinkSocket | None = None
        self._session: Session | None = None
        self.incoming = memoryview(bytearray(HANDSHAKE_RECEIVE_BYTES))
        """The socket reads into this."""
        self._decrypted = self.incoming[:0]
        self._is_decrypted = True
        """Whether no plain bytes are left in the session."""
        self._has_heard = False
        self._reader = FrameReader(HANDSHAKE_MESSAGE_BYTES, limit_items=HANDSHAKE_ITEMS)
        self._held_bytes = 0  # of unfinished messages
        self._answered_mark = 0
        self._told_arriving_at = -ARRIVING_SECONDS
        self._queue = LinkQueue()
        self._flush_is_due = False
        self.began_at = self._heard_at = self._sent_at = self._ended_at = now()

    @property
    def descriptor(self) -> int:
        """The descriptor of the socket; -1 before it is open and after it is closed."""
        return -1 if self._socket is None else self._socket.descriptor

    @property
    def held_bytes(self) -> int:
        """The bytes of messages that have arrived in part."""
        return self._held_bytes

    @property
    def dialled(self) -> bool:
        """Whether we dialled the peer."""
        return self.expected_id is not None

    @property
    def connected(self) -> bool:
        """Whether the connection has had a socket. Then `gone` is called."""
        return self._socket is not None

    @property
    def in_handshake(self) -> bool:
        """Whether the connection is neither up nor over."""
        return self._state in (_State.GREETING, _State.AGREEING)

    def lived_seconds(self) -> float:
        """The time for which the connection was a link."""
        return 0.0 if self.up_at is None else self._ended_at - self.up_at

    def secure(self, session: Session, identity: Identity) -> None:
        """Use this TLS session after its handshake. `identity` is the peer's. Called before `open`."""
        self._session = session
        self.identity = identity
        self._decrypted = memoryview(bytearray(HANDSHAKE_RECEIVE_BYTES))
        self._is_decrypted = False  # bytes may have come together with the end of the handshake
        if not self.dialled:
            self.peer_id = identity.node_id

    # Called by the transport first, and then by the socket.

    def open(self, loop: asyncio.AbstractEventLoop, connected: socket.socket) -> None:
        """Begin the handshake on this socket, which belongs to the connection from now on."""
        self._socket = LinkSocket(loop, connected, self)
        self.address = format_address(self._socket.peer_address)
        self.host = self.address.rpartition(":")[
            0
        ]  # log lines are counted by host, because each connection has another port
        if self.end is not None:
            self._socket.abort()
        elif self.dialled:
            self._write(self._owner.greeting())
        self._socket.start()
        if self._session is not None:
            self._read()

    def received(self, count: int) -> None:
        if self.end is not None:
            return
        self._heard_at = self._now()
        came = self.incoming[:count]
        if self._session is not None:
            self._session.feed(came)
            self._is_decrypted = False
        elif self._has_heard or not _is_tls(came):
            self._has_heard = True
            self._reader.feed(came)
        else:
            self.close(LinkEnd.CLOSED, "it speaks TLS, and this manager runs with insecure_plaintext")
        self._read()

    def _read(self) -> None:
        """Take in the messages that have arrived. If that takes longer than one turn of the loop may, the rest is taken
        in later."""
        begin = time.thread_time()
        reader = self._reader
        for _ in range(MESSAGES_A_TURN):
            message = self._next_message()
            if message is not None:
                self._receive(message)
            spent = time.thread_time() - begin
            if spent > TURN_SECONDS:
                self._read_on_later(REST_FOR_A_TURN * spent)
                break
            if message is None or (reader.has_read_all and self._is_decrypted):
                break
        else:
            self._read_on_later(PAUSE_SECONDS)
        if self.end is None and (reader.marked_bytes != self._answered_mark or reader.held_bytes or self._held_bytes):
            self._look_at_parts()

    def _read_on_later(self, seconds: float) -> None:
        if self.end is None and self._socket is not None:
            self._socket.pause()
            asyncio.get_running_loop().call_later(seconds, self._read_on)

    def _read_on(self) -> None:
        if self.end is None and self._socket is not None:
            self._heard_at = self._now()
            self._socket.start()
            self._read()

    def _decrypt(self) -> bool:
        """Decrypt bytes for the reader. False if there are no more."""
        if self._session is None or self._is_decrypted:
            return False
        buffer = self._decrypted
        try:
            count = self._session.read(buffer)
        except ssl.SSLError as error:
            self._tls_failed(error)
            return False
        self._is_decrypted = count < len(buffer)
        if count:
            self._reader.feed(buffer[:count])
        return count > 0

    def _tls_failed(self, error: ssl.SSLError) -> None:
        """End the connection after an error of TLS. The error may be the peer's alert that it does not accept our
        certificate, because under TLS 1.3 this alert comes after the handshake."""
        text = reason_of(error)
        if self._state is _State.UP or not is_alert(error):
            self._hang_up(LinkEnd.CLOSED, text, abort=True)
            return
        self._hang_up(LinkEnd.GOODBYE, text, abort=True)
        self._owner.refused(self, Refusal("certificate", text))

    def lost(self, error: Exception | None) -> None:
        if error is None:
            self._set_end(LinkEnd.PEER_CLOSED, "the peer closed it")
        elif not isinstance(error, OSError):
            self._set_end(LinkEnd.CLOSED, f"an error in this manager: {error!r}")
        elif isinstance(error, ssl.SSLError):
            self._set_end(LinkEnd.CLOSED, f"TLS takes no more bytes for it ({error})")
        elif error.errno in _KERNEL_GAVE_UP:
            self._set_end(LinkEnd.TIMEOUT, str(error))
        else:
            self._set_end(LinkEnd.PEER_CLOSED, f"the peer closed it ({error})")
        self._owner.gone(self)

    # Called by the transport.

    def come_up(self, link: int) -> None:
        """Become link number `link`."""
        self.link = link
        self.up_at = self._now()
        self._state = _State.UP
        self._reader.limit_bytes, self._reader.limit_items = MAX_MESSAGE_BYTES, MAX_ITEMS
        self.incoming = memoryview(bytearray(RECEIVE_BYTES))  # a new one: the reader may still use the small one
        if self._session is not None:
            self._decrypted = memoryview(bytearray(RECEIVE_BYTES))
        if self.dialled:
            self._write(_WELCOME)

    def queue(self, message: Message) -> None:
        """Send a message at the next `flush`, or drop the link if too many bytes are unsent."""
        if self.end is not None:
            return
        kind = message["type"]
        if kind in RESERVED_TYPES:
            raise InvariantViolation(f"message type {kind!r} belongs to the links")
        body, lane = self._owner.body_of(message), LANES.get(kind, Lane.NORMAL)
        if self.buffered_bytes() + len(body) > MAX_BUFFERED_BYTES:
            self.close(LinkEnd.CLOSED, f"over {MAX_BUFFERED_BYTES} bytes wait to be sent", abort=True)
            return
        if lane is Lane.CONTROL:
            if len(body) > MAX_BODY_BYTES:
                check_lane(kind, lane, body)
            self._queue.put(lane, body, self._now())
        else:
            number = message.get("number", 0) if lane is Lane.BULK else 0
            self._queue.put(lane, body, self._now(), term=leaders_term(message), number=number)
        self._flush_soon()

    def cancel(self, number: int) -> None:
        """Do not send the rest of the message in the BULK lane that has this number."""
        self._queue.cancel(number)
        self._flush_soon()

    def flush(self) -> None:
        """Give the kernel the frames that the window allows, in one call if the kernel takes all of them."""
        self._flush_is_due = False
        if self.end is not None or self._socket is None:
            return
        now = self._now()
        frames = self._queue.take(now)
        if not frames:
            return
        self._sent_at = now
        self._send(self._socket, frames)

    def buffered_bytes(self) -> int:
        """The bytes that wait here. Bytes in the kernel are not counted."""
        waiting = self._queue.waiting_bytes
        if self._session is not None:
            waiting += self._session.unsent_bytes
        return waiting if self._socket is None else waiting + self._socket.unsent_bytes

    def close(self, end: LinkEnd, why: str, *, abort: bool = False) -> None:
        """End the connection now. If the peer still reads, it gets the messages sent before (without the BULK lane) and
        a goodbye. With `abort` it gets nothing."""
        if self.end is None and self._socket is not None and not abort:
            self._send(self._socket, [*self._queue.take_rest(self._now()), _BYE])
        self._hang_up(end, why, abort=abort)

    def hold(self, is_held: bool) -> None:
        """Take in nothing that the peer sends, as if the network were cut; or take in all of it again."""
        if self._socket is not None:
            self._socket.hold(is_held)

    def check(self, now: float) -> None:
        """Called while time passes: send a ping, or end the connection after a deadline."""
        patience = self._owner.timing.handshake_seconds
        if self._state is _State.UP:
            self._check_link(now)
        elif self.end is None and now - self.began_at >= patience:
            self._hang_up(LinkEnd.TIMEOUT, f"no handshake within {patience:g} s", abort=True)
        elif self.end is not None and now - self._ended_at >= patience:
            self._hang_up(self.end, "the peer does not read the last bytes", abort=True)

    @property
    def check_at(self) -> float:
        """The time before which `check` has nothing to do."""
        timing = self._owner.timing
        if self._state is _State.UP:
            return min(self._heard_at + timing.link_timeout_seconds, self._sent_at + timing.ping_seconds)
        return (self.began_at if self.end is None else self._ended_at) + timing.handshake_seconds

    def excuse(self, now: float) -> None:
        """This process itself did not run: the peer gets its whole time again."""
        self._heard_at = self.began_at = now

    # The steps of the handshake, and the links' own messages.

    def _next_message(self) -> Message | None:
        if self.end is not None:
            return None
        try:
            message = self._reader.read()
            while message is None and self._decrypt():
                message = self._reader.read()
        except BadFrame as error:
            self.close(LinkEnd.CLOSED, printable(str(error)))
            return None
        return message

    def _receive(self, message: Message) -> None:
        kind = message["type"]
        if self._state is _State.UP and kind not in RESERVED_TYPES:
            assert self.peer_id is not None
            self._owner.on_message(self.peer_id, self.link, message)
            return
        step = _STEPS.get((self._state, kind))
        if step is None:
            self.close(LinkEnd.CLOSED, f"it sent the message {kind[:40]!r} out of order")
        else:
            step(self, message)

    def _on_hello(self, hello: Message) -> None:
        self.hello = hello
        if self.peer_id is None and isinstance(hello.get("node_id"), str):
            self.peer_id = printable(hello["node_id"])
        refusal = self._owner.judge(self)
        if refusal is not None:
            text = printable(refusal.text)  # it may quote the hello
            self._write(encode({"type": "refused", "code": refusal.code, "text": text}))
            self._hang_up(LinkEnd.CLOSED, f"we refuse it: {text}")
            return
        self._state = _State.AGREEING
        if not self.dialled:
            self._write(self._owner.greeting() + _WELCOME)

    def _on_welcome(self, message: Message) -> None:
        self._owner.settle(self)

    def _on_refused(self, message: Message) -> None:
        if self._state is _State.GREETING and not self.dialled and self.identity is None:
            self.close(LinkEnd.CLOSED, "it sent the message 'refused' out of order")
            return  # a stranger sent it, and we did not ask it to let us in
        refusal = Refusal(printable(message.get("code")), printable(message.get("text")))
        self._hang_up(LinkEnd.GOODBYE, f"it refuses us: {refusal.text}")
        self._owner.refused(self, refusal)

    def _on_bye(self, message: Message) -> None:
        self._hang_up(LinkEnd.GOODBYE, "the peer said goodbye")

    def _on_ping(self, message: Message) -> None:
        """A ping only has to arrive."""

    def _on_got(self, message: Message) -> None:
        total = message.get("bytes")
        try:
            if type(total) is not int:
                raise BadFrame("it does not say how many bytes it got")
            self._queue.window.acknowledge(total, self._now())
        except BadFrame as error:
            self.close(LinkEnd.CLOSED, printable(str(error)))
            return
        if self._queue.waiting_bytes:
            self._flush_soon()

    def _look_at_parts(self) -> None:
        """Answer the marks and count the parts of unfinished messages in the bytes that were read."""
        reader = self._reader
        held = reader.held_bytes
        if held != self._held_bytes:
            grown, self._held_bytes = held - self._held_bytes, held
            if not self._owner.may_hold(self, grown):
                self.close(LinkEnd.CLOSED, "the unfinished messages of all links have too many bytes together")
        if self._state is not _State.UP:
            return
        if reader.marked_bytes != self._answered_mark:
            self._answered_mark = reader.marked_bytes
            self._queue.put(Lane.CONTROL, encode_body({"type": "got", "bytes": reader.marked_bytes}), self._heard_at)
            self._flush_soon()
        if reader.arriving_term is not None and self._heard_at - self._told_arriving_at >= ARRIVING_SECONDS:
            term, reader.arriving_term = reader.arriving_term, None
            self._told_arriving_at = self._heard_at
            assert self.peer_id is not None
            self._owner.on_arriving(self.peer_id, self.link, term)

    def _flush_soon(self) -> None:
        if not self._flush_is_due:
            self._flush_is_due = True
            self._owner.has_unsent(self)

    def _write(self, frame: bytes) -> None:
        assert self._socket is not None
        self._sent_at = self._now()
        self._send(self._socket, [frame])

    def _send(self, link_socket: LinkSocket, frames: list[bytes | memoryview]) -> None:
        data = frames[0] if len(frames) == 1 else b"".join(frames)
        if self._session is not None:
            try:
                data = self._session.write(data)
            except ssl.SSLError as error:  # as of the socket: the link ends, the caller goes on
                link_socket.fail(error)
                return
        link_socket.write(data)

    def _check_link(self, now: float) -> None:
        timing = self._owner.timing
        if now - self._heard_at >= timing.link_timeout_seconds:
            self.close(LinkEnd.TIMEOUT, f"nothing arrived for {timing.link_timeout_seconds:g} s")
        elif now - self._sent_at >= timing.ping_seconds and self._socket is not None and not self._socket.unsent_bytes:
            self._write(_PING)

    def _hang_up(self, end: LinkEnd, why: str, *, abort: bool = False) -> None:
        self._set_end(end, why)
        if self._socket is None:
            return
        if abort:
            self._socket.abort()
        else:
            self._socket.close()

    def _set_end(self, end: LinkEnd, why: str) -> None:
        if self.end is not None:
            return
        self.end = end
        self.why = why
        self._state = _State.OVER
        self._ended_at = self._now()
        held, self._held_bytes = self._held_bytes, 0
        self._owner.may_hold(self, -held)
        self._queue = LinkQueue()
        self.over.set()
        self._owner.ended(self)


_STEPS: dict[tuple[_State, str], Callable[[Connection, Message], None]] = {
    (_State.GREETING, "hello"): Connection._on_hello,
    (_State.GREETING, "refused"): Connection._on_refused,
    (_State.GREETING, "bye"): Connection._on_bye,
    (_State.AGREEING, "welcome"): Connection._on_welcome,
    (_State.AGREEING, "refused"): Connection._on_refused,
    (_State.AGREEING, "bye"): Connection._on_bye,
    (_State.UP, "ping"): Connection._on_ping,
    (_State.UP, "got"): Connection._on_got,
    (_State.UP, "bye"): Connection._on_bye,
}

_WELCOME = encode({"type": "welcome"})
_PING = encode({"type": "ping"})
_BYE = encode({"type": "bye"})

_KERNEL_GAVE_UP = frozenset({errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN})
"""Errors of a connection that say nothing about the peer's process. A reset does."""


def _is_tls(beginning: memoryview) -> bool:
    """Whether bytes begin like a handshake or an alert of TLS. A hello of ours begins with a zero."""
    return bytes(beginning[:2]) in (b"\x16\x03", b"\x15\x03")


def printable(said: object) -> str:
    """A peer's text or value, fit for one line of a log."""
    text = said if isinstance(said, str) else repr(said)
    return "".join(c if c.isprintable() else "?" for c in text[:MAX_QUOTED_CHARACTERS])
