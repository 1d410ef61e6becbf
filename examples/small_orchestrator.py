"""A small orchestrator in one file. Each manager is also a node, which pretends to run containers. In three terminals:

    python -m examples.small_orchestrator m1 m1=127.0.0.1:7981 m2=127.0.0.1:7982 m3=127.0.0.1:7983
    python -m examples.small_orchestrator m2 m1=127.0.0.1:7981 m2=127.0.0.1:7982 m3=127.0.0.1:7983
    python -m examples.small_orchestrator m3 m1=127.0.0.1:7981 m2=127.0.0.1:7982 m3=127.0.0.1:7983

In a fourth one:

    export WARREN_DATA_DIR=data/m1
    echo '{"id": "web", "name": "web", "image": "web:1", "replicas": 4}' | warren-raft put service -f -
    warren-raft list containers
    warren-raft delete service web --cascade
"""

from __future__ import annotations

import signal
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import warren_raft as wr
from warren_raft import ContainerState, NodeStatus

BEAT_SECONDS, TTL_SECONDS = 2.0, 6.0
QUIET_SECONDS = 5.0
BATCH_MAX = 1000  # changes of a kind in one command; the next pass follows at once


class Change(NamedTuple):
    verb: str  # create, delete or update
    container: wr.Container


def reconcile(store: wr.Store, lead: wr.Lead) -> None:
    """Each service gets as many containers as it should have. The ids may be random: this pass reads all that the
    passes before it did, also if a write was not answered in time (Unavailable)."""
    with store.read() as view:
        there = {node.id for node in view.list_nodes() if node.status != NodeStatus.DOWN}
        found = [(service, view.list_containers_by_service(service.id)) for service in view.list_services()]
    for service, containers in found:
        kept, removed = containers[: service.replicas], containers[service.replicas :]
        lost = [each for each in kept if each.node_id and each.node_id not in there]
        try:
            new = [new_container(service) for _ in range(min(service.replicas - len(containers), BATCH_MAX))]
            changes = [Change("create", each) for each in new]
            changes += [Change("delete", each) for each in removed[:BATCH_MAX]]
            changes += [Change("update", replace(each, node_id="", actual_state="")) for each in lost[:BATCH_MAX]]
            if changes:  # a batch with conditions only is a log entry too
                carry_out(lead, service, changes)
        except wr.RevisionConflict:
            pass  # the next pass decides again
        except wr.InvalidEntity as error:  # its id leaves no room for those of containers: the others go on
            print(f"service {service.id} stays as it is: {error}", file=sys.stderr)


def new_container(service: wr.Service) -> wr.Container:
    return wr.Container(id=f"{service.id}-{uuid.uuid4().hex[:12]}", service_id=service.id, image=service.image)


def carry_out(lead: wr.Lead, service: wr.Service, changes: list[Change]) -> None:
    """In one command, or in two halves if it is too large: a command has at most 4 MiB."""
    try:
        with lead.batch() as batch:
            batch.require("service", service.id, service.revision)  # nobody has changed or deleted it meanwhile
            for verb, container in changes:
                if verb == "create":
                    batch.create_container(container, if_revision=0)
                elif verb == "delete":
                    batch.delete_container(container.id, if_revision=container.revision)
                else:
                    batch.update_container(container, if_revision=container.revision)
    except wr.InvalidEntity:
        if len(changes) == 1:
            raise
        half = len(changes) // 2
        carry_out(lead, service, changes[:half])
        carry_out(lead, service, changes[half:])


def schedule(store: wr.Store, lead: wr.Lead) -> None:
    """Each container without a node gets the ready node with the fewest containers."""
    with store.read() as view:
        ready = [node for node in view.list_nodes() if node.status == NodeStatus.READY]
        containers = view.list_containers()
    load = Counter(each.node_id for each in containers)
    chosen = []
    for container in [each for each in containers if not each.node_id and ready]:
        node = min(ready, key=lambda node: load[node.id])
        load[node.id] += 1
        chosen.append((container, node))
    for start in range(0, len(chosen), BATCH_MAX):
        place(lead, chosen[start : start + BATCH_MAX])


