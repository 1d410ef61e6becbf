"""The promise: every operation that decides what a disk holds after a crash goes through Files (disk/files.py), so that
a test can hand in another disk. The free space is measured there only.
"""

from __future__ import annotations

import ast
import os
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import warren_raft
import warren_raft_cli
from tests.memory_files import MemoryFiles
from tests.sources import trees_with
from tests.watched_files import WatchedFiles
from warren_raft.disk.files import OS_FILES, Files, HeldDirectory, OsFile

ONLY_IN_DISK = {
    "os": {"fsync", "fdatasync", "sync", "rename", "renames", "replace", "link", "symlink", "unlink", "remove"}
    | {"mkdir", "makedirs", "rmdir", "removedirs", "statvfs", "fstatvfs", "O_CREAT", "O_TMPFILE"},
    "shutil": {"rmtree", "move", "copy", "copy2", "copyfile", "copytree", "disk_usage"},
}
EXCEPT = {
    ("admin/server.py", "rename"): "the socket's name, which need not survive a power cut",
    ("admin/server.py", "unlink"): "the socket's name, which need not survive a power cut",
    ("store/lmdb_errors.py", "O_TMPFILE"): "the probe for LMDB's own writes: a file that never gets a name",
    ("testing/cluster.py", "rmtree"): "the temporary directory of a test that has ended",
    ("testing/simulation.py", "rmtree"): "the temporary directory of a test that has ended",
}


def uses(package: Path) -> Iterator[tuple[str, str]]:
    of_modules = "|".join(rf"\b{module}\s*\.\s*({'|'.join(names)})\b" for module, names in ONLY_IN_DISK.items())
    pattern = rf"{of_modules}|\bfrom\s+({'|'.join(ONLY_IN_DISK)})\s+import\b"
    for path, tree in trees_with(pattern, sorted(package.rglob("*.py"))):
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                if node.attr in ONLY_IN_DISK.get(node.value.id, ()):
                    yield str(path.relative_to(package)), node.attr
            elif isinstance(node, ast.ImportFrom) and node.module in ONLY_IN_DISK:
                for alias in node.names:
                    yield str(path.relative_to(package)), alias.name


def test_only_the_package_disk_changes_names_syncs_and_measures_free_space() -> None:
    found = {use for module in (warren_raft, warren_raft_cli) for use in uses(Path(module.__path__[0]))}
    assert {use for use in found if not use[0].startswith("disk/")} == EXCEPT.keys()
    assert {use for use in found if use[1] == "statvfs"} == {("disk/files.py", "statvfs")}


@pytest.fixture(params=["real", "held", "watched", "memory"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Files]:
    if request.param == "held":
        with closing(HeldDirectory(str(tmp_path))) as directory:
            yield directory
        return
    memory = MemoryFiles(*map(str, (tmp_path, *tmp_path.parents)))
    yield {"real": OS_FILES, "watched": WatchedFiles(), "memory": memory}[request.param]


def test_every_disk_keeps_the_same_promises(files: Files, tmp_path: Path) -> None:
    a, b, directory = str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path)
    with closing(files.make_file(a)) as file:
        file.write(0, b"first and")
        file.write(5, b" last")
        file.truncate(9)
        file.sync()
        assert (file.size(), file.read(6, 99)) == (9, b"las")
    with pytest.raises(FileExistsError):
        files.make_file(a)
    files.link(a, b)
    with pytest.raises(FileExistsError):
        files.link(a, b)
    files.unlink(a)
    with pytest.raises(FileNotFoundError):
        files.unlink(a)
    with pytest.raises(FileNotFoundError):
        files.open(a)
    files.rename(b, a)
    files.sync_directory(directory)
    assert files.list_directory(directory) == ["a"]
    with closing(files.open(a, create=True)) as file:
        assert file.size() == 0
    with pytest.raises(FileNotFoundError):
        files.list_directory(b)
    with pytest.raises(FileExistsError):
        files.make_directory(directory)
    assert files.free_bytes(directory) > 0


def test_a_directory_that_is_held_stays_the_one_that_was_opened(tmp_path: Path) -> None:
    place, moved = tmp_path / "place", tmp_path / "moved"
    place.mkdir()
    with closing(HeldDirectory(str(place))) as files:
        place.rename(moved)
        place.mkdir()
        (place / "other").touch()
        for private in (False, True):
            files.make_file(str(place / f"made-{private}"), private=private).close()
        files.open(str(place / "opened"), create=True).close()
        files.link(str(place / "opened"), str(place / "linked"))
        files.rename(str(place / "opened"), str(place / "renamed"))
        with pytest.raises(FileNotFoundError):
            files.unlink(str(place / "other"))
    assert os.listdir(place) == ["other"]
    assert sorted(os.listdir(moved)) == ["linked", "made-False", "made-True", "renamed"]


def test_in_a_shared_directory_new_files_are_shared_unless_they_are_private(tmp_path: Path) -> None:
    tmp_path.chmod(0o2770)
    for name, private, mode in (("shared", False, 0o660), ("private", True, 0o600)):
        OS_FILES.make_file(str(tmp_path / name), private=private).close()
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == mode
    OS_FILES.make_directory(str(tmp_path / "d"))
    OS_FILES.make_directory(str(tmp_path / "e"), private=True)
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o2770
    assert (tmp_path / "e").stat().st_mode & stat.S_IRWXG == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_the_error_of_a_write_names_the_file(tmp_path: Path) -> None:
    """(Pins a fault: a manager that did not start on a full disk blamed "stdout".)"""
    with closing(OsFile(os.open("/dev/full", os.O_RDWR))) as full, pytest.raises(OSError, match="No space") as caught:
        full.write(0, b"x")
    assert caught.value.filename == "/dev/full"
    path = tmp_path / "file"
    path.touch()
    for change in (lambda file: file.write(0, b"x"), lambda file: file.truncate(1)):
        with (
            closing(OsFile(os.open(path, os.O_RDONLY))) as file,
            pytest.raises(OSError, match=r"Bad file|Invalid argument") as caught,
        ):
            change(file)
        assert caught.value.filename == str(path)


def test_the_free_space_is_that_of_users_other_than_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = os.statvfs(tmp_path)
    monkeypatch.setattr(os, "statvfs", lambda _place: os.statvfs_result([512, 4096, 100, 90, 3, *status[5:]]))
    with closing(OS_FILES.make_file(str(tmp_path / "a"))) as file:
        assert OS_FILES.free_bytes(file.fileno()) == OS_FILES.free_bytes(str(tmp_path)) == 3 * 4096


def test_a_removed_tree_is_gone_and_a_missing_one_is_an_error(tmp_path: Path) -> None:
    for files in (OS_FILES, WatchedFiles()):
        (tmp_path / "a" / "b").mkdir(parents=True)
        (tmp_path / "a" / "b" / "c").touch()
        files.remove_tree(str(tmp_path / "a"))
        assert list(tmp_path.iterdir()) == []
        with pytest.raises(FileNotFoundError):
            files.remove_tree(str(tmp_path / "a"))
