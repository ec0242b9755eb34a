"""Optimizers that take over a part of the learning rate: its size (prodigy) or its schedule (schedule_free)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from .._types import Params, PyTree, Scalar, cast_like
from ._common import LearningRate, Mask, as_numbers, at, by_learning_rate, decayed, elementwise, float32_chain, one_minus_power, widen


def prodigy(
    learning_rate: LearningRate,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    b3: Scalar | None = None,
    eps: Scalar = 1e-8,
    initial_distance: Scalar = 1e-6,
    growth: Scalar = 1.0,
    weight_decay: Scalar = 0.0,
    mask: Mask = None,
    safeguard_warmup: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Prodigy: Adam whose step is lr d, with d an estimate, never falling, of the distance from the start to the solution.

    d <- max(d, growth r / |s|_1); r and s are averages at rate b3 (sqrt(b2) if None) of d**2 lr <g, theta_0 - theta> and d**2 lr g. So lr
    is a factor: 1, with any schedule on top. Mishchenko & Defazio 2023, arXiv:2306.06101. Equal to optax.contrib.prodigy (its
    estim_lr0 is initial_distance, its estim_lr_coef growth) wherever that is finite: a first step with lr = 0 or without gradient makes
    optax's d NaN for ever, here d waits. safeguard_warmup leaves lr out of s, for long warm-ups. `mask`: which leaves decay
    (by lr d weight_decay theta); torch has none.

    >>> tx, params = prodigy(1.0, initial_distance=0.1), jnp.ones(2)
    >>> updates, opt_state = tx.update(2 * params, tx.init(params), params)
    >>> print(updates.round(3))
    [-0.1 -0.1]
    """
    b1, b2, eps, initial_distance, growth, weight_decay = as_numbers(b1, b2, eps, initial_distance, growth, weight_decay)
    b3 = None if b3 is None else as_numbers(b3)[0]

    def estimator(lr: jax.Array) -> optax.GradientTransformationExtraArgs:
        return optax.contrib.prodigy(lr, (b1, b2), b3, eps, initial_distance, growth, 0.0, safeguard_warmup)

    def update(grads: PyTree, state: optax.contrib.ProdigyState, params: Params | None = None) -> tuple[PyTree, Any]:
        lr = at(learning_rate, state.count)
        updates, new = estimator(lr).update(grads, state, params)
        weighed = sum((jnp.sum(jnp.abs(s)) for s in jax.tree.leaves(new.grad_sum)), jnp.float32(0))
        # 0 / 0: nothing has been weighed yet, so nothing can be said of the distance. A NaN gradient still shows.
        known = weighed != 0
        updates = jax.tree.map(lambda u: jnp.where(known, u, 0), updates)
        new = new._replace(estim_lr=jnp.where(known, new.estim_lr, state.estim_lr))
        step = lr * state.estim_lr * jnp.sqrt(one_minus_power(b2, new.count)) / one_minus_power(b1, new.count)
        decay = decayed(-weight_decay * step, mask)
        return decay.update(updates, decay.init(params), params)[0], new

    return float32_chain(optax.GradientTransformation(lambda params: estimator(jnp.float32(1)).init(params), update))


@elementwise
def schedule_free(
    learning_rate: LearningRate,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    weight_lr_power: Scalar = 2.0,
    mask: Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """Schedule-free AdamW: averaging in place of a decaying schedule. Evaluate at `schedule_free_eval_params(opt_state, params)`.

    z <- z - lr (g / (sqrt(v_hat) + eps) + weight_decay y); x <- (1 - c) x + c z; y <- (1 - b1) z + b1 x, with gradients taken at y
    (the params) and c = w_t / (w_1 + ... + w_t), w_t = (largest lr so far)**weight_lr_power. Give it a warm-up and then a constant.
    Defazio et al. 2024, arXiv:2405.15682. Equal to optax.contrib.schedule_free over scale_by_rms, except that a given schedule is read at
    the same step for z and for w (optax's w is a step ahead) and that b1 may be scheduled. b1 > 0; torch has none.
    `mask`: which leaves decay.

    >>> tx, params = schedule_free(0.1), jnp.ones(2)
    >>> updates, opt_state = tx.update(2 * params, tx.init(params), params)
    >>> print(updates.round(3))
    [-0.1 -0.1]
    """
    b1, b2, eps, weight_lr_power = as_numbers(b1, b2, eps, weight_lr_power)
    rms = optax.scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True)
    inner = optax.chain(rms, decayed(weight_decay, mask), by_learning_rate(learning_rate))
    init = optax.contrib.schedule_free(inner, 0.0, b1).init

    def update(grads: PyTree, state: optax.contrib.ScheduleFreeState, y: Params | None = None) -> tuple[PyTree, Any]:
        max_lr = jnp.maximum(state.max_lr, at(learning_rate, state.step_count - 1))
        weight = max_lr**weight_lr_power
        total = state.weight_sum + weight
        # Before the first step with lr > 0 there is nothing to average. NaN is not 0, and so goes on.
        c = jnp.where(total == 0, 0, weight / jnp.where(total == 0, 1, total))
        steps, inner_state = inner.update(grads, state.base_optimizer_state, y)
        z = optax.apply_updates(state.z, steps)
        # x by the b1 that made y, which a schedule may have changed since.
        x = jax.tree.map(lambda x, z: (1 - c) * x + c * z, optax.contrib.schedule_free_eval_params(state, y), z)
        updates = jax.tree.map(lambda x, z, y: b1 * x + (1 - b1) * z - y, x, z, y)
        return updates, optax.contrib.ScheduleFreeState(b1, total, state.step_count + 1, max_lr, inner_state, z)

    return float32_chain(optax.GradientTransformation(init, update))


def schedule_free_eval_params(opt_state: PyTree, params: Params) -> Params:
    """The averaged parameters x, in the dtypes of `params`, at which a model trained by `schedule_free` is to be evaluated and saved.

    x = (y - (1 - b1) z) / b1. The state is found inside a chain or `reduce_on_plateau` too; without one, ValueError. Defazio et al. 2024,
    arXiv:2405.15682.

    >>> params = jnp.ones(2)
    >>> schedule_free_eval_params(schedule_free(0.1).init(params), params).round(3).tolist()
    [1.0, 1.0]
    """

    def is_state(node: Any) -> bool:
        return isinstance(node, optax.contrib.ScheduleFreeState)

    found = [node for node in jax.tree.leaves(opt_state, is_leaf=is_state) if is_state(node)]
    if len(found) != 1:
        raise ValueError(f"schedule_free_eval_params: opt_state must hold one ScheduleFreeState, got {len(found)}")
    return cast_like(optax.contrib.schedule_free_eval_params(found[0], widen(params)), params)
