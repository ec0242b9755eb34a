"""What may be wrong with a run: each rule looks at what was measured and says what it found, by which threshold, and what to try."""

import math
from typing import NamedTuple

import numpy as np

from .curves import Lane, Measured, measure
from .signs import gradient_died, gradient_growth, loss_alone, most_factor, noise_floor, same_batches, training_rose
from .thresholds import (
    DIED,
    EDGE,
    ENOUGH,
    FLAT,
    GROWN,
    LEAP,
    LEARNT,
    LEAST,
    LEVEL,
    LITTLE,
    NEAR,
    NOISE,
    RESTING,
    SAME,
    STEADY,
    TURNED,
    UNANSWERED,
    UNMOVED,
    VANISHED,
    WASTE,
)

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


def judge(lane: Lane, path: str, constant: float = math.nan) -> list[Verdict]:
    """All that is wrong with a lane, what matters most first; [] where nothing is. constant: the loss of the best constant output."""
    peak = float(np.nanmax(lane.rate)) if lane.rate is not None and len(lane.rate) else math.nan
    if lane.diverged_at >= 0:
        return [_diverged(lane, path, peak)]
    if lane.blown >= 0:
        measured = f"the held-out loss was not finite after {lane.blown} of {lane.steps} steps, though the training loss was"
        return [Verdict("diverged", measured, "no number is above infinity", f"look at the held-out data, or {_rate(path, peak, 1 / 3)}")]
    if len(lane.loss) < LEAST:
        advice = f"run.steps = {10 * LEAST * lane.every}"
        return [Verdict("too short", f"recorded steps: {len(lane.loss)} (threshold: {LEAST})", "", advice)]
    m = measure(lane)
    first, rose = float(lane.loss[0]), m.end - m.start
    if rose > (most := max(m.start, abs(first))):
        measured = f"the loss ends at {first + rose:.3g} and began at {first:.3g} (threshold: {most:.3g} above that)"
        return [Verdict("diverged", measured, CLIMB, _rate(path, peak, 1 / 10))]
    stalled = _stalled(lane, m, path, peak, constant)
    rules = (_ends_early, _unstable, _noisy, _ends_late, _over_fits, *(() if stalled else (_too_low,)))
    found = [verdict for verdict in (stalled, *(rule(lane, m, path, peak) for rule in rules)) if verdict is not None]
    # A loss may go on falling at the edge, in the noise or by heart: a higher rate or more steps are then not what it needs.
    return [verdict for verdict in found if verdict.kind != "too low" or not HIGH_OR_LONG & {other.kind for other in found}]


