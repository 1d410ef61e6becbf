"""Accepting connections and TLS handshakes, in a thread of their own, so that strangers cost the raft thread nothing.

Not here: dialling and which connection is the link (transport.py), the handshake after TLS (connection.py),
certificates (certificates/credentials.py). Invariant: a connection leaves this thread only after its peer has proved to
be a manager of the trust domain, or if links are plaintext. All others end here within a deadline, and their number is
bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any, Final

from warren_raft.certificates.credentials import Credentials, NotAccepted
from warren_raft.certificates.identity import Identity
from warren_raft.certificates.tls_session import Session, is_alert, reason_of
from warren_raft.disk.descriptors import limit
from warren_raft.errors import InvariantViolation
from warren_raft.raft.links.addresses import format_address
from warren_raft.raft.links.budgets import Budgets, source_of
from warren_raft.raft.links.link_log import LinkLog
from warren_raft.raft.links.wire import KIB, encode

MAX_UNFINISHED: Final = 64
"""The most incoming connections with an unfinished handshake; one more drops the oldest. The handshake of a peer takes
a few round trips, so a flood of silent strangers delays no manager. The limit is lower if this process may have few
descriptors."""
DESCRIPTORS_SHARE: Final = 8
"""At most one in so many of this process's descriptors is a stranger's."""
SOURCE_PER_SECOND: Final = 100.0
SOURCE_BURST: Final = 100.0
"""The most handshakes that one address may begin. A manager dials once a second, and a hundred handshakes take 50 ms of
a CPU. With a lower limit, a stranger on the host of a manager would block that manager for longer."""
STRANGERS_PER_SECOND: Final = 200.0
STRANGERS_BURST: Final = 200.0
"""The most handshakes of all addresses together at which no peer of ours was found."""
IDENTITY_PER_SECOND: Final = 4.0
IDENTITY_BURST: Final = 20.0
"""The most connections with one certificate that reach the raft thread. A manager dials once a second at most."""
HANDSHAKE_BYTES_MAX: Final = 32 * KIB
"""The most bytes of one side of a handshake. A ClientHello and a certificate have 2 KiB."""
RECEIVE_BYTES: Final = 16 * KIB
ACCEPT_RETRY_SECONDS: Final = 1.0
"""The pause after a failed accept. Without descriptors (EMFILE) the kernel would report the same error for ever."""
LOOK_SECONDS: Final = 0.25
"""The interval at which deadlines are checked."""
JOIN_SECONDS: Final = 5.0
WE_REFUSE: Final = "we refuse it: "


_PROTOCOL_VERSION_ALERT: Final = b"\x15\x03\x03\x00\x02\x02\x46"
"""Sent to a peer that does not speak TLS, because OpenSSL sends it nothing. A manager with plaintext links can then log
the reason."""


class HandshakeFailed(OSError):
    """A dial connected, but the peer did not prove its identity."""

    def __init__(self, text: str, *, refused: str | None = None, refuses: str | None = None, node_id: str = "") -> None:
        super().__init__(text)
        self.refused = refused
        """The code of the refusal if the peer does not accept us. None: we do not accept the peer, or the connection
        ended."""
        self.refuses = refuses
        """The code of the refusal if we do not accept the peer's certificate, although it is of our CA: the text begins
        with WE_REFUSE. None: it is another failure."""
        self.node_id = node_id
        """With `refuses`: the manager that the certificate names; empty if it names none."""


@dataclass(frozen=True, slots=True)
class Greeted:
    """A connection that is ready for our own handshake (connection.py)."""

    connected: socket.socket
    session: Session | None
    """None: the connection is plaintext."""
    identity: Identity | None
    began_at: float
    """The time of `time.monotonic` when the connection was accepted, or its handshake began."""


Peer = tuple[Any, ...]
"""The address of the peer, as the socket has it. Its first two items are the host and the port."""


class _Unfinished:
    """A connection with an unfinished handshake."""

    __slots__ = ("began_at", "came", "connected", "dial", "is_known", "peer", "session")

    def __init__(self, connected: socket.socket, peer: Peer, session: Session, dial: _Dial | None) -> None:
        self.connected = connected
        self.peer = peer
        self.session = session
        self.dial = dial
        self.began_at = time.monotonic()
        self.came = 0
        self.is_known = False


@dataclass(frozen=True, slots=True)
class _Dial:
    """The caller that waits for a handshake that we began."""

    done: asyncio.Future[Greeted]
    loop: asyncio.AbstractEventLoop


class Handshakes:
    """The thread of the handshakes. `deliver` is called in the loop's thread, once for each accepted connection
    after its handshake has succeeded."""

    def __init__(
        self,
        node_id: str,
        credentials: Credentials | None,
        *,
        seconds: float,
        deliver: Callable[[Greeted], None],
        log: LinkLog,
    ) -> None:
        self.credentials = credentials
        """The credentials for later handshakes; None: links are plaintext. May be replaced at any time."""
        self.known_hosts: Collection[str] = frozenset()
        """The hosts of peers. Connections from there do not wait for those of strangers. May be replaced at any
        time."""
        self._seconds = seconds
        self._deliver = deliver
        self._say = log.say
        self._forget = log.forget
        self._loop: asyncio.AbstractEventLoop
        self._listeners: list[socket.socket] = []
        self._commands: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._selector: selectors.BaseSelector
        self._wake: socket.socket
        self._woken: socket.socket
        self._unfinished: dict[_Unfinished, None] = {}
        self._waiting: list[tuple[float, socket.socket]] = []
        """(time of the next try, listener), for listeners that failed to accept for want of a descriptor."""
        self._sources = Budgets(per_second=SOURCE_PER_SECOND, burst=SOURCE_BURST)
        self._strangers = Budgets(per_second=STRANGERS_PER_SECOND, burst=STRANGERS_BURST, keys_max=1)
        self._identities = Budgets(per_second=IDENTITY_PER_SECOND, burst=IDENTITY_BURST)
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=f"warren-raft-tls {node_id}", daemon=True)

    # In the loop's thread ----------------------------------------------------------------------------------------

    def start(self, listeners: list[socket.socket]) -> None:
        """Accept connections from these listeners. The listeners belong to this object from now on."""
        self._loop = asyncio.get_running_loop()
        self._listeners = listeners
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        for end in (self._wake, self._woken):
            end.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ, self._take_commands)
        for listener in listeners:
            self._selector.register(listener, selectors.EVENT_READ, partial(self._accept, listener))
        self._thread.start()

    async def greet(self, connected: socket.socket) -> Greeted:
        """The TLS handshake of a connection that we dialled. If this raises or is cancelled, the socket is closed here.

        Raises HandshakeFailed, also at the deadline.
        """
        credentials = self.credentials
        if credentials is None:
            return Greeted(connected, None, None, time.monotonic())
        dial = _Dial(self._loop.create_future(), self._loop)
        try:
            peer = connected.getpeername()
        except OSError:  # the peer has closed it already
            connected.close()
            raise
        self._call(partial(self._begin, connected, peer, credentials, dial))
        try:
            return await dial.done
        except BaseException:
            if dial.done.done() and not dial.done.cancelled() and dial.done.exception() is None:
                connected.close()  # cancelled between the answer and this task's next turn
            raise

    def close(self) -> None:
        """Close the listeners and the unfinished connections, and end the thread. A second call does nothing."""
        if self._listeners:
            self._call(self._stop)
            self._thread.join(JOIN_SECONDS)

    def descriptors(self) -> list[int]:
        """The descriptors of all sockets, for a forked child to close. Takes no lock."""
        if not self._listeners:
            return []
        held = [*self._listeners, self._wake, self._woken, *(one.connected for one in self._unfinished)]
        return [each.fileno() for each in held]

    @property
    def listening(self) -> tuple[str, int]:
        host, port = self._listeners[0].getsockname()[:2]
        return host, port

    def _call(self, command: Callable[[], None]) -> None:
        self._commands.put(command)
        with contextlib.suppress(BlockingIOError, OSError):  # full: the thread will wake; closed: the thread has ended
            self._wake.send(b"\0")

    # In the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closing:
                for key, _ in self._selector.select(self._pause_seconds()):
                    if not self._closing:
                        key.data()
                self._look_at_deadlines()
        except Exception as error:  # noqa: BLE001 - given to the loop: a manager that no peer can reach has to stop
            failure = InvariantViolation(f"the thread of the TLS handshakes failed: {error!r}")
            failure.__cause__ = error  # not the error itself: it may be an OSError, which the loop's handler ignores
            context = {"message": "the thread of the TLS handshakes failed", "exception": failure}
            self._to_loop(self._loop.call_exception_handler, context)
            self._stop()

    def _pause_seconds(self) -> float | None:
        """The longest wait for a socket. None, no limit, if nothing has a deadline: an idle manager sleeps."""
        return min(LOOK_SECONDS, self._seconds / 4) if self._unfinished or self._waiting else None

    def _take_commands(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._woken.recv(RECEIVE_BYTES)
        while not self._commands.empty():
            self._commands.get()()

    def _stop(self) -> None:
        self._closing = True
        for one in list(self._unfinished):
            self._end(one, HandshakeFailed("this manager is closing"))
        for each in (*self._listeners, self._wake, self._woken):
            each.close()
        self._selector.close()

    def _to_loop(self, function: Callable[..., None], *arguments: object) -> bool:
        """Call the function in the loop's thread. False if the loop is closed."""
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            return False
        return True

    def _accept(self, listener: socket.socket) -> None:
        try:
            connected, peer = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # the peer closed before we accepted
        except OSError as error:
            self._say("accept", logging.ERROR, "connections not accepted", f"{error.strerror}; trying again")
            self._selector.unregister(listener)
            self._accept_later(listener)
            return
        self._forget("accept")
        credentials = self.credentials
        if credentials is None:
            greeted = Greeted(connected, None, None, time.monotonic())
            if not self._to_loop(self._deliver, greeted):
                connected.close()
        elif self._may_begin(peer[0]):
            self._make_room()
            self._begin(connected, peer, credentials, None)
        else:
            connected.close()
            text = (
                f"this address begins more than {SOURCE_PER_SECOND:g} handshakes a second, or all strangers together "
                f"more than {STRANGERS_PER_SECOND:g}"
            )
            self._report(peer, f"refused: {text}")

    def _accept_later(self, listener: socket.socket) -> None:
        self._waiting.append((time.monotonic() + ACCEPT_RETRY_SECONDS, listener))

    def _may_begin(self, host: str) -> bool:
        now = time.monotonic()
        if not self._sources.take(source_of(host), now):
            return False
        return host in self.known_hosts or self._strangers.take("", now)

    def _make_room(self) -> None:
        incoming = [one for one in self._unfinished if one.dial is None]
        if len(incoming) >= min(MAX_UNFINISHED, max(1, limit() // DESCRIPTORS_SHARE)):
            oldest = next((one for one in incoming if not one.is_known), incoming[0])
            self._fail(oldest, "too many connections have an unfinished handshake: the oldest is closed")

    def _begin(self, connected: socket.socket, peer: Peer, credentials: Credentials, dial: _Dial | None) -> None:
        try:
            connected.setblocking(False)
            one = _Unfinished(connected, peer, credentials.session(is_server=dial is None), dial)
            self._selector.register(connected, selectors.EVENT_READ, partial(self._read_or_drop, one))
        except OSError as error:  # no memory, or this user's processes watch too many sockets: only this one is closed
            connected.close()
            self._not_begun(peer, dial, error)
            return
        one.is_known = peer[0] in self.known_hosts
        self._unfinished[one] = None
        if dial is not None:
            self._shake(one)

    def _not_begun(self, peer: Peer, dial: _Dial | None, error: OSError) -> None:
        text = f"the handshake cannot begin: {error.strerror or error}"
        if dial is None:
            self._report(peer, text)
        else:
            self._answer(dial, HandshakeFailed(text))

    def _read_or_drop(self, one: _Unfinished) -> None:
        """Read, and end this connection at any error. A stranger that finds a fault of ours must not stop this
        manager."""
        try:
            self._read(one)
        except Exception as error:  # noqa: BLE001 - it is logged, with the traceback
            self._say(str(one.peer[0]), logging.ERROR, "handshake broke", repr(error), exc_info=error)
            if one in self._unfinished:
                self._end(one, HandshakeFailed(f"an error in this manager: {error!r}"))

    def _read(self, one: _Unfinished) -> None:
        if one not in self._unfinished:
            return  # another event of the same moment has ended it
        try:
            data = one.connected.recv(RECEIVE_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._fail(one, f"the connection broke during the handshake: {error.strerror}")
            return
        if not data:
            self._fail(one, "it closed the connection during the handshake")
            return
        one.came += len(data)
        if one.came > HANDSHAKE_BYTES_MAX:
            self._fail(one, f"its handshake has more than {HANDSHAKE_BYTES_MAX} bytes")
            return
        one.session.feed(data)
        self._shake(one)

    def _shake(self, one: _Unfinished) -> None:
        try:
            is_done = one.session.shake()
        except ssl.SSLError as error:
            self._send(one, one.session.take() or _PROTOCOL_VERSION_ALERT)
            self._fail(one, reason_of(error), refused="certificate" if is_alert(error) else None)
            return
        if not self._send(one, one.session.take()):
            self._fail(one, "it does not read the bytes of the handshake")
        elif is_done:
            self._finish(one)

    def _send(self, one: _Unfinished, data: bytes) -> bool:
        """Send bytes at once. False if they do not fit: the few bytes of a handshake fit the buffer of a new
        connection, unless the peer does not read."""
        try:
            return not data or one.connected.send(data) == len(data)
        except OSError:
            return False

    def _finish(self, one: _Unfinished) -> None:
        credentials = self.credentials
        if credentials is None:
            self._fail(one, "links are plaintext")
            return
        try:
            identity = credentials.identity_of(one.session, time.time())
        except NotAccepted as error:
            self._send(one, one.session.write(encode({"type": "refused", "code": error.code, "text": str(error)})))
            self._fail(one, f"{WE_REFUSE}{error}", refuses=error.code, node_id=error.node_id)
            return
        if one.dial is None and not self._identities.take(identity.node_id, time.monotonic()):
            self._fail(one, f"{identity.node_id} connects more than {IDENTITY_PER_SECOND:g} times a second")
            return
        self._let_go(one)
        greeted = Greeted(one.connected, one.session, identity, one.began_at)
        is_told = self._to_loop(self._deliver, greeted) if one.dial is None else self._answer(one.dial, greeted)
        if not is_told:
            one.connected.close()

    def _answer(self, dial: _Dial, outcome: Greeted | HandshakeFailed) -> bool:
        def answer() -> None:
            if dial.done.done():  # the dial was given up
                if isinstance(outcome, Greeted):
                    outcome.connected.close()
            elif isinstance(outcome, Greeted):
                dial.done.set_result(outcome)
            else:
                dial.done.set_exception(outcome)

        return self._to_loop(answer)

    def _look_at_deadlines(self) -> None:
        now = time.monotonic()
        while self._unfinished:
            oldest = next(iter(self._unfinished))
            if now - oldest.began_at < self._seconds:
                break
            self._fail(oldest, f"no handshake within {self._seconds:g} s")
        ready, self._waiting = self._waiting, [waiting for waiting in self._waiting if waiting[0] > now]
        for at, listener in ready:
            if at <= now:
                try:
                    self._selector.register(listener, selectors.EVENT_READ, partial(self._accept, listener))
                except OSError:  # as in _begin
                    self._accept_later(listener)

    def _fail(
        self,
        one: _Unfinished,
        text: str,
        *,
        refused: str | None = None,
        refuses: str | None = None,
        node_id: str = "",
    ) -> None:
        if one.dial is None:
            self._report(one.peer, text)
        self._end(one, HandshakeFailed(text, refused=refused, refuses=refuses, node_id=node_id))

    def _report(self, peer: Peer, text: str) -> None:
        """Log that a handshake has failed. The same failure from another port of the same host is not logged again."""
        host = str(peer[0])
        self._say(
            host,
            logging.WARNING,
            "link not made",
            text,
            peer=host,
            address=format_address(peer),
            source=host,
            is_stranger=host not in self.known_hosts,
        )

    def _end(self, one: _Unfinished, error: HandshakeFailed) -> None:
        self._let_go(one)
        with contextlib.suppress(OSError):  # so that our last bytes arrive before the reset that unread bytes cause
            one.connected.shutdown(socket.SHUT_WR)
        one.connected.close()
        if one.dial is not None:
            self._answer(one.dial, error)

    def _let_go(self, one: _Unfinished) -> None:
        del self._unfinished[one]
        self._selector.unregister(one.connected)
