"""Regression losses and likelihoods against 40-digit formulas, torch's numbers, their limits and their properties."""

import functools
import pathlib

import hypothesis
import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from hypothesis import strategies as st

from lossopt_jax import losses

REFERENCE = np.load(pathlib.Path(__file__).parent / "references" / "losses_torch.npz")
TINY = float(np.finfo(np.float32).tiny)

# name -> (the formula for one example, written from its paper in mpmath; numbers; whether outputs are (location, log scale) pairs)
TRUTH = {
    "mse": (lambda o, t: (o - t) ** 2, [{}], False),
    "mae": (lambda o, t: abs(o - t), [{}], False),
    "huber": (
        lambda o, t, delta: (o - t) ** 2 / 2 if abs(o - t) <= delta else delta * (abs(o - t) - mp.mpf(delta) / 2),
        [{"delta": 1.0}, {"delta": 0.25}, {"delta": 30.0}],
        False,
    ),
    "smooth_l1": (
        lambda o, t, beta: (o - t) ** 2 / (2 * beta) if abs(o - t) < beta else abs(o - t) - mp.mpf(beta) / 2,
        [{"beta": 1.0}, {"beta": 0.125}, {"beta": 0.0}],
        False,
    ),
    "log_cosh": (lambda o, t: mp.log(mp.cosh(o - t)), [{}], False),
    "quantile": (lambda o, t, level: max(level * (t - o), (1 - level) * (o - t)), [{"level": 0.875}, {"level": 0.5}], False),
    "expectile": (lambda o, t, level: (level if t >= o else 1 - level) * (o - t) ** 2, [{"level": 0.75}], False),
    "mape": (lambda o, t, epsilon: abs(o - t) / max(abs(t), epsilon), [{"epsilon": 0.5}], False),
    "msle": (lambda o, t: (mp.log(1 + o) - mp.log(1 + t)) ** 2, [{}], False),
    "charbonnier": (lambda o, t, epsilon: mp.sqrt((o - t) ** 2 + mp.mpf(epsilon) ** 2), [{"epsilon": 0.5}, {"epsilon": 2.0**-10}], False),
    "wing": (
        lambda o, t, width, epsilon: (
            width * mp.log(1 + abs(o - t) / epsilon)
            if abs(o - t) < width
            else abs(o - t) - width + width * mp.log(1 + mp.mpf(width) / epsilon)
        ),
        [{"width": 10.0, "epsilon": 2.0}, {"width": 2.0, "epsilon": 0.5}],
        False,
    ),
    "adaptive_robust": (
        lambda o, t, alpha, scale: _barron((o - t) / scale, alpha),
        [{"alpha": a, "scale": 2.0} for a in (1.0, 2.0, 0.0, 1e-4, 1.96875, 3.0, -2.0, -1e3, -np.inf)],
        False,
    ),
    "poisson_nll": (lambda o, t: mp.exp(o) - t * o, [{}], False),
    "tweedie": (
        lambda o, t, power: -t * mp.exp((1 - power) * o) / (1 - power) + mp.exp((2 - power) * o) / (2 - power),
        [{"power": 1.5}, {"power": 1.125}],
        False,
    ),
    "gaussian_nll": (lambda o, t: (o[1] + (t - o[0]) ** 2 * mp.exp(-o[1])) / 2, [{}], True),
    "laplace_nll": (lambda o, t: abs(t - o[0]) * mp.exp(-o[1]) + o[1] + mp.log(2), [{}], True),
    "student_t_nll": (lambda o, t, df: _student(t, o[0], o[1], mp.mpf(df)), [{"df": 4.0}, {"df": 1.0}, {"df": 50.0}], True),
}
CASES = [pytest.param(name, numbers, id=f"{name}-{i}") for name, (_, cases, _) in TRUTH.items() for i, numbers in enumerate(cases)]
# What is a difference of terms may be near 0 where they are not: there the error is measured against their size, which is of order 1.
SIGNED = {"poisson_nll", "gaussian_nll", "laplace_nll", "student_t_nll", "tweedie"}


