"""The socket of a connection: every byte in order, one end, and nothing after it. In both loops that it runs in."""

from __future__ import annotations

import asyncio
import math
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from warren_raft.raft.links.link_socket import LinkSocket
from warren_raft.raft.step_loop import Bell, StepLoop

DEADLINE = 30.0


class Receiver:
    def __init__(self) -> None:
        self.incoming = memoryview(bytearray(1000))
        self.came = bytearray()
        self.ends: list[Exception | None] = []
        self.act: Callable[[], None] = lambda: None
        self.news = asyncio.Event()

    def received(self, count: int) -> None:
        self.came += self.incoming[:count]
        self.news.set()
        self.act()

    def lost(self, error: Exception | None) -> None:
        self.ends.append(error)
        self.news.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.news.clear()
            await self.news.wait()


class Rig:
    """A LinkSocket, which is started, and the other end of its connection."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.failures: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _, context: self.failures.append(context))
        with closing(socket.create_server(("127.0.0.1", 0))) as server:
            self.peer = socket.create_connection(server.getsockname())
            self.connected, _ = server.accept()
        self.peer.setblocking(False)
        self.receiver = Receiver()
        self.socket = LinkSocket(loop, self.connected, self.receiver)
        self.socket.start()

    def run(self, scene: Callable[[], Awaitable[None]]) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(DEADLINE):
                await scene()

        self.loop.run_until_complete(bounded())


@pytest.fixture(params=["asyncio", "step loop"])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    loop = asyncio.SelectorEventLoop() if request.param == "asyncio" else StepLoop(lambda: math.inf, Bell())
    with closing(loop):
        rig = Rig(loop)
        with rig.peer, rig.connected:
            yield rig


def test_all_bytes_arrive_in_order_although_the_kernel_takes_them_in_pieces(rig: Rig) -> None:
    data = bytes(range(256)) * 40_000

    async def scene() -> None:
        for at in range(0, len(data), 1_000_000):
            rig.socket.write(data[at : at + 1_000_000])
        assert 0 < rig.socket.unsent_bytes < len(data)
        came = bytearray()
        while len(came) < len(data):
            came += await rig.loop.sock_recv(rig.peer, 1 << 20)
        assert came == data
        assert rig.socket.unsent_bytes == 0
        rig.socket.write(b"and more")
        assert rig.socket.unsent_bytes == 0
        assert await rig.loop.sock_recv(rig.peer, 100) == b"and more"

    rig.run(scene)


def test_it_reads_what_comes_and_nothing_while_it_pauses(rig: Rig) -> None:
    async def scene() -> None:
        receiver = rig.receiver
        rig.receiver.act = lambda: rig.socket.pause() if len(receiver.came) == 1000 else None
        rig.peer.sendall(bytes(1500))
        await receiver.until(lambda: len(receiver.came) == 1000)
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(receiver.came) == 1000
        rig.socket.start()
        await receiver.until(lambda: len(receiver.came) == 1500)

    rig.run(scene)


def test_close_waits_for_the_last_bytes_and_abort_does_not(rig: Rig) -> None:
    async def scene() -> None:
        data = bytes(20_000_000)
        rig.socket.write(data)
        rig.socket.close()
        rig.socket.write(b"too late")
        assert rig.receiver.ends == []
        count = 0
        while chunk := await rig.loop.sock_recv(rig.peer, 1 << 20):
            count += len(chunk)
        assert count == len(data)
        await rig.receiver.until(lambda: rig.receiver.ends == [None])
        assert rig.socket.descriptor == -1
        rig.socket.abort()
        rig.socket.close()
        await asyncio.sleep(0)
        assert rig.receiver.ends == [None]

    rig.run(scene)


def test_abort_ends_it_at_once(rig: Rig) -> None:
    async def scene() -> None:
        rig.socket.write(bytes(20_000_000))
        rig.socket.abort()
        assert rig.socket.unsent_bytes == 0
        assert rig.receiver.ends == []  # in a later turn of the loop: the caller is in the middle of its work
        await rig.receiver.until(lambda: rig.receiver.ends == [None])
        assert rig.socket.descriptor == -1

    rig.run(scene)


@pytest.mark.parametrize("is_reset", [False, True])
def test_the_end_that_the_peer_makes(rig: Rig, is_reset: bool) -> None:
    async def scene() -> None:
        assert rig.socket.peer_address == rig.peer.getsockname()
        if is_reset:
            rig.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        rig.peer.close()
        await rig.receiver.until(lambda: len(rig.receiver.ends) == 1)
        assert [type(end) for end in rig.receiver.ends] == [ConnectionResetError if is_reset else type(None)]
        rig.socket.write(b"nobody reads this")
        await asyncio.sleep(0)
        assert len(rig.receiver.ends) == 1

    rig.run(scene)


def test_the_end_that_the_peer_makes_is_told_although_bytes_are_unsent(rig: Rig) -> None:
    """(Pins a fault: the connection waited for a peer that took no more bytes, and ended as silent seconds later.)"""

    async def scene() -> None:
        rig.socket.write(bytes(20_000_000))
        assert rig.socket.unsent_bytes
        rig.peer.shutdown(socket.SHUT_WR)
        await rig.receiver.until(lambda: rig.receiver.ends == [None])
        assert rig.socket.descriptor == -1

    rig.run(scene)


def test_an_error_in_the_connection_costs_it_and_is_told(rig: Rig) -> None:
    async def scene() -> None:
        def fail() -> None:
            raise ValueError("a bug")

        rig.receiver.act = fail
        rig.peer.sendall(b"x")
        await rig.receiver.until(lambda: len(rig.receiver.ends) == 1)
        assert isinstance(rig.receiver.ends[0], ValueError)
        assert [context["exception"] for context in rig.failures] == rig.receiver.ends

    rig.run(scene)
