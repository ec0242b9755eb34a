"""value_and_grad of the mean of a loss against optax and torch, one machine, one run: python tests/benchmarks/losses.py [--torch PYTHON]

    python tests/benchmarks/losses.py --only huber --rounds 9

Losses that optax 0.2.8 or torch 2.13 also has, on the same arrays (each over 1 MB), two threads. The three take turns, torch in a
process of its own, and the best of the rounds counts: on a shared machine the others measure the neighbours. A ratio is of our time to
the faster of the other two. Memory traffic is what a gradient must at least move (outputs and targets in, the gradient out) as a share
of what a triad a = b + 2 c reaches in this run. --cpu counts processor seconds instead of the clock's, for a machine that is busy.
Arrays this large come fresh from the system at every call, page by page, or not, as malloc's history has it; to measure losses and not
that, for all contenders alike: MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_ARENA_MAX=1 python tests/benchmarks/losses.py
PYTHON is one with torch; $LOSSOPT_TORCH says so too, and without either torch's column is left out.
"""

import argparse
import functools
import os
import pathlib
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import losses_data
import numpy as np
import optax

from lossopt_jax import losses
from lossopt_jax.reduce import loss_total, mean

TORCH = "/work/venvs/torch/bin/python"
TRAFFIC = ("mse", "huber", "binary_cross_entropy", "cross_entropy", "cross_entropy, distribution")
log_softmax = jax.nn.log_softmax


def ours(loss, **options):
    def total(outputs, targets):
        return mean(loss_total(lambda o, t: loss(o, t, **options), outputs, targets))

    return total


def theirs(loss):
    return lambda outputs, targets: loss(outputs, targets).mean()


def optax_ctc(logits, targets):
    labels, frames = targets
    paddings = (jnp.arange(logits.shape[1])[None, :] >= frames[:, None]).astype(jnp.float32)
    return optax.ctc_loss(logits, paddings, jnp.maximum(labels, 0), (labels < 0).astype(jnp.float32))


# name -> (ours, optax's or None); the arrays are those of losses_data under the same name.
LOSSES = {
    "mse": (ours(losses.mse), theirs(optax.squared_error)),
    "mae": (ours(losses.mae), None),
    "huber": (ours(losses.huber), theirs(optax.huber_loss)),
    "smooth_l1": (ours(losses.smooth_l1), None),
    "log_cosh": (ours(losses.log_cosh), theirs(optax.log_cosh)),
    "poisson_nll": (ours(losses.poisson_nll), None),
    "cosine": (ours(losses.cosine), theirs(lambda x, y: optax.cosine_distance(x, y, epsilon=1e-8))),
    "binary_cross_entropy": (ours(losses.binary_cross_entropy), theirs(optax.sigmoid_binary_cross_entropy)),
    "binary_focal": (ours(losses.binary_focal), theirs(optax.sigmoid_focal_loss)),
    "hinge": (ours(losses.hinge), theirs(optax.hinge_loss)),
    "cross_entropy": (ours(losses.cross_entropy), theirs(optax.softmax_cross_entropy_with_integer_labels)),
    "cross_entropy, distribution": (ours(losses.cross_entropy), theirs(optax.softmax_cross_entropy)),
    "cross_entropy, smoothed": (
        ours(losses.cross_entropy, label_smoothing=0.1),
        theirs(lambda z, y: optax.softmax_cross_entropy(z, optax.smooth_labels(jax.nn.one_hot(y, z.shape[-1]), 0.1))),
    ),
    "cross_entropy, 50257 classes": (ours(losses.cross_entropy), theirs(optax.softmax_cross_entropy_with_integer_labels)),
    "nll": (ours(losses.nll), None),
    "poly": (ours(losses.poly), theirs(lambda z, y: optax.losses.poly_loss_cross_entropy(z, jax.nn.one_hot(y, z.shape[-1]), epsilon=1.0))),
    "kl_divergence": (ours(losses.kl_divergence), theirs(lambda z, q: optax.kl_divergence(log_softmax(z), q))),
    "multiclass_hinge": (ours(losses.multiclass_hinge), theirs(optax.losses.multiclass_hinge_loss)),
    "multi_margin": (ours(losses.multi_margin), None),
    "multilabel_soft_margin": (ours(losses.multilabel_soft_margin), None),
    "triplet": (ours(losses.triplet), theirs(lambda x, _: optax.losses.triplet_margin_loss(*x, margin=1.0))),
    "cosine_embedding": (ours(losses.cosine_embedding), None),
    "margin_ranking": (ours(losses.margin_ranking), None),
    "listwise_softmax": (ours(losses.listwise_softmax), theirs(lambda s, y: optax.losses.ranking_softmax_loss(s, y, reduce_fn=None))),
    "dice": (ours(losses.dice), theirs(lambda z, y: optax.losses.dice_loss(z, jax.nn.one_hot(y, z.shape[-1]), ignore_background=False))),
    "binary_dice": (ours(losses.binary_dice), theirs(lambda z, y: optax.losses.binary_dice_loss(z, y.astype(jnp.float32)))),
    "ctc": (ours(losses.ctc), theirs(optax_ctc)),
}


