"""Operators that change a cluster's members: add, remove, move, replace; alone or two at once, patient or not.

An operator asks any manager again and again until the change is done, or goes away before an answer came. Not here:
other faults (nemesis.py). Invariant: two operators work on the same member only if both remove it; and an operator that
replaces a lost directory is alone, because a cluster cannot survive more than that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random

from tests.simulation.world import Directory, Process, World
from warren_raft.raft import entries
from warren_raft.raft.changes import DONE, REFUSED, Answer
from warren_raft.raft.membership import (
    ADD,
    REMOVE,
    UPDATE,
    Change,
)
from warren_raft.raft.requests import ChangeWanted, TransferWanted

ASK_AGAIN_SECONDS = 0.2
JOINERS = ("m8", "m9")
"""Ids of managers that are not among the initial members."""
MORE_MAX = 2
"""A cluster grows by at most this many members."""
PATIENCE_MAX_SECONDS = 1.5
"""An impatient operator waits at most this long before it goes away."""
FORGOTTEN_SECONDS = 3.0
"""A request that is not repeated has reached its leader after this time, or never will."""
RETURN_SECONDS = (0.5, 4.0)
"""For this long a removed manager runs that is started again by mistake."""
LIVES_ON = 0.3
"""Probability that a removed manager is left running: it has to find out by itself that it was removed."""
POINTLESS = ("is the only voting member", "is not a member")
"""Answers after which an operator does not ask again: another operator's change has made the request pointless."""

Step = tuple[str, str, str]
"""(verb, member id, address)."""


@dataclass(eq=False)
class Work:
    """The work of one operator: the steps that are left, in order."""

    steps: list[Step]
    then: Callable[[], None] = lambda: None
    gives_up_at: float = float("inf")
    is_alone: bool = False
    """No other operator may change members meanwhile."""
    ids: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        self.ids = frozenset(id_ for _, id_, _ in self.steps)


