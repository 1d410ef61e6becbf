"""Data classes whose instances do not change, and that are quick to make.

Not here: classes that are made rarely, which are `dataclass(frozen=True)`. Invariant: the type checker refuses an
assignment to a field.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar, dataclass_transform

_T = TypeVar("_T")


@dataclass_transform(frozen_default=True)
def constant(cls: type[_T]) -> type[_T]:
    """Like `dataclass(frozen=True, slots=True)`, but only the type checker refuses to change a field. At run time a
    frozen class takes three times as long to make: it gives each field its value by a call of `object.__setattr__`."""
    return dataclass(slots=True, unsafe_hash=True)(cls)
