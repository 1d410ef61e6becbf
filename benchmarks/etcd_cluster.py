"""Three members of etcd on this machine, with the same load as a benchmark's own managers.

Lives here: etcd's processes and the build of its client (etcd/main.go). Not here: the comparison (all.py). Both come
from Debian: etcd-server, golang-go and golang-etcd-server-dev; etcd-client restores a snapshot. Invariant: if a package
is missing, `why_missing` names it, and nothing is started.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any, Self

from common import cpu_seconds, free_ports, wait_for

CLIENT = Path(__file__).parent / "etcd" / "main.go"
GO_SOURCES = "/usr/share/gocode"
"""The place of Debian's Go libraries."""
BUILD_SECONDS = 300.0
ANSWER_SECONDS = 5.0
CONNECTIONS = 8
TRANSACTION_MAX = 1_000
"""The most operations in a transaction; etcd's own default is 128."""
PROGRAMS = {"etcd": "etcd-server", "etcdctl": "etcd-client", "go": "golang-go"}


def why_missing() -> str:
    """The packages that are not installed, as a sentence; empty: none is missing."""
    missing = [package for program, package in PROGRAMS.items() if shutil.which(program) is None]
    if not Path(GO_SOURCES, "src/go.etcd.io/etcd/clientv3").is_dir():
        missing.append("golang-etcd-server-dev")
    return f"not compared with etcd: install Debian's {', '.join(missing)}" if missing else ""


def version() -> str:
    said = subprocess.run(["etcd", "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout
    return said.splitlines()[0].rpartition(" ")[2]


def build(directory: Path) -> Path:
    """Build the client. Returns its path."""
    client = directory / "etcd-load"
    environment = {**os.environ, "GO111MODULE": "off", "GOPATH": GO_SOURCES}
    command = ["go", "build", "-o", str(client), str(CLIENT)]
    subprocess.run(command, env=environment, check=True, timeout=BUILD_SECONDS)
    return client


class Member:
    """One process of etcd. It ends with this process, even if that is killed."""

    def __init__(self, name: str, directory: Path, urls: tuple[str, str], cluster: str) -> None:
        self.client_url, peer_url = urls
        command = ["etcd", "--name", name, "--data-dir", str(directory), "--log-level", "error"]
        command += ["--listen-client-urls", self.client_url, "--advertise-client-urls", self.client_url]
        command += ["--listen-peer-urls", peer_url, "--initial-advertise-peer-urls", peer_url]
        command += ["--initial-cluster", cluster, "--max-txn-ops", str(TRANSACTION_MAX)]
        guarded = ["setpriv", "--pdeathsig", "KILL", *command]
        self.popen = subprocess.Popen(guarded, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def ask(self, path: str, **body: Any) -> dict[str, Any]:
        """An answer of the member's HTTP gateway. Raises OSError."""
        data = json.dumps(body).encode()
        with urllib.request.urlopen(f"{self.client_url}{path}", data, ANSWER_SECONDS) as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    def end(self) -> None:
        self.popen.terminate()
        try:
            self.popen.wait(ANSWER_SECONDS)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()


class Etcd:
    """For `with`: a cluster of three, in plaintext."""

    def __init__(self, directory: Path, client: Path) -> None:
        self._directory, self._client = directory / "etcd", client
        self._directory.mkdir()
        ports = free_ports(6)
        urls = [(f"http://127.0.0.1:{ports[n]}", f"http://127.0.0.1:{ports[n + 3]}") for n in range(3)]
        names = [f"e{n}" for n in range(1, 4)]
        cluster = ",".join(f"{name}={peer}" for name, (_, peer) in zip(names, urls, strict=True))
        self.members = [
            Member(name, self._directory / name, each, cluster) for name, each in zip(names, urls, strict=True)
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for member in self.members:
            member.end()

    def places(self) -> dict[str, Member]:
        """The leader and a follower now."""

        def found() -> dict[str, Member] | None:
            places = {}
            for member in self.members:
                with contextlib.suppress(OSError):
                    status = member.ask("/v3/maintenance/status")
                    leads = status.get("leader") == status["header"]["member_id"]
                    places["leader" if leads else "follower"] = member
            return places if len(places) == 2 else None

        both: dict[str, Member] = wait_for(found, "a leader of etcd")
        return both

    def pids(self) -> list[int]:
        return [member.popen.pid for member in self.members]

    def fill(self, member: Member, keys: int, value_bytes: int) -> None:
        """Write each key once."""
        self._run(member, "-seconds", 0, "-keys", keys, "-bytes", value_bytes, "-batch", 100)

    def load(
        self, member: Member, clients: int, seconds: float, *, keys: int, value_bytes: int, batch: int = 1
    ) -> dict[str, float]:
        """The rate, the latencies, and the CPU time of all processes, its client's included."""
        before = cpu_seconds(self.pids())
        sizes = ("-keys", keys, "-bytes", value_bytes, "-batch", batch, "-connections", CONNECTIONS)
        got = json.loads(self._run(member, "-clients", clients, "-seconds", seconds, *sizes))
        cpu = cpu_seconds(self.pids()) - before + got["cpu_seconds"]
        return {
            "writes_per_second": round(got["writes"] / got["seconds"], 1),
            "p50_ms": round(got["p50_ms"], 3),
            "p99_ms": round(got["p99_ms"], 3),
            "cpu_ms_a_write": round(1e3 * cpu / got["writes"], 4),
        }

    def _run(self, member: Member, *arguments: object) -> str:
        command = [str(self._client), "-endpoint", member.client_url, *map(str, arguments)]
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout

    def save(self, member: Member) -> Path:
        """A snapshot of the cluster."""
        path = self._directory / "snapshot.db"
        path.unlink(missing_ok=True)
        etcdctl("--endpoints", member.client_url, "snapshot", "save", str(path))
        return path


def restore_seconds(snapshot: Path, directory: Path, key: str) -> float:
    """From `etcdctl snapshot restore` to the first read of the restored member. The command checks one hash of the
    file, but no record."""
    ports = free_ports(2)
    urls = (f"http://127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}")
    cluster = f"restored={urls[1]}"
    begin = time.perf_counter()
    named = ("--name", "restored", "--initial-cluster", cluster, "--initial-advertise-peer-urls", urls[1])
    etcdctl("snapshot", "restore", str(snapshot), "--data-dir", str(directory), *named)
    member = Member("restored", directory, urls, cluster)
    try:

        def read() -> bool:
            with contextlib.suppress(OSError):
                return bool(member.ask("/v3/kv/range", key=base64.b64encode(key.encode()).decode())["kvs"])
            return False

        wait_for(read, "the restored etcd")
        return time.perf_counter() - begin
    finally:
        member.end()
        shutil.rmtree(directory)


def etcdctl(*arguments: str) -> None:
    environment = {**os.environ, "ETCDCTL_API": "3"}
    subprocess.run(["etcdctl", *arguments], env=environment, check=True, capture_output=True)
