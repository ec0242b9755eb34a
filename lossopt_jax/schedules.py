"""Learning-rate schedules: `name(step, *, numbers) -> lr`, float32, defined at every step from 0 to 2**31 - 1.

`step` is an int, an int32 array of any shape, a float (time within a step) or a tracer; below 0 it counts as 0. Every number
may be traced. The names mean the same in every schedule:

    init     the learning rate at step 0
    peak     the highest learning rate, reached exactly at step == warmup
    floor    where a decay ends, exactly, and below which it never is (a warm-up may start below it, at `init`)
    warmup   steps from `init` to `peak`; 0: `peak` at once; beyond `total`: cut there
    total    the step, counted from 0 with the warm-up in it, from which on the value is `floor`; 0: `floor` at once
    factor   what the value is multiplied by, `every` so many steps
    period   steps of one cycle; `decay` multiplies the height of each cycle over the one before

Numbers of steps may have fractions, as in a sweep; a negative one counts as 0. They are float32, so a whole number above 2**24
is rounded before it gets here. The step never is: it is subtracted and divided as an integer, and rounded once, after that.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from ._types import Scalar, Schedule, Vector

__all__ = [
    "constant",
    "cosine",
    "cosine_restarts",
    "cyclic",
    "exponential",
    "inverse_sqrt",
    "join",
    "linear",
    "one_cycle",
    "piecewise_constant",
    "polynomial",
    "step_decay",
    "warmup_constant",
    "warmup_cosine",
    "warmup_exponential",
    "warmup_linear",
    "wsd",
]

# The number of a schedule that a constant rate stands for: the first of these that it has.
LEADING = ("peak", "value", "init", "values")

_LAST = 2.0**31 - 128  # the largest float32 that an int32 holds


def constant(step: ArrayLike, *, value: Scalar) -> jax.Array:
    """The same learning rate at every step: `value` at 0, at the peak and at the end. optax: constant_schedule.

    >>> constant(7, value=0.1)
    Array(0.1, dtype=float32)
    """
    return jnp.broadcast_to(jnp.asarray(value, jnp.float32), jnp.shape(step))


def step_decay(step: ArrayLike, *, init: Scalar, factor: Scalar = 0.1, every: Scalar, floor: Scalar = 0.0) -> jax.Array:
    """Multiplied by `factor` once every `every` steps: max(floor, init factor^n), n = floor(step / every).

    At 0 and at the peak `init`; in the end `floor`, as at once for every = 0. A factor above 1 grows to 1e26 init at most.
    torch: StepLR(step_size=every, gamma=factor). optax: exponential_decay(transition_steps, decay_rate, staircase=True).

    >>> step_decay(jnp.array([0, 9, 10, 25]), init=1.0, factor=0.5, every=10)
    Array([1.  , 1.  , 0.5 , 0.25], dtype=float32)
    """
    init, factor, every, floor = _float32(init, factor, every, floor)
    cycle, _, _ = _divmod(_clock(step), every)
    return jnp.where(every > 0, _at_least(floor, init * _power(factor, cycle)), floor)


def piecewise_constant(step: ArrayLike, *, boundaries: Vector, values: Vector) -> jax.Array:
    """values[i], with i the number of `boundaries` [k] that the step has reached; `values` has shape [k + 1].

    At 0 `values[0]` (a boundary at 0 is reached at 0), in the end `values[-1]`. The order of the boundaries does not matter.
    torch: MultiStepLR (values[i] = lr gamma^i). optax: piecewise_constant_schedule (which takes ratios of values).

    >>> piecewise_constant(jnp.array([0, 10, 19, 99]), boundaries=[10, 20], values=[1.0, 0.5, 0.1])
    Array([1. , 0.5, 0.5, 0.1], dtype=float32)
    """
    boundaries, values = _float32(boundaries, values)
    if boundaries.ndim != 1 or values.shape != (boundaries.size + 1,):
        raise ValueError(f"piecewise_constant: boundaries [k] and values [k + 1], got {boundaries.shape} and {values.shape}")
    clock = _clock(jnp.asarray(step)[..., None])
    reached = _until(clock, boundaries.reshape((1,) * jnp.ndim(step) + (-1,))) <= 0
    return jnp.take(values, reached.sum(-1, dtype=jnp.int32), mode="clip")


def exponential(step: ArrayLike, *, init: Scalar, factor: Scalar, every: Scalar = 1.0, floor: Scalar = 0.0) -> jax.Array:
    """Multiplied by `factor` over every `every` steps, smoothly: max(floor, init factor^(step / every)).

    At 0 and at the peak `init`; in the end `floor`, as at once for every = 0. A factor above 1 grows to 1e26 init at most.
    torch: ExponentialLR(gamma=factor). optax: exponential_decay(transition_steps=every, decay_rate=factor, end_value=floor).

    >>> exponential(jnp.array([0, 1, 2]), init=1.0, factor=0.5)
    Array([1.  , 0.5 , 0.25], dtype=float32)
    """
    init, factor, every, floor = _float32(init, factor, every, floor)
    return jnp.where(every > 0, _at_least(floor, init * _exponential(_clock(step), factor, every)), floor)


def polynomial(step: ArrayLike, *, init: Scalar, total: Scalar, power: Scalar = 1.0, floor: Scalar = 0.0) -> jax.Array:
    """A power of the time left: floor + (init - floor) ((total - step) / total)^power.

    At 0 and at the peak `init`; from `total` on `floor`. A power of 0 (or less) holds `init` until then.
    torch: PolynomialLR(total_iters=total, power). optax: polynomial_schedule(init, floor, power, total), NaN at its end for power < 1.

    >>> polynomial(jnp.array([0, 5, 10]), init=1.0, total=10, power=2.0)
    Array([1.  , 0.25, 0.  ], dtype=float32)
    """
    init, total, power, floor = _float32(init, total, power, floor)
    left = _left(_until(_clock(step), total), total)
    alive = left > 0
    weight = jnp.where(alive, jnp.where(alive, left, 1.0) ** jnp.where(power > 0, power, 0.0), 0.0)
    return _between(floor, init, weight)


def linear(step: ArrayLike, *, init: Scalar, total: Scalar, floor: Scalar = 0.0) -> jax.Array:
    """A straight line: floor + (init - floor) (total - step) / total.

    At 0 and at the peak `init`; from `total` on `floor` (which may be the higher one: a rise).
    torch: LinearLR(start_factor=init / lr, end_factor=floor / lr, total_iters=total). optax: linear_schedule.

    >>> linear(jnp.array([0, 5, 10]), init=1.0, total=10)
    Array([1. , 0.5, 0. ], dtype=float32)
    """
    init, total, floor = _float32(init, total, floor)
    return _between(floor, init, _left(_until(_clock(step), total), total))


def cosine(step: ArrayLike, *, init: Scalar, total: Scalar, floor: Scalar = 0.0) -> jax.Array:
    """Half a cosine: floor + (init - floor) (1 + cos(pi step / total)) / 2 (Loshchilov & Hutter 2017, arXiv:1608.03983).

    At 0 and at the peak `init`; from `total` on `floor`. optax: cosine_decay_schedule(init, total, alpha=floor / init).
    torch: CosineAnnealingLR(T_max=total, eta_min=floor), which rises again after T_max; this one stays.

    >>> cosine(jnp.array([0, 5, 10]), init=1.0, total=10).round(3)
    Array([1. , 0.5, 0. ], dtype=float32)
    """
    init, total, floor = _float32(init, total, floor)
    return _between(floor, init, _half_cosine(_left(_until(_clock(step), total), total)))


def cosine_restarts(
    step: ArrayLike, *, init: Scalar, period: Scalar, growth: Scalar = 1.0, decay: Scalar = 1.0, floor: Scalar = 0.0
) -> jax.Array:
    """SGDR: cosines from `init` to `floor`, each `growth` times as long as the last (Loshchilov & Hutter 2017, arXiv:1608.03983).

    floor + (init - floor) decay^n (1 + cos(pi done / length)) / 2 in cycle n of length period growth^n, `done` steps after it began.
    At 0 `init`; at each restart floor + (init - floor) decay^n; just before one, nearly `floor`; there at once for period = 0.
    A growth below 1 counts as 1. For a fractional one (or a period below 1) the phase is good to about 3e-7 growth / (growth - 1).
    torch: CosineAnnealingWarmRestarts(T_0=period, T_mult=growth, eta_min=floor), decay = 1. optax: sgdr_schedule (a list of cycles).

    >>> cosine_restarts(jnp.array([0, 5, 10, 20, 30]), init=1.0, period=10, growth=2.0, decay=0.5).round(3)
    Array([1.  , 0.5 , 0.5 , 0.25, 0.25], dtype=float32)
    """
    init, period, growth, decay, floor = _float32(init, period, growth, decay, floor)
    cycle, left = _growing_cycles(_clock(step), period, growth)
    return _between(floor, init, jnp.where(period > 0, _half_cosine(left) * _power(decay, cycle), 0.0))


def warmup_cosine(step: ArrayLike, *, peak: Scalar, warmup: Scalar, total: Scalar, floor: Scalar = 0.0, init: Scalar = 0.0) -> jax.Array:
    """A line up to `peak`, then half a cosine down (Loshchilov & Hutter 2017; warm-up of Goyal et al. 2017, arXiv:1706.02677).

    init + (peak - init) step / warmup, then floor + (peak - floor) (1 + cos(pi (step - warmup) / (total - warmup))) / 2.
    At 0 `init`; at `warmup` `peak`; from `total` on `floor`. optax: warmup_cosine_decay_schedule(decay_steps=total, end_value=floor).
    torch: SequentialLR of LinearLR and CosineAnnealingLR. Transformers: get_cosine_schedule_with_warmup.

    >>> warmup_cosine(jnp.array([0, 50, 100, 300, 500]), peak=1.0, warmup=100, total=500).round(3)
    Array([0. , 0.5, 1. , 0.5, 0. ], dtype=float32)
    """
    peak, warmup, total, floor, init = _float32(peak, warmup, total, floor, init)
    clock = _clock(step)
    left = _left(_until(clock, total), total - _positive(warmup))
    return _peaked(_share(_real(clock), warmup), _half_cosine(left), init, peak, floor)


def warmup_linear(step: ArrayLike, *, peak: Scalar, warmup: Scalar, total: Scalar, floor: Scalar = 0.0, init: Scalar = 0.0) -> jax.Array:
    """A line up to `peak`, then a line down to `floor` (Devlin et al. 2018, arXiv:1810.04805).

    init + (peak - init) step / warmup, then floor + (peak - floor) (total - step) / (total - warmup).
    At 0 `init`; at `warmup` `peak`; from `total` on `floor`. Transformers: get_linear_schedule_with_warmup.
    torch: SequentialLR of two LinearLR. optax: join_schedules of two linear_schedule.

    >>> warmup_linear(jnp.array([0, 50, 100, 300, 500]), peak=1.0, warmup=100, total=500)
    Array([0. , 0.5, 1. , 0.5, 0. ], dtype=float32)
    """
    peak, warmup, total, floor, init = _float32(peak, warmup, total, floor, init)
    clock = _clock(step)
    left = _left(_until(clock, total), total - _positive(warmup))
    return _peaked(_share(_real(clock), warmup), left, init, peak, floor)


def warmup_constant(step: ArrayLike, *, peak: Scalar, warmup: Scalar, init: Scalar = 0.0) -> jax.Array:
    """A line up to `peak`, where it stays: init + (peak - init) min(1, step / warmup).

    At 0 `init`; from `warmup` on, so at the end, `peak`. torch: LinearLR(total_iters=warmup), ConstantLR is a jump instead.
    optax: warmup_constant_schedule, which for warmup = 0 stays at init for ever; this one is at `peak` at once.

    >>> warmup_constant(jnp.array([0, 5, 10, 99]), peak=1.0, warmup=10)
    Array([0. , 0.5, 1. , 1. ], dtype=float32)
    """
    peak, warmup, init = _float32(peak, warmup, init)
    return _between(init, peak, _share(_real(_clock(step)), warmup))


def warmup_exponential(
    step: ArrayLike,
    *,
    peak: Scalar,
    warmup: Scalar,
    factor: Scalar,
    every: Scalar = 1.0,
    floor: Scalar = 0.0,
    init: Scalar = 0.0,
) -> jax.Array:
    """A line up to `peak`, then multiplied by `factor` over every `every` steps: max(floor, peak factor^((step - warmup) / every)).

    At 0 `init`; at `warmup` `peak`; in the end `floor`, as right after the warm-up for every = 0. A factor above 1 grows to
    1e26 peak at most. torch: SequentialLR of LinearLR and ExponentialLR. optax: warmup_exponential_decay_schedule.

    >>> warmup_exponential(jnp.array([0, 5, 10, 20]), peak=1.0, warmup=10, factor=0.5, every=10)
    Array([0. , 0.5, 1. , 0.5], dtype=float32)
    """
    peak, warmup, factor, every, floor, init = _float32(peak, warmup, factor, every, floor, init)
    clock = _clock(step)
    fall = _at_least(floor, peak * _exponential(_after(clock, warmup), factor, every))
    fall = jnp.where((every > 0) | (_until(clock, warmup) > 0), fall, floor)
    return _rising(_share(_real(clock), warmup), init, peak, fall)


def inverse_sqrt(step: ArrayLike, *, peak: Scalar, warmup: Scalar, floor: Scalar = 0.0, init: Scalar = 0.0) -> jax.Array:
    """A line up to `peak`, then falling as one over the root of the step: max(floor, peak sqrt(warmup / step)).

    At 0 `init`; at `warmup` `peak`; in the end `floor`, or towards 0. The decay takes a warm-up below 1 as 1.
    The Transformer's (Vaswani et al. 2017, arXiv:1706.03762): its peak is (d_model warmup)^-0.5. Not in torch or optax.

    >>> inverse_sqrt(jnp.array([0, 50, 100, 400]), peak=1.0, warmup=100)
    Array([0. , 0.5, 1. , 0.5], dtype=float32)
    """
    peak, warmup, floor, init = _float32(peak, warmup, floor, init)
    elapsed = _real(_clock(step))
    begun = jnp.where(warmup > 1, warmup, 1.0)
    fall = _at_least(floor, peak * jnp.sqrt(begun / jnp.where(elapsed > begun, elapsed, begun)))
    return _rising(_share(elapsed, warmup), init, peak, fall)


def one_cycle(
    step: ArrayLike,
    *,
    peak: Scalar,
    total: Scalar,
    pct_start: Scalar = 0.3,
    div_factor: Scalar = 25.0,
    final_div_factor: Scalar = 1e4,
) -> jax.Array:
    """Half a cosine up during `pct_start` of `total`, half a cosine down for the rest (Smith 2018, arXiv:1803.09820).

    At 0 peak / div_factor; at pct_start total `peak`; from `total` on peak / div_factor / final_div_factor.
    optax: cosine_onecycle_schedule(total, peak), the same for a whole pct_start total. torch: OneCycleLR(total_steps=N) ends one
    step early: total = N - 1 and pct_start = (pct N - 1) / (N - 1) give its curve.

    >>> one_cycle(jnp.array([0, 30, 65, 100]), peak=1.0, total=100).round(3)
    Array([0.04, 1.  , 0.5 , 0.  ], dtype=float32)
    """
    peak, total, pct_start, div_factor, final_div_factor = _float32(peak, total, pct_start, div_factor, final_div_factor)
    clock = _clock(step)
    warmup = _positive(pct_start) * _positive(total)
    rise = _half_cosine(_share(_real(clock), warmup))
    fall = _half_cosine(_left(_until(clock, total), total - warmup))
    init = peak / div_factor
    return _peaked(rise, fall, init, peak, init / final_div_factor)


def cyclic(
    step: ArrayLike, *, peak: Scalar, period: Scalar, up: Scalar | None = None, decay: Scalar = 1.0, floor: Scalar = 0.0
) -> jax.Array:
    """Triangles: `up` steps (None: half the period) from `floor` to the top, then back, for ever (Smith 2017, arXiv:1506.01186).

    The top of cycle n is floor + (peak - floor) min(1, decay^n). At 0 and between cycles `floor`; at `up` `peak`; it has no end.
    up = 0 starts each cycle at its top; beyond the period it counts as the period. A period of 0 is `floor` for ever.
    torch: CyclicLR(floor, peak, step_size_up=up, step_size_down=period - up); "triangular2" is decay = 0.5. Not in optax.

    >>> cyclic(jnp.array([0, 5, 10, 20, 30]), peak=1.0, period=20, decay=0.5)
    Array([0. , 0.5, 1. , 0. , 0.5], dtype=float32)
    """
    peak, period, decay, floor = _float32(peak, period, decay, floor)
    up = period / 2 if up is None else _positive(jnp.asarray(up, jnp.float32))
    up = jnp.where(up < period, up, period)
    cycle, done, left = _divmod(_clock(step), period)
    weight = jnp.where(done < up, _share(done, up), _share(left, period - up)) * _power(decay, cycle)
    return _between(floor, peak, jnp.where(period > 0, weight, 0.0))


def wsd(
    step: ArrayLike,
    *,
    peak: Scalar,
    warmup: Scalar,
    total: Scalar,
    cooldown: Scalar,
    floor: Scalar = 0.0,
    init: Scalar = 0.0,
) -> jax.Array:
    """Warm-up, stable, decay: a line up, `peak` held, a line down over the last `cooldown` steps (Hu et al. 2024, arXiv:2404.06395).

    At 0 `init`; from `warmup` to total - cooldown `peak`; from `total` on `floor`. A cool-down that would begin within the warm-up
    begins after it. Hu et al. decay exponentially; the line is Hägele et al.'s (2024, arXiv:2405.18392). Not in torch or optax.

    >>> wsd(jnp.array([0, 5, 10, 80, 90, 100]), peak=1.0, warmup=10, total=100, cooldown=20)
    Array([0. , 0.5, 1. , 1. , 0.5, 0. ], dtype=float32)
    """
    peak, warmup, total, cooldown, floor, init = _float32(peak, warmup, total, cooldown, floor, init)
    clock = _clock(step)
    room = total - _positive(warmup)
    left = _left(_until(clock, total), jnp.where(cooldown < room, cooldown, room))
    return _peaked(_share(_real(clock), warmup), left, init, peak, floor)


def join(step: ArrayLike, *, schedules: Sequence[Schedule], boundaries: Vector) -> jax.Array:
    """Schedules in turn: the i-th from `boundaries[i - 1]` on, called with the steps since then. `boundaries` [k - 1], rising.

    A boundary within a step counts from the next whole one. At 0 the first schedule's value at 0; in the end the last one's.
    `schedules`: k bound schedules, or functions of the step. torch: SequentialLR. optax: join_schedules.

    >>> from functools import partial
    >>> parts = [partial(linear, init=0.0, floor=1.0, total=10), partial(cosine, init=1.0, total=20)]
    >>> join(jnp.array([0, 5, 10, 20, 30]), schedules=parts, boundaries=[10]).round(3)
    Array([0. , 0.5, 1. , 0.5, 0. ], dtype=float32)
    """
    (starts,) = _float32(boundaries)
    if starts.shape != (len(schedules) - 1,):
        raise ValueError(f"join: {len(schedules)} schedules need boundaries of shape ({len(schedules) - 1},), got {starts.shape}")
    step = jnp.asarray(step)
    clock = _clock(step)
    lr = jnp.broadcast_to(jnp.asarray(schedules[0](step), jnp.float32), step.shape)
    for schedule, start in zip(schedules[1:], jnp.ceil(starts), strict=True):
        since = _after(clock, start)
        local = _real(since) if jnp.issubdtype(step.dtype, jnp.floating) else since.whole
        lr = jnp.where(_until(clock, start) > 0, lr, jnp.asarray(schedule(local), jnp.float32))
    return lr


class _Clock(NamedTuple):
    """A time: a whole number of steps >= 0 in int32, and a fraction of one. float32 alone loses single steps from 2**24 on."""

    whole: jax.Array
    part: jax.Array | float


def _clock(step: ArrayLike) -> _Clock:
    step = jnp.asarray(step)
    if not jnp.issubdtype(step.dtype, jnp.floating):
        return _Clock(jnp.maximum(step.astype(jnp.int32), 0), 0.0)
    step = step.astype(jnp.float32)
    step = jnp.where(step > 0, jnp.where(step < _LAST, step, _LAST), 0.0)
    return _Clock(step.astype(jnp.int32), step - jnp.floor(step))


def _real(clock: _Clock) -> jax.Array:
    return clock.whole.astype(jnp.float32) + clock.part


def _until(clock: _Clock, stop: jax.Array) -> jax.Array:
    """stop - step, rounded once; its sign is exact."""
    whole = jnp.clip(jnp.floor(stop), 0.0, _LAST)
    return (whole.astype(jnp.int32) - clock.whole).astype(jnp.float32) + ((stop - whole) - clock.part)


def _after(clock: _Clock, start: jax.Array) -> _Clock:
    """The time since `start`, 0 before it."""
    whole = jnp.clip(jnp.floor(start), 0.0, _LAST)
    part = clock.part - (_positive(start) - whole)
    borrow = part < 0
    begun = _until(clock, start) <= 0
    since = clock.whole - whole.astype(jnp.int32) - borrow
    return _Clock(jnp.where(begun, since, 0), jnp.where(begun, jnp.where(borrow, part + 1.0, part), 0.0))


def _divmod(clock: _Clock, every: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(n, done, left): whole periods of `every` steps until now, steps since the last ended, steps to the end of this one.

    Exact in the period, and one rounding in the steps, for any `every` > 0 (for others the numbers are finite and mean nothing).
    """
    every = jnp.where(every > 0, every, 1.0)
    is_whole = every == jnp.floor(every)
    held = jnp.where(is_whole, jnp.where(every < _LAST, every, _LAST), 1.0)
    whole = held.astype(jnp.int32)
    count = jnp.where(every > _LAST, 0, lax.div(*jnp.broadcast_arrays(clock.whole, whole)))
    rest = clock.whole - count * whole
    # A fractional `every` is below 2**24, so it and both parts of the step are multiples of its last bit. So are the remainders:
    # the comparison and the sums below are then exact, as fmod always is.
    high = (clock.whole & ~0xFFF).astype(jnp.float32)
    low = (clock.whole & 0xFFF).astype(jnp.float32) + clock.part
    a, b = jnp.fmod(high, every), jnp.fmod(low, every)
    over = a >= every - b
    remainder = jnp.where(over, a - (every - b), a + b)
    quotient = jnp.round((high - a) / every) + jnp.round((low - b) / every) + over
    n = jnp.where(is_whole, count.astype(jnp.float32), quotient)
    done = jnp.where(is_whole, rest.astype(jnp.float32) + clock.part, remainder)
    left = jnp.where(is_whole, (whole - rest).astype(jnp.float32) + ((every - held) - clock.part), every - remainder)
    n, done, left = lax.stop_gradient((n, done, left))
    moved = _gradient_only(clock.part - n * every)
    return n, done + moved, left + _gradient_only(every) - moved


