"""The promise: under all faults of managers, disks and network, in any order, no acknowledged write is lost or doubled,
and the answers about shared records are linearizable.

This is a minute of scripts/torture.sh, which runs for any time.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cluster import torture
from tests.cluster.checkers import check_linearizability
from tests.cluster.history import History


def test_a_minute_of_torture() -> None:
    tally = torture.run(seed=20, minutes=1)
    print(tally)
    assert tally.kills >= 5, tally
    assert tally.faults.total() >= 2 * torture.FAULTS_A_ROUND, tally
    assert tally.outcomes["ok"] >= 1_000, tally
    assert tally.verdicts["linearizable"] >= 10, tally
    assert tally.verdicts["not decided"] <= tally.verdicts.total() // 10, tally


def journal(directory: Path, name: str, *calls: tuple[str, object, object, str, object]) -> None:
    """Write one writer's file. Each call: operation, value, detail, outcome, answer; all on one key, one after the
    other."""
    lines = []
    for number, (operation, value, detail, outcome, answer) in enumerate(calls, 1):
        begin = 10.0 * number
        lines.append([number, begin, "intent", operation, "slot-1-0", value, detail])
        lines.append([number, begin + 1, "told", outcome, answer])
    (directory / f"{name}.journal").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_stale_read_is_found(tmp_path: Path) -> None:
    """The check must be able to fail: a read after a barrier does not see a write that was acknowledged before it."""
    writes = [("slot put", "a", None, "ok", 1), ("slot cas", "b", 1, "ok", 2)]
    journal(tmp_path, "m1-1-0-0", *writes, ("read", None, None, "read", [2, "b"]))
    assert check_linearizability(History(tmp_path).read()) == {"linearizable": 1}
    journal(tmp_path, "m1-1-0-0", *writes, ("read", None, None, "read", [1, "a"]))
    with pytest.raises(AssertionError, match="not linearizable"):
        check_linearizability(History(tmp_path).read())


def test_a_write_without_a_known_end_may_take_effect_after_its_caller_was_told_so(tmp_path: Path) -> None:
    """(Pins a fault of this check: the time at which the caller was told "perhaps" was taken for the end.)"""
    journal(
        tmp_path,
        "m1-1-0-0",
        ("slot put", "a", None, "ok", 1),
        ("slot cas", "b", 1, "unknown", "no leader"),
        ("read", None, None, "read", [1, "a"]),
        ("read", None, None, "read", [2, "b"]),
    )
    assert check_linearizability(History(tmp_path).read()) == {"linearizable": 1}


def test_a_condition_that_did_not_hold_is_found(tmp_path: Path) -> None:
    writes = [("slot put", "a", None, "ok", 1), ("slot put", "b", None, "ok", 2), ("slot cas", "c", 1, "ok", 3)]
    journal(tmp_path, "m1-1-0-0", *writes)
    with pytest.raises(AssertionError, match="not linearizable"):
        check_linearizability(History(tmp_path).read())
