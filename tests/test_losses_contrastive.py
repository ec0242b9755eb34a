"""Losses on embeddings and on ranked lists against textbook formulas in float64 NumPy, loops over triplets, swapped lists, and torch.

Gradients of the formulas are by complex steps, f'(x) = Im f(x + i h) / h, exact to float64.
"""

import functools
import pathlib

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lossopt_jax import losses
from lossopt_jax.reduce import loss_total, mean

RNG = np.random.default_rng(3)
TORCH = np.load(pathlib.Path(__file__).parent / "references" / "metric_torch.npz")


def draw(*shape):
    return RNG.normal(size=shape).astype(np.float32)


A, B, C = draw(6, 4), draw(6, 4), draw(6, 4)
SIGNS = np.array([1, -1, 1, 1, -1, -1], np.int32)
LABELS = np.array([0, 1, 0, 2, 1, 0], np.int32)  # class 2 has no second example
COSINES = RNG.uniform(-0.95, 0.95, (6, 5)).astype(np.float32)
SCORES = draw(4, 6)
RELEVANCE = np.array([[3, 0, 1, 2, 0, 1], [0, 0, 0, 0, 0, 0], [1, 0, 4, -1, -1, 2], [-1, -1, -1, -1, -1, -1]], np.int32)


@functools.cache
def program(name, options):
    """A loss's values and the gradient of a weighed sum of them, compiled once for all tests of a shape."""

    def weighed(outputs, targets, numbers):
        values = getattr(losses, name)(outputs, targets, **dict(options), **numbers)
        return (jnp.arange(1.0, values.size + 1, dtype=values.dtype).reshape(values.shape) * values).sum(), values

    def run(outputs, targets, numbers):
        gradient, values = jax.grad(weighed, has_aux=True)(outputs, targets, numbers)
        return values, gradient

    return jax.jit(run)


def run(name, outputs, targets, options=(), **numbers):
    return jax.tree.map(np.asarray, program(name, tuple(options))(outputs, targets, numbers))


def value(name, outputs, targets, options=(), **numbers):
    return run(name, outputs, targets, options, **numbers)[0]


# Analytic continuations of what is piecewise analytic, so that complex steps pass through.
def absolute(x):
    return np.where(x.real < 0, -x, x)


def relu(x):
    return np.where(x.real > 0, x, 0)


def norm_64(x, degree=2.0):
    return (absolute(x) ** degree).sum(-1) ** (1 / degree)


def unit_64(x):
    return x / np.sqrt((x * x).sum(-1, keepdims=True))


def nll_64(logits, own):
    """-log softmax at the own column; a column of -inf is out."""
    peak = logits.real.max(-1, keepdims=True)
    e = np.where(np.isinf(logits.real), 0, np.exp(logits - peak))
    return (peak + np.log(e.sum(-1, keepdims=True)))[..., 0] - np.take_along_axis(logits, own[:, None], -1)[:, 0]


def info_nce_64(x, y, temperature):
    return nll_64(unit_64(x) @ unit_64(y).T / temperature, np.arange(len(x)))


def ntxent_64(x, y, temperature):
    views = unit_64(np.concatenate([x, y]))
    logits = np.where(np.eye(len(views)), -np.inf, views @ views.T / temperature)
    n = len(x)
    nll = nll_64(logits, np.concatenate([np.arange(n) + n, np.arange(n)]))
    return (nll[:n] + nll[n:]) / 2


def siglip_64(x, y, temperature=0.1, bias=-10.0):
    logits = unit_64(x) @ unit_64(y).T / temperature + bias
    return np.log1p(np.exp(np.where(np.eye(len(x)), -logits, logits))).sum(-1)


def margin_64(cosines, labels, scale, turned):
    return nll_64(scale * np.where(labels[:, None] == np.arange(cosines.shape[-1]), turned, cosines), labels)


def arcface_64(cosines, labels, scale=64.0, margin=0.5):
    angle = np.arccos(cosines.real)
    turned = cosines * np.cos(margin) - np.sqrt(1 - cosines * cosines) * np.sin(margin)
    return margin_64(cosines, labels, scale, np.where(angle + margin < np.pi, turned, cosines - margin * np.sin(margin)))


