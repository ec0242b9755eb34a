"""Steps scaled by accumulated squares of the gradient, without Adam's bias corrections."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from .._types import Params, PyTree, Scalar
from ._common import LearningRate, Mask, as_numbers, by_learning_rate, decayed, elementwise, ema, float32_chain, squares, zeros


@elementwise
def rmsprop(
    learning_rate: LearningRate,
    *,
    decay: Scalar = 0.9,
    eps: Scalar = 1e-8,
    momentum: Scalar | None = None,
    centered: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """RMSProp: n <- decay n + (1 - decay) g**2; u = g / (sqrt(n) + eps); v <- momentum v + u; theta <- theta - lr v (v = u if None).

    Tieleman & Hinton 2012, lecture 6.5. centered: sqrt(n - mean(g)**2) in place of sqrt(n) (Graves 2013, arXiv:1308.0850). For recurrent
    networks and reinforcement learning. Equal to torch.optim.RMSprop, whose default decay (alpha) is 0.99. Keras and optax by default
    have eps in the root and lr inside v.

    >>> tx, params = rmsprop(0.1), jnp.ones(2)
    >>> updates, opt_state = tx.update(2 * params, tx.init(params), params)
    >>> print(updates.round(3))
    [-0.316 -0.316]
    """
    decay, eps = as_numbers(decay, eps)
    scale = _scale_by_centered_rms(decay, eps) if centered else optax.scale_by_rms(decay, eps, eps_in_sqrt=False)
    if momentum is None:
        return float32_chain(scale, by_learning_rate(learning_rate))
    return float32_chain(scale, optax.trace(*as_numbers(momentum)), by_learning_rate(learning_rate))


@elementwise
def adagrad(
    learning_rate: LearningRate, *, initial_accumulator: Scalar = 0.0, eps: Scalar = 1e-10
) -> optax.GradientTransformationExtraArgs:
    """AdaGrad: s <- s + g**2, from initial_accumulator; theta <- theta - lr g / (sqrt(s) + eps).

    Duchi, Hazan & Singer 2011 (JMLR 12). For sparse features: rare ones keep large steps. Equal to torch.optim.Adagrad; optax.adagrad
    starts from 0.1 with 1e-7 in the root, Keras from 0.1.

    >>> tx, params = adagrad(0.1), jnp.ones(2)
    >>> updates, opt_state = tx.update(2 * params, tx.init(params), params)
    >>> print(updates.round(3))
    [-0.1 -0.1]
    """
    initial_accumulator, eps = as_numbers(initial_accumulator, eps)

    def init(params: Params) -> optax.ScaleByRssState:
        return optax.ScaleByRssState(jax.tree.map(lambda p: jnp.full_like(p, initial_accumulator), params))

    def update(grads: PyTree, state: optax.ScaleByRssState, params: Params | None = None) -> tuple[PyTree, optax.ScaleByRssState]:
        total = jax.tree.map(lambda s, g: s + jnp.square(g), state.sum_of_squares, grads)
        return jax.tree.map(lambda g, s: g / (jnp.sqrt(s) + eps), grads, total), optax.ScaleByRssState(total)

    return float32_chain(optax.GradientTransformation(init, update), by_learning_rate(learning_rate))


@elementwise
def adadelta(learning_rate: LearningRate, *, rho: Scalar = 0.9, eps: Scalar = 1e-6) -> optax.GradientTransformationExtraArgs:
    """AdaDelta: n <- rho n + (1 - rho) g**2; u = sqrt(x + eps) / sqrt(n + eps) g; x <- rho x + (1 - rho) u**2; theta <- theta - lr u.

    Zeiler 2012, arXiv:1212.5701, which has no learning rate: that is lr = 1. Equal to torch.optim.Adadelta and optax.adadelta.

    >>> tx, params = adadelta(1.0), jnp.ones(2)
    >>> updates, opt_state = tx.update(2 * params, tx.init(params), params)
    >>> print(updates.round(5))
    [-0.00316 -0.00316]
    """
    return float32_chain(optax.scale_by_adadelta(*as_numbers(rho, eps)), by_learning_rate(learning_rate))


def adafactor(
    learning_rate: LearningRate,
    *,
    decay_rate: Scalar = 0.8,
    eps: Scalar = 1e-30,
    clipping_threshold: Scalar | None = 1.0,
    min_scale: Scalar = 1e-3,
    momentum: Scalar | None = None,
    weight_decay: Scalar = 0.0,
    mask: Mask = None,
    min_dim_size_to_factor: int = 128,
    multiply_by_parameter_scale: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """Adafactor: Adam's second moment kept as its row and column means, for models too large for two moments.

    With b2 = 1 - t**-decay_rate: R <- b2 R + (1 - b2) rowmean(g**2 + eps), C likewise by columns, V = R C / mean(R);
    u = g / sqrt(V); u <- u / max(1, rms(u) / clipping_threshold); theta <- theta - lr (max(min_scale, rms(theta)) u + weight_decay theta).
    momentum: an exponential average of the scaled u. Leaves whose second largest dimension is under min_dim_size_to_factor keep V whole.
    Shazeer & Stern 2018, arXiv:1804.04235. Equal to torch.optim.Adafactor with min_dim_size_to_factor=1 while lr <= 1 / sqrt(t) (torch
    and the paper cap it there; that is the schedule's work here) and |g| > 1e-7 (torch clamps V at 1.4e-14). optax.adafactor
    does not multiply the decay by lr. `mask`: which leaves decay.

    >>> tx, params = adafactor(0.1), jnp.ones(2)
    >>> updates, opt_state = tx.update(2 * params, tx.init(params), params)
    >>> print(updates.round(3))
    [-0.1 -0.1]
    """
    decay_rate, eps, min_scale = as_numbers(decay_rate, eps, min_scale)
    parts = [optax.scale_by_factored_rms(decay_rate=decay_rate, min_dim_size_to_factor=min_dim_size_to_factor, epsilon=eps)]
    if clipping_threshold is not None:
        parts.append(optax.clip_by_block_rms(*as_numbers(clipping_threshold)))
    if multiply_by_parameter_scale:
        parts.append(optax.scale_by_param_block_rms(min_scale))
    if momentum is not None:
        parts.append(optax.ema(*as_numbers(momentum), debias=False))
    return float32_chain(*parts, decayed(weight_decay, mask), by_learning_rate(learning_rate))


def sm3(learning_rate: LearningRate, *, momentum: Scalar = 0.9, eps: Scalar = 1e-8) -> optax.GradientTransformationExtraArgs:
    """SM3-II: one accumulator per row, per column, ... instead of per weight; a = min over them + g**2, each <- max of a over its slice.

    u = g / sqrt(a + eps) (0 where a = 0); m <- momentum m + (1 - momentum) u; theta <- theta - lr m. Anil et al. 2019, arXiv:1901.11150.
    AdaGrad's step in the memory of SGD with momentum, for large embeddings. Equal to optax.sm3, which takes no schedule; torch has none.

    >>> tx, params = sm3(0.1), jnp.ones(2)
    >>> updates, opt_state = tx.update(2 * params, tx.init(params), params)
    >>> print(updates.round(3))
    [-0.01 -0.01]
    """
    momentum, eps = as_numbers(momentum, eps)
    # b2 stays a Python 1.0: optax compares it with 1 to choose the accumulator.
    scale = optax.scale_by_sm3(momentum, 1.0, eps)

    def init(params: Params) -> Any:
        return scale.init(jax.tree.map(jnp.atleast_1d, params))

    def update(grads: PyTree, state: Any, params: Params | None = None) -> tuple[PyTree, Any]:
        # optax's has no accumulator for a scalar leaf.
        updates, state = scale.update(jax.tree.map(jnp.atleast_1d, grads), state)
        return jax.tree.map(lambda u, g: u.reshape(g.shape), updates, grads), state

    return float32_chain(optax.GradientTransformation(init, update), by_learning_rate(learning_rate))


def _scale_by_centered_rms(decay: jax.Array, eps: jax.Array) -> optax.GradientTransformation:
    def init(params: Params) -> optax.ScaleByRStdDevState:
        return optax.ScaleByRStdDevState(zeros(params), zeros(params))

    def update(grads: PyTree, state: optax.ScaleByRStdDevState, params: Params | None = None) -> tuple[PyTree, Any]:
        mu = ema(grads, state.mu, decay)
        nu = ema(squares(grads), state.nu, decay)
        # Where the gradient hardly changes the variance rounds below 0, and its root to NaN.
        std = jax.tree.map(lambda m, n: jnp.sqrt(jnp.maximum(n - jnp.square(m), 0)), mu, nu)
        return jax.tree.map(lambda g, s: g / (s + eps), grads, std), optax.ScaleByRStdDevState(mu, nu)

    return optax.GradientTransformation(init, update)
