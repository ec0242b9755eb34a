"""Schedules against independent float64 formulas, optax, torch, and their own promises at the edges.

The formulas are written from the papers' definitions with NumPy, a step and a case at a time; nothing of the library is used.
"""

import functools
import importlib.util
import itertools
import math
import warnings
from fractions import Fraction
from pathlib import Path

import hypothesis
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import optax
import pytest
from hypothesis import strategies as st
from jax import lax

from lossopt_jax import schedules
from lossopt_jax.recipe import bind

HUGE = 2**30 + 5
LAST = 2**31 - 1
STEPS = np.array([*range(25), 49, 50, 99, 100, 101, 1000, 10**6, 2**24 - 1, 2**24 + 1, 2**24 + 7, HUGE, HUGE + 2, LAST - 1, LAST])


def line(step, init, peak, warmup):
    return peak if step >= warmup else init + (peak - init) * step / warmup


def left(step, start, total):
    """Share of the decay that is left: 1 at `start`, 0 from `total` on."""
    return 0.0 if step >= total else min(1.0, (total - step) / (total - start)) if total > start else 1.0


def half_cosine(share):
    return (1 - math.cos(math.pi * share)) / 2


def cycles(step, period):
    n, done = divmod(Fraction(step), Fraction(period))
    return int(n), float(done)


def peaked(step, peak, warmup, total, floor, init, decay):
    if step >= total:
        return floor
    return line(step, init, peak, warmup) if step < warmup else floor + (peak - floor) * decay(left(step, warmup, total))


def constant(step, value):
    return value


def step_decay(step, init, factor, every, floor):
    return max(floor, init * factor ** cycles(step, every)[0]) if every > 0 else floor


def exponential(step, init, factor, every, floor):
    return max(floor, init * factor ** (step / every)) if every > 0 else floor


def polynomial(step, init, total, power, floor):
    return floor if step >= total else floor + (init - floor) * left(step, 0, total) ** power


def linear(step, init, total, floor):
    return floor + (init - floor) * left(step, 0, total)


def cosine(step, init, total, floor):
    return floor + (init - floor) * half_cosine(left(step, 0, total))


def cosine_restarts(step, init, period, growth, decay, floor):
    if period <= 0:
        return floor
    if growth <= 1:
        n, done = cycles(step, period)
        return floor + (init - floor) * decay**n * half_cosine(1 - done / period)
    else:
        n, begun, length = 0, Fraction(0), Fraction(period)
        while step >= begun + length:
            n, begun, length = n + 1, begun + length, length * Fraction(growth)
    return floor + (init - floor) * decay**n * half_cosine(float((begun + length - step) / length))


def warmup_cosine(step, peak, warmup, total, floor, init):
    return peaked(step, peak, warmup, total, floor, init, half_cosine)


def warmup_linear(step, peak, warmup, total, floor, init):
    return peaked(step, peak, warmup, total, floor, init, lambda share: share)


def warmup_constant(step, peak, warmup, init):
    return line(step, init, peak, warmup)


def warmup_exponential(step, peak, warmup, factor, every, floor, init):
    return line(step, init, peak, warmup) if step < warmup else exponential(step - warmup, peak, factor, every, floor)


def inverse_sqrt(step, peak, warmup, floor, init):
    return line(step, init, peak, warmup) if step < warmup else max(floor, peak * math.sqrt(max(warmup, 1) / max(step, warmup, 1)))


def one_cycle(step, peak, total, pct_start, div_factor, final_div_factor):
    init, floor, top = peak / div_factor, peak / div_factor / final_div_factor, pct_start * total
    if step >= total:
        return floor
    return init + (peak - init) * half_cosine(step / top) if step < top else floor + (peak - floor) * half_cosine(left(step, top, total))


def cyclic(step, peak, period, up, decay, floor):
    if period <= 0:
        return floor
    n, done = cycles(step, period)
    up = min(up, period)
    return floor + (peak - floor) * min(1.0, decay**n) * (done / up if done < up else (period - done) / (period - up))


