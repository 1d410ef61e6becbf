"""Load that leaves a cluster as large as it was: updates, deletes and creates on a bounded set of records, for a soak.

It keeps no journal and no history of answers, because these would grow; load.py has the writers for judging.
Invariant: there are at most `records` records, and a writer ends only when it is told to, or with the store.
"""

from __future__ import annotations

import random
import threading
import time
from dataclasses import replace
from typing import Any, Final

import warren_raft as wr

BEHIND_SECONDS: Final = 1.0
"""A writer that was held up makes up for so much time. Otherwise a long wait would be followed by a burst."""


class Churn:
    """Writers in threads of their own, which run until `stop`."""

    def __init__(
        self, store: wr.ReplicatedStore, threads: int, records: int, writes_per_second: float | None = None
    ) -> None:
        """`writes_per_second`: of all threads together. None: as many as the cluster takes."""
        self._store = store
        self._records = records
        self._pause = 0.0 if writes_per_second is None else threads / writes_per_second
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._times: list[float] = []
        self._threads = [threading.Thread(target=self._run, args=(number,), daemon=True) for number in range(threads)]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int) -> None:
        draw = random.Random(f"{self._store.config.node_id} {number}")
        due = time.monotonic()
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            due = max(due + self._pause, time.monotonic() - BEHIND_SECONDS)
            key = f"record-{draw.randrange(self._records):06d}"
            begin = time.monotonic()
            try:
                if draw.random() < 0.2:
                    self._store.delete_container(key)
                else:
                    self._store.update_container(self._container(key, draw))
            except wr.Unavailable:
                continue  # the lower number of writes per second shows it
            except wr.Closed:
                return
            with self._lock:
                self._times.append(time.monotonic() - begin)

    @staticmethod
    def _container(key: str, draw: random.Random) -> Any:
        container = wr.Container(id=key, image=f"image-{draw.random()}", service_id=f"service-{draw.randrange(50)}")
        return replace(container, env=tuple(f"NAME_{n}={draw.random()}" for n in range(8)))

    def taken(self) -> list[float]:
        """[writes, p99 in seconds] since the last call."""
        with self._lock:
            times, self._times = sorted(self._times), []
        return [len(times), times[int(len(times) * 0.99)] if times else 0.0]

    def stop(self, timeout: float) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout)
