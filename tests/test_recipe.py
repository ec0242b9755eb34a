import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lossopt_jax as lo
from lossopt_jax.recipe import numbers, with_numbers


def ours(x, *, rate: lo.Scalar, scale: lo.Vector = (1.0, 2.0), cap: lo.Scalar | None = None, steps: int = 3):
    return x, rate, scale, cap, steps


def test_annotated_numbers_are_float32_leaves_with_their_defaults_and_the_rest_is_structure():
    bound = lo.bind(ours, rate=1)
    assert {k: (v.dtype, v.shape) for k, v in bound.hparams.items()} == {"rate": (np.float32, ()), "scale": (np.float32, (2,))}
    assert bound.options == {"cap": None, "steps": 3}
    assert len(jax.tree.leaves(bound)) == 2


def test_none_against_a_number_is_structure():
    assert jax.tree.structure(lo.bind(ours, rate=1)) != jax.tree.structure(lo.bind(ours, rate=1, cap=2.0))


def test_new_numbers_keep_the_treedef_and_new_flags_change_it():
    assert jax.tree.structure(lo.bind(ours, rate=1)) == jax.tree.structure(lo.bind(ours, rate=2.5, steps=3))
    assert jax.tree.structure(lo.bind(ours, rate=1)) != jax.tree.structure(lo.bind(ours, rate=1, steps=4))


def test_calling_a_bound_is_calling_the_function():
    x, rate, scale, cap, steps = lo.bind(ours, rate=0.5, cap=7.0)("data")
    assert (x, float(rate), scale.tolist(), float(cap), steps) == ("data", 0.5, [1.0, 2.0], 7.0, 3)


def test_foreign_functions_bind_given_floats_as_leaves():
    bound = lo.bind(optax.lion, b1=0.95, mu_dtype=None)
    assert list(bound.hparams) == ["b1"]
    assert bound.options == {"mu_dtype": None}
    assert isinstance(bound(0.1), optax.GradientTransformation)


def test_optax_loss_binds():
    bound = lo.bind(optax.losses.poly_loss_cross_entropy, epsilon=1.0)
    logits, labels = jnp.array([[1.0, 2.0, 0.5]]), jnp.array([[0.0, 1.0, 0.0]])
    np.testing.assert_allclose(bound(logits, labels), optax.losses.poly_loss_cross_entropy(logits, labels, epsilon=1.0), rtol=1e-6)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rat": 1.0}, ["'rat'", "did you mean 'rate'"]),
        ({}, ["needs a value for 'rate'"]),
        ({"rate": "fast"}, ["rate must be a number", "'fast'"]),
        ({"rate": True}, ["rate must be a number", "True"]),
        ({"rate": lambda step: step}, ["wrap a schedule in lo.bind"]),
        ({"rate": 1.0, "steps": {}}, ["steps is structure", "hashable"]),
    ],
)
def test_wrong_values_are_named(values, words):
    with pytest.raises(TypeError) as error:
        lo.bind(ours, **values)
    assert all(word in str(error.value) for word in words)


def test_a_scheduled_number_resolves_at_its_step():
    bound = lo.bind(lo.optimizers.adamw, weight_decay=lo.bind(lo.schedules.linear, init=1.0, total=10))
    with pytest.raises(TypeError, match="weight_decay is a schedule"):
        bound(0.1)
    assert float(bound.at(4).hparams["weight_decay"]) == pytest.approx(0.6)
    assert {k: float(v) for k, v in bound.scheduled(5).items()} == {"weight_decay": pytest.approx(0.5)}


def test_parts_are_children_and_their_numbers_resolve():
    inner = lo.bind(lo.optimizers.adam, b1=lo.bind(lo.schedules.linear, init=0.9, total=10))
    outer = lo.bind(lo.optimizers.reduce_on_plateau, optimizer=inner)
    assert "optimizer.b1.init" in numbers(outer)
    assert float(outer.at(5).hparams["optimizer"].hparams["b1"]) == pytest.approx(0.45)
    assert outer.scheduled(0) == {}


