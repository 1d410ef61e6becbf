"""Attacks against a running cluster, each by several attackers, and their results.

    python benchmarks/attacks.py [--seconds 1] [--managers 3] [--directory DIR] [--json]

Three manager processes with TLS on one machine; two callers write at the leader. The attackers: a process without a
certificate; a process with a certificate of the cluster that is not a member's; a removed member; and a member (the
member is stopped, and the attacker has its certificate and its directory). Each attack is made against every manager,
at least once, and for `--seconds`. Exits with 1 if a manager stopped, if something was read or changed, or if a mark is
missed. The times have no mark, because they need a quiet machine; benchmarks/hostile.py judges them.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import attackers
import common
import tls
from attackers import HASH_BOMB, Gone, Message, Peer, client_hello, empty_lists, frame, hello_of, linked, no_certificate
from common import options, peak_growth, run

import warren_raft as wr
from warren_raft.certificates.ca import Authority
from warren_raft.certificates.credentials import Credentials
from warren_raft.certificates.tls_session import Session
from warren_raft.raft import entries
from warren_raft.raft.links.wire import (
    FIRST,
    MORE,
    encode,
    first_body,
    frame_head,
)
from warren_raft.raft.membership import (
    REMOVE,
    Change,
    Founding,
    Member,
)
from warren_raft.store import codec
from warren_raft.store.command import (
    OPEN_SESSION,
    PUT,
    Command,
    Operation,
    new_session,
)
from warren_raft.store.command import encode as encode_command
from warren_raft.store.tables import CA, CA_ID

CALLERS = 2
LATER = 1 << 60
SECRET = b"only members may read this"
AUTHORITY = b"the CA of the orchestrator"
HOSTILE = b"the CA of an attacker"
GUESTS = 200

MARKS = {"growth MiB": 16.0, "descriptors": 100.0, "log KiB": 64.0}
"""The most that one attack by one attacker may cost."""
GROWTH_MARKS = {"non-member": 32.0, "member": 48.0}
"""The marks for the attack that begins messages and does not end them. All guests together may have 12 MiB of these, a
member 16 MiB in each of two lanes. The memory of a link that is dropped goes to the next link, not to the system."""


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each attack by each attacker")
    parser.add_argument("--managers", type=int, default=3, help="how many of them are attacked, the leader first")
    run(
        parser,
        lambda directory, arguments: measure(directory, arguments.seconds, arguments.managers),
        table,
        is_missed=lambda rows: any(row["wrong"] for row in rows),
        manager=lambda settings: Manager(settings).run(),
    )


# The managers --------------------------------------------------------------------------------------------------------


class Manager(attackers.Manager):
    def furnish(self) -> None:
        """Write the records that an attacker would like to have, and take a snapshot of them."""
        self.store.save_ca(AUTHORITY)
        self.store.create_secret(wr.Secret(id="s", name="s", data=SECRET))
        keeper = self.store._parts.opened.keeper
        self.store._parts.driver._loop.call_soon_threadsafe(keeper.took, keeper.take(quorum=True)(), set())
        common.wait_for(lambda: keeper.held, "a snapshot")

    def furniture(self) -> list[Any]:
        """All records that no caller writes."""
        with self.store.read() as view:
            secrets = [(secret.id, secret.data.decode(), secret.revision) for secret in view.list_secrets()]
            authority = view.get_ca().decode()
        counts = {**self.store.status().to_json()["counts"], "containers": "those of the callers"}
        return [secrets, authority, counts, sorted(self.member_ids())]

    def write_one(self) -> None:
        """Make a write, which goes through the raft thread and the log: earlier messages are handled by then."""
        self.store.barrier(timeout=common.WAIT_SECONDS)

    def rest(self) -> None:
        """Stop the callers' writes."""
        self.stop.set()


class Cluster(tls.Cluster):
    """A cluster; its first manager is attacked before the others start."""

    script = __file__

    def __init__(self, directory: Path, attacked: int) -> None:
        self.rows: list[dict[str, Any]] = []
        self.attacked = attacked
        super().__init__(directory, "tls")

    def launch(self, id_: str) -> Any:
        if id_ == "m2" and not self.rows:
            self._issue("m2")
            self.rows = [forge_founders(self, name) for name in ("no certificate", "non-member", "member")]
        return super().launch(id_)

    def port(self, id_: str) -> int:
        return int(self.addresses[id_].rpartition(":")[2])