def _barron(x, alpha):
    if alpha == 2:
        return x**2 / 2
    if alpha == 0:
        return mp.log(x**2 / 2 + 1)
    if alpha == -np.inf:
        return 1 - mp.exp(-(x**2) / 2)
    b, alpha = abs(mp.mpf(alpha) - 2), mp.mpf(alpha)
    return b / alpha * ((x**2 / b + 1) ** (alpha / 2) - 1)


def _student(t, location, log_scale, df):
    density = mp.gamma((df + 1) / 2) / (mp.gamma(df / 2) * mp.sqrt(mp.pi * df) * mp.exp(log_scale))
    return -mp.log(density * (1 + ((t - location) / mp.exp(log_scale)) ** 2 / df) ** (-(df + 1) / 2))


def _inputs(name, pair):
    rng = np.random.default_rng(3)
    # exact values near a target come from dyadic fractions, so that o - t has no rounding of its own
    targets = rng.integers(-40, 40, 48).astype(np.float32) / 16
    outputs = targets + np.concatenate(
        [rng.normal(size=24) * 3, rng.normal(size=12) * 1e-2, rng.normal(size=6) * 30, rng.normal(size=6) * 1e-3]
    )
    if name in ("msle", "poisson_nll", "tweedie"):
        targets = np.abs(targets)
        outputs = np.abs(outputs) if name == "msle" else rng.normal(size=48) * 2
    if pair:
        outputs = np.stack([outputs, rng.normal(size=48) * 2], -1)
    return outputs.astype(np.float32), targets


def _truth(formula, outputs, targets, numbers):
    """Values and gradients in the outputs, by 40-digit arithmetic and its numerical differentiation."""
    values, grads = [], []
    with mp.workdps(40):
        for o, t in zip(outputs.astype(np.float64), targets.astype(np.float64), strict=True):
            value, grad = _differentiate(formula, [mp.mpf(v) for v in np.atleast_1d(o)], mp.mpf(t), numbers)
            values.append(value)
            grads.append(grad)
    return np.array(values), np.array(grads).reshape(outputs.shape)


def _differentiate(formula, o, t, numbers):
    value = lambda x: formula(x if len(x) > 1 else x[0], t, **numbers)  # noqa: E731
    partial = [lambda v, j=j: value([*o[:j], v, *o[j + 1 :]]) for j in range(len(o))]
    return float(value(o)), [float(mp.diff(f, v, h=mp.mpf(10) ** -15)) for f, v in zip(partial, o, strict=True)]


@functools.cache
def _compiled(name):
    def both(outputs, targets, numbers):
        values, pull = jax.vjp(lambda o: getattr(losses, name)(o, targets, **numbers), outputs)
        return values, pull(jnp.ones_like(values))[0]

    return jax.jit(both)


def _value_and_grad(name, numbers, outputs, targets):
    """All at one length, so that a loss compiles once for every number and dtype."""
    size, pad = len(targets), 48 - len(targets)
    outputs = jnp.pad(jnp.asarray(outputs), [(0, pad)] + [(0, 0)] * (np.ndim(outputs) - 1))
    value, grad = _compiled(name)(outputs, jnp.pad(jnp.asarray(targets), (0, pad)), {k: jnp.float32(v) for k, v in numbers.items()})
    return value[:size], grad[:size]


@pytest.mark.parametrize(("name", "numbers"), CASES)
def test_values_and_gradients_are_the_formulas(name, numbers):
    formula, _, pair = TRUTH[name]
    outputs, targets = _inputs(name, pair)
    value, grad = _value_and_grad(name, numbers, outputs, targets)
    want, want_grad = _truth(formula, outputs, targets, numbers)
    atol = 2e-6 if name in SIGNED else TINY
    if name == "adaptive_robust":
        atol = 1e-20  # its tail is e^-60, of which an ulp of the error is 60 ulps
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, want, rtol=2e-6, atol=atol)
    np.testing.assert_allclose(grad, want_grad, rtol=2e-6, atol=atol)


