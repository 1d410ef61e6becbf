"""The promise: a reader in another process never sees a page that was reused, with any process ids, forks and kills.
The owner never waits for a reader, and keeps no pages for a dead one.

A reader here is a process that takes orders line by line, so each test knows the order of events.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import lmdb
import pytest

import warren_raft as wr
from tests.other_process import Other
from warren_raft.store import reader_slots
from warren_raft.store.database import Database
from warren_raft.store.lmdb_errors import MAX_READERS
from warren_raft.store.reader_slots import (
    FILE_BYTES,
    FIRST,
    SLOTS,
    Holder,
)

DEADLINE = 60.0
RECORDS = 60
ROUNDS = 12
"""Enough for LMDB to use every page again that it may."""

IN_NAMESPACE = ("unshare", "--fork", "--pid", "--kill-child")
"""The program is process 1 of its own process ids, as in a container."""


def may_make_namespaces() -> bool:
    return subprocess.run([*IN_NAMESPACE, "true"], capture_output=True, check=False).returncode == 0


AS_CONTAINERS = pytest.mark.skipif(not may_make_namespaces(), reason="may not make a namespace of process ids")

Others = Callable[..., Other]


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Others]:
    """Makes processes that look at the directory of the test."""
    made: list[Other] = []

    def make(*command: str) -> Other:
        made.append(Other(tmp_path / "s", *command))
        return made[-1]

    yield make
    for process in made:
        process.close()


def write(store: wr.LocalStore, value: str) -> None:
    """One commit, in which every record changes."""
    with store.batch() as batch:
        for number in range(RECORDS):
            batch.create_container(wr.Container(id=f"c{number}", image=value, env=("x" * 500,)))


def write_rounds(store: wr.LocalStore, name: str) -> None:
    for number in range(ROUNDS):
        write(store, f"{name}{number}")


def database_of(store: wr.LocalStore) -> Database:
    database = store._database
    assert database is not None
    return database


def foreign(store: wr.LocalStore) -> list[Holder]:
    """Readers in other processes."""
    return [reader for reader in database_of(store).readers() if reader.namespace]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[wr.LocalStore]:
    with wr.LocalStore(tmp_path / "s") as store:
        write(store, "first")
        yield store


# ---- the table is LMDB's


def test_the_table_is_where_lmdb_has_it(tmp_path: Path) -> None:
    """Not of this package: an environment as LMDB makes it, with a reader and three commits."""
    path = tmp_path / "a.mdb"
    with lmdb.open(str(path), subdir=False, max_readers=MAX_READERS, lib_version=0) as environment:
        for number in range(3):
            with environment.begin(write=True) as transaction:
                transaction.put(b"key", b"%d" % number)
        with environment.begin():
            _, line = environment.readers().splitlines()
            assert os.path.getsize(f"{path}-lock") == FILE_BYTES
            table = Path(f"{path}-lock").read_bytes()
        pid, thread, transaction_id = line.split()
        words = memoryview(table).cast("Q")
        slot = words[reader_slots._SLOTS_AT // 8 :]
        assert (slot[0], slot[1], slot[2]) == (int(transaction_id), int(pid), int(thread, 16))
        assert words[reader_slots._NEWEST // 8] == environment.info()["last_txnid"] == 3
        assert memoryview(table).cast("I")[reader_slots._COUNT // 4] == 1


def test_lmdb_leaves_the_slots_alone_that_are_set_apart(store: wr.LocalStore) -> None:
    """More readers of its own than there are slots before."""
    views = [store.read().__enter__() for _ in range(FIRST + 40)]
    own = [reader for reader in database_of(store).readers() if reader.pid == os.getpid()]
    assert len(own) == len(views)
    environment = database_of(store)._environment
    assert environment is not None
    numbers = [int(line.split()[0]) for line in environment.readers().splitlines()[1:]]
    assert [number for number in numbers if number != os.getpid()] == [2**30 + number for number in range(SLOTS)]
    assert database_of(store).reader_check() == 0
    for view in views:
        view.__exit__(None, None, None)


# ---- pages that are read


def test_a_view_in_another_process_does_not_change(store: wr.LocalStore, other: Others) -> None:
    reader = other()
    reader.open()
    assert reader.begin() == ["first"]
    write_rounds(store, "later")
    assert reader.look() == ["first"]
    assert [(holder.pid, holder.transaction) for holder in foreign(store)] == [
        (reader.process.pid, database_of(store).newest_transaction() - ROUNDS)
    ]
    reader.end()
    assert foreign(store) == []
    assert reader.begin() == [f"later{ROUNDS - 1}"]


def test_views_of_several_moments_in_several_processes_do_not_change(store: wr.LocalStore, other: Others) -> None:
    readers = [other() for _ in range(3)]
    for number, reader in enumerate(readers):
        write(store, f"moment{number}")
        reader.open()
        assert reader.begin() == [f"moment{number}"]
    write_rounds(store, "later")
    for number, reader in enumerate(readers):
        assert reader.look() == [f"moment{number}"]
    readers[0].end()
    write_rounds(store, "much later")
    assert [reader.look() for reader in readers[1:]] == [["moment1"], ["moment2"]]


def test_pages_that_nobody_reads_any_more_are_used_again(store: wr.LocalStore, other: Others) -> None:
    reader = other()
    reader.open()
    reader.begin()
    write_rounds(store, "a")
    reader.end()

    def unused() -> int:
        with database_of(store).read() as transaction:
            return os.path.getsize(database_of(store).path) - transaction.used_bytes()

    before = unused()
    for name in "bcdef":
        write_rounds(store, name)
    assert unused() <= before


def test_a_killed_owner_and_its_successor_keep_the_pages_that_are_read(tmp_path: Path, other: Others) -> None:
    owner, reader = other(), other()
    owner.tell("[store := wr.LocalStore(path)] and 'open'")
    fill = f"[wr.Container(id=f'c{{n}}', image='first', env=('x' * 500,)) for n in range({RECORDS})]"
    owner.tell(f"[store.create_container(each) for each in {fill}][-1]")
    reader.open()
    assert reader.begin() == ["first"]
    owner.kill()
    with wr.LocalStore(tmp_path / "s") as store:
        assert [holder.pid for holder in foreign(store)] == [reader.process.pid]
        write_rounds(store, "later")
        assert reader.look() == ["first"]
        reader.end()
        assert reader.begin() == [f"later{ROUNDS - 1}"]


def test_a_reader_that_was_there_before_the_owner_is_spared(tmp_path: Path, other: Others) -> None:
    with wr.LocalStore(tmp_path / "s") as store:
        write(store, "first")
    os.unlink(f"{tmp_path}/s/state/1.mdb-lock")
    reader = other()
    reader.open()
    assert reader.begin() == ["first"]
    with wr.LocalStore(tmp_path / "s") as store:
        write_rounds(store, "later")
        assert reader.look() == ["first"]


# ---- process ids


@AS_CONTAINERS
def test_processes_of_one_number_in_two_containers_read_side_by_side(tmp_path: Path, other: Others) -> None:
    """(Pins a bug: the first process of every container is number 1, and LMDB's lock for that number was taken.)"""
    owner, first, second = (other(*IN_NAMESPACE) for _ in range(3))
    assert owner.tell("[store := wr.LocalStore(path)] and os.getpid()") == 1
    owner.tell("store.create_container(wr.Container(id='c', image='first'))")
    for reader in (first, second):
        reader.open()
        assert reader.tell("os.getpid()") == 1
        assert reader.begin() == ["first"]
    owner.tell(f"[store.create_container(wr.Container(id='c', image=str(n))) for n in range({ROUNDS})][-1]")
    assert (first.look(), second.look()) == (["first"], ["first"])
    first.end()
    assert second.look() == ["first"]
    seen = owner.tell("[[reader.pid, reader.namespace] for reader in store._database.readers()]")
    assert [pid for pid, _ in seen] == [1]
    assert seen[0][1] == second.tell("os.stat('/proc/self/ns/pid').st_ino")


@AS_CONTAINERS
def test_a_reader_does_not_keep_an_owner_of_its_number_from_starting(tmp_path: Path, other: Others) -> None:
    reader, owner = other(*IN_NAMESPACE), other(*IN_NAMESPACE)
    with wr.LocalStore(tmp_path / "s") as store:
        write(store, "first")
    reader.open()
    assert reader.begin() == ["first"]
    assert owner.tell("[store := wr.LocalStore(path)] and os.getpid()") == 1
    owner.tell(f"[store.create_container(wr.Container(id='c0', image=str(n))) for n in range({ROUNDS})][-1]")
    assert reader.look() == ["first"]


@AS_CONTAINERS
def test_the_slots_of_a_killed_owner_with_the_same_process_id_are_freed(tmp_path: Path, other: Others) -> None:
    """LMDB takes its slots for the successor's own, and would never use a page again. The reader keeps the table."""
    owner, reader, successor = (other(*IN_NAMESPACE) for _ in range(3))
    owner.tell("[store := wr.LocalStore(path)] and store.create_container(wr.Container(id='c', image='first'))")
    owner.tell("[view := store.read().__enter__()] and 0")
    reader.open()
    owner.kill()
    assert successor.tell("[store := wr.LocalStore(path)] and os.getpid()") == 1
    assert successor.tell("store._database.readers()") == []


NATIVE = """[
    environment := __import__('lmdb').open(
        path + '/state/1.mdb', subdir=False, readonly=True, max_dbs=64, lib_version=0
    ), transaction := environment.begin()] and os.getpid()"""


@pytest.mark.slow
@AS_CONTAINERS
def test_a_reader_that_does_use_lmdbs_locks_is_named_and_costs_nothing(tmp_path: Path, other: Others) -> None:
    """An older release, or a tool of LMDB: until it ends nobody of its number can be the owner. No word of an errno."""
    with wr.LocalStore(tmp_path / "s") as store:
        write(store, "first")
    native, owner = other(*IN_NAMESPACE), other(*IN_NAMESPACE)
    assert native.tell(NATIVE.replace("\n", " ")) == 1
    refused = owner.tell("wr.LocalStore(path)")
    assert refused.startswith("WouldBlock: ")
    assert "the same process id as this one (1)" in refused
    assert "stop that process" in refused
    reader = other(*IN_NAMESPACE)
    reader.open()
    assert reader.begin() == ["first"]
    native.kill()
    assert owner.tell("[store := wr.LocalStore(path)] and values(store)") == ["first"]


# ---- the dead


def test_the_slot_of_a_reader_that_died_is_freed_and_that_of_a_living_one_is_not(
    store: wr.LocalStore, other: Others
) -> None:
    dead, living = other(), other()
    for reader in (dead, living):
        reader.open()
        assert reader.begin() == ["first"]
    dead.kill()
    assert len(foreign(store)) == 2
    assert database_of(store).reader_check() == 1
    assert [holder.pid for holder in foreign(store)] == [living.process.pid]
    assert database_of(store).reader_check() == 0
    write_rounds(store, "later")
    assert living.look() == ["first"]


def test_a_store_that_writes_frees_the_slots_of_the_dead_by_itself(
    store: wr.LocalStore, other: Others, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(Pins a bug: only a manager did; beside a LocalStore one killed reader made the file grow for ever.)"""
    reader = other()
    reader.open()
    reader.begin()
    reader.kill()
    monkeypatch.setattr(store, "_look_at", 0.0)
    write(store, "later")
    assert foreign(store) == []


def test_a_suspended_reader_keeps_its_pages(store: wr.LocalStore, other: Others) -> None:
    reader = other()
    reader.open()
    assert reader.begin() == ["first"]
    reader.process.send_signal(signal.SIGSTOP)
    write_rounds(store, "later")
    assert database_of(store).reader_check() == 0
    reader.process.send_signal(signal.SIGCONT)
    assert reader.look() == ["first"]


# ---- when there is something wrong


@pytest.mark.slow
def test_a_lock_file_that_was_removed_under_its_owner_is_noticed(store: wr.LocalStore, other: Others) -> None:
    """A reader with another lock file would not be seen, and read pages that are used again."""
    before, after = other(), other()
    before.open()
    assert before.begin() == ["first"]
    os.unlink(f"{database_of(store).path}-lock")
    assert not database_of(store).has_lock_file
    refused = after.tell("wr.ReadOnlyStore(path)")
    assert refused.startswith("InUse: ")
    assert "-lock was removed; restart that manager" in refused
    write_rounds(store, "later")
    assert before.look() == ["first"]
    before.end()
    assert before.begin() == [f"later{ROUNDS - 1}"]


@pytest.mark.slow
def test_a_successor_knows_that_there_are_readers_which_it_does_not_see(tmp_path: Path, other: Others) -> None:
    """Their lock file was removed, so the pages that they read are not known: a manager rebuilds its state in a new
    file."""
    reader = other()
    with wr.LocalStore(tmp_path / "s") as store:
        write(store, "first")
        reader.open()
        assert reader.begin() == ["first"]
        os.unlink(f"{database_of(store).path}-lock")
    with pytest.raises(wr.Corrupted, match="is read by processes that opened it before"):
        wr.LocalStore(tmp_path / "s")
    assert reader.look() == ["first"]
    reader.kill()
    wr.LocalStore(tmp_path / "s").close()


def newest_in_lock_file(path: Path, change: int) -> None:
    """Changes the newest transaction in the lock file."""
    with open(path, "r+b") as file:
        file.seek(reader_slots._NEWEST)
        newest = int.from_bytes(file.read(8), sys.byteorder)
        file.seek(reader_slots._NEWEST)
        file.write((newest + change).to_bytes(8, sys.byteorder))


@pytest.mark.slow
def test_a_commit_is_read_although_its_writer_died_before_noting_it(
    tmp_path: Path, other: Others, monkeypatch: pytest.MonkeyPatch
) -> None:
    with wr.LocalStore(tmp_path / "s") as store:
        write(store, "first")
    first, second = other(), other()
    first.open()  # so that LMDB does not make the lock file again
    newest_in_lock_file(tmp_path / "s" / "state" / "1.mdb-lock", -1)
    second.open()
    assert second.begin() == ["first"]
    with wr.LocalStore(tmp_path / "s") as store:  # and its successor does not write over it
        assert {container.image for container in store.list_containers()} == {"first"}
        write_rounds(store, "later")
        assert second.look() == ["first"]


@pytest.mark.slow
def test_a_lock_file_that_an_owner_does_not_keep_is_not_believed(store: wr.LocalStore, other: Others) -> None:
    reader = other()
    reader.open()
    newest_in_lock_file(Path(f"{database_of(store).path}-lock"), -1)
    reader.tell("__import__('warren_raft.store.reader_slots', fromlist=['x']).__dict__.update(ATTACH_SECONDS=1.2)")
    refused = reader.begin()
    assert refused.startswith("InUse: ")
    assert "its manager uses another lock file" in refused


def test_more_readers_than_there_are_slots_are_told_so(store: wr.LocalStore, other: Others) -> None:
    reader = other()
    reader.open()
    views = SLOTS - 1  # to begin one takes another for a moment
    assert reader.tell(f"[views := [store.read().__enter__() for _ in range({views})]] and len(views)") == views
    refused = reader.tell("store.read().__enter__()")
    assert refused.startswith("InUse: ")
    assert f"has {SLOTS} open read transactions of other processes" in refused
    assert reader.tell("views.pop().__exit__(None, None, None)") is None
    assert reader.begin() == ["first"]


def test_a_view_that_was_forgotten_gives_its_slot_back(store: wr.LocalStore, other: Others) -> None:
    reader = other()
    reader.open()
    assert reader.tell("values(store.read().__enter__())") == ["first"]
    assert foreign(store) == []


def test_a_transaction_that_could_not_begin_gives_its_slot_back(store: wr.LocalStore, other: Others) -> None:
    reader = other()
    reader.open()
    reader.tell("[table := store._database.begin.__self__, right := table._begin] and 0")
    reader.tell("table.__dict__.update(_begin=lambda: 1 / 0)")
    assert reader.tell("store.read().__enter__()").startswith("ZeroDivisionError")
    assert foreign(store) == []
    reader.tell("table.__dict__.update(_begin=right)")
    assert reader.begin() == ["first"]
    assert reader.tell("len(table._claimed)") <= 2


def test_a_slot_that_a_signal_handler_took_is_not_taken_again(store: wr.LocalStore, other: Others) -> None:
    """The kernel grants a lock to the descriptor that has it. With one slot for two views, the manager would spare the
    pages of the later one only."""
    reader = other()
    reader.open()
    reader.tell("[table := store._database.begin.__self__, number := max(table._claimed) + 1] and 0")
    assert reader.tell("[table._claim_slot(number), table._claim_slot(number)]") == [True, False]


def test_no_room_for_the_lock_file_is_an_error_not_the_end_of_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page of the lock file without space would raise SIGBUS when it is written to."""

    def full(*_arguments: int) -> int:
        ctypes.set_errno(errno.ENOSPC)
        return -1

    monkeypatch.setattr(reader_slots, "_fallocate", full)
    with pytest.raises(wr.StorageFull, match="no space left"):
        wr.LocalStore(tmp_path / "s")
    monkeypatch.undo()
    wr.LocalStore(tmp_path / "s").close()


READ_ONLY = """
    import json, os, subprocess, sys
    sys.path[:] = json.loads(sys.argv[1])
    import warren_raft as wr
    data, mounted = sys.argv[2:]
    subprocess.run(["mount", "-t", "tmpfs", "none", mounted], check=True)
    subprocess.run(["cp", "-a", data, mounted + "/s"], check=True)
    os.mkdir(mounted + "/bound")
    subprocess.run(["mount", "--bind", mounted + "/s", mounted + "/bound"], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", mounted + "/bound"], check=True)
    try:
        wr.ReadOnlyStore(mounted + "/bound")
    except wr.RefusedForSafety as error:
        print(error)
    subprocess.run(["mount", "-o", "remount,ro", mounted], check=True)
    with wr.ReadOnlyStore(mounted + "/s") as store:
        print(len(store.list_containers()))
"""


@pytest.mark.skipif(
    subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode != 0,
    reason="may not mount",
)
def test_a_mount_for_reading_only_is_read_only_where_nobody_can_write(tmp_path: Path) -> None:
    """(Pins a bug: on such a mount LMDB reads without any lock, beside a manager that has mounted it for writing.)"""
    with wr.LocalStore(tmp_path / "s") as store:
        write(store, "first")
    (tmp_path / "mounted").mkdir()
    arguments = [sys.executable, "-c", textwrap.dedent(READ_ONLY), json.dumps(sys.path)]
    done = subprocess.run(
        ["unshare", "--mount", *arguments, tmp_path / "s", tmp_path / "mounted"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    refused, count = done.stdout.splitlines()
    assert "is mounted for reading only" in refused
    assert "snapshot save" in refused
    assert int(count) == RECORDS


# ---- forks

FORKS = """
    import gc, json, os, sys
    sys.path[:] = json.loads(sys.argv[1])
    import warren_raft as wr
    path = sys.argv[2]

    def in_child(name, work):
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                answer = str(work())
            except BaseException as error:
                answer = f"{type(error).__name__}: {error}"
            os.write(writing, answer.encode())
            os._exit(0)
        os.waitpid(pid, 0)
        os.close(writing)
        with open(reading) as file:
            print(f"{name}: {file.read()}", flush=True)

    def read():
        with wr.ReadOnlyStore(path) as store, store.read() as view:
            found = len(view.list_containers())
        gc.collect()
        return found
"""


def run_forks(path: Path, script: str) -> list[str]:
    program = textwrap.dedent(FORKS) + textwrap.dedent(script)
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(sys.path), path], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_child_opens_its_own_reader_whatever_its_parent_has_open(tmp_path: Path) -> None:
    """(Pins a bug: py-lmdb knew the parent's files as open, in the child too. gunicorn --preload, pools that fork.)"""
    script = """
        with wr.LocalStore(path) as store:
            store.create_container(wr.Container(id="c"))
            in_child("beside a LocalStore", read)
            with store.read() as view:
                in_child("and its view", read)
                print("still", len(view.list_containers()))
        reader = wr.ReadOnlyStore(path)
        in_child("beside a ReadOnlyStore", read)
        with reader.read() as view:
            in_child("and its view", read)
            in_child("twice over", lambda: in_child("grandchild", read))
            reader.close()
            in_child("closed, with a view", read)
            print("still", len(view.list_containers()))
        del view
        in_child("after all", read)
    """
    assert run_forks(tmp_path / "s", script) == [
        "beside a LocalStore: 1",
        "and its view: 1",
        "still 1",
        "beside a ReadOnlyStore: 1",
        "and its view: 1",
        "grandchild: 1",
        "twice over: None",
        "closed, with a view: 1",
        "still 1",
        "after all: 1",
    ]


@pytest.mark.slow
def test_a_child_opens_its_own_store_once_its_parent_has_closed_its_own(tmp_path: Path) -> None:
    script = """
        def write():
            with wr.LocalStore(path) as store:
                return store.create_container(wr.Container(id="c"))

        store = wr.LocalStore(path)
        view = store.read().__enter__()
        in_child("open here", write)
        store.close()
        in_child("closed here", write)
        view.__exit__(None, None, None)
    """
    refused, done = run_forks(tmp_path / "s", script)
    assert refused.startswith("open here: InUse: ")
    assert done == "closed here: 1"


@pytest.mark.slow
def test_a_store_that_a_child_inherited_says_that_it_belongs_to_the_parent(tmp_path: Path) -> None:
    script = """
        from tests.cluster.harness import free_ports
        address = "127.0.0.1:%d" % free_ports(1)[0]
        config = wr.Config(
            node_id="m1", data_dir=path + "-m1", listen=address, members={"m1": address}, bootstrap=True, admin=False
        )
        with wr.LocalStore(path) as local:
            local.create_service(wr.Service(id="s"))
        reader = wr.ReadOnlyStore(path)
        view = reader.read().__enter__()
        with wr.LocalStore(path + "2") as local, wr.ReplicatedStore(config) as manager:
            manager.wait_ready(30)
            calls = {
                "local read": local.list_services,
                "local write": lambda: local.create_service(wr.Service(id="s")),
                "reader": reader.list_services,
                "view": view.list_services,
                "manager read": manager.list_services,
                "manager write": lambda: manager.create_service(wr.Service(id="s")),
                "manager barrier": lambda: manager.barrier(1),
                "manager snapshot": lambda: manager.snapshot(path + ".snapshot"),
            }
            for name, call in calls.items():
                in_child(name, call)
            in_child("closing", lambda: (local.close(), reader.close(), manager.close()))
            print("still", len(view.list_services()), manager.create_service(wr.Service(id="s")))
    """
    lines = run_forks(tmp_path / "s", script)
    assert lines[-2:] == ["closing: (None, None, None)", "still 1 1"]
    assert len(lines) == 10
    for line in lines[:-2]:
        assert line.endswith("Closed: the store belongs to the parent process of a fork: open a store in this process")


def test_a_child_does_not_keep_the_pages_that_its_dead_parent_read(store: wr.LocalStore, other: Others) -> None:
    parent = other()
    parent.open()
    assert parent.begin() == ["first"]
    child = parent.tell("os.fork() or __import__('signal').pause()")
    try:
        parent.kill()
        deadline = time.monotonic() + DEADLINE
        while foreign(store):  # until the child has let go
            assert time.monotonic() < deadline
            database_of(store).reader_check()
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_reader_that_is_closed_lets_go_of_nothing_in_a_child(tmp_path: Path) -> None:
    """Its descriptors were closed, and their numbers are other files' by now."""
    script = """
        wr.LocalStore(path).close()
        store = wr.ReadOnlyStore(path)
        table = store._database.begin.__self__
        numbers = sorted(table.descriptors())
        table.close()
        files = [open("/proc/self/comm") for _ in range(20)]
        assert set(numbers) <= {file.fileno() for file in files}
        in_child("read", lambda: {file.read() != "" for file in files})
    """
    assert run_forks(tmp_path / "s", script) == ["read: {True}"]


def test_a_child_leaves_its_parents_slots_alone(store: wr.LocalStore, other: Others) -> None:
    """It forgets the view, collects garbage, and ends as a program does."""
    parent = other()
    parent.open()
    assert parent.begin() == ["first"]
    fork = "(pid := os.fork()) or [globals().update(view=None, store=None), __import__('gc').collect(), sys.exit(0)]"
    parent.tell(fork)
    assert parent.tell("os.waitpid(pid, 0)[1]") == 0
    assert [holder.pid for holder in foreign(store)] == [parent.process.pid]
    write_rounds(store, "later")
    assert parent.look() == ["first"]


@pytest.mark.slow
def test_a_pool_of_forked_workers_reads(tmp_path: Path) -> None:
    script = """
        import multiprocessing
        with wr.LocalStore(path) as store:
            store.create_container(wr.Container(id="c"))
            inherited = store
            def work(_number):
                return read()
            with multiprocessing.get_context("fork").Pool(3) as pool:
                print(sum(pool.map(work, range(30))))
    """
    assert run_forks(tmp_path / "s", script) == ["30"]


def test_a_read_under_a_writer_that_never_rests_is_whole(tmp_path: Path, other: Others) -> None:
    """Transactions begin at any moment of a commit: none may take a header page that is half written."""
    owner, reader = other(), other()
    fill = f"[b.create_container(wr.Container(id=f'c{{n}}', image=str(r), env=('x' * 500,))) for n in range({RECORDS})]"
    owner.tell("[store := wr.LocalStore(path)] and 0")
    loop = (
        "[thread := __import__('threading').Thread(daemon=True, target=lambda: ["
        f"[b := store.batch(), b.__enter__(), {fill}, b.__exit__(None, None, None)] "
        "for r in __import__('itertools').count()])] and thread.start()"
    )
    assert owner.tell(loop) is None
    deadline = time.monotonic() + DEADLINE
    while owner.tell("len(store.list_containers())") < RECORDS:
        assert time.monotonic() < deadline
    reader.open()
    seen = reader.tell("[len(values(store)) for _ in range(300)]")
    assert seen == [1] * 300
