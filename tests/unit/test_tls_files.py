"""The promise: a manager's key, its certificate and the CA are exchanged together, whenever the process is killed.

A key beside the certificate of another one keeps a manager from starting.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.killed import Killed, killed_after
from warren_raft.certificates import files as tls_files
from warren_raft.certificates.join_files import KeyAndCertificates
from warren_raft.disk.durable import make_directory
from warren_raft.errors import InUse, RefusedForSafety
from warren_raft.store.ownership import _make_data_directory

OLD = KeyAndCertificates(key="old key", certificate="old certificate", ca="old CA")
NEW = KeyAndCertificates(key="new key", certificate="new certificate", ca="new CA")


def accept(_directory: str) -> None:
    """Every certificate is of use."""


def found(data_dir: Path) -> KeyAndCertificates | None:
    directory = data_dir / "tls"
    if not directory.exists():
        return None
    key, certificate, ca = ((directory / name).read_text() for name in ("key.pem", "cert.pem", "ca.pem"))
    return KeyAndCertificates(key=key, certificate=certificate, ca=ca)


@pytest.mark.parametrize("before", [None, OLD])
def test_a_kill_at_any_step_leaves_the_old_files_or_the_new_ones(
    tmp_path: Path, before: KeyAndCertificates | None
) -> None:
    outcomes = []
    for operations in range(100):
        data_dir = tmp_path / str(operations)
        data_dir.mkdir()
        if before is not None:
            tls_files.install(data_dir, before, check=accept)
        with killed_after(operations) as countdown, contextlib.suppress(Killed):
            tls_files.install(data_dir, NEW, check=accept)
        tls_files.finish(data_dir)
        assert found(data_dir) in (before, NEW)
        assert set(os.listdir(data_dir)) <= {"tls", "tls.lock"}
        outcomes.append(found(data_dir))
        if not countdown.died:
            break
    assert outcomes[0] == before
    assert outcomes[-1] == NEW
    assert outcomes == sorted(outcomes, key=lambda files: files == NEW)  # and from one step on always the new ones


def test_files_that_are_of_no_use_change_nothing(tmp_path: Path) -> None:
    tls_files.install(tmp_path, OLD, check=accept)
    before = tls_files.fingerprint(tmp_path)

    def refuse(directory: str) -> None:
        assert (Path(directory) / "cert.pem").read_text() == "new certificate"
        raise RefusedForSafety("not ours")

    with pytest.raises(RefusedForSafety, match="not ours"):
        tls_files.install(tmp_path, NEW, check=refuse)
    assert found(tmp_path) == OLD
    assert tls_files.fingerprint(tmp_path) == before
    assert set(os.listdir(tmp_path)) == {"tls", "tls.lock"}


def test_the_files_are_private_and_an_exchange_is_noticed(tmp_path: Path) -> None:
    assert tls_files.fingerprint(tmp_path) is None
    tls_files.install(tmp_path, OLD, check=accept, local=True)
    assert (tmp_path / "tls").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "tls").iterdir()} == {0o600}
    assert tls_files.is_local(tmp_path)
    before = tls_files.fingerprint(tmp_path)
    tls_files.install(tmp_path, NEW, check=accept)
    assert tls_files.fingerprint(tmp_path) != before
    assert not tls_files.is_local(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_files_that_root_installs_belong_to_the_owner_of_the_data_directory(tmp_path: Path) -> None:
    os.chown(tmp_path, 1234, 5678)
    tls_files.install(tmp_path, OLD, check=accept)
    paths = [tmp_path / "tls", *(tmp_path / "tls").iterdir(), tmp_path / "tls.lock"]
    assert {(path.stat().st_uid, path.stat().st_gid) for path in paths} == {(1234, 5678)}


@pytest.mark.parametrize("make", [make_directory, _make_data_directory])
def test_two_managers_may_make_a_directory_and_the_one_above_it_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[str], None]
) -> None:
    """Three managers that start together all make their user's CA. (Pins a bug: one of them failed, "File exists".)"""
    mkdir = os.mkdir

    def others_are_first(path: str, *arguments: int) -> None:
        for directory in (tmp_path / "above", tmp_path / "above" / "below"):
            with contextlib.suppress(FileExistsError):
                mkdir(directory)
        mkdir(path, *arguments)

    def missing_at_first(path: str, *arguments: int) -> None:
        monkeypatch.setattr(os, "mkdir", others_are_first)
        mkdir(path, *arguments)

    monkeypatch.setattr(os, "mkdir", missing_at_first)
    make(str(tmp_path / "above" / "below"))
    assert (tmp_path / "above" / "below").is_dir()


@pytest.mark.parametrize("make", [make_directory, _make_data_directory])
def test_a_file_system_without_new_directories_is_an_error_that_names_the_path(make: Callable[[str], None]) -> None:
    """/proc answers that the new directory does not exist. (Pins a bug: the attempts never ended, RecursionError.)"""
    for path in ("/proc/none", "/proc/none/below"):
        with pytest.raises(FileNotFoundError, match="does not take new directories") as caught:
            make(path)
        assert caught.value.filename == "/proc/none"
    with pytest.raises(FileNotFoundError):
        make("")


def test_a_process_that_stopped_in_the_middle_of_an_exchange_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_files, "LOCK_SECONDS", 0.05)
    with (
        tls_files._exchanging(str(tmp_path)),
        pytest.raises(InUse, match=r"tls\.lock is locked by another process that exchanges"),
    ):
        tls_files.install(tmp_path, NEW, check=accept)
    tls_files.install(tmp_path, NEW, check=accept)
