"""What must hold in every run, one module a promise; each says at its top what it checks and what it does not.

A checker is an observer of the world. It has methods named for what it wants to be told of a process: `started`,
`step_ended`, `stepped` where a step changed something, `took(…, batch)` and `wrote(…, batch)` of the log, `sent(…,
peer, message)` and `delivered(…, peer, message)`, the same as `sent_on` and `received_on` with the number of the
connection, `swapped` when its state is another one, `local_read(…, revision, key, found)`, `change_done(…, step,
answer)` where an operator hears it, `ending`, `failed(…, error)`; and of the world: `quiet_begins`, `quiet_ends`, and
`finish(world, workload)` at the end. It raises Failure. A cluster that was restored has checkers of its own, which are
told `restored(cluster_id)` first.
"""

from tests.simulation.checkers.acknowledged import AcknowledgedWrites
from tests.simulation.checkers.alarms import NoAccusations
from tests.simulation.checkers.answered import AnsweredChanges
from tests.simulation.checkers.answers import AnswersStayOnTheirLink
from tests.simulation.checkers.beliefs import LeadersBeliefs
from tests.simulation.checkers.calm import Calm
from tests.simulation.checkers.campaigns import PromptCampaigns
from tests.simulation.checkers.clusters import OneCluster
from tests.simulation.checkers.durable import DurableLogs
from tests.simulation.checkers.ends import CallsEnd
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
    RevisionsInRealTime,
    Linearizability,
    CallsEnd,
    Calm,
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
    CallsEnd,
)
"""Those that look inside a manager while it runs, instead of at what it does and what its callers are told."""

OF_CORRECT_PEERS = (Speech, AnswersStayOnTheirLink, PromptCampaigns)
"""Those that hold what a manager says against what its peers have sent: a hostile one says what no peer sent."""

__all__ = ["ALL", "OF_CORRECT_PEERS", "WHITE_BOX"]
