"""Contracts over the catalogue of optimizers, and 100-step trajectories against torch.optim 2.13 and optax."""

import functools
import importlib.util
import inspect
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from jax.flatten_util import ravel_pytree

from lossopt_jax import optimizers
from lossopt_jax.recipe import bind

spec = importlib.util.spec_from_file_location("optimizers_torch", Path(__file__).parent / "references" / "optimizers_torch.py")
reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference)

CATALOGUE = optimizers.__all__
PROBLEM = reference.problem()
START = {name: PROBLEM[name] for name in reference.SHAPES}
SAMPLED = np.array(reference.SAMPLED) - 1


def make(name: str, learning_rate: Any, **numbers: Any) -> optax.GradientTransformationExtraArgs:
    return optax.with_extra_args_support(getattr(optimizers, name)(learning_rate, **numbers))


def loss(params: dict[str, jax.Array]) -> jax.Array:
    hidden = jnp.tanh(PROBLEM["inputs"] @ params["kernel_0"] + params["bias_0"][None])
    return jnp.mean(jnp.square(hidden @ params["kernel_1"] + params["bias_1"][None] - PROBLEM["targets"]))


def descend(tx_at: Any, steps: int = reference.STEPS) -> tuple[jax.Array, jax.Array]:
    """Losses [steps] and parameters [steps, 66] when `tx_at(step)` is made afresh at each step, as `train_step` makes it."""

    def body(carry: Any, step: jax.Array) -> Any:
        params, opt_state = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = optax.with_extra_args_support(tx_at(step)).update(grads, opt_state, params, value=value)
        params = optax.apply_updates(params, updates)
        return (params, opt_state), (value, jnp.concatenate([params[name].ravel() for name in START]))

    params = jax.tree.map(jnp.asarray, START)
    return jax.lax.scan(body, (params, tx_at(jnp.int32(0)).init(params)), jnp.arange(steps))[1]


def assert_same_path(actual: np.ndarray, expected: np.ndarray, rtol: float) -> None:
    """Paths [k, 66] apart by at most rtol of the distance from the start, which is stricter than rtol of the parameters."""
    start = np.concatenate([START[name].ravel() for name in START])
    apart = np.linalg.norm(actual.astype(np.float64) - expected, axis=1) / np.linalg.norm(expected.astype(np.float64) - start, axis=1)
    assert apart.max() <= rtol, f"apart by {apart} of the way"


# Against torch -------------------------------------------------------------------------------------------------------------------------

# case in references/optimizers_torch.py -> (ours, numbers, structure)
AS_TORCH: dict[str, tuple[str, dict[str, float], dict[str, Any]]] = {
    "sgd": ("sgd", {}, {}),
    "sgd_decay": ("sgd", {"weight_decay": 0.05}, {}),
    "momentum": ("momentum", {}, {}),
    "momentum_decay": ("momentum", {"beta": 0.8, "weight_decay": 0.05}, {}),
    "nesterov": ("nesterov", {}, {}),
    "nesterov_decay": ("nesterov", {"beta": 0.8, "weight_decay": 0.05}, {}),
    "rmsprop": ("rmsprop", {}, {}),
    "rmsprop_default": ("rmsprop", {"decay": 0.99}, {}),
    "rmsprop_momentum": ("rmsprop", {"decay": 0.99, "momentum": 0.9}, {}),
    "rmsprop_centered": ("rmsprop", {"decay": 0.99}, {"centered": True}),
    "rmsprop_centered_momentum": ("rmsprop", {"decay": 0.99, "momentum": 0.9, "eps": 1e-3}, {"centered": True}),
    "adagrad": ("adagrad", {}, {}),
    "adagrad_initial": ("adagrad", {"initial_accumulator": 0.1, "eps": 1e-3}, {}),
    "adadelta": ("adadelta", {}, {}),
    "adam": ("adam", {}, {}),
    "adam_eps": ("adam", {"b1": 0.8, "b2": 0.9, "eps": 1e-2}, {}),
    "adamw": ("adamw", {}, {}),
    "adamw_decay": ("adamw", {"weight_decay": 0.5}, {}),
    "nadam": ("nadam", {}, {}),
    "nadam_eps": ("nadam", {"b1": 0.8, "b2": 0.9, "eps": 1e-2, "momentum_decay": 0.1}, {}),
    "nadamw": ("nadamw", {"weight_decay": 0.1}, {}),
    "adamax": ("adamax", {}, {}),
    "amsgrad": ("amsgrad", {}, {}),
    "amsgrad_short": ("amsgrad", {"b1": 0.8, "b2": 0.9, "eps": 1e-3}, {}),
    "radam": ("radam", {}, {}),
    "radam_short": ("radam", {"b1": 0.8, "b2": 0.95, "eps": 1e-3}, {}),
    "adafactor": ("adafactor", {}, {"min_dim_size_to_factor": 1}),
    "adafactor_decay": (
        "adafactor",
        {"weight_decay": 0.1, "decay_rate": 0.6, "clipping_threshold": 1.2},
        {"min_dim_size_to_factor": 1},
    ),
    "muon": ("muon", {"weight_decay": 0.1}, {}),
    "muon_rms": ("muon", {"beta": 0.9, "consistent_rms": 0.2}, {}),
    "muon_bfloat16": ("muon", {"weight_decay": 0.1}, {}),
}


