"""DATA_DIR/manager.json: how a manager was started last, so that its directory alone is enough for the next start.

Lives here: that file, and the settings of a start that names only the directory. Not here: the member list.
Invariant: the file only helps. A manager also starts without it, with a damaged one, or with that of another log, and
membership of the cluster never depends on it.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from warren_raft.config import MEMBERS_MAX, Config, check_address, check_node_id
from warren_raft.data_dir.description import ReadOnlyFiles, advice_for_log, describe
from warren_raft.data_dir.local_state import refuse_local_state
from warren_raft.disk.durable import replace_file
from warren_raft.disk.files import OS_FILES, Files
from warren_raft.disk.paths import absolute
from warren_raft.disk.sharing import without_links
from warren_raft.raft.log.opening import newest_header
from warren_raft.store.ownership import DirectoryLock
from warren_raft.support.log_lines import log_event

logger = logging.getLogger("warren_raft.data_dir.remembered")

FILE_NAME: Final = "manager.json"
FORMAT: Final = 1
FILE_BYTES_MAX: Final = 256 * 1024
"""The limit for reading a file: two addresses for each of the possible members are far smaller."""


@dataclass(frozen=True, kw_only=True)
class Remembered:
    """How a manager was started last, and the addresses of others that it has learnt."""

    node_id: str
    incarnation: str
    """The incarnation of the log to which it belongs: a directory that was restored since has another."""
    listen: str
    members: Mapping[str, str]
    """Config.members, id -> address."""
    said: Mapping[str, str]
    """Addresses that members reported as theirs and that differ from the member list: id -> address."""


def read(directory: str | os.PathLike[str]) -> Remembered | None:
    """None if there is no such file, or if it is damaged, which is logged. Raises OSError."""
    path = os.path.join(directory, FILE_NAME)
    try:
        with open(path, "rb", opener=without_links) as file:
            data = file.read(FILE_BYTES_MAX)
    except FileNotFoundError:
        return None
    try:
        return _decoded(json.loads(data))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = "it is not JSON" if isinstance(error, json.JSONDecodeError) else str(error)
        text = f"it is damaged ({reason}); the log and the state have what this start needs, and it is written again"
        log_event(logger, logging.WARNING, "file ignored", text, path=path)
        return None


def _decoded(value: Any) -> Remembered:
    if value["format"] != FORMAT:
        raise ValueError(f"format {value['format']!r}, and not {FORMAT}")
    if not isinstance(value["incarnation"], str):
        raise TypeError("the incarnation is not a text")
    return Remembered(
        node_id=check_node_id(value["node_id"]),
        incarnation=value["incarnation"],
        listen=check_address(value["listen"]),
        members=_addresses(value["members"]),
        said=_addresses(value["said"]),
    )


def _addresses(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or len(value) > MEMBERS_MAX:
        raise TypeError(f"not a table of up to {MEMBERS_MAX} addresses")
    return {check_node_id(id_): check_address(address) for id_, address in value.items()}


def write(directory: str | os.PathLike[str], remembered: Remembered, *, files: Files = OS_FILES) -> None:
    """Write atomically and durably, mode 0600. Raises OSError; the old file remains then."""
    value = {
        "format": FORMAT,
        "node_id": remembered.node_id,
        "incarnation": remembered.incarnation,
        "listen": remembered.listen,
        "members": dict(remembered.members),
        "said": dict(remembered.said),
    }
    data = json.dumps(value, indent=1).encode() + b"\n"
    replace_file(os.path.join(directory, FILE_NAME), data, files=files)


class Memory:
    """The file of one running manager. One thread at a time."""

    def __init__(self, config: Config, incarnation: str, *, files: Files = OS_FILES) -> None:
        self._config = config
        self._files = files
        self._incarnation = incarnation
        self._kept = _kept_or_none(config, incarnation)
        self._failure = ""
        self._directory = _identity(config)

    @property
    def said(self) -> Mapping[str, str]:
        """The addresses of other members in the file: id -> address."""
        return {} if self._kept is None else self._kept.said

    def keep(self, said: Mapping[str, str]) -> None:
        """Write the file if its content differs. If the disk fails, this is logged once, and the next call tries again:
        the manager works without the file."""
        config = self._config
        now = Remembered(
            node_id=config.node_id,
            incarnation=self._incarnation,
            listen=config.listen,
            members=dict(config.members),
            said=dict(said),
        )
        if now == self._kept:
            return
        try:
            if _identity(config) != self._directory:
                return  # our directory was moved or unmounted: another directory has its name now
            write(config.directory, now, files=self._files)
        except OSError as error:
            if self._failure != str(error):
                self._failure = str(error)
                log_event(logger, logging.WARNING, "file not written", error, node=config.node_id, path=FILE_NAME)
            return
        self._kept, self._failure = now, ""


def _identity(config: Config) -> tuple[int, int]:
    status = os.stat(config.directory)
    return status.st_dev, status.st_ino


def _kept_or_none(config: Config, incarnation: str) -> Remembered | None:
    try:
        return kept_for(config.directory, incarnation)
    except OSError as error:
        log_event(logger, logging.WARNING, "file ignored", error, node=config.node_id, path=FILE_NAME)
        return None


def settings_of(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """`node_id`, `listen` and `members` of the directory's manager, as far as they are known there; empty if the
    directory holds no manager's log.

    They are the settings of the last start, or, without that file, those in the log and the state. Raises InUse (the
    manager runs), RefusedForSafety, Corrupted, OSError.
    """
    directory = absolute(directory)
    with advice_for_log(directory):
        header = newest_header(ReadOnlyFiles(), os.path.join(directory, "log"))
    if header is None:
        if not DirectoryLock.is_held(directory):
            refuse_local_state(directory)
        return {}
    kept = read(directory)
    if kept is not None and (kept.node_id, kept.incarnation) == (header.node_id, header.incarnation):
        return {"node_id": kept.node_id, "listen": kept.listen, "members": dict(kept.members)}
    found = describe(directory)
    settings: dict[str, Any] = {"node_id": found.node_id}
    if found.address is not None:
        settings["listen"] = found.address
        settings["members"] = {member.id: member.address for member in found.members}
    return settings


def kept_for(directory: str | os.PathLike[str], incarnation: str) -> Remembered | None:
    """The file, if it belongs to the log of this incarnation. Raises OSError."""
    kept = read(directory)
    return kept if kept is not None and kept.incarnation == incarnation else None
