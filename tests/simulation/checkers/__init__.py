"""The promises that must hold in every run, one module for each; its docstring lists its checks and omissions.

A checker is an observer of the world, and raises Failure. Each of its methods is named for an event of a process, which
is the first argument: `started`; `step_ended`; `stepped`, if a step changed something; `took(…, batch)` and `wrote(…,
batch)` of the log; `sent(…, peer, message)` and `delivered(…, peer, message)`, and the same events as `sent_on` and
`received_on` with the number of the connection; `swapped`, when the state was replaced (after `diverged`, if it was
wrong); `local_read(…, revision, key, found)`; `barrier_began(…, number)` and `barrier_passed(…, number)`; `woke`, at
the end of a pause; `leapt`, when its clock leapt; `program_wrote(…, operation)` and `node_decided(…, node, operation,
term)`, when the program or a judge wants to store a node; `change_done(…, step, answer)`, when an operator gets the
answer; `ending`; `failed(…, error)`. Events of the world: `quiet_begins`, `quiet_ends`, and `finish(world, workload)`
at the end. A restored cluster has its own checkers; the first event that they get is `restored(cluster_id)`.
"""

from tests.simulation.checkers.acknowledged import AcknowledgedWrites
from tests.simulation.checkers.alarms import NoAccusations
from tests.simulation.checkers.answered import AnsweredChanges
from tests.simulation.checkers.answers import AnswersStayOnTheirLink
from tests.simulation.checkers.barriers import Barriers
from tests.simulation.checkers.beats import Heartbeats
from tests.simulation.checkers.beliefs import LeadersBeliefs
from tests.simulation.checkers.calm import Calm
from tests.simulation.checkers.campaigns import PromptCampaigns
from tests.simulation.checkers.clusters import OneCluster
from tests.simulation.checkers.durable import DurableLogs
from tests.simulation.checkers.ends import CallsEnd
from tests.simulation.checkers.failures import UnexpectedFailures
from tests.simulation.checkers.fencing import Fencing
from tests.simulation.checkers.levels import Levels
from tests.simulation.checkers.linearizability import Linearizability
from tests.simulation.checkers.logs import CommittedLogs
from tests.simulation.checkers.monotonic import Monotonic
from tests.simulation.checkers.once import ExactlyOnce
from tests.simulation.checkers.restarts import Restarts
from tests.simulation.checkers.revisions import RevisionsInRealTime
from tests.simulation.checkers.speech import Speech
from tests.simulation.checkers.states import States
from tests.simulation.checkers.terms import OneLeaderATerm
from tests.simulation.checkers.thin import ThinLinks

ALL = (
    OneCluster,
    AnsweredChanges,
    OneLeaderATerm,
    CommittedLogs,
    DurableLogs,
    Monotonic,
    Speech,
    AnswersStayOnTheirLink,
    PromptCampaigns,
    LeadersBeliefs,
    Restarts,
    NoAccusations,
    States,
    AcknowledgedWrites,
    ExactlyOnce,
    Barriers,
    RevisionsInRealTime,
    Fencing,
    Linearizability,
    CallsEnd,
    Calm,
    Levels,
    Heartbeats,
    ThinLinks,
    UnexpectedFailures,
)
WHITE_BOX = (
    AnsweredChanges,
    CommittedLogs,
    DurableLogs,
    Monotonic,
    Speech,
    AnswersStayOnTheirLink,
    PromptCampaigns,
    LeadersBeliefs,
    Restarts,
    NoAccusations,
    Barriers,
    CallsEnd,
)
"""Checkers that look inside a manager while it runs. The others look only at its actions and its callers' answers."""

OF_CORRECT_PEERS = (Speech, AnswersStayOnTheirLink, PromptCampaigns)
"""Checkers that compare a manager's messages with those of its peers: a hostile peer adds messages of its own."""

__all__ = ["ALL", "OF_CORRECT_PEERS", "WHITE_BOX"]
