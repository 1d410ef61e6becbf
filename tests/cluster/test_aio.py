"""The promise: a program with one event loop works with managers through `store.aio` while leadership moves and
managers close. Nothing that was acknowledged is lost, each write is once, and a lead that is over writes nothing.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping

import pytest

import warren_raft as wr
from warren_raft.testing import Cluster

DEADLINE = 120.0
TASKS = 32


async def lead_later(store: wr.ReplicatedStore, leading: asyncio.Task[wr.AsyncLead]) -> int:
    """Write a service as the leader of a later term. Leadership may move once more, if the machine is busy."""
    lead = await leading
    while True:
        try:
            await lead.create_service(wr.Service(id="t"))
        except wr.LeadershipLost:
            if await store.aio.wait_leader(DEADLINE) != store.config.node_id:
                await asyncio.to_thread(store.transfer_leadership, store.config.node_id, timeout=DEADLINE)
            lead = await store.aio.leading(DEADLINE).__aenter__()
        else:
            return lead.term


def test_one_loop_writes_watches_and_leads_while_leadership_moves() -> None:
    async def main(stores: Mapping[str, wr.ReplicatedStore]) -> None:
        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(*[store.aio.wait_ready(DEADLINE) for store in stores.values()])
            leading = {id_: asyncio.create_task(stores[id_].aio.leading().__aenter__()) for id_ in stores}
            done, _ = await asyncio.wait(leading.values(), return_when=asyncio.FIRST_COMPLETED)
            lead = done.pop().result()
            first = next(id_ for id_, task in leading.items() if task.done())
            watched = next(id_ for id_ in stores if id_ != first)
            events = stores[watched].aio.watch(kinds={"container"})
            await stores[first].aio.create_service(wr.Service(id="s"))

            stop = asyncio.Event()
            acknowledged: list[tuple[int, str]] = []

            async def write(number: int, store: wr.ReplicatedStore) -> None:
                turn = 0
                while not stop.is_set():
                    id_ = f"c-{number}-{turn}"
                    revision = await store.aio.create_container(wr.Container(id=id_), timeout=math.inf, if_revision=0)
                    acknowledged.append((revision, id_))
                    turn += 1

            writers = [asyncio.create_task(write(n, list(stores.values())[n % 3])) for n in range(TASKS)]
            second = await asyncio.to_thread(stores[first].transfer_leadership, timeout=DEADLINE)
            assert await lead.wait_over(DEADLINE)
            with pytest.raises(wr.LeadershipLost):
                await lead.create_service(wr.Service(id="stale"))
            assert await lead_later(stores[second], leading[second]) > lead.term
            before = len(acknowledged)
            while len(acknowledged) < before + 10 * TASKS:  # noqa: ASYNC110  the tasks have no bell
                await asyncio.sleep(0.01)
            stop.set()
            await asyncio.gather(*writers)

            revision = await stores[first].aio.barrier(DEADLINE)
            seen: list[tuple[int, str]] = []
            while len(seen) < len(acknowledged):
                seen += [(event.revision, event.id) for event in await events.take(DEADLINE)]
            assert seen == sorted(acknowledged)
            assert events.revision <= revision
            assert {container.id for container in stores[first].list_containers()} == {id_ for _, id_ in seen}
            assert [service.id for service in stores[first].list_services()] == ["s", "t"]

            waiting = asyncio.create_task(anext(events))
            for task in leading.values():
                task.cancel()
            await stores[watched].aio.close()
            with pytest.raises(wr.Closed):
                await waiting

            for store in stores.values():
                await store.aio.close()

    with Cluster(timeout_seconds=DEADLINE) as cluster:
        asyncio.run(main(dict(cluster.stores)))