def batch_hard_64(x, labels, margin=0.2, degree=2.0):
    values = []
    for i in range(len(x)):
        same = [norm_64(x[i] - x[j], degree) for j in range(len(x)) if j != i and labels[j] == labels[i]]
        other = [norm_64(x[i] - x[j], degree) for j in range(len(x)) if labels[j] != labels[i]]
        hard = max(same, key=np.real) - min(other, key=np.real) + margin if same and other else 0
        values.append(hard if np.real(hard) > 0 else 0)
    return np.array(values)


def semi_hard_64(x, labels, margin=1.0):
    values = []
    for i in range(len(x)):
        other = [norm_64(x[i] - x[j]) for j in range(len(x)) if labels[j] != labels[i]]
        terms = []
        for j in range(len(x)):
            if j != i and labels[j] == labels[i] and other:
                near = norm_64(x[i] - x[j])
                farther = [d for d in other if d.real > near.real]
                term = near - (min(farther, key=np.real) if farther else max(other, key=np.real)) + margin
                terms.append(term if term.real > 0 else 0)
        values.append(sum(terms) / max(len(terms), 1))
    return np.array(values)


def supervised_64(x, labels, temperature=0.1):
    logits = np.where(np.eye(len(x)), -np.inf, unit_64(x) @ unit_64(x).T / temperature)
    values = []
    for i in range(len(x)):
        positives = [j for j in range(len(x)) if j != i and labels[j] == labels[i]]
        row = np.delete(logits[i], i)
        values.append(sum(np.log(np.exp(row).sum()) - logits[i, j] for j in positives) / max(len(positives), 1))
    return np.array(values)


def listwise_64(s, y, temperature=1.0):
    values = []
    for scores, relevance in zip(s, y, strict=True):
        real = relevance >= 0
        z = scores[real] / temperature
        values.append((relevance[real] * (np.log(np.exp(z).sum()) - z)).sum() if real.any() else 0)
    return np.array(values)


def dcg_64(relevance, order, top=None):
    ranked = relevance[order][:top].astype(np.float64)
    return ((2**ranked - 1) / np.log2(np.arange(2, len(ranked) + 2))).sum()


def pairs_64(s, y, sigma=1.0, weight=lambda scores, relevance, i, j: 1.0):
    """Sum over pairs with y_i > y_j of weight * log(1 + exp(-sigma (s_i - s_j))), list by list, padding cut out."""
    values = []
    for scores, relevance in zip(s, y, strict=True):
        scores, relevance = scores[relevance >= 0], relevance[relevance >= 0]
        n = range(len(scores))
        pairs = [(i, j) for i in n for j in n if relevance[i] > relevance[j]]
        values.append(sum(weight(scores, relevance, i, j) * np.log1p(np.exp(-sigma * (scores[i] - scores[j]))) for i, j in pairs) + 0j)
    return np.array(values)


def ndcg_change(scores, relevance, i, j, top=None):
    """What NDCG changes by when the items i and j of the list as it is ranked now swap places."""
    order = np.argsort(-scores.real, kind="stable")
    swapped = order.copy()
    at_i, at_j = np.argwhere(order == i)[0, 0], np.argwhere(order == j)[0, 0]
    swapped[[at_i, at_j]] = j, i
    ideal = dcg_64(relevance, np.argsort(-relevance, kind="stable"), top)
    return abs(dcg_64(relevance, order, top) - dcg_64(relevance, swapped, top)) / ideal


