"""The promise: `watch` prints each change of a real manager while it happens, and `events` prints the kept changes, as
lines and as JSON, without secrets unless they are asked for."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cli_support import Command, StartManager, free_addresses


def put(warren: Command, manager: Path, kind: str, tmp_path: Path, entity: dict[str, Any]) -> int:
    file = tmp_path / "entity.json"
    file.write_text(json.dumps(entity), encoding="utf-8")
    revision: int = warren("put", kind, "-f", file, "--data-dir", manager, "-o", "json").json["revision"]
    return revision


def test_changes_are_printed_while_they_happen(warren: Command, manager: Path, tmp_path: Path) -> None:
    begin = put(warren, manager, "node", tmp_path, {"id": "watch-n1"})
    arguments = ["watch", "--since", str(begin), "--node", "watch-n1", "-o", "json", "--data-dir", str(manager)]
    watching = subprocess.Popen(
        [sys.executable, "-m", "warren_raft_cli", *arguments], stdout=subprocess.PIPE, text=True
    )
    try:
        assert watching.stdout is not None
        revision = put(warren, manager, "container", tmp_path, {"id": "watch-c", "node_id": "watch-n1"})
        event = json.loads(watching.stdout.readline())
        assert event.pop("entity")["node_id"] == "watch-n1"
        assert event == {"revision": revision, "operation": "put", "kind": "container", "id": "watch-c", "index": 0}
        put(warren, manager, "container", tmp_path, {"id": "watch-other", "node_id": "watch-n2"})
        put(warren, manager, "container", tmp_path, {"id": "watch-c", "node_id": "watch-n2"})
        assert json.loads(watching.stdout.readline())["operation"] == "left"
        watching.terminate()
        assert watching.wait(60) == -signal.SIGTERM
        assert watching.stdout.read() == ""
    finally:
        watching.kill()
        watching.communicate()


def test_watch_says_that_a_revision_is_still_to_come(manager: Path) -> None:
    arguments = ["watch", "--since", "999999999", "--data-dir", str(manager)]
    watching = subprocess.Popen(
        [sys.executable, "-m", "warren_raft_cli", *arguments], stderr=subprocess.PIPE, text=True
    )
    stopping = threading.Timer(60, watching.kill)  # it prints nothing more
    stopping.start()
    try:
        assert watching.stderr is not None
        assert watching.stderr.readline().startswith("warren-raft: nothing after revision 999999999 yet: the latest is")
    finally:
        stopping.cancel()
        watching.kill()
        watching.communicate()


def test_events_prints_what_is_kept_and_ends(warren: Command, manager: Path, tmp_path: Path) -> None:
    begin = put(warren, manager, "service", tmp_path, {"id": "watch-s"})
    put(warren, manager, "secret", tmp_path, {"id": "watch-secret", "data": "c2VjcmV0"})
    warren("delete", "service", "watch-s", "--data-dir", manager)
    lines = warren("events", "--since", str(begin), "--data-dir", manager).text.splitlines()
    assert [[line.split()[0], *line.split()[2:]] for line in lines] == [
        [str(begin + 1), "m1", "put", "secret", "watch-secret"],
        [str(begin + 2), "m1", "delete", "service", "watch-s"],
    ]
    later = warren("events", "--since", "999999999", "--data-dir", manager)
    says = f"nothing after revision 999999999 yet: the latest is {begin + 2}\n"
    assert (later.code, later.out, later.err) == (0, "", f"warren-raft: {says}")
    assert warren("events", "--since", str(begin + 2), "--data-dir", manager).err == ""
    everything = warren("events", "--data-dir", manager).text.splitlines()
    assert everything[-2:] == lines
    assert len(everything) >= begin + 2
    for more, data in (((), None), (("--show",), "c2VjcmV0")):
        ran = warren("events", "--since", str(begin), "--kind", "secrets", "-o", "json", *more, "--data-dir", manager)
        assert json.loads(ran.out)["entity"]["data"] == data


def test_events_says_when_and_by_which_manager_and_process(
    warren: Command, start_manager: StartManager, tmp_path: Path
) -> None:
    directory, members = tmp_path / "m1", {"m1": free_addresses(1)[0]}
    before = datetime.now(UTC)
    sessions = []
    for revision in (1, 2):  # by two processes
        process = start_manager(directory, "m1", members, "--bootstrap")
        process.wait_ready()
        assert put(warren, directory, "service", tmp_path, {"id": "s", "replicas": revision}) == revision
        event = json.loads(warren("events", "--since", revision - 1, "-o", "json", "--data-dir", directory).out)
        assert before <= datetime.fromisoformat(event["applied_at"]) <= datetime.now(UTC)
        assert (event["node"], event["revision"]) == ("m1", revision)
        sessions.append(event["session"])
        process.stop()
    assert len(set(sessions)) == 2
    wide = warren("events", "-o", "wide", "--data-dir", directory).text.splitlines()
    assert [line.split()[3] for line in wide] == sessions
    assert len(wide[0].split()[1]) == len("2026-11-27T15:13:06.123456Z")
    (directory / "origins").unlink()
    (line,) = warren("events", "--since", "1", "--data-dir", directory).text.splitlines()
    assert line.split() == ["2", "-", "-", "put", "service", "s"]


def test_wrong_arguments_of_watch(warren: Command, manager: Path) -> None:
    for wrong in (["--since", "-1"], ["--kind", "sevrice"], ["--node", "n", "--kind", "node"]):
        assert warren("watch", *wrong, "--data-dir", manager).code == 2


def test_get_goes_back_to_an_earlier_revision(warren: Command, manager: Path, tmp_path: Path) -> None:
    begin = put(warren, manager, "service", tmp_path, {"id": "past-s", "replicas": 1})
    put(warren, manager, "service", tmp_path, {"id": "past-s", "replicas": 2})
    warren("delete", "service", "past-s", "--data-dir", manager)
    secret = put(warren, manager, "secret", tmp_path, {"id": "past-x", "data": "c2VjcmV0"})
    for at, replicas in ((begin, 1), (begin + 1, 2)):
        found = warren("get", "service", "past-s", "--at", str(at), "-o", "json", "--data-dir", manager).json
        assert (found["replicas"], found["revision"]) == (replicas, at)
    for at, name in ((begin - 1, "NotFound"), (begin + 2, "NotFound"), (secret + 1, "NotKept")):
        ran = warren("get", "service", "past-s", "--at", str(at), "-o", "json", "--data-dir", manager)
        error = json.loads(ran.err)["error"]
        assert (ran.code, error["name"]) == (1, name)
    assert error["newest"] == secret
    assert f"name one from 0 to {secret}" in error["text"]
    for more, data in (((), None), (("--show",), "c2VjcmV0")):
        ran = warren("get", "secret", "past-x", "--at", str(secret), *more, "-o", "json", "--data-dir", manager)
        assert ran.json["data"] == data


def test_a_revision_that_is_not_kept_any_more_is_told_at_once_with_the_oldest_that_is(
    warren: Command, manager: Path, tmp_path: Path
) -> None:
    """A restore keeps no history. (Pins a fault: "changes were missed", without a revision that works.)"""
    put(warren, manager, "node", tmp_path, {"id": "kept"})
    newest = put(warren, manager, "node", tmp_path, {"id": "kept", "hostname": "changed"})
    assert warren("snapshot", "save", tmp_path / "saved", "--data-dir", manager).text
    restored = tmp_path / "m1"
    member = ("--node-id", "m1", "--member", "m1=127.0.0.1:7946")
    assert warren("snapshot", "restore", tmp_path / "saved", *member, "--data-dir", restored).text
    oldest = newest + 1_000_000_000
    for command in ("watch", "events"):
        for more in ((), ("--kind", "service")):
            ran = warren(command, "--since", newest - 1, *more, "--data-dir", restored)
            assert (ran.code, ran.err) == (
                1,
                f"warren-raft: the changes after revision {newest - 1} are not all kept any more, those after revision "
                f"{oldest} are. To see these, type --since {oldest}. To miss nothing, read everything with "
                f"`warren-raft list` or `warren-raft export`, then watch with --since {oldest}\n",
            )
        ran = warren(command, "--since", newest - 1, "-o", "json", "--data-dir", restored)
        error = json.loads(ran.err)["error"]
        assert (error["name"], error["resume_from"]) == ("WatchLost", oldest)
        assert (error["since"], error["oldest"]) == (newest - 1, oldest)
    assert warren("events", "--since", oldest, "--data-dir", restored).text == ""
