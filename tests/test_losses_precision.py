"""bfloat16 and float16 in, float32 inside: every loss gives what it gives on the same rounded numbers in float32."""

import functools
import importlib.util
from pathlib import Path

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from lossopt_jax import losses
from lossopt_jax.recipe import bind

spec = importlib.util.spec_from_file_location("losses_contracts", Path(__file__).with_name("test_losses_contracts.py"))
contracts = importlib.util.module_from_spec(spec)
spec.loader.exec_module(contracts)
EXAMPLES = contracts.EXAMPLES

HALVES = (jnp.bfloat16, jnp.float16)
# What leaves the digits of a half as they are, widens or rounds them, or holds a program of its own.
MOVES = {"broadcast_in_dim", "convert_element_type", "dynamic_slice", "dynamic_update_slice", "select_n", "jit", "linear_map", "scan"}
# The head's matrix products keep half operands, which a float32 product would double the cost of; they accumulate in float32.
MATRIX_OPERANDS = {"linear_cross_entropy"}


def halved(tree, dtype):
    return jax.tree.map(lambda x: jnp.asarray(x, dtype) if jnp.issubdtype(jnp.asarray(x).dtype, jnp.floating) else jnp.asarray(x), tree)


def value_and_grad_of(name):
    outputs, targets, numbers = EXAMPLES[name]
    loss = bind(getattr(losses, name), **numbers)

    def total(outputs, targets):
        values = loss(outputs, targets)
        # Not the plain sum, so that each value has a slope of its own.
        return (values * jnp.cos(jnp.arange(values.size, dtype=values.dtype)).reshape(values.shape)).sum(), values

    return jax.grad(total, has_aux=True), outputs, targets


def half_arithmetic(jaxpr, dtype):
    """The primitives that compute in `dtype`, here and in the jaxprs within."""
    found = set()
    for eqn in jaxpr.eqns:
        dtypes = {getattr(v.aval, "dtype", None) for v in eqn.outvars}
        if dtype in dtypes and eqn.primitive.name not in MOVES:
            found.add(eqn.primitive.name)
        for inner in jax.extend.core.jaxprs_in_params(eqn.params):
            found |= half_arithmetic(inner, dtype)
    return found


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_nothing_is_computed_in_half_precision(name):
    gradient, outputs, targets = value_and_grad_of(name)
    dtype = jnp.dtype(jnp.bfloat16)
    jaxpr, (_, values) = jax.make_jaxpr(gradient, return_shape=True)(halved(outputs, dtype), halved(targets, dtype))
    assert values.dtype == jnp.float32
    assert half_arithmetic(jaxpr.jaxpr, dtype) == set()


@functools.cache
def programs(name):
    gradient, outputs, targets = value_and_grad_of(name)
    # By default XLA may leave out a rounding to half precision, and with it what this file looks for.
    return jax.jit(gradient, compiler_options={"xla_allow_excess_precision": False}), outputs, targets


def check(name, dtype):
    run, outputs, targets = programs(name)
    given = halved(outputs, dtype), halved(targets, dtype)
    grads, values = run(*given)
    wide_grads, wide_values = run(*halved(given, jnp.float32))
    assert np.isfinite(np.asarray(wide_values)).all()
    np.testing.assert_allclose(values, wide_values, rtol=1e-6, atol=1e-7)
    info = jnp.finfo(dtype)
    for grad, wide in zip(jax.tree.leaves(grads), jax.tree.leaves(wide_grads), strict=True):
        assert grad.dtype == dtype
        atol = float(info.smallest_subnormal) + 1e-6 * float(jnp.abs(wide).max(initial=0))
        factor = 2 if name in MATRIX_OPERANDS else 0.5
        np.testing.assert_allclose(np.float32(grad), wide, rtol=1.001 * factor * float(info.eps), atol=atol)


FEW = ("binary_dice", "cross_entropy", "huber", "triplet")


@pytest.mark.parametrize("name", FEW)
def test_bfloat16_gives_what_float32_gives_on_the_rounded_numbers(name):
    check(name, jnp.bfloat16)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", HALVES, ids=lambda d: d.__name__)
@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_half_precision_gives_what_float32_gives_on_the_rounded_numbers(name, dtype):
    check(name, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", HALVES, ids=lambda d: d.__name__)
def test_half_precision_at_50257_classes(dtype):
    z = np.random.default_rng(0).normal(size=(4, 50257)) * 3
    labels = np.array([0, 7, 50256, 100])
    given = jnp.asarray(z, dtype)
    exact = np.asarray(given, np.float64)
    expected = np.log(np.exp(exact).sum(-1)) - exact[np.arange(4), labels]
    np.testing.assert_allclose(losses.cross_entropy(given, labels), expected, rtol=2e-6)


@pytest.mark.parametrize("degree", [2.0, 7.0, 50.0, 1000.0, np.inf])
def test_a_norm_reaches_to_the_largest_numbers(degree):
    x = np.float64([2e38, 1e38])
    longest = x.max() * (np.sum((x / x.max()) ** degree) ** (1 / degree) if np.isfinite(degree) else 1.0)
    slope = (x / longest) ** (degree - 1) if np.isfinite(degree) else np.float64([1.0, 0.0])

    @jax.jit
    def distance(a):  # from 0, less the distance to itself
        return losses.triplet((a, jnp.zeros_like(a), jax.lax.stop_gradient(a)), margin=0.0, degree=degree).sum()

    value, gradient = jax.value_and_grad(distance)(jnp.float32(x)[None])
    np.testing.assert_allclose(value, longest, rtol=2e-6)
    # A power of 49 takes the rounding of its base 49 times.
    np.testing.assert_allclose(gradient, slope[None], rtol=2e-5, atol=1e-30)


def test_a_cosine_of_the_largest_numbers():
    x = jnp.float32([[9e37, 0.0], [3e38, 3e38]])
    np.testing.assert_allclose(losses.cosine(x, jnp.float32([[1.0, 0.0], [1.0, 0.0]])), [0, 1 - 0.5**0.5], rtol=1e-6)
