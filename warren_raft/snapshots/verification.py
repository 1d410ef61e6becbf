"""The verification of a snapshot: its hash, its structure, its manifest, its digest, and every record.

It runs in this process (`verify`, a second or more of Python), or in a child (`verify_in_child`). A manager needs the
child, because its raft thread would stall. Invariant: LMDB opens a file only after its hash and structure were checked.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from io import FileIO
from typing import Any, Final, ParamSpec, Protocol

import lmdb

from warren_raft.disk.descriptors import RESERVE
from warren_raft.disk.paths import absolute
from warren_raft.errors import (
    Closed,
    Corrupted,
    RefusedForSafety,
    SnapshotInvalid,
    WarrenError,
)
from warren_raft.fsm.digest import recompute
from warren_raft.fsm.entry import Committed, position_problem, read_committed
from warren_raft.snapshots import structure
from warren_raft.snapshots.file import (
    Path,
    Progress,
    SnapshotInfo,
    counts_of,
    manifest_in,
    opened,
    sha256_of,
)
from warren_raft.snapshots.interpreter import candidates, import_places
from warren_raft.snapshots.pacing import (
    Cancelled,
    Pace,
    PacedFile,
    PacedTransaction,
)
from warren_raft.snapshots.records import Unreadable, check_history, check_records, check_sessions, first_of
from warren_raft.store.database import (
    Database,
    ReadTransaction,
    StorageFailed,
)
from warren_raft.store.lmdb_errors import code_of, refuse_newer_data
from warren_raft.support.log_lines import log_event

logger = logging.getLogger("warren_raft.snapshots")
P = ParamSpec("P")

CHANGED: Final = "was changed while it was verified"
CANCEL_POLL_SECONDS: Final = 0.05
STDERR_BYTES: Final = 64 * 1024  # the end of a child's stderr has its last words
NICE: Final = 10  # a child of low priority gives way, and still gets a tenth of a busy processor
_HASHED, _WALKED, _SUMMED, _DECODED = 0.05, 0.2, 0.3, 0.85  # shares of the whole, as measured
_KILLS: Final = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGXCPU})
"""Signals that say nothing about the file. SIGXCPU may come from a limit that is not ours."""
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
_CRASHES: Final = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL})


class VerificationFailed(WarrenError):
    """A snapshot could not be verified, so nothing is known about it. `path` names it."""

    def __init__(self, path: str, detail: str) -> None:
        super().__init__(path, detail)
        self.path = path
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.path} could not be verified: {self.detail}"


class NoChild(VerificationFailed):
    """No interpreter could be started for a child. `detail` describes the last attempt."""


class Cancel(Protocol):
    """The part of `threading.Event` that is used here."""

    def is_set(self) -> bool: ...


def verify(
    path: Path, *, records: bool = True, progress: Progress | None = None, pace: Pace | None = None
) -> SnapshotInfo:
    """Prove that the file has the written bytes: its hash, the structure of the database, the manifest, the digest.

    `records`: also decode every record, the sessions and the history, and rebuild the indexes to compare them. 100,000
    containers (90 MB) take 0.3 s, with records 1.0 s, on one processor. `pace`: in pieces, for other threads.

    Raises SnapshotInvalid (with the fault and its place), RefusedForSafety (a newer format), OSError, and the errors of
    `pace`.
    """
    path = os.fspath(path)
    with opened(path) as descriptor:
        manifest = manifest_in(descriptor, path)
        _require_sound(descriptor, manifest, path, records, progress or _no_report, pace)
    return manifest


def verify_copy(
    copy: Path, path: Path, manifest: SnapshotInfo, *, records: bool, progress: Progress | None = None
) -> None:
    """`verify`, for a copy of the database in the snapshot `path`. The errors name the snapshot."""
    with opened(copy) as descriptor:
        _require_sound(descriptor, manifest, os.fspath(path), records, progress or _no_report, None)


def verify_open_file(descriptor: int, manifest: SnapshotInfo, path: Path) -> str:
    """`verify` without the records, for a snapshot that is open. Returns a path of the same file, to open its database.
    `path` is for errors."""
    _require_sound(descriptor, manifest, os.fspath(path), False, _no_report, None)
    return _same_file(descriptor)


def verify_records(path: Path, proved: Callable[[], str]) -> SnapshotInfo:
    """The rest of `verify` for a file whose structure and digest another process proves meanwhile. `proved` waits for
    the hash of the bytes that were proved. Raises the errors of `verify`."""
    path = os.fspath(path)
    with opened(path) as descriptor:
        manifest = manifest_in(descriptor, path)
        _require_hash(descriptor, manifest, path, _no_report)
        if proved() != manifest.sha256:
            raise SnapshotInvalid(path, CHANGED)
        problem = _content_problem(
            _same_file(descriptor), path, None, lambda transaction: _check_records(transaction, manifest, _no_report)
        )
        if problem is not None:
            raise SnapshotInvalid(path, problem)
    return manifest


def _no_report(_share: float) -> None:
    pass


def _same_file(descriptor: int) -> str:
    """A path of an open file, so that a change of its name meanwhile does not matter."""
    return f"/proc/self/fd/{descriptor}"


def _require_hash(descriptor: int, manifest: SnapshotInfo, path: str, report: Progress) -> None:
    if sha256_of(descriptor, manifest.size_bytes, lambda share: report(share * _HASHED)) != manifest.sha256:
        raise SnapshotInvalid(path, "is damaged: its bytes do not fit the hash in its last page")


def _require_sound(
    descriptor: int, manifest: SnapshotInfo, path: str, records: bool, report: Progress, pace: Pace | None
) -> None:
    _require_hash(descriptor, manifest, path, report)
    same_file = _same_file(descriptor)
    problem = _structure_problem(same_file, pace)
    report(_WALKED)
    if problem is None:

        def check(transaction: ReadTransaction) -> None:
            _check_manifest(transaction, manifest)
            report(_SUMMED)
            if records:
                _check_records(transaction, manifest, report)

        problem = _content_problem(same_file, path, pace, check)
    if problem is not None:
        raise SnapshotInvalid(path, problem)
    report(1.0)


def prove_state(path: Path) -> None:
    """Raise Corrupted if a database that no process has open is damaged: its structure, its digest, its indexes.

    For a state that has no seal because its manager died (`StateDirectory.seal`).
    100,000 containers (90 MB) take 0.8 s.

    Raises RefusedForSafety for a newer format. Raises OSError or MemoryError if this machine could not check the file
    (too many open files, no memory, no permission): then nothing is known about the file.
    """
    path = os.fspath(path)
    refuse_newer_data(path)
    problem = _structure_problem(path)
    if problem is None:
        problem = _state_problem(path)
    if problem is not None:
        raise Corrupted(path, problem)


def _state_problem(path: str) -> str | None:
    try:
        with Database.open_file(path) as database, database.read() as transaction:
            problem = position_problem(transaction) or _problem_of_members(read_committed(transaction))
            if problem is not None:
                return problem
            said, recomputed = read_committed(transaction).digest, recompute(transaction)
            if said != recomputed:
                return f"its records have the digest {recomputed.hex()}, not {said.hex()}"
            differences = transaction.verify_indexes()
    except (StorageFailed, lmdb.Error) as error:
        return _problem_of(error, path)
    return first_of(differences) if differences else None


def _structure_problem(file: str, pace: Pace | None = None) -> str | None:
    try:
        problems = structure.problems_of(partial(FileIO, file) if pace is None else partial(PacedFile, file, pace))
    except MemoryError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno != errno.EIO:
            raise  # an error of this machine (for example too many open files) says nothing about the file
        # Hostile bytes may raise any other error in the verifier: then the file is damaged.
        problems = [str(error) if isinstance(error, structure.NoDatabase) else f"{type(error).__name__}: {error}"]
    return f"is not a sound database: {first_of(problems)}" if problems else None


def _problem_of(error: StorageFailed | lmdb.Error, path: str) -> str:
    """The fault of the file, from an error of LMDB. Raises OSError for an error that concerns only this machine."""
    code = error.code if isinstance(error, StorageFailed) else code_of(error)
    if code > 0:  # an errno: of memory, of descriptors, of locks
        raise OSError(code, os.strerror(code), path) from None
    return f"cannot be read: {error}"


class _Problem(Exception):
    """The database has a fault. This error does not leave the module."""


def _content_problem(file: str, path: str, pace: Pace | None, check: Callable[[ReadTransaction], None]) -> str | None:
    """The fault that `check` finds in the database."""
    try:
        with Database.open_file(file) as database, _reading(database, pace) as transaction:
            check(transaction)
    except (_Problem, Unreadable) as problem:
        return str(problem)
    except Corrupted as error:
        return error.detail
    except (StorageFailed, lmdb.Error) as error:
        return _problem_of(error, path)
    return None


def _reading(database: Database, pace: Pace | None) -> ReadTransaction:
    return database.read() if pace is None else PacedTransaction(database, pace)


def _check_manifest(transaction: ReadTransaction, manifest: SnapshotInfo) -> None:
    problem = position_problem(transaction)
    if problem is not None:
        raise _Problem(problem)
    found = read_committed(transaction)
    pairs: list[tuple[str, object, object]] = [
        ("cluster id", found.cluster_id, manifest.cluster_id),
        ("index", found.applied_index, manifest.index),
        ("term", found.applied_term, manifest.term),
        ("revision", found.revision, manifest.revision),
        ("digest", found.digest.hex(), manifest.digest),
        ("number of entities", counts_of(transaction), manifest.counts),
    ]
    for name, there, said in pairs:
        if there != said:
            raise _Problem(f"its last page tells another {name} ({said}) than its database ({there})")
    problem = _problem_of_members(found)
    if problem is not None:
        raise _Problem(problem)
    recomputed = recompute(transaction).hex()
    if recomputed != manifest.digest:
        raise _Problem(f"its records have the digest {recomputed}, not {manifest.digest}")


def _check_records(transaction: ReadTransaction, manifest: SnapshotInfo, report: Progress) -> None:
    total = max(1, sum(manifest.counts.values()))
    check_records(
        transaction,
        manifest.revision,
        lambda done: report(_SUMMED + (_DECODED - _SUMMED) * min(1.0, done / total)),
    )
    report(_DECODED)
    check_sessions(transaction)
    check_history(transaction, manifest.revision)


def _problem_of_members(found: Committed) -> str | None:
    """The fault of the list of members; None if it has no fault, or does not exist."""
    from warren_raft.raft.membership import Membership  # here, because it imports asyncio and ssl

    if found.membership is None:
        return None
    try:
        membership = Membership.decode(found.membership)
    except ValueError as error:
        return f"the members in it cannot be read: {error}"
    if membership.cluster_id != found.cluster_id:
        return f"the members in it are of cluster {membership.cluster_id}, and it is of {found.cluster_id}"
    if membership.index > found.applied_index:
        return f"the members in it are of index {membership.index}, and it ends at {found.applied_index}"
    return None


# ---------------------------------------------------------------------------------------------- in a child

BEGUN: Final = b"begun\n"
"""The child prints this before it reads the file. A crash before that (for example no file descriptor for its own
modules) says nothing about the file."""

CPU_SECONDS_MIN: Final = 60
CPU_SECONDS_PER_MIB: Final = 1
"""A child's limit of processor time, so that a busy machine ends no child: ninety times the time for 100,000 containers
(90 MB). A file that was made by hand may take for ever."""

MEMORY_BYTES_MIN: Final = 1 << 30
MEMORY_FACTOR: Final = 16
"""The limit of memory as a multiple of the file's size. The indexes are rebuilt in memory: once or twice the size."""

