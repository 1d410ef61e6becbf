"""Scripts of scenarios: the story of the bug that the script pins, then one command a line on a cluster of real engines
(tests/engine_harness.py). `python -m tests.simulation.scenario FILE` runs a script and prints each line.

A name may stand for a manager: `call L leader`, `call F follower`, `call G follower` give names to the leader and the
followers of that moment. A line that does not hold raises an error with its number. Not here: random faults (world.py).
"""

from __future__ import annotations

import errno
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from tests.engine_harness import Cluster, Node
from warren_raft.raft.changes import DONE, REFUSED

SCENARIOS = Path(__file__).parent / "scenarios"
PATIENCE_SECONDS = 30.0


class ScenarioFailed(AssertionError):
    """A line of a script does not hold."""


class Scenario:
    """Runs one script. Each public method is a command; its words are the arguments."""

    def __init__(self) -> None:
        self._cluster = Cluster(start=False)
        self._names: dict[str, str] = {}

    def run(self, text: str, report: Callable[[str], None] = lambda _line: None) -> None:
        for number, line in enumerate(text.splitlines(), 1):
            words = shlex.split(line, comments=True)
            if not words:
                continue
            command = getattr(self, f"do_{words[0]}", None)
            if command is None:
                raise ScenarioFailed(f"line {number}: unknown command {words[0]}")
            try:
                command(*(self._names.get(word, word) for word in words[1:]))
            except (AssertionError, KeyError, ValueError) as problem:
                raise ScenarioFailed(f"line {number}: {line}: {problem!r}\n{self._cluster.describe()}") from problem
            report(f"{self._cluster.now - 1000:8.2f}  {line}")

    # Managers ----------------------------------------------------------------------------------------------------

    def do_cluster(self, *ids: str) -> None:
        """Make a cluster with these ids as its initial members. No manager runs yet."""
        self._cluster = Cluster(ids, start=False)

    def do_start(self, id_: str, *members: str) -> None:
        """`start m1 [m1 m2]`: start a manager, with its own list of initial members if one is given."""
        addresses = self._cluster.addresses
        self._cluster.start(id_, members={member: addresses[member] for member in members} or None)

    def do_join(self, id_: str, address: str) -> None:
        """Start a manager that is not an initial member."""
        self._cluster.start(id_, members={**self._cluster.initial, id_: address}, address=address)

    def do_crash(self, *ids: str) -> None:
        """kill -9 and a power cut."""
        for id_ in ids:
            self._cluster.crash(id_)

    def do_wipe(self, id_: str) -> None:
        self._cluster.wipe(id_)

    def do_call(self, name: str, what: str) -> None:
        """`call NAME leader`, or `call NAME follower`: the next follower without a name."""
        if what == "leader":
            self._names[name] = self._cluster.wait_leader().id
        else:
            named = set(self._names.values())
            self._names[name] = next(id_ for id_ in self._cluster.followers() if id_ not in named)

    # Links and disks ---------------------------------------------------------------------------------------------

    def do_isolate(self, id_: str) -> None:
        self._cluster.isolate(id_)

    def do_part(self, a: str, b: str) -> None:
        self._cluster.part(a, b)

    def do_hold(self, a: str, b: str) -> None:
        """Messages from a to b stay on the wire."""
        self._cluster.hold((a, b))

    def do_heal(self) -> None:
        self._cluster.heal()

    def do_disk(self, id_: str, what: str) -> None:
        """`disk m1 0.6` seconds a sync; `disk m1 hangs`; `disk m1 full`; `disk m1 sound`."""
        node = self._cluster.nodes[id_]
        node.disk_error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) if what == "full" else None
        if what == "hangs":
            node.disk_seconds = node.write_at = None
        elif what in ("full", "sound"):
            node.disk_seconds = 0.0
            node.write_at = self._cluster.now
        else:
            node.disk_seconds = float(what)

    # Time and work -----------------------------------------------------------------------------------------------

    def do_run(self, seconds: str) -> None:
        self._cluster.run(float(seconds))

    def do_ready(self) -> None:
        """Run until all running managers are ready."""
        self._cluster.wait_ready()

    def do_submit(self, id_: str, *texts: str) -> None:
        for text in texts:
            self._cluster.submit(id_, text)

    def do_write(self, id_: str, *texts: str) -> None:
        """Submit writes, and wait for the answers."""
        self._cluster.write(id_, *texts)

    def do_change(self, id_: str, verb: str, member: str, address: str = "") -> None:
        answer = self._cluster.change(id_, verb, member, address)
        assert answer.state == DONE, answer.text

    def do_refuse(self, id_: str, verb: str, member: str, address: str = "") -> None:
        answer = self._cluster.change(id_, verb, member, address)
        assert answer.state == REFUSED, answer.text

    def do_ask(self, id_: str, verb: str, member: str, address: str = "") -> None:
        """Ask once; each answer is accepted."""
        self._cluster.ask(id_, verb, member, address)

    # Checks ------------------------------------------------------------------------------------------------------

    def do_leads(self, id_: str, within: str, seconds: str) -> None:
        """`leads m1 within 2`, or `leads anybody within 2`."""
        assert within == "within"
        self._cluster.run_until(lambda: self._leader_is(id_), float(seconds))

    def do_notleads(self, id_: str, within: str, seconds: str) -> None:
        """Another manager leads."""
        assert within == "within"
        self._cluster.run_until(
            lambda: self._cluster.leader is not None and self._cluster.leader.id != id_, float(seconds)
        )

    def _leader_is(self, id_: str) -> bool:
        leader = self._cluster.leader
        return leader is not None and id_ in ("anybody", leader.id)

    def do_nobodyleads(self) -> None:
        assert self._cluster.leader is None, f"{self._cluster.leader and self._cluster.leader.id} leads"

    def do_names(self, id_: str, leader: str) -> None:
        """`names m1 m2`, `names m1 nobody`: the manager that m1 takes for the leader."""
        found = self._cluster.nodes[id_].engine.leader
        assert (found or "nobody") == leader, found

    def do_acknowledged(self, *texts: str) -> None:
        for text in texts:
            assert text in self._cluster.acknowledged, f"{text} is not acknowledged"

    def do_unanswered(self, *texts: str) -> None:
        for text in texts:
            assert text not in self._cluster.acknowledged, f"{text} is acknowledged"

    def do_running(self, *ids: str) -> None:
        """Exactly these managers run."""
        assert set(ids) == set(self._cluster.nodes), f"running: {sorted(self._cluster.nodes)}"

    def do_voters(self, id_: str, *members: str) -> None:
        """The voters in the list that the manager has applied."""
        votes = {member for member, voter in self._cluster.members(id_).items() if voter}
        assert votes == set(members), sorted(votes)

    def do_blank(self, id_: str) -> None:
        """The manager's log is blank: nothing was ever written to it."""
        assert self._node(id_).log.is_blank

    def do_kept(self) -> None:
        """Each acknowledged write is applied exactly once on every manager, and all managers have the same writes."""
        self._cluster.check_writes()

    def _node(self, id_: str) -> Node:
        return self._cluster.nodes[id_]


def run_file(path: Path, report: Callable[[str], None] = lambda _line: None) -> None:
    text = path.read_text(encoding="utf-8")
    if not text.startswith("# "):
        raise ScenarioFailed(f"{path.name} does not open with its story")
    Scenario().run(text, report)


if __name__ == "__main__":
    run_file(Path(sys.argv[1]), print)
