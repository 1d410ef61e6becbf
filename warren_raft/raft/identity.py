"""Who a manager is by its certificate: the URI in it, and what a link keeps of it.

Not here: keys, certificates and TLS contexts, and who belongs to the cluster (membership.py). Invariant: an Identity is
made of a certificate that was verified, never of what a peer says.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

SCHEME: Final = "warren"
_URI: Final = re.compile(r"warren://([A-Za-z0-9][A-Za-z0-9.-]{0,127})/manager/([A-Za-z0-9._-]{1,64})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Identity:
    """What the verified certificate of a peer says. Where links are plaintext there is none."""

    trust_domain: str
    node_id: str
    serial: str
    """Of the certificate, in hexadecimal: one CA gives no two certificates the same."""
    not_after: float
    """When the certificate ends, in seconds since 1970 (UTC)."""


def uri_of(trust_domain: str, node_id: str) -> str:
    """The name of a manager in its certificate (subjectAltName, URI)."""
    return f"{SCHEME}://{trust_domain}/manager/{node_id}"


def parse_uri(uri: str) -> tuple[str, str]:
    """Trust domain and node id of such a name. Raises ValueError for any other."""
    match = _URI.fullmatch(uri)
    if match is None or set(match[2]) == {"."}:
        raise ValueError(f"{uri[:200]!r} is not the name of a manager (warren://TRUST-DOMAIN/manager/ID)")
    return match[1], match[2]
