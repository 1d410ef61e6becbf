"""The Large cluster: 500 nodes, 1,000 services and 10,000 containers on three managers, beside their load generator.

    python benchmarks/large_cluster.py [--minutes 30] [--json FILE] [--directory DIR]
    python benchmarks/large_cluster.py --plain-heartbeats     the same, with heartbeats as plain writes, to compare

Each of three manager processes is a program that embeds a store: scheduler, reconciler and a port for nodes and users
(large_manager.py). Links are TLS. This process is the nodes and the users. It holds three connections, which the nodes
share; each heartbeat and each report is a call of its own. The marks: the managers use at most one core together, a
pass of the scheduler takes at most 0.5 s, the p99 of a write is at most 50 ms, there is no election, and no node is
called down too early.

The load, all of it evenly spread:
- each node beats every 5 s, with a ttl of 15 s, and follows its containers with a watch
- the scheduler makes a pass every 5 s, the reconciler every 10 s, on the manager that leads
- the metrics of each manager are scraped every 15 s
- a container fails every 2 s (each container every 5.5 hours), and is replaced
- a service gets another image every 20 s (a rolling update of its ten containers), another one gets 8 to 12 replicas
- a node dies every 2 minutes (each node every 17 hours). It comes back after 45 s. Its containers are replaced.

With `--plain-heartbeats` a heartbeat is a write for the node and one for each of its 20 containers: 2,100 writes a
second. A node sends no heartbeat before the last one is answered, so the rate says how much the managers can take.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import common
import machine
from common import cpu_seconds, data_directory, rss_anon, sync_ms
from large_manager import TTL_SECONDS, Manager, Times, node_id, service_id
from writes import converged

REPLICAS = 10
BEAT_SECONDS = 5.0
SCRAPE_SECONDS = 15.0
FAIL_SECONDS, UPDATE_SECONDS, SCALE_SECONDS, DEATH_SECONDS = 2.0, 20.0, 20.0, 120.0
AWAY_SECONDS = 45.0
START_SECONDS = 0.5
"""How long the pretended start or stop of a container takes."""
AGAIN_SECONDS = 1.0
SEED = 12
MIB = 2**20
WRITES = ("report", "user", "scheduler", "reconciler", "heartbeat")
CORES_MARK, PASS_MARK_MS, WRITE_MARK_MS = 1.0, 500.0, 50.0
SHOWN = {
    "cores_managers": "cores, managers together",
    "cores_of_each_manager": "",
    "leader": "",
    "cores_load_generator": "",
    "writes_per_second": "",
    "heartbeats_per_second": "",
    "elections": "",
    "early_expiries": "living nodes called down too early",
    "late_beats": "living nodes called down after late beats",
    "down_seconds_after_last_beat": "dead nodes called down, s after the last beat",
    "log_entries_per_second": "",
    "files_written_mib": "written to files by the managers, MiB",
    "log_mib": "a manager's log before and after, MiB",
    "directories_mib": "data directories before and after, MiB",
    "anonymous_memory_mib": "anonymous memory before, after and at most, MiB",
    "conflicts": "batches with a conflict, decided again later",
    "failed": "calls that failed",
    "passes_without_a_majority": "",
    "happened": "",
    "same_state_on_all": "same state on all managers",
}
"""The lines of the table behind its first part, and their labels if these are not the names."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--plain-heartbeats", action="store_true", help="each heartbeat is plain writes")
    parser.add_argument("--nodes", type=int, default=500)
    parser.add_argument("--services", type=int, default=1000, help=f"each has {REPLICAS} containers")
    parser.add_argument("--json", help="write the figures into this file too")
    parser.add_argument("--directory", help="the directory for the data: it decides which disk is measured")
    parser.add_argument("--manager", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.manager:
        Manager(json.loads(given.manager)).run()
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the managers and the directory go too
    with data_directory(given.directory) as directory:
        figures = measure(Path(directory), given)
    print(table(figures))
    if given.json:
        Path(given.json).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if not all(mark["is_met"] for mark in figures["marks"].values()):
        sys.exit(1)


# The managers --------------------------------------------------------------------------------------------------------


class Cluster(common.Cluster):
    def __init__(self, directory: Path, *, plain_heartbeats: bool) -> None:
        ids = [f"m{n}" for n in range(1, 4)]
        ports = common.free_ports(2 * len(ids))
        self.ports = dict(zip(ids, ports, strict=False))
        self._metrics = dict(zip(ids, ports[len(ids) :], strict=True))
        self._plain = plain_heartbeats
        super().__init__(__file__, directory, len(ids))

    def launch(self, id_: str) -> common.Process:
        settings = {"node_id": id_, "data_dir": str(self.directory / id_), "listen": self.addresses[id_]}
        more = {"members": self.addresses, "metrics_listen": f"127.0.0.1:{self._metrics[id_]}"}
        more |= {"port": self.ports[id_], "plain_heartbeats": self._plain}
        self.managers[id_] = common.Process(__file__, settings | more)
        return self.managers[id_]

    def cpu(self) -> dict[str, float]:
        return {id_: cpu_seconds([manager.popen.pid]) for id_, manager in self.managers.items()}

    def memory(self) -> dict[str, int]:
        return {id_: rss_anon(manager.popen.pid) for id_, manager in self.managers.items()}

    def written(self) -> int:
        """Bytes that the managers have written to files, log and state. (`write_bytes` says far more: for a record in
        the log it counts the whole folio of the page cache, which may be 2 MiB.)"""
        return sum(_written(pid) for pid in self.pids())

    def on_disk(self) -> int:
        """The bytes that the data directories take, with segments of the log that are prepared."""
        total = 0
        for folder, _, names in os.walk(self.directory):
            for name in names:
                with suppress(FileNotFoundError):  # removed meanwhile
                    total += Path(folder, name).stat().st_blocks * 512
        return total

    async def scrape(self, id_: str) -> bool:
        """Whether the manager gave its metrics."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._metrics[id_])
        try:
            writer.write(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")
            return b"warren_raft_term" in await reader.read()
        finally:
            writer.close()


def _written(pid: int) -> int:
    """The bytes that the process has given to write(2) and its kin. `write_bytes` counts the whole folio of a page that
    becomes dirty: up to 2 MiB for 4 KiB on a Linux 6.16 or newer."""
    with open(f"/proc/{pid}/io", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("wchar"))


class Link(asyncio.Protocol):
    """The connection with one manager. `heard` gets each event."""

    def __init__(self, heard: Callable[..., None]) -> None:
        self._heard = heard
        self._rest = b""
        self._waiting = dict[int, asyncio.Future[str | None]]()
        self._number = 0
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def connection_lost(self, _error: Exception | None) -> None:
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(ConnectionError("a manager ended"))

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            first, *others = json.loads(line)
            if isinstance(first, str):
                self._heard(first, *others)
            elif not (waiting := self._waiting.pop(first)).done():
                waiting.set_result(others[0])

    async def call(self, operation: str, *arguments: Any) -> str | None:
        """The name of the error; None: there was none."""
        if self._transport.is_closing():
            raise ConnectionError("a manager ended")
        self._number += 1
        self._transport.write(json.dumps([self._number, operation, *arguments]).encode() + b"\n")
        answer = self._waiting[self._number] = asyncio.get_running_loop().create_future()
        return await answer

    def close(self) -> None:
        self._transport.close()


# The nodes and the users ---------------------------------------------------------------------------------------------


class Node:
    """A machine that runs containers and beats, until it dies."""

    def __init__(self, number: int, link: Link) -> None:
        self.id, self.link = node_id(number), link
        self.running = set[str]()
        self.is_away = False
        self.lives = 0
        self.beaten_at = 0.0
        """When the last beat that was answered was sent."""
        self.gap = 0.0
        """The time between that beat and the one before."""


class Load:
    def __init__(self, cluster: Cluster, nodes: int, services: int) -> None:
        self._cluster, self._count, self._services = cluster, nodes, services
        self._links: list[Link] = []
        self._nodes: dict[str, Node] = {}
        self._random = random.Random(SEED)
        self._tasks = set[asyncio.Task[None]]()
        self._begun = 0.0
        self.took = defaultdict[str, Times](Times)
        self.counted = Counter[str]()
        self.failed = Counter[str]()
        self.down_after: list[float] = []
        self.peak: dict[str, int] = cluster.memory()

    async def run(self, seconds: float, report: Callable[[], None]) -> None:
        """The load for so long. `report` is called each minute."""
        loop = asyncio.get_running_loop()
        for port in self._cluster.ports.values():
            _, link = await loop.create_connection(lambda: Link(self._hear), "127.0.0.1", port)
            self._links.append(link)
        for number in range(self._count):
            node = Node(number, self._links[number % len(self._links)])
            self._nodes[node.id] = node
            await node.link.call("follow", node.id)
        await self._links[0].call("follow nodes")
        self._begun = time.monotonic()
        for number, node in enumerate(self._nodes.values()):
            self._begin(self._beat(node, number * BEAT_SECONDS / self._count))
        for every, first, act in (
            (FAIL_SECONDS, 1.0, self._fail),
            (UPDATE_SECONDS, 2.0, self._update),
            (SCALE_SECONDS, 12.0, self._scale),
            (DEATH_SECONDS, 5.0, self._die),
        ):
            self._begin(self._act(every, first, act))
        self._begin(self._scrape())
        try:
            while (left := self._begun + seconds - time.monotonic()) > 0:
                done, _ = await asyncio.wait(self._tasks, timeout=min(left, 60.0), return_when="FIRST_EXCEPTION")
                for task in done:
                    task.result()
                report()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for link in self._links:
                link.close()

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        """A task that failed stays, for `run`."""
        if task.cancelled() or task.exception() is None:
            self._tasks.discard(task)

    async def _call(self, kind: str, link: Link, *call: Any) -> str | None:
        begin = time.monotonic()
        error = await link.call(*call)
        self.took[kind].note(time.monotonic() - begin)
        if error not in (None, "NotFound"):
            self.failed[f"{kind}: {error}"] += 1
        return error

    # Nodes -----------------------------------------------------------------------------------------------------------

    async def _beat(self, node: Node, first: float) -> None:
        due = self._begun + first
        while True:
            await asyncio.sleep(due - time.monotonic())
            if not node.is_away:
                sent = time.monotonic()
                error = await self._call("beat", node.link, "beat", node.id)
                if error is not None:  # to another manager, as docs/heartbeats.md says
                    other = self._links[(self._links.index(node.link) + 1) % len(self._links)]
                    error = await self._call("beat", other, "beat", node.id)
                if error is None:
                    node.gap, node.beaten_at = sent - node.beaten_at, sent
                    self.counted["beats"] += 1
            due = max(due + BEAT_SECONDS, time.monotonic())

    def _hear(self, id_: str, operation: str, *data: Any) -> None:
        node = self._nodes[id_]
        if operation == "status":
            if data[0] == "down":
                self._hear_down(node)
        elif node.is_away:
            return
        elif operation == "all":
            node.running.clear()
            for each in data[0]:
                self._settle(node, *each)
        elif operation == "put":
            self._settle(node, *data)
        else:
            node.running.discard(data[0])

    def _hear_down(self, node: Node) -> None:
        """If beats came in time, none of them may be younger than its ttl. (The beat before may have been the one that
        ended, but then it was too early as well.)"""
        after = time.monotonic() - node.beaten_at
        if node.is_away and after >= TTL_SECONDS:
            self.down_after.append(after)
        elif after < TTL_SECONDS and node.gap < TTL_SECONDS:
            self.counted["early expiries"] += 1
        else:
            self.counted["late beats"] += 1

    def _settle(self, node: Node, id_: str, desired: str, actual: str) -> None:
        if desired == "running" and actual == "running":
            node.running.add(id_)
        elif desired == "running" and actual in ("", "pending"):
            self._begin(self._report(node, id_, "running", START_SECONDS))
        elif desired == "shutdown" and actual in ("", "pending", "running"):
            node.running.discard(id_)
            self._begin(self._report(node, id_, "shutdown", START_SECONDS))

    async def _report(self, node: Node, container: str, state: str, after: float = 0.0) -> None:
        lives = node.lives
        await asyncio.sleep(after)
        while node.lives == lives and not node.is_away:
            if await self._call("report", node.link, "report", node.id, container, state) in (None, "NotFound"):
                return
            await asyncio.sleep(AGAIN_SECONDS)

    # What happens ----------------------------------------------------------------------------------------------------

    async def _act(self, every: float, first: float, act: Callable[[], Coroutine[Any, Any, None]]) -> None:
        due = self._begun + first
        while True:
            await asyncio.sleep(due - time.monotonic())
            self._begin(act())
            due += every

    async def _fail(self) -> None:
        node = self._random.choice([each for each in self._nodes.values() if each.running and not each.is_away])
        container = self._random.choice(sorted(node.running))
        node.running.discard(container)
        self.counted["containers failed"] += 1
        await self._report(node, container, "failed")

    async def _update(self) -> None:
        self.counted["services updated"] += 1
        await self._change({"image": f"nginx:1.25.{self.counted['services updated']}"})

    async def _scale(self) -> None:
        self.counted["services scaled"] += 1
        await self._change({"replicas": self._random.randint(REPLICAS - 2, REPLICAS + 2)})

    async def _change(self, changes: dict[str, Any]) -> None:
        service = service_id(self._random.randrange(self._services))
        await self._call("user", self._random.choice(self._links), "change", service, changes)

    async def _die(self) -> None:
        node = self._random.choice([each for each in self._nodes.values() if not each.is_away])
        self.counted["nodes died"] += 1
        node.is_away = True
        node.lives += 1
        node.running.clear()
        await node.link.call("unfollow", node.id)
        await asyncio.sleep(AWAY_SECONDS)
        node.is_away = False
        await node.link.call("follow", node.id)

    async def _scrape(self) -> None:
        while True:
            for id_ in self._cluster.managers:
                begin = time.monotonic()
                if not await self._cluster.scrape(id_):
                    self.failed["scrape"] += 1
                self.took["scrape"].note(time.monotonic() - begin)
            self.peak = {id_: max(size, self.peak[id_]) for id_, size in self._cluster.memory().items()}
            await asyncio.sleep(SCRAPE_SECONDS)


# The figures ---------------------------------------------------------------------------------------------------------


def measure(directory: Path, given: argparse.Namespace) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "machine": machine.facts(),
        "heartbeats": "plain writes" if given.plain_heartbeats else "in memory",
        "nodes": given.nodes,
        "services": given.services,
        "containers": given.services * REPLICAS,
        "minutes": given.minutes,
        "fdatasync_p50_ms": sync_ms(directory),
    }
    with machine.Quiet() as quiet, Cluster(directory, plain_heartbeats=given.plain_heartbeats) as cluster:
        cluster.call_all("ready")
        leader, _ = cluster.leader_and_follower()
        cluster.managers[leader].call("fill_cluster", given.nodes, given.services, REPLICAS)
        cluster.call_all("barrier")
        figures |= run(cluster, given.minutes * 60, given.nodes, given.services)
        figures["same_state_on_all"] = converged(cluster)
    figures["disturbed"] = quiet.said()
    figures["marks"] = marks(figures)
    return figures


def run(cluster: Cluster, seconds: float, nodes: int, services: int) -> dict[str, Any]:
    """Runs the load, and measures."""
    load = Load(cluster, nodes, services)
    states, memory, on_disk, written = cluster.call_all("state"), cluster.memory(), cluster.on_disk(), cluster.written()
    cluster.call_all("begin")
    begin, cpu, own = time.monotonic(), cluster.cpu(), time.process_time()
    before = cpu

    def report() -> None:
        nonlocal before
        now = cluster.cpu()
        used = sum(now.values()) - sum(before.values())
        before = now
        took = time.monotonic() - begin
        print(f"{took:6.0f} s: {load.counted['beats']} beats, the managers used {used:.2f} s more", file=sys.stderr)

    asyncio.run(load.run(seconds, report))
    took = time.monotonic() - begin
    cores = {id_: round((used - cpu[id_]) / took, 4) for id_, used in cluster.cpu().items()}
    own = time.process_time() - own
    states_after, memory_after = cluster.call_all("state"), cluster.memory()
    counted, late, every = load.counted, load.down_after, Times()
    conflicts = unavailable = 0
    for each in cluster.call_all("figures"):
        for name, times in each["took"].items():
            load.took[name].add(*times)
        conflicts += each.get("conflicts", 0)
        unavailable += each.get("unavailable", 0)
    for name in WRITES:
        every.add(load.took[name].counts, load.took[name].longest)
    terms = [max(state["term"] for state in each) for each in (states, states_after)]
    entries = [max(state["applied_index"] for state in each) for each in (states, states_after)]
    return {
        "seconds": round(took, 1),
        "cores_managers": round(sum(cores.values()), 4),
        "cores_of_each_manager": cores,
        "leader": next((state["node_id"] for state in states_after if state["leads"]), None),
        "cores_load_generator": round(own / took, 4),
        "writes_per_second": round(every.counts.total() / took, 2),
        "write": every.summary(),
        **{kind: load.took[kind].summary() for kind in WRITES},
        "scheduler_pass": load.took["scheduler pass"].summary(),
        "reconciler_pass": load.took["reconciler pass"].summary(),
        "scrape": load.took["scrape"].summary(),
        "beat": load.took["beat"].summary(),
        "heartbeats_per_second": round(counted["beats"] / took, 1),
        "elections": terms[1] - terms[0],
        "early_expiries": counted["early expiries"],
        "late_beats": counted["late beats"],
        "down_seconds_after_last_beat": [round(min(late), 2), round(max(late), 2)] if late else [],
        "log_entries_per_second": round((entries[1] - entries[0]) / took, 2),
        "files_written_mib": round((cluster.written() - written) / MIB, 1),
        "log_mib": [round(max(state["log_bytes"] for state in each) / MIB, 1) for each in (states, states_after)],
        "directories_mib": [round(size / MIB, 1) for size in (on_disk, cluster.on_disk())],
        "anonymous_memory_mib": {
            id_: [round(size / MIB, 1) for size in (memory[id_], after, max(after, load.peak[id_]))]
            for id_, after in memory_after.items()
        },
        "conflicts": conflicts,
        "failed": dict(load.failed),
        "passes_without_a_majority": unavailable,
        "happened": {name: counted[name] for name in counted if name.startswith(("containers", "services", "nodes"))},
    }


def marks(figures: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name, value, most in (
        ("managers together, cores", figures["cores_managers"], CORES_MARK),
        ("scheduler pass max, ms", figures["scheduler_pass"]["max_ms"], PASS_MARK_MS),
        ("write p99, ms", figures["write"]["p99_ms"], WRITE_MARK_MS),
        ("elections", figures["elections"], 0),
        ("early expiries", figures["early_expiries"], 0),
    ):
        found[name] = {"value": value, "at_most": most, "is_met": value <= most}
    return found


def table(figures: dict[str, Any]) -> str:
    about, heads = figures["machine"], ("count", "p50_ms", "p99_ms", "max_ms")
    lines = [
        f"{figures['nodes']} nodes, {figures['services']} services, {figures['containers']} containers; "
        f"{figures['seconds']:g} s; heartbeats: {figures['heartbeats']}",
        f"{about['processor']}, {about['cores']} cores, Python {about['python']}, "
        f"fdatasync {figures['fdatasync_p50_ms']} ms",
        figures["disturbed"] or "other programs used next to nothing",
        "",
        f"{'':<28}{'count':>10}{'p50 ms':>10}{'p99 ms':>10}{'max ms':>10}",
    ]
    for name, row in figures.items():
        if isinstance(row, dict) and "p50_ms" in row and row["count"]:
            shown = {"beat": "heartbeat call"}.get(name, f"write: {name}" if name in WRITES else name.replace("_", " "))
            lines.append(f"{shown:<28}" + "".join(f"{row[head]:>10}" for head in heads))
    lines.append("")
    for name, shown in SHOWN.items():
        lines.append(f"{shown or name.replace('_', ' '):<48}{figures[name]}")
    lines.append("")
    for name, mark in figures["marks"].items():
        lines.append(
            f"{name:<26}{mark['value']:>10} {common.verdict(mark['is_met'], 'at most ' + str(mark['at_most']))}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