class Operators:
    def __init__(self, world: World) -> None:
        self.world = world
        self.random: Random = world.random
        self._at_work: list[Work] = []
        self._removed: dict[str, Directory] = {}
        """Directories of removed members. An operator may start a manager on one again."""
        self._returned: set[str] = set()
        """Removed members that run again now."""
        self._abandoned_at: float | None = None
        """When the newest request with an unknown result was abandoned; None: there is none."""
        self._most = len(world.directories) + MORE_MAX

    @property
    def busy(self) -> bool:
        return bool(self._at_work)

    @property
    def is_settled(self) -> bool:
        """Whether no change is under way after the newest list, and all its members vote."""
        newest = self.world.audience.lists.newest
        if self.busy or newest is None or newest.voters != newest.members.keys():
            return False
        if self._abandoned_at is not None and self._fate_is_known(newest.voters):
            self._abandoned_at = None
        return self._abandoned_at is None

    def _fate_is_known(self, voters: Iterable[str]) -> bool:
        """Whether an abandoned request is certainly in force, or certainly lost."""
        if self._abandoned_at is None or self.world.now - self._abandoned_at < FORGOTTEN_SECONDS:
            return False
        running = [self.world.processes.get(id_) for id_ in voters]
        return all(process is not None and not _has_change_under_way(process) for process in running)

    def _some(self) -> Process | None:
        running = list(self.world.running())
        return self.random.choice(running) if running else None

    def _count(self, what: str, note: str = "") -> None:
        self.world.faults[what] += 1
        self.world.note(f"operator: {what} {note}".rstrip())

    # Changes -----------------------------------------------------------------------------------------------------

    def turn(self) -> None:
        """An operator begins a change."""
        newest = self.world.audience.lists.newest
        if newest is None or len(self._at_work) >= self.world.options.operators:
            return
        if any(work.is_alone for work in self._at_work):
            return
        kinds = {"add": 3, "remove": 3, "move": 2, "return": 2, "interfere": 3 if self.busy else 0}
        kind = self.random.choices(list(kinds), list(kinds.values()))[0]
        getattr(self, f"_{kind}")()

    def _is_taken(self, id_: str) -> bool:
        return id_ in self._returned or any(id_ in work.ids for work in self._at_work)

    def _members(self) -> list[str]:
        newest = self.world.audience.lists.newest
        return sorted(newest.members) if newest is not None else []

    def _add(self) -> None:
        members = self._members()
        absent = sorted({*JOINERS, *self.world.initial} - set(members))
        free = [id_ for id_ in absent if not self._is_taken(id_) and not self._may_be_needed(id_)]
        if free and len(members) < self._most:
            id_ = self.random.choice(free)
            self._count("member added", id_)
            self._start(Work([(ADD, id_, self._blank(id_).address)], gives_up_at=self._patience()))

    def _may_be_needed(self, id_: str) -> bool:
        """Whether the directory of a removed member may still be the only one that proves its removal: nobody was told
        that it was removed, and the managers that stay have not heard it. No operator replaces that directory."""
        newest, directory = self.world.audience.lists.newest, self.world.directories.get(id_)
        if newest is None or directory is None or directory.incarnation not in newest.removed:
            return False
        voters = [self.world.processes[voter] for voter in newest.voters if voter in self.world.processes]
        return sum(id_ not in voter.engine.members for voter in voters) * 2 <= len(newest.voters)

    def _blank(self, id_: str) -> Directory:
        """A new directory on which a manager with this id runs. If an abandoned request has left a directory that was
        not removed, that one is used again."""
        world = self.world
        newest, directory = world.audience.lists.newest, world.directories.get(id_)
        if directory is not None and newest is not None and directory.incarnation not in newest.removed:
            return directory
        self._take_away(id_)
        directory = world.new_directory(id_, self._free_address(7100, 800))
        directory.members = self.known_members()
        world.restart(id_)
        return directory

    def _free_address(self, first_port: int, count: int) -> str:
        """An address that no manager has or is about to have. The cluster refuses a used address, and the operator
        would ask for ever."""
        newest = self.world.audience.lists.newest
        used = {directory.address for directory in self.world.directories.values()}
        used |= {member.address for member in newest.members.values()} if newest is not None else set()
        used |= {address for work in self._at_work for _, _, address in work.steps}
        port = first_port + self.random.randrange(count)
        return next(address for n in range(count) if (address := f"127.0.0.1:{port + n}") not in used)

    def known_members(self) -> dict[str, str]:
        """The members that an operator writes into the configuration of a joiner."""
        newest = self.world.audience.lists.newest
        return {} if newest is None else {m.id: m.address for m in newest.members.values()}

    def _remove(self) -> None:
        members = self._members()
        anyone = self.random.random() < self.world.options.founders_leave
        free = [id_ for id_ in members if (anyone or id_ in JOINERS) and not self._is_taken(id_)]
        if free and len(members) > (1 if self.world.options.founders_leave else 3):
            self._remove_one(self.random.choice(free))

    def _remove_one(self, id_: str) -> None:
        if len(self._members()) <= 3 and any(process.state_is_wrong for process in self.world.running()):
            return  # of the two states that would be left, nobody can say which one is right
        self._count("member removed" if id_ in JOINERS else "founding member removed", id_)
        directory = self.world.directories.get(id_)
        self._start(Work([(REMOVE, id_, "")], lambda: self._gone(id_, directory), self._patience()))

    def _gone(self, id_: str, directory: Directory | None) -> None:
        """The member was removed. Its process ends, or is forgotten; its directory stays."""
        if directory is None or self.world.directories.get(id_) is not directory:
            return  # two operators removed it, or one has begun to add it again, with another directory
        del self.world.directories[id_]
        process = self.world.processes.get(id_)
        if process is not None and self.random.random() < LIVES_ON:
            self._count("removed member left running", id_)
        elif process is not None:
            self.world.end(process, power_cut=False)
        directory.files.clear_faults()
        if directory.damaged is None:
            self._removed[id_] = directory

    def _take_away(self, id_: str) -> None:
        """End the process with this id, and forget its directories."""
        process = self.world.processes.get(id_)
        if process is not None:
            self.world.end(process, power_cut=False)
        self.world.directories.pop(id_, None)
        self._removed.pop(id_, None)

    def _return(self) -> None:
        """An operator starts a removed member on its old directory."""
        free = sorted(
            id_
            for id_ in self._removed.keys() - self.world.directories.keys() - self.world.processes.keys()
            if not self._is_taken(id_)
        )
        if not free:
            return
        id_ = self.random.choice(free)
        self._count("removed directory returns", id_)
        self._returned.add(id_)
        self.world.directories[id_] = self._removed[id_]
        self.world.restart(id_)
        self.world.after(self.random.uniform(*RETURN_SECONDS), lambda: self._leave_again(id_))

    def _leave_again(self, id_: str) -> None:
        if id_ not in self._returned:
            return
        self._returned.discard(id_)
        self.world.directories.pop(id_, None)
        process = self.world.processes.get(id_)
        if process is not None:
            self.world.end(process, power_cut=False)

    def _move(self) -> None:
        """A member gets another address: an operator tells the cluster, then the manager restarts there."""
        free = [id_ for id_ in self._members() if id_ in self.world.directories and not self._is_taken(id_)]
        if not free:
            return
        id_ = self.random.choice(free)
        directory = self.world.directories[id_]
        address = self._free_address(8000, 1000)
        self._count("address changed", id_)

        def moved() -> None:
            directory.address = address
            process = self.world.processes.get(id_)
            if process is not None:
                self.world.end(process, power_cut=False)
            self.world.after(0.05, lambda: self.world.restart(id_))

        self._start(Work([(UPDATE, id_, address)], moved))

    def _interfere(self) -> None:
        """Another operator removes the same member, or wants it to lead."""
        removals = [work.steps[0][1] for work in self._at_work if work.steps and work.steps[0][0] == REMOVE]
        if not removals:
            return
        id_ = self.random.choice(removals)
        if self.random.random() < 0.3:
            self._remove_one(id_)
        else:
            self._count("leadership asked for a member that is being removed", id_)
            process = self._some()
            if process is not None:
                process.take(TransferWanted(id_, lambda _answer: None))

    # Lost directories --------------------------------------------------------------------------------------------

    def may_wipe(self, id_: str) -> bool:
        """Whether the directory of this member may be wiped: one at a time, of three or more voters, and not while
        another change runs. A cluster cannot survive more."""
        newest = self.world.audience.lists.newest
        return self.is_settled and newest is not None and id_ in newest.voters and len(newest.voters) >= 3

    def replace(self, id_: str) -> None:
        """The directory of this member is lost for good, and no manager runs there: remove it and add it again."""
        self._count("directory wiped", id_)
        directory = self.world.directories[id_]
        directory.wipe()
        directory.members = self.known_members()
        self._start(Work([(REMOVE, id_, ""), (ADD, id_, directory.address)], is_alone=True))

    def add(self, ids: Iterable[str]) -> None:
        """Add blank managers that run, one after the other."""
        steps = [(ADD, id_, self.world.directories[id_].address) for id_ in ids]
        if steps:
            self._start(Work(steps, is_alone=True))

    def change_once(self) -> None:
        """Make one change, by an operator that waits for the answer."""
        members = self._members()
        if len(members) > 1 and self.random.random() < 0.5:
            id_ = self.random.choice(members)
            if self.may_wipe(id_) and self.random.random() < 0.4:
                process = self.world.processes.get(id_)
                if process is not None:
                    self.world.end(process, power_cut=False)
                self.replace(id_)
                self.world.after(0.1, lambda: self.world.restart(id_))
            else:
                self._remove_one(id_)
        else:
            self._add()
        for work in self._at_work:
            work.gives_up_at = float("inf")

    # Asking ------------------------------------------------------------------------------------------------------

    def _patience(self) -> float:
        if self.random.random() >= self.world.options.abandon:
            return float("inf")
        return self.world.now + self.random.uniform(0.0, PATIENCE_MAX_SECONDS)

    def _start(self, work: Work) -> None:
        if self.busy:
            self._count("two operators at once")
        self._at_work.append(work)
        self._ask(work)

    def _ask(self, work: Work) -> None:
        if work not in self._at_work:
            return
        if self.world.now >= work.gives_up_at and not self.world.is_calm:
            self._count("request abandoned", f"{work.steps[0]}")
            self._abandoned_at = self.world.now
            self._at_work.remove(work)
            return
        process = self._some()
        if process is not None:
            verb, id_, address = work.steps[0]
            directory = self.world.directories.get(id_)
            if verb == ADD and directory is not None:
                newest = self.world.audience.lists.newest
                if newest is not None and directory.incarnation in newest.removed:
                    # Another operator removed it meanwhile. The managers that tell it so may be too few to stop it.
                    directory = self._blank(id_)
                address = directory.address  # it may have moved since the operator began
            step = work.steps[0] = (verb, id_, address)
            process.take(self._question(process, work, step))
        self.world.after(ASK_AGAIN_SECONDS, lambda: self._ask(work))

    def _question(self, process: Process, work: Work, step: Step) -> ChangeWanted:
        """The request in the form in which the product's manager makes it: a removal names the directory."""
        verb, id_, _ = step
        newest = self.world.audience.lists.newest
        member = newest.members.get(id_) if newest is not None and verb == REMOVE else None
        incarnation = "" if member is None else member.incarnation
        return ChangeWanted(*step, lambda answer: self._answered(process, work, step, answer), incarnation)

    def _answered(self, process: Process, work: Work, step: Step, answer: Answer) -> None:
        if work not in self._at_work or work.steps[0] != step:
            return
        if answer.state == DONE:
            self.world.note(f"member change done: {step}")
            self.world.checked["membership changes answered"] += 1
            self.world.tell("change_done", process, step, answer)
            work.steps.pop(0)
            if not work.steps:
                self._at_work.remove(work)
                self.world.after(0.0, work.then)  # later, because it may end the manager that makes this step
        elif answer.state == REFUSED:
            self.world.checked["seen: member change refused"] += 1
            if any(words in answer.text for words in POINTLESS):
                self._at_work.remove(work)

    def heal(self) -> None:
        """Changes under way go on to their end; no operator begins another one."""
        for id_ in sorted(self._returned):
            self._leave_again(id_)


def _has_change_under_way(process: Process) -> bool:
    engine, log = process.engine, process.opened.log
    first = max(process.opened.machine.applied_index, log.base_index)
    contents = (entries.decode(command) for command, _, _ in log.entries[first - log.base_index + 1 :])
    return engine._changes._wanted is not None or any(isinstance(content, Change) for content in contents)
