"""The promise: a power cut at any moment leaves each part of a data directory as it was, or as it is to become.

Each test cuts the power before every change that its module makes (tests/page_cache.py), and once after the last. Bytes
and names that were not synced are lost, all of them or some. Then the invariant in the module's docstring is checked.
Files and LMDB are real. Not here: the log (test_log_sweep.py); a whole manager (test_killed_installs.py).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from random import Random

import pytest

from tests.fsm_harness import Contents, contents
from tests.killed import Killed
from tests.page_cache import PageCache
from tests.snapshot_support import NOON, add_node, small_state, snapshot_of
from tests.unit.test_remembered import KEPT
from warren_raft.certificates import files as tls_files
from warren_raft.certificates.join_files import KeyAndCertificates
from warren_raft.data_dir import remembered
from warren_raft.disk.durable import make_directory, replace_file
from warren_raft.disk.files import Files
from warren_raft.fsm.machine import StateMachine
from warren_raft.snapshots import saving, staging
from warren_raft.snapshots.backups import Backups, Position
from warren_raft.snapshots.directory import SnapshotDirectory
from warren_raft.snapshots.file import extract, read_manifest
from warren_raft.snapshots.verification import prove_state, verify
from warren_raft.store.database import Database
from warren_raft.store.generations import StateDirectory, StateUntrusted


@pytest.fixture(autouse=True)
def no_syncs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache knows what was synced. Hundreds of runs would wait for the real disk."""
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, lambda _descriptor: None)


LOSSES = [(pages, names) for pages in (0.0, 0.5) for names in (0, 1, 2, 99)]
"""The share of the unsynced pages that survive, and the number of unsynced changes of names."""


def every_cut(root: Path, make: Callable[[Path], object], step: Callable[[Files], object]) -> Iterator[bool]:
    """`root`, made by `make`, after `step` and a power cut at each of its changes. Whether `step` had returned."""
    for operations in count():
        for pages, names in LOSSES:
            make(root)
            cache = PageCache(root, dies_at=operations)
            with cache.watching():
                try:
                    step(cache)
                except Killed:
                    assert cache.died
            cache.cut(Random(operations), keep_pages=pages, name_changes=names)
            yield not cache.died
            shutil.rmtree(root)
        if not cache.died:
            assert operations > 3, "it changes nothing"
            return


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with small_state(tmp_path / "data", containers=5) as opened:
        yield opened


def directory_with(name: str) -> Callable[[Path], None]:
    """A directory with one file of somebody else."""

    def make(root: Path) -> None:
        root.mkdir(mode=0o700)
        (root / name).write_bytes(b"precious")

    return make


# Files ------------------------------------------------------------------------------------------------------------


def test_a_replaced_file_has_the_old_content_or_the_new(tmp_path: Path) -> None:
    path = tmp_path / "root" / "file"
    for is_done in every_cut(
        path.parent, directory_with("file"), lambda files: replace_file(str(path), b"new", files=files)
    ):
        assert path.read_bytes() in ([b"new"] if is_done else [b"precious", b"new"])


def test_a_directory_that_was_made_is_there_with_those_above_it(tmp_path: Path) -> None:
    path = tmp_path / "root" / "a" / "b" / "c"
    for is_done in every_cut(
        tmp_path / "root", directory_with("file"), lambda files: make_directory(str(path), files=files)
    ):
        assert path.is_dir() or not is_done


def test_the_note_about_the_last_start_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    later = replace(KEPT, incarnation="i2")

    def make(root: Path) -> None:
        root.mkdir()
        remembered.write(root, KEPT)

    root = tmp_path / "root"
    for is_done in every_cut(root, make, lambda files: remembered.write(root, later, files=files)):
        assert remembered.read(root) in ([later] if is_done else [KEPT, later])


OLD_KEY, NEW_KEY = (KeyAndCertificates(key=f"{age} key", certificate=age, ca=f"{age} ca") for age in ("old", "new"))


def with_old_key(root: Path) -> None:
    root.mkdir(mode=0o700)
    tls_files.install(root, OLD_KEY, check=lambda _directory: None)


def take_new_key(root: Path, files: Files) -> None:
    tls_files.install(root, NEW_KEY, check=lambda _directory: None, disk=files)


