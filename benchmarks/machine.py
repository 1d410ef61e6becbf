"""The machine and the interpreter of a run: every figure depends on them, so every table names them.

Lives here: the processor, the Python and how it was built, and whether other programs used the processors. Not here:
the disk's fdatasync (common.py). Invariant: a run beside other programs says so.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

LOOP_ROUNDS = 7
FOREIGN_MAX = 0.05
STEAL_MAX = 0.02
"""Up to these shares of all processor time a run counts as quiet."""


def facts() -> dict[str, Any]:
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "python_build": python_build(),
        "python_loop_ms": loop_ms(),
        "load_before": [round(load, 2) for load in os.getloadavg()],
    }


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def python_build() -> str:
    """How the interpreter was built, as far as it knows. Debian and Ubuntu build with PGO and LTO, but remove that
    from the options that Python can show; so for those the path decides."""
    options = str(sysconfig.get_config_var("CONFIG_ARGS"))
    made = [
        name for name, option in (("PGO", "--enable-optimizations"), ("LTO", "--with-lto")) if f"'{option}" in options
    ]
    if made:
        return f"built with {' and '.join(made)}"
    if sys.base_prefix == "/usr":
        return "the distribution's, which is built with PGO and LTO on Debian and Ubuntu"
    return "a plain build, without PGO and LTO"


def loop_ms() -> float:
    """The CPU time of `loop`: it compares interpreters."""

    def once() -> float:
        begin = time.process_time()
        loop()
        return time.process_time() - begin

    return round(min(once() for _ in range(LOOP_ROUNDS)) * 1e3, 2)


class _Sum:
    __slots__ = ("total",)

    def __init__(self) -> None:
        self.total = 0

    def add(self, number: int) -> int:
        self.total = (self.total + number) & 0xFFFF
        return self.total


def loop() -> None:
    """A fixed piece of Python without input and output: calls, attributes, objects, a dictionary, a sort."""
    part, found = _Sum(), dict[int, tuple[int, str]]()
    for number in range(20_000):
        found[part.add(number)] = (number, str(number))
    sorted(found.values())


class Quiet:
    """For `with`: the share of the processors that other programs used, and that other virtual machines took. Children
    count as this program only after they were waited for."""

    def __enter__(self) -> Quiet:
        self._before = self._read()
        return self

    def __exit__(self, *_: object) -> None:
        busy, steal, every, own = (after - before for before, after in zip(self._before, self._read(), strict=True))
        self.foreign, self.steal = max(0.0, busy - own) / every, steal / every

    @staticmethod
    def _read() -> tuple[float, float, float, float]:
        """Seconds of: all programs, steal, everything, this program."""
        with open("/proc/stat", encoding="ascii") as file:
            ticks = [int(field) for field in file.readline().split()[1:9]]
        user, nice, system, idle, waiting, irq, soft_irq, steal = (tick / os.sysconf("SC_CLK_TCK") for tick in ticks)
        busy = user + nice + system + irq + soft_irq
        return busy, steal, busy + idle + waiting + steal, sum(os.times()[:4])

    def said(self) -> str:
        """A warning; empty if the machine was quiet."""
        if self.foreign <= FOREIGN_MAX and self.steal <= STEAL_MAX:
            return ""
        return f"NOT QUIET: other programs used {self.foreign:.0%} of the processors, steal {self.steal:.0%}"


def middle(values: list[float]) -> dict[str, float]:
    """The median and the spread of a figure's rounds."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}
