"""One run: a safety phase with faults, then a liveness phase in which everything is healed and must converge. In some
runs all managers are lost in between and restored (disaster.py), and the new cluster has a safety phase of its own.

Not here: the command line (__main__.py). Invariant: a run depends on its options alone.
"""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from tests.simulation import blackout
from tests.simulation.beats import NodesThatBeat
from tests.simulation.checkers import ALL, OF_CORRECT_PEERS
from tests.simulation.checkers.watched import Watched
from tests.simulation.disaster import Disaster
from tests.simulation.nemesis import Nemesis
from tests.simulation.options import THIN_LINKS, Options
from tests.simulation.scaled import scaled
from tests.simulation.watchers import Watchers, small_queues
from tests.simulation.workload import Workload
from tests.simulation.world import Failure, World
from warren_raft.model.entities import NodeStatus
from warren_raft.raft.requests import TransferWanted

LIVENESS_SECONDS = 60.0
"""All managers must have converged within this time after the last fault. An election takes two seconds at most, a dead
link is closed after five, and the slowest simulated disk takes two seconds for a sync."""

SETTLE_SECONDS = 1.5
"""A transfer of leadership that was asked for in the safety phase has one second after its message, which may be slow,
has arrived."""

NODES_SECONDS = 25.0
"""Two ttls of 5 s, four election timeouts after a manager went away, and clocks that run differently."""

IN_TIME_SECONDS = 1.0
MESSAGES = 6
"""The last beat, a question, its answer, and an entry with its answer; links may be slow in one direction."""
FEW_SESSIONS = 10
MOVES = 3
MOVES_SECONDS = 1.5
"""While a leader hands over there is no leader for a moment, and the next one has to be told of the last beats."""

QUIET_SECONDS = 2.5
"""Longer than the longest election timeout (2 s): by then a manager that does not hear its leader has said so."""


@dataclass
class Result:
    seed: int
    failure: str | None = None
    found_by: str = ""
    """The checker that raised the failure, or else the function."""
    trace: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    checked: Counter[str] = field(default_factory=Counter)
    acknowledged: int = 0
    unanswered: int = 0
    simulated_seconds: float = 0.0
    real_seconds: float = 0.0


def run(options: Options, checkers: Sequence[Callable[[], object]] = ALL) -> Result:
    if options.hostile_rate:
        checkers = [checker for checker in checkers if checker not in OF_CORRECT_PEERS]
    result = Result(options.seed)
    begin = time.perf_counter()
    world = World(options)
    workload = Workload(world)
    world.beats = NodesThatBeat(world, workload)
    workloads = [workload]
    patches = ExitStack()
    try:
        patches.enter_context(scaled(world))
        world.observers.append(world.audience.lists)
        world.observers.append(world.beats)
        world.observers.extend(checker() for checker in checkers)
        disaster = Disaster(world, workload, checkers) if options.disaster else None
        world.start_all()
        nemesis = Nemesis(world, options.safety_seconds)
        watchers = None
        if options.watchers:
            patches.enter_context(small_queues())
            watchers = Watchers(world, workload)
        world.run_until(nemesis.until)
        if disaster is not None:
            if watchers is not None:
                _judge_watchers(watchers)
            workload, nemesis = disaster.strike(nemesis)
            workloads.append(workload)
            if watchers is not None and workload is not workloads[0]:
                watchers.go_on(workload)
            world.run_until(nemesis.until)
        if options.idle:
            blackout.strike(world, workload, nemesis)
        world.note("healing")
        nemesis.heal()
        _converge(world, workload, nemesis)
        world.tell("finish", world, workload)
        if watchers is not None:
            Watched().judge_end(watchers, world.members()[0])
    except Exception as failure:  # noqa: BLE001 - any exception is this seed's failure, and is printed with it
        result.failure = str(failure) if isinstance(failure, Failure) else traceback.format_exc()
        result.found_by = _raiser(failure)
        world.note(f"FAILURE: {result.failure}\n{world.describe()}")
    finally:
        patches.close()
        result.trace = world.trace
        result.faults = world.faults
        result.checked = world.checked
        result.acknowledged = sum(each.acknowledged for each in set(workloads))
        result.unanswered = sum(each.unanswered for each in set(workloads))
        result.simulated_seconds = world.now - 100.0
        result.real_seconds = time.perf_counter() - begin
        world.close()
    return result


def _judge_watchers(watchers: Watchers) -> None:
    """Before all managers are lost: by the manager that has most."""
    processes = watchers.processes()
    if processes:
        best = max(processes, key=lambda process: process.opened.machine.revision)
        Watched().judge(watchers, best, is_end=False)


