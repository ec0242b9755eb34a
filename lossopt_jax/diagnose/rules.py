"""What may be wrong with a run: each rule looks at what was measured and says what it found, by which threshold, and what to try."""

import math
from typing import Any, NamedTuple

import numpy as np

from .curves import Lane, Measured, measure

# Gravest first, with what each means.
KINDS = {
    "diverged": "became infinite, or ended far above where it began",
    "loss does not fit": "class labels are fitted as if they were amounts",
    "stalled": "learnt next to nothing",
    "unstable": "jumps about at the edge of stability",
    "ends early": "the schedule is over before the learning is",
    "ends late": "the run is over before the schedule is",
    "noisy": "the rate is too high late: a floor of noise",
    "too low": "the rate is too low: hardly moved, or still falling steadily",
    "over-fits": "the held-out loss has turned",
    "too short": "too few steps to judge by",
    "right": "nothing wrong was measured",
}
HIGH_OR_LONG = {"unstable", "noisy", "over-fits"}
LEAST = 10  # steps to judge by
MOST_KINDS = 100
# Tuned on three tasks of tests/benchmarks/diagnose.py, and checked on nine others.
ENOUGH = 4.0
LITTLE = 0.15
LEAP = 2.0
WASTE = 0.7
EDGE = 5.0
NOISE = 0.5
FLAT = 0.12
UNMOVED = 1e-3
VANISHED = 1e-4
DIED = 0.01
UNANSWERED = 0.1
STEADY = 0.85
TURNED = 0.15
AMOUNTS = ("mse", "mae", "huber", "log_cosh")
TAYLOR = "Taylor: to the first order a step lowers the loss by at most update norm x gradient norm"
POLYAK = "Polyak 1987: a step that promises 2 times the loss above its least or more moves away from it, if it is convex"
FLOOR = "stochastic gradient descent hovers above the least at a height in proportion to its rate (Robbins and Monro 1951)"
CLIMB = "a constant output does no worse than the first"


class Verdict(NamedTuple):
    """kind: of `KINDS`. measured: the numbers and their threshold. source: of the threshold. advice: what to try next, a line of a config
    where it can be one; "" where there is nothing to try."""

    kind: str
    measured: str
    source: str
    advice: str

    @property
    def meaning(self) -> str:
        return KINDS[self.kind]


def judge(lane: Lane, path: str) -> list[Verdict]:
    """All that is wrong with a lane, what matters most first; [] where nothing is."""
    peak = float(np.nanmax(lane.rate)) if lane.rate is not None and len(lane.rate) else math.nan
    if lane.diverged_at >= 0:
        return [_diverged(lane, path, peak)]
    if len(lane.loss) < LEAST:
        return [Verdict("too short", f"recorded steps: {len(lane.loss)} (threshold: {LEAST})", "", "more steps")]
    m = measure(lane)
    if m.end > 2 * m.start:
        measured = f"the loss ends at {m.end:.3g}, {m.end / m.start:.3g} times the first, {m.start:.3g} (threshold: 2)"
        return [Verdict("diverged", measured, CLIMB, _rate(path, peak / 10))]
    rules = (_ends_early, _stalled, _unstable, _noisy, _ends_late, _too_low, _over_fits)
    found = [verdict for rule in rules if (verdict := rule(lane, m, path, peak)) is not None]
    # A loss may go on falling at the edge, in the noise or by heart: a higher rate or more steps are then not what it needs.
    return [verdict for verdict in found if verdict.kind != "too low" or not HIGH_OR_LONG & {other.kind for other in found}]


def _diverged(lane: Lane, path: str, peak: float) -> Verdict:
    source = "no number is above infinity; on a quadratic gradient descent grows where the rate is above 2 / the largest eigenvalue"
    if lane.diverged_at == 0:
        measured = "the first step was not finite"
        return Verdict("diverged", measured, source, f"look at the data and the labels, or {_rate(path, peak / 100)}")
    measured = f"not finite from step {lane.diverged_at} of {lane.steps} on"
    return Verdict(
        "diverged", measured, source, f"{_rate(path, peak / (10 if lane.diverged_at < lane.steps / 5 else 3))}, or clip_norm = 1.0"
    )


