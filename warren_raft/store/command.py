"""The replicated unit: a Command with its request id and its operations, and the one binary form of commands.

Nothing here knows the kinds or whether a command can be carried out: that is fsm/machine.py.
Invariant: a command has exactly one encoding, so every manager reads the same bytes in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from enum import IntEnum
from functools import lru_cache
from hashlib import blake2b
from struct import Struct
from struct import error as struct_error
from types import MappingProxyType
from typing import Final, NamedTuple, NoReturn

from warren_raft.errors import InvariantViolation
from warren_raft.model.forms import KEY_MAX_BYTES
from warren_raft.store.leading import indexed_items


class Verb(IntEnum):
    """The action of an operation. It is on the wire and in every log, so no number is ever changed or used again."""

    PUT = 1
    DELETE = 2
    OPEN_SESSION = 3
    CLOSE_SESSION = 4
    REQUIRE = 5
    """A condition on an entity that the command does not change."""
    DELETE_CASCADE = 6
    """Delete a service and its containers."""
    LEASE = 7
    """Remember that a node beats, and its ttl."""


PUT: Final = Verb.PUT
DELETE: Final = Verb.DELETE
OPEN_SESSION: Final = Verb.OPEN_SESSION
CLOSE_SESSION: Final = Verb.CLOSE_SESSION
REQUIRE: Final = Verb.REQUIRE
DELETE_CASCADE: Final = Verb.DELETE_CASCADE
LEASE: Final = Verb.LEASE

_OF_SESSIONS: Final = frozenset((OPEN_SESSION, CLOSE_SESSION))
_OF_VERSION_1: Final = frozenset((PUT, DELETE, *_OF_SESSIONS))
_OF_VERSION_2: Final = frozenset(Verb)

VERSION: Final = 2
"""The newest version of commands. `encode_body` writes it. Version 1 has no fence, no request key and four verbs; see
fsm/entry.py for its meaning. While the level of the cluster is 1, managers write version 1 (levels.py)."""
SUPPORTED_VERSIONS: Final = range(1, VERSION + 1)
"""The versions that `decode` reads."""

MAX_BATCH_BYTES: Final = 4 * 1024 * 1024
"""The largest encoded command. The Writer refuses a larger command before it is sent."""

INDEXED_ITEMS_MAX: Final = 32_768
"""The most items of indexed sequences (hosts of TLS certificates) in one command, because each item is read and indexed
by itself. The Writer refuses more, too."""

REQUEST_KEY_MAX_BYTES: Final = 128
"""The longest request key (the argument `request_id` of a write), in UTF-8."""

TTL_BYTES: Final = 4
"""In place of an entity, a lease has the ttl of the node's beats, in milliseconds."""

NO_FENCE: Final = 0
"""The fence of a command that may be proposed in any term."""

NO_SESSION: Final = 0
"""The session of a command that is never sent twice (LocalStore). Duplicates are not looked for."""

_OWNER_BITS: Final = 24
_SESSION_BITS: Final = 63
"""A session's number: a hash of the owner's node id in the high bits, random bits in the other 39."""


class Operation(NamedTuple):
    """One step of a command.

    `entity` is the entity bytes of codec.py for PUT, else None. `if_revision` is the revision that the stored
    entity must have (0: no entity may be stored; None: no condition, but REQUIRE has one). Session verbs have no kind
    and no id.
    """

    verb: int
    kind_number: int = 0
    id: str = ""
    entity: bytes | None = None
    if_revision: int | None = None

    def __repr__(self) -> str:
        """Without the entity, which may be a secret: this text gets into tracebacks and logs."""
        size = "None" if self.entity is None else f"({len(self.entity)} bytes)"
        shown = f"verb={self.verb}, kind_number={self.kind_number}, id={self.id!r}, entity={size}"
        return f"Operation({shown}, if_revision={self.if_revision})"


