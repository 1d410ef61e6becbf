"""What strangers cost a cluster: callers write while another process attacks the leader's port, or only keeps a
processor busy.

    python benchmarks/hostile.py [--rounds 3] [--seconds 6] [--attacks hellos,noise,guest] [--directory DIR] [--json]

Three manager processes with TLS on one machine, 16 callers in the leading one. In turns, for the same time: a busy loop
in the attacker's place, and the attack. `hellos`: connections with a real ClientHello each, as fast as they can be
made. `noise`: connections with random bytes. `guest`: one with a certificate that is no member sends well-formed
messages as fast as its link takes them. Exits with 1 where a mark is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import tls
from common import data_directory, options, peak_growth, quantile, sample, verdict

from warren_raft.certificates import Authority
from warren_raft.credentials import Credentials
from warren_raft.raft.transport import Transport
from warren_raft.raft.wire import encode

CALLERS = 16
PROBE_SECONDS = 0.005
OPEN_AT_ONCE = 100
SETTLE_SECONDS = 0.5
ATTACK_SECONDS_MAX = 60

MARKS = {"writes/s of the busy loop's": 0.70, "raft thread: longest stall ms": 100.0, "RssAnon growth MiB": 16.0}
"""The first at least, the others at most."""


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--attacks", default="hellos,noise,guest", help="some of them, with commas")
    parser.add_argument("--manager", help=argparse.SUPPRESS)
    parser.add_argument("--attacker", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.manager:
        Manager(json.loads(arguments.manager)).run()
    elif arguments.attacker:
        attack(*arguments.attacker)
    else:
        with data_directory(arguments.directory) as directory:
            figures = measure(Path(directory), arguments.attacks.split(","), arguments.rounds, arguments.seconds)
        print(json.dumps(figures, indent=2) if arguments.json else table(figures))
        if not all(is_met(name, value) for each in figures.values() for name, value in each.items() if name in MARKS):
            sys.exit(1)


# The managers --------------------------------------------------------------------------------------------------------


class Manager(tls.Manager):
    """Beside the callers, a thread asks the raft thread for a sign of life 200 times a second."""

    def load_for_ever(self, callers: int) -> None:
        for number in range(callers):
            self.start_caller([sample(n) for n in range(number, 2_000, callers)])
        self.stalls: list[tuple[float, float]] = []
        threading.Thread(target=self._probe, daemon=True).start()

    def _probe(self) -> None:
        loop = self.store._driver._loop
        answered = threading.Event()
        while not self.stop.wait(PROBE_SECONDS):
            answered.clear()
            begin = time.monotonic()
            loop.call_soon_threadsafe(answered.set)
            answered.wait()
            self.stalls.append((time.monotonic(), time.monotonic() - begin))

    def pace(self, begin: float, end: float) -> dict[str, float]:
        took = [seconds for _, seconds in self.between(begin, end)]
        stalls = [seconds for moment, seconds in [*self.stalls] if begin < moment < end]
        return {
            "writes/s": round(len(took) / (end - begin)),
            "p99 ms": round(quantile(took, 0.99) * 1e3, 1) if took else float("inf"),
            "stall ms": round(max(stalls) * 1e3, 1) if stalls else (end - begin) * 1e3,
        }


class Cluster(tls.Cluster):
    script = __file__


# The attacker's process ----------------------------------------------------------------------------------------------


def attack(kind: str, port: str, directory: str) -> None:
    """Until the process is killed, or its parent has been for a while. Counts what it did on stdout."""
    signal.alarm(ATTACK_SECONDS_MAX)
    ATTACKS[kind](int(port), Path(directory))


def busy(_port: int, _directory: Path) -> None:
    while True:
        pass


def hellos(port: int, _directory: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    said = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), said).do_handshake()
    data = said.read()
    connections(port, lambda: data)


def noise(port: int, _directory: Path) -> None:
    draw = random.Random(1)
    connections(port, lambda: draw.randbytes(draw.randint(1, 2_000)))


def connections(port: int, data: Any) -> None:
    held: list[socket.socket] = []
    for count in range(1, 10**9):
        made = socket.socket()
        with contextlib.suppress(OSError):
            made.connect(("127.0.0.1", port))
            made.send(data())
        held.append(made)
        if len(held) > OPEN_AT_ONCE:
            held.pop(0).close()
        if count % 100 == 0:
            print(count, flush=True)


def guest(port: int, directory: Path) -> None:
    asyncio.run(flooding_guest(port, Credentials.load(directory, "m9")))


async def flooding_guest(port: int, credentials: Credentials) -> None:
    hello = {
        "address": "127.0.0.1:1",
        "incarnation": "f" * 32,
        "blank": True,
        "cluster_id": None,
        "membership_index": 0,
        "founding": b"",
        "origin": "",
    }
    nothing = lambda *_: None  # noqa: E731
    transport = Transport(
        listen=("127.0.0.1", 0),
        node_id="m9",
        hello=lambda: hello,
        judge=nothing,
        on_link_up=nothing,
        on_link_down=nothing,
        on_message=nothing,
        on_arriving=nothing,
        on_refused=lambda _, refusal, _identity: print(refusal, file=sys.stderr),
        on_not_reached=nothing,
        random=random.Random(1),
        credentials=credentials,
    )
    await transport.start()
    transport.set_peers({f"m{number}": (f"127.0.0.1:{port}",) for number in (1, 2, 3)})
    frames = b"".join(encode(message) for message in ({"type": "ping"}, {"type": "no such type", "x": [1] * 20})) * 64
    count = 0
    while True:
        for connection in list(transport._current.values()):
            out = connection._transport
            if out is not None and connection.end is None and out.get_write_buffer_size() < 1_000_000:
                connection._send(out, [frames])
                count += 128
        print(count, flush=True)
        await asyncio.sleep(0.0005)


ATTACKS = {"busy": busy, "hellos": hellos, "noise": noise, "guest": guest}


# The figures ---------------------------------------------------------------------------------------------------------


def measure(directory: Path, attacks: list[str], rounds: int, seconds: float) -> dict[str, dict[str, Any]]:
    with Cluster(directory, "tls") as cluster:
        files = Authority(cluster.directory / "ca").issue({"m9": "127.0.0.1:1"})[0].files
        stranger = directory / "m9"
        stranger.mkdir(mode=0o700)
        for name, text in (("key.pem", files.key), ("cert.pem", files.certificate), ("ca.pem", files.ca)):
            (stranger / name).write_text(text)
            (stranger / name).chmod(0o600)
        leader_id, _ = cluster.leader_and_follower()
        leader = cluster.managers[leader_id]
        port = cluster.addresses[leader_id].rpartition(":")[2]
        leader.call("load_for_ever", CALLERS)
        time.sleep(1.0)
        figures = {}
        for kind in attacks:
            pairs = []
            for _ in range(rounds):
                pairs.append([during(leader, each, port, stranger, seconds) for each in ("busy", kind)])
            figures[kind] = compared(pairs)
        assert leader.call("state")["leads"], "leadership was lost"
    return figures


def during(leader: Any, kind: str, port: str, directory: Path, seconds: float) -> dict[str, float]:
    command = [sys.executable, __file__, "--attacker", kind, port, str(directory)]
    said = directory / "said"
    with open(said, "wb") as file:
        attacker = subprocess.Popen(command, stdout=file)
    try:
        time.sleep(SETTLE_SECONDS)
        begin = time.monotonic()
        with peak_growth(leader.popen.pid, every_seconds=0.02) as grown:
            time.sleep(seconds)
        end = time.monotonic()
    finally:
        attacker.kill()
        attacker.wait()
    counts = said.read_text().split()
    return {**leader.call("pace", begin, end), "growth": grown[0] / 2**20, "attempts": int(counts[-1]) if counts else 0}


def compared(pairs: list[list[dict[str, float]]]) -> dict[str, Any]:
    def middle(values: Any) -> float:
        return round(statistics.median(values), 2)

    return {
        "attempts": sum(attacked["attempts"] for _, attacked in pairs),
        "writes/s busy": [before["writes/s"] for before, _ in pairs],
        "writes/s attacked": [attacked["writes/s"] for _, attacked in pairs],
        "writes/s of the busy loop's": middle(attacked["writes/s"] / before["writes/s"] for before, attacked in pairs),
        "p99 ms busy": middle(before["p99 ms"] for before, _ in pairs),
        "p99 ms attacked": middle(attacked["p99 ms"] for _, attacked in pairs),
        "raft thread: longest stall ms busy": max(before["stall ms"] for before, _ in pairs),
        "raft thread: longest stall ms": max(attacked["stall ms"] for _, attacked in pairs),
        "RssAnon growth MiB": max(attacked["growth"] for _, attacked in pairs),
    }


def is_met(name: str, value: float) -> bool:
    return value >= MARKS[name] if name.startswith("writes") else value <= MARKS[name]


def table(figures: dict[str, dict[str, Any]]) -> str:
    lines = []
    for kind, rows in figures.items():
        lines.append(kind)
        for name, value in rows.items():
            sign = ">=" if name.startswith("writes") else "<="
            shown = f"  {verdict(is_met(name, value), f'{sign} {MARKS[name]:g}')}" if name in MARKS else ""
            lines.append(f"  {name:<40}{value}{shown}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
