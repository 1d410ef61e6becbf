"""The report that a manager sends to the others once a second, for people: applied index, space, version and alarms.

Lives here: a report, and its form in a message. Not here: digests and being low on space, on which decisions depend
(health.py). Invariant: no decision of this manager depends on a report.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

ALARMS_TOLD: Final = 20
"""The most alarms of one manager in a report."""
TEXT_CHARACTERS: Final = 256
NUMBER_MAX: Final = 1 << 62
NUMBERS: Final = ("disk_free_bytes", "database_bytes", "time_ms")
"""Fields that may be missing: numbers from 0 on."""


SAMPLES_TOLD: Final = 4
"""Digests in one message, each at another index."""
DIGEST_BYTES: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Facts about one manager at one moment. None: the manager did not say."""

    applied_index: int = 0
    version: str = ""
    disk_free_bytes: int | None = None
    database_bytes: int | None = None
    """Bytes used in its database, without the history."""
    fetching: tuple[int, int] | None = None
    """(bytes received, bytes in all) of the snapshot that it fetches; None also: it fetches none."""
    alarms: tuple[tuple[str, str, str], ...] = ()
    """(name, subject, severity)."""
    time_ms: int | None = None
    """Its wall clock when it sent the report, in milliseconds since 1970 (UTC)."""

    def to_message(self) -> dict[str, object]:
        return {
            "applied_index": self.applied_index,
            "version": self.version[:TEXT_CHARACTERS],
            "disk_free_bytes": self.disk_free_bytes,
            "database_bytes": self.database_bytes,
            "fetching": self.fetching,
            "alarms": [[text[:TEXT_CHARACTERS] for text in alarm] for alarm in self.alarms[:ALARMS_TOLD]],
            "time_ms": self.time_ms,
        }

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> Report:
        """The report in a message that `is_report` accepted."""
        fetching = message.get("fetching")
        return cls(
            applied_index=message["applied_index"],
            version=message["version"],
            disk_free_bytes=message.get("disk_free_bytes"),
            database_bytes=message.get("database_bytes"),
            fetching=None if fetching is None else (fetching[0], fetching[1]),
            alarms=tuple((name, subject, severity) for name, subject, severity in message["alarms"]),
            time_ms=message.get("time_ms"),
        )


@dataclass(frozen=True, slots=True)
class Heard:
    """A member's last report, and when it arrived by this manager's clock."""

    report: Report
    at: float


def is_report(value: object) -> bool:
    """Whether the value that a peer sent is a report. The report of a later version may have more fields."""
    if type(value) is not dict:
        return False
    fetching, alarms = value.get("fetching"), value.get("alarms")
    return (
        _is_number(value.get("applied_index"))
        and _is_text(value.get("version"))
        and all(value.get(name) is None or _is_number(value[name]) for name in NUMBERS)
        and (fetching is None or (type(fetching) is list and len(fetching) == 2 and all(map(_is_number, fetching))))
        and type(alarms) is list
        and len(alarms) <= ALARMS_TOLD
        and all(type(alarm) is list and len(alarm) == 3 and all(map(_is_text, alarm)) for alarm in alarms)
    )


def _is_number(value: object) -> bool:
    return type(value) is int and 0 <= value <= NUMBER_MAX


def _is_text(value: object) -> bool:
    return type(value) is str and len(value) <= TEXT_CHARACTERS


def are_digests(value: object) -> bool:
    """Whether the value that a peer sent is digests: a few pairs of an index and 32 bytes."""
    return type(value) is list and len(value) <= 2 * SAMPLES_TOLD and all(map(_is_sample, value))


def _is_sample(value: object) -> bool:
    if type(value) is not list or len(value) != 2:
        return False
    index, digest = value
    is_index = type(index) is int and 0 <= index <= 1 << 62
    return is_index and type(digest) is bytes and len(digest) == DIGEST_BYTES
