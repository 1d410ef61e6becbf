"""Checks: an answer (to entries, to a request for a vote or a pre-vote, to an operator's request, to a request for a
chunk of a snapshot) leaves on the connection on which its question came. If an answer waits for the disk, for a worker
or for another message when a connection breaks, it must not leave on the next connection: there it would come out of
order, and perhaps to another process. Not: the contents of answers (speech.py).
"""

from __future__ import annotations

from typing import Any

from tests.simulation.world import Failure, Process

Key = tuple[object, ...]


class AnswersStayOnTheirLink:
    def __init__(self) -> None:
        self._asked: dict[tuple[int, int], set[Key]] = {}
        """(process, its number of the connection) -> the questions that came over it."""

    def received_on(self, process: Process, number: int, message: dict[str, Any]) -> None:
        question = _question(message)
        if question is not None:
            self._asked.setdefault((process.number, number), set()).add(question)

    def sent_on(self, process: Process, number: int, message: dict[str, Any]) -> None:
        answered = _answered(message)
        if answered is not None and answered not in self._asked.get((process.number, number), ()):
            raise Failure(f"{process.id} answers {answered}, which was not asked on that connection: {message}")


def _question(message: dict[str, Any]) -> Key | None:
    match message["type"]:
        case "append_entries":
            return "entries", message["term"], message["sequence"]
        case "request_vote":
            return "vote", message["term"]
        case "pre_vote":
            return "pre-vote", message["round"]
        case "change":
            return "change", message["number"]
        case "snapshot_get":
            return "chunk", message["sha256"], message["offset"]
    return None


def _answered(message: dict[str, Any]) -> Key | None:
    match message["type"]:
        case "append_reply":
            return "entries", *message["answers"]
        case "response_vote":
            return "vote", message["term"]
        case "pre_vote_reply":
            return "pre-vote", message["round"]
        case "change_answer":
            return "change", message["number"]
        case "snapshot_chunk":
            return "chunk", message["sha256"], message["offset"]
    return None
