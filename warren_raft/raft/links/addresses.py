"""Addresses of managers in the form of the kernel: host names that are resolved, and the sockets that listen.

Not here: connections (connection.py), the text form of addresses and which are allowed (config.py).
Invariant: a host name is resolved in a thread of its own, never in the loop's thread.
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
"""Connections that the kernel completes before we accept them: more than a cluster has managers."""


def format_address(address: tuple[str, int] | tuple[Any, ...] | None) -> str:
    """`host:port`, or `[host]:port` for IPv6, of a socket's address; `?` if the peer closed before it was read."""
    if not address:
        return "?"
    host, port = address[0], address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def resolve(host: str, port: int, resolvers: Executor) -> list[tuple[str, int]]:
    """Each address of a host, with the port. Raises `OSError` if the host has no address, or is not a host name."""
    if _is_number(host):
        return [(host, port)]
    try:
        found = await _getaddrinfo(host, port, 0, resolvers)
    except UnicodeError as error:  # IDNA raises it for "a..b", and for 64 characters without a dot
        raise OSError(f"{host} is not a host name") from error
    return [(str(address[0]), port) for *_, address in found]


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def _getaddrinfo(host: str, port: int, flags: int, resolvers: Executor) -> list[tuple[Any, ...]]:
    """Resolve a host. Not by `loop.getaddrinfo`, because its threads end with the main thread (support/workers.py)."""
    if _is_number(host):  # a numeric address needs no look-up, so it needs no thread
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags | socket.AI_NUMERICHOST)
    look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM, flags=flags)
    return await asyncio.get_running_loop().run_in_executor(resolvers, look_up)


async def bind(host: str, port: int, resolvers: Executor) -> list[socket.socket]:
    """Non-blocking listening sockets, one for each address of the host.

    Raises `InUse` if another process has the port, and `OSError` if no process can have it. On a machine without IPv6,
    `localhost` may resolve to ::1 too, so one address of the host that can be bound is enough.
    """
    return _bound(await _getaddrinfo(host, port, socket.AI_PASSIVE, resolvers), host, port)


def try_to_bind(host: str, port: int) -> None:
    """Raises the errors of `bind`, and keeps no socket. It may wait for a name server: not for the loop's thread."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for listener in _bound(found, host, port):
        listener.close()


def _bound(found: list[tuple[Any, ...]], host: str, port: int) -> list[socket.socket]:
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
    if error.errno == errno.EADDRNOTAVAIL:
        host = where.rpartition(":")[0]
        return OSError(
            error.errno,
            f"cannot listen on {where}: {host} is not an address of this host; if the manager moved, give its new "
            "address with --listen HOST:PORT, and see docs/recovery.md (Move one manager)",
        )
    return OSError(error.errno, f"cannot listen on {where}: {error.strerror}")
