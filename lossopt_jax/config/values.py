"""Plain values of a config, checked: each error names the key, what was given and what is valid."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..domains import domain_of
from ..recipe import nearest


class ConfigError(ValueError):
    """What is wrong with a config: names the key, what was given and what is valid."""


def check_keys(given: Mapping[str, Any], valid: Sequence[str], where: str, what: str = "key") -> None:
    for key in given:
        if key not in valid:
            raise ConfigError(f"{where} has no {what} {key!r}; {nearest(key, valid)}")


def chosen(table: Mapping[str, Any], valid: Sequence[str], where: str) -> str:
    if "name" not in table:
        raise ConfigError(f"{where}.name is missing; valid: {', '.join(sorted(valid))}")
    if table["name"] not in valid:
        raise ConfigError(f"{where}.name = {table['name']!r} is unknown; {nearest(str(table['name']), valid)}")
    return table["name"]


def number(value: Any, where: str, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{where} must be a number, got {value!r}")
    if not math.isfinite(value):
        raise ConfigError(f"{where} must be finite, got {value!r}")
    domain = domain_of(where.removeprefix("sweep.space."), key)
    if value not in domain:
        raise ConfigError(f"{where} must be {domain}, got {value!r}")
    return value
