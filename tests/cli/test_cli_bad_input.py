"""The promise: bad input gets one clear line and the documented exit code, and changes nothing.

(For every command that fails, `warren` in conftest.py asserts that it prints one line and no traceback.)
"""

from __future__ import annotations

import ast
import base64
import fcntl
import gzip
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_support import Command, StartManager, free_addresses

import warren_raft as wr

GOOD_LINE = '{"bucket": "nodes", "key": "good", "value": {"ID": "good"}}'
M1 = ("--node-id", "m1", "--listen", "127.0.0.1:1", "--member", "m1=127.0.0.1:1")
TOO_LONG = "x" * 600
NOBODY = 65534
NOTHING = "warren-raft: there is no node 'none': nothing was deleted\n"
WARREN_DB = Path(__file__).resolve().parents[1] / "data" / "warren-tasks.db.gz"


@pytest.fixture
def unchanged(warren: Command, manager: Path) -> Iterator[Path]:
    """The running manager; the test must not change its state."""

    def state() -> tuple[int, str]:
        status = warren("status", "--data-dir", manager, "-o", "json").json
        return status["revision"], status["digest"]

    before = state()
    yield manager
    assert state() == before


# ------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("get", "nodde", "n1"), "there is no kind 'nodde'"),
        (("list", "nodde"), "there is no kind 'nodde' here; did you mean node? Kinds are: "),
        (("delete", "nodde", "n1"), "there is no kind 'nodde'"),
        (("list", "ca"), "there is one CA, which cannot be listed or deleted: type warren-raft get ca, or put ca"),
        (("delete", "ca", "ca"), "there is one CA, which cannot be listed or deleted: type warren-raft get ca, or"),
        (("get", "node"), "no node was named: add its ID"),
        (("get", "node", ""), "1 to 511 bytes, not 0"),
        (("get", "node", TOO_LONG), "1 to 511 bytes, not 600"),
        (("delete", "node", ""), "1 to 511 bytes, not 0"),
        (("delete", "node", TOO_LONG), "1 to 511 bytes, not 600"),
        (("delete", "node", "é" * 256), "1 to 511 bytes, not 512"),
        (("delete", "node", "n1", "--if-revision", "-1"), "--if-revision"),
        (("delete", "node", "n1", "--if-revision", "x"), "'x' is not a whole number"),
        (("delete", "node", "n1", "--if-revision", ""), "'' is not a whole number"),
        (("delete", "node", "n1", "--if-revision", "1.5"), "'1.5' is not a whole number"),
        (("delete", "node", "n1", "--if-revision", "-1"), "-1 is not from 0 to 9223372036854775807"),
        (("delete", "node", "n1", "--if-revision", str(2**63)), f"{2**63} is not from 0 to {2**63 - 1}"),
        (("delete", "node", "n1", "--if-revision", "9" * 5000), f"is not from 0 to {2**63 - 1}"),
        (("delete", "node", "n1", "--timeout", "soon"), "'soon' is not a number of seconds"),
        (("delete", "node", "n1", "--timeout", "0"), "'--timeout': 0 is not a time above 0 and up to 3600 seconds"),
        (("delete", "node", "n1", "--timeout", "3601"), "3601 is not a time above 0 and up to 3600 seconds"),
        (("delete", "node", "n1", "--timeout", "nan"), "not a number of seconds"),
        (("members", "remove", ""), "'' is not a node id"),
        (("leader", "transfer", ""), "'' is not a node id"),
        (("list", "nodes", "--service", "s1"), "--service is not for nodes"),
        (("list", "containers", "--host", "h"), "--host is not for containers"),
        (("list", "containers", "--name", "n"), "--name is not for containers"),
        (("put", "node"), "--file"),
        (
            ("put", "node", "-f", "/no/such/file"),
            "there is no directory /no/such: correct the name, or make the directory first",
        ),
        (("import", "/no/such/file"), "there is no directory /no/such: correct the name, or make the directory first"),
        (("frobnicate",), "there is no command 'frobnicate' (see"),
        (("stats",), "there is no command 'stats'; did you mean status? (see"),
        (("snapshot", "sav"), "there is no command 'sav'; did you mean save? (see warren-raft snapshot --help)"),
        (("list", "servcies"), "there is no kind 'servcies' here; did you mean services? Kinds are: node service "),
        (("status", "-o", "yaml"), "'yaml'"),
        (("members", "add", "m2"), "'m2' is not ID=HOST:PORT"),
        (("serve", "--backup-every", "1"), "'1' is not a time like 90s, 15m, 1h or 1d"),
        (("serve", "--backup-every", "h"), "'h' is not a time"),
        (("serve", "--backup-every", ""), "'' is not a time"),
        (("serve", "--backup-every", "-1h"), "'-1h' is not a time"),
        (("serve", "--backup-every", "1.5h"), "'1.5h' is not a time"),
        (("serve", "--backup-every", "٣h"), "is not a time"),
        (("serve", "--backup-every", "0s"), "'0s' is not from 1s to 365d"),
        (("serve", "--backup-every", "366d"), "'366d' is not from 1s to 365d"),
        (("serve", "--backup-keep", "0"), "0 is not from 1 to 100000"),
        (("serve", "--backup-keep", "all"), "'all' is not a whole number"),
        (("snapshot", "save"), "FILE"),
        (("snapshot", "save", "-"), "'-' is not the name of a file; a snapshot cannot go to stdout"),
        (("snapshot", "save", ""), "FILE is empty"),
        (("snapshot", "inspect", ""), "FILE is empty"),
        (("snapshot", "verify", ""), "FILE is empty"),
        (("export", ""), "FILE is empty"),
        (("describe", ""), "DIR is empty"),
        (("serve", *M1, "--join", ""), "--join is empty"),
        (("serve", *M1, "--backup-dir", ""), "--backup-dir is empty"),
        (("serve", *M1, "--config", ""), "''"),
        (("put", "node", "-f", ""), "the name of the file is empty"),
        (("import", ""), "the name of the file is empty"),
        (("cert", "init", ""), "DIR is empty"),
        (("cert", "issue", "m1=127.0.0.1:1", "--ca", ""), "--ca is empty"),
        (("cert", "issue", "m1=127.0.0.1:1", "--ca", "/no/such/ca", "-o", ""), "-o is empty"),
        (("cert", "renew", "--ca", ""), "--ca is empty"),
        (("cert", "renew", ""), "''"),
        (("cert", "show", ""), "''"),
        (("snapshot", "verify"), "FILE"),
        (("snapshot", "drill"), "FILE"),
        (("serve", *M1, "--backup-continuous"), "--backup-continuous: needs backup_dir"),
        (("snapshot", "restore", "s.mdb", "--to-revision", "latest"), "'latest' is not a whole number, and not last"),
        (("snapshot", "restore", "s.mdb", "--to-revision", "0"), "0 is not from 1 to 9223372036854775807"),
        (("snapshot", "drill", "s.mdb", "--scratch", ""), "--scratch is empty"),
        (("snapshot", "drill", "s.mdb", "--scratch", "/dev/null"), "/dev/null is a file; --scratch must name a "),
        (("serve", *M1, "--backup-command", "'"), "cannot be read: no closing quotation"),
        (("serve", *M1, "--backup-command", ""), "it names no program"),
        (("serve", *M1, "--backup-command", "ship"), "--backup-command: needs backup_dir"),
        (("members", "add", "m2=nowhere"), "not an address"),
        (("members", "add", "m 2=127.0.0.1:1"), "not a node id"),
    ],
)
def test_wrong_usage_is_exit_code_2(warren: Command, unchanged: Path, arguments: tuple[str, ...], says: str) -> None:
    ran = warren(*arguments, "--data-dir", unchanged)
    assert ran.code == 2
    assert says in ran.err


