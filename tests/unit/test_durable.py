"""The promise: the caller of a change of names knows after an error whether the change was made. (Pins a kind of fault:
the last step, the sync of the directory, failed when the change was made already.)"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.watched_files import WatchedFiles
from warren_raft.disk import outputs
from warren_raft.disk.durable import make_directory, rename, replace_file
from warren_raft.disk.outputs import whole_file

UNSYNCED = "its directory could not be synced (Input/output error): a power cut may undo this change"


@pytest.fixture
def files() -> WatchedFiles:
    """A disk on which no directory can be synced."""
    files = WatchedFiles()
    files.refuse("sync_directory", errno.EIO)
    return files


def said(error: OSError) -> tuple[int | None, str | None, str]:
    return error.errno, error.strerror, str(error.filename)


def test_output_that_may_not_be_on_disk_is_said_to_be_there(
    tmp_path: Path, files: WatchedFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(Pins a bug: the error was the same as if the old file were still there.)"""
    monkeypatch.setattr(outputs, "OS_FILES", files)
    for path in (tmp_path / "new", tmp_path / "replaced"):
        if path.name == "replaced":
            path.write_text("old")
        with pytest.raises(OSError, match="could not be synced") as caught, whole_file(path) as file:
            file.write(b"data")
        assert said(caught.value) == (errno.EIO, f"is written, but {UNSYNCED}", str(path))
        assert path.read_bytes() == b"data"
    assert sorted(os.listdir(tmp_path)) == ["new", "replaced"]


def test_a_replaced_file_that_may_not_be_on_disk_is_said_to_be_replaced(tmp_path: Path, files: WatchedFiles) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(OSError, match="could not be synced") as caught:
        replace_file(str(path), b"new", files=files)
    assert said(caught.value) == (errno.EIO, f"is written, but {UNSYNCED}", str(path))
    assert path.read_text() == "new"


def test_what_cannot_be_renamed_durably_gets_its_old_name_back(tmp_path: Path, files: WatchedFiles) -> None:
    (tmp_path / "old").touch()
    with pytest.raises(OSError, match=r"^\[Errno 5\] Input/output error") as caught:
        rename(str(tmp_path / "old"), str(tmp_path / "new"), files=files)
    assert "could not be synced" not in str(caught.value)
    assert os.listdir(tmp_path) == ["old"]


def test_what_cannot_get_its_old_name_back_is_said_to_have_the_new_one(
    tmp_path: Path, files: WatchedFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(Pins a bug: the error was that of the second renaming, and named the file as if nothing had changed.)"""
    (tmp_path / "old").touch()
    renamed = WatchedFiles.rename

    def once(files: WatchedFiles, old: str, new: str) -> None:
        renamed(files, old, new)
        files.refuse("rename", errno.EROFS)

    monkeypatch.setattr(WatchedFiles, "rename", once)
    with pytest.raises(OSError, match="could not be synced") as caught:
        rename(str(tmp_path / "old"), str(tmp_path / "new"), files=files)
    assert said(caught.value) == (errno.EIO, f"has its new name, but {UNSYNCED}", str(tmp_path / "new"))
    assert os.listdir(tmp_path) == ["new"]


def test_a_directory_that_may_not_be_on_disk_is_not_there_the_next_time(tmp_path: Path, files: WatchedFiles) -> None:
    """(Pins a bug: the next call found it, and returned without a sync.)"""
    path = tmp_path / "a" / "b"
    for _ in range(2):
        with pytest.raises(OSError, match="Input/output error"):
            make_directory(str(path), files=files)
        assert os.listdir(tmp_path) == []
    files.permit()
    make_directory(str(path), files=files)
    assert path.is_dir()


def test_a_directory_that_cannot_be_removed_again_is_said_to_be_there(tmp_path: Path, files: WatchedFiles) -> None:
    files.refuse("remove_directory", errno.ENOTEMPTY)
    with pytest.raises(OSError, match="could not be synced") as caught:
        make_directory(str(tmp_path / "a"), files=files)
    assert said(caught.value) == (errno.EIO, f"is made, but {UNSYNCED}", str(tmp_path / "a"))
