"""The users that may call on the admin socket: the user that runs the manager, and root.

The socket's mode (0600) is not enough: it can be changed, and capabilities override it. The kernel's credentials of the
client (SO_PEERCRED, unix(7)) cannot be forged. Invariant: not one byte from another user is read.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
import time
from typing import Any, Final

from warren_raft.disk.sharing import name_of_user
from warren_raft.support.log_lines import log_event

log = logging.getLogger(__name__)

SILENT_SECONDS: Final = 60.0
"""The shortest time between two log lines about refused clients."""
_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred: process, user, group


class Listener(socket.socket):
    """A non-blocking listening Unix socket that accepts only connections of this process's user and of root."""

    _silent_until = 0.0

    def accept(self) -> tuple[socket.socket, Any]:
        """As `socket.accept`. For a refused client it closes the connection and raises BlockingIOError."""
        connection, address = super().accept()
        try:
            process, user, _group = _CREDENTIALS.unpack(
                connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            )
            if user not in (0, os.geteuid()):
                self._say_refused(user, process)
                raise BlockingIOError
        except BaseException:
            connection.close()
            raise
        return connection, address

    def _say_refused(self, user: int, process: int) -> None:
        now = time.monotonic()
        if now >= self._silent_until:
            self._silent_until = now + SILENT_SECONDS
            text = "the admin socket answers only root and the user that runs the manager"
            log_event(log, logging.WARNING, "admin caller refused", text, user=name_of_user(user), process=process)
