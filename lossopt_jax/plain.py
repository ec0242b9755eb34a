"""Recipes as plain values that a file can hold, and back: numbers bit for bit, functions by the name they are imported by."""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from .recipe import Bound, Recipe


class Missing:
    """Stands for a function or an option that a file names and this process does not have; an error only when it is called.

    Table, curves and numbers of a result can so be read without the notebook that its loss was written in.
    """

    def __init__(self, name: str):
        self.name = name
        self.__name__ = name.rpartition(":")[2]

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"{self.name} was part of a saved recipe and cannot be imported here: replace it, recipe.loss.replace(...)")

    def __repr__(self) -> str:
        return f"<missing {self.name}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Missing) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)


def to_plain(recipe: Recipe) -> dict[str, Any]:
    """The recipe as nested dicts of strict JSON.

    >>> import lossopt_jax as lo
    >>> recipe = lo.Recipe(lo.bind(lo.losses.mse), lo.bind(lo.optimizers.sgd), lo.bind(lo.schedules.constant, value=0.1))
    >>> to_plain(recipe)["schedule"]
    {'function': 'lossopt_jax.schedules:constant', 'numbers': {'value': 0.1}, 'options': {}}
    >>> from_plain(to_plain(recipe)) == recipe
    True
    """
    return {name: _part(value) for name, value in recipe._asdict().items()}


def from_plain(plain: Mapping[str, Any]) -> Recipe:
    """The recipe that `to_plain` was given; what cannot be imported is a `Missing`."""
    return Recipe(**{name: _read_part(value) for name, value in plain.items()})


def number_to_plain(value: Any) -> Any:
    """The shortest decimal that reads as the same float32, what is not finite as text; of a vector a list."""
    if np.ndim(value):
        return [number_to_plain(v) for v in np.asarray(value)]
    number = np.float32(value)
    if not np.isfinite(number):
        return str(number)
    short = float(str(number))
    return short if np.float32(short) == number else float(number)


def number_from_plain(value: Any) -> Any:
    return np.asarray(value, np.float32)


def _part(value: Any) -> Any:
    """A leaf of a bound function: a number, a vector, a schedule or another part, or a tuple of such."""
    if isinstance(value, Bound):
        numbers = {name: _part(v) for name, v in value.hparams.items()}
        return {"function": _name(value.fn), "numbers": numbers, "options": {name: _option(v) for name, v in value.options.items()}}
    if isinstance(value, tuple):
        return {"several": [_part(v) for v in value]}
    return None if value is None else number_to_plain(value)


def _read_part(value: Any) -> Any:
    if isinstance(value, Mapping) and "several" in value:
        return tuple(_read_part(v) for v in value["several"])
    if isinstance(value, Mapping):
        numbers = {name: _read_part(v) for name, v in value["numbers"].items()}
        return Bound(_find(value["function"]), numbers, {name: _read_option(v) for name, v in value["options"].items()})
    return None if value is None else number_from_plain(value)


def _option(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and np.isfinite(value)):
        return value
    if isinstance(value, tuple):
        return [_option(v) for v in value]
    if isinstance(value, np.dtype):
        return {"dtype": str(value)}
    return {"function": _name(value)} if callable(value) else {"missing": repr(value)}


def _read_option(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_read_option(v) for v in value)
    if isinstance(value, Mapping) and "dtype" in value:
        return jnp.dtype(value["dtype"])
    if isinstance(value, Mapping):
        return _find(value["function"]) if "function" in value else Missing(value["missing"])
    return value


def _name(fn: Callable[..., Any]) -> str:
    """ "module:name", by the shortest module that has it, so that a function may move between the files of its package."""
    if isinstance(fn, Missing):
        return fn.name
    name = getattr(fn, "__qualname__", None) or getattr(fn, "__name__", None) or repr(fn)
    parts = (getattr(fn, "__module__", None) or "?").split(".")
    for count in range(1, len(parts)):
        module = ".".join(parts[:count])
        if getattr(sys.modules.get(module), name, None) is fn:
            return f"{module}:{name}"
    return f"{'.'.join(parts)}:{name}"


def _find(name: str) -> Any:
    module, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for step in path.split("."):
            found = getattr(found, step)
    except Exception:  # whatever a foreign module does when it is imported
        return Missing(name)
    return found
