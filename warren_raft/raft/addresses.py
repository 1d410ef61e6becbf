"""Addresses of managers as the kernel has them: what a host name stands for, and the sockets that listen.

Not here: connections (connection.py), how addresses are written and which are allowed (config.py).
Invariant: a host is resolved in a thread, never in the loop's.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
from concurrent.futures import Executor
from functools import partial
from typing import Any

from warren_raft.errors import InUse

LISTEN_BACKLOG = 100
"""Connections the kernel completes before we accept them: more than a cluster has managers."""


def format_address(address: tuple[str, int] | tuple[Any, ...] | None) -> str:
    """`host:port`, or `[host]:port` for IPv6, of a socket's address; `?` where the peer was gone too soon."""
    if not address:
        return "?"
    host, port = address[0], address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def resolve(host: str, port: int, resolvers: Executor) -> list[tuple[str, int]]:
    """Every address a host has, with the port. Raises `OSError` when it has none, or cannot be a host."""
    if _is_number(host):
        return [(host, port)]
    try:
        found = await _getaddrinfo(host, port, 0, resolvers)
    except UnicodeError as error:  # "a..b", or 64 characters without a dot: IDNA's way to say so
        raise OSError(f"{host} is not a host name") from error
    return [(str(address[0]), port) for *_, address in found]


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def _getaddrinfo(host: str, port: int, flags: int, resolvers: Executor) -> list[tuple[Any, ...]]:
    """Not `loop.getaddrinfo`: its threads end with the main thread, see workers.py."""
    if _is_number(host):  # needs no look-up, and so no thread
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags | socket.AI_NUMERICHOST)
    look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM, flags=flags)
    return await asyncio.get_running_loop().run_in_executor(resolvers, look_up)


async def bind(host: str, port: int, resolvers: Executor) -> list[socket.socket]:
    """Non-blocking listening sockets, one for each address of the host.

    Raises `InUse` when somebody else holds the port, `OSError` when nobody can have it. `localhost` may
    stand for ::1 too on a machine without IPv6: one address that can be had is enough.
    """
    found = await _getaddrinfo(host, port, socket.AI_PASSIVE, resolvers)
    listeners: list[socket.socket] = []
    missing: OSError | None = None
    for family, *_, address in dict.fromkeys(found):
        try:
            listeners.append(_listen(family, address))
        except OSError as error:
            missing = error
            if error.errno not in _NOT_ON_THIS_MACHINE:
                break
    if missing is not None and (not listeners or missing.errno not in _NOT_ON_THIS_MACHINE):
        for listener in listeners:
            listener.close()
        raise _refusal_to_bind(format_address((host, port)), missing) from missing
    return listeners


_NOT_ON_THIS_MACHINE = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})


def _listen(family: int, address: Any) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(LISTEN_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _refusal_to_bind(where: str, error: OSError) -> Exception:
    if error.errno == errno.EADDRINUSE:
        return InUse(where, "port is in use by another process")
    return OSError(error.errno, f"cannot listen on {where}: {error.strerror}")
