"""The targets of the fuzzer: for each way in which bytes reach a manager, a function of bytes that raises if it finds a
bug.

The first byte of an input says how the rest is read. 0: it is used as it is. Otherwise it is a source of choices, from
which nearly right bytes are built (source.py). Not here: making the inputs (test_fuzz.py, __main__.py).
"""

from __future__ import annotations

import copy
import hashlib
import json
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Final

import cbor2

from tests.cbor_readers import READERS, in_frames
from tests.fuzz import member
from tests.fuzz.source import Source
from tests.log_recorder import Recorder, open_log
from tests.memory_files import MemoryFiles
from tests.snapshot_support import change, database_in, rehash, small_state, snapshot_of
from warren_raft.config import Config
from warren_raft.errors import (
    Corrupted,
    InvalidConfig,
    InvalidEntity,
    InvariantViolation,
    RefusedForSafety,
    SnapshotInvalid,
)
from warren_raft.fsm.digest import recompute
from warren_raft.fsm.machine import StateMachine
from warren_raft.migrate.records import format_line, parse_line, same_record
from warren_raft.raft import entries, messages
from warren_raft.raft.links import wire
from warren_raft.raft.links.wire import BadFrame, FrameReader
from warren_raft.raft.log import format as log_format
from warren_raft.raft.messages import PeerFault
from warren_raft.raft.state_machine import membership_of
from warren_raft.snapshots.file import (
    MAGIC,
    TRAILER_BYTES,
    extract,
    read_manifest,
)
from warren_raft.snapshots.verification import verify
from warren_raft.store import codec
from warren_raft.store.command import (
    Command,
    MalformedCommand,
    Operation,
    UnknownCommandVersion,
    Verb,
    decode,
    encode,
)
from warren_raft.store.database import SESSIONS, Database
from warren_raft.store.tables import KINDS
from warren_raft.store.transactions import (
    CLUSTER_ID,
    HISTORY,
    MEMBERSHIP,
    META,
    WriteTransaction,
)
from warren_raft.support import strict_cbor

RAW: Final = 0
"""The first byte of an input, if the rest is used as it is."""
LOG_SIZES: Final = {"segment_bytes": 16384, "start_segment_bytes": 12288}
_PLAIN: Final = (type(None), bool, int, float, str, bytes, cbor2.CBORSimpleValue, type(cbor2.undefined))


def _built(data: bytes, build: Callable[[Source], bytes]) -> bytes:
    """The bytes that an input describes."""
    return data[1:] if data[:1] in (b"", b"\0") else build(Source(data[1:]))


# ---- CBOR


def fuzz_cbor(data: bytes) -> None:
    """Every reader of CBOR returns a value, or raises one of its documented errors."""
    item = _built(data, Source.cbor)
    for read, error in READERS.values():
        with suppress(error):
            read(item)
    with suppress(strict_cbor.BadCbor):
        _require_plain(strict_cbor.decode(item))
    for kind in KINDS:
        with suppress(codec.MalformedRecord):
            codec.decode(kind, item)


def _require_plain(value: object) -> None:
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if type(value) is list:
            waiting += value
        elif type(value) is dict:
            assert all(type(key) in (str, bytes) for key in value)
            waiting += value.values()
        else:
            assert type(value) in _PLAIN, type(value)


# ---- frames


def _stream(source: Source) -> bytes:
    """Frames with right checksums: of messages, of any CBOR, of parts, of any bytes."""
    pieces = []
    while source and len(pieces) < 16:
        kind = source.below(8)
        if kind < 3:
            message = {source.text(): source.value() for _ in range(source.below(4))}
            kinds = tuple(member.KINDS)
            pieces.append(in_frames(cbor2.dumps({"type": source.pick(kinds), **message})))
        elif kind < 5:
            pieces.append(in_frames(source.cbor()))
        elif kind < 7:
            body = source.blob()
            if source.byte() & 1:
                body = wire.first_body(source.integer() % 2**64, source.pick((0, 10, 1500, 2**20, 2**32 - 1)), body)
            body += bytes(source.pick((0, 0, 1024, 65_000)))
            pieces.append(wire.frame_head(source.byte(), body) + body)
        else:
            pieces.append(source.blob())
    return b"".join(pieces)


