"""The cost of attackers for a cluster: callers write while another process attacks the leader, or keeps a processor
busy.

    python benchmarks/hostile.py [--part 0.05] [--rounds 4] [--attacks hellos,guest] [--json]

Three manager processes with TLS on one machine, 16 callers at the leader. In turns: an attack, and for the same time a
busy loop in its place. `--part` of 10,000 connections and of 1,000,000 frames, a quarter for each attacker:

- hellos: connections with a real ClientHello each, as fast as they can be made;
- pre-tls: frames without TLS, 25 on each connection; the manager hangs up when it has read the first of them;
- guest: links with a certificate of the cluster that is not a member's, with well-formed messages; now and then a
  message that costs the link;
- dense: such a link with 400 messages of 60 KB that consist of empty lists, which take 16 ms to decode;
- removed: frames behind the hello of a removed member, 500 on each connection;
- member: links with the certificate and the directory of a member that is stopped meanwhile, in the same way.

The growth of RssAnon is that of the leader, without the memory of the callers' writes (its log, and the figures here).
Exits with 1 if a mark is missed.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attackers
import tls
from attackers import HASH_BOMB, Gone, Peer, client_context, client_hello, empty_lists, frame, hello_of, linked, without
from common import WAIT_SECONDS, options, peak_growth, run, verdict

from warren_raft.certificates.ca import Authority
from warren_raft.raft.links.wire import (
    FIRST,
    GIVEN_UP,
    MORE,
    encode,
    first_body,
    frame_head,
)

CONNECTIONS = 10_000
FRAMES = 1_000_000
CALLERS = 16
OPEN_AT_ONCE = 100
FRAMES_BEFORE_TLS = 25
FRAMES_OF_REMOVED = 500
DENSE_FRAMES = 400
DENSE_AT_ONCE = 8
CHUNK_FRAMES = 128
CHUNKS_AT_ONCE = 20
"""Chunks that are sent without waiting for the manager."""
FRAMES_A_LINK = 20_000
"""After these frames comes a frame that costs the link."""
BUSY_SECONDS_MIN = 1.0
ATTACK_SECONDS_MAX = 600.0
LATER = 1 << 60

MARKS = {"writes/s of the busy loop's": 0.70, "raft thread: longest stall ms": 100.0, "RssAnon growth MiB": 16.0}
"""The first value is the least, the others are the most."""


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--part", type=float, default=1.0, help="of the connections and frames")
    parser.add_argument("--rounds", type=int, default=4, help="into which they are split")
    parser.add_argument("--attacks", default=",".join(SHARES), help="some of them, with commas")
    run(
        parser,
        lambda directory, given: measure(directory, given.attacks.split(","), given.rounds, given.part),
        table,
        is_missed=is_missed,
        manager=lambda settings: attackers.Manager(settings).run(),
        attacker=attack,
    )


class Cluster(tls.Cluster):
    script = __file__


# The attacker's process ----------------------------------------------------------------------------------------------


def attack(order: dict[str, Any]) -> None:
    """Print "ready", wait for a line, attack, and print the number of attacks."""
    work = ATTACKS[order["kind"]](order)
    print("ready", flush=True)
    sys.stdin.readline()
    done = 0
    while done < order["count"]:
        done += next(work)
    print(done, flush=True)


def hellos(order: dict[str, Any]) -> Iterator[int]:
    data = client_hello()
    return connections(order["port"], itertools.repeat((data, 1)))


def before_tls(order: dict[str, Any]) -> Iterator[int]:
    """Our frames, frames behind a ClientHello, and TLS records of noise."""
    draw = random.Random(1)
    frames = b"".join(itertools.islice(itertools.cycle(FATAL), FRAMES_BEFORE_TLS))
    records = b"".join(b"\x16\x03\x01\x02\x00" + draw.randbytes(512) for _ in range(FRAMES_BEFORE_TLS))
    chunks = [(data, FRAMES_BEFORE_TLS) for data in (frames, client_hello() + frames, records)]
    return connections(order["port"], itertools.cycle(chunks))


def connections(port: int, chunks: Iterator[tuple[bytes, int]]) -> Iterator[int]:
    held: list[socket.socket] = []
    for data, count in chunks:
        made = socket.socket()
        made.settimeout(attackers.PATIENCE_SECONDS)
        with contextlib.suppress(OSError):
            made.connect(("127.0.0.1", port))
            made.send(data)
        held.append(made)
        if len(held) > OPEN_AT_ONCE:
            held.pop(0).close()
        yield count


def guest(order: dict[str, Any]) -> Iterator[int]:
    ways = [({"node_id": order["id"]}, GUESTS), ({"node_id": order["id"], "membership_index": LATER}, AHEAD)]
    return flood(order["ports"][:1], client_context(Path(order["tls"])), itertools.cycle(ways))


def member(order: dict[str, Any]) -> Iterator[int]:
    hello = {**order["hello"], "founding": bytes.fromhex(order["hello"]["founding"])}
    return flood(order["ports"], client_context(Path(order["tls"])), itertools.repeat((hello, MEMBERS)))


def flood(
    ports: list[int], context: ssl.SSLContext, ways: Iterator[tuple[dict[str, Any], list[bytes]]]
) -> Iterator[int]:
    """Make links to these managers, one after the other. Each link sends messages that a link survives, and at the end
    one that it does not survive. Counts the messages that the manager has taken in."""
    last = itertools.cycle(FATAL)
    for port, (hello, messages) in zip(itertools.cycle(ports), ways, strict=False):
        chunk = b"".join(itertools.islice(itertools.cycle(messages), CHUNK_FRAMES))
        try:
            with linked(port, context, hello) as peer:
                for _ in range(FRAMES_A_LINK // (CHUNKS_AT_ONCE * CHUNK_FRAMES)):
                    for _ in range(CHUNKS_AT_ONCE):
                        peer.write(chunk)
                    peer.settle()
                    peer.came.clear()
                    yield CHUNKS_AT_ONCE * CHUNK_FRAMES
                peer.write(next(last))
                yield 1
                peer.settle()
        except Gone:
            yield 0


def dense(order: dict[str, Any]) -> Iterator[int]:
    hello = {"node_id": order["id"], "membership_index": LATER}
    while True:
        with contextlib.suppress(Gone), linked(order["port"], client_context(Path(order["tls"])), hello) as peer:
            while True:
                peer.write(DENSE * DENSE_AT_ONCE)
                peer.settle()
                yield DENSE_AT_ONCE


def removed(order: dict[str, Any]) -> Iterator[int]:
    hello = {**order["hello"], "founding": bytes.fromhex(order["hello"]["founding"])}
    context = client_context(Path(order["tls"]))
    data = encode(hello_of(hello)) + b"".join(itertools.islice(itertools.cycle(MEMBERS + FATAL), FRAMES_OF_REMOVED))
    while True:
        try:
            with Peer(order["port"], context) as peer:
                peer.write(data)
                yield FRAMES_OF_REMOVED
                peer.hear()
        except Gone:
            yield 0


def busy(_order: dict[str, Any]) -> Iterator[int]:
    return itertools.repeat(0)


ATTACKS = {
    "hellos": hellos,
    "pre-tls": before_tls,
    "guest": guest,
    "dense": dense,
    "removed": removed,
    "member": member,
    "busy": busy,
}
SHARES = {
    "hellos": CONNECTIONS,
    "pre-tls": FRAMES / 4,
    "guest": FRAMES / 4,
    "dense": DENSE_FRAMES,
    "removed": FRAMES / 4,
    "member": FRAMES / 4,
}
"""Attack -> the part of the work for its attacker."""


def given_up() -> bytes:
    """The first KiB of a message of 4 MiB, and the notice that the rest will not come."""
    body = first_body(0, 4 << 20, bytes(1024))
    return frame_head(2 | FIRST | MORE, body) + body + frame_head(2 | GIVEN_UP, b"") + b""


DENSE = frame(b"\xa2\x64type\x61x\x61x" + empty_lists(60_000))
REPORT = {"applied_index": 9, "version": "1", "alarms": []}
GUESTS = [
    encode({"type": "ping"}),
    encode({"type": "founding_view", "view": {"m1": "x"}, "configured": {"m1": "127.0.0.1:1"}}),
    given_up(),
]
"""The messages that a link with any certificate of the cluster survives."""
AHEAD = [
    *GUESTS,
    encode({"type": "no such type", "x": [1] * 20}),
    encode({"type": "pre_vote", "round": 1, "term": LATER, "last_log_index": LATER, "last_log_term": LATER}),
    encode({"type": "nack", "term": 1 << 62}),
    encode({"type": "snapshot_get", "sha256": "0" * 64, "offset": 0}),
    encode({"type": "snapshot_offer", "sha256": "0" * 64, "index": LATER, "size": 100}),
]
"""The messages that such a link survives, if the peer claims to belong to a later member list."""
MEMBERS = [
    *GUESTS,
    encode({"type": "nack", "term": 1 << 62}),
    encode({"type": "request_vote", "term": LATER, "last_log_index": LATER, "last_log_term": LATER, "transfer": True}),
    encode({"type": "pre_vote", "round": 1, "term": LATER, "last_log_index": LATER, "last_log_term": LATER}),
    encode({"type": "response_vote", "term": 1}),
    encode({"type": "hand_over", "term": 1, "target": "m1"}),
    encode({"type": "timeout_now", "term": 1}),
    encode({"type": "snapshot_get", "sha256": "0" * 64, "offset": 0}),
    encode({"type": "addresses", "said": []}),
    encode(
        {"type": "health", "digests": [], "low": True, "full": True, "report": REPORT, "commit": None, "settled": 1}
    ),
    encode({"type": "change_answer", "number": 1, "state": "done", "text": ""}),
]
"""The messages that the link of a member survives."""
FATAL = [
    encode({"type": "submit", "commands": [b"\x85\x17"]}),
    frame(HASH_BOMB),
    frame(b"\xa2\x64type\x61x\x61x" + empty_lists(60_000)),
    frame_head(0xFF, b""),
    b"\x01\xff\xff\xff" + bytes(1000),
    b"\x01\x00\x00\x04\x00\x00\x00\x00abcd",
    encode({"type": "append_entries"}),
    encode({"type": "nack", "term": -1}),
]
"""The messages that no link survives."""


# The figures ---------------------------------------------------------------------------------------------------------


def measure(directory: Path, attacks: list[str], rounds: int, part: float) -> dict[str, dict[str, Any]]:
    with Cluster(directory, "tls") as cluster:
        leader_id, _ = cluster.leader_and_follower()
        leader = cluster.managers[leader_id]
        orders = {**of_strangers(cluster, directory, leader_id), "member": {}}
        leader.call("load_for_ever", CALLERS)
        time.sleep(1.0)
        figures = {}
        for kind in attacks:
            count = part * SHARES[kind]
            with contextlib.ExitStack() as stack:
                if kind == "member":
                    orders[kind] = stack.enter_context(hostile_member(cluster))
                order = {"kind": kind, "ports": ports(cluster), "count": max(1, round(count / rounds)), **orders[kind]}
                order["port"] = order["ports"][0]
                figures[kind] = compared([pair(leader, order) for _ in range(rounds)])
        states = cluster.call_all("state")
        assert not any(state["failure"] for state in states), states
    return figures


def ports(cluster: Cluster) -> list[int]:
    """The ports of the managers that run, the leader's first."""
    leader_id, _ = cluster.leader_and_follower()
    ids = [leader_id, *(cluster.managers.keys() - {leader_id})]
    return [int(cluster.addresses[id_].rpartition(":")[2]) for id_ in ids]


