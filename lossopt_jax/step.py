"""The heart: forward, loss, backward, update, as one pure function of (model, recipe, state, batch)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ._types import Batch, Params, PyTree, cast_like
from .models import Model
from .recipe import Bound, Recipe
from .reduce import Total, hits_total, loss_total, masked, mean, own_weights


class TrainState(NamedTuple):
    """All that changes in a step. `step` is the one clock: it drives the schedule, the random key and the data order."""

    step: jax.Array
    params: Params
    opt_state: PyTree
    model_state: PyTree
    key: Any


def init_state(model: Model, recipe: Recipe, key: jax.Array, inputs: PyTree) -> TrainState:
    """A state at step 0 for inputs shaped like `inputs` [b, ...]; `key` seeds the parameters and all later randomness."""
    check_recipe(recipe)
    params_key, key = jax.random.split(key)
    params, model_state = model.init(params_key, inputs)
    opt_state = _transformation(recipe, jnp.int32(0)).init(params)
    # Weak types would make the first step's state differ from the second's, and so compile twice.
    state = TrainState(jnp.int32(0), params, opt_state, model_state, key=None)
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, jnp.asarray(x).dtype), state)._replace(key=key)


def train_step(model: Model, recipe: Recipe, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step: forward -> loss -> backward -> update. Pure: jit, scan or vmap it, over recipes too.

    Metrics, all scalars: loss (the weighted mean of the batch), learning_rate, grad_norm (before any clipping), update_norm,
    finite (the loss and the new parameters), and each scheduled number of the loss or optimizer by its path.
    """
    check_recipe(recipe)
    step = state.step
    inputs, targets, weights = batch
    if weights is not None:  # NaN under a mask would reach the gradient through the first layer's inputs
        inputs = jax.tree.map(lambda x: masked(x, weights), inputs)
    loss = recipe.loss.at(step)

    def objective(params: Params) -> tuple[jax.Array, PyTree]:
        key = jax.random.fold_in(state.key, step)
        outputs, model_state = model.apply(params, state.model_state, inputs, key=key, train=True)
        return mean(loss_total(loss, outputs, targets, weights)), model_state

    (value, model_state), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
    # Behind a barrier, or XLA keeps the squares that the norm and the optimizer have in common as an array of their own.
    grad_norm = global_norm(jax.lax.optimization_barrier(grads))
    if recipe.clip_norm is not None:
        clip_norm = recipe.clip_norm.at(step)(step) if isinstance(recipe.clip_norm, Bound) else recipe.clip_norm
        scale = jnp.minimum(1, clip_norm / jnp.maximum(grad_norm, jnp.finfo(jnp.float32).tiny))
        grads = jax.tree.map(lambda g: (g * scale).astype(g.dtype), grads)
    tx = optax.with_extra_args_support(_transformation(recipe, step))
    updates, opt_state = tx.update(grads, state.opt_state, state.params, value=value)
    params = optax.apply_updates(state.params, updates)
    update_norm = global_norm(updates)
    metrics = {
        "loss": value,
        "learning_rate": recipe.schedule.at(step)(step),
        "grad_norm": grad_norm,
        "update_norm": update_norm,
        "finite": jnp.isfinite(value) & jnp.isfinite(update_norm) & _small_floats_finite(params),
        **{f"loss.{name}": number for name, number in recipe.loss.scheduled(step).items()},
        **{f"optimizer.{name}": number for name, number in recipe.optimizer.scheduled(step).items()},
    }
    new = TrainState(step + 1, params, cast_like(opt_state, state.opt_state), cast_like(model_state, state.model_state), state.key)
    return new, metrics


def eval_step(model: Model, recipe: Recipe, state: TrainState, batch: Batch) -> dict[str, Total]:
    """Additive pairs of the held-out metrics of one batch: "loss", the recipe's own metric by its name if it has one, and "accuracy"
    where the targets are integer labels.

    Labels are classes of the outputs' last axis, or, for a loss named binary, hinge or sigmoid, 0 or 1 (-1 or 1) of the outputs' shape.
    """
    inputs, targets, weights = batch
    outputs, _ = model.apply(state.params, state.model_state, inputs, key=state.key, train=False)
    loss = recipe.loss.at(state.step)
    totals = {"loss": loss_total(loss, outputs, targets, weights)}
    if recipe.metric is not None and recipe.metric_name is not None:
        totals[recipe.metric_name] = loss_total(recipe.metric.at(state.step), outputs, targets, weights)
    hits = _hits(loss, outputs, targets)
    return totals if hits is None else {**totals, "accuracy": hits_total(hits, own_weights(loss, targets), weights)}


def global_norm(tree: PyTree) -> jax.Array:
    """Square root of the sum of squares of all leaves, in float32: half precision overflows at 256**2."""
    leaves = [x.astype(jnp.float32).ravel() for x in jax.tree.leaves(tree)]
    return jnp.sqrt(sum((jnp.vdot(x, x) for x in leaves), jnp.float32(0)))


def _small_floats_finite(params: Params) -> jax.Array:
    # An update of finite norm keeps float32 and bfloat16 parameters finite (that norm is below 2e19, they reach 3e38), so only types of
    # a smaller range are looked through: a pass over all parameters is a tenth of a small model's step.
    small = [jnp.isfinite(x).all() for x in jax.tree.leaves(params) if float(jnp.finfo(x.dtype).max) < 1e30]
    return jnp.all(jnp.array(small, bool))


def _transformation(recipe: Recipe, step: jax.Array) -> optax.GradientTransformation:
    return recipe.optimizer.at(step)(recipe.schedule.at(step)(step))


def _hits(loss: Bound, outputs: Any, targets: Any) -> jax.Array | None:
    if not (isinstance(outputs, jax.Array) and hasattr(targets, "dtype") and jnp.issubdtype(targets.dtype, jnp.integer)):
        return None
    if hasattr(loss.fn, "hits"):
        return loss.fn.hits and loss.fn.hits(outputs, targets)
    if outputs.shape[:-1] == targets.shape:
        return outputs.argmax(-1) == targets
    # Integer targets of the outputs' shape may as well be counts: only a loss that says so makes them two classes.
    binary = any(word in getattr(loss.fn, "__name__", "") for word in ("binary", "hinge", "sigmoid"))
    return (outputs > 0) == (targets > 0) if binary and outputs.shape == targets.shape else None


def check_recipe(recipe: Recipe) -> None:
    """Raise TypeError where it is no recipe, or a part of it is not bound."""
    if not isinstance(recipe, Recipe):
        raise TypeError(f"a recipe must be a lo.Recipe(loss, optimizer, schedule), got {type(recipe).__name__}")
    for name in ("loss", "optimizer", "schedule"):
        part = getattr(recipe, name)
        if not isinstance(part, Bound):
            raise TypeError(f"recipe.{name} must be bound: lo.bind(...), got {part!r}")
    if recipe.metric is not None and not isinstance(recipe.metric, Bound):
        raise TypeError(f"recipe.metric must be bound, such as lo.bind(lo.losses.mae), or None, got {recipe.metric!r}")
    if recipe.metric_name == "loss" or str(recipe.metric_name).endswith("accuracy"):
        raise ValueError(f"recipe.metric: of a metric less is better, and the name {recipe.metric_name!r} is taken: name it as an error")
