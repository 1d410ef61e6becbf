"""The promise: `verify` finds faults that the hash cannot find: a state that was wrong before its copy, or was forged.

Each test damages one thing and makes everything fit that is checked before it. The child reports the same as `verify`.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cbor2
import lmdb.verify
import pytest

from tests.hostile_cbor import hash_bomb
from tests.snapshot_support import change, database_in, members_of, rehash, snapshot_of
from warren_raft.errors import (
    Closed,
    Corrupted,
    RefusedForSafety,
    SnapshotInvalid,
)
from warren_raft.model.entities import Container
from warren_raft.model.forms import fields_of
from warren_raft.snapshots import pacing, records, structure, verification
from warren_raft.snapshots.file import make_trailer, read_manifest
from warren_raft.snapshots.pacing import Pace, PacedFile
from warren_raft.snapshots.verification import (
    VerificationFailed,
    prove_state,
    prove_state_in_child,
    verify,
    verify_in_child,
)
from warren_raft.store import codec
from warren_raft.store.database import (
    FORMAT,
    FORMAT_VERSION,
    HISTORY,
    META,
    SESSIONS,
    Database,
    WriteTransaction,
)
from warren_raft.store.tables import (
    CA,
    CONTAINER,
    SERVICE,
    SERVICE_BY_NAME,
)
from warren_raft.store.transactions import MEMBERSHIP


def problem_of(database: Database, tmp_path: Path, *, records: bool = True) -> str:
    """The fault that is found in a snapshot of this state."""
    path = tmp_path / "wrong.mdb"
    snapshot_of(database, path)
    with pytest.raises(SnapshotInvalid) as caught:
        verify(path, records=records)
    assert caught.value.path == str(path)
    with pytest.raises(SnapshotInvalid) as in_pieces:
        verify(path, records=records, pace=Pace())
    assert str(in_pieces.value) == str(caught.value)
    return caught.value.detail


# ---- structure, and the files that LMDB may open


def test_the_page_behind_the_database_does_not_trouble_lmdb_or_its_verifier(path: Path) -> None:
    assert lmdb.verify.verify(str(path)) == []
    assert verify(path) == verify(path, records=False) == read_manifest(path)


def test_a_structure_that_is_not_sound_is_found_before_lmdb_opens_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hash is made to fit, so only the check of the structure can find the fault."""

    def must_not(*_arguments: object, **_named: object) -> Any:
        raise AssertionError("LMDB was let at it")

    monkeypatch.setattr(Database, "open_file", must_not)
    good = database_in(path)
    for position in (0, 16, 4096, 3 * 4096 + 12, 5 * 4096, 8 * 4096 + 12):
        data = good.copy()
        data[position : position + 4] = b"\xff\xff\xff\xff"
        rehash(path, bytes(data))
        for pace in (None, Pace()):
            with pytest.raises(SnapshotInvalid, match="not a sound database"):
                verify(path, records=False, pace=pace)


def test_a_file_with_a_wrong_hash_is_not_examined_any_further(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[object] = []
    monkeypatch.setattr(structure, "problems_of", looked.append)
    monkeypatch.setattr(Database, "open_file", looked.append)
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    with pytest.raises(SnapshotInvalid, match="hash"):
        verify(path)
    assert not looked


def test_another_lmdb_database_is_not_one_of_ours(path: Path, tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path / "other.mdb"), subdir=False, lib_version=0) as other, other.begin(write=True) as txn:
        txn.put(b"key", b"value")
    rehash(path, (tmp_path / "other.mdb").read_bytes())
    with pytest.raises(SnapshotInvalid, match="not a database of this program"):
        verify(path)


def test_a_newer_database_is_refused_and_not_called_damaged(database: Database, tmp_path: Path) -> None:
    change(database, lambda transaction: transaction.store(META, FORMAT_VERSION, (FORMAT + 1).to_bytes(8, "big")))
    snapshot_of(database, tmp_path / "s.mdb")
    with pytest.raises(RefusedForSafety, match="newer release"):
        verify(tmp_path / "s.mdb")
    with pytest.raises(RefusedForSafety, match="newer release"):
        verify_in_child(tmp_path / "s.mdb", records=False)


