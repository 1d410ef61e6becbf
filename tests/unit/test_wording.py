"""Sizes in messages: short, and never so that a shortage reads as enough."""

from __future__ import annotations

import pytest

from warren_raft.support.wording import in_units, in_units_apart


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (2**20 - 1, "1.0 MiB"),
        (2**20 - 52 * 1024, "972.0 KiB"),
        (2**40 - 1, "1.0 TiB"),
        (2**60, "1048576.0 TiB"),
    ],
)
def test_a_size_has_the_largest_unit_in_which_it_is_1_or_more(size_bytes: int, text: str) -> None:
    assert in_units(size_bytes) == text


def test_sizes_that_differ_read_differently() -> None:
    assert in_units_apart(10 * 2**30, 2**20) == ["10.0 GiB", "1.0 MiB"]
    assert in_units_apart(2**20, 2**20) == ["1.0 MiB", "1.0 MiB"]
    assert in_units_apart(2**20 - 1, 2**20) == ["1048575 B", "1048576 B"]