class Command(NamedTuple):
    """Operations that are all carried out or all refused, under the request id (session, sequence).

    `lowest` is the lowest sequence of the session for which the sender still waits; at most `sequence`. A
    command without operations changes nothing, and its answer says how far the log is applied.

    `fence`: the command is carried out only in an entry of this term. `request_key`: the caller's own id of this write;
    a command whose key was carried out is not carried out again. `forget_below`: keys of entries below this index may
    be forgotten.
    """

    session: int
    sequence: int
    lowest: int
    operations: tuple[Operation, ...] = ()
    fence: int = NO_FENCE
    request_key: str = ""
    forget_below: int = 0
    version: int = VERSION


class MalformedCommand(ValueError):
    """The bytes are not a command of a version that `decode` reads. Never leaves the state machine."""


class UnknownCommandVersion(InvariantViolation):
    """A command of a newer manager. Skipping the command would let this replica diverge, so the manager stops."""

    def __init__(self, version: int) -> None:
        super().__init__(
            f"the log holds a command of version {version}; this program reads "
            f"{SUPPORTED_VERSIONS[0]} to {SUPPORTED_VERSIONS[-1]}: upgrade it, then start this manager again; "
            "if no newer release wrote the command, docs/recovery.md says how to go on without it"
        )
        self.version = version


def new_session(node_id: str, random_bits: Callable[[int], int]) -> int:
    """A number for a new session of this manager. It equals one of the thousand remembered sessions once in five
    hundred million starts."""
    low = _SESSION_BITS - _OWNER_BITS
    return _owner_of(node_id) << low | random_bits(low) | 1  # never NO_SESSION


def is_session_of(session: int, node_id: str) -> bool:
    """Whether a manager may write under this session. Every manager sees the sessions of all others in the log. A
    manager that wrote under the session of another would make the cluster answer that manager's next write with the
    wrong answer."""
    return session >> (_SESSION_BITS - _OWNER_BITS) == _owner_of(node_id)


def owner_among(session: int, node_ids: Iterable[str]) -> str | None:
    """The manager among `node_ids` whose session this is; None if it is none of theirs."""
    return next((node_id for node_id in node_ids if is_session_of(session, node_id)), None)