# The child imports the same modules from the same places as this process, and nothing from the current directory.
_BEGIN: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from warren_raft.snapshots.verify_child import main; main(sys.argv[2:])"
)


def verify_in_child(
    path: Path,
    *,
    records: bool,
    low_priority: bool = True,
    cancel: Cancel | None = None,
    proof: int | None = None,
) -> SnapshotInfo:
    """`verify`, in a process of its own that ends with this one. Blocks without the GIL.

    Setting `cancel` ends it within CANCEL_POLL_SECONDS with Closed. `low_priority`: it gives way to all other
    processes. `proof`: the reading end of a pipe; the child then does `verify_records`, and the line that it reads
    there is the answer of `proved`. A file that takes more processor time than CPU_SECONDS_MIN plus CPU_SECONDS_PER_MIB
    is SnapshotInvalid. A file that needs more memory than MEMORY_BYTES_MIN plus MEMORY_FACTOR times its size is
    VerificationFailed. If there is no interpreter for a child (a frozen program, an embedded one), it is done in this
    process, in pieces that let other threads run, and takes several times longer.

    Raises the errors of `verify`, and VerificationFailed if the child got no result.
    """
    path = absolute(path)
    options = {"records": records, "nice": NICE if low_priority else 0}
    if proof is not None:
        options["proof"] = True
    try:
        answer = _answer_of_child(path, options, cancel, lambda detail: SnapshotInvalid(path, detail), proof)
    except NoChild as error:
        return _verified_here(path, records, cancel, error)
    try:
        return SnapshotInfo.from_json(answer)
    except ValueError as error:
        raise VerificationFailed(path, f"the process that verified it gave a wrong answer: {error}") from error


