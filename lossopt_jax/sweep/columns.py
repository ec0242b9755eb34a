"""Rows of trials as tables of other programs have them, and results compared."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from .trials import Trials


def with_gaps(rows: Sequence[dict[str, Any]], space: Iterable[str]) -> list[dict[str, Any]]:
    """Rows as they are written: None for a swept number that a trial does not have, which is NaN in them; a metric stays NaN."""
    paths = list(space)
    return [row | {path: None for path in paths if isinstance(row[path], float) and math.isnan(row[path])} for row in rows]


def typed_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[type, list[Any]]]:
    """Column -> (int, float or str; its values), by its name where it has none: tables of two sweeps then have the same types."""
    columns = {key: [row.get(key) for row in rows] for key in dict.fromkeys(key for row in rows for key in row)}
    typed: dict[str, tuple[type, list[Any]]] = {}
    for key, values in columns.items():
        known = [value.item() if isinstance(value, np.generic) else value for value in values if value is not None]
        whole = all(isinstance(value, int) for value in known) if known else key.endswith("_at")
        kind: type = str if any(isinstance(value, str) for value in known) else int if whole else float
        typed[key] = (kind, [None if value is None else kind(value) for value in values])
    return typed


def same(a: Any, b: Any) -> bool:
    """Whether two values, arrays or records of them are equal, NaN to NaN."""
    if isinstance(a, Trials) and isinstance(b, Trials):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(value, b[key]) for key, value in a.items())
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return np.array_equal(a, b, equal_nan=a.dtype.kind == b.dtype.kind == "f")
    return bool(a == b) or (isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b))
