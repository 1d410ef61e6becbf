"""Join files: everything that a manager needs to be admitted by the others (its key, certificate, CA, the members).

Lives here: reading and writing such a file. Not here: issuing (ca.py), and the copy of its certificate that a
manager keeps (files.py). Invariant: a join file that others can read is never used, because it holds a private key.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ..config import check_members, check_node_id, split_address
from ..disk.outputs import whole_file
from ..errors import InvalidConfig, InvalidEntity, RefusedForSafety

SUFFIX: Final = ".join"
FORMAT: Final = 1
FILE_BYTES_MAX: Final = 1024 * 1024
"""The limit for reading a file. A key, three certificates and the addresses of all possible members are far smaller."""
_OTHERS: Final = stat.S_IRWXO | stat.S_IWGRP
"""Rights that no other user than the owner may have on a file with a private key."""


class NotJoinFile(InvalidEntity):
    """The content of a file that was named as a join file is something else."""

    def __init__(self, reason: str) -> None:
        super().__init__("join file", reason)

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyAndCertificates:
    """A manager's private key, its certificate, and the certificates of the CAs that it trusts, as PEM."""

    key: str = field(repr=False)
    certificate: str
    """The manager's own certificate. While a CA is replaced, also the new CA's certificate by
    the old CA."""
    ca: str
    """The CA of the cluster; while it is replaced, the old CA too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinFile:
    """The contents of a join file."""

    node_id: str
    address: str
    """host:port at which the other managers reach this one."""
    members: Mapping[str, str]
    """Id to address of every manager that the CA knew, including this one."""
    not_before: float
    """When the certificate begins, in seconds since 1970 (UTC). Of two files, the one that begins later is newer."""
    files: KeyAndCertificates

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the file atomically, mode 0600. Replaces an older join file, but no other file. Raises OSError,
        RefusedForSafety."""
        require_replaceable(path)
        value = {
            "format": FORMAT,
            "node_id": self.node_id,
            "address": self.address,
            "members": dict(self.members),
            "not_before": self.not_before,
            "key": self.files.key,
            "certificate": self.files.certificate,
            "ca": self.files.ca,
        }
        with whole_file(path) as file:
            file.write(json.dumps(value, indent=1).encode() + b"\n")

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> JoinFile:
        """Raises InvalidEntity if the file is not a join file, RefusedForSafety if other users than its owner may read
        it, and OSError. The key and the certificates are not checked."""
        name = os.fspath(path)
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            data = file.read(FILE_BYTES_MAX + 1)
        try:
            found = _decoded(data)
        except (ValueError, KeyError, TypeError) as error:
            reason = f"it has no {error}" if type(error) is KeyError else str(error)
            raise NotJoinFile(f"{name} is not a join file: {reason}; warren-raft cert issue makes join files") from None
        require_private(name, status)  # after its content: another file has no key that the owner would have to hide
        return found


def require_members(join: JoinFile, path: str) -> None:
    """Raises RefusedForSafety if `serve` would not start with the members of the join file at `path`."""
    try:
        check_members(join.members)
    except InvalidConfig as error:
        raise RefusedForSafety(
            f"{path} has members with which no manager starts: {error.field}: {error.reason}; issue another join file, "
            "with the right address of each manager (warren-raft cert issue ID=HOST:PORT … --ca DIR)"
        ) from None


def require_trust_domain(theirs: str, ours: str, *, source: str, data_dir: str, node_id: str) -> None:
    """Raises RefusedForSafety if a certificate is not of the trust domain of a data directory. Call it before anything
    is changed. `source`: the file or CA that the certificate comes from."""
    if theirs != ours:
        raise RefusedForSafety(
            f"{source} is of the trust domain {theirs}, but {data_dir} is of {ours}; nothing was changed: use a join "
            f"file for {node_id} of the cluster's CA (warren-raft cert issue {node_id} --ca DIR); a new CA of this "
            f"trust domain is made with warren-raft cert init NEW_DIR --trust-domain {ours}"
        )


def require_replaceable(path: str | os.PathLike[str]) -> None:
    """Raises RefusedForSafety if there is something at `path` that is not a join file: it may be the only copy of a
    key. The modes of a join file do not matter. Raises OSError."""
    try:
        is_file = stat.S_ISREG(os.stat(path).st_mode)
        if is_file:
            with open(path, "rb") as file:
                _decoded(file.read(FILE_BYTES_MAX + 1))
            return
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError):
        pass
    if os.path.isdir(path):
        raise RefusedForSafety(f"{os.fspath(path)} is a directory: name a join file in it, or another file")
    raise RefusedForSafety(
        f"{os.fspath(path)} exists already and is not a join file: name another file, or remove it first"
    )


def _decoded(data: bytes) -> JoinFile:
    """Raises ValueError, KeyError and TypeError for the content of another file."""
    if len(data) > FILE_BYTES_MAX:
        raise ValueError(f"it has more than {FILE_BYTES_MAX} bytes")
    try:
        value: Any = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
    if not isinstance(value, dict):
        raise TypeError("it is not a JSON object")
    if value["format"] != FORMAT:
        raise ValueError(f"its format is {value['format']!r}, and this release reads {FORMAT}")
    members = value["members"]
    if not isinstance(members, dict):
        raise TypeError("its members are not a table of addresses")
    for name in ("key", "certificate", "ca"):
        if not isinstance(value[name], str) or not value[name].isascii():
            raise TypeError(f"its {name} is not PEM")
    if type(value["not_before"]) not in (int, float) or not math.isfinite(value["not_before"]):
        raise TypeError("its not_before is not a time")
    node_id, address = check_node_id(value["node_id"]), value["address"]
    if members.get(node_id) != address:
        raise ValueError(f"its members do not have {node_id} at {address!r}")
    return JoinFile(
        node_id=node_id,
        address=address,
        members={check_node_id(id_): _checked_address(each) for id_, each in members.items()},
        not_before=float(value["not_before"]),
        files=KeyAndCertificates(key=value["key"], certificate=value["certificate"], ca=value["ca"]),
    )


def _checked_address(address: object) -> str:
    split_address(address)
    assert isinstance(address, str)  # split_address has checked it
    return address


def require_private(path: str, status: os.stat_result) -> None:
    """Raises RefusedForSafety if other users than its owner can read a file with a private key. The group may read a
    file of root, so that root can give it to a manager of another user."""
    others = _OTHERS if status.st_uid == 0 else _OTHERS | stat.S_IRWXG
    if stat.S_IMODE(status.st_mode) & others:
        raise RefusedForSafety(
            f"{path} holds a private key and others may read it (mode {stat.S_IMODE(status.st_mode):04o}): type "
            f"chmod 600 {path}; if others may have read it, issue another certificate and remove that manager's old one"
        )