def test_a_command_without_a_directory_says_how_to_name_one(warren: Command) -> None:
    ran = warren("status")
    assert ran.code == 2
    assert "WARREN_DATA_DIR" in ran.err


@pytest.mark.parametrize("kind", ["node", "certificate"])
def test_an_unknown_id_is_exit_code_1(warren: Command, unchanged: Path, kind: str) -> None:
    ran = warren("get", kind, "no-such-id", "--data-dir", unchanged)
    assert ran.code == 1
    assert ran.err == f"warren-raft: no {kind} 'no-such-id'\n"


# ----------------------------------------------------------------------------------------- files for put


@pytest.mark.parametrize("kind", ["node", "ca"])
def test_an_empty_file_is_nothing_to_put(warren: Command, unchanged: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "empty").touch()
    ran = warren("put", kind, "-f", tmp_path / "empty", "--data-dir", unchanged)
    assert (ran.code, ran.err) == (1, f"warren-raft: {tmp_path / 'empty'} is empty: there is nothing to put\n")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"id": "n1", "rolle": "worker"}', "node.rolle: there is no such field; did you mean role?"),
        ('{"id": "n1", "labels": {"a": 1}}', "node.labels['a']: must be text, not a number"),
        (
            '{"id": "n1", "resources": {"cpu_cores": "four"}}',
            "node.resources.cpu_cores: must be a whole number, not text",
        ),
        ('{"id": "n1", "role": "king"}', "role"),
        ('{"id": "n1", "created_at": "yesterday"}', "created_at"),
        ('{"id": ""}', "id"),
        (json.dumps({"id": TOO_LONG}), "511"),
        ('{"role": "worker"}', "id"),
        ('{"id": "n1", "ro', "node.json is not JSON: line 1, column 14: Unterminated string"),
        ("[1, 2]", "node.json holds a list: put stores one entity, so put each object of the list by itself"),
        ("3", "node.json does not hold a JSON object, which begins with {"),
        (
            '{"id": "a"}\n{"id": "b"}',
            "node.json holds more than one JSON object (line 2, column 1): put stores one entity",
        ),
        (GOOD_LINE, "holds a record in Warren's own form: type warren-raft import "),
        ("[" * 100_000, "is not JSON"),
        ('{"id": NaN}', "id"),
        (json.dumps({"id": "n1", "hostname": "h" * (1024 * 1024)}), "1048576"),
        ("{" + " " * (9 * 1024 * 1024), "is larger than 8388608 bytes"),
    ],
)
def test_an_entity_that_can_never_be_stored_is_exit_code_1(
    warren: Command, unchanged: Path, tmp_path: Path, content: str, says: str
) -> None:
    file = tmp_path / "node.json"
    file.write_text(content, encoding="utf-8")
    ran = warren("put", "node", "-f", file, "--data-dir", unchanged)
    assert ran.code == 1
    assert says in ran.err


BINARY = [
    (b"\x89PNG\r\n\x1a\n", "byte 1 is 0x89"),
    (b'{"id": "n\xed\xa0\x80"}', "byte 10 is 0xed"),
    (b'\xef\xbb\xbf{"id": "n\xff"}', "byte 13 is 0xff"),
    (b"{\0}", "byte 2 is 0x00"),
    ('{"id": "n"}'.encode("utf-16"), "byte 1 is 0xff"),
]


@pytest.mark.parametrize(("content", "where"), BINARY)
def test_a_file_that_is_no_text_is_told_in_the_same_words_everywhere(
    warren: Command, unchanged: Path, tmp_path: Path, content: bytes, where: str
) -> None:
    """(Pins a fault: "'utf-8' codec can't decode byte 0x89 in position 0: invalid start byte".)"""
    file = tmp_path / "file"
    file.write_bytes(content)
    ran = warren("put", "node", "-f", file, "--data-dir", unchanged)
    assert (ran.code, ran.err) == (1, f"warren-raft: {file} is not UTF-8 text: {where}\n")
    ran = warren("import", file, "--data-dir", unchanged)
    assert (ran.code, ran.err) == (1, f"warren-raft: line 1 of {file} is not UTF-8 text: {where}\n")
    if b"\0" not in content:  # TOML has words of its own for a NUL
        assert f"{file} is not UTF-8 text" in warren("config", "show", "--config", file).err