def wsd(step, peak, warmup, total, cooldown, floor, init):
    if step < min(warmup, total):
        return line(step, init, peak, warmup)
    return floor + (peak - floor) * left(step, max(warmup, total - cooldown), total)


LENGTHS = [0, 1, 2, 3, 7, 20.3, 100, 10**6, 2**30 + 128, 2**31]
EVERY = [0, 0.3, 1, 2, 3, 7, 10, 10.3, 1234.567, 10**6, 2**24 + 2, 2**31]
WARMUPS = [(w, t) for t in LENGTHS for w in sorted({0, 1, 3.5, t // 3, t, t + 5})]


def product(**axes):
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def warmed(**axes):
    return [dict(case, warmup=w, total=t) for case in product(**axes) for w, t in WARMUPS]


LEVELS = {"peak": [0.5], "floor": [0.0, 0.01], "init": [0.0, 0.1]}
CASES = {
    "constant": product(value=[0.0, 0.3]),
    "step_decay": product(init=[0.5], factor=[0.0, 0.5, 0.999, 1.0], every=EVERY, floor=[0.0, 0.01]),
    "exponential": product(init=[0.5], factor=[0.0, 0.5, 0.96, 1.0], every=EVERY, floor=[0.0, 0.01]),
    "polynomial": product(init=[0.5], total=LENGTHS, power=[0.0, 0.5, 1.0, 2.5], floor=[0.0, 0.01]),
    "linear": product(init=[0.5, 0.005], total=LENGTHS, floor=[0.0, 0.01]),
    "cosine": product(init=[0.5], total=LENGTHS, floor=[0.0, 0.01]),
    "cosine_restarts": [
        case
        for case in product(init=[0.5], period=EVERY, growth=[1.0, 2.0, 3.0], decay=[1.0, 0.7], floor=[0.0, 0.01])
        if case["growth"] == 1 or case["period"] != 0.3
    ],
    "warmup_cosine": warmed(**LEVELS),
    "warmup_linear": warmed(**LEVELS),
    "warmup_constant": product(peak=[0.5, 0.05], warmup=LENGTHS, init=[0.0, 0.1]),
    "warmup_exponential": product(**LEVELS, warmup=LENGTHS, factor=[0.5, 0.99], every=[0, 1, 10.3, 100]),
    "inverse_sqrt": product(**LEVELS, warmup=LENGTHS),
    "one_cycle": product(peak=[0.5], total=LENGTHS, pct_start=[0.0, 0.25, 1.0], div_factor=[25.0], final_div_factor=[1e4]),
    "cyclic": product(peak=[0.5], period=EVERY, up=[0, 1, 5.3, 1000], decay=[1.0, 0.5], floor=[0.0, 0.01]),
    "wsd": [dict(case, cooldown=c) for case in warmed(**LEVELS) for c in (0, 2, 10, 10**6)],
}
NAMES = sorted(CASES)


def rounded(case):
    """The numbers as the schedule gets them: float32, read as float64."""
    return {name: float(np.float32(value)) for name, value in case.items()}


def near(case):
    """Steps around every length of a case, and around multiples and ends of its cycles."""
    lengths = [case[n] for n in ("warmup", "total", "every", "period", "up", "cooldown") if n in case]
    centres = [*lengths, sum(lengths), *(k * v for v in lengths for k in (2, 3, 1000))]
    return {min(LAST, max(0, math.floor(c) + d)) for c in centres for d in (-1, 0, 1)}


def batch(name):
    """([cases] numbers, [cases, steps] steps) of a schedule's cases."""
    cases = [rounded(case) for case in CASES[name]]
    steps = [sorted({*STEPS.tolist(), *near(case)}) for case in cases]
    steps = np.array([s + [0] * (max(map(len, steps)) - len(s)) for s in steps], np.int32)
    return cases, {n: np.array([c[n] for c in cases], np.float32) for n in cases[0]}, steps


@functools.cache
def over_cases(name):
    """(numbers [cases], steps [cases, steps]) -> values and gradients [cases, steps]: the one program of most tests here."""
    schedule = getattr(schedules, name)
    at_steps = jax.vmap(jax.value_and_grad(lambda numbers, step: schedule(step, **numbers)), (None, 0))
    return jax.jit(jax.vmap(at_steps))


@functools.cache
def found_over_cases(name):
    _, numbers, steps = batch(name)
    return jax.tree.map(np.asarray, over_cases(name)(numbers, steps))


def found_at(name, case, steps):
    """Values and gradients [steps] of one case, by the program of all."""
    _, numbers, all_steps = batch(name)
    numbers = {n: np.full_like(v, case[n]) for n, v in numbers.items()}
    values, grads = over_cases(name)(numbers, np.resize(np.int32(steps), all_steps.shape[1])[None].repeat(len(all_steps), 0))
    return values[0, : len(steps)], {n: g[0, : len(steps)] for n, g in grads.items()}


def test_every_schedule_is_tested():
    assert {*CASES, "join", "piecewise_constant"} == set(schedules.__all__)


@pytest.mark.parametrize("name", NAMES)
def test_formula_at_every_length_and_step(name):
    cases, _, steps = batch(name)
    found, _ = found_over_cases(name)
    assert found.dtype == jnp.float32
    expected = np.array([[globals()[name](int(s), **c) for s in row] for c, row in zip(cases, steps, strict=True)])
    # 1e-15 is the float64 formula's own cancellation in 1 - cos near the end; what float32 underflows to is below it too.
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-15)


@pytest.mark.parametrize("name", NAMES)
def test_finite_within_bounds_and_gradients_finite(name):
    cases, _, _ = batch(name)
    values, grads = found_over_cases(name)
    assert all(np.isfinite(g).all() for g in grads.values()), {n: int((~np.isfinite(g)).sum()) for n, g in grads.items()}
    lowest = [min(c.get("init", c.get("floor", 0.0)), c.get("floor", 0.0)) for c in cases]
    highest = [max(c.get("init", 0), c.get("peak", 0), c.get("floor", 0), c.get("value", 0)) for c in cases]
    assert (values >= np.float32(lowest)[:, None]).all()
    assert (values <= np.float32(highest)[:, None]).all()


@pytest.mark.parametrize("name", NAMES)
def test_gradient_is_the_slope_of_the_formula(name):
    # Lengths with fractions and steps away from every kink, so that a central difference of the float64 formula is its slope.
    case = {"value": 0.3, "init": 0.2, "peak": 0.5, "floor": 0.01, "factor": 0.9, "every": 10.4, "total": 61.7, "power": 1.7}
    case |= {"period": 8.4, "growth": 1.5, "decay": 0.8, "warmup": 10.6, "up": 3.3, "cooldown": 21.2}
    case |= {"pct_start": 0.3, "div_factor": 25.0, "final_div_factor": 100.0}
    case = rounded({n: case[n] for n in CASES[name][0]})
    steps = np.array([1, 4, 7, 14, 29, 38, 50, 59])
    formula = globals()[name]
    _, found = found_at(name, case, steps)
    for number, value in case.items():
        h = 1e-6 * max(1, abs(value))
        slope = [(formula(int(s), **case | {number: value + h}) - formula(int(s), **case | {number: value - h})) / (2 * h) for s in steps]
        # The difference is good to about 1e-9; the float32 slopes sum terms of opposite sign.
        np.testing.assert_allclose(found[number], slope, rtol=2e-5, atol=1e-6, err_msg=number)


def test_cyclic_goes_up_for_half_the_period_unless_told():
    half, told = bind(schedules.cyclic, peak=1.0, period=7), bind(schedules.cyclic, peak=1.0, period=7, up=3.5)
    assert set(half.hparams) == {"peak", "period", "decay", "floor"}
    np.testing.assert_array_equal(half(5), told(5))


@pytest.mark.parametrize("name", NAMES)
def test_one_trace_for_all_numbers_and_the_same_eager(name):
    _, numbers, steps = batch(name)
    traces = []

    def at(bound, steps):
        traces.append(name)
        return bound(steps)

    jitted, (batched, _) = jax.jit(at), found_over_cases(name)
    for lane in {0, len(steps) // 2, len(steps) - 1}:
        bound = bind(getattr(schedules, name), **{n: v[lane] for n, v in numbers.items()})
        # Fused multiply-adds differ between programs: a rounding of the larger addend.
        np.testing.assert_allclose(jitted(bound, steps[lane]), batched[lane], rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(bound(int(steps[lane, 7])), batched[lane, 7], rtol=1e-6, atol=1e-9)
    assert len(traces) == 1


def test_growing_cycles_of_any_growth():
    # Cycle n begins at a time rounded to float32, g / (g - 1) times its length: a few roundings of the phase times that, and
    # the curve from 1 to 0.1 is nowhere steeper than 5 times its value.
    growths, steps = np.float32([1.05, 1.1, 1.25, 1.5, 2.5, 9.0, 100.0]), np.array([0, 3, 17, 99, 100, 1001, 12345, 10**6 + 1, HUGE])
    numbers = {"init": 1.0, "period": np.float32(10.3), "decay": 1.0, "floor": 0.1}
    found = jax.jit(jax.vmap(lambda g: schedules.cosine_restarts(steps, growth=g, **numbers)))(growths)
    expected = [[cosine_restarts(int(s), growth=float(g), **rounded(numbers)) for s in steps] for g in growths]
    for growth, lr, reference in zip(growths, found, expected, strict=True):
        np.testing.assert_allclose(lr, reference, rtol=2e-6 * growth / (growth - 1))


def test_restarts_to_the_step_at_integer_growth():
    # Period 10, growth 2: cycle n begins at 10 (2^n - 1), above 2^24 from n = 21 on.
    starts = np.array([10 * (2**n - 1) for n in range(28)])
    at = jax.jit(functools.partial(schedules.cosine_restarts, init=1.0, period=10, growth=2, decay=0.5))
    np.testing.assert_array_equal(at(starts), 0.5 ** np.arange(28))
    # A step earlier: almost nothing is left of the cycle before.
    before = np.sin(np.pi / 2 / (10 * 2.0 ** np.arange(27))) ** 2 * 0.5 ** np.arange(27)
    np.testing.assert_allclose(at(starts[1:] - 1), before, rtol=1e-6)
    # Two cycles that begin at the very last steps: 2 (2^30 - 1) and 2^31 - 1.
    for period, last in ((2, LAST - 1), (1, LAST)):
        found = schedules.cosine_restarts(np.array([last - 1, last]), init=1.0, period=period, growth=2)
        # Each cycle before is 2^30 steps long, of which one is left.
        np.testing.assert_allclose(found, [np.sin(np.pi / 2 / 2**30) ** 2, 1.0], rtol=1e-6)


def test_periods_to_the_step_beyond_float32():
    ten = (HUGE // 10) * 10
    steps = np.arange(ten - 12, ten + 12)
    np.testing.assert_array_equal(jax.jit(schedules.cyclic)(steps, peak=1.0, period=10, up=10), np.float32(steps % 10) / np.float32(10))
    np.testing.assert_array_equal(jax.jit(schedules.cosine_restarts)(steps, init=1.0, period=10) == 1, steps % 10 == 0)
    # Each drop on its very step, at multiples that float32 cannot tell from the step before.
    every, factor = 2**29, 0.5
    steps = np.array([every - 1, every, 2 * every - 1, 2 * every, 3 * every - 1, 3 * every, LAST])
    np.testing.assert_array_equal(jax.jit(schedules.step_decay)(steps, init=1.0, factor=factor, every=every), 0.5 ** (steps // every))
    # A fraction: 10.25 steps = 41 / 4, in integers.
    steps = np.arange(HUGE - 50, HUGE + 50)
    found = jax.jit(schedules.cyclic)(steps, peak=1.0, period=10.25, up=10.25)
    np.testing.assert_allclose(found, ((4 * steps) % 41) / 41, rtol=1e-7)


def test_last_steps_of_a_long_decay_keep_their_digits():
    totals = np.array([1000, 10**6, 2**24 + 2, 2**30])
    found = jax.vmap(lambda t, s: schedules.cosine(s, init=1.0, total=t))(np.float32(totals), totals - 1)
    np.testing.assert_allclose(found, [float(mpmath.sin(mpmath.pi / 2 / int(t)) ** 2) for t in totals], rtol=1e-6)
    found = jax.vmap(lambda t, s: schedules.warmup_linear(s, peak=1.0, warmup=0.0, total=t))(np.float32(totals), totals - 3)
    np.testing.assert_allclose(found, 3 / totals, rtol=1e-6)


def test_ends_are_exact():
    # Of these peaks some (below the floor, too) are not floor + (peak - floor) in float32.
    peaks, floor = np.geomspace(1e-4, 1, 50, dtype=np.float32), np.float32(0.01)
    assert (floor + (peaks - floor) != peaks).any()
    peak = peaks[0]
    for schedule in (schedules.warmup_cosine, schedules.warmup_linear, functools.partial(schedules.wsd, cooldown=77)):
        at = functools.partial(schedule, jnp.array([33, 1001, LAST]), warmup=33, total=1001, floor=floor, init=1e-5)
        found = jax.jit(jax.vmap(lambda peak, at=at: at(peak=peak)))(peaks)
        np.testing.assert_array_equal(found, np.stack([peaks, np.full(50, floor), np.full(50, floor)], 1))
    np.testing.assert_array_equal(schedules.warmup_constant(jnp.array([0, 1]), peak=peak, warmup=0), [peak, peak])
    powers = jax.jit(lambda t: schedules.polynomial(t, init=peak, total=t, power=0.5, floor=floor))(jnp.arange(1.0, 300.0))
    np.testing.assert_array_equal(powers, floor)


def test_growing_factors_stay_finite():
    steps = np.array([0, 10, 10**4, LAST])
    for f in (schedules.step_decay, schedules.exponential, functools.partial(schedules.warmup_exponential, warmup=3)):
        name = "peak" if isinstance(f, functools.partial) else "init"
        run = jax.vmap(jax.value_and_grad(lambda n, s, f=f, name=name: f(s, **{name: 1.0}, factor=n, every=1.0)), (None, 0))
        for factor in (1.0001, 1.1, 1e6):
            value, grad = run(factor, steps)
            assert np.isfinite(value).all()
            assert np.isfinite(grad).all()


def test_float_steps_and_shapes():
    at = functools.partial(schedules.warmup_cosine, peak=1.0, warmup=4.5, total=20.25)
    np.testing.assert_allclose(at(jnp.array([0.5, 2.25, 4.5, 12.375])), [1 / 9, 0.5, 1, 0.5], rtol=1e-6)
    assert jax.grad(at)(2.0) == pytest.approx(1 / 4.5)
    np.testing.assert_allclose(schedules.cyclic(jnp.array([0.5, 5.75]), peak=1.0, period=5, up=2), [0.25, 0.375], rtol=1e-6)
    np.testing.assert_array_equal(schedules.step_decay(jnp.array([2.4, 2.5]), init=1.0, factor=0.5, every=2.5), [1, 0.5])
    for name in NAMES:
        case = CASES[name][-1]
        for step in (3, np.int64(3), 3.0, np.zeros((2, 0), np.int32), np.full((2, 1, 3), LAST), np.float16([3])):
            found = jax.eval_shape(lambda step, name=name, case=case: getattr(schedules, name)(step, **case), step)
            assert (found.shape, found.dtype) == (np.shape(step), jnp.float32)
        before, _ = found_at(name, case, [-3, -(2**31), 0])
        assert (before == before[2]).all()


def test_float64_mode_gives_float32():
    with jax.enable_x64(True):
        for name in NAMES:
            case = {n: np.float64(v) for n, v in CASES[name][-1].items()}
            found = jax.eval_shape(lambda step, case, name=name: getattr(schedules, name)(step, **case), np.int64(3), case)
            assert found.dtype == jnp.float32


def test_piecewise_constant():
    values, steps = np.float32([1.0, 0.5, 0.1, 0.2]), np.array([[0, 9, 10], [11, 2**24 + 1, 2**24 + 2], [HUGE, LAST - 1, LAST]])
    bounds = np.float32([[10, 2**24 + 2, 2**31], [0, 10.5, 2**24], [20, 10, 2**30]])
    expected = values[(steps[None, ..., None] >= bounds.astype(np.float64)[:, None, None]).sum(-1)]
    found = jax.jit(jax.vmap(lambda b: schedules.piecewise_constant(steps, boundaries=b, values=values)))(bounds)
    np.testing.assert_array_equal(found, expected)
    slope = jax.grad(lambda v: schedules.piecewise_constant(10, boundaries=[10.0, 20.0, 30.0], values=v))(values)
    np.testing.assert_array_equal(slope, [0, 1, 0, 0])
    assert schedules.piecewise_constant(5, boundaries=[], values=[0.3]) == np.float32(0.3)
    with pytest.raises(ValueError, match=r"\(2,\) and \(2,\)"):
        schedules.piecewise_constant(0, boundaries=[1, 2], values=[1.0, 2.0])


def test_join_at_traced_boundaries():
    parts = [bind(schedules.linear, init=0.0, floor=1.0, total=10), bind(schedules.constant, value=0.7), optax.linear_schedule(0.7, 0.2, 5)]
    steps = np.array([0, 5, 10, 11, 12, 29, 30, 31, 34, 40, HUGE, LAST])
    bounds = np.float32([[10, 30], [11.5, 31], [0, 0], [2**30 + 128, 2**31]])
    found = jax.jit(jax.vmap(lambda b: schedules.join(steps, schedules=parts, boundaries=b)))(bounds)

    def expected(step, first, second):
        if step < first:
            return min(1.0, step / 10)
        return 0.7 if step < second else 0.7 - 0.1 * min(5, step - math.ceil(second))

    # 3e-7: optax's own rounding of 0.7 - 0.5 step / 5.
    np.testing.assert_allclose(found, [[expected(int(s), *b) for s in steps] for b in bounds.astype(np.float64)], rtol=1e-6, atol=3e-7)
    late = schedules.join(HUGE, schedules=[parts[1], parts[0]], boundaries=[2**30])
    assert late == np.float32(0.5)


def test_join_binds_and_differentiates():
    warm = bind(schedules.warmup_constant, peak=0.5, warmup=10)
    bound = bind(schedules.join, schedules=(warm, bind(schedules.cosine, init=0.5, total=90)), boundaries=[10.0])
    steps = np.arange(0, 110)
    expected = schedules.warmup_cosine(steps, peak=0.5, warmup=10, total=100)
    np.testing.assert_allclose(jax.jit(lambda b, s: b(s))(bound, steps), expected, rtol=1e-6)
    np.testing.assert_allclose(bound(steps.astype(np.float32)), expected, rtol=1e-6)
    grads = jax.grad(lambda b: b(55))(bound)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    assert jax.grad(lambda b: b(5))(bound).hparams["schedules"][0].hparams["peak"] == 0.5
    with pytest.raises(ValueError, match=r"2 schedules need boundaries of shape \(1,\), got \(2,\)"):
        schedules.join(0, schedules=[warm, warm], boundaries=[1, 2])


def optax_pairs():
    s = schedules
    yield s.constant, {"value": 0.3}, optax.constant_schedule(0.3)
    yield s.linear, {"init": 0.5, "floor": 0.1, "total": 60}, optax.linear_schedule(0.5, 0.1, 60)
    # Not to its end, where optax's is NaN under jit.
    yield s.polynomial, {"init": 0.5, "floor": 0.1, "total": 110, "power": 2.5}, optax.polynomial_schedule(0.5, 0.1, 2.5, 110)
    yield s.cosine, {"init": 0.5, "floor": 0.1, "total": 60}, optax.cosine_decay_schedule(0.5, 60, alpha=0.2)
    yield s.exponential, {"init": 0.5, "factor": 0.9, "every": 7, "floor": 0.1}, optax.exponential_decay(0.5, 7, 0.9, end_value=0.1)
    yield s.step_decay, {"init": 0.5, "factor": 0.9, "every": 7}, optax.exponential_decay(0.5, 7, 0.9, staircase=True)
    yield s.warmup_constant, {"init": 0.1, "peak": 0.5, "warmup": 20}, optax.warmup_constant_schedule(0.1, 0.5, 20)
    warm = {"init": 0.1, "peak": 0.5, "warmup": 20, "floor": 0.05}
    yield s.warmup_cosine, warm | {"total": 70}, optax.warmup_cosine_decay_schedule(0.1, 0.5, 20, 70, 0.05)
    falling = optax.warmup_exponential_decay_schedule(0.1, 0.5, 20, 10, 0.7, end_value=0.05)
    yield s.warmup_exponential, warm | {"factor": 0.7, "every": 10}, falling
    pair = [optax.linear_schedule(0.1, 0.5, 20), optax.linear_schedule(0.5, 0.05, 50)]
    yield s.warmup_linear, warm | {"total": 70}, optax.join_schedules(pair, [20])
    yield s.one_cycle, {"peak": 0.5, "total": 80}, optax.cosine_onecycle_schedule(80, 0.5)
    bounds = {"boundaries": [10, 50], "values": [0.5, 0.05, 0.025]}
    yield s.piecewise_constant, bounds, optax.piecewise_constant_schedule(0.5, {10: 0.1, 50: 0.5})
    cycles = [{"init_value": 0.0, "peak_value": 0.5, "warmup_steps": 0, "decay_steps": n, "end_value": 0.1} for n in (10, 20, 40, 80)]
    yield s.cosine_restarts, {"init": 0.5, "period": 10, "growth": 2, "floor": 0.1}, optax.sgdr_schedule(cycles)


@pytest.mark.parametrize(("schedule", "numbers", "reference"), list(optax_pairs()), ids=lambda v: getattr(v, "__name__", "") or "-")
def test_optax_draws_the_same_curve(schedule, numbers, reference):
    steps = np.arange(101)
    # atol: optax takes (1 + cos) / 2 and 1 - share in float32, so it errs by a rounding of 0.5 where the curve is near 0.
    np.testing.assert_allclose(schedule(steps, **numbers), jax.jit(jax.vmap(reference))(steps), rtol=1e-6, atol=2e-7)


TORCH = Path(__file__).parent / "references" / "schedules_torch.py"


def torch_pairs():
    s, steps = schedules, np.arange(101)
    yield "StepLR", s.step_decay(steps, init=0.5, factor=0.3, every=10)
    yield "MultiStepLR", s.piecewise_constant(steps, boundaries=[5, 12, 40], values=[0.5, 0.1, 0.02, 0.004])
    yield "ExponentialLR", s.exponential(steps, init=0.5, factor=0.93)
    yield "CosineAnnealingLR", s.cosine(steps, init=0.5, total=100, floor=0.01)
    yield "CosineAnnealingWarmRestarts", s.cosine_restarts(steps, init=0.5, period=10, growth=2, floor=0.01)
    yield "CosineAnnealingWarmRestarts_alike", s.cosine_restarts(steps, init=0.5, period=7, floor=0.01)
    yield "OneCycleLR", s.one_cycle(steps, peak=0.5, total=100, pct_start=(0.3 * 101 - 1) / 100)
    yield "CyclicLR", s.cyclic(steps, peak=0.5, period=20, up=7, floor=0.01)
    yield "CyclicLR_triangular2", s.cyclic(steps, peak=0.5, period=20, up=7, floor=0.01, decay=0.5)
    yield "LinearLR", s.linear(steps, init=0.05, total=60, floor=0.4)
    yield "PolynomialLR", s.polynomial(steps, init=0.5, total=80, power=2.5)
    yield "SequentialLR", s.warmup_cosine(steps, init=0.005, peak=0.5, warmup=20, total=100, floor=0.02)


def test_torch_draws_the_same_curves():
    with np.load(TORCH.with_suffix(".npz")) as reference:
        pairs = dict(torch_pairs())
        assert set(reference) == set(pairs)
        for name, found in pairs.items():
            np.testing.assert_allclose(found, reference[name], rtol=1e-6, atol=1e-15, err_msg=name)


def test_torch_reference_is_up_to_date():
    pytest.importorskip("torch")
    spec = importlib.util.spec_from_file_location("schedules_torch", TORCH)
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings(), np.load(TORCH.with_suffix(".npz")) as reference:
        warnings.simplefilter("ignore")  # torch's own deprecations are not ours
        spec.loader.exec_module(module)
        for name, curve in module.curves().items():
            np.testing.assert_allclose(curve, reference[name], rtol=1e-12, atol=1e-18, err_msg=name)


def test_a_bound_schedule_is_an_optax_learning_rate():
    bound = bind(schedules.warmup_cosine, peak=0.5, warmup=3, total=10)

    def run(bound):
        tx = optax.sgd(bound)
        params = jnp.zeros(2)

        def body(carry, _):
            params, state = carry
            updates, state = tx.update(jnp.ones(2), state, params)
            return (optax.apply_updates(params, updates), state), updates[0]

        return lax.scan(body, (params, tx.init(params)), None, length=12)[1]

    np.testing.assert_allclose(jax.jit(run)(bound), -bound(np.arange(12)), rtol=1e-6)
    peaks = np.float32([0.1, 1.0])
    lanes = jax.vmap(lambda p: run(bound.replace(peak=p)))(peaks)
    np.testing.assert_allclose(lanes, -peaks[:, None] * 2 * bound(np.arange(12))[None], rtol=1e-6)


@jax.jit
def all_schedules(step, numbers):
    return {name: getattr(schedules, name)(step, **{n: numbers[n] for n in CASES[name][0]}) for name in NAMES}


LENGTH = st.one_of(st.integers(0, 10), st.floats(0, 100, width=32), st.floats(0, 2.0**31, width=32))
RATE = st.one_of(st.just(0.0), st.floats(2.0**-26, 10, width=32))
SHARE = st.floats(0, 1, width=32)
NUMBERS = st.fixed_dictionaries(
    dict.fromkeys(("value", "init", "peak", "floor"), RATE)
    | dict.fromkeys(("total", "warmup", "every", "period", "up", "cooldown"), LENGTH)
    | dict.fromkeys(("factor", "decay", "pct_start"), SHARE)
    | {"growth": st.floats(1, 8, width=32), "power": st.floats(0, 8, width=32)}
    | dict.fromkeys(("div_factor", "final_div_factor"), st.floats(1, 1e5, width=32))
)


@hypothesis.settings(max_examples=300, deadline=None, derandomize=True)
@hypothesis.given(numbers=NUMBERS, step=st.one_of(st.integers(0, 100), st.integers(0, LAST)))
def test_finite_and_never_below_the_floor(numbers, step):
    numbers = {n: np.float32(v) for n, v in numbers.items()}
    steps = np.minimum(step + np.array([0, 1, 2, 7, 2**24]), LAST).astype(np.int32)
    for name, lr in all_schedules(steps, numbers).items():
        given = {n: numbers[n] for n in CASES[name][0]}
        rates = [given[n] for n in ("value", "init", "peak", "floor") if n in given]
        lr = np.asarray(lr)
        assert np.isfinite(lr).all(), name
        assert (lr <= max(rates)).all(), name
        if name == "one_cycle":
            assert (lr >= given["peak"] / given["div_factor"] / given["final_div_factor"] * np.float32(1 - 1e-6)).all()
            continue
        # A rise from below its floor, or to it, is the user's: without one, and after the warm-up with one, the floor holds.
        top = given.get("peak", given.get("init", 0.0))
        rising = steps < given.get("warmup", 0)
        assert (lr >= min(rates)).all(), name
        assert (lr[~rising] >= min(top, given.get("floor", top))).all(), name
