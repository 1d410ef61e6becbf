"""The promise: a manager that ran starts again from its directory alone, and never needs the file that helps with that.

A missing, damaged or old file, or one of another log, must not prevent the start of a manager.
"""

from __future__ import annotations

import errno
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.snapshot_support import small_state, snapshot_of
from tests.unit.test_restoring import MEMBERS, opened, survivor
from tests.watched_files import WatchedFiles
from warren_raft.config import Config
from warren_raft.data_dir.description import describe
from warren_raft.data_dir.remembered import (
    FILE_NAME,
    Memory,
    Remembered,
    kept_for,
    read,
    settings_of,
    write,
)
from warren_raft.disk import privacy
from warren_raft.recovery.restore import restore

KEPT = Remembered(
    node_id="m1",
    incarnation="i1",
    listen="127.0.0.1:8001",
    members={**MEMBERS, "m1": "127.0.0.1:8001"},
    said={"m2": "127.0.0.1:8002"},
)


def config(directory: Path) -> Config:
    return Config(node_id="m1", data_dir=directory, listen=KEPT.listen, members=KEPT.members)


def test_the_file_is_read_back_and_no_other_user_can_read_it(tmp_path: Path) -> None:
    assert read(tmp_path) is None
    write(tmp_path, KEPT)
    assert read(tmp_path) == KEPT
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("{", ""),
        ('"format": 1', '"format": 2'),
        ('"format": 1', '"formal": 1'),
        ("127.0.0.1:8002", "0.0.0.0:8002"),
        ("127.0.0.1:8002", "nowhere"),
        ('"i1"', "7"),
        ('"node_id": "m1"', '"node_id": "m/1"'),
        ('"said": {', '"said": [], "more": {'),
        ("{", "not JSON"),
        ('"said": {', '"deep": ' + "[" * 20_000 + "]" * 20_000 + ', "said": {'),
    ],
)
def test_a_file_that_is_not_sound_is_ignored_with_a_line_in_the_log(
    tmp_path: Path, old: str, new: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, KEPT)
    path = tmp_path / FILE_NAME
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    assert read(tmp_path) is None
    assert f"{path}: it is damaged (" in caplog.text
    assert "Expecting" not in caplog.text  # (pins a bug: the JSON module's own words)
    assert Memory(config(tmp_path), "i1").said == {}


def test_a_file_of_another_log_is_not_this_manager_s(tmp_path: Path) -> None:
    """The directory was restored since: the addresses in the old cluster are of no use in the new one."""
    write(tmp_path, KEPT)
    assert Memory(config(tmp_path), "i1").said == KEPT.said
    assert Memory(config(tmp_path), "i2").said == {}
    assert (kept_for(tmp_path, "i1"), kept_for(tmp_path, "i2")) == (KEPT, None)


def test_it_is_written_when_something_is_new_and_only_then(tmp_path: Path) -> None:
    steps: list[str] = []
    files = WatchedFiles(watcher=lambda operation, _path: steps.append(operation))
    memory = Memory(config(tmp_path), "i1", files=files)
    for said in ({}, {}, KEPT.said, KEPT.said):
        memory.keep(said)
    assert steps == 2 * ["open", "write", "sync", "rename", "sync_directory"]
    assert read(tmp_path) == KEPT
    Memory(config(tmp_path), "i1", files=files).keep(KEPT.said)
    assert steps.count("rename") == 2
    Memory(config(tmp_path), "i2").keep({})
    assert read(tmp_path) == replace(KEPT, incarnation="i2", said={})


def test_a_disk_without_room_is_logged_once_and_written_to_when_there_is_some(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = WatchedFiles()
    files.refuse("write", errno.ENOSPC)
    memory = Memory(config(tmp_path), "i1", files=files)
    with caplog.at_level(logging.WARNING):
        memory.keep({})
        memory.keep({})
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith("file not written node=m1 path=manager.json: [Errno 28] No space left on device")
    assert list(tmp_path.iterdir()) == []
    files.permit()
    memory.keep({})
    assert read(tmp_path) is not None


def test_a_directory_that_took_the_place_of_ours_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    memory = Memory(config(tmp_path / "data"), "i1")
    memory.keep({})
    os.rename(tmp_path / "data", tmp_path / "moved")
    (tmp_path / "data").mkdir()
    memory.keep(KEPT.said)
    assert list((tmp_path / "data").iterdir()) == []


# Starting from the directory alone ------------------------------------------------------------------------------------


def test_a_manager_is_started_as_it_was_last(tmp_path: Path) -> None:
    survivor(tmp_path / "m1")
    write(tmp_path / "m1", KEPT)
    assert settings_of(tmp_path / "m1") == {"node_id": "m1", "listen": KEPT.listen, "members": KEPT.members}


def test_without_the_file_log_and_state_say_it(tmp_path: Path) -> None:
    """Like a directory that an earlier release made, or a recovered one."""
    survivor(tmp_path / "m1")
    expected: dict[str, Any] = {"node_id": "m1", "listen": MEMBERS["m1"], "members": MEMBERS}
    assert settings_of(tmp_path / "m1") == expected
    write(tmp_path / "m1", replace(KEPT, incarnation="of the log before"))
    assert settings_of(tmp_path / "m1") == expected


def test_a_restored_directory_knows_whom_it_was_restored_with(tmp_path: Path) -> None:
    with small_state(tmp_path / "old") as database:
        snapshot_of(database, tmp_path / "s.mdb")
    survivor(tmp_path / "m1")
    write(tmp_path / "m1", KEPT)
    options: dict[str, Any] = {"move_aside": True, "allow_rollback": True, "cluster_id": "cluster-1"}
    moved = {**MEMBERS, "m1": "127.0.0.1:9001"}
    restore(tmp_path / "s.mdb", tmp_path / "m1", node_id="m1", members=moved, **options)
    assert settings_of(tmp_path / "m1") == {"node_id": "m1", "listen": "127.0.0.1:9001", "members": moved}


def test_a_blank_directory_of_which_nothing_was_kept_knows_its_id(tmp_path: Path) -> None:
    opened(tmp_path / "m1").close(failed=False)
    assert settings_of(tmp_path / "m1") == {"node_id": "m1"}
    assert describe(tmp_path / "m1").members == ()


def test_a_directory_without_a_manager_has_no_settings(tmp_path: Path) -> None:
    assert settings_of(tmp_path) == settings_of(tmp_path / "nowhere") == {}
    write(tmp_path, KEPT)
    assert settings_of(tmp_path) == {}
    assert privacy.strangers(tmp_path) == []
