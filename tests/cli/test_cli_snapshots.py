"""The promise: `snapshot save` makes one verified file or no file; `inspect` and `verify` describe a file; and each
wrong file gets one line and its exit code.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from cli_support import Command, StartManager, free_addresses

from tests.cluster.harness import wait_until
from tests.fsm_harness import apply, put
from tests.fsm_harness import command as encoded
from tests.hostile_cbor import hash_bomb
from tests.snapshot_support import change, small_state, snapshot_of
from tests.watched_files import WatchedFiles
from warren_raft.admin import client as client_module
from warren_raft.disk.files import OsFile
from warren_raft.fsm.machine import StateMachine
from warren_raft.model.entities import Service
from warren_raft.snapshots.file import TRAILER_BYTES
from warren_raft.store.tables import NODE
from warren_raft.store.transactions import MEMBERSHIP, META
from warren_raft_cli import snapshots as snapshots_module

NOBODY = 65534
KEYS = ["cluster_id", "index", "term", "revision", "digest", "counts", "size_bytes", "created_at"]  # the contract's


@pytest.fixture
def saved(warren: Command, manager: Path, tmp_path: Path) -> Path:
    """A snapshot of the running manager."""
    told = warren("snapshot", "save", tmp_path / "s.mdb", "--data-dir", manager).text
    size = (tmp_path / "s.mdb").stat().st_size
    assert told.endswith(f" to {tmp_path / 's.mdb'} ({size / 2**10:.1f} KiB)\n" if size < 2**20 else " MiB)\n")
    return tmp_path / "s.mdb"


def test_what_is_saved_is_what_the_manager_has(warren: Command, manager: Path, tmp_path: Path) -> None:
    path = tmp_path / "s.mdb"
    told = warren("snapshot", "save", path, "--data-dir", manager, "-o", "json").json
    status = warren("status", "--data-dir", manager, "-o", "json").json
    names = ("cluster_id", "revision", "digest", "counts", "node_id")
    assert {name: told[name] for name in names} == {name: status[name] for name in names}
    assert told["index"] == status["applied_index"]
    assert told["quorum"] is True
    assert os.listdir(tmp_path) == ["s.mdb"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [name for name in os.listdir(manager / "snapshots") if "sending" in name] == []
    assert warren("snapshot", "inspect", path, "-o", "json").json == told
    assert warren("snapshot", "verify", path, "-o", "json").json == told


def test_the_contracts_names_come_first(warren: Command, saved: Path) -> None:
    told = warren("snapshot", "inspect", saved, "-o", "json").json
    assert list(told)[: len(KEYS)] == KEYS
    assert told["created_at"].endswith("Z")
    assert told["size_bytes"] == saved.stat().st_size - 4096


def test_tables_are_for_people(warren: Command, saved: Path) -> None:
    lines = dict(line.split(maxsplit=1) for line in warren("snapshot", "inspect", saved).text.splitlines())
    assert set(KEYS) - {"size_bytes"} <= set(lines)
    assert lines["quorum"] == "yes"
    assert lines["size"].endswith("iB")
    wide = dict(line.split(maxsplit=1) for line in warren("snapshot", "inspect", saved, "-o", "wide").text.splitlines())
    assert int(wide["size_bytes"]) + 4096 == saved.stat().st_size
    assert "is sound" in warren("snapshot", "verify", saved).text


def test_without_a_quorum_it_is_saved_and_labelled(
    warren: Command, start_manager: StartManager, tmp_path: Path
) -> None:
    members = dict(zip(("m1", "m2", "m3"), free_addresses(3), strict=True))
    managers = {id_: start_manager(tmp_path / id_, id_, members) for id_ in members}
    for process in managers.values():
        process.wait_ready()
    for id_ in ("m2", "m3"):
        managers[id_].end()

    def has_lost_it() -> bool:
        return not warren("status", "--data-dir", tmp_path / "m1", "-o", "json").json["has_quorum"]

    wait_until(has_lost_it, "m1 to notice that it is alone")
    ran = warren("snapshot", "save", tmp_path / "s.mdb", "--data-dir", tmp_path / "m1", "-o", "json")
    assert ran.json["quorum"] is False
    assert ran.err == (
        f"warren-raft: m1 had no quorum: the cluster may have stored more than {tmp_path / 's.mdb'} holds\n"
    )
    assert warren("snapshot", "inspect", tmp_path / "s.mdb", "-o", "json").json["quorum"] is False


def test_who_was_never_part_of_a_cluster_has_nothing_to_save(
    warren: Command, start_manager: StartManager, tmp_path: Path
) -> None:
    """(Pins a bug: an empty state without a cluster was saved, and an operator would have kept it as a backup.)"""
    a, b, c = free_addresses(3)
    start_manager(tmp_path / "m1", "m1", {"m1": a, "m2": b, "m3": c}).wait_socket()
    ran = warren("snapshot", "save", tmp_path / "s.mdb", "--data-dir", tmp_path / "m1")
    assert (ran.code, ran.err) == (
        4,
        "warren-raft: m1 has not been part of a cluster yet, so there is nothing to save: use the data directory of a "
        "manager that is a member\n",
    )
    assert nothing_left(tmp_path)


# --------------------------------------------------------------------------------- files that are not snapshots


def arguments_of(command: str, path: Path, new: Path) -> Sequence[str | Path]:
    """Of a command that reads a snapshot; `new` is the place of its result."""
    more: dict[str, Sequence[str | Path]] = {
        "restore": ("--data-dir", new, "--node-id", "m1", "--member", "m1=127.0.0.1:1"),
        "list": ("nodes",),
        "get": ("ca", "--show"),
        "export": ("-o", new),
    }
    return ("snapshot", command, path, *more.get(command, ()))


@pytest.fixture(params=["inspect", "verify", "restore", "list", "get", "export", "drill"])
def reading(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Path], Sequence[str | Path]]:
    """The arguments of a command that reads a snapshot."""
    return lambda path: arguments_of(request.param, path, tmp_path / "new")


def test_a_missing_file_is_exit_code_1(
    warren: Command, tmp_path: Path, reading: Callable[[Path], Sequence[str | Path]]
) -> None:
    ran = warren(*reading(tmp_path / "none"))
    assert (ran.code, ran.err) == (1, f"warren-raft: there is no file {tmp_path / 'none'}\n")


@pytest.mark.parametrize("what", ["empty", "text", "database", "cut", "cut inside", "longer", "pipe"])
def test_what_is_no_snapshot_is_exit_code_3(
    warren: Command, saved: Path, tmp_path: Path, reading: Callable[[Path], Sequence[str | Path]], what: str
) -> None:
    path, data = tmp_path / "wrong", saved.read_bytes()
    if what == "pipe":
        os.mkfifo(path)
    else:
        contents = {
            "empty": b"",
            "text": b"warren\n" * 2000,
            "database": data[:-4096],
            "cut": data[:-1],
            "cut inside": data[:5000],
            "longer": data + b"\n",
        }
        path.write_bytes(contents[what])
    ran = warren(*reading(path))
    assert ran.code == 3
    assert ran.err.startswith(f"warren-raft: {path}: ")
    assert not (tmp_path / "new").exists()


def test_a_snapshot_made_by_hand_is_exit_code_3(warren: Command, tmp_path: Path) -> None:
    """All its hashes are right, but an attacker made it, and no manager could start from it."""
    with small_state(tmp_path / "data") as database:
        snapshot_of(database, tmp_path / "sound.mdb")
        change(database, lambda transaction: transaction.store(META, MEMBERSHIP, hash_bomb()), new_digest=True)
        snapshot_of(database, tmp_path / "members.mdb")
    data = (tmp_path / "sound.mdb").read_bytes()
    page = data[-TRAILER_BYTES:-32].replace(b"2026-11-22T12:00:00.000000Z", b"0001-01-01T00:00:00.0+23:59")
    (tmp_path / "date.mdb").write_bytes(data[:-TRAILER_BYTES] + page + hashlib.sha256(page).digest())
    for command, name in (("verify", "members"), ("verify", "date"), ("inspect", "date")):
        ran = warren("snapshot", command, tmp_path / f"{name}.mdb")
        assert ran.code == 3
        assert len(ran.err.splitlines()) == 1
        assert name in ran.err


def test_one_flipped_bit_is_exit_code_3(warren: Command, saved: Path, tmp_path: Path) -> None:
    data = bytearray(saved.read_bytes())
    data[len(data) // 2] ^= 8
    saved.write_bytes(data)
    assert warren("snapshot", "inspect", saved).text  # it reads the last page only
    for command in ("verify", "list", "get", "export", "drill"):
        ran = warren(*arguments_of(command, saved, tmp_path / "new"))
        assert (ran.code, ran.err) == (
            3,
            f"warren-raft: {saved}: is damaged: its bytes do not fit the hash in its last page\n",
        )
    assert not (tmp_path / "new").exists()


def test_a_file_that_may_not_be_read_is_exit_code_1(saved: Path, tmp_path: Path) -> None:
    """If this user is root, which may read every file, the command runs as another user."""
    user = NOBODY if os.geteuid() == 0 else None
    (tmp_path / "good.mdb").write_bytes(saved.read_bytes())
    if user is None:
        saved.chmod(0)
    descriptor = os.open(tmp_path, os.O_PATH)  # the other user may not use the path to it either
    try:
        program = (
            "import os, sys; from warren_raft_cli.main import run; "
            f"run(['snapshot', 'verify', '/proc/self/fd/{descriptor}/good.mdb']); "  # loads its modules
            + (f"os.setgroups([]); os.setgid({user}); os.setuid({user}); " if user else "")
            + f"sys.exit(run(['snapshot', 'verify', '/proc/self/fd/{descriptor}/s.mdb']))"
        )
        command = [sys.executable, "-c", program]
        ran = subprocess.run(command, pass_fds=[descriptor], capture_output=True, text=True)
    finally:
        os.close(descriptor)
    assert ran.returncode == 1
    assert "Permission denied" in ran.stderr
    assert ran.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["save", "inspect", "verify", "restore"])
def test_an_unreadable_file_is_not_found_out_by_the_parser(
    warren: Command, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """A missing file has exit code 1. (Pins a bug: click checked first, and gave the exit code of a typing error.) Root
    may read all files."""
    monkeypatch.setattr(os, "access", lambda *_arguments, **_named: False)
    target = ("--data-dir", tmp_path / "new", "--node-id", "m1", "--member", "m1=127.0.0.1:1")
    ran = warren("snapshot", command, saved, *(target if command == "restore" else ()))
    assert ran.code == (4 if command == "save" else 0), ran.err


def test_a_directory_is_a_wrong_name_and_no_damaged_snapshot(
    warren: Command, tmp_path: Path, reading: Callable[[Path], Sequence[str | Path]]
) -> None:
    """(Pins a bug: exit code 3, which a backup job takes for damage.)"""
    ran = warren(*reading(tmp_path))
    assert (ran.code, ran.err) == (1, f"warren-raft: {tmp_path} is a directory: name a file\n")


# ----------------------------------------------------------------------------------------- the entities in a file


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """A snapshot with entities of most kinds, of a store that is gone."""
    with small_state(tmp_path / "data") as database:
        snapshot_of(database, tmp_path / "s.mdb")
    shutil.rmtree(tmp_path / "data")
    return tmp_path / "s.mdb"


def test_the_entities_of_a_file_come_without_a_cluster(warren: Command, filled: Path, tmp_path: Path) -> None:
    before = filled.read_bytes()
    assert warren("snapshot", "list", filled, "-o", "json").json["services"] == 2
    assert "containers    42" in warren("snapshot", "list", filled).text
    services = warren("snapshot", "list", filled, "services", "-o", "json").json
    assert [(each["id"], each["name"]) for each in services] == [("s-1", "web"), ("s-2", "db")]
    web = warren("snapshot", "get", filled, "service", "s-1", "-o", "json").json
    assert web == services[0]
    assert web["replicas"] == 3
    assert warren("snapshot", "get", filled, "service", "s-1").text.startswith("id ")
    assert filled.read_bytes() == before
    assert os.listdir(tmp_path) == ["s.mdb"]


def test_secrets_of_a_file_are_shown_if_they_are_asked_for(warren: Command, filled: Path) -> None:
    data = base64.b64encode(b"\0\xff").decode()
    for more, shown in (((), None), (("--show",), data)):
        assert warren("snapshot", "get", filled, "secret", "x-1", "-o", "json", *more).json["data"] == shown
        assert warren("snapshot", "list", filled, "secrets", "-o", "json", *more).json[0]["data"] == shown
    assert warren("snapshot", "get", filled, "ca").code == 2
    assert warren("snapshot", "get", filled, "ca", "--show").text == "the CA"


def test_a_record_that_no_manager_wrote_is_exit_code_3(warren: Command, tmp_path: Path) -> None:
    """Its hashes and its digest are right, so it is found where it is decoded."""
    with small_state(tmp_path / "data") as database:
        change(database, lambda transaction: transaction.put_key(NODE.number, b"n-9", b"\x82\x01\xff"), new_digest=True)
        snapshot_of(database, tmp_path / "s.mdb")
    for arguments in (("list", "nodes"), ("get", "node", "n-9"), ("export", "-o", tmp_path / "lines.jsonl")):
        ran = warren("snapshot", arguments[0], tmp_path / "s.mdb", *arguments[1:])
        assert (ran.code, ran.err) == (3, f"warren-raft: {tmp_path / 's.mdb'}: node 'n-9': not a record\n")
    assert not (tmp_path / "lines.jsonl").exists()
    assert warren("snapshot", "get", tmp_path / "s.mdb", "service", "s-1").code == 0


def test_an_entity_that_a_file_does_not_hold_is_exit_code_1(warren: Command, filled: Path) -> None:
    ran = warren("snapshot", "get", filled, "service", "web")
    assert (ran.code, ran.err) == (
        1,
        "warren-raft: no service 'web'; the service with this name has the id s-1\n",
    )
    assert warren("snapshot", "get", filled, "service").code == 2
    assert warren("snapshot", "get", filled, "service", "").code == 2


@pytest.mark.parametrize(("count", "ids"), [(3, "x-1, x-2, x-3"), (9, "x-1, x-2, x-3, x-4, x-5 and 4 more")])
def test_a_name_of_several_entities_in_the_place_of_an_id(
    count: int, ids: str, warren: Command, tmp_path: Path
) -> None:
    with small_state(tmp_path / "data") as database:
        services = (Service(id=f"x-{number}", name="web-0") for number in range(1, count + 1))
        apply(StateMachine(database), *(encoded(put(service)) for service in services))
        snapshot_of(database, tmp_path / "s.mdb")
    ran = warren("snapshot", "get", tmp_path / "s.mdb", "service", "web-0")
    text = f"no service has the id 'web-0'; {count} services have this name: {ids}"
    assert (ran.code, ran.err) == (1, f"warren-raft: {text}\n")
    ran = warren("snapshot", "get", tmp_path / "s.mdb", "service", "web-0", "-o", "json")
    assert json.loads(ran.err)["error"]["name"] == "NotFound"


def test_all_entities_of_a_file_can_be_imported_again(warren: Command, filled: Path, manager: Path) -> None:
    """(What export writes of a snapshot, it writes of a manager that has the same entities.)"""
    lines = filled.with_name("lines.jsonl")
    ran = warren("snapshot", "export", filled, "-o", lines, "-o", "json")
    assert ran.json == {"exported": 48}
    assert stat.S_IMODE(lines.stat().st_mode) == 0o600
    assert warren("snapshot", "export", filled, "-o", "-").text == lines.read_text()
    would = warren("import", lines, "--dry-run", "-o", "json", "--data-dir", manager).json["would_import"]
    assert sum(sum(changes.values()) for changes in would.values()) == 48
    ran = warren("snapshot", "export", filled, "-o", "json")
    assert (ran.code, json.loads(ran.err)["error"]["name"]) == (2, "UsageError")


# ------------------------------------------------------------------------------------------ saving that fails


def nothing_left(directory: Path) -> bool:
    return not [name for name in os.listdir(directory) if "s.mdb" in name]


@pytest.mark.parametrize("what", ["file", "directory"])
def test_what_is_there_is_not_replaced_and_the_manager_not_even_asked(
    warren: Command, tmp_path: Path, what: str
) -> None:
    path = tmp_path / "s.mdb"
    if what == "file":
        path.write_text("precious")
    else:
        path.mkdir()
    ran = warren("snapshot", "save", path, "--data-dir", tmp_path / "no manager here")
    assert ran.code == 4
    assert ("exists already" if what == "file" else "is a directory: name a file") in ran.err
    assert os.listdir(tmp_path) == ["s.mdb"]


def test_a_directory_that_is_not_there_is_exit_code_1(warren: Command, manager: Path, tmp_path: Path) -> None:
    ran = warren("snapshot", "save", tmp_path / "none" / "s.mdb", "--data-dir", manager)
    says = f"warren-raft: there is no directory {tmp_path / 'none'}: correct the name, or make the directory first\n"
    assert (ran.code, ran.err) == (1, says)


def test_without_a_manager_it_is_exit_code_1(warren: Command, tmp_path: Path) -> None:
    ran = warren("snapshot", "save", tmp_path / "s.mdb", "--data-dir", tmp_path)
    assert ran.code == 1
    assert "no manager is running" in ran.err
    assert nothing_left(tmp_path)


def test_a_full_disk_is_exit_code_7_and_leaves_nothing(
    warren: Command, manager: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = WatchedFiles()
    files.refuse("write", errno.ENOSPC)
    monkeypatch.setattr(snapshots_module, "OS_FILES", files)
    ran = warren("snapshot", "save", tmp_path / "s.mdb", "--data-dir", manager)
    assert (ran.code, ran.err) == (7, f"warren-raft: {tmp_path / 's.mdb'}: no space left for the snapshot\n")
    assert nothing_left(tmp_path)


def test_bytes_that_change_on_their_way_are_exit_code_3(
    warren: Command, manager: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = OsFile.write

    def spoiling(file: OsFile, offset: int, data: bytes) -> None:
        write(file, offset, bytes([data[0] ^ 1]) + data[1:])

    monkeypatch.setattr(OsFile, "write", spoiling)
    ran = warren("snapshot", "save", tmp_path / "s.mdb", "--data-dir", manager)
    assert ran.code == 3
    assert nothing_left(tmp_path)


def test_a_manager_that_is_killed_meanwhile_is_exit_code_6_and_leaves_nothing(
    warren: Command, start_manager: StartManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manager is killed when the first piece has come. More bytes than sockets hold are still to be sent then."""
    process = start_manager(tmp_path / "m1", "m1", {"m1": free_addresses(1)[0]})
    process.wait_ready()
    lines = tmp_path / "secrets.jsonl"
    with open(lines, "w") as file:
        for number in range(6):
            value = {"ID": f"x{number}", "Name": f"x{number}", "Data": base64.b64encode(os.urandom(900_000)).decode()}
            file.write(json.dumps({"bucket": "secrets", "key": f"x{number}", "value": value}) + "\n")
    assert warren("import", lines, "--data-dir", tmp_path / "m1").text
    body = client_module.AdminClient._body

    def killed_after_one(self: client_module.AdminClient, *arguments: Any) -> Iterator[bytes]:
        chunks = body(self, *arguments)
        yield next(chunks)
        process.process.kill()
        process.process.wait()
        yield from chunks

    monkeypatch.setattr(client_module.AdminClient, "_body", killed_after_one)
    ran = warren("snapshot", "save", tmp_path / "s.mdb", "--data-dir", tmp_path / "m1")
    assert ran.code == 6
    assert ran.err == f"warren-raft: the connection to the manager on {tmp_path / 'm1'} broke; no snapshot was saved\n"
    assert nothing_left(tmp_path)
