"""The journals of a test's writers, read back: each write, its answer, and the times of both.

Not here: judging (checkers.py). The journals may be read again and again while the writers go on: a line counts when it
is whole. Invariant: a write without an answer, because its process was killed, is UNKNOWN.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.cluster.load import OK, UNKNOWN


@dataclass
class Write:
    """One write, or read. Times are those of the machine's monotonic clock, the same in every process."""

    writer: str
    operation: str
    key: str
    value: Any
    detail: Any
    begun: float
    outcome: str = UNKNOWN
    answer: Any = None
    """The revision, if the outcome is OK; [revision, value], if it is READ."""
    ended: float = float("inf")

    @property
    def is_ok(self) -> bool:
        return self.outcome == OK

    @property
    def manager(self) -> str:
        return self.writer.partition("-")[0]

    def __str__(self) -> str:
        return f"{self.writer} {self.operation} {self.key}={self.value!r}: {self.outcome} {self.answer}"


@dataclass
class _File:
    offset: int = 0
    writes: list[Write] = field(default_factory=list)


class History:
    """All journals of a directory. `read` takes in the new lines."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: dict[str, _File] = {}
        self._acknowledged: Counter[str] = Counter()
        self.remarks: list[str] = []
        self.ended: dict[str, str] = {}
        """Writer -> why it ended."""

    def read(self) -> History:
        for path in sorted(self._directory.glob("*.journal")):
            file = self._files.setdefault(path.stem, _File())
            with open(path, "rb") as journal:
                journal.seek(file.offset)
                data = journal.read()
            whole = data[: data.rfind(b"\n") + 1]
            file.offset += len(whole)
            for line in whole.splitlines():
                self._take(path.stem, file, json.loads(line))
        return self

    def _take(self, writer: str, file: _File, fact: list[Any]) -> None:
        _, moment, kind, *rest = fact
        if kind == "intent":
            operation, key, value, detail = rest
            file.writes.append(Write(writer, operation, key, value, detail, moment))
        elif kind == "told":
            write = file.writes[-1]
            write.outcome, write.answer = rest
            write.ended = moment
            self._acknowledged[write.manager] += write.is_ok
        elif kind == "remark":
            self.remarks.append(f"{writer}: {rest[0]}")
        elif kind == "end":
            self.ended[writer] = rest[0]

    @property
    def writes(self) -> list[Write]:
        return [write for file in self._files.values() for write in file.writes]

    def of(self, operation: str) -> Iterator[Write]:
        return (write for write in self.writes if write.operation == operation)

    def acknowledged(self, *managers: str) -> int:
        """The number of acknowledged writes: through these managers, or through all if none is named."""
        return sum(self._acknowledged[manager] for manager in managers or self._acknowledged)

    def longest_pause(self, begin: float, end: float, *managers: str) -> float:
        """The longest time between `begin` and `end` without an acknowledged write, in seconds."""
        times = sorted(
            write.ended for write in self.writes if write.is_ok and (not managers or write.manager in managers)
        )
        marks = [begin, *(moment for moment in times if begin < moment < end), end]
        return max(after - before for before, after in pairwise(marks))