def test_paths_and_replacement():
    recipe = lo.Recipe(lo.bind(lo.losses.huber), lo.bind(lo.optimizers.adam), lo.bind(lo.schedules.constant, value=0.1))
    assert {"loss.delta", "optimizer.b1", "schedule.value"} <= set(numbers(recipe))
    changed = with_numbers(recipe, {"schedule.value": 0.5})
    assert float(changed.schedule.hparams["value"]) == 0.5
    assert jax.tree.structure(changed) == jax.tree.structure(recipe)
    with pytest.raises(KeyError, match=r"schedule\.vale.*did you mean 'schedule\.value'"):
        with_numbers(recipe, {"schedule.vale": 0.5})


def test_a_recipe_is_a_pytree_that_stacks():
    recipe = lo.Recipe(lo.bind(lo.losses.mse), lo.bind(lo.optimizers.sgd), lo.bind(lo.schedules.constant, value=0.1))
    stacked = jax.tree.map(lambda *v: jnp.stack(v), recipe, recipe)
    assert stacked.schedule.hparams["value"].shape == (2,)
    assert jax.vmap(lambda r: r.schedule(0))(stacked).tolist() == pytest.approx([0.1, 0.1])


def test_equality_is_by_structure_and_numbers():
    make = lambda rate: lo.bind(ours, rate=rate)  # noqa: E731
    assert make(1.0) == make(1.0)
    assert make(1.0) != make(2.0)
    assert make(1.0).replace(rate=2.0) == make(2.0)


def test_a_bound_schedule_is_an_optax_learning_rate():
    schedule = lo.bind(lo.schedules.linear, init=1.0, total=4)
    tx = optax.sgd(schedule)
    params, state, seen = jnp.zeros(()), tx.init(jnp.zeros(())), []
    for _ in range(4):
        updates, state = tx.update(jnp.ones(()), state, params)
        seen.append(-float(updates))
    assert seen == pytest.approx([1.0, 0.75, 0.5, 0.25])


def test_plain_functions_join_bound_ones():
    bound = lo.bind(lo.schedules.join, schedules=(lo.bind(lo.schedules.constant, value=2.0), lambda step: step * 1.0), boundaries=[3.0])
    assert [float(bound(step)) for step in (0, 2, 3, 5)] == [2.0, 2.0, 0.0, 2.0]


def test_data_cannot_be_bound():
    assert lo.bind(lo.losses.mse).hparams == {}
    for fn, name in ((lo.losses.mse, "targets"), (optax.adam, "learning_rate"), (optax.cosine_decay_schedule, "init_value")):
        with pytest.raises(TypeError, match=f"takes as data '{name}'"):
            lo.bind(fn, **{name: 1.0})


def test_a_schedule_with_a_scheduled_number_has_the_step_at_hand():
    schedule = lo.bind(lo.schedules.constant, value=lo.bind(lo.schedules.linear, init=0.2, total=4))
    assert float(schedule(1)) == pytest.approx(0.15)


def test_a_bound_function_is_a_function_to_jax_too():
    """jit and checkpoint hold functions by weak references and by their hash; what is bound may be traced."""
    outputs, targets = jnp.array([3.0, 0.5]), jnp.zeros(2)
    np.testing.assert_allclose([jax.jit(lo.bind(lo.schedules.constant, value=v))(0) for v in (0.1, 0.2)], [0.1, 0.2], rtol=1e-6)
    two = lo.bind(lo.losses.huber, delta=1.0), lo.bind(lo.losses.huber, delta=1.0)
    assert two[0] == two[1]
    assert hash(two[0]) == hash(two[1])
    assert two[0] != two[0].replace(delta=2.0)

    def total(delta):
        return jax.checkpoint(lo.bind(lo.losses.huber).replace(delta=delta))(outputs, targets).sum()

    # delta (3 - delta / 2) + 0.125, whose slope is 3 - delta.
    assert jax.jit(jax.grad(total))(1.0) == 2.0
    np.testing.assert_allclose(jax.vmap(total)(jnp.array([1.0, 2.0])), [2.625, 4.125])