def place(lead: wr.Lead, chosen: list[tuple[wr.Container, wr.Node]]) -> None:
    """In one command, or in two halves if it is too large."""
    try:
        with lead.batch() as batch:
            for container, node in chosen:
                batch.require("node", node.id, node.revision)  # it is still ready
                batch.update_container(replace(container, node_id=node.id), if_revision=container.revision)
    except wr.RevisionConflict:
        pass  # the next pass decides again
    except wr.InvalidEntity as error:
        if len(chosen) == 1:  # with its node it is too large, for instance: the others go on
            print(f"container {chosen[0][0].id} gets no node: {error}", file=sys.stderr)
            return
        half = len(chosen) // 2
        place(lead, chosen[:half])
        place(lead, chosen[half:])


def work(store: wr.Store, lead: wr.Lead) -> None:
    """In its own thread, each time this manager leads. A leader that was frozen changes nothing when it wakes up: the
    writes of `lead` are refused then."""
    with store.watch(kinds={"node", "service", "container"}) as changes:  # before the first pass: no change is missed
        while not lead.is_over:
            reconcile(store, lead)
            schedule(store, lead)
            changes.take(QUIET_SECONDS)


def beat(store: wr.Store, node_id: str) -> None:
    """This node lives."""
    while True:
        store.heartbeat(node_id, TTL_SECONDS)
        time.sleep(BEAT_SECONDS)


def run_containers(store: wr.Store, node_id: str) -> None:
    """Starts and stops the containers of this node, and says which ones run."""

    def reported(container: wr.Container) -> wr.Container:
        if container.node_id != node_id:
            raise wr.NotFound("container", f"{container.id} on {node_id}")
        return replace(container, actual_state=ContainerState.RUNNING)

    running: set[tuple[str, str]] = set()  # ids and images; a real one asks its container runtime
    with store.watch(node=node_id) as changes:
        while True:
            wanted = {(each.id, each.image): each for each in store.list_containers_by_node(node_id)}
            for container_id, image in running - wanted.keys():
                print(f"{node_id} stops {container_id} ({image})")
            for container_id, image in wanted.keys() - running:
                print(f"{node_id} starts {container_id} ({image})")
            running = set(wanted)
            for container in wanted.values():
                if container.actual_state != ContainerState.RUNNING:
                    with suppress(wr.NotFound):  # it was deleted meanwhile, or is on another node
                        store.modify(wr.Container, container.id, reported)
            changes.take()


def until_closed(loop: Callable[[wr.Store, str], None], store: wr.Store, node_id: str) -> None:
    """In a thread of its own."""
    with suppress(wr.Closed):
        while True:
            # No leader or no space for the moment, changes were missed, or the node was deleted: again.
            with suppress(wr.Unavailable, wr.StorageFull, wr.WatchLost, wr.NotFound):
                loop(store, node_id)
            time.sleep(1)


def join(store: wr.Store, node_id: str) -> None:
    """Become a node of the cluster, and begin to work. Once for each store: the fence keeps out other managers, not a
    second loop of the same one."""
    with suppress(wr.RevisionConflict):  # it is a node already
        store.create_node(wr.Node(id=node_id), if_revision=0)
    store.run_while_leading(partial(work, store))
    for loop in (beat, run_containers):
        threading.Thread(target=until_closed, args=(loop, store, node_id), daemon=True).start()


def main() -> None:
    node_id, members = sys.argv[1], dict(each.split("=", 1) for each in sys.argv[2:])
    config = wr.Config(node_id=node_id, data_dir=f"data/{node_id}", listen=members[node_id], members=members)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    with wr.ReplicatedStore(config) as store:
        store.wait_ready(timeout=None)
        join(store, node_id)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    main()
