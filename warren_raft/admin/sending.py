"""A snapshot over the admin socket: the server's side of `snapshot save`.

Taking and verifying it is the manager's matter; only its bytes are sent here. Invariant: it is sent whole or the
connection ends early, it takes no name on the manager's disk, and a receiver that stands still is given up.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Final

from aiohttp import web

from warren_raft.errors import InUse
from warren_raft.log_lines import log_event

log = logging.getLogger(__name__)

SNAPSHOT_TYPE: Final = "application/vnd.warren-raft.snapshot"
CHUNK_BYTES: Final = 256 * 1024
STALL_SECONDS: Final = 60.0  # without a chunk taken: the receiver was stopped, or its disk hangs
MAX_SENDERS: Final = 2  # each holds as much disk as the state has


class Senders:
    """Counts those that are under way. For `with`, in the event loop."""

    def __init__(self) -> None:
        self._count = 0

    def __enter__(self) -> None:
        if self._count == MAX_SENDERS:
            raise InUse("the manager", f"is sending {MAX_SENDERS} snapshots already")
        self._count += 1

    def __exit__(self, *_exception: object) -> None:
        self._count -= 1


async def send_file(request: web.Request, descriptor: int) -> web.StreamResponse:
    """Send what the descriptor has, all of it; where that fails, the connection ends, which tells the receiver."""
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
            raise OSError(f"the file has {position} bytes and not {size}")
        async with asyncio.timeout(STALL_SECONDS):
            await response.write(chunk)
        position += len(chunk)
    await response.write_eof()