def test_a_file_may_begin_with_a_byte_order_mark(warren: Command, manager: Path, tmp_path: Path) -> None:
    (tmp_path / "node.json").write_text('{"id": "marked"}', encoding="utf-8-sig")
    assert warren("put", "node", "-f", tmp_path / "node.json", "--data-dir", manager).text
    (tmp_path / "state.jsonl").write_text(GOOD_LINE.replace("good", "marked"), encoding="utf-8-sig")
    assert warren("import", tmp_path / "state.jsonl", "--data-dir", manager).text


def test_a_wrong_entity_is_named_with_its_file_and_field(warren: Command, unchanged: Path, tmp_path: Path) -> None:
    """(Pins a fault: "node.role: …" without the file, of which a script may put hundreds.)"""
    file = tmp_path / "node.json"
    for content, says in (
        ('{"id": "n1", "role": "king"}', "node.role: "),
        (json.dumps({"id": "n1", "hostname": "h" * 2**20}), "node"),
    ):
        file.write_text(content)
        ran = warren("put", "node", "-f", file, "--data-dir", unchanged)
        assert ran.code == 1
        assert ran.err.startswith(f"warren-raft: {file}: {says}")
    file.write_text('{"id": "n1", "role": "king"}')
    error = json.loads(warren("put", "node", "-f", file, "--data-dir", unchanged, "-o", "json").err)["error"]
    assert (error["name"], error["file"]) == ("InvalidEntity", str(file))
    assert (error["kind"], error["field"]) == ("node", "role")
    file.write_text('{"id": "s1", "data": null}')
    ran = warren("put", "secret", "-f", file, "--data-dir", unchanged)
    assert ran.err.startswith(f"warren-raft: {file}: secret.data: is null: write the file with")


# -------------------------------------------------------------------------------------------- control characters

WILD = "\x07bell\x1b[2Jscreen\x9b8mC1\x7f\u202etfel"
TAME = "\\x07bell\\x1b[2Jscreen\\x9b8mC1\\x7f\\u202etfel"


def is_tame(text: str) -> bool:
    return all(line.isprintable() for line in text.splitlines())


def test_names_with_control_characters_are_printed_as_escapes(warren: Command, manager: Path, tmp_path: Path) -> None:
    file = tmp_path / "node.json"
    node = {"id": f"n{WILD}", "hostname": f"two\nlines{WILD}", "labels": {WILD: WILD}}
    file.write_text(json.dumps(node))
    put = warren("put", "node", "-f", file, "--data-dir", manager, "-o", "json").json["revision"]
    saved = tmp_path / f"saved{WILD}"
    for command in (
        ("list", "nodes"),
        ("list", "nodes", "-o", "wide"),
        ("get", "node", node["id"]),
        ("events", "--since", put - 1),
        ("snapshot", "save", saved),
        ("snapshot", "verify", saved),
        ("snapshot", "inspect", saved),
        ("snapshot", "list", saved, "nodes"),
        ("export", tmp_path / f"exported{WILD}"),
        ("doctor", tmp_path / f"doctor{WILD}"),
    ):
        shown = warren(*map(str, command), "--data-dir", manager).text
        assert is_tame(shown)
        assert TAME in shown
    assert f"two\\nlines{TAME}" in warren("get", "node", node["id"], "--data-dir", manager).text
    assert warren("get", "node", node["id"], "--data-dir", manager, "-o", "json").json["hostname"] == node["hostname"]
    warren("delete", "node", node["id"], "--data-dir", manager)


@pytest.mark.parametrize(
    "arguments",
    [
        ("get", "node", WILD),
        ("delete", "node", WILD),
        (WILD,),
        ("list", WILD),
        ("list", "nodes", f"--{WILD}"),
        ("status", "-o", WILD),
        ("put", "node", "-f", WILD),
        ("import", WILD),
        ("snapshot", "inspect", WILD),
        ("describe", WILD),
        ("members", "add", f"{WILD}=127.0.0.1:1"),
        ("members", "add", f"m2={WILD}"),
        ("config", "show", "--config", WILD),
        ("cert", "show", WILD),
        ("cert", "issue", "m1", "--ca", WILD),
        ("status", "--data-dir", WILD),
    ],
)
def test_input_with_control_characters_is_repeated_as_escapes(
    warren: Command, manager: Path, arguments: tuple[str, ...]
) -> None:
    """(Pins a fault: the file `x` and a bell was named with a question mark in a diamond: no file has that name.)"""
    named = () if "--data-dir" in arguments else ("--data-dir", str(manager))
    ran = warren(*arguments, *named)
    assert is_tame(ran.err)
    if ran.code:
        assert TAME in ran.err


