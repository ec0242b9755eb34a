"""What the training targets say of a run: whether the loss is for such, and what a network that goes by nothing would reach."""

import math
from typing import Any

import numpy as np

from .rules import Verdict

AMOUNTS = ("mse", "mae", "huber", "log_cosh")
MOST_KINDS = 100


def mismatch(loss: str, targets: Any) -> list[Verdict]:
    """Few integers from 0 up, each of them there, under a loss for amounts."""
    if targets is None or loss not in AMOUNTS:
        return []
    kinds = np.unique(np.asarray(targets).astype(np.float64))
    if not len(kinds) or len(kinds) > MOST_KINDS or not np.array_equal(kinds, np.arange(len(kinds))):
        return []
    measured = f"the targets are the integers 0 to {len(kinds) - 1}, which is what labels look like, and {loss} takes them for amounts"
    one_hot = np.ndim(targets) > 1 and np.shape(targets)[-1] > 1 and bool((np.asarray(targets).sum(-1) == 1).all())
    fitting = "binary_cross_entropy" if len(kinds) == 2 and not one_hot else "cross_entropy"
    return [Verdict("loss does not fit", measured, "a label's number has no size", f'loss.name = "{fitting}"')]


def constant_loss(loss: str, targets: Any) -> float:
    """The least mean loss of outputs that do not go by the inputs: the variance, the entropy of the labels; NaN where that is not known."""
    y = None if targets is None else np.asarray(targets)
    if y is None or not y.size or y.dtype.kind not in "biuf":
        return math.nan
    if loss == "mse":
        return float(y.astype(np.float64).var(0).mean())
    if loss not in ("cross_entropy", "binary_cross_entropy") or (y.dtype.kind == "f" and loss == "cross_entropy"):
        return math.nan
    _, counts = np.unique(y[y >= 0], return_counts=True)
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum()) if loss == "cross_entropy" or len(shares) <= 2 else math.nan
