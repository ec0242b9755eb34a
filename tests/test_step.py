"""The step alone, as a user composes it: jit, scan and vmap over recipes, Linen and NNX, BatchNorm and dropout, half precision."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import lossopt_jax as lo


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x))
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(x))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.hidden, self.norm = nnx.Linear(4, 8, rngs=rngs), nnx.BatchNorm(8, rngs=rngs)
        self.dropout, self.out = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.out(self.dropout(self.norm(self.hidden(x))))


MODELS = {"linen": lambda: lo.from_linen(Linen()), "nnx": lambda: lo.from_nnx(lambda rngs: Nnx(rngs))}


def recipe(**schedule):
    schedule = lo.bind(lo.schedules.warmup_cosine, **({"peak": 1e-2, "warmup": 2, "total": 10} | schedule))
    return lo.Recipe(lo.bind(lo.losses.mse), lo.bind(lo.optimizers.adamw, weight_decay=1e-2), schedule)


@pytest.fixture
def batch():
    x = jax.random.normal(jax.random.key(0), (16, 4))
    return lo.Batch(x, x[:, :3] * 2 + 1)


@pytest.mark.parametrize("kind", ["linen", pytest.param("nnx", marks=pytest.mark.slow)])
def test_jit_scan_and_vmap_agree_with_eager(kind, batch):
    # Momentum, not Adam: a bias before BatchNorm has gradient zero, and Adam makes full steps of its rounding.
    optimizer = lo.bind(lo.optimizers.momentum)
    model, one, other = MODELS[kind](), recipe()._replace(optimizer=optimizer), recipe(peak=0.1)._replace(optimizer=optimizer)
    state = lo.init_state(model, one, jax.random.key(1), batch.inputs)
    eager, losses = state, []
    for _ in range(3):
        eager, metrics = lo.train_step(model, one, eager, batch)
        losses.append(metrics["loss"])
    scanned, history = jax.lax.scan(lambda s, _: lo.train_step(model, one, s, batch), state, length=3)
    np.testing.assert_allclose(history["loss"], losses, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), eager.params, scanned.params)

    stacked = jax.tree.map(lambda *v: jnp.stack(v), one, other)
    step = jax.jit(jax.vmap(lo.train_step, in_axes=(None, 0, 0, None)))
    lanes = jax.jit(jax.vmap(lo.init_state, in_axes=(None, 0, None, None)))(model, stacked, jax.random.key(1), batch.inputs)
    for _ in range(3):
        lanes, metrics = step(model, stacked, lanes, batch)
    np.testing.assert_allclose(metrics["loss"][0], losses[-1], rtol=1e-5)
    assert metrics["learning_rate"][1] == pytest.approx(10 * float(metrics["learning_rate"][0]), rel=1e-5)


@pytest.mark.parametrize("kind", MODELS)
def test_training_changes_statistics_and_dropout_and_evaluation_neither(kind, batch):
    model = MODELS[kind]()
    state = lo.init_state(model, recipe(), jax.random.key(1), batch.inputs)
    after, _ = lo.train_step(model, recipe(), state, batch)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), state.model_state, after.model_state)
    assert jax.tree.leaves(moved)
    assert all(jax.tree.leaves(moved))

    def outputs(key, train):
        return model.apply(after.params, after.model_state, batch.inputs, key=jax.random.key(key), train=train)[0]

    assert (outputs(0, True) != outputs(1, True)).any()
    assert (outputs(0, False) == outputs(1, False)).all()


@pytest.mark.parametrize("module", [nn.Dense(3), nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(3)])])
def test_modules_without_a_mode_work_as_they_are(module, batch):
    model = lo.from_linen(module)
    state = lo.init_state(model, recipe(), jax.random.key(0), batch.inputs)
    _, metrics = lo.train_step(model, recipe(), state, batch)
    assert bool(metrics["finite"])


def test_linen_mode_set_as_an_attribute_is_left_alone():
    model = lo.from_linen(nn.Dropout(0.5, deterministic=True))
    assert (model.apply({}, {}, jnp.ones(100), key=jax.random.key(0), train=True)[0] == 1).all()
    model = lo.from_linen(nn.Dropout(0.5))
    assert (model.apply({}, {}, jnp.ones(100), key=jax.random.key(0), train=True)[0] == 0).any()
    assert (model.apply({}, {}, jnp.ones(100), key=jax.random.key(0), train=False)[0] == 1).all()


def test_new_numbers_never_retrace_and_a_flag_retraces_once(batch):
    model, traces = lo.from_linen(nn.Dense(3)), []

    @jax.jit
    def step(recipe, state, batch):
        traces.append(None)
        return lo.train_step(model, recipe, state, batch)

    state = lo.init_state(model, recipe(), jax.random.key(0), batch.inputs)
    for peak in (1e-3, 1e-2, 5, np.float32(0.1)):
        state, _ = step(recipe(peak=peak), state, batch)
    assert len(traces) == 1
    step(recipe()._replace(clip_norm=1.0), state, batch)
    assert len(traces) == 2


def test_matches_a_loop_written_with_optax(batch):
    model, one = lo.from_linen(nn.Dense(3)), recipe()
    state = lo.init_state(model, one, jax.random.key(1), batch.inputs)
    tx = optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 1e-2, 2, 10), weight_decay=1e-2)
    params, opt_state = state.params, tx.init(state.params)

    def square_error(p):
        return jnp.square(model.apply(p, {}, batch.inputs, key=jax.random.key(0), train=False)[0] - batch.targets).mean()

    for _ in range(8):
        value, grads = jax.value_and_grad(square_error)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        state, metrics = lo.train_step(model, one, state, batch)
        np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
        np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(grads), rtol=1e-5)
        np.testing.assert_allclose(metrics["update_norm"], optax.tree.norm(updates), rtol=1e-4, atol=1e-9)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state.params, params)


def test_scheduled_numbers_are_resolved_and_logged(batch):
    model = lo.from_linen(nn.Dense(3))
    falling = lo.bind(lo.schedules.linear, init=1.0, total=4)
    one = recipe()._replace(
        optimizer=lo.bind(lo.optimizers.adamw, weight_decay=falling), loss=lo.bind(lo.losses.huber, delta=falling.replace(floor=0.5))
    )
    state = lo.init_state(model, one, jax.random.key(0), batch.inputs)
    _, history = jax.lax.scan(lambda s, _: lo.train_step(model, one, s, batch), state, length=4)
    np.testing.assert_allclose(history["optimizer.weight_decay"], [1, 0.75, 0.5, 0.25], rtol=1e-6)
    np.testing.assert_allclose(history["loss.delta"], [1, 0.875, 0.75, 0.625], rtol=1e-6)


def test_clipping_bounds_the_update_and_logs_the_norm_before(batch):
    model = lo.from_linen(nn.Dense(3))
    plain = lo.Recipe(lo.bind(lo.losses.mse), lo.bind(lo.optimizers.sgd), lo.bind(lo.schedules.constant, value=1.0))
    state = lo.init_state(model, plain, jax.random.key(0), batch.inputs)
    _, free = lo.train_step(model, plain, state, batch)
    _, clipped = lo.train_step(model, plain._replace(clip_norm=0.25), state, batch)
    np.testing.assert_allclose(clipped["grad_norm"], free["grad_norm"], rtol=1e-6)
    np.testing.assert_allclose(clipped["update_norm"], 0.25, rtol=1e-5)
    _, loose = lo.train_step(model, plain._replace(clip_norm=1e6), state, batch)
    np.testing.assert_allclose(loose["update_norm"], free["update_norm"], rtol=1e-6)


def test_garbage_under_a_mask_changes_no_bit(batch):
    model, weights = lo.from_linen(nn.Dense(3)), jnp.arange(16) < 10
    state = lo.init_state(model, recipe(), jax.random.key(0), batch.inputs)
    step = jax.jit(lambda b: lo.train_step(model, recipe(), state, b))
    clean = step(lo.Batch(*batch[:2], weights.astype(jnp.float32)))
    for garbage in (jnp.nan, jnp.inf, 1e30):
        dirty = lo.Batch(batch.inputs.at[10:].set(garbage), batch.targets.at[10:].set(garbage), weights.astype(jnp.float32))
        after, metrics = step(dirty)
        jax.tree.map(np.testing.assert_array_equal, (after._replace(key=0), metrics), (clean[0]._replace(key=0), clean[1]))


def test_an_all_masked_batch_has_loss_and_gradient_zero(batch):
    model = lo.from_linen(nn.Dense(3))
    state = lo.init_state(model, recipe(), jax.random.key(0), batch.inputs)
    _, metrics = lo.train_step(model, recipe(), state, lo.Batch(*batch[:2], jnp.zeros(16)))
    assert (float(metrics["loss"]), float(metrics["grad_norm"]), bool(metrics["finite"])) == (0.0, 0.0, True)


def test_finite_sees_the_loss_and_the_parameters(batch):
    model = lo.from_linen(nn.Dense(3))
    plain = lo.Recipe(lo.bind(lo.losses.mse), lo.bind(lo.optimizers.sgd), lo.bind(lo.schedules.constant, value=1.0))
    state = lo.init_state(model, plain, jax.random.key(0), batch.inputs)
    assert not lo.train_step(model, plain, state, lo.Batch(batch.inputs * jnp.inf, batch.targets))[1]["finite"]
    huge = plain._replace(schedule=lo.bind(lo.schedules.constant, value=3e38))
    _, metrics = lo.train_step(model, huge, state, lo.Batch(batch.inputs * 10, batch.targets))
    assert bool(jnp.isfinite(metrics["loss"]))
    assert not metrics["finite"]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_parameters_keep_every_dtype_through_a_scan(dtype, batch):
    model = lo.from_linen(nn.Dense(3, dtype=dtype, param_dtype=dtype))
    state = lo.init_state(model, recipe(), jax.random.key(0), batch.inputs)
    after, history = jax.lax.scan(lambda s, _: lo.train_step(model, recipe(), s, batch), state, length=20)
    assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(lambda x: x.dtype, state)
    assert history["finite"].all()
    assert history["loss"][-1] < history["loss"][0]


def test_plateau_hears_the_loss(batch):
    model = lo.from_linen(nn.Dense(3))
    plateau = lo.bind(lo.optimizers.reduce_on_plateau, optimizer=lo.bind(lo.optimizers.sgd), factor=0.5, patience=1)
    one = lo.Recipe(lo.bind(lo.losses.mse), plateau, lo.bind(lo.schedules.constant, value=0.0))
    state = lo.init_state(model, one, jax.random.key(0), batch.inputs)
    after, _ = jax.lax.scan(lambda s, _: lo.train_step(model, one, s, batch), state, length=9)
    before = [x for x in jax.tree.leaves(state.opt_state) if x.dtype == jnp.float32 and x.shape == ()]
    now = [x for x in jax.tree.leaves(after.opt_state) if x.dtype == jnp.float32 and x.shape == ()]
    assert any(b == 1 and n < 0.5 for b, n in zip(before, now, strict=True))


def test_unbound_parts_and_self_averaging_losses_are_named(batch):
    model = lo.from_linen(nn.Dense(3))
    with pytest.raises(TypeError, match=r"recipe.loss must be bound"):
        lo.init_state(model, recipe()._replace(loss=lo.losses.mse), jax.random.key(0), batch.inputs)
    averaging = recipe()._replace(loss=lo.bind(lambda outputs, targets: jnp.mean((outputs - targets) ** 2)))
    state = lo.init_state(model, averaging, jax.random.key(0), batch.inputs)
    with pytest.raises(ValueError, match="averages by itself"):
        lo.train_step(model, averaging, state, batch)


def test_optimizers_serve_flax_training_loops(batch):
    nnx_model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(nnx_model, lo.optimizers.adam(1e-2), wrt=nnx.Param)
    before = nnx_model.kernel[...].copy()
    optimizer.update(nnx_model, nnx.grad(lambda m: jnp.square(m(batch.inputs) - batch.targets).mean())(nnx_model))
    assert (nnx_model.kernel[...] != before).all()


class Sowing(nn.Module):
    @nn.compact
    def __call__(self, x):
        self.sow("intermediates", "x", x)
        self.sow("losses", "l2", (x**2).sum())
        return nn.Dense(3)(nn.BatchNorm(use_running_average=False)(x))


class SowingNnx(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(4, 3, rngs=rngs)])

    def __call__(self, x, train):
        self.sow(nnx.Intermediate, "seen", x)
        return self.layers[0](x) * (1 if train else 2)


@pytest.mark.filterwarnings("ignore:Using 'Module.sow:DeprecationWarning")
@pytest.mark.parametrize("make", [lambda: lo.from_linen(Sowing()), lambda: lo.from_nnx(lambda rngs: SowingNnx(rngs))])
def test_what_a_module_sows_does_not_grow_the_state(make, batch):
    model = make()
    state = lo.init_state(model, recipe(), jax.random.key(0), batch.inputs)
    after, history = jax.lax.scan(lambda s, _: lo.train_step(model, recipe(), s, batch), state, length=3)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert history["finite"].all()
    assert jnp.isfinite(lo.eval_step(model, recipe(), after, batch)["loss"].total)


@pytest.mark.parametrize("wrong", [lambda: lo.from_linen(nn.Dense), lambda: lo.from_nnx(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))])
def test_what_is_not_a_module_is_named(wrong):
    with pytest.raises(TypeError, match=r"from_(linen|nnx) takes a (module|function)"):
        wrong()


def test_clip_norm_may_follow_a_schedule(batch):
    model = lo.from_linen(nn.Dense(3))
    one = lo.Recipe(lo.bind(lo.losses.mse), lo.bind(lo.optimizers.sgd), lo.bind(lo.schedules.constant, value=1.0))
    one = one._replace(clip_norm=lo.bind(lo.schedules.linear, init=0.5, total=10))
    state = lo.init_state(model, one, jax.random.key(0), batch.inputs)
    np.testing.assert_allclose(lo.train_step(model, one, state, batch)[1]["update_norm"], 0.5, rtol=1e-5)


def test_counts_are_not_two_classes():
    model = lo.Model(lambda key, inputs: ({}, {}), lambda p, s, x, *, key, train: (x, s))
    counts = lo.Batch(jnp.array([1.0, 2.0]), jnp.array([1, 5]))
    for loss, metrics in ((lo.losses.huber, {"loss"}), (lo.losses.binary_cross_entropy, {"loss", "accuracy"})):
        one = lo.Recipe(lo.bind(loss), lo.bind(lo.optimizers.sgd), lo.bind(lo.schedules.constant, value=1.0))
        state = lo.init_state(model, one, jax.random.key(0), counts.inputs)
        assert set(jax.eval_shape(lo.eval_step, model, one, state, counts)) == metrics


def test_held_out_data_is_judged_by_the_recipes_own_metric_too():
    model = lo.Model(lambda key, inputs: ({}, {}), lambda p, s, x, *, key, train: (x, s))
    batch = lo.Batch(jnp.array([[1.0], [4.0], [9.0]]), jnp.array([[2.0], [2.0], [0.0]]), jnp.array([1.0, 3.0, 0.0]))
    one = lo.Recipe(lo.bind(lo.losses.mse), lo.bind(lo.optimizers.sgd), lo.bind(lo.schedules.constant, value=1.0))
    metric = lo.bind(lo.losses.huber, delta=lo.bind(lo.schedules.constant, value=1.0))
    one = one._replace(metric=metric)
    metrics = lo.eval_step(model, one, lo.init_state(model, one, jax.random.key(0), batch.inputs), batch)
    assert metrics.keys() == {"loss", "huber"}
    assert float(lo.reduce.mean(metrics["loss"])) == (1 + 3 * 4) / 4
    assert float(lo.reduce.mean(metrics["huber"])) == (0.5 + 3 * 1.5) / 4


def test_the_accuracy_is_of_what_a_loss_takes_its_outputs_for():
    model = lo.Model(lambda key, inputs: ({}, {}), lambda p, s, x, *, key, train: (x, s))
    outputs, labels = jnp.array([[3.0, -1.0], [2.0, 1.0], [-1.0, -2.0], [-1.0, 0.5]]), jnp.array([1, 2, 1, 0])
    # Of three grades two steps are asked for: 1, 2, 0 and 1 of them are passed.
    for loss, accuracy in ((lo.losses.ordinal, 0.5), (lo.losses.multiclass_hinge, 0.25), (lo.losses.triplet_batch_hard, None)):
        one = lo.Recipe(lo.bind(loss), lo.bind(lo.optimizers.sgd), lo.bind(lo.schedules.constant, value=1.0))
        batch = lo.Batch(outputs, labels % 2 if loss is lo.losses.multiclass_hinge else labels)
        metrics = lo.eval_step(model, one, lo.init_state(model, one, jax.random.key(0), outputs), batch)
        assert metrics.keys() == {"loss"} if accuracy is None else float(lo.reduce.mean(metrics["accuracy"])) == accuracy
