"""The loop of a small orchestrator: it creates the containers that a service lacks, while its manager leads.

Written as an embedding program would write it, with `run_while_leading`. Only `freeze_next` belongs to the tests: the
process is suspended between a decision and its write, which is the moment at which a paused leader does harm.
"""

from __future__ import annotations

import os
import signal
import time

import warren_raft as wr
from warren_raft.fsm.history import since
from warren_raft.store.command import PUT
from warren_raft.store.tables import CONTAINER

SERVICE = "svc"
PASS_SECONDS = 0.02


class Reconciler:
    """Keeps `wanted` containers of one service. `name` is unique among the managers. With `write_seconds` a write that
    is late ends the pass, and the loop goes on."""

    def __init__(self, store: wr.ReplicatedStore, name: str, wanted: int, write_seconds: float | None) -> None:
        self._store = store
        self._write_seconds = write_seconds
        self.late = 0
        """The passes that did not get an answer in time."""
        self._name = name
        self._wanted = wanted
        self.freeze_next = False
        self.ended: list[list[object]] = []
        """[term, why] of each lead that is over."""
        self.stop = store.run_while_leading(self._run)

    def _run(self, lead: wr.Lead) -> None:
        why = "over"
        try:
            while not lead.wait_over(PASS_SECONDS):
                try:
                    self._reconcile(lead)
                except wr.Unavailable:
                    if self._write_seconds is None:
                        raise
                    self.late += 1
        except wr.WarrenError as error:
            why = type(error).__name__
            raise
        finally:
            self.ended.append([lead.term, why])

    def _reconcile(self, lead: wr.Lead) -> None:
        missing = self._wanted - len(self._store.list_containers_by_service(SERVICE))
        if missing <= 0:
            return
        if self.freeze_next:
            self.freeze_next = False
            os.kill(os.getpid(), signal.SIGSTOP)
        with lead.batch(timeout=self._write_seconds) as batch:
            for number in range(missing):
                id_ = f"{self._name}-{lead.term}-{time.monotonic_ns()}-{number}"
                batch.create_container(wr.Container(id=id_, service_id=SERVICE))


def most_at_once(store: wr.ReplicatedStore) -> int:
    """The largest number of containers that there ever were at one revision, by the history since the beginning."""
    there: set[str] = set()
    most = 0
    with store._attached().read() as transaction:
        for change in since(transaction, 0):
            for operation in change.operations:
                if operation.kind_number == CONTAINER.number:
                    (there.add if operation.verb == PUT else there.discard)(operation.id)
            most = max(most, len(there))
    return most