def test_no_command_prints_a_text_with_values_but_through_say() -> None:
    """`say` and the tables escape control characters. `click.echo` prints a text as it is."""
    folder = Path(__file__).resolve().parents[2] / "cli"
    found = [
        f"{path.name}:{node.lineno}"
        for path in sorted(folder.glob("*.py"))
        if path.name not in ("tables.py", "main.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "click.echo" and node.args
        if isinstance(node.args[0], ast.JoinedStr)
    ]
    assert found == []


def test_a_ca_over_the_size_limit_is_refused(warren: Command, unchanged: Path, tmp_path: Path) -> None:
    file = tmp_path / "ca"
    file.write_bytes(bytes(1024 * 1024 + 1))
    assert warren("put", "ca", "-f", file, "--data-dir", unchanged).code == 1


# -------------------------------------------------------------------------------------- files for import


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"bucket": "nodess", "key": "n", "value": {"ID": "n"}}', "one of Warren's buckets; did you mean nodes?"),
        ('{"bucket": "nodes", "key": "n", "value": {"ID": "m"}}', "ID"),
        ('{"bucket": "nodes", "key": "n", "value": {"ID": "n", "Rolle": "x"}}', "Rolle"),
        (
            '{"bucket": "nodes", "key": "n", "value": {"ID": "n", "Hostname": 5}}',
            "node.Hostname: must be text, not a number",
        ),
        ('{"bucket": "nodes", "key": "", "value": {"ID": ""}}', "ID"),
        (json.dumps({"bucket": "nodes", "key": TOO_LONG, "value": {"ID": TOO_LONG}}), "511"),
        ('{"bucket": "nodes", "key": "n", "val', "whole JSON object"),
        ('{"bucket": "nodes", "key": "n"}', "just bucket, key, value, as `export` writes it: it has bucket, key"),
        ("not JSON", "whole JSON object: column 1: "),
        ("[]", "JSON object"),
    ],
)
def test_one_bad_line_is_named_and_none_is_stored(
    warren: Command, unchanged: Path, tmp_path: Path, line: str, says: str
) -> None:
    file = tmp_path / "state.jsonl"
    file.write_text(f"{GOOD_LINE}\n\n{line}\n{GOOD_LINE}\n", encoding="utf-8")
    ran = warren("import", file, "--data-dir", unchanged)
    assert ran.code == 1
    assert "line 3 of" in ran.err
    assert says in ran.err
    assert ran.err.startswith(f"warren-raft: line 3 of {file}: ")  # (pins a bug: "record: line 3 of …: record: …")
    assert "record: " not in ran.err
    assert warren("get", "node", "good", "--data-dir", unchanged).code == 1


def test_bytes_that_are_no_text_are_named_by_their_line(warren: Command, unchanged: Path, tmp_path: Path) -> None:
    file = tmp_path / "state.jsonl"
    file.write_bytes(GOOD_LINE.encode() + b"\n\xff\xfe\n")
    ran = warren("import", file, "--data-dir", unchanged)
    assert ran.code == 1
    assert "line 2 of" in ran.err


def test_an_entity_over_the_size_limit_is_named_before_anything_is_stored(
    warren: Command, unchanged: Path, tmp_path: Path
) -> None:
    """The line is good JSON and a good record, but too large. That must not be found out half-way."""
    file = tmp_path / "state.jsonl"
    large = {"bucket": "nodes", "key": "n", "value": {"ID": "n", "Hostname": "h" * (1024 * 1024)}}
    file.write_text(f"{GOOD_LINE}\n{json.dumps(large)}\n", encoding="utf-8")
    ran = warren("import", file, "--data-dir", unchanged)
    assert ran.code == 1
    assert "line 2 of" in ran.err
    assert warren("get", "node", "good", "--data-dir", unchanged).code == 1


def test_an_empty_file_is_told_of(warren: Command, unchanged: Path, tmp_path: Path) -> None:
    file = tmp_path / "state.jsonl"
    file.write_text("\n\n")
    ran = warren("import", file, "--data-dir", unchanged)
    assert ran.code == 1
    assert "holds no record" in ran.err


def test_a_damaged_database_of_a_go_warren_is_one_clear_error(warren: Command, unchanged: Path, tmp_path: Path) -> None:
    file = tmp_path / "warren.db"
    file.write_bytes(struct.pack("<QHHI", 0, 4, 0, 0) + struct.pack("<II", 0xED0CDAED, 2) + bytes(4096 - 24))
    ran = warren("import", file, "--data-dir", unchanged)
    assert (ran.code, ran.out) == (3, "")
    assert ran.err == (f"warren-raft: {file}: is not a sound bbolt database: neither of its two meta pages is sound\n")
    file.write_bytes(gzip.decompress(WARREN_DB.read_bytes())[:100_000])
    ran = warren("import", file, "--data-dir", unchanged)
    assert ran.code == 3
    assert ran.err == (
        f"warren-raft: {file}: is not a sound bbolt database: it is shorter than its pages, 100000 of 188416 bytes: "
        "it was truncated, perhaps by a copy that was cut short; copy the whole file again, while Warren is stopped\n"
    )


def test_a_bad_record_of_a_database_is_named(warren: Command, unchanged: Path, tmp_path: Path) -> None:
    file = tmp_path / "warren.db"
    file.write_bytes(gzip.decompress(WARREN_DB.read_bytes()).replace(b'"Hostname"', b'"HostName"'))
    ran = warren("import", file, "--data-dir", unchanged)
    assert ran.code == 3
    assert ran.err.startswith(f"warren-raft: {file}, record b'node-")
    assert "of bucket 'nodes': node.HostName: there is no such field; did you mean Hostname?" in ran.err


def test_a_bad_record_of_an_older_state_comes_with_the_reason(warren: Command, unchanged: Path, tmp_path: Path) -> None:
    """The records are those of the transaction before, because the newest meta page is damaged."""
    file = tmp_path / "warren.db"
    data = bytearray(gzip.decompress(WARREN_DB.read_bytes()).replace(b'"Hostname"', b'"HostName"'))
    data[4096 + 20] ^= 1
    file.write_bytes(data)
    ran = warren("import", file, "--data-dir", unchanged)
    assert ran.code == 3
    assert ran.err.startswith(f"warren-raft: {file}, record b'node-")
    assert "one of the two meta pages is damaged, so the last change that Warren made may be missing" in ran.err


@pytest.mark.parametrize(
    ("place", "first_bytes", "says"),
    [
        (0, b"\x1f\x8b\x08", "is compressed: decompress it with gunzip first"),
        (0, b"PK\x03\x04", "is a zip archive"),
        (257, b"ustar", "is a tar archive"),
        (16, b"\xde\xc0\xef\xbe", "is a snapshot, or the state of a manager: use `warren-raft snapshot restore`"),
        (0, b"SQLite format 3\0", "is a database of SQLite"),
    ],
)
def test_a_file_of_another_form_is_named_as_that(
    warren: Command, unchanged: Path, tmp_path: Path, place: int, first_bytes: bytes, says: str
) -> None:
    file = tmp_path / "warren.db"
    file.write_bytes(bytes(place) + first_bytes + bytes(5000))
    ran = warren("import", file, "--data-dir", unchanged)
    assert ran.code == 1
    assert f"{file} {says}" in ran.err