def test_key_and_certificates_belong_together(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for is_done in every_cut(root, with_old_key, lambda files: take_new_key(root, files)):
        assert tls_files.is_there(root)
        tls_files.finish(root)
        assert tls_files.contents(root) in ([NEW_KEY] if is_done else [OLD_KEY, NEW_KEY])
        assert sorted(os.listdir(root)) == ["tls", "tls.lock"]


# Snapshots --------------------------------------------------------------------------------------------------------


def test_a_saved_snapshot_is_whole_or_absent(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "verify_in_child", lambda part, **_options: verify(part))
    root = tmp_path / "root"

    def save(files: Files) -> None:
        saving.save(database, root / "s.mdb", created_at=NOON, node_id="n1", quorum=True, files=files)

    for is_done in every_cut(root, directory_with("other.mdb"), save):
        assert (root / "other.mdb").read_bytes() == b"precious"
        if is_done or (root / "s.mdb").exists():
            assert verify(root / "s.mdb") == read_manifest(root / "s.mdb")


@pytest.mark.slow
def test_every_snapshot_in_the_directory_was_verified_and_is_on_disk(database: Database, tmp_path: Path) -> None:
    """One snapshot is there, a damaged one is set aside, one is taken, and one was received."""
    root = tmp_path / "root"
    before, present = tmp_path / "before.mdb", StateMachine(database).applied_index
    snapshot_of(database, before)
    add_node(database, "n-2")
    add_node(database, "n-3")
    received = tmp_path / "received.mdb"
    snapshot_of(database, received)

    def make(root: Path) -> None:
        directory = SnapshotDirectory(root)
        directory.create()
        shutil.copy(before, f"{directory.path}/{present:016d}-1.mdb")
        Path(directory.path, "0000000000000001-1.mdb").write_bytes(b"rubbish")

    def step(files: Files) -> None:
        directory = SnapshotDirectory(root, files=files)
        directory.set_aside(directory.scan()[1][0])
        with closing(files.open(directory.incoming, create=True)) as file:
            file.write(0, received.read_bytes())
        directory.adopt(directory.incoming)
        directory.take(database, created_at=NOON, node_id="n1", quorum=True, verify=verify)

    add_node(database, "n-4")
    for is_done in every_cut(root, make, step):
        directory = SnapshotDirectory(root)
        directory.create()
        found, damaged = directory.scan()
        assert all(verify(each.path) == each.manifest for each in found)
        assert all("0000000000000001-1" in each.path for each in damaged)
        indexes = [each.index for each in found]
        assert indexes[-1] == present
        assert not is_done or (indexes == [present + 3, present + 2, present] and not damaged)


def test_a_backup_goes_only_when_a_newer_one_is_on_disk(database: Database, tmp_path: Path) -> None:
    root = tmp_path / "root"
    first, now = tmp_path / "first.mdb", datetime(2026, 11, 22, 15, tzinfo=UTC)
    old = snapshot_of(database, first)
    add_node(database, "n-2")
    machine = StateMachine(database)

    def make(root: Path) -> None:
        root.mkdir()
        shutil.copy(first, root / f"warren-20200101T000000Z-{old.index:016d}.mdb")

    def step(files: Files) -> None:
        backups = Backups(
            root,
            every_seconds=1.0,
            keep=1,
            limit_seconds=60.0,
            leads=lambda: True,
            position=lambda: Position(machine.cluster_id, machine.revision, machine.digest.hex()),
            take=lambda path: snapshot_of(database, Path(path), files=files),
            now=lambda: now,
            files=files,
        )
        backups.look()
        assert backups.alarm is None

    for is_done in every_cut(root, make, step):
        whole = [verify(path).index for path in root.glob("*.mdb")]
        assert whole, "no backup is left"
        assert not is_done or max(whole) == machine.applied_index


# The content of a directory ---------------------------------------------------------------------------------------


def content(root: Path, age: str) -> dict[str, bytes]:
    return {str(root / name / "file"): f"{age} {name}".encode() for name in staging.OURS}


def fill(root: Path, age: str, **more: Files) -> None:
    for path, data in content(root, age).items():
        make_directory(os.path.dirname(path), **more)
        replace_file(path, data, **more)


def commit(root: Path, files: Files) -> None:
    """As a restore does it."""
    part = staging.begin(root, files=files)
    fill(Path(part), "new", files=files)
    staging.commit(root, NOON, files=files)


def commit_and_finish(root: Path, files: Files) -> None:
    commit(root, files)
    staging.finish(root, files=files)


def require_old_or_new(root: Path, *, is_done: bool) -> None:
    found, asides = {path: data for path, data in tree(root).items() if "aside" not in path}, staging.asides(root)
    old, new = ({os.path.relpath(p, root): data for p, data in content(root, age).items()} for age in ("old", "new"))
    if not asides:
        assert found == old
        assert not is_done
    else:
        assert found == new
        assert [tree(Path(aside)) for aside in asides] == [old]


@pytest.mark.parametrize("step", [commit, pytest.param(commit_and_finish, marks=pytest.mark.slow)])
def test_a_directory_has_all_of_the_old_content_or_all_of_the_new(
    tmp_path: Path, step: Callable[[Path, Files], None]
) -> None:
    root = tmp_path / "root"
    for is_done in every_cut(root, lambda root: fill(root, "old"), lambda files: step(root, files)):
        if not staging.is_committed(root) and not staging.asides(root):
            assert {path: data for path, data in tree(root).items() if "restore." not in path} == {
                os.path.relpath(path, root): data for path, data in content(root, "old").items()
            }, "not committed, and something has changed"
        staging.finish(root)
        staging.discard(root)
        require_old_or_new(root, is_done=is_done)


@pytest.mark.slow
def test_the_next_process_may_lose_the_power_too(tmp_path: Path) -> None:
    """Committed, and the power is cut at each change of the process that completes it; the one after that ends it."""
    root = tmp_path / "root"

    def committed(root: Path) -> None:
        fill(root, "old")
        fill(Path(staging.begin(root)), "new")
        staging.commit(root, NOON)

    def step(files: Files) -> None:
        staging.finish(root, files=files)
        staging.discard(root, files=files)

    for _ in every_cut(root, committed, step):
        staging.finish(root)
        staging.discard(root)
        require_old_or_new(root, is_done=True)


# The state --------------------------------------------------------------------------------------------------------


def opened(root: Path, boot: int, files: Files | None = None) -> StateDirectory:
    options = {} if files is None else {"files": files}
    return StateDirectory(root, boot_id=lambda: f"boot {boot}", **options)


@pytest.fixture
def states(database: Database, tmp_path: Path) -> tuple[Contents, Contents, Path]:
    """The contents before and after, and a snapshot of the state after."""
    before = contents(database)
    add_node(database, "n-new")
    snapshot_of(database, tmp_path / "newer.mdb")
    return before, contents(database), tmp_path / "newer.mdb"


@pytest.mark.slow
def test_a_switch_of_generations_leads_to_one_whole_state_or_to_none_that_is_trusted(
    states: tuple[Contents, Contents, Path], tmp_path: Path
) -> None:
    """A manager, which commits without a sync, replaces its state by a snapshot. In the next boot a state is opened
    only if it is whole. If none is trusted, the manager rebuilds it; the pointer is read all the same."""
    before, after, snapshot = states
    root, outcomes = tmp_path / "root", set()

    def make(root: Path) -> None:
        with small_state(root, containers=5):
            pass

    def step(files: Files) -> None:
        state = opened(root, 1, files)
        old = Database.open(state, sync=False)
        generation = state.next_generation()
        extract(snapshot, state.file_of(generation), files=files)
        new = Database.open_generation(state, generation, sync=False)
        try:
            new.publish()
            old.abandon()
            state.remove(old.generation)
            new.close_sealed()
        finally:
            old.abandon()
            new.abandon()

    for is_done in every_cut(root, make, step):
        state = opened(root, 2)
        assert state.current() is not None
        try:
            with Database.open(state, sync=False, prove=prove_state) as found:
                outcome = "before" if contents(found) == before else "after"
                assert contents(found) in (before, after)
        except StateUntrusted:
            outcome = "untrusted"
        assert outcome == "after" or not is_done
        outcomes.add(outcome)
    assert outcomes == {"before", "untrusted", "after"}


@pytest.mark.slow
def test_a_store_that_syncs_its_commits_goes_on_in_a_new_generation_with_all_of_them(
    states: tuple[Contents, Contents, Path], tmp_path: Path
) -> None:
    root = tmp_path / "root"

    def make(root: Path) -> None:
        with small_state(root, containers=5):
            pass

    def step(files: Files) -> None:
        with Database.open(opened(root, 1, files), sync=True) as old, old.renewed():
            old.close()
            old.remove()

    for _ in every_cut(root, make, step):
        with Database.open(opened(root, 2), sync=True, prove=prove_state) as found:
            assert contents(found) == states[0]