def prove_state_in_child(path: Path, *, cancel: Cancel | None = None) -> None:
    """`prove_state`, in a process of its own: a file that ends this process by a crash is Corrupted.

    Raises the errors of `prove_state`, and VerificationFailed if the child got no result.
    """
    path = absolute(path)
    _answer_of_child(path, {"state": True, "nice": 0}, cancel, lambda detail: Corrupted(path, detail))


_said: list[str] = []
"""Why no child could be started; logged once."""


def _verified_here(path: str, records: bool, cancel: Cancel | None, why: NoChild) -> SnapshotInfo:
    if not _said:
        _said.append(why.detail)
        text = (
            f"{why.detail}: they are verified in this process, which takes longer; multiprocessing.set_executable "
            "names a Python interpreter that has this package"
        )
        log_event(logger, logging.WARNING, "no child process can verify snapshots", text)
    try:
        return verify(path, records=records, pace=Pace(cancel.is_set if cancel is not None else lambda: False))
    except Cancelled:
        raise Closed("the verification was cancelled") from None


def _answer_of_child(
    path: str,
    options: dict[str, int],
    cancel: Cancel | None,
    damaged: Callable[[str], WarrenError],
    stdin: int | None = None,
) -> dict[str, Any]:
    """The findings of the child (verify_child.py). `damaged` makes the error for a file that ended the child.

    Raises NoChild if no interpreter could start.
    """
    size = _size_of(path)
    limits = {"cpu_seconds": _cpu_seconds(size), "memory_bytes": MEMORY_BYTES_MIN + MEMORY_FACTOR * size}
    arguments = [json.dumps(import_places()), path, json.dumps({**options, **limits, "parent": os.getpid()})]
    reason = "no Python interpreter was found beside this program"
    for interpreter in candidates():
        try:
            code, out, err = _run([interpreter, "-I", "-c", _BEGIN, *arguments], cancel, stdin)
        except OSError as error:
            if error.errno in _EXHAUSTED:
                raise  # a shortage that will pass
            reason = f"{interpreter} cannot be started: {error.strerror}"
            continue
        begun, answer = out.startswith(BEGUN), out.removeprefix(BEGUN)
        if code == 0 and begun:
            return _result_of(path, answer)
        if begun and code == -signal.SIGXCPU and _is_own_deadline(size):
            raise damaged(f"takes more processor time than any undamaged file of its size ({_cpu_seconds(size)} s)")
        if begun and -code in _CRASHES:
            raise damaged(f"ended the process that verified it with {signal.Signals(-code).name}")
        unfinished = _unfinished(path, code, err)
        if begun or -code in _KILLS:
            raise unfinished
        reason = f"{interpreter}: {unfinished.detail}"
    raise NoChild(path, reason)


