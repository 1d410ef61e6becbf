"""What must hold in every run, one module a promise; each says at its top what it checks and what it does not.

A checker is an observer of the world: it may have `started(process)`, `stepped(process)`, `ending(process)`,
`failed(process, error)`, `local_read(process, revision, key, found)`, and `finish(world, workload)` at the end.
It raises Failure.
"""

from tests.simulation.checkers.acknowledged import AcknowledgedWrites
from tests.simulation.checkers.failures import UnexpectedFailures
from tests.simulation.checkers.logs import CommittedLogs
from tests.simulation.checkers.monotonic import Monotonic
from tests.simulation.checkers.states import States
from tests.simulation.checkers.terms import OneLeaderATerm

ALL = (OneLeaderATerm, CommittedLogs, Monotonic, States, AcknowledgedWrites, UnexpectedFailures)

__all__ = ["ALL"]
