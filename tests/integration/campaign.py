"""Long rows of parameters that repeat the same guard: some of them always, all of them in a campaign."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from _pytest.mark import ParameterSet


def some_of(values: Iterable[Any], *at: int) -> list[Any]:
    """Return parameters of which only those at these places run without `-m campaign`."""
    return [value if place in at else _later(value) for place, value in enumerate(values)]


def _later(value: Any) -> Any:
    if isinstance(value, ParameterSet):
        return pytest.param(*value.values, id=value.id, marks=(*value.marks, pytest.mark.campaign))
    row = value if isinstance(value, tuple) else (value,)
    return pytest.param(*row, marks=pytest.mark.campaign)
