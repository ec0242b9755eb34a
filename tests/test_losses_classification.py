"""Losses over classes against 40-digit formulas, torch's numbers, their limits, and the traps that released libraries fell into."""

import functools
import itertools
import math
import pathlib

import hypothesis
import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from hypothesis import strategies as st

from lossopt_jax import losses, reduce
from lossopt_jax.recipe import bind

REFERENCE = np.load(pathlib.Path(__file__).parent / "references" / "losses_torch.npz")
TINY = float(np.finfo(np.float32).tiny)
WEIGHTS = [0.5, 1.0, 2.0, 0.25, 1.5]


def _softmax(z):
    total = mp.fsum(mp.exp(v) for v in z)
    return [mp.exp(v) / total for v in z]


def _log_softmax(z):
    lse = max(z) + mp.log(mp.fsum(mp.exp(v - max(z)) for v in z))
    return [v - lse for v in z]


def _hot(t, c):
    return [mp.mpf(int(j == t)) for j in range(c)] if np.ndim(t) == 0 else t


def _cross_entropy(z, t, label_smoothing=0.0, class_weights=(1, 1, 1, 1, 1)):
    q = [(1 - mp.mpf(label_smoothing)) * v + mp.mpf(label_smoothing) / len(z) for v in _hot(t, len(z))]
    return -mp.fsum(w * v * lp for w, v, lp in zip(class_weights, q, _log_softmax(z), strict=True) if v)


def _of_p(f):
    """A loss that averages f(p_j, log p_j) over the target distribution."""
    return lambda z, t, **n: mp.fsum(q * f(p, lp, **n) for q, p, lp in zip(_hot(t, len(z)), _softmax(z), _log_softmax(z), strict=True) if q)


def _focal(z, t, gamma, alpha=None):
    q, lp = _hot(t, len(z)), _log_softmax(z)
    rest = [mp.fsum(mp.exp(v) for k, v in enumerate(lp) if k != j) for j in range(len(z))]
    factor = alpha or [1] * len(z)
    return -mp.fsum(a * v * (r**gamma if gamma else 1) * s for a, v, r, s in zip(factor, q, rest, lp, strict=True) if v)


def _symmetric(z, t, alpha, beta, log_zero):
    q, p, lp = _hot(t, len(z)), _softmax(z), _log_softmax(z)
    log_q = [max(mp.log(v), log_zero) if v else mp.mpf(log_zero) for v in q]
    return -alpha * mp.fsum(v * s for v, s in zip(q, lp, strict=True) if v) - beta * mp.fsum(v * s for v, s in zip(p, log_q, strict=True))


def _sparsemax(z, t):
    q = _hot(t, len(z))
    # the support is the one subset that its own threshold selects
    for size in range(1, len(z) + 1):
        best = sorted(z, reverse=True)[:size]
        tau = (mp.fsum(best) - 1) / size
        if best[-1] > tau and (size == len(z) or sorted(z, reverse=True)[size] <= tau):
            break
    inside = [v for v in z if v > tau]
    dot = mp.fsum(a * b for a, b in zip(q, z, strict=True))
    return mp.fsum(v**2 - tau**2 for v in inside) / 2 + mp.fsum(v**2 for v in q) / 2 - dot


def _evidential(z, t, kl_weight):
    a = [1 + mp.log1p(mp.exp(-abs(v))) + max(v, 0) for v in z]
    s, q = mp.fsum(a), _hot(t, len(z))
    risk = mp.fsum((v - x / s) ** 2 + x / s * (1 - x / s) / (s + 1) for v, x in zip(q, a, strict=True))
    b = [v + (1 - v) * x for v, x in zip(q, a, strict=True)]
    total = mp.fsum(b)
    kl = mp.loggamma(total) - mp.loggamma(len(z)) - mp.fsum(mp.loggamma(x) for x in b)
    return risk + kl_weight * (kl + mp.fsum((x - 1) * (mp.digamma(x) - mp.digamma(total)) for x in b))


def _entropy_like(p, q):
    return mp.fsum(v * (mp.log(v) - mp.log(w)) for v, w in zip(p, q, strict=True) if v)


def _js(z, q):
    p = _softmax(z)
    m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    return (_entropy_like(p, m) + _entropy_like(q, m)) / 2


def _softplus(x):
    return max(x, 0) + mp.log1p(mp.exp(-abs(x)))


def _bce(x, t, pos_weight=1.0, label_smoothing=0.0):
    t = t * (1 - mp.mpf(label_smoothing)) + mp.mpf(label_smoothing) / 2
    return pos_weight * t * _softplus(-x) + (1 - t) * _softplus(x)


def _binary_focal(x, t, gamma, alpha=None):
    p, not_p = 1 / (1 + mp.exp(-x)), 1 / (1 + mp.exp(x))
    value = (t * not_p + (1 - t) * p) ** gamma * _bce(x, t)
    return value if alpha is None else (alpha * t + (1 - alpha) * (1 - t)) * value


def _asymmetric(x, t, gamma_pos, gamma_neg, margin):
    p, not_p = 1 / (1 + mp.exp(-x)), 1 / (1 + mp.exp(x))
    p_m = max(p - margin, 0)
    log_not = mp.log(not_p + margin) if p_m else mp.mpf(0)
    return t * not_p**gamma_pos * _softplus(-x) - (1 - t) * p_m**gamma_neg * log_not


