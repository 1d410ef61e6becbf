"""The promise: a manager that was away for any time, or that lost any part of its state, comes back by itself from the
others' snapshots or its own, under load, and without disturbance: no election, no pause, no read that fails or goes
back.

If it cannot, it says so in one line, with the commands.
"""

from __future__ import annotations

import random
import shutil
import threading
import time
from collections.abc import Callable

import pytest

import warren_raft as wr
from tests.busy_machine import in_time
from tests.cluster.harness import Cluster
from warren_raft.data_dir.origins import KnownOrigins
from warren_raft.store.codec import encode, make_record
from warren_raft.store.database import Database
from warren_raft.store.generations import StateDirectory
from warren_raft.store.tables import CONTAINER

CHANGE_SECONDS = 40.0
LARGE_BYTES = 600_000
"""Two records of this size are more than the first segment of a log holds; a log is removed by whole segments."""
PAUSE_SECONDS = 1.0
"""The longest time without an acknowledged write while a state is sent, verified and replaced: an election takes
longer."""


@pytest.fixture
def compacting(make_cluster: Callable[..., Cluster]) -> Cluster:
    return make_cluster(compaction=True, network=True)


class Watcher:
    """A ReadOnlyStore in another process than the manager's, which reads the revision all the time."""

    def __init__(self, cluster: Cluster, id_: str) -> None:
        self.problems: list[str] = []
        self.reads = 0
        self._store = wr.ReadOnlyStore(cluster.data_dir(id_))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        last = 0
        with self._store:
            while not self._stop.wait(0.001):
                try:
                    with self._store.read() as view:
                        revision = view.revision
                        count = sum(1 for _ in view.iter_containers())
                except wr.WarrenError as error:
                    self.problems.append(repr(error))
                    continue
                if revision < last:
                    self.problems.append(f"revision {revision} after {last}")
                if count == 0:
                    self.problems.append(f"no container at revision {revision}")
                last, self.reads = revision, self.reads + 1

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(30)


def fill(cluster: Cluster, count: int = 300) -> None:
    cluster.start_load()
    cluster.wait_acknowledged(count)


def test_a_follower_that_was_away_gets_a_snapshot_while_writes_go_on(compacting: Cluster) -> None:
    """No manager has the log any more that it needs. It gets a snapshot, over a link that is slow enough for the fetch
    to be seen, and replaces its state under its readers, in its own process and in another one."""
    cluster = compacting
    fill(cluster, 200)
    follower = cluster.followers()[0]
    others = [id_ for id_ in cluster.alive if id_ != follower]
    index = cluster.leave_behind(follower)
    before, leader = cluster.generation(follower), cluster.wait_leader()
    term = cluster.status(leader)["term"]
    cluster.slow_links(follower, delay_seconds=0.01)
    began = cluster.history.read().acknowledged()
    begin = time.monotonic()
    cluster.start(follower, ready=False)
    watched = cluster.ask(follower, "watch_revisions")
    watcher = Watcher(cluster, follower)
    cluster.wait(lambda: cluster.is_fetching(follower), "the fetch to be seen")
    cluster.wait(lambda: cluster.status(follower)["applied_index"] > index, "the snapshot to be in use")
    cluster.wait_ready(follower)
    cluster.wait_acknowledged(100, *others)
    end = time.monotonic()
    cluster.heal()
    watcher.stop()
    cluster.call(follower, "stop_watching")
    cluster.stop_load()
    seen = watched.result(30)
    assert seen["went_back"] == []
    assert seen["reads"] > 100
    assert seen["revisions"] > 1, "it never saw the new state"
    assert watcher.problems == []
    assert watcher.reads > 20
    assert cluster.generation(follower) > before, "it caught up without a snapshot"
    cluster.assert_no_election(leader, term)
    assert cluster.history.read().acknowledged() > began
    pause = cluster.history.longest_pause(begin, end, *others)
    with in_time():
        assert pause < PAUSE_SECONDS, f"no write was acknowledged for {pause:.2f} s"
    cluster.check()
    newest = cluster.status(follower)["revision"]
    assert KnownOrigins(cluster.data_dir(follower)).of(newest).applied_at is not None


