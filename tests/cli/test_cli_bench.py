"""The promise: `bench` asks before it writes to a cluster, and removes all that it wrote, also after a failure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_support import Command

from warren_raft.admin.client import AdminClient
from warren_raft.errors import Unavailable
from warren_raft_cli.bench import PREFIX, Load


def volumes(warren: Command, manager: Path) -> list[str]:
    listed = warren("list", "volumes", "-o", "json", "--data-dir", manager).json
    return [each["id"] for each in listed if each["id"].startswith(PREFIX)]


@pytest.mark.slow
def test_it_measures_and_removes_what_it_wrote(warren: Command, manager: Path) -> None:
    AdminClient(manager).put("volume", {"id": f"{PREFIX}killed-0"})  # the rest of a run that was killed
    ran = warren(
        "bench", "--seconds", "1", "--clients", "2", "--size", "1000", "--yes", "-o", "json", "--data-dir", manager
    )
    found = ran.json
    assert found["writes"] >= 2
    assert 0 < found["p50_seconds"] <= found["p99_seconds"] <= found["max_seconds"]
    assert found["writes_per_second"] == pytest.approx(found["writes"] / found["seconds"], rel=0.01)
    assert found["manager_p99_seconds"]["write"] > 0
    assert list(found["write_stages_p99_seconds"]) == ["queue", "sync", "apply", "wake"]
    assert (found["clients"], found["size_bytes"], found["node_id"]) == (2, 1000, "m1")
    assert volumes(warren, manager) == []


def test_without_a_yes_nothing_is_written(warren: Command, manager: Path) -> None:
    before = AdminClient(manager).status()["revision"]
    ran = warren("bench", "-o", "json", "--data-dir", manager)
    error = json.loads(ran.err)["error"]
    assert (ran.code, error["name"]) == (4, "RefusedForSafety")
    assert "--yes" in error["text"]
    assert AdminClient(manager).status()["revision"] == before


def test_the_first_write_that_fails_ends_it_and_nothing_remains(
    warren: Command, manager: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, calls = AdminClient.put, []

    def failing(self: AdminClient, *arguments: Any, **named: Any) -> int:
        calls.append(arguments)
        if len(calls) == 5:
            raise Unavailable("no leader", maybe_applied=True)
        return put(self, *arguments, **named)

    monkeypatch.setattr(AdminClient, "put", failing)
    ran = warren("bench", "--seconds", "60", "--clients", "2", "--yes", "--data-dir", manager)
    assert ran.code == 6
    assert "no leader" in ran.err
    assert volumes(warren, manager) == []


def test_volumes_that_cannot_be_removed_are_named(
    warren: Command, manager: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_arguments: Any, **_named: Any) -> int:
        raise Unavailable("no leader", maybe_applied=False)

    with monkeypatch.context() as patch:
        patch.setattr(AdminClient, "put", refused)
        patch.setattr(AdminClient, "delete", refused)
        ran = warren("bench", "--yes", "--data-dir", manager)
    assert ran.code == 6
    assert f"volumes whose ids begin with {PREFIX} may remain" in ran.err


def test_a_quantile_is_the_duration_that_so_many_did_not_exceed() -> None:
    load = Load(1.0, [float(number) for number in range(1, 101)])
    assert [load.quantile(share) for share in (0.5, 0.99, 1.0)] == [50.0, 99.0, 100.0]
    assert Load(1.0, [7.0]).quantile(0.99) == 7.0
