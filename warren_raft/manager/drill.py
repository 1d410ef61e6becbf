"""`snapshot drill`: proves that a backup can be restored, by restoring it into a cluster that lasts for a moment.

Lives here: the scratch directory, the steps and their times, the comparison. Not here: the restore
(recovery/restore.py), the manager (store.py). Invariant: the file and every other cluster stay as they are; the
scratch directory is removed however the drill ends, or by the next drill if this process is killed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from warren_raft.admin import operation
from warren_raft.certificates.ca import Authority
from warren_raft.certificates.join_files import SUFFIX
from warren_raft.config import Config
from warren_raft.disk.files import OS_FILES
from warren_raft.disk.paths import absolute
from warren_raft.errors import InUse, NotFound, RefusedForSafety, SnapshotInvalid
from warren_raft.manager.parts import Parts
from warren_raft.manager.store import ReplicatedStore
from warren_raft.model.json_form import to_json
from warren_raft.recovery.restore import restore
from warren_raft.snapshots.contents import opened_snapshot
from warren_raft.snapshots.file import Path, Progress, SnapshotInfo, read_manifest
from warren_raft.store.reading import View
from warren_raft.store.tables import CA, KINDS
from warren_raft.support.wording import in_units_apart

PREFIX: Final = "warren-raft-drill-"
NODE_ID: Final = "drill"
READY_SECONDS: Final = 120.0
"""A cluster of one elects its leader within two election timeouts, 2 s. This is for a busy machine."""
PORTS_TRIED: Final = 5
LEFTOVER_SECONDS: Final = 60.0
"""A scratch directory is locked in the moment after it was made; one that is older and not locked has no owner."""
ROOM_COPIES: Final = 3
"""The copy that is restored, the state, and the snapshot beside it."""
ROOM_BYTES: Final = 64 << 20
"""For the log: segments of 16 MiB, some of them filled ahead."""


@dataclass(frozen=True, kw_only=True)
class Drill:
    """A backup that was restored, started and read: every entity came back."""

    file: str
    old: SnapshotInfo
    """The manifest of the file."""
    entities_digest: str
    """SHA-256 of all entities with their revisions: the same in the file and in the restored cluster."""
    counts: Mapping[str, int]
    """The number of entities that were read, by the plural of each kind."""
    seconds: Mapping[str, float]
    """How long each step took, in the order of the steps: `read`, `restore`, `start`, `compare`, `stop`."""


def drill(file: Path, *, scratch: Path | None = None, progress: Progress | None = None) -> Drill:
    """Restore a snapshot into a cluster of one in a temporary directory, start its manager, and compare every entity.

    `scratch`: the directory to make the temporary one in; None: the system's. Raises SnapshotInvalid (the file is
    damaged, or the restored cluster holds something else), RefusedForSafety (the disk has too little space for it),
    Unavailable (the manager did not become ready), StorageFull, OSError. The manager listens on a port of loopback,
    with a certificate that nobody else has. It takes a processor for its time, so call it in a process of its own.
    """
    file = absolute(file)
    report = progress or (lambda _share: None)
    parent = absolute(scratch if scratch is not None else tempfile.gettempdir())
    manifest = read_manifest(file)
    _require_room(parent, manifest.size_bytes)
    seconds: dict[str, float] = {}
    with _scratch_directory(parent) as directory:
        with _timed(seconds, "read"), opened_snapshot(file) as contents, contents.read() as view:
            manifest, expected = contents.manifest, _summary(view)
        _require_counts(file, manifest, expected)
        report(0.3)
        found = _restored(file, directory, seconds, lambda share: report(0.3 + 0.4 * share), report)
    if found != expected:
        raise SnapshotInvalid(file, f"the restored cluster holds other entities: {_difference(expected, found)}")
    report(1.0)
    return Drill(file=file, old=manifest, entities_digest=expected.digest, counts=expected.counts, seconds=seconds)


def _restored(file: str, directory: str, seconds: dict[str, float], restoring: Progress, report: Progress) -> _Summary:
    """Restore and start, on another port if another program took the first one; then read everything."""
    for tries_left in reversed(range(PORTS_TRIED)):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        data_dir = os.path.join(directory, f"data-{tries_left}")
        with _timed(seconds, "restore"):
            restore(file, data_dir, node_id=NODE_ID, members={NODE_ID: address}, progress=restoring)
        try:
            return _read_back(_config(directory, data_dir, address), seconds, report)
        except InUse:
            OS_FILES.remove_tree(data_dir)
            if not tries_left:
                raise
    raise AssertionError


def _config(directory: str, data_dir: str, address: str) -> Config:
    """Its certificate is of a CA of its own, so that no other process gets a link, and no CA of this user is made."""
    authority = os.path.join(directory, f"ca-{os.path.basename(data_dir)}")
    (join,) = Authority.create(authority).issue({NODE_ID: address})
    join_path = os.path.join(directory, NODE_ID + SUFFIX)
    join.write(join_path)
    return Config(
        node_id=NODE_ID,
        data_dir=data_dir,
        listen=address,
        members={NODE_ID: address},
        join=join_path,
        admin=False,
        disk_reserve_bytes=0,
    )


def _read_back(config: Config, seconds: dict[str, float], report: Progress) -> _Summary:
    began = time.perf_counter()
    with _running(config) as store:
        # The view is of the moment before this manager leads: it then reports the nodes that send no heartbeats here.
        with store.read() as view:
            store.wait_ready(READY_SECONDS)
            store.barrier(READY_SECONDS)
            seconds["start"] = time.perf_counter() - began
            report(0.8)
            with _timed(seconds, "compare"):
                found = _summary(view)
        began = time.perf_counter()
    seconds["stop"] = time.perf_counter() - began
    return found


@contextmanager
def _running(config: Config) -> Iterator[ReplicatedStore]:
    """A manager. When the block has ended, nothing of it runs any more, also if Ctrl-C came while it was opened."""
    made: list[Parts] = []

    class Scratch(ReplicatedStore):
        def _made_parts(self) -> Parts:
            made.append(super()._made_parts())
            return made[0]

    try:
        yield Scratch(config)
    finally:
        for parts in made:
            parts.close()


# ---------------------------------------------------------------------------------------------- comparing


@dataclass(frozen=True)
class _Summary:
    digest: str
    counts: Mapping[str, int]


def _summary(view: View) -> _Summary:
    """Every entity, with its revision and its secret parts, in the order of kinds and ids."""
    digest, counts = hashlib.sha256(), {}
    for kind in KINDS:
        number = 0
        for text in _texts(view, kind):
            digest.update(len(text).to_bytes(8, "big") + text)
            number += 1
        digest.update(kind.name.encode())
        counts[kind.plural] = number
    return _Summary(digest.hexdigest(), counts)


def _texts(view: View, kind: Any) -> Iterator[bytes]:
    if kind is CA:
        with suppress(NotFound):
            yield view.get_ca()
        return
    for entity in operation(view, "iter", kind)():
        yield json.dumps(to_json(entity)).encode()


def _require_counts(file: str, manifest: SnapshotInfo, read: _Summary) -> None:
    """The number of entities is in the file's last page too. It has no count of the CA."""
    for kind, number in manifest.counts.items():
        if read.counts.get(kind) != number:
            raise SnapshotInvalid(file, f"its last page says {number} {kind}, and it holds {read.counts.get(kind)}")


