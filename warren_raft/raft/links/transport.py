"""The links between managers: listening, dialling, and which connection to a peer is its link.

Not here: handshake and frames of one connection (connection.py, wire.py), the meaning of messages (raft/dispatch.py).
Invariant: at most one link to a peer; once a newer link is up, no message of an older link is delivered.

The invariant closes hole 2c of PySyncObj (docs/pysyncobj-holes.md). PySyncObj's transport replaces a connection by a
new one and goes on reading the old one. A late heartbeat on the old connection truncates entries that are already
applied.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from random import Random
from types import MappingProxyType
from typing import Any, Final

from warren_raft.certificates.credentials import Credentials
from warren_raft.certificates.identity import Identity
from warren_raft.config import check_node_id
from warren_raft.config import split_address as parse_address
from warren_raft.errors import InvalidConfig, InvariantViolation
from warren_raft.raft.links.addresses import bind, format_address, resolve
from warren_raft.raft.links.connection import (
    MAX_BUFFERED_BYTES,
    RESERVED_TYPES,
    Connection,
    LinkEnd,
    Timing,
)
from warren_raft.raft.links.handshakes import WE_REFUSE, Greeted, HandshakeFailed, Handshakes
from warren_raft.raft.links.link_log import LinkLog
from warren_raft.raft.links.wire import (
    HANDSHAKE_MESSAGE_BYTES,
    MIB,
    Message,
    encode,
    encode_body,
)
from warren_raft.raft.refusal import WRONG_NODE, Refusal
from warren_raft.support.forking import let_go_in_child
from warren_raft.support.workers import Workers

__all__ = ["MAX_BUFFERED_BYTES", "RESERVED_TYPES", "LinkEnd", "Timing", "Transport", "parse_address"]

PROTOCOL_MAGIC = "warren_raft"
PROTOCOL_VERSIONS = (2, 2)
"""The oldest and the newest version of frames and handshake that this release speaks."""

MAX_UNFINISHED_INCOMING = 64
"""The most incoming connections that are plaintext or past TLS, and have an unfinished handshake of ours (hello and
welcome). One more drops the oldest. The handshake of a peer takes one round trip, so a flood of silent strangers delays
no manager."""

MAX_GUESTS = 8
"""The most links with managers that are not our peers: a joiner, or a manager that knows a newer list than we do."""

RENEWAL_SECONDS = 5.0
"""After a change of credentials, links are made again one at a time. Each waits at most so long for the one before."""

MAX_HOSTS_OF_A_PEER = 8
"""The most hosts that are remembered of those at which a peer was dialled."""

MAX_LOOK_UPS = 4
"""Host names that are resolved at the same time. A name server that does not answer holds a thread for half a
minute."""

NOTHING_LISTENS = "nothing listens there"

Place = tuple[str, int]
"""Host and port."""

MAX_UNFINISHED_BYTES = 64 * MIB
"""The most bytes of messages and frames of all links that have arrived in part: fifteen of the largest messages. A link
that would exceed it is dropped. Six other managers, each with the largest message in both lanes at once, are below
it."""

MAX_GUESTS_UNFINISHED_BYTES = 12 * MIB
"""The most of these bytes on links with managers that are not our peers, and on connections that are not links yet. A
leader that we do not know sends one entry in each of two lanes, of 4 MiB at most."""

_link_numbers = itertools.count(1)


class Transport:
    """All links of one manager. Not thread-safe: all of it, callbacks included, runs in the loop's thread.

    For each link, `on_link_up(peer_id, link, hello, identity)` is called first, then `on_message(peer_id, link,
    message)` any number of times, then `on_link_down(peer_id, link, end)` once, always before the next link to that
    peer is up. `identity` comes from the peer's certificate, and is None if links are plaintext. No callback is called
    from within `send`, `close_link` or `set_peers`. An exception out of a callback goes to the loop's exception
    handler, and the link is dropped.

    - `flushes_itself`: at the end of each turn of the loop. If not, its owner calls `flush` before each wait of the
      loop.
    - `judge(hello, identity)` is asked about every peer that passed the transport's own checks.
    - `on_refused(peer_id_or_address, refusal, identity)`: a peer refuses us. `identity` is None if it is not known.
    - `on_not_reached(peer_id, why, refusal)`: a dial of a peer failed: nothing listens there, another manager does, or
      the handshake of TLS failed. `refusal`: this manager does not accept the certificate; else None.
    - `on_arriving(peer_id, link, term)`: parts of a large message arrive from a peer that claims to lead this term (0:
      the message claims no term).
    """

    def __init__(
        self,
        *,
        listen: tuple[str, int],
        node_id: str,
        hello: Callable[[], Message],
        judge: Callable[[Message, Identity | None], Refusal | None],
        on_link_up: Callable[[str, int, Message, Identity | None], None],
        on_link_down: Callable[[str, int, LinkEnd], None],
        on_message: Callable[[str, int, Message], None],
        on_arriving: Callable[[str, int, int], None],
        on_refused: Callable[[str, Refusal, Identity | None], None],
        on_not_reached: Callable[[str, str, Refusal | None], None],
        random: Random,
        timing: Timing | None = None,
        credentials: Credentials | None = None,
        flushes_itself: bool = True,
    ) -> None:
        self.node_id = node_id
        self.timing = timing or Timing()
        self.on_message = on_message
        self.on_arriving = on_arriving
        self._flushes_itself = flushes_itself
        self._listen = listen
        self._hello = hello
        self._judge = judge
        self._on_link_up = on_link_up
        self._on_link_down = on_link_down
        self._on_refused = on_refused
        self._on_not_reached = on_not_reached
        self._random = random
        self._log = LinkLog(node_id)
        self._handshakes = Handshakes(
            node_id, credentials, seconds=self.timing.handshake_seconds, deliver=self._accepted, log=self._log
        )
        self._found: dict[str, frozenset[str]] = {}
        self._dialers: dict[str, _Dialer] = {}
        self._connections: dict[Connection, None] = {}  # the oldest first, also if two began at one tick of the clock
        self._no_connections = asyncio.Event()
        self._no_connections.set()
        self._current: dict[str, Connection] = {}
        self._links: dict[str, int] = {}
        self.links: Mapping[str, int] = MappingProxyType(self._links)
        """Peer id -> the number of its link, for each peer that has a link. A live view."""
        self._by_number: dict[int, Connection] = {}
        self._unreported: deque[Connection] = deque()
        self.unflushed: list[Connection] = []
        """The connections that `flush` has to look at."""
        self._encoded: tuple[Message | None, bytes] = (None, b"")
        """The newest message that was sent, as CBOR, until the next `flush`."""
        self._unfinished_bytes = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._watcher: asyncio.Task[None] | None = None
        self._renewal: asyncio.Task[None] | None = None
        self._link_came = asyncio.Event()
        self._closing = False
        self.resolvers: Final = Workers(MAX_LOOK_UPS, f"warren-raft-resolver {node_id}")
        let_go_in_child(self)

    # Public.

    def descriptors(self) -> list[int]:
        """The descriptors of all sockets, so that a forked child can close them."""
        return self._handshakes.descriptors() + [c.descriptor for c in self._connections]

    @property
    def listening(self) -> tuple[str, int]:
        """The host and port that are bound. If port 0 was asked for, this is the port that the kernel chose."""
        return self._handshakes.listening

    async def start(self) -> None:
        """Listen. Raises `InUse` if another process has the port, and `OSError` if no process can have it."""
        self._loop = asyncio.get_running_loop()
        self._handshakes.start(await bind(*self._listen, self.resolvers))
        self._watcher = self.spawn(self._watch())

    async def close(self) -> None:
        """Say goodbye to all peers and release the port. Afterwards no callback is called. A second call does
        nothing."""
        if self._closing:
            return
        self._closing = True
        for task in (self._watcher, self._renewal):
            if task is not None:
                task.cancel()
        for dialer in self._dialers.values():
            dialer.stop()
        self._handshakes.close()
        await asyncio.sleep(0)  # let the connections be closed that it has delivered
        await self._close_connections()
        self._report_downs()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.resolvers.shutdown(cancel_futures=True, seconds=self.timing.handshake_seconds)

    def set_peers(self, peers: Mapping[str, Sequence[str]]) -> None:
        """Set the peers to dial: node id -> addresses ("host:port"), which are tried in turn. The address of the last
        link is tried first. Our own id is left out.

        If a peer is not in `peers` any more, its link and its dial end. If the address of a dial is not in `peers` any
        more, the dial ends. A link stays although its address is not in `peers`, because it was made with that very
        manager. Raises `ValueError` for a bad address, and for a peer without addresses.
        """
        places = {id_: _places(addresses) for id_, addresses in peers.items() if id_ != self.node_id}
        for peer_id in self._dialers.keys() - places.keys():
            self._dialers.pop(peer_id).stop()
            self._hang_up_on(peer_id)
        for peer_id, wanted in places.items():
            dialer = self._dialers.get(peer_id)
            is_linked = peer_id in self._links
            if dialer is not None and (is_linked or dialer.place in wanted):
                dialer.set_places(wanted)
                continue
            if dialer is not None:
                dialer.stop()
                self._hang_up_on(peer_id)
            self._dialers[peer_id] = _Dialer(self, peer_id, wanted, busy=is_linked)

    def send(self, link: int, message: Message) -> None:
        """Send a message, in the order of its lane (raft/lanes.py). Never blocks.

        Does nothing if the link has ended. If too many bytes of the link are unsent, the link is dropped instead. The
        messages of one turn of the loop leave together at its end, or at `flush`, as far as the link's window allows.
        """
        connection = self._by_number.get(link)
        if connection is None:
            return
        connection.queue(message)

    def cancel(self, link: int, number: int) -> None:
        """Do not send the rest of the message in the BULK lane that has this `number`."""
        connection = self._by_number.get(link)
        if connection is not None:
            connection.cancel(number)

    def flush(self) -> None:
        """Give the messages of `send` to the kernel now, not at the end of the loop's turn."""
        if not self.unflushed:
            return
        connections, self.unflushed = self.unflushed, []
        self._encoded = (None, b"")
        for connection in connections:
            connection.flush()

    def buffered_bytes(self, link: int) -> int:
        """The bytes that were sent on a link and that the kernel has not taken yet; 0 if the link has ended."""
        connection = self._by_number.get(link)
        return 0 if connection is None else connection.buffered_bytes()

    def close_link(self, link: int, reason: str) -> None:
        """Drop a link; `reason` is for the log. If the other end is one of our peers, it is dialled again."""
        connection = self._by_number.get(link)
        if connection is not None:
            connection.close(LinkEnd.CLOSED, reason)

    def set_credentials(self, credentials: Credentials) -> None:
        """Use these credentials for connections from now on. Links that are up are made again, one at a time.

        Only for a transport that was made with credentials: links do not change from plaintext to TLS at run time.
        """
        if self._handshakes.credentials is None:
            raise InvariantViolation("new credentials for links that are plaintext")
        self._handshakes.credentials = credentials
        if self._renewal is not None:
            self._renewal.cancel()
        self._renewal = self.spawn(self._renew_links())

    # Called by connections (connection.Owner).

    def greeting(self) -> bytes:
        """Our hello, as a frame."""
        ours = {
            "type": "hello",
            "magic": PROTOCOL_MAGIC,
            "protocol": list(PROTOCOL_VERSIONS),
            "node_id": self.node_id,
        }
        frame = encode({**self._hello(), **ours})
        if len(frame) > HANDSHAKE_MESSAGE_BYTES:
            raise InvariantViolation(f"our hello has {len(frame)} bytes, over the limit of {HANDSHAKE_MESSAGE_BYTES}")
        return frame

    def judge(self, connection: Connection) -> Refusal | None:
        """The reason why the peer of a connection is refused; None if it is let in."""
        refusal = _judge_protocol(connection.hello)
        if refusal is None:
            refusal = self._judge_identity(connection)
        return refusal or self._judge(connection.hello, connection.identity)

    def settle(self, connection: Connection) -> None:
        """Both sides accepted. Make the connection the link to its peer, unless another link stays."""
        assert connection.peer_id is not None
        older = self._current.get(connection.peer_id)
        if older is not None and self._keeps(older, connection):
            connection.close(LinkEnd.SUPERSEDED, "another link to the same peer came first")
            return
        if older is not None:
            older.close(LinkEnd.SUPERSEDED, "a newer link took its place")
        self._report_downs()
        self._bring_up(connection.peer_id, connection)

    def refused(self, connection: Connection, refusal: Refusal) -> None:
        """A peer refuses us. The receiver of `on_refused` raises an alarm, which has a log line of its own."""
        identity = connection.identity
        who = identity.node_id if identity is not None else connection.peer_id or connection.host
        self._on_refused(who, refusal, identity)
        if connection.expected_id not in (None, who):  # a refused dialler gets no hello, which would name the manager
            assert connection.expected_id is not None
            self._on_not_reached(connection.expected_id, f"{who} answers there", None)

    def ended(self, connection: Connection) -> None:
        """A connection has ended. Forget its link now. Report the end in the next turn of the loop, when no caller is
        in the middle of a step."""
        if connection.up_at is None:
            self._say_failed(connection)
            return
        assert connection.peer_id is not None
        del self._by_number[connection.link]
        del self._links[connection.peer_id]
        del self._current[connection.peer_id]
        self._unreported.append(connection)
        self._loop.call_soon(self._report_downs)
        dialer = self._dialers.get(connection.peer_id)
        if dialer is not None:
            dialer.needed.set()

    def gone(self, connection: Connection) -> None:
        """The socket of a connection is closed, or was never open."""
        self._connections.pop(connection, None)
        if not self._connections:
            self._no_connections.set()

    def body_of(self, message: Message) -> bytes:
        """The message as CBOR. A leader sends the same message on several links, one after the other."""
        if self._encoded[0] is not message:
            self._encoded = message, encode_body(message)
        return self._encoded[1]

    def has_unsent(self, connection: Connection) -> None:
        """A connection has to be flushed in this turn of the loop."""
        if self._flushes_itself and not self.unflushed:
            self._loop.call_soon(self.flush)
        self.unflushed.append(connection)

    def may_hold(self, connection: Connection, size: int) -> bool:
        """Count `size` more bytes of unfinished messages on a connection. False if that is too much."""
        self._unfinished_bytes += size
        if size <= 0:
            return True
        if self._unfinished_bytes > MAX_UNFINISHED_BYTES:
            return False
        if connection.peer_id in self._dialers:
            return True
        of_guests = sum(each.held_bytes for each in self._connections if each.peer_id not in self._dialers)
        return of_guests <= MAX_GUESTS_UNFINISHED_BYTES

    # Called by dialers.

    def spawn(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        """Run `work` in the background. If it fails, the loop's exception handler is called."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    async def connect(self, peer_id: str, host: str, port: int) -> Connection:
        """A new connection to one address. Its handshake has begun. Raises `OSError`; HandshakeFailed is one."""
        connection = Connection(self, peer_id, time.monotonic)
        self._register(connection)
        self._know(peer_id, host)
        try:
            greeted = await self._handshakes.greet(await self._connected(host, port))
            if greeted.session is not None and greeted.identity is not None:
                connection.secure(greeted.session, greeted.identity)
            connection.open(self._loop, greeted.connected)
        except BaseException:
            connection.close(LinkEnd.CLOSED, "the dial was given up", abort=True)
            self.gone(connection)
            raise
        return connection

    async def _connected(self, host: str, port: int) -> socket.socket:
        flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        family, *_, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)[0]
        dialled = socket.socket(family, socket.SOCK_STREAM)
        try:
            dialled.setblocking(False)
            await self._loop.sock_connect(dialled, where)
        except BaseException:
            dialled.close()
            raise
        return dialled

    def dial_failed(self, peer_id: str, place: Place, error: OSError) -> None:
        """Log and report that a dial has failed."""
        if isinstance(error, HandshakeFailed):
            self._greeting_failed(peer_id, place, error)
            return
        reason = os.strerror(error.errno) if error.errno else str(error) or "no answer"
        where = format_address(place)
        self._say(peer_id, logging.INFO, "peer not reached", reason, peer=peer_id, address=where)
        self._on_not_reached(peer_id, NOTHING_LISTENS if isinstance(error, ConnectionRefusedError) else reason, None)

    def _greeting_failed(self, peer_id: str, place: Place, error: HandshakeFailed) -> None:
        where, text = format_address(place), str(error)
        self._say(peer_id, logging.WARNING, "link not made", text, peer=peer_id, address=where)
        if error.refused is not None:
            self._on_refused(peer_id, Refusal(error.refused, text), None)
        refusal = None if error.refuses is None else Refusal(error.refuses, text.removeprefix(WE_REFUSE))
        if error.node_id not in ("", peer_id):  # its certificate says nothing about the peer
            text, refusal = f"{error.node_id} answers there ({text})", None
        self._on_not_reached(peer_id, text, refusal)

    def _know(self, peer_id: str, host: str) -> None:
        """Remember the host of a peer, so that connections from there do not wait for those of strangers."""
        hosts = self._found.get(peer_id, frozenset())
        if host not in hosts:
            self._found = {id_: found for id_, found in self._found.items() if id_ in self._dialers}
            self._found[peer_id] = frozenset([*sorted(hosts)[: MAX_HOSTS_OF_A_PEER - 1], host])
            self._handshakes.known_hosts = frozenset().union(*self._found.values())

    def jitter(self, seconds: float) -> float:
        """A random pause between a half and the whole of `seconds`, so that managers that started together do not stay
        in step."""
        return seconds * self._random.uniform(0.5, 1.0)

    # Which connection counts.

    def _judge_identity(self, connection: Connection) -> Refusal | None:
        claimed, identity = connection.hello["node_id"], connection.identity
        if identity is not None and claimed != identity.node_id:
            return Refusal("certificate", f"it says that it is {claimed}, and its certificate is {identity.node_id}'s")
        if claimed == self.node_id:
            text = (
                f"{claimed} is the id of this manager too: two managers have it, or a member has this manager's address"
            )
            return Refusal("same_id", text)
        if connection.expected_id not in (None, claimed):
            text = f"the manager at {connection.address} is {claimed}, not {connection.expected_id}"
            if connection.expected_id is not None:
                self._on_not_reached(connection.expected_id, f"{claimed} answers there", None)
            return Refusal(WRONG_NODE, text)
        guests = self._links.keys() - self._dialers.keys()
        if len(guests) >= MAX_GUESTS and claimed not in guests and claimed not in self._dialers:
            return Refusal("guests", f"{len(guests)} managers that are not members have links already")
        return None

    def _keeps(self, older: Connection, newer: Connection) -> bool:
        """Whether an existing link to a peer stays although both sides accepted a newer connection.

        If we dialled the newer connection, it has no purpose, because there is a link. If the peer dialled it, the peer
        has no link: either ours is dead and we have not noticed, or the two dials crossed. Crossed dials would
        supersede each other, one at each end, and no link would be left. So the dial from the smaller id stays.
        """
        if newer.dialled:
            return True
        assert newer.peer_id is not None
        assert older.up_at is not None
        young = time.monotonic() - older.up_at < self.timing.crossing_seconds
        return older.dialled and young and self.node_id < newer.peer_id

    def _bring_up(self, peer_id: str, connection: Connection) -> None:
        number = next(_link_numbers)
        connection.come_up(number)
        self._by_number[number] = connection
        self._links[peer_id] = number
        self._current[peer_id] = connection
        dialer = self._dialers.get(peer_id)
        if dialer is not None:
            dialer.needed.clear()
        self._forget(peer_id)
        by = self.node_id if connection.dialled else peer_id
        self._say(peer_id, logging.INFO, "link up", peer=peer_id, address=connection.address, dialled_by=by)
        self._link_came.set()
        self._on_link_up(peer_id, number, connection.hello, connection.identity)

    def _report_downs(self) -> None:
        while self._unreported:
            connection = self._unreported.popleft()
            assert connection.peer_id is not None
            assert connection.end is not None
            who = connection.peer_id
            if connection.end is not LinkEnd.SUPERSEDED:
                self._say(who, logging.INFO, "link down", connection.why, peer=who, address=connection.address)
            self._on_link_down(who, connection.link, connection.end)

    def _hang_up_on(self, peer_id: str) -> None:
        """Close the peer's connections at once. Otherwise a handshake that runs could end with a link after this
        decision."""
        for connection in list(self._connections):
            if connection is self._current.get(peer_id) or connection.expected_id == peer_id:
                connection.close(LinkEnd.CLOSED, "the list of peers changed")

    def _register(self, connection: Connection) -> None:
        self._connections[connection] = None
        self._no_connections.clear()

    # Incoming connections.

    def _accepted(self, greeted: Greeted) -> None:
        """Take over a connection that was dialled by its peer. Under TLS the peer has proved its identity."""
        if self._closing:
            greeted.connected.close()
            return
        connection = Connection(self, None, time.monotonic)
        if greeted.session is not None and greeted.identity is not None:
            self._end_unfinished(greeted.identity.node_id)
            connection.secure(greeted.session, greeted.identity)
        connection.began_at = greeted.began_at
        self._make_room()
        self._register(connection)
        connection.open(self._loop, greeted.connected)

    def _end_unfinished(self, peer_id: str) -> None:
        """One unfinished connection for each id: a manager that dials again has given up its last dial."""
        for connection in list(self._connections):
            if connection.in_handshake and not connection.dialled and connection.peer_id == peer_id:
                connection.close(LinkEnd.SUPERSEDED, "a newer connection of the same manager", abort=True)

    def _make_room(self) -> None:
        unfinished = [c for c in self._connections if c.in_handshake and not c.dialled]
        if len(unfinished) >= MAX_UNFINISHED_INCOMING:
            unfinished[0].close(
                LinkEnd.CLOSED, "too many connections have an unfinished handshake: the oldest is closed", abort=True
            )

    # Time.

    async def _watch(self) -> None:
        """Check every connection in time, at most four times in each ping interval. If this process itself did not
        run, excuse the silence of the peers."""
        shortest = pause = self.timing.ping_seconds / 4
        looked_at = time.monotonic()
        while True:
            await asyncio.sleep(pause)
            now = time.monotonic()
            away = now - looked_at >= pause + self.timing.away_seconds
            looked_at = now
            for connection in list(self._connections):
                if away:
                    connection.excuse(now)
                    continue
                try:
                    connection.check(now)
                except Exception as error:  # noqa: BLE001 - it costs its link, and the others are still watched
                    self._broke(connection, error)
            check_at = min((connection.check_at for connection in self._connections), default=now)
            pause = min(max(shortest, check_at - now), self.timing.ping_seconds)

    async def _close_connections(self) -> None:
        """Close all connections, with a bounded time in which the last bytes leave."""
        for abort in (False, True):
            for connection in list(self._connections):
                try:
                    connection.close(LinkEnd.CLOSED, "this manager is closing", abort=abort)
                except Exception as error:  # noqa: BLE001 - it costs its goodbye, and the others are still closed
                    self._broke(connection, error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.timing.handshake_seconds):
                    await self._no_connections.wait()

    def _broke(self, connection: Connection, error: Exception) -> None:
        """Our own fault in one connection: the connection ends, and the loop's exception handler is called."""
        self._loop.call_exception_handler({"message": "a link could not be looked after", "exception": error})
        connection.close(LinkEnd.CLOSED, f"an error in this manager: {error!r}", abort=True)

    async def _renew_links(self) -> None:
        for connection in list(self._current.values()):
            if connection.end is not None or connection.peer_id is None:
                continue
            self._link_came.clear()
            connection.close(LinkEnd.CLOSED, "this manager has new certificates")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RENEWAL_SECONDS):
                    while connection.peer_id not in self._links:
                        await self._link_came.wait()
                        self._link_came.clear()

    # The log.

    def _say(self, subject: str, level: int, what: str, text: str = "", **keys: Any) -> None:
        self._log.say(subject, level, what, text, **keys)

    def _forget(self, subject: str) -> None:
        self._log.forget(subject)

    def _say_failed(self, connection: Connection) -> None:
        """Log that a handshake has failed. The same failure from another port of the same host is not logged again."""
        if self._closing or connection.end in (LinkEnd.GOODBYE, LinkEnd.SUPERSEDED):
            return  # refused, or given up for another link: these have log lines of their own
        if not connection.connected:
            return  # a dial that failed has a log line of its own too
        who = connection.peer_id or connection.host
        self._say(
            who,
            logging.WARNING,
            "link not made",
            connection.why,
            peer=who,
            address=connection.address,
            source=connection.host,
            is_stranger=connection.identity is None,
        )

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # An error of the network costs a link. But without this task no link is watched, dialled or renewed.
            failure = InvariantViolation(f"a task of the links ended: {error!r}")
            failure.__cause__ = error
            self._loop.call_exception_handler({"message": "a task of the transport failed", "exception": failure})


