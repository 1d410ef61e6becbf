"""The promise: the soak finds a value that grows, and its samples can be drawn and judged again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.cluster import soak

FLAT = [
    soak.Sample(60.0 * minute, id_, 33.0, 3, 3.0, 2.5, 5.4, 3_000 * minute, 35.0, 0, 15, 500.0, 20.0)
    for minute in range(1, 21)
    for id_ in ("m1", "m2", "m3")
]


def test_a_flat_run_passes_and_survives_its_file(tmp_path: Path) -> None:
    assert soak.problems_of(FLAT) == []
    soak.write_csv(tmp_path / "soak.csv", FLAT)
    assert soak.read_csv(tmp_path / "soak.csv") == FLAT
    drawn = ElementTree.fromstring(soak.to_svg(FLAT))
    assert len(drawn.findall(".//{*}polyline")) == 3 * len(soak.PANELS)


@pytest.mark.parametrize("name", [*soak.SLACK, "writes_per_second"])
def test_what_grows_in_one_manager_is_found(name: str) -> None:
    by_minute = -20.0 if name == "writes_per_second" else 4.0
    grown = [
        replace(sample, **{name: getattr(sample, name) + by_minute * sample.seconds / 60})
        if sample.manager == "m2"
        else sample
        for sample in FLAT
    ]
    (problem,) = soak.problems_of(grown)
    assert problem.startswith(f"m2: {name} ")


def test_a_run_without_snapshots_is_none() -> None:
    still = [replace(sample, snapshots_taken_at=7) for sample in FLAT]
    assert len(soak.problems_of(still)) == 3