def test_every_torch_case_is_compared() -> None:
    assert AS_TORCH.keys() == reference.CASES.keys()


@pytest.fixture(scope="module")
def torch_like() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Every case of AS_TORCH by our optimizers; cases of one structure are lanes of one program, as in a sweep."""
    groups: dict[Any, list[tuple[str, dict[str, Any], dict[str, Any]]]] = {}
    for case, (name, numbers, options) in AS_TORCH.items():
        hparams = dict(bind(getattr(optimizers, name), **numbers, **options).hparams)
        groups.setdefault((name, *sorted(hparams), *options), []).append((case, hparams, options))

    def lane(name: str, options: dict[str, Any], peak: jax.Array, hparams: dict[str, jax.Array]) -> Any:
        return descend(lambda step: make(name, reference.learning_rate(peak, step), **hparams, **options))

    @jax.jit
    def program() -> list[Any]:
        out = []
        for (name, *_), members in groups.items():
            peaks = jnp.float32([reference.CASES[case][2] for case, *_ in members])
            stacked = jax.tree.map(lambda *x: np.stack(x), *(hparams for _, hparams, _ in members))
            out.append(jax.vmap(functools.partial(lane, name, members[0][2]))(peaks, stacked))
        return out

    groups_and_runs = zip(groups.values(), jax.tree.map(np.asarray, program()), strict=True)
    return {case: (losses[i], paths[i]) for members, (losses, paths) in groups_and_runs for i, (case, *_) in enumerate(members)}


@pytest.mark.parametrize("case", AS_TORCH)
def test_trajectory_equals_torch(case: str, torch_like: Any) -> None:
    losses, path = torch_like[case]
    # torch's Muon iterates in bfloat16 (8 bits); "muon" and "muon_rms" are torch's with that rounding left out.
    assert_same_path(path[SAMPLED], np.load(reference.PATH)[case], 3e-2 if case == "muon_bfloat16" else 1e-4)
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.filterwarnings("ignore")
def test_kept_references_are_what_torch_makes() -> None:
    pytest.importorskip("torch")
    kept = np.load(reference.PATH)
    for name, array in PROBLEM.items():
        np.testing.assert_array_equal(kept[f"problem.{name}"], array)
    for case, path in reference.trajectories().items():
        assert_same_path(path, kept[case], 3e-2 if case == "muon_bfloat16" else 1e-4)


# Against optax, for those that torch lacks ---------------------------------------------------------------------------------------------


def warmup_decay(peak: float) -> Any:
    return lambda step: peak * jnp.minimum(1.0, (step + 1) / 10) * (1 - 0.5 * step / reference.STEPS)


def yogi_from_zero(schedule: Any) -> optax.GradientTransformation:
    tx = optax.yogi(schedule)  # its first moment starts at 1e-6, the paper's and ours at 0

    def init(params: Any) -> Any:
        adam_state, *rest = tx.init(params)
        return (adam_state._replace(mu=jax.tree.map(jnp.zeros_like, adam_state.mu)), *rest)

    return optax.GradientTransformation(init, tx.update)


def schedule_free(schedule: Any) -> optax.GradientTransformation:
    inner = optax.chain(
        optax.scale_by_rms(0.99, 1e-8, eps_in_sqrt=False, bias_correction=True),
        optax.add_decayed_weights(0.1),
        optax.scale_by_learning_rate(schedule),
    )
    # optax counts the weights from 1 and the steps from 0.
    return optax.contrib.schedule_free(inner, lambda count: schedule(count - 1), b1=0.95)


# name -> (ours at a learning rate, optax's own with Python floats and its own counting, peak of the schedule)
AS_OPTAX: dict[str, tuple[Any, Any, float]] = {
    "lion": (lambda lr: make("lion", lr), optax.lion, 0.01),
    "adabelief": (lambda lr: make("adabelief", lr), optax.adabelief, 0.01),
    "yogi": (lambda lr: make("yogi", lr), yogi_from_zero, 0.05),
    "ademamix": (lambda lr: make("ademamix", lr, weight_decay=0.1), lambda s: optax.contrib.ademamix(s, weight_decay=0.1), 0.02),
    "lamb": (lambda lr: make("lamb", lr, weight_decay=0.1), lambda s: optax.lamb(s, weight_decay=0.1), 0.05),
    "lars": (
        lambda lr: make("lars", lr, weight_decay=0.1, trust_coefficient=0.02),
        lambda s: optax.lars(s, weight_decay=0.1, trust_coefficient=0.02),
        1.0,
    ),
    "novograd": (lambda lr: make("novograd", lr, weight_decay=0.1), lambda s: optax.novograd(s, weight_decay=0.1), 0.02),
    "sm3": (lambda lr: make("sm3", lr), lambda s: optax.chain(optax.scale_by_sm3(0.9), optax.scale_by_learning_rate(s)), 0.2),
    "prodigy": (
        lambda lr: make("prodigy", lr, weight_decay=0.1, initial_distance=1e-3),
        lambda s: optax.contrib.prodigy(s, weight_decay=0.1, estim_lr0=1e-3),
        1.0,
    ),
    "prodigy_safeguard": (
        lambda lr: make("prodigy", lr, b3=0.99, growth=0.5, initial_distance=1e-2, safeguard_warmup=True),
        lambda s: optax.contrib.prodigy(s, beta3=0.99, estim_lr_coef=0.5, estim_lr0=1e-2, safeguard_warmup=True),
        1.0,
    ),
    "schedule_free": (lambda lr: make("schedule_free", lr, b1=0.95, b2=0.99, weight_decay=0.1), schedule_free, 0.05),
    "nadamw": (lambda lr: make("nadamw", lr, momentum_decay=np.inf), lambda s: optax.nadamw(s, weight_decay=1e-2), 0.02),
}


@pytest.fixture(scope="module")
def optax_like() -> dict[str, tuple[Any, Any]]:
    def both(ours: Any, theirs: Any, peak: float) -> tuple[Any, Any]:
        schedule = warmup_decay(peak)
        tx = theirs(schedule)
        return descend(lambda step: ours(schedule(step))), descend(lambda step: tx)

    return jax.tree.map(np.asarray, jax.jit(lambda: {name: both(*case) for name, case in AS_OPTAX.items()})())


@pytest.mark.slow
@pytest.mark.parametrize("name", AS_OPTAX)
def test_trajectory_equals_optax(name: str, optax_like: Any) -> None:
    (losses, path), (_, expected) = optax_like[name]
    assert_same_path(path, expected, 1e-4)
    assert losses[-1] < 0.5 * losses[0]


# Against float64 formulas --------------------------------------------------------------------------------------------------------------

GRADS = np.random.default_rng(1).normal(size=(40, 5)).astype(np.float32)


def updates_of(tx_at: Any, grads: np.ndarray, params: Any) -> tuple[np.ndarray, Any]:
    """Parameters after each of the given gradients, and the last state."""

    def body(carry: Any, xs: Any) -> Any:
        params, opt_state = carry
        updates, opt_state = tx_at(xs[0]).update(xs[1], opt_state, params)
        params = optax.apply_updates(params, updates)
        return (params, opt_state), params

    start = (params, tx_at(jnp.int32(0)).init(params))
    (_, opt_state), path = jax.jit(lambda: jax.lax.scan(body, start, (jnp.arange(len(grads)), jnp.asarray(grads))))()
    return np.asarray(path), opt_state


def test_adan_is_the_papers_algorithm_1() -> None:
    # In the paper's notation, whose betas weigh the new value; without the restart and with the decay of AdamW.
    path, _ = updates_of(lambda step: optimizers.adan(0.1, weight_decay=0.2), GRADS, jnp.ones(5))
    beta1, beta2, beta3, eps = 0.02, 0.08, 0.01, 1e-8
    theta, m, v, n, last = np.ones(5), *np.zeros((3, 5)), GRADS[0].astype(np.float64)
    for k, g in enumerate(GRADS.astype(np.float64), 1):
        m = (1 - beta1) * m + beta1 * g
        v = (1 - beta2) * v + beta2 * (g - last)
        n = (1 - beta3) * n + beta3 * (g + (1 - beta2) * (g - last)) ** 2
        m_hat, v_hat, n_hat = m / (1 - (1 - beta1) ** k), v / (1 - (1 - beta2) ** k), n / (1 - (1 - beta3) ** k)
        theta = theta - 0.1 * ((m_hat + (1 - beta2) * v_hat) / (np.sqrt(n_hat) + eps) + 0.2 * theta)
        last = g
        np.testing.assert_allclose(path[k - 1], theta, rtol=1e-5, atol=1e-6)


def test_schedule_free_averages_right_when_its_numbers_are_scheduled() -> None:
    def b1_at(step: Any) -> Any:
        return 0.95 - 0.01 * step

    def lr_at(step: Any) -> Any:
        return 0.1 * (step % 7) / 7  # starts at 0, falls and rises: the weight is that of the largest so far

    def tx_at(step: jax.Array) -> Any:
        return optimizers.schedule_free(lr_at(step), b1=b1_at(step), b2=0.99, weight_decay=0.3)

    path, opt_state = updates_of(tx_at, GRADS, jnp.ones(5))
    x, y, z, nu, weights, max_lr = np.ones(5), np.ones(5), np.ones(5), np.zeros(5), 0.0, 0.0
    for t, g in enumerate(GRADS.astype(np.float64)):
        lr, b1 = lr_at(t), b1_at(t)
        nu = 0.99 * nu + 0.01 * g**2
        z = z - lr * (g / (np.sqrt(nu / (1 - 0.99 ** (t + 1))) + 1e-8) + 0.3 * y)
        max_lr = max(max_lr, lr)
        weights += max_lr**2
        c = max_lr**2 / weights if weights else 0.0
        x = (1 - c) * x + c * z
        y = (1 - b1) * z + b1 * x
        np.testing.assert_allclose(path[t], y, rtol=1e-5, atol=1e-5)
    evaluated = optimizers.schedule_free_eval_params((opt_state, {"a": 1}), path[-1])
    np.testing.assert_allclose(evaluated, x, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="one ScheduleFreeState, got 0"):
        optimizers.schedule_free_eval_params(optax.adam(0.1).init(path[-1]), path[-1])


def test_centered_rmsprop_survives_a_constant_gradient() -> None:
    # Step by step: jit may fuse the difference into one rounding, while optax's own is NaN in a tenth of these by step 400.
    grads = jnp.asarray(np.random.default_rng(0).uniform(0.1, 1, size=1000), jnp.float32)
    tx = optimizers.rmsprop(0.1, centered=True)
    opt_state = tx.init(grads)
    for _ in range(400):
        updates, opt_state = tx.update(grads, opt_state)
    assert jnp.isfinite(updates).all()


def test_radam_rectification_keeps_float32_accuracy() -> None:
    from lossopt_jax.optimizers import adam_variants

    # A gradient of ones makes m_hat = v_hat = 1: the update is -lr r, and so shows r alone.
    count = 3000
    for b2, threshold in ((0.9, 5.0), (0.99, 5.0), (0.999, 5.0), (0.999, 8.5), (0.9999, 5.0)):
        b2 = float(np.float32(b2))

        def tx_at(step: jax.Array, b2: float = b2, threshold: float = threshold) -> Any:
            return optimizers.radam(1.0, b2=b2, threshold=threshold, eps=0.0)

        path, _ = updates_of(tx_at, np.ones((30, 1), np.float32), jnp.zeros(1))
        t = np.arange(1, count + 1, dtype=np.float64)
        rho_inf = 2 / (1 - b2) - 1
        rho = rho_inf - 2 * t * b2**t / (1 - b2**t)
        square = (rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)
        r = np.sqrt(np.where(rho > threshold, square, 1))
        np.testing.assert_allclose(-np.diff(path[:30, 0], prepend=0), r[:30], rtol=1e-4)  # differences of sums up to 30
        y = t / 2 * -np.log(b2)
        expected = 1 - 1 / np.tanh(y) + 1 / y
        np.testing.assert_allclose(adam_variants._one_minus_langevin(jnp.float32(y)), expected, rtol=2e-6)


# Contracts over the catalogue ----------------------------------------------------------------------------------------------------------

PARAMS = {"kernel": jnp.array([[0.5, -1.0, 2.0], [1.5, 0.3, -0.7]]), "bias": jnp.array([0.1, -0.2, 0.4]), "temperature": jnp.array(1.3)}
STEPS = 3
# Around 1, so that prodigy sees a direction, and of both signs, so that lion's average has a say.
GRAD_STEPS = {n: np.float32(1 + np.random.default_rng(p.size).normal(size=(STEPS, *p.shape))) for n, p in PARAMS.items()}
VALUES = np.float32([2.0, 2.0, 2.0])
# Numbers that are None by default, and the structure under which the others act.
EXTRA: dict[str, dict[str, Any]] = {
    "rmsprop": {"momentum": 0.9, "centered": True},
    "adafactor": {"momentum": 0.9, "min_dim_size_to_factor": 1},
    "muon": {"consistent_rms": 0.2},
    "prodigy": {"b3": 0.99, "initial_distance": 0.1, "growth": 500.0},
    "lion": {"b2": 0.5},
    "reduce_on_plateau": {"patience": 1.0, "factor": 0.5},
}
# What to change a number to, so that it shows within three steps; the others are multiplied by 0.9, or made 0.1 if 0.
CHANGED = {"eps": 0.03, "eps_root": 0.03, "adam_eps": 0.03, "initial_accumulator": 0.03, "momentum_decay": 0.3, "clipping_threshold": 0.2}
CHANGED |= {"min_scale": 1.0, "rtol": 2.0, "atol": 3.0, "patience": 2.0, "cooldown": 3.0, "accumulation": 2.0}
CHANGED_IN = {("lion", "b1"): 0.1, ("muon", "eps"): 30.0}
# Numbers that cannot show in three steps; the tests of radam and of the plateau show them.
LATE = {("radam", "b2"), ("radam", "eps"), ("radam", "threshold"), ("reduce_on_plateau", "rtol"), ("reduce_on_plateau", "atol")}


class Case(NamedTuple):
    numbers: dict[str, float]
    options: dict[str, Any]


def case_of(name: str) -> Case:
    bound = bind(getattr(optimizers, name), **EXTRA.get(name, {}))
    numbers = {n: float(v) for n, v in bound.hparams.items() if not callable(v)}
    return Case(numbers, dict(bound.options))


def lanes_of(name: str, numbers: dict[str, float]) -> list[dict[str, float]]:
    """The learning rate and numbers of each lane: the defaults, then one where each in turn is changed."""
    base = {"learning_rate": 0.05, **numbers}
    changed = {n: CHANGED_IN.get((name, n), CHANGED.get(n, 0.9 * v if v else 0.1)) for n, v in base.items()}
    return [base, *({**base, n: changed[n]} for n in base)]


def tx_of(name: str, numbers: dict[str, Any], options: dict[str, Any]) -> optax.GradientTransformationExtraArgs:
    return make(name, numbers["learning_rate"], **{n: v for n, v in numbers.items() if n != "learning_rate"}, **options)


def step_with(tx: optax.GradientTransformationExtraArgs, carry: Any, xs: Any) -> tuple[Any, None]:
    params, opt_state = carry
    grads, value = xs
    updates, opt_state = tx.update(grads, opt_state, params, value=value)
    return (optax.apply_updates(params, updates), opt_state), None


@pytest.mark.parametrize("name", CATALOGUE)
def test_lanes_equal_a_loop_and_every_number_acts(name: str) -> None:
    numbers, options = case_of(name)
    lanes = lanes_of(name, numbers)
    traces = 0

    # A matrix and a vector reach every number, and the Python steps compile each operation for each shape.
    params, grads = ({leaf: tree[leaf] for leaf in ("kernel", "bias")} for tree in (PARAMS, GRAD_STEPS))

    @jax.jit
    @jax.vmap
    def program(numbers: dict[str, jax.Array]) -> Any:
        nonlocal traces
        traces += 1
        start = (params, tx_of(name, numbers, options).init(params))
        carry, _ = jax.lax.scan(lambda c, xs: step_with(tx_of(name, numbers, options), c, xs), start, (grads, VALUES))
        return carry[0]

    stacked = {n: jnp.float32([numbers[n] for numbers in lanes]) for n in lanes[0]}
    out = jax.tree.map(np.asarray, program(stacked))
    program({n: 0.5 * x for n, x in stacked.items()})
    assert traces == 1
    for i, python_numbers in enumerate(lanes):
        tx = tx_of(name, python_numbers, options)
        carry = (params, tx.init(params))
        for t in range(STEPS):
            carry, _ = step_with(tx, carry, ({leaf: jnp.asarray(g[t]) for leaf, g in grads.items()}, VALUES[t]))
        for leaf in params:
            np.testing.assert_allclose(out[leaf][i], carry[0][leaf], rtol=1e-6, atol=1e-6)
    for i, changed in enumerate(lanes[0], start=1):
        same = all((x[i] == x[0]).all() for x in out.values())
        assert same == ((name, changed) in LATE), f"{changed}: {lanes[0][changed]} or {lanes[i][changed]}, {'same' if same else 'not same'}"


@pytest.mark.parametrize("name", CATALOGUE)
def test_state_is_the_same_for_any_numbers_and_dtypes(name: str) -> None:
    numbers, options = case_of(name)
    constants = {"learning_rate": 0.1, **numbers}
    traced = {n: jax.ShapeDtypeStruct((), jnp.float32) for n in constants}

    def init(params: Any, numbers: dict[str, Any]) -> Any:
        return tx_of(name, numbers, options).init(params)

    def step(params: Any, opt_state: Any, numbers: dict[str, Any]) -> Any:
        return tx_of(name, numbers, options).update(params, opt_state, params, value=jnp.float32(1))

    def signature(tree: Any) -> Any:
        return jax.tree.structure(tree), [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(tree)]

    for dtype in ("float32", "bfloat16", "float16", "float64"):
        with jax.enable_x64(dtype == "float64"):
            params = {leaf: jnp.asarray(value, dtype) for leaf, value in PARAMS.items()}
            opt_state = tx_of(name, constants, options).init(params)
            assert signature(jax.eval_shape(init, params, traced)) == signature(opt_state)
            constant = jax.eval_shape(functools.partial(step, numbers=constants), params, opt_state)
            for updates, new in (constant, jax.eval_shape(step, params, opt_state, traced)):
                assert signature(new) == signature(opt_state)
                assert all(x.dtype == dtype for x in jax.tree.leaves(updates))
            # Not in half precision, where 0.999 of an average is all of it.
            assert all(x.dtype in (jnp.int32, jnp.float32, jnp.float64) for x in jax.tree.leaves(opt_state))
            assert not any(x.weak_type for x in jax.tree.leaves(opt_state))


ELEMENTWISE = [name for name in CATALOGUE if hasattr(getattr(optimizers, name), "elementwise")]
# What looks at whole arrays, at all of them together, or wraps what may.
NOT_ELEMENTWISE = ["adafactor", "lamb", "lars", "muon", "novograd", "prodigy", "reduce_on_plateau", "sm3"]


def test_every_optimizer_is_elementwise_or_known_not_to_be() -> None:
    assert sorted(ELEMENTWISE + NOT_ELEMENTWISE) == sorted(CATALOGUE)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_optimizers_do_not_see_the_arrays(name: str) -> None:
    params = jax.tree.map(jnp.asarray, START)
    vector, unravel = ravel_pytree(params)
    tx = make(name, 0.03, **({"weight_decay": 0.1} if "weight_decay" in inspect.signature(getattr(optimizers, name)).parameters else {}))

    def descend(params: Any, ravelled: Any, gradient: Any) -> Any:
        opt_state = tx.init(params)
        for key in jax.random.split(jax.random.key(0), 5):
            updates, opt_state = tx.update(gradient(jax.random.normal(key, vector.shape)), opt_state, params)
            params = optax.apply_updates(params, updates)
        return ravelled(params)

    apart = descend(params, lambda tree: ravel_pytree(tree)[0], unravel)
    np.testing.assert_allclose(apart, descend(vector, lambda x: x, lambda g: g), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", CATALOGUE)
def test_zero_gradients_give_no_nan(name: str) -> None:
    numbers, options = case_of(name)
    # All-zero parameters for the norms; a learning rate of 0, where warm-ups start, for those that remember it.
    cases = (("float32", 0, 0.05), ("bfloat16", 0, 0.05), ("float16", 0, 0.05), ("float16", 1, 0.05), ("float32", 1, 0.0))
    for dtype, scale, learning_rate in cases:
        params = {name: (scale * value).astype(dtype) for name, value in PARAMS.items()}
        zero = jax.tree.map(jnp.zeros_like, params)
        tx = tx_of(name, {"learning_rate": learning_rate, **numbers}, options)
        opt_state = tx.init(params)
        for _ in range(2):
            updates, opt_state = tx.update(zero, opt_state, params, value=1.0)
            assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves((updates, opt_state)))


@pytest.mark.parametrize("name", CATALOGUE)
def test_half_precision_is_computed_in_float32(name: str) -> None:
    numbers, options = case_of(name)
    tx = tx_of(name, {"learning_rate": 0.05, **numbers}, options)
    for dtype in (jnp.bfloat16, jnp.float16):
        half, grads = (jax.tree.map(lambda x: jnp.asarray(x, dtype), tree) for tree in (PARAMS, GRAD_STEPS))  # noqa: B023
        full = jax.tree.map(lambda x: x.astype(jnp.float32), half)
        half_state, full_state = tx.init(half), tx.init(full)
        for t in range(2):
            # 1e-3 squared is 1e-6, below the smallest f16 that is not denormal.
            g = jax.tree.map(lambda x, t=t: 1e-3 * x[t], grads)
            half_updates, half_state = tx.update(g, half_state, half, value=1.0)
            full_updates, full_state = tx.update(jax.tree.map(lambda x: x.astype(jnp.float32), g), full_state, full, value=1.0)
            jax.tree.map(lambda a, e: np.testing.assert_array_equal(a, e.astype(a.dtype)), half_updates, full_updates)


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_schedule_is_a_fresh_learning_rate_each_step(name: str) -> None:
    numbers, options = case_of(name)

    def schedule(step: Any) -> jax.Array:
        return 0.05 * (1 + jnp.asarray(step, jnp.float32))  # rising, so that the largest so far is the last

    scheduled = tx_of(name, {"learning_rate": schedule, **numbers}, options)
    carry, fresh = ((PARAMS, tx.init(PARAMS)) for tx in (scheduled, tx_of(name, {"learning_rate": 0.05, **numbers}, options)))
    for t in range(2):
        xs = (jax.tree.map(lambda g, t=t: jnp.asarray(g[t]), GRAD_STEPS), VALUES[t])
        carry, _ = step_with(scheduled, carry, xs)
        fresh, _ = step_with(tx_of(name, {"learning_rate": schedule(t), **numbers}, options), fresh, xs)
        jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-6, atol=1e-7), carry[0], fresh[0])


def accepts(name: str, parameter: str) -> bool:
    return parameter in inspect.signature(getattr(optimizers, name)).parameters


@pytest.mark.parametrize("name", [name for name in CATALOGUE if accepts(name, "weight_decay")])
def test_the_mask_chooses_what_decays(name: str) -> None:
    numbers, options = case_of(name)
    assert accepts(name, "mask")
    numbers = {"learning_rate": 0.05, **numbers, "weight_decay": 0.2}
    for mask in (optimizers.decay_matrices_only, optimizers.decay_matrices_only(PARAMS)):
        tx = tx_of(name, numbers, {**options, "mask": mask})
        opt_state = tx.init(PARAMS)
        updates, opt_state = tx.update(jax.tree.map(jnp.zeros_like, PARAMS), opt_state, PARAMS, value=1.0)
        assert not updates["bias"].any()
        assert not updates["temperature"].any()
        assert (updates["kernel"] * PARAMS["kernel"] < 0).all()
        if name in ("adamw", "nadamw", "lion", "adan", "ademamix", "adafactor", "muon", "sgd"):
            np.testing.assert_allclose(updates["kernel"], -0.05 * 0.2 * PARAMS["kernel"], rtol=1e-5)
    assert tx_of(name, numbers, options).update(PARAMS, tx_of(name, numbers, options).init(PARAMS), PARAMS)[0]["bias"].all()


@pytest.mark.parametrize("name", CATALOGUE)
def test_is_an_ordinary_transformation_with_a_documented_signature(name: str) -> None:
    factory = getattr(optimizers, name)
    tx = optax.chain(optax.clip_by_global_norm(1.0), factory(0.1))
    assert isinstance(factory(0.1), optax.GradientTransformation)
    if name in ("sgd", "momentum", "nesterov", "adam", "rmsprop"):
        factory(0.1).update(PARAMS, factory(0.1).init(PARAMS))
    assert len(tx.init(PARAMS)) == 2
    buffers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves((PARAMS, tx.init(PARAMS)))]
    assert len(set(buffers)) == len(buffers), "a donated state would give away one buffer twice"
    first, *others = inspect.signature(factory).parameters.values()
    assert (first.name, first.default) == ("learning_rate", first.empty)
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in others)
    assert "torch" in factory.__doc__
    assert ">>>" in factory.__doc__


# The plateau ---------------------------------------------------------------------------------------------------------------------------


def plateau_scales(values: Any, numbers: dict[str, Any], mode: str = "min") -> jax.Array:
    """The scale used at each step, seen through sgd at lr 1 on a gradient of 1."""
    tx = optimizers.reduce_on_plateau(1.0, optimizer=optimizers.sgd, mode=mode, **numbers)

    def body(opt_state: Any, value: jax.Array) -> Any:
        updates, opt_state = tx.update(jnp.ones(()), opt_state, jnp.ones(()), value=value)
        return opt_state, -updates

    return jax.lax.scan(body, tx.init(jnp.ones(())), values)[1]


def plateau_reference(values: list[float], mode: str, numbers: dict[str, float]) -> list[float]:
    """The documented rule, with Python's floats and lists."""
    n = numbers
    scale, best, bad, cooldown, window, scales = 1.0, None, 0, 0, [], []
    for value in values:
        window.append(value)
        if len(window) >= n["accumulation"]:
            kept = [v for v in window if np.isfinite(v)]
            window = []
            mean = sum(kept) / len(kept) if kept else None
            margin = 0 if best is None else n["rtol"] * abs(best) + n["atol"]
            improved = mean is not None and (best is None or (mean < best - margin if mode == "min" else mean > best + margin))
            best = mean if improved else best
            if cooldown > 0:
                cooldown, bad = cooldown - 1, 0
            else:
                bad = 0 if improved else bad + 1
                if bad and bad >= n["patience"]:
                    scale, bad, cooldown = max(scale * n["factor"], n["min_scale"]), 0, n["cooldown"]
        scales.append(scale)
    return scales