@lru_cache(maxsize=256)
def _owner_of(node_id: str) -> int:
    return int.from_bytes(blake2b(node_id.encode(), digest_size=_OWNER_BITS // 8).digest(), "big")


# The form is CBOR with every head at a fixed width. Any CBOR reader prints it, and Structs write and read it three
# times quicker than a general encoder. The form leaves nothing to interpretation (no tags, no indefinite lengths, one
# way to write a number), so no release of a library can make two managers read different commands.
#   [2, session, sequence, lowest, fence, [] or [forget_below, request key], operations], and in version 1
#   [1, session, sequence, lowest, operations]; operations are
#       [[verb, kind, if_revision (-1: no condition), id, entity (empty: no entity)], ...]
_HEADER: Final = Struct(">BBBQBQBQ")
_FENCE: Final = Struct(">BQB")
_WHOLE_HEADER: Final = Struct(">BBBQBQBQBQB")
"""_HEADER and _FENCE."""
_REQUEST: Final = Struct(">BQBB")
_COUNT: Final = Struct(">BI")
_STEP: Final = Struct(">BBBBQBH")
_ENTITY: Final = Struct(">BI")
_ARRAY_OF_5: Final = 0x85
_UINT64: Final = 0x1B
_NEGATIVE_64: Final = 0x3B
_HEADS_OF_VERSION_1: Final = (_ARRAY_OF_5, 1, _UINT64, _UINT64, _UINT64)
_ARRAY_OF_7: Final = 0x87
_EMPTY_ARRAY: Final = 0x80
_ARRAY_OF_2: Final = 0x82
_TEXT_8: Final = 0x78
_TEXT_16: Final = 0x79
_BYTES_32: Final = 0x5A
_ARRAY_32: Final = 0x9A
_ARRAY_TYPE: Final = 4  # the three high bits of a head
_NEWER_VERSIONS: Final = range(SUPPORTED_VERSIONS.stop, 24)  # CBOR writes an integer below 24 as one byte
_ONE_PUT: Final = (_ARRAY_32, 1, _ARRAY_OF_5, PUT, _TEXT_16)
REQUEST_ID_BYTES: Final = _HEADER.size
"""The bytes that a request id adds to an encoded body."""
COMMAND_OVERHEAD_BYTES: Final = _WHOLE_HEADER.size + _COUNT.size
"""The size of an encoded command without operations and without a request key."""
REQUEST_KEY_OVERHEAD_BYTES: Final = _REQUEST.size
"""The bytes that a request key adds to a command, besides its own."""
_STEP_OVERHEAD_BYTES: Final = _STEP.size + _ENTITY.size

_HEADS: Final = (_ARRAY_OF_7, VERSION, _UINT64, _UINT64, _UINT64, _UINT64)
_LOWEST_TOO_HIGH: Final = "its lowest awaited sequence is above its own sequence"

_new: Final = tuple.__new__
"""Makes a NamedTuple in a quarter of the time that its class takes."""


def encode(command: Command) -> bytes:
    """The bytes of `command`. The caller has checked the parts: ids ≤ 511 bytes, numbers 0 to 2^64-1."""
    session, sequence, lowest, operations, fence, request_key, forget_below, version = command
    if version == 1:
        header = _HEADER.pack(_ARRAY_OF_5, 1, _UINT64, session, _UINT64, sequence, _UINT64, lowest)
        return header + encode_operations(operations)
    return with_request_id(session, sequence, lowest, encode_body(operations, fence, request_key, forget_below))


def with_request_id(session: int, sequence: int, lowest: int, body: bytes) -> bytes:
    """The bytes of a command whose body is encoded: by `encode_body`, or for version 1 by `encode_operations`."""
    array, version = (_ARRAY_OF_5, 1) if is_of_version_1(body) else (_ARRAY_OF_7, VERSION)
    return _HEADER.pack(array, version, _UINT64, session, _UINT64, sequence, _UINT64, lowest) + body


def is_of_version_1(body: bytes) -> bool:
    """Whether an encoded body is that of a command of version 1."""
    return body[0] == _ARRAY_32


def in_version_1(body: bytes) -> bytes | None:
    """The body of the same command in version 1; None: the command needs version 2."""
    if is_of_version_1(body):
        return body
    if body[: _FENCE.size] != _FENCE.pack(_UINT64, NO_FENCE, _EMPTY_ARRAY):
        return None
    try:
        decode_operations(body, _FENCE.size, _OF_VERSION_1)
    except MalformedCommand:
        return None
    return body[_FENCE.size :]


def encode_body(
    operations: Sequence[Operation], fence: int = NO_FENCE, request_key: str = "", forget_below: int = 0
) -> bytes:
    """A command without its request id, as a caller's thread makes it. `request_key` has at most
    REQUEST_KEY_MAX_BYTES."""
    if not request_key:
        return _FENCE.pack(_UINT64, fence, _EMPTY_ARRAY) + encode_operations(operations)
    key = request_key.encode()
    request = _REQUEST.pack(_UINT64, forget_below, _TEXT_8, len(key)) + key
    return _FENCE.pack(_UINT64, fence, _ARRAY_OF_2) + request + encode_operations(operations)


def encode_operations(operations: Sequence[Operation]) -> bytes:
    """The last part of a command by itself, as fsm/history.py keeps it. It is also the body of a command of version 1,
    which every release reads, if it has only verbs of that version."""
    parts = [_COUNT.pack(_ARRAY_32, len(operations))]
    for verb, kind_number, id_, entity, if_revision in operations:
        key = id_.encode()
        body = b"" if entity is None else entity
        sign, condition = (_NEGATIVE_64, 0) if if_revision is None else (_UINT64, if_revision)
        parts.append(_STEP.pack(_ARRAY_OF_5, verb, kind_number, sign, condition, _TEXT_16, len(key)))
        parts += (key, _ENTITY.pack(_BYTES_32, len(body)), body)
    return b"".join(parts)


def encoded_operations(data: bytes) -> bytes:
    """The bytes of the operations in a command that `decode` accepted, as `encode_operations` made them."""
    if data[0] == _ARRAY_OF_5:
        return data[_HEADER.size :]
    start = _WHOLE_HEADER.size
    if data[start - 1] == _ARRAY_OF_2:
        start += _REQUEST.size + data[start + _REQUEST.size - 1]
    return data[start:]


def operation_size_bytes(operation: Operation) -> int:
    """The bytes that an operation adds to its encoded command. To compare with MAX_BATCH_BYTES."""
    entity = operation.entity
    return _STEP_OVERHEAD_BYTES + len(operation.id.encode()) + (0 if entity is None else len(entity))


def decode(data: bytes) -> Command:
    """The command in `data`. Raises MalformedCommand, or UnknownCommandVersion for a command of a newer manager.

    This checks the form, and that the verb allows each operation, but not whether the kind is known.
    """
    try:
        head, version, s, session, q, sequence, w, lowest, f, fence, request = _WHOLE_HEADER.unpack_from(data)
    except struct_error:
        return _decode_version_1(data)
    if (head, version, s, q, w, f) != _HEADS:
        return _decode_version_1(data)
    if lowest > sequence:
        raise MalformedCommand(_LOWEST_TOO_HIGH)
    if request == _EMPTY_ARRAY:
        operations = decode_operations(data, _WHOLE_HEADER.size)
        return _new(Command, (session, sequence, lowest, operations, fence, "", 0, VERSION))
    if request != _ARRAY_OF_2:
        raise MalformedCommand("not a request key")
    key, forget_below, start = _request_key_in(data)
    return _new(Command, (session, sequence, lowest, decode_operations(data, start), fence, key, forget_below, VERSION))


def _request_key_in(data: bytes) -> tuple[str, int, int]:
    """The request key of a command, its `forget_below`, and the place of its operations. Raises MalformedCommand."""
    try:
        f, forget_below, text, length = _REQUEST.unpack_from(data, _WHOLE_HEADER.size)
        start = _WHOLE_HEADER.size + _REQUEST.size
        key = data[start : start + length].decode()
    except (struct_error, UnicodeDecodeError):
        raise MalformedCommand("not a request key") from None
    if (f, text) != (_UINT64, _TEXT_8) or not 0 < length <= REQUEST_KEY_MAX_BYTES:
        raise MalformedCommand("not a request key")
    return key, forget_below, start + length


def _decode_version_1(data: bytes) -> Command:
    """A command of an earlier release. Raises MalformedCommand, or UnknownCommandVersion."""
    try:
        head, version, s, session, q, sequence, w, lowest = _HEADER.unpack_from(data)
    except struct_error:
        _refuse_header(data)
    if (head, version, s, q, w) != _HEADS_OF_VERSION_1:
        _refuse_header(data)
    if lowest > sequence:
        raise MalformedCommand(_LOWEST_TOO_HIGH)
    operations = decode_operations(data, _HEADER.size, _OF_VERSION_1)
    return Command(session, sequence, lowest, operations, version=1)


def examine(data: bytes, indexed_widths: Mapping[int, int] = MappingProxyType({})) -> Command | str:
    """The command in `data` if it may be put into a log, else the reason why not. Never raises.

    `indexed_widths`: for each number of a kind with indexes, how many of the first items of its entities are examined
    when they are applied. These items must be texts or arrays of texts.

    A good command can be read by `decode`, is not larger than a command may be, and has a session.
    """
    if len(data) > MAX_BATCH_BYTES:
        return f"a command of {len(data)} bytes, {MAX_BATCH_BYTES} is the most"
    try:
        command = decode(data)
        room = INDEXED_ITEMS_MAX
        for _, kind_number, _, entity, _ in command.operations:
            if entity is not None:
                width = indexed_widths.get(kind_number)
                if width is not None:
                    room -= indexed_items(entity, width, room)
    except UnknownCommandVersion as error:
        return f"a command of version {error.version}, this release reads {SUPPORTED_VERSIONS[-1]}"
    except MalformedCommand as error:
        return f"not a command: {error}"
    except (ValueError, IndexError):
        return "not a command: an indexed field of an entity is not a text, or there are too many"
    return command if command.session != NO_SESSION else "a command that has no session"


def _refuse_header(data: bytes) -> NoReturn:
    """Distinguish a command of a newer manager from a broken one: the version comes first in every version."""
    if len(data) > 1 and data[0] >> 5 == _ARRAY_TYPE and data[1] in _NEWER_VERSIONS:
        raise UnknownCommandVersion(data[1])
    raise MalformedCommand("not a command")


def only_put_in(data: bytes) -> tuple[int, int, int, int] | None:
    """If `data` is the encoded form of one put: the number of its kind, and where its id begins, its id ends and its
    entity begins. None for anything else. For code that looks at thousands of changes and wants few of them."""
    try:
        array, count = _COUNT.unpack_from(data, 0)
        head, verb, kind_number, _, _, text, id_length = _STEP.unpack_from(data, _COUNT.size)
    except struct_error:
        return None
    if (array, count, head, verb, text) != _ONE_PUT:
        return None
    id_start = _COUNT.size + _STEP.size
    return kind_number, id_start, id_start + id_length, id_start + id_length + _ENTITY.size


def decode_operations(data: bytes, offset: int = 0, verbs: Set[int] = _OF_VERSION_2) -> tuple[Operation, ...]:
    """The operations in `data` from `offset` to the end, as `encode_operations` wrote them. Raises MalformedCommand.

    Every part that a verb requires or forbids is checked. This is one function, because each command passes through it
    on each manager.
    """
    operations: list[Operation] = []
    try:
        array, count = _COUNT.unpack_from(data, offset)
        offset += _COUNT.size
        while len(operations) < count:  # a false count ends with the bytes
            head, verb, kind_number, sign, condition, text, id_length = _STEP.unpack_from(data, offset)
            id_start = offset + _STEP.size
            id_end = id_start + id_length
            entity_head, entity_length = _ENTITY.unpack_from(data, id_end)
            start = id_end + _ENTITY.size
            offset = start + entity_length
            if head != _ARRAY_OF_5 or text != _TEXT_16 or entity_head != _BYTES_32:
                raise MalformedCommand("not an operation")
            if id_length > KEY_MAX_BYTES or offset > len(data):
                raise MalformedCommand("an id or an entity that is too long")
            if sign == _UINT64:
                if_revision = condition
            elif sign == _NEGATIVE_64 and condition == 0:
                if_revision = None
            else:
                raise MalformedCommand("not a condition")
            entity = data[start:offset] if entity_length else None
            if verb in (PUT, DELETE):
                if (entity is None) is (verb == PUT) or id_length == 0 or kind_number == 0:
                    raise MalformedCommand("a put has an entity, a delete has no entity, both have a kind and an id")
            elif verb not in verbs:
                raise MalformedCommand(f"unknown verb {verb}")
            elif verb == LEASE:
                if entity_length != TTL_BYTES or id_length == 0 or kind_number == 0 or if_revision is not None:
                    raise MalformedCommand("a lease has a kind, an id and a ttl of 4 bytes")
            elif verb not in _OF_SESSIONS:
                if entity is not None or id_length == 0 or kind_number == 0:
                    raise MalformedCommand("a condition and a cascade have no entity, a kind and an id")
                if verb == REQUIRE and if_revision is None:
                    raise MalformedCommand("a condition without a revision")
            elif count != 1 or kind_number or id_length or entity is not None or if_revision is not None:
                raise MalformedCommand("the opening or closing of a session is the only operation of its command")
            id_ = data[id_start:id_end].decode()
            operations.append(_new(Operation, (verb, kind_number, id_, entity, if_revision)))
    except (struct_error, UnicodeDecodeError):
        raise MalformedCommand("not an operation") from None
    if array != _ARRAY_32 or offset != len(data):
        raise MalformedCommand("bytes after the end")
    return tuple(operations)