EXTREMES = np.array([1e4, -1e4, 88.0, -88.0, 1e-8, -1e-8, 0.0], np.float32)
OVERFLOWS = {"poisson_nll", "tweedie", "adaptive_robust"}  # e^1e4 and 1e4^2 to the 3 / 2 and beyond have no float32


@pytest.mark.parametrize(("name", "numbers"), CASES)
def test_extremes(name, numbers):
    formula, _, pair = TRUTH[name]
    outputs = EXTREMES if name != "msle" else np.abs(EXTREMES)
    targets = np.zeros_like(outputs)
    if pair:  # a scale of e^-1e4 overflows the true loss, unless the residual is 0
        outputs = np.array([[1e4, 10.0], [-1e4, 1e4], [88.0, 88.0], [1e-8, -16.0], [0.0, -1e4], [0.0, 0.0], [1.0, -1e4]], np.float32)
    value, grad = _value_and_grad(name, numbers, outputs, targets)
    want, want_grad = _truth(formula, outputs, targets, numbers)
    with np.errstate(over="ignore"):
        want, want_grad = want.astype(np.float32), want_grad.astype(np.float32)
    smooth = np.ones(grad.shape, bool)
    smooth[np.atleast_2d(outputs.T).T[:, 0] == 0] = False  # a kink, or 0 * inf in the formula itself
    assert not np.isnan(value).any()
    assert not np.isnan(grad).any()
    np.testing.assert_allclose(value, want, rtol=1e-5, atol=TINY)
    np.testing.assert_allclose(np.asarray(grad)[smooth], want_grad[smooth], rtol=1e-5, atol=1e-30)
    if name not in OVERFLOWS and not pair:
        assert np.isfinite(value).all()
        assert np.isfinite(grad).all()


@pytest.mark.parametrize("name", TRUTH)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, pytest.param(jnp.float16, marks=pytest.mark.slow)])
def test_half_precision_is_float32_of_the_rounded_inputs(name, dtype):
    _, (numbers, *_), pair = TRUTH[name]
    outputs, targets = (jnp.asarray(x).astype(dtype) for x in _inputs(name, pair))
    value, grad = _value_and_grad(name, numbers, outputs, targets)
    want, want_grad = _value_and_grad(name, numbers, outputs.astype(jnp.float32), targets.astype(jnp.float32))
    assert value.dtype == jnp.float32
    assert grad.dtype == dtype
    np.testing.assert_allclose(value, want, rtol=1e-6)
    np.testing.assert_array_equal(grad, want_grad.astype(dtype))


def test_small_errors_keep_their_gradient():
    """Traps of other libraries: Huber's gradient is 0 in bf16 for |e| <= 1e-3, log-cosh is 0 at 1e-4 in float32."""
    e = jnp.array([1e-3, 1e-4, -1e-5], jnp.bfloat16)
    np.testing.assert_array_equal(jax.grad(lambda e: losses.huber(e, jnp.zeros_like(e)).sum())(e), e)
    small = jnp.array([1e-4, -1e-4, 1e-10], jnp.float32)
    np.testing.assert_allclose(losses.log_cosh(small, jnp.zeros(3)), np.float64(small) ** 2 / 2, rtol=1e-6)


# torch, when the references were made, had these under these names; see references/losses_torch.py
TORCH = {
    "mse": ("mse", {}),
    "mae": ("mae", {}),
    "huber": ("huber", {"delta": 0.7}),
    "smooth_l1": ("smooth_l1", {"beta": 0.7}),
    "gaussian_nll": ("gaussian_nll", {}),
    "poisson_nll": ("poisson_nll", {}),
}


