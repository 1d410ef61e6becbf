"""Certificates for managers that are all on one machine. They are issued automatically by a CA of this user on this
host.

Lives here: the place of that CA, and issuing with it. Not here: the CA of a cluster on several hosts, which an operator
makes (`warren-raft cert init`). Invariant: only this user can read that CA, so a process of any other user has no
certificate that managers with these certificates trust.
"""

from __future__ import annotations

import os
from typing import Final

from ..errors import RefusedForSafety
from .ca import REGISTRY, Authority
from .identity import LOCAL_TRUST_DOMAIN
from .join_files import KeyAndCertificates

TRUST_DOMAIN: Final = LOCAL_TRUST_DOMAIN
"""The trust domain of every such CA. If a CA was removed, managers get certificates of the next one and form a
cluster."""


def directory() -> str:
    """`$XDG_STATE_HOME/warren_raft/local-ca`, by default below ~/.local/state."""
    state = os.environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(state):  # as the XDG specification says
        state = os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(state, "warren_raft", "local-ca")


def exists() -> bool:
    """Whether a CA has been made for this user on this host."""
    return os.path.exists(os.path.join(directory(), REGISTRY))


def issue(node_id: str) -> KeyAndCertificates:
    """A key and a certificate for a manager on this host. Raises RefusedForSafety if that CA cannot be used."""
    try:
        return _authority().issue_one(node_id)
    except (OSError, RefusedForSafety) as error:
        reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
        raise RefusedForSafety(
            f"{node_id} gets no certificate: this user's CA for managers on one machine cannot be used ({reason}); set "
            "XDG_STATE_HOME to a directory that this user can write to; or issue a certificate (`warren-raft cert "
            f"init ca`, `warren-raft cert issue {node_id}=HOST:PORT --ca ca`) and start with --join {node_id}.join (in "
            "Python: Config.join); or choose links without protection, with --insecure-plaintext (in Python: "
            "Config.insecure_plaintext)"
        ) from error


def certificates_pem() -> str:
    """The certificate of this user's CA. Raises OSError, RefusedForSafety."""
    return Authority(directory()).certificate_pem


def _authority() -> Authority:
    path = directory()
    if not exists():
        try:
            Authority.create(path, trust_domain=TRUST_DOMAIN)
        except RefusedForSafety:
            if not exists():  # otherwise another manager made it at the same moment
                raise
    owner = os.stat(path).st_uid
    if owner != os.geteuid():
        raise RefusedForSafety(f"{path} belongs to user {owner}, and this is user {os.geteuid()}")
    return Authority(path)
