"""What to try: distributions over the numbers of a recipe, of its model and its run, and over its parts."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, overload

import numpy as np

from ..recipe import Bound, bind, with_numbers

CUT = 3.0  # standard deviations
EXACT = 2**24


class Distribution(NamedTuple):
    """A swept number. kind: the name of the function that makes it; low and high are its ends.

    values: a choice's, or the mean and standard deviation of a normal. labels: names for a choice's values, where they are no numbers.
    """

    kind: str
    low: float
    high: float
    values: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()

    @property
    def arguments(self) -> list[Any]:
        """What its function was called with."""
        if self.labels:
            return [read_label(label) for label in self.labels]
        return list(self.values) or ([self.low] if self.kind == "fixed" else [self.low, self.high])

    def quantile(self, u: np.ndarray) -> np.ndarray:
        """The value at each u in [0, 1)."""
        if self.kind == "choice":
            return np.asarray(self.values)[np.minimum((u * len(self.values)).astype(int), len(self.values) - 1)]
        if self.kind == "int_uniform":
            return np.floor(self.low + u * (self.high - self.low + 1))
        if self.kind == "log_uniform":
            # Clipped: exp(log(high)) may exceed high by a rounding.
            return np.clip(np.exp(math.log(self.low) + u * math.log(self.high / self.low)), self.low, self.high)
        if self.kind == "normal":
            from scipy.special import ndtr, ndtri

            mean, std = self.values
            return mean + std * ndtri(ndtr(-CUT) + u * (ndtr(CUT) - ndtr(-CUT)))
        return self.low + u * (self.high - self.low)

    def share_below(self, value: float) -> float:
        """The share of a normal distribution that lies below a value: the inverse of `quantile`."""
        from scipy.special import ndtr

        mean, std = self.values
        return float(np.clip((ndtr((value - mean) / std) - ndtr(-CUT)) / (ndtr(CUT) - ndtr(-CUT)), 0.0, 1.0))

    def code(self, value: float | str) -> float:
        """The value as a number: of a label its place."""
        return float(self.labels.index(value)) if isinstance(value, str) else float(value)

    def position(self, value: float | str) -> float:
        """Where a value lies between the ends, 0 at the low one and 1 at the high one; of listed values by its place in their order."""
        low, high, value = self.low, self.high, self.code(value)
        if self.kind == "choice":
            listed = np.unique(self.values)
            return float(np.abs(listed - value).argmin() / (len(listed) - 1)) if len(listed) > 1 else 0.5
        if self.kind == "log_uniform":
            low, high, value = math.log(low), math.log(high), math.log(value)
        return (value - low) / (high - low) if high > low else 0.5


class Variant(NamedTuple):
    """A part to choose, with the numbers of it that are swept: name -> distribution. See `variant`."""

    bound: Bound
    space: dict[str, Distribution]


class Parts(NamedTuple):
    """A swept part of the recipe: one of several, each a structure of its own. See `choice`."""

    variants: tuple[Variant, ...]

    def labels(self) -> tuple[str, ...]:
        """The names of the functions; of those with one name the later ones are numbered."""
        names = [part_name(v.bound) for v in self.variants]
        before = [names[:i].count(name) for i, name in enumerate(names)]
        return tuple(name if not count else f"{name}-{count + 1}" for name, count in zip(names, before, strict=True))

    def column(self) -> Distribution:
        return _labelled(self.labels())


Space = Mapping[str, Distribution | Parts]


def uniform(low: float, high: float) -> Distribution:
    """Every number from low to high alike."""
    return _checked("uniform", low, high)


def log_uniform(low: float, high: float) -> Distribution:
    """Every order of magnitude from low > 0 to high alike: the right choice for learning rates and weight decays."""
    if _finite(low) and not low > 0:
        raise ValueError(f"log_uniform: low must be above 0, got {low}")
    return _checked("log_uniform", low, high)


def int_uniform(low: int, high: int) -> Distribution:
    """Every integer from low to high, both included, alike."""
    if not (_finite(low) and _finite(high)) or int(low) != low or int(high) != high:
        raise ValueError(f"int_uniform: low and high must be integers, got {low!r} and {high!r}")
    if max(abs(low), abs(high)) > EXACT:
        raise ValueError(f"int_uniform: float32, which numbers are, has every integer only up to {EXACT}, got {low} and {high}")
    return _checked("int_uniform", low, high)


def normal(mean: float, std: float) -> Distribution:
    """The normal distribution, cut off at three standard deviations, which are its ends."""
    if not (_finite(mean) and _finite(std) and std > 0):
        raise ValueError(f"normal: mean must be finite and std finite and above 0, got mean {mean!r} and std {std!r}")
    return Distribution("normal", float(mean - CUT * std), float(mean + CUT * std), (float(mean), float(std)))


def fixed(value: float) -> Distribution:
    """Always this number."""
    return _checked("fixed", value, value)


@overload
def choice(values: Sequence[float] | Sequence[str] | Sequence[Sequence[int]]) -> Distribution: ...
@overload
def choice(values: Sequence[Bound | Variant]) -> Parts: ...
def choice(values: Sequence[Any]) -> Distribution | Parts:
    """One of some numbers; or, for the path of a part of the recipe, one of some bound functions, each perhaps a `variant`.

    For a path such as "model.widths" also one of some lists of integers, or of some words.

    >>> import lossopt_jax as lo
    >>> adamw = lo.variant(lo.optimizers.adamw, weight_decay=lo.log_uniform(1e-5, 1e-1))
    >>> space = {"optimizer": lo.choice([lo.bind(lo.optimizers.sgd), adamw])}
    """
    if isinstance(values, str | Mapping) or not hasattr(values, "__len__") or not hasattr(values, "__getitem__"):
        raise TypeError(f"choice: needs a list of values, got {values!r}")
    if not len(values):
        raise ValueError("choice: needs at least one value")
    if functions := [value for value in values if callable(value) and not isinstance(value, Bound)]:
        name = getattr(functions[0], "__name__", "...")
        bound = f"of parts each must be bound: lo.bind({name}) or, with numbers to sweep, lo.variant({name}, ...)"
        raise TypeError(f"choice: {bound}; of anything else values must be finite numbers, or all words, or all lists: no functions")
    if any(isinstance(value, Bound | Variant) for value in values):
        wrong = [value for value in values if not isinstance(value, Bound | Variant)]
        if wrong:
            raise TypeError(f"choice: of parts each must be a lo.bind(...) or lo.variant(...), got {wrong[0]!r}")
        return Parts(tuple(value if isinstance(value, Variant) else Variant(value, {}) for value in values))
    if not (all(isinstance(value, str | Sequence) for value in values) or all(_finite(value) for value in values)):
        raise ValueError(f"choice: values must be finite numbers, or all words, or all lists, got {values!r}")
    if isinstance(values[0], str | Sequence):
        return _labelled(tuple(value if isinstance(value, str) else json.dumps(list(value)) for value in values))
    return Distribution("choice", float(min(values)), float(max(values)), tuple(map(float, values)))


def _finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except (TypeError, ValueError):
        return False


def read_label(label: str) -> Any:
    """The value of a label: a list of integers as a tuple, a word as it is."""
    return tuple(json.loads(label)) if label.startswith("[") else label


def _labelled(labels: tuple[str, ...]) -> Distribution:
    return Distribution("choice", 0.0, len(labels) - 1.0, tuple(map(float, range(len(labels)))), labels)


def variant(fn: Callable[..., Any], **values: Any) -> Variant:
    """`bind` for a choice of parts: of the values some may be distributions, drawn for this part only.

    >>> import lossopt_jax as lo
    >>> lo.variant(lo.optimizers.momentum, beta=lo.uniform(0.5, 0.99)).space["beta"].high
    0.99
    """
    space = {name: value for name, value in values.items() if isinstance(value, Distribution)}
    check_numbers(space)
    middle = {name: float(distribution.quantile(np.array(0.5))) for name, distribution in space.items()}
    bound = bind(fn, **{**values, **middle})
    with_numbers(bound, middle)  # a flag cannot be drawn from a range
    return Variant(bound, space)


def _checked(kind: str, low: float, high: float) -> Distribution:
    if not (_finite(low) and _finite(high) and low <= high):
        raise ValueError(f"{kind}: low must be at most high and both finite numbers, got low {low!r} and high {high!r}")
    return Distribution(kind, float(low), float(high))


def whole(number: float) -> float:
    """The number, as an integer where it is one: of what is a width or a batch size floats are made by drawing only."""
    return int(number) if number == int(number) else number


def listed_in(space: Space) -> list[str]:
    """The paths of what is a choice of several, in parts as well."""
    found = []
    for path, what in space.items():
        own = {path: what} if isinstance(what, Distribution) else {f"{path}.{n}": d for v in what.variants for n, d in v.space.items()}
        found += [path] if isinstance(what, Parts) and len(what.variants) > 1 else []
        found += [name for name, d in own.items() if d.kind == "choice" and len(set(d.values)) > 1]
    return list(dict.fromkeys(found))


def is_structure(path: str) -> bool:
    """Whether the path is of what a recipe runs with: of the model or of the run."""
    return path.partition(".")[0] in ("model", "run")


def check_numbers(space: Mapping[str, Distribution]) -> None:
    """TypeError for a number that is drawn from what is none."""
    for path, what in space.items():
        if what.labels:
            raise TypeError(f"sample: {path!r} is a number: its choice must be of numbers, got {what.arguments}")


def part_name(part: Bound) -> str:
    """The name of its function."""
    return getattr(part.fn, "__name__", repr(part.fn))