def test_the_database_of_a_running_warren_is_in_use(warren: Command, unchanged: Path, tmp_path: Path) -> None:
    file = tmp_path / "warren.db"
    file.write_bytes(gzip.decompress(WARREN_DB.read_bytes()))
    with file.open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        ran = warren("import", file, "--data-dir", unchanged)
    assert ran.code == 5
    assert "is open in a running program: stop Warren, or give a copy of the file" in ran.err


def test_export_takes_one_file(warren: Command, unchanged: Path, tmp_path: Path) -> None:
    for names in ((), (tmp_path / "a", "--warren-db", tmp_path / "b")):
        ran = warren("export", *names, "--data-dir", unchanged)
        assert ran.code == 2
        assert "name one file: FILE, or --warren-db FILE" in ran.err
    for name in ("-", "/dev/null", "/dev/stdout"):
        ran = warren("export", "--warren-db", name, "--data-dir", unchanged)
        assert ran.code == 2
        assert "a database cannot be written to a pipe or a device" in ran.err


# ----------------------------------------------------------------------------- directories and managers


@pytest.mark.parametrize(
    "command",
    [("recover", "--yes"), ("serve", *M1), ("status",), ("list", "nodes"), ("describe",), ("members", "list")],
)
@pytest.mark.parametrize("is_before", [True, False])
def test_an_empty_data_dir_does_not_mean_the_one_of_the_environment(
    warren: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], is_before: bool
) -> None:
    """An empty shell variable: `recover --data-dir "$OLD"` reached another manager's data."""
    monkeypatch.setenv("WARREN_DATA_DIR", str(tmp_path / "m1"))
    option = ("--data-dir", "")
    ran = warren(*option, *command) if is_before else warren(*command, *option)
    assert ran.code == 2
    assert "--data-dir is empty" in ran.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [("status",), ("delete", "node", "n"), ("members", "list"), ("leader", "transfer")])
def test_no_manager_running_is_told_with_the_directory(
    warren: Command, tmp_path: Path, command: tuple[str, ...]
) -> None:
    for directory, problem in (
        (tmp_path, "the directory holds no manager's data"),
        (tmp_path / "none", "there is no such directory"),
    ):
        ran = warren(*command, "--data-dir", directory)
        assert ran.code == 1
        assert f"no manager is running on {directory}: {problem}; name a manager's data directory" in ran.err
    (tmp_path / "log").mkdir()
    ran = warren(*command, "--data-dir", tmp_path)
    assert f"no manager is running on {tmp_path}; start it with: warren-raft serve" in ran.err


@pytest.mark.parametrize("command", [("get", "node", "n"), ("list", "nodes"), ("export", "-")])
def test_a_directory_that_never_had_a_manager_is_told_and_left_alone(
    warren: Command, tmp_path: Path, command: tuple[str, ...]
) -> None:
    for directory, problem in (
        (tmp_path, "the directory holds no manager's data"),
        (tmp_path / "none", "there is no such directory"),
    ):
        ran = warren(*command, "--data-dir", directory)
        assert ran.code == 4
        assert f"{directory} cannot be read: {problem}" in ran.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command",
    [
        ("status",),
        ("get", "node", "n"),
        ("export", "-"),
        ("members", "list"),
        ("snapshot", "save", "s.mdb"),
        ("snapshot", "restore", "s.mdb", "--node-id", "m1", "--member", "m1=127.0.0.1:1"),
        ("recover", "--yes"),
        ("serve", *M1),
    ],
)
def test_a_file_in_place_of_the_directory_is_named(warren: Command, tmp_path: Path, command: tuple[str, ...]) -> None:
    """(Pins a bug: the error said that DIR/lock is no directory, or how to start a manager there.)"""
    (tmp_path / "file").write_text("precious")
    ran = warren(*command, "--data-dir", tmp_path / "file")
    assert ran.code == 2
    assert f"{tmp_path / 'file'} is a file; --data-dir must name a directory" in ran.err
    assert (tmp_path / "file").read_text() == "precious"


def test_a_file_in_place_of_the_directory_to_describe_is_named(warren: Command, tmp_path: Path) -> None:
    """(Pins a bug: "FILE/lock: Not a directory", exit code 1.)"""
    (tmp_path / "file").touch()
    ran = warren("describe", tmp_path / "file")
    assert (ran.code, f"{tmp_path / 'file'} is a file; DIR must name a directory" in ran.err) == (2, True)