def test_members_that_are_added_behind_a_cut_log_get_a_snapshot(compacting: Cluster) -> None:
    """A manager that was wiped, removed and added again, and a new manager: neither can get the log from its
    beginning."""
    cluster = compacting
    fill(cluster)
    cluster.wait_cut(1)
    leader, (wiped, _) = cluster.wait_leader(), cluster.followers()
    cluster.kill(wiped)
    shutil.rmtree(cluster.data_dir(wiped))
    cluster.start(wiped, ready=False)
    cluster.add_blank("m4")
    cluster.call(leader, "remove_member", id=wiped, timeout=CHANGE_SECONDS)
    for id_ in (wiped, "m4"):
        cluster.call(leader, "add_member", id=id_, address=cluster.addresses[id_], timeout=CHANGE_SECONDS)
        cluster.wait_ready(id_)
        cluster.start_load(id_, threads=1)
        cluster.wait_acknowledged(20, id_)
    cluster.stop_load()
    cluster.check()
    for id_ in (wiped, "m4"):
        assert cluster.generation(id_) > 1, f"{id_} has no state from a snapshot"


def test_kills_in_the_middle_of_an_installation(compacting: Cluster) -> None:
    """kill -9 of the fetching follower, again and again, at moments from its start until it has the state. It starts
    each time, and at the end its state equals the others'."""
    cluster = compacting
    fill(cluster, 200)
    follower = cluster.followers()[0]
    draw = random.Random(11)
    index = cluster.leave_behind(follower)
    cluster.slow_links(follower, delay_seconds=0.005)
    installed = 0
    for _ in range(4):
        cluster.start(follower, ready=False)
        reached = draw.choice((0.0, 0.3, 0.9, 1.0))  # the part of the file that it has when it is killed

        def far_enough(reached: float = reached) -> bool:
            status = cluster.status(follower)
            fetching = status["fetching"] or {"bytes": 0, "of": 1}
            return status["applied_index"] > index or fetching["bytes"] >= reached * fetching["of"] > 0

        cluster.wait(far_enough, "the fetch")
        installed += cluster.status(follower)["applied_index"] > index
        cluster.kill(follower)
        if installed:
            break
    cluster.start(follower)
    cluster.heal()
    cluster.stop_load()
    cluster.check()
    assert cluster.status(follower)["applied_index"] > index


def test_the_leader_dies_while_it_sends(compacting: Cluster) -> None:
    """The next leader goes on with the same snapshot, or sends its own."""
    cluster = compacting
    fill(cluster, 200)
    follower = cluster.followers()[0]
    index = cluster.leave_behind(follower)
    cluster.slow_links(follower, delay_seconds=0.02)
    cluster.start(follower, ready=False)
    cluster.wait(lambda: cluster.is_fetching(follower), "the fetch")
    leader = cluster.wait_leader()
    cluster.kill(leader)
    cluster.heal()
    cluster.wait(lambda: cluster.status(follower)["applied_index"] > index, "another snapshot")
    cluster.start(leader)
    cluster.stop_load()
    cluster.check()


# Damage --------------------------------------------------------------------------------------------------------------


def change_a_record(cluster: Cluster, id_: str, key: str, revision: int) -> None:
    """Change a record like damage that no checksum of the disk shows: the digest stays, and the changed file gets a
    seal."""
    state = StateDirectory(cluster.data_dir(id_))
    generation = state.current()
    assert generation is not None
    assert state.is_sealed(generation), "it was not closed cleanly"
    with Database.open_generation(state, generation, sync=True) as database, database.write() as transaction:
        rotten = make_record(revision, encode(CONTAINER, wr.Container(id=key, image="rotten")))
        assert transaction.put(CONTAINER, key, rotten) is not None
    state.seal(generation)