def of_strangers(cluster: Cluster, directory: Path, leader_id: str) -> dict[str, dict[str, Any]]:
    """The facts that attackers know that are not members; the second attacker is a removed member."""
    contexts = attackers.issue(Authority(cluster.directory / "ca"), directory, "x1", "x2")
    places = {id_: str(directory / f"stranger-{id_}" / "tls") for id_ in contexts}
    hello = attackers.was_member(cluster, leader_id, "x2", contexts["x2"])
    return {
        "hellos": {},
        "pre-tls": {},
        "guest": {"id": "x1", "tls": places["x1"]},
        "dense": {"id": "x1", "tls": places["x1"]},
        "removed": {"tls": places["x2"], "hello": {**hello, "founding": ""}},
    }


@contextlib.contextmanager
def hostile_member(cluster: Cluster) -> Iterator[dict[str, Any]]:
    _, id_ = cluster.leader_and_follower()
    with without(cluster, id_) as hello:
        place = str(cluster.directory / id_ / "tls")
        yield {"tls": place, "hello": {**hello, "founding": hello["founding"].hex()}}


def pair(leader: Any, order: dict[str, Any]) -> list[dict[str, float]]:
    """Measure an attack, and a busy loop for the same time."""
    attacked = during(leader, order)
    return [during(leader, {"kind": "busy", "count": 1}, max(BUSY_SECONDS_MIN, attacked["seconds"])), attacked]


