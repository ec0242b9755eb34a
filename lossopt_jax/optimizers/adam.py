"""Adam and those that differ from it in one place."""

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
def adam(
    learning_rate: LearningRate, *, b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-8, eps_root: Scalar = 0.0
) -> optax.GradientTransformationExtraArgs:
    """Adam: m <- b1 m + (1 - b1) g; v <- b2 v + (1 - b2) g**2; theta <- theta - lr m_hat / (sqrt(v_hat + eps_root) + eps).

    m_hat = m / (1 - b1**t) and v_hat = v / (1 - b2**t), t from 1. Kingma & Ba 2014, arXiv:1412.6980. The usual first choice where no
    weight decay is wanted. Equal to torch.optim.Adam (eps outside the root); eps_root above 0 only to differentiate through the update.

    >>> tx, params = adam(0.1), jnp.ones(2)
    >>> updates, opt_state = tx.update(2 * params, tx.init(params), params)
    >>> print(updates.round(3))
    [-0.1 -0.1]
    """
    b1, b2, eps, eps_root = as_numbers(b1, b2, eps, eps_root)
    return float32_chain(optax.scale_by_adam(b1, b2, eps, eps_root), by_learning_rate(learning_rate))


@elementwise
def adamw(
    learning_rate: LearningRate,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    weight_decay: Scalar = 1e-2,
    mask: Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """AdamW: Adam with decoupled decay, theta <- theta - lr (m_hat / (sqrt(v_hat + eps_root) + eps) + weight_decay theta).

    The decay is multiplied by the learning rate, and so follows its schedule: each step keeps the share 1 - lr weight_decay of a weight.
    Loshchilov & Hutter 2019, arXiv:1711.05101, multiply by the schedule's factor only; torch.optim.AdamW, optax and Keras by lr, as here.
    The standard for Transformers. Equal to torch.optim.AdamW, its default decay of 1e-2 too (optax's is 1e-4). `mask`: which leaves decay.

    >>> tx, params = adamw(0.1, weight_decay=0.5), jnp.ones(2)
    >>> updates, opt_state = tx.update(2 * params, tx.init(params), params)
    >>> print(updates.round(3))
    [-0.15 -0.15]
    """
    b1, b2, eps, eps_root = as_numbers(b1, b2, eps, eps_root)
    return float32_chain(optax.scale_by_adam(b1, b2, eps, eps_root), decayed(weight_decay, mask), by_learning_rate(learning_rate))


@elementwise
def nadam(
    learning_rate: LearningRate, *, b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-8, momentum_decay: Scalar = 4e-3
) -> optax.GradientTransformationExtraArgs:
    """NAdam, Adam with Nesterov's look-ahead and a momentum that warms up.

    mu_t = b1 (1 - 0.96**(t momentum_decay) / 2); M_t = mu_1 ... mu_t; m and v as in Adam;
    theta <- theta - lr ((1 - mu_t) g / (1 - M_t) + mu_{t+1} m / (1 - M_{t+1})) / (sqrt(v_hat) + eps).
    Dozat 2016 (ICLR workshop). Equal to torch.optim.NAdam. optax.nadam holds the momentum at b1: here that is momentum_decay=inf.

    >>> tx, params = nadam(0.1, momentum_decay=jnp.inf), jnp.ones(2)
    >>> updates, opt_state = tx.update(2 * params, tx.init(params), params)
    >>> print(updates.round(3))
    [-0.147 -0.147]
    """
    return float32_chain(_scale_by_nadam(*as_numbers(b1, b2, eps, momentum_decay)), by_learning_rate(learning_rate))


@elementwise
def nadamw(
    learning_rate: LearningRate,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    momentum_decay: Scalar = 4e-3,
    weight_decay: Scalar = 1e-2,
    mask: Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """NAdamW: NAdam with decoupled decay, multiplied by the learning rate: theta <- theta - lr (nadam + weight_decay theta).

    Dozat 2016; Loshchilov & Hutter 2019, arXiv:1711.05101. Among the strongest baselines of AlgoPerf (Dahl et al. 2023, arXiv:2306.07179).
    Equal to torch.optim.NAdam(decoupled_weight_decay=True); optax.nadamw is momentum_decay=inf. `mask`: which leaves decay.

    >>> tx, params = nadamw(0.1, momentum_decay=jnp.inf, weight_decay=1.0), jnp.ones(2)
    >>> updates, opt_state = tx.update(2 * params, tx.init(params), params)
    >>> print(updates.round(2))
    [-0.25 -0.25]
    """
    scale = _scale_by_nadam(*as_numbers(b1, b2, eps, momentum_decay))
    return float32_chain(scale, decayed(weight_decay, mask), by_learning_rate(learning_rate))


@elementwise
def adamax(
    learning_rate: LearningRate, *, b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-8
) -> optax.GradientTransformationExtraArgs:
    """AdaMax, Adam in the infinity norm: u <- max(b2 u, |g| + eps); theta <- theta - lr m_hat / u.

    Kingma & Ba 2014, arXiv:1412.6980, section 7.1; for embeddings and sparse gradients. Equal to torch.optim.Adamax and optax.adamax.

    >>> tx, params = adamax(0.1), jnp.ones(2)
    >>> updates, opt_state = tx.update(2 * params, tx.init(params), params)
    >>> print(updates.round(3))
    [-0.1 -0.1]
    """
    b1, b2, eps = as_numbers(b1, b2, eps)
    return float32_chain(optax.scale_by_adamax(b1, b2, eps), by_learning_rate(learning_rate))


@elementwise
def amsgrad(
    learning_rate: LearningRate, *, b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-8
) -> optax.GradientTransformationExtraArgs:
    """AMSGrad, Adam whose step never grows back: w <- max(w, v); theta <- theta - lr m_hat / (sqrt(w / (1 - b2**t)) + eps).

    Reddi et al. 2018, arXiv:1904.09237, who correct no bias. The maximum is taken before the correction, as in
    torch.optim.Adam(amsgrad=True), to which this is equal; optax.amsgrad takes it after, and so can never forget its first gradients.

    >>> tx, params = amsgrad(0.1), jnp.ones(2)
    >>> updates, opt_state = tx.update(2 * params, tx.init(params), params)
    >>> print(updates.round(3))
    [-0.1 -0.1]
    """
    return float32_chain(_scale_by_amsgrad(*as_numbers(b1, b2, eps)), by_learning_rate(learning_rate))


class NadamState(NamedTuple):
    """step: updates made; mu, nu: the moments; product: mu_1 ... mu_t."""

    step: jax.Array
    mu: PyTree
    nu: PyTree
    product: jax.Array


def _scale_by_nadam(b1: jax.Array, b2: jax.Array, eps: jax.Array, momentum_decay: jax.Array) -> optax.GradientTransformation:
    def init(params: Params) -> NadamState:
        return NadamState(jnp.int32(0), zeros(params), zeros(params), jnp.ones((), float))

    def update(grads: PyTree, state: NadamState, params: Params | None = None) -> tuple[PyTree, NadamState]:
        count = optax.safe_increment(state.step)
        mu = ema(grads, state.mu, b1)
        nu = ema(squares(grads), state.nu, b2)
        now, ahead = (b1 * (1 - 0.5 * 0.96 ** (t * momentum_decay)) for t in (count, optax.safe_increment(count)))
        product = state.product * now
        of_g, of_m = (1 - now) / (1 - product), ahead / (1 - product * ahead)
        correction = one_minus_power(b2, count)
        updates = jax.tree.map(lambda g, m, v: (of_g * g + of_m * m) / (jnp.sqrt(v / correction) + eps), grads, mu, nu)
        return updates, NadamState(count, mu, nu, product)

    return optax.GradientTransformation(init, update)


def _scale_by_amsgrad(b1: jax.Array, b2: jax.Array, eps: jax.Array) -> optax.GradientTransformation:
    def init(params: Params) -> optax.ScaleByAmsgradState:
        return optax.ScaleByAmsgradState(jnp.int32(0), zeros(params), zeros(params), zeros(params))

    def update(grads: PyTree, state: optax.ScaleByAmsgradState, params: Params | None = None) -> tuple[PyTree, PyTree]:
        count = optax.safe_increment(state.count)
        mu = ema(grads, state.mu, b1)
        nu = ema(squares(grads), state.nu, b2)
        nu_max = jax.tree.map(jnp.maximum, state.nu_max, nu)
        of_m, of_v = one_minus_power(b1, count), one_minus_power(b2, count)
        updates = jax.tree.map(lambda m, v: m / of_m / (jnp.sqrt(v / of_v) + eps), mu, nu_max)
        return updates, optax.ScaleByAmsgradState(count, mu, nu, nu_max)

    return optax.GradientTransformation(init, update)
