"""What a lane shows beside the numbers of `Measured`: signs that the rules go by."""

import math

import numpy as np

from .curves import RESOLVED, Lane, Measured
from .thresholds import ALTERNATES, DIED, LEAST, LITTLE, SAME, THERE, UNANSWERED


def loss_alone(lane: Lane, m: Measured) -> str | None:
    """What the loss alone says of a run at the edge; None where it says nothing."""
    tenth = max(1, len(lane.loss) // 10)
    begins, ends = lane.loss[:tenth], lane.loss[-tenth:]
    rose, error = float(ends.mean() - begins.mean()), math.sqrt((begins.var() + ends.var()) / tenth)
    most, high = float(lane.loss.max()), float(max(lane.loss[0], ends.mean())) + m.start
    if m.gain < LITTLE and most > high:
        return f"the loss went up to {most:.3g} and ends where it began, at {ends.mean():.3g} (threshold: {high:.3g})"
    above = max(0.0, float(begins.mean() - lane.loss[0]))  # the first batch may have been an easy one
    most, high = float(lane.loss[tenth:].max()), float(lane.loss[0]) + above + 0.5 * (m.start + above)
    if most > high:
        return f"the loss jumped to {most:.3g} after a tenth of the steps (threshold: {high:.3g})"
    if rose > max(4 * error, SAME * m.start):
        return f"the loss ends {rose:.3g} above where it began (threshold: four standard errors, {4 * error:.2g})"
    steps = np.diff(lane.loss[len(lane.loss) // 2 :])
    turns = float(np.mean(steps[1:] * steps[:-1] < 0)) if len(steps) > LEAST else 0.0
    if turns > ALTERNATES and float(np.abs(steps).mean()) > LITTLE * m.start:
        return f"the loss turned at {turns:.0%} of the steps of the second half (threshold: {ALTERNATES:.0%}; by chance 67 %)"
    return None


def training_rose(lane: Lane, at: int, several: int) -> float:
    """By how much the training loss rose between the evaluations that were the best, `several` from `at` on, and the last ones."""
    best, last = (lane.held_out_at[[i, i + several - 1]] // lane.every for i in (at, len(lane.held_out) - several))
    means = [float(lane.loss[max(0, begin - 1) : max(end, 1)].mean()) for begin, end in (best, last)]
    return means[1] - means[0]


def gradient_died(lane: Lane, m: Measured) -> bool:
    """Whether next to nothing was learnt and a gradient that was there went for good, other than at a least.

    At a least of batches that differ each has a gradient. At a least of all the data the gradient goes smoothly, or, if it goes in a step
    or two, after a fall of the loss of about half of what those steps promised.
    """
    if lane.grad_norm is None or not (m.gain < LITTLE and m.settled < DIED and lane.grad_norm[0] > THERE * m.start):
        return False
    under = int(np.argmax(lane.grad_norm < DIED * lane.grad_norm[0]))
    at_once = bool(lane.grad_norm[under] < lane.grad_norm[under - 1] / 10)
    return not same_batches(lane, m) or (at_once and not m.gain > UNANSWERED * m.promised)


def same_batches(lane: Lane, m: Measured) -> bool:
    """Whether the losses of the last fifth are one number: each step saw all the data."""
    return float(lane.loss[-(len(lane.loss) // 5) :].std()) < SAME * m.start


def gradient_growth(lane: Lane) -> float:
    """By how much the gradient norm grew all through the last fifth, while the loss rose, or fell by plainly less than steps against the
    gradient promised; 0 where it did not.

    On a quadratic every part of the gradient shrinks below the limit, so that the whole grows only above it. Leaving a saddle it grows as
    well, and the loss falls by more than was promised.
    """
    fifth = len(lane.loss) // 5
    if lane.grad_norm is None or lane.update_norm is None or lane.every > 1 or fifth < LEAST:
        return 0.0
    grad, update, loss = (values[-fifth:] for values in (lane.grad_norm, lane.update_norm, lane.loss))
    fell, promised = float(loss[0] - loss[-1]), float((update * grad)[:-1].sum())
    grows = (np.diff(grad) > 0).all() and grad[0] > 0 and (fell < 0 or (is_descent(lane) and fell < 0.75 * promised))
    return float(grad[-1] / grad[0]) if grows else 0.0


def is_descent(lane: Lane) -> bool:
    """Whether the updates are the rate times the gradient."""
    if lane.rate is None or lane.grad_norm is None or lane.update_norm is None:
        return False
    return bool(np.allclose(lane.update_norm, lane.rate * lane.grad_norm, rtol=1e-3, atol=0))


def most_factor(lane: Lane) -> float:
    """By how much the rate may be raised at most, from the curvature along the gradients of gradient descent on all data: 1 / rate is where
    the loss fell by half of what was promised, 2 / rate where it did not fall. Infinite where the steps do not tell."""
    if not is_descent(lane) or lane.every > 1 or not (np.diff(lane.loss) < 0).all():
        return math.inf
    promised = (lane.update_norm * lane.grad_norm)[:-1]  # type: ignore[operator]
    told = promised > RESOLVED * np.abs(lane.loss[:-1])
    curvature = 2 * (1 + np.diff(lane.loss)[told] / promised[told])
    return 2 / float(curvature.max()) if curvature.size and curvature.max() > 0 else math.inf


def noise_floor(lane: Lane) -> tuple[int, float] | None:
    """The step at which the rate was brought down, and the share by which the loss, flat before, then fell; None where it did not."""
    at = None if lane.rate is None else rate_drop(lane.rate)
    if at is None:
        return None
    before, after = lane.loss[at // 2 : at], lane.loss[at + max(1, (len(lane.loss) - at) // 5) :]
    half = max(1, len(before) // 2)
    flat = float(before[:half].mean() - before[-half:].mean()) < 0.25 * float(before[:half].mean())
    fell = 1 - float(after.mean() / before[-half:].mean()) if len(after) else 0.0
    return (at * lane.every, fell) if flat and fell > 0.25 else None


def rate_drop(rate: np.ndarray) -> int | None:
    """Where the rate falls to a third or less at once, past the first fifth; None where it does not."""
    falls = np.flatnonzero(rate[1:] < rate[:-1] / 3)
    falls = falls[falls > len(rate) // 5]
    return int(falls[0]) + 1 if len(falls) else None
