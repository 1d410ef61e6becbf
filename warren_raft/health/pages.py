"""The pages of a manager, as (status, type, body): for the admin socket and for the port of `metrics_listen`.

Lives here: the text of each page, in the form of Kubernetes' own. Not here: the checks (checks.py), HTTP (server.py,
admin/server.py). Invariant: no page changes anything, and none has an entity or a secret.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol
from urllib.parse import parse_qs, urlsplit

from warren_raft.alarms import Alarm
from warren_raft.errors import Closed, WarrenError
from warren_raft.health.checks import CHECKS, life_problem
from warren_raft.results import Status
from warren_raft.support.wording import printable

if TYPE_CHECKING:
    from warren_raft.metrics.meters import Meters

TEXT: Final = "text/plain; charset=utf-8"
JSON: Final = "application/json"
HEADERS: Final[Mapping[str, str]] = MappingProxyType({"X-Content-Type-Options": "nosniff"})
"""Of every answer: a browser must not guess at its type."""
_FIELDS_MAX: Final = 50
"""The most parameters of a page."""

Query = Mapping[str, Sequence[str]]


class Page(NamedTuple):
    status: int
    content_type: str
    body: bytes


class Manager(Protocol):
    """The part of a ReplicatedStore that pages need."""

    @property
    def alarms(self) -> tuple[Alarm, ...]: ...
    @property
    def failure(self) -> WarrenError | None: ...
    def status(self) -> Status: ...
    def _meters(self) -> Meters: ...


class Pages:
    """The pages of one manager. Thread-safe."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._pages: Final[Mapping[str, Callable[[Query], Page]]] = {
            "/livez": self._live,
            "/readyz": self._ready,
            "/status": self._status,
            "/metrics": self._metrics,
        }

    @property
    def paths(self) -> Sequence[str]:
        return tuple(self._pages)

    def page(self, target: str) -> Page:
        """The page of a path with its query, such as "/readyz?verbose&exclude=space". 404 for an unknown one."""
        try:
            parts = urlsplit(target)
            query = parse_qs(parts.query, keep_blank_values=True, max_num_fields=_FIELDS_MAX)
        except ValueError as error:
            return _text(HTTPStatus.BAD_REQUEST, f"the address is wrong: {error}")
        page = self._pages.get(parts.path)
        if page is None:
            return _text(HTTPStatus.NOT_FOUND, f"there are these pages: {' '.join(self._pages)}")
        return page(query)

    def _live(self, query: Query) -> Page:
        problem = life_problem(self._manager.failure, self._manager.alarms)
        return _judged("livez", {"raft-thread": problem}, query)

    def _ready(self, query: Query) -> Page:
        try:
            status = self._manager.status()
        except Closed:
            return _judged("readyz", {"store": "the manager is closed"}, query)
        return _judged("readyz", {name: check(status) for name, check in CHECKS.items()}, query)

    def _status(self, _query: Query) -> Page:
        try:
            status = self._manager.status()
        except Closed:
            return _text(HTTPStatus.SERVICE_UNAVAILABLE, "the manager is closed")
        return Page(HTTPStatus.OK, JSON, json.dumps(status.to_json(), indent=2).encode() + b"\n")

    def _metrics(self, query: Query) -> Page:
        from prometheus_client import CollectorRegistry, ProcessCollector
        from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

        from warren_raft.metrics import Collector

        registry = CollectorRegistry()
        store: Any = self._manager
        registry.register(Collector(store, legacy_names="legacy_names" in query))
        ProcessCollector(registry=registry)
        return Page(HTTPStatus.OK, CONTENT_TYPE_PLAIN_0_0_4, generate_latest(registry))


def _judged(name: str, problems: Mapping[str, str], query: Query) -> Page:
    """`problems`: the name of each check, and why it fails."""
    excluded = set(query.get("exclude", ()))
    lines = [_line(check, problem, check in excluded) for check, problem in problems.items()]
    unknown = sorted(excluded - problems.keys())
    warning = [f"warn: some health checks cannot be excluded: no matches for {', '.join(map(_quoted, unknown))}"]
    failed = any(problem and check not in excluded for check, problem in problems.items())
    if not failed and "verbose" not in query:
        return _text(HTTPStatus.OK, "\n".join(["ok", *(warning if unknown else ())]))
    lines += warning if unknown else ()
    lines.append(f"{name} check {'failed' if failed else 'passed'}")
    return _text(HTTPStatus.SERVICE_UNAVAILABLE if failed else HTTPStatus.OK, "\n".join(lines))


def _quoted(name: str) -> str:
    return f'"{printable(name)}"'


def _line(check: str, problem: str, is_excluded: bool) -> str:
    if is_excluded:
        return f"[+]{check} excluded: ok"
    return f"[-]{check} failed: {problem}" if problem else f"[+]{check} ok"


def _text(status: HTTPStatus, text: str) -> Page:
    return Page(status, TEXT, f"{text}\n".encode())
