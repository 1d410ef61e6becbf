"""For the tests of programs that embed a store: real managers in one process, errors on demand, pytest fixtures.

No code lives here: each name is loaded from its module when it is first used. Invariant: importing this package loads
nothing heavy, because pytest loads it in every project that has warren_raft installed.
"""

from __future__ import annotations

from typing import Any

_HOME: dict[str, str] = {}
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
