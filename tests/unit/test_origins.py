"""The promise: `events` says when a change was applied and by which session, or that this is not known; never a wrong
one. The file with it only helps: a manager goes on without it."""

from __future__ import annotations

import logging
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from warren_raft.data_dir.origins import FILE_NAME, SLOT_BYTES, SLOTS, KnownOrigins, Origin, Origins
from warren_raft.disk.files import OsFile
from warren_raft.fsm.entry import Made
from warren_raft.store.command import new_session, owner_among

NOW = datetime(2026, 11, 27, 15, 13, 6, 123_456, tzinfo=UTC)
MICROSECONDS = int(NOW.timestamp()) * 1_000_000 + NOW.microsecond
UNKNOWN = Origin(None, None)


def origins(directory: Path, *, old_index: int = 0, at: int = MICROSECONDS) -> Origins:
    return Origins(directory, node_id="m1", old_index=old_index, microseconds=lambda: at)


def test_a_revision_has_its_time_and_its_session(tmp_path: Path) -> None:
    kept = origins(tmp_path)
    kept.keep([Made(1, 5, 77), Made(2, 5, 0)])
    known = KnownOrigins(tmp_path)
    assert [known.of(revision) for revision in (1, 2, 3)] == [Origin(NOW, 77), Origin(NOW, None), UNKNOWN]
    kept.close()
    kept.keep([Made(3, 6, 77)])
    assert KnownOrigins(tmp_path).of(3) == UNKNOWN
    assert os.stat(tmp_path / FILE_NAME).st_mode & 0o777 == 0o600


def test_the_file_has_one_slot_for_each_revision_that_the_history_keeps(tmp_path: Path) -> None:
    kept = origins(tmp_path)
    kept.keep([Made(revision, 1, revision) for revision in range(SLOTS - 2, SLOTS + 3)])
    kept.keep([Made(SLOTS + 3, 2, 9)])
    known = KnownOrigins(tmp_path)
    assert [known.of(revision).session for revision in range(SLOTS - 2, SLOTS + 3)] == [*range(SLOTS - 2, SLOTS + 3)]
    assert known.of(3) == UNKNOWN  # its slot has a newer revision
    assert (tmp_path / FILE_NAME).stat().st_size == SLOTS * SLOT_BYTES
    kept.keep([Made(revision, 3, 1) for revision in range(2 * SLOTS, 3 * SLOTS + 1)])
    assert KnownOrigins(tmp_path).of(3 * SLOTS) == Origin(NOW, 1)
    assert (tmp_path / FILE_NAME).stat().st_size == SLOTS * SLOT_BYTES


def test_a_change_that_is_applied_again_keeps_its_first_time(tmp_path: Path) -> None:
    first = origins(tmp_path)
    first.keep([Made(1, 5, 77)])
    first.close()
    later = origins(tmp_path, old_index=7, at=MICROSECONDS + 10**9)
    later.keep([Made(1, 5, 77), Made(2, 7, 78)])
    known = KnownOrigins(tmp_path)
    assert known.of(1) == Origin(NOW, 77)
    assert known.of(2) == Origin(None, 78)  # it was made before this start; nobody knows when


def test_after_a_wrong_state_nothing_of_it_is_believed(tmp_path: Path) -> None:
    kept = origins(tmp_path)
    kept.keep([Made(1, 5, 77), Made(SLOTS + 2, 6, 78)])
    kept.forget(6)
    kept.keep([Made(2, 6, 79), Made(3, 7, 80)])
    known = KnownOrigins(tmp_path)
    found = [known.of(revision) for revision in (1, SLOTS + 2, 2, 3)]
    assert found == [UNKNOWN, UNKNOWN, Origin(None, 79), Origin(NOW, 80)]
    kept.close()
    kept.forget(8)


def test_a_damaged_slot_is_not_believed(tmp_path: Path) -> None:
    origins(tmp_path).keep([Made(1, 5, 77)])
    path = tmp_path / FILE_NAME
    whole = path.read_bytes()
    for place in range(SLOT_BYTES, 2 * SLOT_BYTES):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert KnownOrigins(tmp_path).of(1) == UNKNOWN
    path.write_bytes(whole[:-1])
    assert KnownOrigins(tmp_path).of(1) == UNKNOWN
    path.write_bytes(bytes(len(whole)))
    assert [KnownOrigins(tmp_path).of(revision) for revision in (0, 1)] == [UNKNOWN, UNKNOWN]
    path.unlink()
    assert KnownOrigins(tmp_path).of(1) == UNKNOWN


def test_a_replay_of_many_revisions_keeps_the_newer_ones(tmp_path: Path) -> None:
    first = origins(tmp_path)
    first.keep([Made(SLOTS + 1, 7, 77)])
    first.close()
    later = origins(tmp_path, old_index=7, at=MICROSECONDS + 10**9)
    later.keep([Made(1, 5, 70)])  # its slot is that of SLOTS + 1
    later.keep([Made(SLOTS + 1, 7, 77)])
    assert KnownOrigins(tmp_path).of(SLOTS + 1) == Origin(NOW, 77)


def test_without_space_it_drops_these_changes_only_and_says_so_once_for_each_spell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kept = origins(tmp_path)

    def full(_self: OsFile, _offset: int, _data: bytes) -> None:
        raise OSError(28, "No space left on device")

    for spell in (1, 2):
        with caplog.at_level(logging.WARNING), monkeypatch.context() as patch:
            patch.setattr(OsFile, "write", full)
            kept.keep([Made(10 * spell + 1, 5, 77)])
            kept.keep([Made(10 * spell + 2, 6, 77)])
        kept.keep([Made(10 * spell + 3, 7, 77)])
        known = KnownOrigins(tmp_path)
        assert [known.of(10 * spell + n) for n in (1, 2, 3)] == [UNKNOWN, UNKNOWN, Origin(NOW, 77)]
        assert len(caplog.records) == spell
    assert all(record.message.startswith("file not written") for record in caplog.records)
    assert all(FILE_NAME in record.message for record in caplog.records)


def test_a_file_that_cannot_be_opened_is_no_reason_to_stop(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).mkdir()
    kept = origins(tmp_path)
    kept.keep([Made(1, 5, 77)])
    kept.close()
    assert KnownOrigins(tmp_path).of(1) == UNKNOWN


def test_a_pipe_in_place_of_the_file_stops_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / FILE_NAME)
    assert KnownOrigins(tmp_path).of(1) == UNKNOWN
    kept = origins(tmp_path)
    kept.keep([Made(1, 5, 77)])
    assert KnownOrigins(tmp_path).of(1) == UNKNOWN
    kept.close()


def test_a_session_is_known_by_its_manager() -> None:
    session = new_session("m2", lambda bits: 2**bits - 1)
    assert owner_among(session, ["m1", "m2", "m3"]) == "m2"
    assert owner_among(session, ["m1", "m3"]) is None