# name -> (formula of one example, numbers, kind of targets: "label", "probs", "bit", "soft_bit", "sign", "step")
TRUTH = {
    "cross_entropy": (
        _cross_entropy,
        [{}, {"label_smoothing": 0.125}, {"label_smoothing": 0.25, "class_weights": WEIGHTS}],
        ("label", "probs"),
    ),
    "nll": (lambda z, t: -mp.fsum(q * v for q, v in zip(_hot(t, 5), z, strict=True)), [{}], ("label", "probs")),
    "focal": (_focal, [{"gamma": g} for g in (2.0, 0.5, 0.0)] + [{"gamma": 1.5, "alpha": WEIGHTS}], ("label", "probs")),
    "poly": (_of_p(lambda p, lp, epsilon: -lp + epsilon * (1 - p)), [{"epsilon": 1.0}, {"epsilon": -0.5}], ("label", "probs")),
    "generalized_cross_entropy": (
        _of_p(lambda p, lp, q: (1 - mp.exp(q * lp)) / q if q else -lp),
        [{"q": 0.75}, {"q": 0.0}, {"q": 1.0}],
        ("label", "probs"),
    ),
    "symmetric_cross_entropy": (_symmetric, [{"alpha": 0.125, "beta": 1.0, "log_zero": -4.0}], ("label", "probs")),
    "logit_adjusted": (
        lambda z, t, priors, tau: _cross_entropy([v + tau * mp.log(p) for v, p in zip(z, priors, strict=True)], t),
        [{"priors": WEIGHTS, "tau": 1.5}],
        ("label", "probs"),
    ),
    "class_balanced": (
        lambda z, t, class_counts, beta: _cross_entropy(z, t, 0, _balanced(class_counts, beta)),
        [{"class_counts": [10.0, 100.0, 3.0, 1.0, 1e6], "beta": b} for b in (0.9990234375, 1.0, 0.0)],
        ("label", "probs"),
    ),
    "sparsemax": (_sparsemax, [{}], ("label", "probs")),
    "evidential": (_evidential, [{"kl_weight": 0.5}], ("label",)),
    "multiclass_hinge": (
        lambda z, t, margin: max(0, margin + max(v for j, v in enumerate(z) if j != t) - z[t]),
        [{"margin": 1.0}],
        ("label",),
    ),
    "multi_margin": (
        lambda z, t, margin: mp.fsum(max(0, margin + v - z[t]) for j, v in enumerate(z) if j != t) / len(z),
        [{"margin": 1.5}],
        ("label",),
    ),
    "ordinal": (lambda z, t: mp.fsum(_softplus(-v if t > k else v) for k, v in enumerate(z)), [{}], ("step",)),
    "kl_divergence": (lambda z, q: _entropy_like(q, _softmax(z)), [{}], ("probs",)),
    "js_divergence": (_js, [{}], ("probs",)),
    "multilabel_soft_margin": (
        lambda z, t, class_weights: mp.fsum(w * _bce(v, b) for w, v, b in zip(class_weights, z, t, strict=True)) / len(z),
        [{"class_weights": WEIGHTS}],
        ("bits",),
    ),
    "binary_cross_entropy": (_bce, [{}, {"pos_weight": 3.0, "label_smoothing": 0.125}], ("bit", "soft_bit")),
    "binary_focal": (_binary_focal, [{"gamma": g} for g in (2.0, 0.5, 0.0)] + [{"gamma": 2.0, "alpha": 0.25}], ("bit", "soft_bit")),
    "asymmetric": (
        _asymmetric,
        [{"gamma_pos": 1.0, "gamma_neg": 4.0, "margin": 0.0625}, {"gamma_pos": 0.5, "gamma_neg": 2.0, "margin": 0.0}],
        ("bit", "soft_bit"),
    ),
    "hinge": (lambda y, t, margin: max(0, margin - t * y), [{"margin": 1.0}], ("sign",)),
    "squared_hinge": (lambda y, t, margin: max(0, margin - t * y) ** 2, [{"margin": 1.0}], ("sign",)),
}
CASES = [
    pytest.param(name, kind, numbers, id=f"{name}-{kind}-{i}")
    for name, (_, cases, kinds) in TRUTH.items()
    for kind in kinds
    for i, numbers in enumerate(cases)
]
SCALAR = ("bit", "soft_bit", "sign")


def _balanced(counts, beta):
    effective = [(1 - mp.mpf(beta) ** int(n)) / (1 - mp.mpf(beta)) if beta < 1 else n for n in counts]
    return [len(counts) / e / mp.fsum(1 / x for x in effective) for e in effective]


def _targets(kind, rng, n):
    if kind in ("label", "step"):
        return np.arange(n) % 5
    if kind == "probs":
        q = (rng.multinomial(64, np.ones(5) / 5, n) / 64).astype(np.float32)  # sums to 1 to the bit
        q[::4] = np.eye(5, dtype=np.float32)[np.arange(len(q[::4])) % 5]  # one-hot: soft targets at 0 and 1
        return q
    if kind == "bits":
        return rng.integers(0, 2, (n, 5))
    return {"bit": np.arange(n) % 2, "soft_bit": rng.uniform(size=n).astype(np.float32), "sign": 1 - 2 * (np.arange(n) % 2)}[kind]


def _ordinary(kind, n=16):
    rng = np.random.default_rng(5)
    classes = {"step": (4,)}.get(kind, () if kind in SCALAR else (5,))
    z = rng.normal(size=(n, *classes)) * np.linspace(0.5, 5, n).reshape(n, *[1] * len(classes))
    return z.astype(np.float32), _targets(kind, rng, n)


