"""The promise: the commands in docs/certificates.md work as the page says, on hosts with addresses of their own, and no
write is refused meanwhile.

Each host is a network namespace with the address that the page has for it.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from cli_support import EXIT_SECONDS, READY_SECONDS, Command
from hosts import Hosts, why_not

from tests.busy_machine import in_time

pytestmark = pytest.mark.docs

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "certificates.md").read_text(encoding="utf-8")
CA_HOST = "the CA's host"
ADDRESSES = ("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4")


class Operator:
    """Types the commands in the sections of the page; `# on HOST` names the host."""

    def __init__(self, warren: Command, hosts: Hosts, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.warren, self.hosts, self._monkeypatch = warren, hosts, monkeypatch
        self._ca_directory = directory / "ca-host"
        self._ca_directory.mkdir()
        self.host = ""
        self.managers: dict[str, subprocess.Popen[bytes]] = {}
        self.told: list[str] = []
        self._not_ready: list[str] = []

    def directory(self, host: str) -> Path:
        return self._ca_directory if host == CA_HOST else self.hosts.directory(host)

    def follow(self, heading: str) -> None:
        section = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
        assert section, heading
        blocks = re.findall(r"^```sh\n(.*?)^```", section[1], re.MULTILINE | re.DOTALL)
        assert blocks
        for line in "".join(blocks).splitlines():
            self.do(line)
        self.wait_ready()

    def do(self, line: str) -> None:
        if line.startswith("# on "):
            self.host = line.removeprefix("# on ")
            return
        here, words = self.directory(self.host), shlex.split(line)
        if words[0] == "scp":
            shutil.copy2(here / words[1], self.directory(words[2].removesuffix(":")))
        elif words[0] == "mv":
            self.managers[self.host].wait(EXIT_SECONDS)  # it was removed, and stops by itself
            (here / words[1]).rename(here / words[2])
        elif words[0] == "rm":
            (here / words[1]).unlink()
        elif words[1] == "serve":
            self.start(words[1:])
        else:
            self.wait_ready()
            self._monkeypatch.chdir(here)
            self.told.append(self.warren(*words[1:]).text)

    def start(self, arguments: list[str]) -> None:
        here = self.directory(self.host)
        command = [*self.hosts.prefix(self.host), sys.executable, "-m", "warren_raft_cli", *arguments]
        with open(here / "log", "ab") as log, open(here / "out", "wb") as out:
            self.managers[self.host] = subprocess.Popen(command, stdout=out, stderr=log, cwd=here)
        self._not_ready.append(self.host)

    def wait_ready(self) -> None:
        """Wait until all started managers have printed their ready lines."""
        deadline = time.monotonic() + READY_SECONDS
        for host in self._not_ready:
            while b"ready" not in (self.directory(host) / "out").read_bytes():
                assert self.managers[host].poll() is None, self.log(host)
                assert time.monotonic() < deadline, self.log(host)
                time.sleep(0.05)
        self._not_ready.clear()

    def log(self, host: str) -> str:
        return (self.directory(host) / "log").read_text()

    def status(self, host: str) -> dict[str, Any]:
        answer: dict[str, Any] = self.warren("status", "--data-dir", self.directory(host) / "data", "-o", "json").json
        return answer

    def put(self, host: str, node_id: str) -> None:
        path = self.directory(host) / "node.json"
        path.write_text(f'{{"id": "{node_id}", "role": "worker", "hostname": "{node_id}"}}')
        assert self.warren("put", "node", "-f", path, "--data-dir", self.directory(host) / "data").code == 0

    def end(self) -> None:
        for process in self.managers.values():
            if process.poll() is None:
                process.kill()
            process.wait(EXIT_SECONDS)


@pytest.fixture
def operator(warren: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Operator]:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    with ExitStack() as ends:
        made = Operator(warren, ends.enter_context(Hosts(ADDRESSES, tmp_path)), tmp_path, monkeypatch)
        ends.callback(made.end)
        yield made


def serials(operator: Operator, hosts: tuple[str, ...]) -> set[str]:
    return {operator.status(host)["certificate"]["serial"] for host in hosts}


@pytest.mark.timeout(600)
def test_following_the_page_from_its_top_to_its_end(operator: Operator) -> None:
    """One cluster goes through the whole page, like an operator's cluster."""
    three = ADDRESSES[:3]
    operator.follow("A cluster on three hosts")
    with in_time():  # a moment after all are ready
        assert operator.told[-1].startswith("healthy: ")
    assert {operator.status(host)["links"] for host in three} == {"tls"}
    operator.put("10.0.0.2", "first")

    operator.follow("Add a manager")
    wait_for(lambda: [m["voter"] for m in operator.status("10.0.0.4")["members"]] == [True] * 4, "m4 to vote")

    before = serials(operator, ADDRESSES)
    operator.follow("Rotate the certificates")
    assert len(before & serials(operator, ADDRESSES)) == 3
    operator.put("10.0.0.1", "rotated")

    before = serials(operator, ADDRESSES)
    operator.follow("Replace the CA")
    assert not before & serials(operator, ADDRESSES)
    trusted = operator.warren("cert", "show", "--data-dir", operator.directory("10.0.0.3") / "data", "-o", "json").json
    assert len(trusted["ca"]) == 1
    wait_for(lambda: all(connected(operator, host) for host in ADDRESSES), "links with the new CA")

    stolen = operator.status("10.0.0.2")["certificate"]["serial"]
    operator.follow("A stolen key")
    assert operator.status("10.0.0.2")["certificate"]["serial"] != stolen
    wait_for(lambda: [m["voter"] for m in operator.status("10.0.0.2")["members"]] == [True] * 4, "m2 to vote again")
    operator.put("10.0.0.2", "last")
    wait_for(
        lambda: {status["verdict"]["state"] for status in map(operator.status, ADDRESSES)} == {"healthy"},
        "all managers to find the cluster healthy",
    )


def connected(operator: Operator, host: str) -> bool:
    return all(member["connected"] or member["id"] == f"m{host[-1]}" for member in operator.status(host)["members"])


def wait_for(condition: Any, what: str) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited for {what}"
        time.sleep(0.1)