PAIRS = (A, B)
CASES = {  # loss, options, numbers, formula, outputs, targets
    "cosine": ("cosine", (), {}, lambda x, y: 1 - (unit_64(x) * unit_64(y)).sum(-1), A, B),
    "cosine_embedding": (
        "cosine_embedding",
        (),
        {"margin": 0.1},
        lambda o, y: np.where(y == 1, 1 - (c := (unit_64(o[0]) * unit_64(o[1])).sum(-1)), relu(c - 0.1)),
        PAIRS,
        SIGNS,
    ),
    "contrastive": (
        "contrastive",
        (),
        {"margin": 3.0, "degree": 2.5},
        lambda o, y: np.where(y == 1, d := norm_64(o[0] - o[1], 2.5), relu(3.0 - d)) ** 2 / 2,
        PAIRS,
        SIGNS,
    ),
    "info_nce": ("info_nce", (), {"temperature": 0.2}, lambda o, _: info_nce_64(*o, 0.2), PAIRS, None),
    "ntxent": ("ntxent", (), {"temperature": 0.3}, lambda o, _: ntxent_64(*o, 0.3), PAIRS, None),
    "clip": ("clip", (), {"temperature": 0.2}, lambda o, _: (info_nce_64(*o, 0.2) + info_nce_64(*o[::-1], 0.2)) / 2, PAIRS, None),
    "clip, learned": (
        "clip",
        (),
        {},
        lambda o, _: (info_nce_64(*o[:2], 1 / o[2]) + info_nce_64(o[1], o[0], 1 / o[2])) / 2,
        (*PAIRS, np.float32(5.0)),
        None,
    ),
    "siglip": ("siglip", (), {"temperature": 0.25, "bias": -2.0}, lambda o, _: siglip_64(*o, 0.25, -2.0), PAIRS, None),
    "siglip, learned": (
        "siglip",
        (),
        {},
        lambda o, _: siglip_64(*o[:2], 1 / o[2], o[3]),
        (*PAIRS, np.float32(5.0), np.float32(-3.0)),
        None,
    ),
    "cosface": ("cosface", (), {"scale": 8.0}, lambda c, y: margin_64(c, y, 8.0, c - 0.35), COSINES, LABELS),
    "arcface": ("arcface", (), {"scale": 8.0}, lambda c, y: arcface_64(c, y, 8.0), COSINES, LABELS),
    "arcface, beyond pi": (
        "arcface",
        (),
        {"scale": 4.0},
        lambda c, y: arcface_64(c, y, 4.0),
        -0.05 * np.abs(COSINES) - np.float32(0.9),
        LABELS,
    ),
    "triplet": (
        "triplet",
        (),
        {"degree": 3.5},
        lambda o, _: relu(norm_64(o[0] - o[1], 3.5) - norm_64(o[0] - o[2], 3.5) + 1),
        (A, B, C),
        None,
    ),
    "triplet_batch_hard": ("triplet_batch_hard", (), {}, batch_hard_64, A, LABELS),
    "triplet_semi_hard": ("triplet_semi_hard", (), {}, semi_hard_64, A, LABELS),
    "supervised_contrastive": ("supervised_contrastive", (), {"temperature": 0.5}, lambda x, y: supervised_64(x, y, 0.5), A, LABELS),
    "listwise_softmax": ("listwise_softmax", (), {"temperature": 2.0}, lambda s, y: listwise_64(s, y, 2.0), SCORES, RELEVANCE),
    "pairwise_logistic": ("pairwise_logistic", (), {"sigma": 1.5}, lambda s, y: pairs_64(s, y, 1.5), SCORES, RELEVANCE),
    "lambdarank": ("lambdarank", (), {}, lambda s, y: pairs_64(s, y, weight=ndcg_change), SCORES, RELEVANCE),
    "lambdarank at 2": (
        "lambdarank",
        (("top", 2),),
        {},
        lambda s, y: pairs_64(s, y, weight=functools.partial(ndcg_change, top=2)),
        SCORES,
        RELEVANCE,
    ),
    "margin_ranking": ("margin_ranking", (), {"margin": 0.5}, lambda o, y: relu(0.5 - y * (o[0] - o[1])), (A[:, 0], B[:, 0]), SIGNS),
}


def assert_close(got, want, rtol=2e-6):
    # Relative to the largest entry: a gradient that vanishes is not asked for digits that float32 has not.
    np.testing.assert_allclose(got, want, rtol=rtol, atol=rtol * np.abs(want).max())


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient_are_the_formula(case):
    name, options, numbers, formula, outputs, targets = CASES[case]
    flat, _ = jax.flatten_util.ravel_pytree(jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), outputs))
    leaves, structure = jax.tree.flatten(outputs)
    ends = np.cumsum([np.size(leaf) for leaf in leaves])[:-1]

    def at(x):
        parts = np.split(x, ends)
        return formula(jax.tree.unflatten(structure, [p.reshape(np.shape(leaf)) for p, leaf in zip(parts, leaves, strict=True)]), targets)

    values, gradient = run(name, outputs, targets, options, **numbers)
    assert values.dtype == np.float32
    wide, h = np.asarray(flat, np.float64), 1e-30
    want = at(wide + 0j).real
    assert_close(values, want)
    weights = np.arange(1, want.size + 1)
    slopes = [(weights * at(wide + 1j * h * e)).sum().imag / h for e in np.eye(flat.size)]
    assert_close(jax.flatten_util.ravel_pytree(gradient)[0], slopes)