@pytest.mark.parametrize("name", TORCH)
def test_torch(name):
    key, numbers = TORCH[name]
    outputs = REFERENCE["pairs"] if name == "gaussian_nll" else REFERENCE["outputs"]
    targets = REFERENCE["rates"] if name == "poisson_nll" else REFERENCE["targets"]
    value, grad = _value_and_grad(name, numbers, outputs, targets)
    np.testing.assert_allclose(value, REFERENCE[f"{key}.value"], rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(grad, REFERENCE[f"{key}.grad"], rtol=2e-6, atol=1e-6)


def test_limits():
    e = jnp.linspace(-5, 5, 41, dtype=jnp.float32)
    zero = jnp.zeros_like(e)
    np.testing.assert_allclose(losses.huber(e, zero, delta=100.0), losses.mse(e, zero) / 2, rtol=1e-6)
    np.testing.assert_allclose(losses.huber(e, zero, delta=2.0**-20) * 2.0**20, losses.mae(e, zero), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(losses.smooth_l1(e, zero, beta=0.0), losses.mae(e, zero))
    np.testing.assert_allclose(losses.smooth_l1(e, zero, beta=0.5), losses.huber(e, zero, delta=0.5) / 0.5, rtol=1e-6)
    np.testing.assert_allclose(losses.charbonnier(e, zero, epsilon=0.0), losses.mae(e, zero), rtol=1e-6)
    np.testing.assert_allclose(losses.quantile(e, zero, level=0.5), losses.mae(e, zero) / 2, rtol=1e-6)
    np.testing.assert_allclose(
        losses.adaptive_robust(e, zero, alpha=1.0), losses.charbonnier(e, zero, epsilon=1.0) - 1, rtol=1e-5, atol=1e-6
    )
    # log(1 + x^2 / df) (df + 1) / 2 is within x^2 / df and 1 / df of x^2 / 2
    pairs = jnp.stack([e / 10, zero], -1)
    np.testing.assert_allclose(losses.student_t_nll(pairs, zero, df=3000.0), losses.gaussian_nll(pairs, zero) + 0.9189385, rtol=1e-3)


def test_barron_is_smooth_across_its_special_shapes():
    """Derivative in alpha at 0 and 2 equals that beside them: the limits are values, not holes."""
    slope = jax.vmap(jax.grad(lambda a: losses.adaptive_robust(jnp.float32(1.5), jnp.float32(0), alpha=a)))
    at = slope(jnp.array([-1e-3, 0.0, 1e-3], jnp.float32))
    np.testing.assert_allclose(at[1], (at[0] + at[2]) / 2, rtol=1e-4)


def test_quantile_levels_side_by_side():
    levels = np.array([0.1, 0.5, 0.9], np.float32)
    outputs, targets = np.random.default_rng(0).normal(size=(2, 7, 3)).astype(np.float32)
    got = losses.quantile(outputs, targets[:, 0], level=levels)
    want = np.stack([losses.quantile(outputs[:, i], targets[:, 0], level=q) for i, q in enumerate(levels)], -1)
    np.testing.assert_array_equal(got, want)
    with pytest.raises(ValueError, match=r"\(7, 3\) and targets \(7, 3\)"):
        losses.quantile(outputs, targets, level=levels)


def test_second_derivatives_at_the_target():
    at_zero = {"mse": 2.0, "huber": 1.0, "log_cosh": 1.0, "charbonnier": 1e3, "adaptive_robust": 1.0}
    for name, want in at_zero.items():
        loss = getattr(losses, name)
        np.testing.assert_allclose(jax.grad(jax.grad(lambda o, loss=loss: loss(o, jnp.float32(0))))(jnp.float32(0)), want, rtol=1e-5)


@pytest.mark.parametrize("name", TRUTH)
def test_shapes_are_checked(name):
    _, _, pair = TRUTH[name]
    outputs = jnp.zeros((5, 2)) if pair else jnp.zeros(5)
    assert getattr(losses, name)(outputs[:0], jnp.zeros(0)).shape == (0,)
    with pytest.raises(ValueError, match=rf"{name}.*\(5(, 2|,)\).*\(5, 1\)"):
        getattr(losses, name)(outputs, jnp.zeros((5, 1)))


def test_integers_work():
    np.testing.assert_array_equal(losses.mse(np.array([1, 2]), np.array([3, 3])), [4.0, 1.0])
    np.testing.assert_array_equal(losses.mse(np.array([200, 2], np.uint8), np.array([201, 3], np.uint8)), [1.0, 1.0])


finite = st.floats(-100, 100, width=32)


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(st.lists(st.tuples(finite, finite), min_size=0, max_size=12), st.floats(0, 1, width=32), finite)
def test_convex_nonnegative_symmetric(pairs, share, target):
    """On the line between two outputs no value is above the chord; each is >= 0; even ones do not see a sign."""
    a, b = (np.array(column, np.float32).reshape(-1) for column in (zip(*pairs, strict=True) if pairs else ((), ())))
    a, b = (np.resize(column, 12 if pairs else 0) for column in (a, b))  # each size compiles each operation
    t = np.full_like(a, target)
    for name in ("mse", "mae", "huber", "smooth_l1", "log_cosh", "quantile", "expectile", "charbonnier"):
        loss = getattr(losses, name)
        middle, left, right = loss(share * a + (1 - share) * b, t), loss(a, t), loss(b, t)
        chord = share * left + (1 - share) * right
        assert (middle <= chord + 1e-5 * (1 + abs(left) + abs(right))).all(), name
        assert (left >= 0).all()
        np.testing.assert_array_equal(loss(t, t), np.full_like(t, 1e-3 if name == "charbonnier" else 0))
    for name in ("mse", "mae", "huber", "log_cosh", "wing", "adaptive_robust"):
        np.testing.assert_array_equal(getattr(losses, name)(a, t), getattr(losses, name)(-a, -t))


def test_msle_of_far_and_near_predictions():
    outputs, targets = np.float32([0.0, -0.5, 10.0, 3.0001, 1e6]), np.float32([1e6, 1e5, 1e6, 3.0, 0.0])
    root = np.log1p(outputs.astype(np.float64)) - np.log1p(targets.astype(np.float64))
    np.testing.assert_allclose(losses.msle(outputs, targets), root**2, rtol=2e-6)
    slope = jax.grad(lambda x: losses.msle(x, targets).sum())(jnp.asarray(outputs))
    np.testing.assert_allclose(slope, 2 * root / (1 + outputs.astype(np.float64)), rtol=2e-6)


@pytest.mark.parametrize(
    ("loss", "outputs"),
    [
        (losses.mae, [1.0, 2.0]),
        (losses.mape, [1.0, 2.0]),
        (losses.wing, [1.0, 2.0]),
        (functools.partial(losses.smooth_l1, beta=0.0), [1.0, 2.0]),
        (lambda mu, y: losses.laplace_nll(jnp.stack([mu, jnp.zeros_like(mu)], -1), y), [1.0, 2.0]),
    ],
)
def test_a_perfect_prediction_has_no_gradient(loss, outputs):
    """The slope of |e| at 0 is sign(0) = 0, as torch's; that of jnp.abs is 1 in jax 0.10."""
    x = jnp.array(outputs)
    for which in (0, 1):
        slope = jax.grad(lambda *pair: loss(*pair).sum(), which)
        np.testing.assert_array_equal(slope(x, x), 0)
        np.testing.assert_array_equal(jax.jit(slope)(x, x), 0)
    np.testing.assert_array_equal(jax.jvp(lambda a: loss(a, x), (x,), (jnp.ones(2),))[1], 0)
    assert np.all(np.asarray(jax.grad(lambda a: loss(a, x).sum())(x + 0.5)) > 0)
    assert np.all(np.asarray(jax.grad(lambda a: loss(a, x).sum())(x - 0.5)) < 0)


@pytest.mark.parametrize("alpha", [1e-30, 1e-34, 1e-38, -1e-34, 1e-6, 0.0])
def test_a_shape_next_to_zero_is_cauchy(alpha):
    value = losses.adaptive_robust(jnp.array([1e-4, 0.01, 1.0, 1e4]), jnp.zeros(4), alpha=alpha)
    np.testing.assert_allclose(value, np.log1p(np.array([1e-4, 0.01, 1.0, 1e4]) ** 2 / 2), rtol=2e-5 if alpha == 1e-6 else 1e-6)
