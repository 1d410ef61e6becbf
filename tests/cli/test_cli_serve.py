"""The promise: `serve` says when it can serve, ends cleanly on a signal and with an exit code of its own when it
stops by itself; the command line changes the members and the leader of a cluster of three.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from cli_support import EXIT_SECONDS, READY_SECONDS, Command, ManagerProcess, StartManager, free_addresses

import warren_raft as wr
from tests.busy_machine import in_time
from warren_raft.disk import last_failure
from warren_raft.errors import RefusedForSafety
from warren_raft.raft.way_back import way_back
from warren_raft.support.command import SETTING_VARIABLES
from warren_raft_cli import serve, signals
from warren_raft_cli.common import DurationType
from warren_raft_cli.serve import KeyValueFormatter
from warren_raft_cli.settings import variable_of

LOG_LINE = re.compile(
    r'time=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z level=\w+ logger=[\w.]+ message="[^"]*"'
    r'( [a-z_]+=("([^"\\]|\\.)*"|[^ "]+))*'
)


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    """Wait until the condition returns a true value, and return that value. Fails at a deadline."""
    deadline = time.monotonic() + READY_SECONDS
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited too long for {what}"
        time.sleep(0.02)
    return value


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(tmp_path: Path, start_manager: StartManager, number: signal.Signals) -> None:
    address = free_addresses(1)[0]
    process = start_manager(tmp_path / "m1", "m1", {"m1": address})
    assert process.wait_ready() == f"ready node_id=m1 listen={address} leader=m1"
    process.process.send_signal(number)
    assert process.process.wait(EXIT_SECONDS) == 0
    assert not (tmp_path / "m1" / "admin.sock").exists()
    lines = process.log.read_text().splitlines()
    for line in lines:
        assert LOG_LINE.fullmatch(line), line
    told = [line.partition("message=")[2] for line in lines]
    (started,) = [line for line in told if line.startswith('"manager starting" ')]
    assert f" node=m1 version={wr.__version__} directory={tmp_path / 'm1'} listen={address} cluster=none " in started
    assert any(line.startswith('"leader changed" node=m1 leader=m1 term=1 reason=start ') for line in told), told
    assert f'"stop requested" node=m1 signal={signal.Signals(number).name}' in told
    assert told[-1].startswith('"manager stopped" node=m1 reason=closed term=1 applied_index=')


def test_a_signal_ends_one_that_never_got_ready(tmp_path: Path, start_manager: StartManager) -> None:
    """Without a quorum it waits for any time, until a signal ends it."""
    a, b, c = free_addresses(3)
    process = start_manager(tmp_path / "m1", "m1", {"m1": a, "m2": b, "m3": c})
    process.wait_socket()
    assert process.stop() == 0
    assert process.process.stdout is not None
    assert process.process.stdout.read() == b""


def test_a_stdout_that_nobody_reads_does_not_end_it(tmp_path: Path, start_manager: StartManager) -> None:
    """A terminal was closed before the manager was ready, or the reader of a pipe ended. (Pins a bug: the manager died
    without a message.)"""
    address = free_addresses(1)[0]
    process = start_manager(tmp_path / "m1", "m1", {"m1": address})
    assert process.process.stdout is not None
    process.process.stdout.close()
    wait_until(lambda: '"ready line not written" node=m1 text="[Errno 32]' in process.log.read_text(), "the line")
    process.wait_socket()
    assert process.stop() == 0


def test_a_hang_up_does_not_end_it_and_is_a_line_in_the_log(tmp_path: Path, start_manager: StartManager) -> None:
    """A closed terminal, or `systemctl reload`: the manager looks for a newer certificate. (Pins a bug: it died without
    handing over and without closing its files.)"""
    address = free_addresses(1)[0]
    process = start_manager(tmp_path / "m1", "m1", {"m1": address})
    process.wait_ready()
    process.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "certificate unchanged" in process.log.read_text(), "a line about the signal")
    assert process.process.poll() is None
    assert process.stop() == 0


def test_a_manager_that_ran_starts_from_its_directory_alone(
    tmp_path: Path, start_manager: StartManager, warren: Command
) -> None:
    a, b = free_addresses(2)
    first = start_manager(tmp_path / "m1", "m1", {"m1": a})
    first.wait_ready()
    cluster_id = warren("status", "--data-dir", tmp_path / "m1", "-o", "json").json["cluster_id"]
    assert first.stop() == 0
    again = start_manager(tmp_path / "m1", "", {})
    assert again.wait_ready() == f"ready node_id=m1 listen={a} leader=m1"
    assert again.stop() == 0
    moved = start_manager(tmp_path / "m1", "", {}, "--listen", b)
    assert moved.wait_ready() == f"ready node_id=m1 listen={b} leader=m1"
    status = warren("status", "--data-dir", tmp_path / "m1", "-o", "json").json
    assert status["cluster_id"] == cluster_id
    assert [alarm["text"] for alarm in status["alarms"] if alarm["name"] == "address-differs"] == [
        f"m1 listens on {b}, but the member list has {a} for it; if {b} is a mistake, start m1 with {a}; "
        f"if not, type: warren-raft members update m1={b}"
    ]
    assert warren("members", "update", f"m1={b}", "--data-dir", tmp_path / "m1", "-o", "json").json["warning"] is None
    wait_until(
        lambda: warren("status", "--data-dir", tmp_path / "m1", "-o", "json").json["alarms"] == [], "the alarm to end"
    )
    assert moved.stop() == 0
    assert start_manager(tmp_path / "m1", "", {}).wait_ready() == f"ready node_id=m1 listen={b} leader=m1"


def test_an_empty_directory_alone_is_no_manager(tmp_path: Path, warren: Command) -> None:
    for found in (f"there is no directory {tmp_path / 'm1'}", f"{tmp_path / 'm1'} holds no manager's log"):
        ran = warren("serve", "--data-dir", tmp_path / "m1")
        assert ran.code == 2
        assert f"{found}, so no earlier start is known; a join file (--join FILE) has" in ran.err
        assert not (tmp_path / "m1").exists() or not list((tmp_path / "m1").iterdir())
        (tmp_path / "m1").mkdir(exist_ok=True)


def test_an_only_manager_with_a_damaged_log_is_told_how_to_keep_its_entities(
    tmp_path: Path, start_manager: StartManager, warren: Command
) -> None:
    """(Pins a bug: it was told to remove itself on another manager, and to start on an empty directory.)"""
    process = start_manager(tmp_path / "m1", "m1", {"m1": free_addresses(1)[0]})
    process.wait_ready()
    (tmp_path / "node.json").write_text('{"id": "kept"}')
    assert warren("put", "node", "-f", tmp_path / "node.json", "--data-dir", tmp_path / "m1").text
    assert process.stop() == 0
    (segment,) = (tmp_path / "m1" / "log").glob("*.log")
    damaged = bytearray(segment.read_bytes())
    damaged[100] ^= 1
    segment.write_bytes(damaged)
    export = f"warren-raft export state.jsonl --data-dir {tmp_path / 'm1'}"
    settings = ("--node-id", "m1", "--listen", "127.0.0.1:1", "--member", "m1=127.0.0.1:1")
    for command in (("serve",), ("serve", *settings), ("describe",), ("recover", "--yes"), ("recover", "--dry-run")):
        ran = warren(*command, "--data-dir", tmp_path / "m1")
        assert (ran.code, f"keep it, and put the log back; or type {export}, begin a new" in ran.err) == (3, True), ran
    assert "kept" in warren("export", "-", "--data-dir", tmp_path / "m1").text
    # `status` advised to start the manager, although the start had just failed and would fail again.
    told = warren("status", "--data-dir", tmp_path / "m1").err
    assert f"no manager is running on {tmp_path / 'm1'}; its last run failed at 20" in told
    assert "keep it, and put the log back" in told
    assert "start it with" not in told
    damaged[100] ^= 1
    segment.write_bytes(damaged)
    described = warren("describe", "--data-dir", tmp_path / "m1", "-o", "json").json
    assert "keep it, and put the log back" in described["last_failure"]["text"]
    again = start_manager(tmp_path / "m1", "", {})
    again.wait_ready()
    assert again.stop() == 0
    assert warren("describe", "--data-dir", tmp_path / "m1", "-o", "json").json["last_failure"] is None
    assert "start it with" in warren("status", "--data-dir", tmp_path / "m1").err


def test_the_directory_of_another_manager_is_refused_by_name(
    tmp_path: Path, start_manager: StartManager, warren: Command
) -> None:
    process = start_manager(tmp_path / "m1", "m1", {"m1": free_addresses(1)[0]})
    process.wait_ready()
    assert process.stop() == 0
    ran = warren("serve", "--data-dir", tmp_path / "m1", "--node-id", "m2")
    assert ran.code == 4
    assert f"{tmp_path / 'm1'} is the directory of m1, not of m2" in ran.err


def test_a_directory_in_the_home_directory_is_meant_by_its_sign(
    tmp_path: Path, warren: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shell does not expand `~` in --data-dir=~/m1."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert f"there is no directory {tmp_path}/m1" in warren("serve", "--data-dir=~/m1").err
    monkeypatch.setenv("WARREN_DATA_DIR", "~/m2")
    assert f"there is no directory {tmp_path}/m2" in warren("describe").err


def test_settings_come_from_a_file_and_options_win(tmp_path: Path, warren: Command) -> None:
    first, second = free_addresses(2)
    file = tmp_path / "manager.toml"
    file.write_text(
        f'node_id = "filed"\ndata_dir = "{tmp_path / "filed"}"\nlisten = "{first}"\n'
        f'bootstrap = true\nelection_timeout_seconds = 0.5\n[members]\nfiled = "{first}"\n'
    )
    options: list[list[str]] = [[], ["--node-id", "m9", "--listen", second, "--member", f"m9={second}"]]
    for extra, node_id in zip(options, ("filed", "m9"), strict=True):
        data_dir = tmp_path / node_id
        command = [sys.executable, "-m", "warren_raft_cli", "serve", "--config", str(file), *extra]
        command += ["--data-dir", str(data_dir)] if extra else []
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            assert process.stdout is not None
            assert f"ready node_id={node_id} " in process.stdout.readline()
            assert warren("status", "--data-dir", data_dir, "-o", "json").json["node_id"] == node_id
            process.terminate()
            assert process.wait(EXIT_SECONDS) == 0


def test_a_log_line_is_one_line_whatever_is_logged() -> None:
    import logging

    try:
        raise ValueError("two\nlines")
    except ValueError:
        record = logging.LogRecord("a.b", logging.ERROR, __file__, 1, 'said "%s"\n', ("x",), sys.exc_info())
    line = KeyValueFormatter().format(record)
    assert "\n" not in line
    assert 'message="said \\"x\\"\\n"' in line
    assert "ValueError" in line


def test_an_event_has_its_keys_beside_the_message() -> None:
    record = logging.LogRecord("a.b", logging.INFO, __file__, 1, "%s", ("unused",), None)
    record.warren_event, record.warren_keys, record.warren_text = "leader lost", {"node": "m1", "reason": "a b"}, "or"
    assert KeyValueFormatter().format(record).partition("message=")[2] == (
        '"leader lost" node=m1 reason="a b" text="or"'
    )


# ------------------------------------------------------------------------------------ a cluster of three


class Three:
    """Three managers, and the answers of the command line about them."""

    def __init__(self, directory: Path, start: StartManager, warren: Command) -> None:
        self.members = dict(zip(("m1", "m2", "m3"), free_addresses(3), strict=True))
        self._directory, self._start, self._warren = directory, start, warren
        self.processes = {node_id: self.start(node_id, self.members) for node_id in self.members}
        for process in self.processes.values():
            process.wait_ready()

    def start(self, node_id: str, members: dict[str, str]) -> ManagerProcess:
        return self._start(self._directory / node_id, node_id, members)

    def data_dir(self, node_id: str) -> Path:
        return self._directory / node_id

    def status(self, node_id: str) -> dict[str, Any]:
        ran = self._warren("status", "--data-dir", self.data_dir(node_id), "-o", "json")
        return ran.json if ran.code == 0 else {}

    def leader(self) -> str:
        """The leader on which all three agree."""

        def agreed() -> str | None:
            leaders = {self.status(node_id).get("leader") for node_id in self.processes}
            return leaders.pop() if len(leaders) == 1 else None

        return str(wait_until(agreed, "one leader"))

    def run(self, node_id: str, *arguments: str) -> Any:
        return self._warren(*arguments, "--data-dir", self.data_dir(node_id), "-o", "json", "--timeout", "30")


@pytest.fixture
def three(tmp_path: Path, start_manager: StartManager, warren: Command) -> Three:
    return Three(tmp_path, start_manager, warren)


def test_leadership_goes_where_it_is_sent_and_away_from_who_ends(three: Three) -> None:
    leader = three.leader()
    other, third = (node_id for node_id in three.processes if node_id != leader)
    assert three.run(third, "leader", "transfer", other).json == {"leader": other}
    with in_time():
        assert three.leader() == other
    term = three.status(third)["term"]
    process = three.processes.pop(other)
    assert process.stop() == 0
    assert three.leader() != other
    assert three.status(third)["term"] > term


def test_a_transfer_to_nobody_is_refused(three: Three) -> None:
    ran = three.run("m1", "leader", "transfer", "m7")
    assert ran.code == 4
    assert "m7" in ran.err


def test_a_manager_is_added_catches_up_and_is_removed(three: Three, warren: Command) -> None:
    assert three.run("m2", "import", str(Path(__file__).parents[2] / "examples" / "sample-state.jsonl")).json
    address = free_addresses(1)[0]
    fourth = three.start("m4", three.members | {"m4": address})
    fourth.wait_socket()
    assert three.run("m1", "members", "add", f"m4={address}").json
    fourth.wait_ready()
    three.processes["m4"] = fourth
    ids = [member["id"] for member in warren("members", "list", "--data-dir", three.data_dir("m4"), "-o", "json").json]
    assert ids == ["m1", "m2", "m3", "m4"]
    wait_until(lambda: len({three.status(n)["digest"] for n in three.processes}) == 1, "equal digests")
    moved = three.run("m1", "members", "add", "m4=127.0.0.1:9")
    says = f"m4 is already a member, at {address}; if it has moved to 127.0.0.1:9, type: warren-raft members update m4="
    assert (moved.code, says in moved.err) == (4, True)
    assert warren("members", "remove", "m4", "--data-dir", three.data_dir("m1")).text == (
        "removed m4\nto add m4 again: move the data directory of m4 aside, start m4 on an empty one, then type on "
        f"another manager: warren-raft members add m4={address}\n"
    )
    three.processes.pop("m4")
    ids = [member["id"] for member in warren("members", "list", "--data-dir", three.data_dir("m1"), "-o", "json").json]
    assert ids == ["m1", "m2", "m3"]


def test_in_a_cluster_with_a_ca_a_removed_manager_needs_another_certificate() -> None:
    """(Pins a bug: nothing said so, and the other managers refused it.)"""
    assert way_back("m4", "10.0.0.4:1", "b464f437a4ff3407", is_removed=True) == (
        "type on the CA's host: warren-raft cert issue m4 --ca DIR; then move the data directory of m4 aside, start m4 "
        "on an empty one with --join m4.join; the leader adds it by itself"
    )
    assert way_back("m4", "10.0.0.4:1", "b464f437a4ff3407", is_empty=True) == (
        "type on another manager: warren-raft members remove m4; then type on the CA's host: warren-raft cert issue m4 "
        "--ca DIR; then copy m4.join over the old one on its host; m4 joins by itself, without a restart"
    )
    for trust_domain in ("", "local"):
        assert way_back("m4", "10.0.0.4:1", trust_domain, is_empty=True) == (
            "type on another manager: warren-raft members remove m4; warren-raft members add m4=10.0.0.4:1"
        )


def test_a_joiner_with_only_itself_in_its_list_waits_to_be_added(
    three: Three, start_manager: StartManager, warren: Command, tmp_path: Path
) -> None:
    """(Pins a bug: it began a cluster of its own, and could not be added any more, because its directory was not
    blank.)"""
    address = free_addresses(1)[0]
    only_itself = ("--node-id", "m4", "--listen", address, "--member", f"m4={address}")
    fourth = start_manager(tmp_path / "m4", "", {}, *only_itself)
    fourth.wait_socket()

    def told() -> str:
        alarms = three.status("m4").get("alarms", [])
        return next((alarm["text"] for alarm in alarms if alarm["name"] == "cluster-not-formed"), "")

    text = wait_until(told, "the alarm")
    assert f"members add m4={address}" in text
    assert "--bootstrap" in text
    assert three.status("m4")["cluster_id"] is None
    assert fourth.stop() == 0
    fourth = start_manager(tmp_path / "m4", "", {})
    fourth.wait_socket()
    assert three.run("m1", "members", "add", f"m4={address}").json
    fourth.wait_ready()
    assert three.status("m4")["cluster_id"] == three.status("m1")["cluster_id"]


def test_two_that_moved_and_were_not_put_in_the_list_meet_after_a_restart_without_the_third(
    three: Three, start_manager: StartManager, tmp_path: Path
) -> None:
    moved = dict(zip(("m1", "m2"), free_addresses(2), strict=True))
    for id_, address in moved.items():
        assert three.processes[id_].stop() == 0
        three.processes[id_] = start_manager(tmp_path / id_, "", {}, "--listen", address)
        three.processes[id_].wait_ready()

    def have_met() -> bool:
        members = {member["id"]: member["connected"] for member in three.status("m1")["members"]}
        return members["m2"] is True

    wait_until(have_met, "m1 and m2 to meet, by the addresses from m3")
    for id_, other in (("m1", "m2"), ("m2", "m1")):
        file = tmp_path / id_ / "manager.json"
        wait_until(
            lambda file=file, other=other: json.loads(file.read_text())["said"].get(other) == moved[other],
            f"{id_} to write down where {other} is",
        )
    for process in three.processes.values():
        process.end()
    three.processes.clear()
    for id_ in moved:
        three.processes[id_] = start_manager(tmp_path / id_, "", {})
    for process in three.processes.values():
        process.wait_ready()
    for id_, address in moved.items():
        assert three.run("m1", "members", "update", f"{id_}={address}").json["warning"] is None


def test_a_removal_that_would_lose_the_quorum_is_refused(three: Three) -> None:
    leader = three.leader()
    down, other = (node_id for node_id in three.processes if node_id != leader)
    three.processes.pop(down).end()

    def noticed() -> bool:
        return {m["id"]: m["connected"] for m in three.status(leader)["members"]}[down] is False

    wait_until(noticed, "the leader to notice that one is down")
    ran = three.run(leader, "members", "remove", other)
    assert ran.code == 4, ran
    wait_until(lambda: three.status(leader)["has_quorum"], "a quorum of the two")


def test_a_directory_of_another_cluster_does_not_join(
    three: Three, tmp_path: Path, start_manager: StartManager, warren: Command
) -> None:
    """Its node id and its addresses fit, but its data are of another history and must not be mixed in."""
    assert three.processes.pop("m3").stop() == 0
    (tmp_path / "other").mkdir()
    others = Three(tmp_path / "other", start_manager, warren)
    for process in others.processes.values():
        process.process.terminate()
    for process in others.processes.values():
        assert process.process.wait(EXIT_SECONDS) == 0
    before = three.status("m1")["digest"]
    stray = start_manager(tmp_path / "other" / "m3", "m3", three.members)
    assert stray.process.wait(EXIT_SECONDS) == 4
    last = stray.log.read_text().splitlines()[-1]
    assert "the data directory of m3 belongs to cluster" in last
    assert "to another" in last
    assert three.status("m1")["digest"] == before
    assert three.leader() in ("m1", "m2")


def test_what_is_written_on_one_is_read_on_all(three: Three, warren: Command, tmp_path: Path) -> None:
    file = tmp_path / "node.json"
    for number, node_id in enumerate(three.processes):
        file.write_text(f'{{"id": "node-{number}", "hostname": "by-{node_id}"}}')
        assert three.run(node_id, "put", "node", "-f", str(file)).json
        got = warren("get", "node", f"node-{number}", "--data-dir", three.data_dir(node_id), "-o", "json").json
        assert got["hostname"] == f"by-{node_id}", "a caller reads its own writes where it wrote them"

    def everywhere() -> bool:
        lists = [warren("list", "nodes", "--data-dir", three.data_dir(n), "-o", "json").text for n in three.processes]
        return len(set(lists)) == 1 and lists[0].count("by-") == 3

    wait_until(everywhere, "the same three nodes on all managers")


def test_a_long_data_directory_works(tmp_path: Path, start_manager: StartManager, warren: Command) -> None:
    data_dir = tmp_path / ("d" * 100) / ("e" * 100)
    data_dir.parent.mkdir()
    process = start_manager(data_dir, "m1", {"m1": free_addresses(1)[0]})
    process.wait_ready()
    assert warren("status", "--data-dir", data_dir).text
    assert os.stat(data_dir / "admin.sock").st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("15m", 900), ("1h", 3600), ("1d", 86_400), ("365d", 31_536_000)]
)
def test_a_time_has_its_unit(text: str, seconds: float) -> None:
    assert DurationType()(text) == seconds


def test_backups_are_saved_by_the_clock_and_one_that_fails_is_an_alarm(
    tmp_path: Path, start_manager: StartManager, warren: Command
) -> None:
    backups, data_dir = tmp_path / "mnt" / "backups", tmp_path / "m1"
    options = ("--backup-dir", str(backups), "--backup-every", "1s", "--backup-keep", "2")
    process = start_manager(data_dir, "m1", {"m1": free_addresses(1)[0]}, *options)
    process.wait_ready()

    def alarms() -> Any:
        return warren("status", "--data-dir", data_dir, "-o", "json").json["alarms"]

    alarm = wait_until(alarms, "an alarm: there is nothing mounted")
    assert str(backups) in alarm[0]["text"]
    backups.parent.mkdir()
    saved = wait_until(lambda: [*backups.glob("*.mdb")] if backups.exists() else [], "a backup")
    assert warren("snapshot", "verify", saved[0]).code == 0
    wait_until(lambda: not alarms(), "the end of the alarm")
    assert process.stop() == 0


def test_config_show_names_the_source_of_each_setting(
    warren: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An option, the file, the default; and the environment for the directory. Nothing is made."""
    settings = tmp_path / "m1.toml"
    settings.write_text(
        'node_id = "m1"\nlisten = "127.0.0.1:1"\nqueue_limit = 7\nbackup_keep = 3\n[members]\nm1 = "127.0.0.1:1"\n'
    )
    monkeypatch.setenv("WARREN_DATA_DIR", str(tmp_path / "m1"))
    options = ("--config", settings, "--backup-dir", tmp_path / "backups", "--backup-keep", "9")
    shown = warren("config", "show", *options, "-o", "json").json
    assert list(shown) == [field.name for field in fields(wr.Config)]
    expected = {
        "node_id": ("m1", str(settings)),
        "data_dir": (str(tmp_path / "m1"), "WARREN_DATA_DIR"),
        "members": ({"m1": "127.0.0.1:1"}, str(settings)),
        "queue_limit": (7, str(settings)),
        "backup_keep": (9, "--backup-keep"),
        "backup_dir": (str(tmp_path / "backups"), "--backup-dir"),
        "bootstrap": (False, "default"),
        "join": (None, "default"),
    }
    for name, (value, source) in expected.items():
        assert shown[name] == {"value": value, "from": source}, name
    assert [*tmp_path.iterdir()] == [settings]
    table = warren("config", "show", *options).text
    assert re.search(r"^members +m1=127\.0\.0\.1:1 +\S+m1\.toml$", table, re.MULTILINE)
    assert warren("config", "show", "--listen", "127.0.0.1:0", *options).code == 2