class Torch:
    """torch's side, in a process that times what it is asked for."""

    def __init__(self, python: str, cpu: bool):
        script = pathlib.Path(__file__).with_name("losses_torch.py")
        command = [python, str(script), "cpu" if cpu else "wall"]
        quiet = os.environ | ({"OMP_WAIT_POLICY": "passive"} if cpu else {})  # threads that spin while they wait would count
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=quiet)

    def seconds(self, name: str, count: int) -> float | None:
        assert self.process.stdin
        assert self.process.stdout
        print(name, count, sep="\t", file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline().strip()
        return float(answer) if answer != "none" else None


def clock(f, args, count: int, now) -> float:
    jax.block_until_ready(f(*args))
    started = now()
    for _ in range(count):
        out = f(*args)
    jax.block_until_ready(out)
    return (now() - started) / count


def triad_bytes_a_second(rounds: int, now) -> float:
    """The stream limit: three arrays of 64 MB, more than any cache here, through the same compiler and threads."""
    b, c = (jnp.full(2**24, x, jnp.float32) for x in (1.0, 2.0))
    triad = jax.jit(lambda a, b, c: b + 2 * c, donate_argnums=0, keep_unused=True)
    best, a = 0.0, jnp.zeros_like(b)
    for _ in range(rounds + 1):
        started = now()
        a = jax.block_until_ready(triad(a, b, c))
        best = max(best, 3 * b.nbytes / (now() - started))
    return best


def measure(name: str, torch: Torch | None, rounds: int, now) -> tuple[dict[str, float], int]:
    data = losses_data.arrays(name)
    outputs, targets = jax.tree.map(jnp.asarray, data)
    contenders = {
        who: jax.jit(jax.value_and_grad(loss)) for who, loss in zip(("ours", "optax"), LOSSES[name], strict=True) if loss is not None
    }
    values = {who: float(f(outputs, targets)[0]) for who, f in contenders.items()}
    if len(values) == 2 and not np.isclose(*values.values(), rtol=1e-3):
        print(f"  {name}: ours is {values['ours']:.6g}, optax's {values['optax']:.6g}", file=sys.stderr)
    count = max(1, min(50, int(0.02 / clock(contenders["ours"], (outputs, targets), 1, now))))
    turns = {who: functools.partial(clock, f, (outputs, targets), count, now) for who, f in contenders.items()}
    if torch is not None and torch.seconds(name, 1) is not None:
        turns["torch"] = functools.partial(torch.seconds, name, count)
    taken: dict[str, list[float]] = {}
    for i in range(rounds):
        for who in sorted(turns, reverse=bool(i % 2)):  # each follows each: what ran before leaves its arrays in the caches
            time.sleep(0.02)  # torch's threads spin for a while after their work, on cores that the next one needs
            taken.setdefault(who, []).append(turns[who]())
    moved = 2 * sum(x.nbytes for x in jax.tree.leaves(outputs)) + sum(x.nbytes for x in jax.tree.leaves(targets))
    return {who: min(times) for who, times in taken.items()}, moved


def report(name: str, times: dict[str, float], moved: int, limit: float) -> None:
    columns = [f"{times[who] * 1e3:8.2f}" if who in times else f"{'-':>8}" for who in ("ours", "optax", "torch")]
    others = [seconds for who, seconds in times.items() if who != "ours"]
    ratio = f"{times['ours'] / min(others):6.2f}" if others else f"{'-':>6}"
    share = f"{moved / times['ours'] / limit:8.0%}" if name in TRAFFIC else ""
    print(f"{name:<29}{''.join(columns)}  {ratio}{share}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="value_and_grad of the mean of losses, against optax and torch")
    parser.add_argument("--torch", default=os.environ.get("LOSSOPT_TORCH", TORCH), help="a Python that has torch")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="+", choices=LOSSES, default=list(LOSSES), metavar="LOSS")
    parser.add_argument("--cpu", action="store_true", help="processor seconds of all threads, not the clock's")
    given = parser.parse_args()
    now = time.process_time if given.cpu else time.perf_counter
    torch = Torch(given.torch, given.cpu) if pathlib.Path(given.torch).exists() else None
    if torch is None:
        print(f"torch left out: there is no {given.torch}; give one by --torch or LOSSOPT_TORCH")
    limit = triad_bytes_a_second(20, now)
    print(f"stream limit (triad, {os.cpu_count()} threads): {limit / 1e9:.1f} GB/s; {'CPU ms' if given.cpu else 'ms'}")
    print(f"{'':<29}{'ours':>8}{'optax':>8}{'torch':>8}  ratio  of limit")
    slower = []
    for name in given.only:
        times, moved = measure(name, torch, given.rounds, now)
        report(name, times, moved, limit)
        if times["ours"] > 1.1 * min((s for who, s in times.items() if who != "ours"), default=np.inf):
            slower.append(name)
    print(f"slower than 1.1 times the faster: {', '.join(slower) or 'none'}")


if __name__ == "__main__":
    main()
