"""A limit on the rate of requests from one address or one id: token buckets by key.

Lives here: the buckets. Not here: the requests that cost tokens (handshakes.py, link_log.py). Invariant: the number of
keys is bounded too, and time is passed in.
"""

from __future__ import annotations

import ipaddress
from typing import Final

IPV6_PREFIX_BITS: Final = 64
"""The bits of an IPv6 address that name a network. A host has all addresses of its network, and could use another one
for each connection."""


class Budgets:
    """One bucket for each key: it begins with `burst` tokens, its maximum, and gains `per_second` tokens each second.

    Not thread-safe.
    """

    def __init__(self, *, per_second: float, burst: float, keys_max: int = 1024) -> None:
        self._per_second = per_second
        self._burst = burst
        self._keys_max = keys_max
        self._levels: dict[str, tuple[float, float]] = {}
        """Key -> tokens, and the time when the key had so many. The least recently used key is the first, and is
        forgotten first."""

    def take(self, key: str, now: float) -> bool:
        """Spend one token of the key. False if the key has no token left."""
        tokens, since = self._levels.pop(key, (self._burst, now))
        tokens = min(self._burst, tokens + (now - since) * self._per_second)
        is_enough = tokens >= 1.0
        self._levels[key] = (tokens - 1.0 if is_enough else tokens, now)
        if len(self._levels) > self._keys_max:
            del self._levels[next(iter(self._levels))]
        return is_enough


def source_of(host: str) -> str:
    """The key of an address: the host for IPv4 and for names, the network for IPv6."""
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return host
    if address.version == 4:
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, IPV6_PREFIX_BITS), strict=False))
