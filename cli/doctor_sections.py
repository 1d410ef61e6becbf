"""The sections of a bug report that the host and the data directory give, whether or not a manager runs there.

Lives here: disk, files, settings, the stopped directory, the host. Not here: the manager's own sections (doctor.py).
Invariant: nothing is changed. No file in the data directory is opened but by `describe`, and of the environment, of
processes and of keys nothing is read.
"""

from __future__ import annotations

import json
import os
import platform
import re
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from warren_raft.config import Config
from warren_raft.disk.files import capacity
from warren_raft.manager.self_report import shown_setting

from .settings import gathered

FILES_MAX: Final = 2000
DESCRIBE_SECONDS: Final = 60.0
FIELD_ESCAPES: Final = re.compile(r"\\([0-7]{3})")
SECRET_OPTION: Final = re.compile(r"pass|cred|secret|token|key", re.IGNORECASE)
PRESSURES: Final = ("cpu", "io", "memory")
MOUNTS: Final = "/proc/self/mountinfo"
MOUNT_FIELDS: Final = ("mount_point", "file_system", "mount_options")


class DescribeFailed(Exception):
    """`warren-raft describe` found a fault, or crashed on a damaged file."""


def host() -> dict[str, Any]:
    """The machine: its system, load, memory and pressure (Linux's /proc/pressure)."""
    pressure = {name: text for name in PRESSURES if (text := _first_line(f"/proc/pressure/{name}"))}
    return {
        "system": platform.platform(),
        "distribution": _distribution(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "load_average": list(os.getloadavg()),
        "memory": _memory(),
        "pressure": pressure,
    }


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").partition("\n")[0]
    except OSError:  # an older kernel, or a sandbox
        return ""


def _distribution() -> str | None:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME")
    except OSError:
        return None


def _memory() -> dict[str, str]:
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    found = dict(line.split(":", 1) for line in lines)
    names = ("MemTotal", "MemAvailable", "SwapTotal", "SwapFree", "Dirty", "Writeback")
    return {name: found[name].strip() for name in names if name in found}


def disk(path: str) -> dict[str, Any]:
    """The file system of a directory: its kind, its mount options, its free space and inodes. `mount_problem`: why its
    kind and its options are not known; None if they are."""
    known: dict[str, Any] = {"path": path, **capacity(path)._asdict()}
    problem = None
    try:
        mount = _mount(os.path.realpath(path))
        if not mount:
            problem = f"{MOUNTS} has no mount for this path"
    except OSError as error:  # a sandbox may hide it
        mount, problem = {}, f"the mounts cannot be read: {MOUNTS}: {error.strerror}"
    return known | dict.fromkeys(MOUNT_FIELDS) | mount | {"mount_problem": problem}


def mount_told(path: str) -> str:
    """A clause that names the mount of a path, for a disk that does not answer; empty if the mounts cannot be read. The
    path is not looked at."""
    try:
        found = _mount(os.path.abspath(path))
    except OSError:  # no /proc here: the clause is an extra
        return ""
    return f"; {found['mount_point']} is a mount of {found['file_system']}" if found else ""


def _mount(real: str) -> dict[str, Any]:
    """Of proc(5), /proc/self/mountinfo: the mount whose mount point is the longest part of this absolute path. Empty if
    there is none."""
    best: dict[str, Any] = {}
    for line in Path(MOUNTS).read_text(encoding="utf-8", errors="replace").splitlines():
        left, _, right = line.partition(" - ")
        point = FIELD_ESCAPES.sub(lambda match: chr(int(match[1], 8)), left.split()[4])
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best.get("mount_point", "")):
            kind, _source, super_options = right.split(" ", 2)
            options = [*left.split()[5].split(","), *super_options.split(",")]
            best = {
                "mount_point": point,
                "file_system": kind,
                "mount_options": sorted({each for each in options if not SECRET_OPTION.search(each)}),
            }
    return best


def files(directory: str) -> list[dict[str, Any]]:
    """The files of a data directory by name, with sizes, modes, owners and times. Links are not followed."""
    found: list[dict[str, Any]] = []
    for path, status in _walked(directory):
        if len(found) == FILES_MAX:
            found.append({"name": f"and more than {FILES_MAX} files", "bytes": 0})
            break
        found.append(
            {
                "name": os.path.relpath(path, directory),
                "bytes": status.st_size,
                "allocated_bytes": status.st_blocks * 512,
                "mode": stat.filemode(status.st_mode),
                "owner": f"{status.st_uid}:{status.st_gid}",
                "changed": datetime.fromtimestamp(status.st_mtime, UTC).isoformat(timespec="seconds"),
            }
        )
    return found


def _walked(directory: str) -> Iterator[tuple[str, os.stat_result]]:
    yield directory, os.lstat(directory)
    with os.scandir(directory) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_dir(follow_symlinks=False):
                try:
                    yield from _walked(entry.path)
                except OSError as error:
                    yield f"{entry.path} ({error.strerror})", entry.stat(follow_symlinks=False)
            else:
                try:
                    yield entry.path, entry.stat(follow_symlinks=False)
                except FileNotFoundError:  # it was removed meanwhile
                    continue


def next_start(options: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that `serve` would use with these options, each with its source, as `config show` has them."""
    found = gathered(options)
    return {
        each.name: {
            "value": shown_setting(each.name, getattr(found.config, each.name)),
            "from": found.origins[each.name],
        }
        for each in fields(Config)
    }


def stopped_directory(directory: str) -> Any:
    """The answer of `warren-raft describe`. It runs as a process of its own: LMDB has no checksums, so a damaged
    database may end the process that reads it."""
    command = [sys.executable, "-P", "-m", "warren_raft_cli", "describe", directory, "-o", "json"]
    done = subprocess.run(  # noqa: S603 - our own command; the name of the directory is one argument
        command, capture_output=True, text=True, timeout=DESCRIBE_SECONDS, check=False
    )
    if done.returncode < 0:
        raise DescribeFailed(f"describe was ended by signal {-done.returncode}: a file of the directory is damaged")
    if done.returncode:
        raise DescribeFailed(_text_of(done.stderr))
    return json.loads(done.stdout)


def _text_of(stderr: str) -> str:
    try:
        return str(json.loads(stderr)["error"]["text"])
    except (ValueError, KeyError, TypeError):
        return stderr.strip()[-500:]