# Attackers -----------------------------------------------------------------------------------------------------------


Way = tuple[ssl.SSLContext | None, Message]
"""An attacker's certificate (None: it speaks no TLS), and its hello."""


@dataclass
class Attacker:
    """`ways`: the ways in which it tries to make a link."""

    name: str
    ways: Callable[[], list[Way]]
    place: Path | None = None
    """The directory of the member that it plays."""

    @property
    def is_member(self) -> bool:
        return self.place is not None


@dataclass
class Scene:
    """The targets of an attack."""

    cluster: Cluster
    attacker: Attacker
    ports: list[int]
    """The ports of the managers that run, the leader's first."""
    leader: dict[str, Any]
    """The facts that an attacker may know about the leader."""
    heard: bytearray = field(default_factory=bytearray)
    outcomes: Counter[str] = field(default_factory=Counter)

    def came_of(self, gone: Gone) -> None:
        self.outcomes[str(gone).partition(":")[0]] += 1

    def connect(self, port: int, way: Way, say: Callable[[Peer], None], *, hello: bool) -> None:
        """Connect, and call `say`. Each end is noted as an outcome. `hello`: make a link first, if the attacker speaks
        TLS."""
        try:
            with linked(port, way[0], way[1]) if hello and way[0] is not None else Peer(port, way[0]) as peer:
                try:
                    say(peer)
                finally:
                    self.heard += peer.came
        except Gone as gone:
            self.came_of(gone)

    def say(self, first: Sequence[bytes], then: Sequence[bytes]) -> None:
        """Send to every manager, in each way: `first` at the beginning of a connection, `then` on a link."""
        for port in self.ports:
            ways = self.attacker.ways()
            for data in [] if self.attacker.is_member else first:  # a member sends all on its link
                self.connect(port, ways[0], partial(self.say_all, [data]), hello=False)
            for way in ways:
                left = list(then)
                while left:
                    before = len(left)
                    self.connect(port, way, partial(self.say_all, left), hello=True)
                    if len(left) == before:
                        break  # it gets no link

    def say_all(self, left: list[bytes], peer: Peer) -> None:
        """Send one after the other, until one costs the connection."""
        while left:
            peer.write(left.pop(0))
            peer.settle()
            self.outcomes["ignored"] += 1


def ahead(id_: str, leader: Message) -> Message:
    return {"node_id": id_, "cluster_id": leader["cluster_id"], "membership_index": LATER}


# Attacks -------------------------------------------------------------------------------------------------------------


def stop_by_refusal(scene: Scene) -> None:
    refused = encode({"type": "refused", "code": "removed", "text": "removed"})
    scene.say([refused], [refused])
    if scene.attacker.is_member:
        answer_dials(scene, refused)


def answer_dials(scene: Scene, data: bytes) -> None:
    """Send bytes in the place of the member, to every manager that dials it."""
    place = scene.attacker.place
    assert place is not None
    credentials = Credentials.load(place / "tls", place.name)
    with socket_of(scene.cluster.port(place.name)) as listener:
        for _ in scene.ports:
            connected, _ = listener.accept()
            with connected:
                session = Session(credentials.server, is_server=True)
                while not session.shake():
                    connected.sendall(session.take())
                    session.feed(connected.recv(65_536))
                connected.sendall(session.take() + session.write(data))
                while connected.recv(65_536):
                    pass
            scene.outcomes["dialled"] += 1


def socket_of(port: int) -> socket.socket:
    listener = socket.create_server(("127.0.0.1", port))
    listener.settimeout(attackers.PATIENCE_SECONDS)
    return listener


def hash_bomb(scene: Scene) -> None:
    me = scene.attacker.ways()[0][1]
    hello = encode(hello_of({**me, "founding": HASH_BOMB}))
    fields = [
        {"type": "founding", "founding": HASH_BOMB},
        {"type": "submit", "commands": [HASH_BOMB]},
        {"type": "append_entries", **after(scene.leader, [b"\x00\x01" + HASH_BOMB])},
    ]
    scene.say([frame(HASH_BOMB), hello], [frame(HASH_BOMB), *map(encode, fields)])


