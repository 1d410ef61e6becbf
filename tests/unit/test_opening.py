"""The promise: opening a data directory, however often it fails, leaves nothing behind that locks its owner out, and
throws no good state away: a state is rebuilt only for its own damage.
"""

from __future__ import annotations

import errno
import os
import pwd
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from random import Random

import lmdb
import pytest

import warren_raft as wr
from tests.unit.test_data_directory import alone
from warren_raft.data_dir.opening import OpenedDirectory
from warren_raft.data_dir.remembered import settings_of
from warren_raft.disk.files import OsFiles
from warren_raft.raft.log.log import Log
from warren_raft.snapshots import verification
from warren_raft.snapshots.verification import prove_state_in_child
from warren_raft.store import database as database_module
from warren_raft.store.database import FORMAT, FORMAT_VERSION, META
from warren_raft.store.generations import SUSPECT_AFTER_STARTS


def config(directory: Path) -> wr.Config:
    return wr.Config(node_id="m1", data_dir=directory, listen="127.0.0.1:7", members={"m1": "127.0.0.1:7"}, admin=False)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can open another user's directory")
def test_root_does_not_write_into_another_users_directory(tmp_path: Path) -> None:
    """An operator typed `sudo` once; the log files that root made kept the manager's own user out at its next start."""
    nobody = pwd.getpwnam("nobody").pw_uid
    (tmp_path / "log").mkdir()
    os.chown(tmp_path / "log", nobody, -1)
    with pytest.raises(wr.RefusedForSafety, match="sudo -u 'nobody'"):
        wr.ReplicatedStore(config(tmp_path))
    assert os.listdir(tmp_path) == ["log"]


def test_the_rest_of_a_killed_restore_does_not_prevent_a_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "restore.part").touch(mode=0o600)  # a file, where a directory was expected
    wr.ReplicatedStore(config(tmp_path)).close()
    assert "not removed" in caplog.text


# ---- the only copy of a state


def test_the_directory_of_a_local_store_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    """(Pins a complaint: the refusal advised to empty the directory, and left a log in it.)"""
    directory = tmp_path / "a state"
    with wr.LocalStore(directory) as store:
        for number in range(5):
            store.create_node(wr.Node(id=f"n{number}"))
    before = sorted(path.relative_to(directory) for path in directory.rglob("*"))
    text = re.escape(
        f"{directory} belongs to a LocalStore, not to a manager; nothing was changed; read it with: warren-raft "
        f"list KIND --data-dir '{directory}'"
    )
    for opening in (lambda: wr.ReplicatedStore(config(directory)), lambda: settings_of(directory)):
        with pytest.raises(wr.RefusedForSafety, match=f"^{text}"):
            opening()
        assert sorted(path.relative_to(directory) for path in directory.rglob("*")) == before
    Log.open(str(directory / "log"), files=OsFiles(), node_id="m1", new_incarnation=lambda: "0" * 32).close()
    with pytest.raises(wr.RefusedForSafety, match=f"^{text}"):  # an earlier release left a log there
        wr.ReplicatedStore(config(directory))
    with wr.LocalStore(directory) as store:
        assert len(store.list_nodes()) == 5


def test_an_only_voter_without_its_log_is_not_told_to_empty_its_directory(tmp_path: Path) -> None:
    settings = alone(str(tmp_path / "m1"), insecure_plaintext=True)
    with wr.ReplicatedStore(settings) as manager:
        manager.wait_ready(30)
        manager.create_node(wr.Node(id="n1"))
    shutil.rmtree(tmp_path / "m1" / "log")
    for _ in range(STARTS):
        with pytest.raises(wr.Corrupted, match="below the applied index") as caught:
            wr.ReplicatedStore(settings)
        assert f"keep it, and put the log back; or type warren-raft export state.jsonl --data-dir {tmp_path}/m1" in str(
            caught.value
        )
    with wr.ReadOnlyStore(tmp_path / "m1") as reader:
        assert [node.id for node in reader.list_nodes()] == ["n1"]


# ---- a sound state stays, however often a start fails

STARTS = SUSPECT_AFTER_STARTS + 2
"""One more than it once took until the state was thrown away."""


