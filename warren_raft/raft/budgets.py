"""How much one address, or one id, may ask of this manager in a time: token buckets by key.

Here: the buckets. Not here: what they are spent on (handshakes.py, link_log.py). Invariant: the number of keys is
bounded too, and time is passed in.
"""

from __future__ import annotations

import ipaddress
from typing import Final

IPV6_PREFIX_BITS: Final = 64
"""One host has that many bits of an IPv6 address to itself, and could have an address for each connection."""


class Budgets:
    """One bucket a key: `burst` at first, and `per_second` more each second. Not thread-safe."""

    def __init__(self, *, per_second: float, burst: float, keys_max: int = 1024) -> None:
        self._per_second = per_second
        self._burst = burst
        self._keys_max = keys_max
        self._levels: dict[str, tuple[float, float]] = {}
        """Key -> tokens, and when there were so many. The least recently used first: that one is forgotten."""

    def take(self, key: str, now: float) -> bool:
        """Spend one of the key's; False: there is none left."""
        tokens, since = self._levels.pop(key, (self._burst, now))
        tokens = min(self._burst, tokens + (now - since) * self._per_second)
        is_enough = tokens >= 1.0
        self._levels[key] = (tokens - 1.0 if is_enough else tokens, now)
        if len(self._levels) > self._keys_max:
            del self._levels[next(iter(self._levels))]
        return is_enough


def source_of(host: str) -> str:
    """The key of an address: the host, and with IPv6 its network."""
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return host
    if address.version == 4:
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, IPV6_PREFIX_BITS), strict=False))
