import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import lossopt_jax as lo
from lossopt_jax.data import as_batch, batch_indices, pieces
from lossopt_jax.loop import evaluation_steps
from lossopt_jax.reduce import mean
from lossopt_jax.train import _packed

MODEL = lo.from_linen(nn.Dense(1))
X = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
Y = X @ np.array([[1.0], [-2.0], [0.5]], np.float32) + 0.1


def recipe(value=0.05):
    return lo.Recipe(lo.bind(lo.losses.mse), lo.bind(lo.optimizers.adam), lo.bind(lo.schedules.constant, value=value))


def test_fit_learns_and_reports():
    fitted = lo.fit(MODEL, recipe(), train=(X, Y), evaluate=(X[:20], Y[:20]), run=lo.Run(steps=300, batch_size=8, evaluate_every=100))
    assert fitted.history["loss"].shape == (300,)
    assert {"loss", "learning_rate", "grad_norm", "update_norm"} <= set(fitted.history)
    assert fitted.evaluation["loss"] < 1e-3 < fitted.history["loss"][0]
    assert fitted.evaluation_steps.tolist() == [100, 200, 300]
    assert fitted.evaluations["loss"].shape == (3,)
    assert fitted.diverged_at is None
    assert int(fitted.state.step) == 300
    predicted = MODEL.apply(fitted.state.params, {}, X[:20], key=jax.random.key(0), train=False)[0]
    assert fitted.evaluation["loss"] == pytest.approx(float(np.square(predicted - Y[:20]).mean()), rel=1e-5)


def test_the_loop_is_train_step_over_the_batches_of_each_step():
    run = lo.Run(steps=12, batch_size=8, seed=3, chunk=5)
    fitted = lo.fit(MODEL, recipe(), train=(X, Y), run=run)
    state = lo.init_state(MODEL, recipe(), jax.random.key(3), X[:1])
    for indices, loss in zip(batch_indices(50, 8, 3, 0, 12), fitted.history["loss"], strict=True):
        state, metrics = lo.train_step(MODEL, recipe(), state, lo.Batch(X[indices], Y[indices]))
        assert float(metrics["loss"]) == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_chunks_change_nothing(chunk):
    run = lo.Run(steps=20, batch_size=8, chunk=chunk)
    whole = lo.fit(MODEL, recipe(), train=(X, Y), run=lo.Run(steps=20, batch_size=8, chunk=20))
    np.testing.assert_array_equal(lo.fit(MODEL, recipe(), train=(X, Y), run=run).history["loss"], whole.history["loss"])


@pytest.mark.parametrize("steps", [0, 1])
def test_hardly_any_steps(steps):
    fitted = lo.fit(MODEL, recipe(), train=(X, Y), evaluate=(X, Y), run=lo.Run(steps=steps))
    assert fitted.history["loss"].shape == (steps,)
    assert np.isfinite(fitted.evaluation["loss"])
    assert int(fitted.state.step) == steps


def test_a_diverging_run_says_when_and_keeps_a_finite_state():
    sgd = recipe(1e4)._replace(optimizer=lo.bind(lo.optimizers.sgd))
    fitted = lo.fit(MODEL, sgd, train=(X, Y), evaluate=(X, Y), run=lo.Run(steps=100, batch_size=8, chunk=2, evaluate_every=50))
    at = fitted.diverged_at
    assert at is not None
    assert np.isfinite(fitted.history["loss"][:at]).all()
    assert np.isnan(fitted.history["loss"][at + 1 :]).all()
    assert fitted.history["loss"].shape == (100,)
    assert np.isnan(fitted.evaluation["loss"])
    assert fitted.evaluations["loss"].shape == (2,)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(fitted.state.params))
    assert int(fitted.state.step) == at // 2 * 2


def test_callbacks_hear_every_chunk():
    heard = []
    lo.fit(MODEL, recipe(), train=(X, Y), evaluate=(X, Y), run=lo.Run(steps=25, chunk=10, evaluate_every=20), on_chunk=[heard.append])
    assert [(p.step, len(p.metrics["loss"]), p.evaluation is not None) for p in heard] == [(10, 10, False), (20, 10, True), (25, 5, True)]


def test_evaluation_is_exact_over_pieces():
    x, y = np.tile(X, (47, 1)), np.tile(Y, (47, 1))  # 2,350 examples: more than two pieces of 1,024, the last one filled up
    weights = np.linspace(0, 1, len(x)).astype(np.float32)
    for data in ((x, y), (x, y, weights)):
        fitted = lo.fit(MODEL, recipe(), train=(X, Y), evaluate=data, run=lo.Run(steps=3))
        predicted = np.asarray(MODEL.apply(fitted.state.params, {}, x, key=jax.random.key(0), train=False)[0], np.float64)
        expected = np.average(np.square(predicted - y)[:, 0], weights=data[2] if len(data) == 3 else None)
        assert fitted.evaluation["loss"] == pytest.approx(expected, rel=1e-5)


