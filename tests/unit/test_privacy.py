"""The promise: no store works in a directory where every user of the host may read or write its files, or on files
elsewhere to which a link in its directory leads. The refusal changes nothing, and names the one command that mends it.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.test_data_directory import alone
from tests.unit.test_sharing import FIRST, SECOND, as_user, statuses
from warren_raft.certificates import files as tls_files
from warren_raft.disk import privacy
from warren_raft.errors import RefusedForSafety
from warren_raft.local.read_only import ReadOnlyStore
from warren_raft.local.store import LocalStore
from warren_raft.manager.store import ReplicatedStore
from warren_raft.model.entities import Node
from warren_raft.recovery.recover import Recovery
from warren_raft.recovery.restore import restore
from warren_raft.snapshots import staging
from warren_raft.store.ownership import DirectoryLock


def run_manager(directory: Path) -> None:
    """One life of a manager that takes a snapshot and starts with nothing that it might find wrong."""
    with ReplicatedStore(alone(str(directory), snapshot_after_bytes=0)) as store:
        store.wait_ready(30)
        store.create_node(Node(id="n1"))
        taken = store._parts.opened.keeper.take(quorum=True)()
        store._parts.opened.keeper.took(taken, set())


@pytest.fixture(scope="module")
def lived_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory that a manager has run in, under the loosest umask there is."""
    directory = tmp_path_factory.mktemp("lived-in") / "m1"
    umask = os.umask(0)
    try:
        run_manager(directory)
    finally:
        os.umask(umask)
    return directory


@pytest.fixture
def directory(lived_in: Path, tmp_path: Path) -> Path:
    """A copy of it, with a key."""
    copy = tmp_path / "m1"
    subprocess.run(["cp", "-a", lived_in, copy], check=True)
    (copy / "tls").mkdir(mode=0o700, exist_ok=True)
    (copy / "tls" / "key.pem").touch(mode=0o600)
    return copy


def newest(directory: Path, pattern: str) -> Path:
    return max(directory.glob(pattern))


OPENED: dict[str, Callable[[Path], Path]] = {
    "the directory": lambda directory: directory,
    "the log's directory": lambda directory: directory / "log",
    "a segment of the log": lambda directory: newest(directory, "log/*"),
    "the state": lambda directory: newest(directory, "state/*.mdb"),
    "a snapshot": lambda directory: newest(directory, "snapshots/*"),
    "the key": lambda directory: directory / "tls" / "key.pem",
}


@pytest.mark.slow
@pytest.mark.parametrize("others", [0o4, 0o2, 0o1])
@pytest.mark.parametrize("what", OPENED)
def test_files_open_to_every_user_are_refused_until_the_named_command_was_typed(
    directory: Path, what: str, others: int
) -> None:
    path = OPENED[what](directory)
    path.chmod(stat.S_IMODE(path.stat().st_mode) | others)
    before = statuses(directory)
    command = rf"chmod -R o-rwx {directory}"
    with pytest.raises(RefusedForSafety, match=rf"^{re.escape(str(path))} is open to every user.*: {command}$"):
        DirectoryLock(directory)
    assert statuses(directory) == before
    subprocess.run(command, shell=True, check=True)
    DirectoryLock(directory).release()


def test_every_way_to_open_a_directory_for_writing_refuses(directory: Path) -> None:
    directory.chmod(0o755)
    before = statuses(directory)
    snapshot = newest(directory, "snapshots/*")
    members = {"m1": "127.0.0.1:7946"}
    openings: list[Callable[[], object]] = [
        lambda: ReplicatedStore(alone(str(directory))),
        lambda: LocalStore(directory),
        lambda: restore(snapshot, directory, node_id="m1", members=members, move_aside=True),
    ]
    for opening in openings:
        with pytest.raises(RefusedForSafety, match="is open to every user"):
            opening()
    assert statuses(directory) == before
    with ReadOnlyStore(directory) as store:  # it makes nothing that anybody could read
        assert [node.id for node in store.list_nodes()] == ["n1"]


