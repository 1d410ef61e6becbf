"""Promise: a test of a program can have each error that the program must handle, at the write that it chooses, with the
write carried out or not. Afterwards the store is as it was. The pytest plugin costs a project nothing that does not use
it.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import warren_raft as wr
from tests.cluster.harness import wait_until
from tests.unit.test_package import modules_after
from warren_raft.store.fence import Fence
from warren_raft.testing import Cluster, fail_next, lose_leadership, lose_watches

DEADLINE = 60.0
LATE = wr.Unavailable("no answer in time", maybe_applied=True)
NODE = wr.Node(id="n")


def names(store: wr.Store) -> list[str]:
    return [node.id for node in store.list_nodes()]


async def awaited(store: wr.Store) -> None:
    await store.aio.create_node(NODE)


def with_a_future(store: wr.Store) -> None:
    with store.batch(wait=False) as batch:
        batch.create_node(NODE)
    batch.future.result(DEADLINE)


def in_a_batch(store: wr.Store) -> None:
    with store.batch() as batch:
        batch.create_node(NODE)


def by_a_lead(store: wr.Store) -> None:
    with store.leading() as lead:
        lead.create_node(NODE)


WAYS: dict[str, Callable[[wr.Store], object]] = {
    "write": lambda store: store.create_node(NODE),
    "batch": in_a_batch,
    "future": with_a_future,
    "lead": by_a_lead,
    "aio": lambda store: asyncio.run(awaited(store)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("applied", [True, False])
def test_a_write_fails_in_every_way_that_a_program_makes_it(
    warren_store: wr.LocalStore, way: str, applied: bool
) -> None:
    with fail_next(warren_store, LATE, applied=applied), pytest.raises(wr.Unavailable) as raised:
        WAYS[way](warren_store)
    assert raised.value is LATE
    assert names(warren_store) == (["n"] if applied else [])
    WAYS[way](warren_store)
    assert names(warren_store) == ["n"]


@pytest.mark.parametrize(
    "error",
    [
        wr.Unavailable("no leader", maybe_applied=False),
        wr.LeadershipLost(1),
        wr.StorageFull("the disk is full"),
        wr.RevisionConflict("node", "n", 1, 2),
    ],
)
def test_any_error_of_a_write(warren_store: wr.LocalStore, error: wr.WarrenError) -> None:
    with fail_next(warren_store, error), pytest.raises(type(error)) as raised:
        warren_store.create_node(NODE)
    assert raised.value is error
    assert names(warren_store) == []
    with pytest.raises(wr.Misuse, match="never applied"), fail_next(warren_store, error, applied=True):
        raise AssertionError("the block began")


def test_the_write_that_fails_is_chosen(warren_store: wr.LocalStore) -> None:
    with fail_next(warren_store, LATE, after=2):
        for name in ("a", "b"):
            warren_store.create_node(wr.Node(id=name))
        warren_store.barrier()
        with pytest.raises(wr.Unavailable):
            warren_store.create_node(wr.Node(id="c"))
        warren_store.create_node(wr.Node(id="d"))
    assert names(warren_store) == ["a", "b", "d"]


def test_the_same_write_again_with_its_request_id_is_carried_out_once(warren_store: wr.LocalStore) -> None:
    """The remedy that docs/embedding.md gives, after a write of which nobody knows whether it was carried out."""
    for applied in (True, False):
        with fail_next(warren_store, LATE, applied=applied), pytest.raises(wr.Unavailable):
            warren_store.create_node(NODE, request_id=f"job-{applied}")
        revision = warren_store.create_node(NODE, request_id=f"job-{applied}")
        assert warren_store.create_node(wr.Node(id="other"), request_id=f"job-{applied}") == revision
    assert names(warren_store) == ["n"]


def test_a_fault_that_never_comes_fails_the_test(warren_store: wr.LocalStore) -> None:
    with pytest.raises(AssertionError, match="no write has raised"), fail_next(warren_store, LATE):
        warren_store.list_nodes()
    with pytest.raises(ZeroDivisionError), fail_next(warren_store, LATE):
        raise ZeroDivisionError
    with (
        pytest.raises(wr.Misuse, match="within fail_next already"),
        fail_next(warren_store, LATE),
        fail_next(warren_store, LATE),
    ):
        raise AssertionError("the block began")
    warren_store.create_node(NODE)


async def refused(store: wr.Store) -> None:
    await store.aio.create_node(NODE, if_revision=7)


def refused_later(store: wr.Store) -> None:
    with store.batch(wait=False) as batch:
        batch.create_node(NODE, if_revision=7)
    batch.future.result(DEADLINE)


@pytest.mark.parametrize(
    "way",
    [
        lambda store: store.create_node(NODE, if_revision=7),
        refused_later,
        lambda store: asyncio.run(refused(store)),
    ],
)
def test_a_write_that_is_refused_has_its_own_error(
    warren_store: wr.LocalStore, way: Callable[[wr.Store], object]
) -> None:
    with fail_next(warren_store, LATE, applied=True), pytest.raises(wr.RevisionConflict):
        way(warren_store)
    assert names(warren_store) == []


def test_a_lost_leadership_ends_the_lead_and_begins_the_next(warren_store: wr.LocalStore) -> None:
    told: list[tuple[bool, int]] = []
    led: list[int] = []
    warren_store.on_leadership(lambda leads, term: told.append((leads, term)))

    def run(lead: wr.Lead) -> None:
        led.append(lead.term)
        lead.wait_over()

    warren_store.run_while_leading(run)
    with warren_store.leading() as lead, ThreadPoolExecutor(1) as pool:
        over = pool.submit(lead.wait_over, DEADLINE)
        wait_until(lambda: led == [1] and told == [(True, 1)], "the first lead")
        lose_leadership(warren_store)
        assert over.result(DEADLINE)
        with pytest.raises(wr.LeadershipLost) as lost:
            lead.create_node(NODE)
        assert lost.value.term == 1
    wait_until(lambda: led == [1, 2] and told == [(True, 1), (False, 2), (True, 2)], "the next lead")
    with warren_store.leading() as lead:
        lead.create_node(NODE)
    assert (lead.term, warren_store.status().term, names(warren_store)) == (2, 2, ["n"])


def test_lost_watches_raise_and_the_next_ones_do_not(warren_store: wr.LocalStore) -> None:
    async def followed() -> None:
        async with warren_store.aio.watch() as events:
            lose_watches(warren_store)
            with pytest.raises(wr.WatchLost):
                await events.take(DEADLINE)

    with warren_store.watch() as events:
        warren_store.create_node(NODE)
        wait_until(lambda: events._feed.queue, "an event")
        lose_watches(warren_store)
        assert next(events).id == "n"
        with pytest.raises(wr.WatchLost) as lost:
            next(events)
        assert lost.value.resume_from == warren_store.get_node("n").revision
    asyncio.run(followed())
    lose_watches(warren_store)
    with warren_store.watch() as events:
        warren_store.delete_node("n")
        assert next(events).operation == "delete"


def test_faults_of_a_manager(tmp_path: Path) -> None:
    with Cluster(1) as cluster:
        store = cluster.leader
        with fail_next(store, LATE, applied=True), pytest.raises(wr.Unavailable):
            store.create_node(NODE)
        with store.leading() as lead, fail_next(store, wr.LeadershipLost(1)), pytest.raises(wr.LeadershipLost):
            lead.delete_node("n")
        assert names(store) == ["n"]
        with pytest.raises(wr.Misuse, match="transfer_leadership"):
            lose_leadership(store)
        with store.watch() as events:
            lose_watches(store)
            with pytest.raises(wr.WatchLost):
                next(events)


# The page -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_tests_in_the_page_on_embedding_pass(tmp_path: Path) -> None:
    page = (Path(wr.__file__).parent.parent / "docs" / "embedding.md").read_text(encoding="utf-8")
    section = page[page.index("## Test your program") : page.index("### Seed by seed")]
    loop, *_ = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    tests = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    (file,) = re.findall(r"`python -m pytest (test_\w+\.py)`", section)  # the page says how to run them
    assert "`pip install pytest`" in section
    (tmp_path / file).write_text("\n".join([loop, *tests]))
    assert run_pytest(tmp_path, file).startswith("4 passed")


# The plugin -----------------------------------------------------------------------------------------------------------


def run_pytest(directory: Path, *files: str) -> str:
    """The last line of pytest in a directory."""
    command = [sys.executable, "-m", "pytest", *files, "-q", "-p", "no:cacheprovider", "-W", "error"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_the_fixtures_come_with_the_installation(tmp_path: Path) -> None:
    """As in a project that has warren_raft installed, and no setting for it."""
    (tmp_path / "test_project.py").write_text(
        "def test_cluster(warren_cluster):\n"
        "    assert len(warren_cluster.stores) == 3 and warren_cluster.leader.is_leader\n"
        "def test_store(warren_store, tmp_path):\n"
        "    assert warren_store.list_nodes() == [] and list(tmp_path.iterdir())\n"
    )
    assert run_pytest(tmp_path).startswith("2 passed")


def test_the_plugin_loads_nothing_until_a_fixture_is_used() -> None:
    new = modules_after("import pytest, warren_raft.testing.pytest_plugin") - modules_after("import pytest")
    assert new == {"warren_raft", "warren_raft.testing", "warren_raft.testing.pytest_plugin"}


def test_the_package_needs_no_pytest() -> None:
    assert not {name for name in modules_after("from warren_raft.testing import *") if name.startswith("_pytest")}


def test_a_write_of_an_earlier_term_is_refused_when_its_commit_begins(warren_store: wr.LocalStore) -> None:
    """(Pins a fault: a write that had passed the look at its lead was carried out beside the next lead.)"""
    with warren_store.leading() as lead:
        fence = Fence(lead.term)
        lose_leadership(warren_store)
        wait_until(lambda: warren_store._term > fence.term, "the next term")
        with pytest.raises(wr.LeadershipLost):
            warren_store._execute((), 5.0, fence=fence)
