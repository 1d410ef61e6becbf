"""The faults of the safety phase, and healing them for the liveness phase.

Faults stay within the limits of the promise: a crash loses unsynced pages, a wiped directory comes back blank, and at
most a minority's directories are wiped at a time. Not here: changes of the members (operators.py), and the promises
that must hold nevertheless (checkers). Invariant: after heal() nothing fails any more, and a majority of the members
runs.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from functools import partial
from random import Random

from tests.killed import Killed
from tests.memory_files import MemoryFiles
from tests.simulation.draws import killed_at
from tests.simulation.hostile import Hostile
from tests.simulation.operators import Operators
from tests.simulation.world import Directory, Process, World
from warren_raft.raft.replacement import ARROWS, Arrow
from warren_raft.raft.replacement import Event as ReplacementEvent
from warren_raft.raft.requests import TransferWanted

LEAP_MIN_SECONDS, LEAP_MAX_SECONDS = 0.1, 3600.0
"""From a hiccup of the host to a virtual machine that was suspended for an hour."""
TIMES_WRONG_MAX = 2
DEADLY_ARROWS = 0.3
"""Share of the arrows of a replacement at which managers die in one run. If they died at each arrow, they would seldom
come to the later ones."""
FULL_WHEN_WRONG = 0.3
"""Probability that there is no space left to rebuild a state that was found to be wrong at once."""
FAR_OPERATION = 40
"""A log batch is two file operations, so a planned fault comes within some twenty batches."""


class Nemesis:
    def __init__(self, world: World, seconds: float) -> None:
        self.world = world
        self.random = world.random
        self.until = world.now + seconds
        self.quiet = False
        self.operators = Operators(world)
        options = world.options
        drawn = Random(f"deadly arrows {options.seed}")
        self._deadly = {str(arrow) for arrow in ARROWS.values() if drawn.random() < DEADLY_ARROWS}
        if options.deadly_arrow:
            self._deadly = {options.deadly_arrow}
        world.on_arrow = self._at_arrow
        world.on_fetch = self._at_fetch
        world.every(options.break_rate, self._if_loud(world.network.break_random), self.until)
        world.every(options.partition_rate, self._if_loud(self._partition), self.until)
        world.every(options.crash_rate, self._if_loud(self._crash), self.until)
        world.every(options.pause_rate, self._if_loud(self._pause), self.until)
        world.every(options.leap_rate, self._if_loud(self._leap), self.until)
        world.every(options.file_fault_rate, self._if_loud(self._fail_a_file_operation), self.until)
        world.every(options.disk_full_rate, self._if_loud(self._fill_disk), self.until)
        world.every(options.member_rate, self._if_loud(self.operators.turn), self.until)
        world.every(options.state_full_rate, self._if_loud(self._fill_state), self.until)
        world.every(options.wrong_state_rate, self._if_loud(self._spoil_state), self.until)
        world.every(options.renewal_rate, self._if_loud(self._renew_state), self.until)
        world.every(options.swap_rate, self._if_loud(self._swap), self.until)
        world.every(options.overrule_rate, self._if_loud(self._overrule), self.until)
        world.every(options.throw_rate, self._if_loud(self._throw), self.until)
        world.every(options.transfer_rate, self._if_loud(self._transfer), self.until)
        world.upgrades.begin(self.until)
        world.every(options.hostile_rate, self._if_loud(Hostile(world).turn), self.until)

    def _if_loud(self, what: Callable[[], None]) -> Callable[[], None]:
        return lambda: None if self.quiet else what()

    def _some(self) -> Process | None:
        running = list(self.world.running())
        return self.random.choice(running) if running else None

    def _count(self, fault: str, note: str = "") -> None:
        self.world.faults[fault] += 1
        self.world.note(f"fault: {fault} {note}".rstrip())

    # Network -----------------------------------------------------------------------------------------------------

    def _partition(self) -> None:
        ids = sorted(self.world.directories)
        shape = self.random.choice(["halves", "one", "one way", "pair", "pair one way"])
        if shape == "halves":
            side = {id_ for id_ in ids if self.random.random() < 0.5}
            directions = {(a, b) for a in ids for b in ids if (a in side) != (b in side)}
        elif shape.startswith("pair") and len(ids) > 1:
            a, b = self.random.sample(ids, 2)
            directions = {(a, b), (b, a)} if shape == "pair" else {(a, b)}
        else:
            alone = self.random.choice(ids)
            directions = {(alone, other) for other in ids if other != alone}
            if shape == "one" or self.random.random() < 0.3:
                directions |= {(b, a) for a, b in directions}
            elif self.random.random() < 0.5:
                directions = {(b, a) for a, b in directions}
        self._count(f"partition: {shape}", f"{sorted(directions)}")
        self.world.network.block(directions)
        seconds = self.random.uniform(0.1, self.world.options.partition_max)
        self.world.after(seconds, lambda: self.world.network.unblock(directions))

    # Processes ---------------------------------------------------------------------------------------------------

    def _crash(self) -> None:
        if self.random.random() < self.world.options.all_crash:
            self._count("all managers crashed at once")
            for process in list(self.world.running()):
                self._crash_one(process, wipe=False)
            return
        process = self._some()
        if process is not None:
            wipe = self.random.random() < self.world.options.wipe and self.operators.may_wipe(process.id)
            self._crash_one(process, wipe=wipe)

    def _crash_one(self, process: Process, *, wipe: bool) -> None:
        files = process.directory.files
        if self.random.random() < self.world.options.disk_error:
            files.fail(files.operations + self.random.randrange(1, 6), errno.EIO, done=self.random.random())
            self.world.note(f"{process.id}: EIO is near")
            return
        if process.batch is not None and self.random.random() < 0.7:
            self._crash_in_write(process)
        power_cut = self.random.random() < self.world.options.power_cut
        self._count("power cut" if power_cut else "kill -9", process.id)
        self.world.end(process, power_cut=power_cut)
        files.clear_faults()
        if wipe:
            self.operators.replace(process.id)
        elif self.random.random() < self.world.options.damage:
            self._damage(process.directory)
        elif self.random.random() < self.world.options.rot and process.directory.rot(self.random):
            self._count("snapshot damaged", process.id)
        self.world.after(self.random.uniform(0.0, self.world.options.down_max), lambda: self.world.restart(process.id))

    def _crash_in_write(self, process: Process) -> None:
        """Crash while the log batch is under way: some of its operations happen."""
        files = process.directory.files
        files.crash(files.operations + self.random.randrange(1, 4), done=self.random.random())
        batch = process.batch
        assert batch is not None
        try:
            batch.write()
        except BaseException as problem:
            if type(problem).__name__ not in ("Crashed", "OSError"):
                raise
        self.world.faults["crash in the middle of a log write"] += 1

    def _damage(self, directory: Directory) -> None:
        """Flip one bit in the log of a stopped manager, before its last batch (from there on, damage would look like a
        torn write). The manager must start with all that it had, or not at all. Later the bit is right again."""
        if directory.last_batch is None or directory.damaged is not None:
            return
        last_path, last_offset = directory.last_batch
        files = directory.files
        paths = [path for path in files.paths() if "/log/" in path and path <= last_path]
        if last_path not in paths:
            return
        path = self.random.choice(paths)
        end = last_offset if path == last_path else len(files.content(path))
        offset, bit = self.random.randrange(end), 1 << self.random.randrange(8)
        _flip(files, path, offset, bit)
        directory.damaged = (path, offset, bit)
        self._count("bit flipped in a log", f"{path}:{offset}")
        self.world.after(self.random.uniform(0.5, 5.0), lambda: self._repair(directory))

    def _repair(self, directory: Directory) -> None:
        process = self.world.processes.get(directory.id)
        if directory.damaged is None or (process is not None and process.directory is directory):
            directory.damaged = None
            return
        self.mend(directory)
        self.world.restart(directory.id)

    def mend(self, directory: Directory) -> None:
        """Flip the bit back; no manager runs there. A start that failed half-way may have cut the bit off."""
        if directory.damaged is not None:
            path, offset, bit = directory.damaged
            if path in directory.files.paths() and offset < len(directory.files.content(path)):
                _flip(directory.files, path, offset, bit)
            directory.damaged = None

    def _swap(self) -> None:
        """A manager is started on another manager's directory by mistake: it refuses, and changes nothing."""
        running = list(self.world.running())
        if len(running) < 2:
            return
        first, second = self.random.sample(running, 2)
        for process in (first, second):
            self.world.end(process, power_cut=False)
        self._count("directories swapped", f"{first.id} {second.id}")
        self.world.expect_refusal(first.id, second.directory)
        for process in (first, second):
            self.world.after(
                self.random.uniform(0.0, self.world.options.down_max), lambda p=process: self.world.restart(p.id)
            )

    def _pause(self) -> None:
        process = self._some()
        if process is not None:
            process.paused_until = self.world.now + self.random.uniform(0.05, self.world.options.pause_max)
            self.world.at(process.paused_until, partial(self._wake, process))
            self._count("pause", process.id)

    def _wake(self, process: Process) -> None:
        """Before the first step after a pause: callers may be quicker than the raft thread."""
        if process.alive and process.paused_until <= self.world.now:
            process.woke_at = self.world.now
            self.world.tell("woke", process)

    def _leap(self) -> None:
        process = self._some()
        if process is not None:
            seconds = LEAP_MIN_SECONDS * (LEAP_MAX_SECONDS / LEAP_MIN_SECONDS) ** self.random.random()
            self._count("clock leapt forward", f"{process.id} {seconds:.1f} s")
            process.leap(seconds)

    def _fail_a_file_operation(self) -> None:
        """The Nth file operation of the log from now fails: a write, a sync, or an operation of opening the log."""
        process = self._some()
        if process is None:
            return
        error = self.random.choice([errno.ENOSPC, errno.EIO])
        count = self.random.randrange(1, FAR_OPERATION)
        files = process.directory.files
        files.fail(files.operations + count, error, done=self.random.choice([0.0, 1.0, self.random.random()]))
        self.world.note(f"{process.id}: {errno.errorcode[error]} at file operation {count} from now")

    def _fill_disk(self) -> None:
        process = self._some()
        if process is None:
            return
        files = process.directory.files
        files.limit_bytes = files.used_bytes + self.random.randrange(0, 4096)
        self._count("disk full", process.id)

        def room() -> None:
            files.limit_bytes = None

        self.world.after(self.random.uniform(0.1, 3.0), room)

    def _fill_state(self) -> None:
        process = self._some()
        if process is not None:
            process.directory.state_full_until = self.world.now + self.random.uniform(0.1, 3.0)
            self._count("no space left for the state", process.id)

    def _spoil_state(self) -> None:
        process = self._some()
        if process is not None:
            self._spoil_state_of(process)

    def _spoil_state_of(self, process: Process) -> None:
        """Make a manager's state wrong: one at a time, if the others are a majority that agrees; and at most twice in a
        process, because a manager stops at the third time."""
        newest, options = self.world.audience.lists.newest, self.world.options
        if newest is None or not process.alive or len(newest.voters) < 3 or process.id not in newest.voters:
            return
        is_done = process.opened.machine.applied_index > newest.index
        busy = any(each.state_is_wrong for each in self.world.running())
        is_full = process.directory.state_full_until > self.world.now
        if is_done and not busy and not is_full and process.times_wrong < TIMES_WRONG_MAX and not self.operators.busy:
            self._count("state made wrong", process.id)
            process.spoil_state()
            if self._happens(options.useless_snapshots):
                process.cannot_rebuild = True
                process.times_wrong = TIMES_WRONG_MAX  # a state that cannot be rebuilt counts twice
            if self._happens(options.found_at_once):
                process.find_wrong()
                if options.state_full_rate and self._happens(FULL_WHEN_WRONG):
                    process.directory.state_full_until = self.world.now + self.random.uniform(0.1, 3.0)

    def _happens(self, probability: float) -> bool:
        return probability > 0.0 and self.random.random() < probability

    def _at_arrow(self, process: Process, arrow: Arrow) -> None:
        """The replacement of a manager's state goes one step further. The manager may die before anything is done."""
        if self.quiet or self.world.now >= self.until:
            return
        if str(arrow) in self._deadly and self._happens(self.world.options.arrow_kill):
            self._count(killed_at(arrow), process.id)
            raise Killed
        if arrow.event in (ReplacementEvent.RENEW, ReplacementEvent.FETCHED):
            self.world.after(0.0, lambda: self._at_fetch(process))

    def _at_fetch(self, process: Process) -> None:
        """The state of a manager turns out to be wrong while it is about to be replaced anyhow."""
        options = self.world.options
        is_over = self.quiet or self.world.now >= self.until
        if not is_over and options.wrong_state_rate and self._happens(options.found_at_once):
            self._spoil_state_of(process)

    def _renew_state(self) -> None:
        process = self._some()
        if process is not None:
            self._count("state has to move to another file", process.id)
            process.engine.renewal_wanted = True

    # Leadership --------------------------------------------------------------------------------------------------

    def _transfer(self) -> None:
        process = self._some()
        if process is not None:
            self._count("leadership transfer asked for")
            process.take(TransferWanted(None, lambda _answer: None))

    def _throw(self) -> None:
        """Leadership goes to another manager and comes back, while one follower's answers to the leader are held
        back."""
        leader = self.world.leader
        others = sorted(set(leader.engine.members) - {leader.id}) if leader is not None else []
        if leader is None or len(others) < 2:
            return
        follower, other = self.random.sample(others, 2)
        direction = {(follower, leader.id)}
        self._count("leadership thrown to and fro", f"{leader.id} {other}, {follower} is not heard")
        self.world.network.block(direction)
        leader.take(TransferWanted(other, lambda _answer: None))
        self.world.after(self.random.uniform(0.1, 0.6), lambda: self._give_back(other, leader.id))
        self.world.after(self.random.uniform(0.5, 4.0), lambda: self.world.network.unblock(direction))

    def _overrule(self) -> None:
        """Cut off a leader with a slow disk. The others elect another leader, and the old one has to drop the entries
        that it wrote meanwhile."""
        leader = self.world.leader
        if leader is None or len(leader.engine.members) < 3:
            return
        self._count("leader with a slow disk cut off", leader.id)
        others = set(self.world.directories) - {leader.id}
        directions = {(leader.id, other) for other in others} | {(other, leader.id) for other in others}
        self.world.network.block(directions)
        seconds = self.random.uniform(1.0, 3.5)
        leader.directory.slow_until = self.world.now + seconds + self.random.uniform(0.0, 1.0)
        self.world.after(seconds, lambda: self.world.network.unblock(directions))

    def _give_back(self, holder: str, to: str) -> None:
        process = self.world.processes.get(holder)
        if process is not None:
            process.take(TransferWanted(to, lambda _answer: None))

    # Healing -----------------------------------------------------------------------------------------------------

    def _leave_a_minority_down(self) -> None:
        """The other members have to do without this minority for good. Only if the member list is certain."""
        newest = self.world.audience.lists.newest
        if self.random.random() > self.world.options.minority_stays_down:
            return
        if any(process.state_is_wrong for process in self.world.running()):
            return  # the minority that is left down might be the managers with a right state
        if newest is not None and self.operators.is_settled and not self.world.removed:
            self.leave_down(newest.voters)

    def leave_down(self, voters: Iterable[str]) -> list[str]:
        """Leave down as many of `voters` as may be lost. `voters` is certainly the last list."""
        voters = sorted(voters)
        chosen = self.random.sample(voters, (len(voters) - 1) // 2)
        for id_ in chosen:
            self._count("left down in the liveness phase", id_)
            self.world.removed.add(id_)
            process = self.world.processes.get(id_)
            if process is not None:
                self.world.end(process, power_cut=False)
        return chosen

    def heal(self, *, stay_down: bool = True) -> None:
        """Nothing fails any more. Managers that stopped by themselves because of their disks are started again."""
        self.quiet = self.world.is_calm = True
        self.operators.heal()
        self.world.upgrades.end()
        if stay_down:
            self._leave_a_minority_down()
        self.world.network.unblock(set(self.world.network.blocked))
        for id_, directory in sorted(self.world.directories.items()):
            directory.files.clear_faults()
            directory.files.limit_bytes = None
            directory.state_full_until = directory.slow_until = 0.0
            self._repair(directory)
            process = self.world.processes.get(id_)
            if process is not None:
                process.paused_until = min(process.paused_until, self.world.now)
            else:
                self.world.restart(id_)


def _flip(files: MemoryFiles, path: str, offset: int, bit: int) -> None:
    data = bytearray(files.content(path))
    data[offset] ^= bit
    files.set_content(path, bytes(data))
