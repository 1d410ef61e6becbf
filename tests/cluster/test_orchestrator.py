"""The orchestrator of examples/ keeps its promise on real processes, while managers die and freeze.

The promise: a service never has more containers than `replicas` and the surplus of its update. It is judged at every
revision, by a watch over HTTP that goes on at another manager when its own is killed or frozen. A faithful port of
Warren's loops, which act on every manager that believes it leads, had twice the containers within the hour.
"""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.cluster.harness import PROJECT, WAIT_SECONDS, free_ports
from warren_raft.certificates.ca import Authority

MANAGERS, WORKERS = ("m1", "m2", "m3"), ("w1", "w2")
ANSWER_SECONDS = 3.0
"""A manager that does not answer for so long is asked no more for the moment: it may be frozen."""
AGAIN_SECONDS = 0.05
PR_SET_PDEATHSIG = 1


class Orchestrator:
    """The processes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        ports = iter(free_ports(2 * len(MANAGERS)))
        members = {id_: f"127.0.0.1:{next(ports)}" for id_ in MANAGERS}
        self.apis = {id_: f"127.0.0.1:{next(ports)}" for id_ in MANAGERS}
        for join in Authority.create(directory / "ca").issue(members):
            join.write(directory / f"{join.node_id}.join")
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, *ids: str) -> None:
        for id_ in ids:
            command = [sys.executable, "-m", "examples.orchestrator", *self._options(id_)]
            with open(self.log_of(id_), "ab") as log:
                self._processes[id_] = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=PROJECT, preexec_fn=_die_with_parent
                )

    def _options(self, id_: str) -> list[str]:
        if id_ in WORKERS:
            return ["worker", f"--id={id_}", *(f"--manager=http://{api}" for api in self.apis.values())]
        files = [f"--data-dir={self._directory / id_}", f"--join={self._directory / id_}.join"]
        return ["manager", f"--id={id_}", f"--api={self.apis[id_]}", *files]

    def log_of(self, id_: str) -> Path:
        return self._directory / f"{id_}.log"

    def signal(self, number: signal.Signals, *ids: str) -> None:
        for id_ in ids:
            os.kill(self._processes[id_].pid, number)

    def ended(self, *ids: str) -> list[int]:
        """The exit codes, when they have ended."""
        return [self._processes.pop(id_).wait(WAIT_SECONDS) for id_ in ids]

    def destroy(self) -> None:
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Observer:
    """Follows services and containers at every revision. Calls the API as a user does, at any manager that answers."""

    def __init__(self, orchestrator: Orchestrator, session: aiohttp.ClientSession) -> None:
        self._orchestrator = orchestrator
        self._session = session
        self.entities: dict[str, dict[str, Any]] = {}
        self._revision = 0
        self._news = asyncio.Condition()
        self.judged = 0
        """The number of revisions that were judged."""

    async def follow(self) -> None:
        for api in itertools.cycle(self._orchestrator.apis.values()):
            try:
                await self._follow_at(api)
            except (aiohttp.ClientError, TimeoutError):
                await asyncio.sleep(AGAIN_SECONDS)

    async def _follow_at(self, api: str) -> None:
        parameters = [("kind", "service"), ("kind", "container"), ("since", str(self._revision))]
        timeout = aiohttp.ClientTimeout(total=None, sock_read=ANSWER_SECONDS)
        pending = self._revision
        async with self._session.get(f"http://{api}/watch", params=parameters, timeout=timeout) as stream:
            async for line in stream.content:
                event = json.loads(line)
                if event["revision"] > pending > self._revision:
                    await self._judge(pending)  # all events of `pending` have come
                pending = event["revision"]
                if event["operation"] == "put":
                    self.entities[event["kind"] + event["id"]] = event["entity"]
                elif event["operation"] == "delete":
                    self.entities.pop(event["kind"] + event["id"], None)
                elif pending > self._revision:
                    await self._judge(pending)

    async def _judge(self, revision: int) -> None:
        containers = self.of("container")
        allowed = 0
        for service in self.of("service"):
            is_updating = any(each["image"] != service["image"] for each in containers)
            allowed += service["replicas"] + (service["update_config"]["max_surge"] if is_updating else 0)
        assert len(containers) <= allowed, f"{len(containers)} containers at revision {revision}; {allowed} are wanted"
        self.judged += 1
        async with self._news:
            self._revision = revision
            self._news.notify_all()

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [each for key, each in self.entities.items() if key.startswith(kind)]

    def running(self, image: str, *nodes: str) -> int | None:
        """How many containers run; None if there is one with another image, on another node, or not running."""
        found = self.of("container")
        is_right = all(
            each["image"] == image and each["actual_state"] == "running" and each["node_id"] in (nodes or WORKERS)
            for each in found
        )
        return len(found) if is_right else None

    async def until(self, condition: Callable[[], bool]) -> None:
        async with self._news, asyncio.timeout(WAIT_SECONDS):
            await self._news.wait_for(condition)

    async def call(self, method: str, path: str, **body: Any) -> Any:
        """At any manager, until one answers."""
        async with asyncio.timeout(WAIT_SECONDS):
            for api in itertools.cycle(self._orchestrator.apis.values()):
                try:
                    async with self._session.request(method, f"http://{api}{path}", json=body) as answer:
                        return await answer.json()
                except (aiohttp.ClientConnectionError, aiohttp.ClientResponseError, TimeoutError):
                    await asyncio.sleep(AGAIN_SECONDS)
        raise AssertionError("`cycle` does not end")

    async def leader(self, *, not_: str | None = None, seen_by: str | None = None) -> str:
        """The leader that a manager names, as soon as it is another one than `not_`."""
        async with asyncio.timeout(WAIT_SECONDS):
            for id_ in itertools.cycle([seen_by] if seen_by else [each for each in MANAGERS if each != not_]):
                try:
                    async with self._session.get(f"http://{self._orchestrator.apis[id_]}/status") as answer:
                        status = await answer.json()
                    if status["ready"] and status["leader"] not in (None, not_):
                        return str(status["leader"])
                except (aiohttp.ClientConnectionError, TimeoutError):
                    pass
                await asyncio.sleep(AGAIN_SECONDS)
        raise AssertionError("`cycle` does not end")


@pytest.fixture
def orchestrator(tmp_path: Path) -> Iterator[Orchestrator]:
    made = Orchestrator(tmp_path)
    try:
        yield made
    finally:
        made.destroy()


@pytest.mark.slow
def test_there_are_never_more_containers_than_wanted(orchestrator: Orchestrator) -> None:
    orchestrator.start(*MANAGERS, *WORKERS)
    asyncio.run(observed(orchestrator))
    orchestrator.signal(signal.SIGTERM, *MANAGERS, "w1")
    assert orchestrator.ended(*MANAGERS, "w1") == [0, 0, 0, 0]
    for id_ in (*MANAGERS, *WORKERS):
        assert "Traceback" not in orchestrator.log_of(id_).read_text()


async def observed(orchestrator: Orchestrator) -> None:
    timeout = aiohttp.ClientTimeout(ANSWER_SECONDS)
    async with aiohttp.ClientSession(timeout=timeout, raise_for_status=True) as session:
        observer = Observer(orchestrator, session)
        async with asyncio.TaskGroup() as group:
            following = group.create_task(observer.follow())
            await scenario(orchestrator, observer)
            following.cancel()
    assert observer.judged > 50


async def scenario(orchestrator: Orchestrator, observer: Observer) -> None:
    update = {"parallelism": 2, "max_surge": 1}
    await observer.call("PUT", "/services/web", name="web", image="web:1", replicas=4, update_config=update)
    await observer.until(lambda: observer.running("web:1") == 4)

    # The leader is killed, and there is work at that moment.
    killed = await observer.leader()
    await observer.call("PATCH", "/services/web", replicas=6)
    orchestrator.signal(signal.SIGKILL, killed)
    assert orchestrator.ended(killed) == [-signal.SIGKILL]
    await observer.until(lambda: observer.running("web:1") == 6)
    orchestrator.start(killed)

    # The next leader is frozen in the middle of an update. Another one goes on with it, and then the frozen one wakes.
    frozen = await observer.leader(seen_by=killed)  # it is back: there is a quorum without the frozen one
    await observer.call("PATCH", "/services/web", image="web:2")
    await observer.until(lambda: any(each["image"] == "web:2" for each in observer.of("container")))
    orchestrator.signal(signal.SIGSTOP, frozen)
    assert await observer.leader(not_=frozen)
    await observer.until(lambda: observer.running("web:2") == 6)
    orchestrator.signal(signal.SIGCONT, frozen)
    assert await observer.leader(seen_by=frozen)

    # Another update, and then a node fails.
    await observer.call("PATCH", "/services/web", image="web:3", replicas=7)
    await observer.until(lambda: observer.running("web:3") == 7)
    orchestrator.signal(signal.SIGKILL, "w2")
    assert orchestrator.ended("w2") == [-signal.SIGKILL]
    await observer.until(lambda: observer.running("web:3", "w1") == 7)
