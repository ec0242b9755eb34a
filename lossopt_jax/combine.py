"""Bound losses to one bound loss."""

from collections.abc import Callable, Sequence
from typing import Any

from . import losses
from .recipe import Bound, bind


def weighted_sum(*parts: Bound | Callable[..., Any], weights: Sequence[Any], ignore_index: int = -100) -> Bound:
    """The bound `losses.weighted_sum` of some losses; every number of it can be swept or follow a schedule, the weights too.

    >>> import lossopt_jax as lo
    >>> loss = weighted_sum(lo.bind(lo.losses.dice), lo.bind(lo.losses.cross_entropy), weights=[1.0, 0.5])
    >>> list(lo.numbers(loss))
    ['losses.0.smooth', 'losses.0.empty_weight', 'losses.1.label_smoothing', 'weights.0', 'weights.1']
    """
    bound = tuple(part if isinstance(part, Bound) else bind(part) for part in parts)
    if len(bound) != len(weights):
        raise ValueError(f"weighted_sum: {len(bound)} losses need as many weights, got {len(weights)}")
    return bind(losses.weighted_sum, losses=bound, weights=weights, ignore_index=ignore_index)
