"""One manager process: the store, the scheduler, the reconciler and the HTTP API in one asyncio loop."""

from __future__ import annotations

import asyncio
import logging
import signal

from aiohttp import web

import warren_raft as wr

from .api import Api
from .leading import while_leading
from .reconciler import reconcile
from .scheduler import schedule

logger = logging.getLogger(__name__)

LAST_REQUESTS_SECONDS = 5.0  # for requests that are being answered when the manager stops


async def run(config: wr.Config, api_address: str) -> None:
    """Until SIGTERM or SIGINT. If the store stops by itself (`Closed`), the process ends with a traceback: a supervisor
    starts it again, and another manager leads meanwhile."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    store = await asyncio.to_thread(wr.ReplicatedStore, config)  # opening reads files, so not in the loop
    try:
        await _serve(store, api_address, stop)
    finally:
        await store.aio.close()  # hands leadership over, so the others need not wait for an election timeout
    logger.info("stopped")


async def _serve(store: wr.Store, api_address: str, stop: asyncio.Event) -> None:
    runner = web.AppRunner(Api(store).application(), access_log=None, shutdown_timeout=LAST_REQUESTS_SECONDS)
    await runner.setup()
    try:
        host, _, port = api_address.rpartition(":")
        await web.TCPSite(runner, host, int(port)).start()
        async with asyncio.TaskGroup() as group:
            loops = [group.create_task(while_leading(store, each)) for each in (schedule, reconcile)]
            await stop.wait()
            await runner.cleanup()  # first: no new requests, and the present ones are answered
            for loop in loops:
                loop.cancel()
    finally:
        await runner.cleanup()