def fuzz_frames(data: bytes) -> None:
    """A stream gives messages or `BadFrame`, and never keeps more bytes than came."""
    stream, cut = _built(data, _stream), data[1] + 1 if len(data) > 1 else 1
    reader = FrameReader(limit_items=wire.HANDSHAKE_ITEMS if cut & 1 else strict_cbor.MAX_ITEMS)
    with suppress(BadFrame):
        for at in range(0, len(stream), 7 * cut):
            reader.feed(stream[at : at + 7 * cut])
            while (message := reader.read()) is not None:
                assert type(message["type"]) is str
                with suppress(PeerFault):
                    messages.decode(message)
            assert reader.unfinished_bytes <= len(stream)


# ---- admission, and one member among peers that send any messages


def _hello(source: Source) -> dict[str, Any]:
    hello = dict(source.pick(member.hellos()))
    for name in tuple(hello):
        if source.byte() < 64:
            hello[name] = source.pick((source.value(), source.text(), member.hellos()[0][name], source.cbor()))
    return hello


@cache
def _judge() -> member.Member:
    return member.Member()


def fuzz_hello(data: bytes) -> None:
    """Any hello is judged, and the reason is a text."""
    if data[:1] in (b"", b"\0"):
        try:
            hello = strict_cbor.decode(data[1:], max_items=wire.HANDSHAKE_ITEMS)
        except strict_cbor.BadCbor:
            return
        if type(hello) is not dict:
            return
    else:
        hello = _hello(Source(data[1:]))
    refusal = _judge().node.engine.judge(hello)
    assert refusal is None or type(refusal.text) is str


def fuzz_member(data: bytes) -> None:
    """No message of a peer stops a manager, or removes a committed entry."""
    member.run(Source(data))


# ---- the log


@cache
def _recorded() -> Recorder:
    record = Recorder(MemoryFiles("/data"), **LOG_SIZES)
    record.open()
    record.log.set_term(1, "a")
    record.sync()
    record.append(30, 60, term=1)
    record.sync()
    record.log.set_note(b"")
    record.log.set_commit(2)
    record.append(700, 5, term=1)
    record.sync()
    record.log.close()
    return record


def fuzz_log(data: bytes) -> None:
    """The bytes of a log are a log, or raise `Corrupted`, or are of a newer release; each entry can be decoded, or is
    reported as not understood."""
    record = _recorded()
    files = copy.deepcopy(record.files)
    place = record.places[-1]
    content = bytearray(files.content(place.path))
    source = Source(data[1:])
    if data[:1] in (b"", b"\0"):
        for _ in range(16):
            if not source:
                break
            at = (source.byte() << 8 | source.byte()) % len(content)
            content[at : at + 1] = source.bytes(1)
    else:
        salt = log_format.header_salt(bytes(content))
        parts = []
        for _ in range(source.below(5)):
            body = source.pick((b"", source.blob(), entries.encode_commands([source.blob()])))
            numbers = [source.pick((0, 1, 2, 3, 4, 5, 6, 7, source.integer() % 2**64)) for _ in range(2)]
            parts += (log_format.record_head(source.pick((1, 2, 3, 4, 5, source.byte())), *numbers, body), body)
        number, commit, _ = log_format._read_head(bytes(content), place.start, salt) or (0, 0, 0)
        numbers = [
            source.pick((number, number, number + 1)),
            source.pick((commit, commit, 5, source.integer() % 2**64)),
        ]
        batch = log_format.encode_batch(numbers[0], numbers[1], parts, place.start, salt)
        content[place.start : place.start + len(batch)] = batch[: len(content) - place.start]
    files.set_content(place.path, bytes(content))
    try:
        log = open_log(files, **LOG_SIZES)
    except (Corrupted, RefusedForSafety):
        return
    for command, _, _ in log.entries[1:]:
        with suppress(InvariantViolation):
            entries.decode(command)
    log.close()