def _ends_early(lane: Lane, m: Measured, path: str, peak: float) -> Verdict | None:
    if lane.rate is None or not peak > 0:
        return None
    over = len(lane.rate) - int(np.flatnonzero(lane.rate > 0.01 * peak).max(initial=0)) - 1
    active = lane.loss[: len(lane.loss) - over]
    if over < 0.3 * len(lane.rate) or not len(active):
        return None
    half = active[len(active) // 2 :]
    late = float(half[: max(1, len(half) // 4)].mean() - half[-max(1, len(half) // 4) :].mean()) / max(m.start - m.end, 1e-9)
    if not (m.folds < ENOUGH or late > 0.1):
        return None
    measured = f"the rate is under 1 % of its peak for the last {over / len(lane.rate):.0%} of the steps, and the loss was still falling"
    return Verdict("ends early", measured, "the recorded rates; a fall of a tenth of all gained counts", f"schedule.total = {lane.steps}")


def _stalled(lane: Lane, m: Measured, path: str, peak: float) -> Verdict | None:
    """Little gained by small steps, and not what they promised."""
    first, moved = float(lane.loss[0]), float(lane.loss[-(len(lane.loss) // 10) :].mean() - lane.loss[0])
    if lane.grad_norm is None and lane.update_norm is None and abs(moved) < UNMOVED * abs(first):
        measured = f"the loss ends within {UNMOVED:.1%} of where it began, {first:.3g}; there are no norms to say why"
        return Verdict("stalled", measured, CLIMB, f"{_rate(path, peak * 10)}; record grad_norm and update_norm to tell a small rate apart")
    if lane.grad_norm is None or not (m.leap < LEAP and m.gain < LITTLE) or _died(lane, m) or _ends_early(lane, m, path, peak):
        return None
    gradient = float(np.median(lane.grad_norm)) / m.start
    if m.steady > STEADY:  # it learns, if slowly: small batches make gradients of noise, which promise what cannot come
        return None
    if gradient < VANISHED:
        measured = f"the gradient norm is {gradient:.1e} of the loss (threshold: {VANISHED:.0e}), {m.gain:.1%} was learnt"
    elif m.answered + 2 * m.error < UNANSWERED:
        measured = f"of what the updates promised {max(m.answered, 0):.1%} came, {m.error:.1%} for noise (threshold: {UNANSWERED:.0%})"
    elif m.heard < UNANSWERED and m.answered - 2 * m.error < UNANSWERED:
        measured = f"of what the updates promised {max(m.heard, 0):.1%} came in the held-out loss (threshold: {UNANSWERED:.0%})"
    else:
        return None
    advice = "look at the initialisation, the activations and the scale of the inputs: units are dead or saturated"
    return Verdict("stalled", measured, TAYLOR, advice)


def _unstable(lane: Lane, m: Measured, path: str, peak: float) -> Verdict | None:
    waste = m.promised / max(m.gain, 1e-9) / max(lane.steps, 1)
    if m.gain < LITTLE and m.leap >= LEAP:
        measured = f"{m.gain:.1%} was learnt, with steps that promised up to {m.leap:.2g} times the loss (threshold: {LEAP:g})"
    elif _died(lane, m):
        measured = f"{m.gain:.1%} was learnt, and the gradient norm fell under {DIED:.0%} of its first: the steps have put units to sleep"
    elif _floor(lane) is not None:  # what the rate itself has shown
        return None
    elif waste > WASTE and m.leap >= LEAP:
        measured = f"a step promised {waste:.3g} times all that was learnt, on average (threshold: {WASTE:g})"
    elif m.share > EDGE:
        measured = f"a step of the last fifth promised {m.share:.3g} times the loss, on average (threshold: {EDGE:g})"
    elif m.peak > 1.5 and not m.leap < LEAP:  # small steps do not throw a loss up: the first batch was an easy one
        measured = f"the loss jumped to {m.peak:.2g} times the first after a tenth of the steps (threshold: 1.5)"
    else:
        return None
    return Verdict("unstable", measured, POLYAK, _rate(path, peak / 4))


def _noisy(lane: Lane, m: Measured, path: str, peak: float) -> Verdict | None:
    if lane.rate is None:
        return None
    floor = _floor(lane)
    if floor is not None:
        at, fell = floor
        measured = f"the loss lay flat up to step {at} and fell by {fell:.0%} when the rate was brought down (threshold: 25 %)"
        return Verdict("noisy", measured, FLOOR, _rate(path, peak / 3))
    if lane.rate[-1] > 0.5 * peak and m.folds >= ENOUGH and m.share > NOISE and m.fell < FLAT:
        measured = (
            f"a step of the last fifth promised {m.share:.2g} times the loss (threshold: {NOISE:g}), "
            f"and the last quarter brought {max(m.fell, 0):.0%} of it ({FLAT:.0%})"
        )
        return Verdict("noisy", measured, FLOOR, f'{_rate(path, peak / 3)}, or a schedule that decays: schedule.name = "cosine"')
    return None


def _ends_late(lane: Lane, m: Measured, path: str, peak: float) -> Verdict | None:
    if lane.rate is None or len(np.unique(lane.rate)) < 0.5 * len(lane.rate):
        return None  # constant, or stairs
    tenth = max(1, len(lane.rate) // 10)
    ends = lane.rate[-1] / peak
    if lane.rate[-1] > 1.001 * lane.rate[-tenth]:
        return Verdict("ends late", "the rate is still rising at the end", "the recorded rates", f"schedule.warmup = {lane.steps // 20}")
    if lane.rate[-1] < 0.999 * lane.rate[-tenth] and ends > 0.3:
        measured = f"the rate is still falling at the end, at {ends:.0%} of its peak (threshold: 30 %)"
        return Verdict("ends late", measured, "the recorded rates", f"schedule.total = {lane.steps}")
    return None


def _too_low(lane: Lane, m: Measured, path: str, peak: float) -> Verdict | None:
    if _ends_early(lane, m, path, peak) or _stalled(lane, m, path, peak):
        return None
    if m.folds < ENOUGH:
        measured = f"all updates together promised to divide the loss by e {m.folds:.2g} times, at most (threshold: {ENOUGH:g})"
        return Verdict("too low", measured, TAYLOR, _rate(path, peak * min(100.0, max(3.0, 3 * ENOUGH / max(m.folds, 1e-9)))))
    if m.falling > 0.1 and m.sure > 4 and not m.share > NOISE:
        measured = f"the last fifth of the steps brought {m.falling:.0%} of all that was learnt (threshold: 10 %)"
        return Verdict(
            "too low", measured, "an exponential decay that ends has 2 % there", f"{_rate(path, peak * 3)}, or run.steps = {2 * lane.steps}"
        )
    return None


def _over_fits(lane: Lane, m: Measured, path: str, peak: float) -> Verdict | None:
    if len(lane.held_out) < 6:
        return None
    held = np.convolve(lane.held_out, [1 / 3] * 3, "valid")  # a single evaluation may be lucky
    at = int(np.argmin(held))
    risen, step = float(held[-1] - held[at]) / max(abs(float(held[at])), 1e-9), int(lane.held_out_at[at + 1])
    if risen < TURNED:
        return None
    measured = f"the held-out loss was least, {held[at]:.4g}, about step {step} and has risen by {risen:.0%} (threshold: {TURNED:.0%})"
    return Verdict(
        "over-fits", measured, "early stopping by generalisation loss (Prechelt 1998)", f"run.steps = {step}, or more weight decay"
    )


def _died(lane: Lane, m: Measured) -> bool:
    """Whether next to nothing was learnt and a gradient that was there went for good."""
    if lane.grad_norm is None or not m.gain < LITTLE:
        return False
    first, last = float(lane.grad_norm[0]), float(np.median(lane.grad_norm[-(len(lane.grad_norm) // 5) :]))
    return first > VANISHED * m.start and last < DIED * first


def _floor(lane: Lane) -> tuple[int, float] | None:
    """The step at which the rate was brought down, and the share by which the loss, flat before, then fell; None where it did not."""
    at = None if lane.rate is None else _drop(lane.rate)
    if at is None:
        return None
    before, after = lane.loss[at // 2 : at], lane.loss[at + max(1, (len(lane.loss) - at) // 5) :]
    half = max(1, len(before) // 2)
    flat = float(before[:half].mean() - before[-half:].mean()) < 0.25 * float(before[:half].mean())
    fell = 1 - float(after.mean() / before[-half:].mean()) if len(after) else 0.0
    return (at * lane.every, fell) if flat and fell > 0.25 else None


def _drop(rate: np.ndarray) -> int | None:
    """Where the rate falls to a third or less at once, past the first fifth; None where it does not."""
    falls = np.flatnonzero(rate[1:] < rate[:-1] / 3)
    falls = falls[falls > len(rate) // 5]
    return int(falls[0]) + 1 if len(falls) else None


def mismatch(loss: str, targets: Any) -> list[Verdict]:
    """Few integers from 0 up, each of them there, under a loss for amounts."""
    if targets is None or loss not in AMOUNTS:
        return []
    kinds = np.unique(np.asarray(targets).astype(np.float64))
    if not len(kinds) or len(kinds) > MOST_KINDS or not np.array_equal(kinds, np.arange(len(kinds))):
        return []
    measured = f"the targets are the integers 0 to {len(kinds) - 1}, which is what labels look like, and {loss} takes them for amounts"
    fitting = "binary_cross_entropy" if len(kinds) == 2 else "cross_entropy"
    return [Verdict("loss does not fit", measured, "a label's number has no size", f'loss.name = "{fitting}"')]


def ordered(found: list[Verdict]) -> list[Verdict]:
    right = Verdict("right", "none of the thresholds is passed", "", "")
    return sorted(found, key=lambda verdict: list(KINDS).index(verdict.kind)) or [right]


def _rate(path: str, rate: float) -> str:
    return f"{path} = {rate:.2g}" if math.isfinite(rate) else "another rate"
