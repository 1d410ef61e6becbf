"""Checks: no write with a fence takes effect in an entry of another term, and no refused write takes effect. Fenced
writes take effect in the order of their terms: no decision of an old leader comes after the first write of a later one.
A job, which several callers do under one request key, takes effect once, and each caller that gets an answer gets the
revision at which it did. Not: whether the writers with a fence lead (terms.py).
"""

from __future__ import annotations

from tests.simulation.workload import Workload, value_of
from tests.simulation.world import Failure, Process, World
from warren_raft.fsm import history
from warren_raft.raft import entries
from warren_raft.raft.membership import Change
from warren_raft.store import codec
from warren_raft.store.command import decode
from warren_raft.store.tables import SERVICE


class Fencing:
    def __init__(self) -> None:
        self._terms: dict[tuple[int, int], tuple[int, int]] = {}
        """(session, sequence) of a fenced command -> (index, term) of its first committed entry."""
        self._seen: set[int] = set()
        self._looked: dict[int, int] = {}

    def started(self, process: Process) -> None:
        self._looked[process.number] = process.opened.log.base_index

    def stepped(self, process: Process) -> None:
        log = process.opened.log
        first = max(self._looked.get(process.number, 0), log.base_index)
        last = min(log.commit_index, log.last_index)
        for index in range(first + 1, last + 1):
            if index not in self._seen:
                self._seen.add(index)
                data, _, term = log.entries[index - log.base_index]
                self._note(index, term, data)
        self._looked[process.number] = max(first, last)

    def _note(self, index: int, term: int, data: bytes) -> None:
        content = entries.decode(data)
        for each in [] if isinstance(content, Change) else content:
            command = decode(each)
            if command.fence:
                request = command.session, command.sequence
                self._terms[request] = min(self._terms.get(request, (index, term)), (index, term))

    def finish(self, world: World, workload: Workload) -> None:
        for process in world.members():
            found = _values(process, workload.base_revision)
            self._check_fences(process, workload, found)
            _check_jobs(process, workload, found)

    def _check_fences(self, process: Process, workload: Workload, found: dict[str, int]) -> None:
        done = []
        for call in workload.calls:
            revision = found.get(value_of(call)) if call.fence else None
            if revision is None:
                continue
            if call.result == "never":
                raise Failure(f"{process.id}: {call} was refused, and took effect at revision {revision}")
            done.append((revision, call.fence))
            if call.request is not None and call.request in self._terms:
                index, term = self._terms[call.request]
                if term != call.fence:
                    raise Failure(f"{process.id}: {call} took effect in entry {index} of term {term}")
        fences = [fence for _, fence in sorted(done)]
        if fences != sorted(fences):
            raise Failure(
                f"{process.id}: writes of an old leader took effect after those of a later one: {sorted(done)}"
            )


def _values(process: Process, base_revision: int) -> dict[str, int]:
    """The revision at which each value took effect."""
    with process.opened.database.read() as transaction:
        return {
            codec.decode(SERVICE, codec.make_record(revision, operation.entity)).image: revision
            for revision, operations, _ in history.since(transaction, base_revision)
            for operation in operations
            if operation.entity is not None and operation.kind_number == SERVICE.number
        }


def _check_jobs(process: Process, workload: Workload, found: dict[str, int]) -> None:
    for job in workload.jobs:
        revisions = [found[value] for value in job.values if value in found]
        if len(revisions) > 1:
            raise Failure(f"{process.id}: the job {job.key} was done at {revisions}")
        for answer in job.answers:
            if revisions != [answer]:
                raise Failure(f"{process.id}: the job {job.key} was done at {revisions}, a caller was told {answer}")
