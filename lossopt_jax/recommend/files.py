"""Recommendations for what lies in files: a column of a CSV file, and a config that lacks parts."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..data import coded, columns
from ..kinds import MANY, codes, listed, looks_classes, number
from .recommendation import Recommendation, kind_named, recommend


def recommend_csv(path: str, target: str, kind: str | None = None, family: str | None = None) -> tuple[Recommendation, dict[str, Any]]:
    """The recommendation for a column of a CSV file, and the [data] table of its config."""
    x, y = columns(path, target)
    kind = None if kind is None else kind_named(kind)
    labels = coded(y)[1] if y.dtype.kind == "U" else y
    whole = bool((labels == np.round(labels)).all())
    if len(values := np.unique(labels)) == 1:
        raise ValueError(f"recommend: all values of {target!r} are {y[0]}: there is nothing to learn")
    if y.dtype.kind == "U" and len(values) > max(MANY, len(y) / 5):
        raise ValueError(f"recommend: {target!r} has {len(values)} different texts in {len(y)} lines, too many to be classes")
    amounts = kind in ("regression", "regression_outliers", "counts")
    if y.dtype.kind == "U" and amounts:
        raise ValueError(f"recommend: {kind} needs numbers, and {target!r} has texts such as {str(y[0])!r}: they look like classes")
    if y.dtype.kind == "U" and len(values) > MANY and kind is None:
        kind = "multiclass"
    classes = whole and (not amounts if kind is not None else looks_classes(x, labels))
    names, labels = coded(y) if classes else (values, labels)  # as `data.csv` has them
    found = recommend(kind, inputs=x, targets=labels, family=family)
    shown = [str(name) if y.dtype.kind == "U" else number(name) for name in names]
    if classes and shown != [str(code) for code in range(len(names))]:
        found = replace(found, facts=(*found.facts, f"coded {codes(len(shown))}, here and by the config: {listed(shown)}"))
    sort = "counts" if found.kind == "counts" else "regression" if found.kind.startswith("regression") else "classes"
    return found, {"name": "csv", "path": path, "target": target, "kind": sort}


def completed(config: Mapping[str, Any], task_of: Callable[[Mapping[str, Any]], Any]) -> tuple[dict[str, Any], str]:
    """The tables of a config with the model, loss, optimizer and schedule that it lacks, as recommended for its data; and what was added.

    task_of: gives the task of the [data] table. A config that lacks nothing, or has no data to go by, stays as it is, and "" was added.
    """
    missing = [part for part in ("model", "loss", "optimizer", "schedule") if part not in config]
    data, run, model = (config.get(name, {}) for name in ("data", "run", "model"))
    if not missing or not all(isinstance(table, Mapping) for table in (data, run, model)) or not data:
        return dict(config), ""
    inputs, targets = task_of(data).train
    of = {"inputs": inputs, "targets": targets, "family": model.get("name")}
    found = recommend("counts" if data.get("kind") == "counts" else None, **of)
    if data.get("kind") == "classes" and found.kind in ("counts", "regression", "regression_outliers"):  # by their frequencies
        found = recommend("multiclass", **of)
    steps = run.get("steps", 500)
    parts = {"model": {"name": found.family}} | found.tables(steps if isinstance(steps, int) else 500)
    names = ", ".join(f"{part} {parts[part]['name']}" for part in missing)
    if "optimizer" in missing and "clip_norm" in parts and "clip_norm" not in config:
        missing.append("clip_norm")
    return dict(config) | {part: parts[part] for part in missing}, f"{found.kind}, {found.family}: {names}"
