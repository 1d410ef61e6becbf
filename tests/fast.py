"""The cases of a parametrized test that `make fast` runs; the full run has all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest


def fast_first(cases: Sequence[Any], count: int) -> list[Any]:
    """All cases; those behind the first `count` are marked slow."""
    return [*cases[:count], *(pytest.param(case, marks=pytest.mark.slow) for case in cases[count:])]
