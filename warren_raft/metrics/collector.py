"""The custom collector of prometheus_client for one store.

Lives here: the types of prometheus_client. Not here: names (families.py), values (samples.py). Invariant: a scrape
changes nothing in the store, takes no lock of it, and raises nothing, also if the store is closed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, cast

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector as BaseCollector

from warren_raft.metrics.families import ALIASES, FAMILIES, Alias, Family
from warren_raft.metrics.meters import Metered
from warren_raft.metrics.samples import Found, Samples, samples_of
from warren_raft.store.reading import Reader
from warren_raft.support.counting import Durations


class Collector(BaseCollector):
    """The metrics of one store, for a registry of prometheus_client: `registry.register(Collector(store))`.

    At each scrape it reads the counters that the store keeps anyway, and the store's status. `store`: a
    ReplicatedStore, a LocalStore or a ReadOnlyStore, which has to read every node and container for that. After the
    store was closed, `warren_store_open` is 0. `legacy_names`: also give the same values under the names that Warren
    had, such as `storage_operations_total` and `warren_nodes_total`.

    A registry takes one collector: the metrics of two stores in one process need two registries. Thread-safe.
    """

    def __init__(self, store: Reader, *, legacy_names: bool = False) -> None:
        self._store = cast("Metered", store)
        self._aliases: Final[tuple[Alias, ...]] = ALIASES if legacy_names else ()

    def describe(self) -> Iterator[Metric]:
        """Every metric without samples, so that registering reads nothing."""
        for family in (*FAMILIES, *(alias.family for alias in self._aliases)):
            yield _metric(family, [])

    def collect(self) -> Iterator[Metric]:
        """Every metric that means something for the store, with its samples as of now."""
        found = samples_of(self._store._meters())
        for family in FAMILIES:
            if family.name in found:
                yield _metric(family, found[family.name])
        for alias in self._aliases:
            if alias.of in found:
                yield _metric(alias.family, _chosen(alias, found))


def _chosen(alias: Alias, found: Found) -> Samples:
    """The samples of the metric that the alias is of, with its labels."""
    of = next(family for family in FAMILIES if family.name == alias.of)
    only = dict(alias.only)
    chosen: Samples = []
    for values, value in found[alias.of]:
        labels = dict(zip(of.labels, values, strict=True))
        if all(labels[label] == wanted for label, wanted in only.items()):
            chosen.append((tuple(text for label, text in labels.items() if label not in only), value))
    return chosen


def _metric(family: Family, samples: Samples) -> Metric:
    if family.type == "histogram":
        histogram = HistogramMetricFamily(family.name, family.help, labels=family.labels)
        for labels, durations in samples:
            assert isinstance(durations, Durations)
            histogram.add_metric(labels, _buckets(durations), durations.sum_seconds)
        return histogram
    made = CounterMetricFamily if family.type == "counter" else GaugeMetricFamily
    metric = made(family.name, family.help, labels=family.labels)
    for labels, value in samples:
        assert not isinstance(value, Durations)
        metric.add_metric(labels, float(value))
    return metric


def _buckets(durations: Durations) -> list[tuple[str, float]]:
    limits = [f"{bound:.9g}" for bound in durations.bounds]
    return [(limit, float(count)) for limit, count in zip([*limits, "+Inf"], durations.cumulated(), strict=True)]