PLATEAU_DEFAULTS = {"factor": 0.1, "patience": 10, "cooldown": 0, "rtol": 1e-4, "atol": 0, "min_scale": 1e-6, "accumulation": 1}
PLATEAU_NUMBERS: list[dict[str, float]] = [
    {"patience": 1},
    {"patience": 0},
    {"patience": 3, "factor": 0.5},
    {"patience": 2.5, "factor": 0.5, "cooldown": 4},
    {"patience": 2, "cooldown": 1, "min_scale": 0.02},
    {"patience": 2, "accumulation": 3, "factor": 0.7},
    {"patience": 3, "rtol": 0.2, "factor": 0.8},
    {"patience": 3, "rtol": 0.0, "atol": 0.5, "factor": 0.8},
]


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("offset", [0.5, -2.5])
def test_plateau_follows_its_rule_in_every_number(mode: str, offset: float) -> None:
    random = np.random.default_rng(3)
    values = offset + 2 * np.exp(-np.arange(60) / 15) + 0.1 * random.normal(size=60)
    values = np.where(random.random(60) < 0.15, random.choice([np.nan, np.inf, -np.inf], 60), values if mode == "min" else -values)
    values = values.astype(np.float32)
    lanes = [{**PLATEAU_DEFAULTS, **numbers} for numbers in PLATEAU_NUMBERS]
    stacked = {n: jnp.float32([lane[n] for lane in lanes]) for n in PLATEAU_DEFAULTS}
    actual = jax.jit(jax.vmap(lambda numbers: plateau_scales(jnp.asarray(values), numbers, mode)))(stacked)
    for scales, lane in zip(actual, lanes, strict=True):
        np.testing.assert_allclose(scales, plateau_reference(values.tolist(), mode, lane), rtol=1e-5)
    assert (actual[:, -1] < 1).all()
    assert len({tuple(scales) for scales in actual.tolist()}) == len(lanes) - 1  # patience 0 is patience 1


