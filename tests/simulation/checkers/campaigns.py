"""Checks: a manager campaigns only in the step in which a promised vote, or its leader's request to campaign, came in.
No promise is kept for later, when there may be another leader. Not: whether the promises were enough (speech.py).
"""

from __future__ import annotations

from typing import Any

from tests.simulation.world import Failure, Process


class PromptCampaigns:
    def __init__(self) -> None:
        self._promised: set[int] = set()
        """Processes with a promise that the next step takes in."""
        self._terms: dict[int, int] = {}

    def delivered(self, process: Process, _peer: str, message: dict[str, Any]) -> None:
        if message["type"] == "timeout_now" or (message["type"] == "pre_vote_reply" and message["granted"]):
            self._promised.add(process.number)

    def step_ended(self, process: Process) -> None:
        engine = process.engine
        before = self._terms.get(process.number, engine.term)
        self._terms[process.number] = engine.term
        if engine.term > before and engine.role == "candidate" and process.number not in self._promised:
            raise Failure(f"{process.id} campaigns in term {engine.term}, and nobody has just promised or told it so")
        self._promised.discard(process.number)