def opened(directory: Path, prove_apart: Callable[[str], None] = prove_state_in_child) -> OpenedDirectory:
    return OpenedDirectory(config(directory), files=OsFiles(), random=Random(1), prove_apart=prove_apart)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Of a manager that was stopped before anything was written."""
    directory = tmp_path / "m1"
    opened(directory).close(failed=False)
    return directory


def state_files(directory: Path) -> list[str]:
    return sorted(name for name in os.listdir(directory / "state") if ".mdb" in name and not name.endswith("-lock"))


def assert_kept(directory: Path) -> None:
    """The state is the same one: not rebuilt, not set aside."""
    assert [name for name in state_files(directory) if name.partition(".")[0] != "1" or "aside" in name] == []
    again = opened(directory)
    try:
        assert again.database.generation == 1
    finally:
        again.release()


def test_a_newer_format_is_refused_for_good(directory: Path) -> None:
    """(Pins a bug: a supervisor starts an old release again and again; the third start threw the newer state away.)"""
    started = opened(directory)
    with started.database.write() as transaction:
        transaction.store(META, FORMAT_VERSION, (FORMAT + 1).to_bytes(8, "big"))
    started.close(failed=False)
    del started
    before = (directory / "state" / "1.mdb").read_bytes()
    for _ in range(STARTS):
        with pytest.raises(wr.RefusedForSafety, match="use a newer release"):
            opened(directory)
    assert (directory / "state" / "1.mdb").read_bytes() == before
    assert not [name for name in state_files(directory) if "aside" in name]


@pytest.mark.slow
@pytest.mark.parametrize("code", [errno.EPERM, errno.EACCES, errno.EAGAIN, errno.EMFILE, errno.ENOSPC, errno.ENOMEM])
def test_an_error_of_this_machine_is_no_fault_of_the_state(
    directory: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    real = lmdb.open

    def fails(path: str, **options: object) -> lmdb.Environment:
        error = lmdb.Error(f"{path}: {os.strerror(code)}")
        error.code = code  # type: ignore[attr-defined]
        raise error

    monkeypatch.setattr(database_module.lmdb, "open", fails)
    for _ in range(STARTS):
        with pytest.raises((wr.WarrenError, OSError)) as caught:
            opened(directory)
        assert not isinstance(caught.value, wr.Corrupted)
    monkeypatch.setattr(database_module.lmdb, "open", real)
    assert_kept(directory)


@pytest.mark.slow
def test_too_few_file_descriptors_never_cost_the_state(directory: Path) -> None:
    """Whichever open it is that fails for want of one: the directory's, the log's, LMDB's, or the proof's."""
    opened(directory).release()  # without a seal, so that it is proved at the next start
    script = """
        import os, resource, sys
        from random import Random
        sys.path[:0] = sys.argv[2:]
        import warren_raft as wr
        from warren_raft.data_dir.opening import OpenedDirectory
        from warren_raft.disk.files import OsFiles
        from warren_raft.snapshots.verification import prove_state
        config = wr.Config(
            node_id="m1", data_dir=sys.argv[1], listen="127.0.0.1:7", members={"m1": "127.0.0.1:7"}, admin=False
        )
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        failed = 0
        for limit in range(len(os.listdir("/proc/self/fd")) - 1, 64):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            try:
                opened = OpenedDirectory(config, files=OsFiles(), random=Random(1), prove_apart=prove_state)
            except (wr.WarrenError, OSError) as error:
                failed += 1
                assert not isinstance(error, wr.Corrupted), (limit, error)
            else:
                opened.release()
                del opened
        print(failed)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), directory, *sys.path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > STARTS
    assert_kept(directory)


@pytest.mark.slow
def test_managers_that_are_killed_before_they_are_ready_keep_their_state(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A supervisor with too little patience; the state is looked at in a child, and found sound."""
    for _ in range(STARTS):
        opened(directory).release()  # as the end of the process does
    assert "state is sound" in caplog.text
    assert_kept(directory)


def test_a_state_that_crashes_its_reader_is_rebuilt(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its manager dies by a signal at each start, and cannot give the reason: the child shows it."""
    for _ in range(SUSPECT_AFTER_STARTS):
        opened(directory).release()
    monkeypatch.setattr(verification, "_BEGIN", "import os; os.write(1, b'begun\\n'); os.abort()")
    started = opened(directory)
    try:
        assert started.database.generation == 2
    finally:
        started.release()
    assert "1.mdb.aside-damaged" in state_files(directory)
    assert "SIGABRT" in caplog.text


def test_a_child_that_comes_to_no_result_condemns_nothing(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For example the child was killed because there was too little memory."""
    monkeypatch.setattr(verification, "_BEGIN", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    for _ in range(STARTS):
        opened(directory).release()
    assert_kept(directory)


def test_a_start_that_failed_with_an_error_does_not_count(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a full disk over night would cost the proof of the whole state in the morning."""

    def must_not(_path: str) -> None:
        raise AssertionError("the state is suspected")

    def fails(*_arguments: object, **_named: object) -> None:
        raise wr.StorageFull("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(database_module.Database, "open", fails)
        for _ in range(STARTS):
            with pytest.raises(wr.StorageFull):
                opened(directory)
    opened(directory, prove_apart=must_not).close(failed=False)


# ---- a lost pointer


def test_a_local_store_with_a_removed_pointer_keeps_its_state(tmp_path: Path) -> None:
    """(Pins a bug: it was taken for a new directory, and the database in it was removed.)"""
    with wr.LocalStore(tmp_path) as store:
        store.create_service(wr.Service(id="s"))
    os.unlink(tmp_path / "state" / "current")
    with wr.LocalStore(tmp_path) as store:
        assert store.get_service("s").id == "s"


def test_which_of_two_databases_was_current_is_not_guessed(tmp_path: Path) -> None:
    with wr.LocalStore(tmp_path) as store:
        store.create_service(wr.Service(id="s"))
    os.unlink(tmp_path / "state" / "current")
    shutil.copy(tmp_path / "state" / "1.mdb", tmp_path / "state" / "2.mdb")
    with pytest.raises(wr.Corrupted, match="2 databases"):
        wr.LocalStore(tmp_path)
    assert (tmp_path / "state" / "1.mdb").exists()
    assert (tmp_path / "state" / "2.mdb").exists()


@pytest.mark.parametrize("left", [b"", bytes(8192)])
def test_the_rest_of_a_killed_first_start_does_not_prevent_a_start(tmp_path: Path, left: bytes) -> None:
    (tmp_path / "state").mkdir(mode=0o700)
    (tmp_path / "state" / "1.mdb").touch(mode=0o600)
    (tmp_path / "state" / "1.mdb").write_bytes(left)
    with wr.LocalStore(tmp_path) as store:
        assert store.list_services() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user")
def test_a_state_that_may_not_be_looked_at_is_not_taken_for_one_that_is_gone(directory: Path) -> None:
    """(Pins a bug: `os.path.exists` is False where a name may not be looked up; the state was rebuilt, or trusted.)"""
    state = opened(directory)
    state.release()
    os.seteuid(12345)
    try:
        for look in (lambda: state.state.require_trusted(1), lambda: state.state.is_unsynced(1)):
            with pytest.raises(PermissionError):
                look()
    finally:
        os.seteuid(0)
    assert_kept(directory)
