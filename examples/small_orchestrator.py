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
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial

import warren_raft as wr
from warren_raft import ContainerState, NodeStatus

BEAT_SECONDS, TTL_SECONDS = 2.0, 6.0
QUIET_SECONDS = 5.0
BATCH_MAX = 1000  # changes of a kind in one command, which has at most 4 MiB; the next pass follows at once


def reconcile(store: wr.Store, lead: wr.Lead) -> None:
    """Each service gets the containers that it should have: web-0, web-1 and so on. A container has the same id in
    each pass, because a write that was not answered in time (Unavailable) may be carried out after the next pass."""
    with store.read() as view:
        there = {node.id for node in view.list_nodes() if node.status != NodeStatus.DOWN}
        found = [(service, view.list_containers_by_service(service.id)) for service in view.list_services()]
    for service, containers in found:
        wanted = {f"{service.id}-{number}" for number in range(service.replicas)}
        missing = sorted(wanted - {each.id for each in containers})[:BATCH_MAX]
        removed = [each for each in containers if each.id not in wanted][:BATCH_MAX]
        lost = [each for each in containers if each.id in wanted and each.node_id and each.node_id not in there]
        if not (missing or removed or lost):
            continue  # a batch with conditions only is a log entry too
        with suppress(wr.RevisionConflict), lead.batch() as batch:  # after a conflict, the next pass decides again
            batch.require("service", service.id, service.revision)  # nobody has changed or deleted it meanwhile
            for id_ in missing:
                batch.create_container(wr.Container(id=id_, service_id=service.id, image=service.image), if_revision=0)
            for each in removed:
                batch.delete_container(each.id, if_revision=each.revision)
            for each in lost[:BATCH_MAX]:
                batch.update_container(replace(each, node_id="", actual_state=""), if_revision=each.revision)


def schedule(store: wr.Store, lead: wr.Lead) -> None:
    """Each container without a node gets the ready node with the fewest containers."""
    with store.read() as view:
        ready = [node for node in view.list_nodes() if node.status == NodeStatus.READY]
        containers = view.list_containers()
    load = Counter(each.node_id for each in containers)
    with suppress(wr.RevisionConflict), lead.batch() as batch:  # an empty one sends nothing
        for container in [each for each in containers if not each.node_id][:BATCH_MAX]:
            if ready:
                node = min(ready, key=lambda node: load[node.id])
                load[node.id] += 1
                batch.require("node", node.id, node.revision)  # it is still ready
                batch.update_container(replace(container, node_id=node.id), if_revision=container.revision)


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
                    with suppress(wr.NotFound):  # it was deleted meanwhile
                        store.modify(wr.Container, container.id, partial(replace, actual_state=ContainerState.RUNNING))
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
