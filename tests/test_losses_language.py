"""Losses on sequences against enumeration of every alignment, formulas in float64, and torch."""

import functools
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lossopt_jax import losses
from lossopt_jax.recipe import bind
from lossopt_jax.reduce import loss_total, mean

RNG = np.random.default_rng(5)
TORCH = np.load(pathlib.Path(__file__).parent / "references" / "language_torch.npz")


@functools.partial(jax.jit, static_argnames=("blank", "zero_infinity"))
def ctc(logits, labels, frames, **options):
    """Values, and the gradient of each example's in its own logits."""

    def total(z):
        values = losses.ctc(z, (labels, frames), **options)
        return jnp.where(jnp.isinf(values), 0, values).sum(), values

    grads, values = jax.grad(total, has_aux=True)(logits)
    return values, grads


def ctc_by_enumeration(logits, labels, frames, blank):
    """The value and gradient of one example from every string of classes as long as its frames, in float64."""
    z = logits[:frames].astype(np.float64)
    log_p = z - np.log(np.exp(z - z.max(-1, keepdims=True)).sum(-1, keepdims=True)) - z.max(-1, keepdims=True)
    total, occupied = 0.0, np.zeros_like(z)
    for path in itertools.product(range(z.shape[-1]), repeat=frames):
        if [symbol for symbol, _ in itertools.groupby(path) if symbol != blank] == list(labels):
            p = np.exp(log_p[np.arange(frames), path].sum())
            total += p
            occupied[np.arange(frames), path] += p
    grads = np.zeros(logits.shape)
    if total == 0:
        return np.inf, grads
    grads[:frames] = np.exp(log_p) - occupied / total
    return -np.log(total), grads


# k = 3 and 5 frames at most: 243 strings. Repeats, silence, no frames, and too few of them.
SPELT = [[1, 2], [1, 1], [2, 2, 2], [], [2], [1, 2, 1], [], [1], [2, 2, 2], [1, 2, 1, 2]]
READ = [5, 5, 5, 4, 5, 3, 0, 0, 4, 5]


