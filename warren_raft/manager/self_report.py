"""A manager's report about itself for a bug report (`warren-raft doctor`): versions, settings, threads, log lines.

Lives here: the parts that only the manager's process knows. Not here: its status, its slow writes and its metrics,
which have calls of their own, and the parts that need no manager (cli/doctor.py). Invariant: no entity, key,
environment or command line is in it, and nothing waits.
"""

from __future__ import annotations

import logging
import os
import platform
import resource
import sys
import threading
import traceback
from contextlib import suppress
from dataclasses import fields
from datetime import UTC, datetime
from importlib import metadata
from typing import Any, Final

from warren_raft.config import Config
from warren_raft.manager.parts import Parts
from warren_raft.support.log_lines import recent

PACKAGES: Final = (
    *("warren-raft", "pysyncobj", "lmdb", "cbor2", "aiohttp", "cryptography", "click", "prometheus-client", "rich"),
)
TEXTS_SHOWN: Final = frozenset({"node_id", "data_dir", "listen", "members", "metrics_listen", "join", "backup_dir"})
"""The settings that are shown although they are text: paths and addresses. Of any other text, for example a command,
only the fact that it is set is shown."""
FRAMES_MAX: Final = 30
THREADS_MAX: Final = 100
_STDERR: Final = 2


def self_report(parts: Parts) -> dict[str, Any]:
    """In the form for JSON."""
    engine = parts.driver.engine
    return {
        "versions": versions(),
        "config": shown_config(parts.config),
        "process": {
            "log_goes_to": _log_place(),
            "open_files_limit": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            "max_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "switch_interval_seconds": sys.getswitchinterval(),
            "threads": _threads(),
        },
        "raft": {
            "leader_changes": engine.leaders_known,
            "log_index": parts.opened.log.last_index,
            "synced_index": parts.opened.log.synced_index,
            "steps": parts.driver.steps,
            "queued": engine.queued_count,
            "dropped_or_avoided": dict(engine.guard_stats),
            "states_replaced": parts.installed,
            "open_watches": parts.hub.open_count,
        },
        "log_lines": [
            f"{datetime.fromtimestamp(line.at, UTC):%Y-%m-%dT%H:%M:%S.%f}"[:-3]
            + f"Z {logging.getLevelName(line.level).lower()} {line.logger}: {line.text}"
            for line in recent(parts.config.node_id)
        ],
    }


def versions() -> dict[str, str]:
    """Of the packages, of Python and of the system."""
    found = {"python": f"{platform.python_implementation()} {sys.version}", "system": platform.platform()}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def shown_config(config: Config) -> dict[str, dict[str, Any]]:
    """Each setting with its value, and whether it is the default one."""
    found = {}
    for each in fields(Config):
        value = getattr(config, each.name)
        found[each.name] = {
            "value": shown_setting(each.name, value),
            "from": "default" if value == each.default else "set",
        }
    return found


def shown_setting(name: str, value: object) -> Any:
    """The value of a setting, if no secret can be in it."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if value == ():
        return []
    if name not in TEXTS_SHOWN:
        return "(set, and not shown)"
    return dict(value.items()) if hasattr(value, "items") else str(value)


def _log_place() -> str:
    """Where the standard error stream of this process goes, to which `serve` logs."""
    if os.environ.get("JOURNAL_STREAM"):
        return "the journal of systemd"
    try:
        place = os.readlink(f"/proc/self/fd/{_STDERR}")
    except OSError:
        return "nowhere: stderr is closed"
    return "a pipe" if place.startswith("pipe:") else "a socket" if place.startswith("socket:") else place


def _threads() -> dict[str, list[str]]:
    """What the threads of this package are doing now: the innermost calls last. Other threads are the program's own."""
    frames = sys._current_frames()
    found = {}
    for thread in threading.enumerate()[:THREADS_MAX]:
        frame = frames.get(thread.ident or 0)
        if frame is not None and thread.name.startswith("warren"):
            calls = traceback.extract_stack(frame)[-FRAMES_MAX:]
            found[thread.name] = [f"{call.name} ({call.filename}:{call.lineno})" for call in calls]
    return found