def _size_of(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0  # the child reports the error


def _cpu_seconds(size: int) -> int:
    """A child's limit of processor time for a file of `size` bytes."""
    return CPU_SECONDS_MIN + CPU_SECONDS_PER_MIB * (size >> 20)


def _is_own_deadline(size: int) -> bool:
    """Whether a child reaches our limit first, and not a limit that this process has as well."""
    limit, _ = resource.getrlimit(resource.RLIMIT_CPU)
    return limit == resource.RLIM_INFINITY or _cpu_seconds(size) < limit


def _run(command: Sequence[str], cancel: Cancel | None, stdin: int | None) -> tuple[int, bytes, bytes]:
    """(exit code, stdout, stderr) of a child. Raises OSError if it cannot be started, Closed.

    Popen makes one pipe and nothing else: where it finds no descriptor, it leaves open what it had opened before."""
    with ExitStack() as ours:
        given = _owned(ours, os.open, os.devnull, os.O_RDONLY | os.O_CLOEXEC) if stdin is None else stdin
        errors = _owned(ours, os.memfd_create, "stderr")
        child = ours.enter_context(
            RESERVE.call(subprocess.Popen, command, stdin=given, stdout=subprocess.PIPE, stderr=errors)
        )
        try:
            out = _output_of(child, cancel)
        except BaseException:
            child.kill()
            raise
        return child.returncode, out, os.pread(errors, STDERR_BYTES, max(0, os.fstat(errors).st_size - STDERR_BYTES))


def _owned(until: ExitStack, open_one: Callable[P, int], *arguments: P.args, **options: P.kwargs) -> int:
    descriptor = RESERVE.call(open_one, *arguments, **options)
    until.callback(os.close, descriptor)
    return descriptor


def _output_of(child: subprocess.Popen[bytes], cancel: Cancel | None) -> bytes:
    while True:
        if cancel is not None and cancel.is_set():
            raise Closed("the verification was cancelled")
        try:
            return child.communicate(timeout=None if cancel is None else CANCEL_POLL_SECONDS)[0]
        except subprocess.TimeoutExpired:
            continue


def _unfinished(path: str, code: int, err: bytes) -> VerificationFailed:
    lines = err.decode(errors="replace").strip().splitlines()
    said = f": {lines[-1]}" if lines else ""
    return VerificationFailed(path, f"the process that verified it ended with {code}{said}")


def _result_of(path: str, out: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(out)
        if "sound" in answer:
            return dict(answer["sound"])
        raise _ERRORS[answer["error"]](path, answer)
    except (ValueError, KeyError, TypeError) as error:
        raise VerificationFailed(path, f"the process that verified it gave a wrong answer: {out[:200]!r}") from error


_ERRORS: Final[dict[str, Callable[[str, dict[str, Any]], Exception]]] = {
    "SnapshotInvalid": lambda path, answer: SnapshotInvalid(path, answer["detail"]),
    "Corrupted": lambda path, answer: Corrupted(path, answer["detail"]),
    "RefusedForSafety": lambda _path, answer: RefusedForSafety(answer["detail"]),
    "OSError": lambda path, answer: OSError(answer["errno"], answer["detail"], path),
    "MemoryError": lambda path, answer: VerificationFailed(path, answer["detail"]),
}