# ---- snapshots


@cache
def _scratch() -> Path:
    directory = tempfile.TemporaryDirectory(prefix="warren-raft-fuzz-")
    _KEPT.append(directory)
    return Path(directory.name)


_KEPT: list[Any] = []
"""Directories that are removed when the process ends."""


@cache
def _snapshot() -> bytes:
    path = _scratch() / "sound.mdb"
    with small_state(_scratch() / "state", containers=3) as database:
        snapshot_of(database, path)
    return path.read_bytes()


def _spoil(source: Source) -> Callable[[WriteTransaction], None]:
    """Changes of records that damage never makes, but an attacker may make."""

    def do(transaction: WriteTransaction) -> None:
        for _ in range(1 + source.below(3)):
            match source.below(6):
                case 0:
                    transaction.store(META, MEMBERSHIP, source.cbor())
                case 1:
                    transaction.store(META, CLUSTER_ID, source.blob())
                case 2:
                    transaction.store(
                        SESSIONS,
                        source.pick((b"8bytes..", b"\xffkjob", b"\xffo" + bytes(12), source.blob() or b"x")),
                        source.cbor(),
                    )
                case 3:
                    transaction.store(HISTORY, source.pick((bytes(7) + b"\3", source.blob() or b"x")), source.blob())
                case _:
                    kind, id_ = source.pick(KINDS), source.pick(("ca", "c-1", "s-1", "n-1", source.text() or "x"))
                    with suppress(InvalidEntity):
                        transaction.put(kind, id_, source.pick((codec.make_record(1, source.cbor()), source.cbor())))

    return do


def _manifest_page(body: bytes) -> bytes:
    page = (MAGIC + b"\0\0\0\1" + len(body).to_bytes(4, "big") + body[: TRAILER_BYTES - 56]).ljust(
        TRAILER_BYTES - 32, b"\0"
    )
    return page + hashlib.sha256(page).digest()


def fuzz_snapshot(data: bytes) -> None:
    """A file is a snapshot that a manager can use, or is damaged, or has a newer format."""
    path, whole = _scratch() / "fuzzed.mdb", _snapshot()
    source = Source(data[1:])
    if data[:1] in (b"", b"\0"):
        path.write_bytes(whole[:-TRAILER_BYTES] + _manifest_page(source.rest()))
    elif data[0] & 1:
        path.write_bytes(whole)
        values = read_manifest(path).to_json()
        if source.byte() & 1:
            name = source.pick(tuple(values))
            values[name] = source.pick((source.integer(), source.text(), None, "0001-01-01T00:00:00+23:59", {}))
            path.write_bytes(whole[:-TRAILER_BYTES] + _manifest_page(json.dumps(values).encode()))
        else:
            content = database_in(path)
            for _ in range(1 + source.below(8)):
                at = (source.byte() << 16 | source.byte() << 8 | source.byte()) % len(content)
                content[at : at + 1] = source.bytes(1)
            rehash(path, bytes(content))
    else:
        path.unlink(missing_ok=True)
        if not _made_up(path, source):
            return
    try:
        manifest = verify(path)
    except (SnapshotInvalid, RefusedForSafety):
        return
    manifest.to_json()
    _require_usable(path)


def _made_up(path: Path, source: Source) -> bool:
    """Write a snapshot of a state with any contents. False: not even a manager's own code could write it."""
    state = _scratch() / "made-up"
    state.mkdir(exist_ok=True)
    with small_state(Path(tempfile.mkdtemp(dir=state)), containers=2) as database:
        try:
            change(database, _spoil(source), new_digest=True)
            snapshot_of(database, path)
        except Corrupted:
            return False
    return True


