"""For the tests of programs that embed a store: real managers in one process, errors on demand, pytest fixtures, and a
simulation that finds the moment at which a loop goes wrong.

No code lives here: each name is loaded from its module when it is first used. Invariant: importing this package loads
nothing heavy, because pytest loads it in every project that has warren_raft installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cluster import Cluster as Cluster
    from .faults import fail_next as fail_next
    from .faults import lose_leadership as lose_leadership
    from .faults import lose_watches as lose_watches
    from .simulation import SimulationFailed as SimulationFailed
    from .simulation import simulate as simulate

_HOME: dict[str, str] = {
    "Cluster": "cluster",
    "SimulationFailed": "simulation",
    "fail_next": "faults",
    "lose_leadership": "faults",
    "lose_watches": "faults",
    "simulate": "simulation",
}
"""Public name -> the module of this package that has it."""

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value  # so that the next use does not call this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
