"""Readers in other processes that keep one view of the state open for long: which processes, and since when.

Lives here: watching these readers, for a timer of the manager. Not here: their table (reader_slots.py), and
ending old views, which each process does itself. Invariant: the alarm "reader-holds-pages" lasts exactly while such a
reader holds pages that were changed since.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final

from warren_raft.alarms import Alarms
from warren_raft.results import ForeignRead
from warren_raft.store.database import Database
from warren_raft.store.reader_slots import Holder, pid_namespace
from warren_raft.store.transactions import VIEW_AGE_MAX_SECONDS
from warren_raft.support.wording import in_units

HOLD_SECONDS: Final = 60.0
"""A reader that has one view open for longer raises the alarm. Reading everything takes seconds."""

RENEW_SECONDS: Final = VIEW_AGE_MAX_SECONDS + 300.0
"""By then the process should have ended the view itself. So it is suspended, or hangs, or is not our program."""


RENEW_AGAIN_SECONDS: Final = 600.0
"""How long the state is not moved to another file again after an attempt for such a reader: the attempt found no space,
or is still running."""


class ForeignReaders:
    """`look` is for one thread. The age of a view is counted from the first check that found it."""

    def __init__(self, alarms: Alarms, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._alarms = alarms
        self._clock = clock
        self._namespace: Final = pid_namespace()
        self._since: dict[tuple[str, Holder], float] = {}
        self._oldest: tuple[float, Holder] | None = None
        """The beginning of the oldest view that is known, and its reader."""

    @property
    def oldest(self) -> ForeignRead | None:
        """The oldest view of the last look; None: there was none. For any thread."""
        oldest = self._oldest
        if oldest is None:
            return None
        since, holder = oldest
        is_here = holder.namespace in (0, self._namespace)
        return ForeignRead(
            pid=holder.pid,
            pid_namespace=None if is_here else holder.namespace,
            age_seconds=round(max(0.0, self._clock() - since), 3),
        )

    def look(self, database: Database) -> bool:
        """Raise and clear the alarms. Returns whether there is a reader that will not end by itself (RENEW_SECONDS):
        the present file grows with every change as long as that reader has it open."""
        now, newest = self._clock(), database.newest_transaction()
        holders = {
            (database.path, holder)
            for holder in database.readers()
            if holder.transaction < newest and not self._is_own(holder)
        }
        self._since = {key: self._since.get(key, now) for key in holders}
        self._oldest = min(((since, holder) for (_, holder), since in self._since.items()), default=None)
        oldest: dict[str, tuple[float, Holder]] = {}
        for (_, holder), since in self._since.items():
            name = self._name(holder)
            age = max(now - since, oldest[name][0] if name in oldest else 0.0)
            oldest[name] = (age, holder)
        long = {name: found for name, found in oldest.items() if found[0] >= HOLD_SECONDS}
        self._alarms.clear_others("reader-holds-pages", long)
        for name, (age, holder) in long.items():
            self._alarms.raise_alarm("reader-holds-pages", self._text(name, age, holder, database), subject=name)
        return any(age >= RENEW_SECONDS for age, _ in long.values())

    def _is_own(self, holder: Holder) -> bool:
        return holder.uses_lmdbs_locks and holder.pid == os.getpid()

    def _name(self, holder: Holder) -> str:
        if holder.namespace in (0, self._namespace):
            return f"process {holder.pid}"
        return f"process {holder.pid} of namespace {holder.namespace}"

    def _text(self, name: str, age: float, holder: Holder, database: Database) -> str:
        if holder.namespace in (0, self._namespace):
            end = f"end that process (`ps -fp {holder.pid}` shows it)"
        else:
            end = f"end that process of another container (`lsns {holder.namespace}` on the host shows it)"
        size = in_units(database.file_size_bytes())
        return (
            f"{name} has had one view of the state open for {age:.0f} s, and {database.path} ({size}) grows by "
            f"all changes meanwhile: if that process makes no progress, {end}"
        )