@pytest.mark.parametrize("blank", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_ctc_is_the_sum_over_every_alignment(blank):
    logits = 2 * RNG.normal(size=(10, 5, 3))
    logits[1] *= 20  # all but certain, of something else
    rename = {0: [0, 1, 2], 2: [2, 0, 1]}[blank]
    labels = np.array([[rename[label] for label in row] + [-100] * (4 - len(row)) for row in SPELT])
    wanted = [ctc_by_enumeration(z, [rename[label] for label in row], n, blank) for z, row, n in zip(logits, SPELT, READ, strict=True)]
    with jax.enable_x64(True):
        values, grads = ctc(jnp.asarray(logits), labels, np.array(READ), blank=blank)
    np.testing.assert_allclose(values, [value for value, _ in wanted], rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(grads, [grad for _, grad in wanted], rtol=1e-10, atol=1e-13)


def test_ctc_is_torch_s():
    z, labels, frames = (TORCH[f"ctc_{name}"] for name in ("logits", "labels", "frames"))
    values, grads = ctc(z, labels, frames)
    np.testing.assert_allclose(values, TORCH["ctc_inf"], rtol=2e-6)
    assert np.isinf(values[5])
    np.testing.assert_allclose(grads, TORCH["ctc.grad"], atol=5e-7)
    values = jax.jit(functools.partial(losses.ctc, zero_infinity=True))(z, (labels, frames))
    np.testing.assert_allclose(values, TORCH["ctc.value"], rtol=2e-6)


@pytest.mark.slow
def test_ctc_keeps_its_digits_over_many_frames():
    """Float32 against float64, where sums of logarithms have an error of 1e-4 in the gradient: values are about 1,500."""
    z = np.float32(3 * RNG.normal(size=(4, 300, 20)))
    labels, frames = RNG.integers(1, 20, (4, 60)), np.array([300, 250, 200, 150])
    values, grads = ctc(z, labels, frames)
    with jax.enable_x64(True):
        wanted, slopes = ctc(jnp.asarray(z, jnp.float64), labels, frames)
    np.testing.assert_allclose(values, wanted, rtol=2e-6)
    np.testing.assert_allclose(grads, slopes, atol=1e-5)
    paddings = np.float32(np.arange(300)[None, :] >= frames[:, None])
    np.testing.assert_allclose(values, optax.ctc_loss(z, paddings, labels, np.zeros((4, 60))), rtol=1e-5)
    assert np.abs(np.asarray(grads).sum(-1)).max() < 1e-5  # softmax takes no notice of a shift


def test_ctc_padding_is_where_it_is_and_holds_what_it_likes():
    z, labels, frames = (TORCH[f"ctc_{name}"] for name in ("logits", "labels", "frames"))
    scattered = labels.copy()
    scattered[1], scattered[2] = [2, -100, 2, 6, -100], [-100, -100, -100, 3, -100]
    labels = np.stack([row[np.argsort(row == -100, kind="stable")] for row in scattered])
    spoilt = np.where(np.arange(12)[None, :, None] < frames[:, None, None], z, np.float32(np.nan))
    values, grads = ctc(z, labels, frames)
    for got, want in zip(ctc(spoilt, scattered, frames), (values, grads), strict=True):
        np.testing.assert_array_equal(got, want)
    # An example without weight has neither labels nor frames.
    kept = jax.jit(lambda z: mean(loss_total(losses.ctc, z, (labels, frames), np.array([1.0, 0, 1, 0, 1, 0]))))
    np.testing.assert_allclose(kept(z), np.asarray(values)[[0, 2, 4]].mean(), rtol=1e-6)


@pytest.mark.slow
def test_ctc_extremes():
    """Logits of 1e4 for and against, all alike, classes masked by -inf, and the reading that is certain."""
    labels, frames = np.array([[1, 2, 1, -100, -100]] * 6), np.array([12] * 6)
    path = np.eye(7, dtype=np.float32)[[1, 1, 2, 0, 1, 1, 1, 0, 0, 0, 0, 0]]
    masked = np.where(np.arange(7) == 3, -np.inf, path)
    z = np.stack([1e4 * path, -1e4 * path, np.full_like(path, 1e4), masked, RNG.choice([-1e4, 0, 1e4], (12, 7)), 1e-8 * path])
    values, grads = ctc(z.astype(np.float32), labels, frames)
    with jax.enable_x64(True):
        wanted, slopes = ctc(jnp.asarray(z.astype(np.float32), jnp.float64), labels, frames)
    assert values[0] == 0
    np.testing.assert_allclose(values, wanted, rtol=1e-5)
    np.testing.assert_allclose(grads, slopes, atol=1e-6)
    assert np.isfinite(grads).all()


@pytest.mark.slow
def test_ctc_second_derivatives():
    """Of the values, against differences of the gradient."""
    labels, frames = np.array([[1, 1], [2, 1]]), np.array([4, 5])
    with jax.enable_x64(True):
        z, along = jnp.asarray(RNG.normal(size=(2, 5, 3))), jnp.asarray(RNG.normal(size=(2, 5, 3)))
        slope = jax.jit(jax.grad(lambda z: losses.ctc(z, (labels, frames)).sum()))
        _, curved = jax.jvp(slope, (z,), (along,))
        np.testing.assert_allclose(curved, (slope(z + 1e-5 * along) - slope(z - 1e-5 * along)) / 2e-5, rtol=1e-6, atol=1e-8)


def test_ctc_names_what_is_wrong():
    z = np.zeros((2, 4, 5), np.float32)
    with pytest.raises(ValueError, match=r"label 0 is not a class to spell: 0 to 4 without the blank, 0, or -100"):
        losses.ctc(z, np.array([[1, 0], [1, 1]]))
    with pytest.raises(ValueError, match="number of frames 5 is not in 0 to 4"):
        losses.ctc(z, (np.array([[1, 2], [1, 1]]), np.array([4, 5])))
    with pytest.raises(ValueError, match="blank must be one of the 5 classes, got 5"):
        losses.ctc(z, np.array([[1, 2], [1, 1]]), blank=5)
    with pytest.raises(ValueError, match=r"frames \(3,\)"):
        losses.ctc(z, (np.array([[1, 2], [1, 1]]), np.array([4, 4, 4])))
    z, labels, frames = (TORCH[f"ctc_{name}"] for name in ("logits", "labels", "frames"))
    labels, frames = labels.copy(), frames.copy()
    labels[0, 1], frames[1], labels[2, 3] = 0, 13, -1
    values, grads = ctc(z, labels, frames)
    np.testing.assert_array_equal(np.isnan(values), [True, True, True, False, False, False])
    np.testing.assert_array_equal(np.isnan(grads[:, 0]).all(-1), np.isnan(values))


def test_token_cross_entropy_with_all_its_options_is_torch_s():
    z, labels = TORCH["tokens"], TORCH["token_labels"]
    loss = functools.partial(losses.cross_entropy, label_smoothing=TORCH["smoothing"], class_weights=TORCH["class_weights"])

    @jax.jit
    def both(z):
        values, back = jax.vjp(lambda z: loss(z, labels), z)
        return values, back(jnp.ones_like(values))[0], *jax.value_and_grad(lambda z: mean(loss_total(loss, z, labels)))(z)

    wanted = (TORCH[f"{name}.{part}"] for name in ("tokens", "tokens_mean") for part in ("value", "grad"))
    for got, want in zip(both(z), wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-6, atol=5e-7 * np.abs(want).max())


def test_a_z_loss_beside_cross_entropy_is_that_of_the_head():
    """On tokens, some ignored and some masked: the sum by value of the two losses is `linear_cross_entropy` with its option."""
    hidden, kernel = np.float32(RNG.normal(size=(3, 5, 4))), np.float32(RNG.normal(size=(4, 9)))
    labels, weights = TORCH["token_labels"], np.float32(RNG.random((3, 5)) < 0.7)
    head = losses.Head(jnp.asarray(hidden), jnp.asarray(kernel))
    parts = (bind(losses.cross_entropy, label_smoothing=0.1), bind(losses.z_loss))
    both = bind(losses.weighted_sum, losses=parts, weights=[1.0, 0.25])
    found = jax.jit(lambda head: loss_total(both, head.logits(), labels, weights))(head)
    of_head = functools.partial(losses.linear_cross_entropy, label_smoothing=0.1, z_loss=0.25)
    wanted = jax.jit(lambda head: loss_total(of_head, head, labels, weights))(head)
    np.testing.assert_allclose(found, wanted, rtol=2e-6)
    z = hidden.astype(np.float64) @ kernel
    lse = np.log(np.exp(z).sum(-1))
    np.testing.assert_allclose(losses.z_loss(z.astype(np.float32), labels), np.where(labels < 0, 0, lse**2), rtol=2e-6)


def test_z_loss_of_logits_far_from_0():
    z = np.float32([[-1e4, 0, 0], [1e4, 1e4, 1e4], [-1e-4, 1e-4, -jnp.inf]])
    lse = np.logaddexp.reduce(z.astype(np.float64), axis=-1)
    wanted, slopes = lse**2, 2 * lse[:, None] * np.exp(z - lse[:, None])
    values, grads = jax.jit(jax.vmap(jax.value_and_grad(losses.z_loss)))(z, np.array([0, 1, 2]))
    np.testing.assert_allclose(values, wanted, rtol=2e-6)
    np.testing.assert_allclose(grads, slopes, rtol=2e-6)


def test_distillation_is_torch_s():
    @jax.jit
    def both(z):
        values, back = jax.vjp(lambda z: losses.distillation(z, TORCH["teacher"], temperature=TORCH["temperature"]), z)
        return values, back(jnp.ones_like(values))[0]

    values, grads = both(TORCH["tokens"])
    np.testing.assert_allclose(values, TORCH["distillation.value"], rtol=5e-6, atol=1e-6)
    np.testing.assert_allclose(grads, TORCH["distillation.grad"], rtol=2e-6, atol=1e-6)


@pytest.mark.slow
def test_distillation_with_hard_labels_and_at_its_limits():
    z, teacher = np.float32(RNG.normal(size=(4, 6))), np.float32(RNG.normal(size=(4, 6)))
    labels = np.array([0, 5, -100, 2])
    mixed = losses.weighted_tasks((z, z), (teacher, labels), losses=(losses.distillation, losses.cross_entropy), weights=(0.75, 0.25))
    wanted = 0.75 * losses.distillation(z, teacher) + 0.25 * losses.cross_entropy(z, labels)
    np.testing.assert_allclose(mixed, wanted, rtol=1e-6)
    assert (np.asarray(losses.distillation(z, z)) < 1e-6).all()
    # A teacher that is certain is a label, one that masks a class never looks at the student there.
    certain = np.float32([[1e4, 0, 0], [0, 1, -np.inf]])
    student = np.float32([[0, 1, 2], [1, 0, -np.inf]])
    found, back = jax.vjp(lambda z: losses.distillation(z, certain, temperature=1.0), student)
    np.testing.assert_allclose(found[0], losses.cross_entropy(student, np.array([0, 0]))[0], rtol=1e-6)
    p = 1 / (1 + np.exp(-1.0))
    np.testing.assert_allclose(found[1], 2 * p - 1, rtol=2e-6)  # KL of (1-p, p) from (p, 1-p) is (2p - 1) log(p / (1 - p)), of odds e
    assert np.isfinite(back(jnp.ones(2))[0]).all()
    # For large temperatures T^2 KL is half the squared distance of centred logits, over the number of classes (Hinton's limit).
    centred = (z - z.mean(-1, keepdims=True)) - (teacher - teacher.mean(-1, keepdims=True))
    with jax.enable_x64(True):
        wide = losses.distillation(jnp.asarray(z, jnp.float64), jnp.asarray(teacher, jnp.float64), temperature=1e4)
    np.testing.assert_allclose(wide, np.square(centred).mean(-1) / 2, rtol=1e-3)


def test_preferences_are_the_formulas():
    outputs, targets = tuple(np.float32(RNG.normal(size=(2, 40)) * 30)), tuple(np.float32(RNG.normal(size=(2, 40)) * 30))
    h = (outputs[0].astype(np.float64) - targets[0]) - (outputs[1].astype(np.float64) - targets[1])
    beta, a = np.float32(0.3), np.float32(0.05)
    wanted = (1 - a) * np.logaddexp(0, -beta * h) + a * np.logaddexp(0, beta * h)
    np.testing.assert_allclose(losses.dpo(outputs, targets, beta=beta, label_smoothing=a), wanted, rtol=2e-6)
    np.testing.assert_allclose(losses.ipo(outputs, targets, beta=beta), (h - 1 / (2 * np.float64(beta))) ** 2, rtol=5e-6, atol=1e-3)
    chosen, rejected = jax.grad(lambda pair: losses.dpo(pair, targets, beta=beta).sum())(outputs)
    np.testing.assert_allclose(chosen, -beta / (1 + np.exp(beta * h)), rtol=5e-6)
    np.testing.assert_array_equal(chosen, -rejected)
    np.testing.assert_allclose(losses.dpo(outputs, outputs), np.log(2) * np.ones(40), rtol=1e-6)
    with pytest.raises(ValueError, match=r"four arrays of one shape, got \(\(40,\), \(40,\)\) and \(\(40, 1\), \(40, 1\)\)"):
        losses.dpo(outputs, tuple(x[:, None] for x in targets))
    with pytest.raises(ValueError, match="must each be"):
        losses.dpo(outputs[0], targets)


def test_log_probabilities_of_sequences():
    z, labels = TORCH["tokens"], TORCH["token_labels"]
    log_p = z.astype(np.float64) - np.log(np.exp(z.astype(np.float64)).sum(-1, keepdims=True))
    wanted = np.where(labels < 0, 0, np.take_along_axis(log_p, np.maximum(labels, 0)[..., None], -1)[..., 0]).sum(-1)
    np.testing.assert_allclose(losses.sequence_log_probs(z, labels), wanted, rtol=2e-6)
    grads = jax.grad(lambda z: losses.sequence_log_probs(z, labels).sum())(np.where((labels < 0)[..., None], np.float32(np.nan), z))
    np.testing.assert_allclose(grads, np.where((labels < 0)[..., None], 0, np.eye(9)[np.maximum(labels, 0)] - np.exp(log_p)), atol=1e-6)


def spelled_in_long_doubles(logits, labels):
    """-log of the sum over all readings, by the recursion over probabilities, and its slope by differences, in long doubles."""

    def nll(z):
        p = np.exp(z - z.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        states = [0]  # blank, label, blank, label ...
        for label in labels:
            states += [label, 0]
        alpha = np.zeros(len(states))
        alpha[:2] = p[0, states[:2]]
        for row in p[1:]:
            skip = [alpha[i - 2] if i > 1 and states[i] and states[i] != states[i - 2] else 0.0 for i in range(len(states))]
            alpha = row[states] * (alpha + np.concatenate([[0.0], alpha[:-1]]) + skip)
        return -np.log(alpha[-1] + (alpha[-2] if len(states) > 1 else 0))

    z = np.asarray(logits, np.longdouble)
    slope, step = np.zeros(z.shape), np.longdouble(1e-4)
    for at in np.ndindex(*z.shape):
        there, back = z.copy(), z.copy()
        there[at] += step
        back[at] -= step
        slope[at] = (nll(there) - nll(back)) / (2 * step)
    return float(nll(z)), slope


@pytest.mark.parametrize("sure", [3.0, 8.0, 12.0, 16.0])
def test_ctc_keeps_its_digits_as_the_transcript_becomes_certain(sure):
    """A loss from 1 to 1e-6: torch's float32 is off by 2e-5 of the slope at 0.06, and by 3 % at 2e-5."""
    labels, spoken = [1, 2, 1, 3], np.repeat([1, 2, 1, 3], 4)
    logits = np.random.default_rng(0).normal(size=(17, 5)).astype(np.float32) * 0.1
    logits[np.arange(17), [*spoken, 0]] += sure
    logits[3::4, 0] += sure  # every fourth frame is as likely silent
    expected, slope = spelled_in_long_doubles(logits, labels)
    value, gradient = jax.jit(jax.value_and_grad(lambda z: losses.ctc(z, jnp.array(labels))))(jnp.asarray(logits))
    np.testing.assert_allclose(value, expected, rtol=2e-6)
    np.testing.assert_allclose(gradient, slope, atol=2e-6 * np.abs(slope).max())


def test_ctc_of_no_labels_and_of_no_frames():
    silence = losses.ctc(jnp.zeros((1, 4, 3)), jnp.zeros((1, 0), jnp.int32))
    np.testing.assert_allclose(silence, [4 * np.log(3)], rtol=1e-6)
    np.testing.assert_array_equal(silence, losses.ctc(jnp.zeros((1, 4, 3)), jnp.array([[-100, -100]])))
    np.testing.assert_array_equal(losses.ctc(jnp.zeros((2, 0, 3)), jnp.zeros((2, 0), jnp.int32)), [0, 0])
    np.testing.assert_array_equal(losses.ctc(jnp.zeros((2, 0, 3)), jnp.ones((2, 1), jnp.int32)), [np.inf, np.inf])
    assert losses.ctc(jnp.zeros((0, 4, 3)), jnp.zeros((0, 2), jnp.int32)).shape == (0,)
    assert jax.grad(lambda z: losses.ctc(z, jnp.zeros((1, 0), jnp.int32)).sum())(jnp.zeros((1, 4, 3))).shape == (1, 4, 3)


def test_a_wrong_label_of_ctc_is_loud_where_there_is_no_room_for_it_too():
    def value(z, y):
        return losses.ctc(z, y).sum()

    z, y = jnp.zeros((1, 2, 3)), jnp.array([[1, 7, 2]])
    loss, slope = jax.jit(jax.value_and_grad(value))(z, y)
    along = jax.jit(lambda z, y: jax.jvp(lambda z: value(z, y), (z,), (jnp.ones_like(z),))[1])(z, y)
    assert np.isnan(loss)
    assert np.isnan(slope).all()
    assert np.isnan(along)
