"""Accepting connections and shaking TLS hands, in a thread of their own: strangers cost the raft thread nothing.

Not here: who is dialled and which connection counts (transport.py), what follows TLS (connection.py), certificates
(credentials.py). Invariant: a connection leaves this thread when its other side proved to be a manager of the trust
domain, or where links are plaintext; all others end here, within a deadline, and there is a bounded number of them.
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

from warren_raft.credentials import Credentials, NotAccepted
from warren_raft.descriptors import limit
from warren_raft.errors import InvariantViolation
from warren_raft.raft.addresses import format_address
from warren_raft.raft.budgets import Budgets, source_of
from warren_raft.raft.identity import Identity
from warren_raft.raft.link_log import LinkLog
from warren_raft.raft.tls_session import Session, is_alert, reason_of
from warren_raft.raft.wire import KIB, encode

MAX_UNFINISHED: Final = 64
"""Incoming connections whose handshake is not done; one more drops the oldest. A handshake of a peer takes a few round
trips, so a flood of silent strangers delays no manager. Fewer where this process may have few descriptors."""
DESCRIPTORS_SHARE: Final = 8
"""Of the descriptors of this process, one in so many at most is a stranger's."""
SOURCE_PER_SECOND: Final = 100.0
SOURCE_BURST: Final = 100.0
"""Handshakes that one address may begin. A manager dials once a second; a hundred take 50 ms of a CPU. With fewer,
somebody on the same host would keep a manager there from being reached for longer."""
STRANGERS_PER_SECOND: Final = 200.0
STRANGERS_BURST: Final = 200.0
"""Of all addresses together at which no peer of ours was found."""
IDENTITY_PER_SECOND: Final = 4.0
IDENTITY_BURST: Final = 20.0
"""Connections that one certificate may bring to the raft thread: a manager dials once a second at most."""
HANDSHAKE_BYTES_MAX: Final = 32 * KIB
"""Of one side of a handshake. A ClientHello and a certificate have 2 KiB."""
RECEIVE_BYTES: Final = 16 * KIB
ACCEPT_RETRY_SECONDS: Final = 1.0
"""Pause after a failed accept: out of descriptors (EMFILE) the kernel reports the same for ever."""
LOOK_SECONDS: Final = 0.25
"""Deadlines are looked at so often."""
JOIN_SECONDS: Final = 5.0


_PROTOCOL_VERSION_ALERT: Final = b"\x15\x03\x03\x00\x02\x02\x46"
"""To one that does not speak TLS OpenSSL says nothing. With this a manager with plaintext links can log the reason."""


class HandshakeFailed(OSError):
    """A dial got as far as a connection, and not to an identity."""

    def __init__(self, text: str, *, refused: str | None = None) -> None:
        super().__init__(text)
        self.refused = refused
        """The other side does not accept us: the code. None: we do not accept it, or it ended."""


@dataclass(frozen=True, slots=True)
class Greeted:
    """A connection that is ready for our own handshake."""

    connected: socket.socket
    session: Session | None
    """None: it is plaintext."""
    identity: Identity | None
    began_at: float
    """When it was accepted or dialled, by `time.monotonic`."""


Peer = tuple[Any, ...]
"""The address of the other side, as the socket has it: host and port are the first of it."""


class _Unfinished:
    """A connection whose handshake is not done."""

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
    """What waits for a handshake of ours."""

    done: asyncio.Future[Greeted]
    loop: asyncio.AbstractEventLoop


