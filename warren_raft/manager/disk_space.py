"""The space of a manager: on the file system of its data directory, and in its database below the quota.

Measured here, once a second by the manager's housekeeping. The consequences are decided in raft/health.py, by all
managers together. Invariant: a low value counts as low until it is clearly above the limit, so that it does not
flicker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from warren_raft.alarms import AlarmName, Alarms
from warren_raft.disk.files import OS_FILES
from warren_raft.store.database import Database
from warren_raft.support.wording import in_units_apart

DISK_AGAIN: Final = 1.25
"""A disk has enough space again with this multiple of the reserve."""
QUOTA_AGAIN: Final = 0.95
"""A database has enough space again below this share of its quota."""


class Space:
    """`look` is for one thread at a time, `is_low` and `shortages` for any thread."""

    def __init__(
        self,
        directory: str,
        *,
        reserve_bytes: int,
        quota_bytes: int,
        alarms: Alarms,
        free: Callable[[str], int] = OS_FILES.free_bytes,
    ) -> None:
        self._directory = directory
        self._reserve_bytes = reserve_bytes
        self._quota_bytes = quota_bytes
        self._alarms = alarms
        self._free = free
        self._is_disk_low = False
        self._is_over_quota = False
        self.is_low = False
        self.shortages: tuple[str, ...] = ()
        """The shortages, with figures and advice; empty while there is enough space."""
        self.free_bytes: int | None = None
        self.used_bytes: int | None = None
        """At the last check: the free bytes of the disk, and the bytes that the database uses without the history."""

    def look(self, database: Database) -> bool:
        """Measure. Returns whether this manager is low on space. Raises OSError, Closed; the last values stay then."""
        free = self._free(self._directory)
        with database.read() as transaction:
            used = transaction.used_bytes(history=False)
        self._is_disk_low = free < self._reserve_bytes * (DISK_AGAIN if self._is_disk_low else 1)
        self._is_over_quota = used > self._quota_bytes * (QUOTA_AGAIN if self._is_over_quota else 1)
        shortages: dict[AlarmName, str] = {}
        if self._is_disk_low:
            left, reserve = in_units_apart(free, self._reserve_bytes)
            shortages["disk-low"] = (
                f"the disk of {self._directory} is low on space: {left} are free and {reserve} are its reserve; "
                "free or add some"
            )
        if self._is_over_quota:
            size, quota = in_units_apart(used, self._quota_bytes)
            shortages["over-quota"] = (
                f"the database in {self._directory} has reached its quota: {size} of {quota} are used; "
                "delete entities, or raise quota_bytes"
            )
        self._tell(shortages)
        self.free_bytes, self.used_bytes = free, used
        self.shortages = tuple(shortages.values())
        self.is_low = bool(shortages)
        return self.is_low

    def _tell(self, shortages: Mapping[AlarmName, str]) -> None:
        names: tuple[AlarmName, ...] = ("disk-low", "over-quota")
        for name in names:
            if name in shortages:
                self._alarms.raise_alarm(name, shortages[name])
            else:
                self._alarms.clear_alarm(name)