@pytest.mark.parametrize(
    "name", ["cosine", "cosine_embedding", "triplet_1", "triplet_2", "triplet_3.5", "triplet_2_swap", "margin_ranking"]
)
def test_torch(name):
    x, scores = TORCH["x"], TORCH["scores"]
    loss, *how = name.split("_") if name.startswith("triplet") else (name,)
    numbers = {} if name == "cosine" else {"margin": np.float32(0.3)}
    if how:
        numbers["degree"] = np.float32(how[0])
    outputs = {"cosine": x[0], "cosine_embedding": (x[0], x[1]), "margin_ranking": (scores[0], scores[1])}.get(name, tuple(x))
    targets = {"cosine": x[1], "triplet": None}.get(loss, TORCH["signs"])
    fn = functools.partial(getattr(losses, loss), **numbers, **({"swap": True} if "swap" in how else {}))
    values, gradient = jax.jit(lambda o: (fn(o, targets), jax.grad(lambda o: fn(o, targets).sum())(o)))(outputs)
    assert_close(values, TORCH[f"{name}.value"])
    want = TORCH[f"{name}.grad"]
    got = np.stack([np.asarray(g) for g in gradient]) if isinstance(gradient, tuple) else np.asarray(gradient)
    assert_close(got, want[: len(got)] if got.ndim == want.ndim else want[0])


def test_listwise_softmax_is_optax_s():
    s, y = SCORES[:2], RELEVANCE[:2].astype(np.float32)
    want = optax.losses.ranking_softmax_loss(s, y, reduce_fn=None)
    np.testing.assert_allclose(value("listwise_softmax", s, y), want, rtol=1e-6, atol=1e-7)


def test_coinciding_vectors_have_finite_gradients():
    zero = np.zeros_like(A)
    for name, outputs, targets in [
        ("cosine", A, A),
        ("cosine", zero, A),
        ("cosine", zero, zero),
        ("contrastive", (A, A), SIGNS),
        ("triplet", (A, A, A), None),
        ("triplet_batch_hard", zero, LABELS),
        ("triplet_semi_hard", zero, LABELS),
        ("supervised_contrastive", zero, LABELS),
        ("ntxent", (zero, zero), None),
        ("siglip", (zero, zero), None),
    ]:
        for leaf in jax.tree.leaves(run(name, outputs, targets)):
            assert np.isfinite(leaf).all(), name


def test_sizes_from_1e_20_to_1e20():
    # Squares of these leave float32 (1e-45 to 3e38); cosines and distances do not depend on such squares.
    for scale in np.float32([1e-20, 1e20]):
        np.testing.assert_allclose(value("cosine", A * scale, B), value("cosine", A, B), rtol=1e-5)
        np.testing.assert_allclose(value("info_nce", (A * scale, B), None), value("info_nce", (A, B), None), rtol=1e-5)
        got = value("triplet", (A * scale, B * scale, C * scale), None, margin=0.0)
        np.testing.assert_allclose(got / scale, value("triplet", (A, B, C), None, margin=0.0), rtol=1e-5)


def test_small_angles_keep_their_digits():
    # 1 - cos of an angle of 1e-3 is 5e-7: as a difference from 1 in float32 it would have one digit.
    x, y = np.float32([[1.0, 0.0]]), np.float32([[1.0, 1e-3]])
    np.testing.assert_allclose(value("cosine", x, y), 1 - 1 / np.sqrt(1 + np.float64(np.float32(1e-3)) ** 2), rtol=1e-5)


def test_small_cosines_and_small_angles_of_embeddings_keep_their_digits():
    # With a = arctan t: of (1, 0) and (t, 1) cos is sin a, of which 1 - (1 - cos) has few digits; of (1, t) 1 - cos is 2 sin^2(a / 2).
    x = np.float32([[1.0, 0.0]])
    for t in np.float32([1e-7, 1e-4, 1e-2]):
        angle = np.arctan(np.float64(t))
        far, near = (x, np.float32([[t, 1.0]])), (x, np.float32([[1.0, t]]))
        np.testing.assert_allclose(value("cosine_embedding", far, np.array([-1])), np.sin(angle), rtol=1e-6)
        np.testing.assert_allclose(value("cosine_embedding", near, np.array([1])), 2 * np.sin(angle / 2) ** 2, rtol=1e-5)
        # The gradient of cos in u is v - cos u.
        np.testing.assert_allclose(run("cosine_embedding", near, np.array([-1]))[1][0], [[0, np.sin(angle)]], rtol=1e-6, atol=1e-9)
    x, y = np.random.default_rng(0).normal(size=(2, 512, 128)).astype(np.float32)
    cosine = (unit_64(x.astype(np.float64)) * unit_64(y.astype(np.float64))).sum(-1)
    # 6e-8 is what a number just below 1 is rounded by; from 1 - cos it was 2e-7.
    np.testing.assert_allclose(value("cosine_embedding", (x, y), np.full(512, -1)), np.maximum(cosine, 0), atol=6e-8)


