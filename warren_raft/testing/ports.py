"""Ports for managers of tests.

Lives here: choosing ports. Invariant: the kernel gives these ports to no outgoing connection, so that the port of a
manager stays free while the manager is down.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from random import SystemRandom
from typing import Final

PORTS: Final = range(10_000, 32_000)
"""Below those that Linux gives to outgoing connections."""


def free_ports(count: int) -> list[int]:
    """Different ports of 127.0.0.1 on which no program listens now."""
    found: dict[int, None] = {}
    draw = SystemRandom()
    while len(found) < count:
        port = draw.choice(PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found[port] = None
    return list(found)