class Handshakes:
    """One thread. `deliver` is called in the loop's thread, once for each connection that others made to us."""

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
        """Of handshakes from now on. May be replaced at any time."""
        self.known_hosts: Collection[str] = frozenset()
        """Where peers were found: their connections do not wait for those of strangers. May be replaced at any time."""
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
        """Listeners that found no descriptor, and when they are to try again."""
        self._sources = Budgets(per_second=SOURCE_PER_SECOND, burst=SOURCE_BURST)
        self._strangers = Budgets(per_second=STRANGERS_PER_SECOND, burst=STRANGERS_BURST, keys_max=1)
        self._identities = Budgets(per_second=IDENTITY_PER_SECOND, burst=IDENTITY_BURST)
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=f"warren-raft-tls {node_id}", daemon=True)

    # In the loop's thread ----------------------------------------------------------------------------------------

    def start(self, listeners: list[socket.socket]) -> None:
        """Accept from these, which are ours from now on."""
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
        """Shake hands on a connection that we made. Where this raises, or is cancelled, the socket is closed here.

        Raises HandshakeFailed, also at the deadline.
        """
        credentials = self.credentials
        if credentials is None:
            return Greeted(connected, None, None, time.monotonic())
        dial = _Dial(self._loop.create_future(), self._loop)
        self._call(partial(self._begin, connected, connected.getpeername(), credentials, dial))
        return await dial.done

    def close(self) -> None:
        """Close the listeners, end what is unfinished, and the thread. Idempotent."""
        if self._listeners:
            self._call(self._stop)
            self._thread.join(JOIN_SECONDS)

    def descriptors(self) -> list[int]:
        """Every socket's. For a child: takes no lock."""
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
        with contextlib.suppress(BlockingIOError, OSError):  # full: it will wake up; closed: it has ended
            self._wake.send(b"\0")

    # In the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closing:
                for key, _ in self._selector.select(min(LOOK_SECONDS, self._seconds / 4)):
                    if not self._closing:
                        key.data()
                self._look_at_deadlines()
        except Exception as error:  # noqa: BLE001 - it is the loop's: a manager that nobody can reach has to stop
            failure = InvariantViolation(f"the thread of the TLS handshakes failed: {error!r}")
            failure.__cause__ = error  # which may be an OSError: of those the loop takes no notice
            context = {"message": "the thread of the TLS handshakes failed", "exception": failure}
            self._to_loop(self._loop.call_exception_handler, context)
            self._stop()

    def _take_commands(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._woken.recv(RECEIVE_BYTES)
        while not self._commands.empty():
            self._commands.get()()

    def _stop(self) -> None:
        self._closing = True
        for one in list(self._unfinished):
            self._end(one, HandshakeFailed("we are closing"))
        for each in (*self._listeners, self._wake, self._woken):
            each.close()
        self._selector.close()

    def _to_loop(self, function: Callable[..., None], *arguments: Any) -> bool:
        """Have the loop's thread call it. False: the loop is closed."""
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            return False
        return True

    def _accept(self, listener: socket.socket) -> None:
        try:
            connected, peer = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # it was gone before we came to it
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
            text = f"it begins more than {SOURCE_PER_SECOND:g} handshakes a second, or all strangers together too many"
            self._report(peer, f"turned away: {text}")

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
            self._fail(oldest, "too many connections without a handshake")

    def _begin(self, connected: socket.socket, peer: Peer, credentials: Credentials, dial: _Dial | None) -> None:
        try:
            connected.setblocking(False)
            one = _Unfinished(connected, peer, credentials.session(is_server=dial is None), dial)
            self._selector.register(connected, selectors.EVENT_READ, partial(self._read_or_drop, one))
        except OSError as error:  # no memory, or too many sockets are watched by this user's processes: costs this one
            connected.close()
            self._not_begun(peer, dial, error)
            return
        one.is_known = peer[0] in self.known_hosts
        self._unfinished[one] = None
        if dial is not None:
            self._shake(one)

    def _not_begun(self, peer: Peer, dial: _Dial | None, error: OSError) -> None:
        text = f"the handshake cannot be begun: {error.strerror or error}"
        if dial is None:
            self._report(peer, text)
        else:
            self._answer(dial, HandshakeFailed(text))

    def _read_or_drop(self, one: _Unfinished) -> None:
        """A fault of ours that a stranger can bring about must not stop this manager: it costs that connection."""
        try:
            self._read(one)
        except Exception as error:  # noqa: BLE001 - it is logged, with the traceback
            self._say(str(one.peer[0]), logging.ERROR, "handshake broke", repr(error), exc_info=error)
            if one in self._unfinished:
                self._end(one, HandshakeFailed(f"a failure of our own: {error!r}"))

    def _read(self, one: _Unfinished) -> None:
        if one not in self._unfinished:
            return  # something that was ready at the same moment has ended it
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
            self._fail(one, f"over {HANDSHAKE_BYTES_MAX} bytes of handshake")
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
            self._fail(one, "it does not read")
        elif is_done:
            self._finish(one)

    def _send(self, one: _Unfinished, data: bytes) -> bool:
        """A handshake's few bytes find room in the buffer of a new connection, or nobody reads them."""
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
            self._fail(one, f"we refuse it: {error}")
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
            if dial.done.done():  # it was given up
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

    def _fail(self, one: _Unfinished, text: str, *, refused: str | None = None) -> None:
        if one.dial is None:
            self._report(one.peer, text)
        self._end(one, HandshakeFailed(text, refused=refused))

    def _report(self, peer: Peer, text: str) -> None:
        """Which port a stranger used makes no new story."""
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
        with contextlib.suppress(OSError):  # what was sent arrives before the reset that unread bytes cause
            one.connected.shutdown(socket.SHUT_WR)
        one.connected.close()
        if one.dial is not None:
            self._answer(one.dial, error)

    def _let_go(self, one: _Unfinished) -> None:
        del self._unfinished[one]
        self._selector.unregister(one.connected)
