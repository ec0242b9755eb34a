"""Gradient descent, with momentum and with its sign."""

import optax

from .._types import Scalar
from ._common import LearningRate, Mask, as_numbers, by_learning_rate, decayed, elementwise, float32_chain


@elementwise
def sgd(learning_rate: LearningRate, *, weight_decay: Scalar = 0.0, mask: Mask = None) -> optax.GradientTransformationExtraArgs:
    """Gradient descent: theta <- theta - lr (g + weight_decay theta).

    The baseline, and the one whose learning rate is easiest to reason about (Robbins & Monro 1951). Without momentum, an L2 penalty and
    decoupled decay are the same thing. Equal to torch.optim.SGD. `mask`: which leaves decay.

    >>> import jax.numpy as jnp
    >>> tx, params = sgd(0.1), jnp.ones(2)
    >>> updates, opt_state = tx.update(2 * params, tx.init(params), params)
    >>> print(updates.round(3))
    [-0.2 -0.2]
    """
    return float32_chain(decayed(weight_decay, mask), by_learning_rate(learning_rate))


@elementwise
def momentum(
    learning_rate: LearningRate, *, beta: Scalar = 0.9, weight_decay: Scalar = 0.0, mask: Mask = None
) -> optax.GradientTransformationExtraArgs:
    """Heavy-ball momentum: v <- beta v + g + weight_decay theta; theta <- theta - lr v.

    Polyak 1964; weight decay is an L2 penalty inside v, as ResNets are trained (He et al. 2015, arXiv:1512.03385). The gradient enters
    v whole, so the effective step is lr / (1 - beta). Equal to torch.optim.SGD(momentum=beta, dampening=0). Keras puts lr inside v: the
    same while lr is constant. `mask`: which leaves decay.

    >>> import jax.numpy as jnp
    >>> tx, params = momentum(0.1), jnp.ones(2)
    >>> updates, opt_state = tx.update(2 * params, tx.init(params), params)
    >>> print(updates.round(3))
    [-0.2 -0.2]
    """
    (beta,) = as_numbers(beta)
    return float32_chain(decayed(weight_decay, mask), optax.trace(beta), by_learning_rate(learning_rate))


@elementwise
def nesterov(
    learning_rate: LearningRate, *, beta: Scalar = 0.9, weight_decay: Scalar = 0.0, mask: Mask = None
) -> optax.GradientTransformationExtraArgs:
    """Nesterov momentum: v <- beta v + g; theta <- theta - lr (g + beta v), with g including weight_decay theta.

    Nesterov 1983 in the form of Sutskever et al. 2013 (ICML) rewritten at the look-ahead point. Equal to
    torch.optim.SGD(momentum=beta, nesterov=True). `mask`: which leaves decay.

    >>> import jax.numpy as jnp
    >>> tx, params = nesterov(0.1, beta=1.0), jnp.ones(2)
    >>> updates, opt_state = tx.update(2 * params, tx.init(params), params)
    >>> print(updates.round(3))
    [-0.4 -0.4]
    """
    (beta,) = as_numbers(beta)
    return float32_chain(decayed(weight_decay, mask), optax.trace(beta, nesterov=True), by_learning_rate(learning_rate))


@elementwise
def lion(
    learning_rate: LearningRate, *, b1: Scalar = 0.9, b2: Scalar = 0.99, weight_decay: Scalar = 1e-3, mask: Mask = None
) -> optax.GradientTransformationExtraArgs:
    """Lion: theta <- theta - lr (sign(b1 m + (1 - b1) g) + weight_decay theta); m <- b2 m + (1 - b2) g.

    Every coordinate moves by lr, so lr wants to be 3 to 10 times smaller and weight_decay as much larger than AdamW's (Chen et al. 2023,
    arXiv:2302.06675). One moment, half of Adam's memory. Equal to optax.lion; torch has none. `mask`: which leaves decay.

    >>> import jax.numpy as jnp
    >>> tx, params = lion(0.1, weight_decay=0.0), jnp.ones(2)
    >>> updates, opt_state = tx.update(2 * params, tx.init(params), params)
    >>> print(updates.round(3))
    [-0.1 -0.1]
    """
    b1, b2 = as_numbers(b1, b2)
    return float32_chain(optax.scale_by_lion(b1, b2), decayed(weight_decay, mask), by_learning_rate(learning_rate))
