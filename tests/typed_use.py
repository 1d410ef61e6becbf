"""The types that type checkers and editors see on a store, a view, a batch and `aio`. mypy reads this
file; nothing runs it.

tests/unit/test_signatures.py compares them with the types that `help()` shows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Never, assert_type

from warren_raft import (
    Alarm,
    AsyncBatch,
    AsyncLead,
    AsyncStore,
    AsyncWatch,
    Batch,
    Container,
    Event,
    Ingress,
    Lead,
    LocalStore,
    MemberStatus,
    Network,
    Node,
    ReplicatedStore,
    Secret,
    Service,
    SnapshotInfo,
    Status,
    Store,
    TLSCertificate,
    View,
    Volume,
    Watch,
)
from warren_raft.store.writing import WriteMethods


def reads_of_a_store(store: Store) -> None:
    assert_type(store.get_node("x"), Node)
    assert_type(store.list_nodes(), list[Node])
    assert_type(store.get_service("x"), Service)
    assert_type(store.get_service_by_name("x"), Service)
    assert_type(store.list_services(), list[Service])
    assert_type(store.get_container("x"), Container)
    assert_type(store.list_containers(), list[Container])
    assert_type(store.list_containers_by_service("x"), list[Container])
    assert_type(store.list_containers_by_node("x"), list[Container])
    assert_type(store.get_secret("x"), Secret)
    assert_type(store.get_secret_by_name("x"), Secret)
    assert_type(store.list_secrets(), list[Secret])
    assert_type(store.get_volume("x"), Volume)
    assert_type(store.get_volume_by_name("x"), Volume)
    assert_type(store.list_volumes(), list[Volume])
    assert_type(store.get_network("x"), Network)
    assert_type(store.list_networks(), list[Network])
    assert_type(store.get_ca(), bytes)
    assert_type(store.get_ingress("x"), Ingress)
    assert_type(store.get_ingress_by_name("x"), Ingress)
    assert_type(store.list_ingresses(), list[Ingress])
    assert_type(store.get_tls_certificate("x"), TLSCertificate)
    assert_type(store.get_tls_certificate_by_name("x"), TLSCertificate)
    assert_type(store.get_tls_certificates_by_host("x"), list[TLSCertificate])
    assert_type(store.list_tls_certificates(), list[TLSCertificate])


def writes_of_a_store(store: Store) -> None:
    assert_type(store.create_node(Node(id="x"), if_revision=0, timeout=2.5), int)
    assert_type(store.update_node(Node(id="x"), if_revision=0, timeout=2.5), int)
    assert_type(store.delete_node("x", if_revision=0, timeout=2.5), int)
    assert_type(store.create_service(Service(id="x"), if_revision=0, timeout=2.5), int)
    assert_type(store.update_service(Service(id="x"), if_revision=0, timeout=2.5), int)
    assert_type(store.delete_service("x", if_revision=0, timeout=2.5), int)
    assert_type(store.create_container(Container(id="x"), if_revision=0, timeout=2.5), int)
    assert_type(store.update_container(Container(id="x"), if_revision=0, timeout=2.5), int)
    assert_type(store.delete_container("x", if_revision=0, timeout=2.5), int)
    assert_type(store.create_secret(Secret(id="x"), if_revision=0, timeout=2.5), int)
    assert_type(store.delete_secret("x", if_revision=0, timeout=2.5), int)
    assert_type(store.create_volume(Volume(id="x"), if_revision=0, timeout=2.5), int)
    assert_type(store.delete_volume("x", if_revision=0, timeout=2.5), int)
    assert_type(store.create_network(Network(id="x"), if_revision=0, timeout=2.5), int)
    assert_type(store.delete_network("x", if_revision=0, timeout=2.5), int)
    assert_type(store.save_ca(b"ca", if_revision=0, timeout=2.5), int)
    assert_type(store.create_ingress(Ingress(id="x"), if_revision=0, timeout=2.5), int)
    assert_type(store.update_ingress(Ingress(id="x"), if_revision=0, timeout=2.5), int)
    assert_type(store.delete_ingress("x", if_revision=0, timeout=2.5), int)
    assert_type(store.create_tls_certificate(TLSCertificate(id="x"), if_revision=0, timeout=2.5), int)
    assert_type(store.update_tls_certificate(TLSCertificate(id="x"), if_revision=0, timeout=2.5), int)
    assert_type(store.delete_tls_certificate("x", if_revision=0, timeout=2.5), int)


async def writes_of_aio(aio: AsyncStore) -> None:
    assert_type(await aio.create_node(Node(id="x"), if_revision=0, timeout=2.5), int)
    assert_type(await aio.update_node(Node(id="x"), if_revision=0, timeout=2.5), int)
    assert_type(await aio.delete_node("x", if_revision=0, timeout=2.5), int)
    assert_type(await aio.create_service(Service(id="x"), if_revision=0, timeout=2.5), int)
    assert_type(await aio.update_service(Service(id="x"), if_revision=0, timeout=2.5), int)
    assert_type(await aio.delete_service("x", if_revision=0, timeout=2.5), int)
    assert_type(await aio.create_container(Container(id="x"), if_revision=0, timeout=2.5), int)
    assert_type(await aio.update_container(Container(id="x"), if_revision=0, timeout=2.5), int)
    assert_type(await aio.delete_container("x", if_revision=0, timeout=2.5), int)
    assert_type(await aio.create_secret(Secret(id="x"), if_revision=0, timeout=2.5), int)
    assert_type(await aio.delete_secret("x", if_revision=0, timeout=2.5), int)
    assert_type(await aio.create_volume(Volume(id="x"), if_revision=0, timeout=2.5), int)
    assert_type(await aio.delete_volume("x", if_revision=0, timeout=2.5), int)
    assert_type(await aio.create_network(Network(id="x"), if_revision=0, timeout=2.5), int)
    assert_type(await aio.delete_network("x", if_revision=0, timeout=2.5), int)
    assert_type(await aio.save_ca(b"ca", if_revision=0, timeout=2.5), int)
    assert_type(await aio.create_ingress(Ingress(id="x"), if_revision=0, timeout=2.5), int)
    assert_type(await aio.update_ingress(Ingress(id="x"), if_revision=0, timeout=2.5), int)
    assert_type(await aio.delete_ingress("x", if_revision=0, timeout=2.5), int)
    assert_type(await aio.create_tls_certificate(TLSCertificate(id="x"), if_revision=0, timeout=2.5), int)
    assert_type(await aio.update_tls_certificate(TLSCertificate(id="x"), if_revision=0, timeout=2.5), int)
    assert_type(await aio.delete_tls_certificate("x", if_revision=0, timeout=2.5), int)
    assert_type(await aio.modify(Service, "x", lambda service: service, timeout=2.5), Service)
    assert_type(await aio.barrier(2.5), int)
    assert_type(await aio.wait_ready(2.5), None)
    assert_type(await aio.wait_leader(2.5), str)
    assert_type(await aio.snapshot("x"), SnapshotInfo)
    assert_type(await aio.close(), None)
    assert_type(aio.watch(7, kinds={"service"}, bookmark_seconds=60), AsyncWatch)
    async with aio.watch(node="n") as events:
        assert_type(events, AsyncWatch)
        assert_type(await events.take(2.5), list[Event])
        async for event in events:
            assert_type(event, Event)
    async with aio.batch(timeout=2.5) as batch:
        assert_type(batch, AsyncBatch)
        assert_type(batch.create_node(Node(id="x")), None)
    async with aio.leading(2.5) as lead:
        assert_type(lead, AsyncLead)
        assert_type(await lead.create_node(Node(id="x"), timeout=2.5), int)
        assert_type(await lead.wait_over(2.5), bool)
        async with lead.batch() as of_lead:
            assert_type(of_lead, AsyncBatch)
    async with asyncio.TaskGroup() as group:
        assert_type(group.create_task(aio.create_node(Node(id="x"))), asyncio.Task[int])


def faces_of_the_stores(local: LocalStore, replicated: ReplicatedStore) -> None:
    assert_type(local.aio, AsyncStore)
    assert_type(replicated.aio, AsyncStore)


def reads_of_a_view(view: View) -> None:
    assert_type(view.get_node("x"), Node)
    assert_type(view.list_nodes(), list[Node])
    assert_type(view.get_service("x"), Service)
    assert_type(view.get_service_by_name("x"), Service)
    assert_type(view.list_services(), list[Service])
    assert_type(view.get_container("x"), Container)
    assert_type(view.list_containers(), list[Container])
    assert_type(view.list_containers_by_service("x"), list[Container])
    assert_type(view.list_containers_by_node("x"), list[Container])
    assert_type(view.get_secret("x"), Secret)
    assert_type(view.get_secret_by_name("x"), Secret)
    assert_type(view.list_secrets(), list[Secret])
    assert_type(view.get_volume("x"), Volume)
    assert_type(view.get_volume_by_name("x"), Volume)
    assert_type(view.list_volumes(), list[Volume])
    assert_type(view.get_network("x"), Network)
    assert_type(view.list_networks(), list[Network])
    assert_type(view.get_ca(), bytes)
    assert_type(view.get_ingress("x"), Ingress)
    assert_type(view.get_ingress_by_name("x"), Ingress)
    assert_type(view.list_ingresses(), list[Ingress])
    assert_type(view.get_tls_certificate("x"), TLSCertificate)
    assert_type(view.get_tls_certificate_by_name("x"), TLSCertificate)
    assert_type(view.get_tls_certificates_by_host("x"), list[TLSCertificate])
    assert_type(view.list_tls_certificates(), list[TLSCertificate])
    assert_type(view.iter_nodes(), Iterator[Node])
    assert_type(view.iter_services(), Iterator[Service])
    assert_type(view.iter_containers(), Iterator[Container])
    assert_type(view.iter_secrets(), Iterator[Secret])
    assert_type(view.iter_volumes(), Iterator[Volume])
    assert_type(view.iter_networks(), Iterator[Network])
    assert_type(view.iter_ingresses(), Iterator[Ingress])
    assert_type(view.iter_tls_certificates(), Iterator[TLSCertificate])
    assert_type(view.watch(ids={"x"}, node="n"), Watch)


def writes_of_a_batch(batch: Batch) -> None:
    assert_type(batch.create_node(Node(id="x"), if_revision=0), None)
    assert_type(batch.update_node(Node(id="x"), if_revision=0), None)
    assert_type(batch.delete_node("x", if_revision=0), None)
    assert_type(batch.create_service(Service(id="x"), if_revision=0), None)
    assert_type(batch.update_service(Service(id="x"), if_revision=0), None)
    assert_type(batch.delete_service("x", if_revision=0), None)
    assert_type(batch.create_container(Container(id="x"), if_revision=0), None)
    assert_type(batch.update_container(Container(id="x"), if_revision=0), None)
    assert_type(batch.delete_container("x", if_revision=0), None)
    assert_type(batch.create_secret(Secret(id="x"), if_revision=0), None)
    assert_type(batch.delete_secret("x", if_revision=0), None)
    assert_type(batch.create_volume(Volume(id="x"), if_revision=0), None)
    assert_type(batch.delete_volume("x", if_revision=0), None)
    assert_type(batch.create_network(Network(id="x"), if_revision=0), None)
    assert_type(batch.delete_network("x", if_revision=0), None)
    assert_type(batch.save_ca(b"ca", if_revision=0), None)
    assert_type(batch.create_ingress(Ingress(id="x"), if_revision=0), None)
    assert_type(batch.update_ingress(Ingress(id="x"), if_revision=0), None)
    assert_type(batch.delete_ingress("x", if_revision=0), None)
    assert_type(batch.create_tls_certificate(TLSCertificate(id="x"), if_revision=0), None)
    assert_type(batch.update_tls_certificate(TLSCertificate(id="x"), if_revision=0), None)
    assert_type(batch.delete_tls_certificate("x", if_revision=0), None)
    assert_type(batch.require("node", "x", 0), None)


def writes_of_a_lead(store: Store) -> None:
    with store.leading(timeout=2.5) as lead:
        assert_type(lead, Lead)
        assert_type(lead.create_node(Node(id="x"), request_id="job-17"), int)
        assert_type(lead.delete_service("x", cascade=True), int)
        assert_type(lead.modify(Node, "x", lambda node: node), Node)
        assert_type(lead.wait_over(2.5), bool)
        with lead.batch(request_id="job-18") as batch:
            assert_type(batch, Batch)
    assert_type(store.run_while_leading(lambda lead: lead.term), Callable[[], None])
    assert_type(store.on_leadership(lambda is_leader, term: None), Callable[[], None])


def everything_else_of_a_store(store: Store) -> None:
    assert_type(store.modify(Service, "x", lambda service: service, timeout=2.5), Service)
    assert_type(store.close(), None)
    assert_type(store.watch(7, kinds={"service"}, bookmark_seconds=60), Watch)
    with store.read() as view, store.batch(wait=False, timeout=2.5) as batch:
        assert_type(view, View)
        assert_type(batch, Batch)
    with store as same:
        assert_type(same, Store)
    assert_type(store.heartbeat("n", ttl_seconds=5), None)
    assert_type(store.last_heartbeat_age("n"), float | None)
    assert_type(store.barrier(2.5), int)
    assert_type(store.wait_ready(2.5), None)
    assert_type(store.wait_leader(2.5), str)
    assert_type(store.wait_failed(2.5), bool)
    assert_type(store.is_leader, bool)
    assert_type(store.leader, str | None)
    assert_type(store.alarms, tuple[Alarm, ...])
    assert_type(store.status(), Status)
    assert_type(store.reload_certificate(), None)
    assert_type(store.members(), tuple[MemberStatus, ...])
    assert_type(store.add_member("x", "y:1"), None)
    assert_type(store.update_member("x", "y:1"), str)
    assert_type(store.remove_member("x"), None)
    assert_type(store.transfer_leadership(), str)
    assert_type(store.snapshot("x"), SnapshotInfo)


async def a_loop_of_coroutines(aio: AsyncStore) -> None:
    async def work(lead: AsyncLead) -> int:
        return await lead.create_node(Node(id="x"))

    assert_type(await aio.run_while_leading(work), Never)


async def writes_of_another_result(awaitable: WriteMethods[Awaitable[int], float]) -> None:
    """One declaration serves every form of a write: this one would be awaited."""
    assert_type(awaitable.create_node(Node(id="x"), timeout=2.5), Awaitable[int])
    assert_type(await awaitable.delete_node("x"), int)


async def mistakes(store: Store, batch: Batch, aio: AsyncStore) -> None:
    """mypy refuses each of these lines; where it does not, it reports the unused comment."""
    batch.create_node(Node(id="x"), timeout=2.5)  # type: ignore[arg-type]
    store.create_node(Node(id="x"), timeout="2")  # type: ignore[arg-type]
    store.create_node(Service(id="x"))  # type: ignore[arg-type]
    batch.create_node(Service(id="x"))  # type: ignore[arg-type]
    aio.create_node(Service(id="x"))  # type: ignore[arg-type, unused-coroutine]
    aio.create_node(Node(id="x"))  # type: ignore[unused-coroutine]
    store.create_node(Node(id="x"), 0)  # type: ignore[call-arg]
    store.update_secret(Secret(id="x"))  # type: ignore[attr-defined]