def claim_membership(scene: Scene) -> None:
    said = [encode({"type": kind, **fields}) for kind, fields in one_of_each(scene.leader).items()]
    scene.say([encode(hello_of(ahead("x", scene.leader["hello"])))], said)


def nack(scene: Scene) -> None:
    said = encode({"type": "nack", "term": 1 << 62})
    scene.say([said], [said])


def unreadable_command(scene: Scene) -> None:
    in_log(scene, [b"\x85\x17" + encode_command(Command(5, 1, 1))[2:]])


def replace_ca(scene: Scene) -> None:
    """Try to replace the CA by a write, and by an entry of a leader. (A member may write.)"""
    session = new_session(scene.attacker.ways()[0][1]["node_id"], lambda _: 7)
    steps = (Operation(OPEN_SESSION), Operation(PUT, CA.number, CA_ID, codec.encode(CA, HOSTILE)))
    commands = [encode_command(Command(session, n, n, (step,))) for n, step in enumerate(steps, 1)]
    in_log(scene, commands, may_submit=scene.attacker.is_member)


def in_log(scene: Scene, commands: list[bytes], *, may_submit: bool = False) -> None:
    """Try to get commands into the log. `may_submit`: a member may submit them, so it does not try that."""
    entry = entries.encode_commands(commands)
    term = scene.leader["term"]
    said = [
        {"type": "append_entries", **after(scene.leader, [entry])},
        {"type": "append_entries", **after(scene.leader, [entry], term=term)},
        {"type": "large_entry", "number": 1, "term": term + 1, "entry": entry},
    ]
    if not may_submit:
        said += [
            {"type": "submit", "commands": commands},
            {"type": "submit_large", "number": 1, "heard": 0, "command": commands[-1], "milliseconds": 9000},
        ]
    scene.say([encode(message) for message in said[-1:]], [encode(message) for message in said])


def download(scene: Scene) -> None:
    wanted = [{"type": "snapshot_wanted", "index": 1}]
    wanted += [{"type": "snapshot_get", "sha256": sha256, "offset": 0} for sha256 in scene.leader["snapshots"]]
    scene.say([encode(wanted[-1])], [encode(message) for message in wanted])


def remove_members(scene: Scene) -> None:
    """Try to remove members by an operator's request, and by entries of a leader. (A member may request it.)"""
    others = [id_ for id_ in scene.cluster.addresses if id_ != "m1"]
    wishes = [
        {"type": "change", "number": number, "verb": REMOVE, "id": id_, "address": "", "incarnation": None}
        for number, id_ in enumerate(others, 1)
    ]
    known = scene.leader["incarnations"]
    removals = [entries.encode_change(Change(REMOVE, id_, incarnation=known[id_])) for id_ in others]
    led = [{"type": "append_entries", **after(scene.leader, removals)}]
    said = led if scene.attacker.is_member else wishes + led
    scene.say([encode(said[-1])], [encode(message) for message in said])


def descriptors(scene: Scene) -> None:
    """Make many connections. Half of them send nothing, the others a ClientHello, or all that a link needs."""
    held = []
    for number, port in zip(range(GUESTS), itertools.cycle(scene.ports), strict=False):
        with contextlib.suppress(Gone):
            peer = Peer(port, scene.attacker.ways()[0][0] if number % 2 else None)
            held.append(peer)
            if not number % 2:
                peer.write(client_hello())
    for peer in held:
        try:
            peer.take()
            scene.outcomes["held"] += 1
        except Gone as gone:
            scene.came_of(gone)
        peer.close()


