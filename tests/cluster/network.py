"""The network between the managers of a Cluster. Every link goes through here, and can be cut, held in one direction,
or slow.

A manager process dials through `dial_through`, which names the dialling and the dialled manager; one thread then
carries the bytes of all directions. Faults hold bytes back and never lose them, like TCP; a dial waits until both
directions are open. Invariant: a direction without a fault passes bytes and their end on at once; a refused dial is
refused to the manager that dialled.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

T = TypeVar("T")

CHUNK_BYTES: Final = 65_536
PACKET_BYTES: Final = 4_096
"""With a limited speed, a chunk arrives in packets of this size."""
CHUNKS_HELD: Final = 64
"""A direction in which nothing moves takes this many chunks before its sender has to wait: 4 MiB, like a network's
buffers."""
CONNECTED, REFUSED = b"+", b"-"
CALL_SECONDS: Final = 20.0
BACKLOG: Final = 100


@dataclass(eq=False)
class Way:
    """One direction between two managers."""

    open: asyncio.Event = field(default_factory=asyncio.Event)
    delay_seconds: float = 0.0
    bytes_per_second: float = 0.0
    """0: no limit."""
    free_at: float = 0.0
    """With a limited speed: when all bytes before have left."""
    carried_bytes: int = 0

    async def pass_on(self, arrived: float, size: int) -> None:
        """Wait until a chunk that arrived at this time is through. A network does not wait for a processor: if this
        task was late, the next chunks are through earlier."""
        now = asyncio.get_running_loop().time
        while True:
            if not self.open.is_set():
                await self.open.wait()
                arrived = now() - self.delay_seconds
            due = arrived + self.delay_seconds
            if now() >= due:
                break
            await asyncio.sleep(due - now())
        if self.bytes_per_second:
            self.free_at = max(due, self.free_at) + size / self.bytes_per_second
            if self.free_at > now():
                await asyncio.sleep(self.free_at - now())
            await self.open.wait()
        self.carried_bytes += size


class Network:
    """The directions between managers, by (from, to). `id_at` finds the manager that listens at an address. Methods are
    for any thread; a fault is in force when its method returns."""

    def __init__(self, id_at: Callable[[str], str]) -> None:
        self._id_at = id_at
        self._ways: dict[tuple[str, str], Way] = {}
        self._dials: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="network", daemon=True)
        self._thread.start()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._do(lambda: self._loop.add_reader(self._listener, self._accept))

    def close(self) -> None:
        """End all connections, and the thread."""
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CALL_SECONDS)
        self._loop.close()

    def hold(self, ways: Iterable[tuple[str, str]]) -> None:
        """No byte gets through these directions any more, until `heal`."""

        def do() -> None:
            for pair in ways:
                self._way(*pair).open.clear()

        self._do(do)

    def slow(self, ways: Iterable[tuple[str, str]], *, delay_seconds: float = 0, bytes_per_second: float = 0) -> None:
        def do() -> None:
            for pair in ways:
                way = self._way(*pair)
                way.delay_seconds, way.bytes_per_second = delay_seconds, bytes_per_second

        self._do(do)

    def heal(self) -> None:
        """All directions are open and fast again; held bytes arrive now."""

        def do() -> None:
            for way in self._ways.values():
                way.delay_seconds = way.bytes_per_second = way.free_at = 0.0
                way.open.set()

        self._do(do)

    def carried_bytes(self, sender: str, receiver: str) -> int:
        """The bytes that went in this direction so far."""
        return self._do(lambda: self._way(sender, receiver).carried_bytes)

    # In the thread.

    def _do(self, action: Callable[[], T]) -> T:
        async def run() -> T:
            return action()

        return self._run(run())

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(CALL_SECONDS)

    async def _end(self) -> None:
        self._loop.remove_reader(self._listener)
        self._listener.close()
        for dial in self._dials:
            dial.cancel()
        await asyncio.gather(*self._dials, return_exceptions=True)

    def _way(self, sender: str, receiver: str) -> Way:
        if (sender, receiver) not in self._ways:
            way = self._ways[sender, receiver] = Way()
            way.open.set()
        return self._ways[sender, receiver]

    def _accept(self) -> None:
        """Accept connections. asyncio.start_server is not used: if it is closed while a connection comes in, it leaves
        that connection open."""
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            link, _ = self._listener.accept()
            dial = self._loop.create_task(self._dialled(link))
            self._dials.add(dial)
            dial.add_done_callback(self._dials.discard)
            dial.add_done_callback(lambda _: link.close())

    async def _dialled(self, link: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=link)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await self._serve(reader, writer)
        finally:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        dialler, address = (await reader.readuntil()).decode().split()
        peer = self._id_at(address)
        there, back = self._way(dialler, peer), self._way(peer, dialler)
        if not await self._open_before_given_up(there, back, reader):
            return
        host, _, port = address.rpartition(":")
        try:
            peer_reader, peer_writer = await asyncio.open_connection(host, int(port))
        except ConnectionRefusedError:
            writer.write(REFUSED)
            await writer.drain()
            return
        try:
            writer.write(CONNECTED)
            await _first_of(_carry(there, reader, peer_writer), _carry(back, peer_reader, writer))
        finally:
            peer_writer.transport.abort()

    @staticmethod
    async def _open_before_given_up(there: Way, back: Way, reader: asyncio.StreamReader) -> bool:
        """Wait until both directions are open. False: the dialling manager has hung up before. (It sends nothing before
        it is connected.)"""

        async def opened() -> bool:
            begin = asyncio.get_running_loop().time()
            await there.pass_on(begin, 0)
            await back.pass_on(asyncio.get_running_loop().time(), 0)
            return True

        async def given_up() -> bool:
            await reader.read(1)
            return False

        return await _first_of(opened(), given_up())


async def _first_of(*works: Coroutine[Any, Any, T]) -> T:
    """The result or the error of the coroutine that ends first; the others are cancelled."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return done.pop().result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _carry(way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry the bytes of one direction, and their end."""
    held: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(CHUNKS_HELD)
    now = asyncio.get_running_loop().time

    async def take_in() -> None:
        chunk = b"-"
        while chunk:
            chunk = await reader.read(CHUNK_BYTES)
            await held.put((now(), chunk))
        await asyncio.Event().wait()  # the other half ends both

    async def give_out() -> None:
        while True:
            arrived, chunk = await held.get()
            size = PACKET_BYTES if way.bytes_per_second else CHUNK_BYTES
            for at in range(0, len(chunk), size):
                packet = chunk[at : at + size]
                await way.pass_on(arrived, len(packet))
                writer.write(packet)
                await writer.drain()
            if not chunk:
                await way.pass_on(arrived, 0)
                break
        writer.close()
        await writer.wait_closed()

    await _first_of(take_in(), give_out())


def dial_through(port: int, dialler: str) -> None:
    """For a manager's process: all connections of its transport go through the Network at this port."""
    from warren_raft.raft.links.transport import Transport

    async def connected(_transport: Transport, host: str, peer_port: int) -> socket.socket:
        loop = asyncio.get_running_loop()
        link = socket.socket()
        try:
            link.setblocking(False)
            await loop.sock_connect(link, ("127.0.0.1", port))
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_sendall(link, f"{dialler} {host}:{peer_port}\n".encode())
            verdict = await loop.sock_recv(link, 1)
            if verdict != CONNECTED:
                raise ConnectionRefusedError("refused") if verdict == REFUSED else ConnectionResetError("hung up")
        except BaseException:
            link.close()
            raise
        return link

    Transport._connected = connected  # type: ignore[method-assign]