def _growing_cycles(clock: _Clock, period: jax.Array, growth: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(n, share left of cycle n), where cycle n has length period growth^n and so begins at period (1 + growth + ... + growth^(n-1))."""
    count, _, left = _divmod(clock, period)
    alike = _share(left, period)
    period = jnp.where(period > 0, period, 1.0)
    g = jnp.where(growth > 1, growth, 2.0)
    now, fixed = _real(clock), lax.stop_gradient(g)
    whole_growth = fixed == jnp.floor(fixed)
    base = jnp.where(whole_growth, jnp.clip(jnp.floor(period), 0.0, _LAST), 0.0)
    # The logarithm finds the cycle to within one, k or k + 1; the end of cycle k says which.
    k = jnp.maximum(jnp.round(jnp.log1p(now * ((g - 1.0) / period)) / jnp.log(g)) - 1.0, 0.0)
    k = lax.stop_gradient(k)
    ratio = jnp.where(whole_growth & (fixed < _LAST), fixed, 2.0).astype(jnp.int32)
    exact = _geometric_sum(ratio, jnp.minimum(k, 31.0).astype(jnp.int32))
    sums = jnp.where(whole_growth & (k < 32), exact.astype(jnp.float32), jnp.expm1(k * jnp.log(fixed)) / (fixed - 1.0))

    def until(exact: jax.Array, sums: jax.Array) -> jax.Array:
        # Integers may wrap: near the step, where they are used, their difference is right all the same.
        rest = (period - base) * sums
        whole = jnp.clip(jnp.floor(rest), 0.0, _LAST)
        near = (base.astype(jnp.int32) * exact + whole.astype(jnp.int32) - clock.whole).astype(jnp.float32) + ((rest - whole) - clock.part)
        far = period * sums - now
        return jnp.where(jnp.abs(far) < 2.0**30, near, far)

    exact, after = 1 + ratio * exact, 1.0 + fixed * sums
    end = until(exact, after)
    passed = end <= 0
    n = k + passed
    end = lax.stop_gradient(jnp.where(passed, until(1 + ratio * exact, 1.0 + fixed * after), end))
    sums = lax.stop_gradient(jnp.where(passed, after, sums)) + _gradient_only(jnp.expm1(n * jnp.log(g)) / (g - 1.0))
    end = end + _gradient_only(period * (1.0 + g * sums) - clock.part)
    growing = growth > 1
    return jnp.where(growing, n, count), jnp.where(growing, _left(end, period * (1.0 + (g - 1.0) * sums)), alike)


def _geometric_sum(ratio: jax.Array, count: jax.Array) -> jax.Array:
    """1 + ratio + ... + ratio^(count - 1) for a count below 32, in int32: by the bits of `count`, since S(a + b) = S(a) + ratio^a S(b)."""
    total, power = jnp.zeros_like(count), jnp.ones_like(count)
    block, factor = jnp.ones_like(ratio), ratio
    for bit in range(5):
        taken = (count >> bit) & 1 == 1
        total, power = jnp.where(taken, total + power * block, total), jnp.where(taken, power * factor, power)
        block, factor = block + factor * block, factor * factor
    return total


def _share(part: jax.Array, whole: jax.Array) -> jax.Array:
    """part / whole for part >= 0, at most 1; 1 where whole is 0 or less."""
    inside = part < whole
    return jnp.where(inside, part / jnp.where(inside, whole, 1.0), 1.0)


def _left(part: jax.Array, whole: jax.Array) -> jax.Array:
    """part / whole between 0 and 1, for a time left; 0 where none is, whatever the whole."""
    return jnp.where(part > 0, _share(_positive(part), whole), 0.0)


def _half_cosine(share: jax.Array) -> jax.Array:
    # sin^2(x / 2) = (1 - cos x) / 2 without its cancellation at the end of a decay.
    return jnp.sin(jnp.float32(math.pi / 2) * share) ** 2


def _between(low: jax.Array, high: jax.Array, weight: jax.Array) -> jax.Array:
    # Both ends exact, and in float32 never outside of them: rounded (high - low) times a float32 below 1 is at most high - low.
    return jnp.where(weight < 1, low + weight * (high - low), high)


def _rising(rise: jax.Array, init: jax.Array, peak: jax.Array, fall: jax.Array) -> jax.Array:
    return jnp.where(rise < 1, init + rise * (peak - init), fall)


def _peaked(rise: jax.Array, left: jax.Array, init: jax.Array, peak: jax.Array, floor: jax.Array) -> jax.Array:
    """Up while `rise` < 1 and anything is left, else down with what is left: a warm-up beyond the total is cut there."""
    return jnp.where((rise < 1) & (left > 0), init + rise * (peak - init), _between(floor, peak, left))


def _power(base: jax.Array, exponent: jax.Array) -> jax.Array:
    """base ** exponent for exponent >= 0, at most e^60 so that its gradients are finite at any step; a base below 0 counts as 0."""
    alive = base > 0
    base = jnp.where(alive, base, 1.0)
    capped = exponent * jnp.log(base) > 60.0
    power = jnp.where(capped, jnp.float32(math.exp(60)), base ** jnp.where(capped, 0.0, exponent))
    return jnp.where(alive, power, jnp.where(exponent > 0, 0.0, 1.0))


def _exponential(clock: _Clock, factor: jax.Array, every: jax.Array) -> jax.Array:
    # Whole periods apart from the rest: a rounded step / every would cost log(factor^(step / every)) roundings.
    n, done, _ = _divmod(clock, every)
    return _power(factor, n) * _power(factor, done / jnp.where(every > 0, every, 1.0))


def _at_least(floor: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.where(x > floor, x, floor)


def _positive(x: jax.Array) -> jax.Array:
    return jnp.where(x > 0, x, 0.0)


def _gradient_only(x: jax.Array) -> jax.Array:
    return x - lax.stop_gradient(x)


def _float32(*numbers: Scalar | Vector) -> tuple[jax.Array, ...]:
    return tuple(jnp.asarray(number, jnp.float32) for number in numbers)