@pytest.mark.parametrize("error", [lmdb.DiskError("read: Input/output error"), lmdb.Error("no memory")])
def test_a_machine_that_cannot_read_it_is_no_damage(
    path: Path, monkeypatch: pytest.MonkeyPatch, error: lmdb.Error
) -> None:
    """Else a sound snapshot would be set aside because memory was short."""
    error.code = errno.ENOMEM  # type: ignore[attr-defined]

    def fail(*_arguments: object, **_named: object) -> Any:
        raise error

    monkeypatch.setattr(Database, "open_file", fail)
    with pytest.raises(OSError, match="Cannot allocate memory"):
        verify(path)


# ---- the manifest and the digest


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cluster_id", "another"), ("cluster_id", None), ("index", 4), ("term", 9), ("revision", 1),
        ("digest", "00" * 32), ("counts", {}),
    ],
)  # fmt: skip
def test_a_last_page_that_tells_something_else_is_found(path: Path, name: str, value: object) -> None:
    rehash(path, bytes(database_in(path)), **{name: value})
    with pytest.raises(SnapshotInvalid, match="its last page tells another"):
        verify(path, records=False)


@pytest.mark.parametrize("records", [False, True])
def test_records_that_do_not_fit_the_digest_are_found(database: Database, tmp_path: Path, records: bool) -> None:
    change(database, lambda transaction: transaction.delete(CONTAINER, "c-0007"))
    assert "digest" in problem_of(database, tmp_path, records=records)


# ---- the records


def store_record(kind: Any, id: str, record: bytes) -> Callable[[WriteTransaction], object]:  # noqa: A002
    return lambda transaction: transaction.put(kind, id, record)


def with_container_field(name: str, value: Any) -> Callable[[WriteTransaction], object]:
    """A container with a value in one field that has not this form."""
    array = cbor2.loads(codec.encode(CONTAINER, Container(id="c-0007", service_id="s-7")))
    array[[field.name for field in fields_of(Container)].index(name)] = value
    return store_record(CONTAINER, "c-0007", codec.make_record(1, cbor2.dumps(array)))


@pytest.mark.parametrize(
    ("do", "said"),
    [
        (store_record(CONTAINER, "c-0007", b"\x82\x01\xff"), "container 'c-0007' cannot be read"),
        (store_record(CONTAINER, "c-0007", b""), "container 'c-0007' cannot be read"),
        (with_container_field("ports", ["no structure"]), "container 'c-0007' cannot be read"),
        (with_container_field("ports", [["http", 1, 2, "tcp", 5], 7]), "container 'c-0007' cannot be read"),
        (with_container_field("restart_policy", 5), "container 'c-0007' cannot be read"),
        (with_container_field("restart_policy", [[]]), "container 'c-0007' cannot be read"),
        (with_container_field("created_at", "noon"), "container 'c-0007' cannot be read"),
        (with_container_field("created_at", 1 << 62), "container 'c-0007' cannot be read"),
        (with_container_field("env", 1), "container 'c-0007' cannot be read"),
        (store_record(CA, "ca", codec.make_record(1, b"\x81\x01")), "ca 'ca' cannot be read"),
        (store_record(CA, "cb", codec.make_record(1, b"\x81\x41a")), "ca 'cb' is stored under another id"),
        (store_record(SERVICE, "s-9", codec.make_record(1, b"\x82bs1aa")), "service 's-9' is stored under another id"),
        (store_record(SERVICE, "s1", codec.make_record(999, b"\x82bs1aa")), "service 's1' has revision 999"),
        (store_record(SERVICE, "s1", codec.make_record(0, b"\x82bs1aa")), "service 's1' has revision 0"),
        (lambda transaction: transaction.store(SESSIONS, b"8bytes..", b"\xff"), "its sessions cannot be read"),
        (lambda transaction: transaction.store(SESSIONS, b"8bytes..", b"\x85\0\0\0\x41a\x80"), "its sessions"),
        (lambda transaction: transaction.store(HISTORY, b"\0" * 7 + b"\5", b"nonsense"), "its history cannot be read"),
    ],
)
def test_an_unusable_record_is_found_although_all_hashes_fit(
    database: Database, tmp_path: Path, do: Callable[[WriteTransaction], object], said: str
) -> None:
    change(database, do, new_digest=True)
    assert said in problem_of(database, tmp_path)
    verify(tmp_path / "wrong.mdb", records=False)