def test_a_new_directory_that_mkdir_made_is_closed_to_others(tmp_path: Path) -> None:
    """(Pins a complaint: `mkdir data` and a start were refused, although there was nothing to read.)"""
    made = tmp_path / "a manager's"
    made.mkdir()
    made.chmod(0o2775)
    (made / "lost+found").mkdir(mode=0o755)
    DirectoryLock(made).release()
    assert stat.S_IMODE(made.stat().st_mode) == 0o2770, "the rights of its group are not changed"


def test_a_directory_with_somebody_elses_files_keeps_its_mode(tmp_path: Path) -> None:
    """As root, `--data-dir /tmp` must not take that directory from every user, by itself or by its advice."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o1777)
    (tmp_path / "shared" / "a file").touch()
    with pytest.raises(RefusedForSafety, match="holds a file, and no manager's data: name an empty directory"):
        DirectoryLock(tmp_path / "shared")
    assert stat.S_IMODE((tmp_path / "shared").stat().st_mode) == 0o1777


@pytest.mark.parametrize("mode", [0o700, 0o755])
def test_a_directory_of_other_files_is_refused_without_advice_about_its_modes(
    directory: Path, tmp_path: Path, mode: int
) -> None:
    """(Pins a complaint: `--data-dir /etc` was answered with `chmod -R o-rwx /etc`.)"""
    docs = tmp_path / "docs"
    (docs / "log").mkdir(parents=True, mode=0o755)  # as /var has one
    (docs / "log" / "syslog").touch()
    (docs / "thesis.txt").touch()
    docs.chmod(mode)
    before = statuses(docs)
    snapshot, members = newest(directory, "snapshots/*"), {"m1": "127.0.0.1:7946"}
    openings: list[Callable[[], object]] = [
        lambda: ReplicatedStore(alone(str(docs))),
        lambda: LocalStore(docs),
        lambda: restore(snapshot, docs, node_id="m1", members=members, move_aside=True),
        lambda: Recovery(docs),
    ]
    for opening in openings:
        with pytest.raises(RefusedForSafety) as caught:
            opening()
        assert str(caught.value) == f"{docs} holds thesis.txt, and no manager's data: name an empty directory"
    assert statuses(docs) == before


def test_a_join_file_may_lie_in_a_new_directory(tmp_path: Path) -> None:
    (tmp_path / "m1").mkdir(mode=0o700)
    (tmp_path / "m1" / "m1.join").touch(mode=0o600)
    DirectoryLock(tmp_path / "m1").release()


def test_the_named_command_leaves_other_files_as_they_are(directory: Path) -> None:
    (directory / "notes.txt").touch()
    (directory / "notes.txt").chmod(0o644)
    newest(directory, "log/*").chmod(0o644)
    directory.chmod(0o755)
    with pytest.raises(RefusedForSafety) as caught:
        DirectoryLock(directory)
    subprocess.run(str(caught.value).partition("secrets: ")[2], shell=True, check=True)
    DirectoryLock(directory).release()
    assert stat.S_IMODE((directory / "notes.txt").stat().st_mode) == 0o644


def test_a_directory_that_others_fill_while_it_is_closed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tmp_path / "m1"
    made.mkdir()
    made.chmod(0o777)
    chmod = os.chmod

    def and_one_is_quicker(path: str, mode: int) -> None:
        (made / "log").mkdir()
        chmod(path, mode)

    monkeypatch.setattr(os, "chmod", and_one_is_quicker)
    with pytest.raises(RefusedForSafety, match="have come into it"):
        DirectoryLock(made)


LINKED = (
    "lock",
    "log",
    "state",
    "snapshots",
    "tls",
    "manager.json",
    "origins",
    "log/*",
    "state/*.mdb",
    "snapshots/*",
    "tls/*",
)


@pytest.mark.parametrize("pattern", LINKED)
def test_a_link_out_of_the_directory_is_not_followed(directory: Path, tmp_path: Path, pattern: str) -> None:
    path = newest(directory, pattern)
    elsewhere = tmp_path / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    before = statuses(tmp_path)
    with pytest.raises(RefusedForSafety, match=rf"{re.escape(str(path))} is a symbolic link to {elsewhere}.*mount"):
        ReplicatedStore(alone(str(directory)))
    assert statuses(tmp_path) == before
    path.unlink()
    elsewhere.rename(path)
    DirectoryLock(directory).release()


def test_a_reader_does_not_follow_one_either(directory: Path, tmp_path: Path) -> None:
    (directory / "state").rename(tmp_path / "elsewhere")
    (directory / "state").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RefusedForSafety, match="is a symbolic link"):
        ReadOnlyStore(directory)


def test_the_name_of_the_directory_may_be_a_link(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "name").symlink_to(directory)
    DirectoryLock(tmp_path / "name").release()
    directory.chmod(0o755)
    with pytest.raises(RefusedForSafety, match="is open to every user"):
        DirectoryLock(tmp_path / "name")


def test_a_file_that_is_not_a_managers_is_not_examined(directory: Path, tmp_path: Path) -> None:
    (directory / "lost+found").mkdir(mode=0o755)
    (directory / "notes").symlink_to(tmp_path)
    DirectoryLock(directory).release()


def test_all_that_a_manager_keeps_is_looked_at(lived_in: Path) -> None:
    left = {path.name for path in lived_in.iterdir()}
    assert {"lock", "log", "state", "snapshots", "manager.json", "origins", "tls", "tls.lock"} == left
    exchanged = {
        tls_files.DIRECTORY_NAME,
        tls_files._PART,
        tls_files._NEW,
        tls_files._OLD,
        f"{tls_files.DIRECTORY_NAME}.lock",
    }
    assert left | set(staging.OURS) | {staging._PART, staging._READY} | exchanged <= privacy.NAMES
    for each in lived_in.rglob("*"):
        assert not each.lstat().st_mode & stat.S_IRWXO, each


# ---- other users


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that every user may reach."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


def refused(directory: Path, text: str) -> Callable[[], None]:
    def opening() -> None:
        with pytest.raises(RefusedForSafety, match=text):
            DirectoryLock(directory)

    return opening


@pytest.mark.skipif(os.geteuid() != 0, reason="to become other users needs root")
def test_a_directory_of_a_third_user_is_refused_also_when_it_is_empty(place: Path) -> None:
    """That user could replace the manager's files by others."""
    (place / "m1").mkdir(mode=0o770)
    os.chown(place / "m1", FIRST, SECOND)
    as_user(SECOND, refused(place / "m1", f"belongs to user #{FIRST}.*sudo -u"))
    as_user(0, refused(place / "m1", f"belongs to user #{FIRST}.*sudo -u"), groups=())
    assert list((place / "m1").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="to become other users needs root")
def test_a_volume_of_root_can_be_used_where_it_is_closed_to_others(place: Path) -> None:
    """As a package makes one (root:GROUP 0770), or Kubernetes for a pod with an fsGroup: there the volume itself may be
    open to everybody (mode 2777), and a directory inside it is the remedy."""
    (place / "volume").mkdir()
    os.chown(place / "volume", 0, SECOND)
    os.chmod(place / "volume", 0o2777)
    as_user(SECOND, refused(place / "volume", "as its owner, user root; or name a directory inside it"))

    def use(directory: Path) -> Callable[[], None]:
        return lambda: DirectoryLock(directory).release()

    as_user(SECOND, use(place / "volume" / "m1"))
    assert stat.S_IMODE((place / "volume" / "m1").stat().st_mode) & 0o777 == 0o700
    shutil.rmtree(place / "volume" / "m1")
    os.chmod(place / "volume", 0o770)
    as_user(SECOND, use(place / "volume"))
