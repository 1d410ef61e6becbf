"""The promises: an index never differs from its records; no process reads a file that may have lost pages; no reader
loses the file during its read; and only the owner can read or change it.

The first story behind the markers: an LMDB file that lost pages in a power cut was opened, and in one case of four it
silently gave wrong records. Files are real here; the state after a crash is made by hand.
"""

from __future__ import annotations

import errno
import gc
import os
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import lmdb.verify
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.direct_store import put_all
from tests.strategies import entities
from warren_raft.errors import (
    Closed,
    Corrupted,
    InUse,
    InvalidEntity,
    InvariantViolation,
    RefusedForSafety,
    StorageFull,
)
from warren_raft.model.entities import (
    Container,
    Node,
    Service,
    TLSCertificate,
)
from warren_raft.store import (
    codec,
    environments,
    generations,
    lmdb_errors,
)
from warren_raft.store.database import (
    FORMAT,
    FORMAT_VERSION,
    MEMBERSHIP,
    META,
    SESSIONS,
    Database,
    StateUntrusted,
    StorageFailed,
)
from warren_raft.store.generations import StateDirectory, mount_of, refuse_network_filesystem
from warren_raft.store.leading import leading_items
from warren_raft.store.ownership import DirectoryLock
from warren_raft.store.position import Position
from warren_raft.store.tables import (
    CERTIFICATE,
    CERTIFICATE_BY_HOST,
    CONTAINER,
    CONTAINER_BY_NODE,
    CONTAINER_BY_SERVICE,
    KINDS,
    NODE,
    SERVICE,
    SERVICE_BY_NAME,
    Index,
    Kind,
)
from warren_raft.store.transactions import Transaction

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be more than one user")


def record(kind: Kind[Any], entity: Any, revision: int = 1) -> bytes:
    return codec.make_record(revision, codec.encode(kind, entity))


def files_in(directory: str | Path) -> set[str]:
    return set(os.listdir(directory))