def during(leader: Any, order: dict[str, Any], seconds: float | None = None) -> dict[str, float]:
    """Measure the leader while the attacker's process works, or for `seconds`."""
    command = [sys.executable, __file__, "--attacker", json.dumps(order)]
    attacker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert attacker.stdin is not None
    assert attacker.stdout is not None
    try:
        assert attacker.stdout.readline() == "ready\n"
        own_bytes = leader.call("own_bytes")
        begin = time.monotonic()
        attacker.stdin.write("go\n")
        attacker.stdin.flush()
        with peak_growth(leader.popen.pid, every_seconds=0.02) as grown:
            if seconds is None:
                attacker.wait(ATTACK_SECONDS_MAX)
            else:
                time.sleep(seconds)
        end = time.monotonic()
    finally:
        attacker.kill()
        attacker.wait(WAIT_SECONDS)
    done = int(attacker.stdout.read() or 0)
    pace = leader.call("pace", begin, end)
    growth = grown[0] - (leader.call("own_bytes") - own_bytes)
    return {**pace, "growth": growth / 2**20, "done": done, "seconds": end - begin}


def compared(pairs: list[list[dict[str, float]]]) -> dict[str, Any]:
    def of(which: int, name: str) -> list[float]:
        return [round(each[which][name], 1) for each in pairs]

    def mean(which: int) -> float:
        whole = sum(each[which]["seconds"] for each in pairs)
        return sum(each[which]["writes/s"] * each[which]["seconds"] for each in pairs) / whole

    return {
        "connections or frames": sum(attacked["done"] for _, attacked in pairs),
        "seconds": round(sum(attacked["seconds"] for _, attacked in pairs), 1),
        "writes/s busy": of(0, "writes/s"),
        "writes/s attacked": of(1, "writes/s"),
        "writes/s of the busy loop's": round(mean(1) / max(mean(0), 1.0), 2),
        "p99 ms busy": of(0, "p99 ms"),
        "p99 ms attacked": of(1, "p99 ms"),
        "raft thread: longest stall ms busy": max(of(0, "stall ms")),
        "raft thread: longest stall ms": max(of(1, "stall ms")),
        "RssAnon growth MiB busy": max(of(0, "growth")),
        "RssAnon growth MiB": max(of(1, "growth")),
    }


def is_met(name: str, value: float) -> bool:
    return value >= MARKS[name] if name.startswith("writes") else value <= MARKS[name]


def is_missed(figures: dict[str, dict[str, Any]]) -> bool:
    return not all(is_met(name, value) for each in figures.values() for name, value in each.items() if name in MARKS)


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