@pytest.mark.parametrize("name", ["margin_ranking", "cosine_embedding", "contrastive"])
def test_a_sign_that_is_none_is_loud_in_both_modes(name):
    """Also where the hinge is flat, and where 255 is what uint8 has for -1."""
    low = name == "margin_ranking"
    outputs = jax.tree.map(jnp.asarray, (A[:, 0], B[:, 0]) if low else (A, B))
    loss = jax.jit(functools.partial(getattr(losses, name), margin=-10.0 if name != "cosine_embedding" else 10.0))
    for targets in (np.array([1, 7, 1, 7, 1, 7]), np.array([1, 255, 1, 255, 1, 255], np.uint8)):
        pullback = jax.jit(lambda o, y: jax.vjp(lambda o: loss(o, y), o)[1](jnp.ones(6)))
        pushed = jax.jit(lambda o, y: jax.jvp(lambda o: loss(o, y), (o,), (jax.tree.map(jnp.ones_like, o),)))
        for x in jax.tree.leaves((pullback(outputs, targets), pushed(outputs, targets))):
            assert np.isnan(x[1::2]).all()
            assert np.isfinite(x[::2]).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_second_derivatives_of_cosines(sign):
    def formula(x, y):
        cosine = (x * y).sum() / jnp.sqrt((x * x).sum() * (y * y).sum())
        return 1 - cosine if sign == 1 else cosine

    with jax.enable_x64(True):
        x, y = jnp.asarray(A[0], jnp.float64), jnp.asarray(B[0], jnp.float64)
        loss = lambda x, y: losses.cosine_embedding((x[None], y[None]), jnp.array([sign]), margin=-2.0)[0]  # noqa: E731
        for got, want in zip(*(jax.tree.leaves(jax.jit(jax.hessian(f, (0, 1)))(x, y)) for f in (loss, formula)), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


def test_arcface_and_cosface_at_the_ends_of_the_cosine():
    ends = np.float32([[1.0, -1.0], [-1.0, 1.0], [1.0, 1.0], [1.0000001, 0.0]])
    for name in ("arcface", "cosface"):
        for x in run(name, ends, np.zeros(4, np.int32)):
            assert np.isfinite(x).all(), name
    # cos = 1: angle 0, so the logit is s cos m; the other one is -s.
    values = value("arcface", ends[:1], np.zeros(1, np.int32))
    np.testing.assert_allclose(values, np.log1p(np.exp(-64 - 64 * np.cos(0.5))), atol=1e-30)


def test_no_margin_is_cross_entropy():
    want = jax.jit(losses.cross_entropy)(8 * COSINES, LABELS)
    for name in ("arcface", "cosface"):
        np.testing.assert_allclose(value(name, COSINES, LABELS, scale=8.0, margin=0.0), want, rtol=1e-6)


def test_margin_losses_treat_labels_as_cross_entropy_does():
    labels = np.array([0, -100, 7, 2, 1, 0], np.int32)
    cosines = COSINES.copy()
    cosines[1] = np.nan
    for name in ("arcface", "cosface"):
        values, gradient = run(name, cosines, labels)
        assert values[1] == 0
        np.testing.assert_array_equal(gradient[1], 0)
        assert np.isnan(values[2])
        assert np.isnan(gradient[2]).all()
        assert np.isfinite(np.delete(values, 2)).all()
        with pytest.raises(ValueError, match="label 7"):
            getattr(losses, name)(cosines, labels)


@pytest.mark.parametrize("name", ["info_nce", "ntxent", "clip", "siglip"])
def test_a_pair_that_is_padding_is_as_if_it_were_not_there(name):
    real = np.array([1, 1, 0, 1, 0, 1], np.int32)
    keep = real == 1
    x, y = (np.where(keep[:, None], e, np.nan).astype(np.float32) for e in PAIRS)
    values, gradient = run(name, (x, y), real)
    want = run(name, (A[keep], B[keep]), None)
    np.testing.assert_allclose(values[keep], want[0], rtol=2e-6)
    np.testing.assert_array_equal(values[~keep], 0)
    for g in gradient:
        assert np.isfinite(g).all()
        np.testing.assert_array_equal(g[~keep], 0)
    pair = jax.jit(loss_total, static_argnums=0)(getattr(losses, name), (A, B), np.ones(6, np.int32), keep.astype(np.float32))
    np.testing.assert_allclose(mean(pair), want[0].mean(), rtol=2e-6)


@pytest.mark.parametrize("name", ["triplet_batch_hard", "triplet_semi_hard", "supervised_contrastive"])
def test_an_ignored_label_is_in_no_pair(name):
    labels = np.array([0, 1, 0, -100, 1, 0], np.int32)
    keep = labels >= 0
    x = np.where(keep[:, None], A, np.nan).astype(np.float32)
    values, gradient = run(name, x, labels)
    np.testing.assert_allclose(values[keep], value(name, A[keep], labels[keep]), rtol=2e-6)
    assert values[3] == 0
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[3], 0)


