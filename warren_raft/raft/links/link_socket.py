"""The socket of one connection in an asyncio loop: bytes in, bytes out, and its end.

Lives here: reading, writing, and the bytes that the kernel has not taken yet. Not here: the meaning of the bytes
(connection.py), and TLS. Invariant: `lost` is called exactly once, in a later turn of the loop, and the socket is
closed then.

asyncio's own transports do the same in three times as many steps. A write of one caller has four messages, and each
is read and written once.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from typing import Protocol

Buffer = bytes | bytearray | memoryview


class Receiver(Protocol):
    """The connection that a socket belongs to."""

    @property
    def incoming(self) -> memoryview:
        """The next bytes of the peer are read into this."""

    def received(self, count: int) -> None:
        """So many bytes are in `incoming`. If it raises, the connection is lost, and the loop's exception handler is
        called."""

    def lost(self, error: Exception | None) -> None:
        """The connection has ended. None: the peer has closed it, or this side."""


class LinkSocket:
    """`start` begins to read. For the loop's thread only."""

    def __init__(self, loop: asyncio.AbstractEventLoop, connected: socket.socket, receiver: Receiver) -> None:
        connected.setblocking(False)
        self.unsent_bytes = 0
        """The bytes that were written and that the kernel has not taken."""
        self._loop = loop
        self._socket = connected
        self._descriptor = connected.fileno()
        self._receiver = receiver
        self._unsent: deque[memoryview] = deque()
        self._reads = False
        self._is_held = False
        self._is_closing = False
        """No more bytes are read, and none are taken to be written."""
        self._is_over = False
        """`lost` is called soon, or was called."""
        try:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            self._end(error)

    @property
    def descriptor(self) -> int:
        """-1 after `lost`."""
        return self._socket.fileno()

    @property
    def peer_address(self) -> tuple[str, int] | None:
        """None if the peer has closed the connection already."""
        try:
            address: tuple[str, int] = self._socket.getpeername()
        except OSError:
            return None
        return address

    # Reading -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Read whenever there are bytes. Also after `pause`."""
        if not self._reads and not self._is_closing and not self._is_held:
            self._reads = True
            self._loop.add_reader(self._descriptor, self._read)

    def pause(self) -> None:
        """Read nothing until `start`."""
        if self._reads:
            self._reads = False
            self._loop.remove_reader(self._descriptor)

    def hold(self, is_held: bool) -> None:
        """Read nothing, whatever `start` is told, until this is called with False."""
        self._is_held = is_held
        if is_held:
            self.pause()
        else:
            self.start()

    def _read(self) -> None:
        receiver = self._receiver
        try:
            count = self._socket.recv_into(receiver.incoming)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._end(error)
            return
        if not count:
            self._end(None)  # the peer has ended: no byte that is unsent will arrive
            return
        try:
            receiver.received(count)
        except Exception as error:  # noqa: BLE001 - it goes to the loop's exception handler
            self._loop.call_exception_handler({"message": "a link's message was not taken", "exception": error})
            self._end(error)

    # Writing -----------------------------------------------------------------------------------------------------

    def write(self, data: Buffer) -> None:
        """Give bytes to the kernel, at once if it takes them."""
        if self._is_closing:
            return
        if not self._unsent:
            try:
                sent = self._socket.send(data)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError as error:
                self._end(error)
                return
            if sent == len(data):
                return
            data = memoryview(data)[sent:]
            self._loop.add_writer(self._descriptor, self._write_on)
        self._unsent.append(memoryview(data))
        self.unsent_bytes += len(data)

    def _write_on(self) -> None:
        """The kernel takes bytes again."""
        while self._unsent:
            first = self._unsent[0]
            try:
                sent = self._socket.send(first)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._end(error)
                return
            self.unsent_bytes -= sent
            if sent < len(first):
                self._unsent[0] = first[sent:]
                return
            self._unsent.popleft()
        self._loop.remove_writer(self._descriptor)
        if self._is_closing:
            self._end(None)

    # The end -----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End the connection when the kernel has taken all bytes."""
        if not self._is_closing:
            self.pause()
            self._is_closing = True
            if not self._unsent:
                self._end(None)

    def abort(self) -> None:
        """End the connection without the bytes that the kernel has not taken."""
        self._end(None)

    def fail(self, error: Exception) -> None:
        """End the connection like `abort`, because of this error of its owner."""
        self._end(error)

    def _end(self, error: Exception | None) -> None:
        if self._is_over:
            return
        self.pause()
        self._is_closing = self._is_over = True
        if self._unsent:
            self._unsent.clear()
            self.unsent_bytes = 0
            self._loop.remove_writer(self._descriptor)
        self._loop.call_soon(self._lose, error)

    def _lose(self, error: Exception | None) -> None:
        try:
            self._receiver.lost(error)
        finally:
            self._socket.close()