def serve(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs a `serve` that is expected to refuse; it must end by itself."""
    command = [sys.executable, "-m", "warren_raft_cli", "serve", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def refused(ran: subprocess.CompletedProcess[str]) -> str:
    """The one line of a `serve` that refused (its log may come before)."""
    assert "ready" not in ran.stdout
    assert "Traceback" not in ran.stderr
    lines = [line for line in ran.stderr.splitlines() if not line.startswith("time=")]
    (line,) = lines
    assert line.startswith("warren-raft: ")
    return line


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (
            ("--listen", "127.0.0.1:1", "--member", "m1=127.0.0.1:1"),
            2,
            ": missing: --node-id ID; there is no directory",
        ),
        (("--node-id", "m1", "--member", "m1=127.0.0.1:1"), 2, ": missing: --listen HOST:PORT; there is no directory"),
        (("--node-id", "m1", "--listen", "127.0.0.1:1"), 2, ": missing: --member ID=HOST:PORT (once for each"),
        ((), 2, ": missing: --node-id ID, --listen HOST:PORT, --member ID=HOST:PORT (once for each initial member); "),
        ((), 2, "for instance: warren-raft serve --node-id m1 --listen 127.0.0.1:7946 --member m1=127.0.0.1:7946 "),
        (("--join", "/no/such.join"), 2, "there is no join file /no/such.join: copy it here from the host where"),
        (
            ("--node-id", "m/1", "--listen", "127.0.0.1:1", "--member", "m1=127.0.0.1:1"),
            2,
            "warren-raft: --node-id: 'm/1' is not a ",
        ),
        (
            ("--node-id", "m1", "--listen", "127.0.0.1:1", "--member", "m2=127.0.0.1:2"),
            2,
            "warren-raft: --member: must contain",
        ),
        (("--node-id", "m1", "--listen", "127.0.0.1:1", "--member", "m1=127.0.0.1:2"), 2, "listens on"),
        (
            ("--node-id", "m1", "--listen", "127.0.0.1:1", "--member", "m1=127.0.0.1:1", "--member", "m1=127.0.0.1:2"),
            2,
            "m1 has two addresses",
        ),
        (
            ("--node-id", "m1", "--listen", "0.0.0.0:1", "--member", "m1=127.0.0.1:1"),
            2,
            "other managers cannot reach 0.0.0.0",
        ),
        (("--node-id", "m1", "--listen", "192.0.2.1:1", "--member", "m1=192.0.2.1:1"), 4, "cert issue m1=192.0.2.1:1"),
        ((*M1, "--backup-every", "1h"), 2, "--backup-every needs --backup-dir"),
        ((*M1, "--backup-keep", "7"), 2, "warren-raft: --backup-keep: needs backup_dir"),
        (("--config", "/no/such/file.toml"), 2, "there is no directory /no/such: correct the name"),
    ],
)
def test_a_manager_with_wrong_settings_does_not_start(
    tmp_path: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    ran = serve(*arguments, "--data-dir", tmp_path / "m1")
    assert ran.returncode == code
    assert says in refused(ran)
    assert not (tmp_path / "m1").exists()


def test_a_wrong_name_in_the_file_is_told_before_the_settings_that_are_missing(tmp_path: Path) -> None:
    (tmp_path / "m1.toml").write_text('node_id = "m1"\nlistn = "127.0.0.1:1"\n')
    says = f"config.listn: there is no such setting; did you mean listen? (in {tmp_path / 'm1.toml'})"
    assert says in refused(serve("--config", tmp_path / "m1.toml", "--data-dir", tmp_path / "m1"))


def test_a_manager_without_a_directory_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WARREN_DATA_DIR", raising=False)
    ran = serve("--node-id", "m1", "--listen", "127.0.0.1:1", "--member", "m1=127.0.0.1:1")
    assert ran.returncode == 2
    assert "missing: --data-dir DIR (or set WARREN_DATA_DIR); for instance --data-dir data/m1 (see" in refused(ran)


def arguments_of(node_id: str, address: str, data_dir: Path) -> list[str]:
    member = f"{node_id}={address}"
    return ["--node-id", node_id, "--listen", address, "--member", member, "--data-dir", str(data_dir)]


def test_a_port_in_use_is_exit_code_5(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        ran = serve(*arguments_of("m1", address, tmp_path / "m1"))
    assert ran.returncode == 5
    assert address.partition(":")[2] in refused(ran)
    assert not (tmp_path / "m1").exists()  # (pins a bug: the next start, with another id, was refused)


def test_an_address_of_another_host_is_named_and_leaves_no_directory(tmp_path: Path) -> None:
    address = "192.0.2.1:7946"  # TEST-NET-1: no host has it
    ran = serve(*arguments_of("m1", address, tmp_path / "m1"), "--insecure-plaintext", "--bootstrap")
    assert ran.returncode == 1
    assert (
        "cannot listen on 192.0.2.1:7946: 192.0.2.1 is not an address of this host; if the manager moved, give its new "
        "address with --listen HOST:PORT, and see docs/recovery.md (Move one manager)"
    ) in refused(ran)
    assert not (tmp_path / "m1").exists()


def test_a_directory_in_use_is_exit_code_5(unchanged: Path) -> None:
    """(Pins a bug: "in use by another store or process", without the process and the next step.)"""
    ran = serve(*arguments_of("m1", free_addresses(1)[0], unchanged))
    assert ran.returncode == 5
    assert re.search(rf"{unchanged} is in use by process \d+ \(\w.*\): stop it first, or name another", refused(ran))


def test_another_nodes_directory_is_exit_code_4(tmp_path: Path, start_manager: StartManager, warren: Command) -> None:
    address = free_addresses(1)[0]
    first = start_manager(tmp_path / "m1", "m1", {"m1": address})
    first.wait_ready()
    digest = warren("status", "--data-dir", first.data_dir, "-o", "json").json["digest"]
    assert first.stop() == 0
    before = warren("describe", first.data_dir, "-o", "json").json
    ran = serve(*arguments_of("m2", address, first.data_dir))
    assert ran.returncode == 4
    assert "m1" in refused(ran)
    assert warren("describe", first.data_dir, "-o", "json").json == before
    again = start_manager(tmp_path / "m1", "m1", {"m1": address})
    again.wait_ready()
    assert warren("status", "--data-dir", again.data_dir, "-o", "json").json["digest"] == digest


def test_a_write_without_a_quorum_is_exit_code_6_at_its_deadline(
    tmp_path: Path, start_manager: StartManager, warren: Command
) -> None:
    a, b, c = free_addresses(3)
    process = start_manager(tmp_path / "m1", "m1", {"m1": a, "m2": b, "m3": c})
    process.wait_socket()
    common = ("--timeout", "0.3", "--data-dir", process.data_dir)
    file = tmp_path / "state.jsonl"
    file.write_text(GOOD_LINE)
    for command in (("delete", "node", "n"), ("import", file), ("leader", "transfer"), ("members", "remove", "m3")):
        ran = warren(*command, *common)
        assert ran.code == 6, ran.err
        if command[0] in ("delete", "import"):
            assert ran.err.endswith("before the deadline: warren-raft status shows the reason; nothing was changed\n")
    status = warren("status", "--data-dir", process.data_dir, "-o", "json").json
    assert status["has_quorum"] is False
    assert status["revision"] == 0
    assert process.stop() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: only root can read another user's files")
def test_root_does_not_read_another_users_stopped_manager(
    tmp_path: Path, start_manager: StartManager, warren: Command
) -> None:
    """It would leave root's lock files behind, and that user's manager could not open them."""
    process = start_manager(tmp_path / "m1", "m1", {"m1": free_addresses(1)[0]})
    process.wait_ready()
    assert process.stop() == 0
    for path in [process.data_dir, *process.data_dir.rglob("*")]:
        shutil.chown(path, NOBODY)
    files = {path: path.stat().st_uid for path in process.data_dir.rglob("*")}
    for command in (("get", "node", "n"), ("list", "nodes"), ("export", "-")):
        ran = warren(*command, "--data-dir", process.data_dir)
        assert ran.code == 4
        assert "sudo -u" in ran.err or "user" in ran.err
    assert {path: path.stat().st_uid for path in process.data_dir.rglob("*")} == files


# ------------------------------------------------------------------------------------------- the output


@pytest.fixture(scope="module")
def saved(manager: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot of the manager."""
    file = tmp_path_factory.mktemp("saved") / "saved.snapshot"
    assert in_shell(f"snapshot save {file} --data-dir {manager}").returncode == 0
    return file


SHOWING = (
    *("list nodes", "status -o json", "get node shown -o json", "get ca --show", "events -o json", "watch --since 0"),
    *("members list", "explain", "top --once", "config show", "completion bash", "cert show", "export -", "doctor -"),
    *("snapshot inspect SAVED", "snapshot list SAVED nodes", "snapshot get SAVED node shown"),
    "snapshot export SAVED -o -",
)
"""Commands whose result is their output, with a manager that holds a node `shown` and a CA."""


@pytest.fixture(scope="module")
def shown(manager: Path, saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Completes a command of SHOWING."""
    directory = tmp_path_factory.mktemp("shown")
    (directory / "node.json").write_text('{"id": "shown"}')
    (directory / "ca").write_bytes(b"ca")
    for put in (f"put node -f {directory / 'node.json'}", f"put ca -f {directory / 'ca'}"):
        assert in_shell(f"{put} --data-dir {manager}").returncode == 0
    saved.unlink()
    assert in_shell(f"snapshot save {saved} --data-dir {manager}").returncode == 0
    return lambda command: f"{command.replace('SAVED', str(saved))} --data-dir {manager}"


def unread(command: str, *streams: str) -> tuple[int, str]:
    """The exit code of a command whose stdout (or these streams) is a pipe that nobody reads any more; its stderr."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "warren_raft_cli", *command.split()],
            stdout=writing if not streams or "stdout" in streams else subprocess.PIPE,
            stderr=writing if "stderr" in streams else subprocess.PIPE,
            text=True,
            timeout=300,
            check=False,
        )
    finally:
        os.close(writing)
    return done.returncode, done.stderr or ""


@pytest.mark.parametrize("command", [*SHOWING, "export /dev/stdout", "snapshot save /dev/stdout", "put node -f NODE"])
def test_an_output_that_nobody_reads_ends_the_command_as_sigpipe_does(
    shown: Callable[[str], str], tmp_path: Path, command: str
) -> None:
    """(Pins a bug: exit code 1, as for a failure.)"""
    (tmp_path / "node.json").write_text('{"id": "unread"}')
    assert unread(shown(command.replace("NODE", str(tmp_path / "node.json")))) == (141, "")


@pytest.mark.parametrize("command", ["--help", "list --help", "--version"])
def test_a_help_that_nobody_reads_ends_as_sigpipe_does(command: str) -> None:
    assert unread(command) == (141, "")


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("get node none", 1),
        ("get node none -o json", 1),
        ("get nobody none", 2),
        ("", 2),
        ("leader transfer m9", 4),
        ("describe", 5),
        ("delete node none", 0),
    ],
)
def test_an_error_that_nobody_reads_keeps_its_exit_code(manager: Path, command: str, code: int) -> None:
    """(Pins a fault: 141, so a script took a missing entity for an output that its reader had left.)"""
    directory = f" --data-dir {manager}" if command else ""
    assert unread(command + directory, "stderr") == (code, "")
    if code:
        assert unread(command + directory, "stdout", "stderr") == (code, "")


