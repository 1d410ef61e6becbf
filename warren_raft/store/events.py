"""The events of a watch, and the filter that decides which changes are events of it.

Not here: where changes come from (watching/), and how a program gets its events (watch.py).
Invariant: a filter that exists is valid, and judges a change by the change and the indexed values before it alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from warren_raft.errors import InvalidEntity
from warren_raft.model.entities import Container, Entity
from warren_raft.model.forms import KEY_MAX_BYTES, fields_of
from warren_raft.store.codec import index_keys, indexed_width
from warren_raft.store.leading import leading_items
from warren_raft.store.tables import BY_NAME, BY_NUMBER, CONTAINER

EventOperation: TypeAlias = Literal["put", "delete", "left", "bookmark"]
Place: TypeAlias = Sequence[str]
"""The service id and the node id of a container, as they are indexed: "" for a value that is empty or too long."""

BOOKMARK: Final = "bookmark"
_PLACE_KEYS: Final = [keys_of for _, keys_of in index_keys(CONTAINER)]
_PLACE_WIDTH: Final = indexed_width(CONTAINER)
_HEAD: Final = b"\x82\x00"  # of a record: `leading_items` reads records
_ARRAY, _ARRAY_8, _TEXT, _TEXT_8 = 0x80, 0x98, 0x60, 0x78  # heads of CBOR items (RFC 8949, 3)
_SERVICE_AT, _NODE_AT = ([each.name for each in fields_of(Container)].index(index.field) for index in CONTAINER.indexes)
NAMES_MAX: Final = 10_000
"""The most ids of one filter. With more, watch the kind."""


@dataclass(frozen=True, slots=True, repr=False)
class Event:
    """One change of one entity. Immutable; may be kept and shared between threads.

    `operation`: `put`: the entity was created or updated. `delete`: it was deleted. `left`: it was updated and does not
    belong to the service or the node of this watch any more. `bookmark`: no change, but everything up to `revision` was
    given (only with `bookmark_seconds`).
    """

    revision: int
    """The revision of the change. All changes of one command (a batch) have the same."""
    operation: EventOperation
    kind: str
    """`node`, `service`, ...; empty for a bookmark."""
    id: str
    """The id of the entity; empty for a bookmark."""
    entity: Entity | bytes | None = field(default=None)
    """The entity as of `revision` (bytes for the CA); None for a delete and a bookmark."""
    index: int = 0
    """The place of the change among the changes of its command, from 0. A filter leaves gaps."""

    def __repr__(self) -> str:
        """Without the entity, which may be a secret: this text gets into tracebacks and logs."""
        return (
            f"Event(revision={self.revision}, operation={self.operation!r}, kind={self.kind!r}, id={self.id!r}, "
            f"index={self.index})"
        )


@dataclass(frozen=True, slots=True)
class Filter:
    """Which changes are events of a watch. Make it by `of`, which checks the arguments."""

    kinds: frozenset[int] | None = None
    """Numbers of kinds; None: every kind."""
    service: str | None = None
    node: str | None = None
    ids: frozenset[str] | None = None

    @classmethod
    def of(
        cls,
        kinds: Collection[str] | None = None,
        service: str | None = None,
        node: str | None = None,
        ids: Collection[str] | None = None,
    ) -> Filter:
        """Raises InvalidEntity (a ValueError) for arguments that no change can match, or that are of a wrong type."""
        numbers = None if kinds is None else frozenset(map(_number_of, _names("kinds", kinds)))
        for name, value in (("service", service), ("node", node)):
            if value is None:
                continue
            _require_key(name, value)
            if numbers is None:
                numbers = frozenset((CONTAINER.number,))
            elif numbers != {CONTAINER.number}:
                raise _wrong(name, "chooses containers; leave kinds= out, or watch other kinds by another watch")
        wanted = None if ids is None else frozenset(_names("ids", ids))
        for each in wanted or ():
            _require_key("ids", each)
        return cls(numbers, service, node, wanted)

    @property
    def has_place(self) -> bool:
        """Whether entities can leave it."""
        return self.service is not None or self.node is not None

    def wants(self, kind_number: int, id: str) -> bool:  # noqa: A002
        """Whether this entity can match at all."""
        return (self.kinds is None or kind_number in self.kinds) and (self.ids is None or id in self.ids)

    def holds(self, place: Place) -> bool:
        """Whether a container with this service and node matches."""
        return (self.service is None or self.service == place[0]) and (self.node is None or self.node == place[1])

    def judge(self, before: Place | None, after: Place | None) -> EventOperation | None:
        """What a change of a wanted entity is for this watch; None: it is no event.

        `before`: its place before the change, None if the change left it as it was, or if there was no entity.
        `after`: its place now; None: it was deleted. Both matter only if the filter has a place.
        """
        if not self.has_place:
            return "delete" if after is None else "put"
        if after is not None and self.holds(after):
            return "put"
        if before is None or not self.holds(before):
            return None
        return "delete" if after is None else "left"


def short_place_in(data: bytes, at: int) -> tuple[str, str] | None:
    """The same as `place_of` for the entity that begins at `at`, if its first items are texts of at most 255 bytes.
    Otherwise None. Takes a third of the time."""
    found: list[bytes] = []
    try:
        if not _ARRAY + _PLACE_WIDTH <= data[at] < _ARRAY_8:
            return None
        at += 1
        for _ in range(_PLACE_WIDTH):
            head = data[at]
            if _TEXT <= head < _TEXT_8:
                size = head - _TEXT
                at += 1
            elif head == _TEXT_8:
                size = data[at + 1]
                at += 2
            else:
                return None
            found.append(data[at : at + size])
            at += size
        return (found[_SERVICE_AT].decode(), found[_NODE_AT].decode()) if at <= len(data) else None
    except (IndexError, UnicodeDecodeError):
        return None


def place_of(entity: bytes) -> tuple[str, ...]:
    """The place of a container, from its entity bytes. Never raises."""
    items = leading_items(_HEAD + entity, _PLACE_WIDTH)
    return tuple(key[0].decode() if (key := keys_of(items)) else "" for keys_of in _PLACE_KEYS)


def _number_of(name: str) -> int:
    kind = BY_NAME.get(name)
    if kind is None:
        known = ", ".join(kind.name for kind in BY_NUMBER.values())
        raise _wrong("kinds", f"names {name!r:.80}, which is no kind; the kinds are {known}")
    return kind.number


def _names(name: str, given: object) -> Iterator[str]:
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise _wrong(name, f'must be a set of texts, for example {{"web"}}, not {given!r:.80}')
    found: list[Any] = list(given)
    if not 0 < len(found) <= NAMES_MAX:
        raise _wrong(name, f"must have 1 to {NAMES_MAX} members, not {len(found)}")
    for each in found:
        if not isinstance(each, str):
            raise _wrong(name, f"must be texts, not {each!r:.80}")
    return iter(found)


def _require_key(name: str, value: object) -> None:
    if isinstance(value, str):
        try:
            size = len(value.encode())
        except UnicodeEncodeError:
            size = 0
        if 0 < size <= KEY_MAX_BYTES:
            return
    raise _wrong(name, f"must be a text of 1 to {KEY_MAX_BYTES} bytes in UTF-8, not {value!r:.80}")


def _wrong(name: str, reason: str) -> InvalidEntity:
    return InvalidEntity("watch", reason, field=name)


def checked_since(since: object) -> int | None:
    """A revision, or None. Raises InvalidEntity."""
    if since is None or (isinstance(since, int) and not isinstance(since, bool) and 0 <= since < 1 << 63):
        return since
    raise _wrong("since", f"must be a revision, a whole number from 0 on, not {since!r:.80}")


def checked_bookmark_seconds(seconds: object) -> float | None:
    """Seconds above 0, or None. Raises InvalidEntity."""
    if seconds is None:
        return None
    if isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 < seconds < 1e9:
        return float(seconds)
    raise _wrong("bookmark_seconds", f"must be a number of seconds above 0, or None, not {seconds!r:.80}")