def _require_usable(path: Path) -> None:
    """If `verify` accepts a file, a manager can start from it."""
    copied = _scratch() / "extracted.mdb"
    copied.unlink(missing_ok=True)
    extract(path, copied)
    with Database.open_file(copied) as database:
        machine = StateMachine(database)
        membership_of(machine)
        with database.read() as transaction:
            for kind in KINDS:
                for _, record in transaction.items(kind):
                    codec.decode(kind, record)


# ---- commands


def _command(source: Source) -> bytes:
    if source.byte() < 16:
        return source.blob()
    operations = []
    for _ in range(source.below(4)):
        verb = source.pick((Verb.PUT, Verb.PUT, *Verb, source.byte()))
        id_ = source.pick(("c-1", "s-1", "ca", source.text()))[:200]
        entity = source.pick((None, b"", codec.dumps([id_, source.value(1)]), source.cbor()))
        condition = source.pick((None, None, 0, 1, 2, source.integer() % 2**64))
        operations.append(Operation(verb, source.below(12), id_, entity, condition))
    sequence = source.pick((1, 2, 3, 4, source.integer() % 2**64))
    lowest, version = source.pick((0, 1, sequence)), source.pick((1, 2, 2, 2))
    command = Command(source.below(4), sequence, lowest, tuple(operations), version=version)
    if version == 1:
        return encode(command)
    key, below = source.pick(("", "", "job", source.text()))[:40], source.pick((0, 3, source.integer() % 2**64))
    return encode(command._replace(fence=source.pick((0, 0, 1, 2)), request_key=key, forget_below=below))


def fuzz_commands(data: bytes) -> None:
    """Any commands get answers, and digest and indexes agree with the records afterwards."""
    source = Source(data[1:])
    commands = [source.rest()] if data[:1] in (b"", b"\0") else [_command(source) for _ in range(8) if source]
    for command in commands:
        with suppress(MalformedCommand, UnknownCommandVersion):
            assert encode(decode(command)) == command
    state = _scratch() / "commands"
    state.mkdir(exist_ok=True)
    with Database.open(tempfile.mkdtemp(dir=state), sync=False) as database:
        machine = StateMachine(database)
        for command in commands:
            with suppress(UnknownCommandVersion):
                machine.apply(machine.applied_index + 1, 1, [command])
        with database.read() as transaction:
            assert recompute(transaction) == machine.digest
            assert transaction.verify_indexes() == []
        StateMachine(database)


# ---- files of people


def _line(source: Source) -> bytes:
    kind = source.pick(KINDS)
    if source.byte() & 1 and kind.entity is not None:
        text = format_line(kind.name, kind.entity(id="x"))
    else:
        text = format_line("ca", source.blob())
    line = json.loads(text)
    for _ in range(source.below(4)):
        target = source.pick([each for each in (line, line["value"]) if isinstance(each, dict)])
        target[source.pick((*target, source.text()))] = source.value()
    return json.dumps(line, default=repr).encode()


def fuzz_import(data: bytes) -> None:
    """A line is a record, which is the same after an export, or raises `InvalidEntity`."""
    text = _built(data, _line).decode("utf-8", "surrogateescape")
    with suppress(InvalidEntity):
        kind_name, _, entity = parse_line(text)
        assert same_record(format_line(kind_name, entity), text)


def fuzz_toml(data: bytes) -> None:
    """A configuration file is accepted, or refused with a message."""
    path = _scratch() / "manager.toml"
    path.write_bytes(data)
    with suppress(InvalidConfig, RefusedForSafety):
        Config.from_toml(path)


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "cbor": fuzz_cbor,
    "frames": fuzz_frames,
    "hello": fuzz_hello,
    "member": fuzz_member,
    "log": fuzz_log,
    "snapshot": fuzz_snapshot,
    "commands": fuzz_commands,
    "import": fuzz_import,
    "toml": fuzz_toml,
}