def test_plateau_equals_optax_where_optax_is_right() -> None:
    values = jnp.float32(1.5 + np.exp(-np.arange(60) / 15) + 0.1 * np.random.default_rng(3).normal(size=60))

    def theirs(numbers: dict[str, float]) -> jax.Array:
        tx = optax.contrib.reduce_on_plateau(**{{"accumulation": "accumulation_size"}.get(n, n): v for n, v in numbers.items()})

        def body(state: Any, value: jax.Array) -> Any:
            return tx.update(jnp.ones(()), state, value=value)[::-1]

        return jax.lax.scan(body, tx.init(jnp.ones(())), values)[1]

    cases = ({"patience": 3, "factor": 0.5}, {"patience": 2, "cooldown": 3, "rtol": 0.05}, {"patience": 2, "accumulation": 4})
    for ours, expected in jax.jit(lambda: [(plateau_scales(values, numbers), theirs(numbers)) for numbers in cases])():
        np.testing.assert_allclose(ours, expected, rtol=1e-6)
        assert expected[-1] < 1


def test_plateau_takes_no_worse_negative_value_for_better() -> None:
    # To optax -0.95 is better than -1 at rtol 0.1, being below 0.9 best = -0.9.
    values = jnp.float32([-1.0, -0.95, -0.95, -0.95])
    np.testing.assert_allclose(plateau_scales(values, {"patience": 3, "rtol": 0.1, "factor": 0.5}), [1, 1, 1, 0.5])


