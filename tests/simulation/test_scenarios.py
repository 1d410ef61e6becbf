"""Each bug that a few lines can tell has a script, which runs on the real engines."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.simulation.planted import Change, changed
from tests.simulation.scenario import SCENARIOS, Scenario, ScenarioFailed, run_file
from warren_raft.raft.elections import Elections
from warren_raft.raft.forming import Forming
from warren_raft.raft.leading import Leading
from warren_raft.raft.outbox import Outbox
from warren_raft.raft.progress import Followers
from warren_raft.raft.roster import Roster
from warren_raft.raft.votes import Votes


@pytest.mark.parametrize("path", sorted(SCENARIOS.glob("*.txt")), ids=lambda path: path.stem)
def test_a_scenario_holds(path: Path) -> None:
    run_file(path)


def test_a_script_that_does_not_hold_fails_at_its_line() -> None:
    script = "cluster m1\nstart m1\nready\n\nleads m2 within 1  # it does not exist\n"
    with pytest.raises(ScenarioFailed, match="line 5"):
        Scenario().run(script)


def test_a_word_that_is_no_command_fails() -> None:
    with pytest.raises(ScenarioFailed, match="unknown command expect"):
        Scenario().run("expect nothing")


BROKEN: dict[str, tuple[Change, ...]] = {
    "slow_disks_elect": (
        Change(Elections, "tick", "if not candidacy.is_durable:", "if False:"),
        Change(Votes, "on_pre_vote", "self._outbox.send_when_synced(peer, reply)", "self._outbox.send(peer, reply)"),
    ),
    "a_dead_leader_is_nobodys_leader": (
        Change(Leading, "leader", "return leader if is_heard else None", "return leader"),
    ),
    "a_joiner_reads_how_its_predecessor_was_removed": (
        Change(
            Roster,
            "was_removed",
            "self._log.incarnation in self.membership.removed",
            "self.node_id not in self.membership.members",
        ),
    ),
    "a_successor_has_acknowledged_nothing": (Change(Followers, "forget", "self._progress.pop(peer, None)", "pass"),),
    "different_lists_form_nothing": (
        Change(Forming, "_agrees", "link.view == self._declared and link.configured", "True or link.configured"),
    ),
    "the_founders_count_whatever_is_configured": (
        Change(
            Roster,
            "_choose_list",
            "        elif self.founding is not None:\n            self.members = self.founding.members\n",
            "",
        ),
    ),
    "a_partial_partition_costs_no_leader": (
        Change(
            Elections,
            "answer_pre_vote",
            "and (peer == self.leader or not self.leader_is_alive(now, is_leader=candidacy.is_leader))",
            "and True",
        ),
        Change(Elections, "leader_is_alive", "return is_leader or (", "return is_leader or (False and "),
    ),
    "everybody_crashes_with_a_vote_on_the_way": (Change(Outbox, "send_when_synced", "self._log.position", "0"),),
}
"""Scenario -> the changes that take the rule of its story out of the product."""


@pytest.mark.parametrize("name", BROKEN)
def test_a_scenario_fails_without_the_rule_that_it_tells_of(name: str) -> None:
    """A script that always holds, whether or not the product has the rule, pins nothing."""
    with changed(BROKEN[name]), pytest.raises(ScenarioFailed):
        run_file(SCENARIOS / f"{name}.txt")
