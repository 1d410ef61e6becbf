"""The identity of a manager in its certificate: the URI, and the fields that a link keeps.

Not here: keys, certificates and TLS contexts; which managers belong to the cluster (raft/membership.py). Invariant: an
Identity is made from a certificate that was verified, never from a peer's claim.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

LOCAL_TRUST_DOMAIN: Final = "local"
"""The trust domain of the CA of one user on one host (local.py)."""
SCHEME: Final = "warren"
_URI: Final = re.compile(r"warren://([A-Za-z0-9][A-Za-z0-9.-]{0,127})/manager/([A-Za-z0-9._-]{1,64})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Identity:
    """The contents of the verified certificate of a peer. Plaintext links have no Identity."""

    trust_domain: str
    node_id: str
    serial: str
    """Serial number of the certificate, in hexadecimal. A CA gives each certificate another one."""
    not_after: float
    """The end of the certificate's validity, in seconds since 1970 (UTC)."""


def serial_shown(serial: str) -> str:
    """A serial number in hexadecimal as `openssl x509 -serial` prints it: whole bytes, in capitals. For people and
    JSON; the member list and the CA's registry keep it without leading zeros, and compare that form."""
    return f"{'0' * (len(serial) % 2)}{serial.upper()}"


def uri_of(trust_domain: str, node_id: str) -> str:
    """The name of a manager in its certificate (subjectAltName, URI)."""
    return f"{SCHEME}://{trust_domain}/manager/{node_id}"


def parse_uri(uri: str) -> tuple[str, str]:
    """The trust domain and the node id in the name of a manager. Raises ValueError if `uri` is not such a name."""
    match = _URI.fullmatch(uri)
    if match is None or set(match[2]) == {"."}:
        raise ValueError(f"{uri[:200]!r} is not the name of a manager (warren://TRUST-DOMAIN/manager/ID)")
    return match[1], match[2]