def _difference(expected: _Summary, found: _Summary) -> str:
    numbers = [
        f"{found.counts[kind]} {kind} instead of {number}"
        for kind, number in expected.counts.items()
        if found.counts[kind] != number
    ]
    return ", ".join(numbers) or f"their digest is {found.digest}, and that of the file {expected.digest}"


# ---------------------------------------------------------------------------------------------- the scratch directory


@contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[step] = time.perf_counter() - began


def _require_room(parent: str, size: int) -> None:
    needed, free = ROOM_COPIES * size + ROOM_BYTES, OS_FILES.free_bytes(parent)
    if free < needed:
        left, wanted = in_units_apart(free, needed)
        raise RefusedForSafety(
            f"the disk of {parent} has {left} left, and a drill with this file needs {wanted}: "
            "name a directory on another disk with --scratch, or free some space"
        )


@contextmanager
def _scratch_directory(parent: str) -> Iterator[str]:
    """A directory of this user alone, which holds secrets for as long as the block lasts."""
    _remove_leftovers(parent)
    path = tempfile.mkdtemp(prefix=PREFIX, dir=parent)
    lock = -1
    try:
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield path
    finally:
        OS_FILES.remove_tree(path)
        if lock >= 0:
            os.close(lock)


def _remove_leftovers(parent: str) -> None:
    """The directories of this user's drills that were killed: they hold secrets."""
    for entry in os.scandir(parent):
        if not entry.name.startswith(PREFIX):
            continue
        with suppress(OSError):  # another drill removes it at the same time
            found = entry.stat(follow_symlinks=False)
            is_old = time.time() - found.st_mtime > LEFTOVER_SECONDS
            if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and is_old:
                _remove_if_free(entry.path)


def _remove_if_free(path: str) -> None:
    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        OS_FILES.remove_tree(path)
    finally:
        os.close(lock)
