"""Adaptive moments after Adam: another second moment, another first one, or another start."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from .._types import Params, PyTree, Scalar
from ._common import (
    LearningRate,
    Mask,
    as_numbers,
    by_learning_rate,
    decayed,
    elementwise,
    ema,
    float32_chain,
    one_minus_power,
    squares,
    zeros,
)


@elementwise
def adabelief(
    learning_rate: LearningRate, *, b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-16, eps_root: Scalar = 1e-16
) -> optax.GradientTransformationExtraArgs:
    """AdaBelief, Adam with the variance of the gradient in place of its square: s <- b2 s + (1 - b2)(g - m)**2 + eps_root.

    theta <- theta - lr m_hat / (sqrt(s_hat) + eps). Zhuang et al. 2020, arXiv:2010.07468. Steps are long where gradients agree.
    Equal to optax.adabelief, and to the paper with eps = eps_root; torch has none.

    >>> tx, params = adabelief(0.1), jnp.ones(2)
    >>> updates, opt_state = tx.update(2 * params, tx.init(params), params)
    >>> print(updates.round(2))
    [-0.11 -0.11]
    """
    b1, b2, eps, eps_root = as_numbers(b1, b2, eps, eps_root)
    return float32_chain(optax.scale_by_belief(b1, b2, eps, eps_root), by_learning_rate(learning_rate))


@elementwise
def radam(
    learning_rate: LearningRate, *, b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-8, threshold: Scalar = 5.0
) -> optax.GradientTransformationExtraArgs:
    """RAdam, Adam that starts as momentum until its second moment can be trusted, so that it needs no warm-up.

    rho_inf = 2 / (1 - b2) - 1; rho = rho_inf - 2 t b2**t / (1 - b2**t). Where rho > threshold, with
    r**2 = (rho - 4)(rho - 2) rho_inf / ((rho_inf - 4)(rho_inf - 2) rho), theta <- theta - lr r m_hat sqrt(1 - b2**t) / (sqrt(v) + eps),
    else theta <- theta - lr m_hat. Liu et al. 2019, arXiv:1908.03265. Equal to torch.optim.RAdam. optax.radam adds eps after the
    bias correction, and its rho, a difference of two numbers near 2000, is off by 6e-3 at step 6 in float32.

    >>> tx, params = radam(0.1), jnp.ones(2)
    >>> updates, opt_state = tx.update(2 * params, tx.init(params), params)
    >>> print(updates.round(3))
    [-0.2 -0.2]
    """
    return float32_chain(_scale_by_radam(*as_numbers(b1, b2, eps, threshold)), by_learning_rate(learning_rate))


@elementwise
def yogi(
    learning_rate: LearningRate,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-3,
    initial_accumulator: Scalar = 1e-6,
) -> optax.GradientTransformationExtraArgs:
    """Yogi, Adam whose second moment moves by steps of (1 - b2) g**2: v <- v - (1 - b2) sign(v - g**2) g**2, from initial_accumulator.

    theta <- theta - lr m_hat / (sqrt(v_hat) + eps). Zaheer et al. 2018 (NeurIPS); for gradients that are rarely large. m starts at 0 as in
    the paper; optax.yogi starts it at initial_accumulator too, which moves parameters that have no gradient. torch has none.

    >>> tx, params = yogi(0.1), jnp.ones(2)
    >>> updates, opt_state = tx.update(2 * params, tx.init(params), params)
    >>> print(updates.round(3))
    [-0.1 -0.1]
    """
    b1, b2, eps, initial_accumulator = as_numbers(b1, b2, eps, initial_accumulator)
    scale = optax.scale_by_yogi(b1, b2, eps, initial_accumulator_value=initial_accumulator)

    def init(params: Params) -> optax.ScaleByAdamState:
        return scale.init(params)._replace(mu=zeros(params))

    return float32_chain(optax.GradientTransformation(init, scale.update), by_learning_rate(learning_rate))


@elementwise
def adan(
    learning_rate: LearningRate,
    *,
    b1: Scalar = 0.98,
    b2: Scalar = 0.92,
    b3: Scalar = 0.99,
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    mask: Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """Adan, adaptive Nesterov momentum from the difference of gradients d = g_t - g_{t-1} (0 at first).

    m <- b1 m + (1 - b1) g; v <- b2 v + (1 - b2) d; n <- b3 n + (1 - b3)(g + b2 d)**2;
    theta <- theta - lr ((m_hat + b2 v_hat) / (sqrt(n_hat) + eps) + weight_decay theta).
    Xie et al. 2022, arXiv:2208.06677, whose betas are 1 minus these; their code decays by theta / (1 + lr weight_decay). optax.adan (0.2.8)
    weighs d by 1 - b2 = 0.08 where the paper has 0.92 (its pull request 1715) and adds 1e-8 in the root; torch has none.
    `mask`: which leaves decay.

    >>> tx, params = adan(0.1), jnp.ones(2)
    >>> updates, opt_state = tx.update(2 * params, tx.init(params), params)
    >>> print(updates.round(3))
    [-0.1 -0.1]
    """
    scale = _scale_by_adan(*as_numbers(b1, b2, b3, eps))
    return float32_chain(scale, decayed(weight_decay, mask), by_learning_rate(learning_rate))


@elementwise
def ademamix(
    learning_rate: LearningRate,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    b3: Scalar = 0.9999,
    alpha: Scalar = 5.0,
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    mask: Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """AdEMAMix, AdamW with a second, slow momentum: s <- b3 s + (1 - b3) g, in m_hat + alpha s.

    theta <- theta - lr ((m_hat + alpha s) / (sqrt(v_hat) + eps) + weight_decay theta). Pagliardini et al. 2024, arXiv:2409.03137, warm up
    alpha and b3: bind a schedule to each. For long runs, where old gradients still help. Equal to optax.contrib.ademamix;
    torch has none. `mask`: which leaves decay.

    >>> tx, params = ademamix(0.1), jnp.ones(2)
    >>> updates, opt_state = tx.update(2 * params, tx.init(params), params)
    >>> print(updates.round(3))
    [-0.1 -0.1]
    """
    b1, b2, b3, alpha, eps = as_numbers(b1, b2, b3, alpha, eps)
    scale = optax.contrib.scale_by_ademamix(b1, b2, b3, alpha, eps)
    return float32_chain(scale, decayed(weight_decay, mask), by_learning_rate(learning_rate))


def _scale_by_radam(b1: jax.Array, b2: jax.Array, eps: jax.Array, threshold: jax.Array) -> optax.GradientTransformation:
    def rectification(count: jax.Array) -> tuple[jax.Array, jax.Array]:
        # With x = -log b2, rho_inf = coth(x/2) and rho = t (1 - L(t x/2)) + L(x/2), L(y) = coth y - 1/y: nothing large is subtracted.
        x = -jnp.log1p(b2 - 1)
        rho_inf = 2 / (1 - b2) - 1
        rho = count * _one_minus_langevin(count * x / 2) + 1 - _one_minus_langevin(x / 2)
        trusted = rho > threshold
        safe = jnp.where(trusted, rho, 6)
        square = (safe - 4) * (safe - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * safe)
        return trusted, jnp.sqrt(square * one_minus_power(b2, count))

    def update(grads: PyTree, state: optax.ScaleByAdamState, params: Params | None = None) -> tuple[PyTree, PyTree]:
        count = optax.safe_increment(state.count)
        mu = ema(grads, state.mu, b1)
        nu = ema(squares(grads), state.nu, b2)
        trusted, r = rectification(count)
        mu_hat = jax.tree.map(lambda m: m / one_minus_power(b1, count), mu)
        updates = jax.tree.map(lambda m, v: m * jnp.where(trusted, r / (jnp.sqrt(v) + eps), 1), mu_hat, nu)
        return updates, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(_adam_state, update)


def _one_minus_langevin(y: jax.Array) -> jax.Array:
    """1 - coth y + 1/y for y > 0: a series below 1/2, where the two poles cancel."""
    small = jnp.minimum(y, 0.5)
    square = small * small
    series = 1 - small / 3 * (1 - square / 15 * (1 - square * 2 / 21 * (1 - square / 10)))
    large = jnp.maximum(y, 0.5)
    return jnp.where(y < 0.5, series, 1 / large - 2 / jnp.expm1(2 * large))


def _adam_state(params: Params) -> optax.ScaleByAdamState:
    return optax.ScaleByAdamState(jnp.int32(0), zeros(params), zeros(params))


class AdanState(NamedTuple):
    """step: updates made; mu, difference, nu: the moments of g, d and (g + b2 d)**2; grads: the last gradients."""

    step: jax.Array
    mu: PyTree
    difference: PyTree
    nu: PyTree
    grads: PyTree


def _scale_by_adan(b1: jax.Array, b2: jax.Array, b3: jax.Array, eps: jax.Array) -> optax.GradientTransformation:
    def init(params: Params) -> AdanState:
        return AdanState(jnp.int32(0), *(zeros(params) for _ in range(4)))

    def update(grads: PyTree, state: AdanState, params: Params | None = None) -> tuple[PyTree, AdanState]:
        count = optax.safe_increment(state.step)
        change = jax.tree.map(lambda g, old: jnp.where(state.step == 0, 0, g - old), grads, state.grads)
        mu = ema(grads, state.mu, b1)
        difference = ema(change, state.difference, b2)
        nu = ema(jax.tree.map(lambda g, d: jnp.square(g + b2 * d), grads, change), state.nu, b3)
        of_m, of_v, of_n = (one_minus_power(b, count) for b in (b1, b2, b3))
        updates = jax.tree.map(lambda m, v, n: (m / of_m + b2 * v / of_v) / (jnp.sqrt(n / of_n) + eps), mu, difference, nu)
        return updates, AdanState(count, mu, difference, nu, grads)

    return optax.GradientTransformation(init, update)