VARIABLES: dict[str, tuple[str, str, object]] = {
    "--node-id": ("m1", "node_id", "m1"),
    "--listen": ("127.0.0.1:1", "listen", "127.0.0.1:1"),
    "--member": ("m1=127.0.0.1:1 m2=127.0.0.1:2", "members", {"m1": "127.0.0.1:1", "m2": "127.0.0.1:2"}),
    "--join": ("/e.join", "join", "/e.join"),
    "--bootstrap": ("no", "bootstrap", False),
    "--insecure-plaintext": ("false", "insecure_plaintext", False),
    "--metrics-listen": ("127.0.0.1:3", "metrics_listen", "127.0.0.1:3"),
    "--backup-dir": ("/e", "backup_dir", "/e"),
    "--backup-every": ("5m", "backup_every_seconds", 300.0),
    "--backup-keep": ("9", "backup_keep", 9),
    "--backup-continuous": ("0", "backup_continuous", False),
    "--backup-command": ("ship 'a b'", "backup_command", ["ship", "a b"]),
    "--data-dir": ("", "data_dir", ""),
}
"""An option -> a text for its variable, its setting, and the value that the setting then has."""


def test_each_setting_with_an_option_is_in_the_test_of_the_variables() -> None:
    others = {"--config", "--log-level", "--output"}
    assert {option.opts[-1] for option in serve.serve.params} == VARIABLES.keys() | others


