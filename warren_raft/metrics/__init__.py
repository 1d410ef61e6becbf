"""Metrics of a store for Prometheus: `registry.register(Collector(store))`. docs/metrics.md lists them.

Lives here: the public names, each loaded when it is first used. Not here: the numbers, which the store keeps anyway.
Invariant: nothing is registered, and prometheus_client is not loaded, before a Collector is made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .collector import Collector as Collector

__all__ = ["Collector"]


def __getattr__(name: str) -> Any:
    if name != "Collector":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .collector import Collector

    return Collector