class _Dialer:
    """Dials one peer while there is no link to it: its addresses in turn, with growing pauses between the rounds."""

    def __init__(self, transport: Transport, peer_id: str, places: tuple[Place, ...], *, busy: bool) -> None:
        self.places = places
        """The addresses of the peer. The address at `_next` is dialled next; after a link it is the link's address."""
        self.place = places[0]
        """The address that is dialled now, or was dialled last."""
        self.needed = asyncio.Event()
        if not busy:
            self.needed.set()
        self._transport = transport
        self._peer_id = peer_id
        self._next = 0
        self._task = transport.spawn(self._run())

    def set_places(self, places: tuple[Place, ...]) -> None:
        """Use these addresses from the next dial on, which begins with the first address if they have changed."""
        if places != self.places:
            self.places, self._next = places, 0

    def stop(self) -> None:
        """Dial no more. The connection of the last dial belongs to the transport."""
        self._task.cancel()

    async def _run(self) -> None:
        failures = rounds = 0
        while True:
            while not self.needed.is_set():  # the event may be cleared again before the waiting task runs
                await self.needed.wait()
            places, self.place = self.places, self.places[self._next]
            if await self._dial(self.place):
                failures = rounds = 0
                continue
            failures += 1
            if places == self.places:
                self._next = (self._next + 1) % len(places)
            if failures >= len(self.places):
                failures, rounds = 0, rounds + 1
                await asyncio.sleep(self._transport.jitter(self._pause_seconds(rounds)))

    def _pause_seconds(self, rounds: int) -> float:
        timing = self._transport.timing
        doublings = min(rounds - 1, 30)  # the longest pause is reached long before
        return min(timing.retry_first_seconds * 2.0**doublings, timing.retry_last_seconds)

    async def _dial(self, place: Place) -> bool:
        """Dial once, and wait for the end of the connection. Whether it was a link for long enough."""
        try:
            async with asyncio.timeout(self._transport.timing.handshake_seconds):
                connection = await self._connect(place)
        except OSError as error:  # TimeoutError is one
            self._transport.dial_failed(self._peer_id, place, error)
            return False
        await connection.over.wait()
        return connection.lived_seconds() >= self._transport.timing.retry_last_seconds

    async def _connect(self, place: Place) -> Connection:
        """Try each address of the host. Raises ConnectionRefusedError only if all addresses refuse the connection."""
        errors: list[OSError] = []
        for host, port in await resolve(*place, self._transport.resolvers):
            try:
                return await self._transport.connect(self._peer_id, host, port)
            except OSError as error:
                errors.append(error)
        raise next((e for e in errors if not isinstance(e, ConnectionRefusedError)), errors[0])


def _places(addresses: Sequence[str]) -> tuple[Place, ...]:
    if not addresses:
        raise ValueError("a peer has no address")
    return tuple(parse_address(address) for address in addresses)


def _is_node_id(value: object) -> bool:
    try:
        check_node_id(value)
    except InvalidConfig:
        return False
    return True


def _judge_protocol(hello: Message) -> Refusal | None:
    node_id, versions = hello.get("node_id"), hello.get("protocol")
    if hello.get("magic") != PROTOCOL_MAGIC or not _is_node_id(node_id):
        return Refusal("protocol", "the peer's hello is not a warren_raft hello")
    if not (isinstance(versions, list) and [type(v) for v in versions] == [int, int]):
        return Refusal("protocol", "the hello names no range of protocol versions")
    oldest, newest = PROTOCOL_VERSIONS
    if versions[0] > newest or versions[1] < oldest:
        theirs = f"{versions[0]} to {versions[1]}"
        text = (
            f"no common protocol version: {node_id} has {theirs}, and the manager that refuses it {oldest} to {newest}"
        )
        return Refusal("protocol", text)
    return None