def test_a_child_gets_no_variable_of_a_setting() -> None:
    """A `warren-raft serve` that the backup command starts would take the settings of the manager as its own."""
    options = [option.opts[-1] for option in serve.serve.params if option.name != "output"]
    assert {variable_of(option) for option in options} == SETTING_VARIABLES


def test_the_log_level_has_a_variable(warren: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARREN_LOG_LEVEL", "loud")
    ran = warren("serve", "--data-dir", tmp_path)
    assert ran.code == 2
    assert "'loud'" in ran.err


@pytest.mark.parametrize("option", VARIABLES)
def test_a_variable_decides_before_the_file(
    warren: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    text, setting, value = VARIABLES[option]
    directory = tmp_path / "m1"
    (directory / "tls").mkdir(parents=True)  # its join file was used and removed
    if option == "--data-dir":
        text = value = str(directory)
    file = tmp_path / "m1.toml"
    file.write_text(
        f"node_id = 'm1'\nlisten = '127.0.0.1:1'\ndata_dir = '{directory}'\njoin = '/f.join'\nbootstrap = true\n"
        "insecure_plaintext = true\nmetrics_listen = '127.0.0.1:4'\nbackup_dir = '/f'\nbackup_every_seconds = 60\n"
        "backup_keep = 7\nbackup_continuous = true\nbackup_command = ['f']\nmembers = {m1 = '127.0.0.1:1'}\n"
    )
    monkeypatch.setenv("WARREN_CONFIG", str(file))
    assert warren("config", "show", "-o", "json").json[setting]["from"] == str(file)
    variable = variable_of(option)
    monkeypatch.setenv(variable, "")
    assert warren("config", "show", "-o", "json").json[setting]["from"] == str(file)
    monkeypatch.setenv(variable, text)
    assert warren("config", "show", "-o", "json").json[setting] == {"value": value, "from": variable}


def test_a_variable_comes_behind_its_option_and_before_the_file(
    warren: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "m1.toml"
    file.write_text(
        'node_id = "m1"\nlisten = "127.0.0.1:1"\nbackup_dir = "/f"\nslow_write_seconds = 2\nbackup_keep = 7\n'
    )
    for name, value in {
        "CONFIG": str(file),
        "LISTEN": "127.0.0.1:2",
        "MEMBER": "m1=127.0.0.1:2 m2=127.0.0.1:3",
        "BACKUP_DIR": "/e",
        "BACKUP_EVERY": "5m",
        "BACKUP_KEEP": "",
        "BOOTSTRAP": "1",
        "SLOW_WRITE_SECONDS": "9",  # it has no option
    }.items():
        monkeypatch.setenv(f"WARREN_{name}", value)
    arguments = ("config", "show", "--backup-dir", "/o", "--data-dir", tmp_path, "-o", "json")
    shown = {name: (each["value"], each["from"]) for name, each in warren(*arguments).json.items()}
    assert shown["backup_dir"] == ("/o", "--backup-dir")
    assert shown["listen"] == ("127.0.0.1:2", "WARREN_LISTEN")
    assert shown["members"] == ({"m1": "127.0.0.1:2", "m2": "127.0.0.1:3"}, "WARREN_MEMBER")
    assert shown["backup_every_seconds"] == (300.0, "WARREN_BACKUP_EVERY")
    assert shown["bootstrap"] == (True, "WARREN_BOOTSTRAP")
    for name, value in (("node_id", "m1"), ("backup_keep", 7), ("slow_write_seconds", 2)):
        assert shown[name] == (value, str(file))
    monkeypatch.setenv("WARREN_NODE_ID", "m3")
    ran = warren(*arguments[:-2])
    assert ran.err.startswith("warren-raft: WARREN_MEMBER: must contain this manager, m3 (m3 is from WARREN_NODE_ID)")
    monkeypatch.delenv("WARREN_MEMBER")
    file.write_text('node_id = "m1"\nlisten = "127.0.0.1:2"\n[members]\nm1 = "127.0.0.1:2"\n')
    ran = warren(*arguments[:-2])
    assert ran.err.startswith(
        f"warren-raft: config.members: must contain this manager, m3 (in {file}) (m3 is from WARREN_NODE_ID)"
    )
    monkeypatch.delenv("WARREN_NODE_ID")
    monkeypatch.setenv("WARREN_LISTEN", "nowhere")
    ran = warren(*arguments[:-2])
    assert ran.code == 2
    assert ran.err.startswith("warren-raft: WARREN_LISTEN: 'nowhere' is not an address")


def test_config_show_has_what_the_last_start_left(warren: Command, start_manager: StartManager, tmp_path: Path) -> None:
    address = free_addresses(1)[0]
    manager = start_manager(tmp_path / "m1", "m1", {"m1": address})
    manager.wait_ready()
    assert manager.stop() == 0
    shown = warren("config", "show", "--data-dir", tmp_path / "m1", "-o", "json").json
    assert shown["listen"] == {"value": address, "from": f"{tmp_path / 'm1'} (its last start)"}
    assert shown["data_dir"]["from"] == "--data-dir"


def test_a_start_beside_a_running_manager_leaves_no_failure_in_its_directory(
    start_manager: StartManager, tmp_path: Path
) -> None:
    """(Pins a fault: as root, `serve` was refused for the owner of the files, before it could find the manager.)"""
    (address,) = free_addresses(1)
    process = start_manager(tmp_path / "m1", "m1", {"m1": address})
    process.wait_ready()
    serve._keep_failure(os.fspath(tmp_path / "m1"), "m1", RefusedForSafety("its files belong to user warren"))
    assert not (tmp_path / "m1" / last_failure.FILE_NAME).exists()
    assert process.stop() == 0


def test_the_error_of_a_start_is_in_the_log_too(tmp_path: Path) -> None:
    """(Pins a fault: it was the only line without a time, so nobody knew which restart it belonged to.)"""
    for arguments, code in (
        ((), 2),
        (("--node-id", "m1", "--listen", "192.0.2.1:7946", "--member", "m1=192.0.2.1:7946"), 4),
    ):
        command = [sys.executable, "-m", "warren_raft_cli", "serve", "--data-dir", str(tmp_path / "m1"), *arguments]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        *_, logged, told = ran.stderr.splitlines()
        assert ran.returncode == code, ran.stderr
        assert told.startswith("warren-raft: ")
        assert re.match(r"time=\S+Z level=error logger=\S+ message=\"manager not started\"", logged), logged
        assert told.removeprefix("warren-raft: ")[:40] in logged.replace('\\"', '"')


def test_sigterm_ends_a_command_that_was_started_to_ignore_it() -> None:
    """(Pins a fault: `trap '' TERM; warren-raft serve …` left only kill -9, without a clean end.)"""
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with signals.handled({signal.SIGTERM: lambda number, _frame: came.append(number)}):
            signal.raise_signal(signal.SIGTERM)
        assert came == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_that_was_ignored_stays_ignored(number: signal.Signals) -> None:
    """(Pins a fault: `nohup warren-raft snapshot drill` ended when its terminal was closed.)"""
    came: list[int] = []

    def note(number: int, _frame: object) -> None:
        came.append(number)

    before = signal.signal(number, signal.SIG_IGN)
    try:
        with signals.handled({number: note}):
            signal.raise_signal(number)
        assert came == []
        assert signal.signal(number, signal.SIG_DFL) == signal.SIG_IGN
        with signals.handled({number: note}):
            signal.raise_signal(number)
        assert came == [number]
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)
