"""What to optimise with: a loss, an optimizer and a schedule, each a function whose numbers are leaves of a pytree.

Structure (which function, which flags) is the treedef and so decides the compiled program; numbers never do.
"""

import difflib
import functools
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from ._types import PyTree, Scalar, Vector

REQUIRED = inspect.Parameter.empty
Tree = TypeVar("Tree")


class Bound:
    """A function with its keyword parameters bound: calling it with the data is calling the function. Made by `bind`.

    fn: the function.
    hparams: name -> float32 number (or vector), or a `Bound` schedule that gives the number at each step, or a tuple of these where
        the function takes several, or a part (a `Bound`, a tuple of them) that the function itself calls. The pytree's children.
    options: name -> any other value; hashable, part of the treedef.
    """

    __slots__ = ("__weakref__", "fn", "hparams", "options")  # jit holds what it compiles by a weak reference

    fn: Callable[..., Any]
    hparams: dict[str, Any]
    options: dict[str, Any]

    def __init__(self, fn: Callable[..., Any], hparams: dict[str, Any], options: dict[str, Any]):
        self.fn, self.hparams, self.options = fn, hparams, options

    def __call__(self, *data: Any) -> Any:
        scheduled = self._scheduled_names()
        if scheduled and next(iter(inspect.signature(self.fn).parameters)) == "step":
            return self.at(data[0])(*data)  # a schedule has the step at hand
        if scheduled:
            raise TypeError(f"{_name(self.fn)}: {scheduled[0]} is a schedule; take its value at a step first: bound.at(step)(...)")
        return self.fn(*data, **self.hparams, **self.options)

    def at(self, step: Any) -> "Bound":
        """The same with every number that is a schedule replaced by its value at `step`, in its parts as well."""
        numbers = set(self._scheduled_names())

        def resolve(name: str, value: Any) -> Any:
            return _map_bounds((lambda s: s.at(step)(step)) if name in numbers else (lambda part: part.at(step)), value)

        return Bound(self.fn, {name: resolve(name, value) for name, value in self.hparams.items()}, self.options)

    def scheduled(self, step: Any) -> dict[str, Any]:
        """Name -> value at `step` of every number that is a schedule; of one among several, "name.0"."""
        named = {name: self.hparams[name] for name in self._scheduled_names()}
        several = {f"{name}.{i}": v for name, value in named.items() if isinstance(value, tuple) for i, v in enumerate(value)}
        return {name: value.at(step)(step) for name, value in {**named, **several}.items() if isinstance(value, Bound)}

    def replace(self, **values: Any) -> "Bound":
        """The same function bound with some values changed."""
        return bind(self.fn, **{**self.hparams, **self.options, **values})

    def _scheduled_names(self) -> list[str]:
        kinds = parameters(self.fn)
        # A function that annotates its numbers means any other Bound as a part to call; one that annotates none has numbers only.
        annotated = any(kind.number for kind in kinds.values())
        named = {n: n in kinds and kinds[n].number for n in self.hparams}
        return [n for n, v in self.hparams.items() if (_has_bounds(v) if named[n] else isinstance(v, Bound) and not annotated)]

    def __repr__(self) -> str:
        values = {**self.hparams, **self.options}
        return f"bind({', '.join([_name(self.fn), *(f'{k}={_show(v)}' for k, v in values.items())])})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Bound):
            return False
        mine: Any = jax.tree.structure(self)
        leaves = zip(jax.tree.leaves(self), jax.tree.leaves(other), strict=False)
        return mine == jax.tree.structure(other) and all(_same(a, b) for a, b in leaves)

    def __hash__(self) -> int:
        return hash(_flatten(self)[1])


def _same(a: Any, b: Any) -> bool:
    return a is b or (not isinstance(a, jax.core.Tracer) and not isinstance(b, jax.core.Tracer) and np.array_equal(a, b))


def _flatten(bound: Bound) -> tuple[list[tuple[Any, Any]], Any]:
    children = [(jax.tree_util.GetAttrKey(name), value) for name, value in bound.hparams.items()]
    return children, (bound.fn, tuple(bound.hparams), tuple(bound.options.items()))


def _unflatten(aux: Any, children: Iterable[Any]) -> Bound:
    fn, names, options = aux
    return Bound(fn, dict(zip(names, children, strict=True)), dict(options))


