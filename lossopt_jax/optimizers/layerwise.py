"""Steps scaled layer by layer: by the norms of weights and updates, or by orthogonalising the update."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from .._types import Params, PyTree, Scalar
from ._common import LearningRate, Mask, as_numbers, by_learning_rate, decayed, ema, float32_chain, zeros


def lars(
    learning_rate: LearningRate,
    *,
    momentum: Scalar = 0.9,
    trust_coefficient: Scalar = 1e-3,
    eps: Scalar = 0.0,
    weight_decay: Scalar = 0.0,
    mask: Mask = None,
    trust_mask: Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """LARS: d = g + weight_decay theta; v <- momentum v + lr trust_coefficient |theta| / (|d| + eps) d; theta <- theta - v; norms by leaf.

    Where a norm is 0 the ratio is 1. For convolutional networks at batches of 8k and more (You, Gitman & Ginsburg 2017,
    arXiv:1708.03888, who have |g| + weight_decay |theta| for |d|). lr is inside v, as in the paper. Equal to optax.lars; torch has none.
    `mask`: which leaves decay; `trust_mask`: which are scaled by the ratio.

    >>> tx, params = lars(1.0, trust_coefficient=0.1), jnp.ones(2)
    >>> updates, opt_state = tx.update(2 * params, tx.init(params), params)
    >>> print(updates.round(3))
    [-0.1 -0.1]
    """
    momentum, trust_coefficient, eps = as_numbers(momentum, trust_coefficient, eps)
    ratio = _masked(optax.scale_by_trust_ratio(trust_coefficient=trust_coefficient, eps=eps), trust_mask)
    return float32_chain(decayed(weight_decay, mask), ratio, by_learning_rate(learning_rate), optax.trace(momentum))


def lamb(
    learning_rate: LearningRate,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-6,
    weight_decay: Scalar = 0.0,
    mask: Mask = None,
    trust_mask: Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """LAMB: u = m_hat / (sqrt(v_hat) + eps) + weight_decay theta; theta <- theta - lr |theta| / |u| u, with norms by leaf.

    Where a norm is 0 the ratio is 1. For Transformers at batches of 8k and more (You et al. 2019, arXiv:1904.00962). Equal to optax.lamb;
    torch has none. `mask`: which leaves decay; `trust_mask`: which are scaled by the ratio.

    >>> tx, params = lamb(0.1), jnp.ones(2)
    >>> updates, opt_state = tx.update(2 * params, tx.init(params), params)
    >>> print(updates.round(3))
    [-0.1 -0.1]
    """
    b1, b2, eps = as_numbers(b1, b2, eps)
    ratio = _masked(optax.scale_by_trust_ratio(), trust_mask)
    return float32_chain(optax.scale_by_adam(b1, b2, eps), decayed(weight_decay, mask), ratio, by_learning_rate(learning_rate))


def novograd(
    learning_rate: LearningRate,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.25,
    eps: Scalar = 1e-6,
    weight_decay: Scalar = 0.0,
    mask: Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """NovoGrad: n <- b2 n + (1 - b2)|g|**2, one number a leaf (|g|**2 at first); m <- b1 m + g / (sqrt(n) + eps) + weight_decay theta.

    theta <- theta - lr m. Ginsburg et al. 2019, arXiv:1905.11286; half of Adam's memory, for speech and large batches. Equal to
    optax.novograd; torch has none. `mask`: which leaves decay.

    >>> tx, params = novograd(0.1), jnp.ones(2)
    >>> updates, opt_state = tx.update(2 * params, tx.init(params), params)
    >>> print(updates.round(3))
    [-0.071 -0.071]
    """
    b1, b2, eps = as_numbers(b1, b2, eps)
    return float32_chain(_scale_by_leaf_norm(b2, eps), decayed(weight_decay, mask), optax.trace(b1), by_learning_rate(learning_rate))


def muon(
    learning_rate: LearningRate,
    *,
    beta: Scalar = 0.95,
    eps: Scalar = 1e-7,
    consistent_rms: Scalar | None = None,
    adam_ratio: Scalar = 1.0,
    adam_b1: Scalar = 0.9,
    adam_b2: Scalar = 0.999,
    adam_eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    mask: Mask = None,
    matrices: Callable[[Params], PyTree] | None = None,
    ns_steps: int = 5,
) -> optax.GradientTransformationExtraArgs:
    """Muon: momentum whose matrices are orthogonalised, m <- beta m + (1 - beta) g; theta <- theta - lr (s O + weight_decay theta).

    O = NewtonSchulz(beta m + (1 - beta) g), ns_steps quintic steps towards U V^T of the singular value decomposition; for a kernel
    [in, out] s = sqrt(max(1, out / in)), or consistent_rms sqrt(max(in, out)) (0.2 matches AdamW's step: Liu et al. 2025,
    arXiv:2502.16982). Leaves that are not matrices (by default not 2-D; `matrices` is a function from params to bools, and 3-D or more is
    flattened to [-1, out]) take Adam at adam_ratio lr. Jordan et al. 2024 (kellerjordan.github.io/posts/muon) keep embeddings and the
    last layer with Adam too. Equal to torch.optim.Muon (default decay 0.1) but that torch iterates in bfloat16, here float32;
    optax.contrib.muon corrects the momentum's bias, which changes the direction of early steps. `mask`: which leaves decay.

    >>> tx, params = muon(0.1), jnp.eye(2)
    >>> updates, opt_state = tx.update(2 * params, tx.init(params), params)
    >>> print(updates.round(1) + 0.0)
    [[-0.1  0. ]
     [ 0.  -0.1]]
    """
    beta, eps, adam_ratio, adam_b1, adam_b2, adam_eps = as_numbers(beta, eps, adam_ratio, adam_b1, adam_b2, adam_eps)
    rms = None if consistent_rms is None else as_numbers(consistent_rms)[0]

    def labels(params: Params) -> PyTree:
        chosen = jax.tree.map(lambda p: p.ndim == 2, params) if matrices is None else matrices(params)
        return jax.tree.map(lambda is_matrix: "muon" if is_matrix else "adam", chosen)

    adam = optax.chain(optax.scale_by_adam(adam_b1, adam_b2, adam_eps), optax.scale(adam_ratio))
    parts = optax.partition({"muon": _scale_by_muon(beta, eps, rms, ns_steps), "adam": adam}, labels)
    return float32_chain(parts, decayed(weight_decay, mask), by_learning_rate(learning_rate))


class NovogradState(NamedTuple):
    """step: updates made; nu: average squared norm of each leaf's gradient."""

    step: jax.Array
    nu: PyTree


