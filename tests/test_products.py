"""Products over leading axes are made from a transposed copy, and nothing else of a function changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lossopt_jax.products import with_products_along

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.standard_normal((6, 5, 4)), jnp.float32)


def products(f, *args):
    """(dimension numbers of every product in f, how many copies are held in place)."""
    found, held = [], 0

    def walk(jaxpr):
        nonlocal held
        for eqn in jaxpr.eqns:
            held += eqn.primitive.name == "optimization_barrier"
            if eqn.primitive.name == "dot_general":
                found.append(eqn.params["dimension_numbers"])
            for part in jax.tree.leaves(list(eqn.params.values())):
                if hasattr(inner := getattr(part, "jaxpr", part), "eqns"):
                    walk(inner)

    walk(jax.make_jaxpr(f)(*args).jaxpr)
    return found, held


def dense(kernel):
    return jnp.tanh(X @ kernel).sum()


def recurrent(kernel):
    def cell(h, x):
        h = jnp.tanh(x @ kernel + h)
        return h, h

    return jax.lax.scan(cell, jnp.zeros((6, 3)), X.swapaxes(0, 1))[1].sum()


def halves(kernel):
    return jnp.tanh(X.astype(jnp.bfloat16) @ kernel.astype(jnp.bfloat16)).astype(jnp.float32).sum()


def inside(kernel):
    return jax.jit(dense)(kernel) + jax.checkpoint(dense)(kernel)


@pytest.mark.parametrize(("loss", "count"), [(dense, 1), (recurrent, 1), (halves, 1), (inside, 1)])
def test_gradients_of_matrices_are_made_along_and_stay_what_they_were(loss, count):
    kernel = jnp.asarray(RNG.standard_normal((4, 3)), jnp.float32)
    f = jax.value_and_grad(loss)
    along = with_products_along(f)
    for one, other in zip(jax.jit(along)(kernel), jax.jit(f)(kernel), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=1e-2 if loss is halves else 1e-5, atol=1e-6)
    assert products(along, kernel)[1] == products(f, kernel)[1] + count
    kernels = jnp.stack([kernel, 2 * kernel])
    for one, other in zip(jax.vmap(along)(kernels), jax.vmap(f)(kernels), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-2 if loss is halves else 1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "f",
    [
        lambda x: x.reshape(30, 4) @ x.reshape(4, 30),
        lambda x: jnp.einsum("bni,bno->bio", x, x),  # a product for each example has a batch axis
        lambda x: jnp.vdot(x, x),
        lambda x: nn.relu(x).sum(0),
        lambda x: jax.lax.cond(x[0, 0, 0] > 0, jnp.sin, jnp.cos, x),
        lambda x: jax.lax.while_loop(lambda c: c.sum() < 1e3, lambda c: 2 * jnp.abs(c), x),
    ],
)
def test_all_else_is_as_it_was(f):
    along = with_products_along(f)
    assert products(along, X) == products(f, X)
    np.testing.assert_array_equal(along(X), f(X))


def test_the_product_is_over_the_last_axis_of_the_copy():
    y = X[..., :3]
    f = lambda x, y: jnp.tensordot(x, y, axes=((0, 1), (0, 1)))  # noqa: E731
    (((left, right), batch),), held = products(with_products_along(f), X, y)
    assert (left, right, batch, held) == ((1,), (0,), ((), ()), 1)
    np.testing.assert_allclose(with_products_along(f)(X, y), f(X, y), rtol=1e-5, atol=1e-6)


def test_trees_keys_and_nothing_pass_through():
    def f(state, key):
        return {"sum": state["a"].sum() + jax.random.normal(key), "key": key, "none": state["none"]}

    state, key = {"a": X, "none": None}, jax.random.key(1)
    out, expected = with_products_along(f)(state, key), f(state, key)
    assert out["none"] is None
    assert out["sum"] == expected["sum"]
    assert jax.random.key_data(out["key"]).tolist() == jax.random.key_data(key).tolist()
