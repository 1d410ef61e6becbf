"""The scheduler: each container without a node gets the ready node with the fewest containers."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import warren_raft as wr

logger = logging.getLogger(__name__)

BATCH_MAX = 100  # containers in one command


Choice = tuple[wr.Container, wr.Node]


def choose(containers: Iterable[wr.Container], nodes: Iterable[wr.Node]) -> list[Choice]:
    """Each waiting container and its node. Nothing but the arguments decides, so it is easy to test."""
    ready = [node for node in nodes if node.status == wr.NodeStatus.READY]
    load = Counter(container.node_id for container in containers)
    chosen = []
    for container in containers:
        is_waiting = not container.node_id and container.desired_state == wr.ContainerState.RUNNING
        if is_waiting and ready:
            node = min(ready, key=lambda node: load[node.id])
            load[node.id] += 1
            chosen.append((container, node))
    return chosen


async def schedule(store: wr.Store, lead: wr.AsyncLead) -> None:
    """One pass. The fence of `lead` keeps other schedulers out; the conditions are for everybody else who writes."""
    with store.read() as view:  # one moment of the state; closed before the first await
        chosen = choose(view.list_containers(), view.list_nodes())
    for start in range(0, len(chosen), BATCH_MAX):
        await place(lead, chosen[start : start + BATCH_MAX])


async def place(lead: wr.AsyncLead, chosen: list[Choice]) -> None:
    """In one command, or in more if that is too large: a command has at most 4 MiB."""
    try:
        async with lead.batch() as batch:
            write(chosen, batch)
    except wr.RevisionConflict:
        pass  # something changed meanwhile; that change has woken the next pass
    except wr.InvalidEntity as error:
        if len(chosen) == 1:  # with its node it is too large, for instance: the others go on
            logger.error("container %s gets no node: %s", chosen[0][0].id, error)
            return
        half = len(chosen) // 2
        await place(lead, chosen[:half])
        await place(lead, chosen[half:])


def write(chosen: list[Choice], batch: wr.AsyncBatch | wr.Batch) -> None:
    for container, node in chosen:
        # Without this, a container could be placed on a node that has just gone down.
        batch.require("node", node.id, node.revision)
        # Without if_revision, a container that was deleted a moment ago would be created again.
        batch.update_container(replace(container, node_id=node.id), if_revision=container.revision)
