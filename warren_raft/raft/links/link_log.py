"""The log lines about links: one line for each change, no line for a retry, and a budget of lines for each source.

Lives here: which lines are written. Not here: the links (transport.py, handshakes.py). Invariant: a stranger that
connects again and again causes a bounded number of lines a day, from any number of addresses.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from warren_raft.raft.links.budgets import Budgets, source_of
from warren_raft.support.log_lines import log_event

REMEMBERED_LINES_MAX: Final = 256
"""The number of lines that are remembered so that they are not repeated. It is bounded because strangers can cause
lines."""
LINES_PER_SECOND: Final = 1 / 60
LINES_BURST: Final = 20
"""Lines of one source: 20 at once, then one a minute, which is 1,440 a day."""
STRANGERS_LINES_PER_SECOND: Final = 1 / 5
STRANGERS_LINES_BURST: Final = 200
"""Lines of all sources that proved no identity: 200 at once, then at most 17,280 a day (5 MB)."""
_STRANGERS: Final = ""

_log = logging.getLogger("warren_raft.transport")


class LinkLog:
    """Writes the log lines of one manager's links. Thread-safe."""

    def __init__(self, node_id: str, now: Callable[[], float] = time.monotonic) -> None:
        self._node_id = node_id
        self._now = now
        self._lock = threading.Lock()
        self._said: dict[tuple[str, ...], None] = {}
        self._sources = Budgets(per_second=LINES_PER_SECOND, burst=LINES_BURST)
        self._strangers = Budgets(per_second=STRANGERS_LINES_PER_SECOND, burst=STRANGERS_LINES_BURST)
        self._left_out = 0

    def say(
        self,
        subject: str,
        level: int,
        what: str,
        text: str = "",
        *,
        peer: str | None = None,
        address: str | None = None,
        source: str | None = None,
        is_stranger: bool = False,
        **keys: Any,
    ) -> None:
        """Log a line about a peer or an address. The same line is not written again until `forget`, also if other
        lines came in between, because two refusals may alternate for ever.

        `source` is the host that caused the line and pays for it from its budget; the same line from another port of
        this host is not written again. None: this manager caused the line. `is_stranger`: the source has not proved an
        identity.
        """
        with self._lock:
            where = address if source is None else source
            said = (subject, what, text, str(where), *map(str, keys.values()))
            if said in self._said:
                return
            self._said[said] = None
            if len(self._said) > REMEMBERED_LINES_MAX:
                del self._said[next(iter(self._said))]
            if not self._may_say(source, is_stranger):
                self._left_out += 1
                return
            left_out, self._left_out = self._left_out, 0
        keys = {"node": self._node_id, "peer": peer, "address": address, **keys, "left_out": left_out or None}
        log_event(_log, level, what, text, **keys)

    def _may_say(self, source: str | None, is_stranger: bool) -> bool:
        if source is None:
            return True
        now = self._now()
        if not self._sources.take(source_of(source), now):
            return False
        return not is_stranger or self._strangers.take(_STRANGERS, now)

    def forget(self, subject: str) -> None:
        """The subject has changed, so its lines may be written again."""
        with self._lock:
            for said in [said for said in self._said if said[0] == subject]:
                del self._said[said]

    def has_said(self, subject: str) -> bool:
        """Whether a line about the subject was written since the last `forget`."""
        with self._lock:
            return any(said[0] == subject for said in self._said)
