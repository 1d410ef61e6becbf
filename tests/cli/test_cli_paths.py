"""The promise: a wrong name of a file or directory is named with the reason and the next step, in one line.

(Pins bugs: "Not a directory" for a file in a directory, "No such file or directory" for a missing directory of the
output, "exists already: remove it first" for a directory.)
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from cli_support import Command

import warren_raft as wr
from warren_raft.certificates.ca import Authority
from warren_raft.errors import RefusedForSafety
from warren_raft_cli.os_errors import sentence

M1 = {"m1": "127.0.0.1:1"}


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        (
            "export no/x --data-dir {manager}",
            1,
            "there is no directory {here}/no: correct the name, or make the",
        ),
        ("export dir --data-dir {manager}", 2, "dir is a directory: name a file"),
        ("export file/x --data-dir {manager}", 1, "file/x: file is a file, not a directory"),
        ("snapshot save no/x --data-dir {manager}", 1, "there is no directory {here}/no: correct the name, or make"),
        ("snapshot save dir --data-dir {manager}", 4, "{here}/dir is a directory: name a file"),
        ("snapshot verify empty", 3, "empty: is empty: take another copy of the snapshot"),
        ("snapshot inspect empty", 3, "empty: is empty: take another copy of the snapshot"),
        (
            "snapshot verify file",
            3,
            "file: is not a snapshot, or its end is missing: compare its size with the original",
        ),
        ("snapshot verify no", 1, "there is no file no"),
        ("snapshot verify no/x", 1, "there is no directory no: correct the name"),
        ("snapshot inspect dir", 1, "dir is a directory: name a file"),
        ("describe no", 4, "there is no directory {here}/no: name the data directory of a stopped manager"),
        ("recover --yes --data-dir no", 4, "there is no directory {here}/no: name the data directory of a stopped"),
        ("recover --dry-run --data-dir no", 4, "there is no directory {here}/no: name the data directory of a stopped"),
        ("put node -f no --data-dir {manager}", 2, "'--file': there is no file no (see"),
        ("put node -f dir --data-dir {manager}", 2, "'--file': dir is a directory: name a file (see"),
        ("import no --data-dir {manager}", 2, "'FILE': there is no file no (see"),
        (
            "cert issue m1=127.0.0.1:1 --ca no",
            4,
            "there is no directory {here}/no: make a CA in it with `warren-raft cert",
        ),
        ("cert issue m1=127.0.0.1:1 --ca file", 4, "{here}/file is a file: name the directory of a CA"),
        ("cert issue m1=127.0.0.1:1 --ca dir", 4, "{here}/dir holds no CA (no authority.json): name the directory of"),
        ("cert issue m1=127.0.0.1:1 --ca ca -o dir", 4, "dir is a directory: name a join file in it, or another file"),
        ("cert issue m1=127.0.0.1:1 --ca ca -o no/x", 1, "there is no directory {here}/no: correct"),
        ("cert renew --ca file --data-dir {manager}", 4, "{here}/file is a file: name the directory of a CA"),
        ("cert init {manager}", 4, "{manager} is not empty (it has "),
        ("cert renew damaged.join --data-dir {manager}", 1, "warren-raft: damaged.join holds a damaged certificate\n"),
        ("cert show file", 1, "warren-raft: file holds no certificate in PEM"),
        ("serve --join dir --data-dir m1", 1, "dir is a directory: name a file"),
    ],
)
def test_a_wrong_name_is_named_with_the_reason(
    warren: Command, manager: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, code: int, says: str
) -> None:
    """(`cert init` of a running manager's directory waited for ever for its lock.)"""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dir").mkdir()
    (tmp_path / "empty").touch()
    (tmp_path / "file").write_text("precious")
    ca = Authority.create(tmp_path / "ca")
    ca.issue({"m1": "127.0.0.1:1"})[0].write(tmp_path / "damaged.join")
    damaged = (tmp_path / "damaged.join").read_text().replace("CERTIFICATE-----\\nMII", "CERTIFICATE-----\\nMMM")
    (tmp_path / "damaged.join").write_text(damaged)
    ran = warren(*command.format(manager=manager).split())
    assert (ran.code, says.format(here=tmp_path, manager=manager) in ran.err) == (code, True), ran.err
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_file_in_the_place_of_a_data_directory_is_refused_by_name(tmp_path: Path, name: str) -> None:
    """(Pins a bug: NotADirectoryError, which is no WarrenError.)"""
    (tmp_path / "file").touch()
    directory = tmp_path / name
    config = wr.Config(node_id="m1", data_dir=directory, listen=M1["m1"], members=M1)
    for opens in (
        lambda: wr.LocalStore(directory),
        lambda: wr.ReadOnlyStore(directory),
        lambda: wr.ReplicatedStore(config),
        lambda: wr.describe(directory),
        lambda: wr.recover(directory),
    ):
        with pytest.raises(RefusedForSafety, match=f"^{tmp_path / 'file'} is a file, not a directory: name a data dir"):
            opens()


def test_a_file_that_this_user_may_not_open_is_described(tmp_path: Path) -> None:
    """(Pins a bug: "Permission denied" alone, for a file of mode 000.)"""
    closed = tmp_path / "closed"
    closed.touch(mode=0)
    closed.chmod(0)
    said = sentence(OSError(errno.EACCES, os.strerror(errno.EACCES), str(closed)))
    user = said.rpartition("this is ")[2].partition(";")[0]
    for path, shown in ((closed, f"{closed} has mode 0000"), (tmp_path / "no" / "x", f"{tmp_path} has mode 0700")):
        said = sentence(OSError(errno.EACCES, os.strerror(errno.EACCES), str(path)))
        rights = f"{shown} and belongs to {user}, and this is {user}"
        assert said == f"{path}: Permission denied: {rights}; change the mode, or run this as the owner"


def test_a_snapshot_that_was_only_inspected_is_called_not_verified(
    warren: Command, manager: Path, tmp_path: Path
) -> None:
    """(Pins a bug: the description of a damaged file looked like that of a sound one.)"""
    saved = tmp_path / "saved"
    assert warren("snapshot", "save", saved, "--data-dir", manager).code == 0
    data = bytearray(saved.read_bytes())
    data[5000] ^= 1
    saved.write_bytes(data)
    says = f"verified    no, only the last page was read; type warren-raft snapshot verify {saved}\n"
    assert warren("snapshot", "inspect", saved).text.endswith(says)
