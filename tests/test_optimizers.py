"""Contracts over the catalogue of optimizers, and 100-step trajectories against torch.optim 2.13 and optax."""

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

    stacked = [
        (name, members[0][2], np.float32([reference.CASES[case][2] for case, *_ in members]))
        + (jax.tree.map(lambda *x: np.stack(x), *(hparams for _, hparams, _ in members)),)
        for (name, *_), members in groups.items()
    ]
    out = jax.jit(lambda: [jax.vmap(lambda p, h, n=n, o=o: lane(n, o, p, h))(peaks, hparams) for n, o, peaks, hparams in stacked])()
    cases = [[case for case, *_ in members] for members in groups.values()]
    return {c: (np.asarray(o[0][i]), np.asarray(o[1][i])) for cs, o in zip(cases, out, strict=True) for i, c in enumerate(cs)}


@pytest.mark.parametrize("case", AS_TORCH)
def test_trajectory_equals_torch(case: str, torch_like: Any) -> None:
    losses, path = torch_like[case]
    # torch's Muon iterates in bfloat16 (8 bits); "muon" and "muon_rms" are torch's with that rounding left out.
    assert_same_path(path[SAMPLED], np.load(reference.PATH)[case], 3e-2 if case == "muon_bfloat16" else 1e-4)
    assert losses[-1] < 0.5 * losses[0]


def test_torch_references_are_as_torch_makes_them() -> None:
    with pytest.warns() if False else _quiet():
        pytest.importorskip("torch")
        fresh = reference.trajectories()
    kept = np.load(reference.PATH)
    for name, array in reference.problem().items():
        np.testing.assert_array_equal(kept[f"problem.{name}"], array)
    for case, path in fresh.items():
        assert_same_path(path, kept[case], 3e-2 if case == "muon_bfloat16" else 1e-4)


def _quiet() -> Any:
    import warnings

    return warnings.catch_warnings(action="ignore")