def test_semi_hard_negatives_are_strictly_farther():
    # From 0 the positive is at 1 and so is a negative: the one at 3 is taken, 1 - 3 + 1.5 < 0; with the tie it would be 1.5.
    x, labels = np.float32([[0.0], [1.0], [-1.0], [3.0]]), np.array([0, 0, 1, 1], np.int32)
    values = value("triplet_semi_hard", x, labels, margin=1.5)
    assert values[0] == 0
    np.testing.assert_allclose(values, semi_hard_64(x.astype(np.float64), labels, margin=1.5), rtol=1e-6)


def test_the_mean_counts_anchors_that_have_a_pair():
    for name in ("triplet_batch_hard", "triplet_semi_hard", "supervised_contrastive"):
        loss = getattr(losses, name)
        pair = loss_total(loss, A, LABELS)
        assert pair.weight == 5  # LABELS has one example alone
        np.testing.assert_allclose(mean(pair), value(name, A, LABELS).sum() / 5, rtol=1e-6)
        assert mean(loss_total(loss, A, np.arange(6, dtype=np.int32))) == 0


@hypothesis.settings(max_examples=15, deadline=None)
@hypothesis.given(st.permutations(range(6)))
def test_the_batch_has_no_order(order):
    order = list(order)
    for name in ("triplet_batch_hard", "triplet_semi_hard", "supervised_contrastive"):
        np.testing.assert_allclose(value(name, A[order], LABELS[order]), value(name, A, LABELS)[order], rtol=2e-6, atol=1e-6)
    for name in ("clip", "ntxent", "siglip"):
        np.testing.assert_allclose(value(name, (A[order], B[order]), None), value(name, PAIRS, None)[order], rtol=2e-6)
    for name in ("listwise_softmax", "pairwise_logistic", "lambdarank"):
        got = value(name, SCORES[:, order], RELEVANCE[:, order])
        np.testing.assert_allclose(got, value(name, SCORES, RELEVANCE), rtol=2e-6)


def test_rotations_change_nothing():
    rotation, _ = np.linalg.qr(draw(4, 4).astype(np.float64))
    turn = lambda x: (x.astype(np.float64) @ rotation).astype(np.float32)  # noqa: E731
    np.testing.assert_allclose(value("clip", (turn(A), turn(B)), None), value("clip", PAIRS, None), rtol=1e-5)
    np.testing.assert_allclose(value("triplet_semi_hard", turn(A), LABELS), value("triplet_semi_hard", A, LABELS), rtol=1e-5)


@pytest.mark.parametrize("name", ["listwise_softmax", "pairwise_logistic", "lambdarank"])
def test_ranking_extremes_and_padding(name):
    relevance = np.int32([[2, 1, 0], [2, 1, -1]])
    for scores in (np.float32([[1e4, 0, -1e4]] * 2), np.float32([[-1e4, 0, 1e4]] * 2), np.zeros((2, 3), np.float32)):
        for x in run(name, scores, relevance):
            assert np.isfinite(x).all()
    first, *others = [run(name, np.float32([[0.5, 0, 1], [1, 2, garbage]]), relevance) for garbage in (0.0, np.nan, np.inf)]
    for other in others:
        np.testing.assert_array_equal(other[0], first[0])
        np.testing.assert_array_equal(other[1], first[1])
    assert first[1][1, 2] == 0
    for x in run(name, np.zeros((2, 3), np.float32), np.full((2, 3), -1, np.int32)):
        np.testing.assert_array_equal(x, 0)