def test_accuracy_of_labels_leaves_out_what_is_ignored():
    model = lo.Model(lambda key, inputs: ({"w": jnp.zeros(())}, {}), lambda p, s, x, *, key, train: (x + p["w"], s))
    classes = lo.Recipe(lo.bind(lo.losses.cross_entropy), lo.bind(lo.optimizers.sgd), lo.bind(lo.schedules.constant, value=0.1))
    logits, labels = np.eye(4, dtype=np.float32), np.array([0, 1, 0, -100], np.int32)
    state = lo.init_state(model, classes, jax.random.key(0), logits)
    totals = lo.eval_step(model, classes, state, lo.Batch(jnp.asarray(logits), jnp.asarray(labels)))
    assert float(mean(totals["accuracy"])) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"steps": -1}, "steps must be at least 0, got -1"),
        ({"steps": 1.5}, "steps must be an integer, got 1.5"),
        ({"steps": 1, "batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"steps": 1, "evaluate_every": 0}, "evaluate_every must be at least 1, got 0"),
        ({"steps": True}, "steps must be an integer, got True"),
    ],
)
def test_wrong_runs_are_named(wrong, words):
    with pytest.raises((TypeError, ValueError), match=words):
        lo.Run(**wrong)


@pytest.mark.parametrize("data", [(X, Y[:-1]), (X[:0], Y[:0]), (np.float32(1), np.float32(1))])
def test_data_without_a_common_number_of_examples_is_named(data):
    with pytest.raises(ValueError, match=r"train: every array needs the same number .* got shapes"):
        lo.fit(MODEL, recipe(), train=data, run=lo.Run(steps=1))


def test_lists_of_numbers_are_named():
    with pytest.raises(TypeError, match=r"train: inputs and targets must be arrays, got lists of numbers: numpy\.asarray"):
        as_batch(([[1.0], [2.0]], [[1.0], [2.0]]), "train")


def test_the_order_visits_every_example_once_an_epoch():
    indices = batch_indices(50, 8, 0, 0, 25).ravel()
    assert [sorted(indices[i * 50 : (i + 1) * 50]) == list(range(50)) for i in range(4)] == [True] * 4
    assert (indices[:50] != indices[50:100]).any()
    np.testing.assert_array_equal(batch_indices(50, 8, 0, 11, 3), batch_indices(50, 8, 0, 0, 25)[11:14])
    assert (batch_indices(50, 8, 1, 0, 1) != batch_indices(50, 8, 0, 0, 1)).any()
    assert batch_indices(3, 8, 0, 0, 1).shape == (1, 8)


def test_evaluation_steps():
    assert evaluation_steps(lo.Run(steps=10, evaluate_every=4)).tolist() == [4, 8, 10]
    assert evaluation_steps(lo.Run(steps=8, evaluate_every=4)).tolist() == [4, 8]
    assert evaluation_steps(lo.Run(steps=8)).tolist() == [8]
    assert evaluation_steps(lo.Run(steps=0, evaluate_every=4)).tolist() == [0]


def test_pieces_pad_with_weight_zero():
    batch = pieces(as_batch((X, Y), "x"), 16)
    assert batch.inputs.shape == (4, 16, 3)
    assert batch.weights.sum() == 50


def two_layers(dtype=jnp.float32):
    def init(key, inputs):
        a, b = jax.random.split(key)
        return {"in": {"w": jax.random.normal(a, (3, 4), dtype), "b": jnp.zeros(4, dtype)}, "out": jax.random.normal(b, (4, 1), dtype)}, {}

    def apply(params, model_state, inputs, *, key, train):
        hidden = jnp.tanh(inputs.astype(dtype) @ params["in"]["w"] + params["in"]["b"][None])
        return hidden @ params["out"], model_state

    return lo.Model(init, apply)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("optimizer", ["adamw", "rmsprop", "sgd", "schedule_free", "lamb"])