MEMBERS: dict[str, bytes] = {
    "not a list": b"the members",
    "a hash bomb": hash_bomb(),
    "of another cluster": members_of("cluster-2", 2),
    "nobody": cbor2.dumps(["cluster-1", 2, [], []]),
    "from the future": members_of("cluster-1", 1 << 40),
}


@pytest.mark.parametrize("what", MEMBERS)
@pytest.mark.parametrize("records", [True, False])
def test_members_that_cannot_be_used_are_found(database: Database, tmp_path: Path, what: str, records: bool) -> None:
    """(Pins a bug: such a snapshot was called sound, and no manager could start from it.)"""
    change(database, lambda transaction: transaction.store(META, MEMBERSHIP, MEMBERS[what]), new_digest=True)
    assert "the members in it" in problem_of(database, tmp_path, records=records)


def test_a_cluster_id_that_is_no_text_is_found(path: Path) -> None:
    rehash(path, bytes(database_in(path)).replace(b"cluster-1", b"\xff\xfeuster-1"))
    with pytest.raises(SnapshotInvalid, match="cluster id that is not a text"):
        verify(path)


HIDING_PLACES: dict[str, Callable[[WriteTransaction], object]] = {
    "an entity": store_record(CONTAINER, "c-0007", b"\x82\x01" + hash_bomb()),
    "a session": lambda transaction: transaction.store(SESSIONS, b"8bytes..", hash_bomb()),
    "the members": lambda transaction: transaction.store(META, MEMBERSHIP, hash_bomb()),
}


@pytest.mark.parametrize("where", HIDING_PLACES)
def test_a_snapshot_made_by_hand_to_hang_its_reader_is_refused(database: Database, tmp_path: Path, where: str) -> None:
    """Some hundred bytes of CBOR with a hash that takes months, in a file with all its hashes and digests correct."""
    change(database, HIDING_PLACES[where], new_digest=True)
    snapshot_of(database, tmp_path / "s.mdb")
    cancel = threading.Event()
    timer = threading.Timer(60, cancel.set)
    timer.start()
    try:
        with pytest.raises(SnapshotInvalid):
            verify_in_child(tmp_path / "s.mdb", records=True, cancel=cancel)
    finally:
        timer.cancel()


def test_a_history_that_is_ahead_of_the_state_is_found(database: Database, tmp_path: Path) -> None:
    def append(transaction: WriteTransaction) -> None:
        last = next(record for _, record in transaction.scan(HISTORY, reverse=True))
        transaction.store(HISTORY, (900).to_bytes(8, "big"), last)

    change(database, append)
    assert "revision 900" in problem_of(database, tmp_path)


@pytest.mark.parametrize("missing", [True, False])
def test_an_index_that_does_not_fit_its_records_is_found(database: Database, tmp_path: Path, missing: bool) -> None:
    def spoil(transaction: WriteTransaction) -> None:
        handle = database.index_handles[SERVICE_BY_NAME.name]
        if missing:
            transaction._txn.delete(b"web", b"s-1", handle)
        else:
            transaction._txn.put(b"web", b"s-2", db=handle)

    change(database, spoil)
    said = "lacks b'web' -> b's-1'" if missing else "has a false b'web' -> b's-2'"
    assert said in problem_of(database, tmp_path)


# ---- the caller's side