def test_the_odd_one_out_says_so_and_rebuilds_itself(compacting: Cluster) -> None:
    """One follower's record differs from the others'. When the record is written again the digests differ; or a
    snapshot of that state fails its verification before. In both cases the follower soon has the majority's state."""
    cluster = compacting
    revision = cluster.call("m1", "put", key="rots", value="sound")
    fill(cluster)
    cluster.wait_cut(1)
    cluster.stop_load()
    follower = cluster.followers()[0]
    cluster.wait_converged()
    before = cluster.generation(follower)
    assert KnownOrigins(cluster.data_dir(follower)).of(revision).applied_at is not None
    cluster.stop(follower)
    change_a_record(cluster, follower, "rots", revision)
    cluster.start(follower)
    cluster.call(cluster.wait_leader(), "put", key="rots", value="written again")
    cluster.wait(lambda: cluster.generation(follower) > before, "another state")
    cluster.wait(lambda: len({status["digest"] for status in cluster.statuses().values()}) == 1, "the same state")
    cluster.wait_converged()
    cluster.start_load()
    cluster.wait_acknowledged(50)
    cluster.stop_load()
    cluster.wait_converged()
    others = {id_ for id_ in cluster.alive if id_ != follower}
    cluster.wait(lambda: cluster.status(follower)["digests_compared"].keys() == others, "all to say the same")
    assert cluster.call(follower, "get", key="rots")[0] == "written again"
    assert KnownOrigins(cluster.data_dir(follower)).of(revision).applied_at is None, "it is from the wrong state"


def test_a_rotten_snapshot_is_not_used(compacting: Cluster) -> None:
    """The state may have lost pages, and a bit of the newest snapshot has flipped: the state is rebuilt from the older
    snapshot."""
    cluster = compacting
    fill(cluster)
    victim = cluster.followers()[0]
    cluster.wait_cut(1)
    cluster.kill(victim)
    newest, older = cluster.snapshots_of(victim)[:2]
    cluster.flip_bit(newest, random.Random(3))
    cluster.forge_marker(victim)
    cluster.start(victim)
    assert newest.with_name(newest.name + ".aside-damaged").exists()
    assert f"from_index={int(older.name.partition('-')[0])} " in cluster.log_of(victim).read_text()
    cluster.stop_load(*(id_ for id_ in cluster.alive if id_ != victim))
    cluster.check()


def test_a_state_whose_bit_flipped_is_rebuilt(compacting: Cluster) -> None:
    """A bit flips anywhere in the file of a stopped manager: it is noticed, and the state is rebuilt from snapshot and
    log."""
    cluster = compacting
    fill(cluster)
    victim = cluster.followers()[0]
    cluster.wait_cut(1)
    cluster.stop_load()
    cluster.stop(victim)
    before = cluster.generation(victim)
    cluster.flip_bit(cluster.state_of(victim) / f"{before}.mdb", random.Random(5))
    cluster.start(victim)
    assert cluster.generation(victim) > before
    assert list(cluster.state_of(victim).glob("*.aside-damaged"))
    cluster.check()


def test_what_nothing_can_be_made_of_is_refused_and_comes_back_as_told(compacting: Cluster) -> None:
    """No state, no snapshot, and a log that begins in the middle: the manager refuses each start and names the steps.
    These steps bring it back."""
    cluster = compacting
    fill(cluster)
    leader, (victim, other) = cluster.wait_leader(), cluster.followers()
    for part in "ab":
        cluster.call(leader, "put", key=f"fills the first segment {part}", value="x" * LARGE_BYTES)
    first = min((cluster.data_dir(victim) / "log").iterdir())
    cluster.wait(lambda: not first.exists(), "the beginning of the log to go from the disk")
    cluster.kill(victim)
    cluster.forge_marker(victim)
    for snapshot in cluster.snapshots_of(victim):
        snapshot.unlink()
    for _ in range(2):
        refused = cluster.launch_refused(victim)
        assert refused.kind == "Corrupted", refused
        assert "move the data directory" in refused.text
        assert "that command prints the next steps" in refused.text
        assert "\n" not in refused.text
    shutil.rmtree(cluster.data_dir(victim))
    cluster.start(victim, ready=False)
    cluster.call(other, "remove_member", id=victim, timeout=CHANGE_SECONDS)
    cluster.call(leader, "add_member", id=victim, address=cluster.addresses[victim], timeout=CHANGE_SECONDS)
    cluster.wait_ready(victim)
    cluster.stop_load(leader, other)
    cluster.wait_converged()
    assert cluster.call(victim, "dump") == cluster.call(leader, "dump")
