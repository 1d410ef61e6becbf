"""The end of the process closes every open store. Then a cluster need not wait for an election timeout, writes that no
caller waits for are done, and the next start need not verify the state.

Not here: how a store closes. Invariant: a closed store, or a store of a parent process, is not touched.
"""

from __future__ import annotations

import atexit
import logging
import weakref
from typing import Protocol

from warren_raft.support.log_lines import log_event

logger = logging.getLogger("warren_raft.support.process_end")


class Closeable(Protocol):
    """A store: its `close` is idempotent, and does nothing in a forked child."""

    def close(self) -> None: ...


_stores: weakref.WeakSet[Closeable] = weakref.WeakSet()


def close_at_exit(store: Closeable) -> None:
    """Close the store when the interpreter ends, after the `atexit` functions that the program registered since this
    import."""
    _stores.add(store)


def _close_all() -> None:
    for store in list(_stores):
        try:
            store.close()
        except Exception as error:  # noqa: BLE001  it is logged
            log_event(logger, logging.ERROR, "store not closed at the end of the process", exc_info=error)


atexit.register(_close_all)
