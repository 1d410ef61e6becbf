"""What must hold in every run, one module a promise; each says at its top what it checks and what it does not.

A checker is an observer of the world: it may have `started(process)`, `step_ended(process)`, `stepped(process)` where
the step changed something, `took(process, batch)` and `wrote(process, batch)` of the log, `sent(process, peer,
message)`, `delivered(process, peer, message)`, `ending(process)`, `failed(process, error)`, `local_read(process,
revision, key, found)`, `quiet_begins(world)` and `quiet_ends(world)`, and `finish(world, workload)` at the end. It
raises Failure. A cluster that was restored has checkers of its own, which are told `restored(cluster_id)` first.
"""

from tests.simulation.checkers.acknowledged import AcknowledgedWrites
from tests.simulation.checkers.alarms import NoAccusations
from tests.simulation.checkers.beliefs import LeadersBeliefs
from tests.simulation.checkers.calm import Calm
from tests.simulation.checkers.campaigns import PromptCampaigns
from tests.simulation.checkers.clusters import OneCluster
from tests.simulation.checkers.failures import UnexpectedFailures
from tests.simulation.checkers.linearizability import Linearizability
from tests.simulation.checkers.logs import CommittedLogs
from tests.simulation.checkers.monotonic import Monotonic
from tests.simulation.checkers.once import ExactlyOnce
from tests.simulation.checkers.restarts import Restarts
from tests.simulation.checkers.revisions import RevisionsInRealTime
from tests.simulation.checkers.speech import Speech
from tests.simulation.checkers.states import States
from tests.simulation.checkers.terms import OneLeaderATerm

ALL = (
    OneCluster,
    OneLeaderATerm,
    CommittedLogs,
    Monotonic,
    Speech,
    PromptCampaigns,
    LeadersBeliefs,
    Restarts,
    NoAccusations,
    States,
    AcknowledgedWrites,
    ExactlyOnce,
    RevisionsInRealTime,
    Linearizability,
    Calm,
    UnexpectedFailures,
)
WHITE_BOX = (CommittedLogs, Monotonic, Speech, PromptCampaigns, LeadersBeliefs, Restarts, NoAccusations)
"""Those that look inside a manager while it runs, instead of at what it does and what its callers are told."""

__all__ = ["ALL", "WHITE_BOX"]