def test_plateau_scales_the_learning_rate_of_a_bound_optimizer() -> None:
    weight_decay = bind(lambda step, *, value: value * step, value=0.5)
    part = bind(optimizers.adamw, weight_decay=weight_decay)
    bound = bind(optimizers.reduce_on_plateau, optimizer=part, patience=1.0, factor=0.5)
    params, opt_state = PARAMS, bound.at(0)(0.1).init(PARAMS)
    alone, scale = bind(optimizers.adamw), 1.0
    alone_params, alone_state = PARAMS, alone(0.1).init(PARAMS)
    for t in range(3):
        grads = jax.tree.map(lambda g, t=t: jnp.asarray(g[t]), GRAD_STEPS)
        updates, opt_state = bound.at(jnp.int32(t))(jnp.float32(0.1)).update(grads, opt_state, params, value=1.0)
        params = optax.apply_updates(params, updates)
        scale *= 1.0 if t == 0 else 0.5
        updates, alone_state = alone.replace(weight_decay=0.5 * t)(0.1 * scale).update(grads, alone_state, alone_params)
        alone_params = optax.apply_updates(alone_params, updates)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-6), params, alone_params)
    with pytest.raises(TypeError, match="value=loss"):
        bound.at(0)(0.1).update(PARAMS, opt_state, PARAMS)
    with pytest.raises(ValueError, match="mode must be 'min' or 'max', got 'most'"):
        optimizers.reduce_on_plateau(0.1, mode="most")