def test_a_verdict_that_nobody_reads_keeps_its_exit_code(manager: Path, tmp_path: Path) -> None:
    """(Pins a fault: `status --check | head -0` was 141 for a healthy cluster.)"""
    for more in ("", " --cluster", " -o json"):
        assert unread(f"status --check{more} --data-dir {manager}") == (0, "")
    code, told = unread(f"status --check --data-dir {tmp_path}")
    assert (code, "no manager is running" in told) == (1, True)


@pytest.mark.parametrize("command", ["export FIFO", "snapshot save FIFO", "snapshot export SAVED -o FIFO"])
def test_a_reader_that_leaves_a_named_fifo_is_an_error(
    shown: Callable[[str], str], tmp_path: Path, command: str
) -> None:
    """(Pins a fault: 141 without a word, although the operator had named a file, and its content was lost.)"""
    os.mkfifo(tmp_path / "fifo")
    arguments = shown(command.replace("FIFO", str(tmp_path / "fifo"))).split()
    with subprocess.Popen(
        [sys.executable, "-m", "warren_raft_cli", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        os.close(os.open(tmp_path / "fifo", os.O_RDONLY))  # waits until the command has opened it
        out, told = process.communicate(timeout=300)
    assert (process.returncode, out, told) == (1, "", f"warren-raft: {tmp_path / 'fifo'}: its reader has ended\n")


def test_a_pager_that_ends_early_gets_the_first_lines(manager: Path, tmp_path: Path) -> None:
    lines = [json.dumps({"bucket": "nodes", "key": f"n{each}", "value": {"ID": f"n{each}"}}) for each in range(2_000)]
    (tmp_path / "state.jsonl").write_text("\n".join(lines))
    assert in_shell(f"import {tmp_path / 'state.jsonl'} --data-dir {manager}").returncode == 0
    piped = f"set -o pipefail; {sys.executable} -m warren_raft_cli list nodes --data-dir {manager} | head -1"
    done = subprocess.run(["bash", "-c", piped], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout.split()[:2], done.stderr) == (141, ["ID", "ROLE"], "")


def in_shell(command: str) -> subprocess.CompletedProcess[str]:
    """A command whose streams were closed by the shell before it began."""
    command = f"{sys.executable} -m warren_raft_cli {command}"
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("command", ["status --check", "put node -f node.json", "delete node none"])
def test_a_command_that_does_something_works_with_closed_output(
    manager: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """(Pins a bug: "internal error, AttributeError: 'NoneType' object has no attribute 'isatty'".)"""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "node.json").write_text('{"id": "node-of-closed-output"}')
    for streams in (">&-", ">&- 2>&-", "<&- >&- 2>&-"):
        done = in_shell(f"{command} --data-dir {manager} {streams}")
        assert (done.returncode, done.stderr) == (0, "" if "2>&-" in streams or "none" not in command else NOTHING)


@pytest.mark.parametrize("command", ["put node -f -", "put ca -f -", "import -"])
def test_closed_input_is_one_line(manager: Path, command: str) -> None:
    """(Pins a bug: "internal error, RuntimeError: Was not able to determine binary stream for sys.stdin".)"""
    done = in_shell(f"{command} --data-dir {manager} <&-")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "stdin is closed: name a file" in done.stderr


@pytest.mark.parametrize("command", [*SHOWING, "top", "watch"])
def test_closed_output_is_an_error_for_a_command_that_shows_something(
    shown: Callable[[str], str], command: str
) -> None:
    """(Pins two bugs: "stdout: Bad file descriptor", and exit code 0 for a list that went nowhere.)"""
    done = in_shell(f"{shown(command)} >&-")
    text = "stdout is closed: send the output to a file or a pipe"
    told = json.loads(done.stderr)["error"]["text"] if "json" in command else done.stderr
    assert (done.returncode, told) == (1, text if "json" in command else f"warren-raft: {text}\n")


@pytest.mark.parametrize(
    "command", ["export NODE", "snapshot save NODE", "snapshot export SAVED -o NODE", "doctor NODE"]
)
def test_closed_output_is_an_error_for_its_own_name(shown: Callable[[str], str], command: str) -> None:
    """(Pins a bug: "Bad file descriptor", without a name.)"""
    for node, redirected in (("/dev/stdout", ">&-"), ("/dev/fd/7", "7>&-")):
        done = in_shell(f"{shown(command.replace('NODE', node))} {redirected}")
        text = f"{node} is closed: send the output to a file or a pipe"
        assert (done.returncode, done.stderr) == (1, f"warren-raft: {text}\n")


def test_an_import_works_with_closed_messages(manager: Path, tmp_path: Path) -> None:
    (tmp_path / "state.jsonl").write_text(GOOD_LINE)
    assert in_shell(f"import {tmp_path / 'state.jsonl'} --data-dir {manager} 2>&-").returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", ["list nodes -o json", "list nodes", "status", "export -"])
def test_no_room_for_the_output_is_exit_code_7(
    warren: Command, manager: Path, tmp_path: Path, arguments: str, unbuffered: str
) -> None:
    """(Pins a fault: without PYTHONUNBUFFERED it was 120, that of Python for an output that fails at its end.)"""
    (tmp_path / "node.json").write_text('{"id": "one-at-least"}')
    assert warren("put", "node", "-f", tmp_path / "node.json", "--data-dir", manager).text
    command = f"{sys.executable} -m warren_raft_cli {arguments} --data-dir {manager} >/dev/full"
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 7
    text = "the output could not be written to stdout: No space left on device"
    if arguments.endswith("json"):
        assert json.loads(done.stderr)["error"]["text"] == text
    else:
        assert done.stderr == f"warren-raft: {text}\n"


def test_base64_of_a_secret_is_not_quoted_in_an_error(warren: Command, unchanged: Path, tmp_path: Path) -> None:
    file = tmp_path / "secret.json"
    value: dict[str, Any] = {"id": "s", "name": "s", "data": base64.b64encode(b"hush").decode() + "!"}
    file.write_text(json.dumps(value))
    ran = warren("put", "secret", "-f", file, "--data-dir", unchanged)
    assert ran.code == 1
    assert value["data"] not in ran.err


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_output_that_breaks_off_is_an_error(tmp_path: Path, unbuffered: str) -> None:
    """(Pins a fault: with PYTHONUNBUFFERED, which images of containers often set, a part of the output was lost, with
    exit code 0.)"""
    with wr.LocalStore(tmp_path / "state") as store:
        with store.batch() as batch:
            for number in range(1000):
                batch.create_container(wr.Container(id=f"con-{number}", image="image" * 40))
        store.snapshot(tmp_path / "file.snapshot")
    shown = f"{sys.executable} -m warren_raft_cli snapshot list {tmp_path}/file.snapshot containers -o json"
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}

    def code_of(script: str) -> int:
        done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, check=False, timeout=60)
        return done.returncode

    assert code_of(f"set -o pipefail; {shown} | head -c 10") == 141
    assert code_of(f"ulimit -f 100; {shown} > {tmp_path}/cut.json") in (1, 7)
    assert (tmp_path / "cut.json").stat().st_size == 100 * 1024
    assert code_of(f"{shown} > {tmp_path}/whole.json") == 0
    assert len(json.loads((tmp_path / "whole.json").read_text())) == 1000
