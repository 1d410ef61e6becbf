"""The agent of one node: it sends heartbeats, follows the containers of its node, and "runs" them.

It knows managers only by their HTTP API, and uses one at a time. If anything fails with that one (the connection, a
heartbeat, a silent watch), it goes to the next. Its containers run on meanwhile.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import signal
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import aiohttp

import warren_raft as wr
from warren_raft import ContainerState

logger = logging.getLogger(__name__)

BEAT_SECONDS = 2.0  # three in the ttl of the API
ANSWER_SECONDS = 2.0  # then this manager is taken for dead
SILENCE_SECONDS = 3.0  # a watch says something each second
AGAIN_SECONDS = 0.2
START_SECONDS = 0.05  # how long the pretended start of a container takes
LINE_BYTES = 2 * 1024 * 1024  # one entity is at most 1 MiB


async def run(node_id: str, managers: list[str]) -> None:
    """Until SIGTERM or SIGINT. The node is down when its ttl has passed."""
    worker = Worker(node_id)
    agent = asyncio.ensure_future(worker.work_for(managers))

    def stop() -> None:
        worker.is_stopping = True
        agent.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    await asyncio.wait([agent])
    if not agent.cancelled():
        agent.result()


class Worker:
    def __init__(self, node_id: str) -> None:
        self._id = node_id
        self._running: set[str] = set()
        self.is_stopping = False
        """A TaskGroup loses a cancellation that comes while one of its tasks fails (Python 3.11 and 3.12), and managers
        are often stopped together with their workers."""

    async def work_for(self, managers: list[str]) -> None:
        for manager in itertools.cycle(managers):
            try:
                timeout = aiohttp.ClientTimeout(ANSWER_SECONDS)
                async with aiohttp.ClientSession(
                    manager, timeout=timeout, raise_for_status=True, read_bufsize=LINE_BYTES
                ) as session:
                    await _ask(session.put(f"/nodes/{self._id}"))
                    async with asyncio.TaskGroup() as group:  # if one of the two fails, both end
                        group.create_task(self._beat(session))
                        group.create_task(self._follow(session))
            except* (aiohttp.ClientError, TimeoutError) as errors:
                logger.info("leaves %s: %s", manager, [f"{type(each).__name__}: {each}" for each in errors.exceptions])
            if self.is_stopping:
                return
            await asyncio.sleep(AGAIN_SECONDS)

    async def _beat(self, session: aiohttp.ClientSession) -> None:
        while True:
            await _ask(session.post(f"/nodes/{self._id}/heartbeat"))
            await asyncio.sleep(BEAT_SECONDS)

    async def _follow(self, session: aiohttp.ClientSession) -> None:
        """The stream begins with all containers of this node. So it does not matter that changes were missed."""
        there: set[str] | None = set()
        async for event in _events(session, self._id):
            if event["operation"] == "put":
                container = wr.from_json(wr.Container, event["entity"])
                await self._settle(session, container)
                if there is not None:
                    there.add(container.id)
            elif event["operation"] != "bookmark":  # deleted, or moved to another node
                self._stop(event["id"])
            elif there is not None:  # the first bookmark: that was everything
                for container_id in self._running - there:
                    self._stop(container_id)
                there = None

    async def _settle(self, session: aiohttp.ClientSession, container: wr.Container) -> None:
        """Bring one container to its wanted state, and report that. Doing it twice does no harm."""
        if container.desired_state == ContainerState.RUNNING:
            await self._start(container)
            state = ContainerState.RUNNING
        else:
            self._stop(container.id)
            state = ContainerState.SHUTDOWN
        if container.actual_state == state:
            return
        report = {"node": self._id, "state": state}
        async with session.put(f"/containers/{container.id}/state", json=report, raise_for_status=False) as answer:
            if answer.status != 404:  # deleted or moved meanwhile: the watch says so next
                answer.raise_for_status()

    # A real agent calls its container runtime here. The runtime is not fenced: it does what the store says.

    async def _start(self, container: wr.Container) -> None:
        if container.id not in self._running:
            await asyncio.sleep(START_SECONDS)
            self._running.add(container.id)
            logger.info("started %s (%s)", container.id, container.image)

    def _stop(self, container_id: str) -> None:
        if container_id in self._running:
            self._running.remove(container_id)
            logger.info("stopped %s", container_id)


async def _ask(request: AbstractAsyncContextManager[aiohttp.ClientResponse]) -> None:
    """Wait for the answer. A status that is not 2xx is raised (`raise_for_status`)."""
    async with request:
        return


async def _events(session: aiohttp.ClientSession, node_id: str) -> AsyncIterator[dict[str, Any]]:
    timeout = aiohttp.ClientTimeout(total=None, sock_read=SILENCE_SECONDS)
    async with session.get("/watch", params={"node": node_id}, timeout=timeout) as stream:
        async for line in stream.content:
            yield json.loads(line)
    raise aiohttp.ClientPayloadError("the watch ended")
