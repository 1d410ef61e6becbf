"""The HTTP API of a manager, for users and workers. Any manager answers: reads from its own copy, writes through the
leader. Everything is awaited on `store.aio`, so a slow write does not delay other requests."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from weakref import WeakSet

from aiohttp import web

import warren_raft as wr

STATUS_OF_ERROR: dict[type[wr.WarrenError], int] = {
    wr.NotFound: 404,
    wr.RevisionConflict: 409,
    wr.InvalidEntity: 400,
    wr.WatchLost: 410,
    wr.Unavailable: 503,
    wr.Closed: 503,
    wr.StorageFull: 507,
}
QUIET_SECONDS = 1.0  # after so long without a change, a watch says that its manager lives
TTL_SECONDS = 6.0  # a node without a heartbeat for so long is down
WATCHED = frozenset({"node", "service", "container"})  # a secret is nobody's business here


class Api:
    """The handlers. Each is one operation of the store."""

    def __init__(self, store: wr.Store) -> None:
        self._store = store
        self._watches: WeakSet[wr.AsyncWatch] = WeakSet()

    def application(self) -> web.Application:
        application = web.Application(middlewares=[errors_as_json])
        application.add_routes(
            [
                web.get("/status", self.status),
                web.get("/services", self.list_services),
                web.get("/services/{id}", self.get_service),
                web.put("/services/{id}", self.put_service),
                web.patch("/services/{id}", self.patch_service),
                web.delete("/services/{id}", self.delete_service),
                web.get("/nodes", self.list_nodes),
                web.put("/nodes/{id}", self.put_node),
                web.post("/nodes/{id}/heartbeat", self.heartbeat),
                web.get("/containers", self.list_containers),
                web.put("/containers/{id}/state", self.put_container_state),
                web.get("/watch", self.watch),
            ]
        )
        application.on_shutdown.append(self.end_watches)
        return application

    async def status(self, _request: web.Request) -> web.Response:
        return answered({"leader": self._store.leader, "ready": self._store.is_ready})

    # Services ----------------------------------------------------------------------------------------------------

    async def list_services(self, _request: web.Request) -> web.Response:
        return answered([wr.to_json(each) for each in self._store.list_services()])

    async def get_service(self, request: web.Request) -> web.Response:
        return answered(wr.to_json(self._store.get_service(request.match_info["id"])))

    async def put_service(self, request: web.Request) -> web.Response:
        """Create or replace. With `?if_revision=N`: only if nobody has changed it since (0: if there is none)."""
        service = wr.from_json(wr.Service, {**await body(request), "id": request.match_info["id"]})
        condition = whole_number(request, "if_revision")
        return answered({"revision": await self._store.aio.update_service(service, if_revision=condition)})

    async def patch_service(self, request: web.Request) -> web.Response:
        """Change some fields. `modify` begins again if somebody else was quicker, so no change is lost."""
        changes = await body(request)

        def changed(service: wr.Service) -> wr.Service:
            return wr.from_json(wr.Service, {**wr.to_json(service), **changes, "id": service.id})

        service = await self._store.aio.modify(wr.Service, request.match_info["id"], changed)
        return answered(wr.to_json(service))

    async def delete_service(self, request: web.Request) -> web.Response:
        """With its containers, in one command: otherwise they would run for ever if this process died in between."""
        revision = await self._store.aio.delete_service(request.match_info["id"], cascade=True)
        return answered({"revision": revision})

    # Nodes and their containers ----------------------------------------------------------------------------------

    async def list_nodes(self, _request: web.Request) -> web.Response:
        return answered([wr.to_json(each) for each in self._store.list_nodes()])

    async def put_node(self, request: web.Request) -> web.Response:
        """A worker says that it is there. A node that is known keeps its status: an operator may have drained it."""
        node = wr.Node(id=request.match_info["id"], role=wr.NodeRole.WORKER, created_at=datetime.now(UTC))
        with suppress(wr.RevisionConflict):
            await self._store.aio.create_node(node, if_revision=0)
        return answered({})

    async def heartbeat(self, request: web.Request) -> web.Response:
        """Nothing is written as long as the node stays ready. Unavailable (503) sends the worker to another manager."""
        self._store.heartbeat(request.match_info["id"], TTL_SECONDS)
        return answered({})

    async def list_containers(self, request: web.Request) -> web.Response:
        if service_id := request.query.get("service"):
            found = self._store.list_containers_by_service(service_id)
        elif node_id := request.query.get("node"):
            found = self._store.list_containers_by_node(node_id)
        else:
            found = self._store.list_containers()
        return answered([wr.to_json(each) for each in found])

    async def put_container_state(self, request: web.Request) -> web.Response:
        """A worker's report. `modify` changes the stored container: a report must not undo a "shut down" of the
        reconciler that came a moment before, and must not bring back a deleted container."""
        report = await body(request)

        def reported(container: wr.Container) -> wr.Container:
            if container.node_id != report.get("node"):
                raise wr.NotFound("container", f"{container.id} on {report.get('node')}")
            return replace(container, actual_state=str(report.get("state")))

        await self._store.aio.modify(wr.Container, request.match_info["id"], reported)
        return answered({})

    # The watch ---------------------------------------------------------------------------------------------------

    async def watch(self, request: web.Request) -> web.StreamResponse:
        """A line of JSON for each event. `?kind=...` (several are allowed), or `?node=...` or `?service=...` for
        containers. With `?since=REVISION` it begins behind that revision, or answers 410 if these changes are not kept
        any more. Without it, it begins with the present state: a `put` for each entity, then a `bookmark`."""
        chosen: dict[str, Any] = {name: request.query[name] for name in ("node", "service") if name in request.query}
        kinds = set(request.query.getall("kind", [])) or ({"container"} if chosen else WATCHED)
        if not kinds <= WATCHED:
            raise web.HTTPBadRequest(text=f"kinds are: {', '.join(sorted(WATCHED))}")
        since, first = whole_number(request, "since"), None
        if since is None:
            with self._store.read() as view:  # and the watch goes on exactly behind this view
                since, first = view.revision, present_events(view, kinds, **chosen)
        async with self._store.aio.watch(since, kinds=kinds, bookmark_seconds=QUIET_SECONDS, **chosen) as events:
            self._watches.add(events)
            if first is None:
                first = await events.take(QUIET_SECONDS)  # WatchLost still has a status of its own here
            response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
            await response.prepare(request)
            with suppress(ConnectionError):  # the reader has gone
                async for each in chained(first, events):
                    await response.write(b"".join(json.dumps(event_json(event)).encode() + b"\n" for event in each))
        return response

    async def end_watches(self, _application: web.Application) -> None:
        for events in self._watches:
            events.close()


def present_events(view: wr.View, kinds: set[str] | frozenset[str], **chosen: str) -> list[wr.Event]:
    """The present state as events."""
    entities: list[wr.Node | wr.Service | wr.Container] = []
    if "node" in kinds:
        entities += view.list_nodes()
    if "service" in kinds:
        entities += view.list_services()
    if "container" in kinds:
        found = view.list_containers_by_node(chosen["node"]) if "node" in chosen else view.list_containers()
        entities += [each for each in found if chosen.get("service", each.service_id) == each.service_id]
    puts = [wr.Event(each.revision, "put", type(each).__name__.lower(), each.id, each) for each in entities]
    return [*puts, wr.Event(view.revision, "bookmark", "", "")]


async def chained(first: list[wr.Event], events: wr.AsyncWatch) -> AsyncIterator[list[wr.Event]]:
    """The first events, then the changes. A reader hears something each second, so it notices when its manager is
    frozen or cut off. (The bookmarks of the store come only when there is something to say.)"""
    if first:
        yield first
    with suppress(wr.WatchLost, wr.Closed):  # the reader asks again without `since`, perhaps another manager
        while True:
            yield await events.take(QUIET_SECONDS) or [wr.Event(events.revision, "bookmark", "", "")]


def event_json(event: wr.Event) -> dict[str, Any]:
    entity = None if event.entity is None or isinstance(event.entity, bytes) else wr.to_json(event.entity)
    return {
        "revision": event.revision,
        "operation": event.operation,
        "kind": event.kind,
        "id": event.id,
        "entity": entity,
    }


# Requests and answers ------------------------------------------------------------------------------------------------


def answered(value: object, status: int = 200) -> web.Response:
    return web.Response(text=json.dumps(value) + "\n", status=status, content_type="application/json")


async def body(request: web.Request) -> dict[str, Any]:
    try:
        found = await request.json()
    except ValueError:
        raise web.HTTPBadRequest(text="the body is not JSON") from None
    if not isinstance(found, dict):
        raise web.HTTPBadRequest(text="the body is not a JSON object")
    return found


def whole_number(request: web.Request, name: str) -> int | None:
    text = request.query.get(name)
    if text is not None and not text.isdecimal():
        raise web.HTTPBadRequest(text=f"{name} is not a whole number")
    return None if text is None else int(text)


@web.middleware
async def errors_as_json(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """The class of an error decides about the status, its text is for people. `maybe_applied` tells a client whether
    to make a write again with a condition."""
    try:
        return await handler(request)
    except wr.WarrenError as error:
        status = next((code for kind, code in STATUS_OF_ERROR.items() if isinstance(error, kind)), 500)
        answer: dict[str, Any] = {"error": type(error).__name__, "text": str(error)}
        if isinstance(error, wr.Unavailable):
            answer["maybe_applied"] = error.maybe_applied
        return answered(answer, status)
