"""What goes wrong in the safety phase, and how it all is healed for the liveness phase.

Faults stay within what the promise covers: a crash loses unsynced pages, a wiped directory comes back blank and at
most a minority's is wiped at a time. Not here: what must hold nevertheless (checkers). Invariant: after heal() nothing
fails any more, and a majority of the members runs.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable

from tests.memory_files import MemoryFiles
from tests.simulation.world import Directory, Process, World
from warren_raft.raft.changes import DONE, REFUSED, Answer
from warren_raft.raft.membership import ADD, REMOVE, UPDATE
from warren_raft.raft.requests import ChangeWanted, TransferWanted

ASK_AGAIN_SECONDS = 0.2
JOINER = "m9"
LEAP_MIN_SECONDS, LEAP_MAX_SECONDS = 0.1, 3600.0
"""A hiccup of the host, and a virtual machine that was paused over lunch."""
FAR_OPERATION = 40
"""A log batch is two file operations, so a planned fault comes within some twenty batches."""


class Nemesis:
    def __init__(self, world: World, seconds: float) -> None:
        self.world = world
        self.random = world.random
        self.until = world.now + seconds
        self.quiet = False
        self.changing = False
        options = world.options
        world.every(options.break_rate, self._if_loud(world.network.break_random), self.until)
        world.every(options.partition_rate, self._if_loud(self._partition), self.until)
        world.every(options.crash_rate, self._if_loud(self._crash), self.until)
        world.every(options.pause_rate, self._if_loud(self._pause), self.until)
        world.every(options.leap_rate, self._if_loud(self._leap), self.until)
        world.every(options.file_fault_rate, self._if_loud(self._fail_a_file_operation), self.until)
        world.every(options.disk_full_rate, self._if_loud(self._fill_disk), self.until)
        world.every(options.member_rate, self._if_loud(self._change_members), self.until)
        world.every(options.swap_rate, self._if_loud(self._swap), self.until)
        world.every(options.throw_rate, self._if_loud(self._throw), self.until)
        world.every(options.transfer_rate, self._if_loud(self._transfer), self.until)

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
            wipe = self.random.random() < self.world.options.wipe and self._may_wipe(process.id)
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
            self._wipe(process.id)
        elif self.random.random() < self.world.options.damage:
            self._damage(process.directory)
        elif self.random.random() < self.world.options.rot and process.directory.rot(self.random):
            self._count("snapshot damaged", process.id)
        self.world.after(self.random.uniform(0.0, self.world.options.down_max), lambda: self.world.restart(process.id))

    def _crash_in_write(self, process: Process) -> None:
        """The log batch was under way: some of its operations happened."""
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
        """One bit of the log of a manager that is down, before its last batch (from there on it would look like a write
        that was torn). It has to start with what it had, or not at all; then the disk is read well again."""
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
        if directory.damaged is None or self.world.processes.get(directory.id) is not None:
            directory.damaged = None
            return
        self.mend(directory)
        self.world.restart(directory.id)

    def mend(self, directory: Directory) -> None:
        """The bit is what it was; nobody runs there."""
        if directory.damaged is not None:
            path, offset, bit = directory.damaged
            if path in directory.files.paths():
                _flip(directory.files, path, offset, bit)
            directory.damaged = None

    def _swap(self) -> None:
        """A manager is started on another's directory by mistake: it refuses, and touches nothing."""
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
            self._count("pause", process.id)

    def _leap(self) -> None:
        process = self._some()
        if process is not None:
            seconds = LEAP_MIN_SECONDS * (LEAP_MAX_SECONDS / LEAP_MIN_SECONDS) ** self.random.random()
            self._count("clock leapt forward", f"{process.id} {seconds:.1f} s")
            process.leap(seconds)

    def _fail_a_file_operation(self) -> None:
        """The Nth from now: of a write, a sync, or of what a manager reads and makes when it opens its log."""
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

    # Members -----------------------------------------------------------------------------------------------------

    def _may_wipe(self, id_: str) -> bool:
        """One at a time, of three or more, and none while another change runs: more is not survivable."""
        return not self.changing and self.world.options.managers >= 3 and self._members_settled()

    def _members_settled(self) -> bool:
        leader = self.world.leader
        return leader is not None and all(member.voter for member in leader.engine.members.values())

    def _wipe(self, id_: str) -> None:
        self._count("directory wiped", id_)
        self.world.directories[id_].wipe()
        address = self.world.directories[id_].address
        self._run([(REMOVE, id_, ""), (ADD, id_, address)])

    def _change_members(self) -> None:
        if self.changing or self.world.options.managers < 3 or not self._members_settled():
            return
        if JOINER not in self.world.directories:
            self._add_joiner()
        elif self.random.random() < 0.5:
            self._remove_joiner()
        else:
            self._move(self.random.choice(sorted(self.world.directories)))

    def add(self, ids: Iterable[str]) -> None:
        """Blank managers that are started, one after the other."""
        steps = [(ADD, id_, self.world.directories[id_].address) for id_ in ids]
        if steps:
            self._run(steps)

    def _add_joiner(self) -> None:
        address = f"127.0.0.1:{7100 + self.random.randrange(800)}"
        self.world.directories[JOINER] = Directory(self.world, JOINER, address, self.world.root)
        self.world.removed.discard(JOINER)
        self.world.restart(JOINER)
        self._count("member added", JOINER)
        self._run([(ADD, JOINER, address)])

    def _remove_joiner(self) -> None:
        self._count("member removed", JOINER)

        def gone() -> None:
            self.world.removed.add(JOINER)
            process = self.world.processes.get(JOINER)
            if process is not None:
                self.world.end(process, power_cut=False)
            self.world.directories.pop(JOINER).remove()

        self._run([(REMOVE, JOINER, "")], gone)

    def _move(self, id_: str) -> None:
        """A member gets another address: it is told to the cluster, then the manager restarts there."""
        address = f"127.0.0.1:{8000 + self.random.randrange(1000)}"
        self._count("address changed", id_)

        def moved() -> None:
            self.world.directories[id_].address = address
            process = self.world.processes.get(id_)
            if process is not None:
                self.world.end(process, power_cut=False)
            self.world.after(0.05, lambda: self.world.restart(id_))

        self._run([(UPDATE, id_, address)], moved)

    def _run(self, steps: list[tuple[str, str, str]], then: Callable[[], None] = lambda: None) -> None:
        """Ask any manager again and again until each step is done; one sequence at a time."""
        self.changing = True

        def ask() -> None:
            if not steps:
                self.changing = False
                then()
                return
            process = self._some()
            if process is not None:
                step = steps[0]
                process.take(ChangeWanted(*step, lambda answer: answered(step, answer)))
            self.world.after(ASK_AGAIN_SECONDS, ask)

        def answered(step: tuple[str, str, str], answer: Answer) -> None:
            if answer.state == DONE and steps and steps[0] == step:
                self.world.note(f"member change done: {step}")
                steps.pop(0)
            elif answer.state == REFUSED:
                self.world.checked["seen: member change refused"] += 1

        ask()

    def _transfer(self) -> None:
        process = self._some()
        if process is not None:
            self._count("leadership transfer asked for")
            process.take(TransferWanted(None, lambda _answer: None))

    def _throw(self) -> None:
        """Leadership goes to another and comes back, while what one follower answers the leader is on its way."""
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

    def _give_back(self, holder: str, to: str) -> None:
        process = self.world.processes.get(holder)
        if process is not None:
            process.take(TransferWanted(to, lambda _answer: None))

    # The end of it -----------------------------------------------------------------------------------------------

    def _leave_a_minority_down(self) -> None:
        """The rest has to do without it, for good. Only where it is known who the members are."""
        if self.changing or self.random.random() > self.world.options.minority_stays_down:
            return
        if not self._members_settled():
            return
        leader = self.world.leader
        assert leader is not None
        voters = sorted(leader.engine.members)
        for id_ in self.random.sample(voters, (len(voters) - 1) // 2):
            self._count("left down in the liveness phase", id_)
            self.world.removed.add(id_)
            process = self.world.processes.get(id_)
            if process is not None:
                self.world.end(process, power_cut=False)

    def heal(self) -> None:
        """Nothing fails any more. A manager that stopped by itself for its disk is started again."""
        self.quiet = self.world.is_calm = True
        self._leave_a_minority_down()
        self.world.network.unblock(set(self.world.network.blocked))
        for id_, directory in sorted(self.world.directories.items()):
            directory.files.clear_faults()
            directory.files.limit_bytes = None
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