@pytest.mark.parametrize("name", ["listwise_softmax", "pairwise_logistic", "lambdarank"])
def test_a_score_of_minus_infinity_is_a_very_low_one(name):
    scores, relevance = np.float32([[1, -np.inf, 0, -np.inf], [0.5, 1, -np.inf, 0]]), np.int32([[2, 0, 1, 0], [1, 2, 0, -1]])
    low = np.where(np.isinf(scores), -1e4, scores).astype(np.float32)
    for got, want in zip(run(name, scores, relevance), run(name, low, relevance), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)
    loss = getattr(losses, name)
    pushed, expected = (
        jax.jit(lambda s: jax.jvp(lambda s: loss(s, relevance), (s,), (jnp.asarray(SCORES[:2, :4]),)))(s) for s in (scores, low)
    )
    np.testing.assert_allclose(jnp.array(pushed), jnp.array(expected), rtol=1e-6)
    if name != "listwise_softmax":
        in_sigma = jax.jit(jax.grad(lambda sigma, s: loss(s, relevance, sigma=sigma).sum()))
        np.testing.assert_allclose(in_sigma(1.0, scores), in_sigma(1.0, low), rtol=1e-6)
        assert np.isfinite(jax.jit(jax.hessian(lambda s: loss(s, relevance).sum()))(scores)).all()


@pytest.mark.parametrize("name", ["listwise_softmax", "pairwise_logistic", "lambdarank"])
def test_an_unknown_relevance_is_loud_in_its_whole_list_alone(name):
    relevance = RELEVANCE.astype(np.float32)
    good = run(name, SCORES, relevance)
    relevance[0, 3] = np.nan
    values, gradient = run(name, SCORES, relevance)
    assert np.isnan(values[0])
    assert np.isnan(gradient[0]).all()
    np.testing.assert_array_equal(values[1:], good[0][1:])
    np.testing.assert_array_equal(gradient[1:], good[1][1:])
    pushed = jax.jit(lambda s: jax.jvp(lambda s: getattr(losses, name)(s, relevance), (s,), (jnp.zeros_like(s),))[1])(SCORES)
    np.testing.assert_array_equal(np.isnan(pushed), [True, False, False, False])


def test_no_relevance_is_too_large_for_lambdarank():
    # One relevant item at rank 2: the swap gains all of 1 / log2(2) - 1 / log2(3), whatever the gain is, as it is the ideal DCG too.
    want = (1 - 1 / np.log2(3)) * np.log1p(np.exp(1.0))
    relevance = np.float32([[y, 0] for y in (1, 30, 125, 126, 127, 128, 1e4, 1e30)])
    np.testing.assert_allclose(value("lambdarank", np.tile(np.float32([[1, 2]]), (8, 1)), relevance), want, rtol=1e-6)
    # 2^y - 1 of small and of close relevances, against the largest.
    scores, relevance = SCORES[:2], np.float32([[1e-3, 0, 2e-3, 3e-3, 0, 0], [100, 101, 0, 99, 60, 101]])
    want = pairs_64(scores.astype(np.float64), relevance.astype(np.float64), weight=ndcg_change).real
    np.testing.assert_allclose(value("lambdarank", scores, relevance), want, rtol=2e-6)


@pytest.mark.parametrize("top", [None, 995])
def test_lambdarank_keeps_its_digits_on_deep_ranks(top):
    # d/ds_j of the pairs of the one relevant item i at rank n - 1, whose ideal DCG is 1: |D_i - D_j| / (1 + e^(s_i - s_j)).
    n = 1000
    scores, ranks = np.sort(draw(n))[::-1].copy(), np.arange(1, n + 1)
    discount = np.where(ranks <= (top or n), 1 / np.log2(1 + ranks), 0)
    slope = np.abs(discount - discount[n - 2]) / (1 + np.exp(scores[n - 2] - scores.astype(np.float64)))
    slope[n - 2] = -slope.sum()
    relevance = (ranks == n - 1).astype(np.int32)
    gradient = jax.jit(jax.grad(lambda s: losses.lambdarank(s, relevance, top=top)))(scores)
    np.testing.assert_allclose(gradient, slope, rtol=1e-6)


def test_a_list_of_nothing():
    nothing = np.zeros((2, 0), np.float32)
    for name in ("listwise_softmax", "pairwise_logistic", "lambdarank"):
        values, gradient = run(name, nothing, nothing)
        np.testing.assert_array_equal(values, [0, 0])
        assert gradient.shape == (2, 0)