jax.tree_util.register_pytree_with_keys(Bound, _flatten, _unflatten)


class Recipe(NamedTuple):
    """What to optimise with.

    loss: (outputs [b, ...], targets [b, ...]) -> values [b, ...].
    optimizer: learning_rate -> optax.GradientTransformation.
    schedule: step -> learning rate.
    clip_norm: gradients whose global norm is above it are scaled down to it (Pascanu et al. 2013, arXiv:1211.5063);
        a number or a bound schedule of it, or None for no clipping (structure).
    metric: a bound loss that held-out data is judged by beside its own, and trials ranked by, such as bind(losses.mae): it makes recipes
        of different losses comparable. None (structure) for the loss itself, or the accuracy of classes.
    """

    loss: Bound
    optimizer: Bound
    schedule: Bound
    clip_norm: Any = None
    metric: Bound | None = None

    @property
    def metric_name(self) -> str | None:
        """What the metric is called: its function's name; None without one."""
        return None if self.metric is None else _name(self.metric.fn)


class Parameter(NamedTuple):
    """A bindable parameter: whether it is a number (a leaf) and may be a vector, its default (`REQUIRED` if none), its annotation.

    several: a `Sequence[Scalar]`, a number or a schedule each, unlike a vector, which is one leaf.
    """

    number: bool
    vector: bool
    default: Any
    annotation: Any
    several: bool = False