def _truth(formula, z, targets, numbers):
    values, grads = [], []
    with mp.workdps(40):
        numbers = {k: [mp.mpf(x) for x in v] if isinstance(v, list) else mp.mpf(v) for k, v in numbers.items()}
        for o, t in zip(z.astype(np.float64), targets, strict=True):
            t = int(t) if t.ndim == 0 and targets.dtype.kind == "i" else mp.mpf(float(t)) if t.ndim == 0 else [mp.mpf(float(v)) for v in t]
            value, grad = _differentiate(formula, [mp.mpf(v) for v in np.atleast_1d(o)], t, numbers)
            values.append(value)
            grads.append(grad)
    return np.array(values), np.array(grads).reshape(z.shape)


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


def _value_and_grad(name, numbers, z, targets):
    """All at one length, so that a loss compiles once for each kind of targets and dtype."""
    again = jnp.arange(32) % len(z)
    value, grad = _compiled(name)(
        jnp.asarray(z)[again], jnp.asarray(targets)[again], {k: jnp.array(v, jnp.float32) for k, v in numbers.items()}
    )
    return value[: len(z)], grad[: len(z)]


@pytest.mark.parametrize(("name", "kind", "numbers"), CASES)
def test_values_and_gradients_are_the_formulas(name, kind, numbers):
    z, targets = _ordinary(kind)
    value, grad = _value_and_grad(name, numbers, z, targets)
    want, want_grad = _truth(TRUTH[name][0], z, targets, numbers)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, want, rtol=2e-6, atol=1e-7)
    # Where p is near a soft (or smoothed) target, p - q is a difference of inputs; elsewhere the gradient is right to its own last digits.
    hard = kind in ("label", "bit", "sign", "step") and not ({"label_smoothing", "kl_weight"} & set(numbers))
    np.testing.assert_allclose(grad, want_grad, rtol=2e-6, atol=1e-30 if hard else 2e-7)


def _extremes(kind):
    values = [1e4, -1e4, 88.0, -88.0, 1e-8, -1e-8, 0.0]
    if kind in SCALAR:
        z = np.repeat(np.array(values, np.float32), 2)
        return z, _targets(kind, np.random.default_rng(0), len(z))
    width = 4 if kind == "step" else 5
    rows = [row for row in itertools.product([*values[:4], 0.0], repeat=2)]
    z = np.array([[a, b, *([b] * (width - 2))] for a, b in rows] + [[v] * width for v in values], np.float32)
    return z, _targets(kind, np.random.default_rng(0), len(z))


KINKED = {"hinge", "squared_hinge", "multiclass_hinge", "multi_margin", "sparsemax"}


