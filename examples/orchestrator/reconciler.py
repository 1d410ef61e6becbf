"""The reconciler: each service gets the containers that it should have, also after a change of the service.

`plan` decides, `reconcile` writes. A container goes through these states:

    created (no node) -> placed by the scheduler -> running -> told to shut down -> shut down -> record deleted

A record is deleted only when its worker says that the container has stopped, or when its node is down. So the number of
records is never smaller than the number of containers that managers may have to count with.
"""

from __future__ import annotations

import logging
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import warren_raft as wr
from warren_raft import ContainerState, NodeStatus

logger = logging.getLogger(__name__)

BATCH_MAX = 100  # changes of a service in one pass: one command has at most 4 MiB


@dataclass
class Plan:
    """The next step of one service, and the revisions of all that it was decided by."""

    service_id: str
    service: wr.Service | None
    create: int = 0
    stop: list[wr.Container] = field(default_factory=list)
    remove: list[wr.Container] = field(default_factory=list)
    lost_nodes: dict[str, int] = field(default_factory=dict)
    """The revision of each node whose containers are given up; 0 if there is no such node."""


def plan(service: wr.Service, containers: Sequence[wr.Container], nodes: Mapping[str, wr.Node]) -> Plan:
    """The next step. After a change of the service, at most `update_config.parallelism` containers are replaced at a
    time: `max_surge` of them are started before an old one stops, the others are stopped first.

    There are never more than `replicas + max_surge` records, except after `replicas` was lowered.
    """
    remove = [each for each in containers if _is_gone(each, nodes)][:BATCH_MAX]
    there = [each for each in containers if not _is_gone(each, nodes)]
    wanted = [each for each in there if each.desired_state == ContainerState.RUNNING]
    new = [each for each in wanted if _is_up_to_date(each, service, nodes)]
    old = [each for each in wanted if not _is_up_to_date(each, service, nodes)]
    new.sort(key=lambda each: not _is_running(each))  # too many: those that do not run yet are stopped first
    kept, too_many = new[: service.replicas], new[service.replicas :]

    update = service.update_config or wr.UpdateConfig()
    at_once = max(update.parallelism, 1)
    surge = min(max(update.max_surge, 0), at_once) if old else 0
    missing = min(service.replicas - len(new), service.replicas + surge - (len(containers) - len(remove)))

    must_run = service.replicas - (at_once - surge)
    spare = sum(map(_is_running, kept + old)) - must_run
    useless = [each for each in old if not _is_running(each)]
    useful = [each for each in old if _is_running(each)]
    return Plan(
        service.id,
        service,
        create=min(max(missing, 0), BATCH_MAX),
        stop=(too_many + useless + useful[: max(spare, 0)])[:BATCH_MAX],
        remove=remove,
        lost_nodes=_lost_nodes(containers, nodes),
    )


def _is_gone(container: wr.Container, nodes: Mapping[str, wr.Node]) -> bool:
    if not container.node_id:
        return container.desired_state == ContainerState.SHUTDOWN  # no worker has ever seen it
    has_ended = container.actual_state not in ("", ContainerState.PENDING, ContainerState.RUNNING)
    return has_ended or _is_lost(container.node_id, nodes)


def _is_lost(node_id: str, nodes: Mapping[str, wr.Node]) -> bool:
    return node_id not in nodes or nodes[node_id].status == NodeStatus.DOWN


def _lost_nodes(containers: Sequence[wr.Container], nodes: Mapping[str, wr.Node]) -> dict[str, int]:
    lost = {each.node_id for each in containers if each.node_id and _is_lost(each.node_id, nodes)}
    return {node_id: nodes[node_id].revision if node_id in nodes else 0 for node_id in lost}


def _is_up_to_date(container: wr.Container, service: wr.Service, nodes: Mapping[str, wr.Node]) -> bool:
    node = nodes.get(container.node_id)
    is_moving = node is not None and node.status == NodeStatus.DRAINING
    return not is_moving and container.image == service.image and container.env == service.env


def _is_running(container: wr.Container) -> bool:
    return container.actual_state == ContainerState.RUNNING


def plans(view: wr.View) -> list[Plan]:
    """The next step of each service that needs one."""
    nodes = {node.id: node for node in view.list_nodes()}
    services = {service.id: service for service in view.list_services()}
    containers = defaultdict(list)
    for container in view.list_containers():
        containers[container.service_id].append(container)
    found = [plan(service, containers.pop(service.id, ()), nodes) for service in services.values()]
    # The others belong to no service: somebody deleted one without its containers.
    found += [Plan(service_id, None, remove=each[:BATCH_MAX]) for service_id, each in containers.items()]
    return [each for each in found if each.create or each.stop or each.remove]


async def reconcile(store: wr.Store, lead: wr.AsyncLead) -> None:
    """One pass: one command for each service, so that a conflict in one does not delay the others."""
    with store.read() as view:
        todo = plans(view)
    for step in todo:
        await carry_out(step, lead)


async def carry_out(step: Plan, lead: wr.AsyncLead) -> None:
    """In one command. If that is too large, as much of it as fits: a command has at most 4 MiB."""
    try:
        async with lead.batch() as batch:
            write(step, batch)
    except wr.RevisionConflict:
        pass  # something changed meanwhile; that change has woken the next pass
    except wr.InvalidEntity as error:
        if step.create > 1 or (step.create and (step.stop or step.remove)):
            await carry_out(replace(step, create=step.create // 2), lead)
        elif len(step.stop) > 1:
            await carry_out(replace(step, stop=step.stop[: len(step.stop) // 2]), lead)
        else:  # one container is too large, for instance: the other services go on
            logger.error("service %s stays as it is: %s", step.service_id, error)


def write(step: Plan, batch: wr.AsyncBatch | wr.Batch) -> None:
    """The changes of one step, and the conditions under which it is still right."""
    if step.service is None:
        batch.require("service", step.service_id, 0)
    else:
        # Without this, a service that was deleted a moment ago would leave containers behind.
        batch.require("service", step.service_id, step.service.revision)
        for _ in range(step.create):
            batch.create_container(_new_container(step.service), if_revision=0)
    for node_id, revision in step.lost_nodes.items():
        # Without this, the containers of a node that came back a moment ago would be given up.
        batch.require("node", node_id, revision)
    for each in step.remove:
        batch.delete_container(each.id, if_revision=each.revision)
    for each in step.stop:
        # Without if_revision, this would overwrite a worker's report with the older state that this pass has read.
        stopped = replace(each, desired_state=ContainerState.SHUTDOWN)
        batch.update_container(stopped, if_revision=each.revision)


def _new_container(service: wr.Service) -> wr.Container:
    return wr.Container(
        id=f"{service.id}-{uuid.uuid4().hex[:12]}",
        service_id=service.id,
        service_name=service.name,
        image=service.image,
        env=service.env,
        desired_state=ContainerState.RUNNING,
        actual_state=ContainerState.PENDING,
    )