@functools.lru_cache(maxsize=4096)
def parameters(fn: Callable[..., Any]) -> Mapping[str, Parameter]:
    """The parameters that can be bound by name: keyword-only ones where `fn` annotates a Scalar or Vector, else all of them."""
    try:
        hints = typing.get_type_hints(fn, include_extras=True)
    except Exception:  # a foreign function's annotations need not resolve
        hints = {}
    positional = [p for p in inspect.signature(fn).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    keyword_only = [p for p in inspect.signature(fn).parameters.values() if p.kind is p.KEYWORD_ONLY]
    # The first parameter is data, and so are all without a default, unless the function has named its numbers as keyword-only ones.
    named = [] if any(_is_number(hints.get(p.name)) for p in keyword_only) else [p for p in positional[1:] if p.default is not REQUIRED]
    return {
        p.name: Parameter(
            p.kind is p.KEYWORD_ONLY and _is_number(hints.get(p.name)),
            _is_vector(hints.get(p.name)),
            p.default,
            hints.get(p.name),
            p.kind is p.KEYWORD_ONLY and hints.get(p.name) == Sequence[Scalar],
        )
        for p in [*named, *keyword_only]
    }


def _is_vector(hint: Any) -> bool:
    return Vector in (hint, *typing.get_args(hint))


def _is_number(hint: Any) -> bool:
    return any(h in (Scalar, Vector) for h in (hint, *typing.get_args(hint)))


def bind(fn: Callable[..., Any], **values: Any) -> Bound:
    """Bind keyword parameters of `fn`; what is left positional is data.

    A keyword-only parameter annotated `Scalar` or `Vector` is a float32 leaf, its default too. Of a function without such
    annotations (optax's, a notebook's) the floats given here are leaves. All else is structure: part of the compile key.
    A number may be a bound schedule; the step then takes its value at `state.step`.

    Raises TypeError for an unknown or missing name, an unhashable option or a number that is not one.

    >>> import lossopt_jax as lo
    >>> lo.bind(lo.schedules.constant, value=0.1)
    bind(constant, value=0.1)
    """
    if isinstance(fn, Bound):
        return fn.replace(**values)
    if not callable(fn):
        raise TypeError(f"bind: the first argument must be a function, got {fn!r}")
    known = parameters(fn)
    for name in values:
        if name not in known:
            what = "takes as data" if name in inspect.signature(fn).parameters else "has no parameter"
            raise TypeError(f"{_name(fn)} {what} {name!r}; to bind: {nearest(name, known)}")
    hparams: dict[str, Any] = {}
    options: dict[str, Any] = {}
    has_numbers = any(kind.number for kind in known.values())
    for name, kind in known.items():
        if name not in values and kind.default is REQUIRED:
            raise TypeError(f"{_name(fn)} needs a value for {name!r}")
        if name not in values and not has_numbers:
            continue  # a foreign default stays with its function
        value = values.get(name, kind.default)
        if kind.several:
            hparams[name] = tuple(_number(v, f"{_name(fn)}: {name}[{i}]") for i, v in enumerate(_listed(value, f"{_name(fn)}: {name}")))
        elif kind.number and value is not None:
            hparams[name] = _number(value, f"{_name(fn)}: {name}")
        elif _has_bounds(value) or (not kind.number and _is_float(value)):
            hparams[name] = _leaf(value) if _is_float(value) else _parts(value)
        else:
            options[name] = _hashable(value, f"{_name(fn)}: {name}")
    return Bound(fn, hparams, options)


def _number(value: Any, where: str) -> Any:
    if isinstance(value, Bound):
        return value
    try:
        return _leaf(value)
    except (TypeError, ValueError) as error:
        hint = "; wrap a schedule in lo.bind" if callable(value) else ""
        raise TypeError(f"{where} must be a number, a vector of numbers or a bound schedule, got {value!r}{hint}") from error


def _listed(values: Any, where: str) -> Any:
    if isinstance(values, tuple | list) or getattr(values, "ndim", 0) == 1:
        return values
    raise TypeError(f"{where} must be a list of numbers or bound schedules, got {values!r}")


def _leaf(value: Any) -> Any:
    # NumPy, not jnp: a recipe can then be written before a backend has been chosen.
    if isinstance(value, jax.Array):
        return value.astype(jnp.float32)
    if isinstance(value, str | bytes | bool):
        raise TypeError("not a number")
    return np.asarray(value, np.float32)


def _is_float(value: Any) -> bool:
    return isinstance(value, float) or (
        isinstance(value, jax.Array | np.ndarray | np.generic) and jnp.issubdtype(value.dtype, jnp.floating)
    )


def _has_bounds(value: Any) -> bool:
    return isinstance(value, Bound) or (isinstance(value, tuple | list) and any(isinstance(v, Bound) for v in value))


def _parts(value: Any) -> Any:
    # A plain function among bound ones becomes bound, since a function cannot be a leaf.
    return value if isinstance(value, Bound) else tuple(v if isinstance(v, Bound) else bind(v) for v in value)


def _map_bounds(f: Callable[[Bound], Bound], value: Any) -> Any:
    return jax.tree.map(lambda v: f(v) if isinstance(v, Bound) else v, value, is_leaf=lambda v: isinstance(v, Bound))


def _hashable(value: Any, where: str) -> Any:
    value = tuple(value) if isinstance(value, list) else value
    try:
        hash(value)
    except TypeError:
        raise TypeError(f"{where} is structure, so it must be hashable, got {type(value).__name__}") from None
    return value


def numbers(recipe: PyTree) -> dict[str, Any]:
    """Dotted path -> number of everything in a recipe that can be swept, e.g. "schedule.peak"."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(recipe)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def with_numbers(recipe: Tree, values: Mapping[str, Any]) -> Tree:
    """The recipe, or a part, with the numbers at dotted paths replaced; a path that is not there is a KeyError naming those near."""
    known = numbers(recipe)
    for path in values:
        if path not in known:
            raise KeyError(f"the recipe has no number {path!r}; {nearest(path, known)}")
    leaves = [_number(values[path], path) if path in values else leaf for path, leaf in known.items()]
    return jax.tree.unflatten(jax.tree.structure(recipe), leaves)


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error about a misspelt name: the nearest valid ones first, then all when they are few."""
    valid = sorted(known)
    close = difflib.get_close_matches(name, valid, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?" + (f" Valid: {', '.join(valid)}" if len(valid) <= 12 else "")
    return f"valid: {', '.join(valid) or 'none'}"


def _name(fn: Callable[..., Any]) -> str:
    return getattr(fn, "__name__", None) or repr(fn)


def _show(value: Any) -> str:
    if isinstance(value, jax.core.Tracer):
        return f"<traced {value.shape}>"
    if isinstance(value, jax.Array | np.ndarray):
        return f"{float(value):g}" if value.ndim == 0 else f"[{', '.join(f'{v:g}' for v in np.ravel(value)[:6])}{', …' * (value.size > 6)}]"
    return _name(value) if callable(value) and not isinstance(value, Bound) else repr(value)