def _scale_by_leaf_norm(b2: jax.Array, eps: jax.Array) -> optax.GradientTransformation:
    def init(params: Params) -> NovogradState:
        return NovogradState(jnp.int32(0), jax.tree.map(lambda p: jnp.zeros((), p.dtype), params))

    def update(grads: PyTree, state: NovogradState, params: Params | None = None) -> tuple[PyTree, NovogradState]:
        now = jax.tree.map(lambda g: jnp.sum(jnp.square(g)), grads)
        nu = jax.tree.map(lambda new, mean: jnp.where(state.step == 0, new, mean), now, ema(now, state.nu, b2))
        updates = jax.tree.map(lambda g, n: g / (jnp.sqrt(n) + eps), grads, nu)
        return updates, NovogradState(optax.safe_increment(state.step), nu)

    return optax.GradientTransformation(init, update)


def _scale_by_muon(beta: jax.Array, eps: jax.Array, rms: jax.Array | None, ns_steps: int) -> optax.GradientTransformation:
    def step(m: jax.Array, g: jax.Array) -> jax.Array:
        x = (beta * m + (1 - beta) * g).reshape(-1, g.shape[-1])
        scale = jnp.sqrt(max(1.0, x.shape[1] / x.shape[0])) if rms is None else rms * jnp.sqrt(float(max(x.shape)))
        return (scale * _orthogonalized(x, eps, ns_steps)).reshape(g.shape)

    def update(grads: PyTree, state: optax.TraceState, params: Params | None = None) -> tuple[PyTree, optax.TraceState]:
        mu = ema(grads, state.trace, beta)
        return jax.tree.map(step, mu, grads), optax.TraceState(mu)

    return optax.GradientTransformation(lambda params: optax.TraceState(zeros(params)), update)


def _orthogonalized(x: jax.Array, eps: jax.Array, steps: int) -> jax.Array:
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / jnp.maximum(jnp.linalg.norm(x), eps)
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if tall else x


def _masked(tx: optax.GradientTransformation, mask: Mask) -> optax.GradientTransformation:
    return tx if mask is None else optax.masked(tx, mask)