def _raiser(failure: Exception) -> str:
    """The innermost checker in the traceback, else the innermost function."""
    name = ""
    for frame, _ in traceback.walk_tb(failure.__traceback__):
        name = frame.f_code.co_name
        if "checkers" in frame.f_code.co_filename and "self" in frame.f_locals:
            return type(frame.f_locals["self"]).__name__
    return {"_converge": "liveness"}.get(name, name)


def _converge(world: World, workload: Workload, nemesis: Nemesis) -> None:
    """Let callers go on until writes after the last fault are acknowledged; then let all be quiet."""
    before = workload.acknowledged
    late = world.network.latest_arrival
    """A slow message from before the calm, which the later ones of its link wait for."""
    deadline = world.now + LIVENESS_SECONDS
    if not world.run_until(deadline, lambda: workload.acknowledged > before + 3):
        raise Failure(
            f"no write is acknowledged within {LIVENESS_SECONDS:g} s after the last fault\n{world.describe()}"
        )
    workload.ended = True
    deadline = max(deadline, late + LIVENESS_SECONDS)
    if not world.run_until(deadline, lambda: not nemesis.operators.busy and _converged(world)):
        raise Failure(
            f"not converged within {LIVENESS_SECONDS:g} s after the last fault; "
            f"{'a member change is not done' if nemesis.operators.busy else ''}\n{world.describe()}"
        )
    world.run_until(max(world.now, world.network.latest_arrival) + SETTLE_SECONDS)
    if world.beats.nodes:
        _settle_nodes(world)
    world.tell("quiet_begins", world)
    world.run_until(world.now + QUIET_SECONDS)
    world.tell("quiet_ends", world)
    if world.beats.nodes:
        _let_a_node_die(world)


def _settle_nodes(world: World) -> None:
    """Each node gets the status that fits it, although some managers may be away for good."""
    if not world.run_until(world.now + NODES_SECONDS, lambda: world.beats.is_settled):
        found, nodes = world.beats.statuses(), world.beats.nodes.values()
        wrong = [(node.id, found.get(node.id), world.beats.right_statuses(node)) for node in nodes]
        raise Failure(f"{NODES_SECONDS:g} s after the faults, nodes (id, status, right statuses) are {wrong}")


def _let_a_node_die(world: World) -> None:
    """A node dies, and must be down in time; in half of the runs leadership moves meanwhile again and again."""
    beats = world.beats
    node = next((node for node in beats.nodes.values() if node.is_alive and not node.is_drained), None)
    if node is None:
        return
    if not world.run_until(world.now + node.ttl, lambda: world.now - node.last_at < 0.1):
        raise Failure(f"{node.id} finds no manager for {node.ttl:.3f} s, although nothing is wrong")
    beats.kill(node)
    options = world.options
    moves = beats.random.random() < 0.5 and len(world.members()) > 1 and options.profile != THIN_LINKS
    seconds = node.ttl * (1 + 2.5 * options.clock_drift) + IN_TIME_SECONDS + MESSAGES * options.latency_min
    world.note(f"{node.id} dies at the end, ttl {node.ttl:.3f}; leadership {'moves' if moves else 'stays'}")
    if options.sessions_max < FEW_SESSIONS:
        seconds += IN_TIME_SECONDS  # the session of the leader may have been forgotten
    if moves:
        seconds += MOVES_SECONDS
        for n in range(MOVES):
            world.after((n + 1) * node.ttl / (MOVES + 1), lambda: _move_leadership(world))
    deadline = node.last_at + seconds
    if not world.run_until(deadline, lambda: beats.statuses().get(node.id) == NodeStatus.DOWN):
        raise Failure(f"{node.id} is not down {seconds:.3f} s after its last beat; its ttl is {node.ttl:.3f} s")


def _move_leadership(world: World) -> None:
    if world.leader is not None:
        world.faults["leadership moved while a node was late"] += 1
        world.leader.take(TransferWanted(None, lambda _answer: None))


def _converged(world: World) -> bool:
    leader = world.leader
    if leader is None or any(process.state_is_wrong for process in world.members()):
        return False
    if any(id_ in world.directories.keys() - world.processes.keys() - world.removed for id_ in leader.engine.members):
        return False  # a member is about to start again, perhaps far behind
    if any(process.replaces_state for process in world.members()):
        return False  # a leader hands over before it uses another state
    last = leader.opened.log.last_index
    return all(
        process.opened.machine.applied_index == last == process.opened.log.last_index for process in world.members()
    )
