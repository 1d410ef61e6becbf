"""The end of the process closes every store that is still open: a cluster then need not elect a leader, what nobody
waits for is done, and the next start finds a state that it need not look through.

Not here: how a store closes. Invariant: a store that was closed, or that belongs to a parent process, is left alone.
"""

from __future__ import annotations

import atexit
import logging
import weakref
from typing import Protocol

from warren_raft.log_lines import log_event

logger = logging.getLogger("warren_raft.process_end")


class Closeable(Protocol):
    """A store: its `close` is idempotent, and does nothing in a forked child."""

    def close(self) -> None: ...


_stores: weakref.WeakSet[Closeable] = weakref.WeakSet()


def close_at_exit(store: Closeable) -> None:
    """When the interpreter ends, after what the program registered with `atexit` since this module was imported."""
    _stores.add(store)


def _close_all() -> None:
    for store in list(_stores):
        try:
            store.close()
        except Exception as error:  # noqa: BLE001  it is logged
            log_event(logger, logging.ERROR, "store not closed at the end of the process", exc_info=error)


atexit.register(_close_all)