@pytest.mark.parametrize(("name", "kind", "numbers"), CASES)
def test_extremes(name, kind, numbers):
    z, targets = _extremes(kind)
    value, grad = _value_and_grad(name, numbers, z, targets)
    want, want_grad = _truth(TRUTH[name][0], z, targets, numbers)
    assert np.isfinite(value).all()
    assert np.isfinite(grad).all()
    np.testing.assert_allclose(value, want, rtol=1e-5, atol=1e-6)
    if name not in KINKED:
        np.testing.assert_allclose(grad, want_grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", TRUTH)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, pytest.param(jnp.float16, marks=pytest.mark.slow)])
def test_half_precision_is_float32_of_the_rounded_inputs(name, dtype):
    _, (numbers, *_), (kind, *_) = TRUTH[name]
    z, targets = _ordinary(kind)
    z = jnp.asarray(z).astype(dtype)
    value, grad = _value_and_grad(name, numbers, z, targets)
    want, want_grad = _value_and_grad(name, numbers, z.astype(jnp.float32), targets)
    assert value.dtype == jnp.float32
    assert grad.dtype == dtype
    np.testing.assert_allclose(value, want, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(grad.astype(jnp.float32), want_grad, rtol=float(jnp.finfo(dtype).eps), atol=1e-7)


def test_half_precision_with_many_classes():
    """bf16 elsewhere is wrong by 0.09 at 50,257 classes, and all logits at 1e4 give 0 for log 5."""
    z = jax.random.normal(jax.random.key(0), (4, 50_257)).astype(jnp.bfloat16)
    labels = jnp.arange(4)
    wide = np.asarray(z, np.float64)
    want = np.log(np.exp(wide).sum(-1)) - wide[np.arange(4), np.arange(4)]
    np.testing.assert_allclose(losses.cross_entropy(z, labels), want, rtol=1e-6)
    np.testing.assert_allclose(
        losses.cross_entropy(z, labels, label_smoothing=0.1), 0.9 * want + 0.1 * (np.log(np.exp(wide).sum(-1)) - wide.mean(-1)), rtol=1e-6
    )
    for dtype in (jnp.bfloat16, jnp.float16, jnp.float32):
        np.testing.assert_allclose(losses.cross_entropy(jnp.full((2, 5), 1e4, dtype), jnp.array([0, 3])), math.log(5), rtol=1e-6)


# key in the reference -> (loss, numbers, targets)
TORCH = {
    "cross_entropy": ("cross_entropy", {}, "labels"),
    "cross_entropy_smooth": ("cross_entropy", {"label_smoothing": 0.1, "class_weights": WEIGHTS}, "labels"),
    "cross_entropy_probs": ("cross_entropy", {"label_smoothing": 0.1, "class_weights": WEIGHTS}, "probs"),
    "nll": ("nll", {"class_weights": WEIGHTS}, "labels"),
    "binary_cross_entropy": ("binary_cross_entropy", {"pos_weight": WEIGHTS}, "soft_bits"),
    "multilabel_soft_margin": ("multilabel_soft_margin", {"class_weights": WEIGHTS}, "bits"),
    "kl_divergence": ("kl_divergence", {}, "probs"),
}


@pytest.mark.parametrize("key", TORCH)
def test_torch(key):
    name, numbers, targets = TORCH[key]
    value, grad = _value_and_grad(name, numbers, REFERENCE["logits"], REFERENCE[targets])
    np.testing.assert_allclose(value, REFERENCE[f"{key}.value"], rtol=2e-6, atol=3e-7)
    np.testing.assert_allclose(grad, REFERENCE[f"{key}.grad"], rtol=2e-6, atol=3e-7)


def test_torch_multi_margin():
    labels = np.where(REFERENCE["labels"] < 0, 0, REFERENCE["labels"])
    value, grad = _value_and_grad("multi_margin", {"margin": 1.5, "class_weights": WEIGHTS}, REFERENCE["logits"], labels)
    np.testing.assert_allclose(value, REFERENCE["multi_margin.value"], rtol=2e-6)
    np.testing.assert_allclose(grad, REFERENCE["multi_margin.grad"], rtol=2e-6)


@pytest.mark.parametrize(
    ("key", "loss"),
    [
        ("cross_entropy_mean", bind(losses.cross_entropy, label_smoothing=0.1, class_weights=WEIGHTS)),
        ("nll_mean", bind(losses.nll, class_weights=WEIGHTS)),
    ],
)
def test_torch_weighted_mean(key, loss):
    """The reduction divides by the sum of the class weights of what counted."""
    mean = lambda z: reduce.mean(reduce.loss_total(loss, z, jnp.asarray(REFERENCE["labels"])))  # noqa: E731
    value, grad = jax.value_and_grad(mean)(jnp.asarray(REFERENCE["logits"]))
    np.testing.assert_allclose(value, REFERENCE[f"{key}.value"], rtol=2e-6)
    np.testing.assert_allclose(grad, REFERENCE[f"{key}.grad"], rtol=2e-6, atol=1e-7)


def test_weigh():
    labels = jnp.array([0, 4, -100])
    np.testing.assert_allclose(losses.cross_entropy.weigh(labels), [1, 1, 0])
    np.testing.assert_allclose(losses.cross_entropy.weigh(labels, class_weights=WEIGHTS), [0.5, 1.5, 0])
    np.testing.assert_allclose(losses.cross_entropy.weigh(jnp.array([7, 0]), ignore_index=7), [0, 1])
    np.testing.assert_allclose(losses.cross_entropy.weigh(jnp.array([[0.5, 0, 0, 0.5, 0]]), class_weights=WEIGHTS), [0.375])
    want = losses.class_balanced_weights(jnp.array([10.0, 20.0, 70.0]))
    got = losses.class_balanced.weigh(jnp.array([0, 1, 2]), class_counts=jnp.array([10.0, 20.0, 70.0]))
    np.testing.assert_allclose(got, want)
    np.testing.assert_allclose(want.sum(), 3, rtol=1e-6)


OVER_LABELS = [name for name, (_, _, kinds) in TRUTH.items() if {"label", "step"} & set(kinds)]


@pytest.mark.parametrize("name", OVER_LABELS)
def test_labels_that_are_no_class(name):
    """Ignored: no bit of value or gradient, whatever lies there. No class: NaN in value and gradient of that example alone."""
    _, (numbers, *_), (kind, *_) = TRUTH[name]
    z = np.random.default_rng(1).normal(size=(6, 4 if kind == "step" else 5)).astype(np.float32)
    z[1] = np.nan, np.inf, -np.inf, *z[1, 3:]
    labels = np.array([2, -100, -1, 255, 5, 3])
    value, grad = _value_and_grad(name, numbers, z, labels)
    good = np.array([2, 0, 0, 0, 0, 3])
    want, want_grad = _value_and_grad(name, numbers, np.where(np.isnan(z).any(-1, keepdims=True), 0, z), good)
    for got, expected in ((value, want), (grad, want_grad)):
        np.testing.assert_array_equal(np.asarray(got)[[0, 5]], np.asarray(expected)[[0, 5]])
        np.testing.assert_array_equal(np.asarray(got)[1], 0)
        assert np.isnan(np.asarray(got)[2:5]).all()
    for label in (-1, 255, 5):
        with pytest.raises(ValueError, match=rf"{label} is not a class"):
            getattr(losses, name)(z, np.array([2, -100, label, 0, 0, 3]), **{k: jnp.array(v, jnp.float32) for k, v in numbers.items()})


def test_label_dtypes():
    z = jnp.asarray(REFERENCE["logits"])
    want = losses.cross_entropy(z, jnp.arange(12) % 5)
    for dtype in (np.uint8, np.int8, np.int16, np.uint32, np.int64):
        np.testing.assert_array_equal(losses.cross_entropy(z, (np.arange(12) % 5).astype(dtype)), want)
    assert np.isnan(jax.jit(losses.cross_entropy)(z[:1], np.array([255], np.uint8))).all()
    np.testing.assert_array_equal(losses.cross_entropy(z, np.where(np.arange(12) < 2, 9, np.arange(12) % 5), ignore_index=9)[2:], want[2:])


@pytest.mark.parametrize("name", TRUTH)
def test_shapes_are_checked(name):
    _, (numbers, *_), (kind, *_) = TRUTH[name]
    numbers = {k: jnp.array(v, jnp.float32) for k, v in numbers.items()}
    loss = functools.partial(getattr(losses, name), **numbers)
    z, targets = _ordinary(kind)
    assert jax.eval_shape(loss, z[:0], targets[:0]).shape == (0,)
    assert jax.eval_shape(loss, z[None], targets[None]).shape == (1, 16)
    wrong = targets[:, None] if targets.ndim == 1 else targets[:, :4]
    with pytest.raises(ValueError, match=r"outputs .*\(16.*targets \(16, [14]\)"):
        loss(z, wrong)
    if kind in ("label", "step"):
        with pytest.raises(ValueError, match="float32"):
            loss(z, targets.astype(np.float32))


def test_binary_targets_are_checked():
    x = jnp.zeros(3)
    with pytest.raises(ValueError, match="must be 0 or 1, got 2"):
        losses.binary_cross_entropy(x, jnp.array([0, 1, 2]))
    with pytest.raises(ValueError, match="must be -1 or 1, got 0"):
        losses.hinge(x, jnp.array([0, 1, 1]))
    for loss, targets in ((losses.binary_cross_entropy, [0, 1, -1]), (losses.hinge, [-1, 1, 0])):
        value, grad = _compiled(loss.__name__)(x, jnp.array(targets), {})
        np.testing.assert_array_equal(np.isnan(value), [False, False, True])
        np.testing.assert_array_equal(np.isnan(grad), [False, False, True])
    np.testing.assert_array_equal(losses.hinge(x, jnp.array([True, False, True])), losses.hinge(x, jnp.array([1, -1, 1])))


def test_infinite_logits_that_agree_cost_nothing():
    inf = jnp.array([jnp.inf, -jnp.inf])
    for name in ("binary_cross_entropy", "binary_focal"):
        value, grad = _compiled(name)(inf, jnp.array([1, 0]), {"gamma": 2.0} if name == "binary_focal" else {})
        np.testing.assert_array_equal(value, 0)
        np.testing.assert_array_equal(grad, 0)
    np.testing.assert_array_equal(losses.binary_cross_entropy(inf, jnp.array([0, 1])), jnp.inf)
    masked = jnp.array([[1.0, -jnp.inf, 0.0, -jnp.inf, 2.0]])
    for targets in (jnp.array([4]), jnp.array([[0.25, 0.0, 0.0, 0.0, 0.75]])):
        for smoothing in (0.0, jnp.float32(0)):
            value, grad = _compiled("cross_entropy")(masked, targets, {"label_smoothing": smoothing})
            assert np.isfinite(value).all()
            assert np.isfinite(grad).all()
    np.testing.assert_array_equal(losses.cross_entropy(masked, jnp.array([1])), jnp.inf)
    np.testing.assert_array_equal(losses.cross_entropy(masked, jnp.array([[0.0, 1.0, 0.0, 0.0, 0.0]])), jnp.inf)


def test_a_weight_of_0_silences_what_is_infinite():
    """Three ways to the same loss, 0.9 + 0.1 / 3 of the label's and 0.1 / 3 of the other's; and pos_weight where nothing is positive."""
    z, w, label = jnp.array([[0.0, 1.0, -jnp.inf]]), jnp.array([1.0, 1.0, 0.0]), jnp.array([0])
    rest = np.log1p(np.exp(-1.0))
    expected = (0.9 + 0.1 / 3) * (1 + rest) + 0.1 / 3 * rest
    for found in (
        losses.cross_entropy(z, label, label_smoothing=0.1, class_weights=w),
        losses.cross_entropy(z, jnp.array([[1.0, 0.0, 0.0]]), label_smoothing=0.1, class_weights=w),
        losses.linear_cross_entropy(jnp.ones((1, 1)), z, label, label_smoothing=0.1, class_weights=w),
    ):
        np.testing.assert_allclose(found, [expected], rtol=1e-6)
    slope = jax.grad(lambda w, x, t: losses.binary_cross_entropy(x, t, pos_weight=w).sum())
    assert slope(2.0, jnp.array([-jnp.inf]), jnp.array([0.0])) == 0
    np.testing.assert_allclose(slope(2.0, jnp.array([-1.0]), jnp.array([1.0])), np.log1p(np.exp(1.0)), rtol=1e-6)


@pytest.mark.parametrize("name", ["cross_entropy", "focal", "poly", "symmetric_cross_entropy", "generalized_cross_entropy"])
@pytest.mark.parametrize("apart", [1.0, 12.0, 20.0, -20.0])
def test_a_one_hot_has_the_slope_of_its_label(name, apart):
    z, label = jnp.array([[apart, 0.3, -1.0, 1.0]]), jnp.array([0])
    loss = getattr(losses, name)
    of_label, of_one_hot = (jax.jit(jax.grad(lambda z, t=t: loss(z, t).sum()))(z) for t in (label, jax.nn.one_hot(label, 4)))
    np.testing.assert_allclose(of_one_hot, of_label, rtol=2e-6)


@pytest.mark.parametrize(("rows", "classes"), [(2, 1000), (4, 50_000)])
def test_symmetric_cross_entropy_of_many_classes(rows, classes):
    """Nearly every log q is cut off at -4 there; gradient 0.1 (p - q) - p (m - sum p m), m = max(log q, -4)."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(rows, classes)).astype(np.float32)
    q = np.asarray(jax.nn.softmax(jnp.asarray(2 * rng.normal(size=(rows, classes)), jnp.float32)))
    found = jax.jit(jax.grad(lambda z: losses.symmetric_cross_entropy(z, jnp.asarray(q)).sum()))(jnp.asarray(z))
    p, q = np.exp(z.astype(float)), q.astype(float)
    p /= p.sum(-1, keepdims=True)
    m = np.maximum(np.log(q), -4)
    expected = 0.1 * (p * q.sum(-1, keepdims=True) - q) - p * (m - (p * m).sum(-1, keepdims=True))
    assert np.linalg.norm(found - expected) < 5e-7 * np.linalg.norm(expected)


def test_symmetric_cross_entropy_has_mixed_derivatives():
    """Of the gradient in the logits along the targets and along A, against autodiff of the formula."""
    z, q = jnp.array([1.0, 0.2, -0.5, 0.3]), jnp.array([0.95, 0.005, 0.04, 0.005])

    def formula(z, q, least):
        p = jax.nn.softmax(z)
        return -(0.1 * q * jnp.log(p) + p * jnp.maximum(jnp.log(q), least)).sum()

    def ours(z, q, least):
        return losses.symmetric_cross_entropy(z[None], q[None], log_zero=least)[0]

    found, expected = (jax.jit(jax.jacfwd(jax.grad(f), (0, 1, 2)))(z, q, -4.0) for f in (ours, formula))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)


@pytest.mark.parametrize("classes", [2, 3, 1000])
def test_the_slope_of_equal_logits(classes):
    """dJS/dz = p (g - sum p g), g = log(p / m) / 2: nothing is certain there, so nothing may be taken for it."""
    q = np.asarray(jax.nn.softmax(jnp.asarray(np.random.default_rng(0).normal(size=classes), jnp.float32)))
    found = jax.jit(jax.grad(lambda z: losses.js_divergence(z[None], jnp.asarray(q)[None])[0]))(jnp.zeros(classes))
    p = 1 / classes
    g = np.log(p / ((p + q.astype(float)) / 2)) / 2
    expected = p * (g - g.mean())
    assert np.abs(found - expected).max() < 1e-6 * np.abs(expected).max()


def test_limits():
    z, labels = _ordinary("label")
    q = _ordinary("probs")[1]
    ce = losses.cross_entropy(z, labels)
    same = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7)
    same(losses.focal(z, labels, gamma=0.0), ce)
    same(losses.focal(z, q, gamma=0.0), losses.cross_entropy(z, q))
    same(losses.poly(z, labels, epsilon=0.0), ce)
    same(losses.generalized_cross_entropy(z, labels, q=0.0), ce)
    same(losses.symmetric_cross_entropy(z, labels, alpha=1.0, beta=0.0), ce)
    same(losses.logit_adjusted(z, labels, priors=WEIGHTS, tau=0.0), ce)
    same(losses.class_balanced(z, labels, class_counts=WEIGHTS, beta=0.0), ce)
    same(losses.nll(jax.nn.log_softmax(z), labels), ce, atol=1e-6)
    same(losses.cross_entropy(z, np.eye(5, dtype=np.float32)[labels]), ce)
    same(losses.cross_entropy(z, labels, label_smoothing=1e-20), ce)
    smooth = np.eye(5, dtype=np.float32)[labels] * 0.75 + 0.05
    same(losses.cross_entropy(z, smooth), losses.cross_entropy(z, labels, label_smoothing=0.25))
    x, bits = _ordinary("bit")
    same(losses.binary_focal(x, bits, gamma=0.0), losses.binary_cross_entropy(x, bits))
    same(losses.asymmetric(x, bits, gamma_pos=0.0, gamma_neg=0.0, margin=0.0), losses.binary_cross_entropy(x, bits))
    pair = np.stack([np.zeros_like(x), x], -1)
    same(losses.cross_entropy(pair, bits), losses.binary_cross_entropy(x, bits))
    same(losses.kl_divergence(np.log(q[1:2]), q[1:2]), 0, atol=1e-6)
    same(losses.kl_divergence(z, q), losses.cross_entropy(z, q) + np.where(q > 0, q * np.log(np.where(q > 0, q, 1)), 0).sum(-1), atol=1e-6)


def test_gradients_in_the_numbers():
    """A learned number, or a tuned one: also at 0, and of class weights and soft targets."""
    z, labels = _ordinary("label")
    q = jnp.asarray(_ordinary("probs")[1])
    by_hand = lambda a, w, q: -(w[None] * ((1 - a) * q + a / 5) * jax.nn.log_softmax(z)).sum()  # noqa: E731
    ours = lambda a, w, q: losses.cross_entropy(z, q, label_smoothing=a, class_weights=w).sum()  # noqa: E731
    ours_of_labels = lambda a, w: losses.cross_entropy(z, labels, label_smoothing=a, class_weights=w).sum()  # noqa: E731
    w = jnp.array(WEIGHTS)
    for a in (0.0, 0.2):
        want = jax.grad(by_hand, (0, 1))(a, w, jax.nn.one_hot(labels, 5))
        for got, expected in zip(jax.grad(ours_of_labels, (0, 1))(a, w), want, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-5)
        for got, expected in zip(jax.grad(ours, (0, 1, 2))(a, w, q), jax.grad(by_hand, (0, 1, 2))(a, w, q), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-5)
    x, t = _ordinary("soft_bit")
    t = jnp.asarray(t).at[:3].set(0.0)
    grad = jax.grad(lambda t: losses.binary_cross_entropy(x, t).sum())(t)
    np.testing.assert_allclose(grad, -x, rtol=1e-5)


@pytest.mark.parametrize("name", ["focal", "binary_focal"])
def test_focal_traps(name):
    """Gradients NaN for gamma < 1 at a certain answer, and values that saturate at 16.1 where the truth is 1e4."""
    logits = jnp.array([[1e4, 0.0], [-1e4, 0.0], [30.0, 0.0], [60.0, 0.0], [100.0, 0.0], [0.0, 0.0]])
    z, targets = (logits, jnp.zeros(6, int)) if name == "focal" else (logits[:, 0], jnp.ones(6))
    loss = lambda z, gamma: getattr(losses, name)(z, targets, gamma=gamma)  # noqa: E731
    total = lambda z, gamma: loss(z, gamma).sum()  # noqa: E731
    derivatives = jax.jit(
        lambda z, gamma: (loss(z, gamma)[1], jax.grad(total)(z, gamma), jax.jacfwd(total)(z, gamma), jax.hessian(total)(z, gamma))
    )
    for gamma in (0.0, 0.3, 0.5, 1.0, 2.0, 5.0):
        wrong, *rest = derivatives(z, jnp.float32(gamma))
        assert wrong == 1e4
        assert all(np.isfinite(derivative).all() for derivative in rest), gamma


QUICK = ("cross_entropy", "binary_cross_entropy", "focal", "asymmetric")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in QUICK)) for n in TRUTH if n not in KINKED])
def test_second_derivatives(name):
    """In float64 against differences of the gradient; in float32 finite at the extremes. At logit 0 too, where |x| has a kink."""
    _, (numbers, *_), (kind, *_) = TRUTH[name]
    z, targets = _ordinary(kind, 4)
    z[0] = 0

    def gradient(z, targets, numbers):
        return jax.grad(lambda z: getattr(losses, name)(z, targets, **numbers).sum())(z)

    curve = lambda z, d, t, n: jax.jvp(lambda z: gradient(z, t, n), (z,), (d,))[1]  # noqa: E731
    h = 1e-5
    both = jax.jit(lambda z, d, t, n: (curve(z, d, t, n), (gradient(z + h * d, t, n) - gradient(z - h * d, t, n)) / (2 * h)))
    with jax.enable_x64(True):
        wide = {k: jnp.array(v, jnp.float64) for k, v in numbers.items()}
        z64, t64 = jnp.asarray(z, jnp.float64), jnp.asarray(targets)
        d = jnp.asarray(np.random.default_rng(2).normal(size=z.shape))
        got, want = both(z64, d, t64, wide)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-8)
    z, targets = _extremes(kind)
    assert np.isfinite(jax.jit(curve)(z, np.ones_like(z), targets, {k: jnp.array(v, jnp.float32) for k, v in numbers.items()})).all()


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(
    st.lists(st.lists(st.floats(-50, 50, width=32), min_size=5, max_size=5), min_size=4, max_size=4),
    st.permutations(range(5)),
    st.integers(0, 4),
    st.floats(-64, 64).map(round),
)
def test_invariances_and_convexity(rows, order, label, shift):
    """Adding a number to all logits, or renaming classes, changes nothing; cross-entropy is convex in the logits."""
    z = np.array([(np.round(np.array(row) * 1024) / 1024) for row in rows], np.float32)  # so that the shift itself is exact
    labels = np.full(len(z), label)
    renamed = np.full(len(z), list(order).index(label))
    for name in ("cross_entropy", "focal", "poly", "generalized_cross_entropy", "multiclass_hinge", "multi_margin", "sparsemax"):
        loss = _compiled(name)
        value = loss(z, labels, {})[0]
        np.testing.assert_allclose(loss(z + shift, labels, {})[0], value, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(loss(z[:, list(order)], renamed, {})[0], value, rtol=1e-5, atol=1e-6)
        assert (np.asarray(value) >= 0).all()
        if name in ("cross_entropy", "multiclass_hinge", "multi_margin", "sparsemax"):
            flat = np.zeros_like(z)
            chord = (value + loss(flat, labels, {})[0]) / 2
            assert (np.asarray(loss(z / 2, labels, {})[0]) <= np.asarray(chord) * (1 + 1e-5) + 1e-6).all(), name


def test_known_integer_targets_may_be_closed_over():
    y = jnp.array([0, 1, 1])
    np.testing.assert_array_equal(
        jax.jit(lambda x: losses.binary_cross_entropy(x, y))(jnp.ones(3)), losses.binary_cross_entropy(jnp.ones(3), y)
    )
    with pytest.raises(ValueError, match="hinge: targets must be -1 or 1, got 0"):
        jax.jit(lambda x: losses.hinge(x, y))(jnp.ones(3))


@pytest.mark.parametrize("apart", [1.0, 0.1, 1e-2])
def test_divergences_of_what_nearly_agrees(apart):
    # By the formulas in float64. Their terms cancel, by 1 / apart^2: as they are written, float32 had 1e-4 at 0.1 and -9e-7 for 2e-7.
    rng = np.random.default_rng(0)
    teacher = (3 * rng.normal(size=(5, 50))).astype(np.float32)
    student = (teacher + apart * rng.normal(size=teacher.shape)).astype(np.float32)
    log_q, log_p = (z - np.log(np.exp(z).sum(-1, keepdims=True)) for z in (teacher.astype(np.float64), student.astype(np.float64)))
    p, q = np.exp(log_p), np.exp(log_q)
    log_m = np.log((p + q) / 2)
    expected = {
        losses.distillation: ((q * (log_q - log_p)).sum(-1), p - q),
        losses.js_divergence: ((p * (log_p - log_m) + q * (log_q - log_m)).sum(-1) / 2, None),
        losses.kl_divergence: ((q * (log_q - log_p)).sum(-1), p - q),
    }
    for loss, (value, slope) in expected.items():
        targets, numbers = (teacher, {"temperature": 1.0}) if loss is losses.distillation else (q.astype(np.float32), {})
        found, grad = loss(student, targets, **numbers), jax.grad(lambda z: loss(z, targets, **numbers).sum())(jnp.asarray(student))  # noqa: B023
        assert (found > 0).all()
        rounding = (1e-7 if loss is losses.distillation else 2e-7) / apart  # eps / d of a term; of targets q itself is rounded too
        np.testing.assert_allclose(found, value, rtol=1e-6 + rounding)
        if slope is not None:
            np.testing.assert_allclose(grad, slope, atol=(2e-6 + 5e-7 / apart) * np.abs(slope).max())


def test_divergences_of_one_hots_and_impossible_classes():
    z, q = jnp.array([[30.0, 0.0], [0.0, -jnp.inf], [1e4, 0.0]]), jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    np.testing.assert_allclose(
        losses.js_divergence(z, q), [np.exp(-30) * np.log(2) / 2, 0, np.log(2)], rtol=1e-6
    )  # the first term in e^-30
    np.testing.assert_allclose(losses.kl_divergence(z, q), [np.log1p(np.exp(-30)), 0, 1e4], rtol=1e-6)
    np.testing.assert_allclose(losses.kl_divergence(z[1:2], q[2:]), np.inf)
    np.testing.assert_allclose(losses.kl_divergence(jnp.zeros((1, 2)), jnp.array([[2.0, 0.0]])), 2 * np.log(4), rtol=1e-6)
    for loss in (losses.js_divergence, losses.kl_divergence):
        assert np.isfinite(jax.grad(lambda z: loss(z, q).sum())(z)).all()  # noqa: B023


def test_evidential_of_many_classes_and_little_evidence():
    # By mp. The log-gammas of 1,000 classes are of order 7,000, and their divergence of order 0.05.
    z = (np.random.default_rng(0).normal(size=1000) - 5).astype(np.float32)
    with mp.workdps(30):
        a = [1 + mp.log1p(mp.exp(float(value))) for value in z]
        total = sum(a)
        risk = sum(((j == 0) - x / total) ** 2 + x / total * (1 - x / total) / (total + 1) for j, x in enumerate(a))
        a[0] = mp.mpf(1)
        total = sum(a)
        divergence = mp.loggamma(total) - mp.loggamma(len(a))
        divergence += sum((x - 1) * (mp.digamma(x) - mp.digamma(total)) - mp.loggamma(x) for x in a)
    np.testing.assert_allclose(losses.evidential(z[None], np.array([0]), kl_weight=1.0), [float(risk + divergence)], rtol=1e-5)


# float64 by hand: a weight times an infinity is infinite, however small the weight, and a weight of 0 silences it.
@pytest.mark.parametrize(
    ("logits", "targets", "expected"),
    [
        ([0.0, -np.inf], [1 - 1e-7, 1e-7], np.inf),
        ([0.0, -np.inf], [1.0, 0.0], 0.0),
        ([0.0, -3e33], [0.0, 1.0], 3e33),
        ([np.nan, 0.0], [1.0, 0.0], np.nan),
    ],
)
def test_a_distribution_meets_huge_and_infinite_logits(logits, targets, expected):
    value = jax.jit(losses.cross_entropy)(jnp.float32([logits]), jnp.float32([targets]))
    np.testing.assert_allclose(value, [expected], rtol=1e-6)


def test_smoothing_gives_a_class_that_is_masked_out_an_infinite_loss():
    logits = jnp.zeros((1, 50_257)).at[0, 5].set(-jnp.inf)
    one_hot = jax.nn.one_hot(jnp.array([3]), 50_257)
    assert np.isinf(losses.cross_entropy(logits, one_hot, label_smoothing=0.01)).all()


def test_an_unsigned_label_beyond_31_bits_is_no_ignored_one():
    value, slope = jax.jit(jax.value_and_grad(lambda z, y: losses.cross_entropy(z, y).sum()))(
        jnp.zeros((1, 3)), jnp.array([2**32 - 100], jnp.uint32)
    )
    assert np.isnan(value)
    assert np.isnan(slope).all()


@pytest.mark.parametrize("name", ["cross_entropy", "focal", "js_divergence", "kl_divergence", "multilabel_soft_margin", "nll", "poly"])
def test_a_distribution_over_no_classes_is_said_as_such(name):
    with pytest.raises(ValueError, match=rf"{name}: outputs \(2, 0\) have no classes"):
        getattr(losses, name)(jnp.zeros((2, 0)), jnp.zeros((2, 0)))
