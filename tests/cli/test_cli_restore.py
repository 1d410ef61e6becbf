"""The promise: `snapshot restore` makes a working cluster from a file, `recover` makes one from the manager that is
left, with real managers; and the commands in docs/recovery.md work as the page says.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cli_support import Command, ManagerProcess, StartManager, free_addresses

from tests.cluster.harness import wait_until
from warren_raft.local.read_only import ReadOnlyStore
from warren_raft.support.wording import counted
from warren_raft_cli.recovery import _missing
from warren_raft_cli.snapshots import next_step

RECOVERY = (Path(__file__).resolve().parents[2] / "docs" / "recovery.md").read_text(encoding="utf-8")
IDS = ("m1", "m2", "m3")


@pytest.fixture
def members() -> dict[str, str]:
    return dict(zip(IDS, free_addresses(3), strict=True))


def start_all(
    start_manager: StartManager, directory: Path, members: dict[str, str], ids: tuple[str, ...] = IDS
) -> dict[str, ManagerProcess]:
    directory.mkdir(exist_ok=True)
    managers = {id_: start_manager(directory / id_, id_, members) for id_ in ids}
    for manager in managers.values():
        manager.wait_ready()
    return managers


def stop_all(managers: dict[str, ManagerProcess]) -> None:
    for manager in managers.values():
        assert manager.stop() == 0


def put_node(warren: Command, directory: Path, id_: str) -> int:
    path = directory.parent / f"{id_}.json"
    path.write_text(json.dumps({"id": id_}))
    return int(warren("put", "node", "-f", path, "--data-dir", directory, "-o", "json").json["revision"])


def as_options(members: dict[str, str]) -> list[str]:
    return [part for id_, address in members.items() for part in ("--member", f"{id_}={address}")]


def level(warren: Command, directory: Path) -> list[dict[str, Any]]:
    """The statuses of all managers when they are at the same applied index."""
    statuses: list[dict[str, Any]] = []

    def is_level() -> bool:
        statuses[:] = [warren("status", "--data-dir", directory / id_, "-o", "json").json for id_ in IDS]
        return len({status["applied_index"] for status in statuses}) == 1

    wait_until(is_level, "one applied index")
    return statuses


def test_a_cluster_is_restored_into_a_new_one_that_works(
    warren: Command, start_manager: StartManager, members: dict[str, str], tmp_path: Path
) -> None:
    old = start_all(start_manager, tmp_path / "old", members)
    revision = [put_node(warren, tmp_path / "old" / "m1", f"n{number}") for number in range(5)][-1]
    told = warren("snapshot", "save", tmp_path / "s.mdb", "--data-dir", tmp_path / "old" / "m1", "-o", "json").json
    export = warren("export", "-", "--data-dir", tmp_path / "old" / "m1").text
    stop_all(old)
    made = []
    for id_ in IDS:
        restore = ("snapshot", "restore", tmp_path / "s.mdb", "--data-dir", tmp_path / "new" / id_, "--node-id", id_)
        made.append(warren(*restore, *as_options(members), "-o", "json").json)
    assert len({(each["cluster_id"], each["digest"]) for each in made}) == 1
    assert made[0]["from"]["cluster_id"] == told["cluster_id"]
    assert made[0]["revision"] == revision + 1_000_000_000

    start_all(start_manager, tmp_path / "new", members)
    statuses = level(warren, tmp_path / "new")
    assert len({status["digest"] for status in statuses}) == 1
    assert {status["cluster_id"] for status in statuses} == {made[0]["cluster_id"]}
    for id_ in IDS:
        assert warren("export", "-", "--data-dir", tmp_path / "new" / id_).text == export
    assert put_node(warren, tmp_path / "new" / "m2", "after") == made[0]["revision"] + 1
    statuses = level(warren, tmp_path / "new")
    assert len({status["digest"] for status in statuses}) == 1
    with ReadOnlyStore(tmp_path / "new" / "m3") as store:
        assert store.get_node("after").revision == made[0]["revision"] + 1
        assert len(store.list_nodes()) == 6


@pytest.mark.slow
def test_a_killed_manager_comes_back_to_the_last_change_or_to_the_one_before_the_mistake(
    warren: Command, start_manager: StartManager, tmp_path: Path
) -> None:
    """docs/backups.md, "Lose seconds, not an hour"."""
    backups, data_dir, address = tmp_path / "backups", tmp_path / "m1", free_addresses(1)[0]
    manager = start_manager(data_dir, "m1", {"m1": address}, "--backup-dir", str(backups), "--backup-continuous")
    manager.wait_ready()
    (base,) = wait_until(lambda: [*backups.glob("*.mdb")] if backups.exists() else [], "the first backup")
    before_the_mistake = put_node(warren, data_dir, "good")
    put_node(warren, data_dir, "mistake")

    def backup() -> Any:
        return warren("status", "--data-dir", data_dir, "-o", "json").json

    wait_until(
        lambda: (status := backup())["backup"]["log_index"] == status["applied_index"], "the changes in the directory"
    )
    assert re.search(
        r"^backup .* changes up to index \d+, ", warren("status", "--data-dir", data_dir).text, re.MULTILINE
    )
    manager.process.kill()

    def restored(to_revision: int | str) -> tuple[Any, set[str]]:
        directory = tmp_path / f"restored-{to_revision}"
        options = ("--node-id", "m1", "--member", f"m1={address}", "--to-revision", to_revision)
        command = [*map(str, ("snapshot", "restore", base, "--data-dir", directory, *options))]
        answer = warren(*command, "-o", "json").json
        with ReadOnlyStore(directory) as store:
            return answer, {node.id for node in store.list_nodes()}

    answer, ids = restored(before_the_mistake)
    assert ids == {"good"}
    assert answer["replayed"]["revision"] == before_the_mistake
    answer, ids = restored("last")
    assert ids == {"good", "mistake"}
    (log,) = backups.glob("*.log")
    assert answer["replayed"]["files"] == [str(log)]
    assert set(answer["replayed"]) == {"files", "index", "revision", "until", "warnings"}
    missing = ("--node-id", "m1", "--member", f"m1={address}", "--to-revision", str(before_the_mistake + 2))
    ran = warren("snapshot", "restore", base, "--data-dir", tmp_path / "missing", *missing)
    assert ran.code == 4
    assert f"and not to revision {before_the_mistake + 2}" in ran.err
    again = start_manager(tmp_path / "restored-last", "m1", {"m1": address})
    again.wait_ready()
    assert {each["id"] for each in warren("list", "nodes", "--data-dir", again.data_dir, "-o", "json").json} == ids


def test_one_of_three_restored_alone_waits_and_says_for_whom(
    warren: Command, start_manager: StartManager, members: dict[str, str], manager: Path, tmp_path: Path
) -> None:
    assert warren("snapshot", "save", tmp_path / "s.mdb", "--data-dir", manager).text
    restore = ("snapshot", "restore", tmp_path / "s.mdb", "--data-dir", tmp_path / "m1", "--node-id", "m1")
    text = warren(*restore, *as_options(members)).text
    assert "The cluster forms when m2, m3 are restored too, from the same file with the same members." in text
    assert text.endswith(f"\n{next_step(str(tmp_path / 'm1'), 'm1', members)}\n")
    described = warren("describe", tmp_path / "m1").text
    assert re.search(r"\ncluster_id +- \(restored as [0-9a-f]{32}; the cluster forms when its members", described)
    alone = start_manager(tmp_path / "m1", "m1", members)
    alone.wait_socket()

    def says() -> bool:
        alarms = warren("status", "--data-dir", tmp_path / "m1", "-o", "json").json["alarms"]
        return any("m1 waits for m2, m3, to be restored from the same file" in alarm["text"] for alarm in alarms)

    wait_until(says, "m1 to name the managers that it waits for")
    assert alone.stop() == 0


def test_the_next_step_after_a_restore_names_the_certificate(tmp_path: Path) -> None:
    """(Pins a bug: a cluster with a CA of its own came back with certificates of the user's CA on this host, and no
    text said so.)"""
    here, beyond = {"m1": "127.0.0.1:7946"}, {"m1": "127.0.0.1:7946", "m2": "10.0.0.2:7946"}
    serve = f"next: warren-raft serve --data-dir {tmp_path}"
    assert next_step(str(tmp_path), "m1", here) == (
        f"{serve}\nAll addresses are on this host, so this user's CA on this host issues the certificate of m1. To use "
        "the certificate of another CA, add --join m1.join."
    )
    assert next_step(str(tmp_path), "m1", beyond) == (
        f"{serve} --join m1.join\nm1 has no certificate here: `warren-raft cert issue` makes the join file."
    )
    (tmp_path / "tls").mkdir()
    assert next_step(str(tmp_path), "m1", beyond) == f"{serve}\nm1 uses the certificate in {tmp_path / 'tls'}."


def test_what_is_refused_is_one_line_and_exit_code_4(
    warren: Command, members: dict[str, str], manager: Path, tmp_path: Path
) -> None:
    assert warren("snapshot", "save", tmp_path / "s.mdb", "--data-dir", manager).text
    file = tmp_path / "s.mdb"
    options = as_options(members)
    running = warren("snapshot", "restore", file, "--data-dir", manager, "--node-id", "m1", *options, "--move-aside")
    assert (running.code, "stop it first" in running.err) == (4, True)
    target = ("--data-dir", tmp_path / "m1")
    assert warren("snapshot", "restore", file, *target, "--node-id", "m9", *options).code == 4
    assert warren("snapshot", "restore", file, *target, "--node-id", "m1", *options, "--cluster-id", "x").code == 4
    assert not (tmp_path / "m1").exists()
    assert warren("snapshot", "restore", file, *target, "--node-id", "m1", *options).code == 0
    again = warren("snapshot", "restore", file, *target, "--node-id", "m1", *options)
    assert (again.code, "restored from this file with these members already" in again.err) == (4, True)
    other = [*options, "--member", "m4=127.0.0.1:1"]
    again = warren("snapshot", "restore", file, *target, "--node-id", "m1", *other)
    assert (again.code, "--move-aside" in again.err) == (4, True)
    twice = [*options, "--member", "m1=127.0.0.1:1"]
    assert warren("snapshot", "restore", file, "--data-dir", tmp_path / "b", "--node-id", "m1", *twice).code == 2
    same = ["--member", "m1=127.0.0.1:1", "--member", "m2=127.0.0.1:1"]
    assert warren("snapshot", "restore", file, "--data-dir", tmp_path / "b", "--node-id", "m1", *same).code == 2
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 8
    file.write_bytes(data)
    damaged = warren("snapshot", "restore", file, "--data-dir", tmp_path / "b", "--node-id", "m1", *options)
    assert (damaged.code, "is damaged" in damaged.err) == (3, True)
    assert not (tmp_path / "b").exists()


def test_recover_asks_and_without_a_terminal_needs_a_yes(
    warren: Command, start_manager: StartManager, tmp_path: Path
) -> None:
    alone = start_manager(tmp_path / "m1", "m1", {"m1": free_addresses(1)[0]})
    alone.wait_ready()
    assert warren("recover", "--data-dir", tmp_path / "m1", "--yes").code == 4
    assert alone.stop() == 0
    before = sorted(os.listdir(tmp_path / "m1"))
    refused = warren("recover", "--data-dir", tmp_path / "m1")
    assert (refused.code, "add --yes" in refused.err) == (4, True)
    assert sorted(os.listdir(tmp_path / "m1")) == before
    told = warren("recover", "--data-dir", tmp_path / "m1", "--yes", "-o", "json").json
    assert told["lost_members"] == []
    assert Path(told["aside"]).is_dir()
    assert warren("recover", "--data-dir", tmp_path / "nowhere", "--yes").code == 4


@pytest.mark.parametrize(
    ("uncertain", "says"),
    [
        (0, "of term 3 is taken over."),
        (1, "of that 1 entry that is not known to have been acknowledged."),
        (2, "of that 2 entries that are not known to have been acknowledged."),
    ],
)
def test_entries_that_may_not_count_are_counted_in_english(uncertain: int, says: str) -> None:
    recovery: Any = SimpleNamespace(index=14, term=3, uncertain=uncertain, others={})
    assert _missing(recovery).endswith(says)


def test_a_stopped_directory_is_described_and_a_recovery_tried_before_it_is_made(
    start_manager: StartManager, warren: Command, members: dict[str, str], tmp_path: Path
) -> None:
    managers = start_all(start_manager, tmp_path, members)
    revision = put_node(warren, tmp_path / "m1", "n1")
    (status, *_) = level(warren, tmp_path)
    running = warren("describe", tmp_path / "m1")
    assert (running.code, "has a running manager: see warren-raft status" in running.err) == (5, True)
    assert warren("recover", "--dry-run", "--data-dir", tmp_path / "m1").code == 4
    assert managers["m1"].stop() == 0
    others = warren("recover", "--dry-run", "--data-dir", tmp_path / "m1")
    assert (others.code, "accept connections: stop them, or add --force" in others.err) == (4, True)
    for id_ in ("m2", "m3"):
        managers[id_].process.send_signal(signal.SIGKILL)
        managers[id_].process.wait()
    described = {id_: warren("describe", tmp_path / id_, "-o", "json").json for id_ in IDS}
    for id_, said in described.items():
        assert (said["node_id"], said["cluster_id"], said["standing"]) == (id_, status["cluster_id"], "voter")
        assert {member["id"]: member["address"] for member in said["members"]} == members
        assert said["index"] >= status["applied_index"]
    assert (described["m1"]["revision"], described["m1"]["counts"]["nodes"]) == (revision, 1)
    table = warren("describe", "--data-dir", tmp_path / "m1").text
    assert f"cluster_id     {status['cluster_id']}\n" in table
    tried = warren("recover", "--dry-run", "--data-dir", tmp_path / "m1", "-o", "json").json
    assert {name: tried[name] for name in described["m1"]} == described["m1"]
    assert tried["lost_members"] == ["m2", "m3"]
    said = warren("recover", "--dry-run", "--data-dir", tmp_path / "m1").text
    # A manager that stops before it has noted the last commit counts its last entries as uncertain.
    uncertain = counted(tried["uncertain_entries"], "entry that is", "entries that are")
    of_that = f", of that {uncertain} not known to have been acknowledged" if tried["uncertain_entries"] else ""
    assert said.endswith(
        f"Everything up to index {tried['log_index']} of term {tried['log_term']} is taken over{of_that}. Writes that "
        "were acknowledged and that only m2, m3 held may be missing.\nThis was a dry run: nothing was changed.\n"
    )
    made = warren("recover", "--yes", "--data-dir", tmp_path / "m1", "-o", "json").json
    assert {name: made[name] for name in ("log_index", "log_term", "uncertain_entries", "lost_members")} == {
        name: tried[name] for name in ("log_index", "log_term", "uncertain_entries", "lost_members")
    }
    assert warren("describe", tmp_path / "nowhere").code == 4


# The operator's page -------------------------------------------------------------------------------------------------


class Operator:
    """Types the commands of a section of docs/recovery.md, with other ports and paths; its comments are orders."""

    def __init__(self, warren: Command, start_manager: StartManager, directory: Path, members: dict[str, str]) -> None:
        self.warren, self.start_manager, self.directory, self.members = warren, start_manager, directory, members
        self.new_addresses = dict(zip(IDS, free_addresses(3), strict=True))
        self.managers = start_all(start_manager, directory, members)
        self.started_anew: list[str] = []
        self.told: list[str] = []

    def follow(self, heading: str) -> None:
        match = re.search(rf"^## {heading}\n.*?^```sh\n(.*?)^```", RECOVERY, re.MULTILINE | re.DOTALL)
        assert match, heading
        for line in match[1].replace("\\\n", " ").splitlines():
            self.do(line)

    def do(self, line: str) -> None:
        for id_, port, new_port in zip(IDS, (7946, 7947, 7948), (8946, 8947, 8948), strict=True):
            line = line.replace(f"127.0.0.1:{port}", self.members[id_])
            line = line.replace(f"127.0.0.1:{new_port}", self.new_addresses[id_])
        words = [str(self.directory / w[5:]) if w.startswith("data/") else w for w in shlex.split(line)]
        words = [str(self.directory / w) if w == "warren.snapshot" else w for w in words]
        if line.startswith("# ") and line.endswith(" dead"):
            for id_ in re.findall(r"m\d", line):
                self.managers[id_].process.send_signal(signal.SIGKILL)
                self.managers[id_].process.wait()
        elif line.startswith("# stop"):
            for id_ in re.findall(r"m\d", line) or IDS:
                assert self.managers[id_].stop() == 0
        elif words[0] == "mv":
            os.rename(*words[1:])
        elif words[1] == "serve":
            id_ = words[words.index("--node-id") + 1]
            assert words[words.index("--data-dir") + 1] == str(self.directory / id_)
            pairs = [words[n + 1] for n, word in enumerate(words) if word == "--member"]
            members = dict(pair.split("=") for pair in pairs)
            assert words[words.index("--listen") + 1] == members[id_]
            self.managers[id_] = self.start_manager(self.directory / id_, id_, members)
            self.managers[id_].wait_socket()
            self.started_anew.append(id_)
        else:
            self.told.append(self.warren(*words[1:]).text)


@pytest.fixture
def operator(warren: Command, start_manager: StartManager, members: dict[str, str], tmp_path: Path) -> Operator:
    operator = Operator(warren, start_manager, tmp_path / "data", members)
    put_node(warren, tmp_path / "data" / "m2", "before")
    return operator


def works(operator: Operator, warren: Command, ids: tuple[str, ...]) -> None:
    """All these managers are ready, and all have a write through the last one and the records from before."""
    for id_ in operator.started_anew:
        operator.managers[id_].wait_ready()
    put_node(warren, operator.directory / ids[-1], "after")
    for id_ in ids:
        path = operator.directory / id_

        def holds(path: Path = path) -> bool:
            with ReadOnlyStore(path) as store:
                return {node.id for node in store.list_nodes()} == {"before", "after"}

        wait_until(holds, f"both writes on {id_}")


def test_following_the_page_a_dead_member_is_replaced(operator: Operator, warren: Command) -> None:
    operator.follow("Replace a dead member")
    works(operator, warren, IDS)
    listed = warren("members", "list", "--data-dir", operator.directory / "m3", "-o", "json").json
    assert [(member["id"], member["voter"]) for member in listed] == [(id_, True) for id_ in IDS]


def test_following_the_page_a_survivor_becomes_a_cluster_again(operator: Operator, warren: Command) -> None:
    old = warren("status", "--data-dir", operator.directory / "m1", "-o", "json").json
    operator.follow("Recover from a lost quorum")
    works(operator, warren, IDS)
    status = warren("status", "--data-dir", operator.directory / "m3", "-o", "json").json
    assert status["cluster_id"] != old["cluster_id"]
    assert [(member["id"], member["voter"]) for member in status["members"]] == [(id_, True) for id_ in IDS]
    assert "only m2, m3 held may be missing" in operator.told[0]
    assert "configured members" in (operator.directory / "m1.log").read_text()


def test_following_the_page_a_snapshot_is_restored(operator: Operator, warren: Command) -> None:
    old = warren("status", "--data-dir", operator.directory / "m1", "-o", "json").json
    operator.follow("Restore a snapshot")
    works(operator, warren, IDS)
    assert {status["cluster_id"] for status in level(warren, operator.directory)} != {old["cluster_id"]}


@pytest.mark.parametrize(("heading", "moved"), [("Move one manager", ("m3",)), ("Move every manager", IDS)])
def test_following_the_page_managers_move(
    operator: Operator, warren: Command, heading: str, moved: tuple[str, ...]
) -> None:
    """(Pins a bug: they looked for each other at the old addresses, and only making a new cluster helped.)"""
    operator.follow(heading)
    works(operator, warren, IDS)
    new = {id_: operator.new_addresses[id_] for id_ in moved}
    assert [said for said in operator.told if said.startswith("moved")] == [
        f"moved {id_} to {address}\n" for id_, address in new.items()
    ]

    def is_in_order(id_: str) -> bool:
        status = warren("status", "--data-dir", operator.directory / id_, "-o", "json").json
        listed = {member["id"]: member["address"] for member in status["members"]}
        return listed == {**operator.members, **new} and not any("member list has" in str(a) for a in status["alarms"])

    for id_ in IDS:
        wait_until(lambda id_=id_: is_in_order(id_), f"the list of {id_} to be in order")  # type: ignore[misc]
    restarted = operator.managers["m1"]
    assert restarted.stop() == 0
    again = operator.start_manager(operator.directory / "m1", "m1", {**operator.members, **new})
    again.wait_ready()


def test_an_address_where_the_member_is_not_is_named_as_wrong(
    start_manager: StartManager, warren: Command, members: dict[str, str], tmp_path: Path
) -> None:
    managers = start_all(start_manager, tmp_path / "data", members)
    (wrong,) = free_addresses(1)
    m1 = ("--data-dir", tmp_path / "data" / "m1")
    told = warren("members", "update", f"m3={wrong}", *m1)
    assert told.text == f"moved m3 to {wrong}\n"
    assert f"m3 says that its address is {members['m3']}" in told.err
    assert f"type: warren-raft members update m3={members['m3']}" in told.err
    assert warren("members", "update", f"m3={members['m3']}", *m1, "-o", "json").json["warning"] is None
    assert managers["m3"].stop() == 0
    told = warren("members", "update", f"m3={wrong}", *m1)
    assert told.text == f"moved m3 to {wrong}\nto undo that, type: warren-raft members update m3={members['m3']}\n"
    answer = warren("members", "update", f"m3={wrong}", *m1, "-o", "json").json
    assert answer["done"] == f"moved m3 to {wrong}"
    assert answer["warning"].startswith(f"m3 does not answer at {wrong}: start m3 with --listen {wrong}")
    managers["m3"] = start_manager(tmp_path / "data" / "m3", "m3", {**members, "m3": wrong})
    managers["m3"].wait_ready()
    assert warren("members", "update", f"m3={wrong}", *m1, "-o", "json").json["warning"] is None