# The mask ------------------------------------------------------------------------------------------------------------------------------


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(3)(nn.LayerNorm()(nn.Conv(4, (3, 3))(x)))


def test_decay_matrices_only_in_linen_and_nnx() -> None:
    params = jax.eval_shape(Normed().init, jax.random.key(0), jnp.ones((1, 5, 5, 2)))["params"]
    assert optimizers.decay_matrices_only(params) == {
        "Conv_0": {"kernel": True, "bias": False},
        "LayerNorm_0": {"scale": False, "bias": False},
        "Dense_0": {"kernel": True, "bias": False},
    }
    state = nnx.state(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.Param)
    mask = optimizers.decay_matrices_only(state)
    assert jax.tree.structure(mask) == jax.tree.structure(state)
    assert nnx.to_pure_dict(mask) == optimizers.decay_matrices_only(nnx.to_pure_dict(state)) == {"kernel": True, "bias": False}


def test_decay_matrices_only_reads_the_name_of_stacked_leaves() -> None:
    # A scan over layers gives biases and gains a leading dimension.
    stacked = {
        "layers": {"kernel": np.ones((2, 3, 4)), "bias": np.ones((2, 4)), "scale": np.ones((2, 4))},
        "list": [np.ones((2, 2)), np.ones(2)],
    }
    assert optimizers.decay_matrices_only(stacked) == {"layers": {"kernel": True, "bias": False, "scale": False}, "list": [True, False]}
    assert optimizers.decay_matrices_only(np.ones((2, 2))) is True

    class Wrapped(nnx.Module):
        def __init__(self) -> None:
            self.value = nnx.Param(jnp.ones((2, 2)))
            self.bias = nnx.Param(jnp.ones((2, 2)))

    assert nnx.to_pure_dict(optimizers.decay_matrices_only(nnx.state(Wrapped()))) == {"value": True, "bias": False}
    tx = optimizers.adamw(0.1, mask=optimizers.decay_matrices_only)
    model = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    before = np.asarray(model.kernel[...])
    optimizer.update(model, jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param)))
    np.testing.assert_allclose(model.kernel[...], (1 - 1e-3) * before, rtol=1e-6)