def open_files(part: str) -> list[str]:
    """The paths with `part` in them that this process has open."""
    links = (f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd"))
    return [os.readlink(link) for link in links if os.path.islink(link) and part in os.readlink(link)]


def run(script: str, *arguments: object, command: tuple[str, ...] = ()) -> str:
    """The output of a Python process of its own; it must end with 0."""
    process = subprocess.run(
        [*command, sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def attempts(*calls: Callable[[], object]) -> tuple[Callable[[], object], ...]:
    """Calls that all end in the same way."""
    return calls


class Boot:
    """The machine's boot id, which a test changes to tell of a crash of the machine."""

    def __init__(self) -> None:
        self.id = "first"

    def __call__(self) -> str:
        return self.id


@pytest.fixture
def boot() -> Boot:
    return Boot()


@pytest.fixture
def state(tmp_path: Path, boot: Boot) -> StateDirectory:
    return StateDirectory(tmp_path / "data", boot_id=boot)


@pytest.fixture
def database(state: StateDirectory) -> Iterator[Database]:
    with Database.open(state, sync=False) as opened:
        yield opened


def ids_in(transaction: Transaction, index: Index, key: bytes) -> list[bytes]:
    """The keys of the entities that the index has under `key`, in order."""
    cursor = transaction._txn.cursor(transaction.database.index_handles[index.name])
    return list(cursor.iternext_dup()) if cursor.set_key(key) else []


# ---- Modes and places.


def test_files_are_0600_and_directories_0700_whatever_the_umask(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        with DirectoryLockOf(tmp_path / "a" / "data"), Database.open(tmp_path / "a" / "data", sync=False) as database:
            put_all(database, (NODE, Node(id="n")))
            state = StateDirectory(tmp_path / "a" / "data")
            state.note_start()
            modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [tmp_path / "a", *(tmp_path / "a").rglob("*")]}
    finally:
        os.umask(umask)
    assert {path.name for path in modes} >= {
        "data",
        "lock",
        "state",
        "1.mdb",
        "1.mdb-lock",
        "1.mdb.unsynced",
        "current",
    }
    assert {path: mode for path, mode in modes.items() if mode != (0o700 if path.is_dir() else 0o600)} == {}


class DirectoryLockOf:
    """A DirectoryLock for `with`."""

    def __init__(self, directory: Path) -> None:
        self.lock = DirectoryLock(directory)

    def __enter__(self) -> DirectoryLock:
        return self.lock

    def __exit__(self, *_exception: object) -> None:
        self.lock.release()


def test_a_file_that_was_copied_into_place_is_made_0600(state: StateDirectory) -> None:
    Database.open(state, sync=False).close()
    os.chmod(state.file_of(1), 0o644)
    with Database.open(state, sync=False):
        assert stat.S_IMODE(os.stat(state.file_of(1)).st_mode) == 0o600


@pytest.mark.parametrize("file_system", ["nfs", "nfs4", "cifs", "9p", "fuse.sshfs", "fuse.s3fs", "ceph"])
def test_network_file_systems_are_refused(file_system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generations, "mount_of", lambda _directory: (1, file_system))
    with pytest.raises(RefusedForSafety, match=file_system.replace(".", r"\.")):
        Database.open(tmp_path, sync=True)
    assert files_in(tmp_path / "state") == set()


@pytest.mark.parametrize(
    "file_system", ["ext4", "xfs", "btrfs", "tmpfs", "overlay", "fuse.fuse-overlayfs", "fuseblk", ""]
)
def test_ordinary_file_systems_and_those_of_containers_are_not(file_system: str) -> None:
    refuse_network_filesystem("/data", file_system)


def test_the_mount_of_a_directory_is_the_kernels_answer() -> None:
    proc_id, proc_type = mount_of("/proc")
    assert proc_type == "proc"
    assert mount_of("/proc/self")[0] == proc_id
    assert mount_of("/dev/shm")[0] != proc_id


@AS_ROOT
def test_another_users_data_are_refused_with_the_line_to_type(tmp_path: Path) -> None:
    """Root reading a stopped manager's data would leave a lock file that keeps the manager out of them."""
    Database.open(tmp_path, sync=True).close()
    os.unlink(tmp_path / "state" / "1.mdb-lock")
    os.chown(tmp_path / "state" / "1.mdb", 1, 1)
    with pytest.raises(RefusedForSafety, match=r"belongs to user daemon, and this is user root.*sudo -u 'daemon'"):
        Database.open_read_only(tmp_path)
    assert files_in(tmp_path / "state") == {"1.mdb", "current"}


@AS_ROOT
def test_a_user_that_may_not_read_the_directory_gets_the_same_answer() -> None:
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        Database.open(f"{directory}/data", sync=True).close()
        os.seteuid(12345)
        try:
            with pytest.raises(RefusedForSafety, match="run it as the owner: sudo -u 'root'"):
                Database.open_read_only(f"{directory}/data")
        finally:
            os.seteuid(0)


# ---- One environment a file a process.


def test_a_database_is_open_once_in_a_process(state: StateDirectory, database: Database) -> None:
    for again in attempts(lambda: Database.open(state, sync=False), lambda: Database.open_read_only(state)):
        with pytest.raises(InUse):
            again()
    put_all(database, (NODE, Node(id="n")))  # the first is none the worse


def test_a_directory_has_one_owner(tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path / "data")
    with pytest.raises(InUse):
        DirectoryLock(tmp_path / "data")
    lock.release()
    lock.release()
    DirectoryLock(tmp_path / "data").release()


def test_a_forked_child_can_do_nothing_and_harms_nothing(tmp_path: Path) -> None:
    """LMDB's reader slots and locks are shared memory: a child that ends a read would end the parent's."""
    script = """
        import os, sys
        from warren_raft.model.entities import Node
        from warren_raft.errors import Closed
        from warren_raft.store.database import Database
        from warren_raft.store.tables import NODE
        from tests.direct_store import DirectStore, put_all

        database = Database.open(sys.argv[1], sync=False)
        store = DirectStore(database)
        put_all(database, (NODE, Node(id="n")))

        def refused(call):
            try:
                call()
            except Closed:
                return True
            print("not refused:", call)

        def child():
            transaction = database.read()
            calls = [lambda: view.get_node("n"), view.list_nodes, lambda: list(view.iter_nodes()),
                     lambda: store.get_node("n"), lambda: store.create_node(Node(id="m")), database.checkpoint,
                     lambda: writer.put(NODE, "c", b""), lambda: database.read().__enter__(),
                     lambda: database.write().__enter__(), database.reader_check, lambda: store.read().__enter__()]
            print("child", all([refused(call) for call in calls]))
            store.close()
            database.close()

        with store.read() as view, database.write() as writer:
            writer.put(NODE, "w", b"\\x82\\x09\\x81awx"[:5])
            pid = os.fork()
            if pid == 0:
                child()
                # the with blocks end here, in the child too
        if pid == 0:
            sys.stdout.flush()
            sys.exit(0)
        print("exit", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        with database.read() as transaction:
            print("parent", transaction.get(NODE, "w") is not None, transaction.count(NODE))
        put_all(database, (NODE, Node(id="m")))
        pid = os.fork()
        if pid == 0:
            sys.exit(0)
        os.waitpid(pid, 0)
        with store.read() as view:
            pid = os.fork()
            if pid == 0:
                view.__exit__()
                del view
                os._exit(0)
            os.waitpid(pid, 0)
            print("readers", len(database.readers()), len(view.list_nodes()))
        store.close()
    """
    output = run(script, tmp_path).splitlines()
    assert output == ["child True", "exit 0", "parent True 2", "readers 1 3"]


def test_a_reader_that_was_killed_leaves_no_slot_behind(state: StateDirectory, database: Database) -> None:
    script = """
        import os, signal, sys
        from warren_raft.store.database import Database
        from warren_raft.store.generations import StateDirectory
        transaction = Database.open_read_only(StateDirectory(sys.argv[1], boot_id=lambda: "first")).read().__enter__()
        os.kill(os.getpid(), signal.SIGKILL)
    """
    process = subprocess.run([sys.executable, "-c", textwrap.dedent(script), state.data_dir], timeout=60, check=False)
    assert process.returncode == -signal.SIGKILL
    assert database.reader_check() == 1
    assert database.reader_check() == 0


# ---- Durability: the marker.


def test_the_marker_is_there_before_the_first_commit_and_gone_after_a_clean_close(
    state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    marked_at_open: list[bool] = []
    opening = environments._open

    def watched(path: str, **options: Any) -> lmdb.Environment:
        marked_at_open.append(state.is_unsynced(1))
        return opening(path, **options)

    monkeypatch.setattr(environments, "_open", watched)
    database = Database.open(state, sync=False)
    assert marked_at_open == [True]
    put_all(database, (NODE, Node(id="n")))
    assert state.is_unsynced(1)
    database.checkpoint()
    assert state.is_unsynced(1)  # the next commit is unsynced again
    database.close()
    assert not state.is_unsynced(1)
    database.close()


def test_after_a_crash_of_the_process_the_page_cache_has_everything(state: StateDirectory) -> None:
    database = Database.open(state, sync=False)
    put_all(database, (NODE, Node(id="n")))
    database.abandon()
    assert state.is_unsynced(1)
    with Database.open_read_only(state).read() as reader:
        assert reader.count(NODE) == 1
    del reader
    with Database.open(state, sync=False) as again, again.read() as transaction:
        assert transaction.count(NODE) == 1


def test_after_a_crash_of_the_machine_nobody_reads_the_file(state: StateDirectory, boot: Boot) -> None:
    database = Database.open(state, sync=False)
    put_all(database, (NODE, Node(id="n")))
    database.abandon()
    del database
    boot.id = "second"
    for attempt in attempts(
        lambda: Database.open(state, sync=False),
        lambda: Database.open(state, sync=True),
        lambda: Database.open_read_only(state),
    ):
        with pytest.raises(StateUntrusted, match="the manager rebuilds it") as caught:
            attempt()
        assert caught.value.generation == 1
    aside = state.set_aside(1, "untrusted")
    assert aside is not None
    assert os.path.basename(aside) == "1.mdb.aside-untrusted"
    with Database.create(state, sync=False) as rebuilt:
        rebuilt.publish()
        with rebuilt.read() as transaction:
            assert transaction.count(NODE) == 0
    assert files_in(state.path) == {"1.mdb.aside-untrusted", "2.mdb", "2.mdb-lock", "current"}


def test_a_clean_close_needs_no_page_cache(state: StateDirectory, boot: Boot) -> None:
    with Database.open(state, sync=False) as database:
        put_all(database, (NODE, Node(id="n")))
    boot.id = "second"
    with Database.open(state, sync=False) as again, again.read() as transaction:
        assert transaction.count(NODE) == 1


def test_a_copied_directory_is_not_trusted(state: StateDirectory, boot: Boot, tmp_path: Path) -> None:
    """`cp -r` of a running manager's directory: the copy was taken page by page, under writers."""
    database = Database.open(state, sync=False)
    subprocess.run(["cp", "-r", state.data_dir, tmp_path / "copy"], check=True)
    with pytest.raises(StateUntrusted):
        Database.open(StateDirectory(tmp_path / "copy", boot_id=boot), sync=False)
    database.close()


def test_another_mount_is_not_trusted(state: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk was pulled out and put back: same boot, and the page cache went with it."""
    Database.open(state, sync=False).abandon()
    mount_id, file_system = mount_of(state.path)
    monkeypatch.setattr(generations, "mount_of", lambda _directory: (mount_id + 1, file_system))
    for attempt in attempts(lambda: Database.open(state, sync=False), lambda: Database.open_read_only(state)):
        with pytest.raises(StateUntrusted):
            attempt()


@AS_ROOT
def test_another_mount_namespace_reads_along_and_a_manager_there_rebuilds(tmp_path: Path) -> None:
    """A manager under systemd (PrivateTmp=) or in a container, and the command line outside of it."""
    script = """
        import sys
        sys.path[:0] = sys.argv[2:]
        from warren_raft.store.database import Database, StateUntrusted
        with Database.open_read_only(sys.argv[1]) as database, database.read() as transaction:
            print(transaction.revision)
        del transaction, database
        try:
            Database.open(sys.argv[1], sync=False)
        except StateUntrusted:
            print("untrusted")
    """
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("may not make a mount namespace")
    database = Database.open(tmp_path, sync=False)
    put_all(database, (NODE, Node(id="n")))
    database.abandon()
    output = run(script, tmp_path, *sys.path, command=("unshare", "--mount"))
    assert output.split() == ["1", "untrusted"]


def test_synced_commits_need_no_marker(state: StateDirectory) -> None:
    with Database.open(state, sync=True) as database:
        put_all(database, (NODE, Node(id="n")))
        assert not state.is_unsynced(1)
    Database.open(state, sync=False).abandon()
    assert state.is_unsynced(1)
    with Database.open(state, sync=True):
        assert not state.is_unsynced(1)  # the unsynced pages were synced at open


class FailingEnvironment:
    """An environment on a disk that refuses to sync."""

    def __init__(self, environment: lmdb.Environment) -> None:
        self._environment = environment

    def __getattr__(self, name: str) -> Any:
        return getattr(self._environment, name)

    def sync(self, _force: bool) -> None:
        raise lmdb.Error("mdb_env_sync: Input/output error", 5)


def test_a_failed_write_back_is_remembered_for_ever(state: StateDirectory) -> None:
    """The kernel tells of it once, and takes the lost pages for clean then: even this boot's page cache is wrong."""
    database = Database.open(state, sync=False)
    put_all(database, (NODE, Node(id="n")))
    environment = database._environment
    assert environment is not None
    database._environment = FailingEnvironment(environment)  # type: ignore[assignment]
    with pytest.raises(StorageFailed):
        database.checkpoint()
    database._environment = environment  # the disk is well again, which proves nothing
    with pytest.raises(StorageFailed):
        database.checkpoint()
    with pytest.raises(StorageFailed):
        database.close()
    assert database.is_closed
    del environment
    with pytest.raises(StateUntrusted):
        Database.open(state, sync=False)


# ---- Where the kernel's boot id is hidden.


@pytest.fixture
def hidden_boot_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As in a systemd unit with ProcSubset=pid. The directory in memory is one of the test's own."""
    memory = tmp_path / "shm"
    memory.mkdir()
    monkeypatch.setattr(generations, "BOOT_ID", "/proc/sys/hidden")
    monkeypatch.setattr(generations, "MEMORY_DIRECTORY", str(memory))
    real = generations.mount_of
    monkeypatch.setattr(generations, "mount_of", lambda path: (1, "tmpfs") if path == str(memory) else real(path))
    return memory


def test_a_state_outlives_its_process_where_the_boot_id_is_hidden(hidden_boot_id: Path, tmp_path: Path) -> None:
    """(Pins a bug: each start took itself for the first after a boot, and set a sound state aside.)"""
    state = StateDirectory(tmp_path / "data")
    database = Database.open(state, sync=False)
    put_all(database, (NODE, Node(id="n")))
    database.abandon()  # as when it is killed
    with Database.open(state, sync=False) as again, again.read() as transaction:
        assert transaction.get(NODE, "n") is not None
    assert [path.stat().st_mode & 0o777 for path in hidden_boot_id.iterdir()] == [0o600]


def test_the_token_in_memory_is_gone_after_a_boot_and_is_trusted_only_where_it_is_ours(hidden_boot_id: Path) -> None:
    first = generations.read_boot_id()
    assert first.startswith("token-")
    assert generations.read_boot_id() == first
    (token,) = hidden_boot_id.iterdir()
    token.unlink()  # as a boot does
    second = generations.read_boot_id()
    assert second.startswith("token-")
    assert second != first
    with token.open("a") as file:  # not all of it is a token
        file.write("0")
    assert generations.read_boot_id().startswith("unknown-")
    token.write_text("0" * 32)
    for mode in (0o620, 0o602):  # its group, or anybody, may write to it
        token.chmod(mode)
        assert generations.read_boot_id().startswith("unknown-")
    token.unlink()
    (hidden_boot_id / "aimed at").write_text("0" * 32)
    token.symlink_to(hidden_boot_id / "aimed at")
    assert generations.read_boot_id().startswith("unknown-")


def test_where_nothing_tells_boots_apart_nothing_unsynced_is_trusted(
    hidden_boot_id: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file on a disk would outlive the page cache, and a time of boot may come again."""
    monkeypatch.setattr(generations, "mount_of", lambda _path: (1, "ext4"))
    assert generations.read_boot_id() != generations.read_boot_id()
    state = StateDirectory(tmp_path / "data")
    Database.open(state, sync=False).abandon()
    with pytest.raises(StateUntrusted):
        Database.open(state, sync=False)


@pytest.mark.parametrize("hidden", ["/proc/sys/kernel/random/boot_id", "/proc/self/mountinfo", "/proc/self/ns/mnt"])
def test_too_few_descriptors_are_not_another_boot(tmp_path: Path, hidden: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """(Pins a bug: an error like EMFILE read as "there is no boot id", and a sound state was thrown away.)"""
    state = StateDirectory(tmp_path)
    Database.open(state, sync=False).abandon()

    def failing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *arguments: Any, **options: Any) -> Any:
            if path == hidden:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), path)
            return real(path, *arguments, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", failing(open))
        patch.setattr(os, "readlink", failing(os.readlink))
        with pytest.raises(OSError, match="Too many open files"):
            Database.open(state, sync=False)
    Database.open(state, sync=False).close()


def test_a_reader_trusts_the_marker_of_a_living_manager_with_any_boot_id(tmp_path: Path) -> None:
    """A manager in a sandbox that hides the boot id, and the command line beside it; or the other way round. No lock
    outlives its boot, so a marker that is locked is of this one."""
    of_manager, of_reader = StateDirectory(tmp_path, boot_id=lambda: "a"), StateDirectory(tmp_path, boot_id=lambda: "b")
    database = Database.open(of_manager, sync=False)
    of_reader.require_trusted(1, reading=True)
    of_reader.require_trusted(1, reading=True)  # to look is not to lock
    with pytest.raises(StateUntrusted):
        of_reader.require_trusted(1)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # it has a copy of the lock, and must not keep it
        os.write(write, b"x")
        signal.pause()
        os._exit(0)
    try:
        os.read(read, 1)
        database.abandon()
        with pytest.raises(StateUntrusted):
            of_reader.require_trusted(1, reading=True)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(read)
        os.close(write)


# ---- Files with wrong contents.


def test_a_directory_that_does_not_exist_has_no_state_to_read(tmp_path: Path) -> None:
    with pytest.raises(RefusedForSafety, match="there is no such directory"):
        Database.open_read_only(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_missing_current_generation_is_rebuilt_and_not_replaced_by_an_empty_one(state: StateDirectory) -> None:
    """An empty database in its place would be a manager that forgot everything and votes on."""
    Database.open(state, sync=False).close()
    os.unlink(state.file_of(1))
    for attempt in attempts(lambda: Database.open(state, sync=False), lambda: Database.open_read_only(state)):
        with pytest.raises(StateUntrusted, match="missing"):
            attempt()


@pytest.mark.parametrize("content", [b"", b"x", b"1", b"-1\n", b"1\n\n", b"9" * 40 + b"\n"])
def test_a_damaged_pointer_points_nowhere(state: StateDirectory, content: bytes) -> None:
    Database.open(state, sync=False).close()
    Path(state.pointer).write_bytes(content)
    for attempt in attempts(lambda: Database.open(state, sync=False), lambda: Database.open_read_only(state)):
        with pytest.raises(StateUntrusted) as caught:
            attempt()
        assert caught.value.generation is None
    assert state.next_generation() == 2


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: b"", id="empty"),
        pytest.param(lambda data: b"x" * len(data), id="overwritten"),
        pytest.param(lambda data: bytes(len(data)), id="zeroes"),
        pytest.param(lambda data: data[:100], id="cut"),
    ],
)
def test_a_file_that_is_no_database_is_corrupted(state: StateDirectory, damage: Callable[[bytes], bytes]) -> None:
    Database.open(state, sync=True).close()
    path = Path(state.file_of(1))
    path.write_bytes(damage(path.read_bytes()))
    for attempt in attempts(lambda: Database.open(state, sync=False), lambda: Database.open_read_only(state)):
        with pytest.raises(Corrupted):
            attempt()


def test_a_database_of_something_else_is_corrupted(state: StateDirectory) -> None:
    state.create()
    state.publish(1)
    with lmdb.open(state.file_of(1), subdir=False, lib_version=0) as environment, environment.begin(write=True) as txn:
        txn.put(b"a", b"b")
    with pytest.raises(Corrupted, match="not a database of this program"):
        Database.open(state, sync=True)


def test_a_newer_format_is_refused_before_anything_is_changed(state: StateDirectory) -> None:
    with Database.open(state, sync=True) as database, database.write() as transaction:
        transaction.store(META, FORMAT_VERSION, (FORMAT + 1).to_bytes(8, "big"))
    before = Path(state.file_of(1)).read_bytes()
    for attempt in attempts(lambda: Database.open(state, sync=True), lambda: Database.open_read_only(state)):
        with pytest.raises(RefusedForSafety, match="use a newer release"):
            attempt()
    assert Path(state.file_of(1)).read_bytes() == before


def test_the_format_is_lmdb_0_9_whatever_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMDB_DEFAULT_LIB_VERSION", "1")
    with Database.open(tmp_path, sync=True) as database:
        assert database._environment is not None
        assert database._environment.lib_version()[:2] == (0, 9)


# ---- Generations.


def test_a_reader_stays_in_its_generation_and_the_next_one_is_in_the_new(state: StateDirectory) -> None:
    """An environment that is closed under a reader takes the process with it."""
    old = Database.open(state, sync=False)
    put_all(old, (NODE, Node(id="old")))
    reader = old.read()
    with reader:
        new = Database.create(state, sync=False)
        put_all(new, (NODE, Node(id="new")))
        assert state.current() == 1
        new.publish()
        assert state.current() == 2
        old.close()
        state.remove_stale()
        assert files_in(state.path) == {"2.mdb", "2.mdb-lock", "2.mdb.unsynced", "current"}
        assert reader.get(NODE, "old") is not None
        assert len(open_files(f"{state.path}/1.mdb")) > 0
        with pytest.raises(Closed):
            old.read().__enter__()
        with new.read() as transaction:
            assert (transaction.get(NODE, "old"), transaction.get(NODE, "new") is not None) == (None, True)
        del transaction
    assert open_files(f"{state.path}/1.mdb") == []  # the last reader took the files with it
    new.close()
    assert open_files(state.path) == []


def test_a_generation_that_was_never_published_is_removed_at_the_next_open(state: StateDirectory) -> None:
    """The rest of a manager that died while it replaced its state."""
    Database.create(state, sync=False).abandon()
    assert state.current() is None
    Database.open(state, sync=False).close()
    Database.create(state, sync=False).abandon()
    assert state.is_unsynced(2)
    with Database.open(state, sync=False) as database:
        assert database.generation == 1
        assert files_in(state.path) == {"1.mdb", "1.mdb-lock", "1.mdb.unsynced", "current"}


def test_two_generations_that_were_set_aside_are_kept_and_no_number_is_used_twice(state: StateDirectory) -> None:
    state.create()
    for number in range(1, 5):
        Path(state.file_of(state.next_generation())).touch()
        assert state.set_aside(number, "diverged") is not None
    assert files_in(state.path) == {"3.mdb.aside-diverged", "4.mdb.aside-diverged"}
    assert state.next_generation() == 5
    assert state.set_aside(9, "diverged") is None


def test_starts_that_did_not_get_ready_are_counted_in_a_row(state: StateDirectory) -> None:
    state.create()
    assert [state.note_start() for _ in range(3)] == [0, 1, 2]
    state.forget_starts()
    state.forget_starts()
    assert state.note_start() == 0
    Path(state.path, "starts").write_bytes(b"garbage")
    assert state.note_start() == 0


def test_a_read_only_database_cannot_be_written_or_published(state: StateDirectory) -> None:
    Database.open(state, sync=True).close()
    with Database.open_read_only(state) as database:
        with pytest.raises(InvariantViolation), database.write():
            pass
        with pytest.raises(InvariantViolation):
            database.publish()


# ---- Copies.


def test_a_copy_holds_the_state_of_the_transaction_and_leaves_no_lock_file(database: Database, tmp_path: Path) -> None:
    put_all(database, (NODE, Node(id="before")))
    path = tmp_path / "copy.mdb"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with database.read() as transaction:
        put_all(database, (NODE, Node(id="after")))
        database.copy_to(descriptor, transaction)
    os.close(descriptor)
    with Database.open_file(path) as copy, copy.read() as reader:
        assert [key for key, _ in reader.items(NODE)] == [b"before"]
        assert reader.verify_indexes() == []
    assert files_in(tmp_path) == {"copy.mdb", "data"}
    with pytest.raises(FileNotFoundError):
        Database.open_file(tmp_path / "none.mdb")


# ---- Transactions.


def test_a_transaction_is_committed_whole_or_not_at_all(database: Database) -> None:
    def fail() -> None:
        with database.write() as transaction:
            transaction.put(SERVICE, "s", record(SERVICE, Service(id="s", name="web")))
            transaction.move(Position(revision=9))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with database.read() as reader:
        assert (reader.get(SERVICE, "s"), reader.revision, ids_in(reader, SERVICE_BY_NAME, b"web")) == (None, 0, [])
    with database.write() as transaction:
        assert transaction.put(SERVICE, "s", record(SERVICE, Service(id="s", name="web"))) is None
        assert transaction.put(SERVICE, "s", record(SERVICE, Service(id="s", name="new"), 2)) == record(
            SERVICE, Service(id="s", name="web")
        )
        assert ids_in(transaction, SERVICE_BY_NAME, b"web") == []
        assert ids_in(transaction, SERVICE_BY_NAME, b"new") == [b"s"]  # it sees its own changes
    with pytest.raises(Closed):
        transaction.put(SERVICE, "s", b"")


def test_writers_wait_for_each_other_and_one_in_another_is_a_bug(database: Database) -> None:
    with database.write(), pytest.raises(InvariantViolation), database.write():
        pass
    with database.write(), pytest.raises(InvariantViolation):
        database.close()
    began = threading.Event()
    revisions: list[int] = []

    def second() -> None:
        began.set()
        with database.write() as transaction:
            revisions.append(transaction.revision)

    thread = threading.Thread(target=second)
    with database.write() as transaction:
        thread.start()
        began.wait(60)
        transaction.move(Position(revision=1))
    thread.join(60)
    assert revisions == [1]


def test_close_waits_for_the_writer(state: StateDirectory) -> None:
    database = Database.open(state, sync=False)
    writing, closing = threading.Event(), threading.Event()

    def write() -> None:
        with database.write() as transaction:
            writing.set()
            closing.wait(60)
            transaction.move(Position(revision=3))

    thread = threading.Thread(target=write)
    thread.start()
    writing.wait(60)
    closer = threading.Thread(target=database.close)
    closer.start()
    closing.set()
    closer.join(60)
    thread.join(60)
    assert database.is_closed
    with Database.open(state, sync=False) as again, again.read() as reader:
        assert reader.revision == 3


@pytest.mark.parametrize("id_", ["", "x" * 512, "\ud800"])
def test_an_id_that_cannot_be_a_key_is_refused(database: Database, id_: str) -> None:
    with database.write() as transaction:
        for attempt in attempts(
            lambda: transaction.put(NODE, id_, b"\x80"),
            lambda: transaction.delete(NODE, id_),
            lambda: transaction.get(NODE, id_),
        ):
            with pytest.raises(InvalidEntity):
                attempt()
    with database.read() as reader:
        assert reader.count(NODE) == 0


def test_other_spaces_are_ordered_maps_of_bytes(database: Database) -> None:
    with database.write() as transaction:
        for number in (3, 1, 2):
            transaction.store(SESSIONS, bytes([number]), b"v%d" % number)
        transaction.store(SESSIONS, b"\x02", b"")
    with database.read() as reader:
        assert list(reader.scan(SESSIONS)) == [(b"\x01", b"v1"), (b"\x02", b""), (b"\x03", b"v3")]
        assert [key for key, _ in reader.scan(SESSIONS, b"\x02")] == [b"\x02", b"\x03"]
        assert [key for key, _ in reader.scan(SESSIONS, b"\x04")] == []
        assert [key for key, _ in reader.scan(SESSIONS, reverse=True)] == [b"\x03", b"\x02", b"\x01"]
        assert (reader.size(SESSIONS), reader.fetch(SESSIONS, b"\x09")) == (3, None)
    with database.write() as transaction:
        assert [transaction.erase(SESSIONS, b"\x02") for _ in range(2)] == [True, False]


def test_the_digest_covers_the_records_that_managers_have_in_common(database: Database) -> None:
    """Managers may differ in the place where an entry is applied (the index, the history), but not in its result."""
    with database.write() as transaction:
        transaction.put(NODE, "n", b"node")
        transaction.put(SERVICE, "s", b"service")
        transaction.store(SESSIONS, b"1", b"session")
        transaction.store(META, MEMBERSHIP, b"members")
        transaction.move(Position(revision=5))
        transaction.store("history", b"1", b"change")
    with database.read() as reader:
        assert list(reader.digest_items()) == [
            ("nodes", b"n", b"node"),
            ("services", b"s", b"service"),
            ("sessions", b"1", b"session"),
            ("meta", b"membership", b"members"),
        ]


# ---- Space.


def put_noise(database: Database, count: int) -> None:
    """`count` records of 2,000 bytes in one transaction."""
    with database.write() as transaction:
        for number in range(count):
            transaction.put(NODE, f"noise{number}", os.urandom(2000))


def test_a_full_map_changes_nothing_and_the_database_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "MAP_SIZE_BYTES", 512 * 1024)
    with Database.open(tmp_path, sync=False) as database:
        put_all(database, (NODE, Node(id="n")))
        with pytest.raises(StorageFull):
            put_noise(database, 1000)
        with database.read() as reader:
            assert reader.count(NODE) == 1
        put_all(database, (NODE, Node(id="m")))


@AS_ROOT
def test_a_full_disk_changes_nothing_and_clears_by_itself(tmp_path: Path) -> None:
    """LMDB 0.9 says EIO where a write was cut short for lack of space; a manager stops for an EIO."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip("may not mount a file system")
    try:
        with Database.open(disk, sync=False) as database:
            put_all(database, (NODE, Node(id="n")))
            filler = disk / "filler"
            with pytest.raises(StorageFull):
                put_noise(database, 3000)
            with database.read() as reader:
                assert reader.count(NODE) == 1
            put_all(database, (NODE, Node(id="m")))
            filler.write_bytes(bytes(3 * 1024 * 1024))  # the failed transaction left no space taken
            filler.unlink()
            with database.write() as transaction:
                transaction.delete(NODE, "n")
            with database.read() as reader:
                assert reader.count(NODE) == 1
            del reader, transaction
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)  # also where a failure keeps files open


def lmdb_error(kind: type[lmdb.Error], code: int) -> lmdb.Error:
    error = kind("what")
    error.code = code  # type: ignore[misc]
    return error


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (lmdb_error(lmdb.Error, errno.EIO), StorageFailed),
        (lmdb_error(lmdb.PanicError, -30795), StorageFailed),
        (lmdb_error(lmdb.Error, errno.ENOSPC), StorageFull),
        (lmdb_error(lmdb.Error, errno.EDQUOT), StorageFull),
        (lmdb_error(lmdb.MapFullError, -30792), StorageFull),
        (lmdb_error(lmdb.Error, errno.ENOMEM), StorageFull),
        (lmdb_error(lmdb.Error, errno.EMFILE), StorageFull),
        (lmdb_error(lmdb.Error, errno.EFBIG), StorageFull),
        (lmdb_error(lmdb.CorruptedError, -30796), Corrupted),
        (lmdb_error(lmdb.PageNotFoundError, -30797), Corrupted),
        (lmdb_error(lmdb.ReadersFullError, -30790), InUse),
        (lmdb.Error("is already open in this process"), InUse),
    ],
)
def test_errors_of_lmdb_are_distinguished_by_their_remedy(
    error: lmdb.Error, meaning: type[Exception], tmp_path: Path
) -> None:
    assert type(lmdb_errors.translated(error, str(tmp_path / "x.mdb"))) is meaning


def test_a_limit_of_address_space_is_named(tmp_path: Path) -> None:
    script = """
        import resource, sys
        from warren_raft.store.database import Database, StorageFailed
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
        try:
            Database.open(sys.argv[1], sync=False)
        except StorageFailed as error:
            print(error)
    """
    assert "64 GiB of address space cannot be reserved" in run(script, tmp_path)


def test_used_bytes_go_down_again_where_the_file_does_not(database: Database) -> None:
    put_all(database, *((NODE, Node(id=f"n{number}", address="x" * 500)) for number in range(1000)))
    with database.read() as reader:
        full, size = reader.used_bytes(), database.file_size_bytes()
    assert 500 * 1000 < full <= size
    with database.write() as transaction:
        for number in range(1000):
            transaction.delete(NODE, f"n{number}")
    with database.read() as reader:
        assert reader.used_bytes() < full / 4
    assert database.file_size_bytes() >= size


# ---- The seal.


def test_a_file_that_somebody_still_reads_gets_no_seal(state: StateDirectory) -> None:
    """Reads that have begun go on after the close; to read the file for its seal would drop LMDB's locks under them."""
    with Database.open(state, sync=True) as database:
        database.close_sealed()
    assert state.is_sealed(database.generation)
    with Database.open(state, sync=True) as database:
        assert not state.is_sealed(database.generation), "it may be written to"
        with database.read():
            database.close_sealed()
    assert not state.is_sealed(database.generation)


def test_a_full_disk_costs_the_seal_only(state: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_generation: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Database.open(state, sync=True) as database:
        monkeypatch.setattr(state, "seal", full)
        database.close_sealed()
    assert database.is_closed
    assert not state.is_sealed(database.generation)


# ---- Old reads.


def test_the_oldest_read_is_reported_and_a_view_that_is_too_old_is_ended(tmp_path: Path) -> None:
    now = [100.0]
    with Database.open(tmp_path, sync=False, clock=lambda: now[0]) as database:
        assert database.oldest_read_age_seconds() == 0
        with database.read(expires=True) as view, database.read() as copy:
            now[0] = 130.0
            with database.read(expires=True) as young:
                assert database.oldest_read_age_seconds() == 30
                assert database.end_old_reads(older_than_seconds=20) == 1
                with pytest.raises(Closed, match="was ended"):
                    view.get(NODE, "n")
                assert (copy.get(NODE, "n"), young.get(NODE, "n")) == (None, None)
        assert database.oldest_read_age_seconds() == 0


def test_a_view_that_was_forgotten_is_not_counted_for_ever(database: Database) -> None:
    database.read().__enter__()  # nobody keeps it
    assert database.oldest_read_age_seconds() == 0
    assert database.readers() == []


# ---- Indexes.


def test_a_missing_index_is_built_at_open_and_read_only_waits_for_that(state: StateDirectory) -> None:
    """How a new index comes into an old database, or into one restored from an old snapshot."""
    with Database.open(state, sync=True) as database:
        put_all(
            database,
            (CERTIFICATE, TLSCertificate(id="t", name="n", hosts=("A.example", "b.example"))),
            (CONTAINER, Container(id="c", service_id="s")),
        )
    with lmdb.open(state.file_of(1), subdir=False, max_dbs=64) as environment:
        for name in (b"certificate.host", b"container.service"):
            handle = environment.open_db(name)
            with environment.begin(write=True) as txn:
                txn.drop(handle)
    with pytest.raises(RefusedForSafety, match="start its manager once"):
        Database.open_read_only(state)
    with Database.open(state, sync=True) as database, database.read() as reader:
        assert reader.verify_indexes() == []
        assert ids_in(reader, CERTIFICATE_BY_HOST, b"a.example") == [b"t"]
        assert ids_in(reader, CONTAINER_BY_SERVICE, b"s") == [b"c"]


def test_a_wrong_index_is_found(database: Database) -> None:
    put_all(database, (CONTAINER, Container(id="c", service_id="s", node_id="n")))
    with database.write() as transaction:
        raw: Any = transaction._txn
        raw.delete(b"s", b"c", database.index_handles[CONTAINER_BY_SERVICE.name])
        raw.put(b"n", b"ghost", db=database.index_handles[CONTAINER_BY_NODE.name])
    with database.read() as reader:
        assert reader.verify_indexes() == [
            "index container.service lacks b's' -> b'c'",
            "index container.node has a false b'n' -> b'ghost'",
        ]


def test_a_record_that_cannot_be_decoded_is_kept_and_indexed_nowhere(database: Database) -> None:
    """Apply stores the bytes of the log, on every manager alike; they are no reason to stop all managers."""
    with database.write() as transaction:
        transaction.put(SERVICE, "s", record(SERVICE, Service(id="s", name="web")))
        transaction.put(SERVICE, "s", b"\x82\x02noise")
        transaction.put(SERVICE, "t", codec.make_record(1, b"\x82\x01\x02"))
    with database.read() as reader:
        assert reader.get(SERVICE, "s") == b"\x82\x02noise"
        assert reader.verify_indexes() == []
        assert ids_in(reader, SERVICE_BY_NAME, b"web") == []


SOME_IDS = st.sampled_from(["a", "b", "c"])
INDEXED_KINDS = [kind for kind in KINDS if kind.indexes]


@st.composite
def changes(draw: st.DrawFn) -> tuple[Kind[Any], str, Any]:
    """A kind, an id, and the entity to put there or None to delete; of few ids and values, so that they meet."""
    kind: Kind[Any] = draw(st.sampled_from(INDEXED_KINDS))
    id_ = draw(SOME_IDS)
    if draw(st.booleans()):
        return kind, id_, None
    values = st.sampled_from(["", "x", "X", "y", "*.z"])
    indexed = {index.field: st.lists(values, max_size=3).map(tuple) if index.many else values for index in kind.indexes}
    return kind, id_, kind.entity(id=id_, **{field: draw(value) for field, value in indexed.items()})  # type: ignore[misc]


@pytest.mark.slow
@settings(max_examples=200)
@given(st.lists(st.lists(changes(), max_size=6), max_size=6))
def test_indexes_equal_a_rebuild_after_any_changes(batches: list[list[tuple[Kind[Any], str, Any]]]) -> None:
    database = shared_database()
    model: dict[tuple[str, str], Any] = {}
    with database.write() as transaction:
        for kind in INDEXED_KINDS:
            for id_ in ("a", "b", "c"):
                transaction.delete(kind, id_)
    for batch in batches:
        with database.write() as transaction:
            for kind, id_, entity in batch:
                if entity is None:
                    transaction.delete(kind, id_)
                    model.pop((kind.name, id_), None)
                else:
                    transaction.put(kind, id_, record(kind, entity))
                    model[kind.name, id_] = entity
    with database.read() as reader:
        assert reader.verify_indexes() == []
        for kind in INDEXED_KINDS:
            found = {key.decode(): codec.decode(kind, data) for key, data in reader.items(kind)}
            assert found == {id_: entity for (name, id_), entity in model.items() if name == kind.name}


PAGES = st.sampled_from([10, 1_000, 1_400, 2_100, 5_000, 9_000, 100_000])
"""Bytes of a record: within a page of the tree, near the limit, on one page of its own, on several."""


@pytest.mark.slow
@settings(max_examples=200)
@given(st.lists(st.lists(st.tuples(SOME_IDS, PAGES), max_size=6), min_size=1, max_size=4))
def test_a_record_that_shrinks_within_a_transaction_leaves_a_sound_file(batches: list[list[tuple[str, int]]]) -> None:
    """Two writes to one entity in one log entry, a large one first: LMDB gave the second all pages of the first, and
    the structure was taken for damage. After that no manager could take a snapshot, or open its state after a kill."""
    database = shared_database()
    for batch in batches:
        with database.write() as transaction:
            for id_, size in batch:
                transaction.put(SERVICE, id_, record(SERVICE, Service(id=id_, env=("x" * size,))))
    with tempfile.NamedTemporaryFile() as copy:
        database.copy_to(copy.fileno())
        assert lmdb.verify.verify(copy.name) == []


@pytest.mark.slow
@given(st.data())
def test_whole_entities_leave_nothing_behind_when_they_are_deleted(data: st.DataObject) -> None:
    database = shared_database()
    kind: Kind[Any] = data.draw(st.sampled_from(INDEXED_KINDS))
    entity = data.draw(entities(kind.entity))
    with database.write() as transaction:
        transaction.put(kind, entity.id, record(kind, entity))
        assert transaction.verify_indexes() == []
        transaction.delete(kind, entity.id)
        for index, keys_of in codec.index_keys(kind):
            keys = keys_of(leading_items(record(kind, entity), 4))
            assert all(entity.id.encode() not in ids_in(transaction, index, key) for key in keys)


_shared: list[Database] = []


def shared_database() -> Database:
    """One database for all examples of the Hypothesis tests of this module."""
    return _shared[0]


@pytest.fixture(autouse=True, scope="module")
def _open_shared_database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with Database.open(tmp_path_factory.mktemp("shared"), sync=False) as database:
        _shared.append(database)
        yield
        _shared.clear()


def test_a_database_that_another_one_has_replaced_leaves_no_file_open(tmp_path: Path) -> None:
    """(Pins a fault: nobody closes it, because reads may go on in it, and its marker stayed open for ever. So each
    snapshot that a manager installed cost it a descriptor.)"""
    database = Database.open(tmp_path / "state", sync=False)
    marker = f"{database.path}.unsynced"
    assert open_files(marker)
    del database
    gc.collect()
    assert not open_files(marker)
