"""The promise: entities that one command writes come out of the other commands, as JSON for programs and as tables for
people, from a real manager process.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import os
import pty
import re
import resource
import stat
import subprocess
import sys
import termios
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_support import Command

from warren_raft.admin.client import AdminClient
from warren_raft.errors import Unavailable
from warren_raft.migrate.bolt import BoltFile
from warren_raft.migrate.records import parse_line, parse_stored, same_record
from warren_raft_cli.entities import COLUMNS
from warren_raft_cli.status import LAG_NOTE, print_cluster, print_status

SAMPLE = Path(__file__).resolve().parents[2] / "examples" / "sample-state.jsonl"
DATA = Path(__file__).resolve().parents[1] / "data"
START_SECONDS = 0.25  # of processor time, from exec to exit; a busy machine must not fail this


@pytest.fixture
def entity_file(tmp_path: Path) -> Any:
    def write(entity: dict[str, Any]) -> Path:
        path = tmp_path / f"{entity['id']}.json"
        path.write_text(json.dumps(entity), encoding="utf-8")
        return path

    return write


# ----------------------------------------------------------------------------------- put, get, list, delete


def test_an_entity_goes_in_and_comes_out_with_its_revision(warren: Command, manager: Path, entity_file: Any) -> None:
    file = entity_file({"id": "node-put", "role": "worker", "labels": {"zone": "a"}, "last_heartbeat": None})
    revision = warren("put", "node", "-f", file, "--data-dir", manager, "-o", "json").json["revision"]
    got = warren("get", "node", "node-put", "--data-dir", manager, "-o", "json").json
    assert got["role"] == "worker"
    assert got["labels"] == {"zone": "a"}
    assert got["revision"] == revision
    assert warren("put", "node", "-f", file, "--data-dir", manager).text.startswith("revision ")


def test_what_get_prints_can_be_put(warren: Command, manager: Path, entity_file: Any) -> None:
    file = entity_file({"id": "svc-again", "name": "again", "update_config": {"delay": 12.5}, "env": ["A=1"]})
    assert warren("put", "service", "-f", file, "--data-dir", manager).text
    got = warren("get", "service", "svc-again", "--data-dir", manager, "-o", "json").json
    file.write_text(json.dumps(got), encoding="utf-8")
    assert warren("put", "service", "-f", file, "--data-dir", manager).text
    again = warren("get", "service", "svc-again", "--data-dir", manager, "-o", "json").json
    assert again | {"revision": 0} == got | {"revision": 0}
    assert got["update_config"]["delay"] == 12.5


def test_an_entity_can_come_from_stdin(warren: Command, manager: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_end, write_end = os.pipe()
    os.write(write_end, b'{"id": "node-stdin"}')
    os.close(write_end)
    with os.fdopen(read_end) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert warren("put", "nodes", "-f", "-", "--data-dir", manager).text
    assert warren("get", "node", "node-stdin", "--data-dir", manager, "-o", "json").json["id"] == "node-stdin"


def test_a_condition_holds_or_nothing_changes(warren: Command, manager: Path, entity_file: Any) -> None:
    file = entity_file({"id": "node-if", "hostname": "first"})
    common = ("--data-dir", manager, "-o", "json")
    first = warren("put", "node", "-f", file, "--if-revision", "0", *common).json["revision"]
    conflict = warren("put", "node", "-f", file, "--if-revision", "0", *common)
    assert conflict.code == 1
    assert f"there is a node 'node-if' already, at revision {first}" in conflict.err
    assert warren("delete", "node", "node-if", "--if-revision", str(first + 1000), *common).code == 1
    assert warren("get", "node", "node-if", *common).json["revision"] == first
    assert warren("delete", "node", "node-if", "--if-revision", str(first), *common).json["revision"] > first
    assert warren("get", "node", "node-if", *common).code == 1


def test_a_delete_of_nothing_is_done_too(warren: Command, manager: Path) -> None:
    """(Pins a bug: it looked like a deletion.)"""
    for options in ((), ("-o", "json")):
        ran = warren("delete", "secrets", "no-such-secret", "--data-dir", manager, *options)
        assert ran.text
        assert ran.err == "warren-raft: there is no secret 'no-such-secret': nothing was deleted\n"


def test_a_cascade_takes_the_containers_of_a_service_along(warren: Command, manager: Path, entity_file: Any) -> None:
    common = ("--data-dir", manager, "-o", "json")
    first = warren("put", "service", "-f", entity_file({"id": "svc-of-three", "name": "three"}), *common).json
    for number in range(3):
        file = entity_file({"id": f"con-of-three-{number}", "service_id": "svc-of-three"})
        assert warren("put", "container", "-f", file, *common).code == 0
    listed = ("list", "containers", "--service", "svc-of-three", *common)
    assert len(warren(*listed).json) == 3
    refused = warren("delete", "container", "con-of-three-0", "--cascade", *common)
    assert refused.code == 2
    assert "--cascade is for services" in refused.err
    assert warren("delete", "service", "svc-of-three", "--cascade", "--if-revision", "1", *common).code == 1
    assert len(warren(*listed).json) == 3
    gone = warren("delete", "service", "svc-of-three", "--cascade", *common)
    assert gone.json["revision"] > first["revision"]
    assert warren(*listed).json == []
    assert warren("get", "service", "svc-of-three", *common).code == 1
    again = warren("delete", "service", "svc-of-three", "--cascade", *common)
    assert (again.code, again.err) == (0, "warren-raft: there is no service 'svc-of-three': nothing was deleted\n")


def test_an_equal_entity_is_not_written_again(warren: Command, manager: Path, entity_file: Any) -> None:
    common = ("--data-dir", manager, "-o", "json")
    file = entity_file({"id": "node-twice", "hostname": "alpha"})
    first = warren("put", "node", "-f", file, *common).json
    assert warren("put", "node", "-f", file, *common).json == first


def test_a_name_in_the_place_of_an_id_gets_the_id(warren: Command, manager: Path, tmp_path: Path) -> None:
    (tmp_path / "volume.json").write_text('{"id": "vol-of-name", "name": "data-volume"}')
    assert warren("put", "volume", "-f", tmp_path / "volume.json", "--data-dir", manager).text
    ran = warren("get", "volume", "data-volume", "--data-dir", manager)
    assert (ran.code, ran.err) == (
        1,
        "warren-raft: no volume 'data-volume'; the volume with this name has the id vol-of-name\n",
    )
    error = json.loads(warren("get", "volume", "data-volume", "-o", "json", "--data-dir", manager).err)["error"]
    assert (error["name"], error["kind"], error["key"]) == ("NotFound", "volume", "data-volume")
    assert error["ids"] == ["vol-of-name"]  # a script reads no text
    deleted = warren("delete", "volume", "vol-of-name", "--data-dir", manager)
    assert (deleted.err, deleted.code) == ("", 0)


def test_the_ca_is_bytes(warren: Command, manager: Path, tmp_path: Path) -> None:
    file = tmp_path / "ca"
    file.write_bytes(b"-----CA-----\n")
    assert warren("put", "ca", "-f", file, "--data-dir", manager).text
    assert warren("get", "ca", "--show", "--data-dir", manager).text == "-----CA-----\n"
    data = warren("get", "ca", "-o", "json", "--show", "--data-dir", manager).json["data"]
    assert base64.b64decode(data) == b"-----CA-----\n"


def test_the_ca_is_not_shown_unasked_and_a_file_that_wants_it_stays_empty(
    warren: Command, manager: Path, tmp_path: Path
) -> None:
    file = tmp_path / "ca"
    file.write_bytes(b"-----CA-----\n")
    assert warren("put", "ca", "-f", file, "--data-dir", manager).text
    refused = warren("get", "ca", "--data-dir", manager)
    assert refused.code == 2
    assert refused.out == ""
    assert "13 bytes; to print them add --show" in refused.err
    assert warren("get", "ca", "-o", "json", "--data-dir", manager).json == {"data": None}


def test_list_filters_by_service_node_name_and_host(warren: Command, manager: Path, entity_file: Any) -> None:
    common = ("--data-dir", manager, "-o", "json")
    for n, (service, node) in enumerate([("s1", "n1"), ("s1", "n2"), ("s2", "n1")]):
        file = entity_file({"id": f"filter-{n}", "service_id": service, "node_id": node})
        assert warren("put", "container", "-f", file, *common).text
    assert warren(
        "put", "certificate", "-f", entity_file({"id": "wild", "name": "w", "hosts": ["*.example.com"]}), *common
    ).text

    def ids(*arguments: str) -> list[str]:
        return [entity["id"] for entity in warren("list", *arguments, *common).json]

    assert ids("containers", "--service", "s1") == ["filter-0", "filter-1"]
    assert ids("containers", "--node", "n1") == ["filter-0", "filter-2"]
    assert ids("containers", "--service", "s1", "--node", "n1") == ["filter-0"]
    assert ids("containers", "--service", "none") == []
    assert ids("certificates", "--host", "A.example.com") == ["wild"]
    assert ids("certificates", "--host", "a.b.example.com") == []
    assert ids("certificate", "--name", "w") == ["wild"]


@pytest.mark.parametrize("kind", COLUMNS)
def test_every_kind_has_a_table_with_a_row_a_line(warren: Command, manager: Path, entity_file: Any, kind: str) -> None:
    entity_file_of_kind = entity_file({"id": f"table-{kind}"})
    assert warren("put", kind, "-f", entity_file_of_kind, "--data-dir", manager).text
    listed = warren("list", kind, "--data-dir", manager).text
    assert listed.splitlines()[0].startswith("ID ")
    assert any(line.startswith(f"table-{kind} ") for line in listed.splitlines())
    shown = warren("get", kind, f"table-{kind}", "--data-dir", manager).text
    assert f"table-{kind}" in shown


@pytest.mark.parametrize(("kind", "field"), [("secret", "data"), ("certificate", "key_pem")])
def test_secrets_are_printed_when_they_are_asked_for_only(
    warren: Command, manager: Path, entity_file: Any, kind: str, field: str
) -> None:
    """Other people may see or record a terminal, and the output of a job, also JSON."""
    data = base64.b64encode(b"hush-hush").decode()
    assert warren(
        "put", kind, "-f", entity_file({"id": "hidden", "name": "hidden", field: data}), "--data-dir", manager
    ).text
    reading = [("get", kind, "hidden"), ("list", kind)]
    for command in reading:
        for form in ("table", "wide", "json"):
            common = (*command, "-o", form, "--data-dir", manager)
            hidden, shown = warren(*common), warren(*common, "--show")
            assert (hidden.code, shown.code) == (0, 0)
            assert data not in hidden.out
            assert "hush" not in hidden.out
            assert data in shown.out
    assert "(9 bytes, shown with --show)" in warren("get", kind, "hidden", "--data-dir", manager).text
    assert warren("get", kind, "hidden", "--data-dir", manager, "-o", "json", "--show").json[field] == data


@pytest.mark.parametrize(("kind", "field"), [("secret", "data"), ("certificate", "key_pem")])
def test_a_secret_that_was_not_shown_is_not_stored_as_an_empty_one(
    warren: Command, manager: Path, entity_file: Any, tmp_path: Path, kind: str, field: str
) -> None:
    """`get -o json`, edit, `put`: the secret bytes that `get` left out must not become empty."""
    data = base64.b64encode(b"hush-hush").decode()
    assert warren("put", kind, "-f", entity_file({"id": "kept", field: data}), "--data-dir", manager).text
    got = warren("get", kind, "kept", "--data-dir", manager, "-o", "json")
    assert got.json[field] is None
    (tmp_path / "edited.json").write_text(got.out)
    refused = warren("put", kind, "-f", tmp_path / "edited.json", "--data-dir", manager)
    assert refused.code == 1
    assert (
        f"{tmp_path / 'edited.json'}: {kind}.{field}: is null: write the file with `get --show -o json`" in refused.err
    )
    assert warren("get", kind, "kept", "--data-dir", manager, "-o", "json", "--show").json[field] == data


def test_a_certificate_without_its_key_is_no_secret(warren: Command, manager: Path, entity_file: Any) -> None:
    data = base64.b64encode(b"public").decode()
    assert warren("put", "certificate", "-f", entity_file({"id": "open", "cert_pem": data}), "--data-dir", manager).text
    assert warren("get", "certificate", "open", "--data-dir", manager, "-o", "json").json["cert_pem"] == data
    assert "(6 bytes, shown with -o json)" in warren("get", "certificate", "open", "--data-dir", manager).text


def test_what_an_entity_holds_cannot_drive_the_terminal(warren: Command, manager: Path, entity_file: Any) -> None:
    assert warren(
        "put", "node", "-f", entity_file({"id": "esc", "hostname": "\x1b[2Jx\nID y"}), "--data-dir", manager
    ).text
    for ran in (warren("get", "node", "esc", "--data-dir", manager), warren("list", "nodes", "--data-dir", manager)):
        assert "\x1b" not in ran.out
        assert "ID y" not in [line.strip() for line in ran.out.splitlines()]


# ------------------------------------------------------------------------------- options, status, members


def test_common_options_go_before_and_after_and_the_nearest_wins(
    warren: Command, manager: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected = warren("members", "list", "-o", "json", "--data-dir", manager).json
    assert warren("-o", "json", "--data-dir", manager, "members", "list").json == expected
    assert warren("members", "-o", "json", "--data-dir", manager, "list").json == expected
    assert warren("-o", "table", "--data-dir", tmp_path, "members", "list", "-o", "json", "--data-dir", manager).json
    monkeypatch.setenv("WARREN_DATA_DIR", str(manager))
    assert warren("members", "list", "-o", "json").json == expected
    monkeypatch.setenv("WARREN_DATA_DIR", str(tmp_path))
    assert warren("--data-dir", manager, "members", "list", "-o", "json").json == expected


def test_status_has_the_documented_fields(warren: Command, manager: Path) -> None:
    status = warren("status", "--data-dir", manager, "-o", "json").json
    documented = (
        "node_id cluster_id role leader term commit_index applied_index revision digest has_quorum members counts "
        "db_size_bytes log_entries log_bytes snapshot"
    )
    assert set(documented.split()) <= set(status)
    assert (status["node_id"], status["role"], status["leader"], status["has_quorum"]) == ("m1", "leader", "m1", True)
    assert set(status["counts"]) >= {"nodes", "services", "containers", "secrets", "volumes", "networks", "ingresses"}
    assert {"id", "address", "connected"} <= set(status["members"][0])
    table = warren("status", "--data-dir", manager).text
    assert "role" in table
    assert status["digest"] in table or "digest" in table


def test_status_shows_each_alarm_on_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    refused = {"name": "refused-by-member", "subject": "m2", "severity": "warning", "text": "m2 refuses\nthis manager"}
    full = {"name": "log-no-space", "subject": "", "severity": "critical", "text": "the disk is full"}
    alarms = [{**alarm, "since": "2026-11-01T00:00:00.000Z"} for alarm in (refused, full)]
    verdict = {"state": "degraded", "text": "m1 leads\nterm 4", "tolerates_failures": 0}
    print_status({"verdict": verdict, "node_id": "m1", "alarms": alarms, "members": []}, wide=True)
    assert [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()] == [
        ["degraded:", "m1 leads term 4"],
        [],
        ["node_id", "m1"],
        ["alarm", "warning refused-by-member m2 since 2026-11-01T00:00:00.000Z: m2 refuses this manager"],
        ["alarm", "critical log-no-space since 2026-11-01T00:00:00.000Z: the disk is full"],
    ]


def member_row(id_: str, **fields: object) -> dict[str, object]:
    shown = {
        "id": id_,
        "address": "127.0.0.1:1",
        "voter": True,
        "leader": False,
        "connected": True,
        "version": "1",
        "level_max": 2,
    }
    reported = {"contact_age_seconds": 0.1, "applied_index": 9, "lag_entries": 0, "disk_free_bytes": 5, "alarms": []}
    return {**shown, **reported, "database_bytes": 3, **fields}


def test_the_table_of_members_explains_a_lag_that_is_only_the_age_of_a_report(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """(Pins a bug: a reader took the leader of a busy cluster for a member that is behind.)"""
    level, unheard = member_row("m1"), member_row("m2", connected=False, contact_age_seconds=None, lag_entries=None)
    away = member_row("m3", connected=False, contact_age_seconds=90.0, lag_entries=7)
    print_cluster([level, unheard, away], wide=False)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2:5] for line in lines[1:]] == [["0s", "9", "0"], ["never", "9", "-"], ["away", "1m", "9"]]
    print_cluster([level, member_row("m4", leader=True, lag_entries=7)], wide=False)
    assert capsys.readouterr().out.endswith(f"\n\n{LAG_NOTE}\n")


def test_members_are_listed(warren: Command, manager: Path) -> None:
    (member,) = warren("members", "list", "--data-dir", manager, "-o", "json").json
    assert member["id"] == "m1"
    assert "127.0.0.1:" in warren("members", "list", "--data-dir", manager).text


def test_who_is_no_member_is_not_said_to_be_removed(warren: Command, manager: Path) -> None:
    """(Pins a bug: an operator mistyped the id, and believed that the dead member was removed.)"""
    remove = ("members", "remove", "m9", "--data-dir", manager)
    assert warren(*remove).text == "m9 is not a member\n"
    assert warren(*remove, "-o", "json").json == {"done": "m9 is not a member"}


def test_a_member_that_is_there_is_not_said_to_be_added(warren: Command, manager: Path) -> None:
    (member,) = warren("members", "list", "--data-dir", manager, "-o", "json").json
    ran = warren("members", "add", f"m1={member['address']}", "--data-dir", manager)
    assert ran.text == f"m1 is a member already, at {member['address']}\n"


def test_an_unknown_member_is_refused_with_the_command_that_lists_them(warren: Command, manager: Path) -> None:
    for command in (("members", "update", "m9=127.0.0.1:1"), ("leader", "transfer", "m9")):
        ran = warren(*command, "--data-dir", manager)
        assert ran.code == 4
        assert "member: warren-raft members list shows the members" in ran.err


def test_an_error_in_json_has_its_name_its_code_and_its_data(warren: Command, manager: Path, tmp_path: Path) -> None:
    def error(*arguments: str | Path) -> Any:
        return json.loads(warren(*arguments, "--data-dir", manager).err)["error"]

    missing = {"name": "NotFound", "text": "no node 'none'", "exit_code": 1, "kind": "node", "key": "none"}
    assert error("get", "node", "none", "-o", "json") == missing
    assert error("-ojson", "get", "node", "none") == missing
    assert error("get", "node", "none", "--output=json") == missing
    assert error("lost", "-o", "json")["exit_code"] == 2
    assert error("get", "node", "none", "--no-such-option", "-o", "json")["name"] == "NoSuchOption"
    (tmp_path / "node.json").write_text('{"id": "if-revision"}')
    conflict = error("put", "node", "-f", tmp_path / "node.json", "--if-revision", "77", "-o", "json")
    assert (conflict["name"], conflict["expected"], conflict["actual"]) == ("RevisionConflict", 77, 0)
    assert warren("get", "node", "none", "-o", "json", "-o", "table", "--data-dir", manager).err.startswith(
        "warren-raft"
    )


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_a_shell(warren: Command, shell: str) -> None:
    script = warren("completion", shell).text
    assert "_WARREN_RAFT_COMPLETE" in script
    assert "warren-raft" in script


# --------------------------------------------------------------------------------------- import and export


def test_a_state_goes_in_and_comes_out_equal(warren: Command, manager: Path, tmp_path: Path) -> None:
    lines = SAMPLE.read_text(encoding="utf-8").splitlines()
    assert warren("import", SAMPLE, "--data-dir", manager, "-o", "json").json == {"imported": len(lines)}
    target = tmp_path / "out.jsonl"
    exported = warren("export", target, "--data-dir", manager, "-o", "json").json["exported"]
    written = target.read_text(encoding="utf-8").splitlines()
    assert len(written) == exported >= len(lines)
    assert warren("export", "-", "--data-dir", manager).text.splitlines() == written

    def by_key(text: list[str]) -> dict[tuple[str, str], str]:
        return {(record["bucket"], record["key"]): line for line in text for record in [json.loads(line)]}

    held = by_key(written)
    for key, line in by_key(lines).items():
        assert same_record(line, held[key])


def test_export_status_and_verify_count_the_entities_alike(warren: Command, manager: Path, tmp_path: Path) -> None:
    """(Pins a bug: "exported 127 records" beside "126 entities" of `snapshot verify`. The CA is a record and no
    entity.)"""
    warren("import", SAMPLE, "--data-dir", manager)
    count = sum(warren("status", "--data-dir", manager, "-o", "json").json["counts"].values())
    target, snapshot = tmp_path / "out.jsonl", tmp_path / "snapshot"
    assert warren("export", target, "--data-dir", manager).text == f"exported {count} entities and the CA to {target}\n"
    warren("snapshot", "save", snapshot, "--data-dir", manager)
    assert f" {count} entities, " in warren("snapshot", "verify", snapshot).text


def test_an_export_is_for_its_owner_only_and_leaves_nothing_half_written(
    warren: Command, manager: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out.jsonl"
    target.write_text("older")
    target.chmod(0o644)
    assert warren("export", target, "--data-dir", manager).text
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["out.jsonl"]
    nowhere = warren("export", tmp_path / "none" / "out.jsonl", "--data-dir", manager)
    assert nowhere.code == 1
    assert nowhere.err == (
        f"warren-raft: there is no directory {tmp_path / 'none'}: correct the name, or make the directory first\n"
    )
    assert warren("export", tmp_path, "--data-dir", manager).code == 2
    assert warren("export", "", "--data-dir", manager).code == 2
    assert os.listdir(tmp_path) == ["out.jsonl"]


def test_the_last_of_two_lines_of_one_entity_wins(warren: Command, manager: Path, tmp_path: Path) -> None:
    file = tmp_path / "twice.jsonl"
    line = '{{"bucket": "nodes", "key": "twice", "value": {{"ID": "twice", "Hostname": "{}"}}}}\n'
    file.write_text(line.format("first") + "\n" + line.format("last"))
    assert warren("import", file, "--data-dir", manager).text == "imported 1 entity\n"
    assert warren("get", "node", "twice", "--data-dir", manager, "-o", "json").json["hostname"] == "last"


@pytest.mark.parametrize(
    ("stored", "maybe_applied", "note"),
    [
        (1, True, "; at least 1 of 2 records are stored; import the file again"),
        (0, True, "; some of the 2 records may be stored; import the file again"),
        (0, False, ""),
    ],
)
def test_an_import_that_stops_says_how_to_go_on(
    warren: Command,
    manager: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stored: int,
    maybe_applied: bool,
    note: str,
) -> None:
    file = tmp_path / "two.jsonl"
    file.write_text("".join(f'{{"bucket": "nodes", "key": "{id_}", "value": {{"ID": "{id_}"}}}}\n' for id_ in "ab"))

    def stop(_self: AdminClient, _items: object, *, timeout: float | None, done: Callable[[int], object]) -> None:
        if stored:
            done(stored)
        raise Unavailable("the manager died", maybe_applied=maybe_applied)

    monkeypatch.setattr(AdminClient, "put_all", stop)
    ran = warren("import", file, "--data-dir", manager)
    assert ran.code == 6
    assert ran.err.rstrip().endswith(note or "nothing was changed")
    assert ("import the file again" in ran.err) == bool(note)


def test_the_database_of_a_go_warren_goes_in_and_out(warren: Command, manager: Path, tmp_path: Path) -> None:
    """The old bucket `tasks` holds containers. What a dry run says is what the import does."""
    database = tmp_path / "warren.db"
    database.write_bytes(gzip.decompress((DATA / "warren-tasks.db.gz").read_bytes()))
    lines = gzip.decompress((DATA / "warren-tasks.jsonl.gz").read_bytes()).decode().splitlines()

    def planned() -> dict[str, dict[str, int]]:
        kinds: dict[str, dict[str, int]] = warren(
            "import", database, "--dry-run", "--data-dir", manager, "-o", "json"
        ).json["would_import"]
        return kinds

    before = warren("status", "--data-dir", manager, "-o", "json").json["revision"]
    first = planned()
    assert sum(sum(kind.values()) for kind in first.values()) == len(lines)
    assert first["containers"]["new"] > 20
    assert warren("status", "--data-dir", manager, "-o", "json").json["revision"] == before
    assert warren("import", database, "--data-dir", manager, "-o", "json").json == {"imported": len(lines)}
    for kind in planned().values():
        assert (kind["new"], kind["changed"]) == (0, 0)

    back, exported = tmp_path / "back.db", tmp_path / "back.jsonl"
    warren("export", exported, "--data-dir", manager)
    counted = warren("export", "--warren-db", back, "--data-dir", manager, "-o", "json").json["exported"]
    assert counted == len(exported.read_text(encoding="utf-8").splitlines())
    assert stat.S_IMODE(back.stat().st_mode) == 0o600
    held = {record for line in exported.read_text(encoding="utf-8").splitlines() for record in [parse_line(line)]}
    with BoltFile(back) as file:
        written = {parse_stored(names[0].decode(), key, value) for names, key, value in file.records()}
    assert written == held >= set(map(parse_line, lines))
    piped = [sys.executable, "-m", "warren_raft_cli", "import", "-", "--data-dir", str(manager)]
    ran = subprocess.run(piped, input=back.read_bytes(), capture_output=True, timeout=60, check=False)
    assert ran.returncode == 1
    assert b"name the file, it cannot come by a pipe" in ran.stderr


# ------------------------------------------------------------------------------------------------- speed


def test_get_starts_quickly(manager: Path) -> None:
    """A tool that calls `get` a hundred times must not take half a minute."""
    command = [sys.executable, "-m", "warren_raft_cli", "list", "nodes", "-o", "json", "--data-dir", str(manager)]
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < START_SECONDS


def test_reading_loads_neither_the_engine_nor_the_web() -> None:
    program = (
        "import sys; from warren_raft_cli.main import run; run(['list', 'nodes', '--data-dir', '/none']);"
        "print(sorted({'pysyncobj', 'aiohttp', 'asyncio', 'http.client', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def on_terminal(columns: int, manager: Path, *arguments: str, code: int = 0) -> str:
    """The output of a command on a terminal with this number of columns."""
    master, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (40, columns))
    environment = os.environ | {"WARREN_DATA_DIR": str(manager), "TERM": "xterm"}
    environment.pop("COLUMNS", None)
    command = [sys.executable, "-m", "warren_raft_cli", *arguments]
    with subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment) as process:
        os.close(terminal)
        shown = b""
        with contextlib.suppress(OSError), open(master, "rb", buffering=0) as screen:  # EIO: the other end is closed
            while part := screen.read(4096):
                shown += part
    assert process.returncode == code, shown
    return shown.decode()


def without_colours(shown: str) -> list[str]:
    return re.sub(r"\x1b\[[0-9;?]*m", "", shown).splitlines()


def test_a_terminal_gets_a_progress_bar(manager: Path) -> None:
    imported = on_terminal(80, manager, "import", str(SAMPLE))
    assert "importing" in imported
    assert "100%" in imported
    assert "imported 125 entities and the CA" in imported


@pytest.mark.parametrize("columns", [80, 40, 24])
def test_a_progress_bar_is_one_line(manager: Path, columns: int) -> None:
    """(Pins a fault: below 58 columns each step began a line of its own.)"""
    shown = on_terminal(columns, manager, "import", str(SAMPLE))
    lines = [line for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)) if "[" in line]
    assert "100%" in lines[-1]
    assert max(map(len, lines)) < columns


def test_a_progress_bar_of_work_that_fails_is_wiped_away(manager: Path, tmp_path: Path) -> None:
    shown = on_terminal(80, tmp_path, "import", str(SAMPLE), code=1)
    before, erased, after = shown.rpartition("\x1b[1A\x1b[2K\r")
    assert "importing" in before
    assert erased
    assert after.startswith("warren-raft: no manager is running on ")


@pytest.mark.parametrize("kind", COLUMNS)
def test_a_table_fits_a_terminal_of_80_columns_with_ids_and_times_whole(manager: Path, kind: str) -> None:
    on_terminal(80, manager, "import", str(SAMPLE))
    listed = [line for line in without_colours(on_terminal(80, manager, "list", kind)) if "-o wide" not in line]
    ids = [entity["id"] for entity in json.loads(on_terminal(80, manager, "list", kind, "-o", "json"))]
    assert [line.split()[0] for line in listed] == ["ID", *ids]
    assert max(map(len, listed)) <= 80


# --------------------------------------------------------------------------------- devices, FIFOs, links as output


@pytest.mark.parametrize("command", [("export",), ("snapshot", "save")])
def test_output_to_a_fifo_goes_to_whoever_reads_it(
    warren: Command, manager: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    """(Pins a bug: the FIFO became a regular file with all secrets, and its reader waited for ever.)"""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(fifo.read_bytes()), daemon=True)
    reader.start()
    assert warren(*command, fifo, "--data-dir", manager).code == 0
    reader.join(60)
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    (tmp_path / "out").write_bytes(got[0])
    if command == ("export",):
        assert got[0] == warren("export", "-", "--data-dir", manager).text.encode()
    else:
        assert warren("snapshot", "verify", tmp_path / "out").code == 0


@pytest.mark.parametrize("command", [("export",), ("snapshot", "save")])
def test_output_to_stdout_by_name_has_nothing_else_in_it(
    warren: Command, manager: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    stdout = tmp_path / "stdout"  # in the place of /dev/stdout, which a test must not endanger
    stdout.symlink_to("/proc/self/fd/1")
    program = [sys.executable, "-m", "warren_raft_cli", *command, str(stdout), "--data-dir", str(manager)]
    done = subprocess.run(program, capture_output=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert stdout.is_symlink()
    (tmp_path / "out").write_bytes(done.stdout)
    if command == ("export",):
        assert done.stdout == warren("export", "-", "--data-dir", manager).text.encode()
    else:
        assert warren("snapshot", "verify", tmp_path / "out").code == 0


def test_an_export_follows_a_link_and_refuses_one_to_nothing(warren: Command, manager: Path, tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "broken").symlink_to("nothing")
    assert warren("export", tmp_path / "link", "--data-dir", manager).code == 0
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == warren("export", "-", "--data-dir", manager).text
    broken = warren("export", tmp_path / "broken", "--data-dir", manager)
    assert (broken.code, sorted(os.listdir(tmp_path))) == (4, ["broken", "link", "real"])
    assert "a symbolic link to nothing" in broken.err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make a device")
def test_a_full_device_is_exit_code_7_and_named(warren: Command, manager: Path, tmp_path: Path) -> None:
    device = tmp_path / "full"
    os.mknod(device, 0o600 | stat.S_IFCHR, os.makedev(1, 7))
    for command in (("export",), ("snapshot", "save")):
        full = warren(*command, device, "--data-dir", manager)
        assert (full.code, full.err) == (7, f"warren-raft: {device}: No space left on device\n")
        assert stat.S_ISCHR(device.stat().st_mode)


def test_an_export_to_a_pager_does_not_hold_up_the_database(warren: Command, manager: Path, entity_file: Any) -> None:
    """(Pins a bug: the view was open for as long as the pager was, and the state grew with every change.)"""
    large = entity_file({"id": "large", "labels": {"text": "x" * 300_000}})  # more than a pipe holds
    assert warren("put", "node", "-f", large, "--data-dir", manager).code == 0
    command = [sys.executable, "-m", "warren_raft_cli", "export", "-", "--data-dir", str(manager)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(1) == b"{"  # from now on nothing reads the pipe
        held = [link for link in open_links(process.pid) if "/state/" in link]
        rest = process.stdout.read()
    assert held == []
    assert len(rest) > 300_000
    assert warren("delete", "node", "large", "--data-dir", manager).code == 0


def open_links(pid: int) -> list[str]:
    """The targets of the process's open descriptors."""
    directory = f"/proc/{pid}/fd"
    return [os.readlink(f"{directory}/{name}") for name in os.listdir(directory)]