def _diverged(lane: Lane, path: str, peak: float) -> Verdict:
    source = "no number is above infinity; on a quadratic gradient descent grows where the rate is above 2 / the largest eigenvalue"
    if lane.diverged_at == 0:
        measured = "the first step was not finite"
        return Verdict("diverged", measured, source, f"look at the data and the labels, or {_rate(path, peak, 1 / 100)}")
    measured = f"not finite from step {lane.diverged_at} of {lane.steps} on"
    return Verdict(
        "diverged", measured, source, f"{_rate(path, peak, 1 / 10 if lane.diverged_at < lane.steps / 5 else 1 / 3)}, or clip_norm = 1.0"
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


def _stalled(lane: Lane, m: Measured, path: str, peak: float, constant: float) -> Verdict | None:
    """Little gained by small steps, not what they promised, and no better than a constant output."""
    first, moved = float(lane.loss[0]), float(lane.loss[-(len(lane.loss) // 10) :].mean() - lane.loss[0])
    if lane.grad_norm is None and lane.update_norm is None and abs(moved) < UNMOVED * abs(first) and not loss_alone(lane, m):
        measured = f"the loss ends within {UNMOVED:.1%} of where it began, {first:.3g}; there are no norms to say why"
        return Verdict("stalled", measured, CLIMB, f"{_rate(path, peak, 10)}; record grad_norm and update_norm to tell a small rate apart")
    if lane.grad_norm is None or not m.leap < LEAP or gradient_died(lane, m) or _ends_early(lane, m, path, peak):
        return None
    if not (m.gain < LITTLE or math.isfinite(constant)):
        return None
    nothing = _nothing_learnt(lane, m, constant)
    gradient = max(m.settled, 1.0) * float(lane.grad_norm[0]) / m.start  # the larger of the first and the last
    if gradient < VANISHED:
        why: str | None = f"the gradient norm is {gradient:.1e} of the first loss (threshold: {VANISHED:.0e})"
    else:
        why = _came_no_more(lane, m)
    if nothing is None or why is None:
        return None
    advice = "look at the initialisation, the activations and the scale of the inputs: units are dead or saturated"
    return Verdict("stalled", f"{why}, {m.gain:.1%} was learnt, and {nothing}", TAYLOR, advice)


def _came_no_more(lane: Lane, m: Measured) -> str | None:
    """What says that the updates went on without lowering the loss, at a least that is not 0 or where nothing can be learnt; None where
    nothing does.

    Small batches make gradients of noise, which promise what cannot come, so a held-out loss that falls all the time outweighs that.
    """
    quarter = len(lane.loss) // 4
    if m.promised == 0:  # a rate of 0: there was nothing to come
        return None
    if m.settled < DIED:
        return f"the gradient norm fell to {m.settled:.1g} of its first (threshold: {DIED:.0%})"
    # Of a rate that was brought down a loss that levels out says nothing.
    kept = lane.rate is not None and lane.rate[-quarter:].mean() > 0.5 * lane.rate.max()
    if kept and m.late < LEVEL:
        return f"the last quarter brought {max(m.late, 0):.1%} of all that the held-out loss fell by (threshold: {LEVEL:.0%})"
    if kept and same_batches(lane, m) and 0 < m.falling < 0.1:
        return f"the last fifth of the steps brought {m.falling:.1%} of the little that was learnt (threshold: 10 %)"
    if math.isfinite(m.steady) and math.isfinite(m.heard):
        return f"the held-out loss fell in {m.steady:.0%} of the evaluations (threshold: {STEADY:.0%})" if m.steady <= STEADY else None
    if m.answered + 2 * m.error < UNANSWERED:
        return f"of what the updates promised {max(m.answered, 0):.1%} came, {m.error:.1%} for noise (threshold: {UNANSWERED:.0%})"
    if m.heard < UNANSWERED and m.answered - 2 * m.error < UNANSWERED:
        return f"of what the updates promised {max(m.heard, 0):.1%} came in the held-out loss (threshold: {UNANSWERED:.0%})"
    return None


def _nothing_learnt(lane: Lane, m: Measured, constant: float) -> str | None:
    """What says that nothing of the inputs was learnt; None where something was, as at the least of a task whose targets are mostly noise.

    The loss of the best constant output tells, where it is known. If not, few different held-out accuracies do, which outputs that go by
    the inputs seldom have, or a loss that fell by less than one batch differs from another.
    """
    half = lane.loss[len(lane.loss) // 2 :]
    noise = float(half.std())
    if math.isfinite(constant):
        if float(half.mean()) + max(3 * noise / math.sqrt(len(half)), SAME * constant) < constant:
            return None
        if m.gain > LITTLE and float(half.mean()) > NEAR * constant:
            return None
        return f"the loss, {half.mean():.4g}, is not below that of a constant output, {constant:.4g}"
    if lane.grad_norm is not None and lane.grad_norm[0] > 0 and m.settled < RESTING and same_batches(lane, m) and m.gain > VANISHED:
        return None  # it fell, and smoothly came to rest: this is a least
    if 0 < 5 * lane.accuracies <= len(lane.held_out):  # constant outputs have that of one class or another
        return f"the held-out accuracy had {lane.accuracies} values in {len(lane.held_out)} evaluations (threshold: a fifth)"
    if m.gain * m.start < max(LEARNT * m.start, noise):
        return f"the loss fell by {m.gain:.1%} (threshold: {LEARNT:.0%}, or a batch's noise, {noise / m.start:.1%})"
    return None


def _unstable(lane: Lane, m: Measured, path: str, peak: float) -> Verdict | None:
    waste = m.promised / max(m.gain, 1e-9) / (len(lane.loss) * lane.every)
    if m.gain < LITTLE and m.leap >= LEAP:
        measured = f"{m.gain:.1%} was learnt, with steps that promised up to {m.leap:.2g} times the loss (threshold: {LEAP:g})"
    elif gradient_died(lane, m):
        measured = (
            f"{m.gain:.1%} was learnt, and the gradient norm fell under {DIED:.0%} of its first, {m.settled:.1g}, other than at a least: "
            "the steps have put units to sleep"
        )
    elif (grown := gradient_growth(lane)) > GROWN:
        measured = (
            f"the gradient norm grew at every step of the last fifth, by {grown:.2g} times in all (threshold: {GROWN:g}): "
            "on a quadratic it does so only above 2 / the largest eigenvalue"
        )
    elif noise_floor(lane) is not None:  # what the rate itself has shown
        return None
    elif waste > WASTE and m.leap >= LEAP:
        measured = f"a step promised {waste:.3g} times all that was learnt, on average (threshold: {WASTE:g})"
    elif m.share > EDGE:
        measured = f"a step of the last fifth promised {m.share:.3g} times the loss, on average (threshold: {EDGE:g})"
    elif math.isnan(m.leap) and (said := loss_alone(lane, m)):
        measured = said
    elif m.peak > 1.5 and m.leap >= LEAP:  # small steps do not throw a loss up: the first batch was an easy one
        first, most = float(lane.loss[0]), float(lane.loss[len(lane.loss) // 10 :].max())
        measured = (
            f"the loss jumped to {most:.3g} after a tenth of the steps, and began at {first:.3g} (threshold: {first + m.start / 2:.3g})"
        )
    else:
        return None
    return Verdict("unstable", measured, POLYAK, _rate(path, peak, 1 / 4))


def _noisy(lane: Lane, m: Measured, path: str, peak: float) -> Verdict | None:
    if lane.rate is None:
        return None
    floor = noise_floor(lane)
    if floor is not None:
        at, fell = floor
        measured = f"the loss lay flat up to step {at} and fell by {fell:.0%} when the rate was brought down (threshold: 25 %)"
        return Verdict("noisy", measured, FLOOR, _rate(path, peak, 1 / 3))
    if lane.stopped and lane.rate[-1] < lane.rate[len(lane.rate) // 2]:  # it would have come down
        return None
    if lane.rate[-1] > 0.5 * peak and m.folds >= ENOUGH and m.share > NOISE and m.fell < FLAT:
        measured = (
            f"a step of the last fifth promised {m.share:.2g} times the loss (threshold: {NOISE:g}), "
            f"and the last quarter brought {max(m.fell, 0):.0%} of it ({FLAT:.0%})"
        )
        return Verdict("noisy", measured, FLOOR, f'{_rate(path, peak, 1 / 3)}, or a schedule that decays: schedule.name = "cosine"')
    return None


def _ends_late(lane: Lane, m: Measured, path: str, peak: float) -> Verdict | None:
    """The schedule's own number of steps says it; where that is not known, the rate of a run that went to its end."""
    if lane.rate is None or not peak > 0 or (lane.stopped and not lane.total > lane.steps):
        return None
    tenth = max(1, len(lane.rate) // 10)
    ends = lane.rate[-1] / peak
    if lane.total > lane.steps and lane.rate[-1] <= lane.rate[-tenth] and ends > 0.3:
        measured = (
            f"the schedule takes {lane.total:.6g} steps and the run {lane.steps}: its last rate is {ends:.0%} of the peak (threshold: 30 %)"
        )
        return Verdict("ends late", measured, "the schedule and the recorded rates", f"schedule.total = {lane.steps}")
    if lane.stopped or len(np.unique(lane.rate)) < 0.5 * len(lane.rate):
        return None  # cut short, constant, or stairs
    if lane.rate[-1] > 1.001 * lane.rate[-tenth]:
        return Verdict("ends late", "the rate is still rising at the end", "the recorded rates", f"schedule.warmup = {lane.steps // 20}")
    if lane.rate[-1] < 0.999 * lane.rate[-tenth] and ends > 0.3:
        measured = f"the rate is still falling at the end, at {ends:.0%} of its peak (threshold: 30 %)"
        return Verdict("ends late", measured, "the recorded rates", f"schedule.total = {lane.steps}")
    return None


def _too_low(lane: Lane, m: Measured, path: str, peak: float) -> Verdict | None:
    if _ends_early(lane, m, path, peak):
        return None
    longer = f"run.steps = {2 * lane.steps}"
    # A lane that was stopped is judged by what its steps would have promised by the end.
    folds = m.folds * lane.steps / (len(lane.loss) * lane.every) if lane.stopped else m.folds
    if folds < ENOUGH and not _came_no_more(lane, m):  # at a least that is not 0 there is no more to promise
        measured = f"all updates together promised to divide the loss by e {folds:.2g} times, at most (threshold: {ENOUGH:g})"
        factor = min(100.0, max(3.0, 3 * ENOUGH / max(folds, 1e-9)), 0.9 * most_factor(lane))
        higher = _rate(path, peak, factor) + (
            ", or lossopt find-lr: how high it may go, so low a rate does not show" if factor > 10 else ""
        )
        return Verdict("too low", measured, TAYLOR, higher if factor > 1.1 else longer)
    if m.falling > 0.1 and m.sure > 4 and not m.share > NOISE and not lane.stopped:
        measured = f"the last fifth of the steps brought {m.falling:.0%} of all that was learnt (threshold: 10 %)"
        factor = min(3.0, 0.9 * most_factor(lane))
        advice = f"{_rate(path, peak, factor)}, or {longer}" if factor > 1.1 else longer
        return Verdict("too low", measured, "an exponential decay that ends has 2 % there", advice)
    return None


def _over_fits(lane: Lane, m: Measured, path: str, peak: float) -> Verdict | None:
    if len(lane.held_out) < 6:  # also of a lane that was stopped: its held-out loss turned before that
        return None
    several = max(3, len(lane.held_out) // 8)  # a single evaluation may be lucky, and the more of them the luckier
    held = np.convolve(lane.held_out, np.full(several, 1 / several), "valid")
    at = int(np.argmin(held))
    risen, step = float(held[-1] - held[at]) / max(abs(float(held[at])), 1e-9), int(lane.held_out_at[at + several // 2])
    steps = np.diff(lane.held_out)  # the median, since the first of them are the fall
    noise = 1.48 * float(np.median(np.abs(steps - np.median(steps)))) / math.sqrt(several)  # of the difference of two such means
    if risen < TURNED or held[-1] - held[at] < 3 * noise or training_rose(lane, at, several) > 0.5 * (held[-1] - held[at]):
        return None
    measured = f"the held-out loss was least, {held[at]:.4g}, about step {step} and has risen by {risen:.0%} (threshold: {TURNED:.0%})"
    return Verdict(
        "over-fits", measured, "early stopping by generalisation loss (Prechelt 1998)", f"run.steps = {step}, or more weight decay"
    )


def ordered(found: list[Verdict], lane: Lane) -> list[Verdict]:
    blind = lane.grad_norm is None or lane.update_norm is None
    said = "of the thresholds that the loss alone can pass none is passed; record grad_norm and update_norm for the others"
    right = Verdict("right", said if blind else "none of the thresholds is passed", "", "")
    return sorted(found, key=lambda verdict: list(KINDS).index(verdict.kind)) or [right]


def _rate(path: str, peak: float, factor: float) -> str:
    if peak == 0:
        return f"{path} above 0"
    if math.isfinite(peak):
        return f"{path} = {peak * factor:.2g}"
    return f"{path} {f'{factor:.2g} times as high' if factor > 1 else f'{1 / factor:.2g} times lower'}"