def test_progress_goes_from_nothing_to_all_and_never_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_REPORT_EVERY", 10)
    shares: list[float] = []
    verify(path, progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert 0.0 <= shares[0] < 0.1
    assert len(set(shares)) > 6


def test_a_file_that_was_found_wrong_is_not_kept_open(database: Database, tmp_path: Path) -> None:
    """A caller that keeps the error must be able to verify again: LMDB opens a file once in a process."""
    change(database, lambda transaction: transaction.delete(CONTAINER, "c-0007"))
    snapshot_of(database, tmp_path / "s.mdb")
    errors = []
    for _ in range(3):
        with pytest.raises(SnapshotInvalid, match="digest") as caught:
            verify(tmp_path / "s.mdb")
        errors.append(caught.value)


def test_nothing_is_left_beside_the_file_and_nothing_is_written_to_it(path: Path, tmp_path: Path) -> None:
    before, names = path.read_bytes(), sorted(os.listdir(tmp_path))
    path.chmod(0o400)
    verify(path)
    assert path.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == names


# ---- in a child


def test_the_child_gives_the_same_answer_as_this_process(path: Path) -> None:
    assert verify_in_child(path, records=True) == read_manifest(path)
    assert verify_in_child(path, records=False, low_priority=False) == read_manifest(path)
    data = bytearray(path.read_bytes())
    data[6000] ^= 4
    path.write_bytes(data)
    with pytest.raises(SnapshotInvalid) as here:
        verify(path)
    with pytest.raises(SnapshotInvalid) as there:
        verify_in_child(path, records=False)
    assert (there.value.path, there.value.detail) == (here.value.path, here.value.detail)


def test_the_child_looks_at_the_records_when_it_is_asked_to(database: Database, tmp_path: Path) -> None:
    change(database, store_record(CONTAINER, "c-0007", b"\x82\x01\xff"), new_digest=True)
    snapshot_of(database, tmp_path / "s.mdb")
    verify_in_child(tmp_path / "s.mdb", records=False)
    with pytest.raises(SnapshotInvalid, match="c-0007"):
        verify_in_child(tmp_path / "s.mdb", records=True)


def test_errors_that_are_no_damage_arrive_as_they_are(path: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        verify_in_child(tmp_path / "missing", records=False)
    assert caught.value.filename == str(tmp_path / "missing")
    path.write_bytes(bytes(database_in(path)) + make_trailer(replace(read_manifest(path), format=2)))
    with pytest.raises(RefusedForSafety, match="format 2"):
        verify_in_child(path, records=False)


class SetAtTheSecondLook:
    def __init__(self) -> None:
        self.looks = 0

    def is_set(self) -> bool:
        self.looks += 1
        return self.looks > 1


def test_a_cancelled_verification_ends_its_child(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    children: list[subprocess.Popen[bytes]] = []

    class Watched(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            children.append(self)

    monkeypatch.setattr(subprocess, "Popen", Watched)
    monkeypatch.setattr(verification, "_BEGIN", "import sys, threading; threading.Event().wait()")
    with pytest.raises(Closed):
        verify_in_child(path, records=True, cancel=SetAtTheSecondLook())
    assert [child.returncode for child in children] == [-signal.SIGKILL]


def test_a_cancel_that_is_not_set_changes_nothing(path: Path) -> None:
    assert verify_in_child(path, records=False, cancel=threading.Event()) == read_manifest(path)


@pytest.mark.parametrize(
    ("program", "error", "said"),
    [
        ("import os; os.write(1, b'begun\\n'); os.abort()", SnapshotInvalid, "SIGABRT"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", VerificationFailed, "-9"),
        ("print('begun', flush=True); raise MemoryError('no memory')", VerificationFailed, "no memory"),
        ("print('begun'); print('hello')", VerificationFailed, "hello"),
        ("print('begun'); print('{}')", VerificationFailed, "{}"),
        ("print('begun')", VerificationFailed, "wrong answer"),
    ],
)
def test_a_child_without_a_result_proves_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, program: str, error: type[Exception], said: str
) -> None:
    monkeypatch.setattr(verification, "_BEGIN", program)
    with pytest.raises(error, match=said):
        verify_in_child(path, records=False)


def test_an_error_of_the_system_that_a_child_meets_is_raised_here(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        verify_in_child(tmp_path / "none.mdb", records=False)


# ---- without a child


@pytest.fixture
def no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a frozen program, and with pauses so short that a test is fast."""
    monkeypatch.setattr(verification, "candidates", list)
    monkeypatch.setattr(verification, "_said", [])
    monkeypatch.setattr(pacing, "PAUSE_SECONDS", 0.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("import os; os.abort()", "ended with -6"),  # Python found no descriptor for its own modules, say
        ("raise ImportError('another Python')", "another Python"),
        ("print('hello')", "ended with 0"),
        ("pass", "ended with 0"),
    ],
)
def test_where_no_child_can_begin_the_file_is_verified_here_and_the_log_says_so_once(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, program: str, why: str
) -> None:
    """(Pins a bug: no snapshot was ever verified then, and the log grew for ever.)"""
    monkeypatch.setattr(verification, "_BEGIN", program)
    monkeypatch.setattr(verification, "_said", [])
    for _ in range(2):
        assert verify_in_child(path, records=True) == read_manifest(path)
    (line,) = caplog.messages
    assert line.startswith("no child process can verify snapshots")
    assert why in line
    with pytest.raises(VerificationFailed, match=why):
        prove_state_in_child(path)  # no cluster waits for this process yet: the caller proves the state here


@pytest.mark.usefixtures("no_child")
def test_a_verification_here_can_be_cancelled(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing, "RUN_SECONDS", 0.0)
    cancel = threading.Event()
    real = PacedFile.read

    def read(file: PacedFile, size: int | None = -1) -> bytes:
        cancel.set()
        return real(file, size)

    monkeypatch.setattr(PacedFile, "read", read)
    with pytest.raises(Closed, match="cancelled"):
        verify_in_child(path, records=True, cancel=cancel)


def test_a_verification_here_pauses_between_pages_and_records(
    path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No piece is longer than a page, or some records: the raft thread waits for one at most."""
    monkeypatch.setattr(pacing, "RUN_SECONDS", 0.0)
    monkeypatch.setattr(pacing, "PAUSE_SECONDS", 0.0)
    pauses = []
    monkeypatch.setattr(pacing.time, "sleep", lambda _seconds: pauses.append(1))
    verify(path, pace=Pace())
    manifest = read_manifest(path)
    pages = manifest.size_bytes // 4096
    # Each page, and each record for its digest, for itself and for its indexes.
    assert len(pauses) >= pages - 2 + 3 * sum(manifest.counts.values()) // pacing.RECORDS


def test_the_child_does_not_outlive_its_parent() -> None:
    """The child holds a pipe open for as long as it lives; its parent is killed while it waits for its own end."""
    child = (
        "import os, sys, threading; from warren_raft.snapshots.verify_child import _die_with; "
        "_die_with(os.getppid()); print('ready', flush=True); threading.Event().wait()"
    )
    parent = f"import subprocess, sys, threading; subprocess.Popen([sys.executable, '-c', {child!r}]).wait()"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.kill()
        assert process.stdout.read() == b""  # the end of the pipe: nobody holds it any more


def test_a_child_without_its_parent_ends_at_once(path: Path) -> None:
    program = (
        "import sys, json; from warren_raft.snapshots.verify_child import main; "
        f"main([{str(path)!r}, json.dumps({{'records': False, 'nice': 0, 'parent': 1}})])"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 1


def test_the_child_gives_way(path: Path) -> None:
    program = (
        "import os, sys, json; from warren_raft.snapshots.verify_child import main; "
        f"main([{str(path)!r}, json.dumps({{'records': False, 'nice': 10, 'parent': os.getppid(), "
        "'cpu_seconds': 60, 'memory_bytes': 1 << 30})]); "
        "print(os.nice(0), file=sys.stderr)"
    )
    before = os.nice(0)
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert int(ran.stderr) == min(19, before + 10)


# ---- errors that are not a fault of the file


@pytest.mark.parametrize(
    "error", [OSError(errno.EMFILE, "Too many open files"), OSError(errno.EACCES, "no"), MemoryError("no memory")]
)
def test_a_machine_that_cannot_look_says_nothing_of_the_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """(Pins a bug: for want of a file descriptor a sound state was set aside, and a sound snapshot called damaged.)"""

    def fail(_opened: object) -> list[str]:
        raise error

    monkeypatch.setattr(structure, "problems_of", fail)
    for prove in (verify, prove_state):
        with pytest.raises(type(error)) as caught:
            prove(path)
        assert caught.value is error


def test_a_sector_that_cannot_be_read_is_damage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_opened: object) -> list[str]:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(structure, "problems_of", fail)
    with pytest.raises(Corrupted, match="Input/output error"):
        prove_state(path)


def test_the_child_gives_the_same_answer_for_a_state_as_this_process(database: Database, tmp_path: Path) -> None:
    path = tmp_path / "state.mdb"
    with path.open("wb") as file:
        database.copy_to(file.fileno())
    prove_state_in_child(path)
    data = bytearray(path.read_bytes())
    data[3 * 4096 + 12] ^= 4
    path.write_bytes(data)
    with pytest.raises(Corrupted) as here:
        prove_state(path)
    with pytest.raises(Corrupted) as there:
        prove_state_in_child(path)
    assert (there.value.path, there.value.detail) == (here.value.path, here.value.detail)


def test_a_state_that_ends_the_process_that_reads_it_is_damaged(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "_BEGIN", "import os; os.write(1, b'begun\\n'); os.abort()")
    with pytest.raises(Corrupted, match="SIGABRT"):
        prove_state_in_child(path)


def test_a_data_format_of_a_newer_lmdb_is_refused_not_called_damaged(database: Database, tmp_path: Path) -> None:
    path = tmp_path / "state.mdb"
    with path.open("wb") as file:
        database.copy_to(file.fileno())
    for page in (0, 1):
        with path.open("r+b") as file:
            file.seek(page * 4096 + 16 + 4)
            file.write((7).to_bytes(4, sys.byteorder))
    with pytest.raises(RefusedForSafety, match="data format 7"):
        prove_state(path)


# ---- a child that does not end, or takes all memory


BEGIN_WITH = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from warren_raft.snapshots import verify_child; "
    "verify_child.verify = lambda *_, **__: {}; verify_child.main(sys.argv[2:])"
)


@pytest.mark.slow
def test_a_child_that_takes_too_much_time_is_ended_and_its_file_counts_as_damaged(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of processor time: a busy machine ends none."""
    monkeypatch.setattr(verification, "CPU_SECONDS_MIN", 1)
    monkeypatch.setattr(verification, "_BEGIN", BEGIN_WITH.format("sum(range(10**12))"))
    with pytest.raises(SnapshotInvalid, match="more processor time than any undamaged file of its size"):
        verify_in_child(path, records=True)


def test_a_child_that_runs_out_of_memory_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has a limit of its own, so it takes none from the manager beside it."""
    monkeypatch.setattr(verification, "_BEGIN", BEGIN_WITH.format("bytearray(1 << 40)"))
    with pytest.raises(VerificationFailed, match="not enough memory"):
        verify_in_child(path, records=True)


def test_a_child_leaves_no_core_file_with_secrets(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "sys.exit(str(__import__('resource').getrlimit(__import__('resource').RLIMIT_CORE)))"
    monkeypatch.setattr(verification, "_BEGIN", BEGIN_WITH.format(said))
    with pytest.raises(VerificationFailed, match=r"\(0, "):
        verify_in_child(path, records=True)


def test_a_verification_here_runs_for_a_while_between_two_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifth of the time: with a pause after each piece it would be a hundredth, and the log would outgrow it."""
    now, slept = 0.0, 0.0

    def sleep(seconds: float) -> None:
        nonlocal now, slept
        now, slept = now + seconds, slept + seconds

    monkeypatch.setattr(pacing.time, "perf_counter", lambda: now)
    monkeypatch.setattr(pacing.time, "sleep", sleep)
    pace = Pace()
    for _ in range(1_000):
        pace()
        now += pacing.RUN_SECONDS / 20
    assert slept / now == pytest.approx(0.8, abs=0.02)