def test_wrongly_ordered_extremes_are_right():
    scores, relevance = np.float32([[-1e4, 1e4]]), np.int32([[1, 0]])
    np.testing.assert_allclose(value("pairwise_logistic", scores, relevance), 2e4, rtol=1e-6)
    np.testing.assert_allclose(value("listwise_softmax", scores, relevance), 2e4, rtol=1e-6)
    np.testing.assert_allclose(value("lambdarank", scores, relevance), 2e4 * (1 - 1 / np.log2(3)), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_float32_on_the_rounded_inputs(dtype):
    for name, outputs, targets in [
        ("cosine", A, B),
        ("triplet", (A, B, C), None),
        ("siglip", PAIRS, None),
        ("supervised_contrastive", A, LABELS),
        ("lambdarank", SCORES, RELEVANCE),
    ]:
        rounded = jax.tree.map(lambda x: np.asarray(jnp.asarray(x, dtype)), (outputs, targets if name == "cosine" else None))
        targets = targets if name != "cosine" else rounded[1]
        loss = jax.jit(getattr(losses, name))
        got = loss(rounded[0], targets)
        assert got.dtype == jnp.float32
        wide = jax.tree.map(lambda x: x.astype(np.float32), rounded[0])
        np.testing.assert_array_equal(got, loss(wide, targets.astype(np.float32) if name == "cosine" else targets), err_msg=name)


def test_float64_stays_float64():
    with jax.enable_x64(True):
        wide = tuple(x.astype(np.float64) for x in PAIRS)
        np.testing.assert_allclose(jax.jit(losses.info_nce)(wide, temperature=0.2), info_nce_64(*wide, 0.2), rtol=1e-12)
        got = jax.jit(losses.lambdarank)(SCORES.astype(np.float64), RELEVANCE)
        assert got.dtype == np.float64
        np.testing.assert_allclose(got, pairs_64(SCORES.astype(np.float64), RELEVANCE, weight=ndcg_change).real, rtol=1e-12)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"\(6, 4\).*\(6, 3\)"):
        losses.cosine(A, B[:, :3])
    with pytest.raises(ValueError, match=r"\(6, 4\) and \(6, 3\)"):
        losses.info_nce((A, B[:, :3]))
    with pytest.raises(ValueError, match=r"one array \(6, 4\)"):
        losses.triplet(A)
    with pytest.raises(ValueError, match=r"\(6, 4\).*\(6, 1\)"):
        losses.contrastive(PAIRS, SIGNS[:, None])
    with pytest.raises(ValueError, match=r"\(6, 4\).*\(5,\)"):
        losses.supervised_contrastive(A, LABELS[:5])
    with pytest.raises(ValueError, match=r"\(4, 6\).*\(4, 5\)"):
        losses.lambdarank(SCORES, RELEVANCE[:, :5])
    with pytest.raises(ValueError, match=r"\(6,\).*\(6, 1\)"):
        losses.margin_ranking((A[:, 0], B[:, 0]), SIGNS[:, None])


def test_norms_at_zero_parts_and_infinite_degree():
    # |a|^2 / 2 has the identity for a second derivative, also where a part of a is 0.
    half_square = lambda a: losses.contrastive((a[None], jnp.zeros((1, 2))), jnp.array([1])).sum()  # noqa: E731
    np.testing.assert_allclose(jax.hessian(half_square)(jnp.array([3.0, 0.0])), np.eye(2), atol=1e-6)
    far = (jnp.array([[1.0, -2.0]]), jnp.zeros((1, 2)), jnp.zeros((1, 2)))
    value, slope = jax.value_and_grad(
        lambda a: losses.triplet((a, *far[1:]), degree=jnp.inf).sum() + losses.triplet((far[1], a, far[1]), degree=jnp.inf).sum()
    )(far[0])
    np.testing.assert_allclose(value, 1.0 + 3.0)
    np.testing.assert_allclose(slope, [[0.0, -1.0]])


def test_a_batch_of_nothing():
    z, y = jnp.zeros((0, 4)), jnp.zeros(0, int)
    for loss in (losses.triplet_batch_hard, losses.triplet_semi_hard, losses.supervised_contrastive):
        assert loss(z, y).shape == (0,)
    for loss in (losses.info_nce, losses.ntxent, losses.clip, losses.siglip):
        assert loss((z, z)).shape == (0,)
