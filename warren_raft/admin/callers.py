"""Who may call on the admin socket: the user that runs the manager, and root.

The socket's mode (0600) says the same; it can be changed, and capabilities pass it by. The kernel's word on who has
connected (SO_PEERCRED, unix(7)) cannot. Invariant: of other users not one byte is read.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
import time
from typing import Any, Final

from warren_raft.log_lines import log_event
from warren_raft.sharing import name_of_user

log = logging.getLogger(__name__)

SILENT_SECONDS: Final = 60.0
"""Between two lines of the log about refused callers."""
_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred: process, user, group


class Listener(socket.socket):
    """A listening unix socket that does not block, and gives out connections of this process's user and root only."""

    _silent_until = 0.0

    def accept(self) -> tuple[socket.socket, Any]:
        """As `socket.accept`. BlockingIOError also where the caller is refused: its connection is closed."""
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
            text = "the admin socket answers the user that runs the manager, and root"
            log_event(log, logging.WARNING, "admin caller refused", text, user=name_of_user(user), process=process)