def test_parameters_gathered_into_a_vector_train_as_they_would_apart(monkeypatch, optimizer, dtype):
    model = two_layers(dtype)
    bound = recipe(0.03)._replace(optimizer=lo.bind(getattr(lo.optimizers, optimizer)), clip_norm=2.0)
    run = lo.Run(steps=30, batch_size=8, chunk=7)
    gathered = lo.fit(model, bound, train=(X, Y), run=run)
    monkeypatch.setattr("lossopt_jax.train.PACKED_BYTES", 0)
    apart = lo.fit(model, bound, train=(X, Y), run=run)
    assert jax.tree.structure(gathered.state) == jax.tree.structure(apart.state)
    # Half precision rounds where XLA's fusions end, which differ: the last of its 8 bits.
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == jnp.float32 else {"rtol": 0.02, "atol": 0.02}
    for one, other in zip(*(jax.tree.leaves(f.state._replace(key=None)) for f in (gathered, apart)), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one.astype(jnp.float32), other.astype(jnp.float32), **tolerance)
    np.testing.assert_allclose(gathered.history["grad_norm"], apart.history["grad_norm"], rtol=1e-5 if dtype == jnp.float32 else 0.05)


def test_only_small_and_alike_parameters_are_gathered(monkeypatch):
    def gathers(model, bound, most=2**17):
        monkeypatch.setattr("lossopt_jax.train.PACKED_BYTES", most)
        state = lo.init_state(model, bound, jax.random.key(0), X[:1])
        return _packed(model, bound, state)[0] is not model

    def in_two_dtypes(key, inputs):
        params, model_state = two_layers().init(key, inputs)
        return params | {"out": params["out"].astype(jnp.bfloat16)}, model_state

    mixed = two_layers()._replace(init=in_two_dtypes)
    masked = recipe()._replace(optimizer=lo.bind(lo.optimizers.adamw, mask=lo.optimizers.decay_matrices_only))
    assert gathers(two_layers(), recipe())
    assert not gathers(two_layers(), recipe(), most=75)  # 19 numbers
    assert not gathers(mixed, recipe())
    assert not gathers(two_layers(), masked)
    assert not gathers(two_layers(), recipe()._replace(optimizer=lo.bind(optax.adam)))


def test_what_wraps_an_optimizer_is_not_taken_for_it(monkeypatch):
    @functools.wraps(lo.optimizers.adamw)
    def clipped(learning_rate, **numbers):
        return optax.chain(optax.clip_by_block_rms(0.01), lo.optimizers.adamw(learning_rate, eps=1e-2))

    bound, run = recipe(0.05)._replace(optimizer=lo.bind(clipped)), lo.Run(steps=20, batch_size=8)
    here = lo.fit(two_layers(), bound, train=(X, Y), run=run).history["loss"]
    monkeypatch.setattr("lossopt_jax.train.PACKED_BYTES", 0)
    np.testing.assert_array_equal(here, lo.fit(two_layers(), bound, train=(X, Y), run=run).history["loss"])


def counted_apart(start):
    """An elementwise optimizer whose state is a tree like the parameters, of other shapes: a number for each array, or by accident."""

    @lo.optimizers.elementwise
    def own(learning_rate):
        def init(params):
            return jax.tree.map(lambda _: jnp.int32(0), params) if start == "counts" else [jnp.int32(0), jnp.float32(0)]

        def update(grads, state, params=None):
            slower = jax.tree.map(lambda g, n: -learning_rate * g / (1 + n), grads, state if start == "counts" else [state[0]] * 2)
            return slower, jax.tree.map(lambda n: n + 1, state)

        return optax.GradientTransformation(init, update)

    return own


@pytest.mark.parametrize("start", ["counts", "by accident"])
def test_an_optimizer_whose_state_only_looks_like_the_parameters_trains(start):
    def init(key, inputs):
        return [jax.random.normal(key, (3, 1)), jnp.zeros(1)], {}

    model = lo.Model(init, lambda params, s, x, *, key, train: (x @ params[0] + params[1][None], s))
    bound = recipe(0.1)._replace(optimizer=lo.bind(counted_apart(start)))
    fitted = lo.fit(model, bound, train=(X, Y), run=lo.Run(steps=20, batch_size=8))
    assert fitted.history["loss"][-1] < fitted.history["loss"][0]
    swept = lo.sweep(model, lo.Trials((bound, bound), {}), train=(X, Y), run=lo.Run(steps=20, batch_size=8))
    np.testing.assert_allclose(swept.history["loss"][0], fitted.history["loss"], rtol=1e-5)


def test_a_parameter_without_numbers_trains_in_lanes_too():
    def init(key, inputs):
        return {"w": jax.random.normal(key, (3, 1)), "none": jnp.zeros((0, 4))}, {}

    model = lo.Model(init, lambda params, s, x, *, key, train: (x @ params["w"], s))
    swept = lo.sweep(model, lo.Trials((recipe(), recipe(0.1)), {}), train=(X, Y), evaluate=(X, Y), run=lo.Run(steps=5, batch_size=8))
    assert np.isfinite(swept.history["loss"]).all()