def grow(scene: Scene) -> None:
    """Send messages of 16 MiB without their last byte, in each lane of as many links as possible."""
    held: list[Peer] = []
    part, size = bytes(64 * 1024 - 12), 16 << 20
    for port, way in itertools.product(scene.ports, scene.attacker.ways()):
        try:
            peer = Peer(port) if way[0] is None else linked(port, way[0], way[1])
            held.append(peer)
            for lane in (1, 2):
                first = first_body(0, size, part)
                peer.write(frame_head(lane | FIRST | MORE, first) + first)
                for _ in range(size // len(part) - 1):
                    peer.write(frame_head(lane | MORE, part) + part)
        except Gone as gone:
            scene.came_of(gone)
    for peer in held:
        with contextlib.suppress(Gone):
            peer.take()
            scene.outcomes["held"] += 1
        peer.close()


def lists(scene: Scene) -> None:
    small, large = b"\xa2dtypeaxax" + empty_lists(60_000), b"\xa2dtypeaxax" + empty_lists(1 << 20)
    step = 64 * 1024 - 12
    first = first_body(0, len(large), large[:step])
    parts = [frame_head(1 | FIRST | MORE, first) + first]
    for at in range(step, len(large), step):
        part = large[at : at + step]
        parts.append(frame_head(1 | (MORE if at + step < len(large) else 0), part) + part)
    scene.say([frame(small)], [frame(small), b"".join(parts)])


def fill_log(scene: Scene) -> None:
    """Send all messages that make a manager write a log line, as often as possible."""
    for port in scene.ports:
        for number in range(12):
            way = scene.attacker.ways()[-(number % 2)]
            data = b"GET / HTTP/1.1\r\n\r\n" + os.urandom(100) if number % 3 else client_hello()
            scene.connect(port, way, partial(scene.say_all, [data]), hello=False)


ATTACKS: dict[str, Callable[[Scene], None]] = {
    '"refused: removed" as the first frame': stop_by_refusal,
    "hash bomb of 476 bytes": hash_bomb,
    "membership_index 2^60": claim_membership,
    "nack of term 2^62": nack,
    "command of unknown version into the log": unreadable_command,
    "replace the CA": replace_ca,
    "download the database": download,
    "remove two of three members": remove_members,
    "grow by 500 MiB": grow,
    "1 MiB of empty lists": lists,
    "200 guests": descriptors,
    "5 GB of log a day": fill_log,
}
"""After the last two, an attacker's certificate may not connect for a while."""


def after(leader: dict[str, Any], said: Sequence[bytes], term: int | None = None) -> Message:
    """Entries at the end of the leader's log, in a later term unless one is given."""
    term, last = leader["term"] + 1 if term is None else term, leader["last_index"]
    place = {"term": term, "commit_index": last + len(said), "prevLogIdx": last, "prevLogTerm": leader["last_term"]}
    return {**place, "seq": 1, "entries": [[entry, last + number, term] for number, entry in enumerate(said, 1)]}


def one_of_each(leader: dict[str, Any]) -> dict[str, Message]:
    """The messages by which a manager that is ahead makes others act."""
    term, last, sha256 = leader["term"], leader["last_index"], "0" * 64
    asked = {"last_log_index": LATER, "last_log_term": LATER}
    return {
        "append_entries": after(leader, [b"\x01"]),
        "request_vote": {"term": term + 1, **asked, "transfer": True, "why": ["x", "x"]},
        "pre_vote": {"round": 1, "term": term + 1, **asked},
        "response_vote": {"term": term + 1},
        "next_node_idx": {"next_node_idx": last + 1, "success": True, "reset": False, "re": [term, 1], "kept": LATER},
        "hand_over": {"term": term, "target": "x"},
        "timeout_now": {"term": term, "why": ["x", "x"]},
        "snapshot_offer": {"sha256": sha256, "index": LATER, "size": 100},
        "snapshot_get": {"sha256": leader["snapshots"][0], "offset": 0},
        "health": {"digests": [], "low": True, "full": True, "report": {}, "commit": [last, term], "settled": LATER},
    }


# The first start -----------------------------------------------------------------------------------------------------


def forge_founders(cluster: Cluster, name: str) -> dict[str, Any]:
    """Send the first manager a founding record that no operator named. The members of the cluster at the end count."""
    port, outcomes, me = cluster.port("m1"), Counter[str](), "m2" if name == "member" else "x"
    if name == "no certificate":
        context = no_certificate()
    elif name == "member":
        context = attackers.client_context(cluster.directory / "m2" / "tls")
    else:
        context = attackers.issue(Authority(cluster.directory / "ca"), cluster.directory, me)[me]
    forged = Founding({id_: Member(id_, "127.0.0.1:1", "f" * 32, voter=True) for id_ in ("m1", me, "m3")}).encode()
    for hello in ({"node_id": me, "founding": forged}, {"node_id": me}):
        try:
            with linked_when_it_listens(port, context, hello) as peer:
                peer.say({"type": "founding", "founding": forged})
                peer.settle()
                outcomes["ignored"] += 1
        except Gone as gone:
            outcomes[str(gone).partition(":")[0]] += 1
    return {"attack": "forge the founders of a first start", "attacker": name, **shown(outcomes), "wrong": []}


def linked_when_it_listens(port: int, context: ssl.SSLContext, hello: Message) -> Peer:
    deadline = time.monotonic() + common.WAIT_SECONDS
    while True:
        try:
            with Peer(port):
                pass
        except Gone:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return linked(port, context, hello)


# The figures ---------------------------------------------------------------------------------------------------------


def measure(directory: Path, seconds: float, attacked: int) -> list[dict[str, Any]]:
    begin = time.monotonic()
    with Cluster(directory, attacked) as cluster:
        leader_id, follower_id = cluster.leader_and_follower()
        leader = cluster.managers[leader_id]
        assert sorted(leader.call("member_ids")) == ["m1", "m2", "m3"], "the cluster has other members"
        leader.call("furnish")
        strangers = iter_strangers(cluster, directory, leader_id)
        leader.call("load_for_ever", CALLERS)
        for id_ in cluster.managers.keys() - {leader_id}:
            cluster.managers[id_].call("probe")
        rows = list(cluster.rows)
        rows.append(row(cluster, "none", Attacker("nobody", list), lambda _: time.sleep(max(seconds, 0.3)), 0.0))
        for name, attack in ATTACKS.items():
            rows += [row(cluster, name, attacker, attack, seconds) for attacker in next(strangers)]
        with attackers.without(cluster, follower_id) as own:
            rows += attacks_of_a_member(cluster, cluster.directory / follower_id, own, seconds)
        wrong = differences(cluster)
        logged, passed = log_bytes(cluster), time.monotonic() - begin
        said = (
            f"the managers logged {logged >> 10} KiB in {passed:.0f} s, {logged / passed * 86_400 / 1e6:.0f} MB a day"
        )
        said += "" if wrong else "; same state on all three"
        rows.append({"attack": "afterwards", "attacker": "", "outcome": said, "wrong": wrong})
    return rows


def iter_strangers(cluster: Cluster, directory: Path, leader_id: str) -> Iterator[list[Attacker]]:
    """For each attack the attackers that are not members, each time with other certificates: one certificate may
    connect four times a second. There is one removed member, which tries its ways in turn."""
    ids = [f"x{number}" for number in range(len(ATTACKS))]
    contexts = attackers.issue(Authority(cluster.directory / "ca"), directory, "gone", *ids)
    member = cluster.managers[leader_id].call("facts")["hello"]
    gone = attackers.was_member(cluster, leader_id, "gone", contexts["gone"])
    as_gone = itertools.cycle([gone, {"node_id": "gone"}, ahead("gone", member)])
    for id_ in ids:
        claims: list[Message] = [{"node_id": id_}, ahead(id_, member), {**member, "founding": b""}]
        claim = next(as_gone)
        yield [
            Attacker("no certificate", lambda: [(None, {"node_id": "x"}), (no_certificate(), {"node_id": "x"})]),
            Attacker("non-member", lambda id_=id_, claims=claims: [(contexts[id_], each) for each in claims]),
            Attacker("removed", lambda claim=claim: [(contexts["gone"], claim)]),
        ]


def attacks_of_a_member(cluster: Cluster, place: Path, hello: Message, seconds: float) -> list[dict[str, Any]]:
    """The results of all attacks of a member. `place`: its directory."""
    context = attackers.client_context(place / "tls")
    member = Attacker("member", lambda: [(context, hello)], place)
    rows = []
    for name, attack in ATTACKS.items():
        if attack is download:
            rows.append({"attack": name, "attacker": member.name, "outcome": "it has all of it", "wrong": []})
        else:
            rows.append(row(cluster, name, member, attack, seconds))
    return rows


def row(
    cluster: Cluster, name: str, attacker: Attacker, attack: Callable[[Scene], None], seconds: float
) -> dict[str, Any]:
    """Make one attack by one attacker. Returns its results, and the state of the cluster."""
    leader_id, _ = cluster.leader_and_follower()
    ids = [leader_id, *(cluster.managers.keys() - {leader_id})][: cluster.attacked]
    before = cluster.call_all("furniture")
    logs = log_bytes(cluster)
    facts = cluster.managers[leader_id].call("facts")
    scene = Scene(cluster, attacker, [cluster.port(id_) for id_ in ids], facts)
    begin = time.monotonic()
    with contextlib.ExitStack() as stack:
        pids = [manager.popen.pid for manager in cluster.managers.values()]
        grown = [stack.enter_context(peak_growth(pid, 0.02)) for pid in pids]
        opened = [stack.enter_context(peak_growth(pid, 0.02, count_descriptors)) for pid in pids]
        while not scene.outcomes or time.monotonic() < begin + seconds:
            attack(scene)
            if not scene.outcomes:
                break
    cluster.call_all("write_one")
    end = time.monotonic()
    figures = {
        "stall ms": max(cluster.call_all("longest_stall", begin, end)),
        "growth MiB": round(max(each[0] for each in grown) / 2**20, 1),
        "descriptors": max(each[0] for each in opened),
        "log KiB": round((log_bytes(cluster) - logs) / 1024, 1),
    }
    pace = max(cluster.call_all("pace", begin, end), key=lambda each: each["writes/s"])
    marks = {**MARKS, "growth MiB": GROWTH_MARKS.get(attacker.name, 16.0)} if attack is grow else MARKS
    wrong = [f"{mark} {figures[mark]}" for mark in marks if figures[mark] > marks[mark]]
    if cluster.call_all("furniture") != before:
        wrong.append("something was changed")
    if not attacker.is_member and (SECRET in scene.heard or AUTHORITY in scene.heard):
        wrong.append("something was read")
    wrong += [f"{state['node_id']} stopped" for state in cluster.call_all("state") if state["failure"]]
    return {
        "attack": name,
        "attacker": attacker.name,
        **shown(scene.outcomes),
        "seconds": round(end - begin, 1),
        "p99 ms": pace["p99 ms"],
        "writes/s": pace["writes/s"],
        **figures,
        "wrong": wrong,
    }


def shown(outcomes: Counter[str]) -> dict[str, str]:
    return {"outcome": ", ".join(f"{count} {what}" for what, count in outcomes.most_common())}


def log_bytes(cluster: Cluster) -> int:
    return sum(file.stat().st_size for file in cluster.directory.glob("*.log"))


def count_descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def differences(cluster: Cluster) -> list[str]:
    """The differences between the managers, after they had time to become equal."""

    def is_same() -> bool:
        states = cluster.call_all("state")
        return len({(state["applied_index"], state["digest"]) for state in states}) == 1

    cluster.call_all("rest")
    try:
        common.wait_for(is_same, "the same state on all managers")
    except TimeoutError as error:
        return [str(error)]
    return []


def table(rows: list[dict[str, Any]]) -> str:
    head = (
        "attack",
        "attacker",
        "seconds",
        "p99 ms",
        "writes/s",
        "stall ms",
        "growth MiB",
        "descriptors",
        "log KiB",
        "outcome",
    )
    lines = ["  ".join((f"{head[0]:<42}", f"{head[1]:<15}", *(f"{name:>11}" for name in head[2:-1]), head[-1]))]
    for each in rows:
        cells = [f"{each['attack']:<42}", f"{each['attacker']:<15}"]
        cells += [f"{each.get(name, ''):>11}" for name in head[2:-1]]
        wrong = f"  WRONG: {'; '.join(each['wrong'])}" if each["wrong"] else ""
        lines.append("  ".join((*cells, each["outcome"] + wrong)))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
