"""A convolution as a matrix product is Flax's own: same parameters, same values, same gradients, alone and as lanes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import lossopt_jax as lo
from lossopt_jax.models import conv_by_patches, networks

CASES = {
    "same": ((2, 6, 5, 3), 4, (3, 3), {}),
    "valid, strides": ((2, 7, 6, 3), 4, (3, 2), {"padding": "VALID", "strides": (2, 1)}),
    "same, strides": ((2, 7, 6, 3), 4, (3, 2), {"strides": 2}),
    "explicit, dilation": ((2, 7, 6, 3), 4, (3, 2), {"padding": ((2, 1), (0, 3)), "kernel_dilation": (2, 3)}),
    "groups": ((2, 5, 5, 4), 6, (3, 3), {"feature_group_count": 2}),
    "depthwise, no bias": ((2, 5, 5, 4), 4, (3, 3), {"feature_group_count": 4, "use_bias": False}),
    "1-D": ((2, 9, 3), 4, (4,), {"padding": "CAUSAL"}),
    "3-D": ((2, 4, 3, 5, 2), 3, (2, 3, 2), {"strides": (1, 2, 1)}),
    "input dilation": ((2, 5, 4, 3), 4, (3, 3), {"input_dilation": 2, "padding": ((1, 2), (2, 0))}),
    "around the edge": ((2, 6, 5, 3), 4, (3, 3), {"padding": "CIRCULAR", "strides": 2}),
    "one pixel": ((2, 6, 5, 3), 4, (1, 1), {}),
    "one example": ((6, 5, 3), 4, (3, 3), {}),
    "one channel": ((2, 6, 5, 1), 16, (3, 3), {"strides": (1, 2)}),
}


def linen_pair(shape, features, window, settings):
    return [lo.from_linen(nn.Conv(features, window, **settings, **hook)) for hook in ({}, {"conv_general_dilated": conv_by_patches})]


def nnx_pair(shape, features, window, settings):
    hooks = ({}, {"conv_general_dilated": conv_by_patches})
    return [lo.from_nnx(lambda rngs, hook=hook: nnx.Conv(shape[-1], features, window, **settings, **hook, rngs=rngs)) for hook in hooks]


def check(pair, shape):
    x = jax.random.normal(jax.random.key(1), shape)
    plain, _ = pair
    params, same = jax.jit(lambda key: [model.init(key, x)[0] for model in pair])(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, params, same)

    def outputs(model, params, x):
        return model.apply(params, {}, x, key=jax.random.key(0), train=True)[0]

    weights = jnp.asarray(np.random.default_rng(0).normal(size=jax.eval_shape(lambda: outputs(plain, params, x)).shape), jnp.float32)

    @jax.jit
    def values_and_gradients(params, x):
        return [
            (outputs(model, params, x), jax.grad(lambda p, x, m=model: (outputs(m, p, x) * weights).sum(), (0, 1))(params, x))
            for model in pair
        ]

    expected, got = values_and_gradients(params, x)
    # Sums of up to 100 products of order 1 in another order.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5), got, expected)


@pytest.mark.parametrize(("case", "make"), [("explicit, dilation", linen_pair), ("groups", nnx_pair), ("one channel", linen_pair)])
def test_patches_are_the_convolution(case, make):
    shape, *rest = CASES[case]
    check(make(shape, *rest), shape)


@pytest.mark.slow
@pytest.mark.parametrize("make", [linen_pair, nnx_pair])
@pytest.mark.parametrize("case", CASES)
def test_patches_are_the_convolution_in_every_form(case, make):
    shape, *rest = CASES[case]
    check(make(shape, *rest), shape)


def test_one_channel_is_the_convolution_in_forward_mode_and_twice():
    """Along both, along one of them, and the slope of a slope."""
    x, kernel, dx, dkernel = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(2, 6, 5, 1), (3, 3, 1, 16)] * 2))

    def both(f):
        return [f(conv_by_patches), f(lambda x, k, *args: jax.lax.conv_general_dilated(x, k, *args, dimension_numbers=numbers))]

    numbers = jax.lax.conv_dimension_numbers(x.shape, kernel.shape, ("NHWC", "HWIO", "NHWC"))

    def moved(conv):
        f = lambda x, k: conv(x, k, (1, 1), "SAME")  # noqa: E731
        twice = jax.jvp(jax.grad(lambda k: (f(x, k) ** 3).sum()), (kernel,), (dkernel,))
        return jax.jvp(f, (x, kernel), (dx, dkernel)), jax.jvp(lambda k: f(x, k), (kernel,), (dkernel,)), twice

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), *both(moved))


def test_one_channel_keeps_what_is_asked_of_products():
    x, kernel = jnp.ones((2, 6, 5, 1)), jnp.ones((3, 3, 1, 16))
    assert conv_by_patches(x, kernel, (1, 1), "SAME", preferred_element_type=jnp.bfloat16).dtype == jnp.bfloat16
    gradient = jax.grad(lambda k: conv_by_patches(x, k, (1, 1), "SAME", precision="highest").sum())
    assert "HIGHEST" in str(jax.make_jaxpr(gradient)(kernel))


@pytest.mark.parametrize("channels", [3, 16])
def test_pooling_is_the_mean_of_squares_of_four(channels):
    x, t = (np.random.default_rng(i).normal(size=(2, 6, 4, channels)) for i in (0, 1))
    g = np.random.default_rng(2).normal(size=(2, 3, 2, channels))
    as_jax = lambda a: jnp.asarray(a, jnp.float32)  # noqa: E731
    means = lambda a: a.reshape(2, 3, 2, 2, 2, channels).mean((2, 4))  # noqa: E731
    value, back = jax.vjp(networks._halved, as_jax(x))
    np.testing.assert_allclose(value, means(x), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(back(as_jax(g))[0], np.repeat(np.repeat(g / 4, 2, 1), 2, 2), rtol=1e-6)
    np.testing.assert_allclose(jax.jvp(networks._halved, (as_jax(x),), (as_jax(t),))[1], means(t), rtol=1e-5, atol=1e-6)


def test_lanes_become_a_batched_matrix_product():
    model = lo.from_linen(lo.models.CNN(channels=(4,)))
    x = jnp.ones((2, 4, 4, 1))
    keys = jax.random.split(jax.random.key(0), 3)

    def loss(key):
        params, _ = model.init(key, x)
        return jax.grad(lambda params: model.apply(params, {}, x, key=key, train=True)[0].sum())(params)

    program = str(jax.make_jaxpr(jax.vmap(loss))(keys))
    assert "dot_general" in program
    assert "conv_general_dilated" not in program


def test_what_does_not_fit_is_named():
    x, kernel = jnp.ones((1, 4, 2)), jnp.ones((3, 2, 5))
    with pytest.raises(ValueError, match=r"inputs \(1, 4, 2\) need a kernel \[\*window, 2 / 1"):
        conv_by_patches(x, kernel[:, :1], (1,), "SAME")
    with pytest.raises(ValueError, match=r"a window of \(3,\) does not fit into the padded inputs \(1, 2, 2\)"):
        conv_by_patches(x[:, :2], kernel, (1,), "VALID")
    numbers = jax.lax.ConvDimensionNumbers((0, 1, 2), (0, 1, 2), (0, 1, 2))
    with pytest.raises(ValueError, match="dimension_numbers must have channels last"):
        conv_by_patches(x, kernel, (1,), "SAME", dimension_numbers=numbers)


def test_negative_padding_crops():
    # Against NumPy: jitted on CPU, `jax.lax.conv_general_dilated` (jaxlib 0.10.2) reads beyond the inputs here.
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 7, 3)).astype(np.float32), rng.normal(size=(3, 3, 4)).astype(np.float32)
    cropped = np.pad(x[:, 1:], ((0, 0), (0, 1), (0, 0)))
    expected = sum(cropped[:, i : i + 5] @ kernel[i] for i in range(3))
    np.testing.assert_allclose(conv_by_patches(jnp.array(x), jnp.array(kernel), (1,), [(-1, 1)]), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("network", [partial(lo.models.Transformer, reach=1), partial(lo.models.Transformer, reach=3), lo.models.RNN])
def test_what_predicts_the_next_symbol_does_not_look_ahead(network):
    model = lo.from_linen(network(width=8, output_shape=(6, 5)))
    symbols = jnp.array([[0, 1, 2, 3, 4, 0], [0, 1, 2, 4, 3, 1]])

    @jax.jit
    def logits(key):
        params, _ = model.init(key, symbols)
        return model.apply(params, {}, symbols, key=key, train=False)[0]

    first, second = logits(jax.random.key(0))
    np.testing.assert_allclose(first[:3], second[:3], rtol=1e-5)
    assert np.abs(first[3:] - second[3:]).max() > 1e-3
