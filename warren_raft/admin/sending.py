"""A snapshot over the admin socket: the server's side of `snapshot save`.

Here: sending the bytes. Not here: taking and verifying the snapshot. Invariant: the whole snapshot is sent, or the
connection ends early. The file has no name on the manager's disk. A receiver that does not read on is dropped.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Final

from aiohttp import web

from warren_raft.errors import InUse
from warren_raft.support.log_lines import log_event

log = logging.getLogger(__name__)

SNAPSHOT_TYPE: Final = "application/vnd.warren-raft.snapshot"
CHUNK_BYTES: Final = 256 * 1024
STALL_SECONDS: Final = 60.0  # the longest time for one chunk; a slower receiver is suspended, or its disk hangs
MAX_SENDERS: Final = 2  # each uses as much disk space as the state


class Senders:
    """Counts the snapshots that are being sent. For `with`, in the event loop."""

    def __init__(self) -> None:
        self._count = 0

    def __enter__(self) -> None:
        if self._count == MAX_SENDERS:
            raise InUse("the manager", f"is sending {MAX_SENDERS} snapshots already")
        self._count += 1

    def __exit__(self, *_exception: object) -> None:
        self._count -= 1


async def send_file(request: web.Request, descriptor: int) -> web.StreamResponse:
    """Send the whole file of the descriptor. If that fails, the connection ends, so that the receiver notices."""
    size = os.fstat(descriptor).st_size
    response = web.StreamResponse(headers={"Content-Type": SNAPSHOT_TYPE, "Content-Length": str(size)})
    await response.prepare(request)
    try:
        await _send(response, descriptor, size)
    except OSError as error:  # a TimeoutError too
        log_event(log, logging.WARNING, "snapshot sent in part", error, error=type(error).__name__)
        if request.transport is not None:
            request.transport.abort()
    return response


async def _send(response: web.StreamResponse, descriptor: int, size: int) -> None:
    position = 0
    while position < size:
        chunk = os.pread(descriptor, CHUNK_BYTES, position)
        if not chunk:
            raise OSError(f"the file has {position} bytes, not {size}")
        async with asyncio.timeout(STALL_SECONDS):
            await response.write(chunk)
        position += len(chunk)
    await response.write_eof()
