"""What packing and products along rows save of a step on CPU: taskset -c 1 python tests/benchmarks/step.py [rounds]

MLPs on digits under AdamW, `lanes` side by side as one program on one core (`taskset`), with neither, with the parameters as one vector
(`train._packed`), with gradients made from transposed copies (`products.py`), and with both: microseconds of a lane-step, the best of the
rounds, in turns. Packing is for up to 128 KiB of parameters, so that the wider networks have it in neither.
"""

import itertools
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

import lossopt_jax as lo
from lossopt_jax import train
from lossopt_jax.data import as_batch
from lossopt_jax.models import MLP
from lossopt_jax.products import with_products_along
from lossopt_jax.step import init_state

NETWORKS = [((16, 16), 16, 1), ((16, 16), 16, 8), ((64, 64), 64, 1), ((64, 64), 64, 8), ((512, 512), 64, 1)]  # widths, batch, lanes
STEPS = 50
PACKED_BYTES = train.PACKED_BYTES


def prepared(widths: tuple[int, ...], batch: int, lanes: int, packed: bool, along: bool):
    train.PACKED_BYTES = PACKED_BYTES if packed else 0
    train.with_products_along = with_products_along if along else lambda f: f
    data = jax.device_put(as_batch(lo.data.digits().train, "train"))
    model = lo.from_linen(MLP(widths=widths, output_shape=(10,)))
    recipe = lo.Recipe(lo.bind(lo.losses.cross_entropy), lo.bind(lo.optimizers.adamw), lo.bind(lo.schedules.constant, value=1e-3))
    recipes = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (lanes,)), recipe)
    start = jax.vmap(lambda r: train.Carry(init_state(model, r, jax.random.key(0), data.inputs[:1]), jnp.bool_(True)))(recipes)
    order = jnp.asarray(np.random.default_rng(0).integers(0, len(data.inputs), (STEPS, batch)).astype(np.int32))
    of_lanes = jax.vmap(lambda r, carry, *shared: train.train_chunk(model, r, carry, *shared), in_axes=(0, 0, None, None, None))
    program = jax.jit(of_lanes).lower(recipes, start, data, order, 0).compile(train.STEP_OPTIONS["cpu"])

    def lane_step() -> float:
        began = time.perf_counter()
        jax.block_until_ready(program(recipes, start, data, order, STEPS))
        return (time.perf_counter() - began) / STEPS / lanes * 1e6

    return lane_step


def main(rounds: int) -> None:
    print(f"{'':24s}{'neither':>10s}{'packed':>10s}{'along':>10s}{'both':>10s}{'ratio':>8s}")
    for network in NETWORKS:
        ways = [prepared(*network, packed, along) for along, packed in itertools.product((False, True), repeat=2)]
        best = [min(times) for times in zip(*([way() for way in ways] for _ in range(rounds)), strict=True)]
        name = f"{'-'.join(map(str, network[0]))}, {network[2]} lane{'s' * (network[2] > 1)}"
        print(f"{name:24s}{''.join(f'{us:10.1f}' for us in best)}{best[3] / best[0]:8.2f}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