def test_muon_orthogonalises_matrices_and_what_it_is_told() -> None:
    params = {"kernel": jnp.ones((4, 3)), "conv": jnp.ones((2, 2, 3, 8)), "bias": jnp.ones(3)}
    grads = jax.tree.map(lambda p: jnp.asarray(np.random.default_rng(0).normal(size=p.shape), jnp.float32), params)

    def directions(**options: Any) -> Any:
        tx = optimizers.muon(1.0, **options)
        return tx.update(grads, tx.init(params), params)[0]

    default, both = directions(), directions(matrices=lambda p: jax.tree.map(lambda x: x.ndim >= 2, p))
    # The iteration acts on each singular value alone; these two kernels are taller than wide, so s = 1.
    values = np.linspace(0.01, 1, 10_000)
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    low, high = values.min() - 1e-3, values.max() + 1e-3
    assert 0.5 < low < high < 1.3
    singular = np.linalg.svd(default["kernel"], compute_uv=False)
    assert low < singular.min() <= singular.max() < high
    np.testing.assert_allclose(jnp.abs(default["conv"]), 1, rtol=1e-5)  # Adam's first step
    np.testing.assert_allclose(jnp.abs(default["bias"]), 1, rtol=1e-5)
    singular = np.linalg.svd(both["conv"].reshape(12, 8), compute_uv=False)
    assert low < singular.min() <= singular.max() < high
